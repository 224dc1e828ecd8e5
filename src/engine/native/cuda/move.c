/*
 * Design notes.  The owner creates the memfd of a window and seals it, so that
 * an asker cannot shrink it.  An asker may write to it at any time, so the
 * owner reads nothing from it except data, and the token that calls a copy
 * off.
 *
 * The first worker that copies with a window pins it, and unpins it when the
 * window or the worker ends.  Another worker lets the driver copy.
 *
 * A worker waits for the GPU during a move, which has at most a few MiB.
 */
#include "engine/native/cuda/move.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/error.h"
#include "base/fork_fds.h"
#include "engine/native/cuda/lend.h"
#include "engine/native/cuda/rows.h"
#include "engine/native/cuda/worker.h"
#include "engine/native/region_access.h"

#define OPERATION "vnx_xfer_post"
#define WINDOWS_MAX 128u      /* of a port: 1 GiB */
#define ASKER_WINDOWS_MAX 16u /* one for each of its GPUs */

/* Moves of a window that have not ended: those of both halves. */
#define BYTES_MAX ((uint64_t)VNXI_WINDOW_HALVES * VNXI_WINDOW_HALF_BYTES)
#define ROWS_MAX (VNXI_WINDOW_HALVES * VNXI_LEND_ROWS_MAX)

_Static_assert(VNXI_LEND_ROWS_MAX <= VNXI_CUDA_ROWS_AT_ONCE,
               "the rows of a move are copied at once");

/* Our end of a window. */
typedef struct vnxi_cuda_shared {
    vnxi_cuda_job_t unpin; /* first */
    atomic_uint refs;
    uint64_t asker, number;
    unsigned char *base; /* owned */
    /* mover->lock */
    struct vnxi_cuda_shared *next;
    bool is_closed;
    uint64_t bytes; /* of moves that have not ended */
    size_t rows;
    vnxi_cuda_worker_t *worker; /* that may have pinned it; a reference */
    /* The worker's thread. */
    uint64_t delta;                       /* of vnxi_cuda_gpu_pin() */
    struct vnxi_cuda_shared *next_pinned; /* of gpu->shared */
} shared_t;

typedef struct vnxi_cuda_move {
    vnxi_cuda_job_t job;               /* first */
    struct vnxi_cuda_move *next, **at; /* mover->lock */
    vnxi_cuda_mover_t *mover;
    shared_t *window;           /* a reference */
    vnxi_region_t *region;      /* a reference */
    vnxi_cuda_worker_t *worker; /* the region's */
    uint64_t asker, token, bytes;
    unsigned half;
    bool is_write;
    uint32_t count;
    vnxi_cuda_row_t rows[]; /* src: in the region; dst: offset in the half */
} move_t;

void
vnxi_cuda_mover_init(vnxi_cuda_mover_t *mover, const vnxi_port_t *port)
{
    *mover = (vnxi_cuda_mover_t){.port = port};
    vnxi_mutex_init(&mover->lock, VNXI_RANK_CUDA_MOVER);
    vnxi_cond_init(&mover->ended);
}

/* -- Answers ---------------------------------------------------------------
 */

/* `fd`: -1 or owned.  False: the asker does not get it.  If it is not gone, it
 * gives up after a time. */
static bool
answer(const vnxi_cuda_mover_t *mover, uint64_t asker, vnxi_lend_type_t type,
       uint64_t number, vnx_status_t status, const char *cause, int fd)
{
    const vnxi_lend_t message = {.type = type,
                                 .loan = number,
                                 .status = vnxi_lend_status(status),
                                 .cause = cause,
                                 .count = strlen(cause)};

    return vnxi_cuda_answer(mover->port, asker, &message, &fd, fd >= 0,
                            NULL) == VNX_OK;
}

/* -- Windows ---------------------------------------------------------------
 */

static void
window_release(shared_t *window)
{
    if (atomic_fetch_sub(&window->refs, 1) > 1) {
        return;
    }
    munmap(window->base, VNXI_WINDOW_BYTES);
    if (window->worker != NULL) {
        vnxi_cuda_worker_release(window->worker);
    }
    free(window);
}

static shared_t **
find_pinned(vnxi_cuda_gpu_t *gpu, const shared_t *window)
{
    shared_t **at = &gpu->shared;

    while (*at != NULL && *at != window) {
        at = &(*at)->next_pinned;
    }
    return at;
}

static void
unpin(vnxi_cuda_gpu_t *gpu, shared_t **at)
{
    shared_t *window = *at;

    *at = window->next_pinned;
    vnxi_cuda_gpu_unpin(gpu, window->base);
    window_release(window);
}

