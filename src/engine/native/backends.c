/*
 * The backends of the native engine.  Every client passes the name "UCX".  On
 * this engine it stands for the best path to each peer: within the process;
 * SHM on the same host; and, if a libucp can be loaded, UCX to other hosts and
 * to stock agents.  Without libucp the name is accepted all the same, with one
 * warning.  "SHM" is only SHM.
 */
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "engine/native/native.h"

typedef enum kind { KIND_UCX, KIND_SHM } kind_t;

static const char *const kinds[VNXI_NATIVE_BACKENDS] = {
    [KIND_UCX] = "UCX",
    [KIND_SHM] = "SHM",
};

/* The index in `kinds`, or -1. */
static int
kind_find(const char *name)
{
    for (int i = 0; i < VNXI_NATIVE_BACKENDS; i++) {
        if (strcmp(kinds[i], name) == 0) {
            return i;
        }
    }
    return -1;
}

static vnx_status_t
unknown_backend(const char *operation, const char *name, vnx_error_t *error)
{
    return vnxi_error_set(error, VNX_ERR_NOT_FOUND, operation,
                          "the native engine has no backend '%s' (it has UCX "
                          "and SHM)",
                          name);
}

const char *
vnxi_native_plugin(vnxi_engine_t *engine, size_t i)
{
    (void)engine;
    return i < VNXI_NATIVE_BACKENDS ? kinds[i] : NULL;
}

vnx_status_t
vnxi_native_plugin_mems(vnxi_engine_t *engine, const char *backend,
                        uint32_t *mems_p, vnx_error_t *error)
{
    int kind = kind_find(backend);
    if (kind < 0) {
        return unknown_backend("get_plugin_mem_types", backend, error);
    }
    *mems_p = kind == KIND_UCX ? vnxi_native_mems(engine) : 1u << VNX_MEM_DRAM;
    return VNX_OK;
}

/* The backends accept all parameters of stock's backends.  Parameters for UCX
 * are passed on; those for stock's threads have no effect. */
vnx_status_t
vnxi_native_param(vnxi_engine_t *engine, const char *backend, bool created,
                  size_t i, vnx_param_t *param_p, vnx_error_t *error)
{
    const char *operation =
        created ? "get_backend_params" : "get_plugin_params";
    int kind = kind_find(backend);

    if (kind < 0) {
        return unknown_backend(operation, backend, error);
    }
    const vnxi_native_backend_t *known = &engine->backends[kind];
    if (created && !atomic_load(&known->created)) {
        return vnxi_error_set(error, VNX_ERR_NOT_FOUND, operation,
                              "backend '%s' was not created", backend);
    }
    *param_p =
        created && i < known->param_count
            ? (vnx_param_t){known->params[i].key, known->params[i].value}
            : (vnx_param_t){NULL, NULL};
    return VNX_OK;
}

static void
params_free(vnxi_native_backend_t *backend)
{
    for (size_t i = 0; i < backend->param_count; i++) {
        free(backend->params[i].key);
        free(backend->params[i].value);
    }
    free(backend->params);
    backend->params = NULL;
    backend->param_count = 0;
}

static bool
params_copy(vnxi_native_backend_t *backend, const vnx_param_t *params,
            size_t count)
{
    if (count == 0) {
        return true;
    }
    backend->params = calloc(count, sizeof *backend->params);
    if (backend->params == NULL) {
        return false;
    }
    backend->param_count = count;
    for (size_t i = 0; i < count; i++) {
        backend->params[i].key = strdup(params[i].key);
        backend->params[i].value = strdup(params[i].value);
        if (backend->params[i].key == NULL ||
            backend->params[i].value == NULL) {
            params_free(backend);
            return false;
        }
    }
    return true;
}

/* The first backend creates the hub (socket and thread) and the SHM info of
 * the blob. */
static vnx_status_t
need_hub_lock_held(vnxi_engine_t *engine, vnx_error_t *error)
{
    if (atomic_load(&engine->stopped)) {
        return vnxi_error_set(error, VNX_ERR_CLOSED, "create_backend",
                              "the agent is closed");
    }
    if (atomic_load(&engine->hub) != NULL) {
        return VNX_OK;
    }
    vnx_status_t status = vnxi_shm_info_local(&engine->info, error);
    if (status != VNX_OK) {
        return status;
    }
    memcpy(engine->nonce, engine->identity.instance, sizeof engine->nonce);
    engine->info.nonce_addr = (uint64_t)(uintptr_t)engine->nonce;
    vnxi_hub_config_t config = {
        .name = engine->name,
        .name_len = engine->name_len,
        .instance = engine->identity.instance,
        .local = &engine->info,
        .callbacks = vnxi_native_hub_callbacks,
    };
    vnxi_hub_t *hub;
    config.callbacks.context = engine;
    status = vnxi_hub_create(&config, engine->info.socket, &hub, error);
    if (status == VNX_OK) {
        atomic_store(&engine->hub, hub);
        vnxi_directory_add(engine);
    }
    return status;
}

static vnx_status_t
create_lock_held(vnxi_engine_t *engine, int kind, const vnx_param_t *params,
                 size_t count, vnx_error_t *error)
{
    vnxi_native_backend_t *backend = &engine->backends[kind];

    if (atomic_load(&backend->created)) {
        return vnxi_error_set(error, VNX_ERR_NOT_ALLOWED, "create_backend",
                              "backend '%s' exists already", kinds[kind]);
    }
    vnx_status_t status = need_hub_lock_held(engine, error);
    if (status != VNX_OK) {
        return status;
    }
    if (!params_copy(backend, params, count)) {
        return vnxi_error_no_memory(error, "create_backend",
                                    count * sizeof *params);
    }
    if (kind == KIND_UCX) {
        status = vnxi_native_open_ucx(engine, params, count, error);
    }
    if (status != VNX_OK) {
        params_free(backend);
        return status;
    }
    atomic_store(&backend->created, true);
    return VNX_OK;
}

vnx_status_t
vnxi_native_backend_create(vnxi_engine_t *engine, const char *backend,
                           const vnx_param_t *params, size_t count,
                           vnx_error_t *error)
{
    int kind = kind_find(backend);
    if (kind < 0) {
        return unknown_backend("create_backend", backend, error);
    }
    vnxi_mutex_lock(&engine->backend_lock);
    vnx_status_t status = create_lock_held(engine, kind, params, count, error);
    vnxi_mutex_unlock(&engine->backend_lock);
    return status;
}

vnx_status_t
vnxi_native_check_backends(vnxi_engine_t *engine, const char *const *backends,
                           const char *operation, vnx_error_t *error)
{
    for (; backends != NULL && *backends != NULL; backends++) {
        int kind = kind_find(*backends);
        if (kind < 0) {
            return unknown_backend(operation, *backends, error);
        }
        if (!atomic_load(&engine->backends[kind].created)) {
            return vnxi_error_set(error, VNX_ERR_NOT_FOUND, operation,
                                  "backend '%s' was not created", *backends);
        }
    }
    return VNX_OK;
}

void
vnxi_native_backends_fini(vnxi_engine_t *engine)
{
    for (size_t i = 0; i < VNXI_NATIVE_BACKENDS; i++) {
        params_free(&engine->backends[i]);
    }
}
