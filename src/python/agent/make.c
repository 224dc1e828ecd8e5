#include "python/agent/agent.h"
#include "python/agent/handles.h"
#include "python/arguments/convert.h"
#include "python/arguments/indices.h"
#include "python/descriptors/descs.h"

/* With at least this many indices the GIL is dropped; with fewer, dropping it
 * would cost more than it gains, unless the call may wait. */
#define MAKE_MANY 4096

typedef struct make {
    const char *operation;
    PyObject *local_side, *remote_side; /* handles, borrowed */
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
    bool is_long = make->local_indices.indices.count >= MAKE_MANY ||
                   vnx_agent_may_wait(agent);
    if (is_long) {
        vnx_dlist_retain(make->local);
        vnx_dlist_retain(make->remote);
    }
    PyThreadState *thread = vnxi_py_gil_drop_if(is_long);
    vnx_status_t status = vnx_xfer_create_prepped(
        agent, make->op, make->local, make->local_indices.indices,
        make->remote, make->remote_indices.indices, make->notif.data,
        make->notif.len, make->no_merge, xfer_p, error);
    if (is_long) {
        vnx_dlist_release(make->local);
        vnx_dlist_release(make->remote);
    }
    vnxi_py_gil_take(thread);
    return status;
}

/* Read the two handles, and call the library.  Everything else has been
 * converted. */
static PyObject *
make_xfer(vnxi_py_agent_t *self, make_t *make)
{
    vnx_xfer_t *xfer;
    vnx_error_t error;
    make->local = vnxi_py_dlist_get(self, make->operation, "local_xfer_side",
                                    make->local_side);
    if (make->local == NULL) {
        return NULL;
    }
    make->remote = vnxi_py_dlist_get(self, make->operation, "remote_xfer_side",
                                     make->remote_side);
    if (make->remote == NULL) {
        return NULL;
    }
    vnx_status_t status = make_call(self->agent, make, &xfer, &error);
    return status < 0 ? vnxi_py_raise(self->state, &error)
                      : vnxi_py_xfer_new(self, xfer);
}

static PyObject *
make_with_indices(vnxi_py_agent_t *self, PyObject *local_indices,
                  PyObject *remote_indices, make_t *make)
{
    PyObject *handle = NULL;
    if (!vnxi_py_indices_get(self->state, make->operation, "local_indices",
                             local_indices, &make->local_indices)) {
        return NULL;
    }
    if (vnxi_py_indices_get(self->state, make->operation, "remote_indices",
                            remote_indices, &make->remote_indices)) {
        handle = make_xfer(self, make);
        vnxi_py_indices_put(self->state, &make->remote_indices);
    }
    vnxi_py_indices_put(self->state, &make->local_indices);
    return handle;
}

VNXI_PY_AGENT_METHOD(
    make_prepped_xfer,
    (REQUIRED(operation), REQUIRED(local_xfer_side), REQUIRED(local_indices),
     REQUIRED(remote_xfer_side), REQUIRED(remote_indices),
     OPTIONAL(notif_msg, "b''"), OPTIONAL(backends, "[]"),
     OPTIONAL(skip_desc_merge, "False")),
    "Create a transfer from rows of prepared lists. Returns a\n"
    "nixl_xfer_handle.\n\n"
    "operation: 'READ' (remote to local) or 'WRITE'; another word raises\n"
    "    KeyError\n"
    "local_xfer_side, remote_xfer_side: handles of prep_xfer_dlist()\n"
    "local_indices, remote_indices: lists of int or 1-D arrays of any\n"
    "    integer type, of equal length; the two rows of a pair must have\n"
    "    the same length\n"
    "notif_msg: sent to the peer when the data has arrived (bytes or\n"
    "    str); empty: none\n"
    "backends: names of backends; empty: all\n"
    "skip_desc_merge: do not merge neighbours that are contiguous on\n"
    "    both sides\n\n"
    "nixlInvalidParamError names the offending row.")
{
    vnxi_py_backends_t backends;
    make_t make;
    int no_merge = vnxi_py_args_bool(args->skip_desc_merge, false);
    if (no_merge < 0 ||
        !vnxi_py_backends_get(operation, self->backends, args->backends,
                              &backends) ||
        !vnxi_py_op_get(self->state, operation, args->operation, &make.op) ||
        !vnxi_py_notif_get(operation, args->notif_msg, &make.notif)) {
        return NULL;
    }
    make.operation = operation;
    make.local_side = args->local_xfer_side;
    make.remote_side = args->remote_xfer_side;
    make.no_merge = no_merge > 0;
    PyObject *handle = make_with_indices(self, args->local_indices,
                                         args->remote_indices, &make);
    vnxi_py_bytes_put(&make.notif);
    return handle;
}

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
    vnx_status_t status = VNXI_PY_WITHOUT_GIL(vnx_xfer_create(
        self->agent, init->op, init->local->mem, init->local->rows,
        init->local->count, init->remote->mem, init->remote->rows,
        init->remote->count, init->peer.data, init->peer.len, init->notif.data,
        init->notif.len, init->backends, &xfer, &error));
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

VNXI_PY_AGENT_METHOD(
    initialize_xfer,
    (REQUIRED(operation), REQUIRED(local_descs), REQUIRED(remote_descs),
     REQUIRED(remote_agent), OPTIONAL(notif_msg, "b''"),
     OPTIONAL(backends, "[]")),
    "Create a transfer from descriptors, row by row, without prepared\n"
    "lists. Returns a nixl_xfer_handle.\n\n"
    "operation: 'READ' (remote to local) or 'WRITE'; another word raises\n"
    "    KeyError\n"
    "local_descs, remote_descs: nixlXferDLists of equal length\n"
    "remote_agent: the peer, or the agent's own name (str or bytes)\n"
    "notif_msg, backends: as for make_prepped_xfer()")
{
    PyObject *handle = NULL;
    vnxi_py_backends_t backends;
    init_t init;
    if (!vnxi_py_op_get(self->state, operation, args->operation, &init.op) ||
        (init.local = vnxi_py_descs_expect(self->state, operation,
                                           "local_descs", VNXI_PY_DESCS_XFER,
                                           args->local_descs)) == NULL ||
        (init.remote = vnxi_py_descs_expect(self->state, operation,
                                            "remote_descs", VNXI_PY_DESCS_XFER,
                                            args->remote_descs)) == NULL ||
        !vnxi_py_backends_get(operation, self->backends, args->backends,
                              &backends) ||
        !vnxi_py_peer_get(self->state, operation, args->remote_agent,
                          &init.peer)) {
        return NULL;
    }
    init.backends = backends.list;
    if (vnxi_py_notif_get(operation, args->notif_msg, &init.notif)) {
        handle = init_xfer(self, &init);
        vnxi_py_bytes_put(&init.notif);
    }
    vnxi_py_bytes_put(&init.peer);
    return handle;
}
