/*
 * Arbitrary replies of the TCP side channel, cut at arbitrary places.  The
 * first two bytes of an input choose the cap, the kind and the pieces; the
 * rest is the stream.  The decoder's results are compared with a reading of
 * the whole stream at once.
 */
#include "fuzz.h"

#include "side_channel/tcp_wire.h"

typedef enum state { MORE, WHOLE, ABOVE_MAX, NO_STATUS } state_t;

static state_t
expected_state(const uint8_t *stream, size_t size, uint32_t max, size_t status)
{
    if (size < VNXI_TCP_LENGTH) {
        return MORE;
    }
    uint32_t len = (uint32_t)stream[0] << 24 | (uint32_t)stream[1] << 16 |
                   (uint32_t)stream[2] << 8 | stream[3];
    if (len > max + status) {
        return ABOVE_MAX;
    }
    if (len < status) {
        return NO_STATUS;
    }
    return size - VNXI_TCP_LENGTH >= len ? WHOLE : MORE;
}

/* Feed what is wanted in pieces; returns the number of bytes taken. */
static size_t
feed(vnxi_incoming_t *in, const uint8_t *stream, size_t size, size_t piece)
{
    size_t taken = 0, room;
    void *space;

    while (taken < size && (space = vnxi_incoming_space(in, &room)) != NULL) {
        must(room > 0);
        room = room < piece ? room : piece;
        room = room < size - taken ? room : size - taken;
        memcpy(space, stream + taken, room);
        taken += room;
        vnxi_incoming_commit(in, room);
        must(in->head_have <= in->head_want);
        must(in->body.len <= in->body_want);
        must(in->body.capacity <= VNXI_BODY_CHUNK ||
             in->body.capacity <= 2 * in->body.len);
    }
    return taken;
}

static state_t
reply_read(vnxi_incoming_t *in, vnxi_tcp_kind_t kind, uint32_t max,
           const uint8_t *stream, size_t size, size_t piece, size_t *taken_p)
{
    *taken_p = feed(in, stream, size, piece);
    if (in->head_have < VNXI_TCP_LENGTH) {
        return MORE;
    }
    must(*taken_p == VNXI_TCP_LENGTH);
    vnxi_tcp_length_t length = vnxi_tcp_reply_expect(in, kind, max);
    *taken_p += feed(in, stream + *taken_p, size - *taken_p, piece);
    if (length != VNXI_TCP_LENGTH_VALID) {
        must(*taken_p == VNXI_TCP_LENGTH);
        return length == VNXI_TCP_LENGTH_ABOVE_MAX ? ABOVE_MAX : NO_STATUS;
    }
    return in->head_have == in->head_want && in->body.len == in->body_want
               ? WHOLE
               : MORE;
}

static void
check_whole(vnxi_incoming_t *in, vnxi_tcp_kind_t kind, const uint8_t *stream,
            size_t taken)
{
    unsigned char head[VNXI_TCP_HEAD_MAX];
    size_t len = 0, room;

    must(vnxi_incoming_space(in, &room) == NULL && room == 0);
    void *body = vnxi_body_take(&in->body, &len);
    must(body != NULL && taken == in->head_have + len);
    must(memcmp(body, stream + in->head_have, len) == 0);
    size_t head_len = vnxi_tcp_head_encode(
        kind, (vnxi_tcp_status_t)in->head[VNXI_TCP_LENGTH], len, head);
    must(head_len == in->head_have);
    must(memcmp(head, stream, head_len) == 0);
    free(body);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint32_t caps[] = {0, 12, 1036, 1u << 20, UINT32_MAX - 64};
    vnxi_incoming_t in = {.head_want = VNXI_TCP_LENGTH};
    size_t taken;

    if (size < 2) {
        return 0;
    }
    uint32_t max = caps[data[0] % (sizeof caps / sizeof caps[0])];
    vnxi_tcp_kind_t kind = data[0] / 5 % 3 > 0 ? VNXI_TCP_GET : VNXI_TCP_SEED;
    state_t state = reply_read(&in, kind, max, data + 2, size - 2,
                               (size_t)data[1] + 1, &taken);
    must(state == expected_state(data + 2, size - 2, max,
                                 kind == VNXI_TCP_GET ? 1 : 0));
    if (state == WHOLE) {
        check_whole(&in, kind, data + 2, taken);
    }
    vnxi_body_fini(&in.body);
    return 0;
}
