/*
 * The handles that an agent gives out: nixl_xfer_handle (a transfer) and
 * nixl_prepped_dlist_handle (a prepared list).  Only an agent creates them,
 * and each keeps its agent alive.  Both compare by identity, may be released
 * more than once and in any order, and free their C object when they are
 * dropped.
 */
#ifndef VNXI_PYTHON_HANDLES_H
#define VNXI_PYTHON_HANDLES_H

#include "python/agent/agent.h"

/* The first fields of both handles. */
typedef struct vnxi_py_handle {
    PyObject_HEAD vnxi_py_state_t *state;
    vnxi_py_agent_t *agent; /* NULL only after tp_clear */
} vnxi_py_handle_t;

typedef struct vnxi_py_xfer {
    vnxi_py_handle_t base;
    vnx_xfer_t *xfer; /* owned; NULL: released */
} vnxi_py_xfer_t;

typedef struct vnxi_py_dlist {
    vnxi_py_handle_t base;
    vnx_dlist_t *dlist; /* owned; NULL: released */
} vnxi_py_dlist_t;

/* May releasing the handle wait for calls of other threads? */
static inline bool
vnxi_py_handle_may_wait(const vnxi_py_handle_t *handle)
{
    return handle->agent == NULL || vnx_agent_may_wait(handle->agent->agent);
}

/* Create a handle.  Takes ownership of the C object, even if it fails. */
PyObject *vnxi_py_xfer_new(vnxi_py_agent_t *agent, vnx_xfer_t *xfer);
PyObject *vnxi_py_dlist_new(vnxi_py_agent_t *agent, vnx_dlist_t *dlist);

/* Raise the error of an argument that is not a live handle of this agent
 * (TypeError, nixlInvalidParamError); `row` as for vnxi_py_invalid(). */
void vnxi_py_xfer_refuse(const vnxi_py_agent_t *agent, const char *operation,
                         int64_t row, PyObject *value);
void vnxi_py_dlist_refuse(const vnxi_py_agent_t *agent, const char *operation,
                          const char *what, PyObject *value);

/* The transfer of a live handle of this agent, or NULL and an exception; `row`
 * as above.  Borrowed: retain it before you drop the GIL, since another thread
 * may release the handle meanwhile. */
static inline vnx_xfer_t *
vnxi_py_xfer_of_row(const vnxi_py_agent_t *agent, const char *operation,
                    int64_t row, PyObject *value)
{
    if (vnxi_py_is(agent->state, VNXI_PY_TYPE_XFER, value) &&
        ((vnxi_py_handle_t *)value)->agent == agent &&
        ((vnxi_py_xfer_t *)value)->xfer != NULL) {
        return ((vnxi_py_xfer_t *)value)->xfer;
    }
    vnxi_py_xfer_refuse(agent, operation, row, value);
    return NULL;
}

static inline vnx_xfer_t *
vnxi_py_xfer_get(const vnxi_py_agent_t *agent, const char *operation,
                 PyObject *value)
{
    return vnxi_py_xfer_of_row(agent, operation, VNXI_PY_NO_ROW, value);
}

/* The same for a prepared list; `what` names the argument. */
static inline vnx_dlist_t *
vnxi_py_dlist_get(const vnxi_py_agent_t *agent, const char *operation,
                  const char *what, PyObject *value)
{
    if (vnxi_py_is(agent->state, VNXI_PY_TYPE_DLIST, value) &&
        ((vnxi_py_handle_t *)value)->agent == agent &&
        ((vnxi_py_dlist_t *)value)->dlist != NULL) {
        return ((vnxi_py_dlist_t *)value)->dlist;
    }
    vnxi_py_dlist_refuse(agent, operation, what, value);
    return NULL;
}

/* Release a handle; a second call has no effect.  A posted transfer is stopped
 * first.  false and an exception: the backend cannot stop it now, and the
 * handle stays valid. */
bool vnxi_py_xfer_release(vnxi_py_xfer_t *handle);
void vnxi_py_dlist_release(vnxi_py_dlist_t *handle);

#endif
