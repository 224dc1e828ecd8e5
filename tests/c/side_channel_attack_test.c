/* Clients and servers that mean ill, or are ill: each costs its own exchange,
 * nobody else's. */
#include "side_channel_crowd.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"

/* -- Clients -------------------------------------------------------------- */

static void
crowd(const void *data, size_t len)
{
    expect_crowd_held(channel_new, 2000, data, len);
}

static void
test_attack_silent_crowd(void **state)
{
    (void)state;
    crowd(NULL, 0);
}

static void
test_attack_one_byte_crowd(void **state)
{
    (void)state;
    crowd("\0", 1);
}

static void
test_attack_half_frame_crowd(void **state)
{
    (void)state;
    crowd(PEER_REQUEST, PEER_REQUEST_LEN - 1);
}

static void
test_attack_crowd_beyond_the_table_gives_way(void **state)
{
    (void)state;
    expect_crowd_gives_way(channel_new);
}

static void
test_attack_silent_client_is_cut_off_at_its_deadline(void **state)
{
    (void)state;
    vnx_side_channel_options_t options = {.size = sizeof options,
                                          .client_timeout_ms = 50};
    vnx_side_channel_t *channel = channel_new(&options);
    int port = channel_start(channel, BLOB, BLOB_LEN);

    peer_expect_end(peer_connect(port));
    assert_int_equal(channel_stats(channel).timed_out, 1);
    WAIT_UNTIL(channel_stats(channel).open == 0);
    vnx_side_channel_free(channel);
}

static void
test_attack_drip_does_not_extend_the_deadline(void **state)
{
    (void)state;
    vnx_side_channel_options_t options = {.size = sizeof options,
                                          .client_timeout_ms = 1000};
    vnx_side_channel_t *channel = channel_new(&options);
    int port = channel_start(channel, BLOB, BLOB_LEN);
    int fd = peer_connect(port);
    uint64_t start = vnxi_clock_ns();

    /* 16 bytes at one in 150 ms would take 2.4 s. */
    for (int i = 0; i < PEER_REQUEST_LEN; i++) {
        if (send(fd, &PEER_REQUEST[i], 1, MSG_NOSIGNAL) != 1) {
            break;
        }
        channel_expect(channel, port, BLOB, BLOB_LEN);
        usleep(150000);
    }
    peer_expect_end(fd);
    assert_int_equal(channel_stats(channel).timed_out, 1);
    assert_true(vnxi_clock_ns() - start < UINT64_C(10000000000));
    vnx_side_channel_free(channel);
}

static void
test_attack_garbage_costs_its_connection(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        size_t len;
    } garbage[] = {
        {"\xff\xff\xff\xff", 4},                 /* an absurd length */
        {"\0\0\x04\x0d", 4},                     /* one above the cap */
        {"\0\0\0\0", 4},                         /* an empty request */
        {"\0\0\0\014get_metadata", 16},          /* another request */
        {"\0\0\0\013GET_METADAT", 15},           /* a shorter one */
        {"\0\0\0\015GET_METADATA!", 17},         /* a longer one */
        {"\014\0\0\0GET_METADATA", 16},          /* the other byte order */
        {"GET / HTTP/1.1\r\n\r\n", 18},          /* HTTP */
        {"\x16\x03\x01\x02\0\x01\0\x01\xfc", 9}, /* TLS */
        {"\xff\0\0\0\0\0\0\0\x01\x7f", 10},      /* ZMTP */
    };
    const size_t count = sizeof garbage / sizeof garbage[0];
    vnx_side_channel_t *channel = channel_new(NULL);
    int port = channel_start(channel, BLOB, BLOB_LEN);

    for (size_t i = 0; i < count; i++) {
        int fd = peer_connect(port);
        peer_send(fd, garbage[i].bytes, garbage[i].len);
        peer_expect_end(fd);
        channel_expect(channel, port, BLOB, BLOB_LEN);
    }
    assert_int_equal(channel_stats(channel).refused, count);
    vnx_side_channel_free(channel);
}

