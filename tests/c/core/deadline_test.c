/* Deadlines, alone and of transfers. */
#include "agent_pair.h"
#include "pool_gate.h"

#include <poll.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "core/deadline.h"

#define MS(n) ((uint64_t)(n)*1000000u)
#define MANY 64

/* -- By themselves ---------------------------------------------------------
 */

typedef struct watched {
    vnxi_deadline_t deadline;
    atomic_int calls;
    atomic_int place; /* in the order of first calls, from 1 on */
} watched_t;

static atomic_int last_place;

static void
on_passed(vnxi_deadline_t *deadline)
{
    watched_t *watched =
        (watched_t *)((char *)deadline - offsetof(watched_t, deadline));
    if (atomic_fetch_add(&watched->calls, 1) == 0) {
        atomic_store(&watched->place, atomic_fetch_add(&last_place, 1) + 1);
    }
}

static void
watch(watched_t *watched, uint64_t due_ns)
{
    watched->deadline.passed = on_passed;
    assert_ok(vnxi_deadline_arm(&watched->deadline, due_ns, e));
}

static void
await_calls(watched_t *watched, int calls)
{
    uint64_t end = vnxi_clock_deadline(SECONDS(20));
    while (atomic_load(&watched->calls) < calls) {
        assert_true(vnxi_clock_ns() < end);
        poll(NULL, 0, 1);
    }
}

/* Again and again, until it is disarmed. */
static void
test_deadline_passes_until_disarmed(void **state)
{
    watched_t watched = {0};
    (void)state;
    watch(&watched, vnxi_clock_ns());
    await_calls(&watched, 3);
    vnxi_deadline_disarm(&watched.deadline);
    int calls = atomic_load(&watched.calls);
    watched_t later = {0};
    watch(&later, vnxi_clock_deadline(MS(20)));
    await_calls(&later, 1);
    vnxi_deadline_disarm(&later.deadline);
    assert_int_equal(watched.calls, calls);
}

/* Callbacks run in the order of their times, not of arming; an earlier
 * deadline wakes the sleeping thread. */
static void
test_deadline_callbacks_run_in_order(void **state)
{
    watched_t many[MANY], far = {0}, never = {0};
    bool all_armed = false;
    (void)state;
    watch(&never, UINT64_MAX);
    watch(&far, vnxi_clock_deadline(SECONDS(3600)));
    for (uint64_t ms = 150; !all_armed; ms *= 2) { /* before the first */
        uint64_t begin = vnxi_clock_deadline(MS(ms));
        memset(many, 0, sizeof many);
        atomic_store(&last_place, 0);
        for (int i = 0; i < MANY; i++) {
            int mixed = i * 37 % MANY;
            watch(&many[mixed], begin + (uint64_t)mixed);
        }
        all_armed = vnxi_clock_ns() < begin;
        for (int i = 0; i < MANY; i++) {
            await_calls(&many[i], 1);
        }
        for (int i = 0; i < MANY; i++) {
            vnxi_deadline_disarm(&many[i].deadline);
            assert_true(!all_armed || many[i].place == i + 1);
        }
    }
    assert_int_equal(far.calls, 0);
    assert_int_equal(never.calls, 0);
    vnxi_deadline_disarm(&never.deadline);
    vnxi_deadline_disarm(&far.deadline);
}

