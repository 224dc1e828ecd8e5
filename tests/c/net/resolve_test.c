/* A scripted name service replaces the real one: names do not depend on the
 * machine, and one name gets no answer until the test asks for it.  Looking
 * names up, and connections that begin with it. */
#include "vnx_test.h"

#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "child_check.h"
#include "net/connect.h"
#include "net/resolve.h"
#include "side_channel/channel.h"
#include "side_channel_peer.h"

static atomic_int asked;   /* look-ups that came to the name service */
static atomic_int ended;   /* those that it answered */
static atomic_bool silent; /* "silent.test" gets no answer */

int __real_getaddrinfo(const char *host, const char *service,
                       const struct addrinfo *hints, struct addrinfo **out);
/* Visible, because libraries refer to the function. */
__attribute__((visibility("default"))) int
__wrap_getaddrinfo(const char *host, const char *service,
                   const struct addrinfo *hints, struct addrinfo **out);

/* "many.test": twenty addresses, the way the real one chains them. */
static struct addrinfo *
many(const char *service, const struct addrinfo *hints)
{
    struct addrinfo *first = NULL;

    for (int i = 0; i < 20; i++) {
        struct addrinfo *one = NULL;
        assert_int_equal(__real_getaddrinfo("127.0.0.1", service, hints, &one),
                         0);
        one->ai_next = first;
        first = one;
    }
    return first;
}

int
__wrap_getaddrinfo(const char *host, const char *service,
                   const struct addrinfo *hints, struct addrinfo **out)
{
    int ret = EAI_NONAME;

    if (hints->ai_flags & AI_NUMERICHOST) {
        return __real_getaddrinfo(host, service, hints, out);
    }
    atomic_fetch_add(&asked, 1);
    while (strcmp(host, "silent.test") == 0 && atomic_load(&silent)) {
        usleep(1000);
    }
    if (strcmp(host, "two.test") == 0) {
        ret = __real_getaddrinfo("127.0.0.2", service, hints, out);
    } else if (strcmp(host, "many.test") == 0) {
        *out = many(service, hints);
        ret = 0;
    } else if (strcmp(host, "again.test") == 0) {
        ret = EAI_AGAIN;
    }
    atomic_fetch_add(&ended, 1);
    return ret;
}

static uint64_t
in_ms(uint64_t ms)
{
    return vnxi_clock_ns() + ms * 1000000;
}

static void
expect_one(const char *host, const char *address)
{
    vnxi_addresses_t found;
    const char *reason = "";
    char text[VNXI_ADDRESS_TEXT];

    assert_int_equal(vnxi_resolve(host, 4711, in_ms(20000), &found, &reason),
                     VNX_OK);
    assert_int_equal(found.count, 1);
    vnxi_address_text(&found.list[0], text);
    assert_string_equal(text, address);
    assert_int_equal(vnxi_address_port(&found.list[0]), 4711);
    vnxi_address_set_port(&found.list[0], 815);
    assert_int_equal(vnxi_address_port(&found.list[0]), 815);
}

static void
expect_failure(const char *host, uint64_t ms, vnx_status_t status)
{
    vnxi_addresses_t found;
    const char *reason = "";

    assert_int_equal(vnxi_resolve(host, 1, in_ms(ms), &found, &reason),
                     status);
    assert_true(strlen(reason) > 0);
}

static void
test_resolve_numeric_addresses_need_no_lookup(void **state)
{
    (void)state;
    int before = atomic_load(&asked);
    expect_one("127.0.0.1", "127.0.0.1");
    expect_one("10.1.2.3", "10.1.2.3");
    expect_one("::1", "::1");
    expect_one("fd00::2", "fd00::2");
    assert_int_equal(atomic_load(&asked), before);
}

static void
test_resolve_refuses_impossible_names_without_lookup(void **state)
{
    (void)state;
    int before = atomic_load(&asked);
    expect_failure("two words", 20000, VNX_ERR_NOT_FOUND);
    expect_failure("127.0.0.1 10.1.2.3", 20000, VNX_ERR_NOT_FOUND);
    expect_failure("host\n", 20000, VNX_ERR_NOT_FOUND);
    assert_int_equal(atomic_load(&asked), before);
}

static void
test_resolve_localhost_is_both_loopbacks_without_lookup(void **state)
{
    (void)state;
    vnxi_addresses_t found;
    const char *reason;
    char text[VNXI_ADDRESS_TEXT];
    int before = atomic_load(&asked);

    assert_int_equal(
        vnxi_resolve("LocalHost", 80, in_ms(20000), &found, &reason), VNX_OK);
    assert_int_equal(found.count, 2);
    vnxi_address_text(&found.list[0], text);
    assert_string_equal(text, "127.0.0.1");
    vnxi_address_text(&found.list[1], text);
    assert_string_equal(text, "::1");
    assert_int_equal(vnxi_address_port(&found.list[1]), 80);
    assert_int_equal(atomic_load(&asked), before);
}

static void
test_resolve_looks_up_a_name(void **state)
{
    (void)state;
    expect_one("two.test", "127.0.0.2");
}

