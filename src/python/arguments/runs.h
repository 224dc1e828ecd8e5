/*
 * Rows at regular strides, kept as runs instead of one by one.  Tables of
 * blocks consist of such rows, and take a hundredth of the memory as runs.
 * Runs are immutable, so they are shared and may be read without the GIL.
 */
#ifndef VNXI_PYTHON_RUNS_H
#define VNXI_PYTHON_RUNS_H

#include "python/arguments/rows.h"

typedef struct vnxi_py_runs {
    size_t refs;  /* changed with the GIL held */
    size_t rows;  /* number of rows when unrolled */
    size_t count; /* of items */
    vnx_strided_desc_t items[];
} vnxi_py_runs_t;

/* Read the rows of an Nx3 array as runs, if these take at most an eighth of
 * the memory.  Returns owned.  NULL without an exception: they take more, or a
 * signed array has a negative number; then use the rows as they are.  May drop
 * the GIL. */
vnxi_py_runs_t *vnxi_py_runs_read(const vnxi_py_matrix_t *matrix);

/* Make runs of strided rows that the library has checked (copied).  Returns
 * owned.  NULL: MemoryError. */
vnxi_py_runs_t *vnxi_py_runs_new(const vnx_strided_desc_t *items,
                                 size_t count);

static inline vnxi_py_runs_t *
vnxi_py_runs_retain(vnxi_py_runs_t *runs)
{
    runs->refs++;
    return runs;
}

/* NULL is allowed. */
void vnxi_py_runs_release(vnxi_py_runs_t *runs);

bool vnxi_py_runs_equal(const vnxi_py_runs_t *a, const vnxi_py_runs_t *b);

/* A position in runs that are being unrolled; all zeros: the first row. */
typedef struct vnxi_py_runs_at {
    size_t run;
    uint64_t piece;
} vnxi_py_runs_at_t;

/* Write the next rows, at most `max`.  Returns their number; 0: the end.
 * Needs no GIL. */
size_t vnxi_py_runs_unroll(const vnxi_py_runs_t *runs, vnxi_py_runs_at_t *at,
                           vnx_desc_t *rows, size_t max);

#endif
