/*
 * TLS under a connection of the TCP listener.  Does nothing in a build without
 * TLS.  Loop thread only.
 */
#ifndef VNXI_SIDE_CHANNEL_TCP_TLS_H
#define VNXI_SIDE_CHANNEL_TCP_TLS_H

#include "side_channel/tcp.h"

#ifdef VNXI_SIDE_CHANNEL_TLS

/* Create a bufferevent that performs the handshake first.  NULL: no memory. */
struct bufferevent *vnxi_tcp_tls_bufferevent(vnxi_tcp_conn_t *conn);

/* Tell the client that the stream ends here, so that it knows that nothing was
 * cut off. */
void vnxi_tcp_tls_goodbye(vnxi_tcp_conn_t *conn);

/* Free the TLS state, after the bufferevent was freed.  A plain connection is
 * allowed. */
void vnxi_tcp_tls_free(vnxi_tcp_conn_t *conn);

bool vnxi_tcp_tls_is_shaking(const vnxi_tcp_conn_t *conn);

/* Handle a handshake that failed; returns why the client is refused.  A client
 * that does not speak TLS gets an alert that it may understand. */
vnx_side_channel_refusal_t vnxi_tcp_tls_refusal(vnxi_tcp_conn_t *conn);

#else

static inline struct bufferevent *
vnxi_tcp_tls_bufferevent(vnxi_tcp_conn_t *conn)
{
    (void)conn;
    return NULL;
}

static inline void
vnxi_tcp_tls_goodbye(vnxi_tcp_conn_t *conn)
{
    (void)conn;
}

static inline void
vnxi_tcp_tls_free(vnxi_tcp_conn_t *conn)
{
    (void)conn;
}

static inline bool
vnxi_tcp_tls_is_shaking(const vnxi_tcp_conn_t *conn)
{
    (void)conn;
    return false;
}

static inline vnx_side_channel_refusal_t
vnxi_tcp_tls_refusal(vnxi_tcp_conn_t *conn)
{
    (void)conn;
    return VNX_SIDE_CHANNEL_REFUSED_TLS;
}

#endif
#endif
