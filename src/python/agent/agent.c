#include "python/agent/agent.h"

#include <limits.h>
#include <structmember.h>

#include "python/arguments/convert.h"

#define INIT "nixl_agent" /* the operation in messages */

static PyObject *
agent_tp_new(PyTypeObject *type, PyObject *Py_UNUSED(args),
             PyObject *Py_UNUSED(kwargs))
{
    vnxi_py_state_t *state = vnxi_py_state_of_type(type);
    if (state == NULL) {
        return NULL;
    }
    vnxi_py_agent_t *self = (vnxi_py_agent_t *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->state = state;
    self->backends = PyDict_New();
    self->notifs = PyDict_New();
    if (self->backends == NULL || self->notifs == NULL) {
        Py_CLEAR(self);
    }
    return (PyObject *)self;
}

static bool
agent_create(vnxi_py_agent_t *self, const vnxi_py_bytes_t *name,
             const vnx_agent_config_t *config)
{
    vnx_error_t error;
    PyObject *shown = vnxi_py_name_new(name->data, name->len);
    if (shown == NULL) {
        return false;
    }
    /* Checked here because the conversion of the arguments may have created
     * it. */
    if (self->agent != NULL) {
        PyErr_SetString(PyExc_RuntimeError,
                        "Agent.__init__() was called already");
    } else if (vnx_agent_create(name->data, name->len, config, &self->agent,
                                &error) < 0) {
        vnxi_py_raise(self->state, &error);
    } else {
        Py_XSETREF(self->name, shown);
        return true;
    }
    Py_DECREF(shown);
    return false;
}

/* Convert the secret to bytes; data is NULL for None. */
static bool
secret_get(vnxi_py_state_t *state, PyObject *value, vnxi_py_bytes_t *secret_p)
{
    *secret_p = (vnxi_py_bytes_t){.data = NULL};
    if (value == NULL || value == Py_None) {
        return true;
    }
    if (!PyUnicode_Check(value) && !PyBytes_Check(value)) {
        return vnxi_py_wrong_type(INIT, "metadata_secret", "a str or bytes",
                                  value);
    }
    bool is_read =
        vnxi_py_message_get(INIT, "metadata_secret", value, secret_p);
    if (!is_read && PyErr_ExceptionMatches(PyExc_UnicodeEncodeError)) {
        PyErr_Clear(); /* the exception contains the secret */
        vnxi_py_invalid(state, INIT, VNXI_PY_NO_ROW,
                        "metadata_secret has a character that UTF-8 cannot "
                        "encode");
    }
    return is_read;
}

/* Convert the numbers; those that were left out stay 0. */
static bool
init_numbers(vnxi_py_state_t *state, PyObject *threads_arg, PyObject *max_arg,
             vnx_agent_config_t *config)
{
    uint64_t threads = 0;
    if (threads_arg != NULL &&
        !vnxi_py_int_between(state, INIT, "num_threads", threads_arg, 0,
                             UINT_MAX, &threads)) {
        return false;
    }
    config->num_threads = (unsigned)threads;
    return max_arg == NULL ||
           vnxi_py_int_between(state, INIT, "notif_bytes_max", max_arg, 0,
                               UINT64_MAX, &config->notif_bytes_max);
}

static int
agent_init(PyObject *op, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {
        "agent_name", "engine",          "num_threads", "notif_bytes_max",
        "backends",   "metadata_secret", NULL};
    vnxi_py_agent_t *self = (vnxi_py_agent_t *)op;
    vnx_agent_config_t config = {.size = sizeof config};
    PyObject *name_arg, *threads_arg = NULL, *max_arg = NULL;
    PyObject *backends_arg = NULL, *secret_arg = NULL;
    vnxi_py_backends_t backends;
    vnxi_py_bytes_t name, secret;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|$zOOOO:Agent", names,
                                     &name_arg, &config.engine, &threads_arg,
                                     &max_arg, &backends_arg, &secret_arg) ||
        !init_numbers(self->state, threads_arg, max_arg, &config) ||
        !vnxi_py_backends_get(INIT, NULL, backends_arg, &backends) ||
        !secret_get(self->state, secret_arg, &secret)) {
        return -1;
    }
    config.backends = backends.list;
    config.metadata_secret = secret.data;
    config.metadata_secret_len = secret.len;
    bool is_made = false;
    if (vnxi_py_peer_get(self->state, INIT, name_arg, &name)) {
        is_made = agent_create(self, &name, &config);
        vnxi_py_bytes_put(&name);
    }
    vnxi_py_bytes_put(&secret);
    return is_made ? 0 : -1;
}

