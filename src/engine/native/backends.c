/*
 * The backends of the native engine, and the ports of its transports.
 *
 * Every client passes the name "UCX".  On this engine it stands for the best
 * way to each peer: within the process; SHM on the same host; and, if a libucp
 * can be loaded, UCX to other hosts, to stock agents and for GPU memory.
 * Without libucp the name is accepted all the same, with one warning.  "SHM"
 * is only SHM.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/words.h"
#include "engine/native/native.h"

#define CREATE "vnx_agent_create_backend"

/* -- Names and parameters --------------------------------------------------
 */

/* The slowest transport, which reaches the most peers, comes first. */
const char *
vnxi_native_plugin(vnxi_engine_t *engine, size_t i)
{
    (void)engine;
    for (unsigned t = VNXI_TRANSPORTS; t-- > 0;) {
        if (vnxi_transports[t]->backend != NULL && i-- == 0) {
            return vnxi_transports[t]->backend;
        }
    }
    return NULL;
}

/* The number of the transport, or VNX_ERR_NOT_FOUND. */
static vnx_status_t
find_backend(const char *name, const char *operation, unsigned *t_p,
             vnx_error_t *error)
{
    const char *words[VNXI_TRANSPORTS];
    size_t count = 0;

    for (unsigned t = 0; t < VNXI_TRANSPORTS; t++) {
        const char *backend = vnxi_transports[t]->backend;
        if (backend != NULL && strcmp(backend, name) == 0) {
            *t_p = t;
            return VNX_OK;
        }
    }
    while (count < VNXI_TRANSPORTS &&
           (words[count] = vnxi_native_plugin(NULL, count)) != NULL) {
        count++;
    }
    return vnxi_error_set(error, VNX_ERR_NOT_FOUND, operation,
                          "the native engine has no backend '%.64s': %s", name,
                          vnxi_words(name, words, count));
}

/* A backend stands for its transport and all that are faster. */
vnx_status_t
vnxi_native_plugin_mems(vnxi_engine_t *engine, const char *backend,
                        uint32_t *mems_p, vnx_error_t *error)
{
    unsigned last = 0;
    vnx_status_t status =
        find_backend(backend, "vnx_agent_plugin_mems", &last, error);
    if (status != VNX_OK) {
        return status;
    }
    *mems_p = vnxi_native_mems(engine, last + 1);
    return VNX_OK;
}

static vnx_param_t
default_param(const vnxi_transport_t *transport, size_t i)
{
    const vnx_param_t *param = transport->defaults;

    while (param != NULL && param->key != NULL && i-- > 0) {
        param++;
    }
    return param != NULL ? *param : (vnx_param_t){NULL, NULL};
}

/* The backends accept all parameters of stock's backends.  Parameters for UCX
 * are passed on; those for stock's threads have no effect. */
vnx_status_t
vnxi_native_param(vnxi_engine_t *engine, const char *backend, bool created,
                  size_t i, vnx_param_t *param_p, vnx_error_t *error)
{
    const char *operation =
        created ? "vnx_agent_backend_param" : "vnx_agent_plugin_param";
    unsigned t = 0;

    vnx_status_t status = find_backend(backend, operation, &t, error);
    if (status != VNX_OK) {
        return status;
    }
    const vnxi_native_backend_t *known = &engine->backends[t];
    if (created && !atomic_load(&known->created)) {
        return vnxi_error_set(error, VNX_ERR_NOT_FOUND, operation,
                              "backend '%s' was not created", backend);
    }
    if (!created) {
        *param_p = default_param(vnxi_transports[t], i);
        return VNX_OK;
    }
    *param_p = i < known->param_count ? (vnx_param_t){known->params[i].key,
                                                      known->params[i].value}
                                      : (vnx_param_t){NULL, NULL};
    return VNX_OK;
}

