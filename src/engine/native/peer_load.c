/*
 * Loading a peer's metadata.
 *
 * Design notes.  Everything that can fail comes before the first change: the
 * instance is recognised, and the new region table is built beside the old
 * one.  Then the tables are exchanged, and regions that are gone are revoked,
 * so that lists prepared on them fail when posted.  Regions that stay keep
 * their objects, so lists prepared on them remain valid.
 *
 * A blob with all regions (`partial` unset) removes the regions that it does
 * not list.  A blob with some regions, or without connection data, only adds.
 * A full blob older than the last one loaded (by its epoch) changes nothing.
 *
 * A blob proves nothing.  For agents of this process, the process transport
 * has the name and the registry.  On SHM the owner is asked (shm/confirm.h)
 * after the table is exchanged.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/log.h"
#include "engine/native/native.h"
#include "engine/parts/peer.h"

#define OPERATION "vnx_agent_load_metadata"

typedef struct loading {
    vnxi_engine_t *engine;
    const vnxi_metadata_t *blob;
    bool is_ours; /* it comes from a vllm_nixl agent */
    vnxi_identity_t identity;
    vnxi_md_bytes_t infos[VNXI_TRANSPORTS]; /* entries of the transports; data
                                               NULL: none */
    const atomic_bool *stop;                /* NULL: none */
    vnx_error_t *error;
} loading_t;

/* -- Contents of the blob --------------------------------------------------
 */

static vnx_status_t
read_conns(loading_t *loading)
{
    vnx_status_t status = VNX_OK;

    for (size_t i = 0; status == VNX_OK && i < loading->blob->conn_count;
         i++) {
        const vnxi_md_conn_t *conn = &loading->blob->conns[i];
        if (vnxi_md_is_named(conn->backend, "VNX")) {
            loading->is_ours = true;
            status = vnxi_identity_read(conn->info.data, conn->info.len,
                                        &loading->identity, loading->error);
        }
        for (unsigned t = 0; t < VNXI_TRANSPORTS; t++) {
            if (vnxi_md_is_named(conn->backend, vnxi_transports[t]->entry)) {
                loading->infos[t] = conn->info;
            }
        }
    }
    return status;
}

/* -- Regions ---------------------------------------------------------------
 */

/* Regions of the old table that the new one lacks are gone.  An agent in this
 * process revokes its regions itself. */
static void
revoke_missing(const vnxi_region_table_t *old, const vnxi_region_table_t *new)
{
    for (size_t i = 0; i < vnxi_region_table_count(old); i++) {
        vnxi_region_t *region = vnxi_region_table_at(old, i);
        if (vnxi_native_region(region)->is_remote &&
            vnxi_region_table_exact(new, region->mem, region->addr,
                                    region->len, region->dev) != region) {
            vnxi_region_revoke(region);
        }
    }
}

/* Exchange the tables (taken over) and tell the conns, which ask the owner. */
static void
set_table(loading_t *loading, vnxi_native_peer_t *peer,
          vnxi_region_table_t *table, bool adds_only)
{
    vnxi_mutex_lock(&peer->lock);
    vnxi_region_table_t *old = peer->table;
    peer->table = table;
    if (!adds_only) {
        peer->epoch = loading->identity.epoch;
    }
    uint64_t epoch = peer->epoch;
    vnxi_mutex_unlock(&peer->lock);
    if (old != NULL) {
        revoke_missing(old, table);
        vnxi_region_table_release(old);
    }
    for (unsigned t = 0; t < VNXI_TRANSPORTS; t++) {
        vnxi_conn_t *conn = vnxi_native_conn(peer, t);
        if (conn != NULL && vnxi_transports[t]->new_table != NULL) {
            vnxi_transports[t]->new_table(conn, table, epoch);
            peer->engine->look(peer->engine);
        }
    }
}

/* Create the missing conns to the peer, by the transports from `first` on that
 * reach it. */
