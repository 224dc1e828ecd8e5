/*
 * Design notes.  An address is enough to copy from or to any GPU of the
 * process, because all of them have one address space.  But a kernel may use
 * memory of another context only if that is from cudaMalloc() and access was
 * enabled; otherwise the driver copies.
 *
 * A kernel with a wrong address destroys the program's context, and with it
 * the model.  So before the first batch the driver is asked whether there is
 * still memory in the regions.
 */
#include "engine/native/cuda/rows.h"

#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "engine/native/region_access.h"
#include "engine/parts/list.h"

#define OPERATION "vnx_xfer_post"

/* Lists with more regions of CPU memory are not searched for pinned memory. */
#define PINNED_REGIONS_MAX 1024u

/* -- Beginning --------------------------------------------------
 */

static const vnxi_cuda_mem_t *
mem_of(const vnxi_cuda_rows_t *rows, const vnxi_region_t *region)
{
    return vnxi_region_slot(region, rows->route);
}

static vnxi_cu_result_t
ask(const vnxi_cuda_gpu_t *gpu, uint64_t address, vnxi_cu_enum_t *attributes,
    uint64_t *results, unsigned count)
{
    void *places[4];

    for (unsigned i = 0; i < count; i++) {
        results[i] = 0;
        places[i] = &results[i];
    }
    return gpu->library->cu.cuPointerGetAttributes(count, attributes, places,
                                                   address);
}

/* Is there still memory at this address of the region?  It may be other memory
 * than at registration: programs that put their GPU memory to sleep map new
 * memory at the same place. */
static vnx_status_t
check_address(const vnxi_cuda_rows_t *rows, const vnxi_region_t *region,
              uint64_t address, vnx_error_t *error)
{
    vnxi_cu_enum_t attributes[] = {VNXI_CU_POINTER_ATTRIBUTE_MEMORY_TYPE};
    uint64_t type;

    vnxi_cu_result_t result = ask(rows->gpu, address, attributes, &type, 1);
    if (result != VNXI_CUDA_SUCCESS) {
        return vnxi_cuda_error(rows->gpu->library, OPERATION,
                               rows->gpu->ordinal, "cuPointerGetAttributes",
                               result, error);
    }
    return type != 0
               ? VNX_OK
               : vnxi_error_set(error, VNX_ERR_NOT_FOUND, OPERATION,
                                "the GPU memory at 0x%" PRIx64 " of %" PRIu64
                                " bytes was freed while it was registered",
                                region->addr, region->len);
}

/* Of many allocations only the first and the last are checked. */
static vnx_status_t
check_region(const vnxi_cuda_rows_t *rows, const vnxi_region_t *region,
             vnx_error_t *error)
{
    vnx_status_t status = check_address(rows, region, region->addr, error);
    return status == VNX_OK ? check_address(rows, region,
                                            vnxi_region_end(region) - 1, error)
                            : status;
}

/* Check the regions of a list of GPU memory, and whether the kernel may use
 * all of them. */
static vnx_status_t
check_list(vnxi_cuda_rows_t *rows, const vnxi_list_t *list, bool *by_kernel_p,
           vnx_error_t *error)
{
    vnx_status_t status = VNX_OK;

    for (size_t i = 0; status == VNX_OK && i < list->region_count; i++) {
        const vnxi_cuda_mem_t *mem = mem_of(rows, list->regions[i]);
        status = check_region(rows, list->regions[i], error);
        if (mem->gpu != rows->gpu) {
            *by_kernel_p = *by_kernel_p && mem->is_legacy &&
                           vnxi_cuda_gpu_reaches(rows->gpu, mem->gpu);
        }
    }
    return status;
}

/* Is the region of CPU memory pinned?  *delta_p: from its address to the
 * kernel's. */
