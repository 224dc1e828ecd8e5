#include "side_channel/tcp_tls.h"

#include <event2/bufferevent_ssl.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <sys/socket.h>

#include "net/tls.h"
#include "side_channel/tcp_wire.h"

/* Callbacks run from the loop, never inside a call of OpenSSL, because they
 * may free the connection. */
struct bufferevent *
vnxi_tcp_tls_bufferevent(vnxi_tcp_conn_t *conn)
{
    conn->tls = SSL_new(conn->listener->super.tls);
    if (conn->tls == NULL) {
        return NULL;
    }
    struct bufferevent *bev = bufferevent_openssl_socket_new(
        conn->listener->super.loop.base, conn->fd, conn->tls,
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

/* Read the remaining input first: closing a socket with unread bytes resets
 * the connection, and the alert may be lost with it. */
static void
send_alert(int fd)
{
    char rest[2048];

    (void)!recv(fd, rest, sizeof rest, MSG_DONTWAIT);
    (void)!send(fd, VNXI_TCP_ALERT, VNXI_TCP_ALERT_LEN,
                MSG_DONTWAIT | MSG_NOSIGNAL);
}

vnx_side_channel_refusal_t
vnxi_tcp_tls_refusal(vnxi_tcp_conn_t *conn)
{
    bool wants_secret = conn->listener->super.options->secret != NULL;
    int reason = ERR_GET_REASON(bufferevent_get_openssl_error(conn->bev));

    if (vnxi_tls_is_not_tls(reason)) {
        send_alert(conn->fd); /* OpenSSL does not send one */
        return wants_secret ? VNX_SIDE_CHANNEL_REFUSED_NO_PROOF
                            : VNX_SIDE_CHANNEL_REFUSED_TLS;
    }
    if (reason == SSL_R_BINDER_DOES_NOT_VERIFY) {
        return VNX_SIDE_CHANNEL_REFUSED_WRONG_PROOF;
    }
    return wants_secret && reason == SSL_R_NO_SUITABLE_SIGNATURE_ALGORITHM
               ? VNX_SIDE_CHANNEL_REFUSED_NO_PROOF
               : VNX_SIDE_CHANNEL_REFUSED_TLS;
}
