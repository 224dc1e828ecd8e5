/* Starting, stopping, restarting, freeing: in every order, from many threads,
 * in forked children, and with nothing left behind. */
#include "side_channel_peer.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

/* The first thing that the program does with the library. */
static void
test_life_fork_is_noticed_by_a_channel_that_did_nothing(void **state)
{
    (void)state;
    vnx_side_channel_t *channel = channel_new(NULL);
    int result = -1;
    pid_t pid = fork();

    if (pid == 0) {
        _exit(vnx_side_channel_start(channel, NULL, 0, "x", 1, NULL, NULL) ==
                      VNX_ERR_NOT_ALLOWED
                  ? 0
                  : 1);
    }
    assert_int_equal(waitpid(pid, &result, 0), pid);
    assert_int_equal(result, 0);
    vnx_side_channel_free(channel);
}

static void
test_life_restart_on_the_port_serves_new_metadata(void **state)
{
    (void)state;
    vnx_side_channel_t *channel = channel_new(NULL);
    int port = channel_start(channel, "first", 5), again = 0;

    for (int i = 0; i < 20; i++) {
        char data[16];
        int len = snprintf(data, sizeof data, "blob %d", i);
        channel_expect(channel, port, i == 0 ? "first" : data + 0,
                       i == 0 ? 5 : (size_t)len);
        len = snprintf(data, sizeof data, "blob %d", i + 1);
        vnx_side_channel_shutdown(channel);
        assert_int_equal(vnx_side_channel_start(channel, NULL, port, data,
                                                (size_t)len, &again, NULL),
                         VNX_OK);
        assert_int_equal(again, port);
    }
    vnx_side_channel_free(channel);
}

static void
test_life_shutdown_when_stopped_does_nothing(void **state)
{
    (void)state;
    vnx_side_channel_t *channel = channel_new(NULL);

    vnx_side_channel_shutdown(channel);
    int port = channel_start(channel, "x", 1);
    vnx_side_channel_shutdown(channel);
    vnx_side_channel_shutdown(channel);
    channel_expect_failure(channel, port, 20000, VNX_ERR_BACKEND, "refused");
    vnx_side_channel_free(channel);
}

static void
test_life_shutdown_does_not_wait_for_clients(void **state)
{
    (void)state;
    const size_t len = 32u << 20;
    vnx_side_channel_options_t options = {.size = sizeof options,
                                          .client_timeout_ms = 3600000};
    vnx_side_channel_t *channel = channel_new(&options);
    unsigned char *data = pattern(len, 3);
    int port = channel_start(channel, data, len);
    int silent = peer_connect(port), half = peer_connect(port);
    int never_reading = peer_connect(port);

    peer_send(half, PEER_REQUEST, 5);
    peer_send(never_reading, PEER_REQUEST, PEER_REQUEST_LEN);
    WAIT_UNTIL(channel_stats(channel).open == 3);
    vnx_side_channel_shutdown(channel); /* or this test takes an hour */
    assert_int_equal(channel_stats(channel).open, 0);
    peer_expect_end(silent);
    peer_expect_end(half);
    peer_expect_end(never_reading);
    assert_int_equal(
        vnx_side_channel_start(channel, NULL, port, "y", 1, NULL, NULL),
        VNX_OK);
    channel_expect(channel, port, "y", 1);
    vnx_side_channel_free(channel);
    free(data);
}

static void
test_life_leaks_no_file_descriptor(void **state)
{
    (void)state;
    size_t fds = open_fds();

    for (int i = 0; i < 50; i++) {
        vnx_side_channel_t *channel = channel_new(NULL);
        int port = channel_start(channel, "x", 1);
        int silent = peer_connect(port);
        channel_expect(channel, port, "x", 1);
        channel_expect_failure(channel, 1, 20000, VNX_ERR_BACKEND, "refused");
        assert_int_not_equal(
            vnx_side_channel_start(channel, NULL, port, "x", 1, NULL, NULL),
            VNX_OK);
        vnx_side_channel_free(channel);
        close(silent);
    }
    assert_int_equal(open_fds(), fds);
}

typedef struct job {
    vnx_side_channel_t *channel;
    int port;
    atomic_int *running;
    const unsigned char *data;
    size_t len;
    vnx_status_t status;
} job_t;

