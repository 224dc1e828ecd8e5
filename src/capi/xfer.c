/*
 * Prepared lists and transfers.
 *
 * Design notes.  The object of a request is the transfer, or NULL once that
 * was released.  Each call takes the request, so that no thread releases the
 * transfer while another one uses it; no call on a transfer is long.  One that
 * was seen to be done is marked, so that its status needs no taking.  Calls
 * for which a transfer or a prepared list is enough look whether the agent's
 * handle is alive, and do not share the agent, which these keep.
 */
#include <stdlib.h>
#include <string.h>

#include "capi/abi.h"
#include "capi/agent.h"
#include "capi/options.h"
#include "capi/rows.h"

/* -- Prepared lists --------------------------------------------------------
 */

typedef struct prepared {
    vnx_dlist_t *list;  /* owned */
    vnx_agent_t *agent; /* the list keeps it */
} prepared_t;

static void
prepared_destroy(void *object)
{
    prepared_t *prepared = object;

    vnx_dlist_release(prepared->list);
    free(prepared);
}

static nixl_capi_status_t
prepare(const vnxi_capi_agent_t *object, const char *name,
        const vnxi_rows_t *rows, const char *const *backends,
        prepared_t *prepared_p)
{
    vnx_error_t error;

    if (rows->count == 0) {
        return NIXL_CAPI_ERROR_NOT_FOUND; /* as in NIXL */
    }
    prepared_p->agent = object->agent;
    return vnxi_capi_result(
        object,
        vnx_dlist_create(object->agent, name, strlen(name),
                         (vnx_mem_t)rows->mem, rows->at.xfer, rows->count,
                         backends, &prepared_p->list, &error),
        &error);
}

/* Move a prepared list into an object with a handle.  NULL: no memory; the
 * list was released. */
static void *
publish_prepared(nixl_capi_agent_t agent, const prepared_t *prepared)
{
    prepared_t *object = malloc(sizeof *object);
    void *handle = NULL;

    if (object != NULL) {
        *object = *prepared;
        handle = vnxi_handle_create(VNXI_KIND_PREPARED, object, agent,
                                    prepared_destroy);
    }
    if (handle == NULL) {
        vnx_dlist_release(prepared->list);
        free(object);
    }
    return handle;
}