void
vnxi_cuda_shared_end(vnxi_cuda_gpu_t *gpu)
{
    while (gpu->shared != NULL) {
        unpin(gpu, &gpu->shared);
    }
}

/* A window was closed that the worker may have pinned. */
static void
run_unpin(vnxi_cuda_job_t *job, vnxi_cuda_gpu_t *gpu, const vnx_error_t *why)
{
    shared_t *window = (shared_t *)job;

    (void)why;
    if (gpu != NULL) {
        shared_t **at = find_pinned(gpu, window);
        if (*at != NULL) {
            unpin(gpu, at);
        }
    }
    window_release(window);
}

/* Create and map a window; *fd_p belongs to the caller.  NULL: *why_p. */
static shared_t *
create_window(uint64_t asker, uint64_t number, int *fd_p, const char **why_p)
{
    shared_t *window = calloc(1, sizeof *window);
    int fd = memfd_create("vnx-window", MFD_ALLOW_SEALING | MFD_CLOEXEC);
    void *base = MAP_FAILED;

    if (window != NULL && fd >= 0 && ftruncate(fd, VNXI_WINDOW_BYTES) == 0 &&
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) ==
            0) {
        base = mmap(NULL, VNXI_WINDOW_BYTES, PROT_READ | PROT_WRITE,
                    MAP_SHARED, fd, 0);
    }
    if (base == MAP_FAILED) {
        *why_p = vnxi_errno(errno);
        if (fd >= 0) {
            close(fd);
        }
        free(window);
        return NULL;
    }
    madvise(base, VNXI_WINDOW_BYTES, MADV_DONTFORK); /* pinned memory */
    atomic_init(&window->refs, 1);
    window->unpin.run = run_unpin;
    window->asker = asker;
    window->number = number;
    window->base = base;
    *fd_p = vnxi_fork_fd_own(fd);
    return window;
}

static shared_t *
find_lock_held(const vnxi_cuda_mover_t *mover, uint64_t asker, uint64_t number)
{
    shared_t *window = mover->windows;

    while (window != NULL &&
           (window->asker != asker || window->number != number)) {
        window = window->next;
    }
    return window;
}

/* NULL: the window may be opened; else why not. */
static const char *
refusal_lock_held(const vnxi_cuda_mover_t *mover, uint64_t asker,
                  uint64_t number, vnx_status_t *status_p)
{
    size_t count = 0;

    if (mover->is_leaving) {
        *status_p = VNX_ERR_REMOTE_DISCONNECT;
        return "the agent is being closed";
    }
    for (const shared_t *window = mover->windows; window != NULL;
         window = window->next) {
        count += window->asker == asker;
    }
    *status_p = VNX_ERR_NOT_SUPPORTED;
    return count >= ASKER_WINDOWS_MAX || mover->window_count >= WINDOWS_MAX
               ? "it copies GPU memory for too many agents"
           : find_lock_held(mover, asker, number) != NULL
               ? "the window is open already"
               : NULL;
}

/* Close the first window that fits; false: none does.  `number` NULL: any of
 * the asker; `asker` NULL: any. */
static bool
close_one(vnxi_cuda_mover_t *mover, const uint64_t *asker,
          const uint64_t *number)
{
    vnxi_mutex_lock(&mover->lock);
    shared_t **at = &mover->windows, *window;
    while ((window = *at) != NULL &&
           ((asker != NULL && window->asker != *asker) ||
            (number != NULL && window->number != *number))) {
        at = &window->next;
    }
    vnxi_cuda_worker_t *worker = NULL;
    if (window != NULL) {
        *at = window->next;
        window->is_closed = true;
        mover->window_count -= window->rows == 0;
        worker = window->worker;
    }
    vnxi_mutex_unlock(&mover->lock);
    if (worker != NULL) {
        vnxi_cuda_worker_run(worker, &window->unpin);
    } else if (window != NULL) {
        window_release(window);
    }
    return window != NULL;
}

/* After a failure that may pass, the asker tries again. */
static void
on_open(vnxi_cuda_mover_t *mover, uint64_t asker, uint64_t number)
{
    vnx_status_t status;
    int fd = -1;

    vnxi_mutex_lock(&mover->lock);
    const char *why = refusal_lock_held(mover, asker, number, &status);
    if (why == NULL) {
        shared_t *window = create_window(asker, number, &fd, &why);
        status = window == NULL ? VNX_ERR_NO_MEMORY : VNX_OK;
        if (window != NULL) {
            window->next = mover->windows;
            mover->windows = window;
            mover->window_count++;
        }
    }
    vnxi_mutex_unlock(&mover->lock);
    if (!answer(mover, asker, VNXI_LEND_OPENED, number, status,
                status == VNX_OK ? "" : why, fd) &&
        status == VNX_OK) {
        close_one(mover, &asker, &number);
    }
}

