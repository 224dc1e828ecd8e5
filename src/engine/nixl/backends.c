/*
 * The library's agent, its plugins and its backends.
 *
 * Design notes.  The library's agent is created on first use.  It gets a
 * progress thread, but one that sleeps.  With the delay passed by stock's
 * Python, 0, that thread polls without a pause and occupies a core.  With a
 * long delay it sleeps in poll() on the backend's events and wakes when
 * something arrives.  Without the thread, requests of peers (over TCP even
 * reads and writes) would wait until this process calls the library again.
 *
 * A plugin's properties are queried once, because that loads the plugin.  A
 * plugin that cannot be loaded stays in the list without memory types, as in
 * stock.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/fork.h"
#include "base/log.h"
#include "base/words.h"
#include "engine/nixl/nixl.h"
#include "engine/ucx_guard.h"

#define PROGRESS_DELAY_US 100000

/* -- The library's agent ---------------------------------------------------
 */

static vnx_status_t
make_agent(vnxi_engine_t *engine, const vnxi_capi_t *capi, vnx_error_t *error)
{
    const vnxi_capi_agent_config_t config = {
        .known = {.enable_prog_thread = true,
                  .pthr_delay_us = PROGRESS_DELAY_US,
                  .thread_sync = NIXL_CAPI_THREAD_SYNC_RW},
    };
    nixl_capi_agent_t agent = NULL;

    if (strlen(engine->name) != engine->name_len) {
        return vnxi_error_set(
            error, VNX_ERR_NOT_SUPPORTED, "vnx_agent_create_backend",
            "NIXL does not accept agent names with a NUL byte");
    }
    int code =
        capi->create_configured_agent(engine->name, &config.known, &agent);
    if (code != NIXL_CAPI_SUCCESS) {
        return vnxi_nixl_failed(code, "vnx_agent_create_backend",
                                "creating an agent", error);
    }
    engine->capi = capi;
    engine->agent = agent;
    return VNX_OK;
}

static vnx_status_t
need_agent_lock_held(vnxi_engine_t *engine, vnx_error_t *error)
{
    const vnxi_capi_t *capi;

    if (atomic_load(&engine->stopped)) {
        return vnxi_nixl_stopped("vnx_agent_create_backend", error);
    }
    if (engine->agent != NULL) {
        return VNX_OK;
    }
    vnx_status_t status =
        vnxi_nixl_library("vnx_agent_create_backend", &capi, error);
    return status == VNX_OK ? make_agent(engine, capi, error) : status;
}

vnx_status_t
vnxi_nixl_probe(vnxi_engine_t *engine, vnx_error_t *error)
{
    vnxi_mutex_lock(&engine->backend_lock);
    vnx_status_t status = need_agent_lock_held(engine, error);
    vnxi_mutex_unlock(&engine->backend_lock);
    return status;
}

/* -- Plugins ---------------------------------------------------------------
 */

static void
list_plugins(vnxi_engine_t *engine)
{
    const vnxi_capi_t *capi = engine->capi;
    nixl_capi_string_list_t names = NULL;
    const char *name;
    size_t count = 0;

    if (capi->get_available_plugins(engine->agent, &names) !=
        NIXL_CAPI_SUCCESS) {
        return;
    }
    capi->string_list_size(names, &count);
    engine->plugins = calloc(count + 1, sizeof *engine->plugins);
    engine->plugin_count = 0;
    for (size_t i = 0; engine->plugins != NULL && i < count; i++) {
        const char *kept = NULL;
        if (capi->string_list_get(names, i, &name) == NIXL_CAPI_SUCCESS) {
            kept = vnxi_nixl_intern(name);
        }
        if (kept != NULL) {
            engine->plugins[engine->plugin_count++].name = kept;
        }
    }
    capi->destroy_string_list(names);
    engine->is_listed = engine->plugins != NULL;
}

