#include "python/arguments/convert.h"
#include "python/arguments/rows.h"
#include "python/descriptors/descs.h"
#include "python/errors.h"

static bool
rows_take(void *context, const vnx_desc_t *rows, size_t count)
{
    return vnxi_py_descs_extend(context, rows, count);
}

static bool
rows_read(vnxi_py_descs_t *self, const char *operation, PyObject *list)
{
    if (self->kind == VNXI_PY_DESCS_XFER) {
        return vnxi_py_rows_read(self->state, operation, list, rows_take,
                                 self);
    }
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(list); i++) {
        PyObject *item = Py_NewRef(PySequence_Fast_GET_ITEM(list, i));
        bool good = vnxi_py_descs_append(self, operation, i, item);
        Py_DECREF(item);
        if (!good) {
            return false;
        }
        if (i % VNXI_PY_ROWS_CHUNK == VNXI_PY_ROWS_CHUNK - 1) {
            vnxi_py_turn_give();
        }
    }
    return true;
}

/* Return the first row from `first` on that has a negative number; -1: none.
 */
static int64_t
rows_negative(vnxi_py_descs_t *self, size_t first)
{
    const uint64_t *numbers = &self->rows[first].addr;
    size_t count = self->count - first;
    self->exports++;
    int64_t row =
        VNXI_PY_WITHOUT_GIL(vnxi_py_matrix_negative(numbers, count, 3));
    self->exports--;
    return row;
}

static bool
matrix_rows(vnxi_py_descs_t *self, const char *operation,
            const vnxi_py_matrix_t *matrix)
{
    if (!vnxi_py_descs_extend(self, (const vnx_desc_t *)matrix->data,
                              matrix->rows)) {
        return false;
    }
    int64_t row = -1;
    if (matrix->is_signed) {
        row = rows_negative(self, self->count - matrix->rows);
    }
    if (row >= 0) {
        vnxi_py_invalid(self->state, operation, row, "a number is negative");
    }
    return row < 0;
}

/* Take the array as runs.  false without an exception: the rows must be
 * copied. */
static bool
matrix_runs(vnxi_py_descs_t *self, const vnxi_py_matrix_t *matrix)
{
    vnxi_py_runs_t *runs = self->kind == VNXI_PY_DESCS_XFER && self->count == 0
                               ? vnxi_py_runs_read(matrix)
                               : NULL;
    if (runs == NULL) {
        return false;
    }
    bool taken = vnxi_py_descs_take_runs(self, runs);
    if (!taken) {
        vnxi_py_runs_release(runs);
    }
    return taken;
}

static bool
matrix_append(vnxi_py_descs_t *self, const char *operation,
              const vnxi_py_matrix_t *matrix)
{
    if (matrix->columns != 3) {
        return PyErr_Format(PyExc_TypeError,
                            "%s: an Nx3 array is needed; prep_xfer_dlist() "
                            "takes Nx5 ones",
                            operation);
    }
    return matrix_runs(self, matrix) || matrix_rows(self, operation, matrix);
}

static bool
matrix_read(vnxi_py_descs_t *self, const char *operation, PyObject *source)
{
    vnxi_py_matrix_t matrix;
    const char *fourth = self->kind == VNXI_PY_DESCS_REG ? VNXI_PY_META : NULL;
    if (self->kind == VNXI_PY_DESCS_REMOTE) {
        return PyErr_Format(PyExc_TypeError,
                            "%s: a list of tuples is needed: (address, "
                            "length, device id, " VNXI_PY_AGENT_NAME ")",
                            operation);
    }
    if (!vnxi_py_matrix_get(self->state, operation, source, fourth, &matrix)) {
        return false;
    }
    bool good = matrix_append(self, operation, &matrix);
    vnxi_py_matrix_put(&matrix);
    return good;
}

static bool
tensor_read(vnxi_py_descs_t *self, const char *operation, int64_t row,
            PyObject *tensor)
{
    vnx_desc_t desc;
    vnx_mem_t mem;
    if (!vnxi_py_tensor_get(self->state, operation, row, tensor, &desc,
                            &mem) ||
        !vnxi_py_descs_unroll(self)) {
        return false;
    }
    if (self->count > 0 &&
        (mem != self->mem || desc.dev != self->rows[0].dev)) {
        return vnxi_py_invalid(self->state, operation, row,
                               "the tensors are not all of one device");
    }
    self->mem = mem;
    return vnxi_py_descs_extend(self, &desc, 1);
}

static bool
tensors_read(vnxi_py_descs_t *self, const char *operation, PyObject *list)
{
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(list); i++) {
        PyObject *tensor = Py_NewRef(PySequence_Fast_GET_ITEM(list, i));
        bool good = tensor_read(self, operation, i, tensor);
        Py_DECREF(tensor);
        if (!good) {
            return false;
        }
    }
    return true;
}

bool
vnxi_py_descs_read(vnxi_py_descs_t *self, const char *operation,
                   PyObject *source)
{
    switch (vnxi_py_source_of(self->state, source)) {
    case VNXI_PY_SOURCE_ROWS:
        return rows_read(self, operation, source);
    case VNXI_PY_SOURCE_MATRIX:
        return matrix_read(self, operation, source);
    case VNXI_PY_SOURCE_TENSOR:
        return tensor_read(self, operation, VNXI_PY_NO_ROW, source);
    case VNXI_PY_SOURCE_TENSORS:
        return tensors_read(self, operation, source);
    case VNXI_PY_SOURCE_EXCEPTION:
        return false;
    case VNXI_PY_SOURCE_OTHER:
        break;
    }
    return vnxi_py_wrong_type(
        operation, "descriptors",
        "a descriptor list, tuples, an Nx3 array or tensors", source);
}

/* Refuse a list of another kind, as stock NIXL does. */
static bool
kind_check(vnxi_py_state_t *state, const char *operation,
           vnxi_py_descs_kind_t kind, PyObject *source)
{
    if (vnxi_py_descs_is_any(state, source)) {
        return vnxi_py_wrong_type(operation, "descriptors",
                                  vnxi_py_descs_type(state, kind)->tp_name,
                                  source);
    }
    return true;
}

static bool
mem_get(vnxi_py_state_t *state, const char *operation, PyObject *source,
        PyObject *mem_type, vnx_mem_t *mem_p)
{
    vnxi_py_source_t kind = vnxi_py_source_of(state, source);
    if (kind == VNXI_PY_SOURCE_ROWS || kind == VNXI_PY_SOURCE_MATRIX) {
        return vnxi_py_mem_needed(operation, mem_type, mem_p);
    }
    *mem_p = VNX_MEM_DRAM; /* a tensor changes it */
    return kind != VNXI_PY_SOURCE_EXCEPTION;
}

vnxi_py_descs_t *
vnxi_py_descs_from(vnxi_py_state_t *state, const char *operation,
                   vnxi_py_descs_kind_t kind, PyObject *source,
                   PyObject *mem_type)
{
    vnx_mem_t mem;
    if (vnxi_py_descs_is(state, kind, source)) {
        return (vnxi_py_descs_t *)Py_NewRef(source);
    }
    if (!kind_check(state, operation, kind, source) ||
        !mem_get(state, operation, source, mem_type, &mem)) {
        return NULL;
    }
    vnxi_py_descs_t *self = vnxi_py_descs_new(state, kind, mem);
    if (self != NULL && !vnxi_py_descs_read(self, operation, source)) {
        Py_CLEAR(self);
    }
    return self;
}
