/*
 * Design notes.  libevent creates its connection object around a bufferevent
 * that we supply.  It asks for the bufferevent before the socket is in it
 * (on_connect).  Soon after that, by a first event of its timer, we adopt the
 * connection: libevent's object is the argument of the bufferevent's
 * callbacks, and bufferevent_getcb() returns it.  From then on its close
 * callback reports every end of the connection, whichever side caused it.
 *
 *   READ -> WRITE -> KEPT -> READ ...
 *
 * libevent itself refuses input that is not HTTP or too long, and does not
 * pass it to us as a request.  We notice it when a reply is written on a
 * connection in READ.
 *
 * Each connection has one timer, for the whole exchange and for its silences.
 * It is set again only after it has fired, because events in the meantime can
 * only make it later.
 *
 * Every reply states its length, and no reply contains data that the client
 * sent.  A blob is written from the shared copy; a blob that is replaced
 * meanwhile stays in memory until it has been sent to the clients that asked
 * for it.
 *
 * Reading stops while a reply is written.  Otherwise libevent would buffer
 * more input from the client, and would take the end of that input for a
 * closed connection.
 */
#include <errno.h>
#include <event2/http.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/error.h"
#include "base/mac.h"
#include "base/name_map.h"
#include "net/resolve.h"
#include "side_channel/http_wire.h"
#include "side_channel/server.h"

#define HEADERS_MAX 8192 /* of a request line and header */
#define BODY_MAX 1024    /* a GET has none; it is not read */
#define MS UINT64_C(1000000)
#define TOO_LONG 413
#define URI_TOO_LONG 414
#define NEVER_S 1000000 /* for libevent's own timeout: only ours matters */
#define TEXT "text/plain; charset=utf-8"
#define BYTES "application/octet-stream"

/* Used by the loop thread alone while it runs. */
typedef struct http_listener {
    vnxi_server_t super;
    struct evhttp *http;
    size_t bound;              /* of the acceptor's listeners; owned by http */
    vnxi_name_map_t by_bev;    /* the connections by their bufferevent */
    struct vnxi_conns arrived; /* those that have not begun */
} http_listener_t;

/* A client. */
typedef struct http_conn {
    vnxi_conn_t super; /* bev: we hold a reference; tls: owned by bev */
    http_listener_t *listener;
    struct evhttp_connection *evcon; /* owned by libevent; NULL: not adopted */
    uint64_t active;                 /* time of the last input or output */
    bool has_begun; /* it is one of the server's, not of `arrived` */
    bool has_sent;  /* the client sent something since `start` */
    bool counted;   /* the reason of its end is in the stats */
} http_conn_t;

/* -- Ends ----------------------------------------------------------------- */

static void on_input(struct evbuffer *input,
                     const struct evbuffer_cb_info *info, void *arg);
static void on_output(struct evbuffer *output,
                      const struct evbuffer_cb_info *info, void *arg);

/* Free our part only: libevent's connection is gone, or libevent is about to
 * free it. */
static void
conn_free(http_conn_t *conn)
{
    struct bufferevent *bev = conn->super.bev;

    evbuffer_remove_cb(bufferevent_get_input(bev), on_input, conn);
    evbuffer_remove_cb(bufferevent_get_output(bev), on_output, conn);
    vnxi_name_map_remove(&conn->listener->by_bev, &conn->super.bev,
                         sizeof bev);
    if (conn->has_begun) {
        vnxi_conn_remove(&conn->super);
    } else {
        TAILQ_REMOVE(&conn->listener->arrived, &conn->super, link);
    }
    event_free(conn->super.timer);
    bufferevent_decref(bev);
    free(conn);
}

/* Count why the connection ended, unless that was counted already. */
static void
count_end(http_conn_t *conn)
{
    vnxi_side_stats_t *stats = conn->super.server->stats;

    if (conn->counted) {
        return;
    }
    if (VNXI_TLS_IS_THERE && vnxi_tls_is_shaking(conn->super.tls)) {
        vnxi_stat_refused(stats, VNX_SIDE_CHANNEL_REFUSED_TLS);
    } else if (conn->super.state == VNXI_CONN_READ && conn->has_sent) {
        vnxi_stat_refused(stats, VNX_SIDE_CHANNEL_REFUSED_MALFORMED);
    }
}

