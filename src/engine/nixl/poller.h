/*
 * Completion without polling by the client.  The library completes a transfer
 * and sends its notification only when its state is queried, and keeps
 * received notifications until they are fetched.  One thread per engine does
 * both.
 *
 * It sleeps on a condition variable while nothing is in flight and
 * notifications cannot arrive (our metadata was not given out, and no peer is
 * known).  Otherwise it polls at intervals that grow with the time since the
 * last event: from 20 us to 1 ms while transfers are in flight, from 50 us to
 * 5 ms for notifications alone.  A client that polls fetches notifications
 * itself.
 */
#ifndef VNXI_NIXL_POLLER_H
#define VNXI_NIXL_POLLER_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/clock.h"
#include "base/mutex.h"
#include "engine/engine.h"
#include "engine/nixl/capi.h"

struct vnxi_nixl_peer;

typedef struct vnxi_nixl_poller {
    pthread_t thread;
    bool is_started; /* backend_lock */
    bool *is_over;   /* set on the thread's stack: the engine no longer
                        exists */

    vnxi_mutex_t inbox_lock;
    vnxi_cond_t wake;    /* CLOCK_MONOTONIC */
    bool stop;           /* inbox_lock */
    vnxi_exfer_t *inbox; /* recently posted, or cancelled; inbox_lock */
    bool was_emptied;    /* perhaps by another thread; inbox_lock */

    vnxi_mutex_t flight_lock; /* held during calls to the library */
    vnxi_exfer_t *flights;    /* flight_lock */

    vnxi_mutex_t take_lock;       /* one taker at a time, to keep the order */
    nixl_capi_notif_map_t notifs; /* take_lock */

    atomic_bool listens; /* notifications may arrive */
    atomic_uint_fast64_t last_event_ns;
} vnxi_nixl_poller_t; /* all zeros, then init */

void vnxi_nixl_poller_init(vnxi_nixl_poller_t *poller);
void vnxi_nixl_poller_fini(vnxi_nixl_poller_t *poller);

/* Start the thread unless it is running.  Requires backend_lock. */
vnx_status_t vnxi_nixl_poller_start(vnxi_engine_t *engine, vnx_error_t *error);

/* End the thread.  Transfers in flight stay in flight. */
void vnxi_nixl_poller_stop(vnxi_engine_t *engine);

/* From now on notifications may arrive. */
void vnxi_nixl_poller_listen(vnxi_engine_t *engine);

/* More events are likely soon: poll more often. */
static inline void
vnxi_nixl_poller_touch(vnxi_nixl_poller_t *poller)
{
    atomic_store_explicit(&poller->last_event_ns, vnxi_clock_ns(),
                          memory_order_relaxed);
}

/* Add a post that the library left in progress. */
void vnxi_nixl_poller_add(vnxi_engine_t *engine, vnxi_exfer_t *exfer);

/* A large post begins: it is not cancelled. */
void vnxi_nixl_poller_begin(vnxi_exfer_t *exfer);

/* Stop a post that waits for a copy thread, which then does not make it.  The
 * poller's thread reports its end soon.  False: it has begun.  May be called
 * with the core's lock of deadlines held. */
bool vnxi_nixl_poller_cancel(vnxi_exfer_t *exfer);

/* Query the states of all transfers in flight on the calling thread, and
 * report those that have ended.  Returns how many are still in flight.  The
 * thread must hold no lock of the engine. */
size_t vnxi_nixl_poller_check(vnxi_engine_t *engine);

/* Query the states of transfers in flight to or from revoked regions, and add
 * those that have ended to *ended_p.  Returns whether any is still in flight.
 * Requires the gate. */
bool vnxi_nixl_poller_check_revoked(vnxi_engine_t *engine,
                                    vnxi_exfer_t **ended_p);

/* The same for the transfers in flight to a peer. */
bool vnxi_nixl_poller_check_peer(vnxi_engine_t *engine,
                                 const struct vnxi_nixl_peer *peer,
                                 vnxi_exfer_t **ended_p);

/* End all transfers in flight to the peer (NULL: to any) as failed with
 * `status` and `cause`, and release the library's requests.  `is_alive`: the
 * peer's bytes may still arrive, so the local regions stay registered with the
 * library.  Returns those transfers. */
vnxi_exfer_t *vnxi_nixl_poller_abort(vnxi_engine_t *engine,
                                     const struct vnxi_nixl_peer *peer,
                                     bool is_alive, vnx_status_t status,
                                     const char *cause);

/* Report ended transfers (NULL: none) to the core.  The thread must hold no
 * lock of the engine. */
void vnxi_nixl_poller_report(vnxi_engine_t *engine, vnxi_exfer_t *ended);

/* Fetch notifications that have arrived, unless another thread is doing so. */
void vnxi_nixl_take_notifs(vnxi_engine_t *engine);

#endif
