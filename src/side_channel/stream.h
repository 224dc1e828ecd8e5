/*
 * A connected socket at the client, plain or with TLS over it.  Never waits,
 * raises no SIGPIPE.
 */
#ifndef VNXI_SIDE_CHANNEL_STREAM_H
#define VNXI_SIDE_CHANNEL_STREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <vnx/side_channel.h>

#define VNXI_STREAM_REASON_MAX 200

typedef struct vnxi_stream {
    int fd;         /* owned; -1: none */
    void *tls;      /* owned: SSL *; NULL: plain */
    bool by_secret; /* TLS with the shared secret, not a certificate */
    short events;   /* what to wait for after VNX_IN_PROG */
    char reason[VNXI_STREAM_REASON_MAX]; /* after an error, and at an end */
} vnxi_stream_t;

/* Take `fd`.  If options->tls is set, start TLS: with the shared secret, or
 * with a server whose certificate is for `host` (or for tls_name, if set).
 * Errors: reason has the cause. */
vnx_status_t vnxi_stream_open(vnxi_stream_t *stream, int fd, const char *host,
                              const vnx_side_channel_options_t *options);

/* Close.  One with fd -1 is allowed. */
void vnxi_stream_close(vnxi_stream_t *stream);

/* Shake hands, where TLS needs it: VNX_OK, VNX_IN_PROG, or an error. */
vnx_status_t vnxi_stream_shake(vnxi_stream_t *stream);

/* Send or receive something: VNX_OK and *count_p, of a receive 0 at the end;
 * VNX_IN_PROG; an error. */
vnx_status_t vnxi_stream_send(vnxi_stream_t *stream, const void *data,
                              size_t len, size_t *count_p);
vnx_status_t vnxi_stream_recv(vnxi_stream_t *stream, void *data, size_t size,
                              size_t *count_p);

#endif
