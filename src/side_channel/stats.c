#include "side_channel/stats.h"

/* Return the bucket of a latency: 0 is below 1 us, i is from 2^(i-1) to 2^i
 * us. */
static unsigned
latency_bucket(uint64_t ns)
{
    uint64_t us = ns / 1000;
    unsigned bits = us == 0 ? 0 : 64 - (unsigned)__builtin_clzll(us);
    return bits < VNX_SIDE_CHANNEL_LATENCIES ? bits
                                             : VNX_SIDE_CHANNEL_LATENCIES - 1;
}

void
vnxi_stat_served(vnxi_side_stats_t *stats, uint64_t start)
{
    vnxi_stat_add(&stats->served);
    vnxi_stat_add(&stats->latency[latency_bucket(vnxi_clock_ns() - start)]);
}

void
vnxi_stats_read(const vnxi_side_stats_t *stats,
                vnx_side_channel_stats_t *out_p)
{
    *out_p = (vnx_side_channel_stats_t){
        .accepted = atomic_load(&stats->accepted),
        .served = atomic_load(&stats->served),
        .refused = atomic_load(&stats->refused),
        .timed_out = atomic_load(&stats->timed_out),
        .evicted = atomic_load(&stats->evicted),
        .open = atomic_load(&stats->open),
        .bytes_received = atomic_load(&stats->bytes_received),
        .bytes_sent = atomic_load(&stats->bytes_sent),
    };
    for (int i = 0; i < VNX_SIDE_CHANNEL_REFUSALS; i++) {
        out_p->refusals[i] = atomic_load(&stats->refusals[i]);
    }
    for (int i = 0; i < VNX_SIDE_CHANNEL_LATENCIES; i++) {
        out_p->latency[i] = atomic_load(&stats->latency[i]);
    }
}

const char *
vnx_side_channel_refusal_name(vnx_side_channel_refusal_t refusal)
{
    static const char *const names[] = {
#define REFUSAL_NAME(symbol, name) name,
        VNX_SIDE_CHANNEL_REFUSAL_TABLE(REFUSAL_NAME)
#undef REFUSAL_NAME
    };
    return (unsigned)refusal < VNX_SIDE_CHANNEL_REFUSALS ? names[refusal]
                                                         : NULL;
}
