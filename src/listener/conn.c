/*
 * Design notes.  Both directions use the same protocol: frames of commands,
 * both ways.  So there is one type of connection; code that only applies to
 * connections made by us is in client.c.
 *
 * Input stays in libevent's buffer until a frame is complete.  Its size is
 * limited by the announced length, that length by max_frame, and the sum over
 * all connections by `held`.  Output is written one frame at a time, so that
 * each frame has a deadline.
 *
 * If a peer sends requests faster than it reads the replies, we stop reading
 * from it until it does.  But we continue while only a few replies are unsent:
 * a peer that sends a long frame before it reads, as stock does, must not wait
 * for us while we wait for it.
 */
#include <errno.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/fork_fds.h"
#include "listener/listener.h"

#define READ_MAX (256u << 10) /* per connection and round of the loop */
#define WRITE_MAX (512u << 10)

/* -- Memory and lists ----------------------------------------------------- */

static size_t
input_len(const vnxi_meta_conn_t *conn)
{
    return evbuffer_get_length(bufferevent_get_input(conn->bev));
}

/* Set the number of bytes held in memory for this connection. */
static void
hold(vnxi_meta_conn_t *conn, size_t bytes)
{
    conn->listener->loop.held += bytes - conn->held;
    conn->held = bytes;
}

/* Free a reply that was removed from its list. */
static void
drop_reply(vnxi_meta_conn_t *conn, vnxi_meta_frame_t *frame)
{
    conn->replies--;
    conn->reply_bytes -= frame->len;
    free(frame);
}

void
vnxi_meta_conn_list(vnxi_meta_conn_t *conn, struct vnxi_meta_conns *list)
{
    vnxi_meta_loop_t *loop = &conn->listener->loop;

    if (conn->list != NULL) {
        TAILQ_REMOVE(conn->list, conn, link);
    } else if (conn->is_ours) {
        loop->opened++;
    } else {
        loop->accepted++;
        vnxi_meta_count(&conn->listener->counters.open);
    }
    conn->list = list;
    if (list != NULL) {
        TAILQ_INSERT_TAIL(list, conn, link);
    } else if (conn->is_ours) {
        loop->opened--;
    } else {
        loop->accepted--;
        atomic_fetch_sub(&conn->listener->counters.open, 1);
    }
}

/* -- Frames out ----------------------------------------------------------- */

/* If memory runs out for the buffer, the timer ends the frame. */
static void
write_next(vnxi_meta_conn_t *conn)
{
    vnxi_meta_frame_t *frame = TAILQ_FIRST(&conn->out);

    if (frame == NULL || conn->is_writing || conn->bev == NULL) {
        return;
    }
    conn->is_writing = true;
    event_add(conn->out_timer, conn->listener->loop.timeout);
    evbuffer_add_reference(bufferevent_get_output(conn->bev), frame->bytes,
                           frame->len, NULL, NULL);
}

void
vnxi_meta_conn_push(vnxi_meta_conn_t *conn, vnxi_meta_frame_t *frame)
{
    TAILQ_INSERT_TAIL(&conn->out, frame, link);
    if (frame->is_reply) {
        conn->replies++;
        conn->reply_bytes += frame->len;
    }
    write_next(conn);
}

/* The kernel has taken the first frame. */
static void
frame_written(vnxi_meta_conn_t *conn)
{
    vnx_listener_t *listener = conn->listener;
    vnxi_meta_frame_t *frame = TAILQ_FIRST(&conn->out);

    TAILQ_REMOVE(&conn->out, frame, link);
    conn->is_writing = false;
    event_del(conn->out_timer);
    if (frame->is_reply) {
        vnxi_meta_count(&listener->counters.served);
        drop_reply(conn, frame);
        hold(conn, input_len(conn) + conn->reply_bytes);
        return;
    }
    conn->is_proven = true;
    if (frame->verb != VNXI_META_SEND) {
        vnxi_meta_sent(listener, frame);
        return;
    }
    if (TAILQ_EMPTY(&conn->awaiting)) {
        event_add(conn->reply_timer, listener->loop.timeout);
    }
    TAILQ_INSERT_TAIL(&conn->awaiting, frame, link);
    vnxi_meta_frame_left(listener, frame);
}

