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

/* Has it happened?  Then no thread can be joined any more. */
bool vnxi_ucx_parked(void);

#endif
