/*
 * Peers of the native engine: their life cycle, their end, notifications to
 * them.
 *
 * Design notes.  The end is marked once, with the cause, by whichever event
 * comes first: the end of the main conn, a copy that finds the process gone,
 * or a close by the core.  Everything that works for the peer checks the mark:
 * posting, each chunk of copying, sending.  The events of conns name an id.
 * The peer is looked up in the engine's list, under its lock, so a late event
 * finds nothing instead of a peer that is being freed.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/fork_fds.h"
#include "base/log.h"
#include "base/mutex.h"
#include "base/pool.h"
#include "engine/native/native.h"

vnxi_native_peer_t *
vnxi_native_peer_create(vnxi_engine_t *engine, const void *name,
                        size_t name_len)
{
    vnxi_native_peer_t *peer = calloc(1, sizeof *peer);
    if (peer == NULL || !vnxi_peer_init(&peer->base, vnxi_native_peer_destroy,
                                        name, name_len)) {
        free(peer);
        return NULL;
    }
    peer->engine = engine;
    vnxi_peer_end_init(&peer->end);
    vnxi_mutex_init(&peer->lock, VNXI_RANK_NATIVE_PEER);
    return peer;
}

void
vnxi_native_peer_destroy(vnxi_peer_t *base)
{
    vnxi_native_peer_t *peer = vnxi_native_peer(base);

    vnxi_region_table_release(peer->table);
    for (unsigned t = 0; t < VNXI_TRANSPORTS; t++) {
        vnxi_conn_t *conn = atomic_load(&peer->conns[t]);
        if (conn != NULL) {
            vnxi_transports[t]->conn_free(conn);
        }
    }
    vnxi_mutex_destroy(&peer->lock);
    vnxi_peer_end_fini(&peer->end);
    vnxi_peer_fini(&peer->base);
    free(peer);
}

/* -- The list of peers -----------------------------------------------------
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

/* Find a peer by its id; returns a reference, or NULL if it was closed. */
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

/* -- Conns -----------------------------------------------------------------
 */

/* Return whether another conn has found the peer in this process. */
static bool
is_here(const vnxi_native_peer_t *peer)
{
    for (unsigned t = 0; t < VNXI_TRANSPORTS; t++) {
        if (vnxi_transports[t]->borrow != NULL &&
            atomic_load(&peer->conns[t]) != NULL) {
            return true;
        }
    }
    return false;
}

vnx_status_t
vnxi_native_peer_add_conn(vnxi_native_peer_t *peer, unsigned t,
                          vnxi_md_bytes_t info, const atomic_bool *stop,
                          vnx_error_t *error)
{
    vnxi_port_t *port = vnxi_native_port(peer->engine, t);
    vnxi_conn_t *conn = NULL;

    if (port == NULL || atomic_load(&peer->conns[t]) != NULL) {
        return VNX_OK;
    }
    const vnxi_conn_args_t args = {
        .name = peer->base.name,
        .name_len = peer->base.name_len,
        .identity = peer->is_ours ? &peer->identity : NULL,
        .info = info,
        .id = peer->id,
        .is_self = peer == peer->engine->self,
        .is_here = is_here(peer),
        .stop = stop,
    };
    vnx_status_t status =
        vnxi_transports[t]->conn_create(port, &args, &conn, error);
    if (status == VNX_OK && conn != NULL) {
        conn->port = port;
        conn->peer = peer;
        atomic_store(&peer->conns[t], conn);
    }
    return status;
}

/* Return whether some of the peer's regions are reached by this transport. */
static bool
is_needed(vnxi_native_peer_t *peer, unsigned t)
{
    uint32_t mems = vnxi_native_mems(peer->engine, VNXI_TRANSPORTS);
    vnxi_region_table_t *table = vnxi_native_peer_table(peer);
    size_t count = table != NULL ? vnxi_region_table_count(table) : 0;
    bool is_found = false;

    for (size_t i = 0; i < count && !is_found; i++) {
        uint64_t routes = vnxi_region_routes(vnxi_region_table_at(table, i));
        for (unsigned mem = 0; mem < VNX_MEM_COUNT; mem++) {
            is_found |=
                (mems >> mem & 1) != 0 && vnxi_route_from(routes, mem) == t;
        }
    }
    vnxi_region_table_release(table);
    return is_found;
}

/* Loading the metadata has connected the main conn.  The rest is done in the
 * background, and describe() shows when the main one is connected. */
