#include "python/arguments/rows.h"

#include "python/arguments/convert.h"
#include "python/errors.h"

/* -- Messages ------------------------------------------------------------- */

/* Write how the memory of a buffer is described. */
static const char *
memory_text(const Py_buffer *view, const char *fourth,
            char text[VNXI_PY_MEMORY_TEXT])
{
    if (!PyBuffer_IsContiguous(view, 'A')) {
        snprintf(text, VNXI_PY_MEMORY_TEXT,
                 "; its memory is not contiguous, so no row describes it");
    } else if (fourth == NULL) {
        snprintf(text, VNXI_PY_MEMORY_TEXT,
                 "; a list for its memory: [(%#llx, %zd, 0)]",
                 (unsigned long long)(uintptr_t)view->buf, view->len);
    } else {
        snprintf(text, VNXI_PY_MEMORY_TEXT,
                 "; for its memory: register_memory([(%#llx, %zd, 0, \"\")], "
                 "\"DRAM\"), or pass a tensor",
                 (unsigned long long)(uintptr_t)view->buf, view->len);
    }
    return text;
}

const char *
vnxi_py_memory_text(PyObject *object, const char *fourth,
                    char text[VNXI_PY_MEMORY_TEXT])
{
    Py_buffer view;
    text[0] = '\0';
    if (!PyObject_CheckBuffer(object)) {
        return text;
    }
    /* Without PyBUF_FORMAT: numpy has types that have no format. */
    if (PyObject_GetBuffer(object, &view, PyBUF_STRIDES) < 0) {
        PyErr_Clear();
        return text;
    }
    memory_text(&view, fourth, text);
    PyBuffer_Release(&view);
    return text;
}

#define SHAPE_TEXT 64

/* Write a shape as "(16, 4096)". */
static const char *
shape_text(const Py_buffer *view, char text[SHAPE_TEXT])
{
    int used = snprintf(text, SHAPE_TEXT, "(");
    for (int i = 0; i < view->ndim && used < SHAPE_TEXT; i++) {
        used += snprintf(text + used, (size_t)(SHAPE_TEXT - used), "%s%zd",
                         i > 0 ? ", " : "", view->shape[i]);
    }
    if (used < SHAPE_TEXT) {
        snprintf(text + used, (size_t)(SHAPE_TEXT - used), "%s)",
                 view->ndim == 1 ? "," : "");
    }
    return text;
}

#define DESCRIPTORS                                                       \
    "descriptors are an array of 2 dimensions with 3 columns (5 if they " \
    "are strided) of uint64 or int64"

#define REFUSED DESCRIPTORS ", not of shape %s and format '%.16s'%s"

static bool
is_shape(const Py_buffer *view)
{
    return view->ndim == 2 && (view->shape[1] == 3 || view->shape[1] == 5);
}

/* Another shape is a TypeError, as in stock NIXL: clients try the newest shape
 * first, and an older one after a TypeError. */
static bool
matrix_refuse(vnxi_py_state_t *state, const char *operation,
              const Py_buffer *view, const char *fourth)
{
    char shape[SHAPE_TEXT], memory[VNXI_PY_MEMORY_TEXT];
    const char *format = view->format != NULL ? view->format : "B";
    shape_text(view, shape);
    memory_text(view, fourth, memory);
    return is_shape(view) ? vnxi_py_invalid(state, operation, VNXI_PY_NO_ROW,
                                            REFUSED, shape, format, memory)
                          : PyErr_Format(PyExc_TypeError, "%s: " REFUSED,
                                         operation, shape, format, memory);
}

/* The object has refused to export its elements as numbers. */
static bool
no_numbers(vnxi_py_state_t *state, const char *operation, PyObject *source,
           const char *fourth)
{
    char memory[VNXI_PY_MEMORY_TEXT];
    if (!PyErr_ExceptionMatches(PyExc_ValueError) &&
        !PyErr_ExceptionMatches(PyExc_BufferError)) {
        return false;
    }
    PyErr_Clear();
    return vnxi_py_invalid(state, operation, VNXI_PY_NO_ROW,
                           DESCRIPTORS ", not of another type%s",
                           vnxi_py_memory_text(source, fourth, memory));
}

/* -- Getting -------------------------------------------------------------- */

static bool
matrix_check(vnxi_py_state_t *state, const char *operation, const char *fourth,
             vnxi_py_matrix_t *matrix)
{
    const Py_buffer *view = &matrix->view;
    if (!is_shape(view) ||
        !vnxi_py_buffer_is_integer(view, &matrix->is_signed) ||
        view->itemsize != 8) {
        return matrix_refuse(state, operation, view, fourth);
    }
    if (!PyBuffer_IsContiguous(view, 'C') ||
        (uintptr_t)view->buf % sizeof(uint64_t) != 0) {
        return vnxi_py_invalid(state, operation, VNXI_PY_NO_ROW,
                               "an array of descriptors must be C-contiguous "
                               "and aligned: pass a copy of it");
    }
    return true;
}

bool
vnxi_py_matrix_get(vnxi_py_state_t *state, const char *operation,
                   PyObject *source, const char *fourth,
                   vnxi_py_matrix_t *matrix_p)
{
    if (PyObject_GetBuffer(source, &matrix_p->view,
                           PyBUF_FORMAT | PyBUF_STRIDES) < 0) {
        return no_numbers(state, operation, source, fourth);
    }
    if (!matrix_check(state, operation, fourth, matrix_p)) {
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
