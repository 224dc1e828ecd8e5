/*
 * Design notes.  A channel has at most one listener.  The lock guards the
 * pointer to it and is held while one is stopped (which is short: no client is
 * waited for), so that whoever returns from a shutdown finds the port free.
 * It is not held while one is started, since a host's name may have to be
 * looked up; `starting` keeps a second start out meanwhile, and a shutdown
 * that comes then is one that came before.
 *
 * Calls hold a reference: freeing a channel while other threads are inside it
 * is safe, the last one out destroys it.  A request needs nothing of the
 * channel but two constants, so it works in a forked child too, where the
 * listener and its thread are the parent's.
 */
#include "side_channel/side_channel.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/fork.h"
#include "side_channel/transport.h"

#define CONNECTIONS_MAX 4096

struct vnx_side_channel {
    atomic_size_t refs;
    const vnxi_transport_t *transport;
    vnx_side_channel_options_t options; /* all set; constant */
    unsigned forks;                     /* at the making */
    atomic_int port;                    /* bound; 0: not running */
    vnxi_side_stats_t stats;
    pthread_mutex_t lock;
    vnxi_listener_t *listener; /* protected by lock */
    bool starting;             /* protected by lock */
};

static const vnxi_transport_t *
transport_find(vnx_side_channel_kind_t kind)
{
    switch (kind) {
#ifdef VNXI_SIDE_CHANNEL_TCP
    case VNX_SIDE_CHANNEL_TCP:
        return &vnxi_transport_tcp;
#endif
    default:
        return NULL;
    }
}

/* Half of the file descriptors that the process may have, since it has other
 * uses for them. */
static uint32_t
default_connections(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 ||
        limit.rlim_cur / 2 >= CONNECTIONS_MAX) {
        return CONNECTIONS_MAX;
    }
    return limit.rlim_cur < 2 ? 1 : (uint32_t)(limit.rlim_cur / 2);
}

static vnx_status_t
options_read(const vnx_side_channel_options_t *given,
             vnx_side_channel_options_t *out_p, vnx_error_t *error)
{
    vnx_side_channel_options_t all = {0};

    if (given != NULL) {
        if (given->size < sizeof given->size || given->size > sizeof all) {
            return vnxi_error_set(error, VNX_ERR_INVALID_PARAM, VNXI_OP_CREATE,
                                  "options.size is %zu, this library knows "
                                  "up to %zu",
                                  given->size, sizeof all);
        }
        memcpy(&all, given, given->size);
    }
    all.size = sizeof all;
    if (all.max_frame == 0) {
        all.max_frame = VNX_SIDE_CHANNEL_MAX_FRAME;
    }
    if (all.max_connections == 0) {
        all.max_connections = default_connections();
    }
    if (all.client_timeout_ms == 0) {
        all.client_timeout_ms = VNX_SIDE_CHANNEL_TIMEOUT_MS;
    }
    *out_p = all;
    return VNX_OK;
}

vnx_status_t
vnx_side_channel_create(vnx_side_channel_kind_t kind,
                        const vnx_side_channel_options_t *options,
                        vnx_side_channel_t **out_p, vnx_error_t *error)
{
    vnx_side_channel_options_t all;
    vnx_status_t status = options_read(options, &all, error);
    if (status != VNX_OK) {
        return status;
    }
    const vnxi_transport_t *transport = transport_find(kind);
    if (transport == NULL) {
        return vnxi_error_set(error, VNX_ERR_NOT_SUPPORTED, VNXI_OP_CREATE,
                              "transport %d is not in this build", (int)kind);
    }
    vnx_side_channel_t *channel = calloc(1, sizeof *channel);
    if (channel == NULL) {
        return vnxi_error_no_memory(error, VNXI_OP_CREATE, sizeof *channel);
    }
    atomic_init(&channel->refs, 1);
    channel->transport = transport;
    channel->options = all;
    channel->forks = vnxi_fork_count();
    pthread_mutex_init(&channel->lock, NULL);
    *out_p = channel;
    return VNX_OK;
}

