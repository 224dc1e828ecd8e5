/* Targets, keys, entity tags and tokens of the HTTP side channel. */
#include "vnx_test.h"

#include <string.h>

#include "side_channel/http_wire.h"

static void
expect_key(const char *path, const void *key, size_t key_len)
{
    vnxi_http_target_t target;

    vnxi_http_target_parse(path, &target);
    assert_int_equal(target.route, VNXI_HTTP_METADATA);
    assert_int_equal(target.key_len, key_len);
    assert_memory_equal(target.key, key, key_len);
}

static void
expect_route(const char *path, vnxi_http_route_t route)
{
    vnxi_http_target_t target;

    vnxi_http_target_parse(path, &target);
    assert_int_equal(target.route, route);
}

static void
test_http_wire_paths_name_keys(void **state)
{
    (void)state;
    expect_key("/metadata", "", 0);
    expect_key("/metadata/", "", 0);
    expect_key("/metadata/0,1", "0,1", 3);
    expect_key("/metadata/0%2C1", "0,1", 3);
    expect_key("/metadata/0%2c1", "0,1", 3);
    expect_key("/metadata/a/b", "a/b", 3);
    expect_key("/metadata/a%2Fb", "a/b", 3);
    expect_key("/metadata/%00%ff", "\0\xff", 2);
    expect_key("/metadata/%2525", "%25", 3); /* once, not again */
    expect_key("/metadata/a+b", "a+b", 3);
    expect_key("/metadata//", "/", 1);
}

static void
test_http_wire_other_paths_are_not_found(void **state)
{
    (void)state;
    static const char *const paths[] = {
        "",
        "/",
        "*",
        "metadata",
        "/metadat",
        "/metadata2",
        "/Metadata",
        "/metadata%2f",
        "/healthz",
        "/health/",
        "/health?",
        "//metadata",
        "/x/metadata",
    };

    for (size_t i = 0; i < sizeof paths / sizeof paths[0]; i++) {
        expect_route(paths[i], VNXI_HTTP_NOWHERE);
    }
    expect_route(NULL, VNXI_HTTP_NOWHERE);
    expect_route("/health", VNXI_HTTP_HEALTH);
}

static void
test_http_wire_broken_escapes_are_malformed(void **state)
{
    (void)state;
    static const char *const paths[] = {
        "/metadata/%",   "/metadata/%4",     "/metadata/%4g", "/metadata/%g4",
        "/metadata/a%",  "/metadata/%%41",   "/metadata/% 4", "/metadata/%-1",
        "/metadata/%0x", "/metadata/%u0041",
    };

    for (size_t i = 0; i < sizeof paths / sizeof paths[0]; i++) {
        expect_route(paths[i], VNXI_HTTP_MALFORMED);
    }
}

static void
test_http_wire_key_length_is_bounded(void **state)
{
    (void)state;
    char path[2 * VNXI_HTTP_PATH_MAX] = "/metadata/";
    char key[VNX_SIDE_CHANNEL_KEY_MAX];

    memset(key, 'k', sizeof key);
    memset(path + 10, 'k', sizeof key);
    path[10 + sizeof key] = '\0';
    expect_key(path, key, sizeof key);
    strcat(path, "k");
    expect_route(path, VNXI_HTTP_TOO_LONG);
    strcat(path, "%");
    expect_route(path, VNXI_HTTP_TOO_LONG);
}

static void
test_http_wire_every_key_round_trips_through_its_path(void **state)
{
    (void)state;
    unsigned char key[VNX_SIDE_CHANNEL_KEY_MAX];
    char path[VNXI_HTTP_PATH_MAX];

    for (size_t len = 0; len <= sizeof key; len++) {
        for (size_t i = 0; i < len; i++) {
            key[i] = (unsigned char)(i + len);
        }
        size_t path_len = vnxi_http_path(key, len, path);
        assert_int_equal(path_len, strlen(path));
        for (size_t i = 0; path[i] != '\0'; i++) {
            assert_in_range(path[i], 0x21, 0x7e);
        }
        assert_null(strchr(path, '?'));
        assert_null(strchr(path, '#'));
        expect_key(path, key, len);
    }
    vnxi_http_path("0,1", 3, path);
    assert_string_equal(path, "/metadata/0,1");
    vnxi_http_path("..", 2, path); /* proxies keep it */
    assert_string_equal(path, "/metadata/%2E%2E");
    vnxi_http_path("", 0, path);
    assert_string_equal(path, "/metadata");
    memset(key, 0xff, sizeof key);
    assert_int_equal(vnxi_http_path(key, sizeof key, path),
                     VNXI_HTTP_PATH_MAX - 1);
}

