/*
 * Design notes.  The TCP side channel's own protocol: frames (frame.h) over
 * the connections of a listener, one request per connection.  With a secret
 * the same frames go over TLS.  The TLS handshake proves the secret, so
 * nothing here depends on it.
 */
#include <event2/buffer.h>
#include <string.h>

#include "side_channel/frame.h"
#include "side_channel/tcp.h"
#include "side_channel/tcp_wire.h"

typedef struct frame_conn {
    vnxi_tcp_conn_t super;
    vnxi_frame_decoder_t request;
} frame_conn_t;

static struct evbuffer *
output_of(frame_conn_t *conn)
{
    return bufferevent_get_output(conn->super.bev);
}

static vnxi_blob_t *
find(const frame_conn_t *conn, const void *key, size_t key_len)
{
    return vnxi_blob_table_find(conn->super.listener->super.blobs, key,
                                key_len);
}

/* -- Answers -------------------------------------------------------------- */

static void
refuse(frame_conn_t *conn, vnx_side_channel_refusal_t why)
{
    vnxi_stat_refused(conn->super.listener->super.stats, why);
    conn->super.turned_away = true;
}

static vnxi_tcp_next_t
hang_up(frame_conn_t *conn, vnx_side_channel_refusal_t why)
{
    refuse(conn, why);
    return VNXI_TCP_NEXT_CLOSE;
}

/* Write `head`, and close after it. */
static vnxi_tcp_next_t
write_last(frame_conn_t *conn, const void *head, size_t len)
{
    return evbuffer_add(output_of(conn), head, len) == 0 ? VNXI_TCP_NEXT_WRITE
                                                         : VNXI_TCP_NEXT_CLOSE;
}

/* Write the length of the frame, then the status if the request has one. */
static size_t
put_head(unsigned char head[VNXI_FRAME_HEADER + 1], vnxi_tcp_kind_t kind,
         vnxi_tcp_status_t status, size_t len)
{
    size_t extra = kind == VNXI_TCP_SEED ? 0 : 1;

    vnxi_frame_encode_header((uint32_t)(extra + len), head);
    head[VNXI_FRAME_HEADER] = (unsigned char)status;
    return VNXI_FRAME_HEADER + extra;
}

/* Answer a request for an unknown key.  The first protocol cannot express it.
 */
static vnxi_tcp_next_t
answer_unknown_key(frame_conn_t *conn, vnxi_tcp_kind_t kind)
{
    static const char text[] = VNXI_TCP_UNKNOWN_TEXT;
    unsigned char reply[VNXI_FRAME_HEADER + 1 + sizeof text];

    if (kind == VNXI_TCP_SEED) {
        return hang_up(conn, VNX_SIDE_CHANNEL_REFUSED_UNKNOWN_KEY);
    }
    size_t len = put_head(reply, kind, VNXI_TCP_UNKNOWN_KEY, sizeof text - 1);
    memcpy(reply + len, text, sizeof text - 1);
    refuse(conn, VNX_SIDE_CHANNEL_REFUSED_UNKNOWN_KEY);
    return write_last(conn, reply, len + sizeof text - 1);
}

/* Write a blob; takes the reference to `blob`. */
static vnxi_tcp_next_t
answer_blob(frame_conn_t *conn, vnxi_tcp_kind_t kind, vnxi_blob_t *blob)
{
    unsigned char head[VNXI_FRAME_HEADER + 1];
    size_t len = put_head(head, kind, VNXI_TCP_BLOB, blob->len);
    vnxi_tcp_next_t next = write_last(conn, head, len);

    if (next == VNXI_TCP_NEXT_WRITE && blob->len > 0) {
        if (evbuffer_add_reference(output_of(conn), blob->data, blob->len,
                                   vnxi_blob_sent, blob) == 0) {
            return VNXI_TCP_NEXT_WRITE;
        }
        next = VNXI_TCP_NEXT_CLOSE;
    }
    vnxi_blob_release(blob);
    return next;
}

/* The announced length is above the cap.  The four bytes may be the start of a
 * TLS handshake instead; then an alert tells the client that this listener
 * does not speak TLS. */
static vnxi_tcp_next_t
answer_too_long(frame_conn_t *conn)
{
    if (conn->super.tls == NULL &&
        vnxi_tcp_is_tls_hello(conn->request.header)) {
        refuse(conn, VNX_SIDE_CHANNEL_REFUSED_TLS);
        return write_last(conn, VNXI_TCP_ALERT, VNXI_TCP_ALERT_LEN);
    }
    return hang_up(conn, VNX_SIDE_CHANNEL_REFUSED_TOO_LONG);
}

static vnxi_tcp_next_t
answer(frame_conn_t *conn)
{
    const vnxi_frame_decoder_t *frame = &conn->request;
    vnxi_tcp_request_t request;

    if (frame->state == VNXI_FRAME_TOO_LONG) {
        return answer_too_long(conn);
    }
    if (frame->state != VNXI_FRAME_WHOLE ||
        !vnxi_tcp_request_parse(frame->data, frame->len, &request)) {
        return hang_up(conn, VNX_SIDE_CHANNEL_REFUSED_MALFORMED);
    }
    vnxi_blob_t *blob = find(conn, request.key, request.key_len);
    return blob != NULL ? answer_blob(conn, request.kind, blob)
                        : answer_unknown_key(conn, request.kind);
}

/* -- The protocol's functions --------------------------------------------- */

static bool
frames_begin(vnxi_tcp_conn_t *super)
{
    frame_conn_t *conn = (frame_conn_t *)super;

    vnxi_frame_decoder_init(&conn->request, VNXI_TCP_REQUEST_MAX, 0);
    return true;
}

static vnxi_tcp_next_t
frames_read(vnxi_tcp_conn_t *super)
{
    frame_conn_t *conn = (frame_conn_t *)super;
    size_t size;
    void *space;

    while ((space = vnxi_frame_space(&conn->request, &size)) != NULL) {
        size = bufferevent_read(super->bev, space, size);
        if (size == 0) {
            return VNXI_TCP_NEXT_READ;
        }
        vnxi_stat_add_count(&super->listener->super.stats->bytes_received,
                            size);
        vnxi_frame_commit(&conn->request, size);
    }
    return answer(conn);
}

static bool
frames_is_midway(const vnxi_tcp_conn_t *super)
{
    return ((const frame_conn_t *)super)->request.header_have > 0;
}

static void
frames_fini(vnxi_tcp_conn_t *super)
{
    vnxi_frame_decoder_fini(&((frame_conn_t *)super)->request);
}

const vnxi_tcp_protocol_t vnxi_tcp_frames = {
    .thread_name = "vnx-tcp",
    .conn_size = sizeof(frame_conn_t),
    .input_max = VNXI_FRAME_HEADER + VNXI_TCP_REQUEST_MAX,
    .begin = frames_begin,
    .read = frames_read,
    .is_midway = frames_is_midway,
    .fini = frames_fini,
};
