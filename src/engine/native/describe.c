/*
 * Describes the engine and its peers, as members of a JSON object.
 */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/json.h"
#include "engine/native/native.h"

/* -- The engine ------------------------------------------------------------
 */

static void
write_reach(vnxi_engine_t *engine, vnxi_writer_t *out)
{
    char text[VNX_ERROR_CAUSE_MAX + 128];
    const char *missing = "";

    for (unsigned t = 0; t < VNXI_TRANSPORTS; t++) {
        if (vnxi_transports[t]->scope != VNXI_SCOPE_NETWORK) {
            continue;
        }
        if (vnxi_native_port(engine, t) != NULL) {
            vnxi_json_member(
                out, "reach",
                "agents of this process, of this host, of other hosts, "
                "and stock NIXL agents");
            return;
        }
        missing = vnxi_native_missing(engine, t);
    }
    snprintf(text, sizeof text,
             "agents of this process and of this host; other hosts cannot be "
             "reached%s%s",
             missing[0] != '\0' ? ": " : "", missing);
    vnxi_json_member(out, "reach", text);
}

static void
describe_engine(vnxi_engine_t *engine, vnxi_writer_t *out)
{
    bool is_first = true;

    vnxi_json_key(out, "backends");
    vnxi_json_text(out, "[");
    for (unsigned t = VNXI_TRANSPORTS; t-- > 0;) {
        if (atomic_load(&engine->backends[t].created)) {
            vnxi_json_text(out, is_first ? "" : ", ");
            vnxi_json_string(out, vnxi_transports[t]->backend);
            is_first = false;
        }
    }
    vnxi_json_text(out, "]");
    write_reach(engine, out);
    for (unsigned t = 0; t < VNXI_TRANSPORTS; t++) {
        vnxi_port_t *port = vnxi_native_port(engine, t);
        if (port != NULL && port->transport->describe_port != NULL) {
            port->transport->describe_port(port, out);
        }
    }
    vnxi_json_number(out, "num_threads", engine->num_threads);
    vnxi_json_number(out, "regions", vnxi_registry_count(engine->registry));
}

/* -- A peer ----------------------------------------------------------------
 */

static const vnxi_transport_t *
main_of(const vnxi_native_peer_t *peer)
{
    return vnxi_transports[atomic_load(&peer->main)];
}

typedef struct region_counts {
    size_t all, direct, confirmed;
    uint32_t mems; /* their kinds, a bit set */
} region_counts_t;

/* Count the peer's regions, those copied without the kernel, and those
 * confirmed by their owner (who can be asked unless the peer is reached by the
 * network). */
static region_counts_t
count_regions(vnxi_native_peer_t *peer)
{
    vnxi_region_table_t *table = vnxi_native_peer_table(peer);
    bool is_asked = main_of(peer)->scope != VNXI_SCOPE_NETWORK;
    region_counts_t counts = {0};

    for (size_t i = 0; table != NULL && i < vnxi_region_table_count(table);
         i++) {
        const vnxi_region_t *region = vnxi_region_table_at(table, i);
        counts.all++;
        counts.direct += vnxi_route_from(vnxi_region_routes(region),
                                         VNX_MEM_DRAM) == VNXI_ROUTE_COPY;
        counts.confirmed +=
            is_asked && vnxi_region_state(region) == VNXI_REGION_USABLE;
        counts.mems |= 1u << region->mem;
    }
    vnxi_region_table_release(table);
    return counts;
}

static const char *
conn_state(const vnxi_native_peer_t *peer)
{
    const vnxi_conn_t *conn = vnxi_native_conn(peer, atomic_load(&peer->main));

    return main_of(peer)->is_connected == NULL ||
                   main_of(peer)->is_connected(conn)
               ? "connected"
               : "connecting";
}

/* Why faster transports do not reach the peer: "not_shm_because". */
static void
write_refusals(vnxi_native_peer_t *peer, vnxi_writer_t *out)
{
    for (unsigned t = 0; t < atomic_load(&peer->main); t++) {
        char key[64], cause[VNX_ERROR_CAUSE_MAX];
        const char *backend = vnxi_transports[t]->backend;
        size_t len = 4;
        if (backend == NULL) {
            continue;
        }
        vnxi_native_why_not(peer, t, VNX_MEM_DRAM, VNX_MEM_DRAM, cause);
        memcpy(key, "not_", len);
        for (; *backend != '\0' && len < 40; backend++) {
            key[len++] = (char)tolower((unsigned char)*backend);
        }
        memcpy(key + len, "_because", sizeof "_because");
        vnxi_json_member(out, key, cause);
    }
}

/* Without GPU memory nobody asks why a transport for it does not serve. */
static bool
is_beside_the_point(const vnxi_engine_t *engine, unsigned t, vnx_mem_t local,
                    vnx_mem_t remote)
{
    const vnxi_port_t *port = vnxi_native_port(engine, t);
    return port != NULL && local == VNX_MEM_DRAM && remote == VNX_MEM_DRAM &&
           port->transport->refuses(port, local, remote) != NULL;
}

