/*
 * What the core counts for each peer, also for the agent itself as a peer of
 * its own.  Engines do not use this; the counters lie in the peer object
 * (engine.h), which a transfer refers to anyway.
 *
 * An event counts once, for its peer.  The agent's totals are sums over its
 * peers, those that it has removed included (core/stats.c).  Most counters
 * serve several facts, because posting and ending a small transfer takes less
 * than half a microsecond and every one of these additions takes part of it:
 *
 *     rows        posted + MORE_ROWS
 *     pieces      posted + MORE_PIECES
 *     done        the sum of its histograms
 *     failed      the sum of ENDS, without the cancelled ones
 *     in flight   posted - done - ENDS
 *     time spent in posting
 *                 of a transfer that ended at once: the time that it took
 */
#ifndef VNXI_ENGINE_COUNTERS_H
#define VNXI_ENGINE_COUNTERS_H

#include <stdatomic.h>
#include <stdint.h>
#include <vnx/vnx.h>

/* The counts of a histogram: two for each power of two of microseconds.
 * NIXL's histograms have bounds that are not powers of two, but at most one
 * between two powers.  The first count is for times up to that bound, the
 * second one for the others; so both histograms can be read from one. */
#define VNXI_PLACES (2 * VNX_HISTOGRAM)

/* Places in an array of counters.  [op]: two, by vnx_op_t.  "At once": before
 * the post returned. */
enum {
    VNXI_POSTED,
    VNXI_MORE_ROWS,   /* rows of the posted transfers, less one for each */
    VNXI_MORE_PIECES, /* the same for their pieces, after merging */
    VNXI_BYTES,       /* [op], of the completed transfers */
    VNXI_AT_ONCE_NS =
        VNXI_BYTES + 2, /* sums of times of completed transfers */
    VNXI_LATER_NS,
    VNXI_POST_NS, /* of transfers that were not completed at once */
    VNXI_NOTIFS_SENT,
    VNXI_NOTIFS_RECEIVED,

    /* Histograms of the same times. */
    VNXI_AT_ONCE,                                /* [op] */
    VNXI_LATER = VNXI_AT_ONCE + 2 * VNXI_PLACES, /* [op] */
    VNXI_POST = VNXI_LATER + 2 * VNXI_PLACES,

    /* Posts that failed or were cancelled, by vnx_status_index(). */
    VNXI_ENDS = VNXI_POST + VNXI_PLACES,

    VNXI_COUNTERS = VNXI_ENDS + VNX_STATUS_COUNT
};

typedef struct vnxi_counters {
    atomic_uint_fast64_t at[VNXI_COUNTERS];
} vnxi_counters_t;

static inline void
vnxi_count(atomic_uint_fast64_t *counter, uint64_t amount)
{
    atomic_fetch_add_explicit(counter, amount, memory_order_relaxed);
}

/* NIXL's bound in [2^i, 2^(i+1)) microseconds; 0: none. */
extern const uint32_t vnxi_nixl_bounds[VNX_HISTOGRAM];

/* The place in a histogram: 2i or 2i + 1 for [2^i, 2^(i+1)) microseconds; the
 * first ones also for less than one, and the last ones for all longer times.
 */
static inline unsigned
vnxi_histogram_place(uint64_t ns)
{
    uint64_t us = ns / 1000;
    unsigned log2 = us == 0 ? 0 : 63u - (unsigned)__builtin_clzll(us);
    if (log2 >= VNX_HISTOGRAM) {
        log2 = VNX_HISTOGRAM - 1;
    }
    return 2 * log2 + (us > vnxi_nixl_bounds[log2]);
}

#endif
