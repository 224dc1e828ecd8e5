/* What the frames of the TCP side channel say, against the bytes of
 * docs/wire.md. */
#include "vnx_test.h"

#include <string.h>

#include "side_channel/tcp_wire.h"

static void
expect_bytes(const vnxi_tcp_request_t *request, const char *bytes, size_t len)
{
    unsigned char frame[VNXI_TCP_LENGTH + VNXI_TCP_REQUEST_MAX];
    vnxi_tcp_request_t again;

    assert_int_equal(vnxi_tcp_request_encode(request, frame), len);
    assert_memory_equal(frame, bytes, len);
    assert_true(vnxi_tcp_request_parse(frame + VNXI_TCP_LENGTH,
                                       len - VNXI_TCP_LENGTH, &again));
    assert_int_equal(again.kind, request->kind);
    assert_int_equal(again.key_len, request->key_len);
    if (again.key_len > 0) {
        assert_memory_equal(again.key, request->key, again.key_len);
    }
}

static void
test_tcp_wire_requests_have_their_bytes(void **state)
{
    (void)state;
    const unsigned char *key = (const void *)"k";

    expect_bytes(&(vnxi_tcp_request_t){.kind = VNXI_TCP_SEED},
                 "\0\0\0\014GET_METADATA", 16);
    expect_bytes(&(vnxi_tcp_request_t){.kind = VNXI_TCP_GET},
                 "\0\0\0\005VNX1\1", 9);
    expect_bytes(
        &(vnxi_tcp_request_t){.kind = VNXI_TCP_GET, .key = key, .key_len = 1},
        "\0\0\0\006VNX1\1k", 10);
}

static void
test_tcp_wire_refuses_what_is_no_request(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        size_t len;
    } cases[] = {
        {"", 0},
        {"get_metadata", 12},
        {"GET_METADAT", 11},
        {"GET_METADATA ", 13},
        {"VNX1", 4},
        {"VNX2\1", 5},
        {"vnx1\1", 5},
        {"VNX1\0", 5},
        {"VNX1\2", 5},
        {"VNX1\2k", 6},
        {"VNX1\xff", 5},
    };
    unsigned char untouched[sizeof(vnxi_tcp_request_t)];
    vnxi_tcp_request_t request;

    memset(&request, 0x5a, sizeof request);
    memcpy(untouched, &request, sizeof request);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        assert_false(
            vnxi_tcp_request_parse(cases[i].bytes, cases[i].len, &request));
        assert_memory_equal(&request, untouched, sizeof request);
    }
}

static void
test_tcp_wire_a_key_has_255_bytes_at_most(void **state)
{
    (void)state;
    unsigned char frame[5 + 256] = "VNX1\1";
    vnxi_tcp_request_t request;

    assert_true(vnxi_tcp_request_parse(frame, 5 + 255, &request));
    assert_int_equal(request.key_len, 255);
    assert_false(vnxi_tcp_request_parse(frame, 5 + 256, &request));
}

static void
test_tcp_wire_tells_tls_records_from_lengths(void **state)
{
    (void)state;
    static const unsigned char hello[] = {0x16, 3, 1, 2}, alert[4] = {0x15, 3},
                               frame[] = {0, 0, 0, 12};

    assert_true(vnxi_tcp_is_tls_hello(hello));
    assert_false(vnxi_tcp_is_tls_hello(alert));
    assert_false(vnxi_tcp_is_tls_hello(frame));
    assert_true(vnxi_tcp_is_tls_alert(alert));
    assert_true(vnxi_tcp_is_tls_alert((const void *)VNXI_TCP_ALERT));
    assert_false(vnxi_tcp_is_tls_alert(hello));
    assert_false(vnxi_tcp_is_tls_alert(frame));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tcp_wire_requests_have_their_bytes),
        cmocka_unit_test(test_tcp_wire_refuses_what_is_no_request),
        cmocka_unit_test(test_tcp_wire_a_key_has_255_bytes_at_most),
        cmocka_unit_test(test_tcp_wire_tells_tls_records_from_lengths),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
