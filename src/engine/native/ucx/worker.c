/*
 * Design notes.  A command is queued under the lock.  The eventfd is written
 * only if the thread sleeps or is about to, which the thread announces under
 * the same lock after finding the queue empty.
 *
 * ucp_worker_arm() must be called after progress has found nothing; it returns
 * BUSY if something arrived in between.  A round without work although UCX
 * woke the thread counts as fruitless.  After several of these, the thread
 * watches only its own eventfd for a while, for longer and longer times,
 * before it lets UCX wake it again.  So a storm of wake-ups costs little, a
 * command is still run at once, and after the storm the thread sleeps as
 * before.
 *
 * With GPU memory, UCX calls the driver from within progress and arm, for
 * example to ask whether a copy has ended.  It does not make a context current
 * for that and crashes if there is none.  So the thread enters one before it
 * calls UCX again, and stays in it until the worker is destroyed.
 */
#include "engine/native/ucx/worker.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/fork_fds.h"
#include "base/mutex.h"
#include "base/thread.h"

#define PATIENCE 8u                  /* fruitless wake-ups without backoff */
#define BACKOFF_NS 50000u            /* doubled with each one after that */
#define BACKOFF_MAX_NS 1000000u      /* limit of the doubling */
#define STOP_DEADLINE_NS 3000000000u /* flushes, then closes by force */
#define PARK_LOOK_NS 10000000

void
vnxi_ucx_worker_init(vnxi_ucx_worker_t *worker, struct vnxi_ucx *ucx,
                     const vnxi_ucp_functions_t *ucp,
                     vnxi_ucp_context_t context, unsigned index)
{
    *worker = (vnxi_ucx_worker_t){.ucx = ucx,
                                  .ucp = ucp,
                                  .context = context,
                                  .index = index,
                                  .ucx_fd = -1};
    worker->wake_fd = -1;
    worker->fds = vnxi_fds_epoch();
    worker->last = &worker->first;
    worker->duties.prev = worker->duties.next = &worker->duties;
    worker->cursor = &worker->duties;
    vnxi_mutex_init(&worker->progress_lock, VNXI_RANK_UCX_PROGRESS);
    vnxi_mutex_init(&worker->lock, VNXI_RANK_UCX_WORKER);
    vnxi_cond_init(&worker->changed);
}

void
vnxi_ucx_worker_fini(vnxi_ucx_worker_t *worker)
{
    vnxi_cond_destroy(&worker->changed);
    vnxi_mutex_destroy(&worker->lock);
    vnxi_mutex_destroy(&worker->progress_lock);
}

/* If the program has closed the descriptors, other files may have their
 * numbers: nothing is written, and nobody but the thread calls UCX. */
static bool
is_lost_lock_held(vnxi_ucx_worker_t *worker)
{
    worker->lost = worker->lost || vnxi_fds_lost(worker->fds);
    return worker->lost;
}

/* -- Duties ----------------------------------------------------------------
 */

void
vnxi_ucx_duty_add(vnxi_ucx_worker_t *worker, vnxi_ucx_duty_t *duty)
{
    vnxi_ucx_duty_t *ring = &worker->duties;
    duty->prev = ring->prev;
    duty->next = ring;
    ring->prev->next = duty;
    ring->prev = duty;
}

void
vnxi_ucx_duty_remove(vnxi_ucx_worker_t *worker, vnxi_ucx_duty_t *duty)
{
    if (worker->cursor == duty) {
        worker->cursor = duty->next;
    }
    duty->prev->next = duty->next;
    duty->next->prev = duty->prev;
    duty->prev = duty->next = NULL;
}

/* Return whether the worker may be destroyed.  A request of a duty counts as
 * the duty. */
static bool
is_idle(const vnxi_ucx_worker_t *worker)
{
    return worker->duties.next == &worker->duties && worker->requests == 0;
}

/* Let each duty post some; true: one of them has more. */
static bool
take_turns(vnxi_ucx_worker_t *worker)
{
    bool more = false;
    for (worker->cursor = worker->duties.next;
         worker->cursor != &worker->duties;) {
        vnxi_ucx_duty_t *duty = worker->cursor;
        worker->cursor = duty->next;
        more |= duty->turn != NULL && duty->turn(duty);
    }
    return more;
}

