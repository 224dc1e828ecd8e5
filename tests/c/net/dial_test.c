/* From a host name to a connected socket: attempts, their order, waiting, and
 * error messages. */
#include "side_channel_peer.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/clock.h"
#include "net/connect.h"
#include "side_channel/client_conn.h"

#define SECOND UINT64_C(1000000000)

static vnxi_address_t
address_of(const char *text, int port)
{
    vnxi_addresses_t found;
    assert_true(vnxi_address_parse(text, &found));
    vnxi_address_set_port(&found.list[0], port);
    return found.list[0];
}

/* A loopback socket on a free port; `backlog` -1: bound, not listening. */
static int
listen_on(int backlog, int *port_p)
{
    struct sockaddr_in any = {.sin_family = AF_INET,
                              .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof any;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    assert_true(fd >= 0);
    assert_int_equal(bind(fd, (void *)&any, sizeof any), 0);
    if (backlog >= 0) {
        assert_int_equal(listen(fd, backlog), 0);
    }
    assert_int_equal(getsockname(fd, (void *)&any, &len), 0);
    *port_p = ntohs(any.sin_port);
    return fd;
}

/* A port whose queue is full does not answer. */
typedef struct mute {
    int fd, port, waiting[4];
} mute_t;

static void
mute_open(mute_t *mute)
{
    mute->fd = listen_on(0, &mute->port);
    vnxi_address_t to = address_of("127.0.0.1", mute->port);
    for (size_t i = 0; i < 4; i++) {
        mute->waiting[i] =
            socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        (void)!connect(mute->waiting[i], (void *)&to.addr, to.len);
    }
    WAIT_UNTIL(peer_count_waiting(mute->fd) > 0);
}

static void
mute_close(mute_t *mute)
{
    for (size_t i = 0; i < 4; i++) {
        close(mute->waiting[i]);
    }
    close(mute->fd);
}

static int
port_of_peer(int fd)
{
    struct sockaddr_in peer;
    socklen_t len = sizeof peer;
    assert_int_equal(getpeername(fd, (void *)&peer, &len), 0);
    return ntohs(peer.sin_port);
}

static void
dial_of(vnxi_dial_t *dial, const vnxi_address_t *list, size_t count,
        uint64_t now, uint64_t time)
{
    vnxi_addresses_t addresses = {.count = count};
    memcpy(addresses.list, list, count * sizeof *list);
    vnxi_dial_init(dial, NULL, 0, now + time);
    vnxi_dial_addresses(dial, &addresses, now);
}

/* Step for as long as there is something to do at `now`, or is within `ms`. */
static vnx_status_t
step_for(vnxi_dial_t *dial, uint64_t now, int *fd_p, int ms)
{
    struct pollfd entry;
    uint64_t wake;

    for (;;) {
        vnx_status_t status = vnxi_dial_step(dial, now, fd_p);
        if (status != VNX_IN_PROG) {
            return status;
        }
        vnxi_dial_wait(dial, &entry.fd, &entry.events, &wake);
        if (wake > now && poll(&entry, 1, ms) == 0) {
            return VNX_IN_PROG;
        }
    }
}

/* It is not to end at `now`. */
static vnx_status_t
settle(vnxi_dial_t *dial, uint64_t now, int *fd_p)
{
    return step_for(dial, now, fd_p, 20);
}

/* It is to end at `now`. */
static vnx_status_t
finish(vnxi_dial_t *dial, uint64_t now, int *fd_p)
{
    return step_for(dial, now, fd_p, 20000);
}

/* -- Addresses ------------------------------------------------------------ */

static void
test_dial_alternates_address_families(void **state)
{
    const vnxi_address_t list[] = {
        address_of("::1", 1), address_of("::2", 1), address_of("::3", 1),
        address_of("10.0.0.1", 1), address_of("10.0.0.2", 1)};
    static const char *const want[] = {"::1", "10.0.0.1", "::2", "10.0.0.2",
                                       "::3"};
    char text[VNXI_ADDRESS_TEXT];
    vnxi_dial_t dial;
    (void)state;

    dial_of(&dial, list, 5, 0, SECOND);
    assert_int_equal(dial.addresses.count, 5);
    for (size_t i = 0; i < 5; i++) {
        vnxi_address_text(&dial.addresses.list[i], text);
        assert_string_equal(text, want[i]);
    }
    vnxi_dial_fini(&dial);
}

static void
test_dial_connects_and_hands_over_the_socket(void **state)
{
    int port, fd = -1, listener = listen_on(5, &port);
    const vnxi_address_t list[] = {address_of("127.0.0.1", port)};
    vnxi_dial_t dial;
    size_t before = open_fds();
    (void)state;

    dial_of(&dial, list, 1, 0, SECOND);
    assert_int_equal(finish(&dial, 0, &fd), VNX_OK);
    assert_int_equal(port_of_peer(fd), port);
    assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
    assert_true(fcntl(fd, F_GETFL) & O_NONBLOCK);
    vnxi_dial_fini(&dial);
    assert_int_equal(port_of_peer(fd), port); /* ours still */
    close(fd);
    assert_int_equal(open_fds(), before);
    close(listener);
}

/* A refusal does not cost the delay of 250 ms. */
static void
test_dial_continues_at_once_after_a_refusal(void **state)
{
    int dead, port, fd = -1, bound = listen_on(-1, &dead),
                    listener = listen_on(5, &port);
    const vnxi_address_t list[] = {address_of("127.0.0.1", dead),
                                   address_of("127.0.0.1", dead),
                                   address_of("127.0.0.1", port)};
    vnxi_dial_t dial;
    (void)state;

    dial_of(&dial, list, 3, 0, 60 * SECOND);
    assert_int_equal(finish(&dial, 0, &fd), VNX_OK);
    assert_int_equal(port_of_peer(fd), port);
    assert_int_equal(dial.begun, 3);
    assert_int_equal(dial.last, 2);
    close(fd);
    close(listener);
    close(bound);
}

static void
test_dial_reports_every_failure(void **state)
{
    int dead, bound = listen_on(-1, &dead), fd = -1;
    const vnxi_address_t list[] = {address_of("127.0.0.1", dead),
                                   address_of("127.0.0.2", dead)};
    vnxi_dial_t dial;
    size_t before = open_fds();
    (void)state;

    dial_of(&dial, list, 2, 0, 60 * SECOND);
    assert_int_equal(finish(&dial, 0, &fd), VNX_ERR_BACKEND);
    assert_string_equal(dial.reason,
                        "Connection refused (127.0.0.1, 127.0.0.2)");
    assert_int_equal(fd, -1);
    assert_int_equal(open_fds(), before);
    close(bound);
}

/* Two causes, each with its addresses. */
static void
test_dial_reports_each_cause_once(void **state)
{
    int dead, bound = listen_on(-1, &dead), fd = -1;
    vnxi_address_t odd = {.len = sizeof(struct sockaddr_in)};
    vnxi_address_t list[3] = {address_of("127.0.0.1", dead), odd,
                              address_of("127.0.0.2", dead)};
    char want[VNXI_DIAL_TEXT];
    vnxi_dial_t dial;
    (void)state;

    list[1].addr.ss_family = AF_UNSPEC; /* no such socket */
    dial_of(&dial, list, 3, 0, 60 * SECOND);
    assert_int_equal(finish(&dial, 0, &fd), VNX_ERR_BACKEND);
    snprintf(want, sizeof want, "%s (127.0.0.1, 127.0.0.2); %s (?)",
             strerror(ECONNREFUSED), strerror(EAFNOSUPPORT));
    assert_string_equal(dial.reason, want);
    close(bound);
}

static void
test_dial_that_timed_out_says_who_did_not_answer(void **state)
{
    int dead, bound = listen_on(-1, &dead), fd = -1;
    mute_t mute;
    vnxi_dial_t dial;
    (void)state;

    mute_open(&mute);
    const vnxi_address_t list[] = {address_of("127.0.0.1", dead),
                                   address_of("127.0.0.1", mute.port)};
    dial_of(&dial, list, 2, 0, 60 * SECOND);
    assert_int_equal(settle(&dial, 0, &fd), VNX_IN_PROG);
    assert_string_equal(vnxi_dial_timed_out(&dial),
                        "timed out: Connection refused (127.0.0.1); no answer "
                        "(127.0.0.1)");
    vnxi_dial_fini(&dial);
    mute_close(&mute);
    close(bound);
}

/* A silent address is overtaken after its delay, by a simulated clock. */
static void
test_dial_starts_the_next_attempt_on_time(void **state)
{
    mute_t mute;
    mute_open(&mute);
    int port, fd = -1, listener = listen_on(5, &port), watched;
    const vnxi_address_t list[] = {address_of("127.0.0.1", mute.port),
                                   address_of("127.0.0.1", port)};
    vnxi_dial_t dial;
    size_t before = open_fds();
    short events;
    uint64_t wake;
    (void)state;

    dial_of(&dial, list, 2, 1000, 60 * SECOND);
    assert_int_equal(settle(&dial, 1000, &fd), VNX_IN_PROG);
    vnxi_dial_wait(&dial, &watched, &events, &wake);
    assert_int_equal(events, POLLOUT);
    assert_int_equal(watched, dial.fds[0]);
    assert_true(wake == 1000 + SECOND / 4);
    assert_int_equal(settle(&dial, wake - 1, &fd), VNX_IN_PROG);
    assert_int_equal(dial.begun, 1);
    assert_int_equal(finish(&dial, wake, &fd), VNX_OK);
    assert_int_equal(port_of_peer(fd), port);
    close(fd);
    assert_int_equal(open_fds(), before); /* the silent one was closed */
    close(listener);
    mute_close(&mute);
}

/* A short timeout is divided among all addresses. */
static void
test_dial_shortens_attempts_if_time_is_short(void **state)
{
    mute_t mute;
    mute_open(&mute);
    vnxi_address_t list[10];
    vnxi_dial_t dial;
    uint64_t wake;
    short events;
    int fd = -1, watched;
    (void)state;

    for (size_t i = 0; i < 10; i++) {
        list[i] = address_of("127.0.0.1", mute.port);
    }
    dial_of(&dial, list, 10, 0, 100);
    for (uint64_t now = 0; now < 100; now += 10) {
        assert_int_equal(settle(&dial, now, &fd), VNX_IN_PROG);
        assert_int_equal(dial.begun, now / 10 + 1);
    }
    vnxi_dial_wait(&dial, &watched, &events, &wake);
    assert_int_equal(watched, dial.epoll_fd); /* over all of them */
    assert_int_equal(events, POLLIN);
    assert_true(wake == UINT64_MAX); /* none is left to begin */
    vnxi_dial_fini(&dial);
    vnxi_dial_fini(&dial);            /* again */
    dial_of(&dial, list, 10, 100, 0); /* no time at all */
    assert_int_equal(settle(&dial, 100, &fd), VNX_IN_PROG);
    assert_int_equal(dial.begun, 10);
    vnxi_dial_fini(&dial);
    mute_close(&mute);
}

/* The set of several attempts is readable once one of them can be written. */
static void
test_dial_set_reports_each_attempt(void **state)
{
    mute_t mute;
    mute_open(&mute);
    const vnxi_address_t list[] = {address_of("127.0.0.1", mute.port),
                                   address_of("127.0.0.2", mute.port)};
    vnxi_dial_t dial;
    struct pollfd entry;
    uint64_t wake;
    int fd = -1;
    (void)state;

    dial_of(&dial, list, 2, 0, 60 * SECOND);
    assert_int_equal(settle(&dial, 0, &fd), VNX_IN_PROG);
    /* 127.0.0.2 has no listener: the second attempt is refused. */
    vnx_status_t status = settle(&dial, SECOND, &fd);
    assert_int_equal(status, VNX_IN_PROG);
    vnxi_dial_wait(&dial, &entry.fd, &entry.events, &wake);
    assert_int_equal(poll(&entry, 1, 0), 0);
    while (poll(&entry, 1, 100) == 0) { /* make room in the queue */
        close(accept(mute.fd, NULL, NULL));
    }
    assert_int_equal(finish(&dial, SECOND, &fd), VNX_OK);
    assert_int_equal(port_of_peer(fd), mute.port);
    close(fd);
    mute_close(&mute);
}

/* A forked child has copies of the sockets.  Closing one here leaves it in the
 * set, unless it is removed. */
static void
test_dial_set_forgets_attempts_that_live_on_elsewhere(void **state)
{
    mute_t mute;
    mute_open(&mute);
    int dead, bound = listen_on(-1, &dead), fd = -1;
    const vnxi_address_t list[] = {address_of("127.0.0.1", mute.port),
                                   address_of("127.0.0.1", dead)};
    vnxi_dial_t dial;
    struct pollfd entry;
    uint64_t wake;
    (void)state;

    dial_of(&dial, list, 2, 0, 60 * SECOND);
    assert_int_equal(settle(&dial, 0, &fd), VNX_IN_PROG);
    assert_int_equal(vnxi_dial_step(&dial, SECOND, &fd), VNX_IN_PROG);
    int copy = dup(dial.fds[1]);
    assert_true(copy >= 0);
    vnxi_dial_wait(&dial, &entry.fd, &entry.events, &wake);
    assert_int_equal(poll(&entry, 1, 20000), 1);
    assert_int_equal(vnxi_dial_step(&dial, SECOND, &fd), VNX_IN_PROG);
    assert_int_equal(dial.errs[1], ECONNREFUSED);
    assert_int_equal(poll(&entry, 1, 0), 0);
    vnxi_dial_fini(&dial);
    close(copy);
    close(bound);
    mute_close(&mute);
}

/* The second attempt needs a socket and the set; there is only one descriptor.
 */
static void
test_dial_reports_a_lack_of_descriptors(void **state)
{
    mute_t mute;
    mute_open(&mute);
    const vnxi_address_t list[] = {address_of("127.0.0.1", mute.port),
                                   address_of("127.0.0.1", mute.port)};
    struct rlimit limit, tight;
    vnxi_dial_t dial;
    int fd = -1;
    (void)state;

    dial_of(&dial, list, 2, 0, 60 * SECOND);
    assert_int_equal(settle(&dial, 0, &fd), VNX_IN_PROG);
    int next = dup(0);
    close(next);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    tight = limit;
    tight.rlim_cur = (rlim_t)next + 1;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &tight), 0);
    vnx_status_t status = settle(&dial, SECOND, &fd);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
    assert_int_equal(status, VNX_IN_PROG);
    assert_int_equal(dial.errs[1], EMFILE);
    vnxi_dial_fini(&dial);
    mute_close(&mute);
}

