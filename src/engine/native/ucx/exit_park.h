/*
 * The end of a process that has not closed its agents (base/at_end.h).  At
 * that time the memory registered by the agents goes away, which a worker may
 * be reading for a peer.  And UCX's destructors run, which free data that a
 * thread inside the library would touch.  So before that, the thread of every
 * worker is parked: it stops for good, outside of UCX.  Queued notifications
 * have half a second to be sent, transfers in flight end as cancelled, and
 * later calls are refused.  Nothing is closed: peers notice the end of the
 * process.
 */
#ifndef VNXI_NATIVE_UCX_EXIT_PARK_H
#define VNXI_NATIVE_UCX_EXIT_PARK_H

#include "engine/native/ucx/context.h"

/* Between its creation and the stop of its workers. */
void vnxi_ucx_exit_park_add(vnxi_ucx_t *ucx);
void vnxi_ucx_exit_park_remove(vnxi_ucx_t *ucx);

/* The same for one vnxi_ucx_t whose descriptors were closed by the program
 * (base/fork_fds.h): UCX would use their numbers, and a sleeping thread could
 * not be woken.  Does nothing if the descriptors were not closed. */
void vnxi_ucx_exit_park_lost(vnxi_ucx_t *ucx);

/* False: the descriptors of UCX's own thread, one per process, were closed,
 * and UCX cannot be used again in this process.  Call this before using UCX.
 */
bool vnxi_ucx_is_usable(void);

/* Return whether one of the two has happened.  If so, its threads cannot be
 * joined any more, and UCX keeps its resources. */
bool vnxi_ucx_parked(const vnxi_ucx_t *ucx);

#endif
