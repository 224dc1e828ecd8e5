/*
 * The life of a native engine.
 */
#include "engine/native/native.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/error.h"
#include "base/fork.h"
#include "base/pool.h"

static void
engine_free(vnxi_engine_t *engine)
{
    if (engine->self != NULL) {
        vnxi_native_peer_destroy(&engine->self->base);
    }
    if (engine->registry != NULL) {
        vnxi_registry_free(engine->registry);
    }
    vnxi_native_backends_fini(engine);
    vnxi_cond_destroy(&engine->landed);
    vnxi_mutex_destroy(&engine->waiting_lock);
    vnxi_mutex_destroy(&engine->flight_lock);
    vnxi_mutex_destroy(&engine->peers_lock);
    vnxi_mutex_destroy(&engine->backend_lock);
    free(engine->name);
    free(engine);
}

/* The instance id is random, so that it tells agents apart for ever. */
static vnx_status_t
draw_instance(vnxi_engine_t *engine, vnx_error_t *error)
{
    unsigned char *at = engine->identity.instance;
    if (getrandom(at, VNXI_INSTANCE_SIZE, 0) != VNXI_INSTANCE_SIZE) {
        return vnxi_error_set(error, VNX_ERR_BACKEND, "vnx_agent_create",
                              "getrandom: %s", strerror(errno));
    }
    return VNX_OK;
}

/* Transports may move GPU memory that could not when their ports opened: the
 * program uses CUDA now.  Then find the routes to all regions again. */
static vnx_status_t
update_reach(vnxi_engine_t *engine, vnx_error_t *error)
{
    vnxi_reach_t reach;

    vnxi_native_find_reach(engine, NULL, &reach);
    if (memcmp(&reach, &engine->reach, sizeof reach) == 0) {
        return VNX_OK;
    }
    vnxi_region_table_t *table =
        vnxi_registry_snapshot(engine->registry, NULL);
    if (table == NULL) {
        return vnxi_error_no_memory(error, "vnx_agent_register", 0);
    }
    engine->reach = reach;
    vnxi_table_find_routes(table, &reach);
    vnxi_region_table_release(table);
    return VNX_OK;
}

/* If memory runs out, the routes stay as they are. */
void
vnxi_native_update(void *context)
{
    vnxi_engine_t *engine = context;

    vnxi_registry_hold(engine->registry);
    update_reach(engine, NULL);
    vnxi_registry_resume(engine->registry);
}

/* Attach a new region to every open transport.  No port opens meanwhile:
 * vnxi_registry_hold(). */
static vnx_status_t
attach(void *context, vnxi_region_t *region, vnx_error_t *error)
{
    vnxi_engine_t *engine = context;
    vnx_status_t status =
        region->mem == VNX_MEM_VRAM ? update_reach(engine, error) : VNX_OK;

    for (unsigned t = 0; status == VNX_OK && t < VNXI_TRANSPORTS; t++) {
        vnxi_port_t *port = vnxi_native_port(engine, t);
        void *slot = NULL;
        if (port != NULL) {
            status = port->transport->attach(port, region, &slot, error);
        }
        atomic_store(&vnxi_native_region(region)->slots[t], slot);
    }
    vnxi_region_find_routes(region, &engine->reach);
    return status;
}

static vnxi_engine_t *
engine_alloc(const vnxi_engine_config_t *config)
{
    vnxi_engine_t *engine = calloc(1, sizeof *engine);
    if (engine == NULL) {
        return NULL;
    }
    atomic_init(&engine->refs, 1);
    vnxi_mutex_init(&engine->backend_lock, VNXI_RANK_NATIVE_BACKEND);
    vnxi_mutex_init(&engine->peers_lock, VNXI_RANK_NATIVE_PEERS);
    vnxi_mutex_init(&engine->flight_lock, VNXI_RANK_NATIVE_FLIGHT);
    vnxi_mutex_init(&engine->waiting_lock, VNXI_RANK_NATIVE_WAITING);
    vnxi_cond_init(&engine->landed);
    engine->fork_count = vnxi_fork_count();
    engine->num_threads = config->num_threads;
    engine->host = config->host;
    engine->look = vnxi_native_xfers_look;
    engine->free = engine_free;
    engine->name = malloc(config->agent_name_len + 1);
    engine->registry =
        vnxi_registry_create(&vnxi_native_region_class, attach, engine);
    engine->self = vnxi_native_peer_create(engine, config->agent_name,
                                           config->agent_name_len);
    if (engine->name == NULL || engine->registry == NULL ||
        engine->self == NULL) {
        engine_free(engine);
        return NULL;
    }
    memcpy(engine->name, config->agent_name, config->agent_name_len);
    engine->name[config->agent_name_len] = '\0';
    engine->name_len = config->agent_name_len;
    return engine;
}

vnx_status_t
vnxi_native_create(const vnxi_engine_config_t *config,
                   vnxi_engine_t **engine_p, vnx_error_t *error)
{
    vnxi_engine_t *engine = engine_alloc(config);
    if (engine == NULL) {
        return vnxi_error_no_memory(error, "vnx_agent_create", sizeof *engine);
    }
    vnx_status_t status = draw_instance(engine, error);
    if (status != VNX_OK) {
        engine_free(engine);
        return status;
    }
    engine->self->is_ours = true;
    engine->self->identity = engine->identity;
    *engine_p = engine;
    return VNX_OK;
}

void
vnxi_native_settle_stopped(vnxi_engine_t *engine)
{
    vnxi_mutex_lock(&engine->flight_lock);
    while (engine->in_flight > 0) {
        vnxi_cond_wait(&engine->landed, &engine->flight_lock);
    }
    vnxi_mutex_unlock(&engine->flight_lock);
    vnxi_pool_settle(); /* other agents' transfers from or to our memory */
}

/* The order matters: no new work (stopped), no call from agents of this
 * process (leave), nothing in flight, no event from the ports. */
void
vnxi_native_stop(vnxi_engine_t *engine)
{
    vnxi_port_t *ports[VNXI_TRANSPORTS];

    vnxi_mutex_lock(&engine->backend_lock);
    atomic_store(&engine->stopped, true);
    vnxi_mutex_unlock(&engine->backend_lock);
    for (unsigned t = 0; t < VNXI_TRANSPORTS; t++) {
        ports[t] = vnxi_native_port(engine, t);
        if (ports[t] != NULL && ports[t]->transport->leave != NULL) {
            ports[t]->transport->leave(ports[t]);
        }
    }
    engine->look(engine);
    for (unsigned t = 0; t < VNXI_TRANSPORTS; t++) {
        if (ports[t] != NULL && ports[t]->transport->settle != NULL) {
            ports[t]->transport->settle(ports[t]);
        }
    }
    vnxi_native_settle_stopped(engine);
    for (unsigned t = 0; t < VNXI_TRANSPORTS; t++) {
        if (ports[t] != NULL) {
            ports[t]->transport->port_stop(ports[t]);
        }
    }
}
