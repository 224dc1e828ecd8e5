/*
 * The end of a process that has not closed its agents.  UCX's destructors run
 * then, and a thread that is inside the library would touch what they have
 * freed.  So before that, at exit, every worker's thread is parked: it stands
 * still for good, outside of UCX.
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
