#include "python/errors.h"
#include "python/side_channel/side_channel.h"

#define START "start_listener"
#define SET "set_metadata"
#define REMOVE "remove_metadata"
#define ADVERTISED "advertised_address"

/* -- Starting ------------------------------------------------------------- */

/* The exception of the class that NixlError's rules give, and RuntimeError,
 * which is what programs that know the side channel's forerunner catch. */
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

/* A host as str, owned: as it is, or several with commas between. */
static PyObject *
host_of(PyObject *value)
{
    if (PyUnicode_Check(value)) {
        return Py_NewRef(value);
    }
    if (!PyList_Check(value) && !PyTuple_Check(value)) {
        return vnxi_py_wrong_type(START, "host",
                                  "a str, a list of them or None", value);
    }
    PyObject *comma = PyUnicode_FromString(",");
    PyObject *joined = comma != NULL ? PyUnicode_Join(comma, value) : NULL;
    Py_XDECREF(comma);
    return joined;
}

static PyObject *
start(vnxi_py_side_channel_t *self, vnx_side_channel_start_params_t *params,
      PyObject *metadata)
{
    vnxi_py_blobs_t blobs;
    vnx_status_t status;
    vnx_error_t error;
    int port = 0;

    if (!vnxi_py_side_blobs(self->state, START, metadata, &blobs)) {
        return NULL;
    }
    params->blobs = blobs.blobs;
    params->count = blobs.count;
    Py_BEGIN_ALLOW_THREADS;
    status = vnx_side_channel_start_with(self->channel, params, &port, &error);
    Py_END_ALLOW_THREADS;
    vnxi_py_side_blobs_put(&blobs);
    return status == VNX_OK ? PyLong_FromLong(port)
                            : raise_start(self, &error);
}

PyObject *
vnxi_py_side_start(PyObject *op, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"port", "metadata", "host", NULL};
    vnxi_py_side_channel_t *self = (vnxi_py_side_channel_t *)op;
    PyObject *port_arg, *metadata, *host_arg = Py_None, *host = NULL;
    vnx_side_channel_start_params_t params = {
        .size = sizeof params, .port = VNX_SIDE_CHANNEL_PORT_DEFAULT};

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|O:" START, names,
                                     &port_arg, &metadata, &host_arg)) {
        return NULL;
    }
    if (port_arg != Py_None &&
        !vnxi_py_side_port(self->state, START, port_arg, 0, &params.port)) {
        return NULL;
    }
    if (host_arg != Py_None) {
        host = host_of(host_arg);
        if (host == NULL || (params.host = vnxi_py_text_get(
                                 self->state, START, "host", host)) == NULL) {
            Py_XDECREF(host);
            return NULL;
        }
    }
    PyObject *port = start(self, &params, metadata);
    Py_XDECREF(host);
    return port;
}

/* -- While it runs -------------------------------------------------------- */

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
    if (status != VNX_OK) {
        vnxi_py_raise(self->state, &error);
    }
    return status == VNX_OK;
}

PyObject *
vnxi_py_side_set(PyObject *op, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"metadata", "key", NULL};
    vnxi_py_side_channel_t *self = (vnxi_py_side_channel_t *)op;
    PyObject *metadata, *key_arg = Py_None;
    vnxi_py_bytes_t key;
    vnxi_py_blobs_t blobs;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|O:" SET, names,
                                     &metadata, &key_arg) ||
        !vnxi_py_side_key(self->state, SET, key_arg, &key)) {
        return NULL;
    }
    if (!vnxi_py_side_blobs(self->state, SET, metadata, &blobs)) {
        vnxi_py_bytes_put(&key);
        return NULL;
    }
    bool done = false;
    if (blobs.items != NULL && key_arg != Py_None) {
        vnxi_py_invalid(self->state, SET, VNXI_PY_NO_ROW,
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

PyObject *
vnxi_py_side_remove(PyObject *op, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"key", NULL};
    vnxi_py_side_channel_t *self = (vnxi_py_side_channel_t *)op;
    PyObject *key_arg = Py_None;
    vnxi_py_bytes_t key;
    vnx_error_t error;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|O:" REMOVE, names,
                                     &key_arg) ||
        !vnxi_py_side_key(self->state, REMOVE, key_arg, &key)) {
        return NULL;
    }
    vnx_status_t status =
        vnx_side_channel_remove(self->channel, key.data, key.len, &error);
    vnxi_py_bytes_put(&key);
    return status == VNX_OK ? Py_NewRef(Py_None)
                            : vnxi_py_raise(self->state, &error);
}

PyObject *
vnxi_py_side_advertised(PyObject *op, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"peer", NULL};
    vnxi_py_side_channel_t *self = (vnxi_py_side_channel_t *)op;
    char host[VNX_SIDE_CHANNEL_ADDRESS_MAX];
    PyObject *peer_arg = Py_None;
    const char *peer = NULL;
    vnx_error_t error;
    int port;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|O:" ADVERTISED, names,
                                     &peer_arg)) {
        return NULL;
    }
    if (peer_arg != Py_None &&
        (peer = vnxi_py_text_get(self->state, ADVERTISED, "peer", peer_arg)) ==
            NULL) {
        return NULL;
    }
    if (vnx_side_channel_advertised(self->channel, peer, host, &port,
                                    &error) != VNX_OK) {
        return vnxi_py_raise(self->state, &error);
    }
    return Py_BuildValue("(si)", host, port);
}

/* -- Stopping ------------------------------------------------------------- */

PyObject *
vnxi_py_side_shutdown(PyObject *op, PyObject *Py_UNUSED(arg))
{
    Py_BEGIN_ALLOW_THREADS;
    vnx_side_channel_shutdown(((vnxi_py_side_channel_t *)op)->channel);
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

PyObject *
vnxi_py_side_exit(PyObject *op, PyObject *Py_UNUSED(args))
{
    return vnxi_py_side_shutdown(op, NULL);
}
