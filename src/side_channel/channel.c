#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/fork.h"
#include "base/params.h"
#include "net/acceptor.h"
#include "side_channel/channel.h"

#define CONNECTIONS_MAX 4096
#define SECRET_VARIABLE "VLLM_NIXL_SIDE_CHANNEL_SECRET"
/* Some transports write a status before a blob, and the length of both must
 * fit into 32 bits. */
#define MAX_FRAME_LIMIT (UINT32_MAX - 64)

/* -- Parameters ----------------------------------------------------------- */

vnx_status_t
vnxi_key_check(const char *operation, const void *key, size_t key_len,
               vnx_error_t *error)
{
    if (key_len > VNX_SIDE_CHANNEL_KEY_MAX) {
        return vnxi_error_set(error, VNX_ERR_INVALID_PARAM, operation,
                              "a key of %zu bytes is above %d", key_len,
                              VNX_SIDE_CHANNEL_KEY_MAX);
    }
    if (key == NULL && key_len > 0) {
        return vnxi_error_set(error, VNX_ERR_INVALID_PARAM, operation,
                              "the key is NULL, its length is %zu", key_len);
    }
    return VNX_OK;
}

/* -- Options -------------------------------------------------------------- */

static void
set_defaults(vnx_side_channel_options_t *options)
{
    if (options->max_frame == 0) {
        options->max_frame = VNX_SIDE_CHANNEL_MAX_FRAME;
    }
    if (options->max_frame > MAX_FRAME_LIMIT) {
        options->max_frame = MAX_FRAME_LIMIT;
    }
    if (options->max_connections == 0) {
        options->max_connections =
            vnxi_acceptor_connections(2, CONNECTIONS_MAX);
    }
    if (options->client_timeout_ms == 0) {
        options->client_timeout_ms = VNX_SIDE_CHANNEL_TIMEOUT_MS;
    }
    if (options->idle_timeout_ms == 0 ||
        options->idle_timeout_ms > options->client_timeout_ms) {
        options->idle_timeout_ms = options->client_timeout_ms;
    }
    if (options->tls != 0 || options->tls_certificate != NULL ||
        options->tls_ca != NULL || options->tls_name != NULL) {
        options->tls = VNXI_TLS_CERTIFICATE;
    }
    if (options->secret == NULL) {
        const char *secret = getenv(SECRET_VARIABLE);
        options->secret = secret != NULL && secret[0] != '\0' ? secret : NULL;
    }
}

/* Over TCP, a secret is a TLS key and replaces certificates. */
static vnx_status_t
use_secret(bool is_given, vnx_side_channel_options_t *options,
           vnx_error_t *error)
{
    if (options->tls == VNXI_TLS_CERTIFICATE) {
        return vnxi_error_set(
            error, VNX_ERR_INVALID_PARAM, VNXI_OP_CREATE,
            "%s and the tls options exclude each other over TCP: a secret "
            "authenticates both ends and encrypts by itself",
            is_given ? "secret" : SECRET_VARIABLE);
    }
    options->tls = VNXI_TLS_SECRET;
    return VNX_OK;
}

/* Check the options.  No message contains the secret itself. */
static vnx_status_t
check(const vnx_side_channel_options_t *options, vnx_error_t *error)
{
    if ((options->tls_certificate != NULL) != (options->tls_key != NULL)) {
        return vnxi_error_set(error, VNX_ERR_INVALID_PARAM, VNXI_OP_CREATE,
                              "tls_certificate and tls_key go together");
    }
    if (options->secret != NULL &&
        strlen(options->secret) < VNX_SIDE_CHANNEL_SECRET_MIN) {
        return vnxi_error_set(
            error, VNX_ERR_INVALID_PARAM, VNXI_OP_CREATE,
            "the shared secret has %zu bytes; it needs %d at least",
            strlen(options->secret), VNX_SIDE_CHANNEL_SECRET_MIN);
    }
    if (!VNXI_TLS_IS_THERE && (options->secret != NULL || options->tls)) {
        return vnxi_error_set(error, VNX_ERR_NOT_SUPPORTED, VNXI_OP_CREATE,
                              "shared secrets and TLS are not in this build");
    }
    return VNX_OK;
}

