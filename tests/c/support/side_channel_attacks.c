#include "side_channel_attacks.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "side_channel/side_channel.h"

#define SERVED 20 /* exchanges that must succeed meanwhile */

void
expect_service(vnx_side_channel_t *channel, int port)
{
    for (int i = 0; i < SERVED; i++) {
        channel_expect(channel, port, BLOB, BLOB_LEN);
    }
}

/* -- Crowds --------------------------------------------------------------- */

void
expect_crowd_held(const attacked_t *attacked, size_t most, const void *data,
                  size_t len)
{
    size_t limit = raise_fd_limit();
    size_t count = limit > 2 * most + 400 ? most : (limit - 200) / 2;
    vnx_side_channel_options_t options = {
        .size = sizeof options, .max_connections = (uint32_t)count + 100};
    vnx_side_channel_t *channel = attacked->make(&options);
    int port = channel_start(channel, BLOB, BLOB_LEN);
    int *fds = calloc(count, sizeof *fds);

    assert_non_null(fds);
    for (size_t i = 0; i < count; i++) {
        fds[i] = peer_connect(port);
        if (len > 0) {
            peer_send(fds[i], data, len);
        }
    }
    expect_service(channel, port);
    assert_true(channel_stats(channel).served >= SERVED - 1);
    assert_int_equal(channel_stats(channel).evicted, 0);
    vnx_side_channel_free(channel); /* does not wait for them */
    for (size_t i = 0; i < count; i++) {
        peer_expect_end(fds[i]);
    }
    free(fds);
}

void
expect_crowd_gives_way(const attacked_t *attacked)
{
    vnx_side_channel_options_t options = {.size = sizeof options,
                                          .max_connections = 16};
    vnx_side_channel_t *channel = attacked->make(&options);
    int port = channel_start(channel, BLOB, BLOB_LEN);
    int fds[300];

    raise_fd_limit();
    for (int i = 0; i < 300; i++) {
        fds[i] = peer_connect(port);
    }
    expect_service(channel, port);
    WAIT_UNTIL(channel_stats(channel).accepted == 300 + SERVED);
    assert_true(channel_stats(channel).evicted >= 300 - 16);
    assert_true(channel_stats(channel).open <= 16);
    peer_expect_end(fds[0]);
    for (int i = 1; i < 300; i++) {
        close(fds[i]);
    }
    vnx_side_channel_free(channel);
}

void
expect_storm_leaves_nothing(const attacked_t *attacked, int count)
{
    vnx_side_channel_t *channel = attacked->make(NULL);
    int port = channel_start(channel, BLOB, BLOB_LEN);

    expect_service(channel, port);
    WAIT_UNTIL(channel_stats(channel).open == 0);
    size_t fds = open_fds();
    for (size_t cut = 0; cut <= attacked->request_len; cut++) {
        int fd = peer_connect(port);
        peer_send(fd, attacked->request, cut);
        peer_reset(fd);
        channel_expect(channel, port, BLOB, BLOB_LEN);
    }
    for (int i = 0; i < count; i++) {
        int fd = peer_connect(port);
        if (i % 2 == 0) {
            close(fd);
        } else {
            peer_reset(fd);
        }
    }
    expect_service(channel, port);
    WAIT_UNTIL(channel_stats(channel).open == 0);
    WAIT_UNTIL(open_fds() <= fds); /* one of them may have been closing */
    vnx_side_channel_free(channel);
}

/* -- Clients that never read ---------------------------------------------- */

int
never_reading(const attacked_t *attacked, int port)
{
    int small = 4096, fd = peer_connect(port);
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    peer_send(fd, attacked->request, attacked->request_len);
    return fd;
}

void
expect_never_reading_give_way(const attacked_t *attacked)
{
    const size_t len = 16u << 20; /* more than the kernel's buffers hold */
    vnx_side_channel_options_t options = {.size = sizeof options,
                                          .max_connections = 8,
                                          .client_timeout_ms = 3600000};
    vnx_side_channel_t *channel = attacked->make(&options);
    unsigned char *data = pattern(len, 1);
    int port = channel_start(channel, data, len);
    int fds[8];

    for (int i = 0; i < 8; i++) {
        fds[i] = never_reading(attacked, port);
    }
    WAIT_UNTIL(channel_stats(channel).open == 8);
    for (int i = 0; i < 3; i++) {
        channel_expect(channel, port, data, len);
    }
    assert_true(channel_stats(channel).evicted >= 1);
    for (int i = 0; i < 8; i++) {
        close(fds[i]);
    }
    free(data);
    vnx_side_channel_free(channel);
}

