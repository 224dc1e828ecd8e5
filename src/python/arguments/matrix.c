#include "python/arguments/rows.h"

#include "python/arguments/convert.h"
#include "python/errors.h"

static bool
matrix_check(vnxi_py_state_t *state, const char *operation,
             vnxi_py_matrix_t *matrix)
{
    const Py_buffer *view = &matrix->view;
    if (view->ndim != 2) {
        return vnxi_py_invalid(
            state, operation, VNXI_PY_NO_ROW,
            "an array of descriptors has 2 dimensions, not %d", view->ndim);
    }
    if (view->shape[1] != 3 && view->shape[1] != 5) {
        return vnxi_py_invalid(
            state, operation, VNXI_PY_NO_ROW,
            "an array of descriptors has 3 columns, or 5 with "
            "strides, not %zd",
            view->shape[1]);
    }
    if (!vnxi_py_buffer_is_integer(view, &matrix->is_signed) ||
        view->itemsize != 8) {
        return vnxi_py_invalid(
            state, operation, VNXI_PY_NO_ROW,
            "an array of descriptors is of uint64 or int64, not "
            "of format '%s'",
            view->format != NULL ? view->format : "B");
    }
    if (!PyBuffer_IsContiguous(view, 'C') ||
        (uintptr_t)view->buf % sizeof(uint64_t) != 0) {
        return vnxi_py_invalid(state, operation, VNXI_PY_NO_ROW,
                               "an array of descriptors must be C-contiguous");
    }
    return true;
}

bool
vnxi_py_matrix_get(vnxi_py_state_t *state, const char *operation,
                   PyObject *source, vnxi_py_matrix_t *matrix_p)
{
    if (PyObject_GetBuffer(source, &matrix_p->view,
                           PyBUF_FORMAT | PyBUF_STRIDES) < 0) {
        return false;
    }
    if (!matrix_check(state, operation, matrix_p)) {
        PyBuffer_Release(&matrix_p->view);
        return false;
    }
    matrix_p->data = matrix_p->view.buf;
    matrix_p->rows = (size_t)matrix_p->view.shape[0];
    matrix_p->columns = (int)matrix_p->view.shape[1];
    return true;
}

/* Is any of the numbers negative?  Tests four at a time, so that the processor
 * can work on them in parallel. */
static bool
any_negative(const uint64_t *data, size_t count)
{
    uint64_t any[4] = {0, 0, 0, 0};
    size_t i = 0;
    for (; i + 4 <= count; i += 4) {
        any[0] |= data[i];
        any[1] |= data[i + 1];
        any[2] |= data[i + 2];
        any[3] |= data[i + 3];
    }
    for (; i < count; i++) {
        any[0] |= data[i];
    }
    return (any[0] | any[1] | any[2] | any[3]) > INT64_MAX;
}

int64_t
vnxi_py_matrix_negative(const uint64_t *data, size_t rows, int columns)
{
    size_t count = rows * (size_t)columns;
    if (!any_negative(data, count)) {
        return -1;
    }
    /* Another thread may have written to the array meanwhile, so the loop is
     * bounded. */
    for (size_t i = 0; i < count; i++) {
        if (data[i] > INT64_MAX) {
            return (int64_t)(i / (size_t)columns);
        }
    }
    return -1;
}
