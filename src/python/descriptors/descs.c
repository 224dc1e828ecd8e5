#include "python/descriptors/descs.h"

#include <string.h>

#include "python/arguments/convert.h"
#include "python/arguments/rows.h"
#include "python/errors.h"

vnxi_py_descs_t *
vnxi_py_descs_new(vnxi_py_state_t *state, vnxi_py_descs_kind_t kind,
                  vnx_mem_t mem)
{
    PyTypeObject *type = vnxi_py_descs_type(state, kind);
    vnxi_py_descs_t *self = (vnxi_py_descs_t *)type->tp_alloc(type, 0);
    if (self != NULL) {
        self->state = state;
        self->kind = kind;
        self->mem = mem;
    }
    return self;
}

bool
vnxi_py_descs_movable(const vnxi_py_descs_t *self)
{
    if (self->exports > 0) {
        PyErr_SetString(PyExc_BufferError,
                        "the descriptor list is in use and cannot change");
    }
    return self->exports == 0;
}

static bool
descs_resize(vnxi_py_descs_t *self, size_t capacity)
{
    if (capacity > PY_SSIZE_T_MAX / sizeof *self->rows) {
        PyErr_NoMemory();
        return false;
    }
    vnx_desc_t *rows =
        PyMem_RawRealloc(self->rows, capacity * sizeof *self->rows);
    if (rows == NULL) {
        PyErr_NoMemory();
        return false;
    }
    self->rows = rows;
    if (self->kind != VNXI_PY_DESCS_XFER) {
        PyObject **extras =
            PyMem_RawRealloc(self->extras, capacity * sizeof *self->extras);
        if (extras == NULL) {
            PyErr_NoMemory();
            return false;
        }
        self->extras = extras;
    }
    self->capacity = capacity;
    return true;
}

bool
vnxi_py_descs_reserve(vnxi_py_descs_t *self, size_t count)
{
    if (!vnxi_py_descs_unroll(self) || !vnxi_py_descs_movable(self)) {
        return false;
    }
    if (count <= self->capacity - self->count) {
        return true;
    }
    size_t doubled = self->capacity * 2, needed;
    if (__builtin_add_overflow(self->count, count, &needed)) {
        PyErr_NoMemory();
        return false;
    }
    return descs_resize(self, needed > doubled ? needed : doubled);
}

/* The fourth item of rows that have none, `count` references to it. */
static PyObject *
extras_empty(const vnxi_py_descs_t *self, size_t count)
{
    PyObject *extra = self->kind == VNXI_PY_DESCS_REG
                          ? PyBytes_FromStringAndSize(NULL, 0)
                          : PyUnicode_FromStringAndSize(NULL, 0);
    for (size_t i = 1; extra != NULL && i < count; i++) {
        Py_INCREF(extra);
    }
    return extra;
}

/* Behind the last row, where there is room.  Needs no GIL. */
static void
rows_write(const vnxi_py_descs_t *self, const void *rows, size_t count,
           PyObject *extra)
{
    vnx_desc_t *to = self->rows + self->count;
    if (rows != NULL) {
        memcpy(to, rows, count * sizeof *to);
    } else {
        memset(to, 0, count * sizeof *to);
    }
    for (size_t i = 0; extra != NULL && i < count; i++) {
        self->extras[self->count + i] = extra;
    }
}

bool
vnxi_py_descs_extend(vnxi_py_descs_t *self, const void *rows, size_t count)
{
    PyObject *extra = NULL;
    if (!vnxi_py_descs_reserve(self, count)) {
        return false;
    }
    if (count == 0) {
        return true;
    }
    if (self->kind != VNXI_PY_DESCS_XFER) {
        extra = extras_empty(self, count);
        if (extra == NULL) {
            return false;
        }
    }
    if (count < VNXI_PY_ROWS_LARGE) {
        rows_write(self, rows, count, extra);
    } else {
        self->exports++;
        Py_BEGIN_ALLOW_THREADS;
        rows_write(self, rows, count, extra);
        Py_END_ALLOW_THREADS;
        self->exports--;
    }
    self->count += count;
    return true;
}

/* Meta info is kept as bytes, the name of an agent as str, whichever of the
 * two it came as.  Takes `*extra_p`. */
static bool
extra_normalize(const vnxi_py_descs_t *self, const char *operation,
                int64_t row, PyObject **extra_p)
{
    bool is_reg = self->kind == VNXI_PY_DESCS_REG;
    PyObject *extra = *extra_p;
    if (is_reg ? PyBytes_CheckExact(extra) : PyUnicode_CheckExact(extra)) {
        return true;
    }
    *extra_p = NULL;
    if (PyUnicode_Check(extra)) {
        *extra_p = is_reg ? PyUnicode_AsEncodedString(extra, "utf-8",
                                                      "surrogateescape")
                          : PyUnicode_FromObject(extra);
    } else if (PyBytes_Check(extra)) {
        *extra_p = is_reg ? PyBytes_FromObject(extra)
                          : vnxi_py_name_new(PyBytes_AS_STRING(extra),
                                             (size_t)PyBytes_GET_SIZE(extra));
    } else {
        PyErr_Format(PyExc_TypeError,
                     "%s: row %lld: %s must be str or bytes, not %.200s",
                     operation, (long long)row,
                     is_reg ? "the meta info" : "the name of the agent",
                     Py_TYPE(extra)->tp_name);
    }
    Py_DECREF(extra);
    return *extra_p != NULL;
}

