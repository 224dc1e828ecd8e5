#include "python/errors.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/operations.h"

typedef struct error_row {
    int status;
    const char *text, *pyclass;
} error_row_t;

static const error_row_t rows[VNXI_PY_STATUS_COUNT] = {
#define ERROR_ROW(sym, num, name, text, pyclass) {num, text, pyclass},
    VNX_STATUS_TABLE(ERROR_ROW)
#undef ERROR_ROW
};

/* The record names a C function or, if the extension wrote it, a method. */
static const char *
method_name(const vnx_error_t *error)
{
    static const char *const names[][2] = {
#define OPERATION_ROW(function, method) {function, method},
        VNXI_OPERATION_TABLE(OPERATION_ROW)
#undef OPERATION_ROW
    };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (strcmp(names[i][0], error->operation) == 0) {
            return names[i][1];
        }
    }
    return error->operation;
}

static PyObject *
error_class(const vnxi_py_state_t *state, vnx_status_t status)
{
    for (int i = 0; i < VNXI_PY_STATUS_COUNT; i++) {
        if (rows[i].status == (int)status && state->errors[i] != NULL) {
            return state->errors[i];
        }
    }
    return state->errors[VNXI_PY_STATUS_VNX_ERR_UNKNOWN];
}

/* Takes the reference to `value`, which may be NULL with an exception set. */
static int
attribute_set(PyObject *object, PyObject *name, PyObject *value)
{
    if (value == NULL) {
        return -1;
    }
    int ret = PyObject_SetAttr(object, name, value);
    Py_DECREF(value);
    return ret;
}

static int
attributes_set(vnxi_py_state_t *state, PyObject *exception,
               const vnx_error_t *error)
{
    PyObject *peer = error->peer[0] != '\0' ? PyUnicode_FromString(error->peer)
                                            : Py_NewRef(Py_None);
    PyObject *index =
        error->row >= 0 ? PyLong_FromLongLong(error->row) : Py_NewRef(Py_None);
    int ret = attribute_set(exception, VNXI_PY_NAME(state, peer), peer);
    ret |= attribute_set(exception, VNXI_PY_NAME(state, index), index);
    ret |= attribute_set(exception, VNXI_PY_NAME(state, status),
                         PyLong_FromLong(error->status));
    ret |= attribute_set(exception, VNXI_PY_NAME(state, operation),
                         PyUnicode_FromString(method_name(error)));
    return ret;
}

PyObject *
vnxi_py_error_text(const vnx_error_t *error)
{
    char text[1024];
    vnx_error_t named = *error;
    named.operation = method_name(error);
    vnx_error_format(&named, text, sizeof text);
    return PyUnicode_DecodeUTF8(text, (Py_ssize_t)strlen(text), "replace");
}

PyObject *
vnxi_py_error_new(vnxi_py_state_t *state, const vnx_error_t *error)
{
    PyObject *message = vnxi_py_error_text(error);
    if (message == NULL) {
        return NULL;
    }
    PyObject *exception =
        PyObject_CallOneArg(error_class(state, error->status), message);
    Py_DECREF(message);
    if (exception != NULL && attributes_set(state, exception, error) < 0) {
        Py_CLEAR(exception);
    }
    return exception;
}

PyObject *
vnxi_py_raise(vnxi_py_state_t *state, const vnx_error_t *error)
{
    PyObject *exception = vnxi_py_error_new(state, error);
    if (exception != NULL) {
        PyErr_SetObject((PyObject *)Py_TYPE(exception), exception);
        Py_DECREF(exception);
    }
    return NULL;
}

PyObject *
vnxi_py_none(vnxi_py_state_t *state, vnx_status_t status,
             const vnx_error_t *error)
{
    return status < 0 ? vnxi_py_raise(state, error) : Py_NewRef(Py_None);
}

PyObject *
vnxi_py_invalid(vnxi_py_state_t *state, const char *operation, int64_t row,
                const char *cause, ...)
{
    char text[VNX_ERROR_CAUSE_MAX];
    va_list args;
    va_start(args, cause);
    vsnprintf(text, sizeof text, cause, args);
    va_end(args);
    vnx_error_t error;
    vnxi_error_set(&error, VNX_ERR_INVALID_PARAM, operation, "%s", text);
    error.row = row;
    return vnxi_py_raise(state, &error);
}

PyObject *
vnxi_py_wrong_type(const char *operation, const char *what,
                   const char *expected, PyObject *value)
{
    return PyErr_Format(PyExc_TypeError, "%s: %s must be %s, not %.200s",
                        operation, what, expected, Py_TYPE(value)->tp_name);
}

