/*
 * Peers of the native engine: their life cycle, their end, notifications to
 * them.
 *
 * Design notes.  The end is marked once, with the cause, by whichever event
 * comes first: the end of the link, a copy that finds the process gone, or a
 * close by the core.  Everything that works for the peer checks the mark:
 * posting, each chunk of copying, sending.  The hub's events name a link.  The
 * peer is looked up in the engine's list, under its lock, so a late event
 * finds nothing instead of a peer that is being freed.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/mutex.h"
#include "engine/native/native.h"
#include "engine/native/shm/proc.h"
#include "engine/native/shm/vm.h"

vnxi_native_peer_t *
vnxi_native_peer_create(vnxi_engine_t *engine, const void *name,
                        size_t name_len, vnxi_path_t path)
{
    vnxi_native_peer_t *peer = calloc(1, sizeof *peer);
    if (peer == NULL || !vnxi_peer_init(&peer->base, vnxi_native_peer_destroy,
                                        name, name_len)) {
        free(peer);
        return NULL;
    }
    peer->engine = engine;
    peer->path = path;
    vnxi_peer_end_init(&peer->end);
    vnxi_mutex_init(&peer->lock, VNXI_RANK_NATIVE_PEER);
    return peer;
}

void
vnxi_native_peer_destroy(vnxi_peer_t *base)
{
    vnxi_native_peer_t *peer = vnxi_native_peer(base);

    vnxi_link_release(peer->link);
    vnxi_region_table_release(peer->table);
    vnxi_ucx_conn_release(peer->ucx);
    vnxi_confirm_fini(&peer->confirm);
    if (peer->local != NULL) {
        vnxi_native_unref(peer->local);
    }
    vnxi_mutex_destroy(&peer->lock);
    vnxi_peer_end_fini(&peer->end);
    vnxi_peer_fini(&peer->base);
    free(peer);
}

/* -- The list of peers with a link -----------------------------------------
 */

void
vnxi_native_peer_enlist(vnxi_native_peer_t *peer)
{
    vnxi_engine_t *engine = peer->engine;
    vnxi_mutex_lock(&engine->peers_lock);
    peer->id = ++engine->last_peer_id;
    peer->next = engine->peers;
    engine->peers = peer;
    vnxi_mutex_unlock(&engine->peers_lock);
}

static void
delist(vnxi_native_peer_t *peer)
{
    vnxi_engine_t *engine = peer->engine;
    vnxi_mutex_lock(&engine->peers_lock);
    for (vnxi_native_peer_t **at = &engine->peers; *at != NULL;
         at = &(*at)->next) {
        if (*at == peer) {
            *at = peer->next;
            break;
        }
    }
    vnxi_mutex_unlock(&engine->peers_lock);
}

/* Find the peer of a link or connection; returns a reference, or NULL if it
 * was closed.  The lookup is by number: the link may not be known to the peer
 * yet, and a late event of an old link must not find a new peer at the same
 * address. */
static vnxi_native_peer_t *
find_by_id(vnxi_engine_t *engine, uintptr_t id)
{
    vnxi_mutex_lock(&engine->peers_lock);
    vnxi_native_peer_t *peer = engine->peers;
    while (peer != NULL && peer->id != id) {
        peer = peer->next;
    }
    if (peer != NULL) {
        vnxi_peer_retain(&peer->base);
    }
    vnxi_mutex_unlock(&engine->peers_lock);
    return peer;
}

vnxi_native_peer_t *
vnxi_native_peer_by_link(vnxi_engine_t *engine, const vnxi_link_t *link)
{
    return find_by_id(engine, (uintptr_t)vnxi_link_cookie(link));
}

/* -- The end ---------------------------------------------------------------
 */

bool
vnxi_native_peer_gone(const vnxi_native_peer_t *peer)
{
    return vnxi_peer_end_has_come(&peer->end) ||
           (peer->local != NULL && atomic_load(&peer->local->stopped));
}

void
vnxi_native_peer_cause(vnxi_native_peer_t *peer,
                       char cause_p[VNX_ERROR_CAUSE_MAX])
{
    vnxi_peer_end_cause(&peer->end, cause_p);
    if (cause_p[0] == '\0' && vnxi_native_peer_gone(peer)) {
        /* The stop of an agent of this process is visible before its link
         * ends. */
        snprintf(cause_p, VNX_ERROR_CAUSE_MAX, "the peer was closed");
    }
}

