/*
 * What stands behind a side channel: a transport.  One constant of this type
 * for each, named vnxi_transport_<name>; side_channel.c lists them.
 *
 * The front (side_channel.c, request_set.c) checks arguments, keeps one
 * listener for a channel and the table of blobs that it serves, counts, knows
 * of forks, and runs requests: it waits for them and tries again.  A transport
 * knows its wire format.  Parameters were checked: ports are in range, keys
 * are not too long, blobs are within max_frame, every option has its value.
 *
 * A transport that has no use for a shared secret, or does not speak TLS,
 * refuses to listen and to ask where that option is set:
 * VNX_ERR_NOT_SUPPORTED.  No secret is ever in an error or in the log.
 */
#ifndef VNXI_SIDE_CHANNEL_TRANSPORT_H
#define VNXI_SIDE_CHANNEL_TRANSPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <vnx/error.h>
#include <vnx/side_channel.h>

#include "net/sockets.h"
#include "side_channel/blob_table.h"
#include "side_channel/request.h"
#include "side_channel/stats.h"

#define VNXI_OP_CREATE "side_channel_create"
#define VNXI_OP_START "start_listener"

/* Borrowed by listen() until the listener is stopped, all but `bind`,
 * which lasts for the call. */
typedef struct vnxi_listen_params {
    vnxi_bind_params_t bind;
    vnxi_blob_table_t *blobs; /* look keys up as they are asked for, never
                          before: they may be set and removed at any time */
    const vnx_side_channel_options_t *options;
    vnxi_side_stats_t *stats;
} vnxi_listen_params_t;

/* The head of every transport's listener; it is listening while it exists. */
typedef struct vnxi_listener {
    int port; /* bound; constant */
} vnxi_listener_t;

typedef struct vnxi_transport {
    const char *name; /* "TCP" */
    unsigned fds;     /* descriptors that one request holds; 0: one */

    /* Bind, listen, start the thread.  Waits for nothing but the look-up of a
     * host that is a name, VNX_SIDE_CHANNEL_TIMEOUT_MS at most.  No lock is
     * held.  Returns owned: stop().  Statuses: vnx_side_channel_start(). */
    vnx_status_t (*listen)(const vnxi_listen_params_t *params,
                           vnxi_listener_t **out_p, vnx_error_t *error);

    /* End the thread, cut every connection off, free the port and the
     * listener.  Called once, from any thread but the listener's; does not
     * wait for clients.  Never called in a forked child.  False: the
     * descriptors were closed under the thread, which cannot be woken; it
     * keeps the listener, and what listen() borrowed, for ever. */
    bool (*stop)(vnxi_listener_t *listener);

    /* Begin a try of the request, as a machine that never waits: make
     * request->client.  Does as little as it can: the first step begins.  On
     * an error request->client is NULL. */
    vnx_status_t (*begin)(vnxi_request_t *request);

    /* Do what can be done now.  Called once after begin(), then when
     * request->fd has one of request->events or an error, when request->wake
     * or the deadline is past, and at any time for no reason.
     * VNX_IN_PROG: fd, events and wake say what it waits for now.
     * VNX_OK: request->answer has the metadata (free(); not NULL) and its
     * length.  Anything else: it failed and request->answer.error says how, in
     * which phase, and after how long (vnxi_request_failed()).  Statuses:
     * vnx_side_channel_request_with(); VNX_ERR_TIMEOUT once the deadline is
     * past, whatever else could be done: flooding cannot extend the deadline.
     * Not called again after VNX_OK or an error. */
    vnx_status_t (*step)(vnxi_request_t *request);

    /* Free request->client, at any stage. */
    void (*end)(vnxi_request_t *request);
} vnxi_transport_t;

#ifdef VNXI_SIDE_CHANNEL_TCP
extern const vnxi_transport_t vnxi_transport_tcp;
#endif
#ifdef VNXI_SIDE_CHANNEL_ZMQ
extern const vnxi_transport_t vnxi_transport_zmq;
#endif
#ifdef VNXI_SIDE_CHANNEL_HTTP
extern const vnxi_transport_t vnxi_transport_http;
#endif

#endif
