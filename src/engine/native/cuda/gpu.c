/*
 * Design notes.
 *
 * The table of rows is written by the CPU into memory that the GPU can read.
 * Reading it from there costs a warp a trip over PCIe for each row, so a long
 * table is copied to the GPU first, with the same stream.
 *
 * A batch is divided into launches of at most `launch_bytes`, because a kernel
 * is not interrupted: the program's own kernels get the processors in between.
 * For the same reason a launch has few blocks of threads (`ctas`): they move
 * bytes about as fast as the memory can, and leave the other processors to the
 * program.
 *
 * The driver copies memory of cuMemCreate() and of pools in a context that has
 * access to it, so CPU memory and such memory of another gpu are copied in the
 * context of that gpu.  Between two gpus cuMemcpyPeerAsync() does it, to which
 * both contexts are told.  A stream in another context lasts for one batch
 * only: the program may end the context when the transfer has ended.
 *
 * After some errors a context is lost: every call in it fails.  Which ones
 * these are depends on the driver, so after an error the stream is asked.
 *
 * Figures: CTAs and bytes of a launch are what others have measured
 * (docs/gpu.md); 1024 threads are the most that a block can have.
 */
#include "engine/native/cuda/gpu.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/error.h"
#include "base/log.h"

#define OPERATION "vnx_xfer_post"
#define WARP 32u
#define BLOCK 1024u
#define CTAS 16u
#define CTAS_MAX 4096u
#define LAUNCH_BYTES (64u << 20)
#define LAUNCH_BYTES_MIN (1u << 20)
#define LAUNCH_BYTES_MAX (UINT64_C(1) << 40)

/* Shorter tables are read by the kernel from CPU memory. */
#define ROWS_IN_PLACE 1024u

/* For cuMemcpyBatchAsync(): read each source when the stream comes to it. */
#define COPY_ATTR                                                 \
    {                                                             \
        .srcAccessOrder = VNXI_CU_MEMCPY_SRC_ACCESS_ORDER_STREAM, \
        .flags = VNXI_CU_MEMCPY_FLAG_PREFER_OVERLAP_WITH_COMPUTE  \
    }

#define TABLE_BYTES (VNXI_CUDA_ROWS * sizeof(vnxi_cuda_row_t))
#define SHORT_TABLE_BYTES (ROWS_IN_PLACE * sizeof(vnxi_cuda_row_t))

_Static_assert(VNXI_CUDA_ROWS_AT_ONCE <= ROWS_IN_PLACE,
               "the short table is read in place");

/* -- Errors ----------------------------------------------------------------
 */

const char *
vnxi_cuda_method_name(vnxi_cuda_method_t method)
{
    static const char *const names[] = {"kernel", "batch", "loop"};
    return names[method];
}

static const char *
error_name(const vnxi_cuda_library_t *library, vnxi_cu_result_t result)
{
    const char *name = NULL;
    return library->cu.cuGetErrorName(result, &name) == VNXI_CUDA_SUCCESS &&
                   name != NULL
               ? name
               : "unknown error";
}

vnx_status_t
vnxi_cuda_error(const vnxi_cuda_library_t *library, const char *operation,
                int ordinal, const char *function, vnxi_cu_result_t result,
                vnx_error_t *error)
{
    return vnxi_error_set(error, VNX_ERR_BACKEND, operation,
                          "GPU %d: %s: %s (%u)", ordinal, function,
                          error_name(library, result), result);
}

static vnx_status_t
fail(const vnxi_cuda_gpu_t *gpu, const char *function, vnxi_cu_result_t result,
     vnx_error_t *error)
{
    return vnxi_cuda_error(gpu->library, OPERATION, gpu->ordinal, function,
                           result, error);
}

bool
vnxi_cuda_gpu_works(vnxi_cuda_gpu_t *gpu, vnx_error_t *error)
{
    if (gpu->library == NULL) {
        return true; /* a worker without a GPU */
    }
    vnxi_cu_result_t result = gpu->library->cu.cuStreamQuery(gpu->stream);

    if (result == VNXI_CUDA_SUCCESS || result == VNXI_CUDA_ERROR_NOT_READY) {
        return true;
    }
    fail(gpu, "cuStreamQuery", result, error);
    return false;
}

