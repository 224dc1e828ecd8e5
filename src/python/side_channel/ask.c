/*
 * Design notes.  request_metadata() and request_many() wait without the GIL,
 * and take it at intervals to let Python run signal handlers.  For event loops
 * there is _begin().  It returns an object with a descriptor to wait for and a
 * step to make when it is readable; vllm_nixl/_side_channel.py makes a
 * coroutine of it.
 */
#include <limits.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "python/arguments/convert.h"
#include "python/errors.h"
#include "python/side_channel/side_channel.h"

/* Requests in progress; used by one thread at a time. */
typedef struct side_requests {
    PyObject_HEAD vnxi_requests_t *batch; /* owned; NULL: taken */
    vnxi_py_state_t *state;
    Py_ssize_t count;
    int fd;                 /* of the batch */
    vnxi_py_agent_t *agent; /* owned; NULL: requests of metadata */
    PyObject *host;         /* of the agent's request; str, owned */
    int port;
    atomic_bool busy;
} side_requests_t;

/* -- Parameters of requests ----------------------------------------------- */

/* Limits that all requests of a call share. */
typedef struct limits {
    int timeout_ms;
    uint32_t retries;
} limits_t;

static bool
limits_get(vnxi_py_state_t *state, const char *operation, PyObject *timeout,
           PyObject *retries, limits_t *limits_p)
{
    uint64_t timeout_ms = VNX_SIDE_CHANNEL_TIMEOUT_MS, tries = 0;
    if (timeout != NULL && timeout != Py_None &&
        !vnxi_py_int_between(state, operation, "timeout_ms", timeout, 1,
                             INT_MAX, &timeout_ms)) {
        return false;
    }
    if (retries == Py_None) {
        tries = VNX_SIDE_CHANNEL_RETRY_ALWAYS;
    } else if (retries != NULL &&
               !vnxi_py_int_between(state, operation, "retries", retries, 0,
                                    UINT32_MAX - 1, &tries)) {
        return false;
    }
    limits_p->timeout_ms = (int)timeout_ms;
    limits_p->retries = (uint32_t)tries;
    return true;
}

/* Parameters and the objects they borrow from; `keys` has one for each of
 * `count`. */
typedef struct peers {
    vnx_side_channel_request_params_t *params;
    vnxi_py_bytes_t *keys;
    Py_ssize_t count;
    PyObject *list; /* owns the borrowed texts */
} peers_t;

static void
peers_put(peers_t *peers)
{
    for (Py_ssize_t i = 0; i < peers->count; i++) {
        vnxi_py_bytes_put(&peers->keys[i]);
    }
    PyMem_Free(peers->params);
    PyMem_Free(peers->keys);
    Py_XDECREF(peers->list);
}

static bool
peer_add(vnxi_py_state_t *state, const char *operation, PyObject *host_arg,
         PyObject *port_arg, PyObject *key_arg, const limits_t *limits,
         peers_t *peers)
{
    vnx_side_channel_request_params_t *params = &peers->params[peers->count];
    const char *host = vnxi_py_text_get(state, operation, "host", host_arg);
    if (host == NULL ||
        !vnxi_py_side_port(state, operation, port_arg, 1, &params->port) ||
        !vnxi_py_side_key(state, operation, key_arg,
                          &peers->keys[peers->count])) {
        return false;
    }
    params->size = sizeof *params;
    params->host = host;
    params->timeout_ms = limits->timeout_ms;
    params->retries = limits->retries;
    params->key = peers->keys[peers->count].data;
    params->key_length = peers->keys[peers->count].len;
    peers->count++;
    return true;
}

static bool
peers_alloc(peers_t *peers, size_t count)
{
    *peers = (peers_t){
        .params = PyMem_Calloc(count, sizeof *peers->params),
        .keys = PyMem_Calloc(count, sizeof *peers->keys),
    };
    if (peers->params == NULL || peers->keys == NULL) {
        return PyErr_NoMemory();
    }
    return true;
}

