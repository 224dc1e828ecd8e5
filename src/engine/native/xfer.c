/*
 * Making and posting transfers of the native engine.  The caller's thread
 * copies a small transfer at once; a larger one is started in parts
 * (xfer_run.c).
 */
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "engine/native/xfer.h"
#include "engine/parts/list_block.h"

/* Limits for copying on the caller's thread: about 50 us of work at the lower
 * of the measured speeds (4 GB/s through the kernel, 0.4 us per piece; 6 GB/s
 * directly). */
#define INLINE_BYTES_VM (64u << 10)
#define INLINE_BYTES_DIRECT (128u << 10)
#define INLINE_PIECES 64u

/* -- Preparing -------------------------------------------------------------
 */

static bool
is_direct(const vnxi_plan_t *plan)
{
    return plan->routes == 1u << VNXI_ROUTE_COPY;
}

static bool
fits_inline(const vnxi_plan_t *plan)
{
    return plan->chunk_count == 1 && plan->pieces <= INLINE_PIECES &&
           plan->bytes <=
               (is_direct(plan) ? INLINE_BYTES_DIRECT : INLINE_BYTES_VM);
}

/* The planner's callback. */
static vnx_status_t
no_route(const vnxi_plan_args_t *args, size_t place, const vnx_desc_t *remote,
         vnx_error_t *error)
{
    const vnxi_list_t *list = args->remote;
    vnx_status_t status = vnxi_native_no_route(
        args->context, args->local->mem, list->mem,
        vnxi_list_region_of(list, remote), args->operation, error);
    vnxi_error_desc(error, place, remote->addr, remote->len, remote->dev);
    return status;
}

/* Create the part of one transport. */
static vnx_status_t
prepare_part(vnxi_exfer_t *exfer, unsigned t, vnx_error_t *error)
{
    const vnxi_transport_t *transport = vnxi_transports[t];
    const vnxi_part_args_t args = {
        .conn = vnxi_native_conn(exfer->peer, t),
        .plan = &exfer->plan,
        .op = exfer->op,
        .local = exfer->local,
        .remote = exfer->remote,
        .context = exfer,
        .go_on = vnxi_exfer_check_part,
        .done = vnxi_exfer_part_done,
    };

    if (transport->copy_chunk != NULL) {
        exfer->part_count += exfer->copied == 0;
        exfer->copied |= 1u << t;
        return VNX_OK;
    }
    exfer->part_count++;
    exfer->is_small = false;
    if (args.conn == NULL) { /* of a region that is borrowed */
        return vnxi_native_no_route(exfer->peer, exfer->local->mem,
                                    exfer->remote->mem, NULL, exfer->operation,
                                    error);
    }
    return transport->part_create(&args, &exfer->parts[t], error);
}

static vnx_status_t
prepare_parts(vnxi_exfer_t *exfer, vnx_error_t *error)
{
    vnx_status_t status = VNX_OK;

    for (unsigned t = 0; status == VNX_OK && t < VNXI_TRANSPORTS; t++) {
        if ((exfer->plan.routes >> t & 1) != 0) {
            status = prepare_part(exfer, t, error);
        }
    }
    return status;
}

vnx_status_t
vnxi_native_xfer_prepare(vnxi_engine_t *engine, const vnxi_xfer_args_t *args,
                         vnxi_exfer_t **exfer_p, vnxi_xfer_facts_t *facts_p,
                         vnx_error_t *error)
{
    vnxi_native_peer_t *peer = vnxi_native_peer(args->remote->peer);
    vnxi_plan_args_t plan_args = {
        .local = args->local,
        .remote = args->remote,
        .local_rows = args->local_rows,
        .remote_rows = args->remote_rows,
        .no_merge = args->no_merge,
        .operation = args->operation,
        .no_route = no_route,
        .context = peer,
    };

    if (vnxi_native_peer_gone(peer)) {
        return vnxi_native_peer_error(peer, args->operation, error);
    }
    vnxi_exfer_t *exfer = malloc(sizeof *exfer);
    if (exfer == NULL) {
        return vnxi_error_no_memory(error, args->operation, sizeof *exfer);
    }
    vnx_status_t status = vnxi_plan_build(&plan_args, &exfer->plan, error);
    if (status != VNX_OK) {
        vnxi_error_peer(error, peer->base.name, peer->base.name_len);
        free(exfer);
        return status;
    }
    exfer->engine = engine;
    exfer->peer = peer;
    exfer->local = vnxi_list_retain((vnxi_list_t *)args->local);
    exfer->remote = vnxi_list_retain((vnxi_list_t *)args->remote);
    exfer->op = args->op;
    exfer->is_small = fits_inline(&exfer->plan);
    exfer->operation = args->operation;
    exfer->cookie = args->cookie;
    exfer->copied = 0;
    exfer->part_count = 0;
    memset(exfer->parts, 0, sizeof exfer->parts);
    atomic_init(&exfer->parts_left, 0);
    atomic_init(&exfer->stop, false);
    atomic_init(&exfer->failing, false);
    atomic_init(&exfer->revocations, 0);
    status = prepare_parts(exfer, error);
    if (status != VNX_OK) {
        vnxi_error_peer(error, peer->base.name, peer->base.name_len);
        vnxi_native_xfer_release(exfer);
        return status;
    }
    *facts_p = (vnxi_xfer_facts_t){exfer->plan.bytes, exfer->plan.rows,
                                   exfer->plan.pieces};
    *exfer_p = exfer;
    return VNX_OK;
}

