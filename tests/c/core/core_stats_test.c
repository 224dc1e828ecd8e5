/* The counters of vnx_agent_stats() and vnx_agent_peers(). */
#include "agent_pair.h"
#include "json_check.h"
#include "pool_gate.h"

#include <stdatomic.h>
#include <unistd.h>

#include "engine/counters.h"

static uint64_t
sum_of(const uint64_t counts[VNX_HISTOGRAM])
{
    uint64_t sum = 0;
    for (size_t i = 0; i < VNX_HISTOGRAM; i++) {
        sum += counts[i];
    }
    return sum;
}

static uint64_t
histogram_sum(const vnx_agent_stats_t *stats)
{
    return sum_of(stats->xfer_us_log2);
}

static uint64_t
failures_of(const vnx_agent_t *agent, vnx_status_t status)
{
    return stats_of(agent).failures[vnx_status_index(status)];
}

/* What vnx_agent_peers() says; owned. */
static char *
peers_of(vnx_agent_t *agent)
{
    vnx_bytes_t json;
    assert_ok(vnx_agent_peers(agent, &json, e));
    char *text = strndup(json.data, json.len);
    assert_int_equal(strlen(text), json.len);
    free(json.data);
    if (!json_is_valid(text)) {
        fail_msg("no JSON: %s", text);
    }
    return text;
}

/* The number behind `"key": ` in what is said of B. */
static uint64_t
number_of_b(vnx_agent_t *agent, const char *key)
{
    char *text = peers_of(agent), quoted[64];
    snprintf(quoted, sizeof quoted, "\"%s\": ", key);
    char *of_b = strstr(text, "\"B\": {");
    assert_non_null(of_b);
    char *at = strstr(of_b, quoted);
    assert_non_null(at);
    uint64_t number = strtoull(at + strlen(quoted), NULL, 10);
    free(text);
    return number;
}

static bool
peers_have(vnx_agent_t *agent, const char *part)
{
    char *text = peers_of(agent);
    bool found = strstr(text, part) != NULL;
    free(text);
    return found;
}

static void
test_core_stats_of_a_new_agent_are_zero(void **state)
{
    static const vnx_agent_stats_t zero;
    vnx_agent_t *agent = make_agent("new");
    vnx_agent_stats_t stats;
    (void)state;

    memset(&stats, 0xff, sizeof stats);
    vnx_agent_stats(agent, &stats);
    assert_memory_equal(&stats, &zero, sizeof zero);
    vnx_agent_release(agent);
}

static void
test_core_stats_count_transfers_and_their_bytes(void **state)
{
    pair_t *p = *state;
    vnx_xfer_t *reads = pair_make_xfer(p, VNX_OP_READ, 16, NULL);
    vnx_xfer_t *writes = pair_make_xfer(p, VNX_OP_WRITE, ROWS, "n");

    assert_int_equal(stats_of(p->a).xfers_posted, 0);
    for (int i = 0; i < 3; i++) {
        run_xfer(p->a, reads);
    }
    run_xfer(p->a, writes);
    vnx_agent_stats_t stats = stats_of(p->a);
    assert_int_equal(stats.xfers_posted, 4);
    assert_int_equal(stats.xfers_done, 4);
    assert_int_equal(stats.xfers_failed + stats.xfers_cancelled, 0);
    assert_int_equal(stats.reads_done, 3);
    assert_int_equal(stats.writes_done, 1);
    assert_int_equal(stats.bytes_read, 3 * 16 * ROW);
    assert_int_equal(stats.bytes_written, p->len);
    assert_int_equal(stats.last_bytes_read, 16 * ROW);
    assert_int_equal(stats.last_bytes_written, p->len);
    assert_int_equal(stats.rows, 3 * 16 + ROWS);
    assert_int_equal(stats.pieces, 4);
    assert_int_equal(stats.notifs_sent, 1);
    assert_int_equal(histogram_sum(&stats), 4);
    assert_int_equal(sum_of(stats.post_us_log2), 4);
    assert_int_equal(stats_of(p->b).xfers_posted, 0);
    assert_int_equal(stats_of(p->b).notifs_received, 1);
    assert_ok(vnx_xfer_release(reads, e));
    assert_ok(vnx_xfer_release(writes, e));
}

