/* Hostile or broken clients of the HTTP side channel: each loses its own
 * exchange and affects no other. */
#include "child_check.h"
#include "http_peer.h"
#include "side_channel_attacks.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"

#define REQUEST HTTP_GET("/metadata") "\r\n"
#define REQUEST_LEN (sizeof(REQUEST) - 1)

static char reply[HTTP_REPLY_MAX];

static const attacked_t attacked = {http_new, REQUEST, REQUEST_LEN};

/* Open what the process may; returns the last descriptor. */
static int
open_all(rlim_t most)
{
    struct rlimit limit;
    int last = -1, fd;

    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    limit.rlim_cur = most;
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    while ((fd = open("/dev/null", O_RDONLY | O_CLOEXEC)) >= 0) {
        last = fd;
    }
    return last;
}

/* In a child that has not used libcurl, nor has its parent. */
static void
ask_without_descriptors(vnx_side_channel_t *channel, int port)
{
    vnx_error_t error;
    void *got;
    size_t len;

    int last = open_all(64);
    CHECK(vnx_side_channel_request(channel, "127.0.0.1", port, 20000, &got,
                                   &len, &error) == VNX_ERR_BACKEND);
    CHECK(strstr(error.cause, "libcurl") != NULL);
    for (int fd = last; fd > last - 30; fd--) {
        close(fd);
    }
    CHECK(vnx_side_channel_request(channel, "127.0.0.1", port, 20000, &got,
                                   &len, NULL) == VNX_OK);
    free(got);
    _exit(0);
}

