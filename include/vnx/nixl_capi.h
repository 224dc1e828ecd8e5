/*
 * NIXL's C interface, as the library libnixl_capi.so offers it.
 *
 * The names, prototypes, numbers and struct layouts are those of the library
 * of the same name in NIXL 0.10.1 to 1.5: all 104 functions of NIXL 1.5.1.  A
 * program that was compiled for NIXL, or that loads the library by its name as
 * the Rust crate nixl-sys does, runs with this one unchanged.  New programs in
 * C use vnx/vnx.h: its errors name their cause, and it can wait.
 *
 * Handles.  A handle is opaque: a number, not an address.  A call refuses a
 * handle that is NULL, of another kind, or destroyed, with
 * NIXL_CAPI_ERROR_INVALID_PARAM.  A number is not used again.
 *
 * Ownership.  What a create call returns is destroyed by the call of that
 * name.  Destroying an agent ends its transfers; what belongs to it stays
 * valid until it is destroyed too, in any order.  Bytes and names that are
 * returned by `void **` or `char **` belong to the caller: free().
 * `const char **` and `const void **` are borrowed, until the object is
 * changed or destroyed.
 *
 * Errors.  A call that fails leaves its outputs untouched.  The log has the
 * cause, as a warning.
 *
 * Threads.  Every call may be made from any thread at any time.  But objects
 * that hold values (parameters, optional arguments, lists, maps, iterators)
 * are changed and destroyed by one thread, while no other one uses them.
 *
 * Waiting.  Most calls return at once.  Loading metadata may wait up to 10 s
 * for a process of this host that is stopped.  Deregistering memory,
 * forgetting a peer and destroying an agent may wait for peers that use the
 * memory or do not read their messages, up to 2 s each; on the engine nixl for
 * transfers in flight, up to 5 s.  Releasing a request that is in progress
 * waits until it has stopped: less than 1 ms for CPU memory of this host,
 * about 1 s over a network whose other end does not answer, at most 10 s.
 * Connecting may wait for the network, querying memory for the storage.  A
 * call on a request that another call is using waits for that call.
 *
 * Forks.  An agent belongs to the process that created it.  In a forked child
 * its calls fail; nixl_capi_get_notifs() adds nothing.
 */
#ifndef VNX_NIXL_CAPI_H
#define VNX_NIXL_CAPI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

/* -- Values --------------------------------------------------------------- */

/* The result of a call.  NOT_FOUND: a peer, a backend or memory that is not
 * known.  INVALID_STATE: nixl_capi_destroy_xfer_req() of a request that was
 * not released.  BACKEND: everything else.  EXCEPTION is never returned. */
typedef enum {
    NIXL_CAPI_SUCCESS = 0,
    NIXL_CAPI_IN_PROG = 1,
    NIXL_CAPI_ERROR_INVALID_PARAM = -1,
    NIXL_CAPI_ERROR_BACKEND = -2,
    NIXL_CAPI_ERROR_INVALID_STATE = -3,
    NIXL_CAPI_ERROR_EXCEPTION = -4,
    NIXL_CAPI_ERROR_NO_TELEMETRY = -5,
    NIXL_CAPI_ERROR_NOT_FOUND = -6,
} nixl_capi_status_t;

typedef enum {
    NIXL_CAPI_MEM_DRAM = 0,
    NIXL_CAPI_MEM_VRAM = 1,
    NIXL_CAPI_MEM_BLOCK = 2,
    NIXL_CAPI_MEM_OBJECT = 3,
    NIXL_CAPI_MEM_FILE = 4,
    NIXL_CAPI_MEM_UNKNOWN = 5,
} nixl_capi_mem_type_t;

typedef enum {
    NIXL_CAPI_XFER_OP_READ = 0,  /* remote to local */
    NIXL_CAPI_XFER_OP_WRITE = 1, /* local to remote */
} nixl_capi_xfer_op_t;

