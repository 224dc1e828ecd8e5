#include "python/descriptors/descs.h"

#include <string.h>

#include "python/arguments/convert.h"
#include "python/errors.h"

static PyObject *
descs_tp_new(PyTypeObject *type, PyObject *Py_UNUSED(args),
             PyObject *Py_UNUSED(kwargs))
{
    vnxi_py_state_t *state = vnxi_py_state_of_type(type);
    if (state == NULL) {
        return NULL;
    }
    vnxi_py_descs_kind_t kind = VNXI_PY_DESCS_XFER;
    while (vnxi_py_descs_type(state, kind) != type) {
        kind++;
    }
    return (PyObject *)vnxi_py_descs_new(state, kind, VNX_MEM_DRAM);
}

/* Append `size` zeroed rows, for a constructor that was given a number. */
static bool
descs_fill(vnxi_py_descs_t *self, PyObject *size)
{
    size_t count = PyLong_AsSize_t(size);
    if (count == (size_t)-1 && PyErr_Occurred()) {
        if (PyErr_ExceptionMatches(PyExc_OverflowError)) {
            PyErr_Clear();
            vnxi_py_invalid(self->state, vnxi_py_descs_name(self),
                            VNXI_PY_NO_ROW,
                            "the number of rows is negative or too large");
        }
        return false;
    }
    return vnxi_py_descs_extend(self, NULL, count);
}

static int
descs_init(PyObject *op, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"type", "descs", "init_size", NULL};
    vnxi_py_descs_t *self = (vnxi_py_descs_t *)op;
    const char *operation = vnxi_py_descs_name(self);
    PyObject *mem, *descs = NULL, *size = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|OO", names, &mem, &descs,
                                     &size) ||
        !vnxi_py_descs_clear(self) ||
        !vnxi_py_mem_get(operation, mem, &self->mem)) {
        return -1;
    }
    if (descs != NULL && PyLong_Check(descs)) {
        size = descs;
        descs = NULL;
    }
    if (size != NULL && size != Py_None && !descs_fill(self, size)) {
        return -1;
    }
    if (descs == NULL || descs == Py_None) {
        return 0;
    }
    return vnxi_py_descs_read(self, operation, descs) ? 0 : -1;
}

static void
descs_dealloc(PyObject *op)
{
    vnxi_py_descs_t *self = (vnxi_py_descs_t *)op;
    vnxi_py_descs_clear(self);
    PyMem_RawFree(self->extras);
    PyThreadState *thread =
        vnxi_py_gil_drop_if(self->capacity >= VNXI_PY_ROWS_LARGE);
    PyMem_RawFree(self->rows);
    vnxi_py_gil_take(thread);
    vnxi_py_object_free(op);
}

static PyObject *
descs_repr(PyObject *op)
{
    vnxi_py_descs_t *self = (vnxi_py_descs_t *)op;
    return PyUnicode_FromFormat("<%s of %zu %s descriptors at %p>",
                                vnxi_py_descs_name(self), self->count,
                                vnx_mem_name(self->mem), op);
}

static bool
extras_equal(const vnxi_py_descs_t *a, const vnxi_py_descs_t *b)
{
    for (size_t i = 0; a->extras != NULL && i < a->count; i++) {
        if (PyObject_RichCompareBool(a->extras[i], b->extras[i], Py_EQ) != 1) {
            return false;
        }
    }
    return true;
}

/* Compare the rows of two pinned lists. */
static bool
rows_equal(const vnxi_py_descs_t *a, const vnxi_py_descs_t *b)
{
    size_t size = a->count * sizeof *a->rows;
    if (a->count != b->count || a->count == 0) {
        return a->count == b->count;
    }
    PyThreadState *thread =
        vnxi_py_gil_drop_if(a->count >= VNXI_PY_ROWS_LARGE);
    bool equal = memcmp(a->rows, b->rows, size) == 0;
    vnxi_py_gil_take(thread);
    return equal && extras_equal(a, b);
}

/* Returns 1 or 0; -1: exception. */
static int
contents_equal(vnxi_py_descs_t *a, vnxi_py_descs_t *b)
{
    if (a->mem != b->mem || a->count != b->count) {
        return 0;
    }
    if (a->runs != NULL && b->runs != NULL &&
        vnxi_py_runs_equal(a->runs, b->runs)) {
        return 1;
    }
    if (!vnxi_py_descs_pin(a)) {
        return -1;
    }
    int equal = -1;
    if (vnxi_py_descs_pin(b)) {
        equal = rows_equal(a, b);
        vnxi_py_descs_unpin(b);
    }
    vnxi_py_descs_unpin(a);
    return equal;
}

static PyObject *
descs_compare(PyObject *op, PyObject *other_op, int what)
{
    if (!Py_IS_TYPE(other_op, Py_TYPE(op)) ||
        (what != Py_EQ && what != Py_NE)) {
        Py_RETURN_NOTIMPLEMENTED;
    }
    int equal =
        contents_equal((vnxi_py_descs_t *)op, (vnxi_py_descs_t *)other_op);
    return equal < 0 ? NULL : PyBool_FromLong(equal == (what == Py_EQ));
}

