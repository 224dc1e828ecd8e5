/*
 * The listener of the ZMQ side channel, tested with raw blocking sockets that
 * send the bytes of libzmq and invalid ones.
 */
#include "zmq_peer.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "side_channel/zmq_wire.h"

#define REQ_READY "\4\x26" READY_BODY "\3REQ\x08Identity\0\0\0\0"
#define OUR_READY_LEN 54 /* of our listener, with its header */
#define EXPECT(fd, literal) expect_bytes(fd, literal, sizeof(literal) - 1)
#define ASK_7_7 "\1\0\0\x11\x93" NAME "\7\7"
#define REPLY_0 "\1\0\0\x12" BLOB
#define REFUSAL(size, text_size, text) \
    "\1\0\1" size "\x81\xa5"           \
    "error\xd9" text_size text "\0\x9\xcb\x7f\xf8\0\0\0\0\0\0"
#define UNKNOWN REFUSAL("\x29", "\x20", VNXI_ZMQ_UNKNOWN_KEY)
#define MALFORMED REFUSAL("\x23", "\x1a", VNXI_ZMQ_MALFORMED)

static void
expect_bytes(int fd, const void *bytes, size_t len)
{
    unsigned char got[1024];

    assert_true(len <= sizeof got);
    assert_int_equal(peer_recv(fd, got, len), len);
    assert_memory_equal(got, bytes, len);
}

/* Connect as libzmq's REQ and complete the handshake. */
static int
req_connect(int port)
{
    static const char greeting[GREETING_LEN] = GREETING;
    char ready[OUR_READY_LEN];
    int fd = peer_connect(port);

    send_greeting(fd);
    expect_bytes(fd, greeting, sizeof greeting);
    SEND(fd, REQ_READY);
    assert_int_equal(peer_recv(fd, ready, sizeof ready), sizeof ready);
    assert_memory_equal(ready + 2, READY_BODY, sizeof READY_BODY - 1);
    return fd;
}

/* The reply to two ranks: the blob, then a clock that is a number. */
static void
expect_reply(int fd)
{
    unsigned char clock[11];

    EXPECT(fd, "\1\0\1\x12" BLOB);
    assert_int_equal(peer_recv(fd, clock, sizeof clock), sizeof clock);
    assert_memory_equal(clock, "\0\x9\xcb", 3);
    assert_false(vnxi_zmq_is_no_clock(clock + 2, 9));
}

static uint64_t
refusals(const vnx_side_channel_t *channel, vnx_side_channel_refusal_t why)
{
    return channel_stats(channel).refusals[why];
}

/* -- Listener: requests --------------------------------------------------- */

static void
test_zmq_listener_answers_both_versions(void **state)
{
    (void)state;
    vnx_side_channel_t *channel = zmq_new(NULL);
    int port = channel_start(channel, BLOB, BLOB_LEN);
    int fd = req_connect(port);

    for (int i = 0; i < 3; i++) { /* one connection, kept */
        SEND(fd, ASK_0_0);
        expect_reply(fd);
        SEND(fd, ASK_0);
        EXPECT(fd, REPLY_0);
    }
    channel_expect_one_connection(channel, fd, 6);
    vnx_side_channel_free(channel);
}

static vnx_side_channel_t *
start_with(const vnx_side_channel_blob_t *blobs, size_t count, int *port_p)
{
    vnx_side_channel_start_params_t params = {
        .size = sizeof params, .blobs = blobs, .count = count};
    vnx_side_channel_t *channel = zmq_new(NULL);

    assert_int_equal(
        vnx_side_channel_start_with(channel, &params, port_p, NULL), VNX_OK);
    return channel;
}

