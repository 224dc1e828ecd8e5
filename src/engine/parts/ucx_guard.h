/*
 * Faults of UCX that end a process whose peers die, and one that ends its
 * listening; and what keeps them from doing so.
 *
 * Sends.  While a peer reads from us or writes to us over TCP, UCX answers it
 * from within ucp_worker_progress().  Where the peer has died, and such an
 * answer is what finds its socket closed, UCX ends the process ("Fatal:
 * unexpected error", or an assertion about what is pending).  Where a
 * reception finds it, everything is in order.  So a failed send of UCX's
 * passes here for one that went, as do bytes that were sent a moment before a
 * peer died, and the socket is shut, so that the next reception says what has
 * happened.
 *
 * Accepting.  Without a descriptor for a peer's connection UCX closes the
 * socket that it listens on, and the agent cannot be reached any more.  So the
 * peer is turned away, and UCX told that nobody came.
 *
 * Memory.  Of an answer that is not sent any more UCX releases what it has
 * never filled in, and crashes where the memory had been used before.  So all
 * that it allocates is zero.
 *
 * A copy of libucs is guarded by filling in slots of it, for good.  That is
 * done only where its version is known to have the faults, and where nobody
 * else in the process had loaded that copy before us: it is not ours to
 * change.  VLLM_NIXL_UCX_GUARD overrides: 1 guards any copy, 0 none.
 */
#ifndef VNXI_PARTS_UCX_GUARD_H
#define VNXI_PARTS_UCX_GUARD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The objects that a process has loaded. */
typedef struct vnxi_ucx_loaded {
    uintptr_t *bases; /* owned */
    size_t count, size;
    bool is_cut; /* there was no memory: taken for all that there is */
} vnxi_ucx_loaded_t;

/* To be called before the load of whatever brings a libucp. */
void vnxi_ucx_loaded_find(vnxi_ucx_loaded_t *loaded);
void vnxi_ucx_loaded_free(vnxi_ucx_loaded_t *loaded);

/* Decide about the copy of libucs behind this handle of dlopen(), that of
 * libucp or of an object which needs it, and guard it where that is right.
 * `before`: what had been loaded before it.  A copy is decided about once.
 * Returns "on: why" or "off: why not", in static storage; NULL: there is no
 * libucp behind the handle.  A copy that should be guarded and cannot be is
 * worth a warning.  Any thread. */
const char *vnxi_ucx_guard(void *handle, const vnxi_ucx_loaded_t *before);

#endif
