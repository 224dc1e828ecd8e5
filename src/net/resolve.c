/*
 * Design notes.  getaddrinfo() may block for as long as the system's resolver
 * likes, and nothing can stop it.  So each name is looked up by a thread of
 * its own.  The thread and the caller share a reference-counted job, which the
 * last of them frees.  A caller whose deadline passes leaves; the thread ends
 * whenever it can.  The number of such threads is bounded, so that a dead name
 * service and a caller that keeps retrying do not fill the process with
 * threads.  Callers beyond the bound wait until a thread has ended.
 */
#include "net/resolve.h"

#include <arpa/inet.h>
#include <errno.h>
#include <ifaddrs.h>
#include <limits.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fork.h"
#include "base/thread.h"

struct vnxi_lookup {
    atomic_int refs; /* held by the caller and by the thread */
    atomic_bool done;
    int done_fd; /* eventfd, readable when done */
    int ret;     /* getaddrinfo()'s result; valid when done */
    struct addrinfo *found;
    char service[8];
    char host[];
};

static atomic_int lookups; /* threads that are looking a name up */

/* The child has none of these threads. */
static void
forget_in_child(void)
{
    atomic_store(&lookups, 0);
}

static const struct addrinfo hints_any = {
    .ai_family = AF_UNSPEC,
    .ai_socktype = SOCK_STREAM,
};
static const struct addrinfo hints_numeric = {
    .ai_family = AF_UNSPEC,
    .ai_socktype = SOCK_STREAM,
    .ai_flags = AI_NUMERICHOST,
};

static void
lookup_release(vnxi_lookup_t *lookup)
{
    if (atomic_fetch_sub(&lookup->refs, 1) != 1) {
        return;
    }
    if (lookup->found != NULL) {
        freeaddrinfo(lookup->found);
    }
    close(lookup->done_fd);
    free(lookup);
}

static void *
lookup_main(void *arg)
{
    vnxi_lookup_t *lookup = arg;
    uint64_t one = 1;

    lookup->ret =
        getaddrinfo(lookup->host, lookup->service, &hints_any, &lookup->found);
    atomic_store_explicit(&lookup->done, true, memory_order_release);
    ssize_t written = write(lookup->done_fd, &one, sizeof one);
    (void)written; /* cannot fail: a new eventfd accepts a 1 */
    atomic_fetch_sub(&lookups, 1);
    lookup_release(lookup);
    return NULL;
}

static vnxi_lookup_t *
lookup_create(const char *host, int port)
{
    size_t size = strlen(host) + 1;
    vnxi_lookup_t *lookup = calloc(1, sizeof *lookup + size);
    if (lookup == NULL) {
        return NULL;
    }
    lookup->done_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (lookup->done_fd < 0) {
        free(lookup);
        return NULL;
    }
    atomic_init(&lookup->refs, 1);
    memcpy(lookup->host, host, size);
    snprintf(lookup->service, sizeof lookup->service, "%d", port);
    return lookup;
}

static void
add_address(vnxi_addresses_t *out, const void *addr, socklen_t len)
{
    if (out->count < VNXI_ADDRESSES_MAX && len <= sizeof out->list[0].addr) {
        memcpy(&out->list[out->count].addr, addr, len);
        out->list[out->count++].len = len;
    }
}

static vnx_status_t
copy_found(const struct addrinfo *found, vnxi_addresses_t *out,
           const char **reason_p)
{
    out->count = 0;
    for (; found != NULL; found = found->ai_next) {
        if (found->ai_family == AF_INET || found->ai_family == AF_INET6) {
            add_address(out, found->ai_addr, found->ai_addrlen);
        }
    }
    *reason_p = "the name has no IPv4 or IPv6 address";
    return out->count > 0 ? VNX_OK : VNX_ERR_NOT_FOUND;
}

static vnx_status_t
lookup_failed(int ret, const char **reason_p)
{
    *reason_p = gai_strerror(ret);
    switch (ret) {
    case EAI_MEMORY:
        return VNX_ERR_NO_MEMORY;
    case EAI_AGAIN:
    case EAI_SYSTEM:
        return VNX_ERR_BACKEND;
    default:
        return VNX_ERR_NOT_FOUND;
    }
}

