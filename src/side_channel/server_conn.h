/*
 * The part of a client's connection that the transports share at a listener:
 * its place among the others, closing some to make room, counters, TLS.  The
 * thread of the loop only.
 */
#ifndef VNXI_SIDE_CHANNEL_SERVER_CONN_H
#define VNXI_SIDE_CHANNEL_SERVER_CONN_H

#include <event2/buffer.h>
#include <event2/bufferevent.h>

#include "side_channel/server.h"

/* The first member of a transport's connection. */
struct vnxi_conn {
    TAILQ_ENTRY(vnxi_conn) link; /* server->conns[state] */
    vnxi_server_t *server;
    struct bufferevent *bev;
    void *tls; /* SSL *; NULL: plain */
    struct event *timer;
    uint64_t start; /* of the exchange, by vnxi_clock_ns() */
    vnxi_conn_state_t state;
    bool turned_away; /* the reply being written is not a blob */
};

/* Create the stream of a connection, and in *tls_p the TLS state if the server
 * has TLS; its handshake comes first.  `options` as for
 * bufferevent_socket_new(); with BEV_OPT_CLOSE_ON_FREE the bufferevent owns
 * the TLS state, otherwise vnxi_conn_tls_free().  NULL: no memory. */
struct bufferevent *vnxi_conn_stream(vnxi_server_t *server, int fd,
                                     int options, void **tls_p);

/* Add a connection in VNXI_CONN_READ. */
void vnxi_conn_add(vnxi_conn_t *conn);
void vnxi_conn_remove(vnxi_conn_t *conn);

/* Put it last among the connections in that state. */
void vnxi_conn_move(vnxi_conn_t *conn, vnxi_conn_state_t state);

/* Bound the buffered input, so that the kernel holds back the rest, and what
 * is written in one round of the loop.  Small messages are not delayed. */
void vnxi_conn_tune(vnxi_conn_t *conn, int fd, size_t input_max);

/* Note that the kernel took bytes of the output.  A client that takes its
 * reply is not idle. */
void vnxi_conn_sent(vnxi_conn_t *conn, size_t count);

/* Count a reply that was sent completely. */
void vnxi_conn_served(const vnxi_conn_t *conn);

/* Let the kernel drop the bytes that the client does not take when the socket
 * is closed. */
void vnxi_conn_drop_unsent(int fd);

/* Write a blob; takes the reference to it.  False: no memory. */
bool vnxi_conn_write_blob(struct evbuffer *output, vnxi_blob_t *blob);

/* -- All connections ------------------------------------------------------ */

/* Make room for a connection if the server has as many as it may have. */
void vnxi_server_make_room(vnxi_server_t *server);

/* vnxi_acceptor_ops_t's evict(): close a connection to make room, from the
 * first state that has any the longest idle.  False: there is none. */
bool vnxi_server_evict(void *server);

/* Close all connections. */
void vnxi_server_drop_all(vnxi_server_t *server);

/* -- TLS; a plain connection is allowed ----------------------------------- */

bool vnxi_conn_is_shaking(const vnxi_conn_t *conn);

/* Tell the client that the stream ends here, so that it knows that nothing was
 * cut off. */
void vnxi_conn_goodbye(vnxi_conn_t *conn);

/* Free the TLS state, after the bufferevent was freed. */
void vnxi_conn_tls_free(vnxi_conn_t *conn);

#endif
