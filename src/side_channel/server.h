/*
 * The listener of every transport: an acceptor, a loop, the single thread that
 * runs it, and the connections of clients.  The loop and everything on it
 * belong to that thread.
 *
 *   server.c        the life of a listener, and what all connections share
 *   tcp_listener.c  connections of clients, for the protocols that read input
 *                   and write answers: tcp_frames.c, zmq_protocol.c
 *   http_listener.c connections of libevent's HTTP server
 */
#ifndef VNXI_SIDE_CHANNEL_SERVER_H
#define VNXI_SIDE_CHANNEL_SERVER_H

#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/queue.h>

#include "base/clock.h"
#include "net/acceptor.h"
#include "net/loop.h"
#include "net/rate.h"
#include "net/tls.h"
#include "side_channel/blob_table.h"

typedef struct vnxi_server vnxi_server_t;
typedef struct vnxi_conn vnxi_conn_t;

/* -- Counters ------------------------------------------------------------- */

/* They are relaxed: each is correct by itself, but not consistent with the
 * others.  The listener's thread writes them; any thread may read them. */
typedef struct vnxi_side_stats {
    atomic_uint_fast64_t accepted, served, refused, timed_out, evicted, open;
    atomic_uint_fast64_t bytes_received, bytes_sent;
    atomic_uint_fast64_t refusals[VNX_SIDE_CHANNEL_REFUSALS];
    atomic_uint_fast64_t latency[VNX_SIDE_CHANNEL_LATENCIES];
} vnxi_side_stats_t;

static inline void
vnxi_stat_add_count(atomic_uint_fast64_t *counter, uint64_t count)
{
    atomic_fetch_add_explicit(counter, count, memory_order_relaxed);
}

static inline void
vnxi_stat_add(atomic_uint_fast64_t *counter)
{
    vnxi_stat_add_count(counter, 1);
}

static inline void
vnxi_stat_sub(atomic_uint_fast64_t *counter)
{
    atomic_fetch_sub_explicit(counter, 1, memory_order_relaxed);
}

/* Count a client that was refused. */
static inline void
vnxi_stat_refused(vnxi_side_stats_t *stats, vnx_side_channel_refusal_t why)
{
    vnxi_stat_add(&stats->refused);
    vnxi_stat_add(&stats->refusals[why]);
}

/* Copy the current values. */
void vnxi_stats_read(const vnxi_side_stats_t *stats,
                     vnx_side_channel_stats_t *out_p);

/* -- Protocols ------------------------------------------------------------ */

/* All but `bind` is borrowed until the server is stopped; `bind` is borrowed
 * for the call that starts it. */
typedef struct vnxi_listen_params {
    vnxi_bind_params_t bind;
    vnxi_blob_table_t *blobs; /* look keys up when clients ask, not earlier:
                                 the program may set and remove them at any
                                 time */
    const vnx_side_channel_options_t *options;
    vnxi_side_stats_t *stats;
} vnxi_listen_params_t;

/* States of a connection, in the order of eviction. */
typedef enum vnxi_conn_state {
    VNXI_CONN_KEPT,  /* served; the client has not closed yet, and may ask
                        again if the protocol allows it */
    VNXI_CONN_READ,  /* the request is not complete yet */
    VNXI_CONN_WRITE, /* the reply is not sent completely */
} vnxi_conn_state_t;
#define VNXI_CONN_STATES 3
TAILQ_HEAD(vnxi_conns, vnxi_conn);

/* The next thing to do with a connection, after its input was processed. */
typedef enum vnxi_next {
    VNXI_NEXT_READ,  /* more input is needed */
    VNXI_NEXT_WRITE, /* the last reply of an exchange is in the output */
    VNXI_NEXT_CLOSE, /* close at once */
} vnxi_next_t;

/* A protocol; its functions are called by the loop's thread unless they say
 * otherwise. */
