/* Writing members of a JSON object. */
#include "vnx_test.h"

#include <string.h>

#include "base/json.h"

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
test_json_empty_string(void **state)
{
    vnxi_writer_t out = {0};
    (void)state;

    vnxi_json_member(&out, "", "");
    assert_written(&out, "\"\": \"\"");
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_json_members_have_commas_between_them),
        cmocka_unit_test(test_json_strings_escape_what_json_cannot_hold),
        cmocka_unit_test(test_json_empty_string),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
