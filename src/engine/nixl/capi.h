/*
 * The functions of the stock NIXL library (libnixl_capi.so, NIXL 0.10.1 and
 * later) that the engine loads.  vnx/nixl_capi.h has their prototypes; the
 * library of that header is ours, and the engine refuses to load it.
 *
 * Undocumented behaviour, found by experiment, that this engine relies on:
 *  - NIXL_CAPI_ERROR_NOT_FOUND is returned since 1.5, _BACKEND before;
 *  - a call that fails may have written its outputs; they are not valid then;
 *  - a memory type is an index into an array and is not checked;
 *  - NULL for `options` means "all backends, no notification";
 *  - options without a notification remove the one of an earlier post;
 *  - the library does not report the backend of a transfer, so this engine
 *    tries one backend at a time.
 */
#ifndef VNXI_NIXL_CAPI_H
#define VNXI_NIXL_CAPI_H

#include <stddef.h>
#include <vnx/nixl_capi.h>

/* The library reads the fields that it knows.  `room` is for fields of later
 * versions, which read as 0. */
typedef struct vnxi_capi_agent_config {
    nixl_capi_agent_config_t known;
    unsigned char room[216];
} vnxi_capi_agent_config_t;

/* Every function used here, as X(name).  They are looked up as "nixl_capi_"
 * followed by the name. */
#define VNXI_CAPI_TABLE(X)        \
    X(create_configured_agent)    \
    X(destroy_agent)              \
    X(get_local_md)               \
    X(load_remote_md)             \
    X(invalidate_remote_md)       \
    X(check_remote_md)            \
    X(get_available_plugins)      \
    X(destroy_string_list)        \
    X(string_list_size)           \
    X(string_list_get)            \
    X(get_plugin_params)          \
    X(get_backend_params)         \
    X(destroy_mem_list)           \
    X(mem_list_size)              \
    X(mem_list_get)               \
    X(create_params)              \
    X(destroy_params)             \
    X(params_add)                 \
    X(params_is_empty)            \
    X(params_create_iterator)     \
    X(params_iterator_next)       \
    X(params_destroy_iterator)    \
    X(create_backend)             \
    X(destroy_backend)            \
    X(create_opt_args)            \
    X(destroy_opt_args)           \
    X(opt_args_add_backend)       \
    X(opt_args_set_notif_msg)     \
    X(opt_args_set_has_notif)     \
    X(create_reg_dlist)           \
    X(destroy_reg_dlist)          \
    X(reg_dlist_add_desc)         \
    X(register_mem)               \
    X(deregister_mem)             \
    X(agent_make_connection)      \
    X(create_xfer_dlist)          \
    X(destroy_xfer_dlist)         \
    X(xfer_dlist_add_desc)        \
    X(xfer_dlist_clear)           \
    X(prep_xfer_dlist)            \
    X(release_xfer_dlist_handle)  \
    X(make_xfer_req)              \
    X(create_xfer_req)            \
    X(post_xfer_req)              \
    X(get_xfer_status)            \
    X(release_xfer_req)           \
    X(destroy_xfer_req)           \
    X(estimate_xfer_cost)         \
    X(create_notif_map)           \
    X(destroy_notif_map)          \
    X(notif_map_clear)            \
    X(notif_map_size)             \
    X(notif_map_get_agent_at)     \
    X(notif_map_get_notifs_size)  \
    X(notif_map_get_notif)        \
    X(get_notifs)                 \
    X(gen_notif)                  \
    X(create_query_resp_list)     \
    X(destroy_query_resp_list)    \
    X(query_resp_list_size)       \
    X(query_resp_list_has_value)  \
    X(query_resp_list_get_params) \
    X(query_mem)

typedef struct vnxi_capi {
/* NOLINTNEXTLINE(bugprone-macro-parentheses): a declaration */
#define VNXI_CAPI_MEMBER(name) __typeof__(nixl_capi_##name) *name;
    VNXI_CAPI_TABLE(VNXI_CAPI_MEMBER)
#undef VNXI_CAPI_MEMBER
} vnxi_capi_t;

#endif