/* Returns the latest time for the next call. */
static uint64_t
look_after_all(vnxi_ucx_worker_t *worker)
{
    uint64_t now = vnxi_clock_ns(), next = UINT64_MAX;
    for (worker->cursor = worker->duties.next;
         worker->cursor != &worker->duties;) {
        vnxi_ucx_duty_t *duty = worker->cursor;
        worker->cursor = duty->next;
        uint64_t due = duty->look(duty, now);
        next = due < next ? due : next;
    }
    return next;
}

/* -- Sleeping --------------------------------------------------------------
 */

/* Sleep until a command arrives, UCX has an event (if `watch_ucx`), or it is
 * `due`.  *by_ucx_p: UCX woke the thread. */
static void
wait_for(vnxi_ucx_worker_t *worker, bool watch_ucx, uint64_t due,
         bool *by_ucx_p)
{
    struct pollfd fds[] = {
        {.fd = worker->wake_fd, .events = POLLIN},
        {.fd = worker->ucx_fd, .events = POLLIN},
    };
    uint64_t now = due == UINT64_MAX ? 0 : vnxi_clock_ns();
    struct timespec timeout = vnxi_clock_timespec(due > now ? due - now : 0);
    uint64_t count;

    int ready = ppoll(fds, watch_ucx ? 2 : 1,
                      due == UINT64_MAX ? NULL : &timeout, NULL);
    if (fds[0].revents == POLLIN &&
        read(worker->wake_fd, &count, sizeof count) < 0) {
        /* Only this thread reads it: nothing to do. */
        (void)count;
    }
    *by_ucx_p = watch_ucx && fds[1].revents != 0;
    if ((ready <= 0 || ((fds[0].revents | fds[1].revents) & ~POLLIN) != 0) &&
        vnxi_fds_lost(worker->fds)) {
        vnxi_ucx_worker_park(worker);
    }
}

/* Mark the thread as sleeping, unless there is something to do. */
static bool
may_sleep(vnxi_ucx_worker_t *worker)
{
    vnxi_mutex_lock(&worker->lock);
    bool may = worker->first == NULL && !worker->nudged;
    worker->sleeping = may;
    vnxi_mutex_unlock(&worker->lock);
    return may;
}

/* Never returns. */
static void __attribute__((noreturn)) park_lock_held(vnxi_ucx_worker_t *worker)
{
    worker->parked = true;
    for (;;) {
        vnxi_cond_broadcast(&worker->changed);
        vnxi_cond_wait(&worker->changed, &worker->lock);
    }
}

static void
awake(vnxi_ucx_worker_t *worker)
{
    vnxi_mutex_lock(&worker->lock);
    if (worker->park) {
        park_lock_held(worker);
    }
    worker->sleeping = false;
    vnxi_mutex_unlock(&worker->lock);
}

static uint64_t
backoff_ns(unsigned fruitless)
{
    unsigned over = fruitless - PATIENCE;
    uint64_t ns = over < 5 ? (uint64_t)BACKOFF_NS << over : BACKOFF_MAX_NS;
    return ns < BACKOFF_MAX_NS ? ns : BACKOFF_MAX_NS;
}

static void
sleep_some(vnxi_ucx_worker_t *worker, uint64_t due)
{
    bool pause = worker->fruitless > PATIENCE && !worker->paused;
    bool by_ucx = false;

    worker->paused = pause;
    if (pause) {
        uint64_t end = vnxi_clock_deadline(backoff_ns(worker->fruitless));
        due = end < due ? end : due;
    } else if (worker->handle != NULL &&
               vnxi_ucx_calls(worker)->ucp_worker_arm(worker->handle) ==
                   VNXI_UCS_ERR_BUSY) {
        worker->fruitless++;
        return;
    }
    if (may_sleep(worker)) {
        vnxi_mutex_unlock(&worker->progress_lock);
        wait_for(worker, !pause && worker->handle != NULL, due, &by_ucx);
        awake(worker);
        vnxi_mutex_lock(&worker->progress_lock);
    }
    worker->fruitless += by_ucx;
}