/* The options that are strings. */
static const size_t strings[] = {
    offsetof(vnx_side_channel_options_t, tls_certificate),
    offsetof(vnx_side_channel_options_t, tls_key),
    offsetof(vnx_side_channel_options_t, tls_ca),
    offsetof(vnx_side_channel_options_t, tls_name),
    offsetof(vnx_side_channel_options_t, secret),
    offsetof(vnx_side_channel_options_t, advertise),
};
#define STRINGS (sizeof strings / sizeof strings[0])

static const char **
string_at(vnx_side_channel_options_t *options, size_t index)
{
    return (void *)((char *)options + strings[index]);
}

/* Replace the strings by copies.  False: no memory; the copies are freed. */
static bool
copy_strings(vnx_side_channel_options_t *options)
{
    bool done = true;

    for (size_t i = 0; i < STRINGS; i++) {
        const char **string = string_at(options, i);
        if (*string != NULL) {
            *string = strdup(*string);
            done = done && *string != NULL;
        }
    }
    if (!done) {
        vnxi_options_fini(options);
    }
    return done;
}

vnx_status_t
vnxi_options_read(vnx_side_channel_kind_t kind,
                  const vnx_side_channel_options_t *given,
                  vnx_side_channel_options_t *out_p, vnx_error_t *error)
{
    vnx_side_channel_options_t all = {0};
    vnx_status_t status = VNX_OK;

    if (given != NULL) {
        status = vnxi_params_read(VNXI_OP_CREATE, "options", given,
                                  given->size, &all, sizeof all, error);
        if (status != VNX_OK) {
            return status;
        }
    }
    all.size = sizeof all;
    bool is_given = all.secret != NULL;
    set_defaults(&all);
    status = check(&all, error);
    if (status == VNX_OK && kind == VNX_SIDE_CHANNEL_TCP &&
        all.secret != NULL) {
        status = use_secret(is_given, &all, error);
    }
    if (status != VNX_OK) {
        return status;
    }
    if (!copy_strings(&all)) {
        return vnxi_error_no_memory(error, VNXI_OP_CREATE, sizeof all);
    }
    *out_p = all;
    return VNX_OK;
}

void
vnxi_options_fini(vnx_side_channel_options_t *options)
{
    if (options->secret != NULL) {
        explicit_bzero((void *)(uintptr_t)options->secret,
                       strlen(options->secret));
    }
    for (size_t i = 0; i < STRINGS; i++) {
        const char **string = string_at(options, i);
        free((void *)(uintptr_t)*string);
        *string = NULL;
    }
}

/* -- The object ----------------------------------------------------------- */

void
vnxi_channel_stop(vnx_side_channel_t *channel)
{
    if (channel->listener == NULL) {
        return;
    }
    atomic_store(&channel->port, 0);
    if (!vnxi_server_stop(channel->listener)) {
        /* The thread of the listener may use the channel for ever. */
        atomic_fetch_add(&channel->refs, 1);
    }
    vnxi_blob_table_clear(&channel->blobs);
    free(channel->host);
    channel->listener = NULL;
    channel->host = NULL;
}

void
vnxi_channel_enter(vnx_side_channel_t *channel)
{
    atomic_fetch_add_explicit(&channel->refs, 1, memory_order_relaxed);
}

void
vnxi_channel_leave(vnx_side_channel_t *channel)
{
    if (atomic_fetch_sub_explicit(&channel->refs, 1, memory_order_acq_rel) !=
        1) {
        return;
    }
    vnxi_channel_stop(channel); /* no other thread is left */
    if (atomic_load(&channel->refs) > 0) {
        return;
    }
    vnxi_blob_table_fini(&channel->blobs);
    vnxi_mutex_destroy(&channel->lock);
    vnxi_options_fini(&channel->options);
    free(channel);
}

bool
vnxi_channel_is_parents(const vnx_side_channel_t *channel)
{
    return vnxi_fork_crossed(channel->forks);
}

vnx_status_t
vnxi_channel_check(const vnx_side_channel_t *channel, const char *operation,
                   const char *endpoint, vnx_error_t *error)
{
    const vnxi_transport_t *transport = channel->transport;
    const char *reason;

    vnx_status_t status = transport->check != NULL
                              ? transport->check(&channel->options, &reason)
                              : VNX_OK;
    if (status != VNX_OK) {
        vnxi_error_set(error, status, operation, "%s", reason);
        vnxi_error_peer(error, endpoint, strlen(endpoint));
    }
    return status;
}
