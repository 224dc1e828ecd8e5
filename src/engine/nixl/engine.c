/*
 * The nixl engine: its life, its prepared lists, and its table of operations.
 */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/fork.h"
#include "base/log.h"
#include "base/mutex.h"
#include "engine/nixl/nixl.h"
#include "engine/nixl/ops.h"
#include "engine/nixl/xfer.h"
#include "engine/parts/metadata.h"

/* Limit of the wait for transfers, which the library cannot stop. */
#define STOP_NS 5000000000u

/* -- Entering the library --------------------------------------------------
 */

bool
vnxi_nixl_enter(vnxi_engine_t *engine)
{
    vnxi_rwlock_read(&engine->gate);
    if (!atomic_load_explicit(&engine->stopped, memory_order_acquire)) {
        return true;
    }
    vnxi_rwlock_unlock(&engine->gate);
    return false;
}

void
vnxi_nixl_leave(vnxi_engine_t *engine)
{
    vnxi_rwlock_unlock(&engine->gate);
}

void
vnxi_nixl_settle(vnxi_engine_t *engine)
{
    vnxi_rwlock_write(&engine->gate);
    vnxi_rwlock_unlock(&engine->gate);
}

vnx_status_t
vnxi_nixl_stopped(const char *operation, vnx_error_t *error)
{
    return vnxi_error_set(error, VNX_ERR_CLOSED, operation,
                          "the agent is closed");
}

vnx_status_t
vnxi_nixl_failed(int code, const char *operation, const char *what,
                 vnx_error_t *error)
{
    switch (code) {
    case VNXI_CAPI_INVALID_PARAM:
        return vnxi_error_set(error, VNX_ERR_INVALID_PARAM, operation,
                              "NIXL refused %s", what);
    case VNXI_CAPI_NOT_FOUND:
        return vnxi_error_set(
            error, VNX_ERR_NOT_FOUND, operation,
            "NIXL did not find something that it needs for %s", what);
    default:
        return vnxi_error_set(error, VNX_ERR_BACKEND, operation,
                              "NIXL failed at %s (its status is %d; its log "
                              "on stderr may say more)",
                              what, code);
    }
}

/* -- Life ------------------------------------------------------------------
 */

static void
engine_free(vnxi_engine_t *engine)
{
    if (engine->self != NULL) {
        vnxi_nixl_peer_destroy(&engine->self->base);
    }
    vnxi_registry_free(engine->registry);
    vnxi_nixl_backends_fini(engine);
    vnxi_nixl_poller_fini(&engine->poller);
    vnxi_nixl_lists_fini(engine);
    vnxi_mutex_destroy(&engine->twins_lock);
    vnxi_mutex_destroy(&engine->making_lock);
    vnxi_mutex_destroy(&engine->xfers_lock);
    vnxi_mutex_destroy(&engine->mem_lock);
    vnxi_rwlock_destroy(&engine->gate);
    vnxi_mutex_destroy(&engine->backend_lock);
    free(engine->name);
    free(engine);
}

static vnxi_engine_t *
engine_alloc(const vnxi_engine_config_t *config)
{
    vnxi_engine_t *engine = calloc(1, sizeof *engine);
    if (engine == NULL) {
        return NULL;
    }
    vnxi_mutex_init(&engine->backend_lock, VNXI_RANK_NIXL_BACKEND);
    vnxi_rwlock_init(&engine->gate, VNXI_RANK_NIXL_GATE);
    vnxi_mutex_init(&engine->mem_lock, VNXI_RANK_NIXL_MEM);
    vnxi_mutex_init(&engine->xfers_lock, VNXI_RANK_NIXL_XFERS);
    vnxi_mutex_init(&engine->lists.lock, VNXI_RANK_NIXL_LISTS);
    vnxi_mutex_init(&engine->making_lock, VNXI_RANK_NIXL_MAKING);
    vnxi_mutex_init(&engine->twins_lock, VNXI_RANK_NIXL_TWINS);
    vnxi_nixl_poller_init(&engine->poller);
    engine->fork_count = vnxi_fork_count();
    engine->num_threads = config->num_threads;
    engine->host = config->host;
    engine->name_len = config->agent_name_len;
    engine->name = malloc(config->agent_name_len + 1);
    engine->registry = vnxi_registry_create(&vnxi_nixl_region_class,
                                            vnxi_nixl_attach, engine);
    engine->self = vnxi_nixl_peer_create(engine, config->agent_name,
                                         config->agent_name_len);
    if (engine->name == NULL || engine->registry == NULL ||
        engine->self == NULL) {
        engine_free(engine);
        return NULL;
    }
    memcpy(engine->name, config->agent_name, config->agent_name_len);
    engine->name[config->agent_name_len] = '\0';
    engine->self->is_self = true;
    return engine;
}

