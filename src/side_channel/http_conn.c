/*
 * Design notes.  libevent creates its connection object around a bufferevent
 * that we supply.  It asks for the bufferevent before the socket is in it
 * (vnxi_http_conn_new).  Until libevent's object exists, our connection is
 * NEW.  Soon after that we adopt it: libevent's object is the argument of the
 * bufferevent's callbacks, and bufferevent_getcb() returns it.  From then on
 * its close callback reports every end of the connection, whichever side
 * caused it.
 *
 *   NEW -> READ -> WRITE -> KEPT -> READ ...
 *
 * libevent itself refuses input that is not HTTP or too long, and does not
 * pass it to us as a request.  We notice it when a reply is written on a
 * connection in READ.
 *
 * Each connection has one timer, for the whole exchange and for its silences.
 * It is set again only after it has fired, because events in the meantime can
 * only make it later.
 */
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "side_channel/http.h"

#ifdef VNXI_SIDE_CHANNEL_TLS
#include <event2/bufferevent_ssl.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#endif

#define WRITE_MAX (512u << 10) /* per client and round of the loop */
#define MS UINT64_C(1000000)
#define TOO_LONG 413
#define URI_TOO_LONG 414

/* -- TLS ------------------------------------------------------------------ */

#ifdef VNXI_SIDE_CHANNEL_TLS

/* Create a bufferevent with TLS, which owns its SSL.  Its callbacks run from
 * the loop, never inside a call of OpenSSL, because they may free the
 * connection. */
static struct bufferevent *
bev_new_tls(vnxi_http_listener_t *listener)
{
    SSL *ssl = SSL_new(listener->super.tls);
    if (ssl == NULL) {
        return NULL;
    }
    struct bufferevent *bev = bufferevent_openssl_socket_new(
        listener->super.loop.base, -1, ssl, BUFFEREVENT_SSL_ACCEPTING,
        BEV_OPT_CLOSE_ON_FREE | BEV_OPT_DEFER_CALLBACKS);
    if (bev == NULL) {
        SSL_free(ssl);
        return NULL;
    }
    bufferevent_openssl_set_allow_dirty_shutdown(bev, 1);
    return bev;
}

static bool
is_shaking(const vnxi_http_conn_t *conn)
{
    return conn->listener->super.tls != NULL &&
           !SSL_is_init_finished(bufferevent_openssl_get_ssl(conn->bev));
}

/* Tell the client that the stream ends here, so that it knows that nothing was
 * cut off. */
static void
say_goodbye(vnxi_http_conn_t *conn)
{
    if (conn->listener->super.tls != NULL && conn->state == VNXI_HTTP_KEPT) {
        SSL_shutdown(bufferevent_openssl_get_ssl(conn->bev));
        ERR_clear_error();
    }
}

#else

static struct bufferevent *
bev_new_tls(vnxi_http_listener_t *listener)
{
    (void)listener;
    return NULL;
}

static bool
is_shaking(const vnxi_http_conn_t *conn)
{
    (void)conn;
    return false;
}

static void
say_goodbye(vnxi_http_conn_t *conn)
{
    (void)conn;
}

#endif

/* -- Ends ----------------------------------------------------------------- */

static void
conn_move(vnxi_http_conn_t *conn, vnxi_http_state_t state)
{
    vnxi_http_listener_t *listener = conn->listener;
    TAILQ_REMOVE(&listener->conns[conn->state], conn, link);
    conn->state = state;
    TAILQ_INSERT_TAIL(&listener->conns[state], conn, link);
}

static void on_input(struct evbuffer *input,
                     const struct evbuffer_cb_info *info, void *arg);
static void on_output(struct evbuffer *output,
                      const struct evbuffer_cb_info *info, void *arg);

/* Free our part only: libevent's connection is gone, or libevent is about to
 * free it. */