static vnx_status_t
add_conns(loading_t *loading, vnxi_native_peer_t *peer, unsigned first)
{
    vnx_status_t status = VNX_OK;

    for (unsigned t = first; status == VNX_OK && t < VNXI_TRANSPORTS; t++) {
        status = vnxi_native_peer_add_conn(peer, t, loading->infos[t],
                                           loading->stop, loading->error);
    }
    return status;
}

static vnx_status_t
load_regions(loading_t *loading, vnxi_native_peer_t *peer,
             const vnxi_region_table_t *old, bool adds_only, uint64_t epoch)
{
    const vnxi_peer_table_args_t args = {
        .blob = loading->blob,
        .peer = peer,
        .old = old,
        .adds_only = adds_only,
        .epoch = epoch,
    };
    vnxi_region_table_t *table;

    vnx_status_t status = vnxi_peer_table_build(&args, &table, loading->error);
    if (status == VNX_OK) {
        set_table(loading, peer, table, adds_only);
    }
    return status;
}

/* -- The same instance again -----------------------------------------------
 */

/* If a region was deregistered and registered again, the news of the first may
 * not have been read yet.  Read later, it would revoke the new region. */
static void
catch_up(const vnxi_native_peer_t *peer)
{
    unsigned t = atomic_load(&peer->main);
    vnxi_conn_t *conn = vnxi_native_conn(peer, t);

    if (vnxi_transports[t]->catch_up != NULL && conn != NULL) {
        vnxi_transports[t]->catch_up(conn);
    }
}

static vnx_status_t
update_peer(loading_t *loading, vnxi_native_peer_t *peer)
{
    bool adds_only = !loading->is_ours || loading->identity.partial;

    catch_up(peer);

    vnxi_mutex_lock(&peer->lock);
    uint64_t known_epoch = peer->epoch;
    vnxi_mutex_unlock(&peer->lock);
    if (!adds_only && loading->identity.epoch < known_epoch) {
        return VNX_OK;
    }
    vnx_status_t status =
        add_conns(loading, peer, atomic_load(&peer->main) + 1);
    if (status != VNX_OK) {
        return status;
    }
    vnxi_region_table_t *old = vnxi_native_peer_table(peer);
    status =
        load_regions(loading, peer, old, adds_only,
                     loading->is_ours ? loading->identity.epoch : known_epoch);
    vnxi_region_table_release(old);
    return status;
}

/* -- The main conn ---------------------------------------------------------
 */

#define SAME_HOST "VLLM_NIXL_SAME_HOST"

static void
warn_same_host(void)
{
    vnxi_log(VNX_LOG_WARNING, NULL,
             SAME_HOST " is neither 0 (off) nor 1 (on): it stays on");
}

static bool
same_host_is_off(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    const char *value = getenv(SAME_HOST);

    if (value == NULL || value[0] == '\0' || strcmp(value, "1") == 0) {
        return false;
    }
    if (strcmp(value, "0") != 0) {
        pthread_once(&once, warn_same_host);
        return false;
    }
    return true;
}

/* Return whether the blob offers a transport to other hosts that this agent
 * has, too. */
static bool
offers_network(const loading_t *loading)
{
    for (unsigned t = 0; t < VNXI_TRANSPORTS; t++) {
        if (vnxi_transports[t]->scope == VNXI_SCOPE_NETWORK &&
            loading->infos[t].data != NULL &&
            vnxi_native_port(loading->engine, t) != NULL) {
            return true;
        }
    }
    return false;
}

/* Return whether VLLM_NIXL_SAME_HOST=0 disables the transport for this peer.
 * It does not separate agents of one process that have no other transport. */
static bool
is_disabled(const loading_t *loading, unsigned t)
{
    vnxi_scope_t scope = vnxi_transports[t]->scope;
    return same_host_is_off() &&
           (scope == VNXI_SCOPE_HOST ||
            (scope == VNXI_SCOPE_PROCESS && offers_network(loading)));
}

static pthread_once_t warned = PTHREAD_ONCE_INIT;
/* Of the thread that loads: agents load at the same time. */
static _Thread_local char slow_warning[2 * VNX_ERROR_CAUSE_MAX];
static _Thread_local const char *slow_agent;

