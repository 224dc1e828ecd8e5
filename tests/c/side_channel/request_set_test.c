/*
 * Many requests over a scripted transport: concurrency, waiting, interruption.
 */
#include "child_check.h"
#include "fake_transport.h"

#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static void
test_requests_wait_on_one_descriptor_each(void **state)
{
    SCENE({VNX_OK, VNX_OK, 1});
    vnx_side_channel_request_params_t params[2] = {asking("a", 20000, 0),
                                                   asking("b", 20000, 0)};
    vnx_side_channel_answer_t answers[2];
    uint64_t one = 1;

    world.fd = eventfd(0, EFD_CLOEXEC);
    world.wake_ns = UINT64_C(3000000); /* whom the set did not take */
    int fd = -1;
    vnxi_requests_t *set = set_of(params, 2);
    assert_int_equal(vnxi_requests_watch(set, &fd, NULL), VNX_OK);
    assert_int_equal(world.steps, 2);
    assert_int_equal(write(world.fd, &one, sizeof one), sizeof one);
    assert_true(vnxi_requests_run(set, NULL, NULL));
    for (size_t i = 0; i < 2; i++) {
        vnxi_requests_take(set, i, &answers[i]);
        assert_answered(answers[i], params[i].host);
    }
    vnxi_requests_free(set);
    close(world.fd);
}

static bool
always(void *arg)
{
    (*(int *)arg)++;
    return true;
}

static void
test_requests_in_progress_and_waiting_are_interrupted(void **state)
{
    SCENE({VNX_OK, VNX_OK, 0}, {VNX_OK, VNX_IN_PROG, 0},
          {VNX_ERR_BACKEND, VNX_OK, 0});
    vnx_side_channel_request_params_t params[3] = {
        asking("done", 60000, 0), asking("open", 60000, 0),
        asking("resting", 60000, 9)};
    vnx_side_channel_answer_t answers[3];
    int asked = 0;

    params[2].backoff_ms = 60000; /* longer than it is looked for */
    vnxi_requests_t *set = set_of(params, 3);
    assert_false(vnxi_requests_run(set, always, &asked));
    assert_int_equal(asked, 1);
    assert_int_equal(world.open, 0);
    for (size_t i = 0; i < 3; i++) {
        vnxi_requests_take(set, i, &answers[i]);
    }
    assert_answered(answers[0], "done");
    assert_failed(&answers[1], VNX_ERR_CANCELED, "interrupted");
    assert_failed(&answers[2], VNX_ERR_CANCELED, "interrupted");
    vnxi_requests_free(set);
}

static void
test_requests_can_be_freed_at_any_stage(void **state)
{
    SCENE({VNX_OK, VNX_OK, 0}, {VNX_OK, VNX_IN_PROG, 0},
          {VNX_ERR_BACKEND, VNX_OK, 0});
    vnx_side_channel_request_params_t params[3] = {asking("done", 60000, 0),
                                                   asking("open", 60000, 0),
                                                   asking("rests", 60000, 9)};

    vnxi_requests_free(set_of(params, 3)); /* nothing begun */
    assert_int_equal(world.begun, 0);
    int fd = -1;
    vnxi_requests_t *set = set_of(params, 3);
    assert_int_equal(vnxi_requests_watch(set, &fd, NULL), VNX_OK);
    assert_int_equal(world.open, 1);
    vnxi_requests_free(set); /* with an answer that was not taken */
    assert_int_equal(world.open, 0);
    vnxi_requests_free(NULL);
}

