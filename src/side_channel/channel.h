/*
 * The object behind vnx_side_channel_t, for the files of the front:
 * side_channel.c (its life, listening), advertise.c, ask.c (requests).
 */
#ifndef VNXI_SIDE_CHANNEL_CHANNEL_H
#define VNXI_SIDE_CHANNEL_CHANNEL_H

#include <stdatomic.h>
#include <stdbool.h>

#include "base/mutex.h"
#include "side_channel/side_channel.h"
#include "side_channel/transport.h"

struct vnx_side_channel {
    atomic_size_t refs;
    const vnxi_transport_t *transport;
    vnx_side_channel_options_t options; /* all set; constant */
    unsigned forks;                     /* at the making */
    atomic_int port;                    /* bound; 0: not running */
    vnxi_side_stats_t stats;
    vnxi_mutex_t lock;
    vnxi_listener_t *listener; /* protected by lock, as all below */
    vnxi_blob_table_t *blobs;  /* the listener's; NULL with it */
    char *host;                /* that it was told to bind; "*": every one */
    bool starting;
};

/* Hold a reference while inside: freeing the channel meanwhile is safe. */
void vnxi_channel_enter(vnx_side_channel_t *channel);
void vnxi_channel_leave(vnx_side_channel_t *channel);

/* Made before a fork: the lock may be held for ever and the listener's memory
 * be in any state. */
bool vnxi_channel_is_parents(const vnx_side_channel_t *channel);

/* A public struct of parameters, from a caller of any version: `given_size`
 * bytes at `given` into the `size` bytes at `out_p`, the rest 0. */
vnx_status_t vnxi_params_read(const char *operation, const void *given,
                              size_t given_size, void *out_p, size_t size,
                              vnx_error_t *error);

/* VNX_OK where the key may be one. */
vnx_status_t vnxi_key_check(const char *operation, const void *key,
                            size_t key_len, vnx_error_t *error);

#endif
