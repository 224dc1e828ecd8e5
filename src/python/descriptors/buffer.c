#include "python/descriptors/descs.h"

/* Shape and strides of one exported view. */
typedef struct view_layout {
    Py_ssize_t shape[2], strides[2];
} view_layout_t;

int
vnxi_py_descs_getbuffer(PyObject *op, Py_buffer *view, int flags)
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

void
vnxi_py_descs_releasebuffer(PyObject *op, Py_buffer *view)
{
    vnxi_py_descs_unpin((vnxi_py_descs_t *)op);
    PyMem_Free(view->internal);
}
