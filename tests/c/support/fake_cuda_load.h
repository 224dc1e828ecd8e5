/*
 * Loads the fake libcuda.so.1 (fake_cuda.c) into a test program, and controls
 * it.
 */
#ifndef FAKE_CUDA_LOAD_H
#define FAKE_CUDA_LOAD_H

#include "vnx_test.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include "engine/native/cuda/cuda_abi.h"
#include "fake_cuda.h"

static fake_cuda_t *fake;
static const fake_cuda_calls_t *calls;
static vnxi_cu_functions_t cu;

#define CU_OK(call) assert_int_equal(call, VNXI_CUDA_SUCCESS)

/* Functions that the transport does not call, but its clients do. */
static struct {
    vnxi_cu_result_t (*cuMemAllocManaged)(vnxi_cu_ptr_t *ptr_p, size_t size,
                                          unsigned flags);
    vnxi_cu_result_t (*cuMemAllocAsync)(vnxi_cu_ptr_t *ptr_p, size_t size,
                                        vnxi_cu_stream_t stream);
    vnxi_cu_result_t (*cuMemFreeAsync)(vnxi_cu_ptr_t ptr,
                                       vnxi_cu_stream_t stream);
    vnxi_cu_result_t (*cuMemPoolCreate)(vnxi_cu_pool_t *pool_p,
                                        const void *props);
    vnxi_cu_result_t (*cuMemAllocFromPoolAsync)(vnxi_cu_ptr_t *ptr_p,
                                                size_t size,
                                                vnxi_cu_pool_t pool,
                                                vnxi_cu_stream_t stream);
    vnxi_cu_result_t (*cuMemcpyHtoD_v2)(vnxi_cu_ptr_t to, const void *from,
                                        size_t size);
    vnxi_cu_result_t (*cuMemcpyDtoH_v2)(void *to, vnxi_cu_ptr_t from,
                                        size_t size);
    vnxi_cu_result_t (*cuMemsetD8Async)(vnxi_cu_ptr_t ptr, unsigned char value,
                                        size_t size, vnxi_cu_stream_t stream);
    vnxi_cu_result_t (*cuCtxSetCurrent)(vnxi_cu_context_t context);
    vnxi_cu_result_t (*cuCtxSynchronize)(void);
    vnxi_cu_result_t (*cuMemGetInfo_v2)(size_t *free_p, size_t *total_p);
    vnxi_cu_result_t (*cuStreamBeginCapture_v2)(vnxi_cu_stream_t stream,
                                                vnxi_cu_enum_t mode);
    vnxi_cu_result_t (*cuStreamEndCapture)(vnxi_cu_stream_t stream,
                                           void **graph_p);
    vnxi_cu_result_t (*cuGraphGetNodes)(void *graph, void *nodes,
                                        size_t *count_p);
    vnxi_cu_result_t (*cuGraphDestroy)(void *graph);
} client __attribute__((unused));

/* 0, or 1 and a message. */
static inline int
fake_load(const char *path)
{
    void *library = dlopen(path, RTLD_NOW);

    if (library == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    fake = dlsym(library, "fake_cuda");
    calls = dlsym(library, "fake_cuda_calls");
#define LOAD(result, name, parameters) cu.name = dlsym(library, #name);
    VNXI_CU_START_FUNCTIONS(LOAD)
    VNXI_CU_WORK_FUNCTIONS(LOAD)
    VNXI_CU_OPTIONAL_FUNCTIONS(LOAD)
#undef LOAD
#define LOAD(name) client.name = dlsym(library, #name)
    LOAD(cuMemAllocManaged);
    LOAD(cuMemAllocAsync);
    LOAD(cuMemFreeAsync);
    LOAD(cuMemPoolCreate);
    LOAD(cuMemAllocFromPoolAsync);
    LOAD(cuMemcpyHtoD_v2);
    LOAD(cuMemcpyDtoH_v2);
    LOAD(cuMemsetD8Async);
    LOAD(cuCtxSetCurrent);
    LOAD(cuCtxSynchronize);
    LOAD(cuMemGetInfo_v2);
    LOAD(cuStreamBeginCapture_v2);
    LOAD(cuStreamEndCapture);
    LOAD(cuGraphGetNodes);
    LOAD(cuGraphDestroy);
#undef LOAD
    return 0;
}

#endif
