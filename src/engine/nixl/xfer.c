/*
 * Transfers: creating, posting, cancelling and releasing them.  They end in
 * poller.c.
 *
 * Design notes.  A transfer is a request of the library, made from pieces.
 * This file chooses the backend, by trying those that have the regions of both
 * sides one at a time.  The library itself would use any backend that has
 * them, even one that cannot move between memories, and does not report which
 * one it used.
 *
 * A backend may do all of the work while posting: UCX copies between processes
 * of a host at that point, and POSIX writes into the page cache.  A large
 * transfer is therefore posted by a copy thread, unless one to the same peer
 * that was as large was posted quickly, as over a network that moves the bytes
 * itself.  The agent itself stands for all storage, so its posts say nothing
 * about each other.  A small transfer that has not completed when posted is
 * polled for a few more microseconds and then left to the poller.
 */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/fork.h"
#include "base/pool.h"
#include "engine/nixl/xfer.h"
#include "engine/parts/pairs.h"

/* From these sizes on, posting takes longer than about 50 us if the backend
 * copies while posting. */
#define LARGE_BYTES (256u << 10)
#define LARGE_PIECES 64u

/* Waking the poller costs more than this. */
#define LINGER_NS 15000u

/* If posting a large transfer takes longer, the post did the copying itself.
 */
#define SLOW_NS 50000u

#define MEMORY (1u << VNX_MEM_DRAM | 1u << VNX_MEM_VRAM)

/* -- Choosing a backend ----------------------------------------------------
 */

/* The backends that have every region of the list and that the list may use.
 */
static uint32_t
list_backends(const vnxi_list_t *list)
{
    uint32_t set = list->backends != 0 ? (uint32_t)list->backends : UINT32_MAX;

    for (size_t i = 0; i < list->region_count; i++) {
        set &= (uint32_t)atomic_load(
            &vnxi_nixl_region(list->regions[i])->backends);
    }
    return set;
}

/* The backends that the caller allows. */
static uint32_t
allowed(vnxi_engine_t *engine, const vnxi_xfer_args_t *args)
{
    uint32_t set = vnxi_nixl_all_backends(engine);

    if (args->local->backends != 0) {
        set &= (uint32_t)args->local->backends;
    }
    if (args->remote->backends != 0) {
        set &= (uint32_t)args->remote->backends;
    }
    return set;
}

static vnx_status_t
no_common_backend(vnxi_engine_t *engine, const vnxi_xfer_args_t *args,
                  vnx_error_t *error)
{
    char local[64], remote[64];
    uint32_t all = vnxi_nixl_all_backends(engine);

    vnxi_nixl_backend_names(engine, list_backends(args->local) & all, local,
                            sizeof local);
    vnxi_nixl_backend_names(engine, list_backends(args->remote) & all, remote,
                            sizeof remote);
    vnxi_error_set(error, VNX_ERR_NOT_FOUND, args->operation,
                   "no backend has the regions of both sides: the local rows "
                   "are registered with %s, the remote ones with %s",
                   local, remote);
    vnxi_error_peer(error, args->remote->peer->name,
                    args->remote->peer->name_len);
    return VNX_ERR_NOT_FOUND;
}

/* Between memories, storage backends are tried last. */
static bool
comes_first(const vnxi_engine_t *engine, const vnxi_xfer_args_t *args,
            size_t backend)
{
    uint32_t mems = 1u << args->local->mem | 1u << args->remote->mem;
    return (mems & ~MEMORY) != 0 ||
           (engine->backends[backend].mems & ~MEMORY) == 0;
}

/* Number `n` of the set, in the order of trying; -1: past the end. */
static int
choice(const vnxi_engine_t *engine, const vnxi_xfer_args_t *args, uint32_t set,
       size_t n)
{
    for (int round = 0; round < 2; round++) {
        for (size_t i = 0; i < VNXI_NIXL_BACKENDS_MAX; i++) {
            if ((set >> i & 1u) != 0 &&
                comes_first(engine, args, i) == (round == 0) && n-- == 0) {
                return (int)i;
            }
        }
    }
    return -1;
}

