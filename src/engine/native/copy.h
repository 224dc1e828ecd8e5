/*
 * Copying inside this process: between two agents of it, and from or to a
 * mapped region of a peer.
 */
#ifndef VNXI_NATIVE_COPY_H
#define VNXI_NATIVE_COPY_H

#include <stddef.h>
#include <vnx/vnx.h>

#include "engine/native/plan.h"

/* Copy `len` bytes that do not overlap, with non-temporal stores (AVX2, SSE2,
 * or memcpy() on other machines; chosen at run time): for data that will not
 * be read at once by this core.  Any alignment.  Ends with a store fence. */
void vnxi_copy_stream(void *target, const void *source, size_t len);

/* Copy all pieces of a chunk that are direct: plain stores for a
 * transfer of up to VNXI_COPY_STREAM_FROM bytes in all, streaming ones above.
 * Pieces whose two ranges are the same or overlap are moved as by memmove().
 */
#define VNXI_COPY_STREAM_FROM (1u << 20)
void vnxi_copy_chunk(const vnxi_plan_t *plan, size_t chunk, vnx_op_t op);

#endif
