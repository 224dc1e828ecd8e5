/*
 * Descriptor lists as Python objects: nixlXferDList (address, length, device
 * id), nixlRegDList (with meta bytes, for registration) and nixlRemoteDList
 * (with the name of an agent).  One structure; the kind says what the fourth
 * item is.
 *
 * A nixlXferDList that was read from a large array at regular strides keeps
 * runs, which preparing takes as they are.  It has either runs or rows; the
 * first call that needs rows turns the one into the other for good.
 *
 * Always true, whatever they hold; unhashable; no subclasses.  While the GIL
 * is dropped over the rows, or a buffer of them is exported, `exports` is
 * above 0: there are rows, and what would move them is refused with
 * BufferError.
 */
#ifndef VNXI_PYTHON_DESCS_H
#define VNXI_PYTHON_DESCS_H

#include "python/arguments/runs.h"

typedef enum vnxi_py_descs_kind {
    VNXI_PY_DESCS_XFER,
    VNXI_PY_DESCS_REG,
    VNXI_PY_DESCS_REMOTE,
} vnxi_py_descs_kind_t;

typedef struct vnxi_py_descs {
    PyObject_HEAD vnxi_py_state_t *state;
    vnxi_py_descs_kind_t kind;
    vnx_mem_t mem;
    size_t count, capacity;
    vnx_desc_t *rows;
    PyObject **extras;    /* bytes or str a row; NULL for kind XFER */
    vnxi_py_runs_t *runs; /* not NULL: the rows, and `rows` is NULL */
    unsigned exports;
} vnxi_py_descs_t;

static inline PyTypeObject *
vnxi_py_descs_type(const vnxi_py_state_t *state, vnxi_py_descs_kind_t kind)
{
    return vnxi_py_type(state, VNXI_PY_TYPE_XFER_DESCS + (int)kind);
}

static inline bool
vnxi_py_descs_is(const vnxi_py_state_t *state, vnxi_py_descs_kind_t kind,
                 PyObject *object)
{
    return Py_IS_TYPE(object, vnxi_py_descs_type(state, kind));
}

/* A list of any kind? */
static inline bool
vnxi_py_descs_is_any(const vnxi_py_state_t *state, PyObject *object)
{
    return vnxi_py_descs_is(state, VNXI_PY_DESCS_XFER, object) ||
           vnxi_py_descs_is(state, VNXI_PY_DESCS_REG, object) ||
           vnxi_py_descs_is(state, VNXI_PY_DESCS_REMOTE, object);
}

/* An argument as a list of this kind, borrowed; `what` names it.  NULL:
 * TypeError. */
vnxi_py_descs_t *vnxi_py_descs_expect(vnxi_py_state_t *state,
                                      const char *operation, const char *what,
                                      vnxi_py_descs_kind_t kind,
                                      PyObject *value);

/* "nixlXferDList" and so on. */
static inline const char *
vnxi_py_descs_name(const vnxi_py_descs_t *self)
{
    static const char *const names[] = {"nixlXferDList", "nixlRegDList",
                                        "nixlRemoteDList"};
    return names[self->kind];
}

vnxi_py_descs_t *vnxi_py_descs_new(vnxi_py_state_t *state,
                                   vnxi_py_descs_kind_t kind, vnx_mem_t mem);

/* false and BufferError while exported. */
bool vnxi_py_descs_movable(const vnxi_py_descs_t *self);

/* Room for `count` more rows, no runs; BufferError while exported. */
bool vnxi_py_descs_reserve(vnxi_py_descs_t *self, size_t count);

/* Append rows (vnx_desc_t, aligned or not; NULL: zeros) that have no extra, or
 * an empty one.  May drop the GIL: they must stay as they are. */
bool vnxi_py_descs_extend(vnxi_py_descs_t *self, const void *rows,
                          size_t count);

/* Append one row, a tuple; `row` is its number in messages. */
bool vnxi_py_descs_append(vnxi_py_descs_t *self, const char *operation,
                          int64_t row, PyObject *item);

/* Forget all rows; BufferError while exported. */
bool vnxi_py_descs_clear(vnxi_py_descs_t *self);

/* A tuple as append() takes it, checked: *extra_p is owned, NULL for kind
 * XFER. */
bool vnxi_py_descs_row(vnxi_py_descs_t *self, const char *operation,
                       int64_t row, PyObject *item, vnx_desc_t *desc_p,
                       PyObject **extra_p);

/* read.c: append what a source holds (arguments/rows.h).  Tensors set the
 * memory type. */
bool vnxi_py_descs_read(vnxi_py_descs_t *self, const char *operation,
                        PyObject *source);

/* For get_xfer_descs() and the like: `source` itself where it is a list of
 * this kind, otherwise a new one.  `mem_type` may be NULL or None. */
vnxi_py_descs_t *vnxi_py_descs_from(vnxi_py_state_t *state,
                                    const char *operation,
                                    vnxi_py_descs_kind_t kind,
                                    PyObject *source, PyObject *mem_type);

/* Make them the rows of an empty list.  false: the list is not empty, or is
 * exported; the runs stay the caller's. */
bool vnxi_py_descs_take_runs(vnxi_py_descs_t *self, vnxi_py_runs_t *runs);

/* After this there are rows, until the GIL is dropped.  This may drop it, so
 * call it before you check indices.  false: MemoryError. */
bool vnxi_py_descs_unroll(vnxi_py_descs_t *self);

/* There are rows and they stay as they are, until vnxi_py_descs_unpin(). */
bool vnxi_py_descs_pin(vnxi_py_descs_t *self);

static inline void
vnxi_py_descs_unpin(vnxi_py_descs_t *self)
{
    self->exports--;
}

/* The rows of a nixlRegDList as the library takes them; NULL: exception.  They
 * borrow the meta info, so the list is pinned until vnxi_py_reg_rows_put(),
 * after which it may have other rows at once. */
vnx_reg_desc_t *vnxi_py_reg_rows_get(vnxi_py_descs_t *descs);
void vnxi_py_reg_rows_put(vnxi_py_descs_t *descs, vnx_reg_desc_t *rows);

/* serial.c: NIXL's bytes of a list, as its pickles hold them. */
extern const char vnxi_py_descs_getstate_doc[];
extern const char vnxi_py_descs_setstate_doc[];
PyObject *vnxi_py_descs_getstate(PyObject *op, PyObject *ignored);
PyObject *vnxi_py_descs_setstate(PyObject *op, PyObject *state);

/* methods.c */
extern PyMethodDef vnxi_py_descs_xfer_methods[];
extern PyMethodDef vnxi_py_descs_reg_methods[];
extern PyMethodDef vnxi_py_descs_remote_methods[];
PyObject *vnxi_py_descs_item(PyObject *op, Py_ssize_t i);
int vnxi_py_descs_set_item(PyObject *op, Py_ssize_t i, PyObject *value);

#endif
