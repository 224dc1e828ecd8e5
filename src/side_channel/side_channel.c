/*
 * Design notes.  A channel has at most one listener; its table has blobs only
 * as long as it has one.  The lock protects both against starts and shutdowns.
 * It is held while a listener is stopped, so that the port is free when a
 * shutdown returns; stopping is short, because it does not wait for clients.
 * The lock is not held while a listener is started, since that may look up the
 * name of a host.  Meanwhile `starting` refuses a second start, and a shutdown
 * has no effect, as if it had come before the start.
 *
 * Calls hold a reference, so a channel may be freed while other threads are
 * inside it; the last of them destroys it.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/fork.h"
#include "base/mutex.h"
#include "base/params.h"
#include "side_channel/channel.h"

#define OP_SET "vnx_side_channel_set"
#define OP_REMOVE "vnx_side_channel_remove"
#define HOST_VARIABLE "VLLM_NIXL_SIDE_CHANNEL_HOST"
#define PORT_VARIABLE "VLLM_NIXL_SIDE_CHANNEL_PORT"
#define PORT_DEFAULT 5600

#define KINDS (VNX_SIDE_CHANNEL_HTTP + 1)

static const char *const kind_names[KINDS] = {"TCP", "ZMQ", "HTTP"};
static const vnxi_transport_t *const transports[KINDS] = {
    [VNX_SIDE_CHANNEL_TCP] = &vnxi_transport_tcp,
#ifdef VNXI_SIDE_CHANNEL_ZMQ
    [VNX_SIDE_CHANNEL_ZMQ] = &vnxi_transport_zmq,
#endif
#ifdef VNXI_SIDE_CHANNEL_HTTP
    [VNX_SIDE_CHANNEL_HTTP] = &vnxi_transport_http,
#endif
};

/* -- Life ----------------------------------------------------------------- */

vnx_status_t
vnx_side_channel_create(vnx_side_channel_kind_t kind,
                        const vnx_side_channel_options_t *options,
                        vnx_side_channel_t **out_p, vnx_error_t *error)
{
    if ((unsigned)kind >= KINDS || transports[kind] == NULL) {
        return vnxi_error_set(error, VNX_ERR_NOT_SUPPORTED, VNXI_OP_CREATE,
                              "the transport %s is not in this build",
                              (unsigned)kind < KINDS ? kind_names[kind]
                                                     : "of that number");
    }
    vnx_side_channel_t *channel = calloc(1, sizeof *channel);
    if (channel == NULL) {
        return vnxi_error_no_memory(error, VNXI_OP_CREATE, sizeof *channel);
    }
    vnx_status_t status =
        vnxi_options_read(kind, options, &channel->options, error);
    if (status != VNX_OK) {
        free(channel);
        return status;
    }
    atomic_init(&channel->refs, 1);
    channel->transport = transports[kind];
    vnxi_fork_on_child(NULL); /* start counting forks */
    channel->forks = vnxi_fork_count();
    vnxi_blob_table_init(&channel->blobs);
    vnxi_mutex_init(&channel->lock, VNXI_RANK_SIDE_CHANNEL);
    *out_p = channel;
    return VNX_OK;
}

void
vnx_side_channel_free(vnx_side_channel_t *channel)
{
    if (channel == NULL || vnxi_channel_is_parents(channel)) {
        return;
    }
    vnx_side_channel_shutdown(channel);
    vnxi_channel_leave(channel);
}

/* -- The listener --------------------------------------------------------- */

static vnx_status_t
blob_check(const vnx_side_channel_t *channel, const char *operation,
           const vnx_side_channel_blob_t *blob, vnx_error_t *error)
{
    if (blob->length > channel->options.max_frame) {
        return vnxi_error_set(
            error, VNX_ERR_INVALID_PARAM, operation,
            "metadata of %zu bytes is above max_frame (%" PRIu32 ")",
            blob->length, channel->options.max_frame);
    }
    if (blob->data == NULL && blob->length > 0) {
        return vnxi_error_set(error, VNX_ERR_INVALID_PARAM, operation,
                              "metadata is NULL, its length is %zu",
                              blob->length);
    }
    return vnxi_key_check(operation, blob->key, blob->key_length, error);
}

