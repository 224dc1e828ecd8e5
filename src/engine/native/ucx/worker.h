/*
 * A worker of UCX and its thread; for the files of this folder.
 *
 * The thread runs commands, gives each transfer a turn, lets UCX progress
 * until nothing more happens, looks at deadlines, arms the worker and sleeps.
 * Where UCX wakes it and has nothing to do (a connection that its peer does
 * not answer keeps the descriptor readable), it looks less and less often, up
 * to a millisecond apart.
 *
 * To wake a thread takes longer than to send a message.  So while the thread
 * sleeps, another may borrow the worker for a moment and is then "the thread"
 * in what the files of this folder say.
 *
 * Lock order: `turn`, which whoever is the thread holds, before `lock`.
 */
#ifndef VNXI_NATIVE_UCX_WORKER_H
#define VNXI_NATIVE_UCX_WORKER_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/mutex.h"
#include "engine/native/ucx/context.h"
#include "engine/native/ucx/gone.h"
#include "engine/native/ucx/library.h"

typedef struct vnxi_ucx_worker vnxi_ucx_worker_t;

#define VNXI_UCX_SPARES_MAX 64u /* of a worker */

/* Embedded in what it is about; queued at most once at a time.  `run` is
 * called on the thread, once and in order; also while the worker stops, when
 * worker->handle may be NULL because it could not be made. */
typedef struct vnxi_ucx_command {
    void (*run)(struct vnxi_ucx_command *command, vnxi_ucx_worker_t *worker);
    struct vnxi_ucx_command *next;
} vnxi_ucx_command_t;

/*
 * What a worker has to look after, embedded in the object; belongs to the
 * thread.  Called in each round:
 *   turn   post some more; true: there is more to post at once
 *   look   `now` (vnxi_clock_ns()): do what is due; returns when to be called
 *          again, UINT64_MAX for never.  May remove the duty.
 */
typedef struct vnxi_ucx_duty {
    bool (*turn)(struct vnxi_ucx_duty *duty); /* NULL: nothing to post */
    uint64_t (*look)(struct vnxi_ucx_duty *duty, uint64_t now);
    struct vnxi_ucx_duty *prev, *next;
} vnxi_ucx_duty_t;

/* What an endpoint's error handler is given, since UCX takes no other later:
 * the end that has the endpoint now, or NULL. */
typedef struct vnxi_ucx_cell {
    struct vnxi_ucx_end *end;
    struct vnxi_ucx_cell *next;
} vnxi_ucx_cell_t;

struct vnxi_ucx_worker {
    vnxi_ucx_t *ucx;
    unsigned index;

    /* The thread's own. */
    vnxi_ucp_worker_t handle; /* NULL: could not be made, see `cause` */
    int ucx_fd;
    vnxi_ucx_duty_t duties;  /* head of a ring */
    vnxi_ucx_duty_t *cursor; /* the next in a round; survives removals */
    unsigned fruitless;      /* wakes in a row that brought nothing */
    bool paused;             /* it has just slept without UCX */
    bool draining; /* stopping, and every command has run: let go of all */
    struct vnxi_ucx_end *spares[VNXI_UCX_SPARES_MAX]; /* end.c; NULL: none */
    unsigned next_spare;                              /* to be replaced */
    vnxi_ucx_cell_t *stray; /* of endpoints that UCX did not close */
    char cause[VNX_ERROR_CAUSE_MAX];

    vnxi_mutex_t turn; /* held by the thread but while it sleeps */

    int wake_fd;
    unsigned fds; /* epoch of the descriptors */
    pthread_t thread;
    vnxi_mutex_t lock;
    vnxi_cond_t changed;
    bool started, ready, ended; /* all below protected by lock */
    bool sleeping, nudged, stopping;
    bool park, parked; /* it stands still for good: park.h */
    vnxi_ucx_command_t *first, **last;
};

struct vnxi_ucx {
    atomic_uint refs;
    const vnxi_ucx_library_t *library;
    vnxi_ucp_context_t context;
    uint64_t memory_types;
    char *name;
    size_t name_len;
    uint64_t stall_timeout_ns;
    vnxi_ucx_events_t events;
    unsigned char *address; /* of worker 0 */
    size_t address_len;
    char version[256];
    atomic_bool stopped;
    atomic_bool lost;     /* the program closed its descriptors: park.h */
    atomic_uint messages; /* notifications that UCX has not sent */
    atomic_uint_fast64_t sent_at; /* the last one that it was given */
    vnxi_mutex_t xfers_lock;      /* transfer.c */
    vnxi_cond_t xfer_ended;
    struct vnxi_ucx_xfer *xfers; /* in flight; xfers_lock, like: */
    unsigned reporting;          /* those whose `done` is being called */
    vnxi_ucx_gone_t gone;        /* peers that have ended */
    unsigned worker_count;
    struct vnxi_ucx *next; /* all of the process; park.c */
    vnxi_ucx_worker_t workers[];
};

static inline const vnxi_ucp_functions_t *
vnxi_ucx_calls(const vnxi_ucx_worker_t *worker)
{
    return &worker->ucx->library->ucp;
}

/* -- For the other threads -------------------------------------------------
 */

void vnxi_ucx_worker_init(vnxi_ucx_worker_t *worker, vnxi_ucx_t *ucx,
                          unsigned index);
void vnxi_ucx_worker_fini(vnxi_ucx_worker_t *worker);

/* Start the thread, if it was not, and wait until it is ready.  Errors of the
 * thread's making and of UCX's. */
vnx_status_t vnxi_ucx_worker_start(vnxi_ucx_worker_t *worker,
                                   vnx_error_t *error);

/* Queue; starts the thread if need be.  False: the worker has ended or its
 * thread could not be started, and the command will not run. */
bool vnxi_ucx_worker_push(vnxi_ucx_worker_t *worker,
                          vnxi_ucx_command_t *command);

/* The same where there is something to do only if it was started. */
bool vnxi_ucx_worker_push_if_started(vnxi_ucx_worker_t *worker,
                                     vnxi_ucx_command_t *command);

/* Have the thread look at its duties.  Any thread. */
void vnxi_ucx_worker_wake(vnxi_ucx_worker_t *worker);
void vnxi_ucx_worker_wake_lock_held(vnxi_ucx_worker_t *worker);

/* Be the thread, which sleeps and has nothing to do.  False: it is awake, not
 * started, or about to end.  Never waits.  To be given back at once; `wake`:
 * there is something for it to do now. */
bool vnxi_ucx_worker_borrow(vnxi_ucx_worker_t *worker);
void vnxi_ucx_worker_give_back(vnxi_ucx_worker_t *worker, bool wake);

/* Run what is queued, let go of all duties, destroy the worker, join.  Where
 * its share was lost (park.h) the thread is left as it stands. */
void vnxi_ucx_worker_stop(vnxi_ucx_worker_t *worker);

/* Have the thread stand still for good, outside of UCX, and refuse whatever
 * comes.  To be awaited, until `deadline` (CLOCK_MONOTONIC). */
void vnxi_ucx_worker_park(vnxi_ucx_worker_t *worker);
void vnxi_ucx_worker_await_parked(vnxi_ucx_worker_t *worker,
                                  const struct timespec *deadline);

/* -- For what runs on the thread -------------------------------------------
 */

void vnxi_ucx_duty_add(vnxi_ucx_worker_t *worker, vnxi_ucx_duty_t *duty);
void vnxi_ucx_duty_remove(vnxi_ucx_worker_t *worker, vnxi_ucx_duty_t *duty);

#endif
