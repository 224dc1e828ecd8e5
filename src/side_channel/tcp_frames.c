/*
 * Design notes.  The TCP side channel's own protocol: frames over the
 * connections of a listener, one request per connection.  With a secret the
 * same frames go over TLS.  The TLS handshake proves the secret, so nothing
 * here depends on it.
 */
#include <event2/buffer.h>
#include <string.h>

#include "base/bytes.h"
#include "side_channel/server.h"
#include "side_channel/tcp_wire.h"

static vnxi_next_t
hang_up(vnxi_conn_t *conn, vnx_side_channel_refusal_t why)
{
    vnxi_stat_refused(conn->server->stats, why);
    return VNXI_NEXT_CLOSE;
}

/* Write `data`, and close after it. */
static vnxi_next_t
write_last(vnxi_conn_t *conn, const void *data, size_t len)
{
    return evbuffer_add(bufferevent_get_output(conn->bev), data, len) == 0
               ? VNXI_NEXT_WRITE
               : VNXI_NEXT_CLOSE;
}

/* Count a refusal that the client is told. */
static vnxi_next_t
refuse(vnxi_conn_t *conn, const void *reply, size_t len,
       vnx_side_channel_refusal_t why)
{
    vnxi_stat_refused(conn->server->stats, why);
    conn->turned_away = true;
    return write_last(conn, reply, len);
}

/* Answer a request for an unknown key.  The first protocol cannot express it.
 */
static vnxi_next_t
answer_unknown_key(vnxi_conn_t *conn, vnxi_tcp_kind_t kind)
{
    static const char text[] = VNXI_TCP_UNKNOWN_TEXT;
    unsigned char reply[VNXI_TCP_HEAD_MAX + sizeof text];

    if (kind == VNXI_TCP_SEED) {
        return hang_up(conn, VNX_SIDE_CHANNEL_REFUSED_UNKNOWN_KEY);
    }
    size_t len = vnxi_tcp_head_encode(kind, VNXI_TCP_UNKNOWN_KEY,
                                      sizeof text - 1, reply);
    memcpy(reply + len, text, sizeof text - 1);
    return refuse(conn, reply, len + sizeof text - 1,
                  VNX_SIDE_CHANNEL_REFUSED_UNKNOWN_KEY);
}

/* Write a blob; takes the reference to `blob`. */
static vnxi_next_t
answer_blob(vnxi_conn_t *conn, vnxi_tcp_kind_t kind, vnxi_blob_t *blob)
{
    unsigned char head[VNXI_TCP_HEAD_MAX];
    size_t len = vnxi_tcp_head_encode(kind, VNXI_TCP_BLOB, blob->len, head);

    if (write_last(conn, head, len) != VNXI_NEXT_WRITE) {
        vnxi_blob_release(blob);
        return VNXI_NEXT_CLOSE;
    }
    return vnxi_conn_write_blob(bufferevent_get_output(conn->bev), blob)
               ? VNXI_NEXT_WRITE
               : VNXI_NEXT_CLOSE;
}

/* The announced length is above the cap.  The four bytes may be the start of a
 * TLS handshake instead; then an alert tells the client that this listener
 * does not speak TLS. */
static vnxi_next_t
answer_too_long(vnxi_conn_t *conn, const unsigned char length[VNXI_TCP_LENGTH])
{
    return conn->tls == NULL && vnxi_tcp_is_tls_hello(length)
               ? refuse(conn, VNXI_TCP_ALERT, VNXI_TCP_ALERT_LEN,
                        VNX_SIDE_CHANNEL_REFUSED_TLS)
               : hang_up(conn, VNX_SIDE_CHANNEL_REFUSED_TOO_LONG);
}

static vnxi_next_t
answer(vnxi_conn_t *conn, const unsigned char *bytes, size_t len)
{
    vnxi_tcp_request_t request;

    if (!vnxi_tcp_request_parse(bytes, len, &request)) {
        return hang_up(conn, VNX_SIDE_CHANNEL_REFUSED_MALFORMED);
    }
    vnxi_blob_t *blob = vnxi_blob_table_find(conn->server->blobs, request.key,
                                             request.key_len);
    return blob != NULL ? answer_blob(conn, request.kind, blob)
                        : answer_unknown_key(conn, request.kind);
}

/* -- The protocol's functions --------------------------------------------- */

static vnxi_next_t
frames_read(vnxi_conn_t *conn)
{
    struct evbuffer *input = bufferevent_get_input(conn->bev);
    size_t have = evbuffer_get_length(input);
    unsigned char length[VNXI_TCP_LENGTH];

    if (have < sizeof length) {
        return VNXI_NEXT_READ;
    }
    evbuffer_copyout(input, length, sizeof length);
    size_t len = (size_t)vnxi_big_get(length, sizeof length);
    if (len > VNXI_TCP_REQUEST_MAX) {
        return answer_too_long(conn, length);
    }
    if (have < sizeof length + len) {
        return VNXI_NEXT_READ;
    }
    const unsigned char *frame =
        evbuffer_pullup(input, (ssize_t)(sizeof length + len));
    return frame != NULL ? answer(conn, frame + sizeof length, len)
                         : VNXI_NEXT_CLOSE;
}

static bool
frames_is_midway(const vnxi_conn_t *conn)
{
    return evbuffer_get_length(bufferevent_get_input(conn->bev)) > 0;
}

const vnxi_protocol_t vnxi_tcp_protocol = {
    .thread_name = "vnx-tcp",
    .server_size = sizeof(vnxi_server_t),
    .conn_size = sizeof(vnxi_conn_t),
    .accept = vnxi_tcp_accept,
    .drop = vnxi_tcp_drop,
    .input_max = VNXI_TCP_LENGTH + VNXI_TCP_REQUEST_MAX,
    .read = frames_read,
    .is_midway = frames_is_midway,
};
