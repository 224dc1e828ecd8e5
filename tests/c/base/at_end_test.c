/* Callbacks at process exit, and before it on request. */
#include "vnx_test.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/at_end.h"

static int calls, order;
static int report_fd;

static void
first(void)
{
    calls++;
    order = order * 10 + 1;
}

static void
second(void)
{
    calls++;
    order = order * 10 + 2;
}

static void
tell(void)
{
    if (write(report_fd, "x", 1) != 1) {
        _exit(9);
    }
}

/* In reverse order, each once, however often they are requested. */
static void
test_at_end_calls_each_once(void **state)
{
    (void)state;
    vnxi_at_end_run();
    vnxi_at_end_add(first);
    vnxi_at_end_add(second);
    vnxi_at_end_add(first);
    assert_int_equal(calls, 0);
    vnxi_at_end_run();
    assert_int_equal(order, 21);
    vnxi_at_end_run();
    assert_int_equal(calls, 2);
}

/* What was written in a child that ends as `child` has it. */
static void
text_of_child(void (*child)(void), char text[16])
{
    int fds[2], status;
    size_t len = 0;

    assert_int_equal(pipe(fds), 0);
    pid_t pid = fork();
    if (pid == 0) {
        report_fd = fds[1];
        child();
        exit(0);
    }
    close(fds[1]);
    while (len < 15 && read(fds[0], text + len, 1) == 1) {
        len++;
    }
    text[len] = '\0';
    close(fds[0]);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

/* How often `tell` was called there. */
static int
count_in_child(void (*child)(void))
{
    char text[16];

    text_of_child(child, text);
    assert_int_equal(strspn(text, "x"), strlen(text));
    return (int)strlen(text);
}

static void
just_exit(void)
{
    vnxi_at_end_add(tell);
}

static void
run_and_exit(void)
{
    vnxi_at_end_add(tell);
    vnxi_at_end_run();
}

static void
tell_early(void)
{
    if (write(report_fd, "early", 5) != 5) {
        _exit(9);
    }
}

/* A library that is loaded after the first callback was added. */
static void
add_around_a_handler(void)
{
    vnxi_at_end_add(first);
    atexit(tell_early);
    vnxi_at_end_add(tell);
}

static void
add_none(void)
{
}

static void
test_at_end_runs_at_exit(void **state)
{
    (void)state;
    assert_int_equal(count_in_child(just_exit), 1);
    assert_int_equal(count_in_child(run_and_exit), 1);
}

/* Before the exit handlers of libraries that were loaded before it was added,
 * whenever others were added. */
static void
test_at_end_runs_before_the_handlers_that_were_there(void **state)
{
    char text[16];
    (void)state;

    text_of_child(add_around_a_handler, text);
    assert_string_equal(text, "xearly");
}

/* A forked child runs no callback of its parent. */
static void
test_at_end_does_not_run_in_a_child(void **state)
{
    (void)state;
    calls = 0;
    vnxi_at_end_add(first);
    vnxi_at_end_add(tell);
    assert_int_equal(count_in_child(add_none), 0);
    assert_int_equal(count_in_child(just_exit), 1);
    report_fd = open("/dev/null", O_WRONLY);
    vnxi_at_end_run();
    assert_int_equal(calls, 1);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_at_end_calls_each_once),
        cmocka_unit_test(test_at_end_runs_at_exit),
        cmocka_unit_test(test_at_end_runs_before_the_handlers_that_were_there),
        cmocka_unit_test(test_at_end_does_not_run_in_a_child),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