static void
warn_slow(void)
{
    vnxi_log(VNX_LOG_WARNING, slow_agent, "%s", slow_warning);
}

static void
note_refusal(vnxi_native_peer_t *peer, unsigned t, const char *cause)
{
    vnxi_log(VNX_LOG_DEBUG, peer->engine->name,
             "peer '%s' is not reached by %s: %s", peer->base.name,
             vnxi_transports[t]->name, cause);
    vnxi_mutex_lock(&peer->lock);
    snprintf(peer->refused[t], sizeof peer->refused[t], "%s", cause);
    vnxi_mutex_unlock(&peer->lock);
}

/* Start the peer's conns in the order of preference until one succeeds, which
 * is the main one.  Events for the peer may arrive as soon as this begins. */
static vnx_status_t
start_main(loading_t *loading, vnxi_native_peer_t *peer)
{
    vnx_status_t last = VNX_ERR_NOT_FOUND; /* no conn was tried */
    int slow = -1; /* a transport that should have reached the peer */

    for (unsigned t = 0; t < VNXI_TRANSPORTS; t++) {
        vnxi_refusal_t refusal = VNXI_REFUSAL_FINAL;
        bool disabled = is_disabled(loading, t);
        if (disabled) {
            char cause[64];
            snprintf(cause, sizeof cause, "VLLM_NIXL_SAME_HOST=0 disables %s",
                     vnxi_transports[t]->name);
            note_refusal(peer, t, cause);
        }
        if (disabled && vnxi_transports[t]->scope == VNXI_SCOPE_PROCESS) {
            continue; /* its conn would mean that regions are borrowed */
        }
        vnx_status_t status = vnxi_native_peer_add_conn(
            peer, t, loading->infos[t], loading->stop, loading->error);
        if (status != VNX_OK) {
            return status;
        }
        vnxi_conn_t *conn = atomic_load(&peer->conns[t]);
        if (conn == NULL || disabled ||
            vnxi_transports[t]->conn_start == NULL) {
            continue; /* a conn that is not started knows the process */
        }
        atomic_store(&peer->main, t);
        last = vnxi_transports[t]->conn_start(conn, &refusal, loading->error);
        if (last == VNX_OK && slow >= 0) {
            snprintf(slow_warning, sizeof slow_warning,
                     "a peer on this host is reached by %s, which is slower "
                     "than %s: %s",
                     vnxi_transports[t]->name, vnxi_transports[slow]->name,
                     peer->refused[slow]);
            slow_agent = peer->engine->name;
            pthread_once(&warned, warn_slow);
        }
        if (last == VNX_OK || refusal == VNXI_REFUSAL_FINAL) {
            return last;
        }
        note_refusal(peer, t, loading->error->cause);
        slow = refusal == VNXI_REFUSAL_HERE ? (int)t : slow;
    }
    return last;
}

/* -- A new instance --------------------------------------------------------
 */

/* What this agent has: "only SHM (...); UCX is missing: no libucp". */
static vnx_status_t
no_common_backend(loading_t *loading)
{
    char ours[288] = "";

    for (unsigned t = 0; t < VNXI_TRANSPORTS; t++) {
        const vnxi_transport_t *transport = vnxi_transports[t];
        const char *missing = vnxi_native_missing(loading->engine, t);
        if (transport->backend != NULL &&
            vnxi_native_port(loading->engine, t) != NULL) {
            vnxi_text_add(ours, sizeof ours, "%s%s%s",
                          ours[0] != '\0' ? ", " : "only ", transport->backend,
                          transport->scope == VNXI_SCOPE_HOST
                              ? " (agents of vllm_nixl on the same host)"
                              : "");
        } else if (missing[0] != '\0') {
            vnxi_text_add(ours, sizeof ours, "; %s is missing: %.200s",
                          transport->backend, missing);
        }
    }
    return vnxi_load_refuse_no_way(loading->blob, ours, loading->error);
}

