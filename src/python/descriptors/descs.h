/*
 * Descriptor lists as Python objects: nixlXferDList (address, length, device
 * id), nixlRegDList (with meta bytes, for registration) and nixlRemoteDList
 * (with the name of an agent).  All have one structure; the kind determines
 * the fourth item.
 *
 * A nixlXferDList that was read from a large array at regular strides keeps
 * runs, and preparing uses these directly.  It has either runs or rows; the
 * first call that needs rows converts it permanently.
 *
 * The truth value of a list is always true.  Lists are unhashable and have no
 * subclasses.  `exports` is above 0 while the GIL is dropped during work on
 * the rows, or a buffer of them is exported: the list then has rows, and calls
 * that would move them raise BufferError.
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
    PyObject **extras;    /* a bytes or str per row; NULL for kind XFER */
    vnxi_py_runs_t *runs; /* not NULL: the rows; then `rows` is NULL */
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

/* Is the object a list of any kind? */
static inline bool
vnxi_py_descs_is_any(const vnxi_py_state_t *state, PyObject *object)
{
    return vnxi_py_descs_is(state, VNXI_PY_DESCS_XFER, object) ||
           vnxi_py_descs_is(state, VNXI_PY_DESCS_REG, object) ||
           vnxi_py_descs_is(state, VNXI_PY_DESCS_REMOTE, object);
}

/* Get an argument as a list of this kind, borrowed; `what` names it.  NULL:
 * TypeError. */
vnxi_py_descs_t *vnxi_py_descs_expect(vnxi_py_state_t *state,
                                      const char *operation, const char *what,
                                      vnxi_py_descs_kind_t kind,
                                      PyObject *value);

/* Return the name of the type, such as "nixlXferDList". */
static inline const char *
vnxi_py_descs_name(const vnxi_py_descs_t *self)
{
    static const char *const names[] = {"nixlXferDList", "nixlRegDList",
                                        "nixlRemoteDList"};
    return names[self->kind];
}

vnxi_py_descs_t *vnxi_py_descs_new(vnxi_py_state_t *state,
                                   vnxi_py_descs_kind_t kind, vnx_mem_t mem);

/* May the rows move?  false: BufferError, because they are exported. */
bool vnxi_py_descs_movable(const vnxi_py_descs_t *self);

/* Make room for `count` more rows and convert runs to rows; BufferError while
 * exported. */
bool vnxi_py_descs_reserve(vnxi_py_descs_t *self, size_t count);

/* Append rows (vnx_desc_t, aligned or not; NULL: zeros) that have no extra
 * item, or an empty one.  May drop the GIL, so the rows must not change. */
bool vnxi_py_descs_extend(vnxi_py_descs_t *self, const void *rows,
                          size_t count);

/* Append one row, a tuple; `row` is its number in messages. */
bool vnxi_py_descs_append(vnxi_py_descs_t *self, const char *operation,
                          int64_t row, PyObject *item);

/* Remove all rows; BufferError while exported. */
bool vnxi_py_descs_clear(vnxi_py_descs_t *self);

/* Convert and check a tuple of the form that append() takes.  *extra_p is
 * owned; NULL for kind XFER. */
bool vnxi_py_descs_row(vnxi_py_descs_t *self, const char *operation,
                       int64_t row, PyObject *item, vnx_desc_t *desc_p,
                       PyObject **extra_p);

/* read.c: append the descriptors of a source (arguments/rows.h).  Tensors set
 * the memory type. */
bool vnxi_py_descs_read(vnxi_py_descs_t *self, const char *operation,
                        PyObject *source);

/* For get_xfer_descs() and similar: return `source` itself if it is a list of
 * this kind, otherwise a new list.  `mem_type` may be NULL or None. */
vnxi_py_descs_t *vnxi_py_descs_from(vnxi_py_state_t *state,
                                    const char *operation,
                                    vnxi_py_descs_kind_t kind,
                                    PyObject *source, PyObject *mem_type);

/* Give runs to an empty list.  false: the list is not empty, or is exported;
 * the caller still owns the runs. */
bool vnxi_py_descs_take_runs(vnxi_py_descs_t *self, vnxi_py_runs_t *runs);

/* Convert runs to rows.  The list has rows until the GIL is dropped.  The call
 * itself may drop the GIL, so make it before you check indices.  false:
 * MemoryError. */
bool vnxi_py_descs_unroll(vnxi_py_descs_t *self);

/* Make the list have rows that do not change or move until
 * vnxi_py_descs_unpin(). */
bool vnxi_py_descs_pin(vnxi_py_descs_t *self);

static inline void
vnxi_py_descs_unpin(vnxi_py_descs_t *self)
{
    self->exports--;
}

/* Get the rows of a nixlRegDList in the form of the library; NULL: exception.
 * They borrow the meta info, so the list is pinned until
 * vnxi_py_reg_rows_put(); its rows may change directly after that. */
vnx_reg_desc_t *vnxi_py_reg_rows_get(vnxi_py_descs_t *descs);
void vnxi_py_reg_rows_put(vnxi_py_descs_t *descs, vnx_reg_desc_t *rows);

/* serial.c: the serialised form of a list in NIXL, as its pickles contain it.
 */
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