static vnx_status_t
need_plugins_lock_held(vnxi_engine_t *engine, const char *operation,
                       vnx_error_t *error)
{
    if (engine->is_listed) {
        return VNX_OK;
    }
    vnx_status_t status = need_agent_lock_held(engine, error);
    if (status != VNX_OK) {
        return status;
    }
    list_plugins(engine);
    return engine->is_listed
               ? VNX_OK
               : vnxi_error_set(error, VNX_ERR_BACKEND, operation,
                                "NIXL cannot list its plugins");
}

/* The library's agent and the locks belong to the parent. */
static vnx_status_t
is_forked(const char *operation, vnx_error_t *error)
{
    return vnxi_error_set(error, VNX_ERR_NOT_ALLOWED, operation,
                          "the agent belongs to the process that this one was "
                          "forked from, and NIXL cannot be asked here");
}

const char *
vnxi_nixl_plugin(vnxi_engine_t *engine, size_t i)
{
    const char *name = NULL;

    if (vnxi_fork_crossed(engine->fork_count)) {
        return NULL;
    }
    vnxi_mutex_lock(&engine->backend_lock);
    if (need_plugins_lock_held(engine, "vnx_agent_plugin", NULL) == VNX_OK &&
        i < engine->plugin_count) {
        name = engine->plugins[i].name;
    }
    vnxi_mutex_unlock(&engine->backend_lock);
    return name;
}

#define PLUGINS_SHOWN 32 /* NIXL has a dozen */

static vnx_status_t
unknown_backend(const vnxi_engine_t *engine, const char *operation,
                const char *name, vnx_error_t *error)
{
    const char *words[PLUGINS_SHOWN];
    size_t count = 0;

    for (; count < engine->plugin_count && count < PLUGINS_SHOWN; count++) {
        words[count] = engine->plugins[count].name;
    }
    return vnxi_error_set(error, VNX_ERR_NOT_FOUND, operation,
                          "the nixl engine has no backend '%.64s': %s", name,
                          vnxi_words(name, words, count));
}

static vnx_status_t
find_plugin_lock_held(vnxi_engine_t *engine, const char *operation,
                      const char *name, vnxi_nixl_plugin_t **plugin_p,
                      vnx_error_t *error)
{
    vnx_status_t status = need_plugins_lock_held(engine, operation, error);
    if (status != VNX_OK) {
        return status;
    }
    for (size_t i = 0; i < engine->plugin_count; i++) {
        if (strcmp(engine->plugins[i].name, name) == 0) {
            *plugin_p = &engine->plugins[i];
            return VNX_OK;
        }
    }
    return unknown_backend(engine, operation, name, error);
}

static uint32_t
take_mems(const vnxi_capi_t *capi, nixl_capi_mem_list_t mems)
{
    uint32_t set = 0;
    size_t count = 0;
    nixl_capi_mem_type_t mem = NIXL_CAPI_MEM_UNKNOWN;

    capi->mem_list_size(mems, &count);
    for (size_t i = 0; i < count; i++) {
        if (capi->mem_list_get(mems, i, &mem) == NIXL_CAPI_SUCCESS &&
            (unsigned)mem < VNX_MEM_COUNT) {
            set |= 1u << (unsigned)mem;
        }
    }
    capi->destroy_mem_list(mems);
    return set;
}

/* Guard the UCX loaded with the plugin.  A UCX that is linked into the library
 * itself, or that the plugin loads later, is not guarded. */
static const char *
guard_ucx(const char *plugin, const vnxi_ucx_loaded_t *before)
{
    void *handle = vnxi_nixl_plugin_loaded(plugin);
    const char *guard = vnxi_ucx_guard(handle, before);

    if (handle != NULL) {
        dlclose(handle);
    }
    return guard;
}

/* Load a plugin and get its properties. */
static int
load_plugin_lock_held(vnxi_engine_t *engine, vnxi_nixl_plugin_t *plugin,
                      nixl_capi_mem_list_t *mems_p,
                      nixl_capi_params_t *params_p)
{
    vnxi_ucx_loaded_t before;

    vnxi_ucx_loaded_find(&before);
    int code = engine->capi->get_plugin_params(engine->agent, plugin->name,
                                               mems_p, params_p);
    if (code == NIXL_CAPI_SUCCESS) {
        plugin->ucx_guard = guard_ucx(plugin->name, &before);
    }
    vnxi_ucx_loaded_free(&before);
    return code;
}

