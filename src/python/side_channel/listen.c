#include "python/errors.h"
#include "python/side_channel/side_channel.h"

/* Raise the error.  For VNX_ERR_NOT_ALLOWED the class is also a RuntimeError,
 * which programs written for the side channel's predecessor catch. */
static PyObject *
raise_start(vnxi_py_side_channel_t *self, const vnx_error_t *error)
{
    PyObject *class = self->state->running_error;
    if (error->status != VNX_ERR_NOT_ALLOWED) {
        return vnxi_py_raise(self->state, error);
    }
    PyObject *raised = vnxi_py_error_new(self->state, error);
    if (raised != NULL &&
        PyObject_SetAttrString(raised, "__class__", class) == 0) {
        PyErr_SetObject(class, raised);
    }
    Py_XDECREF(raised);
    return NULL;
}

static PyObject *
start(vnxi_py_side_channel_t *self, const char *operation,
      vnx_side_channel_start_params_t *params, PyObject *metadata)
{
    vnxi_py_blobs_t blobs;
    vnx_error_t error;
    int port = 0;
    if (!vnxi_py_side_blobs(self->state, operation, metadata, &blobs)) {
        return NULL;
    }
    params->blobs = blobs.blobs;
    params->count = blobs.count;
    vnx_status_t status = VNXI_PY_WITHOUT_GIL(
        vnx_side_channel_start_with(self->channel, params, &port, &error));
    vnxi_py_side_blobs_put(&blobs);
    return status == VNX_OK ? PyLong_FromLong(port)
                            : raise_start(self, &error);
}

VNXI_PY_SIDE_METHOD(
    start_listener,
    (REQUIRED(port), REQUIRED(metadata), OPTIONAL(host, "None")),
    "Serve metadata. Returns the port; 0 binds a free one.\n\n"
    "port: None is VLLM_NIXL_SIDE_CHANNEL_PORT, or 5600\n"
    "metadata: bytes (copied), or a mapping from key to bytes. A key is\n"
    "    a str, bytes, or a tuple of ints such as (pp_rank, tp_rank):\n"
    "    (0, 1) is the same as '0,1'. '' or None is the default key, for\n"
    "    requests that name none\n"
    "host: an address, a name, an interface ('eth0'), or several, in a\n"
    "    list or with commas; None or '' is VLLM_NIXL_SIDE_CHANNEL_HOST,\n"
    "    or every address of the machine, IPv6 and IPv4\n\n"
    "nixlNotAllowedError, which is also a RuntimeError here, if it is\n"
    "running; nixlBackendError if the address is in use.")
{
    PyObject *host = NULL;
    vnx_side_channel_start_params_t params = {
        .size = sizeof params, .port = VNX_SIDE_CHANNEL_PORT_DEFAULT};
    if (args->port != Py_None &&
        !vnxi_py_side_port(self->state, operation, args->port, 0,
                           &params.port)) {
        return NULL;
    }
    if (args->host != NULL && args->host != Py_None) {
        host = vnxi_py_side_host(operation, args->host);
        if (host == NULL ||
            (params.host = vnxi_py_text_get(self->state, operation, "host",
                                            host)) == NULL) {
            Py_XDECREF(host);
            return NULL;
        }
    }
    PyObject *port = start(self, operation, &params, args->metadata);
    Py_XDECREF(host);
    return port;
}

static bool
set_all(vnxi_py_side_channel_t *self, const vnxi_py_blobs_t *blobs)
{
    vnx_status_t status = VNX_OK;
    vnx_error_t error;
    Py_BEGIN_ALLOW_THREADS;
    for (size_t i = 0; status == VNX_OK && i < blobs->count; i++) {
        status = vnx_side_channel_set(self->channel, &blobs->blobs[i], &error);
    }
    Py_END_ALLOW_THREADS;
    return status == VNX_OK || vnxi_py_raise(self->state, &error);
}

VNXI_PY_SIDE_METHOD(
    set_metadata, (REQUIRED(metadata), OPTIONAL(key, "None")),
    "Replace the served metadata while the listener runs.\n\n"
    "metadata: bytes for `key`, or a mapping from key to bytes; other\n"
    "    keys stay\n"
    "key: as for start_listener()\n\n"
    "nixlNotAllowedError if it is not running.")
{
    vnxi_py_bytes_t key;
    vnxi_py_blobs_t blobs;
    if (!vnxi_py_side_key(self->state, operation, args->key, &key)) {
        return NULL;
    }
    if (!vnxi_py_side_blobs(self->state, operation, args->metadata, &blobs)) {
        vnxi_py_bytes_put(&key);
        return NULL;
    }
    bool done = false;
    if (blobs.items != NULL && args->key != NULL && args->key != Py_None) {
        vnxi_py_invalid(self->state, operation, VNXI_PY_NO_ROW,
                        "a mapping has its own keys");
    } else {
        if (blobs.items == NULL) {
            blobs.blobs[0].key = key.data;
            blobs.blobs[0].key_length = key.len;
        }
        done = set_all(self, &blobs);
    }
    vnxi_py_side_blobs_put(&blobs);
    vnxi_py_bytes_put(&key);
    return done ? Py_NewRef(Py_None) : NULL;
}

VNXI_PY_SIDE_METHOD(
    remove_metadata, (OPTIONAL(key, "None")),
    "Stop serving metadata under the key.\n\n"
    "nixlNotFoundError if nothing is served there, nixlNotAllowedError\n"
    "if the listener is not running.")
{
    vnxi_py_bytes_t key;
    vnx_error_t error;
    if (!vnxi_py_side_key(self->state, operation, args->key, &key)) {
        return NULL;
    }
    vnx_status_t status =
        vnx_side_channel_remove(self->channel, key.data, key.len, &error);
    vnxi_py_bytes_put(&key);
    return vnxi_py_none(self->state, status, &error);
}

VNXI_PY_SIDE_METHOD(
    advertised_address, (OPTIONAL(peer, "None")),
    "The host and port of the running listener, for peers.\n\n"
    "peer: the host that will connect; a warning is logged if it is\n"
    "    another host and the address is a loopback address\n\n"
    "The host is `advertise`, VLLM_NIXL_SIDE_CHANNEL_HOST, the one that\n"
    "was bound, or the machine's first address that is not loopback.")
{
    char host[VNX_SIDE_CHANNEL_ADDRESS_MAX];
    const char *peer = NULL;
    vnx_error_t error;
    int port;
    if (args->peer != NULL && args->peer != Py_None &&
        (peer = vnxi_py_text_get(self->state, operation, "peer",
                                 args->peer)) == NULL) {
        return NULL;
    }
    if (vnx_side_channel_advertised(self->channel, peer, host, &port,
                                    &error) != VNX_OK) {
        return vnxi_py_raise(self->state, &error);
    }
    return Py_BuildValue("(si)", host, port);
}

VNXI_PY_SIDE_METHOD(
    shutdown, (),
    "Stop serving and free the port, without waiting for clients. Does\n"
    "nothing if the listener is not running.")
{
    Py_BEGIN_ALLOW_THREADS;
    vnx_side_channel_shutdown(self->channel);
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}
