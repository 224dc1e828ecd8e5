/*
 * Design notes.  A listener has one thread, which runs a libevent base; the
 * base, the connections and everything else of the listener belong to it, so
 * there is no lock and libevent needs none either.  Other threads only write
 * the eventfd that ends the loop and join.
 *
 * A crowd does not stop service: accepting is done in batches, so that it
 * never starves those who are being served; where the table of connections is
 * full, or the process is out of file descriptors, the longest idle one gives
 * way; and where none can, a reserve fd is given up for the moment it takes to
 * refuse the newcomer.
 */

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/error.h"
#include "base/log.h"
#include "side_channel/loop.h"
#include "side_channel/reserve.h"
#include "side_channel/tcp.h"
#include "side_channel/tcp_tls.h"

#define ACCEPT_BATCH 64
#define PAUSE_MS 50 /* of accepting, when the system has nothing to give */

static void
accept_pause(vnxi_tcp_listener_t *listener)
{
    struct timeval tv = {.tv_usec = PAUSE_MS * 1000};
    for (size_t i = 0; i < listener->sockets.count; i++) {
        event_del(listener->accept_events[i]);
    }
    event_add(listener->resume_event, &tv);
}

static void
on_resume(evutil_socket_t fd, short what, void *arg)
{
    (void)fd, (void)what;
    vnxi_tcp_listener_t *listener = arg;
    for (size_t i = 0; i < listener->sockets.count; i++) {
        event_add(listener->accept_events[i], NULL);
    }
}

static bool
is_readable(int fd)
{
    struct pollfd entry = {.fd = fd, .events = POLLIN};
    return poll(&entry, 1, 0) > 0;
}

/* No fd is left; accept() says so whether or not a client is there.  One that
 * was left waiting would keep the socket readable and the loop spinning, so it
 * is taken and closed. */
static void
accept_starved(vnxi_tcp_listener_t *listener, int fd)
{
    if (!is_readable(fd)) {
        return;
    }
    if (vnxi_tcp_conn_evict(listener)) {
        return; /* accepted in the next round */
    }
    if (listener->reserve_fd >= 0) {
        vnxi_reserve_refuse(listener->reserve_fd, fd, listener->stats);
    }
    listener->reserve_fd = vnxi_reserve_open();
    if (listener->reserve_fd < 0) {
        accept_pause(listener);
    }
}

/* Errors of accept() that concern the one client, which is gone. */
static bool
is_clients(int err)
{
    switch (err) {
    case ECONNABORTED:
    case EINTR:
    case EPROTO:
    case EPERM:
    case ENETDOWN:
    case ENOPROTOOPT:
    case EHOSTDOWN:
    case ENONET:
    case EHOSTUNREACH:
    case ENETUNREACH:
        return true;
    default:
        return false;
    }
}

static void
welcome(vnxi_tcp_listener_t *listener, int client,
        const struct sockaddr_storage *from)
{
    if (listener->rate != NULL &&
        !vnxi_rate_take(listener->rate, from, vnxi_clock_ns())) {
        vnxi_stat_add(&listener->stats->accepted);
        vnxi_stat_refused(listener->stats, VNX_SIDE_CHANNEL_REFUSED_RATE);
        close(client);
        return;
    }
    vnxi_tcp_conn_open(listener, client);
}

