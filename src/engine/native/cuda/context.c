#include "engine/native/cuda/context.h"

#include "engine/native/cuda/gpu.h"

#define OPERATION "vnx_agent_register"

/* -- Contexts --------------------------------------------------------------
 */

vnx_status_t
vnxi_cuda_context_take(const vnxi_cuda_library_t *library,
                       vnxi_cu_context_t handle, int ordinal,
                       vnxi_cuda_context_t *context_p, vnx_error_t *error)
{
    const vnxi_cu_functions_t *cu = &library->cu;
    vnxi_cuda_context_t context = {.library = library, .ordinal = ordinal};
    vnxi_cu_context_t primary = NULL;
    unsigned flags = 0;
    int is_active = 1;

    vnxi_cu_result_t result = cu->cuDeviceGet(&context.device, ordinal);
    if (result != VNXI_CUDA_SUCCESS) {
        return vnxi_cuda_error(library, OPERATION, ordinal, "cuDeviceGet",
                               result, error);
    }
    /* Retaining an inactive one would create it, for hundreds of MB. */
    if (handle != NULL &&
        cu->cuDevicePrimaryCtxGetState(context.device, &flags, &is_active) ==
            VNXI_CUDA_SUCCESS &&
        !is_active) {
        context.handle = handle;
        *context_p = context;
        return VNX_OK;
    }
    result = cu->cuDevicePrimaryCtxRetain(&primary, context.device);
    if (result != VNXI_CUDA_SUCCESS) {
        return vnxi_cuda_error(library, OPERATION, ordinal,
                               "cuDevicePrimaryCtxRetain", result, error);
    }
    context.is_retained = handle == NULL || handle == primary;
    context.handle = context.is_retained ? primary : handle;
    if (!context.is_retained) {
        cu->cuDevicePrimaryCtxRelease_v2(context.device);
    }
    *context_p = context;
    return VNX_OK;
}

void
vnxi_cuda_context_drop(vnxi_cuda_context_t *context)
{
    if (context->library != NULL && context->is_retained) {
        context->library->cu.cuDevicePrimaryCtxRelease_v2(context->device);
    }
    *context = (vnxi_cuda_context_t){0};
}

void
vnxi_cuda_relax(const vnxi_cuda_library_t *library, vnxi_cuda_scope_t *scope_p)
{
    *scope_p = (vnxi_cuda_scope_t){
        .mode = VNXI_CU_STREAM_CAPTURE_MODE_RELAXED,
    };
    if (library != NULL && library->cu.cuThreadExchangeStreamCaptureMode(
                               &scope_p->mode) == VNXI_CUDA_SUCCESS) {
        scope_p->library = library;
        scope_p->is_relaxed = true;
    }
}

vnx_status_t
vnxi_cuda_enter(const vnxi_cuda_context_t *context, vnxi_cuda_scope_t *scope_p,
                vnx_error_t *error)
{
    const vnxi_cuda_library_t *library = context->library;

    vnxi_cuda_relax(library, scope_p);
    if (library == NULL) {
        return VNX_OK;
    }
    vnxi_cu_result_t result = library->cu.cuCtxPushCurrent_v2(context->handle);
    if (result != VNXI_CUDA_SUCCESS) {
        vnxi_cuda_leave(scope_p);
        return vnxi_cuda_error(library, OPERATION, context->ordinal,
                               "cuCtxPushCurrent_v2", result, error);
    }
    scope_p->library = library;
    scope_p->is_pushed = true;
    return VNX_OK;
}

void
vnxi_cuda_leave(vnxi_cuda_scope_t *scope)
{
    if (scope->library == NULL) {
        return;
    }
    if (scope->is_pushed) {
        scope->library->cu.cuCtxPopCurrent_v2(NULL);
    }
    if (scope->is_relaxed) {
        scope->library->cu.cuThreadExchangeStreamCaptureMode(&scope->mode);
    }
    *scope = (vnxi_cuda_scope_t){0};
}

/* -- Memory ----------------------------------------------------------------
 */

void
vnxi_cuda_place_find(const vnxi_cuda_library_t *library, uint64_t addr,
                     vnxi_cuda_place_t *place_p)
{
    vnxi_cu_enum_t attributes[] = {
        VNXI_CU_POINTER_ATTRIBUTE_CONTEXT,
        VNXI_CU_POINTER_ATTRIBUTE_MEMORY_TYPE,
        VNXI_CU_POINTER_ATTRIBUTE_IS_MANAGED,
        VNXI_CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL,
    };
    uint64_t context = 0, type = 0, is_managed = 0, ordinal = 0;
    void *places[] = {&context, &type, &is_managed, &ordinal};

    *place_p = (vnxi_cuda_place_t){0};
    vnxi_cu_result_t result = library->cu.cuPointerGetAttributes(
        sizeof attributes / sizeof attributes[0], attributes, places, addr);
    if (result == VNXI_CUDA_SUCCESS &&
        (is_managed != 0 || type == VNXI_CU_MEMORYTYPE_DEVICE)) {
        *place_p = (vnxi_cuda_place_t){
            .is_gpu = true,
            .is_managed = is_managed != 0,
            .context = (vnxi_cu_context_t)(uintptr_t)context,
            .ordinal = (int)ordinal,
        };
    }
}

/* cuMemGetAddressRange_v2() does not work for managed memory, but attributes
 * have its range.  Of mapped memory they would have all reserved addresses. */
vnxi_cu_result_t
vnxi_cuda_find_end(const vnxi_cuda_library_t *library, uint64_t addr,
                   uint64_t *end_p)
{
    vnxi_cu_enum_t attributes[] = {
        VNXI_CU_POINTER_ATTRIBUTE_IS_MANAGED,
        VNXI_CU_POINTER_ATTRIBUTE_RANGE_START_ADDR,
        VNXI_CU_POINTER_ATTRIBUTE_RANGE_SIZE,
    };
    uint64_t is_managed = 0, range_start = 0, range_size = 0;
    void *places[] = {&is_managed, &range_start, &range_size};
    vnxi_cu_ptr_t start = 0;
    size_t size = 0;

    vnxi_cu_result_t result = library->cu.cuPointerGetAttributes(
        sizeof attributes / sizeof attributes[0], attributes, places, addr);
    if (result == VNXI_CUDA_SUCCESS && is_managed != 0) {
        bool is_inside =
            addr >= range_start && addr - range_start < range_size;
        *end_p = is_inside ? range_start + range_size : UINT64_MAX;
        return VNXI_CUDA_SUCCESS;
    }
    result = library->cu.cuMemGetAddressRange_v2(&start, &size, addr);
    if (result == VNXI_CUDA_SUCCESS && size == 0) {
        result = VNXI_CUDA_ERROR_NOT_FOUND;
    }
    if (result == VNXI_CUDA_SUCCESS) {
        *end_p = start + size;
    }
    return result;
}

vnx_status_t
vnxi_cuda_allocation_end(const vnxi_cuda_context_t *context, uint64_t addr,
                         uint64_t *end_p, vnx_error_t *error)
{
    vnxi_cu_result_t result =
        vnxi_cuda_find_end(context->library, addr, end_p);

    return result == VNXI_CUDA_SUCCESS
               ? VNX_OK
               : vnxi_cuda_error(context->library, OPERATION, context->ordinal,
                                 "cuMemGetAddressRange_v2", result, error);
}
