/*
 * The parts of libucp's binary interface that this backend uses: numbers,
 * structures, and the functions as one table.  The interface is stable from
 * UCX 1.19 on through 1.x.  Building does not need UCX;
 * tests/python/test_ucx_abi.py compares every line with UCX's own headers if
 * those are installed.
 */
#ifndef VNXI_NATIVE_UCX_UCP_ABI_H
#define VNXI_NATIVE_UCX_UCP_ABI_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#define VNXI_UCP_API_MAJOR 1u
#define VNXI_UCP_API_MINOR 19u

/* -- Status ----------------------------------------------------------------
 */

typedef int8_t vnxi_ucs_status_t; /* 0: success, 1: in progress, else an
                                     error */

enum {
    VNXI_UCS_OK = 0,
    VNXI_UCS_INPROGRESS = 1,
    VNXI_UCS_ERR_NO_MEMORY = -4,
    VNXI_UCS_ERR_INVALID_PARAM = -5,
    VNXI_UCS_ERR_UNREACHABLE = -6,
    VNXI_UCS_ERR_INVALID_ADDR = -7,
    VNXI_UCS_ERR_BUSY = -15,
    VNXI_UCS_ERR_CANCELED = -16,
    VNXI_UCS_ERR_TIMED_OUT = -20,
    VNXI_UCS_ERR_REJECTED = -23,
    VNXI_UCS_ERR_NOT_CONNECTED = -24,
    VNXI_UCS_ERR_CONNECTION_RESET = -25,
    VNXI_UCS_ERR_ENDPOINT_TIMEOUT = -80,
    VNXI_UCS_ERR_LAST = -100,
};

/* The result of an operation: NULL (done), a request, or an error. */
typedef void *vnxi_ucs_ptr_t;

static inline bool
vnxi_ucs_is_request(vnxi_ucs_ptr_t ptr)
{
    return (uintptr_t)ptr - 1 < (uintptr_t)VNXI_UCS_ERR_LAST - 1;
}

/* `ptr` must not be a request. */
static inline vnxi_ucs_status_t
vnxi_ucs_status(vnxi_ucs_ptr_t ptr)
{
    return (vnxi_ucs_status_t)(intptr_t)ptr;
}

/* -- Handles ---------------------------------------------------------------
 */

typedef struct ucp_config vnxi_ucp_config_t;
typedef struct ucp_context *vnxi_ucp_context_t;
typedef struct ucp_worker *vnxi_ucp_worker_t;
typedef struct ucp_ep *vnxi_ucp_ep_t;
typedef struct ucp_mem *vnxi_ucp_mem_t;
typedef struct ucp_rkey *vnxi_ucp_rkey_t;

/* -- Parameters ------------------------------------------------------------
 */

enum {
    VNXI_UCP_FEATURE_RMA = 1 << 1,
    VNXI_UCP_FEATURE_AMO32 = 1 << 2,
    VNXI_UCP_FEATURE_AMO64 = 1 << 3,
    VNXI_UCP_FEATURE_WAKEUP = 1 << 4,
    VNXI_UCP_FEATURE_AM = 1 << 6,

    VNXI_UCP_PARAM_FEATURES = 1 << 0,
    VNXI_UCP_PARAM_MT_WORKERS_SHARED = 1 << 5,
    VNXI_UCP_PARAM_NAME = 1 << 8,
    VNXI_UCP_ATTR_MEMORY_TYPES = 1 << 2,
    VNXI_UCP_WORKER_PARAM_THREAD_MODE = 1 << 0,
    VNXI_UCP_WORKER_ATTR_ADDRESS = 1 << 1,
    VNXI_UCP_THREAD_MODE_SERIALIZED = 1,

    VNXI_UCP_EP_PARAM_REMOTE_ADDRESS = 1 << 0,
    VNXI_UCP_EP_PARAM_ERR_MODE = 1 << 1,
    VNXI_UCP_EP_PARAM_ERR_HANDLER = 1 << 2,
    VNXI_UCP_ERR_MODE_PEER = 1,
    VNXI_UCP_EP_CLOSE_FORCE = 1 << 0,
    VNXI_UCP_EP_ATTR_TRANSPORTS = 1 << 3,

