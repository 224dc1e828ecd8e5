#include "python/agent/agent.h"

#include <stdlib.h>

#include "python/arguments/convert.h"
#include "python/descriptors/descs.h"

/* Takes `bytes`. */
static PyObject *
bytes_object(vnx_bytes_t *bytes)
{
    PyObject *object =
        PyBytes_FromStringAndSize(bytes->data, (Py_ssize_t)bytes->len);
    free(bytes->data);
    return object;
}

static const vnxi_py_signature_t get_signature = {
    .name = "get_agent_metadata",
};

VNXI_PY_METHOD(get_agent_metadata)
{
    vnxi_py_agent_t *self = (vnxi_py_agent_t *)op;
    vnx_bytes_t bytes;
    vnx_error_t error;
    vnx_status_t status;
    if (!vnxi_py_agent_begin(op, &get_signature, args, nargs, kwnames, NULL)) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS;
    status = vnx_agent_metadata(self->agent, &bytes, &error);
    Py_END_ALLOW_THREADS;
    return status < 0 ? vnxi_py_raise(self->state, &error)
                      : bytes_object(&bytes);
}

static bool
partial_metadata(vnxi_py_agent_t *self, vnxi_py_descs_t *descs,
                 bool with_connection, const char *const *backends,
                 vnx_bytes_t *metadata_p)
{
    vnx_error_t error;
    vnx_status_t status;
    vnx_reg_desc_t *rows = vnxi_py_reg_rows_get(descs);
    if (rows == NULL) {
        return false;
    }
    Py_BEGIN_ALLOW_THREADS;
    status = vnx_agent_partial_metadata(self->agent, descs->mem, rows,
                                        descs->count, with_connection,
                                        backends, metadata_p, &error);
    Py_END_ALLOW_THREADS;
    vnxi_py_reg_rows_put(descs, rows);
    if (status < 0) {
        vnxi_py_raise(self->state, &error);
    }
    return status >= 0;
}

bool
vnxi_py_partial_metadata(vnxi_py_agent_t *self, const char *operation,
                         PyObject *const *values, vnx_bytes_t *metadata_p)
{
    vnxi_py_backends_t backends;
    if (!vnxi_py_backends_get(operation, self->backends, values[2],
                              &backends)) {
        return false;
    }
    int with_connection = vnxi_py_args_bool(values[1], false);
    if (with_connection < 0) {
        return false;
    }
    if (!vnxi_py_descs_is(self->state, VNXI_PY_DESCS_REG, values[0])) {
        vnxi_py_wrong_type(operation, "descs", "a nixlRegDList", values[0]);
        return false;
    }
    return partial_metadata(self, (vnxi_py_descs_t *)values[0],
                            with_connection > 0, backends.list, metadata_p);
}

static const vnxi_py_signature_t partial_signature = {
    .name = "get_partial_agent_metadata",
    .count = 3,
    .required = 1,
    .params = {VNXI_PY_NAME_descs, VNXI_PY_NAME_inc_conn_info,
               VNXI_PY_NAME_backends},
};

VNXI_PY_METHOD(get_partial_agent_metadata)
{
    PyObject *values[3];
    vnx_bytes_t metadata;
    if (!vnxi_py_agent_begin(op, &partial_signature, args, nargs, kwnames,
                             values) ||
        !vnxi_py_partial_metadata((vnxi_py_agent_t *)op,
                                  partial_signature.name, values, &metadata)) {
        return NULL;
    }
    return bytes_object(&metadata);
}

/* A blob to load.  What another thread or process may change meanwhile is
 * copied, so that what was checked is what is loaded. */
static bool
blob_get(const char *operation, PyObject *value, vnxi_py_bytes_t *blob_p)
{
    if (PyUnicode_Check(value)) {
        vnxi_py_wrong_type(operation, "metadata", "bytes", value);
        return false;
    }
    if (!vnxi_py_message_get(operation, "metadata", value, blob_p)) {
        return false;
    }
    if (blob_p->has_view) {
        PyObject *copy =
            PyBytes_FromStringAndSize(blob_p->data, (Py_ssize_t)blob_p->len);
        vnxi_py_bytes_put(blob_p);
        if (copy == NULL) {
            return false;
        }
        *blob_p = (vnxi_py_bytes_t){.data = PyBytes_AS_STRING(copy),
                                    .len = (size_t)PyBytes_GET_SIZE(copy),
                                    .owner = copy};
    }
    return true;
}

static const vnxi_py_signature_t add_signature = {
    .name = "add_remote_agent",
    .count = 1,
    .required = 1,
    .params = {VNXI_PY_NAME_metadata},
};

