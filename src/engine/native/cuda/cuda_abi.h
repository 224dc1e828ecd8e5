/*
 * The parts of libcuda's binary interface (CUDA's driver API) that this
 * transport uses: numbers, structures, and the functions as one table.
 * Building does not need CUDA; tests/python/test_cuda_abi.py compares every
 * line with NVIDIA's cuda.h if that is installed.
 *
 * A constant has NVIDIA's name after VNXI_.  A function has the name of its
 * symbol, with the suffix: libcuda exports several versions of some functions,
 * and cuda.h renames cuMemAlloc to cuMemAlloc_v2.
 */
#ifndef VNXI_NATIVE_CUDA_CUDA_ABI_H
#define VNXI_NATIVE_CUDA_CUDA_ABI_H

#include <stddef.h>
#include <stdint.h>

/* -- Results ---------------------------------------------------------------
 */

typedef unsigned vnxi_cu_result_t;

enum {
    VNXI_CUDA_SUCCESS = 0,
    VNXI_CUDA_ERROR_INVALID_VALUE = 1,
    VNXI_CUDA_ERROR_OUT_OF_MEMORY = 2,
    VNXI_CUDA_ERROR_NOT_INITIALIZED = 3, /* also in forked children */
    VNXI_CUDA_ERROR_DEINITIALIZED = 4,   /* the process is exiting */
    VNXI_CUDA_ERROR_NO_DEVICE = 100,
    VNXI_CUDA_ERROR_INVALID_DEVICE = 101,
    VNXI_CUDA_ERROR_INVALID_IMAGE = 200,
    VNXI_CUDA_ERROR_INVALID_CONTEXT = 201,
    VNXI_CUDA_ERROR_ALREADY_MAPPED = 208,
    VNXI_CUDA_ERROR_NO_BINARY_FOR_GPU = 209,
    VNXI_CUDA_ERROR_PEER_ACCESS_UNSUPPORTED = 217,
    VNXI_CUDA_ERROR_INVALID_PTX = 218,
    VNXI_CUDA_ERROR_JIT_COMPILER_NOT_FOUND = 221,
    VNXI_CUDA_ERROR_UNSUPPORTED_PTX_VERSION = 222,
    VNXI_CUDA_ERROR_JIT_COMPILATION_DISABLED = 223,
    VNXI_CUDA_ERROR_INVALID_HANDLE = 400,
    VNXI_CUDA_ERROR_NOT_FOUND = 500,
    VNXI_CUDA_ERROR_NOT_READY = 600,
    VNXI_CUDA_ERROR_ILLEGAL_ADDRESS = 700, /* the context is lost */
    VNXI_CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED = 704,
    VNXI_CUDA_ERROR_CONTEXT_IS_DESTROYED = 709,
    VNXI_CUDA_ERROR_TOO_MANY_PEERS = 711,
    VNXI_CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED = 712,
    VNXI_CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED = 713,
    VNXI_CUDA_ERROR_LAUNCH_FAILED = 719, /* the context is lost */
    VNXI_CUDA_ERROR_NOT_PERMITTED = 800,
    VNXI_CUDA_ERROR_NOT_SUPPORTED = 801,
    VNXI_CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900,
    VNXI_CUDA_ERROR_UNKNOWN = 999,
};

/* -- Handles ---------------------------------------------------------------
 */

typedef int vnxi_cu_device_t;
typedef unsigned long long vnxi_cu_ptr_t; /* an address on a device */
typedef unsigned long long vnxi_cu_mem_t; /* what cuMemCreate() makes */
typedef struct CUctx_st *vnxi_cu_context_t;
typedef struct CUmod_st *vnxi_cu_module_t;
typedef struct CUfunc_st *vnxi_cu_function_t;
typedef struct CUstream_st *vnxi_cu_stream_t;
typedef struct CUevent_st *vnxi_cu_event_t;
typedef struct CUmemPoolHandle_st *vnxi_cu_pool_t;

/* For cuLaunchHostFunc(): on a thread of the driver; must not call CUDA. */
typedef void (*vnxi_cu_host_fn_t)(void *arg);

/* -- Parameters ------------------------------------------------------------
 */

/* NVIDIA's enumerations are as wide as this. */
typedef unsigned vnxi_cu_enum_t;

