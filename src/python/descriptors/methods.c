#include "python/descriptors/descs.h"

#include <string.h>

#include "python/arguments/convert.h"
#include "python/arguments/rows.h"
#include "python/errors.h"

static Py_ssize_t
index_check(vnxi_py_descs_t *self, Py_ssize_t i)
{
    if (i < 0 || (size_t)i >= self->count) {
        PyErr_Format(PyExc_IndexError,
                     "index %zd is out of range of a list of %zu descriptors",
                     i, self->count);
        return -1;
    }
    return i;
}

static PyObject *
row_tuple(const vnxi_py_descs_t *self, size_t i)
{
    const vnx_desc_t *row = &self->rows[i];
    if (self->kind == VNXI_PY_DESCS_XFER) {
        return Py_BuildValue("(KKK)", (unsigned long long)row->addr,
                             (unsigned long long)row->len,
                             (unsigned long long)row->dev);
    }
    /* Take a reference: creating the tuple may run code that drops the row. */
    return Py_BuildValue(
        "(KKKN)", (unsigned long long)row->addr, (unsigned long long)row->len,
        (unsigned long long)row->dev, Py_NewRef(self->extras[i]));
}

PyObject *
vnxi_py_descs_item(PyObject *op, Py_ssize_t i)
{
    vnxi_py_descs_t *self = (vnxi_py_descs_t *)op;
    PyObject *row = NULL;
    /* Unrolling drops the GIL, and creating the tuple may run any code: an
     * iterator that holds the only reference to the list may end meanwhile. */
    Py_INCREF(op);
    if (vnxi_py_descs_unroll(self) && index_check(self, i) >= 0) {
        row = row_tuple(self, (size_t)i);
    }
    Py_DECREF(op);
    return row;
}

int
vnxi_py_descs_set_item(PyObject *op, Py_ssize_t i, PyObject *value)
{
    vnxi_py_descs_t *self = (vnxi_py_descs_t *)op;
    vnx_desc_t desc;
    PyObject *extra;
    if (value == NULL) {
        PyErr_SetString(PyExc_TypeError, "use remDesc() to remove a "
                                         "descriptor");
        return -1;
    }
    if (!vnxi_py_descs_row(self, "__setitem__", i, value, &desc, &extra)) {
        return -1;
    }
    /* Checked after the conversion, because that may have run any code. */
    if (!vnxi_py_descs_unroll(self) || index_check(self, i) < 0 ||
        !vnxi_py_descs_movable(self)) {
        Py_XDECREF(extra);
        return -1;
    }
    self->rows[i] = desc;
    if (self->kind != VNXI_PY_DESCS_XFER) {
        PyObject *old = self->extras[i];
        self->extras[i] = extra;
        Py_DECREF(old);
    }
    return 0;
}

PyDoc_STRVAR(append_doc, "append($self, desc, /)\n--\n\n"
                         "Add a descriptor, a tuple, at the end.");

PyDoc_STRVAR(add_doc, "addDesc($self, desc, /)\n--\n\n"
                      "Add a descriptor, a tuple, at the end.");

static PyObject *
descs_append(PyObject *op, PyObject *item)
{
    vnxi_py_descs_t *self = (vnxi_py_descs_t *)op;
    return vnxi_py_descs_append(self, "append", (int64_t)self->count, item)
               ? Py_NewRef(Py_None)
               : NULL;
}

PyDoc_STRVAR(clear_doc, "clear($self)\n--\n\nRemove all descriptors.");

static PyObject *
descs_clear(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    return vnxi_py_descs_clear((vnxi_py_descs_t *)op) ? Py_NewRef(Py_None)
                                                      : NULL;
}

PyDoc_STRVAR(count_doc, "descCount($self)\n--\n\n"
                        "The number of descriptors.");

static PyObject *
descs_count(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromSize_t(((vnxi_py_descs_t *)op)->count);
}

PyDoc_STRVAR(is_empty_doc, "isEmpty($self)\n--\n\n"
                           "Return whether the list is empty.");