static void
test_http_wire_entity_tags_are_found_in_lists(void **state)
{
    (void)state;
    char etag[VNXI_HTTP_ETAG_MAX];
    static const char *const with[] = {
        "\"00000000deadbeef\"",
        " \t\"00000000deadbeef\" ",
        "W/\"00000000deadbeef\"",
        "\"a\", \"00000000deadbeef\"",
        "\"a,b\",W/\"00000000deadbeef\",\"c\"",
        "nonsense, \"00000000deadbeef\"",
        "*",
        " * ",
    };
    static const char *const without[] = {
        "",
        "\"",
        "\"00000000deadbeef",
        "00000000deadbeef",
        "\"00000000deadbee\"",
        "\"00000000deadbeef\"x",
        "\"x, \"00000000deadbeef\"\"", /* within another tag */
        "**",
        "*, \"a\"",
        ",,,",
        "W/",
    };

    vnxi_http_etag(0xdeadbeef, etag);
    assert_string_equal(etag, "\"00000000deadbeef\"");
    for (size_t i = 0; i < sizeof with / sizeof with[0]; i++) {
        assert_true(vnxi_http_etag_is_in(with[i], etag));
    }
    for (size_t i = 0; i < sizeof without / sizeof without[0]; i++) {
        assert_false(vnxi_http_etag_is_in(without[i], etag));
    }
    assert_false(vnxi_http_etag_is_in(NULL, etag));
    vnxi_http_etag(UINT64_MAX, etag);
    assert_string_equal(etag, "\"ffffffffffffffff\"");
}

static void
expect_token(const char *field, const char *expected)
{
    const char *token;
    size_t len;

    assert_true(vnxi_http_bearer(field, &token, &len));
    assert_int_equal(len, strlen(expected));
    assert_memory_equal(token, expected, len);
}

static void
test_http_wire_tokens_are_read_unchanged(void **state)
{
    (void)state;
    static const char *const none[] = {
        "",        "Bearer",  "Bearer ",  "Bearer \t ",
        "Basic x", "Bearerx", "Bearer-x", "Beare x",
    };
    const char *token;
    size_t len;

    expect_token("Bearer secret", "secret");
    expect_token("bearer \t secret\t ", "secret");
    expect_token("BEARER correct horse", "correct horse");
    for (size_t i = 0; i < sizeof none / sizeof none[0]; i++) {
        assert_false(vnxi_http_bearer(none[i], &token, &len));
    }
    assert_false(vnxi_http_bearer(NULL, &token, &len));
}

static void
test_http_wire_header_breaking_tokens_are_refused(void **state)
{
    (void)state;
    assert_true(vnxi_http_is_token("x"));
    assert_true(vnxi_http_is_token("correct horse"));
    assert_true(vnxi_http_is_token("\xc3\xbc"));
    assert_false(vnxi_http_is_token(""));
    assert_false(vnxi_http_is_token(" x"));
    assert_false(vnxi_http_is_token("x\t"));
    assert_false(vnxi_http_is_token("a\r\nHost: b"));
    assert_false(vnxi_http_is_token("a\nb"));
    assert_false(vnxi_http_is_token("a\x7f"
                                    "b"));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_http_wire_paths_name_keys),
        cmocka_unit_test(test_http_wire_other_paths_are_not_found),
        cmocka_unit_test(test_http_wire_broken_escapes_are_malformed),
        cmocka_unit_test(test_http_wire_key_length_is_bounded),
        cmocka_unit_test(
            test_http_wire_every_key_round_trips_through_its_path),
        cmocka_unit_test(test_http_wire_entity_tags_are_found_in_lists),
        cmocka_unit_test(test_http_wire_tokens_are_read_unchanged),
        cmocka_unit_test(test_http_wire_header_breaking_tokens_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