/* The first test, because it needs a program that has no libcurl yet. */
static void
test_http_limits_lack_of_descriptors_does_not_disable_http(void **state)
{
    (void)state;
    vnx_side_channel_t *channel = http_new(NULL);
    peer_server_t server = {
        .reply = "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx",
        .reply_len = 39};
    int status;

    peer_server_start(&server, http_serve_reply);
    pid_t child = fork();
    if (child == 0) {
        ask_without_descriptors(channel, server.port);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    peer_server_stop(&server);
    vnx_side_channel_free(channel);
}

static void
test_http_limits_crowd_does_not_stop_service(void **state)
{
    (void)state;
    expect_crowd_held(&attacked, 500, NULL, 0);
    expect_crowd_held(&attacked, 500, "G", 1);
    expect_crowd_held(&attacked, 500, REQUEST, REQUEST_LEN - 1);
}

static void
test_http_limits_evict_connections_beyond_the_table(void **state)
{
    (void)state;
    expect_crowd_gives_way(&attacked);
}

static void
test_http_limits_evict_keep_alive_connections_first(void **state)
{
    (void)state;
    vnx_side_channel_options_t options = {.size = sizeof options,
                                          .max_connections = 3,
                                          .client_timeout_ms = 3600000};
    vnx_side_channel_t *channel = http_new(&options);
    int port = channel_start(channel, BLOB, BLOB_LEN);
    int half = peer_connect(port), kept[4];

    peer_send(half, "GET /meta", 9);
    for (int i = 0; i < 4; i++) {
        kept[i] = peer_connect(port);
        peer_send(kept[i], REQUEST, REQUEST_LEN);
        http_read_replies(kept[i], 1, reply);
    }
    peer_expect_end(kept[0]);
    assert_int_equal(channel_stats(channel).evicted, 0);
    peer_send(half, "data HTTP/1.1\r\n" HTTP_LAST, 36);
    http_read_replies(half, 1, reply);
    assert_int_equal(http_status(reply), 200);
    close(half);
    for (int i = 1; i < 4; i++) {
        close(kept[i]);
    }
    vnx_side_channel_free(channel);
}

static void
test_http_limits_close_silent_and_slow_clients_at_the_deadline(void **state)
{
    (void)state;
    vnx_side_channel_options_t options = {.size = sizeof options,
                                          .client_timeout_ms = 300};
    vnx_side_channel_t *channel = http_new(&options);
    int port = channel_start(channel, BLOB, BLOB_LEN);
    uint64_t start = vnxi_clock_ns();

    peer_expect_end(peer_connect(port));
    assert_int_equal(channel_stats(channel).timed_out, 1);
    int fd = peer_connect(port);
    for (size_t i = 0; i < REQUEST_LEN; i++) { /* 37 at 20 ms: 740 ms */
        if (send(fd, &(REQUEST)[i], 1, MSG_NOSIGNAL) != 1) {
            break;
        }
        usleep(20000);
    }
    peer_expect_end(fd);
    assert_int_equal(channel_stats(channel).timed_out, 2);
    assert_true(vnxi_clock_ns() - start < vnx_test_limit(10));
    WAIT_UNTIL(channel_stats(channel).open == 0);
    vnx_side_channel_free(channel);
}

static void
test_http_limits_close_idle_connections_sooner(void **state)
{
    (void)state;
    vnx_side_channel_options_t options = {.size = sizeof options,
                                          .client_timeout_ms = 3600000,
                                          .idle_timeout_ms = 50};
    vnx_side_channel_t *channel = http_new(&options);
    int port = channel_start(channel, BLOB, BLOB_LEN);

    peer_expect_end(peer_connect(port));
    assert_int_equal(channel_stats(channel).timed_out, 1);
    /* An idle connection that was served is not an error. */
    int fd = peer_connect(port);
    peer_send(fd, REQUEST, REQUEST_LEN);
    http_read_replies(fd, 1, reply);
    peer_expect_end(fd);
    assert_int_equal(channel_stats(channel).timed_out, 1);
    assert_int_equal(channel_stats(channel).refused, 0);
    vnx_side_channel_free(channel);
}

/* False: the connection has ended. */
static bool
is_answered(int fd)
{
    size_t have = 0;

    if (send(fd, REQUEST, REQUEST_LEN, MSG_NOSIGNAL) != (int)REQUEST_LEN) {
        return false;
    }
    while (memmem(reply, have, BLOB, BLOB_LEN) == NULL) {
        ssize_t count = recv(fd, reply + have, sizeof reply - have, 0);
        if (count <= 0) {
            return false;
        }
        have += (size_t)count;
    }
    return true;
}

/* Four exchanges in twice the timeout.  False: the time between two was above
 * the timeout, because this machine is busy. */
static bool
is_kept(uint32_t timeout_ms)
{
    vnx_side_channel_options_t options = {.size = sizeof options,
                                          .client_timeout_ms = timeout_ms};
    vnx_side_channel_t *channel = http_new(&options);
    int port = channel_start(channel, BLOB, BLOB_LEN);
    uint64_t before, begun = vnxi_clock_ns();
    int fd = peer_connect(port);
    bool kept = true;

    for (int i = 0; i < 4 && kept; i++) {
        before = begun;
        begun = vnxi_clock_ns();
        kept = is_answered(fd);
        assert_true(kept || vnxi_clock_ns() - before >=
                                timeout_ms * UINT64_C(1000000));
        usleep(timeout_ms * 500);
    }
    if (kept) {
        WAIT_UNTIL(channel_stats(channel).served == 4);
        assert_int_equal(channel_stats(channel).accepted, 1);
    }
    close(fd);
    vnx_side_channel_free(channel);
    return kept;
}

static void
test_http_limits_restart_the_timeout_of_a_kept_connection(void **state)
{
    (void)state;
    uint32_t timeout_ms = 400;

    while (!is_kept(timeout_ms)) {
        timeout_ms *= 2;
    }
}

static void
test_http_limits_close_a_connection_that_sends_garbage(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        size_t len;
    } garbage[] = {
        {"\xff\xff\xff\xff\r\n\r\n", 8},
        {"\0\0\0\014GET_METADATA\r\n", 18},      /* TCP */
        {"\x16\x03\x01\x02\0\x01\0\x01\xfc", 9}, /* TLS */
        {"\xff\0\0\0\0\0\0\0\x01\x7f", 10},      /* ZMTP */
        {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 24},
    };
    enum { COUNT = sizeof garbage / sizeof garbage[0] };
    vnx_side_channel_options_t options = {.size = sizeof options,
                                          .client_timeout_ms = 2000};
    vnx_side_channel_t *channel = http_new(&options);
    int port = channel_start(channel, BLOB, BLOB_LEN);
    int fds[COUNT];

    for (size_t i = 0; i < COUNT; i++) {
        fds[i] = peer_connect(port);
        peer_send(fds[i], garbage[i].bytes, garbage[i].len);
        channel_expect(channel, port, BLOB, BLOB_LEN);
    }
    for (size_t i = 0; i < COUNT; i++) {
        reply[peer_recv(fds[i], reply, sizeof reply - 1)] = '\0';
        assert_null(strstr(reply, BLOB));
        close(fds[i]);
    }
    WAIT_UNTIL(channel_stats(channel).open == 0);
    assert_int_equal(channel_stats(channel).refused +
                         channel_stats(channel).timed_out,
                     COUNT);
    vnx_side_channel_free(channel);
}