enum {
    VNXI_CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT = 16,
    VNXI_CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT = 40,
    VNXI_CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75,
    VNXI_CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76,
    VNXI_CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM = 91,
    VNXI_CU_DEVICE_ATTRIBUTE_HOST_REGISTER_SUPPORTED = 99,
    VNXI_CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED = 102,
    VNXI_CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED = 103,
    VNXI_CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_FABRIC_SUPPORTED = 128,

    /* The result of each goes to a uint64_t that is 0 before the call: cuda.h
     * does not give the width of all of them. */
    VNXI_CU_POINTER_ATTRIBUTE_CONTEXT = 1, /* a vnxi_cu_context_t */
    VNXI_CU_POINTER_ATTRIBUTE_MEMORY_TYPE = 2,
    VNXI_CU_POINTER_ATTRIBUTE_BUFFER_ID = 7, /* 64 bits; never used again */
    VNXI_CU_POINTER_ATTRIBUTE_IS_MANAGED = 8,
    VNXI_CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL = 9,
    VNXI_CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE = 10,
    /* The reserved range of addresses; cuMemGetAddressRange_v2() gives what is
     * mapped there. */
    VNXI_CU_POINTER_ATTRIBUTE_RANGE_START_ADDR = 11,
    VNXI_CU_POINTER_ATTRIBUTE_RANGE_SIZE = 12,
    VNXI_CU_POINTER_ATTRIBUTE_MAPPED = 13,
    VNXI_CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES = 14, /* bit set */
    VNXI_CU_POINTER_ATTRIBUTE_IS_GPU_DIRECT_RDMA_CAPABLE = 15,
    VNXI_CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE = 17, /* a vnxi_cu_pool_t */
    VNXI_CU_MEMORYTYPE_HOST = 1,
    VNXI_CU_MEMORYTYPE_DEVICE = 2,

    VNXI_CU_IPC_HANDLE_SIZE = 64,
    VNXI_CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS = 1, /* required to open */

    VNXI_CU_MEM_HANDLE_TYPE_NONE = 0,
    VNXI_CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR = 1,
    VNXI_CU_MEM_HANDLE_TYPE_FABRIC = 8,
    VNXI_CU_MEM_ALLOCATION_TYPE_PINNED = 1,
    VNXI_CU_MEM_LOCATION_TYPE_INVALID = 0,
    VNXI_CU_MEM_LOCATION_TYPE_DEVICE = 1,
    VNXI_CU_MEM_ACCESS_FLAGS_PROT_READ = 1,
    VNXI_CU_MEM_ACCESS_FLAGS_PROT_READWRITE = 3,
    VNXI_CU_MEM_ALLOC_GRANULARITY_MINIMUM = 0,

    VNXI_CU_MEMHOSTREGISTER_PORTABLE = 1,
    VNXI_CU_MEMHOSTREGISTER_DEVICEMAP = 2,

    VNXI_CU_STREAM_NON_BLOCKING = 1,
    VNXI_CU_STREAM_CAPTURE_MODE_GLOBAL = 0,
    VNXI_CU_STREAM_CAPTURE_MODE_RELAXED = 2,
    VNXI_CU_STREAM_WRITE_VALUE_DEFAULT = 0,
    VNXI_CU_EVENT_DISABLE_TIMING = 2,

    VNXI_CU_MEMCPY_SRC_ACCESS_ORDER_STREAM = 1,
    VNXI_CU_MEMCPY_FLAG_PREFER_OVERLAP_WITH_COMPUTE = 1,

    VNXI_CU_JIT_ERROR_LOG_BUFFER = 5,
    VNXI_CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES = 6,
};

typedef struct vnxi_cu_uuid {
    char bytes[16];
} vnxi_cu_uuid_t;

/* What another process opens an allocation of cuMemAlloc_v2() by. */
typedef struct vnxi_cu_ipc_handle {
    char reserved[VNXI_CU_IPC_HANDLE_SIZE];
} vnxi_cu_ipc_handle_t;

typedef struct vnxi_cu_fabric_handle {
    unsigned char data[VNXI_CU_IPC_HANDLE_SIZE];
} vnxi_cu_fabric_handle_t;

typedef struct vnxi_cu_pool_ptr {
    unsigned char reserved[64];
} vnxi_cu_pool_ptr_t;

typedef struct vnxi_cu_location {
    vnxi_cu_enum_t type;
    int id; /* the ordinal of a device */
} vnxi_cu_location_t;

typedef struct vnxi_cu_access {
    vnxi_cu_location_t location;
    vnxi_cu_enum_t flags;
} vnxi_cu_access_t;

