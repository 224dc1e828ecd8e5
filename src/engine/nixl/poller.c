/*
 * Design notes.  A post left in progress goes to the inbox, under a lock that
 * is only held briefly.  The thread moves it to `flights`, which belong to the
 * holder of flight_lock: no other thread touches the library's requests of
 * transfers in flight.  A thread that needs transfers to end (a peer is
 * closed, memory is deregistered, the engine stops) ends them itself under
 * that lock.
 *
 * Ends are reported while the thread holds no lock of the engine: the core
 * disarms the transfer's deadline, and if nobody else refers to the transfer
 * releases it, which enters the gate.  Functions that are called with locks
 * held therefore return the ended transfers, and the caller reports them
 * later.
 */
#include "engine/nixl/poller.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/mutex.h"
#include "base/thread.h"
#include "engine/nixl/xfer.h"

#define FLIGHT_MIN_NS 20000u
#define FLIGHT_MAX_NS 1000000u
#define NOTIF_MIN_NS 50000u
#define NOTIF_MAX_NS 5000000u

void
vnxi_nixl_poller_init(vnxi_nixl_poller_t *poller)
{
    vnxi_mutex_init(&poller->inbox_lock, VNXI_RANK_POLLER_INBOX);
    vnxi_mutex_init(&poller->flight_lock, VNXI_RANK_POLLER_FLIGHT);
    vnxi_mutex_init(&poller->take_lock, VNXI_RANK_POLLER_TAKE);
    vnxi_cond_init(&poller->wake);
}

void
vnxi_nixl_poller_fini(vnxi_nixl_poller_t *poller)
{
    vnxi_cond_destroy(&poller->wake);
    vnxi_mutex_destroy(&poller->take_lock);
    vnxi_mutex_destroy(&poller->flight_lock);
    vnxi_mutex_destroy(&poller->inbox_lock);
}

/* -- Ends ------------------------------------------------------------------
 */

/* Post a failed transfer once more.  On a broken connection the library
 * refuses this before it sends anything.  The refusal is the only way to
 * detect a broken connection, because the library returns the same status for
 * every failure. */
static int
post_again(vnxi_exfer_t *exfer, int code)
{
    vnxi_engine_t *engine = exfer->engine;

    if (code != NIXL_CAPI_ERROR_BACKEND || exfer->was_retried ||
        exfer->peer->is_self || exfer->piece_count > 0 ||
        !vnxi_nixl_peer_is_there(exfer->peer)) {
        return code;
    }
    exfer->was_retried = true;
    return engine->capi->post_xfer_req(engine->agent, exfer->request,
                                       exfer->options);
}

vnx_status_t
vnxi_nixl_xfer_outcome(vnxi_exfer_t *exfer, int code, vnx_error_t *error)
{
    vnxi_nixl_peer_t *peer = exfer->peer;
    vnx_error_t unused;

    code = post_again(exfer, code);
    if (code == NIXL_CAPI_IN_PROG) {
        return VNX_IN_PROG;
    }
    if (code == NIXL_CAPI_SUCCESS) {
        if (peer->is_self && exfer->notif != NULL) {
            exfer->engine->host.notif(exfer->engine->host.context,
                                      peer->base.name, peer->base.name_len,
                                      exfer->notif, exfer->notif_len);
        }
        return VNX_OK;
    }
    error = error != NULL ? error : &unused;
    if (exfer->piece_count > 0 && vnxi_nixl_storage_fault(exfer, error)) {
        return error->status;
    }
    if (exfer->was_retried && code == NIXL_CAPI_ERROR_BACKEND) {
        vnxi_nixl_peer_lose(peer, "vnx_xfer_post");
    }
    return vnxi_nixl_peer_failed(peer, code, "vnx_xfer_post", "the transfer",
                                 error);
}

void
vnxi_nixl_request_release(vnxi_exfer_t *exfer)
{
    vnxi_engine_t *engine = exfer->engine;
    const vnxi_capi_t *capi = engine->capi;

    if (exfer->request != NULL) {
        /* A request that the library refuses to release is left to it. */
        if (capi->release_xfer_req(engine->agent, exfer->request) ==
            NIXL_CAPI_SUCCESS) {
            capi->destroy_xfer_req(exfer->request);
        }
        exfer->request = NULL;
    }
    if (exfer->options != NULL) {
        capi->destroy_opt_args(exfer->options);
        exfer->options = NULL;
    }
}

