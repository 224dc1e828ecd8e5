/*
 * Design notes.  `ready` is a queue of the tasks that can hand out a chunk
 * now: chunks are left and fewer than max_parallel threads are running them.
 * A thread takes a chunk from the first task and moves that task to the end,
 * so tasks take turns.  A task leaves the queue when its last chunk has been
 * handed out or max_parallel threads run it, and returns when one of these
 * threads is done.
 *
 * Waking a thread costs more than taking a chunk.  The submitter therefore
 * wakes (or starts) one thread, and each thread that finds more work than its
 * own wakes (or starts) the next.
 *
 * Threads are detached and use only static objects while asleep, so the
 * process may end at any time.  A forked child has none of them and starts its
 * own.
 */
#include "base/pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "base/error.h"
#include "base/fork.h"
#include "base/mutex.h"
#include "base/thread.h"

#define THREADS_MAX 16u

static pthread_once_t once = PTHREAD_ONCE_INIT;
static vnxi_mutex_t lock = VNXI_MUTEX_INIT(VNXI_RANK_POOL);
static vnxi_cond_t work = VNXI_COND_INIT;
static vnxi_task_t *first, **last = &first; /* protected by lock, as below */
static unsigned threads, idle, wanted;

/* Chunks are numbered as they are handed out. running[i] is the number of the
 * chunk that thread i runs, or 0. */
static uint64_t handed_out, running[THREADS_MAX];
static unsigned settlers;

/* Threads counted in entered[phase % 2] entered before the phase changed. */
static atomic_uint phase, entered[2];
static vnxi_mutex_t phase_lock = VNXI_MUTEX_INIT(VNXI_RANK_POOL_PHASE);
static vnxi_cond_t ended = VNXI_COND_INIT;

static void *worker(void *slot);

static void
forget_in_child(void)
{
    vnxi_mutex_init(&lock, VNXI_RANK_POOL);
    vnxi_cond_init(&work);
    first = NULL;
    last = &first;
    threads = idle = wanted = 0;
    vnxi_cond_init(&ended);
    vnxi_mutex_init(&phase_lock, VNXI_RANK_POOL_PHASE);
    atomic_store(&entered[0], 0);
    atomic_store(&entered[1], 0);
    memset(running, 0, sizeof running);
    settlers = 0;
}

static void
watch_forks(void)
{
    vnxi_fork_on_child(forget_in_child);
}

static void
append_lock_held(vnxi_task_t *task)
{
    task->next = NULL;
    *last = task;
    last = &task->next;
}

static vnxi_task_t *
remove_first_lock_held(void)
{
    vnxi_task_t *task = first;
    first = task->next;
    if (first == NULL) {
        last = &first;
    }
    return task;
}

static int
start_thread_lock_held(void)
{
    int ret = vnxi_thread_start_detached(worker, &running[threads]);

    threads += ret == 0;
    return ret;
}

/* Get another thread to look at the queue, if possible.  Returns whether the
 * caller should signal `work` after it unlocks: a thread woken earlier would
 * go back to sleep waiting for the lock. */
static bool
call_thread_lock_held(void)
{
    if (idle > 0) {
        return true;
    }
    if (threads < wanted) {
        start_thread_lock_held(); /* on failure the other threads do the
                                     work */
    }
    return false;
}

static vnxi_task_t *
take_chunk_lock_held(uint64_t *slot, size_t *chunk_p, bool *signal_p)
{
    vnxi_task_t *task = remove_first_lock_held();
    *chunk_p = task->next_chunk++;
    task->active++;
    *slot = ++handed_out;
    if (task->next_chunk < task->chunks && task->active < task->max_parallel) {
        append_lock_held(task);
    }
    *signal_p = first != NULL && call_thread_lock_held();
    return task;
}

static void
remove_lock_held(vnxi_task_t *task)
{
    vnxi_task_t **at = &first;
    while (*at != task) {
        at = &(*at)->next;
    }
    *at = task->next;
    if (last == &task->next) {
        last = at;
    }
}

/* Hand out no further chunks of a task that has at least one active thread. */
static void
drop_rest_lock_held(vnxi_task_t *task)
{
    if (task->next_chunk < task->chunks && task->active < task->max_parallel) {
        remove_lock_held(task);
    }
    task->next_chunk = task->chunks;
}

