/*
 * The metadata listener of an agent.  It is created at first use, under the
 * GIL, and lives as long as the agent object, so methods may use it without
 * the GIL.
 */
#include "python/agent/agent.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "python/arguments/convert.h"
#include "python/descriptors/descs.h"

/* The address of the peer's listener.  `host` is borrowed from the argument.
 */
typedef struct address {
    const char *host;
    int port;
} address_t;

static bool
address_get(vnxi_py_agent_t *self, const char *operation, PyObject *ip_addr,
            PyObject *port, address_t *address_p)
{
    uint64_t number = VNX_LISTENER_PORT;
    vnx_error_t error;
    address_p->host = "";
    if (ip_addr != NULL) {
        address_p->host =
            vnxi_py_text_get(self->state, operation, "ip_addr", ip_addr);
        if (address_p->host == NULL) {
            return false;
        }
    }
    if (port != NULL && !vnxi_py_int_between(self->state, operation, "port",
                                             port, 0, 65535, &number)) {
        return false;
    }
    address_p->port = (int)number;
    if (address_p->host[0] == '\0') {
        vnxi_error_set(&error, VNX_ERR_NOT_SUPPORTED, operation,
                       "without ip_addr this needs a central metadata server "
                       "(etcd), for which this version has no client; give "
                       "ip_addr and port of the peer's listener");
        return vnxi_py_raise(self->state, &error);
    }
    return true;
}

/* Get the listener; creates it at first use.  NULL: exception. */
static vnx_listener_t *
listener_get(vnxi_py_agent_t *self, const char *operation, uint64_t max_frame)
{
    vnx_listener_options_t options = {.size = sizeof options,
                                      .max_frame = max_frame};
    vnx_error_t error;
    if (self->listener == NULL &&
        vnx_listener_create(self->agent, &options, &self->listener, &error) <
            0) {
        error.operation = operation;
        vnxi_py_raise(self->state, &error);
    }
    return self->listener;
}

/* The result of every method: None, or an exception that names the method. */
static PyObject *
listener_done(vnxi_py_agent_t *self, const char *operation,
              vnx_status_t status, vnx_error_t *error)
{
    error->operation = operation;
    return vnxi_py_none(self->state, status, error);
}

VNXI_PY_AGENT_METHOD_AS(
    _listen, "nixl_agent",
    (REQUIRED(host), REQUIRED(port), REQUIRED(max_frame)),
    "Start the metadata listener; '' is every address, port 0 a free one,\n"
    "max_frame 0 the default.")
{
    uint64_t port, max_frame;
    vnx_error_t error;
    const char *host =
        vnxi_py_text_get(self->state, operation, "listen_host", args->host);
    if (host == NULL ||
        !vnxi_py_int_between(self->state, operation, "listen_port", args->port,
                             0, 65535, &port) ||
        !vnxi_py_int_between(self->state, operation, "listen_max_frame",
                             args->max_frame, 0, VNX_LISTENER_MAX_FRAME_LIMIT,
                             &max_frame)) {
        return NULL;
    }
    vnx_listener_t *listener = listener_get(self, operation, max_frame);
    if (listener == NULL) {
        return NULL;
    }
    vnx_status_t status = VNXI_PY_WITHOUT_GIL(
        vnx_listener_start(listener, host, (int)port, NULL, &error));
    return listener_done(self, operation, status, &error);
}

PyObject *
vnxi_py_agent_listen_port(PyObject *op, void *Py_UNUSED(context))
{
    vnxi_py_agent_t *self = (vnxi_py_agent_t *)op;
    return PyLong_FromLong(
        self->listener != NULL ? vnx_listener_port(self->listener) : 0);
}

/* A command to the peer's listener, with the bytes that the command needs. */
typedef vnx_status_t (*command_fn)(vnx_listener_t *, const char *, int,
                                   const void *, size_t, vnx_error_t *);

static PyObject *
command(vnxi_py_agent_t *self, const char *operation, command_fn call,
        const address_t *address, const void *data, size_t len)
{
    vnx_error_t error;
    vnx_listener_t *listener = listener_get(self, operation, 0);
    if (listener == NULL) {
        return NULL;
    }
    vnx_status_t status = VNXI_PY_WITHOUT_GIL(
        call(listener, address->host, address->port, data, len, &error));
    return listener_done(self, operation, status, &error);
}

/* A command without bytes, in the form that command() calls. */
static vnx_status_t
invalidate(vnx_listener_t *listener, const char *host, int port,
           const void *data, size_t len, vnx_error_t *error)
{
    (void)data, (void)len;
    return vnx_listener_invalidate(listener, host, port, error);
}