static int
try_backends(vnxi_exfer_t *exfer, const vnxi_xfer_args_t *args,
             const vnxi_nixl_pieces_t *pieces, uint32_t set)
{
    vnxi_engine_t *engine = exfer->engine;
    int code = NIXL_CAPI_ERROR_NOT_FOUND, i;

    for (size_t n = 0; (i = choice(engine, args, set, n)) >= 0; n++) {
        nixl_capi_xfer_req_t request = NULL;
        code = engine->capi->create_xfer_req(
            engine->agent, (int)args->op, pieces->local, pieces->remote,
            exfer->peer->base.name, &request, engine->backends[i].options);
        if (code == NIXL_CAPI_SUCCESS) {
            exfer->request = request;
            exfer->backend = engine->backends[i].name;
            return code;
        }
    }
    return code;
}

/* -- Preparing -------------------------------------------------------------
 */

static void
enlist(vnxi_exfer_t *exfer)
{
    vnxi_engine_t *engine = exfer->engine;

    vnxi_mutex_lock(&engine->xfers_lock);
    exfer->next = engine->xfers;
    if (exfer->next != NULL) {
        exfer->next->previous = exfer;
    }
    engine->xfers = exfer;
    vnxi_mutex_unlock(&engine->xfers_lock);
}

static void
delist(vnxi_exfer_t *exfer)
{
    vnxi_engine_t *engine = exfer->engine;

    vnxi_mutex_lock(&engine->xfers_lock);
    if (exfer->previous != NULL) {
        exfer->previous->next = exfer->next;
    } else {
        engine->xfers = exfer->next;
    }
    if (exfer->next != NULL) {
        exfer->next->previous = exfer->previous;
    }
    vnxi_mutex_unlock(&engine->xfers_lock);
}

/* Make the request by index, without pieces, if possible and worthwhile. */
static bool
make_by_index(vnxi_exfer_t *exfer, const vnxi_xfer_args_t *args, uint32_t set,
              vnxi_nixl_pieces_t *pieces)
{
    int backend = choice(exfer->engine, args, set, 0);

    return backend >= 0 && vnxi_list_unusable(args->local) == NULL &&
           vnxi_list_unusable(args->remote) == NULL &&
           vnxi_nixl_make_indexed(exfer, args, (size_t)backend, pieces);
}

/* Requires the gate. */
static vnx_status_t
make_request(vnxi_exfer_t *exfer, const vnxi_xfer_args_t *args,
             vnxi_nixl_pieces_t *pieces, vnx_error_t *error)
{
    vnxi_nixl_peer_t *peer = exfer->peer;
    uint32_t set = list_backends(args->local) & list_backends(args->remote);

    if (vnxi_peer_end_has_come(&peer->end)) {
        return vnxi_nixl_peer_error(peer, args->operation, error);
    }
    if (make_by_index(exfer, args, set, pieces)) {
        return VNX_OK;
    }
    vnx_status_t status =
        vnxi_nixl_pieces_build(exfer->engine, args, pieces, error);
    if (status != VNX_OK) {
        vnxi_error_peer(error, peer->base.name, peer->base.name_len);
        return status;
    }
    if (vnxi_list_unusable(args->local) != NULL ||
        vnxi_list_unusable(args->remote) != NULL) {
        return VNX_OK; /* posting it will fail at the checks */
    }
    /* Of overlapping regions only one is known here; the library checks all.
     */
    int code = try_backends(exfer, args, pieces,
                            set != 0 ? set : allowed(exfer->engine, args));
    if (code == NIXL_CAPI_SUCCESS) {
        return VNX_OK;
    }
    return set == 0 ? no_common_backend(exfer->engine, args, error)
                    : vnxi_nixl_peer_failed(peer, code, args->operation,
                                            "creating the transfer", error);
}