/* Up to the limit and beyond, without an end of line. */
static void
test_http_limits_bound_the_header(void **state)
{
    (void)state;
    vnx_side_channel_t *channel = http_new(NULL);
    int port = channel_start(channel, BLOB, BLOB_LEN);
    char junk[16384];

    memset(junk, 'a', sizeof junk);
    memcpy(junk, "GET /", 5);
    int fd = peer_connect(port);
    for (int i = 0; i < 1024; i++) { /* 16 MiB: it does not take them */
        if (send(fd, junk, sizeof junk, MSG_NOSIGNAL) <= 0) {
            break;
        }
    }
    peer_expect_end(fd);
    WAIT_UNTIL(channel_stats(channel).open == 0);
    assert_int_equal(channel_stats(channel).refused, 1);
    assert_true(channel_stats(channel).bytes_received < 65536);
    channel_expect(channel, port, BLOB, BLOB_LEN);
    vnx_side_channel_free(channel);
}

static void
test_http_limits_resets_and_storms_leak_nothing(void **state)
{
    (void)state;
    expect_storm_leaves_nothing(&attacked, 1000);
}

/* Further bytes from them are not read. */
static void
test_http_limits_reset_clients_that_never_read(void **state)
{
    (void)state;
    const size_t len = 16u << 20;
    vnx_side_channel_options_t options = {.size = sizeof options,
                                          .client_timeout_ms = 500};
    vnx_side_channel_t *channel = http_new(&options);
    unsigned char *data = pattern(len, 1);
    int port = channel_start(channel, data, len);
    static char junk[1 << 16];
    int fds[16];

    for (int i = 0; i < 16; i++) {
        fds[i] = never_reading(&attacked, port);
        while (send(fds[i], junk, sizeof junk, MSG_NOSIGNAL | MSG_DONTWAIT) >
               0) {
        }
    }
    WAIT_UNTIL(channel_stats(channel).timed_out == 16);
    WAIT_UNTIL(channel_stats(channel).open == 0);
    assert_int_equal(channel_stats(channel).served, 0);
    assert_true(channel_stats(channel).bytes_received < 16 * 65536);
    for (int i = 0; i < 16; i++) {
        close(fds[i]);
    }
    free(data);
    vnx_side_channel_free(channel);
}

static void
test_http_limits_evict_clients_that_never_read(void **state)
{
    (void)state;
    expect_never_reading_give_way(&attacked);
}

static void
test_http_limits_service_survives_lack_of_descriptors(void **state)
{
    (void)state;
    expect_no_fds_are_survived(&attacked);
}

static void
test_http_limits_refuse_a_client_above_the_rate(void **state)
{
    (void)state;
    vnx_side_channel_options_t options = {.size = sizeof options,
                                          .max_rate = 5};
    vnx_side_channel_t *channel = http_new(&options);
    int port = channel_start(channel, BLOB, BLOB_LEN);
    uint64_t begun = vnxi_clock_ns();

    for (int i = 0; i < 40; i++) {
        peer_reset(peer_connect(port));
    }
    WAIT_UNTIL(channel_stats(channel).accepted == 40);
    WAIT_UNTIL(channel_stats(channel).open == 0);
    /* All but those of two seconds, and of the time that this took. */
    uint64_t more = 5 * (vnxi_clock_ns() - begun) / 1000000000 + 1;
    assert_in_range(
        channel_stats(channel).refusals[VNX_SIDE_CHANNEL_REFUSED_RATE],
        more < 30 ? 30 - more : 0, 30);
    vnx_side_channel_free(channel);
}