typedef struct vnxi_cu_alloc_prop {
    vnxi_cu_enum_t type;
    vnxi_cu_enum_t requestedHandleTypes;
    vnxi_cu_location_t location;
    void *win32HandleMetaData;
    struct {
        unsigned char compressionType;
        unsigned char gpuDirectRDMACapable;
        unsigned short usage;
        unsigned char reserved[4];
    } allocFlags;
} vnxi_cu_alloc_prop_t;

typedef struct vnxi_cu_copy_attr {
    vnxi_cu_enum_t srcAccessOrder;
    vnxi_cu_location_t srcLocHint;
    vnxi_cu_location_t dstLocHint;
    unsigned flags;
} vnxi_cu_copy_attr_t;

/* -- Functions -------------------------------------------------------------
 */

/* X(result, name, parameters).  The functions of the first two tables are
 * required; CUDA has them since 11.4.  Those of the first may be called before
 * cuInit(); cuDeviceGetCount() then answers that it was not called. */
#define VNXI_CU_START_FUNCTIONS(X)                            \
    X(vnxi_cu_result_t, cuInit, (unsigned flags))             \
    X(vnxi_cu_result_t, cuDriverGetVersion, (int *version_p)) \
    X(vnxi_cu_result_t, cuDeviceGetCount, (int *count_p))     \
    X(vnxi_cu_result_t, cuGetErrorName,                       \
      (vnxi_cu_result_t result, const char **name_p))

