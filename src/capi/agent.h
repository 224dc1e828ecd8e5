/*
 * Agents of NIXL's C interface.
 */
#ifndef VNXI_CAPI_AGENT_H
#define VNXI_CAPI_AGENT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <vnx/listener.h>
#include <vnx/nixl_capi.h>
#include <vnx/vnx.h>

#include "capi/handles.h"

typedef struct vnxi_capi_agent {
    vnx_agent_t *agent;
    _Atomic(vnx_listener_t *) listener; /* made when it is needed */
    bool has_telemetry;
    char name[];
} vnxi_capi_agent_t;

/* Share an agent; vnxi_slot_leave() gives it back.  NULL: no such agent. */
static inline vnxi_slot_t *
vnxi_capi_agent_share(nixl_capi_agent_t agent)
{
    return vnxi_slot_share(agent, VNXI_KIND_AGENT);
}

static inline vnxi_capi_agent_t *
vnxi_capi_agent_of(const vnxi_slot_t *slot)
{
    return slot->object;
}

/* The interface's number for a status.  Logs the error of a call that failed:
 * the number says little. */
nixl_capi_status_t vnxi_capi_result(const vnxi_capi_agent_t *agent,
                                    vnx_status_t status,
                                    const vnx_error_t *error);

/* A handle for a backend of that agent.  NULL: no memory. */
void *vnxi_capi_backend_handle(nixl_capi_agent_t agent, const char *name);

#endif
