/*
 * A client's connection.  It resolves the host, connects, performs the TLS
 * handshake if the options ask for it, and then carries the transport's bytes.
 * Never waits; used by one thread at a time.
 */
#ifndef VNXI_SIDE_CHANNEL_CLIENT_CONN_H
#define VNXI_SIDE_CHANNEL_CLIENT_CONN_H

#include "net/connect.h"
#include "net/tls.h"
#include "side_channel/transport.h"

typedef enum vnxi_client_stage {
    VNXI_CLIENT_DIAL,
    VNXI_CLIENT_SHAKE,
    VNXI_CLIENT_OPEN, /* the transport sends and receives */
} vnxi_client_stage_t;

/* The first member of the state that a transport keeps with a request. */
typedef struct vnxi_client_conn {
    vnxi_request_t *request; /* borrowed */
    vnxi_client_stage_t stage;
    vnxi_dial_t dial;
    vnxi_stream_t stream;
    const char *opening;      /* the request's phase once it is open */
    const unsigned char *out; /* borrowed: bytes to send */
    size_t out_len, out_sent;
} vnxi_client_conn_t;

/* Initialize an object that is all zeros.  `out` is the buffer in which the
 * transport will write its output, and `opening` (static storage) what it does
 * first, for records.  Nothing begins yet. */
void vnxi_client_conn_init(vnxi_client_conn_t *conn, vnxi_request_t *request,
                           const unsigned char *out, const char *opening);

/* End it at any stage. */
void vnxi_client_conn_fini(vnxi_client_conn_t *conn);

/* Look the host up and connect.  VNX_OK: the stream has the socket, and the
 * stage is VNXI_CLIENT_SHAKE.  For a transport that goes on by itself. */
vnx_status_t vnxi_client_conn_dial(vnxi_client_conn_t *conn);

/* Begin a step of the transport.  VNX_OK: the connection is open and the
 * deadline has not passed. */
vnx_status_t vnxi_client_conn_step(vnxi_client_conn_t *conn);

/* Send the rest of `out`.  VNX_OK: all of it was sent, and out_len is 0. */
vnx_status_t vnxi_client_conn_send(vnxi_client_conn_t *conn);

/* Receive the bytes that `in` wants.  VNX_OK: all are there.  VNX_IN_PROG: no
 * more are there now, or this step has received enough.  VNX_ERR_CLOSED:
 * the peer has closed before; the caller writes the record.  VNX_ERR_TIMEOUT:
 * the deadline has passed, even if bytes are available. */
vnx_status_t vnxi_client_conn_receive(vnxi_client_conn_t *conn,
                                      vnxi_incoming_t *in);

#endif