/* The callback may free the transfer. */
void
vnxi_nixl_poller_report(vnxi_engine_t *engine, vnxi_exfer_t *ended)
{
    while (ended != NULL) {
        vnxi_exfer_t *exfer = ended;
        vnx_status_t status = exfer->end;
        vnx_error_t error;

        ended = exfer->next_flight;
        if (status != VNX_OK) {
            error = exfer->error;
        }
        engine->host.xfer_done(engine->host.context, exfer->cookie, status,
                               status != VNX_OK ? &error : NULL);
    }
}

static void
take_inbox_flight_lock_held(vnxi_nixl_poller_t *poller)
{
    vnxi_mutex_lock(&poller->inbox_lock);
    vnxi_exfer_t *posted = poller->inbox;
    poller->inbox = NULL;
    poller->was_emptied |= posted != NULL;
    vnxi_mutex_unlock(&poller->inbox_lock);
    while (posted != NULL) {
        vnxi_exfer_t *next = posted->next_flight;
        posted->next_flight = poller->flights;
        poller->flights = posted;
        posted = next;
    }
}

static bool
is_revoked(const vnxi_exfer_t *exfer)
{
    return vnxi_list_unusable(exfer->local) != NULL ||
           vnxi_list_unusable(exfer->remote) != NULL;
}

/* VNX_IN_PROG, or the end with its error. */
static vnx_status_t
state_of(vnxi_exfer_t *exfer)
{
    vnxi_engine_t *engine = exfer->engine;

    if (exfer->is_cancelled) {
        return vnxi_error_set(&exfer->error, VNX_ERR_CANCELED, "vnx_xfer_post",
                              "the transfer was cancelled");
    }
    return vnxi_nixl_xfer_outcome(
        exfer, engine->capi->get_xfer_status(engine->agent, exfer->request),
        &exfer->error);
}

/* Query the transfers in flight, or only those to `peer` (NULL: any) or of
 * revoked regions.  Adds those that have ended to *ended_p; returns how many
 * of them have not. */
static size_t
query(vnxi_engine_t *engine, const vnxi_nixl_peer_t *peer, bool only_revoked,
      vnxi_exfer_t **ended_p)
{
    vnxi_nixl_poller_t *poller = &engine->poller;
    size_t left = 0;

    vnxi_mutex_lock(&poller->flight_lock);
    take_inbox_flight_lock_held(poller);
    for (vnxi_exfer_t **at = &poller->flights; *at != NULL;) {
        vnxi_exfer_t *exfer = *at;
        if ((peer != NULL && exfer->peer != peer) ||
            (only_revoked && !is_revoked(exfer))) {
            at = &exfer->next_flight;
            continue;
        }
        exfer->end = state_of(exfer);
        if (exfer->end == VNX_IN_PROG) {
            at = &exfer->next_flight;
            left++;
            continue;
        }
        *at = exfer->next_flight;
        exfer->next_flight = *ended_p;
        *ended_p = exfer;
    }
    vnxi_mutex_unlock(&poller->flight_lock);
    if (*ended_p != NULL) {
        vnxi_nixl_poller_touch(poller);
    }
    return left;
}

size_t
vnxi_nixl_poller_check(vnxi_engine_t *engine)
{
    vnxi_exfer_t *ended = NULL;
    size_t left = query(engine, NULL, false, &ended);

    vnxi_nixl_poller_report(engine, ended);
    return left;
}

bool
vnxi_nixl_poller_check_revoked(vnxi_engine_t *engine, vnxi_exfer_t **ended_p)
{
    return query(engine, NULL, true, ended_p) > 0;
}

bool
vnxi_nixl_poller_check_peer(vnxi_engine_t *engine,
                            const vnxi_nixl_peer_t *peer,
                            vnxi_exfer_t **ended_p)
{
    return query(engine, peer, false, ended_p) > 0;
}

/* Keep the local regions registered with the library: their bytes may still
 * arrive. */
static void
keep_regions(const vnxi_exfer_t *exfer)
{
    for (size_t i = 0; i < exfer->local->region_count; i++) {
        atomic_store(&vnxi_nixl_region(exfer->local->regions[i])->is_kept,
                     true);
    }
}

