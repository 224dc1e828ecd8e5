/*
 * Design notes.  A connection goes READ -> WRITE -> LINGER.  One timer covers
 * all of it; it is set when the connection is accepted.
 *
 *   READ    The protocol takes input as it comes, little at a time, and
 * answers. WRITE   The last reply is sent, a blob from its shared copy.
 * Nothing is read any more. LINGER  The kernel has the last reply and our side
 * is closed.  The client closes, and its end of file frees the connection.  A
 * client that does not close in time is reset, so that the bytes it never read
 * do not stay in the kernel either.
 *
 * If the protocol keeps connections, LINGER leads back to READ: our side stays
 * open, and the timer runs only during an exchange.  Connections that were
 * served and ask for nothing more are the first to be evicted.
 */
#include <event2/buffer.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "side_channel/tcp.h"
#include "side_channel/tcp_tls.h"

#define WRITE_MAX (512u << 10) /* per client and round of the loop */

static void on_progress(struct evbuffer *output,
                        const struct evbuffer_cb_info *info, void *arg);

static void
conn_move(vnxi_tcp_conn_t *conn, vnxi_tcp_state_t state)
{
    vnxi_tcp_listener_t *listener = conn->listener;
    TAILQ_REMOVE(&listener->conns[conn->state], conn, link);
    conn->state = state;
    TAILQ_INSERT_TAIL(&listener->conns[state], conn, link);
}

/* Free a connection whose creation may be incomplete; `link` is not in a list.
 */
static void
conn_free(vnxi_tcp_conn_t *conn)
{
    if (conn->bev != NULL) {
        evbuffer_remove_cb(bufferevent_get_output(conn->bev), on_progress,
                           conn);
        bufferevent_disable(conn->bev, EV_READ | EV_WRITE);
        bufferevent_free(conn->bev);
    }
    vnxi_tcp_tls_free(conn);
    close(conn->fd);
    if (conn->timer != NULL) {
        event_free(conn->timer);
    }
    conn->listener->protocol->fini(conn);
    free(conn);
}

static void
conn_close(vnxi_tcp_conn_t *conn)
{
    vnxi_tcp_listener_t *listener = conn->listener;
    /* A forked child may hold a copy of the socket.  Then close() alone would
     * not tell the client. */
    shutdown(conn->fd, SHUT_RDWR);
    TAILQ_REMOVE(&listener->conns[conn->state], conn, link);
    listener->open--;
    vnxi_stat_sub(&listener->super.stats->open);
    conn_free(conn);
}

