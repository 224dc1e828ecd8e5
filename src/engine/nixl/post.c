/*
 * Posting transfers.
 *
 * Design notes.  A backend may do all of the work while posting: UCX copies
 * between processes of a host at that point, and POSIX writes into the page
 * cache.  A large transfer is therefore posted by a copy thread, unless the
 * last large one to the same peer was posted quickly, as over a network that
 * moves the bytes itself.  A small transfer that has not completed when posted
 * is polled for a few more microseconds and then left to the poller.
 */
#include <stdlib.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/pool.h"
#include "engine/nixl/xfer.h"
#include "engine/parts/pairs.h"

/* Waking the poller costs more than this. */
#define LINGER_NS 15000u

/* If posting a large transfer takes longer, the post did the copying itself.
 */
#define SLOW_NS 50000u

/* -- On any thread -------------------------------------------------------- */

/* Set the notification in the library's options, which stay NULL if the
 * transfer never had one.  The bytes may differ from those of the last post.
 * A notification to the agent itself bypasses the library, whose storage
 * backends do not send any. */
static vnx_status_t
set_notif(vnxi_exfer_t *exfer, vnx_error_t *error)
{
    const vnxi_capi_t *capi = exfer->engine->capi;

    if (exfer->notif == NULL || exfer->peer->is_self) {
        return VNX_OK;
    }
    if (exfer->options == NULL &&
        capi->create_opt_args(&exfer->options) != VNXI_CAPI_OK) {
        exfer->options = NULL;
        return vnxi_error_no_memory(error, "transfer", exfer->notif_len);
    }
    if (capi->opt_args_set_notif_msg(exfer->options, exfer->notif,
                                     exfer->notif_len) != VNXI_CAPI_OK ||
        capi->opt_args_set_has_notif(exfer->options, true) != VNXI_CAPI_OK) {
        return vnxi_error_no_memory(error, "transfer", exfer->notif_len);
    }
    return VNX_OK;
}

static vnx_status_t
check_post(vnxi_exfer_t *exfer, vnx_error_t *error)
{
    vnxi_nixl_peer_t *peer = exfer->peer;

    if (vnxi_peer_end_has_come(&peer->end)) {
        return vnxi_nixl_peer_error(peer, "transfer", error);
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
    } while (code == VNXI_CAPI_IN_PROGRESS && vnxi_clock_ns() < end);
    return code;
}

static vnx_status_t
enter_library(vnxi_exfer_t *exfer, vnx_error_t *error)
{
    vnxi_engine_t *engine = exfer->engine;
    uint64_t start = exfer->is_large ? vnxi_clock_ns() : 0;
    int code = engine->capi->post_xfer_req(engine->agent, exfer->request,
                                           exfer->options);

    if (exfer->is_large) {
        atomic_store_explicit(&exfer->peer->posts_at_once,
                              vnxi_clock_ns() - start <= SLOW_NS,
                              memory_order_relaxed);
    } else if (code == VNXI_CAPI_IN_PROGRESS) {
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
        return vnxi_error_set(error, VNX_ERR_CANCELED, "transfer",
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

/* -- On a copy thread ------------------------------------------------------
 */

/* Separate from the transfer, which may be posted again or freed before the
 * pool is done with the task. */
typedef struct posting {
    vnxi_task_t task; /* must be first */
    vnxi_exfer_t *exfer;
} posting_t;

static bool
run_posting(vnxi_task_t *task, size_t chunk)
{
    vnxi_exfer_t *exfer = ((posting_t *)task)->exfer;
    vnxi_engine_t *engine = exfer->engine;
    vnxi_engine_host_t host = engine->host;
    void *cookie = exfer->cookie;
    unsigned stage = VNXI_NIXL_QUEUED;
    vnx_status_t status;
    vnx_error_t error;
    (void)chunk;

    if (atomic_compare_exchange_strong(&exfer->stage, &stage,
                                       VNXI_NIXL_ENTERED)) {
        status = post(exfer, &error);
    } else {
        status = vnxi_error_set(&error, VNX_ERR_CANCELED, "transfer",
                                "the transfer was cancelled");
    }
    /* Decrement before the callback, which may release the last reference on
     * the engine; the engine then stops inside the callback. */
    atomic_fetch_sub(&engine->postings, 1);
    if (status != VNX_IN_PROG) {
        host.xfer_done(host.context, cookie, status,
                       status != VNX_OK ? &error : NULL);
    }
    return true;
}

static void
free_posting(vnxi_task_t *task)
{
    free(task);
}

static vnx_status_t
submit(vnxi_exfer_t *exfer, vnx_error_t *error)
{
    vnxi_engine_t *engine = exfer->engine;
    posting_t *posting = malloc(sizeof *posting);

    if (posting == NULL) {
        return vnxi_error_no_memory(error, "transfer", sizeof *posting);
    }
    posting->exfer = exfer;
    posting->task = (vnxi_task_t){.run = run_posting,
                                  .done = free_posting,
                                  .chunks = 1,
                                  .max_parallel = engine->num_threads};
    atomic_store(&exfer->stage, VNXI_NIXL_QUEUED);
    atomic_fetch_add(&engine->postings, 1);
    vnx_status_t status = vnxi_pool_submit(&posting->task, error);
    if (status != VNX_OK) {
        atomic_fetch_sub(&engine->postings, 1);
        free(posting);
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
               ? vnxi_error_set(error, VNX_ERR_CANCELED, "transfer",
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
    atomic_store_explicit(&exfer->stage, VNXI_NIXL_ENTERED,
                          memory_order_relaxed);
    if (!exfer->is_large || atomic_load_explicit(&exfer->peer->posts_at_once,
                                                 memory_order_relaxed)) {
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
    unsigned stage = VNXI_NIXL_QUEUED;
    bool stopped = atomic_compare_exchange_strong(&exfer->stage, &stage,
                                                  VNXI_NIXL_CANCELLED) ||
                   stage == VNXI_NIXL_CANCELLED;
    return stopped ? VNX_OK : VNX_ERR_NOT_SUPPORTED;
}
