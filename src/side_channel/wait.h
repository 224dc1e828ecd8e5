/*
 * Waiting for a file descriptor under the one deadline of an exchange.
 */
#ifndef VNXI_SIDE_CHANNEL_WAIT_H
#define VNXI_SIDE_CHANNEL_WAIT_H

#include <stdbool.h>
#include <stdint.h>
#include <vnx/status.h>

#define VNXI_WAIT_SLICE_MS 100 /* how soon an interruption is noticed */

typedef struct vnxi_wait {
    uint64_t start, deadline; /* vnxi_clock_ns() */
    /* Asked on every signal and every
     * VNXI_WAIT_SLICE_MS of waiting, on the waiting thread: give up?  NULL:
     * never. */
    bool (*interrupted)(void *arg);
    void *arg; /* borrowed */
} vnxi_wait_t;

/* Sleep until `fd` has one of `events` (POLLIN, POLLOUT) or an error.
 * VNX_OK, VNX_ERR_TIMEOUT, VNX_ERR_CANCELED (interrupted), VNX_ERR_BACKEND
 * (errno says why). */
vnx_status_t vnxi_wait_fd(const vnxi_wait_t *wait, int fd, short events);

/* The same wait, with a share of the time that is left: 1 / `shares`. */
vnxi_wait_t vnxi_wait_share(const vnxi_wait_t *wait, unsigned shares);

/* Milliseconds since the start. */
unsigned long vnxi_wait_elapsed_ms(const vnxi_wait_t *wait);

#endif
