/*
 * One recycled working buffer per module, because touching new pages costs
 * more than the work done in them.  A caller that takes the buffer owns it
 * until it puts it back; meanwhile another caller gets an allocation of its
 * own.
 */
#ifndef VNXI_PYTHON_SCRATCH_H
#define VNXI_PYTHON_SCRATCH_H

#include "python/module.h"

typedef struct vnxi_py_scratch {
    void *data;
    size_t size;
} vnxi_py_scratch_t; /* all zeros: none taken */

/* Take at least `size` bytes (> 0), not initialised; false: MemoryError. */
bool vnxi_py_scratch_take(vnxi_py_state_t *state, size_t size,
                          vnxi_py_scratch_t *scratch_p);

/* Give the buffer back; does nothing if none was taken.  The caller holds the
 * GIL. */
void vnxi_py_scratch_put(vnxi_py_state_t *state, vnxi_py_scratch_t *scratch);

void vnxi_py_scratch_fini(vnxi_py_state_t *state);

#endif