static void
test_core_stats_count_pieces_after_merging(void **state)
{
    static const uint8_t rows[] = {0, 1, 2, 10, 11, 20};
    pair_t *p = *state;
    vnx_dlist_t *local = prepare_rows(p->a, "", p->at_a, ROW, 32);
    vnx_dlist_t *remote = prepare_rows(p->a, "B", p->at_b, ROW, 32);
    vnx_indices_t indices = {rows, 6, VNX_INDEX_U8};

    for (int no_merge = 0; no_merge <= 1; no_merge++) {
        vnx_xfer_t *xfer = NULL;
        assert_ok(vnx_xfer_create_prepped(p->a, VNX_OP_READ, local, indices,
                                          remote, indices, NULL, 0, no_merge,
                                          &xfer, e));
        run_xfer(p->a, xfer);
        assert_ok(vnx_xfer_release(xfer, e));
    }
    assert_int_equal(stats_of(p->a).rows, 12);
    assert_int_equal(stats_of(p->a).pieces, 3 + 6);
    vnx_dlist_release(remote);
    vnx_dlist_release(local);
}

static void
test_core_stats_count_a_transfer_when_it_ends(void **state)
{
    pair_t *p = *state;
    vnx_xfer_t *xfer = pair_make_xfer(p, VNX_OP_READ, ROWS, NULL);

    pool_gate_t *gate = gate_shut();
    assert_int_equal(vnx_xfer_post(xfer, NULL, 0, NULL), VNX_IN_PROG);
    vnx_agent_stats_t stats = stats_of(p->a);
    assert_int_equal(stats.xfers_posted, 1);
    assert_int_equal(stats.xfers_done + stats.bytes_read, 0);
    assert_int_equal(histogram_sum(&stats), 0);
    assert_int_equal(sum_of(stats.post_us_log2), 1);
    assert_int_equal(number_of_b(p->a, "in_flight"), 1);
    gate_open(gate);
    assert_ok(vnx_agent_wait(p->a, &xfer, 1, 0, vnx_test_limit(30), e));
    assert_int_equal(number_of_b(p->a, "in_flight"), 0);
    assert_int_equal(stats_of(p->a).xfers_done, 1);
    assert_ok(vnx_xfer_release(xfer, e));
}

static void
test_core_stats_distinguish_failed_from_cancelled(void **state)
{
    pair_t *p = *state;
    vnx_xfer_t *xfer = pair_make_xfer(p, VNX_OP_READ, ROWS, "n");
    uint64_t posts = 0;
    bool stopped = false;

    while (!stopped && posts < 10000) {
        assert_ok(vnx_xfer_post(xfer, NULL, 0, e));
        assert_ok(vnx_xfer_cancel(xfer, &stopped, e));
        posts++;
    }
    deregister_at(p->b, p->at_b, p->len);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(vnx_xfer_post(xfer, NULL, 0, NULL),
                         VNX_ERR_NOT_FOUND);
    }
    vnx_agent_stats_t stats = stats_of(p->a);
    assert_int_equal(stats.xfers_cancelled, 1);
    assert_int_equal(stats.xfers_failed, 3);
    assert_int_equal(stats.xfers_done, posts - 1);
    assert_int_equal(stats.xfers_posted, posts + 3);
    assert_int_equal(stats.bytes_read, (posts - 1) * p->len);
    assert_int_equal(stats.notifs_sent, posts - 1);
    assert_int_equal(histogram_sum(&stats), posts - 1);
    assert_int_equal(failures_of(p->a, VNX_ERR_NOT_FOUND), 3);
    assert_int_equal(sum_of(stats.post_us_log2), stats.xfers_posted);
    assert_true(peers_have(p->a, "\"failures\": {\"NIXL_ERR_NOT_FOUND\": 3}"));
    assert_int_equal(number_of_b(p->a, "in_flight"), 0);
    assert_ok(vnx_xfer_release(xfer, e));
}

static unsigned
place_of(uint64_t us)
{
    unsigned log2 = 0;
    while (us >> (log2 + 1) != 0) {
        log2++;
    }
    return log2;
}

static const uint64_t nixl_bounds[VNX_NIXL_HISTOGRAM - 1] = {
    10,    25,    50,    100,    250,    500,    1000,    2500,    5000,
    10000, 25000, 50000, 100000, 250000, 500000, 1000000, 5000000, 10000000};

static unsigned
nixl_place_of(uint64_t us)
{
    unsigned place = 0;
    while (place < VNX_NIXL_HISTOGRAM - 1 && us > nixl_bounds[place]) {
        place++;
    }
    return place;
}