vnx_status_t
vnxi_nixl_xfer_prepare(vnxi_engine_t *engine, const vnxi_xfer_args_t *args,
                       vnxi_exfer_t **exfer_p, vnxi_xfer_facts_t *facts_p,
                       vnx_error_t *error)
{
    vnxi_nixl_pieces_t pieces = {0};
    vnxi_exfer_t *exfer = malloc(sizeof *exfer);

    if (exfer == NULL) {
        return vnxi_error_no_memory(error, args->operation, sizeof *exfer);
    }
    memset(exfer, 0, offsetof(vnxi_exfer_t, error));
    exfer->engine = engine;
    exfer->peer = vnxi_nixl_peer(args->remote->peer);
    exfer->op = args->op;
    exfer->cookie = args->cookie;
    if (!vnxi_nixl_enter(engine)) {
        free(exfer);
        return vnxi_nixl_stopped(args->operation, error);
    }
    vnx_status_t status = make_request(exfer, args, &pieces, error);
    if (status == VNX_OK) {
        *facts_p = (vnxi_xfer_facts_t){pieces.bytes, args->local_rows.count,
                                       pieces.count};
        exfer->bytes = pieces.bytes;
        exfer->piece_total = pieces.count;
        exfer->is_large =
            pieces.bytes > LARGE_BYTES || pieces.count > LARGE_PIECES;
        exfer->pieces = pieces.storage;
        exfer->piece_count = pieces.storage != NULL ? pieces.count : 0;
        pieces.storage = NULL;
        exfer->local = vnxi_list_retain((vnxi_list_t *)args->local);
        exfer->remote = vnxi_list_retain((vnxi_list_t *)args->remote);
        enlist(exfer);
        *exfer_p = exfer;
    } else {
        free(exfer);
    }
    vnxi_nixl_pieces_fini(engine, &pieces);
    vnxi_nixl_leave(engine);
    return status;
}

void
vnxi_nixl_xfers_drop(vnxi_engine_t *engine)
{
    vnxi_mutex_lock(&engine->xfers_lock);
    for (vnxi_exfer_t *exfer = engine->xfers; exfer != NULL;
         exfer = exfer->next) {
        vnxi_nixl_request_release(exfer);
    }
    vnxi_mutex_unlock(&engine->xfers_lock);
}

/* Waits while stop() drops the requests; safe before and after that. */
void
vnxi_nixl_xfer_release(vnxi_exfer_t *exfer)
{
    vnxi_engine_t *engine = exfer->engine;

    vnxi_rwlock_read(&engine->gate);
    delist(exfer);
    vnxi_nixl_request_release(exfer);
    vnxi_rwlock_unlock(&engine->gate);
    vnxi_list_release(exfer->local);
    vnxi_list_release(exfer->remote);
    free(exfer->pieces);
    free(exfer);
}

/* -- Posting on any thread ------------------------------------------------ */

/* Set the notification in the library's options, which stay NULL if the
 * transfer never had one.  The last post may have had another one, or this one
 * has none any more.
 * A notification to the agent itself bypasses the library, whose storage
 * backends do not send any. */
static vnx_status_t
set_notif(vnxi_exfer_t *exfer, vnx_error_t *error)
{
    const vnxi_capi_t *capi = exfer->engine->capi;

    if (exfer->peer->is_self ||
        (exfer->notif == NULL && exfer->options == NULL)) {
        return VNX_OK;
    }
    if (exfer->notif == NULL) {
        return capi->opt_args_set_has_notif(exfer->options, false) ==
                       NIXL_CAPI_SUCCESS
                   ? VNX_OK
                   : vnxi_error_no_memory(error, "vnx_xfer_post", 0);
    }
    if (exfer->options == NULL &&
        capi->create_opt_args(&exfer->options) != NIXL_CAPI_SUCCESS) {
        exfer->options = NULL;
        return vnxi_error_no_memory(error, "vnx_xfer_post", exfer->notif_len);
    }
    if (capi->opt_args_set_notif_msg(exfer->options, exfer->notif,
                                     exfer->notif_len) != NIXL_CAPI_SUCCESS ||
        capi->opt_args_set_has_notif(exfer->options, true) !=
            NIXL_CAPI_SUCCESS) {
        return vnxi_error_no_memory(error, "vnx_xfer_post", exfer->notif_len);
    }
    return VNX_OK;
}

