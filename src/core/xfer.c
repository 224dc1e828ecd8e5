/*
 * Transfers.
 *
 * Design notes.
 *
 *      READY --post--> POSTED --engine--> DONE | FAILED | CANCELLED
 *                        ^                       |
 *                        +---------post----------+
 *
 * The state is one atomic word.  The thread that moves it to POSTED (compare
 * and swap) owns the transfer until xfer_done, called by the engine exactly
 * once per post, moves it on.  So posting needs no other lock.  While POSTED
 * the engine holds a reference, so a handle may be released at any time.  The
 * end stores telemetry and error first, then the state, then signals the
 * events; a reader that sees the state sees the rest.
 *
 * The word also has the number of the post.  A thread that waits for the end
 * of one post may wake up when the next one is in progress: the state is
 * POSTED again, but the word differs.
 */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "core/agent.h"
#include "core/deadline.h"

/* Copying a chunk takes well under a millisecond; a longer wait means that the
 * machine is in trouble. */
#define CANCEL_DEADLINE_NS 10000000000u
#define CANCEL_AGAIN_NS 5000000u

/* The lowest bits of the word are the state, the others the post's number. */
#define STATE_BITS 3
#define STATE_MASK ((UINT64_C(1) << STATE_BITS) - 1)

struct vnx_xfer {
    atomic_uint refs;          /* users, and the engine while POSTED */
    atomic_uint_fast64_t word; /* state and number of the post */
    atomic_uint_fast64_t cancelled_post; /* the last one's number; 0: none */
    vnx_agent_t *agent;                  /* retained */
    vnxi_exfer_t *exfer;
    vnxi_counters_t *counters; /* the peer's; its list, which `exfer` holds,
                                  keeps them alive */
    vnx_op_t op;
    vnxi_xfer_facts_t facts;

    vnxi_deadline_t deadline; /* armed if the post has a timeout */
    uint64_t timeout_ns;      /* of the post; VNX_FOREVER: none */
    bool timed_out; /* stopped by the deadline; protected by its lock */

    unsigned char *notif; /* NULL: none; changed while READY and by the
                             poster */
    size_t notif_len;

    atomic_uint_fast64_t start_ns, post_ns, end_ns; /* 0: not yet */
    vnx_error_t *error; /* protected by agent->error_lock */
};

static vnx_xfer_state_t
state_of(uint64_t word)
{
    return (vnx_xfer_state_t)(word & STATE_MASK);
}

static uint64_t
post_of(uint64_t word)
{
    return word >> STATE_BITS;
}

/* An owned copy of a notification; NULL: no memory. */
static unsigned char *
copy_notif(const void *notif, size_t len)
{
    unsigned char *copy = malloc(len ? len : 1);
    if (copy != NULL && len > 0) {
        memcpy(copy, notif, len);
    }
    return copy;
}

/* -- Deadline ----------------------------------------------------------------
 */

/* Ask the engine to stop the transfer. */
static void
deadline_passed(vnxi_deadline_t *deadline)
{
    vnx_xfer_t *xfer =
        (vnx_xfer_t *)((char *)deadline - offsetof(vnx_xfer_t, deadline));
    if (xfer->agent->ops->xfer_cancel(xfer->exfer) == VNX_OK) {
        xfer->timed_out = true;
    }
}

static vnx_status_t
arm_deadline(vnx_xfer_t *xfer, uint64_t timeout_ns, vnx_error_t *error)
{
    vnx_status_t status = VNX_OK;

    xfer->timed_out = false;
    if (timeout_ns != VNX_FOREVER) {
        status = vnxi_deadline_arm(&xfer->deadline,
                                   vnxi_clock_deadline(timeout_ns), error);
    }
    xfer->timeout_ns = status == VNX_OK ? timeout_ns : VNX_FOREVER;
    return status;
}

/* A transfer that was stopped by its deadline counts as timed out, not as
 * cancelled. */
