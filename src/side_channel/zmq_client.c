/*
 * Design notes.  The ZMQ transport is vLLM's handshake over ZMTP 3.1, as
 * libzmq's ROUTER and REQ sockets speak it.  docs/wire.md specifies the bytes;
 * docs/side_channel.md explains why libzmq is not used.
 *
 * A try goes GREETING -> READY -> REPLY over an open stream
 * (client_conn.c).  A port without a listener is an error at once.  There is
 * neither a thread nor a context that would be in the way of a fork or of the
 * end of the program.
 *
 * The request is sent after the listener's READY, which says whether the
 * listener knows keys other than ranks.  A listener of vLLM does not.  It is
 * asked for ranks only, in messages that it knows, because any other message
 * ends it.
 *
 * No frame is read beyond its end, so the body of the blob goes directly into
 * its final buffer.
 */
#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "side_channel/body.h"
#include "side_channel/client_conn.h"
#include "side_channel/server.h"
#include "side_channel/zmq_wire.h"

/* A listener that answers late may send a PING now and then.  More of them
 * would keep other requests of the same thread waiting. */
#define COMMANDS_MAX 64u

typedef enum stage {
    STAGE_GREETING,
    STAGE_READY,
    STAGE_REPLY,
} stage_t;

/* The next frame of the reply. */
typedef enum part {
    PART_DELIMITER,
    PART_BLOB,
    PART_CLOCK,
    PART_NONE,
} part_t;

typedef struct zmq_client {
    vnxi_client_conn_t conn;
    stage_t stage;
    vnxi_zmq_request_t request;
    bool is_rank; /* the key names ranks, or is the default */
    bool knows_keys;
    unsigned char out[VNXI_ZMTP_COMMAND_MAX];
    vnxi_incoming_t in; /* the greeting as a head, or a frame */
    bool has_header;
    vnxi_zmtp_frame_t frame;
    unsigned commands; /* received after READY */
    part_t part;
    vnxi_body_t blob;
} zmq_client_t;

/* -- Failures ------------------------------------------------------------- */

/* The input is not a reply that vLLM's listener would send. */
static vnx_status_t
no_reply(zmq_client_t *client)
{
    return vnxi_request_failed(client->conn.request, VNX_ERR_MISMATCH,
                               "not a valid reply of this protocol");
}

/* Write the request.  All earlier output has been sent. */
static void
put_request(zmq_client_t *client)
{
    unsigned char request[VNXI_ZMQ_REQUEST_MAX], *at = client->out;
    size_t len = vnxi_zmq_request_encode(&client->request, request);

    at += vnxi_zmtp_header_encode(true, 0, at);
    at += vnxi_zmtp_header_encode(false, len, at);
    memcpy(at, request, len);
    client->conn.out_len = (size_t)(at - client->out) + len;
}

/* -- Receiving ------------------------------------------------------------ */

/* Receive the bytes that `in` wants. */
static vnx_status_t
receive(zmq_client_t *client)
{
    vnx_status_t status = vnxi_client_conn_receive(&client->conn, &client->in);

    return status != VNX_ERR_CLOSED
               ? status
               : vnxi_request_failed(
                     client->conn.request, VNX_ERR_BACKEND,
                     client->stage == STAGE_REPLY
                         ? "the connection was closed without a reply"
                         : "the connection was closed (perhaps by a listener "
                           "of another kind, or by one that requires another "
                           "ZMTP mechanism than NULL)");
}

/* Begin a frame, and free the one before. */
static void
frame_begin(zmq_client_t *client)
{
    vnxi_body_fini(&client->in.body);
    client->in.head_have = client->in.body_want = 0;
    client->in.head_want = 2; /* the shortest header */
    client->has_header = false;
}

/* The header of a frame is complete. */
static vnx_status_t
body_begin(zmq_client_t *client)
{
    const vnxi_request_t *request = client->conn.request;
    bool is_blob = client->stage == STAGE_REPLY && client->part == PART_BLOB &&
                   !client->frame.command;
    uint32_t max = is_blob ? request->options->max_frame : VNXI_ZMTP_SMALL_MAX;

    client->has_header = true;
    if (client->frame.len <= max) {
        client->in.body_want = (size_t)client->frame.len;
        return VNX_OK;
    }
    return vnxi_request_failed(
        client->conn.request, VNX_ERR_MISMATCH,
        is_blob ? "a reply of %" PRIu64 " bytes is above max_frame (%" PRIu32
                  ")"
                : "not a valid reply of this protocol: a frame of %" PRIu64
                  " bytes, where %" PRIu32 " are allowed",
        client->frame.len, max);
}

