/*
 * Design notes.  A peer's counters are in its object.  The agent lists the
 * objects of all its peers that are alive, also of those that it has removed
 * or superseded: transfers still hold them, and count.  When such an object is
 * freed, its counters are added to `retired`.  So the totals, which are sums
 * over the list, `retired` and the agent's own object, never lose a count, and
 * never count twice.
 *
 * The end of a post is counted with release order, and read with acquire order
 * before the post, so a reader that sees the end also sees the post.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "core/agent.h"

/* -- Sums ------------------------------------------------------------------
 */

static uint64_t
get(const atomic_uint_fast64_t *counter)
{
    return atomic_load_explicit(counter, memory_order_relaxed);
}

/* VNXI_POSTED, the first one, is read last. */
static void
add(const vnxi_counters_t *counters, uint64_t sums[VNXI_COUNTERS])
{
    for (unsigned i = VNXI_COUNTERS; i-- > 0;) {
        sums[i] +=
            atomic_load_explicit(&counters->at[i], memory_order_acquire);
    }
}

static void
retire(vnxi_peer_t *peer)
{
    vnx_agent_t *agent = peer->agent;

    vnxi_mutex_lock(&agent->counters_lock);
    *peer->link = peer->next;
    if (peer->next != NULL) {
        peer->next->link = peer->link;
    }
    add(&peer->counters, agent->retired);
    vnxi_mutex_unlock(&agent->counters_lock);
}

void
vnxi_counters_add_peer(vnx_agent_t *agent, vnxi_peer_t *peer)
{
    peer->agent = agent;
    peer->retire = retire;
    vnxi_mutex_lock(&agent->counters_lock);
    peer->next = agent->counted;
    peer->link = &agent->counted;
    if (peer->next != NULL) {
        peer->next->link = &peer->next;
    }
    agent->counted = peer;
    vnxi_mutex_unlock(&agent->counters_lock);
}

/* Sum up the counters of all peers.  In a forked child the lock may be held
 * for ever: then the sums lack all peers but the agent itself. */
static void
add_up(vnx_agent_t *agent, uint64_t sums[VNXI_COUNTERS])
{
    bool is_held = true;

    memset(sums, 0, VNXI_COUNTERS * sizeof *sums);
    if (vnxi_fork_crossed(agent->fork_count)) {
        is_held = vnxi_mutex_trylock(&agent->counters_lock) == 0;
    } else {
        vnxi_mutex_lock(&agent->counters_lock);
    }
    if (is_held) {
        memcpy(sums, agent->retired, sizeof agent->retired);
        for (vnxi_peer_t *peer = agent->counted; peer != NULL;
             peer = peer->next) {
            add(&peer->counters, sums);
        }
        vnxi_mutex_unlock(&agent->counters_lock);
    }
    if (atomic_load(&agent->is_bound)) {
        add(&agent->ops->peer_self(agent->engine)->counters, sums);
    }
}

/* -- Facts -----------------------------------------------------------------
 */

static uint64_t
total(const uint64_t *at, size_t count)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < count; i++) {
        sum += at[i];
    }
    return sum;
}

static uint64_t
done_of(const uint64_t *sums, vnx_op_t op)
{
    return total(&sums[VNXI_AT_ONCE + op * VNXI_PLACES], VNXI_PLACES) +
           total(&sums[VNXI_LATER + op * VNXI_PLACES], VNXI_PLACES);
}

static uint64_t
cancelled_of(const uint64_t *sums)
{
    return sums[VNXI_ENDS + vnx_status_index(VNX_ERR_CANCELED)];
}

static uint64_t
failed_of(const uint64_t *sums)
{
    return total(&sums[VNXI_ENDS], VNX_STATUS_COUNT) - cancelled_of(sums);
}

static uint64_t
rows_of(const uint64_t *sums)
{
    return sums[VNXI_POSTED] + sums[VNXI_MORE_ROWS];
}

/* -- Histograms ------------------------------------------------------------
 */

const uint32_t vnxi_nixl_bounds[VNX_HISTOGRAM] = {
    [3] = 10,       [4] = 25,       [5] = 50,      [6] = 100,
    [7] = 250,      [8] = 500,      [9] = 1000,    [11] = 2500,
    [12] = 5000,    [13] = 10000,   [14] = 25000,  [15] = 50000,
    [16] = 100000,  [17] = 250000,  [18] = 500000, [19] = 1000000,
    [22] = 5000000, [23] = 10000000};

