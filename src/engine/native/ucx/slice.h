/*
 * A transfer in flight, and each worker's slice of it; for transfer.c, which
 * starts and ends slices, and slice.c, which posts their pieces.
 */
#ifndef VNXI_NATIVE_UCX_SLICE_H
#define VNXI_NATIVE_UCX_SLICE_H

#include "engine/native/ucx/ep.h"
#include "engine/native/ucx/transfer.h"

#define VNXI_UCX_TRANSFER "vnx_xfer_post" /* the operation in errors */
#define VNXI_UCX_PIECE_BYTES (1u << 20)   /* joined for one request */

typedef struct vnxi_ucx_slice {
    vnxi_ucx_duty_t duty; /* first */
    vnxi_ucx_command_t command;
    vnxi_ucx_xfer_t *xfer;
    vnxi_ucx_ep_t *ep;
    /* Of the current post; used only by the worker's thread. */
    bool posting; /* there may be more to post */
    bool in_chunk, has_piece;
    bool flushing;
    bool stopping; /* look() has seen the transfer's `stop` */
    bool moved;    /* a request has ended since the last look() */
    vnxi_walk_t walk;
    vnxi_piece_t piece; /* the rest of it */
    size_t pending;     /* requests in flight */
    uint64_t opening;   /* the ep's, at the first piece; 0: none posted */
    uint64_t moved_at;  /* time of that, of the start, or of the stop */
    uint64_t grace_end;
    const vnxi_region_t *local, *remote; /* of the last piece */
    vnxi_ucx_mem_t *mem;                 /* of local; NULL: none */
    vnxi_ucx_key_t *key;                 /* of remote; NULL: none */
} vnxi_ucx_slice_t;

typedef enum vnxi_ucx_failing {
    VNXI_UCX_FAILING_NOT,
    VNXI_UCX_FAILING,
    VNXI_UCX_FAILING_BY_UCX, /* UCX's error: the connection may have a
                                better one */
} vnxi_ucx_failing_t;

struct vnxi_ucx_xfer {
    vnxi_ucx_xfer_args_t args;
    atomic_size_t next_chunk;
    atomic_uint slices_left;
    atomic_bool stop;
    atomic_int
        failing; /* vnxi_ucx_failing_t; the thread that sets it writes error */
    vnx_error_t error;
    vnxi_ucx_xfer_t *prev, *next; /* ucx->xfers */
    bool is_being_posted;         /* ucx->xfers_lock */
    bool is_abandoned;            /* ucx->xfers_lock; the post ends it */
    size_t window; /* limit of a slice's requests in flight, exceeded by at
                      most a chunk */
    unsigned slice_count;
    vnxi_ucx_slice_t slices[];
};

/* Post as much as the window allows: the `turn` of the slice's duty. */
bool vnxi_ucx_slice_turn(vnxi_ucx_duty_t *duty);

/* A slice of a WRITE that has posted pieces must wait until they have arrived.
 */
bool vnxi_ucx_slice_needs_flush(const vnxi_ucx_slice_t *slice);

/* Set the error of a slice whose ep was reset. */
vnx_status_t vnxi_ucx_slice_reset_error(vnx_error_t *error);

/* Fail the transfer; only the first cause is kept. by_ucx: the connection may
 * have a better cause. */
void vnxi_ucx_xfer_fail(vnxi_ucx_xfer_t *xfer, const vnx_error_t *error,
                        bool by_ucx);

#endif
