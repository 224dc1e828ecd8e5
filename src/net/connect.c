#include "net/connect.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#define INTERVAL_NS UINT64_C(250000000)

/* -- The addresses of a host ---------------------------------------------- */

/* Order the addresses so that the families alternate; within a family they
 * keep their order. */
static void
alternate(const vnxi_addresses_t *given, vnxi_addresses_t *out_p)
{
    bool taken[VNXI_ADDRESSES_MAX] = {0};
    int family = given->list[0].addr.ss_family;

    out_p->count = 0;
    while (out_p->count < given->count) {
        size_t pick = given->count;
        for (size_t i = given->count; i-- > 0;) {
            if (!taken[i] && (pick == given->count ||
                              given->list[i].addr.ss_family == family ||
                              given->list[pick].addr.ss_family != family)) {
                pick = i;
            }
        }
        taken[pick] = true;
        family =
            given->list[pick].addr.ss_family == AF_INET ? AF_INET6 : AF_INET;
        out_p->list[out_p->count++] = given->list[pick];
    }
}

void
vnxi_connector_init(vnxi_connector_t *connector,
                    const vnxi_addresses_t *addresses, uint64_t now,
                    uint64_t deadline)
{
    uint64_t share = (deadline > now ? deadline - now : 0) / addresses->count;

    memset(connector, 0, sizeof *connector);
    alternate(addresses, &connector->addresses);
    connector->epoll_fd = -1;
    connector->interval = share < INTERVAL_NS ? share : INTERVAL_NS;
    connector->next = now;
    for (size_t i = 0; i < VNXI_ADDRESSES_MAX; i++) {
        connector->fds[i] = -1;
    }
}

static void
attempt_close(vnxi_connector_t *connector, size_t index)
{
    if (connector->fds[index] >= 0) {
        close(connector->fds[index]);
        connector->fds[index] = -1;
        connector->open--;
    }
}

void
vnxi_connector_fini(vnxi_connector_t *connector)
{
    for (size_t i = 0; i < connector->begun; i++) {
        attempt_close(connector, i);
    }
    if (connector->epoll_fd >= 0) {
        close(connector->epoll_fd);
        connector->epoll_fd = -1;
    }
}

/* Add an attempt to the epoll set, which is created for the second attempt. */
static int
watch(vnxi_connector_t *connector, size_t index)
{
    struct epoll_event event = {.events = EPOLLOUT,
                                .data.u32 = (uint32_t)index};
    if (connector->epoll_fd < 0) {
        if (connector->open < 2) {
            return 0;
        }
        connector->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
        for (size_t i = 0; i < index; i++) {
            if (connector->fds[i] >= 0 && watch(connector, i) != 0) {
                return -1;
            }
        }
    }
    return epoll_ctl(connector->epoll_fd, EPOLL_CTL_ADD, connector->fds[index],
                     &event);
}

static void
attempt_failed(vnxi_connector_t *connector, size_t index, int err)
{
    connector->err = err;
    connector->last = index;
    attempt_close(connector, index);
    connector->next = 0; /* the next one at once */
}

/* True: connected at once, as happens over loopback. */
static bool
attempt_begin(vnxi_connector_t *connector, uint64_t now)
{
    size_t index = connector->begun++;
    const vnxi_address_t *address = &connector->addresses.list[index];

    connector->next = now + connector->interval;
    int fd = socket(address->addr.ss_family,
                    SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        attempt_failed(connector, index, errno);
        return false;
    }
    connector->fds[index] = fd;
    connector->open++;
    if (connect(fd, (const void *)&address->addr, address->len) == 0) {
        connector->last = index;
        return true;
    }
    if ((errno != EINPROGRESS && errno != EINTR) ||
        watch(connector, index) != 0) {
        attempt_failed(connector, index, errno);
    }
    return false;
}

