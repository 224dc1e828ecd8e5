#include "python/agent/handles.h"

#include "python/errors.h"

PyObject *
vnxi_py_xfer_new(vnxi_py_agent_t *agent, vnx_xfer_t *xfer)
{
    PyTypeObject *type = agent->state->types[VNXI_PY_TYPE_XFER];
    vnxi_py_xfer_t *self = (vnxi_py_xfer_t *)type->tp_alloc(type, 0);
    if (self == NULL) {
        vnx_xfer_abandon(xfer);
        return NULL;
    }
    self->state = agent->state;
    self->agent = (vnxi_py_agent_t *)Py_NewRef((PyObject *)agent);
    self->xfer = xfer;
    return (PyObject *)self;
}

void
vnxi_py_xfer_refuse(const vnxi_py_agent_t *agent, const char *operation,
                    int64_t row, PyObject *value)
{
    if (!vnxi_py_is(agent->state, VNXI_PY_TYPE_XFER, value)) {
        vnxi_py_wrong_type(operation, "handle", "a nixl_xfer_handle", value);
        return;
    }
    vnxi_py_invalid(agent->state, operation, row,
                    ((vnxi_py_xfer_t *)value)->agent == agent
                        ? "the transfer handle was released"
                        : "the transfer handle belongs to another agent");
}

/* Both may wait for the chunk that is being copied, so they drop the GIL where
 * the transfer is going on.  The handle is empty meanwhile: nobody else can
 * release it too. */

static vnx_status_t
xfer_release_posted(vnx_xfer_t *xfer, vnx_error_t *error)
{
    vnx_status_t status;
    Py_BEGIN_ALLOW_THREADS;
    status = vnx_xfer_release(xfer, error);
    Py_END_ALLOW_THREADS;
    return status;
}

static void
xfer_abandon(vnx_xfer_t *xfer)
{
    if (vnx_xfer_state(xfer) != VNX_XFER_POSTED) {
        vnx_xfer_abandon(xfer);
        return;
    }
    Py_BEGIN_ALLOW_THREADS;
    vnx_xfer_abandon(xfer);
    Py_END_ALLOW_THREADS;
}

bool
vnxi_py_xfer_release(vnxi_py_xfer_t *handle)
{
    vnx_xfer_t *xfer = handle->xfer;
    if (xfer == NULL) {
        return true;
    }
    vnx_error_t error;
    handle->xfer = NULL;
    vnx_status_t status = vnx_xfer_state(xfer) == VNX_XFER_POSTED
                              ? xfer_release_posted(xfer, &error)
                              : vnx_xfer_release(xfer, &error);
    if (status < 0) {
        handle->xfer = xfer;
        vnxi_py_raise(handle->state, &error);
    }
    return status >= 0;
}

static PyObject *
xfer_release(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    if (!vnxi_py_xfer_release((vnxi_py_xfer_t *)op)) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *
xfer_enter(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    return Py_NewRef(op);
}

static PyObject *
xfer_exit(PyObject *op, PyObject *const *Py_UNUSED(args),
          Py_ssize_t Py_UNUSED(nargs))
{
    return xfer_release(op, NULL);
}

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

static int
xfer_traverse(PyObject *op, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(((vnxi_py_xfer_t *)op)->agent);
    return 0;
}

static int
xfer_clear(PyObject *op)
{
    Py_CLEAR(((vnxi_py_xfer_t *)op)->agent);
    return 0;
}

static void
xfer_dealloc(PyObject *op)
{
    vnxi_py_xfer_t *self = (vnxi_py_xfer_t *)op;
    PyTypeObject *type = Py_TYPE(op);

    PyObject_GC_UnTrack(op);
    if (self->xfer != NULL) {
        xfer_abandon(self->xfer);
    }
    xfer_clear(op);
    type->tp_free(op);
    Py_DECREF(type);
}

PyDoc_STRVAR(
    xfer_doc,
    "A transfer, made by make_prepped_xfer() or initialize_xfer() of "
    "an agent.\n\nIt keeps its agent alive and frees what it holds "
    "when it is dropped; `with handle:`\nand release() do so at once. "
    "It compares by identity.");
PyDoc_STRVAR(release_doc,
             "release($self)\n--\n\n"
             "Free the transfer; a second time nothing happens.\n\n"
             "A transfer that is going on is stopped first: no byte lands "
             "after the call. Where\nthe backend cannot stop it now, an "
             "exception is raised and the handle stays valid.");
PyDoc_STRVAR(result_doc,
             "result($self, timeout=None)\n--\n\n"
             "Wait until the transfer has ended. Returns its telemetry, as "
             "get_xfer_telemetry().\n"
             "\n"
             "timeout: in seconds; None: no limit\n"
             "\n"
             "Raises what the transfer failed with, and what wait() raises: "
             "nixlTimeoutError,\n"
             "nixlNotPostedError, nixlClosedError. Other threads run "
             "meanwhile; Ctrl-C ends\n"
             "the wait.");
PyDoc_STRVAR(enter_doc, "__enter__($self)\n--\n\nReturn the handle itself.");
PyDoc_STRVAR(exit_doc,
             "__exit__($self, *args)\n--\n\nrelease() the transfer.");

static PyMethodDef xfer_methods[] = {
    {"release", xfer_release, METH_NOARGS, release_doc},
    {"result", (PyCFunction)(void (*)(void))vnxi_py_xfer_result,
     METH_FASTCALL | METH_KEYWORDS, result_doc},
    {"__enter__", xfer_enter, METH_NOARGS, enter_doc},
    {"__exit__", (PyCFunction)(void (*)(void))xfer_exit, METH_FASTCALL,
     exit_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot xfer_slots[] = {
    {Py_tp_doc, (void *)xfer_doc},
    {Py_tp_dealloc, xfer_dealloc},
    {Py_tp_traverse, xfer_traverse},
    {Py_tp_clear, xfer_clear},
    {Py_tp_repr, xfer_repr},
    {Py_tp_methods, xfer_methods},
    {0, NULL},
};

static PyType_Spec xfer_spec = {
    .name = "vllm_nixl._core.nixl_xfer_handle",
    .basicsize = sizeof(vnxi_py_xfer_t),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC |
             Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = xfer_slots,
};

int
vnxi_py_xfer_add(PyObject *module)
{
    return vnxi_py_type_add(module, VNXI_PY_TYPE_XFER, &xfer_spec);
}
