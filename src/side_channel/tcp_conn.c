/*
 * Design notes.  A connection goes READ -> WRITE -> LINGER and has one timer
 * over all of it, set when it is accepted.
 *
 * READ    a request is read into a decoder with a small cap.  Anything but
 *         the one request of the protocol closes the connection.
 * WRITE   the reply is sent from the shared blob; nothing is read any more.
 * LINGER  the reply is with the kernel and our side is closed; the client
 *         closes, and its end of file frees the connection.  A client that
 *         does not, within its time, is reset, so that what it never read
 *         does not stay with the kernel either.
 */
#include "side_channel/tcp.h"

#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "side_channel/frame.h"

#define WRITE_MAX (512u << 10) /* of one client in a round of the loop */

struct vnxi_tcp_conn {
    TAILQ_ENTRY(vnxi_tcp_conn) link; /* listener->conns[state] */
    vnxi_tcp_listener_t *listener;
    int fd; /* owned; closed at once, where a bufferevent
               closes in a later round of the loop: whoever
               needs an fd needs it now */
    struct bufferevent *bev;
    struct event *timer;
    vnxi_tcp_state_t state;
    vnxi_frame_decoder_t request;
};

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

/* A connection in any stage of its making; `link` is not in a list. */
static void
conn_free(vnxi_tcp_conn_t *conn)
{
    if (conn->bev != NULL) {
        evbuffer_remove_cb(bufferevent_get_output(conn->bev), on_progress,
                           conn);
        bufferevent_disable(conn->bev, EV_READ | EV_WRITE);
        bufferevent_free(conn->bev);
    }
    close(conn->fd);
    if (conn->timer != NULL) {
        event_free(conn->timer);
    }
    vnxi_frame_decoder_fini(&conn->request);
    free(conn);
}

static void
conn_close(vnxi_tcp_conn_t *conn)
{
    vnxi_tcp_listener_t *listener = conn->listener;
    /* A forked child may hold a copy of the socket: closing ours would not
     * tell the client. */
    shutdown(conn->fd, SHUT_RDWR);
    TAILQ_REMOVE(&listener->conns[conn->state], conn, link);
    listener->open--;
    vnxi_stat_sub(&listener->stats->open);
    conn_free(conn);
}

