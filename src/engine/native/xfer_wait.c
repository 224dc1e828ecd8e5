/*
 * Transfers that were posted before the owner of a region has confirmed it
 * (confirm.h).
 *
 * Design notes.  They are in one list of the engine, which is empty but for
 * the first moments of a peer.  Whatever may let one go on, or end it, calls
 * vnxi_native_xfers_look(): an answer of an owner, the end of a peer or of the
 * engine, a cancellation, and, by the hub's alarm, a deadline.  What leaves
 * the list goes to the copy threads, which copy or end it: so the caller may
 * hold locks, and nothing is reported on the hub's thread.
 *
 * Each waits for one region, the first that is unconfirmed, so that a look
 * costs little however long the lists are.  A transfer enters the list only if
 * what it waits for has not come, seen under the lock; who brings it changes
 * the state first and then takes the lock.  So none is overlooked.
 */
#include <inttypes.h>

#include "base/clock.h"
#include "base/error.h"
#include "engine/native/xfer.h"

/* An owner answers in microseconds, unless it is stopped or starved. */
#define ANSWER_WAIT_NS (10u * UINT64_C(1000000000))

/* When no thread could be had. */
#define AGAIN_NS (20u * UINT64_C(1000000))

/* What it waits for has come, or nothing will. */
static bool
is_ready(const vnxi_exfer_t *exfer, uint64_t now)
{
    return exfer->awaited == NULL ||
           vnxi_region_state(exfer->awaited) != VNXI_REGION_UNCONFIRMED ||
           atomic_load(&exfer->stop) || exfer->due <= now ||
           vnxi_native_peer_gone(exfer->peer) ||
           atomic_load(&exfer->engine->stopped);
}

/* False: it need not wait.  After true it may have ended. */
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
        vnxi_hub_alarm(atomic_load(&engine->hub), due);
    }
    return enters;
}

static vnx_status_t
too_late(const vnxi_exfer_t *exfer, const vnxi_region_t *region,
         vnx_error_t *error)
{
    const vnxi_peer_t *peer = &exfer->peer->base;

    vnxi_error_set(
        error, VNX_ERR_TIMEOUT, "transfer",
        "its owner has not confirmed the region at 0x%" PRIx64 " of %" PRIu64
        " bytes within %u s: is its process stopped?",
        region->addr, region->len, (unsigned)(ANSWER_WAIT_NS / 1000000000u));
    vnxi_error_peer(error, peer->name, peer->name_len);
    return VNX_ERR_TIMEOUT;
}

/* To the copy threads, which end at once what has failed or was cancelled.
 * Without a thread it is tried again, as long as it takes: it is in flight,
 * and only they can report its end. */
static void
hand_over(vnxi_exfer_t *exfer)
{
    vnxi_engine_t *engine = exfer->engine;
    vnx_error_t error;

    if (vnxi_exfer_start(exfer, &error) == VNX_OK) {
        return;
    }
    vnxi_mutex_lock(&engine->waiting_lock);
    exfer->awaited = NULL;
    exfer->next = engine->waiting;
    engine->waiting = exfer;
    vnxi_mutex_unlock(&engine->waiting_lock);
    vnxi_hub_alarm(atomic_load(&engine->hub), vnxi_clock_deadline(AGAIN_NS));
}

/* Hand it over, or put it into the list. */
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
        vnxi_exfer_fail(exfer, status, &error);
    }
    hand_over(exfer);
}

void
vnxi_exfer_wait(vnxi_exfer_t *exfer)
{
    exfer->due = vnxi_clock_deadline(ANSWER_WAIT_NS);
    go_on(exfer);
}

/* Take out those that are ready.  *due_p: when the next one gives up; 0: there
 * is none. */
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
        vnxi_hub_alarm(atomic_load(&engine->hub), due);
    }
    while (ready != NULL) {
        vnxi_exfer_t *exfer = ready;
        ready = exfer->next;
        go_on(exfer);
    }
}
