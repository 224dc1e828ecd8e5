/* Requests, replies and refusals of the ZMQ side channel, against the bytes of
 * docs/wire.md, which are those of vLLM. */
#include "vnx_test.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "side_channel/blob_table.h"
#include "side_channel/zmq_wire.h"

#define NAME "\xc4\x0cget_meta_msg"
#define NAME_LEN 14

/* The request for a key has these bytes, and the key is read from them. */
static void
expect_bytes(const char *key, const char *bytes, size_t len)
{
    unsigned char encoded[VNXI_ZMQ_REQUEST_MAX];
    vnxi_zmq_request_t request, again;

    assert_true(vnxi_zmq_request_of_key(key, strlen(key), &request));
    assert_int_equal(vnxi_zmq_request_encode(&request, encoded), len);
    assert_memory_equal(encoded, bytes, len);
    assert_true(vnxi_zmq_request_parse(encoded, len, &again));
    assert_int_equal(again.count, request.count);
    assert_int_equal(again.key_len, strlen(key));
    assert_string_equal(again.key, key);
}

static void
test_zmq_wire_requests_have_their_bytes(void **state)
{
    (void)state;

    expect_bytes("3", "\x92" NAME "\3", 16);
    expect_bytes("0,0", "\x93" NAME "\0\0", 17);
    expect_bytes("1,127", "\x93" NAME "\1\x7f", 17);
    expect_bytes("128,255", "\x93" NAME "\xcc\x80\xcc\xff", 19);
    expect_bytes("256,65535", "\x93" NAME "\xcd\1\0\xcd\xff\xff", 21);
    expect_bytes("65536,9223372036854775807",
                 "\x93" NAME "\xce\0\1\0\0\xcf\x7f\xff\xff\xff\xff\xff\xff"
                 "\xff",
                 29);
    expect_bytes("0,1,2", "\x94" NAME "\0\1\2", 18);
    expect_bytes("1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
                 "\xdc\0\x10" NAME "\1\2\3\4\5\6\7\x8\x9\xa\xb\xc\xd\xe\xf",
                 32);
}

/* As many integers as the longest key holds, and one more. */
static void
test_zmq_wire_keys_limit_the_integers(void **state)
{
    (void)state;
    unsigned char bytes[VNXI_ZMQ_REQUEST_MAX] = "\xdc\0\x81" NAME;
    char key[VNX_SIDE_CHANNEL_KEY_MAX + 2];
    vnxi_zmq_request_t request;
    const size_t count = (VNX_SIDE_CHANNEL_KEY_MAX + 1) / 2;

    for (size_t i = 0; i < sizeof key; i++) {
        key[i] = i % 2 == 0 ? '7' : ',';
    }
    assert_true(vnxi_zmq_request_of_key(key, 2 * count - 1, &request));
    assert_int_equal(request.count, count);
    assert_false(vnxi_zmq_request_of_key(key, 2 * count + 1, &request));

    memset(bytes + 3 + NAME_LEN, 7, count + 1);
    assert_true(vnxi_zmq_request_parse(bytes, 3 + NAME_LEN + count, &request));
    assert_int_equal(request.count, count);
    assert_int_equal(request.key_len, 2 * count - 1);
    assert_memory_equal(request.key, key, request.key_len);
    bytes[2]++;
    assert_false(
        vnxi_zmq_request_parse(bytes, 3 + NAME_LEN + count + 1, &request));
}

/* The longest request of our client. */
static void
test_zmq_wire_requests_fit_their_buffer(void **state)
{
    (void)state;
    static const char *const numbers[] = {
        "0", "128", "256", "65536", "4294967296", "9223372036854775807"};
    unsigned char bytes[VNXI_ZMQ_REQUEST_MAX];
    vnxi_zmq_request_t request, again;

    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        char key[VNX_SIDE_CHANNEL_KEY_MAX + 32] = "";
        size_t len = 0, one = strlen(numbers[i]);
        while (len + one <= VNX_SIDE_CHANNEL_KEY_MAX) {
            memcpy(key + len, numbers[i], one);
            key[len + one] = ',';
            len += one + 1;
        }
        assert_true(vnxi_zmq_request_of_key(key, len - 1, &request));
        len = vnxi_zmq_request_encode(&request, bytes);
        assert_true(len <= sizeof bytes);
        assert_true(vnxi_zmq_request_parse(bytes, len, &again));
        assert_int_equal(again.count, request.count);
        assert_string_equal(again.key, request.key);
    }
}