static void
add_places(uint64_t places[VNXI_PLACES], const uint64_t *at)
{
    for (size_t i = 0; i < VNXI_PLACES; i++) {
        places[i] += at[i];
    }
}

/* Count by powers of two. */
static void
fold(const uint64_t places[VNXI_PLACES], uint64_t times[VNX_HISTOGRAM])
{
    for (size_t i = 0; i < VNX_HISTOGRAM; i++) {
        times[i] = places[2 * i] + places[2 * i + 1];
    }
}

/* Count by NIXL's bounds. */
static void
fold_nixl(const uint64_t places[VNXI_PLACES],
          uint64_t times[VNX_NIXL_HISTOGRAM])
{
    unsigned bucket = 0;

    memset(times, 0, VNX_NIXL_HISTOGRAM * sizeof *times);
    for (size_t i = 0; i < VNX_HISTOGRAM; i++) {
        times[bucket] += places[2 * i];
        if (vnxi_nixl_bounds[i] != 0) {
            bucket++;
        }
        times[bucket] += places[2 * i + 1];
    }
}

/* Of the completed transfers. */
static void
xfer_times(const uint64_t *sums, uint64_t places[VNXI_PLACES],
           uint64_t *us_sum_p)
{
    memset(places, 0, VNXI_PLACES * sizeof *places);
    for (size_t i = 0; i < 2; i++) {
        add_places(places, &sums[VNXI_AT_ONCE + i * VNXI_PLACES]);
        add_places(places, &sums[VNXI_LATER + i * VNXI_PLACES]);
    }
    *us_sum_p = (sums[VNXI_AT_ONCE_NS] + sums[VNXI_LATER_NS]) / 1000;
}

/* Of all posts. */
static void
post_times(const uint64_t *sums, uint64_t places[VNXI_PLACES],
           uint64_t *us_sum_p)
{
    memset(places, 0, VNXI_PLACES * sizeof *places);
    for (size_t i = 0; i < 2; i++) {
        add_places(places, &sums[VNXI_AT_ONCE + i * VNXI_PLACES]);
    }
    add_places(places, &sums[VNXI_POST]);
    *us_sum_p = (sums[VNXI_AT_ONCE_NS] + sums[VNXI_POST_NS]) / 1000;
}

/* -- A peer ----------------------------------------------------------------
 */

static void
write_times(vnxi_writer_t *out, const char *name,
            const uint64_t times[VNX_HISTOGRAM])
{
    char text[32];

    vnxi_json_key(out, name);
    for (size_t i = 0; i < VNX_HISTOGRAM; i++) {
        snprintf(text, sizeof text, "%s%" PRIu64, i == 0 ? "[" : ", ",
                 times[i]);
        vnxi_json_text(out, text);
    }
    vnxi_json_text(out, "]");
}

/* The statuses that occurred. */
static void
write_failures(vnxi_writer_t *out, const uint64_t *sums)
{
    vnxi_writer_t members = {0};

    for (unsigned i = 0; i < VNX_STATUS_COUNT; i++) {
        vnx_status_t status = vnx_status_at(i);
        if (sums[VNXI_ENDS + i] != 0 && status != VNX_ERR_CANCELED) {
            vnxi_json_number(&members, vnx_status_name(status),
                             sums[VNXI_ENDS + i]);
        }
    }
    vnxi_json_key(out, "failures");
    vnxi_json_object(out, &members);
}

void
vnxi_counters_write(const vnxi_peer_t *peer, vnxi_writer_t *out)
{
    uint64_t sums[VNXI_COUNTERS] = {0};
    uint64_t us_sum, places[VNXI_PLACES], times[VNX_HISTOGRAM];

    add(&peer->counters, sums);
    uint64_t reads = done_of(sums, VNX_OP_READ);
    uint64_t writes = done_of(sums, VNX_OP_WRITE);
    xfer_times(sums, places, &us_sum);
    fold(places, times);
    vnxi_json_number(out, "transfers", reads + writes);
    vnxi_json_number(out, "reads_done", reads);
    vnxi_json_number(out, "writes_done", writes);
    vnxi_json_number(out, "bytes_read", sums[VNXI_BYTES + VNX_OP_READ]);
    vnxi_json_number(out, "bytes_written", sums[VNXI_BYTES + VNX_OP_WRITE]);
    vnxi_json_number(out, "rows", rows_of(sums));
    vnxi_json_number(out, "pieces",
                     sums[VNXI_POSTED] + sums[VNXI_MORE_PIECES]);
    vnxi_json_number(out, "in_flight",
                     sums[VNXI_POSTED] - reads - writes -
                         total(&sums[VNXI_ENDS], VNX_STATUS_COUNT));
    write_failures(out, sums);
    vnxi_json_number(out, "xfer_us_sum", us_sum);
    write_times(out, "xfer_us_log2", times);
    vnxi_json_number(out, "notifs_sent", sums[VNXI_NOTIFS_SENT]);
    vnxi_json_number(out, "notifs_received", sums[VNXI_NOTIFS_RECEIVED]);
}

