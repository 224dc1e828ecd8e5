/*
 * The rows of a transfer: what a batch copies.
 *
 * A transfer's pieces are handed out in order, a batch at a time.  GPU memory
 * is copied as it is, that of another process as it is mapped here (import.h).
 * So is CPU memory that the program has pinned; other CPU memory goes through
 * the pinned memory of the batch.  If GPU memory of another process cannot be
 * mapped, its owner *moves* the bytes through a window (window.h), for all
 * regions of the transfer.
 *
 * Threads: the one that has opened the gpu, except that what a post begins
 * with is written before it is told of it.
 */
#ifndef VNXI_NATIVE_CUDA_ROWS_H
#define VNXI_NATIVE_CUDA_ROWS_H

#include <stdatomic.h>

#include "engine/native/cuda/gpu.h"
#include "engine/native/cuda/import.h"
#include "engine/native/cuda/window.h"
#include "engine/native/transport.h"

/* A region of GPU memory of this process: the slot of it. */
typedef struct vnxi_cuda_mem {
    struct vnxi_cuda_worker *worker; /* a reference */
    const vnxi_cuda_gpu_t *gpu;      /* the worker's */
    atomic_bool is_detached;         /* it does not use the worker any more */
    vnxi_cu_uuid_t uuid;             /* of the GPU */
    bool is_legacy;                  /* all of it is from cudaMalloc() */
    bool is_managed;                 /* all of it: every GPU reaches it */
    bool is_mapped;                  /* the driver said so of all of it */
    bool is_lent;                    /* other processes can map it */
} vnxi_cuda_mem_t;

typedef struct vnxi_cuda_rows {
    const vnxi_part_args_t *args; /* of the transfer */
    unsigned route;               /* of the pieces to copy */
    vnxi_cuda_gpu_t *gpu;
    vnxi_cuda_direction_t direction;
    /* Of the current post. */
    vnxi_cuda_post_t post;
    /* The same; false at its beginning. */
    bool has_begun;   /* false: copy everything, once more */
    bool is_prepared; /* false: find out where the memory is */
    bool is_staged;   /* CPU memory goes through batch->stage */
    bool is_moved;    /* by the owner */
    vnxi_cuda_method_t method;
    vnxi_cuda_check_t check; /* of the peer's GPU memory */
    /* What is moved. */
    unsigned pending;  /* halves of the window that the owner has */
    bool is_all_sent;  /* nothing is left to fill */
    bool has_returned; /* a half has come back; cleared by the worker */
    bool has_failed;   /* `error` */
    bool is_stopped;
    vnx_error_t error;
    /* private */
    vnxi_cuda_spans_t spans; /* of the peer's GPU memory; none: it is of this
                                process, or CPU memory */
    vnxi_cuda_foreigns_t foreigns; /* memory of this process's other GPUs */
    vnxi_cuda_row_t *moving;       /* owned: room for the rows of a half */
    const char *why_moved;         /* valid while `is_moved` */
    size_t span;                   /* the last one that was used */
    size_t imported;   /* while memory of the peer is not mapped: the regions
                          at the beginning of the list that are in `spans` */
    uint64_t unmapped; /* gpu->unmapped, for `imported` */
    bool is_far;       /* the peer is another process */
    bool in_chunk;
    uint64_t host_delta; /* of pinned CPU memory of the program */
    size_t chunk;
    vnxi_walk_t walk;
    vnxi_piece_t piece; /* what is left of it */
} vnxi_cuda_rows_t;

/* Fill the batch; batch->count 0: nothing is left.  The first call of a post
 * checks that the memory is still there.  VNX_IN_PROG: the peer's memory is
 * not mapped yet; try again after gpu->wake or gpu->wake_for_windows.  If
 * rows->post.answered has grown, the peer has answered meanwhile.  Errors are
 * final for the post.
 *
 * If the rows are moved by their owner, fills and sends half a window instead,
 * and batch->count is 0. */
vnx_status_t vnxi_cuda_rows_fill(vnxi_cuda_rows_t *rows,
                                 vnxi_cuda_batch_t *batch, vnx_error_t *error);

/* Of a staged batch from the GPU that has landed: bring the bytes to where
 * they belong. */
vnx_status_t vnxi_cuda_rows_bring(const vnxi_cuda_rows_t *rows,
                                  const vnxi_cuda_batch_t *batch,
                                  vnx_error_t *error);

/* As back() of vnxi_cuda_windows_serve(); `rows` is a vnxi_cuda_rows_t. */
void vnxi_cuda_rows_return(void *rows, vnxi_cuda_half_t *half);

/* Call off what the owner has.  rows->pending is then the number of halves
 * that it writes to its memory, and that still come back; with `is_late` they
 * do not. */
void vnxi_cuda_rows_stop(vnxi_cuda_rows_t *rows, bool is_late);

/* Is there still memory in a region of GPU memory of this process?  It may be
 * other memory than at registration: programs that put their GPU memory to
 * sleep map new memory at the same place.  Of many allocations only the first
 * and the last are checked. */
vnx_status_t vnxi_cuda_check_memory(const vnxi_cuda_mem_t *mem,
                                    const vnxi_region_t *region,
                                    vnx_error_t *error);

/* After the last post. */
void vnxi_cuda_rows_fini(vnxi_cuda_rows_t *rows);

#endif
