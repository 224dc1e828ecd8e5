/*
 * A transfer of the native engine, shared by xfer.c and xfer_wait.c.
 */
#ifndef VNXI_NATIVE_XFER_H
#define VNXI_NATIVE_XFER_H

#include "base/pool.h"
#include "engine/native/native.h"
#include "engine/native/plan.h"
#include "engine/native/ucx/transfer.h"

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
    vnxi_ucx_xfer_t *ucx; /* owned; NULL: copied by this process */

    /* Of the current post. */
    const void *notif;
    size_t notif_len;
    atomic_bool stop; /* cancelled, or a chunk failed */
    /* vnxi_region_revocations() at the last check of its regions. */
    atomic_uint_fast64_t revocations;
    atomic_bool failing; /* the thread that sets it writes `error` */
    vnx_status_t status; /* VNX_OK until a failure; read after the last
                            chunk */
    vnx_error_t error;

    /* While waiting for the owner of a region (xfer_wait.c). */
    const vnxi_region_t *awaited; /* engine->waiting_lock; NULL: waiting for
                                     a copy thread */
    uint64_t due;                 /* when to give up */
    vnxi_exfer_t *next;           /* engine->waiting_lock */
};

/* Check whether the transfer may start.  VNX_IN_PROG: the owner of a region
 * has not confirmed it yet. */
vnx_status_t vnxi_exfer_check(vnxi_exfer_t *exfer, vnx_error_t *error);

/* Hand the transfer, which is in flight, to the copy threads.  After an error
 * nothing is reported. */
vnx_status_t vnxi_exfer_start(vnxi_exfer_t *exfer, vnx_error_t *error);

/* Mark the transfer as failed and stop its remaining chunks.  Only the first
 * failure is recorded. */
void vnxi_exfer_fail(vnxi_exfer_t *exfer, vnx_status_t status,
                     const vnx_error_t *error);

/* Keep a transfer that is in flight but cannot start yet.  It goes to the copy
 * threads when it can start or has failed, perhaps before this returns. */
void vnxi_exfer_wait(vnxi_exfer_t *exfer);

#endif
