/*
 * Loading a peer's metadata.
 *
 * Design notes.  Everything that can fail comes before the first change: the
 * blob is parsed, the instance recognised, the new region table built beside
 * the old one.  Then the table is exchanged, and regions that are gone are
 * revoked, so that lists prepared on them fail when posted.  Region objects
 * that stay are the same objects, so lists prepared on them go on.
 *
 * A blob with all regions (`partial` unset) takes away what it does not list;
 * one with some regions, or without connection data, only adds. An older full
 * blob than the last one loaded (its epoch says so) changes nothing.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "engine/native/native.h"
#include "engine/parts/metadata.h"

#define OPERATION "add_remote_agent"

typedef struct loading {
    vnxi_engine_t *engine;
    const vnxi_metadata_t *blob;
    bool has_info;
    vnxi_shm_info_t info;
    vnx_error_t *error;
} loading_t;

static vnx_status_t
refuse(loading_t *loading, vnx_status_t status, const char *cause)
{
    vnxi_error_set(loading->error, status, OPERATION, "%s", cause);
    vnxi_error_peer(loading->error, loading->blob->agent.data,
                    loading->blob->agent.len);
    return status;
}

static bool
is_shm(vnxi_md_bytes_t backend)
{
    return backend.len == 3 && memcmp(backend.data, "SHM", 3) == 0;
}

/* -- What the blob offers --------------------------------------------------
 */

static void
append_name(char *text, size_t size, vnxi_md_bytes_t name)
{
    const unsigned char *bytes = name.data;
    size_t used = strlen(text);

    if (used > 0 && used + 2 < size) {
        memcpy(text + used, ", ", 3);
        used += 2;
    }
    for (size_t i = 0; i < name.len && i < 32 && used + 1 < size; i++) {
        text[used++] = vnxi_error_printable(bytes[i]);
        text[used] = '\0';
    }
}

static vnx_status_t
no_common_backend(loading_t *loading)
{
    char offers[128] = "", cause[256];

    for (size_t i = 0; i < loading->blob->conn_count; i++) {
        append_name(offers, sizeof offers, loading->blob->conns[i].backend);
    }
    snprintf(cause, sizeof cause,
             "no way to reach it: it offers %s, this agent only SHM (agents "
             "of vllm_nixl on the same host)",
             offers);
    return refuse(loading, VNX_ERR_BACKEND, cause);
}

static vnx_status_t
read_info(loading_t *loading)
{
    for (size_t i = 0; i < loading->blob->conn_count; i++) {
        const vnxi_md_conn_t *conn = &loading->blob->conns[i];
        if (is_shm(conn->backend)) {
            loading->has_info = true;
            return vnxi_shm_info_read(conn->info.data, conn->info.len,
                                      &loading->info, loading->error);
        }
    }
    return loading->blob->conn_count == 0 ? VNX_OK
                                          : no_common_backend(loading);
}

/* -- Building the table ----------------------------------------------------
 */

typedef struct region_list {
    vnxi_region_t **at; /* each retained */
    size_t count, capacity;
} region_list_t;

static void
region_list_fini(region_list_t *list)
{
    for (size_t i = 0; i < list->count; i++) {
        vnxi_region_release(list->at[i]);
    }
    free(list->at);
}

static size_t
count_regions(const vnxi_metadata_t *blob)
{
    size_t count = 0;
    for (size_t i = 0; i < blob->section_count; i++) {
        count +=
            is_shm(blob->sections[i].backend) ? blob->sections[i].count : 0;
    }
    return count;
}

/* The same memory, reached in the same way. */
static bool
is_same(const vnxi_region_t *region, const vnxi_share_t *share)
{
    const vnxi_share_t known = vnxi_region_share(region);
    return share->fd < 0 ? known.st_ino == 0
                         : known.offset == share->offset &&
                               known.st_dev == share->st_dev &&
                               known.st_ino == share->st_ino;
}

/* Map it if it can be; where not, the kernel copies, and describe() says why.
 */