/* No transport was tried. */
static vnx_status_t
no_way(loading_t *loading)
{
    for (unsigned t = 0; t < VNXI_TRANSPORTS; t++) {
        char cause[128];
        if (is_disabled(loading, t) && loading->infos[t].data != NULL) {
            snprintf(cause, sizeof cause,
                     "VLLM_NIXL_SAME_HOST=0 disables %s, and no other path "
                     "leads to the peer",
                     vnxi_transports[t]->name);
            return vnxi_load_refuse(loading->blob, VNX_ERR_BACKEND, cause,
                                    loading->error);
        }
    }
    return no_common_backend(loading);
}

static vnx_status_t
start_peer(loading_t *loading, vnxi_native_peer_t *peer)
{
    bool adds_only = !loading->is_ours || loading->identity.partial;

    vnx_status_t status = start_main(loading, peer);
    if (status == VNX_ERR_NOT_FOUND) {
        return no_way(loading);
    }
    if (status == VNX_OK) {
        status = add_conns(loading, peer, atomic_load(&peer->main) + 1);
    }
    if (status == VNX_OK) {
        status = load_regions(loading, peer, NULL, adds_only,
                              loading->identity.epoch);
    }
    if (status != VNX_OK) {
        vnxi_error_peer(loading->error, peer->base.name, peer->base.name_len);
    }
    return status;
}

static bool
has_port(const vnxi_engine_t *engine)
{
    bool has = false;
    for (unsigned t = 0; t < VNXI_TRANSPORTS; t++) {
        has |= vnxi_native_port(engine, t) != NULL;
    }
    return has;
}

static vnx_status_t
new_peer(loading_t *loading, vnxi_peer_t **peer_p)
{
    vnxi_engine_t *engine = loading->engine;

    if (!has_port(engine)) {
        return vnxi_load_refuse(loading->blob, VNX_ERR_NOT_FOUND,
                                "this agent has no backend: create one first",
                                loading->error);
    }
    vnxi_native_peer_t *peer = vnxi_native_peer_create(
        engine, loading->blob->agent.data, loading->blob->agent.len);
    if (peer == NULL) {
        return vnxi_error_no_memory(loading->error, OPERATION, sizeof *peer);
    }
    peer->is_ours = loading->is_ours;
    peer->identity = loading->identity;
    vnxi_native_peer_enlist(peer);
    vnx_status_t status = start_peer(loading, peer);
    if (status != VNX_OK) {
        vnxi_native_peer_close(&peer->base, "its metadata was refused");
        vnxi_peer_release(&peer->base);
        return status;
    }
    vnxi_log(VNX_LOG_DEBUG, engine->name, "peer '%s' is reached by %s",
             peer->base.name, vnxi_transports[atomic_load(&peer->main)]->name);
    *peer_p = &peer->base;
    return VNX_OK;
}

/* -- Update or new peer ----------------------------------------------------
 */

/* Compare the identities of vllm_nixl agents, and the addresses of other
 * agents. */
static bool
is_same_instance(const loading_t *loading, const vnxi_native_peer_t *peer)
{
    if (loading->is_ours || peer->is_ours) {
        return loading->is_ours && peer->is_ours &&
               memcmp(peer->identity.instance, loading->identity.instance,
                      VNXI_INSTANCE_SIZE) == 0;
    }
    for (unsigned t = 0; t < VNXI_TRANSPORTS; t++) {
        const vnxi_conn_t *conn = vnxi_native_conn(peer, t);
        if (conn != NULL && loading->infos[t].data != NULL &&
            vnxi_transports[t]->leads_to != NULL &&
            vnxi_transports[t]->leads_to(conn, loading->infos[t])) {
            return true;
        }
    }
    return false;
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
        return vnxi_native_peer_error(known, OPERATION, loading->error);
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
                      const vnxi_parsed_t *parsed, const atomic_bool *stop,
                      vnxi_peer_t **peer_p, vnx_error_t *error)
{
    vnx_error_t unused;
    loading_t loading = {.engine = engine,
                         .blob = &parsed->metadata,
                         .stop = stop,
                         .error = error != NULL ? error : &unused};

    vnx_status_t status = read_conns(&loading);
    return status == VNX_OK ? load(&loading, current, peer_p) : status;
}
