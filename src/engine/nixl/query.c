/*
 * Queries a storage backend about descriptors.
 */
#include <stdio.h>
#include <stdlib.h>

#include "base/error.h"
#include "engine/nixl/nixl.h"

#define OPERATION "query_memory"

/* Take the answer for one row.  We own its parameters; the library lends
 * nothing. */
static vnx_status_t
take_answer(const vnxi_capi_t *capi, vnxi_capi_query_t *answers, size_t i,
            vnx_mem_info_t *info, vnx_error_t *error)
{
    vnxi_nixl_params_t params = {0};
    vnxi_capi_params_t *handle = NULL;
    bool is_there = false;

    if (capi->query_resp_list_has_value(answers, i, &is_there) !=
        VNXI_CAPI_OK) {
        is_there = false;
    }
    info->is_there = is_there;
    if (!is_there) {
        return VNX_OK;
    }
    if (capi->query_resp_list_get_params(answers, i, &handle) !=
            VNXI_CAPI_OK ||
        vnxi_nixl_params_take(capi, handle, &params) != VNX_OK) {
        return vnxi_error_no_memory(error, OPERATION, 0);
    }
    info->params = params.at;
    info->param_count = params.count;
    return VNX_OK;
}

static vnx_status_t
take_answers(const vnxi_capi_t *capi, vnxi_capi_query_t *answers, size_t count,
             vnx_mem_info_t *infos, vnx_error_t *error)
{
    vnx_status_t status = VNX_OK;
    size_t found = 0;

    capi->query_resp_list_size(answers, &found);
    if (found != count) {
        return vnxi_error_set(error, VNX_ERR_BACKEND, OPERATION,
                              "NIXL answered %zu of %zu rows", found, count);
    }
    for (size_t i = 0; status == VNX_OK && i < count; i++) {
        status = take_answer(capi, answers, i, &infos[i], error);
    }
    return status;
}

static bool
fill(const vnxi_capi_t *capi, vnxi_capi_reg_list_t *list,
     const vnx_reg_desc_t *descs, size_t count)
{
    bool good = true;
    for (size_t i = 0; good && i < count; i++) {
        const vnx_desc_t *desc = &descs[i].desc;
        good = capi->reg_dlist_add_desc(list, desc->addr, desc->len, desc->dev,
                                        descs[i].meta_len > 0 ? descs[i].meta
                                                              : "",
                                        descs[i].meta_len) == VNXI_CAPI_OK;
    }
    return good;
}

static vnx_status_t
ask(vnxi_engine_t *engine, vnx_mem_t mem, const vnx_reg_desc_t *descs,
    size_t count, size_t backend, vnx_mem_info_t *infos, vnx_error_t *error)
{
    const vnxi_capi_t *capi = engine->capi;
    vnxi_capi_reg_list_t *list = NULL;
    vnxi_capi_query_t *answers = NULL;
    vnx_status_t status;
    char what[96];

    if (capi->create_reg_dlist((int)mem, &list) != VNXI_CAPI_OK) {
        return vnxi_error_no_memory(error, OPERATION, 0);
    }
    if (capi->create_query_resp_list(&answers) != VNXI_CAPI_OK ||
        !fill(capi, list, descs, count)) {
        status = vnxi_error_no_memory(error, OPERATION, count);
    } else {
        int code = capi->query_mem(engine->agent, list, answers,
                                   engine->backends[backend].options);
        snprintf(what, sizeof what, "querying the backend %s",
                 engine->backends[backend].name);
        status = code == VNXI_CAPI_OK
                     ? take_answers(capi, answers, count, infos, error)
                     : vnxi_nixl_failed(code, OPERATION, what, error);
    }
    if (answers != NULL) {
        capi->destroy_query_resp_list(answers);
    }
    capi->destroy_reg_dlist(list);
    return status;
}

vnx_status_t
vnxi_nixl_query(vnxi_engine_t *engine, vnx_mem_t mem,
                const vnx_reg_desc_t *descs, size_t count, const char *backend,
                vnx_mem_info_t *infos, vnx_error_t *error)
{
    const char *const backends[] = {backend, NULL};
    uint32_t set = 0;

    vnx_status_t status =
        vnxi_nixl_backend_set(engine, backends, OPERATION, &set, error);
    if (status != VNX_OK || count == 0) {
        return status;
    }
    if (vnx_mem_name(mem) == NULL ||
        (vnxi_nixl_backends_for(engine, mem) & set) == 0) {
        return vnxi_error_set(
            error, VNX_ERR_NOT_SUPPORTED, OPERATION,
            "the backend %s does not accept %s memory", backend,
            vnx_mem_name(mem) != NULL ? vnx_mem_name(mem) : "such");
    }
    if (!vnxi_nixl_enter(engine)) {
        return vnxi_nixl_stopped(OPERATION, error);
    }
    status = ask(engine, mem, descs, count, (size_t)__builtin_ctz(set), infos,
                 error);
    vnxi_nixl_leave(engine);
    return status;
}
