/*
 * TLS with OpenSSL, in the mode that options->tls selects.  With certificates:
 * TLS 1.2 and newer; the client checks the server's certificate against tls_ca
 * (or the system's authorities) and its name against tls_name (or the
 * requested host).  With the shared secret: TLS 1.3 (tls_psk.h).
 */
#ifndef VNXI_NET_TLS_H
#define VNXI_NET_TLS_H

#include <stdbool.h>
#include <vnx/side_channel.h>

/* The client keeps its state in the stream (stream.h). */
typedef struct vnxi_stream vnxi_stream_t;

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

/* -- Client: the part of stream.c that uses TLS --------------------------- */

vnx_status_t vnxi_tls_client_open(vnxi_stream_t *stream, const char *host,
                                  const vnx_side_channel_options_t *options);
void vnxi_tls_client_close(vnxi_stream_t *stream);
vnx_status_t vnxi_tls_client_shake(vnxi_stream_t *stream);
vnx_status_t vnxi_tls_client_send(vnxi_stream_t *stream, const void *data,
                                  size_t len, size_t *count_p);
vnx_status_t vnxi_tls_client_recv(vnxi_stream_t *stream, void *data,
                                  size_t size, size_t *count_p);

/* Does the reason of an OpenSSL error say that the other end does not speak
 * TLS? */
bool vnxi_tls_is_not_tls(int reason);

/* -- Server --------------------------------------------------------------- */

/* Make a context with the options' certificate and key, or secret: *ctx_p is
 * an SSL_CTX, owned: vnxi_tls_context_free().  VNX_ERR_INVALID_PARAM if a file
 * is missing or is not PEM, or key and certificate do not match; the record
 * says which.  `operation` is for the record. */
vnx_status_t vnxi_tls_server_context(const vnx_side_channel_options_t *options,
                                     const char *operation, void **ctx_p,
                                     vnx_error_t *error);
void vnxi_tls_context_free(void *ctx); /* NULL is allowed */

#endif