/* Close, and have the kernel drop what the client did not take. */
static void
conn_reset(vnxi_tcp_conn_t *conn)
{
    struct linger at_once = {.l_onoff = 1, .l_linger = 0};
    setsockopt(conn->fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    conn_close(conn);
}

static void
conn_refuse(vnxi_tcp_conn_t *conn)
{
    vnxi_stat_add(&conn->listener->stats->refused);
    conn_close(conn);
}

static void
release_reply(const void *data, size_t len, void *arg)
{
    (void)data, (void)len;
    vnxi_blob_release(arg);
}

static void
conn_reply(vnxi_tcp_conn_t *conn)
{
    vnxi_blob_t *reply = vnxi_blob_retain(conn->listener->reply);
    struct evbuffer *output = bufferevent_get_output(conn->bev);

    bufferevent_disable(conn->bev, EV_READ);
    evbuffer_drain(bufferevent_get_input(conn->bev), SIZE_MAX);
    vnxi_frame_decoder_fini(&conn->request);
    conn_move(conn, VNXI_TCP_WRITE);
    if (evbuffer_add_reference(output, reply->frame, reply->len, release_reply,
                               reply) != 0) {
        vnxi_blob_release(reply);
        conn_close(conn);
    }
}

static bool
is_request(const vnxi_frame_decoder_t *decoder)
{
    return decoder->state == VNXI_FRAME_WHOLE &&
           decoder->len == VNXI_TCP_REQUEST_LEN &&
           memcmp(decoder->data, VNXI_TCP_REQUEST, VNXI_TCP_REQUEST_LEN) == 0;
}

static void
on_read(struct bufferevent *bev, void *arg)
{
    vnxi_tcp_conn_t *conn = arg;
    size_t size;
    void *space;

    if (conn->state != VNXI_TCP_READ) {
        conn_close(conn); /* it wants a second reply on the connection */
        return;
    }
    while ((space = vnxi_frame_space(&conn->request, &size)) != NULL) {
        size = bufferevent_read(bev, space, size);
        if (size == 0) {
            return; /* the rest has yet to come */
        }
        vnxi_frame_commit(&conn->request, size);
    }
    if (is_request(&conn->request)) {
        conn_reply(conn);
    } else {
        conn_refuse(conn);
    }
}

/* The reply is all with the kernel. */
static void
on_written(struct bufferevent *bev, void *arg)
{
    vnxi_tcp_conn_t *conn = arg;

    if (conn->state == VNXI_TCP_WRITE) {
        vnxi_stat_add(&conn->listener->stats->served);
        shutdown(conn->fd, SHUT_WR);
        conn_move(conn, VNXI_TCP_LINGER);
        bufferevent_enable(bev, EV_READ);
    }
}

static void
on_event(struct bufferevent *bev, short what, void *arg)
{
    (void)bev, (void)what; /* end of file or an error: it is gone */
    vnxi_tcp_conn_t *conn = arg;

    if (conn->state == VNXI_TCP_READ && conn->request.header_have > 0) {
        conn_refuse(conn); /* in the middle of a request */
    } else if (conn->state == VNXI_TCP_WRITE) {
        conn_reset(conn);
    } else {
        conn_close(conn);
    }
}

/* A reader that takes its reply is not idle. */
static void
on_progress(struct evbuffer *output, const struct evbuffer_cb_info *info,
            void *arg)
{
    (void)output;
    vnxi_tcp_conn_t *conn = arg;

    if (conn->state == VNXI_TCP_WRITE && info->n_deleted > 0) {
        conn_move(conn, VNXI_TCP_WRITE);
    }
}

static void
on_deadline(evutil_socket_t fd, short what, void *arg)
{
    (void)fd, (void)what;
    vnxi_tcp_conn_t *conn = arg;

    if (conn->state != VNXI_TCP_LINGER) {
        vnxi_stat_add(&conn->listener->stats->timed_out);
    }
    conn_reset(conn);
}

/* Takes `fd`. */
static vnxi_tcp_conn_t *
conn_new(vnxi_tcp_listener_t *listener, int fd)
{
    vnxi_tcp_conn_t *conn = calloc(1, sizeof *conn);
    if (conn == NULL) {
        close(fd);
        return NULL;
    }
    conn->fd = fd;
    conn->listener = listener;
    conn->state = VNXI_TCP_READ;
    vnxi_frame_decoder_init(&conn->request, VNXI_TCP_REQUEST_MAX);
    conn->timer = evtimer_new(listener->base, on_deadline, conn);
    if (conn->timer == NULL ||
        event_add(conn->timer, listener->timeout) != 0) {
        goto err_free;
    }
    conn->bev = bufferevent_socket_new(listener->base, fd, 0);
    if (conn->bev == NULL) {
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

    /* What a client sends is held back by the kernel, not kept by us. */
    bufferevent_setwatermark(bev, EV_READ, 0,
                             VNXI_FRAME_HEADER + VNXI_TCP_REQUEST_MAX);
    bufferevent_set_max_single_write(bev, WRITE_MAX);
    bufferevent_setcb(bev, on_read, on_written, on_event, conn);
    evbuffer_add_cb(bufferevent_get_output(bev), on_progress, conn);
    bufferevent_enable(bev, EV_READ);
}

void
vnxi_tcp_conn_open(vnxi_tcp_listener_t *listener, int fd)
{
    int on = 1;

    vnxi_stat_add(&listener->stats->accepted);
    if (listener->open >= listener->max) {
        vnxi_tcp_conn_evict(listener);
    }
    vnxi_tcp_conn_t *conn = conn_new(listener, fd);
    if (conn == NULL) {
        return;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    TAILQ_INSERT_TAIL(&listener->conns[VNXI_TCP_READ], conn, link);
    listener->open++;
    vnxi_stat_add(&listener->stats->open);
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
            conn_close(conn); /* it has its reply: nobody is cut off */
        } else {
            vnxi_stat_add(&listener->stats->evicted);
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
