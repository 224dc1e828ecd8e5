/*
 * Copying inside this process: between two of its agents, and from or to a
 * mapped region of a peer.
 */
#ifndef VNXI_NATIVE_PROCESS_COPY_H
#define VNXI_NATIVE_PROCESS_COPY_H

#include <stddef.h>
#include <vnx/vnx.h>

#include "engine/native/plan.h"

/* Copy `len` bytes that do not overlap, with non-temporal stores (AVX2 or
 * SSE2, chosen at run time; STNP on AArch64; memcpy() on other machines): for
 * data that this core will not read soon.  Any alignment.  Ends with a store
 * fence. */
void vnxi_copy_stream(void *target, const void *source, size_t len);

/* Copy the pieces of a chunk with the route VNXI_ROUTE_COPY: with plain stores
 * if the whole transfer has at most VNXI_COPY_STREAM_FROM bytes, else with
 * non-temporal stores. Pieces whose two ranges are equal or overlap are moved
 * as by memmove(). */
#define VNXI_COPY_STREAM_FROM (1u << 20)
void vnxi_copy_chunk(const vnxi_plan_t *plan, size_t chunk, vnx_op_t op);

#endif