static void
test_resolve_returns_at_most_the_addresses_that_fit(void **state)
{
    (void)state;
    vnxi_addresses_t found;
    const char *reason;

    assert_int_equal(
        vnxi_resolve("many.test", 80, in_ms(20000), &found, &reason), VNX_OK);
    assert_int_equal(found.count, VNXI_ADDRESSES_MAX);
}

static void
test_resolve_unknown_name_and_failing_service_differ(void **state)
{
    (void)state;
    expect_failure("unknown.test", 20000, VNX_ERR_NOT_FOUND);
    expect_failure("again.test", 20000, VNX_ERR_BACKEND);
}

static void
test_resolve_obeys_its_deadline(void **state)
{
    (void)state;
    int before = atomic_load(&asked);
    size_t fds = open_fds();

    atomic_store(&silent, true);
    expect_failure("silent.test", 30, VNX_ERR_TIMEOUT);
    WAIT_UNTIL(atomic_load(&asked) == before + 1);
    assert_true(atomic_load(&ended) < atomic_load(&asked));
    atomic_store(&silent, false);
    WAIT_UNTIL(atomic_load(&ended) == atomic_load(&asked));
    WAIT_UNTIL(open_fds() <= fds); /* the thread closes its own afterwards */
}

static void
test_resolve_can_be_awaited_and_cancelled(void **state)
{
    (void)state;
    vnxi_addresses_t found;
    vnxi_lookup_t *lookup = NULL;
    const char *reason;
    size_t fds = open_fds();

    atomic_store(&silent, true);
    assert_int_equal(
        vnxi_lookup_begin("silent.test", 1, &found, &lookup, &reason),
        VNX_IN_PROG);
    assert_int_equal(vnxi_lookup_step(lookup, &found, &reason), VNX_IN_PROG);
    vnxi_lookup_end(lookup); /* does not wait for the thread */
    atomic_store(&silent, false);
    assert_int_equal(
        vnxi_lookup_begin("two.test", 1, &found, &lookup, &reason),
        VNX_IN_PROG);
    struct pollfd entry = {.fd = vnxi_lookup_fd(lookup), .events = POLLIN};
    assert_int_equal(poll(&entry, 1, 20000), 1);
    assert_int_equal(vnxi_lookup_step(lookup, &found, &reason), VNX_OK);
    assert_int_equal(found.count, 1);
    vnxi_lookup_end(lookup);
    vnxi_lookup_end(NULL);
    WAIT_UNTIL(atomic_load(&ended) == atomic_load(&asked));
    WAIT_UNTIL(open_fds() <= fds);
}

static void
test_resolve_interface_returns_its_addresses(void **state)
{
    (void)state;
    vnxi_addresses_t found;

    assert_int_equal(vnxi_resolve_interface("lo", 4711, &found), VNX_OK);
    assert_true(found.count >= 1);
    for (size_t i = 0; i < found.count; i++) {
        assert_true(vnxi_address_is_loopback(&found.list[i]));
        assert_int_equal(vnxi_address_port(&found.list[i]), 4711);
    }
    assert_int_equal(vnxi_resolve_interface("none0", 1, &found),
                     VNX_ERR_NOT_FOUND);
}

static void
test_resolve_detects_loopback(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        bool loopback;
    } cases[] = {
        {"127.0.0.1", true},        {"127.9.9.9", true}, {"::1", true},
        {"::ffff:127.0.0.1", true}, {"10.0.0.1", false}, {"::", false},
        {"fd00::1", false},         {"0.0.0.0", false},
    };
    vnxi_addresses_t found;

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        assert_true(vnxi_address_parse(cases[i].text, &found));
        assert_int_equal(vnxi_address_is_loopback(&found.list[0]),
                         cases[i].loopback);
    }
    assert_false(vnxi_address_parse("two.test", &found));
}

