/*
 * Arguments of METH_FASTCALL | METH_KEYWORDS methods.  A signature lists the
 * interned names of the parameters; keywords are compared by pointer first,
 * since the compiler interned those of the caller too.
 */
#ifndef VNXI_PYTHON_ARGS_H
#define VNXI_PYTHON_ARGS_H

#include "python/module.h"

#define VNXI_PY_ARGS_MAX 8

typedef struct vnxi_py_signature {
    const char *name; /* of the method; also the operation in messages */
    uint8_t count;    /* parameters, positional or by keyword */
    uint8_t required; /* the first so many have no default */
    uint8_t keyword;  /* the last so many are given by keyword alone */
    uint8_t params[VNXI_PY_ARGS_MAX]; /* vnxi_py_name_t */
} vnxi_py_signature_t;

bool vnxi_py_args_parse_slow(const vnxi_py_state_t *state,
                             const vnxi_py_signature_t *signature,
                             PyObject *const *args, Py_ssize_t nargs,
                             PyObject *kwnames, PyObject **values);

/* Sort the arguments into `values` (signature->count of them, borrowed; NULL
 * where left out).  false and TypeError, in Python's own words. */
static inline bool
vnxi_py_args_parse(const vnxi_py_state_t *state,
                   const vnxi_py_signature_t *signature, PyObject *const *args,
                   Py_ssize_t nargs, PyObject *kwnames, PyObject **values)
{
    if (kwnames != NULL || nargs < signature->required ||
        nargs > signature->count - signature->keyword) {
        return vnxi_py_args_parse_slow(state, signature, args, nargs, kwnames,
                                       values);
    }
    Py_ssize_t i = 0;
    for (; i < nargs; i++) {
        values[i] = args[i];
    }
    for (; i < signature->count; i++) {
        values[i] = NULL;
    }
    return true;
}

/* What a left-out or None argument and False have in common; -1: exception. */
static inline int
vnxi_py_args_bool(PyObject *value, bool fallback)
{
    if (value == NULL) {
        return fallback;
    }
    return value == Py_True    ? 1
           : value == Py_False ? 0
                               : PyObject_IsTrue(value);
}

#endif
