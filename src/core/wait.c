#include "base/clock.h"
#include "core/agent.h"

typedef struct waiting {
    vnx_agent_t *agent;
    vnx_xfer_t *const *xfers;
    size_t count;
    bool any;
    size_t first_open; /* all: those before it have ended */
} waiting_t;

static bool
is_over(void *context)
{
    waiting_t *waiting = context;

    if (atomic_load(&waiting->agent->closed)) {
        return true;
    }
    if (!waiting->any) {
        while (waiting->first_open < waiting->count &&
               vnxi_xfer_has_ended(waiting->xfers[waiting->first_open])) {
            waiting->first_open++;
        }
        return waiting->first_open == waiting->count;
    }
    for (size_t i = 0; i < waiting->count; i++) {
        if (vnxi_xfer_has_ended(waiting->xfers[i])) {
            return true;
        }
    }
    return waiting->count == 0;
}

vnx_status_t
vnx_agent_wait(vnx_agent_t *agent, vnx_xfer_t *const *xfers, size_t count,
               bool any, uint64_t timeout_ns, vnx_error_t *error)
{
    waiting_t waiting = {agent, xfers, count, any, 0};

    if (!vnxi_agent_usable(agent)) {
        return vnxi_agent_refuse(agent, "wait", error);
    }
    for (size_t i = 0; i < count; i++) {
        if (vnxi_xfer_agent(xfers[i]) != agent) {
            vnxi_error_set(error, VNX_ERR_INVALID_PARAM, "wait",
                           "the transfer belongs to another agent");
            vnxi_error_row(error, i);
            return VNX_ERR_INVALID_PARAM;
        }
    }
    vnxi_events_clear(&agent->events);
    if (!vnxi_events_wait(&agent->events, is_over, &waiting,
                          vnxi_clock_deadline(timeout_ns))) {
        return vnxi_error_set(error, VNX_ERR_TIMEOUT, "wait",
                              "%s of %zu transfers has ended",
                              any ? "none" : "not every one", count);
    }
    return atomic_load(&agent->closed)
               ? vnxi_agent_refuse(agent, "wait", error)
               : VNX_OK;
}
