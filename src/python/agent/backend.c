#include "python/agent/agent.h"
#include "python/arguments/convert.h"

/* Here and below, asking an engine may load its library, so the GIL is
 * dropped. */
PyObject *
vnxi_py_agent_plugins(vnxi_py_agent_t *self)
{
    PyObject *list = PyList_New(0);
    const char *name;
    for (size_t i = 0;
         list != NULL &&
         (name = VNXI_PY_WITHOUT_GIL(vnx_agent_plugin(self->agent, i)));
         i++) {
        PyObject *item = PyUnicode_FromString(name);
        if (item == NULL || PyList_Append(list, item) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(item);
    }
    return list;
}

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

/* Get the text of a key or a value; numbers are accepted too. */
static const char *
param_text(vnxi_py_state_t *state, const char *operation, const char *what,
           param_list_t *list, PyObject *value)
{
    PyObject *text = PyObject_Str(value);
    const char *utf8 = NULL;
    if (text != NULL && PyList_Append(list->keep, text) == 0) {
        utf8 = vnxi_py_text_get(state, operation, what, text);
    }
    Py_XDECREF(text);
    return utf8;
}

/* Read the parameters from a private copy of the dict, because __str__ of an
 * item may change the caller's. */
static bool
params_read(vnxi_py_state_t *state, const char *operation, PyObject *dict,
            param_list_t *list)
{
    PyObject *key, *item;
    Py_ssize_t at = 0;
    list->keep = PyList_New(0);
    list->params =
        PyMem_Calloc((size_t)PyDict_Size(dict) + 1, sizeof *list->params);
    if (list->keep == NULL || list->params == NULL) {
        return PyErr_NoMemory();
    }
    while (PyDict_Next(dict, &at, &key, &item)) {
        vnx_param_t *param = &list->params[list->count++];
        param->key =
            param_text(state, operation, "the name of a parameter", list, key);
        param->value = param->key != NULL
                           ? param_text(state, operation,
                                        "the value of a parameter", list, item)
                           : NULL;
        if (param->value == NULL) {
            return false;
        }
    }
    return true;
}

static bool
params_get(vnxi_py_state_t *state, const char *operation, PyObject *value,
           param_list_t *list)
{
    *list = (param_list_t){0};
    if (value == NULL || value == Py_None) {
        return true;
    }
    if (!PyDict_Check(value)) {
        return vnxi_py_wrong_type(operation, "initParams", "a dict", value);
    }
    PyObject *dict = PyDict_Copy(value);
    bool good = dict != NULL && params_read(state, operation, dict, list);
    Py_XDECREF(dict);
    if (!good) {
        params_fini(list);
    }
    return good;
}

static bool
backend_create(vnxi_py_agent_t *self, const char *operation, const char *name,
               PyObject *params_arg)
{
    param_list_t params;
    vnx_error_t error;
    if (!params_get(self->state, operation, params_arg, &params)) {
        return false;
    }
    vnx_status_t status = VNXI_PY_WITHOUT_GIL(vnx_agent_create_backend(
        self->agent, name, params.params, params.count, &error));
    params_fini(&params);
    return status >= 0 || vnxi_py_raise(self->state, &error);
}

/* Record that the backend was created.  The key is an exact str. */
static bool
backend_add(vnxi_py_agent_t *self, PyObject *name)
{
    PyObject *backends = Py_XNewRef(self->backends);
    PyObject *key = PyUnicode_FromObject(name);
    PyObject *number = NULL;
    bool good = false;
    if (backends != NULL && key != NULL) {
        number = PyLong_FromSsize_t(PyDict_Size(backends) + 1);
        good = number != NULL && PyDict_SetItem(backends, key, number) == 0;
    }
    Py_XDECREF(number);
    Py_XDECREF(key);
    Py_XDECREF(backends);
    return good;
}

VNXI_PY_AGENT_METHOD(
    create_backend, (REQUIRED(backend), OPTIONAL(initParams, "{}")),
    "Create a backend; the first one chooses the engine and starts its\n"
    "thread.\n\n"
    "backend: a name of get_plugin_list()\n"
    "initParams: its parameters (dict of str to str)\n\n"
    "nixlNotFoundError for an unknown name, or if the engine cannot\n"
    "change any more; nixlNotAllowedError if it exists.")
{
    const char *name =
        vnxi_py_text_get(self->state, operation, "backend", args->backend);
    if (name == NULL ||
        !backend_create(self, operation, name, args->initParams) ||
        !backend_add(self, args->backend)) {
        return NULL;
    }
    Py_RETURN_NONE;
}

const char *
vnxi_py_agent_backend(const vnxi_py_agent_t *self, const char *operation,
                      PyObject *value, PyObject *class)
{
    const char *name =
        vnxi_py_text_get(self->state, operation, "backend", value);
    /* None if the collector has cleared the agent.  Held, because __eq__ of a
     * key may run any code. */
    PyObject *backends = Py_NewRef(self->backends ? self->backends : Py_None);
    int known = name == NULL             ? -1
                : PyDict_Check(backends) ? PyDict_Contains(backends, value)
                                         : 0;
    char help[VNXI_PY_HELP_MAX];
    if (known == 0 && class != NULL) {
        PyErr_Format(class, "%s: the agent has no backend %R%s", operation,
                     value, vnxi_py_backend_help(backends, value, help));
    } else if (known == 0) {
        vnx_error_t error;
        vnxi_error_set(&error, VNX_ERR_NOT_FOUND, operation,
                       "the agent has no backend '%.32s'%s", name,
                       vnxi_py_backend_help(backends, value, help));
        vnxi_py_raise(self->state, &error);
    }
    Py_DECREF(backends);
    return known > 0 ? name : NULL;
}

VNXI_PY_AGENT_METHOD(
    get_plugin_list, (),
    "Names of the backends that can be created (list of str).")
{
    return vnxi_py_agent_plugins(self);
}

/* Here and below, `backend` may be NULL with an exception set. */
static PyObject *
mem_types(vnxi_py_agent_t *self, const char *backend)
{
    uint32_t mems;
    vnx_error_t error;
    if (backend == NULL) {
        return NULL;
    }
    vnx_status_t status = VNXI_PY_WITHOUT_GIL(
        vnx_agent_plugin_mems(self->agent, backend, &mems, &error));
    if (status < 0) {
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
    PyObject *dict = backend != NULL ? PyDict_New() : NULL;
    for (size_t i = 0; dict != NULL; i++) {
        vnx_status_t status = VNXI_PY_WITHOUT_GIL(
            param_of(self->agent, backend, i, &param, &error));
        if (status < 0) {
            Py_DECREF(dict);
            return vnxi_py_raise(self->state, &error);
        }
        if (param.key == NULL) {
            break;
        }
        if (!vnxi_py_dict_set(dict, param.key,
                              PyUnicode_FromString(param.value))) {
            Py_CLEAR(dict);
        }
    }
    return dict;
}

VNXI_PY_AGENT_METHOD(
    get_plugin_mem_types, (REQUIRED(backend)),
    "Names of the memory types of a plugin, such as 'DRAM_SEG' (list of\n"
    "str); nixlNotFoundError for an unknown plugin.")
{
    return mem_types(self, vnxi_py_text_get(self->state, operation, "backend",
                                            args->backend));
}

VNXI_PY_AGENT_METHOD(
    get_plugin_params, (REQUIRED(backend)),
    "Parameters of a plugin with their defaults (dict of str to str);\n"
    "nixlNotFoundError for an unknown plugin.")
{
    return params_dict(
        self,
        vnxi_py_text_get(self->state, operation, "backend", args->backend),
        vnx_agent_plugin_param);
}

VNXI_PY_AGENT_METHOD(
    get_backend_mem_types, (REQUIRED(backend)),
    "Names of the memory types of a created backend (list of str);\n"
    "nixlNotFoundError for one that was not created.")
{
    return mem_types(
        self, vnxi_py_agent_backend(self, operation, args->backend, NULL));
}

VNXI_PY_AGENT_METHOD(get_backend_params, (REQUIRED(backend)),
                     "Parameters of a created backend (dict of str to str);\n"
                     "nixlNotFoundError for one that was not created.")
{
    return params_dict(
        self, vnxi_py_agent_backend(self, operation, args->backend, NULL),
        vnx_agent_backend_param);
}
