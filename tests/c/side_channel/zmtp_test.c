/* ZMTP against the bytes of docs/wire.md, which are those of libzmq. */
#include "vnx_test.h"

#include <stdbool.h>
#include <string.h>

#include "side_channel/zmq_wire.h"

static const unsigned char greeting_bytes[64] =
    "\xff\0\0\0\0\0\0\0\1\x7f\3\1NULL";

/* READY of a REQ of libzmq 4.3 and of its ROUTER: flags, length, body. */
#define REQ_READY                                 \
    "\4\x26\5READY\x0bSocket-Type\0\0\0\3REQ\x08" \
    "Identity\0\0\0\0"
#define ROUTER_READY                                 \
    "\4\x29\5READY\x0bSocket-Type\0\0\0\6ROUTER\x08" \
    "Identity\0\0\0\0"

static void
test_zmtp_greeting_has_its_bytes(void **state)
{
    (void)state;
    unsigned char greeting[VNXI_ZMTP_GREETING];

    vnxi_zmtp_greeting(greeting);
    assert_memory_equal(greeting, greeting_bytes, sizeof greeting);
}

static void
test_zmtp_greeting_is_checked_incrementally(void **state)
{
    (void)state;
    static const struct {
        size_t at;
        unsigned char byte;
        bool is_fine;
    } changes[] = {
        {0, 'G', false}, {0, 0x16, false}, {0, 0, false},  {1, 7, true},
        {8, 0, true},    {9, 0x7e, false}, {10, 2, false}, {10, 1, false},
        {10, 4, true},   {11, 0, true},    {11, 9, true},  {12, 'C', false},
        {15, 0, false},  {16, 'X', false}, {31, 1, false}, {32, 1, true},
        {33, 1, true},   {63, 0xff, true},
    };
    for (size_t i = 0; i < sizeof changes / sizeof changes[0]; i++) {
        unsigned char greeting[64];
        memcpy(greeting, greeting_bytes, sizeof greeting);
        greeting[changes[i].at] = changes[i].byte;
        for (size_t len = 0; len <= sizeof greeting; len++) {
            bool fine = vnxi_zmtp_greeting_check(greeting, len) == NULL;
            /* Each error is detected at its byte. */
            assert_int_equal(fine, changes[i].is_fine || len <= changes[i].at);
        }
    }
}

static void
expect_header(const char *bytes, size_t len, bool more, bool command,
              uint64_t size)
{
    vnxi_zmtp_frame_t frame;
    const unsigned char *header = (const unsigned char *)bytes;

    for (size_t have = 0; have < len; have++) {
        assert_int_equal(vnxi_zmtp_header_parse(header, have, &frame),
                         VNXI_ZMTP_MORE);
    }
    assert_int_equal(vnxi_zmtp_header_parse(header, len, &frame),
                     VNXI_ZMTP_WHOLE);
    assert_int_equal(frame.header, len);
    assert_int_equal(frame.len, size);
    assert_int_equal(frame.more, more);
    assert_int_equal(frame.command, command);
    if (!command) {
        unsigned char again[VNXI_ZMTP_HEADER_MAX];
        bool is_shortest = size > 255 || len == 2;
        size_t again_len = vnxi_zmtp_header_encode(more, size, again);
        assert_int_equal(again_len == len, is_shortest);
        if (is_shortest) {
            assert_memory_equal(again, bytes, len);
        }
    }
}

static void
test_zmtp_headers_of_frames(void **state)
{
    (void)state;
    expect_header("\0\0", 2, false, false, 0);
    expect_header("\1\0", 2, true, false, 0);
    expect_header("\0\xff", 2, false, false, 255);
    expect_header("\2\0\0\0\0\0\0\1\0", 9, false, false, 256);
    expect_header("\3\0\0\0\0\4\0\0\0", 9, true, false, 64u << 20);
    expect_header("\2\xff\xff\xff\xff\xff\xff\xff\xff", 9, false, false,
                  UINT64_MAX);
    expect_header("\2\0\0\0\0\0\0\0\5", 9, false, false, 5);
    expect_header("\4\x26", 2, false, true, 0x26);
    expect_header("\6\0\0\0\0\0\0\1\1", 9, false, true, 257);
}

static void
test_zmtp_refuses_unknown_flags(void **state)
{
    (void)state;
    for (unsigned flags = 0; flags < 256; flags++) {
        unsigned char header[9] = {(unsigned char)flags};
        vnxi_zmtp_frame_t frame;
        bool good = flags < 8 && (flags & 5) != 5;
        assert_int_equal(vnxi_zmtp_header_parse(header, 9, &frame),
                         good ? VNXI_ZMTP_WHOLE : VNXI_ZMTP_BAD);
    }
}

static bool
parse(const char *command, size_t len, vnxi_zmtp_ready_t *ready_p)
{
    return vnxi_zmtp_ready_parse((const unsigned char *)command + 2, len - 2,
                                 ready_p);
}

static void
test_zmtp_ready_of_libzmq(void **state)
{
    (void)state;
    vnxi_zmtp_ready_t ready;

    assert_true(parse(REQ_READY, sizeof REQ_READY - 1, &ready));
    assert_true(vnxi_zmtp_type_is(&ready, "REQ"));
    assert_false(vnxi_zmtp_type_is(&ready, "RE"));
    assert_false(vnxi_zmtp_type_is(&ready, "REQ "));
    assert_null(ready.key);
    assert_false(ready.knows_keys);
    assert_true(parse(ROUTER_READY, sizeof ROUTER_READY - 1, &ready));
    assert_true(vnxi_zmtp_type_is(&ready, "ROUTER"));
    assert_true(parse("\4\6\5READY", 8, &ready));
    assert_false(vnxi_zmtp_type_is(&ready, ""));
}

