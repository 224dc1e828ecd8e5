/* Hostile or broken clients of a metadata listener: each loses its own
 * connection and affects no other. */
#include "listener_fixture.h"

#include <sys/resource.h>
#include <sys/socket.h>

#include "slow_load.h"

#define FRAME_MAX (64u << 10)

/* A node with low limits. */
static node_t
node_small(uint32_t timeout_ms)
{
    vnx_listener_options_t options = {.size = sizeof options,
                                      .max_frame = FRAME_MAX,
                                      .max_connections = 8,
                                      .timeout_ms = timeout_ms};
    return node_listening("here", &options);
}

/* `data` ends its connection, and is counted. */
static void
expect_refused(const void *data, size_t len, const char *cause)
{
    node_t node = node_small(20000);
    int fd = peer_connect(node.port);

    peer_send(fd, data, len);
    peer_expect_end(fd);
    WAIT_UNTIL(counts(&node).refused == 1);
    assert_says(failure_of(&node), cause);
    assert_says(failure_of(&node), "127.0.0.1");
    expect_service(&node);
    node_free(&node);
}

static void
test_attack_other_protocols(void **state)
{
    (void)state;
    static const char http[] = "GET /metadata HTTP/1.1\r\nHost: x\r\n\r\n";
    static const char tls[] = "\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03";
    static const char side[] = "\0\0\0\x0cGET_METADATA";
    expect_refused(http, sizeof http - 1, "above max_frame");
    expect_refused(tls, sizeof tls - 1, "above max_frame");
    expect_refused(side, sizeof side - 1, "above max_frame");
}

static void
test_attack_lengths(void **state)
{
    (void)state;
    unsigned char header[8];

    put_length(header, FRAME_MAX + 1);
    expect_refused(header, 8, "above max_frame");
    put_length(header, UINT64_MAX);
    expect_refused(header, 8, "above max_frame");
    put_length(header, UINT64_MAX - 7);
    expect_refused(header, 8, "above max_frame");
    put_length(header, 0);
    expect_refused(header, 8, "without a command");
    put_length(header, 12);
    expect_refused(header, 8, "without a command");
}

static void
test_attack_invalid_frames(void **state)
{
    (void)state;
    unsigned char frame[8 + 64];
    char many[8 + 17 * 13 + 1];

    put_length(frame, 64);
    memset(frame + 8, 'x', 64);
    expect_refused(frame, sizeof frame, "not a frame");
    put_length((unsigned char *)many, 17 * 13);
    for (int i = 0; i < 17; i++) {
        memcpy(many + 8 + 13 * i, "NIXLCOMM:INVL", 13);
    }
    expect_refused(many, sizeof many - 1, "too many commands");
}

static void
test_attack_truncated_frames(void **state)
{
    (void)state;
    node_t node = node_small(20000);

    for (int i = 0; i < 10; i++) {
        int fd = peer_connect(node.port);
        peer_send(fd, "\x40\0\0\0\0\0\0\0NIXL", i % 2 ? 4 : 12);
        if (i % 3) {
            peer_reset(fd);
        } else {
            close(fd);
        }
    }
    WAIT_UNTIL(counts(&node).accepted == 10 && counts(&node).open == 0);
    expect_service(&node);
    node_free(&node);
}

/* -- Invalid metadata ----------------------------------------------------- */

/* The connection stays open: it may be a peer's, and the fault ours. */
static void
test_attack_metadata(void **state)
{
    (void)state;
    node_t node = node_small(20000);
    vnx_bytes_t own;
    unsigned char junk[512];
    int fd = peer_connect(node.port);
    size_t len;

    fill(junk, sizeof junk, 3);
    assert_ok(vnx_agent_metadata(node.agent, &own, e));
    raw_command(fd, "LOAD", junk, sizeof junk);
    raw_command(fd, "LOAD", NULL, 0);
    raw_command(fd, "LOAD", own.data, own.len - 1);
    raw_command(fd, "LOAD", own.data, own.len);
    WAIT_UNTIL(counts(&node).load_failures == 4);
    assert_says(failure_of(&node), "NIXL_ERR_INVALID_PARAM");
    assert_says(failure_of(&node), "own");
    raw_command(fd, "SEND", NULL, 0);
    free(raw_load(fd, &len));
    assert_int_equal(counts(&node).loaded, 0);
    assert_int_equal(counts(&node).refused, 0);
    free(own.data);
    close(fd);
    node_free(&node);
}