/* -- Settings --------------------------------------------------------------
 */

/* A number from the environment, from `least` to `most`. */
static uint64_t
setting(const char *variable, uint64_t value, uint64_t least, uint64_t most)
{
    const char *text = getenv(variable);
    char *end;

    if (text == NULL || text[0] == '\0') {
        return value;
    }
    errno = 0;
    unsigned long long number = strtoull(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end != '\0' || errno != 0 ||
        number < least || number > most) {
        vnxi_log(VNX_LOG_WARNING, NULL,
                 "%s '%.64s' is not a number from %llu to %llu: it is %llu",
                 variable, text, (unsigned long long)least,
                 (unsigned long long)most, (unsigned long long)value);
        return value;
    }
    return number;
}

/* -- Memory that both sides reach ------------------------------------------
 */

/* False: *why_p, *result_p. */
static bool
pin(const vnxi_cuda_gpu_t *gpu, void *data, size_t size,
    vnxi_cu_ptr_t *there_p, const char **why_p, vnxi_cu_result_t *result_p)
{
    const vnxi_cu_functions_t *cu = &gpu->library->cu;

    *why_p = "cuMemHostRegister_v2";
    *result_p = cu->cuMemHostRegister_v2(
        data, size,
        VNXI_CU_MEMHOSTREGISTER_PORTABLE | VNXI_CU_MEMHOSTREGISTER_DEVICEMAP);
    if (*result_p != VNXI_CUDA_SUCCESS) {
        return false;
    }
    *why_p = "cuMemHostGetDevicePointer_v2";
    *result_p = cu->cuMemHostGetDevicePointer_v2(there_p, data, 0);
    if (*result_p != VNXI_CUDA_SUCCESS) {
        cu->cuMemHostUnregister(data);
    }
    return *result_p == VNXI_CUDA_SUCCESS;
}

bool
vnxi_cuda_gpu_pin(const vnxi_cuda_gpu_t *gpu, void *data, size_t size,
                  uint64_t *delta_p)
{
    vnxi_cu_ptr_t there;
    vnxi_cu_result_t result;
    const char *why;

    if (!pin(gpu, data, size, &there, &why, &result)) {
        return false;
    }
    *delta_p = there - (uintptr_t)data;
    return true;
}

void
vnxi_cuda_gpu_unpin(const vnxi_cuda_gpu_t *gpu, void *data)
{
    gpu->library->cu.cuMemHostUnregister(data);
}

