/*
 * Design notes.  The channel is made with the object and lives as long, so
 * there is nothing to guard: every method copies what it needs out of Python
 * objects, drops the GIL and calls.  A request looks for signals while it
 * waits, so that Ctrl-C ends it.
 */
#include "python/side_channel.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "python/convert.h"
#include "python/errors.h"
#include "python/integers.h"
#include "side_channel/side_channel.h"

#define RUNNING_ERROR "nixlAlreadyRunningError"
#define START "start_listener"
#define REQUEST "request_metadata"

typedef struct side_channel {
    PyObject_HEAD vnx_side_channel_t *channel; /* owned; fixed at the making */
    vnxi_py_state_t *state;                    /* of the type's module */
} side_channel_t;

/* -- Arguments ------------------------------------------------------------ */

/* An int from `min` to `max`.  false: exception. */
static bool
int_get(vnxi_py_state_t *state, const char *operation, const char *what,
        PyObject *value, uint64_t *number_p, uint64_t min, uint64_t max)
{
    uint64_t number = 0;

    switch (vnxi_py_int_get(value, &number)) {
    case VNXI_PY_INT_OK:
        if (number >= min && number <= max) {
            *number_p = number;
            return true;
        }
        break;
    case VNXI_PY_INT_RANGE:
        break;
    case VNXI_PY_INT_TYPE:
        vnxi_py_wrong_type(operation, what, "an int", value);
        return false;
    default:
        return false;
    }
    vnxi_py_invalid(state, operation, VNXI_PY_NO_ROW,
                    "%s is not in %llu to %llu", what, (unsigned long long)min,
                    (unsigned long long)max);
    return false;
}

static bool
port_get(vnxi_py_state_t *state, const char *operation, PyObject *value,
         int min, int *port_p)
{
    uint64_t number;

    if (!int_get(state, operation, "port", value, &number, (uint64_t)min,
                 65535)) {
        return false;
    }
    *port_p = (int)number;
    return true;
}

/* Borrowed from `value`. */
static const char *
host_get(vnxi_py_state_t *state, const char *operation, PyObject *value)
{
    Py_ssize_t len;

    if (!PyUnicode_Check(value)) {
        vnxi_py_wrong_type(operation, "host", "a str", value);
        return NULL;
    }
    const char *host = PyUnicode_AsUTF8AndSize(value, &len);
    if (host != NULL && strlen(host) != (size_t)len) {
        vnxi_py_invalid(state, operation, VNXI_PY_NO_ROW,
                        "host has a null character");
        return NULL;
    }
    return host;
}

/* -- Making --------------------------------------------------------------- */

/* None leaves the default, which is 0 to C. */
static bool
option_get(vnxi_py_state_t *state, const char *name, PyObject *value,
           uint32_t *option_p)
{
    uint64_t number;

    if (value == NULL || value == Py_None) {
        return true;
    }
    if (!int_get(state, "TcpSideChannel", name, value, &number, 1,
                 UINT32_MAX)) {
        return false;
    }
    *option_p = (uint32_t)number;
    return true;
}

static bool
options_get(vnxi_py_state_t *state, PyObject *args, PyObject *kwargs,
            vnx_side_channel_options_t *options)
{
    static char *names[] = {"max_frame", "max_connections",
                            "client_timeout_ms", NULL};
    PyObject *frame = NULL, *connections = NULL, *timeout = NULL;

    return PyArg_ParseTupleAndKeywords(args, kwargs, "|$OOO:TcpSideChannel",
                                       names, &frame, &connections,
                                       &timeout) &&
           option_get(state, names[0], frame, &options->max_frame) &&
           option_get(state, names[1], connections,
                      &options->max_connections) &&
           option_get(state, names[2], timeout, &options->client_timeout_ms);
}

static PyObject *
side_channel_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    vnx_side_channel_options_t options = {.size = sizeof options};
    vnx_error_t error;

    vnxi_py_state_t *state = vnxi_py_state_of_type(type);
    if (state == NULL || !options_get(state, args, kwargs, &options)) {
        return NULL;
    }
    side_channel_t *self = (side_channel_t *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->state = state;
    if (vnx_side_channel_create(VNX_SIDE_CHANNEL_TCP, &options, &self->channel,
                                &error) != VNX_OK) {
        Py_DECREF(self);
        return vnxi_py_raise(state, &error);
    }
    return (PyObject *)self;
}

