#include "ucx_pair.h"

#include <sched.h>

static ucx_side_t here, there;

static void
open_pair(void)
{
    ucx_need_library();
    ucx_side_open(&here, "here", 1, 20.0);
    ucx_side_open(&there, "there", 1, 20.0);
}

static void
close_pair(void)
{
    ucx_side_close(&here);
    ucx_side_close(&there);
}

static void
end_conn(vnxi_ucx_conn_t *conn)
{
    vnxi_ucx_conn_close(conn);
    vnxi_ucx_conn_release(conn);
}

static void
send_to(vnxi_ucx_conn_t *conn, const void *message, size_t len)
{
    vnx_error_t error;
    if (vnxi_ucx_conn_send_notif(conn, message, len, &error) != VNX_OK) {
        fail_msg("%s", error.cause);
    }
}

static void
await_wired(vnxi_ucx_conn_t *conn)
{
    uint64_t end = vnxi_clock_deadline(UCX_PATIENCE_NS);
    while (!vnxi_ucx_conn_is_wired(conn)) {
        assert_true(vnxi_clock_ns() < end);
        sched_yield();
    }
}

static void
test_ucx_conn_both_ways_and_closed(void **state)
{
    (void)state;
    open_pair();
    vnxi_ucx_conn_t *out = ucx_side_connect(&here, &there, 1);
    vnxi_ucx_conn_t *back = ucx_side_connect(&there, &here, 2);
    await_wired(out);
    await_wired(back);
    uint64_t t0 = vnxi_clock_ns();
    end_conn(back);
    ucx_side_close(&there);
    print_message("%f\n", (double)(vnxi_clock_ns() - t0) / 1e9);
    t0 = vnxi_clock_ns();
    end_conn(out);
    ucx_side_close(&here);
    print_message("%f\n", (double)(vnxi_clock_ns() - t0) / 1e9);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ucx_conn_both_ways_and_closed),
    };
    (void)send_to, (void)close_pair;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
