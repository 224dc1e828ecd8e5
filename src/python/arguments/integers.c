#include "python/arguments/integers.h"

#include <string.h>

#include "python/errors.h"

vnxi_py_int_result_t
vnxi_py_int_slow(PyObject *value, uint64_t *number_p)
{
    PyErr_Clear(); /* the OverflowError of an int that vnxi_py_int_get() saw */
    if (PyBool_Check(value) || !PyIndex_Check(value)) {
        return VNXI_PY_INT_TYPE;
    }
    PyObject *index = PyNumber_Index(value);
    if (index == NULL) {
        return VNXI_PY_INT_EXCEPTION;
    }
    unsigned long long number = PyLong_AsUnsignedLongLong(index);
    Py_DECREF(index);
    if (number == (unsigned long long)-1 && PyErr_Occurred()) {
        PyErr_Clear(); /* an OverflowError: `index` is an int */
        return VNXI_PY_INT_RANGE;
    }
    *number_p = number;
    return VNXI_PY_INT_OK;
}

void
vnxi_py_int_raise(vnxi_py_state_t *state, const char *operation, int64_t row,
                  const char *what, PyObject *value,
                  vnxi_py_int_result_t result)
{
    if (result == VNXI_PY_INT_RANGE) {
        vnxi_py_invalid(state, operation, row, "%s is negative or too large",
                        what);
    } else if (result == VNXI_PY_INT_TYPE && row < 0) {
        vnxi_py_wrong_type(operation, what, "an int", value);
    } else if (result == VNXI_PY_INT_TYPE) {
        PyErr_Format(PyExc_TypeError,
                     "%s: row %lld: %s must be an int, not %.200s", operation,
                     (long long)row, what, Py_TYPE(value)->tp_name);
    }
}

bool
vnxi_py_int_between(vnxi_py_state_t *state, const char *operation,
                    const char *what, PyObject *value, uint64_t min,
                    uint64_t max, uint64_t *number_p)
{
    uint64_t number = 0;
    vnxi_py_int_result_t result = vnxi_py_int_get(value, &number);
    if (result == VNXI_PY_INT_OK && number >= min && number <= max) {
        *number_p = number;
        return true;
    }
    if (result == VNXI_PY_INT_OK || result == VNXI_PY_INT_RANGE) {
        vnxi_py_invalid(state, operation, VNXI_PY_NO_ROW,
                        "%s is not in %llu to %llu", what,
                        (unsigned long long)min, (unsigned long long)max);
    } else {
        vnxi_py_int_raise(state, operation, VNXI_PY_NO_ROW, what, value,
                          result);
    }
    return false;
}

bool
vnxi_py_buffer_is_integer(const Py_buffer *view, bool *is_signed_p)
{
    const char *format = view->format != NULL ? view->format : "B";
    bool is_swapped = false;
    if (*format == '>' || *format == '!') {
        is_swapped = view->itemsize > 1;
        format++;
    } else if (*format == '@' || *format == '=' || *format == '<') {
        format++;
    }
    if (is_swapped || *format == '\0' || format[1] != '\0' ||
        strchr("bhilqnBHILQN", *format) == NULL) {
        return false;
    }
    *is_signed_p = *format >= 'a';
    return true;
}
