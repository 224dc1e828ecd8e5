/*
 * Calls on a transfer that another thread posts, stops or ends at the same
 * moment.  A fake engine makes that moment certain: it is the native one with
 * functions of the test in place of posting and stopping.
 */
#include "agent_pair.h"

#include <poll.h>
#include <pthread.h>
#include <semaphore.h>

#include "base/clock.h"
#include "core/agent.h"

static pair_t *pair;
static vnx_xfer_t *xfer;
static vnxi_engine_ops_t fake;
static vnx_status_t (*on_post)(vnx_error_t *error);
static vnx_status_t (*on_cancel)(void);
static atomic_uint cancels;
static sem_t cancelled; /* posted by each call that stops */

static vnx_status_t
fake_post(vnxi_exfer_t *exfer, const void *notif, size_t notif_len,
          vnx_error_t *error)
{
    (void)exfer;
    (void)notif;
    (void)notif_len;
    return on_post(error);
}

static vnx_status_t
fake_cancel(vnxi_exfer_t *exfer)
{
    (void)exfer;
    atomic_fetch_add(&cancels, 1);
    return on_cancel();
}

static vnx_status_t
cancel_is_noted(void)
{
    sem_post(&cancelled);
    return VNX_OK;
}

static vnx_status_t
post_starts(vnx_error_t *error)
{
    (void)error;
    return VNX_IN_PROG;
}

static vnx_status_t
post_fails(vnx_error_t *error)
{
    return vnxi_error_set(error, VNX_ERR_REMOTE_DISCONNECT, "vnx_xfer_post",
                          "the peer is gone");
}

static int
setup(void **state)
{
    pair_setup(state);
    pair = *state;
    fake = *pair->a->ops;
    fake.xfer_post = fake_post;
    fake.xfer_cancel = fake_cancel;
    pair->a->ops = &fake;
    assert_int_equal(sem_init(&cancelled, 0, 0), 0);
    on_post = post_starts;
    on_cancel = cancel_is_noted;
    atomic_store(&cancels, 0);
    xfer = pair_make_xfer(pair, VNX_OP_READ, 1, NULL);
    return 0;
}

static int
teardown(void **state)
{
    vnx_xfer_abandon(xfer);
    sem_destroy(&cancelled);
    return pair_teardown(state);
}

static void *
post_main(void *unused)
{
    (void)unused;
    assert_int_equal(vnx_xfer_post(xfer, NULL, 0, NULL), VNX_IN_PROG);
    return NULL;
}

