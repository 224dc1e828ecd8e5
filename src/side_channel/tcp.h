/*
 * TCP transport: one request frame, one reply frame, then the server closes.
 * The bytes: docs/wire.md.
 *
 *   tcp.c           the transport: constants and slots
 *   tcp_socket.c    binding the listening sockets
 *   tcp_listener.c  a listener's life, its thread, accepting
 *   tcp_conn.c      one client's exchange, at the server
 *   tcp_client.c    the exchange, at the client
 */
#ifndef VNXI_SIDE_CHANNEL_TCP_H
#define VNXI_SIDE_CHANNEL_TCP_H

#include <event2/event.h>
#include <pthread.h>
#include <stdbool.h>
#include <sys/queue.h>

#include "side_channel/blob.h"
#include "side_channel/resolve.h"
#include "side_channel/transport.h"

#define VNXI_TCP_REQUEST "GET_METADATA"
#define VNXI_TCP_REQUEST_LEN 12u
#define VNXI_TCP_REQUEST_MAX 1036u /* room for later requests */

/* -- Listening sockets ---------------------------------------------------- */

typedef struct vnxi_tcp_sockets {
    size_t count;
    int fds[VNXI_ADDRESSES_MAX]; /* owned */
    int port;                    /* of all of them */
} vnxi_tcp_sockets_t;

/* Bind and listen on every address that params->host stands for; all on one
 * port.  Statuses as vnx_side_channel_start(). */
vnx_status_t vnxi_tcp_sockets_open(const vnxi_listen_params_t *params,
                                   vnxi_tcp_sockets_t *out_p,
                                   vnx_error_t *error);

/* Free the port, also where a forked child holds copies of the sockets.  A
 * zeroed one is allowed. */
void vnxi_tcp_sockets_close(vnxi_tcp_sockets_t *sockets);

/* -- Loops ---------------------------------------------------------------- */

/* A base for one thread: without locks, and no variable of the environment
 * chooses its kernel interface.  NULL: it cannot be had. */
struct event_base *vnxi_tcp_base_new(void);

/* Start a thread with every signal blocked: they are the program's business,
 * and a write to somebody who is gone shall not kill it.  0, or errno. */
int vnxi_tcp_thread_new(pthread_t *thread_p, void *(*entry)(void *),
                        void *arg);

/* -- Listener ------------------------------------------------------------- */

/* Where a connection stands, in the order in which room is made. */
typedef enum vnxi_tcp_state {
    VNXI_TCP_LINGER, /* served; the client has yet to close */
    VNXI_TCP_READ,   /* no whole request yet */
    VNXI_TCP_WRITE,  /* the reply is not all sent */
} vnxi_tcp_state_t;
#define VNXI_TCP_STATES 3

typedef struct vnxi_tcp_conn vnxi_tcp_conn_t;
TAILQ_HEAD(vnxi_tcp_conns, vnxi_tcp_conn);

/* The loop thread's alone between its start and its end, but for `super`,
 * `stop_fd` and `thread`. */
typedef struct vnxi_tcp_listener {
    vnxi_listener_t super;
    vnxi_side_stats_t *stats; /* borrowed */
    vnxi_tcp_sockets_t sockets;
    vnxi_blob_t *reply;
    struct event_base *base;
    struct event *accept_events[VNXI_ADDRESSES_MAX];
    struct event *resume_event; /* ends a pause of accepting */
    struct event *stop_event;
    int stop_fd;    /* eventfd: written to end the thread */
    int reserve_fd; /* given up to refuse a client when fds run out */
    pthread_t thread;
    const struct timeval *timeout; /* a client's; the base's common one */
    size_t open, max;              /* connections */
    /* By state, the longest idle first: READ and LINGER by age (bytes that
     * drip in make nobody younger), WRITE by the last byte taken. */
    struct vnxi_tcp_conns conns[VNXI_TCP_STATES];
} vnxi_tcp_listener_t;

vnx_status_t vnxi_tcp_listen(const vnxi_listen_params_t *params,
                             vnxi_listener_t **out_p, vnx_error_t *error);
void vnxi_tcp_stop(vnxi_listener_t *listener);

/* -- One client at the server; the loop thread only ----------------------- */

/* Take over `fd`, making room first where the listener is full. */
void vnxi_tcp_conn_open(vnxi_tcp_listener_t *listener, int fd);

/* Close the longest idle connection, of those that cost the least to lose
 * first.  False: there is none. */
bool vnxi_tcp_conn_evict(vnxi_tcp_listener_t *listener);

/* Cut all of them off. */
void vnxi_tcp_conn_close_all(vnxi_tcp_listener_t *listener);

/* -- Client --------------------------------------------------------------- */

vnx_status_t vnxi_tcp_request(const vnxi_request_params_t *params,
                              void **metadata_p, size_t *length_p,
                              vnx_error_t *error);

#endif
