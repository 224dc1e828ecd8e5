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

vnxi_py_descs_t *
vnxi_py_descs_expect(vnxi_py_state_t *state, const char *operation,
                     const char *what, vnxi_py_descs_kind_t kind,
                     PyObject *value)
{
    static const char *const expected[] = {
        "a nixlXferDList (get_xfer_descs() makes one)",
        "a nixlRegDList (register_memory() returns one)",
        "a nixlRemoteDList (get_remote_descs() makes one)"};
    if (!vnxi_py_descs_is(state, kind, value)) {
        vnxi_py_wrong_type(operation, what, expected[kind], value);
        return NULL;
    }
    return (vnxi_py_descs_t *)value;
}

/* -- Runs and rows -------------------------------------------------------- */

bool
vnxi_py_descs_take_runs(vnxi_py_descs_t *self, vnxi_py_runs_t *runs)
{
    if (self->count > 0 || self->exports > 0) {
        return false;
    }
    PyMem_RawFree(self->rows);
    self->rows = NULL;
    self->capacity = 0;
    self->runs = runs;
    self->count = runs->rows;
    return true;
}

/* Drops the GIL if unrolling takes long. */
static vnx_desc_t *
rows_of(const vnxi_py_runs_t *runs)
{
    PyThreadState *thread =
        vnxi_py_gil_drop_if(runs->rows >= VNXI_PY_ROWS_LARGE);
    vnx_desc_t *rows = PyMem_RawMalloc(runs->rows * sizeof *rows);
    if (rows != NULL) {
        vnxi_py_runs_unroll(runs, &(vnxi_py_runs_at_t){0}, rows, runs->rows);
    }
    vnxi_py_gil_take(thread);
    return rows;
}

bool
vnxi_py_descs_unroll(vnxi_py_descs_t *self)
{
    if (self->runs == NULL) {
        return true;
    }
    /* Another thread may do the same meanwhile, or give the list other runs,
     * or end an iterator that holds the only reference to the list. */
    Py_INCREF((PyObject *)self);
    bool good = true;
    while (good && self->runs != NULL) {
        vnxi_py_runs_t *runs = vnxi_py_runs_retain(self->runs);
        vnx_desc_t *rows = rows_of(runs);
        if (rows != NULL && self->runs == runs) {
            self->rows = rows;
            self->capacity = runs->rows;
            self->runs = NULL;
            vnxi_py_runs_release(runs);
        } else {
            PyMem_RawFree(rows);
        }
        vnxi_py_runs_release(runs);
        if (rows == NULL) {
            PyErr_NoMemory();
            good = false;
        }
    }
    Py_DECREF((PyObject *)self);
    return good;
}

bool
vnxi_py_descs_pin(vnxi_py_descs_t *self)
{
    if (!vnxi_py_descs_unroll(self)) {
        return false;
    }
    self->exports++;
    return true;
}

/* -- Changes -------------------------------------------------------------- */

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
        return PyErr_NoMemory();
    }
    vnx_desc_t *rows =
        PyMem_RawRealloc(self->rows, capacity * sizeof *self->rows);
    if (rows == NULL) {
        return PyErr_NoMemory();
    }
    self->rows = rows;
    if (self->kind != VNXI_PY_DESCS_XFER) {
        PyObject **extras =
            PyMem_RawRealloc(self->extras, capacity * sizeof *self->extras);
        if (extras == NULL) {
            return PyErr_NoMemory();
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
        return PyErr_NoMemory();
    }
    return descs_resize(self, needed > doubled ? needed : doubled);
}

/* Make the fourth item for rows that have none: `count` references to an empty
 * one. */
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

/* Write rows after the last one; the list has room.  Needs no GIL. */
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
    self->exports++;
    PyThreadState *thread = vnxi_py_gil_drop_if(count >= VNXI_PY_ROWS_LARGE);
    rows_write(self, rows, count, extra);
    vnxi_py_gil_take(thread);
    self->exports--;
    self->count += count;
    return true;
}

/* Convert meta info to bytes and the name of an agent to str.  Takes
 * `*extra_p`. */
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
        return vnxi_py_row_get(self->state, operation, row, item, NULL, desc_p,
                               NULL);
    }
    const char *fourth =
        self->kind == VNXI_PY_DESCS_REG ? VNXI_PY_META : VNXI_PY_AGENT_NAME;
    return vnxi_py_row_get(self->state, operation, row, item, fourth, desc_p,
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

/* -- Rows for the library ------------------------------------------------- */

/* Needs no GIL: the list is pinned, and bytes never change. */
static void
reg_rows_fill(const vnxi_py_descs_t *descs, vnx_reg_desc_t *rows)
{
    for (size_t i = 0; i < descs->count; i++) {
        const PyBytesObject *meta = (const PyBytesObject *)descs->extras[i];
        rows[i] = (vnx_reg_desc_t){
            .desc = descs->rows[i],
            .meta = meta->ob_sval,
            .meta_len = (size_t)Py_SIZE(meta),
        };
    }
}

vnx_reg_desc_t *
vnxi_py_reg_rows_get(vnxi_py_descs_t *descs)
{
    vnx_reg_desc_t *rows = PyMem_RawMalloc((descs->count + 1) * sizeof *rows);
    if (rows == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    descs->exports++;
    PyThreadState *thread =
        vnxi_py_gil_drop_if(descs->count >= VNXI_PY_ROWS_LARGE);
    reg_rows_fill(descs, rows);
    vnxi_py_gil_take(thread);
    return rows;
}

void
vnxi_py_reg_rows_put(vnxi_py_descs_t *descs, vnx_reg_desc_t *rows)
{
    vnxi_py_descs_unpin(descs);
    PyMem_RawFree(rows);
}
