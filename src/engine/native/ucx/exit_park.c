#include "engine/native/ucx/exit_park.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#include "base/at_end.h"
#include "base/clock.h"
#include "base/fork.h"
#include "base/fork_fds.h"
#include "base/mutex.h"
#include "engine/native/ucx/transfer.h"
#include "engine/native/ucx/worker.h"

/* A thread that does not return within this time is stuck in UCX.  Waiting
 * longer would only turn a crash into a hang. */
#define PARK_SECONDS 1

/* Time for queued notifications to be sent, and for sent ones to be read: when
 * a process ends, unread data in its sockets may be lost. */
#define LEAVE_NS 500000000u
#define LINGER_NS 100000000u
#define LOOK_NS 1000000u

static vnxi_mutex_t lock = VNXI_MUTEX_INIT(VNXI_RANK_UCX_EXIT_PARK);
static vnxi_ucx_t *all;      /* protected by lock */
static unsigned first_epoch; /* of descriptors; lock */
static bool is_used;         /* lock */
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

static struct timespec
park_deadline(void)
{
    struct timespec deadline;

    clock_gettime(CLOCK_MONOTONIC, &deadline);
    deadline.tv_sec += PARK_SECONDS;
    return deadline;
}

static void
ask(vnxi_ucx_t *ucx)
{
    for (unsigned i = 0; i < ucx->worker_count; i++) {
        vnxi_ucx_worker_park(&ucx->workers[i]);
    }
}

static void
await(vnxi_ucx_t *ucx, const struct timespec *deadline)
{
    for (unsigned i = 0; i < ucx->worker_count; i++) {
        vnxi_ucx_worker_await_parked(&ucx->workers[i], deadline);
    }
}

static void
park_all(void)
{
    vnxi_mutex_lock(&lock);
    let_messages_leave_lock_held();
    struct timespec deadline = park_deadline();
    atomic_store(&parked, true);
    for (vnxi_ucx_t *ucx = all; ucx != NULL; ucx = ucx->next) {
        ask(ucx);
    }
    for (vnxi_ucx_t *ucx = all; ucx != NULL; ucx = ucx->next) {
        await(ucx, &deadline);
    }
    for (vnxi_ucx_t *ucx = all; ucx != NULL; ucx = ucx->next) {
        vnxi_ucx_abandon(ucx);
    }
    vnxi_mutex_unlock(&lock);
}

void
vnxi_ucx_exit_park_lost(vnxi_ucx_t *ucx)
{
    if (atomic_load(&ucx->lost) || !vnxi_fds_lost(ucx->workers[0].fds)) {
        return;
    }
    vnxi_mutex_lock(&lock);
    struct timespec deadline = park_deadline();
    atomic_store(&ucx->lost, true);
    ask(ucx);
    await(ucx, &deadline);
    vnxi_mutex_unlock(&lock);
    vnxi_ucx_abandon(ucx);
}

static void
forget_in_child(void)
{
    vnxi_mutex_init(&lock, VNXI_RANK_UCX_EXIT_PARK);
    all = NULL;
    is_used = false;
}

bool
vnxi_ucx_is_usable(void)
{
    unsigned epoch = vnxi_fds_epoch();

    vnxi_mutex_lock(&lock);
    if (!is_used) {
        is_used = true;
        first_epoch = epoch;
    }
    bool usable = first_epoch == epoch;
    vnxi_mutex_unlock(&lock);
    return usable;
}

void
vnxi_ucx_exit_park_add(vnxi_ucx_t *ucx)
{
    vnxi_fork_on_child(forget_in_child);
    vnxi_at_end_add(park_all);
    vnxi_mutex_lock(&lock);
    ucx->next = all;
    all = ucx;
    vnxi_mutex_unlock(&lock);
}

void
vnxi_ucx_exit_park_remove(vnxi_ucx_t *ucx)
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
vnxi_ucx_parked(const vnxi_ucx_t *ucx)
{
    return atomic_load(&parked) || atomic_load(&ucx->lost);
}
