/* The agent within one process: transfers, notifications, peers, lifetime. */
#include "agent_pair.h"

#include <pthread.h>

static void
test_agent_reads_from_a_peer(void **state)
{
    pair_t *p = *state;
    vnx_dlist_t *local = prepare_rows(p->a, "", p->at_a, ROW, ROWS);
    vnx_dlist_t *remote = prepare_rows(p->a, "B", p->at_b, ROW, ROWS);
    vnx_xfer_t *xfer =
        make_xfer(p->a, VNX_OP_READ, local, remote, ROWS, "done");

    run_xfer(p->a, xfer);
    assert_memory_equal(p->at_a, p->at_b, p->len);
    vnx_notif_t *notif = await_notif(p->b);
    assert_int_equal(notif->message_len, 4);
    assert_memory_equal(notif->message, "done", 4);
    assert_memory_equal(notif->sender, "A", 1);
    assert_null(notif->next);
    vnx_notif_free(notif);

    vnx_xfer_telemetry_t telemetry;
    assert_ok(vnx_xfer_telemetry(xfer, &telemetry, e));
    assert_int_equal(telemetry.total_bytes, p->len);
    assert_int_equal(telemetry.desc_count, ROWS);
    assert_int_equal(telemetry.merged_count, 1);
    assert_ok(vnx_xfer_release(xfer, e));
    vnx_dlist_release(local);
    vnx_dlist_release(remote);
}

static void
test_agent_writes_and_reposts(void **state)
{
    pair_t *p = *state;
    vnx_dlist_t *local = prepare_rows(p->a, "", p->at_a, ROW, ROWS);
    vnx_dlist_t *remote = prepare_rows(p->a, "B", p->at_b, ROW, ROWS);
    vnx_xfer_t *xfer =
        make_xfer(p->a, VNX_OP_WRITE, local, remote, ROWS, NULL);

    for (unsigned round = 0; round < 5; round++) {
        fill(p->at_a, p->len, round);
        run_xfer(p->a, xfer);
        assert_memory_equal(p->at_a, p->at_b, p->len);
    }
    assert_null(vnx_agent_take_notifs(p->b));
    assert_ok(vnx_xfer_release(xfer, e));
    vnx_dlist_release(remote);
    vnx_dlist_release(local);
}

static void
test_agent_transfers_from_descriptors_to_itself(void **state)
{
    pair_t *p = *state;
    vnx_desc_t from = {(uint64_t)(uintptr_t)p->at_b, 512, 0};
    vnx_desc_t to = {(uint64_t)(uintptr_t)p->at_b + 512, 512, 0};
    vnx_xfer_t *xfer;

    assert_ok(vnx_xfer_create(p->b, VNX_OP_WRITE, VNX_MEM_DRAM, &from, 1,
                              VNX_MEM_DRAM, &to, 1, "B", 1, "", 0, NULL, &xfer,
                              e));
    assert_int_equal(vnx_xfer_post(xfer, "again", 5, NULL), VNX_OK);
    assert_memory_equal(p->at_b, p->at_b + 512, 512);
    vnx_notif_t *notif = await_notif(p->b);
    assert_int_equal(notif->message_len, 5);
    vnx_notif_free(notif);
    vnx_xfer_abandon(xfer);
}

static void
test_agent_errors_name_row_and_peer(void **state)
{
    pair_t *p = *state;
    vnx_error_t error;
    vnx_dlist_t *dlist = NULL;
    vnx_desc_t rows[] = {{(uint64_t)(uintptr_t)p->at_b, 16, 0},
                         {(uint64_t)(uintptr_t)p->at_b + p->len - 8, 16, 0},
                         {16, 16, 0},
                         {UINT64_MAX - 4, 16, 0}};

    assert_int_equal(vnx_dlist_create(p->a, "B", 1, VNX_MEM_DRAM, rows, 2,
                                      NULL, &dlist, &error),
                     VNX_ERR_NOT_FOUND);
    assert_int_equal(error.row, 1);
    assert_string_equal(error.peer, "B");
    assert_int_equal(vnx_dlist_create(p->a, "", 0, VNX_MEM_DRAM, rows + 2, 1,
                                      NULL, &dlist, &error),
                     VNX_ERR_NOT_FOUND);
    assert_int_equal(vnx_dlist_create(p->a, "", 0, VNX_MEM_DRAM, rows + 3, 1,
                                      NULL, &dlist, &error),
                     VNX_ERR_INVALID_PARAM);
    assert_int_equal(vnx_dlist_create(p->a, "nobody", 6, VNX_MEM_DRAM, rows, 1,
                                      NULL, &dlist, &error),
                     VNX_ERR_NOT_FOUND);
    assert_string_equal(error.peer, "nobody");
    assert_null(dlist);
}

