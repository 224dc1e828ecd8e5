#include "engine/native/ucx/park.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#include "base/fork.h"
#include "engine/native/ucx/worker.h"

/* A thread that does not come back within this is stuck in UCX, and waiting
 * longer would only turn a crash into a hang. */
#define PARK_SECONDS 1

static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static vnxi_ucx_t *all; /* protected by lock */
static unsigned fork_count;
static atomic_bool parked;

static void
ask(vnxi_ucx_worker_t *worker, const struct timespec *deadline)
{
    (void)deadline;
    pthread_mutex_lock(&worker->lock);
    worker->park = true;
    vnxi_ucx_worker_wake_lock_held(worker);
    pthread_mutex_unlock(&worker->lock);
}

static void
await(vnxi_ucx_worker_t *worker, const struct timespec *deadline)
{
    int ret = 0;
    pthread_mutex_lock(&worker->lock);
    while (worker->started && !worker->parked && !worker->ended && ret == 0) {
        ret =
            pthread_cond_timedwait(&worker->changed, &worker->lock, deadline);
    }
    pthread_mutex_unlock(&worker->lock);
}

static void
for_each(void (*call)(vnxi_ucx_worker_t *, const struct timespec *),
         const struct timespec *deadline)
{
    for (vnxi_ucx_t *ucx = all; ucx != NULL; ucx = ucx->next) {
        for (unsigned i = 0; i < ucx->worker_count; i++) {
            call(&ucx->workers[i], deadline);
        }
    }
}

/* A forked child has none of the threads. */
static void
park_all(void)
{
    struct timespec deadline;

    if (vnxi_fork_crossed(fork_count)) {
        return;
    }
    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_sec += PARK_SECONDS;
    pthread_mutex_lock(&lock);
    atomic_store(&parked, true);
    for_each(ask, NULL);
    for_each(await, &deadline);
    pthread_mutex_unlock(&lock);
}

static void
forget_in_child(void)
{
    pthread_mutex_init(&lock, NULL);
    all = NULL;
}

/* After the library was loaded, so that this runs before its destructors. */
static void
watch_exit(void)
{
    atexit(park_all);
    vnxi_fork_on_child(forget_in_child);
}

void
vnxi_ucx_park_add(vnxi_ucx_t *ucx)
{
    pthread_once(&once, watch_exit);
    pthread_mutex_lock(&lock);
    fork_count = vnxi_fork_count();
    ucx->next = all;
    all = ucx;
    pthread_mutex_unlock(&lock);
}

void
vnxi_ucx_park_remove(vnxi_ucx_t *ucx)
{
    pthread_mutex_lock(&lock);
    for (vnxi_ucx_t **at = &all; *at != NULL; at = &(*at)->next) {
        if (*at == ucx) {
            *at = ucx->next;
            break;
        }
    }
    pthread_mutex_unlock(&lock);
}

bool
vnxi_ucx_parked(void)
{
    return atomic_load(&parked);
}
