/*
 * Limits how often an address may come: `per_second` times a second, and
 * bursts of twice that number.  The 2^64 IPv6 addresses of one network count
 * as one address.  The table has a fixed size.  When it is full, an address
 * may be dropped; it then starts with a full allowance again.
 *
 * One thread at a time.  The caller supplies the time.
 */
#ifndef VNXI_NET_RATE_H
#define VNXI_NET_RATE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#define VNXI_RATE_ADDRESSES 2048

typedef struct vnxi_rate vnxi_rate_t;

/* Create a limiter; `per_second` is above 0.  NULL: no memory.  Returns owned:
 * vnxi_rate_free(). */
vnxi_rate_t *vnxi_rate_create(uint32_t per_second);
void vnxi_rate_free(vnxi_rate_t *rate); /* NULL is allowed */

/* Is `addr` within the limit at `now` (vnxi_clock_ns())?  If so, it is
 * counted.  Addresses other than IPv4 and IPv6 are always within it. */
bool vnxi_rate_take(vnxi_rate_t *rate, const struct sockaddr_storage *addr,
                    uint64_t now);

#endif