/* -- The GPU ---------------------------------------------------------------
 */

static bool
has_new_gpu_lock_held(const vnxi_ucx_worker_t *worker)
{
    return worker->gpu_wanted.library != NULL &&
           worker->gpu_wanted.handle != worker->gpu.handle;
}

/* On the thread, without the lock: the driver may take its time. */
static vnx_status_t
change_gpu(vnxi_ucx_worker_t *worker, vnx_error_t *error)
{
    vnxi_mutex_lock(&worker->lock);
    vnxi_cuda_context_t wanted = worker->gpu_wanted;
    vnxi_mutex_unlock(&worker->lock);
    vnxi_cuda_leave(&worker->gpu_scope);
    vnx_status_t status = vnxi_cuda_enter(&wanted, &worker->gpu_scope, error);
    vnxi_mutex_lock(&worker->lock);
    worker->gpu = wanted;
    worker->gpu_status = status;
    if (status != VNX_OK) {
        worker->gpu_error = *error;
    }
    vnxi_cond_broadcast(&worker->changed);
    vnxi_mutex_unlock(&worker->lock);
    return status;
}

/* -- The thread ------------------------------------------------------------
 */

static void
run_commands(vnxi_ucx_worker_t *worker)
{
    vnxi_mutex_lock(&worker->lock);
    vnxi_ucx_command_t *command = worker->first;
    worker->first = NULL;
    worker->last = &worker->first;
    vnxi_mutex_unlock(&worker->lock);
    while (command != NULL) {
        vnxi_ucx_command_t *next = command->next;
        command->run(command, worker); /* may free it or queue it again */
        command = next;
    }
}

static bool
progress(vnxi_ucx_worker_t *worker)
{
    bool any = false;
    /* Limited, so that commands are run while data streams in. */
    for (unsigned i = 0; worker->handle != NULL && i < 256; i++) {
        if (vnxi_ucx_calls(worker)->ucp_worker_progress(worker->handle) == 0) {
            break;
        }
        any = true;
    }
    return any;
}

/* True: the thread has to end. */
static bool
is_over(vnxi_ucx_worker_t *worker, uint64_t *stop_deadline)
{
    vnx_error_t error;

    vnxi_mutex_lock(&worker->lock);
    bool stopping = worker->stopping && worker->first == NULL;
    bool is_closed =
        stopping && (is_idle(worker) || vnxi_clock_ns() >= *stop_deadline);
    worker->closed = is_closed;
    bool has_new_gpu = has_new_gpu_lock_held(worker);
    /* The round that begins handles everything except the end. */
    worker->nudged = worker->stopping && !stopping;
    if (worker->park) {
        park_lock_held(worker);
    }
    vnxi_mutex_unlock(&worker->lock);
    if (has_new_gpu) {
        change_gpu(worker, &error); /* vnxi_ucx_worker_use_gpu() reports it */
    }
    if (stopping && !worker->draining) {
        worker->draining = true;
        *stop_deadline = vnxi_clock_deadline(STOP_DEADLINE_NS);
    }
    return is_closed;
}

static void
work(vnxi_ucx_worker_t *worker)
{
    uint64_t stop_deadline = UINT64_MAX;

    while (!is_over(worker, &stop_deadline)) {
        run_commands(worker);
        bool more = take_turns(worker);
        bool moved = progress(worker);
        if (moved) {
            worker->fruitless = 0;
        }
        uint64_t due = look_after_all(worker);
        bool done = worker->draining && is_idle(worker);
        if (!more && !moved && !done && due > vnxi_clock_ns()) {
            sleep_some(worker, due < stop_deadline ? due : stop_deadline);
        }
    }
}

/* -- Borrowing the worker --------------------------------------------------
 */