    VNXI_UCP_MEM_MAP_ADDRESS = 1 << 0,
    VNXI_UCP_MEM_MAP_LENGTH = 1 << 1,
    VNXI_UCP_MEM_MAP_MEMORY_TYPE = 1 << 4,
    VNXI_UCP_MEM_ATTR_MEM_TYPE = 1 << 2,
    VNXI_UCS_MEMORY_HOST = 0,
    VNXI_UCS_MEMORY_CUDA = 1,
    VNXI_UCS_MEMORY_CUDA_MANAGED = 2,
    VNXI_UCS_MEMORY_ZE_MANAGED = 8, /* the last one in 1.19 */

    VNXI_UCP_OP_CALLBACK = 1 << 1,
    VNXI_UCP_OP_USER_DATA = 1 << 2,
    VNXI_UCP_OP_FLAGS = 1 << 4,
    VNXI_UCP_OP_MEMORY_TYPE = 1 << 6,
    VNXI_UCP_OP_MEMH = 1 << 8,
    VNXI_UCP_OP_MULTI_SEND = 1 << 19,

    VNXI_UCP_AM_SEND_EAGER = 1 << 1,
    VNXI_UCP_AM_RECV_RNDV = 1 << 17,
    VNXI_UCP_AM_PARAM_ID = 1 << 0,
    VNXI_UCP_AM_PARAM_CB = 1 << 2,
    VNXI_UCP_AM_PARAM_ARG = 1 << 3,

    VNXI_UCS_LOG_ERROR = 1,
    VNXI_UCS_LOG_WARN = 2,
    VNXI_UCS_LOG_DIAG = 3,
    VNXI_UCS_LOG_INFO = 4,
    VNXI_UCS_LOG_STOP = 0, /* do not call other handlers */
};

typedef struct vnxi_ucp_params {
    uint64_t field_mask;
    uint64_t features;
    size_t request_size;
    void (*request_init)(void *request);
    void (*request_cleanup)(void *request);
    uint64_t tag_sender_mask;
    int mt_workers_shared;
    size_t estimated_num_eps;
    size_t estimated_num_ppn;
    const char *name;
    size_t node_local_id;
} vnxi_ucp_params_t;

typedef struct vnxi_ucp_context_attr {
    uint64_t field_mask;
    size_t request_size;
    int thread_mode;
    uint64_t memory_types; /* bit set of memory types */
    char name[32];
    size_t device_counter_size;
    uint64_t room[8]; /* for additions of later UCX versions */
} vnxi_ucp_context_attr_t;

typedef struct vnxi_ucp_worker_params {
    uint64_t field_mask;
    int thread_mode;
    uint64_t cpu_mask[16];
    unsigned events;
    void *user_data;
    int event_fd;
    uint64_t flags;
    const char *name;
    size_t am_alignment;
    uint64_t client_id;
} vnxi_ucp_worker_params_t;

typedef struct vnxi_ucp_worker_attr {
    uint64_t field_mask;
    int thread_mode;
    uint32_t address_flags;
    void *address;
    size_t address_length;
    size_t max_am_header;
    char name[32];
    size_t max_debug_string;
    uint64_t room[8];
} vnxi_ucp_worker_attr_t;

typedef struct vnxi_ucp_sockaddr {
    const struct sockaddr *addr;
    socklen_t addrlen;
} vnxi_ucp_sockaddr_t;

typedef struct vnxi_ucp_err_handler {
    void (*cb)(void *arg, vnxi_ucp_ep_t ep, vnxi_ucs_status_t status);
    void *arg;
} vnxi_ucp_err_handler_t;

typedef struct vnxi_ucp_ep_params {
    uint64_t field_mask;
    const void *address;
    int err_mode;
    vnxi_ucp_err_handler_t err_handler;
    void *user_data;
    unsigned flags;
    vnxi_ucp_sockaddr_t sockaddr;
    void *conn_request;
    const char *name;
    vnxi_ucp_sockaddr_t local_sockaddr;
} vnxi_ucp_ep_params_t;

typedef struct vnxi_ucp_transport {
    const char *transport_name;
    const char *device_name;
} vnxi_ucp_transport_t;