static vnxi_share_map_t *
map_share(vnxi_native_peer_t *peer, const vnxi_share_t *share, uint64_t len)
{
    vnxi_share_map_t *map = NULL;
    vnx_error_t error;

    if (share->fd >= 0 && vnxi_share_map(vnxi_link_pidfd(peer->link), share,
                                         len, &map, &error) != VNX_OK) {
        pthread_mutex_lock(&peer->lock);
        memcpy(peer->no_map, error.cause, sizeof peer->no_map);
        pthread_mutex_unlock(&peer->lock);
    }
    return map;
}

static vnx_status_t
make_region(vnxi_native_peer_t *peer, const vnxi_region_t *like,
            const vnxi_share_t *share, vnxi_region_t **region_p,
            vnx_error_t *error)
{
    vnxi_region_t *region =
        vnxi_region_create(like->mem, like->addr, like->len, like->dev);
    if (region == NULL) {
        return vnxi_error_no_memory(error, OPERATION, sizeof *region);
    }
    region->epoch = like->epoch;
    vnx_status_t status = vnxi_reach_attach_remote(
        region, share, map_share(peer, share, like->len), error);
    if (status != VNX_OK) {
        vnxi_region_release(region);
        return status;
    }
    *region_p = region;
    return VNX_OK;
}

/* Regions of an agent in this process are its own objects, so that a
 * deregistration there is seen here at once.  One that is gone already stays
 * out of the table. */
static vnxi_region_t *
borrow_region(const vnxi_region_table_t *theirs, vnx_mem_t mem,
              const vnxi_md_region_t *row)
{
    vnxi_region_t *region =
        vnxi_region_table_exact(theirs, mem, row->addr, row->len, row->dev);
    return region != NULL ? vnxi_region_retain(region) : NULL;
}

typedef struct table_build {
    loading_t *loading;
    vnxi_native_peer_t *peer;
    const vnxi_region_table_t *old;    /* NULL: the peer is new */
    const vnxi_region_table_t *theirs; /* PROCESS only */
    uint64_t epoch;
    region_list_t list;
} table_build_t;

/* A region that is loaded again stays the object that it was, so that lists
 * prepared on it stay good.  Its epoch is read under the peer's lock in
 * on_revoked(); a load is one at a time, and an epoch only grows. */
static vnxi_region_t *
keep_known(const table_build_t *build, const vnxi_region_t *like,
           const vnxi_share_t *share)
{
    vnxi_region_t *known =
        build->old == NULL
            ? NULL
            : vnxi_region_table_exact(build->old, like->mem, like->addr,
                                      like->len, like->dev);
    if (known == NULL || atomic_load(&known->revoked) ||
        !is_same(known, share)) {
        return NULL;
    }
    pthread_mutex_lock(&build->peer->lock);
    known->epoch = like->epoch > known->epoch ? like->epoch : known->epoch;
    pthread_mutex_unlock(&build->peer->lock);
    return vnxi_region_retain(known);
}

static vnx_status_t
add_row(table_build_t *build, vnx_mem_t mem, const vnxi_md_region_t *row)
{
    vnx_error_t *error = build->loading->error;
    vnxi_share_t share;
    vnxi_region_t *region;
    vnx_status_t status = vnxi_shm_region_read(
        row->public_data.data, row->public_data.len, &share, error);
    if (status != VNX_OK) {
        return status;
    }
    if (build->theirs != NULL) {
        region = borrow_region(build->theirs, mem, row);
    } else {
        vnxi_region_t like = {.mem = mem,
                              .addr = row->addr,
                              .len = row->len,
                              .dev = row->dev,
                              .epoch = build->epoch};
        region = keep_known(build, &like, &share);
        if (region == NULL) {
            status = make_region(build->peer, &like, &share, &region, error);
        }
    }
    if (status == VNX_OK && region != NULL) {
        build->list.at[build->list.count++] = region;
    }
    return status;
}

static vnx_status_t
add_blob_rows(table_build_t *build)
{
    const vnxi_metadata_t *blob = build->loading->blob;
    for (size_t i = 0; i < blob->section_count; i++) {
        const vnxi_md_section_t *section = &blob->sections[i];
        for (size_t j = 0; is_shm(section->backend) && j < section->count;
             j++) {
            vnx_status_t status =
                add_row(build, section->mem, &section->regions[j]);
            if (status != VNX_OK) {
                return status;
            }
        }
    }
    return VNX_OK;
}

