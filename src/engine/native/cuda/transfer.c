/*
 * Design notes.
 *
 * A transfer belongs to one worker: that of its first region of GPU memory.
 * It stays in the worker's list from its post to its end.  What of it is
 * changed by other threads is protected by worker->lock; the rest is touched
 * by the worker's thread only.
 *
 * An address is enough to copy from or to any GPU of the process, because all
 * of them have one address space.  But a kernel may use memory of another
 * context only if that is from cudaMalloc() and access was enabled; otherwise
 * the driver copies.
 *
 * A kernel with a wrong address destroys the program's context, and with it
 * the model.  So before the first batch the thread asks the driver whether the
 * regions are still the memory that was registered.
 *
 * When a context is lost, the driver drops what was in its streams and does
 * not report it.  So while a batch is in flight the thread looks after it from
 * time to time.  A lost worker is not freed: the driver has its address.
 */
#include "engine/native/cuda/transfer.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/fork.h"
#include "base/json.h"
#include "base/log.h"
#include "base/mutex.h"
#include "base/thread.h"
#include "engine/native/cuda/context.h"
#include "engine/native/region_access.h"
#include "engine/parts/list.h"

#define OPERATION "vnx_xfer_post"

/* How often a batch in flight is looked after. */
#define WATCH_NS 100000000u

/* Lists with more regions of CPU memory are not searched for pinned memory. */
#define PINNED_REGIONS_MAX 1024u

typedef enum slot_state {
    SLOT_FREE,
    SLOT_RUNNING, /* or being filled */
    SLOT_LANDED,
} slot_state_t;

/* A batch of the worker's gpu. */
typedef struct slot {
    vnxi_cuda_worker_t *worker;
    vnxi_cuda_batch_t *batch;
    slot_state_t state;     /* worker->lock */
    vnxi_cuda_xfer_t *xfer; /* that it works for, unless free */
    bool is_staged;         /* its CPU memory is batch->stage */
} slot_t;

struct vnxi_cuda_worker {
    vnxi_cuda_gpu_t gpu;
    atomic_uint refs;         /* the thread has one */
    unsigned uses;            /* workers_lock */
    uint64_t id;              /* workers_lock; never reused */
    vnxi_cuda_worker_t *next; /* workers_lock */
    pthread_t thread;
    vnxi_mutex_t lock;
    vnxi_cond_t wake;        /* there is something to do for the thread */
    vnxi_cond_t ended;       /* a transfer has ended and was reported */
    vnxi_cuda_xfer_t *first; /* in flight; lock */
    unsigned reporting;      /* lock */
    bool is_ending, is_lost; /* lock */
    vnx_error_t lost;        /* lock; why */
    slot_t slots[VNXI_CUDA_BATCHES];
};

struct vnxi_cuda_xfer {
    vnxi_part_args_t args;
    unsigned route;
    vnxi_cuda_worker_t *worker; /* a reference */
    vnxi_cuda_direction_t direction;
    /* Of the current post; worker->lock. */
    vnxi_cuda_xfer_t *next;
    unsigned running; /* slots */
    bool is_filled;   /* nothing is left to start */
    bool is_failing;  /* starts no more; `error` is set */
    vnx_error_t error;
    /* Of the current post; the worker's thread only. */
    bool has_begun, is_staged, in_chunk;
    vnxi_cuda_method_t method;
    uint64_t host_delta; /* of pinned CPU memory of the program */
    size_t chunk;
    vnxi_walk_t walk;
    vnxi_piece_t piece; /* what is left of it */
};

/* -- The list of workers ---------------------------------------------------
 */

static vnxi_mutex_t workers_lock = VNXI_MUTEX_INIT(VNXI_RANK_CUDA_WORKERS);
static vnxi_cuda_worker_t *workers;      /* in use; workers_lock */
static vnxi_cuda_worker_t *lost_workers; /* ended; workers_lock */
static uint64_t last_id;                 /* workers_lock */

/* CUDA does not work in a child; the parent's workers are not its own. */
static void
forget_in_child(void)
{
    vnxi_mutex_init(&workers_lock, VNXI_RANK_CUDA_WORKERS);
    workers = NULL;
}