#define VNXI_CU_WORK_FUNCTIONS(X)                                             \
    /* devices and contexts */                                                \
    X(vnxi_cu_result_t, cuDeviceGet,                                          \
      (vnxi_cu_device_t * device_p, int ordinal))                             \
    X(vnxi_cu_result_t, cuDeviceGetAttribute,                                 \
      (int *value_p, vnxi_cu_enum_t attribute, vnxi_cu_device_t device))      \
    X(vnxi_cu_result_t, cuDeviceGetUuid_v2,                                   \
      (vnxi_cu_uuid_t * uuid_p, vnxi_cu_device_t device))                     \
    X(vnxi_cu_result_t, cuDeviceCanAccessPeer,                                \
      (int *can_p, vnxi_cu_device_t device, vnxi_cu_device_t peer))           \
    X(vnxi_cu_result_t, cuDevicePrimaryCtxRetain,                             \
      (vnxi_cu_context_t * context_p, vnxi_cu_device_t device))               \
    X(vnxi_cu_result_t, cuDevicePrimaryCtxRelease_v2,                         \
      (vnxi_cu_device_t device))                                              \
    X(vnxi_cu_result_t, cuDevicePrimaryCtxGetState,                           \
      (vnxi_cu_device_t device, unsigned *flags_p, int *is_active_p))         \
    X(vnxi_cu_result_t, cuCtxPushCurrent_v2, (vnxi_cu_context_t context))     \
    X(vnxi_cu_result_t, cuCtxPopCurrent_v2, (vnxi_cu_context_t * context_p))  \
    X(vnxi_cu_result_t, cuCtxGetCurrent, (vnxi_cu_context_t * context_p))     \
    X(vnxi_cu_result_t, cuCtxGetStreamPriorityRange,                          \
      (int *lowest_p, int *highest_p))                                        \
    X(vnxi_cu_result_t, cuCtxEnablePeerAccess,                                \
      (vnxi_cu_context_t peer, unsigned flags))                               \
    X(vnxi_cu_result_t, cuThreadExchangeStreamCaptureMode,                    \
      (vnxi_cu_enum_t * mode_p))                                              \
    /* memory */                                                              \
    X(vnxi_cu_result_t, cuPointerGetAttributes,                               \
      (unsigned count, vnxi_cu_enum_t *attributes, void **values_p,           \
       vnxi_cu_ptr_t ptr))                                                    \
    X(vnxi_cu_result_t, cuMemGetAddressRange_v2,                              \
      (vnxi_cu_ptr_t * base_p, size_t * size_p, vnxi_cu_ptr_t ptr))           \
    X(vnxi_cu_result_t, cuMemAlloc_v2, (vnxi_cu_ptr_t * ptr_p, size_t size))  \
    X(vnxi_cu_result_t, cuMemFree_v2, (vnxi_cu_ptr_t ptr))                    \
    X(vnxi_cu_result_t, cuMemHostRegister_v2,                                 \
      (void *host, size_t size, unsigned flags))                              \
    X(vnxi_cu_result_t, cuMemHostUnregister, (void *host))                    \
    X(vnxi_cu_result_t, cuMemHostGetDevicePointer_v2,                         \
      (vnxi_cu_ptr_t * ptr_p, void *host, unsigned flags))                    \
    /* memory of another process: cuMemAlloc_v2()'s */                        \
    X(vnxi_cu_result_t, cuIpcGetMemHandle,                                    \
      (vnxi_cu_ipc_handle_t * handle_p, vnxi_cu_ptr_t ptr))                   \
    X(vnxi_cu_result_t, cuIpcOpenMemHandle_v2,                                \
      (vnxi_cu_ptr_t * ptr_p, vnxi_cu_ipc_handle_t handle, unsigned flags))   \
    X(vnxi_cu_result_t, cuIpcCloseMemHandle, (vnxi_cu_ptr_t ptr))             \
    /* cuMemCreate()'s */                                                     \
    X(vnxi_cu_result_t, cuMemCreate,                                          \
      (vnxi_cu_mem_t * mem_p, size_t size, const vnxi_cu_alloc_prop_t *prop,  \
       unsigned long long flags))                                             \
    X(vnxi_cu_result_t, cuMemRelease, (vnxi_cu_mem_t mem))                    \
    X(vnxi_cu_result_t, cuMemRetainAllocationHandle,                          \
      (vnxi_cu_mem_t * mem_p, void *ptr))                                     \
    X(vnxi_cu_result_t, cuMemGetAllocationPropertiesFromHandle,               \
      (vnxi_cu_alloc_prop_t * prop_p, vnxi_cu_mem_t mem))                     \
    X(vnxi_cu_result_t, cuMemGetAllocationGranularity,                        \
      (size_t * size_p, const vnxi_cu_alloc_prop_t *prop,                     \
       vnxi_cu_enum_t option))                                                \
    X(vnxi_cu_result_t, cuMemExportToShareableHandle,                         \
      (void *handle_p, vnxi_cu_mem_t mem, vnxi_cu_enum_t type,                \
       unsigned long long flags))                                             \
    X(vnxi_cu_result_t, cuMemImportFromShareableHandle,                       \
      (vnxi_cu_mem_t * mem_p, void *handle, vnxi_cu_enum_t type))             \
    X(vnxi_cu_result_t, cuMemAddressReserve,                                  \
      (vnxi_cu_ptr_t * ptr_p, size_t size, size_t alignment,                  \
       vnxi_cu_ptr_t wanted, unsigned long long flags))                       \
    X(vnxi_cu_result_t, cuMemAddressFree, (vnxi_cu_ptr_t ptr, size_t size))   \
    X(vnxi_cu_result_t, cuMemMap,                                             \
      (vnxi_cu_ptr_t ptr, size_t size, size_t offset, vnxi_cu_mem_t mem,      \
       unsigned long long flags))                                             \
    X(vnxi_cu_result_t, cuMemUnmap, (vnxi_cu_ptr_t ptr, size_t size))         \
    X(vnxi_cu_result_t, cuMemSetAccess,                                       \
      (vnxi_cu_ptr_t ptr, size_t size, const vnxi_cu_access_t *access,        \
       size_t count))                                                         \
    /* a pool's */                                                            \
    X(vnxi_cu_result_t, cuMemPoolExportToShareableHandle,                     \
      (void *handle_p, vnxi_cu_pool_t pool, vnxi_cu_enum_t type,              \
       unsigned long long flags))                                             \
    X(vnxi_cu_result_t, cuMemPoolImportFromShareableHandle,                   \
      (vnxi_cu_pool_t * pool_p, void *handle, vnxi_cu_enum_t type,            \
       unsigned long long flags))                                             \
    X(vnxi_cu_result_t, cuMemPoolExportPointer,                               \
      (vnxi_cu_pool_ptr_t * data_p, vnxi_cu_ptr_t ptr))                       \
    X(vnxi_cu_result_t, cuMemPoolImportPointer,                               \
      (vnxi_cu_ptr_t * ptr_p, vnxi_cu_pool_t pool,                            \
       vnxi_cu_pool_ptr_t * data))                                            \
    X(vnxi_cu_result_t, cuMemPoolSetAccess,                                   \
      (vnxi_cu_pool_t pool, const vnxi_cu_access_t *access, size_t count))    \
    X(vnxi_cu_result_t, cuMemPoolDestroy, (vnxi_cu_pool_t pool))              \
    /* streams and events */                                                  \
    X(vnxi_cu_result_t, cuStreamCreateWithPriority,                           \
      (vnxi_cu_stream_t * stream_p, unsigned flags, int priority))            \
    X(vnxi_cu_result_t, cuStreamDestroy_v2, (vnxi_cu_stream_t stream))        \
    X(vnxi_cu_result_t, cuStreamQuery, (vnxi_cu_stream_t stream))             \
    X(vnxi_cu_result_t, cuStreamSynchronize, (vnxi_cu_stream_t stream))       \
    X(vnxi_cu_result_t, cuEventCreate,                                        \
      (vnxi_cu_event_t * event_p, unsigned flags))                            \
    X(vnxi_cu_result_t, cuEventDestroy_v2, (vnxi_cu_event_t event))           \
    X(vnxi_cu_result_t, cuEventRecord,                                        \
      (vnxi_cu_event_t event, vnxi_cu_stream_t stream))                       \
    X(vnxi_cu_result_t, cuEventQuery, (vnxi_cu_event_t event))                \
    X(vnxi_cu_result_t, cuLaunchHostFunc,                                     \
      (vnxi_cu_stream_t stream, vnxi_cu_host_fn_t function, void *arg))       \
    /* copies and kernels */                                                  \
    X(vnxi_cu_result_t, cuMemcpyDtoDAsync_v2,                                 \
      (vnxi_cu_ptr_t to, vnxi_cu_ptr_t from, size_t size,                     \
       vnxi_cu_stream_t stream))                                              \
    X(vnxi_cu_result_t, cuMemcpyPeerAsync,                                    \
      (vnxi_cu_ptr_t to, vnxi_cu_context_t to_context, vnxi_cu_ptr_t from,    \
       vnxi_cu_context_t from_context, size_t size, vnxi_cu_stream_t stream)) \
    X(vnxi_cu_result_t, cuMemcpyHtoDAsync_v2,                                 \
      (vnxi_cu_ptr_t to, const void *from, size_t size,                       \
       vnxi_cu_stream_t stream))                                              \
    X(vnxi_cu_result_t, cuMemcpyDtoHAsync_v2,                                 \
      (void *to, vnxi_cu_ptr_t from, size_t size, vnxi_cu_stream_t stream))   \
    X(vnxi_cu_result_t, cuModuleLoadDataEx,                                   \
      (vnxi_cu_module_t * module_p, const void *image, unsigned count,        \
       vnxi_cu_enum_t *options, void **values))                               \
    X(vnxi_cu_result_t, cuModuleUnload, (vnxi_cu_module_t module))            \
    X(vnxi_cu_result_t, cuModuleGetFunction,                                  \
      (vnxi_cu_function_t * function_p, vnxi_cu_module_t module,              \
       const char *name))                                                     \
    X(vnxi_cu_result_t, cuLaunchKernel,                                       \
      (vnxi_cu_function_t function, unsigned grid_x, unsigned grid_y,         \
       unsigned grid_z, unsigned block_x, unsigned block_y, unsigned block_z, \
       unsigned shared_size, vnxi_cu_stream_t stream, void **params,          \
       void **extra))

