/*
 * TLS by OpenSSL, 1.2 and newer.  At the client the server's certificate is
 * checked against tls_ca, or the system's, and its name against tls_name, or
 * the host that was asked.
 */
#ifndef VNXI_SIDE_CHANNEL_TLS_H
#define VNXI_SIDE_CHANNEL_TLS_H

#include <vnx/side_channel.h>

#include "side_channel/stream.h"

/* -- Client: what stream.c does where there is TLS ------------------------ */

vnx_status_t vnxi_tls_client_open(vnxi_stream_t *stream, const char *host,
                                  const vnx_side_channel_options_t *options);
void vnxi_tls_client_close(vnxi_stream_t *stream);
vnx_status_t vnxi_tls_client_shake(vnxi_stream_t *stream);
vnx_status_t vnxi_tls_client_send(vnxi_stream_t *stream, const void *data,
                                  size_t len, size_t *count_p);
vnx_status_t vnxi_tls_client_recv(vnxi_stream_t *stream, void *data,
                                  size_t size, size_t *count_p);

/* -- Server --------------------------------------------------------------- */

/* A context with the options' certificate and key: *ctx_p is an SSL_CTX,
 * owned, for SSL_CTX_free().  VNX_ERR_INVALID_PARAM where a file is missing or
 * is none, or the two do not go together; the record says which. */
vnx_status_t vnxi_tls_server_context(const vnx_side_channel_options_t *options,
                                     void **ctx_p, vnx_error_t *error);

#endif
