#include "python/agent/agent.h"
#include "python/arguments/convert.h"
#include "python/descriptors/descs.h"

VNXI_PY_AGENT_METHOD(
    get_reg_descs, (REQUIRED(descs), OPTIONAL(mem_type, "None")),
    "A nixlRegDList from one of these:\n\n"
    "- a list of tuples (address, length, device id, meta info), the\n"
    "  last one a str or bytes\n"
    "- a C-contiguous Nx3 array of uint64 or int64 (address, length,\n"
    "  device id): anything with the buffer protocol\n"
    "- a contiguous tensor, or a list of tensors of one device\n"
    "- a nixlRegDList, which is returned as it is\n\n"
    "descs: one of these; lengths in bytes\n"
    "mem_type: 'DRAM', 'VRAM', 'BLK', 'OBJ', 'FILE', 'cpu', 'cuda' or a\n"
    "    member of nixl_mem_t; needed for tuples and arrays\n\n"
    "TypeError, ValueError (naming the row) or KeyError (memory type).")
{
    return (PyObject *)vnxi_py_descs_from(self->state, operation,
                                          VNXI_PY_DESCS_REG, args->descs,
                                          args->mem_type);
}

VNXI_PY_AGENT_METHOD(
    get_xfer_descs, (REQUIRED(descs), OPTIONAL(mem_type, "None")),
    "A nixlXferDList from one of these:\n\n"
    "- a list of tuples (address, length, device id)\n"
    "- a C-contiguous Nx3 array of uint64 or int64, as for\n"
    "  get_reg_descs()\n"
    "- a contiguous tensor, or a list of tensors of one device\n"
    "- a nixlXferDList, which is returned as it is\n\n"
    "descs: one of these; lengths in bytes\n"
    "mem_type: as for get_reg_descs()\n\n"
    "TypeError, ValueError (naming the row) or KeyError (memory type).")
{
    return (PyObject *)vnxi_py_descs_from(self->state, operation,
                                          VNXI_PY_DESCS_XFER, args->descs,
                                          args->mem_type);
}

VNXI_PY_AGENT_METHOD(
    get_remote_descs, (REQUIRED(descs), OPTIONAL(mem_type, "None")),
    "A nixlRemoteDList from a list of tuples (address, length, device\n"
    "id, name of the agent), or from a nixlRemoteDList, which is\n"
    "returned as it is.\n\n"
    "mem_type: as for get_reg_descs()\n\n"
    "TypeError, ValueError (naming the row) or KeyError (memory type).")
{
    return (PyObject *)vnxi_py_descs_from(self->state, operation,
                                          VNXI_PY_DESCS_REMOTE, args->descs,
                                          args->mem_type);
}

typedef vnx_status_t (*register_fn)(vnx_agent_t *, vnx_mem_t,
                                    const vnx_reg_desc_t *, size_t,
                                    const char *const *, vnx_error_t *);

static bool
regions_change(vnxi_py_agent_t *self, vnxi_py_descs_t *descs,
               const char *const *backends, register_fn change)
{
    vnx_error_t error;
    vnx_reg_desc_t *rows = vnxi_py_reg_rows_get(descs);
    if (rows == NULL) {
        return false;
    }
    vnx_status_t status = VNXI_PY_WITHOUT_GIL(
        change(self->agent, descs->mem, rows, descs->count, backends, &error));
    vnxi_py_reg_rows_put(descs, rows);
    return status >= 0 || vnxi_py_raise(self->state, &error);
}

