/*
 * Design notes.  The channel is created with the object and lives as long, so
 * nothing needs protection: every method copies its arguments out of Python
 * objects, drops the GIL and calls the library.
 */
#include "python/side_channel/side_channel.h"

#include <string.h>

#include "python/arguments/convert.h"
#include "python/errors.h"

#define RUNNING_ERROR "nixlAlreadyRunningError"

/* -- Creation ------------------------------------------------------------- */

typedef struct option {
    char *name;
    enum { OPTION_INT, OPTION_BOOL, OPTION_PATH, OPTION_TEXT } kind;
    size_t offset;
} option_t;

#define OPTION(kind, name)                                               \
    {                                                                    \
#name, OPTION_##kind, offsetof(vnx_side_channel_options_t, name) \
    }
static const option_t options[] = {
    OPTION(INT, max_frame),         OPTION(INT, max_connections),
    OPTION(INT, client_timeout_ms), OPTION(INT, idle_timeout_ms),
    OPTION(INT, max_rate),          OPTION(BOOL, tls),
    OPTION(PATH, tls_certificate),  OPTION(PATH, tls_key),
    OPTION(PATH, tls_ca),           OPTION(TEXT, tls_name),
    OPTION(TEXT, secret),           OPTION(TEXT, advertise),
};
#undef OPTION
enum { OPTIONS = sizeof options / sizeof options[0] };

/* Convert `value`, which owns the text, into the field `to`. */
static bool
option_get(vnxi_py_state_t *state, const char *class, const option_t *option,
           PyObject *value, void *to)
{
    uint64_t number;
    if (option->kind == OPTION_INT || option->kind == OPTION_BOOL) {
        int truth = option->kind == OPTION_BOOL ? PyObject_IsTrue(value) : 0;
        if (option->kind == OPTION_BOOL) {
            number = truth > 0;
        } else if (!vnxi_py_int_between(state, class, option->name, value, 1,
                                        UINT32_MAX, &number)) {
            return false;
        }
        *(uint32_t *)to = (uint32_t)number;
        return truth >= 0;
    }
    const char *text = vnxi_py_text_get(state, class, option->name, value);
    *(const char **)to = text;
    return text != NULL;
}

/* Read the options into `read`, which borrows from the objects in `kept`; each
 * of those is owned or NULL.  An option that is None keeps the default, all
 * zeros. */
static bool
options_get(vnxi_py_state_t *state, const char *class, PyObject *args,
            PyObject *kwargs, PyObject *kept[OPTIONS],
            vnx_side_channel_options_t *read)
{
    char *names[OPTIONS + 1] = {NULL};
    PyObject *v[OPTIONS] = {NULL};
    for (int i = 0; i < OPTIONS; i++) {
        names[i] = options[i].name;
    }
    if (!PyArg_ParseTupleAndKeywords(
            args, kwargs, "|$OOOOOOOOOOOO", names, &v[0], &v[1], &v[2], &v[3],
            &v[4], &v[5], &v[6], &v[7], &v[8], &v[9], &v[10], &v[11])) {
        return false;
    }
    for (int i = 0; i < OPTIONS; i++) {
        if (v[i] == NULL || v[i] == Py_None) {
            continue;
        }
        kept[i] = options[i].kind == OPTION_PATH ? PyOS_FSPath(v[i])
                                                 : Py_NewRef(v[i]);
        if (kept[i] == NULL || !option_get(state, class, &options[i], kept[i],
                                           (char *)read + options[i].offset)) {
            return false;
        }
    }
    return true;
}

static const char *
class_name(PyTypeObject *type)
{
    const char *dot = strrchr(type->tp_name, '.');
    return dot != NULL ? dot + 1 : type->tp_name;
}

