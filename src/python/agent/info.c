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
    "Describe the agent or a peer. docs/telemetry.md lists the keys.\n\n"
    "peer: str or bytes; None: the agent\n\n"
    "The agent has engine, backends and the reasons for them; a peer has\n"
    "path, state, generation, why no faster path is used, and counters.\n"
    "nixlNotFoundError for an unknown peer.")
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
        FIELD(reads_done),
        FIELD(writes_done),
        FIELD(bytes_read),
        FIELD(bytes_written),
        FIELD(last_bytes_read),
        FIELD(last_bytes_written),
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
        FIELD(bytes_registered),
        FIELD(bytes_registered_total),
        FIELD(bytes_deregistered_total),
        FIELD(last_bytes_registered),
        FIELD(last_bytes_deregistered),
        FIELD(live_dlists),
        FIELD(live_xfers),
        FIELD(xfer_us_sum),
        FIELD(post_us_sum),
        FIELD(last_xfer_us),
        FIELD(last_post_us),
        FIELD(notif_wait_us_sum),
    };
#undef FIELD
    return vnxi_py_dict_set_numbers(dict, "", numbers,
                                    sizeof numbers / sizeof numbers[0]);
}

static bool
histograms_set(PyObject *dict, const vnx_agent_stats_t *stats)
{
    const struct {
        const char *key;
        const uint64_t *counts;
        size_t count;
    } of[] = {
        {"xfer_us_log2", stats->xfer_us_log2, VNX_HISTOGRAM},
        {"post_us_log2", stats->post_us_log2, VNX_HISTOGRAM},
        {"notif_wait_us_log2", stats->notif_wait_us_log2, VNX_HISTOGRAM},
        {"xfer_us_nixl", stats->xfer_us_nixl, VNX_NIXL_HISTOGRAM},
        {"post_us_nixl", stats->post_us_nixl, VNX_NIXL_HISTOGRAM},
    };
    bool good = true;

    for (size_t i = 0; good && i < sizeof of / sizeof of[0]; i++) {
        good = vnxi_py_dict_set(
            dict, of[i].key, vnxi_py_numbers_new(of[i].counts, of[i].count));
    }
    return good;
}

/* A dict of the statuses that occurred. */
static PyObject *
statuses_new(const uint64_t counts[VNX_STATUS_COUNT])
{
    PyObject *dict = PyDict_New();

    for (unsigned i = 0; dict != NULL && i < VNX_STATUS_COUNT; i++) {
        if (counts[i] != 0 &&
            !vnxi_py_dict_set(dict, vnx_status_name(vnx_status_at(i)),
                              PyLong_FromUnsignedLongLong(counts[i]))) {
            Py_CLEAR(dict);
        }
    }
    return dict;
}

VNXI_PY_AGENT_METHOD(
    stats, (),
    "Counters of the agent. docs/telemetry.md lists the keys.\n\n"
    "'failures' and 'refusals' are dicts from the name of a status to a\n"
    "number. Values whose key ends with '_log2' or '_nixl' are\n"
    "histograms: lists of counts. All others are ints.")
{
    vnx_agent_stats_t stats;
    vnx_agent_stats(self->agent, &stats);
    PyObject *dict = PyDict_New();
    if (dict != NULL &&
        (!numbers_set(dict, &stats) ||
         !vnxi_py_agent_listener_stats(self, dict, "listener_") ||
         !vnxi_py_dict_set(dict, "failures", statuses_new(stats.failures)) ||
         !vnxi_py_dict_set(dict, "refusals", statuses_new(stats.refusals)) ||
         !histograms_set(dict, &stats))) {
        Py_CLEAR(dict);
    }
    return dict;
}

VNXI_PY_AGENT_METHOD(
    peers, (),
    "State and counters of each loaded peer, also of lost ones, by name.")
{
    vnx_bytes_t json;
    vnx_error_t error;
    vnx_status_t status =
        VNXI_PY_WITHOUT_GIL(vnx_agent_peers(self->agent, &json, &error));
    return status < 0 ? vnxi_py_raise(self->state, &error)
                      : json_object(&json);
}