bool
vnxi_ucx_worker_borrow(vnxi_ucx_worker_t *worker)
{
    if (vnxi_mutex_trylock(&worker->progress_lock) != 0) {
        return false;
    }
    vnxi_mutex_lock(&worker->lock);
    bool may = worker->sleeping && !worker->nudged && !worker->stopping &&
               !is_lost_lock_held(worker);
    vnxi_cuda_context_t gpu = worker->gpu_wanted;
    vnxi_mutex_unlock(&worker->lock);
    may =
        may && vnxi_cuda_enter(&gpu, &worker->borrower_scope, NULL) == VNX_OK;
    if (!may) {
        vnxi_mutex_unlock(&worker->progress_lock);
    }
    return may;
}

void
vnxi_ucx_worker_give_back(vnxi_ucx_worker_t *worker, bool wake)
{
    vnxi_cuda_leave(&worker->borrower_scope);
    vnxi_mutex_unlock(&worker->progress_lock);
    if (wake) {
        vnxi_ucx_worker_wake(worker);
    }
}

/* -- Creating the worker ---------------------------------------------------
 */

static vnxi_ucs_status_t
make(vnxi_ucx_worker_t *worker)
{
    const vnxi_ucp_functions_t *ucp = vnxi_ucx_calls(worker);
    vnxi_ucp_worker_params_t params = {
        .field_mask = VNXI_UCP_WORKER_PARAM_THREAD_MODE,
        .thread_mode = VNXI_UCP_THREAD_MODE_SERIALIZED,
    };
    vnxi_ucp_worker_t handle;

    vnxi_ucs_status_t status =
        ucp->ucp_worker_create(worker->context, &params, &handle);
    if (status != VNXI_UCS_OK) {
        return status;
    }
    status = ucp->ucp_worker_get_efd(handle, &worker->ucx_fd);
    if (status != VNXI_UCS_OK) {
        ucp->ucp_worker_destroy(handle);
        return status;
    }
    worker->handle = handle;
    return VNXI_UCS_OK;
}

/* Fails if GPU memory is mapped and its context cannot be entered.  The caller
 * then creates no worker. */
static bool
enter_gpu(vnxi_ucx_worker_t *worker)
{
    vnx_error_t error;

    vnxi_mutex_lock(&worker->lock);
    bool has_gpu =
        has_new_gpu_lock_held(worker) ||
        (worker->gpu_wanted.library != NULL && worker->gpu_status != VNX_OK);
    vnxi_mutex_unlock(&worker->lock);
    if (!has_gpu || change_gpu(worker, &error) == VNX_OK) {
        return true;
    }
    snprintf(worker->cause, sizeof worker->cause,
             "a thread of UCX cannot enter the context of GPU memory: %.250s",
             error.cause);
    return false;
}

/* `cause` is empty afterwards, or says why it failed. */
static void
try_to_make(vnxi_ucx_worker_t *worker)
{
    worker->cause[0] = '\0';
    vnxi_ucs_status_t status = enter_gpu(worker) ? make(worker) : VNXI_UCS_OK;
    if (status != VNXI_UCS_OK) {
        snprintf(worker->cause, sizeof worker->cause,
                 "UCX cannot create a worker: %s%s",
                 vnxi_ucx_calls(worker)->ucs_status_string(status),
                 vnxi_descriptors());
    }
}

void
vnxi_ucx_worker_make_again(vnxi_ucx_worker_t *worker)
{
    if (worker->handle == NULL) {
        try_to_make(worker);
    }
}

static void
become_ready(vnxi_ucx_worker_t *worker)
{
    try_to_make(worker);
    vnxi_mutex_lock(&worker->lock);
    worker->ready = true;
    vnxi_cond_broadcast(&worker->changed);
    vnxi_mutex_unlock(&worker->lock);
}

static void
destroy(vnxi_ucx_worker_t *worker)
{
    if (worker->handle != NULL) {
        vnxi_ucx_calls(worker)->ucp_worker_destroy(worker->handle);
        worker->handle = NULL;
    }
    while (worker->stray != NULL) {
        vnxi_ucx_cell_t *cell = worker->stray;
        worker->stray = cell->next;
        free(cell);
    }
}

