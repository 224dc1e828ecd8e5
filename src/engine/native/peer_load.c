/*
 * Loading a peer's metadata.
 *
 * Design notes.  Everything that can fail comes before the first change: the
 * blob is parsed, the instance recognised, and the new region table built
 * beside the old one.  Then the tables are exchanged, and regions that are
 * gone are revoked, so that lists prepared on them fail when posted.  Regions
 * that stay keep their objects, so lists prepared on them remain valid.
 *
 * A blob with all regions (`partial` unset) removes the regions that it does
 * not list.  A blob with some regions, or without connection data, only adds.
 * A full blob older than the last one loaded (by its epoch) changes nothing.
 *
 * A blob proves nothing.  For agents of this process, the directory has the
 * name and the registry.  On SHM the owner is asked (confirm.h) after the
 * table is exchanged.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/log.h"
#include "engine/native/native.h"
#include "engine/native/peer_table.h"

typedef struct loading {
    vnxi_engine_t *engine;
    const vnxi_metadata_t *blob;
    bool is_ours; /* it comes from a vllm_nixl agent */
    vnxi_identity_t identity;
    vnxi_shm_info_t info;    /* pid 0: none */
    vnxi_md_bytes_t address; /* of UCX; length 0: none */
    vnx_error_t *error;
} loading_t;

static vnx_status_t
refuse(loading_t *loading, vnx_status_t status, const char *cause)
{
    return vnxi_load_refuse(loading->blob, status, cause, loading->error);
}

static bool
is_named(vnxi_md_bytes_t backend, const char *name)
{
    return backend.len == strlen(name) &&
           memcmp(backend.data, name, backend.len) == 0;
}

/* -- Contents of the blob --------------------------------------------------
 */

static vnx_status_t
no_common_backend(loading_t *loading)
{
    const vnxi_engine_t *engine = loading->engine;
    char ours[288];

    snprintf(ours, sizeof ours,
             "only SHM (agents of vllm_nixl on the same host)%s%.200s",
             engine->no_ucx[0] != '\0' ? "; UCX is missing: " : "",
             engine->no_ucx);
    return vnxi_load_refuse_no_way(loading->blob, ours, loading->error);
}

static vnx_status_t
read_conns(loading_t *loading)
{
    vnx_status_t status = VNX_OK;

    for (size_t i = 0; status == VNX_OK && i < loading->blob->conn_count;
         i++) {
        const vnxi_md_conn_t *conn = &loading->blob->conns[i];
        if (is_named(conn->backend, "VNX")) {
            loading->is_ours = true;
            status = vnxi_identity_read(conn->info.data, conn->info.len,
                                        &loading->identity, loading->error);
        } else if (is_named(conn->backend, "SHM")) {
            status = vnxi_shm_info_read(conn->info.data, conn->info.len,
                                        &loading->info, loading->error);
        } else if (is_named(conn->backend, "UCX")) {
            loading->address = conn->info;
        }
    }
    memcpy(loading->info.instance, loading->identity.instance,
           VNXI_SHM_ID_SIZE);
    return status;
}

/* Return whether both sides have UCX. */
static bool
offers_ucx(const loading_t *loading)
{
    return loading->address.len > 0 &&
           atomic_load(&loading->engine->ucx) != NULL;
}

/* Ask the owner about the peer's table, which is in place. */
static void
confirm(vnxi_native_peer_t *peer)
{
    if (peer->path == VNXI_PATH_SHM) {
        vnxi_confirm_ask(peer);
        vnxi_native_xfers_look(peer->engine);
    }
}

/* -- The same instance again -----------------------------------------------
 */