/* libevent is about to free its connection. */
static void
on_close(struct evhttp_connection *evcon, void *arg)
{
    (void)evcon;
    http_conn_t *conn = arg;

    count_end(conn);
    if (VNXI_TLS_IS_THERE && conn->super.state == VNXI_CONN_KEPT) {
        vnxi_tls_goodbye(conn->super.tls);
    }
    /* A forked child may hold a copy of the socket.  Then close() alone would
     * not tell the client. */
    shutdown(bufferevent_getfd(conn->super.bev), SHUT_RDWR);
    conn_free(conn);
}

/* Find libevent's object.  False: libevent had no memory for it, and the
 * connection is gone. */
static bool
conn_adopt(http_conn_t *conn)
{
    void *evcon = NULL;

    bufferevent_getcb(conn->super.bev, NULL, NULL, NULL, &evcon);
    if (evcon == NULL) {
        conn_free(conn);
        return false;
    }
    conn->evcon = evcon;
    evhttp_connection_set_closecb(evcon, on_close, conn);
    return true;
}

static void
conn_reset(http_conn_t *conn)
{
    conn->counted = true;
    vnxi_conn_drop_unsent(bufferevent_getfd(conn->super.bev));
    evhttp_connection_free(conn->evcon); /* calls on_close() */
}

static void
conn_drop(vnxi_conn_t *super)
{
    http_conn_t *conn = (http_conn_t *)super;

    if (super->state == VNXI_CONN_KEPT) {
        evhttp_connection_free(conn->evcon); /* it waits for no reply */
    } else {
        conn_reset(conn);
    }
}

/* -- Input and output ----------------------------------------------------- */

static void
on_input(struct evbuffer *input, const struct evbuffer_cb_info *info,
         void *arg)
{
    (void)input;
    http_conn_t *conn = arg;

    if (info->n_added == 0) {
        return;
    }
    vnxi_stat_add_count(&conn->super.server->stats->bytes_received,
                        info->n_added);
    conn->active = vnxi_clock_ns();
    if (conn->super.state == VNXI_CONN_KEPT) {
        conn->super.start = conn->active;
        conn->super.turned_away = false;
        vnxi_conn_move(&conn->super, VNXI_CONN_READ);
    }
    conn->has_sent = true;
}

/* Return the status of the reply at the start of `output`; 0: there is none.
 */
static int
status_of(struct evbuffer *output)
{
    char line[sizeof "HTTP/1.1 400"] = "";

    if (evbuffer_copyout(output, line, sizeof line - 1) !=
            (ev_ssize_t)sizeof line - 1 ||
        strncmp(line, "HTTP/1.", 7) != 0) {
        return 0;
    }
    return atoi(line + 9);
}

/* Count a reply that libevent writes on its own. */
static void
note_refusal(http_conn_t *conn, struct evbuffer *output)
{
    int status = status_of(output);

    if (status < 400) {
        return; /* such as 100, Continue */
    }
    conn->super.turned_away = true;
    vnxi_stat_refused(conn->super.server->stats,
                      status == TOO_LONG || status == URI_TOO_LONG
                          ? VNX_SIDE_CHANNEL_REFUSED_TOO_LONG
                          : VNX_SIDE_CHANNEL_REFUSED_MALFORMED);
    vnxi_conn_move(&conn->super, VNXI_CONN_WRITE);
}

static void
on_output(struct evbuffer *output, const struct evbuffer_cb_info *info,
          void *arg)
{
    http_conn_t *conn = arg;

    if (info->n_added > 0 && conn->super.state != VNXI_CONN_WRITE) {
        note_refusal(conn, output);
    }
    if (info->n_deleted == 0) {
        return;
    }
    conn->active = vnxi_clock_ns();
    vnxi_conn_sent(&conn->super, info->n_deleted);
}

/* -- Time ----------------------------------------------------------------- */

static uint64_t
due_at(const http_conn_t *conn)
{
    const vnx_side_channel_options_t *options = conn->super.server->options;
    uint64_t idle = conn->active + options->idle_timeout_ms * MS;
    uint64_t whole = conn->super.start + options->client_timeout_ms * MS;

    return conn->super.state == VNXI_CONN_KEPT || idle < whole ? idle : whole;
}

static bool
timer_add(http_conn_t *conn, uint64_t now)
{
    uint64_t due = due_at(conn), left_us = due > now ? (due - now) / 1000 : 0;
    struct timeval tv = {.tv_sec = (time_t)(left_us / 1000000),
                         .tv_usec = (suseconds_t)(left_us % 1000000)};
    return event_add(conn->super.timer, &tv) == 0;
}

