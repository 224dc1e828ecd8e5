#include "python/agent/agent.h"

#include <structmember.h>

#include "python/agent/handles.h"
#include "python/arguments/convert.h"

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

/* Posting is bounded to about 50 us, so it keeps the GIL unless it may wait:
 * dropping it, and waiting behind a busy thread to get it back, would take
 * longer. */
static vnx_status_t
post(const vnxi_py_agent_t *self, vnx_xfer_t *xfer,
     const vnxi_py_bytes_t *notif, uint64_t timeout_ns, vnx_error_t *error)
{
    if (!vnx_agent_may_wait(self->agent)) {
        return vnx_xfer_post_within(xfer, notif->data, notif->len, timeout_ns,
                                    error);
    }
    vnx_status_t status;
    vnx_xfer_retain(xfer);
    Py_BEGIN_ALLOW_THREADS;
    status =
        vnx_xfer_post_within(xfer, notif->data, notif->len, timeout_ns, error);
    vnx_xfer_drop(xfer);
    Py_END_ALLOW_THREADS;
    return status;
}

VNXI_PY_AGENT_METHOD(
    transfer,
    (REQUIRED(handle), OPTIONAL(notif_msg, "b''"), STAR,
     KEYWORD(timeout, "None")),
    "Start a transfer, or start it again. Returns 'DONE' or 'PROC'.\n\n"
    "handle: a nixl_xfer_handle of this agent\n"
    "notif_msg: replaces the transfer's notification, unless empty\n"
    "timeout: in seconds; a transfer that has not ended by then is\n"
    "    stopped and fails with nixlTimeoutError, if the backend can\n"
    "    stop it; None: no limit\n\n"
    "'DONE' means that it was small and has ended. The call takes about\n"
    "50 us at most. nixlRepostActiveError while the transfer is in\n"
    "progress, nixlRemoteDisconnectError if the peer is gone.")
{
    vnxi_py_bytes_t notif;
    uint64_t timeout_ns;
    /* As in stock NIXL, an empty message keeps the message of the transfer. */
    if (!vnxi_py_timeout_get(self->state, operation, args->timeout,
                             &timeout_ns) ||
        !vnxi_py_notif_get(operation, args->notif_msg, &notif)) {
        return NULL;
    }
    vnx_error_t error;
    vnx_xfer_t *xfer = vnxi_py_xfer_get(self, operation, args->handle);
    PyObject *result = NULL;
    if (xfer != NULL) {
        vnx_status_t status = post(self, xfer, &notif, timeout_ns, &error);
        result = post_result(self, status, &error);
    }
    vnxi_py_bytes_put(&notif);
    return result;
}

VNXI_PY_AGENT_METHOD(
    check_xfer_state, (REQUIRED(handle)),
    "'DONE' or 'PROC'; a failed transfer raises its error, a cancelled\n"
    "one nixlCancelledError, one that was never posted\n"
    "nixlNotPostedError.")
{
    vnx_xfer_t *xfer = vnxi_py_xfer_get(self, operation, args->handle);
    if (xfer == NULL) {
        return NULL;
    }
    if (vnx_xfer_state(xfer) == VNX_XFER_DONE) {
        return Py_NewRef(VNXI_PY_NAME(self->state, DONE));
    }
    vnx_error_t error;
    return post_result(self, vnx_xfer_status(xfer, &error), &error);
}

