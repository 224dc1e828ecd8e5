/*
 * Resolves the name of a host to its addresses, under a deadline.
 */
#ifndef VNXI_NET_RESOLVE_H
#define VNXI_NET_RESOLVE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <vnx/status.h>

#define VNXI_ADDRESSES_MAX 16 /* per name; the rest is dropped */
#define VNXI_ADDRESS_TEXT 64
#define VNXI_LOOKUPS_MAX 64    /* running at once in this process */
#define VNXI_LOOKUP_WAIT_MS 10 /* then try again, if that many are running */

typedef struct vnxi_address {
    struct sockaddr_storage addr;
    socklen_t len;
} vnxi_address_t;

typedef struct vnxi_addresses {
    size_t count; /* at least 1 */
    vnxi_address_t list[VNXI_ADDRESSES_MAX];
} vnxi_addresses_t;

/* A look-up in progress; used by one thread at a time. */
typedef struct vnxi_lookup vnxi_lookup_t;

/* Look up `host`.  Never waits.  VNX_OK: *out_p has the addresses; numeric
 * addresses and "localhost" are resolved at once.  VNX_IN_PROG: a thread of
 * its own looks the name up; *lookup_p is owned: vnxi_lookup_end().  The C
 * library's resolver has no deadline, so the thread is left behind when the
 * caller gives up.  VNX_IN_PROG with *lookup_p NULL: too many look-ups are
 * running, as *reason_p says; call again after VNXI_LOOKUP_WAIT_MS.  Otherwise
 * *reason_p has the cause (static storage): VNX_ERR_NOT_FOUND (no such name),
 * VNX_ERR_BACKEND (the name service failed), VNX_ERR_NO_MEMORY. */
vnx_status_t vnxi_lookup_begin(const char *host, int port,
                               vnxi_addresses_t *out_p,
                               vnxi_lookup_t **lookup_p,
                               const char **reason_p);

/* Return the descriptor that becomes readable when the look-up is done; owned
 * by the look-up. */
int vnxi_lookup_fd(const vnxi_lookup_t *lookup);

/* Fetch the result.  VNX_IN_PROG: not done yet.  Otherwise as
 * vnxi_lookup_begin(). */
vnx_status_t vnxi_lookup_step(const vnxi_lookup_t *lookup,
                              vnxi_addresses_t *out_p, const char **reason_p);

/* End a look-up at any stage, without waiting.  NULL is allowed. */
void vnxi_lookup_end(vnxi_lookup_t *lookup);

/* Look up `host` and wait for the result, until `deadline` (vnxi_clock_ns())
 * at the latest.  Statuses: vnxi_lookup_begin() except VNX_IN_PROG, and
 * VNX_ERR_TIMEOUT. */
vnx_status_t vnxi_resolve(const char *host, int port, uint64_t deadline,
                          vnxi_addresses_t *out_p, const char **reason_p);

/* Write all addresses of the local network interface `name` to *out_p; NULL:
 * of all interfaces that are up, except loopback and link-local addresses.
 * VNX_ERR_NOT_FOUND: no such interface, or it has no address. */
vnx_status_t vnxi_resolve_interface(const char *name, int port,
                                    vnxi_addresses_t *out_p);

/* Parse a numeric address.  False: `host` is not one. */
bool vnxi_address_parse(const char *host, vnxi_addresses_t *out_p);

/* Get or set the port of an IPv4 or IPv6 address, in host byte order. */
int vnxi_address_port(const vnxi_address_t *address);
void vnxi_address_set_port(vnxi_address_t *address, int port);

bool vnxi_address_is_loopback(const vnxi_address_t *address);

/* Write "host:port" or "[::1]:port" for messages, cut off at `size`.  `host`
 * NULL: every address, "*". */
void vnxi_endpoint_text(char *text, size_t size, const char *host, int port);

/* Write the address without the port, such as "127.0.0.1" or "::1". */
void vnxi_address_text(const vnxi_address_t *address,
                       char text[VNXI_ADDRESS_TEXT]);

#endif
