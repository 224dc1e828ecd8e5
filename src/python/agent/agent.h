/*
 * The type Agent, base of vllm_nixl.NixlAgent.  The files of this folder hold
 * its methods by subject; VNXI_PY_AGENT_METHODS below names all of them.
 *
 * How a method is written.  VNXI_PY_AGENT_METHOD (arguments/args.h) holds its
 * docstring, parameters and code.  Converting an argument can run the caller's
 * code: __index__, __float__, __bool__, __str__, __iter__, __getitem__,
 * __buffer__, __eq__ and __hash__ of a key, an attribute of a tensor.  So can
 * dropping a reference to an object of the caller, and so can making a list, a
 * tuple or a dict, since the collector may run then.  That code can do
 * anything: release handles, close the agent, change a list while it is read,
 * replace agent.notifs, call the same method again.  Another thread can do the
 * same whenever the GIL is dropped.  Therefore, in this order:
 *
 *   1. Convert all arguments.  Only the arguments themselves stay alive
 *      meanwhile: the items of the caller's lists and dicts are borrowed, so
 *      take a reference to an item before you convert it, and read the size
 *      again for the next one.
 *   2. Read the handles (vnxi_py_xfer_get(), vnxi_py_dlist_get()) and the
 *      fields of the agent; reading a handle refuses one that was released in
 *      step 1.  Take a reference to each that is used while the GIL is
 *      dropped, or while more code of the caller can run.
 *   3. Call the library, then give the references and buffers back.
 *
 * An exact int, float, str or bytes and an exact tuple run no code, nor does
 * checking the type of an object, so hot calls need no reference for these.
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
    PyObject *plugin_list;    /* set by a client; NULL: ask the engine */
    PyObject *notifs;         /* dict: name of agent -> list of bytes */
    vnx_notif_t *taken;       /* owned; taken for _next_notif() */
    bool is_closed;
} vnxi_py_agent_t;

/* -- Methods -------------------------------------------------------------- */

#define VNXI_PY_AGENT_METHODS(X)   \
    /* agent.c */                  \
    X(close)                       \
    /* backend.c */                \
    X(create_backend)              \
    X(get_plugin_list)             \
    X(get_plugin_mem_types)        \
    X(get_plugin_params)           \
    X(get_backend_mem_types)       \
    X(get_backend_params)          \
    /* memory.c */                 \
    X(get_reg_descs)               \
    X(get_xfer_descs)              \
    X(get_remote_descs)            \
    X(register_memory)             \
    X(deregister_memory)           \
    X(query_memory)                \
    /* metadata.c */               \
    X(get_agent_metadata)          \
    X(get_partial_agent_metadata)  \
    X(add_remote_agent)            \
    X(remove_remote_agent)         \
    X(check_remote_metadata)       \
    X(make_connection)             \
    /* listener.c */               \
    X(_listen)                     \
    X(send_local_metadata)         \
    X(send_partial_agent_metadata) \
    X(fetch_remote_metadata)       \
    X(invalidate_local_metadata)   \
    /* prep.c */                   \
    X(prep_xfer_dlist)             \
    X(release_dlist_handle)        \
    /* make.c */                   \
    X(make_prepped_xfer)           \
    X(initialize_xfer)             \
    /* xfer.c */                   \
    X(transfer)                    \
    X(check_xfer_state)            \
    X(cancel)                      \
    X(release_xfer_handle)         \
    X(get_xfer_telemetry)          \
    X(query_xfer_backend)          \
    X(estimate_xfer_cost)          \
    /* wait.c */                   \
    X(check_xfer_states)           \
    X(wait)                        \
    X(fileno)                      \
    X(_is_over)                    \
    X(_subscribe)                  \
    X(_unsubscribe)                \
    /* notif.c */                  \
    X(get_new_notifs)              \
    X(update_notifs)               \
    X(check_remote_xfer_done)      \
    X(send_notif)                  \
    X(_next_notif)                 \
    /* info.c */                   \
    X(describe)                    \
    X(stats)                       \
    X(peers)

#define VNXI_PY_AGENT_DECLARE(name) \
    VNXI_PY_METHOD_DECLARE(vnxi_py_agent_, name)
VNXI_PY_AGENT_METHODS(VNXI_PY_AGENT_DECLARE)
#undef VNXI_PY_AGENT_DECLARE

/* Was __init__() called?  false: exception. */
static inline bool
vnxi_py_agent_is_made(const vnxi_py_agent_t *self)
{
    if (self->agent == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "Agent.__init__() was not called");
    }
    return self->agent != NULL;
}

/* A method of an agent whose __init__() was called.  The body itself refuses
 * handles of another agent, a closed agent and the like.  _AS: messages show
 * `title` instead of the name. */
#define VNXI_PY_AGENT_METHOD(name, params, doc) \
    VNXI_PY_AGENT_METHOD_AS(name, #name, params, doc)
#define VNXI_PY_AGENT_METHOD_AS(name, title, params, doc)                  \
    VNXI_PY_METHOD(vnxi_py_agent_, vnxi_py_agent_t, vnxi_py_agent_is_made, \
                   name, title, params, doc)

/* -- Across files --------------------------------------------------------- */

/* backend.c: the names of the plugins.  NULL: exception. */
PyObject *vnxi_py_agent_plugins(vnxi_py_agent_t *self);
/* Get the name of a backend that was created, borrowed from `value`.  If there
 * is none, raise `class`; NULL: nixlNotFoundError.  NULL: exception. */
const char *vnxi_py_agent_backend(const vnxi_py_agent_t *self,
                                  const char *operation, PyObject *value,
                                  PyObject *class);

/* metadata.c: the result of get_partial_agent_metadata() for its arguments.
 * *metadata_p is owned.  false: exception. */
bool vnxi_py_partial_metadata(vnxi_py_agent_t *self, const char *operation,
                              PyObject *descs, PyObject *inc_conn_info,
                              PyObject *backends, vnx_bytes_t *metadata_p);

/* listener.c: its port, its counters with `prefix` in front of each key, and
 * its part of describe().  false: exception. */
PyObject *vnxi_py_agent_listen_port(PyObject *op, void *context);
bool vnxi_py_agent_listener_stats(const vnxi_py_agent_t *self, PyObject *dict,
                                  const char *prefix);
bool vnxi_py_agent_listener_describe(const vnxi_py_agent_t *self,
                                     PyObject *dict);

/* wait.c: wait for one transfer.  Returns its telemetry; NULL: exception. */
PyObject *vnxi_py_agent_wait_one(vnxi_py_agent_t *self, const char *operation,
                                 PyObject *handle, uint64_t timeout_ns);

/* xfer.c: a nixlXferTelemetry of the transfer; NULL: exception. */
PyObject *vnxi_py_telemetry_of(vnxi_py_state_t *state, const vnx_xfer_t *xfer);

#endif