static void
on_accept(evutil_socket_t fd, short what, void *arg)
{
    (void)what;
    vnxi_tcp_listener_t *listener = arg;

    for (int i = 0; i < ACCEPT_BATCH; i++) {
        struct sockaddr_storage from = {0};
        socklen_t len = sizeof from;
        int client =
            accept4(fd, (void *)&from, &len, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (client >= 0) {
            welcome(listener, client, &from);
        } else if (errno == EAGAIN) {
            return;
        } else if (errno == EMFILE || errno == ENFILE) {
            accept_starved(listener, fd);
            return;
        } else if (!is_clients(errno)) {
            accept_pause(listener);
            return;
        }
    }
}

static void *
listener_main(void *arg)
{
    vnxi_tcp_listener_t *listener = arg;
    pthread_setname_np(pthread_self(), listener->protocol->thread_name);
    if (event_base_dispatch(listener->base) != 0) {
        vnxi_log(VNXI_LOG_ERROR, "side channel on port %d: the loop ended: %s",
                 listener->super.port, strerror(errno));
    }
    return NULL;
}

/* A listener in any stage of its making, and no thread. */
static void
listener_free(vnxi_tcp_listener_t *listener)
{
    vnxi_tcp_conn_close_all(listener);
    for (size_t i = 0; i < VNXI_ADDRESSES_MAX; i++) {
        vnxi_loop_event_free(listener->accept_events[i]);
    }
    vnxi_loop_event_free(listener->resume_event);
    vnxi_loop_event_free(listener->stop_event);
    vnxi_tcp_tls_stop(listener);
    vnxi_rate_free(listener->rate);
    vnxi_sockets_close(&listener->sockets);
    vnxi_loop_base_free(listener->base);
    if (listener->stop_fd >= 0) {
        close(listener->stop_fd);
    }
    if (listener->reserve_fd >= 0) {
        close(listener->reserve_fd);
    }
    free(listener);
}

static bool
add_event(struct event **event_p, struct event *event)
{
    *event_p = event;
    return event != NULL && event_add(event, NULL) == 0;
}

/* All clients have one timeout: a queue, not a heap of thousands. */
static const struct timeval *
common_timeout(struct event_base *base, uint32_t ms)
{
    struct timeval tv = {.tv_sec = ms / 1000,
                         .tv_usec = (suseconds_t)(ms % 1000) * 1000};
    return event_base_init_common_timeout(base, &tv);
}

static bool
create_events(vnxi_tcp_listener_t *listener)
{
    const vnx_side_channel_options_t *options = listener->options;
    struct event_base *base = listener->base = vnxi_loop_base_new();
    if (base == NULL) {
        return false;
    }
    listener->timeout = common_timeout(base, options->client_timeout_ms);
    if (options->idle_timeout_ms < options->client_timeout_ms) {
        listener->idle = common_timeout(base, options->idle_timeout_ms);
    }
    listener->resume_event = evtimer_new(base, on_resume, listener);
    listener->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    listener->reserve_fd = vnxi_reserve_open();
    if (listener->timeout == NULL || listener->resume_event == NULL ||
        listener->stop_fd < 0 || listener->reserve_fd < 0) {
        return false;
    }
    for (size_t i = 0; i < listener->sockets.count; i++) {
        if (!add_event(&listener->accept_events[i],
                       event_new(base, listener->sockets.fds[i],
                                 EV_READ | EV_PERSIST, on_accept, listener))) {
            return false;
        }
    }
    return add_event(
        &listener->stop_event,
        event_new(base, listener->stop_fd, EV_READ, vnxi_loop_on_stop, base));
}

static vnxi_tcp_listener_t *
listener_new(const vnxi_tcp_protocol_t *protocol,
             const vnxi_listen_params_t *params)
{
    vnxi_tcp_listener_t *listener = calloc(1, sizeof *listener);
    if (listener == NULL) {
        return NULL;
    }
    listener->protocol = protocol;
    listener->options = params->options;
    listener->stats = params->stats;
    listener->book = params->book;
    listener->stop_fd = listener->reserve_fd = -1;
    for (int i = 0; i < VNXI_TCP_STATES; i++) {
        TAILQ_INIT(&listener->conns[i]);
    }
    if (params->options->max_rate > 0) {
        listener->rate = vnxi_rate_create(params->options->max_rate);
        if (listener->rate == NULL) {
            free(listener);
            return NULL;
        }
    }
    return listener;
}

vnx_status_t
vnxi_tcp_listen_for(const vnxi_tcp_protocol_t *protocol,
                    const vnxi_listen_params_t *params,
                    vnxi_listener_t **out_p, vnx_error_t *error)
{
    vnxi_tcp_listener_t *listener = listener_new(protocol, params);
    if (listener == NULL) {
        return vnxi_error_no_memory(error, VNXI_OP_START, sizeof *listener);
    }
    vnx_status_t status = vnxi_tcp_tls_start(listener, error);
    if (status == VNX_OK) {
        status = vnxi_sockets_open(params, &listener->sockets, error);
    }
    if (status != VNX_OK) {
        goto err_free;
    }
    listener->super.port = listener->sockets.port;
    if (!create_events(listener)) {
        status = vnxi_start_failed(params, error, "making the loop", errno);
        goto err_free;
    }
    int ret = vnxi_loop_thread_new(&listener->thread, listener_main, listener);
    if (ret != 0) {
        status = vnxi_start_failed(params, error, "starting the thread", ret);
        goto err_free;
    }
    *out_p = &listener->super;
    return VNX_OK;

err_free:
    listener_free(listener);
    return status;
}

void
vnxi_tcp_stop(vnxi_listener_t *super)
{
    vnxi_tcp_listener_t *listener = (vnxi_tcp_listener_t *)super;
    uint64_t one = 1;

    ssize_t written = write(listener->stop_fd, &one, sizeof one);
    (void)written; /* an eventfd of ours takes a 1 */
    pthread_join(listener->thread, NULL);
    listener_free(listener);
}
