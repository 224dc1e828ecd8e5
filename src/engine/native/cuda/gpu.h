/*
 * A GPU as a machine that copies rows of bytes: a CUDA context, a stream of
 * its own with the highest priority, the copy kernel, and memory that both the
 * CPU and the GPU reach.
 *
 * Copying is done by the first of these that works (`why` has the reason
 * against the earlier ones):
 *   kernel  one launch for a table of rows (kernel.h)
 *   batch   one cuMemcpyBatchAsync() for all rows, by the copy engines
 *   loop    an asynchronous copy for each row
 * The first two reach memory of the context alone, and cudaMalloc() memory of
 * others after vnxi_cuda_gpu_reaches().
 *
 * Threads: a gpu belongs to the thread that has opened it; the context is
 * current there.  gpu->why and gpu->method may be read by others once
 * gpu->is_open is set.
 *
 * The stream does not wait for the program's streams, nor they for it: the
 * program posts a transfer when its data is there.
 */
#ifndef VNXI_NATIVE_CUDA_GPU_H
#define VNXI_NATIVE_CUDA_GPU_H

#include <stdatomic.h>
#include <stdbool.h>
#include <vnx/error.h>

#include "engine/native/cuda/kernel.h"
#include "engine/native/cuda/library.h"

#define VNXI_CUDA_ROWS 32768u            /* room of a batch */
#define VNXI_CUDA_STAGE_BYTES (4u << 20) /* of its CPU memory */
#define VNXI_CUDA_ROWS_AT_ONCE 1024u     /* for vnxi_cuda_gpu_copy() */
#define VNXI_CUDA_KERNEL_ROW                          \
    (16u << 10) /* longer rows should be cut, so that \
                   warps have equal work */

typedef enum vnxi_cuda_method {
    VNXI_CUDA_KERNEL,
    VNXI_CUDA_BATCH,
    VNXI_CUDA_LOOP,
} vnxi_cuda_method_t;

typedef enum vnxi_cuda_direction {
    VNXI_CUDA_ON_DEVICE, /* GPU memory to GPU memory */
    VNXI_CUDA_TO_DEVICE, /* from CPU memory */
    VNXI_CUDA_FROM_DEVICE,
} vnxi_cuda_direction_t;

typedef struct vnxi_cuda_gpu vnxi_cuda_gpu_t;

/* Memory of another gpu of the process. */
typedef struct vnxi_cuda_foreign {
    uint64_t start, end;
    const vnxi_cuda_gpu_t *gpu;
} vnxi_cuda_foreign_t;

/* All that rows may have of such memory. */
typedef struct vnxi_cuda_foreigns {
    vnxi_cuda_foreign_t *items; /* owned */
    size_t count, room;
} vnxi_cuda_foreigns_t;

/* Rows that are copied together. */
typedef struct vnxi_cuda_batch {
    vnxi_cuda_row_t *rows; /* room for VNXI_CUDA_ROWS; `spare` is free */
    uint32_t count;
    uint64_t bytes;
    const vnxi_cuda_foreigns_t *foreigns; /* for the loop; NULL: none */
    unsigned char *stage;                 /* see vnxi_cuda_gpu_stage() */
    uint64_t stage_delta; /* the kernel's address of `stage` is so much
                             higher, modulo 2^64 */
    /* private */
    vnxi_cu_ptr_t rows_there; /* the kernel's address of `rows` */
    vnxi_cu_ptr_t table;      /* room for a copy of them on the GPU */
    bool is_pinned;
} vnxi_cuda_batch_t;

enum { VNXI_CUDA_BATCHES = 2 };

struct vnxi_cuda_gpu {
    const vnxi_cuda_library_t *library;
    vnxi_cu_context_t context;
    vnxi_cu_device_t device;
    int ordinal; /* as this process counts */
    bool is_retained;
    atomic_bool is_open;
    vnxi_cuda_method_t method;
    char why[256];         /* why not an earlier method; "" */
    uint64_t launch_bytes; /* limit of one launch */
    vnxi_cuda_batch_t batches[VNXI_CUDA_BATCHES];
    /* Have its thread call vnxi_cuda_imports_serve(), between two batches.
     * Any thread. */
    void (*wake)(vnxi_cuda_gpu_t *gpu);
    /* The same for vnxi_cuda_windows_serve(), at any time. */
    void (*wake_for_windows)(vnxi_cuda_gpu_t *gpu);
    struct vnxi_cuda_opened *opened; /* import.c's */
    uint64_t unmapped;               /* so many imports have ended */
    struct vnxi_cuda_shared *shared; /* move.c's */
    /* private */
    unsigned ctas;
    vnxi_cuda_row_t *short_table;    /* of vnxi_cuda_gpu_copy() */
    vnxi_cu_ptr_t short_table_there; /* the kernel's address of it */
    vnxi_cu_stream_t stream;
    vnxi_cu_module_t module;
    vnxi_cu_function_t function;
    vnxi_cu_ptr_t *copies[2]; /* arguments of a batch */
    size_t *sizes;
};