/* Returns whether this was the end of the task. */
static bool
end_chunk_lock_held(uint64_t *slot, vnxi_task_t *task, bool goes_on)
{
    *slot = 0;
    if (settlers > 0) {
        vnxi_cond_broadcast(&ended);
    }
    if (!goes_on) {
        drop_rest_lock_held(task);
    }
    bool left = task->next_chunk < task->chunks;
    if (left && task->active == task->max_parallel) {
        append_lock_held(task);
    }
    task->active--;
    return !left && task->active == 0;
}

static void *
worker(void *argument)
{
    uint64_t *slot = argument;
    pthread_setname_np(pthread_self(), "vnx-copy");
    vnxi_mutex_lock(&lock);
    for (;;) {
        while (first == NULL) {
            idle++;
            vnxi_cond_wait(&work, &lock);
            idle--;
        }
        size_t chunk;
        bool signal;
        vnxi_task_t *task = take_chunk_lock_held(slot, &chunk, &signal);
        vnxi_mutex_unlock(&lock);
        if (signal) {
            vnxi_cond_signal(&work);
        }
        bool goes_on = task->run(task, chunk);
        vnxi_mutex_lock(&lock);
        if (end_chunk_lock_held(slot, task, goes_on)) {
            vnxi_mutex_unlock(&lock);
            task->done(task);
            vnxi_mutex_lock(&lock);
        }
    }
    return NULL;
}

vnx_status_t
vnxi_pool_submit(vnxi_task_t *task, vnx_error_t *error)
{
    unsigned parallel =
        task->max_parallel < THREADS_MAX ? task->max_parallel : THREADS_MAX;
    bool signal = false;

    pthread_once(&once, watch_forks);
    task->next_chunk = 0;
    task->active = 0;
    vnxi_mutex_lock(&lock);
    wanted = parallel > wanted ? parallel : wanted;
    if (threads > 0) {
        signal = call_thread_lock_held();
    } else {
        int ret = start_thread_lock_held();
        if (ret != 0) {
            vnxi_mutex_unlock(&lock);
            return vnxi_error_set(error, VNX_ERR_NO_MEMORY, "vnx_xfer_post",
                                  "cannot start a copy thread (errno %d)",
                                  ret);
        }
    }
    append_lock_held(task);
    vnxi_mutex_unlock(&lock);
    if (signal) {
        vnxi_cond_signal(&work);
    }
    return VNX_OK;
}

bool
vnxi_pool_withdraw(const vnxi_task_t *task)
{
    vnxi_mutex_lock(&lock);
    vnxi_task_t *queued = first;
    while (queued != NULL && queued != task) {
        queued = queued->next;
    }
    bool is_mine = queued != NULL && queued->next_chunk == 0;
    if (is_mine) {
        remove_lock_held(queued);
    }
    vnxi_mutex_unlock(&lock);
    return is_mine;
}

static bool
is_running_lock_held(uint64_t last_number)
{
    for (unsigned i = 0; i < threads; i++) {
        if (running[i] != 0 && running[i] <= last_number) {
            return true;
        }
    }
    return false;
}

unsigned
vnxi_pool_enter(void)
{
    pthread_once(&once, watch_forks);
    unsigned side = atomic_load(&phase) % 2;
    atomic_fetch_add(&entered[side], 1);
    return side;
}

void
vnxi_pool_leave(unsigned side)
{
    atomic_fetch_sub(&entered[side], 1);
}

/* A thread that has read the phase but not yet entered may count itself on the
 * old side after we have checked it.  It checks what it may touch after that,
 * so this call need not wait for it.  The next call must wait for it, but
 * would check only the other side.  So each call waits for both sides, one
 * after the other.  It waits for a copy of about 50 us, which is too short to
 * sleep. */
static void
settle_entered(void)
{
    vnxi_mutex_lock(&phase_lock);
    for (int i = 0; i < 2; i++) {
        unsigned side = atomic_fetch_add(&phase, 1) % 2;
        while (atomic_load(&entered[side]) != 0) {
            sched_yield();
        }
    }
    vnxi_mutex_unlock(&phase_lock);
}

void
vnxi_pool_settle(void)
{
    settle_entered();
    vnxi_mutex_lock(&lock);
    uint64_t last_number = handed_out;
    settlers++;
    while (is_running_lock_held(last_number)) {
        vnxi_cond_wait(&ended, &lock);
    }
    settlers--;
    vnxi_mutex_unlock(&lock);
}

bool
vnxi_pool_is_idle(void)
{
    vnxi_mutex_lock(&lock);
    bool is_running = is_running_lock_held(handed_out);
    vnxi_mutex_unlock(&lock);
    return !is_running && atomic_load(&entered[0]) == 0 &&
           atomic_load(&entered[1]) == 0;
}
