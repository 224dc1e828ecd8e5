/*
 * How a region of native's is reached: what the engine attaches to it.
 */
#ifndef VNXI_NATIVE_REACH_H
#define VNXI_NATIVE_REACH_H

#include <stdatomic.h>

#include "engine/native/shm/share.h"
#include "engine/native/ucx/conn.h"
#include "engine/native/ucx/memory.h"
#include "engine/parts/region.h"

typedef struct vnxi_reach {
    vnxi_attachment_t super; /* first: the region's attachment is this */
    vnxi_share_t share;      /* ours: how peers can map it, held; a peer's: as
                                published, fd -1.  VNXI_SHARE_NONE: not */
    vnxi_share_map_t *mapping;     /* a peer's that is mapped here; owned */
    _Atomic(vnxi_ucx_mem_t *) mem; /* ours, mapped by UCX; owned; NULL: not */
    vnxi_ucx_key_t *key;           /* a peer's, for UCX; owned; NULL: none */
} vnxi_reach_t;

static inline vnxi_reach_t *
vnxi_region_reach(const vnxi_region_t *region)
{
    return (vnxi_reach_t *)region->attachment;
}

/* How peers can map it; VNXI_SHARE_NONE where they cannot. */
static inline vnxi_share_t
vnxi_region_share(const vnxi_region_t *region)
{
    const vnxi_reach_t *reach = vnxi_region_reach(region);
    return reach != NULL ? reach->share : VNXI_SHARE_NONE;
}

/* What it is to UCX; NULL where that does not know it. */
vnxi_ucx_mem_t *vnxi_region_ucx_mem(const vnxi_region_t *region);
vnxi_ucx_key_t *vnxi_region_ucx_key(const vnxi_region_t *region);

/* A region of ours: how peers on this host can map it (DRAM, which is direct).
 * VNX_ERR_NO_MEMORY. */
vnx_status_t vnxi_reach_attach_local(vnxi_region_t *region,
                                     vnx_error_t *error);

/* The same for UCX, unless that was done.  One thread at a time. */
vnx_status_t vnxi_reach_map_ucx(vnxi_region_t *region, vnxi_ucx_t *ucx,
                                vnx_error_t *error);

/* No peer reaches it any more. */
void vnxi_reach_unmap_ucx(const vnxi_region_t *region);

/* A peer's region; `share` as published, `mapping` (taken over, NULL: none)
 * makes it direct.  VNX_ERR_NO_MEMORY. */
vnx_status_t vnxi_reach_attach_remote(vnxi_region_t *region,
                                      const vnxi_share_t *share,
                                      vnxi_share_map_t *mapping,
                                      vnx_error_t *error);

/* A peer's region that UCX reaches by this key (taken over). */
vnx_status_t vnxi_reach_attach_key(vnxi_region_t *region, vnxi_ucx_key_t *key,
                                   vnx_error_t *error);

#endif
