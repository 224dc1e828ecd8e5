/*
 * Design notes.  Both directions use the same protocol: frames of commands,
 * both ways.  So there is one type of connection.
 *
 * Input stays in libevent's buffer until a frame is complete.  Its size is
 * limited by the announced length, that length by max_frame, and the sum over
 * all connections by `held`.  Output is written one frame at a time, so that
 * each frame has a deadline.
 *
 * If a peer sends requests faster than it reads the replies, or commands
 * faster than we carry them out, we stop reading from it for a while.  But we
 * continue while only a few replies are unsent: a peer that sends a long frame
 * before it reads, as stock does, must not wait for us while we wait for it.
 *
 * One connection per host and port is made by our first command and kept, as
 * in stock NIXL.  A peer that has restarted since then has closed its end,
 * which is usually noticed at once.  A command sent before it is noticed is
 * sent again on a new connection.  It may then be carried out twice, which has
 * the same effect as once.
 */
#include <errno.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/fork_fds.h"
#include "listener/listener.h"

#define READ_MAX (256u << 10) /* per connection and round of the loop */
#define WRITE_MAX (512u << 10)

static void begin(vnxi_meta_conn_t *conn);

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

/* Move the connection to the end of a list; NULL: out of its list. */
static void
conn_list(vnxi_meta_conn_t *conn, struct vnxi_meta_conns *list)
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

/* Stop connecting; close the socket and release its buffer; frames stay. */
static void
conn_cut(vnxi_meta_conn_t *conn)
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

/* Fail our commands that wait for this connection, and free its replies. */
static void
conn_fail(vnxi_meta_conn_t *conn, vnx_status_t status, const char *cause)
{
    fail_frames(conn, &conn->awaiting, status, cause);
    fail_frames(conn, &conn->out, status, cause);
}

static void
free_memory(vnxi_meta_conn_t *conn)
{
    vnxi_loop_event_free(conn->in_timer);
    vnxi_loop_event_free(conn->out_timer);
    vnxi_loop_event_free(conn->reply_timer);
    vnxi_meta_source_end(conn->listener, conn->source);
    free(conn);
}

void
vnxi_meta_conn_free(vnxi_meta_conn_t *conn)
{
    conn_cut(conn);
    conn_fail(conn, VNX_ERR_CLOSED, VNXI_META_STOPPED);
    conn_list(conn, NULL);
    free_memory(conn);
}

void
vnxi_meta_check_end(vnxi_meta_loop_t *loop)
{
    const vnxi_meta_conn_t *conn;
    const vnxi_meta_frame_t *frame;

    if (!loop->is_ending) {
        return;
    }
    TAILQ_FOREACH(conn, &loop->targets, link)
    {
        TAILQ_FOREACH(frame, &conn->out, link)
        {
            if (!frame->is_reply) {
                return;
            }
        }
    }
    event_base_loopbreak(loop->super.base);
}

/* Move the commands in `from` that have not failed yet to `again`. */
static void
take_again(struct vnxi_meta_frames *from, struct vnxi_meta_frames *again)
{
    vnxi_meta_frame_t *frame, *next;

    for (frame = TAILQ_FIRST(from); frame != NULL; frame = next) {
        next = TAILQ_NEXT(frame, link);
        if (frame->is_reply || frame->is_again) {
            continue;
        }
        frame->is_again = true;
        TAILQ_REMOVE(from, frame, link);
        TAILQ_INSERT_TAIL(again, frame, link);
    }
}

/* The connection has ended.  If it was ours, was cached and broke
 * (VNX_ERR_BACKEND), its commands are tried once more on a new one, because
 * the peer may have restarted.  All other commands fail, and the connection is
 * freed. */
static void
ended(vnxi_meta_conn_t *conn, vnx_status_t status, const char *cause)
{
    struct vnxi_meta_frames again = TAILQ_HEAD_INITIALIZER(again);

    conn_cut(conn);
    if (conn->is_ours && conn->is_proven && status == VNX_ERR_BACKEND) {
        take_again(&conn->awaiting, &again);
        take_again(&conn->out, &again);
    }
    conn_fail(conn, status, cause);
    if (!TAILQ_EMPTY(&again)) {
        TAILQ_CONCAT(&conn->out, &again, link);
        begin(conn);
        return;
    }
    vnxi_meta_loop_t *loop = &conn->listener->loop;
    vnxi_meta_conn_free(conn);
    vnxi_meta_check_end(loop);
}

