/*
 * The native engine: its life cycle, and its table of functions for the core.
 */
#include "engine/native/native.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/error.h"
#include "base/fork.h"
#include "base/mutex.h"
#include "base/pool.h"
#include "engine/native/reach.h"
#include "engine/native/ucx/transfer.h"
#include "engine/parts/metadata.h"

/* -- Life cycle ------------------------------------------------------------
 */

void
vnxi_native_retain(vnxi_engine_t *engine)
{
    atomic_fetch_add_explicit(&engine->refs, 1, memory_order_relaxed);
}

static void
engine_free(vnxi_engine_t *engine)
{
    vnxi_hub_t *hub = atomic_load(&engine->hub);
    if (hub != NULL) {
        vnxi_hub_free(hub);
    }
    if (engine->self != NULL) {
        vnxi_native_peer_destroy(&engine->self->base);
    }
    if (engine->registry != NULL) {
        vnxi_registry_free(engine->registry);
    }
    vnxi_native_backends_fini(engine);
    vnxi_ucx_release(atomic_load(&engine->ucx));
    vnxi_mutex_destroy(&engine->map_lock);
    vnxi_cond_destroy(&engine->landed);
    vnxi_mutex_destroy(&engine->waiting_lock);
    vnxi_mutex_destroy(&engine->flight_lock);
    vnxi_mutex_destroy(&engine->peers_lock);
    vnxi_mutex_destroy(&engine->backend_lock);
    vnxi_mutex_destroy(&engine->inbound_lock);
    free(engine->name);
    free(engine);
}

void
vnxi_native_unref(vnxi_engine_t *engine)
{
    if (atomic_fetch_sub(&engine->refs, 1) == 1) {
        engine_free(engine);
    }
}

/* The instance id is random, so that it tells agents apart for ever. */
static vnx_status_t
draw_instance(vnxi_engine_t *engine, vnx_error_t *error)
{
    unsigned char *at = engine->identity.instance;
    if (getrandom(at, VNXI_INSTANCE_SIZE, 0) != VNXI_INSTANCE_SIZE) {
        return vnxi_error_set(error, VNX_ERR_BACKEND, "nixl_agent",
                              "getrandom: %s", strerror(errno));
    }
    return VNX_OK;
}