static void
test_attack_largest_request_is_read_and_refused(void **state)
{
    (void)state;
    unsigned char frame[4 + 1036] = {0, 0, 0x04, 0x0c};
    vnx_side_channel_t *channel = channel_new(NULL);
    int port = channel_start(channel, BLOB, BLOB_LEN);
    int fd = peer_connect(port);

    memcpy(frame + 4, "GET_METADATA", 12);
    peer_send(fd, frame, sizeof frame - 1);
    channel_expect(channel, port, BLOB, BLOB_LEN);
    assert_int_equal(channel_stats(channel).refused, 0);
    peer_send(fd, frame + sizeof frame - 1, 1);
    peer_expect_end(fd);
    assert_int_equal(channel_stats(channel).refused, 1);
    vnx_side_channel_free(channel);
}

static void
test_attack_resets_in_mid_frame(void **state)
{
    (void)state;
    vnx_side_channel_t *channel = channel_new(NULL);
    int port = channel_start(channel, BLOB, BLOB_LEN);

    for (size_t cut = 0; cut <= PEER_REQUEST_LEN; cut++) {
        int fd = peer_connect(port);
        peer_send(fd, PEER_REQUEST, cut);
        peer_reset(fd);
        channel_expect(channel, port, BLOB, BLOB_LEN);
    }
    WAIT_UNTIL(channel_stats(channel).open == 0);
    vnx_side_channel_free(channel);
}

static void
test_attack_connect_and_close_storm(void **state)
{
    (void)state;
    vnx_side_channel_t *channel = channel_new(NULL);
    int port = channel_start(channel, BLOB, BLOB_LEN);
    size_t fds = open_fds();

    for (int i = 0; i < 2000; i++) {
        int fd = peer_connect(port);
        if (i % 2 == 0) {
            close(fd);
        } else {
            peer_reset(fd);
        }
    }
    expect_service(channel, port);
    WAIT_UNTIL(channel_stats(channel).open == 0);
    WAIT_UNTIL(open_fds() == fds);
    vnx_side_channel_free(channel);
}

/* A reply that the kernel's buffers cannot hold, and who never reads it. */
static int
never_reading(int port)
{
    int small = 4096, fd = peer_connect(port);
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    peer_send(fd, PEER_REQUEST, PEER_REQUEST_LEN);
    return fd;
}

static void
test_attack_never_reading_readers_are_reset(void **state)
{
    (void)state;
    const size_t len = 32u << 20;
    vnx_side_channel_options_t options = {.size = sizeof options,
                                          .client_timeout_ms = 500};
    vnx_side_channel_t *channel = channel_new(&options);
    unsigned char *data = pattern(len, 1);
    int port = channel_start(channel, data, len);
    int fds[32];
    char byte;

    for (int i = 0; i < 32; i++) {
        fds[i] = never_reading(port);
    }
    WAIT_UNTIL(channel_stats(channel).timed_out == 32);
    WAIT_UNTIL(channel_stats(channel).open == 0);
    assert_int_equal(channel_stats(channel).served, 0);
    for (int i = 0; i < 32; i++) { /* what they got ends in a reset */
        while (recv(fds[i], &byte, 1, MSG_TRUNC | MSG_DONTWAIT) > 0) {
        }
        close(fds[i]);
    }
    free(data);
    vnx_side_channel_free(channel);
}

