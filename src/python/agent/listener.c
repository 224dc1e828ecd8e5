/*
 * The metadata listener of an agent.  It is made at first use, under the GIL,
 * and lives as long as the object; so methods may use it without the GIL.
 */
#include "python/agent/agent.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "python/arguments/convert.h"
#include "python/arguments/integers.h"
#include "python/descriptors/descs.h"

/* -- Arguments ------------------------------------------------------------ */

/* The peer's listener.  `host` is borrowed from the argument. */
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
        vnxi_py_raise(self->state, &error);
        return false;
    }
    return true;
}

/* -- The listener --------------------------------------------------------- */

/* NULL: exception. */
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

/* Every method's end: None, or what went wrong. */
static PyObject *
listener_done(vnxi_py_agent_t *self, const char *operation,
              vnx_status_t status, vnx_error_t *error)
{
    if (status < 0) {
        error->operation = operation;
        return vnxi_py_raise(self->state, error);
    }
    Py_RETURN_NONE;
}

static const vnxi_py_signature_t listen_signature = {
    .name = "_listen",
    .count = 3,
    .required = 3,
    .params = {VNXI_PY_NAME_host, VNXI_PY_NAME_port, VNXI_PY_NAME_max_frame},
};

VNXI_PY_METHOD(listen)
{
    static const char *const operation = "nixl_agent";
    vnxi_py_agent_t *self = (vnxi_py_agent_t *)op;
    PyObject *values[3];
    uint64_t port, max_frame;
    vnx_error_t error;
    vnx_status_t status;
    if (!vnxi_py_agent_begin(op, &listen_signature, args, nargs, kwnames,
                             values)) {
        return NULL;
    }
    const char *host =
        vnxi_py_text_get(self->state, operation, "listen_host", values[0]);
    if (host == NULL ||
        !vnxi_py_int_between(self->state, operation, "listen_port", values[1],
                             0, 65535, &port) ||
        !vnxi_py_int_between(self->state, operation, "listen_max_frame",
                             values[2], 0, VNX_LISTENER_MAX_FRAME_LIMIT,
                             &max_frame)) {
        return NULL;
    }
    vnx_listener_t *listener = listener_get(self, operation, max_frame);
    if (listener == NULL) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS;
    status = vnx_listener_start(listener, host, (int)port, NULL, &error);
    Py_END_ALLOW_THREADS;
    return listener_done(self, operation, status, &error);
}

PyObject *
vnxi_py_agent_listen_port(PyObject *op, void *context)
{
    vnxi_py_agent_t *self = (vnxi_py_agent_t *)op;
    (void)context;
    return PyLong_FromLong(
        self->listener != NULL ? vnx_listener_port(self->listener) : 0);
}

/* -- Commands ------------------------------------------------------------- */

static PyObject *
send_bytes(vnxi_py_agent_t *self, const char *operation,
           const address_t *address, const vnx_bytes_t *metadata)
{
    vnx_error_t error;
    vnx_status_t status;
    vnx_listener_t *listener = listener_get(self, operation, 0);
    if (listener == NULL) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS;
    status = vnx_listener_send(listener, address->host, address->port,
                               metadata->data, metadata->len, &error);
    Py_END_ALLOW_THREADS;
    return listener_done(self, operation, status, &error);
}

static const vnxi_py_signature_t send_signature = {
    .name = "send_local_metadata",
    .count = 2,
    .params = {VNXI_PY_NAME_ip_addr, VNXI_PY_NAME_port},
};

VNXI_PY_METHOD(send_local_metadata)
{
    static const vnx_bytes_t whole;
    vnxi_py_agent_t *self = (vnxi_py_agent_t *)op;
    PyObject *values[2];
    address_t address;
    if (!vnxi_py_agent_begin(op, &send_signature, args, nargs, kwnames,
                             values) ||
        !address_get(self, send_signature.name, values[0], values[1],
                     &address)) {
        return NULL;
    }
    return send_bytes(self, send_signature.name, &address, &whole);
}

static const vnxi_py_signature_t partial_signature = {
    .name = "send_partial_agent_metadata",
    .count = 6,
    .required = 1,
    .params = {VNXI_PY_NAME_descs, VNXI_PY_NAME_inc_conn_info,
               VNXI_PY_NAME_backends, VNXI_PY_NAME_ip_addr, VNXI_PY_NAME_port,
               VNXI_PY_NAME_label},
};

VNXI_PY_METHOD(send_partial_agent_metadata)
{
    const char *name = partial_signature.name;
    vnxi_py_agent_t *self = (vnxi_py_agent_t *)op;
    PyObject *values[6];
    address_t address;
    vnx_bytes_t metadata;
    if (!vnxi_py_agent_begin(op, &partial_signature, args, nargs, kwnames,
                             values) ||
        !address_get(self, name, values[3], values[4], &address) ||
        !vnxi_py_partial_metadata(self, name, values, &metadata)) {
        return NULL;
    }
    PyObject *done = send_bytes(self, name, &address, &metadata);
    free(metadata.data);
    return done;
}