/* Map `size` bytes and pin them.  NULL: *why_p. */
static void *
map_pinned(const vnxi_cuda_gpu_t *gpu, size_t size, vnxi_cu_ptr_t *there_p,
           const char **why_p, vnxi_cu_result_t *result_p)
{
    void *data = mmap(NULL, size, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (data == MAP_FAILED) {
        *why_p = "mmap";
        *result_p = VNXI_CUDA_ERROR_OUT_OF_MEMORY;
        return NULL;
    }
    /* A forked child would not see what the GPU writes, and has no use for
     * it. */
    madvise(data, size, MADV_DONTFORK);
    if (!pin(gpu, data, size, there_p, why_p, result_p)) {
        munmap(data, size);
        return NULL;
    }
    return data;
}

static void
unmap_pinned(const vnxi_cuda_gpu_t *gpu, void *data, size_t size)
{
    if (data != NULL) {
        vnxi_cuda_gpu_unpin(gpu, data);
        munmap(data, size);
    }
}

vnx_status_t
vnxi_cuda_gpu_stage(vnxi_cuda_gpu_t *gpu, vnxi_cuda_batch_t *batch,
                    vnx_error_t *error)
{
    vnxi_cu_ptr_t there;
    vnxi_cu_result_t result;
    const char *why;

    if (batch->stage != NULL) {
        return VNX_OK;
    }
    batch->stage =
        map_pinned(gpu, VNXI_CUDA_STAGE_BYTES, &there, &why, &result);
    if (batch->stage == NULL) {
        return fail(gpu, why, result, error);
    }
    batch->stage_delta = there - (uintptr_t)batch->stage;
    return VNX_OK;
}

/* -- Memory of other gpus --------------------------------------------------
 */

bool
vnxi_cuda_foreigns_add(vnxi_cuda_foreigns_t *foreigns,
                       vnxi_cuda_foreign_t item)
{
    if (foreigns->count == foreigns->room) {
        size_t room = 2 * foreigns->room + 4;
        void *items = realloc(foreigns->items, room * sizeof item);
        if (items == NULL) {
            return false;
        }
        foreigns->items = items;
        foreigns->room = room;
    }
    foreigns->items[foreigns->count++] = item;
    return true;
}

static int
compare_foreigns(const void *a, const void *b)
{
    const vnxi_cuda_foreign_t *x = a, *y = b;
    return x->start < y->start ? -1 : x->start > y->start;
}

/* Regions may overlap: cut them off. */
void
vnxi_cuda_foreigns_sort(vnxi_cuda_foreigns_t *foreigns)
{
    size_t kept = 0;

    if (foreigns->count > 0) {
        qsort(foreigns->items, foreigns->count, sizeof *foreigns->items,
              compare_foreigns);
    }
    for (size_t i = 0; i < foreigns->count; i++) {
        vnxi_cuda_foreign_t item = foreigns->items[i];
        if (kept > 0 && item.start < foreigns->items[kept - 1].end) {
            item.start = foreigns->items[kept - 1].end;
        }
        if (item.start < item.end) {
            foreigns->items[kept++] = item;
        }
    }
    foreigns->count = kept;
}

/* -- Opening ---------------------------------------------------------------
 */

static void
no_kernel(vnxi_cuda_gpu_t *gpu, const char *function, vnxi_cu_result_t result,
          const char *more)
{
    snprintf(gpu->why, sizeof gpu->why, "no kernel: %s: %s (%u)%s%.120s",
             function, error_name(gpu->library, result), result,
             more[0] != '\0' ? ": " : "", more);
}

/* The first launch loads the code, so it is done now, with no rows. */
static bool
try_kernel(vnxi_cuda_gpu_t *gpu)
{
    uint64_t rows = gpu->batches[0].table;
    uint32_t count = 0;
    void *params[] = {&rows, &count};

    vnxi_cu_result_t result = gpu->library->cu.cuLaunchKernel(
        gpu->function, 1, 1, 1, BLOCK, 1, 1, 0, gpu->stream, params, NULL);
    if (result == VNXI_CUDA_SUCCESS) {
        result = gpu->library->cu.cuStreamSynchronize(gpu->stream);
    }
    if (result != VNXI_CUDA_SUCCESS) {
        no_kernel(gpu, "cuLaunchKernel", result, "");
    }
    return result == VNXI_CUDA_SUCCESS;
}

static bool
load_kernel(vnxi_cuda_gpu_t *gpu)
{
    const vnxi_cu_functions_t *cu = &gpu->library->cu;
    char log[512] = "";
    vnxi_cu_enum_t options[] = {VNXI_CU_JIT_ERROR_LOG_BUFFER,
                                VNXI_CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES};
    /* The driver takes the number itself for a pointer. */
    void *values[] = {log, (void *)(uintptr_t)(sizeof log - 1)};

    vnxi_cu_result_t result = cu->cuModuleLoadDataEx(
        &gpu->module, vnxi_cuda_kernel_text, 2, options, values);
    if (result != VNXI_CUDA_SUCCESS) {
        gpu->module = NULL;
        no_kernel(gpu, "cuModuleLoadDataEx", result, log);
        return false;
    }
    result = cu->cuModuleGetFunction(&gpu->function, gpu->module,
                                     VNXI_CUDA_KERNEL_NAME);
    if (result != VNXI_CUDA_SUCCESS) {
        no_kernel(gpu, "cuModuleGetFunction", result, "");
        return false;
    }
    return try_kernel(gpu);
}

/* The tables that the kernel needs. */
static bool
make_tables(vnxi_cuda_gpu_t *gpu)
{
    vnxi_cu_result_t result;
    const char *why;

    for (unsigned i = 0; i < VNXI_CUDA_BATCHES; i++) {
        vnxi_cuda_batch_t *batch = &gpu->batches[i];
        batch->rows =
            map_pinned(gpu, TABLE_BYTES, &batch->rows_there, &why, &result);
        batch->is_pinned = batch->rows != NULL;
        if (batch->is_pinned) {
            why = "cuMemAlloc_v2";
            result =
                gpu->library->cu.cuMemAlloc_v2(&batch->table, TABLE_BYTES);
        }
        if (!batch->is_pinned || result != VNXI_CUDA_SUCCESS) {
            batch->table = 0;
            no_kernel(gpu, why, result, "");
            return false;
        }
    }
    return true;
}

/* What the other methods need. */
static vnx_status_t
make_arrays(vnxi_cuda_gpu_t *gpu, vnx_error_t *error)
{
    bool has_memory = true;

    for (unsigned i = 0; i < 2; i++) {
        gpu->copies[i] = malloc(VNXI_CUDA_ROWS * sizeof *gpu->copies[i]);
        has_memory = has_memory && gpu->copies[i] != NULL;
    }
    gpu->sizes = malloc(VNXI_CUDA_ROWS * sizeof *gpu->sizes);
    has_memory = has_memory && gpu->sizes != NULL;
    for (unsigned i = 0; i < VNXI_CUDA_BATCHES; i++) {
        vnxi_cuda_batch_t *batch = &gpu->batches[i];
        if (batch->rows == NULL) {
            batch->rows = malloc(TABLE_BYTES);
        }
        has_memory = has_memory && batch->rows != NULL;
    }
    return has_memory ? VNX_OK
                      : vnxi_error_no_memory(error, OPERATION, TABLE_BYTES);
}

static void
no_batch(vnxi_cuda_gpu_t *gpu, const char *why)
{
    size_t len = strlen(gpu->why);
    snprintf(gpu->why + len, sizeof gpu->why - len, "; no batch: %s", why);
}

/* Does a batch of one row work? */
static bool
try_batch(vnxi_cuda_gpu_t *gpu)
{
    const vnxi_cu_functions_t *cu = &gpu->library->cu;
    vnxi_cu_copy_attr_t attr = COPY_ATTR;
    size_t size = 16, attr_start = 0, bad = 0;
    vnxi_cu_ptr_t from = 0;

    if (cu->cuMemcpyBatchAsync == NULL) {
        no_batch(gpu, "the driver is older than CUDA 12.8");
        return false;
    }
    vnxi_cu_result_t result = cu->cuMemAlloc_v2(&from, 2 * size);
    if (result == VNXI_CUDA_SUCCESS) {
        vnxi_cu_ptr_t to = from + size;
        result = cu->cuMemcpyBatchAsync(&to, &from, &size, 1, &attr,
                                        &attr_start, 1, &bad, gpu->stream);
        result = result == VNXI_CUDA_SUCCESS
                     ? cu->cuStreamSynchronize(gpu->stream)
                     : result;
        cu->cuMemFree_v2(from);
    }
    if (result != VNXI_CUDA_SUCCESS) {
        no_batch(gpu, error_name(gpu->library, result));
    }
    return result == VNXI_CUDA_SUCCESS;
}

static void
choose_method(vnxi_cuda_gpu_t *gpu)
{
    gpu->method = make_tables(gpu) && load_kernel(gpu) ? VNXI_CUDA_KERNEL
                  : try_batch(gpu)                     ? VNXI_CUDA_BATCH
                                                       : VNXI_CUDA_LOOP;
}

/* In the context of the gpu, which is current. */
static vnx_status_t
create_stream(const vnxi_cuda_gpu_t *gpu, vnxi_cu_stream_t *stream_p,
              vnx_error_t *error)
{
    const vnxi_cu_functions_t *cu = &gpu->library->cu;
    int lowest = 0, highest = 0;

    vnxi_cu_result_t result =
        cu->cuCtxGetStreamPriorityRange(&lowest, &highest);
    if (result != VNXI_CUDA_SUCCESS) {
        return fail(gpu, "cuCtxGetStreamPriorityRange", result, error);
    }
    result = cu->cuStreamCreateWithPriority(
        stream_p, VNXI_CU_STREAM_NON_BLOCKING, highest);
    if (result != VNXI_CUDA_SUCCESS) {
        *stream_p = NULL;
        return fail(gpu, "cuStreamCreateWithPriority", result, error);
    }
    return VNX_OK;
}

static vnx_status_t
make_stream(vnxi_cuda_gpu_t *gpu, vnx_error_t *error)
{
    const vnxi_cu_functions_t *cu = &gpu->library->cu;
    vnxi_cu_enum_t mode = VNXI_CU_STREAM_CAPTURE_MODE_RELAXED;

    vnxi_cu_result_t result = cu->cuCtxPushCurrent_v2(gpu->context);
    if (result != VNXI_CUDA_SUCCESS) {
        return fail(gpu, "cuCtxPushCurrent_v2", result, error);
    }
    result = cu->cuThreadExchangeStreamCaptureMode(&mode);
    if (result != VNXI_CUDA_SUCCESS) {
        return fail(gpu, "cuThreadExchangeStreamCaptureMode", result, error);
    }
    return create_stream(gpu, &gpu->stream, error);
}

vnx_status_t
vnxi_cuda_gpu_open(vnxi_cuda_gpu_t *gpu, vnx_error_t *error)
{
    gpu->ctas = (unsigned)setting("VLLM_NIXL_CUDA_CTAS", CTAS, 1, CTAS_MAX);
    gpu->launch_bytes = setting("VLLM_NIXL_CUDA_LAUNCH_BYTES", LAUNCH_BYTES,
                                LAUNCH_BYTES_MIN, LAUNCH_BYTES_MAX);
    vnx_status_t status = make_stream(gpu, error);
    if (status == VNX_OK) {
        choose_method(gpu);
        status = make_arrays(gpu, error);
    }
    if (status == VNX_OK && !vnxi_cuda_gpu_works(gpu, error)) {
        status = VNX_ERR_BACKEND;
    }
    if (status == VNX_OK) {
        vnxi_log(VNX_LOG_DEBUG, NULL, "GPU %d copies by %s%s%s", gpu->ordinal,
                 vnxi_cuda_method_name(gpu->method),
                 gpu->why[0] != '\0' ? ": " : "", gpu->why);
        atomic_store(&gpu->is_open, true);
    }
    return status;
}

void
vnxi_cuda_gpu_close(vnxi_cuda_gpu_t *gpu)
{
    const vnxi_cu_functions_t *cu = &gpu->library->cu;

    for (unsigned i = 0; i < VNXI_CUDA_BATCHES; i++) {
        vnxi_cuda_batch_t *batch = &gpu->batches[i];
        unmap_pinned(gpu, batch->stage, VNXI_CUDA_STAGE_BYTES);
        if (batch->is_pinned) {
            unmap_pinned(gpu, batch->rows, TABLE_BYTES);
        } else {
            free(batch->rows);
        }
        if (batch->table != 0) {
            cu->cuMemFree_v2(batch->table);
        }
        *batch = (vnxi_cuda_batch_t){0};
    }
    unmap_pinned(gpu, gpu->short_table, SHORT_TABLE_BYTES);
    gpu->short_table = NULL;
    free(gpu->copies[0]);
    free(gpu->copies[1]);
    free(gpu->sizes);
    gpu->copies[0] = gpu->copies[1] = NULL;
    gpu->sizes = NULL;
    if (gpu->module != NULL) {
        cu->cuModuleUnload(gpu->module);
        gpu->module = NULL;
    }
    if (gpu->stream != NULL) {
        cu->cuStreamDestroy_v2(gpu->stream);
        gpu->stream = NULL;
    }
    gpu->why[0] = '\0';
    cu->cuCtxPopCurrent_v2(NULL);
}

/* -- Copying ---------------------------------------------------------------
 */

/* The rows from `first` on that fit into one launch. */
static uint32_t
launch_size(const vnxi_cuda_gpu_t *gpu, const vnxi_cuda_batch_t *batch,
            uint32_t first)
{
    uint64_t bytes = batch->rows[first].len;
    uint32_t count = 1;

    while (first + count < batch->count &&
           bytes + batch->rows[first + count].len <= gpu->launch_bytes) {
        bytes += batch->rows[first + count].len;
        count++;
    }
    return count;
}

static vnx_status_t
launch_kernels(vnxi_cuda_gpu_t *gpu, const vnxi_cuda_batch_t *batch,
               vnx_error_t *error)
{
    const vnxi_cu_functions_t *cu = &gpu->library->cu;
    vnxi_cu_ptr_t table = batch->rows_there;
    vnxi_cu_result_t result;

    if (batch->count > ROWS_IN_PLACE) {
        table = batch->table;
        result = cu->cuMemcpyHtoDAsync_v2(table, batch->rows,
                                          batch->count * sizeof *batch->rows,
                                          gpu->stream);
        if (result != VNXI_CUDA_SUCCESS) {
            return fail(gpu, "cuMemcpyHtoDAsync_v2", result, error);
        }
    }
    for (uint32_t first = 0, count; first < batch->count; first += count) {
        count = launch_size(gpu, batch, first);
        uint64_t rows = table + first * sizeof *batch->rows;
        void *params[] = {&rows, &count};
        unsigned grid = (count + BLOCK / WARP - 1) / (BLOCK / WARP);
        grid = grid < gpu->ctas ? grid : gpu->ctas;
        result = cu->cuLaunchKernel(gpu->function, grid, 1, 1, BLOCK, 1, 1, 0,
                                    gpu->stream, params, NULL);
        if (result != VNXI_CUDA_SUCCESS) {
            return fail(gpu, "cuLaunchKernel", result, error);
        }
    }
    return VNX_OK;
}

static vnx_status_t
copy_batch(vnxi_cuda_gpu_t *gpu, const vnxi_cuda_batch_t *batch,
           vnx_error_t *error)
{
    vnxi_cu_copy_attr_t attr = COPY_ATTR;
    size_t attr_start = 0, bad = 0;

    for (uint32_t i = 0; i < batch->count; i++) {
        gpu->copies[0][i] = batch->rows[i].dst;
        gpu->copies[1][i] = batch->rows[i].src;
        gpu->sizes[i] = batch->rows[i].len;
    }
    vnxi_cu_result_t result = gpu->library->cu.cuMemcpyBatchAsync(
        gpu->copies[0], gpu->copies[1], gpu->sizes, batch->count, &attr,
        &attr_start, 1, &bad, gpu->stream);
    return result == VNXI_CUDA_SUCCESS
               ? VNX_OK
               : fail(gpu, "cuMemcpyBatchAsync", result, error);
}

/* -- Copying row by row ----------------------------------------------------
 */

/* The gpu whose memory is at an address.  *len_p becomes at most the length of
 * that memory. */
static const vnxi_cuda_gpu_t *
owner_of(const vnxi_cuda_gpu_t *gpu, const vnxi_cuda_foreigns_t *foreigns,
         uint64_t address, uint64_t *len_p)
{
    size_t low = 0, high = foreigns != NULL ? foreigns->count : 0;
    uint64_t len = UINT64_MAX;
    const vnxi_cuda_gpu_t *owner = gpu;

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (foreigns->items[middle].end <= address) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    if (foreigns != NULL && low < foreigns->count) {
        const vnxi_cuda_foreign_t *next = &foreigns->items[low];
        bool is_inside = address >= next->start;
        owner = is_inside ? next->gpu : gpu;
        len = (is_inside ? next->end : next->start) - address;
    }
    *len_p = len < *len_p ? len : *len_p;
    return owner;
}

/* A part of a row, of which each side is of one gpu. */
typedef struct part {
    uint64_t src, dst, len;
    const vnxi_cuda_gpu_t *from, *to; /* the same for CPU memory */
    const vnxi_cuda_gpu_t *home;      /* in whose context it is copied */
} part_t;

/* The part of a row that begins after `done` bytes. */
static part_t
part_of(const vnxi_cuda_gpu_t *gpu, const vnxi_cuda_foreigns_t *foreigns,
        const vnxi_cuda_row_t *row, vnxi_cuda_direction_t direction,
        uint64_t done)
{
    part_t part = {
        row->src + done, row->dst + done, row->len - done, NULL, NULL, NULL};

    if (direction != VNXI_CUDA_TO_DEVICE) {
        part.from = owner_of(gpu, foreigns, part.src, &part.len);
    }
    if (direction != VNXI_CUDA_FROM_DEVICE) {
        part.to = owner_of(gpu, foreigns, part.dst, &part.len);
    }
    part.from = part.from != NULL ? part.from : part.to;
    part.to = part.to != NULL ? part.to : part.from;
    part.home = part.from == gpu ? gpu : part.to;
    return part;
}

/* Into a stream of the part's home. */
static vnx_status_t
copy_part(const part_t *part, vnxi_cuda_direction_t direction,
          vnxi_cu_stream_t stream, vnx_error_t *error)
{
    const vnxi_cu_functions_t *cu = &part->home->library->cu;
    vnxi_cu_result_t result;
    const char *function;

    if (direction == VNXI_CUDA_TO_DEVICE) {
        function = "cuMemcpyHtoDAsync_v2";
        result = cu->cuMemcpyHtoDAsync_v2(
            part->dst, (const void *)(uintptr_t)part->src, part->len, stream);
    } else if (direction == VNXI_CUDA_FROM_DEVICE) {
        function = "cuMemcpyDtoHAsync_v2";
        result = cu->cuMemcpyDtoHAsync_v2((void *)(uintptr_t)part->dst,
                                          part->src, part->len, stream);
    } else if (part->from == part->to) {
        function = "cuMemcpyDtoDAsync_v2";
        result =
            cu->cuMemcpyDtoDAsync_v2(part->dst, part->src, part->len, stream);
    } else {
        function = "cuMemcpyPeerAsync";
        result = cu->cuMemcpyPeerAsync(part->dst, part->to->context, part->src,
                                       part->from->context, part->len, stream);
    }
    return result == VNXI_CUDA_SUCCESS
               ? VNX_OK
               : fail(part->home, function, result, error);
}

/* Copy the parts of the rows that have this home.  *is_all_p: every part has.
 */
static vnx_status_t
copy_parts(const vnxi_cuda_gpu_t *gpu, const vnxi_cuda_batch_t *batch,
           vnxi_cuda_direction_t direction, const vnxi_cuda_gpu_t *home,
           vnxi_cu_stream_t stream, bool *is_all_p, vnx_error_t *error)
{
    vnx_status_t status = VNX_OK;

    *is_all_p = true;
    for (uint32_t i = 0; status == VNX_OK && i < batch->count; i++) {
        const vnxi_cuda_row_t *row = &batch->rows[i];
        for (uint64_t done = 0; status == VNX_OK && done < row->len;) {
            part_t part = part_of(gpu, batch->foreigns, row, direction, done);
            if (part.home == home) {
                status = copy_part(&part, direction, stream, error);
            } else {
                *is_all_p = false;
            }
            done += part.len;
        }
    }
    return status;
}

/* The same in the context of another gpu; waits until it is done. */
static vnx_status_t
copy_parts_there(const vnxi_cuda_gpu_t *gpu, const vnxi_cuda_batch_t *batch,
                 vnxi_cuda_direction_t direction, const vnxi_cuda_gpu_t *home,
                 vnx_error_t *error)
{
    const vnxi_cu_functions_t *cu = &home->library->cu;
    vnxi_cu_stream_t stream;
    bool is_all;

    vnxi_cu_result_t result = cu->cuCtxPushCurrent_v2(home->context);
    if (result != VNXI_CUDA_SUCCESS) {
        return fail(home, "cuCtxPushCurrent_v2", result, error);
    }
    vnx_status_t status = create_stream(home, &stream, error);
    if (status == VNX_OK) {
        status =
            copy_parts(gpu, batch, direction, home, stream, &is_all, error);
        result = cu->cuStreamSynchronize(stream);
        if (status == VNX_OK && result != VNXI_CUDA_SUCCESS) {
            status = fail(home, "cuStreamSynchronize", result, error);
        }
        cu->cuStreamDestroy_v2(stream);
    }
    cu->cuCtxPopCurrent_v2(NULL);
    return status;
}

/* Return the gpu of the list that follows `last` (NULL: the first one), in the
 * order of their addresses, so that each comes once; NULL after the last one.
 */
static const vnxi_cuda_gpu_t *
next_foreign(const vnxi_cuda_foreigns_t *foreigns, const vnxi_cuda_gpu_t *last)
{
    const vnxi_cuda_gpu_t *next = NULL;

    for (size_t i = 0; i < foreigns->count; i++) {
        const vnxi_cuda_gpu_t *gpu = foreigns->items[i].gpu;
        if ((uintptr_t)gpu > (uintptr_t)last &&
            (next == NULL || (uintptr_t)gpu < (uintptr_t)next)) {
            next = gpu;
        }
    }
    return next;
}

static vnx_status_t
copy_rows(vnxi_cuda_gpu_t *gpu, const vnxi_cuda_batch_t *batch,
          vnxi_cuda_direction_t direction, vnx_error_t *error)
{
    const vnxi_cuda_gpu_t *other = NULL;
    bool is_all;

    vnx_status_t status =
        copy_parts(gpu, batch, direction, gpu, gpu->stream, &is_all, error);
    while (status == VNX_OK && !is_all &&
           (other = next_foreign(batch->foreigns, other)) != NULL) {
        status = copy_parts_there(gpu, batch, direction, other, error);
    }
    return status;
}

static vnx_status_t
start_copying(vnxi_cuda_gpu_t *gpu, const vnxi_cuda_batch_t *batch,
              vnxi_cuda_method_t method, vnxi_cuda_direction_t direction,
              vnx_error_t *error)
{
    return method == VNXI_CUDA_KERNEL ? launch_kernels(gpu, batch, error)
           : method == VNXI_CUDA_BATCH
               ? copy_batch(gpu, batch, error)
               : copy_rows(gpu, batch, direction, error);
}

vnx_status_t
vnxi_cuda_gpu_launch(vnxi_cuda_gpu_t *gpu, vnxi_cuda_batch_t *batch,
                     vnxi_cuda_method_t method,
                     vnxi_cuda_direction_t direction,
                     void (*landed)(void *arg), void *arg, vnx_error_t *error)
{
    vnx_status_t status = start_copying(gpu, batch, method, direction, error);

    if (status == VNX_OK) {
        vnxi_cu_result_t result =
            gpu->library->cu.cuLaunchHostFunc(gpu->stream, landed, arg);
        if (result == VNXI_CUDA_SUCCESS) {
            return VNX_OK;
        }
        status = fail(gpu, "cuLaunchHostFunc", result, error);
    }
    /* Some of it may be running: wait, so that it does not write later. */
    gpu->library->cu.cuStreamSynchronize(gpu->stream);
    return status;
}

vnx_status_t
vnxi_cuda_gpu_copy(vnxi_cuda_gpu_t *gpu, const vnxi_cuda_row_t *rows,
                   uint32_t count, vnxi_cuda_method_t method,
                   vnxi_cuda_direction_t direction,
                   const vnxi_cuda_foreigns_t *foreigns, vnx_error_t *error)
{
    vnxi_cuda_batch_t batch = {
        .rows = (vnxi_cuda_row_t *)rows, .count = count, .foreigns = foreigns};
    vnxi_cu_result_t result;
    const char *why;

    if (method == VNXI_CUDA_KERNEL && gpu->short_table == NULL) {
        gpu->short_table = map_pinned(gpu, SHORT_TABLE_BYTES,
                                      &gpu->short_table_there, &why, &result);
        if (gpu->short_table == NULL) {
            return fail(gpu, why, result, error);
        }
    }
    if (method == VNXI_CUDA_KERNEL) {
        memcpy(gpu->short_table, rows, count * sizeof *rows);
        batch.rows = gpu->short_table;
        batch.rows_there = gpu->short_table_there;
    }
    vnx_status_t status = start_copying(gpu, &batch, method, direction, error);
    result = gpu->library->cu.cuStreamSynchronize(gpu->stream);
    if (status == VNX_OK && result != VNXI_CUDA_SUCCESS) {
        status = fail(gpu, "cuStreamSynchronize", result, error);
    }
    return status;
}

bool
vnxi_cuda_gpu_reaches(vnxi_cuda_gpu_t *gpu, const vnxi_cuda_gpu_t *other)
{
    const vnxi_cu_functions_t *cu = &gpu->library->cu;
    int can = 0;

    if (gpu->context == other->context) {
        return true;
    }
    if (gpu->device == other->device ||
        cu->cuDeviceCanAccessPeer(&can, gpu->device, other->device) !=
            VNXI_CUDA_SUCCESS ||
        can == 0) {
        return false;
    }
    vnxi_cu_result_t result = cu->cuCtxEnablePeerAccess(other->context, 0);
    return result == VNXI_CUDA_SUCCESS ||
           result == VNXI_CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED;
}