typedef enum {
    NIXL_CAPI_THREAD_SYNC_NONE = 0,
    NIXL_CAPI_THREAD_SYNC_STRICT = 1,
    NIXL_CAPI_THREAD_SYNC_RW = 2,
    NIXL_CAPI_THREAD_SYNC_DEFAULT = NIXL_CAPI_THREAD_SYNC_NONE,
} nixl_capi_thread_sync_t;

typedef enum {
    NIXL_CAPI_COST_ANALYTICAL_BACKEND = 0,
} nixl_capi_cost_t;

typedef struct nixl_capi_agent_s *nixl_capi_agent_t;
typedef struct nixl_capi_params_s *nixl_capi_params_t;
typedef struct nixl_capi_mem_list_s *nixl_capi_mem_list_t;
typedef struct nixl_capi_string_list_s *nixl_capi_string_list_t;
typedef struct nixl_capi_backend_s *nixl_capi_backend_t;
typedef struct nixl_capi_opt_args_s *nixl_capi_opt_args_t;
typedef struct nixl_capi_param_iter_s *nixl_capi_param_iter_t;
typedef struct nixl_capi_xfer_dlist_s *nixl_capi_xfer_dlist_t;
typedef struct nixl_capi_xfer_dlist_handle_s *nixl_capi_xfer_dlist_handle_t;
typedef struct nixl_capi_reg_dlist_s *nixl_capi_reg_dlist_t;
typedef struct nixl_capi_remote_dlist_s *nixl_capi_remote_dlist_t;
typedef struct nixl_capi_xfer_req_s *nixl_capi_xfer_req_t;
typedef struct nixl_capi_notif_map_s *nixl_capi_notif_map_t;
typedef struct nixl_capi_query_resp_list_s *nixl_capi_query_resp_list_t;
typedef struct nixl_capi_mem_view_s *nixl_capi_mem_view_t;

/* False: this is the library itself, not a stub that loads it. */
bool nixl_capi_is_stub(void);

/* -- Agents --------------------------------------------------------------- */

/* The progress threads, their delays, the workers and the mode of
 * synchronisation are accepted and ignored: no thread of an agent spins, and
 * every call may be made from any thread. */
typedef struct nixl_capi_agent_config_s {
    bool enable_prog_thread;
    bool enable_listen_thread; /* listen for metadata on `listen_port` */
    int listen_port;           /* the lowest 16 bits count; 0: 8888 */
    nixl_capi_thread_sync_t thread_sync;
    unsigned int num_workers;
    uint64_t pthr_delay_us;
    uint64_t lthr_delay_us;
    bool capture_telemetry; /* for nixl_capi_get_xfer_telemetry() */
} nixl_capi_agent_config_t;

/* Create an agent.  Its engine is the one of VLLM_NIXL_ENGINE, else it is
 * chosen with the first backend.  BACKEND: an empty name; the port is in use.
 * Returns owned: nixl_capi_destroy_agent(). */
nixl_capi_status_t nixl_capi_create_agent(const char *name,
                                          nixl_capi_agent_t *agent);
nixl_capi_status_t
nixl_capi_create_configured_agent(const char *name,
                                  const nixl_capi_agent_config_t *cfg,
                                  nixl_capi_agent_t *agent);

/* Close the agent: cancel its transfers, deregister its memory, tell its
 * peers. */
nixl_capi_status_t nixl_capi_destroy_agent(nixl_capi_agent_t agent);

/* -- Metadata ------------------------------------------------------------- */

/* The agent's metadata, or that of the given regions.  INVALID_PARAM: the
 * agent has no backend.  Returns owned: free(*data). */
nixl_capi_status_t nixl_capi_get_local_md(nixl_capi_agent_t agent, void **data,
                                          size_t *len);
nixl_capi_status_t
nixl_capi_get_local_partial_md(nixl_capi_agent_t agent,
                               nixl_capi_reg_dlist_t descs, void **data,
                               size_t *len, nixl_capi_opt_args_t opt_args);