vnx_status_t
vnxi_native_peer_error(vnxi_native_peer_t *peer, const char *operation,
                       vnx_error_t *error)
{
    char cause[VNX_ERROR_CAUSE_MAX];

    vnxi_native_peer_cause(peer, cause);
    return vnxi_peer_ended(&peer->base,
                           cause[0] != '\0' ? cause : "the agent was closed",
                           operation, error);
}

void
vnxi_native_peer_close(vnxi_peer_t *base, const char *cause)
{
    vnxi_native_peer_t *peer = vnxi_native_peer(base);

    vnxi_peer_end_mark(&peer->end, cause);
    delist(peer);
    if (peer->link != NULL) {
        vnxi_link_close(peer->link);
    }
    if (peer->ucx != NULL) {
        vnxi_ucx_conn_close(peer->ucx);
    }
    vnxi_native_xfers_look(peer->engine);
}

void
vnxi_native_peer_lose(vnxi_native_peer_t *peer, const char *cause)
{
    const vnxi_engine_host_t *host = &peer->engine->host;
    vnx_error_t error;

    if (vnxi_peer_end_mark(&peer->end, cause)) {
        vnxi_native_peer_error(peer, "transfer", &error);
        host->peer_lost(host->context, &peer->base, &error);
        vnxi_native_xfers_look(peer->engine);
    }
}

static void
on_ended(void *context, vnxi_link_t *link, const char *cause)
{
    vnxi_native_peer_t *peer = vnxi_native_peer_by_link(context, link);
    if (peer != NULL) {
        vnxi_native_peer_lose(peer, cause);
        vnxi_peer_release(&peer->base);
    }
}

void
vnxi_native_on_ucx_lost(void *engine, uintptr_t id, const char *cause)
{
    vnxi_native_peer_t *peer = find_by_id(engine, id);
    if (peer != NULL) {
        vnxi_native_peer_lose(peer, cause);
        vnxi_peer_release(&peer->base);
    }
}

/* -- Revocations -----------------------------------------------------------
 */

/* An agent in this process has revoked its regions itself.  A peer without a
 * table has not been asked about any region. */
static void
on_revoked(void *context, vnxi_link_t *link, uint64_t epoch, vnx_mem_t mem,
           const vnx_desc_t *desc)
{
    vnxi_native_peer_t *peer = vnxi_native_peer_by_link(context, link);
    bool asks = false;

    if (peer == NULL) {
        return;
    }
    vnxi_mutex_lock(&peer->lock);
    if (peer->local == NULL && peer->table != NULL) {
        asks = vnxi_confirm_revoked(
            peer,
            vnxi_region_table_exact(peer->table, mem, desc->addr, desc->len,
                                    desc->dev),
            epoch);
    }
    vnxi_mutex_unlock(&peer->lock);
    if (asks) {
        vnxi_confirm_ask(peer);
    }
    vnxi_native_xfers_look(peer->engine);
    vnxi_peer_release(&peer->base);
}

static void
on_alarm(void *context)
{
    vnxi_native_xfers_look(context);
}

/* -- Notifications ---------------------------------------------------------
 */

void
vnxi_native_on_notif(void *context, const void *sender, size_t sender_len,
                     const void *message, size_t message_len)
{
    vnxi_engine_t *engine = context;
    engine->host.notif(engine->host.context, sender, sender_len, message,
                       message_len);
}

const vnxi_hub_callbacks_t vnxi_native_hub_callbacks = {
    .notif = vnxi_native_on_notif,
    .revoked = on_revoked,
    .ended = on_ended,
    .confirm = vnxi_confirm_on_question,
    .confirmed = vnxi_confirm_on_answer,
    .alarm = on_alarm,
};

/* Deliver directly into the queue of an agent of this process. */
static bool
deliver_here(vnxi_engine_t *target, const vnxi_engine_t *sender,
             const void *message, size_t len)
{
    vnxi_mutex_lock(&target->inbound_lock);
    bool is_open = !atomic_load(&target->stopped);
    if (is_open) {
        target->host.notif(target->host.context, sender->name,
                           sender->name_len, message, len);
    }
    vnxi_mutex_unlock(&target->inbound_lock);
    return is_open;
}

