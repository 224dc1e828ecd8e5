/*
 * Loading a peer's metadata, and closing the peer.
 *
 * Design notes.  The blob is parsed and checked here first, because the
 * library reports no causes and forgets the whole peer if a part of its blob
 * is bad.
 *
 * Stock metadata has no instance id.  An instance is identified by the
 * connection info that its backends publish, which changes at every start.
 * Stock metadata also does not say whether it lists all regions or some.  So
 * loading adds regions, and regions that are not listed stay.  If a listed
 * region has another key than before, it was registered again.  The library
 * rejects the new key, so the peer is loaded as a new generation, and lists
 * prepared on the old one report that.
 */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/error.h"
#include "engine/nixl/nixl.h"

/* Limit of the wait for transfers in flight to a peer that is closed. */
#define CLOSE_NS 2000000000u

typedef struct loading {
    vnxi_engine_t *engine;
    const vnxi_metadata_t *blob;
    const void *data;
    size_t len;
    vnxi_nixl_conn_t *conns; /* owned: of the common backends */
    size_t conn_count;
    vnx_error_t *error;
} loading_t;

static vnx_status_t
refuse(loading_t *loading, vnx_status_t status, const char *cause)
{
    return vnxi_load_refuse(loading->blob, status, cause, loading->error);
}

static vnx_status_t
no_memory(loading_t *loading, size_t size)
{
    return vnxi_error_no_memory(loading->error, VNXI_OP_LOAD, size);
}

/* -- Connections -----------------------------------------------------------
 */

/* The position of our backend of that name, or -1. */
static int
place_of(vnxi_engine_t *engine, vnxi_md_bytes_t name)
{
    size_t count = atomic_load(&engine->backend_count);
    for (size_t i = 0; i < count; i++) {
        if (strlen(engine->backends[i].name) == name.len &&
            memcmp(engine->backends[i].name, name.data, name.len) == 0) {
            return (int)i;
        }
    }
    return -1;
}

static vnx_status_t
no_common_backend(loading_t *loading)
{
    char ours[128] = "has ";

    vnxi_nixl_backend_names(loading->engine,
                            vnxi_nixl_all_backends(loading->engine), ours + 4,
                            sizeof ours - 4);
    return vnxi_load_refuse_no_way(loading->blob, ours, loading->error);
}

static vnx_status_t
read_conns(loading_t *loading)
{
    const vnxi_metadata_t *blob = loading->blob;

    loading->conns = calloc(blob->conn_count + 1, sizeof *loading->conns);
    if (loading->conns == NULL) {
        return no_memory(loading, blob->conn_count * sizeof *loading->conns);
    }
    for (size_t i = 0; i < blob->conn_count; i++) {
        const vnxi_md_conn_t *conn = &blob->conns[i];
        int backend = place_of(loading->engine, conn->backend);
        if (backend < 0) {
            continue;
        }
        void *info = malloc(conn->info.len);
        if (info == NULL) {
            return no_memory(loading, conn->info.len);
        }
        memcpy(info, conn->info.data, conn->info.len);
        loading->conns[loading->conn_count++] =
            (vnxi_nixl_conn_t){(size_t)backend, info, conn->info.len};
    }
    return blob->conn_count > 0 && loading->conn_count == 0
               ? no_common_backend(loading)
               : VNX_OK;
}

static bool
same_info(const vnxi_nixl_conn_t *a, const vnxi_nixl_conn_t *b)
{
    return a->len == b->len && memcmp(a->info, b->info, a->len) == 0;
}

/* Return whether the common backends have the same connection info as before.
 */
static bool
is_same_instance(const loading_t *loading, const vnxi_nixl_peer_t *peer)
{
    for (size_t i = 0; i < loading->conn_count; i++) {
        for (size_t k = 0; k < peer->conn_count; k++) {
            if (loading->conns[i].backend == peer->conns[k].backend &&
                !same_info(&loading->conns[i], &peer->conns[k])) {
                return false;
            }
        }
    }
    return true;
}

/* -- Regions ---------------------------------------------------------------
 */

typedef struct rows {
    vnxi_region_t **at; /* each retained */
    size_t count;
    bool renewed; /* one has a new key */
} rows_t;

static void
rows_fini(rows_t *rows)
{
    for (size_t i = 0; i < rows->count; i++) {
        vnxi_region_release(rows->at[i]);
    }
    free(rows->at);
}