/* While this is held, the listener accepts nobody. */
static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;

/* libevent calls this one. */
int
accept4(int fd, struct sockaddr *addr, socklen_t *len, int flags)
{
    pthread_mutex_lock(&gate);
    pthread_mutex_unlock(&gate);
    return (int)syscall(SYS_accept4, fd, addr, len, flags);
}

static int
connect_from(in_addr_t address, int port)
{
    struct sockaddr_in own = {.sin_family = AF_INET,
                              .sin_addr.s_addr = htonl(address)};
    struct sockaddr_in other = {.sin_family = AF_INET,
                                .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                                .sin_port = htons((uint16_t)port)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    assert_int_equal(bind(fd, (void *)&own, sizeof own), 0);
    assert_int_equal(connect(fd, (void *)&other, sizeof other), 0);
    return fd;
}

/* The clients above the rate are accepted in one go. */
static void
test_http_limits_a_client_above_the_rate_takes_nobodys_place(void **state)
{
    (void)state;
    enum { FLOOD = 40 };
    vnx_side_channel_options_t options = {.size = sizeof options,
                                          .max_connections = 8,
                                          .max_rate = 1,
                                          .client_timeout_ms = 3600000};
    vnx_side_channel_t *channel = http_new(&options);
    int port = channel_start(channel, BLOB, BLOB_LEN), fds[FLOOD];
    int half = peer_connect(port);

    peer_send(half, "GET /meta", 9);
    WAIT_UNTIL(channel_stats(channel).bytes_received == 9);
    pthread_mutex_lock(&gate);
    for (int i = 0; i < FLOOD; i++) {
        fds[i] = connect_from(INADDR_LOOPBACK + 1, port);
    }
    pthread_mutex_unlock(&gate);
    WAIT_UNTIL(channel_stats(channel).accepted == 1 + FLOOD);
    peer_send(half, "data HTTP/1.1\r\n" HTTP_LAST, 36);
    http_read_replies(half, 1, reply);
    assert_int_equal(http_status(reply), 200);
    assert_int_equal(channel_stats(channel).evicted, 0);
    close(half);
    for (int i = 0; i < FLOOD; i++) {
        close(fds[i]);
    }
    vnx_side_channel_free(channel);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(
            test_http_limits_lack_of_descriptors_does_not_disable_http),
        cmocka_unit_test(test_http_limits_crowd_does_not_stop_service),
        cmocka_unit_test(test_http_limits_evict_connections_beyond_the_table),
        cmocka_unit_test(test_http_limits_evict_keep_alive_connections_first),
        cmocka_unit_test(
            test_http_limits_close_silent_and_slow_clients_at_the_deadline),
        cmocka_unit_test(test_http_limits_close_idle_connections_sooner),
        cmocka_unit_test(
            test_http_limits_restart_the_timeout_of_a_kept_connection),
        cmocka_unit_test(
            test_http_limits_close_a_connection_that_sends_garbage),
        cmocka_unit_test(test_http_limits_bound_the_header),
        cmocka_unit_test(test_http_limits_resets_and_storms_leak_nothing),
        cmocka_unit_test(test_http_limits_reset_clients_that_never_read),
        cmocka_unit_test(test_http_limits_evict_clients_that_never_read),
        cmocka_unit_test(
            test_http_limits_service_survives_lack_of_descriptors),
        cmocka_unit_test(test_http_limits_refuse_a_client_above_the_rate),
        cmocka_unit_test(
            test_http_limits_a_client_above_the_rate_takes_nobodys_place),
    };
    http_no_proxy();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