/* Up to two places share a power of two; a bound belongs to the first. */
static void
test_core_stats_places_split_at_nixls_bounds(void **state)
{
    (void)state;
    for (unsigned i = 0; i < VNX_NIXL_HISTOGRAM - 1; i++) {
        uint64_t us = nixl_bounds[i];
        unsigned place = vnxi_histogram_place(us * 1000 + 999);
        assert_int_equal(place, 2 * place_of(us));
        assert_int_equal(vnxi_histogram_place((us + 1) * 1000), place + 1);
    }
    assert_true(vnxi_histogram_place(UINT64_MAX) < VNXI_PLACES);
    assert_true(vnxi_histogram_place(0) < 2);
}

/* Sums of times are those of whole microseconds, or up to one more for each
 * transfer. */
static void
assert_sum_near(uint64_t sum, uint64_t whole, uint64_t count)
{
    assert_true(sum >= whole && sum <= whole + count);
}

static void
test_core_stats_times_agree_with_telemetry(void **state)
{
    pair_t *p = *state;
    vnx_xfer_t *xfer = pair_make_xfer(p, VNX_OP_READ, ROWS, NULL);
    vnx_xfer_telemetry_t telemetry;
    uint64_t expected[32] = {0}, us = 0;
    uint64_t expected_nixl[VNX_NIXL_HISTOGRAM] = {0};

    for (int i = 0; i < 20; i++) {
        run_xfer(p->a, xfer);
        assert_ok(vnx_xfer_telemetry(xfer, &telemetry, e));
        expected[place_of(telemetry.xfer_us)]++;
        expected_nixl[nixl_place_of(telemetry.xfer_us)]++;
        us += telemetry.xfer_us;
    }
    vnx_agent_stats_t stats = stats_of(p->a);
    assert_memory_equal(stats.xfer_us_log2, expected, sizeof expected);
    assert_memory_equal(stats.xfer_us_nixl, expected_nixl,
                        sizeof expected_nixl);
    assert_int_equal(stats.last_xfer_us, telemetry.xfer_us);
    assert_sum_near(stats.xfer_us_sum, us, 20);
    assert_int_equal(sum_of(stats.post_us_log2), 20);
    assert_ok(vnx_xfer_release(xfer, e));
}

/* A transfer that is done when its post returns took as long as the post. */
static void
test_core_stats_times_of_transfers_done_at_once(void **state)
{
    pair_t *p = *state;
    vnx_xfer_t *xfer = pair_make_xfer(p, VNX_OP_WRITE, 1, NULL);
    vnx_xfer_telemetry_t telemetry;
    uint64_t expected[32] = {0}, us = 0;

    run_xfer(p->a, xfer); /* B confirms its region */
    vnx_agent_stats_t first = stats_of(p->a);
    for (int i = 0; i < 100; i++) {
        assert_int_equal(vnx_xfer_post(xfer, NULL, 0, NULL), VNX_OK);
        assert_ok(vnx_xfer_telemetry(xfer, &telemetry, e));
        assert_int_equal(telemetry.post_us, telemetry.xfer_us);
        expected[place_of(telemetry.post_us)]++;
        us += telemetry.post_us;
    }
    vnx_agent_stats_t stats = stats_of(p->a);
    for (size_t i = 0; i < 32; i++) {
        assert_int_equal(stats.post_us_log2[i] - first.post_us_log2[i],
                         expected[i]);
        assert_int_equal(stats.xfer_us_log2[i] - first.xfer_us_log2[i],
                         expected[i]);
    }
    assert_sum_near(stats.post_us_sum - first.post_us_sum, us, 101);
    assert_sum_near(stats.xfer_us_sum - first.xfer_us_sum, us, 101);
    assert_int_equal(stats.rows, 101);
    assert_int_equal(stats.pieces, 101);
    assert_ok(vnx_xfer_release(xfer, e));
}

