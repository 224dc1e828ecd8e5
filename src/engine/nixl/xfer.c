/*
 * Transfers: creation, end and properties.  Posting is in post.c.
 *
 * Design notes.  A transfer is a request of the library, made from pieces.
 * This file chooses the backend, by trying those that have the regions of both
 * sides one at a time.  The library itself would use any backend that has
 * them, even one that cannot move between memories, and does not report which
 * one it used.
 */
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "engine/nixl/xfer.h"
#include "engine/parts/pairs.h"

/* From these sizes on, posting takes longer than about 50 us if the backend
 * copies while posting. */
#define LARGE_BYTES (256u << 10)
#define LARGE_PIECES 64u

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
    int code = VNXI_CAPI_NOT_FOUND, i;

    for (size_t n = 0; (i = choice(engine, args, set, n)) >= 0; n++) {
        vnxi_capi_request_t *request = NULL;
        code = engine->capi->create_xfer_req(
            engine->agent, (int)args->op, pieces->local, pieces->remote,
            exfer->peer->base.name, &request, engine->backends[i].options);
        if (code == VNXI_CAPI_OK) {
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
    vnx_status_t status = vnxi_nixl_walk(exfer->engine, args, pieces, error);
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
    if (code == VNXI_CAPI_OK) {
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
vnxi_nixl_xfer_give_back(vnxi_exfer_t *exfer)
{
    vnxi_engine_t *engine = exfer->engine;
    const vnxi_capi_t *capi = engine->capi;

    if (exfer->request != NULL) {
        /* A request that the library refuses to release is left to it. */
        if (capi->release_xfer_req(engine->agent, exfer->request) ==
            VNXI_CAPI_OK) {
            capi->destroy_xfer_req(exfer->request);
        }
        exfer->request = NULL;
    }
    if (exfer->options != NULL) {
        capi->destroy_opt_args(exfer->options);
        exfer->options = NULL;
    }
}

void
vnxi_nixl_xfers_drop(vnxi_engine_t *engine)
{
    vnxi_mutex_lock(&engine->xfers_lock);
    for (vnxi_exfer_t *exfer = engine->xfers; exfer != NULL;
         exfer = exfer->next) {
        vnxi_nixl_xfer_give_back(exfer);
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
    vnxi_nixl_xfer_give_back(exfer);
    vnxi_rwlock_unlock(&engine->gate);
    vnxi_list_release(exfer->local);
    vnxi_list_release(exfer->remote);
    free(exfer->pieces);
    free(exfer);
}

/* -- The end ---------------------------------------------------------------
 */

/* Post a failed transfer once more.  On a broken connection the library
 * refuses this before it sends anything.  The refusal is the only way to
 * detect a broken connection, because the library returns the same status for
 * every failure. */
static int
post_again(vnxi_exfer_t *exfer, int code)
{
    vnxi_engine_t *engine = exfer->engine;

    if (code != VNXI_CAPI_BACKEND || exfer->was_retried ||
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
    if (code == VNXI_CAPI_IN_PROGRESS) {
        return VNX_IN_PROG;
    }
    if (code == VNXI_CAPI_OK) {
        if (peer->is_self && exfer->notif != NULL) {
            exfer->engine->host.notif(exfer->engine->host.context,
                                      peer->base.name, peer->base.name_len,
                                      exfer->notif, exfer->notif_len);
        }
        atomic_fetch_add_explicit(&peer->xfers, 1, memory_order_relaxed);
        atomic_fetch_add_explicit(&peer->bytes, exfer->bytes,
                                  memory_order_relaxed);
        return VNX_OK;
    }
    error = error != NULL ? error : &unused;
    if (exfer->piece_count > 0 && vnxi_nixl_storage_fault(exfer, error)) {
        return error->status;
    }
    if (exfer->was_retried && code == VNXI_CAPI_BACKEND) {
        vnxi_nixl_peer_lose(peer, "transfer");
    }
    return vnxi_nixl_peer_failed(peer, code, "transfer", "the transfer",
                                 error);
}

/* -- Facts -----------------------------------------------------------------
 */

const char *
vnxi_nixl_xfer_backend(const vnxi_exfer_t *exfer)
{
    return exfer->backend != NULL ? exfer->backend : "none";
}

/* Zero if the backend has no estimate. */
void
vnxi_nixl_xfer_estimate(const vnxi_exfer_t *exfer, int64_t *duration_us_p,
                        int64_t *margin_us_p)
{
    vnxi_engine_t *engine = exfer->engine;
    int64_t duration = 0, margin = 0;
    int method = 0, code = VNXI_CAPI_BACKEND;

    if (exfer->request != NULL && vnxi_nixl_enter(engine)) {
        code = engine->capi->estimate_xfer_cost(
            engine->agent, exfer->request, NULL, &duration, &margin, &method);
        vnxi_nixl_leave(engine);
    }
    *duration_us_p = code == VNXI_CAPI_OK ? duration : 0;
    *margin_us_p = code == VNXI_CAPI_OK ? margin : 0;
}
