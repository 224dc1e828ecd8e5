#include "python/agent/handles.h"

#include "python/errors.h"

/* Releasing a prepared list of at least this many bytes takes long enough to
 * let other threads run. */
#define DLIST_LARGE ((size_t)1 << 20)

static void *
handle_new(vnxi_py_agent_t *agent, vnxi_py_type_t kind)
{
    PyTypeObject *type = vnxi_py_type(agent->state, kind);
    vnxi_py_handle_t *self = (vnxi_py_handle_t *)type->tp_alloc(type, 0);
    if (self != NULL) {
        self->state = agent->state;
        self->agent = (vnxi_py_agent_t *)Py_NewRef((PyObject *)agent);
    }
    return self;
}

PyObject *
vnxi_py_xfer_new(vnxi_py_agent_t *agent, vnx_xfer_t *xfer)
{
    vnxi_py_xfer_t *self = handle_new(agent, VNXI_PY_TYPE_XFER);
    if (self == NULL) {
        vnx_xfer_abandon(xfer);
        return NULL;
    }
    self->xfer = xfer;
    return (PyObject *)self;
}

PyObject *
vnxi_py_dlist_new(vnxi_py_agent_t *agent, vnx_dlist_t *dlist)
{
    vnxi_py_dlist_t *self = handle_new(agent, VNXI_PY_TYPE_DLIST);
    if (self == NULL) {
        vnx_dlist_release(dlist);
        return NULL;
    }
    self->dlist = dlist;
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
                    ((vnxi_py_handle_t *)value)->agent == agent
                        ? "the transfer handle was released"
                        : "the transfer handle belongs to another agent");
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
                    ((vnxi_py_handle_t *)value)->agent == agent
                        ? "%s: the prepared list was released"
                        : "%s: the prepared list belongs to another agent",
                    what);
}

/* The handle is empty while the GIL is dropped, so no other thread can release
 * it too. */
bool
vnxi_py_xfer_release(vnxi_py_xfer_t *handle)
{
    vnx_xfer_t *xfer = handle->xfer;
    if (xfer == NULL) {
        return true;
    }
    vnx_error_t error;
    handle->xfer = NULL;
    /* Releasing a posted transfer may wait for the chunk that is being copied.
     */
    PyThreadState *thread =
        vnxi_py_gil_drop_if(vnx_xfer_state(xfer) == VNX_XFER_POSTED ||
                            vnxi_py_handle_may_wait(&handle->base));
    vnx_status_t status = vnx_xfer_release(xfer, &error);
    vnxi_py_gil_take(thread);
    if (status < 0) {
        handle->xfer = xfer;
        vnxi_py_raise(handle->base.state, &error);
    }
    return status >= 0;
}

void
vnxi_py_dlist_release(vnxi_py_dlist_t *handle)
{
    vnx_dlist_t *dlist = handle->dlist;
    if (dlist == NULL) {
        return;
    }
    handle->dlist = NULL;
    PyThreadState *thread =
        vnxi_py_gil_drop_if(vnx_dlist_bytes(dlist) >= DLIST_LARGE ||
                            vnxi_py_handle_may_wait(&handle->base));
    vnx_dlist_release(dlist);
    vnxi_py_gil_take(thread);
}
