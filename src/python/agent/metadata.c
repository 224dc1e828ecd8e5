#include "python/agent/agent.h"

#include <stdlib.h>
#include <string.h>

#include "python/arguments/convert.h"
#include "python/descriptors/descs.h"

/* Takes ownership of `bytes`. */
static PyObject *
bytes_object(vnx_bytes_t *bytes)
{
    PyObject *object =
        PyBytes_FromStringAndSize(bytes->data, (Py_ssize_t)bytes->len);
    free(bytes->data);
    return object;
}

VNXI_PY_AGENT_METHOD(
    get_agent_metadata, (),
    "The agent's current metadata (bytes): everything that a peer needs\n"
    "to reach its registered memory.")
{
    vnx_bytes_t bytes;
    vnx_error_t error;
    vnx_status_t status =
        VNXI_PY_WITHOUT_GIL(vnx_agent_metadata(self->agent, &bytes, &error));
    return status < 0 ? vnxi_py_raise(self->state, &error)
                      : bytes_object(&bytes);
}

static bool
partial_metadata(vnxi_py_agent_t *self, vnxi_py_descs_t *descs,
                 bool with_connection, const char *const *backends,
                 vnx_bytes_t *metadata_p)
{
    vnx_error_t error;
    vnx_reg_desc_t *rows = vnxi_py_reg_rows_get(descs);
    if (rows == NULL) {
        return false;
    }
    vnx_status_t status = VNXI_PY_WITHOUT_GIL(vnx_agent_partial_metadata(
        self->agent, descs->mem, rows, descs->count, with_connection, backends,
        metadata_p, &error));
    vnxi_py_reg_rows_put(descs, rows);
    return status >= 0 || vnxi_py_raise(self->state, &error);
}

bool
vnxi_py_partial_metadata(vnxi_py_agent_t *self, const char *operation,
                         PyObject *descs_arg, PyObject *inc_conn_info,
                         PyObject *backends_arg, vnx_bytes_t *metadata_p)
{
    vnxi_py_backends_t backends;
    if (!vnxi_py_backends_get(operation, self->backends, backends_arg,
                              &backends)) {
        return false;
    }
    int with_connection = vnxi_py_args_bool(inc_conn_info, false);
    if (with_connection < 0) {
        return false;
    }
    vnxi_py_descs_t *descs = vnxi_py_descs_expect(
        self->state, operation, "descs", VNXI_PY_DESCS_REG, descs_arg);
    return descs != NULL && partial_metadata(self, descs, with_connection > 0,
                                             backends.list, metadata_p);
}

VNXI_PY_AGENT_METHOD(
    get_partial_agent_metadata,
    (REQUIRED(descs), OPTIONAL(inc_conn_info, "False"),
     OPTIONAL(backends, "[]")),
    "Metadata of the given regions only (bytes).\n\n"
    "descs: a nixlRegDList of registered regions; empty: connection data\n"
    "    only\n"
    "inc_conn_info: include connection data\n"
    "backends: names of backends; empty: all")
{
    vnx_bytes_t metadata;
    if (!vnxi_py_partial_metadata(self, operation, args->descs,
                                  args->inc_conn_info, args->backends,
                                  &metadata)) {
        return NULL;
    }
    return bytes_object(&metadata);
}

/* Get a blob to load.  A buffer that another thread or process may change is
 * copied, so that the bytes that are loaded are those that were checked. */
static bool
blob_get(const char *operation, PyObject *value, vnxi_py_bytes_t *blob_p)
{
    if (PyUnicode_Check(value)) {
        return vnxi_py_wrong_type(operation, "metadata", "bytes", value);
    }
    if (!vnxi_py_message_get(operation, "metadata", value, blob_p)) {
        return false;
    }
    if (blob_p->has_view) {
        PyObject *copy =
            PyBytes_FromStringAndSize(blob_p->data, (Py_ssize_t)blob_p->len);
        vnxi_py_bytes_put(blob_p);
        if (copy == NULL) {
            return false;
        }
        *blob_p = (vnxi_py_bytes_t){.data = PyBytes_AS_STRING(copy),
                                    .len = (size_t)PyBytes_GET_SIZE(copy),
                                    .owner = copy};
    }
    return true;
}

