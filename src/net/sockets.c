/*
 * Design notes.  A forked child holds copies of the listening sockets, and the
 * port stays taken as long as one copy listens.  So the child closes its
 * copies before fork() returns there (base/fork_fds.h).  The parent shuts its
 * sockets down before it closes them, which also stops any copy that was not
 * closed.
 */
#include "net/sockets.h"

#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/fork_fds.h"

#define LOOKUP_MS 5000 /* for a bind host; see vnx/side_channel.h */

#define PORT_TRIES 16

void
vnxi_sockets_close(vnxi_sockets_t *sockets)
{
    for (size_t i = 0; i < sockets->count; i++) {
        shutdown(sockets->fds[i], SHUT_RDWR);
        vnxi_fork_fd_close(sockets->fds[i]);
    }
    sockets->count = 0;
}

static bool
is_any_v6(const vnxi_address_t *address)
{
    const struct sockaddr_in6 *v6 = (const void *)&address->addr;
    return address->addr.ss_family == AF_INET6 &&
           IN6_IS_ADDR_UNSPECIFIED(&v6->sin6_addr);
}

static int
bind_and_listen(int fd, const vnxi_address_t *address)
{
    int on = 1, v6_only = !is_any_v6(address);

    if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0) {
        return -1;
    }
    if (address->addr.ss_family == AF_INET6 &&
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &v6_only, sizeof v6_only) !=
            0) {
        return -1;
    }
    if (bind(fd, (const void *)&address->addr, address->len) != 0) {
        return -1;
    }
    return listen(fd, SOMAXCONN);
}

static int
bound_port(int fd)
{
    vnxi_address_t address = {.len = sizeof address.addr};
    if (getsockname(fd, (void *)&address.addr, &address.len) != 0) {
        return -1;
    }
    return vnxi_address_port(&address);
}

/* Add a socket that listens on `address`.  Returns 0, or -1 with errno set. */
static int
add_socket(vnxi_sockets_t *sockets, const vnxi_address_t *address)
{
    int fd = socket(address->addr.ss_family,
                    SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return -1;
    }
    int port = bind_and_listen(fd, address) == 0 ? bound_port(fd) : -1;
    if (port < 0) {
        int saved = errno;
        close(fd);
        errno = saved;
        return -1;
    }
    sockets->fds[sockets->count++] = vnxi_fork_fd_own(fd);
    sockets->port = port;
    return 0;
}

/* Does the machine lack the protocol or the address?  That is not a failure
 * while another address works. */
static bool
is_missing(int err)
{
    return err == EAFNOSUPPORT || err == EADDRNOTAVAIL ||
           err == EPROTONOSUPPORT;
}

/* Listen on all addresses, on one port.  Returns 0, or an errno with the
 * sockets closed and *failed_p set. */
static int
add_all(vnxi_sockets_t *sockets, const vnxi_addresses_t *addresses, int port,
        size_t *failed_p)
{
    int missing = 0;

    for (size_t i = 0; i < addresses->count; i++) {
        vnxi_address_t address = addresses->list[i];
        vnxi_address_set_port(&address,
                              sockets->count > 0 ? sockets->port : port);
        if (add_socket(sockets, &address) == 0) {
            continue;
        }
        missing = errno;
        *failed_p = i;
        if (!is_missing(missing)) {
            vnxi_sockets_close(sockets);
            return missing;
        }
    }
    return sockets->count > 0 ? 0 : missing;
}

/* The same with a port that is free at all of them if params->port is 0. */
static int
bind_all(vnxi_sockets_t *sockets, const vnxi_bind_params_t *params,
         const vnxi_addresses_t *addresses, size_t *failed_p)
{
    int tries = params->port == 0 ? PORT_TRIES : 1, err = EADDRINUSE;

    /* A port that is free at the first address may be taken at the next. */
    while (err == EADDRINUSE && tries-- > 0) {
        err = add_all(sockets, addresses, params->port, failed_p);
    }
    return err;
}

/* The peer of an error is the endpoint. */
static void
set_endpoint(const vnxi_bind_params_t *params, vnx_error_t *error)
{
    char text[VNX_ERROR_PEER_MAX];

    vnxi_endpoint_text(text, sizeof text, params->host, params->port);
    vnxi_error_peer(error, text, strlen(text));
}

vnx_status_t
vnxi_bind_failed(const vnxi_bind_params_t *params, vnx_error_t *error,
                 const char *what, int err)
{
    vnxi_error_set(error, VNX_ERR_BACKEND, params->operation, "%s: %s", what,
                   vnxi_errno(err));
    set_endpoint(params, error);
    return VNX_ERR_BACKEND;
}