/* -- Buffer: Nx3 of uint64, read only ------------------------------------- */

/* The shape and strides of one exported view. */
typedef struct view_layout {
    Py_ssize_t shape[2], strides[2];
} view_layout_t;

static int
descs_getbuffer(PyObject *op, Py_buffer *view, int flags)
{
    static const vnx_desc_t nothing;
    vnxi_py_descs_t *self = (vnxi_py_descs_t *)op;
    view_layout_t *layout;
    view->obj = NULL;
    if (flags & PyBUF_WRITABLE) {
        PyErr_SetString(PyExc_BufferError,
                        "a descriptor list exports read-only buffers");
        return -1;
    }
    layout = PyMem_Malloc(sizeof *layout);
    if (layout == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    if (!vnxi_py_descs_pin(self)) {
        PyMem_Free(layout);
        return -1;
    }
    Py_ssize_t count = (Py_ssize_t)self->count;
    *layout = (view_layout_t){.shape = {count, 3}, .strides = {24, 8}};
    view->buf = count > 0 ? (void *)self->rows : (void *)&nothing;
    view->len = count * (Py_ssize_t)sizeof(vnx_desc_t);
    view->itemsize = 8;
    view->readonly = 1;
    view->ndim = 2;
    view->format = flags & PyBUF_FORMAT ? "Q" : NULL;
    view->shape = flags & PyBUF_ND ? layout->shape : NULL;
    view->strides =
        (flags & PyBUF_STRIDES) == PyBUF_STRIDES ? layout->strides : NULL;
    view->suboffsets = NULL;
    view->internal = layout;
    view->obj = Py_NewRef(op);
    return 0;
}

static void
descs_releasebuffer(PyObject *op, Py_buffer *view)
{
    vnxi_py_descs_unpin((vnxi_py_descs_t *)op);
    PyMem_Free(view->internal);
}

/* -- The types ------------------------------------------------------------ */

#define DESCS_SIGNATURE "(type, descs=None, init_size=0)\n--\n\n"

PyDoc_STRVAR(
    xfer_doc,
    "nixlXferDList" DESCS_SIGNATURE
    "A list of descriptors of one memory type: (address, length, device\n"
    "id).\n\n"
    "type: a memory type, as nixl_mem_t or by name\n"
    "descs: rows as tuples, an Nx3 array of uint64 or int64, or tensors;\n"
    "    a number creates that many rows of zeros, as init_size does;\n"
    "    nixlInvalidParamError if it is negative or too large\n\n"
    "Always true, also when empty. It exports its rows as a read-only\n"
    "Nx3 buffer of uint64.");
PyDoc_STRVAR(
    reg_doc,
    "nixlRegDList" DESCS_SIGNATURE
    "A list of descriptors to register: (address, length, device id,\n"
    "meta info).\n\n"
    "The arguments are those of nixlXferDList, with 4-tuples. Meta info\n"
    "is a path or a key for storage backends: bytes (or str, kept as\n"
    "bytes), empty for rows of arrays and for tensors.");
PyDoc_STRVAR(
    remote_doc,
    "nixlRemoteDList" DESCS_SIGNATURE
    "A list of descriptors of peers: (address, length, device id, name\n"
    "of the agent).\n\n"
    "The arguments are those of nixlXferDList, with 4-tuples and without\n"
    "arrays, which raise TypeError.");

#define DESCS_SLOTS(doc, methods)                                         \
    {                                                                     \
        {Py_tp_doc, (void *)(doc)}, {Py_tp_new, descs_tp_new},            \
            {Py_tp_init, descs_init}, {Py_tp_dealloc, descs_dealloc},     \
            {Py_tp_repr, descs_repr}, {Py_tp_richcompare, descs_compare}, \
            {Py_tp_hash, PyObject_HashNotImplemented},                    \
            {Py_tp_methods, methods}, {Py_sq_item, vnxi_py_descs_item},   \
            {Py_sq_ass_item, vnxi_py_descs_set_item},                     \
            {Py_bf_getbuffer, descs_getbuffer},                           \
            {Py_bf_releasebuffer, descs_releasebuffer}, {0, NULL},        \
    }

static PyType_Slot xfer_slots[] =
    DESCS_SLOTS(xfer_doc, vnxi_py_descs_xfer_methods);
static PyType_Slot reg_slots[] =
    DESCS_SLOTS(reg_doc, vnxi_py_descs_reg_methods);
static PyType_Slot remote_slots[] =
    DESCS_SLOTS(remote_doc, vnxi_py_descs_remote_methods);

#define DESCS_SPEC(type, type_slots)                            \
    {                                                           \
        .name = "vllm_nixl._core." type,                        \
        .basicsize = sizeof(vnxi_py_descs_t),                   \
        .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, \
        .slots = (type_slots),                                  \
    }

PyType_Spec vnxi_py_descs_specs[] = {
    DESCS_SPEC("nixlXferDList", xfer_slots),
    DESCS_SPEC("nixlRegDList", reg_slots),
    DESCS_SPEC("nixlRemoteDList", remote_slots),
};