static vnx_status_t
lookup_name(const char *host, int port, vnxi_lookup_t **lookup_p,
            const char **reason_p)
{
    vnxi_fork_on_child(forget_in_child);
    if (atomic_fetch_add(&lookups, 1) >= VNXI_LOOKUPS_MAX) {
        atomic_fetch_sub(&lookups, 1);
        *lookup_p = NULL;
        *reason_p = "too many name look-ups are still running";
        return VNX_IN_PROG;
    }
    vnxi_lookup_t *lookup = lookup_create(host, port);
    if (lookup == NULL) {
        atomic_fetch_sub(&lookups, 1);
        *reason_p = "no memory or file descriptor for a name look-up";
        return VNX_ERR_NO_MEMORY;
    }
    atomic_fetch_add(&lookup->refs, 1);
    if (vnxi_thread_start_detached(lookup_main, lookup) != 0) {
        atomic_fetch_sub(&lookup->refs, 1);
        atomic_fetch_sub(&lookups, 1);
        lookup_release(lookup);
        *reason_p = "no thread could be started for the name look-up";
        return VNX_ERR_BACKEND;
    }
    *lookup_p = lookup;
    return VNX_IN_PROG;
}

/* Resolve a host that needs no name service: an address, or "localhost", which
 * RFC 6761, 6.3 reserves for the loopback addresses.  False: it needs one. */
static bool
resolve_at_once(const char *host, int port, vnxi_addresses_t *out_p)
{
    bool is_local = strcasecmp(host, "localhost") == 0;
    vnxi_addresses_t v6;

    if (!vnxi_address_parse(is_local ? "127.0.0.1" : host, out_p)) {
        return false;
    }
    if (is_local && vnxi_address_parse("::1", &v6)) {
        out_p->list[out_p->count++] = v6.list[0];
    }
    for (size_t i = 0; i < out_p->count; i++) {
        vnxi_address_set_port(&out_p->list[i], port);
    }
    return true;
}

/* Names that no name service has, such as "two words", are refused here: the
 * service may be slow, or not answer at all. */
static bool
may_be_name(const char *host)
{
    for (; *host != '\0'; host++) {
        if ((unsigned char)*host <= ' ' || *host == 0x7f) {
            return false;
        }
    }
    return true;
}

vnx_status_t
vnxi_lookup_begin(const char *host, int port, vnxi_addresses_t *out_p,
                  vnxi_lookup_t **lookup_p, const char **reason_p)
{
    if (resolve_at_once(host, port, out_p)) {
        return VNX_OK;
    }
    if (!may_be_name(host)) {
        *reason_p = "a host name has no spaces and no control characters";
        return VNX_ERR_NOT_FOUND;
    }
    return lookup_name(host, port, lookup_p, reason_p);
}

int
vnxi_lookup_fd(const vnxi_lookup_t *lookup)
{
    return lookup->done_fd;
}

vnx_status_t
vnxi_lookup_step(const vnxi_lookup_t *lookup, vnxi_addresses_t *out_p,
                 const char **reason_p)
{
    if (!atomic_load_explicit(&lookup->done, memory_order_acquire)) {
        return VNX_IN_PROG;
    }
    return lookup->ret == 0 ? copy_found(lookup->found, out_p, reason_p)
                            : lookup_failed(lookup->ret, reason_p);
}

void
vnxi_lookup_end(vnxi_lookup_t *lookup)
{
    if (lookup != NULL) {
        lookup_release(lookup);
    }
}

/* Wait for the look-up, or a little if none could begin; `ns` at most. */
static void
lookup_wait(const vnxi_lookup_t *lookup, uint64_t ns)
{
    uint64_t ms = (ns + 999999) / 1000000;
    struct pollfd entry = {.fd = -1, .events = POLLIN};

    if (lookup != NULL) {
        entry.fd = lookup->done_fd;
    } else if (ms > VNXI_LOOKUP_WAIT_MS) {
        ms = VNXI_LOOKUP_WAIT_MS;
    }
    poll(&entry, 1, ms > INT_MAX ? INT_MAX : (int)ms);
}

vnx_status_t
vnxi_resolve(const char *host, int port, uint64_t deadline,
             vnxi_addresses_t *out_p, const char **reason_p)
{
    vnxi_lookup_t *lookup = NULL;
    uint64_t now;

    vnx_status_t status =
        vnxi_lookup_begin(host, port, out_p, &lookup, reason_p);
    while (status == VNX_IN_PROG && (now = vnxi_clock_ns()) < deadline) {
        lookup_wait(lookup, deadline - now);
        status = lookup != NULL
                     ? vnxi_lookup_step(lookup, out_p, reason_p)
                     : vnxi_lookup_begin(host, port, out_p, &lookup, reason_p);
    }
    if (status == VNX_IN_PROG) {
        if (lookup != NULL) {
            *reason_p = "the name service did not answer";
        }
        status = VNX_ERR_TIMEOUT;
    }
    vnxi_lookup_end(lookup);
    return status;
}