/* One pair of kinds of memory: the transport that serves it, and why faster
 * ones do not. */
static void
write_route(vnxi_native_peer_t *peer, vnx_mem_t local, vnx_mem_t remote,
            vnxi_writer_t *out)
{
    char why[VNX_ERROR_CAUSE_MAX] = "-";
    vnxi_writer_t route = {0}, faster = {0};
    unsigned t = 0;

    for (; t < VNXI_TRANSPORTS; t++) {
        vnxi_native_why_not(peer, t, local, remote, why);
        if (why[0] == '\0') {
            break;
        }
        if (!is_beside_the_point(peer->engine, t, local, remote)) {
            vnxi_json_member(&faster, vnxi_transports[t]->name, why);
        }
    }
    vnxi_json_member(&route, "local", vnx_mem_name(local));
    vnxi_json_member(&route, "remote", vnx_mem_name(remote));
    vnxi_json_key(&route, "transport");
    if (t < VNXI_TRANSPORTS) {
        vnxi_json_string(&route, vnxi_transports[t]->name);
    } else {
        vnxi_json_text(&route, "null");
    }
    vnxi_json_key(&route, "not");
    vnxi_json_object(&route, &faster);
    vnxi_json_object(out, &route);
}

/* The kinds of memory that occur on either side or can occur: the peer may
 * have the kinds that this agent can have. */
static void
write_routes(vnxi_native_peer_t *peer, uint32_t remote_mems,
             vnxi_writer_t *out)
{
    uint32_t local_mems = vnxi_native_mems(peer->engine, VNXI_TRANSPORTS);
    vnxi_reach_t reach;
    bool is_first = true;

    vnxi_native_find_reach(peer->engine, peer, &reach);
    vnxi_json_key(out, "routes");
    vnxi_json_text(out, "[");
    for (unsigned i = 0; i < VNX_MEM_COUNT * VNX_MEM_COUNT; i++) {
        unsigned local = i / VNX_MEM_COUNT, remote = i % VNX_MEM_COUNT;
        bool is_there = (remote_mems >> remote & 1) != 0;
        bool can_come =
            (local_mems >> remote & 1) != 0 && reach.moves[local][remote] != 0;
        if ((local_mems >> local & 1) == 0 || (!is_there && !can_come)) {
            continue;
        }
        vnxi_json_text(out, is_first ? "" : ", ");
        write_route(peer, local, remote, out);
        is_first = false;
    }
    vnxi_json_text(out, "]");
}

/* The process id of a stock agent is not known and reported as 0. */
static uint32_t
pid_of(const vnxi_native_peer_t *peer)
{
    uint32_t pid = 0;

    for (unsigned t = 0; t < VNXI_TRANSPORTS && pid == 0; t++) {
        vnxi_conn_t *conn = atomic_load(&peer->conns[t]);
        if (conn != NULL && vnxi_transports[t]->find_pid != NULL) {
            pid = vnxi_transports[t]->find_pid(conn, false);
        }
    }
    return pid;
}

void
vnxi_native_peer_status(vnxi_peer_t *base, vnxi_peer_status_t *status_p)
{
    vnxi_native_peer_t *peer = vnxi_native_peer(base);

    if (vnxi_native_peer_gone(peer)) {
        status_p->state = "lost";
        vnxi_peer_end_cause(&peer->end, status_p->cause);
    } else {
        status_p->state = conn_state(peer);
        status_p->cause[0] = '\0';
    }
    snprintf(status_p->path, sizeof status_p->path, "%s", main_of(peer)->name);
    status_p->pid = pid_of(peer);
}

static void
describe_peer(vnxi_native_peer_t *peer, vnxi_writer_t *out)
{
    const region_counts_t regions = count_regions(peer);
    bool is_self = peer == peer->engine->self;

    vnxi_json_member(out, "why",
                     is_self ? "the agent itself: copied within the process"
                             : main_of(peer)->why);
    write_refusals(peer, out);
    for (unsigned t = 0; t < VNXI_TRANSPORTS; t++) {
        vnxi_conn_t *conn = vnxi_native_conn(peer, t);
        if (conn != NULL && vnxi_transports[t]->describe_conn != NULL) {
            vnxi_transports[t]->describe_conn(
                conn, t == atomic_load(&peer->main), out);
        }
    }
    write_routes(peer, regions.mems, out);
    vnxi_json_number(out, "regions", regions.all);
    vnxi_json_number(out, "regions_direct", regions.direct);
    vnxi_json_number(out, "regions_confirmed", regions.confirmed);
}

void
vnxi_native_describe(vnxi_engine_t *engine, vnxi_peer_t *peer,
                     vnxi_writer_t *out)
{
    if (peer != NULL) {
        describe_peer(vnxi_native_peer(peer), out);
    } else {
        describe_engine(engine, out);
    }
}
