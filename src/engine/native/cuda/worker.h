/*
 * Transfers by CUDA.  Each context with registered memory has a *worker*: a
 * thread with a gpu (gpu.h), which serves the transfers posted to it in turns,
 * a batch of rows at a time.  While one batch is being copied, the thread
 * prepares the next one.  It sleeps when nothing is to be done: the driver
 * wakes it when a batch has landed.
 *
 * CPU memory is copied by the GPU itself if the program has pinned it.
 * Otherwise the thread copies it to or from pinned memory of its own.
 *
 * Workers belong to the process: agents that have memory in the same context
 * share one.
 */
#ifndef VNXI_NATIVE_CUDA_WORKER_H
#define VNXI_NATIVE_CUDA_WORKER_H

#include "base/bytes.h"
#include "engine/native/cuda/rows.h"

typedef struct vnxi_cuda_worker vnxi_cuda_worker_t;
typedef struct vnxi_cuda_xfer vnxi_cuda_xfer_t;

/* -- Workers ---------------------------------------------------------------
 */

/* Begin to use the worker of a context; NULL stands for the primary context of
 * the device.  Without a library: the worker without a GPU, for CPU memory and
 * windows (window.h).  Starts it if necessary, which is completed in the
 * background. The use ends with vnxi_cuda_worker_leave(), the reference with
 * vnxi_cuda_worker_release(). */
vnx_status_t vnxi_cuda_worker_get(const vnxi_cuda_library_t *library,
                                  vnxi_cu_context_t context, int ordinal,
                                  vnxi_cuda_worker_t **worker_p,
                                  vnx_error_t *error);

/* The memory is not used any more, and nothing of it is in flight.  When
 * nobody uses the worker it ends, and gives the context back; the call waits
 * for that.  Transfers that are posted later fail. */
void vnxi_cuda_worker_leave(vnxi_cuda_worker_t *worker);

/* Take one more reference; returns the worker. */
vnxi_cuda_worker_t *vnxi_cuda_worker_retain(vnxi_cuda_worker_t *worker);
void vnxi_cuda_worker_release(vnxi_cuda_worker_t *worker);

/* Wait until no transfer that must not go on is in flight on any worker. */
void vnxi_cuda_workers_settle(void);

/* Append a JSON array with an object for each worker. */
void vnxi_cuda_workers_describe(vnxi_writer_t *out);

/* Work for the worker's thread beside transfers. */
typedef struct vnxi_cuda_job {
    struct vnxi_cuda_job *next; /* private */
    /* Does the work and frees the job.  gpu NULL: it cannot be opened now
     * (`why`), or the worker takes no more work (`why` NULL), and this may be
     * another thread. */
    void (*run)(struct vnxi_cuda_job *job, vnxi_cuda_gpu_t *gpu,
                const vnx_error_t *why);
} vnxi_cuda_job_t;

void vnxi_cuda_worker_run(vnxi_cuda_worker_t *worker, vnxi_cuda_job_t *job);

/* The error of a job without a gpu, for an asker. */
vnx_status_t vnxi_cuda_no_gpu(const vnx_error_t *why, vnx_error_t *error);

/* Its gpu: context, device and ordinal may be read by any thread. */
const vnxi_cuda_gpu_t *vnxi_cuda_worker_gpu(const vnxi_cuda_worker_t *worker);

/* -- Transfers -------------------------------------------------------------
 */

/* The segments of the plan with this route are moved.  One of the lists has
 * GPU memory; `worker` is one of its context, or reaches it. */
vnx_status_t vnxi_cuda_xfer_create(const vnxi_part_args_t *args,
                                   unsigned route, vnxi_cuda_worker_t *worker,
                                   vnxi_cuda_xfer_t **xfer_p,
                                   vnx_error_t *error);
void vnxi_cuda_xfer_free(vnxi_cuda_xfer_t *xfer); /* not in flight */

/* As part_post() and part_cancel() of the contract.  A few microseconds,
 * however long the transfer is. */
vnx_status_t vnxi_cuda_xfer_post(vnxi_cuda_xfer_t *xfer, vnx_error_t *error);
void vnxi_cuda_xfer_cancel(vnxi_cuda_xfer_t *xfer);

#endif