static void
test_core_stats_follow_regions_peers_and_handles(void **state)
{
    pair_t *p = *state;
    static unsigned char more[2 * ROW];
    vnx_reg_desc_t two[] = {region_of(more, ROW), region_of(more + ROW, ROW)};
    vnx_reg_desc_t bad[] = {region_of(more, ROW), region_of(more, 0)};

    assert_int_equal(stats_of(p->a).regions, 1);
    assert_int_equal(stats_of(p->a).bytes_registered, p->len);
    assert_ok(vnx_agent_register(p->a, VNX_MEM_DRAM, two, 2, NULL, e));
    assert_int_equal(stats_of(p->a).regions, 3);
    assert_int_equal(
        vnx_agent_register(p->a, VNX_MEM_DRAM, bad, 2, NULL, NULL),
        VNX_ERR_INVALID_PARAM);
    assert_int_equal(
        vnx_agent_deregister(p->a, VNX_MEM_DRAM, bad, 2, NULL, NULL),
        VNX_ERR_NOT_FOUND);
    vnx_agent_stats_t stats = stats_of(p->a);
    assert_int_equal(stats.regions, 3);
    assert_int_equal(stats.bytes_registered, p->len + 2 * ROW);
    assert_int_equal(stats.bytes_registered_total, p->len + 2 * ROW);
    assert_int_equal(stats.bytes_deregistered_total, 0);
    assert_ok(vnx_agent_deregister(p->a, VNX_MEM_DRAM, two, 2, NULL, e));
    stats = stats_of(p->a);
    assert_int_equal(stats.regions, 1);
    assert_int_equal(stats.bytes_registered, p->len);
    assert_int_equal(stats.bytes_registered_total, p->len + 2 * ROW);
    assert_int_equal(stats.bytes_deregistered_total, 2 * ROW);

    assert_int_equal(stats_of(p->a).peers, 1);
    assert_int_equal(stats_of(p->b).peers, 0);
    vnx_xfer_t *xfer = pair_make_xfer(p, VNX_OP_READ, 4, NULL);
    assert_int_equal(stats_of(p->a).live_xfers, 1);
    assert_int_equal(stats_of(p->a).live_dlists, 0);
    assert_ok(vnx_xfer_release(xfer, e));
    assert_int_equal(stats_of(p->a).live_xfers, 0);
    assert_ok(vnx_agent_remove_peer(p->a, "B", 1, e));
    assert_int_equal(stats_of(p->a).peers, 0);
}

static void
test_core_stats_keep_counts_after_close(void **state)
{
    pair_t *p = *state;
    vnx_xfer_t *xfer = pair_make_xfer(p, VNX_OP_READ, 4, NULL);

    run_xfer(p->a, xfer);
    vnx_agent_close(p->a);
    assert_int_equal(vnx_xfer_post(xfer, NULL, 0, NULL), VNX_ERR_CLOSED);
    vnx_agent_stats_t stats = stats_of(p->a);
    assert_int_equal(stats.xfers_posted, 1);
    assert_int_equal(stats.bytes_read, 4 * ROW);
    assert_int_equal(stats.live_xfers, 1);
    assert_int_equal(stats.peers, 0);
    assert_ok(vnx_xfer_release(xfer, e));
    assert_int_equal(stats_of(p->a).bytes_read, 4 * ROW);
}

/* -- Peers -----------------------------------------------------------------
 */

static void
test_core_stats_lose_no_count_of_a_removed_peer(void **state)
{
    pair_t *p = *state;
    vnx_xfer_t *kept = pair_make_xfer(p, VNX_OP_READ, 4, NULL);
    vnx_xfer_t *other = pair_make_xfer(p, VNX_OP_WRITE, 2, NULL);

    run_xfer(p->a, kept);
    run_xfer(p->a, other);
    assert_ok(vnx_xfer_release(other, e));
    assert_ok(vnx_agent_remove_peer(p->a, "B", 1, e));
    assert_true(peers_have(p->a, "{}"));
    /* The transfer refers to the removed peer, and its failure counts. */
    assert_int_equal(vnx_xfer_post(kept, NULL, 0, NULL),
                     VNX_ERR_REMOTE_DISCONNECT);
    vnx_agent_stats_t before = stats_of(p->a);
    assert_int_equal(before.bytes_read, 4 * ROW);
    assert_int_equal(before.bytes_written, 2 * ROW);
    assert_int_equal(before.xfers_posted, 3);
    assert_int_equal(before.xfers_failed, 1);
    assert_int_equal(failures_of(p->a, VNX_ERR_REMOTE_DISCONNECT), 1);

    assert_ok(vnx_xfer_release(kept, e));
    before.live_xfers = 0;
    vnx_agent_stats_t after = stats_of(p->a);
    assert_memory_equal(&after, &before, sizeof after);
}