static void
test_attack_never_reading_readers_give_way(void **state)
{
    (void)state;
    const size_t len = 32u << 20;
    vnx_side_channel_options_t options = {.size = sizeof options,
                                          .max_connections = 8,
                                          .client_timeout_ms = 3600000};
    vnx_side_channel_t *channel = channel_new(&options);
    unsigned char *data = pattern(len, 1);
    int port = channel_start(channel, data, len);
    int fds[8];

    for (int i = 0; i < 8; i++) {
        fds[i] = never_reading(port);
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

static void
test_attack_served_client_that_stays_gives_way(void **state)
{
    (void)state;
    vnx_side_channel_options_t options = {.size = sizeof options,
                                          .max_connections = 2,
                                          .client_timeout_ms = 3600000};
    vnx_side_channel_t *channel = channel_new(&options);
    int port = channel_start(channel, BLOB, BLOB_LEN);
    char got[4 + BLOB_LEN];
    int fds[4];

    for (int i = 0; i < 4; i++) {
        fds[i] = peer_connect(port);
        peer_send(fds[i], PEER_REQUEST, PEER_REQUEST_LEN);
        assert_int_equal(peer_recv(fds[i], got, sizeof got), sizeof got);
    }
    WAIT_UNTIL(channel_stats(channel).served == 4);
    assert_true(channel_stats(channel).open <= 2);
    assert_int_equal(channel_stats(channel).evicted, 0);
    for (int i = 0; i < 4; i++) {
        peer_expect_end(fds[i]);
    }
    vnx_side_channel_free(channel);
}

/* The process has no file descriptor left for one more client. */
static void
test_attack_out_of_file_descriptors(void **state)
{
    (void)state;
    static int hoard[4096];
    struct rlimit before, low;
    size_t count = 0;
    vnx_side_channel_options_t options = {.size = sizeof options,
                                          .client_timeout_ms = 3600000};
    vnx_side_channel_t *channel = channel_new(&options);
    int port = channel_start(channel, BLOB, BLOB_LEN);

    getrlimit(RLIMIT_NOFILE, &before);
    low = before;
    low.rlim_cur = open_fds() + 64;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &low), 0);
    while (count < 4096 && (hoard[count] = dup(0)) >= 0) {
        count++;
    }
    assert_int_equal(errno, EMFILE);
    /* Nobody can give way: it is taken and closed, not left waiting. */
    close(hoard[--count]);
    peer_expect_end(peer_connect(port));
    assert_int_equal(channel_stats(channel).open, 0);
    /* A silent one gives way to the next. */
    close(hoard[--count]);
    int silent = peer_connect(port);
    WAIT_UNTIL(channel_stats(channel).open == 1);
    close(hoard[--count]);
    expect_service(channel, port);
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

static void
expect_timeout(void (*serve)(peer_server_t *, int), const char *text)
{
    vnx_side_channel_t *channel = channel_new(NULL);
    peer_server_t server = {0};

    peer_server_start(&server, serve);
    uint64_t start = vnxi_clock_ns();
    channel_expect_failure(channel, server.port, 200, VNX_ERR_TIMEOUT, text);
    uint64_t took = vnxi_clock_ns() - start;
    assert_true(took >= 200000000);
    assert_true(took < 10 * UINT64_C(200000000));
    peer_server_stop(&server);
    vnx_side_channel_free(channel);
}

static void
test_attack_silent_server_holds_nobody(void **state)
{
    (void)state;
    expect_timeout(peer_serve_silence, "receiving from 127.0.0.1: timed out");
}

/* A byte in 20 ms: a timeout of each read would never come. */
static void
serve_drip(peer_server_t *server, int client)
{
    static const char reply[] = "\0\0\x10\0";

    for (int i = 0; !peer_server_stopped(server, 20); i++) {
        const char *byte = i < 4 ? &reply[i] : "x";
        if (send(client, byte, 1, MSG_NOSIGNAL) != 1) {
            return;
        }
    }
}

static void
test_attack_dripping_server_holds_nobody(void **state)
{
    (void)state;
    expect_timeout(serve_drip, "receiving from");
}

/* The socket never runs dry, the reply never ends. */
static void
serve_flood(peer_server_t *server, int client)
{
    static char junk[1 << 16];

    send(client, "\x10\0\0\0", 4, MSG_NOSIGNAL);
    while (!peer_server_stopped(server, 0)) {
        if (send(client, junk, 512, MSG_NOSIGNAL) <= 0) {
            return;
        }
    }
}

static void
test_attack_flooding_server_meets_the_deadline(void **state)
{
    (void)state;
    vnx_side_channel_t *channel = channel_new(NULL);
    peer_server_t server = {0};
    void *got = NULL;
    size_t len;

    peer_server_start(&server, serve_flood);
    uint64_t start = vnxi_clock_ns();
    vnx_status_t status = vnx_side_channel_request(
        channel, "127.0.0.1", server.port, 100, &got, &len, NULL);
    assert_true(status == VNX_ERR_TIMEOUT || status == VNX_OK);
    assert_true(vnxi_clock_ns() - start < 10 * UINT64_C(100000000));
    free(got);
    peer_server_stop(&server);
    vnx_side_channel_free(channel);
}

static void
expect_refusal(const char *reply, size_t len, vnx_status_t status,
               const char *text)
{
    vnx_side_channel_t *channel = channel_new(NULL);
    peer_server_t server = {.reply = reply, .reply_len = len};

    peer_server_start(&server, peer_serve_reply);
    channel_expect_failure(channel, server.port, 20000, status, text);
    peer_server_stop(&server);
    vnx_side_channel_free(channel);
}

static void
test_attack_broken_replies_are_errors_that_say_so(void **state)
{
    (void)state;
    expect_refusal("", 0, VNX_ERR_BACKEND, "closed without a reply");
    expect_refusal("\0\0\0", 3, VNX_ERR_BACKEND, "in the reply's length");
    expect_refusal("\0\0\0\010half", 8, VNX_ERR_BACKEND,
                   "closed after 4 of 8 bytes");
    expect_refusal("\xff\xff\xff\xff", 4, VNX_ERR_MISMATCH,
                   "4294967295 bytes is above max_frame (268435456)");
    expect_refusal("HTTP/1.1 400 Bad Request\r\n\r\n", 28, VNX_ERR_MISMATCH,
                   "above max_frame");
}

static void
serve_reset(peer_server_t *server, int client)
{
    char request[PEER_REQUEST_LEN];

    (void)server;
    peer_recv(client, request, sizeof request);
    send(client, "\0\0\0\010half", 8, MSG_NOSIGNAL);
    peer_reset(dup(client)); /* the option is the socket's, not the copy's */
}

static void
test_attack_server_that_resets_is_an_error(void **state)
{
    (void)state;
    vnx_side_channel_t *channel = channel_new(NULL);
    peer_server_t server = {0};

    peer_server_start(&server, serve_reset);
    channel_expect_failure(channel, server.port, 20000, VNX_ERR_BACKEND,
                           "receiving from 127.0.0.1: Connection reset");
    peer_server_stop(&server);
    vnx_side_channel_free(channel);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_attack_silent_crowd),
        cmocka_unit_test(test_attack_one_byte_crowd),
        cmocka_unit_test(test_attack_half_frame_crowd),
        cmocka_unit_test(test_attack_crowd_beyond_the_table_gives_way),
        cmocka_unit_test(test_attack_silent_client_is_cut_off_at_its_deadline),
        cmocka_unit_test(test_attack_drip_does_not_extend_the_deadline),
        cmocka_unit_test(test_attack_garbage_costs_its_connection),
        cmocka_unit_test(test_attack_largest_request_is_read_and_refused),
        cmocka_unit_test(test_attack_resets_in_mid_frame),
        cmocka_unit_test(test_attack_connect_and_close_storm),
        cmocka_unit_test(test_attack_never_reading_readers_are_reset),
        cmocka_unit_test(test_attack_never_reading_readers_give_way),
        cmocka_unit_test(test_attack_served_client_that_stays_gives_way),
        cmocka_unit_test(test_attack_out_of_file_descriptors),
        cmocka_unit_test(test_attack_silent_server_holds_nobody),
        cmocka_unit_test(test_attack_dripping_server_holds_nobody),
        cmocka_unit_test(test_attack_flooding_server_meets_the_deadline),
        cmocka_unit_test(test_attack_broken_replies_are_errors_that_say_so),
        cmocka_unit_test(test_attack_server_that_resets_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
