/*
 * One request over a scripted transport: which failures are retried, for how
 * long, and the error at the end.
 */
#include "fake_transport.h"

#include <unistd.h>

/* Run one request to its end. */
static vnx_side_channel_answer_t
ask(const vnx_side_channel_request_params_t *params)
{
    vnx_side_channel_answer_t answer;
    vnxi_requests_t *set = set_of(params, 1);
    assert_true(vnxi_requests_run(set, NULL, NULL));
    vnxi_requests_take(set, 0, &answer);
    vnxi_requests_free(set);
    assert_int_equal(world.open, 0); /* every exchange was ended */
    return answer;
}

static void
test_request_returns_the_transports_result(void **state)
{
    SCENE({VNX_OK, VNX_OK, 0});
    vnx_side_channel_request_params_t params = asking("peer", 5000, 0);

    params.key = "rank";
    params.key_length = 4;
    assert_answered(ask(&params), "peer");
    assert_int_equal(world.begun, 1);
    assert_string_equal(world.last_key, "rank");
    assert_string_equal(world.last_endpoint, "peer:77");
}

static void
test_request_writes_brackets_around_ipv6(void **state)
{
    SCENE({VNX_OK, VNX_ERR_MISMATCH, 0});
    vnx_side_channel_request_params_t params = asking("fe80::1", 5000, 0);

    vnx_side_channel_answer_t answer = ask(&params);
    assert_failed(&answer, VNX_ERR_MISMATCH, "asking fe80::1: no luck");
    assert_string_equal(answer.error.peer, "[fe80::1]:77");
}

static void
test_request_truncates_a_long_endpoint(void **state)
{
    SCENE({VNX_OK, VNX_OK, 0});
    char host[2 * VNX_ERROR_PEER_MAX];

    memset(host, 'h', sizeof host - 1);
    host[sizeof host - 1] = '\0';
    vnx_side_channel_request_params_t params = asking(host, 5000, 0);
    assert_answered(ask(&params), host); /* the host itself is not cut */
    assert_int_equal(strlen(world.last_endpoint), VNX_ERROR_PEER_MAX - 1);
}

static void
test_request_retries_temporary_failures(void **state)
{
    SCENE({VNX_ERR_BACKEND, VNX_OK, 0}, {VNX_OK, VNX_ERR_NOT_FOUND, 1},
          {VNX_OK, VNX_ERR_BACKEND, 0}, {VNX_OK, VNX_OK, 0});
    vnx_side_channel_request_params_t params = asking("peer", 20000, 3);

    world.wake_ns = 1000;
    assert_answered(ask(&params), "peer");
    assert_int_equal(world.begun, 4);
    assert_int_equal(world.ended, 3); /* the first had not begun */
}

static void
test_request_ends_after_its_last_retry(void **state)
{
    SCENE({VNX_OK, VNX_ERR_BACKEND, 0});
    vnx_side_channel_request_params_t params = asking("peer", 20000, 3);

    vnx_side_channel_answer_t answer = ask(&params);
    assert_failed(&answer, VNX_ERR_BACKEND, "no luck");
    assert_int_equal(world.begun, 4);
}

/* A wrong secret is a permanent failure. */
static void
test_request_does_not_retry_permanent_failures(void **state)
{
    static const vnx_status_t hopeless[] = {
        VNX_ERR_NOT_ALLOWED, VNX_ERR_MISMATCH,      VNX_ERR_INVALID_PARAM,
        VNX_ERR_NO_MEMORY,   VNX_ERR_NOT_SUPPORTED, VNX_ERR_TIMEOUT};
    (void)state;

    for (size_t i = 0; i < sizeof hopeless / sizeof hopeless[0]; i++) {
        const script_t script = {VNX_OK, hopeless[i], 0};
        vnx_side_channel_request_params_t params = asking("peer", 20000, 9);
        world = (struct world){.script = &script, .scripts = 1, .fd = -1};
        vnx_side_channel_answer_t answer = ask(&params);
        assert_failed(&answer, hopeless[i], "no luck");
        assert_int_equal(world.begun, 1);
    }
}

/* An unknown host name may be registered later; an unknown key was refused by
 * the peer that would know it. */
static void
test_request_does_not_retry_an_unknown_key(void **state)
{
    SCENE({VNX_OK, VNX_ERR_NOT_FOUND, 1}, {VNX_OK, VNX_ERR_NOT_FOUND, 1},
          {VNX_OK, VNX_OK, 0});
    vnx_side_channel_request_params_t params =
        asking("peer", 20000, VNX_SIDE_CHANNEL_RETRY_ALWAYS);

    world.wake_ns = 1000;
    world.answered = 2;
    vnx_side_channel_answer_t answer = ask(&params);
    assert_failed(&answer, VNX_ERR_NOT_FOUND, "no luck");
    assert_int_equal(world.begun, 2);
}

