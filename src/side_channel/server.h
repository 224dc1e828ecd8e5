/*
 * The common part of every transport's listener: an acceptor, a loop, and the
 * single thread that runs it.  The loop and everything on it belong to that
 * thread.
 */
#ifndef VNXI_SIDE_CHANNEL_SERVER_H
#define VNXI_SIDE_CHANNEL_SERVER_H

#include <stdbool.h>
#include <sys/queue.h>

#include "net/acceptor.h"
#include "net/loop.h"
#include "net/rate.h"
#include "side_channel/transport.h"

typedef struct vnxi_conn vnxi_conn_t; /* server_conn.h */

/* States of a connection, in the order of eviction. */
typedef enum vnxi_conn_state {
    VNXI_CONN_KEPT,  /* served; the client has not closed yet, and may ask
                        again if the protocol allows it */
    VNXI_CONN_READ,  /* the request is not complete yet */
    VNXI_CONN_WRITE, /* the reply is not sent completely */
} vnxi_conn_state_t;
#define VNXI_CONN_STATES 3
TAILQ_HEAD(vnxi_conns, vnxi_conn);

/* The operations of a transport's listener; called by the loop's thread with a
 * vnxi_server_t. */
typedef struct vnxi_server_ops {
    /* evict: vnxi_server_evict(); refused: vnxi_server_refused() */
    vnxi_acceptor_ops_t acceptor;

    /* Close and free a connection; reset it unless it was served. */
    void (*drop)(vnxi_conn_t *conn);

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
    size_t open; /* connections */
    /* By state, the longest idle first: READ and KEPT by age (slowly arriving
     * bytes do not count), WRITE by the time at which the client last took
     * bytes. */
    struct vnxi_conns conns[VNXI_CONN_STATES];
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