/* Take the host and the port from the environment if the caller gave none. */
static vnx_status_t
fill_address(vnx_side_channel_start_params_t *params, vnx_error_t *error)
{
    const char *host = getenv(HOST_VARIABLE), *port = getenv(PORT_VARIABLE);
    char *end;

    if (params->host == NULL || params->host[0] == '\0') {
        params->host = host != NULL && host[0] != '\0' ? host : NULL;
    }
    if (params->port == VNX_SIDE_CHANNEL_PORT_DEFAULT) {
        params->port = PORT_DEFAULT;
        if (port != NULL && port[0] != '\0') {
            long number = strtol(port, &end, 10);
            if (*end != '\0' || number < 0 || number > 65535) {
                return vnxi_error_set(error, VNX_ERR_INVALID_PARAM,
                                      VNXI_OP_START,
                                      PORT_VARIABLE " is not a valid port");
            }
            params->port = (int)number;
        }
    }
    return VNX_OK;
}

static vnx_status_t
start_check(const vnx_side_channel_t *channel,
            const vnx_side_channel_start_params_t *params, vnx_error_t *error)
{
    if (vnxi_channel_is_parents(channel)) {
        return vnxi_error_set(
            error, VNX_ERR_NOT_ALLOWED, VNXI_OP_START,
            "the side channel was created before a fork; create "
            "one in this process");
    }
    if (params->port < 0 || params->port > 65535) {
        return vnxi_error_set(error, VNX_ERR_INVALID_PARAM, VNXI_OP_START,
                              "port %d is not in 0 to 65535", params->port);
    }
    if (channel->options.tls == VNXI_TLS_CERTIFICATE &&
        channel->options.tls_certificate == NULL) {
        return vnxi_error_set(error, VNX_ERR_INVALID_PARAM, VNXI_OP_START,
                              "a listener with TLS needs tls_certificate and "
                              "tls_key");
    }
    for (size_t i = 0; i < params->count; i++) {
        vnx_status_t status =
            blob_check(channel, VNXI_OP_START, &params->blobs[i], error);
        if (status != VNX_OK) {
            return status;
        }
    }
    return VNX_OK;
}

static void
blobs_free(vnxi_blob_t **blobs, size_t count)
{
    for (size_t i = 0; blobs != NULL && i < count; i++) {
        vnxi_blob_release(blobs[i]);
    }
    free(blobs);
}

/* Copy the blobs of the parameters.  The caller holds no lock, because they
 * may be large.  *out_p is owned: blobs_free(). */
static vnx_status_t
blobs_new(const vnx_side_channel_start_params_t *params, vnxi_blob_t ***out_p,
          vnx_error_t *error)
{
    vnxi_blob_t **blobs = calloc(params->count + 1, sizeof(*blobs));
    size_t i = 0, size = sizeof(*blobs);

    while (blobs != NULL && i < params->count) {
        size = params->blobs[i].length;
        blobs[i] = vnxi_blob_new(&params->blobs[i]);
        if (blobs[i] == NULL) {
            break;
        }
        i++;
    }
    if (blobs == NULL || i < params->count) {
        blobs_free(blobs, params->count);
        return vnxi_error_no_memory(error, VNXI_OP_START, size);
    }
    *out_p = blobs;
    return VNX_OK;
}

/* Serve the blobs, which are taken, or none of them. */
static vnx_status_t
blobs_serve(vnx_side_channel_t *channel, vnxi_blob_t **blobs, size_t count,
            vnx_error_t *error)
{
    bool done = vnxi_blob_table_set_all(&channel->blobs, blobs, count);

    free(blobs);
    return done ? VNX_OK
                : vnxi_error_no_memory(error, VNXI_OP_START,
                                       count * sizeof(*blobs));
}

static vnx_status_t
start_begin(vnx_side_channel_t *channel, vnx_error_t *error)
{
    vnx_status_t status = VNX_OK;

    vnxi_mutex_lock(&channel->lock);
    if (channel->listener != NULL || channel->starting) {
        status = vnxi_error_set(error, VNX_ERR_NOT_ALLOWED, VNXI_OP_START,
                                "the listener is already running");
    } else {
        channel->starting = true;
    }
    vnxi_mutex_unlock(&channel->lock);
    return status;
}

/* End a start; takes the host.  `listener` NULL: the start failed. */
static void
start_end(vnx_side_channel_t *channel, vnxi_server_t *listener, char *host)
{
    vnxi_mutex_lock(&channel->lock);
    channel->starting = false;
    if (listener != NULL) {
        channel->listener = listener;
        channel->host = host;
        atomic_store(&channel->port, listener->port);
    } else {
        vnxi_blob_table_clear(&channel->blobs);
        free(host);
    }
    vnxi_mutex_unlock(&channel->lock);
}

