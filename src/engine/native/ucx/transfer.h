/*
 * Transfers by UCX: one GET or PUT for each piece of a plan.
 *
 * The chunks of a plan are handed out one at a time to the workers that take
 * part, and each worker gives all its transfers turns.  Only as many pieces
 * are in flight as keep the network busy, so that a long transfer neither
 * delays others nor takes long to stop.  A piece that spans regions is
 * divided, because each region has its own key.
 *
 * A WRITE ends when a flush reports that the data is visible at the peer.
 * Only then is `done` called, which sends the notification.  The status of
 * every piece is checked: a flush may succeed although a piece has failed.
 */
#ifndef VNXI_NATIVE_UCX_TRANSFER_H
#define VNXI_NATIVE_UCX_TRANSFER_H

#include "engine/native/plan.h"
#include "engine/native/ucx/conn.h"
#include "engine/native/ucx/memory.h"

typedef struct vnxi_ucx_xfer vnxi_ucx_xfer_t;

typedef struct vnxi_ucx_xfer_args {
    vnxi_ucx_conn_t *conn;   /* retained */
    const vnxi_plan_t *plan; /* must stay valid, like both lists */
    vnx_op_t op;
    uint32_t route; /* of the pieces to move; the others are skipped */
    const vnxi_list_t *local, *remote;
    /* A region's UCX memory or key; NULL: none.  Any thread. */
    void *owner; /* for these two */
    vnxi_ucx_mem_t *(*mem_of)(void *owner, const vnxi_region_t *region);
    vnxi_ucx_key_t *(*key_of)(void *owner, const vnxi_region_t *region);

    void *context;
    /* Check whether the transfer may go on; returns the reason if not.  Called
     * before each chunk and when regions are removed; any thread, at any time
     * while the transfer is in flight. */
    vnx_status_t (*go_on)(void *context, vnx_error_t *error);
    /* The transfer has ended: no more bytes are written, and it may be posted
     * again or freed in this call.  `error` is set only if status is not
     * VNX_OK.  Once per post, on any thread. */
    void (*done)(void *context, vnx_status_t status, const vnx_error_t *error);
} vnxi_ucx_xfer_args_t;

/* NULL: no memory. */
vnxi_ucx_xfer_t *vnxi_ucx_xfer_create(const vnxi_ucx_xfer_args_t *args);
void vnxi_ucx_xfer_free(vnxi_ucx_xfer_t *xfer); /* must not be in flight */

/* Start the transfer: a few microseconds, whatever its length.  Negative:
 * nothing was started. */
vnx_status_t vnxi_ucx_xfer_post(vnxi_ucx_xfer_t *xfer, vnx_error_t *error);

/* Stop soon: no more pieces are posted.  `done` is called when those in flight
 * have ended.  They are ended by force, and with them all others of the
 * connection, after a second in which none of the connection's ended, or after
 * ten seconds in which none of the transfer's did. */
void vnxi_ucx_xfer_cancel(vnxi_ucx_xfer_t *xfer);

/* -- For lifetime.c --------------------------------------------------------
 */

/* End all transfers in flight as cancelled.  The workers must be parked, so
 * that no more bytes are written. */
void vnxi_ucx_xfers_abandon(vnxi_ucx_t *ucx);

/* The part of vnxi_ucx_settle() for workers that are not parked. */
void vnxi_ucx_xfers_settle(vnxi_ucx_t *ucx);

#endif