/* Load a peer's metadata.  INVALID_PARAM: it is the agent's own.  Returns
 * owned: free(*agent_name). */
nixl_capi_status_t nixl_capi_load_remote_md(nixl_capi_agent_t agent,
                                            const void *data, size_t len,
                                            char **agent_name);

/* Forget a peer.  Transfers in flight to it fail.  NOT_FOUND: it is not
 * loaded. */
nixl_capi_status_t nixl_capi_invalidate_remote_md(nixl_capi_agent_t agent,
                                                  const char *remote_agent);

/* SUCCESS if the peer is loaded and has registered all of `descs` (NULL: none
 * in particular), else NOT_FOUND. */
nixl_capi_status_t nixl_capi_check_remote_md(nixl_capi_agent_t agent,
                                             const char *remote_name,
                                             nixl_capi_xfer_dlist_t descs);

/* Exchange metadata with the listener of another agent, whose address is in
 * `opt_args` (nixl_capi_opt_args_set_ip_addr(), _set_port()): send it this
 * agent's metadata, request its metadata, or tell it to forget this agent.
 * The calls return when the command is queued; errors after that are logged.
 * INVALID_PARAM: no address, because etcd is not supported. */
nixl_capi_status_t nixl_capi_send_local_md(nixl_capi_agent_t agent,
                                           nixl_capi_opt_args_t opt_args);
nixl_capi_status_t
nixl_capi_send_local_partial_md(nixl_capi_agent_t agent,
                                nixl_capi_reg_dlist_t descs,
                                nixl_capi_opt_args_t opt_args);
nixl_capi_status_t nixl_capi_fetch_remote_md(nixl_capi_agent_t agent,
                                             const char *remote_name,
                                             nixl_capi_opt_args_t opt_args);
nixl_capi_status_t
nixl_capi_invalidate_local_md(nixl_capi_agent_t agent,
                              nixl_capi_opt_args_t opt_args);

/* Connect to a peer now instead of at the first transfer.  May wait for the
 * network. */
nixl_capi_status_t
nixl_capi_agent_make_connection(nixl_capi_agent_t agent,
                                const char *remote_agent,
                                nixl_capi_opt_args_t opt_args);

/* -- Plugins and parameters ----------------------------------------------- */

/* The names of the backends that the agent can create.  Returns owned:
 * nixl_capi_destroy_string_list(). */
nixl_capi_status_t
nixl_capi_get_available_plugins(nixl_capi_agent_t agent,
                                nixl_capi_string_list_t *plugins);

nixl_capi_status_t nixl_capi_destroy_string_list(nixl_capi_string_list_t list);
nixl_capi_status_t nixl_capi_string_list_size(nixl_capi_string_list_t list,
                                              size_t *size);
nixl_capi_status_t nixl_capi_string_list_get(nixl_capi_string_list_t list,
                                             size_t index, const char **str);

/* Memory types and parameters: of a plugin with its defaults, of a backend
 * with its values.  BACKEND: the agent has no such plugin.  Returns owned:
 * nixl_capi_destroy_mem_list(), nixl_capi_destroy_params(). */
nixl_capi_status_t nixl_capi_get_plugin_params(nixl_capi_agent_t agent,
                                               const char *plugin_name,
                                               nixl_capi_mem_list_t *mems,
                                               nixl_capi_params_t *params);
nixl_capi_status_t nixl_capi_get_backend_params(nixl_capi_agent_t agent,
                                                nixl_capi_backend_t backend,
                                                nixl_capi_mem_list_t *mems,
                                                nixl_capi_params_t *params);

nixl_capi_status_t nixl_capi_destroy_mem_list(nixl_capi_mem_list_t list);
nixl_capi_status_t nixl_capi_mem_list_is_empty(nixl_capi_mem_list_t list,
                                               bool *is_empty);
nixl_capi_status_t nixl_capi_mem_list_size(nixl_capi_mem_list_t list,
                                           size_t *size);
