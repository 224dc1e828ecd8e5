/*
 * Design notes.  All GPUs of the process have one address space, but a GPU may
 * not use all of it.  One launch or batch for memory of several GPUs needs
 * memory from cudaMalloc() and enabled access.  Otherwise rows are copied one
 * by one, each in a context that may (gpu.c), for which `foreigns` says what
 * is of other GPUs.  Managed memory is not in it: all GPUs may use that.
 *
 * A kernel with a wrong address destroys the program's context, and with it
 * the model.  So before the first batch the driver is asked whether there is
 * still memory in the regions.  Addresses that are reserved for GPU memory may
 * be of type DEVICE while no memory is mapped there, as in a program's sleep
 * mode; MAPPED tells, if it was true of the memory before.
 */
#include "engine/native/cuda/rows.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "engine/native/region_access.h"
#include "engine/parts/list.h"

#define OPERATION "vnx_xfer_post"

/* Lists with more regions of CPU memory are not searched for pinned memory. */
#define PINNED_REGIONS_MAX 1024u

/* An owner that takes back what it has handed out is asked once more.  If a
 * post has done that so often, further answers do not make it wait longer. */
#define RESTARTS_MAX 8u

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

static vnx_status_t
check_address(const vnxi_cuda_mem_t *mem, const vnxi_region_t *region,
              uint64_t address, vnx_error_t *error)
{
    vnxi_cu_enum_t attributes[] = {VNXI_CU_POINTER_ATTRIBUTE_MEMORY_TYPE,
                                   VNXI_CU_POINTER_ATTRIBUTE_MAPPED};
    uint64_t found[2];

    vnxi_cu_result_t result = ask(mem->gpu, address, attributes, found, 2);
    if (result != VNXI_CUDA_SUCCESS) {
        return vnxi_cuda_error(mem->gpu->library, OPERATION, mem->gpu->ordinal,
                               "cuPointerGetAttributes", result, error);
    }
    return found[0] != 0 && (found[1] != 0 || !mem->is_mapped)
               ? VNX_OK
               : vnxi_error_set(error, VNX_ERR_NOT_FOUND, OPERATION,
                                "the GPU memory at 0x%" PRIx64 " of %" PRIu64
                                " bytes was freed while it was registered",
                                region->addr, region->len);
}

vnx_status_t
vnxi_cuda_check_memory(const vnxi_cuda_mem_t *mem, const vnxi_region_t *region,
                       vnx_error_t *error)
{
    vnx_status_t status = check_address(mem, region, region->addr, error);
    return status == VNX_OK
               ? check_address(mem, region, vnxi_region_end(region) - 1, error)
               : status;
}

/* Note memory of another gpu.  *reaches_p stays true if this one may use it.
 */
static vnx_status_t
add_foreign(vnxi_cuda_rows_t *rows, const vnxi_cuda_mem_t *mem,
            const vnxi_region_t *region, bool *reaches_p, vnx_error_t *error)
{
    const vnxi_cuda_foreign_t item = {region->addr, vnxi_region_end(region),
                                      mem->gpu};

    *reaches_p = *reaches_p && mem->is_legacy &&
                 vnxi_cuda_gpu_reaches(rows->gpu, mem->gpu);
    return mem->is_managed || vnxi_cuda_foreigns_add(&rows->foreigns, item)
               ? VNX_OK
               : vnxi_error_no_memory(error, OPERATION, sizeof item);
}

/* Check the regions of a list of GPU memory, and whether the gpu may use all
 * of them. */