static const vnxi_py_signature_t fetch_signature = {
    .name = "fetch_remote_metadata",
    .count = 4,
    .required = 1,
    .params = {VNXI_PY_NAME_remote_agent, VNXI_PY_NAME_ip_addr,
               VNXI_PY_NAME_port, VNXI_PY_NAME_label},
};

static PyObject *
fetch(vnxi_py_agent_t *self, const char *operation, const address_t *address,
      const vnxi_py_bytes_t *peer)
{
    vnx_error_t error;
    vnx_status_t status;
    vnx_listener_t *listener = listener_get(self, operation, 0);
    if (listener == NULL) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS;
    status = vnx_listener_fetch(listener, address->host, address->port,
                                peer->data, peer->len, &error);
    Py_END_ALLOW_THREADS;
    return listener_done(self, operation, status, &error);
}

VNXI_PY_METHOD(fetch_remote_metadata)
{
    const char *name = fetch_signature.name;
    vnxi_py_agent_t *self = (vnxi_py_agent_t *)op;
    PyObject *values[4];
    vnxi_py_bytes_t peer;
    address_t address;
    if (!vnxi_py_agent_begin(op, &fetch_signature, args, nargs, kwnames,
                             values) ||
        !address_get(self, name, values[1], values[2], &address) ||
        !vnxi_py_name_get(name, values[0], &peer)) {
        return NULL;
    }
    PyObject *done = fetch(self, name, &address, &peer);
    vnxi_py_bytes_put(&peer);
    return done;
}

static const vnxi_py_signature_t invalidate_signature = {
    .name = "invalidate_local_metadata",
    .count = 2,
    .params = {VNXI_PY_NAME_ip_addr, VNXI_PY_NAME_port},
};

VNXI_PY_METHOD(invalidate_local_metadata)
{
    const char *name = invalidate_signature.name;
    vnxi_py_agent_t *self = (vnxi_py_agent_t *)op;
    PyObject *values[2];
    address_t address;
    vnx_error_t error;
    vnx_status_t status;
    if (!vnxi_py_agent_begin(op, &invalidate_signature, args, nargs, kwnames,
                             values) ||
        !address_get(self, name, values[0], values[1], &address)) {
        return NULL;
    }
    vnx_listener_t *listener = listener_get(self, name, 0);
    if (listener == NULL) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS;
    status =
        vnx_listener_invalidate(listener, address.host, address.port, &error);
    Py_END_ALLOW_THREADS;
    return listener_done(self, name, status, &error);
}

/* -- Looking in ----------------------------------------------------------- */

#define COUNTERS(X)  \
    X(accepted)      \
    X(open)          \
    X(refused)       \
    X(timed_out)     \
    X(evicted)       \
    X(loaded)        \
    X(load_failures) \
    X(served)        \
    X(invalidated)   \
    X(sent)          \
    X(send_failures) \
    X(pending)

static bool
counters_set(const vnxi_py_agent_t *self, PyObject *dict, const char *prefix)
{
    vnx_listener_stats_t stats = {0};
    char key[48];
    if (self->listener != NULL) {
        vnx_listener_stats(self->listener, &stats);
    }
    const struct {
        const char *name;
        uint64_t value;
    } rows[] = {
#define COUNTER_ROW(field) {#field, stats.field},
        COUNTERS(COUNTER_ROW)
#undef COUNTER_ROW
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        snprintf(key, sizeof key, "%s%s", prefix, rows[i].name);
        if (!vnxi_py_dict_set(dict, key,
                              PyLong_FromUnsignedLongLong(rows[i].value))) {
            return false;
        }
    }
    return true;
}

bool
vnxi_py_agent_listener_stats(const vnxi_py_agent_t *self, PyObject *dict)
{
    return counters_set(self, dict, "listener_");
}

static PyObject *
failure_text(vnx_listener_t *listener)
{
    char line[VNX_ERROR_CAUSE_MAX + VNX_ERROR_PEER_MAX + 256];
    vnx_error_t failure;
    if (!vnx_listener_failure(listener, &failure)) {
        return Py_NewRef(Py_None);
    }
    vnx_error_format(&failure, line, sizeof line);
    return PyUnicode_DecodeUTF8(line, (Py_ssize_t)strlen(line), "replace");
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
        counters_set(self, found, "") &&
        vnxi_py_dict_set(found, "last_failure", failure_text(self->listener));
    if (!good) {
        Py_XDECREF(found);
        return false;
    }
    return vnxi_py_dict_set(dict, "metadata_listener", found);
}
