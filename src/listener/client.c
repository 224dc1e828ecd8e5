/*
 * Design notes.  One connection per host and port is made by the first command
 * and kept, as in stock NIXL.  A peer that has restarted since then has closed
 * its end, which is usually noticed at once.  A command sent before it is
 * noticed is sent again on a new connection.  It may then be carried out
 * twice, which has the same effect as once.
 */
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/fork_fds.h"
#include "listener/listener.h"

static void ended(vnxi_meta_conn_t *conn, vnx_status_t status,
                  const char *cause);
static void connect_step(vnxi_meta_conn_t *conn);

/* -- Connecting ----------------------------------------------------------- */

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
    if (!vnxi_meta_conn_open(conn, vnxi_fork_fd_own(fd))) {
        ended(conn, VNX_ERR_NO_MEMORY, "out of memory");
    }
}

static void
begin(vnxi_meta_conn_t *conn, int port)
{
    uint64_t wait = conn->listener->options.timeout_ms * UINT64_C(1000000);

    conn->is_proven = false;
    event_add(conn->out_timer, conn->listener->loop.timeout);
    vnxi_dial_init(&conn->dial, conn->host, port, vnxi_clock_ns() + wait);
    connect_step(conn);
}

/* -- Commands ------------------------------------------------------------- */

static vnxi_meta_conn_t *
find(vnxi_meta_loop_t *loop, const char *host, int port)
{
    vnxi_meta_conn_t *conn;
    TAILQ_FOREACH(conn, &loop->targets, link)
    {
        if (conn->dial.port == port && strcmp(conn->host, host) == 0) {
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

static const vnxi_meta_conn_ops_t client_ops = {
    .perform = vnxi_meta_perform,
    .ended = ended,
};

/* NULL: the limit is reached, or memory ran out. */
static vnxi_meta_conn_t *
target_new(vnx_listener_t *listener, const char *host, int port)
{
    vnxi_meta_loop_t *loop = &listener->loop;

    if (loop->opened >= VNXI_META_TARGETS_MAX) {
        close_idle(loop);
    }
    return loop->opened < VNXI_META_TARGETS_MAX
               ? vnxi_meta_conn_new(listener, &client_ops, true, host, port)
               : NULL;
}

void
vnxi_meta_client_take(vnx_listener_t *listener, vnxi_meta_frame_t *frame)
{
    vnxi_meta_loop_t *loop = &listener->loop;
    bool is_new = false;

    vnxi_meta_frame_entered(listener, frame);
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
    vnxi_meta_conn_list(conn, &loop->targets);
    vnxi_meta_conn_push(conn, frame);
    if (is_new) {
        begin(conn, frame->port);
    }
}

/* Move the commands in `from` that have not failed yet to `again`. */
static void
take_again(vnxi_meta_conn_t *conn, struct vnxi_meta_frames *from,
           struct vnxi_meta_frames *again)
{
    vnxi_meta_frame_t *frame, *next;

    for (frame = TAILQ_FIRST(from); frame != NULL; frame = next) {
        next = TAILQ_NEXT(frame, link);
        if (frame->is_reply || frame->is_again) {
            continue;
        }
        frame->is_again = true;
        if (!frame->is_unsent) {
            vnxi_meta_frame_entered(conn->listener, frame);
        }
        TAILQ_REMOVE(from, frame, link);
        TAILQ_INSERT_TAIL(again, frame, link);
    }
}

/* If a cached connection broke (VNX_ERR_BACKEND), its commands are tried once
 * more on a new one, because the peer may have restarted.  All other commands
 * fail, and the connection is freed. */
static void
ended(vnxi_meta_conn_t *conn, vnx_status_t status, const char *cause)
{
    struct vnxi_meta_frames again = TAILQ_HEAD_INITIALIZER(again);

    vnxi_meta_conn_cut(conn);
    if (conn->is_proven && status == VNX_ERR_BACKEND) {
        take_again(conn, &conn->awaiting, &again);
        take_again(conn, &conn->out, &again);
    }
    vnxi_meta_conn_fail(conn, status, cause);
    if (TAILQ_EMPTY(&again)) {
        vnxi_meta_conn_free(conn);
        return;
    }
    TAILQ_CONCAT(&conn->out, &again, link);
    begin(conn, conn->dial.port);
}