VNXI_PY_AGENT_METHOD(
    register_memory,
    (REQUIRED(reg_list), OPTIONAL(mem_type, "None"), OPTIONAL(backends, "[]")),
    "Register memory; all of it or none. Returns the nixlRegDList.\n\n"
    "reg_list, mem_type: as for get_reg_descs()\n"
    "backends: names of backends; empty: all\n\n"
    "The memory is borrowed: keep it until it is deregistered. Memory\n"
    "registered twice must be deregistered twice. nixlInvalidParamError\n"
    "(naming the row) for DRAM whose first or last page is not mapped; a\n"
    "range that is only reserved (PROT_NONE) counts as mapped.")
{
    vnxi_py_backends_t backends;
    if (!vnxi_py_backends_get(operation, self->backends, args->backends,
                              &backends)) {
        return NULL;
    }
    vnxi_py_descs_t *descs =
        vnxi_py_descs_from(self->state, operation, VNXI_PY_DESCS_REG,
                           args->reg_list, args->mem_type);
    if (descs != NULL &&
        !regions_change(self, descs, backends.list, vnx_agent_register)) {
        Py_CLEAR(descs);
    }
    return (PyObject *)descs;
}

VNXI_PY_AGENT_METHOD(
    deregister_memory, (REQUIRED(dereg_list), OPTIONAL(backends, "[]")),
    "Deregister a list returned by register_memory(); all of it or none.\n\n"
    "dereg_list: a nixlRegDList with the same ranges\n"
    "backends: names of backends; empty: all\n\n"
    "Transfers in flight on the memory are stopped, as by cancel(), and\n"
    "fail; so do those that are posted later. It waits up to 2 s for\n"
    "peers of this host that are copying the memory, and up to 2 s for\n"
    "peers that have mapped GPU memory; the engine nixl, which cannot\n"
    "stop transfers, waits up to 5 s for them. Then nothing on this host\n"
    "touches the memory any more; if something may, a warning is logged.\n"
    "Other threads run meanwhile.\n\n"
    "nixlNotFoundError (naming the row) for memory that is not\n"
    "registered.")
{
    vnxi_py_backends_t backends;
    if (!vnxi_py_backends_get(operation, self->backends, args->backends,
                              &backends)) {
        return NULL;
    }
    vnxi_py_descs_t *descs =
        vnxi_py_descs_expect(self->state, operation, "dereg_list",
                             VNXI_PY_DESCS_REG, args->dereg_list);
    if (descs == NULL ||
        !regions_change(self, descs, backends.list, vnx_agent_deregister)) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *
info_dict(const vnx_mem_info_t *info)
{
    PyObject *dict = PyDict_New();
    for (size_t i = 0; dict != NULL && i < info->param_count; i++) {
        const vnx_param_t *param = &info->params[i];
        if (!vnxi_py_dict_set(dict, param->key,
                              PyUnicode_DecodeFSDefault(param->value))) {
            Py_CLEAR(dict);
        }
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
    if (rows == NULL) {
        return NULL;
    }
    vnx_status_t status = VNXI_PY_WITHOUT_GIL(vnx_agent_query_memory(
        self->agent, descs->mem, rows, count, backend, &infos, &error));
    vnxi_py_reg_rows_put(descs, rows);
    if (status < 0) {
        return vnxi_py_raise(self->state, &error);
    }
    /* From here on `descs` may change: making the list may run any code. */
    PyObject *list = infos_list(infos, count);
    vnx_mem_infos_free(infos, count);
    return list;
}

VNXI_PY_AGENT_METHOD(
    query_memory,
    (REQUIRED(reg_list), REQUIRED(backend), OPTIONAL(mem_type, "None")),
    "Ask a storage backend about files or objects.\n\n"
    "reg_list: as for register_memory(); the fourth value of each row is\n"
    "    the path or key to look up\n"
    "backend: its name\n"
    "mem_type: 'FILE', 'OBJ', ... unless it is in reg_list\n\n"
    "Returns a list with a dict for each row that exists ('size',\n"
    "'mtime', ...; str to str), and None for one that does not.\n"
    "nixlNotSupportedError if the backend has no storage.")
{
    const char *backend = vnxi_py_agent_backend(self, operation, args->backend,
                                                PyExc_ValueError);
    if (backend == NULL) {
        return NULL;
    }
    vnxi_py_descs_t *descs =
        vnxi_py_descs_from(self->state, operation, VNXI_PY_DESCS_REG,
                           args->reg_list, args->mem_type);
    if (descs == NULL) {
        return NULL;
    }
    PyObject *list = query(self, descs, backend);
    Py_DECREF(descs);
    return list;
}
