/*
 * A UCX worker and its thread; for the files of this folder.
 *
 * The thread runs commands, gives each transfer a turn, lets UCX progress
 * until nothing more happens, checks deadlines, arms the worker and sleeps.
 * If UCX wakes it without work (a connection that its peer does not answer
 * keeps the descriptor readable), it checks less and less often, down to once
 * per millisecond.
 *
 * Waking a thread takes longer than sending a message.  So while the thread
 * sleeps, another thread may borrow the worker for a moment; it then counts as
 * "the thread" in the comments of this folder.
 *
 * Lock order: `progress_lock`, held by the current thread of the worker,
 * before `lock`.
 */
#ifndef VNXI_NATIVE_UCX_WORKER_H
#define VNXI_NATIVE_UCX_WORKER_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/mutex.h"
#include "engine/native/cuda/context.h"
#include "engine/native/ucx/library.h"

typedef struct vnxi_ucx_worker vnxi_ucx_worker_t;

#define VNXI_UCX_SPARES_MAX 64u /* per worker */

/* Embedded in the object that it is about; queued at most once at a time.
 * `run` is called on the thread, once and in order; also while the worker
 * stops. worker->handle may be NULL then, if the worker could not be created.
 */
typedef struct vnxi_ucx_command {
    void (*run)(struct vnxi_ucx_command *command, vnxi_ucx_worker_t *worker);
    struct vnxi_ucx_command *next;
} vnxi_ucx_command_t;

/*
 * Regular work of a worker, embedded in the object; belongs to the thread.
 * Called in each round:
 *   turn   post some more; true: there is more to post at once
 *   look   `now` (vnxi_clock_ns()): do the work that is due; returns when to
 *          be called again, UINT64_MAX for never.  May remove the duty.
 */
typedef struct vnxi_ucx_duty {
    bool (*turn)(struct vnxi_ucx_duty *duty); /* NULL: nothing to post */
    uint64_t (*look)(struct vnxi_ucx_duty *duty, uint64_t now);
    struct vnxi_ucx_duty *prev, *next;
} vnxi_ucx_duty_t;

/* The argument of an endpoint's error handler, which UCX does not let us
 * change later.  Points to the ep that has the endpoint now, or NULL. */
typedef struct vnxi_ucx_cell {
    struct vnxi_ucx_ep *ep;
    struct vnxi_ucx_cell *next;
} vnxi_ucx_cell_t;

struct vnxi_ucx_worker {
    struct vnxi_ucx *ucx; /* that it belongs to; not used by worker.c */
    const vnxi_ucp_functions_t *ucp;
    vnxi_ucp_context_t context;
    unsigned index;

    /* Used only by the thread. */
    vnxi_ucp_worker_t handle; /* NULL: could not be created, see `cause`, and
                                 vnxi_ucx_worker_make_again() */
    int ucx_fd;
    vnxi_ucx_duty_t duties;  /* head of a ring */
    vnxi_ucx_duty_t *cursor; /* next in the current round; survives removals */
    size_t requests;         /* messages and flushes that UCX has not ended */
    unsigned fruitless;      /* consecutive wake-ups without work */
    bool paused;             /* it has just slept without watching UCX */
    bool draining;           /* stopping, and every command has run: release
                                everything */
    struct vnxi_ucx_ep *spares[VNXI_UCX_SPARES_MAX]; /* ep.c; NULL: none */
    unsigned next_spare;    /* index to replace next */
    vnxi_ucx_cell_t *stray; /* of endpoints that UCX did not close */
    char cause[VNX_ERROR_CAUSE_MAX];

    vnxi_mutex_t progress_lock; /* held by the thread except while it sleeps */
    vnxi_cuda_scope_t gpu_scope;      /* of the thread */
    vnxi_cuda_scope_t borrower_scope; /* progress_lock */

    int wake_fd;
    unsigned fds; /* epoch of the descriptors */
    pthread_t thread;
    vnxi_mutex_t lock;
    vnxi_cond_t changed;
    bool started, ready, ended; /* protected by lock, like everything below */
    bool sleeping, nudged, stopping;
    bool closed; /* runs no more commands, and frees nothing of others */
    bool park;   /* stop for good, outside of UCX */
    bool parked; /* the thread has done so */
    bool lost;   /* the program has closed the descriptors */
    vnxi_cuda_context_t gpu_wanted; /* for the thread; no context: as it is */
    vnxi_cuda_context_t gpu;        /* the last one that it has entered... */
    vnx_status_t gpu_status;        /* ...or tried to */
    vnx_error_t gpu_error;          /* why it could not */
    vnxi_ucx_command_t *first, **last;
};

