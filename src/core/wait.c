/*
 * Design notes.  A waiter that looked at every transfer at each wake-up would
 * need quadratic time for many transfers, so it goes on where it stopped, and
 * looks at the others only when `failures` of the agent has moved.  A transfer
 * that fails stores its state first, then raises `failures`, then signals: a
 * waiter that reads `failures` before it looks misses none.
 */
#include <inttypes.h>
#include <stdio.h>

#include "base/clock.h"
#include "core/agent.h"

typedef struct waiting {
    vnx_agent_t *agent;
    vnx_xfer_t *const *xfers;
    size_t count;
    bool any, check;
    bool looked;       /* `failures` is valid */
    unsigned failures; /* the agent's, before the last look at all */
    size_t first_open; /* all: those before it have ended */
    size_t failed;     /* the one that ends the wait; `count`: none */
} waiting_t;

static bool
has_failed(const waiting_t *waiting, size_t i)
{
    vnx_xfer_state_t state = vnx_xfer_state(waiting->xfers[i]);
    return state == VNX_XFER_FAILED || state == VNX_XFER_CANCELLED;
}

/* Look for the first failed transfer, unless none has failed since the last
 * look. */
static bool
find_failed(waiting_t *waiting)
{
    unsigned failures = atomic_load(&waiting->agent->failures);
    if (!waiting->check ||
        (waiting->looked && failures == waiting->failures)) {
        return false;
    }
    waiting->looked = true;
    waiting->failures = failures;
    for (size_t i = 0; i < waiting->count; i++) {
        if (has_failed(waiting, i)) {
            waiting->failed = i;
            return true;
        }
    }
    return false;
}

/* Has it ended?  A failure is noted where the caller asked for it. */
static bool
note_ended(waiting_t *waiting, size_t i)
{
    if (!vnxi_xfer_has_ended(waiting->xfers[i])) {
        return false;
    }
    if (waiting->check && has_failed(waiting, i)) {
        waiting->failed = i;
    }
    return true;
}

static bool
is_over(void *context)
{
    waiting_t *waiting = context;

    if (atomic_load(&waiting->agent->closed) || find_failed(waiting)) {
        return true;
    }
    if (waiting->any) {
        for (size_t i = 0; i < waiting->count; i++) {
            if (note_ended(waiting, i)) {
                return true;
            }
        }
        return waiting->count == 0;
    }
    while (waiting->first_open < waiting->count &&
           note_ended(waiting, waiting->first_open)) {
        if (waiting->failed < waiting->count) {
            return true;
        }
        waiting->first_open++;
    }
    return waiting->first_open == waiting->count;
}

static vnx_status_t
check_xfers(const vnx_agent_t *agent, vnx_xfer_t *const *xfers, size_t count,
            vnx_error_t *error)
{
    for (size_t i = 0; i < count; i++) {
        vnx_status_t status = VNX_OK;
        if (vnxi_xfer_agent(xfers[i]) != agent) {
            status = vnxi_error_set(error, VNX_ERR_INVALID_PARAM, "wait",
                                    "the transfer belongs to another agent");
        } else if (vnx_xfer_state(xfers[i]) == VNX_XFER_READY) {
            status = vnxi_error_set(error, VNX_ERR_NOT_POSTED, "wait",
                                    "the transfer was not posted, so it would "
                                    "never end: call transfer() first");
        }
        if (status != VNX_OK) {
            vnxi_error_row(error, i);
            return status;
        }
    }
    return VNX_OK;
}

/* The row of a transfer's own error moves into the cause: the record's row
 * says which transfer failed. */
static void
error_of_transfer(vnx_error_t *error, size_t i)
{
    const vnx_error_t own = *error;

    error->operation = "wait";
    error->row = (int64_t)i;
    error->has_desc = 0;
    if (own.has_desc) {
        snprintf(error->cause, sizeof error->cause,
                 "its row %" PRId64 " (address 0x%" PRIx64 ", length %" PRIu64
                 ", device %" PRIu64 "): %.240s",
                 own.row, own.addr, own.len, own.dev, own.cause);
    } else if (own.row >= 0) {
        snprintf(error->cause, sizeof error->cause,
                 "its row %" PRId64 ": %.300s", own.row, own.cause);
    }
}

/* What the wait that is over came to; VNX_IN_PROG: the transfer that had
 * failed was posted again meanwhile. */
static vnx_status_t
outcome(const waiting_t *waiting, vnx_error_t *error)
{
    vnx_error_t record;

    if (atomic_load(&waiting->agent->closed)) {
        return vnxi_agent_refuse(waiting->agent, "wait", error);
    }
    if (waiting->failed == waiting->count) {
        return VNX_OK;
    }
    vnx_status_t status =
        vnx_xfer_status(waiting->xfers[waiting->failed], &record);
    if (status >= 0) {
        return VNX_IN_PROG;
    }
    if (error != NULL) {
        error_of_transfer(&record, waiting->failed);
        *error = record;
    }
    return status;
}

vnx_status_t
vnx_agent_wait(vnx_agent_t *agent, vnx_xfer_t *const *xfers, size_t count,
               unsigned flags, uint64_t timeout_ns, vnx_error_t *error)
{
    const bool any = (flags & VNX_WAIT_ANY) != 0;
    uint64_t deadline = vnxi_clock_deadline(timeout_ns);
    vnx_status_t status;

    if (!vnxi_agent_usable(agent)) {
        return vnxi_agent_refuse(agent, "wait", error);
    }
    if ((flags & ~(unsigned)(VNX_WAIT_ANY | VNX_WAIT_NO_CHECK)) != 0) {
        return vnxi_error_set(error, VNX_ERR_INVALID_PARAM, "wait",
                              "unknown flags: 0x%x", flags);
    }
    status = check_xfers(agent, xfers, count, error);
    if (status != VNX_OK) {
        return status;
    }
    vnxi_events_clear(&agent->events);
    do {
        waiting_t waiting = {.agent = agent,
                             .xfers = xfers,
                             .count = count,
                             .any = any,
                             .check = (flags & VNX_WAIT_NO_CHECK) == 0,
                             .failed = count};
        if (!vnxi_events_wait(&agent->events, is_over, &waiting, deadline)) {
            return vnxi_error_set(error, VNX_ERR_TIMEOUT, "wait",
                                  "%s of %zu transfers has ended",
                                  any ? "none" : "not every one", count);
        }
        status = outcome(&waiting, error);
    } while (status == VNX_IN_PROG);
    return status;
}