static vnx_status_t
check_post(const vnxi_exfer_t *exfer, vnx_error_t *error)
{
    vnxi_nixl_peer_t *peer = exfer->peer;

    if (vnxi_peer_end_has_come(&peer->end)) {
        return vnxi_nixl_peer_error(peer, "vnx_xfer_post", error);
    }
    vnx_status_t status =
        vnxi_pairs_check_regions(exfer->local, "local", &peer->base, error);
    return status == VNX_OK ? vnxi_pairs_check_regions(exfer->remote, "remote",
                                                       &peer->base, error)
                            : status;
}

static int
linger(vnxi_exfer_t *exfer)
{
    vnxi_engine_t *engine = exfer->engine;
    uint64_t end = vnxi_clock_deadline(LINGER_NS);
    int code;

    do {
        code = engine->capi->get_xfer_status(engine->agent, exfer->request);
    } while (code == NIXL_CAPI_IN_PROG && vnxi_clock_ns() < end);
    return code;
}

/* Return whether a large post is expected to return quickly. */
static bool
is_quick(const vnxi_exfer_t *exfer)
{
    const vnxi_nixl_peer_t *peer = exfer->peer;

    return !peer->is_self &&
           exfer->bytes <= atomic_load_explicit(&peer->quick_bytes,
                                                memory_order_relaxed) &&
           exfer->piece_total <=
               atomic_load_explicit(&peer->quick_pieces, memory_order_relaxed);
}

/* Learn from the time that a large post took.  A slow one says nothing about
 * smaller ones, unless it was expected to be quick. */
static void
note_post(const vnxi_exfer_t *exfer, uint64_t ns)
{
    vnxi_nixl_peer_t *peer = exfer->peer;
    uint64_t bytes =
        atomic_load_explicit(&peer->quick_bytes, memory_order_relaxed);
    uint64_t pieces =
        atomic_load_explicit(&peer->quick_pieces, memory_order_relaxed);

    if (ns <= SLOW_NS) {
        bytes = exfer->bytes > bytes ? exfer->bytes : bytes;
        pieces = exfer->piece_total > pieces ? exfer->piece_total : pieces;
    } else if (is_quick(exfer)) {
        bytes = pieces = 0;
    }
    atomic_store_explicit(&peer->quick_bytes, bytes, memory_order_relaxed);
    atomic_store_explicit(&peer->quick_pieces, pieces, memory_order_relaxed);
}

static vnx_status_t
enter_library(vnxi_exfer_t *exfer, vnx_error_t *error)
{
    vnxi_engine_t *engine = exfer->engine;
    uint64_t start = exfer->is_large ? vnxi_clock_ns() : 0;
    int code = engine->capi->post_xfer_req(engine->agent, exfer->request,
                                           exfer->options);

    if (exfer->is_large) {
        note_post(exfer, vnxi_clock_ns() - start);
    } else if (code == NIXL_CAPI_IN_PROG) {
        code = linger(exfer);
    }
    vnx_status_t status = vnxi_nixl_xfer_outcome(exfer, code, error);
    if (status == VNX_IN_PROG) {
        vnxi_nixl_poller_add(engine, exfer);
    }
    return status;
}

/* Hold the gate over both the checks and the post.  A thread that deregisters
 * memory or closes the peer is then either seen by the checks or finds the
 * transfer in flight. */
static vnx_status_t
post(vnxi_exfer_t *exfer, vnx_error_t *error)
{
    vnxi_engine_t *engine = exfer->engine;

    if (!vnxi_nixl_enter(engine)) {
        return vnxi_error_set(error, VNX_ERR_CANCELED, "vnx_xfer_post",
                              "the agent was closed");
    }
    vnx_status_t status = check_post(exfer, error);
    if (status == VNX_OK) {
        status = set_notif(exfer, error);
    }
    if (status == VNX_OK) {
        status = enter_library(exfer, error);
    }
    vnxi_nixl_leave(engine);
    return status;
}

/* -- Posting on a copy thread ----------------------------------------------
 */

static bool
run_nothing(vnxi_task_t *task, size_t chunk)
{
    (void)task, (void)chunk;
    return true;
}

/* Called as the end of the task, when the pool does not refer to it any more:
 * the transfer may be posted again or freed before this returns.  And
 * vnxi_pool_settle(), which promises to be short, does not wait for it. */