static vnx_status_t
disarm_deadline(vnx_xfer_t *xfer, vnx_status_t status, vnx_error_t *record)
{
    if (xfer->timeout_ns == VNX_FOREVER) {
        return status;
    }
    vnxi_deadline_disarm(&xfer->deadline);
    if (status != VNX_ERR_CANCELED || !xfer->timed_out) {
        return status;
    }
    vnx_error_t cancelled = *record;
    vnxi_error_set(record, VNX_ERR_TIMEOUT, "vnx_xfer_post",
                   "the transfer had not ended %.3g s after it was posted, "
                   "and was stopped",
                   (double)xfer->timeout_ns / 1e9);
    vnxi_error_peer(record, cancelled.peer, strlen(cancelled.peer));
    return VNX_ERR_TIMEOUT;
}

/* -- Making -----------------------------------------------------------------
 */

static vnx_status_t
xfer_create(vnx_agent_t *agent, vnxi_peer_t *peer,
            const vnxi_xfer_args_t *args, const void *notif, size_t notif_len,
            vnx_xfer_t **out_p, vnx_error_t *error)
{
    vnx_xfer_t *xfer = malloc(sizeof *xfer);
    if (xfer == NULL) {
        return vnxi_error_no_memory(error, args->operation, sizeof *xfer);
    }
    vnxi_xfer_args_t full = *args;
    full.cookie = xfer;
    *xfer = (vnx_xfer_t){.deadline.passed = deadline_passed,
                         .counters = &peer->counters,
                         .op = args->op,
                         .notif_len = notif_len};
    if (notif != NULL &&
        (xfer->notif = copy_notif(notif, notif_len)) == NULL) {
        free(xfer);
        return vnxi_error_no_memory(error, args->operation, notif_len);
    }
    vnx_status_t status = agent->ops->xfer_prepare(
        agent->engine, &full, &xfer->exfer, &xfer->facts, error);
    if (status != VNX_OK) {
        free(xfer->notif);
        free(xfer);
        return status;
    }
    atomic_init(&xfer->refs, 1);
    atomic_init(&xfer->word, VNX_XFER_READY);
    atomic_init(&xfer->cancelled_post, 0);
    xfer->agent = vnx_agent_retain(agent);
    vnxi_count(&agent->counters.live_xfers, 1);
    *out_p = xfer;
    return VNX_OK;
}

/* The local list was prepared for a peer, or the remote one was not. */
static vnx_status_t
wrong_side(const vnx_dlist_t *local, const vnx_dlist_t *remote,
           const char *operation, vnx_error_t *error)
{
    if (local->peer == NULL) {
        return vnxi_error_set(error, VNX_ERR_INVALID_PARAM, operation,
                              "the remote list is one of the local side: "
                              "prepare it for the peer's name");
    }
    vnxi_error_set(error, VNX_ERR_INVALID_PARAM, operation, "%s",
                   remote->peer == NULL
                       ? "the two lists are exchanged: local_xfer_side was "
                         "prepared for a peer, remote_xfer_side for the "
                         "local side"
                       : "the local list was prepared for a peer: prepare it "
                         "for '' or 'NIXL_INIT_AGENT'");
    vnxi_error_peer(error, local->peer->name, local->peer->name_len);
    return VNX_ERR_INVALID_PARAM;
}

vnx_status_t
vnx_xfer_create_prepped(vnx_agent_t *agent, vnx_op_t op, vnx_dlist_t *local,
                        vnx_indices_t local_rows, vnx_dlist_t *remote,
                        vnx_indices_t remote_rows, const void *notif,
                        size_t notif_len, bool no_merge, vnx_xfer_t **out_p,
                        vnx_error_t *error)
{
    static const char operation[] = "vnx_xfer_create_prepped";

    if (!vnxi_agent_usable(agent)) {
        return vnxi_agent_refuse(agent, operation, error);
    }
    if (local->agent != agent || remote->agent != agent) {
        return vnxi_error_set(error, VNX_ERR_INVALID_PARAM, operation,
                              "the %s prepared list belongs to another agent",
                              local->agent != agent ? "local" : "remote");
    }
    if (local->peer != NULL || remote->peer == NULL) {
        return wrong_side(local, remote, operation, error);
    }
    vnxi_xfer_args_t args = {
        .op = op,
        .local = local->list,
        .remote = remote->list,
        .local_rows = local_rows,
        .remote_rows = remote_rows,
        .no_merge = no_merge,
        .operation = operation,
    };
    return vnxi_count_refusal(agent,
                              xfer_create(agent, remote->peer, &args, notif,
                                          notif_len, out_p, error));
}

