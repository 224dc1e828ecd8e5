#include "python/arguments/args.h"

static int
param_of_keyword(const vnxi_py_state_t *state,
                 const vnxi_py_signature_t *signature, PyObject *keyword)
{
    for (int i = 0; i < signature->count; i++) {
        if (state->names[signature->params[i]] == keyword) {
            return i;
        }
    }
    for (int i = 0; i < signature->count; i++) {
        if (PyUnicode_Compare(state->names[signature->params[i]], keyword) ==
            0) {
            return i;
        }
    }
    return -1;
}

static bool
keywords_parse(const vnxi_py_state_t *state,
               const vnxi_py_signature_t *signature, PyObject *const *args,
               PyObject *kwnames, PyObject **values)
{
    Py_ssize_t count = PyTuple_GET_SIZE(kwnames);
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *keyword = PyTuple_GET_ITEM(kwnames, i);
        int param = param_of_keyword(state, signature, keyword);
        if (param < 0) {
            return PyErr_Format(PyExc_TypeError,
                                "%s() got an unexpected keyword argument '%U'",
                                signature->name, keyword);
        }
        if (values[param] != NULL) {
            return PyErr_Format(PyExc_TypeError,
                                "%s() got multiple values for argument '%U'",
                                signature->name, keyword);
        }
        values[param] = args[i];
    }
    return true;
}

bool
vnxi_py_args_parse_slow(const vnxi_py_state_t *state,
                        const vnxi_py_signature_t *signature,
                        PyObject *const *args, Py_ssize_t nargs,
                        PyObject *kwnames, PyObject **values)
{
    int positional = signature->count - signature->keyword;
    if (nargs > positional) {
        return PyErr_Format(
            PyExc_TypeError, "%s() takes at most %d %sarguments (%zd given)",
            signature->name, positional,
            signature->keyword > 0 ? "positional " : "", nargs);
    }
    for (int i = 0; i < signature->count; i++) {
        values[i] = i < nargs ? args[i] : NULL;
    }
    if (kwnames != NULL &&
        !keywords_parse(state, signature, args + nargs, kwnames, values)) {
        return false;
    }
    for (int i = 0; i < signature->required; i++) {
        if (values[i] == NULL) {
            return PyErr_Format(
                PyExc_TypeError, "%s() missing required argument: '%U'",
                signature->name, state->names[signature->params[i]]);
        }
    }
    return true;
}