/* Has the address used up its rate?  Uses the address that accept() returned,
 * because a connection that was reset has none any more. */
static bool
comes_too_often(const http_conn_t *conn)
{
    vnxi_addresses_t from;
    char *text = NULL;
    ev_uint16_t port;

    if (conn->super.server->rate == NULL) {
        return false;
    }
    evhttp_connection_get_peer(conn->evcon, &text, &port);
    return text != NULL && vnxi_address_parse(text, &from) &&
           !vnxi_rate_take(conn->super.server->rate, &from.list[0].addr,
                           conn->super.start);
}

/* Begin with a connection that libevent has by now.  A client that comes too
 * often, or has left, takes nobody's place. */
static void
conn_begin(http_conn_t *conn)
{
    struct bufferevent *bev = conn->super.bev;
    int fd = bufferevent_getfd(bev);

    vnxi_stat_add(&conn->super.server->stats->accepted);
    if (!conn_adopt(conn)) {
        return;
    }
    if (comes_too_often(conn)) {
        vnxi_stat_refused(conn->super.server->stats,
                          VNX_SIDE_CHANNEL_REFUSED_RATE);
        conn_reset(conn);
        return;
    }
    if (vnxi_acceptor_has_left(fd)) {
        conn_reset(conn); /* before TLS begins */
        return;
    }
    TAILQ_REMOVE(&conn->listener->arrived, &conn->super, link);
    vnxi_server_make_room(conn->super.server);
    vnxi_conn_add(&conn->super);
    conn->has_begun = true;
    vnxi_conn_tune(&conn->super, fd, 2 * HEADERS_MAX);
    evbuffer_add_cb(bufferevent_get_input(bev), on_input, conn);
    evbuffer_add_cb(bufferevent_get_output(bev), on_output, conn);
    if (!timer_add(conn, conn->super.start)) {
        conn_reset(conn);
    }
}

static void
on_timer(evutil_socket_t fd, short what, void *arg)
{
    (void)fd, (void)what;
    http_conn_t *conn = arg;
    uint64_t now = vnxi_clock_ns();

    if (!conn->has_begun) {
        conn_begin(conn);
        return;
    }
    if (now < due_at(conn) && timer_add(conn, now)) {
        return;
    }
    if (conn->super.state != VNXI_CONN_KEPT) {
        vnxi_stat_add(&conn->super.server->stats->timed_out);
    }
    conn_drop(&conn->super);
}

/* -- Creation ------------------------------------------------------------- */

static http_conn_t *
conn_new(http_listener_t *listener)
{
    http_conn_t *conn = calloc(1, sizeof *conn);
    if (conn == NULL) {
        return NULL;
    }
    conn->listener = listener;
    conn->super.server = &listener->super;
    conn->super.state = VNXI_CONN_READ;
    conn->super.start = conn->active = vnxi_clock_ns();
    conn->super.timer = evtimer_new(listener->super.loop.base, on_timer, conn);
    conn->super.bev = vnxi_conn_stream(
        &listener->super, -1,
        listener->super.tls != NULL ? BEV_OPT_CLOSE_ON_FREE : 0,
        &conn->super.tls);
    if (conn->super.timer != NULL && conn->super.bev != NULL &&
        vnxi_name_map_set(&listener->by_bev, &conn->super.bev,
                          sizeof conn->super.bev, conn)) {
        return conn;
    }
    vnxi_loop_event_free(conn->super.timer);
    if (conn->super.bev != NULL) {
        bufferevent_free(conn->super.bev);
    }
    free(conn);
    return NULL;
}

/* If this fails, libevent goes on with a bufferevent of its own, and the
 * client is told to come back later: see conn_of(). */
static struct bufferevent *
on_connect(struct event_base *base, void *arg)
{
    (void)base;
    http_listener_t *listener = arg;

    vnxi_acceptor_count(&listener->super.acceptor);
    http_conn_t *conn = conn_new(listener);
    if (conn == NULL) {
        vnxi_stat_add(&listener->super.stats->accepted);
        return NULL;
    }
    TAILQ_INSERT_TAIL(&listener->arrived, &conn->super, link);
    bufferevent_incref(conn->super.bev); /* ours, besides that of libevent */
    event_active(conn->super.timer, EV_TIMEOUT, 0);
    return conn->super.bev;
}

/* -- Requests ------------------------------------------------------------- */