static void
side_channel_dealloc(PyObject *op)
{
    side_channel_t *self = (side_channel_t *)op;
    PyTypeObject *type = Py_TYPE(op);

    Py_BEGIN_ALLOW_THREADS;
    vnx_side_channel_free(self->channel);
    Py_END_ALLOW_THREADS;
    type->tp_free(op);
    Py_DECREF(type);
}

/* -- Listener ------------------------------------------------------------- */

/* nixlNotAllowedError as everywhere, and RuntimeError, which is what programs
 * that know the side channel's forerunner catch here. */
static int
running_error_add(PyObject *module)
{
    PyObject *parent =
        vnxi_py_state(module)->errors[VNXI_PY_STATUS_VNX_ERR_NOT_ALLOWED];
    PyObject *bases = PyTuple_Pack(2, parent, PyExc_RuntimeError);
    if (bases == NULL) {
        return -1;
    }
    PyObject *made = PyErr_NewExceptionWithDoc(
        "vllm_nixl._core." RUNNING_ERROR,
        "the listener cannot be started: it is running already", bases, NULL);
    Py_DECREF(bases);
    if (made == NULL) {
        return -1;
    }
    int ret = PyModule_AddObjectRef(module, RUNNING_ERROR, made);
    Py_DECREF(made);
    return ret;
}

static PyObject *
raise_running(side_channel_t *self, const vnx_error_t *error)
{
    PyObject *module = PyType_GetModule(Py_TYPE(self)); /* borrowed */
    PyObject *class = PyObject_GetAttrString(module, RUNNING_ERROR);
    PyObject *raised = vnxi_py_error_new(self->state, error);

    if (raised != NULL && class != NULL &&
        PyObject_SetAttrString(raised, "__class__", class) == 0) {
        PyErr_SetObject(class, raised);
    }
    Py_XDECREF(raised);
    Py_XDECREF(class);
    return NULL;
}

static PyObject *
raise_start(side_channel_t *self, const vnx_error_t *error)
{
    return error->status == VNX_ERR_NOT_ALLOWED
               ? raise_running(self, error)
               : vnxi_py_raise(self->state, error);
}

PyDoc_STRVAR(start_doc,
             "start_listener($self, /, port, metadata, host=None)\n--\n\n"
             "Serve metadata. Returns the port (int).\n\n"
             "port: 0 binds a free one\n"
             "metadata: what requesters get (bytes-like; copied)\n"
             "host: the address to listen at; None or '': all of the "
             "machine's, IPv6 and IPv4\n\n"
             "nixlNotAllowedError, which is a RuntimeError here, when it is "
             "running already;\nnixlBackendError when the address is in "
             "use.");

static PyObject *
side_channel_start(PyObject *op, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"port", "metadata", "host", NULL};
    side_channel_t *self = (side_channel_t *)op;
    PyObject *port_arg, *metadata_arg, *host_arg = Py_None;
    vnxi_py_bytes_t metadata;
    const char *host = NULL;
    int port;
    vnx_error_t error;
    vnx_status_t status;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|O:" START, names,
                                     &port_arg, &metadata_arg, &host_arg) ||
        !port_get(self->state, START, port_arg, 0, &port)) {
        return NULL;
    }
    if (host_arg != Py_None) {
        host = host_get(self->state, START, host_arg);
        if (host == NULL) {
            return NULL;
        }
    }
    if (!vnxi_py_message_get(START, "metadata", metadata_arg, &metadata)) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS;
    status = vnx_side_channel_start(self->channel, host, port, metadata.data,
                                    metadata.len, &port, &error);
    Py_END_ALLOW_THREADS;
    vnxi_py_bytes_put(&metadata);
    return status == VNX_OK ? PyLong_FromLong(port)
                            : raise_start(self, &error);
}

PyDoc_STRVAR(shutdown_doc,
             "shutdown($self, /)\n--\n\n"
             "Stop serving; clients are not waited for.\n\n"
             "The port is free when this returns. Nothing happens when the "
             "listener is not running.");