typedef struct vnxi_ucp_ep_attr {
    uint64_t field_mask;
    char name[32];
    struct sockaddr_storage local_sockaddr;
    struct sockaddr_storage remote_sockaddr;
    struct {
        vnxi_ucp_transport_t *entries;
        unsigned num_entries;
        size_t entry_size;
    } transports;
    void *user_data;
    uint64_t room[8];
} vnxi_ucp_ep_attr_t;

typedef struct vnxi_ucp_mem_map_params {
    uint64_t field_mask;
    void *address;
    size_t length;
    unsigned flags;
    unsigned prot;
    int memory_type;
    const void *exported_memh_buffer;
} vnxi_ucp_mem_map_params_t;

typedef struct vnxi_ucp_mem_attr {
    uint64_t field_mask;
    void *address;
    size_t length;
    int mem_type;
} vnxi_ucp_mem_attr_t;

typedef struct vnxi_ucp_request_param {
    uint32_t op_attr_mask;
    uint32_t flags;
    void *request;
    union {
        void (*send)(void *request, vnxi_ucs_status_t status, void *user_data);
    } cb;
    uint64_t datatype;
    void *user_data;
    void *reply_buffer;
    int memory_type;
    union {
        size_t *length;
    } recv_info;
    vnxi_ucp_mem_t memh;
    uint64_t remote_datatype;
    const void *remote;
    size_t remote_count;
} vnxi_ucp_request_param_t;

typedef struct vnxi_ucp_am_recv_param {
    uint64_t recv_attr;
    vnxi_ucp_ep_t reply_ep;
} vnxi_ucp_am_recv_param_t;

typedef vnxi_ucs_status_t (*vnxi_ucp_am_cb_t)(
    void *arg, const void *header, size_t header_length, void *data,
    size_t length, const vnxi_ucp_am_recv_param_t *param);

typedef struct vnxi_ucp_am_handler_param {
    uint64_t field_mask;
    unsigned id;
    uint32_t flags;
    vnxi_ucp_am_cb_t cb;
    void *arg;
} vnxi_ucp_am_handler_param_t;

typedef int (*vnxi_ucs_log_func_t)(const char *file, unsigned line,
                                   const char *function, int level,
                                   const void *component, const char *message,
                                   va_list args);

/* -- Functions -------------------------------------------------------------
 */