/* The peer has sent something that a NIXL listener never sends. */
static void
refuse(vnxi_meta_conn_t *conn, const char *cause)
{
    vnx_error_t failure;

    if (!conn->is_ours) {
        vnxi_error_set(&failure, VNX_ERR_MISMATCH, "vnx_listener_start",
                       "connection closed: %s", cause);
        vnxi_meta_failure(conn->listener, conn->endpoint, &failure);
    }
    vnxi_meta_count(&conn->listener->counters.refused);
    ended(conn, VNX_ERR_MISMATCH, cause);
}

/* The peer has missed a deadline. */
static void
expire(vnxi_meta_conn_t *conn, const char *cause)
{
    vnxi_meta_count(&conn->listener->counters.timed_out);
    ended(conn, VNX_ERR_TIMEOUT, cause);
}

bool
vnxi_meta_conn_evict(void *arg)
{
    vnx_listener_t *listener = arg;
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
    const char *cause = loop->perform(conn, bytes + VNXI_META_HEADER, len);
    evbuffer_drain(input, whole);
    conn->is_proven = true;
    conn->is_in_frame = false;
    conn_list(conn, conn->is_ours ? &loop->targets : &loop->known);
    return cause;
}

/* May more commands of this connection be handled? */
static bool
has_room(const vnxi_meta_conn_t *conn)
{
    return conn->replies < VNXI_META_REPLIES_MAX &&
           vnxi_meta_source_has_room(conn->listener, conn->source);
}

/* Handle complete frames while there is room.  *pause_p: there is none.  NULL,
 * or the reason to close the connection. */
static const char *
take_frames(vnxi_meta_conn_t *conn, bool *pause_p)
{
    struct evbuffer *input = bufferevent_get_input(conn->bev);
    unsigned char header[VNXI_META_HEADER];
    const char *cause = NULL;

    while (cause == NULL && !(*pause_p = !has_room(conn)) &&
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
set_paused(vnxi_meta_conn_t *conn, bool pause)
{
    if (pause != conn->is_paused) {
        conn->is_paused = pause;
        (pause ? bufferevent_disable : bufferevent_enable)(conn->bev, EV_READ);
    }
}

static uint64_t
bytes_of(const vnxi_meta_conn_t *conn)
{
    return conn->held + vnxi_meta_source_bytes(conn->listener, conn->source);
}

/* Find the connection that holds most.  NULL: there is none. */
static vnxi_meta_conn_t *
find_largest(const vnxi_meta_loop_t *loop)
{
    const struct vnxi_meta_conns *lists[] = {&loop->strangers, &loop->known,
                                             &loop->targets};
    vnxi_meta_conn_t *conn, *largest = NULL;
    uint64_t most = 0;

    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++) {
        TAILQ_FOREACH(conn, lists[i], link)
        {
            uint64_t bytes = bytes_of(conn);
            if (bytes > most) {
                largest = conn;
                most = bytes;
            }
        }
    }
    return largest;
}

/* Close connections, those that hold most first, until all together hold no
 * more than the limit.  False: `conn` was one of them. */
static bool
shed(vnx_listener_t *listener, const vnxi_meta_conn_t *conn)
{
    bool stays = true;

    while (listener->loop.held + vnxi_meta_loader_bytes(listener) >
           2 * listener->options.max_frame) {
        vnxi_meta_conn_t *largest = find_largest(&listener->loop);
        if (vnxi_meta_loader_drop(listener,
                                  largest != NULL ? bytes_of(largest) : 0)) {
            continue;
        }
        if (largest == NULL) {
            break; /* all bytes are those of commands being carried out */
        }
        stays = stays && largest != conn;
        refuse(largest, VNXI_META_FULL);
    }
    return stays;
}

/* May free the connection, and others. */
static void
look_at_input(vnxi_meta_conn_t *conn)
{
    vnx_listener_t *listener = conn->listener;
    bool pause = false;

    const char *cause = take_frames(conn, &pause);
    if (cause != NULL) {
        refuse(conn, cause);
        return;
    }
    hold(conn, input_len(conn) + conn->reply_bytes);
    if (shed(listener, conn)) {
        set_paused(conn, pause);
        set_in_timer(conn);
    }
}

static void
on_read(struct bufferevent *bev, void *arg)
{
    (void)bev;
    look_at_input(arg);
}

/* Their callbacks are deferred, because each may free connections. */
static void
resume_all(const struct vnxi_meta_conns *conns)
{
    const vnxi_meta_conn_t *conn;
    TAILQ_FOREACH(conn, conns, link)
    {
        if (conn->is_paused) {
            bufferevent_trigger(conn->bev, EV_READ,
                                BEV_TRIG_IGNORE_WATERMARKS |
                                    BEV_OPT_DEFER_CALLBACKS);
        }
    }
}

void
vnxi_meta_resume(vnx_listener_t *listener)
{
    resume_all(&listener->loop.strangers);
    resume_all(&listener->loop.known);
    resume_all(&listener->loop.targets);
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
    vnxi_meta_check_end(&conn->listener->loop);
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
        ended(conn, VNX_ERR_BACKEND, cause);
    }
}

