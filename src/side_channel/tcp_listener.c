/*
 * Design notes.  Many clients do not stop the service.  Connections are
 * accepted in batches, so that accepting does not starve the clients being
 * served.  If the table of connections is full, or the process is out of file
 * descriptors, the longest idle connection is closed.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/error.h"
#include "net/loop.h"
#include "side_channel/tcp.h"

#define ACCEPT_BATCH 64

/* -- Accepting ------------------------------------------------------------ */

static void
set_accepting(vnxi_server_t *super, bool is_on)
{
    vnxi_tcp_listener_t *listener = (vnxi_tcp_listener_t *)super;

    for (size_t i = 0; i < super->sockets.count; i++) {
        if (is_on) {
            event_add(listener->accept_events[i], NULL);
        } else {
            event_del(listener->accept_events[i]);
        }
    }
}

static bool
evict(vnxi_server_t *super)
{
    return vnxi_tcp_conn_evict((vnxi_tcp_listener_t *)super);
}

/* Does this error of accept() concern only the one client, which is gone? */
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
    if (listener->super.rate != NULL &&
        !vnxi_rate_take(listener->super.rate, from, vnxi_clock_ns())) {
        vnxi_stat_add(&listener->super.stats->accepted);
        vnxi_stat_refused(listener->super.stats,
                          VNX_SIDE_CHANNEL_REFUSED_RATE);
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
        } else if (!is_clients(errno)) {
            vnxi_server_starved(&listener->super, fd, errno);
            return;
        }
    }
}

/* -- Creation and end ----------------------------------------------------- */

/* Free a listener whose creation may be incomplete.  No thread runs. */
static void
listener_free(vnxi_server_t *super)
{
    vnxi_tcp_listener_t *listener = (vnxi_tcp_listener_t *)super;

    vnxi_tcp_conn_close_all(listener);
    for (size_t i = 0; i < VNXI_ADDRESSES_MAX; i++) {
        vnxi_loop_event_free(listener->accept_events[i]);
    }
    vnxi_server_fini(&listener->super);
    free(listener);
}

/* All clients have the same timeout, so libevent can keep them in a queue
 * instead of a heap of thousands. */
static const struct timeval *
common_timeout(struct event_base *base, uint32_t ms)
{
    struct timeval tv = {.tv_sec = ms / 1000,
                         .tv_usec = (suseconds_t)(ms % 1000) * 1000};
    return event_base_init_common_timeout(base, &tv);
}

static bool
create_events(vnxi_server_t *super)
{
    vnxi_tcp_listener_t *listener = (vnxi_tcp_listener_t *)super;
    const vnx_side_channel_options_t *options = listener->super.options;
    const vnxi_sockets_t *sockets = &listener->super.sockets;
    struct event_base *base = listener->super.base;

    listener->timeout = common_timeout(base, options->client_timeout_ms);
    if (options->idle_timeout_ms < options->client_timeout_ms) {
        listener->idle = common_timeout(base, options->idle_timeout_ms);
    }
    for (size_t i = 0; i < sockets->count; i++) {
        struct event *event = event_new(
            base, sockets->fds[i], EV_READ | EV_PERSIST, on_accept, listener);
        listener->accept_events[i] = event;
        if (event == NULL || event_add(event, NULL) != 0) {
            return false;
        }
    }
    return listener->timeout != NULL;
}

static const vnxi_server_ops_t server_ops = {
    .accept = set_accepting,
    .evict = evict,
    .begin = create_events,
    .free = listener_free,
};

static vnxi_tcp_listener_t *
listener_new(const vnxi_tcp_protocol_t *protocol)
{
    vnxi_tcp_listener_t *listener = calloc(1, sizeof *listener);
    if (listener == NULL) {
        return NULL;
    }
    listener->protocol = protocol;
    for (int i = 0; i < VNXI_TCP_STATES; i++) {
        TAILQ_INIT(&listener->conns[i]);
    }
    return listener;
}

vnx_status_t
vnxi_tcp_listen_for(const vnxi_tcp_protocol_t *protocol,
                    const vnxi_listen_params_t *params,
                    vnxi_listener_t **out_p, vnx_error_t *error)
{
    vnxi_tcp_listener_t *listener = listener_new(protocol);
    if (listener == NULL) {
        return vnxi_error_no_memory(error, VNXI_OP_START, sizeof *listener);
    }
    return vnxi_server_open(&listener->super, &server_ops,
                            protocol->thread_name, params, out_p, error);
}