static void
test_zmq_listener_finds_ranks_in_either_form(void **state)
{
    (void)state;
    static const vnx_side_channel_blob_t blobs[] = {
        {.key = "0,3", .key_length = 3, .data = "three", .length = 5},
        {.key = "5", .key_length = 1, .data = "five", .length = 4},
        {.key = "1,5", .key_length = 3, .data = "other", .length = 5},
    };
    int port;
    vnx_side_channel_t *channel = start_with(blobs, 3, &port);
    int fd = req_connect(port);

    SEND(fd, "\1\0\0\x10\x92" NAME "\3");
    EXPECT(fd, "\1\0\0\5three");
    SEND(fd, "\1\0\0\x11\x93" NAME "\0\5");
    EXPECT(fd, "\1\0\1\4"
               "five\0\x9\xcb");
    char rest[8];
    assert_int_equal(peer_recv(fd, rest, 8), 8);
    SEND(fd, "\1\0\0\x11\x93" NAME
             "\2\5"); /* a rank of another pipeline is not served */
    EXPECT(fd, UNKNOWN);
    SEND(fd, ASK_0_0); /* nothing is served by default */
    EXPECT(fd, UNKNOWN);
    SEND(fd, "\1\0\0\x11\x93" NAME "\xff\0"); /* rank -1 */
    EXPECT(fd, UNKNOWN);
    close(fd);
    assert_int_equal(refusals(channel, VNX_SIDE_CHANNEL_REFUSED_UNKNOWN_KEY),
                     3);
    vnx_side_channel_free(channel);
}

/* The reply with these 4 bytes, and a clock. */
static void
expect_4(int fd, const char *blob)
{
    char reply[4 + 4 + 3 + 8];

    assert_int_equal(peer_recv(fd, reply, sizeof reply), sizeof reply);
    assert_memory_equal(reply, "\1\0\1\4", 4);
    assert_memory_equal(reply + 4, blob, 4);
    assert_memory_equal(reply + 8, "\0\x9\xcb", 3);
}

/* Nothing is known of what more integers mean, so they are one key. */
static void
test_zmq_listener_serves_any_number_of_integers(void **state)
{
    (void)state;
    static const vnx_side_channel_blob_t blobs[] = {
        {.key = "0,1", .key_length = 3, .data = "two.", .length = 4},
        {.key = "0,1,2", .key_length = 5, .data = "thre", .length = 4},
        {.key = "1,2", .key_length = 3, .data = "1,2.", .length = 4},
        {.key = "0,1,2,3,300", .key_length = 11, .data = "five", .length = 4},
        {.data = "all0", .length = 4},
    };
    int port;
    vnx_side_channel_t *channel = start_with(blobs, 5, &port);
    int fd = req_connect(port);

    SEND(fd, "\1\0\0\x12\x94" NAME "\0\1\2");
    expect_4(fd, "thre");
    SEND(fd, "\1\0\0\x16\x96" NAME "\0\1\2\3\xcd\1\x2c");
    expect_4(fd, "five");
    SEND(fd, "\1\0\0\x12\x94" NAME "\0\0\0"); /* the default */
    expect_4(fd, "all0");
    SEND(fd, "\1\0\0\x13\x95" NAME "\0\0\1\2");
    EXPECT(fd, UNKNOWN);
    SEND(fd, "\1\0\0\x12\x94" NAME "\1\2\0");
    EXPECT(fd, UNKNOWN);
    SEND(fd, "\1\0\0\x12\x94" NAME "\0\0\1");
    EXPECT(fd, UNKNOWN);
    close(fd);
    vnx_side_channel_free(channel);
}

static void
test_zmq_listener_answers_early_requests_in_order(void **state)
{
    (void)state;
    vnx_side_channel_t *channel = zmq_new(NULL);
    int port = channel_start(channel, BLOB, BLOB_LEN);
    int fd = req_connect(port);

    for (int i = 0; i < 200; i++) {
        SEND(fd, ASK_0 ASK_7_7 ASK_0_0);
    }
    for (int i = 0; i < 200; i++) {
        EXPECT(fd, REPLY_0);
        EXPECT(fd, UNKNOWN);
        expect_reply(fd);
    }
    close(fd);
    WAIT_UNTIL(channel_stats(channel).served == 400);
    vnx_side_channel_free(channel);
}

