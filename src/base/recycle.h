/*
 * Reuse of big buffers.  Fresh pages from the kernel cost more than the work
 * done in them (0.25 to 2.5 us per page), so blocks above 16 KiB are kept in
 * size classes, up to 64 MiB per process.  Smaller blocks come from malloc().
 */
#ifndef VNXI_BASE_RECYCLE_H
#define VNXI_BASE_RECYCLE_H

#include <stddef.h>

/* Allocate at least `size` bytes, aligned to 64; contents undefined.  NULL: no
 * memory.  Any thread. */
void *vnxi_recycle_alloc(size_t size);

/* Free a block, with the size that was requested.  NULL is allowed. */
void vnxi_recycle_free(void *block, size_t size);

/* Like realloc(): at least `size` bytes, the first `old_size` kept. */
void *vnxi_recycle_grow(void *block, size_t old_size, size_t size);

#endif
