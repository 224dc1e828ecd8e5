#include "python/agent/agent.h"

#include <stdlib.h>
#include <string.h>

#include "python/arguments/convert.h"

/* Takes ownership of `json`. */
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

static bool
numbers_set(PyObject *dict, const vnx_agent_stats_t *stats)
{
#define FIELD(name)        \
    {                      \
#name, stats->name \
    }
    const vnxi_py_number_t numbers[] = {
        FIELD(xfers_posted),
        FIELD(xfers_done),
        FIELD(xfers_failed),
        FIELD(xfers_cancelled),
        FIELD(bytes_read),
        FIELD(bytes_written),
        FIELD(rows),
        FIELD(pieces),
        FIELD(notifs_sent),
        FIELD(notifs_received),
        FIELD(notifs_dropped),
        FIELD(notifs_pending),
        FIELD(notif_bytes_pending),
        FIELD(peers),
        FIELD(peers_lost),
        FIELD(regions),
        FIELD(live_dlists),
        FIELD(live_xfers),
    };
#undef FIELD
    return vnxi_py_dict_set_numbers(dict, "", numbers,
                                    sizeof numbers / sizeof numbers[0]);
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
         !vnxi_py_agent_listener_stats(self, dict, "listener_") ||
         !vnxi_py_dict_set(
             dict, "xfer_us_log2",
             vnxi_py_numbers_new(stats.xfer_us_log2,
                                 sizeof stats.xfer_us_log2 /
                                     sizeof stats.xfer_us_log2[0])))) {
        Py_CLEAR(dict);
    }
    return dict;
}
