/*
 * Design notes.  A try sends one request over an open stream (client_conn.c)
 * and reads its reply.  With a secret or a certificate the stream is TLS.
 * Then the client sends nothing, not even the key that it asks for, before the
 * server has authenticated itself in the handshake.
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

typedef struct tcp_client {
    vnxi_client_conn_t conn;
    bool has_asked;
    vnxi_tcp_kind_t asked;
    unsigned char out[VNXI_FRAME_HEADER + VNXI_TCP_REQUEST_MAX];
    vnxi_frame_decoder_t reply;
} tcp_client_t;

/* -- Failures ------------------------------------------------------------- */

static vnx_status_t
failed(tcp_client_t *client, vnx_status_t status, const char *reason)
{
    return vnxi_client_conn_failed(&client->conn, status, reason);
}

/* Does the reply on a plain connection begin as a TLS alert does?  Then the
 * listener requires TLS. */
static bool
is_alert(const tcp_client_t *client)
{
    const vnxi_frame_decoder_t *reply = &client->reply;

    return client->conn.request->options->tls == VNXI_TLS_NONE &&
           reply->header_have == VNXI_FRAME_HEADER &&
           vnxi_tcp_is_tls_alert(reply->header) &&
           reply->head_have + reply->have <=
               VNXI_TCP_ALERT_LEN - VNXI_FRAME_HEADER;
}

static vnx_status_t
failed_alert(tcp_client_t *client)
{
    return failed(client, VNX_ERR_NOT_ALLOWED,
                  "the listener speaks TLS: it has a shared secret or a "
                  "certificate, and this client has neither secret nor tls");
}

static vnx_status_t
failed_early_end(tcp_client_t *client)
{
    const vnxi_frame_decoder_t *reply = &client->reply;
    char reason[96];

    if (is_alert(client)) {
        return failed_alert(client);
    }
    if (reply->header_have == 0) {
        return failed(client, VNX_ERR_BACKEND,
                      client->asked == VNXI_TCP_SEED
                          ? "the connection was closed without a reply"
                          : "the connection was closed without a reply "
                            "(perhaps by a listener that knows no keys)");
    }
    if (reply->header_have < VNXI_FRAME_HEADER) {
        return failed(client, VNX_ERR_BACKEND,
                      "the connection was closed in the reply's length");
    }
    snprintf(reason, sizeof reason,
             "the connection was closed after %zu of %" PRIu32 " bytes",
             reply->head_have + reply->have, reply->len);
    return failed(client, VNX_ERR_BACKEND, reason);
}

static vnx_status_t
failed_frame(tcp_client_t *client)
{
    const vnxi_frame_decoder_t *reply = &client->reply;
    char reason[96];

    if (reply->state == VNXI_FRAME_NO_MEMORY) {
        return failed(client, VNX_ERR_NO_MEMORY, "no memory for the reply");
    }
    if (is_alert(client)) {
        return failed_alert(client);
    }
    snprintf(reason, sizeof reason,
             "a reply of %" PRIu32 " bytes is above max_frame (%" PRIu32 ")",
             reply->len, client->conn.request->options->max_frame);
    return failed(client, VNX_ERR_MISMATCH, reason);
}

/* -- Request and reply ---------------------------------------------------- */

/* Write the request.  Every server knows the first protocol.  Servers with a
 * secret know the second, in which they can say that the default key has no
 * blob. */
static void
ask(tcp_client_t *client)
{
    const vnxi_request_t *request = client->conn.request;
    vnxi_tcp_request_t asked = {.kind = VNXI_TCP_SEED};
    size_t head = 0;

    if (request->key_len > 0 || request->options->secret != NULL) {
        asked = (vnxi_tcp_request_t){.kind = VNXI_TCP_GET,
                                     .key = request->key,
                                     .key_len = request->key_len};
        head = 1; /* the status */
    }
    size_t len =
        vnxi_tcp_request_encode(&asked, client->out + VNXI_FRAME_HEADER);
    vnxi_frame_encode_header((uint32_t)len, client->out);
    client->conn.out_len = VNXI_FRAME_HEADER + len;
    client->asked = asked.kind;
    client->has_asked = true;
    vnxi_frame_decoder_init(
        &client->reply, (uint32_t)head + request->options->max_frame, head);
}

/* The reply is complete. */
static vnx_status_t
take_reply(tcp_client_t *client)
{
    vnx_side_channel_answer_t *answer = &client->conn.request->answer;
    const vnxi_frame_decoder_t *reply = &client->reply;

    if (client->asked == VNXI_TCP_GET) {
        if (reply->head_have == 0) {
            return failed(client, VNX_ERR_MISMATCH,
                          "a reply without a status");
        }
        if (reply->head[0] == VNXI_TCP_UNKNOWN_KEY) {
            return vnxi_client_conn_no_key(&client->conn);
        }
        if (reply->head[0] != VNXI_TCP_BLOB) {
            return failed(client, VNX_ERR_MISMATCH,
                          "no reply of this protocol");
        }
    }
    answer->metadata = vnxi_frame_take(&client->reply, &answer->length);
    return VNX_OK;
}

static vnx_status_t
receive(tcp_client_t *client)
{
    void *space;
    size_t size;

    while ((space = vnxi_frame_space(&client->reply, &size)) != NULL) {
        size_t count = 0;
        vnx_status_t status =
            vnxi_client_conn_recv(&client->conn, space, size, &count);
        if (status != VNX_OK) {
            return status;
        }
        if (count == 0) {
            return failed_early_end(client);
        }
        vnxi_frame_commit(&client->reply, count);
    }
    return client->reply.state == VNXI_FRAME_WHOLE ? VNX_OK
                                                   : failed_frame(client);
}

/* -- The transport's functions -------------------------------------------- */

static vnx_status_t
tcp_listen(const vnxi_listen_params_t *params, vnxi_server_t **out_p,
           vnx_error_t *error)
{
    return vnxi_tcp_listen_for(&vnxi_tcp_frames, params, out_p, error);
}

static vnx_status_t
tcp_begin(vnxi_request_t *request)
{
    tcp_client_t *client = request->client = calloc(1, sizeof *client);
    if (client == NULL) {
        return vnxi_request_no_memory(request, sizeof *client);
    }
    vnxi_client_conn_init(&client->conn, request, client->out);
    return VNX_OK;
}

static vnx_status_t
tcp_step(vnxi_request_t *request)
{
    tcp_client_t *client = request->client;

    vnx_status_t status = vnxi_client_conn_step(&client->conn);
    if (status == VNX_OK && !client->has_asked) {
        ask(client);
    }
    if (status == VNX_OK) {
        status = vnxi_client_conn_send(&client->conn);
    }
    if (status == VNX_OK) {
        status = receive(client);
    }
    return status == VNX_OK ? take_reply(client) : status;
}

static void
tcp_end(vnxi_request_t *request)
{
    tcp_client_t *client = request->client;

    vnxi_client_conn_fini(&client->conn);
    vnxi_frame_decoder_fini(&client->reply);
    free(client);
}

const vnxi_transport_t vnxi_transport_tcp = {
    .name = "TCP",
    .listen = tcp_listen,
    .stop = vnxi_server_stop,
    .begin = tcp_begin,
    .step = tcp_step,
    .end = tcp_end,
};