/* -- No file descriptors -------------------------------------------------- */

/* One exchange that takes no file descriptor but `fd`. */
static void
exchange_over(const attacked_t *attacked, int fd)
{
    char reply[4096] = "";
    size_t have = 0;

    peer_send(fd, attacked->request, attacked->request_len);
    while (memmem(reply, have, BLOB, BLOB_LEN) == NULL) {
        ssize_t count = recv(fd, reply + have, sizeof reply - have, 0);
        assert_true(count > 0);
        have += (size_t)count;
    }
    close(fd);
}

void
expect_no_fds_are_survived(const attacked_t *attacked)
{
    static int hoard[4096];
    struct rlimit before, low;
    size_t count = 0;
    vnx_side_channel_options_t options = {.size = sizeof options,
                                          .client_timeout_ms = 3600000};
    vnx_side_channel_t *channel = attacked->make(&options);
    int port = channel_start(channel, BLOB, BLOB_LEN);

    getrlimit(RLIMIT_NOFILE, &before);
    low = before;
    low.rlim_cur = open_fds() + 64;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &low), 0);
    while (count < 4096 && (hoard[count] = dup(0)) >= 0) {
        count++;
    }
    assert_int_equal(errno, EMFILE);
    /* Without a connection to evict, it is accepted and closed at once. */
    close(hoard[--count]);
    peer_expect_end(peer_connect(port));
    assert_int_equal(channel_stats(channel).open, 0);
    /* A silent connection is evicted for the next one. */
    close(hoard[--count]);
    int silent = peer_connect(port);
    WAIT_UNTIL(channel_stats(channel).open == 1);
    close(hoard[--count]);
    exchange_over(attacked, peer_connect(port));
    peer_expect_end(silent);
    while (count > 0) {
        close(hoard[--count]);
    }
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
    expect_service(channel, port);
    assert_true(channel_stats(channel).evicted >= 2);
    vnx_side_channel_free(channel);
}

/* -- Servers -------------------------------------------------------------- */

void
expect_request_ends_in_time(channel_make_t *make,
                            void (*serve)(peer_server_t *, int),
                            const char *text)
{
    vnx_side_channel_t *channel = make(NULL);
    peer_server_t server = {0};

    peer_server_start(&server, serve);
    uint64_t start = vnxi_clock_ns();
    channel_expect_failure(channel, server.port, 1000, VNX_ERR_TIMEOUT, text);
    uint64_t took = vnxi_clock_ns() - start;
    assert_true(took >= 1000000000);
    assert_true(took < vnx_test_limit(20));
    peer_server_stop(&server);
    vnx_side_channel_free(channel);
}

static bool
give_up(void *arg)
{
    return ++*(int *)arg == 3;
}

void
expect_request_is_interrupted(channel_make_t *make)
{
    vnx_side_channel_t *channel = make(NULL);
    peer_server_t server = {0};
    vnx_side_channel_answer_t answer;
    vnxi_requests_t *requests;
    int count = 0;

    peer_server_start(&server, peer_serve_silence);
    vnx_side_channel_request_params_t params = {.size = sizeof params,
                                                .host = "127.0.0.1",
                                                .port = server.port,
                                                .timeout_ms = 60000};
    assert_int_equal(vnxi_requests_make(channel, &params, 1, &requests, NULL),
                     VNX_OK);
    assert_false(vnxi_requests_run(requests, give_up, &count));
    assert_int_equal(count, 3);
    vnxi_requests_take(requests, 0, &answer);
    assert_int_equal(answer.status, VNX_ERR_CANCELED);
    assert_null(answer.metadata);
    assert_non_null(strstr(answer.error.cause, "interrupted"));
    vnxi_requests_free(requests);
    peer_server_stop(&server);
    vnx_side_channel_free(channel);
}