vnx_status_t
vnx_xfer_create(vnx_agent_t *agent, vnx_op_t op, vnx_mem_t local_mem,
                const vnx_desc_t *local, size_t local_count,
                vnx_mem_t remote_mem, const vnx_desc_t *remote,
                size_t remote_count, const void *peer_name, size_t peer_len,
                const void *notif, size_t notif_len,
                const char *const *backends, vnx_xfer_t **out_p,
                vnx_error_t *error)
{
    static const char operation[] = "vnx_xfer_create";
    vnxi_xfer_args_t args = {.op = op, .operation = operation};
    vnxi_list_t *local_list, *remote_list;
    vnxi_peer_t *peer;

    vnx_status_t status =
        vnxi_peers_find(agent, peer_name, peer_len, operation, &peer, error);
    if (status != VNX_OK) {
        return vnxi_count_refusal(agent, status);
    }
    if (local_count != remote_count) {
        status = vnxi_error_set(error, VNX_ERR_INVALID_PARAM, operation,
                                "%zu local rows, but %zu remote ones: they "
                                "form pairs",
                                local_count, remote_count);
        goto out_peer;
    }
    status = vnxi_list_make(agent, NULL, local_mem, local, local_count,
                            backends, operation, &local_list, error);
    if (status != VNX_OK) {
        goto out_peer;
    }
    status = vnxi_list_make(agent, peer, remote_mem, remote, remote_count,
                            backends, operation, &remote_list, error);
    if (status != VNX_OK) {
        goto out_local;
    }
    args.local = local_list;
    args.remote = remote_list;
    args.local_rows.count = args.remote_rows.count = local_count;
    status = xfer_create(agent, peer, &args, notif, notif_len, out_p, error);

    agent->ops->list_release(remote_list);
out_local:
    agent->ops->list_release(local_list);
out_peer:
    vnxi_peer_release(peer);
    return vnxi_count_refusal(agent, status);
}

vnx_agent_t *
vnxi_xfer_agent(const vnx_xfer_t *xfer)
{
    return xfer->agent;
}

vnx_xfer_t *
vnx_xfer_retain(vnx_xfer_t *xfer)
{
    atomic_fetch_add_explicit(&xfer->refs, 1, memory_order_relaxed);
    return xfer;
}

/* Drop a reference.  Returns the agent if it was the last one: the caller
 * releases it.  The holder of the only reference need not decrement the
 * count: nobody else has one to copy. */
static vnx_agent_t *
drop(vnx_xfer_t *xfer)
{
    bool is_only =
        atomic_load_explicit(&xfer->refs, memory_order_acquire) == 1;
    if ((!is_only && atomic_fetch_sub(&xfer->refs, 1) != 1) ||
        vnxi_fork_crossed(xfer->agent->fork_count)) {
        return NULL;
    }
    vnx_agent_t *agent = xfer->agent;
    agent->ops->xfer_release(xfer->exfer);
    free(xfer->error);
    free(xfer->notif);
    free(xfer);
    return agent;
}

void
vnx_xfer_drop(vnx_xfer_t *xfer)
{
    vnx_agent_release(drop(xfer));
}

/* -- Post and end ------------------------------------------------------------
 */

static void
note_last(vnx_xfer_t *xfer, uint64_t ns, bool at_once)
{
    vnxi_agent_counters_t *counters = &xfer->agent->counters;
    uint64_t post_ns =
        at_once ? ns
                : atomic_load_explicit(&xfer->post_ns, memory_order_relaxed);

    atomic_store_explicit(&counters->last_bytes[xfer->op], xfer->facts.bytes,
                          memory_order_relaxed);
    atomic_store_explicit(&counters->last_xfer_ns, ns, memory_order_relaxed);
    atomic_store_explicit(&counters->last_post_ns, post_ns,
                          memory_order_relaxed);
}

