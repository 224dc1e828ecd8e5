/*
 * The end of a process that has not closed its agents (base/at_end.h).  The
 * memory that they registered goes then, which a worker may be reading for a
 * peer; and UCX's destructors run, which free what a thread inside the library
 * would touch.  So before that every worker's thread is parked: it stands
 * still for good, outside of UCX.  Notifications that were queued have half a
 * second to leave; transfers in flight end as cancelled; what is asked
 * afterwards is refused.  Nothing is closed: peers see the process's end.
 */
#ifndef VNXI_NATIVE_UCX_PARK_H
#define VNXI_NATIVE_UCX_PARK_H

#include "engine/native/ucx/context.h"

/* From its making until its workers are stopped. */
void vnxi_ucx_park_add(vnxi_ucx_t *ucx);
void vnxi_ucx_park_remove(vnxi_ucx_t *ucx);

/* The same for one share of UCX whose descriptors the program has closed
 * (base/fork_fds.h): UCX would use their numbers, and nothing wakes a thread
 * that sleeps.  Does nothing where that has not happened. */
void vnxi_ucx_park_lost(vnxi_ucx_t *ucx);

/* False: the descriptors of UCX's own thread, one a process, were closed; UCX
 * cannot be used again in this process.  To be asked before it is used. */
bool vnxi_ucx_is_usable(void);

/* Has either happened?  Then its threads cannot be joined any more, and UCX
 * keeps what it has. */
bool vnxi_ucx_parked(const vnxi_ucx_t *ucx);

#endif
