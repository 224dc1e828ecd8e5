/*
 * One recycled working buffer a module: fresh pages cost more than the work
 * that is done in them.  Whoever takes it owns it until he puts it back; a
 * second taker at the same time gets an allocation of his own.
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
