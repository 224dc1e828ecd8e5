/*
 * Design notes.  Over an open stream (client_conn.c) an exchange goes GREETING
 * -> READY -> REPLY: a port on which nobody listens is an error at once, and
 * there is neither a thread nor a context that a fork or the end of the
 * program could meet in the wrong moment.
 *
 * The request is sent when the listener's READY has come, which says whether
 * it knows keys that are no ranks: one of vLLM's own is asked for ranks alone,
 * in the words that it knows, since its listener ends at any others.
 *
 * A frame is read in two receives, its header and its body, never more than
 * is wanted: the body of the blob goes where it stays.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "side_channel/client_conn.h"
#include "side_channel/frame.h"
#include "side_channel/zmq.h"
#include "side_channel/zmq_wire.h"
#include "side_channel/zmtp.h"

/* The greeting with READY at most, or a request behind a PONG. */
#define OUT_MAX (VNXI_ZMTP_COMMAND_MAX + VNXI_ZMTP_GREETING)

typedef enum stage {
    STAGE_GREETING,
    STAGE_READY,
    STAGE_REPLY,
} stage_t;

/* Which frame of the reply comes next. */
typedef enum part {
    PART_DELIMITER,
    PART_BLOB,
    PART_CLOCK,
    PART_NONE,
} part_t;

typedef struct zmq_exchange {
    vnxi_client_conn_t conn;
    stage_t stage;
    vnxi_zmq_request_t request;
    bool is_rank; /* the key is one of ranks, or the default */
    bool knows_keys;
    unsigned char out[OUT_MAX];
    /* What comes: the greeting, or the header of a frame, into `in`; then the
     * frame's body. */
    unsigned char in[VNXI_ZMTP_GREETING];
    size_t in_have;
    bool in_body;
    vnxi_zmtp_frame_t frame;
    vnxi_frame_decoder_t body;
    part_t part;
    void *blob; /* owned */
    size_t blob_len;
} zmq_exchange_t;

/* -- Failing -------------------------------------------------------------- */

static vnx_status_t
failed(zmq_exchange_t *exchange, vnx_status_t status, const char *reason)
{
    return vnxi_client_conn_failed(&exchange->conn, status, reason);
}

/* What came is not what vLLM's listener would say. */
static vnx_status_t
no_reply(zmq_exchange_t *exchange)
{
    return failed(exchange, VNX_ERR_MISMATCH, "no reply of this protocol");
}

/* -- Sending -------------------------------------------------------------- */

/* All that came before has been sent: there is room. */
static unsigned char *
out_end(zmq_exchange_t *exchange)
{
    return exchange->out + exchange->conn.out_len;
}

static void
put_greeting(zmq_exchange_t *exchange)
{
    vnxi_zmtp_greeting(exchange->out);
    exchange->conn.out_len = VNXI_ZMTP_GREETING;
}

static void
put_ready(zmq_exchange_t *exchange)
{
    const vnxi_request_params_t *params = exchange->conn.params;
    exchange->conn.out_len += vnxi_zmtp_ready_client(
        params->key, params->key_len, out_end(exchange));
}

static void
put_request(zmq_exchange_t *exchange)
{
    unsigned char request[VNXI_ZMQ_REQUEST_MAX];
    size_t len = vnxi_zmq_request_encode(&exchange->request, request);

    exchange->conn.out_len +=
        vnxi_zmtp_header_encode(true, 0, out_end(exchange));
    exchange->conn.out_len +=
        vnxi_zmtp_header_encode(false, len, out_end(exchange));
    memcpy(out_end(exchange), request, len);
    exchange->conn.out_len += len;
}

/* -- Receiving ------------------------------------------------------------ */

static vnx_status_t
receive(zmq_exchange_t *exchange, void *space, size_t size, size_t *count_p)
{
    vnx_status_t status =
        vnxi_client_conn_recv(&exchange->conn, space, size, count_p);
    if (status != VNX_OK || *count_p > 0) {
        return status;
    }
    return failed(exchange, VNX_ERR_BACKEND,
                  exchange->stage == STAGE_REPLY
                      ? "the connection was closed without a reply"
                      : "the connection was closed (as by a listener that "
                        "wants another ZMTP mechanism than NULL)");
}

