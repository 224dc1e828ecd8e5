#include "net/connect.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#define INTERVAL_NS UINT64_C(250000000)

/* Order the addresses so that the families alternate; within a family they
 * keep their order. */
static void
alternate(const vnxi_addresses_t *given, vnxi_addresses_t *out_p)
{
    int first = given->list[0].addr.ss_family;
    size_t next[2] = {0, 0}; /* of the first family, of the other one */

    out_p->count = 0;
    for (int turn = 0; out_p->count < given->count; turn = !turn) {
        size_t *i = &next[turn];
        while (*i < given->count &&
               (given->list[*i].addr.ss_family != first) != turn) {
            ++*i;
        }
        if (*i < given->count) {
            out_p->list[out_p->count++] = given->list[(*i)++];
        }
    }
}

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
vnxi_dial_addresses(vnxi_dial_t *dial, const vnxi_addresses_t *addresses,
                    uint64_t now)
{
    uint64_t left = dial->deadline > now ? dial->deadline - now : 0;
    uint64_t share = left / addresses->count;

    dial->is_connecting = true;
    alternate(addresses, &dial->addresses);
    dial->epoll_fd = -1;
    dial->interval = share < INTERVAL_NS ? share : INTERVAL_NS;
    dial->next = now;
    for (size_t i = 0; i < VNXI_ADDRESSES_MAX; i++) {
        dial->fds[i] = -1;
        dial->errs[i] = 0;
    }
}

/* A forked child may have a copy of the socket, which then stays in the set
 * after it was closed here. */
static void
attempt_close(vnxi_dial_t *dial, size_t index)
{
    if (dial->fds[index] >= 0) {
        if (dial->is_connecting && dial->epoll_fd >= 0) {
            epoll_ctl(dial->epoll_fd, EPOLL_CTL_DEL, dial->fds[index], NULL);
        }
        close(dial->fds[index]);
        dial->fds[index] = -1;
        dial->open--;
    }
}

void
vnxi_dial_fini(vnxi_dial_t *dial)
{
    vnxi_lookup_end(dial->lookup);
    dial->lookup = NULL;
    for (size_t i = 0; i < dial->begun; i++) {
        attempt_close(dial, i);
    }
    if (dial->is_connecting && dial->epoll_fd >= 0) {
        close(dial->epoll_fd);
        dial->epoll_fd = -1;
    }
}

/* Add an attempt to the epoll set, which is created for the second attempt.
 * Returns 0, or -1 with errno. */
static int
watch(vnxi_dial_t *dial, size_t index)
{
    struct epoll_event event = {.events = EPOLLOUT,
                                .data.u32 = (uint32_t)index};
    if (dial->epoll_fd < 0) {
        if (dial->open < 2) {
            return 0;
        }
        dial->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
        if (dial->epoll_fd < 0) {
            return -1;
        }
        for (size_t i = 0; i < index; i++) {
            if (dial->fds[i] >= 0 && watch(dial, i) != 0) {
                return -1;
            }
        }
    }
    return epoll_ctl(dial->epoll_fd, EPOLL_CTL_ADD, dial->fds[index], &event);
}

static void
attempt_failed(vnxi_dial_t *dial, size_t index, int err)
{
    dial->errs[index] = err;
    attempt_close(dial, index);
    dial->next = 0; /* the next one at once */
}

/* True: connected at once, as happens over loopback. */
static bool
attempt_begin(vnxi_dial_t *dial, uint64_t now)
{
    size_t index = dial->begun++;
    const vnxi_address_t *address = &dial->addresses.list[index];

    dial->next = now + dial->interval;
    int fd = socket(address->addr.ss_family,
                    SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        attempt_failed(dial, index, errno);
        return false;
    }
    dial->fds[index] = fd;
    dial->open++;
    if (connect(fd, (const void *)&address->addr, address->len) == 0) {
        dial->last = index;
        return true;
    }
    if ((errno != EINPROGRESS && errno != EINTR) || watch(dial, index) != 0) {
        attempt_failed(dial, index, errno);
    }
    return false;
}

/* True: the attempt has connected. */
static bool
attempt_check(vnxi_dial_t *dial, size_t index)
{
    struct pollfd entry = {.fd = dial->fds[index], .events = POLLOUT};
    int err = 0;
    socklen_t len = sizeof err;

    if (entry.fd < 0 || poll(&entry, 1, 0) <= 0) {
        return false;
    }
    if (getsockopt(entry.fd, SOL_SOCKET, SO_ERROR, &err, &len) != 0) {
        err = errno;
    }
    if (err != 0) {
        attempt_failed(dial, index, err);
        return false;
    }
    dial->last = index;
    return true;
}

static bool
any_connected(vnxi_dial_t *dial, uint64_t now)
{
    for (size_t i = 0; i < dial->begun; i++) {
        if (attempt_check(dial, i)) {
            return true;
        }
    }
    while (dial->begun < dial->addresses.count && now >= dial->next) {
        if (attempt_begin(dial, now)) {
            return true;
        }
    }
    return false;
}

/* Remove all other addresses.  False: none is left. */
static bool
keep_loopback(vnxi_addresses_t *addresses)
{
    size_t count = 0;

    for (size_t i = 0; i < addresses->count; i++) {
        if (vnxi_address_is_loopback(&addresses->list[i])) {
            addresses->list[count++] = addresses->list[i];
        }
    }
    addresses->count = count;
    return count > 0;
}

/* No name contains a slash or a colon, and an IPv6 address has more than one
 * colon. */