/* Get the peers from an iterable of (host, port) and (host, port, key). */
static bool
peers_get(vnxi_py_state_t *state, const char *operation, PyObject *value,
          PyObject *timeout, PyObject *retries, peers_t *peers)
{
    limits_t limits;
    PyObject *list = limits_get(state, operation, timeout, retries, &limits)
                         ? PySequence_List(value)
                         : NULL;
    if (list == NULL || !peers_alloc(peers, (size_t)PyList_GET_SIZE(list))) {
        Py_XDECREF(list);
        return false;
    }
    peers->list = list;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list); i++) {
        PyObject *item = PyList_GET_ITEM(list, i);
        Py_ssize_t size = PyTuple_Check(item) ? PyTuple_GET_SIZE(item) : 0;
        if (size != 2 && size != 3) {
            return vnxi_py_wrong_type(operation, "a peer",
                                      "(host, port) or (host, port, key)",
                                      item);
        }
        if (!peer_add(state, operation, PyTuple_GET_ITEM(item, 0),
                      PyTuple_GET_ITEM(item, 1),
                      size == 3 ? PyTuple_GET_ITEM(item, 2) : NULL, &limits,
                      peers)) {
            return false;
        }
    }
    return true;
}

/* -- Answers -------------------------------------------------------------- */

/* Convert to bytes; takes `data`.  Copies without the GIL: the data may be
 * large, and no other code has the object yet. */
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

/* Return the bytes, or the exception, which is not raised. */
static PyObject *
answer_take(vnxi_py_state_t *state, vnxi_requests_t *batch, size_t index)
{
    vnx_side_channel_answer_t answer;
    vnxi_requests_take(batch, index, &answer);
    return answer.status == VNX_OK ? bytes_of(answer.metadata, answer.length)
                                   : vnxi_py_error_new(state, &answer.error);
}

static PyObject *
answers_take(vnxi_py_state_t *state, vnxi_requests_t *batch, Py_ssize_t count)
{
    PyObject *list = PyList_New(count);
    for (Py_ssize_t i = 0; list != NULL && i < count; i++) {
        PyObject *answer = answer_take(state, batch, (size_t)i);
        if (answer == NULL) {
            Py_CLEAR(list);
        } else {
            PyList_SET_ITEM(list, i, answer);
        }
    }
    return list;
}

/* -- Waiting requests ----------------------------------------------------- */

/* Called at intervals while requests wait without the GIL: takes it, and lets
 * Python run the handlers of pending signals. */
static bool
signal_raised(void *arg)
{
    PyThreadState **thread = arg;
    PyEval_RestoreThread(*thread);
    bool raised = PyErr_CheckSignals() < 0;
    *thread = PyEval_SaveThread();
    return raised;
}

/* Run the requests; returns the batch with all answers.  NULL: exception,
 * possibly from a signal's handler. */
static vnxi_requests_t *
ask(vnxi_py_side_channel_t *self, const peers_t *peers)
{
    vnxi_requests_t *batch = NULL;
    vnx_error_t error;
    bool done = false;
    PyThreadState *thread = PyEval_SaveThread();
    vnx_status_t status = vnxi_requests_make(
        self->channel, peers->params, (size_t)peers->count, &batch, &error);
    if (status == VNX_OK) {
        done = vnxi_requests_run(batch, signal_raised, &thread);
    }
    if (!done) {
        vnxi_requests_free(batch);
    }
    PyEval_RestoreThread(thread);
    if (status != VNX_OK) {
        vnxi_py_raise(self->state, &error);
    }
    return done ? batch : NULL;
}

static void
batch_free(vnxi_requests_t *batch)
{
    PyThreadState *thread = vnxi_py_gil_drop_if(true);
    vnxi_requests_free(batch);
    vnxi_py_gil_take(thread);
}