static void
test_core_stats_of_a_superseded_peer_begin_again(void **state)
{
    pair_t *p = *state;
    vnx_xfer_t *old = pair_make_xfer(p, VNX_OP_READ, 4, NULL);

    run_xfer(p->a, old);
    assert_int_equal(number_of_b(p->a, "generation"), 1);
    pair_restart_b(p);
    load_peer(p->a, p->b);
    assert_int_equal(vnx_xfer_post(old, NULL, 0, NULL),
                     VNX_ERR_REMOTE_DISCONNECT);
    vnx_xfer_t *xfer = pair_make_xfer(p, VNX_OP_READ, 8, NULL);
    run_xfer(p->a, xfer);
    assert_int_equal(number_of_b(p->a, "generation"), 2);
    assert_int_equal(number_of_b(p->a, "transfers"), 1);
    assert_int_equal(number_of_b(p->a, "bytes_read"), 8 * ROW);
    assert_true(peers_have(p->a, "\"failures\": {}"));
    vnx_agent_stats_t stats = stats_of(p->a);
    assert_int_equal(stats.bytes_read, (4 + 8) * ROW);
    assert_int_equal(stats.xfers_failed, 1);
    assert_ok(vnx_xfer_release(old, e));
    assert_ok(vnx_xfer_release(xfer, e));
    assert_int_equal(stats_of(p->a).xfers_failed, 1);
    assert_int_equal(stats_of(p->a).xfers_done, 2);
}

static void
test_core_stats_peers_have_state_and_counters(void **state)
{
    pair_t *p = *state;
    vnx_xfer_t *read = pair_make_xfer(p, VNX_OP_READ, 4, "n");
    vnx_xfer_t *write = pair_make_xfer(p, VNX_OP_WRITE, 1, NULL);

    load_peer(p->b, p->a);
    run_xfer(p->a, read);
    run_xfer(p->a, write);
    run_xfer(p->a, write);
    assert_ok(vnx_agent_send_notif(p->b, "A", 1, "x", 1, e));
    assert_true(peers_have(p->a, "\"state\": \"connected\""));
    assert_true(peers_have(p->a, "\"path\": \"process\""));
    assert_int_equal(number_of_b(p->a, "pid"), getpid());
    assert_int_equal(number_of_b(p->a, "transfers"), 3);
    assert_int_equal(number_of_b(p->a, "reads_done"), 1);
    assert_int_equal(number_of_b(p->a, "writes_done"), 2);
    assert_int_equal(number_of_b(p->a, "bytes_read"), 4 * ROW);
    assert_int_equal(number_of_b(p->a, "bytes_written"), 2 * ROW);
    assert_int_equal(number_of_b(p->a, "rows"), 6);
    assert_int_equal(number_of_b(p->a, "pieces"), 3);
    assert_int_equal(number_of_b(p->a, "notifs_sent"), 1);
    assert_int_equal(number_of_b(p->a, "notifs_received"), 1);
    assert_false(peers_have(p->a, "\"cause\""));

    vnx_agent_close(p->b);
    assert_true(peers_have(p->a, "\"state\": \"lost\", \"cause\": \""));
    assert_int_equal(number_of_b(p->a, "transfers"), 3);
    assert_ok(vnx_xfer_release(read, e));
    assert_ok(vnx_xfer_release(write, e));
    vnx_bytes_t json;
    vnx_agent_close(p->a);
    assert_int_equal(vnx_agent_peers(p->a, &json, NULL), VNX_ERR_CLOSED);
}

static void
test_core_stats_peers_of_a_new_agent_are_none(void **state)
{
    vnx_agent_t *agent = NULL;
    (void)state;

    assert_ok(vnx_agent_create("new", 3, NULL, &agent, e));
    assert_true(peers_have(agent, "{}"));
    vnx_agent_release(agent);
}

/* Transfers within the agent count in its totals; the agent is not one of its
 * own peers, but can be described. */
static void
test_core_stats_count_transfers_within_the_agent(void **state)
{
    pair_t *p = *state;
    vnx_dlist_t *local = prepare_rows(p->a, "", p->at_a, ROW, 4);
    vnx_dlist_t *remote =
        prepare_rows(p->a, "A", p->at_a + p->len / 2, ROW, 4);
    vnx_xfer_t *xfer = make_xfer(p->a, VNX_OP_WRITE, local, remote, 4, "n");
    vnx_bytes_t json;

    run_xfer(p->a, xfer);
    vnx_agent_stats_t stats = stats_of(p->a);
    assert_int_equal(stats.writes_done, 1);
    assert_int_equal(stats.bytes_written, 4 * ROW);
    assert_int_equal(stats.notifs_sent, 1);
    assert_int_equal(stats.notifs_received, 1);
    assert_false(peers_have(p->a, "\"A\""));
    assert_int_equal(number_of_b(p->a, "transfers"), 0);
    assert_ok(vnx_agent_describe(p->a, "A", 1, &json, e));
    assert_non_null(
        memmem(json.data, json.len, "\"bytes_written\": 16384,", 23));
    assert_non_null(
        memmem(json.data, json.len, "\"notifs_received\": 1,", 21));
    free(json.data);
    assert_ok(vnx_xfer_release(xfer, e));
    vnx_dlist_release(local);
    vnx_dlist_release(remote);
}