static void
ask_plugin_lock_held(vnxi_engine_t *engine, vnxi_nixl_plugin_t *plugin)
{
    const vnxi_capi_t *capi = engine->capi;
    nixl_capi_mem_list_t mems = NULL;
    nixl_capi_params_t params = NULL;
    char fault[256];

    if (plugin->was_asked || engine->agent == NULL) {
        return;
    }
    plugin->was_asked = true;
    if (load_plugin_lock_held(engine, plugin, &mems, &params) !=
        NIXL_CAPI_SUCCESS) {
        vnxi_nixl_plugin_fault(plugin->name, fault, sizeof fault);
        vnxi_log(VNX_LOG_WARNING, engine->name,
                 "NIXL cannot load its plugin %s%s%s", plugin->name,
                 fault[0] != '\0' ? ": " : "", fault);
        return;
    }
    plugin->mems = take_mems(capi, mems);
    (void)vnxi_nixl_params_take(capi, params, &plugin->params);
}

vnx_status_t
vnxi_nixl_plugin_mems(vnxi_engine_t *engine, const char *backend,
                      uint32_t *mems_p, vnx_error_t *error)
{
    vnxi_nixl_plugin_t *plugin;

    if (vnxi_fork_crossed(engine->fork_count)) {
        return is_forked("vnx_agent_plugin_mems", error);
    }
    vnxi_mutex_lock(&engine->backend_lock);
    vnx_status_t status = find_plugin_lock_held(
        engine, "vnx_agent_plugin_mems", backend, &plugin, error);
    if (status == VNX_OK) {
        ask_plugin_lock_held(engine, plugin);
        *mems_p = plugin->mems;
    }
    vnxi_mutex_unlock(&engine->backend_lock);
    return status;
}

/* -- Backends --------------------------------------------------------------
 */

/* The position of the backend, or -1. */
static int
find_backend(vnxi_engine_t *engine, const char *name)
{
    size_t count =
        atomic_load_explicit(&engine->backend_count, memory_order_acquire);
    for (size_t i = 0; i < count; i++) {
        if (strcmp(engine->backends[i].name, name) == 0) {
            return (int)i;
        }
    }
    return -1;
}

static vnx_status_t
not_created(const char *operation, const char *name, vnx_error_t *error)
{
    return vnxi_error_set(error, VNX_ERR_NOT_FOUND, operation,
                          "backend '%s' was not created", name);
}

vnx_status_t
vnxi_nixl_param(vnxi_engine_t *engine, const char *backend, bool created,
                size_t i, vnx_param_t *param_p, vnx_error_t *error)
{
    const char *operation =
        created ? "vnx_agent_backend_param" : "vnx_agent_plugin_param";
    const vnxi_nixl_params_t *params = NULL;
    vnxi_nixl_plugin_t *plugin;

    if (vnxi_fork_crossed(engine->fork_count)) {
        return is_forked(operation, error);
    }
    vnxi_mutex_lock(&engine->backend_lock);
    vnx_status_t status =
        find_plugin_lock_held(engine, operation, backend, &plugin, error);
    if (status == VNX_OK && !created) {
        ask_plugin_lock_held(engine, plugin);
        params = &plugin->params;
    } else if (status == VNX_OK) {
        int place = find_backend(engine, backend);
        params = place >= 0 ? &engine->backends[place].params : NULL;
        status = place >= 0 ? VNX_OK : not_created(operation, backend, error);
    }
    if (status == VNX_OK) {
        *param_p =
            i < params->count ? params->at[i] : (vnx_param_t){NULL, NULL};
    }
    vnxi_mutex_unlock(&engine->backend_lock);
    return status;
}