VNXI_PY_SIDE_METHOD(
    request_metadata,
    (REQUIRED(host), REQUIRED(port), OPTIONAL(timeout_ms, "5000"), STAR,
     KEYWORD(key, "None"), KEYWORD(retries, "0")),
    "Fetch the metadata served by the listener at host:port.\n\n"
    "timeout_ms: limit for the whole exchange: name look-up, connecting\n"
    "    to each address, TLS, sending, receiving, further attempts;\n"
    "    None: 5000\n"
    "key: a str, bytes, or a tuple of ints; None: the default key\n"
    "retries: further attempts while nobody listens, or if the\n"
    "    connection breaks; None: until the timeout\n\n"
    "Other threads run meanwhile; Ctrl-C ends the wait. nixlTimeoutError\n"
    "after the timeout, nixlNotFoundError for an unknown name or key,\n"
    "nixlNotAllowedError if the secrets differ or a certificate is not\n"
    "trusted, nixlMismatchError for a reply above max_frame,\n"
    "nixlBackendError for everything else that fails.")
{
    PyObject *result = NULL;
    limits_t limits;
    peers_t peers;
    if (!limits_get(self->state, operation, args->timeout_ms, args->retries,
                    &limits) ||
        !peers_alloc(&peers, 1)) {
        return NULL;
    }
    if (peer_add(self->state, operation, args->host, args->port, args->key,
                 &limits, &peers)) {
        vnxi_requests_t *batch = ask(self, &peers);
        if (batch != NULL) {
            result = answer_take(self->state, batch, 0);
            batch_free(batch);
        }
    }
    peers_put(&peers);
    if (result != NULL && PyExceptionInstance_Check(result)) {
        PyErr_SetObject((PyObject *)Py_TYPE(result), result);
        Py_CLEAR(result);
    }
    return result;
}

VNXI_PY_SIDE_METHOD(
    request_many,
    (REQUIRED(peers), OPTIONAL(timeout_ms, "5000"), STAR,
     KEYWORD(retries, "0")),
    "Request metadata from many peers at once, on the calling thread.\n\n"
    "peers: an iterable of (host, port) or (host, port, key)\n"
    "timeout_ms, retries: of each request, as for request_metadata()\n\n"
    "Returns, for each peer in the same order, the bytes or the\n"
    "exception that request_metadata() would have raised.")
{
    PyObject *result = NULL;
    peers_t peers = {0};
    if (peers_get(self->state, operation, args->peers, args->timeout_ms,
                  args->retries, &peers)) {
        vnxi_requests_t *batch = ask(self, &peers);
        if (batch != NULL) {
            result = answers_take(self->state, batch, peers.count);
            batch_free(batch);
        }
    }
    peers_put(&peers);
    return result;
}

/* -- Attaching ------------------------------------------------------------ */

/* Convert the arguments.  The host is borrowed from its argument. */
static bool
attach_params_get(vnxi_py_state_t *state, const char *operation,
                  PyObject *const values[5], vnxi_py_agent_t **agent_p,
                  vnxi_attach_params_t *params)
{
    limits_t limits;
    if (!limits_get(state, operation, values[3], values[4], &limits) ||
        !vnxi_py_side_port(state, operation, values[2], 1, &params->port)) {
        return false;
    }
    params->host = vnxi_py_text_get(state, operation, "host", values[1]);
    params->timeout_ms = limits.timeout_ms;
    params->retries = limits.retries;
    *agent_p = params->host != NULL
                   ? vnxi_py_side_agent(state, operation, values[0])
                   : NULL;
    return *agent_p != NULL;
}

/* Take the answer and load it; NULL: exception. */
static PyObject *
attach_finish(vnxi_py_agent_t *agent, vnxi_requests_t *batch, const char *host,
              int port)
{
    vnx_peer_t *peer = NULL;
    vnx_error_t error;
    vnx_status_t status = VNXI_PY_WITHOUT_GIL(
        vnxi_attach_finish(agent->agent, batch, host, port, &peer, &error));
    return status == VNX_OK ? vnxi_py_peer_new(agent, peer)
                            : vnxi_py_raise(agent->state, &error);
}

