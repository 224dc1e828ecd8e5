/*
 * From a host's name to its addresses, under a deadline.
 */
#ifndef VNXI_NET_RESOLVE_H
#define VNXI_NET_RESOLVE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <vnx/status.h>

#define VNXI_ADDRESSES_MAX 16 /* of one name; more are left out */
#define VNXI_ADDRESS_TEXT 64
#define VNXI_LOOKUPS_MAX 64 /* running at once in this process */

typedef struct vnxi_address {
    struct sockaddr_storage addr;
    socklen_t len;
} vnxi_address_t;

typedef struct vnxi_addresses {
    size_t count; /* at least 1 */
    vnxi_address_t list[VNXI_ADDRESSES_MAX];
} vnxi_addresses_t;

/* A look-up under way; of one thread at a time. */
typedef struct vnxi_lookup vnxi_lookup_t;

/* Look `host` up.  Numeric addresses and "localhost" need no look-up: VNX_OK
 * and *out_p at once.  Any other name is looked up on a thread of its own,
 * which is left behind when nobody waits for it any more (the C library's
 * resolver has no deadline): VNX_IN_PROG and *lookup_p, owned:
 * vnxi_lookup_end().  Otherwise *reason_p (static storage) and
 * VNX_ERR_NOT_FOUND (no such name), VNX_ERR_BACKEND (the name service failed,
 * or too many look-ups are running), VNX_ERR_NO_MEMORY. */
vnx_status_t vnxi_lookup_begin(const char *host, int port,
                               vnxi_addresses_t *out_p,
                               vnxi_lookup_t **lookup_p,
                               const char **reason_p);

/* Readable when the look-up is done. */
int vnxi_lookup_fd(const vnxi_lookup_t *lookup);

/* VNX_IN_PROG while it is not done; otherwise as vnxi_lookup_begin(). */
vnx_status_t vnxi_lookup_step(const vnxi_lookup_t *lookup,
                              vnxi_addresses_t *out_p, const char **reason_p);

/* At any stage, without waiting.  NULL is allowed. */
void vnxi_lookup_end(vnxi_lookup_t *lookup);

/* Begin, wait until `deadline` (vnxi_clock_ns()) at the latest, end.  Also
 * VNX_ERR_TIMEOUT. */
vnx_status_t vnxi_resolve(const char *host, int port, uint64_t deadline,
                          vnxi_addresses_t *out_p, const char **reason_p);

/* Put all addresses of the machine's interface `name` into *out_p; VNX_OK,
 * VNX_ERR_NOT_FOUND (no such interface, or it has no address). */
vnx_status_t vnxi_resolve_interface(const char *name, int port,
                                    vnxi_addresses_t *out_p);

/* A numeric address; false: it is none. */
bool vnxi_address_parse(const char *host, vnxi_addresses_t *out_p);

/* The port of an IPv4 or IPv6 address, in our byte order. */
int vnxi_address_port(const vnxi_address_t *address);
void vnxi_address_set_port(vnxi_address_t *address, int port);

bool vnxi_address_is_loopback(const vnxi_address_t *address);

/* "127.0.0.1" or "::1", without the port. */
void vnxi_address_text(const vnxi_address_t *address,
                       char text[VNXI_ADDRESS_TEXT]);

#endif
