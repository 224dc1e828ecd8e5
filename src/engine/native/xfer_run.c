/*
 * Design notes.  The copying part is a task of the copy threads, chunk by
 * chunk.  Before each chunk a thread checks whether to go on: the transfer may
 * be cancelled, the peer gone, the engine stopped, a region deregistered, or
 * another part failed.  The other parts check the same by
 * vnxi_exfer_check_part().  The first thread to fail writes the error.  After
 * the report of the end the transfer may be freed, so nothing touches it.
 *
 * A transfer with one part needs no counter of parts.  One with several counts
 * one more while they are started, so that it does not end during that.
 *
 * A transfer that is posted before the owner of a region has confirmed it
 * (shm/confirm.h) waits in a list of its engine, which is empty except in the
 * first moments of a peer.  Every event that may let such a transfer go on, or
 * end it, calls vnxi_native_xfers_look(): an owner's answer, the end of a peer
 * or of the engine, a cancellation, and (by the transport's alarm) a deadline.
 * Transfers that leave the list go to the copy threads, which start or end
 * them.  So the caller may hold locks, and nothing is reported on its thread.
 * Each transfer waits for one region, its first unconfirmed one, so that a
 * look is cheap however long the lists are.  A transfer enters the list only
 * if, checked under the lock, the event has not happened.  The thread that
 * causes the event changes the state first and then takes the lock.  So no
 * transfer is missed.
 */
#include <inttypes.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "engine/native/xfer.h"
#include "engine/parts/pairs.h"

/* -- Stopping and failing --------------------------------------------------
 */

void
vnxi_exfer_stop(vnxi_exfer_t *exfer)
{
    atomic_store(&exfer->stop, true);
    for (unsigned t = 0; t < VNXI_TRANSPORTS; t++) {
        if (exfer->parts[t] != NULL) {
            vnxi_transports[t]->part_cancel(exfer->parts[t]);
        }
    }
}

/* Mark the transfer as failed and stop its parts.  Only the first failure is
 * recorded. */
static void
fail(vnxi_exfer_t *exfer, vnx_status_t status, const vnx_error_t *error)
{
    if (!atomic_exchange(&exfer->failing, true)) {
        exfer->error = *error;
        exfer->status = status;
    }
    vnxi_exfer_stop(exfer);
}

/* -- Checks ----------------------------------------------------------------
 */

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
        return vnxi_native_peer_error(exfer->peer, "vnx_xfer_post", error);
    }
    if (atomic_load(&exfer->engine->stopped)) {
        return vnxi_error_set(error, VNX_ERR_CANCELED, "vnx_xfer_post",
                              "the agent was closed");
    }
    return VNX_OK;
}

vnx_status_t
vnxi_exfer_check(vnxi_exfer_t *exfer, vnx_error_t *error)
{
    vnx_status_t status = check_on(exfer, error);
    return status == VNX_OK ? check_lists(exfer, error) : status;
}

/* Check the lists only if any region in the process was revoked since the last
 * check. */
static vnx_status_t
check_go_on(vnxi_exfer_t *exfer, vnx_error_t *error)
{
    vnx_status_t status = check_on(exfer, error);
    if (status == VNX_OK &&
        atomic_load_explicit(&exfer->revocations, memory_order_relaxed) !=
            vnxi_region_revocations()) {
        status = check_lists(exfer, error);
    }
    if (status == VNX_IN_PROG) {
        status = vnxi_error_set(error, VNX_ERR_NOT_FOUND, "vnx_xfer_post",
                                "a remote region was deregistered while the "
                                "transfer was in progress");
        vnxi_error_peer(error, exfer->peer->base.name,
                        exfer->peer->base.name_len);
    }
    return status;
}

static vnx_status_t
fail_cancelled(vnx_error_t *error)
{
    return vnxi_error_set(error, VNX_ERR_CANCELED, "vnx_xfer_post",
                          "the transfer was cancelled");
}

/* A part may be posted after its transfer was stopped. */
vnx_status_t
vnxi_exfer_check_part(void *context, vnx_error_t *error)
{
    vnxi_exfer_t *exfer = context;
    return atomic_load(&exfer->stop) ? fail_cancelled(error)
                                     : check_go_on(exfer, error);
}