/* Names of peers are any bytes. */
static void
test_core_stats_peers_with_names_that_are_not_text(void **state)
{
    static const char strange[] = "q\"\\\n\0\xc3\xa9\xff\xc3";
    pair_t *p = *state;
    vnx_agent_t *other = NULL;

    assert_ok(vnx_agent_create(strange, sizeof strange - 1, NULL, &other, e));
    assert_ok(vnx_agent_create_backend(other, "UCX", NULL, 0, e));
    load_peer(p->a, other);
    assert_true(peers_have(
        p->a, "\"q\\u0022\\u005c\\u000a\\u0000\xc3\xa9\\udcff\\udcc3\": {"));
    assert_true(peers_have(p->a, "\"B\": {"));
    vnx_agent_release(other);
}

typedef struct churn {
    pair_t *pair;
    atomic_bool is_over;
    atomic_uint_fast64_t moved; /* transfers that succeeded */
    atomic_uint_fast64_t tried;
} churn_t;

/* Make and run transfers to B, whatever becomes of it. */
static void *
move_rows(void *argument)
{
    churn_t *churn = argument;
    pair_t *p = churn->pair;
    vnx_desc_t here = desc_at(p->at_a, ROW), there = desc_at(p->at_b, ROW);

    while (!atomic_load(&churn->is_over)) {
        vnx_xfer_t *xfer = NULL;
        if (vnx_xfer_create(p->a, VNX_OP_WRITE, VNX_MEM_DRAM, &here, 1,
                            VNX_MEM_DRAM, &there, 1, "B", 1, NULL, 0, NULL,
                            &xfer, NULL) != VNX_OK) {
            continue;
        }
        for (int i = 0; i < 5; i++) {
            atomic_fetch_add(&churn->tried, 1);
            vnx_status_t status = vnx_xfer_post(xfer, NULL, 0, NULL);
            if (status == VNX_IN_PROG) {
                status = vnx_agent_wait(p->a, &xfer, 1, 0, vnx_test_limit(30),
                                        NULL);
            }
            atomic_fetch_add(&churn->moved, status == VNX_OK);
        }
        assert_ok(vnx_xfer_release(xfer, e));
    }
    return NULL;
}

static void *
load_and_remove(void *argument)
{
    churn_t *churn = argument;

    for (int i = 0; !atomic_load(&churn->is_over); i++) {
        if (i % 3 != 0) {
            load_peer(churn->pair->a, churn->pair->b);
        } else {
            assert_ok(vnx_agent_remove_peer(churn->pair->a, "B", 1, e));
        }
    }
    return NULL;
}

/* No count is lost or taken twice while others look, and no number of the
 * agent goes down. */
static void
test_core_stats_are_exact_while_peers_come_and_go(void **state)
{
    churn_t churn = {.pair = *state};
    vnx_agent_t *a = churn.pair->a;
    vnx_agent_stats_t last = stats_of(a);
    pthread_t threads[2];

    pthread_create(&threads[0], NULL, move_rows, &churn);
    pthread_create(&threads[1], NULL, load_and_remove, &churn);
    for (int i = 0; i < 2000 || last.xfers_done < 100; i++) {
        free(peers_of(a));
        vnx_agent_stats_t now = stats_of(a);
        assert_true(now.xfers_posted >= last.xfers_posted);
        assert_true(now.xfers_done >= last.xfers_done);
        assert_true(now.bytes_written >= last.bytes_written);
        assert_true(now.xfers_done + now.xfers_failed <= now.xfers_posted);
        last = now;
    }
    atomic_store(&churn.is_over, true);
    pthread_join(threads[0], NULL);
    pthread_join(threads[1], NULL);
    vnx_agent_stats_t stats = stats_of(a);
    uint64_t moved = atomic_load(&churn.moved);
    uint64_t tried = atomic_load(&churn.tried);
    assert_int_equal(stats.xfers_posted, tried);
    assert_int_equal(stats.xfers_done, moved);
    assert_int_equal(stats.xfers_failed, tried - moved);
    assert_int_equal(stats.bytes_written, moved * ROW);
    assert_int_equal(histogram_sum(&stats), moved);
    assert_int_equal(sum_of(stats.post_us_log2), tried);
}

