/*
 * Design notes.  getaddrinfo() may block for as long as the system's resolver
 * likes, and nothing can stop it.  So a name is looked up by a thread of its
 * own, and the two share a reference-counted job: whoever comes last frees it.
 * A caller whose deadline passes leaves, the thread ends whenever it can.  The
 * number of such threads is bounded, so a dead name service and a caller that
 * tries again and again do not fill the process with them.
 */
#include "side_channel/resolve.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/eventfd.h>
#include <unistd.h>

struct vnxi_lookup {
    atomic_int refs; /* the caller's and the thread's */
    atomic_bool done;
    int done_fd; /* eventfd, readable when done */
    int ret;     /* of getaddrinfo; valid when done */
    struct addrinfo *found;
    char service[8];
    char host[];
};

static atomic_int lookups; /* threads that are looking a name up */

static const struct addrinfo hints_any = {
    .ai_family = AF_UNSPEC,
    .ai_socktype = SOCK_STREAM,
};
static const struct addrinfo hints_numeric = {
    .ai_family = AF_UNSPEC,
    .ai_socktype = SOCK_STREAM,
    .ai_flags = AI_NUMERICHOST,
};

void
vnxi_lookup_release(vnxi_lookup_t *lookup)
{
    if (lookup == NULL || atomic_fetch_sub(&lookup->refs, 1) != 1) {
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
    (void)written; /* a fresh eventfd takes a 1 */
    atomic_fetch_sub(&lookups, 1);
    vnxi_lookup_release(lookup);
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

/* Signals are the program's business: the thread takes none. */
static int
spawn_detached(void *(*entry)(void *), void *arg)
{
    sigset_t all, before;
    pthread_t thread;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int ret = pthread_create(&thread, NULL, entry, arg);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (ret == 0) {
        pthread_detach(thread);
    }
    return ret;
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

int
vnxi_lookup_fd(const vnxi_lookup_t *lookup)
{
    return lookup->done_fd;
}

vnx_status_t
vnxi_lookup_result(const vnxi_lookup_t *lookup, vnxi_addresses_t *out_p,
                   const char **reason_p)
{
    /* Also tells a race checker that what the thread wrote is ours now. */
    if (!atomic_load_explicit(&lookup->done, memory_order_acquire)) {
        *reason_p = "the name service gave no answer";
        return VNX_ERR_BACKEND;
    }
    if (lookup->ret != 0) {
        return lookup_failed(lookup->ret, reason_p);
    }
    return copy_found(lookup->found, out_p, reason_p);
}

vnx_status_t
vnxi_lookup_start(const char *host, int port, vnxi_lookup_t **out_p,
                  const char **reason_p)
{
    if (atomic_fetch_add(&lookups, 1) >= VNXI_LOOKUPS_MAX) {
        atomic_fetch_sub(&lookups, 1);
        *reason_p = "too many name look-ups are still running";
        return VNX_ERR_BACKEND;
    }
    vnxi_lookup_t *lookup = lookup_create(host, port);
    if (lookup == NULL) {
        atomic_fetch_sub(&lookups, 1);
        *reason_p = "no memory or file descriptor for a name look-up";
        return VNX_ERR_NO_MEMORY;
    }
    atomic_fetch_add(&lookup->refs, 1);
    if (spawn_detached(lookup_main, lookup) != 0) {
        atomic_fetch_sub(&lookup->refs, 1);
        atomic_fetch_sub(&lookups, 1);
        vnxi_lookup_release(lookup);
        *reason_p = "no thread could be started for the name look-up";
        return VNX_ERR_BACKEND;
    }
    *out_p = lookup;
    return VNX_OK;
}

static vnx_status_t
resolve_name(const char *host, int port, const vnxi_wait_t *wait,
             vnxi_addresses_t *out_p, const char **reason_p)
{
    vnxi_lookup_t *lookup;
    vnx_status_t status = vnxi_lookup_start(host, port, &lookup, reason_p);
    if (status != VNX_OK) {
        return status;
    }
    status = vnxi_wait_fd(wait, lookup->done_fd, POLLIN);
    if (status == VNX_OK) {
        status = vnxi_lookup_result(lookup, out_p, reason_p);
    } else {
        *reason_p = "the name service did not answer";
    }
    vnxi_lookup_release(lookup);
    return status;
}

/* The name is reserved for the loopback addresses (RFC 6761, 6.3), so it
 * needs no name service and no thread. */
static vnx_status_t
resolve_localhost(int port, vnxi_addresses_t *out_p)
{
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6,
                              .sin6_port = htons((uint16_t)port),
                              .sin6_addr = in6addr_loopback};
    struct sockaddr_in v4 = {.sin_family = AF_INET,
                             .sin_port = htons((uint16_t)port),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    out_p->count = 0;
    add_address(out_p, &v4, sizeof v4);
    add_address(out_p, &v6, sizeof v6);
    return VNX_OK;
}

vnx_status_t
vnxi_resolve_at_once(const char *host, int port, vnxi_addresses_t *out_p,
                     const char **reason_p)
{
    struct addrinfo *found = NULL;
    char service[8];

    if (strcasecmp(host, "localhost") == 0) {
        return resolve_localhost(port, out_p);
    }
    snprintf(service, sizeof service, "%d", port);
    int ret = getaddrinfo(host, service, &hints_numeric, &found);
    if (ret == EAI_NONAME) {
        return VNX_IN_PROG;
    }
    if (ret != 0) {
        return lookup_failed(ret, reason_p);
    }
    vnx_status_t status = copy_found(found, out_p, reason_p);
    freeaddrinfo(found);
    return status;
}

vnx_status_t
vnxi_resolve(const char *host, int port, const vnxi_wait_t *wait,
             vnxi_addresses_t *out_p, const char **reason_p)
{
    vnx_status_t status = vnxi_resolve_at_once(host, port, out_p, reason_p);
    return status == VNX_IN_PROG
               ? resolve_name(host, port, wait, out_p, reason_p)
               : status;
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
vnxi_address_text(const vnxi_address_t *address, char text[VNXI_ADDRESS_TEXT])
{
    if (getnameinfo((const void *)&address->addr, address->len, text,
                    VNXI_ADDRESS_TEXT, NULL, 0, NI_NUMERICHOST) != 0) {
        snprintf(text, VNXI_ADDRESS_TEXT, "?");
    }
}
