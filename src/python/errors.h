/*
 * Exceptions: the classes of VNX_STATUS_TABLE and how they are raised.
 *
 * All derive from NixlError(Exception); nixlInvalidParamError is a ValueError
 * too, nixlTimeoutError a TimeoutError.  Each has .status (int), .peer (str or
 * None), .index (the offending row, int or None) and .operation (str).
 *
 * A function that raises returns NULL, so that its caller can return the call:
 * NULL as a PyObject *, false as a bool.
 */
#ifndef VNXI_PYTHON_ERRORS_H
#define VNXI_PYTHON_ERRORS_H

#include "python/module.h"

#define VNXI_PY_NO_ROW (-1)

/* Raise the error that a failed call recorded.  Returns NULL. */
PyObject *vnxi_py_raise(vnxi_py_state_t *state, const vnx_error_t *error);

/* Return the result of a call that returns None: None, or NULL and the
 * exception. */
PyObject *vnxi_py_none(vnxi_py_state_t *state, vnx_status_t status,
                       const vnx_error_t *error);

/* Format the record as text (str), with the name of the Python method instead
 * of the C function's.  NULL: exception. */
PyObject *vnxi_py_error_text(const vnx_error_t *error);

/* Create the exception without raising it; NULL and another exception on
 * failure. */
PyObject *vnxi_py_error_new(vnxi_py_state_t *state, const vnx_error_t *error);

/* Raise nixlInvalidParamError, for arguments that the extension refuses; `row`
 * is VNXI_PY_NO_ROW or the offending row.  Returns NULL. */
PyObject *vnxi_py_invalid(vnxi_py_state_t *state, const char *operation,
                          int64_t row, const char *cause, ...)
    __attribute__((format(printf, 4, 5)));

/* TypeError "operation: what must be expected, not <type of value>". */
PyObject *vnxi_py_wrong_type(const char *operation, const char *what,
                             const char *expected, PyObject *value);

#endif