static PyObject *
side_channel_shutdown(PyObject *op, PyObject *Py_UNUSED(arg))
{
    Py_BEGIN_ALLOW_THREADS;
    vnx_side_channel_shutdown(((side_channel_t *)op)->channel);
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(is_running_doc, "is_running($self, /)\n--\n\n"
                             "Is the listener running? Never waits (bool).");

static PyObject *
side_channel_is_running(PyObject *op, PyObject *Py_UNUSED(arg))
{
    return PyBool_FromLong(
        vnx_side_channel_is_running(((side_channel_t *)op)->channel));
}

PyDoc_STRVAR(stats_doc,
             "stats($self, /)\n--\n\n"
             "Counters of the listener since it was made (dict of int).\n\n"
             "accepted: connections taken\n"
             "served: replies sent whole\n"
             "refused: connections closed for what they sent\n"
             "timed_out: those that did not end within client_timeout_ms\n"
             "evicted: those closed to make room for a new one\n"
             "open: connections now");

static PyObject *
side_channel_stats(PyObject *op, PyObject *Py_UNUSED(arg))
{
    vnx_side_channel_stats_t stats;

    vnx_side_channel_stats(((side_channel_t *)op)->channel, &stats);
    return Py_BuildValue("{s:K,s:K,s:K,s:K,s:K,s:K}", "accepted",
                         (unsigned long long)stats.accepted, "served",
                         (unsigned long long)stats.served, "refused",
                         (unsigned long long)stats.refused, "timed_out",
                         (unsigned long long)stats.timed_out, "evicted",
                         (unsigned long long)stats.evicted, "open",
                         (unsigned long long)stats.open);
}

/* -- Request -------------------------------------------------------------- */

/* Called every so often while a request waits without the GIL: take it, and
 * let Python run the handlers of signals that came. */
static bool
signal_raised(void *arg)
{
    PyThreadState **thread = arg;

    PyEval_RestoreThread(*thread);
    bool raised = PyErr_CheckSignals() < 0;
    *thread = PyEval_SaveThread();
    return raised;
}

/* As bytes; takes `data`.  Copied without the GIL: it may be large, and nobody
 * else has the object yet. */
static PyObject *
bytes_of(void *data, size_t len)
{
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)len);

    if (bytes != NULL) {
        char *to = PyBytes_AS_STRING(bytes);
        Py_BEGIN_ALLOW_THREADS;
        memcpy(to, data, len);
        Py_END_ALLOW_THREADS;
    }
    free(data);
    return bytes;
}

PyDoc_STRVAR(
    request_doc,
    "request_metadata($self, /, host, port, timeout_ms=5000)\n--\n\n"
    "Fetch what the listener at host:port serves (bytes).\n\n"
    "timeout_ms bounds the whole exchange: look-up of the name, connecting to "
    "each of its addresses,\nsending, receiving. None: 5000. Other threads "
    "run meanwhile; Ctrl-C ends it.\n\n"
    "nixlTimeoutError after that, nixlNotFoundError for an unknown name, "
    "nixlMismatchError for a\nreply above max_frame, nixlBackendError for "
    "everything else that fails.");

static PyObject *
request_run(side_channel_t *self, const char *host, int port, int timeout_ms)
{
    vnx_error_t error;
    void *data;
    size_t len;

    PyThreadState *thread = PyEval_SaveThread();
    vnxi_side_request_t request = {.host = host,
                                   .port = port,
                                   .timeout_ms = timeout_ms,
                                   .interrupted = signal_raised,
                                   .arg = &thread};
    vnx_status_t status = vnxi_side_channel_request(self->channel, &request,
                                                    &data, &len, &error);
    PyEval_RestoreThread(thread);
    if (status == VNX_ERR_CANCELED) {
        return NULL; /* with what the signal's handler raised */
    }
    return status == VNX_OK ? bytes_of(data, len)
                            : vnxi_py_raise(self->state, &error);
}

