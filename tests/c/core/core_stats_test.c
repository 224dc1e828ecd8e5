/* The counters of vnx_agent_stats(). */
#include "agent_pair.h"
#include "pool_gate.h"

static uint64_t
histogram_sum(const vnx_agent_stats_t *stats)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < 32; i++) {
        sum += stats->xfer_us_log2[i];
    }
    return sum;
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
    assert_int_equal(stats.bytes_read, 3 * 16 * ROW);
    assert_int_equal(stats.bytes_written, p->len);
    assert_int_equal(stats.rows, 3 * 16 + ROWS);
    assert_int_equal(stats.pieces, 4);
    assert_int_equal(stats.notifs_sent, 1);
    assert_int_equal(histogram_sum(&stats), 4);
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
    gate_open(gate);
    assert_ok(vnx_agent_wait(p->a, &xfer, 1, 0, SECONDS(30), e));
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
    assert_ok(vnx_xfer_release(xfer, e));
}

static void
test_core_stats_histogram_agrees_with_telemetry(void **state)
{
    pair_t *p = *state;
    vnx_xfer_t *xfer = pair_make_xfer(p, VNX_OP_READ, ROWS, NULL);
    vnx_xfer_telemetry_t telemetry;
    uint64_t expected[32] = {0};

    for (int i = 0; i < 20; i++) {
        run_xfer(p->a, xfer);
        assert_ok(vnx_xfer_telemetry(xfer, &telemetry, e));
        unsigned log2 = 0;
        while (telemetry.xfer_us >> (log2 + 1) != 0) {
            log2++;
        }
        expected[log2]++;
    }
    assert_memory_equal(stats_of(p->a).xfer_us_log2, expected,
                        sizeof expected);
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
    assert_ok(vnx_agent_register(p->a, VNX_MEM_DRAM, two, 2, NULL, e));
    assert_int_equal(stats_of(p->a).regions, 3);
    assert_int_equal(
        vnx_agent_register(p->a, VNX_MEM_DRAM, bad, 2, NULL, NULL),
        VNX_ERR_INVALID_PARAM);
    assert_int_equal(
        vnx_agent_deregister(p->a, VNX_MEM_DRAM, bad, 2, NULL, NULL),
        VNX_ERR_NOT_FOUND);
    assert_int_equal(stats_of(p->a).regions, 3);
    assert_ok(vnx_agent_deregister(p->a, VNX_MEM_DRAM, two, 2, NULL, e));
    assert_int_equal(stats_of(p->a).regions, 1);

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

    vnx_notif_free(vnx_agent_take_notifs(p->b));
    stats = stats_of(p->b);
    assert_int_equal(stats.notifs_received, 10);
    assert_int_equal(stats.notifs_pending + stats.notif_bytes_pending, 0);
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
        with_pair(test_core_stats_histogram_agrees_with_telemetry),
        with_pair(test_core_stats_follow_regions_peers_and_handles),
        with_pair(test_core_stats_keep_counts_after_close),
        with_pair(test_core_stats_count_notifications_on_both_sides),
        cmocka_unit_test(test_core_stats_count_dropped_notifications),
        cmocka_unit_test(test_core_stats_newest_notification_always_stays),
        with_pair(test_core_stats_add_up_over_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