static void
test_zmq_listener_accepts_bytes_one_by_one(void **state)
{
    (void)state;
    vnx_side_channel_t *channel = zmq_new(NULL);
    int port = channel_start(channel, BLOB, BLOB_LEN);
    int fd = peer_connect(port);
    static const char greeting[GREETING_LEN] = GREETING;
    static const char rest[] = REQ_READY ASK_0;
    char ready[GREETING_LEN + OUR_READY_LEN];

    for (size_t i = 0; i < sizeof greeting; i++) {
        peer_send(fd, greeting + i, 1);
    }
    assert_int_equal(peer_recv(fd, ready, sizeof ready), sizeof ready);
    for (size_t i = 0; i < sizeof rest - 1; i++) {
        peer_send(fd, rest + i, 1);
    }
    EXPECT(fd, REPLY_0);
    close(fd);
    vnx_side_channel_free(channel);
}

static void
test_zmq_listener_serves_keys_by_name(void **state)
{
    (void)state;
    vnx_side_channel_t *channel = zmq_new(NULL);
    int port = channel_start(channel, BLOB, BLOB_LEN);
    vnx_side_channel_blob_t blob = {
        .key = "a key", .key_length = 5, .data = "named", .length = 5};
    static const char ready[] = "\4\x39" READY_BODY "\3REQ\x08Identity\0\0\0\0"
                                "\x09X-Vnx-Key\0\0\0\5"
                                "a key";
    char theirs[GREETING_LEN + OUR_READY_LEN];
    int fd = peer_connect(port);

    assert_int_equal(vnx_side_channel_set(channel, &blob, NULL), VNX_OK);
    send_greeting(fd);
    assert_int_equal(peer_recv(fd, theirs, sizeof theirs), sizeof theirs);
    SEND(fd, ready);
    SEND(fd, ASK_0); /* the name goes before the rank */
    EXPECT(fd, "\1\0\0\5named");
    assert_int_equal(vnx_side_channel_remove(channel, "a key", 5, NULL),
                     VNX_OK);
    SEND(fd, ASK_0); /* and nothing else is in its place */
    EXPECT(fd, UNKNOWN);
    close(fd);
    vnx_side_channel_free(channel);
}

static void
test_zmq_listener_answers_pings(void **state)
{
    (void)state;
    vnx_side_channel_options_t options = {.size = sizeof options,
                                          .client_timeout_ms = 1500};
    vnx_side_channel_t *channel = zmq_new(&options);
    int port = channel_start(channel, BLOB, BLOB_LEN);
    int fd = req_connect(port);

    SEND(fd, "\4\x0b\4PING\0\x0a"
             "abcd" ASK_0);
    EXPECT(fd, "\4\x9\4PONGabcd" REPLY_0);
    /* Kept beyond the timeout of an exchange, with or without requests. */
    for (int i = 0; i < 12; i++) {
        usleep(150000);
        SEND(fd, "\4\x07\4PING\0\x0a");
        EXPECT(fd, "\4\x5\4PONG");
    }
    SEND(fd, ASK_0);
    EXPECT(fd, REPLY_0);
    assert_int_equal(channel_stats(channel).timed_out, 0);
    close(fd);
    vnx_side_channel_free(channel);
}

/* -- Listener: invalid requests ------------------------------------------- */

