/*
 * Sets of parameters.
 */
#ifndef VNXI_CAPI_PARAMS_H
#define VNXI_CAPI_PARAMS_H

#include <stdbool.h>
#include <stddef.h>
#include <vnx/nixl_capi.h>
#include <vnx/vnx.h>

typedef struct vnxi_param_set {
    vnx_param_t *at; /* owned, with the texts */
    size_t count, room;
} vnxi_param_set_t; /* all zeros: empty */

/* Set a key.  False: no memory; the set is unchanged. */
bool vnxi_param_set_add(vnxi_param_set_t *set, const char *key,
                        const char *value);

/* Add these to an empty set.  False: no memory; the set is empty. */
bool vnxi_param_set_copy(vnxi_param_set_t *set, const vnx_param_t *from,
                         size_t count);

void vnxi_param_set_fini(vnxi_param_set_t *set);

/* Make a handle for the set, which is moved; it is freed if that fails. */
nixl_capi_status_t vnxi_param_set_publish(vnxi_param_set_t *set,
                                          nixl_capi_params_t *params_p);

#endif
