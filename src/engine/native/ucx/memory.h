/*
 * Regions as seen by UCX: ours, mapped, with the key that peers need; and a
 * peer's key.
 */
#ifndef VNXI_NATIVE_UCX_MEMORY_H
#define VNXI_NATIVE_UCX_MEMORY_H

#include <stdatomic.h>

#include "engine/native/cuda/context.h"
#include "engine/native/ucx/conn.h"
#include "engine/native/ucx/ucp_abi.h"

/* What one call of UCX has mapped. */
typedef struct vnxi_ucx_part {
    uint64_t addr, len;
    vnxi_ucp_mem_t handle;
} vnxi_ucx_part_t;

typedef struct vnxi_ucx_mem {
    vnxi_ucx_t *ucx; /* retained */
    atomic_bool is_mapped;
    vnxi_cuda_context_t gpu; /* of GPU memory; else no context */
    unsigned char *key; /* always the same bytes: stock peers require that.
                           NULL: peers cannot use the region, which has several
                           parts */
    size_t key_len;
    size_t part_count;
    vnxi_ucx_part_t parts[]; /* side by side: the allocations of GPU memory,
                                otherwise one */
} vnxi_ucx_mem_t;

/* Map a local region, of the kind DRAM or VRAM.  Checks that UCX takes it for
 * the same.  May be slow when pages are pinned.  Any thread, except a
 * worker's.  VNX_ERR_BACKEND with UCX's text; VNX_ERR_INVALID_PARAM: GPU
 * memory as DRAM. */
vnx_status_t vnxi_ucx_mem_map(vnxi_ucx_t *ucx, vnx_mem_t kind, uint64_t addr,
                              uint64_t len, vnxi_ucx_mem_t **mem_p,
                              vnx_error_t *error);

/* Get UCX's handle for an address of the region.  *len_p is reduced to what
 * the handle covers.  NULL: the region was unmapped. */
vnxi_ucp_mem_t vnxi_ucx_mem_find(const vnxi_ucx_mem_t *mem, uint64_t addr,
                                 uint64_t *len_p);

/* Unmap the region, so that peers can no longer access it.  No transfer of
 * ours may be using it.  The key's bytes stay.  Any thread; idempotent. */
void vnxi_ucx_mem_unmap(vnxi_ucx_mem_t *mem);
void vnxi_ucx_mem_free(vnxi_ucx_mem_t *mem); /* NULL is allowed */

/* -- A peer's regions ------------------------------------------------------
 */

typedef struct vnxi_ucx_key vnxi_ucx_key_t;

/* Create a peer's key for one of its regions from its metadata (copied).  It
 * is passed to UCX on first use.  VNX_ERR_MISMATCH: not a key. */
vnx_status_t vnxi_ucx_key_create(vnxi_ucx_conn_t *conn, const void *bytes,
                                 size_t len, vnxi_ucx_key_t **key_p,
                                 vnx_error_t *error);
bool vnxi_ucx_key_is(const vnxi_ucx_key_t *key, const void *bytes, size_t len);
void vnxi_ucx_key_release(vnxi_ucx_key_t *key); /* NULL is allowed */

#endif