/* Receive a frame.  VNX_OK: it is complete. */
static vnx_status_t
receive_frame(zmq_client_t *client)
{
    vnxi_incoming_t *in = &client->in;
    vnx_status_t status = receive(client);

    while (status == VNX_OK && !client->has_header) {
        switch (
            vnxi_zmtp_header_parse(in->head, in->head_have, &client->frame)) {
        case VNXI_ZMTP_MORE:
            in->head_want = VNXI_ZMTP_HEADER_MAX;
            break;
        case VNXI_ZMTP_WHOLE:
            status = body_begin(client);
            break;
        default:
            return no_reply(client);
        }
        if (status == VNX_OK) {
            status = receive(client);
        }
    }
    return status;
}

/* -- Input ---------------------------------------------------------------- */

static vnx_status_t
take_ready(zmq_client_t *client)
{
    vnxi_zmtp_ready_t ready;

    if (!client->frame.command ||
        !vnxi_zmtp_ready_parse(client->in.body.data, client->in.body.len,
                               &ready)) {
        return no_reply(client);
    }
    client->knows_keys = ready.knows_keys;
    if (!client->is_rank && !client->knows_keys) {
        client->conn.request->answered = true;
        return vnxi_request_failed(
            client->conn.request, VNX_ERR_NOT_FOUND,
            "the listener is one of vLLM's own, which serve only "
            "ranks, and the key is not a valid rank");
    }
    put_request(client);
    client->stage = STAGE_REPLY;
    client->conn.request->phase = "sending to";
    return VNX_IN_PROG;
}

/* Handle a command; a PING is answered. */
static vnx_status_t
take_command(zmq_client_t *client)
{
    if (++client->commands > COMMANDS_MAX) {
        return vnxi_request_failed(client->conn.request, VNX_ERR_MISMATCH,
                                   "not a valid reply of this protocol: more "
                                   "than %u commands",
                                   COMMANDS_MAX);
    }
    client->conn.out_len =
        vnxi_zmtp_pong(client->in.body.data, client->in.body.len, client->out);
    return client->conn.out_len > 0 ? VNX_IN_PROG : no_reply(client);
}

static vnx_status_t
refused(zmq_client_t *client)
{
    size_t len = 0;
    char text[VNXI_ZMQ_REFUSAL_MAX];
    const unsigned char *reason =
        vnxi_zmq_refusal_parse(client->blob.data, client->blob.len, &len);

    if (reason == NULL) {
        return no_reply(client);
    }
    if (len == strlen(VNXI_ZMQ_UNKNOWN_KEY) &&
        memcmp(reason, VNXI_ZMQ_UNKNOWN_KEY, len) == 0) {
        return vnxi_request_no_key(client->conn.request);
    }
    vnxi_key_text(reason, len, text, sizeof text);
    return vnxi_request_failed(client->conn.request, VNX_ERR_MISMATCH, "%s",
                               text);
}

/* Take a frame of the reply: the delimiter, the blob, or the clock, which is
 * optional. */
static vnx_status_t
take_part(zmq_client_t *client)
{
    part_t part = client->part;
    bool is_last = !client->frame.more;

    if (part == PART_NONE ||
        (part == PART_DELIMITER && (is_last || client->in.body.len > 0))) {
        return no_reply(client);
    }
    if (part == PART_BLOB) {
        client->blob = client->in.body;
        client->in.body = (vnxi_body_t){0};
    }
    if (!is_last) {
        client->part = part + 1;
        return VNX_IN_PROG;
    }
    return part == PART_CLOCK && client->knows_keys &&
                   vnxi_zmq_is_no_clock(client->in.body.data,
                                        client->in.body.len)
               ? refused(client)
               : VNX_OK;
}

