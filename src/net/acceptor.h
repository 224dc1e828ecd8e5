/*
 * Accepts connections on listening sockets, on the thread of a loop.
 *
 * Connections are accepted in batches; after each, accepting pauses for one
 * round of the loop.  So a storm of connections does not starve the clients
 * being served.
 *
 * A process that is out of file descriptors cannot accept.  A client that
 * waits for it keeps the socket readable, so the loop would spin.  Therefore
 * the acceptor closes another connection, or holds a descriptor in reserve: it
 * closes that descriptor for the moment it takes to accept a client and close
 * it.  If neither is possible, accepting pauses for some milliseconds.
 */
#ifndef VNXI_NET_ACCEPTOR_H
#define VNXI_NET_ACCEPTOR_H

#include <event2/listener.h>

#include "net/loop.h"
#include "net/sockets.h"

/* Called on the loop's thread with the owner of the loop. */
typedef struct vnxi_acceptor_ops {
    /* A client has connected: take over `fd`, which is non-blocking and
     * close-on-exec. */
    void (*accept)(void *owner, int fd, const vnxi_address_t *from);

    /* Close a connection to make room: of those that cost the least to lose,
     * the longest idle.  False: there is none. */
    bool (*evict)(void *owner);

    /* A client was accepted with the reserve and closed.  NULL: there is no
     * reserve; clients wait until a descriptor is free. */
    void (*refused)(void *owner);
} vnxi_acceptor_ops_t;

typedef struct vnxi_acceptor {
    const vnxi_acceptor_ops_t *ops;
    void *owner;
    vnxi_sockets_t sockets;
    struct evconnlistener *listeners[VNXI_ADDRESSES_MAX]; /* of the sockets */
    struct event *resume_event;                           /* ends a pause */
    unsigned batch; /* accepted since the last pause */
    int reserve_fd; /* -1: none */
} vnxi_acceptor_t;

/* Begin to accept; takes over the sockets, also on failure.  Either the loop's
 * thread does not run yet, or it is the caller.  False: errno has the cause,
 * and the acceptor must be closed. */
bool vnxi_acceptor_open(vnxi_acceptor_t *acceptor, vnxi_loop_t *loop,
                        const vnxi_sockets_t *sockets,
                        const vnxi_acceptor_ops_t *ops);

/* Accept no more; free the port and the memory.  The loop's thread, outside
 * accept(), or after it has ended.  An acceptor that is not open is allowed.
 */
void vnxi_acceptor_close(vnxi_acceptor_t *acceptor);

/* Return a default for the number of connections: 1/part of the process's
 * limit of descriptors, which have other uses too, but `most` at most. */
uint32_t vnxi_acceptor_connections(unsigned part, uint32_t most);

/* -- For a library that takes the clients of `listeners` itself ----------- */

/* Count a client, and pause after a batch of them. */
void vnxi_acceptor_count(vnxi_acceptor_t *acceptor);

/* Handle an accept() on the socket `fd` that failed with `err`. */
void vnxi_acceptor_failed(vnxi_acceptor_t *acceptor, int fd, int err);

/* Has the client closed already without having sent anything?  In a storm of
 * connections many have by the time they are accepted.  Such clients have to
 * cost as little as possible, because the next clients wait for them. */
bool vnxi_acceptor_has_left(int client);

#endif
