/*
 * Design notes.
 *
 * A transfer belongs to one worker: that of its first region of GPU memory.
 * It stays in the worker's list from its post to its end.  The lock
 * worker->lock protects the fields that other threads change.  Only the
 * worker's thread touches the other fields.
 *
 * GPU memory of another process is mapped and unmapped by the thread, while no
 * batch runs (import.h).  A transfer that needs memory that is not mapped yet
 * is parked until the owner has answered, and one that has used such memory
 * ends when the owner has said that the memory is still the region's.  Neither
 * waits longer than PEER_WAIT_NS for an answer; memory may need many.
 *
 * If the owner moves the bytes (window.h), a transfer has halves of the window
 * on the way, up to all of them, and no batches.  The thread copies between a
 * half and our memory itself, and waits for that.
 *
 * Opening the gpu may fail for a lack of memory that passes, so it is tried
 * again when there is work once more.
 *
 * When a context is lost, the driver drops what was in its streams and does
 * not report it.  So while a batch is in flight the thread looks after it from
 * time to time.  A lost worker is not freed: the driver has its address.
 */
#include "engine/native/cuda/worker.h"

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
#include "engine/native/cuda/move.h"
#include "engine/native/region_access.h"
#include "engine/parts/list.h"

#define OPERATION "vnx_xfer_post"

/* How often a batch in flight is looked after. */
#define WATCH_NS 100000000u

/* How long a transfer waits for an answer of its peer. */
#define PEER_WAIT_NS (5u * UINT64_C(1000000000))

/* How often it is done if the peer's memory is replaced meanwhile. */
#define ATTEMPTS_MAX 8u

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
} slot_t;

struct vnxi_cuda_worker {
    vnxi_cuda_gpu_t gpu;      /* first */
    atomic_uint refs;         /* the thread has one */
    unsigned uses;            /* workers_lock */
    uint64_t id;              /* workers_lock; never reused */
    vnxi_cuda_worker_t *next; /* workers_lock */
    pthread_t thread;
    vnxi_mutex_t lock;
    vnxi_cond_t wake;           /* there is something to do for the thread */
    vnxi_cond_t ended;          /* a transfer has ended and was reported */
    vnxi_cuda_xfer_t *first;    /* in flight; lock */
    unsigned reporting;         /* lock */
    vnxi_cuda_job_t *jobs;      /* lock; the first */
    vnxi_cuda_job_t **jobs_end; /* lock; where the next one goes */
    bool had_job;               /* the last thing that it did */
    bool has_imports;           /* lock; vnxi_cuda_imports_serve() is due */
    bool has_windows;           /* lock; vnxi_cuda_windows_serve() is due */
    bool is_open;               /* the gpu, if any; the thread only */
    bool is_ending, is_lost;    /* lock */
    uint64_t next_look; /* lock; when to look after the batches that run;
                           0: none ran */
    vnx_error_t lost;   /* lock; why */
    vnx_error_t closed; /* lock; why the gpu could not be opened, status
                           VNX_OK: it could, or was not tried */
    slot_t slots[VNXI_CUDA_BATCHES];
};

struct vnxi_cuda_xfer {
    vnxi_part_args_t args;
    vnxi_cuda_worker_t *worker; /* a reference */
    vnxi_cuda_rows_t rows;      /* the worker's thread only */
    /* Of the current post; worker->lock. */
    vnxi_cuda_xfer_t *next;
    unsigned running;  /* slots */
    bool is_filled;    /* nothing is left to start */
    bool is_parked;    /* until the peer's memory can be reached */
    bool is_late;      /* the peer may still write, but the time is over */
    uint64_t deadline; /* of what it waits for from the peer; 0: nothing */
    unsigned attempts; /* that were in vain */
    bool is_failing;   /* starts no more; `error` is set */
    vnx_error_t error;
};

/* -- The list of workers ---------------------------------------------------
 */

static vnxi_mutex_t workers_lock = VNXI_MUTEX_INIT(VNXI_RANK_CUDA_WORKERS);
static vnxi_cuda_worker_t *workers;      /* in use; workers_lock */
static vnxi_cuda_worker_t *lost_workers; /* ended; workers_lock */
static uint64_t last_id;                 /* workers_lock */
static _Thread_local bool is_worker;     /* the thread is one's */

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

    if (gpu->library == NULL) {
        return VNX_OK;
    }
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