/* -- The end ---------------------------------------------------------------
 */

void
vnxi_exfer_take_off(vnxi_exfer_t *exfer)
{
    vnxi_engine_t *engine = exfer->engine;
    vnxi_mutex_lock(&engine->flight_lock);
    engine->in_flight++;
    vnxi_mutex_unlock(&engine->flight_lock);
}

void
vnxi_exfer_land(vnxi_engine_t *engine)
{
    vnxi_mutex_lock(&engine->flight_lock);
    if (--engine->in_flight == 0) {
        vnxi_cond_broadcast(&engine->landed);
    }
    vnxi_mutex_unlock(&engine->flight_lock);
}

vnx_status_t
vnxi_exfer_succeed(vnxi_exfer_t *exfer, vnx_error_t *error)
{
    return exfer->notif != NULL
               ? vnxi_native_notif_send(&exfer->peer->base, exfer->notif,
                                        exfer->notif_len, error)
               : VNX_OK;
}

/* The status of a transfer whose parts have ended.  If it was stopped without
 * a failure, it was cancelled. */
static vnx_status_t
settle(vnxi_exfer_t *exfer)
{
    if (atomic_load(&exfer->failing)) {
        return exfer->status;
    }
    return atomic_load(&exfer->stop)
               ? fail_cancelled(&exfer->error)
               : vnxi_exfer_succeed(exfer, &exfer->error);
}

/* After the report the transfer may be posted again or freed. */
static void
report(vnxi_exfer_t *exfer)
{
    vnxi_engine_host_t host = exfer->engine->host;
    vnx_status_t status = settle(exfer);
    vnx_error_t error;

    if (status != VNX_OK) {
        error = exfer->error;
    }
    vnxi_exfer_land(exfer->engine);
    host.xfer_done(host.context, exfer->cookie, status,
                   status != VNX_OK ? &error : NULL);
}

/* A part has ended, or starting them has. */
static void
end_part(vnxi_exfer_t *exfer)
{
    if (exfer->part_count == 1 ||
        atomic_fetch_sub(&exfer->parts_left, 1) == 1) {
        report(exfer);
    }
}

/* If the peer is gone, its cause says more than the part's error. */
void
vnxi_exfer_part_done(void *context, vnx_status_t status,
                     const vnx_error_t *error)
{
    vnxi_exfer_t *exfer = context;
    vnxi_native_peer_t *peer = exfer->peer;
    vnx_error_t cause;

    if (status != VNX_OK && !atomic_load(&exfer->failing)) {
        if (status == VNX_ERR_REMOTE_DISCONNECT &&
            vnxi_native_peer_gone(peer)) {
            vnxi_native_peer_error(peer, "vnx_xfer_post", &cause);
        } else {
            cause = *error;
            vnxi_error_peer(&cause, peer->base.name, peer->base.name_len);
        }
        fail(exfer, status, &cause);
    }
    end_part(exfer);
}

/* -- Copying ---------------------------------------------------------------
 */

vnx_status_t
vnxi_exfer_copy_chunk(vnxi_exfer_t *exfer, size_t chunk, vnx_error_t *error)
{
    vnxi_native_peer_t *peer = exfer->peer;
    vnx_status_t status = VNX_OK;

    for (unsigned t = 0; status == VNX_OK && exfer->copied >> t != 0; t++) {
        if ((exfer->copied >> t & 1) != 0) {
            status = vnxi_transports[t]->copy_chunk(
                vnxi_native_conn(peer, t), &exfer->plan, chunk, exfer->op,
                &exfer->stop, error);
        }
    }
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
        status = vnxi_exfer_copy_chunk(exfer, chunk, &error);
    }
    if (status != VNX_OK) {
        fail(exfer, status, &error);
    }
    return status == VNX_OK;
}

static void
copying_done(vnxi_task_t *task)
{
    end_part((vnxi_exfer_t *)task);
}

static vnx_status_t
start_copying(vnxi_exfer_t *exfer, vnx_error_t *error)
{
    exfer->task = (vnxi_task_t){.run = run_chunk,
                                .done = copying_done,
                                .chunks = exfer->plan.chunk_count,
                                .max_parallel = exfer->engine->num_threads};
    return vnxi_pool_submit(&exfer->task, error);
}

