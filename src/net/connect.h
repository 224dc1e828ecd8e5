/*
 * Connecting to whichever address of a name answers first.  Attempts start one
 * after the other, a quarter of a second apart or as soon as one has failed,
 * with the families in turn (as RFC 8305 has it); the first that is made is
 * taken, the others are closed.  Never waits; of one thread at a time.
 */
#ifndef VNXI_NET_CONNECT_H
#define VNXI_NET_CONNECT_H

#include "net/resolve.h"

typedef struct vnxi_connector {
    vnxi_addresses_t addresses;  /* in the order of the attempts */
    int fds[VNXI_ADDRESSES_MAX]; /* owned; -1: not begun, or failed */
    size_t begun, open;
    int epoll_fd;      /* owned; over all attempts, once there are two */
    uint64_t interval; /* ns between attempts */
    uint64_t next;     /* when the next attempt starts; UINT64_MAX: none */
    size_t last;       /* the address that the last failure concerns */
    int err;           /* of the last failure: errno */
} vnxi_connector_t;

/* Nothing begins yet; `now` and `deadline` by vnxi_clock_ns(). */
void vnxi_connector_init(vnxi_connector_t *connector,
                         const vnxi_addresses_t *addresses, uint64_t now,
                         uint64_t deadline);

/* Close what is open.  May be called again. */
void vnxi_connector_fini(vnxi_connector_t *connector);

/* VNX_OK: *fd_p, owned, is connected to addresses.list[last].  VNX_IN_PROG:
 * wait as vnxi_connector_wait() says.  VNX_ERR_BACKEND: all have failed; err
 * and last tell of the last one. */
vnx_status_t vnxi_connector_step(vnxi_connector_t *connector, uint64_t now,
                                 int *fd_p);

/* What to wait for until the next step. */
void vnxi_connector_wait(const vnxi_connector_t *connector, int *fd_p,
                         short *events_p, uint64_t *wake_p);

#endif
