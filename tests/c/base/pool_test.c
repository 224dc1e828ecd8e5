#include "vnx_test.h"

#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/pool.h"

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define UNDER_TSAN 1
#endif
#endif
#ifdef __SANITIZE_THREAD__
#define UNDER_TSAN 1
#endif

typedef struct job {
    vnxi_task_t task; /* first: jobs are found by it */
    atomic_size_t order, runs, now, most, dones;
    atomic_bool out_of_order;
    size_t resubmissions;
    size_t quit; /* the last chunk wanted, plus 1 */
    sem_t *gate; /* NULL, or each chunk takes one */
    sem_t entered, ended;
    atomic_uchar *seen; /* times that each chunk ran */
} job_t;

static bool
job_run(vnxi_task_t *task, size_t chunk)
{
    job_t *job = (job_t *)task;
    size_t now = atomic_fetch_add(&job->now, 1) + 1;
    size_t most = atomic_load(&job->most);
    while (now > most &&
           !atomic_compare_exchange_weak(&job->most, &most, now)) {
    }
    if (task->max_parallel == 1 && atomic_fetch_add(&job->order, 1) != chunk) {
        atomic_store(&job->out_of_order, true);
    }
    atomic_fetch_add(&job->seen[chunk], 1);
    sem_post(&job->entered);
    if (job->gate != NULL) {
        while (sem_wait(job->gate) != 0) {
        }
    }
    atomic_fetch_add(&job->runs, 1);
    atomic_fetch_sub(&job->now, 1);
    return job->quit == 0 || chunk + 1 < job->quit;
}

static void
job_done(vnxi_task_t *task)
{
    job_t *job = (job_t *)task;
    atomic_fetch_add(&job->dones, 1);
    if (job->resubmissions > 0) {
        job->resubmissions--;
        atomic_store(&job->order, 0);
        if (vnxi_pool_submit(task, NULL) == VNX_OK) {
            return;
        }
    }
    sem_post(&job->ended);
}

static job_t *
job_create(size_t chunks, unsigned max_parallel, sem_t *gate)
{
    job_t *job = calloc(1, sizeof *job);
    assert_non_null(job);
    job->task = (vnxi_task_t){.run = job_run,
                              .done = job_done,
                              .chunks = chunks,
                              .max_parallel = max_parallel};
    job->gate = gate;
    job->seen = calloc(chunks, 1);
    assert_non_null(job->seen);
    sem_init(&job->entered, 0, 0);
    sem_init(&job->ended, 0, 0);
    return job;
}

static void
job_free(job_t *job)
{
    sem_destroy(&job->entered);
    sem_destroy(&job->ended);
    free(job->seen);
    free(job);
}

static void
job_check(job_t *job, size_t times)
{
    assert_int_equal(atomic_load(&job->runs), job->task.chunks * times);
    assert_int_equal(atomic_load(&job->dones), times);
    assert_false(atomic_load(&job->out_of_order));
    assert_true(atomic_load(&job->most) <= job->task.max_parallel);
    for (size_t i = 0; i < job->task.chunks; i++) {
        assert_int_equal(atomic_load(&job->seen[i]), times);
    }
}

static void
test_pool_runs_every_chunk_once_then_done(void **state)
{
    (void)state;
    for (unsigned parallel = 1; parallel <= 5; parallel++) {
        job_t *job = job_create(100 * parallel, parallel, NULL);
        assert_int_equal(vnxi_pool_submit(&job->task, NULL), VNX_OK);
        sem_wait(&job->ended);
        job_check(job, 1);
        job_free(job);
    }
}

static void
test_pool_hands_out_in_order(void **state)
{
    (void)state;
    job_t *job = job_create(2000, 1, NULL);
    assert_int_equal(vnxi_pool_submit(&job->task, NULL), VNX_OK);
    sem_wait(&job->ended);
    assert_int_equal(atomic_load(&job->order), 2000);
    job_check(job, 1);
    job_free(job);
}

/* Three chunks of a task run in parallel; a fourth waits for them, while other
 * tasks continue. */
