/*
 * Arbitrary requests of the TCP side channel.  Writing an accepted request
 * must give the same bytes: each request has exactly one encoding.
 */
#include "fuzz.h"

#include "side_channel/tcp_wire.h"

static bool
is_within(const unsigned char *part, size_t len, const uint8_t *data,
          size_t size)
{
    return part == NULL || (part >= data && part + len <= data + size);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    unsigned char again[VNXI_TCP_LENGTH + VNXI_TCP_REQUEST_MAX];
    vnxi_tcp_request_t request = {0};

    if (size > VNXI_TCP_REQUEST_MAX ||
        !vnxi_tcp_request_parse(data, size, &request)) {
        return 0;
    }
    must(request.key_len <= VNX_SIDE_CHANNEL_KEY_MAX);
    must(is_within(request.key, request.key_len, data, size));
    must(vnxi_tcp_request_encode(&request, again) == VNXI_TCP_LENGTH + size);
    must(memcmp(again + VNXI_TCP_LENGTH, data, size) == 0);
    return 0;
}