/* `due`: a member of the worker. */
static void
set_due(vnxi_cuda_worker_t *worker, bool *due)
{
    vnxi_mutex_lock(&worker->lock);
    *due = true;
    vnxi_cond_signal(&worker->wake);
    vnxi_mutex_unlock(&worker->lock);
}

/* The gpu is the first member of its worker. */
static void
wake_for_imports(vnxi_cuda_gpu_t *gpu)
{
    vnxi_cuda_worker_t *worker = (vnxi_cuda_worker_t *)gpu;
    set_due(worker, &worker->has_imports);
}

static void
wake_for_windows(vnxi_cuda_gpu_t *gpu)
{
    vnxi_cuda_worker_t *worker = (vnxi_cuda_worker_t *)gpu;
    set_due(worker, &worker->has_windows);
}

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
    worker->jobs_end = &worker->jobs;
    worker->gpu.wake = wake_for_imports;
    worker->gpu.wake_for_windows = wake_for_windows;
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
        vnxi_cuda_worker_retain(worker);
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

vnxi_cuda_worker_t *
vnxi_cuda_worker_retain(vnxi_cuda_worker_t *worker)
{
    atomic_fetch_add(&worker->refs, 1);
    return worker;
}

void
vnxi_cuda_worker_release(vnxi_cuda_worker_t *worker)
{
    if (atomic_fetch_sub(&worker->refs, 1) == 1) {
        worker_free(worker);
    }
}

/* Returns true if this was the last use.  The worker is then no longer in the
 * list. */
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

/* The thread of a worker, this one or another, may do this: in done(), which
 * may free the last list with memory of an agent that was closed.  It does not
 * wait: two such threads could wait for each other. */
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
    if (is_worker) {
        pthread_detach(worker->thread);
    } else {
        pthread_join(worker->thread, NULL);
    }
}

void
vnxi_cuda_worker_run(vnxi_cuda_worker_t *worker, vnxi_cuda_job_t *job)
{
    job->next = NULL;
    vnxi_mutex_lock(&worker->lock);
    bool takes = !worker->is_lost && !worker->is_ending;
    if (takes) {
        *worker->jobs_end = job;
        worker->jobs_end = &job->next;
        vnxi_cond_signal(&worker->wake);
    }
    vnxi_mutex_unlock(&worker->lock);
    if (!takes) {
        job->run(job, NULL, NULL);
    }
}

/* An asker would take VNX_ERR_BACKEND for a refusal of its driver or ours that
 * does not pass, and never ask again. */
vnx_status_t
vnxi_cuda_no_gpu(const vnx_error_t *why, vnx_error_t *error)
{
    return why != NULL
               ? vnxi_error_set(error, VNX_ERR_NO_MEMORY, OPERATION, "%s",
                                why->cause)
               : vnxi_error_set(error, VNX_ERR_NOT_FOUND, OPERATION,
                                "the GPU memory was deregistered, or its CUDA "
                                "context is lost");
}

const vnxi_cuda_gpu_t *
vnxi_cuda_worker_gpu(const vnxi_cuda_worker_t *worker)
{
    return &worker->gpu;
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
    } else if (worker->closed.status != VNX_OK) {
        vnxi_json_member(&members, "not_open", worker->closed.cause);
    }
    vnxi_json_object(out, &members);
}