/* Regions of the old table that the new one lacks are gone.  An agent in this
 * process revokes its regions itself. */
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
    bool adds_only = !loading->is_ours || loading->identity.partial;

    vnxi_mutex_lock(&peer->lock);
    uint64_t known_epoch = peer->epoch;
    vnxi_mutex_unlock(&peer->lock);
    if (!adds_only && loading->identity.epoch < known_epoch) {
        return VNX_OK;
    }
    vnxi_region_table_t *old = vnxi_native_peer_table(peer), *table;
    const vnxi_peer_table_args_t args = {
        .blob = loading->blob,
        .peer = peer,
        .old = old,
        .adds_only = adds_only,
        .epoch = loading->is_ours ? loading->identity.epoch : known_epoch,
    };
    vnx_status_t status = vnxi_peer_table_build(&args, &table, loading->error);
    if (status == VNX_OK) {
        vnxi_mutex_lock(&peer->lock);
        vnxi_region_table_release(peer->table);
        peer->table = table;
        if (!adds_only) {
            peer->epoch = loading->identity.epoch;
        }
        vnxi_mutex_unlock(&peer->lock);
        revoke_missing(peer, old, table);
        confirm(peer);
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

/* Events for the peer may arrive as soon as this begins. */
static vnx_status_t
connect_peer(loading_t *loading, vnxi_native_peer_t *peer)
{
    vnxi_engine_t *engine = loading->engine;
    if (peer->path == VNXI_PATH_UCX) {
        vnx_status_t status = vnxi_ucx_conn_open(
            atomic_load(&engine->ucx), loading->address.data,
            loading->address.len, peer->id, &peer->ucx, loading->error);
        if (status == VNX_OK && loading->is_ours) {
            vnxi_ucx_conn_is_of_ours(peer->ucx);
        }
        return status;
    }
    return vnxi_link_open(atomic_load(&engine->hub), &peer->info,
                          peer->base.name, peer->base.name_len,
                          (void *)peer->id, &peer->link, loading->error);
}

static vnx_status_t
start_peer(loading_t *loading, vnxi_native_peer_t *peer)
{
    const vnxi_peer_table_args_t args = {
        .blob = loading->blob,
        .peer = peer,
        .epoch = loading->is_ours ? loading->identity.epoch : 0,
    };
    vnxi_region_table_t *table;

    vnx_status_t status = connect_peer(loading, peer);
    if (status == VNX_OK) {
        status = vnxi_peer_table_build(&args, &table, loading->error);
    }
    if (status != VNX_OK) {
        vnxi_error_peer(loading->error, peer->base.name, peer->base.name_len);
        return status;
    }
    vnxi_mutex_lock(&peer->lock);
    peer->table = table;
    peer->epoch = loading->is_ours && !loading->identity.partial
                      ? loading->identity.epoch
                      : 0;
    vnxi_mutex_unlock(&peer->lock);
    confirm(peer);
    return VNX_OK;
}

/* `local` (a reference, taken over): the agent of this process behind the
 * peer; NULL: none. */
static vnx_status_t
open_peer(loading_t *loading, vnxi_path_t path, vnxi_engine_t *local,
          vnxi_peer_t **peer_p)
{
    vnxi_engine_t *engine = loading->engine;
    vnxi_native_peer_t *peer = vnxi_native_peer_create(
        engine, loading->blob->agent.data, loading->blob->agent.len, path);
    if (peer == NULL) {
        if (local != NULL) {
            vnxi_native_unref(local);
        }
        return vnxi_error_no_memory(loading->error, VNXI_OP_LOAD,
                                    sizeof *peer);
    }
    peer->local = local;
    peer->is_ours = loading->is_ours;
    peer->identity = loading->identity;
    peer->info = loading->info;
    vnxi_native_peer_enlist(peer);
    vnx_status_t status = start_peer(loading, peer);
    if (status != VNX_OK) {
        vnxi_native_peer_close(&peer->base, "its metadata was refused");
        vnxi_peer_release(&peer->base);
        return status;
    }
    *peer_p = &peer->base;
    return VNX_OK;
}

/* -- Choosing the path -----------------------------------------------------
 */

static bool
is_same_host(const loading_t *loading)
{
    const vnxi_shm_info_t *ours = &loading->engine->info;
    return loading->info.pid != 0 &&
           memcmp(loading->info.boot, ours->boot, VNXI_SHM_ID_SIZE) == 0;
}

/* The peer's process is visible from here and has ended, so no other path can
 * reach it. */
static bool
is_dead_here(const loading_t *loading)
{
    return is_same_host(loading) &&
           loading->info.pid_namespace ==
               loading->engine->info.pid_namespace &&
           kill((pid_t)loading->info.pid, 0) != 0 && errno == ESRCH;
}

static bool
is_this_process(const loading_t *loading)
{
    return is_same_host(loading) &&
           loading->info.pid_namespace ==
               loading->engine->info.pid_namespace &&
           loading->info.pid == loading->engine->info.pid;
}

static pthread_once_t warned = PTHREAD_ONCE_INIT;
static char slow_cause[VNX_ERROR_CAUSE_MAX]; /* written during a load; only
                                                one runs at a time */

static void
warn_slow(void)
{
    vnxi_log(VNXI_LOG_WARNING,
             "a peer on this host is reached by UCX, which is slower than "
             "SHM: %s",
             slow_cause);
}

static vnx_status_t
open_by_ucx(loading_t *loading, const char *no_shm, vnxi_peer_t **peer_p)
{
    vnx_status_t status = open_peer(loading, VNXI_PATH_UCX, NULL, peer_p);
    if (status == VNX_OK) {
        vnxi_native_peer_t *peer = vnxi_native_peer(*peer_p);
        snprintf(peer->no_shm, sizeof peer->no_shm, "%s", no_shm);
    }
    return status;
}

/* Open by SHM, or by UCX if SHM is refused and UCX is available. */
static vnx_status_t
open_by_shm(loading_t *loading, vnxi_peer_t **peer_p)
{
    vnx_status_t status = open_peer(loading, VNXI_PATH_SHM, NULL, peer_p);
    char no_shm[VNX_ERROR_CAUSE_MAX];

    if ((status != VNX_ERR_BACKEND && status != VNX_ERR_NOT_ALLOWED) ||
        !offers_ucx(loading) || is_dead_here(loading)) {
        return status;
    }
    memcpy(no_shm, loading->error->cause, sizeof no_shm);
    status = open_by_ucx(loading, no_shm, peer_p);
    if (status == VNX_OK && is_same_host(loading)) {
        memcpy(slow_cause, no_shm, sizeof slow_cause);
        pthread_once(&warned, warn_slow);
    }
    return status;
}

static bool
has_vram(const loading_t *loading)
{
    for (size_t i = 0; i < loading->blob->section_count; i++) {
        if (loading->blob->sections[i].mem == VNX_MEM_VRAM) {
            return true;
        }
    }
    return false;
}

/* Open a peer that is an agent of this process.  Takes over the reference to
 * it. */
static vnx_status_t
open_local(loading_t *loading, vnxi_engine_t *local, vnxi_peer_t **peer_p)
{
    const vnxi_md_bytes_t *name = &loading->blob->agent;

    if (name->len != local->name_len ||
        memcmp(name->data, local->name, local->name_len) != 0) {
        char cause[VNX_ERROR_CAUSE_MAX];
        snprintf(cause, sizeof cause,
                 "this instance id belongs to the agent '%.100s' of this "
                 "process: the metadata is forged",
                 local->name);
        vnxi_native_unref(local);
        return refuse(loading, VNX_ERR_MISMATCH, cause);
    }
    return open_peer(loading, VNXI_PATH_PROCESS, local, peer_p);
}

static vnx_status_t
new_peer(loading_t *loading, vnxi_peer_t **peer_p)
{
    bool by_ucx = offers_ucx(loading), same_host = !same_host_is_off();
    vnxi_engine_t *local;

    if (atomic_load(&loading->engine->hub) == NULL) {
        return refuse(loading, VNX_ERR_NOT_FOUND,
                      "this agent has no backend: call create_backend() "
                      "first");
    }
    if (!loading->is_ours || loading->info.pid == 0) {
        return by_ucx
                   ? open_by_ucx(loading, "the peer is not a vllm_nixl agent",
                                 peer_p)
                   : no_common_backend(loading);
    }
    if (by_ucx && has_vram(loading)) {
        return open_by_ucx(loading,
                           "the peer has GPU memory, which SHM does not move",
                           peer_p);
    }
    if (same_host || !by_ucx) {
        local = vnxi_directory_find(loading->identity.instance);
        if (local != NULL) {
            return open_local(loading, local, peer_p);
        }
        if (is_this_process(loading)) {
            return refuse(
                loading, VNX_ERR_MISMATCH,
                "it names this process, which has no agent with that "
                "instance id: the agent was closed, or the metadata "
                "is forged");
        }
    }
    if (same_host) {
        return open_by_shm(loading, peer_p);
    }
    return by_ucx ? open_by_ucx(loading, "VLLM_NIXL_SAME_HOST=0 disables SHM",
                                peer_p)
                  : refuse(loading, VNX_ERR_BACKEND,
                           "VLLM_NIXL_SAME_HOST=0 disables SHM, and no other "
                           "path leads to the peer");
}

/* -- Update or new peer ----------------------------------------------------
 */

static bool
is_same_instance(const loading_t *loading, const vnxi_native_peer_t *peer)
{
    if (loading->is_ours && peer->is_ours) {
        return memcmp(peer->identity.instance, loading->identity.instance,
                      VNXI_INSTANCE_SIZE) == 0;
    }
    return peer->ucx != NULL && loading->address.len > 0 &&
           vnxi_ucx_conn_is_to(peer->ucx, loading->address.data,
                               loading->address.len);
}

static vnx_status_t
load(loading_t *loading, vnxi_peer_t *current, vnxi_peer_t **peer_p)
{
    vnxi_native_peer_t *known =
        current != NULL ? vnxi_native_peer(current) : NULL;
    bool is_alive = known != NULL && !vnxi_native_peer_gone(known);
    bool has_conn = loading->blob->conn_count > 0;

    if (!has_conn && known == NULL) {
        return vnxi_load_refuse_unknown(loading->blob, loading->error);
    }
    if (!has_conn && !is_alive) {
        return vnxi_native_peer_error(known, VNXI_OP_LOAD, loading->error);
    }
    if (!has_conn || (is_alive && is_same_instance(loading, known))) {
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
    status = read_conns(&loading);
    if (status == VNX_OK) {
        status = load(&loading, current, peer_p);
    }
    vnxi_metadata_fini(&picture);
    return status;
}