/* Until `want` bytes are in `in`. */
static vnx_status_t
receive_in(zmq_exchange_t *exchange, size_t want)
{
    while (exchange->in_have < want) {
        size_t count = 0;
        vnx_status_t status =
            receive(exchange, exchange->in + exchange->in_have,
                    want - exchange->in_have, &count);
        if (status != VNX_OK) {
            return status;
        }
        exchange->in_have += count;
    }
    return VNX_OK;
}

static bool
is_blob(const zmq_exchange_t *exchange)
{
    return exchange->stage == STAGE_REPLY && exchange->part == PART_BLOB &&
           !exchange->frame.command;
}

static vnx_status_t
failed_length(zmq_exchange_t *exchange, uint32_t max)
{
    char reason[128];

    if (exchange->frame.len <= max) {
        return failed(exchange, VNX_ERR_NO_MEMORY, "no memory for the reply");
    }
    snprintf(reason, sizeof reason,
             is_blob(exchange)
                 ? "a reply of %" PRIu64 " bytes is above max_frame (%" PRIu32
                   ")"
                 : "no reply of this protocol: a frame of %" PRIu64
                   " bytes, at most %" PRIu32 " are in the place of it",
             exchange->frame.len, max);
    return failed(exchange, VNX_ERR_MISMATCH, reason);
}

/* The header has come: make room for the body.  The frame decoder does that
 * and grows with what comes; its own header is told what ours says. */
static vnx_status_t
body_begin(zmq_exchange_t *exchange)
{
    uint32_t max = is_blob(exchange)
                       ? exchange->conn.params->options->max_frame
                       : VNXI_ZMTP_SMALL_MAX;
    size_t size;

    if (exchange->frame.len > max) {
        return failed_length(exchange, max);
    }
    vnxi_frame_decoder_init(&exchange->body, max, 0);
    unsigned char *header = vnxi_frame_space(&exchange->body, &size);
    vnxi_frame_encode_header((uint32_t)exchange->frame.len, header);
    vnxi_frame_commit(&exchange->body, VNXI_FRAME_HEADER);
    exchange->in_body = true;
    return VNX_OK;
}

static vnx_status_t
receive_header(zmq_exchange_t *exchange)
{
    vnxi_zmtp_state_t state = VNXI_ZMTP_MORE;

    while (state == VNXI_ZMTP_MORE) {
        vnx_status_t status = receive_in(
            exchange, exchange->in_have < 2 ? 2 /* the shortest header */
                                            : VNXI_ZMTP_HEADER_MAX);
        if (status != VNX_OK) {
            return status;
        }
        state = vnxi_zmtp_header_parse(exchange->in, exchange->in_have,
                                       &exchange->frame);
    }
    return state == VNXI_ZMTP_WHOLE ? body_begin(exchange)
                                    : no_reply(exchange);
}

/* VNX_OK: a whole frame is there, taken by frame_end(). */
static vnx_status_t
receive_frame(zmq_exchange_t *exchange)
{
    size_t size;
    void *space;

    if (!exchange->in_body) {
        vnx_status_t status = receive_header(exchange);
        if (status != VNX_OK) {
            return status;
        }
    }
    while ((space = vnxi_frame_space(&exchange->body, &size)) != NULL) {
        size_t count = 0;
        vnx_status_t status = receive(exchange, space, size, &count);
        if (status != VNX_OK) {
            return status;
        }
        vnxi_frame_commit(&exchange->body, count);
    }
    return exchange->body.state == VNXI_FRAME_WHOLE
               ? VNX_OK
               : failed_length(exchange, exchange->body.max);
}

static void
frame_end(zmq_exchange_t *exchange)
{
    vnxi_frame_decoder_fini(&exchange->body);
    exchange->in_have = 0;
    exchange->in_body = false;
}

/* -- What came ------------------------------------------------------------ */

static const unsigned char *
body_of(const zmq_exchange_t *exchange)
{
    return exchange->body.len > 0 ? exchange->body.data
                                  : (const unsigned char *)"";
}

