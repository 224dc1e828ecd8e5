/*
 * The common part of every transport's listener: an acceptor, a loop, and the
 * single thread that runs it.  The loop and everything on it belong to that
 * thread.
 */
#ifndef VNXI_SIDE_CHANNEL_SERVER_H
#define VNXI_SIDE_CHANNEL_SERVER_H

#include <stdbool.h>

#include "net/acceptor.h"
#include "net/loop.h"
#include "net/rate.h"
#include "side_channel/transport.h"

/* The operations of a transport's listener; called by the loop's thread with a
 * vnxi_server_t. */
typedef struct vnxi_server_ops {
    /* refused: vnxi_server_refused() */
    vnxi_acceptor_ops_t acceptor;

    /* Called before the thread starts: create what is needed to serve.  False:
     * errno has the cause. */
    bool (*begin)(vnxi_server_t *server);

    /* Called when no thread runs: free everything that begin() and the clients
     * created, including after a begin() that failed half-way; call
     * vnxi_server_fini(); free the server itself. */
    void (*free)(vnxi_server_t *server);
} vnxi_server_ops_t;

/* Used by the loop thread alone while it runs, except `port` and waking the
 * loop. */
struct vnxi_server {
    int port; /* bound; constant */
    const vnxi_server_ops_t *ops;
    const vnx_side_channel_options_t *options; /* borrowed */
    vnxi_side_stats_t *stats;                  /* borrowed */
    vnxi_blob_table_t *blobs;                  /* borrowed */
    void *tls;         /* owned: SSL_CTX *; NULL: plain */
    vnxi_rate_t *rate; /* NULL: no limit */
    vnxi_loop_t loop;
    vnxi_acceptor_t acceptor;
};

/* Listen, and start a thread called `name` that serves.  `server` is all
 * zeros.  The call takes it over: vnxi_server_stop() frees it, or the call
 * itself on an error.  Statuses: vnx_side_channel_start_with(). */
vnx_status_t vnxi_server_open(vnxi_server_t *server,
                              const vnxi_server_ops_t *ops, const char *name,
                              const vnxi_listen_params_t *params,
                              vnxi_server_t **out_p, vnx_error_t *error);

/* End the thread, and free the server.  May not be called by the thread
 * itself.  Returns as vnxi_transport_t's stop(). */
bool vnxi_server_stop(vnxi_server_t *server);

/* Free the rest, including the port.  Everything that used the loop must have
 * been freed. */
void vnxi_server_fini(vnxi_server_t *server);

/* For vnxi_acceptor_ops_t: count a client that was closed for lack of
 * descriptors. */
void vnxi_server_refused(void *server);

#endif