/* A child that is forked meanwhile shares the parent's connections. */
static void
test_requests_of_the_parent_are_left_alone_by_a_child(void **state)
{
    SCENE({VNX_OK, VNX_OK, 1});
    vnx_side_channel_request_params_t params[2] = {asking("a", 20000, 0),
                                                   asking("b", 20000, 0)};
    vnx_side_channel_answer_t answers[2];
    int fd = -1, status;

    world.wake_ns = 20 * MS;
    vnxi_requests_t *set = set_of(params, 2);
    assert_int_equal(vnxi_requests_watch(set, &fd, NULL), VNX_OK);
    pid_t child = fork();
    if (child == 0) {
        CHECK(vnxi_requests_step(set) == 0);
        vnxi_requests_take(set, 1, &answers[1]);
        CHECK(answers[1].status == VNX_ERR_NOT_ALLOWED);
        CHECK(strstr(answers[1].error.cause, "forked") != NULL);
        CHECK(vnxi_requests_run(set, NULL, NULL));
        vnxi_requests_free(set);
        CHECK(world.steps == 2 && world.ended == 0);
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    assert_true(vnxi_requests_run(set, NULL, NULL));
    for (size_t i = 0; i < 2; i++) {
        vnxi_requests_take(set, i, &answers[i]);
        assert_answered(answers[i], params[i].host);
    }
    vnxi_requests_free(set);
}

/* Each round starts a few; the first wait comes after all have started. */
static void
test_requests_are_all_started_before_waiting(void **state)
{
    SCENE({VNX_OK, VNX_IN_PROG, 0});
    enum { REQUESTS = 200 };
    vnx_side_channel_request_params_t params[REQUESTS];
    vnx_side_channel_answer_t answer;

    for (size_t i = 0; i < REQUESTS; i++) {
        params[i] = asking("peer", 60000, 0);
    }
    int fd = -1;
    vnxi_requests_t *set = set_of(params, REQUESTS);
    assert_int_equal(vnxi_requests_watch(set, &fd, NULL), VNX_OK);
    while (world.begun < REQUESTS) { /* on a slow machine */
        struct pollfd entry = {.fd = fd, .events = POLLIN};
        assert_int_equal(poll(&entry, 1, 20000), 1);
        vnxi_requests_step(set);
    }
    vnxi_requests_free(set);
    world.begun = 0;
    for (size_t i = 0; i < REQUESTS; i++) {
        params[i].timeout_ms = 300;
    }
    set = set_of(params, REQUESTS);
    assert_true(vnxi_requests_run(set, NULL, NULL));
    assert_int_equal(world.begun, REQUESTS);
    for (size_t i = 0; i < REQUESTS; i++) {
        vnxi_requests_take(set, i, &answer);
        assert_failed(&answer, VNX_ERR_TIMEOUT, "asking peer: timed out");
    }
    vnxi_requests_free(set);
    assert_int_equal(world.open, 0);
}

/* A transport whose steps take a while, as if the peer sent without end. */
static vnx_status_t
long_step(vnxi_request_t *request)
{
    usleep(1000);
    return fake.step(request);
}

/* An event loop has other things to do, and the descriptor stays readable. */
static void
test_requests_step_ends_although_there_is_more_to_do(void **state)
{
    SCENE({VNX_OK, VNX_IN_PROG, 0});
    vnx_side_channel_request_params_t params = asking("peer", 60000, 0);
    vnxi_transport_t busy = fake;
    int fd = -1;

    busy.step = long_step;
    world.fd = eventfd(1, EFD_CLOEXEC); /* always readable */
    vnxi_requests_t *set = set_over(&busy, &params, 1);
    assert_int_equal(vnxi_requests_watch(set, &fd, NULL), VNX_OK);
    world.steps = 0;
    assert_int_equal(vnxi_requests_step(set), 1);
    assert_in_range(world.steps, 1, 10);
    struct pollfd entry = {.fd = fd, .events = POLLIN};
    assert_int_equal(poll(&entry, 1, 0), 1);
    vnxi_requests_free(set);
    close(world.fd);
}

/* Half of the descriptors bound the concurrency; all requests get a turn. */
static void
test_requests_leave_descriptors_to_others(void **state)
{
    SCENE({VNX_OK, VNX_OK, 2});
    enum { REQUESTS = 50 };
    vnx_side_channel_request_params_t params[REQUESTS];
    vnx_side_channel_answer_t answer;
    vnxi_transport_t hungry = fake;
    struct rlimit limit;

    for (size_t i = 0; i < REQUESTS; i++) {
        params[i] = asking("peer", 30000, 0);
    }
    world.wake_ns = 10000;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    hungry.fds = (unsigned)(limit.rlim_cur / 2 / 7); /* seven fit */
    vnxi_requests_t *set = set_over(&hungry, params, REQUESTS);
    assert_true(vnxi_requests_run(set, NULL, NULL));
    assert_int_equal(world.begun, REQUESTS);
    assert_in_range(world.open_most, 1, 8);
    for (size_t i = 0; i < REQUESTS; i++) {
        vnxi_requests_take(set, i, &answer);
        assert_answered(answer, "peer");
    }
    vnxi_requests_free(set);
}

/* Also those that are tried again, all at about the same time. */
static void
test_requests_leave_descriptors_to_others_when_tried_again(void **state)
{
    SCENE({VNX_OK, VNX_ERR_BACKEND, 0}, {VNX_OK, VNX_ERR_BACKEND, 0},
          {VNX_OK, VNX_ERR_BACKEND, 0}, {VNX_OK, VNX_ERR_BACKEND, 0},
          {VNX_OK, VNX_ERR_BACKEND, 0}, {VNX_OK, VNX_ERR_BACKEND, 0},
          {VNX_OK, VNX_OK, 2});
    enum { REQUESTS = 6 };
    vnx_side_channel_request_params_t params[REQUESTS];
    vnx_side_channel_answer_t answer;
    vnxi_transport_t hungry = fake;
    struct rlimit limit;

    for (size_t i = 0; i < REQUESTS; i++) {
        params[i] = asking("peer", 30000, 9);
    }
    world.wake_ns = 20 * MS; /* longer than they rest */
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    hungry.fds = (unsigned)(limit.rlim_cur / 2 / 2); /* two fit */
    vnxi_requests_t *set = set_over(&hungry, params, REQUESTS);
    assert_true(vnxi_requests_run(set, NULL, NULL));
    assert_in_range(world.open_most, 1, 3);
    for (size_t i = 0; i < REQUESTS; i++) {
        vnxi_requests_take(set, i, &answer);
        assert_answered(answer, "peer");
    }
    vnxi_requests_free(set);
}

/* Two requests of which only one has room at a time, whatever the limit is. */
static void
run_alone(const vnx_side_channel_request_params_t params[2],
          vnx_side_channel_answer_t answers[2])
{
    vnxi_transport_t greedy = fake;

    greedy.fds = UINT32_MAX;
    vnxi_requests_t *set = set_over(&greedy, params, 2);
    assert_true(vnxi_requests_run(set, NULL, NULL));
    vnxi_requests_take(set, 0, &answers[0]);
    vnxi_requests_take(set, 1, &answers[1]);
    vnxi_requests_free(set);
}

/* One that waits for its second turn fails with the cause of the first. */
static void
test_requests_that_wait_again_have_the_cause_of_their_last_try(void **state)
{
    SCENE({VNX_OK, VNX_ERR_BACKEND, 0}, {VNX_OK, VNX_IN_PROG, 0});
    vnx_side_channel_request_params_t params[2] = {asking("first", 300, 9),
                                                   asking("second", 1200, 0)};
    vnx_side_channel_answer_t answers[2];

    run_alone(params, answers);
    assert_failed(&answers[0], VNX_ERR_BACKEND, "asking first: no luck");
    assert_failed(&answers[1], VNX_ERR_TIMEOUT, "asking second");
    assert_int_equal(world.begun, 2);
}

/* A request that never starts fails at its own deadline. */
static void
test_requests_never_started_end_at_their_deadline(void **state)
{
    SCENE({VNX_OK, VNX_IN_PROG, 0});
    vnx_side_channel_request_params_t params[2] = {asking("first", 400, 0),
                                                   asking("second", 20, 0)};
    vnx_side_channel_answer_t answers[2];

    run_alone(params, answers);
    assert_failed(&answers[0], VNX_ERR_TIMEOUT, "asking first");
    assert_failed(&answers[1], VNX_ERR_TIMEOUT, "waiting to ask second");
    assert_int_equal(world.begun, 1);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_requests_wait_on_one_descriptor_each),
        cmocka_unit_test(
            test_requests_in_progress_and_waiting_are_interrupted),
        cmocka_unit_test(test_requests_can_be_freed_at_any_stage),
        cmocka_unit_test(
            test_requests_of_the_parent_are_left_alone_by_a_child),
        cmocka_unit_test(test_requests_are_all_started_before_waiting),
        cmocka_unit_test(test_requests_step_ends_although_there_is_more_to_do),
        cmocka_unit_test(test_requests_leave_descriptors_to_others),
        cmocka_unit_test(
            test_requests_leave_descriptors_to_others_when_tried_again),
        cmocka_unit_test(
            test_requests_that_wait_again_have_the_cause_of_their_last_try),
        cmocka_unit_test(test_requests_never_started_end_at_their_deadline),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
