/* Our threads and condition variables. */
#include "vnx_test.h"

#include <errno.h>
#include <semaphore.h>
#include <signal.h>

#include "base/clock.h"
#include "base/mutex.h"
#include "base/thread.h"

static void *
note_mask(void *argument)
{
    pthread_sigmask(SIG_SETMASK, NULL, argument);
    return NULL;
}

static void
test_thread_blocks_signals_and_keeps_the_callers_mask(void **state)
{
    sigset_t mine, before, after, its;
    pthread_t thread;
    (void)state;

    sigemptyset(&mine);
    sigaddset(&mine, SIGUSR2);
    pthread_sigmask(SIG_SETMASK, &mine, &before);
    assert_int_equal(vnxi_thread_start(&thread, note_mask, &its), 0);
    pthread_join(thread, NULL);
    pthread_sigmask(SIG_SETMASK, &before, &after);
    assert_true(sigismember(&its, SIGPIPE) && sigismember(&its, SIGINT) &&
                sigismember(&its, SIGUSR1));
    assert_true(sigismember(&after, SIGUSR2));
    assert_false(sigismember(&after, SIGPIPE));
}

static void *
note_stack(void *argument)
{
    pthread_attr_t attr;

    *(size_t *)argument = 0;
    if (pthread_getattr_np(pthread_self(), &attr) == 0) {
        pthread_attr_getstacksize(&attr, argument);
        pthread_attr_destroy(&attr);
    }
    return NULL;
}

static void
test_thread_has_a_stack_of_a_mebibyte(void **state)
{
    pthread_attr_t usual, small;
    pthread_t thread;
    size_t size;
    (void)state;

    assert_int_equal(pthread_getattr_default_np(&usual), 0);
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 128 << 10);
    assert_int_equal(pthread_setattr_default_np(&small), 0);
    int ret = vnxi_thread_start(&thread, note_stack, &size);
    pthread_setattr_default_np(&usual);
    pthread_attr_destroy(&usual);
    pthread_attr_destroy(&small);
    assert_int_equal(ret, 0);
    pthread_join(thread, NULL);
    /* musl's count lacks what it keeps at the end. */
    assert_in_range(size, (1u << 20) - 4096, SIZE_MAX);
}

static void *
post(void *argument)
{
    sem_post(argument);
    return NULL;
}

static void
test_thread_detached_runs(void **state)
{
    static sem_t has_run;
    (void)state;

    assert_int_equal(sem_init(&has_run, 0, 0), 0);
    assert_int_equal(vnxi_thread_start_detached(post, &has_run), 0);
    assert_int_equal(sem_wait(&has_run), 0);
    /* Not destroyed: the thread may still be in sem_post(). */
}

static void
test_thread_cond_uses_the_monotonic_clock(void **state)
{
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t cond;
    uint64_t due = vnxi_clock_deadline(1000000);
    struct timespec at = vnxi_clock_timespec(due);
    int ret = 0;
    (void)state;

    vnxi_cond_init(&cond);
    pthread_mutex_lock(&lock);
    while (ret == 0) {
        ret = pthread_cond_timedwait(&cond, &lock, &at);
    }
    pthread_mutex_unlock(&lock);
    assert_int_equal(ret, ETIMEDOUT);
    assert_true(vnxi_clock_ns() >= due);
    pthread_cond_destroy(&cond);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(
            test_thread_blocks_signals_and_keeps_the_callers_mask),
        cmocka_unit_test(test_thread_has_a_stack_of_a_mebibyte),
        cmocka_unit_test(test_thread_detached_runs),
        cmocka_unit_test(test_thread_cond_uses_the_monotonic_clock),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
