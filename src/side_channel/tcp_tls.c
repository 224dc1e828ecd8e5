#include "side_channel/tcp_tls.h"

#include <event2/bufferevent_ssl.h>
#include <openssl/err.h>
#include <openssl/ssl.h>

/* Its callbacks come from the loop, never from within a call of OpenSSL: they
 * may free the connection. */
struct bufferevent *
vnxi_tcp_tls_bufferevent(vnxi_tcp_conn_t *conn)
{
    conn->tls = SSL_new(conn->listener->super.tls);
    if (conn->tls == NULL) {
        return NULL;
    }
    struct bufferevent *bev = bufferevent_openssl_socket_new(
        conn->listener->super.base, conn->fd, conn->tls,
        BUFFEREVENT_SSL_ACCEPTING, BEV_OPT_DEFER_CALLBACKS);
    if (bev != NULL) {
        bufferevent_openssl_set_allow_dirty_shutdown(bev, 1);
    }
    return bev;
}

void
vnxi_tcp_tls_goodbye(vnxi_tcp_conn_t *conn)
{
    if (conn->tls != NULL) {
        SSL_shutdown(conn->tls);
        ERR_clear_error();
    }
}

void
vnxi_tcp_tls_free(vnxi_tcp_conn_t *conn)
{
    SSL_free(conn->tls);
    conn->tls = NULL;
}

bool
vnxi_tcp_tls_is_shaking(const vnxi_tcp_conn_t *conn)
{
    return conn->tls != NULL && !SSL_is_init_finished(conn->tls);
}