vnx_status_t
vnxi_native_check_backends(vnxi_engine_t *engine, const char *const *backends,
                           const char *operation, vnx_error_t *error)
{
    for (; backends != NULL && *backends != NULL; backends++) {
        unsigned t = 0;
        vnx_status_t status = find_backend(*backends, operation, &t, error);
        if (status != VNX_OK) {
            return status;
        }
        if (!atomic_load(&engine->backends[t].created)) {
            return vnxi_error_set(error, VNX_ERR_NOT_FOUND, operation,
                                  "backend '%s' was not created", *backends);
        }
    }
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

/* -- Ports -----------------------------------------------------------------
 */

/* Attach the regions registered before the port was opened, all or none. */
static vnx_status_t
attach_regions(unsigned t, vnxi_port_t *port, const vnxi_region_table_t *table,
               vnx_error_t *error)
{
    size_t count = vnxi_region_table_count(table), done = 0;
    vnx_status_t status = VNX_OK;
    void **slots = calloc(count + 1, sizeof *slots);

    if (slots == NULL) {
        return vnxi_error_no_memory(error, CREATE, count * sizeof *slots);
    }
    while (status == VNX_OK && done < count) {
        status = port->transport->attach(
            port, vnxi_region_table_at(table, done), &slots[done], error);
        done += status == VNX_OK;
    }
    for (size_t i = 0; i < done; i++) {
        if (status == VNX_OK) {
            vnxi_region_t *region = vnxi_region_table_at(table, i);
            atomic_store(&vnxi_native_region(region)->slots[t], slots[i]);
        } else if (slots[i] != NULL) {
            port->transport->slot_free(slots[i]);
        }
    }
    free(slots);
    return status;
}

/* Attach the regions, and find the routes to them again. */
static vnx_status_t
attach_all(vnxi_engine_t *engine, unsigned t, vnxi_port_t *port,
           const vnxi_region_table_t *table, vnx_error_t *error)
{
    vnx_status_t status = attach_regions(t, port, table, error);

    if (status != VNX_OK) {
        return status;
    }
    atomic_store(&engine->backends[t].port, port);
    vnxi_native_find_reach(engine, NULL, &engine->reach);
    vnxi_table_find_routes(table, &engine->reach);
    return VNX_OK;
}

static vnx_status_t
adopt(vnxi_engine_t *engine, unsigned t, vnxi_port_t *port, vnx_error_t *error)
{
    vnxi_registry_hold(engine->registry);
    vnxi_region_table_t *table =
        vnxi_registry_snapshot(engine->registry, NULL);
    vnx_status_t status = table != NULL
                              ? attach_all(engine, t, port, table, error)
                              : vnxi_error_no_memory(error, CREATE, 0);
    vnxi_registry_resume(engine->registry);
    vnxi_region_table_release(table);
    if (status != VNX_OK) {
        port->transport->port_stop(port);
        port->transport->port_free(port);
    }
    return status;
}

/* The agent reaches itself by its own ports. */
static vnx_status_t
connect_self(vnxi_engine_t *engine, unsigned t, vnx_error_t *error)
{
    vnxi_port_t *port = vnxi_native_port(engine, t);
    vnxi_writer_t info = {0};

    if (port->transport->write_info != NULL) {
        port->transport->write_info(port, &info);
    }
    vnx_status_t status =
        info.failed
            ? vnxi_error_no_memory(error, CREATE, info.len)
            : vnxi_native_peer_add_conn(engine->self, t,
                                        (vnxi_md_bytes_t){info.data, info.len},
                                        NULL, error);
    vnxi_writer_fini(&info);
    return status;
}

/* Open a port unless it is open.  A transport that does not work on this
 * machine is skipped. */
static vnx_status_t
open_port_lock_held(vnxi_engine_t *engine, unsigned t,
                    const vnx_param_t *params, size_t count,
                    vnx_error_t *error)
{
    vnxi_native_backend_t *backend = &engine->backends[t];
    vnxi_port_config_t config = {
        .name = engine->name,
        .name_len = engine->name_len,
        .identity = &engine->identity,
        .registry = engine->registry,
        .num_threads = engine->num_threads,
        .number = t,
        .params = params,
        .param_count = count,
        .host = vnxi_native_port_host,
    };
    vnx_error_t cause;
    vnxi_port_t *port;

    if (vnxi_native_port(engine, t) != NULL) {
        return connect_self(engine, t, error); /* it may have failed before */
    }
    config.host.context = engine;
    vnx_status_t status =
        vnxi_transports[t]->port_open(&config, &port, &cause);
    if (status == VNX_ERR_NOT_FOUND) {
        if (atomic_load(&backend->missing) == NULL) {
            atomic_store(&backend->missing, strdup(cause.cause));
        }
        return VNX_OK;
    }
    if (status != VNX_OK) {
        if (error != NULL) {
            *error = cause;
        }
        return status;
    }
    port->transport = vnxi_transports[t];
    status = adopt(engine, t, port, error);
    return status == VNX_OK ? connect_self(engine, t, error) : status;
}

static vnx_status_t
open_ports_lock_held(vnxi_engine_t *engine, unsigned wanted,
                     const vnx_param_t *params, size_t count,
                     vnx_error_t *error)
{
    vnx_status_t status = VNX_OK;

    for (unsigned t = 0; status == VNX_OK && t < VNXI_TRANSPORTS; t++) {
        if (t == wanted || vnxi_transports[t]->opens_first) {
            bool is_wanted = t == wanted;
            status = open_port_lock_held(engine, t, is_wanted ? params : NULL,
                                         is_wanted ? count : 0, error);
        }
    }
    return status;
}

static vnx_status_t
create_lock_held(vnxi_engine_t *engine, unsigned t, const vnx_param_t *params,
                 size_t count, vnx_error_t *error)
{
    vnxi_native_backend_t *backend = &engine->backends[t];

    if (atomic_load(&backend->created)) {
        return vnxi_error_set(error, VNX_ERR_NOT_ALLOWED, CREATE,
                              "backend '%s' exists already",
                              vnxi_transports[t]->backend);
    }
    if (atomic_load(&engine->stopped)) {
        return vnxi_error_set(error, VNX_ERR_CLOSED, CREATE,
                              "the agent is closed");
    }
    if (!params_copy(backend, params, count)) {
        return vnxi_error_no_memory(error, CREATE, count * sizeof *params);
    }
    vnx_status_t status =
        open_ports_lock_held(engine, t, params, count, error);
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
    unsigned t = 0;
    vnx_status_t status = find_backend(backend, CREATE, &t, error);
    if (status != VNX_OK) {
        return status;
    }
    vnxi_mutex_lock(&engine->backend_lock);
    status = create_lock_held(engine, t, params, count, error);
    vnxi_mutex_unlock(&engine->backend_lock);
    return status;
}

void
vnxi_native_backends_fini(vnxi_engine_t *engine)
{
    for (unsigned t = 0; t < VNXI_TRANSPORTS; t++) {
        vnxi_port_t *port = vnxi_native_port(engine, t);
        if (port != NULL) {
            port->transport->port_free(port);
        }
        free(atomic_load(&engine->backends[t].missing));
        params_free(&engine->backends[t]);
    }
}
