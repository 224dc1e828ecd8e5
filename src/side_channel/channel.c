/*
 * Design notes.  Calls hold a reference, so a channel may be freed while other
 * threads are inside it; the last of them destroys it.
 */
#include "side_channel/channel.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/fork.h"
#include "side_channel/options.h"
#include "side_channel/server.h"

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
vnxi_params_read(const char *operation, const void *given, size_t given_size,
                 void *out_p, size_t size, vnx_error_t *error)
{
    if (given_size < sizeof given_size || given_size > size) {
        return vnxi_error_set(error, VNX_ERR_INVALID_PARAM, operation,
                              "params.size is %zu, this library knows up to "
                              "%zu",
                              given_size, size);
    }
    memset(out_p, 0, size);
    memcpy(out_p, given, given_size);
    return VNX_OK;
}

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