/* Release order: core/stats.c. */
static void
count_end(vnx_xfer_t *xfer, vnx_status_t status, uint64_t ns, bool at_once)
{
    atomic_uint_fast64_t *at = xfer->counters->at;
    unsigned op = (unsigned)xfer->op;

    if (status != VNX_OK) {
        atomic_fetch_add_explicit(&at[VNXI_ENDS + vnx_status_index(status)], 1,
                                  memory_order_release);
        return;
    }
    unsigned place = op * VNXI_PLACES + vnxi_histogram_place(ns);
    atomic_fetch_add_explicit(
        &at[(at_once ? VNXI_AT_ONCE : VNXI_LATER) + place], 1,
        memory_order_release);
    vnxi_count(&at[at_once ? VNXI_AT_ONCE_NS : VNXI_LATER_NS], ns);
    vnxi_count(&at[VNXI_BYTES + op], xfer->facts.bytes);
    note_last(xfer, ns, at_once);
    if (xfer->notif != NULL) {
        vnxi_count(&at[VNXI_NOTIFS_SENT], 1);
    }
}

static void
keep_error(vnx_xfer_t *xfer, const vnx_error_t *error)
{
    vnx_error_t *copy = error != NULL ? malloc(sizeof *copy) : NULL;
    if (copy != NULL) {
        *copy = *error;
    }
    vnxi_mutex_lock(&xfer->agent->error_lock);
    vnx_error_t *old = xfer->error;
    xfer->error = copy;
    vnxi_mutex_unlock(&xfer->agent->error_lock);
    free(old);
}

/* Leave POSTED.  Only the thread that owns the post calls this. */
static void
leave_posted(vnx_xfer_t *xfer, vnx_xfer_state_t state)
{
    uint64_t word = atomic_load_explicit(&xfer->word, memory_order_relaxed);

    atomic_store_explicit(&xfer->word, (word & ~STATE_MASK) | state,
                          memory_order_release);
}

static void
note_cancelled(vnx_xfer_t *xfer)
{
    uint64_t word = atomic_load_explicit(&xfer->word, memory_order_relaxed);

    atomic_store_explicit(&xfer->cancelled_post, post_of(word),
                          memory_order_relaxed);
}

/* `record` is that of an error; the deadline may replace both.  Returns the
 * final status. */
static vnx_status_t
xfer_end(vnx_xfer_t *xfer, vnx_status_t status, vnx_error_t *record,
         bool at_once, uint64_t *end_p)
{
    uint64_t now = vnxi_clock_ns();

    status = disarm_deadline(xfer, status, record);
    vnx_xfer_state_t state = status == VNX_OK             ? VNX_XFER_DONE
                             : status == VNX_ERR_CANCELED ? VNX_XFER_CANCELLED
                                                          : VNX_XFER_FAILED;
    atomic_store_explicit(&xfer->end_ns, now, memory_order_relaxed);
    count_end(xfer, status,
              now -
                  atomic_load_explicit(&xfer->start_ns, memory_order_relaxed),
              at_once);
    if (status != VNX_OK) {
        keep_error(xfer, record);
    }
    if (state == VNX_XFER_CANCELLED) {
        note_cancelled(xfer);
    }
    leave_posted(xfer, state);
    if (status != VNX_OK) {
        atomic_fetch_add(&xfer->agent->failures, 1);
    }
    atomic_fetch_sub(&xfer->agent->in_flight, 1);
    vnxi_events_signal(&xfer->agent->events);
    *end_p = now;
    return status;
}

void
vnxi_xfer_done(void *context, void *cookie, vnx_status_t status,
               const vnx_error_t *error)
{
    vnx_xfer_t *xfer = cookie;
    vnx_error_t record;
    uint64_t end;
    (void)context;

    if (status != VNX_OK) {
        record = *error;
    }
    xfer_end(xfer, status, &record, false, &end);
    vnxi_agent_release_in_callback(drop(xfer));
}

/* Move from READY or an end state to POSTED.  False: another post is active.
 */
