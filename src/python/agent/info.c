#include "python/agent/agent.h"

#include <stdlib.h>
#include <string.h>

#include "python/arguments/convert.h"

/* -- describe() ----------------------------------------------------------- */

/* Takes `json`. */
static PyObject *
json_object(vnx_bytes_t *json)
{
    PyObject *module = PyImport_ImportModule("json");
    PyObject *object =
        module != NULL ? PyObject_CallMethod(module, "loads", "s#", json->data,
                                             (Py_ssize_t)json->len)
                       : NULL;
    Py_XDECREF(module);
    free(json->data);
    return object;
}

static const vnxi_py_signature_t describe_signature = {
    .name = "describe",
    .count = 1,
    .params = {VNXI_PY_NAME_peer},
};

VNXI_PY_METHOD(describe)
{
    vnxi_py_agent_t *self = (vnxi_py_agent_t *)op;
    PyObject *value;
    vnxi_py_bytes_t peer = {.data = ""};
    vnx_bytes_t json;
    vnx_error_t error;
    vnx_status_t status;
    if (!vnxi_py_agent_begin(op, &describe_signature, args, nargs, kwnames,
                             &value)) {
        return NULL;
    }
    if (value != NULL && value != Py_None &&
        !vnxi_py_peer_get(self->state, describe_signature.name, value,
                          &peer)) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS;
    status =
        vnx_agent_describe(self->agent, peer.data, peer.len, &json, &error);
    Py_END_ALLOW_THREADS;
    vnxi_py_bytes_put(&peer);
    if (status < 0) {
        return vnxi_py_raise(self->state, &error);
    }
    PyObject *dict = json_object(&json);
    if (dict != NULL && peer.len == 0 &&
        !vnxi_py_agent_listener_describe(self, dict)) {
        Py_CLEAR(dict);
    }
    return dict;
}

/* -- stats() -------------------------------------------------------------- */

/* The fields of vnx_agent_stats_t that are one number. */
#define STATS_NUMBERS(X)   \
    X(xfers_posted)        \
    X(xfers_done)          \
    X(xfers_failed)        \
    X(xfers_cancelled)     \
    X(bytes_read)          \
    X(bytes_written)       \
    X(rows)                \
    X(pieces)              \
    X(notifs_sent)         \
    X(notifs_received)     \
    X(notifs_dropped)      \
    X(notifs_pending)      \
    X(notif_bytes_pending) \
    X(peers)               \
    X(peers_lost)          \
    X(regions)             \
    X(live_dlists)         \
    X(live_xfers)

bool
vnxi_py_dict_set(PyObject *dict, const char *key, PyObject *value)
{
    bool good = value != NULL && PyDict_SetItemString(dict, key, value) == 0;
    Py_XDECREF(value);
    return good;
}

static bool
numbers_set(PyObject *dict, const vnx_agent_stats_t *stats)
{
    const struct {
        const char *key;
        uint64_t value;
    } rows[] = {
#define STATS_ROW(field) {#field, stats->field},
        STATS_NUMBERS(STATS_ROW)
#undef STATS_ROW
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        if (!vnxi_py_dict_set(dict, rows[i].key,
                              PyLong_FromUnsignedLongLong(rows[i].value))) {
            return false;
        }
    }
    return true;
}

static PyObject *
histogram(const uint64_t *counts, size_t count)
{
    PyObject *list = PyList_New((Py_ssize_t)count);
    for (size_t i = 0; list != NULL && i < count; i++) {
        PyObject *value = PyLong_FromUnsignedLongLong(counts[i]);
        if (value == NULL) {
            Py_CLEAR(list);
        } else {
            PyList_SET_ITEM(list, (Py_ssize_t)i, value);
        }
    }
    return list;
}

static const vnxi_py_signature_t stats_signature = {.name = "stats"};

VNXI_PY_METHOD(stats)
{
    vnxi_py_agent_t *self = (vnxi_py_agent_t *)op;
    vnx_agent_stats_t stats;
    if (!vnxi_py_agent_begin(op, &stats_signature, args, nargs, kwnames,
                             NULL)) {
        return NULL;
    }
    vnx_agent_stats(self->agent, &stats);
    PyObject *dict = PyDict_New();
    if (dict != NULL &&
        (!numbers_set(dict, &stats) ||
         !vnxi_py_agent_listener_stats(self, dict) ||
         !vnxi_py_dict_set(dict, "xfer_us_log2",
                           histogram(stats.xfer_us_log2,
                                     sizeof stats.xfer_us_log2 /
                                         sizeof stats.xfer_us_log2[0])))) {
        Py_CLEAR(dict);
    }
    return dict;
}
