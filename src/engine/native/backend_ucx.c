/*
 * UCX as a backend of the engine: opens it and maps our regions.
 */
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/log.h"
#include "engine/native/native.h"
#include "engine/native/reach.h"
#include "engine/native/ucx/library.h"

/* Default time after which a transfer over UCX without progress fails. */
#define STALL_SECONDS 60.0

uint32_t
vnxi_native_mems(const vnxi_engine_t *engine)
{
    vnxi_ucx_t *ucx = atomic_load(&engine->ucx);
    uint32_t vram = ucx != NULL && vnxi_ucx_has_cuda(ucx);
    return 1u << VNX_MEM_DRAM | vram << VNX_MEM_VRAM;
}

vnx_status_t
vnxi_native_attach(void *context, vnxi_region_t *region, vnx_error_t *error)
{
    vnxi_engine_t *engine = context;
    vnx_status_t status = VNX_OK;

    vnxi_reach_attach_local(region);
    vnxi_mutex_lock(&engine->map_lock);
    vnxi_ucx_t *ucx = atomic_load(&engine->ucx);
    if (ucx != NULL) {
        status = vnxi_reach_map_ucx(region, ucx, error);
    }
    vnxi_mutex_unlock(&engine->map_lock);
    return status;
}

/* Map the regions registered before UCX was opened. */
static vnx_status_t
map_all(vnxi_engine_t *engine, vnxi_ucx_t *ucx, vnx_error_t *error)
{
    vnxi_region_table_t *table =
        vnxi_registry_snapshot(engine->registry, NULL);
    vnx_status_t status =
        table == NULL ? vnxi_error_no_memory(error, "create_backend", 0)
                      : VNX_OK;
    size_t count = table != NULL ? vnxi_region_table_count(table) : 0;

    for (size_t i = 0; status == VNX_OK && i < count; i++) {
        status =
            vnxi_reach_map_ucx(vnxi_region_table_at(table, i), ucx, error);
    }
    vnxi_region_table_release(table);
    return status;
}

static vnx_status_t
adopt(vnxi_engine_t *engine, vnxi_ucx_t *ucx, vnx_error_t *error)
{
    vnxi_mutex_lock(&engine->map_lock);
    vnx_status_t status = map_all(engine, ucx, error);
    if (status == VNX_OK) {
        atomic_store(&engine->ucx, ucx);
    }
    vnxi_mutex_unlock(&engine->map_lock);
    if (status != VNX_OK) {
        vnxi_ucx_stop(ucx);
        vnxi_ucx_release(ucx);
    }
    return status;
}

/* Get "timeout", in seconds, from the backend's parameters or the environment.
 */
static vnx_status_t
stall_timeout(const vnx_param_t *params, size_t count, uint64_t *ns_p,
              vnx_error_t *error)
{
    const char *text = getenv("VLLM_NIXL_UCX_TIMEOUT");
    double seconds = STALL_SECONDS;
    char *end;

    for (size_t i = 0; i < count; i++) {
        text = strcmp(params[i].key, "timeout") == 0 ? params[i].value : text;
    }
    if (text != NULL && text[0] != '\0') {
        seconds = strtod(text, &end);
        if (*end != '\0' || !(seconds >= 0.0 && seconds <= 1e9)) {
            return vnxi_error_set(
                error, VNX_ERR_INVALID_PARAM, "create_backend",
                "timeout '%s' is not a valid number of seconds", text);
        }
    }
    *ns_p = (uint64_t)(seconds * 1e9);
    return VNX_OK;
}

static pthread_once_t warned = PTHREAD_ONCE_INIT;
static const char *no_library; /* why, for the warning; static storage */

static void
warn_one_host(void)
{
    vnxi_log(VNXI_LOG_WARNING,
             "backend UCX of the native engine reaches peers on this host "
             "only: no libucp: %s",
             no_library);
}

static void
note_no_library(vnxi_engine_t *engine, const vnx_error_t *error)
{
    memcpy(engine->no_ucx, error->cause, sizeof engine->no_ucx);
    if (vnxi_ucx_library(&no_library) == NULL) {
        pthread_once(&warned, warn_one_host);
    }
}

vnx_status_t
vnxi_native_open_ucx(vnxi_engine_t *engine, const vnx_param_t *params,
                     size_t count, vnx_error_t *error)
{
    vnxi_ucx_config_t config = {
        .name = engine->name,
        .name_len = engine->name_len,
        .workers = engine->num_threads,
        .params = params,
        .param_count = count,
        .events = {engine, vnxi_native_on_notif, vnxi_native_on_ucx_lost},
    };
    vnx_error_t cause;
    vnxi_ucx_t *ucx;

    vnx_status_t status =
        stall_timeout(params, count, &config.stall_timeout_ns, error);
    if (status != VNX_OK) {
        return status;
    }
    status = vnxi_ucx_create(&config, &ucx, &cause);
    if (status == VNX_ERR_NOT_FOUND) {
        note_no_library(engine, &cause);
        return VNX_OK;
    }
    if (status != VNX_OK) {
        if (error != NULL) {
            *error = cause;
        }
        return status;
    }
    return adopt(engine, ucx, error);
}