/* Take a complete frame.  VNX_IN_PROG: more frames are needed. */
static vnx_status_t
take_frame(zmq_client_t *client)
{
    vnx_status_t status = client->stage == STAGE_READY ? take_ready(client)
                          : client->frame.command      ? take_command(client)
                                                       : take_part(client);
    frame_begin(client);
    return status;
}

/* -- Stages --------------------------------------------------------------- */

/* READY is sent after the peer's greeting, as libzmq's listeners require. */
static vnx_status_t
greet(zmq_client_t *client)
{
    vnx_status_t status = vnxi_client_conn_send(&client->conn);
    if (status == VNX_OK) {
        status = receive(client);
    }
    const char *wrong =
        vnxi_zmtp_greeting_check(client->in.head, client->in.head_have);
    if (wrong != NULL && status != VNX_ERR_TIMEOUT) {
        return vnxi_request_failed(client->conn.request, VNX_ERR_MISMATCH,
                                   "%s", wrong);
    }
    if (status != VNX_OK) {
        return status;
    }
    frame_begin(client);
    client->conn.out_len = vnxi_zmtp_ready_client(
        client->conn.request->key, client->conn.request->key_len, client->out);
    client->stage = STAGE_READY;
    return VNX_OK;
}

/* Take frames.  A step that returns VNX_IN_PROG because bytes are missing has
 * set `fd`; one that took a frame goes on. */
static vnx_status_t
take_frames(zmq_client_t *client)
{
    vnx_status_t status;

    do {
        status = vnxi_client_conn_send(&client->conn);
        if (status != VNX_OK) {
            return status;
        }
        if (client->stage == STAGE_REPLY) {
            client->conn.request->phase = "receiving from";
        }
        status = receive_frame(client);
        if (status != VNX_OK) {
            return status;
        }
        status = take_frame(client);
    } while (status == VNX_IN_PROG);
    return status;
}

/* -- The transport's functions -------------------------------------------- */

/* Refuse options that ZMQ cannot honour.  ZMQ's CURVE requires clients to know
 * the public key of the listener, cannot use a plain secret, and is not part
 * of what vLLM speaks. */
static vnx_status_t
zmq_check(const vnx_side_channel_options_t *options, const char **reason_p)
{
    *reason_p = options->tls ? "ZMQ, as vLLM speaks it, has no TLS: use TCP "
                               "or HTTP"
                             : "ZMQ, as vLLM speaks it, has no shared secret: "
                               "use TCP or HTTP";
    return options->tls || options->secret != NULL ? VNX_ERR_NOT_SUPPORTED
                                                   : VNX_OK;
}

static vnx_status_t
zmq_begin(vnxi_request_t *request)
{
    zmq_client_t *client = request->client;

    vnxi_client_conn_init(&client->conn, request, client->out,
                          "shaking hands with");
    vnxi_zmtp_greeting(client->out);
    client->conn.out_len = client->in.head_want = VNXI_ZMTP_GREETING;
    client->is_rank = vnxi_zmq_request_of_key(request->key, request->key_len,
                                              &client->request);
    if (!client->is_rank) {
        /* The default, or a name that READY carries. */
        vnxi_zmq_request_of_key("0,0", 3, &client->request);
        client->is_rank = request->key_len == 0;
    }
    return VNX_OK;
}

static vnx_status_t
zmq_step(vnxi_request_t *request)
{
    zmq_client_t *client = request->client;

    vnx_status_t status = vnxi_client_conn_step(&client->conn);
    if (status == VNX_OK && client->stage == STAGE_GREETING) {
        status = greet(client);
    }
    if (status == VNX_OK) {
        status = take_frames(client);
    }
    return status == VNX_OK ? vnxi_request_answer(request, &client->blob)
                            : status;
}

static void
zmq_end(vnxi_request_t *request)
{
    zmq_client_t *client = request->client;

    vnxi_client_conn_fini(&client->conn);
    vnxi_body_fini(&client->in.body);
    vnxi_body_fini(&client->blob);
}

const vnxi_transport_t vnxi_transport_zmq = {
    .fds = 2, /* one for most of the time, more to try slow addresses */
    .client_size = sizeof(zmq_client_t),
    .protocol = &vnxi_zmq_protocol,
    .check = zmq_check,
    .begin = zmq_begin,
    .step = zmq_step,
    .end = zmq_end,
};