static bool
claim(vnx_xfer_t *xfer, vnx_xfer_state_t *before_p)
{
    uint64_t word = atomic_load(&xfer->word), posted;
    do {
        if (state_of(word) == VNX_XFER_POSTED) {
            return false;
        }
        posted = (post_of(word) + 1) << STATE_BITS | VNX_XFER_POSTED;
    } while (!atomic_compare_exchange_weak(&xfer->word, &word, posted));
    *before_p = state_of(word);
    return true;
}

static vnx_status_t
replace_notif(vnx_xfer_t *xfer, const void *notif, size_t len,
              vnx_error_t *error)
{
    bool is_none = notif == VNX_NO_NOTIF;
    unsigned char *copy = is_none ? NULL : copy_notif(notif, len);
    if (copy == NULL && !is_none) {
        return vnxi_error_no_memory(error, "vnx_xfer_post", len);
    }
    free(xfer->notif);
    xfer->notif = copy;
    xfer->notif_len = len;
    return VNX_OK;
}

/* Returns the time of the start. */
static uint64_t
note_start(vnx_xfer_t *xfer, vnx_xfer_state_t before)
{
    atomic_uint_fast64_t *at = xfer->counters->at;
    const vnxi_xfer_facts_t *facts = &xfer->facts;

    if (before != VNX_XFER_READY) {
        keep_error(xfer, NULL);
    }
    uint64_t now = vnxi_clock_ns();
    atomic_store_explicit(&xfer->end_ns, 0, memory_order_relaxed);
    atomic_store_explicit(&xfer->start_ns, now, memory_order_relaxed);
    vnxi_count(&at[VNXI_POSTED], 1);
    if (facts->rows != 1) {
        vnxi_count(&at[VNXI_MORE_ROWS], facts->rows - 1);
    }
    if (facts->pieces != 1) {
        vnxi_count(&at[VNXI_MORE_PIECES], facts->pieces - 1);
    }
    return now;
}

/* Note the time spent in the post that returns this status.  That of a
 * transfer completed at once was counted with its end. */
static void
note_posted(vnx_xfer_t *xfer, vnx_status_t status, uint64_t ns)
{
    atomic_uint_fast64_t *at = xfer->counters->at;

    atomic_store_explicit(&xfer->post_ns, ns, memory_order_relaxed);
    if (status != VNX_OK) {
        vnxi_count(&at[VNXI_POST + vnxi_histogram_place(ns)], 1);
        vnxi_count(&at[VNXI_POST_NS], ns);
    }
}

/* Pass a claimed transfer to the engine, which may finish it before this
 * returns. */
static vnx_status_t
start(vnx_xfer_t *xfer, uint64_t timeout_ns, vnx_error_t *error)
{
    vnx_status_t status = arm_deadline(xfer, timeout_ns, error);
    return status == VNX_OK
               ? xfer->agent->ops->xfer_post(xfer->exfer, xfer->notif,
                                             xfer->notif_len, error)
               : status;
}

vnx_status_t
vnx_xfer_post(vnx_xfer_t *xfer, const void *notif, size_t notif_len,
              vnx_error_t *error)
{
    return vnx_xfer_post_within(xfer, notif, notif_len, VNX_FOREVER, error);
}

vnx_status_t
vnx_xfer_post_within(vnx_xfer_t *xfer, const void *notif, size_t notif_len,
                     uint64_t timeout_ns, vnx_error_t *error)
{
    vnx_error_t local_error, *record = error != NULL ? error : &local_error;
    vnx_xfer_state_t before;

    if (!vnxi_agent_usable(xfer->agent)) {
        return vnxi_agent_refuse(xfer->agent, "vnx_xfer_post", error);
    }
    if (!claim(xfer, &before)) {
        return vnxi_error_set(error, VNX_ERR_REPOST_ACTIVE, "vnx_xfer_post",
                              "its last post has not ended yet: wait for it, "
                              "or cancel it");
    }
    if (notif != NULL) {
        vnx_status_t status = replace_notif(xfer, notif, notif_len, error);
        if (status != VNX_OK) {
            leave_posted(xfer, before);
            vnxi_events_signal(&xfer->agent->events);
            return status;
        }
    }
    uint64_t begun = note_start(xfer, before);
    vnx_xfer_retain(xfer); /* the engine's reference */
    atomic_fetch_add(&xfer->agent->in_flight, 1);
    vnx_status_t status = start(xfer, timeout_ns, record);
    if (status == VNX_IN_PROG) {
        note_posted(xfer, status, vnxi_clock_ns() - begun);
        return status;
    }
    uint64_t end;
    status = xfer_end(xfer, status, record, true, &end);
    note_posted(xfer, status, end - begun);
    vnx_xfer_drop(xfer);
    return status;
}