VNXI_PY_SIDE_METHOD_AS(
    _attach, "attach",
    (REQUIRED(agent), REQUIRED(host), REQUIRED(port), REQUIRED(timeout_ms),
     REQUIRED(retries)),
    "NixlAgent.attach() of that agent, by this channel: the name of the\n"
    "peer, and a dict from names to prepared lists and descriptors.")
{
    vnxi_py_agent_t *agent;
    vnxi_attach_params_t params;
    vnxi_requests_t *batch = NULL;
    vnx_error_t error;
    bool done = false;
    if (!attach_params_get(self->state, operation, args->values, &agent,
                           &params)) {
        return NULL;
    }
    PyThreadState *thread = PyEval_SaveThread();
    vnx_status_t status = vnxi_attach_request(agent->agent, self->channel,
                                              &params, &batch, &error);
    if (status == VNX_OK) {
        done = vnxi_requests_run(batch, signal_raised, &thread);
    }
    PyEval_RestoreThread(thread);
    if (status != VNX_OK) {
        return vnxi_py_raise(self->state, &error);
    }
    PyObject *result =
        done ? attach_finish(agent, batch, params.host, params.port) : NULL;
    batch_free(batch);
    return result;
}

/* -- For event loops ------------------------------------------------------ */

static bool
requests_enter(side_requests_t *self)
{
    if (atomic_exchange(&self->busy, true)) {
        PyErr_SetString(PyExc_RuntimeError,
                        "the requests are in use by another thread");
        return false;
    }
    return true;
}

static void
requests_leave(side_requests_t *self)
{
    atomic_store(&self->busy, false);
}

static side_requests_t *
requests_new(vnxi_py_side_channel_t *self, Py_ssize_t count)
{
    PyTypeObject *type = vnxi_py_type(self->state, VNXI_PY_TYPE_SIDE_REQUESTS);
    side_requests_t *made = (side_requests_t *)type->tp_alloc(type, 0);
    if (made != NULL) {
        made->state = self->state;
        made->count = count;
    }
    return made;
}

/* Begin the requests of `made`, if they could be made.  Takes `made`.  A first
 * step may read a file with certificates, or load a library, so the GIL is
 * dropped, as it is while requests are made. */
static PyObject *
requests_begin(side_requests_t *made, vnx_status_t status, vnx_error_t *error)
{
    if (status == VNX_OK) {
        status = VNXI_PY_WITHOUT_GIL(
            vnxi_requests_watch(made->batch, &made->fd, error));
    }
    if (status != VNX_OK) {
        vnxi_py_raise(made->state, error);
        Py_CLEAR(made);
    }
    return (PyObject *)made;
}

static PyObject *
requests_begin_all(vnxi_py_side_channel_t *self, const peers_t *peers)
{
    vnx_error_t error;
    side_requests_t *made = requests_new(self, peers->count);
    if (made == NULL) {
        return NULL;
    }
    vnx_status_t status = VNXI_PY_WITHOUT_GIL(
        vnxi_requests_make(self->channel, peers->params, (size_t)peers->count,
                           &made->batch, &error));
    return requests_begin(made, status, &error);
}

VNXI_PY_SIDE_METHOD_AS(
    _begin, "request_metadata",
    (REQUIRED(peers), OPTIONAL(timeout_ms, "5000"), STAR,
     KEYWORD(retries, "0")),
    "As request_many(), without waiting (SideChannelRequests).")
{
    PyObject *result = NULL;
    peers_t peers = {0};
    if (peers_get(self->state, operation, args->peers, args->timeout_ms,
                  args->retries, &peers)) {
        result = requests_begin_all(self, &peers);
    }
    peers_put(&peers);
    return result;
}

VNXI_PY_SIDE_METHOD_AS(_begin_attach, "attach",
                       (REQUIRED(agent), REQUIRED(host), REQUIRED(port),
                        REQUIRED(timeout_ms), REQUIRED(retries)),
                       "As _attach(), without waiting (SideChannelRequests).")
{
    vnxi_py_agent_t *agent;
    vnxi_attach_params_t params;
    vnx_error_t error;
    side_requests_t *made = NULL;
    if (attach_params_get(self->state, operation, args->values, &agent,
                          &params)) {
        made = requests_new(self, 1);
    }
    if (made == NULL) {
        return NULL;
    }
    made->agent = (vnxi_py_agent_t *)Py_NewRef((PyObject *)agent);
    made->host = Py_NewRef(args->host);
    made->port = params.port;
    vnx_status_t status = VNXI_PY_WITHOUT_GIL(vnxi_attach_request(
        agent->agent, self->channel, &params, &made->batch, &error));
    return requests_begin(made, status, &error);
}

