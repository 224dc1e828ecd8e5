/*
 * Design notes.  A *slice* is one worker's part of a transfer.  It belongs to
 * that worker's thread from the command that starts it until its end.  Slices
 * have three atomics in common: the next chunk, whether the transfer fails,
 * and how many slices are left; the last slice reports.
 *
 * Which error is reported: UCX's own errors say less than the state of the
 * connection, and may come before the connection is known to have failed.  So
 * a slice whose pieces failed waits a moment for the connection's cause.
 */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "engine/native/ucx/slice.h"

/* Limits of what one transfer has in flight at a worker: enough to keep TCP
 * busy. */
#define WINDOW_BYTES (32u << 20)
#define WINDOW_PIECES_MIN 64u
#define WINDOW_PIECES_MAX 2048u

#define STOP_PATIENCE_NS 1000000000u
#define TURN_FACTOR 10u /* see end_of_patience() */
#define GRACE_NS 300000000u
#define REOPEN_LOOK_NS 1000000u

static uint64_t look(vnxi_ucx_duty_t *duty, uint64_t now);
static void start(vnxi_ucx_command_t *command, vnxi_ucx_worker_t *worker);

/* -- Creating --------------------------------------------------------------
 */

static size_t
window_of(const vnxi_plan_t *plan)
{
    uint64_t each = plan->bytes / (plan->pieces > 0 ? plan->pieces : 1) + 1;
    uint64_t window =
        WINDOW_BYTES /
        (each < VNXI_UCX_PIECE_BYTES ? each : VNXI_UCX_PIECE_BYTES);
    return window < WINDOW_PIECES_MIN   ? WINDOW_PIECES_MIN
           : window > WINDOW_PIECES_MAX ? WINDOW_PIECES_MAX
                                        : window;
}

vnxi_ucx_xfer_t *
vnxi_ucx_xfer_create(const vnxi_ucx_xfer_args_t *args)
{
    size_t chunks = args->plan->chunk_count;
    unsigned workers = args->conn->ucx->worker_count;
    unsigned count = chunks < workers ? (unsigned)chunks : workers;
    vnxi_ucx_xfer_t *xfer =
        calloc(1, sizeof *xfer + count * sizeof xfer->slices[0]);

    if (xfer == NULL) {
        return NULL;
    }
    xfer->args = *args;
    vnxi_ucx_conn_retain(args->conn);
    xfer->slice_count = count;
    xfer->window = window_of(args->plan);
    for (unsigned i = 0; i < count; i++) {
        vnxi_ucx_slice_t *slice = &xfer->slices[i];
        slice->duty.turn = vnxi_ucx_slice_turn;
        slice->duty.look = look;
        slice->command.run = start;
        slice->xfer = xfer;
        slice->ep = &args->conn->eps[i];
    }
    return xfer;
}

void
vnxi_ucx_xfer_free(vnxi_ucx_xfer_t *xfer)
{
    if (xfer != NULL) {
        vnxi_ucx_conn_release(xfer->args.conn);
        free(xfer);
    }
}

/* -- Ending ----------------------------------------------------------------
 */

static void
enlist(vnxi_ucx_xfer_t *xfer)
{
    vnxi_ucx_t *ucx = xfer->args.conn->ucx;
    vnxi_mutex_lock(&ucx->xfers_lock);
    xfer->is_being_posted = true;
    xfer->is_abandoned = false;
    xfer->prev = NULL;
    xfer->next = ucx->xfers;
    if (ucx->xfers != NULL) {
        ucx->xfers->prev = xfer;
    }
    ucx->xfers = xfer;
    vnxi_mutex_unlock(&ucx->xfers_lock);
}

static void
delist(vnxi_ucx_xfer_t *xfer)
{
    vnxi_ucx_t *ucx = xfer->args.conn->ucx;
    vnxi_mutex_lock(&ucx->xfers_lock);
    if (xfer->prev != NULL) {
        xfer->prev->next = xfer->next;
    } else {
        ucx->xfers = xfer->next;
    }
    if (xfer->next != NULL) {
        xfer->next->prev = xfer->prev;
    }
    ucx->reporting++;
    vnxi_mutex_unlock(&ucx->xfers_lock);
}

