/*
 * What UCX needs for GPU memory; for the files of this folder.
 *
 * UCX's CUDA modules call the driver on the thread that calls UCX.  So while
 * GPU memory is mapped, every worker's thread is in a CUDA context.  It is the
 * one of the first region: where a call concerns memory of another context,
 * UCX changes to that for the moment.
 *
 * A program that does not use CUDA has no context, and nothing here is called.
 */
#ifndef VNXI_NATIVE_UCX_GPU_H
#define VNXI_NATIVE_UCX_GPU_H

#include "engine/native/cuda/context.h"
#include "engine/native/ucx/context_private.h"

/* GPU memory is about to be mapped.  Returns when the workers that run have
 * entered a context; those that start later do so at once.  The first call for
 * an agent waits for its workers, the others do not.  Any thread, except a
 * worker's. */
vnx_status_t vnxi_ucx_gpu_begin(vnxi_ucx_t *ucx,
                                const vnxi_cuda_context_t *context,
                                vnx_error_t *error);

/* It was unmapped, or could not be mapped. */
void vnxi_ucx_gpu_end(vnxi_ucx_t *ucx);

/* The workers' threads have ended. */
void vnxi_ucx_gpu_stop(vnxi_ucx_t *ucx);

/* Return whether a value of UCX_TLS (NULL: not set) lets UCX use CUDA. */
bool vnxi_ucx_tls_has_cuda(const char *tls);

/* Log a warning, once in the process, if UCX_TLS keeps UCX from using CUDA. */
void vnxi_ucx_gpu_warn(const char *agent);

#endif
