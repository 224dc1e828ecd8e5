#include "capi/options.h"

#include <stdlib.h>
#include <string.h>
#include <vnx/listener.h>

#include "capi/abi.h"

/* -- For calls -------------------------------------------------------------
 */

nixl_capi_status_t
vnxi_options_select(nixl_capi_opt_args_t args, const void *agent,
                    vnxi_selection_t *selection_p)
{
    const vnxi_options_t *options = vnxi_options(args);

    selection_p->count = 0;
    selection_p->backends = NULL;
    if (options == NULL) {
        return args == NULL ? NIXL_CAPI_SUCCESS
                            : NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    for (size_t i = 0; i < options->backend_count; i++) {
        if (options->backends[i].agent != agent) {
            return NIXL_CAPI_ERROR_INVALID_PARAM;
        }
        selection_p->names[i] = options->backends[i].name;
    }
    selection_p->count = options->backend_count;
    selection_p->names[selection_p->count] = NULL;
    if (selection_p->count > 0) {
        selection_p->backends = selection_p->names;
    }
    return NIXL_CAPI_SUCCESS;
}

int
vnxi_options_port(const vnxi_options_t *options)
{
    return options->port != 0 ? options->port : VNX_LISTENER_PORT;
}

/* -- The object ------------------------------------------------------------
 */

nixl_capi_status_t
nixl_capi_create_opt_args(nixl_capi_opt_args_t *args)
{
    if (args == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    vnxi_options_t *options = malloc(sizeof *options);
    void *handle = NULL;

    if (options != NULL) {
        memset(options, 0, offsetof(vnxi_options_t, backends));
        handle = vnxi_handle_create(VNXI_KIND_OPTIONS, options, NULL, NULL);
    }
    if (handle == NULL) {
        free(options);
        return NIXL_CAPI_ERROR_BACKEND;
    }
    *args = handle;
    return NIXL_CAPI_SUCCESS;
}

nixl_capi_status_t
nixl_capi_destroy_opt_args(nixl_capi_opt_args_t args)
{
    vnxi_options_t *options = vnxi_handle_end(args, VNXI_KIND_OPTIONS);

    if (options == NULL) {
        return vnxi_abi_nothing_to_destroy(args);
    }
    free(options->notif.data);
    free(options->custom.data);
    free(options->host);
    free(options);
    return NIXL_CAPI_SUCCESS;
}

nixl_capi_status_t
nixl_capi_opt_args_add_backend(nixl_capi_opt_args_t args,
                               nixl_capi_backend_t backend)
{
    vnxi_options_t *options = vnxi_options(args);
    const char *name = vnxi_object(backend, VNXI_KIND_BACKEND);

    if (options == NULL || name == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    if (options->backend_count == VNXI_SELECTED_MAX) {
        return NIXL_CAPI_ERROR_BACKEND;
    }
    options->backends[options->backend_count].agent =
        vnxi_slot_of(backend)->owner;
    options->backends[options->backend_count].name = name;
    options->backend_count++;
    return NIXL_CAPI_SUCCESS;
}

/* -- Bytes -----------------------------------------------------------------
 */

/* An owned copy; NULL if `len` is 0.  False: no memory. */
static bool
copy_bytes(const void *data, size_t len, void **copy_p)
{
    *copy_p = NULL;
    if (len == 0) {
        return true;
    }
    *copy_p = malloc(len);
    if (*copy_p == NULL) {
        return false;
    }
    memcpy(*copy_p, data, len);
    return true;
}

/* `blob` is NULL if the caller passed an invalid handle of options. */
static nixl_capi_status_t
set_bytes(vnxi_blob_t *blob, const void *data, size_t len)
{
    void *copy;

    if (blob == NULL || (data == NULL && len > 0)) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    if (!copy_bytes(data, len, &copy)) {
        return NIXL_CAPI_ERROR_BACKEND;
    }
    free(blob->data);
    *blob = (vnxi_blob_t){copy, len};
    return NIXL_CAPI_SUCCESS;
}

static nixl_capi_status_t
get_bytes(const vnxi_blob_t *blob, void **data, size_t *len)
{
    void *copy;

    if (blob == NULL || data == NULL || len == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    if (!copy_bytes(blob->data, blob->len, &copy)) {
        return NIXL_CAPI_ERROR_BACKEND;
    }
    *data = copy;
    *len = blob->len;
    return NIXL_CAPI_SUCCESS;
}

static vnxi_blob_t *
notif_of(nixl_capi_opt_args_t args)
{
    vnxi_options_t *options = vnxi_options(args);
    return options != NULL ? &options->notif : NULL;
}

static vnxi_blob_t *
custom_of(nixl_capi_opt_args_t args)
{
    vnxi_options_t *options = vnxi_options(args);
    return options != NULL ? &options->custom : NULL;
}

nixl_capi_status_t
nixl_capi_opt_args_set_notif_msg(nixl_capi_opt_args_t args, const void *data,
                                 size_t len)
{
    return set_bytes(notif_of(args), data, len);
}

nixl_capi_status_t
nixl_capi_opt_args_get_notif_msg(nixl_capi_opt_args_t args, void **data,
                                 size_t *len)
{
    return get_bytes(notif_of(args), data, len);
}

nixl_capi_status_t
nixl_capi_opt_args_set_custom_param(nixl_capi_opt_args_t args,
                                    const void *data, size_t len)
{
    return set_bytes(custom_of(args), data, len);
}

nixl_capi_status_t
nixl_capi_opt_args_get_custom_param(nixl_capi_opt_args_t args, void **data,
                                    size_t *len)
{
    return get_bytes(custom_of(args), data, len);
}

/* -- Flags and the address -------------------------------------------------
 */

nixl_capi_status_t
nixl_capi_opt_args_set_has_notif(nixl_capi_opt_args_t args, bool has_notif)
{
    vnxi_options_t *options = vnxi_options(args);

    if (options == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    options->has_notif = has_notif;
    return NIXL_CAPI_SUCCESS;
}

nixl_capi_status_t
nixl_capi_opt_args_get_has_notif(nixl_capi_opt_args_t args, bool *has_notif)
{
    const vnxi_options_t *options = vnxi_options(args);

    if (options == NULL || has_notif == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    *has_notif = options->has_notif;
    return NIXL_CAPI_SUCCESS;
}

nixl_capi_status_t
nixl_capi_opt_args_set_skip_desc_merge(nixl_capi_opt_args_t args,
                                       bool skip_merge)
{
    vnxi_options_t *options = vnxi_options(args);

    if (options == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    options->no_merge = skip_merge;
    return NIXL_CAPI_SUCCESS;
}

nixl_capi_status_t
nixl_capi_opt_args_get_skip_desc_merge(nixl_capi_opt_args_t args,
                                       bool *skip_merge)
{
    const vnxi_options_t *options = vnxi_options(args);

    if (options == NULL || skip_merge == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    *skip_merge = options->no_merge;
    return NIXL_CAPI_SUCCESS;
}

nixl_capi_status_t
nixl_capi_opt_args_set_ip_addr(nixl_capi_opt_args_t args, const char *ip_addr)
{
    vnxi_options_t *options = vnxi_options(args);

    if (options == NULL || ip_addr == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    char *host = strdup(ip_addr);
    if (host == NULL) {
        return NIXL_CAPI_ERROR_BACKEND;
    }
    free(options->host);
    options->host = host;
    return NIXL_CAPI_SUCCESS;
}

nixl_capi_status_t
nixl_capi_opt_args_set_port(nixl_capi_opt_args_t args, uint16_t port)
{
    vnxi_options_t *options = vnxi_options(args);

    if (options == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    options->port = port;
    return NIXL_CAPI_SUCCESS;
}