VNXI_PY_AGENT_METHOD(
    cancel, (REQUIRED(handle)),
    "Stop a transfer; False: it had ended. No byte moves afterwards.\n\n"
    "After True, check_xfer_state() raises nixlCancelledError. The call\n"
    "waits until the transfer has stopped: less than a millisecond for\n"
    "CPU memory of this host, about 1 s by UCX if the peer does not\n"
    "answer, up to 5 s for GPU memory of another process. Other threads\n"
    "run meanwhile.\n\n"
    "nixlNotSupportedError if the backend cannot stop it,\n"
    "nixlTimeoutError if it has not stopped within 10 s; then the\n"
    "transfer continues.")
{
    vnx_error_t error;
    vnx_status_t status;
    bool stopped = false;
    vnx_xfer_t *xfer = vnxi_py_xfer_get(self, operation, args->handle);
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

VNXI_PY_AGENT_METHOD(
    release_xfer_handle, (REQUIRED(handle)),
    "Free a transfer; calling it again does nothing. One in progress is\n"
    "stopped first, as by cancel(). If that fails, its error is raised\n"
    "and the handle stays valid.")
{
    if (!vnxi_py_is(self->state, VNXI_PY_TYPE_XFER, args->handle)) {
        return vnxi_py_wrong_type(operation, "handle", "a nixl_xfer_handle",
                                  args->handle);
    }
    return vnxi_py_xfer_release((vnxi_py_xfer_t *)args->handle)
               ? Py_NewRef(Py_None)
               : NULL;
}

/* -- Telemetry ------------------------------------------------------------ */

typedef struct telemetry {
    PyObject_HEAD unsigned long long start_us, post_us, xfer_us;
    unsigned long long total_bytes, desc_count, merged_count;
} telemetry_t;

PyObject *
vnxi_py_telemetry_of(vnxi_py_state_t *state, const vnx_xfer_t *xfer)
{
    vnx_xfer_telemetry_t from;
    vnx_error_t error;
    if (vnx_xfer_telemetry(xfer, &from, &error) < 0) {
        return vnxi_py_raise(state, &error);
    }
    PyTypeObject *type = vnxi_py_type(state, VNXI_PY_TYPE_TELEMETRY);
    telemetry_t *self = (telemetry_t *)type->tp_alloc(type, 0);
    if (self != NULL) {
        self->start_us = from.start_us;
        self->post_us = from.post_us;
        self->xfer_us = from.xfer_us;
        self->total_bytes = from.total_bytes;
        self->desc_count = from.desc_count;
        self->merged_count = from.merged_count;
    }
    return (PyObject *)self;
}

static PyObject *
telemetry_repr(PyObject *op)
{
    telemetry_t *self = (telemetry_t *)op;
    return PyUnicode_FromFormat(
        "<nixlXferTelemetry startTime=%llu postDuration=%llu "
        "xferDuration=%llu totalBytes=%llu descCount=%llu mergedCount=%llu>",
        self->start_us, self->post_us, self->xfer_us, self->total_bytes,
        self->desc_count, self->merged_count);
}

PyDoc_STRVAR(telemetry_doc,
             "nixlXferTelemetry()\n--\n\n"
             "Telemetry of one transfer, returned by get_xfer_telemetry(); "
             "read-only.");

static PyMemberDef telemetry_members[] = {
    {"startTime", T_ULONGLONG, offsetof(telemetry_t, start_us), READONLY,
     "time of the last post, in microseconds since the epoch"},
    {"postDuration", T_ULONGLONG, offsetof(telemetry_t, post_us), READONLY,
     "time in transfer(), in microseconds"},
    {"xferDuration", T_ULONGLONG, offsetof(telemetry_t, xfer_us), READONLY,
     "from the post to the end, in microseconds; 0 while in progress"},
    {"totalBytes", T_ULONGLONG, offsetof(telemetry_t, total_bytes), READONLY,
     "bytes of all descriptors"},
    {"descCount", T_ULONGLONG, offsetof(telemetry_t, desc_count), READONLY,
     "number of descriptors requested"},
    {"mergedCount", T_ULONGLONG, offsetof(telemetry_t, merged_count), READONLY,
     "number of pieces moved, after merging neighbours"},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot telemetry_slots[] = {
    {Py_tp_doc, (void *)telemetry_doc},   {Py_tp_new, PyType_GenericNew},
    {Py_tp_dealloc, vnxi_py_object_free}, {Py_tp_repr, telemetry_repr},
    {Py_tp_members, telemetry_members},   {0, NULL},
};

PyType_Spec vnxi_py_telemetry_spec = {
    .name = "vllm_nixl._core.nixlXferTelemetry",
    .basicsize = sizeof(telemetry_t),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = telemetry_slots,
};

VNXI_PY_AGENT_METHOD(
    get_xfer_telemetry, (REQUIRED(handle)),
    "Telemetry of a transfer (nixlXferTelemetry); nixlNotPostedError if\n"
    "it was never posted.")
{
    vnx_xfer_t *xfer = vnxi_py_xfer_get(self, operation, args->handle);
    return xfer != NULL ? vnxi_py_telemetry_of(self->state, xfer) : NULL;
}

VNXI_PY_AGENT_METHOD(query_xfer_backend, (REQUIRED(handle)),
                     "Name of the backend that the transfer uses (str).")
{
    vnx_xfer_t *xfer = vnxi_py_xfer_get(self, operation, args->handle);
    return xfer != NULL ? PyUnicode_FromString(vnx_xfer_backend(xfer)) : NULL;
}

VNXI_PY_AGENT_METHOD(
    estimate_xfer_cost, (REQUIRED(req_handle)),
    "Estimate a transfer: duration and error margin in microseconds, and\n"
    "the method.")
{
    int64_t duration, margin;
    vnx_xfer_t *xfer = vnxi_py_xfer_get(self, operation, args->req_handle);
    if (xfer == NULL) {
        return NULL;
    }
    vnx_xfer_retain(xfer);
    PyThreadState *thread =
        vnxi_py_gil_drop_if(vnx_agent_may_wait(self->agent));
    vnx_xfer_estimate(xfer, &duration, &margin);
    vnx_xfer_drop(xfer);
    vnxi_py_gil_take(thread);
    return Py_BuildValue("LLs", (long long)duration, (long long)margin,
                         "ANALYTICAL_BACKEND");
}