/* True: the attempt has connected. */
static bool
attempt_check(vnxi_connector_t *connector, size_t index)
{
    struct pollfd entry = {.fd = connector->fds[index], .events = POLLOUT};
    int err = 0;
    socklen_t len = sizeof err;

    if (entry.fd < 0 || poll(&entry, 1, 0) <= 0) {
        return false;
    }
    if (getsockopt(entry.fd, SOL_SOCKET, SO_ERROR, &err, &len) != 0) {
        err = errno;
    }
    if (err != 0) {
        attempt_failed(connector, index, err);
        return false;
    }
    connector->last = index;
    return true;
}

static bool
any_connected(vnxi_connector_t *connector, uint64_t now)
{
    for (size_t i = 0; i < connector->begun; i++) {
        if (attempt_check(connector, i)) {
            return true;
        }
    }
    while (connector->begun < connector->addresses.count &&
           now >= connector->next) {
        if (attempt_begin(connector, now)) {
            return true;
        }
    }
    return false;
}

vnx_status_t
vnxi_connector_step(vnxi_connector_t *connector, uint64_t now, int *fd_p)
{
    if (any_connected(connector, now)) {
        *fd_p = connector->fds[connector->last];
        connector->fds[connector->last] = -1;
        connector->open--;
        vnxi_connector_fini(connector);
        return VNX_OK;
    }
    return connector->open > 0 ? VNX_IN_PROG : VNX_ERR_BACKEND;
}

void
vnxi_connector_wait(const vnxi_connector_t *connector, int *fd_p,
                    short *events_p, uint64_t *wake_p)
{
    *wake_p = connector->begun < connector->addresses.count ? connector->next
                                                            : UINT64_MAX;
    if (connector->epoll_fd >= 0) {
        *fd_p = connector->epoll_fd;
        *events_p = POLLIN;
        return;
    }
    *events_p = POLLOUT;
    for (size_t i = 0; i < connector->begun; i++) {
        if (connector->fds[i] >= 0) {
            *fd_p = connector->fds[i];
        }
    }
}

/* -- The name of a host --------------------------------------------------- */

void
vnxi_dial_init(vnxi_dial_t *dial, const char *host, int port,
               uint64_t deadline)
{
    memset(dial, 0, sizeof *dial);
    dial->host = dial->whom = host;
    dial->port = port;
    dial->deadline = deadline;
}

void
vnxi_dial_fini(vnxi_dial_t *dial)
{
    vnxi_lookup_end(dial->lookup);
    dial->lookup = NULL;
    if (dial->is_connecting) {
        vnxi_connector_fini(&dial->connector);
    }
}

static vnx_status_t
resolve(vnxi_dial_t *dial, uint64_t now)
{
    vnxi_addresses_t found;

    vnx_status_t status =
        dial->lookup == NULL
            ? vnxi_lookup_begin(dial->host, dial->port, &found, &dial->lookup,
                                &dial->reason)
            : vnxi_lookup_step(dial->lookup, &found, &dial->reason);
    if (status == VNX_OK) {
        vnxi_connector_init(&dial->connector, &found, now, dial->deadline);
        dial->is_connecting = true;
    }
    return status;
}

vnx_status_t
vnxi_dial_step(vnxi_dial_t *dial, uint64_t now, int *fd_p)
{
    vnxi_connector_t *connector = &dial->connector;

    if (!dial->is_connecting) {
        vnx_status_t status = resolve(dial, now);
        if (status != VNX_OK) {
            return status;
        }
    }
    vnx_status_t status = vnxi_connector_step(connector, now, fd_p);
    vnxi_address_text(&connector->addresses.list[connector->last],
                      dial->address);
    dial->whom = dial->address;
    if (status != VNX_OK && status != VNX_IN_PROG) {
        dial->reason = vnxi_errno_text(connector->err, dial->text);
    }
    return status;
}

void
vnxi_dial_wait(const vnxi_dial_t *dial, int *fd_p, short *events_p,
               uint64_t *wake_p)
{
    if (dial->is_connecting) {
        vnxi_connector_wait(&dial->connector, fd_p, events_p, wake_p);
        return;
    }
    *fd_p = vnxi_lookup_fd(dial->lookup);
    *events_p = POLLIN;
    *wake_p = UINT64_MAX;
}