void
vnxi_cuda_mover_forget(vnxi_cuda_mover_t *mover, uint64_t asker)
{
    while (close_one(mover, &asker, NULL)) {
    }
}

void
vnxi_cuda_mover_fini(vnxi_cuda_mover_t *mover)
{
    while (close_one(mover, NULL, NULL)) {
    }
    vnxi_cond_destroy(&mover->ended);
    vnxi_mutex_destroy(&mover->lock);
}

/* -- Copying ---------------------------------------------------------------
 */

/* Pin the window unless another worker has. */
static void
pin(const move_t *move, vnxi_cuda_gpu_t *gpu)
{
    shared_t *window = move->window;

    vnxi_mutex_lock(&move->mover->lock);
    bool is_first = window->worker == NULL && !window->is_closed;
    if (is_first) {
        window->worker = vnxi_cuda_worker_retain(move->worker);
    }
    vnxi_mutex_unlock(&move->mover->lock);
    if (is_first && vnxi_cuda_gpu_pin(gpu, window->base, VNXI_WINDOW_BYTES,
                                      &window->delta)) {
        atomic_fetch_add(&window->refs, 1);
        window->next_pinned = gpu->shared;
        gpu->shared = window;
    }
}

static vnx_status_t
check(const move_t *move, const vnxi_cuda_gpu_t *gpu, const vnx_error_t *why,
      vnx_error_t *error)
{
    const vnxi_window_head_t *head = (const void *)move->window->base;
    unsigned route = move->mover->port->config.number;

    if (gpu == NULL) {
        return vnxi_cuda_no_gpu(why, error);
    }
    if (vnxi_region_is_gone(move->region)) {
        return vnxi_error_set(error, VNX_ERR_NOT_FOUND, OPERATION,
                              "the GPU memory was deregistered");
    }
    vnxi_mutex_lock(&move->mover->lock);
    bool is_closed = move->window->is_closed || move->mover->is_leaving;
    vnxi_mutex_unlock(&move->mover->lock);
    if (is_closed || atomic_load(&head->tokens[move->half]) != move->token) {
        return vnxi_error_set(error, VNX_ERR_CANCELED, OPERATION,
                              "the copy was called off");
    }
    return vnxi_cuda_check_memory(vnxi_region_slot(move->region, route),
                                  move->region, error);
}

static vnx_status_t
copy(move_t *move, vnxi_cuda_gpu_t *gpu, vnx_error_t *error)
{
    const shared_t *window = move->window;
    uint64_t half = (uintptr_t)window->base + VNXI_WINDOW_HEAD_BYTES +
                    (uint64_t)move->half * VNXI_WINDOW_HALF_BYTES;

    pin(move, gpu);
    bool is_ours = *find_pinned(gpu, window) != NULL;
    vnxi_cuda_method_t method = is_ours ? gpu->method : VNXI_CUDA_LOOP;
    half += method == VNXI_CUDA_KERNEL ? window->delta : 0;
    for (uint32_t i = 0; i < move->count; i++) {
        vnxi_cuda_row_t *row = &move->rows[i];
        uint64_t inside = row->src, shared = half + row->dst;
        row->src = move->is_write ? shared : inside;
        row->dst = move->is_write ? inside : shared;
    }
    return vnxi_cuda_gpu_copy(gpu, move->rows, move->count, method,
                              move->is_write ? VNXI_CUDA_TO_DEVICE
                                             : VNXI_CUDA_FROM_DEVICE,
                              NULL, error);
}

static void
run_move(vnxi_cuda_job_t *job, vnxi_cuda_gpu_t *gpu, const vnx_error_t *why)
{
    move_t *move = (move_t *)job;
    vnxi_cuda_mover_t *mover = move->mover;
    const vnxi_port_host_t *host = &mover->port->config.host;
    uint64_t asker = move->asker, token = move->token;
    vnx_error_t error = {0};

    vnx_status_t status = check(move, gpu, why, &error);
    if (status == VNX_OK) {
        status = copy(move, gpu, &error);
    }
    vnxi_mutex_lock(&mover->lock);
    *move->at = move->next;
    if (move->next != NULL) {
        move->next->at = move->at;
    }
    move->window->bytes -= move->bytes;
    move->window->rows -= move->count;
    mover->window_count -= move->window->is_closed && move->window->rows == 0;
    vnxi_cond_broadcast(&mover->ended);
    vnxi_mutex_unlock(&mover->lock);
    window_release(move->window);
    vnxi_region_release(move->region);
    free(move);
    answer(mover, asker, VNXI_LEND_MOVED, token, status,
           status == VNX_OK ? "" : error.cause, -1);
    host->release(host->context);
}