static bool
has_more_than_a_name(const char *host)
{
    const char *colon = strchr(host, ':');

    return strchr(host, '/') != NULL ||
           (colon != NULL && strchr(colon + 1, ':') == NULL);
}

static vnx_status_t
resolve(vnxi_dial_t *dial, uint64_t now)
{
    vnxi_addresses_t found;

    if (has_more_than_a_name(dial->host)) {
        dial->reason = "not the name or the address of a host: it must be "
                       "given without a scheme or a port";
        return VNX_ERR_NOT_FOUND;
    }
    vnx_status_t status =
        dial->lookup == NULL
            ? vnxi_lookup_begin(dial->host, dial->port, &found, &dial->lookup,
                                &dial->reason)
            : vnxi_lookup_step(dial->lookup, &found, &dial->reason);
    if (status != VNX_OK) {
        /* It matters only if no look-up could begin. */
        dial->next = now + VNXI_LOOKUP_WAIT_MS * UINT64_C(1000000);
        return status;
    }
    vnxi_lookup_end(dial->lookup); /* and its descriptor */
    dial->lookup = NULL;
    if (dial->only_loopback != NULL && !keep_loopback(&found)) {
        dial->reason = dial->only_loopback;
        return VNX_ERR_NOT_ALLOWED;
    }
    vnxi_dial_addresses(dial, &found, now);
    return VNX_OK;
}

/* -- Messages ------------------------------------------------------------- */

static bool
is_first_with_err(const vnxi_dial_t *dial, size_t index)
{
    for (size_t i = 0; i < index; i++) {
        if (dial->errs[i] == dial->errs[index]) {
            return false;
        }
    }
    return true;
}

/* Add " (127.0.0.1, ::1)", the attempts that have come to `err`, except if
 * `whom` says it. */
static void
addresses_add(vnxi_dial_t *dial, int err)
{
    char address[VNXI_ADDRESS_TEXT];
    const char *between = " (";

    if (dial->whom == dial->address) {
        return;
    }
    for (size_t i = 0; i < dial->begun; i++) {
        if (dial->errs[i] == err) {
            vnxi_address_text(&dial->addresses.list[i], address);
            vnxi_text_add(dial->text, sizeof dial->text, "%s%s", between,
                          address);
            between = ", ";
        }
    }
    vnxi_text_add(dial->text, sizeof dial->text, ")");
}

/* Add what the attempts have come to: "Connection refused (127.0.0.1, ::1)".
 */
static void
attempts_add(vnxi_dial_t *dial, const char *between)
{
    for (size_t i = 0; i < dial->begun; i++) {
        if (is_first_with_err(dial, i)) {
            int err = dial->errs[i];
            vnxi_text_add(dial->text, sizeof dial->text, "%s%s", between,
                          err != 0 ? vnxi_errno(err) : "no answer");
            addresses_add(dial, err);
            between = "; ";
        }
    }
}

/* Does it wait because too many look-ups are running? */
static bool
waits_for_lookup(const vnxi_dial_t *dial)
{
    return !dial->is_connecting && dial->lookup == NULL &&
           dial->reason != NULL;
}

const char *
vnxi_dial_timed_out(vnxi_dial_t *dial)
{
    snprintf(dial->text, sizeof dial->text, "timed out");
    if (dial->is_connecting && dial->whom != dial->address) {
        attempts_add(dial, ": ");
    } else if (waits_for_lookup(dial)) {
        vnxi_text_add(dial->text, sizeof dial->text, ": %s", dial->reason);
    } else if (dial->lookup != NULL) {
        vnxi_text_add(dial->text, sizeof dial->text,
                      ": the name service did not answer");
    }
    return dial->text;
}

/* -- Steps ---------------------------------------------------------------- */

/* Name the address that has connected, or the only one there is. */
static void
set_whom(vnxi_dial_t *dial, bool is_connected)
{
    if (is_connected || dial->addresses.count == 1) {
        vnxi_address_text(&dial->addresses.list[dial->last], dial->address);
        dial->whom = dial->address;
    }
}

vnx_status_t
vnxi_dial_step(vnxi_dial_t *dial, uint64_t now, int *fd_p)
{
    if (!dial->is_connecting) {
        vnx_status_t status = resolve(dial, now);
        if (status != VNX_OK) {
            return status;
        }
    }
    bool done = any_connected(dial, now);
    set_whom(dial, done);
    if (done) {
        *fd_p = dial->fds[dial->last];
        dial->fds[dial->last] = -1;
        dial->open--;
        vnxi_dial_fini(dial);
        return VNX_OK;
    }
    if (dial->open > 0) {
        return VNX_IN_PROG;
    }
    dial->text[0] = '\0';
    attempts_add(dial, "");
    dial->reason = dial->text;
    return VNX_ERR_BACKEND;
}

void
vnxi_dial_wait(const vnxi_dial_t *dial, int *fd_p, short *events_p,
               uint64_t *wake_p)
{
    *wake_p = UINT64_MAX;
    *events_p = POLLIN;
    if (waits_for_lookup(dial)) {
        *fd_p = -1;
        *wake_p = dial->next;
        return;
    }
    if (!dial->is_connecting) {
        *fd_p = vnxi_lookup_fd(dial->lookup);
        return;
    }
    if (dial->begun < dial->addresses.count) {
        *wake_p = dial->next;
    }
    if (dial->epoll_fd >= 0) {
        *fd_p = dial->epoll_fd;
        return;
    }
    *events_p = POLLOUT;
    for (size_t i = 0; i < dial->begun; i++) {
        if (dial->fds[i] >= 0) {
            *fd_p = dial->fds[i];
        }
    }
}