static void
conn_free(vnxi_http_conn_t *conn)
{
    vnxi_http_listener_t *listener = conn->listener;

    evbuffer_remove_cb(bufferevent_get_input(conn->bev), on_input, conn);
    evbuffer_remove_cb(bufferevent_get_output(conn->bev), on_output, conn);
    vnxi_name_map_remove(&listener->by_bev, &conn->bev, sizeof conn->bev);
    TAILQ_REMOVE(&listener->conns[conn->state], conn, link);
    listener->open--;
    vnxi_stat_sub(&listener->super.stats->open);
    event_free(conn->timer);
    bufferevent_decref(conn->bev);
    free(conn);
}

/* Count why the connection ended, unless that was counted already. */
static void
count_end(vnxi_http_conn_t *conn)
{
    vnxi_side_stats_t *stats = conn->listener->super.stats;

    if (conn->counted) {
        return;
    }
    if (is_shaking(conn)) {
        vnxi_stat_refused(stats, VNX_SIDE_CHANNEL_REFUSED_TLS);
    } else if (conn->state == VNXI_HTTP_READ && conn->has_sent) {
        vnxi_stat_refused(stats, VNX_SIDE_CHANNEL_REFUSED_MALFORMED);
    }
}

/* libevent is about to free its connection. */
static void
on_close(struct evhttp_connection *evcon, void *arg)
{
    (void)evcon;
    vnxi_http_conn_t *conn = arg;

    count_end(conn);
    say_goodbye(conn);
    /* A forked child may hold a copy of the socket.  Then close() alone would
     * not tell the client. */
    shutdown(bufferevent_getfd(conn->bev), SHUT_RDWR);
    conn_free(conn);
}

/* Close, and let the kernel drop the bytes that the client did not take.  The
 * connection must be adopted. */
static void
conn_reset(vnxi_http_conn_t *conn)
{
    struct linger at_once = {.l_onoff = 1, .l_linger = 0};

    conn->counted = true;
    setsockopt(bufferevent_getfd(conn->bev), SOL_SOCKET, SO_LINGER, &at_once,
               sizeof at_once);
    evhttp_connection_free(conn->evcon); /* calls on_close() */
}

