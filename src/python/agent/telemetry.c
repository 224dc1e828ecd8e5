#include "python/agent/agent.h"

#include <structmember.h>

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
             "Figures of one transfer, as get_xfer_telemetry() returns them; "
             "read only.");

static PyMemberDef telemetry_members[] = {
    {"startTime", T_ULONGLONG, offsetof(telemetry_t, start_us), READONLY,
     "when it was posted last, in microseconds since the epoch"},
    {"postDuration", T_ULONGLONG, offsetof(telemetry_t, post_us), READONLY,
     "time in transfer(), in microseconds"},
    {"xferDuration", T_ULONGLONG, offsetof(telemetry_t, xfer_us), READONLY,
     "time from posting to the end, in microseconds; 0 while it goes on"},
    {"totalBytes", T_ULONGLONG, offsetof(telemetry_t, total_bytes), READONLY,
     "bytes of all descriptors"},
    {"descCount", T_ULONGLONG, offsetof(telemetry_t, desc_count), READONLY,
     "descriptors as asked for"},
    {"mergedCount", T_ULONGLONG, offsetof(telemetry_t, merged_count), READONLY,
     "pieces that were moved, after merging neighbours"},
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
