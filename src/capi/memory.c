/*
 * Registering memory, asking storage, memory views.
 */
#include <stdlib.h>

#include "capi/abi.h"
#include "capi/agent.h"
#include "capi/options.h"
#include "capi/params.h"
#include "capi/rows.h"

/* vnx_agent_register() or vnx_agent_deregister(). */
typedef vnx_status_t (*memory_fn)(vnx_agent_t *, vnx_mem_t,
                                  const vnx_reg_desc_t *, size_t,
                                  const char *const *, vnx_error_t *);

static nixl_capi_status_t
change_rows(const vnxi_capi_agent_t *object, const vnxi_rows_t *rows,
            const vnxi_selection_t *selection, memory_fn call)
{
    vnx_error_t error;
    vnx_status_t status =
        call(object->agent, (vnx_mem_t)rows->mem, rows->at.reg, rows->count,
             selection->backends, &error);
    nixl_capi_status_t result = vnxi_capi_result(object, status, &error);

    /* As in NIXL: if none was named, no backend is found. */
    return status == VNX_ERR_NOT_SUPPORTED && selection->count == 0
               ? NIXL_CAPI_ERROR_NOT_FOUND
               : result;
}

/* `empty`: the result for a list without descriptors. */
static nixl_capi_status_t
change_memory(nixl_capi_agent_t agent, nixl_capi_reg_dlist_t dlist,
              nixl_capi_opt_args_t opt_args, memory_fn call,
              nixl_capi_status_t empty)
{
    const vnxi_rows_t *rows = vnxi_rows(dlist, VNXI_KIND_REG_ROWS);
    vnxi_selection_t selection;
    nixl_capi_status_t status =
        vnxi_options_select(opt_args, agent, &selection);
    vnxi_slot_t *slot = rows != NULL && status == NIXL_CAPI_SUCCESS
                            ? vnxi_capi_agent_share(agent)
                            : NULL;

    if (slot == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    status = rows->count == 0 ? empty
                              : change_rows(vnxi_capi_agent_of(slot), rows,
                                            &selection, call);
    vnxi_slot_leave(slot);
    return status;
}

nixl_capi_status_t
nixl_capi_register_mem(nixl_capi_agent_t agent, nixl_capi_reg_dlist_t dlist,
                       nixl_capi_opt_args_t opt_args)
{
    return change_memory(agent, dlist, opt_args, vnx_agent_register,
                         NIXL_CAPI_ERROR_BACKEND);
}

nixl_capi_status_t
nixl_capi_deregister_mem(nixl_capi_agent_t agent, nixl_capi_reg_dlist_t dlist,
                         nixl_capi_opt_args_t opt_args)
{
    return change_memory(agent, dlist, opt_args, vnx_agent_deregister,
                         NIXL_CAPI_SUCCESS);
}

/* -- Answers of storage ----------------------------------------------------
 */

typedef struct answers {
    vnx_mem_info_t *at; /* owned */
    size_t count;
} answers_t;

nixl_capi_status_t
nixl_capi_create_query_resp_list(nixl_capi_query_resp_list_t *list)
{
    if (list == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    answers_t *answers = calloc(1, sizeof *answers);
    void *handle = answers != NULL ? vnxi_handle_create(VNXI_KIND_ANSWERS,
                                                        answers, NULL, NULL)
                                   : NULL;
    if (handle == NULL) {
        free(answers);
        return NIXL_CAPI_ERROR_BACKEND;
    }
    *list = handle;
    return NIXL_CAPI_SUCCESS;
}

nixl_capi_status_t
nixl_capi_destroy_query_resp_list(nixl_capi_query_resp_list_t list)
{
    answers_t *answers = vnxi_handle_end(list, VNXI_KIND_ANSWERS);

    if (answers == NULL) {
        return vnxi_abi_nothing_to_destroy(list);
    }
    vnx_mem_infos_free(answers->at, answers->count);
    free(answers);
    return NIXL_CAPI_SUCCESS;
}

nixl_capi_status_t
nixl_capi_query_resp_list_size(nixl_capi_query_resp_list_t list, size_t *size)
{
    const answers_t *answers = vnxi_object(list, VNXI_KIND_ANSWERS);

    if (answers == NULL || size == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    *size = answers->count;
    return NIXL_CAPI_SUCCESS;
}

nixl_capi_status_t
nixl_capi_query_resp_list_has_value(nixl_capi_query_resp_list_t list,
                                    size_t index, bool *has_value)
{
    const answers_t *answers = vnxi_object(list, VNXI_KIND_ANSWERS);

    if (answers == NULL || has_value == NULL || index >= answers->count) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    *has_value = answers->at[index].is_there;
    return NIXL_CAPI_SUCCESS;
}

nixl_capi_status_t
nixl_capi_query_resp_list_get_params(nixl_capi_query_resp_list_t list,
                                     size_t index, nixl_capi_params_t *params)
{
    const answers_t *answers = vnxi_object(list, VNXI_KIND_ANSWERS);
    vnxi_param_set_t set = {0};

    if (answers == NULL || params == NULL || index >= answers->count ||
        !answers->at[index].is_there) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    const vnx_mem_info_t *answer = &answers->at[index];
    return vnxi_param_set_copy(&set, answer->params, answer->param_count)
               ? vnxi_param_set_publish(&set, params)
               : NIXL_CAPI_ERROR_BACKEND;
}

/* Ask about the rows, and replace the answers. */
static nixl_capi_status_t
ask(const vnxi_capi_agent_t *object, const vnxi_rows_t *rows,
    const char *backend, answers_t *answers)
{
    vnx_mem_info_t *infos;
    vnx_error_t error;
    nixl_capi_status_t status =
        vnxi_capi_result(object,
                         vnx_agent_query_memory(
                             object->agent, (vnx_mem_t)rows->mem, rows->at.reg,
                             rows->count, backend, &infos, &error),
                         &error);

    if (status == NIXL_CAPI_SUCCESS) {
        vnx_mem_infos_free(answers->at, answers->count);
        *answers = (answers_t){infos, rows->count};
    }
    return status;
}

nixl_capi_status_t
nixl_capi_query_mem(nixl_capi_agent_t agent, nixl_capi_reg_dlist_t descs,
                    nixl_capi_query_resp_list_t resp,
                    nixl_capi_opt_args_t opt_args)
{
    const vnxi_rows_t *rows = vnxi_rows(descs, VNXI_KIND_REG_ROWS);
    answers_t *answers = vnxi_object(resp, VNXI_KIND_ANSWERS);
    vnxi_selection_t selection;
    nixl_capi_status_t status =
        vnxi_options_select(opt_args, agent, &selection);
    vnxi_slot_t *slot = rows != NULL && answers != NULL &&
                                status == NIXL_CAPI_SUCCESS &&
                                selection.count == 1
                            ? vnxi_capi_agent_share(agent)
                            : NULL;

    if (slot == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    status = ask(vnxi_capi_agent_of(slot), rows, selection.names[0], answers);
    vnxi_slot_leave(slot);
    return status;
}

/* -- Memory views ----------------------------------------------------------
 */

/* No backend has them. */
static nixl_capi_status_t
refuse_view(nixl_capi_agent_t agent, const void *descs, vnxi_kind_t kind,
            const nixl_capi_mem_view_t *mvh)
{
    return mvh != NULL && vnxi_handle_is(agent, VNXI_KIND_AGENT) &&
                   vnxi_handle_is(descs, kind)
               ? NIXL_CAPI_ERROR_BACKEND
               : NIXL_CAPI_ERROR_INVALID_PARAM;
}

nixl_capi_status_t
nixl_capi_prep_mem_view_local(nixl_capi_agent_t agent,
                              nixl_capi_xfer_dlist_t descs,
                              nixl_capi_mem_view_t *mvh,
                              nixl_capi_opt_args_t opt_args)
{
    (void)opt_args;
    return refuse_view(agent, descs, VNXI_KIND_XFER_ROWS, mvh);
}

nixl_capi_status_t
nixl_capi_prep_mem_view_remote(nixl_capi_agent_t agent,
                               nixl_capi_remote_dlist_t descs,
                               nixl_capi_mem_view_t *mvh,
                               nixl_capi_opt_args_t opt_args)
{
    (void)opt_args;
    return refuse_view(agent, descs, VNXI_KIND_REMOTE_ROWS, mvh);
}

nixl_capi_status_t
nixl_capi_release_mem_view(nixl_capi_agent_t agent, nixl_capi_mem_view_t mvh)
{
    (void)agent;
    return vnxi_abi_nothing_to_destroy(mvh);
}
