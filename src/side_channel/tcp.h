/*
 * TCP transport: frames of requests and replies, one exchange a connection,
 * then the server closes.  The bytes: docs/wire.md.
 *
 *   tcp_wire.c      what frames say
 *   tcp_listener.c  accepting (over server.c)
 *   tcp_conn.c      one client's connection, at the server
 *   tcp_tls.c       TLS under that connection
 *   tcp_frames.c    frames over that connection, and the answers
 *   tcp_client.c    one try of a request, at the client (over client_conn.c);
 * the transport
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

/* Where a connection stands, in the order in which room is made. */
typedef enum vnxi_tcp_state {
    VNXI_TCP_LINGER, /* served; the client has yet to close */
    VNXI_TCP_READ,   /* no whole request yet */
    VNXI_TCP_WRITE,  /* the reply is not all sent */
} vnxi_tcp_state_t;
#define VNXI_TCP_STATES 3

typedef struct vnxi_tcp_conn vnxi_tcp_conn_t;

/* What becomes of a connection after its input was looked at. */
typedef enum vnxi_tcp_next {
    VNXI_TCP_NEXT_READ,  /* more has to come */
    VNXI_TCP_NEXT_WRITE, /* the last reply of an exchange is on its way */
    VNXI_TCP_NEXT_CLOSE, /* at once */
} vnxi_tcp_next_t;

/* What is spoken over the connections of a listener. */
typedef struct vnxi_tcp_protocol {
    const char *thread_name;
    size_t conn_size; /* of a connection; vnxi_tcp_conn_t is its head */
    size_t input_max; /* more of a client's bytes stay with the kernel */
    bool keeps;       /* one exchange may follow another; one that comes early
                         stays in the input */

    /* A connection was made, all of it after the head zeroed; may write.
     * False: no memory. */
    bool (*begin)(vnxi_tcp_conn_t *conn);

    /* Input came: take what can be taken, into the output with what is
     * answered, and count the bytes.  At most one exchange. */
    vnxi_tcp_next_t (*read)(vnxi_tcp_conn_t *conn);

    /* The client has left; in the middle of something? */
    bool (*is_midway)(const vnxi_tcp_conn_t *conn);

    /* Free what the protocol keeps with a connection. */
    void (*fini)(vnxi_tcp_conn_t *conn);
} vnxi_tcp_protocol_t;

extern const vnxi_tcp_protocol_t vnxi_tcp_frames;

TAILQ_HEAD(vnxi_tcp_conns, vnxi_tcp_conn);

/* The loop thread's alone between its start and its end. */
typedef struct vnxi_tcp_listener {
    vnxi_server_t super;
    const vnxi_tcp_protocol_t *protocol;
    struct event *accept_events[VNXI_ADDRESSES_MAX];
    const struct timeval *timeout; /* a client's; the base's common one */
    const struct timeval *idle;    /* likewise; NULL: no shorter than that */
    size_t open;                   /* connections */
    /* By state, the longest idle first: READ and LINGER by age (bytes that
     * drip in make nobody younger), WRITE by the last byte taken. */
    struct vnxi_tcp_conns conns[VNXI_TCP_STATES];
} vnxi_tcp_listener_t;

/* As the slots of vnxi_transport_t, whatever is spoken. */
vnx_status_t vnxi_tcp_listen_for(const vnxi_tcp_protocol_t *protocol,
                                 const vnxi_listen_params_t *params,
                                 vnxi_listener_t **out_p, vnx_error_t *error);

/* -- One client at the server; the loop thread only ----------------------- */

struct vnxi_tcp_conn {
    TAILQ_ENTRY(vnxi_tcp_conn) link; /* listener->conns[state] */
    vnxi_tcp_listener_t *listener;
    int fd; /* owned; closed at once, where a bufferevent
               closes in a later round of the loop: whoever
               needs an fd needs it now */
    struct bufferevent *bev;
    void *tls; /* owned: SSL *; NULL: plain */
    struct event *timer;
    uint64_t start; /* vnxi_clock_ns(); of the exchange */
    vnxi_tcp_state_t state;
    bool turned_away; /* what is being written is no blob */
};

/* Take over `fd`, making room first where the listener is full. */
void vnxi_tcp_conn_open(vnxi_tcp_listener_t *listener, int fd);

/* Close the longest idle connection, of those that cost the least to lose
 * first.  False: there is none. */
bool vnxi_tcp_conn_evict(vnxi_tcp_listener_t *listener);

/* Cut all of them off. */
void vnxi_tcp_conn_close_all(vnxi_tcp_listener_t *listener);

#endif
