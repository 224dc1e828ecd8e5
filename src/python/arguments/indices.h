/*
 * Indices into prepared lists: a list or tuple of ints, or a 1-D buffer of any
 * integer type (numpy arrays, array.array, memoryview).  A contiguous buffer
 * goes to the library as it is; everything else is copied.
 */
#ifndef VNXI_PYTHON_INDICES_H
#define VNXI_PYTHON_INDICES_H

#include "python/arguments/scratch.h"
#include "python/module.h"

#define VNXI_PY_INDICES_SMALL 32

typedef struct vnxi_py_indices {
    vnx_indices_t indices; /* for the library */
    Py_buffer view;        /* where has_view */
    bool has_view;
    vnxi_py_scratch_t scratch;
    int64_t small[VNXI_PY_INDICES_SMALL];
} vnxi_py_indices_t;

/* Get the indices; `what` names the argument in messages.  true: give them
 * back with vnxi_py_indices_put().  false: exception, and nothing to give
 * back. */
bool vnxi_py_indices_get(vnxi_py_state_t *state, const char *operation,
                         const char *what, PyObject *value,
                         vnxi_py_indices_t *indices_p);

static inline void
vnxi_py_indices_put(vnxi_py_state_t *state, vnxi_py_indices_t *indices)
{
    if (indices->has_view) {
        PyBuffer_Release(&indices->view);
    }
    vnxi_py_scratch_put(state, &indices->scratch);
}

#endif