static void
conn_drop(vnxi_http_conn_t *conn)
{
    if (conn->state == VNXI_HTTP_KEPT) {
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
    vnxi_http_conn_t *conn = arg;

    if (info->n_added == 0) {
        return;
    }
    vnxi_stat_add_count(&conn->listener->super.stats->bytes_received,
                        info->n_added);
    conn->active = vnxi_clock_ns();
    if (conn->state == VNXI_HTTP_KEPT) {
        conn->start = conn->active;
        conn->turned_away = false;
        conn_move(conn, VNXI_HTTP_READ);
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
note_refusal(vnxi_http_conn_t *conn, struct evbuffer *output)
{
    int status = status_of(output);

    if (status < 400) {
        return; /* such as 100, Continue */
    }
    conn->turned_away = true;
    vnxi_stat_refused(conn->listener->super.stats,
                      status == TOO_LONG || status == URI_TOO_LONG
                          ? VNX_SIDE_CHANNEL_REFUSED_TOO_LONG
                          : VNX_SIDE_CHANNEL_REFUSED_MALFORMED);
    conn_move(conn, VNXI_HTTP_WRITE);
}

static void
on_output(struct evbuffer *output, const struct evbuffer_cb_info *info,
          void *arg)
{
    vnxi_http_conn_t *conn = arg;

    if (info->n_added > 0 && conn->state != VNXI_HTTP_WRITE) {
        note_refusal(conn, output);
    }
    if (info->n_deleted == 0) {
        return;
    }
    vnxi_stat_add_count(&conn->listener->super.stats->bytes_sent,
                        info->n_deleted);
    conn->active = vnxi_clock_ns();
    if (conn->state == VNXI_HTTP_WRITE) {
        conn_move(conn, VNXI_HTTP_WRITE); /* taking bytes is not idle */
    }
}

/* -- Time ----------------------------------------------------------------- */

static uint64_t
due_at(const vnxi_http_conn_t *conn)
{
    const vnx_side_channel_options_t *options = conn->listener->super.options;
    uint64_t idle = conn->active + options->idle_timeout_ms * MS;
    uint64_t whole = conn->start + options->client_timeout_ms * MS;

    return conn->state == VNXI_HTTP_KEPT || idle < whole ? idle : whole;
}

static bool
timer_add(vnxi_http_conn_t *conn, uint64_t now)
{
    uint64_t due = due_at(conn), left_us = due > now ? (due - now) / 1000 : 0;
    struct timeval tv = {.tv_sec = (time_t)(left_us / 1000000),
                         .tv_usec = (suseconds_t)(left_us % 1000000)};
    return event_add(conn->timer, &tv) == 0;
}

static void
on_timer(evutil_socket_t fd, short what, void *arg)
{
    (void)fd, (void)what;
    vnxi_http_conn_t *conn = arg;
    uint64_t now = vnxi_clock_ns();

    if (now < due_at(conn) && timer_add(conn, now)) {
        return;
    }
    if (conn->state != VNXI_HTTP_KEPT) {
        vnxi_stat_add(&conn->listener->super.stats->timed_out);
    }
    conn_drop(conn);
}

/* -- Creation ------------------------------------------------------------- */

/* Create the connection; takes `bev`.  NULL: no memory, and `bev` is freed. */
static vnxi_http_conn_t *
conn_new(vnxi_http_listener_t *listener, struct bufferevent *bev)
{
    vnxi_http_conn_t *conn = calloc(1, sizeof *conn);
    if (conn == NULL) {
        goto err_bev;
    }
    conn->listener = listener;
    conn->bev = bev;
    conn->start = conn->active = vnxi_clock_ns();
    conn->timer = evtimer_new(listener->super.loop.base, on_timer, conn);
    if (conn->timer == NULL) {
        goto err_conn;
    }
    if (!vnxi_name_map_set(&listener->by_bev, &conn->bev, sizeof conn->bev,
                           conn)) {
        goto err_timer;
    }
    return conn;

err_timer:
    event_free(conn->timer);
err_conn:
    free(conn);
err_bev:
    bufferevent_free(bev);
    return NULL;
}

/* If this fails, libevent goes on with a bufferevent of its own, and the
 * client is told to come back later: see vnxi_http_conn_of(). */
struct bufferevent *
vnxi_http_conn_new(struct event_base *base, void *arg)
{
    vnxi_http_listener_t *listener = arg;

    vnxi_http_conn_adopt_all(listener);
    vnxi_stat_add(&listener->super.stats->accepted);
    if (listener->open >= listener->super.options->max_connections) {
        vnxi_http_conn_evict(listener);
    }
    vnxi_acceptor_count(&listener->super.acceptor);
    event_active(listener->adopt_event, EV_TIMEOUT, 0);
    struct bufferevent *bev = listener->super.tls != NULL
                                  ? bev_new_tls(listener)
                                  : bufferevent_socket_new(base, -1, 0);
    vnxi_http_conn_t *conn = bev != NULL ? conn_new(listener, bev) : NULL;
    if (conn == NULL) {
        return NULL;
    }
    bufferevent_incref(bev); /* our reference, besides that of libevent */
    conn->state = VNXI_HTTP_NEW;
    TAILQ_INSERT_TAIL(&listener->conns[VNXI_HTTP_NEW], conn, link);
    listener->open++;
    vnxi_stat_add(&listener->super.stats->open);
    return bev;
}

/* Has the address used up its rate?  Uses the address that accept() returned,
 * because a connection that was reset has none any more. */
static bool
comes_too_often(const vnxi_http_conn_t *conn)
{
    vnxi_addresses_t from;
    char *text = NULL;
    ev_uint16_t port;

    if (conn->listener->super.rate == NULL) {
        return false;
    }
    evhttp_connection_get_peer(conn->evcon, &text, &port);
    return text != NULL && vnxi_address_parse(text, &from) &&
           !vnxi_rate_take(conn->listener->super.rate, &from.list[0].addr,
                           conn->start);
}

static void
conn_adopt(vnxi_http_conn_t *conn)
{
    struct bufferevent *bev = conn->bev;
    int fd = bufferevent_getfd(bev), on = 1;
    void *evcon = NULL;

    bufferevent_getcb(bev, NULL, NULL, NULL, &evcon);
    if (evcon == NULL) {
        conn_free(conn); /* libevent had no memory for its object */
        return;
    }
    conn->evcon = evcon;
    evhttp_connection_set_closecb(evcon, on_close, conn);
    conn_move(conn, VNXI_HTTP_READ);
    if (comes_too_often(conn)) {
        vnxi_stat_refused(conn->listener->super.stats,
                          VNX_SIDE_CHANNEL_REFUSED_RATE);
        conn_reset(conn);
        return;
    }
    if (vnxi_acceptor_has_left(fd)) {
        conn_reset(conn); /* before TLS begins */
        return;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    /* Limit the buffered input; the kernel holds back the rest. */
    bufferevent_setwatermark(bev, EV_READ, 0, 2 * VNXI_HTTP_HEADERS_MAX);
    bufferevent_set_max_single_write(bev, WRITE_MAX);
    evbuffer_add_cb(bufferevent_get_input(bev), on_input, conn);
    evbuffer_add_cb(bufferevent_get_output(bev), on_output, conn);
    if (!timer_add(conn, conn->start)) {
        conn_reset(conn);
    }
}

void
vnxi_http_conn_adopt_all(vnxi_http_listener_t *listener)
{
    vnxi_http_conn_t *conn;

    while ((conn = TAILQ_FIRST(&listener->conns[VNXI_HTTP_NEW])) != NULL) {
        conn_adopt(conn);
    }
}

/* -- Requests ------------------------------------------------------------- */

vnxi_http_conn_t *
vnxi_http_conn_of(vnxi_http_listener_t *listener,
                  struct evhttp_request *request)
{
    struct evhttp_connection *evcon = evhttp_request_get_connection(request);
    struct bufferevent *bev = evhttp_connection_get_bufferevent(evcon);

    return vnxi_name_map_get(&listener->by_bev, &bev, sizeof bev);
}

void
vnxi_http_conn_write(vnxi_http_conn_t *conn)
{
    if (conn->state == VNXI_HTTP_KEPT) { /* came with the previous one */
        conn->start = conn->active = vnxi_clock_ns();
        conn->turned_away = false;
    }
    conn_move(conn, VNXI_HTTP_WRITE);
}

void
vnxi_http_conn_written(struct evhttp_request *request, void *arg)
{
    (void)request;
    vnxi_http_conn_t *conn = arg;

    if (!conn->turned_away) {
        vnxi_stat_served(conn->listener->super.stats, conn->start);
    }
    conn->active = vnxi_clock_ns();
    conn->has_sent = false;
    conn_move(conn, VNXI_HTTP_KEPT);
}

/* -- All connections ------------------------------------------------------ */

bool
vnxi_http_conn_evict(vnxi_http_listener_t *listener)
{
    vnxi_http_conn_adopt_all(listener);
    for (int state = VNXI_HTTP_KEPT; state < VNXI_HTTP_STATES; state++) {
        vnxi_http_conn_t *conn = TAILQ_FIRST(&listener->conns[state]);
        if (conn == NULL) {
            continue;
        }
        if (state != VNXI_HTTP_KEPT) {
            vnxi_stat_add(&listener->super.stats->evicted);
        }
        conn_drop(conn);
        return true;
    }
    return false;
}

void
vnxi_http_conn_close_all(vnxi_http_listener_t *listener)
{
    vnxi_http_conn_adopt_all(listener);
    for (int state = 0; state < VNXI_HTTP_STATES; state++) {
        vnxi_http_conn_t *conn;
        while ((conn = TAILQ_FIRST(&listener->conns[state])) != NULL) {
            conn_drop(conn);
        }
    }
}
