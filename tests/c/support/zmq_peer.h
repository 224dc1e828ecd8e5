/* Shared by the tests of the ZMQ side channel: the bytes that libzmq sends. */
#ifndef VNX_ZMQ_PEER_H
#define VNX_ZMQ_PEER_H

#include "side_channel_peer.h"

#define BLOB "the blob of rank 0"
#define BLOB_LEN (sizeof BLOB - 1)

#define GREETING "\xff\0\0\0\0\0\0\0\1\x7f\3\1NULL"
#define GREETING_LEN 64
#define READY_BODY "\5READY\x0bSocket-Type\0\0\0"

/* Literals with their zeros. */
#define SEND(fd, literal) peer_send(fd, literal, sizeof(literal) - 1)

#define NAME "\xc4\x0cget_meta_msg"
/* Delimiter and request: of rank 0, 0, and of an older 0. */
#define ASK_0_0 "\1\0\0\x11\x93" NAME "\0\0"
#define ASK_0 "\1\0\0\x10\x92" NAME "\0"

static vnx_side_channel_t *
zmq_new(const vnx_side_channel_options_t *options)
{
    return channel_of(VNX_SIDE_CHANNEL_ZMQ, options);
}

static void
send_greeting(int fd)
{
    static const char greeting[GREETING_LEN] = GREETING;
    peer_send(fd, greeting, sizeof greeting);
}

#endif