VNXI_PY_AGENT_METHOD(
    close, (),
    "Stop the agent's work for good.\n\n"
    "Transfers in flight end as cancelled, waiters raise\n"
    "nixlClosedError, peers see the agent leave, its threads end; later\n"
    "calls raise nixlClosedError. Calling it again only waits for a\n"
    "thread that is closing the agent.\n\n"
    "It takes milliseconds, unless peers do not answer: it waits up to\n"
    "2 s for peers that are copying memory of the agent, up to 2 s for\n"
    "queued notifications to be sent, up to 2 s for peers to unmap GPU\n"
    "memory, up to 1 s for commands of the metadata listener, and for\n"
    "transfers in flight as cancel() does. The engine nixl waits up to 5 s\n"
    "for transfers in flight. Other threads run meanwhile.")
{
    self->is_closed = true;
    vnx_listener_t *listener = self->listener;
    Py_BEGIN_ALLOW_THREADS;
    if (listener != NULL) {
        vnx_listener_stop(listener);
    }
    vnx_agent_close(self->agent);
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(enter_doc, "__enter__($self)\n--\n\nReturn the agent itself.");

PyDoc_STRVAR(exit_doc, "__exit__($self, *args)\n--\n\nclose() the agent.");

static PyObject *
agent_exit(PyObject *op, PyObject *Py_UNUSED(args))
{
    return vnxi_py_agent_close(op, NULL, 0, NULL);
}

static PyObject *
agent_repr(PyObject *op)
{
    vnxi_py_agent_t *self = (vnxi_py_agent_t *)op;
    const char *state = self->is_closed ? "closed " : "";
    /* Hold a reference: the name may be any object, and its __repr__ may
     * replace it. */
    PyObject *name = Py_NewRef(self->name != NULL ? self->name : Py_None);
    PyObject *text =
        PyUnicode_FromFormat("<%snixl_agent %R at %p>", state, name, op);
    Py_DECREF(name);
    return text;
}

static PyObject *
agent_get_closed(PyObject *op, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(((vnxi_py_agent_t *)op)->is_closed);
}

static int
agent_traverse(PyObject *op, visitproc visit, void *arg)
{
    vnxi_py_agent_t *self = (vnxi_py_agent_t *)op;
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(self->name);
    Py_VISIT(self->backends);
    Py_VISIT(self->plugin_list);
    Py_VISIT(self->notifs);
    return 0;
}

static int
agent_clear(PyObject *op)
{
    vnxi_py_agent_t *self = (vnxi_py_agent_t *)op;
    Py_CLEAR(self->name);
    Py_CLEAR(self->backends);
    Py_CLEAR(self->plugin_list);
    Py_CLEAR(self->notifs);
    return 0;
}

static void
agent_dealloc(PyObject *op)
{
    vnxi_py_agent_t *self = (vnxi_py_agent_t *)op;
    PyObject_GC_UnTrack(op);
    agent_clear(op);
    vnx_notif_free(self->taken);
    if (self->agent != NULL) {
        PyThreadState *thread = vnxi_py_gil_drop_if(true); /* joins threads */
        vnx_listener_free(self->listener);
        vnx_agent_release(self->agent);
        vnxi_py_gil_take(thread);
    }
    vnxi_py_object_free(op);
}

PyDoc_STRVAR(
    agent_doc,
    "Agent(agent_name, *, engine=None, num_threads=0, notif_bytes_max=0, "
    "backends=None, metadata_secret=None)\n--\n\n"
    "A named endpoint that owns regions, peers, transfers and\n"
    "notifications.\n\n"
    "The base of NixlAgent. Every method may be called from any thread\n"
    "at any time.\n\n"
    "agent_name: str or bytes, not empty\n"
    "engine: 'auto' (None), 'native' or 'nixl'\n"
    "num_threads: copy threads per transfer, and UCX workers; 0: one per\n"
    "    core, at most 4; more than 16 count as 16\n"
    "notif_bytes_max: most bytes of pending notifications; above it the\n"
    "    oldest is dropped; 0: 256 MiB\n"
    "backends: backends that will be created, so that 'auto' chooses an\n"
    "    engine that has all of them\n"
    "metadata_secret: str or bytes; signs our metadata, and only\n"
    "    metadata signed with it is loaded; None:\n"
    "    VLLM_NIXL_METADATA_SECRET\n\n"
    "nixlInvalidParamError for a number out of range, RuntimeError if\n"
    "__init__() was called before.");

static PyMethodDef agent_methods[] = {
#define METHOD(name) VNXI_PY_METHOD_ROW(vnxi_py_agent_, name)
    VNXI_PY_AGENT_METHODS(METHOD)
#undef METHOD
        {"__enter__", vnxi_py_object_enter, METH_NOARGS, enter_doc},
    {"__exit__", agent_exit, METH_VARARGS, exit_doc},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef agent_members[] = {
    {"name", T_OBJECT_EX, offsetof(vnxi_py_agent_t, name), 0,
     "the name of the agent (str)"},
    {"backends", T_OBJECT_EX, offsetof(vnxi_py_agent_t, backends), READONLY,
     "the created backends: name -> number (dict)"},
    {"notifs", T_OBJECT_EX, offsetof(vnxi_py_agent_t, notifs), 0,
     "the notifications collected by update_notifs() and "
     "check_remote_xfer_done() (dict)"},
    {NULL, 0, 0, 0, NULL},
};

/* Asking the engine may load its library, so that is done only here. */
static PyObject *
agent_get_plugin_list(PyObject *op, void *Py_UNUSED(context))
{
    vnxi_py_agent_t *self = (vnxi_py_agent_t *)op;
    if (self->plugin_list != NULL) {
        return Py_NewRef(self->plugin_list);
    }
    return vnxi_py_agent_is_made(self) ? vnxi_py_agent_plugins(self) : NULL;
}

static int
agent_set_plugin_list(PyObject *op, PyObject *value, void *Py_UNUSED(context))
{
    vnxi_py_agent_t *self = (vnxi_py_agent_t *)op;
    Py_XINCREF(value);
    Py_XSETREF(self->plugin_list, value);
    return 0;
}

static PyObject *
agent_get_engine(PyObject *op, void *Py_UNUSED(context))
{
    vnxi_py_agent_t *self = (vnxi_py_agent_t *)op;
    const char *name =
        self->agent != NULL ? vnx_agent_engine(self->agent) : NULL;
    return name != NULL ? PyUnicode_FromString(name) : Py_NewRef(Py_None);
}

static PyGetSetDef agent_getset[] = {
    {"plugin_list", agent_get_plugin_list, agent_set_plugin_list,
     "the backends that can be created; before the first one, those of all "
     "engines that may be chosen (list of str)",
     NULL},
    {"engine", agent_get_engine, NULL,
     "'native' or 'nixl'; None before the first backend", NULL},
    {"listen_port", vnxi_py_agent_listen_port, NULL,
     "the port of the metadata listener; 0 when it does not listen (int)",
     NULL},
    {"closed", agent_get_closed, NULL, "whether close() was called (bool)",
     NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot agent_slots[] = {
    {Py_tp_doc, (void *)agent_doc},
    {Py_tp_new, agent_tp_new},
    {Py_tp_init, agent_init},
    {Py_tp_dealloc, agent_dealloc},
    {Py_tp_traverse, agent_traverse},
    {Py_tp_clear, agent_clear},
    {Py_tp_repr, agent_repr},
    {Py_tp_methods, agent_methods},
    {Py_tp_members, agent_members},
    {Py_tp_getset, agent_getset},
    {0, NULL},
};

PyType_Spec vnxi_py_agent_spec = {
    .name = "vllm_nixl._core.Agent",
    .basicsize = sizeof(vnxi_py_agent_t),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC |
             Py_TPFLAGS_IMMUTABLETYPE,
    .slots = agent_slots,
};
