#include "python/descriptors/descs.h"

bool
vnxi_py_descs_take_runs(vnxi_py_descs_t *self, vnxi_py_runs_t *runs)
{
    if (self->count > 0 || self->exports > 0) {
        return false;
    }
    PyMem_RawFree(self->rows);
    self->rows = NULL;
    self->capacity = 0;
    self->runs = runs;
    self->count = runs->rows;
    return true;
}

static vnx_desc_t *
rows_of(const vnxi_py_runs_t *runs)
{
    vnx_desc_t *rows = PyMem_RawMalloc(runs->rows * sizeof *rows);
    if (rows != NULL) {
        vnxi_py_runs_unroll(runs, &(vnxi_py_runs_at_t){0}, rows, runs->rows);
    }
    return rows;
}

/* As above; drops the GIL where it takes long. */
static vnx_desc_t *
rows_of_many(const vnxi_py_runs_t *runs)
{
    vnx_desc_t *rows;
    if (runs->rows < VNXI_PY_ROWS_LARGE) {
        return rows_of(runs);
    }
    Py_BEGIN_ALLOW_THREADS;
    rows = rows_of(runs);
    Py_END_ALLOW_THREADS;
    return rows;
}

bool
vnxi_py_descs_unroll(vnxi_py_descs_t *self)
{
    if (self->runs == NULL) {
        return true;
    }
    /* Another thread may do the same meanwhile, or give the list others, or
     * end an iterator that has the only reference to it. */
    Py_INCREF((PyObject *)self);
    bool good = true;
    while (good && self->runs != NULL) {
        vnxi_py_runs_t *runs = vnxi_py_runs_retain(self->runs);
        vnx_desc_t *rows = rows_of_many(runs);
        if (rows != NULL && self->runs == runs) {
            self->rows = rows;
            self->capacity = runs->rows;
            self->runs = NULL;
            vnxi_py_runs_release(runs);
        } else {
            PyMem_RawFree(rows);
        }
        vnxi_py_runs_release(runs);
        if (rows == NULL) {
            PyErr_NoMemory();
            good = false;
        }
    }
    Py_DECREF((PyObject *)self);
    return good;
}

bool
vnxi_py_descs_pin(vnxi_py_descs_t *self)
{
    if (!vnxi_py_descs_unroll(self)) {
        return false;
    }
    self->exports++;
    return true;
}
