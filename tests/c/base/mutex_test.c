/*
 * The order of locks.  Built with ranks, whatever the rest is built with:
 * mutex.c is a source of this program, which has no other part of the library.
 */
#include "vnx_test.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/mutex.h"

#define FIRST VNXI_RANK_AGENT_LOAD
#define SECOND VNXI_RANK_DIRECTORY
#define THIRD VNXI_RANK_FORK

static vnxi_mutex_t first, second, third, twin;
static vnxi_rwlock_t gate;
static vnxi_cond_t changed;

static int
set_up(void **state)
{
    (void)state;
    vnxi_mutex_init(&first, FIRST);
    vnxi_mutex_init(&second, SECOND);
    vnxi_mutex_init(&twin, SECOND);
    vnxi_mutex_init(&third, THIRD);
    vnxi_rwlock_init(&gate, SECOND);
    vnxi_cond_init(&changed);
    return 0;
}

static int
tear_down(void **state)
{
    (void)state;
    vnxi_cond_destroy(&changed);
    vnxi_rwlock_destroy(&gate);
    vnxi_mutex_destroy(&third);
    vnxi_mutex_destroy(&twin);
    vnxi_mutex_destroy(&second);
    vnxi_mutex_destroy(&first);
    return 0;
}

/* -- What must end a process ---------------------------------------------- */

/* Run `work` in a child, whose stderr comes back.  Returns how it ended. */
static int
run_in_child(void (*work)(void), char *text, size_t size)
{
    int pipes[2], status;
    assert_int_equal(pipe(pipes), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        signal(SIGABRT, SIG_DFL); /* cmocka's handler goes on with a test */
        dup2(pipes[1], STDERR_FILENO);
        work();
        _exit(0);
    }
    close(pipes[1]);
    size_t used = 0;
    ssize_t got;
    while (used + 1 < size &&
           (got = read(pipes[0], text + used, size - used - 1)) > 0) {
        used += (size_t)got;
    }
    text[used] = '\0';
    close(pipes[0]);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return status;
}

static void
assert_refused(void (*work)(void), const char *one, const char *other)
{
    char text[4096];
    int status = run_in_child(work, text, sizeof text);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGABRT);
    assert_non_null(strstr(text, one));
    assert_non_null(strstr(text, other));
}

