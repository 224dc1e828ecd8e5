/*
 * Design notes.  A connection begins with a greeting and a READY from each
 * side.  We send READY after the peer's greeting is complete, because libzmq's
 * engine treats a READY that comes with the greeting as an error.
 *
 * Then messages follow.  A frame is processed when it is complete in the
 * input.  The input holds only a few frames, which bounds the data that a
 * client may send before it has read its answer; and a message of a thousand
 * frames costs as little as one.  A message that is not a request is answered
 * if it has the delimiter that an answer needs, and dropped otherwise.
 *
 * An error in the framing closes the connection; a client that uses libzmq
 * reconnects by itself.
 */
#include <event2/buffer.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "side_channel/server.h"
#include "side_channel/zmq_wire.h"

#define INPUT_MAX (2 * (VNXI_ZMTP_HEADER_MAX + VNXI_ZMTP_SMALL_MAX))
#define PONGS_MAX 1024u /* bytes of PONGs that the client has not read */
#define PARTS_MAX 64u   /* per message */

typedef enum stage {
    STAGE_GREETING,
    STAGE_READY,
    STAGE_MESSAGE,
} stage_t;

typedef struct zmq_conn {
    vnxi_conn_t super;
    stage_t stage;
    /* The message being received: */
    unsigned parts;
    bool has_delimiter;
    bool is_request;
    unsigned char count; /* of the request's integers */
    /* From the client's READY, else from the request: */
    bool names_key;
    unsigned char key_len;
    char key[VNX_SIDE_CHANNEL_KEY_MAX + 1]; /* and a NUL */
} zmq_conn_t;

/* Continue with the rest of the input. */
#define NEXT_AGAIN ((vnxi_next_t)-1)

static struct evbuffer *
output_of(const zmq_conn_t *conn)
{
    return bufferevent_get_output(conn->super.bev);
}

static void
count_refused(zmq_conn_t *conn, vnx_side_channel_refusal_t why)
{
    vnxi_stat_refused(conn->super.server->stats, why);
}

static vnxi_next_t
hang_up(zmq_conn_t *conn, vnx_side_channel_refusal_t why)
{
    count_refused(conn, why);
    return VNXI_NEXT_CLOSE;
}

/* -- Answers -------------------------------------------------------------- */

/* Write the delimiter, then the header of the first frame. */
static bool
add_head(zmq_conn_t *conn, bool more, size_t len)
{
    unsigned char head[2 * VNXI_ZMTP_HEADER_MAX];

    size_t size = vnxi_zmtp_header_encode(true, 0, head);
    size += vnxi_zmtp_header_encode(more, len, head + size);
    return evbuffer_add(output_of(conn), head, size) == 0;
}

static bool
add_last(zmq_conn_t *conn, const void *data, size_t len)
{
    unsigned char header[VNXI_ZMTP_HEADER_MAX];

    size_t size = vnxi_zmtp_header_encode(false, len, header);
    return evbuffer_add(output_of(conn), header, size) == 0 &&
           evbuffer_add(output_of(conn), data, len) == 0;
}

static bool
add_clock(zmq_conn_t *conn, double seconds)
{
    unsigned char clock[VNXI_ZMQ_CLOCK];

    vnxi_zmq_clock_encode(seconds, clock);
    return add_last(conn, clock, sizeof clock);
}

static vnxi_next_t
refuse(zmq_conn_t *conn, const char *text, vnx_side_channel_refusal_t why)
{
    unsigned char refusal[VNXI_ZMQ_REFUSAL_MAX];
    size_t len = vnxi_zmq_refusal_encode(text, refusal);

    count_refused(conn, why);
    conn->super.turned_away = true;
    return add_head(conn, true, len) &&
                   evbuffer_add(output_of(conn), refusal, len) == 0 &&
                   add_clock(conn, VNXI_ZMQ_NO_CLOCK)
               ? VNXI_NEXT_WRITE
               : VNXI_NEXT_CLOSE;
}

/* Find the blob of a tensor rank alone, "1", under "0,1", or the other way
 * round: connectors before version 5 know no pipeline ranks. */
static vnxi_blob_t *
find_other_form(const zmq_conn_t *conn)
{
    char other[2 + sizeof conn->key];
    vnxi_blob_table_t *blobs = conn->super.server->blobs;

    if (conn->count == 1) {
        int len = snprintf(other, sizeof other, "0,%s", conn->key);
        return vnxi_blob_table_find(blobs, other, (size_t)len);
    }
    return conn->count == 2 && strncmp(conn->key, "0,", 2) == 0
               ? vnxi_blob_table_find(blobs, conn->key + 2, conn->key_len - 2u)
               : NULL;
}