/* Set the gpu's context; the primary one is retained. */
static vnx_status_t
take_context(vnxi_cuda_gpu_t *gpu, vnxi_cu_context_t context,
             vnx_error_t *error)
{
    vnxi_cuda_context_t taken;

    vnx_status_t status = vnxi_cuda_context_take(gpu->library, context,
                                                 gpu->ordinal, &taken, error);
    if (status == VNX_OK) {
        gpu->context = taken.handle;
        gpu->device = taken.device;
        gpu->is_retained = taken.is_retained;
    }
    return status;
}

static void
drop_context(const vnxi_cuda_gpu_t *gpu)
{
    if (gpu->is_retained) {
        gpu->library->cu.cuDevicePrimaryCtxRelease_v2(gpu->device);
    }
}

static void *run(void *arg);

static void
worker_free(vnxi_cuda_worker_t *worker)
{
    vnxi_cond_destroy(&worker->wake);
    vnxi_cond_destroy(&worker->ended);
    vnxi_mutex_destroy(&worker->lock);
    free(worker);
}

/* `gpu` has a context, which is taken over on success. */
static vnx_status_t
start_worker_lock_held(const vnxi_cuda_gpu_t *gpu,
                       vnxi_cuda_worker_t **worker_p, vnx_error_t *error)
{
    vnxi_cuda_worker_t *worker = calloc(1, sizeof *worker);
    if (worker == NULL) {
        return vnxi_error_no_memory(error, "vnx_agent_register",
                                    sizeof *worker);
    }
    memcpy(&worker->gpu, gpu, sizeof *gpu);
    atomic_init(&worker->refs, 2);
    worker->uses = 1;
    worker->id = ++last_id;
    vnxi_mutex_init(&worker->lock, VNXI_RANK_CUDA_WORKER);
    vnxi_cond_init(&worker->wake);
    vnxi_cond_init(&worker->ended);
    for (unsigned i = 0; i < VNXI_CUDA_BATCHES; i++) {
        worker->slots[i] =
            (slot_t){.worker = worker, .batch = &worker->gpu.batches[i]};
    }
    int ret = vnxi_thread_start(&worker->thread, run, worker);
    if (ret != 0) {
        worker_free(worker);
        return vnxi_error_set(error, VNX_ERR_BACKEND, "vnx_agent_register",
                              "cannot start a thread for GPU %d: %s",
                              gpu->ordinal, vnxi_errno(ret));
    }
    *worker_p = worker;
    return VNX_OK;
}

static vnxi_cuda_worker_t *
find_lock_held(const vnxi_cuda_gpu_t *gpu)
{
    vnxi_cuda_worker_t *worker = workers;

    while (worker != NULL && worker->gpu.context != gpu->context) {
        worker = worker->next;
    }
    return worker;
}

vnx_status_t
vnxi_cuda_worker_get(const vnxi_cuda_library_t *library,
                     vnxi_cu_context_t context, int ordinal,
                     vnxi_cuda_worker_t **worker_p, vnx_error_t *error)
{
    vnxi_cuda_gpu_t gpu = {.library = library, .ordinal = ordinal};

    vnx_status_t status = take_context(&gpu, context, error);
    if (status != VNX_OK) {
        return status;
    }
    vnxi_fork_on_child(forget_in_child);
    vnxi_mutex_lock(&workers_lock);
    vnxi_cuda_worker_t *worker = find_lock_held(&gpu);
    if (worker != NULL) {
        atomic_fetch_add(&worker->refs, 1);
        worker->uses++;
        drop_context(&gpu);
    } else {
        status = start_worker_lock_held(&gpu, &worker, error);
        if (status == VNX_OK) {
            worker->next = workers;
            workers = worker;
        } else {
            drop_context(&gpu);
        }
    }
    vnxi_mutex_unlock(&workers_lock);
    *worker_p = status == VNX_OK ? worker : NULL;
    return status;
}

void
vnxi_cuda_worker_release(vnxi_cuda_worker_t *worker)
{
    if (atomic_fetch_sub(&worker->refs, 1) == 1) {
        worker_free(worker);
    }
}

