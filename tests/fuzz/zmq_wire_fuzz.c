/*
 * Arbitrary msgpack, read as a request and as a refusal.  An accepted request
 * keeps its meaning when it is written in its shortest form.
 */
#include "fuzz.h"

#include <string.h>

#include "side_channel/zmq_wire.h"

static bool
is_same(const vnxi_zmq_request_t *one, const vnxi_zmq_request_t *other)
{
    return one->count == other->count && one->key_len == other->key_len &&
           memcmp(one->key, other->key, one->key_len + 1) == 0;
}

/* Write a request that was parsed, and parse it again. */
static void
try_own_request(const vnxi_zmq_request_t *request)
{
    unsigned char bytes[VNXI_ZMQ_REQUEST_MAX];
    vnxi_zmq_request_t again;

    size_t len = vnxi_zmq_request_encode(request, bytes);
    must(len <= sizeof bytes && vnxi_zmq_request_parse(bytes, len, &again));
    must(is_same(request, &again));
}

static void
try_request(const uint8_t *data, size_t size)
{
    vnxi_zmq_request_t request, again;

    if (!vnxi_zmq_request_parse(data, size, &request)) {
        return;
    }
    must(request.count > 0 && request.key_len == strlen(request.key));
    bool is_key =
        vnxi_zmq_request_of_key(request.key, request.key_len, &again);
    must(is_key == (strchr(request.key, '-') == NULL));
    if (is_key) {
        must(is_same(&request, &again));
        try_own_request(&request);
    }
}

static void
try_refusal(const uint8_t *data, size_t size)
{
    size_t len;
    const unsigned char *text = vnxi_zmq_refusal_parse(data, size, &len);

    must(text == NULL ||
         (text >= data && len <= size && (size_t)(text - data) == size - len));
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    vnxi_zmq_request_t request;

    try_request(data, size);
    try_refusal(data, size);
    must(!vnxi_zmq_is_no_clock(data, size) || size == VNXI_ZMQ_CLOCK);
    if (vnxi_zmq_request_of_key(data, size, &request)) {
        must(request.key_len == size && memcmp(request.key, data, size) == 0);
        try_own_request(&request);
    }
    return 0;
}