static void
test_pool_works_in_parallel_up_to_the_bound(void **state)
{
    (void)state;
    sem_t gate;
    sem_init(&gate, 0, 0);
    job_t *job = job_create(10, 3, &gate);
    assert_int_equal(vnxi_pool_submit(&job->task, NULL), VNX_OK);
    for (int i = 0; i < 3; i++) {
        sem_wait(&job->entered); /* hangs unless three run at once */
    }
    job_t *other = job_create(50, 5, NULL);
    assert_int_equal(vnxi_pool_submit(&other->task, NULL), VNX_OK);
    sem_wait(&other->ended);
    job_check(other, 1);
    job_free(other);

    assert_int_equal(atomic_load(&job->now), 3);
    for (int i = 0; i < 10; i++) {
        sem_post(&gate);
    }
    sem_wait(&job->ended);
    assert_int_equal(atomic_load(&job->most), 3);
    job_check(job, 1);
    job_free(job);
    sem_destroy(&gate);
}

/* All threads are held while a long task with blocking chunks and a short one
 * are queued.  If tasks alternate, the short one is done when at most five
 * threads are blocked; otherwise all threads would be. */
static void
test_pool_short_task_is_not_delayed_by_a_long_one(void **state)
{
    (void)state;
    enum { THREADS = 16, LONG = 1000, SHORT = 5 };
    sem_t hold_gate, long_gate;
    sem_init(&hold_gate, 0, 0);
    sem_init(&long_gate, 0, 0);
    job_t *hold = job_create(THREADS, THREADS, &hold_gate);
    job_t *long_one = job_create(LONG, THREADS, &long_gate);
    job_t *short_one = job_create(SHORT, THREADS, NULL);

    assert_int_equal(vnxi_pool_submit(&hold->task, NULL), VNX_OK);
    for (int i = 0; i < THREADS; i++) {
        sem_wait(&hold->entered);
    }
    assert_int_equal(vnxi_pool_submit(&long_one->task, NULL), VNX_OK);
    assert_int_equal(vnxi_pool_submit(&short_one->task, NULL), VNX_OK);
    for (int i = 0; i < THREADS; i++) {
        sem_post(&hold_gate);
    }
    sem_wait(&short_one->ended); /* hangs if tasks do not alternate */
    assert_int_equal(atomic_load(&long_one->runs), 0);

    for (int i = 0; i < LONG; i++) {
        sem_post(&long_gate);
    }
    sem_wait(&long_one->ended);
    sem_wait(&hold->ended);
    job_check(hold, 1);
    job_check(long_one, 1);
    job_check(short_one, 1);
    job_free(hold);
    job_free(long_one);
    job_free(short_one);
    sem_destroy(&hold_gate);
    sem_destroy(&long_gate);
}

/* An abandoned task does not wait for one turn per chunk while a blocking task
 * alternates with it. */
static void
test_pool_drops_the_rest_of_an_abandoned_task(void **state)
{
    (void)state;
    enum { CHUNKS = 1000, QUIT = 10 };
    for (unsigned parallel = 1; parallel <= 4; parallel++) {
        sem_t gate;
        sem_init(&gate, 0, 0);
        job_t *other = job_create(CHUNKS, 1, &gate);
        job_t *job = job_create(CHUNKS, parallel, NULL);
        job->quit = QUIT;
        job->resubmissions = 1;
        for (int i = 0; i < 2 * QUIT + 8; i++) {
            sem_post(&gate);
        }
        assert_int_equal(vnxi_pool_submit(&other->task, NULL), VNX_OK);
        assert_int_equal(vnxi_pool_submit(&job->task, NULL), VNX_OK);
        sem_wait(&job->ended);
        assert_int_equal(atomic_load(&job->dones), 2);
        assert_in_range(atomic_load(&job->runs), 2 * QUIT,
                        2 * (QUIT + parallel - 1));

        for (int i = 0; i < CHUNKS; i++) {
            sem_post(&gate);
        }
        sem_wait(&other->ended);
        job_check(other, 1);
        job_free(job);
        job_free(other);
        sem_destroy(&gate);
    }
}

static atomic_int settled;

static void *
settle(void *argument)
{
    vnxi_pool_settle();
    atomic_store(&settled, 1);
    return argument;
}