static vnx_status_t
take_ready(zmq_exchange_t *exchange)
{
    vnxi_zmtp_ready_t ready;

    if (!exchange->frame.command ||
        !vnxi_zmtp_ready_parse(body_of(exchange), exchange->body.len,
                               &ready)) {
        return no_reply(exchange);
    }
    exchange->knows_keys = ready.knows_keys;
    if (!exchange->is_rank && !exchange->knows_keys) {
        exchange->conn.super.answered = true;
        return failed(exchange, VNX_ERR_NOT_FOUND,
                      "the listener is one of vLLM's own, which serve ranks "
                      "alone, and the key is no rank");
    }
    put_request(exchange);
    exchange->stage = STAGE_REPLY;
    exchange->conn.doing = NULL;
    return VNX_IN_PROG;
}

/* A listener that asks whether we live is told so. */
static vnx_status_t
take_command(zmq_exchange_t *exchange)
{
    exchange->conn.out_len =
        vnxi_zmtp_pong(body_of(exchange), exchange->body.len, exchange->out);
    return exchange->conn.out_len > 0 ? VNX_IN_PROG : no_reply(exchange);
}

static vnx_status_t
refused(zmq_exchange_t *exchange)
{
    size_t len = 0;
    char text[VNXI_ZMQ_REFUSAL_MAX];
    const unsigned char *reason =
        vnxi_zmq_refusal_parse(exchange->blob, exchange->blob_len, &len);

    if (reason == NULL) {
        return no_reply(exchange);
    }
    if (len == strlen(VNXI_ZMQ_UNKNOWN_KEY) &&
        memcmp(reason, VNXI_ZMQ_UNKNOWN_KEY, len) == 0) {
        return vnxi_client_conn_no_key(&exchange->conn);
    }
    vnxi_key_text(reason, len, text, sizeof text);
    return failed(exchange, VNX_ERR_MISMATCH, text);
}

/* The last frame is here. */
static vnx_status_t
take_last(zmq_exchange_t *exchange)
{
    if (exchange->part == PART_CLOCK && exchange->knows_keys &&
        vnxi_zmq_is_no_clock(body_of(exchange), exchange->body.len)) {
        return refused(exchange);
    }
    return VNX_OK;
}

/* A frame of the reply: the delimiter, the blob, perhaps the clock. */
static vnx_status_t
take_part(zmq_exchange_t *exchange)
{
    part_t part = exchange->part;
    bool is_last = !exchange->frame.more;

    if (part == PART_NONE ||
        (part == PART_DELIMITER && (is_last || exchange->body.len > 0))) {
        return no_reply(exchange);
    }
    if (part == PART_BLOB) {
        exchange->blob = vnxi_frame_take(&exchange->body, &exchange->blob_len);
    }
    if (is_last) {
        return take_last(exchange);
    }
    exchange->part = part + 1;
    return VNX_IN_PROG;
}

/* VNX_IN_PROG: more has to come. */
static vnx_status_t
take_frame(zmq_exchange_t *exchange)
{
    vnx_status_t status = exchange->stage == STAGE_READY ? take_ready(exchange)
                          : exchange->frame.command ? take_command(exchange)
                                                    : take_part(exchange);
    frame_end(exchange);
    return status;
}

/* -- Stages --------------------------------------------------------------- */

/* READY waits for the other side's greeting, as libzmq's listeners want it. */
static vnx_status_t
greet(zmq_exchange_t *exchange)
{
    vnx_status_t status = vnxi_client_conn_send(&exchange->conn);
    if (status == VNX_OK) {
        status = receive_in(exchange, VNXI_ZMTP_GREETING);
    }
    const char *wrong =
        vnxi_zmtp_greeting_check(exchange->in, exchange->in_have);
    if (wrong != NULL && status != VNX_ERR_TIMEOUT) {
        return failed(exchange, VNX_ERR_MISMATCH, wrong);
    }
    if (status != VNX_OK) {
        return status;
    }
    frame_end(exchange);
    put_ready(exchange);
    exchange->stage = STAGE_READY;
    return VNX_OK;
}

