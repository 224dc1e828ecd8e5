/*
 * CUDA contexts and threads, for code that lets a library call the driver on
 * its threads (ucx/ does), and what the driver knows about an address.
 *
 * Most calls of the driver work on the context that is *current* on the
 * thread.  And while a thread of the program captures a CUDA graph, calls of
 * other threads can break the capture, unless those have said that they do not
 * mind (mode RELAXED).  A thread does both by entering a context.
 *
 * Any thread.  Nothing here waits for a GPU.
 */
#ifndef VNXI_NATIVE_CUDA_CONTEXT_H
#define VNXI_NATIVE_CUDA_CONTEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <vnx/error.h>

#include "engine/native/cuda/library.h"

/* -- Contexts --------------------------------------------------------------
 */

typedef struct vnxi_cuda_context {
    const vnxi_cuda_library_t *library; /* NULL: no context */
    vnxi_cu_context_t handle;
    int ordinal; /* of its GPU */
    vnxi_cu_device_t device;
    bool is_retained; /* it is the primary one, which we keep */
} vnxi_cuda_context_t;

/* Take a context of the program; NULL stands for the primary one of the GPU,
 * which is kept until vnxi_cuda_context_drop().  Another context exists as
 * long as the program wants. */
vnx_status_t vnxi_cuda_context_take(const vnxi_cuda_library_t *library,
                                    vnxi_cu_context_t handle, int ordinal,
                                    vnxi_cuda_context_t *context_p,
                                    vnx_error_t *error);

/* No thread uses it any more.  *context becomes no context. */
void vnxi_cuda_context_drop(vnxi_cuda_context_t *context);

/* What vnxi_cuda_leave() restores. */
typedef struct vnxi_cuda_scope {
    const vnxi_cuda_library_t *library; /* NULL: nothing */
    vnxi_cu_enum_t mode;                /* of capture */
    bool is_relaxed, is_pushed;
} vnxi_cuda_scope_t;

/* Make the context current on the calling thread, and calls of the thread
 * harmless for captures elsewhere.  No context: does nothing.  After an error
 * there is nothing to leave. */
vnx_status_t vnxi_cuda_enter(const vnxi_cuda_context_t *context,
                             vnxi_cuda_scope_t *scope_p, vnx_error_t *error);

/* The same without a context. */
void vnxi_cuda_relax(const vnxi_cuda_library_t *library,
                     vnxi_cuda_scope_t *scope_p);

/* On the thread that has entered.  Scopes are left in reverse order. */
void vnxi_cuda_leave(vnxi_cuda_scope_t *scope);

/* -- Memory ----------------------------------------------------------------
 */

typedef struct vnxi_cuda_place {
    bool is_gpu;               /* memory of a GPU or managed memory */
    bool is_managed;           /* the CPU can access it, too */
    vnxi_cu_context_t context; /* NULL: the primary one of the GPU */
    int ordinal;               /* of the GPU */
} vnxi_cuda_place_t;

/* Find out what is at an address.  Memory that the driver does not know is not
 * of a GPU. */
void vnxi_cuda_place_find(const vnxi_cuda_library_t *library, uint64_t addr,
                          vnxi_cuda_place_t *place_p);

/* Find the end of the allocation that has this address of GPU memory;
 * UINT64_MAX: the driver does not say.  The calling thread has entered its
 * context. */
vnxi_cu_result_t vnxi_cuda_find_end(const vnxi_cuda_library_t *library,
                                    uint64_t addr, uint64_t *end_p);

/* The same, with an error record. */
vnx_status_t vnxi_cuda_allocation_end(const vnxi_cuda_context_t *context,
                                      uint64_t addr, uint64_t *end_p,
                                      vnx_error_t *error);

#endif