/* -- Dialling ------------------------------------------------------------- */

/* Step until it ends, waiting as it says. */
static vnx_status_t
dial_run(vnxi_dial_t *dial, int *fd_p)
{
    for (;;) {
        struct pollfd entry;
        uint64_t wake;
        vnx_status_t status = vnxi_dial_step(dial, vnxi_clock_ns(), fd_p);
        if (status != VNX_IN_PROG) {
            return status;
        }
        vnxi_dial_wait(dial, &entry.fd, &entry.events, &wake);
        poll(&entry, 1, wake == UINT64_MAX ? 20000 : 250);
    }
}

static void
dial_to(vnxi_dial_t *dial, const char *host, int port)
{
    vnxi_dial_init(dial, host, port, vnxi_clock_ns() + 20 * SECOND);
}

static void
test_dial_connects_to_an_address_and_to_localhost(void **state)
{
    static const char *const hosts[] = {"127.0.0.1", "localhost"};
    int port, listener = listen_on(5, &port);
    (void)state;

    for (size_t i = 0; i < 2; i++) {
        vnxi_dial_t dial;
        int fd = -1;
        dial_to(&dial, hosts[i], port);
        assert_string_equal(dial.whom, hosts[i]);
        assert_false(dial.is_connecting);
        assert_int_equal(dial_run(&dial, &fd), VNX_OK);
        assert_int_equal(port_of_peer(fd), port);
        assert_string_equal(dial.whom, "127.0.0.1");
        assert_true(dial.is_connecting);
        vnxi_dial_fini(&dial);
        close(fd);
    }
    close(listener);
}