/* The fixed half of each pause doubles: 2, 4, 8, ... ms. */
static void
test_request_doubles_its_pause(void **state)
{
    SCENE({VNX_ERR_BACKEND, VNX_OK, 0});
    vnx_side_channel_request_params_t params = asking("peer", 20000, 5);

    vnx_side_channel_answer_t answer = ask(&params);
    assert_failed(&answer, VNX_ERR_BACKEND, "beginning with peer");
    assert_int_equal(world.begun, 6);
    for (size_t i = 1; i < 6; i++) {
        uint64_t rested = world.times[i] - world.times[i - 1];
        assert_true(rested >= MS << (i - 1));
    }
}

/* The deadline covers all tries; the error has the cause of the last.  The
 * second try comes after 250 to 500 ms; the next one would come after 750 ms
 * or later.  A busy machine may need so long for the second try that it runs
 * into the deadline: then the scene is repeated. */
static void
test_request_stops_retrying_if_no_time_is_left(void **state)
{
    vnx_side_channel_request_params_t params =
        asking("peer", 750, VNX_SIDE_CHANNEL_RETRY_ALWAYS);
    vnx_side_channel_answer_t answer;
    unsigned scenes = 0;

    params.backoff_ms = 500;
    do {
        SCENE({VNX_OK, VNX_ERR_BACKEND, 0});
        answer = ask(&params);
    } while (answer.error.status == VNX_ERR_TIMEOUT && ++scenes < 20);
    assert_failed(&answer, VNX_ERR_BACKEND, "no luck");
    assert_int_equal(world.begun, 2);
}

/* The same holds if nobody polled it until its deadline had passed. */
static void
test_request_polled_late_reports_its_last_failure(void **state)
{
    SCENE({VNX_OK, VNX_ERR_BACKEND, 0});
    vnx_side_channel_request_params_t params =
        asking("peer", 200, VNX_SIDE_CHANNEL_RETRY_ALWAYS);
    vnx_side_channel_answer_t answer;

    params.backoff_ms = 150;
    int fd = -1;
    vnxi_requests_t *set = set_of(&params, 1);
    uint64_t end = vnxi_clock_ns() + 200 * MS;
    assert_int_equal(vnxi_requests_watch(set, &fd, NULL), VNX_OK);
    assert_int_equal(world.begun, 1);
    while (vnxi_clock_ns() < end) {
        usleep(1000);
    }
    assert_int_equal(vnxi_requests_step(set), 0);
    vnxi_requests_take(set, 0, &answer);
    vnxi_requests_free(set);
    assert_failed(&answer, VNX_ERR_BACKEND, "no luck");
    assert_int_equal(world.begun, 1);
}

static void
test_request_without_an_answer_ends_at_its_deadline(void **state)
{
    SCENE({VNX_OK, VNX_IN_PROG, 0});
    vnx_side_channel_request_params_t params = asking("peer", 200, 9);

    vnx_side_channel_answer_t answer = ask(&params);
    assert_failed(&answer, VNX_ERR_TIMEOUT, "asking peer: timed out (after ");
    assert_int_equal(world.begun, 1); /* a timeout is not retried */
    assert_true(world.steps <= 3);    /* it slept */
}

static void
test_request_is_stepped_at_the_requested_time(void **state)
{
    SCENE({VNX_OK, VNX_OK, 5});
    vnx_side_channel_request_params_t params = asking("peer", 20000, 0);

    world.wake_ns = 100000;
    assert_answered(ask(&params), "peer");
    assert_int_equal(world.steps, 6);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_request_returns_the_transports_result),
        cmocka_unit_test(test_request_writes_brackets_around_ipv6),
        cmocka_unit_test(test_request_truncates_a_long_endpoint),
        cmocka_unit_test(test_request_retries_temporary_failures),
        cmocka_unit_test(test_request_ends_after_its_last_retry),
        cmocka_unit_test(test_request_does_not_retry_permanent_failures),
        cmocka_unit_test(test_request_does_not_retry_an_unknown_key),
        cmocka_unit_test(test_request_doubles_its_pause),
        cmocka_unit_test(test_request_stops_retrying_if_no_time_is_left),
        cmocka_unit_test(test_request_polled_late_reports_its_last_failure),
        cmocka_unit_test(test_request_without_an_answer_ends_at_its_deadline),
        cmocka_unit_test(test_request_is_stepped_at_the_requested_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
