/*
 * ZMQ transport: vLLM's handshake over ZMTP 3.1, as libzmq's ROUTER and REQ
 * speak it.  The bytes: docs/wire.md; why they are not libzmq's own:
 * docs/side_channel.md.
 *
 *   zmtp.c          greeting, commands, headers of frames
 *   zmq_wire.c      what requests and replies say
 *   zmq_protocol.c  a protocol of the TCP listener
 *   zmq_client.c    one try of a request, at the client (over client_conn.c);
 * the transport
 */
#ifndef VNXI_SIDE_CHANNEL_ZMQ_H
#define VNXI_SIDE_CHANNEL_ZMQ_H

#include "side_channel/tcp.h"
#include "side_channel/transport.h"

/* Spoken over the connections of the TCP listener. */
extern const vnxi_tcp_protocol_t vnxi_zmq_protocol;

#endif
