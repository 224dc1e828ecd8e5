/*
 * Design notes.  The thread runs a libevent base that belongs to it.  Callers
 * leave their requests under the lock and write the eventfd.
 *
 * Connections are accepted in batches.  Accepting pauses briefly if the
 * process runs out of resources for it.  So a burst of connections does not
 * starve those being served, and a full descriptor table does not make the
 * loop spin.
 *
 * When the thread is told to end, it still sends the commands of callers,
 * within a time limit: a program that invalidates its metadata and then closes
 * the agent relies on that.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/error.h"
#include "base/fork_fds.h"
#include "base/log.h"
#include "base/thread.h"
#include "listener/listener.h"

#define ACCEPT_BATCH 64
#define PAUSE_MS 50

/* -- Accepting ------------------------------------------------------------ */

static void
set_accepting(vnxi_meta_loop_t *loop, bool is_on)
{
    for (size_t i = 0; i < loop->sockets.count; i++) {
        if (loop->acceptors[i] != NULL) {
            (is_on ? evconnlistener_enable
                   : evconnlistener_disable)(loop->acceptors[i]);
        }
    }
}

static void
pause_accepting(vnxi_meta_loop_t *loop, int ms)
{
    struct timeval tv = {.tv_usec = ms * 1000};
    set_accepting(loop, false);
    loop->batch = 0;
    event_add(loop->resume_event, &tv);
}

static void
on_resume(evutil_socket_t fd, short what, void *arg)
{
    (void)fd, (void)what;
    vnxi_meta_loop_t *loop = arg;
    if (!loop->is_ending) {
        set_accepting(loop, true);
    }
}

static void
endpoint_of(const struct sockaddr *addr, int len,
            char text[VNXI_META_ENDPOINT])
{
    vnxi_address_t address = {.len = (socklen_t)len};
    char host[VNXI_ADDRESS_TEXT];

    memcpy(&address.addr, addr, (size_t)len);
    vnxi_address_text(&address, host);
    vnxi_meta_endpoint(text, host, vnxi_address_port(&address));
}

static void
on_accept(struct evconnlistener *acceptor, evutil_socket_t fd,
          struct sockaddr *addr, int len, void *arg)
{
    (void)acceptor;
    vnx_listener_t *listener = arg;
    vnxi_meta_loop_t *loop = &listener->loop;

    vnxi_fork_fd_own((int)fd);
    vnxi_meta_count(&listener->counters.accepted);
    if (loop->accepted >= listener->options.max_connections) {
        vnxi_meta_conn_evict(listener);
    }
    vnxi_meta_conn_t *conn = vnxi_meta_conn_new(listener, false);
    if (conn == NULL) {
        vnxi_fork_fd_close((int)fd);
    } else {
        endpoint_of(addr, len, conn->endpoint);
        vnxi_meta_conn_list(conn, &loop->strangers);
        if (!vnxi_meta_conn_open(conn, (int)fd)) {
            vnxi_meta_conn_free(conn);
        }
    }
    if (++loop->batch >= ACCEPT_BATCH) {
        pause_accepting(loop, 0);
    }
}

static void
on_accept_error(struct evconnlistener *acceptor, void *arg)
{
    (void)acceptor;
    vnx_listener_t *listener = arg;
    int err = EVUTIL_SOCKET_ERROR();

    if ((err != EMFILE && err != ENFILE) || !vnxi_meta_conn_evict(listener)) {
        pause_accepting(&listener->loop, PAUSE_MS);
    }
}

static void
attach(vnx_listener_t *listener, const vnxi_sockets_t *sockets)
{
    vnxi_meta_loop_t *loop = &listener->loop;

    loop->sockets = *sockets;
    for (size_t i = 0; i < sockets->count; i++) {
        struct evconnlistener *acceptor =
            evconnlistener_new(loop->base, on_accept, listener,
                               LEV_OPT_CLOSE_ON_EXEC, 0, sockets->fds[i]);
        loop->acceptors[i] = acceptor;
        if (acceptor == NULL) {
            vnxi_log(VNXI_LOG_ERROR,
                     "metadata listener: port %d: out of memory",
                     sockets->port);
        } else {
            evconnlistener_set_error_cb(acceptor, on_accept_error);
        }
    }
}

/* -- Requests of callers -------------------------------------------------- */

static void
end(vnxi_meta_loop_t *loop)
{
    struct timeval tv = {.tv_sec = VNXI_META_LINGER_MS / 1000,
                         .tv_usec = VNXI_META_LINGER_MS % 1000 * 1000};

    loop->is_ending = true;
    set_accepting(loop, false);
    if (loop->unsent == 0) {
        event_base_loopbreak(loop->base);
    } else {
        event_add(loop->linger_event, &tv);
    }
}

