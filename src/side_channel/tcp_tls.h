/*
 * TLS under a connection of the TCP listener; nothing at all in a build
 * without it.  The loop thread only.
 */
#ifndef VNXI_SIDE_CHANNEL_TCP_TLS_H
#define VNXI_SIDE_CHANNEL_TCP_TLS_H

#include "side_channel/tcp.h"

#ifdef VNXI_SIDE_CHANNEL_TLS

/* A bufferevent that shakes hands first; NULL: no memory. */
struct bufferevent *vnxi_tcp_tls_bufferevent(vnxi_tcp_conn_t *conn);

/* Have the client know that nothing was cut off. */
void vnxi_tcp_tls_goodbye(vnxi_tcp_conn_t *conn);

/* After the bufferevent was freed.  A plain one is allowed. */
void vnxi_tcp_tls_free(vnxi_tcp_conn_t *conn);

bool vnxi_tcp_tls_is_shaking(const vnxi_tcp_conn_t *conn);

/* After a handshake that failed: why the client is refused.  A client that
 * does not speak TLS is told so, which it may understand. */
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