static void
stop_lock_held(vnx_side_channel_t *channel)
{
    if (channel->listener != NULL) {
        atomic_store(&channel->port, 0);
        channel->transport->stop(channel->listener);
        channel->listener = NULL;
    }
}

static void
channel_enter(vnx_side_channel_t *channel)
{
    atomic_fetch_add_explicit(&channel->refs, 1, memory_order_relaxed);
}

static void
channel_leave(vnx_side_channel_t *channel)
{
    if (atomic_fetch_sub_explicit(&channel->refs, 1, memory_order_acq_rel) !=
        1) {
        return;
    }
    stop_lock_held(channel); /* nobody else is left */
    pthread_mutex_destroy(&channel->lock);
    free(channel);
}

/* The lock may be held for ever and the listener's memory in any state. */
static bool
is_parents(const vnx_side_channel_t *channel)
{
    return vnxi_fork_crossed(channel->forks);
}

void
vnx_side_channel_free(vnx_side_channel_t *channel)
{
    if (channel == NULL || is_parents(channel)) {
        return;
    }
    vnx_side_channel_shutdown(channel);
    channel_leave(channel);
}

static void
endpoint_write(char *buffer, size_t size, const char *host, int port)
{
    const char *format = strchr(host, ':') != NULL ? "[%s]:%d" : "%s:%d";
    snprintf(buffer, size, format, host, port);
}

static vnx_status_t
start_check(const vnx_side_channel_t *channel,
            const vnxi_listen_params_t *params, vnx_error_t *error)
{
    if (is_parents(channel)) {
        return vnxi_error_set(error, VNX_ERR_NOT_ALLOWED, VNXI_OP_START,
                              "the side channel was made before a fork; make "
                              "one in this process");
    }
    if (params->port < 0 || params->port > 65535) {
        return vnxi_error_set(error, VNX_ERR_INVALID_PARAM, VNXI_OP_START,
                              "port %d is not in 0 to 65535", params->port);
    }
    if (params->length > channel->options.max_frame) {
        return vnxi_error_set(
            error, VNX_ERR_INVALID_PARAM, VNXI_OP_START,
            "metadata of %zu bytes is above max_frame (%" PRIu32 ")",
            params->length, channel->options.max_frame);
    }
    if (params->metadata == NULL && params->length > 0) {
        return vnxi_error_set(error, VNX_ERR_INVALID_PARAM, VNXI_OP_START,
                              "metadata is NULL, its length is %zu",
                              params->length);
    }
    return VNX_OK;
}

static vnx_status_t
start_begin(vnx_side_channel_t *channel, vnx_error_t *error)
{
    vnx_status_t status = VNX_OK;

    pthread_mutex_lock(&channel->lock);
    if (channel->listener != NULL || channel->starting) {
        status = vnxi_error_set(error, VNX_ERR_NOT_ALLOWED, VNXI_OP_START,
                                "the listener is already running");
    } else {
        channel->starting = true;
    }
    pthread_mutex_unlock(&channel->lock);
    return status;
}

/* `listener` NULL: it did not come to be. */
static void
start_end(vnx_side_channel_t *channel, vnxi_listener_t *listener)
{
    pthread_mutex_lock(&channel->lock);
    channel->starting = false;
    channel->listener = listener;
    atomic_store(&channel->port, listener != NULL ? listener->port : 0);
    pthread_mutex_unlock(&channel->lock);
}

vnx_status_t
vnx_side_channel_start(vnx_side_channel_t *channel, const char *host, int port,
                       const void *metadata, size_t length, int *port_p,
                       vnx_error_t *error)
{
    char endpoint[VNX_ERROR_PEER_MAX];
    vnxi_listen_params_t params = {
        .host = host != NULL && host[0] != '\0' ? host : NULL,
        .port = port,
        .endpoint = endpoint,
        .metadata = metadata,
        .length = length,
        .options = channel->options,
        .stats = &channel->stats,
    };
    vnxi_listener_t *listener = NULL;

    vnx_status_t status = start_check(channel, &params, error);
    if (status != VNX_OK) {
        return status;
    }
    endpoint_write(endpoint, sizeof endpoint,
                   params.host != NULL ? params.host : "*", port);
    channel_enter(channel);
    status = start_begin(channel, error);
    if (status == VNX_OK) {
        status = channel->transport->listen(&params, &listener, error);
        if (status == VNX_OK && port_p != NULL) {
            *port_p = listener->port;
        }
        start_end(channel, listener);
    }
    channel_leave(channel);
    return status;
}

