/*
 * Listening sockets.
 */
#ifndef VNXI_NET_SOCKETS_H
#define VNXI_NET_SOCKETS_H

#include <vnx/error.h>

#include "net/resolve.h"

typedef struct vnxi_bind_params {
    const char *operation; /* for errors */
    const char *host;      /* NULL: every address; else as in
                              vnx_side_channel_start_params_t */
    int port;              /* 0: any free port */
} vnxi_bind_params_t;

typedef struct vnxi_sockets {
    size_t count;
    int fds[VNXI_ADDRESSES_MAX]; /* owned */
    int port;                    /* the port that all of them share */
} vnxi_sockets_t;

/* Bind and listen on every address that params->host stands for, all on one
 * port.  The sockets are non-blocking.  *out_p is owned: vnxi_sockets_close();
 * it is all zeros on an error.  Waits only for the look-up of names.
 * Statuses: vnx_side_channel_start(). */
vnx_status_t vnxi_sockets_open(const vnxi_bind_params_t *params,
                               vnxi_sockets_t *out_p, vnx_error_t *error);

/* Write the record of a listener that cannot start: `what` failed with errno
 * `err`.  Returns VNX_ERR_BACKEND. */
vnx_status_t vnxi_bind_failed(const vnxi_bind_params_t *params,
                              vnx_error_t *error, const char *what, int err);

/* Close the sockets and free the port, even if a forked child holds copies of
 * the sockets.  A zeroed struct is allowed. */
void vnxi_sockets_close(vnxi_sockets_t *sockets);

#endif