static void
test_attack_invalidation_of_any_name(void **state)
{
    (void)state;
    node_t node = node_small(20000);
    char name[60000];
    int fd = peer_connect(node.port);
    size_t len;

    memset(name, 'n', sizeof name);
    raw_command(fd, "INVL", name, sizeof name);
    raw_command(fd, "INVL", "here", 4); /* ourselves */
    raw_command(fd, "INVL", "\0\xff", 2);
    raw_command(fd, "SEND", NULL, 0);
    free(raw_load(fd, &len));
    assert_int_equal(counts(&node).invalidated, 0);
    close(fd);
    node_free(&node);
}

/* The peer would take a part of the agent's metadata for another command. */
static void
test_attack_by_the_name_of_the_agent(void **state)
{
    (void)state;
    vnx_agent_t *agent = make_agent("aNIXLCOMM:INVLb");
    node_t node = {.agent = agent};
    char byte;

    assert_ok(vnx_listener_create(agent, NULL, &node.listener, e));
    assert_ok(vnx_listener_start(node.listener, NULL, 0, &node.port, e));
    int fd = peer_connect(node.port);
    raw_command(fd, "SEND", NULL, 0);
    await_failure(&node, "which begins the next command");
    assert_int_equal(recv(fd, &byte, 1, MSG_DONTWAIT), -1);
    assert_int_equal(counts(&node).served, 0);
    close(fd);
    node_free(&node);
}

/* -- Time ----------------------------------------------------------------- */

static void
test_attack_silence(void **state)
{
    (void)state;
    static const char half[] = "\x0d\0\0\0\0\0\0\0NIXLCOM";
    static const char after[] = "\x0e\0\0\0\0\0\0\0NIXLCOMM:INVLx\x0d";
    node_t node = node_small(1000);
    int fds[4];

    for (int i = 0; i < 4; i++) {
        fds[i] = peer_connect(node.port);
    }
    peer_send(fds[1], "\x0d", 1);
    peer_send(fds[2], half, sizeof half - 1);
    peer_send(fds[3], after, sizeof after - 1);
    for (int i = 0; i < 4; i++) {
        peer_expect_end(fds[i]);
    }
    WAIT_UNTIL(counts(&node).timed_out == 4);
    expect_service(&node);
    node_free(&node);
}

/* Slow bytes do not extend the deadline. */
static void
test_attack_drip(void **state)
{
    (void)state;
    node_t node = node_small(1000);
    int fd = peer_connect(node.port);

    raw_command(fd, "INVL", "x", 1); /* not a stranger any more */
    peer_send(fd, "\x00\x01\0\0\0\0\0\0", 8);
    for (int i = 0; i < 250 && counts(&node).timed_out == 0; i++) {
        if (send(fd, "N", 1, MSG_NOSIGNAL) < 0) {
            break;
        }
        usleep(10000);
    }
    WAIT_UNTIL(counts(&node).timed_out == 1);
    close(fd);
    node_free(&node);
}

/* A client that has sent a command may stay silent for any time. */
static void
test_attack_silence_is_allowed_after_a_command(void **state)
{
    (void)state;
    node_t node = node_small(1000);
    int fd = peer_connect(node.port), other = peer_connect(node.port);
    size_t len;

    raw_command(fd, "SEND", NULL, 0);
    free(raw_load(fd, &len));
    peer_expect_end(other); /* more than the time-out has passed */
    raw_command(fd, "SEND", NULL, 0);
    free(raw_load(fd, &len));
    close(fd);
    node_free(&node);
}

