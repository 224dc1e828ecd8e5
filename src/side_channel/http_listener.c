/*
 * Design notes.  Every reply states its length, and no reply contains data
 * that the client sent.  A blob is written from the shared copy; a blob that
 * is replaced meanwhile stays in memory until it has been sent to the clients
 * that asked for it.
 *
 * Reading stops while a reply is written.  Otherwise libevent would buffer
 * more input from the client, and would take the end of that input for a
 * closed connection.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/error.h"
#include "base/mac.h"
#include "net/resolve.h"
#include "side_channel/http.h"

/* Makes libevent's own timeout, 50 s, so long that only ours matters. */
#define NEVER_S 1000000
#define TEXT "text/plain; charset=utf-8"
#define BYTES "application/octet-stream"

typedef struct refusal {
    int status;
    const char *reason, *text;
    vnx_side_channel_refusal_t counted_as;
} refusal_t;

static const refusal_t no_method = {405, "Method Not Allowed",
                                    "only GET and HEAD are supported\n",
                                    VNX_SIDE_CHANNEL_REFUSED_MALFORMED};
static const refusal_t no_resource = {
    404, "Not Found",
    "no such resource: there are /metadata, /metadata/KEY, /health\n",
    VNX_SIDE_CHANNEL_REFUSED_MALFORMED};
static const refusal_t bad_key = {400, "Bad Request",
                                  "an invalid escape in the key\n",
                                  VNX_SIDE_CHANNEL_REFUSED_MALFORMED};
static const refusal_t long_key = {414, "URI Too Long",
                                   "the key is too long\n",
                                   VNX_SIDE_CHANNEL_REFUSED_TOO_LONG};
static const refusal_t unknown_key = {404, "Not Found",
                                      "nothing is served under that key\n",
                                      VNX_SIDE_CHANNEL_REFUSED_UNKNOWN_KEY};
static const refusal_t no_token = {
    401, "Unauthorized",
    "this listener requires its shared secret as a bearer token\n",
    VNX_SIDE_CHANNEL_REFUSED_NO_PROOF};
static const refusal_t wrong_token = {401, "Unauthorized",
                                      "the shared secrets differ\n",
                                      VNX_SIDE_CHANNEL_REFUSED_WRONG_PROOF};
static const refusal_t no_secret = {403, "Forbidden",
                                    "this listener has no shared secret\n",
                                    VNX_SIDE_CHANNEL_REFUSED_WRONG_PROOF};
static const refusal_t in_clear = {
    403, "Forbidden",
    "the shared secret is taken only over TLS or from a loopback address\n",
    VNX_SIDE_CHANNEL_REFUSED_NO_PROOF};

static void
add_header(struct evhttp_request *request, const char *name, const char *value)
{
    evhttp_add_header(evhttp_request_get_output_headers(request), name, value);
}

/* Send a reply; takes ownership of the body, which may be NULL: none. */
static void
send_reply(vnxi_http_conn_t *conn, struct evhttp_request *request, int status,
           const char *reason, const char *type, struct evbuffer *body)
{
    struct evbuffer *sent = body;
    char length[24];

    if (type != NULL) {
        add_header(request, "Content-Type", type);
    }
    if (body != NULL &&
        evhttp_request_get_command(request) == EVHTTP_REQ_HEAD) {
        snprintf(length, sizeof length, "%zu", evbuffer_get_length(body));
        add_header(request, "Content-Length", length);
        sent = NULL; /* libevent would send the body too */
    }
    vnxi_http_conn_write(conn);
    evhttp_request_set_on_complete_cb(request, vnxi_http_conn_written, conn);
    evhttp_send_reply(request, status, reason, sent);
    if (body != NULL) {
        evbuffer_free(body);
    }
    bufferevent_disable(conn->super.bev, EV_READ);
}

/* Send a reply whose body is one of our own texts. */
static void
send_text(vnxi_http_conn_t *conn, struct evhttp_request *request, int status,
          const char *reason, const char *text)
{
    struct evbuffer *body = evbuffer_new();

    if (body != NULL) {
        evbuffer_add_reference(body, text, strlen(text), NULL, NULL);
    }
    send_reply(conn, request, status, reason, TEXT, body);
}