/* A step that ends with VNX_IN_PROG for want of bytes says so by `fd`; one
 * that took a frame goes on. */
static vnx_status_t
take_frames(zmq_exchange_t *exchange)
{
    vnx_status_t status;

    do {
        status = vnxi_client_conn_send(&exchange->conn);
        if (status == VNX_OK) {
            status = receive_frame(exchange);
        }
        if (status != VNX_OK) {
            return status;
        }
        status = take_frame(exchange);
    } while (status == VNX_IN_PROG);
    return status;
}

/* -- The transport's slots ------------------------------------------------ */

/* ZMQ's CURVE wants the public key of the listener to be known to clients;
 * nothing of a plain secret, and nothing that vLLM speaks. */
static vnx_status_t
check_options(const vnx_side_channel_options_t *options, const char *operation,
              const char *endpoint, vnx_error_t *error)
{
    if (options->secret == NULL && !options->tls) {
        return VNX_OK;
    }
    vnxi_error_set(error, VNX_ERR_NOT_SUPPORTED, operation,
                   "ZMQ, as vLLM speaks it, knows no %s: use TCP or HTTP",
                   options->tls ? "TLS" : "shared secret");
    vnxi_error_peer(error, endpoint, strlen(endpoint));
    return VNX_ERR_NOT_SUPPORTED;
}

static vnx_status_t
zmq_listen(const vnxi_listen_params_t *params, vnxi_listener_t **out_p,
           vnx_error_t *error)
{
    vnx_status_t status =
        check_options(params->options, VNXI_OP_START, params->endpoint, error);
    return status == VNX_OK
               ? vnxi_tcp_listen_for(&vnxi_zmq_protocol, params, out_p, error)
               : status;
}

static vnx_status_t
zmq_begin(const vnxi_request_params_t *params, vnxi_exchange_t **out_p,
          vnx_error_t *error)
{
    vnx_status_t status = check_options(params->options, VNXI_OP_REQUEST,
                                        params->endpoint, error);
    if (status != VNX_OK) {
        return status;
    }
    zmq_exchange_t *exchange = calloc(1, sizeof *exchange);
    if (exchange == NULL) {
        return vnxi_error_no_memory(error, VNXI_OP_REQUEST, sizeof *exchange);
    }
    vnxi_client_conn_init(&exchange->conn, params, exchange->out);
    exchange->conn.doing = "shaking hands with";
    put_greeting(exchange);
    exchange->is_rank = params->key_len == 0 ||
                        vnxi_zmq_request_of_key(params->key, params->key_len,
                                                &exchange->request);
    if (params->key_len == 0 || !exchange->is_rank) {
        exchange->request.has_pp_rank = true; /* and both are 0 */
    }
    *out_p = &exchange->conn.super;
    return VNX_OK;
}

static vnx_status_t
zmq_step(vnxi_exchange_t *super, void **data_p, size_t *len_p,
         vnx_error_t *error)
{
    zmq_exchange_t *exchange = (zmq_exchange_t *)super;

    vnx_status_t status = vnxi_client_conn_step(&exchange->conn, error);
    if (status == VNX_OK && exchange->stage == STAGE_GREETING) {
        status = greet(exchange);
    }
    if (status == VNX_OK) {
        status = take_frames(exchange);
    }
    if (status == VNX_OK) {
        *data_p = exchange->blob;
        *len_p = exchange->blob_len;
        exchange->blob = NULL;
    }
    return status;
}

static void
zmq_end(vnxi_exchange_t *super)
{
    zmq_exchange_t *exchange = (zmq_exchange_t *)super;

    vnxi_client_conn_fini(&exchange->conn);
    vnxi_frame_decoder_fini(&exchange->body);
    free(exchange->blob);
    free(exchange);
}

const vnxi_transport_t vnxi_transport_zmq = {
    .name = "ZMQ",
    .listen = zmq_listen,
    .stop = vnxi_server_stop,
    .begin = zmq_begin,
    .step = zmq_step,
    .end = zmq_end,
};