static vnx_status_t
nixl_create(const vnxi_engine_config_t *config, vnxi_engine_t **engine_p,
            vnx_error_t *error)
{
    vnxi_engine_t *engine = engine_alloc(config);
    if (engine == NULL) {
        return vnxi_error_no_memory(error, "nixl_agent", sizeof *engine);
    }
    *engine_p = engine;
    return VNX_OK;
}

/* Posts that have not started are now refused.  Wait for posts that are inside
 * the library, however long they take. */
static void
wait_for_postings(vnxi_engine_t *engine)
{
    static const struct timespec pause = {0, 50000};

    while (atomic_load(&engine->postings) > 0) {
        nanosleep(&pause, NULL);
    }
}

/* Wait for transfers to end, because the library cannot stop them.  False:
 * some have not ended in time. */
static bool
land_all(vnxi_engine_t *engine)
{
    static const struct timespec pause = {0, 200000};
    uint64_t deadline = vnxi_clock_deadline(STOP_NS);

    while (vnxi_nixl_poller_turn(engine) > 0) {
        if (vnxi_clock_ns() > deadline) {
            return false;
        }
        nanosleep(&pause, NULL);
    }
    return true;
}

static void
destroy_agent(vnxi_engine_t *engine)
{
    const vnxi_capi_t *capi = engine->capi;
    size_t count = atomic_load(&engine->backend_count);

    for (size_t i = 0; i < count; i++) {
        capi->destroy_opt_args(engine->backends[i].options);
        capi->destroy_backend(engine->backends[i].handle);
    }
    if (engine->poller.notifs != NULL) {
        capi->destroy_notif_map(engine->poller.notifs);
        engine->poller.notifs = NULL;
    }
    if (capi->destroy_agent(engine->agent) != VNXI_CAPI_OK) {
        vnxi_log(VNXI_LOG_WARNING, "NIXL could not destroy its agent '%s'",
                 engine->name);
    }
}

/* Refuse new work (stopped), wait until nothing is in flight and nobody is
 * inside, then destroy the library's agent with its registrations and
 * connections. */
static void
nixl_stop(vnxi_engine_t *engine)
{
    vnxi_mutex_lock(&engine->backend_lock);
    atomic_store(&engine->stopped, true);
    vnxi_mutex_unlock(&engine->backend_lock);
    if (engine->agent == NULL) {
        return;
    }
    wait_for_postings(engine);
    vnxi_nixl_settle(engine);
    vnxi_nixl_poller_stop(engine);
    bool is_clean = land_all(engine);
    vnxi_mutex_lock(&engine->backend_lock);
    vnxi_rwlock_write(&engine->gate);
    if (!is_clean) {
        /* Destroying the agent would free memory that its backend still uses.
         */
        vnxi_log(
            VNXI_LOG_ERROR,
            "transfers of agent '%s' do not end: NIXL's agent is not freed",
            engine->name);
        vnxi_nixl_poller_abort(engine, NULL, VNX_ERR_CANCELED,
                               "the agent was closed");
    }
    vnxi_nixl_xfers_drop(engine);
    vnxi_nixl_twins_drop(engine);
    if (is_clean) {
        destroy_agent(engine);
    }
    engine->agent = NULL;
    vnxi_rwlock_unlock(&engine->gate);
    vnxi_mutex_unlock(&engine->backend_lock);
}