/* The plugin's defaults overridden by the caller's values, as in stock. */
static nixl_capi_params_t
join_params(const vnxi_capi_t *capi, const vnxi_nixl_params_t *defaults,
            const vnx_param_t *params, size_t count)
{
    nixl_capi_params_t joined = NULL;
    bool good = capi->create_params(&joined) == NIXL_CAPI_SUCCESS;

    for (size_t i = 0; good && i < defaults->count; i++) {
        good = capi->params_add(joined, defaults->at[i].key,
                                defaults->at[i].value) == NIXL_CAPI_SUCCESS;
    }
    for (size_t i = 0; good && i < count; i++) {
        good = capi->params_add(joined, params[i].key, params[i].value) ==
               NIXL_CAPI_SUCCESS;
    }
    if (!good && joined != NULL) {
        capi->destroy_params(joined);
        joined = NULL;
    }
    return joined;
}

/* Options that select one backend; NULL: no memory. */
static nixl_capi_opt_args_t
options_for(const vnxi_capi_t *capi, nixl_capi_backend_t handle)
{
    nixl_capi_opt_args_t options = NULL;

    if (capi->create_opt_args(&options) != NIXL_CAPI_SUCCESS) {
        return NULL;
    }
    if (capi->opt_args_add_backend(options, handle) != NIXL_CAPI_SUCCESS) {
        capi->destroy_opt_args(options);
        return NULL;
    }
    return options;
}

static vnx_status_t
note_backend(vnxi_engine_t *engine, const vnxi_nixl_plugin_t *plugin,
             nixl_capi_backend_t handle, vnx_error_t *error)
{
    const vnxi_capi_t *capi = engine->capi;
    size_t place = atomic_load(&engine->backend_count);
    vnxi_nixl_backend_t *backend = &engine->backends[place];
    nixl_capi_mem_list_t mems = NULL;
    nixl_capi_params_t params = NULL;

    *backend = (vnxi_nixl_backend_t){
        .name = plugin->name,
        .handle = handle,
        .options = options_for(capi, handle),
        .mems = plugin->mems,
    };
    if (backend->options == NULL) {
        capi->destroy_backend(handle);
        return vnxi_error_no_memory(error, "vnx_agent_create_backend", 0);
    }
    if (capi->get_backend_params(engine->agent, handle, &mems, &params) ==
        NIXL_CAPI_SUCCESS) {
        backend->mems = take_mems(capi, mems);
        (void)vnxi_nixl_params_take(capi, params, &backend->params);
    }
    atomic_store_explicit(&engine->backend_count, place + 1,
                          memory_order_release);
    return VNX_OK;
}

static vnx_status_t
backend_failed(const char *name, int code, vnx_error_t *error)
{
    char fault[VNX_ERROR_CAUSE_MAX / 2];

    vnxi_nixl_plugin_fault(name, fault, sizeof fault);
    if (fault[0] == '\0') {
        char what[96];
        snprintf(what, sizeof what, "creating the backend %.64s", name);
        return vnxi_nixl_failed(code, "vnx_agent_create_backend", what, error);
    }
    return vnxi_error_set(error, VNX_ERR_NOT_FOUND, "vnx_agent_create_backend",
                          "NIXL cannot load its plugin %.64s: %s", name,
                          fault);
}