/* A forked child has none of the parent's threads. */
static void
expect_lookup_in_child(void)
{
    vnxi_addresses_t found;
    const char *reason;
    int status;

#if VNX_TEST_IS_WATCHED
    return; /* TSan allows no thread in a child of several threads */
#endif
    pid_t child = fork();
    if (child == 0) {
        CHECK(vnxi_resolve("two.test", 1, in_ms(20000), &found, &reason) ==
              VNX_OK);
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

/* Make the name service silent, and leave as many look-ups to it as may run.
 */
static void
fill_lookups(void)
{
    int before = atomic_load(&asked);

    atomic_store(&silent, true);
    for (int i = 0; i < VNXI_LOOKUPS_MAX; i++) {
        expect_failure("silent.test", 1, VNX_ERR_TIMEOUT);
    }
    WAIT_UNTIL(atomic_load(&asked) == before + VNXI_LOOKUPS_MAX);
}

static void
test_resolve_bounds_abandoned_lookups(void **state)
{
    (void)state;
    size_t fds = open_fds();
    vnxi_addresses_t found;
    const char *reason = "";

    fill_lookups();
    assert_int_equal(vnxi_resolve("two.test", 1, in_ms(30), &found, &reason),
                     VNX_ERR_TIMEOUT);
    assert_non_null(strstr(reason, "too many name look-ups"));
    expect_one("127.0.0.1", "127.0.0.1");
    expect_lookup_in_child();

    atomic_store(&silent, false);
    expect_one("two.test", "127.0.0.2");
    WAIT_UNTIL(open_fds() <= fds);
}

/* -- Connecting ----------------------------------------------------------- */

/* Connect to a port of "two.test" at which nobody listens. */
static vnx_status_t
dial_to_the_end(vnxi_dial_t *dial)
{
    vnx_status_t status;
    struct pollfd entry = {0};
    uint64_t wake;
    int fd;

    while ((status = vnxi_dial_step(dial, vnxi_clock_ns(), &fd)) ==
           VNX_IN_PROG) {
        vnxi_dial_wait(dial, &entry.fd, &entry.events, &wake);
        poll(&entry, 1, wake == UINT64_MAX ? 20000 : 10);
    }
    return status;
}

static void
test_dial_keeps_no_descriptor_of_the_lookup(void **state)
{
    (void)state;
    size_t fds = open_fds();
    vnxi_dial_t dial;

    vnxi_dial_init(&dial, "two.test", 1, in_ms(20000));
    assert_int_equal(dial_to_the_end(&dial), VNX_ERR_BACKEND);
    assert_true(dial.is_connecting);
    WAIT_UNTIL(open_fds() <= fds);
    vnxi_dial_fini(&dial);
}

static void
test_dial_waits_while_too_many_lookups_run(void **state)
{
    (void)state;
    uint64_t now = vnxi_clock_ns(), wake = 0;
    short events;
    int fd = 77;
    vnxi_dial_t dial;

    fill_lookups();
    vnxi_dial_init(&dial, "two.test", 1, in_ms(20000));
    assert_string_equal(vnxi_dial_timed_out(&dial), "timed out");
    assert_int_equal(vnxi_dial_step(&dial, now, &fd), VNX_IN_PROG);
    vnxi_dial_wait(&dial, &fd, &events, &wake);
    assert_int_equal(fd, -1);
    assert_int_equal(wake, now + 10000000);
    assert_string_equal(vnxi_dial_timed_out(&dial),
                        "timed out: too many name look-ups are still running");

    atomic_store(&silent, false);
    assert_int_equal(dial_to_the_end(&dial), VNX_ERR_BACKEND);
    assert_true(dial.is_connecting);
    vnxi_dial_fini(&dial);
    WAIT_UNTIL(atomic_load(&ended) == atomic_load(&asked));
}

/* The name service answers once it was asked as often as it may be. */
static void
test_requests_for_more_names_than_lookups_are_all_made(void **state)
{
    (void)state;
    enum { REQUESTS = VNXI_LOOKUPS_MAX + 36 };
    vnx_side_channel_request_params_t params[REQUESTS];
    vnx_side_channel_t *channel = channel_new(NULL);
    vnxi_requests_t *requests;
    int fd, before = atomic_load(&asked);

    for (size_t i = 0; i < REQUESTS; i++) {
        params[i] =
            (vnx_side_channel_request_params_t){.size = sizeof params[i],
                                                .host = "silent.test",
                                                .port = 1,
                                                .timeout_ms = 60000};
    }
    atomic_store(&silent, true);
    assert_int_equal(
        vnxi_requests_make(channel, params, REQUESTS, &requests, NULL),
        VNX_OK);
    assert_int_equal(vnxi_requests_watch(requests, &fd, NULL), VNX_OK);
    WAIT_UNTIL((vnxi_requests_step(requests),
                atomic_load(&asked) == before + VNXI_LOOKUPS_MAX));
    atomic_store(&silent, false);
    assert_true(vnxi_requests_run(requests, NULL, NULL));
    for (size_t i = 0; i < REQUESTS; i++) {
        vnx_side_channel_answer_t answer;
        vnxi_requests_take(requests, i, &answer);
        assert_int_equal(answer.status, VNX_ERR_NOT_FOUND);
    }
    assert_int_equal(atomic_load(&asked), before + REQUESTS);
    vnxi_requests_free(requests);
    vnx_side_channel_free(channel);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_resolve_numeric_addresses_need_no_lookup),
        cmocka_unit_test(test_resolve_refuses_impossible_names_without_lookup),
        cmocka_unit_test(
            test_resolve_localhost_is_both_loopbacks_without_lookup),
        cmocka_unit_test(test_resolve_looks_up_a_name),
        cmocka_unit_test(test_resolve_returns_at_most_the_addresses_that_fit),
        cmocka_unit_test(test_resolve_unknown_name_and_failing_service_differ),
        cmocka_unit_test(test_resolve_obeys_its_deadline),
        cmocka_unit_test(test_resolve_can_be_awaited_and_cancelled),
        cmocka_unit_test(test_resolve_interface_returns_its_addresses),
        cmocka_unit_test(test_resolve_detects_loopback),
        cmocka_unit_test(test_resolve_bounds_abandoned_lookups),
        cmocka_unit_test(test_dial_keeps_no_descriptor_of_the_lookup),
        cmocka_unit_test(test_dial_waits_while_too_many_lookups_run),
        cmocka_unit_test(
            test_requests_for_more_names_than_lookups_are_all_made),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
