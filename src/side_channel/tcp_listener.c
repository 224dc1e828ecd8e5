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

#include "base/error.h"
#include "net/tls.h"
#include "side_channel/tcp.h"
#include "side_channel/tcp_wire.h"

#ifdef VNXI_SIDE_CHANNEL_TLS
#include <event2/bufferevent_ssl.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#endif

/* -- Ends ----------------------------------------------------------------- */

static void on_input(struct evbuffer *input,
                     const struct evbuffer_cb_info *info, void *arg);
static void on_output(struct evbuffer *output,
                      const struct evbuffer_cb_info *info, void *arg);

/* Free a connection whose creation may be incomplete, and which is not among
 * the listener's. */
static void
conn_free(vnxi_tcp_conn_t *conn)
{
    struct bufferevent *bev = conn->super.bev;

    if (bev != NULL) {
        evbuffer_remove_cb(bufferevent_get_input(bev), on_input, conn);
        evbuffer_remove_cb(bufferevent_get_output(bev), on_output, conn);
        bufferevent_disable(bev, EV_READ | EV_WRITE);
        bufferevent_free(bev);
    }
    vnxi_conn_tls_free(&conn->super);
    close(conn->fd);
    if (conn->super.timer != NULL) {
        event_free(conn->super.timer);
    }
    free(conn);
}

static void
conn_close(vnxi_tcp_conn_t *conn)
{
    /* A forked child may hold a copy of the socket.  Then close() alone would
     * not tell the client. */
    shutdown(conn->fd, SHUT_RDWR);
    vnxi_conn_remove(&conn->super);
    conn_free(conn);
}

static void
conn_reset(vnxi_tcp_conn_t *conn)
{
    vnxi_conn_drop_unsent(conn->fd);
    conn_close(conn);
}

static void
conn_drop(vnxi_conn_t *super)
{
    vnxi_tcp_conn_t *conn = (vnxi_tcp_conn_t *)super;

    if (super->state == VNXI_CONN_KEPT) {
        conn_close(conn);
    } else {
        conn_reset(conn);
    }
}

static void
conn_refuse(vnxi_tcp_conn_t *conn, vnx_side_channel_refusal_t why)
{
    vnxi_stat_refused(conn->super.server->stats, why);
    conn_close(conn);
}

#ifdef VNXI_SIDE_CHANNEL_TLS

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

/* The handshake has failed. */
static vnx_side_channel_refusal_t
tls_refusal(const vnxi_tcp_conn_t *conn)
{
    bool wants_secret = conn->super.server->options->secret != NULL;
    int reason =
        ERR_GET_REASON(bufferevent_get_openssl_error(conn->super.bev));

    if (vnxi_tls_is_not_tls(reason)) {
        send_alert(conn->fd);
        return wants_secret ? VNX_SIDE_CHANNEL_REFUSED_NO_PROOF
                            : VNX_SIDE_CHANNEL_REFUSED_TLS;
    }
    if (reason == SSL_R_BINDER_DOES_NOT_VERIFY) {
        return VNX_SIDE_CHANNEL_REFUSED_WRONG_PROOF;
    }
    return wants_secret && reason == SSL_R_NO_SUITABLE_SIGNATURE_ALGORITHM
               ? VNX_SIDE_CHANNEL_REFUSED_NO_PROOF
               : VNX_SIDE_CHANNEL_REFUSED_TLS;
}

#else

static vnx_side_channel_refusal_t
tls_refusal(const vnxi_tcp_conn_t *conn)
{
    (void)conn;
    return VNX_SIDE_CHANNEL_REFUSED_TLS;
}

#endif

/* -- Exchanges ------------------------------------------------------------ */

/* Let the protocol read.  False: the connection is gone. */
static bool
conn_read(vnxi_tcp_conn_t *conn)
{
    const vnxi_tcp_protocol_t *protocol = conn->listener->protocol;
    vnxi_tcp_next_t next = protocol->read(conn);

    if (next == VNXI_TCP_NEXT_CLOSE) {
        conn_close(conn);
        return false;
    }
    if (next == VNXI_TCP_NEXT_WRITE) { /* read no more */
        bufferevent_disable(conn->super.bev, EV_READ);
        if (!protocol->keeps) {
            evbuffer_drain(bufferevent_get_input(conn->super.bev), SIZE_MAX);
        }
        vnxi_conn_move(&conn->super, VNXI_CONN_WRITE);
    }
    return true;
}

static void
conn_rest(vnxi_tcp_conn_t *conn)
{
    event_del(conn->super.timer);
    vnxi_conn_move(&conn->super, VNXI_CONN_KEPT);
}

/* Input arrived on a kept connection: begin another exchange, unless the input
 * is not part of one. */
static void
conn_resume(vnxi_tcp_conn_t *conn)
{
    conn->super.start = vnxi_clock_ns();
    conn->super.turned_away = false;
    event_add(conn->super.timer, conn->listener->timeout);
    vnxi_conn_move(&conn->super, VNXI_CONN_READ);
    if (conn_read(conn) && conn->super.state == VNXI_CONN_READ &&
        !conn->listener->protocol->is_midway(conn)) {
        conn_rest(conn);
    }
}

