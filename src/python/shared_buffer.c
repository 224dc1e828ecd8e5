#include "python/arguments/convert.h"
#include "python/errors.h"
#include "python/module.h"

typedef struct shared_buffer {
    PyObject_HEAD vnx_shared_buffer_t *buffer; /* owned; constant */
} shared_buffer_t;

static PyObject *
buffer_create(vnxi_py_state_t *state, PyTypeObject *type, uint64_t nbytes)
{
    vnx_error_t error;
    vnx_shared_buffer_t *buffer;
    vnx_status_t status =
        VNXI_PY_WITHOUT_GIL(vnx_shared_buffer_create(nbytes, &buffer, &error));
    if (status < 0) {
        return vnxi_py_raise(state, &error);
    }
    shared_buffer_t *self = (shared_buffer_t *)type->tp_alloc(type, 0);
    if (self == NULL) {
        vnx_shared_buffer_free(buffer);
        return NULL;
    }
    self->buffer = buffer;
    return (PyObject *)self;
}

static PyObject *
buffer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"nbytes", NULL};
    PyObject *value;
    uint64_t nbytes;
    vnxi_py_state_t *state = vnxi_py_state_of_type(type);
    if (state == NULL || !PyArg_ParseTupleAndKeywords(
                             args, kwargs, "O:shared_buffer", names, &value)) {
        return NULL;
    }
    return vnxi_py_int_between(state, "shared_buffer", "nbytes", value, 1,
                               PY_SSIZE_T_MAX, &nbytes)
               ? buffer_create(state, type, nbytes)
               : NULL;
}

static void
buffer_dealloc(PyObject *op)
{
    shared_buffer_t *self = (shared_buffer_t *)op;
    PyThreadState *thread = vnxi_py_gil_drop_if(true);
    vnx_shared_buffer_free(self->buffer);
    vnxi_py_gil_take(thread);
    vnxi_py_object_free(op);
}

static Py_ssize_t
buffer_length(PyObject *op)
{
    return (Py_ssize_t)vnx_shared_buffer_size(((shared_buffer_t *)op)->buffer);
}

/* A view holds a reference to the object, so the memory outlives it. */
static int
buffer_getbuffer(PyObject *op, Py_buffer *view, int flags)
{
    void *data = vnx_shared_buffer_data(((shared_buffer_t *)op)->buffer);
    return PyBuffer_FillInfo(view, op, data, buffer_length(op), 0, flags);
}

static PyObject *
buffer_repr(PyObject *op)
{
    return PyUnicode_FromFormat(
        "<shared_buffer of %zd bytes at %p>", buffer_length(op),
        vnx_shared_buffer_data(((shared_buffer_t *)op)->buffer));
}

static PyObject *
buffer_get_address(PyObject *op, void *Py_UNUSED(closure))
{
    return PyLong_FromVoidPtr(
        vnx_shared_buffer_data(((shared_buffer_t *)op)->buffer));
}

static PyObject *
buffer_get_nbytes(PyObject *op, void *Py_UNUSED(closure))
{
    return PyLong_FromSsize_t(buffer_length(op));
}

PyDoc_STRVAR(
    buffer_doc,
    "shared_buffer(nbytes)\n--\n\n"
    "Zeroed memory that peers on this host can map, so that the kernel\n"
    "need not copy it.\n\n"
    "A writable buffer of bytes. memoryview(), numpy.frombuffer() and\n"
    "torch.frombuffer() use it without a copy and keep it alive.\n"
    "Deregister it before it is garbage collected.\n\n"
    "nbytes: its size, above 0");

static PyGetSetDef buffer_getset[] = {
    {"address", buffer_get_address, NULL, "its address (int)", NULL},
    {"nbytes", buffer_get_nbytes, NULL, "its size in bytes (int)", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot buffer_slots[] = {
    {Py_tp_doc, (void *)buffer_doc},     {Py_tp_new, buffer_new},
    {Py_tp_dealloc, buffer_dealloc},     {Py_tp_repr, buffer_repr},
    {Py_tp_getset, buffer_getset},       {Py_sq_length, buffer_length},
    {Py_bf_getbuffer, buffer_getbuffer}, {0, NULL},
};

PyType_Spec vnxi_py_shared_buffer_spec = {
    .name = "vllm_nixl._core.shared_buffer",
    .basicsize = sizeof(shared_buffer_t),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = buffer_slots,
};