VNXI_PY_AGENT_METHOD(
    send_local_metadata, (OPTIONAL(ip_addr, "''"), OPTIONAL(port, "8888")),
    "Send the agent's current metadata to a peer's listener, which loads\n"
    "it.\n\n"
    "ip_addr: an address or a name; '' means a central metadata server,\n"
    "    which is not supported\n"
    "port: the port of the listener\n\n"
    "Returns at once. NIXL's protocol has no answers: later failures are\n"
    "logged, counted in stats() and shown by describe().")
{
    address_t address;
    if (!address_get(self, operation, args->ip_addr, args->port, &address)) {
        return NULL;
    }
    return command(self, operation, vnx_listener_send, &address, NULL, 0);
}

VNXI_PY_AGENT_METHOD(
    send_partial_agent_metadata,
    (REQUIRED(descs), OPTIONAL(inc_conn_info, "False"),
     OPTIONAL(backends, "[]"), OPTIONAL(ip_addr, "''"), OPTIONAL(port, "8888"),
     OPTIONAL(label, "''")),
    "send_local_metadata() of the given regions only.\n\n"
    "descs, inc_conn_info, backends: as for get_partial_agent_metadata()\n"
    "ip_addr, port: as for send_local_metadata()\n"
    "label: for central metadata servers; ignored")
{
    address_t address;
    vnx_bytes_t metadata;
    if (!address_get(self, operation, args->ip_addr, args->port, &address) ||
        !vnxi_py_partial_metadata(self, operation, args->descs,
                                  args->inc_conn_info, args->backends,
                                  &metadata)) {
        return NULL;
    }
    PyObject *done = command(self, operation, vnx_listener_send, &address,
                             metadata.data, metadata.len);
    free(metadata.data);
    return done;
}

VNXI_PY_AGENT_METHOD(
    fetch_remote_metadata,
    (REQUIRED(remote_agent), OPTIONAL(ip_addr, "''"), OPTIONAL(port, "8888"),
     OPTIONAL(label, "''")),
    "Request metadata from a peer's listener; load it when it arrives.\n\n"
    "remote_agent: the expected agent (str or bytes); another one is\n"
    "    loaded too, with a warning\n"
    "ip_addr, port: as for send_local_metadata()\n"
    "label: for central metadata servers; ignored\n\n"
    "Returns at once; check_remote_metadata() shows when it is loaded.")
{
    vnxi_py_bytes_t peer;
    address_t address;
    if (!address_get(self, operation, args->ip_addr, args->port, &address) ||
        !vnxi_py_name_get(operation, args->remote_agent, &peer)) {
        return NULL;
    }
    PyObject *done = command(self, operation, vnx_listener_fetch, &address,
                             peer.data, peer.len);
    vnxi_py_bytes_put(&peer);
    return done;
}

VNXI_PY_AGENT_METHOD(invalidate_local_metadata,
                     (OPTIONAL(ip_addr, "''"), OPTIONAL(port, "8888")),
                     "Make a peer's listener forget this agent.\n\n"
                     "ip_addr, port: as for send_local_metadata()\n\n"
                     "Returns at once.")
{
    address_t address;
    if (!address_get(self, operation, args->ip_addr, args->port, &address)) {
        return NULL;
    }
    return command(self, operation, invalidate, &address, NULL, 0);
}

/* -- Counters --------------------------------------------------------------
 */

bool
vnxi_py_agent_listener_stats(const vnxi_py_agent_t *self, PyObject *dict,
                             const char *prefix)
{
    vnx_listener_stats_t stats = {0};
    if (self->listener != NULL) {
        vnx_listener_stats(self->listener, &stats);
    }
#define FIELD(name)       \
    {                     \
#name, stats.name \
    }
    const vnxi_py_number_t numbers[] = {
        FIELD(accepted),      FIELD(open),          FIELD(refused),
        FIELD(timed_out),     FIELD(evicted),       FIELD(loaded),
        FIELD(load_failures), FIELD(served),        FIELD(invalidated),
        FIELD(sent),          FIELD(send_failures), FIELD(pending),
    };
#undef FIELD
    return vnxi_py_dict_set_numbers(dict, prefix, numbers,
                                    sizeof numbers / sizeof numbers[0]);
}

static PyObject *
failure_text(vnx_listener_t *listener)
{
    vnx_error_t failure;
    return vnx_listener_failure(listener, &failure)
               ? vnxi_py_error_text(&failure)
               : Py_NewRef(Py_None);
}

bool
vnxi_py_agent_listener_describe(const vnxi_py_agent_t *self, PyObject *dict)
{
    if (self->listener == NULL) {
        return true;
    }
    PyObject *found = PyDict_New();
    bool good =
        found != NULL &&
        vnxi_py_dict_set(found, "port",
                         PyLong_FromLong(vnx_listener_port(self->listener))) &&
        vnxi_py_agent_listener_stats(self, found, "") &&
        vnxi_py_dict_set(found, "last_failure", failure_text(self->listener));
    if (!good) {
        Py_XDECREF(found);
        return false;
    }
    return vnxi_py_dict_set(dict, "metadata_listener", found);
}