/* True: it was the last use, and the worker is no longer in the list. */
static bool
was_last_use(vnxi_cuda_worker_t *worker)
{
    vnxi_mutex_lock(&workers_lock);
    bool is_last = --worker->uses == 0;
    for (vnxi_cuda_worker_t **at = &workers; is_last && *at != NULL;
         at = &(*at)->next) {
        if (*at == worker) {
            *at = worker->next;
            break;
        }
    }
    vnxi_mutex_unlock(&workers_lock);
    return is_last;
}

/* The worker's own thread may do this: in done(), which may free the last list
 * with memory of an agent that was closed. */
void
vnxi_cuda_worker_leave(vnxi_cuda_worker_t *worker)
{
    if (!was_last_use(worker)) {
        return;
    }
    vnxi_mutex_lock(&worker->lock);
    worker->is_ending = true;
    vnxi_cond_signal(&worker->wake);
    vnxi_mutex_unlock(&worker->lock);
    if (pthread_equal(worker->thread, pthread_self()) != 0) {
        pthread_detach(worker->thread);
    } else {
        pthread_join(worker->thread, NULL);
    }
}

vnxi_cu_context_t
vnxi_cuda_worker_context(const vnxi_cuda_worker_t *worker)
{
    return worker->gpu.context;
}

static void
describe_lock_held(const vnxi_cuda_worker_t *worker, vnxi_writer_t *out)
{
    const vnxi_cuda_gpu_t *gpu = &worker->gpu;
    vnxi_writer_t members = {0};

    vnxi_json_number(&members, "gpu", (uint64_t)gpu->ordinal);
    if (worker->is_lost) {
        vnxi_json_member(&members, "lost", worker->lost.cause);
    } else if (atomic_load(&gpu->is_open)) {
        vnxi_json_member(&members, "copies_by",
                         vnxi_cuda_method_name(gpu->method));
        if (gpu->why[0] != '\0') {
            vnxi_json_member(&members, "because", gpu->why);
        }
    }
    vnxi_json_object(out, &members);
}

void
vnxi_cuda_workers_describe(vnxi_writer_t *out)
{
    vnxi_json_text(out, "[");
    vnxi_mutex_lock(&workers_lock);
    for (vnxi_cuda_worker_t *worker = workers; worker != NULL;
         worker = worker->next) {
        vnxi_mutex_lock(&worker->lock);
        vnxi_json_text(out, worker == workers ? "" : ", ");
        describe_lock_held(worker, out);
        vnxi_mutex_unlock(&worker->lock);
    }
    vnxi_mutex_unlock(&workers_lock);
    vnxi_json_text(out, "]");
}

/* -- Failures --------------------------------------------------------------
 */

/* The first cause stays. */
static void
fail_lock_held(vnxi_cuda_xfer_t *xfer, const vnx_error_t *error)
{
    if (!xfer->is_failing) {
        xfer->is_failing = true;
        xfer->error = *error;
    }
}

/* The context is lost: nothing is running any more. */
static void
lose_lock_held(vnxi_cuda_worker_t *worker, const vnx_error_t *error)
{
    if (worker->is_lost) {
        return;
    }
    worker->is_lost = true;
    worker->lost = *error;
    for (unsigned i = 0; i < VNXI_CUDA_BATCHES; i++) {
        if (worker->slots[i].state != SLOT_FREE) {
            worker->slots[i].state = SLOT_FREE;
            worker->slots[i].xfer->running--;
        }
    }
    for (vnxi_cuda_xfer_t *xfer = worker->first; xfer != NULL;
         xfer = xfer->next) {
        fail_lock_held(xfer, error);
    }
    vnxi_log(VNX_LOG_WARNING, NULL,
             "no more transfers of the memory of GPU %d: %s",
             worker->gpu.ordinal, error->cause);
}

/* -- Beginning a transfer --------------------------------------------------
 */