static bool
is_pinned(vnxi_cuda_gpu_t *gpu, const vnxi_region_t *region, uint64_t *delta_p)
{
    vnxi_cu_enum_t attributes[] = {
        VNXI_CU_POINTER_ATTRIBUTE_MEMORY_TYPE,
        VNXI_CU_POINTER_ATTRIBUTE_RANGE_START_ADDR,
        VNXI_CU_POINTER_ATTRIBUTE_RANGE_SIZE,
    };
    uint64_t found[3];
    vnxi_cu_ptr_t there;

    if (ask(gpu, region->addr, attributes, found, 3) != VNXI_CUDA_SUCCESS ||
        found[0] != VNXI_CU_MEMORYTYPE_HOST || found[1] > region->addr ||
        region->addr - found[1] > found[2] ||
        found[2] - (region->addr - found[1]) < region->len ||
        gpu->library->cu.cuMemHostGetDevicePointer_v2(
            &there, (void *)(uintptr_t)region->addr, 0) != VNXI_CUDA_SUCCESS) {
        return false;
    }
    *delta_p = there - region->addr;
    return true;
}

/* Is all memory of the list pinned, and the kernel's addresses differ by one
 * number from the program's? */
static bool
is_list_pinned(vnxi_cuda_rows_t *rows, const vnxi_list_t *list)
{
    vnxi_cuda_gpu_t *gpu = rows->gpu;
    uint64_t delta = 0;

    if (list->region_count > PINNED_REGIONS_MAX ||
        !is_pinned(gpu, list->regions[0], &rows->host_delta)) {
        return false;
    }
    for (size_t i = 1; i < list->region_count; i++) {
        if (!is_pinned(gpu, list->regions[i], &delta) ||
            delta != rows->host_delta) {
            return false;
        }
    }
    return true;
}

static vnx_status_t
begin(vnxi_cuda_rows_t *rows, vnx_error_t *error)
{
    const vnxi_list_t *lists[] = {rows->args->local, rows->args->remote};
    bool by_kernel = rows->gpu->method == VNXI_CUDA_KERNEL;
    vnx_status_t status = VNX_OK;

    rows->has_begun = true;
    rows->is_staged = rows->in_chunk = false;
    rows->chunk = 0;
    rows->piece.len = 0;
    rows->host_delta = 0;
    for (unsigned i = 0; status == VNX_OK && i < 2; i++) {
        if (lists[i]->mem == VNX_MEM_VRAM) {
            status = check_list(rows, lists[i], &by_kernel, error);
        } else {
            rows->is_staged = !is_list_pinned(rows, lists[i]);
        }
    }
    rows->method = by_kernel ? VNXI_CUDA_KERNEL
                   : rows->gpu->method == VNXI_CUDA_KERNEL
                       ? VNXI_CUDA_LOOP /* other contexts: one by one */
                       : rows->gpu->method;
    if (!by_kernel) {
        rows->host_delta = 0;
    }
    return status;
}

/* -- Filling a batch -------------------------------------------------------
 */

/* Make rows->piece the next piece of the transfer's route; false: none is
 * left. */
static bool
next_piece(vnxi_cuda_rows_t *rows)
{
    const vnxi_plan_t *plan = rows->args->plan;

    while (rows->piece.len == 0) {
        if (!rows->in_chunk) {
            if (rows->chunk == plan->chunk_count) {
                return false;
            }
            rows->walk = vnxi_plan_walk(plan, rows->chunk++);
            rows->in_chunk = true;
        }
        if (!vnxi_walk_next(&rows->walk, &rows->piece)) {
            rows->in_chunk = false;
            rows->piece.len = 0;
        } else if (rows->piece.route != rows->route) {
            rows->piece.len = 0;
        }
    }
    return true;
}

/* Take at most `max` bytes from the piece. */
static vnxi_piece_t
take(vnxi_cuda_rows_t *rows, uint64_t max)
{
    vnxi_piece_t taken = rows->piece;

    if (taken.len > max) {
        taken.len = max;
    }
    rows->piece.local += taken.len;
    rows->piece.remote += taken.len;
    rows->piece.len -= taken.len;
    return taken;
}

static uint64_t
row_max(const vnxi_cuda_rows_t *rows)
{
    return rows->method == VNXI_CUDA_KERNEL ? VNXI_CUDA_KERNEL_ROW
                                            : UINT64_MAX;
}