static vnx_status_t
start_listening(vnx_side_channel_t *channel,
                const vnx_side_channel_start_params_t *params, int *port_p,
                vnx_error_t *error)
{
    const char *host = params->host;
    vnxi_listen_params_t listen = {.bind = {.operation = VNXI_OP_START,
                                            .host = host,
                                            .port = params->port},
                                   .blobs = &channel->blobs,
                                   .options = &channel->options,
                                   .stats = &channel->stats};
    vnxi_server_t *listener = NULL;
    vnxi_blob_t **blobs = NULL;
    char endpoint[VNX_ERROR_PEER_MAX];
    char *kept = strdup(host != NULL ? host : "*");

    vnxi_endpoint_text(endpoint, sizeof endpoint, host, params->port);
    vnx_status_t status =
        kept != NULL
            ? vnxi_channel_check(channel, VNXI_OP_START, endpoint, error)
            : vnxi_error_no_memory(error, VNXI_OP_START, sizeof(void *));
    if (status == VNX_OK) {
        status = blobs_new(params, &blobs, error);
    }
    if (status == VNX_OK) {
        status = blobs_serve(channel, blobs, params->count, error);
    }
    if (status == VNX_OK) {
        status = vnxi_server_start(channel->transport->protocol, &listen,
                                   &listener, error);
    }
    if (status == VNX_OK && port_p != NULL) {
        *port_p = listener->port;
    }
    start_end(channel, listener, kept);
    return status;
}

vnx_status_t
vnx_side_channel_start_with(vnx_side_channel_t *channel,
                            const vnx_side_channel_start_params_t *given,
                            int *port_p, vnx_error_t *error)
{
    vnx_side_channel_start_params_t params;

    vnxi_channel_enter(channel);
    vnx_status_t status =
        vnxi_params_read(VNXI_OP_START, "params", given, given->size, &params,
                         sizeof params, error);
    if (status == VNX_OK) {
        status = fill_address(&params, error);
    }
    if (status == VNX_OK) {
        status = start_check(channel, &params, error);
    }
    if (status == VNX_OK) {
        status = start_begin(channel, error);
    }
    if (status == VNX_OK) {
        status = start_listening(channel, &params, port_p, error);
    }
    vnxi_channel_leave(channel);
    return status;
}

/* Is the running listener where these parameters want it? */
static vnx_status_t
check_place(const vnx_side_channel_t *channel,
            const vnx_side_channel_start_params_t *params, vnx_error_t *error)
{
    int port = atomic_load(&channel->port);

    if (params->port > 0 && params->port != port) {
        return vnxi_error_set(error, VNX_ERR_NOT_ALLOWED, VNXI_OP_START,
                              "the listener is already running on port %d, "
                              "not %d",
                              port, params->port);
    }
    if (params->host != NULL && params->host[0] != '\0' &&
        strcmp(params->host, channel->host) != 0) {
        return vnxi_error_set(error, VNX_ERR_NOT_ALLOWED, VNXI_OP_START,
                              "the listener is already running on host '%s', "
                              "not '%s'",
                              channel->host, params->host);
    }
    return VNX_OK;
}

static bool
has_listener(vnx_side_channel_t *channel)
{
    vnxi_mutex_lock(&channel->lock);
    bool is_there = channel->listener != NULL;
    vnxi_mutex_unlock(&channel->lock);
    return is_there;
}

/* Check the parameters and copy their blobs, for a listener that runs. */
static vnx_status_t
serve_begin(const vnx_side_channel_t *channel,
            const vnx_side_channel_start_params_t *params,
            vnxi_blob_t ***blobs_p, vnx_error_t *error)
{
    vnx_status_t status = VNX_OK;

    for (size_t i = 0; status == VNX_OK && i < params->count; i++) {
        status = blob_check(channel, VNXI_OP_START, &params->blobs[i], error);
    }
    return status == VNX_OK ? blobs_new(params, blobs_p, error) : status;
}

/* Replace blobs of the running listener by these, which are taken.
 * VNX_ERR_NOT_FOUND without a record: it has been stopped meanwhile. */
static vnx_status_t
serve_end(vnx_side_channel_t *channel,
          const vnx_side_channel_start_params_t *params, vnxi_blob_t **blobs,
          int *port_p, vnx_error_t *error)
{
    vnxi_mutex_lock(&channel->lock);
    vnx_status_t status = channel->listener != NULL
                              ? check_place(channel, params, error)
                              : VNX_ERR_NOT_FOUND;
    if (status == VNX_OK) {
        status = blobs_serve(channel, blobs, params->count, error);
        blobs = NULL;
    }
    if (status == VNX_OK) {
        *port_p = atomic_load(&channel->port);
    }
    vnxi_mutex_unlock(&channel->lock);
    blobs_free(blobs, params->count);
    return status;
}