static const vnxi_cuda_mem_t *
mem_of(const vnxi_cuda_xfer_t *xfer, const vnxi_region_t *region)
{
    return vnxi_region_slot(region, xfer->route);
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

/* Is the region still the memory that was registered? */
static vnx_status_t
check_region(const vnxi_cuda_xfer_t *xfer, const vnxi_region_t *region,
             vnx_error_t *error)
{
    vnxi_cu_enum_t attributes[] = {VNXI_CU_POINTER_ATTRIBUTE_BUFFER_ID};
    uint64_t id;

    vnxi_cu_result_t result =
        ask(&xfer->worker->gpu, region->addr, attributes, &id, 1);
    if (result == VNXI_CUDA_SUCCESS && id == mem_of(xfer, region)->buffer_id) {
        return VNX_OK;
    }
    return vnxi_error_set(error, VNX_ERR_NOT_FOUND, OPERATION,
                          "the GPU memory at 0x%" PRIx64 " of %" PRIu64
                          " bytes was freed while it was registered",
                          region->addr, region->len);
}

/* Check the regions of a list of GPU memory, and whether the kernel may use
 * all of them. */
static vnx_status_t
check_list(vnxi_cuda_xfer_t *xfer, const vnxi_list_t *list, bool *by_kernel_p,
           vnx_error_t *error)
{
    vnx_status_t status = VNX_OK;

    for (size_t i = 0; status == VNX_OK && i < list->region_count; i++) {
        const vnxi_cuda_mem_t *mem = mem_of(xfer, list->regions[i]);
        status = check_region(xfer, list->regions[i], error);
        if (mem->worker != xfer->worker) {
            *by_kernel_p =
                *by_kernel_p && mem->is_legacy &&
                vnxi_cuda_gpu_reaches(&xfer->worker->gpu, &mem->worker->gpu);
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
is_list_pinned(vnxi_cuda_xfer_t *xfer, const vnxi_list_t *list)
{
    vnxi_cuda_gpu_t *gpu = &xfer->worker->gpu;
    uint64_t delta = 0;

    if (list->region_count > PINNED_REGIONS_MAX ||
        !is_pinned(gpu, list->regions[0], &xfer->host_delta)) {
        return false;
    }
    for (size_t i = 1; i < list->region_count; i++) {
        if (!is_pinned(gpu, list->regions[i], &delta) ||
            delta != xfer->host_delta) {
            return false;
        }
    }
    return true;
}

static vnx_status_t
begin(vnxi_cuda_xfer_t *xfer, vnx_error_t *error)
{
    const vnxi_list_t *lists[] = {xfer->args.local, xfer->args.remote};
    bool by_kernel = xfer->worker->gpu.method == VNXI_CUDA_KERNEL;
    vnx_status_t status = VNX_OK;

    xfer->has_begun = true;
    xfer->is_staged = xfer->in_chunk = false;
    xfer->chunk = 0;
    xfer->piece.len = 0;
    xfer->host_delta = 0;
    for (unsigned i = 0; status == VNX_OK && i < 2; i++) {
        if (lists[i]->mem == VNX_MEM_VRAM) {
            status = check_list(xfer, lists[i], &by_kernel, error);
        } else {
            xfer->is_staged = !is_list_pinned(xfer, lists[i]);
        }
    }
    xfer->method = by_kernel ? VNXI_CUDA_KERNEL
                   : xfer->worker->gpu.method == VNXI_CUDA_KERNEL
                       ? VNXI_CUDA_LOOP /* other contexts: one by one */
                       : xfer->worker->gpu.method;
    if (!by_kernel) {
        xfer->host_delta = 0;
    }
    return status;
}

/* -- Filling a batch -------------------------------------------------------
 */

/* Make xfer->piece the next piece of the transfer's route; false: none is
 * left. */
static bool
next_piece(vnxi_cuda_xfer_t *xfer)
{
    const vnxi_plan_t *plan = xfer->args.plan;

    while (xfer->piece.len == 0) {
        if (!xfer->in_chunk) {
            if (xfer->chunk == plan->chunk_count) {
                return false;
            }
            xfer->walk = vnxi_plan_walk(plan, xfer->chunk++);
            xfer->in_chunk = true;
        }
        if (!vnxi_walk_next(&xfer->walk, &xfer->piece)) {
            xfer->in_chunk = false;
            xfer->piece.len = 0;
        } else if (xfer->piece.route != xfer->route) {
            xfer->piece.len = 0;
        }
    }
    return true;
}

/* Take at most `max` bytes from the piece. */
static vnxi_piece_t
take(vnxi_cuda_xfer_t *xfer, uint64_t max)
{
    vnxi_piece_t taken = xfer->piece;

    if (taken.len > max) {
        taken.len = max;
    }
    xfer->piece.local += taken.len;
    xfer->piece.remote += taken.len;
    xfer->piece.len -= taken.len;
    return taken;
}

static uint64_t
row_max(const vnxi_cuda_xfer_t *xfer)
{
    return xfer->method == VNXI_CUDA_KERNEL ? VNXI_CUDA_KERNEL_ROW
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
fill_direct(vnxi_cuda_xfer_t *xfer, vnxi_cuda_batch_t *batch)
{
    uint64_t most = 2 * xfer->worker->gpu.launch_bytes;
    bool is_read = xfer->args.op == VNX_OP_READ;
    uint64_t to_src = 0, to_dst = 0;

    if (xfer->direction == VNXI_CUDA_TO_DEVICE) {
        to_src = xfer->host_delta;
    } else if (xfer->direction == VNXI_CUDA_FROM_DEVICE) {
        to_dst = xfer->host_delta;
    }
    while (batch->count < VNXI_CUDA_ROWS && batch->bytes < most &&
           next_piece(xfer)) {
        vnxi_piece_t piece = take(xfer, row_max(xfer));
        uint64_t src = is_read ? piece.remote : piece.local;
        uint64_t dst = is_read ? piece.local : piece.remote;
        add_row(batch, src + to_src, dst + to_dst, piece.len, 0);
    }
}

/* CPU memory goes by batch->stage.  A row there has the alignment of its GPU
 * memory, so that the kernel moves 16 bytes at a time. */
static void
fill_staged(vnxi_cuda_xfer_t *xfer, vnxi_cuda_batch_t *batch)
{
    bool is_write_to_gpu = xfer->direction == VNXI_CUDA_TO_DEVICE;
    bool is_local_gpu = xfer->args.local->mem == VNX_MEM_VRAM;
    uint64_t stage = (uintptr_t)batch->stage, used = 0;
    uint64_t delta = xfer->method == VNXI_CUDA_KERNEL ? batch->stage_delta : 0;

    while (batch->count < VNXI_CUDA_ROWS && next_piece(xfer)) {
        uint64_t gpu = is_local_gpu ? xfer->piece.local : xfer->piece.remote;
        uint64_t at = used + ((gpu - stage - used) & 15);
        if (at >= VNXI_CUDA_STAGE_BYTES) {
            break;
        }
        uint64_t room = VNXI_CUDA_STAGE_BYTES - at;
        vnxi_piece_t piece =
            take(xfer, room < row_max(xfer) ? room : row_max(xfer));
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

/* Of a batch from the GPU: bring the bytes to where they belong. */
static void
unstage(const vnxi_cuda_xfer_t *xfer, const vnxi_cuda_batch_t *batch)
{
    uint64_t delta = xfer->method == VNXI_CUDA_KERNEL ? batch->stage_delta : 0;

    for (uint32_t i = 0; i < batch->count; i++) {
        const vnxi_cuda_row_t *row = &batch->rows[i];
        memcpy((void *)(uintptr_t)row->spare,
               (const void *)(uintptr_t)(row->dst - delta), row->len);
    }
}

/* batch->count 0: nothing is left. */
static vnx_status_t
fill(vnxi_cuda_xfer_t *xfer, slot_t *slot, vnx_error_t *error)
{
    vnxi_cuda_batch_t *batch = slot->batch;
    vnx_status_t status = xfer->args.go_on(xfer->args.context, error);

    batch->count = 0;
    batch->bytes = 0;
    if (status == VNX_OK && !xfer->has_begun) {
        status = begin(xfer, error);
    }
    if (status == VNX_OK && xfer->is_staged) {
        status = vnxi_cuda_gpu_stage(&xfer->worker->gpu, batch, error);
    }
    if (status != VNX_OK) {
        return status;
    }
    slot->is_staged = xfer->is_staged;
    if (xfer->is_staged) {
        fill_staged(xfer, batch);
    } else {
        fill_direct(xfer, batch);
    }
    return VNX_OK;
}

/* -- The thread ------------------------------------------------------------
 */

/* On a thread of the driver. */
static void
on_landed(void *arg)
{
    slot_t *slot = arg;
    vnxi_cuda_worker_t *worker = slot->worker;

    vnxi_mutex_lock(&worker->lock);
    if (slot->state == SLOT_RUNNING) {
        slot->state = SLOT_LANDED;
        vnxi_cond_signal(&worker->wake);
    }
    vnxi_mutex_unlock(&worker->lock);
}

static slot_t *
find_slot(vnxi_cuda_worker_t *worker, slot_state_t state)
{
    for (unsigned i = 0; i < VNXI_CUDA_BATCHES; i++) {
        if (worker->slots[i].state == state) {
            return &worker->slots[i];
        }
    }
    return NULL;
}

/* Gives up the lock for a time, like the functions below. */
static void
land_lock_held(vnxi_cuda_worker_t *worker, slot_t *slot)
{
    vnxi_cuda_xfer_t *xfer = slot->xfer;
    bool is_wanted = !xfer->is_failing;

    if (slot->is_staged && is_wanted &&
        xfer->direction == VNXI_CUDA_FROM_DEVICE) {
        vnxi_mutex_unlock(&worker->lock);
        unstage(xfer, slot->batch);
        vnxi_mutex_lock(&worker->lock);
    }
    slot->state = SLOT_FREE;
    xfer->running--;
}

/* Find a transfer that can be continued, and move it to the end of the list:
 * all get their turns. */
static vnxi_cuda_xfer_t *
take_turn_lock_held(vnxi_cuda_worker_t *worker)
{
    vnxi_cuda_xfer_t **at = &worker->first, *xfer;

    while ((xfer = *at) != NULL && (xfer->is_filled || xfer->is_failing)) {
        at = &xfer->next;
    }
    if (xfer == NULL || xfer->next == NULL) {
        return xfer;
    }
    *at = xfer->next;
    while (*at != NULL) {
        at = &(*at)->next;
    }
    *at = xfer;
    xfer->next = NULL;
    return xfer;
}

static void
feed_lock_held(vnxi_cuda_worker_t *worker, slot_t *slot,
               vnxi_cuda_xfer_t *xfer)
{
    vnxi_cuda_gpu_t *gpu = &worker->gpu;
    bool works = true;
    vnx_error_t error, cause;

    slot->state = SLOT_RUNNING; /* it may land before the launch returns */
    slot->xfer = xfer;
    xfer->running++;
    vnxi_mutex_unlock(&worker->lock);
    vnx_status_t status = fill(xfer, slot, &error);
    bool launches = status == VNX_OK && slot->batch->count > 0;
    if (launches) {
        status =
            vnxi_cuda_gpu_launch(gpu, slot->batch, xfer->method,
                                 xfer->direction, on_landed, slot, &error);
        works = status == VNX_OK || vnxi_cuda_gpu_works(gpu, &cause);
    }
    vnxi_mutex_lock(&worker->lock);
    if (status == VNX_OK) {
        xfer->is_filled = !launches;
    } else {
        fail_lock_held(xfer, &error);
    }
    if (!launches || status != VNX_OK) {
        slot->state = SLOT_FREE;
        xfer->running--;
    }
    if (!works) {
        lose_lock_held(worker, &error);
    }
}

/* A transfer that has ended: nothing is left to start, and nothing runs. */
static vnxi_cuda_xfer_t *
take_ended_lock_held(vnxi_cuda_worker_t *worker)
{
    vnxi_cuda_xfer_t **at = &worker->first, *xfer;

    while ((xfer = *at) != NULL &&
           (xfer->running > 0 || !(xfer->is_filled || xfer->is_failing))) {
        at = &xfer->next;
    }
    if (xfer != NULL) {
        *at = xfer->next;
    }
    return xfer;
}

/* done() may free the transfer. */
static void
report_lock_held(vnxi_cuda_worker_t *worker, vnxi_cuda_xfer_t *xfer)
{
    vnx_error_t error;
    bool is_failing = xfer->is_failing;

    if (is_failing) {
        error = xfer->error;
    }
    worker->reporting++;
    vnxi_mutex_unlock(&worker->lock);
    xfer->args.done(xfer->args.context, is_failing ? error.status : VNX_OK,
                    is_failing ? &error : NULL);
    vnxi_mutex_lock(&worker->lock);
    worker->reporting--;
    vnxi_cond_broadcast(&worker->ended);
}

static void
wait_lock_held(vnxi_cuda_worker_t *worker)
{
    vnx_error_t error;

    if (find_slot(worker, SLOT_RUNNING) == NULL) {
        vnxi_cond_wait(&worker->wake, &worker->lock);
        return;
    }
    struct timespec until = vnxi_clock_timespec(vnxi_clock_deadline(WATCH_NS));
    if (vnxi_cond_timedwait(&worker->wake, &worker->lock, &until) == 0) {
        return;
    }
    vnxi_mutex_unlock(&worker->lock);
    bool works = vnxi_cuda_gpu_works(&worker->gpu, &error);
    vnxi_mutex_lock(&worker->lock);
    if (!works) {
        lose_lock_held(worker, &error);
    }
}

static void
serve_lock_held(vnxi_cuda_worker_t *worker)
{
    for (;;) {
        slot_t *landed = find_slot(worker, SLOT_LANDED);
        vnxi_cuda_xfer_t *ended =
            landed == NULL ? take_ended_lock_held(worker) : NULL;
        slot_t *unused = find_slot(worker, SLOT_FREE);
        vnxi_cuda_xfer_t *next =
            landed == NULL && ended == NULL && unused != NULL
                ? take_turn_lock_held(worker)
                : NULL;
        if (landed != NULL) {
            land_lock_held(worker, landed);
        } else if (ended != NULL) {
            report_lock_held(worker, ended);
        } else if (next != NULL) {
            feed_lock_held(worker, unused, next);
        } else if (worker->is_ending && worker->first == NULL) {
            return;
        } else {
            wait_lock_held(worker);
        }
    }
}

/* The driver may still have the address of its slots. */
static void
keep(vnxi_cuda_worker_t *worker)
{
    vnxi_mutex_lock(&workers_lock);
    worker->next = lost_workers;
    lost_workers = worker;
    vnxi_mutex_unlock(&workers_lock);
}

static void *
run(void *arg)
{
    vnxi_cuda_worker_t *worker = arg;
    vnx_error_t error;

    vnx_status_t status = vnxi_cuda_gpu_open(&worker->gpu, &error);
    vnxi_mutex_lock(&worker->lock);
    if (status != VNX_OK) {
        lose_lock_held(worker, &error);
    }
    serve_lock_held(worker);
    bool is_lost = worker->is_lost;
    vnxi_mutex_unlock(&worker->lock);
    vnxi_cuda_gpu_close(&worker->gpu);
    drop_context(&worker->gpu);
    if (is_lost) {
        keep(worker);
    } else {
        vnxi_cuda_worker_release(worker);
    }
    return NULL;
}

/* -- Transfers -------------------------------------------------------------
 */

vnx_status_t
vnxi_cuda_xfer_create(const vnxi_part_args_t *args, unsigned route,
                      vnxi_cuda_xfer_t **xfer_p, vnx_error_t *error)
{
    bool is_local = args->local->mem == VNX_MEM_VRAM;
    const vnxi_list_t *list = is_local ? args->local : args->remote;
    vnxi_cuda_xfer_t *xfer = calloc(1, sizeof *xfer);

    if (xfer == NULL) {
        return vnxi_error_no_memory(error, OPERATION, sizeof *xfer);
    }
    xfer->args = *args;
    xfer->route = route;
    if (args->local->mem == args->remote->mem) {
        xfer->direction = VNXI_CUDA_ON_DEVICE;
    } else {
        xfer->direction = is_local == (args->op == VNX_OP_READ)
                              ? VNXI_CUDA_TO_DEVICE
                              : VNXI_CUDA_FROM_DEVICE;
    }
    xfer->worker = mem_of(xfer, list->regions[0])->worker;
    atomic_fetch_add(&xfer->worker->refs, 1);
    *xfer_p = xfer;
    return VNX_OK;
}

void
vnxi_cuda_xfer_free(vnxi_cuda_xfer_t *xfer)
{
    vnxi_cuda_worker_release(xfer->worker);
    free(xfer);
}

/* What a worker that takes no more transfers answers. */
static vnx_status_t
refuse(const vnxi_cuda_worker_t *worker, vnx_error_t *error)
{
    if (worker->is_lost) {
        return vnxi_error_set(error, worker->lost.status, OPERATION, "%s",
                              worker->lost.cause);
    }
    return vnxi_error_set(error, VNX_ERR_NOT_FOUND, OPERATION,
                          "the GPU memory was deregistered");
}

vnx_status_t
vnxi_cuda_xfer_post(vnxi_cuda_xfer_t *xfer, vnx_error_t *error)
{
    vnxi_cuda_worker_t *worker = xfer->worker;
    vnxi_cuda_xfer_t **at;

    vnxi_mutex_lock(&worker->lock);
    xfer->running = 0;
    xfer->is_filled = xfer->is_failing = xfer->has_begun = false;
    xfer->next = NULL;
    if (worker->is_lost || worker->is_ending) {
        vnxi_mutex_unlock(&worker->lock);
        return refuse(worker, error);
    }
    for (at = &worker->first; *at != NULL; at = &(*at)->next) {
    }
    *at = xfer;
    vnxi_cond_signal(&worker->wake);
    vnxi_mutex_unlock(&worker->lock);
    return VNX_IN_PROG;
}

void
vnxi_cuda_xfer_cancel(vnxi_cuda_xfer_t *xfer)
{
    vnxi_cuda_worker_t *worker = xfer->worker;
    vnx_error_t error;

    vnxi_error_set(&error, VNX_ERR_CANCELED, OPERATION,
                   "the transfer was cancelled");
    vnxi_mutex_lock(&worker->lock);
    fail_lock_held(xfer, &error);
    vnxi_cond_signal(&worker->wake);
    vnxi_mutex_unlock(&worker->lock);
}

/* -- Settling --------------------------------------------------------------
 */

static bool
must_wait_lock_held(vnxi_cuda_worker_t *worker)
{
    bool must_wait = worker->reporting > 0;
    vnx_error_t error;

    for (vnxi_cuda_xfer_t *xfer = worker->first; xfer != NULL;
         xfer = xfer->next) {
        if (xfer->is_failing) {
            must_wait = true;
        } else if (xfer->args.go_on(xfer->args.context, &error) != VNX_OK) {
            fail_lock_held(xfer, &error);
            vnxi_cond_signal(&worker->wake);
            must_wait = true;
        }
    }
    return must_wait;
}

/* Find the worker with the lowest id above this one; to be released. */
static vnxi_cuda_worker_t *
next_worker(uint64_t id)
{
    vnxi_cuda_worker_t *next = NULL;

    vnxi_mutex_lock(&workers_lock);
    for (vnxi_cuda_worker_t *worker = workers; worker != NULL;
         worker = worker->next) {
        if (worker->id > id && (next == NULL || worker->id < next->id)) {
            next = worker;
        }
    }
    if (next != NULL) {
        atomic_fetch_add(&next->refs, 1);
    }
    vnxi_mutex_unlock(&workers_lock);
    return next;
}

void
vnxi_cuda_workers_settle(void)
{
    vnxi_cuda_worker_t *worker;

    for (uint64_t id = 0; (worker = next_worker(id)) != NULL;) {
        vnxi_mutex_lock(&worker->lock);
        while (must_wait_lock_held(worker)) {
            vnxi_cond_wait(&worker->ended, &worker->lock);
        }
        vnxi_mutex_unlock(&worker->lock);
        id = worker->id;
        vnxi_cuda_worker_release(worker);
    }
}