static void
test_dial_names_the_address_that_refused(void **state)
{
    int dead, bound = listen_on(-1, &dead), fd = -1;
    vnxi_dial_t dial;
    (void)state;

    dial_to(&dial, "127.0.0.1", dead);
    assert_int_equal(dial_run(&dial, &fd), VNX_ERR_BACKEND);
    assert_true(dial.is_connecting);
    assert_string_equal(dial.whom, "127.0.0.1");
    assert_string_equal(dial.reason, strerror(ECONNREFUSED));
    vnxi_dial_fini(&dial);
    close(bound);
}

static void
test_dial_names_all_addresses_of_a_name(void **state)
{
    int dead, bound = listen_on(-1, &dead), fd = -1;
    vnxi_dial_t dial;
    (void)state;

    dial_to(&dial, "localhost", dead);
    assert_int_equal(dial_run(&dial, &fd), VNX_ERR_BACKEND);
    assert_string_equal(dial.whom, "localhost");
    assert_non_null(strstr(dial.reason, strerror(ECONNREFUSED)));
    assert_non_null(strstr(dial.reason, "127.0.0.1"));
    assert_non_null(strstr(dial.reason, "::1"));
    vnxi_dial_fini(&dial);
    close(bound);
}

static void
test_dial_explains_a_host_with_more_than_a_name(void **state)
{
    static const char *const hosts[] = {"localhost:80", "http://localhost"};
    (void)state;

    for (size_t i = 0; i < 2; i++) {
        vnxi_dial_t dial;
        int fd = -1;
        dial_to(&dial, hosts[i], 80);
        assert_int_equal(vnxi_dial_step(&dial, 0, &fd), VNX_ERR_NOT_FOUND);
        assert_non_null(strstr(dial.reason, "without a scheme or a port"));
        vnxi_dial_fini(&dial);
    }
}