nixl_capi_status_t nixl_capi_mem_list_get(nixl_capi_mem_list_t list,
                                          size_t index,
                                          nixl_capi_mem_type_t *mem_type);

/* "DRAM", "VRAM", "BLOCK", "OBJECT", "FILE", "UNKNOWN".  Static storage. */
nixl_capi_status_t nixl_capi_mem_type_to_string(nixl_capi_mem_type_t mem_type,
                                                const char **str);

/* A set of parameters.  nixl_capi_params_add() replaces the value of a key
 * that is there.  Returns owned: nixl_capi_destroy_params(). */
nixl_capi_status_t nixl_capi_create_params(nixl_capi_params_t *params);
nixl_capi_status_t nixl_capi_destroy_params(nixl_capi_params_t params);
nixl_capi_status_t nixl_capi_params_add(nixl_capi_params_t params,
                                        const char *key, const char *value);
nixl_capi_status_t nixl_capi_params_is_empty(nixl_capi_params_t params,
                                             bool *is_empty);

/* Walk through the parameters as they are now; later changes of the set do not
 * matter.  `*has_next` tells whether another pair follows the one that is
 * returned.  Past the last one it is false, and key and value are untouched.
 * They are borrowed until the iterator is destroyed.  Returns owned:
 * nixl_capi_params_destroy_iterator(). */
nixl_capi_status_t
nixl_capi_params_create_iterator(nixl_capi_params_t params,
                                 nixl_capi_param_iter_t *iter);
nixl_capi_status_t nixl_capi_params_iterator_next(nixl_capi_param_iter_t iter,
                                                  const char **key,
                                                  const char **value,
                                                  bool *has_next);
nixl_capi_status_t
nixl_capi_params_destroy_iterator(nixl_capi_param_iter_t iter);

/* -- Backends ------------------------------------------------------------- */

/* Create a backend.  BACKEND: no such plugin, or it exists already; or another
 * engine has it, and the agent has registered memory, read its metadata,
 * prepared a list or loaded a peer, also if one of the last three has failed,
 * or has named itself as a peer (VLLM_NIXL_ENGINE chooses the engine from the
 * beginning).  Destroying the handle keeps the backend, which lives as
 * long as the agent.  Returns owned: nixl_capi_destroy_backend(). */
nixl_capi_status_t nixl_capi_create_backend(nixl_capi_agent_t agent,
                                            const char *plugin_name,
                                            nixl_capi_params_t params,
                                            nixl_capi_backend_t *backend);
nixl_capi_status_t nixl_capi_destroy_backend(nixl_capi_backend_t backend);

/* -- Optional arguments --------------------------------------------------- */

/* The optional arguments of a call.  Every call accepts NULL for them.
 * Returns owned: nixl_capi_destroy_opt_args(). */
nixl_capi_status_t nixl_capi_create_opt_args(nixl_capi_opt_args_t *args);
nixl_capi_status_t nixl_capi_destroy_opt_args(nixl_capi_opt_args_t args);

/* Limit a call to this backend, and to others that are added.  Of
 * notifications and connections the peer determines the way. */
nixl_capi_status_t nixl_capi_opt_args_add_backend(nixl_capi_opt_args_t args,
                                                  nixl_capi_backend_t backend);

/* The notification of a transfer: bytes of any value, copied.  They are sent
 * only if the flag is set too, in either order; the flag alone sends an empty
 * notification.  Getting an empty message returns NULL and 0.  Returns owned:
 * free(*data). */
nixl_capi_status_t nixl_capi_opt_args_set_notif_msg(nixl_capi_opt_args_t args,
                                                    const void *data,
                                                    size_t len);
nixl_capi_status_t nixl_capi_opt_args_get_notif_msg(nixl_capi_opt_args_t args,
                                                    void **data, size_t *len);
nixl_capi_status_t nixl_capi_opt_args_set_has_notif(nixl_capi_opt_args_t args,
                                                    bool has_notif);
