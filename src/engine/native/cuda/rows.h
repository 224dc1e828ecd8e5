/*
 * The rows of a transfer: what a batch copies.
 *
 * A transfer's pieces are handed out in order, a batch at a time.  GPU memory
 * is copied as it is, that of another process as it is mapped here (import.h).
 * So is CPU memory that the program has pinned; other CPU memory goes through
 * the pinned memory of the batch.
 *
 * Threads: the one that has opened the gpu, except that zeros are written
 * before it is told of a post.
 */
#ifndef VNXI_NATIVE_CUDA_ROWS_H
#define VNXI_NATIVE_CUDA_ROWS_H

#include <stdatomic.h>

#include "engine/native/cuda/gpu.h"
#include "engine/native/cuda/import.h"
#include "engine/native/transport.h"

/* A region of GPU memory of this process: the slot of it. */
typedef struct vnxi_cuda_mem {
    struct vnxi_cuda_worker *worker; /* a reference */
    const vnxi_cuda_gpu_t *gpu;      /* the worker's */
    atomic_bool is_detached;         /* it does not use the worker any more */
    vnxi_cu_uuid_t uuid;             /* of the GPU */
    bool is_legacy;                  /* all of it is from cudaMalloc() */
    bool is_lent;                    /* other processes can map it */
} vnxi_cuda_mem_t;

typedef struct vnxi_cuda_rows {
    const vnxi_part_args_t *args; /* of the transfer */
    unsigned route;               /* of the pieces to copy */
    vnxi_cuda_gpu_t *gpu;
    vnxi_cuda_direction_t direction;
    /* Of the current post; false at its beginning. */
    bool has_begun;   /* false: copy everything, once more */
    bool is_prepared; /* false: find out where the memory is */
    bool is_staged;   /* CPU memory goes through batch->stage */
    vnxi_cuda_method_t method;
    vnxi_cuda_check_t check; /* of the peer's GPU memory */
    /* private */
    vnxi_cuda_spans_t spans; /* of the peer's GPU memory; none: it is of this
                                process, or CPU memory */
    size_t span;             /* the last one that was used */
    bool is_far;             /* the peer is another process */
    bool in_chunk;
    uint64_t host_delta; /* of pinned CPU memory of the program */
    size_t chunk;
    vnxi_walk_t walk;
    vnxi_piece_t piece; /* what is left of it */
} vnxi_cuda_rows_t;

/* Fill the batch; batch->count 0: nothing is left.  The first call of a post
 * checks that the memory is still there.  VNX_IN_PROG: the peer's memory is
 * not mapped yet; try again after gpu->wake.  Errors are final for the post.
 */
vnx_status_t vnxi_cuda_rows_fill(vnxi_cuda_rows_t *rows,
                                 vnxi_cuda_batch_t *batch, vnx_error_t *error);

/* Of a staged batch from the GPU that has landed: bring the bytes to where
 * they belong. */
vnx_status_t vnxi_cuda_rows_bring(const vnxi_cuda_rows_t *rows,
                                  const vnxi_cuda_batch_t *batch,
                                  vnx_error_t *error);

/* After the last post. */
void vnxi_cuda_rows_fini(vnxi_cuda_rows_t *rows);

#endif
