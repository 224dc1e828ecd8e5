#include "python/agent.h"
#include "python/convert.h"

PyObject *
vnxi_py_agent_plugins(vnxi_py_agent_t *self)
{
    PyObject *list = PyList_New(0);
    const char *name;
    for (size_t i = 0;
         list != NULL && (name = vnx_agent_plugin(self->agent, i)) != NULL;
         i++) {
        PyObject *item = PyUnicode_FromString(name);
        if (item == NULL || PyList_Append(list, item) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(item);
    }
    return list;
}

/* -- Parameters ----------------------------------------------------------- */

typedef struct param_list {
    PyObject *keep; /* list of str that own the texts */
    vnx_param_t *params;
    size_t count;
} param_list_t; /* all zeros: empty */

static void
params_fini(param_list_t *list)
{
    Py_CLEAR(list->keep);
    PyMem_Free(list->params);
}

/* Text of a key or a value; numbers are taken too. */
static const char *
param_text(param_list_t *list, PyObject *value)
{
    PyObject *text = PyObject_Str(value);
    const char *utf8 = NULL;
    if (text != NULL && PyList_Append(list->keep, text) == 0) {
        utf8 = PyUnicode_AsUTF8(text);
    }
    Py_XDECREF(text);
    return utf8;
}

static bool
params_get(const char *operation, PyObject *value, param_list_t *list)
{
    PyObject *key, *item;
    Py_ssize_t at = 0;

    *list = (param_list_t){0};
    if (value == NULL || value == Py_None) {
        return true;
    }
    if (!PyDict_Check(value)) {
        vnxi_py_wrong_type(operation, "initParams", "a dict", value);
        return false;
    }
    list->keep = PyList_New(0);
    list->params =
        PyMem_Calloc((size_t)PyDict_Size(value) + 1, sizeof *list->params);
    if (list->params == NULL) {
        PyErr_NoMemory();
    }
    PyObject *dict = PyDict_Copy(value);
    bool good = list->keep != NULL && list->params != NULL && dict != NULL;
    while (good && PyDict_Next(dict, &at, &key, &item)) {
        vnx_param_t *param = &list->params[list->count++];
        param->key = param_text(list, key);
        param->value = param_text(list, item);
        good = param->key != NULL && param->value != NULL;
    }
    Py_XDECREF(dict);
    if (!good) {
        params_fini(list);
    }
    return good;
}

/* -- Creating ------------------------------------------------------------- */

static bool
backend_create(vnxi_py_agent_t *self, const char *operation, const char *name,
               PyObject *params_arg)
{
    param_list_t params;
    vnx_error_t error;
    vnx_status_t status;
    if (!params_get(operation, params_arg, &params)) {
        return false;
    }
    Py_BEGIN_ALLOW_THREADS;
    status = vnx_agent_create_backend(self->agent, name, params.params,
                                      params.count, &error);
    Py_END_ALLOW_THREADS;
    params_fini(&params);
    if (status < 0) {
        vnxi_py_raise(self->state, &error);
    }
    return status >= 0;
}

static const char *
backend_text(const char *operation, PyObject *name)
{
    if (!PyUnicode_Check(name)) {
        vnxi_py_wrong_type(operation, "backend", "str", name);
        return NULL;
    }
    return PyUnicode_AsUTF8(name);
}

static const vnxi_py_signature_t create_signature = {
    .name = "create_backend",
    .count = 2,
    .required = 1,
    .params = {VNXI_PY_NAME_backend, VNXI_PY_NAME_initParams},
};

VNXI_PY_METHOD(create_backend)
{
    vnxi_py_agent_t *self = (vnxi_py_agent_t *)op;
    PyObject *values[2];
    if (!vnxi_py_agent_begin(op, &create_signature, args, nargs, kwnames,
                             values)) {
        return NULL;
    }
    const char *name = backend_text(create_signature.name, values[0]);
    if (name == NULL ||
        !backend_create(self, create_signature.name, name, values[1])) {
        return NULL;
    }
    PyObject *number = PyLong_FromSsize_t(PyDict_Size(self->backends) + 1);
    int ret = number != NULL
                  ? PyDict_SetItem(self->backends, values[0], number)
                  : -1;
    Py_XDECREF(number);
    if (ret < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

/* -- Asking --------------------------------------------------------------- */

static const vnxi_py_signature_t plugin_list_signature = {
    .name = "get_plugin_list",
};

VNXI_PY_METHOD(get_plugin_list)
{
    if (!vnxi_py_agent_begin(op, &plugin_list_signature, args, nargs, kwnames,
                             NULL)) {
        return NULL;
    }
    return vnxi_py_agent_plugins((vnxi_py_agent_t *)op);
}

/* One argument, `backend`; with `created`, it must have been created. */
static const char *
backend_arg(PyObject *op, const vnxi_py_signature_t *signature,
            PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames,
            bool created)
{
    vnxi_py_agent_t *self = (vnxi_py_agent_t *)op;
    PyObject *value;
    if (!vnxi_py_agent_begin(op, signature, args, nargs, kwnames, &value)) {
        return NULL;
    }
    const char *name = backend_text(signature->name, value);
    if (name == NULL || !created) {
        return name;
    }
    int known = PyDict_Contains(self->backends, value);
    if (known == 0) {
        vnx_error_t error;
        vnxi_error_set(&error, VNX_ERR_NOT_FOUND, signature->name,
                       "the agent has no backend '%.64s'", name);
        vnxi_py_raise(self->state, &error);
    }
    return known > 0 ? name : NULL;
}

static PyObject *
mem_types(vnxi_py_agent_t *self, const char *backend)
{
    uint32_t mems;
    vnx_error_t error;
    if (vnx_agent_plugin_mems(self->agent, backend, &mems, &error) < 0) {
        return vnxi_py_raise(self->state, &error);
    }
    PyObject *list = PyList_New(0);
    for (int i = 0; list != NULL && i < VNX_MEM_COUNT; i++) {
        if ((mems & (1u << i)) == 0) {
            continue;
        }
        PyObject *name = PyUnicode_FromFormat("%s_SEG", vnx_mem_name(i));
        if (name == NULL || PyList_Append(list, name) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(name);
    }
    return list;
}

typedef vnx_status_t (*param_fn)(vnx_agent_t *, const char *, size_t,
                                 vnx_param_t *, vnx_error_t *);

static PyObject *
params_dict(vnxi_py_agent_t *self, const char *backend, param_fn param_of)
{
    vnx_param_t param;
    vnx_error_t error;
    PyObject *dict = PyDict_New();
    for (size_t i = 0; dict != NULL; i++) {
        if (param_of(self->agent, backend, i, &param, &error) < 0) {
            Py_DECREF(dict);
            return vnxi_py_raise(self->state, &error);
        }
        if (param.key == NULL) {
            break;
        }
        PyObject *value = PyUnicode_FromString(param.value);
        if (value == NULL ||
            PyDict_SetItemString(dict, param.key, value) < 0) {
            Py_CLEAR(dict);
        }
        Py_XDECREF(value);
    }
    return dict;
}

#define BACKEND_SIGNATURE(method)                           \
    static const vnxi_py_signature_t method##_signature = { \
        .name = #method,                                    \
        .count = 1,                                         \
        .required = 1,                                      \
        .params = {VNXI_PY_NAME_backend},                   \
    }

BACKEND_SIGNATURE(get_plugin_mem_types);
BACKEND_SIGNATURE(get_plugin_params);
BACKEND_SIGNATURE(get_backend_mem_types);
BACKEND_SIGNATURE(get_backend_params);

VNXI_PY_METHOD(get_plugin_mem_types)
{
    const char *backend = backend_arg(op, &get_plugin_mem_types_signature,
                                      args, nargs, kwnames, false);
    return backend != NULL ? mem_types((vnxi_py_agent_t *)op, backend) : NULL;
}

VNXI_PY_METHOD(get_plugin_params)
{
    const char *backend = backend_arg(op, &get_plugin_params_signature, args,
                                      nargs, kwnames, false);
    return backend != NULL ? params_dict((vnxi_py_agent_t *)op, backend,
                                         vnx_agent_plugin_param)
                           : NULL;
}

VNXI_PY_METHOD(get_backend_mem_types)
{
    const char *backend = backend_arg(op, &get_backend_mem_types_signature,
                                      args, nargs, kwnames, true);
    return backend != NULL ? mem_types((vnxi_py_agent_t *)op, backend) : NULL;
}

VNXI_PY_METHOD(get_backend_params)
{
    const char *backend = backend_arg(op, &get_backend_params_signature, args,
                                      nargs, kwnames, true);
    return backend != NULL ? params_dict((vnxi_py_agent_t *)op, backend,
                                         vnx_agent_backend_param)
                           : NULL;
}