static uint64_t
digest_of(const vnxi_md_region_t *row, int backend)
{
    uint64_t hash = vnxi_hash(row->public_data.data, row->public_data.len);
    return (hash ^ (uint64_t)(backend + 1)) * 0x9e3779b97f4a7c15u;
}

static vnx_status_t
add_row(loading_t *loading, rows_t *rows, int backend, vnx_mem_t mem,
        const vnxi_md_region_t *row)
{
    vnxi_region_t *region = vnxi_region_create(&vnxi_nixl_region_class, mem,
                                               row->addr, row->len, row->dev);
    if (region == NULL) {
        return no_memory(loading, sizeof(vnxi_nixl_region_t));
    }
    rows->at[rows->count++] = region;
    atomic_init(&vnxi_nixl_region(region)->backends, 1u << backend);
    vnxi_nixl_region(region)->digest = digest_of(row, backend);
    return VNX_OK;
}

static int
compare_places(const void *a, const void *b)
{
    return vnxi_region_compare(*(vnxi_region_t *const *)a,
                               *(vnxi_region_t *const *)b);
}

/* Join equal ranges of several backends (sections) into one region. */
static void
join_backends(rows_t *rows)
{
    size_t kept = 0;

    qsort(rows->at, rows->count, sizeof *rows->at, compare_places);
    for (size_t i = 0; i < rows->count; i++) {
        vnxi_region_t *region = rows->at[i];
        if (kept > 0 && vnxi_region_compare(rows->at[kept - 1], region) == 0) {
            vnxi_nixl_region_t *into = vnxi_nixl_region(rows->at[kept - 1]);
            vnxi_nixl_region_t *from = vnxi_nixl_region(region);
            if ((atomic_load(&into->backends) &
                 atomic_load(&from->backends)) == 0) {
                atomic_fetch_or(&into->backends, atomic_load(&from->backends));
                into->digest += from->digest;
            }
            vnxi_region_release(region);
        } else {
            rows->at[kept++] = region;
        }
    }
    rows->count = kept;
}

static size_t
count_regions(const vnxi_metadata_t *blob)
{
    size_t count = 0;
    for (size_t i = 0; i < blob->section_count; i++) {
        count += blob->sections[i].count;
    }
    return count;
}

static vnx_status_t
read_regions(loading_t *loading, size_t room, rows_t *rows)
{
    const vnxi_metadata_t *blob = loading->blob;
    vnx_status_t status = VNX_OK;

    room += count_regions(blob) + 1;
    *rows = (rows_t){.at = calloc(room, sizeof(vnxi_region_t *))};
    if (rows->at == NULL) {
        return no_memory(loading, room * sizeof(vnxi_region_t *));
    }
    for (size_t i = 0; i < blob->section_count; i++) {
        const vnxi_md_section_t *section = &blob->sections[i];
        int backend = place_of(loading->engine, section->backend);
        for (size_t k = 0;
             backend >= 0 && status == VNX_OK && k < section->count; k++) {
            status = add_row(loading, rows, backend, section->mem,
                             &section->regions[k]);
        }
    }
    if (status == VNX_OK) {
        join_backends(rows);
    }
    return status;
}

/* Unchanged regions keep their objects; known regions that are not listed
 * stay. */
static void
join_known(rows_t *rows, const vnxi_region_table_t *old)
{
    size_t fresh = rows->count;

    for (size_t i = 0; i < fresh; i++) {
        vnxi_region_t *region = rows->at[i];
        vnxi_region_t *known = vnxi_region_table_exact(
            old, region->mem, region->addr, region->len, region->dev);
        if (known == NULL) {
            continue;
        }
        const vnxi_nixl_region_t *is = vnxi_nixl_region(region);
        const vnxi_nixl_region_t *was = vnxi_nixl_region(known);
        if (atomic_load(&is->backends) != atomic_load(&was->backends)) {
            continue; /* another backend has it now */
        }
        rows->renewed |= is->digest != was->digest;
        rows->at[i] = vnxi_region_retain(known);
        vnxi_region_release(region);
    }
    size_t listed = rows->count;
    for (size_t i = 0; i < vnxi_region_table_count(old); i++) {
        vnxi_region_t *known = vnxi_region_table_at(old, i);
        if (bsearch(&known, rows->at, listed, sizeof *rows->at,
                    compare_places) == NULL) {
            rows->at[rows->count++] = vnxi_region_retain(known);
        }
    }
}

/* -- The library -----------------------------------------------------------
 */

