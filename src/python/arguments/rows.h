/*
 * Descriptors from Python objects: rows of a list, an Nx3 or Nx5 buffer, torch
 * tensors (by their methods; torch is never imported).
 */
#ifndef VNXI_PYTHON_ROWS_H
#define VNXI_PYTHON_ROWS_H

#include "python/module.h"

typedef enum vnxi_py_source {
    VNXI_PY_SOURCE_ROWS,    /* list or tuple of (address, length, device) */
    VNXI_PY_SOURCE_MATRIX,  /* buffer: Nx3, or Nx5 with strides */
    VNXI_PY_SOURCE_TENSOR,  /* one tensor */
    VNXI_PY_SOURCE_TENSORS, /* list or tuple of tensors */
    VNXI_PY_SOURCE_OTHER,
    VNXI_PY_SOURCE_EXCEPTION, /* inspecting it raised; the exception is set */
} vnxi_py_source_t;

vnxi_py_source_t vnxi_py_source_of(const vnxi_py_state_t *state,
                                   PyObject *source);

/* -- Rows ----------------------------------------------------------------- */

#define VNXI_PY_ROWS_CHUNK 4096

/* Processing this many rows takes long enough to let other threads run. */
#define VNXI_PY_ROWS_LARGE ((size_t)32 << 10)

/* What a row has after address, length and device id, for messages. */
#define VNXI_PY_META "meta info such as \"\""
#define VNXI_PY_AGENT_NAME "name of the agent"

/* Convert row `row` of a list: a sequence of three integers and, unless
 * `fourth` is NULL, one more item.  *extra_p is that item, owned.  May run any
 * code, so hold a reference to `item`. */
bool vnxi_py_row_get(vnxi_py_state_t *state, const char *operation,
                     int64_t row, PyObject *item, const char *fourth,
                     vnx_desc_t *desc_p, PyObject **extra_p);

/* Takes `count` rows (> 0, at most VNXI_PY_ROWS_CHUNK).  May drop the GIL.
 * false: exception. */
typedef bool (*vnxi_py_rows_fn)(void *context, const vnx_desc_t *rows,
                                size_t count);

/* Convert a list or tuple of 3-tuples and pass it on in chunks, so that no
 * array of all rows is allocated. */
bool vnxi_py_rows_read(vnxi_py_state_t *state, const char *operation,
                       PyObject *list, vnxi_py_rows_fn take, void *context);

/* Let other threads run for a moment, if there are any.  Call it about every
 * half millisecond of work on Python objects. */
void vnxi_py_turn_give(void);

/* -- Buffers -------------------------------------------------------------- */

typedef struct vnxi_py_matrix {
    Py_buffer view;
    const uint64_t *data; /* C-contiguous, aligned */
    size_t rows;
    int columns; /* 3 or 5 */
    bool is_signed;
} vnxi_py_matrix_t;

/* Get a matrix.  true: give it back with vnxi_py_matrix_put().  false:
 * ValueError for another shape, layout or type of elements.  It shows the row
 * for the memory of the array, in case that this is what the caller meant;
 * `fourth` is that of vnxi_py_row_get(). */
bool vnxi_py_matrix_get(vnxi_py_state_t *state, const char *operation,
                        PyObject *source, const char *fourth,
                        vnxi_py_matrix_t *matrix_p);

/* Write how to describe the memory of an object, if it has the buffer
 * protocol: "; for its memory: register_memory(...)". */
#define VNXI_PY_MEMORY_TEXT 160
const char *vnxi_py_memory_text(PyObject *object, const char *fourth,
                                char text[VNXI_PY_MEMORY_TEXT]);

static inline void
vnxi_py_matrix_put(vnxi_py_matrix_t *matrix)
{
    PyBuffer_Release(&matrix->view);
}

/* Return the first of `rows` rows that has a negative number; -1: none.  Needs
 * no GIL. */
int64_t vnxi_py_matrix_negative(const uint64_t *data, size_t rows,
                                int columns);

/* -- Tensors -------------------------------------------------------------- */

/* Get the memory of a contiguous tensor; `row` names it in messages. */
bool vnxi_py_tensor_get(vnxi_py_state_t *state, const char *operation,
                        int64_t row, PyObject *tensor, vnx_desc_t *desc_p,
                        vnx_mem_t *mem_p);

#endif