static http_conn_t *
conn_of(http_listener_t *listener, struct evhttp_request *request)
{
    struct evhttp_connection *evcon = evhttp_request_get_connection(request);
    struct bufferevent *bev = evhttp_connection_get_bufferevent(evcon);

    return vnxi_name_map_get(&listener->by_bev, &bev, sizeof bev);
}

static void
conn_write(http_conn_t *conn)
{
    if (conn->super.state == VNXI_CONN_KEPT) { /* came with the previous one */
        conn->super.start = conn->active = vnxi_clock_ns();
        conn->super.turned_away = false;
    }
    vnxi_conn_move(&conn->super, VNXI_CONN_WRITE);
}

static void
on_written(struct evhttp_request *request, void *arg)
{
    (void)request;
    http_conn_t *conn = arg;

    vnxi_conn_served(&conn->super);
    conn->active = vnxi_clock_ns();
    conn->has_sent = false;
    vnxi_conn_move(&conn->super, VNXI_CONN_KEPT);
}

/* -- Replies -------------------------------------------------------------- */

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
send_reply(http_conn_t *conn, struct evhttp_request *request, int status,
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
    conn_write(conn);
    evhttp_request_set_on_complete_cb(request, on_written, conn);
    evhttp_send_reply(request, status, reason, sent);
    if (body != NULL) {
        evbuffer_free(body);
    }
    bufferevent_disable(conn->super.bev, EV_READ);
}

/* Send a reply whose body is one of our own texts. */
static void
send_text(http_conn_t *conn, struct evhttp_request *request, int status,
          const char *reason, const char *text)
{
    struct evbuffer *body = evbuffer_new();

    if (body != NULL) {
        evbuffer_add_reference(body, text, strlen(text), NULL, NULL);
    }
    send_reply(conn, request, status, reason, TEXT, body);
}

static void
refuse(http_conn_t *conn, struct evhttp_request *request,
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
is_secret(const http_conn_t *conn, const char *token, size_t len)
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
is_private(const http_conn_t *conn)
{
    vnxi_address_t peer = {.len = sizeof peer.addr};

    return conn->super.server->tls != NULL ||
           (getpeername(bufferevent_getfd(conn->super.bev), (void *)&peer.addr,
                        &peer.len) == 0 &&
            vnxi_address_is_loopback(&peer));
}

/* Return why the client may not ask for metadata; NULL: it may. */
static const refusal_t *
check_access(const http_conn_t *conn, struct evhttp_request *request)
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
send_blob(http_conn_t *conn, struct evhttp_request *request, vnxi_blob_t *blob)
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
answer_metadata(http_conn_t *conn, struct evhttp_request *request,
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
answer(http_conn_t *conn, struct evhttp_request *request)
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
    http_conn_t *conn = conn_of(arg, request);
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
    http_listener_t *listener = (http_listener_t *)super;
    vnxi_conn_t *conn;

    while ((conn = TAILQ_FIRST(&listener->arrived)) != NULL) {
        conn_free((http_conn_t *)conn);
    }
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
take_clients(http_listener_t *listener, struct evconnlistener *acceptor)
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
    http_listener_t *listener = (http_listener_t *)super;
    static const struct timeval never = {.tv_sec = NEVER_S};
    struct evhttp *http = listener->http =
        evhttp_new(listener->super.loop.base);

    TAILQ_INIT(&listener->arrived);
    if (http == NULL) {
        return false;
    }
    evhttp_set_timeout_tv(http, &never);
    evhttp_set_max_headers_size(http, HEADERS_MAX);
    evhttp_set_max_body_size(http, BODY_MAX);
    /* Let all methods through to on_request(), which refuses those that we do
     * not serve.  Except CONNECT: libevent would keep its connection. */
    evhttp_set_allowed_methods(http, UINT16_MAX & ~EVHTTP_REQ_CONNECT);
    evhttp_set_default_content_type(http, NULL);
    evhttp_set_bevcb(http, on_connect, listener);
    evhttp_set_gencb(http, on_request, listener);
    vnxi_acceptor_t *acceptor = &listener->super.acceptor;
    for (size_t i = 0; i < acceptor->sockets.count; i++) {
        if (!take_clients(listener, acceptor->listeners[i])) {
            return false;
        }
    }
    return true;
}

const vnxi_protocol_t vnxi_http_protocol = {
    .thread_name = "vnx-http",
    .server_size = sizeof(http_listener_t),
    .drop = conn_drop,
    .begin = create_server,
    .end = end_server,
};