/* A request of two integers, of which the second is `bytes`. */
static bool
parse_second(const char *bytes, size_t len, int64_t *number_p)
{
    unsigned char request[64] = "\x93" NAME "\0";
    vnxi_zmq_request_t parsed;

    memcpy(request + 1 + NAME_LEN + 1, bytes, len);
    if (!vnxi_zmq_request_parse(request, 1 + NAME_LEN + 1 + len, &parsed)) {
        return false;
    }
    assert_int_equal(parsed.count, 2);
    assert_memory_equal(parsed.key, "0,", 2);
    *number_p = strtoll(parsed.key + 2, NULL, 10);
    return true;
}

static void
test_zmq_wire_accepts_every_encoding_of_an_integer(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        size_t len;
        int64_t number;
    } cases[] = {
        {"\0", 1, 0},
        {"\x7f", 1, 127},
        {"\xe0", 1, -32},
        {"\xff", 1, -1},
        {"\xcc\7", 2, 7},
        {"\xcd\0\7", 3, 7},
        {"\xce\0\0\0\7", 5, 7},
        {"\xcf\0\0\0\0\0\0\0\7", 9, 7},
        {"\xd0\x80", 2, -128},
        {"\xd1\xff\xfe", 3, -2},
        {"\xd2\0\0\0\7", 5, 7},
        {"\xd3\xff\xff\xff\xff\xff\xff\xff\xfd", 9, -3},
        {"\xd3\x80\0\0\0\0\0\0\0", 9, INT64_MIN},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        int64_t number;
        assert_true(parse_second(cases[i].bytes, cases[i].len, &number));
        assert_int_equal(number, cases[i].number);
        for (size_t len = 0; len < cases[i].len; len++) {
            assert_false(parse_second(cases[i].bytes, len, &number));
        }
    }
}

static void
test_zmq_wire_accepts_longer_encodings_of_lengths(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        size_t len;
    } cases[] = {
        {"\xdc\0\3\xc5\0\x0cget_meta_msg\1\2", 20},
        {"\xdd\0\0\0\3\xc6\0\0\0\x0cget_meta_msg\1\2", 24},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        vnxi_zmq_request_t request;
        assert_true(vnxi_zmq_request_parse((const void *)cases[i].bytes,
                                           cases[i].len, &request));
        assert_string_equal(request.key, "1,2");
    }
}

static void
test_zmq_wire_refuses_invalid_requests(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        size_t len;
    } cases[] = {
        {"", 0},
        {"\xc1", 1},
        {"\x93", 1},
        {"\x90", 1},
        {"\x91" NAME, 15},
        {"\x94" NAME "\0\0", 17}, /* one is missing */
        {"\x82" NAME "\0\0", 17}, /* a map */
        {"\x93\xac"
         "get_meta_msg\0\0",
         16}, /* a string */
        {"\x93\xc4\x0bget_meta_ms\0\0", 16},
        {"\x93\xc4\x0dget_meta_msgs\0\0", 18},
        {"\x93\xc4\x0cget_meta_msG\0\0", 17},
        {"\x93\xc6\xff\xff\xff\xffget_meta_msg\0\0", 20},
        {"\x93\xc7\x0cget_meta_msg\0\0", 17},
        {"\x93" NAME "\0\0\0", 18}, /* something behind it */
        {"\x93" NAME "\0\xc0", 17}, /* nil */
        {"\x93" NAME "\0\xcb\0\0\0\0\0\0\0\0", 25},
        {"\x93" NAME "\0\xcf\x80\0\0\0\0\0\0\0", 25}, /* above an int64 */
        {"\x93" NAME "\0\xc2", 17},                   /* false */
        {"\xdd\xff\xff\xff\xff" NAME "\0\0", 21},
        {"\xdd\0\0\0\0" NAME, 19},
        {"\xde\0\3" NAME "\0\0", 19},
        {"GET / HTTP/1.1", 14},
    };
    vnxi_zmq_request_t request, untouched;

    memset(&request, 0x5a, sizeof request);
    memset(&untouched, 0x5a, sizeof untouched);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        assert_false(vnxi_zmq_request_parse((const void *)cases[i].bytes,
                                            cases[i].len, &request));
        assert_memory_equal(&request, &untouched, sizeof request);
    }
    for (size_t len = 0; len < 17; len++) {
        assert_false(vnxi_zmq_request_parse((const void *)("\x93" NAME "\0\0"),
                                            len, &request));
    }
}