vnx_status_t
vnxi_native_notif_send(vnxi_peer_t *base, const void *message, size_t len,
                       vnx_error_t *error)
{
    static const char operation[] = "send_notif";
    vnxi_native_peer_t *peer = vnxi_native_peer(base);
    vnx_status_t status = VNX_OK;

    if (vnxi_native_peer_gone(peer)) {
        return vnxi_native_peer_error(peer, operation, error);
    }
    if (peer->path == VNXI_PATH_SHM || peer->path == VNXI_PATH_UCX) {
        status =
            peer->path == VNXI_PATH_SHM
                ? vnxi_link_send_notif(peer->link, message, len, error)
                : vnxi_ucx_conn_send_notif(peer->ucx, message, len, error);
        if (status != VNX_OK) {
            vnxi_error_peer(error, base->name, base->name_len);
        }
    } else {
        vnxi_engine_t *target =
            peer->path == VNXI_PATH_SELF ? peer->engine : peer->local;
        if (!deliver_here(target, peer->engine, message, len)) {
            status = vnxi_native_peer_error(peer, operation, error);
        }
    }
    if (status == VNX_OK) {
        atomic_fetch_add_explicit(&peer->notifs, 1, memory_order_relaxed);
    }
    return status;
}

/* -- Regions and connection ------------------------------------------------
 */

vnxi_region_table_t *
vnxi_native_peer_table(vnxi_native_peer_t *peer)
{
    if (peer->path == VNXI_PATH_SELF) {
        return vnxi_registry_snapshot(peer->engine->registry, NULL);
    }
    vnxi_mutex_lock(&peer->lock);
    vnxi_region_table_t *table = vnxi_region_table_retain(peer->table);
    vnxi_mutex_unlock(&peer->lock);
    return table;
}

bool
vnxi_native_peer_covers(vnxi_peer_t *base, vnx_mem_t mem,
                        const vnx_desc_t *descs, size_t count)
{
    vnxi_native_peer_t *peer = vnxi_native_peer(base);
    if (vnxi_native_peer_gone(peer)) {
        return false;
    }
    vnxi_region_table_t *table = vnxi_native_peer_table(peer);
    bool covers = vnxi_region_table_covers(table, mem, descs, count);

    vnxi_region_table_release(table);
    return covers;
}

static bool
is_running_here(vnxi_native_peer_t *peer)
{
    const vnxi_shm_info_t *info = &peer->info, *ours = &peer->engine->info;
    unsigned char nonce[VNXI_SHM_ID_SIZE];
    vnxi_proc_stat_t stat;

    if (peer->info.pid == 0 || !peer->is_ours ||
        memcmp(info->boot, ours->boot, sizeof info->boot) != 0 ||
        info->pid_namespace != ours->pid_namespace ||
        vnxi_proc_stat((pid_t)info->pid, &stat) != 0 || stat.exiting ||
        stat.start_time != info->start_time) {
        return false;
    }
    if (peer->link != NULL) {
        return vnxi_link_is_up(peer->link);
    }
    return vnxi_vm_peek((pid_t)info->pid, info->nonce_addr, nonce,
                        sizeof nonce) == 0 &&
           memcmp(nonce, info->instance, sizeof nonce) == 0;
}

uint32_t
vnxi_native_peer_pid(vnxi_peer_t *base)
{
    vnxi_native_peer_t *peer = vnxi_native_peer(base);

    if (vnxi_native_peer_gone(peer)) {
        return 0;
    }
    if (peer->local != NULL) {
        return (uint32_t)getpid();
    }
    return is_running_here(peer) ? peer->info.pid : 0;
}

/* Loading the metadata has connected the peer.  UCX does the rest in the
 * background, and describe() shows when it is done. */
vnx_status_t
vnxi_native_peer_connect(vnxi_peer_t *base, vnx_error_t *error)
{
    vnxi_native_peer_t *peer = vnxi_native_peer(base);
    if (vnxi_native_peer_gone(peer)) {
        return vnxi_native_peer_error(peer, "make_connection", error);
    }
    if (peer->ucx != NULL) {
        vnxi_ucx_conn_warm_up(peer->ucx);
    }
    return VNX_OK;
}