vnx_status_t
vnxi_native_peer_connect(vnxi_peer_t *base, vnx_error_t *error)
{
    vnxi_native_peer_t *peer = vnxi_native_peer(base);
    if (vnxi_native_peer_gone(peer)) {
        return vnxi_native_peer_error(peer, "vnx_agent_connect_peer", error);
    }
    for (unsigned t = 0; t < VNXI_TRANSPORTS; t++) {
        vnxi_conn_t *conn = vnxi_native_conn(peer, t);
        if (conn != NULL && vnxi_transports[t]->warm_up != NULL &&
            (t == atomic_load(&peer->main) || is_needed(peer, t))) {
            vnxi_transports[t]->warm_up(conn);
        }
    }
    return VNX_OK;
}

/* -- The end ---------------------------------------------------------------
 */

vnx_status_t
vnxi_native_peer_error(vnxi_native_peer_t *peer, const char *operation,
                       vnx_error_t *error)
{
    char cause[VNX_ERROR_CAUSE_MAX];

    vnxi_peer_end_cause(&peer->end, cause);
    return vnxi_peer_ended(&peer->base,
                           cause[0] != '\0' ? cause : "the agent was closed",
                           operation, error);
}

void
vnxi_native_peer_close(vnxi_peer_t *base, const char *cause)
{
    vnxi_native_peer_t *peer = vnxi_native_peer(base);

    vnxi_peer_end_mark(&peer->end, cause);
    /* No chunk begins any more.  The owner of the memory takes the end of the
     * connection for the end of all copying. */
    vnxi_pool_settle();
    for (unsigned t = VNXI_TRANSPORTS; t-- > 0;) { /* the main one last */
        vnxi_conn_t *conn = atomic_load(&peer->conns[t]);
        if (conn != NULL) {
            vnxi_transports[t]->conn_close(conn);
        }
    }
    delist(peer); /* last: closing may wait for messages of the peer */
    peer->engine->look(peer->engine);
}

void
vnxi_native_peer_lose(vnxi_native_peer_t *peer, const char *cause)
{
    const vnxi_engine_host_t *host = &peer->engine->host;
    vnx_error_t error;

    if (!vnxi_peer_end_mark(&peer->end, cause)) {
        return;
    }
    for (unsigned t = atomic_load(&peer->main) + 1; t < VNXI_TRANSPORTS; t++) {
        vnxi_conn_t *conn = vnxi_native_conn(peer, t);
        if (conn != NULL && vnxi_transports[t]->peer_gone != NULL) {
            vnxi_transports[t]->peer_gone(conn, cause);
        }
    }
    vnxi_native_peer_error(peer, "vnx_xfer_post", &error);
    host->peer_lost(host->context, &peer->base, &error);
    peer->engine->look(peer->engine);
}

/* -- Events of conns -------------------------------------------------------
 */

static void
on_notif(void *context, const void *sender, size_t sender_len,
         const void *message, size_t message_len)
{
    const vnxi_engine_host_t *host = &((vnxi_engine_t *)context)->host;
    host->notif(host->context, sender, sender_len, message, message_len);
}

/* If another conn than the main one fails, the peer goes on: transfers over
 * that conn fail with its cause. */
static void
on_lost(void *context, unsigned number, uintptr_t id, const char *cause)
{
    vnxi_native_peer_t *peer = find_by_id(context, id);
    if (peer == NULL) {
        return;
    }
    vnxi_log(VNX_LOG_DEBUG, peer->engine->name,
             "the connection to peer '%s' by %s has ended: %s",
             peer->base.name, vnxi_transports[number]->name, cause);
    if (atomic_load(&peer->main) == number) {
        vnxi_native_peer_lose(peer, cause);
    }
    vnxi_peer_release(&peer->base);
}

static void
on_changed(void *context)
{
    vnxi_engine_t *engine = context;
    engine->look(engine);
}

static vnxi_conn_t *
hold(void *context, unsigned number, uintptr_t id)
{
    vnxi_native_peer_t *peer = find_by_id(context, id);
    vnxi_conn_t *conn =
        peer != NULL ? atomic_load(&peer->conns[number]) : NULL;

    if (peer != NULL && conn == NULL) {
        vnxi_peer_release(&peer->base);
    }
    return conn;
}

static void
drop(void *context, vnxi_conn_t *conn)
{
    (void)context;
    vnxi_peer_release(&((vnxi_native_peer_t *)conn->peer)->base);
}