static void
test_zmq_listener_answers_invalid_requests(void **state)
{
    (void)state;
    vnx_side_channel_t *channel = zmq_new(NULL);
    int port = channel_start(channel, BLOB, BLOB_LEN);
    int fd = req_connect(port);

    SEND(fd, "\1\0\0\0"); /* an empty request */
    EXPECT(fd, MALFORMED);
    SEND(fd, "\1\0\0\1\xc1"); /* no msgpack */
    EXPECT(fd, MALFORMED);
    SEND(fd, "\1\0\0\x0f\x91" NAME); /* an array of one */
    EXPECT(fd, MALFORMED);
    SEND(fd, "\1\0\0\x11\x94" NAME "\0\0"); /* two of three integers */
    EXPECT(fd, MALFORMED);
    SEND(fd, "\1\0\1\x10\x92" NAME "\0\0\0"); /* a frame too many */
    EXPECT(fd, MALFORMED);
    SEND(fd, "\1\0\1\0\0\x10\x92" NAME "\0"); /* a second delimiter */
    EXPECT(fd, MALFORMED);
    assert_int_equal(refusals(channel, VNX_SIDE_CHANNEL_REFUSED_MALFORMED), 6);
    /* Without a delimiter no answer is possible. */
    SEND(fd, "\0\x10\x92" NAME "\0");
    SEND(fd, "\0\0");
    SEND(fd, "\1\1x\0\x10\x92" NAME "\0");
    WAIT_UNTIL(refusals(channel, VNX_SIDE_CHANNEL_REFUSED_MALFORMED) == 9);
    SEND(fd, ASK_0);
    EXPECT(fd, REPLY_0);
    close(fd);
    vnx_side_channel_free(channel);
}

static void
test_zmq_listener_closes_on_broken_framing(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        size_t len;
        vnx_side_channel_refusal_t why;
    } cases[] = {
        {"\x80\0", 2, VNX_SIDE_CHANNEL_REFUSED_MALFORMED},
        {"\5\0", 2, VNX_SIDE_CHANNEL_REFUSED_MALFORMED},
        {"\4\0", 2, VNX_SIDE_CHANNEL_REFUSED_MALFORMED},
        {"\4\6\5ERROR", 8, VNX_SIDE_CHANNEL_REFUSED_MALFORMED},
        {REQ_READY, 40, VNX_SIDE_CHANNEL_REFUSED_MALFORMED}, /* again */
        {"\2\0\0\0\0\0\0\4\x0d", 9, VNX_SIDE_CHANNEL_REFUSED_TOO_LONG},
        {"\3\xff\xff\xff\xff\xff\xff\xff\xff", 9,
         VNX_SIDE_CHANNEL_REFUSED_TOO_LONG},
        {"\2\0\0\0\0\xff\xff\xff\xff", 9, VNX_SIDE_CHANNEL_REFUSED_TOO_LONG},
    };
    vnx_side_channel_t *channel = zmq_new(NULL);
    int port = channel_start(channel, BLOB, BLOB_LEN);

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint64_t before = refusals(channel, cases[i].why);
        int fd = req_connect(port);
        peer_send(fd, cases[i].bytes, cases[i].len);
        peer_expect_end(fd);
        WAIT_UNTIL(refusals(channel, cases[i].why) == before + 1);
        channel_expect(channel, port, BLOB, BLOB_LEN);
    }
    vnx_side_channel_free(channel);
}

static void
test_zmq_listener_closes_on_a_broken_handshake(void **state)
{
    (void)state;
    static const struct {
        const char *bytes; /* at the place of the greeting, or behind it */
        size_t len;
        bool greets;
    } cases[] = {
        {"GET /metadata HTTP/1.1\r\n\r\n", 26, false},
        {"\x16\3\1\2\0\1\0\1\xfc\3\3", 11, false},
        {"\0\0\0\x0cGET_METADATA", 16, false},
        {"\xff\0\0\0\0\0\0\0\1\x7e", 10, false},
        {"\xff\0\0\0\0\0\0\0\1\x7f\1\0", 12, false}, /* ZMTP 2 */
        {"\xff\0\0\0\0\0\0\0\1\x7f\3\1CURVE", 17, false},
        {ASK_0, sizeof ASK_0 - 1, true}, /* before READY */
        {"\4\x1a" READY_BODY "\3SUB", 28, true},
        {"\4\x06\5READY", 8, true}, /* of no type */
        {"\4\x07\5READY\1", 9, true},
        {"\4\6\5READX", 8, true},
        {"\2\0\0\0\0\0\0\4\x0d", 9, true},
    };
    vnx_side_channel_t *channel = zmq_new(NULL);
    int port = channel_start(channel, BLOB, BLOB_LEN);

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint64_t before = channel_stats(channel).refused;
        int fd = peer_connect(port);
        if (cases[i].greets) {
            send_greeting(fd);
        }
        peer_send(fd, cases[i].bytes, cases[i].len);
        peer_expect_end(fd);
        WAIT_UNTIL(channel_stats(channel).refused == before + 1);
    }
    channel_expect(channel, port, BLOB, BLOB_LEN);
    vnx_side_channel_free(channel);
}