nixl_capi_status_t nixl_capi_opt_args_get_has_notif(nixl_capi_opt_args_t args,
                                                    bool *has_notif);

/* Bytes for a backend.  No backend of this library reads them.  Returns owned:
 * free(*data). */
nixl_capi_status_t
nixl_capi_opt_args_set_custom_param(nixl_capi_opt_args_t args,
                                    const void *data, size_t len);
nixl_capi_status_t
nixl_capi_opt_args_get_custom_param(nixl_capi_opt_args_t args, void **data,
                                    size_t *len);

/* Do not merge neighbours of a transfer that are contiguous on both sides. */
nixl_capi_status_t
nixl_capi_opt_args_set_skip_desc_merge(nixl_capi_opt_args_t args,
                                       bool skip_merge);
nixl_capi_status_t
nixl_capi_opt_args_get_skip_desc_merge(nixl_capi_opt_args_t args,
                                       bool *skip_merge);

/* The address of another agent's metadata listener; without a port, 8888. */
nixl_capi_status_t nixl_capi_opt_args_set_ip_addr(nixl_capi_opt_args_t args,
                                                  const char *ip_addr);
nixl_capi_status_t nixl_capi_opt_args_set_port(nixl_capi_opt_args_t args,
                                               uint16_t port);

/* -- Descriptor lists ----------------------------------------------------- */

/* A list of descriptors to transfer.  Any number is taken for a memory type;
 * the calls that use the list refuse it.  Returns owned:
 * nixl_capi_destroy_xfer_dlist(). */
nixl_capi_status_t nixl_capi_create_xfer_dlist(nixl_capi_mem_type_t mem_type,
                                               nixl_capi_xfer_dlist_t *dlist);
nixl_capi_status_t nixl_capi_destroy_xfer_dlist(nixl_capi_xfer_dlist_t dlist);
nixl_capi_status_t
nixl_capi_xfer_dlist_get_type(nixl_capi_xfer_dlist_t dlist,
                              nixl_capi_mem_type_t *mem_type);
nixl_capi_status_t nixl_capi_xfer_dlist_add_desc(nixl_capi_xfer_dlist_t dlist,
                                                 uintptr_t addr, size_t len,
                                                 uint64_t dev_id);
nixl_capi_status_t
nixl_capi_xfer_dlist_desc_count(nixl_capi_xfer_dlist_t dlist, size_t *count);
nixl_capi_status_t nixl_capi_xfer_dlist_len(nixl_capi_xfer_dlist_t dlist,
                                            size_t *len);
nixl_capi_status_t nixl_capi_xfer_dlist_is_empty(nixl_capi_xfer_dlist_t dlist,
                                                 bool *is_empty);

/* Does nothing, as in NIXL. */
nixl_capi_status_t nixl_capi_xfer_dlist_trim(nixl_capi_xfer_dlist_t dlist);

/* BACKEND: the list has no descriptor with this index. */
nixl_capi_status_t nixl_capi_xfer_dlist_rem_desc(nixl_capi_xfer_dlist_t dlist,
                                                 int index);
nixl_capi_status_t nixl_capi_xfer_dlist_clear(nixl_capi_xfer_dlist_t dlist);

/* New descriptors are zero. */
nixl_capi_status_t nixl_capi_xfer_dlist_resize(nixl_capi_xfer_dlist_t dlist,
                                               size_t new_size);

/* Print the list to stdout. */
nixl_capi_status_t nixl_capi_xfer_dlist_print(nixl_capi_xfer_dlist_t dlist);

/* A list of descriptors to register.  The metadata of a descriptor (a path, a
 * key; may be NULL) is copied.  Otherwise as above.  Returns owned:
 * nixl_capi_destroy_reg_dlist(). */
nixl_capi_status_t nixl_capi_create_reg_dlist(nixl_capi_mem_type_t mem_type,
                                              nixl_capi_reg_dlist_t *dlist);
