/*
 * Regions as seen by UCX: ours, mapped, with the key that peers need; and a
 * peer's key.
 */
#ifndef VNXI_NATIVE_UCX_MEMORY_H
#define VNXI_NATIVE_UCX_MEMORY_H

#include <stdatomic.h>

#include "engine/native/ucx/context.h"
#include "engine/native/ucx/ucp_abi.h"

typedef struct vnxi_ucx_mem {
    vnxi_ucx_t *ucx;                /* retained */
    _Atomic(vnxi_ucp_mem_t) handle; /* NULL: unmapped */
    size_t key_len;
    unsigned char key[]; /* always the same bytes: stock peers require that */
} vnxi_ucx_mem_t;

/* Map a local region; UCX detects the kind of memory.  May be slow when pages
 * are pinned.  Any thread.  VNX_ERR_BACKEND with UCX's text. */
vnx_status_t vnxi_ucx_mem_map(vnxi_ucx_t *ucx, uint64_t addr, uint64_t len,
                              vnxi_ucx_mem_t **mem_p, vnx_error_t *error);

/* Unmap the region, so that peers can no longer access it.  No transfer of
 * ours may be using it.  The key's bytes stay.  Any thread; idempotent. */
void vnxi_ucx_mem_unmap(vnxi_ucx_mem_t *mem);
void vnxi_ucx_mem_free(vnxi_ucx_mem_t *mem); /* NULL is allowed */

#endif