static PyObject *
side_channel_request(PyObject *op, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"host", "port", "timeout_ms", NULL};
    side_channel_t *self = (side_channel_t *)op;
    PyObject *host_arg, *port_arg, *timeout_arg = Py_None;
    uint64_t timeout_ms = VNX_SIDE_CHANNEL_TIMEOUT_MS;
    int port;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|O:" REQUEST, names,
                                     &host_arg, &port_arg, &timeout_arg)) {
        return NULL;
    }
    const char *host = host_get(self->state, REQUEST, host_arg);
    if (host == NULL || !port_get(self->state, REQUEST, port_arg, 1, &port)) {
        return NULL;
    }
    if (timeout_arg != Py_None &&
        !int_get(self->state, REQUEST, "timeout_ms", timeout_arg, &timeout_ms,
                 1, INT_MAX)) {
        return NULL;
    }
    return request_run(self, host, port, (int)timeout_ms);
}

/* -- The type ------------------------------------------------------------- */

static PyObject *
side_channel_get_port(PyObject *op, void *Py_UNUSED(closure))
{
    return PyLong_FromLong(
        vnx_side_channel_port(((side_channel_t *)op)->channel));
}

PyDoc_STRVAR(enter_doc, "__enter__($self, /)\n--\n\n"
                        "The side channel itself.");

static PyObject *
side_channel_enter(PyObject *op, PyObject *Py_UNUSED(arg))
{
    Py_INCREF(op);
    return op;
}

PyDoc_STRVAR(exit_doc, "__exit__($self, /, *args)\n--\n\n"
                       "shutdown().");

static PyObject *
side_channel_exit(PyObject *op, PyObject *Py_UNUSED(args))
{
    return side_channel_shutdown(op, NULL);
}

static PyObject *
side_channel_repr(PyObject *op)
{
    int port = vnx_side_channel_port(((side_channel_t *)op)->channel);

    if (port == 0) {
        return PyUnicode_FromString("<TcpSideChannel, not running>");
    }
    return PyUnicode_FromFormat("<TcpSideChannel on port %d>", port);
}

#define WITH_KEYWORDS(function) \
    ((PyCFunction)(void (*)(void))(function)), METH_VARARGS | METH_KEYWORDS

static PyMethodDef side_channel_methods[] = {
    {START, WITH_KEYWORDS(side_channel_start), start_doc},
    {REQUEST, WITH_KEYWORDS(side_channel_request), request_doc},
    {"shutdown", side_channel_shutdown, METH_NOARGS, shutdown_doc},
    {"is_running", side_channel_is_running, METH_NOARGS, is_running_doc},
    {"stats", side_channel_stats, METH_NOARGS, stats_doc},
    {"__enter__", side_channel_enter, METH_NOARGS, enter_doc},
    {"__exit__", side_channel_exit, METH_VARARGS, exit_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef side_channel_getset[] = {
    {"port", side_channel_get_port, NULL,
     "the port that is listened on (int); 0 when not running", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(
    side_channel_doc,
    "TcpSideChannel(*, max_frame=None, max_connections=None, "
    "client_timeout_ms=None)\n--\n\n"
    "A small server and client that hand metadata over, by TCP.\n\n"
    "Speaks the protocol of docs/wire.md: one request and one reply a "
    "connection. The listener\nhas one thread however many clients there "
    "are; slow, silent and ill-behaved ones cost only\ntheir own "
    "connection. Every method may be called from any thread.\n\n"
    "max_frame: bytes of one reply that are accepted or served; None: 256 "
    "MiB\n"
    "max_connections: at once; the longest idle gives way; None: 4096, or "
    "what the process may open\n"
    "client_timeout_ms: a client's whole exchange, at the server; None: "
    "5000");

static PyType_Slot side_channel_slots[] = {
    {Py_tp_doc, (void *)side_channel_doc},
    {Py_tp_new, side_channel_new},
    {Py_tp_dealloc, side_channel_dealloc},
    {Py_tp_repr, side_channel_repr},
    {Py_tp_methods, side_channel_methods},
    {Py_tp_getset, side_channel_getset},
    {0, NULL},
};

static PyType_Spec side_channel_spec = {
    .name = "vllm_nixl._core.TcpSideChannel",
    .basicsize = sizeof(side_channel_t),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = side_channel_slots,
};

int
vnxi_py_side_channel_add(PyObject *module)
{
    if (running_error_add(module) < 0) {
        return -1;
    }
    PyObject *type =
        PyType_FromModuleAndSpec(module, &side_channel_spec, NULL);

    if (type == NULL) {
        return -1;
    }
    int ret = PyModule_AddType(module, (PyTypeObject *)type);
    Py_DECREF(type);
    return ret;
}