/* Find the blob that was asked for.  A program that serves a single blob
 * serves it as the rank whose integers are all 0. */
static vnxi_blob_t *
find_blob(const zmq_conn_t *conn)
{
    vnxi_blob_table_t *blobs = conn->super.server->blobs;
    vnxi_blob_t *blob = vnxi_blob_table_find(blobs, conn->key, conn->key_len);

    if (conn->names_key) {
        return blob;
    }
    if (blob == NULL) {
        blob = find_other_form(conn);
    }
    if (blob == NULL && strspn(conn->key, "0,") == conn->key_len) {
        blob = vnxi_blob_table_find(blobs, "", 0);
    }
    return blob;
}

static vnxi_next_t
answer(zmq_conn_t *conn)
{
    bool clock = conn->count > 1;
    vnxi_blob_t *blob = find_blob(conn);

    if (blob == NULL) {
        return refuse(conn, VNXI_ZMQ_UNKNOWN_KEY,
                      VNX_SIDE_CHANNEL_REFUSED_UNKNOWN_KEY);
    }
    if (!add_head(conn, clock, blob->len)) {
        vnxi_blob_release(blob);
        return VNXI_NEXT_CLOSE;
    }
    return vnxi_conn_write_blob(output_of(conn), blob) &&
                   (!clock || add_clock(conn, (double)vnxi_clock_ns() / 1e9))
               ? VNXI_NEXT_WRITE
               : VNXI_NEXT_CLOSE;
}

/* -- Input ---------------------------------------------------------------- */

/* The message is complete. */
static vnxi_next_t
take_message(zmq_conn_t *conn)
{
    bool has_delimiter = conn->has_delimiter;
    bool is_request = conn->is_request && conn->parts == 2;

    conn->parts = 0;
    if (is_request) {
        return answer(conn);
    }
    if (has_delimiter) {
        return refuse(conn, VNXI_ZMQ_MALFORMED,
                      VNX_SIDE_CHANNEL_REFUSED_MALFORMED);
    }
    count_refused(conn, VNX_SIDE_CHANNEL_REFUSED_MALFORMED);
    return NEXT_AGAIN;
}

static bool
take_request(zmq_conn_t *conn, const unsigned char *body, size_t len)
{
    vnxi_zmq_request_t request;

    if (!vnxi_zmq_request_parse(body, len, &request)) {
        return false;
    }
    conn->count = (unsigned char)request.count;
    if (!conn->names_key) {
        conn->key_len = (unsigned char)request.key_len;
        memcpy(conn->key, request.key, sizeof request.key);
    }
    return true;
}

static vnxi_next_t
take_part(zmq_conn_t *conn, const vnxi_zmtp_frame_t *frame,
          const unsigned char *body)
{
    size_t len = (size_t)frame->len;

    if (conn->parts == 0) {
        conn->has_delimiter = frame->more && len == 0;
        conn->is_request = false;
    } else if (conn->parts == 1 && conn->has_delimiter) {
        conn->is_request = take_request(conn, body, len);
    }
    if (++conn->parts > PARTS_MAX) {
        return hang_up(conn, VNX_SIDE_CHANNEL_REFUSED_TOO_LONG);
    }
    return frame->more ? NEXT_AGAIN : take_message(conn);
}

static vnxi_next_t
take_command(zmq_conn_t *conn, const unsigned char *body, size_t len)
{
    unsigned char pong[VNXI_ZMTP_COMMAND_MAX];
    size_t size = vnxi_zmtp_pong(body, len, pong);

    if (size == 0) {
        return hang_up(conn, VNX_SIDE_CHANNEL_REFUSED_MALFORMED);
    }
    /* A client that keeps sending PINGs and does not read the PONGs. */
    if (evbuffer_get_length(output_of(conn)) > PONGS_MAX) {
        return VNXI_NEXT_CLOSE;
    }
    return evbuffer_add(output_of(conn), pong, size) == 0 ? NEXT_AGAIN
                                                          : VNXI_NEXT_CLOSE;
}

static vnxi_next_t
take_ready(zmq_conn_t *conn, const vnxi_zmtp_frame_t *frame,
           const unsigned char *body)
{
    vnxi_zmtp_ready_t ready;

    if (!frame->command ||
        !vnxi_zmtp_ready_parse(body, (size_t)frame->len, &ready) ||
        (!vnxi_zmtp_type_is(&ready, "REQ") &&
         !vnxi_zmtp_type_is(&ready, "DEALER") &&
         !vnxi_zmtp_type_is(&ready, "ROUTER"))) {
        return hang_up(conn, VNX_SIDE_CHANNEL_REFUSED_MALFORMED);
    }
    if (ready.key != NULL) {
        conn->names_key = true;
        conn->key_len = (unsigned char)ready.key_len;
        memcpy(conn->key, ready.key, ready.key_len);
    }
    conn->stage = STAGE_MESSAGE;
    return NEXT_AGAIN;
}