nixl_capi_status_t nixl_capi_destroy_reg_dlist(nixl_capi_reg_dlist_t dlist);
nixl_capi_status_t
nixl_capi_reg_dlist_get_type(nixl_capi_reg_dlist_t dlist,
                             nixl_capi_mem_type_t *mem_type);
nixl_capi_status_t nixl_capi_reg_dlist_add_desc(nixl_capi_reg_dlist_t dlist,
                                                uintptr_t addr, size_t len,
                                                uint64_t dev_id,
                                                const void *metadata,
                                                size_t metadata_len);
nixl_capi_status_t nixl_capi_reg_dlist_desc_count(nixl_capi_reg_dlist_t dlist,
                                                  size_t *count);
nixl_capi_status_t nixl_capi_reg_dlist_is_empty(nixl_capi_reg_dlist_t dlist,
                                                bool *is_empty);
nixl_capi_status_t nixl_capi_reg_dlist_trim(nixl_capi_reg_dlist_t dlist);
nixl_capi_status_t nixl_capi_reg_dlist_rem_desc(nixl_capi_reg_dlist_t dlist,
                                                int index);
nixl_capi_status_t nixl_capi_reg_dlist_clear(nixl_capi_reg_dlist_t dlist);
nixl_capi_status_t nixl_capi_reg_dlist_resize(nixl_capi_reg_dlist_t dlist,
                                              size_t new_size);
nixl_capi_status_t nixl_capi_reg_dlist_print(nixl_capi_reg_dlist_t dlist);

/* A list of descriptors of several peers, for memory views.  Returns owned:
 * nixl_capi_destroy_remote_dlist(). */
nixl_capi_status_t
nixl_capi_create_remote_dlist(nixl_capi_mem_type_t mem_type,
                              nixl_capi_remote_dlist_t *dlist);
nixl_capi_status_t
nixl_capi_destroy_remote_dlist(nixl_capi_remote_dlist_t dlist);
nixl_capi_status_t
nixl_capi_remote_dlist_add_desc(nixl_capi_remote_dlist_t dlist, uintptr_t addr,
                                size_t len, uint64_t dev_id,
                                const char *remote_agent);

/* -- Memory --------------------------------------------------------------- */

/* Register memory, or deregister it exactly as it was registered.  All of the
 * list or none of it.  Memory may be registered twice; it must then be
 * deregistered twice.  NOT_FOUND: it is not registered, or the agent has no
 * backend. */
nixl_capi_status_t nixl_capi_register_mem(nixl_capi_agent_t agent,
                                          nixl_capi_reg_dlist_t dlist,
                                          nixl_capi_opt_args_t opt_args);
nixl_capi_status_t nixl_capi_deregister_mem(nixl_capi_agent_t agent,
                                            nixl_capi_reg_dlist_t dlist,
                                            nixl_capi_opt_args_t opt_args);

/* Ask the storage backend in `opt_args` about the files or objects of `descs`.
 * The answers replace those in `resp`.  May wait for the storage.
 * INVALID_PARAM: `opt_args` does not name one backend.  BACKEND: it stores
 * nothing. */
nixl_capi_status_t nixl_capi_query_mem(nixl_capi_agent_t agent,
                                       nixl_capi_reg_dlist_t descs,
                                       nixl_capi_query_resp_list_t resp,
                                       nixl_capi_opt_args_t opt_args);

/* A list of answers: for each, whether the object exists and, if it does,
 * parameters such as its size.  Returns owned:
 * nixl_capi_destroy_query_resp_list(), nixl_capi_destroy_params(). */
nixl_capi_status_t
nixl_capi_create_query_resp_list(nixl_capi_query_resp_list_t *list);
nixl_capi_status_t
nixl_capi_destroy_query_resp_list(nixl_capi_query_resp_list_t list);
nixl_capi_status_t
nixl_capi_query_resp_list_size(nixl_capi_query_resp_list_t list, size_t *size);
nixl_capi_status_t
nixl_capi_query_resp_list_has_value(nixl_capi_query_resp_list_t list,
                                    size_t index, bool *has_value);