static vnx_status_t
load_into_library(loading_t *loading, vnxi_nixl_peer_t *peer)
{
    vnxi_engine_t *engine = loading->engine;
    vnx_status_t status = VNX_OK;
    char *name = NULL;

    if (!vnxi_nixl_enter(engine)) {
        return vnxi_nixl_stopped(VNXI_OP_LOAD, loading->error);
    }
    int code = engine->capi->load_remote_md(engine->agent, loading->data,
                                            loading->len, &name);
    if (code == NIXL_CAPI_SUCCESS) {
        free(name);
        peer->is_loaded = true;
        vnxi_nixl_poller_listen(engine);
    } else if (peer->is_loaded) {
        status = vnxi_nixl_peer_failed(peer, code, VNXI_OP_LOAD,
                                       "loading the metadata", loading->error);
    } else {
        status = vnxi_nixl_failed(code, VNXI_OP_LOAD, "loading the metadata",
                                  loading->error);
        vnxi_error_peer(loading->error, peer->base.name, peer->base.name_len);
    }
    vnxi_nixl_leave(engine);
    return status;
}

static void
take_conns(loading_t *loading, vnxi_nixl_peer_t *peer)
{
    if (loading->conn_count > 0) {
        vnxi_nixl_conns_free(peer->conns, peer->conn_count);
        peer->conns = loading->conns;
        peer->conn_count = loading->conn_count;
        loading->conns = NULL;
        loading->conn_count = 0;
        for (size_t i = 0; i < peer->conn_count; i++) {
            atomic_fetch_or(&peer->reached_by, 1u << peer->conns[i].backend);
        }
    }
}

/* -- Closing ---------------------------------------------------------------
 */

/* Query the transfers in flight to the peer and report those that have ended.
 * Returns whether some have not; false also if the engine has stopped. */
static bool
is_in_use(vnxi_nixl_peer_t *peer)
{
    vnxi_engine_t *engine = peer->engine;
    vnxi_exfer_t *ended = NULL;

    if (!vnxi_nixl_enter(engine)) {
        return false;
    }
    bool found = vnxi_nixl_poller_check_peer(engine, peer, &ended);
    vnxi_nixl_leave(engine);
    vnxi_nixl_poller_report(engine, ended);
    return found;
}

/* Wait for transfers in flight to the peer, because the library cannot stop
 * them.  False: it does not know the peer any more, so the connection is
 * broken and nothing lands. */
static bool
let_land(vnxi_nixl_peer_t *peer)
{
    static const struct timespec pause = {0, 50000};
    vnxi_engine_t *engine = peer->engine;
    uint64_t deadline = vnxi_clock_deadline(CLOSE_NS);

    if (!vnxi_nixl_enter(engine)) {
        return false;
    }
    int code =
        engine->capi->check_remote_md(engine->agent, peer->base.name, NULL);
    vnxi_nixl_leave(engine);
    if (code != NIXL_CAPI_SUCCESS) {
        return false;
    }
    while (is_in_use(peer) && vnxi_clock_ns() < deadline) {
        nanosleep(&pause, NULL);
    }
    return true;
}

/* After the mark, no post begins.  Wait for posts inside the library, let land
 * what they left in flight, and abort the rest; then the library may forget
 * the name.  If the peer was lost before, nothing lands any more. */
void
vnxi_nixl_peer_close(vnxi_peer_t *base, const char *cause)
{
    vnxi_nixl_peer_t *peer = vnxi_nixl_peer(base);
    vnxi_engine_t *engine = peer->engine;
    bool is_alive = vnxi_peer_end_mark(&peer->end, cause);

    if (!peer->is_loaded) {
        return;
    }
    peer->is_loaded = false;
    vnxi_nixl_settle(engine);
    is_alive = is_alive && let_land(peer);
    if (!vnxi_nixl_enter(engine)) {
        return; /* the library's agent is gone, with its peers */
    }
    vnxi_exfer_t *ended = vnxi_nixl_poller_abort(
        engine, peer, is_alive, VNX_ERR_REMOTE_DISCONNECT, cause);
    engine->capi->invalidate_remote_md(engine->agent, peer->base.name);
    vnxi_nixl_leave(engine);
    vnxi_nixl_poller_report(engine, ended);
}

/* -- A new generation ------------------------------------------------------
 */

