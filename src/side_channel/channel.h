/*
 * The object behind vnx_side_channel_t, for the files that implement its
 * functions: side_channel.c, channel.c, advertise.c, request.c.
 */
#ifndef VNXI_SIDE_CHANNEL_CHANNEL_H
#define VNXI_SIDE_CHANNEL_CHANNEL_H

#include <stdatomic.h>
#include <stdbool.h>

#include "base/mutex.h"
#include "side_channel/server.h"
#include "side_channel/side_channel.h"
#include "side_channel/transport.h"

struct vnx_side_channel {
    atomic_size_t refs;
    const vnxi_transport_t *transport;
    vnx_side_channel_options_t options; /* all set; constant */
    unsigned forks;                     /* vnxi_fork_count() at creation */
    atomic_int port;                    /* bound; 0: not running */
    vnxi_side_stats_t stats;
    vnxi_blob_table_t blobs; /* empty without a listener */
    vnxi_mutex_t lock;
    vnxi_server_t *listener; /* protected by lock, as all below */
    char *host;              /* the host to bind; "*": every address */
    bool starting;
};

/* Hold a reference during a call, so that another thread may free the channel
 * meanwhile. */
void vnxi_channel_enter(vnx_side_channel_t *channel);
void vnxi_channel_leave(vnx_side_channel_t *channel);

/* Stop the listener, if there is one.  The caller holds the lock, or is the
 * last that uses the channel. */
void vnxi_channel_stop(vnx_side_channel_t *channel);

/* Was the channel created before a fork?  If so, its lock may be held for
 * ever, and the memory of its listener may be in any state. */
bool vnxi_channel_is_parents(const vnx_side_channel_t *channel);

/* Check that the transport can honour the options, before the channel listens
 * or asks at `endpoint`. */
vnx_status_t vnxi_channel_check(const vnx_side_channel_t *channel,
                                const char *operation, const char *endpoint,
                                vnx_error_t *error);

/* Read the options of a channel of that kind, from a caller of any version.
 * `given` may be NULL.  On VNX_OK *out_p is complete with the defaults and has
 * its own copies of the strings; strings without a default stay NULL, and
 * `tls` is one of VNXI_TLS_*.  *out_p is owned: vnxi_options_fini().
 * Statuses: vnx_side_channel_create(). */
vnx_status_t vnxi_options_read(vnx_side_channel_kind_t kind,
                               const vnx_side_channel_options_t *given,
                               vnx_side_channel_options_t *out_p,
                               vnx_error_t *error);

/* Free the strings and wipe the secret.  May be called again. */
void vnxi_options_fini(vnx_side_channel_options_t *options);

/* Check the length and the pointer of a key.  VNX_ERR_INVALID_PARAM: it is not
 * valid. */
vnx_status_t vnxi_key_check(const char *operation, const void *key,
                            size_t key_len, vnx_error_t *error);

#endif
