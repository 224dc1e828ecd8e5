/*
 * The plan of a transfer: which bytes go where, with neighbours merged.
 *
 * A plan is a sequence of segments.  A segment is `count` pieces of `len`
 * bytes whose addresses advance by a stride on each side, and has one *route*:
 * VNXI_ROUTE_COPY if both sides have addresses in this process (those of a
 * peer's mapped regions are translated), else the number of the transport
 * that moves it (transports.h); then `remote` is an address in the peer.
 * Pieces longer than VNXI_PIECE_MAX are cut (into a segment with stride =
 * len), so that chunks of work have about the same size.
 */
#ifndef VNXI_NATIVE_PLAN_H
#define VNXI_NATIVE_PLAN_H

#include "engine/parts/list.h"

#define VNXI_PIECE_MAX (256u << 10)
#define VNXI_CHUNK_BYTES (512u << 10)
#define VNXI_CHUNK_BYTES_MAX (2048u << 10) /* from 128 MiB on */
#define VNXI_CHUNK_PIECES 512u

#define VNXI_ROUTE_COPY 0u
#define VNXI_ROUTE_NONE 31u /* no transport */

/* The routes to a list's regions, as its remote side. */
typedef struct vnxi_list_routes {
    uint64_t changes; /* vnxi_route_changes, before they were read */
    uint64_t first;   /* those of the first region */
    /* For which kinds of local memory (a bit set) all regions have the same
     * route and are translated by the same number. */
    uint32_t one_route;
} vnxi_list_routes_t;

/* The engine's prepared lists. */
typedef struct vnxi_native_list {
    vnxi_list_t base;          /* first */
    vnxi_list_routes_t routes; /* when it was prepared */
} vnxi_native_list_t;

extern const vnxi_list_class_t vnxi_native_list_class;

static inline const vnxi_native_list_t *
vnxi_native_list(const vnxi_list_t *list)
{
    return (const vnxi_native_list_t *)list; /* base is the first member */
}

typedef struct vnxi_segment {
    uint64_t local, remote;
    int64_t local_stride, remote_stride;
    uint64_t len;
    uint32_t count;
    uint32_t route;
} vnxi_segment_t; /* 48 bytes */

/* Where a chunk begins: a segment, and a piece in it. */
typedef struct vnxi_chunk {
    uint32_t segment, piece;
} vnxi_chunk_t;

typedef struct vnxi_plan {
    vnxi_segment_t *segments; /* owned */
    size_t segment_count;
    vnxi_chunk_t *chunks; /* owned; in order; each has at most
                             vnxi_plan_chunk_bytes() bytes and
                             VNXI_CHUNK_PIECES pieces */
    size_t chunk_count;
    uint64_t bytes, pieces, rows; /* pieces: after merging, before cutting */
    uint32_t routes;              /* bit r: some segments have route r */
    /* private: storage */
    size_t segment_capacity, chunk_capacity;
    vnxi_segment_t small[2];
    vnxi_chunk_t small_chunk[1];
} vnxi_plan_t;

/*
 * Plan the pairs local_rows[i] <-> remote_rows[i].
 *
 * Checks that the counts are equal and > 0, that indices are in range (they
 * are never truncated), and that the two rows of a pair have equal lengths;
 * errors name the place i in the index arrays and the side
 * (VNX_ERR_INVALID_PARAM).  A row without a route is the error that
 * args->no_route sets.
 *
 * Unless no_merge, pairs that are contiguous on both sides become one piece,
 * across rows and across regions of the same route.
 *
 * Fast paths: consecutive indices over run blocks of both lists cost a few
 * nanoseconds per block.  SIMD code (dispatched at run time, no ifunc) finds
 * consecutive indices in both index arrays.  Storage comes from
 * base/recycle.h.
 *
 * The caller allocates the plan and must not move it.  It is all zeros after
 * an error. vnxi_plan_fini() frees what it owns; an all-zero plan is allowed.
 */
typedef struct vnxi_plan_args {
    const vnxi_list_t *local, *remote;
    vnx_indices_t local_rows, remote_rows;
    bool no_merge;
    const char *operation;
    /* Set the error for a row that no transport moves. */
    vnx_status_t (*no_route)(const struct vnxi_plan_args *args, size_t place,
                             const vnx_desc_t *remote, vnx_error_t *error);
    void *context; /* for no_route */
} vnxi_plan_args_t;

vnx_status_t vnxi_plan_build(const vnxi_plan_args_t *args, vnxi_plan_t *plan_p,
                             vnx_error_t *error);
void vnxi_plan_fini(vnxi_plan_t *plan);

/* Bytes per chunk: small enough that all threads have work until the end, and
 * larger in a long transfer, because every system call has a fixed cost. */
static inline uint64_t
vnxi_plan_chunk_bytes(const vnxi_plan_t *plan)
{
    uint64_t part = plan->bytes / 64;
    return part < VNXI_CHUNK_BYTES       ? VNXI_CHUNK_BYTES
           : part > VNXI_CHUNK_BYTES_MAX ? VNXI_CHUNK_BYTES_MAX
                                         : part;
}

/* Iterates over the pieces of a chunk, of all routes. */
typedef struct vnxi_piece {
    uint64_t local, remote, len;
    uint32_t route;
} vnxi_piece_t;

typedef struct vnxi_walk {
    const vnxi_plan_t *plan;
    vnxi_chunk_t at, end;
} vnxi_walk_t;

vnxi_walk_t vnxi_plan_walk(const vnxi_plan_t *plan, size_t chunk);
static inline bool vnxi_walk_next(vnxi_walk_t *walk, vnxi_piece_t *piece_p);

static inline bool
vnxi_walk_next(vnxi_walk_t *walk, vnxi_piece_t *piece_p)
{
    if (walk->at.segment == walk->end.segment &&
        walk->at.piece == walk->end.piece) {
        return false;
    }
    const vnxi_segment_t *segment = &walk->plan->segments[walk->at.segment];
    int64_t i = walk->at.piece;
    piece_p->local = segment->local + (uint64_t)(i * segment->local_stride);
    piece_p->remote = segment->remote + (uint64_t)(i * segment->remote_stride);
    piece_p->len = segment->len;
    piece_p->route = segment->route;
    if (++walk->at.piece == segment->count) {
        walk->at.segment++;
        walk->at.piece = 0;
    }
    return true;
}

#endif
