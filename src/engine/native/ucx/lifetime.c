/*
 * Starting and stopping the UCX state of an agent.
 *
 * Design notes.  A process may end without having closed its agents
 * (base/at_end.h).  At that time the memory registered by the agents goes
 * away, which a worker may be reading for a peer.  And UCX's destructors run,
 * which free data that a thread inside the library would touch.  So before
 * that, the thread of every worker is *parked*: it stops for good, outside of
 * UCX.  Queued notifications have two seconds to be sent, transfers in
 * flight end as cancelled, and later calls are refused.  Nothing is closed:
 * peers notice the end of the process.
 *
 * The threads of an agent are also parked if the program has closed their
 * descriptors (base/fork_fds.h): UCX would use their numbers, and a sleeping
 * thread could not be woken.
 *
 * The threads of a vnxi_ucx_t that is parked cannot be joined, and UCX keeps
 * its resources.
 *
 * UCX has one thread per process for connections that come in.  A forked child
 * does not get it, and cannot make UCX start it again: peers that connect to
 * the child would wait for ever, and the parent's thread would spin.  So a
 * child of a process that has used UCX does not use it.
 */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/at_end.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/fork.h"
#include "base/fork_fds.h"
#include "engine/native/ucx/context_private.h"
#include "engine/native/ucx/gpu.h"
#include "engine/native/ucx/notif.h"
#include "engine/native/ucx/transfer.h"

#define OPERATION "vnx_agent_create_backend"

/* -- Parking ---------------------------------------------------------------
 */

/* A thread that does not return within this time is stuck in UCX.  Waiting
 * longer would only turn a crash into a hang. */
#define PARK_SECONDS 1

/* Time for queued notifications to be sent (on a busy machine, connecting
 * alone takes a second), and for sent ones to be read: when a process ends,
 * unread data in its sockets may be lost. */
#define LEAVE_NS 2000000000u
#define LINGER_NS 100000000u
#define LOOK_NS 1000000u

static vnxi_mutex_t lock = VNXI_MUTEX_INIT(VNXI_RANK_UCX_EXIT_PARK);
static vnxi_ucx_t *all;      /* protected by lock, constant once is_at_end */
static bool is_at_end;       /* lock */
static unsigned first_epoch; /* of descriptors; lock */
static bool is_used;         /* lock */
static bool is_forked;       /* lock; it was used before a fork */

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
ask_to_park(vnxi_ucx_t *ucx)
{
    for (unsigned i = 0; i < ucx->worker_count; i++) {
        vnxi_ucx_worker_park(&ucx->workers[i]);
    }
}

static void
await_parked(vnxi_ucx_t *ucx, const struct timespec *deadline)
{
    for (unsigned i = 0; i < ucx->worker_count; i++) {
        vnxi_ucx_worker_await_parked(&ucx->workers[i], deadline);
    }
}

/* Transfers are ended without the lock: this calls back into the core. */
static void
exit_park(void)
{
    vnxi_mutex_lock(&lock);
    let_messages_leave_lock_held();
    is_at_end = true;
    struct timespec deadline = park_deadline();
    vnxi_ucx_set_all_parked();
    for (vnxi_ucx_t *ucx = all; ucx != NULL; ucx = ucx->next) {
        ask_to_park(ucx);
    }
    for (vnxi_ucx_t *ucx = all; ucx != NULL; ucx = ucx->next) {
        await_parked(ucx, &deadline);
    }
    vnxi_mutex_unlock(&lock);
    for (vnxi_ucx_t *ucx = all; ucx != NULL; ucx = ucx->next) {
        vnxi_ucx_xfers_abandon(ucx);
    }
}

/* Park the agent's threads if the program has closed their descriptors. */
static void
park_if_lost(vnxi_ucx_t *ucx)
{
    if (atomic_load(&ucx->lost) || !vnxi_fds_lost(ucx->workers[0].fds)) {
        return;
    }
    vnxi_mutex_lock(&lock);
    struct timespec deadline = park_deadline();
    atomic_store(&ucx->lost, true);
    ask_to_park(ucx);
    await_parked(ucx, &deadline);
    vnxi_mutex_unlock(&lock);
    vnxi_ucx_xfers_abandon(ucx);
}

static void
forget_in_child(void)
{
    vnxi_mutex_init(&lock, VNXI_RANK_UCX_EXIT_PARK);
    all = NULL;
    is_forked = is_forked || is_used;
    is_used = is_at_end = false;
}

static vnx_status_t
check_usable(vnx_error_t *error)
{
    unsigned epoch = vnxi_fds_epoch();

    vnxi_mutex_lock(&lock);
    bool is_child = is_forked;
    if (!is_child && !is_used) {
        is_used = true;
        first_epoch = epoch;
    }
    bool has_fds = is_child || first_epoch == epoch;
    vnxi_mutex_unlock(&lock);
    if (is_child) {
        return vnxi_error_set(error, VNX_ERR_NOT_FOUND, OPERATION,
                              "UCX was used before this process was forked, "
                              "and does not work in the child");
    }
    return has_fds ? VNX_OK
                   : vnxi_error_set(error, VNX_ERR_BACKEND, OPERATION,
                                    "UCX cannot be used again in this "
                                    "process: all descriptors of the process "
                                    "were closed, including UCX's own");
}

