#include "python/agent/agent.h"
#include "python/arguments/convert.h"
#include "python/descriptors/descs.h"

/* -- Descriptor lists ----------------------------------------------------- */

#define DESCS_SIGNATURE(method)                                \
    static const vnxi_py_signature_t method##_signature = {    \
        .name = #method,                                       \
        .count = 2,                                            \
        .required = 1,                                         \
        .params = {VNXI_PY_NAME_descs, VNXI_PY_NAME_mem_type}, \
    }

DESCS_SIGNATURE(get_reg_descs);
DESCS_SIGNATURE(get_xfer_descs);
DESCS_SIGNATURE(get_remote_descs);

VNXI_PY_METHOD(get_reg_descs)
{
    PyObject *values[2];
    if (!vnxi_py_agent_begin(op, &get_reg_descs_signature, args, nargs,
                             kwnames, values)) {
        return NULL;
    }
    return (PyObject *)vnxi_py_descs_from(
        ((vnxi_py_agent_t *)op)->state, get_reg_descs_signature.name,
        VNXI_PY_DESCS_REG, values[0], values[1]);
}

VNXI_PY_METHOD(get_xfer_descs)
{
    PyObject *values[2];
    if (!vnxi_py_agent_begin(op, &get_xfer_descs_signature, args, nargs,
                             kwnames, values)) {
        return NULL;
    }
    return (PyObject *)vnxi_py_descs_from(
        ((vnxi_py_agent_t *)op)->state, get_xfer_descs_signature.name,
        VNXI_PY_DESCS_XFER, values[0], values[1]);
}

VNXI_PY_METHOD(get_remote_descs)
{
    PyObject *values[2];
    if (!vnxi_py_agent_begin(op, &get_remote_descs_signature, args, nargs,
                             kwnames, values)) {
        return NULL;
    }
    return (PyObject *)vnxi_py_descs_from(
        ((vnxi_py_agent_t *)op)->state, get_remote_descs_signature.name,
        VNXI_PY_DESCS_REMOTE, values[0], values[1]);
}

/* -- Registration --------------------------------------------------------- */

typedef vnx_status_t (*register_fn)(vnx_agent_t *, vnx_mem_t,
                                    const vnx_reg_desc_t *, size_t,
                                    const char *const *, vnx_error_t *);

/* Needs no GIL: the list is pinned, and bytes never change. */
static void
reg_rows_fill(const vnxi_py_descs_t *descs, vnx_reg_desc_t *rows)
{
    for (size_t i = 0; i < descs->count; i++) {
        const PyBytesObject *meta = (const PyBytesObject *)descs->extras[i];
        rows[i] = (vnx_reg_desc_t){
            .desc = descs->rows[i],
            .meta = meta->ob_sval,
            .meta_len = (size_t)Py_SIZE(meta),
        };
    }
}

vnx_reg_desc_t *
vnxi_py_reg_rows_get(vnxi_py_descs_t *descs)
{
    vnx_reg_desc_t *rows = PyMem_RawMalloc((descs->count + 1) * sizeof *rows);
    if (rows == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    descs->exports++;
    if (descs->count < VNXI_PY_ROWS_LARGE) {
        reg_rows_fill(descs, rows);
    } else {
        Py_BEGIN_ALLOW_THREADS;
        reg_rows_fill(descs, rows);
        Py_END_ALLOW_THREADS;
    }
    return rows;
}

void
vnxi_py_reg_rows_put(vnxi_py_descs_t *descs, vnx_reg_desc_t *rows)
{
    vnxi_py_descs_unpin(descs);
    PyMem_RawFree(rows);
}

static bool
regions_change(vnxi_py_agent_t *self, vnxi_py_descs_t *descs,
               const char *const *backends, register_fn change)
{
    vnx_error_t error;
    vnx_status_t status;
    vnx_reg_desc_t *rows = vnxi_py_reg_rows_get(descs);
    if (rows == NULL) {
        return false;
    }
    Py_BEGIN_ALLOW_THREADS;
    status =
        change(self->agent, descs->mem, rows, descs->count, backends, &error);
    Py_END_ALLOW_THREADS;
    vnxi_py_reg_rows_put(descs, rows);
    if (status < 0) {
        vnxi_py_raise(self->state, &error);
    }
    return status >= 0;
}

static const vnxi_py_signature_t register_signature = {
    .name = "register_memory",
    .count = 3,
    .required = 1,
    .params = {VNXI_PY_NAME_reg_list, VNXI_PY_NAME_mem_type,
               VNXI_PY_NAME_backends},
};

VNXI_PY_METHOD(register_memory)
{
    vnxi_py_agent_t *self = (vnxi_py_agent_t *)op;
    PyObject *values[3];
    vnxi_py_backends_t backends;
    if (!vnxi_py_agent_begin(op, &register_signature, args, nargs, kwnames,
                             values) ||
        !vnxi_py_backends_get(register_signature.name, self->backends,
                              values[2], &backends)) {
        return NULL;
    }
    vnxi_py_descs_t *descs =
        vnxi_py_descs_from(self->state, register_signature.name,
                           VNXI_PY_DESCS_REG, values[0], values[1]);
    if (descs != NULL &&
        !regions_change(self, descs, backends.list, vnx_agent_register)) {
        Py_CLEAR(descs);
    }
    return (PyObject *)descs;
}

static const vnxi_py_signature_t deregister_signature = {
    .name = "deregister_memory",
    .count = 2,
    .required = 1,
    .params = {VNXI_PY_NAME_dereg_list, VNXI_PY_NAME_backends},
};

VNXI_PY_METHOD(deregister_memory)
{
    vnxi_py_agent_t *self = (vnxi_py_agent_t *)op;
    PyObject *values[2];
    vnxi_py_backends_t backends;
    if (!vnxi_py_agent_begin(op, &deregister_signature, args, nargs, kwnames,
                             values) ||
        !vnxi_py_backends_get(deregister_signature.name, self->backends,
                              values[1], &backends)) {
        return NULL;
    }
    if (!vnxi_py_descs_is(self->state, VNXI_PY_DESCS_REG, values[0])) {
        return vnxi_py_wrong_type(deregister_signature.name, "dereg_list",
                                  "a nixlRegDList", values[0]);
    }
    if (!regions_change(self, (vnxi_py_descs_t *)values[0], backends.list,
                        vnx_agent_deregister)) {
        return NULL;
    }
    Py_RETURN_NONE;
}
