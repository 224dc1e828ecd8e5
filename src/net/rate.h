/*
 * How often an address may come: so many times a second, and twice that at
 * once.  Of IPv6, the 2^64 addresses of one network count as one.  The table
 * is of a fixed size: who is forgotten in a crowd of addresses starts anew.
 *
 * Of one thread at a time; no clock of its own.
 */
#ifndef VNXI_NET_RATE_H
#define VNXI_NET_RATE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#define VNXI_RATE_ADDRESSES 2048

typedef struct vnxi_rate vnxi_rate_t;

/* `per_second` above 0.  NULL: no memory.  Returns owned: vnxi_rate_free(). */
vnxi_rate_t *vnxi_rate_create(uint32_t per_second);
void vnxi_rate_free(vnxi_rate_t *rate); /* NULL is allowed */

/* May `addr` (IPv4 or IPv6; others may always) come at `now`
 * (vnxi_clock_ns())?  If so it has come. */
bool vnxi_rate_take(vnxi_rate_t *rate, const struct sockaddr_storage *addr,
                    uint64_t now);

#endif
