/*
 * Design notes.  The TCP transport: frames of requests and replies.  A
 * connection carries one exchange; then the server closes it.  docs/wire.md
 * specifies the bytes.
 *
 * A try sends one request over an open stream (client_conn.c)
 * and reads its reply.  With a secret or a certificate the stream is TLS.
 * Then the client sends nothing, not even the key that it asks for, before the
 * server has authenticated itself in the handshake.
 */
#include <inttypes.h>
#include <stdio.h>

#include "base/bytes.h"
#include "side_channel/client_conn.h"
#include "side_channel/server.h"
#include "side_channel/tcp_wire.h"

typedef struct tcp_client {
    vnxi_client_conn_t conn;
    vnxi_tcp_kind_t asked;
    unsigned char out[VNXI_TCP_LENGTH + VNXI_TCP_REQUEST_MAX];
    bool has_length; /* of the reply */
    vnxi_incoming_t in;
} tcp_client_t;

/* -- Failures ------------------------------------------------------------- */

/* Return how many bytes arrived after the length. */
static size_t
have(const tcp_client_t *client)
{
    return client->in.head_have - VNXI_TCP_LENGTH + client->in.body.len;
}

/* Does the reply on a plain connection begin as a TLS alert does?  Then the
 * listener requires TLS. */
static bool
is_alert(const tcp_client_t *client)
{
    return client->conn.request->options->tls == VNXI_TLS_NONE &&
           client->has_length && vnxi_tcp_is_tls_alert(client->in.head) &&
           have(client) <= VNXI_TCP_ALERT_LEN - VNXI_TCP_LENGTH;
}

static vnx_status_t
failed_alert(tcp_client_t *client)
{
    return vnxi_request_failed(
        client->conn.request, VNX_ERR_NOT_ALLOWED,
        "the listener speaks TLS: it has a shared secret or a "
        "certificate, and this client has neither secret nor tls");
}

/* The connection was closed before the reply was complete. */
static vnx_status_t
failed_early_end(tcp_client_t *client)
{
    if (client->in.head_have == 0) {
        return vnxi_request_failed(
            client->conn.request, VNX_ERR_BACKEND,
            "the connection was closed without a reply%s",
            client->asked == VNXI_TCP_SEED
                ? " (perhaps by a listener of another kind, or by one that "
                  "serves nothing by default)"
                : " (perhaps by a listener of another kind, or by one that "
                  "does not support keys)");
    }
    if (!client->has_length) {
        return vnxi_request_failed(
            client->conn.request, VNX_ERR_BACKEND,
            "the connection was closed in the reply's length");
    }
    return vnxi_request_failed(
        client->conn.request, VNX_ERR_BACKEND,
        "the connection was closed after %zu of %zu bytes", have(client),
        client->in.head_want - VNXI_TCP_LENGTH + client->in.body_want);
}

static bool
is_text(const unsigned char *bytes, size_t len)
{
    bool is_printable = true;

    for (size_t i = 0; i < len; i++) {
        is_printable &= bytes[i] >= 0x20 && bytes[i] < 0x7f;
    }
    return is_printable;
}

#define OTHER_KIND \
    ": it begins with '%.*s', so a listener of another kind sent it"

static vnx_status_t
failed_too_long(tcp_client_t *client)
{
    if (is_alert(client)) {
        return failed_alert(client);
    }
    char text[sizeof OTHER_KIND + VNXI_TCP_LENGTH] = "";
    if (is_text(client->in.head, VNXI_TCP_LENGTH)) {
        snprintf(text, sizeof text, OTHER_KIND, (int)VNXI_TCP_LENGTH,
                 (const char *)client->in.head);
    }
    return vnxi_request_failed(client->conn.request, VNX_ERR_MISMATCH,
                               "a reply of %" PRIu64
                               " bytes is above max_frame (%" PRIu32 ")%s",
                               vnxi_big_get(client->in.head, VNXI_TCP_LENGTH),
                               client->conn.request->options->max_frame, text);
}

