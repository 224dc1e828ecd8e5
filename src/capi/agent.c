/*
 * Agents, their plugins and their backends.
 */
#include "capi/agent.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <vnx/log.h>

#include "capi/abi.h"
#include "capi/params.h"

nixl_capi_status_t
vnxi_capi_result(const vnxi_capi_agent_t *agent, vnx_status_t status,
                 const vnx_error_t *error)
{
    if (status < 0) {
        vnx_log_error(agent->name, error);
    }
    return vnxi_abi_status(status);
}

/* -- Life ------------------------------------------------------------------
 */

/* NIXL_TELEMETRY_ENABLE, or what the configuration says. */
static bool
wants_telemetry(bool configured)
{
    static const char *const yes[] = {"y", "yes", "on", "true", "enable", "1"};
    const char *value = getenv("NIXL_TELEMETRY_ENABLE");

    for (size_t i = 0; value != NULL && i < sizeof yes / sizeof *yes; i++) {
        if (strcasecmp(value, yes[i]) == 0) {
            return true;
        }
    }
    return value == NULL && configured;
}

static void
agent_destroy(void *object)
{
    vnxi_capi_agent_t *agent = object;

    vnx_listener_free(atomic_load(&agent->listener));
    vnx_agent_release(agent->agent);
    free(agent);
}

/* Stop everything; the objects stay. */
static void
agent_close(vnxi_capi_agent_t *agent)
{
    vnx_listener_t *listener = atomic_load(&agent->listener);

    if (listener != NULL) {
        vnx_listener_stop(listener);
    }
    vnx_agent_close(agent->agent);
}

static vnx_status_t
start_listener(vnxi_capi_agent_t *agent, int port, vnx_error_t *error)
{
    vnx_listener_t *listener = NULL;
    vnx_status_t status =
        vnx_listener_create(agent->agent, NULL, &listener, error);

    if (status != VNX_OK) {
        return status;
    }
    atomic_store(&agent->listener, listener);
    return vnx_listener_start(
        listener, NULL, port != 0 ? port : VNX_LISTENER_PORT, NULL, error);
}

/* NULL: the agent cannot be made; the log has the reason. */
static vnxi_capi_agent_t *
agent_create(const char *name, const nixl_capi_agent_config_t *config)
{
    const char *engine = getenv("VLLM_NIXL_ENGINE");
    vnx_agent_config_t options = {
        .size = sizeof options,
        .engine = engine != NULL && engine[0] != '\0' ? engine : NULL};
    size_t len = strlen(name);
    vnx_error_t error;
    vnxi_capi_agent_t *agent = calloc(1, sizeof *agent + len + 1);
    if (agent == NULL) {
        return NULL;
    }
    memcpy(agent->name, name, len + 1);
    agent->has_telemetry = wants_telemetry(config->capture_telemetry);
    vnx_status_t status =
        vnx_agent_create(name, len, &options, &agent->agent, &error);
    if (status == VNX_OK && config->enable_listen_thread) {
        status = start_listener(agent, (uint16_t)config->listen_port, &error);
    }
    if (status != VNX_OK) {
        vnx_log_error(name, &error);
        agent_destroy(agent);
        return NULL;
    }
    return agent;
}