/* False: the process is ending. */
static bool
enlist(vnxi_ucx_t *ucx)
{
    vnxi_fork_on_child(forget_in_child);
    vnxi_at_end_add(exit_park);
    vnxi_mutex_lock(&lock);
    bool may = !vnxi_ucx_is_parked(ucx);
    if (may) {
        ucx->next = all;
        all = ucx;
    }
    vnxi_mutex_unlock(&lock);
    return may;
}

static void
delist(vnxi_ucx_t *ucx)
{
    vnxi_mutex_lock(&lock);
    for (vnxi_ucx_t **at = &all; *at != NULL && !is_at_end;
         at = &(*at)->next) {
        if (*at == ucx) {
            *at = ucx->next;
            break;
        }
    }
    vnxi_mutex_unlock(&lock);
}

/* -- Starting --------------------------------------------------------------
 */

/* The first command of worker 0, run on its thread before others know the
 * worker. */
typedef struct open_command {
    vnxi_ucx_command_t super;
    vnxi_mutex_t lock;
    vnxi_cond_t changed;
    bool done;
    vnxi_ucs_status_t status;
} open_command_t;

static vnxi_ucs_status_t
take_address(vnxi_ucx_worker_t *worker)
{
    const vnxi_ucp_functions_t *ucp = vnxi_ucx_calls(worker);
    vnxi_ucp_worker_attr_t attr = {.field_mask = VNXI_UCP_WORKER_ATTR_ADDRESS};
    vnxi_ucx_t *ucx = worker->ucx;

    vnxi_ucs_status_t status = ucp->ucp_worker_query(worker->handle, &attr);
    if (status != VNXI_UCS_OK) {
        return status;
    }
    ucx->address = malloc(attr.address_length);
    if (ucx->address != NULL) {
        memcpy(ucx->address, attr.address, attr.address_length);
        ucx->address_len = attr.address_length;
    }
    ucp->ucp_worker_release_address(worker->handle, attr.address);
    return ucx->address != NULL ? VNXI_UCS_OK : VNXI_UCS_ERR_NO_MEMORY;
}

static void
open_worker(vnxi_ucx_command_t *super, vnxi_ucx_worker_t *worker)
{
    open_command_t *command = (open_command_t *)super;
    vnxi_ucs_status_t status = vnxi_ucx_notif_listen(worker);

    if (status == VNXI_UCS_OK) {
        status = take_address(worker);
    }
    vnxi_mutex_lock(&command->lock);
    command->status = status;
    command->done = true;
    vnxi_cond_signal(&command->changed);
    vnxi_mutex_unlock(&command->lock);
}

static vnx_status_t
refuse_at_end(const vnxi_ucx_t *ucx, vnx_error_t *error)
{
    return vnxi_error_set(error, VNX_ERR_BACKEND, OPERATION,
                          "%s: its worker was stopped before it had an "
                          "address: the process is ending",
                          ucx->library->version);
}

static vnx_status_t
open_first(vnxi_ucx_t *ucx, vnx_error_t *error)
{
    open_command_t command = {.super.run = open_worker};
    vnx_status_t status = vnxi_ucx_worker_start(&ucx->workers[0], error);

    if (status != VNX_OK) {
        return status;
    }
    vnxi_mutex_init(&command.lock, VNXI_RANK_UCX_COMMAND);
    vnxi_cond_init(&command.changed);
    bool pushed = vnxi_ucx_worker_push(&ucx->workers[0], &command.super);
    vnxi_mutex_lock(&command.lock);
    while (pushed && !command.done) {
        vnxi_cond_wait(&command.changed, &command.lock);
    }
    vnxi_mutex_unlock(&command.lock);
    vnxi_cond_destroy(&command.changed);
    vnxi_mutex_destroy(&command.lock);
    if (!pushed) {
        return refuse_at_end(ucx, error);
    }
    return command.status == VNXI_UCS_OK
               ? VNX_OK
               : vnxi_ucx_error(ucx->library, command.status,
                                "opening its worker", error);
}

vnx_status_t
vnxi_ucx_create(const vnxi_ucx_config_t *config, vnxi_ucx_t **ucx_p,
                vnx_error_t *error)
{
    const char *why;
    const vnxi_ucx_library_t *library = vnxi_ucx_library(&why);

    if (library == NULL) {
        return vnxi_error_set(error, VNX_ERR_NOT_FOUND, OPERATION,
                              "no libucp: %s", why);
    }
    vnxi_ucx_t *ucx;
    vnx_status_t status = check_usable(error);
    if (status == VNX_OK) {
        status = vnxi_ucx_open(library, config, &ucx, error);
    }
    if (status != VNX_OK) {
        return status;
    }
    status = enlist(ucx) ? open_first(ucx, error) : refuse_at_end(ucx, error);
    if (status != VNX_OK) {
        vnxi_ucx_stop(ucx);
        vnxi_ucx_release(ucx);
        return status;
    }
    *ucx_p = ucx;
    return VNX_OK;
}

/* -- Stopping --------------------------------------------------------------
 */

void
vnxi_ucx_stop(vnxi_ucx_t *ucx)
{
    park_if_lost(ucx);
    for (unsigned i = 0; i < ucx->worker_count; i++) {
        vnxi_ucx_worker_stop(&ucx->workers[i]);
    }
    vnxi_ucx_gpu_stop(ucx);
    delist(ucx);
}

void
vnxi_ucx_settle(vnxi_ucx_t *ucx)
{
    park_if_lost(ucx);
    vnxi_ucx_xfers_settle(ucx);
}