static void
note_reported(vnxi_ucx_t *ucx)
{
    vnxi_mutex_lock(&ucx->xfers_lock);
    ucx->reporting--;
    vnxi_cond_broadcast(&ucx->xfer_ended);
    vnxi_mutex_unlock(&ucx->xfers_lock);
}

/* A request cancelled while the connection lives was cancelled by a reset. */
static vnx_status_t
explain(vnxi_ucx_conn_t *conn, vnx_error_t *error)
{
    if (atomic_load(&conn->dead)) {
        return vnxi_ucx_conn_error(conn, VNXI_UCX_TRANSFER, error);
    }
    return error->status == VNX_ERR_REMOTE_DISCONNECT
               ? vnxi_ucx_slice_reset_error(error)
               : error->status;
}

/* Slices of workers that could not be created take none. */
static bool
are_chunks_left(vnxi_ucx_xfer_t *xfer)
{
    return atomic_load(&xfer->next_chunk) < xfer->args.plan->chunk_count;
}

/* The last slice has ended.  First the transfer leaves the list, so that
 * vnxi_ucx_xfers_settle() has written its error completely if it has failed
 * it.  The transfer, and everything that it holds, may be gone when `done`
 * returns. */
static void
report(vnxi_ucx_xfer_t *xfer)
{
    vnxi_ucx_conn_t *conn = xfer->args.conn;
    vnxi_ucx_t *ucx = conn->ucx;
    vnx_status_t status = VNX_OK;
    vnx_error_t error;

    delist(xfer);
    if (atomic_load(&xfer->failing) != VNXI_UCX_FAILING_NOT) {
        error = xfer->error;
        status = error.status;
        if (atomic_load(&xfer->failing) == VNXI_UCX_FAILING_BY_UCX) {
            status = explain(conn, &error);
        }
    } else if (atomic_load(&xfer->stop)) {
        status = vnxi_error_set(&error, VNX_ERR_CANCELED, VNXI_UCX_TRANSFER,
                                "the transfer was cancelled");
    } else if (are_chunks_left(xfer)) {
        status = vnxi_ucx_conn_error(conn, VNXI_UCX_TRANSFER, &error);
    }
    vnxi_ucx_retain(ucx);
    xfer->args.done(xfer->args.context, status,
                    status != VNX_OK ? &error : NULL);
    note_reported(ucx);
    vnxi_ucx_release(ucx);
}

static void
end_slice(vnxi_ucx_slice_t *slice)
{
    vnxi_ucx_xfer_t *xfer = slice->xfer;
    vnxi_ucx_duty_remove(slice->ep->worker, &slice->duty);
    if (atomic_fetch_sub(&xfer->slices_left, 1) == 1) {
        report(xfer);
    }
}

/* UCX's error came first: return whether to wait for the connection's cause.
 */
static bool
waits_for_cause(vnxi_ucx_slice_t *slice, uint64_t now)
{
    vnxi_ucx_xfer_t *xfer = slice->xfer;
    if (atomic_load(&xfer->failing) != VNXI_UCX_FAILING_BY_UCX ||
        atomic_load(&xfer->args.conn->dead)) {
        return false;
    }
    if (slice->grace_end == 0) {
        slice->grace_end = now + GRACE_NS;
    }
    return now < slice->grace_end;
}

static void
fail_stalled(vnxi_ucx_slice_t *slice)
{
    vnx_error_t error;
    vnxi_error_set(
        &error, VNX_ERR_TIMEOUT, VNXI_UCX_TRANSFER,
        "no progress for %.3g s, with %zu requests waiting for the peer",
        (double)slice->xfer->args.conn->ucx->stall_timeout_ns / 1e9,
        slice->pending);
    vnxi_ucx_xfer_fail(slice->xfer, &error, false);
}