void
vnxi_native_xfer_release(vnxi_exfer_t *exfer)
{
    for (unsigned t = 0; t < VNXI_TRANSPORTS; t++) {
        if (exfer->parts[t] != NULL) {
            vnxi_transports[t]->part_free(exfer->parts[t]);
        }
    }
    vnxi_plan_fini(&exfer->plan);
    vnxi_list_release(exfer->local);
    vnxi_list_release(exfer->remote);
    free(exfer);
}

/* -- Posting ---------------------------------------------------------------
 */

static vnx_status_t
post_waiting(vnxi_exfer_t *exfer)
{
    vnxi_exfer_take_off(exfer);
    vnxi_exfer_wait(exfer);
    return VNX_IN_PROG;
}

/* The checks come after entering.  So a thread that deregisters memory or
 * closes an agent either is noticed by them or waits for the copying. */
static vnx_status_t
post_inline(vnxi_exfer_t *exfer, vnx_error_t *error)
{
    unsigned entered = vnxi_pool_enter();
    vnx_status_t status = vnxi_exfer_check(exfer, error);
    if (status == VNX_OK) {
        status = vnxi_exfer_copy_chunk(exfer, 0, error);
    }
    vnxi_pool_leave(entered);
    if (status == VNX_IN_PROG) {
        return post_waiting(exfer);
    }
    return status == VNX_OK ? vnxi_exfer_succeed(exfer, error) : status;
}

static vnx_status_t
post_parts(vnxi_exfer_t *exfer, vnx_error_t *error)
{
    vnx_status_t status = vnxi_exfer_check(exfer, error);
    if (status == VNX_IN_PROG) {
        return post_waiting(exfer);
    }
    if (status != VNX_OK) {
        return status;
    }
    vnxi_engine_t *engine = exfer->engine;
    vnxi_exfer_take_off(exfer);
    status = vnxi_exfer_start(exfer, error);
    if (status < 0) {
        vnxi_exfer_land(engine);
    }
    return status;
}

vnx_status_t
vnxi_native_xfer_post(vnxi_exfer_t *exfer, const void *notif, size_t notif_len,
                      vnx_error_t *error)
{
    exfer->notif = notif;
    exfer->notif_len = notif_len;
    exfer->status = VNX_OK;
    atomic_store_explicit(&exfer->failing, false, memory_order_relaxed);
    atomic_store_explicit(&exfer->stop, false, memory_order_relaxed);
    return exfer->is_small ? post_inline(exfer, error)
                           : post_parts(exfer, error);
}

vnx_status_t
vnxi_native_xfer_cancel(vnxi_exfer_t *exfer)
{
    vnxi_exfer_stop(exfer);
    exfer->engine->look(exfer->engine); /* it may be waiting for an owner */
    return VNX_OK;
}

/* -- Facts -----------------------------------------------------------------
 */

/* The slowest transport that takes part.  Copying within the process belongs
 * to no backend, but clients know only backends: the next one stands for it.
 */
const char *
vnxi_native_xfer_backend(const vnxi_exfer_t *exfer)
{
    unsigned t = VNXI_TRANSPORTS - 1;

    while (t > 0 && (exfer->plan.routes >> t & 1) == 0) {
        t--;
    }
    while (vnxi_transports[t]->backend == NULL) {
        t++;
    }
    return vnxi_transports[t]->backend;
}

/* Based on the speeds of one core of a small machine: 4 GB/s and 0.4 us per
 * piece through the kernel, 8 GB/s and 0.02 us directly.  The margin reflects
 * how much machines differ. */
void
vnxi_native_xfer_estimate(const vnxi_exfer_t *exfer, int64_t *duration_us_p,
                          int64_t *margin_us_p)
{
    bool direct = is_direct(&exfer->plan);
    double us = (double)exfer->plan.bytes / (direct ? 8000.0 : 4000.0) +
                (double)exfer->plan.pieces * (direct ? 0.02 : 0.4) + 1.0;
    *duration_us_p = (int64_t)us;
    *margin_us_p = (int64_t)(us / 2) + 1;
}
