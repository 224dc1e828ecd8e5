#include "python/arguments/indices.h"

#include <string.h>

#include "python/arguments/convert.h"
#include "python/errors.h"

/* Get room for `count` elements of `size` bytes. */
static void *
room_take(vnxi_py_state_t *state, size_t count, size_t size,
          vnxi_py_indices_t *indices_p)
{
    if (count * size <= sizeof indices_p->small) {
        return indices_p->small;
    }
    return vnxi_py_scratch_take(state, count * size, &indices_p->scratch)
               ? indices_p->scratch.data
               : NULL;
}

/* Read a negative number, which the library refuses: it knows the length of
 * the list. */
static vnxi_py_int_result_t
negative_read(PyObject *item, uint64_t *number_p)
{
    PyObject *index = PyNumber_Index(item);
    int overflow = 0;
    long long number =
        index != NULL ? PyLong_AsLongLongAndOverflow(index, &overflow) : 0;
    Py_XDECREF(index);
    if (index == NULL) {
        return VNXI_PY_INT_EXCEPTION;
    }
    *number_p = (uint64_t)number;
    return overflow == 0 ? VNXI_PY_INT_OK : VNXI_PY_INT_RANGE;
}

/* Read the numbers of a list.  An __index__ of the caller may change the list,
 * so its size is read again for every element.  An error if it has shrunk. */
static bool
list_read(vnxi_py_state_t *state, const char *operation, const char *what,
          PyObject *list, int64_t *numbers, Py_ssize_t count)
{
    for (Py_ssize_t i = 0; i < count; i++) {
        if (i >= PySequence_Fast_GET_SIZE(list)) {
            return vnxi_py_invalid(state, operation, i, "%s shrank meanwhile",
                                   what);
        }
        PyObject *item = PySequence_Fast_GET_ITEM(list, i);
        uint64_t number = 0;
        Py_INCREF(item);
        vnxi_py_int_result_t result = vnxi_py_int_get(item, &number);
        if (result == VNXI_PY_INT_OK && number > INT64_MAX) {
            result = VNXI_PY_INT_RANGE;
        } else if (result == VNXI_PY_INT_RANGE) {
            result = negative_read(item, &number);
        }
        if (result != VNXI_PY_INT_OK) {
            vnxi_py_int_raise(state, operation, i, what, item, result);
            Py_DECREF(item);
            return false;
        }
        Py_DECREF(item);
        numbers[i] = (int64_t)number;
    }
    return true;
}

static bool
indices_of_list(vnxi_py_state_t *state, const char *operation,
                const char *what, PyObject *value,
                vnxi_py_indices_t *indices_p)
{
    PyObject *list = PySequence_Fast(value, "");
    if (list == NULL) {
        return false;
    }
    Py_ssize_t count = PySequence_Fast_GET_SIZE(list);
    int64_t *numbers =
        room_take(state, (size_t)count, sizeof *numbers, indices_p);
    bool good = numbers != NULL &&
                list_read(state, operation, what, list, numbers, count);
    Py_DECREF(list);
    indices_p->indices = (vnx_indices_t){
        .data = numbers, .count = (size_t)count, .type = VNX_INDEX_I64};
    return good;
}

static bool
index_type(const Py_buffer *view, vnx_index_type_t *type_p)
{
    bool is_signed;
    if (!vnxi_py_buffer_is_integer(view, &is_signed)) {
        return false;
    }
    switch (view->itemsize) {
    case 8:
        *type_p = is_signed ? VNX_INDEX_I64 : VNX_INDEX_U64;
        return true;
    case 4:
        *type_p = is_signed ? VNX_INDEX_I32 : VNX_INDEX_U32;
        return true;
    case 2:
        *type_p = is_signed ? VNX_INDEX_I16 : VNX_INDEX_U16;
        return true;
    case 1:
        *type_p = is_signed ? VNX_INDEX_I8 : VNX_INDEX_U8;
        return true;
    default:
        return false;
    }
}

/* Copy the view's elements to a contiguous array, unless they are contiguous.
 */
static bool
view_copy(vnxi_py_state_t *state, vnxi_py_indices_t *indices_p)
{
    const Py_buffer *view = &indices_p->view;
    size_t size = (size_t)view->itemsize, count = indices_p->indices.count;
    char *to = room_take(state, count, size, indices_p);
    if (to == NULL) {
        return false;
    }
    const char *from = view->buf;
    Py_ssize_t stride =
        view->strides != NULL ? view->strides[0] : view->itemsize;
    for (size_t i = 0; i < count; i++, from += stride) {
        memcpy(to + i * size, from, size);
    }
    indices_p->indices.data = to;
    return true;
}

static bool
view_read(vnxi_py_state_t *state, const char *operation, const char *what,
          vnxi_py_indices_t *indices_p)
{
    const Py_buffer *view = &indices_p->view;
    if (view->ndim != 1) {
        return vnxi_py_invalid(state, operation, VNXI_PY_NO_ROW,
                               "%s must have one dimension, not %d", what,
                               view->ndim);
    }
    if (!index_type(view, &indices_p->indices.type)) {
        return PyErr_Format(
            PyExc_TypeError,
            "%s: %s must be integers in native byte order, not of "
            "format '%s'",
            operation, what, view->format != NULL ? view->format : "B");
    }
    indices_p->indices.count = (size_t)view->shape[0];
    indices_p->indices.data = view->buf;
    bool is_aligned = (uintptr_t)view->buf % (size_t)view->itemsize == 0;
    bool is_plain = view->strides == NULL ||
                    view->strides[0] == view->itemsize || view->shape[0] <= 1;
    if (view->shape[0] == 0) {
        indices_p->indices.data = indices_p->small;
    } else if (!is_aligned || !is_plain) {
        return view_copy(state, indices_p);
    }
    return true;
}

bool
vnxi_py_indices_get(vnxi_py_state_t *state, const char *operation,
                    const char *what, PyObject *value,
                    vnxi_py_indices_t *indices_p)
{
    indices_p->has_view = false;
    indices_p->scratch = (vnxi_py_scratch_t){0};
    bool good;
    if (PyList_Check(value) || PyTuple_Check(value) || PyRange_Check(value)) {
        good = indices_of_list(state, operation, what, value, indices_p);
    } else if (PyBytes_Check(value) || !PyObject_CheckBuffer(value)) {
        return vnxi_py_wrong_type(operation, what,
                                  "a list or an array of integers", value);
    } else if (PyObject_GetBuffer(value, &indices_p->view,
                                  PyBUF_FORMAT | PyBUF_STRIDES) < 0) {
        return false;
    } else {
        indices_p->has_view = true;
        good = view_read(state, operation, what, indices_p);
    }
    if (!good) {
        vnxi_py_indices_put(state, indices_p);
    }
    return good;
}