static void
on_false_epoch(void *context, vnxi_conn_t *conn, uint64_t epoch)
{
    vnxi_native_peer_t *peer = conn->peer;

    (void)context;
    vnxi_mutex_lock(&peer->lock);
    if (peer->epoch == epoch) {
        peer->epoch = 0; /* accept any epoch from now on */
    }
    vnxi_mutex_unlock(&peer->lock);
}

/* Find other routes to the peer's regions; lists notice it when their next
 * transfer is made. */
static void
on_give_up(void *context, unsigned number, uintptr_t id, const char *cause)
{
    vnxi_native_peer_t *peer = find_by_id(context, id);
    vnxi_reach_t reach;

    if (peer == NULL) {
        return;
    }
    vnxi_mutex_lock(&peer->lock);
    bool is_first = (atomic_load(&peer->given_up) >> number & 1) == 0;
    snprintf(peer->refused[number], sizeof peer->refused[number], "%s", cause);
    atomic_fetch_or(&peer->given_up, 1u << number);
    vnxi_mutex_unlock(&peer->lock);
    if (is_first) {
        vnxi_log(VNX_LOG_WARNING, peer->engine->name,
                 "%s does not reach the memory of peer '%s', which goes by "
                 "other transports from now on: %s",
                 vnxi_transports[number]->name, peer->base.name, cause);
    }
    /* Each time: metadata that was being loaded the last time has found routes
     * of its own. */
    vnxi_native_find_reach(peer->engine, peer, &reach);
    vnxi_region_table_t *table = vnxi_native_peer_table(peer);
    vnxi_table_find_routes(table, &reach);
    vnxi_region_table_release(table);
    vnxi_peer_release(&peer->base);
}

/* -- Control messages, copying by the main conn ----------------------------
 */

/* The transport with this entry in metadata; VNXI_TRANSPORTS: there is none.
 */
static unsigned
find_by_entry(const void *entry, size_t len)
{
    unsigned t = 0;

    while (t < VNXI_TRANSPORTS &&
           (vnxi_transports[t]->entry == NULL ||
            strlen(vnxi_transports[t]->entry) != len ||
            memcmp(vnxi_transports[t]->entry, entry, len) != 0)) {
        t++;
    }
    return t;
}

/* The main conn of the peer of a conn; NULL: the peer is gone. */
static vnxi_conn_t *
find_main(vnxi_conn_t *conn, const vnxi_transport_t **transport_p,
          vnx_error_t *error)
{
    vnxi_native_peer_t *peer = conn->peer;
    unsigned t = atomic_load_explicit(&peer->main, memory_order_relaxed);

    if (vnxi_native_peer_gone(peer)) {
        vnxi_native_peer_error(peer, "vnx_xfer_post", error);
        return NULL;
    }
    *transport_p = vnxi_transports[t];
    return vnxi_native_conn(peer, t);
}

static vnx_status_t
ask(void *context, unsigned number, vnxi_conn_t *conn,
    const vnxi_control_t *control, vnx_error_t *error)
{
    const vnxi_transport_t *transport;
    vnxi_conn_t *main_one = find_main(conn, &transport, error);

    (void)context;
    if (main_one != NULL && transport->carry_question != NULL) {
        return transport->carry_question(
            main_one, vnxi_transports[number]->entry, control, error);
    }
    vnxi_fork_fds_close(control->fds, control->fd_count);
    return main_one == NULL
               ? VNX_ERR_REMOTE_DISCONNECT
               : vnxi_error_set(error, VNX_ERR_NOT_SUPPORTED, "vnx_xfer_post",
                                "%s carries no messages of other transports",
                                transport->name);
}

static vnx_status_t
answer(void *context, unsigned number, uint64_t asker,
       const vnxi_control_t *control, vnx_error_t *error)
{
    for (unsigned t = 0; t < VNXI_TRANSPORTS; t++) {
        vnxi_port_t *port = vnxi_native_port(context, t);
        if (port != NULL && vnxi_transports[t]->carry_answer != NULL) {
            return vnxi_transports[t]->carry_answer(
                port, asker, vnxi_transports[number]->entry, control, error);
        }
    }
    vnxi_fork_fds_close(control->fds, control->fd_count);
    return vnxi_error_set(error, VNX_ERR_NOT_SUPPORTED, "vnx_xfer_post",
                          "no transport carries messages of other transports");
}

