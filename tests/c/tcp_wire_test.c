/* What the frames of the TCP side channel say, against the bytes of
 * docs/wire.md. */
#include "vnx_test.h"

#include <string.h>

#include "side_channel/tcp_wire.h"

#define NONCE "0123456789abcdef0123456789abcdef"

static void
expect_bytes(const vnxi_tcp_request_t *request, const char *bytes, size_t len)
{
    unsigned char payload[VNXI_TCP_REQUEST_MAX];
    vnxi_tcp_request_t again;

    assert_int_equal(vnxi_tcp_request_encode(request, payload), len);
    assert_memory_equal(payload, bytes, len);
    assert_true(vnxi_tcp_request_parse(payload, len, &again));
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
    const unsigned char *nonce = (const void *)NONCE, *key = (const void *)"k";

    expect_bytes(&(vnxi_tcp_request_t){.kind = VNXI_TCP_SEED}, "GET_METADATA",
                 12);
    expect_bytes(&(vnxi_tcp_request_t){.kind = VNXI_TCP_GET}, "VNX1\1", 5);
    expect_bytes(
        &(vnxi_tcp_request_t){.kind = VNXI_TCP_GET, .key = key, .key_len = 1},
        "VNX1\1k", 6);
    expect_bytes(&(vnxi_tcp_request_t){.kind = VNXI_TCP_HELLO, .nonce = nonce},
                 "VNX1\2" NONCE, 37);
    expect_bytes(&(vnxi_tcp_request_t){.kind = VNXI_TCP_PROVE, .mac = nonce},
                 "VNX1\3" NONCE, 37);
    expect_bytes(
        &(vnxi_tcp_request_t){
            .kind = VNXI_TCP_SEALED, .mac = nonce, .key = key, .key_len = 1},
        "VNX1\4" NONCE "k", 38);
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
        {"VNX1\5", 5},
        {"VNX1\xff", 5},
        {"VNX1\2" NONCE "x", 38},
        {"VNX1\2" NONCE, 36},
        {"VNX1\3", 5},
        {"VNX1\3" NONCE "x", 38},
        {"VNX1\4" NONCE, 36},
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
    unsigned char frame[5 + 32 + 256] = "VNX1\1";
    vnxi_tcp_request_t request;

    assert_true(vnxi_tcp_request_parse(frame, 5 + 255, &request));
    assert_int_equal(request.key_len, 255);
    assert_false(vnxi_tcp_request_parse(frame, 5 + 256, &request));
    frame[4] = VNXI_TCP_SEALED;
    assert_true(vnxi_tcp_request_parse(frame, 5 + 32 + 255, &request));
    assert_int_equal(request.key_len, 255);
    assert_false(vnxi_tcp_request_parse(frame, 5 + 32 + 256, &request));
}

static void
test_tcp_wire_statuses_have_a_text_and_a_meaning(void **state)
{
    (void)state;
    int known = 0;

    for (int status = 0; status < 256; status++) {
        const char *text = vnxi_tcp_status_text((vnxi_tcp_status_t)status);
        vnx_status_t means =
            vnxi_tcp_status_meaning((vnxi_tcp_status_t)status);
        if (text == NULL) {
            assert_int_equal(means, VNX_ERR_MISMATCH);
            continue;
        }
        known++;
        assert_int_equal(text[0] == '\0', means == VNX_OK);
        assert_int_equal(status < 16, means == VNX_OK);
        assert_true(strlen(text) <= VNXI_TCP_TEXT_MAX);
    }
    assert_int_equal(known, 8);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tcp_wire_requests_have_their_bytes),
        cmocka_unit_test(test_tcp_wire_refuses_what_is_no_request),
        cmocka_unit_test(test_tcp_wire_a_key_has_255_bytes_at_most),
        cmocka_unit_test(test_tcp_wire_statuses_have_a_text_and_a_meaning),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
