/* Frames and commands of NIXL's metadata listener, byte for byte. */
#include "vnx_test.h"

#include <stdlib.h>
#include <string.h>

#include "listener/codec.h"

/* A payload as a string literal, with its length. */
#define PAYLOAD(text) (text), sizeof(text) - 1

static vnxi_meta_cursor_t
begin(const void *payload, size_t len)
{
    vnxi_meta_cursor_t cursor = {0};
    assert_true(vnxi_meta_commands(payload, len, &cursor));
    return cursor;
}

static void
expect(vnxi_meta_cursor_t *cursor, vnxi_meta_verb_t verb, const void *body,
       size_t len)
{
    vnxi_meta_command_t command;
    assert_true(vnxi_meta_command_next(cursor, &command));
    assert_int_equal(command.verb, verb);
    assert_int_equal(command.len, len);
    assert_memory_equal(command.body, body, len);
}

static void
expect_end(vnxi_meta_cursor_t *cursor)
{
    vnxi_meta_command_t command;
    assert_false(vnxi_meta_command_next(cursor, &command));
    assert_false(vnxi_meta_command_next(cursor, &command));
}

static void
test_codec_writes_the_bytes_of_nixl(void **state)
{
    (void)state;
    unsigned char out[VNXI_META_PREFIX];

    vnxi_meta_prefix_write(VNXI_META_SEND, 0, out);
    assert_memory_equal(out, "\x0d\0\0\0\0\0\0\0NIXLCOMM:SEND", sizeof out);
    vnxi_meta_prefix_write(VNXI_META_INVL, 2, out);
    assert_memory_equal(out, "\x0f\0\0\0\0\0\0\0NIXLCOMM:INVL", sizeof out);
    vnxi_meta_prefix_write(VNXI_META_LOAD, 0x0102030405, out);
    assert_memory_equal(out, "\x12\x04\x03\x02\x01\0\0\0NIXLCOMM:LOAD",
                        sizeof out);
}

static void
test_codec_reads_lengths(void **state)
{
    (void)state;
    static const unsigned char most[] = {0xff, 0xff, 0xff, 0xff,
                                         0xff, 0xff, 0xff, 0xff};
    static const unsigned char order[] = {1, 2, 3, 4, 5, 6, 7, 8};
    unsigned char out[VNXI_META_PREFIX];

    assert_true(vnxi_meta_header_read(most) == UINT64_MAX);
    assert_true(vnxi_meta_header_read(order) == 0x0807060504030201u);
    vnxi_meta_prefix_write(VNXI_META_LOAD, 1000, out);
    assert_int_equal(vnxi_meta_header_read(out), 1013);
}

static void
test_codec_reads_one_command(void **state)
{
    (void)state;
    vnxi_meta_cursor_t cursor = begin(PAYLOAD("NIXLCOMM:SEND"));
    expect(&cursor, VNXI_META_SEND, "", 0);
    expect_end(&cursor);

    cursor = begin(PAYLOAD("NIXLCOMM:LOADnixlSerDes|\0\1\xff"));
    expect(&cursor, VNXI_META_LOAD, "nixlSerDes|\0\1\xff", 14);
    expect_end(&cursor);
}

static void
test_codec_reads_commands_in_order(void **state)
{
    (void)state;
    vnxi_meta_cursor_t cursor = begin(
        PAYLOAD("NIXLCOMM:INVLa peerNIXLCOMM:SENDNIXLCOMM:LOADxNIXLCOMM"));
    expect(&cursor, VNXI_META_INVL, "a peer", 6);
    expect(&cursor, VNXI_META_SEND, "", 0);
    expect(&cursor, VNXI_META_LOAD, "xNIXLCOMM", 9);
    expect_end(&cursor);
}

static void
test_codec_returns_unknown_commands(void **state)
{
    (void)state;
    vnxi_meta_cursor_t cursor =
        begin(PAYLOAD("NIXLCOMM:NIXLCOMM:SENNIXLCOMM:PINGxyNIXLCOMM:load"));
    expect(&cursor, VNXI_META_UNKNOWN, "", 0);
    expect(&cursor, VNXI_META_UNKNOWN, "SEN", 3);
    expect(&cursor, VNXI_META_UNKNOWN, "PINGxy", 6);
    expect(&cursor, VNXI_META_UNKNOWN, "load", 4);
    expect_end(&cursor);
}

static void
test_codec_refuses_a_payload_without_a_mark(void **state)
{
    (void)state;
    vnxi_meta_cursor_t cursor;
    assert_false(vnxi_meta_commands("", 0, &cursor));
    assert_false(vnxi_meta_commands(PAYLOAD("NIXLCOMM"), &cursor));
    assert_false(vnxi_meta_commands(PAYLOAD(" NIXLCOMM:SEND"), &cursor));
    assert_false(vnxi_meta_commands(PAYLOAD("nixlcomm:SEND"), &cursor));
    assert_false(vnxi_meta_commands(PAYLOAD("GET / HTTP/1.1\r\n"), &cursor));
}

/* Every cut of a payload, in memory of its exact size. */
static void
test_codec_stays_within_a_cut_payload(void **state)
{
    (void)state;
    static const char whole[] = "NIXLCOMM:INVLnameNIXLCOMM:LOADblobNIXLCOMM:S";
    for (size_t len = 0; len < sizeof whole; len++) {
        unsigned char *copy = malloc(len > 0 ? len : 1);
        vnxi_meta_cursor_t cursor;
        vnxi_meta_command_t command;
        size_t bodies = 0;
        assert_non_null(copy);
        memcpy(copy, whole, len);
        if (vnxi_meta_commands(copy, len, &cursor)) {
            while (vnxi_meta_command_next(&cursor, &command)) {
                assert_in_range((uintptr_t)command.body, (uintptr_t)copy,
                                (uintptr_t)copy + len);
                bodies += command.len;
            }
        } else {
            assert_true(len < VNXI_META_MARK_LEN);
        }
        assert_true(bodies <= len);
        free(copy);
    }
}

static void
test_codec_finds_marks(void **state)
{
    (void)state;
    assert_false(vnxi_meta_has_mark("", 0));
    assert_false(vnxi_meta_has_mark(NULL, 0));
    assert_false(vnxi_meta_has_mark(PAYLOAD("NIXLCOMM")));
    assert_true(vnxi_meta_has_mark(PAYLOAD("NIXLCOMM:")));
    assert_true(vnxi_meta_has_mark(PAYLOAD("\0\0NIXLCOMM:\0")));
    assert_true(vnxi_meta_has_mark(PAYLOAD("NNIXLCOMM:")));
    assert_false(vnxi_meta_has_mark(PAYLOAD("NIXLCOMM;NIXLCOM:")));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_codec_writes_the_bytes_of_nixl),
        cmocka_unit_test(test_codec_reads_lengths),
        cmocka_unit_test(test_codec_reads_one_command),
        cmocka_unit_test(test_codec_reads_commands_in_order),
        cmocka_unit_test(test_codec_returns_unknown_commands),
        cmocka_unit_test(test_codec_refuses_a_payload_without_a_mark),
        cmocka_unit_test(test_codec_stays_within_a_cut_payload),
        cmocka_unit_test(test_codec_finds_marks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
