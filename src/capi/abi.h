/*
 * What depends on the version of the interface: this header and
 * vnx/nixl_capi.h.
 *
 * The next one (NIXL calls it libnixl_capi.so.0; it is not released) has a
 * number for each status of NIXL, accepts NULL in calls that destroy, has a
 * version and a text for the last error, and makes `listen_port` a uint16_t,
 * which moves the fields behind it.  One library cannot serve both: it would
 * be a second one, from the same sources with another pair of headers.
 */
#ifndef VNXI_CAPI_ABI_H
#define VNXI_CAPI_ABI_H

#include <vnx/nixl_capi.h>
#include <vnx/status.h>

_Static_assert(offsetof(nixl_capi_agent_config_t, listen_port) == 4 &&
                   offsetof(nixl_capi_agent_config_t, num_workers) == 12 &&
                   offsetof(nixl_capi_agent_config_t, capture_telemetry) ==
                       32 &&
                   sizeof(nixl_capi_agent_config_t) == 40 &&
                   sizeof(struct nixl_capi_xfer_telemetry_s) == 40,
               "NIXL's layout");

static inline nixl_capi_status_t
vnxi_abi_status(vnx_status_t status)
{
    switch (status) {
    case VNX_OK:
        return NIXL_CAPI_SUCCESS;
    case VNX_IN_PROG:
        return NIXL_CAPI_IN_PROG;
    case VNX_ERR_INVALID_PARAM:
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    case VNX_ERR_NOT_FOUND:
        return NIXL_CAPI_ERROR_NOT_FOUND;
    case VNX_ERR_NO_TELEMETRY:
        return NIXL_CAPI_ERROR_NO_TELEMETRY;
    default:
        return NIXL_CAPI_ERROR_BACKEND;
    }
}

/* Destroying an object whose handle is NULL, unknown or already destroyed. */
static inline nixl_capi_status_t
vnxi_abi_nothing_to_destroy(const void *handle)
{
    (void)handle;
    return NIXL_CAPI_ERROR_INVALID_PARAM;
}

#endif
