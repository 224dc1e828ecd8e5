/*
 * One recycled working buffer for each module: touching new pages costs more
 * than the work done in them.  A caller that takes it owns it until it puts it
 * back; meanwhile another caller gets an allocation of its own.
 */
#ifndef VNXI_PYTHON_SCRATCH_H
#define VNXI_PYTHON_SCRATCH_H

#include "python/module.h"

typedef struct vnxi_py_scratch {
    void *data;
    size_t size;
} vnxi_py_scratch_t; /* all zeros: none taken */

/* At least `size` bytes (> 0), not initialised; false and MemoryError. */
bool vnxi_py_scratch_take(vnxi_py_state_t *state, size_t size,
                          vnxi_py_scratch_t *scratch_p);

/* Give back; does nothing where none was taken.  The GIL is held. */
void vnxi_py_scratch_put(vnxi_py_state_t *state, vnxi_py_scratch_t *scratch);

void vnxi_py_scratch_fini(vnxi_py_state_t *state);

#endif
