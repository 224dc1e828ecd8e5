/*
 * Completion without the client's polling: the library completes a transfer,
 * and sends its notification, only when somebody asks for its state, and keeps
 * notifications until somebody asks for them.  One thread an engine asks.
 *
 * It sleeps on a condition variable while nothing is in flight and no
 * notification can come (nobody was given our metadata, and no peer is known).
 * Otherwise it looks at intervals that grow with the time since something last
 * happened: from 20 us to 1 ms while transfers are in flight, from 50 us to
 * 5 ms for notifications alone.  A client that polls takes in notifications by
 * itself.
 */
#ifndef VNXI_NIXL_POLLER_H
#define VNXI_NIXL_POLLER_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/mutex.h"
#include "engine/engine.h"
#include "engine/nixl/capi.h"

struct vnxi_nixl_peer;

typedef struct vnxi_nixl_poller {
    pthread_t thread;
    bool is_started; /* backend_lock */
    bool *is_over;   /* the thread's own: nothing of the engine is there any
                        more */

    vnxi_mutex_t inbox_lock;
    vnxi_cond_t wake;    /* CLOCK_MONOTONIC */
    bool stop;           /* inbox_lock */
    vnxi_exfer_t *inbox; /* posted lately; inbox_lock */

    vnxi_mutex_t flight_lock; /* held while the library is asked */
    vnxi_exfer_t *flights;    /* flight_lock */

    vnxi_mutex_t take_lock;     /* one taker at a time, so that order stays */
    vnxi_capi_notifs_t *notifs; /* take_lock */

    atomic_bool listens; /* notifications may come */
    atomic_uint_fast64_t last_event_ns;
} vnxi_nixl_poller_t; /* all zeros, then init */

void vnxi_nixl_poller_init(vnxi_nixl_poller_t *poller);
void vnxi_nixl_poller_fini(vnxi_nixl_poller_t *poller);

/* Start the thread, unless it runs; with backend_lock held. */
vnx_status_t vnxi_nixl_poller_start(vnxi_engine_t *engine, vnx_error_t *error);

/* End the thread.  What is in flight stays so. */
void vnxi_nixl_poller_stop(vnxi_engine_t *engine);

/* Notifications may come from now on. */
void vnxi_nixl_poller_listen(vnxi_engine_t *engine);

/* Something happened after which more is likely to: look more often. */
void vnxi_nixl_poller_touch(vnxi_engine_t *engine);

/* A post that the library left in progress. */
void vnxi_nixl_poller_add(vnxi_engine_t *engine, vnxi_exfer_t *exfer);

/* Ask for the states of all that is in flight, now and on this thread, and
 * report what has ended.  How many are in flight after it. */
size_t vnxi_nixl_poller_turn(vnxi_engine_t *engine);

/* Is a transfer in flight to or from a region that was revoked? */
bool vnxi_nixl_poller_has_revoked(vnxi_engine_t *engine);

/* End what is in flight to the peer (NULL: all) as failed with `status` and
 * `cause`, giving the library's requests back. */
void vnxi_nixl_poller_abort(vnxi_engine_t *engine,
                            const struct vnxi_nixl_peer *peer,
                            vnx_status_t status, const char *cause);

/* Take in notifications that have come, unless somebody is at it. */
void vnxi_nixl_take_notifs(vnxi_engine_t *engine);

#endif
