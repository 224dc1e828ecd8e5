/*
 * Design notes.  Checking every transfer at each wake-up would take quadratic
 * time.  So a waiter continues where it stopped, and checks the other
 * transfers only if the agent's `failures` has changed.  A transfer that fails
 * first stores its state, then increments `failures`, then signals.  A waiter
 * that reads `failures` before it checks the transfers therefore misses none.
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
    unsigned failures; /* the agent's counter before the last check of all */
    size_t first_open; /* if waiting for all: those before it have ended */
    size_t failed;     /* the transfer that ends the wait; `count`: none */
} waiting_t;

static bool
has_failed(const waiting_t *waiting, vnx_xfer_state_t state)
{
    return waiting->check &&
           (state == VNX_XFER_FAILED || state == VNX_XFER_CANCELLED);
}

/* -- First check -------------------------------------------------------------
 */

static vnx_status_t
refuse_xfer(const waiting_t *waiting, size_t i, vnx_error_t *error)
{
    vnx_status_t status =
        vnxi_xfer_agent(waiting->xfers[i]) != waiting->agent
            ? vnxi_error_set(error, VNX_ERR_INVALID_PARAM, "vnx_agent_wait",
                             "the transfer belongs to another agent")
            : vnxi_error_set(error, VNX_ERR_NOT_POSTED, "vnx_agent_wait",
                             "the transfer was not posted, so it would never "
                             "end: transfer() starts it");
    vnxi_error_row(error, i);
    return status;
}

/* Check each transfer once: usually all have ended.  VNX_IN_PROG: keep
 * waiting. */
static vnx_status_t
first_look(waiting_t *waiting, vnx_error_t *error)
{
    size_t count = waiting->count, open = 0;

    waiting->failed = waiting->first_open = count;
    waiting->failures = atomic_load(&waiting->agent->failures);
    for (size_t i = 0; i < count; i++) {
        vnx_xfer_state_t state = vnx_xfer_state(waiting->xfers[i]);
        if (vnxi_xfer_agent(waiting->xfers[i]) != waiting->agent ||
            state == VNX_XFER_READY) {
            return refuse_xfer(waiting, i, error);
        }
        if (state == VNX_XFER_POSTED && open++ == 0) {
            waiting->first_open = i;
        } else if (waiting->failed == count && has_failed(waiting, state)) {
            waiting->failed = i;
        }
    }
    return open == 0 || waiting->failed < count ||
                   (waiting->any && open < count)
               ? VNX_OK
               : VNX_IN_PROG;
}

/* -- Later checks ------------------------------------------------------------
 */

/* Find the first failed transfer, if any has failed since the last check. */
static bool
find_failed(waiting_t *waiting)
{
    unsigned failures = atomic_load(&waiting->agent->failures);

    if (failures == waiting->failures) {
        return false;
    }
    waiting->failures = failures;
    for (size_t i = 0; i < waiting->count; i++) {
        if (has_failed(waiting, vnx_xfer_state(waiting->xfers[i]))) {
            waiting->failed = i;
            return true;
        }
    }
    return false;
}

/* Return whether the transfer has ended.  Record a failure if the caller asked
 * for it. */
static bool
note_ended(waiting_t *waiting, size_t i)
{
    vnx_xfer_state_t state = vnx_xfer_state(waiting->xfers[i]);

    if (has_failed(waiting, state)) {
        waiting->failed = i;
    }
    return state != VNX_XFER_POSTED;
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
        return false;
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

/* -- Result ------------------------------------------------------------------
 */

/* Move the row of the transfer's error into the cause; the record's row is the
 * index of the failed transfer. */
static void
error_of_transfer(vnx_error_t *error, size_t i)
{
    const vnx_error_t own = *error;

    error->operation = "vnx_agent_wait";
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

/* The result of the finished wait.  VNX_IN_PROG: the failed transfer was
 * posted again in the meantime. */
static vnx_status_t
outcome(const waiting_t *waiting, vnx_error_t *error)
{
    vnx_error_t record;

    if (atomic_load(&waiting->agent->closed)) {
        return vnxi_agent_refuse(waiting->agent, "vnx_agent_wait", error);
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

static vnx_status_t
sleep_until_over(waiting_t *waiting, uint64_t deadline, vnx_error_t *error)
{
    if (vnxi_events_wait(&waiting->agent->events, is_over, waiting,
                         deadline)) {
        return VNX_OK;
    }
    return vnxi_error_set(error, VNX_ERR_TIMEOUT, "vnx_agent_wait",
                          "%s of %zu transfers has ended",
                          waiting->any ? "none" : "not every one",
                          waiting->count);
}

vnx_status_t
vnx_agent_wait(vnx_agent_t *agent, vnx_xfer_t *const *xfers, size_t count,
               unsigned flags, uint64_t timeout_ns, vnx_error_t *error)
{
    waiting_t waiting = {
        .agent = agent,
        .xfers = xfers,
        .count = count,
        .any = (flags & VNX_WAIT_ANY) != 0,
        .check = (flags & VNX_WAIT_NO_CHECK) == 0,
    };
    uint64_t deadline = vnxi_clock_deadline(timeout_ns);
    vnx_status_t status;

    if (!vnxi_agent_usable(agent)) {
        return vnxi_agent_refuse(agent, "vnx_agent_wait", error);
    }
    if ((flags & ~(unsigned)(VNX_WAIT_ANY | VNX_WAIT_NO_CHECK)) != 0) {
        return vnxi_error_set(error, VNX_ERR_INVALID_PARAM, "vnx_agent_wait",
                              "unknown flags: 0x%x", flags);
    }
    vnxi_events_clear(&agent->events);
    do {
        status = first_look(&waiting, error);
        if (status < 0) {
            vnxi_events_signal(&agent->events); /* restore the event:
                                                   nothing was taken */
            return status;
        }
        if (status == VNX_IN_PROG) {
            status = sleep_until_over(&waiting, deadline, error);
        }
        if (status == VNX_OK) {
            status = outcome(&waiting, error);
        }
    } while (status == VNX_IN_PROG);
    return status;
}
