#include "engine/native/ucx/park.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#include "base/at_end.h"
#include "base/clock.h"
#include "base/fork.h"
#include "base/mutex.h"
#include "engine/native/ucx/transfer.h"
#include "engine/native/ucx/worker.h"

/* A thread that does not come back within this is stuck in UCX, and waiting
 * longer would only turn a crash into a hang. */
#define PARK_SECONDS 1

/* Notifications that are queued have so long to leave, and what has left so
 * long to be read: the end of a process takes back what lies in sockets. */
#define LEAVE_NS 500000000u
#define LINGER_NS 100000000u
#define LOOK_NS 1000000u

static vnxi_mutex_t lock = VNXI_MUTEX_INIT(VNXI_RANK_UCX_PARK);
static vnxi_ucx_t *all; /* protected by lock */
static atomic_bool parked;

static bool
has_messages_lock_held(uint64_t now)
{
    for (vnxi_ucx_t *ucx = all; ucx != NULL; ucx = ucx->next) {
        if (atomic_load(&ucx->messages) > 0 ||
            now < atomic_load(&ucx->sent_at) + LINGER_NS) {
            return true;
        }
    }
    return false;
}

static void
let_messages_leave_lock_held(void)
{
    const struct timespec look = {.tv_nsec = LOOK_NS};
    uint64_t end = vnxi_clock_deadline(LEAVE_NS), now;

    while ((now = vnxi_clock_ns()) < end && has_messages_lock_held(now)) {
        nanosleep(&look, NULL);
    }
}

static void
ask(vnxi_ucx_worker_t *worker, const struct timespec *deadline)
{
    (void)deadline;
    vnxi_mutex_lock(&worker->lock);
    worker->park = true;
    worker->stopping = true; /* whatever comes now is refused */
    vnxi_ucx_worker_wake_lock_held(worker);
    vnxi_mutex_unlock(&worker->lock);
}

static void
await(vnxi_ucx_worker_t *worker, const struct timespec *deadline)
{
    int ret = 0;
    vnxi_mutex_lock(&worker->lock);
    while (worker->started && !worker->parked && !worker->ended && ret == 0) {
        ret = vnxi_cond_timedwait(&worker->changed, &worker->lock, deadline);
    }
    vnxi_mutex_unlock(&worker->lock);
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

static void
park_all(void)
{
    struct timespec deadline;

    vnxi_mutex_lock(&lock);
    let_messages_leave_lock_held();
    clock_gettime(CLOCK_MONOTONIC, &deadline);
    deadline.tv_sec += PARK_SECONDS;
    atomic_store(&parked, true);
    for_each(ask, NULL);
    for_each(await, &deadline);
    for (vnxi_ucx_t *ucx = all; ucx != NULL; ucx = ucx->next) {
        vnxi_ucx_abandon(ucx);
    }
    vnxi_mutex_unlock(&lock);
}

static void
forget_in_child(void)
{
    vnxi_mutex_init(&lock, VNXI_RANK_UCX_PARK);
    all = NULL;
}

void
vnxi_ucx_park_add(vnxi_ucx_t *ucx)
{
    vnxi_fork_on_child(forget_in_child);
    vnxi_at_end_add(park_all);
    vnxi_mutex_lock(&lock);
    ucx->next = all;
    all = ucx;
    vnxi_mutex_unlock(&lock);
}

void
vnxi_ucx_park_remove(vnxi_ucx_t *ucx)
{
    vnxi_mutex_lock(&lock);
    for (vnxi_ucx_t **at = &all; *at != NULL; at = &(*at)->next) {
        if (*at == ucx) {
            *at = ucx->next;
            break;
        }
    }
    vnxi_mutex_unlock(&lock);
}

bool
vnxi_ucx_parked(void)
{
    return atomic_load(&parked);
}
