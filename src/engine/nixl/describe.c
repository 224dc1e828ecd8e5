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

static size_t
count_of(const vnxi_region_table_t *table)
{
    return table != NULL ? vnxi_region_table_count(table) : 0;
}

void
vnxi_nixl_peer_status(vnxi_peer_t *base, vnxi_peer_status_t *status_p)
{
    vnxi_nixl_peer_t *peer = vnxi_nixl_peer(base);
    vnxi_region_table_t *table = vnxi_nixl_peer_table(peer);
    uint32_t set = (uint32_t)atomic_load(&peer->reached_by);

    for (size_t i = 0; i < count_of(table); i++) {
        set |= (uint32_t)atomic_load(
            &vnxi_nixl_region(vnxi_region_table_at(table, i))->backends);
    }
    vnxi_region_table_release(table);
    vnxi_nixl_backend_names(peer->engine, set, status_p->path,
                            sizeof status_p->path);
    vnxi_peer_end_cause(&peer->end, status_p->cause);
    status_p->state = status_p->cause[0] != '\0' ? "lost" : "connected";
    status_p->pid = 0; /* NIXL's metadata does not name the process */
}

static void
describe_peer(vnxi_nixl_peer_t *peer, vnxi_writer_t *out)
{
    vnxi_region_table_t *table = vnxi_nixl_peer_table(peer);

    vnxi_json_member(out, "why",
                     peer->is_self
                         ? "the agent itself: NIXL's backends copy within it"
                         : "the backends that both have");
    vnxi_json_number(out, "regions", count_of(table));
    vnxi_region_table_release(table);
}

void
vnxi_nixl_describe(vnxi_engine_t *engine, vnxi_peer_t *peer,
                   vnxi_writer_t *out)
{
    if (peer != NULL) {
        describe_peer(vnxi_nixl_peer(peer), out);
    } else {
        describe_engine(engine, out);
    }
}
