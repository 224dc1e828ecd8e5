/*
 * Transfers of the native engine.
 *
 * Design notes.  The caller's thread copies a small transfer at once.  A
 * larger one is a task of the copy threads, chunk by chunk.  Before each chunk
 * a thread checks whether to go on: the transfer may be cancelled, the peer
 * gone, the engine stopped, a region deregistered, or an earlier chunk failed.
 * The first thread to fail writes the error.  The thread of the last chunk
 * sends the notification, if all went well, and reports the end.  After that
 * report the transfer may be freed, so nothing touches it.
 */
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "engine/native/copy.h"
#include "engine/native/reach.h"
#include "engine/native/shm/vm.h"
#include "engine/native/xfer.h"
#include "engine/parts/pairs.h"

/* Limits for copying on the caller's thread: about 50 us of work at the lower
 * of the measured speeds (4 GB/s through the kernel, 0.4 us per piece; 6 GB/s
 * directly). */
#define INLINE_BYTES_VM (64u << 10)
#define INLINE_BYTES_DIRECT (128u << 10)
#define INLINE_PIECES 64u

/* -- Preparing -------------------------------------------------------------
 */

static bool
fits_inline(const vnxi_plan_t *plan)
{
    return plan->chunk_count == 1 && plan->pieces <= INLINE_PIECES &&
           plan->bytes <=
               (plan->all_direct ? INLINE_BYTES_DIRECT : INLINE_BYTES_VM);
}

static vnx_status_t check_go_on(void *context, vnx_error_t *error);
static void ucx_done(void *context, vnx_status_t status,
                     const vnx_error_t *error);

/* UCX moves the bytes; no copy task is needed. */
static vnx_status_t
prepare_ucx(vnxi_exfer_t *exfer, vnx_error_t *error)
{
    const vnxi_ucx_xfer_args_t args = {
        .conn = exfer->peer->ucx,
        .plan = &exfer->plan,
        .op = exfer->op,
        .local = exfer->local,
        .remote = exfer->remote,
        .mem_of = vnxi_region_ucx_mem,
        .key_of = vnxi_region_ucx_key,
        .context = exfer,
        .go_on = check_go_on,
        .done = ucx_done,
    };
    exfer->is_small = false;
    exfer->ucx = vnxi_ucx_xfer_create(&args);
    return exfer->ucx != NULL
               ? VNX_OK
               : vnxi_error_no_memory(error, exfer->operation, sizeof args);
}

vnx_status_t
vnxi_native_xfer_prepare(vnxi_engine_t *engine, const vnxi_xfer_args_t *args,
                         vnxi_exfer_t **exfer_p, vnxi_xfer_facts_t *facts_p,
                         vnx_error_t *error)
{
    vnxi_plan_args_t plan_args = {
        .local = args->local,
        .remote = args->remote,
        .local_rows = args->local_rows,
        .remote_rows = args->remote_rows,
        .no_merge = args->no_merge,
        .operation = args->operation,
    };
    vnxi_native_peer_t *peer = vnxi_native_peer(args->remote->peer);

    if (vnxi_native_peer_gone(peer)) {
        return vnxi_native_peer_error(peer, args->operation, error);
    }
    if (peer->path != VNXI_PATH_UCX && (args->local->mem != VNX_MEM_DRAM ||
                                        args->remote->mem != VNX_MEM_DRAM)) {
        vnxi_error_set(error, VNX_ERR_NOT_SUPPORTED, args->operation,
                       "only UCX moves GPU memory, and this peer is not "
                       "reached by UCX");
        vnxi_error_peer(error, peer->base.name, peer->base.name_len);
        return VNX_ERR_NOT_SUPPORTED;
    }
    vnxi_exfer_t *exfer = malloc(sizeof *exfer);
    if (exfer == NULL) {
        return vnxi_error_no_memory(error, args->operation, sizeof *exfer);
    }
    vnx_status_t status = vnxi_plan_build(&plan_args, &exfer->plan, error);
    if (status != VNX_OK) {
        vnxi_error_peer(error, peer->base.name, peer->base.name_len);
        free(exfer);
        return status;
    }
    exfer->engine = engine;
    exfer->peer = peer;
    exfer->local = vnxi_list_retain((vnxi_list_t *)args->local);
    exfer->remote = vnxi_list_retain((vnxi_list_t *)args->remote);
    exfer->op = args->op;
    exfer->is_small = fits_inline(&exfer->plan);
    exfer->operation = args->operation;
    exfer->cookie = args->cookie;
    atomic_init(&exfer->stop, false);
    atomic_init(&exfer->failing, false);
    atomic_init(&exfer->revocations, 0);
    exfer->ucx = NULL;
    if (peer->path == VNXI_PATH_UCX) {
        status = prepare_ucx(exfer, error);
        if (status != VNX_OK) {
            vnxi_native_xfer_release(exfer);
            return status;
        }
    }
    *facts_p = (vnxi_xfer_facts_t){exfer->plan.bytes, exfer->plan.rows,
                                   exfer->plan.pieces};
    *exfer_p = exfer;
    return VNX_OK;
}