vnx_status_t
vnxi_side_channel_serve(vnx_side_channel_t *channel,
                        const vnx_side_channel_start_params_t *params,
                        int *port_p, vnx_error_t *error)
{
    vnx_status_t status = VNX_ERR_NOT_FOUND;
    vnxi_blob_t **blobs = NULL;

    vnxi_channel_enter(channel);
    if (!vnxi_channel_is_parents(channel) && has_listener(channel)) {
        status = serve_begin(channel, params, &blobs, error);
        if (status == VNX_OK) {
            status = serve_end(channel, params, blobs, port_p, error);
        }
    }
    if (status == VNX_ERR_NOT_FOUND) {
        status = vnx_side_channel_start_with(channel, params, port_p, error);
    }
    vnxi_channel_leave(channel);
    return status;
}

vnx_status_t
vnx_side_channel_start(vnx_side_channel_t *channel, const char *host, int port,
                       const void *metadata, size_t length, int *port_p,
                       vnx_error_t *error)
{
    vnx_side_channel_blob_t blob = {.data = metadata, .length = length};
    vnx_side_channel_start_params_t params = {.size = sizeof params,
                                              .host = host,
                                              .port = port,
                                              .blobs = &blob,
                                              .count = 1};
    return port < 0
               ? vnxi_error_set(error, VNX_ERR_INVALID_PARAM, VNXI_OP_START,
                                "port %d is not in 0 to 65535", port)
               : vnx_side_channel_start_with(channel, &params, port_p, error);
}

/* Lock the channel if its listener is running. */
static vnx_status_t
lock_running(vnx_side_channel_t *channel, const char *operation,
             vnx_error_t *error)
{
    if (!vnxi_channel_is_parents(channel)) {
        vnxi_mutex_lock(&channel->lock);
        if (channel->listener != NULL) {
            return VNX_OK;
        }
        vnxi_mutex_unlock(&channel->lock);
    }
    return vnxi_error_set(error, VNX_ERR_NOT_ALLOWED, operation,
                          "the listener is not running");
}

vnx_status_t
vnx_side_channel_set(vnx_side_channel_t *channel,
                     const vnx_side_channel_blob_t *given, vnx_error_t *error)
{
    vnxi_blob_t *blob = NULL;

    vnxi_channel_enter(channel);
    vnx_status_t status = blob_check(channel, OP_SET, given, error);
    if (status == VNX_OK) {
        blob = vnxi_blob_new(given); /* not under the lock */
        status = lock_running(channel, OP_SET, error);
    }
    if (status == VNX_OK) {
        bool done = blob != NULL && vnxi_blob_table_set(&channel->blobs, blob);
        vnxi_mutex_unlock(&channel->lock);
        blob = NULL;
        if (!done) {
            status = vnxi_error_no_memory(error, OP_SET, given->length);
        }
    }
    vnxi_blob_release(blob);
    vnxi_channel_leave(channel);
    return status;
}

vnx_status_t
vnx_side_channel_remove(vnx_side_channel_t *channel, const void *key,
                        size_t key_length, vnx_error_t *error)
{
    vnxi_channel_enter(channel);
    vnx_status_t status = vnxi_key_check(OP_REMOVE, key, key_length, error);
    if (status == VNX_OK) {
        status = lock_running(channel, OP_REMOVE, error);
    }
    if (status == VNX_OK) {
        bool done = vnxi_blob_table_remove(&channel->blobs, key, key_length);
        vnxi_mutex_unlock(&channel->lock);
        if (!done) {
            status = vnxi_error_set(error, VNX_ERR_NOT_FOUND, OP_REMOVE,
                                    "nothing is served under that key");
        }
    }
    vnxi_channel_leave(channel);
    return status;
}

void
vnx_side_channel_shutdown(vnx_side_channel_t *channel)
{
    if (vnxi_channel_is_parents(channel)) {
        return;
    }
    vnxi_channel_enter(channel);
    vnxi_mutex_lock(&channel->lock);
    vnxi_channel_stop(channel);
    vnxi_mutex_unlock(&channel->lock);
    vnxi_channel_leave(channel);
}

int
vnx_side_channel_port(const vnx_side_channel_t *channel)
{
    return vnxi_channel_is_parents(channel) ? 0 : atomic_load(&channel->port);
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
    vnxi_stats_read(&channel->stats, stats_p);
}
