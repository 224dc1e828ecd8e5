/*
 * The C interface of the stock NIXL library (libnixl_capi.so, NIXL 0.10.1 and
 * later).  The library ships no header, so the types and functions used here
 * are declared in this file.
 *
 * Undocumented behaviour, found by experiment, that this engine relies on:
 *  - a call that fails may have written its outputs; they are not valid then;
 *  - a memory type is an index into an array and is not checked;
 *  - NULL for `options` means "all backends, no notification";
 *  - options without a notification remove the one of an earlier post;
 *  - the library does not report the backend of a transfer, so this engine
 *    tries one backend at a time.
 */
#ifndef VNXI_NIXL_CAPI_H
#define VNXI_NIXL_CAPI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct vnxi_capi_agent vnxi_capi_agent_t;
typedef struct vnxi_capi_backend vnxi_capi_backend_t;
typedef struct vnxi_capi_dlist vnxi_capi_dlist_t;
typedef struct vnxi_capi_mems vnxi_capi_mems_t;
typedef struct vnxi_capi_notifs vnxi_capi_notifs_t;
typedef struct vnxi_capi_options vnxi_capi_options_t;
typedef struct vnxi_capi_param_iter vnxi_capi_param_iter_t;
typedef struct vnxi_capi_params vnxi_capi_params_t;
typedef struct vnxi_capi_query vnxi_capi_query_t;
typedef struct vnxi_capi_reg_list vnxi_capi_reg_list_t;
typedef struct vnxi_capi_request vnxi_capi_request_t;
typedef struct vnxi_capi_strings vnxi_capi_strings_t;
typedef struct vnxi_capi_xfer_list vnxi_capi_xfer_list_t;

/* Return values; any other negative number is a failure too. */
enum {
    VNXI_CAPI_IN_PROGRESS = 1,
    VNXI_CAPI_OK = 0,
    VNXI_CAPI_INVALID_PARAM = -1,
    VNXI_CAPI_BACKEND = -2,
    VNXI_CAPI_NOT_FOUND = -6, /* since 1.5; -2 before */
};

enum { VNXI_CAPI_SYNC_RW = 2 };

/* The library reads the fields that it knows.  `room` is for fields of later
 * versions, which read as 0. */
typedef struct vnxi_capi_agent_config {
    bool progress_thread;
    bool listen_thread;
    int listen_port;
    int sync;
    unsigned num_workers; /* ignored by the library */
    uint64_t progress_delay_us;
    uint64_t listen_delay_us;
    bool telemetry;
    unsigned char room[216];
} vnxi_capi_agent_config_t;

_Static_assert(offsetof(vnxi_capi_agent_config_t, sync) == 8 &&
                   offsetof(vnxi_capi_agent_config_t, telemetry) == 32,
               "the library's layout");

/*
 * Every function used here: X(name, arguments).  All return an int status and
 * are looked up as "nixl_capi_" followed by the name.
 */
