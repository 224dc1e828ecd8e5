/*
 * Transfers posted before the owner of a region has confirmed it
 * (shm/confirm.h).
 *
 * Design notes.  They are in one list per engine, which is empty except in the
 * first moments of a peer.  Every event that may let such a transfer go on, or
 * end it, calls vnxi_native_xfers_look(): an owner's answer, the end of a peer
 * or of the engine, a cancellation, and (through the transport's alarm) a
 * deadline.
 * Transfers that leave the list go to the copy threads, which copy or end
 * them.  So the caller may hold locks, and nothing is reported on the hub's
 * thread.
 *
 * Each transfer waits for one region, its first unconfirmed one, so that a
 * look is cheap however long the lists are.  A transfer enters the list only
 * if, checked under the lock, the event has not happened.  The thread that
 * causes the event changes the state first and then takes the lock.  So no
 * transfer is missed.
 */
#include <inttypes.h>

#include "base/clock.h"
#include "base/error.h"
#include "engine/native/xfer.h"

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
        error, VNX_ERR_TIMEOUT, "transfer",
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

    if (vnxi_exfer_start_later(exfer, &error) == VNX_OK) {
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
