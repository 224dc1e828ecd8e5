/*
 * Design notes.  The path to a peer determines which sections of its metadata
 * are used, and how a row becomes a region: an object of the other agent
 * (within the process), a range that the kernel copies or that is mapped
 * (SHM), or a range with a key (UCX).
 */
#include "engine/native/peer_table.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "engine/native/reach.h"

#define OPERATION "add_remote_agent"

typedef struct build {
    const vnxi_peer_table_args_t *args;
    vnxi_region_table_t *theirs; /* PROCESS only */
    vnxi_region_t **at;          /* each retained */
    size_t count;
} build_t;

static bool
is_named(vnxi_md_bytes_t backend, const char *name)
{
    return backend.len == strlen(name) &&
           memcmp(backend.data, name, backend.len) == 0;
}

static bool
counts(const vnxi_native_peer_t *peer, const vnxi_md_section_t *section)
{
    if (peer->path == VNXI_PATH_UCX) {
        return is_named(section->backend, "UCX") &&
               (section->mem == VNX_MEM_DRAM || section->mem == VNX_MEM_VRAM);
    }
    return is_named(section->backend, "SHM");
}

/* The object that represents this row so far, if it exists and is not gone. */
static vnxi_region_t *
find_old(const build_t *build, const vnxi_region_t *like)
{
    const vnxi_region_table_t *old = build->args->old;
    vnxi_region_t *known =
        old == NULL ? NULL
                    : vnxi_region_table_exact(old, like->mem, like->addr,
                                              like->len, like->dev);
    return known != NULL && !vnxi_region_is_gone(known) ? known : NULL;
}

/* A region that is loaded again keeps its object, so that lists prepared on it
 * stay valid. vnxi_confirm_revoked() reads its epoch under the peer's lock.
 * Only one load runs at a time, and an epoch only grows. */
static vnxi_region_t *
keep(const build_t *build, vnxi_region_t *known)
{
    vnxi_native_peer_t *peer = build->args->peer;
    uint64_t *known_epoch = &vnxi_native_region(known)->epoch;
    uint64_t epoch = build->args->epoch;

    vnxi_mutex_lock(&peer->lock);
    *known_epoch = epoch > *known_epoch ? epoch : *known_epoch;
    vnxi_mutex_unlock(&peer->lock);
    return vnxi_region_retain(known);
}

static vnx_status_t
make(const build_t *build, const vnxi_region_t *like, vnxi_region_t **region_p,
     vnx_error_t *error)
{
    vnxi_region_t *region =
        vnxi_region_create(&vnxi_native_region_class, like->mem, like->addr,
                           like->len, like->dev);
    if (region == NULL) {
        return vnxi_error_no_memory(error, OPERATION,
                                    sizeof(vnxi_native_region_t));
    }
    vnxi_native_region(region)->epoch = build->args->epoch;
    *region_p = region;
    return VNX_OK;
}

/* -- SHM -------------------------------------------------------------------
 */

/* The same memory, shared in the same way. */
static bool
is_same_memory(const vnxi_region_t *region, const vnxi_map_info_t *map_info)
{
    const vnxi_map_info_t known = vnxi_region_map_info(region);
    return map_info->fd < 0 ? known.st_ino == 0
                            : known.offset == map_info->offset &&
                                  known.st_dev == map_info->st_dev &&
                                  known.st_ino == map_info->st_ino;
}

/* Map the region if possible.  Otherwise the kernel copies, and describe()
 * says why.  Nothing touches the mapping before the owner has confirmed it. */
static vnxi_mapping_t *
map_region(vnxi_native_peer_t *peer, const vnxi_map_info_t *map_info,
           uint64_t len)
{
    vnxi_mapping_t *map = NULL;
    vnx_error_t error;

    if (map_info->fd >= 0 &&
        vnxi_mapping_create(vnxi_link_pidfd(peer->link), map_info, len, &map,
                            &error) != VNX_OK) {
        vnxi_mutex_lock(&peer->lock);
        memcpy(peer->no_map, error.cause, sizeof peer->no_map);
        vnxi_mutex_unlock(&peer->lock);
    }
    return map;
}

static vnx_status_t
shm_region(const build_t *build, const vnxi_region_t *like,
           const vnxi_map_info_t *map_info, vnxi_region_t **region_p,
           vnx_error_t *error)
{
    vnxi_region_t *known = find_old(build, like);
    if (known != NULL && is_same_memory(known, map_info)) {
        *region_p = keep(build, known);
        return VNX_OK;
    }
    vnx_status_t status = make(build, like, region_p, error);
    if (status == VNX_OK) {
        atomic_init(&(*region_p)->state, VNXI_REGION_UNCONFIRMED);
        vnxi_reach_attach_remote(
            *region_p, map_info,
            map_region(build->args->peer, map_info, like->len));
    }
    return status;
}

/* Regions of an agent in this process are that agent's own objects, so that a
 * deregistration there is visible here at once.  NULL: the region is gone
 * already and stays out of the table. */
static vnxi_region_t *
borrow(const build_t *build, const vnxi_region_t *like)
{
    vnxi_region_t *region = vnxi_region_table_exact(
        build->theirs, like->mem, like->addr, like->len, like->dev);
    return region != NULL ? vnxi_region_retain(region) : NULL;
}

