#include "capi/options.h"

#include <stdlib.h>
#include <string.h>
#include <vnx/listener.h>

#include "capi/abi.h"
#include "capi/handles.h"

/* -- For calls -------------------------------------------------------------
 */

nixl_capi_status_t
vnxi_options_select(nixl_capi_opt_args_t args, const void *agent,
                    vnxi_selection_t *selection_p)
{
    nixl_capi_status_t status = NIXL_CAPI_SUCCESS;

    selection_p->count = 0;
    selection_p->backends = NULL;
    if (args == NULL) {
        return NIXL_CAPI_SUCCESS;
    }
    vnxi_slot_t *slot = vnxi_slot_take(args, VNXI_KIND_OPTIONS);
    if (slot == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    const vnxi_options_t *options = slot->object;
    for (size_t i = 0; i < options->backend_count; i++) {
        if (options->backends[i].agent != agent) {
            status = NIXL_CAPI_ERROR_INVALID_PARAM;
        }
        selection_p->names[i] = options->backends[i].name;
    }
    selection_p->count = options->backend_count;
    vnxi_slot_give(slot);
    selection_p->names[selection_p->count] = NULL;
    if (selection_p->count > 0) {
        selection_p->backends = selection_p->names;
    }
    return status;
}

nixl_capi_status_t
vnxi_options_address(nixl_capi_opt_args_t args, char **host_p, int *port_p)
{
    nixl_capi_status_t status = NIXL_CAPI_ERROR_INVALID_PARAM;
    vnxi_slot_t *slot = vnxi_slot_take(args, VNXI_KIND_OPTIONS);

    if (slot == NULL) {
        return status;
    }
    const vnxi_options_t *options = slot->object;
    if (options->host != NULL && options->host[0] != '\0') {
        *host_p = strdup(options->host);
        *port_p = options->port != 0 ? options->port : VNX_LISTENER_PORT;
        status = *host_p != NULL ? NIXL_CAPI_SUCCESS : NIXL_CAPI_ERROR_BACKEND;
    }
    vnxi_slot_give(slot);
    return status;
}

/* -- The object ------------------------------------------------------------
 */

nixl_capi_status_t
nixl_capi_create_opt_args(nixl_capi_opt_args_t *args)
{
    if (args == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    vnxi_options_t *options = calloc(1, sizeof *options);
    void *handle = options != NULL ? vnxi_handle_create(VNXI_KIND_OPTIONS,
                                                        options, NULL, NULL)
                                   : NULL;
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
    vnxi_slot_t *slot = vnxi_slot_take(args, VNXI_KIND_OPTIONS);

    if (slot == NULL) {
        return vnxi_abi_nothing_to_destroy(args);
    }
    vnxi_options_t *options = slot->object;
    free(options->notif.data);
    free(options->custom.data);
    free(options->host);
    free(options);
    vnxi_slot_free(slot);
    return NIXL_CAPI_SUCCESS;
}

nixl_capi_status_t
nixl_capi_opt_args_add_backend(nixl_capi_opt_args_t args,
                               nixl_capi_backend_t backend)
{
    vnxi_slot_t *added = vnxi_slot_take(backend, VNXI_KIND_BACKEND);

    if (added == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    const char *name = added->object;
    const void *agent = added->owner;
    vnxi_slot_give(added);

    nixl_capi_status_t status = NIXL_CAPI_ERROR_BACKEND;
    vnxi_slot_t *slot = vnxi_slot_take(args, VNXI_KIND_OPTIONS);
    if (slot == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    vnxi_options_t *options = slot->object;
    if (options->backend_count < VNXI_SELECTED_MAX) {
        options->backends[options->backend_count].agent = agent;
        options->backends[options->backend_count].name = name;
        options->backend_count++;
        status = NIXL_CAPI_SUCCESS;
    }
    vnxi_slot_give(slot);
    return status;
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

/* The bytes at this offset of the options. */
static vnxi_blob_t *
blob_at(const vnxi_slot_t *slot, size_t offset)
{
    return (vnxi_blob_t *)((char *)slot->object + offset);
}

static nixl_capi_status_t
set_bytes(nixl_capi_opt_args_t args, size_t offset, const void *data,
          size_t len)
{
    void *copy;

    if (data == NULL && len > 0) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    vnxi_slot_t *slot = vnxi_slot_take(args, VNXI_KIND_OPTIONS);
    if (slot == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    bool is_copied = copy_bytes(data, len, &copy);
    if (is_copied) {
        vnxi_blob_t *blob = blob_at(slot, offset);
        free(blob->data);
        *blob = (vnxi_blob_t){copy, len};
    }
    vnxi_slot_give(slot);
    return is_copied ? NIXL_CAPI_SUCCESS : NIXL_CAPI_ERROR_BACKEND;
}

static nixl_capi_status_t
get_bytes(nixl_capi_opt_args_t args, size_t offset, void **data, size_t *len)
{
    void *copy;
    vnxi_slot_t *slot = data != NULL && len != NULL
                            ? vnxi_slot_take(args, VNXI_KIND_OPTIONS)
                            : NULL;

    if (slot == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    const vnxi_blob_t *blob = blob_at(slot, offset);
    bool is_copied = copy_bytes(blob->data, blob->len, &copy);
    if (is_copied) {
        *data = copy;
        *len = blob->len;
    }
    vnxi_slot_give(slot);
    return is_copied ? NIXL_CAPI_SUCCESS : NIXL_CAPI_ERROR_BACKEND;
}

nixl_capi_status_t
nixl_capi_opt_args_set_notif_msg(nixl_capi_opt_args_t args, const void *data,
                                 size_t len)
{
    return set_bytes(args, offsetof(vnxi_options_t, notif), data, len);
}

nixl_capi_status_t
nixl_capi_opt_args_get_notif_msg(nixl_capi_opt_args_t args, void **data,
                                 size_t *len)
{
    return get_bytes(args, offsetof(vnxi_options_t, notif), data, len);
}

nixl_capi_status_t
nixl_capi_opt_args_set_custom_param(nixl_capi_opt_args_t args,
                                    const void *data, size_t len)
{
    return set_bytes(args, offsetof(vnxi_options_t, custom), data, len);
}

nixl_capi_status_t
nixl_capi_opt_args_get_custom_param(nixl_capi_opt_args_t args, void **data,
                                    size_t *len)
{
    return get_bytes(args, offsetof(vnxi_options_t, custom), data, len);
}

/* -- Flags and the address -------------------------------------------------
 */

static nixl_capi_status_t
set_flag(nixl_capi_opt_args_t args, size_t offset, bool flag)
{
    vnxi_slot_t *slot = vnxi_slot_take(args, VNXI_KIND_OPTIONS);

    if (slot == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    *(bool *)((char *)slot->object + offset) = flag;
    vnxi_slot_give(slot);
    return NIXL_CAPI_SUCCESS;
}

static nixl_capi_status_t
get_flag(nixl_capi_opt_args_t args, size_t offset, bool *flag)
{
    vnxi_slot_t *slot =
        flag != NULL ? vnxi_slot_take(args, VNXI_KIND_OPTIONS) : NULL;

    if (slot == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    *flag = *(const bool *)((const char *)slot->object + offset);
    vnxi_slot_give(slot);
    return NIXL_CAPI_SUCCESS;
}

nixl_capi_status_t
nixl_capi_opt_args_set_has_notif(nixl_capi_opt_args_t args, bool has_notif)
{
    return set_flag(args, offsetof(vnxi_options_t, has_notif), has_notif);
}

nixl_capi_status_t
nixl_capi_opt_args_get_has_notif(nixl_capi_opt_args_t args, bool *has_notif)
{
    return get_flag(args, offsetof(vnxi_options_t, has_notif), has_notif);
}

nixl_capi_status_t
nixl_capi_opt_args_set_skip_desc_merge(nixl_capi_opt_args_t args,
                                       bool skip_merge)
{
    return set_flag(args, offsetof(vnxi_options_t, no_merge), skip_merge);
}

nixl_capi_status_t
nixl_capi_opt_args_get_skip_desc_merge(nixl_capi_opt_args_t args,
                                       bool *skip_merge)
{
    return get_flag(args, offsetof(vnxi_options_t, no_merge), skip_merge);
}

nixl_capi_status_t
nixl_capi_opt_args_set_ip_addr(nixl_capi_opt_args_t args, const char *ip_addr)
{
    vnxi_slot_t *slot =
        ip_addr != NULL ? vnxi_slot_take(args, VNXI_KIND_OPTIONS) : NULL;

    if (slot == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    vnxi_options_t *options = slot->object;
    char *host = strdup(ip_addr);
    if (host != NULL) {
        free(options->host);
        options->host = host;
    }
    vnxi_slot_give(slot);
    return host != NULL ? NIXL_CAPI_SUCCESS : NIXL_CAPI_ERROR_BACKEND;
}

nixl_capi_status_t
nixl_capi_opt_args_set_port(nixl_capi_opt_args_t args, uint16_t port)
{
    vnxi_slot_t *slot = vnxi_slot_take(args, VNXI_KIND_OPTIONS);

    if (slot == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    vnxi_options_t *options = slot->object;
    options->port = port;
    vnxi_slot_give(slot);
    return NIXL_CAPI_SUCCESS;
}
