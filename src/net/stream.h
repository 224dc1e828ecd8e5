/*
 * A connected socket at the client, plain or with TLS.  Never waits; raises no
 * SIGPIPE.
 */
#ifndef VNXI_NET_STREAM_H
#define VNXI_NET_STREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <vnx/side_channel.h>

#define VNXI_STREAM_REASON_MAX 200

typedef struct vnxi_stream {
    int fd;         /* owned; -1: none */
    void *tls;      /* owned: SSL *; NULL: plain */
    bool by_secret; /* TLS with the shared secret, not a certificate */
    short events;   /* what to wait for after VNX_IN_PROG */
    char reason[VNXI_STREAM_REASON_MAX]; /* after an error or an end */
} vnxi_stream_t;

/* Take ownership of `fd`.  If options->tls is set, start TLS: with the shared
 * secret, or with a server whose certificate is for `host` (or for tls_name,
 * if set).  Errors: reason has the cause. */
vnx_status_t vnxi_stream_open(vnxi_stream_t *stream, int fd, const char *host,
                              const vnx_side_channel_options_t *options);

/* Close the stream.  One with fd -1 is allowed. */
void vnxi_stream_close(vnxi_stream_t *stream);

/* Continue the handshake, if TLS needs one: VNX_OK, VNX_IN_PROG, or an error.
 */
vnx_status_t vnxi_stream_shake(vnxi_stream_t *stream);

/* Send or receive some bytes.  VNX_OK: *count_p has their number; 0 from a
 * receive is the end of the stream.  VNX_IN_PROG: wait for `events`.  Any
 * other status is an error. */
vnx_status_t vnxi_stream_send(vnxi_stream_t *stream, const void *data,
                              size_t len, size_t *count_p);
vnx_status_t vnxi_stream_recv(vnxi_stream_t *stream, void *data, size_t size,
                              size_t *count_p);

#endif
