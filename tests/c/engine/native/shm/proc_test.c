#include "vnx_test.h"

#include <errno.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "engine/native/shm/proc.h"

/* The name in /proc/PID/stat may look like anything, as set here. */
static void
test_proc_stat_parses_any_process_name(void **state)
{
    (void)state;
    const char *names[] = {"a) R 1 2 3", "x (y) z", ")))", "( (", "1 2 3 4 5"};
    char before[32] = "";
    vnxi_proc_stat_t expected, stat;

    prctl(PR_GET_NAME, before);
    assert_int_equal(vnxi_proc_stat(getpid(), &expected), 0);
    assert_true(expected.start_time > 0);
    assert_false(expected.exiting);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        assert_int_equal(prctl(PR_SET_NAME, names[i]), 0);
        stat = (vnxi_proc_stat_t){.exiting = true};
        assert_int_equal(vnxi_proc_stat(getpid(), &stat), 0);
        assert_true(stat.start_time == expected.start_time);
        assert_false(stat.exiting);
    }
    prctl(PR_SET_NAME, before);
}

static void
test_proc_stat_follows_a_process_to_its_end(void **state)
{
    (void)state;
    vnxi_proc_stat_t mine, childs;
    siginfo_t info;
    pid_t pid = fork();

    assert_true(pid >= 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;) {
            pause();
        }
    }
    assert_int_equal(vnxi_proc_stat(getpid(), &mine), 0);
    assert_int_equal(vnxi_proc_stat(pid, &childs), 0);
    assert_true(childs.start_time >= mine.start_time);
    assert_false(childs.exiting);

    kill(pid, SIGKILL);
    assert_int_equal(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT), 0);
    assert_int_equal(vnxi_proc_stat(pid, &childs), 0);
    assert_true(childs.exiting);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    assert_int_equal(vnxi_proc_stat(pid, &childs), ESRCH);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_proc_stat_parses_any_process_name),
        cmocka_unit_test(test_proc_stat_follows_a_process_to_its_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