static void
test_agent_refuses_bad_names_and_its_own_blob(void **state)
{
    pair_t *p = *state;
    vnx_agent_t *agent = NULL;
    vnx_bytes_t blob, name;
    vnx_agent_config_t config = {.size = sizeof config, .engine = "warp"};

    assert_int_equal(vnx_agent_create("", 0, NULL, &agent, NULL),
                     VNX_ERR_INVALID_PARAM);
    assert_int_equal(vnx_agent_create("x", 1, &config, &agent, NULL),
                     VNX_ERR_NOT_SUPPORTED);
    assert_null(agent);
    assert_ok(vnx_agent_metadata(p->a, &blob, e));
    assert_int_equal(
        vnx_agent_load_metadata(p->a, blob.data, blob.len, &name, NULL),
        VNX_ERR_INVALID_PARAM);
    assert_int_equal(
        vnx_agent_load_metadata(p->b, blob.data, blob.len - 1, &name, NULL),
        VNX_ERR_MISMATCH);
    free(blob.data);
}

static void
test_agent_without_backend_reports_it(void **state)
{
    (void)state;
    vnx_agent_t *agent;
    vnx_bytes_t blob;
    char byte;
    vnx_reg_desc_t desc = region_of(&byte, 1);

    assert_ok(vnx_agent_create("bare", 4, NULL, &agent, e));
    assert_null(vnx_agent_engine(agent));
    assert_int_equal(
        vnx_agent_register(agent, VNX_MEM_DRAM, &desc, 1, NULL, NULL),
        VNX_ERR_NOT_FOUND);
    assert_int_equal(vnx_agent_metadata(agent, &blob, NULL),
                     VNX_ERR_NOT_FOUND);
    vnx_agent_release(agent);
}

static void
test_agent_restarted_peer_supersedes_the_old_one(void **state)
{
    pair_t *p = *state;
    vnx_error_t error;
    vnx_dlist_t *local = prepare_rows(p->a, "", p->at_a, ROW, ROWS);
    vnx_dlist_t *old = prepare_rows(p->a, "B", p->at_b, ROW, ROWS);
    vnx_xfer_t *xfer = make_xfer(p->a, VNX_OP_READ, local, old, ROWS, NULL);

    vnx_agent_release(p->b);
    p->b = make_agent("B");
    register_at(p->b, p->at_b, p->len);
    load_peer(p->a, p->b);
    assert_int_equal(vnx_xfer_post(xfer, NULL, 0, &error),
                     VNX_ERR_REMOTE_DISCONNECT);
    assert_string_equal(error.peer, "B");
    assert_int_equal(vnx_xfer_status(xfer, NULL), VNX_ERR_REMOTE_DISCONNECT);
    vnx_xfer_abandon(xfer);

    vnx_dlist_t *fresh = prepare_rows(p->a, "B", p->at_b, ROW, ROWS);
    xfer = make_xfer(p->a, VNX_OP_READ, local, fresh, ROWS, NULL);
    run_xfer(p->a, xfer);
    assert_memory_equal(p->at_a, p->at_b, p->len);
    vnx_xfer_abandon(xfer);
    vnx_dlist_release(old);
    vnx_dlist_release(fresh);
    vnx_dlist_release(local);
}

