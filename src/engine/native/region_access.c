/*
 * The native engine's regions; which transports connect which kinds of memory,
 * and why others do not.
 */
#include "engine/native/region_access.h"

#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "engine/native/native.h"

/* -- Regions ---------------------------------------------------------------
 */

static void
region_init(vnxi_region_t *region)
{
    memset(&vnxi_native_region(region)->routes, VNXI_ROUTE_NONE,
           sizeof vnxi_native_region(region)->routes);
}

static void
region_fini(vnxi_region_t *base)
{
    const vnxi_native_region_t *region = vnxi_native_region(base);

    for (unsigned t = 0; t < VNXI_TRANSPORTS; t++) {
        void *slot = atomic_load(&region->slots[t]);
        void (*release)(void *) = region->is_remote
                                      ? vnxi_transports[t]->key_free
                                      : vnxi_transports[t]->slot_free;
        if (slot != NULL && release != NULL) {
            release(slot);
        }
    }
}

const vnxi_region_class_t vnxi_native_region_class = {
    .size = sizeof(vnxi_native_region_t),
    .init = region_init,
    .fini = region_fini,
};

unsigned
vnxi_native_by_main(vnx_mem_t mem)
{
    unsigned found = 0;

    for (unsigned t = 0; mem == VNX_MEM_DRAM && t < VNXI_TRANSPORTS; t++) {
        found |= (unsigned)vnxi_transports[t]->copies_by_main << t;
    }
    return found;
}

unsigned
vnxi_native_tentative(void)
{
    unsigned found = 0;

    for (unsigned t = 0; t < VNXI_TRANSPORTS; t++) {
        found |= (unsigned)vnxi_transports[t]->may_give_up << t;
    }
    return found;
}

/* The fastest of some transports; of a region that is mapped here, the copying
 * of this process. */
static unsigned
best_of(const vnxi_region_t *region, unsigned transports)
{
    unsigned t = 0;

    if (transports == 0) {
        return VNXI_ROUTE_NONE;
    }
    while ((transports >> t & 1) == 0) {
        t++;
    }
    const vnxi_transport_t *transport = vnxi_transports[t];
    bool is_mapped = vnxi_native_region(region)->is_remote &&
                     transport->mapped_at != NULL &&
                     transport->mapped_at(vnxi_region_slot(region, t)) != NULL;
    return is_mapped ? VNXI_ROUTE_COPY : t;
}

atomic_uint_fast64_t vnxi_route_changes;

void
vnxi_region_find_routes(vnxi_region_t *region, const vnxi_reach_t *reach)
{
    uint64_t routes = 0;
    unsigned known = 0;

    if (vnxi_native_region(region)->is_remote) {
        known = vnxi_native_by_main(region->mem);
    }
    for (unsigned t = 0; t < VNXI_TRANSPORTS; t++) {
        known |= (unsigned)(vnxi_region_slot(region, t) != NULL) << t;
    }
    for (unsigned local = 0; local < VNX_MEM_COUNT; local++) {
        unsigned moves = reach->moves[local][region->mem];
        routes |= (uint64_t)best_of(region, known & moves) << 8 * local;
    }
    atomic_store_explicit(&vnxi_native_region(region)->routes, routes,
                          memory_order_release);
}

void
vnxi_table_find_routes(const vnxi_region_table_t *table,
                       const vnxi_reach_t *reach)
{
    for (size_t i = 0; i < vnxi_region_table_count(table); i++) {
        vnxi_region_find_routes(vnxi_region_table_at(table, i), reach);
    }
    vnxi_routes_have_changed();
}

/* -- Kinds of memory --------------------------------------------------------
 */

/* Return whether the transport has not given up the peer's memory of this
 * kind.
 */
static bool
works(const vnxi_native_peer_t *peer, unsigned t, vnx_mem_t remote)
{
    return (atomic_load(&peer->given_up) >> t & 1) == 0 ||
           (vnxi_native_by_main(remote) >> t & 1) != 0;
}