/* A transfer may copy memory to itself: for its notification. */
static void
add_row(vnxi_cuda_batch_t *batch, uint64_t src, uint64_t dst, uint64_t len,
        uint64_t spare)
{
    if (src == dst) {
        return;
    }
    batch->rows[batch->count++] = (vnxi_cuda_row_t){src, dst, len, spare};
    batch->bytes += len;
}

/* The GPU reaches both sides. */
static void
fill_direct(vnxi_cuda_rows_t *rows, vnxi_cuda_batch_t *batch)
{
    uint64_t most = 2 * rows->gpu->launch_bytes;
    bool is_read = rows->args->op == VNX_OP_READ;
    uint64_t to_src = 0, to_dst = 0;

    if (rows->direction == VNXI_CUDA_TO_DEVICE) {
        to_src = rows->host_delta;
    } else if (rows->direction == VNXI_CUDA_FROM_DEVICE) {
        to_dst = rows->host_delta;
    }
    while (batch->count < VNXI_CUDA_ROWS && batch->bytes < most &&
           next_piece(rows)) {
        vnxi_piece_t piece = take(rows, row_max(rows));
        uint64_t src = is_read ? piece.remote : piece.local;
        uint64_t dst = is_read ? piece.local : piece.remote;
        add_row(batch, src + to_src, dst + to_dst, piece.len, 0);
    }
}

/* CPU memory goes by batch->stage.  A row there has the alignment of its GPU
 * memory, so that the kernel moves 16 bytes at a time. */
static void
fill_staged(vnxi_cuda_rows_t *rows, vnxi_cuda_batch_t *batch)
{
    bool is_write_to_gpu = rows->direction == VNXI_CUDA_TO_DEVICE;
    bool is_local_gpu = rows->args->local->mem == VNX_MEM_VRAM;
    uint64_t stage = (uintptr_t)batch->stage, used = 0;
    uint64_t delta = rows->method == VNXI_CUDA_KERNEL ? batch->stage_delta : 0;

    while (batch->count < VNXI_CUDA_ROWS && next_piece(rows)) {
        uint64_t gpu = is_local_gpu ? rows->piece.local : rows->piece.remote;
        uint64_t at = used + ((gpu - stage - used) & 15);
        if (at >= VNXI_CUDA_STAGE_BYTES) {
            break;
        }
        uint64_t room = VNXI_CUDA_STAGE_BYTES - at;
        vnxi_piece_t piece =
            take(rows, room < row_max(rows) ? room : row_max(rows));
        uint64_t host = is_local_gpu ? piece.remote : piece.local;
        if (is_write_to_gpu) {
            memcpy(batch->stage + at, (const void *)(uintptr_t)host,
                   piece.len);
            add_row(batch, stage + at + delta, gpu, piece.len, host);
        } else {
            add_row(batch, gpu, stage + at + delta, piece.len, host);
        }
        used = at + piece.len;
    }
}

void
vnxi_cuda_rows_bring(const vnxi_cuda_rows_t *rows,
                     const vnxi_cuda_batch_t *batch)
{
    uint64_t delta = rows->method == VNXI_CUDA_KERNEL ? batch->stage_delta : 0;

    for (uint32_t i = 0; i < batch->count; i++) {
        const vnxi_cuda_row_t *row = &batch->rows[i];
        memcpy((void *)(uintptr_t)row->spare,
               (const void *)(uintptr_t)(row->dst - delta), row->len);
    }
}

vnx_status_t
vnxi_cuda_rows_fill(vnxi_cuda_rows_t *rows, vnxi_cuda_batch_t *batch,
                    vnx_error_t *error)
{
    vnx_status_t status = rows->args->go_on(rows->args->context, error);

    batch->count = 0;
    batch->bytes = 0;
    if (status == VNX_OK && !rows->has_begun) {
        status = begin(rows, error);
    }
    if (status == VNX_OK && rows->is_staged) {
        status = vnxi_cuda_gpu_stage(rows->gpu, batch, error);
    }
    if (status != VNX_OK) {
        return status;
    }
    if (rows->is_staged) {
        fill_staged(rows, batch);
    } else {
        fill_direct(rows, batch);
    }
    return VNX_OK;
}