static PyObject *
side_channel_make(PyTypeObject *type, PyObject *args, PyObject *kwargs,
                  vnx_side_channel_kind_t kind)
{
    vnx_side_channel_options_t read = {.size = sizeof read};
    PyObject *kept[OPTIONS] = {NULL};
    vnx_side_channel_t *channel = NULL;
    PyObject *made = NULL;
    vnx_error_t error;
    vnxi_py_state_t *state = vnxi_py_state_of_type(type);
    if (state == NULL) {
        return NULL;
    }
    if (options_get(state, class_name(type), args, kwargs, kept, &read)) {
        if (vnx_side_channel_create(kind, &read, &channel, &error) != VNX_OK) {
            vnxi_py_raise(state, &error);
        } else {
            made = type->tp_alloc(type, 0);
        }
    }
    for (int i = 0; i < OPTIONS; i++) {
        Py_XDECREF(kept[i]);
    }
    if (made == NULL) {
        vnx_side_channel_free(channel);
        return NULL;
    }
    ((vnxi_py_side_channel_t *)made)->state = state;
    ((vnxi_py_side_channel_t *)made)->channel = channel;
    return made;
}

static void
side_channel_dealloc(PyObject *op)
{
    vnxi_py_side_channel_t *self = (vnxi_py_side_channel_t *)op;
    PyThreadState *thread = vnxi_py_gil_drop_if(true);
    vnx_side_channel_free(self->channel);
    vnxi_py_gil_take(thread);
    vnxi_py_object_free(op);
}

/* -- State and counters --------------------------------------------------- */

VNXI_PY_SIDE_METHOD(is_running, (),
                    "Return whether the listener is running. Never waits.")
{
    return PyBool_FromLong(vnx_side_channel_is_running(self->channel));
}

static PyObject *
refusals_new(const vnx_side_channel_stats_t *stats)
{
    vnxi_py_number_t numbers[VNX_SIDE_CHANNEL_REFUSALS];
    PyObject *dict = PyDict_New();
    for (int i = 0; i < VNX_SIDE_CHANNEL_REFUSALS; i++) {
        numbers[i].key =
            vnx_side_channel_refusal_name((vnx_side_channel_refusal_t)i);
        numbers[i].value = stats->refusals[i];
    }
    if (dict != NULL && !vnxi_py_dict_set_numbers(dict, "", numbers,
                                                  VNX_SIDE_CHANNEL_REFUSALS)) {
        Py_CLEAR(dict);
    }
    return dict;
}

VNXI_PY_SIDE_METHOD(
    stats, (),
    "Counters of the listener since its creation:\n\n"
    "- accepted: connections that were accepted\n"
    "- served: replies that were sent completely\n"
    "- refused: clients that were refused for what they sent; refusals:\n"
    "  the same by reason (a dict)\n"
    "- timed_out: clients that did not end within client_timeout_ms, or\n"
    "  were idle for too long\n"
    "- evicted: connections that were closed to make room for a new one\n"
    "- open: connections now\n"
    "- bytes_received, bytes_sent\n"
    "- latency: replies by the time that they took (a list): [0] below 1\n"
    "  us, [i] from `2**(i-1)` to `2**i` us")
{
    vnx_side_channel_stats_t stats;
    PyObject *dict = PyDict_New();
    vnx_side_channel_stats(self->channel, &stats);
#define FIELD(name)       \
    {                     \
#name, stats.name \
    }
    const vnxi_py_number_t numbers[] = {
        FIELD(accepted),       FIELD(served),     FIELD(refused),
        FIELD(timed_out),      FIELD(evicted),    FIELD(open),
        FIELD(bytes_received), FIELD(bytes_sent),
    };
#undef FIELD
    if (dict == NULL ||
        !vnxi_py_dict_set_numbers(dict, "", numbers,
                                  sizeof numbers / sizeof numbers[0]) ||
        !vnxi_py_dict_set(dict, "refusals", refusals_new(&stats)) ||
        !vnxi_py_dict_set(
            dict, "latency",
            vnxi_py_numbers_new(stats.latency, VNX_SIDE_CHANNEL_LATENCIES))) {
        Py_XDECREF(dict);
        return NULL;
    }
    return dict;
}