static void
on_another_thread(void *(*run)(void *unused))
{
    pthread_t thread;

    assert_int_equal(pthread_create(&thread, NULL, run, NULL), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
}

/* The engine's report. */
static void
end(vnx_status_t status)
{
    vnx_error_t error;

    if (status != VNX_OK) {
        vnxi_error_set(&error, status, "vnx_xfer_post", "ended by the test");
    }
    vnxi_xfer_done(pair->a, xfer, status, status != VNX_OK ? &error : NULL);
}

/* -- At a lock -------------------------------------------------------------
 */

/* Post once, just before this thread takes that lock, or just after it has
 * released this one and the transfer is cancelled. */
static _Thread_local void *before_lock, *after_unlock;

int __real_pthread_mutex_lock(pthread_mutex_t *mutex);
int __wrap_pthread_mutex_lock(pthread_mutex_t *mutex);

int
__wrap_pthread_mutex_lock(pthread_mutex_t *mutex)
{
    if (before_lock == mutex) {
        before_lock = NULL;
        on_another_thread(post_main);
    }
    return __real_pthread_mutex_lock(mutex);
}

int __real_pthread_mutex_unlock(pthread_mutex_t *mutex);
int __wrap_pthread_mutex_unlock(pthread_mutex_t *mutex);

int
__wrap_pthread_mutex_unlock(pthread_mutex_t *mutex)
{
    int ret = __real_pthread_mutex_unlock(mutex);

    if (after_unlock == mutex && vnx_xfer_state(xfer) == VNX_XFER_CANCELLED) {
        after_unlock = NULL;
        on_another_thread(post_main);
    }
    return ret;
}

/* -- Status ----------------------------------------------------------------
 */

static void
test_race_status_of_a_failed_one_that_is_posted_again(void **state)
{
    vnx_error_t error = {.cause = ""};
    (void)state;

    on_post = post_fails;
    assert_int_equal(vnx_xfer_post(xfer, NULL, 0, NULL),
                     VNX_ERR_REMOTE_DISCONNECT);
    on_post = post_starts;
    before_lock = &pair->a->error_lock;
    assert_int_equal(vnx_xfer_status(xfer, &error), VNX_IN_PROG);
    assert_null(before_lock);
    assert_string_equal(error.cause, "");
    end(VNX_OK);
    assert_int_equal(vnx_xfer_status(xfer, NULL), VNX_OK);
}

/* -- Timeout ---------------------------------------------------------------
 */

static void
await_cancel(void)
{
    struct timespec end;

    clock_gettime(CLOCK_REALTIME, &end);
    end.tv_sec += 30;
    assert_int_equal(sem_timedwait(&cancelled, &end), 0);
}

/* A small transfer, which the posting thread copies, is stopped during that.
 */
static vnx_status_t
post_stops(vnx_error_t *error)
{
    await_cancel();
    vnxi_error_set(error, VNX_ERR_CANCELED, "vnx_xfer_post",
                   "the transfer was cancelled");
    vnxi_error_peer(error, "B", 1);
    return VNX_ERR_CANCELED;
}

static void
test_race_post_that_times_out_before_it_returns(void **state)
{
    vnx_error_t error, later;
    (void)state;

    on_post = post_stops;
    assert_int_equal(vnx_xfer_post_within(xfer, NULL, 0, 1000000, &error),
                     VNX_ERR_TIMEOUT);
    assert_int_equal(error.status, VNX_ERR_TIMEOUT);
    assert_string_equal(error.peer, "B");
    assert_int_equal(vnx_xfer_status(xfer, &later), VNX_ERR_TIMEOUT);
    assert_string_equal(error.cause, later.cause);
    while (sem_trywait(&cancelled) == 0) { /* it may stop more than once */
    }
    assert_int_equal(vnx_xfer_post_within(xfer, NULL, 0, 1000000, NULL),
                     VNX_ERR_TIMEOUT);
    assert_int_equal(stats_of(pair->a).xfers_failed, 2);
}

/* -- Cancel ----------------------------------------------------------------
 */

static void
start(void)
{
    assert_int_equal(vnx_xfer_post(xfer, NULL, 0, NULL), VNX_IN_PROG);
}

static void
assert_cancel(bool stops)
{
    bool stopped = !stops;

    assert_ok(vnx_xfer_cancel(xfer, &stopped, e));
    assert_int_equal(stopped, stops);
}

static void *
end_cancelled(void *unused)
{
    end(VNX_ERR_CANCELED);
    return unused;
}

static void *
end_done(void *unused)
{
    end(VNX_OK);
    return unused;
}

static vnx_status_t
cancel_then_post(void)
{
    on_another_thread(end_cancelled);
    on_another_thread(post_main);
    return VNX_OK;
}

static vnx_status_t
cancel_late_then_post(void)
{
    on_another_thread(end_done);
    on_another_thread(post_main);
    return VNX_OK;
}

/* It returns although another post is in progress. */
static void
test_race_cancel_of_one_that_is_posted_again_at_once(void **state)
{
    (void)state;

    start();
    on_cancel = cancel_then_post;
    assert_cancel(true);
    assert_int_equal(vnx_xfer_state(xfer), VNX_XFER_POSTED);
    on_cancel = cancel_late_then_post;
    assert_cancel(false);
    assert_int_equal(vnx_xfer_state(xfer), VNX_XFER_POSTED);
    assert_int_equal(atomic_load(&cancels), 2);
    end(VNX_OK);
    assert_int_equal(vnx_xfer_state(xfer), VNX_XFER_DONE);
}

static pthread_t ender;

/* End the transfer when the canceller waits for that. */
static void *
end_main(void *unused)
{
    uint64_t limit = vnxi_clock_deadline(SECONDS(30));

    while (atomic_load(&pair->a->events.waiters) == 0 &&
           vnxi_clock_ns() < limit) {
        poll(NULL, 0, 1);
    }
    return end_cancelled(unused);
}

static vnx_status_t
cancel_in_time(void)
{
    if (atomic_load(&cancels) == 1) {
        assert_int_equal(pthread_create(&ender, NULL, end_main, NULL), 0);
    }
    return VNX_OK;
}

/* In rare cases the transfer ends when the canceller does not sleep. */
static void
test_race_cancel_of_one_that_is_posted_again_after_the_wait(void **state)
{
    (void)state;

    on_cancel = cancel_in_time;
    after_unlock = &pair->a->events.lock;
    for (int round = 0; after_unlock != NULL; round++) {
        assert_true(round < 100);
        atomic_store(&cancels, 0);
        start();
        assert_cancel(true);
        assert_int_equal(pthread_join(ender, NULL), 0);
    }
    assert_int_equal(vnx_xfer_state(xfer), VNX_XFER_POSTED);
    end(VNX_OK);
}

static vnx_status_t
cancel_late(void)
{
    on_another_thread(end_done);
    return VNX_ERR_NOT_SUPPORTED;
}

static void
test_race_cancel_of_one_that_ends_meanwhile(void **state)
{
    (void)state;

    start();
    on_cancel = cancel_late;
    assert_cancel(false);
    assert_int_equal(vnx_xfer_state(xfer), VNX_XFER_DONE);
    start();
    assert_ok(vnx_xfer_release(xfer, e));
    xfer = NULL;
    assert_int_equal(stats_of(pair->a).live_xfers, 0);
    assert_int_equal(atomic_load(&cancels), 2);
}

static vnx_status_t
cancel_is_refused(void)
{
    return VNX_ERR_NOT_SUPPORTED;
}

static void
test_race_cancel_of_one_that_cannot_be_stopped(void **state)
{
    vnx_error_t error;
    bool stopped;
    (void)state;

    start();
    on_cancel = cancel_is_refused;
    assert_int_equal(vnx_xfer_cancel(xfer, &stopped, &error),
                     VNX_ERR_NOT_SUPPORTED);
    assert_non_null(strstr(error.cause, "it continues"));
    assert_int_equal(vnx_xfer_release(xfer, &error), VNX_ERR_NOT_SUPPORTED);
    assert_int_equal(vnx_xfer_state(xfer), VNX_XFER_POSTED);
    end(VNX_OK);
}

static sem_t entered;
static atomic_bool stop;

/* The engine forgets what was to be stopped before. */
static vnx_status_t
post_resets(vnx_error_t *error)
{
    (void)error;
    sem_post(&entered);
    await_cancel();
    atomic_store(&stop, false);
    return VNX_IN_PROG;
}

static vnx_status_t
cancel_stops(void)
{
    atomic_store(&stop, true);
    sem_post(&cancelled);
    return VNX_OK;
}

static void *
post_and_end_main(void *unused)
{
    uint64_t limit = vnxi_clock_deadline(SECONDS(30));

    post_main(unused);
    while (!atomic_load(&stop) && vnxi_clock_ns() < limit) {
        poll(NULL, 0, 1);
    }
    return end_cancelled(unused);
}

static void
test_race_cancel_of_one_that_is_just_being_posted(void **state)
{
    pthread_t thread;
    (void)state;

    assert_int_equal(sem_init(&entered, 0, 0), 0);
    on_post = post_resets;
    on_cancel = cancel_stops;
    assert_int_equal(pthread_create(&thread, NULL, post_and_end_main, NULL),
                     0);
    assert_int_equal(sem_wait(&entered), 0);
    assert_cancel(true);
    assert_true(atomic_load(&cancels) > 1);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_int_equal(vnx_xfer_state(xfer), VNX_XFER_CANCELLED);
    sem_destroy(&entered);
}

#define with_race(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        with_race(test_race_status_of_a_failed_one_that_is_posted_again),
        with_race(test_race_post_that_times_out_before_it_returns),
        with_race(test_race_cancel_of_one_that_is_posted_again_at_once),
        with_race(test_race_cancel_of_one_that_is_posted_again_after_the_wait),
        with_race(test_race_cancel_of_one_that_ends_meanwhile),
        with_race(test_race_cancel_of_one_that_cannot_be_stopped),
        with_race(test_race_cancel_of_one_that_is_just_being_posted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
