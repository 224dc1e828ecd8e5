#include "python/agent/agent.h"
#include "python/agent/handles.h"
#include "python/arguments/convert.h"
#include "python/arguments/indices.h"
#include "python/descriptors/descs.h"

/* From so many indices on the GIL is dropped; below, dropping it would cost
 * more than it gives. */
#define MAKE_MANY 4096

/* -- From prepared lists -------------------------------------------------- */

typedef struct make {
    vnx_op_t op;
    bool no_merge;
    vnxi_py_bytes_t notif;
    vnxi_py_indices_t local_indices, remote_indices;
    vnx_dlist_t *local, *remote; /* borrowed */
} make_t;

static vnx_status_t
make_call(vnx_agent_t *agent, make_t *make, vnx_xfer_t **xfer_p,
          vnx_error_t *error)
{
    return vnx_xfer_create_prepped(
        agent, make->op, make->local, make->local_indices.indices,
        make->remote, make->remote_indices.indices, make->notif.data,
        make->notif.len, make->no_merge, xfer_p, error);
}

static vnx_status_t
make_call_many(vnx_agent_t *agent, make_t *make, vnx_xfer_t **xfer_p,
               vnx_error_t *error)
{
    vnx_status_t status;
    vnx_dlist_retain(make->local);
    vnx_dlist_retain(make->remote);
    Py_BEGIN_ALLOW_THREADS;
    status = make_call(agent, make, xfer_p, error);
    vnx_dlist_release(make->local);
    vnx_dlist_release(make->remote);
    Py_END_ALLOW_THREADS;
    return status;
}

static const vnxi_py_signature_t make_signature = {
    .name = "make_prepped_xfer",
    .count = 8,
    .required = 5,
    .params = {VNXI_PY_NAME_operation, VNXI_PY_NAME_local_xfer_side,
               VNXI_PY_NAME_local_indices, VNXI_PY_NAME_remote_xfer_side,
               VNXI_PY_NAME_remote_indices, VNXI_PY_NAME_notif_msg,
               VNXI_PY_NAME_backends, VNXI_PY_NAME_skip_desc_merge},
};

/* The two lists, and the call.  Everything else has been converted. */
static PyObject *
make_xfer(vnxi_py_agent_t *self, PyObject *const *values, make_t *make)
{
    const char *name = make_signature.name;
    vnx_xfer_t *xfer;
    vnx_error_t error;
    make->local = vnxi_py_dlist_get(self, name, "local_xfer_side", values[1]);
    if (make->local == NULL) {
        return NULL;
    }
    make->remote =
        vnxi_py_dlist_get(self, name, "remote_xfer_side", values[3]);
    if (make->remote == NULL) {
        return NULL;
    }
    vnx_status_t status =
        make->local_indices.indices.count >= MAKE_MANY
            ? make_call_many(self->agent, make, &xfer, &error)
            : make_call(self->agent, make, &xfer, &error);
    return status < 0 ? vnxi_py_raise(self->state, &error)
                      : vnxi_py_xfer_new(self, xfer);
}

static PyObject *
make_with_indices(vnxi_py_agent_t *self, PyObject *const *values, make_t *make)
{
    const char *name = make_signature.name;
    PyObject *handle = NULL;
    if (!vnxi_py_indices_get(self->state, name, "local_indices", values[2],
                             &make->local_indices)) {
        return NULL;
    }
    if (vnxi_py_indices_get(self->state, name, "remote_indices", values[4],
                            &make->remote_indices)) {
        handle = make_xfer(self, values, make);
        vnxi_py_indices_put(self->state, &make->remote_indices);
    }
    vnxi_py_indices_put(self->state, &make->local_indices);
    return handle;
}

/* All but the indices and the two lists. */
static bool
make_read(vnxi_py_agent_t *self, PyObject *const *values, make_t *make)
{
    const char *name = make_signature.name;
    vnxi_py_backends_t backends;
    int no_merge = vnxi_py_args_bool(values[7], false);

    make->no_merge = no_merge > 0;
    return no_merge >= 0 &&
           vnxi_py_backends_get(name, self->backends, values[6], &backends) &&
           vnxi_py_op_get(self->state, name, values[0], &make->op) &&
           vnxi_py_notif_get(name, values[5], &make->notif);
}

