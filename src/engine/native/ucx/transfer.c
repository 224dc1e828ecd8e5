/*
 * Design notes.  A *share* is what one worker does of a transfer; it belongs
 * to that worker's thread from the command that starts it to its end.  Shares
 * meet in three atomics: the next chunk, whether it fails, and how many shares
 * are left; the last one reports.
 *
 * Which error is told: UCX's own errors say less than the state of the
 * connection, and may come before it is known to have failed.  So a share
 * whose pieces failed waits a moment for the connection to say why.
 */
#include "engine/native/ucx/transfer.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "engine/native/ucx/end.h"

#define OPERATION "transfer"

/* In flight at a worker, of one transfer: what keeps TCP busy. */
#define WINDOW_BYTES (32u << 20)
#define WINDOW_PIECES_MIN 64u
#define WINDOW_PIECES_MAX 2048u

#define STOP_PATIENCE_NS 1000000000u
#define GRACE_NS 100000000u
#define REOPEN_LOOK_NS 1000000u

typedef struct share {
    vnxi_ucx_duty_t duty; /* first */
    vnxi_ucx_command_t command;
    vnxi_ucx_xfer_t *xfer;
    vnxi_ucx_end_t *end;
    /* Of the post in progress; the thread's own. */
    bool posting; /* there may be more to post */
    bool in_chunk, has_piece;
    bool flushing;
    bool moved;
    vnxi_walk_t walk;
    vnxi_piece_t piece; /* the rest of it */
    size_t pending;     /* requests in flight */
    uint64_t opening;   /* the end's, at the first piece; 0: none was posted */
    uint64_t moved_at, grace_end;
    const vnxi_region_t *local, *remote; /* of the last piece */
} share_t;

struct vnxi_ucx_xfer {
    vnxi_ucx_xfer_args_t args;
    atomic_size_t next_chunk;
    atomic_uint shares_left;
    atomic_bool stop;
    atomic_bool failing; /* whoever raises it writes the two below */
    bool by_ucx;         /* the error is UCX's: the connection may know more */
    vnx_error_t error;
    vnxi_ucx_xfer_t *prev, *next; /* ucx->xfers */
    size_t window; /* requests in flight of a share, or a chunk more */
    unsigned share_count;
    share_t shares[];
};

static bool turn(vnxi_ucx_duty_t *duty);
static uint64_t look(vnxi_ucx_duty_t *duty, uint64_t now);
static void start(vnxi_ucx_command_t *command, vnxi_ucx_worker_t *worker);

/* -- Making ----------------------------------------------------------------
 */