/* -- Starting --------------------------------------------------------------
 */

/* A part that cannot be started fails the transfer, which is in flight. */
static void
start_several(vnxi_exfer_t *exfer)
{
    vnx_status_t status;
    vnx_error_t error;

    atomic_store(&exfer->parts_left, exfer->part_count + 1);
    for (unsigned t = 0; t < VNXI_TRANSPORTS; t++) {
        if (exfer->parts[t] != NULL) {
            status = vnxi_transports[t]->part_post(exfer->parts[t], &error);
            if (status < 0) {
                vnxi_exfer_part_done(exfer, status, &error);
            }
        }
    }
    if (exfer->copied != 0) {
        status = start_copying(exfer, &error);
        if (status != VNX_OK) {
            vnxi_exfer_part_done(exfer, status, &error);
        }
    }
    end_part(exfer);
}

vnx_status_t
vnxi_exfer_start(vnxi_exfer_t *exfer, vnx_error_t *error)
{
    if (exfer->part_count > 1) {
        start_several(exfer);
        return VNX_IN_PROG;
    }
    if (exfer->copied != 0) {
        vnx_status_t status = start_copying(exfer, error);
        return status == VNX_OK ? VNX_IN_PROG : status;
    }
    unsigned t = 0;
    while (exfer->parts[t] == NULL) {
        t++;
    }
    return vnxi_transports[t]->part_post(exfer->parts[t], error);
}

static bool
run_nothing(vnxi_task_t *task, size_t chunk)
{
    (void)task, (void)chunk;
    return true;
}

static void
start_from_task(vnxi_task_t *task)
{
    vnxi_exfer_t *exfer = (vnxi_exfer_t *)task;
    vnx_error_t error;

    if (atomic_load(&exfer->stop)) {
        report(exfer);
        return;
    }
    vnx_status_t status = vnxi_exfer_start(exfer, &error);
    if (status < 0) {
        fail(exfer, status, &error);
        report(exfer);
    }
}

/* Start a transfer from a copy thread, which may report the end; of one that
 * has failed or was cancelled, only the end is reported.  Copying alone can
 * start at once: its task ends as soon as it runs if the transfer was stopped.
 */
static vnx_status_t
start_later(vnxi_exfer_t *exfer, vnx_error_t *error)
{
    if (exfer->part_count == 1 && exfer->copied != 0) {
        return start_copying(exfer, error);
    }
    exfer->task = (vnxi_task_t){.run = run_nothing,
                                .done = start_from_task,
                                .chunks = 1,
                                .max_parallel = 1};
    return vnxi_pool_submit(&exfer->task, error);
}

/* -- Waiting for confirmations
 * ------------------------------------------------
 */

/* An owner answers within microseconds, unless its process is stopped or
 * starved. */
#define ANSWER_WAIT_NS (10u * UINT64_C(1000000000))

/* Retry interval if a copy thread could not be started. */
#define AGAIN_NS (20u * UINT64_C(1000000))

/* Have a transport that confirms regions call vnxi_native_xfers_look() at that
 * time. */
static void
set_alarm(const vnxi_engine_t *engine, uint64_t when)
{
    for (unsigned t = 0; t < VNXI_TRANSPORTS; t++) {
        vnxi_port_t *port = vnxi_native_port(engine, t);
        if (port != NULL && port->transport->set_alarm != NULL) {
            port->transport->set_alarm(port, when);
        }
    }
}

/* Return whether the awaited event has happened or cannot happen any more. */
static bool
is_ready(const vnxi_exfer_t *exfer, uint64_t now)
{
    return exfer->awaited == NULL ||
           vnxi_region_state(exfer->awaited) != VNXI_REGION_UNCONFIRMED ||
           atomic_load(&exfer->stop) || exfer->due <= now ||
           vnxi_native_peer_gone(exfer->peer) ||
           atomic_load(&exfer->engine->stopped);
}