static void
refuse(vnxi_http_conn_t *conn, struct evhttp_request *request,
       const refusal_t *refusal)
{
    conn->super.turned_away = true;
    vnxi_stat_refused(conn->super.server->stats, refusal->counted_as);
    if (refusal->status == 401) {
        add_header(request, "WWW-Authenticate", "Bearer");
    } else if (refusal->status == 405) {
        add_header(request, "Allow", "GET, HEAD");
    }
    /* A refused client gets no further exchange. */
    add_header(request, "Connection", "close");
    send_text(conn, request, refusal->status, refusal->reason, refusal->text);
}

/* -- Access --------------------------------------------------------------- */

/* Compare MACs of the two.  The time this takes depends neither on where the
 * token and the secret differ nor on their lengths. */
static bool
is_secret(const vnxi_http_conn_t *conn, const char *token, size_t len)
{
    static const char label[] = "vnx1 secret";
    const char *secret = conn->super.server->options->secret;
    unsigned char ours[VNXI_MAC_LEN], theirs[VNXI_MAC_LEN];

    return vnxi_mac(label, sizeof label - 1, secret, strlen(secret), ours) &&
           vnxi_mac(label, sizeof label - 1, token, len, theirs) &&
           vnxi_mac_equal(ours, theirs);
}

/* Is the connection safe from eavesdroppers? */
static bool
is_private(const vnxi_http_conn_t *conn)
{
    vnxi_address_t peer = {.len = sizeof peer.addr};

    return conn->super.server->tls != NULL ||
           (getpeername(bufferevent_getfd(conn->super.bev), (void *)&peer.addr,
                        &peer.len) == 0 &&
            vnxi_address_is_loopback(&peer));
}

/* Return why the client may not ask for metadata; NULL: it may. */
static const refusal_t *
check_access(const vnxi_http_conn_t *conn, struct evhttp_request *request)
{
    bool has_secret = conn->super.server->options->secret != NULL;
    const char *token;
    size_t len;

    if (has_secret && !is_private(conn)) {
        return &in_clear;
    }
    if (!vnxi_http_bearer(
            evhttp_find_header(evhttp_request_get_input_headers(request),
                               "Authorization"),
            &token, &len)) {
        return has_secret ? &no_token : NULL;
    }
    if (!has_secret) {
        return &no_secret;
    }
    return is_secret(conn, token, len) ? NULL : &wrong_token;
}

/* -- Resources ------------------------------------------------------------ */

/* Send a blob; takes the reference to `blob`. */
static void
send_blob(vnxi_http_conn_t *conn, struct evhttp_request *request,
          vnxi_blob_t *blob)
{
    char etag[VNXI_HTTP_ETAG_MAX];
    const char *known = evhttp_find_header(
        evhttp_request_get_input_headers(request), "If-None-Match");

    vnxi_http_etag(blob->version, etag);
    add_header(request, "ETag", etag);
    add_header(request, "Cache-Control", "no-cache");
    if (vnxi_http_etag_is_in(known, etag)) {
        vnxi_blob_release(blob);
        send_reply(conn, request, HTTP_NOTMODIFIED, "Not Modified", NULL,
                   NULL);
        return;
    }
    struct evbuffer *body = evbuffer_new();
    if (body == NULL) {
        vnxi_blob_release(blob);
        evhttp_send_error(request, HTTP_SERVUNAVAIL, NULL);
    } else if (!vnxi_conn_write_blob(body, blob)) {
        evbuffer_free(body);
        evhttp_send_error(request, HTTP_SERVUNAVAIL, NULL);
    } else {
        send_reply(conn, request, HTTP_OK, "OK", BYTES, body);
    }
}

static void
answer_metadata(vnxi_http_conn_t *conn, struct evhttp_request *request,
                const vnxi_http_target_t *target)
{
    const refusal_t *refusal = check_access(conn, request);

    if (refusal != NULL) {
        refuse(conn, request, refusal);
        return;
    }
    vnxi_blob_t *blob = vnxi_blob_table_find(conn->super.server->blobs,
                                             target->key, target->key_len);
    if (blob == NULL) {
        refuse(conn, request, &unknown_key);
    } else {
        send_blob(conn, request, blob);
    }
}