/* -- Deadlines ------------------------------------------------------------ */

#define CUT_FRAME "the rest of a frame did not arrive in time"

static void
on_in_deadline(evutil_socket_t fd, short what, void *arg)
{
    (void)fd, (void)what;
    expire(arg, CUT_FRAME);
}

static void
on_out_deadline(evutil_socket_t fd, short what, void *arg)
{
    (void)fd, (void)what;
    vnxi_meta_conn_t *conn = arg;

    if (conn->bev == NULL) {
        ended(conn, VNX_ERR_TIMEOUT,
              conn->dial.is_connecting
                  ? "the connection was not established in time"
                  : vnxi_dial_timed_out(&conn->dial));
    } else {
        expire(conn, "the peer did not receive a frame in time");
    }
}

/* Whatever else the peer sends does not extend the time for the reply. */
static void
on_reply_deadline(evutil_socket_t fd, short what, void *arg)
{
    (void)fd, (void)what;
    vnxi_meta_conn_t *conn = arg;

    expire(conn,
           conn->is_in_frame ? CUT_FRAME : "no metadata arrived in time");
}

/* -- Creation ------------------------------------------------------------- */

/* Create a connection to or from host:port, in that list.  NULL: out of
 * memory. */
static vnxi_meta_conn_t *
conn_new(vnx_listener_t *listener, struct vnxi_meta_conns *list,
         const char *host, int port)
{
    struct event_base *base = listener->loop.super.base;
    size_t host_size = strlen(host) + 1;
    vnxi_meta_conn_t *conn = calloc(1, sizeof *conn + host_size);
    if (conn == NULL) {
        return NULL;
    }
    conn->listener = listener;
    conn->is_ours = list == &listener->loop.targets;
    conn->fd = -1;
    conn->port = port;
    memcpy(conn->host, host, host_size);
    TAILQ_INIT(&conn->out);
    TAILQ_INIT(&conn->awaiting);
    vnxi_endpoint_text(conn->endpoint, sizeof conn->endpoint, host, port);
    conn->source = vnxi_meta_source_new(conn->endpoint);
    conn->in_timer = evtimer_new(base, on_in_deadline, conn);
    conn->out_timer = evtimer_new(base, on_out_deadline, conn);
    conn->reply_timer = evtimer_new(base, on_reply_deadline, conn);
    if (conn->source == NULL || conn->in_timer == NULL ||
        conn->out_timer == NULL || conn->reply_timer == NULL) {
        free_memory(conn);
        return NULL;
    }
    conn_list(conn, list);
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

/* Take over a connected `fd` and start reading and writing.  False: out of
 * memory. */
static bool
conn_open(vnxi_meta_conn_t *conn, int fd)
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

void
vnxi_meta_conn_accept(void *arg, int fd, const vnxi_address_t *from)
{
    vnx_listener_t *listener = arg;
    vnxi_meta_loop_t *loop = &listener->loop;
    char host[VNXI_ADDRESS_TEXT];

    vnxi_fork_fd_own(fd);
    vnxi_meta_count(&listener->counters.accepted);
    if (loop->accepted >= listener->options.max_connections) {
        vnxi_meta_conn_evict(listener);
    }
    vnxi_address_text(from, host);
    vnxi_meta_conn_t *conn =
        conn_new(listener, &loop->strangers, host, vnxi_address_port(from));
    if (conn == NULL) {
        vnxi_fork_fd_close(fd);
    } else if (!conn_open(conn, fd)) {
        vnxi_meta_conn_free(conn);
    }
}

/* -- Connecting ----------------------------------------------------------- */

static void connect_step(vnxi_meta_conn_t *conn);

static void
on_dial(evutil_socket_t fd, short what, void *arg)
{
    (void)fd, (void)what;
    connect_step(arg);
}

/* Wait for what the dialler waits for.  False: out of memory. */
static bool
watch(vnxi_meta_conn_t *conn, uint64_t now)
{
    int fd = -1;
    short events;
    uint64_t wake;

    vnxi_dial_wait(&conn->dial, &fd, &events, &wake);
    uint64_t us = wake > now ? (wake - now) / 1000 : 0;
    struct timeval wait = {.tv_sec = (time_t)(us / 1000000),
                           .tv_usec = (suseconds_t)(us % 1000000)};
    conn->dial_event =
        event_new(conn->listener->loop.super.base, fd,
                  events & POLLIN ? EV_READ : EV_WRITE, on_dial, conn);
    return conn->dial_event != NULL &&
           event_add(conn->dial_event, wake == UINT64_MAX ? NULL : &wait) == 0;
}

/* May free the connection, as may all functions below. */
static void
connect_step(vnxi_meta_conn_t *conn)
{
    uint64_t now = vnxi_clock_ns();
    int fd = -1;

    vnxi_loop_event_free(
        conn->dial_event); /* before the dialler closes its fd */
    conn->dial_event = NULL;
    vnx_status_t status = vnxi_dial_step(&conn->dial, now, &fd);
    if (status == VNX_IN_PROG) {
        if (!watch(conn, now)) {
            ended(conn, VNX_ERR_NO_MEMORY, "out of memory");
        }
        return;
    }
    if (status != VNX_OK) {
        ended(conn, status, conn->dial.reason);
        return;
    }
    vnxi_dial_fini(&conn->dial);
    event_del(conn->out_timer);
    if (!conn_open(conn, vnxi_fork_fd_own(fd))) {
        ended(conn, VNX_ERR_NO_MEMORY, "out of memory");
    }
}

static void
begin(vnxi_meta_conn_t *conn)
{
    uint64_t wait = conn->listener->options.timeout_ms * UINT64_C(1000000);

    conn->is_proven = false;
    event_add(conn->out_timer, conn->listener->loop.timeout);
    vnxi_dial_init(&conn->dial, conn->host, conn->port,
                   vnxi_clock_ns() + wait);
    connect_step(conn);
}

/* -- Commands ------------------------------------------------------------- */

static vnxi_meta_conn_t *
find(vnxi_meta_loop_t *loop, const char *host, int port)
{
    vnxi_meta_conn_t *conn;
    TAILQ_FOREACH(conn, &loop->targets, link)
    {
        if (conn->port == port && strcmp(conn->host, host) == 0) {
            break;
        }
    }
    return conn;
}

static void
close_idle(vnxi_meta_loop_t *loop)
{
    vnxi_meta_conn_t *conn;
    TAILQ_FOREACH(conn, &loop->targets, link)
    {
        if (TAILQ_EMPTY(&conn->out) && TAILQ_EMPTY(&conn->awaiting)) {
            vnxi_meta_conn_free(conn);
            return;
        }
    }
}

/* NULL: the limit is reached, or memory ran out. */
static vnxi_meta_conn_t *
target_new(vnx_listener_t *listener, const char *host, int port)
{
    vnxi_meta_loop_t *loop = &listener->loop;

    if (loop->opened >= VNXI_META_TARGETS_MAX) {
        close_idle(loop);
    }
    return loop->opened < VNXI_META_TARGETS_MAX
               ? conn_new(listener, &loop->targets, host, port)
               : NULL;
}

void
vnxi_meta_send(vnx_listener_t *listener, vnxi_meta_frame_t *frame)
{
    vnxi_meta_loop_t *loop = &listener->loop;
    bool is_new = false;

    vnxi_meta_conn_t *conn = find(loop, frame->host, frame->port);
    if (conn == NULL) {
        conn = target_new(listener, frame->host, frame->port);
        is_new = true;
    }
    if (conn == NULL) {
        vnxi_meta_unsent(listener, frame, VNX_ERR_NO_MEMORY,
                         "too many connections");
        return;
    }
    conn_list(conn, &loop->targets);
    vnxi_meta_conn_push(conn, frame);
    if (is_new) {
        begin(conn);
    }
}
