/*
 * Design notes.  Over an open stream (client_conn.c) one request is sent and
 * its reply read.  With a secret or a certificate the stream is TLS, and
 * nothing is said, not even the key that is asked for, before the other side
 * has proved itself in the handshake.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "side_channel/client_conn.h"
#include "side_channel/frame.h"
#include "side_channel/options.h"
#include "side_channel/tcp.h"
#include "side_channel/tcp_wire.h"

typedef struct tcp_exchange {
    vnxi_client_conn_t conn;
    bool has_asked;
    vnxi_tcp_kind_t asked;
    unsigned char out[VNXI_FRAME_HEADER + VNXI_TCP_REQUEST_MAX];
    vnxi_frame_decoder_t reply;
} tcp_exchange_t;

/* -- Failing -------------------------------------------------------------- */

static vnx_status_t
failed(tcp_exchange_t *exchange, vnx_status_t status, const char *reason)
{
    return vnxi_client_conn_failed(&exchange->conn, status, reason);
}

/* The reply came over a plain connection and begins as an alert of TLS does:
 * the listener told a client without TLS that it wants it. */
static bool
is_alert(const tcp_exchange_t *exchange)
{
    const vnxi_frame_decoder_t *reply = &exchange->reply;

    return exchange->conn.params->options->tls == VNXI_TLS_NONE &&
           reply->header_have == VNXI_FRAME_HEADER &&
           vnxi_tcp_is_tls_alert(reply->header) &&
           reply->head_have + reply->have <=
               VNXI_TCP_ALERT_LEN - VNXI_FRAME_HEADER;
}

static vnx_status_t
failed_alert(tcp_exchange_t *exchange)
{
    return failed(exchange, VNX_ERR_NOT_ALLOWED,
                  "the listener speaks TLS: it has a shared secret or a "
                  "certificate, and this client has neither secret nor tls");
}

static vnx_status_t
failed_early_end(tcp_exchange_t *exchange)
{
    const vnxi_frame_decoder_t *reply = &exchange->reply;
    char reason[96];

    if (is_alert(exchange)) {
        return failed_alert(exchange);
    }
    if (reply->header_have == 0) {
        return failed(exchange, VNX_ERR_BACKEND,
                      exchange->asked == VNXI_TCP_SEED
                          ? "the connection was closed without a reply"
                          : "the connection was closed without a reply "
                            "(perhaps by a listener that knows no keys)");
    }
    if (reply->header_have < VNXI_FRAME_HEADER) {
        return failed(exchange, VNX_ERR_BACKEND,
                      "the connection was closed in the reply's length");
    }
    snprintf(reason, sizeof reason,
             "the connection was closed after %zu of %" PRIu32 " bytes",
             reply->head_have + reply->have, reply->len);
    return failed(exchange, VNX_ERR_BACKEND, reason);
}

static vnx_status_t
failed_frame(tcp_exchange_t *exchange)
{
    const vnxi_frame_decoder_t *reply = &exchange->reply;
    char reason[96];

    if (reply->state == VNXI_FRAME_NO_MEMORY) {
        return failed(exchange, VNX_ERR_NO_MEMORY, "no memory for the reply");
    }
    if (is_alert(exchange)) {
        return failed_alert(exchange);
    }
    snprintf(reason, sizeof reason,
             "a reply of %" PRIu32 " bytes is above max_frame (%" PRIu32 ")",
             reply->len, exchange->conn.params->options->max_frame);
    return failed(exchange, VNX_ERR_MISMATCH, reason);
}

/* -- Talking -------------------------------------------------------------- */

/* Every server knows the first protocol.  Those with a secret know the second,
 * which can say that nothing is served by default. */