/* The same at the request: the failure becomes its record. */
static void
test_client_conn_records_the_address_that_refused(void **state)
{
    int dead, bound = listen_on(-1, &dead);
    uint64_t now = vnxi_clock_ns();
    vnxi_request_t request = {.host = "127.0.0.1",
                              .whom = "127.0.0.1",
                              .port = dead,
                              .key = "",
                              .endpoint = "the endpoint",
                              .start = now,
                              .deadline = now + 20 * SECOND,
                              .fd = -1,
                              .wake = UINT64_MAX};
    const vnx_error_t *error = &request.answer.error;
    vnxi_client_conn_t conn = {0};
    vnx_status_t status;
    (void)state;

    vnxi_client_conn_init(&conn, &request, NULL, "opening");
    while ((status = vnxi_client_conn_step(&conn)) == VNX_IN_PROG) {
        struct pollfd entry = {.fd = request.fd, .events = request.events};
        poll(&entry, 1, request.wake == UINT64_MAX ? 20000 : 250);
    }
    assert_int_equal(status, VNX_ERR_BACKEND);
    assert_non_null(strstr(error->cause, "connecting to 127.0.0.1: "));
    assert_non_null(strstr(error->cause, strerror(ECONNREFUSED)));
    assert_non_null(strstr(error->cause, " ms)"));
    assert_string_equal(error->operation, "vnx_side_channel_request");
    assert_string_equal(error->peer, "the endpoint");
    vnxi_client_conn_fini(&conn);
    close(bound);
}

