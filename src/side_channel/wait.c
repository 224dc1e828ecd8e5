#include "side_channel/wait.h"

#include <errno.h>
#include <poll.h>
#include <stddef.h>

#include "base/clock.h"

/* Rounded up, so that a wait never ends before its deadline; -1: for ever. */
static int
slice_ms(const vnxi_wait_t *wait, uint64_t now)
{
    uint64_t ms = (wait->deadline - now + 999999) / 1000000;
    uint64_t most = wait->interrupted != NULL ? VNXI_WAIT_SLICE_MS : 3600000;
    return (int)(ms < most ? ms : most);
}

vnx_status_t
vnxi_wait_fd(const vnxi_wait_t *wait, int fd, short events)
{
    struct pollfd entry = {.fd = fd, .events = events};

    for (;;) {
        uint64_t now = vnxi_clock_ns();
        if (now >= wait->deadline) {
            return VNX_ERR_TIMEOUT;
        }
        int count = poll(&entry, 1, slice_ms(wait, now));
        if (count > 0) {
            return VNX_OK;
        }
        if (count < 0 && errno != EINTR) {
            return VNX_ERR_BACKEND;
        }
        if (wait->interrupted != NULL && wait->interrupted(wait->arg)) {
            return VNX_ERR_CANCELED;
        }
    }
}

vnxi_wait_t
vnxi_wait_share(const vnxi_wait_t *wait, unsigned shares)
{
    vnxi_wait_t part = *wait;
    uint64_t now = vnxi_clock_ns();
    if (now < wait->deadline) {
        part.deadline = now + (wait->deadline - now) / shares;
    }
    return part;
}

unsigned long
vnxi_wait_elapsed_ms(const vnxi_wait_t *wait)
{
    return (unsigned long)((vnxi_clock_ns() - wait->start) / 1000000);
}
