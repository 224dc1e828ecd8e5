/* Writing members of a JSON object. */
#include "vnx_test.h"

#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "json_check.h"

static void
assert_written(vnxi_writer_t *out, const char *text)
{
    assert_false(out->failed);
    assert_int_equal(out->len, strlen(text));
    assert_memory_equal(out->data, text, out->len);
    vnxi_writer_fini(out);
}

static void
test_json_members_have_commas_between_them(void **state)
{
    vnxi_writer_t out = {0};
    (void)state;

    vnxi_json_member(&out, "a", "x");
    vnxi_json_number(&out, "b", UINT64_MAX);
    vnxi_json_key(&out, "c");
    vnxi_json_text(&out, "[]");
    assert_written(&out, "\"a\": \"x\", \"b\": 18446744073709551615, "
                         "\"c\": []");
}

static void
test_json_strings_escape_what_json_cannot_hold(void **state)
{
    vnxi_writer_t out = {0};
    (void)state;

    vnxi_json_string(&out, "a\"b\\c\n\x7f\xff/");
    assert_written(&out, "\"a\\u0022b\\u005cc\\u000a\\u007f\\u00ff/\"");
}

static void
test_json_bytes_key_escapes_bytes_that_are_not_utf8(void **state)
{
    static const struct {
        const char *name, *written;
    } rows[] = {
        {"", "\"\": "},
        {"plain", "\"plain\": "},
        {"\x01\"\\\x7f", "\"\\u0001\\u0022\\u005c\\u007f\": "},
        /* The first and the last character of each length. */
        {"\xc2\x80\xdf\xbf", "\"\xc2\x80\xdf\xbf\": "},
        {"\xe0\xa0\x80\xed\x9f\xbf\xee\x80\x80\xef\xbf\xbf",
         "\"\xe0\xa0\x80\xed\x9f\xbf\xee\x80\x80\xef\xbf\xbf\": "},
        {"\xf0\x90\x80\x80\xf4\x8f\xbf\xbf",
         "\"\xf0\x90\x80\x80\xf4\x8f\xbf\xbf\": "},
        /* Too long a form, a surrogate, above U+10FFFF. */
        {"\xc1\xbf", "\"\\udcc1\\udcbf\": "},
        {"\xe0\x9f\xbf", "\"\\udce0\\udc9f\\udcbf\": "},
        {"\xed\xa0\x80", "\"\\udced\\udca0\\udc80\": "},
        {"\xf0\x8f\xbf\xbf", "\"\\udcf0\\udc8f\\udcbf\\udcbf\": "},
        {"\xf4\x90\x80\x80", "\"\\udcf4\\udc90\\udc80\\udc80\": "},
        {"\xf5\xff", "\"\\udcf5\\udcff\": "},
        /* Broken off, by the end or by another character. */
        {"\xc3", "\"\\udcc3\": "},
        {"\xe2\x82", "\"\\udce2\\udc82\": "},
        {"\xe2\x82z", "\"\\udce2\\udc82z\": "},
        {"\xf0\x9f\x92\xc3\xa9", "\"\\udcf0\\udc9f\\udc92\xc3\xa9\": "},
    };
    (void)state;

    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        vnxi_writer_t out = {0};
        vnxi_json_bytes_key(&out, rows[i].name, strlen(rows[i].name));
        assert_written(&out, rows[i].written);
    }
    vnxi_writer_t out = {0};
    vnxi_json_bytes_key(&out, "a\0b", 3);
    vnxi_json_text(&out, "1");
    vnxi_json_bytes_key(&out, "c", 1);
    assert_written(&out, "\"a\\u0000b\": 1, \"c\": ");
}

static void
test_json_object_holds_its_members(void **state)
{
    vnxi_writer_t out = {0}, members = {0};
    (void)state;

    vnxi_json_key(&out, "none");
    vnxi_json_object(&out, &members);
    vnxi_json_number(&members, "n", 1);
    vnxi_json_key(&out, "one");
    vnxi_json_object(&out, &members);
    assert_null(members.data);
    assert_written(&out, "\"none\": {}, \"one\": {\"n\": 1}");
}

static void
test_json_empty_string(void **state)
{
    vnxi_writer_t out = {0};
    (void)state;

    vnxi_json_member(&out, "", "");
    assert_written(&out, "\"\": \"\"");
}

/* The members between braces, as a text; frees the writer. */
static void
object_text(vnxi_writer_t *out, char *text, size_t size)
{
    assert_false(out->failed);
    assert_true(out->len + 3 <= size);
    snprintf(text, size, "{%.*s}", (int)out->len,
             out->len > 0 ? (const char *)out->data : "");
    vnxi_writer_fini(out);
}

/* Whatever byte a name or a value has, the text is JSON and of ASCII. */
static void
test_json_of_any_byte_is_valid(void **state)
{
    (void)state;

    for (int byte = 1; byte < 256; byte++) {
        const char value[] = {'a', (char)byte, 'z', '\0'};
        vnxi_writer_t out = {0};
        char text[128];
        vnxi_json_member(&out, value, value);
        vnxi_json_number(&out, "n", (uint64_t)byte);
        object_text(&out, text, sizeof text);
        if (!json_is_valid(text)) {
            fail_msg("byte %d: %s", byte, text);
        }
        for (const char *at = text; *at != '\0'; at++) {
            assert_in_range((unsigned char)*at, 0x20, 0x7e);
        }
    }
}

/* Two bytes that look like one escape are not taken for it. */
static void
test_json_backslashes_are_escaped_separately(void **state)
{
    static const char *const values[] = {"\\", "\\\"", "\\u0041",
                                         "\"", "\\\\", "{\"a\": 1}"};
    (void)state;

    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
        vnxi_writer_t out = {0};
        char text[128];
        vnxi_json_member(&out, "value", values[i]);
        object_text(&out, text, sizeof text);
        assert_true(json_is_valid(text));
        assert_null(strstr(text, values[i][0] == '{' ? "\"a\"" : "\\\""));
    }
}

static void
test_json_without_members_is_an_object(void **state)
{
    vnxi_writer_t out = {0};
    char text[8];
    (void)state;

    object_text(&out, text, sizeof text);
    assert_string_equal(text, "{}");
    assert_true(json_is_valid(text));
}

/* The checker itself detects invalid JSON. */
static void
test_json_checker_refuses_invalid_json(void **state)
{
    static const char *const wrong[] = {
        "",          "{",      "{}}",         "{\"a\"}",   "{\"a\":}", "[1,]",
        "01",        "\"\n\"", "\"\\x\"",     "{\"a\" 1}", "nul",      "1.",
        "\"\\u12\"", "[1 2]",  "{\"a\": 1,}", "-",         "1e",       "\"a"};
    (void)state;

    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        if (json_is_valid(wrong[i])) {
            fail_msg("taken for JSON: %s", wrong[i]);
        }
    }
    assert_true(json_is_valid(" {\"a\": [1, -0.5e+3, null, \"\\u00e4\"]} "));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_json_members_have_commas_between_them),
        cmocka_unit_test(test_json_strings_escape_what_json_cannot_hold),
        cmocka_unit_test(test_json_bytes_key_escapes_bytes_that_are_not_utf8),
        cmocka_unit_test(test_json_object_holds_its_members),
        cmocka_unit_test(test_json_empty_string),
        cmocka_unit_test(test_json_of_any_byte_is_valid),
        cmocka_unit_test(test_json_backslashes_are_escaped_separately),
        cmocka_unit_test(test_json_without_members_is_an_object),
        cmocka_unit_test(test_json_checker_refuses_invalid_json),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
