/*
 * Integers from Python objects and from buffers.
 */
#ifndef VNXI_PYTHON_INTEGERS_H
#define VNXI_PYTHON_INTEGERS_H

#include "python/module.h"

/* The result of converting a value to a 64-bit number. */
typedef enum vnxi_py_int_result {
    VNXI_PY_INT_OK = 0,
    VNXI_PY_INT_RANGE,     /* negative, or too large; no exception is set */
    VNXI_PY_INT_TYPE,      /* not an integer; no exception is set */
    VNXI_PY_INT_EXCEPTION, /* its __index__ raised; the exception is set */
} vnxi_py_int_result_t;

/* Convert an int, or an object with __index__ (numpy scalars); bool is
 * refused. */
vnxi_py_int_result_t vnxi_py_int_slow(PyObject *value, uint64_t *number_p);

static inline vnxi_py_int_result_t
vnxi_py_int_get(PyObject *value, uint64_t *number_p)
{
    if (PyLong_CheckExact(value)) {
        unsigned long long number = PyLong_AsUnsignedLongLong(value);
        if (number != (unsigned long long)-1) {
            *number_p = number;
            return VNXI_PY_INT_OK;
        }
    }
    return vnxi_py_int_slow(value, number_p);
}

/* Raise the exception of a result other than OK.  An exception that is set
 * stays; the others are nixlInvalidParamError and TypeError, and name the row
 * and `what`. */
void vnxi_py_int_raise(vnxi_py_state_t *state, const char *operation,
                       int64_t row, const char *what, PyObject *value,
                       vnxi_py_int_result_t result);

/* Get an int from `min` to `max`; `what` names it.  false: exception. */
bool vnxi_py_int_between(vnxi_py_state_t *state, const char *operation,
                         const char *what, PyObject *value, uint64_t min,
                         uint64_t max, uint64_t *number_p);

/* Does the buffer hold integers of this machine's byte order?  *is_signed_p
 * says which; their size is view->itemsize. */
bool vnxi_py_buffer_is_integer(const Py_buffer *view, bool *is_signed_p);

#endif