static vnx_status_t
shm_row(const build_t *build, const vnxi_region_t *like,
        vnxi_md_bytes_t public_data, vnxi_region_t **region_p,
        vnx_error_t *error)
{
    vnxi_map_info_t map_info;
    vnx_status_t status = vnxi_shm_region_read(
        public_data.data, public_data.len, &map_info, error);
    if (status != VNX_OK) {
        return status;
    }
    if (build->theirs != NULL) {
        *region_p = borrow(build, like);
        return VNX_OK;
    }
    return shm_region(build, like, &map_info, region_p, error);
}

/* -- UCX -------------------------------------------------------------------
 */

static bool
has_key(const vnxi_region_t *region, vnxi_md_bytes_t bytes)
{
    const vnxi_ucx_key_t *key = vnxi_region_ucx_key(region);
    return key != NULL && vnxi_ucx_key_is(key, bytes.data, bytes.len);
}

/* A region with another key was registered again: it is a new region. */
static vnx_status_t
ucx_row(const build_t *build, const vnxi_region_t *like,
        vnxi_md_bytes_t public_data, vnxi_region_t **region_p,
        vnx_error_t *error)
{
    vnxi_region_t *known = find_old(build, like);
    vnxi_ucx_key_t *key;

    if (known != NULL && has_key(known, public_data)) {
        *region_p = keep(build, known);
        return VNX_OK;
    }
    vnx_status_t status =
        vnxi_ucx_key_create(build->args->peer->ucx, public_data.data,
                            public_data.len, &key, error);
    if (status != VNX_OK) {
        return status;
    }
    status = make(build, like, region_p, error);
    if (status != VNX_OK) {
        vnxi_ucx_key_release(key);
        return status;
    }
    vnxi_reach_attach_key(*region_p, key);
    return VNX_OK;
}

/* -- The table -------------------------------------------------------------
 */

static vnx_status_t
add_row(build_t *build, vnx_mem_t mem, const vnxi_md_region_t *row,
        vnx_error_t *error)
{
    const vnxi_region_t like = {
        .mem = mem, .addr = row->addr, .len = row->len, .dev = row->dev};
    vnxi_region_t *region = NULL;
    vnx_status_t status =
        build->args->peer->path == VNXI_PATH_UCX
            ? ucx_row(build, &like, row->public_data, &region, error)
            : shm_row(build, &like, row->public_data, &region, error);

    if (status == VNX_OK && region != NULL) {
        build->at[build->count++] = region;
    }
    return status;
}

static vnx_status_t
add_blob_rows(build_t *build, vnx_error_t *error)
{
    const vnxi_metadata_t *blob = build->args->blob;
    vnx_status_t status = VNX_OK;

    for (size_t i = 0; i < blob->section_count; i++) {
        const vnxi_md_section_t *section = &blob->sections[i];
        bool does_count = counts(build->args->peer, section);
        for (size_t j = 0; does_count && j < section->count; j++) {
            status = add_row(build, section->mem, &section->regions[j], error);
            if (status != VNX_OK) {
                return status;
            }
        }
    }
    return VNX_OK;
}

/* Metadata that only adds keeps the old regions, except those that the blob
 * lists itself.  `fresh` has the rows of the blob. */
static void
add_old_rows(build_t *build, const vnxi_region_table_t *fresh)
{
    const vnxi_region_table_t *old = build->args->old;
    for (size_t i = 0; i < vnxi_region_table_count(old); i++) {
        vnxi_region_t *region = vnxi_region_table_at(old, i);
        if (!vnxi_region_is_gone(region) &&
            vnxi_region_table_exact(fresh, region->mem, region->addr,
                                    region->len, region->dev) == NULL) {
            build->at[build->count++] = vnxi_region_retain(region);
        }
    }
}

static vnx_status_t
make_table(build_t *build, vnxi_region_table_t **table_p, vnx_error_t *error)
{
    vnxi_region_table_t *table =
        vnxi_region_table_create(build->at, build->count);

    if (table != NULL && build->args->adds_only && build->args->old != NULL) {
        add_old_rows(build, table);
        vnxi_region_table_release(table);
        table = vnxi_region_table_create(build->at, build->count);
    }
    if (table == NULL) {
        return vnxi_error_no_memory(error, OPERATION,
                                    build->count * sizeof *build->at);
    }
    *table_p = table;
    return VNX_OK;
}

/* Room for every row that may be used. */
static size_t
count_rows(const vnxi_peer_table_args_t *args)
{
    size_t count = args->old != NULL ? vnxi_region_table_count(args->old) : 0;
    for (size_t i = 0; i < args->blob->section_count; i++) {
        count += args->blob->sections[i].count;
    }
    return count;
}

vnx_status_t
vnxi_peer_table_build(const vnxi_peer_table_args_t *args,
                      vnxi_region_table_t **table_p, vnx_error_t *error)
{
    vnxi_engine_t *local = args->peer->local;
    size_t room = count_rows(args) + 1;
    build_t build = {.args = args,
                     .at = calloc(room, sizeof(vnxi_region_t *))};

    if (local != NULL) {
        build.theirs = vnxi_registry_snapshot(local->registry, NULL);
    }
    vnx_status_t status =
        build.at == NULL || (local != NULL && build.theirs == NULL)
            ? vnxi_error_no_memory(error, OPERATION, room * sizeof *build.at)
            : add_blob_rows(&build, error);
    if (status == VNX_OK) {
        status = make_table(&build, table_p, error);
    }
    for (size_t i = 0; i < build.count; i++) {
        vnxi_region_release(build.at[i]);
    }
    free(build.at);
    vnxi_region_table_release(build.theirs);
    return status;
}