static PyObject *
descs_is_empty(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(((vnxi_py_descs_t *)op)->count == 0);
}

PyDoc_STRVAR(get_type_doc, "getType($self)\n--\n\n"
                           "The memory type, a member of nixl_mem_t.");

static PyObject *
descs_get_type(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    vnxi_py_descs_t *self = (vnxi_py_descs_t *)op;
    return Py_NewRef(self->state->mems[self->mem]);
}

PyDoc_STRVAR(
    index_doc,
    "index($self, desc, /)\n--\n\n"
    "The index of the first descriptor with this address, length and\n"
    "device id; nixlNotFoundError.");

/* Find a row by address, length and device id, as in stock NIXL; meta info or
 * a name, if given, is checked but not compared. */
static PyObject *
descs_index(PyObject *op, PyObject *item)
{
    vnxi_py_descs_t *self = (vnxi_py_descs_t *)op;
    vnx_desc_t desc;
    PyObject *extra;
    if (!vnxi_py_descs_row(self, "index", VNXI_PY_NO_ROW, item, &desc,
                           &extra)) {
        return NULL;
    }
    Py_XDECREF(extra);
    if (!vnxi_py_descs_unroll(self)) {
        return NULL;
    }
    for (size_t i = 0; i < self->count; i++) {
        if (memcmp(&self->rows[i], &desc, sizeof desc) == 0) {
            return PyLong_FromSize_t(i);
        }
    }
    vnx_error_t error;
    vnxi_error_set(&error, VNX_ERR_NOT_FOUND, "index",
                   "the list has no descriptor with address 0x%llx, length "
                   "%llu, device %llu",
                   (unsigned long long)desc.addr, (unsigned long long)desc.len,
                   (unsigned long long)desc.dev);
    return vnxi_py_raise(self->state, &error);
}

PyDoc_STRVAR(rem_doc,
             "remDesc($self, index, /)\n--\n\n"
             "Remove a descriptor; IndexError if the index is out of range.");