static size_t
window_of(const vnxi_plan_t *plan)
{
    uint64_t each = plan->bytes / (plan->pieces > 0 ? plan->pieces : 1) + 1;
    uint64_t window =
        WINDOW_BYTES / (each < VNXI_PIECE_MAX ? each : VNXI_PIECE_MAX);
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
        share_t *share = &xfer->shares[i];
        share->duty.turn = turn;
        share->duty.look = look;
        share->command.run = start;
        share->xfer = xfer;
        share->end = &args->conn->ends[i];
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

/* -- Failing ---------------------------------------------------------------
 */

static void
fail(vnxi_ucx_xfer_t *xfer, const vnx_error_t *error, bool by_ucx)
{
    if (!atomic_exchange(&xfer->failing, true)) {
        xfer->error = *error;
        xfer->by_ucx = by_ucx;
    }
    atomic_store(&xfer->stop, true);
}

static void
fail_by_ucx(share_t *share, vnxi_ucs_status_t status, const char *what,
            uint64_t remote, uint64_t len)
{
    vnx_error_t error;
    vnxi_error_set(
        &error, vnxi_ucx_status(status), OPERATION,
        "UCX: %s (the peer's address 0x%" PRIx64 ", %" PRIu64 " bytes): %s",
        what, remote, len,
        vnxi_ucx_calls(share->end->worker)->ucs_status_string(status));
    fail(share->xfer, &error, true);
}

/* -- Pieces ----------------------------------------------------------------
 */

static bool
holds(const vnxi_region_t *region, uint64_t addr)
{
    return region->addr <= addr && addr < vnxi_region_end(region);
}

/* A region of the list that holds this address.  Each row lies in one, so
 * there is one.  They are sorted by device, then by address. */
static const vnxi_region_t *
find_region(const vnxi_list_t *list, uint64_t addr)
{
    size_t low = 0, high = list->region_count;
    vnxi_region_t *const *regions = list->regions;

    if (high > 0 && regions[0]->dev == regions[high - 1]->dev) {
        while (low < high) {
            size_t middle = low + (high - low) / 2;
            if (regions[middle]->addr <= addr) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
    } else {
        low = high;
    }
    while (low-- > 0) {
        if (holds(regions[low], addr)) {
            return regions[low];
        }
    }
    return NULL;
}

/* Both sides' regions at the piece's beginning, and how far both go. */
static bool
find_regions(share_t *share, uint64_t *len_p)
{
    const vnxi_ucx_xfer_args_t *args = &share->xfer->args;
    const vnxi_piece_t *piece = &share->piece;

    if (share->local == NULL || !holds(share->local, piece->local)) {
        share->local = find_region(args->local, piece->local);
    }
    if (share->remote == NULL || !holds(share->remote, piece->remote)) {
        share->remote = find_region(args->remote, piece->remote);
    }
    if (share->local == NULL || share->remote == NULL) {
        return false;
    }
    uint64_t local = vnxi_region_end(share->local) - piece->local;
    uint64_t remote = vnxi_region_end(share->remote) - piece->remote;
    uint64_t len = piece->len;
    len = local < len ? local : len;
    *len_p = remote < len ? remote : len;
    return true;
}

/* What was cancelled because the transfer stops is no failure. */
static void
note_failure(share_t *share, vnxi_ucs_status_t status)
{
    if (status != VNXI_UCS_ERR_CANCELED || !atomic_load(&share->xfer->stop)) {
        fail_by_ucx(share, status, "a piece failed", share->piece.remote, 0);
    }
}

static void
on_piece(void *request, vnxi_ucs_status_t status, void *user_data)
{
    share_t *share = user_data;
    share->pending--;
    share->moved = true;
    if (__builtin_expect(status != VNXI_UCS_OK, 0)) {
        note_failure(share, status);
    }
    vnxi_ucx_calls(share->end->worker)->ucp_request_free(request);
}

static vnxi_ucs_ptr_t
post_part(share_t *share, vnxi_ucp_mem_t memory, vnxi_ucp_rkey_t key,
          uint64_t len)
{
    const vnxi_ucp_functions_t *ucp = vnxi_ucx_calls(share->end->worker);
    const vnxi_ucp_request_param_t param = {
        .op_attr_mask =
            VNXI_UCP_OP_CALLBACK | VNXI_UCP_OP_USER_DATA | VNXI_UCP_OP_MEMH,
        .cb.send = on_piece,
        .user_data = share,
        .memh = memory,
    };
    void *local = (void *)(uintptr_t)share->piece.local;

    return share->xfer->args.op == VNX_OP_READ
               ? ucp->ucp_get_nbx(share->end->ep, local, len,
                                  share->piece.remote, key, &param)
               : ucp->ucp_put_nbx(share->end->ep, local, len,
                                  share->piece.remote, key, &param);
}

/* What UCX needs for it. */
static bool
find_handles(share_t *share, vnxi_ucp_mem_t *memory_p, vnxi_ucp_rkey_t *key_p)
{
    const vnxi_ucx_xfer_args_t *args = &share->xfer->args;
    vnxi_ucx_mem_t *mem = args->mem_of(share->local);
    vnxi_ucx_key_t *key = args->key_of(share->remote);
    vnxi_ucs_status_t status = VNXI_UCS_ERR_INVALID_PARAM;

    *memory_p = mem != NULL ? atomic_load(&mem->handle) : NULL;
    if (key != NULL && *memory_p != NULL) {
        status = vnxi_ucx_end_key(share->end, key, key_p);
    }
    if (status != VNXI_UCS_OK) {
        fail_by_ucx(share, status, "its key for the region is of no use",
                    share->remote->addr, share->remote->len);
    }
    return status == VNXI_UCS_OK;
}

/* The piece, or as much of it as lies in one region on each side. */
static bool
post_some(share_t *share)
{
    vnxi_piece_t *piece = &share->piece;
    vnxi_ucp_mem_t memory;
    vnxi_ucp_rkey_t key;
    uint64_t len;

    if (!find_regions(share, &len)) {
        fail_by_ucx(share, VNXI_UCS_ERR_INVALID_ADDR, "no region holds it",
                    piece->remote, piece->len);
        return false;
    }
    if (!find_handles(share, &memory, &key)) {
        return false;
    }
    vnxi_ucs_ptr_t ptr = post_part(share, memory, key, len);
    if (vnxi_ucs_is_request(ptr)) {
        share->pending++;
    } else if (vnxi_ucs_status(ptr) != VNXI_UCS_OK) {
        fail_by_ucx(share, vnxi_ucs_status(ptr), "a piece was refused",
                    piece->remote, len);
        return false;
    }
    piece->local += len;
    piece->remote += len;
    piece->len -= len;
    share->has_piece = piece->len > 0;
    return true;
}

/* -- Chunks ----------------------------------------------------------------
 */

/* The next chunk, unless there is none or it must not go on. */
static bool
take_chunk(share_t *share)
{
    vnxi_ucx_xfer_t *xfer = share->xfer;
    vnx_error_t error;

    if (atomic_load_explicit(&xfer->stop, memory_order_acquire)) {
        return false;
    }
    if (xfer->args.go_on(xfer->args.context, &error) != VNX_OK) {
        fail(xfer, &error, false);
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

static void
post_chunk(share_t *share)
{
    while (share->has_piece || vnxi_walk_next(&share->walk, &share->piece)) {
        share->has_piece = true;
        if (share->piece.len == 0) {
            share->has_piece = false;
        } else if (!post_some(share)) {
            share->posting = share->has_piece = false;
            return;
        }
    }
    share->in_chunk = false;
}

static void
begin_flush(share_t *share)
{
    const vnxi_ucp_request_param_t param = {
        .op_attr_mask = VNXI_UCP_OP_CALLBACK | VNXI_UCP_OP_USER_DATA,
        .cb.send = on_piece,
        .user_data = share,
    };
    share->flushing = true;
    share->pending++;
    vnxi_ucs_ptr_t ptr = vnxi_ucx_calls(share->end->worker)
                             ->ucp_ep_flush_nbx(share->end->ep, &param);
    if (!vnxi_ucs_is_request(ptr)) {
        share->pending--;
        if (vnxi_ucs_status(ptr) != VNXI_UCS_OK) {
            fail_by_ucx(share, vnxi_ucs_status(ptr), "a flush was refused", 0,
                        0);
        }
    }
}

/* A share of a WRITE that posted something must see it arrive. */
static bool
needs_flush(const share_t *share)
{
    return share->xfer->args.op == VNX_OP_WRITE && share->opening != 0 &&
           !share->flushing && !atomic_load(&share->xfer->failing);
}

static vnx_status_t
fail_reset(vnx_error_t *error)
{
    return vnxi_error_set(error, VNX_ERR_TIMEOUT, OPERATION,
                          "the connection was reset because another transfer "
                          "made no progress on it");
}

/* The connection's end, ready to post on.  Where it was reset since the first
 * piece, what was posted before may not have arrived. */
static bool
has_end(share_t *share)
{
    vnx_error_t error;
    vnxi_ucx_conn_t *conn = share->xfer->args.conn;
    vnx_status_t status =
        atomic_load(&conn->dead)
            ? vnxi_ucx_conn_error(conn, OPERATION, &error)
            : vnxi_ucx_end_open(share->end, OPERATION, &error);

    if (status == VNX_OK && share->opening != 0 &&
        share->opening != share->end->opening) {
        status = fail_reset(&error);
    }
    if (status < 0) {
        fail(share->xfer, &error, false);
        share->posting = false;
    }
    return status == VNX_OK;
}

static bool
turn(vnxi_ucx_duty_t *duty)
{
    share_t *share = (share_t *)duty;

    if (!share->posting && !needs_flush(share)) {
        return false;
    }
    if (share->pending >= share->xfer->window || !has_end(share)) {
        return false;
    }
    if (share->posting && !share->in_chunk && !take_chunk(share)) {
        share->posting = false;
    }
    if (share->posting) {
        share->opening = share->end->opening;
        post_chunk(share);
    }
    if (!share->posting && needs_flush(share)) {
        begin_flush(share);
    }
    return share->posting;
}

/* -- The end ---------------------------------------------------------------
 */

static void
enlist(vnxi_ucx_xfer_t *xfer)
{
    vnxi_ucx_t *ucx = xfer->args.conn->ucx;
    pthread_mutex_lock(&ucx->xfers_lock);
    xfer->prev = NULL;
    xfer->next = ucx->xfers;
    if (ucx->xfers != NULL) {
        ucx->xfers->prev = xfer;
    }
    ucx->xfers = xfer;
    pthread_mutex_unlock(&ucx->xfers_lock);
}

static void
delist(vnxi_ucx_xfer_t *xfer)
{
    vnxi_ucx_t *ucx = xfer->args.conn->ucx;
    pthread_mutex_lock(&ucx->xfers_lock);
    if (xfer->prev != NULL) {
        xfer->prev->next = xfer->next;
    } else {
        ucx->xfers = xfer->next;
    }
    if (xfer->next != NULL) {
        xfer->next->prev = xfer->prev;
    }
    pthread_cond_broadcast(&ucx->xfer_ended);
    pthread_mutex_unlock(&ucx->xfers_lock);
}

/* A request that is cancelled while the connection lives was so by a reset. */
static vnx_status_t
explain(vnxi_ucx_conn_t *conn, vnx_error_t *error)
{
    if (atomic_load(&conn->dead)) {
        return vnxi_ucx_conn_error(conn, OPERATION, error);
    }
    return error->status == VNX_ERR_REMOTE_DISCONNECT ? fail_reset(error)
                                                      : error->status;
}

/* The last share has ended. */
static void
report(vnxi_ucx_xfer_t *xfer)
{
    vnxi_ucx_conn_t *conn = xfer->args.conn;
    vnx_status_t status = VNX_OK;
    vnx_error_t error;

    if (atomic_load(&xfer->failing)) {
        error = xfer->error;
        status = error.status;
        if (xfer->by_ucx) {
            status = explain(conn, &error);
        }
    } else if (atomic_load(&xfer->stop)) {
        status = vnxi_error_set(&error, VNX_ERR_CANCELED, OPERATION,
                                "the transfer was cancelled");
    }
    delist(xfer);
    xfer->args.done(xfer->args.context, status,
                    status != VNX_OK ? &error : NULL);
}

static void
share_end(share_t *share)
{
    vnxi_ucx_xfer_t *xfer = share->xfer;
    vnxi_ucx_duty_remove(share->end->worker, &share->duty);
    if (atomic_fetch_sub(&xfer->shares_left, 1) == 1) {
        report(xfer);
    }
}

/* UCX's error came first; does the connection know better? */
static bool
waits_for_cause(share_t *share, uint64_t now)
{
    vnxi_ucx_xfer_t *xfer = share->xfer;
    if (!atomic_load(&xfer->failing) || !xfer->by_ucx ||
        atomic_load(&xfer->args.conn->dead)) {
        return false;
    }
    if (share->grace_end == 0) {
        share->grace_end = now + GRACE_NS;
    }
    return now < share->grace_end;
}

static void
fail_stalled(share_t *share)
{
    vnx_error_t error;
    vnxi_error_set(
        &error, VNX_ERR_TIMEOUT, OPERATION,
        "nothing moved for %.3g s, with %zu requests waiting for the peer",
        (double)share->xfer->args.conn->ucx->stall_timeout_ns / 1e9,
        share->pending);
    fail(share->xfer, &error, false);
}

/* How long nothing may move; 0: for ever. */
static uint64_t
patience(const share_t *share)
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
    share_t *share = (share_t *)duty;

    if (share->moved || share->moved_at == 0) {
        share->moved = false;
        share->moved_at = now;
    }
    if (atomic_load(&share->xfer->stop)) {
        share->posting = false;
    }
    if (share->pending == 0) {
        if (share->posting || needs_flush(share)) {
            return now + REOPEN_LOOK_NS; /* the end is being opened anew */
        }
        if (waits_for_cause(share, now)) {
            return share->grace_end;
        }
        share_end(share);
        return UINT64_MAX;
    }
    if (share->posting && share->pending < share->xfer->window &&
        share->end->state == VNXI_UCX_END_OPEN) {
        return now; /* some ended although progress was said to be none */
    }
    uint64_t limit = patience(share);
    if (limit != 0 && now - share->moved_at >= limit) {
        if (!atomic_load(&share->xfer->stop)) {
            fail_stalled(share);
        }
        vnxi_ucx_end_reset(share->end);
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
    share_t *share = (share_t *)((char *)command - offsetof(share_t, command));

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
    atomic_store(&xfer->failing, false);
    atomic_store(&xfer->stop, false);
    /* One more than there are, so that it does not end under our hands. */
    atomic_store(&xfer->shares_left, count + 1);
    enlist(xfer);
    for (unsigned i = 0; i < count; i++) {
        pushed += vnxi_ucx_worker_push(&conn->ucx->workers[i],
                                       &xfer->shares[i].command);
    }
    if (pushed == 0) {
        delist(xfer);
        return vnxi_ucx_conn_error(conn, OPERATION, error);
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

/* How many must not go on; they are told. */
static size_t
stop_some_lock_held(vnxi_ucx_t *ucx)
{
    size_t count = 0;
    for (vnxi_ucx_xfer_t *xfer = ucx->xfers; xfer != NULL; xfer = xfer->next) {
        vnx_error_t error;
        if (xfer->args.go_on(xfer->args.context, &error) != VNX_OK) {
            count++;
            fail(xfer, &error, false);
            vnxi_ucx_xfer_cancel(xfer);
        }
    }
    return count;
}

void
vnxi_ucx_settle(vnxi_ucx_t *ucx)
{
    pthread_mutex_lock(&ucx->xfers_lock);
    while (stop_some_lock_held(ucx) > 0) {
        pthread_cond_wait(&ucx->xfer_ended, &ucx->xfers_lock);
    }
    pthread_mutex_unlock(&ucx->xfers_lock);
}