static void
test_agent_deregistered_region_fails_the_post(void **state)
{
    pair_t *p = *state;
    vnx_dlist_t *local = prepare_rows(p->a, "", p->at_a, ROW, 4);
    vnx_dlist_t *remote = prepare_rows(p->a, "B", p->at_b, ROW, 4);
    vnx_xfer_t *xfer = make_xfer(p->a, VNX_OP_READ, local, remote, 4, NULL);

    run_xfer(p->a, xfer);
    deregister_at(p->b, p->at_b, p->len);
    assert_int_equal(vnx_xfer_post(xfer, NULL, 0, NULL), VNX_ERR_NOT_FOUND);
    register_at(p->b, p->at_b, p->len);
    load_peer(p->a, p->b);
    vnx_dlist_release(remote);
    vnx_xfer_abandon(xfer);
    remote = prepare_rows(p->a, "B", p->at_b, ROW, 4);
    xfer = make_xfer(p->a, VNX_OP_READ, local, remote, 4, NULL);
    run_xfer(p->a, xfer);
    vnx_xfer_abandon(xfer);
    vnx_dlist_release(remote);
    vnx_dlist_release(local);
}

static void
test_agent_handles_outlive_agent_and_peer(void **state)
{
    pair_t *p = *state;
    vnx_dlist_t *local = prepare_rows(p->a, "", p->at_a, ROW, ROWS);
    vnx_dlist_t *remote = prepare_rows(p->a, "B", p->at_b, ROW, ROWS);
    vnx_xfer_t *xfer = make_xfer(p->a, VNX_OP_READ, local, remote, ROWS, "n");

    vnx_xfer_post(xfer, NULL, 0, NULL);
    vnx_dlist_release(local);
    vnx_agent_close(p->b);
    vnx_agent_close(p->a);
    assert_int_not_equal(vnx_xfer_state(xfer), VNX_XFER_POSTED);
    assert_int_equal(vnx_xfer_post(xfer, NULL, 0, NULL), VNX_ERR_CLOSED);
    vnx_agent_release(p->a);
    p->a = NULL;
    vnx_dlist_release(remote);
    vnx_xfer_abandon(xfer);
}

static void
test_agent_cancel_ends_a_transfer(void **state)
{
    pair_t *p = *state;
    vnx_dlist_t *local = prepare_rows(p->a, "", p->at_a, ROW, ROWS);
    vnx_dlist_t *remote = prepare_rows(p->a, "B", p->at_b, ROW, ROWS);
    vnx_xfer_t *xfer = make_xfer(p->a, VNX_OP_READ, local, remote, ROWS, "n");
    unsigned stopped_count = 0;

    for (int i = 0; i < 200; i++) {
        bool stopped;
        assert_int_equal(vnx_xfer_post(xfer, NULL, 0, NULL), VNX_IN_PROG);
        assert_ok(vnx_xfer_cancel(xfer, &stopped, e));
        assert_int_equal(vnx_xfer_state(xfer),
                         stopped ? VNX_XFER_CANCELLED : VNX_XFER_DONE);
        stopped_count += stopped;
    }
    /* Each transfer that was not stopped sent its notification. */
    unsigned notified = 0;
    for (vnx_notif_t *n = vnx_agent_take_notifs(p->b), *next; n != NULL;
         n = next) {
        next = n->next;
        n->next = NULL;
        vnx_notif_free(n);
        notified++;
    }
    assert_int_equal(notified + stopped_count, 200);
    assert_int_equal(vnx_xfer_release(xfer, NULL), VNX_OK);
    vnx_dlist_release(remote);
    vnx_dlist_release(local);
}

static vnx_xfer_t *
make_eighth(pair_t *p, vnx_dlist_t *local, vnx_dlist_t *remote, uint32_t i)
{
    uint32_t rows[ROWS / 8];
    vnx_xfer_t *xfer = NULL;
    for (uint32_t j = 0; j < ROWS / 8; j++) {
        rows[j] = i * (ROWS / 8) + j;
    }
    vnx_indices_t indices = {rows, ROWS / 8, VNX_INDEX_U32};
    assert_ok(vnx_xfer_create_prepped(p->a, VNX_OP_READ, local, indices,
                                      remote, indices, NULL, 0, false, &xfer,
                                      e));
    return xfer;
}