vnxi_meta_frame_t *
vnxi_meta_conn_answered(vnxi_meta_conn_t *conn)
{
    vnxi_meta_frame_t *frame = TAILQ_FIRST(&conn->awaiting);

    if (frame == NULL) {
        return NULL;
    }
    TAILQ_REMOVE(&conn->awaiting, frame, link);
    if (TAILQ_EMPTY(&conn->awaiting)) {
        event_del(conn->reply_timer);
    } else {
        event_add(conn->reply_timer, conn->listener->loop.timeout);
    }
    return frame;
}

/* -- Ends ----------------------------------------------------------------- */

void
vnxi_meta_conn_cut(vnxi_meta_conn_t *conn)
{
    event_del(conn->in_timer);
    event_del(conn->out_timer);
    event_del(conn->reply_timer);
    vnxi_loop_event_free(conn->dial_event);
    conn->dial_event = NULL;
    vnxi_dial_fini(&conn->dial);
    if (conn->bev != NULL) {
        bufferevent_disable(conn->bev, EV_READ | EV_WRITE);
        bufferevent_free(conn->bev);
        conn->bev = NULL;
    }
    if (conn->fd >= 0) {
        /* A forked child may hold a copy of the socket.  Closing ours would
         * then not notify the peer. */
        shutdown(conn->fd, SHUT_RDWR);
        vnxi_fork_fd_close(conn->fd);
        conn->fd = -1;
    }
    conn->is_writing = conn->is_paused = conn->is_in_frame = false;
    hold(conn, 0);
}

static void
fail_frames(vnxi_meta_conn_t *conn, struct vnxi_meta_frames *frames,
            vnx_status_t status, const char *cause)
{
    vnxi_meta_frame_t *frame;

    while ((frame = TAILQ_FIRST(frames)) != NULL) {
        TAILQ_REMOVE(frames, frame, link);
        if (frame->is_reply) {
            drop_reply(conn, frame);
        } else {
            vnxi_meta_unsent(conn->listener, frame, status, cause);
        }
    }
}

void
vnxi_meta_conn_fail(vnxi_meta_conn_t *conn, vnx_status_t status,
                    const char *cause)
{
    fail_frames(conn, &conn->awaiting, status, cause);
    fail_frames(conn, &conn->out, status, cause);
}

static void
conn_free(vnxi_meta_conn_t *conn)
{
    vnxi_loop_event_free(conn->in_timer);
    vnxi_loop_event_free(conn->out_timer);
    vnxi_loop_event_free(conn->reply_timer);
    free(conn->host);
    free(conn);
}

void
vnxi_meta_conn_free(vnxi_meta_conn_t *conn)
{
    vnxi_meta_conn_cut(conn);
    vnxi_meta_conn_fail(conn, VNX_ERR_CLOSED,
                        "the agent's metadata listener was stopped before the "
                        "command was done");
    if (conn->list != NULL) {
        vnxi_meta_conn_list(conn, NULL);
    }
    conn_free(conn);
}

/* The peer has sent something that a NIXL listener never sends. */
static void
refuse(vnxi_meta_conn_t *conn, const char *cause)
{
    vnx_error_t failure;

    if (!conn->is_ours) {
        vnxi_error_set(&failure, VNX_ERR_MISMATCH, "vnx_listener_start",
                       "connection closed: %s", cause);
        vnxi_error_peer(&failure, conn->endpoint, strlen(conn->endpoint));
        vnxi_meta_failure(conn->listener, &failure);
    }
    vnxi_meta_count(&conn->listener->counters.refused);
    conn->ops->ended(conn, VNX_ERR_MISMATCH, cause);
}

/* The peer has missed a deadline. */
static void
expire(vnxi_meta_conn_t *conn, const char *cause)
{
    vnxi_meta_count(&conn->listener->counters.timed_out);
    conn->ops->ended(conn, VNX_ERR_TIMEOUT, cause);
}

bool
vnxi_meta_conn_evict(vnx_listener_t *listener)
{
    vnxi_meta_loop_t *loop = &listener->loop;
    vnxi_meta_conn_t *conn = TAILQ_FIRST(&loop->strangers);

    if (conn == NULL) {
        conn = TAILQ_FIRST(&loop->known);
    }
    if (conn == NULL) {
        return false;
    }
    vnxi_meta_count(&listener->counters.evicted);
    vnxi_meta_conn_free(conn);
    return true;
}