/* Metadata that only adds keeps what was there. */
static void
add_old_rows(table_build_t *build)
{
    for (size_t i = 0; i < vnxi_region_table_count(build->old); i++) {
        vnxi_region_t *region = vnxi_region_table_at(build->old, i);
        if (!atomic_load(&region->revoked)) {
            build->list.at[build->list.count++] = vnxi_region_retain(region);
        }
    }
}

static vnx_status_t
build_table(loading_t *loading, vnxi_native_peer_t *peer,
            const vnxi_region_table_t *old, bool adds_only,
            vnxi_region_table_t **table_p)
{
    table_build_t build = {
        .loading = loading,
        .peer = peer,
        .old = old,
        .epoch = loading->has_info ? loading->info.epoch : peer->epoch,
    };
    vnxi_region_table_t *theirs = NULL;
    vnx_status_t status;

    if (peer->local != NULL) {
        build.theirs = theirs =
            vnxi_registry_snapshot(peer->local->registry, NULL);
    }
    size_t room = count_regions(loading->blob) + 1 +
                  (old != NULL ? vnxi_region_table_count(old) : 0);
    build.list.at = calloc(room, sizeof(vnxi_region_t *));
    if (build.list.at == NULL || (peer->local != NULL && theirs == NULL)) {
        status = vnxi_error_no_memory(loading->error, OPERATION,
                                      room * sizeof *build.list.at);
        goto out;
    }
    status = add_blob_rows(&build);
    if (status != VNX_OK) {
        goto out;
    }
    if (adds_only && old != NULL) {
        add_old_rows(&build);
    }
    *table_p = vnxi_region_table_create(build.list.at, build.list.count);
    if (*table_p == NULL) {
        status = vnxi_error_no_memory(loading->error, OPERATION,
                                      room * sizeof *build.list.at);
    }
out:
    region_list_fini(&build.list);
    vnxi_region_table_release(theirs);
    return status;
}

/* -- The same instance again -----------------------------------------------
 */

/* Regions of the old table that the new one does not have are gone.  Those of
 * an agent in this process are its own to revoke. */
static void
revoke_missing(vnxi_native_peer_t *peer, const vnxi_region_table_t *old,
               const vnxi_region_table_t *new)
{
    for (size_t i = 0; peer->local == NULL && i < vnxi_region_table_count(old);
         i++) {
        vnxi_region_t *region = vnxi_region_table_at(old, i);
        if (vnxi_region_table_exact(new, region->mem, region->addr,
                                    region->len, region->dev) != region) {
            vnxi_region_revoke(region);
        }
    }
}

static vnx_status_t
update_peer(loading_t *loading, vnxi_native_peer_t *peer)
{
    bool adds_only = !loading->has_info || loading->info.partial;
    if (!adds_only && loading->info.epoch < peer->epoch) {
        return VNX_OK;
    }
    vnxi_region_table_t *old = vnxi_native_peer_table(peer), *table;
    vnx_status_t status = build_table(loading, peer, old, adds_only, &table);
    if (status == VNX_OK) {
        pthread_mutex_lock(&peer->lock);
        vnxi_region_table_release(peer->table);
        peer->table = table;
        if (!adds_only) {
            peer->epoch = loading->info.epoch;
        }
        pthread_mutex_unlock(&peer->lock);
        revoke_missing(peer, old, table);
    }
    vnxi_region_table_release(old);
    return status;
}

/* -- A new instance --------------------------------------------------------
 */

static bool
same_host_is_off(void)
{
    const char *value = getenv("VLLM_NIXL_SAME_HOST");
    return value != NULL && strcmp(value, "0") == 0;
}

