/*
 * How a region of native's is reached: what the engine attaches to it.
 */
#ifndef VNXI_NATIVE_REACH_H
#define VNXI_NATIVE_REACH_H

#include "engine/native/shm/share.h"
#include "engine/parts/region.h"

typedef struct vnxi_reach {
    vnxi_attachment_t super; /* first: the region's attachment is this */
    vnxi_share_t share;      /* ours: how peers can map it, held; a peer's: as
                                published, fd -1.  VNXI_SHARE_NONE: not */
    vnxi_share_map_t *mapping; /* a peer's that is mapped here; owned */
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

/* The registry's hook: a region of ours, which is direct. */
vnx_status_t vnxi_reach_attach_local(void *context, vnxi_region_t *region,
                                     vnx_error_t *error);

/* A peer's region; `share` as published, `mapping` (taken over, NULL: none)
 * makes it direct.  VNX_ERR_NO_MEMORY. */
vnx_status_t vnxi_reach_attach_remote(vnxi_region_t *region,
                                      const vnxi_share_t *share,
                                      vnxi_share_map_t *mapping,
                                      vnx_error_t *error);

#endif