/* -- Listener: attacks ---------------------------------------------------- */

static void
test_zmq_attack_endless_message(void **state)
{
    (void)state;
    vnx_side_channel_t *channel = zmq_new(NULL);
    int port = channel_start(channel, BLOB, BLOB_LEN);
    int fd = req_connect(port);

    /* Empty frames of an endless message: each costs libzmq 64 bytes while the
     * message lasts. */
    for (int i = 0; i < 65; i++) {
        SEND(fd, "\1\0");
    }
    peer_expect_end(fd);
    WAIT_UNTIL(refusals(channel, VNX_SIDE_CHANNEL_REFUSED_TOO_LONG) == 1);
    channel_expect(channel, port, BLOB, BLOB_LEN);
    vnx_side_channel_free(channel);
}

static void
test_zmq_attack_identities_are_not_exclusive(void **state)
{
    (void)state;
    vnx_side_channel_t *channel = zmq_new(NULL);
    int port = channel_start(channel, BLOB, BLOB_LEN);
    static const char ready[] =
        "\4\x2b" READY_BODY "\3REQ\x08Identity\0\0\0\5\0\x6b\x8b\x45\x68";
    int fds[8];

    /* In the form that libzmq's ROUTER assigns to clients; there, a duplicate
     * aborts the process. */
    for (int i = 0; i < 8; i++) {
        char theirs[GREETING_LEN + OUR_READY_LEN];
        fds[i] = peer_connect(port);
        send_greeting(fds[i]);
        assert_int_equal(peer_recv(fds[i], theirs, sizeof theirs),
                         sizeof theirs);
        SEND(fds[i], ready);
        SEND(fds[i], ASK_0);
    }
    for (int i = 0; i < 8; i++) {
        EXPECT(fds[i], REPLY_0);
        close(fds[i]);
    }
    channel_expect(channel, port, BLOB, BLOB_LEN);
    vnx_side_channel_free(channel);
}

static void
test_zmq_attack_client_that_never_reads(void **state)
{
    (void)state;
    vnx_side_channel_options_t options = {.size = sizeof options,
                                          .client_timeout_ms = 1000};
    vnx_side_channel_blob_t large = {
        .key = "7,7", .key_length = 3, .length = 16u << 20};
    vnx_side_channel_t *channel = zmq_new(&options);
    int port = channel_start(channel, BLOB, BLOB_LEN);
    unsigned char *bytes = pattern(large.length, 7);
    int fds[20];

    large.data = bytes;
    assert_int_equal(vnx_side_channel_set(channel, &large, NULL), VNX_OK);
    for (int i = 0; i < 20; i++) {
        fds[i] = req_connect(port);
        for (int j = 0; j < 50; j++) {
            SEND(fds[i], ASK_7_7);
        }
        channel_expect(channel, port, BLOB, BLOB_LEN);
    }
    WAIT_UNTIL(channel_stats(channel).timed_out == 20);
    WAIT_UNTIL(channel_stats(channel).open == 0);
    for (int i = 0; i < 20; i++) {
        close(fds[i]);
    }
    channel_expect(channel, port, BLOB, BLOB_LEN);
    WAIT_UNTIL(channel_stats(channel).served == 21);
    free(bytes);
    vnx_side_channel_free(channel);
}

