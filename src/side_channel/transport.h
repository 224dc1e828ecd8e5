/*
 * The interface of a transport, which implements a side channel.  Each
 * transport has one constant of this type, named vnxi_transport_<name>;
 * side_channel.c lists them.
 *
 * The front (side_channel.c, request_set.c) checks arguments, keeps one
 * listener for a channel and the table of blobs that it serves, counts,
 * handles forks, and runs requests: it waits for them and tries again.  A
 * transport implements its wire format.  Its parameters were checked: ports
 * are in range, keys are not too long, blobs are within max_frame, every
 * option has its value.
 *
 * A transport that cannot use a shared secret, or does not speak TLS, refuses
 * to listen and to ask if that option is set: VNX_ERR_NOT_SUPPORTED.  No error
 * and no line of the log contains a secret.
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

/* All but `bind` is borrowed by listen() until the listener is stopped; `bind`
 * is borrowed for the call only. */
typedef struct vnxi_listen_params {
    vnxi_bind_params_t bind;
    vnxi_blob_table_t *blobs; /* look keys up when clients ask, not earlier:
                                 the program may set and remove them at any
                                 time */
    const vnx_side_channel_options_t *options;
    vnxi_side_stats_t *stats;
} vnxi_listen_params_t;

/* A transport's listener (server.h).  It listens as long as it exists. */
typedef struct vnxi_server vnxi_server_t;

typedef struct vnxi_transport {
    const char *name; /* "TCP" */
    unsigned fds;     /* descriptors that one request holds; 0: one */

    /* Bind, listen, and start the thread.  Waits only for the look-up of a
     * host that is a name, VNX_SIDE_CHANNEL_TIMEOUT_MS at most.  The caller
     * holds no lock.  Returns owned: stop().  Statuses:
     * vnx_side_channel_start(). */
    vnx_status_t (*listen)(const vnxi_listen_params_t *params,
                           vnxi_server_t **out_p, vnx_error_t *error);

    /* End the thread, close every connection, free the port and the listener.
     * Called once, from any thread but the listener's; does not wait for
     * clients.  Never called in a forked child.  False: the descriptors of the
     * thread were closed by other code, so it cannot be woken; it keeps the
     * listener, and everything that listen() borrowed, for ever. */
    bool (*stop)(vnxi_server_t *server);

    /* Begin a try of the request: create request->client, a state machine that
     * never waits.  Does as little as possible and leaves the work to the
     * first step.  On an error request->client is NULL. */
    vnx_status_t (*begin)(vnxi_request_t *request);

    /* Do what can be done now.  Called once after begin(), then when
     * request->fd has one of request->events or an error, when request->wake
     * or the deadline is past, and at any time without a reason.
     *
     * VNX_IN_PROG: fd, events and wake say what to wait for.  VNX_OK:
     * request->answer has the metadata (free(); not NULL) and its length.  Any
     * other status: the try failed, and request->answer.error says how, in
     * which phase, and after how long (vnxi_request_failed()).  Statuses:
     * vnx_side_channel_request_with(); VNX_ERR_TIMEOUT once the deadline is
     * past, even if more could be done, so that a flood cannot extend the
     * deadline.  Not called again after VNX_OK or an error. */
    vnx_status_t (*step)(vnxi_request_t *request);

    /* Free request->client, at any stage. */
    void (*end)(vnxi_request_t *request);
} vnxi_transport_t;

extern const vnxi_transport_t vnxi_transport_tcp;
#ifdef VNXI_SIDE_CHANNEL_ZMQ
extern const vnxi_transport_t vnxi_transport_zmq;
#endif
#ifdef VNXI_SIDE_CHANNEL_HTTP
extern const vnxi_transport_t vnxi_transport_http;
#endif

#endif
