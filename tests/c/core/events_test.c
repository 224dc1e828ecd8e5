#include "child_check.h"
#include "vnx_test.h"

#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "core/events.h"

static atomic_int state_word;

static bool
is_set(void *context)
{
    return atomic_load((atomic_int *)context) > 0;
}

static bool
readable(int fd)
{
    struct pollfd entry = {.fd = fd, .events = POLLIN};
    return poll(&entry, 1, 0) == 1;
}

/* In place of libc's.  A signaller that is about to write may be preempted,
 * while its client clears these events. */
static vnxi_events_t *cleared_before_write;

int
eventfd_write(int fd, eventfd_t value)
{
    vnxi_events_t *events = cleared_before_write;

    if (events != NULL) {
        cleared_before_write = NULL;
        vnxi_events_clear(events);
    }
    return write(fd, &value, sizeof value) == sizeof value ? 0 : -1;
}

static void *
signal_once(void *context)
{
    atomic_store(&state_word, 1);
    vnxi_events_signal(context);
    return NULL;
}

static void
test_events_wait_sees_every_signal(void **state)
{
    (void)state;
    vnxi_events_t events;
    pthread_t thread;

    vnxi_events_init(&events);
    for (int i = 0; i < 2000; i++) {
        atomic_store(&state_word, 0);
        pthread_create(&thread, NULL, signal_once, &events);
        assert_true(vnxi_events_wait(&events, is_set, &state_word,
                                     vnxi_clock_deadline(30000000000u)));
        pthread_join(thread, NULL);
    }
    vnxi_events_fini(&events);
}

static void
test_events_wait_ends_at_its_deadline(void **state)
{
    (void)state;
    vnxi_events_t events;

    vnxi_events_init(&events);
    atomic_store(&state_word, 0);
    uint64_t deadline = vnxi_clock_deadline(2000000);
    assert_false(vnxi_events_wait(&events, is_set, &state_word, deadline));
    assert_true(vnxi_clock_ns() >= deadline);
    vnxi_events_fini(&events);
}

static void
test_events_fd_is_readable_until_cleared(void **state)
{
    (void)state;
    vnxi_events_t events;
    int fd, same;

    vnxi_events_init(&events);
    vnxi_events_signal(&events); /* before the descriptor was requested */
    assert_int_equal(vnxi_events_fd(&events, &fd, NULL), VNX_OK);
    assert_int_equal(vnxi_events_fd(&events, &same, NULL), VNX_OK);
    assert_int_equal(fd, same);
    assert_true(readable(fd));
    vnxi_events_clear(&events);
    assert_false(readable(fd));
    vnxi_events_signal(&events);
    vnxi_events_signal(&events);
    assert_true(readable(fd));
    vnxi_events_clear(&events);
    assert_false(readable(fd));
    vnxi_events_fini(&events);
}

static void
test_events_cleared_before_the_signaller_has_written(void **state)
{
    (void)state;
    vnxi_events_t events;
    int fd;

    vnxi_events_init(&events);
    assert_int_equal(vnxi_events_fd(&events, &fd, NULL), VNX_OK);
    vnxi_events_clear(&events);
    cleared_before_write = &events;
    vnxi_events_signal(&events);
    assert_null(cleared_before_write);
    vnxi_events_clear(&events);
    assert_false(readable(fd));
    vnxi_events_signal(&events);
    assert_true(readable(fd));
    vnxi_events_clear(&events);
    assert_false(readable(fd));
    vnxi_events_fini(&events);
}

/* The program closes all descriptors, which it does here in a child, while an
 * event is pending. */
static void
test_events_new_descriptor_reports_what_came_before(void **state)
{
    vnxi_events_t events;
    int fd, status;
    (void)state;

    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        vnxi_events_init(&events);
        CHECK(vnxi_events_fd(&events, &fd, NULL) == VNX_OK);
        vnxi_events_signal(&events);
        CHECK(syscall(SYS_close_range, 3, ~0u, 0) == 0);
        CHECK(vnxi_events_fd(&events, &fd, NULL) == VNX_OK);
        CHECK(readable(fd));
        vnxi_events_clear(&events);
        CHECK(!readable(fd));
        vnxi_events_signal(&events);
        CHECK(readable(fd));
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

static void
test_events_subscribers_have_separate_descriptors(void **state)
{
    (void)state;
    vnxi_events_t events;
    int shared, one, two, three;
    uint64_t count;

    vnxi_events_init(&events);
    assert_int_equal(vnxi_events_fd(&events, &shared, NULL), VNX_OK);
    assert_int_equal(vnxi_events_subscribe(&events, &one, NULL), VNX_OK);
    assert_int_equal(vnxi_events_subscribe(&events, &two, NULL), VNX_OK);
    assert_int_equal(vnxi_events_subscribe(&events, &three, NULL), VNX_OK);
    assert_false(readable(one) || readable(two) || readable(three));

    vnxi_events_unsubscribe(&events, two);
    vnxi_events_unsubscribe(&events, two); /* not ours any more: ignored */
    vnxi_events_signal(&events);
    vnxi_events_clear(&events);
    assert_false(readable(shared));
    assert_true(readable(one) && readable(three));
    assert_int_equal(read(one, &count, sizeof count), sizeof count);
    assert_false(readable(one));
    assert_true(readable(three));

    vnxi_events_signal(&events);
    assert_true(readable(one));
    vnxi_events_fini(&events); /* closes what is left */
}

typedef struct race {
    vnxi_events_t events;
    atomic_uint produced;
    atomic_bool stop;
} race_t;

static void *
produce(void *argument)
{
    race_t *race = argument;
    for (int i = 0; i < 20000; i++) {
        atomic_fetch_add(&race->produced, 1);
        vnxi_events_signal(&race->events);
    }
    atomic_store(&race->stop, true);
    return NULL;
}

/* Poll, clear, look: whatever was produced before is seen, whatever comes
 * later makes the descriptor readable again. */
static void
test_events_fd_loses_no_event_to_a_race(void **state)
{
    (void)state;
    race_t race;
    pthread_t thread;
    int fd;
    unsigned seen = 0;

    vnxi_events_init(&race.events);
    atomic_init(&race.produced, 0);
    atomic_init(&race.stop, false);
    assert_int_equal(vnxi_events_fd(&race.events, &fd, NULL), VNX_OK);
    vnxi_events_clear(&race.events);
    pthread_create(&thread, NULL, produce, &race);
    while (seen < 20000) {
        struct pollfd entry = {.fd = fd, .events = POLLIN};
        assert_int_equal(poll(&entry, 1, 30000), 1);
        vnxi_events_clear(&race.events);
        seen = atomic_load(&race.produced);
    }
    pthread_join(thread, NULL);
    vnxi_events_fini(&race.events);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_events_wait_sees_every_signal),
        cmocka_unit_test(test_events_wait_ends_at_its_deadline),
        cmocka_unit_test(test_events_fd_is_readable_until_cleared),
        cmocka_unit_test(test_events_cleared_before_the_signaller_has_written),
        cmocka_unit_test(test_events_new_descriptor_reports_what_came_before),
        cmocka_unit_test(test_events_subscribers_have_separate_descriptors),
        cmocka_unit_test(test_events_fd_loses_no_event_to_a_race),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