static void
test_agent_wait_times_out_and_counts(void **state)
{
    pair_t *p = *state;
    vnx_dlist_t *local = prepare_rows(p->a, "", p->at_a, ROW, ROWS);
    vnx_dlist_t *remote = prepare_rows(p->a, "B", p->at_b, ROW, ROWS);
    vnx_xfer_t *xfers[8];
    unsigned timeouts = 0, rounds = 0;

    for (uint32_t i = 0; i < 8; i++) {
        xfers[i] = make_eighth(p, local, remote, i);
    }
    /* A wait with timeout 0 may or may not find them in flight. */
    while (timeouts == 0 && rounds < 1000) {
        for (int i = 0; i < 8; i++) {
            assert_int_equal(vnx_xfer_post(xfers[i], NULL, 0, NULL),
                             VNX_IN_PROG);
        }
        timeouts +=
            vnx_agent_wait(p->a, xfers, 8, 0, 0, NULL) == VNX_ERR_TIMEOUT;
        assert_ok(vnx_agent_wait(p->a, xfers, 8, VNX_WAIT_ANY,
                                 vnx_test_limit(30), e));
        assert_ok(vnx_agent_wait(p->a, xfers, 8, 0, vnx_test_limit(30), e));
        rounds++;
    }
    assert_int_equal(timeouts, 1);
    vnx_agent_stats_t stats;
    vnx_agent_stats(p->a, &stats);
    assert_int_equal(stats.xfers_done, 8 * rounds);
    assert_int_equal(stats.bytes_read, rounds * p->len);
    assert_int_equal(stats.live_xfers, 8);
    assert_int_equal(stats.live_dlists, 2);
    for (int i = 0; i < 8; i++) {
        assert_ok(vnx_xfer_release(xfers[i], e));
    }
    vnx_dlist_release(remote);
    vnx_dlist_release(local);
    vnx_agent_stats(p->a, &stats);
    assert_int_equal(stats.live_xfers + stats.live_dlists, 0);
}

typedef struct worker {
    pair_t *pair;
    unsigned number, rounds;
} worker_t;

/* Each thread has its own rows and lists; all run concurrently. */
static void *
work(void *argument)
{
    worker_t *worker = argument;
    pair_t *p = worker->pair;
    size_t offset = (size_t)worker->number * 64 * ROW;

    for (unsigned i = 0; i < worker->rounds; i++) {
        vnx_dlist_t *local = prepare_rows(p->a, "", p->at_a + offset, ROW, 64);
        vnx_dlist_t *remote =
            prepare_rows(p->a, "B", p->at_b + offset, ROW, 64);
        vnx_xfer_t *xfer =
            make_xfer(p->a, VNX_OP_READ, local, remote, 64, "x");
        memset(p->at_a + offset, 0, 64 * ROW);
        run_xfer(p->a, xfer);
        assert_memory_equal(p->at_a + offset, p->at_b + offset, 64 * ROW);
        load_peer(p->a, p->b);
        assert_ok(vnx_agent_send_notif(p->b, "B", 1, "self", 4, e));
        vnx_notif_free(vnx_agent_take_notifs(p->b));
        vnx_dlist_release(local);
        vnx_xfer_abandon(xfer);
        vnx_dlist_release(remote);
    }
    return NULL;
}

static void
test_agent_serves_many_threads_at_once(void **state)
{
    worker_t workers[8];
    pthread_t threads[8];

    for (unsigned i = 0; i < 8; i++) {
        workers[i] = (worker_t){*state, i, 100};
        pthread_create(&threads[i], NULL, work, &workers[i]);
    }
    for (unsigned i = 0; i < 8; i++) {
        pthread_join(threads[i], NULL);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        with_pair(test_agent_reads_from_a_peer),
        with_pair(test_agent_writes_and_reposts),
        with_pair(test_agent_transfers_from_descriptors_to_itself),
        with_pair(test_agent_errors_name_row_and_peer),
        with_pair(test_agent_refuses_bad_names_and_its_own_blob),
        cmocka_unit_test(test_agent_without_backend_reports_it),
        with_pair(test_agent_restarted_peer_supersedes_the_old_one),
        with_pair(test_agent_deregistered_region_fails_the_post),
        with_pair(test_agent_handles_outlive_agent_and_peer),
        with_pair(test_agent_cancel_ends_a_transfer),
        with_pair(test_agent_wait_times_out_and_counts),
        with_pair(test_agent_serves_many_threads_at_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
