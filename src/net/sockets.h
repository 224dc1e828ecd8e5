/*
 * Listening sockets, for the transports that accept TCP connections
 * themselves; and the addresses behind them, for those that leave that to a
 * library.
 */
#ifndef VNXI_NET_SOCKETS_H
#define VNXI_NET_SOCKETS_H

#include <vnx/error.h>

#include "net/resolve.h"

typedef struct vnxi_bind_params {
    const char *operation; /* for errors */
    const char *host;      /* NULL: every address; else as in
                              vnx_side_channel_start_params_t */
    int port;              /* 0: any free one */
    const char *endpoint;  /* "host:port" for errors */
} vnxi_bind_params_t;

typedef struct vnxi_sockets {
    size_t count;
    int fds[VNXI_ADDRESSES_MAX]; /* owned */
    int port;                    /* of all of them */
} vnxi_sockets_t;

/* Bind and listen on every address that params->host stands for; all on one
 * port.  The sockets do not block.  Statuses as vnx_side_channel_start(). */
vnx_status_t vnxi_sockets_open(const vnxi_bind_params_t *params,
                               vnxi_sockets_t *out_p, vnx_error_t *error);

/* Why a listener cannot start, with the errno of what went wrong. */
vnx_status_t vnxi_bind_failed(const vnxi_bind_params_t *params,
                              vnx_error_t *error, const char *what, int err);

/* Free the port, also where a forked child holds copies of the sockets.  A
 * zeroed one is allowed. */
void vnxi_sockets_close(vnxi_sockets_t *sockets);

/* The addresses that a host (not NULL) stands for, as
 * vnx_side_channel_start_params_t says; of equal ones the first.  Statuses as
 * vnx_side_channel_start(). */
vnx_status_t vnxi_bind_addresses(const vnxi_bind_params_t *params,
                                 vnxi_addresses_t *out_p, vnx_error_t *error);

#endif
