/*
 * Describes the engine and its peers, as members of a JSON object.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/json.h"
#include "engine/native/native.h"

static void
write_reach(vnxi_engine_t *engine, vnxi_writer_t *out)
{
    vnxi_ucx_t *ucx = atomic_load(&engine->ucx);
    char text[VNX_ERROR_CAUSE_MAX + 128];

    if (ucx != NULL) {
        vnxi_json_member(
            out, "reach",
            "agents of this process, of this host, of other hosts, "
            "and stock NIXL agents");
        vnxi_json_member(out, "ucx", vnxi_ucx_version(ucx));
        vnxi_json_member(out, "ucx_guard", vnxi_ucx_guarded(ucx));
        vnxi_json_number(out, "ucx_workers", vnxi_ucx_workers(ucx));
        return;
    }
    snprintf(text, sizeof text,
             "agents of this process and of this host; other hosts cannot be "
             "reached%s%s",
             engine->no_ucx[0] != '\0' ? ": " : "", engine->no_ucx);
    vnxi_json_member(out, "reach", text);
}

static void
describe_engine(vnxi_engine_t *engine, vnxi_writer_t *out)
{
    vnxi_hub_t *hub = atomic_load(&engine->hub);
    const char *name;
    bool is_first = true;

    vnxi_json_key(out, "backends");
    vnxi_json_text(out, "[");
    for (size_t i = 0; (name = vnxi_native_plugin(engine, i)) != NULL; i++) {
        if (atomic_load(&engine->backends[i].created)) {
            vnxi_json_text(out, is_first ? "" : ", ");
            vnxi_json_string(out, name);
            is_first = false;
        }
    }
    vnxi_json_text(out, "]");
    write_reach(engine, out);
    vnxi_json_number(out, "num_threads", engine->num_threads);
    vnxi_json_number(out, "regions", vnxi_registry_count(engine->registry));
    vnxi_json_number(out, "accepted_links",
                     hub != NULL ? vnxi_hub_accepted(hub) : 0);
}

typedef struct region_counts {
    size_t all, direct, confirmed;
} region_counts_t;

/* Count the peer's regions, those copied without the kernel, and those
 * confirmed by their owner (UCX cannot ask the owner). */
static region_counts_t
count_regions(vnxi_native_peer_t *peer)
{
    vnxi_region_table_t *table = vnxi_native_peer_table(peer);
    region_counts_t counts = {0};

    for (size_t i = 0; table != NULL && i < vnxi_region_table_count(table);
         i++) {
        const vnxi_region_t *region = vnxi_region_table_at(table, i);
        counts.all++;
        counts.direct += vnxi_native_region(region)->direct;
        counts.confirmed += peer->path != VNXI_PATH_UCX &&
                            vnxi_region_state(region) == VNXI_REGION_USABLE;
    }
    vnxi_region_table_release(table);
    return counts;
}

static const char *
path_name(const vnxi_native_peer_t *peer)
{
    return peer->path == VNXI_PATH_SHM   ? "SHM"
           : peer->path == VNXI_PATH_UCX ? "UCX"
                                         : "process";
}

static const char *
state_name(const vnxi_native_peer_t *peer)
{
    if (vnxi_native_peer_gone(peer)) {
        return "lost";
    }
    return peer->ucx != NULL && !vnxi_ucx_conn_is_wired(peer->ucx)
               ? "connecting"
               : "connected";
}

static const char *
path_reason(const vnxi_native_peer_t *peer)
{
    switch (peer->path) {
    case VNXI_PATH_SELF:
        return "the agent itself: copied within the process";
    case VNXI_PATH_PROCESS:
        return "an agent of this process: copied within the process";
    case VNXI_PATH_UCX:
        return "UCX: over the network, or by its transports within a host";
    case VNXI_PATH_SHM:
        break;
    }
    return "the same host: the kernel copies between the processes, and "
           "shared mappings are copied directly";
}

/* The process id of a stock agent is not known and reported as 0. */
static void
describe_ucx(vnxi_native_peer_t *peer, vnxi_writer_t *out)
{
    char transports[160];
    vnxi_ucx_conn_transports(peer->ucx, transports, sizeof transports);
    vnxi_json_member(out, "not_shm_because", peer->no_shm);
    vnxi_json_member(out, "transports", transports);
}

static void
describe_peer(vnxi_native_peer_t *peer, vnxi_writer_t *out)
{
    char cause[VNX_ERROR_CAUSE_MAX], no_map[sizeof peer->no_map];

    vnxi_native_peer_cause(peer, cause);
    vnxi_mutex_lock(&peer->lock);
    memcpy(no_map, peer->no_map, sizeof no_map);
    vnxi_mutex_unlock(&peer->lock);
    const region_counts_t regions = count_regions(peer);

    vnxi_json_member(out, "state", state_name(peer));
    vnxi_json_member(out, "path", path_name(peer));
    vnxi_json_member(out, "why", path_reason(peer));
    if (cause[0] != '\0') {
        vnxi_json_member(out, "cause", cause);
    }
    if (no_map[0] != '\0') {
        vnxi_json_member(out, "not_mapped_because", no_map);
    }
    if (peer->ucx != NULL) {
        describe_ucx(peer, out);
    }
    vnxi_json_number(out, "pid", peer->info.pid);
    vnxi_json_number(out, "regions", regions.all);
    vnxi_json_number(out, "regions_direct", regions.direct);
    vnxi_json_number(out, "regions_confirmed", regions.confirmed);
    vnxi_json_number(out, "transfers", atomic_load(&peer->xfers));
    vnxi_json_number(out, "bytes", atomic_load(&peer->bytes));
    vnxi_json_number(out, "notifs_sent", atomic_load(&peer->notifs));
}

vnx_status_t
vnxi_native_describe(vnxi_engine_t *engine, vnxi_peer_t *peer,
                     vnx_bytes_t *members_p, vnx_error_t *error)
{
    vnxi_writer_t out = {0};

    if (peer != NULL) {
        describe_peer(vnxi_native_peer(peer), &out);
    } else {
        describe_engine(engine, &out);
    }
    return vnxi_writer_take(&out, &members_p->data, &members_p->len)
               ? VNX_OK
               : vnxi_error_no_memory(error, "describe", 0);
}