/* A client that sends requests and reads no reply. */
static void
test_attack_unread_replies(void **state)
{
    (void)state;
    static unsigned char memory[4096];
    static char questions[21 * 1000];
    size_t at = 0;
    node_t node = node_small(1000);
    int fd = peer_connect(node.port);

    for (size_t i = 0; i < sizeof memory; i += 64) {
        register_at(node.agent, memory + i, 4); /* some 3 KB of metadata */
    }
    for (int i = 0; i < 1000; i++) {
        memcpy(questions + 21 * i, "\x0d\0\0\0\0\0\0\0NIXLCOMM:SEND", 21);
    }
    /* Until the kernel's buffers are full of replies.  The last send may be
     * partial. */
    for (int i = 0; i < 30000 && counts(&node).timed_out == 0; i++) {
        ssize_t sent = send(fd, questions + at, sizeof questions - at,
                            MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0) {
            usleep(1000);
        } else {
            at = (at + (size_t)sent) % sizeof questions;
        }
    }
    assert_int_equal(counts(&node).timed_out, 1);
    peer_expect_end(fd);
    expect_service(&node);
    node_free(&node);
}

/* -- Crowds --------------------------------------------------------------- */

static void
test_attack_crowd_is_evicted(void **state)
{
    (void)state;
    enum { CROWD = 40 };
    node_t node = node_small(20000);
    int known = peer_connect(node.port), fds[CROWD];
    size_t len;

    raw_command(known, "SEND", NULL, 0);
    free(raw_load(known, &len));
    for (int i = 0; i < CROWD; i++) {
        fds[i] = peer_connect(node.port);
        peer_send(fds[i], "\x0d", i % 2);
    }
    expect_service(&node);
    WAIT_UNTIL(counts(&node).accepted == CROWD + 2);
    assert_true(counts(&node).open <= 8);
    assert_true(counts(&node).evicted >= CROWD + 2 - 8 - 1);
    raw_command(known, "SEND", NULL, 0); /* strangers are evicted first */
    free(raw_load(known, &len));
    for (int i = 0; i < CROWD; i++) {
        close(fds[i]);
    }
    close(known);
    node_free(&node);
}

static void
test_attack_connect_and_leave(void **state)
{
    (void)state;
    enum { STORM = 500 };
    node_t node = node_small(20000);
    size_t before = open_fds();

    for (int i = 0; i < STORM; i++) {
        peer_reset(peer_connect(node.port));
    }
    expect_service(&node);
    WAIT_UNTIL(counts(&node).open == 0);
    WAIT_UNTIL(open_fds() <= before);
    node_free(&node);
}

/* Many unfinished frames: their total size is bounded for all senders. */
static void
test_attack_unfinished_frames(void **state)
{
    (void)state;
    node_t node = node_small(20000);
    unsigned char header[8], *body = pattern(FRAME_MAX, 5);
    int fds[4];

    put_length(header, FRAME_MAX);
    memcpy(body, "NIXLCOMM:LOAD", 13);
    for (int i = 0; i < 4; i++) {
        fds[i] = peer_connect(node.port);
        peer_send(fds[i], header, 8);
        peer_send(fds[i], body, FRAME_MAX - 1);
    }
    WAIT_UNTIL(counts(&node).refused >= 1);
    assert_says(failure_of(&node), "too many bytes");
    for (int i = 0; i < 4; i++) {
        close(fds[i]);
    }
    WAIT_UNTIL(counts(&node).open == 0);
    expect_service(&node);
    free(body);
    node_free(&node);
}

