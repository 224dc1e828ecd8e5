/* Writing to closed connections without the signal. */
#include "vnx_test.h"

#include <errno.h>
#include <pthread.h>
#include <unistd.h>

#include "base/sigpipe.h"

static volatile sig_atomic_t raised;

static void
on_sigpipe(int number)
{
    (void)number;
    raised++;
}

/* Write to a pipe that nobody reads. */
static void
write_in_vain(void)
{
    int ends[2];

    assert_int_equal(pipe(ends), 0);
    close(ends[0]);
    assert_int_equal(write(ends[1], "x", 1), -1);
    assert_int_equal(errno, EPIPE);
    close(ends[1]);
}

static bool
is_blocked(void)
{
    sigset_t mask;

    assert_int_equal(pthread_sigmask(SIG_SETMASK, NULL, &mask), 0);
    return sigismember(&mask, SIGPIPE) == 1;
}

static void
test_sigpipe_is_dropped_while_blocked(void **state)
{
    vnxi_sigpipe_t before;
    (void)state;

    raised = 0;
    for (int i = 0; i < 2; i++) {
        vnxi_sigpipe_block(&before);
        assert_true(is_blocked());
        write_in_vain();
        vnxi_sigpipe_restore(&before);
        assert_int_equal(errno, EPIPE);
        assert_false(is_blocked());
        assert_int_equal(raised, 0);
    }
    vnxi_sigpipe_block(&before); /* without a signal */
    vnxi_sigpipe_restore(&before);
    write_in_vain();
    assert_int_equal(raised, 1);
}

/* One that the program has blocked, and that waits for it. */
static void
test_sigpipe_of_the_program_stays(void **state)
{
    vnxi_sigpipe_t outer, before;
    sigset_t pending, set;
    int number;
    (void)state;

    raised = 0;
    vnxi_sigpipe_block(&outer);
    write_in_vain();
    vnxi_sigpipe_block(&before);
    write_in_vain();
    vnxi_sigpipe_restore(&before);
    assert_true(is_blocked());
    assert_int_equal(sigpending(&pending), 0);
    assert_int_equal(sigismember(&pending, SIGPIPE), 1);
    sigemptyset(&set);
    sigaddset(&set, SIGPIPE);
    assert_int_equal(sigwait(&set, &number), 0);
    vnxi_sigpipe_restore(&outer);
    assert_int_equal(raised, 0);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sigpipe_is_dropped_while_blocked),
        cmocka_unit_test(test_sigpipe_of_the_program_stays),
    };
    struct sigaction noted = {.sa_handler = on_sigpipe};

    sigaction(SIGPIPE, &noted, NULL);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