void
vnxi_native_find_reach(const vnxi_engine_t *engine,
                       const vnxi_native_peer_t *peer, vnxi_reach_t *reach_p)
{
    memset(reach_p, 0, sizeof *reach_p);
    for (unsigned t = 0; t < VNXI_TRANSPORTS; t++) {
        const vnxi_port_t *port = vnxi_native_port(engine, t);
        if (port == NULL ||
            (peer != NULL && vnxi_native_conn(peer, t) == NULL)) {
            continue;
        }
        for (unsigned i = 0; i < VNX_MEM_COUNT * VNX_MEM_COUNT; i++) {
            unsigned local = i / VNX_MEM_COUNT, remote = i % VNX_MEM_COUNT;
            bool moves =
                port->transport->refuses(port, local, remote) == NULL &&
                (peer == NULL || works(peer, t, remote));
            reach_p->moves[local][remote] |= (uint8_t)(moves << t);
        }
    }
}

uint32_t
vnxi_native_mems(const vnxi_engine_t *engine, unsigned count)
{
    uint32_t mems = 1u << VNX_MEM_DRAM;

    for (unsigned t = 0; t < count; t++) {
        const vnxi_port_t *port = vnxi_native_port(engine, t);
        for (unsigned mem = 0; port != NULL && mem < VNX_MEM_COUNT; mem++) {
            bool moves =
                port->transport->refuses(port, mem, VNX_MEM_DRAM) == NULL;
            mems |= (uint32_t)moves << mem;
        }
    }
    return mems;
}

void
vnxi_native_why_not(vnxi_native_peer_t *peer, unsigned t, vnx_mem_t local,
                    vnx_mem_t remote, char cause_p[VNX_ERROR_CAUSE_MAX])
{
    const vnxi_port_t *port = vnxi_native_port(peer->engine, t);
    const char *why = "";

    vnxi_mutex_lock(&peer->lock);
    if (port == NULL) {
        why = vnxi_native_missing(peer->engine, t);
        why = why[0] != '\0' ? why : "this agent did not create it";
    } else if (peer->refused[t][0] != '\0' &&
               (atomic_load(&peer->given_up) == 0 ||
                !works(peer, t, remote))) {
        why = peer->refused[t];
    } else if (vnxi_native_conn(peer, t) == NULL) {
        why = port->transport->not_offered;
    } else {
        const char *refusal = port->transport->refuses(port, local, remote);
        why = refusal != NULL ? refusal : "";
    }
    snprintf(cause_p, VNX_ERROR_CAUSE_MAX, "%s", why);
    vnxi_mutex_unlock(&peer->lock);
}

vnx_status_t
vnxi_native_no_route(vnxi_native_peer_t *peer, vnx_mem_t local,
                     vnx_mem_t remote, const vnxi_region_t *region,
                     const char *operation, vnx_error_t *error)
{
    char why[VNX_ERROR_CAUSE_MAX], all[VNX_ERROR_CAUSE_MAX] = "";

    for (unsigned t = 0; t < VNXI_TRANSPORTS; t++) {
        vnxi_native_why_not(peer, t, local, remote, why);
        if (why[0] == '\0' &&
            (region == NULL || vnxi_region_slot(region, t) == NULL)) {
            snprintf(why, sizeof why,
                     "the peer's metadata does not offer the "
                     "region for it");
        }
        vnxi_text_add(all, sizeof all, "%s%s: %s", t > 0 ? "; " : "",
                      vnxi_transports[t]->name, why);
    }
    vnxi_error_set(error, VNX_ERR_NOT_SUPPORTED, operation,
                   "no transport moves bytes between %s memory of this agent "
                   "and %s memory of the peer: %s",
                   vnx_mem_name(local), vnx_mem_name(remote), all);
    vnxi_error_peer(error, peer->base.name, peer->base.name_len);
    return VNX_ERR_NOT_SUPPORTED;
}