static vnx_status_t
listen_failed(const vnxi_bind_params_t *params, const vnxi_address_t *address,
              int err, vnx_error_t *error)
{
    char what[VNXI_ADDRESS_TEXT + sizeof "cannot listen at ''"];
    char text[VNXI_ADDRESS_TEXT];

    vnxi_address_text(address, text);
    snprintf(what, sizeof what, "cannot listen at '%s'", text);
    return vnxi_bind_failed(params, error, what, err);
}

static bool
has_address(const vnxi_addresses_t *addresses, const vnxi_address_t *address)
{
    for (size_t i = 0; i < addresses->count; i++) {
        if (addresses->list[i].len == address->len &&
            memcmp(&addresses->list[i].addr, &address->addr, address->len) ==
                0) {
            return true;
        }
    }
    return false;
}

static void
add_new(vnxi_addresses_t *all, const vnxi_addresses_t *more)
{
    for (size_t i = 0; i < more->count; i++) {
        if (all->count < VNXI_ADDRESSES_MAX &&
            !has_address(all, &more->list[i])) {
            all->list[all->count++] = more->list[i];
        }
    }
}

/* Resolve one host of the comma-separated list. */
static vnx_status_t
resolve_one(const vnxi_bind_params_t *params, const char *host, uint64_t start,
            vnxi_addresses_t *all, vnx_error_t *error)
{
    uint64_t wait = LOOKUP_MS * UINT64_C(1000000);
    vnxi_addresses_t found;
    const char *reason;

    vnx_status_t status = vnxi_resolve_interface(host, params->port, &found);
    if (status != VNX_OK) {
        status =
            vnxi_resolve(host, params->port, start + wait, &found, &reason);
    }
    if (status == VNX_OK) {
        add_new(all, &found);
        return VNX_OK;
    }
    if (status == VNX_ERR_NOT_FOUND) {
        status = VNX_ERR_INVALID_PARAM;
    }
    vnxi_error_set(error, status, params->operation,
                   "resolving '%s': %s (after %llu ms)", host, reason,
                   (unsigned long long)(vnxi_clock_ns() - start) / 1000000);
    set_endpoint(params, error);
    return status;
}

/* Return the next host of the list, without the spaces around it. */
static char *
next_host(char **rest)
{
    char *host = strsep(rest, ",");
    if (host == NULL) {
        return NULL;
    }
    host += strspn(host, " ");
    for (char *end = host + strlen(host); end > host && end[-1] == ' ';) {
        *--end = '\0';
    }
    return host;
}

/* Resolve params->host to its addresses, without duplicates. */
static vnx_status_t
resolve_all(const vnxi_bind_params_t *params, vnxi_addresses_t *out_p,
            vnx_error_t *error)
{
    vnx_status_t status = VNX_OK;
    vnxi_addresses_t all = {0};
    uint64_t start = vnxi_clock_ns();
    char *copy = strdup(params->host), *rest = copy, *host;

    if (copy == NULL) {
        return vnxi_error_no_memory(error, params->operation,
                                    strlen(params->host) + 1);
    }
    while (status == VNX_OK && (host = next_host(&rest)) != NULL) {
        if (host[0] == '\0') {
            status =
                vnxi_error_set(error, VNX_ERR_INVALID_PARAM, params->operation,
                               "host '%s' has an empty part", params->host);
        } else {
            status = resolve_one(params, host, start, &all, error);
        }
    }
    free(copy);
    if (status == VNX_OK) {
        *out_p = all;
    }
    return status;
}

vnx_status_t
vnxi_sockets_open(const vnxi_bind_params_t *params, vnxi_sockets_t *out_p,
                  vnx_error_t *error)
{
    vnxi_addresses_t addresses;
    size_t failed = 0;

    *out_p = (vnxi_sockets_t){0};
    if (params->host != NULL) {
        vnx_status_t status = resolve_all(params, &addresses, error);
        if (status != VNX_OK) {
            return status;
        }
    } else { /* IPv6, with IPv4 mapped into it */
        vnxi_address_parse("::", &addresses);
    }
    int err = bind_all(out_p, params, &addresses, &failed);
    if (params->host == NULL && is_missing(err)) {
        vnxi_address_parse("0.0.0.0", &addresses); /* a machine without IPv6 */
        err = bind_all(out_p, params, &addresses, &failed);
    }
    return err == 0
               ? VNX_OK
               : listen_failed(params, &addresses.list[failed], err, error);
}