void
vnxi_native_xfer_release(vnxi_exfer_t *exfer)
{
    vnxi_ucx_xfer_free(exfer->ucx);
    vnxi_plan_fini(&exfer->plan);
    vnxi_list_release(exfer->local);
    vnxi_list_release(exfer->remote);
    free(exfer);
}

/* -- Copying ---------------------------------------------------------------
 */

void
vnxi_exfer_fail(vnxi_exfer_t *exfer, vnx_status_t status,
                const vnx_error_t *error)
{
    if (!atomic_exchange(&exfer->failing, true)) {
        exfer->error = *error;
        exfer->status = status;
    }
    atomic_store(&exfer->stop, true);
}

static vnx_status_t
check_lists(vnxi_exfer_t *exfer, vnx_error_t *error)
{
    uint64_t now = vnxi_region_revocations();
    const vnxi_peer_t *peer = &exfer->peer->base;
    vnx_status_t status =
        vnxi_pairs_check_regions(exfer->local, "local", peer, error);
    if (status == VNX_OK) {
        status =
            vnxi_pairs_check_regions(exfer->remote, "remote", peer, error);
    }
    if (status == VNX_OK) {
        atomic_store_explicit(&exfer->revocations, now, memory_order_relaxed);
    }
    return status;
}

/* Check whether copying may go on; returns the reason if not. */
static vnx_status_t
check_on(vnxi_exfer_t *exfer, vnx_error_t *error)
{
    if (vnxi_native_peer_gone(exfer->peer)) {
        return vnxi_native_peer_error(exfer->peer, "transfer", error);
    }
    if (atomic_load(&exfer->engine->stopped)) {
        return vnxi_error_set(error, VNX_ERR_CANCELED, "transfer",
                              "the agent was closed");
    }
    return VNX_OK;
}

/* As above, and check the lists if any region in the process was revoked since
 * the last check. */
static vnx_status_t
check_go_on(void *context, vnx_error_t *error)
{
    vnxi_exfer_t *exfer = context;
    vnx_status_t status = check_on(exfer, error);
    if (status == VNX_OK &&
        atomic_load_explicit(&exfer->revocations, memory_order_relaxed) !=
            vnxi_region_revocations()) {
        status = check_lists(exfer, error);
    }
    if (status == VNX_IN_PROG) {
        status = vnxi_error_set(error, VNX_ERR_NOT_FOUND, "transfer",
                                "a remote region was deregistered while the "
                                "transfer was in progress");
        vnxi_error_peer(error, exfer->peer->base.name,
                        exfer->peer->base.name_len);
    }
    return status;
}

static vnx_status_t
copy_chunk(vnxi_exfer_t *exfer, size_t chunk, vnx_error_t *error)
{
    vnxi_native_peer_t *peer = exfer->peer;
    vnxi_vm_target_t target = {
        .pid = (pid_t)peer->info.pid,
        .stop = &exfer->stop,
        .operation = "transfer",
    };

    vnxi_copy_chunk(&exfer->plan, chunk, exfer->op);
    if (exfer->plan.all_direct) {
        return VNX_OK;
    }
    target.pidfd = vnxi_link_pidfd(peer->link);
    vnx_status_t status =
        vnxi_vm_chunk(&target, &exfer->plan, chunk, exfer->op, error);
    if (status == VNX_ERR_REMOTE_DISCONNECT) {
        vnxi_native_peer_lose(peer, error->cause);
    }
    if (status != VNX_OK) {
        vnxi_error_peer(error, peer->base.name, peer->base.name_len);
    }
    return status;
}