static void
test_zmtp_our_ready_has_its_bytes(void **state)
{
    (void)state;
    static const char client[] = "\4\x37" /* and what REQ_READY has */
                                 "\5READY\x0bSocket-Type\0\0\0\3REQ\x08"
                                 "Identity\0\0\0\0"
                                 "\x09X-Vnx-Key\0\0\0\3"
                                 "0,1";
    static const char listener[] = "\4\x34"
                                   "\5READY\x0bSocket-Type\0\0\0\6ROUTER\x08"
                                   "Identity\0\0\0\0"
                                   "\5X-Vnx\0\0\0\1"
                                   "1";
    unsigned char command[VNXI_ZMTP_COMMAND_MAX];
    vnxi_zmtp_ready_t ready;

    size_t len = vnxi_zmtp_ready_client("0,1", 3, command);
    assert_int_equal(len, sizeof client - 1);
    assert_memory_equal(command, client, len);
    assert_true(parse(client, len, &ready));
    assert_int_equal(ready.key_len, 3);
    assert_memory_equal(ready.key, "0,1", 3);
    len = vnxi_zmtp_ready_listener(command);
    assert_int_equal(len, sizeof listener - 1);
    assert_memory_equal(command, listener, len);
    assert_true(parse(listener, len, &ready));
    assert_true(ready.knows_keys);
    assert_null(ready.key);
}

static void
test_zmtp_ready_with_the_longest_key(void **state)
{
    (void)state;
    unsigned char command[VNXI_ZMTP_COMMAND_MAX];
    char key[VNX_SIDE_CHANNEL_KEY_MAX];
    vnxi_zmtp_frame_t frame;
    vnxi_zmtp_ready_t ready;

    memset(key, 'k', sizeof key);
    size_t len = vnxi_zmtp_ready_client(key, sizeof key, command);
    assert_int_equal(vnxi_zmtp_header_parse(command, len, &frame),
                     VNXI_ZMTP_WHOLE);
    assert_true(frame.command);
    assert_int_equal(frame.header + frame.len, len);
    assert_true(
        vnxi_zmtp_ready_parse(command + frame.header, frame.len, &ready));
    assert_int_equal(ready.key_len, sizeof key);
    assert_memory_equal(ready.key, key, sizeof key);
    len = vnxi_zmtp_ready_client("", 0, command);
    assert_true(vnxi_zmtp_ready_parse(command + 2, len - 2, &ready));
    assert_non_null(ready.key); /* the default was asked for, by its name */
    assert_int_equal(ready.key_len, 0);
}

static void
test_zmtp_refuses_a_broken_ready(void **state)
{
    (void)state;
    static const char body[] = "\5READY\x0bSocket-Type\0\0\0\3REQ";
    vnxi_zmtp_ready_t ready;

    for (size_t len = 0; len < sizeof body - 1; len++) {
        bool whole = len == 6; /* without a property */
        assert_int_equal(
            vnxi_zmtp_ready_parse((const unsigned char *)body, len, &ready),
            whole);
    }
    assert_false(vnxi_zmtp_ready_parse(
        (const unsigned char *)"\5READX\1a\0\0\0\0", 12, &ready));
    assert_false(vnxi_zmtp_ready_parse(
        (const unsigned char *)"\5READY\0\0\0\0\0", 11, &ready));
    assert_false(vnxi_zmtp_ready_parse(
        (const unsigned char *)"\5READY\1a\xff\xff\xff\xff", 12, &ready));
}

static void
test_zmtp_refuses_a_key_above_the_cap(void **state)
{
    (void)state;
    unsigned char body[400] = "\5READY\x09X-Vnx-Key\0\0\1\0";
    vnxi_zmtp_ready_t ready;

    assert_false(vnxi_zmtp_ready_parse(body, 20 + 256, &ready));
    body[18] = 0;
    body[19] = 255;
    assert_true(vnxi_zmtp_ready_parse(body, 20 + 255, &ready));
}

static void
test_zmtp_ping_is_answered_with_its_context(void **state)
{
    (void)state;
    unsigned char pong[VNXI_ZMTP_COMMAND_MAX];
    const unsigned char *ping = (const unsigned char *)"\4PING\0\x0a"
                                                       "0123456789abcdefg";

    assert_int_equal(vnxi_zmtp_pong(ping, 7, pong), 7);
    assert_memory_equal(pong, "\4\5\4PONG", 7);
    assert_int_equal(vnxi_zmtp_pong(ping, 7 + 16, pong), 7 + 16);
    assert_memory_equal(pong, "\4\x15\4PONG0123456789abcdef", 23);
    assert_int_equal(vnxi_zmtp_pong(ping, 7 + 17, pong), 0);
    assert_int_equal(vnxi_zmtp_pong(ping, 6, pong), 0);
    assert_int_equal(
        vnxi_zmtp_pong((const unsigned char *)"\4PONG\0\0", 7, pong), 0);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_zmtp_greeting_has_its_bytes),
        cmocka_unit_test(test_zmtp_greeting_is_checked_incrementally),
        cmocka_unit_test(test_zmtp_headers_of_frames),
        cmocka_unit_test(test_zmtp_refuses_unknown_flags),
        cmocka_unit_test(test_zmtp_ready_of_libzmq),
        cmocka_unit_test(test_zmtp_our_ready_has_its_bytes),
        cmocka_unit_test(test_zmtp_ready_with_the_longest_key),
        cmocka_unit_test(test_zmtp_refuses_a_broken_ready),
        cmocka_unit_test(test_zmtp_refuses_a_key_above_the_cap),
        cmocka_unit_test(test_zmtp_ping_is_answered_with_its_context),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