/* -- State -------------------------------------------------------------------
 */

vnx_xfer_state_t
vnx_xfer_state(const vnx_xfer_t *xfer)
{
    return state_of(atomic_load_explicit(&xfer->word, memory_order_acquire));
}

/* The status of a transfer that was FAILED a moment ago.  A new post clears
 * the error only after it has changed the state. */
static vnx_status_t
failed_status(const vnx_xfer_t *xfer, vnx_error_t *error)
{
    vnx_status_t status = VNX_ERR_BACKEND;

    vnxi_mutex_lock(&xfer->agent->error_lock);
    if (vnx_xfer_state(xfer) != VNX_XFER_FAILED) {
        status = VNX_IN_PROG; /* it was posted again during this call */
    } else if (xfer->error != NULL) {
        status = xfer->error->status;
        if (error != NULL) {
            *error = *xfer->error;
        }
    } else {
        vnxi_error_set(
            error, status, "vnx_xfer_post",
            "the transfer failed, and memory ran out for the cause");
    }
    vnxi_mutex_unlock(&xfer->agent->error_lock);
    return status;
}

static vnx_status_t
not_posted(const char *operation, vnx_error_t *error)
{
    return vnxi_error_set(error, VNX_ERR_NOT_POSTED, operation,
                          "the transfer was not posted: transfer() starts it");
}

vnx_status_t
vnx_xfer_status(const vnx_xfer_t *xfer, vnx_error_t *error)
{
    vnx_xfer_state_t state = vnx_xfer_state(xfer);

    switch (state) {
    case VNX_XFER_DONE:
        return VNX_OK;
    case VNX_XFER_READY:
        return not_posted("vnx_xfer_status", error);
    case VNX_XFER_CANCELLED:
        return vnxi_error_set(error, VNX_ERR_CANCELED, "vnx_xfer_status",
                              "the transfer was cancelled");
    case VNX_XFER_POSTED: /* in a forked child it would never end */
    case VNX_XFER_FAILED:
        break;
    }
    if (vnxi_fork_crossed(xfer->agent->fork_count)) {
        return vnxi_agent_refuse(xfer->agent, "vnx_xfer_status", error);
    }
    return state == VNX_XFER_POSTED ? VNX_IN_PROG : failed_status(xfer, error);
}

vnx_status_t
vnx_xfer_telemetry(const vnx_xfer_t *xfer, vnx_xfer_telemetry_t *telemetry_p,
                   vnx_error_t *error)
{
    vnx_xfer_state_t state = vnx_xfer_state(xfer);
    uint64_t start =
                 atomic_load_explicit(&xfer->start_ns, memory_order_relaxed),
             end = atomic_load_explicit(&xfer->end_ns, memory_order_relaxed);

    if (state == VNX_XFER_READY) {
        return not_posted("vnx_xfer_telemetry", error);
    }
    uint64_t post = atomic_load_explicit(&xfer->post_ns, memory_order_relaxed);
    uint64_t whole = end > start ? end - start : 0;
    if (end != 0 && post > whole) {
        post = whole; /* it ended before the post returned */
    }
    *telemetry_p = (vnx_xfer_telemetry_t){
        .start_us = start / 1000 + xfer->agent->wall_minus_mono_us,
        .post_us = post / 1000,
        .xfer_us = whole / 1000,
        .total_bytes = xfer->facts.bytes,
        .desc_count = xfer->facts.rows,
        .merged_count = xfer->facts.pieces,
        .start_ns = start,
    };
    return VNX_OK;
}

const char *
vnx_xfer_backend(const vnx_xfer_t *xfer)
{
    return xfer->agent->ops->xfer_backend(xfer->exfer);
}