/* -- The agent -------------------------------------------------------------
 */

static void
count_xfers(const uint64_t *sums, vnx_agent_stats_t *stats)
{
    stats->xfers_posted = sums[VNXI_POSTED];
    stats->reads_done = done_of(sums, VNX_OP_READ);
    stats->writes_done = done_of(sums, VNX_OP_WRITE);
    stats->xfers_done = stats->reads_done + stats->writes_done;
    stats->xfers_failed = failed_of(sums);
    stats->xfers_cancelled = cancelled_of(sums);
    stats->bytes_read = sums[VNXI_BYTES + VNX_OP_READ];
    stats->bytes_written = sums[VNXI_BYTES + VNX_OP_WRITE];
    stats->rows = rows_of(sums);
    stats->pieces = sums[VNXI_POSTED] + sums[VNXI_MORE_PIECES];
    stats->notifs_sent = sums[VNXI_NOTIFS_SENT];
    memcpy(stats->failures, &sums[VNXI_ENDS], sizeof stats->failures);
    stats->failures[vnx_status_index(VNX_ERR_CANCELED)] = 0;
}

static void
count_times(const uint64_t *sums, vnx_agent_stats_t *stats)
{
    uint64_t places[VNXI_PLACES];

    xfer_times(sums, places, &stats->xfer_us_sum);
    fold(places, stats->xfer_us_log2);
    fold_nixl(places, stats->xfer_us_nixl);
    post_times(sums, places, &stats->post_us_sum);
    fold(places, stats->post_us_log2);
    fold_nixl(places, stats->post_us_nixl);
}

static void
count_the_rest(const vnxi_agent_counters_t *counters, vnx_agent_stats_t *stats)
{
    uint64_t gone = get(&counters->bytes_deregistered);
    uint64_t all = get(&counters->bytes_registered);

    stats->bytes_registered_total = all;
    stats->bytes_deregistered_total = gone;
    stats->bytes_registered = all > gone ? all - gone : 0;
    stats->regions = get(&counters->regions);
    stats->peers_lost = get(&counters->peers_lost);
    stats->live_dlists = get(&counters->live_dlists);
    stats->live_xfers = get(&counters->live_xfers);
    stats->last_bytes_read = get(&counters->last_bytes[VNX_OP_READ]);
    stats->last_bytes_written = get(&counters->last_bytes[VNX_OP_WRITE]);
    stats->last_xfer_us = get(&counters->last_xfer_ns) / 1000;
    stats->last_post_us = get(&counters->last_post_ns) / 1000;
    stats->last_bytes_registered = get(&counters->last_registered);
    stats->last_bytes_deregistered = get(&counters->last_deregistered);
    for (size_t i = 0; i < VNX_STATUS_COUNT; i++) {
        stats->refusals[i] = get(&counters->refusals[i]);
    }
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
    stats->notif_wait_us_sum = get(&notifs->wait_ns) / 1000;
    for (size_t i = 0; i < VNX_HISTOGRAM; i++) {
        stats->notif_wait_us_log2[i] =
            get(&notifs->waits[2 * i]) + get(&notifs->waits[2 * i + 1]);
    }
}

void
vnx_agent_stats(const vnx_agent_t *agent, vnx_agent_stats_t *stats_p)
{
    uint64_t sums[VNXI_COUNTERS];
    /* Taking a lock does not change what the caller sees as const. */
    vnx_agent_t *unlocked = (vnx_agent_t *)agent;

    memset(stats_p, 0, sizeof *stats_p);
    add_up(unlocked, sums);
    count_xfers(sums, stats_p);
    count_times(sums, stats_p);
    count_the_rest(&agent->counters, stats_p);
    if (vnxi_fork_crossed(agent->fork_count)) {
        return; /* a lock may be held for ever here */
    }
    count_notifs(&unlocked->notifs, stats_p);
    vnxi_mutex_lock(&unlocked->peers_lock);
    stats_p->peers = agent->peers.count;
    vnxi_mutex_unlock(&unlocked->peers_lock);
}