static vnx_status_t
check_list(vnxi_cuda_rows_t *rows, const vnxi_list_t *list, bool *reaches_p,
           vnx_error_t *error)
{
    vnx_status_t status = VNX_OK;

    for (size_t i = 0; status == VNX_OK && i < list->region_count; i++) {
        const vnxi_region_t *region = list->regions[i];
        const vnxi_cuda_mem_t *mem = mem_of(rows, region);
        status = vnxi_cuda_check_memory(mem, region, error);
        if (status == VNX_OK && mem->gpu != rows->gpu) {
            status = add_foreign(rows, mem, region, reaches_p, error);
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

/* -- Memory of the peer's process -------------------------------------------
 */

static bool
is_far(const vnxi_list_t *list)
{
    return vnxi_native_region(list->regions[0])->is_remote;
}

static int
compare_spans(const void *a, const void *b)
{
    const vnxi_cuda_span_t *x = a, *y = b;
    return x->start < y->start ? -1 : x->start > y->start;
}

/* Sort the spans and cut off where they overlap: regions may. */
static void
sort_spans(vnxi_cuda_spans_t *spans)
{
    size_t kept = 0;

    qsort(spans->spans, spans->count, sizeof *spans->spans, compare_spans);
    for (size_t i = 0; i < spans->count; i++) {
        vnxi_cuda_span_t span = spans->spans[i];
        if (kept > 0 && span.start < spans->spans[kept - 1].end) {
            span.start = spans->spans[kept - 1].end;
        }
        if (span.start < span.end) {
            spans->spans[kept++] = span;
        }
    }
    spans->count = kept;
}

/* Are the regions at the beginning of the list in the spans already?  Not if
 * something was unmapped since. */
static bool
has_imported(const vnxi_cuda_rows_t *rows)
{
    return rows->imported > 0 && rows->unmapped == rows->gpu->unmapped;
}

/* Ask for several regions that are not mapped before waiting for the first. */
static vnx_status_t
import_regions(vnxi_cuda_rows_t *rows, const vnxi_list_t *list,
               vnx_error_t *error)
{
    unsigned waiting = 0;

    rows->span = 0;
    if (!has_imported(rows)) {
        rows->spans.count = rows->imported = 0;
        rows->unmapped = rows->gpu->unmapped;
    }
    for (size_t i = rows->imported;
         i < list->region_count && waiting < VNXI_CUDA_ASKS_MAX; i++) {
        vnxi_cuda_key_t *key = vnxi_region_slot(list->regions[i], rows->route);
        vnx_status_t status =
            key == NULL
                ? VNX_OK /* it has another route */
                : vnxi_cuda_import(key, rows->gpu, &rows->post,
                                   waiting == 0 ? &rows->spans : NULL, error);
        if (status < 0) {
            return status;
        }
        waiting += status == VNX_IN_PROG;
        rows->imported += waiting == 0;
    }
    return waiting > 0 ? VNX_IN_PROG : VNX_OK;
}

static vnx_status_t
import_list(vnxi_cuda_rows_t *rows, const vnxi_list_t *list,
            vnx_error_t *error)
{
    uint64_t answered = rows->post.answered;

    vnx_status_t status = import_regions(rows, list, error);
    if (status != VNX_IN_PROG) {
        rows->imported = 0;
    }
    if (status == VNX_OK) {
        sort_spans(&rows->spans);
    }
    if (rows->post.begun > list->region_count + RESTARTS_MAX) {
        rows->post.answered = answered;
    }
    return status;
}

/* Why the owner must move a region of the list; NULL: it need not. */
static const char *
why_moved(const vnxi_cuda_rows_t *rows, const vnxi_list_t *list)
{
    const char *why = NULL;

    for (size_t i = 0; why == NULL && i < list->region_count; i++) {
        const vnxi_cuda_key_t *key =
            vnxi_region_slot(list->regions[i], rows->route);
        if (key != NULL && !key->is_lent) {
            why = "its memory cannot be exported";
        } else if (key != NULL) {
            why = vnxi_cuda_why_unmappable(key, rows->gpu);
        }
    }
    return why == NULL && rows->gpu->library == NULL
               ? "this program does not use the peer's GPU"
               : why;
}

/* The regions as the owner has them. */
static vnx_status_t
list_spans(vnxi_cuda_rows_t *rows, const vnxi_list_t *list, vnx_error_t *error)
{
    rows->spans.count = rows->span = rows->imported = 0;
    for (size_t i = 0; i < list->region_count; i++) {
        const vnxi_cuda_key_t *key =
            vnxi_region_slot(list->regions[i], rows->route);
        if (key != NULL &&
            !vnxi_cuda_spans_add(
                &rows->spans,
                (vnxi_cuda_span_t){.start = key->addr,
                                   .end = vnxi_region_end(list->regions[i]),
                                   .key = key})) {
            return vnxi_error_no_memory(error, OPERATION,
                                        sizeof(vnxi_cuda_span_t));
        }
    }
    sort_spans(&rows->spans);
    if (rows->moving == NULL) {
        rows->moving = malloc(VNXI_LEND_ROWS_MAX * sizeof *rows->moving);
    }
    return rows->moving != NULL
               ? VNX_OK
               : vnxi_error_no_memory(error, OPERATION,
                                      VNXI_LEND_ROWS_MAX *
                                          sizeof *rows->moving);
}

/* Find the peer's GPU memory: mapped here, or to be moved by the owner.  The
 * import of a region that must be moved after all ends. */
static vnx_status_t
reach_list(vnxi_cuda_rows_t *rows, const vnxi_list_t *list, vnx_error_t *error)
{
    vnx_status_t status = VNX_OK;

    rows->why_moved = has_imported(rows) ? NULL : why_moved(rows, list);
    if (rows->why_moved == NULL) {
        status = import_list(rows, list, error);
        rows->why_moved = status < 0 ? why_moved(rows, list) : NULL;
    }
    rows->is_moved = rows->why_moved != NULL;
    return rows->is_moved ? list_spans(rows, list, error) : status;
}

static vnx_status_t
begin_check(vnxi_cuda_rows_t *rows, const vnxi_list_t *list,
            vnx_error_t *error)
{
    vnxi_cuda_key_t **keys = malloc(list->region_count * sizeof(void *));
    size_t count = 0;

    if (keys == NULL) {
        return vnxi_error_no_memory(error, OPERATION,
                                    list->region_count * sizeof(void *));
    }
    for (size_t i = 0; i < list->region_count; i++) {
        vnxi_cuda_key_t *key = vnxi_region_slot(list->regions[i], rows->route);
        if (key != NULL) {
            keys[count++] = key;
        }
    }
    vnx_status_t status =
        vnxi_cuda_check_begin(&rows->check, rows->gpu, keys, count, error);
    free(keys);
    return status;
}

static vnx_status_t
error_not_mapped(uint64_t address, vnx_error_t *error)
{
    return vnxi_error_set(error, VNX_ERR_MISMATCH, OPERATION,
                          "the peer's GPU memory at 0x%" PRIx64
                          " is not in what it has shared",
                          address);
}

/* Find the span of an address of the peer. */
static const vnxi_cuda_span_t *
find_span(vnxi_cuda_rows_t *rows, uint64_t address, vnx_error_t *error)
{
    const vnxi_cuda_spans_t *spans = &rows->spans;
    size_t low = 0, high = spans->count;

    if (rows->span < high && address >= spans->spans[rows->span].start &&
        address < spans->spans[rows->span].end) {
        return &spans->spans[rows->span];
    }
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (spans->spans[middle].end <= address) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    if (low == spans->count || spans->spans[low].start > address) {
        error_not_mapped(address, error);
        return NULL;
    }
    rows->span = low;
    return &spans->spans[low];
}

/* -- Preparing -------------------------------------------------------------
 */

static vnx_status_t
prepare(vnxi_cuda_rows_t *rows, vnx_error_t *error)
{
    const vnxi_list_t *local = rows->args->local, *remote = rows->args->remote;
    const vnxi_list_t *lists[] = {local, remote};
    bool reaches = true;
    vnx_status_t status = VNX_OK;

    rows->is_far = is_far(remote);
    rows->is_staged = rows->is_moved = false;
    rows->host_delta = 0;
    rows->foreigns.count = 0;
    if (rows->is_far && remote->mem == VNX_MEM_VRAM) {
        status = reach_list(rows, remote, error);
    }
    for (unsigned i = 0; status == VNX_OK && i < 2; i++) {
        bool is_far_list = i == 1 && rows->is_far;
        if (lists[i]->mem == VNX_MEM_VRAM) {
            status = is_far_list ? VNX_OK
                                 : check_list(rows, lists[i], &reaches, error);
        } else if (!rows->is_moved) {
            rows->is_staged = is_far_list || !is_list_pinned(rows, lists[i]);
        }
    }
    vnxi_cuda_foreigns_sort(&rows->foreigns);
    rows->method = reaches ? rows->gpu->method : VNXI_CUDA_LOOP;
    if (rows->method != VNXI_CUDA_KERNEL) {
        rows->host_delta = 0;
    }
    rows->is_prepared = status == VNX_OK;
    return status;
}

static vnx_status_t
begin(vnxi_cuda_rows_t *rows, vnx_error_t *error)
{
    vnxi_cuda_check_end(&rows->check);
    rows->has_begun = true;
    rows->is_all_sent = rows->has_failed = rows->is_stopped = false;
    rows->in_chunk = false;
    rows->chunk = 0;
    rows->piece.len = 0;
    return rows->spans.count > 0 && !rows->is_moved
               ? begin_check(rows, rows->args->remote, error)
               : VNX_OK;
}

void
vnxi_cuda_rows_fini(vnxi_cuda_rows_t *rows)
{
    vnxi_cuda_check_end(&rows->check);
    free(rows->spans.spans);
    free(rows->foreigns.items);
    free(rows->moving);
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

/* Take at most `max` bytes from the piece.  Its address in the peer becomes
 * the one that is mapped here. */
static vnx_status_t
take(vnxi_cuda_rows_t *rows, uint64_t max, vnxi_piece_t *taken_p,
     vnx_error_t *error)
{
    vnxi_piece_t taken = rows->piece;
    uint64_t delta = 0;

    if (rows->spans.count > 0) {
        const vnxi_cuda_span_t *span = find_span(rows, taken.remote, error);
        if (span == NULL) {
            return VNX_ERR_MISMATCH;
        }
        uint64_t left = span->end - taken.remote;
        max = left < max ? left : max;
        delta = span->delta;
    }
    if (taken.len > max) {
        taken.len = max;
    }
    rows->piece.local += taken.len;
    rows->piece.remote += taken.len;
    rows->piece.len -= taken.len;
    taken.remote += delta;
    *taken_p = taken;
    return VNX_OK;
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
static vnx_status_t
fill_direct(vnxi_cuda_rows_t *rows, vnxi_cuda_batch_t *batch,
            vnx_error_t *error)
{
    uint64_t most = 2 * rows->gpu->launch_bytes;
    bool is_read = rows->args->op == VNX_OP_READ;
    uint64_t to_src = 0, to_dst = 0;
    vnxi_piece_t piece;

    if (rows->direction == VNXI_CUDA_TO_DEVICE) {
        to_src = rows->host_delta;
    } else if (rows->direction == VNXI_CUDA_FROM_DEVICE) {
        to_dst = rows->host_delta;
    }
    while (batch->count < VNXI_CUDA_ROWS && batch->bytes < most &&
           next_piece(rows)) {
        vnx_status_t status = take(rows, row_max(rows), &piece, error);
        if (status != VNX_OK) {
            return status;
        }
        uint64_t src = is_read ? piece.remote : piece.local;
        uint64_t dst = is_read ? piece.local : piece.remote;
        add_row(batch, src + to_src, dst + to_dst, piece.len, 0);
    }
    return VNX_OK;
}

/* Copy between the stage and CPU memory, which may be the peer's. */
static vnx_status_t
move_staged(const vnxi_cuda_rows_t *rows, const vnxi_cuda_batch_t *batch,
            vnx_error_t *error)
{
    bool is_to_stage = rows->direction == VNXI_CUDA_TO_DEVICE;
    bool is_peers = rows->is_far && rows->args->remote->mem == VNX_MEM_DRAM;
    uint64_t delta = rows->method == VNXI_CUDA_KERNEL ? batch->stage_delta : 0;
    const vnxi_port_host_t *host = &rows->args->conn->port->config.host;
    vnxi_copy_row_t copies[256];
    vnx_status_t status = VNX_OK;
    size_t count = 0;

    for (uint32_t i = 0; status == VNX_OK && i < batch->count; i++) {
        const vnxi_cuda_row_t *row = &batch->rows[i];
        uint64_t stage = (is_to_stage ? row->src : row->dst) - delta;
        if (is_peers) {
            copies[count++] = (vnxi_copy_row_t){stage, row->spare, row->len};
        } else if (is_to_stage) {
            memcpy((void *)(uintptr_t)stage,
                   (const void *)(uintptr_t)row->spare, row->len);
        } else {
            memcpy((void *)(uintptr_t)row->spare,
                   (const void *)(uintptr_t)stage, row->len);
        }
        if (count == sizeof copies / sizeof *copies ||
            (count > 0 && i + 1 == batch->count)) {
            status =
                host->copy(host->context, rows->args->conn, copies, count,
                           is_to_stage ? VNX_OP_READ : VNX_OP_WRITE, error);
            count = 0;
        }
    }
    return status;
}

/* CPU memory goes by batch->stage.  A row there has the alignment of its GPU
 * memory, so that the kernel moves 16 bytes at a time. */
static vnx_status_t
fill_staged(vnxi_cuda_rows_t *rows, vnxi_cuda_batch_t *batch,
            vnx_error_t *error)
{
    bool is_to_gpu = rows->direction == VNXI_CUDA_TO_DEVICE;
    bool is_local_gpu = rows->args->local->mem == VNX_MEM_VRAM;
    uint64_t stage = (uintptr_t)batch->stage, used = 0;
    uint64_t delta = rows->method == VNXI_CUDA_KERNEL ? batch->stage_delta : 0;
    vnxi_piece_t piece;

    while (batch->count < VNXI_CUDA_ROWS && next_piece(rows)) {
        uint64_t next = is_local_gpu ? rows->piece.local : rows->piece.remote;
        uint64_t at = used + ((next - stage - used) & 15);
        if (at >= VNXI_CUDA_STAGE_BYTES) {
            break;
        }
        uint64_t room = VNXI_CUDA_STAGE_BYTES - at;
        vnx_status_t status = take(
            rows, room < row_max(rows) ? room : row_max(rows), &piece, error);
        if (status != VNX_OK) {
            return status;
        }
        uint64_t gpu = is_local_gpu ? piece.local : piece.remote;
        uint64_t host = is_local_gpu ? piece.remote : piece.local;
        uint64_t staged = stage + at + delta;
        add_row(batch, is_to_gpu ? staged : gpu, is_to_gpu ? gpu : staged,
                piece.len, host);
        used = at + piece.len;
    }
    return is_to_gpu ? move_staged(rows, batch, error) : VNX_OK;
}

/* -- What the owner moves --------------------------------------------------
 */

/* Copy between a half and our memory. */
static vnx_status_t
copy_half(const vnxi_cuda_rows_t *rows, const vnxi_cuda_half_t *half,
          bool is_to_half, vnx_error_t *error)
{
    vnxi_cuda_method_t method =
        half->is_pinned ? rows->method : VNXI_CUDA_LOOP;
    uint64_t delta = method == VNXI_CUDA_KERNEL ? half->delta : 0;
    bool is_gpu = rows->args->local->mem == VNX_MEM_VRAM;

    for (uint32_t i = 0; i < half->count; i++) {
        const vnxi_cuda_window_row_t *row = &half->rows[i];
        uint64_t there = (uintptr_t)half->bytes + row->offset + delta;
        uint64_t src = is_to_half ? row->local : there;
        uint64_t dst = is_to_half ? there : row->local;
        if (is_gpu) {
            rows->moving[i] = (vnxi_cuda_row_t){src, dst, row->len, 0};
        } else {
            memcpy((void *)(uintptr_t)dst, (const void *)(uintptr_t)src,
                   row->len);
        }
    }
    return is_gpu
               ? vnxi_cuda_gpu_copy(
                     rows->gpu, rows->moving, half->count, method,
                     is_to_half ? VNXI_CUDA_FROM_DEVICE : VNXI_CUDA_TO_DEVICE,
                     &rows->foreigns, error)
               : VNX_OK;
}

/* A row in the half has the alignment of the owner's memory, as in a stage. */
static vnx_status_t
fill_half(vnxi_cuda_rows_t *rows, vnxi_cuda_half_t *half, vnx_error_t *error)
{
    uint64_t used = 0;
    vnxi_piece_t piece;

    half->count = 0;
    while (half->count < VNXI_LEND_ROWS_MAX && next_piece(rows)) {
        uint64_t at = used + ((rows->piece.remote - used) & 15);
        if (at >= VNXI_WINDOW_HALF_BYTES) {
            break;
        }
        uint64_t room = VNXI_WINDOW_HALF_BYTES - at;
        vnx_status_t status = take(
            rows, room < VNXI_CUDA_KERNEL_ROW ? room : VNXI_CUDA_KERNEL_ROW,
            &piece, error);
        if (status != VNX_OK) {
            return status;
        }
        half->rows[half->count++] = (vnxi_cuda_window_row_t){
            .local = piece.local,
            .remote = piece.remote,
            .offset = (uint32_t)at,
            .len = (uint32_t)piece.len,
            .key = rows->spans.spans[rows->span].key,
        };
        used = at + piece.len;
    }
    return VNX_OK;
}

/* Fill half a window and have the owner move it. */
static vnx_status_t
send_half(vnxi_cuda_rows_t *rows, vnx_error_t *error)
{
    vnx_op_t op = rows->args->op;
    vnxi_cuda_half_t *half;

    if (!next_piece(rows)) {
        rows->is_all_sent = true;
        return VNX_OK;
    }
    vnx_status_t status =
        vnxi_cuda_half_get(rows->spans.spans[0].key, rows->gpu,
                           rows->post.since, rows->why_moved, &half, error);
    if (status != VNX_OK) {
        return status;
    }
    status = fill_half(rows, half, error);
    if (status == VNX_OK && op == VNX_OP_WRITE) {
        status = copy_half(rows, half, true, error);
    }
    if (status != VNX_OK) {
        vnxi_cuda_half_free(half);
        return status;
    }
    status = vnxi_cuda_half_send(half, op, rows, error);
    rows->pending += status == VNX_OK;
    return status;
}

void
vnxi_cuda_rows_return(void *user, vnxi_cuda_half_t *half)
{
    vnxi_cuda_rows_t *rows = user;
    vnx_error_t error = half->error;
    vnx_status_t status = half->status;

    rows->pending--;
    rows->has_returned = true;
    if (rows->is_stopped || rows->has_failed) {
        return;
    }
    if (status == VNX_OK) {
        status = rows->args->go_on(rows->args->context, &error);
    }
    if (status == VNX_OK && half->op == VNX_OP_READ) {
        status = copy_half(rows, half, false, &error);
    }
    if (status != VNX_OK) {
        rows->has_failed = true;
        rows->error = error;
    }
}

void
vnxi_cuda_rows_stop(vnxi_cuda_rows_t *rows, bool is_late)
{
    rows->is_stopped = true;
    rows->pending -= vnxi_cuda_halves_abandon(rows->gpu, rows, !is_late);
}

/* -- Batches ---------------------------------------------------------------
 */

vnx_status_t
vnxi_cuda_rows_bring(const vnxi_cuda_rows_t *rows,
                     const vnxi_cuda_batch_t *batch, vnx_error_t *error)
{
    vnx_status_t status = rows->args->go_on(rows->args->context, error);
    return status == VNX_OK ? move_staged(rows, batch, error) : status;
}

vnx_status_t
vnxi_cuda_rows_fill(vnxi_cuda_rows_t *rows, vnxi_cuda_batch_t *batch,
                    vnx_error_t *error)
{
    vnx_status_t status = rows->args->go_on(rows->args->context, error);

    batch->count = 0;
    batch->bytes = 0;
    batch->foreigns = &rows->foreigns;
    if (status == VNX_OK && !rows->is_prepared) {
        status = prepare(rows, error);
    }
    if (status == VNX_OK && !rows->has_begun) {
        status = begin(rows, error);
    }
    if (status == VNX_OK && rows->is_moved) {
        return send_half(rows, error);
    }
    if (status == VNX_OK && rows->is_staged) {
        status = vnxi_cuda_gpu_stage(rows->gpu, batch, error);
    }
    if (status != VNX_OK) {
        return status;
    }
    return rows->is_staged ? fill_staged(rows, batch, error)
                           : fill_direct(rows, batch, error);
}
