#include "python/agent/handles.h"

#include "python/errors.h"

/* Unmapping a list of this many bytes takes long enough to let others run. */
#define DLIST_LARGE ((size_t)1 << 20)

PyObject *
vnxi_py_dlist_new(vnxi_py_agent_t *agent, vnx_dlist_t *dlist)
{
    PyTypeObject *type = agent->state->types[VNXI_PY_TYPE_DLIST];
    vnxi_py_dlist_t *self = (vnxi_py_dlist_t *)type->tp_alloc(type, 0);
    if (self == NULL) {
        vnx_dlist_release(dlist);
        return NULL;
    }
    self->state = agent->state;
    self->agent = (vnxi_py_agent_t *)Py_NewRef((PyObject *)agent);
    self->dlist = dlist;
    return (PyObject *)self;
}

void
vnxi_py_dlist_refuse(const vnxi_py_agent_t *agent, const char *operation,
                     const char *what, PyObject *value)
{
    if (!vnxi_py_is(agent->state, VNXI_PY_TYPE_DLIST, value)) {
        vnxi_py_wrong_type(operation, what, "a nixl_prepped_dlist_handle",
                           value);
        return;
    }
    vnxi_py_invalid(agent->state, operation, VNXI_PY_NO_ROW,
                    ((vnxi_py_dlist_t *)value)->agent == agent
                        ? "%s: the prepared list was released"
                        : "%s: the prepared list belongs to another agent",
                    what);
}

void
vnxi_py_dlist_release(vnxi_py_dlist_t *handle)
{
    vnx_dlist_t *dlist = handle->dlist;
    if (dlist == NULL) {
        return;
    }
    handle->dlist = NULL;
    if (vnx_dlist_bytes(dlist) < DLIST_LARGE) {
        vnx_dlist_release(dlist);
        return;
    }
    Py_BEGIN_ALLOW_THREADS;
    vnx_dlist_release(dlist);
    Py_END_ALLOW_THREADS;
}

static PyObject *
dlist_release(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    vnxi_py_dlist_release((vnxi_py_dlist_t *)op);
    Py_RETURN_NONE;
}

static PyObject *
dlist_enter(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    return Py_NewRef(op);
}

static PyObject *
dlist_exit(PyObject *op, PyObject *const *Py_UNUSED(args),
           Py_ssize_t Py_UNUSED(nargs))
{
    return dlist_release(op, NULL);
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

static int
dlist_traverse(PyObject *op, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(((vnxi_py_dlist_t *)op)->agent);
    return 0;
}

static int
dlist_clear(PyObject *op)
{
    Py_CLEAR(((vnxi_py_dlist_t *)op)->agent);
    return 0;
}

static void
dlist_dealloc(PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);

    PyObject_GC_UnTrack(op);
    vnxi_py_dlist_release((vnxi_py_dlist_t *)op);
    dlist_clear(op);
    type->tp_free(op);
    Py_DECREF(type);
}

PyDoc_STRVAR(dlist_doc,
             "A prepared list, made by prep_xfer_dlist() of an agent: "
             "descriptors checked once,\nthen used by index.\n\n"
             "It keeps its agent alive and frees what it holds when it is "
             "dropped; `with handle:`\nand release() do so at once. It "
             "compares by identity.");
PyDoc_STRVAR(release_doc,
             "release($self)\n--\n\n"
             "Free the prepared list; a second time nothing happens. "
             "Transfers that were made\nfrom it go on.");
PyDoc_STRVAR(enter_doc, "__enter__($self)\n--\n\nReturn the handle itself.");
PyDoc_STRVAR(exit_doc,
             "__exit__($self, *args)\n--\n\nrelease() the prepared list.");

static PyMethodDef dlist_methods[] = {
    {"release", dlist_release, METH_NOARGS, release_doc},
    {"__enter__", dlist_enter, METH_NOARGS, enter_doc},
    {"__exit__", (PyCFunction)(void (*)(void))dlist_exit, METH_FASTCALL,
     exit_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot dlist_slots[] = {
    {Py_tp_doc, (void *)dlist_doc},
    {Py_tp_dealloc, dlist_dealloc},
    {Py_tp_traverse, dlist_traverse},
    {Py_tp_clear, dlist_clear},
    {Py_tp_repr, dlist_repr},
    {Py_tp_methods, dlist_methods},
    {0, NULL},
};

static PyType_Spec dlist_spec = {
    .name = "vllm_nixl._core.nixl_prepped_dlist_handle",
    .basicsize = sizeof(vnxi_py_dlist_t),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC |
             Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = dlist_slots,
};

int
vnxi_py_dlist_add(PyObject *module)
{
    return vnxi_py_type_add(module, VNXI_PY_TYPE_DLIST, &dlist_spec);
}
