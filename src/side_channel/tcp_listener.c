/*
 * Design notes.  A connection goes READ -> WRITE -> KEPT.  One timer covers
 * all of it; it is set when the connection is accepted.
 *
 *   READ   The protocol takes input as it comes, little at a time, and
 *          answers.
 *   WRITE  The last reply is sent, a blob from its shared copy.  Nothing is
 *          read any more.
 *   KEPT   The kernel has the last reply and our side is closed.  The client
 *          closes, and its end of file frees the connection.  A client that
 *          does not close in time is reset, so that the bytes it never read do
 *          not stay in the kernel either.
 *
 * If the protocol keeps connections, KEPT leads back to READ: our side stays
 * open, and the timer runs only during an exchange.
 */
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "side_channel/server.h"
#include "side_channel/tcp_wire.h"

/* -- Ends ----------------------------------------------------------------- */

static void on_input(struct evbuffer *input,
                     const struct evbuffer_cb_info *info, void *arg);
static void on_output(struct evbuffer *output,
                      const struct evbuffer_cb_info *info, void *arg);

/* Free a connection whose creation may be incomplete, and which is not among
 * the listener's.  Closes the socket at once, whereas a bufferevent would
 * close it in a later round of the loop: a process that is out of descriptors
 * needs it now. */
static void
conn_free(vnxi_conn_t *conn)
{
    struct bufferevent *bev = conn->bev;

    if (bev != NULL) {
        evbuffer_remove_cb(bufferevent_get_input(bev), on_input, conn);
        evbuffer_remove_cb(bufferevent_get_output(bev), on_output, conn);
        bufferevent_disable(bev, EV_READ | EV_WRITE);
        bufferevent_free(bev);
    }
    if (VNXI_TLS_IS_THERE) {
        vnxi_tls_free(conn->tls);
    }
    close(conn->fd);
    vnxi_loop_event_free(conn->timer);
    free(conn);
}

static void
conn_close(vnxi_conn_t *conn)
{
    /* A forked child may hold a copy of the socket.  Then close() alone would
     * not tell the client. */
    shutdown(conn->fd, SHUT_RDWR);
    vnxi_conn_remove(conn);
    conn_free(conn);
}

static void
conn_reset(vnxi_conn_t *conn)
{
    vnxi_conn_drop_unsent(conn->fd);
    conn_close(conn);
}

void
vnxi_tcp_drop(vnxi_conn_t *conn)
{
    if (conn->state == VNXI_CONN_KEPT) {
        conn_close(conn);
    } else {
        conn_reset(conn);
    }
}

static void
conn_refuse(vnxi_conn_t *conn, vnx_side_channel_refusal_t why)
{
    vnxi_stat_refused(conn->server->stats, why);
    conn_close(conn);
}

/* Tell a client without TLS in the words of TLS, which it may understand.
 * OpenSSL does not.  Read the remaining input first: closing a socket with
 * unread bytes resets the connection, and the alert may be lost with it. */
static void
send_alert(int fd)
{
    char rest[2048];

    (void)!recv(fd, rest, sizeof rest, MSG_DONTWAIT);
    (void)!send(fd, VNXI_TCP_ALERT, VNXI_TCP_ALERT_LEN,
                MSG_DONTWAIT | MSG_NOSIGNAL);
}

/* The TLS handshake has failed. */
static void
handshake_failed(vnxi_conn_t *conn)
{
    bool wants_secret = conn->server->options->secret != NULL;
    vnx_side_channel_refusal_t why = VNX_SIDE_CHANNEL_REFUSED_TLS;

    switch (VNXI_TLS_IS_THERE ? vnxi_tls_failure(conn->bev)
                              : VNXI_TLS_FAILED) {
    case VNXI_TLS_FAILED_NOT_TLS:
        send_alert(conn->fd);
        why = wants_secret ? VNX_SIDE_CHANNEL_REFUSED_NO_PROOF : why;
        break;
    case VNXI_TLS_FAILED_NO_KEY:
        why = wants_secret ? VNX_SIDE_CHANNEL_REFUSED_NO_PROOF : why;
        break;
    case VNXI_TLS_FAILED_WRONG_KEY:
        why = VNX_SIDE_CHANNEL_REFUSED_WRONG_PROOF;
        break;
    default:
        break;
    }
    conn_refuse(conn, why);
}

/* -- Exchanges ------------------------------------------------------------ */

/* Let the protocol read.  False: the connection is gone. */
static bool
conn_read(vnxi_conn_t *conn)
{
    const vnxi_protocol_t *protocol = conn->server->protocol;
    vnxi_next_t next = protocol->read(conn);

    if (next == VNXI_NEXT_CLOSE) {
        conn_close(conn);
        return false;
    }
    if (next == VNXI_NEXT_WRITE) { /* read no more */
        bufferevent_disable(conn->bev, EV_READ);
        if (!protocol->keeps) {
            evbuffer_drain(bufferevent_get_input(conn->bev), SIZE_MAX);
        }
        vnxi_conn_move(conn, VNXI_CONN_WRITE);
    }
    return true;
}

static void
conn_rest(vnxi_conn_t *conn)
{
    event_del(conn->timer);
    vnxi_conn_move(conn, VNXI_CONN_KEPT);
}

/* Input arrived on a kept connection: begin another exchange, unless the input
 * is not part of one. */
