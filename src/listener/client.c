/*
 * Design notes.  One connection per host and port is made by the first command
 * and kept, as in stock NIXL.  A peer that has restarted since then has closed
 * its end, which is usually noticed at once.  A command sent before it is
 * noticed is sent again on a new connection.  It may then be carried out
 * twice, which has the same effect as once.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/fork_fds.h"
#include "listener/listener.h"

static void try_next(vnxi_meta_conn_t *conn);

static void
target_stop(vnxi_meta_target_t *target)
{
    if (target->event != NULL) {
        event_free(target->event);
        target->event = NULL;
    }
    vnxi_lookup_end(target->lookup);
    target->lookup = NULL;
}

void
vnxi_meta_target_fini(vnxi_meta_target_t *target)
{
    target_stop(target);
    free(target->host);
    target->host = NULL;
}

/* False: out of memory. */
static bool
watch(vnxi_meta_conn_t *conn, int fd, short what, event_callback_fn on_event)
{
    vnxi_meta_target_t *target = &conn->target;
    target->event =
        event_new(conn->listener->loop.base, fd, what, on_event, conn);
    return target->event != NULL && event_add(target->event, NULL) == 0;
}

/* -- Resolving ------------------------------------------------------------ */

static void
on_lookup(evutil_socket_t fd, short what, void *arg)
{
    (void)fd, (void)what;
    vnxi_meta_conn_t *conn = arg;
    vnxi_meta_target_t *target = &conn->target;
    const char *reason;

    vnx_status_t status =
        vnxi_lookup_step(target->lookup, &target->addresses, &reason);
    target_stop(target);
    if (status == VNX_OK) {
        try_next(conn);
    } else {
        vnxi_meta_client_failed(conn, status, reason);
    }
}

/* May free the connection, as may all functions below. */
static void
begin(vnxi_meta_conn_t *conn)
{
    vnxi_meta_target_t *target = &conn->target;
    const char *reason;

    conn->state = VNXI_META_RESOLVING;
    conn->is_proven = false;
    target->next = 0;
    event_add(conn->out_timer, conn->listener->loop.timeout);
    vnx_status_t status =
        vnxi_lookup_begin(target->host, target->port, &target->addresses,
                          &target->lookup, &reason);
    if (status == VNX_IN_PROG &&
        !watch(conn, vnxi_lookup_fd(target->lookup), EV_READ, on_lookup)) {
        status = VNX_ERR_NO_MEMORY;
        reason = "out of memory";
    }
    if (status == VNX_OK) {
        try_next(conn);
    } else if (status != VNX_IN_PROG) {
        vnxi_meta_client_failed(conn, status, reason);
    }
}

/* -- Connecting ----------------------------------------------------------- */

static int
socket_error(int fd)
{
    int err = 0;
    socklen_t len = sizeof err;
    return getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &len) == 0 ? err : errno;
}

static void
on_connect(evutil_socket_t fd, short what, void *arg)
{
    (void)what;
    vnxi_meta_conn_t *conn = arg;

    target_stop(&conn->target);
    conn->fd = -1;
    conn->target.error = socket_error((int)fd);
    if (conn->target.error != 0) {
        vnxi_fork_fd_close((int)fd);
        try_next(conn);
        return;
    }
    event_del(conn->out_timer);
    if (!vnxi_meta_conn_open(conn, (int)fd)) {
        vnxi_meta_client_failed(conn, VNX_ERR_NO_MEMORY, "out of memory");
    }
}