void
vnx_side_channel_shutdown(vnx_side_channel_t *channel)
{
    if (is_parents(channel)) {
        return;
    }
    channel_enter(channel);
    pthread_mutex_lock(&channel->lock);
    stop_lock_held(channel);
    pthread_mutex_unlock(&channel->lock);
    channel_leave(channel);
}

int
vnx_side_channel_port(const vnx_side_channel_t *channel)
{
    return is_parents(channel) ? 0 : atomic_load(&channel->port);
}

bool
vnx_side_channel_is_running(const vnx_side_channel_t *channel)
{
    return vnx_side_channel_port(channel) != 0;
}

void
vnx_side_channel_stats(const vnx_side_channel_t *channel,
                       vnx_side_channel_stats_t *stats_p)
{
    const vnxi_side_stats_t *stats = &channel->stats;
    *stats_p = (vnx_side_channel_stats_t){
        .accepted = atomic_load(&stats->accepted),
        .served = atomic_load(&stats->served),
        .refused = atomic_load(&stats->refused),
        .timed_out = atomic_load(&stats->timed_out),
        .evicted = atomic_load(&stats->evicted),
        .open = atomic_load(&stats->open),
    };
}

static vnx_status_t
request_check(const vnxi_side_request_t *request, vnx_error_t *error)
{
    if (request->host == NULL || request->host[0] == '\0') {
        return vnxi_error_set(error, VNX_ERR_INVALID_PARAM, VNXI_OP_REQUEST,
                              "no host");
    }
    if (request->port < 1 || request->port > 65535) {
        return vnxi_error_set(error, VNX_ERR_INVALID_PARAM, VNXI_OP_REQUEST,
                              "port %d is not in 1 to 65535", request->port);
    }
    if (request->timeout_ms <= 0) {
        return vnxi_error_set(error, VNX_ERR_INVALID_PARAM, VNXI_OP_REQUEST,
                              "a timeout of %d ms is not above 0",
                              request->timeout_ms);
    }
    return VNX_OK;
}

vnx_status_t
vnxi_side_channel_request(vnx_side_channel_t *channel,
                          const vnxi_side_request_t *request,
                          void **metadata_p, size_t *length_p,
                          vnx_error_t *error)
{
    char endpoint[VNX_ERROR_PEER_MAX];
    const vnxi_transport_t *transport = channel->transport;
    uint32_t max_frame = channel->options.max_frame;

    vnx_status_t status = request_check(request, error);
    if (status != VNX_OK) {
        return status;
    }
    endpoint_write(endpoint, sizeof endpoint, request->host, request->port);
    uint64_t now = vnxi_clock_ns();
    vnxi_request_params_t params = {
        .host = request->host,
        .port = request->port,
        .endpoint = endpoint,
        .max_frame = max_frame,
        .wait = {.start = now,
                 .deadline = now + (uint64_t)request->timeout_ms * 1000000,
                 .interrupted = request->interrupted,
                 .arg = request->arg},
    };
    return transport->request(&params, metadata_p, length_p, error);
}

vnx_status_t
vnx_side_channel_request(vnx_side_channel_t *channel, const char *host,
                         int port, int timeout_ms, void **metadata_p,
                         size_t *length_p, vnx_error_t *error)
{
    vnxi_side_request_t request = {
        .host = host, .port = port, .timeout_ms = timeout_ms};
    return vnxi_side_channel_request(channel, &request, metadata_p, length_p,
                                     error);
}
