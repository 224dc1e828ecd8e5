/*
 * A client's connection: what the transports share that open a socket
 * themselves (TCP and ZMQ).  It resolves the host, connects, performs the TLS
 * handshake if the options ask for it, and then carries the transport's bytes.
 * Never waits; used by one thread at a time.
 */
#ifndef VNXI_SIDE_CHANNEL_CLIENT_CONN_H
#define VNXI_SIDE_CHANNEL_CLIENT_CONN_H

#include "side_channel/dial.h"
#include "side_channel/stream.h"

typedef enum vnxi_client_conn_stage {
    VNXI_CLIENT_DIAL,
    VNXI_CLIENT_SHAKE,
    VNXI_CLIENT_OPEN, /* bytes go to and fro */
} vnxi_client_conn_stage_t;

/* The head of what a transport keeps with a request. */
typedef struct vnxi_client_conn {
    vnxi_request_t *request; /* borrowed */
    vnxi_client_conn_stage_t stage;
    vnxi_dial_t dial;
    vnxi_stream_t stream;
    const char *doing;        /* for records, once it is open; NULL: sending
                                 or receiving */
    const unsigned char *out; /* borrowed: what to send */
    size_t out_len, out_sent;
} vnxi_client_conn_t;

/* Of an object that is all zeros; `out` is where the transport will put what
 * it says.  Nothing begins yet. */
void vnxi_client_conn_init(vnxi_client_conn_t *conn, vnxi_request_t *request,
                           const unsigned char *out);

void vnxi_client_conn_fini(vnxi_client_conn_t *conn);

/* The beginning of every step: VNX_OK: it is open, and not too late. */
vnx_status_t vnxi_client_conn_step(vnxi_client_conn_t *conn);

/* Send what is left of `out`.  VNX_OK: all of it, and out_len is 0. */
vnx_status_t vnxi_client_conn_send(vnxi_client_conn_t *conn);

/* Receive `size` bytes at most; *count_p 0: the other side has closed.
 * VNX_ERR_TIMEOUT past the deadline, however much there is to be had. */
vnx_status_t vnxi_client_conn_recv(vnxi_client_conn_t *conn, void *space,
                                   size_t size, size_t *count_p);

/* Write the record of a failure in whatever phase it is in; `status`. */
vnx_status_t vnxi_client_conn_failed(vnxi_client_conn_t *conn,
                                     vnx_status_t status, const char *reason);

/* The other side says that it does not serve the key. */
vnx_status_t vnxi_client_conn_no_key(vnxi_client_conn_t *conn);

#endif