/* -- Frames in ------------------------------------------------------------ */

/* Handle one complete frame at the head of the input, of `len` bytes without
 * its header.  NULL, or the reason to close the connection. */
static const char *
take_frame(vnxi_meta_conn_t *conn, size_t len)
{
    vnxi_meta_loop_t *loop = &conn->listener->loop;
    struct evbuffer *input = bufferevent_get_input(conn->bev);
    size_t whole = VNXI_META_HEADER + len;

    unsigned char *bytes = evbuffer_pullup(input, (ev_ssize_t)whole);
    if (bytes == NULL) {
        return "out of memory for its frame";
    }
    const char *cause =
        conn->ops->perform(conn, bytes + VNXI_META_HEADER, len);
    evbuffer_drain(input, whole);
    conn->is_proven = true;
    conn->is_in_frame = false;
    vnxi_meta_conn_list(conn, conn->is_ours ? &loop->targets : &loop->known);
    return cause;
}

/* Handle complete frames until too many replies are unsent.  NULL, or the
 * reason to close the connection. */
static const char *
take_frames(vnxi_meta_conn_t *conn)
{
    struct evbuffer *input = bufferevent_get_input(conn->bev);
    unsigned char header[VNXI_META_HEADER];
    const char *cause = NULL;

    while (cause == NULL && conn->replies < VNXI_META_REPLIES_MAX &&
           evbuffer_copyout(input, header, sizeof header) ==
               (ev_ssize_t)sizeof header) {
        uint64_t len = vnxi_meta_header_read(header);
        if (len > conn->listener->options.max_frame) {
            return "a frame above max_frame";
        }
        if (len < VNXI_META_COMMAND_MIN) {
            return "a frame without a command";
        }
        if (evbuffer_get_length(input) < sizeof header + len) {
            break;
        }
        cause = take_frame(conn, len);
    }
    return cause;
}

/* Each frame has a deadline, from its first byte to its last.  So has the
 * first command of an accepted connection, from the time of accepting. */
static void
set_in_timer(vnxi_meta_conn_t *conn)
{
    if (conn->is_paused ||
        (input_len(conn) == 0 && (conn->is_proven || conn->is_ours))) {
        event_del(conn->in_timer);
        conn->is_in_frame = false;
    } else if (!conn->is_in_frame && (conn->is_proven || conn->is_ours)) {
        event_add(conn->in_timer, conn->listener->loop.timeout);
        conn->is_in_frame = true;
    }
}

static void
set_paused(vnxi_meta_conn_t *conn)
{
    bool pause = conn->replies >= VNXI_META_REPLIES_MAX;
    if (pause != conn->is_paused) {
        conn->is_paused = pause;
        (pause ? bufferevent_disable : bufferevent_enable)(conn->bev, EV_READ);
    }
}

/* May free the connection. */
static void
look_at_input(vnxi_meta_conn_t *conn)
{
    vnx_listener_t *listener = conn->listener;

    const char *cause = take_frames(conn);
    if (cause == NULL) {
        hold(conn, input_len(conn) + conn->reply_bytes);
        if (listener->loop.held > 2 * listener->options.max_frame) {
            cause = "too many bytes of unfinished frames";
        }
    }
    if (cause != NULL) {
        refuse(conn, cause);
        return;
    }
    set_paused(conn);
    set_in_timer(conn);
}

static void
on_read(struct bufferevent *bev, void *arg)
{
    (void)bev;
    look_at_input(arg);
}

static void
on_written(struct bufferevent *bev, void *arg)
{
    vnxi_meta_conn_t *conn = arg;

    if (!conn->is_writing ||
        evbuffer_get_length(bufferevent_get_output(bev)) > 0) {
        return;
    }
    frame_written(conn);
    write_next(conn);
    if (conn->is_paused) {
        look_at_input(conn);
    }
}