VNXI_PY_METHOD(add_remote_agent)
{
    vnxi_py_agent_t *self = (vnxi_py_agent_t *)op;
    PyObject *value;
    vnxi_py_bytes_t blob;
    vnx_bytes_t name;
    vnx_error_t error;
    vnx_status_t status;
    if (!vnxi_py_agent_begin(op, &add_signature, args, nargs, kwnames,
                             &value) ||
        !blob_get(add_signature.name, value, &blob)) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS;
    status = vnx_agent_load_metadata(self->agent, blob.data, blob.len, &name,
                                     &error);
    Py_END_ALLOW_THREADS;
    vnxi_py_bytes_put(&blob);
    return status < 0 ? vnxi_py_raise(self->state, &error)
                      : bytes_object(&name);
}

typedef vnx_status_t (*peer_fn)(vnx_agent_t *, const void *, size_t,
                                vnx_error_t *);

/* A call on a named peer that returns None. */
static PyObject *
peer_call(vnxi_py_agent_t *self, const char *operation, PyObject *peer_arg,
          peer_fn call)
{
    vnxi_py_bytes_t peer;
    vnx_error_t error;
    vnx_status_t status;
    if (!vnxi_py_peer_get(self->state, operation, peer_arg, &peer)) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS;
    status = call(self->agent, peer.data, peer.len, &error);
    Py_END_ALLOW_THREADS;
    vnxi_py_bytes_put(&peer);
    if (status < 0) {
        return vnxi_py_raise(self->state, &error);
    }
    Py_RETURN_NONE;
}

static const vnxi_py_signature_t remove_signature = {
    .name = "remove_remote_agent",
    .count = 1,
    .required = 1,
    .params = {VNXI_PY_NAME_agent},
};

VNXI_PY_METHOD(remove_remote_agent)
{
    PyObject *value;
    if (!vnxi_py_agent_begin(op, &remove_signature, args, nargs, kwnames,
                             &value)) {
        return NULL;
    }
    return peer_call((vnxi_py_agent_t *)op, remove_signature.name, value,
                     vnx_agent_remove_peer);
}

static const vnxi_py_signature_t connect_signature = {
    .name = "make_connection",
    .count = 2,
    .required = 1,
    .params = {VNXI_PY_NAME_remote_agent, VNXI_PY_NAME_backends},
};

VNXI_PY_METHOD(make_connection)
{
    vnxi_py_agent_t *self = (vnxi_py_agent_t *)op;
    PyObject *values[2];
    vnxi_py_backends_t backends;
    if (!vnxi_py_agent_begin(op, &connect_signature, args, nargs, kwnames,
                             values) ||
        !vnxi_py_backends_get(connect_signature.name, self->backends,
                              values[1], &backends)) {
        return NULL;
    }
    return peer_call(self, connect_signature.name, values[0],
                     vnx_agent_connect_peer);
}

static PyObject *
peer_check(vnxi_py_agent_t *self, const char *operation, PyObject *peer_arg,
           vnxi_py_descs_t *descs)
{
    vnxi_py_bytes_t peer;
    bool known;
    if (!vnxi_py_name_get(operation, peer_arg, &peer)) {
        return NULL;
    }
    if (descs == NULL) {
        known = peer.len > 0 &&
                vnx_agent_check_peer(self->agent, peer.data, peer.len,
                                     VNX_MEM_DRAM, NULL, 0);
    } else if (!vnxi_py_descs_pin(descs)) {
        vnxi_py_bytes_put(&peer);
        return NULL;
    } else {
        Py_BEGIN_ALLOW_THREADS;
        known = peer.len > 0 &&
                vnx_agent_check_peer(self->agent, peer.data, peer.len,
                                     descs->mem, descs->rows, descs->count);
        Py_END_ALLOW_THREADS;
        vnxi_py_descs_unpin(descs);
    }
    vnxi_py_bytes_put(&peer);
    return PyBool_FromLong(known);
}

static const vnxi_py_signature_t check_signature = {
    .name = "check_remote_metadata",
    .count = 2,
    .required = 1,
    .params = {VNXI_PY_NAME_agent, VNXI_PY_NAME_descs},
};

VNXI_PY_METHOD(check_remote_metadata)
{
    vnxi_py_agent_t *self = (vnxi_py_agent_t *)op;
    PyObject *values[2];
    if (!vnxi_py_agent_begin(op, &check_signature, args, nargs, kwnames,
                             values)) {
        return NULL;
    }
    PyObject *descs = values[1] == Py_None ? NULL : values[1];
    if (descs != NULL &&
        !vnxi_py_descs_is(self->state, VNXI_PY_DESCS_XFER, descs)) {
        return vnxi_py_wrong_type(check_signature.name, "descs",
                                  "a nixlXferDList or None", descs);
    }
    return peer_check(self, check_signature.name, values[0],
                      (vnxi_py_descs_t *)descs);
}