static bool
run_chunk(vnxi_task_t *task, size_t chunk)
{
    vnxi_exfer_t *exfer = (vnxi_exfer_t *)task;
    vnx_error_t error;

    if (atomic_load_explicit(&exfer->stop, memory_order_acquire)) {
        return false;
    }
    vnx_status_t status = check_go_on(exfer, &error);
    if (status == VNX_OK) {
        status = copy_chunk(exfer, chunk, &error);
    }
    if (status != VNX_OK) {
        vnxi_exfer_fail(exfer, status, &error);
    }
    return status == VNX_OK;
}

/* -- The end ---------------------------------------------------------------
 */

/* All bytes have been written: notify the peer. */
static vnx_status_t
send_notif(vnxi_exfer_t *exfer, vnx_error_t *error)
{
    return exfer->notif == NULL
               ? VNX_OK
               : vnxi_native_notif_send(&exfer->peer->base, exfer->notif,
                                        exfer->notif_len, error);
}

static void
count_success(vnxi_exfer_t *exfer)
{
    atomic_fetch_add_explicit(&exfer->peer->xfers, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&exfer->peer->bytes, exfer->plan.bytes,
                              memory_order_relaxed);
}

static void
take_off(vnxi_engine_t *engine)
{
    vnxi_mutex_lock(&engine->flight_lock);
    engine->in_flight++;
    vnxi_mutex_unlock(&engine->flight_lock);
}

static void
land(vnxi_engine_t *engine)
{
    vnxi_mutex_lock(&engine->flight_lock);
    if (--engine->in_flight == 0) {
        vnxi_cond_broadcast(&engine->landed);
    }
    vnxi_mutex_unlock(&engine->flight_lock);
}

/* The status of a post whose last chunk has run.  If it was stopped without a
 * failure, it was cancelled. */
static vnx_status_t
settle(vnxi_exfer_t *exfer)
{
    if (atomic_load(&exfer->failing)) {
        return exfer->status;
    }
    if (atomic_load(&exfer->stop)) {
        return vnxi_error_set(&exfer->error, VNX_ERR_CANCELED, "transfer",
                              "the transfer was cancelled");
    }
    vnx_status_t status = send_notif(exfer, &exfer->error);
    if (status == VNX_OK) {
        count_success(exfer);
    }
    return status;
}

/* After the report the transfer may be posted again or freed. */
static void
report(vnxi_exfer_t *exfer, vnx_status_t status)
{
    vnxi_engine_host_t host = exfer->engine->host;
    vnx_error_t error;

    if (status != VNX_OK) {
        error = exfer->error;
    }
    land(exfer->engine);
    host.xfer_done(host.context, exfer->cookie, status,
                   status != VNX_OK ? &error : NULL);
}

static void
task_done(vnxi_task_t *task)
{
    vnxi_exfer_t *exfer = (vnxi_exfer_t *)task;
    report(exfer, settle(exfer));
}

/* If the peer is gone, its cause says more than UCX's error. */
static void
ucx_done(void *context, vnx_status_t status, const vnx_error_t *error)
{
    vnxi_exfer_t *exfer = context;
    vnxi_native_peer_t *peer = exfer->peer;

    if (status == VNX_OK) {
        status = settle(exfer);
    } else if (status == VNX_ERR_REMOTE_DISCONNECT &&
               vnxi_native_peer_gone(peer)) {
        vnxi_native_peer_error(peer, "transfer", &exfer->error);
    } else {
        exfer->error = *error;
        vnxi_error_peer(&exfer->error, peer->base.name, peer->base.name_len);
    }
    report(exfer, status);
}

/* -- Posting ---------------------------------------------------------------
 */