static vnx_status_t
create_lock_held(vnxi_engine_t *engine, const char *name,
                 const vnx_param_t *params, size_t count, vnx_error_t *error)
{
    nixl_capi_backend_t handle = NULL;
    vnxi_nixl_plugin_t *plugin;

    vnx_status_t status = need_agent_lock_held(engine, error);
    if (status == VNX_OK) {
        status = find_plugin_lock_held(engine, "vnx_agent_create_backend",
                                       name, &plugin, error);
    }
    if (status != VNX_OK) {
        return status;
    }
    if (find_backend(engine, name) >= 0) {
        return vnxi_error_set(error, VNX_ERR_NOT_ALLOWED,
                              "vnx_agent_create_backend",
                              "backend '%s' exists already", name);
    }
    if (atomic_load(&engine->backend_count) == VNXI_NIXL_BACKENDS_MAX) {
        return vnxi_error_set(
            error, VNX_ERR_NOT_ALLOWED, "vnx_agent_create_backend",
            "an agent can have at most %d backends", VNXI_NIXL_BACKENDS_MAX);
    }
    ask_plugin_lock_held(engine, plugin);
    nixl_capi_params_t joined =
        join_params(engine->capi, &plugin->params, params, count);
    if (joined == NULL) {
        return vnxi_error_no_memory(error, "vnx_agent_create_backend", count);
    }
    int code =
        engine->capi->create_backend(engine->agent, name, joined, &handle);
    engine->capi->destroy_params(joined);
    if (code != NIXL_CAPI_SUCCESS) {
        return backend_failed(name, code, error);
    }
    if (plugin->ucx_guard != NULL) {
        atomic_store(&engine->ucx_guard, plugin->ucx_guard);
    }
    return note_backend(engine, plugin, handle, error);
}

vnx_status_t
vnxi_nixl_backend_create(vnxi_engine_t *engine, const char *backend,
                         const vnx_param_t *params, size_t count,
                         vnx_error_t *error)
{
    vnxi_mutex_lock(&engine->backend_lock);
    vnx_status_t status = need_agent_lock_held(engine, error);
    if (status == VNX_OK) {
        status = vnxi_nixl_poller_start(engine, error);
    }
    if (status == VNX_OK) {
        status = create_lock_held(engine, backend, params, count, error);
    }
    vnxi_mutex_unlock(&engine->backend_lock);
    return status;
}

void
vnxi_nixl_backends_fini(vnxi_engine_t *engine)
{
    for (size_t i = 0; i < engine->plugin_count; i++) {
        vnxi_nixl_params_fini(&engine->plugins[i].params);
    }
    free(engine->plugins);
    for (size_t i = 0; i < atomic_load(&engine->backend_count); i++) {
        vnxi_nixl_params_fini(&engine->backends[i].params);
    }
}

/* -- Sets of backends ------------------------------------------------------
 */

vnx_status_t
vnxi_nixl_backend_set(vnxi_engine_t *engine, const char *const *backends,
                      const char *operation, uint32_t *set_p,
                      vnx_error_t *error)
{
    uint32_t set = 0;

    for (; backends != NULL && *backends != NULL; backends++) {
        int place = find_backend(engine, *backends);
        if (place < 0) {
            vnxi_nixl_plugin_t *plugin;
            vnxi_mutex_lock(&engine->backend_lock);
            vnx_status_t status = find_plugin_lock_held(
                engine, operation, *backends, &plugin, error);
            vnxi_mutex_unlock(&engine->backend_lock);
            return status != VNX_OK ? status
                                    : not_created(operation, *backends, error);
        }
        set |= 1u << place;
    }
    *set_p = set;
    return VNX_OK;
}

uint32_t
vnxi_nixl_all_backends(vnxi_engine_t *engine)
{
    size_t count = atomic_load(&engine->backend_count);
    return count > 0 ? UINT32_MAX >> (VNXI_NIXL_BACKENDS_MAX - count) : 0;
}

uint32_t
vnxi_nixl_backends_for(vnxi_engine_t *engine, vnx_mem_t mem)
{
    size_t count = atomic_load(&engine->backend_count);
    uint32_t set = 0;

    for (size_t i = 0; i < count; i++) {
        set |= ((engine->backends[i].mems >> mem) & 1u) << i;
    }
    return set;
}

void
vnxi_nixl_backend_names(vnxi_engine_t *engine, uint32_t set, char *text,
                        size_t size)
{
    text[0] = '\0';
    for (size_t i = 0; i < VNXI_NIXL_BACKENDS_MAX; i++) {
        if ((set >> i & 1u) != 0) {
            vnxi_text_add(text, size, "%s%s", text[0] != '\0' ? ", " : "",
                          engine->backends[i].name);
        }
    }
    if (text[0] == '\0') {
        snprintf(text, size, "none");
    }
}
