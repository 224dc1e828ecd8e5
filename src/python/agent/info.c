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

VNXI_PY_AGENT_METHOD(
    describe, (OPTIONAL(peer, "None")),
    "What there is to say of the agent, or of a peer (str or bytes), as a\n"
    "dict: engine, backends and why; path, state, generation, why no faster\n"
    "path, counters. nixlNotFoundError for an unknown peer.")
{
    vnxi_py_bytes_t peer = {.data = ""};
    vnx_bytes_t json;
    vnx_error_t error;
    if (args->peer != NULL && args->peer != Py_None &&
        !vnxi_py_peer_get(self->state, operation, args->peer, &peer)) {
        return NULL;
    }
    vnx_status_t status = VNXI_PY_WITHOUT_GIL(
        vnx_agent_describe(self->agent, peer.data, peer.len, &json, &error));
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

VNXI_PY_AGENT_METHOD(
    stats, (),
    "Counters of the agent: a dict of str to int; 'xfer_us_log2' is a list\n"
    "of 32: transfers that took from 2**i to 2**(i + 1) microseconds.")
{
    vnx_agent_stats_t stats;
    vnx_agent_stats(self->agent, &stats);
    PyObject *dict = PyDict_New();
    if (dict != NULL &&
        (!numbers_set(dict, &stats) ||
         !vnxi_py_agent_listener_stats(self, dict) ||
         !vnxi_py_dict_set(
             dict, "xfer_us_log2",
             vnxi_py_numbers_new(stats.xfer_us_log2,
                                 sizeof stats.xfer_us_log2 /
                                     sizeof stats.xfer_us_log2[0])))) {
        Py_CLEAR(dict);
    }
    return dict;
}