vnx_status_t
vnxi_exfer_check(vnxi_exfer_t *exfer, vnx_error_t *error)
{
    vnx_status_t status = check_on(exfer, error);
    return status == VNX_OK ? check_lists(exfer, error) : status;
}

static vnx_status_t
post_waiting(vnxi_exfer_t *exfer)
{
    take_off(exfer->engine);
    vnxi_exfer_wait(exfer);
    return VNX_IN_PROG;
}

/* The checks come after entering.  So a thread that deregisters memory or
 * closes an agent either is noticed by them or waits for the copying. */
static vnx_status_t
post_inline(vnxi_exfer_t *exfer, vnx_error_t *error)
{
    unsigned entered = vnxi_pool_enter();
    vnx_status_t status = vnxi_exfer_check(exfer, error);
    if (status == VNX_OK) {
        status = copy_chunk(exfer, 0, error);
    }
    vnxi_pool_leave(entered);
    if (status == VNX_IN_PROG) {
        return post_waiting(exfer);
    }
    if (status == VNX_OK) {
        status = send_notif(exfer, error);
    }
    if (status == VNX_OK) {
        count_success(exfer);
    }
    return status;
}

vnx_status_t
vnxi_exfer_start(vnxi_exfer_t *exfer, vnx_error_t *error)
{
    exfer->task = (vnxi_task_t){.run = run_chunk,
                                .done = task_done,
                                .chunks = exfer->plan.chunk_count,
                                .max_parallel = exfer->engine->num_threads};
    return vnxi_pool_submit(&exfer->task, error);
}

static vnx_status_t
post_task(vnxi_exfer_t *exfer, vnx_error_t *error)
{
    vnxi_engine_t *engine = exfer->engine;

    vnx_status_t status = vnxi_exfer_check(exfer, error);
    if (status == VNX_IN_PROG) {
        return post_waiting(exfer);
    }
    if (status != VNX_OK) {
        return status;
    }
    take_off(engine);
    status = exfer->ucx != NULL ? vnxi_ucx_xfer_post(exfer->ucx, error)
                                : vnxi_exfer_start(exfer, error);
    if (status < 0) {
        land(engine);
        return status;
    }
    return VNX_IN_PROG;
}

vnx_status_t
vnxi_native_xfer_post(vnxi_exfer_t *exfer, const void *notif, size_t notif_len,
                      vnx_error_t *error)
{
    exfer->notif = notif;
    exfer->notif_len = notif_len;
    exfer->status = VNX_OK;
    atomic_store_explicit(&exfer->failing, false, memory_order_relaxed);
    atomic_store_explicit(&exfer->stop, false, memory_order_relaxed);
    return exfer->is_small ? post_inline(exfer, error)
                           : post_task(exfer, error);
}

vnx_status_t
vnxi_native_xfer_cancel(vnxi_exfer_t *exfer)
{
    atomic_store(&exfer->stop, true);
    if (exfer->ucx != NULL) {
        vnxi_ucx_xfer_cancel(exfer->ucx);
    }
    vnxi_native_xfers_look(exfer->engine); /* it may be waiting for an owner */
    return VNX_OK;
}

/* -- Facts -----------------------------------------------------------------
 */

const char *
vnxi_native_xfer_backend(const vnxi_exfer_t *exfer)
{
    /* No backend moves bytes within the process, but clients know only two
     * names. */
    return exfer->ucx != NULL ? "UCX" : "SHM";
}

/* Based on the speeds of one core of a small machine: 4 GB/s and 0.4 us per
 * piece through the kernel, 8 GB/s and 0.02 us directly.  The margin reflects
 * how much machines differ. */
void
vnxi_native_xfer_estimate(const vnxi_exfer_t *exfer, int64_t *duration_us_p,
                          int64_t *margin_us_p)
{
    bool direct = exfer->plan.all_direct;
    double us = (double)exfer->plan.bytes / (direct ? 8000.0 : 4000.0) +
                (double)exfer->plan.pieces * (direct ? 0.02 : 0.4) + 1.0;
    *duration_us_p = (int64_t)us;
    *margin_us_p = (int64_t)(us / 2) + 1;
}
