/*
 * Integers from Python objects and from buffers.
 */
#ifndef VNXI_PYTHON_INTEGERS_H
#define VNXI_PYTHON_INTEGERS_H

#include "python/module.h"

/* Why a value cannot be taken as a 64-bit number. */
typedef enum vnxi_py_int_result {
    VNXI_PY_INT_OK = 0,
    VNXI_PY_INT_RANGE,     /* negative, or too large; no exception is set */
    VNXI_PY_INT_TYPE,      /* not an integer; no exception is set */
    VNXI_PY_INT_EXCEPTION, /* its __index__ raised; the exception is set */
} vnxi_py_int_result_t;

/* From an int or what has __index__ (numpy scalars); bool is refused. */
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

/* Raise what another result than OK means: the exception that is set stays,
 * others are nixlInvalidParamError and TypeError, naming row and `what`. */
void vnxi_py_int_raise(vnxi_py_state_t *state, const char *operation,
                       int64_t row, const char *what, PyObject *value,
                       vnxi_py_int_result_t result);

/* An int from `min` to `max`; `what` names it.  false: exception. */
bool vnxi_py_int_between(vnxi_py_state_t *state, const char *operation,
                         const char *what, PyObject *value, uint64_t min,
                         uint64_t max, uint64_t *number_p);

/* Does the buffer hold integers of this machine's byte order?  *is_signed_p
 * says which; their size is view->itemsize. */
bool vnxi_py_buffer_is_integer(const Py_buffer *view, bool *is_signed_p);

#endif