/* -- Request and reply ---------------------------------------------------- */

/* Prepare the request.  Every server knows the first protocol.  Servers with a
 * secret know the second, in which they can say that the default key has no
 * blob. */
static void
ask(tcp_client_t *client)
{
    const vnxi_request_t *request = client->conn.request;
    vnxi_tcp_request_t asked = {.kind = VNXI_TCP_SEED};

    if (request->key_len > 0 || request->options->secret != NULL) {
        asked = (vnxi_tcp_request_t){.kind = VNXI_TCP_GET,
                                     .key = request->key,
                                     .key_len = request->key_len};
    }
    client->conn.out_len = vnxi_tcp_request_encode(&asked, client->out);
    client->asked = asked.kind;
    client->in.head_want = VNXI_TCP_LENGTH;
}

/* Take the complete reply. */
static vnx_status_t
take_reply(tcp_client_t *client)
{
    unsigned char status = client->asked == VNXI_TCP_SEED
                               ? VNXI_TCP_BLOB
                               : client->in.head[VNXI_TCP_LENGTH];

    if (status == VNXI_TCP_UNKNOWN_KEY) {
        return vnxi_request_no_key(client->conn.request);
    }
    if (status != VNXI_TCP_BLOB) {
        return vnxi_request_failed(client->conn.request, VNX_ERR_MISMATCH,
                                   "not a valid reply of this protocol");
    }
    return vnxi_request_answer(client->conn.request, &client->in.body);
}

static vnx_status_t
take_length(tcp_client_t *client)
{
    client->has_length = true;
    switch (vnxi_tcp_reply_expect(&client->in, client->asked,
                                  client->conn.request->options->max_frame)) {
    case VNXI_TCP_LENGTH_ABOVE_MAX:
        return is_alert(client) ? failed_alert(client)
                                : failed_too_long(client);
    case VNXI_TCP_LENGTH_NO_STATUS:
        return vnxi_request_failed(client->conn.request, VNX_ERR_MISMATCH,
                                   "a reply without a status");
    default:
        return VNX_OK;
    }
}

static vnx_status_t
receive(tcp_client_t *client)
{
    vnx_status_t status = vnxi_client_conn_receive(&client->conn, &client->in);
    if (status == VNX_OK && !client->has_length) {
        status = take_length(client);
        if (status == VNX_OK) {
            status = vnxi_client_conn_receive(&client->conn, &client->in);
        }
    }
    if (status == VNX_ERR_CLOSED) {
        return is_alert(client) ? failed_alert(client)
                                : failed_early_end(client);
    }
    return status == VNX_OK ? take_reply(client) : status;
}

/* -- The transport's functions -------------------------------------------- */

static vnx_status_t
tcp_begin(vnxi_request_t *request)
{
    tcp_client_t *client = request->client;

    vnxi_client_conn_init(&client->conn, request, client->out, "sending to");
    ask(client);
    return VNX_OK;
}

static vnx_status_t
tcp_step(vnxi_request_t *request)
{
    tcp_client_t *client = request->client;

    vnx_status_t status = vnxi_client_conn_step(&client->conn);
    if (status == VNX_OK) {
        status = vnxi_client_conn_send(&client->conn);
    }
    if (status != VNX_OK) {
        return status;
    }
    request->phase = "receiving from";
    return receive(client);
}

static void
tcp_end(vnxi_request_t *request)
{
    tcp_client_t *client = request->client;

    vnxi_client_conn_fini(&client->conn);
    vnxi_body_fini(&client->in.body);
}

const vnxi_transport_t vnxi_transport_tcp = {
    .fds = 2, /* one for most of the time, more to try slow addresses */
    .client_size = sizeof(tcp_client_t),
    .protocol = &vnxi_tcp_protocol,
    .begin = tcp_begin,
    .step = tcp_step,
    .end = tcp_end,
};
