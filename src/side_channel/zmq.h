/*
 * ZMQ transport: vLLM's handshake over ZMTP 3.1, as libzmq's ROUTER and REQ
 * speak it.  The bytes: docs/wire.md; why they are not libzmq's own:
 * docs/side_channel.md.
 *
 *   zmq.c           the transport: slots, what it cannot do
 *   zmtp.c          greeting, commands, headers of frames
 *   zmq_wire.c      what requests and replies say
 *   zmq_listener.c  a client's connection, at the server (over tcp_conn.c)
 *   zmq_client.c    the exchange, at the client (over client_conn.c)
 */
#ifndef VNXI_SIDE_CHANNEL_ZMQ_H
#define VNXI_SIDE_CHANNEL_ZMQ_H

#include "side_channel/tcp.h"
#include "side_channel/transport.h"

/* -- Listener ------------------------------------------------------------- */

extern const vnxi_tcp_protocol_t vnxi_zmq_protocol;

/* -- Client --------------------------------------------------------------- */

vnx_status_t vnxi_zmq_begin(const vnxi_request_params_t *params,
                            vnxi_exchange_t **out_p, vnx_error_t *error);
vnx_status_t vnxi_zmq_step(vnxi_exchange_t *exchange, void **data_p,
                           size_t *len_p, vnx_error_t *error);
void vnxi_zmq_end(vnxi_exchange_t *exchange);

#endif