/* Return the size of an IPv4 or IPv6 address; 0: it is neither. */
static socklen_t
address_size(const struct sockaddr *addr)
{
    int family = addr != NULL ? addr->sa_family : AF_UNSPEC;

    return family == AF_INET    ? sizeof(struct sockaddr_in)
           : family == AF_INET6 ? sizeof(struct sockaddr_in6)
                                : 0;
}

/* Is it an address of that interface; or, for NULL, one at which other
 * machines may reach this one? */
static bool
is_wanted(const struct ifaddrs *one, const char *name)
{
    const struct sockaddr_in6 *v6 = (const void *)one->ifa_addr;

    if (name != NULL) {
        return strcmp(one->ifa_name, name) == 0;
    }
    return (one->ifa_flags & IFF_UP) && !(one->ifa_flags & IFF_LOOPBACK) &&
           (v6->sin6_family != AF_INET6 ||
            !IN6_IS_ADDR_LINKLOCAL(&v6->sin6_addr));
}

vnx_status_t
vnxi_resolve_interface(const char *name, int port, vnxi_addresses_t *out_p)
{
    struct ifaddrs *all, *one;

    out_p->count = 0;
    if (getifaddrs(&all) != 0) {
        return VNX_ERR_NOT_FOUND;
    }
    for (one = all; one != NULL; one = one->ifa_next) {
        socklen_t len = address_size(one->ifa_addr);
        if (len > 0 && is_wanted(one, name)) {
            add_address(out_p, one->ifa_addr, len);
        }
    }
    freeifaddrs(all);
    for (size_t i = 0; i < out_p->count; i++) {
        vnxi_address_set_port(&out_p->list[i], port);
    }
    return out_p->count > 0 ? VNX_OK : VNX_ERR_NOT_FOUND;
}

bool
vnxi_address_parse(const char *host, vnxi_addresses_t *out_p)
{
    struct addrinfo *found = NULL;
    const char *reason;

    if (getaddrinfo(host, NULL, &hints_numeric, &found) != 0) {
        return false;
    }
    vnx_status_t status = copy_found(found, out_p, &reason);
    freeaddrinfo(found);
    return status == VNX_OK;
}

int
vnxi_address_port(const vnxi_address_t *address)
{
    const struct sockaddr_in *v4 = (const void *)&address->addr;
    const struct sockaddr_in6 *v6 = (const void *)&address->addr;
    return ntohs(address->addr.ss_family == AF_INET6 ? v6->sin6_port
                                                     : v4->sin_port);
}

void
vnxi_address_set_port(vnxi_address_t *address, int port)
{
    struct sockaddr_in *v4 = (void *)&address->addr;
    struct sockaddr_in6 *v6 = (void *)&address->addr;
    if (address->addr.ss_family == AF_INET6) {
        v6->sin6_port = htons((uint16_t)port);
    } else {
        v4->sin_port = htons((uint16_t)port);
    }
}

void
vnxi_endpoint_text(char *text, size_t size, const char *host, int port)
{
    const char *name = host != NULL ? host : "*";

    snprintf(text, size, strchr(name, ':') != NULL ? "[%s]:%d" : "%s:%d", name,
             port);
}

void
vnxi_address_text(const vnxi_address_t *address, char text[VNXI_ADDRESS_TEXT])
{
    if (getnameinfo((const void *)&address->addr, address->len, text,
                    VNXI_ADDRESS_TEXT, NULL, 0, NI_NUMERICHOST) != 0) {
        snprintf(text, VNXI_ADDRESS_TEXT, "?");
    }
}

bool
vnxi_address_is_loopback(const vnxi_address_t *address)
{
    const struct sockaddr_in *v4 = (const void *)&address->addr;
    const struct sockaddr_in6 *v6 = (const void *)&address->addr;

    if (address->addr.ss_family == AF_INET) {
        return ntohl(v4->sin_addr.s_addr) >> 24 == 127;
    }
    return IN6_IS_ADDR_LOOPBACK(&v6->sin6_addr) ||
           (IN6_IS_ADDR_V4MAPPED(&v6->sin6_addr) &&
            v6->sin6_addr.s6_addr[12] == 127);
}
