/*
 * Design notes.  A *share* is one worker's part of a transfer.  It belongs to
 * that worker's thread from the command that starts it until its end.  Shares
 * have three atomics in common: the next chunk, whether the transfer fails,
 * and how many shares are left; the last share reports.
 *
 * Which error is reported: UCX's own errors say less than the state of the
 * connection, and may come before the connection is known to have failed.  So
 * a share whose pieces failed waits a moment for the connection's cause.
 */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "engine/native/ucx/park.h"
#include "engine/native/ucx/share.h"

/* Limits of what one transfer has in flight at a worker: enough to keep TCP
 * busy. */
#define WINDOW_BYTES (32u << 20)
#define WINDOW_PIECES_MIN 64u
#define WINDOW_PIECES_MAX 2048u
#define PIECE_BYTES (1u << 20) /* per request */

#define STOP_PATIENCE_NS 1000000000u
#define GRACE_NS 300000000u
#define REOPEN_LOOK_NS 1000000u

static bool turn(vnxi_ucx_duty_t *duty);
static uint64_t look(vnxi_ucx_duty_t *duty, uint64_t now);
static void start(vnxi_ucx_command_t *command, vnxi_ucx_worker_t *worker);

/* -- Creating --------------------------------------------------------------
 */

static size_t
window_of(const vnxi_plan_t *plan)
{
    uint64_t each = plan->bytes / (plan->pieces > 0 ? plan->pieces : 1) + 1;
    uint64_t window = WINDOW_BYTES / (each < PIECE_BYTES ? each : PIECE_BYTES);
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
        calloc(1, sizeof *xfer + count * sizeof xfer->shares[0]);

    if (xfer == NULL) {
        return NULL;
    }
    xfer->args = *args;
    vnxi_ucx_conn_retain(args->conn);
    xfer->share_count = count;
    xfer->window = window_of(args->plan);
    for (unsigned i = 0; i < count; i++) {
        vnxi_ucx_share_t *share = &xfer->shares[i];
        share->duty.turn = turn;
        share->duty.look = look;
        share->command.run = start;
        share->xfer = xfer;
        share->ep = &args->conn->eps[i];
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

/* -- Chunks ----------------------------------------------------------------
 */

/* Take the next chunk; false if there is none or the transfer must not go on.
 */
static bool
take_chunk(vnxi_ucx_share_t *share)
{
    vnxi_ucx_xfer_t *xfer = share->xfer;
    vnx_error_t error;

    if (atomic_load_explicit(&xfer->stop, memory_order_acquire)) {
        return false;
    }
    if (xfer->args.go_on(xfer->args.context, &error) != VNX_OK) {
        vnxi_ucx_xfer_fail(xfer, &error, false);
        return false;
    }
    size_t chunk = atomic_fetch_add(&xfer->next_chunk, 1);
    if (chunk >= xfer->args.plan->chunk_count) {
        return false;
    }
    share->walk = vnxi_plan_walk(xfer->args.plan, chunk);
    share->in_chunk = true;
    return true;
}

/* Joins pieces that the plan has cut only for its chunks: fewer UCX requests,
 * fewer system calls. */
static bool
next_piece(vnxi_ucx_share_t *share)
{
    vnxi_piece_t *piece = &share->piece, part;
    if (!vnxi_walk_next(&share->walk, piece)) {
        return false;
    }
    part = *piece;
    for (vnxi_walk_t ahead = share->walk;
         part.len == VNXI_PIECE_MAX && piece->len < PIECE_BYTES &&
         vnxi_walk_next(&ahead, &part) &&
         part.local == piece->local + piece->len &&
         part.remote == piece->remote + piece->len;
         share->walk = ahead) {
        piece->len += part.len;
    }
    return true;
}

static void
post_chunk(vnxi_ucx_share_t *share)
{
    while (share->has_piece || next_piece(share)) {
        share->has_piece = true;
        if (share->piece.len == 0) {
            share->has_piece = false;
        } else if (!vnxi_ucx_share_post(share)) {
            share->posting = share->has_piece = false;
            return;
        }
    }
    share->in_chunk = false;
}

static void
begin_flush(vnxi_ucx_share_t *share)
{
    const vnxi_ucp_request_param_t param = {
        .op_attr_mask = VNXI_UCP_OP_CALLBACK | VNXI_UCP_OP_USER_DATA,
        .cb.send = vnxi_ucx_share_on_request,
        .user_data = share,
    };
    share->flushing = true;
    share->pending++;
    share->ep->posted++;
    vnxi_ucs_ptr_t ptr = vnxi_ucx_calls(share->ep->worker)
                             ->ucp_ep_flush_nbx(share->ep->handle, &param);
    if (!vnxi_ucs_is_request(ptr)) {
        share->pending--;
        share->ep->posted--;
        if (vnxi_ucs_status(ptr) != VNXI_UCS_OK) {
            vnxi_ucx_share_fail(share, vnxi_ucs_status(ptr),
                                "a flush was refused", 0, 0);
        }
    }
}

/* A share of a WRITE that has posted pieces must wait until they have arrived.
 */
static bool
needs_flush(const vnxi_ucx_share_t *share)
{
    return share->xfer->args.op == VNX_OP_WRITE && share->opening != 0 &&
           !share->flushing &&
           atomic_load(&share->xfer->failing) == VNXI_UCX_FAILING_NOT;
}

static vnx_status_t
fail_reset(vnx_error_t *error)
{
    return vnxi_error_set(error, VNX_ERR_TIMEOUT, VNXI_UCX_TRANSFER,
                          "the connection was reset because another transfer "
                          "made no progress on it");
}

/* Get the connection's ep ready for posting.  If it was reset since the first
 * piece, pieces posted before may not have arrived. */
static bool
has_ep(vnxi_ucx_share_t *share)
{
    vnx_error_t error;
    vnxi_ucx_conn_t *conn = share->xfer->args.conn;
    vnx_status_t status =
        atomic_load(&conn->dead)
            ? vnxi_ucx_conn_error(conn, VNXI_UCX_TRANSFER, &error)
            : vnxi_ucx_ep_open(share->ep, VNXI_UCX_TRANSFER, &error);

    if (status == VNX_OK && share->opening != 0 &&
        share->opening != share->ep->opening) {
        status = fail_reset(&error);
    }
    if (status < 0) {
        vnxi_ucx_xfer_fail(share->xfer, &error, false);
        share->posting = false;
    }
    return status == VNX_OK;
}

static bool
turn(vnxi_ucx_duty_t *duty)
{
    vnxi_ucx_share_t *share = (vnxi_ucx_share_t *)duty;

    if (!share->posting && !needs_flush(share)) {
        return false;
    }
    if (share->pending >= share->xfer->window || !has_ep(share)) {
        return false;
    }
    if (share->posting && !share->in_chunk && !take_chunk(share)) {
        share->posting = false;
    }
    if (share->posting) {
        share->opening = share->ep->opening;
        post_chunk(share);
    }
    if (!share->posting && needs_flush(share)) {
        begin_flush(share);
    }
    return share->posting;
}

/* -- Ending ----------------------------------------------------------------
 */

static void
enlist(vnxi_ucx_xfer_t *xfer)
{
    vnxi_ucx_t *ucx = xfer->args.conn->ucx;
    vnxi_mutex_lock(&ucx->xfers_lock);
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
    return error->status == VNX_ERR_REMOTE_DISCONNECT ? fail_reset(error)
                                                      : error->status;
}

/* The last share has ended.  The transfer, and everything that it holds, may
 * be gone when `done` returns. */
static void
report(vnxi_ucx_xfer_t *xfer)
{
    vnxi_ucx_conn_t *conn = xfer->args.conn;
    vnxi_ucx_t *ucx = conn->ucx;
    vnx_status_t status = VNX_OK;
    vnx_error_t error;

    if (atomic_load(&xfer->failing) != VNXI_UCX_FAILING_NOT) {
        error = xfer->error;
        status = error.status;
        if (atomic_load(&xfer->failing) == VNXI_UCX_FAILING_BY_UCX) {
            status = explain(conn, &error);
        }
    } else if (atomic_load(&xfer->stop)) {
        status = vnxi_error_set(&error, VNX_ERR_CANCELED, VNXI_UCX_TRANSFER,
                                "the transfer was cancelled");
    }
    delist(xfer);
    vnxi_ucx_retain(ucx);
    xfer->args.done(xfer->args.context, status,
                    status != VNX_OK ? &error : NULL);
    note_reported(ucx);
    vnxi_ucx_release(ucx);
}

static void
end_share(vnxi_ucx_share_t *share)
{
    vnxi_ucx_xfer_t *xfer = share->xfer;
    vnxi_ucx_duty_remove(share->ep->worker, &share->duty);
    if (atomic_fetch_sub(&xfer->shares_left, 1) == 1) {
        report(xfer);
    }
}

/* UCX's error came first: return whether to wait for the connection's cause.
 */
static bool
waits_for_cause(vnxi_ucx_share_t *share, uint64_t now)
{
    vnxi_ucx_xfer_t *xfer = share->xfer;
    if (atomic_load(&xfer->failing) != VNXI_UCX_FAILING_BY_UCX ||
        atomic_load(&xfer->args.conn->dead)) {
        return false;
    }
    if (share->grace_end == 0) {
        share->grace_end = now + GRACE_NS;
    }
    return now < share->grace_end;
}

static void
fail_stalled(vnxi_ucx_share_t *share)
{
    vnx_error_t error;
    vnxi_error_set(
        &error, VNX_ERR_TIMEOUT, VNXI_UCX_TRANSFER,
        "no progress for %.3g s, with %zu requests waiting for the peer",
        (double)share->xfer->args.conn->ucx->stall_timeout_ns / 1e9,
        share->pending);
    vnxi_ucx_xfer_fail(share->xfer, &error, false);
}

/* The longest time without progress; 0: no limit. */
static uint64_t
patience(const vnxi_ucx_share_t *share)
{
    uint64_t limit = share->xfer->args.conn->ucx->stall_timeout_ns;
    return atomic_load(&share->xfer->stop) &&
                   (limit == 0 || limit > STOP_PATIENCE_NS)
               ? STOP_PATIENCE_NS
               : limit;
}

static uint64_t
look(vnxi_ucx_duty_t *duty, uint64_t now)
{
    vnxi_ucx_share_t *share = (vnxi_ucx_share_t *)duty;

    if (share->moved || share->moved_at == 0) {
        share->moved = false;
        share->moved_at = now;
    }
    if (atomic_load(&share->xfer->stop)) {
        share->posting = false;
    }
    if (share->pending == 0) {
        if (share->posting || needs_flush(share)) {
            return now + REOPEN_LOOK_NS; /* the ep is being reopened */
        }
        if (waits_for_cause(share, now)) {
            return share->grace_end;
        }
        end_share(share);
        return UINT64_MAX;
    }
    if (share->posting && share->pending < share->xfer->window &&
        share->ep->state == VNXI_UCX_EP_OPEN) {
        return now; /* requests ended although UCX reported no progress */
    }
    uint64_t limit = patience(share);
    if (limit != 0 && now - share->moved_at >= limit) {
        if (!atomic_load(&share->xfer->stop)) {
            fail_stalled(share);
        }
        vnxi_ucx_ep_reset(share->ep);
        share->moved_at = now;
        return now + REOPEN_LOOK_NS;
    }
    return limit != 0 ? share->moved_at + limit : UINT64_MAX;
}

/* -- Posting ---------------------------------------------------------------
 */

static void
start(vnxi_ucx_command_t *command, vnxi_ucx_worker_t *worker)
{
    vnxi_ucx_share_t *share =
        (vnxi_ucx_share_t *)((char *)command -
                             offsetof(vnxi_ucx_share_t, command));

    share->posting = true;
    share->in_chunk = share->has_piece = false;
    share->flushing = false;
    share->pending = 0;
    share->opening = 0;
    share->moved_at = share->grace_end = 0;
    share->local = share->remote = NULL;
    vnxi_ucx_duty_add(worker, &share->duty);
}

vnx_status_t
vnxi_ucx_xfer_post(vnxi_ucx_xfer_t *xfer, vnx_error_t *error)
{
    vnxi_ucx_conn_t *conn = xfer->args.conn;
    unsigned count = xfer->share_count, pushed = 0;

    atomic_store(&xfer->next_chunk, 0);
    atomic_store(&xfer->failing, VNXI_UCX_FAILING_NOT);
    atomic_store(&xfer->stop, false);
    /* One more than the shares, so that the transfer does not end during this
     * call. */
    atomic_store(&xfer->shares_left, count + 1);
    enlist(xfer);
    for (unsigned i = 0; i < count; i++) {
        pushed += vnxi_ucx_worker_push(&conn->ucx->workers[i],
                                       &xfer->shares[i].command);
    }
    if (pushed == 0) {
        if (atomic_exchange(&xfer->shares_left, 0) == 0) {
            return VNX_IN_PROG; /* vnxi_ucx_abandon() ended it meanwhile */
        }
        delist(xfer);
        note_reported(conn->ucx);
        return vnxi_ucx_conn_error(conn, VNXI_UCX_TRANSFER, error);
    }
    unsigned gone = count - pushed + 1;
    if (atomic_fetch_sub(&xfer->shares_left, gone) == gone) {
        report(xfer);
    }
    return VNX_IN_PROG;
}

void
vnxi_ucx_xfer_cancel(vnxi_ucx_xfer_t *xfer)
{
    atomic_store(&xfer->stop, true);
    for (unsigned i = 0; i < xfer->share_count; i++) {
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
vnxi_ucx_settle(vnxi_ucx_t *ucx)
{
    vnxi_ucx_park_lost(ucx);
    vnxi_mutex_lock(&ucx->xfers_lock);
    while (stop_some_lock_held(ucx) > 0 || ucx->reporting > 0) {
        vnxi_cond_wait(&ucx->xfer_ended, &ucx->xfers_lock);
    }
    vnxi_mutex_unlock(&ucx->xfers_lock);
}

/* -- Abandoning ------------------------------------------------------------
 */

/* The caller that takes the last share reports the end. */
static vnxi_ucx_xfer_t *
take_one(vnxi_ucx_t *ucx)
{
    vnxi_mutex_lock(&ucx->xfers_lock);
    vnxi_ucx_xfer_t *xfer = ucx->xfers;
    while (xfer != NULL && atomic_exchange(&xfer->shares_left, 0) == 0) {
        xfer = xfer->next;
    }
    vnxi_mutex_unlock(&ucx->xfers_lock);
    return xfer;
}

void
vnxi_ucx_abandon(vnxi_ucx_t *ucx)
{
    vnxi_ucx_xfer_t *xfer;

    while ((xfer = take_one(ucx)) != NULL) {
        atomic_store(&xfer->stop, true);
        report(xfer);
    }
}