vnxi_exfer_t *
vnxi_nixl_poller_abort(vnxi_engine_t *engine, const vnxi_nixl_peer_t *peer,
                       bool is_alive, vnx_status_t status, const char *cause)
{
    vnxi_nixl_poller_t *poller = &engine->poller;
    vnxi_exfer_t *ended = NULL;

    vnxi_mutex_lock(&poller->flight_lock);
    take_inbox_flight_lock_held(poller);
    for (vnxi_exfer_t **at = &poller->flights; *at != NULL;) {
        vnxi_exfer_t *exfer = *at;
        if (peer != NULL && exfer->peer != peer) {
            at = &exfer->next_flight;
            continue;
        }
        *at = exfer->next_flight;
        exfer->next_flight = ended;
        ended = exfer;
        exfer->end = vnxi_error_set(&exfer->error, status, "vnx_xfer_post",
                                    "%s", cause);
        vnxi_error_peer(&exfer->error, exfer->peer->base.name,
                        exfer->peer->base.name_len);
        if (is_alive && !exfer->is_cancelled) {
            keep_regions(exfer);
        }
        if (peer != NULL) {
            vnxi_nixl_request_release(exfer);
        } else {
            exfer->request = NULL; /* left to the library's agent, which is
                                      not freed */
        }
    }
    vnxi_mutex_unlock(&poller->flight_lock);
    return ended;
}

/* -- Notifications ---------------------------------------------------------
 */

static void
deliver(vnxi_engine_t *engine, const char *sender)
{
    const vnxi_capi_t *capi = engine->capi;
    nixl_capi_notif_map_t notifs = engine->poller.notifs;
    const void *message = NULL;
    size_t count = 0, len = 0;

    capi->notif_map_get_notifs_size(notifs, sender, &count);
    for (size_t i = 0; i < count; i++) {
        if (capi->notif_map_get_notif(notifs, sender, i, &message, &len) ==
            NIXL_CAPI_SUCCESS) {
            engine->host.notif(engine->host.context, sender, strlen(sender),
                               message, len);
        }
    }
}

void
vnxi_nixl_take_notifs(vnxi_engine_t *engine)
{
    vnxi_nixl_poller_t *poller = &engine->poller;
    const vnxi_capi_t *capi = engine->capi;
    const char *sender = NULL;
    size_t senders = 0;

    if (vnxi_mutex_trylock(&poller->take_lock) != 0) {
        return;
    }
    if (capi->get_notifs(engine->agent, poller->notifs, NULL) ==
        NIXL_CAPI_SUCCESS) {
        capi->notif_map_size(poller->notifs, &senders);
    }
    for (size_t i = 0; i < senders; i++) {
        if (capi->notif_map_get_agent_at(poller->notifs, i, &sender) ==
            NIXL_CAPI_SUCCESS) {
            deliver(engine, sender);
        }
    }
    if (senders > 0) {
        capi->notif_map_clear(poller->notifs);
        vnxi_nixl_poller_touch(poller);
    }
    vnxi_mutex_unlock(&poller->take_lock);
}

/* -- The thread ------------------------------------------------------------
 */

void
vnxi_nixl_poller_listen(vnxi_engine_t *engine)
{
    vnxi_nixl_poller_t *poller = &engine->poller;

    if (!atomic_exchange(&poller->listens, true)) {
        vnxi_mutex_lock(&poller->inbox_lock);
        vnxi_cond_signal(&poller->wake);
        vnxi_mutex_unlock(&poller->inbox_lock);
    }
}

static void
add_inbox_lock_held(vnxi_nixl_poller_t *poller, vnxi_exfer_t *exfer)
{
    if (poller->inbox == NULL) {
        vnxi_cond_signal(&poller->wake);
    }
    exfer->next_flight = poller->inbox;
    poller->inbox = exfer;
}

void
vnxi_nixl_poller_add(vnxi_engine_t *engine, vnxi_exfer_t *exfer)
{
    vnxi_nixl_poller_t *poller = &engine->poller;

    vnxi_nixl_poller_touch(poller);
    vnxi_mutex_lock(&poller->inbox_lock);
    add_inbox_lock_held(poller, exfer);
    vnxi_mutex_unlock(&poller->inbox_lock);
}

void
vnxi_nixl_poller_begin(vnxi_exfer_t *exfer)
{
    vnxi_nixl_poller_t *poller = &exfer->engine->poller;

    vnxi_mutex_lock(&poller->inbox_lock);
    exfer->is_cancelled = false;
    vnxi_mutex_unlock(&poller->inbox_lock);
}

bool
vnxi_nixl_poller_cancel(vnxi_exfer_t *exfer)
{
    vnxi_engine_t *engine = exfer->engine;
    vnxi_nixl_poller_t *poller = &engine->poller;

    vnxi_mutex_lock(&poller->inbox_lock);
    if (!exfer->is_cancelled && vnxi_pool_withdraw(&exfer->task)) {
        exfer->is_cancelled = true;
        add_inbox_lock_held(poller, exfer);
        atomic_fetch_sub(&engine->postings, 1);
    }
    bool is_cancelled = exfer->is_cancelled;
    vnxi_mutex_unlock(&poller->inbox_lock);
    return is_cancelled;
}