/* X(result, name, parameters): all of them are required. */
#define VNXI_UCP_FUNCTIONS(X)                                               \
    X(void, ucp_get_version,                                                \
      (unsigned *major, unsigned *minor, unsigned *release))                \
    X(const char *, ucp_get_version_string, (void))                         \
    X(vnxi_ucs_status_t, ucp_config_read,                                   \
      (const char *prefix, const char *file, vnxi_ucp_config_t **config_p)) \
    X(vnxi_ucs_status_t, ucp_config_modify,                                 \
      (vnxi_ucp_config_t * config, const char *name, const char *value))    \
    X(void, ucp_config_release, (vnxi_ucp_config_t * config))               \
    X(vnxi_ucs_status_t, ucp_init_version,                                  \
      (unsigned major, unsigned minor, const vnxi_ucp_params_t *params,     \
       const vnxi_ucp_config_t *config, vnxi_ucp_context_t *context_p))     \
    X(void, ucp_cleanup, (vnxi_ucp_context_t context))                      \
    X(vnxi_ucs_status_t, ucp_context_query,                                 \
      (vnxi_ucp_context_t context, vnxi_ucp_context_attr_t * attr))         \
    X(vnxi_ucs_status_t, ucp_worker_create,                                 \
      (vnxi_ucp_context_t context, const vnxi_ucp_worker_params_t *params,  \
       vnxi_ucp_worker_t *worker_p))                                        \
    X(void, ucp_worker_destroy, (vnxi_ucp_worker_t worker))                 \
    X(vnxi_ucs_status_t, ucp_worker_query,                                  \
      (vnxi_ucp_worker_t worker, vnxi_ucp_worker_attr_t * attr))            \
    X(void, ucp_worker_release_address,                                     \
      (vnxi_ucp_worker_t worker, void *address))                            \
    X(unsigned, ucp_worker_progress, (vnxi_ucp_worker_t worker))            \
    X(vnxi_ucs_status_t, ucp_worker_get_efd,                                \
      (vnxi_ucp_worker_t worker, int *fd_p))                                \
    X(vnxi_ucs_status_t, ucp_worker_arm, (vnxi_ucp_worker_t worker))        \
    X(vnxi_ucs_status_t, ucp_worker_set_am_recv_handler,                    \
      (vnxi_ucp_worker_t worker, const vnxi_ucp_am_handler_param_t *param)) \
    X(vnxi_ucs_status_t, ucp_ep_create,                                     \
      (vnxi_ucp_worker_t worker, const vnxi_ucp_ep_params_t *params,        \
       vnxi_ucp_ep_t *ep_p))                                                \
    X(vnxi_ucs_ptr_t, ucp_ep_close_nbx,                                     \
      (vnxi_ucp_ep_t ep, const vnxi_ucp_request_param_t *param))            \
    X(vnxi_ucs_ptr_t, ucp_ep_flush_nbx,                                     \
      (vnxi_ucp_ep_t ep, const vnxi_ucp_request_param_t *param))            \
    X(vnxi_ucs_status_t, ucp_ep_query,                                      \
      (vnxi_ucp_ep_t ep, vnxi_ucp_ep_attr_t * attr))                        \
    X(vnxi_ucs_status_t, ucp_mem_map,                                       \
      (vnxi_ucp_context_t context, const vnxi_ucp_mem_map_params_t *params, \
       vnxi_ucp_mem_t *mem_p))                                              \
    X(vnxi_ucs_status_t, ucp_mem_unmap,                                     \
      (vnxi_ucp_context_t context, vnxi_ucp_mem_t mem))                     \
    X(vnxi_ucs_status_t, ucp_mem_query,                                     \
      (vnxi_ucp_mem_t mem, vnxi_ucp_mem_attr_t * attr))                     \
    X(vnxi_ucs_status_t, ucp_rkey_pack,                                     \
      (vnxi_ucp_context_t context, vnxi_ucp_mem_t mem, void **buffer_p,     \
       size_t *size_p))                                                     \
    X(void, ucp_rkey_buffer_release, (void *buffer))                        \
    X(vnxi_ucs_status_t, ucp_ep_rkey_unpack,                                \
      (vnxi_ucp_ep_t ep, const void *buffer, vnxi_ucp_rkey_t *rkey_p))      \
    X(void, ucp_rkey_destroy, (vnxi_ucp_rkey_t rkey))                       \
    X(vnxi_ucs_ptr_t, ucp_put_nbx,                                          \
      (vnxi_ucp_ep_t ep, const void *buffer, size_t count, uint64_t remote, \
       vnxi_ucp_rkey_t rkey, const vnxi_ucp_request_param_t *param))        \
    X(vnxi_ucs_ptr_t, ucp_get_nbx,                                          \
      (vnxi_ucp_ep_t ep, void *buffer, size_t count, uint64_t remote,       \
       vnxi_ucp_rkey_t rkey, const vnxi_ucp_request_param_t *param))        \
    X(vnxi_ucs_ptr_t, ucp_am_send_nbx,                                      \
      (vnxi_ucp_ep_t ep, unsigned id, const void *header,                   \
       size_t header_length, const void *buffer, size_t count,              \
       const vnxi_ucp_request_param_t *param))                              \
    X(void, ucp_request_free, (void *request))                              \
    X(const char *, ucs_status_string, (vnxi_ucs_status_t status))          \
    X(vnxi_ucs_status_t, ucs_global_opts_set_value,                         \
      (const char *name, const char *value))                                \
    X(void, ucs_log_push_handler, (vnxi_ucs_log_func_t handler))

typedef struct vnxi_ucp_functions {
/* NOLINTNEXTLINE(bugprone-macro-parentheses): a declaration */
#define VNXI_UCP_POINTER(result, name, parameters) result(*name) parameters;
    VNXI_UCP_FUNCTIONS(VNXI_UCP_POINTER)
#undef VNXI_UCP_POINTER
} vnxi_ucp_functions_t;

#endif
