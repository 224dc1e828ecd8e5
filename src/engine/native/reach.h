/*
 * How the native engine reaches a region: the attachment of a region.
 */
#ifndef VNXI_NATIVE_REACH_H
#define VNXI_NATIVE_REACH_H

#include <stdatomic.h>

#include "engine/native/shm/mapping.h"
#include "engine/native/ucx/conn.h"
#include "engine/native/ucx/memory.h"
#include "engine/parts/region.h"

typedef struct vnxi_reach {
    vnxi_attachment_t super;  /* first: the region's attachment points to it */
    vnxi_map_info_t map_info; /* ours: how peers can map it, held open; a
                                 peer's: as published, fd -1.
                                 VNXI_MAP_INFO_NONE: cannot be mapped */
    vnxi_mapping_t *mapping;  /* of a peer's region mapped here; owned */
    _Atomic(vnxi_ucx_mem_t *) mem; /* our region, mapped for UCX; owned;
                                      NULL: not mapped */
    vnxi_ucx_key_t *key;           /* UCX key of a peer's region; owned;
                                      NULL: none */
} vnxi_reach_t;

static inline vnxi_reach_t *
vnxi_region_reach(const vnxi_region_t *region)
{
    return (vnxi_reach_t *)region->attachment;
}

/* How peers can map the region; VNXI_MAP_INFO_NONE: they cannot. */
static inline vnxi_map_info_t
vnxi_region_map_info(const vnxi_region_t *region)
{
    const vnxi_reach_t *reach = vnxi_region_reach(region);
    return reach != NULL ? reach->map_info : VNXI_MAP_INFO_NONE;
}

/* The region's UCX memory or key; NULL if UCX does not know the region. */
vnxi_ucx_mem_t *vnxi_region_ucx_mem(const vnxi_region_t *region);
vnxi_ucx_key_t *vnxi_region_ucx_key(const vnxi_region_t *region);

/* Attach to a local region how peers on this host can map it; DRAM becomes
 * direct.  VNX_ERR_NO_MEMORY. */
vnx_status_t vnxi_reach_attach_local(vnxi_region_t *region,
                                     vnx_error_t *error);

/* Map a local region for UCX unless that is done.  One thread at a time. */
vnx_status_t vnxi_reach_map_ucx(vnxi_region_t *region, vnxi_ucx_t *ucx,
                                vnx_error_t *error);

/* Unmap a local region, so that UCX no longer gives peers access to it. */
void vnxi_reach_unmap_ucx(const vnxi_region_t *region);

/* Attach to a peer's region `map_info`, as published, and `mapping` (taken
 * over; NULL: none), which makes the region direct.  VNX_ERR_NO_MEMORY. */
vnx_status_t vnxi_reach_attach_remote(vnxi_region_t *region,
                                      const vnxi_map_info_t *map_info,
                                      vnxi_mapping_t *mapping,
                                      vnx_error_t *error);

/* Attach to a peer's region the key (taken over) with which UCX accesses it.
 */
vnx_status_t vnxi_reach_attach_key(vnxi_region_t *region, vnxi_ucx_key_t *key,
                                   vnx_error_t *error);

#endif
