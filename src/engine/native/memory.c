/*
 * Registering and deregistering memory.
 */
#include <stdio.h>
#include <stdlib.h>

#include "base/error.h"
#include "base/pool.h"
#include "engine/native/native.h"

/* -- Registering -----------------------------------------------------------
 */

/* Write why no transport moves this kind of memory: the reason of each. */
static void
why_no_transport(const vnxi_engine_t *engine, vnx_mem_t mem,
                 char why_p[VNX_ERROR_CAUSE_MAX])
{
    snprintf(why_p, VNX_ERROR_CAUSE_MAX, "no backend was created");
    for (unsigned t = 0, count = 0; t < VNXI_TRANSPORTS; t++) {
        const vnxi_port_t *port = vnxi_native_port(engine, t);
        const char *why =
            port != NULL ? port->transport->refuses(port, mem, VNX_MEM_DRAM)
                         : vnxi_native_missing(engine, t);
        if (vnxi_transports[t]->entry != NULL && why != NULL &&
            why[0] != '\0') {
            why_p[0] = count == 0 ? '\0' : why_p[0];
            vnxi_text_add(why_p, VNX_ERROR_CAUSE_MAX, "%s%s: %s",
                          count++ > 0 ? "; " : "", vnxi_transports[t]->name,
                          why);
        }
    }
}

static vnx_status_t
check_mem(vnxi_engine_t *engine, vnx_mem_t mem, vnx_error_t *error)
{
    const char *name = vnx_mem_name(mem);
    if (name == NULL ||
        (vnxi_native_mems(engine, VNXI_TRANSPORTS) >> mem & 1) != 0) {
        return VNX_OK; /* the registry refuses invalid memory types */
    }
    if (mem == VNX_MEM_VRAM) {
        char why[VNX_ERROR_CAUSE_MAX];
        why_no_transport(engine, mem, why);
        return vnxi_error_set(error, VNX_ERR_NOT_SUPPORTED,
                              "vnx_agent_register",
                              "no backend of the native engine can move VRAM "
                              "memory: %s",
                              why);
    }
    return vnxi_error_set(error, VNX_ERR_NOT_SUPPORTED, "vnx_agent_register",
                          "%s memory needs the nixl engine", name);
}

vnx_status_t
vnxi_native_register(vnxi_engine_t *engine, vnx_mem_t mem,
                     const vnx_reg_desc_t *descs, size_t count,
                     const char *const *backends, vnx_error_t *error)
{
    vnx_status_t status = vnxi_native_check_backends(
        engine, backends, "vnx_agent_register", error);
    status = status == VNX_OK ? check_mem(engine, mem, error) : status;
    return status != VNX_OK
               ? status
               : vnxi_registry_add(engine->registry, mem, descs, count, error);
}

/* -- Deregistering ---------------------------------------------------------
 */

/* The regions that a call removes. */
typedef struct removal {
    vnxi_engine_t *engine;
    vnxi_region_t **regions; /* each retained */
    size_t count;
} removal_t;

static void
on_removed(void *context, const vnxi_region_t *region, uint64_t epoch)
{
    removal_t *removal = context;
    vnxi_engine_t *engine = removal->engine;

    for (unsigned t = 0; t < VNXI_TRANSPORTS; t++) {
        vnxi_port_t *port = vnxi_native_port(engine, t);
        if (port != NULL && port->transport->revoked != NULL) {
            port->transport->revoked(port, region, epoch);
        }
    }
    removal->regions[removal->count++] =
        vnxi_region_retain((vnxi_region_t *)region);
}

/* Peers must not access the region any more. */
static void
detach(const vnxi_region_t *region)
{
    for (unsigned t = 0; t < VNXI_TRANSPORTS; t++) {
        void *slot = vnxi_region_slot(region, t);
        if (slot != NULL && vnxi_transports[t]->detach != NULL) {
            vnxi_transports[t]->detach(slot);
        }
    }
}

static void
settle(vnxi_engine_t *engine)
{
    vnxi_pool_settle();
    for (unsigned t = 0; t < VNXI_TRANSPORTS; t++) {
        vnxi_port_t *port = vnxi_native_port(engine, t);
        if (port != NULL && port->transport->settle != NULL) {
            port->transport->settle(port);
        }
    }
}

bool
vnxi_native_settle(void *context, bool waits)
{
    vnxi_engine_t *engine = context;

    vnxi_mutex_lock(&engine->flight_lock);
    bool is_idle = engine->in_flight == 0;
    vnxi_mutex_unlock(&engine->flight_lock);
    is_idle = is_idle && vnxi_pool_is_idle();
    if (!is_idle && waits && !atomic_load(&engine->stopped)) {
        settle(engine);
    } else if (!is_idle && waits) {
        vnxi_native_settle_stopped(engine);
    }
    return is_idle || waits;
}

static void
settle_peers(const vnxi_engine_t *engine)
{
    for (unsigned t = 0; t < VNXI_TRANSPORTS; t++) {
        vnxi_port_t *port = vnxi_native_port(engine, t);
        if (port != NULL && port->transport->settle_peers != NULL) {
            port->transport->settle_peers(port);
        }
    }
}

/* Give the memory back to the user: wait until nothing copies from or to it,
 * and detach it from the transports. */
static void
finish_removal(removal_t *removal)
{
    settle(removal->engine);
    settle_peers(removal->engine);
    for (size_t i = 0; i < removal->count; i++) {
        detach(removal->regions[i]);
        vnxi_region_release(removal->regions[i]);
    }
}

vnx_status_t
vnxi_native_deregister(vnxi_engine_t *engine, vnx_mem_t mem,
                       const vnx_reg_desc_t *descs, size_t count,
                       const char *const *backends, vnx_error_t *error)
{
    static const char operation[] = "vnx_agent_deregister";
    removal_t removal = {.engine = engine};

    vnx_status_t status =
        vnxi_native_check_backends(engine, backends, operation, error);
    if (status != VNX_OK) {
        return status;
    }
    removal.regions = calloc(count + 1, sizeof(vnxi_region_t *));
    if (removal.regions == NULL) {
        return vnxi_error_no_memory(error, operation,
                                    count * sizeof(vnxi_region_t *));
    }
    status = vnxi_registry_remove(engine->registry, mem, descs, count,
                                  on_removed, &removal, error);
    if (status == VNX_OK) {
        finish_removal(&removal);
    }
    free(removal.regions);
    return status;
}