/* Not the client that comes last is closed, but the one that holds most. */
static void
test_attack_by_hoarders(void **state)
{
    (void)state;
    enum { SMALL = 20000 };
    node_t node = node_small(20000);
    unsigned char header[8], *body = pattern(FRAME_MAX, 5);
    int hoarders[2], fd;
    size_t len;

    put_length(header, FRAME_MAX);
    memcpy(body, "NIXLCOMM:INVL", 13);
    for (int i = 0; i < 2; i++) {
        hoarders[i] = peer_connect(node.port);
        peer_send(hoarders[i], header, 8);
        peer_send(hoarders[i], body, FRAME_MAX - 1000);
    }
    for (int i = 0; i < 50; i++) { /* until all that has been read */
        expect_service(&node);
    }
    fd = peer_connect(node.port);
    put_length(header, SMALL);
    peer_send(fd, header, 8);
    peer_send(fd, body, SMALL - 1);
    WAIT_UNTIL(counts(&node).refused == 1);
    assert_says(failure_of(&node), "too many bytes");
    peer_send(fd, body + SMALL - 1, 1);
    raw_command(fd, "SEND", NULL, 0);
    free(raw_load(fd, &len));
    for (int i = 0; i < 2; i++) {
        close(hoarders[i]);
    }
    close(fd);
    free(body);
    node_free(&node);
}

/* Commands that wait count too, also those of a peer that has left: these are
 * dropped. */
static void
test_attack_by_commands_that_wait(void **state)
{
    (void)state;
    enum { HOARDERS = 5, LEN = 24 << 10 };
    static unsigned char memory[LEN];
    node_t node = node_small(20000);
    vnx_agent_t *stopped = make_agent("stopped");
    vnx_bytes_t blob = {.len = 0};
    int fds[1 + HOARDERS];

    for (size_t i = 0; blob.len < LEN; i += 2) {
        assert_true(i < LEN);
        register_at(stopped, memory + i, 1);
        free(blob.data);
        assert_ok(vnx_agent_metadata(stopped, &blob, e));
    }
    slow_load_begin(node.agent, "stopped");
    for (int i = 0; i < 1 + HOARDERS; i++) {
        fds[i] = peer_connect(node.port);
        raw_command(fds[i], "LOAD", blob.data, blob.len);
        if (i == 0) {
            slow_load_await(&slow_has_begun);
        } else if (i == 1) {
            WAIT_UNTIL(counts(&node).open == 2);
            close(fds[i]);
            WAIT_UNTIL(counts(&node).open == 1);
        }
    }
    WAIT_UNTIL(counts(&node).load_failures == 1);
    assert_says(failure_of(&node), "too many bytes");
    assert_int_equal(counts(&node).refused, 0);
    expect_service(&node);
    atomic_store(&slow_goes_on, true);
    WAIT_UNTIL(counts(&node).loaded == HOARDERS);
    for (int i = 0; i < 1 + HOARDERS; i++) {
        if (i != 1) {
            close(fds[i]);
        }
    }
    free(blob.data);
    node_free(&node);
    vnx_agent_release(stopped);
}

/* Without free descriptors: service continues once there is one. */
static void
test_attack_fds_run_out(void **state)
{
    (void)state;
    struct rlimit limit, tight;
    vnx_listener_options_t options = {.size = sizeof options,
                                      .max_connections = 1000};
    node_t node = node_listening("here", &options);
    int fds[64];

    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    for (int i = 0; i < 64; i++) {
        fds[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        assert_true(fds[i] >= 0);
    }
    tight = limit;
    tight.rlim_cur = (rlim_t)fds[63] + 9;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &tight), 0);
    struct sockaddr_storage addr;
    socklen_t len = sizeof addr;
    int first = peer_connect(node.port);
    assert_int_equal(getpeername(first, (void *)&addr, &len), 0);
    for (int i = 0; i < 64; i++) {
        assert_int_equal(connect(fds[i], (void *)&addr, len), 0);
    }
    WAIT_UNTIL(counts(&node).evicted > 0);
    close(first);
    for (int i = 0; i < 64; i++) {
        close(fds[i]);
    }
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
    expect_service(&node);
    node_free(&node);
}

/* -- Hostile listeners ---------------------------------------------------- */

static const void *answer;
static size_t answer_len;

static void
serve_answer(peer_server_t *server, int client)
{
    char request[21];
    if (peer_recv(client, request, sizeof request) == sizeof request) {
        send(client, answer, answer_len, MSG_NOSIGNAL);
    }
    peer_serve_silence(server, client);
}

