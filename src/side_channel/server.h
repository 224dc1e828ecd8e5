/*
 * The common part of every transport's listener: an acceptor, a loop, the
 * single thread that runs it, and what the connections of clients have in
 * common.  The loop and everything on it belong to that thread.
 */
#ifndef VNXI_SIDE_CHANNEL_SERVER_H
#define VNXI_SIDE_CHANNEL_SERVER_H

#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <stdbool.h>
#include <sys/queue.h>

#include "net/acceptor.h"
#include "net/loop.h"
#include "net/rate.h"
#include "side_channel/transport.h"

typedef struct vnxi_conn vnxi_conn_t;

/* States of a connection, in the order of eviction. */
typedef enum vnxi_conn_state {
    VNXI_CONN_KEPT,  /* served; the client has not closed yet, and may ask
                        again if the protocol allows it */
    VNXI_CONN_READ,  /* the request is not complete yet */
    VNXI_CONN_WRITE, /* the reply is not sent completely */
} vnxi_conn_state_t;
#define VNXI_CONN_STATES 3
TAILQ_HEAD(vnxi_conns, vnxi_conn);

/* The operations of a transport's listener; called by the loop's thread unless
 * it says otherwise. */
typedef struct vnxi_server_ops {
    /* A client has connected: take over `fd`, which is non-blocking and
     * close-on-exec.  The server has room for it.  NULL: a library takes the
     * clients. */
    void (*accept)(vnxi_server_t *server, int fd);

    /* Close and free a connection; reset it unless it was served. */
    void (*drop)(vnxi_conn_t *conn);

    /* Called before the thread starts: create what is needed to serve.  False:
     * errno has the cause. */
    bool (*begin)(vnxi_server_t *server);

    /* Called when no thread runs and no connection is left: free what begin()
     * created, also one that failed half-way.  NULL: nothing. */
    void (*end)(vnxi_server_t *server);
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

/* Listen, and start a thread called `name` that serves.  `server` was
 * allocated, as the first member of the transport's object; its part is all
 * zeros.  The call takes it over: vnxi_server_stop() frees it, or the call
 * itself on an error.  Statuses: vnx_side_channel_start_with(). */
vnx_status_t vnxi_server_open(vnxi_server_t *server,
                              const vnxi_server_ops_t *ops, const char *name,
                              const vnxi_listen_params_t *params,
                              vnxi_server_t **out_p, vnx_error_t *error);

/* End the thread, close every connection, free the port and the server.
 * Called once, from any thread but the server's; does not wait for clients.
 * Never called in a forked child.  False: the descriptors of the thread were
 * closed by other code, so it cannot be woken; it keeps the server, and
 * everything that the server borrowed, for ever. */
bool vnxi_server_stop(vnxi_server_t *server);

/* -- Connections; the thread of the loop only ----------------------------- */

/* The first member of a transport's connection. */
struct vnxi_conn {
    TAILQ_ENTRY(vnxi_conn) link; /* server->conns[state] */
    vnxi_server_t *server;
    struct bufferevent *bev;
    void *tls; /* SSL *; NULL: plain */
    struct event *timer;
    uint64_t start; /* of the exchange, by vnxi_clock_ns() */
    vnxi_conn_state_t state;
    bool turned_away; /* the reply being written is not a blob */
};

/* Create the stream of a connection, and in *tls_p the TLS state if the server
 * has TLS; its handshake comes first.  `options` as for
 * bufferevent_socket_new(); with BEV_OPT_CLOSE_ON_FREE the bufferevent owns
 * the TLS state, otherwise vnxi_conn_tls_free().  NULL: no memory. */
struct bufferevent *vnxi_conn_stream(vnxi_server_t *server, int fd,
                                     int options, void **tls_p);

/* Add a connection in VNXI_CONN_READ. */
void vnxi_conn_add(vnxi_conn_t *conn);
void vnxi_conn_remove(vnxi_conn_t *conn);

/* Put it last among the connections in that state. */
void vnxi_conn_move(vnxi_conn_t *conn, vnxi_conn_state_t state);

/* Bound the buffered input, so that the kernel holds back the rest, and what
 * is written in one round of the loop.  Small messages are not delayed. */
void vnxi_conn_tune(vnxi_conn_t *conn, int fd, size_t input_max);

/* Note that the kernel took bytes of the output.  A client that takes its
 * reply is not idle. */
void vnxi_conn_sent(vnxi_conn_t *conn, size_t count);

/* Count a reply that was sent completely. */
void vnxi_conn_served(const vnxi_conn_t *conn);

/* Let the kernel drop the bytes that the client does not take when the socket
 * is closed. */
void vnxi_conn_drop_unsent(int fd);

/* Write a blob; takes the reference to it.  False: no memory. */
bool vnxi_conn_write_blob(struct evbuffer *output, vnxi_blob_t *blob);

/* Make room for a connection if the server has as many as it may have. */
void vnxi_server_make_room(vnxi_server_t *server);

/* -- TLS; a plain connection is allowed ----------------------------------- */

bool vnxi_conn_is_shaking(const vnxi_conn_t *conn);

/* Tell the client that the stream ends here, so that it knows that nothing was
 * cut off. */
void vnxi_conn_goodbye(vnxi_conn_t *conn);

/* Free the TLS state, after the bufferevent was freed. */
void vnxi_conn_tls_free(vnxi_conn_t *conn);

#endif