/* -- Prepared lists --------------------------------------------------------
 */

static vnx_status_t
nixl_list_begin(vnxi_engine_t *engine, vnxi_peer_t *peer, vnx_mem_t mem,
                const char *const *backends, const char *operation,
                vnxi_builder_t **builder_p, vnx_error_t *error)
{
    uint32_t set = 0;
    vnx_status_t status =
        vnxi_nixl_backend_set(engine, backends, operation, &set, error);
    if (status != VNX_OK) {
        return status;
    }
    if (peer != NULL && vnxi_peer_end_has_come(&vnxi_nixl_peer(peer)->end)) {
        return vnxi_nixl_peer_error(vnxi_nixl_peer(peer), operation, error);
    }
    vnxi_list_args_t args = {
        .peer = peer,
        .table = peer != NULL ? vnxi_nixl_peer_table(vnxi_nixl_peer(peer))
                              : vnxi_registry_snapshot(engine->registry, NULL),
        .mem = mem,
        .backends = set,
        .class = &vnxi_nixl_list_class,
        .operation = operation,
    };
    return vnxi_list_begin(&args, builder_p, error);
}

/* -- The table -------------------------------------------------------------
 */

static vnxi_peer_t *
nixl_peer_self(vnxi_engine_t *engine)
{
    return &engine->self->base;
}

static void
nixl_notif_poll(vnxi_engine_t *engine)
{
    if (vnxi_nixl_enter(engine)) {
        vnxi_nixl_take_notifs(engine);
        vnxi_nixl_leave(engine);
    }
}

const vnxi_engine_ops_t vnxi_nixl_ops = {
    .abi = VNXI_ENGINE_ABI,
    .size = sizeof(vnxi_engine_ops_t),
    .name = "nixl",
    .create = nixl_create,
    .stop = nixl_stop,
    .destroy = engine_free,
    .probe = vnxi_nixl_probe,
    .plugin = vnxi_nixl_plugin,
    .plugin_mems = vnxi_nixl_plugin_mems,
    .param = vnxi_nixl_param,
    .backend_create = vnxi_nixl_backend_create,
    .mem_register = vnxi_nixl_register,
    .mem_deregister = vnxi_nixl_deregister,
    .mem_query = vnxi_nixl_query,
    .metadata = vnxi_nixl_metadata,
    .partial_metadata = vnxi_nixl_partial_metadata,
    .metadata_name = vnxi_metadata_name,
    .peer_load = vnxi_nixl_peer_load,
    .peer_self = nixl_peer_self,
    .peer_close = vnxi_nixl_peer_close,
    .peer_connect = vnxi_nixl_peer_connect,
    .peer_covers = vnxi_nixl_peer_covers,
    .peer_pid = vnxi_nixl_peer_pid,
    .describe = vnxi_nixl_describe,
    .list_begin = nixl_list_begin,
    .list_feed = vnxi_list_feed,
    .list_feed_strided = vnxi_list_feed_strided,
    .list_finish = vnxi_list_finish,
    .list_abort = vnxi_list_abort,
    .list_count = vnxi_list_count,
    .list_bytes = vnxi_list_bytes,
    .list_release = vnxi_list_release,
    .xfer_prepare = vnxi_nixl_xfer_prepare,
    .xfer_post = vnxi_nixl_xfer_post,
    .xfer_cancel = vnxi_nixl_xfer_cancel,
    .xfer_release = vnxi_nixl_xfer_release,
    .xfer_backend = vnxi_nixl_xfer_backend,
    .xfer_estimate = vnxi_nixl_xfer_estimate,
    .notif_send = vnxi_nixl_notif_send,
    .notif_poll = nixl_notif_poll,
};
