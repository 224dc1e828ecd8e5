/* Peers that have ended before UCX connects to them. */
#include "ucx_fake.h"

#include "engine/native/ucx/context_private.h"

/* -- What is known ---------------------------------------------------------
 */

static void
test_ucx_gone_contains_added_addresses(void **state)
{
    vnxi_ucx_gone_t gone;
    (void)state;
    vnxi_ucx_gone_init(&gone);
    assert_false(vnxi_ucx_gone_has(&gone, "one", 3));
    vnxi_ucx_gone_add(&gone, "one", 3);
    vnxi_ucx_gone_add(&gone, "", 0);
    assert_true(vnxi_ucx_gone_has(&gone, "one", 3));
    assert_true(vnxi_ucx_gone_has(&gone, "", 0));
    assert_false(vnxi_ucx_gone_has(&gone, "one", 2));
    assert_false(vnxi_ucx_gone_has(&gone, "onf", 3));
    assert_false(vnxi_ucx_gone_has(&gone, "ones", 4));
    vnxi_ucx_gone_fini(&gone);
}

static void
test_ucx_gone_forgets_the_oldest(void **state)
{
    vnxi_ucx_gone_t gone;
    (void)state;
    vnxi_ucx_gone_init(&gone);
    for (unsigned i = 0; i < VNXI_UCX_GONE_MAX; i++) {
        vnxi_ucx_gone_add(&gone, &i, sizeof i);
        vnxi_ucx_gone_add(&gone, &i, sizeof i); /* is there: takes no room */
    }
    for (unsigned i = 0; i < VNXI_UCX_GONE_MAX; i++) {
        assert_true(vnxi_ucx_gone_has(&gone, &i, sizeof i));
    }
    for (unsigned i = 0; i < 3; i++) {
        unsigned more = VNXI_UCX_GONE_MAX + i;
        vnxi_ucx_gone_add(&gone, &more, sizeof more);
        assert_true(vnxi_ucx_gone_has(&gone, &more, sizeof more));
        assert_false(vnxi_ucx_gone_has(&gone, &i, sizeof i));
    }
    vnxi_ucx_gone_fini(&gone);
}

static void
test_ucx_gone_does_not_keep_long_addresses(void **state)
{
    static const char bytes[VNXI_UCX_GONE_ADDRESS_MAX + 1];
    vnxi_ucx_gone_t gone;
    (void)state;
    vnxi_ucx_gone_init(&gone);
    vnxi_ucx_gone_add(&gone, bytes, sizeof bytes);
    assert_false(vnxi_ucx_gone_has(&gone, bytes, sizeof bytes));
    vnxi_ucx_gone_add(&gone, bytes, sizeof bytes - 1);
    assert_true(vnxi_ucx_gone_has(&gone, bytes, sizeof bytes - 1));
    vnxi_ucx_gone_fini(&gone);
}

/* -- Connections -----------------------------------------------------------
 */

static unsigned
count_lost(ucx_side_t *side)
{
    pthread_mutex_lock(&side->lock);
    unsigned count = side->lost_count;
    pthread_mutex_unlock(&side->lock);
    return count;
}

static void
lose(const ucx_side_t *to, unsigned count)
{
    vnxi_ucx_conn_t *conn = ucx_side_connect(&here, to, count);
    AWAIT(count_lost(&here) == count);
    assert_string_equal(here.lost_cause,
                        "UCX cannot connect to the peer: fake status -80");
    end_conn(conn);
}

/* UCX keeps the sockets of each attempt, so there is only one. */
static void
test_ucx_gone_peer_is_tried_once(void **state)
{
    ucx_side_t other;
    (void)state;
    open_sides(1, 20.0);
    ucx_side_open(&other, "other", 1, 20.0);
    atomic_store(&fake->fail_ep, VNXI_UCS_ERR_ENDPOINT_TIMEOUT);
    lose(&there, 1);
    assert_int_equal(fake->creates, 1);
    lose(&there, 2);
    lose(&there, 3);
    assert_int_equal(fake->creates, 1);
    lose(&other, 4);
    assert_int_equal(fake->creates, 2);
    atomic_store(&fake->fail_ep, 0);
    vnxi_ucx_conn_t *back = ucx_side_connect(&there, &here, 1);
    AWAIT(vnxi_ucx_conn_is_wired(back));
    end_conn(back);
    ucx_side_close(&other);
    close_sides();
}

/* Other failures may not recur. */
static void
test_ucx_gone_other_failures_are_retried(void **state)
{
    (void)state;
    open_sides(1, 20.0);
    atomic_store(&fake->fail_ep, VNXI_UCS_ERR_NO_MEMORY);
    vnxi_ucx_conn_t *first = ucx_side_connect(&here, &there, 1);
    ucx_side_await_lost(&here);
    atomic_store(&fake->fail_ep, 0);
    vnxi_ucx_conn_t *second = ucx_side_connect(&here, &there, 2);
    AWAIT(vnxi_ucx_conn_is_wired(second));
    end_conn(first);
    end_conn(second);
    close_sides();
    assert_int_equal(here.lost_count, 1);
}

/* Not with the first transfer, when the peer may have ended. */
static void
test_ucx_gone_running_workers_connect_at_once(void **state)
{
    (void)state;
    open_sides(3, 20.0);
    vnxi_ucx_conn_t *first = ucx_side_connect(&here, &there, 1);
    AWAIT(vnxi_ucx_conn_is_wired(first));
    assert_int_equal(fake->eps, 1); /* the others do not run yet */
    vnxi_ucx_conn_warm_up(first);
    AWAIT(atomic_load(&fake->eps) == 3);
    vnxi_ucx_conn_t *second = ucx_side_connect(&here, &there, 2);
    AWAIT(atomic_load(&fake->eps) == 6);
    assert_int_equal(fake->creates, 6);
    end_conn(first);
    end_conn(second);
    close_sides();
    assert_int_equal(fake->closed, 6);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ucx_gone_contains_added_addresses),
        cmocka_unit_test(test_ucx_gone_forgets_the_oldest),
        cmocka_unit_test(test_ucx_gone_does_not_keep_long_addresses),
        with_fake(test_ucx_gone_peer_is_tried_once),
        with_fake(test_ucx_gone_other_failures_are_retried),
        with_fake(test_ucx_gone_running_workers_connect_at_once),
    };
    return fake_load() != 0 ? 1 : cmocka_run_group_tests(tests, NULL, NULL);
}