void
vnxi_meta_loop_left(vnx_listener_t *listener)
{
    vnxi_meta_loop_t *loop = &listener->loop;
    loop->unsent--;
    if (loop->is_ending && loop->unsent == 0) {
        event_base_loopbreak(loop->base);
    }
}

static void
on_wake(evutil_socket_t fd, short what, void *arg)
{
    (void)what;
    vnx_listener_t *listener = arg;
    struct vnxi_meta_orders orders = TAILQ_HEAD_INITIALIZER(orders);
    vnxi_meta_order_t *order;
    uint64_t count;

    ssize_t got = read((int)fd, &count, sizeof count);
    (void)got; /* the count does not matter */
    vnxi_mutex_lock(&listener->lock);
    TAILQ_CONCAT(&orders, &listener->inbox, link);
    vnxi_sockets_t sockets = listener->new_sockets;
    listener->new_sockets.count = 0;
    bool is_stopping = listener->is_stopping;
    vnxi_mutex_unlock(&listener->lock);

    if (sockets.count > 0) {
        attach(listener, &sockets);
    }
    while ((order = TAILQ_FIRST(&orders)) != NULL) {
        TAILQ_REMOVE(&orders, order, link);
        vnxi_meta_client_take(listener, order);
    }
    if (is_stopping && !listener->loop.is_ending) {
        end(&listener->loop);
    }
}

void
vnxi_meta_loop_wake(vnx_listener_t *listener)
{
    uint64_t one = 1;

    if (!vnxi_fds_lost(listener->fds)) {
        ssize_t written = write(listener->wake_fd, &one, sizeof one);
        (void)written; /* a full counter is readable too */
    }
}

/* -- Life ----------------------------------------------------------------- */

static void *
loop_main(void *arg)
{
    vnx_listener_t *listener = arg;
    pthread_setname_np(pthread_self(), "vnx-listener");
    if (event_base_dispatch(listener->loop.base) != 0) {
        vnxi_log(VNXI_LOG_ERROR, "metadata listener: the loop ended: %s",
                 vnxi_errno(errno));
    }
    return NULL;
}

static bool
create_events(vnx_listener_t *listener)
{
    vnxi_meta_loop_t *loop = &listener->loop;
    uint32_t ms = listener->options.timeout_ms;
    struct timeval tv = {.tv_sec = ms / 1000,
                         .tv_usec = (suseconds_t)(ms % 1000) * 1000};

    TAILQ_INIT(&loop->strangers);
    TAILQ_INIT(&loop->known);
    TAILQ_INIT(&loop->targets);
    listener->fds = vnxi_fds_epoch();
    loop->base = vnxi_loop_base_new();
    listener->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (loop->base == NULL || listener->wake_fd < 0) {
        return false;
    }
    loop->timeout = event_base_init_common_timeout(loop->base, &tv);
    loop->resume_event = evtimer_new(loop->base, on_resume, loop);
    loop->linger_event =
        evtimer_new(loop->base, vnxi_loop_on_stop, loop->base);
    loop->wake_event = event_new(loop->base, listener->wake_fd,
                                 EV_READ | EV_PERSIST, on_wake, listener);
    return loop->timeout != NULL && loop->resume_event != NULL &&
           loop->linger_event != NULL && loop->wake_event != NULL &&
           event_add(loop->wake_event, NULL) == 0;
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
    for (size_t i = 0; i < loop->sockets.count; i++) {
        if (loop->acceptors[i] != NULL) {
            evconnlistener_free(loop->acceptors[i]);
        }
    }
    vnxi_sockets_close(&loop->sockets);
    vnxi_loop_event_free(loop->wake_event);
    vnxi_loop_event_free(loop->resume_event);
    vnxi_loop_event_free(loop->linger_event);
    vnxi_loop_base_free(loop->base);
    if (listener->wake_fd >= 0) {
        close(listener->wake_fd);
    }
    memset(loop, 0, sizeof *loop);
    listener->wake_fd = -1;
}

vnx_status_t
vnxi_meta_loop_start(vnx_listener_t *listener, const char *operation,
                     vnx_error_t *error)
{
    const char *what = "creating the event loop";
    int err = 0;

    if (create_events(listener)) {
        what = "starting the thread";
        err = vnxi_thread_start(&listener->thread, loop_main, listener);
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