static inline const vnxi_ucp_functions_t *
vnxi_ucx_calls(const vnxi_ucx_worker_t *worker)
{
    return worker->ucp;
}

/* -- For other threads -----------------------------------------------------
 */

void vnxi_ucx_worker_init(vnxi_ucx_worker_t *worker, struct vnxi_ucx *ucx,
                          const vnxi_ucp_functions_t *ucp,
                          vnxi_ucp_context_t context, unsigned index);
void vnxi_ucx_worker_fini(vnxi_ucx_worker_t *worker);

/* Start the thread unless it is running, and wait until it is ready.  Errors
 * from creating the thread and from UCX. */
vnx_status_t vnxi_ucx_worker_start(vnxi_ucx_worker_t *worker,
                                   vnx_error_t *error);

/* Queue a command; starts the thread if necessary.  False: the worker has
 * ended, its thread could not be started, or the program has closed the
 * descriptors; the command will not run. */
bool vnxi_ucx_worker_push(vnxi_ucx_worker_t *worker,
                          vnxi_ucx_command_t *command);

/* The same, but only if the worker was started. */
bool vnxi_ucx_worker_push_if_started(vnxi_ucx_worker_t *worker,
                                     vnxi_ucx_command_t *command);

/* The same, but also while the worker is being stopped, as long as its thread
 * may use the object that the command frees.  If the program has closed the
 * descriptors, the command may never run. */
bool vnxi_ucx_worker_push_to_the_end(vnxi_ucx_worker_t *worker,
                                     vnxi_ucx_command_t *command);

/* From now on the thread calls UCX in this CUDA context: it has entered it
 * (cuda/context.h) when this returns, or will before its first call of UCX if
 * it was not started.  Waits until the thread has time for that. */
vnx_status_t vnxi_ucx_worker_use_gpu(vnxi_ucx_worker_t *worker,
                                     const vnxi_cuda_context_t *gpu,
                                     vnx_error_t *error);

/* The context may go.  A running thread keeps it, because what UCX has there
 * ends with the worker; a thread that is started later has none. */
void vnxi_ucx_worker_forget_gpu(vnxi_ucx_worker_t *worker);

/* Make the thread check its duties.  Any thread. */
void vnxi_ucx_worker_wake(vnxi_ucx_worker_t *worker);

/* Act as the worker's thread, which sleeps and has nothing to do.  False: it
 * is awake, not started, or about to end, or the program has closed the
 * descriptors.  Never waits.  Give it back at once;
 * `wake`: the thread has work to do now. */
bool vnxi_ucx_worker_borrow(vnxi_ucx_worker_t *worker);
void vnxi_ucx_worker_give_back(vnxi_ucx_worker_t *worker, bool wake);

/* Run queued commands, release all duties, let UCX end its requests, destroy
 * the worker, join.  A thread
 * that was parked, or asked to, is left as it is. */
void vnxi_ucx_worker_stop(vnxi_ucx_worker_t *worker);

/* Make the thread stop for good, outside of UCX, and refuse all later
 * commands.  await_parked() waits for that until `deadline` (CLOCK_MONOTONIC).
 * The thread also parks by itself when it finds that the program has closed
 * its descriptors (base/fork_fds.h): then it cannot be woken any more. */
void vnxi_ucx_worker_park(vnxi_ucx_worker_t *worker);
void vnxi_ucx_worker_await_parked(vnxi_ucx_worker_t *worker,
                                  const struct timespec *deadline);

/* -- For code on the worker's thread ---------------------------------------
 */

/* Try again to create the worker, unless it was created: what was lacking,
 * such as descriptors, may be there now. */
void vnxi_ucx_worker_make_again(vnxi_ucx_worker_t *worker);

void vnxi_ucx_duty_add(vnxi_ucx_worker_t *worker, vnxi_ucx_duty_t *duty);
void vnxi_ucx_duty_remove(vnxi_ucx_worker_t *worker, vnxi_ucx_duty_t *duty);

#endif