VNXI_PY_METHOD(make_prepped_xfer)
{
    vnxi_py_agent_t *self = (vnxi_py_agent_t *)op;
    PyObject *values[8];
    make_t make;
    if (!vnxi_py_agent_begin(op, &make_signature, args, nargs, kwnames,
                             values) ||
        !make_read(self, values, &make)) {
        return NULL;
    }
    PyObject *handle = make_with_indices(self, values, &make);
    vnxi_py_bytes_put(&make.notif);
    return handle;
}

/* -- From descriptors ----------------------------------------------------- */

typedef struct init {
    vnx_op_t op;
    vnxi_py_descs_t *local, *remote; /* borrowed */
    vnxi_py_bytes_t peer, notif;
    const char *const *backends;
} init_t;

/* The rows of both lists are pinned. */
static PyObject *
init_pinned(vnxi_py_agent_t *self, const init_t *init)
{
    vnx_xfer_t *xfer;
    vnx_error_t error;
    vnx_status_t status;
    Py_BEGIN_ALLOW_THREADS;
    status = vnx_xfer_create(
        self->agent, init->op, init->local->mem, init->local->rows,
        init->local->count, init->remote->mem, init->remote->rows,
        init->remote->count, init->peer.data, init->peer.len, init->notif.data,
        init->notif.len, init->backends, &xfer, &error);
    Py_END_ALLOW_THREADS;
    return status < 0 ? vnxi_py_raise(self->state, &error)
                      : vnxi_py_xfer_new(self, xfer);
}

static PyObject *
init_xfer(vnxi_py_agent_t *self, const init_t *init)
{
    PyObject *handle = NULL;
    if (!vnxi_py_descs_pin(init->local)) {
        return NULL;
    }
    if (vnxi_py_descs_pin(init->remote)) {
        handle = init_pinned(self, init);
        vnxi_py_descs_unpin(init->remote);
    }
    vnxi_py_descs_unpin(init->local);
    return handle;
}

static const vnxi_py_signature_t init_signature = {
    .name = "initialize_xfer",
    .count = 6,
    .required = 4,
    .params = {VNXI_PY_NAME_operation, VNXI_PY_NAME_local_descs,
               VNXI_PY_NAME_remote_descs, VNXI_PY_NAME_remote_agent,
               VNXI_PY_NAME_notif_msg, VNXI_PY_NAME_backends},
};

static vnxi_py_descs_t *
init_descs(const vnxi_py_agent_t *self, const char *what, PyObject *value)
{
    if (!vnxi_py_descs_is(self->state, VNXI_PY_DESCS_XFER, value)) {
        vnxi_py_wrong_type(init_signature.name, what, "a nixlXferDList",
                           value);
        return NULL;
    }
    return (vnxi_py_descs_t *)value;
}

VNXI_PY_METHOD(initialize_xfer)
{
    vnxi_py_agent_t *self = (vnxi_py_agent_t *)op;
    const char *name = init_signature.name;
    PyObject *values[6], *handle = NULL;
    vnxi_py_backends_t backends;
    init_t init;
    if (!vnxi_py_agent_begin(op, &init_signature, args, nargs, kwnames,
                             values) ||
        !vnxi_py_op_get(self->state, name, values[0], &init.op) ||
        (init.local = init_descs(self, "local_descs", values[1])) == NULL ||
        (init.remote = init_descs(self, "remote_descs", values[2])) == NULL ||
        !vnxi_py_backends_get(name, self->backends, values[5], &backends) ||
        !vnxi_py_peer_get(self->state, name, values[3], &init.peer)) {
        return NULL;
    }
    init.backends = backends.list;
    if (vnxi_py_notif_get(name, values[4], &init.notif)) {
        handle = init_xfer(self, &init);
        vnxi_py_bytes_put(&init.notif);
    }
    vnxi_py_bytes_put(&init.peer);
    return handle;
}