static void
conn_resume(vnxi_conn_t *conn)
{
    conn->start = vnxi_clock_ns();
    conn->turned_away = false;
    event_add(conn->timer, conn->server->timeout);
    vnxi_conn_move(conn, VNXI_CONN_READ);
    if (conn_read(conn) && conn->state == VNXI_CONN_READ &&
        !conn->server->protocol->is_midway(conn)) {
        conn_rest(conn);
    }
}

static void
on_read(struct bufferevent *bev, void *arg)
{
    (void)bev;
    vnxi_conn_t *conn = arg;

    if (conn->state == VNXI_CONN_KEPT && conn->server->protocol->keeps) {
        conn_resume(conn);
    } else if (conn->state == VNXI_CONN_READ) {
        conn_read(conn);
    } else {
        conn_close(conn); /* one exchange per connection; it asks again */
    }
}

/* The output is empty.  The call may be late: the last reply may have been
 * added since. */
static void
on_written(struct bufferevent *bev, void *arg)
{
    vnxi_conn_t *conn = arg;

    if (conn->state != VNXI_CONN_WRITE ||
        evbuffer_get_length(bufferevent_get_output(bev)) > 0) {
        return;
    }
    vnxi_conn_served(conn);
    bufferevent_enable(bev, EV_READ);
    if (!conn->server->protocol->keeps) {
        if (VNXI_TLS_IS_THERE) {
            vnxi_tls_goodbye(conn->tls);
        }
        shutdown(conn->fd, SHUT_WR);
        vnxi_conn_move(conn, VNXI_CONN_KEPT);
        return;
    }
    /* Another exchange may come, or its bytes have come already. */
    conn_rest(conn);
    if (evbuffer_get_length(bufferevent_get_input(bev)) > 0) {
        on_read(bev, conn);
    }
}

static void
on_input(struct evbuffer *input, const struct evbuffer_cb_info *info,
         void *arg)
{
    (void)input;
    const vnxi_conn_t *conn = arg;

    vnxi_stat_add_count(&conn->server->stats->bytes_received, info->n_added);
}

static void
on_output(struct evbuffer *output, const struct evbuffer_cb_info *info,
          void *arg)
{
    (void)output;
    vnxi_conn_sent(arg, info->n_deleted);
}

/* -- Failures and time ---------------------------------------------------- */

/* The time is up: reset, so that the bytes the client never read do not stay
 * in the kernel. */
static void
conn_expire(vnxi_conn_t *conn)
{
    if (conn->state != VNXI_CONN_KEPT) {
        vnxi_stat_add(&conn->server->stats->timed_out);
    }
    conn_reset(conn);
}

static void
on_deadline(evutil_socket_t fd, short what, void *arg)
{
    (void)fd, (void)what;
    conn_expire(arg);
}

/* The stream has ended or failed, or was idle for too long. */
static void
on_event(struct bufferevent *bev, short what, void *arg)
{
    (void)bev;
    vnxi_conn_t *conn = arg;

    if (what & BEV_EVENT_CONNECTED) {
        return; /* TLS is up */
    }
    if (what & BEV_EVENT_TIMEOUT) {
        conn_expire(conn);
    } else if (VNXI_TLS_IS_THERE && (what & BEV_EVENT_ERROR) &&
               vnxi_tls_is_shaking(conn->tls)) {
        handshake_failed(conn);
    } else if (conn->state == VNXI_CONN_READ &&
               conn->server->protocol->is_midway(conn)) {
        conn_refuse(conn, VNX_SIDE_CHANNEL_REFUSED_MALFORMED);
    } else if (conn->state == VNXI_CONN_WRITE) {
        conn_reset(conn);
    } else {
        conn_close(conn);
    }
}

/* -- Creation ------------------------------------------------------------- */

/* Create a connection; takes ownership of `fd`. */
static vnxi_conn_t *
conn_new(vnxi_server_t *server, int fd)
{
    const vnxi_protocol_t *protocol = server->protocol;
    vnxi_conn_t *conn = calloc(1, protocol->conn_size);
    if (conn == NULL) {
        close(fd);
        return NULL;
    }
    conn->fd = fd;
    conn->server = server;
    conn->start = vnxi_clock_ns();
    conn->timer = evtimer_new(server->loop.base, on_deadline, conn);
    if (conn->timer == NULL || event_add(conn->timer, server->timeout) != 0) {
        goto err_free;
    }
    conn->bev = vnxi_conn_stream(server, fd, 0, &conn->tls);
    if (conn->bev == NULL ||
        (protocol->greet != NULL && !protocol->greet(conn))) {
        goto err_free;
    }
    return conn;

err_free:
    conn_free(conn);
    return NULL;
}

void
vnxi_tcp_accept(vnxi_server_t *server, int fd)
{
    vnxi_conn_t *conn = conn_new(server, fd);
    if (conn == NULL) {
        return;
    }
    struct bufferevent *bev = conn->bev;
    vnxi_conn_add(conn);
    vnxi_conn_tune(conn, fd, server->protocol->input_max);
    if (server->idle != NULL) {
        bufferevent_set_timeouts(bev, server->idle, server->idle);
    }
    bufferevent_setcb(bev, on_read, on_written, on_event, conn);
    evbuffer_add_cb(bufferevent_get_input(bev), on_input, conn);
    evbuffer_add_cb(bufferevent_get_output(bev), on_output, conn);
    bufferevent_enable(bev, EV_READ);
}
