#include "engine/native/region_access.h"

#include <string.h>

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

void
vnxi_region_find_routes(vnxi_region_t *region, const vnxi_reach_t *reach)
{
    uint64_t routes = 0;
    unsigned known = 0;

    for (unsigned t = 0; t < VNXI_TRANSPORTS; t++) {
        known |= (unsigned)(vnxi_region_slot(region, t) != NULL) << t;
    }
    for (unsigned local = 0; local < VNX_MEM_COUNT; local++) {
        unsigned moves = reach->moves[local][region->mem];
        routes |= (uint64_t)best_of(region, known & moves) << 8 * local;
    }
    atomic_store_explicit(&vnxi_native_region(region)->routes, routes,
                          memory_order_relaxed);
}
