/*
 * libcuda, the driver's library: found on first use and never unloaded.
 *
 * VLLM_NIXL_CUDA_LIBRARY names another file; "none" disables CUDA.  A program
 * with memory on a GPU has loaded and initialised libcuda itself.  A program
 * without pays for that (time, memory, open devices), so only a caller that
 * needs a GPU may start it.
 *
 * A failure is final: every later call returns the same reason.  CUDA cannot
 * be used in a forked child of a process that has initialised it, so the
 * library is gone there, and the reason says so.  Nothing happens at exit,
 * where the driver answers every call with VNXI_CUDA_ERROR_DEINITIALIZED.
 */
#ifndef VNXI_NATIVE_CUDA_LIBRARY_H
#define VNXI_NATIVE_CUDA_LIBRARY_H

#include <stdbool.h>

#include "engine/native/cuda/cuda_abi.h"

typedef struct vnxi_cuda_library {
    vnxi_cu_functions_t cu;
    const char *path; /* as found by the dynamic linker; static storage */
    int driver;       /* the CUDA version of the driver: 12080 is 12.8 */
    int device_count; /* that this process sees; at least 1 */
} vnxi_cuda_library_t;

typedef enum vnxi_cuda_start {
    /* Only if the program uses CUDA: it has loaded libcuda and called
     * cuInit(). Otherwise fails, which is not final.  Neither loads nor starts
     * anything. */
    VNXI_CUDA_IF_USED,
    /* Load libcuda unless it is loaded, and call cuInit(), which may take
     * seconds.  For memory on a GPU, ours or a peer's. */
    VNXI_CUDA_START,
} vnxi_cuda_start_t;

/* The library, in static storage, or NULL; then *why_p (may be NULL; static
 * storage) is the reason.  Any thread; once it has succeeded, a call costs one
 * atomic load; in a program that has not loaded libcuda, 0.1 us. */
const vnxi_cuda_library_t *vnxi_cuda_library(vnxi_cuda_start_t start,
                                             const char **why_p);

/* Why CUDA cannot be used in this process; NULL: it can, or nobody has tried.
 * Static storage. */
const char *vnxi_cuda_failure(void);

#endif
