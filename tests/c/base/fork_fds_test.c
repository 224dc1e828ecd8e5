#include "vnx_test.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fork_fds.h"

/* Bit i: descriptor i of the array is open in a forked child. */
static int
open_in_child(const int *fds, int count)
{
    int status, open = 0;
    pid_t pid = fork();

    assert_true(pid >= 0);
    if (pid == 0) {
        for (int i = 0; i < count; i++) {
            open |= (fcntl(fds[i], F_GETFD) >= 0) << i;
        }
        _exit(open);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void
test_fork_fds_are_closed_in_the_child_only(void **state)
{
    (void)state;
    int fds[2];

    assert_int_equal(pipe(fds), 0);
    assert_int_equal(vnxi_fork_fd_own(fds[0]), fds[0]);
    assert_int_equal(open_in_child(fds, 2), 2);
    assert_true(fcntl(fds[0], F_GETFD) >= 0);
    assert_int_equal(open_in_child(fds, 2), 2); /* and so every time */
    vnxi_fork_fd_close(fds[0]);
    assert_int_equal(fcntl(fds[0], F_GETFD), -1);
    close(fds[1]);
}

/* The number is reused for another file. */
static void
test_fork_fds_forget_closed_ones(void **state)
{
    (void)state;
    int fds[2];

    assert_int_equal(pipe(fds), 0);
    vnxi_fork_fd_own(fds[0]);
    vnxi_fork_fd_close(fds[0]);
    assert_int_equal(dup2(fds[1], fds[0]), fds[0]);
    assert_int_equal(open_in_child(fds, 2), 3);
    close(fds[0]);
    close(fds[1]);
}

static void
test_fork_fds_accept_minus_one_and_high_numbers(void **state)
{
    (void)state;
    struct rlimit limit;
    int fds[2];

    assert_int_equal(vnxi_fork_fd_own(-1), -1);
    vnxi_fork_fd_close(-1);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    limit.rlim_cur = limit.rlim_max;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
    assert_int_equal(pipe(fds), 0);
    int high =
        fcntl(fds[0], F_DUPFD,
              (int)(limit.rlim_cur < 1 << 19 ? limit.rlim_cur - 1 : 1 << 19));
    assert_true(high > fds[1]);
    vnxi_fork_fd_own(high);
    vnxi_fork_fd_own(fds[1]);
    assert_int_equal(open_in_child((int[]){fds[0], fds[1], high}, 3), 1);
    vnxi_fork_fd_close(high);
    vnxi_fork_fd_close(fds[1]);
    close(fds[0]);
}

/* In a child, which has nothing else to lose. */
static void
test_fork_fds_detect_descriptors_closed_by_the_program(void **state)
{
    int status;
    (void)state;
    unsigned before = vnxi_fds_epoch();

    assert_false(vnxi_fds_lost(before));
    assert_int_equal(vnxi_fds_epoch(), before);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        int fds[2], failed = 0;
        unsigned epoch = vnxi_fds_epoch();
        failed |= pipe(fds) != 0 || vnxi_fds_lost(epoch);
        vnxi_fork_fd_own(fds[0]);
        failed |= syscall(SYS_close_range, 3, ~0u, 0) != 0;
        /* The number is another file's when the child is forked. */
        failed |= (dup2(1, fds[0]) != fds[0]) << 1;
        failed |= !vnxi_fds_lost(epoch) << 2;
        failed |= (open_in_child(fds, 1) != 1) << 3;
        unsigned now = vnxi_fds_epoch();
        failed |= (now == epoch || vnxi_fds_lost(now)) << 4;
        failed |= !vnxi_fds_lost(epoch) << 5;
        _exit(failed);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    assert_false(vnxi_fds_lost(before));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fork_fds_are_closed_in_the_child_only),
        cmocka_unit_test(test_fork_fds_forget_closed_ones),
        cmocka_unit_test(test_fork_fds_accept_minus_one_and_high_numbers),
        cmocka_unit_test(
            test_fork_fds_detect_descriptors_closed_by_the_program),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