/* Two chunks run; a third begins after the call.  Settle returns when the two
 * have ended, regardless of the third. */
static void
test_pool_settle_waits_for_running_chunks(void **state)
{
    (void)state;
    pthread_t thread;
    sem_t gate, later_gate;
    sem_init(&gate, 0, 0);
    sem_init(&later_gate, 0, 0);
    job_t *job = job_create(2, 2, &gate);
    job_t *later = job_create(1, 1, &later_gate);

    vnxi_pool_settle(); /* nothing runs */
    atomic_store(&settled, 0);
    assert_int_equal(vnxi_pool_submit(&job->task, NULL), VNX_OK);
    sem_wait(&job->entered);
    sem_wait(&job->entered);
    assert_int_equal(pthread_create(&thread, NULL, settle, NULL), 0);
    sem_post(&gate);
    while (atomic_load(&job->runs) == 0) {
        usleep(100);
    }
    assert_int_equal(atomic_load(&settled), 0);
    assert_int_equal(vnxi_pool_submit(&later->task, NULL), VNX_OK);
    sem_wait(&later->entered);
    sem_post(&gate);
    sem_wait(&job->ended);
    /* A late call may wait for the third one, too. */
    sem_post(&later_gate);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_int_equal(atomic_load(&settled), 1);
    sem_wait(&later->ended);
    job_check(job, 1);
    job_free(job);
    job_free(later);
    sem_destroy(&gate);
    sem_destroy(&later_gate);
}

static void
test_pool_task_is_submitted_again_from_done(void **state)
{
    (void)state;
    job_t *job = job_create(7, 2, NULL);
    job->resubmissions = 99;
    assert_int_equal(vnxi_pool_submit(&job->task, NULL), VNX_OK);
    sem_wait(&job->ended);
    job_check(job, 100);
    job_free(job);
}

static atomic_size_t freed;

static bool
free_run(vnxi_task_t *task, size_t chunk)
{
    (void)task, (void)chunk;
    return true;
}

static void
free_done(vnxi_task_t *task)
{
    free(task);
    atomic_fetch_add(&freed, 1);
}

static void *
submit_many(void *argument)
{
    for (unsigned i = 0; i < 500; i++) {
        vnxi_task_t *task = calloc(1, sizeof *task);
        *task = (vnxi_task_t){.run = free_run,
                              .done = free_done,
                              .chunks = 1 + i % 20,
                              .max_parallel = 1 + i % 4};
        if (vnxi_pool_submit(task, NULL) != VNX_OK) {
            return argument;
        }
    }
    job_t *job = job_create(300, 3, NULL);
    if (vnxi_pool_submit(&job->task, NULL) != VNX_OK) {
        return argument;
    }
    sem_wait(&job->ended);
    bool whole = atomic_load(&job->runs) == 300;
    job_free(job);
    return whole ? NULL : argument;
}

static void
test_pool_accepts_tasks_from_many_threads(void **state)
{
    (void)state;
    pthread_t threads[6];
    for (int i = 0; i < 6; i++) {
        assert_int_equal(
            pthread_create(&threads[i], NULL, submit_many, &freed), 0);
    }
    for (int i = 0; i < 6; i++) {
        void *failed = &freed;
        pthread_join(threads[i], &failed);
        assert_null(failed);
    }
    /* Each task was freed once in done(); the last may still run, so the test
     * waits for them. */
    while (atomic_load(&freed) < 6 * 500) {
        sched_yield();
    }
    assert_int_equal(atomic_load(&freed), 6 * 500);
}

static atomic_int thread_ok;

static bool
look_run(vnxi_task_t *task, size_t chunk)
{
    (void)task, (void)chunk;
    char name[32];
    sigset_t blocked;
    pthread_getname_np(pthread_self(), name, sizeof name);
    pthread_sigmask(SIG_SETMASK, NULL, &blocked);
    atomic_store(&thread_ok, sigismember(&blocked, SIGTERM) == 1 &&
                                 sigismember(&blocked, SIGINT) == 1 &&
                                 sigismember(&blocked, SIGPROF) == 1 &&
                                 strcmp(name, "vnx-copy") == 0);
    return true;
}

