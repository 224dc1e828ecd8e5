/*
 * Design notes.  Callers leave their requests under the lock and wake the
 * thread.
 *
 * When the thread is told to end, it still sends the commands of callers,
 * within a time limit: a program that invalidates its metadata and then closes
 * the agent relies on that.
 */
#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "base/fork_fds.h"
#include "base/log.h"
#include "listener/listener.h"

/* -- Accepting ------------------------------------------------------------ */

static void
ended(vnxi_meta_conn_t *conn, vnx_status_t status, const char *cause)
{
    (void)status, (void)cause;
    vnxi_meta_conn_free(conn);
}

static const vnxi_meta_conn_ops_t accepted_ops = {
    .perform = vnxi_meta_perform,
    .ended = ended,
};

static void
on_accept(void *arg, int fd, const vnxi_address_t *from)
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
    vnxi_meta_conn_t *conn = vnxi_meta_conn_new(listener, &accepted_ops, false,
                                                host, vnxi_address_port(from));
    if (conn == NULL) {
        vnxi_fork_fd_close(fd);
        return;
    }
    vnxi_meta_conn_list(conn, &loop->strangers);
    if (!vnxi_meta_conn_open(conn, fd)) {
        vnxi_meta_conn_free(conn);
    }
}

static bool
evict(void *listener)
{
    return vnxi_meta_conn_evict(listener);
}

/* Without `refused`: a peer waits until there is a descriptor for it. */
static const vnxi_acceptor_ops_t acceptor_ops = {
    .accept = on_accept,
    .evict = evict,
};

static void
listen_on(vnx_listener_t *listener, const vnxi_sockets_t *sockets)
{
    vnxi_meta_loop_t *loop = &listener->loop;

    if (!vnxi_acceptor_open(&loop->acceptor, &loop->super, sockets,
                            &acceptor_ops)) {
        vnxi_log(VNXI_LOG_ERROR, "metadata listener: port %d: out of memory",
                 sockets->port);
    }
}

/* -- Requests of callers -------------------------------------------------- */

static void
end(vnxi_meta_loop_t *loop)
{
    struct timeval tv = {.tv_sec = VNXI_META_LINGER_MS / 1000,
                         .tv_usec = VNXI_META_LINGER_MS % 1000 * 1000};

    loop->is_ending = true;
    vnxi_acceptor_close(&loop->acceptor);
    if (loop->unsent == 0) {
        event_base_loopbreak(loop->super.base);
    } else {
        event_add(loop->linger_event, &tv);
    }
}

static void
on_wake(void *arg)
{
    vnx_listener_t *listener = arg;
    struct vnxi_meta_frames frames = TAILQ_HEAD_INITIALIZER(frames);
    vnxi_meta_frame_t *frame;

    vnxi_mutex_lock(&listener->lock);
    TAILQ_CONCAT(&frames, &listener->inbox, link);
    vnxi_sockets_t sockets = listener->new_sockets;
    listener->new_sockets.count = 0;
    bool is_stopping = listener->is_stopping;
    vnxi_mutex_unlock(&listener->lock);

    if (sockets.count > 0) {
        listen_on(listener, &sockets);
    }
    while ((frame = TAILQ_FIRST(&frames)) != NULL) {
        TAILQ_REMOVE(&frames, frame, link);
        vnxi_meta_client_take(listener, frame);
    }
    if (is_stopping && !listener->loop.is_ending) {
        end(&listener->loop);
    }
}

/* -- Life ----------------------------------------------------------------- */

static void
on_linger(evutil_socket_t fd, short what, void *base)
{
    (void)fd, (void)what;
    event_base_loopbreak(base);
}

static bool
create_events(vnx_listener_t *listener)
{
    vnxi_meta_loop_t *loop = &listener->loop;

    TAILQ_INIT(&loop->strangers);
    TAILQ_INIT(&loop->known);
    TAILQ_INIT(&loop->targets);
    if (!vnxi_loop_init(&loop->super, on_wake, listener)) {
        return false;
    }
    loop->timeout =
        vnxi_loop_timeout(&loop->super, listener->options.timeout_ms);
    loop->linger_event =
        evtimer_new(loop->super.base, on_linger, loop->super.base);
    return loop->timeout != NULL && loop->linger_event != NULL;
}

static void
free_all(struct vnxi_meta_conns *conns)
{
    vnxi_meta_conn_t *conn;
    while ((conn = TAILQ_FIRST(conns)) != NULL) {
        vnxi_meta_conn_free(conn);
    }
}

void
vnxi_meta_loop_fini(vnx_listener_t *listener)
{
    vnxi_meta_loop_t *loop = &listener->loop;

    free_all(&loop->strangers);
    free_all(&loop->known);
    free_all(&loop->targets);
    vnxi_acceptor_close(&loop->acceptor);
    vnxi_loop_event_free(loop->linger_event);
    vnxi_loop_fini(&loop->super);
    memset(loop, 0, sizeof *loop);
}

vnx_status_t
vnxi_meta_loop_start(vnx_listener_t *listener, const char *operation,
                     vnx_error_t *error)
{
    const char *what = "creating the event loop";
    int err = 0;

    if (create_events(listener)) {
        what = "starting the thread";
        err = vnxi_loop_start(&listener->loop.super, "vnx-listener");
        if (err == 0) {
            return VNX_OK;
        }
    } else {
        err = errno;
    }
    vnxi_meta_loop_fini(listener);
    return vnxi_error_set(error, VNX_ERR_BACKEND, operation,
                          "metadata listener: %s: %s", what, vnxi_errno(err));
}