/* A client that sends PINGs and reads no PONG is closed. */
static void
test_zmq_attack_endless_pings(void **state)
{
    (void)state;
    vnx_side_channel_t *channel = zmq_new(NULL);
    int port = channel_start(channel, BLOB, BLOB_LEN);
    int fd = req_connect(port), small = 1;
    static const char ping[] = "\4\x17\4PING\0\x0a"
                               "0123456789abcdef";

    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    SEND(fd, ASK_0);
    EXPECT(fd, REPLY_0);
    while (send(fd, ping, sizeof ping - 1, MSG_NOSIGNAL) > 0) {
    }
    close(fd);
    channel_expect(channel, port, BLOB, BLOB_LEN);
    WAIT_UNTIL(channel_stats(channel).open <= 1);
    vnx_side_channel_free(channel);
}

static void
test_zmq_attack_served_crowd_is_evicted(void **state)
{
    (void)state;
    vnx_side_channel_options_t options = {.size = sizeof options,
                                          .max_connections = 16};
    vnx_side_channel_t *channel = zmq_new(&options);
    int port = channel_start(channel, BLOB, BLOB_LEN);
    int fds[100];

    for (int i = 0; i < 100; i++) {
        fds[i] = req_connect(port);
        SEND(fds[i], ASK_0);
        EXPECT(fds[i], REPLY_0);
    }
    channel_expect(channel, port, BLOB, BLOB_LEN);
    WAIT_UNTIL(channel_stats(channel).served == 101);
    assert_true(channel_stats(channel).open <= 16);
    assert_int_equal(channel_stats(channel).evicted, 0); /* all were served */
    for (int i = 0; i < 100; i++) {
        close(fds[i]);
    }
    vnx_side_channel_free(channel);
}

static void
test_zmq_attack_silent_client_is_closed(void **state)
{
    (void)state;
    vnx_side_channel_options_t options = {.size = sizeof options,
                                          .client_timeout_ms = 1500};
    vnx_side_channel_t *channel = zmq_new(&options);
    int port = channel_start(channel, BLOB, BLOB_LEN);
    int fds[4] = {peer_connect(port), peer_connect(port)};

    SEND(fds[1], "\xff");
    fds[2] = req_connect(port); /* that asks nothing */
    fds[3] = req_connect(port);
    SEND(fds[3], ASK_0);
    EXPECT(fds[3], REPLY_0);
    SEND(fds[3], "\1\0\0\x10"); /* half of another request */
    for (int i = 0; i < 4; i++) {
        peer_expect_end(fds[i]);
    }
    WAIT_UNTIL(channel_stats(channel).open == 0);
    assert_int_equal(channel_stats(channel).timed_out, 4);
    vnx_side_channel_free(channel);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_zmq_listener_answers_both_versions),
        cmocka_unit_test(test_zmq_listener_finds_ranks_in_either_form),
        cmocka_unit_test(test_zmq_listener_serves_any_number_of_integers),
        cmocka_unit_test(test_zmq_listener_answers_early_requests_in_order),
        cmocka_unit_test(test_zmq_listener_accepts_bytes_one_by_one),
        cmocka_unit_test(test_zmq_listener_serves_keys_by_name),
        cmocka_unit_test(test_zmq_listener_answers_pings),
        cmocka_unit_test(test_zmq_listener_answers_invalid_requests),
        cmocka_unit_test(test_zmq_listener_closes_on_broken_framing),
        cmocka_unit_test(test_zmq_listener_closes_on_a_broken_handshake),
        cmocka_unit_test(test_zmq_attack_endless_message),
        cmocka_unit_test(test_zmq_attack_identities_are_not_exclusive),
        cmocka_unit_test(test_zmq_attack_client_that_never_reads),
        cmocka_unit_test(test_zmq_attack_endless_pings),
        cmocka_unit_test(test_zmq_attack_served_crowd_is_evicted),
        cmocka_unit_test(test_zmq_attack_silent_client_is_closed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