static void
test_pool_threads_have_a_name_and_block_signals(void **state)
{
    (void)state;
    sigset_t before, after;
    job_t *job = job_create(4, 1, NULL);
    job->task.run = look_run;
    pthread_sigmask(SIG_SETMASK, NULL, &before);
    assert_int_equal(vnxi_pool_submit(&job->task, NULL), VNX_OK);
    pthread_sigmask(SIG_SETMASK, NULL, &after);
    assert_int_equal(sigismember(&before, SIGTERM),
                     sigismember(&after, SIGTERM));
    sem_wait(&job->ended);
    assert_int_equal(atomic_load(&thread_ok), 1);
    job_free(job);
}

/* A forked child runs the job on its own pool; returns how often it ran. */
static void
expect_child_works(job_t *job, size_t runs)
{
    int status;
    pid_t pid = fork();

    assert_true(pid >= 0);
    if (pid == 0) {
        alarm(60); /* a child that hangs ends by a signal */
        if (vnxi_pool_submit(&job->task, NULL) != VNX_OK) {
            _exit(1);
        }
        sem_wait(&job->ended);
        _exit(atomic_load(&job->runs) == runs ? 0 : 2);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

static void
skip_under_tsan(void)
{
#ifdef UNDER_TSAN
    print_message("skipped: the thread sanitizer allows no thread in the "
                  "forked child of a process that has threads\n");
    skip();
#endif
}

static void
test_pool_restarts_in_a_forked_child(void **state)
{
    (void)state;
    skip_under_tsan();
    job_t *job = job_create(10, 2, NULL);
    assert_int_equal(vnxi_pool_submit(&job->task, NULL), VNX_OK);
    sem_wait(&job->ended);
    expect_child_works(job, 20);
    job_free(job);
}

/* The parent forks while its threads are in the middle of the queue. */
static void
test_pool_survives_a_fork_at_any_time(void **state)
{
    (void)state;
    skip_under_tsan();
    job_t *busy = job_create(20, 4, NULL);
    busy->resubmissions = 2000;
    assert_int_equal(vnxi_pool_submit(&busy->task, NULL), VNX_OK);
    for (int i = 0; i < 20; i++) {
        job_t *job = job_create(10, 2, NULL);
        expect_child_works(job, 10);
        job_free(job);
    }
    sem_wait(&busy->ended);
    assert_int_equal(atomic_load(&busy->dones), 2001);
    job_free(busy);
}

/* More than the pool's maximum: 16 run at once, the rest afterwards. */
static void
test_pool_grows_to_sixteen_threads_at_most(void **state)
{
    (void)state;
    enum { ASKED = 40, THREADS = 16 };
    sem_t gate;
    sem_init(&gate, 0, 0);
    job_t *job = job_create(ASKED, ASKED, &gate);
    assert_int_equal(vnxi_pool_submit(&job->task, NULL), VNX_OK);
    for (int i = 0; i < THREADS; i++) {
        sem_wait(&job->entered);
    }
    for (int i = 0; i < ASKED; i++) {
        sem_post(&gate);
    }
    sem_wait(&job->ended);
    assert_int_equal(atomic_load(&job->most), THREADS);
    job_check(job, 1);
    job_free(job);
    sem_destroy(&gate);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pool_runs_every_chunk_once_then_done),
        cmocka_unit_test(test_pool_hands_out_in_order),
        cmocka_unit_test(test_pool_works_in_parallel_up_to_the_bound),
        cmocka_unit_test(test_pool_short_task_is_not_delayed_by_a_long_one),
        cmocka_unit_test(test_pool_drops_the_rest_of_an_abandoned_task),
        cmocka_unit_test(test_pool_settle_waits_for_running_chunks),
        cmocka_unit_test(test_pool_task_is_submitted_again_from_done),
        cmocka_unit_test(test_pool_accepts_tasks_from_many_threads),
        cmocka_unit_test(test_pool_threads_have_a_name_and_block_signals),
        cmocka_unit_test(test_pool_restarts_in_a_forked_child),
        cmocka_unit_test(test_pool_survives_a_fork_at_any_time),
        cmocka_unit_test(test_pool_grows_to_sixteen_threads_at_most),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