/* Its events may come as soon as the link is open. */
static vnx_status_t
connect_peer(loading_t *loading, vnxi_hub_t *hub, vnxi_native_peer_t *peer)
{
    vnxi_region_table_t *table;
    vnx_status_t status = vnxi_link_open(hub, &loading->info, (void *)peer->id,
                                         &peer->link, loading->error);

    if (status != VNX_OK) {
        vnxi_error_peer(loading->error, peer->base.name, peer->base.name_len);
        return status;
    }
    status = build_table(loading, peer, NULL, false, &table);
    if (status == VNX_OK) {
        vnxi_native_peer_start(
            peer, table, loading->info.partial ? 0 : loading->info.epoch);
    }
    return status;
}

static vnx_status_t
new_peer(loading_t *loading, vnxi_peer_t **peer_p)
{
    vnxi_engine_t *engine = loading->engine;
    vnxi_hub_t *hub = atomic_load(&engine->hub);
    if (hub == NULL) {
        return refuse(loading, VNX_ERR_NOT_FOUND,
                      "this agent has no backend: call create_backend() "
                      "first");
    }
    vnxi_engine_t *local = vnxi_directory_find(loading->info.instance);
    if (local == NULL && same_host_is_off()) {
        return refuse(loading, VNX_ERR_BACKEND,
                      "it is on this host, where VLLM_NIXL_SAME_HOST=0 "
                      "switches SHM off, and there is no other path");
    }
    vnxi_native_peer_t *peer = vnxi_native_peer_create(
        engine, loading->blob->agent.data, loading->blob->agent.len,
        local != NULL ? VNXI_PATH_PROCESS : VNXI_PATH_SHM);
    if (peer == NULL) {
        if (local != NULL) {
            vnxi_native_unref(local);
        }
        return vnxi_error_no_memory(loading->error, OPERATION, sizeof *peer);
    }
    peer->base.ops = engine->self->base.ops;
    peer->local = local;
    peer->info = loading->info;
    vnxi_native_peer_enlist(peer);
    vnx_status_t status = connect_peer(loading, hub, peer);
    if (status != VNX_OK) {
        vnxi_native_peer_close(&peer->base, "its metadata was refused");
        vnxi_peer_release(&peer->base);
        return status;
    }
    *peer_p = &peer->base;
    return VNX_OK;
}

/* -- Which of both ---------------------------------------------------------
 */

static bool
is_same_instance(const vnxi_native_peer_t *peer, const vnxi_shm_info_t *info)
{
    return memcmp(peer->info.instance, info->instance, VNXI_SHM_ID_SIZE) == 0;
}

static vnx_status_t
load(loading_t *loading, vnxi_peer_t *current, vnxi_peer_t **peer_p)
{
    vnxi_native_peer_t *known =
        current != NULL ? vnxi_native_peer(current) : NULL;
    bool is_alive = known != NULL && !vnxi_native_peer_gone(known);

    if (!loading->has_info && known == NULL) {
        return refuse(loading, VNX_ERR_NOT_FOUND,
                      "metadata without connection data of an agent that is "
                      "not known: load its full metadata first");
    }
    if (!loading->has_info && !is_alive) {
        return vnxi_native_peer_error(known, OPERATION, loading->error);
    }
    if (!loading->has_info ||
        (is_alive && is_same_instance(known, &loading->info))) {
        vnx_status_t status = update_peer(loading, known);
        if (status == VNX_OK) {
            *peer_p = current;
        }
        return status;
    }
    return new_peer(loading, peer_p);
}

vnx_status_t
vnxi_native_peer_load(vnxi_engine_t *engine, vnxi_peer_t *current,
                      const void *blob, size_t len, vnxi_peer_t **peer_p,
                      vnx_error_t *error)
{
    vnxi_metadata_t picture;
    vnx_error_t local_error;
    loading_t loading = {.engine = engine,
                         .blob = &picture,
                         .error = error != NULL ? error : &local_error};

    vnx_status_t status =
        vnxi_metadata_parse(blob, len, &picture, loading.error);
    if (status != VNX_OK) {
        return status;
    }
    status = read_info(&loading);
    if (status == VNX_OK) {
        status = load(&loading, current, peer_p);
    }
    vnxi_metadata_fini(&picture);
    return status;
}