nixl_capi_status_t
nixl_capi_create_configured_agent(const char *name,
                                  const nixl_capi_agent_config_t *cfg,
                                  nixl_capi_agent_t *agent)
{
    if (name == NULL || cfg == NULL || agent == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    vnxi_capi_agent_t *object = agent_create(name, cfg);
    if (object == NULL) {
        return NIXL_CAPI_ERROR_BACKEND;
    }
    nixl_capi_agent_t handle =
        vnxi_handle_create(VNXI_KIND_AGENT, object, NULL, agent_destroy);
    if (handle == NULL) {
        agent_close(object);
        agent_destroy(object);
        return NIXL_CAPI_ERROR_BACKEND;
    }
    *agent = handle;
    return NIXL_CAPI_SUCCESS;
}

nixl_capi_status_t
nixl_capi_create_agent(const char *name, nixl_capi_agent_t *agent)
{
    const nixl_capi_agent_config_t defaults = {.enable_prog_thread = true};
    return nixl_capi_create_configured_agent(name, &defaults, agent);
}

nixl_capi_status_t
nixl_capi_destroy_agent(nixl_capi_agent_t agent)
{
    vnxi_slot_t *slot = vnxi_capi_agent_share(agent);

    if (slot == NULL) {
        return vnxi_abi_nothing_to_destroy(agent);
    }
    agent_close(vnxi_capi_agent_of(slot));
    return vnxi_slot_end(slot, agent, VNXI_KIND_AGENT)
               ? NIXL_CAPI_SUCCESS
               : vnxi_abi_nothing_to_destroy(agent);
}

bool
nixl_capi_is_stub(void)
{
    return false;
}

/* -- Lists of names and of memory types ------------------------------------
 */

typedef struct strings {
    size_t count;
    const char *at[]; /* static storage */
} strings_t;

typedef struct mems {
    size_t count;
    nixl_capi_mem_type_t at[VNX_MEM_COUNT];
} mems_t;

static strings_t *
list_plugins(vnx_agent_t *agent)
{
    size_t count = 0;

    while (vnx_agent_plugin(agent, count) != NULL) {
        count++;
    }
    strings_t *names = calloc(1, sizeof *names + count * sizeof *names->at);
    for (size_t i = 0; names != NULL && i < count; i++) {
        const char *name = vnx_agent_plugin(agent, i);
        if (name != NULL) { /* the engine may have been chosen meanwhile */
            names->at[names->count++] = name;
        }
    }
    return names;
}

nixl_capi_status_t
nixl_capi_get_available_plugins(nixl_capi_agent_t agent,
                                nixl_capi_string_list_t *plugins)
{
    vnxi_slot_t *slot = plugins != NULL ? vnxi_capi_agent_share(agent) : NULL;

    if (slot == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    strings_t *names = list_plugins(vnxi_capi_agent_of(slot)->agent);
    vnxi_slot_leave(slot);
    void *handle = names != NULL ? vnxi_handle_create(VNXI_KIND_STRINGS, names,
                                                      NULL, NULL)
                                 : NULL;
    if (handle == NULL) {
        free(names);
        return NIXL_CAPI_ERROR_BACKEND;
    }
    *plugins = handle;
    return NIXL_CAPI_SUCCESS;
}

nixl_capi_status_t
nixl_capi_destroy_string_list(nixl_capi_string_list_t list)
{
    strings_t *names = vnxi_handle_end(list, VNXI_KIND_STRINGS);

    if (names == NULL) {
        return vnxi_abi_nothing_to_destroy(list);
    }
    free(names);
    return NIXL_CAPI_SUCCESS;
}

nixl_capi_status_t
nixl_capi_string_list_size(nixl_capi_string_list_t list, size_t *size)
{
    const strings_t *names = vnxi_object(list, VNXI_KIND_STRINGS);

    if (names == NULL || size == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    *size = names->count;
    return NIXL_CAPI_SUCCESS;
}

nixl_capi_status_t
nixl_capi_string_list_get(nixl_capi_string_list_t list, size_t index,
                          const char **str)
{
    const strings_t *names = vnxi_object(list, VNXI_KIND_STRINGS);

    if (names == NULL || str == NULL || index >= names->count) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    *str = names->at[index];
    return NIXL_CAPI_SUCCESS;
}

nixl_capi_status_t
nixl_capi_destroy_mem_list(nixl_capi_mem_list_t list)
{
    mems_t *mems = vnxi_handle_end(list, VNXI_KIND_MEMS);

    if (mems == NULL) {
        return vnxi_abi_nothing_to_destroy(list);
    }
    free(mems);
    return NIXL_CAPI_SUCCESS;
}

nixl_capi_status_t
nixl_capi_mem_list_size(nixl_capi_mem_list_t list, size_t *size)
{
    const mems_t *mems = vnxi_object(list, VNXI_KIND_MEMS);

    if (mems == NULL || size == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    *size = mems->count;
    return NIXL_CAPI_SUCCESS;
}

nixl_capi_status_t
nixl_capi_mem_list_is_empty(nixl_capi_mem_list_t list, bool *is_empty)
{
    const mems_t *mems = vnxi_object(list, VNXI_KIND_MEMS);

    if (mems == NULL || is_empty == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    *is_empty = mems->count == 0;
    return NIXL_CAPI_SUCCESS;
}

nixl_capi_status_t
nixl_capi_mem_list_get(nixl_capi_mem_list_t list, size_t index,
                       nixl_capi_mem_type_t *mem_type)
{
    const mems_t *mems = vnxi_object(list, VNXI_KIND_MEMS);

    if (mems == NULL || mem_type == NULL || index >= mems->count) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    *mem_type = mems->at[index];
    return NIXL_CAPI_SUCCESS;
}

nixl_capi_status_t
nixl_capi_mem_type_to_string(nixl_capi_mem_type_t mem_type, const char **str)
{
    static const char *const names[] = {"DRAM",   "VRAM", "BLOCK",
                                        "OBJECT", "FILE", "UNKNOWN"};

    if (str == NULL || (unsigned)mem_type >= sizeof names / sizeof *names) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    *str = names[mem_type];
    return NIXL_CAPI_SUCCESS;
}

/* -- Properties of plugins and backends ------------------------------------
 */

/* vnx_agent_plugin_param() or vnx_agent_backend_param(). */
typedef vnx_status_t (*param_fn)(vnx_agent_t *, const char *, size_t,
                                 vnx_param_t *, vnx_error_t *);

static vnx_status_t
read_params(vnx_agent_t *agent, const char *name, param_fn param_of,
            vnxi_param_set_t *set, vnx_error_t *error)
{
    vnx_param_t param = {"", ""};
    vnx_status_t status = VNX_OK;

    for (size_t i = 0; status == VNX_OK && param.key != NULL; i++) {
        status = param_of(agent, name, i, &param, error);
        if (status == VNX_OK && param.key != NULL &&
            !vnxi_param_set_add(set, param.key, param.value)) {
            return VNX_ERR_NO_MEMORY;
        }
    }
    return status;
}

/* NULL: no memory. */
static nixl_capi_mem_list_t
publish_mems(uint32_t set)
{
    mems_t *mems = calloc(1, sizeof *mems);
    if (mems == NULL) {
        return NULL;
    }
    for (unsigned mem = 0; mem < VNX_MEM_COUNT; mem++) {
        if ((set >> mem & 1) != 0) {
            mems->at[mems->count++] = (nixl_capi_mem_type_t)mem;
        }
    }
    void *handle = vnxi_handle_create(VNXI_KIND_MEMS, mems, NULL, NULL);
    if (handle == NULL) {
        free(mems);
    }
    return handle;
}

/* Every failure is BACKEND, as in NIXL. */
static nixl_capi_status_t
get_properties(const vnxi_capi_agent_t *agent, const char *name,
               param_fn param_of, nixl_capi_mem_list_t *mems_p,
               nixl_capi_params_t *params_p)
{
    vnxi_param_set_t set = {0};
    uint32_t mem_set = 0;
    vnx_error_t error;
    vnx_status_t status =
        vnx_agent_plugin_mems(agent->agent, name, &mem_set, &error);

    if (status == VNX_OK) {
        status = read_params(agent->agent, name, param_of, &set, &error);
    }
    nixl_capi_mem_list_t mems =
        status == VNX_OK ? publish_mems(mem_set) : NULL;
    if (mems == NULL) {
        vnxi_param_set_fini(&set);
        if (status < 0 && status != VNX_ERR_NO_MEMORY) {
            (void)vnxi_capi_result(agent, status, &error);
        }
        return NIXL_CAPI_ERROR_BACKEND;
    }
    if (vnxi_param_set_publish(&set, params_p) != NIXL_CAPI_SUCCESS) {
        (void)nixl_capi_destroy_mem_list(mems);
        return NIXL_CAPI_ERROR_BACKEND;
    }
    *mems_p = mems;
    return NIXL_CAPI_SUCCESS;
}

nixl_capi_status_t
nixl_capi_get_plugin_params(nixl_capi_agent_t agent, const char *plugin_name,
                            nixl_capi_mem_list_t *mems,
                            nixl_capi_params_t *params)
{
    vnxi_slot_t *slot = plugin_name != NULL && mems != NULL && params != NULL
                            ? vnxi_capi_agent_share(agent)
                            : NULL;

    if (slot == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    nixl_capi_status_t status =
        get_properties(vnxi_capi_agent_of(slot), plugin_name,
                       vnx_agent_plugin_param, mems, params);
    vnxi_slot_leave(slot);
    return status;
}

/* The name of a backend of that agent.  NULL: the handle is invalid, or
 * belongs to another agent. */
static const char *
backend_name(nixl_capi_agent_t agent, nixl_capi_backend_t backend)
{
    const char *name = vnxi_object(backend, VNXI_KIND_BACKEND);

    return name != NULL && vnxi_slot_of(backend)->owner == agent ? name : NULL;
}

nixl_capi_status_t
nixl_capi_get_backend_params(nixl_capi_agent_t agent,
                             nixl_capi_backend_t backend,
                             nixl_capi_mem_list_t *mems,
                             nixl_capi_params_t *params)
{
    const char *name =
        mems != NULL && params != NULL ? backend_name(agent, backend) : NULL;
    vnxi_slot_t *slot = name != NULL ? vnxi_capi_agent_share(agent) : NULL;

    if (slot == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    nixl_capi_status_t status = get_properties(
        vnxi_capi_agent_of(slot), name, vnx_agent_backend_param, mems, params);
    vnxi_slot_leave(slot);
    return status;
}

/* -- Backends --------------------------------------------------------------
 */

void *
vnxi_capi_backend_handle(nixl_capi_agent_t agent, const char *name)
{
    return vnxi_handle_create(VNXI_KIND_BACKEND, (void *)name, agent, NULL);
}

/* The agent's own text of a plugin's name.  NULL: there is none. */
static const char *
find_plugin(vnx_agent_t *agent, const char *wanted)
{
    const char *name;

    for (size_t i = 0; (name = vnx_agent_plugin(agent, i)) != NULL; i++) {
        if (strcmp(name, wanted) == 0) {
            break;
        }
    }
    return name;
}

/* Every failure is BACKEND, as in NIXL. */
static nixl_capi_status_t
create_backend(const vnxi_capi_agent_t *agent, const char *name,
               const vnxi_param_set_t *set)
{
    vnx_error_t error;
    vnx_status_t status = vnx_agent_create_backend(agent->agent, name, set->at,
                                                   set->count, &error);

    return vnxi_capi_result(agent, status, &error) == NIXL_CAPI_SUCCESS
               ? NIXL_CAPI_SUCCESS
               : NIXL_CAPI_ERROR_BACKEND;
}

nixl_capi_status_t
nixl_capi_create_backend(nixl_capi_agent_t agent, const char *plugin_name,
                         nixl_capi_params_t params,
                         nixl_capi_backend_t *backend)
{
    const vnxi_param_set_t *set = vnxi_object(params, VNXI_KIND_PARAMS);
    void *handle = NULL;
    vnxi_slot_t *slot = set != NULL && plugin_name != NULL && backend != NULL
                            ? vnxi_capi_agent_share(agent)
                            : NULL;

    if (slot == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    const vnxi_capi_agent_t *object = vnxi_capi_agent_of(slot);
    nixl_capi_status_t status = create_backend(object, plugin_name, set);
    if (status == NIXL_CAPI_SUCCESS) {
        handle = vnxi_capi_backend_handle(
            agent, find_plugin(object->agent, plugin_name));
        status = handle != NULL ? status : NIXL_CAPI_ERROR_BACKEND;
    }
    vnxi_slot_leave(slot);
    if (status == NIXL_CAPI_SUCCESS) {
        *backend = handle;
    }
    return status;
}

nixl_capi_status_t
nixl_capi_destroy_backend(nixl_capi_backend_t backend)
{
    return vnxi_handle_end(backend, VNXI_KIND_BACKEND) != NULL
               ? NIXL_CAPI_SUCCESS
               : vnxi_abi_nothing_to_destroy(backend);
}