static void *
request_often(void *arg)
{
    job_t *job = arg;
    for (int i = 0; i < 50; i++) {
        void *got = NULL;
        size_t len = 0;
        job->status = vnx_side_channel_request(
            job->channel, "127.0.0.1", job->port, 20000, &got, &len, NULL);
        if (job->status == VNX_OK &&
            (len != job->len || memcmp(got, job->data, len) != 0)) {
            job->status = VNX_ERR_MISMATCH;
        }
        free(got);
        if (job->status != VNX_OK) {
            break;
        }
    }
    return NULL;
}

static void
test_life_serves_many_clients_concurrently(void **state)
{
    (void)state;
    vnx_side_channel_t *channel = channel_new(NULL);
    unsigned char *data = pattern(40000, 9);
    int port = channel_start(channel, data, 40000);
    pthread_t threads[16];
    job_t jobs[16];

    for (int i = 0; i < 16; i++) {
        jobs[i] = (job_t){
            .channel = channel, .port = port, .data = data, .len = 40000};
        pthread_create(&threads[i], NULL, request_often, &jobs[i]);
    }
    for (int i = 0; i < 16; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(jobs[i].status, VNX_OK);
    }
    WAIT_UNTIL(channel_stats(channel).served == 16 * 50);
    vnx_side_channel_free(channel);
    free(data);
}

static void *
start_and_stop(void *arg)
{
    job_t *job = arg;
    for (int i = 0; i < 100; i++) {
        int port = 0;
        vnx_status_t status =
            vnx_side_channel_start(job->channel, NULL, 0, "x", 1, &port, NULL);
        if (status != VNX_OK && status != VNX_ERR_NOT_ALLOWED) {
            job->status = status;
        }
        if (vnx_side_channel_is_running(job->channel)) {
            (void)vnx_side_channel_port(job->channel);
        }
        (void)channel_stats(job->channel);
        vnx_side_channel_shutdown(job->channel);
    }
    return NULL;
}

static void
test_life_start_and_shutdown_from_many_threads(void **state)
{
    (void)state;
    size_t fds = open_fds();
    vnx_side_channel_t *channel = channel_new(NULL);
    pthread_t threads[8];
    job_t jobs[8];

    for (int i = 0; i < 8; i++) {
        jobs[i] = (job_t){.channel = channel, .status = VNX_OK};
        pthread_create(&threads[i], NULL, start_and_stop, &jobs[i]);
    }
    for (int i = 0; i < 8; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(jobs[i].status, VNX_OK);
    }
    assert_false(vnx_side_channel_is_running(channel));
    int port = channel_start(channel, "x", 1);
    channel_expect(channel, port, "x", 1);
    vnx_side_channel_free(channel);
    assert_int_equal(open_fds(), fds);
}

static void *
request_once(void *arg)
{
    job_t *job = arg;
    void *got = NULL;
    size_t len;

    job->status = vnx_side_channel_request(job->channel, "127.0.0.1",
                                           job->port, 300, &got, &len, NULL);
    return NULL;
}

static atomic_int held; /* clients of serve_hold */

static void
serve_hold(peer_server_t *server, int client)
{
    atomic_fetch_add(&held, 1);
    peer_serve_silence(server, client);
}

static void
test_life_free_while_a_request_runs(void **state)
{
    (void)state;
    vnx_side_channel_t *channel = channel_new(NULL);
    peer_server_t server = {0};
    pthread_t thread;

    peer_server_start(&server, serve_hold);
    job_t job = {.channel = channel, .port = server.port};
    channel_start(channel, "x", 1);
    pthread_create(&thread, NULL, request_once, &job);
    WAIT_UNTIL(atomic_load(&held) == 1);
    vnx_side_channel_free(channel);
    pthread_join(thread, NULL);
    assert_int_equal(job.status, VNX_ERR_TIMEOUT);
    peer_server_stop(&server);
}

static void *
shutdown_once(void *arg)
{
    vnx_side_channel_shutdown(((job_t *)arg)->channel);
    return NULL;
}

