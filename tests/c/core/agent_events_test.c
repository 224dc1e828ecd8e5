/* Waiting for an agent, and watching it from several loops. */
#include "agent_pair.h"

#include <poll.h>
#include <unistd.h>

static bool
is_readable(int fd, int ms)
{
    struct pollfd entry = {.fd = fd, .events = POLLIN};
    return poll(&entry, 1, ms) == 1;
}

static void
drain(int fd)
{
    uint64_t count;
    assert_int_equal(read(fd, &count, sizeof count), sizeof count);
}

static void
test_agent_wait_refuses_an_unposted_transfer(void **state)
{
    pair_t *pair = *state;
    vnx_xfer_t *xfer = pair_make_xfer(pair, VNX_OP_READ, ROWS, NULL);
    vnx_xfer_t *posted = pair_make_xfer(pair, VNX_OP_READ, 1, NULL);
    vnx_xfer_t *both[] = {posted, xfer};
    vnx_error_t error;

    run_xfer(pair->a, posted);
    for (unsigned flags = 0; flags < 4; flags++) {
        assert_int_equal(
            vnx_agent_wait(pair->a, both, 2, flags, VNX_FOREVER, &error),
            VNX_ERR_NOT_POSTED);
        assert_int_equal(error.row, 1);
        assert_string_equal(error.operation, "vnx_agent_wait");
        /* Waiting for no transfers returns at once, for all and for any. */
        assert_int_equal(vnx_agent_wait(pair->a, NULL, 0, flags, 0, &error),
                         VNX_OK);
    }
    assert_int_equal(vnx_agent_wait(pair->a, both, 1, 4, 0, &error),
                     VNX_ERR_INVALID_PARAM);
    assert_ok(vnx_xfer_release(posted, e));
    assert_ok(vnx_xfer_release(xfer, e));
}

static void
test_agent_wait_names_a_foreign_transfer(void **state)
{
    pair_t *pair = *state;
    vnx_xfer_t *mine = pair_make_xfer(pair, VNX_OP_READ, 1, NULL);
    vnx_xfer_t *mixed[] = {mine, mine};
    vnx_error_t error;

    assert_int_equal(
        vnx_agent_wait(pair->b, mixed, 2, VNX_WAIT_ANY, VNX_FOREVER, &error),
        VNX_ERR_INVALID_PARAM);
    assert_int_equal(error.row, 0);
    assert_string_equal(error.operation, "vnx_agent_wait");
    assert_string_equal(error.cause, "the transfer belongs to another agent");
    assert_ok(vnx_xfer_release(mine, e));
}

/* Each subscriber is notified, whatever the others have read. */
static void
test_agent_subscribers_wake_when_a_transfer_ends(void **state)
{
    pair_t *pair = *state;
    vnx_xfer_t *xfer = pair_make_xfer(pair, VNX_OP_READ, ROWS, NULL);
    int one, two;

    assert_ok(vnx_agent_subscribe(pair->a, &one, e));
    assert_ok(vnx_agent_subscribe(pair->a, &two, e));
    assert_int_not_equal(one, two);
    for (int i = 0; i < 2; i++) {
        run_xfer(pair->a, xfer);
        vnx_agent_clear_events(pair->a); /* is not theirs */
        assert_true(is_readable(one, 30000));
        assert_true(is_readable(two, 30000));
        drain(one);
        drain(two);
    }
    vnx_agent_unsubscribe(pair->a, one);
    run_xfer(pair->a, xfer);
    assert_true(is_readable(two, 30000));
    vnx_agent_unsubscribe(pair->a, two);
    assert_ok(vnx_xfer_release(xfer, e));
}

static void
test_agent_subscribers_wake_on_a_notification(void **state)
{
    pair_t *pair = *state;
    int shared, own;

    assert_ok(vnx_agent_fileno(pair->b, &shared, e));
    assert_ok(vnx_agent_subscribe(pair->b, &own, e));
    vnx_agent_clear_events(pair->b);
    assert_ok(vnx_agent_send_notif(pair->a, "B", 1, "x", 1, e));
    assert_true(is_readable(own, 30000));
    assert_true(is_readable(shared, 30000));
    vnx_notif_t *chain = await_notif(pair->b);
    vnx_notif_free(chain);
    assert_false(is_readable(shared, 0)); /* taken: nothing is new */
    assert_true(is_readable(own, 0));     /* only reading clears it */
    drain(own);
    assert_false(is_readable(own, 0));
    vnx_agent_unsubscribe(pair->b, own);
}

static void
test_agent_subscribers_wake_on_close(void **state)
{
    pair_t *pair = *state;
    vnx_error_t error;
    int fd, late = -1;

    assert_ok(vnx_agent_subscribe(pair->a, &fd, e));
    assert_false(is_readable(fd, 0));
    vnx_agent_close(pair->a);
    assert_true(is_readable(fd, 30000));
    vnx_agent_unsubscribe(pair->a, fd);
    assert_int_equal(vnx_agent_subscribe(pair->a, &late, &error),
                     VNX_ERR_CLOSED);
    assert_int_equal(late, -1);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        with_pair(test_agent_wait_refuses_an_unposted_transfer),
        with_pair(test_agent_wait_names_a_foreign_transfer),
        with_pair(test_agent_subscribers_wake_when_a_transfer_ends),
        with_pair(test_agent_subscribers_wake_on_a_notification),
        with_pair(test_agent_subscribers_wake_on_close),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