static void
answer(vnxi_http_conn_t *conn, struct evhttp_request *request)
{
    const struct evhttp_uri *uri = evhttp_request_get_evhttp_uri(request);
    vnxi_http_target_t target;

    vnxi_http_target_parse(uri != NULL ? evhttp_uri_get_path(uri) : NULL,
                           &target);
    switch (target.route) {
    case VNXI_HTTP_METADATA:
        answer_metadata(conn, request, &target);
        break;
    case VNXI_HTTP_HEALTH:
        send_text(conn, request, HTTP_OK, "OK", "ok\n");
        break;
    case VNXI_HTTP_MALFORMED:
        refuse(conn, request, &bad_key);
        break;
    case VNXI_HTTP_TOO_LONG:
        refuse(conn, request, &long_key);
        break;
    default:
        refuse(conn, request, &no_resource);
    }
}

static void
on_request(struct evhttp_request *request, void *arg)
{
    vnxi_http_conn_t *conn = vnxi_http_conn_of(arg, request);
    enum evhttp_cmd_type method = evhttp_request_get_command(request);

    if (conn == NULL) { /* accepted without memory: no TLS, no limits */
        evhttp_send_error(request, HTTP_SERVUNAVAIL, NULL);
    } else if (method != EVHTTP_REQ_GET && method != EVHTTP_REQ_HEAD) {
        refuse(conn, request, &no_method);
    } else {
        answer(conn, request);
    }
}

/* -- The listener --------------------------------------------------------- */

/* `arg` belongs to libevent. */
static void
on_accept_failed(struct evconnlistener *acceptor, void *arg)
{
    (void)arg;
    int err = errno;
    vnxi_server_t *server = vnxi_loop_running()->owner;
    vnxi_acceptor_failed(&server->acceptor, evconnlistener_get_fd(acceptor),
                         err);
}

static void
end_server(vnxi_server_t *super)
{
    vnxi_http_listener_t *listener = (vnxi_http_listener_t *)super;

    if (listener->http != NULL) {
        evhttp_free(listener->http);
    }
    for (size_t i = 0; i < listener->bound; i++) {
        super->acceptor.listeners[i] = NULL; /* freed with `http` */
    }
    vnxi_name_map_fini(&listener->by_bev);
}

/* libevent's server takes the clients, instead of the acceptor. */
static bool
take_clients(vnxi_http_listener_t *listener, struct evconnlistener *acceptor)
{
    if (evhttp_bind_listener(listener->http, acceptor) == NULL) {
        return false;
    }
    listener->bound++;
    evconnlistener_set_error_cb(acceptor, on_accept_failed);
    return true;
}

static bool
create_server(vnxi_server_t *super)
{
    vnxi_http_listener_t *listener = (vnxi_http_listener_t *)super;
    static const struct timeval never = {.tv_sec = NEVER_S};
    struct evhttp *http = listener->http =
        evhttp_new(listener->super.loop.base);

    if (http == NULL) {
        return false;
    }
    evhttp_set_timeout_tv(http, &never);
    evhttp_set_max_headers_size(http, VNXI_HTTP_HEADERS_MAX);
    evhttp_set_max_body_size(http, VNXI_HTTP_BODY_MAX);
    /* Let all methods through to on_request(), which refuses those that
     * we do not serve.  Except CONNECT: libevent would keep its connection. */
    evhttp_set_allowed_methods(http, UINT16_MAX & ~EVHTTP_REQ_CONNECT);
    evhttp_set_default_content_type(http, NULL);
    evhttp_set_bevcb(http, vnxi_http_conn_new, listener);
    evhttp_set_gencb(http, on_request, listener);
    vnxi_acceptor_t *acceptor = &listener->super.acceptor;
    for (size_t i = 0; i < acceptor->sockets.count; i++) {
        if (!take_clients(listener, acceptor->listeners[i])) {
            return false;
        }
    }
    return true;
}

static const vnxi_server_ops_t server_ops = {
    .drop = vnxi_http_conn_drop,
    .begin = create_server,
    .end = end_server,
};

vnx_status_t
vnxi_http_listen(const vnxi_listen_params_t *params, vnxi_server_t **out_p,
                 vnx_error_t *error)
{
    const char *secret = params->options->secret;

    if (secret != NULL && !vnxi_http_is_token(secret)) {
        return vnxi_error_set(error, VNX_ERR_INVALID_PARAM, VNXI_OP_START,
                              VNXI_HTTP_NO_TOKEN);
    }
    vnxi_http_listener_t *listener = calloc(1, sizeof *listener);
    if (listener == NULL) {
        return vnxi_error_no_memory(error, VNXI_OP_START, sizeof *listener);
    }
    return vnxi_server_open(&listener->super, &server_ops, "vnx-http", params,
                            out_p, error);
}
