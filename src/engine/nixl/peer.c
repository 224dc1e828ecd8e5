/*
 * Peers: their life, their end, notifications to them.
 *
 * Design notes.  The library knows one peer per name.  This engine has one
 * object per generation; `is_loaded` marks the one that the library has.  The
 * end is marked once, with the cause: a close, another instance of the name,
 * or a failure after which the library no longer knows the name, which is its
 * way to report a broken connection.
 */
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/mutex.h"
#include "engine/nixl/nixl.h"

vnxi_nixl_peer_t *
vnxi_nixl_peer_create(vnxi_engine_t *engine, const void *name, size_t name_len)
{
    vnxi_nixl_peer_t *peer = calloc(1, sizeof *peer);
    if (peer == NULL ||
        !vnxi_peer_init(&peer->base, vnxi_nixl_peer_destroy, name, name_len)) {
        free(peer);
        return NULL;
    }
    peer->engine = engine;
    vnxi_peer_end_init(&peer->end);
    vnxi_mutex_init(&peer->lock, VNXI_RANK_NIXL_PEER);
    return peer;
}

void
vnxi_nixl_conns_free(vnxi_nixl_conn_t *conns, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        free(conns[i].info);
    }
    free(conns);
}

void
vnxi_nixl_peer_destroy(vnxi_peer_t *base)
{
    vnxi_nixl_peer_t *peer = vnxi_nixl_peer(base);

    vnxi_region_table_release(peer->table);
    vnxi_nixl_conns_free(peer->conns, peer->conn_count);
    vnxi_mutex_destroy(&peer->lock);
    vnxi_peer_end_fini(&peer->end);
    vnxi_peer_fini(&peer->base);
    free(peer);
}

/* -- The end ---------------------------------------------------------------
 */

vnx_status_t
vnxi_nixl_peer_error(vnxi_nixl_peer_t *peer, const char *operation,
                     vnx_error_t *error)
{
    char cause[VNX_ERROR_CAUSE_MAX];

    vnxi_peer_end_cause(&peer->end, cause);
    return vnxi_peer_ended(&peer->base, cause, operation, error);
}

bool
vnxi_nixl_peer_is_there(const vnxi_nixl_peer_t *peer)
{
    const vnxi_engine_t *engine = peer->engine;

    if (peer->is_self || vnxi_peer_end_has_come(&peer->end)) {
        return peer->is_self;
    }
    return engine->capi->check_remote_md(engine->agent, peer->base.name,
                                         NULL) == NIXL_CAPI_SUCCESS;
}

void
vnxi_nixl_peer_lose(vnxi_nixl_peer_t *peer, const char *operation)
{
    const vnxi_engine_host_t *host = &peer->engine->host;
    vnx_error_t lost;

    if (vnxi_peer_end_mark(&peer->end,
                           "the connection broke: the agent ended, a transfer "
                           "failed on its side, or the network failed")) {
        vnxi_nixl_peer_error(peer, operation, &lost);
        host->peer_lost(host->context, &peer->base, &lost);
    }
}

vnx_status_t
vnxi_nixl_peer_failed(vnxi_nixl_peer_t *peer, int code, const char *operation,
                      const char *what, vnx_error_t *error)
{
    if (!vnxi_nixl_peer_is_there(peer)) {
        vnxi_nixl_peer_lose(peer, operation);
    }
    if (vnxi_peer_end_has_come(&peer->end)) {
        return vnxi_nixl_peer_error(peer, operation, error);
    }
    vnx_status_t status = vnxi_nixl_failed(code, operation, what, error);
    vnxi_error_peer(error, peer->base.name, peer->base.name_len);
    return status;
}

/* -- Queries -----------------------------------------------------------------
 */

vnxi_region_table_t *
vnxi_nixl_peer_table(vnxi_nixl_peer_t *peer)
{
    if (peer->is_self) {
        return vnxi_registry_snapshot(peer->engine->registry, NULL);
    }
    vnxi_mutex_lock(&peer->lock);
    vnxi_region_table_t *table = vnxi_region_table_retain(peer->table);
    vnxi_mutex_unlock(&peer->lock);
    return table;
}

bool
vnxi_nixl_peer_covers(vnxi_peer_t *base, vnx_mem_t mem,
                      const vnx_desc_t *descs, size_t count)
{
    vnxi_nixl_peer_t *peer = vnxi_nixl_peer(base);
    vnxi_region_table_t *table =
        vnxi_peer_end_has_come(&peer->end) ? NULL : vnxi_nixl_peer_table(peer);
    bool covers = vnxi_region_table_covers(table, mem, descs, count);

    vnxi_region_table_release(table);
    return covers;
}

/* NIXL's metadata does not name the process, and the library notices the end
 * of a peer only when it uses the peer, so a second agent looks like a
 * restart. */
uint32_t
vnxi_nixl_peer_pid(vnxi_peer_t *peer)
{
    (void)peer;
    return 0;
}

vnx_status_t
vnxi_nixl_peer_connect(vnxi_peer_t *base, vnx_error_t *error)
{
    static const char operation[] = "vnx_agent_connect_peer";
    vnxi_nixl_peer_t *peer = vnxi_nixl_peer(base);
    vnxi_engine_t *engine = peer->engine;
    vnx_status_t status = VNX_OK;

    if (vnxi_peer_end_has_come(&peer->end)) {
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
    if (code != NIXL_CAPI_SUCCESS) {
        status =
            vnxi_nixl_peer_failed(peer, code, operation, "connecting", error);
    }
    vnxi_nixl_leave(engine);
    return status;
}

/* A notification to the agent itself does not use the library, so it works
 * with every backend. */
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
    static const char operation[] = "vnx_agent_send_notif";
    vnxi_nixl_peer_t *peer = vnxi_nixl_peer(base);
    vnxi_engine_t *engine = peer->engine;
    vnx_status_t status = VNX_OK;

    if (vnxi_peer_end_has_come(&peer->end)) {
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
        if (code == NIXL_CAPI_ERROR_BACKEND) {
            /* Only a broken connection can stop a notification, and in this
             * case the library does not drop the peer. */
            vnxi_nixl_peer_lose(peer, operation);
        }
        if (code != NIXL_CAPI_SUCCESS) {
            status = vnxi_nixl_peer_failed(peer, code, operation,
                                           "sending the notification", error);
        }
        vnxi_nixl_poller_touch(&engine->poller);
    }
    vnxi_nixl_leave(engine);
    return status;
}