/* A connecting socket, or -1 and errno. */
static int
connect_start(const vnxi_address_t *address)
{
    int fd = vnxi_fork_fd_own(
        socket(address->addr.ss_family,
               SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    if (fd < 0) {
        return -1;
    }
    if (connect(fd, (const void *)&address->addr, address->len) != 0 &&
        errno != EINPROGRESS) {
        int saved = errno;
        vnxi_fork_fd_close(fd);
        errno = saved;
        return -1;
    }
    return fd;
}

static void
try_next(vnxi_meta_conn_t *conn)
{
    vnxi_meta_target_t *target = &conn->target;

    conn->state = VNXI_META_CONNECTING;
    while (target->next < target->addresses.count) {
        conn->fd = connect_start(&target->addresses.list[target->next++]);
        if (conn->fd < 0) {
            target->error = errno;
        } else if (watch(conn, conn->fd, EV_WRITE, on_connect)) {
            return;
        } else {
            vnxi_meta_client_failed(conn, VNX_ERR_NO_MEMORY, "out of memory");
            return;
        }
    }
    vnxi_meta_client_failed(conn, VNX_ERR_BACKEND, vnxi_errno(target->error));
}

/* -- Commands ------------------------------------------------------------- */

static vnxi_meta_conn_t *
find(vnxi_meta_loop_t *loop, const char *host, int port)
{
    vnxi_meta_conn_t *conn;
    TAILQ_FOREACH(conn, &loop->targets, link)
    {
        if (conn->target.port == port &&
            strcmp(conn->target.host, host) == 0) {
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
    vnxi_meta_conn_t *conn = loop->opened < VNXI_META_TARGETS_MAX
                                 ? vnxi_meta_conn_new(listener, true)
                                 : NULL;
    if (conn == NULL) {
        return NULL;
    }
    conn->target.port = port;
    conn->target.host = strdup(host);
    vnxi_meta_endpoint(conn->endpoint, host, port);
    vnxi_meta_conn_list(conn, &loop->targets);
    if (conn->target.host == NULL) {
        vnxi_meta_conn_free(conn);
        return NULL;
    }
    return conn;
}

void
vnxi_meta_client_take(vnx_listener_t *listener, vnxi_meta_order_t *order)
{
    vnxi_meta_loop_t *loop = &listener->loop;
    char endpoint[VNXI_META_ENDPOINT];
    bool is_new = false;

    loop->unsent++;
    vnxi_meta_conn_t *conn = find(loop, order->host, order->port);
    if (conn == NULL) {
        conn = target_new(listener, order->host, order->port);
        is_new = true;
    }
    if (conn == NULL) {
        vnxi_meta_endpoint(endpoint, order->host, order->port);
        vnxi_meta_unsent(listener, order->frame, endpoint, VNX_ERR_NO_MEMORY,
                         "too many connections");
        vnxi_meta_loop_left(listener);
    } else {
        vnxi_meta_conn_list(conn, &loop->targets);
        vnxi_meta_conn_push(conn, order->frame);
        if (is_new) {
            begin(conn);
        }
    }
    free(order);
}

/* Move the frames in `from` that may be tried again to `again`; fail the
 * others. */
static void
sort_out(vnxi_meta_conn_t *conn, struct vnxi_meta_frames *from,
         struct vnxi_meta_frames *again, vnx_status_t status,
         const char *cause)
{
    vnx_listener_t *listener = conn->listener;
    bool is_old = conn->is_proven && status == VNX_ERR_BACKEND;
    bool was_unsent = from == &conn->out;
    vnxi_meta_frame_t *frame;

    while ((frame = TAILQ_FIRST(from)) != NULL) {
        TAILQ_REMOVE(from, frame, link);
        if (frame->is_reply) {
            vnxi_meta_conn_drop_reply(conn, frame);
        } else if (is_old && !frame->is_again) {
            frame->is_again = true;
            listener->loop.unsent += !was_unsent;
            TAILQ_INSERT_TAIL(again, frame, link);
        } else {
            vnxi_meta_unsent(listener, frame, conn->endpoint, status, cause);
            if (was_unsent) {
                vnxi_meta_loop_left(listener);
            }
        }
    }
}

void
vnxi_meta_client_failed(vnxi_meta_conn_t *conn, vnx_status_t status,
                        const char *cause)
{
    struct vnxi_meta_frames again = TAILQ_HEAD_INITIALIZER(again);

    target_stop(&conn->target);
    vnxi_meta_conn_cut(conn);
    sort_out(conn, &conn->awaiting, &again, status, cause);
    sort_out(conn, &conn->out, &again, status, cause);
    if (TAILQ_EMPTY(&again)) {
        vnxi_meta_conn_free(conn);
        return;
    }
    TAILQ_CONCAT(&conn->out, &again, link);
    begin(conn);
}

void
vnxi_meta_client_late(vnxi_meta_conn_t *conn)
{
    vnxi_meta_client_failed(
        conn, VNX_ERR_TIMEOUT,
        conn->state == VNXI_META_RESOLVING
            ? "the name service did not answer in time"
            : "the connection was not established in time");
}
