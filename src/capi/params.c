#include "capi/params.h"

#include <stdlib.h>
#include <string.h>

#include "capi/abi.h"
#include "capi/handles.h"

/* -- Sets ------------------------------------------------------------------
 */

static bool
make_room(vnxi_param_set_t *set)
{
    if (set->count < set->room) {
        return true;
    }
    size_t room = set->room ? 2 * set->room : 8;
    vnx_param_t *at = realloc(set->at, room * sizeof *at);
    if (at == NULL) {
        return false;
    }
    set->at = at;
    set->room = room;
    return true;
}

bool
vnxi_param_set_add(vnxi_param_set_t *set, const char *key, const char *value)
{
    char *new_key = NULL, *new_value = strdup(value);
    size_t i = 0;

    if (new_value == NULL) {
        return false;
    }
    while (i < set->count && strcmp(set->at[i].key, key) != 0) {
        i++;
    }
    if (i < set->count) {
        free((char *)set->at[i].value);
        set->at[i].value = new_value;
        return true;
    }
    if (!make_room(set) || (new_key = strdup(key)) == NULL) {
        free(new_value);
        return false;
    }
    set->at[set->count++] = (vnx_param_t){new_key, new_value};
    return true;
}

bool
vnxi_param_set_copy(vnxi_param_set_t *set, const vnx_param_t *from,
                    size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (!vnxi_param_set_add(set, from[i].key, from[i].value)) {
            vnxi_param_set_fini(set);
            return false;
        }
    }
    return true;
}

void
vnxi_param_set_fini(vnxi_param_set_t *set)
{
    for (size_t i = 0; i < set->count; i++) {
        free((char *)set->at[i].key);
        free((char *)set->at[i].value);
    }
    free(set->at);
    *set = (vnxi_param_set_t){0};
}

nixl_capi_status_t
vnxi_param_set_publish(vnxi_param_set_t *set, nixl_capi_params_t *params_p)
{
    vnxi_param_set_t *object = malloc(sizeof *object);
    void *handle = NULL;

    if (object != NULL) {
        *object = *set;
        handle = vnxi_handle_create(VNXI_KIND_PARAMS, object, NULL, NULL);
    }
    if (handle == NULL) {
        vnxi_param_set_fini(set);
        free(object);
        return NIXL_CAPI_ERROR_BACKEND;
    }
    *params_p = handle;
    return NIXL_CAPI_SUCCESS;
}

/* -- The interface ---------------------------------------------------------
 */

nixl_capi_status_t
nixl_capi_create_params(nixl_capi_params_t *params)
{
    vnxi_param_set_t empty = {0};

    return params != NULL ? vnxi_param_set_publish(&empty, params)
                          : NIXL_CAPI_ERROR_INVALID_PARAM;
}

nixl_capi_status_t
nixl_capi_destroy_params(nixl_capi_params_t params)
{
    vnxi_param_set_t *set = vnxi_handle_end(params, VNXI_KIND_PARAMS);

    if (set == NULL) {
        return vnxi_abi_nothing_to_destroy(params);
    }
    vnxi_param_set_fini(set);
    free(set);
    return NIXL_CAPI_SUCCESS;
}

nixl_capi_status_t
nixl_capi_params_add(nixl_capi_params_t params, const char *key,
                     const char *value)
{
    vnxi_param_set_t *set = vnxi_object(params, VNXI_KIND_PARAMS);

    if (set == NULL || key == NULL || value == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    return vnxi_param_set_add(set, key, value) ? NIXL_CAPI_SUCCESS
                                               : NIXL_CAPI_ERROR_BACKEND;
}

nixl_capi_status_t
nixl_capi_params_is_empty(nixl_capi_params_t params, bool *is_empty)
{
    const vnxi_param_set_t *set = vnxi_object(params, VNXI_KIND_PARAMS);

    if (set == NULL || is_empty == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    *is_empty = set->count == 0;
    return NIXL_CAPI_SUCCESS;
}

/* -- Iterators -------------------------------------------------------------
 */

/* A copy of the set as it was, and the place of the next pair. */
typedef struct iterator {
    vnxi_param_set_t set;
    size_t next;
} iterator_t;

nixl_capi_status_t
nixl_capi_params_create_iterator(nixl_capi_params_t params,
                                 nixl_capi_param_iter_t *iter)
{
    const vnxi_param_set_t *set = vnxi_object(params, VNXI_KIND_PARAMS);
    void *handle = NULL;

    if (set == NULL || iter == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    iterator_t *iterator = calloc(1, sizeof *iterator);
    if (iterator != NULL &&
        vnxi_param_set_copy(&iterator->set, set->at, set->count)) {
        handle = vnxi_handle_create(VNXI_KIND_ITERATOR, iterator, NULL, NULL);
    }
    if (handle == NULL) {
        if (iterator != NULL) {
            vnxi_param_set_fini(&iterator->set);
        }
        free(iterator);
        return NIXL_CAPI_ERROR_BACKEND;
    }
    *iter = handle;
    return NIXL_CAPI_SUCCESS;
}

nixl_capi_status_t
nixl_capi_params_iterator_next(nixl_capi_param_iter_t iter, const char **key,
                               const char **value, bool *has_next)
{
    iterator_t *iterator = vnxi_object(iter, VNXI_KIND_ITERATOR);

    if (iterator == NULL || key == NULL || value == NULL || has_next == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    if (iterator->next < iterator->set.count) {
        *key = iterator->set.at[iterator->next].key;
        *value = iterator->set.at[iterator->next].value;
        iterator->next++;
    }
    *has_next = iterator->next < iterator->set.count;
    return NIXL_CAPI_SUCCESS;
}

nixl_capi_status_t
nixl_capi_params_destroy_iterator(nixl_capi_param_iter_t iter)
{
    iterator_t *iterator = vnxi_handle_end(iter, VNXI_KIND_ITERATOR);

    if (iterator == NULL) {
        return vnxi_abi_nothing_to_destroy(iter);
    }
    vnxi_param_set_fini(&iterator->set);
    free(iterator);
    return NIXL_CAPI_SUCCESS;
}