/* Make `gpu` ready on the calling thread, which becomes its own: the context
 * is current from now on, and calls do not disturb a stream capture elsewhere.
 * Takes up to seconds, because the driver may compile the kernel.  Reads
 * VLLM_NIXL_CUDA_CTAS and VLLM_NIXL_CUDA_LAUNCH_BYTES.  gpu->library, context,
 * device and ordinal are set, the rest is zero. */
vnx_status_t vnxi_cuda_gpu_open(vnxi_cuda_gpu_t *gpu, vnx_error_t *error);

/* Release everything; also after vnxi_cuda_gpu_open() has failed, which may be
 * called again then.  The stream must be idle, or the context lost. */
void vnxi_cuda_gpu_close(vnxi_cuda_gpu_t *gpu);

/* Make sure that the batch has `stage`: VNXI_CUDA_STAGE_BYTES of CPU memory,
 * from and to which the GPU copies without the driver's help. */
vnx_status_t vnxi_cuda_gpu_stage(vnxi_cuda_gpu_t *gpu,
                                 vnxi_cuda_batch_t *batch, vnx_error_t *error);

/* Append memory; false: no memory.  After the last one, sort it. */
bool vnxi_cuda_foreigns_add(vnxi_cuda_foreigns_t *foreigns,
                            vnxi_cuda_foreign_t item);
void vnxi_cuda_foreigns_sort(vnxi_cuda_foreigns_t *foreigns);

/* Start copying the rows of a batch, at least one.  `landed` is called on a
 * thread of the driver when all bytes are visible to every processor.  It must
 * not call CUDA.  It is not called if the context is lost before.
 *
 * Rows for the kernel have the addresses that the context has for them.  For
 * the other methods, CPU memory has its ordinary addresses.  The loop waits
 * for what it copies in the context of another gpu.
 *
 * After an error nothing of the batch is running, and `landed` is not called.
 */
vnx_status_t vnxi_cuda_gpu_launch(vnxi_cuda_gpu_t *gpu,
                                  vnxi_cuda_batch_t *batch,
                                  vnxi_cuda_method_t method,
                                  vnxi_cuda_direction_t direction,
                                  void (*landed)(void *arg), void *arg,
                                  vnx_error_t *error);

/* Pin CPU memory that is mapped already.  *delta_p: as stage_delta.  False: it
 * cannot be pinned, and the methods other than the kernel copy it more slowly.
 * The thread of the gpu. */
bool vnxi_cuda_gpu_pin(const vnxi_cuda_gpu_t *gpu, void *data, size_t size,
                       uint64_t *delta_p);
void vnxi_cuda_gpu_unpin(const vnxi_cuda_gpu_t *gpu, void *data);

/* Copy 1 to VNXI_CUDA_ROWS_AT_ONCE rows, and wait until they have landed, as
 * everything that was launched before.  The rows are as in a batch; CPU memory
 * that is not pinned must not be copied by the kernel.  `foreigns` may be
 * NULL. */
vnx_status_t vnxi_cuda_gpu_copy(vnxi_cuda_gpu_t *gpu,
                                const vnxi_cuda_row_t *rows, uint32_t count,
                                vnxi_cuda_method_t method,
                                vnxi_cuda_direction_t direction,
                                const vnxi_cuda_foreigns_t *foreigns,
                                vnx_error_t *error);

/* Return whether the context still works.  False: it is lost for good, with
 * everything that was running; *error is set. */
bool vnxi_cuda_gpu_works(vnxi_cuda_gpu_t *gpu, vnx_error_t *error);

/* May `gpu` use cudaMalloc() memory of `other`? */
bool vnxi_cuda_gpu_reaches(vnxi_cuda_gpu_t *gpu, const vnxi_cuda_gpu_t *other);

/* Set an error for a call of the driver.  VNX_ERR_BACKEND. */
vnx_status_t vnxi_cuda_error(const vnxi_cuda_library_t *library,
                             const char *operation, int ordinal,
                             const char *function, vnxi_cu_result_t result,
                             vnx_error_t *error);

/* "kernel", "batch", "loop" */
const char *vnxi_cuda_method_name(vnxi_cuda_method_t method);

#endif