/* False: the transfer need not wait.  After true it may already have ended. */
static bool
enter_list(vnxi_exfer_t *exfer, const vnxi_region_t *awaited)
{
    vnxi_engine_t *engine = exfer->engine;
    uint64_t due = exfer->due;

    vnxi_mutex_lock(&engine->waiting_lock);
    exfer->awaited = awaited;
    bool enters = !is_ready(exfer, vnxi_clock_ns());
    if (enters) {
        exfer->next = engine->waiting;
        engine->waiting = exfer;
    }
    vnxi_mutex_unlock(&engine->waiting_lock);
    if (enters) {
        set_alarm(engine, due);
    }
    return enters;
}

static vnx_status_t
too_late(const vnxi_exfer_t *exfer, const vnxi_region_t *region,
         vnx_error_t *error)
{
    const vnxi_peer_t *peer = &exfer->peer->base;

    vnxi_error_set(
        error, VNX_ERR_TIMEOUT, "vnx_xfer_post",
        "the peer has not confirmed the region at 0x%" PRIx64 " of %" PRIu64
        " bytes within %u s: is its process stopped?",
        region->addr, region->len, (unsigned)(ANSWER_WAIT_NS / 1000000000u));
    vnxi_error_peer(error, peer->name, peer->name_len);
    return VNX_ERR_TIMEOUT;
}

/* Hand the transfer to the copy threads, which start it, or end it at once if
 * it has failed or was cancelled.  If no thread can be started, retry for as
 * long as it takes: the transfer is in flight, and only the copy threads can
 * report its end. */
static void
hand_over(vnxi_exfer_t *exfer)
{
    vnxi_engine_t *engine = exfer->engine;
    vnx_error_t error;

    if (start_later(exfer, &error) == VNX_OK) {
        return;
    }
    vnxi_mutex_lock(&engine->waiting_lock);
    exfer->awaited = NULL;
    exfer->next = engine->waiting;
    engine->waiting = exfer;
    vnxi_mutex_unlock(&engine->waiting_lock);
    set_alarm(engine, vnxi_clock_deadline(AGAIN_NS));
}

/* Hand it over or put it into the list. */
static void
go_on(vnxi_exfer_t *exfer)
{
    vnx_error_t error;
    vnx_status_t status = VNX_IN_PROG;

    while (status == VNX_IN_PROG && !atomic_load(&exfer->stop)) {
        status = vnxi_exfer_check(exfer, &error);
        const vnxi_region_t *region =
            status == VNX_IN_PROG ? vnxi_list_unusable(exfer->remote) : NULL;
        if (region == NULL) {
            continue;
        }
        if (exfer->due <= vnxi_clock_ns()) {
            status = too_late(exfer, region, &error);
        } else if (enter_list(exfer, region)) {
            return;
        }
    }
    if (status < 0) {
        fail(exfer, status, &error);
    }
    hand_over(exfer);
}

void
vnxi_exfer_wait(vnxi_exfer_t *exfer)
{
    exfer->due = vnxi_clock_deadline(ANSWER_WAIT_NS);
    go_on(exfer);
}

/* Take out the transfers that are ready.  *due_p: the earliest deadline of the
 * others; 0: none are left. */
static vnxi_exfer_t *
take_ready(vnxi_engine_t *engine, uint64_t *due_p)
{
    vnxi_exfer_t *ready = NULL, *exfer;
    uint64_t now = vnxi_clock_ns();

    *due_p = 0;
    vnxi_mutex_lock(&engine->waiting_lock);
    for (vnxi_exfer_t **at = &engine->waiting; (exfer = *at) != NULL;) {
        if (is_ready(exfer, now)) {
            *at = exfer->next;
            exfer->next = ready;
            ready = exfer;
        } else {
            *due_p = *due_p == 0 || exfer->due < *due_p ? exfer->due : *due_p;
            at = &exfer->next;
        }
    }
    vnxi_mutex_unlock(&engine->waiting_lock);
    return ready;
}

void
vnxi_native_xfers_look(vnxi_engine_t *engine)
{
    uint64_t due;

    vnxi_exfer_t *ready = take_ready(engine, &due);
    if (due != 0) {
        set_alarm(engine, due);
    }
    while (ready != NULL) {
        vnxi_exfer_t *exfer = ready;
        ready = exfer->next;
        go_on(exfer);
    }
}