/* Close, and let the kernel drop the bytes that the client did not take. */
static void
conn_reset(vnxi_tcp_conn_t *conn)
{
    struct linger at_once = {.l_onoff = 1, .l_linger = 0};
    setsockopt(conn->fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    conn_close(conn);
}

/* The last reply is in the output: read no more. */
static void
conn_finish(vnxi_tcp_conn_t *conn)
{
    bufferevent_disable(conn->bev, EV_READ);
    if (!conn->listener->protocol->keeps) {
        evbuffer_drain(bufferevent_get_input(conn->bev), SIZE_MAX);
    }
    conn_move(conn, VNXI_TCP_WRITE);
}

/* Let the protocol read.  False: the connection is gone. */
static bool
conn_read(vnxi_tcp_conn_t *conn)
{
    vnxi_tcp_next_t next = conn->listener->protocol->read(conn);

    if (next == VNXI_TCP_NEXT_WRITE) {
        conn_finish(conn);
    } else if (next == VNXI_TCP_NEXT_CLOSE) {
        conn_close(conn);
        return false;
    }
    return true;
}

static void
conn_rest(vnxi_tcp_conn_t *conn)
{
    event_del(conn->timer);
    conn_move(conn, VNXI_TCP_LINGER);
}

/* Input arrived on a kept connection: begin another exchange, unless the input
 * is not part of one. */
static void
conn_resume(vnxi_tcp_conn_t *conn)
{
    conn->start = vnxi_clock_ns();
    conn->turned_away = false;
    event_add(conn->timer, conn->listener->timeout);
    conn_move(conn, VNXI_TCP_READ);
    if (conn_read(conn) && conn->state == VNXI_TCP_READ &&
        !conn->listener->protocol->is_midway(conn)) {
        conn_rest(conn);
    }
}

static void
on_read(struct bufferevent *bev, void *arg)
{
    (void)bev;
    vnxi_tcp_conn_t *conn = arg;

    if (conn->state == VNXI_TCP_LINGER && conn->listener->protocol->keeps) {
        conn_resume(conn);
    } else if (conn->state == VNXI_TCP_READ) {
        conn_read(conn);
    } else {
        conn_close(conn); /* one exchange per connection; it asks again */
    }
}

/* An exchange is over.  Another may come, or its bytes have come already. */
static void
conn_keep(vnxi_tcp_conn_t *conn)
{
    conn_rest(conn);
    bufferevent_enable(conn->bev, EV_READ);
    if (evbuffer_get_length(bufferevent_get_input(conn->bev)) > 0) {
        on_read(conn->bev, conn);
    }
}

/* The output is empty.  The call may be late: the last reply may have been
 * added since. */
static void
on_written(struct bufferevent *bev, void *arg)
{
    vnxi_tcp_conn_t *conn = arg;

    if (conn->state == VNXI_TCP_WRITE &&
        evbuffer_get_length(bufferevent_get_output(bev)) == 0) {
        if (!conn->turned_away) {
            vnxi_stat_served(conn->listener->super.stats, conn->start);
        }
        if (conn->listener->protocol->keeps) {
            conn_keep(conn);
            return;
        }
        vnxi_tcp_tls_goodbye(conn);
        shutdown(conn->fd, SHUT_WR);
        conn_move(conn, VNXI_TCP_LINGER);
        bufferevent_enable(bev, EV_READ);
    }
}

/* The time is up: reset, so that the bytes the client never read do not stay
 * in the kernel. */
static void
conn_expire(vnxi_tcp_conn_t *conn)
{
    if (conn->state != VNXI_TCP_LINGER) {
        vnxi_stat_add(&conn->listener->super.stats->timed_out);
    }
    conn_reset(conn);
}

/* The stream has ended or failed, or was idle for too long. */
static void
on_event(struct bufferevent *bev, short what, void *arg)
{
    (void)bev;
    vnxi_tcp_conn_t *conn = arg;

    if (what & BEV_EVENT_CONNECTED) {
        return; /* TLS is up */
    }
    if (what & BEV_EVENT_TIMEOUT) {
        conn_expire(conn);
    } else if ((what & BEV_EVENT_ERROR) && vnxi_tcp_tls_is_shaking(conn)) {
        vnxi_stat_refused(conn->listener->super.stats,
                          vnxi_tcp_tls_refusal(conn));
        conn_close(conn);
    } else if (conn->state == VNXI_TCP_READ &&
               conn->listener->protocol->is_midway(conn)) {
        vnxi_stat_refused(conn->listener->super.stats,
                          VNX_SIDE_CHANNEL_REFUSED_MALFORMED);
        conn_close(conn); /* in the middle of a request */
    } else if (conn->state == VNXI_TCP_WRITE) {
        conn_reset(conn);
    } else {
        conn_close(conn);
    }
}

/* A client that takes its reply is not idle. */
static void
on_progress(struct evbuffer *output, const struct evbuffer_cb_info *info,
            void *arg)
{
    (void)output;
    vnxi_tcp_conn_t *conn = arg;

    vnxi_stat_add_count(&conn->listener->super.stats->bytes_sent,
                        info->n_deleted);
    if (conn->state == VNXI_TCP_WRITE && info->n_deleted > 0) {
        conn_move(conn, VNXI_TCP_WRITE);
    }
}

static void
on_deadline(evutil_socket_t fd, short what, void *arg)
{
    (void)fd, (void)what;
    conn_expire(arg);
}

static struct bufferevent *
bev_new(vnxi_tcp_conn_t *conn)
{
    return conn->listener->super.tls != NULL
               ? vnxi_tcp_tls_bufferevent(conn)
               : bufferevent_socket_new(conn->listener->super.loop.base,
                                        conn->fd, 0);
}

/* Create a connection; takes ownership of `fd`. */
static vnxi_tcp_conn_t *
conn_new(vnxi_tcp_listener_t *listener, int fd)
{
    vnxi_tcp_conn_t *conn = calloc(1, listener->protocol->conn_size);
    if (conn == NULL) {
        close(fd);
        return NULL;
    }
    conn->fd = fd;
    conn->listener = listener;
    conn->start = vnxi_clock_ns();
    conn->state = VNXI_TCP_READ;
    conn->timer = evtimer_new(listener->super.loop.base, on_deadline, conn);
    if (conn->timer == NULL ||
        event_add(conn->timer, listener->timeout) != 0) {
        goto err_free;
    }
    conn->bev = bev_new(conn);
    if (conn->bev == NULL || !listener->protocol->begin(conn)) {
        goto err_free;
    }
    return conn;

err_free:
    conn_free(conn);
    return NULL;
}

static void
conn_begin(vnxi_tcp_conn_t *conn)
{
    struct bufferevent *bev = conn->bev;

    /* Limit the buffered input; the kernel holds back the rest. */
    bufferevent_setwatermark(bev, EV_READ, 0,
                             conn->listener->protocol->input_max);
    bufferevent_set_max_single_write(bev, WRITE_MAX);
    if (conn->listener->idle != NULL) {
        bufferevent_set_timeouts(bev, conn->listener->idle,
                                 conn->listener->idle);
    }
    bufferevent_setcb(bev, on_read, on_written, on_event, conn);
    evbuffer_add_cb(bufferevent_get_output(bev), on_progress, conn);
    bufferevent_enable(bev, EV_READ);
}

void
vnxi_tcp_conn_open(vnxi_tcp_listener_t *listener, int fd)
{
    int on = 1;

    vnxi_stat_add(&listener->super.stats->accepted);
    if (vnxi_acceptor_has_left(fd)) {
        close(fd);
        return;
    }
    if (listener->open >= listener->super.options->max_connections) {
        vnxi_tcp_conn_evict(listener);
    }
    vnxi_tcp_conn_t *conn = conn_new(listener, fd);
    if (conn == NULL) {
        return;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    TAILQ_INSERT_TAIL(&listener->conns[VNXI_TCP_READ], conn, link);
    listener->open++;
    vnxi_stat_add(&listener->super.stats->open);
    conn_begin(conn);
}

bool
vnxi_tcp_conn_evict(vnxi_tcp_listener_t *listener)
{
    for (int state = 0; state < VNXI_TCP_STATES; state++) {
        vnxi_tcp_conn_t *conn = TAILQ_FIRST(&listener->conns[state]);
        if (conn == NULL) {
            continue;
        }
        if (state == VNXI_TCP_LINGER) {
            conn_close(conn); /* it has its reply already */
        } else {
            vnxi_stat_add(&listener->super.stats->evicted);
            conn_reset(conn);
        }
        return true;
    }
    return false;
}

void
vnxi_tcp_conn_close_all(vnxi_tcp_listener_t *listener)
{
    for (int state = 0; state < VNXI_TCP_STATES; state++) {
        vnxi_tcp_conn_t *conn;
        while ((conn = TAILQ_FIRST(&listener->conns[state])) != NULL) {
            if (state == VNXI_TCP_LINGER) {
                conn_close(conn);
            } else {
                conn_reset(conn);
            }
        }
    }
}