/* -- Questions -------------------------------------------------------------
 */

/* NULL: no memory. */
static move_t *
create_move(vnxi_cuda_mover_t *mover, uint64_t asker,
            const vnxi_lend_t *message)
{
    move_t *move = malloc(sizeof *move + message->count * sizeof *move->rows);

    if (move == NULL) {
        return NULL;
    }
    *move = (move_t){.job.run = run_move,
                     .mover = mover,
                     .asker = asker,
                     .token = message->loan,
                     .half = message->half,
                     .is_write = message->is_write,
                     .count = (uint32_t)message->count};
    for (size_t i = 0; i < message->count; i++) {
        vnxi_lend_row_t row = vnxi_lend_row(message, i);
        move->rows[i] = (vnxi_cuda_row_t){row.addr, row.offset, row.len, 0};
        move->bytes += row.len;
    }
    return move;
}

/* Put the move in the list, with its window.  NULL: done, else why not. */
static const char *
enlist_lock_held(vnxi_cuda_mover_t *mover, const vnxi_lend_t *message,
                 move_t *move, vnx_status_t *status_p)
{
    shared_t *window = find_lock_held(mover, move->asker, message->window);

    if (mover->is_leaving) {
        *status_p = VNX_ERR_REMOTE_DISCONNECT;
        return "the agent is being closed";
    }
    *status_p = VNX_ERR_BACKEND;
    if (window == NULL) {
        return "the window is not open";
    }
    if (window->bytes + move->bytes > BYTES_MAX ||
        window->rows + move->count > ROWS_MAX) {
        return "more is to be copied than a window holds";
    }
    window->bytes += move->bytes;
    window->rows += move->count;
    atomic_fetch_add(&window->refs, 1);
    move->window = window;
    move->next = mover->moves;
    move->at = &mover->moves;
    if (move->next != NULL) {
        move->next->at = &move->next;
    }
    mover->moves = move;
    return NULL;
}

/* A deregistration after the lookup is noticed by check(), or finds the move
 * in the list. */
static void
on_move(vnxi_cuda_mover_t *mover, uint64_t asker, const vnxi_lend_t *message)
{
    const vnxi_port_host_t *host = &mover->port->config.host;
    const char *why = "no memory";
    vnx_status_t status = VNX_ERR_NO_MEMORY;

    vnxi_region_t *region = vnxi_cuda_asked_region(mover->port, message);
    const vnxi_cuda_mem_t *mem =
        region != NULL ? vnxi_region_slot(region, mover->port->config.number)
                       : NULL;
    move_t *move = create_move(mover, asker, message);
    if (mem == NULL) {
        why = "the region is not registered";
        status = VNX_ERR_NOT_FOUND;
    } else if (move != NULL) {
        move->region = region;
        move->worker = mem->worker;
        vnxi_mutex_lock(&mover->lock);
        why = enlist_lock_held(mover, message, move, &status);
        vnxi_mutex_unlock(&mover->lock);
    }
    if (why == NULL) {
        host->retain(host->context);
        vnxi_cuda_worker_run(move->worker, &move->job);
        return;
    }
    free(move);
    vnxi_region_release(region);
    answer(mover, asker, VNXI_LEND_MOVED, message->loan, status, why, -1);
}

void
vnxi_cuda_mover_on_question(vnxi_cuda_mover_t *mover, uint64_t asker,
                            const vnxi_lend_t *message)
{
    if (message->type == VNXI_LEND_OPEN) {
        on_open(mover, asker, message->loan);
    } else if (message->type == VNXI_LEND_MOVE) {
        on_move(mover, asker, message);
    } else if (message->type == VNXI_LEND_RETURNED) {
        close_one(mover, &asker, &message->loan);
    }
}

/* -- Settling --------------------------------------------------------------
 */

void
vnxi_cuda_mover_leave(vnxi_cuda_mover_t *mover)
{
    vnxi_mutex_lock(&mover->lock);
    mover->is_leaving = true;
    vnxi_mutex_unlock(&mover->lock);
}

static bool
must_wait_lock_held(const vnxi_cuda_mover_t *mover)
{
    const move_t *move = mover->moves;

    while (move != NULL && !mover->is_leaving &&
           !vnxi_region_is_gone(move->region)) {
        move = move->next;
    }
    return move != NULL;
}

void
vnxi_cuda_mover_settle(vnxi_cuda_mover_t *mover)
{
    vnxi_mutex_lock(&mover->lock);
    while (must_wait_lock_held(mover)) {
        vnxi_cond_wait(&mover->ended, &mover->lock);
    }
    vnxi_mutex_unlock(&mover->lock);
}
