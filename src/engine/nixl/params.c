/*
 * Copies key and value pairs of the library: its iterator lends texts that the
 * next step overwrites.
 */
#include <stdlib.h>
#include <string.h>

#include "engine/nixl/nixl.h"

void
vnxi_nixl_params_fini(vnxi_nixl_params_t *params)
{
    for (size_t i = 0; i < params->count; i++) {
        free((char *)params->at[i].key);
        free((char *)params->at[i].value);
    }
    free(params->at);
    *params = (vnxi_nixl_params_t){0};
}

static bool
append(vnxi_nixl_params_t *params, const char *key, const char *value)
{
    vnx_param_t *grown =
        realloc(params->at, (params->count + 1) * sizeof *grown);
    if (grown == NULL) {
        return false;
    }
    params->at = grown;
    grown[params->count] = (vnx_param_t){strdup(key), strdup(value)};
    params->count++;
    return grown[params->count - 1].key != NULL &&
           grown[params->count - 1].value != NULL;
}

static bool
copy_all(const vnxi_capi_t *capi, vnxi_capi_params_t *params,
         vnxi_nixl_params_t *out)
{
    vnxi_capi_param_iter_t *iter = NULL;
    const char *key = NULL, *value = NULL;
    bool has_next = true, good = true;

    if (capi->params_create_iterator(params, &iter) != VNXI_CAPI_OK) {
        return false;
    }
    while (good && has_next) {
        good = capi->params_iterator_next(iter, &key, &value, &has_next) ==
                   VNXI_CAPI_OK &&
               append(out, key, value);
    }
    capi->params_destroy_iterator(iter);
    return good;
}

static int
by_key(const void *a, const void *b)
{
    const vnx_param_t *left = a, *right = b;
    return strcmp(left->key, right->key);
}

vnx_status_t
vnxi_nixl_params_take(const vnxi_capi_t *capi, vnxi_capi_params_t *params,
                      vnxi_nixl_params_t *params_p)
{
    vnxi_nixl_params_t copy = {0};
    bool is_empty = true;

    /* For an empty set, the iterator does not write its outputs. */
    bool good = capi->params_is_empty(params, &is_empty) == VNXI_CAPI_OK &&
                (is_empty || copy_all(capi, params, &copy));
    capi->destroy_params(params);
    if (!good) {
        vnxi_nixl_params_fini(&copy);
        return VNX_ERR_NO_MEMORY;
    }
    if (copy.count > 0) {
        qsort(copy.at, copy.count, sizeof *copy.at, by_key);
    }
    *params_p = copy;
    return VNX_OK;
}
