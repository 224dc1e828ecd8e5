/*
 * The native engine's regions: how it reaches them.
 */
#ifndef VNXI_NATIVE_REACH_H
#define VNXI_NATIVE_REACH_H

#include <stdatomic.h>

#include "engine/native/shm/mapping.h"
#include "engine/native/ucx/conn.h"
#include "engine/native/ucx/memory.h"
#include "engine/parts/region.h"

typedef struct vnxi_native_region {
    vnxi_region_t base; /* first */
    /* Local DRAM and that of peers in this process: direct, delta 0.  A peer's
     * shared mapping that is mapped here: direct, local address = addr +
     * delta.  All others: by process_vm_readv or UCX. */
    bool direct;
    uint64_t delta;  /* modulo 2^64; 0 unless direct */
    uint64_t epoch;  /* of a peer's region: epoch claimed by its metadata
                        (unverified); set before others see the region */
    uint64_t proved; /* of a peer's region: epoch of the owner's answer;
                        while UNCONFIRMED, the epoch that the answer must
                        reach */
    vnxi_map_info_t map_info;      /* ours: how peers can map it, held open; a
                                     peer's: as published, fd -1.
                                     VNXI_MAP_INFO_NONE: cannot be mapped */
    vnxi_mapping_t *mapping;       /* of a peer's region mapped here; owned */
    _Atomic(vnxi_ucx_mem_t *) mem; /* our region, mapped for UCX; owned;
                                      NULL: not mapped */
    vnxi_ucx_key_t *key;           /* UCX key of a peer's region; owned;
                                      NULL: none */
} vnxi_native_region_t;

extern const vnxi_region_class_t vnxi_native_region_class;

static inline vnxi_native_region_t *
vnxi_native_region(const vnxi_region_t *region)
{
    return (vnxi_native_region_t *)region; /* base is the first member */
}

/* How peers can map the region; VNXI_MAP_INFO_NONE: they cannot. */
static inline vnxi_map_info_t
vnxi_region_map_info(const vnxi_region_t *region)
{
    return vnxi_native_region(region)->map_info;
}

/* The region's UCX memory or key; NULL if UCX does not know the region. */
vnxi_ucx_mem_t *vnxi_region_ucx_mem(const vnxi_region_t *region);
vnxi_ucx_key_t *vnxi_region_ucx_key(const vnxi_region_t *region);

/* Make a local region of DRAM direct and find out how peers on this host can
 * map it. */
void vnxi_reach_attach_local(vnxi_region_t *region);

/* Map a local region for UCX unless that is done.  One thread at a time. */
vnx_status_t vnxi_reach_map_ucx(vnxi_region_t *region, vnxi_ucx_t *ucx,
                                vnx_error_t *error);

/* Unmap a local region, so that UCX no longer gives peers access to it. */
void vnxi_reach_unmap_ucx(const vnxi_region_t *region);

/* Attach to a peer's region `map_info`, as published, and `mapping` (taken
 * over; NULL: none), which makes the region direct. */
void vnxi_reach_attach_remote(vnxi_region_t *region,
                              const vnxi_map_info_t *map_info,
                              vnxi_mapping_t *mapping);

/* Attach to a peer's region the key (taken over) with which UCX accesses it.
 */
void vnxi_reach_attach_key(vnxi_region_t *region, vnxi_ucx_key_t *key);

#endif
