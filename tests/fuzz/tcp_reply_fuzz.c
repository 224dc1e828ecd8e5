/*
 * Arbitrary replies of the TCP side channel, cut at arbitrary places.  The
 * first two bytes of an input choose the cap, the kind and the pieces; the
 * rest is the stream.  The decoder's results are compared with a reading of
 * the whole stream at once.
 */
#include "fuzz.h"

#include "side_channel/tcp_wire.h"

static vnxi_tcp_reply_state_t
expected_state(const uint8_t *stream, size_t size, uint32_t max, size_t status)
{
    if (size < VNXI_TCP_LENGTH) {
        return VNXI_TCP_REPLY_MORE;
    }
    uint32_t len = (uint32_t)stream[0] << 24 | (uint32_t)stream[1] << 16 |
                   (uint32_t)stream[2] << 8 | stream[3];
    if (len > max + status) {
        return VNXI_TCP_REPLY_TOO_LONG;
    }
    if (len < status) {
        return VNXI_TCP_REPLY_NO_STATUS;
    }
    return size - VNXI_TCP_LENGTH >= len ? VNXI_TCP_REPLY_WHOLE
                                         : VNXI_TCP_REPLY_MORE;
}

/* Feed the stream in pieces; returns the number of bytes taken. */
static size_t
feed(vnxi_tcp_reply_t *reply, const uint8_t *stream, size_t size, size_t piece)
{
    size_t taken = 0, room;
    void *space;

    while (taken < size && (space = vnxi_tcp_reply_space(reply, &room))) {
        must(room > 0);
        room = room < piece ? room : piece;
        room = room < size - taken ? room : size - taken;
        memcpy(space, stream + taken, room);
        taken += room;
        vnxi_tcp_reply_commit(reply, room);
        must(reply->head_have <= reply->head_len);
        must(reply->body.capacity <= VNXI_BODY_CHUNK ||
             reply->body.capacity <= 2 * reply->body.len);
    }
    return taken;
}

static void
check_whole(vnxi_tcp_reply_t *reply, vnxi_tcp_kind_t kind,
            const uint8_t *stream, size_t taken)
{
    unsigned char head[VNXI_TCP_HEAD_MAX];
    size_t len = 0, room;

    must(VNXI_TCP_LENGTH + vnxi_tcp_reply_have(reply) == taken);
    void *body = vnxi_body_take(&reply->body, &len);
    must(body != NULL && taken == reply->head_len + len);
    must(memcmp(body, stream + reply->head_len, len) == 0);
    size_t head_len = vnxi_tcp_head_encode(
        kind, (vnxi_tcp_status_t)reply->head[VNXI_TCP_LENGTH], len, head);
    must(head_len == reply->head_len);
    must(memcmp(head, stream, head_len) == 0);
    must(vnxi_tcp_reply_space(reply, &room) == NULL && room == 0);
    free(body);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint32_t caps[] = {0, 12, 1036, 1u << 20, UINT32_MAX - 64};
    vnxi_tcp_reply_t reply;

    if (size < 2) {
        return 0;
    }
    uint32_t max = caps[data[0] % (sizeof caps / sizeof caps[0])];
    vnxi_tcp_kind_t kind = data[0] / 5 % 3 > 0 ? VNXI_TCP_GET : VNXI_TCP_SEED;
    size_t piece = (size_t)data[1] + 1;
    vnxi_tcp_reply_init(&reply, kind, max);
    size_t taken = feed(&reply, data + 2, size - 2, piece);
    must(reply.state == expected_state(data + 2, size - 2, max,
                                       kind == VNXI_TCP_GET ? 1 : 0));
    if (reply.state == VNXI_TCP_REPLY_WHOLE) {
        check_whole(&reply, kind, data + 2, taken);
    }
    vnxi_body_fini(&reply.body);
    return 0;
}
