#include "base/error.h"
#include "python/agent/agent.h"
#include "python/arguments/convert.h"
#include "python/descriptors/descs.h"

static PyObject *
info_dict(const vnx_mem_info_t *info)
{
    PyObject *dict = PyDict_New();
    for (size_t i = 0; dict != NULL && i < info->param_count; i++) {
        const vnx_param_t *param = &info->params[i];
        PyObject *value = PyUnicode_DecodeFSDefault(param->value);
        if (value == NULL ||
            PyDict_SetItemString(dict, param->key, value) < 0) {
            Py_CLEAR(dict);
        }
        Py_XDECREF(value);
    }
    return dict;
}

static PyObject *
infos_list(const vnx_mem_info_t *infos, size_t count)
{
    PyObject *list = PyList_New((Py_ssize_t)count);
    for (size_t i = 0; list != NULL && i < count; i++) {
        PyObject *item =
            infos[i].is_there ? info_dict(&infos[i]) : Py_NewRef(Py_None);
        if (item == NULL) {
            Py_CLEAR(list);
            break;
        }
        PyList_SET_ITEM(list, (Py_ssize_t)i, item);
    }
    return list;
}

static PyObject *
query(vnxi_py_agent_t *self, vnxi_py_descs_t *descs, const char *backend)
{
    vnx_mem_info_t *infos = NULL;
    size_t count = descs->count;
    vnx_reg_desc_t *rows = vnxi_py_reg_rows_get(descs);
    vnx_error_t error;
    vnx_status_t status;

    if (rows == NULL) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS;
    status = vnx_agent_query_memory(self->agent, descs->mem, rows, count,
                                    backend, &infos, &error);
    Py_END_ALLOW_THREADS;
    vnxi_py_reg_rows_put(descs, rows);
    if (status < 0) {
        return vnxi_py_raise(self->state, &error);
    }
    /* From here on `descs` may change: making the list may run any code. */
    PyObject *list = infos_list(infos, count);
    vnx_mem_infos_free(infos, count);
    return list;
}

/* Borrowed from `name`.  NULL: exception. */
static const char *
known_backend(vnxi_py_agent_t *self, const char *operation, PyObject *name)
{
    const char *text =
        vnxi_py_text_get(self->state, operation, "backend", name);
    int known = text != NULL ? vnxi_py_agent_has_backend(self, name) : -1;
    if (known == 0) {
        PyObject *made = Py_NewRef(self->backends ? self->backends : Py_None);
        PyErr_Format(PyExc_ValueError,
                     "%s: the agent has no backend %R; it has %R", operation,
                     name, made);
        Py_DECREF(made);
    }
    return known > 0 ? text : NULL;
}

static const vnxi_py_signature_t query_memory_signature = {
    .name = "query_memory",
    .count = 3,
    .required = 2,
    .params = {VNXI_PY_NAME_reg_list, VNXI_PY_NAME_backend,
               VNXI_PY_NAME_mem_type},
};

VNXI_PY_METHOD(query_memory)
{
    vnxi_py_agent_t *self = (vnxi_py_agent_t *)op;
    const char *operation = query_memory_signature.name;
    PyObject *values[3];

    if (!vnxi_py_agent_begin(op, &query_memory_signature, args, nargs, kwnames,
                             values)) {
        return NULL;
    }
    const char *backend = known_backend(self, operation, values[1]);
    if (backend == NULL) {
        return NULL;
    }
    vnxi_py_descs_t *descs = vnxi_py_descs_from(
        self->state, operation, VNXI_PY_DESCS_REG, values[0], values[2]);
    if (descs == NULL) {
        return NULL;
    }
    PyObject *list = query(self, descs, backend);
    Py_DECREF(descs);
    return list;
}