void
vnx_xfer_estimate(const vnx_xfer_t *xfer, int64_t *duration_us_p,
                  int64_t *margin_us_p)
{
    xfer->agent->ops->xfer_estimate(xfer->exfer, duration_us_p, margin_us_p);
}

/* -- Cancel and release ------------------------------------------------------
 */

/* A post that is to be stopped. */
typedef struct post {
    vnx_xfer_t *xfer;
    uint64_t word; /* while it is in progress */
} post_t;

static bool
has_ended(void *context)
{
    const post_t *post = context;
    return atomic_load_explicit(&post->xfer->word, memory_order_acquire) !=
           post->word;
}

/* Return whether the post, which has ended, or a later one was cancelled. */
static bool
was_cancelled(const post_t *post)
{
    return atomic_load_explicit(&post->xfer->cancelled_post,
                                memory_order_relaxed) >= post_of(post->word);
}

static vnx_status_t
cannot_stop(const vnx_xfer_t *xfer, vnx_status_t status, vnx_error_t *error)
{
    return vnxi_error_set(error, status, "vnx_xfer_cancel",
                          "the backend (%s) cannot stop the transfer now; "
                          "it continues and the handle stays valid",
                          vnx_xfer_backend(xfer));
}

/* Stop the post.  Its thread may not have passed it to the engine yet, which
 * then forgets that it was asked to stop it.  So ask again until it has ended.
 */
static vnx_status_t
stop_post(post_t *post, vnx_error_t *error)
{
    vnx_xfer_t *xfer = post->xfer;
    vnx_agent_t *agent = xfer->agent;
    uint64_t deadline = vnxi_clock_deadline(CANCEL_DEADLINE_NS);
    uint64_t again;

    do {
        vnx_status_t status = agent->ops->xfer_cancel(xfer->exfer);
        if (status != VNX_OK && !has_ended(post)) {
            return cannot_stop(xfer, status, error);
        }
        again = vnxi_clock_deadline(CANCEL_AGAIN_NS);
        if (vnxi_events_wait(&agent->events, has_ended, post, again)) {
            return VNX_OK;
        }
    } while (again < deadline);
    return vnxi_error_set(error, VNX_ERR_TIMEOUT, "vnx_xfer_cancel",
                          "the transfer did not stop within 10 s; it "
                          "continues and the handle stays valid");
}

vnx_status_t
vnx_xfer_cancel(vnx_xfer_t *xfer, bool *stopped_p, vnx_error_t *error)
{
    post_t post = {xfer, atomic_load(&xfer->word)};

    if (vnxi_fork_crossed(xfer->agent->fork_count)) {
        return vnxi_agent_refuse(xfer->agent, "vnx_xfer_cancel", error);
    }
    if (state_of(post.word) != VNX_XFER_POSTED) {
        *stopped_p = false;
        return VNX_OK;
    }
    vnx_status_t status = stop_post(&post, error);
    if (status == VNX_OK) {
        *stopped_p = was_cancelled(&post);
    }
    return status;
}

/* Drop the user's reference.  Handles are counted here, because the engine may
 * hold its own reference a little longer. */
static void
give_up(vnx_xfer_t *xfer)
{
    vnxi_count(&xfer->agent->counters.live_xfers, (uint64_t)-1);
    vnx_xfer_drop(xfer);
}

vnx_status_t
vnx_xfer_release(vnx_xfer_t *xfer, vnx_error_t *error)
{
    bool stopped;

    if (xfer == NULL || vnxi_fork_crossed(xfer->agent->fork_count)) {
        return VNX_OK;
    }
    vnx_status_t status = vnx_xfer_cancel(xfer, &stopped, error);
    if (status == VNX_OK) {
        give_up(xfer);
    }
    return status;
}

void
vnx_xfer_abandon(vnx_xfer_t *xfer)
{
    bool stopped;

    if (xfer != NULL && !vnxi_fork_crossed(xfer->agent->fork_count)) {
        (void)vnx_xfer_cancel(xfer, &stopped, NULL);
        give_up(xfer);
    }
}
