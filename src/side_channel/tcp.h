/*
 * TCP transport: frames of requests and replies.  A connection carries one
 * exchange; then the server closes it.  docs/wire.md specifies the bytes.
 *
 *   tcp_wire.c      contents of frames
 *   tcp_listener.c  accepting (over server.c)
 *   tcp_conn.c      a client's connection at the server
 *   tcp_tls.c       TLS under that connection
 *   tcp_frames.c    frames over that connection, and the answers
 *   tcp_client.c    the transport: tries of a client (over client_conn.c)
 *
 * Listener and connections carry other protocols too: vnxi_tcp_protocol_t.
 */
#ifndef VNXI_SIDE_CHANNEL_TCP_H
#define VNXI_SIDE_CHANNEL_TCP_H

#include <event2/bufferevent.h>
#include <event2/event.h>
#include <stdbool.h>
#include <sys/queue.h>

#include "side_channel/server.h"
#include "side_channel/transport.h"

/* -- Listener ------------------------------------------------------------- */

/* States of a connection, in the order of eviction. */
typedef enum vnxi_tcp_state {
    VNXI_TCP_LINGER, /* served; the client has not closed yet */
    VNXI_TCP_READ,   /* the request is not complete yet */
    VNXI_TCP_WRITE,  /* the reply is not sent completely */
} vnxi_tcp_state_t;
#define VNXI_TCP_STATES 3

typedef struct vnxi_tcp_conn vnxi_tcp_conn_t;

/* The next thing to do with a connection, after its input was processed. */
typedef enum vnxi_tcp_next {
    VNXI_TCP_NEXT_READ,  /* more input is needed */
    VNXI_TCP_NEXT_WRITE, /* the last reply of an exchange is in the output */
    VNXI_TCP_NEXT_CLOSE, /* close at once */
} vnxi_tcp_next_t;

/* The protocol of the connections of a listener. */
typedef struct vnxi_tcp_protocol {
    const char *thread_name;
    size_t conn_size; /* the object begins with vnxi_tcp_conn_t */
    size_t input_max; /* limit on buffered input; the kernel holds the rest */
    bool keeps; /* the connection may carry more exchanges; one that comes
                   early stays in the input */

    /* A connection was created; everything after its first member is zeroed.
     * May write.  False: no memory. */
    bool (*begin)(vnxi_tcp_conn_t *conn);

    /* Input arrived: consume what can be consumed, write any answer to the
     * output, and count the bytes.  At most one exchange. */
    vnxi_tcp_next_t (*read)(vnxi_tcp_conn_t *conn);

    /* The client has closed: was an exchange incomplete? */
    bool (*is_midway)(const vnxi_tcp_conn_t *conn);

    /* Free the state that the protocol keeps with a connection. */
    void (*fini)(vnxi_tcp_conn_t *conn);
} vnxi_tcp_protocol_t;

extern const vnxi_tcp_protocol_t vnxi_tcp_frames;

TAILQ_HEAD(vnxi_tcp_conns, vnxi_tcp_conn);

/* Used by the loop thread alone while it runs. */
typedef struct vnxi_tcp_listener {
    vnxi_server_t super;
    const vnxi_tcp_protocol_t *protocol;
    const struct timeval *timeout; /* per client; a common timeout */
    const struct timeval *idle;    /* likewise; NULL: the same as `timeout` */
    size_t open;                   /* connections */
    /* By state, the longest idle first: READ and LINGER by age (slowly
     * arriving bytes do not count), WRITE by the time at which the client last
     * took bytes. */
    struct vnxi_tcp_conns conns[VNXI_TCP_STATES];
} vnxi_tcp_listener_t;

/* vnxi_transport_t's listen(), with any protocol. */
vnx_status_t vnxi_tcp_listen_for(const vnxi_tcp_protocol_t *protocol,
                                 const vnxi_listen_params_t *params,
                                 vnxi_server_t **out_p, vnx_error_t *error);

/* -- One client at the server; the loop thread only ----------------------- */

struct vnxi_tcp_conn {
    TAILQ_ENTRY(vnxi_tcp_conn) link; /* listener->conns[state] */
    vnxi_tcp_listener_t *listener;
    int fd; /* owned; closed at once, whereas a bufferevent would close it in a
               later round of the loop: a process that is out of descriptors
               needs it now */
    struct bufferevent *bev;
    void *tls; /* owned: SSL *; NULL: plain */
    struct event *timer;
    uint64_t start; /* vnxi_clock_ns(); of the exchange */
    vnxi_tcp_state_t state;
    bool turned_away; /* the reply being written is not a blob */
};

/* Take over `fd`.  If the listener is full, make room first. */
void vnxi_tcp_conn_open(vnxi_tcp_listener_t *listener, int fd);

/* Close a connection to make room: from the first state that has any, the
 * longest idle.  False: there is none. */
bool vnxi_tcp_conn_evict(vnxi_tcp_listener_t *listener);

/* Close all connections. */
void vnxi_tcp_conn_close_all(vnxi_tcp_listener_t *listener);

#endif
