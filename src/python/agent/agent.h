/*
 * The type Agent, base of vllm_nixl.NixlAgent.  Its methods are spread over
 * the files of this folder by subject; methods.c has their table and
 * documentation.
 *
 * How a method is written.  Converting an argument can run the caller's code:
 * __index__, __float__, __bool__, __str__, __iter__, __getitem__, __buffer__,
 * __eq__ and __hash__ of a key, an attribute of a tensor.  So can the end of
 * an object (Py_DECREF of what the caller gave), and so can making a list, a
 * tuple or a dict, since the collector may run then.  That code can do
 * anything: release handles, close the agent, change a list while it is read,
 * replace agent.notifs, call the same method again.  Another thread can do the
 * same whenever the GIL is dropped.  Therefore, in this order:
 *
 *   1. Convert all arguments.  Only the arguments themselves stay alive
 *      meanwhile: what a list or a dict of the caller holds is borrowed, so
 *      take a reference to an item before it is converted, and read the size
 *      again for the next one.
 *   2. Read the handles (vnxi_py_xfer_get(), vnxi_py_dlist_get()) and the
 *      fields of the agent, which refuses what has been released by now.  Take
 *      a reference to each that is used while the GIL is dropped, or while
 *      more code of the caller can run.
 *   3. Call, and give the references and buffers back.
 *
 * An exact int, float, str or bytes and an exact tuple run no code, nor does a
 * look at the type of an object, so hot calls need no reference for these.
 */
#ifndef VNXI_PYTHON_AGENT_H
#define VNXI_PYTHON_AGENT_H

#include <vnx/listener.h>

#include "python/arguments/args.h"
#include "python/errors.h"
#include "python/module.h"

typedef struct vnxi_py_agent {
    PyObject_HEAD vnxi_py_state_t
        *state;               /* borrowed: our type keeps the module alive */
    vnx_agent_t *agent;       /* owned; NULL before __init__ */
    vnx_listener_t *listener; /* owned; NULL before its first use */
    PyObject *name;           /* str */
    PyObject *backends;       /* dict: name -> number, as created */
    PyObject *plugin_list;    /* what a client has set; NULL: asked for */
    PyObject *notifs;         /* dict: name of agent -> list of bytes */
    vnx_notif_t *taken;       /* owned; taken for _next_notif() */
    bool is_closed;
} vnxi_py_agent_t;

extern PyMethodDef vnxi_py_agent_methods[];

/* Was __init__() called?  false: exception. */
static inline bool
vnxi_py_agent_is_made(const vnxi_py_agent_t *self)
{
    if (self->agent == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "Agent.__init__() was not called");
    }
    return self->agent != NULL;
}

/* The first lines of every method: its agent and its sorted arguments, or
 * false and an exception.  Another agent's handle, a closed agent and the like
 * are for what follows. */
static inline bool
vnxi_py_agent_begin(PyObject *op, const vnxi_py_signature_t *signature,
                    PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames,
                    PyObject **values)
{
    vnxi_py_agent_t *self = (vnxi_py_agent_t *)op;
    return vnxi_py_agent_is_made(self) &&
           vnxi_py_args_parse(self->state, signature, args, nargs, kwnames,
                              values);
}

#define VNXI_PY_METHOD(name)                                            \
    PyObject *vnxi_py_agent_##name(PyObject *op, PyObject *const *args, \
                                   Py_ssize_t nargs, PyObject *kwnames)

/* agent.c */
VNXI_PY_METHOD(close);
VNXI_PY_METHOD(enter);
VNXI_PY_METHOD(exit);

/* backend.c */
VNXI_PY_METHOD(create_backend);
VNXI_PY_METHOD(get_plugin_list);
VNXI_PY_METHOD(get_plugin_mem_types);
VNXI_PY_METHOD(get_plugin_params);
VNXI_PY_METHOD(get_backend_mem_types);
VNXI_PY_METHOD(get_backend_params);
/* NULL: exception. */
PyObject *vnxi_py_agent_plugins(vnxi_py_agent_t *self);
/* Was a backend of this name created?  1, 0, or -1 and an exception. */
int vnxi_py_agent_has_backend(const vnxi_py_agent_t *self, PyObject *name);

/* memory.c */
VNXI_PY_METHOD(get_reg_descs);
VNXI_PY_METHOD(get_xfer_descs);
VNXI_PY_METHOD(get_remote_descs);
VNXI_PY_METHOD(register_memory);
VNXI_PY_METHOD(deregister_memory);

/* query.c */
VNXI_PY_METHOD(query_memory);

/* metadata.c */
VNXI_PY_METHOD(get_agent_metadata);
VNXI_PY_METHOD(get_partial_agent_metadata);
VNXI_PY_METHOD(add_remote_agent);
VNXI_PY_METHOD(remove_remote_agent);
VNXI_PY_METHOD(check_remote_metadata);
VNXI_PY_METHOD(make_connection);

/* What get_partial_agent_metadata() returns, for its first three arguments.
 * *metadata_p is owned.  false: exception. */
bool vnxi_py_partial_metadata(vnxi_py_agent_t *self, const char *operation,
                              PyObject *const *values,
                              vnx_bytes_t *metadata_p);

/* listener.c */
VNXI_PY_METHOD(listen);
VNXI_PY_METHOD(send_local_metadata);
VNXI_PY_METHOD(send_partial_agent_metadata);
VNXI_PY_METHOD(fetch_remote_metadata);
VNXI_PY_METHOD(invalidate_local_metadata);
PyObject *vnxi_py_agent_listen_port(PyObject *op, void *context);
/* Its part of stats() and of describe().  false: exception. */
bool vnxi_py_agent_listener_stats(const vnxi_py_agent_t *self, PyObject *dict);
bool vnxi_py_agent_listener_describe(const vnxi_py_agent_t *self,
                                     PyObject *dict);

/* prep.c */
VNXI_PY_METHOD(prep_xfer_dlist);
VNXI_PY_METHOD(release_dlist_handle);

/* make.c */
VNXI_PY_METHOD(make_prepped_xfer);
VNXI_PY_METHOD(initialize_xfer);

/* xfer.c */
VNXI_PY_METHOD(transfer);
VNXI_PY_METHOD(check_xfer_state);
VNXI_PY_METHOD(cancel);
VNXI_PY_METHOD(release_xfer_handle);
VNXI_PY_METHOD(get_xfer_telemetry);
VNXI_PY_METHOD(query_xfer_backend);
VNXI_PY_METHOD(estimate_xfer_cost);

/* wait.c */
VNXI_PY_METHOD(check_xfer_states);
VNXI_PY_METHOD(wait);
VNXI_PY_METHOD(is_over);
VNXI_PY_METHOD(fileno);
VNXI_PY_METHOD(subscribe);
VNXI_PY_METHOD(unsubscribe);

/* notif.c */
VNXI_PY_METHOD(get_new_notifs);
VNXI_PY_METHOD(update_notifs);
VNXI_PY_METHOD(check_remote_xfer_done);
VNXI_PY_METHOD(send_notif);
VNXI_PY_METHOD(next_notif);

/* info.c */
VNXI_PY_METHOD(describe);
VNXI_PY_METHOD(stats);
/* Set a key to `value`, which is taken and may be NULL.  false: exception. */
bool vnxi_py_dict_set(PyObject *dict, const char *key, PyObject *value);

/* telemetry.c: a nixlXferTelemetry. */
PyObject *vnxi_py_telemetry_new(vnxi_py_state_t *state,
                                const vnx_xfer_telemetry_t *telemetry);

#endif