VNXI_PY_AGENT_METHOD(
    add_remote_agent, (REQUIRED(metadata)),
    "Load a peer's metadata. Returns its name (bytes).\n\n"
    "metadata: bytes, or anything bytes-like\n\n"
    "Loading it again updates the peer's regions. A peer that has\n"
    "restarted under the same name replaces the old one at once;\n"
    "transfers to the old one raise nixlRemoteDisconnectError.\n\n"
    "It may wait up to 10 s for a process of this host that is stopped;\n"
    "other threads run meanwhile. nixlMismatchError if the bytes are not\n"
    "valid metadata, nixlInvalidParamError for the agent's own,\n"
    "nixlBackendError if the peer cannot be reached, nixlNotAllowedError\n"
    "if the kernel forbids it or the signature is missing or wrong,\n"
    "nixlNotFoundError if this agent has no backend.")
{
    vnxi_py_bytes_t blob;
    vnx_bytes_t name;
    vnx_error_t error;
    if (!blob_get(operation, args->metadata, &blob)) {
        return NULL;
    }
    vnx_status_t status = VNXI_PY_WITHOUT_GIL(vnx_agent_load_metadata(
        self->agent, blob.data, blob.len, &name, &error));
    vnxi_py_bytes_put(&blob);
    return status < 0 ? vnxi_py_raise(self->state, &error)
                      : bytes_object(&name);
}

typedef vnx_status_t (*peer_fn)(vnx_agent_t *, const void *, size_t,
                                vnx_error_t *);

/* A call on a named peer that returns None. */
static PyObject *
peer_call(vnxi_py_agent_t *self, const char *operation, PyObject *peer_arg,
          peer_fn call)
{
    vnxi_py_bytes_t peer;
    vnx_error_t error;
    if (!vnxi_py_peer_get(self->state, operation, peer_arg, &peer)) {
        return NULL;
    }
    vnx_status_t status =
        VNXI_PY_WITHOUT_GIL(call(self->agent, peer.data, peer.len, &error));
    vnxi_py_bytes_put(&peer);
    return vnxi_py_none(self->state, status, &error);
}

VNXI_PY_AGENT_METHOD(
    remove_remote_agent, (REQUIRED(agent)),
    "Forget a peer (str or bytes); an unknown peer is not an error.\n\n"
    "Transfers in flight to it fail. It waits up to 2 s for\n"
    "notifications to be sent that are queued for a process of this\n"
    "host, and up to 2 s until GPU memory of the peer is unmapped; on\n"
    "the engine nixl up to 2 s for transfers in flight.")
{
    return peer_call(self, operation, args->agent, vnx_agent_remove_peer);
}

VNXI_PY_AGENT_METHOD(
    make_connection, (REQUIRED(remote_agent), OPTIONAL(backends, "[]")),
    "Connect to a peer now instead of at the first transfer.\n\n"
    "nixlNotFoundError for an unknown peer, nixlRemoteDisconnectError if\n"
    "it is gone.")
{
    vnxi_py_backends_t backends;
    if (!vnxi_py_backends_get(operation, self->backends, args->backends,
                              &backends)) {
        return NULL;
    }
    return peer_call(self, operation, args->remote_agent,
                     vnx_agent_connect_peer);
}

static bool
is_own_name(const vnxi_py_agent_t *self, const vnxi_py_bytes_t *name)
{
    size_t len;
    const void *own = vnx_agent_name(self->agent, &len);
    return name->len == len && memcmp(name->data, own, len) == 0;
}

/* Programs poll whether a peer is known, which waits for nothing.  The agent
 * itself is known at once, unless another thread is creating a backend. */
static PyObject *
peer_check(vnxi_py_agent_t *self, const char *operation, PyObject *peer_arg,
           vnxi_py_descs_t *descs)
{
    vnxi_py_bytes_t peer;
    if (!vnxi_py_name_get(operation, peer_arg, &peer)) {
        return NULL;
    }
    if (descs != NULL && !vnxi_py_descs_pin(descs)) {
        vnxi_py_bytes_put(&peer);
        return NULL;
    }
    PyThreadState *thread =
        vnxi_py_gil_drop_if(descs != NULL || is_own_name(self, &peer));
    bool known = peer.len > 0 && vnx_agent_check_peer(
                                     self->agent, peer.data, peer.len,
                                     descs != NULL ? descs->mem : VNX_MEM_DRAM,
                                     descs != NULL ? descs->rows : NULL,
                                     descs != NULL ? descs->count : 0);
    vnxi_py_gil_take(thread);
    if (descs != NULL) {
        vnxi_py_descs_unpin(descs);
    }
    vnxi_py_bytes_put(&peer);
    return PyBool_FromLong(known);
}

VNXI_PY_AGENT_METHOD(
    check_remote_metadata, (REQUIRED(agent), OPTIONAL(descs, "None")),
    "Return whether the peer is known and has all these descriptors.\n\n"
    "agent: str or bytes\n"
    "descs: a nixlXferDList; None: whether the peer is known")
{
    PyObject *descs = args->descs == Py_None ? NULL : args->descs;
    if (descs != NULL &&
        !vnxi_py_descs_is(self->state, VNXI_PY_DESCS_XFER, descs)) {
        return vnxi_py_wrong_type(operation, "descs",
                                  "a nixlXferDList or None", descs);
    }
    return peer_check(self, operation, args->agent, (vnxi_py_descs_t *)descs);
}