/* The resolver signals a descriptor; this does not block. */
static void
test_dial_can_be_cancelled_while_resolving(void **state)
{
    struct pollfd entry;
    vnxi_dial_t dial;
    uint64_t wake;
    int fd = -1;
    (void)state;

    dial_to(&dial, "no-such-host.invalid", 1);
    vnx_status_t status = vnxi_dial_step(&dial, vnxi_clock_ns(), &fd);
    if (status == VNX_IN_PROG) {
        vnxi_dial_wait(&dial, &entry.fd, &entry.events, &wake);
        assert_true(entry.fd >= 0);
        assert_int_equal(entry.events, POLLIN);
    }
    assert_false(dial.is_connecting);
    assert_string_equal(dial.whom, "no-such-host.invalid");
    vnxi_dial_fini(&dial);
    vnxi_dial_fini(&dial); /* again */
    assert_int_equal(fd, -1);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dial_alternates_address_families),
        cmocka_unit_test(test_dial_connects_and_hands_over_the_socket),
        cmocka_unit_test(test_dial_continues_at_once_after_a_refusal),
        cmocka_unit_test(test_dial_reports_every_failure),
        cmocka_unit_test(test_dial_reports_each_cause_once),
        cmocka_unit_test(test_dial_that_timed_out_says_who_did_not_answer),
        cmocka_unit_test(test_dial_starts_the_next_attempt_on_time),
        cmocka_unit_test(test_dial_shortens_attempts_if_time_is_short),
        cmocka_unit_test(test_dial_set_reports_each_attempt),
        cmocka_unit_test(
            test_dial_set_forgets_attempts_that_live_on_elsewhere),
        cmocka_unit_test(test_dial_reports_a_lack_of_descriptors),
        cmocka_unit_test(test_dial_connects_to_an_address_and_to_localhost),
        cmocka_unit_test(test_dial_names_the_address_that_refused),
        cmocka_unit_test(test_dial_names_all_addresses_of_a_name),
        cmocka_unit_test(test_client_conn_records_the_address_that_refused),
        cmocka_unit_test(test_dial_can_be_cancelled_while_resolving),
        cmocka_unit_test(test_dial_explains_a_host_with_more_than_a_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