static void
on_question(void *context, const void *entry, size_t entry_len, uint64_t asker,
            const vnxi_control_t *control)
{
    unsigned t = find_by_entry(entry, entry_len);
    vnxi_port_t *port =
        t < VNXI_TRANSPORTS ? vnxi_native_port(context, t) : NULL;

    if (port != NULL && vnxi_transports[t]->on_question != NULL) {
        vnxi_transports[t]->on_question(port, asker, control);
    } else {
        vnxi_fork_fds_close(control->fds, control->fd_count);
    }
}

static void
on_answered(void *context, const void *entry, size_t entry_len, uintptr_t id,
            const vnxi_control_t *control)
{
    unsigned t = find_by_entry(entry, entry_len);
    vnxi_conn_t *conn = t < VNXI_TRANSPORTS ? hold(context, t, id) : NULL;

    if (conn != NULL && vnxi_transports[t]->on_answer != NULL) {
        vnxi_transports[t]->on_answer(conn, control);
    } else {
        vnxi_fork_fds_close(control->fds, control->fd_count);
    }
    if (conn != NULL) {
        drop(context, conn);
    }
}

static void
on_asker_gone(void *context, uint64_t asker)
{
    for (unsigned t = 0; t < VNXI_TRANSPORTS; t++) {
        vnxi_port_t *port = vnxi_native_port(context, t);
        if (port != NULL && vnxi_transports[t]->on_asker_gone != NULL) {
            vnxi_transports[t]->on_asker_gone(port, asker);
        }
    }
}

static vnx_status_t
copy(void *context, vnxi_conn_t *conn, const vnxi_copy_row_t *rows,
     size_t count, vnx_op_t op, vnx_error_t *error)
{
    const vnxi_transport_t *transport;
    vnxi_conn_t *main_one = find_main(conn, &transport, error);

    (void)context;
    if (main_one == NULL) {
        return VNX_ERR_REMOTE_DISCONNECT;
    }
    return transport->copy_rows != NULL
               ? transport->copy_rows(main_one, rows, count, op, error)
               : vnxi_error_set(error, VNX_ERR_NOT_SUPPORTED, "vnx_xfer_post",
                                "%s does not copy for other transports",
                                transport->name);
}

static void
retain(void *context)
{
    vnxi_native_retain(context);
}

static void
release(void *context)
{
    vnxi_native_unref(context);
}

const vnxi_port_host_t vnxi_native_port_host = {
    .notif = on_notif,
    .lost = on_lost,
    .changed = on_changed,
    .give_up = on_give_up,
    .hold = hold,
    .drop = drop,
    .false_epoch = on_false_epoch,
    .settle = vnxi_native_settle,
    .update = vnxi_native_update,
    .ask = ask,
    .answer = answer,
    .question = on_question,
    .answered = on_answered,
    .asker_gone = on_asker_gone,
    .copy = copy,
    .retain = retain,
    .release = release,
};

/* -- Notifications ---------------------------------------------------------
 */

vnx_status_t
vnxi_native_notif_send(vnxi_peer_t *base, const void *message, size_t len,
                       vnx_error_t *error)
{
    static const char operation[] = "vnx_agent_send_notif";
    vnxi_native_peer_t *peer = vnxi_native_peer(base);
    unsigned t = atomic_load_explicit(&peer->main, memory_order_relaxed);

    if (vnxi_native_peer_gone(peer)) {
        return vnxi_native_peer_error(peer, operation, error);
    }
    vnx_status_t status = vnxi_transports[t]->send_notif(
        vnxi_native_conn(peer, t), message, len, error);
    if (status != VNX_OK) {
        vnxi_error_peer(error, base->name, base->name_len);
    }
    return status;
}

/* -- Facts -----------------------------------------------------------------
 */

vnxi_region_table_t *
vnxi_native_peer_table(vnxi_native_peer_t *peer)
{
    if (peer == peer->engine->self) {
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

uint32_t
vnxi_native_peer_pid(vnxi_peer_t *base)
{
    vnxi_native_peer_t *peer = vnxi_native_peer(base);
    uint32_t pid = 0;

    for (unsigned t = 0;
         t < VNXI_TRANSPORTS && pid == 0 && !vnxi_native_peer_gone(peer);
         t++) {
        vnxi_conn_t *conn = atomic_load(&peer->conns[t]);
        if (conn != NULL && vnxi_transports[t]->find_pid != NULL) {
            pid = vnxi_transports[t]->find_pid(conn, true);
        }
    }
    return pid;
}
