/*
 * Peers: their life, their end, notifications to them.
 *
 * Design notes.  The library knows peers by name, one a name; this engine has
 * an object a generation, of which `is_loaded` says that it is the one that
 * the library has.  `gone` is raised once, with the cause: by a close, by
 * another instance of the name, or by a failure after which the library does
 * not know the name any more, which is how it tells of a broken connection.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "engine/nixl/nixl.h"

vnxi_nixl_peer_t *
vnxi_nixl_peer_create(vnxi_engine_t *engine, const void *name, size_t name_len)
{
    vnxi_nixl_peer_t *peer = calloc(1, sizeof *peer);
    char *copy = malloc(name_len + 1);
    if (peer == NULL || copy == NULL) {
        free(peer);
        free(copy);
        return NULL;
    }
    memcpy(copy, name, name_len);
    copy[name_len] = '\0';
    atomic_init(&peer->base.refs, 1);
    peer->base.ops = &vnxi_nixl_ops;
    peer->base.name = copy;
    peer->base.name_len = name_len;
    peer->engine = engine;
    pthread_mutex_init(&peer->lock, NULL);
    return peer;
}

void
vnxi_nixl_peer_destroy(vnxi_peer_t *base)
{
    vnxi_nixl_peer_t *peer = vnxi_nixl_peer(base);

    vnxi_region_table_release(peer->table);
    vnxi_nixl_conns_free(peer->conns, peer->conn_count);
    pthread_mutex_destroy(&peer->lock);
    free(peer->base.name);
    free(peer);
}

/* -- The end ---------------------------------------------------------------
 */

/* True for the first caller. */
static bool
mark_gone(vnxi_nixl_peer_t *peer, const char *cause)
{
    pthread_mutex_lock(&peer->lock);
    bool is_first = !atomic_load(&peer->gone);
    if (is_first) {
        snprintf(peer->cause, sizeof peer->cause, "%s", cause);
        atomic_store(&peer->gone, true);
    }
    pthread_mutex_unlock(&peer->lock);
    return is_first;
}

vnx_status_t
vnxi_nixl_peer_error(vnxi_nixl_peer_t *peer, const char *operation,
                     vnx_error_t *error)
{
    pthread_mutex_lock(&peer->lock);
    vnxi_error_set(error, VNX_ERR_REMOTE_DISCONNECT, operation, "%s",
                   peer->cause);
    pthread_mutex_unlock(&peer->lock);
    vnxi_error_peer(error, peer->base.name, peer->base.name_len);
    return VNX_ERR_REMOTE_DISCONNECT;
}

/* The library drops a peer whose connection has failed. */
static bool
was_dropped(const vnxi_nixl_peer_t *peer)
{
    const vnxi_engine_t *engine = peer->engine;
    return !peer->is_self && !atomic_load(&peer->gone) &&
           engine->capi->check_remote_md(engine->agent, peer->base.name,
                                         NULL) != VNXI_CAPI_OK;
}

static void
lose(vnxi_nixl_peer_t *peer, const char *operation)
{
    const vnxi_engine_host_t *host = &peer->engine->host;
    vnx_error_t lost;

    if (mark_gone(peer, "the connection broke: the agent ended, a transfer "
                        "failed on its side, or the network did")) {
        vnxi_nixl_peer_error(peer, operation, &lost);
        host->peer_lost(host->context, &peer->base, &lost);
    }
}

vnx_status_t
vnxi_nixl_peer_failed(vnxi_nixl_peer_t *peer, int code, const char *operation,
                      const char *what, vnx_error_t *error)
{
    if (was_dropped(peer)) {
        lose(peer, operation);
    }
    if (atomic_load(&peer->gone)) {
        return vnxi_nixl_peer_error(peer, operation, error);
    }
    vnx_status_t status = vnxi_nixl_failed(code, operation, what, error);
    vnxi_error_peer(error, peer->base.name, peer->base.name_len);
    return status;
}

/* No post begins after the mark; those that are in the library are waited for,
 * what they left in flight is ended; then the library may forget the name. */
