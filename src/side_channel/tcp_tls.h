/*
 * TLS under a connection of the TCP listener; nothing at all in a build
 * without it.  The loop thread only, but for starting and stopping.
 */
#ifndef VNXI_SIDE_CHANNEL_TCP_TLS_H
#define VNXI_SIDE_CHANNEL_TCP_TLS_H

#include "side_channel/tcp.h"

#ifdef VNXI_SIDE_CHANNEL_TLS

/* Read the files, where the options ask for TLS.  Statuses:
 * vnx_side_channel_start_with(). */
vnx_status_t vnxi_tcp_tls_start(vnxi_tcp_listener_t *listener,
                                vnx_error_t *error);
void vnxi_tcp_tls_stop(vnxi_tcp_listener_t *listener);

/* A bufferevent that shakes hands first; NULL: no memory. */
struct bufferevent *vnxi_tcp_tls_bufferevent(vnxi_tcp_conn_t *conn);

/* Have the client know that nothing was cut off. */
void vnxi_tcp_tls_goodbye(vnxi_tcp_conn_t *conn);

/* After the bufferevent was freed.  A plain one is allowed. */
void vnxi_tcp_tls_free(vnxi_tcp_conn_t *conn);

bool vnxi_tcp_tls_is_shaking(const vnxi_tcp_conn_t *conn);

#else

static inline vnx_status_t
vnxi_tcp_tls_start(vnxi_tcp_listener_t *listener, vnx_error_t *error)
{
    (void)listener, (void)error;
    return VNX_OK;
}

static inline void
vnxi_tcp_tls_stop(vnxi_tcp_listener_t *listener)
{
    (void)listener;
}

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

#endif
#endif
