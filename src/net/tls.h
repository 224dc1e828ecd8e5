/*
 * TLS with OpenSSL, in the mode that options->tls selects.
 *
 * With certificates: TLS 1.2 and newer; the client checks the server's
 * certificate against tls_ca (or the system's authorities) and its name
 * against tls_name (or the requested host).
 *
 * With the shared secret: TLS 1.3 with a pre-shared key.  Both ends derive the
 * key from the secret, and the handshake succeeds only if the secrets are
 * equal.  TLS uses no certificates, tickets or early data.  The key exchange
 * is ephemeral (psk_dhe_ke), so a secret that leaks later does not open
 * recorded traffic.
 */
#ifndef VNXI_NET_TLS_H
#define VNXI_NET_TLS_H

#include <stdbool.h>
#include <stddef.h>
#include <vnx/side_channel.h>

struct bufferevent;
struct event_base;

/* Is TLS in this build?  If not, options->tls is VNXI_TLS_NONE, and nothing
 * below is called. */
#ifdef VNXI_SIDE_CHANNEL_TLS
#define VNXI_TLS_IS_THERE true
#else
#define VNXI_TLS_IS_THERE false
#endif

/* Values of options->tls, as the side channel sets it. */
#define VNXI_TLS_NONE 0u
#define VNXI_TLS_CERTIFICATE 1u
#define VNXI_TLS_SECRET 2u /* a key derived from the secret */

/* -- Client --------------------------------------------------------------- */

/* A connected socket at the client, plain or with TLS.  With TLS it stays
 * where it is. */
typedef struct vnxi_stream {
    int fd;           /* owned; -1: none */
    void *tls;        /* owned: SSL *; NULL: plain */
    bool by_secret;   /* TLS with the shared secret, not a certificate */
    bool is_shaken;   /* the handshake is complete */
    size_t left;      /* bytes that this step of TLS may still receive */
    short events;     /* what to wait for after VNX_IN_PROG */
    char reason[200]; /* after an error or an end */
} vnxi_stream_t;

/* Prepare TLS: with the shared secret, or with a server whose certificate is
 * for `host` (or for tls_name, if set).  Errors: reason has the cause. */
vnx_status_t vnxi_tls_client_open(vnxi_stream_t *stream, const char *host,
                                  const vnx_side_channel_options_t *options);
void vnxi_tls_client_close(vnxi_stream_t *stream);

/* Continue the handshake: VNX_OK, VNX_IN_PROG, or an error.  Never waits, and
 * returns soon even if the peer sends without end; raises no SIGPIPE. */
vnx_status_t vnxi_tls_client_shake(vnxi_stream_t *stream);

/* Send or receive some bytes.  VNX_OK: *count_p has their number; 0 from a
 * receive is the end of the stream. */
vnx_status_t vnxi_tls_client_send(vnxi_stream_t *stream, const void *data,
                                  size_t len, size_t *count_p);
vnx_status_t vnxi_tls_client_recv(vnxi_stream_t *stream, void *data,
                                  size_t size, size_t *count_p);

/* Are bytes left in TLS that a receive would return although the socket has
 * none?  After a receive that has returned some. */
bool vnxi_tls_client_has_more(const vnxi_stream_t *stream);

/* Remove the errors that another library's use of OpenSSL has left in this
 * thread's queue. */
void vnxi_tls_forget_errors(void);

/* -- Server --------------------------------------------------------------- */

/* Make a context with the options' certificate and key, or secret: *ctx_p is
 * an SSL_CTX, owned: vnxi_tls_context_free().  VNX_ERR_INVALID_PARAM if a file
 * is missing or is not PEM, the key has a password, or key and certificate do
 * not match; the record says which.  `operation` is for the record. */
vnx_status_t vnxi_tls_server_context(const vnx_side_channel_options_t *options,
                                     const char *operation, void **ctx_p,
                                     vnx_error_t *error);
void vnxi_tls_context_free(void *ctx); /* NULL is allowed */

/* Create the stream of an accepted connection, which begins with the
 * handshake.  *tls_p is its SSL, owned by the bufferevent if `options` has
 * BEV_OPT_CLOSE_ON_FREE, otherwise freed by vnxi_tls_free().  NULL: no memory.
 */
struct bufferevent *vnxi_tls_accept(void *ctx, struct event_base *base, int fd,
                                    int options, void **tls_p);

/* Free the SSL, after the bufferevent was freed; NULL is allowed, here and
 * below. */
void vnxi_tls_free(void *tls);

/* Has the handshake not ended yet?  False for NULL: a plain connection. */
bool vnxi_tls_is_shaking(void *tls);

/* Tell the client that the stream ends here, so that it knows that nothing was
 * cut off. */
void vnxi_tls_goodbye(void *tls);

/* Return why the handshake failed. */
typedef enum vnxi_tls_failure {
    VNXI_TLS_FAILED,           /* for another reason */
    VNXI_TLS_FAILED_NOT_TLS,   /* the client does not speak TLS */
    VNXI_TLS_FAILED_NO_KEY,    /* it offered no pre-shared key */
    VNXI_TLS_FAILED_WRONG_KEY, /* its secret differs */
} vnxi_tls_failure_t;
vnxi_tls_failure_t vnxi_tls_failure(struct bufferevent *bev);

/* -- The shared secret (tls_psk.c) ---------------------------------------- */

#define VNXI_PSK_LEN 32u /* VNXI_MAC_LEN */

/* Derive the key: HKDF-SHA256, as docs/wire.md specifies.  False: OpenSSL
 * failed. */
bool vnxi_psk_derive(const char *secret, unsigned char key_p[VNXI_PSK_LEN]);

/* Make connections of a server's context (SSL_CTX *) use the secret's key and
 * nothing else.  `secret` is borrowed as long as the context lives.  False:
 * OpenSSL failed. */
bool vnxi_psk_serve(void *ctx, const char *secret);

/* Create a client's connection (SSL *) that uses the secret's key and nothing
 * else.  `secret` is borrowed as long as the connection lives.  NULL: OpenSSL
 * failed. */
void *vnxi_psk_client(const char *secret);

#endif
