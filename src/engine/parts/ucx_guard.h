/*
 * What in UCX ends a process whose peers die, kept from doing so, and what
 * ends its listening.
 *
 * Sends.  While a peer reads from us or writes to us over TCP, UCX answers it
 * from within ucp_worker_progress().  Where the peer has died, and such an
 * answer is what finds its socket closed, UCX 1.22 and 1.23 end the process
 * ("Fatal: unexpected error", or an assertion about what is pending).  Where a
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
 */
#ifndef VNXI_PARTS_UCX_GUARD_H
#define VNXI_PARTS_UCX_GUARD_H

#include <stdbool.h>

/* For the calls of send(), sendmsg(), malloc() and accept() by the loaded
 * object that this address lies in, libucs, for good; no other object's. Sends
 * that fail for other reasons than the connection's are reported as before.
 * False: it cannot be done.  Where VLLM_NIXL_UCX_GUARD is 0 nothing is done.
 * Any thread. */
bool vnxi_ucx_guard(const void *within);

/* The same for every copy of libucs that is loaded now: whoever has a library
 * load it knows none of its addresses. */
bool vnxi_ucx_guard_loaded(void);

#endif
