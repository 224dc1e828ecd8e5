/*
 * The native engine's regions: each records the transports that reach it.
 */
#ifndef VNXI_NATIVE_REGION_ACCESS_H
#define VNXI_NATIVE_REGION_ACCESS_H

#include <stdatomic.h>

#include "engine/native/transports.h"
#include "engine/parts/region.h"

typedef struct vnxi_native_region {
    vnxi_region_t base;                     /* first */
    _Atomic(void *) slots[VNXI_TRANSPORTS]; /* owned; NULL: not known to it */
    /* The region as the remote side of a transfer: the route for each kind of
     * local memory, 8 bits each.  Stored with release order, after the slots
     * that it leads to: they may be added while others use the region. */
    atomic_uint_fast64_t routes;
    /* Of a peer's region with a route VNXI_ROUTE_COPY: its address in this
     * process is addr + delta, modulo 2^64. */
    uint64_t delta;
    bool is_remote; /* a peer's; its slots are keys */
    /* For transports that confirm regions. */
    atomic_uint_fast64_t epoch; /* claimed by its metadata (unverified) */
    uint64_t proved; /* epoch of the owner's answer; while UNCONFIRMED, the
                        epoch that the answer must reach */
} vnxi_native_region_t;

extern const vnxi_region_class_t vnxi_native_region_class;

/* Which transports move bytes from and to which kinds of memory; bit t of
 * moves[local][remote] is transport t. */
typedef struct vnxi_reach {
    uint8_t moves[VNX_MEM_COUNT][VNX_MEM_COUNT];
} vnxi_reach_t;

_Static_assert(VNX_MEM_COUNT <= 8 && VNXI_TRANSPORTS <= 8,
               "routes and moves have 8 bits for each kind");

static inline vnxi_native_region_t *
vnxi_native_region(const vnxi_region_t *region)
{
    return (vnxi_native_region_t *)region; /* base is the first member */
}

static inline void *
vnxi_region_slot(const vnxi_region_t *region, unsigned transport)
{
    return atomic_load_explicit(&vnxi_native_region(region)->slots[transport],
                                memory_order_acquire);
}

static inline uint64_t
vnxi_region_routes(const vnxi_region_t *region)
{
    return atomic_load_explicit(&vnxi_native_region(region)->routes,
                                memory_order_acquire);
}

/* The route of `routes` for this kind of local memory; VNXI_ROUTE_NONE: no
 * transport connects the two. */
static inline unsigned
vnxi_route_from(uint64_t routes, vnx_mem_t local)
{
    return (unsigned)(routes >> 8 * local) & 0xff;
}

/* Translation of the region's addresses on this route. */
static inline uint64_t
vnxi_region_delta(const vnxi_region_t *region, unsigned route)
{
    return route == VNXI_ROUTE_COPY ? vnxi_native_region(region)->delta : 0;
}

/* The transports that need no slots for peers' regions of this kind, as a bit
 * set. */
unsigned vnxi_native_by_main(vnx_mem_t mem);

/* The transports whose slots may turn out not to work, as a bit set. */
unsigned vnxi_native_tentative(void);

/* Determine the routes to a region by the transports that know it; after its
 * slots have changed. */
void vnxi_region_find_routes(vnxi_region_t *region, const vnxi_reach_t *reach);

/* The same for all regions of a table, and count the change. */
void vnxi_table_find_routes(const vnxi_region_table_t *table,
                            const vnxi_reach_t *reach);

/* How often the routes to regions have changed that lists may refer to. */
extern atomic_uint_fast64_t vnxi_route_changes;

/* Count that; after the routes were determined. */
static inline void
vnxi_routes_have_changed(void)
{
    atomic_fetch_add(&vnxi_route_changes, 1);
}

#endif