static vnxi_engine_t *
engine_alloc(const vnxi_engine_config_t *config)
{
    vnxi_engine_t *engine = calloc(1, sizeof *engine);
    if (engine == NULL) {
        return NULL;
    }
    atomic_init(&engine->refs, 1);
    vnxi_mutex_init(&engine->inbound_lock, VNXI_RANK_NATIVE_INBOUND);
    vnxi_mutex_init(&engine->backend_lock, VNXI_RANK_NATIVE_BACKEND);
    vnxi_mutex_init(&engine->peers_lock, VNXI_RANK_NATIVE_PEERS);
    vnxi_mutex_init(&engine->flight_lock, VNXI_RANK_NATIVE_FLIGHT);
    vnxi_mutex_init(&engine->waiting_lock, VNXI_RANK_NATIVE_WAITING);
    vnxi_mutex_init(&engine->map_lock, VNXI_RANK_NATIVE_MAP);
    vnxi_cond_init(&engine->landed);
    engine->fork_count = vnxi_fork_count();
    engine->num_threads = config->num_threads;
    engine->host = config->host;
    engine->name = malloc(config->agent_name_len + 1);
    engine->registry = vnxi_registry_create(&vnxi_native_region_class,
                                            vnxi_native_attach, engine);
    engine->self = vnxi_native_peer_create(
        engine, config->agent_name, config->agent_name_len, VNXI_PATH_SELF);
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

static vnx_status_t
native_create(const vnxi_engine_config_t *config, vnxi_engine_t **engine_p,
              vnx_error_t *error)
{
    vnxi_engine_t *engine = engine_alloc(config);
    if (engine == NULL) {
        return vnxi_error_no_memory(error, "nixl_agent", sizeof *engine);
    }
    vnx_status_t status = draw_instance(engine, error);
    if (status != VNX_OK) {
        engine_free(engine);
        return status;
    }
    *engine_p = engine;
    return VNX_OK;
}

/* The native engine needs only the kernel. */
static vnx_status_t
native_probe(vnxi_engine_t *engine, vnx_error_t *error)
{
    (void)engine;
    (void)error;
    return VNX_OK;
}

/* The order matters: no new work (stopped), no call from agents of this
 * process (inbound_lock), nothing in flight, no event from the hub. */
static void
native_stop(vnxi_engine_t *engine)
{
    vnxi_mutex_lock(&engine->backend_lock);
    vnxi_mutex_lock(&engine->inbound_lock);
    atomic_store(&engine->stopped, true);
    vnxi_mutex_unlock(&engine->inbound_lock);
    vnxi_mutex_unlock(&engine->backend_lock);

    vnxi_directory_remove(engine);
    /* A process that reads the nonce from now on sees that the agent is
     * closed. */
    explicit_bzero(engine->nonce, sizeof engine->nonce);
    vnxi_native_xfers_look(engine);
    vnxi_ucx_t *ucx = atomic_load(&engine->ucx);
    if (ucx != NULL) {
        vnxi_ucx_settle(ucx);
    }
    vnxi_mutex_lock(&engine->flight_lock);
    while (engine->in_flight > 0) {
        vnxi_cond_wait(&engine->landed, &engine->flight_lock);
    }
    vnxi_mutex_unlock(&engine->flight_lock);
    vnxi_pool_settle(); /* other agents' transfers from or to our memory */

    vnxi_hub_t *hub = atomic_load(&engine->hub);
    if (hub != NULL) {
        vnxi_hub_stop(hub);
    }
    if (ucx != NULL) {
        vnxi_ucx_stop(ucx);
    }
}

/* -- Memory ----------------------------------------------------------------
 */

static vnx_status_t
check_mem(vnxi_engine_t *engine, vnx_mem_t mem, vnx_error_t *error)
{
    const char *name = vnx_mem_name(mem);
    if (name == NULL || (vnxi_native_mems(engine) >> mem & 1) != 0) {
        return VNX_OK; /* the registry refuses invalid memory types */
    }
    if (mem == VNX_MEM_VRAM) {
        return vnxi_error_set(error, VNX_ERR_NOT_SUPPORTED, "register_memory",
                              "no backend of the native engine can move VRAM "
                              "memory: %s",
                              engine->no_ucx[0] != '\0'
                                  ? engine->no_ucx
                                  : "UCX has no support for CUDA");
    }
    return vnxi_error_set(error, VNX_ERR_NOT_SUPPORTED, "register_memory",
                          "%s memory needs the nixl engine", name);
}

static vnx_status_t
native_register(vnxi_engine_t *engine, vnx_mem_t mem,
                const vnx_reg_desc_t *descs, size_t count,
                const char *const *backends, vnx_error_t *error)
{
    vnx_status_t status =
        vnxi_native_check_backends(engine, backends, "register_memory", error);
    status = status == VNX_OK ? check_mem(engine, mem, error) : status;
    return status != VNX_OK
               ? status
               : vnxi_registry_add(engine->registry, mem, descs, count, error);
}

/* The regions that a call removes. */
typedef struct removal {
    vnxi_engine_t *engine;
    vnxi_region_t **regions; /* each retained */
    size_t count;
} removal_t;

static void
on_removed(void *context, const vnxi_region_t *region)
{
    removal_t *removal = context;
    vnxi_engine_t *engine = removal->engine;
    vnx_desc_t desc = {region->addr, region->len, region->dev};

    vnxi_hub_revoke(atomic_load(&engine->hub),
                    vnxi_registry_epoch(engine->registry), region->mem, &desc,
                    1);
    removal->regions[removal->count++] =
        vnxi_region_retain((vnxi_region_t *)region);
}

/* Give the memory back to the user: wait until nothing copies from or to it,
 * and unmap it from UCX. */
static void
finish_removal(removal_t *removal)
{
    vnxi_ucx_t *ucx = atomic_load(&removal->engine->ucx);

    vnxi_pool_settle();
    if (ucx != NULL) {
        vnxi_ucx_settle(ucx);
    }
    for (size_t i = 0; i < removal->count; i++) {
        vnxi_reach_unmap_ucx(removal->regions[i]);
        vnxi_region_release(removal->regions[i]);
    }
}

static vnx_status_t
native_deregister(vnxi_engine_t *engine, vnx_mem_t mem,
                  const vnx_reg_desc_t *descs, size_t count,
                  const char *const *backends, vnx_error_t *error)
{
    static const char operation[] = "deregister_memory";
    removal_t removal = {.engine = engine};

    vnx_status_t status =
        vnxi_native_check_backends(engine, backends, operation, error);
    if (status != VNX_OK) {
        return status;
    }
    removal.regions = calloc(count + 1, sizeof(vnxi_region_t *));
    if (removal.regions == NULL) {
        return vnxi_error_no_memory(error, operation,
                                    count * sizeof(vnxi_region_t *));
    }
    status = vnxi_registry_remove(engine->registry, mem, descs, count,
                                  on_removed, &removal, error);
    if (status == VNX_OK) {
        finish_removal(&removal);
    }
    free(removal.regions);
    return status;
}

static vnx_status_t
native_query(vnxi_engine_t *engine, vnx_mem_t mem, const vnx_reg_desc_t *descs,
             size_t count, const char *backend, vnx_mem_info_t *infos,
             vnx_error_t *error)
{
    const char *const backends[] = {backend, NULL};
    (void)mem;
    (void)descs;
    (void)count;
    (void)infos;
    vnx_status_t status =
        vnxi_native_check_backends(engine, backends, "query_memory", error);
    return status != VNX_OK
               ? status
               : vnxi_error_set(error, VNX_ERR_NOT_SUPPORTED, "query_memory",
                                "backend %s of the native engine has no "
                                "storage to query",
                                backend);
}

/* -- Prepared lists --------------------------------------------------------
 */

static vnx_status_t
native_list_begin(vnxi_engine_t *engine, vnxi_peer_t *peer, vnx_mem_t mem,
                  const char *const *backends, const char *operation,
                  vnxi_builder_t **builder_p, vnx_error_t *error)
{
    vnx_status_t status =
        vnxi_native_check_backends(engine, backends, operation, error);
    if (status != VNX_OK) {
        return status;
    }
    if (peer != NULL && vnxi_native_peer_gone(vnxi_native_peer(peer))) {
        return vnxi_native_peer_error(vnxi_native_peer(peer), operation,
                                      error);
    }
    vnxi_list_args_t args = {
        .peer = peer,
        .table = peer != NULL ? vnxi_native_peer_table(vnxi_native_peer(peer))
                              : vnxi_registry_snapshot(engine->registry, NULL),
        .mem = mem,
        .class = &vnxi_native_list_class,
        .operation = operation,
    };
    return vnxi_list_begin(&args, builder_p, error);
}

/* -- Peers and notifications -----------------------------------------------
 */

static vnxi_peer_t *
native_peer_self(vnxi_engine_t *engine)
{
    return &engine->self->base;
}

static void
native_notif_poll(vnxi_engine_t *engine)
{
    vnxi_hub_t *hub = atomic_load_explicit(&engine->hub, memory_order_acquire);
    if (hub != NULL) {
        vnxi_hub_poll(hub);
    }
}

const vnxi_engine_ops_t vnxi_native_ops = {
    .abi = VNXI_ENGINE_ABI,
    .size = sizeof(vnxi_engine_ops_t),
    .name = "native",
    .create = native_create,
    .stop = native_stop,
    .destroy = vnxi_native_unref,
    .probe = native_probe,
    .plugin = vnxi_native_plugin,
    .plugin_mems = vnxi_native_plugin_mems,
    .param = vnxi_native_param,
    .backend_create = vnxi_native_backend_create,
    .mem_register = native_register,
    .mem_deregister = native_deregister,
    .mem_query = native_query,
    .metadata = vnxi_native_metadata,
    .partial_metadata = vnxi_native_partial_metadata,
    .metadata_name = vnxi_metadata_name,
    .peer_load = vnxi_native_peer_load,
    .peer_self = native_peer_self,
    .peer_close = vnxi_native_peer_close,
    .peer_connect = vnxi_native_peer_connect,
    .peer_covers = vnxi_native_peer_covers,
    .peer_pid = vnxi_native_peer_pid,
    .describe = vnxi_native_describe,
    .list_begin = native_list_begin,
    .list_feed = vnxi_list_feed,
    .list_feed_strided = vnxi_list_feed_strided,
    .list_finish = vnxi_list_finish,
    .list_abort = vnxi_list_abort,
    .list_count = vnxi_list_count,
    .list_bytes = vnxi_list_bytes,
    .list_release = vnxi_list_release,
    .xfer_prepare = vnxi_native_xfer_prepare,
    .xfer_post = vnxi_native_xfer_post,
    .xfer_cancel = vnxi_native_xfer_cancel,
    .xfer_release = vnxi_native_xfer_release,
    .xfer_backend = vnxi_native_xfer_backend,
    .xfer_estimate = vnxi_native_xfer_estimate,
    .notif_send = vnxi_native_notif_send,
    .notif_poll = native_notif_poll,
};