static void
test_life_port_is_free_when_shutdown_returns(void **state)
{
    (void)state;
    vnx_side_channel_t *channel = channel_new(NULL);
    vnx_side_channel_t *other = channel_new(NULL);

    for (int i = 0; i < 50; i++) {
        int port = channel_start(channel, "x", 1);
        pthread_t thread;
        job_t job = {.channel = channel};
        pthread_create(&thread, NULL, shutdown_once, &job);
        vnx_side_channel_shutdown(channel);
        assert_int_equal(
            vnx_side_channel_start(other, NULL, port, "y", 1, NULL, NULL),
            VNX_OK);
        vnx_side_channel_shutdown(other);
        pthread_join(thread, NULL);
    }
    vnx_side_channel_free(channel);
    vnx_side_channel_free(other);
}

static int
listening_sockets(void)
{
    int count = 0;
    for (int fd = 0; fd < 1024; fd++) {
        int listening = 0;
        socklen_t len = sizeof listening;
        if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &len) == 0) {
            count += listening;
        }
    }
    return count;
}

/* Everything that a forked child may call on its parent's listener; which
 * expectation was missed, 0 for none. */
static int
use_in_child(vnx_side_channel_t *channel, int port)
{
    void *got;
    size_t len;

    if (listening_sockets() != 0) {
        return 1;
    }
    if (vnx_side_channel_is_running(channel) ||
        vnx_side_channel_port(channel) != 0) {
        return 2;
    }
    vnx_side_channel_shutdown(channel);
    if (vnx_side_channel_start(channel, NULL, 0, "x", 1, NULL, NULL) !=
        VNX_ERR_NOT_ALLOWED) {
        return 3;
    }
    if (vnx_side_channel_request(channel, "127.0.0.1", port, 20000, &got, &len,
                                 NULL) != VNX_OK) {
        return 4;
    }
    free(got);
    vnx_side_channel_free(channel);
    return 0;
}

static void
test_life_forked_child_does_not_hang_or_interfere(void **state)
{
    (void)state;
    vnx_side_channel_t *channel = channel_new(NULL);
    int port = channel_start(channel, "x", 1), result = -1;
    pid_t pid = fork();

    if (pid == 0) {
        alarm(60); /* a hang ends as a failure */
        _exit(use_in_child(channel, port));
    }
    assert_int_equal(waitpid(pid, &result, 0), pid);
    assert_true(WIFEXITED(result));
    assert_int_equal(WEXITSTATUS(result), 0);
    channel_expect(channel, port, "x", 1);
    vnx_side_channel_free(channel);
}

static void
test_life_forked_child_does_not_keep_the_port(void **state)
{
    (void)state;
    vnx_side_channel_t *channel = channel_new(NULL);
    int port = channel_start(channel, "old", 3), alive[2];
    int silent = peer_connect(port);
    char byte;

    WAIT_UNTIL(channel_stats(channel).open == 1);
    assert_int_equal(pipe(alive), 0);
    pid_t pid = fork(); /* has a copy of the client's socket too */
    if (pid == 0) {
        close(alive[1]);
        _exit(read(alive[0], &byte, 1) == 0 ? 0 : 1);
    }
    vnx_side_channel_shutdown(channel);
    peer_expect_end(silent);
    channel_expect_failure(channel, port, 20000, VNX_ERR_BACKEND, "refused");
    assert_int_equal(
        vnx_side_channel_start(channel, NULL, port, "new", 3, NULL, NULL),
        VNX_OK);
    channel_expect(channel, port, "new", 3);
    vnx_side_channel_free(channel);
    close(alive[1]);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    close(alive[0]);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(
            test_life_fork_is_noticed_by_a_channel_that_did_nothing),
        cmocka_unit_test(test_life_restart_on_the_port_serves_new_metadata),
        cmocka_unit_test(test_life_shutdown_when_stopped_does_nothing),
        cmocka_unit_test(test_life_shutdown_does_not_wait_for_clients),
        cmocka_unit_test(test_life_leaks_no_file_descriptor),
        cmocka_unit_test(test_life_serves_many_clients_concurrently),
        cmocka_unit_test(test_life_start_and_shutdown_from_many_threads),
        cmocka_unit_test(test_life_free_while_a_request_runs),
        cmocka_unit_test(test_life_port_is_free_when_shutdown_returns),
        cmocka_unit_test(test_life_forked_child_does_not_hang_or_interfere),
        cmocka_unit_test(test_life_forked_child_does_not_keep_the_port),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