nixl_capi_status_t
nixl_capi_prep_xfer_dlist(nixl_capi_agent_t agent, const char *agent_name,
                          nixl_capi_xfer_dlist_t descs,
                          nixl_capi_xfer_dlist_handle_t *dlist_handle,
                          nixl_capi_opt_args_t opt_args)
{
    const vnxi_rows_t *rows = vnxi_rows(descs, VNXI_KIND_XFER_ROWS);
    vnxi_selection_t selection;
    prepared_t prepared;

    if (rows == NULL || agent_name == NULL || dlist_handle == NULL ||
        vnxi_options_select(opt_args, agent, &selection) !=
            NIXL_CAPI_SUCCESS) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    vnxi_slot_t *slot = vnxi_capi_agent_share(agent);
    if (slot == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    nixl_capi_status_t status = prepare(vnxi_capi_agent_of(slot), agent_name,
                                        rows, selection.backends, &prepared);
    vnxi_slot_leave(slot);
    if (status != NIXL_CAPI_SUCCESS) {
        return status;
    }
    nixl_capi_xfer_dlist_handle_t handle = publish_prepared(agent, &prepared);
    if (handle == NULL) {
        return NIXL_CAPI_ERROR_BACKEND;
    }
    *dlist_handle = handle;
    return NIXL_CAPI_SUCCESS;
}

/* The agent may have been destroyed already. */
nixl_capi_status_t
nixl_capi_release_xfer_dlist_handle(nixl_capi_agent_t agent,
                                    nixl_capi_xfer_dlist_handle_t dlist_handle)
{
    vnxi_slot_t *slot = agent != NULL
                            ? vnxi_slot_share(dlist_handle, VNXI_KIND_PREPARED)
                            : NULL;

    return slot != NULL &&
                   vnxi_slot_end(slot, dlist_handle, VNXI_KIND_PREPARED)
               ? NIXL_CAPI_SUCCESS
               : vnxi_abi_nothing_to_destroy(dlist_handle);
}

/* vnxi_capi_result() with an agent that is not shared. */
static nixl_capi_status_t
result_of(nixl_capi_agent_t agent, vnx_status_t status,
          const vnx_error_t *error)
{
    vnxi_slot_t *slot = status < 0 ? vnxi_capi_agent_share(agent) : NULL;

    if (slot != NULL) {
        (void)vnxi_capi_result(vnxi_capi_agent_of(slot), status, error);
        vnxi_slot_leave(slot);
    }
    return vnxi_abi_status(status);
}

/* -- Making ----------------------------------------------------------------
 */

/* The optional arguments of a transfer. */
typedef struct extras {
    const void *notif; /* NULL: none */
    size_t notif_len;
    bool no_merge;
} extras_t;

static nixl_capi_status_t
extras_get(nixl_capi_opt_args_t opt_args, extras_t *extras)
{
    const vnxi_options_t *options = vnxi_options(opt_args);

    *extras = (extras_t){.notif = NULL};
    if (options == NULL) {
        return opt_args == NULL ? NIXL_CAPI_SUCCESS
                                : NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    if (options->has_notif) {
        extras->notif = options->notif.len > 0 ? options->notif.data : "";
        extras->notif_len = options->notif.len;
    }
    extras->no_merge = options->no_merge;
    return NIXL_CAPI_SUCCESS;
}

/* Give a new transfer, which is moved, its handle. */
static nixl_capi_status_t
publish_request(nixl_capi_agent_t agent, vnx_xfer_t *xfer,
                nixl_capi_xfer_req_t *request_p)
{
    void *handle = vnxi_handle_create(VNXI_KIND_REQUEST, xfer, agent, NULL);

    if (handle == NULL) {
        vnx_xfer_abandon(xfer);
        return NIXL_CAPI_ERROR_BACKEND;
    }
    *request_p = handle;
    return NIXL_CAPI_SUCCESS;
}

static bool
is_operation(nixl_capi_xfer_op_t operation)
{
    return operation == NIXL_CAPI_XFER_OP_READ ||
           operation == NIXL_CAPI_XFER_OP_WRITE;
}

/* One side of a transfer that is made from prepared lists. */
typedef struct side {
    vnxi_slot_t *slot; /* shared; NULL: no such list of this agent */
    vnx_indices_t rows;
} side_t;

static side_t
side_share(nixl_capi_agent_t agent, nixl_capi_xfer_dlist_handle_t list,
           const int *rows, size_t count)
{
    vnxi_slot_t *slot = vnxi_slot_share(list, VNXI_KIND_PREPARED);

    if (slot != NULL && slot->owner != agent) {
        vnxi_slot_leave(slot);
        slot = NULL;
    }
    return (side_t){slot, {rows, count, VNX_INDEX_I32}};
}

static void
side_leave(const side_t *side)
{
    if (side->slot != NULL) {
        vnxi_slot_leave(side->slot);
    }
}

static nixl_capi_status_t
make(nixl_capi_agent_t agent, vnx_op_t op, const side_t *local,
     const side_t *remote, nixl_capi_opt_args_t opt_args, vnx_xfer_t **xfer_p)
{
    const prepared_t *from = local->slot->object, *to = remote->slot->object;
    vnxi_selection_t selection;
    extras_t extras;
    vnx_error_t error;
    nixl_capi_status_t status = extras_get(opt_args, &extras);

    if (status == NIXL_CAPI_SUCCESS) {
        status = vnxi_options_select(opt_args, agent, &selection);
    }
    if (status != NIXL_CAPI_SUCCESS) {
        return status;
    }
    vnx_status_t made = vnx_xfer_create_prepped(
        from->agent, op, from->list, local->rows, to->list, remote->rows,
        extras.notif, extras.notif_len, extras.no_merge, xfer_p, &error);
    return result_of(agent, made, &error);
}

nixl_capi_status_t
nixl_capi_make_xfer_req(nixl_capi_agent_t agent, nixl_capi_xfer_op_t operation,
                        nixl_capi_xfer_dlist_handle_t local_descs,
                        const int *local_indices, size_t local_indices_count,
                        nixl_capi_xfer_dlist_handle_t remote_descs,
                        const int *remote_indices, size_t remote_indices_count,
                        nixl_capi_xfer_req_t *req_hndl,
                        nixl_capi_opt_args_t opt_args)
{
    nixl_capi_status_t status = NIXL_CAPI_ERROR_INVALID_PARAM;
    vnx_xfer_t *xfer = NULL;

    if (local_indices == NULL || remote_indices == NULL || req_hndl == NULL ||
        !is_operation(operation) || !vnxi_handle_is(agent, VNXI_KIND_AGENT)) {
        return status;
    }
    side_t local =
        side_share(agent, local_descs, local_indices, local_indices_count);
    side_t remote =
        side_share(agent, remote_descs, remote_indices, remote_indices_count);
    if (local.slot != NULL && remote.slot != NULL) {
        status =
            make(agent, (vnx_op_t)operation, &local, &remote, opt_args, &xfer);
    }
    side_leave(&local);
    side_leave(&remote);
    return status == NIXL_CAPI_SUCCESS ? publish_request(agent, xfer, req_hndl)
                                       : status;
}

static nixl_capi_status_t
make_from_rows(nixl_capi_agent_t agent, vnx_op_t op, const vnxi_rows_t *local,
               const vnxi_rows_t *remote, const char *peer,
               nixl_capi_opt_args_t opt_args, vnx_xfer_t **xfer_p)
{
    vnxi_selection_t selection;
    extras_t extras;
    vnx_error_t error;
    vnxi_slot_t *slot = vnxi_capi_agent_share(agent);

    if (slot == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    const vnxi_capi_agent_t *object = vnxi_capi_agent_of(slot);
    nixl_capi_status_t status =
        vnxi_options_select(opt_args, agent, &selection);
    if (status == NIXL_CAPI_SUCCESS) {
        status = extras_get(opt_args, &extras);
    }
    if (status == NIXL_CAPI_SUCCESS) {
        vnx_status_t made = vnx_xfer_create(
            object->agent, op, (vnx_mem_t)local->mem, local->at.xfer,
            local->count, (vnx_mem_t)remote->mem, remote->at.xfer,
            remote->count, peer, strlen(peer), extras.notif, extras.notif_len,
            selection.backends, xfer_p, &error);
        /* Every failure is BACKEND, as in NIXL. */
        status = vnxi_capi_result(object, made, &error) == NIXL_CAPI_SUCCESS
                     ? NIXL_CAPI_SUCCESS
                     : NIXL_CAPI_ERROR_BACKEND;
    }
    vnxi_slot_leave(slot);
    return status;
}

nixl_capi_status_t
nixl_capi_create_xfer_req(nixl_capi_agent_t agent,
                          nixl_capi_xfer_op_t operation,
                          nixl_capi_xfer_dlist_t local_descs,
                          nixl_capi_xfer_dlist_t remote_descs,
                          const char *remote_agent,
                          nixl_capi_xfer_req_t *req_hndl,
                          nixl_capi_opt_args_t opt_args)
{
    const vnxi_rows_t *local = vnxi_rows(local_descs, VNXI_KIND_XFER_ROWS);
    const vnxi_rows_t *remote = vnxi_rows(remote_descs, VNXI_KIND_XFER_ROWS);
    vnx_xfer_t *xfer = NULL;

    if (local == NULL || remote == NULL || remote_agent == NULL ||
        req_hndl == NULL || !is_operation(operation)) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    nixl_capi_status_t status =
        make_from_rows(agent, (vnx_op_t)operation, local, remote, remote_agent,
                       opt_args, &xfer);
    return status == NIXL_CAPI_SUCCESS ? publish_request(agent, xfer, req_hndl)
                                       : status;
}

/* -- Using -----------------------------------------------------------------
 */

/* Take a request that was not released.  NULL: there is none, or the agent is
 * not alive. */
static vnxi_slot_t *
request_take(nixl_capi_agent_t agent, nixl_capi_xfer_req_t request)
{
    vnxi_slot_t *slot = vnxi_handle_is(agent, VNXI_KIND_AGENT)
                            ? vnxi_slot_take(request)
                            : NULL;

    if (slot != NULL && slot->object == NULL) {
        vnxi_slot_give(slot);
        return NULL;
    }
    return slot;
}

nixl_capi_status_t
nixl_capi_post_xfer_req(nixl_capi_agent_t agent, nixl_capi_xfer_req_t req_hndl,
                        nixl_capi_opt_args_t opt_args)
{
    extras_t extras;
    vnx_error_t error;
    vnxi_slot_t *slot = request_take(agent, req_hndl);

    if (slot == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    nixl_capi_status_t status = extras_get(opt_args, &extras);
    if (status != NIXL_CAPI_SUCCESS) {
        vnxi_slot_give(slot);
        return status;
    }
    if (opt_args != NULL && extras.notif == NULL) {
        extras.notif = VNX_NO_NOTIF; /* as in NIXL */
    }
    vnxi_slot_mark(slot, false);
    vnx_status_t posted =
        vnx_xfer_post(slot->object, extras.notif, extras.notif_len, &error);
    vnxi_slot_give(slot);
    return result_of(agent, posted, &error);
}

nixl_capi_status_t
nixl_capi_get_xfer_status(nixl_capi_agent_t agent,
                          nixl_capi_xfer_req_t req_hndl)
{
    vnx_error_t error;

    if (vnxi_handle_is_marked(req_hndl) &&
        vnxi_handle_is(agent, VNXI_KIND_AGENT)) {
        return NIXL_CAPI_SUCCESS;
    }
    vnxi_slot_t *slot = request_take(agent, req_hndl);
    if (slot == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    vnx_status_t status = vnx_xfer_status(slot->object, &error);
    if (status == VNX_OK) {
        vnxi_slot_mark(slot, true);
    }
    vnxi_slot_give(slot);
    return result_of(agent, status, &error);
}

/* The backend's name if it was created, else that of the one that stands for
 * it: "UCX" for "SHM".  NULL: none. */
static const char *
created_backend(vnx_agent_t *agent, const char *name)
{
    vnx_param_t param;

    for (size_t i = 0;
         name != NULL &&
         vnx_agent_backend_param(agent, name, 0, &param, NULL) != VNX_OK;
         i++) {
        name = vnx_agent_plugin(agent, i);
    }
    return name;
}

nixl_capi_status_t
nixl_capi_query_xfer_backend(nixl_capi_agent_t agent,
                             nixl_capi_xfer_req_t req_hndl,
                             nixl_capi_backend_t *backend)
{
    void *handle = NULL;
    vnxi_slot_t *slot = backend != NULL ? vnxi_capi_agent_share(agent) : NULL;
    vnxi_slot_t *request = slot != NULL ? request_take(agent, req_hndl) : NULL;

    if (request != NULL) {
        const char *name = created_backend(vnxi_capi_agent_of(slot)->agent,
                                           vnx_xfer_backend(request->object));
        vnxi_slot_give(request);
        handle = name != NULL ? vnxi_capi_backend_handle(agent, name) : NULL;
    }
    if (slot != NULL) {
        vnxi_slot_leave(slot);
    }
    if (request == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    if (handle == NULL) {
        return NIXL_CAPI_ERROR_BACKEND;
    }
    *backend = handle;
    return NIXL_CAPI_SUCCESS;
}

nixl_capi_status_t
nixl_capi_estimate_xfer_cost(nixl_capi_agent_t agent,
                             nixl_capi_xfer_req_t req_hndl,
                             nixl_capi_opt_args_t opt_args,
                             int64_t *duration_us, int64_t *err_margin_us,
                             nixl_capi_cost_t *method)
{
    vnxi_slot_t *slot =
        duration_us != NULL && err_margin_us != NULL && method != NULL
            ? request_take(agent, req_hndl)
            : NULL;

    (void)opt_args;
    if (slot == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    vnx_xfer_estimate(slot->object, duration_us, err_margin_us);
    vnxi_slot_give(slot);
    *method = NIXL_CAPI_COST_ANALYTICAL_BACKEND;
    return NIXL_CAPI_SUCCESS;
}

static nixl_capi_status_t
read_telemetry(const vnx_xfer_t *xfer, nixl_capi_xfer_telemetry_t telemetry)
{
    vnx_xfer_telemetry_t figures;
    vnx_status_t status = vnx_xfer_status(xfer, NULL);

    if (status == VNX_OK) {
        status = vnx_xfer_telemetry(xfer, &figures, NULL);
    }
    if (status != VNX_OK) {
        return vnxi_abi_status(status);
    }
    *telemetry = (struct nixl_capi_xfer_telemetry_s){
        .start_time_us = figures.start_ns / 1000,
        .post_duration_us = figures.post_us,
        .xfer_duration_us = figures.xfer_us,
        .total_bytes = figures.total_bytes,
        .desc_count = figures.desc_count,
    };
    return NIXL_CAPI_SUCCESS;
}

nixl_capi_status_t
nixl_capi_get_xfer_telemetry(nixl_capi_agent_t agent,
                             nixl_capi_xfer_req_t req_hndl,
                             nixl_capi_xfer_telemetry_t telemetry)
{
    nixl_capi_status_t status = NIXL_CAPI_ERROR_INVALID_PARAM;
    vnxi_slot_t *slot =
        telemetry != NULL ? vnxi_capi_agent_share(agent) : NULL;
    vnxi_slot_t *request = slot != NULL ? request_take(agent, req_hndl) : NULL;

    if (request != NULL) {
        status = vnxi_capi_agent_of(slot)->has_telemetry
                     ? read_telemetry(request->object, telemetry)
                     : NIXL_CAPI_ERROR_NO_TELEMETRY;
        vnxi_slot_give(request);
    }
    if (slot != NULL) {
        vnxi_slot_leave(slot);
    }
    return status;
}

/* -- Releasing -------------------------------------------------------------
 */

nixl_capi_status_t
nixl_capi_release_xfer_req(nixl_capi_agent_t agent, nixl_capi_xfer_req_t req)
{
    vnx_error_t error;
    vnxi_slot_t *slot = request_take(agent, req);

    if (slot == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    vnxi_slot_mark(slot, false);
    vnx_status_t status = vnx_xfer_release(slot->object, &error);
    if (status == VNX_OK) {
        slot->object = NULL;
    } else {
        slot->owner = NULL; /* destroying the handle gives the transfer up */
    }
    vnxi_slot_give(slot);
    return result_of(agent, status, &error);
}

nixl_capi_status_t
nixl_capi_destroy_xfer_req(nixl_capi_xfer_req_t req)
{
    vnxi_slot_t *slot = vnxi_slot_take(req);

    if (slot == NULL) {
        return vnxi_abi_nothing_to_destroy(req);
    }
    if (slot->object != NULL) {
        if (vnxi_handle_is(slot->owner, VNXI_KIND_AGENT)) {
            vnxi_slot_give(slot);
            return NIXL_CAPI_ERROR_INVALID_STATE;
        }
        vnx_xfer_abandon(slot->object);
    }
    vnxi_slot_free(slot);
    return NIXL_CAPI_SUCCESS;
}
