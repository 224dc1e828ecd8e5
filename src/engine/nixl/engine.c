/*
 * The life of the nixl engine.
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
#include "engine/nixl/xfer.h"

/* Limit of the wait for transfers, which the library cannot stop. */
#define STOP_NS 5000000000u

void
vnxi_nixl_destroy(vnxi_engine_t *engine)
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
        vnxi_nixl_destroy(engine);
        return NULL;
    }
    memcpy(engine->name, config->agent_name, config->agent_name_len);
    engine->name[config->agent_name_len] = '\0';
    engine->self->is_self = true;
    return engine;
}

vnx_status_t
vnxi_nixl_create(const vnxi_engine_config_t *config, vnxi_engine_t **engine_p,
                 vnx_error_t *error)
{
    vnxi_engine_t *engine = engine_alloc(config);
    if (engine == NULL) {
        return vnxi_error_no_memory(error, "vnx_agent_create", sizeof *engine);
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

    while (vnxi_nixl_poller_check(engine) > 0) {
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
    if (capi->destroy_agent(engine->agent) != NIXL_CAPI_SUCCESS) {
        vnxi_log(VNX_LOG_WARNING, engine->name,
                 "NIXL could not destroy its agent");
    }
}

/* Refuse new work (stopped), wait until nothing is in flight and nobody is
 * inside, then destroy the library's agent with its registrations and
 * connections. */
void
vnxi_nixl_stop(vnxi_engine_t *engine)
{
    vnxi_exfer_t *ended = NULL;

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
        vnxi_log(VNX_LOG_ERROR, engine->name,
                 "transfers do not end: NIXL's agent is not freed");
        ended = vnxi_nixl_poller_abort(engine, NULL, false, VNX_ERR_CANCELED,
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
    vnxi_nixl_poller_report(engine, ended);
}