static void
requests_dealloc(PyObject *op)
{
    side_requests_t *self = (side_requests_t *)op;
    batch_free(self->batch);
    Py_XDECREF(self->host);
    Py_XDECREF((PyObject *)self->agent);
    vnxi_py_object_free(op);
}

PyDoc_STRVAR(fileno_doc,
             "fileno($self, /)\n--\n\n"
             "A descriptor that is readable when step() has work.");

static PyObject *
requests_fileno(PyObject *op, PyObject *Py_UNUSED(arg))
{
    return PyLong_FromLong(((side_requests_t *)op)->fd);
}

PyDoc_STRVAR(step_doc,
             "step($self, /)\n--\n\n"
             "Do the work that needs no waiting; return how many are open.");

static PyObject *
requests_step(PyObject *op, PyObject *Py_UNUSED(arg))
{
    side_requests_t *self = (side_requests_t *)op;
    size_t open = 0;
    if (!requests_enter(self)) {
        return NULL;
    }
    if (self->batch != NULL) {
        Py_BEGIN_ALLOW_THREADS;
        open = vnxi_requests_step(self->batch);
        Py_END_ALLOW_THREADS;
    }
    requests_leave(self);
    return PyLong_FromSize_t(open);
}

/* The peer, or the exception, in a list. */
static PyObject *
attached_take(side_requests_t *self)
{
    PyObject *type, *value, *trace;
    PyObject *peer = attach_finish(self->agent, self->batch,
                                   PyUnicode_AsUTF8(self->host), self->port);
    if (peer == NULL) {
        PyErr_Fetch(&type, &value, &trace);
        PyErr_NormalizeException(&type, &value, &trace);
        Py_XDECREF(type);
        Py_XDECREF(trace);
        peer = value;
    }
    PyObject *list = PyList_New(1);
    if (list != NULL) {
        PyList_SET_ITEM(list, 0, peer);
    } else {
        Py_DECREF(peer);
    }
    return list;
}

PyDoc_STRVAR(take_doc,
             "take($self, /)\n--\n\n"
             "Return the results when none is open, as request_many().");

static PyObject *
requests_take(PyObject *op, PyObject *Py_UNUSED(arg))
{
    side_requests_t *self = (side_requests_t *)op;
    PyObject *result = NULL;
    if (!requests_enter(self)) {
        return NULL;
    }
    if (self->batch == NULL ||
        VNXI_PY_WITHOUT_GIL(vnxi_requests_step(self->batch)) > 0) {
        PyErr_SetString(PyExc_RuntimeError,
                        "the answers are not there, or were taken");
    } else {
        result = self->agent != NULL
                     ? attached_take(self)
                     : answers_take(self->state, self->batch, self->count);
        batch_free(self->batch);
        self->batch = NULL;
    }
    requests_leave(self);
    return result;
}

static PyMethodDef requests_methods[] = {
    {"fileno", requests_fileno, METH_NOARGS, fileno_doc},
    {"step", requests_step, METH_NOARGS, step_doc},
    {"take", requests_take, METH_NOARGS, take_doc},
    {NULL, NULL, 0, NULL},
};

PyDoc_STRVAR(requests_doc,
             "Requests of a side channel in progress, for event loops.");

static PyType_Slot requests_slots[] = {
    {Py_tp_doc, (void *)requests_doc},
    {Py_tp_dealloc, requests_dealloc},
    {Py_tp_methods, requests_methods},
    {0, NULL},
};

PyType_Spec vnxi_py_side_requests_spec = {
    .name = "vllm_nixl._core.SideChannelRequests",
    .basicsize = sizeof(side_requests_t),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = requests_slots,
};
