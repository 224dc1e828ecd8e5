/*
 * ZMQ transport: vLLM's handshake over ZMTP 3.1, as libzmq's ROUTER and REQ
 * sockets speak it.  docs/wire.md specifies the bytes; docs/side_channel.md
 * explains why libzmq is not used.
 *
 *   zmtp.c          greeting, commands, headers of frames
 *   zmq_wire.c      contents of requests and replies
 *   zmq_protocol.c  the protocol of the TCP listener
 *   zmq_client.c    the transport: tries of a client (over client_conn.c)
 */
#ifndef VNXI_SIDE_CHANNEL_ZMQ_H
#define VNXI_SIDE_CHANNEL_ZMQ_H

#include "side_channel/tcp.h"
#include "side_channel/transport.h"

/* The protocol for connections of the TCP listener. */
extern const vnxi_tcp_protocol_t vnxi_zmq_protocol;

#endif
