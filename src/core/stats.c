#include "core/agent.h"

static uint64_t
get(const atomic_uint_fast64_t *counter)
{
    return atomic_load_explicit(counter, memory_order_relaxed);
}

static void
count_notifs(vnxi_notifs_t *notifs, vnx_agent_stats_t *stats)
{
    vnxi_mutex_lock(&notifs->lock);
    stats->notifs_received = notifs->received;
    stats->notifs_dropped = notifs->dropped;
    stats->notif_bytes_pending = notifs->bytes;
    vnxi_mutex_unlock(&notifs->lock);
    stats->notifs_pending = atomic_load(&notifs->count);
}

void
vnx_agent_stats(const vnx_agent_t *agent, vnx_agent_stats_t *stats_p)
{
    const vnxi_counters_t *counters = &agent->counters;

    *stats_p = (vnx_agent_stats_t){
        .xfers_posted = get(&counters->posted),
        .xfers_done = get(&counters->done),
        .xfers_failed = get(&counters->failed),
        .xfers_cancelled = get(&counters->cancelled),
        .bytes_read = get(&counters->bytes_read),
        .bytes_written = get(&counters->bytes_written),
        .rows = get(&counters->rows),
        .pieces = get(&counters->pieces),
        .notifs_sent = get(&counters->notifs_sent),
        .peers_lost = get(&counters->peers_lost),
        .regions = get(&counters->regions),
        .live_dlists = get(&counters->live_dlists),
        .live_xfers = get(&counters->live_xfers),
    };
    for (size_t i = 0; i < 32; i++) {
        stats_p->xfer_us_log2[i] = get(&counters->xfer_us_log2[i]);
    }
    if (vnxi_fork_crossed(agent->fork_count)) {
        return; /* a lock may be held forever here */
    }
    /* Taking a lock does not change what the caller sees as const. */
    vnx_agent_t *unlocked = (vnx_agent_t *)agent;
    count_notifs(&unlocked->notifs, stats_p);
    vnxi_mutex_lock(&unlocked->peers_lock);
    stats_p->peers = agent->peers.count;
    vnxi_mutex_unlock(&unlocked->peers_lock);
}