nixl_capi_status_t
nixl_capi_query_resp_list_get_params(nixl_capi_query_resp_list_t list,
                                     size_t index, nixl_capi_params_t *params);

/* -- Prepared lists ------------------------------------------------------- */

/* Check the descriptors against the regions of a peer, or of the agent itself
 * (""), and store them for use by index.  NOT_FOUND: the peer is not loaded,
 * or no region holds a descriptor.  Returns owned:
 * nixl_capi_release_xfer_dlist_handle(). */
nixl_capi_status_t
nixl_capi_prep_xfer_dlist(nixl_capi_agent_t agent, const char *agent_name,
                          nixl_capi_xfer_dlist_t descs,
                          nixl_capi_xfer_dlist_handle_t *dlist_handle,
                          nixl_capi_opt_args_t opt_args);
nixl_capi_status_t nixl_capi_release_xfer_dlist_handle(
    nixl_capi_agent_t agent, nixl_capi_xfer_dlist_handle_t dlist_handle);

/* -- Transfers ------------------------------------------------------------ */

/* Create a request from rows of prepared lists, or from two lists of the same
 * length.  Indices are copied.  Returns owned: nixl_capi_release_xfer_req(),
 * then nixl_capi_destroy_xfer_req().  nixl_capi_create_xfer_req() returns
 * BACKEND for every failure. */
nixl_capi_status_t nixl_capi_make_xfer_req(
    nixl_capi_agent_t agent, nixl_capi_xfer_op_t operation,
    nixl_capi_xfer_dlist_handle_t local_descs, const int *local_indices,
    size_t local_indices_count, nixl_capi_xfer_dlist_handle_t remote_descs,
    const int *remote_indices, size_t remote_indices_count,
    nixl_capi_xfer_req_t *req_hndl, nixl_capi_opt_args_t opt_args);
nixl_capi_status_t nixl_capi_create_xfer_req(
    nixl_capi_agent_t agent, nixl_capi_xfer_op_t operation,
    nixl_capi_xfer_dlist_t local_descs, nixl_capi_xfer_dlist_t remote_descs,
    const char *remote_agent, nixl_capi_xfer_req_t *req_hndl,
    nixl_capi_opt_args_t opt_args);

/* Start the transfer, or start it again.  SUCCESS: it is done.  IN_PROG: it
 * goes on, and ends without further calls.  `opt_args` not NULL: their
 * notification replaces that of the request; without one, none is sent. */
nixl_capi_status_t nixl_capi_post_xfer_req(nixl_capi_agent_t agent,
                                           nixl_capi_xfer_req_t req_hndl,
                                           nixl_capi_opt_args_t opt_args);

/* SUCCESS, IN_PROG, or BACKEND: it has failed, or was never posted. */
nixl_capi_status_t nixl_capi_get_xfer_status(nixl_capi_agent_t agent,
                                             nixl_capi_xfer_req_t req_hndl);

/* The backend that moves the data.  Returns owned:
 * nixl_capi_destroy_backend(). */
nixl_capi_status_t nixl_capi_query_xfer_backend(nixl_capi_agent_t agent,
                                                nixl_capi_xfer_req_t req_hndl,
                                                nixl_capi_backend_t *backend);

/* Estimated duration and its error margin, in microseconds; 0: no estimate. */
nixl_capi_status_t nixl_capi_estimate_xfer_cost(nixl_capi_agent_t agent,
                                                nixl_capi_xfer_req_t req_hndl,
                                                nixl_capi_opt_args_t opt_args,
                                                int64_t *duration_us,
                                                int64_t *err_margin_us,
                                                nixl_capi_cost_t *method);

/* Stop the transfer if it goes on, and give it up.  BACKEND: it cannot be
 * stopped now; try again. */