static void
assert_allowed(void (*work)(void))
{
    char text[4096];
    int status = run_in_child(work, text, sizeof text);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void
take_backwards(void)
{
    vnxi_mutex_lock(&second);
    vnxi_mutex_lock(&first);
}

/* The lowest rank is not the latest taken. */
static void
take_below_an_earlier_one(void)
{
    vnxi_mutex_lock(&third);
    (void)vnxi_mutex_trylock(&first);
    vnxi_mutex_lock(&second);
}

static void
take_two_of_a_rank(void)
{
    vnxi_mutex_lock(&second);
    vnxi_mutex_lock(&twin);
}

static void
take_twice(void)
{
    vnxi_mutex_lock(&first);
    vnxi_mutex_lock(&first);
}

static void
take_after_a_try(void)
{
    if (vnxi_mutex_trylock(&second) == 0) {
        vnxi_mutex_lock(&first);
    }
}

static void
take_after_a_wait(void)
{
    struct timespec past = {0};

    vnxi_mutex_lock(&second);
    (void)vnxi_cond_timedwait(&changed, &second, &past);
    vnxi_mutex_lock(&first);
}

/* The wait would take `first` again under `second`. */
static void
wait_under_a_later_lock(void)
{
    vnxi_mutex_lock(&first);
    vnxi_mutex_lock(&second);
    vnxi_cond_wait(&changed, &first);
}

static void
give_back_what_is_not_held(void)
{
    vnxi_mutex_lock(&first);
    vnxi_mutex_unlock(&second);
}

static void
read_backwards(void)
{
    vnxi_mutex_lock(&third);
    vnxi_rwlock_read(&gate);
}

static void
take_under_a_reader(void)
{
    vnxi_rwlock_read(&gate);
    vnxi_mutex_lock(&first);
}

static void
write_under_a_reader(void)
{
    vnxi_rwlock_read(&gate);
    vnxi_rwlock_write(&gate);
}

static void
read_twice(void)
{
    vnxi_rwlock_read(&gate);
    vnxi_rwlock_read(&gate);
}

static void
read_under_a_writer(void)
{
    vnxi_rwlock_write(&gate);
    vnxi_rwlock_read(&gate);
}

static void
test_mutex_wrong_order_names_both(void **state)
{
    (void)state;
    assert_refused(take_backwards, "agent.load_lock", "directory");
    assert_refused(take_below_an_earlier_one, "directory", "fork");
    assert_refused(take_after_a_try, "agent.load_lock", "directory");
    assert_refused(take_after_a_wait, "agent.load_lock", "directory");
    assert_refused(wait_under_a_later_lock, "agent.load_lock", "directory");
    assert_refused(read_backwards, "directory", "fork");
    assert_refused(take_under_a_reader, "agent.load_lock", "directory");
}

static void
test_mutex_two_of_a_rank_are_refused(void **state)
{
    (void)state;
    assert_refused(take_two_of_a_rank, "directory", "directory");
    assert_refused(take_twice, "agent.load_lock", "twice");
    assert_refused(write_under_a_reader, "directory", "twice");
    assert_refused(read_twice, "directory", "twice");
    assert_refused(read_under_a_writer, "directory", "twice");
}

static void
test_mutex_given_back_by_another_is_refused(void **state)
{
    (void)state;
    assert_refused(give_back_what_is_not_held, "directory", "not hold");
}

/* -- What must not -------------------------------------------------------- */

static void
take_in_order(void)
{
    for (int i = 0; i < 3; i++) {
        vnxi_mutex_lock(&first);
        vnxi_mutex_lock(&second);
        vnxi_mutex_lock(&third);
        /* Given back in any order, and taken again. */
        vnxi_mutex_unlock(&second);
        vnxi_mutex_unlock(&third);
        vnxi_mutex_lock(&twin);
        vnxi_mutex_unlock(&first);
        vnxi_mutex_unlock(&twin);
    }
    vnxi_mutex_lock(&first);
    vnxi_mutex_unlock(&first);
}

static void
try_backwards(void)
{
    vnxi_mutex_lock(&second);
    if (vnxi_mutex_trylock(&first) != 0 ||
        vnxi_mutex_trylock(&first) != EBUSY) {
        _exit(1);
    }
    vnxi_mutex_lock(&third);
    vnxi_mutex_unlock(&second);
    vnxi_mutex_unlock(&third);
    vnxi_mutex_lock(&second); /* above `first`, which is held */
}

static void
read_and_write(void)
{
    vnxi_mutex_lock(&first);
    vnxi_rwlock_read(&gate);
    vnxi_rwlock_unlock(&gate);
    vnxi_rwlock_write(&gate);
    vnxi_rwlock_unlock(&gate);
    vnxi_mutex_unlock(&first);
    take_in_order();
}

static void
test_mutex_right_order_passes(void **state)
{
    (void)state;
    assert_allowed(take_in_order);
    assert_allowed(try_backwards);
    assert_allowed(read_and_write);
}

static bool ready; /* second */

static void *
announce(void *unused)
{
    vnxi_mutex_lock(&second);
    ready = true;
    vnxi_cond_broadcast(&changed);
    vnxi_mutex_unlock(&second);
    return unused;
}

/* A thread that waits does not hold the lock: another takes it.  Afterwards
 * it does, and may take later ones. */
static void
wait_for_another(void)
{
    pthread_t thread;

    alarm(60);
    vnxi_mutex_lock(&first);
    vnxi_mutex_lock(&second);
    if (pthread_create(&thread, NULL, announce, NULL) != 0) {
        _exit(1);
    }
    while (!ready) {
        vnxi_cond_wait(&changed, &second);
    }
    vnxi_mutex_lock(&third);
    vnxi_mutex_unlock(&third);
    vnxi_mutex_unlock(&second);
    vnxi_mutex_unlock(&first);
    pthread_join(thread, NULL);
    take_in_order(); /* nothing is left on the record */
}

static void
wait_in_vain(void)
{
    struct timespec due;

    clock_gettime(CLOCK_MONOTONIC, &due);
    vnxi_mutex_lock(&second);
    while (vnxi_cond_timedwait(&changed, &second, &due) != ETIMEDOUT) {
    }
    vnxi_mutex_lock(&third);
    vnxi_mutex_unlock(&third);
    vnxi_mutex_unlock(&second);
    take_in_order();
}

static void
test_mutex_waits_keep_the_record(void **state)
{
    (void)state;
    assert_allowed(wait_for_another);
    assert_allowed(wait_in_vain);
}

/* A thread may take a lock whatever another one holds. */
static void *
take_first(void *unused)
{
    vnxi_mutex_lock(&first);
    vnxi_mutex_unlock(&first);
    return unused;
}

static void
test_mutex_threads_have_records_of_their_own(void **state)
{
    pthread_t thread;
    (void)state;

    vnxi_mutex_lock(&second);
    assert_int_equal(pthread_create(&thread, NULL, take_first, NULL), 0);
    pthread_join(thread, NULL);
    vnxi_mutex_unlock(&second);
}

/* A forked child makes a lock new that another thread held in its parent. */
static vnxi_mutex_t of_file = VNXI_MUTEX_INIT(VNXI_RANK_RECYCLE);

static void
make_new_and_take(void)
{
    vnxi_mutex_init(&of_file, VNXI_RANK_RECYCLE);
    vnxi_mutex_lock(&of_file);
    vnxi_mutex_unlock(&of_file);
}

static void
lock_new_then_fork_lock(void)
{
    vnxi_mutex_lock(&of_file);
    vnxi_mutex_lock(&third);
    vnxi_mutex_unlock(&third);
    vnxi_mutex_unlock(&of_file);
}

static void *
fork_meanwhile(void *unused)
{
    assert_allowed(make_new_and_take);
    return unused;
}

static void
test_mutex_is_reinitialized_in_a_child(void **state)
{
    pthread_t thread;
    (void)state;

    assert_allowed(lock_new_then_fork_lock);
    vnxi_mutex_lock(&of_file);
    assert_int_equal(pthread_create(&thread, NULL, fork_meanwhile, NULL), 0);
    pthread_join(thread, NULL);
    vnxi_mutex_unlock(&of_file);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_mutex_wrong_order_names_both),
        TEST(test_mutex_two_of_a_rank_are_refused),
        TEST(test_mutex_given_back_by_another_is_refused),
        TEST(test_mutex_right_order_passes),
        TEST(test_mutex_waits_keep_the_record),
        TEST(test_mutex_threads_have_records_of_their_own),
        TEST(test_mutex_is_reinitialized_in_a_child),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