bool
vnxi_py_descs_row(vnxi_py_descs_t *self, const char *operation, int64_t row,
                  PyObject *item, vnx_desc_t *desc_p, PyObject **extra_p)
{
    *extra_p = NULL;
    if (self->kind == VNXI_PY_DESCS_XFER) {
        return vnxi_py_row_get(self->state, operation, row, item, 3, desc_p,
                               NULL);
    }
    return vnxi_py_row_get(self->state, operation, row, item, 4, desc_p,
                           extra_p) &&
           extra_normalize(self, operation, row, extra_p);
}

bool
vnxi_py_descs_append(vnxi_py_descs_t *self, const char *operation, int64_t row,
                     PyObject *item)
{
    vnx_desc_t desc;
    PyObject *extra;
    if (!vnxi_py_descs_row(self, operation, row, item, &desc, &extra)) {
        return false;
    }
    if (!vnxi_py_descs_reserve(self, 1)) {
        Py_XDECREF(extra);
        return false;
    }
    if (self->kind != VNXI_PY_DESCS_XFER) {
        self->extras[self->count] = extra;
    }
    self->rows[self->count++] = desc;
    return true;
}

bool
vnxi_py_descs_clear(vnxi_py_descs_t *self)
{
    if (!vnxi_py_descs_movable(self)) {
        return false;
    }
    size_t count = self->count;
    self->count = 0;
    vnxi_py_runs_release(self->runs);
    self->runs = NULL;
    for (size_t i = 0; self->extras != NULL && i < count; i++) {
        Py_DECREF(self->extras[i]);
    }
    return true;
}

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

/* `size` zeroed rows: the constructor's form with a number. */
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
    PyTypeObject *type = Py_TYPE(op);

    vnxi_py_descs_clear(self);
    PyMem_RawFree(self->extras);
    if (self->capacity < VNXI_PY_ROWS_LARGE) {
        PyMem_RawFree(self->rows);
    } else {
        Py_BEGIN_ALLOW_THREADS;
        PyMem_RawFree(self->rows);
        Py_END_ALLOW_THREADS;
    }
    type->tp_free(op);
    Py_DECREF(type);
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

/* Both are pinned. */
static bool
rows_equal(const vnxi_py_descs_t *a, const vnxi_py_descs_t *b)
{
    size_t size = a->count * sizeof *a->rows;
    bool equal;
    if (a->count != b->count || a->count == 0) {
        return a->count == b->count;
    }
    if (a->count < VNXI_PY_ROWS_LARGE) {
        equal = memcmp(a->rows, b->rows, size) == 0;
    } else {
        Py_BEGIN_ALLOW_THREADS;
        equal = memcmp(a->rows, b->rows, size) == 0;
        Py_END_ALLOW_THREADS;
    }
    return equal && extras_equal(a, b);
}

/* 1 or 0; -1: exception. */
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

#define DESCS_DOC(name, item)                                                \
    name "(type, descs=None, init_size=0)\n--\n\n"                           \
         "A list of descriptors of one memory type: " item ",\n"             \
         "integers in bytes.\n\n"                                            \
         "type: a memory type, as nixl_mem_t or by name\n"                   \
         "descs: rows as tuples, an Nx3 array of uint64 or int64, or "       \
         "tensors; a\n"                                                      \
         "    number makes so many rows of zeros, as init_size does;\n"      \
         "    nixlInvalidParamError where it is negative or too large\n\n"   \
         "Always true, also when empty. It exports its rows as a read-only " \
         "Nx3\n"                                                             \
         "buffer of uint64."

PyDoc_STRVAR(xfer_doc,
             DESCS_DOC("nixlXferDList", "(address, length, device id)"));
PyDoc_STRVAR(reg_doc, DESCS_DOC("nixlRegDList",
                                "(address, length, device id, meta info)"));
PyDoc_STRVAR(remote_doc,
             DESCS_DOC("nixlRemoteDList",
                       "(address, length, device id, name of the agent)"));

#define DESCS_SLOTS(doc, methods)                                          \
    {                                                                      \
        {Py_tp_doc, (void *)(doc)}, {Py_tp_new, descs_tp_new},             \
            {Py_tp_init, descs_init}, {Py_tp_dealloc, descs_dealloc},      \
            {Py_tp_repr, descs_repr}, {Py_tp_richcompare, descs_compare},  \
            {Py_tp_hash, PyObject_HashNotImplemented},                     \
            {Py_tp_methods, methods}, {Py_sq_item, vnxi_py_descs_item},    \
            {Py_sq_ass_item, vnxi_py_descs_set_item},                      \
            {Py_bf_getbuffer, vnxi_py_descs_getbuffer},                    \
            {Py_bf_releasebuffer, vnxi_py_descs_releasebuffer}, {0, NULL}, \
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

static PyType_Spec descs_specs[] = {
    DESCS_SPEC("nixlXferDList", xfer_slots),
    DESCS_SPEC("nixlRegDList", reg_slots),
    DESCS_SPEC("nixlRemoteDList", remote_slots),
};

int
vnxi_py_descs_add(PyObject *module)
{
    for (int kind = 0; kind < 3; kind++) {
        if (vnxi_py_type_add(module, VNXI_PY_TYPE_XFER_DESCS + kind,
                             &descs_specs[kind]) < 0) {
            return -1;
        }
    }
    return 0;
}
