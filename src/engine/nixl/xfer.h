/*
 * Transfers, and the pieces and files that they move.
 */
#ifndef VNXI_NIXL_XFER_H
#define VNXI_NIXL_XFER_H

#include "base/pool.h"
#include "engine/nixl/nixl.h"

/* A piece of storage, kept so that a failure can be traced to a file and row.
 */
typedef struct vnxi_nixl_piece {
    vnx_desc_t desc;
    size_t place; /* of its first pair */
} vnxi_nixl_piece_t;

struct vnxi_exfer {
    vnxi_task_t task; /* of a post that a copy thread makes; must be first */
    vnxi_engine_t *engine;
    vnxi_nixl_peer_t *peer;      /* the remote list keeps it alive */
    vnxi_list_t *local, *remote; /* retained */
    vnx_op_t op;
    uint64_t bytes, piece_total; /* of the request */
    bool is_large;               /* posting it may take long */
    bool was_retried;            /* the current post is the second */
    bool is_cancelled; /* the post, before a copy thread made it; changed with
                          inbox_lock held and not in `flights` */
    void *cookie;
    nixl_capi_xfer_req_t request; /* NULL: released when the engine stopped,
                                     or a region was revoked at creation */
    nixl_capi_opt_args_t options; /* with a notification; NULL: never had
                                     one */
    const char *backend;          /* interned */
    vnxi_nixl_piece_t *pieces;    /* storage only; owned */
    size_t piece_count;
    vnxi_exfer_t *next, *previous; /* all transfers; engine->xfers_lock */

    const void *notif; /* of the current post; NULL: none */
    size_t notif_len;
    vnxi_exfer_t *next_flight; /* in inbox, flights or ended */
    vnx_status_t end;          /* of an ended post */
    vnx_error_t error;
};

/* -- The end (poller.c) ----------------------------------------------------
 */

/* The outcome of a post; `code` is the library's status.  VNX_IN_PROG (also if
 * a failed transfer was posted once more), or the end with its error. */
vnx_status_t vnxi_nixl_xfer_outcome(vnxi_exfer_t *exfer, int code,
                                    vnx_error_t *error);

/* Release the request.  With a post in flight, allowed only if the peer is
 * gone or the agent stops. */
void vnxi_nixl_request_release(vnxi_exfer_t *exfer);

/* -- Pieces (piece_builder.c) ----------------------------------------------
 */

/* The pieces of a transfer, in the library's types; all zeros: empty. */
typedef struct vnxi_nixl_pieces {
    vnx_mem_t local_mem, remote_mem;
    nixl_capi_xfer_dlist_t local, remote; /* owned */
    uint64_t bytes;
    size_t count;
    vnxi_nixl_piece_t *storage; /* owned; NULL unless the remote is a file */
    size_t storage_capacity;
} vnxi_nixl_pieces_t;

/* Check and pair the rows (with the messages of parts/pairs.h) and, unless
 * no_merge, merge neighbours that are contiguous on both sides within one
 * region of each. */
vnx_status_t vnxi_nixl_pieces_build(vnxi_engine_t *engine,
                                    const vnxi_xfer_args_t *args,
                                    vnxi_nixl_pieces_t *pieces_p,
                                    vnx_error_t *error);
void vnxi_nixl_pieces_fini(vnxi_engine_t *engine, vnxi_nixl_pieces_t *pieces);

/* -- By index (indexed.c) --------------------------------------------------
 */

/* Make the request with that backend, from indices into lists kept by the
 * library; *pieces_p gets its counts.  False: nothing has changed; fall back
 * to pieces.  Requires the gate. */
bool vnxi_nixl_make_indexed(vnxi_exfer_t *exfer, const vnxi_xfer_args_t *args,
                            size_t backend, vnxi_nixl_pieces_t *pieces_p);
/* Release the library's counterparts of prepared lists.  Nobody enters any
 * more. */
void vnxi_nixl_twins_drop(vnxi_engine_t *engine);

/* -- Storage (storage.c) ---------------------------------------------------
 */

/* Check a file to register: its device id must be an open descriptor.
 * VNX_ERR_NOT_FOUND has the descriptor, the path and the row. */
vnx_status_t vnxi_nixl_check_files(vnx_mem_t mem, const vnx_reg_desc_t *descs,
                                   size_t count, vnx_error_t *error);

/* Find out why a transfer from or to files failed: the first piece that cannot
 * be read or written, with its file and row.  False: nothing found. */
bool vnxi_nixl_storage_fault(const vnxi_exfer_t *exfer, vnx_error_t *error);

#endif