static void *
thread_main(void *argument)
{
    vnxi_ucx_worker_t *worker = argument;

    pthread_setname_np(pthread_self(), "vnx-ucx");
    vnxi_mutex_lock(&worker->progress_lock);
    become_ready(worker);
    work(worker);
    destroy(worker);
    vnxi_cuda_leave(&worker->gpu_scope);
    vnxi_mutex_unlock(&worker->progress_lock);
    vnxi_mutex_lock(&worker->lock);
    worker->ended = true;
    vnxi_cond_broadcast(&worker->changed);
    vnxi_mutex_unlock(&worker->lock);
    return NULL;
}

static int
start_lock_held(vnxi_ucx_worker_t *worker)
{
    if (worker->started) {
        return 0;
    }
    if (worker->wake_fd < 0) {
        worker->wake_fd =
            vnxi_fork_fd_own(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    }
    if (worker->wake_fd < 0) {
        return errno;
    }
    int ret = vnxi_thread_start(&worker->thread, thread_main, worker);
    worker->started = ret == 0;
    return ret;
}

vnx_status_t
vnxi_ucx_worker_start(vnxi_ucx_worker_t *worker, vnx_error_t *error)
{
    vnxi_mutex_lock(&worker->lock);
    int ret = start_lock_held(worker);
    while (ret == 0 && !worker->ready) {
        vnxi_cond_wait(&worker->changed, &worker->lock);
    }
    vnxi_mutex_unlock(&worker->lock);
    if (ret != 0) {
        return vnxi_error_set(
            error, VNX_ERR_BACKEND, "vnx_agent_create_backend",
            "cannot start a thread for UCX: %s", vnxi_errno(ret));
    }
    return worker->cause[0] == '\0'
               ? VNX_OK
               : vnxi_error_set(error, VNX_ERR_BACKEND,
                                "vnx_agent_create_backend", "%s",
                                worker->cause);
}

/* -- Commands --------------------------------------------------------------
 */

static void
wake_lock_held(vnxi_ucx_worker_t *worker)
{
    uint64_t one = 1;

    worker->nudged = true; /* if it is about to sleep, it checks again */
    if (worker->sleeping && !is_lost_lock_held(worker) &&
        write(worker->wake_fd, &one, sizeof one) != sizeof one) {
        worker->sleeping = true; /* the eventfd is readable already */
    }
}

void
vnxi_ucx_worker_wake(vnxi_ucx_worker_t *worker)
{
    vnxi_mutex_lock(&worker->lock);
    wake_lock_held(worker);
    vnxi_mutex_unlock(&worker->lock);
}

static void
append_lock_held(vnxi_ucx_worker_t *worker, vnxi_ucx_command_t *command)
{
    command->next = NULL;
    *worker->last = command;
    worker->last = &command->next;
    wake_lock_held(worker);
}

bool
vnxi_ucx_worker_push(vnxi_ucx_worker_t *worker, vnxi_ucx_command_t *command)
{
    vnxi_mutex_lock(&worker->lock);
    bool is_open = !worker->stopping && !is_lost_lock_held(worker) &&
                   start_lock_held(worker) == 0;
    if (is_open) {
        append_lock_held(worker, command);
    }
    vnxi_mutex_unlock(&worker->lock);
    return is_open;
}

bool
vnxi_ucx_worker_push_if_started(vnxi_ucx_worker_t *worker,
                                vnxi_ucx_command_t *command)
{
    vnxi_mutex_lock(&worker->lock);
    bool is_open =
        !worker->stopping && !is_lost_lock_held(worker) && worker->started;
    if (is_open) {
        append_lock_held(worker, command);
    }
    vnxi_mutex_unlock(&worker->lock);
    return is_open;
}

bool
vnxi_ucx_worker_push_to_the_end(vnxi_ucx_worker_t *worker,
                                vnxi_ucx_command_t *command)
{
    vnxi_mutex_lock(&worker->lock);
    bool is_open = worker->started && !worker->closed && !worker->park;
    if (is_open) {
        append_lock_held(worker, command);
    }
    vnxi_mutex_unlock(&worker->lock);
    return is_open;
}

/* The descriptor is closed here, because objects of the program may keep the
 * worker for long. */
static void
note_end(vnxi_ucx_worker_t *worker)
{
    vnxi_mutex_lock(&worker->lock);
    worker->started = false;
    if (!is_lost_lock_held(worker)) {
        vnxi_fork_fd_close(worker->wake_fd);
    }
    worker->wake_fd = -1;
    vnxi_mutex_unlock(&worker->lock);
}

void
vnxi_ucx_worker_stop(vnxi_ucx_worker_t *worker)
{
    vnxi_mutex_lock(&worker->lock);
    bool is_parked = worker->park, joins = worker->started && !is_parked;
    worker->stopping = true;
    wake_lock_held(worker);
    vnxi_mutex_unlock(&worker->lock);
    if (joins) {
        pthread_join(worker->thread, NULL);
    }
    if (!is_parked) {
        note_end(worker);
    }
}

void
vnxi_ucx_worker_park(vnxi_ucx_worker_t *worker)
{
    vnxi_mutex_lock(&worker->lock);
    worker->park = true;
    worker->stopping = true; /* later commands are refused */
    wake_lock_held(worker);
    vnxi_mutex_unlock(&worker->lock);
}

/* A thread that sleeps and cannot be woken will not return into UCX: awake().
 */
static bool
stands_lock_held(const vnxi_ucx_worker_t *worker)
{
    return !worker->started || worker->parked || worker->ended ||
           (worker->sleeping && vnxi_fds_lost(worker->fds));
}

/* Wait until the thread announces something, or for 10 ms: what makes
 * stands_lock_held() true is not always announced. */
static void
wait_a_moment_lock_held(vnxi_ucx_worker_t *worker)
{
    struct timespec next;

    clock_gettime(CLOCK_MONOTONIC, &next);
    next.tv_nsec += PARK_LOOK_NS;
    if (next.tv_nsec >= 1000000000) {
        next.tv_nsec -= 1000000000;
        next.tv_sec++;
    }
    vnxi_cond_timedwait(&worker->changed, &worker->lock, &next);
}

void
vnxi_ucx_worker_await_parked(vnxi_ucx_worker_t *worker,
                             const struct timespec *deadline)
{
    struct timespec now;

    vnxi_mutex_lock(&worker->lock);
    while (!stands_lock_held(worker)) {
        clock_gettime(CLOCK_MONOTONIC, &now);
        if (now.tv_sec > deadline->tv_sec ||
            (now.tv_sec == deadline->tv_sec &&
             now.tv_nsec >= deadline->tv_nsec)) {
            break;
        }
        wait_a_moment_lock_held(worker);
    }
    vnxi_mutex_unlock(&worker->lock);
}

/* -- The GPU's context -----------------------------------------------------
 */

vnx_status_t
vnxi_ucx_worker_use_gpu(vnxi_ucx_worker_t *worker,
                        const vnxi_cuda_context_t *gpu, vnx_error_t *error)
{
    vnx_status_t status = VNX_OK;

    vnxi_mutex_lock(&worker->lock);
    worker->gpu_wanted = *gpu;
    if (worker->gpu_status != VNX_OK) {
        worker->gpu.handle = NULL; /* try again */
        worker->gpu_status = VNX_OK;
    }
    wake_lock_held(worker);
    while (has_new_gpu_lock_held(worker) && !stands_lock_held(worker)) {
        wait_a_moment_lock_held(worker);
    }
    if (!has_new_gpu_lock_held(worker)) {
        status = worker->gpu_status;
    }
    if (status != VNX_OK && error != NULL) {
        *error = worker->gpu_error;
    }
    vnxi_mutex_unlock(&worker->lock);
    return status;
}

void
vnxi_ucx_worker_forget_gpu(vnxi_ucx_worker_t *worker)
{
    vnxi_mutex_lock(&worker->lock);
    worker->gpu_wanted = (vnxi_cuda_context_t){0};
    vnxi_mutex_unlock(&worker->lock);
}