/* A fraction of the time since the last event, within limits. */
static uint64_t
pause_ns(vnxi_engine_t *engine, size_t in_flight)
{
    vnxi_nixl_poller_t *poller = &engine->poller;
    uint64_t last =
        atomic_load_explicit(&poller->last_event_ns, memory_order_relaxed);
    uint64_t now = vnxi_clock_ns(), quiet = now > last ? now - last : 0;
    uint64_t min = in_flight > 0 ? FLIGHT_MIN_NS : NOTIF_MIN_NS;
    uint64_t max = in_flight > 0 ? FLIGHT_MAX_NS : NOTIF_MAX_NS;

    if (in_flight == 0 && !atomic_load(&poller->listens)) {
        return UINT64_MAX;
    }
    quiet /= 8;
    return quiet < min ? min : quiet > max ? max : quiet;
}

/* Sleep until the pause is over, a post arrives or the first listener appears.
 * A post may have arrived, and another thread may have taken it out of the
 * inbox, since the caller counted the transfers in flight.  False: stop. */
static bool
rest(vnxi_engine_t *engine, size_t in_flight)
{
    vnxi_nixl_poller_t *poller = &engine->poller;
    uint64_t pause = pause_ns(engine, in_flight);
    struct timespec until = vnxi_clock_timespec(vnxi_clock_deadline(pause));

    vnxi_mutex_lock(&poller->inbox_lock);
    bool may_fly = in_flight == 0 && poller->was_emptied;
    poller->was_emptied = false;
    if (!poller->stop && poller->inbox == NULL && !may_fly) {
        if (pause != UINT64_MAX) {
            vnxi_cond_timedwait(&poller->wake, &poller->inbox_lock, &until);
        } else if (!atomic_load(&poller->listens)) {
            vnxi_cond_wait(&poller->wake, &poller->inbox_lock);
        }
    }
    bool goes_on = !poller->stop;
    vnxi_mutex_unlock(&poller->inbox_lock);
    return goes_on;
}

static void *
poller_main(void *context)
{
    vnxi_engine_t *engine = context;
    size_t in_flight = 0;
    bool is_over = false;

    engine->poller.is_over = &is_over;
    prctl(PR_SET_NAME, "vnx-nixl");
    prctl(PR_SET_TIMERSLACK, 1000ul); /* pauses can be as short as 20 us */
    while (!is_over && rest(engine, in_flight)) {
        in_flight = vnxi_nixl_poller_check(engine);
        if (!is_over && atomic_load(&engine->poller.listens)) {
            vnxi_nixl_take_notifs(engine);
        }
    }
    return NULL;
}

vnx_status_t
vnxi_nixl_poller_start(vnxi_engine_t *engine, vnx_error_t *error)
{
    vnxi_nixl_poller_t *poller = &engine->poller;

    if (poller->notifs == NULL &&
        engine->capi->create_notif_map(&poller->notifs) != NIXL_CAPI_SUCCESS) {
        poller->notifs = NULL;
        return vnxi_error_no_memory(error, "vnx_agent_create_backend", 0);
    }
    if (poller->is_started) {
        return VNX_OK;
    }
    int err = vnxi_thread_start(&poller->thread, poller_main, engine);
    if (err != 0) {
        return vnxi_error_set(error, VNX_ERR_NO_MEMORY,
                              "vnx_agent_create_backend",
                              "cannot start a thread: %s", strerror(err));
    }
    poller->is_started = true;
    return VNX_OK;
}

void
vnxi_nixl_poller_stop(vnxi_engine_t *engine)
{
    vnxi_nixl_poller_t *poller = &engine->poller;

    vnxi_mutex_lock(&poller->inbox_lock);
    poller->stop = true;
    vnxi_cond_signal(&poller->wake);
    vnxi_mutex_unlock(&poller->inbox_lock);
    if (poller->is_started &&
        pthread_equal(poller->thread, pthread_self()) != 0) {
        /* The end of a transfer released the last reference on the agent, so
         * this is the poller's own thread. */
        *poller->is_over = true;
        pthread_detach(poller->thread);
    } else if (poller->is_started) {
        pthread_join(poller->thread, NULL);
    }
    poller->is_started = false;
}