static PyObject *
side_channel_get_port(PyObject *op, void *Py_UNUSED(closure))
{
    return PyLong_FromLong(
        vnx_side_channel_port(((vnxi_py_side_channel_t *)op)->channel));
}

PyDoc_STRVAR(enter_doc, "__enter__($self, /)\n--\n\n"
                        "The side channel itself.");

PyDoc_STRVAR(exit_doc, "__exit__($self, /, *args)\n--\n\n"
                       "shutdown().");

static PyObject *
side_channel_exit(PyObject *op, PyObject *Py_UNUSED(args))
{
    return vnxi_py_side_shutdown(op, NULL, 0, NULL);
}

static PyObject *
side_channel_repr(PyObject *op)
{
    int port = vnx_side_channel_port(((vnxi_py_side_channel_t *)op)->channel);
    const char *name = class_name(Py_TYPE(op));
    return port == 0 ? PyUnicode_FromFormat("<%s, not running>", name)
                     : PyUnicode_FromFormat("<%s on port %d>", name, port);
}

/* -- The types ------------------------------------------------------------ */

static PyMethodDef side_channel_methods[] = {
#define METHOD(name) VNXI_PY_METHOD_ROW(vnxi_py_side_, name)
    VNXI_PY_SIDE_METHODS(METHOD)
#undef METHOD
        {"__enter__", vnxi_py_object_enter, METH_NOARGS, enter_doc},
    {"__exit__", side_channel_exit, METH_VARARGS, exit_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef side_channel_getset[] = {
    {"port", side_channel_get_port, NULL,
     "the port of the listener (int); 0 when not running", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

#define OPTIONS_SIGNATURE                                                \
    "(*, max_frame=None, max_connections=None, client_timeout_ms=None, " \
    "idle_timeout_ms=None, max_rate=None, tls=False, "                   \
    "tls_certificate=None, tls_key=None, tls_ca=None, tls_name=None, "   \
    "secret=None, advertise=None)\n--\n\n"

PyDoc_STRVAR(base_doc,
             "A small server and client that exchange metadata.\n\n"
             "The common part of TcpSideChannel, ZmqSideChannel and\n"
             "HttpSideChannel.");
PyDoc_STRVAR(
    tcp_doc,
    "TcpSideChannel" OPTIONS_SIGNATURE "A side channel over TCP.\n\n"
    "The listener has one thread for all clients; one that is slow,\n"
    "silent or misbehaves costs only its own connection. Every method\n"
    "may be called from any thread.\n\n"
    "Options:\n\n"
    "- max_frame: most bytes of a blob that is accepted or served; None:\n"
    "  256 MiB\n"
    "- max_connections: at once; a new one replaces the one that has\n"
    "  been idle longest; None: 4096, or what the process may open\n"
    "- client_timeout_ms: limit for a client's whole exchange, at the\n"
    "  listener; None: 5000\n"
    "- idle_timeout_ms: limit for a client that neither sends nor\n"
    "  receives; at most, and None: client_timeout_ms\n"
    "- max_rate: new connections per second from one address; None: no\n"
    "  limit\n"
    "- tls: use TLS; each of the next four, if given, implies it\n"
    "- tls_certificate, tls_key: PEM files, for listening\n"
    "- tls_ca: a PEM file with the authorities that requests trust;\n"
    "  None: the system's\n"
    "- tls_name: the name that requests expect in the certificate; None:\n"
    "  the host\n"
    "- secret: shared by all that may exchange metadata, the key of TLS\n"
    "  instead of the tls options; None: VLLM_NIXL_SIDE_CHANNEL_SECRET\n"
    "- advertise: the host that advertised_address() returns");
PyDoc_STRVAR(
    zmq_doc,
    "ZmqSideChannel" OPTIONS_SIGNATURE
    "A side channel over ZeroMQ, compatible with vLLM.\n\n"
    "The options are those of TcpSideChannel. But vLLM's protocol has\n"
    "neither TLS nor secrets: with one of them, listening and requests\n"
    "raise nixlNotSupportedError; so does the constructor if this build\n"
    "lacks ZeroMQ.");
PyDoc_STRVAR(
    http_doc,
    "HttpSideChannel" OPTIONS_SIGNATURE "A side channel over HTTP.\n\n"
    "The options are those of TcpSideChannel. But the secret is a bearer\n"
    "token, which is sent only over TLS or on loopback.\n"
    "nixlNotSupportedError if this build lacks HTTP.");

static PyType_Slot base_slots[] = {
    {Py_tp_doc, (void *)base_doc},       {Py_tp_dealloc, side_channel_dealloc},
    {Py_tp_repr, side_channel_repr},     {Py_tp_methods, side_channel_methods},
    {Py_tp_getset, side_channel_getset}, {0, NULL},
};

static PyType_Spec base_spec = {
    .name = "vllm_nixl._core.SideChannel",
    .basicsize = sizeof(vnxi_py_side_channel_t),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE |
             Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = base_slots,
};

#define TRANSPORT_TYPE(name_, kind, class)                           \
    static PyObject *name_##_new(PyTypeObject *type, PyObject *args, \
                                 PyObject *kwargs)                   \
    {                                                                \
        return side_channel_make(type, args, kwargs, kind);          \
    }                                                                \
    static PyType_Slot name_##_slots[] = {                           \
        {Py_tp_doc, (void *)name_##_doc},                            \
        {Py_tp_new, name_##_new},                                    \
        {0, NULL},                                                   \
    };                                                               \
    static PyType_Spec name_##_spec = {                              \
        .name = "vllm_nixl._core." class,                            \
        .basicsize = sizeof(vnxi_py_side_channel_t),                 \
        .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE |          \
                 Py_TPFLAGS_IMMUTABLETYPE,                           \
        .slots = name_##_slots,                                      \
    };

TRANSPORT_TYPE(tcp, VNX_SIDE_CHANNEL_TCP, "TcpSideChannel")
TRANSPORT_TYPE(zmq, VNX_SIDE_CHANNEL_ZMQ, "ZmqSideChannel")
TRANSPORT_TYPE(http, VNX_SIDE_CHANNEL_HTTP, "HttpSideChannel")

/* The class is a nixlNotAllowedError, as for all such errors, and a
 * RuntimeError, which programs written for the side channel's predecessor
 * catch. */
static int
running_error_add(PyObject *module)
{
    vnxi_py_state_t *state = vnxi_py_state(module);
    PyObject *parent = state->errors[VNXI_PY_STATUS_VNX_ERR_NOT_ALLOWED];
    PyObject *bases = PyTuple_Pack(2, parent, PyExc_RuntimeError);
    if (bases == NULL) {
        return -1;
    }
    state->running_error = PyErr_NewExceptionWithDoc(
        "vllm_nixl._core." RUNNING_ERROR,
        "the listener cannot be started: it is running already", bases, NULL);
    Py_DECREF(bases);
    return state->running_error == NULL
               ? -1
               : PyModule_AddObjectRef(module, RUNNING_ERROR,
                                       state->running_error);
}

static int
transport_add(PyObject *module, PyObject *base, PyType_Spec *spec)
{
    PyObject *type = PyType_FromModuleAndSpec(module, spec, base);
    if (type == NULL) {
        return -1;
    }
    int ret = PyModule_AddType(module, (PyTypeObject *)type);
    Py_DECREF(type);
    return ret;
}

int
vnxi_py_side_channel_add(PyObject *module)
{
    if (running_error_add(module) < 0) {
        return -1;
    }
    PyObject *base = PyType_FromModuleAndSpec(module, &base_spec, NULL);
    if (base == NULL) {
        return -1;
    }
    int ret = -1;
    if (PyModule_AddType(module, (PyTypeObject *)base) == 0 &&
        transport_add(module, base, &tcp_spec) == 0 &&
        transport_add(module, base, &zmq_spec) == 0 &&
        transport_add(module, base, &http_spec) == 0) {
        ret = 0;
    }
    Py_DECREF(base);
    return ret;
}