static void
run_posting(vnxi_task_t *task)
{
    vnxi_exfer_t *exfer = (vnxi_exfer_t *)task;
    vnxi_engine_t *engine = exfer->engine;
    vnxi_engine_host_t host = engine->host;
    void *cookie = exfer->cookie;
    vnx_error_t error;
    vnx_status_t status = post(exfer, &error);

    /* Decrement before the callback, which may release the last reference on
     * the engine; the engine then stops inside the callback. */
    atomic_fetch_sub(&engine->postings, 1);
    if (status != VNX_IN_PROG) {
        host.xfer_done(host.context, cookie, status,
                       status != VNX_OK ? &error : NULL);
    }
}

static vnx_status_t
submit(vnxi_exfer_t *exfer, vnx_error_t *error)
{
    vnxi_engine_t *engine = exfer->engine;

    exfer->task = (vnxi_task_t){.run = run_nothing,
                                .done = run_posting,
                                .chunks = 1,
                                .max_parallel = engine->num_threads};
    atomic_fetch_add(&engine->postings, 1);
    vnx_status_t status = vnxi_pool_submit(&exfer->task, error);
    if (status != VNX_OK) {
        atomic_fetch_sub(&engine->postings, 1);
        return status;
    }
    return VNX_IN_PROG;
}

/* -- Posting and stopping --------------------------------------------------
 */

/* Report immediate failures from the caller's thread, also for a large
 * transfer. */
static vnx_status_t
check_early(vnxi_exfer_t *exfer, vnx_error_t *error)
{
    return atomic_load(&exfer->engine->stopped)
               ? vnxi_error_set(error, VNX_ERR_CANCELED, "vnx_xfer_post",
                                "the agent was closed")
               : check_post(exfer, error);
}

vnx_status_t
vnxi_nixl_xfer_post(vnxi_exfer_t *exfer, const void *notif, size_t notif_len,
                    vnx_error_t *error)
{
    exfer->notif = notif;
    exfer->notif_len = notif_len;
    exfer->was_retried = false;
    if (!exfer->is_large) {
        return post(exfer, error);
    }
    vnxi_nixl_poller_begin(exfer);
    if (is_quick(exfer)) {
        return post(exfer, error);
    }
    vnx_status_t status = check_early(exfer, error);
    return status == VNX_OK ? submit(exfer, error) : status;
}

/* A post that waits for a copy thread can be stopped.  A request inside the
 * library cannot: releasing it would neither wait for its bytes nor for the
 * backend to finish with it. */
vnx_status_t
vnxi_nixl_xfer_cancel(vnxi_exfer_t *exfer)
{
    return vnxi_nixl_poller_cancel(exfer) ? VNX_OK : VNX_ERR_NOT_SUPPORTED;
}

/* -- Facts -----------------------------------------------------------------
 */

const char *
vnxi_nixl_xfer_backend(const vnxi_exfer_t *exfer)
{
    return exfer->backend != NULL ? exfer->backend : "none";
}

/* Zero if the backend has no estimate, or the transfer cannot be posted any
 * more.  The library must not see the request then: it may be released, or
 * refer to regions that the library has freed.  Hold the gate over both the
 * checks and the call, as for a post. */
void
vnxi_nixl_xfer_estimate(const vnxi_exfer_t *exfer, int64_t *duration_us_p,
                        int64_t *margin_us_p)
{
    vnxi_engine_t *engine = exfer->engine;
    int64_t duration = 0, margin = 0;
    nixl_capi_cost_t method = NIXL_CAPI_COST_ANALYTICAL_BACKEND;
    int code = NIXL_CAPI_ERROR_BACKEND;

    if (!vnxi_fork_crossed(engine->fork_count) && vnxi_nixl_enter(engine)) {
        if (check_post(exfer, NULL) == VNX_OK) {
            code = engine->capi->estimate_xfer_cost(
                engine->agent, exfer->request, NULL, &duration, &margin,
                &method);
        }
        vnxi_nixl_leave(engine);
    }
    *duration_us_p = code == NIXL_CAPI_SUCCESS ? duration : 0;
    *margin_us_p = code == NIXL_CAPI_SUCCESS ? margin : 0;
}
