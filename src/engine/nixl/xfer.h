/*
 * Transfers, as the poller and their own files know them.
 */
#ifndef VNXI_NIXL_XFER_H
#define VNXI_NIXL_XFER_H

#include "engine/nixl/nixl.h"

/* A piece of storage, kept so that a failure can be laid to a file and row. */
typedef struct vnxi_nixl_piece {
    vnx_desc_t desc;
    size_t place; /* of its first pair */
} vnxi_nixl_piece_t;

/* Of a post: what cancelling can still do about it. */
enum {
    VNXI_NIXL_ENTERED, /* the library has it, or it has ended */
    VNXI_NIXL_QUEUED,  /* it waits for a copy thread */
    VNXI_NIXL_CANCELLED,
};

struct vnxi_exfer {
    vnxi_engine_t *engine;
    vnxi_nixl_peer_t *peer;      /* the remote list keeps it alive */
    vnxi_list_t *local, *remote; /* retained */
    vnx_op_t op;
    uint64_t bytes;
    bool is_large;    /* its post may take long */
    bool was_retried; /* the post in progress is the second */
    atomic_uint stage;
    void *cookie;
    vnxi_capi_request_t *request; /* NULL: given back, as the engine stopped;
                                     or a region was revoked before */
    vnxi_capi_options_t *options; /* with a notification; NULL: never had */
    const char *backend;          /* interned */
    vnxi_nixl_piece_t *pieces;    /* storage only; owned */
    size_t piece_count;
    vnxi_exfer_t *next, *previous; /* all transfers; engine->xfers_lock */

    const void *notif; /* of the post in progress; NULL: none */
    size_t notif_len;
    vnxi_exfer_t *next_flight; /* inbox, flights, or ended */
    vnx_status_t end;          /* of a post that has ended */
    vnx_error_t error;
};

/* How a post came out: `code` is what the library says of it.  VNX_IN_PROG
 * (also where a failed one was posted once more), or the end with its error,
 * the peer's counters brought up to date. */
vnx_status_t vnxi_nixl_xfer_outcome(vnxi_exfer_t *exfer, int code,
                                    vnx_error_t *error);

/* Give the request back; with a post in flight only where the peer is gone or
 * the agent stops. */
void vnxi_nixl_xfer_give_back(vnxi_exfer_t *exfer);

/* -- Pairs (walk.c) --------------------------------------------------------
 */

/* The pieces of a transfer, as the library takes them; all zeros: empty. */
typedef struct vnxi_nixl_pieces {
    vnx_mem_t local_mem, remote_mem;
    vnxi_capi_xfer_list_t *local, *remote; /* owned */
    uint64_t bytes;
    size_t count;
    vnxi_nixl_piece_t *storage; /* owned; NULL unless the remote is a file */
    size_t storage_capacity;
} vnxi_nixl_pieces_t;

/* Check and pair the rows (the words are those of parts/pairs.h), merge
 * neighbours that are contiguous on both sides within one region of each
 * (unless no_merge). */
vnx_status_t vnxi_nixl_walk(vnxi_engine_t *engine,
                            const vnxi_xfer_args_t *args,
                            vnxi_nixl_pieces_t *pieces_p, vnx_error_t *error);
void vnxi_nixl_pieces_fini(vnxi_engine_t *engine, vnxi_nixl_pieces_t *pieces);

/* -- By index (indexed.c) --------------------------------------------------
 */

/* Make the request by that backend of indices into lists that the library
 * keeps; *pieces_p tells what there is of it.  False, and nothing has changed:
 * the pieces' way it must be, for whatever reason.  With the gate held. */
bool vnxi_nixl_make_indexed(vnxi_exfer_t *exfer, const vnxi_xfer_args_t *args,
                            size_t backend, vnxi_nixl_pieces_t *pieces_p);
/* Give back what prepared lists have of the library's: nobody enters any
 * more. */
void vnxi_nixl_twins_drop(vnxi_engine_t *engine);

/* -- Storage (storage.c) ---------------------------------------------------
 */

/* A file to register: its device id is an open descriptor.
 * VNX_ERR_NOT_FOUND names descriptor, path and row. */
vnx_status_t vnxi_nixl_check_files(vnx_mem_t mem, const vnx_reg_desc_t *descs,
                                   size_t count, vnx_error_t *error);

/* Why a transfer from or to files failed: the first piece that cannot be read
 * or written, with its file and row.  False: nothing was found. */
bool vnxi_nixl_storage_fault(const vnxi_exfer_t *exfer, vnx_error_t *error);

#endif