/* The longest time without progress on the connection; 0: no limit. */
static uint64_t
patience(const vnxi_ucx_slice_t *slice)
{
    uint64_t limit = slice->xfer->args.conn->ucx->stall_timeout_ns;
    return slice->stopping && (limit == 0 || limit > STOP_PATIENCE_NS)
               ? STOP_PATIENCE_NS
               : limit;
}

/* Requests of other transfers that were posted before are served first.  So
 * while any end at this ep, the slice may only be waiting for its turn, and a
 * reset would end transfers that are well.  It waits longer then, but not
 * without limit: an ep may have several lanes, and others may move while the
 * slice's is stuck.  UINT64_MAX: no limit. */
static uint64_t
end_of_patience(const vnxi_ucx_slice_t *slice)
{
    uint64_t limit = patience(slice), ep_moved_at = slice->ep->moved_at;
    uint64_t own = slice->moved_at;
    uint64_t last = own > ep_moved_at ? own : ep_moved_at;

    if (limit == 0) {
        return UINT64_MAX;
    }
    return last - own < (TURN_FACTOR - 1) * limit ? last + limit
                                                  : own + TURN_FACTOR * limit;
}

static void
note_progress(vnxi_ucx_slice_t *slice, uint64_t now)
{
    bool stops = atomic_load(&slice->xfer->stop);

    if (slice->ep->moved) {
        slice->ep->moved = false;
        slice->ep->moved_at = now;
    }
    /* A stop begins a new wait: the slice may have had no turn for long. */
    if (slice->moved || slice->moved_at == 0 || (stops && !slice->stopping)) {
        slice->moved = false;
        slice->moved_at = now;
    }
    if (stops) {
        slice->stopping = true;
        slice->posting = false;
    }
}

static uint64_t
look(vnxi_ucx_duty_t *duty, uint64_t now)
{
    vnxi_ucx_slice_t *slice = (vnxi_ucx_slice_t *)duty;

    note_progress(slice, now);
    if (slice->pending == 0) {
        if (slice->posting || vnxi_ucx_slice_needs_flush(slice)) {
            return now + REOPEN_LOOK_NS; /* the ep is being reopened */
        }
        if (waits_for_cause(slice, now)) {
            return slice->grace_end;
        }
        end_slice(slice);
        return UINT64_MAX;
    }
    if (slice->posting && slice->pending < slice->xfer->window &&
        slice->ep->state == VNXI_UCX_EP_OPEN) {
        return now; /* requests ended although UCX reported no progress */
    }
    uint64_t end = end_of_patience(slice);
    if (now < end) {
        return end;
    }
    if (!atomic_load(&slice->xfer->stop)) {
        fail_stalled(slice);
    }
    vnxi_ucx_ep_reset(slice->ep);
    slice->moved_at = now;
    return now + REOPEN_LOOK_NS;
}

/* -- Posting ---------------------------------------------------------------
 */

static void
start(vnxi_ucx_command_t *command, vnxi_ucx_worker_t *worker)
{
    vnxi_ucx_slice_t *slice =
        (vnxi_ucx_slice_t *)((char *)command -
                             offsetof(vnxi_ucx_slice_t, command));

    slice->posting = true;
    slice->in_chunk = slice->has_piece = false;
    slice->flushing = slice->stopping = slice->moved = false;
    slice->pending = 0;
    slice->opening = 0;
    slice->moved_at = slice->grace_end = 0;
    slice->local = slice->remote = NULL;
    vnxi_ucx_worker_make_again(worker);
    vnxi_ucx_duty_add(worker, &slice->duty);
}

/* Give up the share of the post, and those of slices that no worker has taken.
 * True: the caller reports the end; otherwise the transfer may be gone. */
