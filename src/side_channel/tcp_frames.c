/* Frames (frame.h) over the connections of a listener: the TCP side channel's
 * own protocol. */
#include "side_channel/tcp.h"

static void
frame_begin(vnxi_tcp_conn_t *conn)
{
    vnxi_frame_decoder_init(&conn->request, VNXI_TCP_REQUEST_MAX, 0);
}

static bool
frames_begin(vnxi_tcp_conn_t *conn)
{
    frame_begin(conn);
    return true;
}

/* Take what has come of a request; true: it is whole. */
static bool
take(vnxi_tcp_conn_t *conn)
{
    size_t size;
    void *space;

    while ((space = vnxi_frame_space(&conn->request, &size)) != NULL) {
        size = bufferevent_read(conn->bev, space, size);
        if (size == 0) {
            return false;
        }
        vnxi_stat_add_count(&conn->listener->super.stats->bytes_received,
                            size);
        vnxi_frame_commit(&conn->request, size);
    }
    return true;
}

/* A proof takes several requests, which may come together. */
static vnxi_tcp_next_t
frames_read(vnxi_tcp_conn_t *conn)
{
    vnxi_tcp_next_t next = VNXI_TCP_NEXT_READ;

    while (next == VNXI_TCP_NEXT_READ && take(conn)) {
        next = vnxi_tcp_answer(conn);
        vnxi_frame_decoder_fini(&conn->request);
        frame_begin(conn);
    }
    return next;
}

static bool
frames_is_midway(const vnxi_tcp_conn_t *conn)
{
    return conn->request.header_have > 0;
}

static void
frames_fini(vnxi_tcp_conn_t *conn)
{
    vnxi_frame_decoder_fini(&conn->request);
}

const vnxi_tcp_protocol_t vnxi_tcp_frames = {
    .thread_name = "vnx-tcp",
    .conn_size = sizeof(vnxi_tcp_conn_t),
    .input_max = VNXI_FRAME_HEADER + VNXI_TCP_REQUEST_MAX,
    .begin = frames_begin,
    .read = frames_read,
    .is_midway = frames_is_midway,
    .fini = frames_fini,
};
