#include "python/arguments/scratch.h"

/* Larger buffers are freed, so that one huge call does not keep its memory. */
#define SCRATCH_KEEP_MAX ((size_t)4 << 20)
#define SCRATCH_SIZE_MIN ((size_t)128 << 10)

bool
vnxi_py_scratch_take(vnxi_py_state_t *state, size_t size,
                     vnxi_py_scratch_t *scratch_p)
{
    if (state->scratch != NULL && state->scratch_size >= size) {
        scratch_p->data = state->scratch;
        scratch_p->size = state->scratch_size;
        state->scratch = NULL;
        state->scratch_size = 0;
        return true;
    }
    if (size < SCRATCH_SIZE_MIN) {
        size = SCRATCH_SIZE_MIN;
    }
    scratch_p->data = PyMem_RawMalloc(size);
    if (scratch_p->data == NULL) {
        return PyErr_NoMemory();
    }
    scratch_p->size = size;
    return true;
}

void
vnxi_py_scratch_put(vnxi_py_state_t *state, vnxi_py_scratch_t *scratch)
{
    if (scratch->data == NULL) {
        return;
    }
    if (scratch->size > state->scratch_size &&
        scratch->size <= SCRATCH_KEEP_MAX) {
        PyMem_RawFree(state->scratch);
        state->scratch = scratch->data;
        state->scratch_size = scratch->size;
    } else {
        PyMem_RawFree(scratch->data);
    }
    scratch->data = NULL;
    scratch->size = 0;
}

void
vnxi_py_scratch_fini(vnxi_py_state_t *state)
{
    PyMem_RawFree(state->scratch);
    state->scratch = NULL;
    state->scratch_size = 0;
}