static void
expect_bad_answer(const void *data, size_t len, const char *cause)
{
    vnx_listener_options_t options = {.size = sizeof options,
                                      .timeout_ms = 1000};
    node_t node = node_new("here", &options);
    peer_server_t server = {0};

    answer = data;
    answer_len = len;
    peer_server_start(&server, serve_answer);
    assert_ok(
        vnx_listener_fetch(node.listener, HERE, server.port, NULL, 0, e));
    WAIT_UNTIL(counts(&node).pending == 0);
    assert_says(failure_of(&node), cause);
    assert_int_equal(counts(&node).loaded, 0);
    node_free(&node);
    peer_server_stop(&server);
}

static void
test_attack_by_the_requested_listener(void **state)
{
    (void)state;
    static const char http[] = "HTTP/1.1 400 Bad Request\r\n\r\n";
    static const char half[] = "\xff\0\0\0\0\0\0\0NIXLCOMM:LOADnixlSer";
    static const char junk[] = "\x14\0\0\0\0\0\0\0NIXLCOMM:LOADnixlSer";
    static const char none[] = "\x14\0\0\0\0\0\0\0IXLCOMM:LOADnixlSerD";
    expect_bad_answer(http, sizeof http - 1, "above max_frame");
    expect_bad_answer(half, sizeof half - 1, "did not arrive in time");
    expect_bad_answer(junk, sizeof junk - 1, "NIXL_ERR_MISMATCH");
    expect_bad_answer(none, sizeof none - 1, "not a frame");
    expect_bad_answer("", 0, "no metadata arrived");
}

/* Sends other commands, without a pause between two. */
static void
serve_drip(peer_server_t *server, int client)
{
    static const char frame[] = "\x0e\0\0\0\0\0\0\0NIXLCOMM:INVLx";
    size_t len = sizeof frame - 1;
    char request[21], joint[] = {frame[len - 1], frame[0]};

    if (peer_recv(client, request, sizeof request) != sizeof request ||
        send(client, frame, 1, MSG_NOSIGNAL) != 1) {
        return;
    }
    while (!peer_server_stopped(server, 1) &&
           send(client, frame + 1, len - 2, MSG_NOSIGNAL) > 0 &&
           send(client, joint, sizeof joint, MSG_NOSIGNAL) > 0) {
    }
}

static void
test_attack_by_a_listener_that_answers_something_else(void **state)
{
    (void)state;
    vnx_listener_options_t options = {.size = sizeof options,
                                      .timeout_ms = 1000};
    node_t node = node_new("here", &options);
    peer_server_t server = {0};

    peer_server_start(&server, serve_drip);
    assert_ok(
        vnx_listener_fetch(node.listener, HERE, server.port, NULL, 0, e));
    WAIT_UNTIL(counts(&node).pending == 0);
    assert_says(failure_of(&node), "NIXL_ERR_TIMEOUT");
    assert_int_equal(counts(&node).timed_out, 1);
    node_free(&node);
    peer_server_stop(&server);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_attack_other_protocols),
        cmocka_unit_test(test_attack_lengths),
        cmocka_unit_test(test_attack_invalid_frames),
        cmocka_unit_test(test_attack_truncated_frames),
        cmocka_unit_test(test_attack_metadata),
        cmocka_unit_test(test_attack_invalidation_of_any_name),
        cmocka_unit_test(test_attack_by_the_name_of_the_agent),
        cmocka_unit_test(test_attack_silence),
        cmocka_unit_test(test_attack_drip),
        cmocka_unit_test(test_attack_silence_is_allowed_after_a_command),
        cmocka_unit_test(test_attack_unread_replies),
        cmocka_unit_test(test_attack_crowd_is_evicted),
        cmocka_unit_test(test_attack_connect_and_leave),
        cmocka_unit_test(test_attack_unfinished_frames),
        cmocka_unit_test(test_attack_by_hoarders),
        cmocka_unit_test(test_attack_by_commands_that_wait),
        cmocka_unit_test(test_attack_fds_run_out),
        cmocka_unit_test(test_attack_by_the_requested_listener),
        cmocka_unit_test(
            test_attack_by_a_listener_that_answers_something_else),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
