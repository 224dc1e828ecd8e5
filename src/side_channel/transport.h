/*
 * What stands behind a side channel: a transport.  One constant of this type
 * for each, named vnxi_transport_<name>; side_channel.c lists them.
 *
 * The front (side_channel.c) checks arguments, keeps one listener for a
 * channel, counts, and knows of forks; a transport knows its wire format.
 * Parameters were checked: ports are in range, metadata is within max_frame,
 * every option has its value.
 */
#ifndef VNXI_SIDE_CHANNEL_TRANSPORT_H
#define VNXI_SIDE_CHANNEL_TRANSPORT_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <vnx/error.h>
#include <vnx/side_channel.h>

#include "side_channel/wait.h"

#define VNXI_OP_CREATE "side_channel_create"
#define VNXI_OP_START "start_listener"
#define VNXI_OP_REQUEST "request_metadata"

/* Relaxed counters: each is right by itself, not with the others. */
typedef struct vnxi_side_stats {
    atomic_uint_fast64_t accepted, served, refused, timed_out, evicted, open;
} vnxi_side_stats_t;

static inline void
vnxi_stat_add(atomic_uint_fast64_t *counter)
{
    atomic_fetch_add_explicit(counter, 1, memory_order_relaxed);
}

static inline void
vnxi_stat_sub(atomic_uint_fast64_t *counter)
{
    atomic_fetch_sub_explicit(counter, 1, memory_order_relaxed);
}

typedef struct vnxi_listen_params {
    const char *host;     /* borrowed; NULL: every address */
    int port;             /* 0: any free one */
    const char *endpoint; /* "host:port" for errors; borrowed */
    const void *metadata; /* borrowed: copy it */
    size_t length;        /* of metadata */
    vnx_side_channel_options_t options;
    vnxi_side_stats_t *stats; /* outlives the listener */
} vnxi_listen_params_t;

typedef struct vnxi_request_params {
    const char *host; /* borrowed */
    int port;
    const char *endpoint; /* "host:port" for errors; borrowed */
    uint32_t max_frame;
    vnxi_wait_t wait; /* over the whole exchange */
} vnxi_request_params_t;

/* The head of every transport's listener; it is listening while it exists. */
typedef struct vnxi_listener {
    int port; /* bound; constant */
} vnxi_listener_t;

typedef struct vnxi_transport {
    const char *name; /* "TCP" */

    /* Bind, listen, start the thread.  Waits for nothing but the look-up of a
     * host that is a name, VNX_SIDE_CHANNEL_TIMEOUT_MS at most.  No lock is
     * held.  Returns owned: stop().  Statuses: vnx_side_channel_start(). */
    vnx_status_t (*listen)(const vnxi_listen_params_t *params,
                           vnxi_listener_t **out_p, vnx_error_t *error);

    /* End the thread, cut every connection off, free the port and the
     * listener.  Called once, from any thread but the listener's; does not
     * wait for clients.  Never called in a forked child. */
    void (*stop)(vnxi_listener_t *listener);

    /* One exchange, on the caller's thread; waits by params->wait only.  No
     * lock is held.  Statuses and outputs: vnx_side_channel_request(), and
     * VNX_ERR_CANCELED when wait.interrupted said so. */
    vnx_status_t (*request)(const vnxi_request_params_t *params,
                            void **metadata_p, size_t *length_p,
                            vnx_error_t *error);
} vnxi_transport_t;

#ifdef VNXI_SIDE_CHANNEL_TCP
extern const vnxi_transport_t vnxi_transport_tcp;
#endif

#endif