static void
expect_key(const char *key, size_t count)
{
    vnxi_zmq_request_t request;

    assert_true(vnxi_zmq_request_of_key(key, strlen(key), &request));
    assert_int_equal(request.count, count);
    assert_int_equal(request.key_len, strlen(key));
    assert_string_equal(request.key, key);
}

static void
test_zmq_wire_keys_of_ranks(void **state)
{
    (void)state;
    static const char *const others[] = {"",
                                         "a",
                                         ",",
                                         "0,",
                                         ",0",
                                         "00",
                                         "-1",
                                         "0,-1",
                                         "0,01",
                                         "0 ,",
                                         "0,1 ",
                                         "0,,1",
                                         "0,1,",
                                         "0,1,x",
                                         "+1",
                                         "0x1",
                                         "9223372036854775808",
                                         "0,99999999999999999999"};
    vnxi_zmq_request_t request;

    expect_key("7", 1);
    expect_key("0,0", 2);
    expect_key("0,1", 2);
    expect_key("12,34567", 2);
    expect_key("9223372036854775807,9223372036854775807", 2);
    expect_key("0,1,2", 3);
    expect_key("3,0,1,2,10", 5);
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        assert_false(
            vnxi_zmq_request_of_key(others[i], strlen(others[i]), &request));
    }
}

static void
test_zmq_wire_clocks(void **state)
{
    (void)state;
    unsigned char clock[VNXI_ZMQ_CLOCK];
    uint64_t bits = 0;
    double number;

    vnxi_zmq_clock_encode(1.5, clock);
    assert_memory_equal(clock, "\xcb\x3f\xf8\0\0\0\0\0\0", 9);
    assert_false(vnxi_zmq_is_no_clock(clock, 9));
    vnxi_zmq_clock_encode(VNXI_ZMQ_NO_CLOCK, clock);
    assert_true(vnxi_zmq_is_no_clock(clock, 9));
    assert_false(vnxi_zmq_is_no_clock(clock, 8));
    for (int i = 1; i < 9; i++) {
        bits = bits << 8 | clock[i];
    }
    memcpy(&number, &bits, sizeof number);
    assert_true(isnan(number));
}

static void
test_zmq_wire_refusals(void **state)
{
    (void)state;
    unsigned char bytes[VNXI_ZMQ_REFUSAL_MAX];
    size_t text_len;

    size_t len = vnxi_zmq_refusal_encode("no", bytes);
    assert_int_equal(len, 11);
    assert_memory_equal(bytes,
                        "\x81\xa5"
                        "error\xd9\2no",
                        11);
    const unsigned char *text = vnxi_zmq_refusal_parse(bytes, len, &text_len);
    assert_non_null(text);
    assert_int_equal(text_len, 2);
    assert_memory_equal(text, "no", 2);
    for (size_t cut = 0; cut < len; cut++) {
        assert_null(vnxi_zmq_refusal_parse(bytes, cut, &text_len));
    }
    bytes[len] = 0;
    assert_null(vnxi_zmq_refusal_parse(bytes, len + 1, &text_len));
    assert_true(vnxi_zmq_refusal_encode(VNXI_ZMQ_UNKNOWN_KEY, bytes) <=
                sizeof bytes);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_zmq_wire_requests_have_their_bytes),
        cmocka_unit_test(test_zmq_wire_keys_limit_the_integers),
        cmocka_unit_test(test_zmq_wire_requests_fit_their_buffer),
        cmocka_unit_test(test_zmq_wire_accepts_every_encoding_of_an_integer),
        cmocka_unit_test(test_zmq_wire_accepts_longer_encodings_of_lengths),
        cmocka_unit_test(test_zmq_wire_refuses_invalid_requests),
        cmocka_unit_test(test_zmq_wire_keys_of_ranks),
        cmocka_unit_test(test_zmq_wire_clocks),
        cmocka_unit_test(test_zmq_wire_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