/* -- Notifications ---------------------------------------------------------
 */

static void
test_core_stats_count_notifications_on_both_sides(void **state)
{
    pair_t *p = *state;
    vnx_agent_stats_t stats;

    for (int i = 0; i < 10; i++) {
        assert_ok(vnx_agent_send_notif(p->a, "B", 1, "12345", 5, e));
    }
    assert_int_equal(vnx_agent_send_notif(p->a, "C", 1, "", 0, NULL),
                     VNX_ERR_NOT_FOUND);
    assert_int_equal(stats_of(p->a).notifs_sent, 10);
    assert_int_equal(stats_of(p->a).notifs_received, 0);
    stats = stats_of(p->b);
    assert_int_equal(stats.notifs_received, 10);
    assert_int_equal(stats.notifs_pending, 10);
    assert_true(stats.notif_bytes_pending >= 10 * (5 + 1));
    assert_int_equal(stats.notifs_dropped, 0);
    assert_int_equal(sum_of(stats.notif_wait_us_log2), 0);

    vnx_notif_free(vnx_agent_take_notifs(p->b));
    stats = stats_of(p->b);
    assert_int_equal(stats.notifs_received, 10);
    assert_int_equal(stats.notifs_pending + stats.notif_bytes_pending, 0);
    assert_int_equal(sum_of(stats.notif_wait_us_log2), 10);
    vnx_notif_free(vnx_agent_take_notifs(p->b));
    assert_int_equal(sum_of(stats_of(p->b).notif_wait_us_log2), 10);
}

static void
test_core_stats_have_how_long_notifications_waited(void **state)
{
    pair_t *p = *state;
    struct timespec pause = {0, 3000000};

    for (int i = 0; i < 5; i++) {
        assert_ok(vnx_agent_send_notif(p->a, "B", 1, "x", 1, e));
    }
    nanosleep(&pause, NULL);
    vnx_notif_t *chain = vnx_agent_take_notifs(p->b);
    for (vnx_notif_t *n = chain; n != NULL; n = n->next) {
        assert_true(n->next == NULL || n->arrived_ns <= n->next->arrived_ns);
    }
    vnx_notif_free(chain);
    vnx_agent_stats_t stats = stats_of(p->b);
    assert_true(stats.notif_wait_us_sum >= 5 * 3000);
    for (int i = 0; i < 11; i++) { /* less than 2048 us */
        assert_int_equal(stats.notif_wait_us_log2[i], 0);
    }
    assert_int_equal(sum_of(stats.notif_wait_us_log2), 5);
}

/* An agent that keeps at most `bytes` of notifications, known to itself. */
static vnx_agent_t *
make_bounded(const char *name, uint64_t bytes)
{
    vnx_agent_config_t config = {.size = sizeof config,
                                 .notif_bytes_max = bytes};
    vnx_agent_t *agent = NULL;
    assert_ok(vnx_agent_create(name, strlen(name), &config, &agent, e));
    assert_ok(vnx_agent_create_backend(agent, "UCX", NULL, 0, e));
    return agent;
}

static void
test_core_stats_count_dropped_notifications(void **state)
{
    vnx_agent_t *agent = make_bounded("me", 4096);
    uint32_t number, expected, taken = 0;
    (void)state;

    for (number = 0; number < 1000; number++) {
        assert_ok(
            vnx_agent_send_notif(agent, "me", 2, &number, sizeof number, e));
        assert_true(stats_of(agent).notif_bytes_pending <= 4096);
    }
    vnx_agent_stats_t stats = stats_of(agent);
    assert_int_equal(stats.notifs_received, 1000);
    assert_int_equal(stats.notifs_dropped + stats.notifs_pending, 1000);
    assert_true(stats.notifs_dropped > 0);
    assert_true(stats.notifs_pending > 1);

    /* The newest are there, in their order. */
    vnx_notif_t *chain = vnx_agent_take_notifs(agent);
    expected = (uint32_t)stats.notifs_dropped;
    for (vnx_notif_t *n = chain; n != NULL; n = n->next) {
        memcpy(&number, n->message, sizeof number);
        assert_int_equal(number, expected);
        expected++;
        taken++;
    }
    assert_int_equal(taken, stats.notifs_pending);
    assert_int_equal(expected, 1000);
    vnx_notif_free(chain);
    vnx_agent_release(agent);
}