/* Return the second base, borrowed; NULL for most classes. */
static PyObject *
builtin_base(int status)
{
    return status == VNX_ERR_INVALID_PARAM ? PyExc_ValueError
           : status == VNX_ERR_TIMEOUT     ? PyExc_TimeoutError
                                           : NULL;
}

static int
error_class_add(PyObject *module, const error_row_t *row, PyObject **class_p)
{
    vnxi_py_state_t *state = vnxi_py_state(module);
    PyObject *builtin = builtin_base(row->status);
    PyObject *bases = builtin != NULL
                          ? PyTuple_Pack(2, state->error_base, builtin)
                          : PyTuple_Pack(1, state->error_base);
    char name[96];
    snprintf(name, sizeof name, "vllm_nixl._core.%s", row->pyclass);
    PyObject *dict = Py_BuildValue("{s:i}", "status", row->status);
    if (bases != NULL && dict != NULL) {
        *class_p = PyErr_NewExceptionWithDoc(name, row->text, bases, dict);
    }
    Py_XDECREF(dict);
    Py_XDECREF(bases);
    return *class_p == NULL
               ? -1
               : PyModule_AddObjectRef(module, row->pyclass, *class_p);
}

/* Remove the attributes that hold transfers, which exist only in their
 * process. */
static int
transfers_remove(PyObject *attributes)
{
    static const char *const names[] = {"handles", "pending"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (PyDict_GetItemString(attributes, names[i]) != NULL &&
            PyDict_DelItemString(attributes, names[i]) < 0) {
            return -1;
        }
    }
    return 0;
}

PyDoc_STRVAR(reduce_doc,
             "__reduce__($self)\n--\n\n"
             "For pickle and copy: without .handles and .pending.");

static PyObject *
error_reduce(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    PyObject *result = NULL;
    PyObject *args = PyObject_GetAttrString(op, "args");
    PyObject *own = PyObject_GenericGetDict(op, NULL);
    PyObject *attributes = own != NULL ? PyDict_Copy(own) : NULL;
    if (args != NULL && attributes != NULL &&
        transfers_remove(attributes) == 0) {
        result = PyTuple_Pack(3, (PyObject *)Py_TYPE(op), args, attributes);
    }
    Py_XDECREF(attributes);
    Py_XDECREF(own);
    Py_XDECREF(args);
    return result;
}

/* Add the method to NixlError. */
static int
reduce_add(PyObject *class)
{
    static PyMethodDef method = {"__reduce__", error_reduce, METH_NOARGS,
                                 reduce_doc};
    PyObject *descriptor = PyDescr_NewMethod((PyTypeObject *)class, &method);
    int ret = descriptor != NULL
                  ? PyObject_SetAttrString(class, method.ml_name, descriptor)
                  : -1;
    Py_XDECREF(descriptor);
    return ret;
}

static int
error_base_add(PyObject *module)
{
    vnxi_py_state_t *state = vnxi_py_state(module);
    PyObject *dict = Py_BuildValue(
        "{s:i,s:O,s:O,s:O,s:O}", "status", VNX_ERR_UNKNOWN, "peer", Py_None,
        "index", Py_None, "operation", Py_None, "handles", Py_None);
    if (dict == NULL) {
        return -1;
    }
    state->error_base = PyErr_NewExceptionWithDoc(
        "vllm_nixl._core.NixlError",
        "The base class of the errors of agents and side channels.\n\n"
        "status: number of the status, as in NIXL (int)\n"
        "peer: name of the peer concerned (str), or None\n"
        "index: the offending row, from 0 (int), or None\n"
        "operation: the call that failed (str), or None\n"
        "handles: if a wait raised it, the transfers as lists: 'ended'\n"
        "    (without error), 'failed' (or cancelled) and 'pending';\n"
        "    otherwise None. A copy of the error, such as a process pool\n"
        "    passes on, has None",
        PyExc_Exception, dict);
    Py_DECREF(dict);
    return state->error_base == NULL || reduce_add(state->error_base) < 0
               ? -1
               : PyModule_AddObjectRef(module, "NixlError", state->error_base);
}

int
vnxi_py_errors_add(PyObject *module)
{
    vnxi_py_state_t *state = vnxi_py_state(module);
    if (error_base_add(module) < 0) {
        return -1;
    }
    for (int i = 0; i < VNXI_PY_STATUS_COUNT; i++) {
        if (rows[i].pyclass != NULL &&
            error_class_add(module, &rows[i], &state->errors[i]) < 0) {
            return -1;
        }
    }
    return 0;
}