/* A child inherits no deadlines, and its own work. */
static void
test_deadline_in_a_forked_child(void **state)
{
    watched_t parents = {0}, childs = {0};
    int status;
    (void)state;
#ifdef __SANITIZE_THREAD__
    skip(); /* it allows no threads in a forked copy of a threaded process */
#endif
    watch(&parents, vnxi_clock_deadline(SECONDS(3600)));
    pid_t pid = fork();
    if (pid == 0) {
        uint64_t end = vnxi_clock_deadline(SECONDS(20));
        childs.deadline.passed = on_passed;
        if (vnxi_deadline_arm(&childs.deadline, vnxi_clock_ns(), NULL) !=
            VNX_OK) {
            _exit(1);
        }
        while (atomic_load(&childs.calls) == 0) {
            if (vnxi_clock_ns() > end) {
                _exit(2);
            }
            poll(NULL, 0, 1);
        }
        _exit(atomic_load(&parents.calls) == 0 ? 0 : 3);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    vnxi_deadline_disarm(&parents.deadline);
}

/* -- Of transfers ----------------------------------------------------------
 */

static void
await_end(vnx_agent_t *agent, vnx_xfer_t *xfer)
{
    assert_ok(vnx_agent_wait(agent, &xfer, 1, VNX_WAIT_NO_CHECK,
                             vnx_test_limit(30), e));
}

static void
assert_timed_out(vnx_xfer_t *xfer, const char *cause)
{
    vnx_error_t error;
    assert_int_equal(vnx_xfer_state(xfer), VNX_XFER_FAILED);
    assert_int_equal(vnx_xfer_status(xfer, &error), VNX_ERR_TIMEOUT);
    assert_string_equal(error.operation, "vnx_xfer_post");
    if (strstr(error.cause, cause) == NULL) {
        fail_msg("the cause is: %s", error.cause);
    }
}

/* It waits at the gate until its deadline has passed. */
static void
test_deadline_of_a_transfer_passes(void **state)
{
    pair_t *p = *state;
    vnx_xfer_t *xfer = pair_make_xfer(p, VNX_OP_READ, ROWS, "never");

    for (int round = 0; round < 3; round++) {
        pool_gate_t *gate = gate_shut();
        assert_int_equal(vnx_xfer_post_within(xfer, NULL, 0, MS(1), NULL),
                         VNX_IN_PROG);
        watched_t later = {0};
        watch(&later, vnxi_clock_deadline(MS(2)));
        await_calls(&later, 1); /* by the same thread, so it was first */
        vnxi_deadline_disarm(&later.deadline);
        gate_open(gate);
        await_end(p->a, xfer);
        assert_timed_out(xfer, "had not ended 0.001 s after it was posted");
    }
    assert_int_equal(stats_of(p->a).xfers_failed, 3);
    assert_int_equal(stats_of(p->a).xfers_cancelled, 0);
    assert_null(vnx_agent_take_notifs(p->b));

    run_xfer(p->a, xfer); /* without one: it may take its time */
    assert_memory_equal(p->at_a, p->at_b, p->len);
    vnx_notif_free(await_notif(p->b));
    assert_ok(vnx_xfer_release(xfer, e));
}

static void
test_deadline_of_a_transfer_that_ends_in_time(void **state)
{
    pair_t *p = *state;
    vnx_xfer_t *xfer = pair_make_xfer(p, VNX_OP_READ, ROWS, NULL);
    vnx_xfer_t *small = pair_make_xfer(p, VNX_OP_READ, 1, NULL);

    for (int i = 0; i < 5; i++) {
        memset(p->at_a, 0, p->len);
        assert_ok(vnx_xfer_post_within(xfer, NULL, 0, SECONDS(60), e));
        await_end(p->a, xfer);
        assert_ok(vnx_xfer_status(xfer, e));
        assert_memory_equal(p->at_a, p->at_b, p->len);
        /* It is done before the post returns, so any timeout suffices. */
        assert_int_equal(vnx_xfer_post_within(small, NULL, 0, 0, NULL),
                         VNX_OK);
    }
    assert_ok(vnx_xfer_release(xfer, e));
    assert_ok(vnx_xfer_release(small, e));
}

/* A transfer stopped first by the user is cancelled; refused posts leave no
 * deadline. */
static void
test_deadline_of_a_transfer_that_is_cancelled(void **state)
{
    pair_t *p = *state;
    vnx_xfer_t *xfer = pair_make_xfer(p, VNX_OP_READ, ROWS, NULL);
    bool stopped = false;

    for (int i = 0; i < 10000 && !stopped; i++) {
        assert_ok(vnx_xfer_post_within(xfer, NULL, 0, SECONDS(60), e));
        assert_ok(vnx_xfer_cancel(xfer, &stopped, e));
    }
    assert_true(stopped);
    assert_int_equal(vnx_xfer_state(xfer), VNX_XFER_CANCELLED);
    deregister_at(p->b, p->at_b, p->len);
    assert_int_equal(vnx_xfer_post_within(xfer, NULL, 0, MS(1), NULL),
                     VNX_ERR_NOT_FOUND);
    assert_int_equal(vnx_xfer_state(xfer), VNX_XFER_FAILED);
    assert_ok(vnx_xfer_release(xfer, e));
}

/* Deadlines race with completion: each post ends in one of two ways. */
static void
test_deadline_races_with_the_end_of_a_transfer(void **state)
{
    pair_t *p = *state;
    vnx_xfer_t *xfer = pair_make_xfer(p, VNX_OP_READ, ROWS, NULL);
    uint64_t timeout = MS(2);
    unsigned done = 0, late = 0;

    for (int i = 0; i < 40 || done == 0 || late == 0; i++) {
        assert_true(i < 5000);
        assert_ok(vnx_xfer_post_within(xfer, NULL, 0, timeout, e));
        await_end(p->a, xfer);
        vnx_status_t status = vnx_xfer_status(xfer, NULL);
        assert_true(status == VNX_OK || status == VNX_ERR_TIMEOUT);
        done += status == VNX_OK;
        late += status != VNX_OK;
        timeout = status == VNX_OK ? timeout * 3 / 4 : timeout * 5 / 4 + 1000;
    }
    assert_ok(vnx_xfer_release(xfer, e));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_deadline_passes_until_disarmed),
        cmocka_unit_test(test_deadline_callbacks_run_in_order),
        cmocka_unit_test(test_deadline_in_a_forked_child),
        with_pair(test_deadline_of_a_transfer_passes),
        with_pair(test_deadline_of_a_transfer_that_ends_in_time),
        with_pair(test_deadline_of_a_transfer_that_is_cancelled),
        with_pair(test_deadline_races_with_the_end_of_a_transfer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
