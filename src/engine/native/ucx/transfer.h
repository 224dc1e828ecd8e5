/*
 * Transfers by UCX: one GET or PUT for each piece of a plan.
 *
 * The chunks of a plan are handed out to the workers that take part, one at a
 * time, and each worker gives all its transfers turns.  So many pieces are in
 * flight at once that the network is busy, and no more, so that a long
 * transfer neither holds up others nor takes long to stop.  A piece that spans
 * regions is cut, since each region has its own key.
 *
 * A WRITE has ended when a flush says that the data is visible there; only
 * then `done` is called, which sends the notification.  Every piece's own
 * status counts: a flush may say that all is well when a piece has failed.
 */
#ifndef VNXI_NATIVE_UCX_TRANSFER_H
#define VNXI_NATIVE_UCX_TRANSFER_H

#include "engine/native/plan.h"
#include "engine/native/ucx/conn.h"
#include "engine/native/ucx/memory.h"

typedef struct vnxi_ucx_xfer vnxi_ucx_xfer_t;

typedef struct vnxi_ucx_xfer_args {
    vnxi_ucx_conn_t *conn;   /* retained */
    const vnxi_plan_t *plan; /* kept, like both lists */
    vnx_op_t op;
    const vnxi_list_t *local, *remote;
    /* What a region is to UCX; NULL: nothing, and its pieces fail. */
    vnxi_ucx_mem_t *(*mem_of)(const vnxi_region_t *region);
    vnxi_ucx_key_t *(*key_of)(const vnxi_region_t *region);

    void *context;
    /* May it go on?  Else why not.  Asked before each chunk and when regions
     * go; any thread, at any time while it is in flight. */
    vnx_status_t (*go_on)(void *context, vnx_error_t *error);
    /* It has ended, no further byte lands, and it may be posted again or freed
     * in this call.  `error`: only where status is not VNX_OK.  Once a post,
     * on any thread. */
    void (*done)(void *context, vnx_status_t status, const vnx_error_t *error);
} vnxi_ucx_xfer_args_t;

/* NULL: no memory. */
vnxi_ucx_xfer_t *vnxi_ucx_xfer_create(const vnxi_ucx_xfer_args_t *args);
void vnxi_ucx_xfer_free(vnxi_ucx_xfer_t *xfer); /* not in flight */

/* Start: a few microseconds, however long it is.  Negative: nothing was
 * started. */
vnx_status_t vnxi_ucx_xfer_post(vnxi_ucx_xfer_t *xfer, vnx_error_t *error);

/* Stop soon: no further piece is posted; `done` comes when those in flight
 * have ended, by force after a second in which none did. */
void vnxi_ucx_xfer_cancel(vnxi_ucx_xfer_t *xfer);

/* The workers are parked, so no further byte lands: all that is in flight has
 * ended as cancelled. */
void vnxi_ucx_abandon(vnxi_ucx_t *ucx);

/* Wait until no transfer in flight is one that must not go on, and `done` was
 * called for those that were.  Two seconds or so at worst.  Not to be called
 * from `done`. */
void vnxi_ucx_settle(vnxi_ucx_t *ucx);

#endif
