/*
 * A transfer of the native engine, as xfer.c and xfer_wait.c share it.
 */
#ifndef VNXI_NATIVE_XFER_H
#define VNXI_NATIVE_XFER_H

#include "base/pool.h"
#include "engine/native/native.h"
#include "engine/native/plan.h"
#include "engine/native/ucx/transfer.h"

struct vnxi_exfer {
    vnxi_task_t task; /* first: the task is the transfer */
    vnxi_engine_t *engine;
    vnxi_native_peer_t *peer;    /* the remote list keeps it alive */
    vnxi_list_t *local, *remote; /* retained */
    vnx_op_t op;
    bool is_small;
    const char *operation;
    void *cookie;
    vnxi_plan_t plan;
    vnxi_ucx_xfer_t *ucx; /* owned; NULL: copied by us */

    /* Of the post in progress. */
    const void *notif;
    size_t notif_len;
    atomic_bool stop; /* cancelled, or a chunk failed */
    /* When its regions were last looked at: vnxi_region_revocations(). */
    atomic_uint_fast64_t revocations;
    atomic_bool failing; /* whoever raises it writes `error` */
    vnx_status_t status; /* VNX_OK until it fails; read after the last chunk */
    vnx_error_t error;

    /* While it waits for the owner of a region (xfer_wait.c). */
    const vnxi_region_t *awaited; /* engine->waiting_lock; NULL: a thread */
    uint64_t due;                 /* when to give up */
    vnxi_exfer_t *next;           /* engine->waiting_lock */
};

/* May it start?  VNX_IN_PROG: the owner of a region has not confirmed it. */
vnx_status_t vnxi_exfer_check(vnxi_exfer_t *exfer, vnx_error_t *error);

/* Hand it to the copy threads; it is in flight.  Nothing comes after an error.
 */
vnx_status_t vnxi_exfer_start(vnxi_exfer_t *exfer, vnx_error_t *error);

/* It has failed: what is still to be copied is not.  The record of the first
 * failure stands. */
void vnxi_exfer_fail(vnxi_exfer_t *exfer, vnx_status_t status,
                     const vnx_error_t *error);

/* In flight, but it cannot start yet: keep it until it can, and hand it to the
 * copy threads then, or when it has failed; perhaps before this returns. */
void vnxi_exfer_wait(vnxi_exfer_t *exfer);

#endif