static void
test_core_stats_newest_notification_always_stays(void **state)
{
    vnx_agent_t *agent = make_bounded("me", 100);
    static const char large[5000];
    (void)state;

    assert_ok(vnx_agent_send_notif(agent, "me", 2, "small", 5, e));
    assert_ok(vnx_agent_send_notif(agent, "me", 2, large, sizeof large, e));
    assert_int_equal(stats_of(agent).notifs_dropped, 1);
    vnx_notif_t *notif = vnx_agent_take_notifs(agent);
    assert_non_null(notif);
    assert_int_equal(notif->message_len, sizeof large);
    assert_null(notif->next);
    vnx_notif_free(notif);

    /* Received notifications free space. */
    assert_ok(vnx_agent_send_notif(agent, "me", 2, "small", 5, e));
    assert_int_equal(stats_of(agent).notifs_dropped, 1);
    assert_int_equal(stats_of(agent).notifs_pending, 1);
    vnx_agent_release(agent);
}

typedef struct sender {
    pair_t *pair;
    unsigned count;
    size_t offset; /* of its own rows: no two threads copy to the same place */
} sender_t;

static void *
send_and_copy(void *argument)
{
    sender_t *sender = argument;
    pair_t *p = sender->pair;
    vnx_dlist_t *local =
        prepare_rows(p->a, "", p->at_a + sender->offset, ROW, 4);
    vnx_dlist_t *remote =
        prepare_rows(p->a, "B", p->at_b + sender->offset, ROW, 4);
    vnx_xfer_t *xfer = make_xfer(p->a, VNX_OP_READ, local, remote, 4, "n");

    vnx_dlist_release(local);
    vnx_dlist_release(remote);
    for (unsigned i = 0; i < sender->count; i++) {
        assert_ok(vnx_agent_send_notif(p->a, "B", 1, "x", 1, e));
        vnx_agent_stats_t stats = stats_of(p->a);
        assert_true(stats.xfers_done <= stats.xfers_posted);
    }
    run_xfer(p->a, xfer);
    vnx_xfer_abandon(xfer);
    return NULL;
}

static void
test_core_stats_add_up_over_threads(void **state)
{
    pair_t *p = *state;
    sender_t senders[4];
    pthread_t threads[4];
    uint64_t taken = 0;

    for (int i = 0; i < 4; i++) {
        senders[i] = (sender_t){p, 500, (size_t)i * 4 * ROW};
        pthread_create(&threads[i], NULL, send_and_copy, &senders[i]);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
    }
    for (vnx_notif_t *n = vnx_agent_take_notifs(p->b), *next; n != NULL;
         n = next) {
        next = n->next;
        n->next = NULL;
        vnx_notif_free(n);
        taken++;
    }
    assert_int_equal(taken, 4 * 501);
    assert_int_equal(stats_of(p->a).notifs_sent, 4 * 501);
    assert_int_equal(stats_of(p->b).notifs_received, 4 * 501);
    assert_int_equal(stats_of(p->a).xfers_done, 4);
    assert_int_equal(stats_of(p->a).live_xfers, 0);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_core_stats_of_a_new_agent_are_zero),
        with_pair(test_core_stats_count_transfers_and_their_bytes),
        with_pair(test_core_stats_count_pieces_after_merging),
        with_pair(test_core_stats_count_a_transfer_when_it_ends),
        with_pair(test_core_stats_distinguish_failed_from_cancelled),
        cmocka_unit_test(test_core_stats_places_split_at_nixls_bounds),
        with_pair(test_core_stats_times_agree_with_telemetry),
        with_pair(test_core_stats_times_of_transfers_done_at_once),
        with_pair(test_core_stats_follow_regions_peers_and_handles),
        with_pair(test_core_stats_keep_counts_after_close),
        with_pair(test_core_stats_lose_no_count_of_a_removed_peer),
        with_pair(test_core_stats_of_a_superseded_peer_begin_again),
        with_pair(test_core_stats_peers_have_state_and_counters),
        cmocka_unit_test(test_core_stats_peers_of_a_new_agent_are_none),
        with_pair(test_core_stats_count_transfers_within_the_agent),
        with_pair(test_core_stats_peers_with_names_that_are_not_text),
        with_pair(test_core_stats_are_exact_while_peers_come_and_go),
        with_pair(test_core_stats_count_notifications_on_both_sides),
        with_pair(test_core_stats_have_how_long_notifications_waited),
        cmocka_unit_test(test_core_stats_count_dropped_notifications),
        cmocka_unit_test(test_core_stats_newest_notification_always_stays),
        with_pair(test_core_stats_add_up_over_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
