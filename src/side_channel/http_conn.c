/*
 * Design notes.  libevent creates its connection object around a bufferevent
 * that we supply.  It asks for the bufferevent before the socket is in it
 * (vnxi_http_conn_new).  Soon after that, by a first event of its timer, we
 * adopt the connection: libevent's object is the argument of the bufferevent's
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
 */
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "side_channel/http.h"

#define MS UINT64_C(1000000)
#define TOO_LONG 413
#define URI_TOO_LONG 414

/* -- Ends ----------------------------------------------------------------- */

static void on_input(struct evbuffer *input,
                     const struct evbuffer_cb_info *info, void *arg);
static void on_output(struct evbuffer *output,
                      const struct evbuffer_cb_info *info, void *arg);

/* Free our part only: libevent's connection is gone, or libevent is about to
 * free it. */
static void
conn_free(vnxi_http_conn_t *conn)
{
    struct bufferevent *bev = conn->super.bev;

    evbuffer_remove_cb(bufferevent_get_input(bev), on_input, conn);
    evbuffer_remove_cb(bufferevent_get_output(bev), on_output, conn);
    vnxi_name_map_remove(&conn->listener->by_bev, &conn->super.bev,
                         sizeof bev);
    vnxi_conn_remove(&conn->super);
    event_free(conn->super.timer);
    bufferevent_decref(bev);
    free(conn);
}

/* Count why the connection ended, unless that was counted already. */
static void
count_end(vnxi_http_conn_t *conn)
{
    vnxi_side_stats_t *stats = conn->super.server->stats;

    if (conn->counted) {
        return;
    }
    if (vnxi_conn_is_shaking(&conn->super)) {
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
    vnxi_http_conn_t *conn = arg;

    count_end(conn);
    if (conn->super.state == VNXI_CONN_KEPT) {
        vnxi_conn_goodbye(&conn->super);
    }
    /* A forked child may hold a copy of the socket.  Then close() alone would
     * not tell the client. */
    shutdown(bufferevent_getfd(conn->super.bev), SHUT_RDWR);
    conn_free(conn);
}

/* Find libevent's object.  False: libevent had no memory for it, and the
 * connection is gone. */
static bool
conn_adopt(vnxi_http_conn_t *conn)
{
    void *evcon = NULL;

    if (conn->evcon != NULL) {
        return true;
    }
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
conn_reset(vnxi_http_conn_t *conn)
{
    conn->counted = true;
    vnxi_conn_drop_unsent(bufferevent_getfd(conn->super.bev));
    evhttp_connection_free(conn->evcon); /* calls on_close() */
}

void
vnxi_http_conn_drop(vnxi_conn_t *super)
{
    vnxi_http_conn_t *conn = (vnxi_http_conn_t *)super;

    if (super->state == VNXI_CONN_KEPT) {
        evhttp_connection_free(conn->evcon); /* it waits for no reply */
    } else if (conn_adopt(conn)) {
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
note_refusal(vnxi_http_conn_t *conn, struct evbuffer *output)
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
    vnxi_http_conn_t *conn = arg;

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
due_at(const vnxi_http_conn_t *conn)
{
    const vnx_side_channel_options_t *options = conn->super.server->options;
    uint64_t idle = conn->active + options->idle_timeout_ms * MS;
    uint64_t whole = conn->super.start + options->client_timeout_ms * MS;

    return conn->super.state == VNXI_CONN_KEPT || idle < whole ? idle : whole;
}

static bool
timer_add(vnxi_http_conn_t *conn, uint64_t now)
{
    uint64_t due = due_at(conn), left_us = due > now ? (due - now) / 1000 : 0;
    struct timeval tv = {.tv_sec = (time_t)(left_us / 1000000),
                         .tv_usec = (suseconds_t)(left_us % 1000000)};
    return event_add(conn->super.timer, &tv) == 0;
}

/* Has the address used up its rate?  Uses the address that accept() returned,
 * because a connection that was reset has none any more. */
static bool
comes_too_often(const vnxi_http_conn_t *conn)
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

/* Begin with a connection that libevent has by now. */
static void
conn_begin(vnxi_http_conn_t *conn)
{
    struct bufferevent *bev = conn->super.bev;
    int fd = bufferevent_getfd(bev);

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
    vnxi_conn_tune(&conn->super, fd, 2 * VNXI_HTTP_HEADERS_MAX);
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
    vnxi_http_conn_t *conn = arg;
    uint64_t now = vnxi_clock_ns();

    if (conn->evcon == NULL) {
        conn_begin(conn);
        return;
    }
    if (now < due_at(conn) && timer_add(conn, now)) {
        return;
    }
    if (conn->super.state != VNXI_CONN_KEPT) {
        vnxi_stat_add(&conn->super.server->stats->timed_out);
    }
    vnxi_http_conn_drop(&conn->super);
}

/* -- Creation ------------------------------------------------------------- */

static vnxi_http_conn_t *
conn_new(vnxi_http_listener_t *listener)
{
    vnxi_http_conn_t *conn = calloc(1, sizeof *conn);
    if (conn == NULL) {
        return NULL;
    }
    conn->listener = listener;
    conn->super.server = &listener->super;
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
 * client is told to come back later: see vnxi_http_conn_of(). */
struct bufferevent *
vnxi_http_conn_new(struct event_base *base, void *arg)
{
    (void)base;
    vnxi_http_listener_t *listener = arg;

    vnxi_stat_add(&listener->super.stats->accepted);
    vnxi_server_make_room(&listener->super);
    vnxi_acceptor_count(&listener->super.acceptor);
    vnxi_http_conn_t *conn = conn_new(listener);
    if (conn == NULL) {
        return NULL;
    }
    vnxi_conn_add(&conn->super);
    bufferevent_incref(conn->super.bev); /* ours, besides that of libevent */
    event_active(conn->super.timer, EV_TIMEOUT, 0);
    return conn->super.bev;
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
    if (conn->super.state == VNXI_CONN_KEPT) { /* came with the previous one */
        conn->super.start = conn->active = vnxi_clock_ns();
        conn->super.turned_away = false;
    }
    vnxi_conn_move(&conn->super, VNXI_CONN_WRITE);
}

void
vnxi_http_conn_written(struct evhttp_request *request, void *arg)
{
    (void)request;
    vnxi_http_conn_t *conn = arg;

    vnxi_conn_served(&conn->super);
    conn->active = vnxi_clock_ns();
    conn->has_sent = false;
    vnxi_conn_move(&conn->super, VNXI_CONN_KEPT);
}