static void
ask(tcp_exchange_t *exchange)
{
    const vnxi_request_params_t *params = exchange->conn.params;
    vnxi_tcp_request_t request = {.kind = VNXI_TCP_SEED};
    size_t head = 0;

    if (params->key_len > 0 || params->options->secret != NULL) {
        request = (vnxi_tcp_request_t){.kind = VNXI_TCP_GET,
                                       .key = params->key,
                                       .key_len = params->key_len};
        head = 1; /* the status */
    }
    size_t len =
        vnxi_tcp_request_encode(&request, exchange->out + VNXI_FRAME_HEADER);
    vnxi_frame_encode_header((uint32_t)len, exchange->out);
    exchange->conn.out_len = VNXI_FRAME_HEADER + len;
    exchange->asked = request.kind;
    exchange->has_asked = true;
    vnxi_frame_decoder_init(&exchange->reply,
                            (uint32_t)head + params->options->max_frame, head);
}

/* A reply came whole. */
static vnx_status_t
take_reply(tcp_exchange_t *exchange, void **data_p, size_t *len_p)
{
    const vnxi_frame_decoder_t *reply = &exchange->reply;

    if (exchange->asked == VNXI_TCP_GET) {
        if (reply->head_have == 0) {
            return failed(exchange, VNX_ERR_MISMATCH,
                          "a reply without a status");
        }
        if (reply->head[0] == VNXI_TCP_UNKNOWN_KEY) {
            return vnxi_client_conn_no_key(&exchange->conn);
        }
        if (reply->head[0] != VNXI_TCP_BLOB) {
            return failed(exchange, VNX_ERR_MISMATCH,
                          "no reply of this protocol");
        }
    }
    *data_p = vnxi_frame_take(&exchange->reply, len_p);
    return VNX_OK;
}

static vnx_status_t
receive(tcp_exchange_t *exchange)
{
    void *space;
    size_t size;

    while ((space = vnxi_frame_space(&exchange->reply, &size)) != NULL) {
        size_t count = 0;
        vnx_status_t status =
            vnxi_client_conn_recv(&exchange->conn, space, size, &count);
        if (status != VNX_OK) {
            return status;
        }
        if (count == 0) {
            return failed_early_end(exchange);
        }
        vnxi_frame_commit(&exchange->reply, count);
    }
    return exchange->reply.state == VNXI_FRAME_WHOLE ? VNX_OK
                                                     : failed_frame(exchange);
}

/* -- The transport's slots ------------------------------------------------ */

static vnx_status_t
tcp_listen(const vnxi_listen_params_t *params, vnxi_listener_t **out_p,
           vnx_error_t *error)
{
    return vnxi_tcp_listen_for(&vnxi_tcp_frames, params, out_p, error);
}

static vnx_status_t
tcp_begin(const vnxi_request_params_t *params, vnxi_exchange_t **out_p,
          vnx_error_t *error)
{
    tcp_exchange_t *exchange = calloc(1, sizeof *exchange);
    if (exchange == NULL) {
        return vnxi_error_no_memory(error, VNXI_OP_REQUEST, sizeof *exchange);
    }
    vnxi_client_conn_init(&exchange->conn, params, exchange->out);
    *out_p = &exchange->conn.super;
    return VNX_OK;
}

static vnx_status_t
tcp_step(vnxi_exchange_t *super, void **data_p, size_t *len_p,
         vnx_error_t *error)
{
    tcp_exchange_t *exchange = (tcp_exchange_t *)super;

    vnx_status_t status = vnxi_client_conn_step(&exchange->conn, error);
    if (status == VNX_OK && !exchange->has_asked) {
        ask(exchange);
    }
    if (status == VNX_OK) {
        status = vnxi_client_conn_send(&exchange->conn);
    }
    if (status == VNX_OK) {
        status = receive(exchange);
    }
    return status == VNX_OK ? take_reply(exchange, data_p, len_p) : status;
}

static void
tcp_end(vnxi_exchange_t *super)
{
    tcp_exchange_t *exchange = (tcp_exchange_t *)super;

    vnxi_client_conn_fini(&exchange->conn);
    vnxi_frame_decoder_fini(&exchange->reply);
    free(exchange);
}

const vnxi_transport_t vnxi_transport_tcp = {
    .name = "TCP",
    .listen = tcp_listen,
    .stop = vnxi_server_stop,
    .begin = tcp_begin,
    .step = tcp_step,
    .end = tcp_end,
};