#define VNXI_CAPI_TABLE(X)                                                    \
    X(create_configured_agent,                                                \
      (const char *name, const vnxi_capi_agent_config_t *config,              \
       vnxi_capi_agent_t **agent_p))                                          \
    X(destroy_agent, (vnxi_capi_agent_t * agent))                             \
    X(get_local_md,                                                           \
      (vnxi_capi_agent_t * agent, void **data_p, size_t *len_p))              \
    X(load_remote_md, (vnxi_capi_agent_t * agent, const void *data,           \
                       size_t len, char **name_p))                            \
    X(invalidate_remote_md, (vnxi_capi_agent_t * agent, const char *name))    \
    X(check_remote_md, (vnxi_capi_agent_t * agent, const char *name,          \
                        vnxi_capi_xfer_list_t *descs))                        \
    X(get_available_plugins,                                                  \
      (vnxi_capi_agent_t * agent, vnxi_capi_strings_t * *names_p))            \
    X(destroy_string_list, (vnxi_capi_strings_t * names))                     \
    X(string_list_size, (vnxi_capi_strings_t * names, size_t * size_p))       \
    X(string_list_get,                                                        \
      (vnxi_capi_strings_t * names, size_t i, const char **name_p))           \
    X(get_plugin_params,                                                      \
      (vnxi_capi_agent_t * agent, const char *plugin,                         \
       vnxi_capi_mems_t **mems_p, vnxi_capi_params_t **params_p))             \
    X(get_backend_params,                                                     \
      (vnxi_capi_agent_t * agent, vnxi_capi_backend_t * backend,              \
       vnxi_capi_mems_t * *mems_p, vnxi_capi_params_t * *params_p))           \
    X(destroy_mem_list, (vnxi_capi_mems_t * mems))                            \
    X(mem_list_size, (vnxi_capi_mems_t * mems, size_t * size_p))              \
    X(mem_list_get, (vnxi_capi_mems_t * mems, size_t i, int *mem_p))          \
    X(create_params, (vnxi_capi_params_t * *params_p))                        \
    X(destroy_params, (vnxi_capi_params_t * params))                          \
    X(params_add,                                                             \
      (vnxi_capi_params_t * params, const char *key, const char *value))      \
    X(params_is_empty, (vnxi_capi_params_t * params, bool *is_empty_p))       \
    X(params_create_iterator,                                                 \
      (vnxi_capi_params_t * params, vnxi_capi_param_iter_t * *iter_p))        \
    X(params_iterator_next,                                                   \
      (vnxi_capi_param_iter_t * iter, const char **key_p,                     \
       const char **value_p, bool *has_next_p))                               \
    X(params_destroy_iterator, (vnxi_capi_param_iter_t * iter))               \
    X(create_backend,                                                         \
      (vnxi_capi_agent_t * agent, const char *plugin,                         \
       vnxi_capi_params_t *params, vnxi_capi_backend_t **backend_p))          \
    X(destroy_backend, (vnxi_capi_backend_t * backend))                       \
    X(create_opt_args, (vnxi_capi_options_t * *options_p))                    \
    X(destroy_opt_args, (vnxi_capi_options_t * options))                      \
    X(opt_args_add_backend,                                                   \
      (vnxi_capi_options_t * options, vnxi_capi_backend_t * backend))         \
    X(opt_args_set_notif_msg,                                                 \
      (vnxi_capi_options_t * options, const void *data, size_t len))          \
    X(opt_args_set_has_notif,                                                 \
      (vnxi_capi_options_t * options, bool has_notif))                        \
    X(create_reg_dlist, (int mem, vnxi_capi_reg_list_t **list_p))             \
    X(destroy_reg_dlist, (vnxi_capi_reg_list_t * list))                       \
    X(reg_dlist_add_desc,                                                     \
      (vnxi_capi_reg_list_t * list, uintptr_t addr, size_t len, uint64_t dev, \
       const void *meta, size_t meta_len))                                    \
    X(register_mem, (vnxi_capi_agent_t * agent, vnxi_capi_reg_list_t * list,  \
                     vnxi_capi_options_t * options))                          \
    X(deregister_mem,                                                         \
      (vnxi_capi_agent_t * agent, vnxi_capi_reg_list_t * list,                \
       vnxi_capi_options_t * options))                                        \
    X(agent_make_connection, (vnxi_capi_agent_t * agent, const char *name,    \
                              vnxi_capi_options_t *options))                  \
    X(create_xfer_dlist, (int mem, vnxi_capi_xfer_list_t **list_p))           \
    X(destroy_xfer_dlist, (vnxi_capi_xfer_list_t * list))                     \
    X(xfer_dlist_add_desc, (vnxi_capi_xfer_list_t * list, uintptr_t addr,     \
                            size_t len, uint64_t dev))                        \
    X(xfer_dlist_clear, (vnxi_capi_xfer_list_t * list))                       \
    X(prep_xfer_dlist,                                                        \
      (vnxi_capi_agent_t * agent, const char *name,                           \
       vnxi_capi_xfer_list_t *list, vnxi_capi_dlist_t **handle_p,             \
       vnxi_capi_options_t *options))                                         \
    X(release_xfer_dlist_handle,                                              \
      (vnxi_capi_agent_t * agent, vnxi_capi_dlist_t * handle))                \
    X(make_xfer_req,                                                          \
      (vnxi_capi_agent_t * agent, int op, vnxi_capi_dlist_t *local,           \
       const int *local_rows, size_t local_count, vnxi_capi_dlist_t *remote,  \
       const int *remote_rows, size_t remote_count,                           \
       vnxi_capi_request_t **request_p, vnxi_capi_options_t *options))        \
    X(create_xfer_req,                                                        \
      (vnxi_capi_agent_t * agent, int op, vnxi_capi_xfer_list_t *local,       \
       vnxi_capi_xfer_list_t *remote, const char *name,                       \
       vnxi_capi_request_t **request_p, vnxi_capi_options_t *options))        \
    X(post_xfer_req,                                                          \
      (vnxi_capi_agent_t * agent, vnxi_capi_request_t * request,              \
       vnxi_capi_options_t * options))                                        \
    X(get_xfer_status,                                                        \
      (vnxi_capi_agent_t * agent, vnxi_capi_request_t * request))             \
    X(release_xfer_req,                                                       \
      (vnxi_capi_agent_t * agent, vnxi_capi_request_t * request))             \
    X(destroy_xfer_req, (vnxi_capi_request_t * request))                      \
    X(estimate_xfer_cost,                                                     \
      (vnxi_capi_agent_t * agent, vnxi_capi_request_t * request,              \
       vnxi_capi_options_t * options, int64_t * duration_us_p,                \
       int64_t * margin_us_p, int *method_p))                                 \
    X(create_notif_map, (vnxi_capi_notifs_t * *notifs_p))                     \
    X(destroy_notif_map, (vnxi_capi_notifs_t * notifs))                       \
    X(notif_map_clear, (vnxi_capi_notifs_t * notifs))                         \
    X(notif_map_size, (vnxi_capi_notifs_t * notifs, size_t * size_p))         \
    X(notif_map_get_agent_at,                                                 \
      (vnxi_capi_notifs_t * notifs, size_t i, const char **name_p))           \
    X(notif_map_get_notifs_size,                                              \
      (vnxi_capi_notifs_t * notifs, const char *name, size_t *size_p))        \
    X(notif_map_get_notif, (vnxi_capi_notifs_t * notifs, const char *name,    \
                            size_t i, const void **data_p, size_t *len_p))    \
    X(get_notifs, (vnxi_capi_agent_t * agent, vnxi_capi_notifs_t * notifs,    \
                   vnxi_capi_options_t * options))                            \
    X(gen_notif,                                                              \
      (vnxi_capi_agent_t * agent, const char *name, const void *data,         \
       size_t len, vnxi_capi_options_t *options))                             \
    X(create_query_resp_list, (vnxi_capi_query_t * *query_p))                 \
    X(destroy_query_resp_list, (vnxi_capi_query_t * query))                   \
    X(query_resp_list_size, (vnxi_capi_query_t * query, size_t * size_p))     \
    X(query_resp_list_has_value,                                              \
      (vnxi_capi_query_t * query, size_t i, bool *has_value_p))               \
    X(query_resp_list_get_params,                                             \
      (vnxi_capi_query_t * query, size_t i, vnxi_capi_params_t * *params_p))  \
    X(query_mem, (vnxi_capi_agent_t * agent, vnxi_capi_reg_list_t * list,     \
                  vnxi_capi_query_t * query, vnxi_capi_options_t * options))

typedef struct vnxi_capi {
/* NOLINTNEXTLINE(bugprone-macro-parentheses): a declaration */
#define VNXI_CAPI_MEMBER(name, arguments) int(*name) arguments;
    VNXI_CAPI_TABLE(VNXI_CAPI_MEMBER)
#undef VNXI_CAPI_MEMBER
} vnxi_capi_t;

#endif