static PyObject *
descs_rem(PyObject *op, PyObject *item)
{
    vnxi_py_descs_t *self = (vnxi_py_descs_t *)op;
    Py_ssize_t i = PyNumber_AsSsize_t(item, PyExc_IndexError);
    if ((i == -1 && PyErr_Occurred()) || !vnxi_py_descs_unroll(self) ||
        index_check(self, i) < 0 || !vnxi_py_descs_movable(self)) {
        return NULL;
    }
    PyObject *extra = self->extras != NULL ? self->extras[i] : NULL;
    size_t after = --self->count - (size_t)i;
    memmove(self->rows + i, self->rows + i + 1, after * sizeof *self->rows);
    if (extra != NULL) {
        memmove(self->extras + i, self->extras + i + 1,
                after * sizeof *self->extras);
        Py_DECREF(extra);
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(print_doc, "print($self)\n--\n\nPrint the list on stdout.");

static PyObject *
descs_print(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    vnxi_py_descs_t *self = (vnxi_py_descs_t *)op;
    if (!vnxi_py_descs_pin(self)) {
        return NULL;
    }
    PySys_WriteStdout("DescList of mem type %s: %zu descriptors\n",
                      vnx_mem_name(self->mem), self->count);
    for (size_t i = 0; i < self->count; i++) {
        const vnx_desc_t *row = &self->rows[i];
        PySys_WriteStdout("%zu: address 0x%llx, length %llu, device %llu\n", i,
                          (unsigned long long)row->addr,
                          (unsigned long long)row->len,
                          (unsigned long long)row->dev);
    }
    vnxi_py_descs_unpin(self);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(trim_doc, "trim($self)\n--\n\n"
                       "A copy without meta info (nixlXferDList).");

static PyObject *
descs_trim(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    vnxi_py_descs_t *self = (vnxi_py_descs_t *)op;
    vnxi_py_descs_t *trimmed =
        vnxi_py_descs_new(self->state, VNXI_PY_DESCS_XFER, self->mem);
    bool good = trimmed != NULL && vnxi_py_descs_pin(self);
    if (good) {
        good = vnxi_py_descs_extend(trimmed, self->rows, self->count);
        vnxi_py_descs_unpin(self);
    }
    if (!good) {
        Py_CLEAR(trimmed);
    }
    return (PyObject *)trimmed;
}

static bool
copy_rows(vnxi_py_descs_t *copy, const vnxi_py_descs_t *self)
{
    if (self->kind == VNXI_PY_DESCS_XFER) {
        return vnxi_py_descs_extend(copy, self->rows, self->count);
    }
    if (!vnxi_py_descs_reserve(copy, self->count)) {
        return false;
    }
    for (size_t i = 0; i < self->count; i++) {
        copy->extras[i] = Py_NewRef(self->extras[i]);
        copy->rows[i] = self->rows[i];
        copy->count++;
    }
    return true;
}

/* Copy the contents into an empty list. */
static bool
copy_contents(vnxi_py_descs_t *copy, vnxi_py_descs_t *self)
{
    if (self->runs != NULL && vnxi_py_descs_take_runs(copy, self->runs)) {
        vnxi_py_runs_retain(self->runs);
        return true;
    }
    if (!vnxi_py_descs_pin(self)) {
        return false;
    }
    bool good = copy_rows(copy, self);
    vnxi_py_descs_unpin(self);
    return good;
}

PyDoc_STRVAR(copy_doc, "__copy__($self)\n--\n\n"
                       "A copy of the list.");

PyDoc_STRVAR(deepcopy_doc, "__deepcopy__($self, memo, /)\n--\n\n"
                           "A copy of the list.");

/* The items are numbers, bytes and str, so a shallow copy is also a deep one.
 */
static PyObject *
descs_copy(PyObject *op, PyObject *Py_UNUSED(memo))
{
    vnxi_py_descs_t *self = (vnxi_py_descs_t *)op;
    vnxi_py_descs_t *copy =
        vnxi_py_descs_new(self->state, self->kind, self->mem);
    if (copy != NULL && !copy_contents(copy, self)) {
        Py_CLEAR(copy);
    }
    return (PyObject *)copy;
}

#define METHODS_COMMON                                          \
    {"append", descs_append, METH_O, append_doc},               \
        {"addDesc", descs_append, METH_O, add_doc},             \
        {"clear", descs_clear, METH_NOARGS, clear_doc},         \
        {"descCount", descs_count, METH_NOARGS, count_doc},     \
        {"isEmpty", descs_is_empty, METH_NOARGS, is_empty_doc}, \
        {"getType", descs_get_type, METH_NOARGS, get_type_doc}, \
        {"index", descs_index, METH_O, index_doc},              \
        {"remDesc", descs_rem, METH_O, rem_doc},                \
        {"print", descs_print, METH_NOARGS, print_doc},         \
        {"__copy__", descs_copy, METH_NOARGS, copy_doc},        \
    {                                                           \
        "__deepcopy__", descs_copy, METH_O, deepcopy_doc        \
    }

#define METHODS_PICKLE                                    \
    {"__getstate__", vnxi_py_descs_getstate, METH_NOARGS, \
     vnxi_py_descs_getstate_doc},                         \
    {                                                     \
        "__setstate__", vnxi_py_descs_setstate, METH_O,   \
            vnxi_py_descs_setstate_doc                    \
    }

PyMethodDef vnxi_py_descs_xfer_methods[] = {
    METHODS_COMMON,
    METHODS_PICKLE,
    {NULL, NULL, 0, NULL},
};

PyMethodDef vnxi_py_descs_reg_methods[] = {
    METHODS_COMMON,
    METHODS_PICKLE,
    {"trim", descs_trim, METH_NOARGS, trim_doc},
    {NULL, NULL, 0, NULL},
};

PyMethodDef vnxi_py_descs_remote_methods[] = {
    METHODS_COMMON,
    {NULL, NULL, 0, NULL},
};