static bool
end_post(vnxi_ucx_xfer_t *xfer, unsigned shares)
{
    vnxi_ucx_t *ucx = xfer->args.conn->ucx;

    vnxi_mutex_lock(&ucx->xfers_lock);
    xfer->is_being_posted = false;
    bool is_last = xfer->is_abandoned;
    if (is_last) {
        atomic_store(&xfer->stop, true);
        atomic_store(&xfer->slices_left, 0);
    } else {
        is_last = atomic_fetch_sub(&xfer->slices_left, shares) == shares;
    }
    vnxi_mutex_unlock(&ucx->xfers_lock);
    return is_last;
}

vnx_status_t
vnxi_ucx_xfer_post(vnxi_ucx_xfer_t *xfer, vnx_error_t *error)
{
    vnxi_ucx_conn_t *conn = xfer->args.conn;
    unsigned count = xfer->slice_count, pushed = 0;

    atomic_store(&xfer->next_chunk, 0);
    atomic_store(&xfer->failing, VNXI_UCX_FAILING_NOT);
    atomic_store(&xfer->stop, false);
    /* One more than the slices, so that the transfer does not end during this
     * call. */
    atomic_store(&xfer->slices_left, count + 1);
    enlist(xfer);
    for (unsigned i = 0; i < count; i++) {
        pushed += vnxi_ucx_worker_push(&conn->ucx->workers[i],
                                       &xfer->slices[i].command);
    }
    if (pushed == 0) {
        delist(xfer);
        note_reported(conn->ucx);
        return vnxi_ucx_conn_error(conn, VNXI_UCX_TRANSFER, error);
    }
    if (end_post(xfer, count - pushed + 1)) {
        report(xfer);
    }
    return VNX_IN_PROG;
}

void
vnxi_ucx_xfer_cancel(vnxi_ucx_xfer_t *xfer)
{
    atomic_store(&xfer->stop, true);
    for (unsigned i = 0; i < xfer->slice_count; i++) {
        vnxi_ucx_worker_wake(&xfer->args.conn->ucx->workers[i]);
    }
}

/* -- Settling --------------------------------------------------------------
 */

/* Stop the transfers that must not go on; returns how many they are. */
static size_t
stop_some_lock_held(vnxi_ucx_t *ucx)
{
    size_t count = 0;
    for (vnxi_ucx_xfer_t *xfer = ucx->xfers; xfer != NULL; xfer = xfer->next) {
        vnx_error_t error;
        if (xfer->args.go_on(xfer->args.context, &error) != VNX_OK) {
            count++;
            vnxi_ucx_xfer_fail(xfer, &error, false);
            vnxi_ucx_xfer_cancel(xfer);
        }
    }
    return count;
}

void
vnxi_ucx_xfers_settle(vnxi_ucx_t *ucx)
{
    vnxi_mutex_lock(&ucx->xfers_lock);
    while (stop_some_lock_held(ucx) > 0 || ucx->reporting > 0) {
        vnxi_cond_wait(&ucx->xfer_ended, &ucx->xfers_lock);
    }
    vnxi_mutex_unlock(&ucx->xfers_lock);
}

/* -- Abandoning ------------------------------------------------------------
 */

/* The thread that takes the last slice reports the end.  A transfer that
 * another thread is posting stays with that thread, which still uses it. */
static bool
take_lock_held(vnxi_ucx_xfer_t *xfer)
{
    xfer->is_abandoned = true;
    return !xfer->is_being_posted &&
           atomic_exchange(&xfer->slices_left, 0) != 0;
}

static vnxi_ucx_xfer_t *
take_one(vnxi_ucx_t *ucx)
{
    vnxi_mutex_lock(&ucx->xfers_lock);
    vnxi_ucx_xfer_t *xfer = ucx->xfers;
    while (xfer != NULL && !take_lock_held(xfer)) {
        xfer = xfer->next;
    }
    vnxi_mutex_unlock(&ucx->xfers_lock);
    return xfer;
}

void
vnxi_ucx_xfers_abandon(vnxi_ucx_t *ucx)
{
    vnxi_ucx_xfer_t *xfer;

    while ((xfer = take_one(ucx)) != NULL) {
        atomic_store(&xfer->stop, true);
        report(xfer);
    }
}
