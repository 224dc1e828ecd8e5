/*
 * A transfer of the native engine, shared by xfer.c (making and posting) and
 * xfer_run.c (waiting for confirmations, moving the bytes, ending).
 *
 * A transfer has up to one part for the copy threads, which run all routes of
 * copying transports, and one part for each other transport that it uses.  It
 * ends when all parts have ended.  The first failure stops the other parts and
 * is the one that is reported.  The thread that ends the last part sends the
 * notification, if all succeeded, and reports the end.
 */
#ifndef VNXI_NATIVE_XFER_H
#define VNXI_NATIVE_XFER_H

#include "base/pool.h"
#include "engine/native/native.h"
#include "engine/native/plan.h"

struct vnxi_exfer {
    vnxi_task_t task; /* first: a task pointer is cast to the transfer */
    vnxi_engine_t *engine;
    vnxi_native_peer_t *peer;    /* the remote list keeps it alive */
    vnxi_list_t *local, *remote; /* retained */
    vnx_op_t op;
    bool is_small;
    const char *operation;
    void *cookie;
    vnxi_plan_t plan;
    uint32_t copied;     /* those of plan.routes that the copy threads run */
    unsigned part_count; /* if several: `parts_left` is used */
    vnxi_part_t *parts[VNXI_TRANSPORTS]; /* owned; NULL: not used, or copied */

    /* Of the current post. */
    const void *notif;
    size_t notif_len;
    atomic_uint parts_left;
    atomic_bool stop; /* cancelled, or a part failed */
    /* vnxi_region_revocations() at the last check of its regions. */
    atomic_uint_fast64_t revocations;
    atomic_bool failing; /* the thread that sets it writes `error` */
    vnx_status_t status; /* VNX_OK until a failure; read after the last part */
    vnx_error_t error;

    /* While waiting for the owner of a region. */
    const vnxi_region_t *awaited; /* engine->waiting_lock; NULL: waiting for
                                     a copy thread */
    uint64_t due;                 /* when to give up */
    vnxi_exfer_t *next;           /* engine->waiting_lock */
};

/* Check whether the transfer may start.  VNX_IN_PROG: the owner of a region
 * has not confirmed it yet. */
vnx_status_t vnxi_exfer_check(vnxi_exfer_t *exfer, vnx_error_t *error);

/* For parts: check whether the transfer may go on; the context is the
 * transfer. */
vnx_status_t vnxi_exfer_check_part(void *exfer, vnx_error_t *error);

/* For parts: a part has ended. */
void vnxi_exfer_part_done(void *exfer, vnx_status_t status,
                          const vnx_error_t *error);

/* Copy a chunk: all pieces with a route of a copying transport. */
vnx_status_t vnxi_exfer_copy_chunk(vnxi_exfer_t *exfer, size_t chunk,
                                   vnx_error_t *error);

/* All bytes have been written: send the notification. */
vnx_status_t vnxi_exfer_succeed(vnxi_exfer_t *exfer, vnx_error_t *error);

/* Count a transfer as in flight, or no more. */
void vnxi_exfer_take_off(vnxi_exfer_t *exfer);
void vnxi_exfer_land(vnxi_engine_t *engine);

/* Start all parts of a transfer that is in flight.  After an error nothing was
 * started, and nothing is reported. */
vnx_status_t vnxi_exfer_start(vnxi_exfer_t *exfer, vnx_error_t *error);

/* Keep a transfer that is in flight but cannot start yet.  It starts when it
 * can or has failed, perhaps before this returns. */
void vnxi_exfer_wait(vnxi_exfer_t *exfer);

/* Stop its parts soon. */
void vnxi_exfer_stop(vnxi_exfer_t *exfer);

#endif