void
vnxi_cuda_workers_describe(vnxi_writer_t *out)
{
    bool is_first = true;

    vnxi_json_text(out, "[");
    vnxi_mutex_lock(&workers_lock);
    for (vnxi_cuda_worker_t *worker = workers; worker != NULL;
         worker = worker->next) {
        if (worker->gpu.library == NULL) {
            continue;
        }
        vnxi_mutex_lock(&worker->lock);
        vnxi_json_text(out, is_first ? "" : ", ");
        is_first = false;
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
    vnx_error_t error;

    if (xfer->rows.is_staged && is_wanted &&
        xfer->rows.direction == VNXI_CUDA_FROM_DEVICE) {
        vnxi_mutex_unlock(&worker->lock);
        vnx_status_t status =
            vnxi_cuda_rows_bring(&xfer->rows, slot->batch, &error);
        vnxi_mutex_lock(&worker->lock);
        if (status != VNX_OK) {
            fail_lock_held(xfer, &error);
        }
    }
    slot->state = SLOT_FREE;
    xfer->running--;
    worker->next_look = 0; /* the context works */
}

/* Find the place in the list of a transfer that can be continued; it holds
 * NULL if there is none. */
static vnxi_cuda_xfer_t **
find_turn_lock_held(vnxi_cuda_worker_t *worker)
{
    vnxi_cuda_xfer_t **at = &worker->first, *xfer;

    while ((xfer = *at) != NULL &&
           (xfer->is_filled || xfer->is_failing || xfer->is_parked)) {
        at = &xfer->next;
    }
    return at;
}

/* Move the next transfer to the end of the list: all get their turns. */
static vnxi_cuda_xfer_t *
take_turn_lock_held(vnxi_cuda_worker_t *worker)
{
    vnxi_cuda_xfer_t **at = find_turn_lock_held(worker), *xfer = *at;

    if (xfer->next == NULL) {
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

/* Return whether the peer still has to answer before the transfer can end. */
static bool
is_checking(const vnxi_cuda_xfer_t *xfer)
{
    return xfer->rows.pending > 0 ||
           vnxi_cuda_check_state(&xfer->rows.check) == VNX_IN_PROG;
}

/* The transfer waits for its peer from now on, unless it does so already. */
static void
expect_lock_held(vnxi_cuda_xfer_t *xfer)
{
    if (xfer->deadline == 0) {
        xfer->deadline = vnxi_clock_deadline(PEER_WAIT_NS);
    }
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
    uint64_t answered = xfer->rows.post.answered;
    vnx_status_t status =
        vnxi_cuda_rows_fill(&xfer->rows, slot->batch, &error);
    bool launches = status == VNX_OK && slot->batch->count > 0;
    if (launches) {
        status = vnxi_cuda_gpu_launch(gpu, slot->batch, xfer->rows.method,
                                      xfer->rows.direction, on_landed, slot,
                                      &error);
    }
    if (status == VNX_ERR_BACKEND) {
        works = vnxi_cuda_gpu_works(gpu, &cause);
    }
    vnxi_mutex_lock(&worker->lock);
    if (status == VNX_IN_PROG) {
        /* It may have come already. */
        xfer->is_parked = !worker->has_imports && !worker->has_windows;
    } else if (status == VNX_OK) {
        xfer->is_filled =
            !launches && (!xfer->rows.is_moved || xfer->rows.is_all_sent);
    } else {
        fail_lock_held(xfer, &error);
    }
    if (xfer->rows.post.answered > answered ||
        (status == VNX_OK && xfer->rows.is_moved)) {
        xfer->deadline = 0; /* the peer has answered, or it has had its turn */
    }
    if (status == VNX_IN_PROG || xfer->rows.pending > 0 ||
        (xfer->is_filled && is_checking(xfer))) {
        expect_lock_held(xfer);
    } else {
        xfer->deadline = 0;
    }
    if (!launches || status != VNX_OK) {
        slot->state = SLOT_FREE;
        xfer->running--;
    }
    if (!works) {
        lose_lock_held(worker, &error);
    }
}

/* Do it once more, but not for ever. */
static void
redo_lock_held(vnxi_cuda_xfer_t *xfer)
{
    vnx_error_t error;

    xfer->is_filled = xfer->rows.has_begun = xfer->rows.is_prepared = false;
    xfer->deadline = 0;
    xfer->rows.post.begun = 0;
    if (++xfer->attempts == ATTEMPTS_MAX) {
        vnxi_error_set(&error, VNX_ERR_MISMATCH, OPERATION,
                       "the peer has replaced its GPU memory during each of "
                       "%u attempts",
                       ATTEMPTS_MAX);
        fail_lock_held(xfer, &error);
    }
}

/* A transfer that has ended: nothing is left to start, nothing runs, and the
 * peer's memory was right. */
static vnxi_cuda_xfer_t *
take_ended_lock_held(vnxi_cuda_worker_t *worker)
{
    vnxi_cuda_xfer_t **at = &worker->first, *xfer;

    for (; (xfer = *at) != NULL; at = &xfer->next) {
        if (xfer->running > 0 || xfer->rows.pending > 0 ||
            !(xfer->is_filled || xfer->is_failing)) {
            continue;
        }
        vnx_status_t status = vnxi_cuda_check_state(&xfer->rows.check);
        if (status == VNX_ERR_MISMATCH && !xfer->is_failing) {
            redo_lock_held(xfer);
        }
        if (xfer->is_failing || status == VNX_OK) {
            *at = xfer->next;
            return xfer;
        }
    }
    return NULL;
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
    vnxi_cuda_check_end(&xfer->rows.check);
    xfer->args.done(xfer->args.context, is_failing ? error.status : VNX_OK,
                    is_failing ? &error : NULL);
    vnxi_mutex_lock(&worker->lock);
    worker->reporting--;
    vnxi_cond_broadcast(&worker->ended);
}

/* A transfer that fails waits for what the peer is writing for it. */
static bool
is_waiting(const vnxi_cuda_xfer_t *xfer)
{
    return xfer->is_failing ? xfer->rows.pending > 0
                            : xfer->is_parked || is_checking(xfer);
}

/* The earliest deadline of a transfer that waits for its peer, or `other`; 0:
 * none. */
static uint64_t
earliest_lock_held(const vnxi_cuda_worker_t *worker, uint64_t other)
{
    uint64_t earliest = other;

    for (const vnxi_cuda_xfer_t *xfer = worker->first; xfer != NULL;
         xfer = xfer->next) {
        if (xfer->deadline != 0 && is_waiting(xfer) &&
            (earliest == 0 || xfer->deadline < earliest)) {
            earliest = xfer->deadline;
        }
    }
    return earliest;
}

/* Fail the transfers whose peer has not answered, and those that a change of
 * their peer ends. */
static void
expire_lock_held(vnxi_cuda_worker_t *worker)
{
    uint64_t now = vnxi_clock_ns();
    vnx_error_t error;

    for (vnxi_cuda_xfer_t *xfer = worker->first; xfer != NULL;
         xfer = xfer->next) {
        if (xfer->is_failing && xfer->rows.pending > 0 &&
            xfer->deadline <= now) {
            xfer->is_late = true;
        }
        if (xfer->deadline == 0 || xfer->is_failing) {
            continue;
        }
        if (xfer->args.go_on(xfer->args.context, &error) != VNX_OK) {
            fail_lock_held(xfer, &error);
        } else if (xfer->deadline <= now && is_waiting(xfer)) {
            vnxi_error_set(&error, VNX_ERR_BACKEND, OPERATION,
                           "the peer has not answered a question about its "
                           "GPU memory within %d s",
                           (int)(PEER_WAIT_NS / 1000000000u));
            fail_lock_held(xfer, &error);
        }
    }
}

/* Look after what runs. */
static void
watch_lock_held(vnxi_cuda_worker_t *worker)
{
    vnx_error_t error;

    worker->next_look = 0;
    vnxi_mutex_unlock(&worker->lock);
    bool works = vnxi_cuda_gpu_works(&worker->gpu, &error);
    vnxi_mutex_lock(&worker->lock);
    if (!works) {
        lose_lock_held(worker, &error);
    }
}

/* Look whether a time has come. */
static void
check_times_lock_held(vnxi_cuda_worker_t *worker)
{
    bool runs = find_slot(worker, SLOT_RUNNING) != NULL;

    expire_lock_held(worker);
    if (runs && worker->next_look == 0) {
        worker->next_look = vnxi_clock_deadline(WATCH_NS);
    } else if (runs && worker->next_look <= vnxi_clock_ns()) {
        watch_lock_held(worker);
    }
}

static void
wait_lock_held(vnxi_cuda_worker_t *worker)
{
    bool runs = find_slot(worker, SLOT_RUNNING) != NULL;

    if (runs && worker->next_look == 0) {
        worker->next_look = vnxi_clock_deadline(WATCH_NS);
    }
    uint64_t until = earliest_lock_held(worker, runs ? worker->next_look : 0);
    if (until == 0) {
        vnxi_cond_wait(&worker->wake, &worker->lock);
        return;
    }
    struct timespec when = vnxi_clock_timespec(until);
    if (vnxi_cond_timedwait(&worker->wake, &worker->lock, &when) != 0) {
        check_times_lock_held(worker);
    }
}

/* Nothing runs.  What was found out about the peers' memory is not valid any
 * more. */
static void
serve_imports_lock_held(vnxi_cuda_worker_t *worker)
{
    worker->has_imports = false;
    vnxi_mutex_unlock(&worker->lock);
    vnxi_cuda_imports_serve(&worker->gpu);
    vnxi_mutex_lock(&worker->lock);
    for (vnxi_cuda_xfer_t *xfer = worker->first; xfer != NULL;
         xfer = xfer->next) {
        xfer->is_parked = xfer->rows.is_prepared = false;
    }
    expire_lock_held(worker);
}

/* A transfer that fails while the peer moves bytes for it. */
static vnxi_cuda_xfer_t *
find_to_stop_lock_held(const vnxi_cuda_worker_t *worker)
{
    vnxi_cuda_xfer_t *xfer = worker->first;

    while (xfer != NULL && !(xfer->is_failing && xfer->rows.pending > 0 &&
                             (xfer->is_late || !xfer->rows.is_stopped))) {
        xfer = xfer->next;
    }
    return xfer;
}

static void
stop_lock_held(vnxi_cuda_worker_t *worker, vnxi_cuda_xfer_t *xfer)
{
    bool is_late = xfer->is_late;

    vnxi_mutex_unlock(&worker->lock);
    vnxi_cuda_rows_stop(&xfer->rows, is_late);
    vnxi_mutex_lock(&worker->lock);
    expect_lock_held(xfer);
}

/* Update a transfer after halves have come back.  If the whole transfer has a
 * cause to end, that is the error, not what happened to a half. */
static void
go_on_moving_lock_held(vnxi_cuda_xfer_t *xfer)
{
    vnx_error_t error;

    xfer->is_parked = false;
    if (xfer->rows.has_failed) {
        bool has_ended =
            xfer->args.go_on(xfer->args.context, &error) != VNX_OK;
        fail_lock_held(xfer, has_ended ? &error : &xfer->rows.error);
    }
    if (xfer->rows.has_returned) {
        xfer->rows.has_returned = false;
        xfer->deadline = 0;
        if (xfer->rows.pending > 0 || (xfer->is_filled && is_checking(xfer))) {
            expect_lock_held(xfer);
        }
    }
}

static void
serve_windows_lock_held(vnxi_cuda_worker_t *worker)
{
    worker->has_windows = false;
    vnxi_mutex_unlock(&worker->lock);
    vnxi_cuda_windows_serve(&worker->gpu, vnxi_cuda_rows_return);
    vnxi_mutex_lock(&worker->lock);
    for (vnxi_cuda_xfer_t *xfer = worker->first; xfer != NULL;
         xfer = xfer->next) {
        go_on_moving_lock_held(xfer);
    }
}

/* As for job->run(). */
static void
run_job_lock_held(vnxi_cuda_worker_t *worker, vnxi_cuda_gpu_t *gpu,
                  const vnx_error_t *why)
{
    vnxi_cuda_job_t *job = worker->jobs;

    worker->jobs = job->next;
    if (worker->jobs == NULL) {
        worker->jobs_end = &worker->jobs;
    }
    vnxi_mutex_unlock(&worker->lock);
    job->run(job, gpu, why);
    vnxi_mutex_lock(&worker->lock);
}

/* Go on with what is in flight.  False: nothing of it has changed. */
static bool
go_on_lock_held(vnxi_cuda_worker_t *worker)
{
    slot_t *landed = find_slot(worker, SLOT_LANDED);
    vnxi_cuda_xfer_t *xfer;

    if (landed != NULL) {
        land_lock_held(worker, landed);
    } else if ((xfer = take_ended_lock_held(worker)) != NULL) {
        report_lock_held(worker, xfer);
    } else if ((xfer = find_to_stop_lock_held(worker)) != NULL) {
        stop_lock_held(worker, xfer);
    } else if (worker->has_windows) {
        serve_windows_lock_held(worker);
    } else {
        return false;
    }
    return true;
}

/* Open the gpu, or fail what waits for it. */
static void
open_lock_held(vnxi_cuda_worker_t *worker)
{
    vnx_error_t error = {.status = VNX_OK};

    vnxi_mutex_unlock(&worker->lock);
    worker->is_open = vnxi_cuda_gpu_open(&worker->gpu, &error) == VNX_OK;
    if (!worker->is_open) {
        vnxi_cuda_gpu_close(&worker->gpu);
        vnxi_log(VNX_LOG_WARNING, NULL, "GPU %d cannot be used now: %s",
                 worker->gpu.ordinal, error.cause);
    }
    vnxi_mutex_lock(&worker->lock);
    worker->closed = error;
    for (vnxi_cuda_xfer_t *xfer = worker->is_open ? NULL : worker->first;
         xfer != NULL; xfer = xfer->next) {
        fail_lock_held(xfer, &error);
    }
    while (!worker->is_open && worker->jobs != NULL) {
        run_job_lock_held(worker, NULL, &error);
    }
}

/* Jobs for other processes alternate with the worker's own work. */
static void
serve_lock_held(vnxi_cuda_worker_t *worker)
{
    for (;;) {
        if (go_on_lock_held(worker)) {
            continue;
        }
        slot_t *unused =
            worker->has_imports ? NULL : find_slot(worker, SLOT_FREE);
        bool imports =
            worker->has_imports && find_slot(worker, SLOT_RUNNING) == NULL;
        bool feeds = unused != NULL && *find_turn_lock_held(worker) != NULL;
        if (!worker->is_open && (worker->jobs != NULL || feeds)) {
            open_lock_held(worker);
            continue;
        }
        if (worker->jobs != NULL && !(worker->had_job && (imports || feeds))) {
            worker->had_job = true;
            run_job_lock_held(worker, worker->is_lost ? NULL : &worker->gpu,
                              NULL);
            check_times_lock_held(worker);
        } else if (imports) {
            worker->had_job = false;
            serve_imports_lock_held(worker);
        } else if (feeds) {
            worker->had_job = false;
            feed_lock_held(worker, unused, take_turn_lock_held(worker));
            check_times_lock_held(worker);
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

    is_worker = true;
    bool has_gpu = worker->gpu.library != NULL;
    vnxi_mutex_lock(&worker->lock);
    worker->is_open = !has_gpu;
    if (has_gpu) {
        open_lock_held(worker);
    }
    serve_lock_held(worker);
    bool is_lost = worker->is_lost;
    vnxi_mutex_unlock(&worker->lock);
    vnxi_cuda_imports_end(&worker->gpu);
    vnxi_cuda_windows_end(&worker->gpu);
    vnxi_cuda_shared_end(&worker->gpu);
    if (has_gpu && worker->is_open) {
        vnxi_cuda_gpu_close(&worker->gpu);
    }
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

static vnxi_cuda_direction_t
direction_of(const vnxi_part_args_t *args)
{
    bool is_local = args->local->mem == VNX_MEM_VRAM;

    if (args->local->mem == args->remote->mem) {
        return VNXI_CUDA_ON_DEVICE;
    }
    return is_local == (args->op == VNX_OP_READ) ? VNXI_CUDA_TO_DEVICE
                                                 : VNXI_CUDA_FROM_DEVICE;
}

vnx_status_t
vnxi_cuda_xfer_create(const vnxi_part_args_t *args, unsigned route,
                      vnxi_cuda_worker_t *worker, vnxi_cuda_xfer_t **xfer_p,
                      vnx_error_t *error)
{
    vnxi_cuda_xfer_t *xfer = calloc(1, sizeof *xfer);

    if (xfer == NULL) {
        return vnxi_error_no_memory(error, OPERATION, sizeof *xfer);
    }
    xfer->args = *args;
    xfer->worker = worker;
    xfer->rows.args = &xfer->args;
    xfer->rows.route = route;
    xfer->rows.gpu = &xfer->worker->gpu;
    xfer->rows.direction = direction_of(args);
    atomic_fetch_add(&xfer->worker->refs, 1);
    *xfer_p = xfer;
    return VNX_OK;
}

void
vnxi_cuda_xfer_free(vnxi_cuda_xfer_t *xfer)
{
    vnxi_cuda_rows_fini(&xfer->rows);
    vnxi_cuda_worker_release(xfer->worker);
    free(xfer);
}

/* What a worker that takes no more transfers answers. */
static vnx_status_t
refuse_lock_held(const vnxi_cuda_worker_t *worker, vnx_error_t *error)
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
    xfer->is_filled = xfer->is_failing = false;
    xfer->is_parked = xfer->is_late = false;
    xfer->rows.post = (vnxi_cuda_post_t){.since = vnxi_cuda_next_number()};
    xfer->rows.imported = 0;
    xfer->rows.has_begun = xfer->rows.is_prepared = false;
    xfer->rows.has_returned = xfer->rows.has_failed = false;
    xfer->deadline = 0;
    xfer->attempts = 0;
    xfer->next = NULL;
    if (worker->is_lost || worker->is_ending) {
        vnx_status_t status = refuse_lock_held(worker, error);
        vnxi_mutex_unlock(&worker->lock);
        return status;
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
