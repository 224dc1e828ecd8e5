/*
 * Metadata, peers, and the commands to metadata listeners.
 */
#include <stdlib.h>
#include <string.h>

#include "capi/agent.h"
#include "capi/options.h"
#include "capi/rows.h"

/* -- The agent's metadata --------------------------------------------------
 */

nixl_capi_status_t
nixl_capi_get_local_md(nixl_capi_agent_t agent, void **data, size_t *len)
{
    vnx_bytes_t bytes;
    vnx_error_t error;
    vnxi_slot_t *slot =
        data != NULL && len != NULL ? vnxi_capi_agent_share(agent) : NULL;

    if (slot == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    const vnxi_capi_agent_t *object = vnxi_capi_agent_of(slot);
    nixl_capi_status_t status = vnxi_capi_result(
        object, vnx_agent_metadata(object->agent, &bytes, &error), &error);
    vnxi_slot_leave(slot);
    if (status == NIXL_CAPI_SUCCESS) {
        *data = bytes.data;
        *len = bytes.len;
    }
    /* As in NIXL: without a backend there is nothing to describe. */
    return status == NIXL_CAPI_ERROR_NOT_FOUND ? NIXL_CAPI_ERROR_INVALID_PARAM
                                               : status;
}

/* The metadata of the regions of a list.  Owned: free(bytes_p->data). */
static nixl_capi_status_t
partial_metadata(nixl_capi_agent_t agent, const vnxi_capi_agent_t *object,
                 nixl_capi_reg_dlist_t descs, nixl_capi_opt_args_t opt_args,
                 vnx_bytes_t *bytes_p)
{
    vnxi_selection_t selection;
    vnx_error_t error;
    nixl_capi_status_t status =
        vnxi_options_select(opt_args, agent, &selection);
    const vnxi_rows_t *rows = vnxi_rows(descs, VNXI_KIND_REG_ROWS);

    if (status != NIXL_CAPI_SUCCESS || rows == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    return vnxi_capi_result(
        object,
        vnx_agent_partial_metadata(object->agent, (vnx_mem_t)rows->mem,
                                   rows->at.reg, rows->count, false,
                                   selection.backends, bytes_p, &error),
        &error);
}

nixl_capi_status_t
nixl_capi_get_local_partial_md(nixl_capi_agent_t agent,
                               nixl_capi_reg_dlist_t descs, void **data,
                               size_t *len, nixl_capi_opt_args_t opt_args)
{
    vnx_bytes_t bytes;
    vnxi_slot_t *slot =
        data != NULL && len != NULL ? vnxi_capi_agent_share(agent) : NULL;

    if (slot == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    nixl_capi_status_t status = partial_metadata(
        agent, vnxi_capi_agent_of(slot), descs, opt_args, &bytes);
    vnxi_slot_leave(slot);
    if (status == NIXL_CAPI_SUCCESS) {
        *data = bytes.data;
        *len = bytes.len;
    }
    return status;
}

/* -- Peers -----------------------------------------------------------------
 */

nixl_capi_status_t
nixl_capi_load_remote_md(nixl_capi_agent_t agent, const void *data, size_t len,
                         char **agent_name)
{
    vnx_bytes_t name;
    vnx_error_t error;
    vnxi_slot_t *slot = data != NULL && len > 0 && agent_name != NULL
                            ? vnxi_capi_agent_share(agent)
                            : NULL;

    if (slot == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    if (len > PTRDIFF_MAX) {
        vnxi_slot_leave(slot);
        return NIXL_CAPI_ERROR_BACKEND; /* as in NIXL */
    }
    const vnxi_capi_agent_t *object = vnxi_capi_agent_of(slot);
    nixl_capi_status_t status = vnxi_capi_result(
        object,
        vnx_agent_load_metadata(object->agent, data, len, &name, &error),
        &error);
    vnxi_slot_leave(slot);
    if (status == NIXL_CAPI_SUCCESS) {
        *agent_name = name.data; /* followed by a NUL */
    }
    /* As in NIXL: an agent without a backend reaches nobody. */
    return status == NIXL_CAPI_ERROR_NOT_FOUND ? NIXL_CAPI_ERROR_BACKEND
                                               : status;
}

/* A peer that is gone is still loaded. */
static bool
is_loaded(vnx_agent_t *agent, const char *name)
{
    vnx_bytes_t json;

    if (name[0] == '\0' ||
        vnx_agent_describe(agent, name, strlen(name), &json, NULL) != VNX_OK) {
        return false;
    }
    free(json.data);
    return true;
}

static nixl_capi_status_t
invalidate(const vnxi_capi_agent_t *object, const char *name)
{
    vnx_error_t error;

    if (strcmp(name, object->name) == 0) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    if (!is_loaded(object->agent, name)) {
        return NIXL_CAPI_ERROR_NOT_FOUND;
    }
    return vnxi_capi_result(
        object,
        vnx_agent_remove_peer(object->agent, name, strlen(name), &error),
        &error);
}

nixl_capi_status_t
nixl_capi_invalidate_remote_md(nixl_capi_agent_t agent,
                               const char *remote_agent)
{
    vnxi_slot_t *slot =
        remote_agent != NULL ? vnxi_capi_agent_share(agent) : NULL;

    if (slot == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    nixl_capi_status_t status =
        invalidate(vnxi_capi_agent_of(slot), remote_agent);
    vnxi_slot_leave(slot);
    return status;
}

nixl_capi_status_t
nixl_capi_check_remote_md(nixl_capi_agent_t agent, const char *remote_name,
                          nixl_capi_xfer_dlist_t descs)
{
    const vnxi_rows_t none = {.mem = NIXL_CAPI_MEM_DRAM};
    const vnxi_rows_t *rows =
        descs != NULL ? vnxi_rows(descs, VNXI_KIND_XFER_ROWS) : &none;
    vnxi_slot_t *slot = remote_name != NULL && rows != NULL
                            ? vnxi_capi_agent_share(agent)
                            : NULL;

    if (slot == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    bool is_there = vnx_agent_check_peer(
        vnxi_capi_agent_of(slot)->agent, remote_name, strlen(remote_name),
        (vnx_mem_t)rows->mem, rows->at.xfer, rows->count);
    vnxi_slot_leave(slot);
    return is_there ? NIXL_CAPI_SUCCESS : NIXL_CAPI_ERROR_NOT_FOUND;
}

nixl_capi_status_t
nixl_capi_agent_make_connection(nixl_capi_agent_t agent,
                                const char *remote_agent,
                                nixl_capi_opt_args_t opt_args)
{
    vnxi_selection_t selection;
    vnx_error_t error;
    vnxi_slot_t *slot =
        remote_agent != NULL ? vnxi_capi_agent_share(agent) : NULL;

    if (slot == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    const vnxi_capi_agent_t *object = vnxi_capi_agent_of(slot);
    nixl_capi_status_t status =
        vnxi_options_select(opt_args, agent, &selection);
    if (status == NIXL_CAPI_SUCCESS) {
        status = vnxi_capi_result(
            object,
            vnx_agent_connect_peer(object->agent, remote_agent,
                                   strlen(remote_agent), &error),
            &error);
    }
    vnxi_slot_leave(slot);
    return status;
}

/* -- Commands to listeners -------------------------------------------------
 */

/* The agent's listener, made at first use.  NULL: see the error. */
static vnx_listener_t *
get_listener(vnxi_capi_agent_t *object, vnx_error_t *error)
{
    vnx_listener_t *there = atomic_load(&object->listener), *made = NULL;

    if (there != NULL ||
        vnx_listener_create(object->agent, NULL, &made, error) != VNX_OK) {
        return there;
    }
    if (atomic_compare_exchange_strong(&object->listener, &there, made)) {
        return made;
    }
    vnx_listener_free(made); /* another thread was faster */
    return there;
}

/* A command, with the metadata or the name that it needs. */
typedef vnx_status_t (*command_fn)(vnx_listener_t *, const char *, int,
                                   const void *, size_t, vnx_error_t *);

/* In the form of the others. */
static vnx_status_t
listener_invalidate(vnx_listener_t *listener, const char *host, int port,
                    const void *data, size_t len, vnx_error_t *error)
{
    (void)data, (void)len;
    return vnx_listener_invalidate(listener, host, port, error);
}

static nixl_capi_status_t
command(vnxi_capi_agent_t *object, nixl_capi_opt_args_t opt_args,
        command_fn call, const void *data, size_t len)
{
    const vnxi_options_t *options = vnxi_options(opt_args);
    vnx_status_t status = VNX_ERR_BACKEND;
    vnx_error_t error;

    if (options == NULL || options->host == NULL || options->host[0] == '\0') {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    vnx_listener_t *listener = get_listener(object, &error);
    if (listener != NULL) {
        status = call(listener, options->host, vnxi_options_port(options),
                      data, len, &error);
    }
    return vnxi_capi_result(object, status, &error);
}

nixl_capi_status_t
nixl_capi_send_local_md(nixl_capi_agent_t agent, nixl_capi_opt_args_t opt_args)
{
    vnxi_slot_t *slot = vnxi_capi_agent_share(agent);

    if (slot == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    nixl_capi_status_t status = command(vnxi_capi_agent_of(slot), opt_args,
                                        vnx_listener_send, NULL, 0);
    vnxi_slot_leave(slot);
    /* As in NIXL: without a backend there is nothing to describe. */
    return status == NIXL_CAPI_ERROR_NOT_FOUND ? NIXL_CAPI_ERROR_INVALID_PARAM
                                               : status;
}

nixl_capi_status_t
nixl_capi_send_local_partial_md(nixl_capi_agent_t agent,
                                nixl_capi_reg_dlist_t descs,
                                nixl_capi_opt_args_t opt_args)
{
    vnx_bytes_t bytes;
    vnxi_slot_t *slot = vnxi_capi_agent_share(agent);

    if (slot == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    vnxi_capi_agent_t *object = vnxi_capi_agent_of(slot);
    nixl_capi_status_t status =
        partial_metadata(agent, object, descs, opt_args, &bytes);
    if (status == NIXL_CAPI_SUCCESS) {
        status = command(object, opt_args, vnx_listener_send, bytes.data,
                         bytes.len);
        free(bytes.data);
    }
    vnxi_slot_leave(slot);
    return status;
}

nixl_capi_status_t
nixl_capi_fetch_remote_md(nixl_capi_agent_t agent, const char *remote_name,
                          nixl_capi_opt_args_t opt_args)
{
    vnxi_slot_t *slot =
        remote_name != NULL ? vnxi_capi_agent_share(agent) : NULL;

    if (slot == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    size_t len = strlen(remote_name);
    nixl_capi_status_t status =
        command(vnxi_capi_agent_of(slot), opt_args, vnx_listener_fetch,
                len > 0 ? remote_name : NULL, len);
    vnxi_slot_leave(slot);
    return status;
}

nixl_capi_status_t
nixl_capi_invalidate_local_md(nixl_capi_agent_t agent,
                              nixl_capi_opt_args_t opt_args)
{
    vnxi_slot_t *slot = vnxi_capi_agent_share(agent);

    if (slot == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    nixl_capi_status_t status = command(vnxi_capi_agent_of(slot), opt_args,
                                        listener_invalidate, NULL, 0);
    vnxi_slot_leave(slot);
    return status;
}