static void
on_event(struct bufferevent *bev, short what, void *arg)
{
    (void)bev;
    vnxi_meta_conn_t *conn = arg;
    int err = EVUTIL_SOCKET_ERROR();
    const char *cause = (what & BEV_EVENT_EOF) != 0
                            ? "the peer closed the connection"
                            : strerror(err);

    if (!conn->is_ours && (what & BEV_EVENT_ERROR) && err == ETIMEDOUT) {
        expire(conn, cause); /* the kernel still held unread bytes */
    } else if (!conn->is_ours && input_len(conn) > 0 && !conn->is_paused) {
        refuse(conn, "the peer closed it in the middle of a frame");
    } else {
        conn->ops->ended(conn, VNX_ERR_BACKEND, cause);
    }
}

/* -- Deadlines ------------------------------------------------------------ */

static void
on_in_deadline(evutil_socket_t fd, short what, void *arg)
{
    (void)fd, (void)what;
    expire(arg, "the rest of a frame did not arrive in time");
}

static void
on_out_deadline(evutil_socket_t fd, short what, void *arg)
{
    (void)fd, (void)what;
    vnxi_meta_conn_t *conn = arg;

    if (conn->bev == NULL) {
        conn->ops->ended(conn, VNX_ERR_TIMEOUT,
                         conn->dial.is_connecting
                             ? "the connection was not established in time"
                             : "the name service did not answer in time");
    } else {
        expire(conn, "the peer did not receive a frame in time");
    }
}

/* A reply that has begun to arrive is covered by the in_timer. */
static void
on_reply_deadline(evutil_socket_t fd, short what, void *arg)
{
    (void)fd, (void)what;
    vnxi_meta_conn_t *conn = arg;

    if (conn->is_in_frame) {
        event_add(conn->reply_timer, conn->listener->loop.timeout);
    } else {
        expire(conn, "no metadata arrived in time");
    }
}

/* -- Creation ------------------------------------------------------------- */

vnxi_meta_conn_t *
vnxi_meta_conn_new(vnx_listener_t *listener, const vnxi_meta_conn_ops_t *ops,
                   bool is_ours, const char *host, int port)
{
    struct event_base *base = listener->loop.super.base;
    vnxi_meta_conn_t *conn = calloc(1, sizeof *conn);
    if (conn == NULL) {
        return NULL;
    }
    conn->listener = listener;
    conn->ops = ops;
    conn->is_ours = is_ours;
    conn->fd = -1;
    TAILQ_INIT(&conn->out);
    TAILQ_INIT(&conn->awaiting);
    vnxi_endpoint_text(conn->endpoint, sizeof conn->endpoint, host, port);
    conn->host = is_ours ? strdup(host) : NULL;
    conn->in_timer = evtimer_new(base, on_in_deadline, conn);
    conn->out_timer = evtimer_new(base, on_out_deadline, conn);
    conn->reply_timer = evtimer_new(base, on_reply_deadline, conn);
    if (conn->in_timer == NULL || conn->out_timer == NULL ||
        conn->reply_timer == NULL || (is_ours && conn->host == NULL)) {
        conn_free(conn);
        return NULL;
    }
    return conn;
}

/* A peer whose host is gone does not close its connection.  Let the kernel
 * detect that, after our own deadlines. */
static void
set_socket(int fd, unsigned timeout_ms)
{
    int on = 1;
    timeout_ms *= 2;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout_ms,
               sizeof timeout_ms);
}

bool
vnxi_meta_conn_open(vnxi_meta_conn_t *conn, int fd)
{
    vnx_listener_t *listener = conn->listener;

    conn->fd = fd;
    conn->bev = bufferevent_socket_new(listener->loop.super.base, fd, 0);
    if (conn->bev == NULL) {
        return false;
    }
    conn->is_proven = false;
    set_socket(fd, listener->options.timeout_ms);
    /* The kernel holds back anything beyond one frame; we do not buffer it. */
    bufferevent_setwatermark(conn->bev, EV_READ, 0,
                             VNXI_META_HEADER + listener->options.max_frame);
    bufferevent_set_max_single_read(conn->bev, READ_MAX);
    bufferevent_set_max_single_write(conn->bev, WRITE_MAX);
    bufferevent_setcb(conn->bev, on_read, on_written, on_event, conn);
    bufferevent_enable(conn->bev, EV_READ);
    if (!conn->is_ours) {
        event_add(conn->in_timer, listener->loop.timeout);
    }
    write_next(conn);
    return true;
}
