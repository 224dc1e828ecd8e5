/*
 * Describes the engine and its peers as members of a JSON object.
 */
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/json.h"
#include "engine/nixl/nixl.h"

static void
describe_engine(vnxi_engine_t *engine, vnxi_writer_t *out)
{
    size_t count = atomic_load(&engine->backend_count);
    const char *guard = atomic_load(&engine->ucx_guard);

    vnxi_json_key(out, "backends");
    vnxi_json_text(out, "[");
    for (size_t i = 0; i < count; i++) {
        vnxi_json_text(out, i > 0 ? ", " : "");
        vnxi_json_string(out, engine->backends[i].name);
    }
    vnxi_json_text(out, "]");
    vnxi_json_member(out, "library", vnxi_nixl_library_path());
    if (guard != NULL) {
        vnxi_json_member(out, "ucx_guard", guard);
    }
    vnxi_json_member(out, "reach", "agents that NIXL's backends can reach");
    vnxi_json_number(out, "regions", vnxi_registry_count(engine->registry));
}

static void
describe_paths(const vnxi_nixl_peer_t *peer, vnxi_region_table_t *table,
               vnxi_writer_t *out)
{
    char names[128];
    uint32_t set = (uint32_t)atomic_load(&peer->reached_by);
    size_t count = table != NULL ? vnxi_region_table_count(table) : 0;

    for (size_t i = 0; i < count; i++) {
        set |= (uint32_t)atomic_load(
            &vnxi_nixl_region(vnxi_region_table_at(table, i))->backends);
    }
    vnxi_nixl_backend_names(peer->engine, set, names, sizeof names);
    vnxi_json_member(out, "path", names);
    vnxi_json_member(out, "why",
                     peer->is_self
                         ? "the agent itself: NIXL's backends copy within it"
                         : "the backends that both have");
    vnxi_json_number(out, "regions", count);
}

static void
describe_peer(vnxi_nixl_peer_t *peer, vnxi_writer_t *out)
{
    vnxi_region_table_t *table = vnxi_nixl_peer_table(peer);
    char cause[VNX_ERROR_CAUSE_MAX];

    vnxi_peer_end_cause(&peer->end, cause);
    vnxi_json_member(out, "state", cause[0] != '\0' ? "lost" : "connected");
    describe_paths(peer, table, out);
    if (cause[0] != '\0') {
        vnxi_json_member(out, "cause", cause);
    }
    vnxi_json_number(out, "transfers", atomic_load(&peer->xfers));
    vnxi_json_number(out, "bytes", atomic_load(&peer->bytes));
    vnxi_json_number(out, "notifs_sent", atomic_load(&peer->notifs));
    vnxi_region_table_release(table);
}

vnx_status_t
vnxi_nixl_describe(vnxi_engine_t *engine, vnxi_peer_t *peer,
                   vnx_bytes_t *members_p, vnx_error_t *error)
{
    vnxi_writer_t out = {0};

    if (peer != NULL) {
        describe_peer(vnxi_nixl_peer(peer), &out);
    } else {
        describe_engine(engine, &out);
    }
    return vnxi_writer_take(&out, &members_p->data, &members_p->len)
               ? VNX_OK
               : vnxi_error_no_memory(error, "vnx_agent_describe", 0);
}