static vnxi_next_t
take_frame(zmq_conn_t *conn)
{
    struct evbuffer *input = bufferevent_get_input(conn->super.bev);
    unsigned char header[VNXI_ZMTP_HEADER_MAX];
    vnxi_zmtp_frame_t frame;

    ssize_t have = evbuffer_copyout(input, header, sizeof header);
    vnxi_zmtp_state_t state =
        vnxi_zmtp_header_parse(header, have > 0 ? (size_t)have : 0, &frame);
    if (state == VNXI_ZMTP_MORE) {
        return VNXI_NEXT_READ;
    }
    if (state == VNXI_ZMTP_BAD) {
        return hang_up(conn, VNX_SIDE_CHANNEL_REFUSED_MALFORMED);
    }
    if (frame.len > VNXI_ZMTP_SMALL_MAX) {
        return hang_up(conn, VNX_SIDE_CHANNEL_REFUSED_TOO_LONG);
    }
    size_t size = frame.header + (size_t)frame.len;
    if (evbuffer_get_length(input) < size) {
        return VNXI_NEXT_READ;
    }
    const unsigned char *bytes = evbuffer_pullup(input, (ssize_t)size);
    if (bytes == NULL) {
        return VNXI_NEXT_CLOSE;
    }
    const unsigned char *body = bytes + frame.header;
    vnxi_next_t next =
        conn->stage == STAGE_READY ? take_ready(conn, &frame, body)
        : frame.command ? take_command(conn, body, (size_t)frame.len)
                        : take_part(conn, &frame, body);
    evbuffer_drain(input, size);
    return next;
}

static vnxi_next_t
take_greeting(zmq_conn_t *conn)
{
    unsigned char greeting[VNXI_ZMTP_GREETING];
    unsigned char ready[VNXI_ZMTP_COMMAND_MAX];

    struct evbuffer *input = bufferevent_get_input(conn->super.bev);
    ssize_t have = evbuffer_copyout(input, greeting, sizeof greeting);
    size_t len = have > 0 ? (size_t)have : 0;
    if (vnxi_zmtp_greeting_check(greeting, len) != NULL) {
        return hang_up(conn, VNX_SIDE_CHANNEL_REFUSED_MALFORMED);
    }
    if (len < sizeof greeting) {
        return VNXI_NEXT_READ;
    }
    evbuffer_drain(input, sizeof greeting);
    conn->stage = STAGE_READY;
    len = vnxi_zmtp_ready_listener(ready);
    return evbuffer_add(output_of(conn), ready, len) == 0 ? NEXT_AGAIN
                                                          : VNXI_NEXT_CLOSE;
}

static vnxi_next_t
zmq_read(vnxi_conn_t *super)
{
    zmq_conn_t *conn = (zmq_conn_t *)super;
    vnxi_next_t next;

    do {
        next = conn->stage == STAGE_GREETING ? take_greeting(conn)
                                             : take_frame(conn);
    } while (next == NEXT_AGAIN);
    return next;
}

/* -- The connection ------------------------------------------------------- */

static bool
zmq_greet(vnxi_conn_t *super)
{
    zmq_conn_t *conn = (zmq_conn_t *)super;
    unsigned char greeting[VNXI_ZMTP_GREETING];
    int on = 1;

    /* The connection may be kept for ever, and the host of the client may
     * disappear without closing it. */
    setsockopt(super->fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    vnxi_zmtp_greeting(greeting);
    return evbuffer_add(output_of(conn), greeting, sizeof greeting) == 0;
}

static bool
zmq_is_midway(const vnxi_conn_t *super)
{
    const zmq_conn_t *conn = (const zmq_conn_t *)super;
    struct evbuffer *input = bufferevent_get_input(super->bev);

    return conn->stage == STAGE_READY || conn->parts > 0 ||
           evbuffer_get_length(input) > 0;
}

const vnxi_protocol_t vnxi_zmq_protocol = {
    .thread_name = "vnx-zmq",
    .server_size = sizeof(vnxi_server_t),
    .conn_size = sizeof(zmq_conn_t),
    .accept = vnxi_tcp_accept,
    .drop = vnxi_tcp_drop,
    .input_max = INPUT_MAX,
    .keeps = true,
    .greet = zmq_greet,
    .read = zmq_read,
    .is_midway = zmq_is_midway,
};
