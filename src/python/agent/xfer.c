#include "python/agent/agent.h"
#include "python/agent/handles.h"
#include "python/arguments/convert.h"

#define HANDLE_SIGNATURE(method)                            \
    static const vnxi_py_signature_t method##_signature = { \
        .name = #method,                                    \
        .count = 1,                                         \
        .required = 1,                                      \
        .params = {VNXI_PY_NAME_handle},                    \
    }

/* The live transfer of a call whose only argument is a handle. */
static vnx_xfer_t *
xfer_arg(PyObject *op, const vnxi_py_signature_t *signature,
         PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    PyObject *value;
    if (!vnxi_py_agent_begin(op, signature, args, nargs, kwnames, &value)) {
        return NULL;
    }
    return vnxi_py_xfer_get((vnxi_py_agent_t *)op, signature->name, value);
}

static const vnxi_py_signature_t transfer_signature = {
    .name = "transfer",
    .count = 3,
    .required = 1,
    .keyword = 1,
    .params = {VNXI_PY_NAME_handle, VNXI_PY_NAME_notif_msg,
               VNXI_PY_NAME_timeout},
};

static PyObject *
post_result(const vnxi_py_agent_t *self, vnx_status_t status,
            const vnx_error_t *error)
{
    if (status < 0) {
        return vnxi_py_raise(self->state, error);
    }
    return Py_NewRef(status == VNX_OK ? VNXI_PY_NAME(self->state, DONE)
                                      : VNXI_PY_NAME(self->state, PROC));
}

/* Posting is bounded to about 50 us, so it keeps the GIL: to drop it and have
 * it back behind a busy thread would take longer. */
static PyObject *
post(vnxi_py_agent_t *self, PyObject *handle, const vnxi_py_bytes_t *notif,
     uint64_t timeout_ns)
{
    vnx_error_t error;
    vnx_xfer_t *xfer = vnxi_py_xfer_get(self, transfer_signature.name, handle);
    if (xfer == NULL) {
        return NULL;
    }
    vnx_status_t status = vnx_xfer_post_within(xfer, notif->data, notif->len,
                                               timeout_ns, &error);
    return post_result(self, status, &error);
}

VNXI_PY_METHOD(transfer)
{
    vnxi_py_agent_t *self = (vnxi_py_agent_t *)op;
    PyObject *values[3];
    vnxi_py_bytes_t notif;
    uint64_t timeout_ns;
    /* As in stock, an empty message leaves the transfer's own in place. */
    if (!vnxi_py_agent_begin(op, &transfer_signature, args, nargs, kwnames,
                             values) ||
        !vnxi_py_timeout_get(self->state, transfer_signature.name, values[2],
                             &timeout_ns) ||
        !vnxi_py_notif_get(transfer_signature.name, values[1], &notif)) {
        return NULL;
    }
    PyObject *result = post(self, values[0], &notif, timeout_ns);
    vnxi_py_bytes_put(&notif);
    return result;
}

HANDLE_SIGNATURE(check_xfer_state);

VNXI_PY_METHOD(check_xfer_state)
{
    vnxi_py_agent_t *self = (vnxi_py_agent_t *)op;
    vnx_xfer_t *xfer =
        xfer_arg(op, &check_xfer_state_signature, args, nargs, kwnames);
    if (xfer == NULL) {
        return NULL;
    }
    switch (vnx_xfer_state(xfer)) {
    case VNX_XFER_DONE:
        return Py_NewRef(VNXI_PY_NAME(self->state, DONE));
    case VNX_XFER_POSTED:
        return Py_NewRef(VNXI_PY_NAME(self->state, PROC));
    default:
        break;
    }
    vnx_error_t error;
    return post_result(self, vnx_xfer_status(xfer, &error), &error);
}

HANDLE_SIGNATURE(cancel);

VNXI_PY_METHOD(cancel)
{
    vnxi_py_agent_t *self = (vnxi_py_agent_t *)op;
    vnx_error_t error;
    vnx_status_t status;
    bool stopped = false;
    vnx_xfer_t *xfer = xfer_arg(op, &cancel_signature, args, nargs, kwnames);
    if (xfer == NULL) {
        return NULL;
    }
    vnx_xfer_retain(xfer);
    Py_BEGIN_ALLOW_THREADS;
    status = vnx_xfer_cancel(xfer, &stopped, &error);
    vnx_xfer_drop(xfer);
    Py_END_ALLOW_THREADS;
    return status < 0 ? vnxi_py_raise(self->state, &error)
                      : PyBool_FromLong(stopped);
}

HANDLE_SIGNATURE(release_xfer_handle);

VNXI_PY_METHOD(release_xfer_handle)
{
    vnxi_py_agent_t *self = (vnxi_py_agent_t *)op;
    PyObject *value;
    if (!vnxi_py_agent_begin(op, &release_xfer_handle_signature, args, nargs,
                             kwnames, &value)) {
        return NULL;
    }
    if (!vnxi_py_is(self->state, VNXI_PY_TYPE_XFER, value)) {
        return vnxi_py_wrong_type(release_xfer_handle_signature.name, "handle",
                                  "a nixl_xfer_handle", value);
    }
    if (!vnxi_py_xfer_release((vnxi_py_xfer_t *)value)) {
        return NULL;
    }
    Py_RETURN_NONE;
}

HANDLE_SIGNATURE(get_xfer_telemetry);

VNXI_PY_METHOD(get_xfer_telemetry)
{
    vnxi_py_agent_t *self = (vnxi_py_agent_t *)op;
    vnx_xfer_telemetry_t telemetry;
    vnx_error_t error;
    vnx_xfer_t *xfer =
        xfer_arg(op, &get_xfer_telemetry_signature, args, nargs, kwnames);
    if (xfer == NULL) {
        return NULL;
    }
    return vnx_xfer_telemetry(xfer, &telemetry, &error) < 0
               ? vnxi_py_raise(self->state, &error)
               : vnxi_py_telemetry_new(self->state, &telemetry);
}

HANDLE_SIGNATURE(query_xfer_backend);

VNXI_PY_METHOD(query_xfer_backend)
{
    vnx_xfer_t *xfer =
        xfer_arg(op, &query_xfer_backend_signature, args, nargs, kwnames);
    return xfer != NULL ? PyUnicode_FromString(vnx_xfer_backend(xfer)) : NULL;
}

static const vnxi_py_signature_t estimate_signature = {
    .name = "estimate_xfer_cost",
    .count = 1,
    .required = 1,
    .params = {VNXI_PY_NAME_req_handle},
};

VNXI_PY_METHOD(estimate_xfer_cost)
{
    int64_t duration, margin;
    vnx_xfer_t *xfer = xfer_arg(op, &estimate_signature, args, nargs, kwnames);
    if (xfer == NULL) {
        return NULL;
    }
    vnx_xfer_estimate(xfer, &duration, &margin);
    return Py_BuildValue("LLs", (long long)duration, (long long)margin,
                         "ANALYTICAL_BACKEND");
}
