/*
 * The Python types of the handles: methods, printing, deallocation.
 */
#include "python/agent/handles.h"

#include "python/arguments/convert.h"

/* -- Both types ----------------------------------------------------------- */

static int
handle_traverse(PyObject *op, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(((vnxi_py_handle_t *)op)->agent);
    return 0;
}

static int
handle_clear(PyObject *op)
{
    Py_CLEAR(((vnxi_py_handle_t *)op)->agent);
    return 0;
}

/* -- Transfers ------------------------------------------------------------ */

PyDoc_STRVAR(
    xfer_release_doc,
    "release($self)\n--\n\n"
    "Free the transfer; calling it again does nothing.\n\n"
    "A transfer in progress is stopped first, as by cancel(): no byte\n"
    "moves afterwards. If it cannot be stopped, an exception is raised\n"
    "and the handle stays valid.");

static PyObject *
xfer_release(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    return vnxi_py_xfer_release((vnxi_py_xfer_t *)op) ? Py_NewRef(Py_None)
                                                      : NULL;
}

VNXI_PY_METHOD_DECLARE(xfer_, result)

VNXI_PY_METHOD(
    xfer_, vnxi_py_handle_t, vnxi_py_is_usable, result, "result",
    (OPTIONAL(timeout, "None")),
    "Wait until it has ended; return its telemetry or raise its error.\n\n"
    "timeout: in seconds; None: no limit\n\n"
    "Raises the errors of wait(). Other threads run meanwhile; Ctrl-C\n"
    "ends the wait.")
{
    uint64_t timeout_ns;
    if (!vnxi_py_timeout_get(self->state, operation, args->timeout,
                             &timeout_ns)) {
        return NULL;
    }
    if (self->agent == NULL) {
        return vnxi_py_invalid(self->state, operation, VNXI_PY_NO_ROW,
                               "the transfer handle was released");
    }
    return vnxi_py_agent_wait_one(self->agent, operation, (PyObject *)self,
                                  timeout_ns);
}

PyDoc_STRVAR(enter_doc, "__enter__($self)\n--\n\nReturn the handle itself.");

PyDoc_STRVAR(exit_doc, "__exit__($self, *args)\n--\n\nrelease().");

static PyObject *
xfer_repr(PyObject *op)
{
    static const char *const states[] = {"ready", "posted", "done", "failed",
                                         "cancelled"};
    vnxi_py_xfer_t *self = (vnxi_py_xfer_t *)op;
    const char *state =
        self->xfer != NULL ? states[vnx_xfer_state(self->xfer)] : "released";
    return PyUnicode_FromFormat("<nixl_xfer_handle %s at %p>", state, op);
}

static void
xfer_dealloc(PyObject *op)
{
    vnx_xfer_t *xfer = ((vnxi_py_xfer_t *)op)->xfer;
    PyObject_GC_UnTrack(op);
    if (xfer != NULL) {
        PyThreadState *thread = vnxi_py_gil_drop_if(
            vnx_xfer_state(xfer) == VNX_XFER_POSTED ||
            vnxi_py_handle_may_wait((vnxi_py_handle_t *)op));
        vnx_xfer_abandon(xfer);
        vnxi_py_gil_take(thread);
    }
    handle_clear(op);
    vnxi_py_object_free(op);
}

PyDoc_STRVAR(
    xfer_doc,
    "A transfer, created by make_prepped_xfer() or initialize_xfer().\n\n"
    "It keeps its agent alive. It is freed when it is garbage collected,\n"
    "or at once by `with handle:` and release(). It compares by\n"
    "identity.");

static PyMethodDef xfer_methods[] = {
    {"release", xfer_release, METH_NOARGS, xfer_release_doc},
    VNXI_PY_METHOD_ROW(xfer_, result){"__enter__", vnxi_py_object_enter,
                                      METH_NOARGS, enter_doc},
    {"__exit__", xfer_release, METH_VARARGS, exit_doc},
    {NULL, NULL, 0, NULL},
};

/* -- Prepared lists ------------------------------------------------------- */

PyDoc_STRVAR(
    dlist_release_doc,
    "release($self)\n--\n\n"
    "Free the list; calling it again does nothing. Transfers created\n"
    "from it continue.");

static PyObject *
dlist_release(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    vnxi_py_dlist_release((vnxi_py_dlist_t *)op);
    Py_RETURN_NONE;
}

static PyObject *
dlist_repr(PyObject *op)
{
    vnxi_py_dlist_t *self = (vnxi_py_dlist_t *)op;
    if (self->dlist == NULL) {
        return PyUnicode_FromFormat(
            "<nixl_prepped_dlist_handle released at %p>", op);
    }
    return PyUnicode_FromFormat(
        "<nixl_prepped_dlist_handle of %zu descriptors at %p>",
        vnx_dlist_count(self->dlist), op);
}

static void
dlist_dealloc(PyObject *op)
{
    PyObject_GC_UnTrack(op);
    vnxi_py_dlist_release((vnxi_py_dlist_t *)op);
    handle_clear(op);
    vnxi_py_object_free(op);
}

PyDoc_STRVAR(
    dlist_doc,
    "A prepared list, created by prep_xfer_dlist(): descriptors that\n"
    "were checked once and are used by index.\n\n"
    "It keeps its agent alive. It is freed when it is garbage collected,\n"
    "or at once by `with handle:` and release(). It compares by\n"
    "identity.");

static PyMethodDef dlist_methods[] = {
    {"release", dlist_release, METH_NOARGS, dlist_release_doc},
    {"__enter__", vnxi_py_object_enter, METH_NOARGS, enter_doc},
    {"__exit__", dlist_release, METH_VARARGS, exit_doc},
    {NULL, NULL, 0, NULL},
};

/* -- The types ------------------------------------------------------------ */

#define HANDLE_TYPE(object, title)                         \
    static PyType_Slot object##_slots[] = {                \
        {Py_tp_doc, (void *)object##_doc},                 \
        {Py_tp_dealloc, object##_dealloc},                 \
        {Py_tp_traverse, handle_traverse},                 \
        {Py_tp_clear, handle_clear},                       \
        {Py_tp_repr, object##_repr},                       \
        {Py_tp_methods, object##_methods},                 \
        {0, NULL},                                         \
    };                                                     \
    PyType_Spec vnxi_py_##object##_spec = {                \
        .name = "vllm_nixl._core." title,                  \
        .basicsize = sizeof(vnxi_py_##object##_t),         \
        .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | \
                 Py_TPFLAGS_IMMUTABLETYPE |                \
                 Py_TPFLAGS_DISALLOW_INSTANTIATION,        \
        .slots = object##_slots,                           \
    };

HANDLE_TYPE(xfer, "nixl_xfer_handle")
HANDLE_TYPE(dlist, "nixl_prepped_dlist_handle")