void
vnxi_nixl_peer_close(vnxi_peer_t *base, const char *cause)
{
    vnxi_nixl_peer_t *peer = vnxi_nixl_peer(base);
    vnxi_engine_t *engine = peer->engine;

    mark_gone(peer, cause);
    if (!peer->is_loaded) {
        return;
    }
    peer->is_loaded = false;
    vnxi_nixl_settle(engine);
    if (!vnxi_nixl_enter(engine)) {
        return; /* the library's agent is gone, and what it knew */
    }
    vnxi_nixl_poller_abort(engine, peer, VNX_ERR_REMOTE_DISCONNECT, cause);
    engine->capi->invalidate_remote_md(engine->agent, peer->base.name);
    vnxi_nixl_leave(engine);
}

/* -- What is asked of it ---------------------------------------------------
 */

vnxi_region_table_t *
vnxi_nixl_peer_table(vnxi_nixl_peer_t *peer)
{
    if (peer->is_self) {
        return vnxi_registry_snapshot(peer->engine->registry, NULL);
    }
    pthread_mutex_lock(&peer->lock);
    vnxi_region_table_t *table = vnxi_region_table_retain(peer->table);
    pthread_mutex_unlock(&peer->lock);
    return table;
}

bool
vnxi_nixl_peer_covers(vnxi_peer_t *base, vnx_mem_t mem,
                      const vnx_desc_t *descs, size_t count)
{
    vnxi_nixl_peer_t *peer = vnxi_nixl_peer(base);
    vnxi_region_table_t *table =
        atomic_load(&peer->gone) ? NULL : vnxi_nixl_peer_table(peer);
    bool covers = table != NULL;

    for (size_t i = 0; covers && i < count; i++) {
        covers = vnxi_region_table_find(table, mem, descs[i].addr,
                                        descs[i].len, descs[i].dev) != NULL;
    }
    vnxi_region_table_release(table);
    return covers;
}

vnx_status_t
vnxi_nixl_peer_connect(vnxi_peer_t *base, vnx_error_t *error)
{
    static const char operation[] = "make_connection";
    vnxi_nixl_peer_t *peer = vnxi_nixl_peer(base);
    vnxi_engine_t *engine = peer->engine;
    vnx_status_t status = VNX_OK;

    if (atomic_load(&peer->gone)) {
        return vnxi_nixl_peer_error(peer, operation, error);
    }
    if (peer->is_self) {
        return VNX_OK;
    }
    if (!vnxi_nixl_enter(engine)) {
        return vnxi_nixl_stopped(operation, error);
    }
    int code = engine->capi->agent_make_connection(engine->agent,
                                                   peer->base.name, NULL);
    if (code != VNXI_CAPI_OK) {
        status =
            vnxi_nixl_peer_failed(peer, code, operation, "connecting", error);
    }
    vnxi_nixl_leave(engine);
    return status;
}

/* To ourselves it needs no library, and works with every backend. */
static vnx_status_t
notify_self(vnxi_engine_t *engine, const void *message, size_t len)
{
    engine->host.notif(engine->host.context, engine->name, engine->name_len,
                       message, len);
    return VNX_OK;
}

vnx_status_t
vnxi_nixl_notif_send(vnxi_peer_t *base, const void *message, size_t len,
                     vnx_error_t *error)
{
    static const char operation[] = "send_notif";
    vnxi_nixl_peer_t *peer = vnxi_nixl_peer(base);
    vnxi_engine_t *engine = peer->engine;
    vnx_status_t status = VNX_OK;

    if (atomic_load(&peer->gone)) {
        return vnxi_nixl_peer_error(peer, operation, error);
    }
    if (!vnxi_nixl_enter(engine)) {
        return vnxi_nixl_stopped(operation, error);
    }
    if (peer->is_self) {
        status = notify_self(engine, message, len);
    } else {
        int code = engine->capi->gen_notif(engine->agent, peer->base.name,
                                           len > 0 ? message : "", len, NULL);
        if (code == VNXI_CAPI_BACKEND) {
            /* Nothing but a broken connection stops a notification, and here
             * the library does not drop the peer. */
            lose(peer, operation);
        }
        if (code != VNXI_CAPI_OK) {
            status = vnxi_nixl_peer_failed(peer, code, operation,
                                           "sending the notification", error);
        }
        vnxi_nixl_poller_touch(engine);
    }
    if (status == VNX_OK) {
        atomic_fetch_add_explicit(&peer->notifs, 1, memory_order_relaxed);
    }
    vnxi_nixl_leave(engine);
    return status;
}