/* The library has one peer per name, so the old one must be removed first. */
static vnx_status_t
new_peer(loading_t *loading, vnxi_nixl_peer_t *old, const char *why,
         vnxi_peer_t **peer_p)
{
    rows_t rows;
    vnxi_nixl_peer_t *peer = NULL;
    vnx_status_t status = read_regions(loading, 0, &rows);

    if (status == VNX_OK) {
        peer =
            vnxi_nixl_peer_create(loading->engine, loading->blob->agent.data,
                                  loading->blob->agent.len);
        status = peer != NULL ? VNX_OK : no_memory(loading, sizeof *peer);
    }
    if (status == VNX_OK) {
        peer->table = vnxi_region_table_create(rows.at, rows.count);
        status = peer->table != NULL ? VNX_OK : no_memory(loading, rows.count);
    }
    rows_fini(&rows);
    if (status == VNX_OK) {
        if (old != NULL) {
            vnxi_nixl_peer_close(&old->base, why);
        }
        take_conns(loading, peer);
        status = load_into_library(loading, peer);
    }
    if (status != VNX_OK) {
        if (peer != NULL) {
            vnxi_nixl_peer_destroy(&peer->base);
        }
        return status;
    }
    *peer_p = &peer->base;
    return VNX_OK;
}

/* -- The same instance again -----------------------------------------------
 */

static vnx_status_t
update_peer(loading_t *loading, vnxi_nixl_peer_t *peer, vnxi_peer_t **peer_p)
{
    vnxi_region_table_t *old = vnxi_nixl_peer_table(peer), *table = NULL;
    rows_t rows;

    vnx_status_t status =
        read_regions(loading, vnxi_region_table_count(old), &rows);
    if (status == VNX_OK) {
        join_known(&rows, old);
    }
    bool renewed = status == VNX_OK && rows.renewed;
    if (status == VNX_OK && !renewed) {
        table = vnxi_region_table_create(rows.at, rows.count);
        status = table != NULL ? load_into_library(loading, peer)
                               : no_memory(loading, rows.count);
    }
    rows_fini(&rows);
    vnxi_region_table_release(old);
    if (renewed && loading->blob->conn_count == 0) {
        return refuse(loading, VNX_ERR_NOT_FOUND,
                      "a region of the agent was registered again, and this "
                      "partial metadata does not say how to connect: load "
                      "the agent's whole metadata");
    }
    if (renewed) {
        return new_peer(loading, peer,
                        "a region of the agent was registered again: prepare "
                        "new lists and transfers",
                        peer_p);
    }
    if (status != VNX_OK) {
        vnxi_region_table_release(table);
        return status;
    }
    vnxi_mutex_lock(&peer->lock);
    old = peer->table;
    peer->table = table;
    vnxi_mutex_unlock(&peer->lock);
    vnxi_region_table_release(old);
    take_conns(loading, peer);
    *peer_p = &peer->base;
    return VNX_OK;
}

/* -- Decision ----------------------------------------------------------------
 */

static vnx_status_t
load(loading_t *loading, vnxi_nixl_peer_t *known, vnxi_peer_t **peer_p)
{
    bool is_alive = known != NULL && !vnxi_peer_end_has_come(&known->end);
    bool has_conns = loading->blob->conn_count > 0;

    if (memchr(loading->blob->agent.data, 0, loading->blob->agent.len) !=
        NULL) {
        return refuse(loading, VNX_ERR_NOT_SUPPORTED,
                      "NIXL does not accept agent names with a NUL byte");
    }
    if (!has_conns && known == NULL) {
        return vnxi_load_refuse_unknown(loading->blob, loading->error);
    }
    if (!has_conns && !is_alive) {
        return vnxi_nixl_peer_error(known, VNXI_OP_LOAD, loading->error);
    }
    if (!has_conns || (is_alive && is_same_instance(loading, known))) {
        return update_peer(loading, known, peer_p);
    }
    return new_peer(loading, known,
                    "another instance of the agent has taken its place: "
                    "prepare lists and transfers again",
                    peer_p);
}

vnx_status_t
vnxi_nixl_peer_load(vnxi_engine_t *engine, vnxi_peer_t *current,
                    const vnxi_parsed_t *parsed, const atomic_bool *stop,
                    vnxi_peer_t **peer_p, vnx_error_t *error)
{
    vnx_error_t unused;
    loading_t loading = {.engine = engine,
                         .blob = &parsed->metadata,
                         .data = parsed->blob,
                         .len = parsed->len,
                         .error = error != NULL ? error : &unused};

    (void)stop; /* the library waits for nobody */
    vnx_status_t status = read_conns(&loading);
    if (status == VNX_OK) {
        status =
            load(&loading, current != NULL ? vnxi_nixl_peer(current) : NULL,
                 peer_p);
    }
    vnxi_nixl_conns_free(loading.conns, loading.conn_count);
    return status;
}
