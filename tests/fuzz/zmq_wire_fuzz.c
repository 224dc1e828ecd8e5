/*
 * Arbitrary msgpack, read as a request and as a refusal.  An accepted request
 * keeps its meaning when it is written in its shortest form, and its key maps
 * back to it.
 */
#include "fuzz.h"

#include "side_channel/blob_table.h"
#include "side_channel/zmq_wire.h"

static bool
is_same(const vnxi_zmq_request_t *one, const vnxi_zmq_request_t *other)
{
    return one->has_pp_rank == other->has_pp_rank &&
           one->pp_rank == other->pp_rank && one->tp_rank == other->tp_rank;
}

static void
try_request(const uint8_t *data, size_t size)
{
    unsigned char bytes[VNXI_ZMQ_REQUEST_MAX];
    char key[VNXI_RANK_KEY_MAX];
    vnxi_zmq_request_t request, again;

    if (!vnxi_zmq_request_parse(data, size, &request)) {
        return;
    }
    size_t len = vnxi_zmq_request_encode(&request, bytes);
    must(len <= sizeof bytes && vnxi_zmq_request_parse(bytes, len, &again));
    must(is_same(&request, &again));
    len = vnxi_rank_key(request.pp_rank, request.tp_rank, key);
    bool is_key = vnxi_zmq_request_of_key(key, len, &again);
    must(is_key == (request.pp_rank >= 0 && request.tp_rank >= 0));
    must(!is_key || (again.pp_rank == request.pp_rank &&
                     again.tp_rank == request.tp_rank));
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
        must(request.pp_rank >= 0 && request.tp_rank >= 0);
    }
    return 0;
}