/* NULL if the driver lacks them: the first came with CUDA 12.8, the second
 * with 11.7. */
#define VNXI_CU_OPTIONAL_FUNCTIONS(X)                                      \
    X(vnxi_cu_result_t, cuMemcpyBatchAsync,                                \
      (vnxi_cu_ptr_t * to, vnxi_cu_ptr_t * from, size_t * sizes,           \
       size_t count, vnxi_cu_copy_attr_t * attrs, size_t * attr_starts,    \
       size_t attr_count, size_t * fail_index_p, vnxi_cu_stream_t stream)) \
    X(vnxi_cu_result_t, cuStreamWriteValue32_v2,                           \
      (vnxi_cu_stream_t stream, vnxi_cu_ptr_t ptr, uint32_t value,         \
       unsigned flags))

typedef struct vnxi_cu_functions {
/* NOLINTNEXTLINE(bugprone-macro-parentheses): a declaration */
#define VNXI_CU_POINTER(result, name, parameters) result(*name) parameters;
    VNXI_CU_START_FUNCTIONS(VNXI_CU_POINTER)
    VNXI_CU_WORK_FUNCTIONS(VNXI_CU_POINTER)
    VNXI_CU_OPTIONAL_FUNCTIONS(VNXI_CU_POINTER)
#undef VNXI_CU_POINTER
} vnxi_cu_functions_t;

#endif
