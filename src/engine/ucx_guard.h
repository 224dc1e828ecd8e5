/*
 * Workarounds for UCX bugs that abort the process or stop its listening socket
 * when a peer dies, or hide the end of an agent from its peers.
 *
 * Sends.  While a peer reads or writes our memory over TCP, UCX sends it
 * replies from within ucp_worker_progress().  If the peer has died and such a
 * send is the first call to find the socket closed, UCX aborts the process
 * ("Fatal: unexpected error", or an assertion about pending requests).  If a
 * receive finds it first, UCX handles it correctly.  So the guard reports a
 * failed send of a short message as successful, like a send just before the
 * peer died, and a failed send of data as one that must wait.  It shuts the
 * socket down, so that the next receive reports the failure.
 *
 * Accepting.  If UCX has no descriptor for an incoming connection, it closes
 * its listening socket, and the agent can no longer be reached.  The guard
 * closes the incoming connection instead and tells UCX that none arrived.
 *
 * Sockets.  UCX's sockets are inherited by all processes that this process
 * starts, and stay connected as long as one of these lives: peers do not
 * notice that the agent was closed, or that its process has ended.  The guard
 * makes them close-on-exec, and closes them in forked children.  (UCX 1.19 to
 * 1.23 open and close all their TCP sockets in libucs.)  Where a copy is not
 * guarded, peers may wait for the end of a child.
 *
 * Memory.  When UCX drops a reply that it will not send, it releases fields
 * that it has never set, and crashes if the memory had been used before.  So
 * the guard zeroes all memory that UCX allocates.
 *
 * A copy of libucs is guarded permanently, by redirecting some of its slots.
 * This is done only if its version is known to have the bugs and no other part
 * of the process had loaded the copy before, because then it is not ours to
 * change.  VLLM_NIXL_UCX_GUARD overrides this: 1 guards any copy, 0 none.
 */
#ifndef VNXI_ENGINE_UCX_GUARD_H
#define VNXI_ENGINE_UCX_GUARD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The objects that a process has loaded. */
typedef struct vnxi_ucx_loaded {
    uintptr_t *bases; /* owned */
    size_t count, size;
    bool is_cut; /* out of memory: treat every object as loaded */
} vnxi_ucx_loaded_t;

/* Call this before loading a library that may bring a libucp. */
void vnxi_ucx_loaded_find(vnxi_ucx_loaded_t *loaded);
void vnxi_ucx_loaded_free(vnxi_ucx_loaded_t *loaded);

/* Decide whether to guard the copy of libucs behind a handle of dlopen(),
 * which is that of libucp or of an object that needs it, and guard it if so.
 * `before`: the objects loaded before it.  Each copy is decided about once.
 * Returns "on: reason" or "off: reason" in static storage; NULL if the handle
 * does not lead to a libucp.  Logs a warning if a copy should be guarded but
 * cannot be.  Any thread. */
const char *vnxi_ucx_guard(void *handle, const vnxi_ucx_loaded_t *before);

#endif
