/*
 * From a host's name to its addresses, under a deadline.
 */
#ifndef VNXI_SIDE_CHANNEL_RESOLVE_H
#define VNXI_SIDE_CHANNEL_RESOLVE_H

#include <stddef.h>
#include <sys/socket.h>
#include <vnx/status.h>

#include "side_channel/wait.h"

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

/* Look `host` up.  Numeric addresses and "localhost" need no look-up; any
 * other name is looked up on a thread of its own, which is left behind when
 * the deadline comes first (the C library's resolver has no deadline).
 * VNX_OK and *out_p, or *reason_p (static storage) and VNX_ERR_NOT_FOUND (no
 * such name), VNX_ERR_TIMEOUT, VNX_ERR_CANCELED, VNX_ERR_BACKEND (the name
 * service failed), VNX_ERR_NO_MEMORY. */
vnx_status_t vnxi_resolve(const char *host, int port, const vnxi_wait_t *wait,
                          vnxi_addresses_t *out_p, const char **reason_p);

/* The part of it that needs no look-up, and no waiting.  VNX_IN_PROG: `host`
 * is another name. */
vnx_status_t vnxi_resolve_at_once(const char *host, int port,
                                  vnxi_addresses_t *out_p,
                                  const char **reason_p);

/* A look-up for those who wait by an event loop: started on its thread, its fd
 * readable when there is a result, released whenever its owner has had
 * enough.  Statuses as vnxi_resolve(). */
typedef struct vnxi_lookup vnxi_lookup_t;
vnx_status_t vnxi_lookup_start(const char *host, int port,
                               vnxi_lookup_t **out_p, const char **reason_p);
int vnxi_lookup_fd(const vnxi_lookup_t *lookup);
vnx_status_t vnxi_lookup_result(const vnxi_lookup_t *lookup,
                                vnxi_addresses_t *out_p,
                                const char **reason_p);
void vnxi_lookup_release(vnxi_lookup_t *lookup); /* NULL is allowed */

/* The port of an IPv4 or IPv6 address, in our byte order. */
int vnxi_address_port(const vnxi_address_t *address);
void vnxi_address_set_port(vnxi_address_t *address, int port);

/* "127.0.0.1" or "::1", without the port. */
void vnxi_address_text(const vnxi_address_t *address,
                       char text[VNXI_ADDRESS_TEXT]);

#endif