static void
on_read(struct bufferevent *bev, void *arg)
{
    (void)bev;
    vnxi_tcp_conn_t *conn = arg;

    if (conn->super.state == VNXI_CONN_KEPT &&
        conn->listener->protocol->keeps) {
        conn_resume(conn);
    } else if (conn->super.state == VNXI_CONN_READ) {
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
    vnxi_tcp_conn_t *conn = arg;

    if (conn->super.state != VNXI_CONN_WRITE ||
        evbuffer_get_length(bufferevent_get_output(bev)) > 0) {
        return;
    }
    vnxi_conn_served(&conn->super);
    bufferevent_enable(bev, EV_READ);
    if (!conn->listener->protocol->keeps) {
        vnxi_conn_goodbye(&conn->super);
        shutdown(conn->fd, SHUT_WR);
        vnxi_conn_move(&conn->super, VNXI_CONN_KEPT);
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
    const vnxi_tcp_conn_t *conn = arg;

    vnxi_stat_add_count(&conn->super.server->stats->bytes_received,
                        info->n_added);
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
conn_expire(vnxi_tcp_conn_t *conn)
{
    if (conn->super.state != VNXI_CONN_KEPT) {
        vnxi_stat_add(&conn->super.server->stats->timed_out);
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
    vnxi_tcp_conn_t *conn = arg;

    if (what & BEV_EVENT_CONNECTED) {
        return; /* TLS is up */
    }
    if (what & BEV_EVENT_TIMEOUT) {
        conn_expire(conn);
    } else if ((what & BEV_EVENT_ERROR) &&
               vnxi_conn_is_shaking(&conn->super)) {
        conn_refuse(conn, tls_refusal(conn));
    } else if (conn->super.state == VNXI_CONN_READ &&
               conn->listener->protocol->is_midway(conn)) {
        conn_refuse(conn, VNX_SIDE_CHANNEL_REFUSED_MALFORMED);
    } else if (conn->super.state == VNXI_CONN_WRITE) {
        conn_reset(conn);
    } else {
        conn_close(conn);
    }
}

/* -- Creation ------------------------------------------------------------- */

/* Create a connection; takes ownership of `fd`. */
static vnxi_tcp_conn_t *
conn_new(vnxi_tcp_listener_t *listener, int fd)
{
    const vnxi_tcp_protocol_t *protocol = listener->protocol;
    vnxi_tcp_conn_t *conn = calloc(1, protocol->conn_size);
    if (conn == NULL) {
        close(fd);
        return NULL;
    }
    conn->fd = fd;
    conn->listener = listener;
    conn->super.server = &listener->super;
    conn->super.start = vnxi_clock_ns();
    conn->super.timer =
        evtimer_new(listener->super.loop.base, on_deadline, conn);
    if (conn->super.timer == NULL ||
        event_add(conn->super.timer, listener->timeout) != 0) {
        goto err_free;
    }
    conn->super.bev =
        vnxi_conn_stream(&listener->super, fd, 0, &conn->super.tls);
    if (conn->super.bev == NULL ||
        (protocol->begin != NULL && !protocol->begin(conn))) {
        goto err_free;
    }
    return conn;

err_free:
    conn_free(conn);
    return NULL;
}

static void
on_client(vnxi_server_t *super, int fd)
{
    vnxi_tcp_listener_t *listener = (vnxi_tcp_listener_t *)super;
    vnxi_tcp_conn_t *conn = conn_new(listener, fd);
    if (conn == NULL) {
        return;
    }
    struct bufferevent *bev = conn->super.bev;
    vnxi_conn_add(&conn->super);
    vnxi_conn_tune(&conn->super, fd, listener->protocol->input_max);
    if (listener->idle != NULL) {
        bufferevent_set_timeouts(bev, listener->idle, listener->idle);
    }
    bufferevent_setcb(bev, on_read, on_written, on_event, conn);
    evbuffer_add_cb(bufferevent_get_input(bev), on_input, conn);
    evbuffer_add_cb(bufferevent_get_output(bev), on_output, conn);
    bufferevent_enable(bev, EV_READ);
}

/* -- The listener --------------------------------------------------------- */

static bool
create_timeouts(vnxi_server_t *super)
{
    vnxi_tcp_listener_t *listener = (vnxi_tcp_listener_t *)super;
    const vnx_side_channel_options_t *options = super->options;

    listener->timeout =
        vnxi_loop_timeout(&super->loop, options->client_timeout_ms);
    if (options->idle_timeout_ms < options->client_timeout_ms) {
        listener->idle =
            vnxi_loop_timeout(&super->loop, options->idle_timeout_ms);
    }
    return listener->timeout != NULL;
}

static const vnxi_server_ops_t server_ops = {
    .accept = on_client,
    .drop = conn_drop,
    .begin = create_timeouts,
};

vnx_status_t
vnxi_tcp_listen_for(const vnxi_tcp_protocol_t *protocol,
                    const vnxi_listen_params_t *params, vnxi_server_t **out_p,
                    vnx_error_t *error)
{
    vnxi_tcp_listener_t *listener = calloc(1, sizeof *listener);
    if (listener == NULL) {
        return vnxi_error_no_memory(error, VNXI_OP_START, sizeof *listener);
    }
    listener->protocol = protocol;
    return vnxi_server_open(&listener->super, &server_ops,
                            protocol->thread_name, params, out_p, error);
}