typedef struct vnxi_protocol {
    const char *thread_name;
    size_t server_size; /* the object begins with vnxi_server_t */

    /* A client has connected: take over `fd`, which is non-blocking and
     * close-on-exec.  The server has room for it.  NULL: a library takes the
     * clients. */
    void (*accept)(vnxi_server_t *server, int fd);

    /* Close and free a connection; reset it unless it was served. */
    void (*drop)(vnxi_conn_t *conn);

    /* Called before the thread starts: create what is needed to serve.  False:
     * errno has the cause.  NULL: nothing. */
    bool (*begin)(vnxi_server_t *server);

    /* Called when no thread runs and no connection is left: free what begin()
     * created, also one that failed half-way.  NULL: nothing. */
    void (*end)(vnxi_server_t *server);

    /* If accept() is vnxi_tcp_accept(): */

    size_t conn_size; /* the object begins with vnxi_conn_t */
    size_t input_max; /* limit on buffered input; the kernel holds the rest */
    bool keeps; /* the connection may carry more exchanges; one that comes
                   early stays in the input */

    /* A connection was created; everything after its first member is zeroed.
     * May write.  False: no memory.  NULL: there is nothing to do. */
    bool (*greet)(vnxi_conn_t *conn);

    /* Input arrived: consume what can be consumed, and write any answer to the
     * output.  At most one exchange. */
    vnxi_next_t (*read)(vnxi_conn_t *conn);

    /* The client has closed: was an exchange incomplete? */
    bool (*is_midway)(const vnxi_conn_t *conn);
} vnxi_protocol_t;

extern const vnxi_protocol_t vnxi_tcp_protocol; /* tcp_frames.c */
extern const vnxi_protocol_t vnxi_zmq_protocol;
extern const vnxi_protocol_t vnxi_http_protocol; /* http_listener.c */

/* -- The server ----------------------------------------------------------- */

/* Used by the loop thread alone while it runs, except `port`, waking the loop,
 * `link` and `has_ended`. */
struct vnxi_server {
    int port; /* bound; constant */
    const vnxi_protocol_t *protocol;
    const vnx_side_channel_options_t *options; /* borrowed */
    vnxi_side_stats_t *stats;                  /* borrowed */
    vnxi_blob_table_t *blobs;                  /* borrowed */
    void *tls;         /* owned: SSL_CTX *; NULL: plain */
    vnxi_rate_t *rate; /* NULL: no limit */
    vnxi_loop_t loop;
    LIST_ENTRY(vnxi_server) link; /* `servers`, if it has TLS */
    bool has_ended;               /* its thread, with the process; protected by
                                     the lock of `servers` */
    const struct timeval *timeout; /* of a client; a common timeout */
    const struct timeval *idle;    /* likewise; NULL: the same as `timeout` */
    vnxi_acceptor_t acceptor;
    size_t open; /* connections */
    /* By state, the longest idle first: READ and KEPT by age (slowly arriving
     * bytes do not count), WRITE by the time at which the client last took
     * bytes. */
    struct vnxi_conns conns[VNXI_CONN_STATES];
};

/* Listen, and start a thread that serves.  Waits only for the look-up of a
 * host that is a name, VNX_SIDE_CHANNEL_TIMEOUT_MS at most.  The caller holds
 * no lock.  *out_p is owned: vnxi_server_stop().  Statuses:
 * vnx_side_channel_start_with(). */
vnx_status_t vnxi_server_start(const vnxi_protocol_t *protocol,
                               const vnxi_listen_params_t *params,
                               vnxi_server_t **out_p, vnx_error_t *error);

/* End the thread, close every connection, free the port and the server.
 * Called once, from any thread but the server's; does not wait for clients.
 * Never called in a forked child.  False: the descriptors of the thread were
 * closed by other code, so it cannot be woken; it keeps the server, and
 * everything that the server borrowed, for ever. */
bool vnxi_server_stop(vnxi_server_t *server);

/* -- Connections; the thread of the loop only ----------------------------- */

/* The first member of a protocol's connection. */
struct vnxi_conn {
    TAILQ_ENTRY(vnxi_conn) link; /* server->conns[state] */
    vnxi_server_t *server;
    struct bufferevent *bev;
    void *tls; /* SSL *; NULL: plain */
    int fd;    /* of tcp_listener.c; owned */
    struct event *timer;
    uint64_t start; /* of the exchange, by vnxi_clock_ns() */
    vnxi_conn_state_t state;
    bool turned_away; /* the reply being written is not a blob */
};

/* Create the stream of a connection, and in *tls_p the TLS state if the server
 * has TLS; its handshake comes first.  `options` as for
 * bufferevent_socket_new(); with BEV_OPT_CLOSE_ON_FREE the bufferevent owns
 * the TLS state, otherwise vnxi_tls_free().  NULL: no memory. */
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

/* accept() and drop() of the protocols that read input (tcp_listener.c). */
void vnxi_tcp_accept(vnxi_server_t *server, int fd);
void vnxi_tcp_drop(vnxi_conn_t *conn);

#endif