nixl_capi_status_t nixl_capi_release_xfer_req(nixl_capi_agent_t agent,
                                              nixl_capi_xfer_req_t req);

/* Destroy the handle of a request that was released.  INVALID_STATE: it was
 * not.  If releasing it has failed, or its agent was destroyed, it is given
 * up. */
nixl_capi_status_t nixl_capi_destroy_xfer_req(nixl_capi_xfer_req_t req);

struct nixl_capi_xfer_telemetry_s {
    uint64_t start_time_us;    /* of the last post (CLOCK_MONOTONIC) */
    uint64_t post_duration_us; /* spent in nixl_capi_post_xfer_req() */
    uint64_t xfer_duration_us; /* from post to end */
    uint64_t total_bytes;
    uint64_t desc_count;
};
typedef struct nixl_capi_xfer_telemetry_s *nixl_capi_xfer_telemetry_t;

/* Write the figures of the last post to *telemetry.  NO_TELEMETRY: neither the
 * agent's configuration nor NIXL_TELEMETRY_ENABLE asked for it.  IN_PROG: the
 * transfer goes on; nothing is written.  An error: that of the transfer, or it
 * was never posted. */
nixl_capi_status_t
nixl_capi_get_xfer_telemetry(nixl_capi_agent_t agent,
                             nixl_capi_xfer_req_t req_hndl,
                             nixl_capi_xfer_telemetry_t telemetry);

/* -- Notifications -------------------------------------------------------- */

/* Send a notification that belongs to no transfer (copied). */
nixl_capi_status_t nixl_capi_gen_notif(nixl_capi_agent_t agent,
                                       const char *remote_agent,
                                       const void *data, size_t len,
                                       nixl_capi_opt_args_t opt_args);

/* Add the notifications that have arrived to a map of senders. */
nixl_capi_status_t nixl_capi_get_notifs(nixl_capi_agent_t agent,
                                        nixl_capi_notif_map_t notif_map,
                                        nixl_capi_opt_args_t opt_args);

/* A map from senders to their messages, in the order sent.  Its size is the
 * number of senders.  INVALID_PARAM: an index past the end, or no such sender.
 * Returns owned: nixl_capi_destroy_notif_map(). */
nixl_capi_status_t
nixl_capi_create_notif_map(nixl_capi_notif_map_t *notif_map);
nixl_capi_status_t nixl_capi_destroy_notif_map(nixl_capi_notif_map_t map);
nixl_capi_status_t nixl_capi_notif_map_size(nixl_capi_notif_map_t map,
                                            size_t *size);
nixl_capi_status_t nixl_capi_notif_map_get_agent_at(nixl_capi_notif_map_t map,
                                                    size_t index,
                                                    const char **agent_name);
nixl_capi_status_t
nixl_capi_notif_map_get_notifs_size(nixl_capi_notif_map_t map,
                                    const char *agent_name, size_t *size);
nixl_capi_status_t nixl_capi_notif_map_get_notif(nixl_capi_notif_map_t map,
                                                 const char *agent_name,
                                                 size_t index,
                                                 const void **data,
                                                 size_t *len);
nixl_capi_status_t nixl_capi_notif_map_clear(nixl_capi_notif_map_t map);

/* -- Memory views --------------------------------------------------------- */

/* Views for NIXL's device API.  Not supported: BACKEND. */
nixl_capi_status_t nixl_capi_prep_mem_view_local(
    nixl_capi_agent_t agent, nixl_capi_xfer_dlist_t descs,
    nixl_capi_mem_view_t *mvh, nixl_capi_opt_args_t opt_args);
nixl_capi_status_t nixl_capi_prep_mem_view_remote(
    nixl_capi_agent_t agent, nixl_capi_remote_dlist_t descs,
    nixl_capi_mem_view_t *mvh, nixl_capi_opt_args_t opt_args);
nixl_capi_status_t nixl_capi_release_mem_view(nixl_capi_agent_t agent,
                                              nixl_capi_mem_view_t mvh);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
