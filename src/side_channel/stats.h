/*
 * The counters of a listener, the same in every transport.  They are relaxed:
 * each is correct by itself, but not consistent with the others.  The
 * listener's thread writes them; any thread may read them.
 */
#ifndef VNXI_SIDE_CHANNEL_STATS_H
#define VNXI_SIDE_CHANNEL_STATS_H

#include <stdatomic.h>
#include <vnx/side_channel.h>

#include "base/clock.h"

typedef struct vnxi_side_stats {
    atomic_uint_fast64_t accepted, served, refused, timed_out, evicted, open;
    atomic_uint_fast64_t bytes_received, bytes_sent;
    atomic_uint_fast64_t refusals[VNX_SIDE_CHANNEL_REFUSALS];
    atomic_uint_fast64_t latency[VNX_SIDE_CHANNEL_LATENCIES];
} vnxi_side_stats_t;

static inline void
vnxi_stat_add_count(atomic_uint_fast64_t *counter, uint64_t count)
{
    atomic_fetch_add_explicit(counter, count, memory_order_relaxed);
}

static inline void
vnxi_stat_add(atomic_uint_fast64_t *counter)
{
    vnxi_stat_add_count(counter, 1);
}

static inline void
vnxi_stat_sub(atomic_uint_fast64_t *counter)
{
    atomic_fetch_sub_explicit(counter, 1, memory_order_relaxed);
}

/* Count a client that was refused. */
static inline void
vnxi_stat_refused(vnxi_side_stats_t *stats, vnx_side_channel_refusal_t why)
{
    vnxi_stat_add(&stats->refused);
    vnxi_stat_add(&stats->refusals[why]);
}

/* Count a reply that was sent completely; its exchange began at `start`
 * (vnxi_clock_ns()). */
void vnxi_stat_served(vnxi_side_stats_t *stats, uint64_t start);

/* Copy the current values. */
void vnxi_stats_read(const vnxi_side_stats_t *stats,
                     vnx_side_channel_stats_t *out_p);

#endif
