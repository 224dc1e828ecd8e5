/*
 * TCP transport: frames of requests and replies.  A connection carries one
 * exchange; then the server closes it.  docs/wire.md specifies the bytes.
 *
 *   tcp_wire.c      the bytes of frames
 *   tcp_listener.c  clients' connections at the server (over server.c)
 *   tcp_frames.c    the requests on such a connection, and the answers
 *   tcp_client.c    the transport: tries of a client (over client_conn.c)
 *
 * Listener and connections carry other protocols too: vnxi_tcp_protocol_t.
 */
#ifndef VNXI_SIDE_CHANNEL_TCP_H
#define VNXI_SIDE_CHANNEL_TCP_H

#include <stdbool.h>

#include "side_channel/server.h"
#include "side_channel/transport.h"

/* -- Listener ------------------------------------------------------------- */

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
     * May write.  False: no memory.  NULL: there is nothing to do. */
    bool (*begin)(vnxi_tcp_conn_t *conn);

    /* Input arrived: consume what can be consumed, and write any answer to the
     * output.  At most one exchange. */
    vnxi_tcp_next_t (*read)(vnxi_tcp_conn_t *conn);

    /* The client has closed: was an exchange incomplete? */
    bool (*is_midway)(const vnxi_tcp_conn_t *conn);
} vnxi_tcp_protocol_t;

extern const vnxi_tcp_protocol_t vnxi_tcp_frames; /* tcp_frames.c */
extern const vnxi_tcp_protocol_t vnxi_zmq_protocol;

/* Used by the loop thread alone while it runs. */
typedef struct vnxi_tcp_listener {
    vnxi_server_t super;
    const vnxi_tcp_protocol_t *protocol;
    const struct timeval *timeout; /* per client; a common timeout */
    const struct timeval *idle;    /* likewise; NULL: the same as `timeout` */
} vnxi_tcp_listener_t;

/* vnxi_transport_t's listen(), with any protocol. */
vnx_status_t vnxi_tcp_listen_for(const vnxi_tcp_protocol_t *protocol,
                                 const vnxi_listen_params_t *params,
                                 vnxi_server_t **out_p, vnx_error_t *error);

/* -- One client at the server; the loop thread only ----------------------- */

struct vnxi_tcp_conn {
    vnxi_conn_t super;
    vnxi_tcp_listener_t *listener;
    int fd; /* owned; closed at once, whereas a bufferevent would close it in a
               later round of the loop: a process that is out of descriptors
               needs it now */
};

#endif
