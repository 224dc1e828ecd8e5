#include "vnx_test.h"

#include <string.h>

#include "base/words.h"

static const char *const mems[] = {"DRAM", "VRAM", "OBJ", "FILE", "cpu"};
static const char *const ops[] = {"READ", "WRITE"};

#define MEANT(given, words) \
    vnxi_word_meant((given), (words), sizeof(words) / sizeof(words)[0])

static void
test_words_case_does_not_matter(void **state)
{
    (void)state;
    assert_string_equal(MEANT("dram", mems), "DRAM");
    assert_string_equal(MEANT("CPU", mems), "cpu");
    assert_string_equal(MEANT("Read", ops), "READ");
}

static void
test_words_up_to_two_edits(void **state)
{
    (void)state;
    assert_string_equal(MEANT("DRAMM", mems), "DRAM");
    assert_string_equal(MEANT("DARM", mems), "DRAM");
    assert_string_equal(MEANT("fle", mems), "FILE");
    assert_string_equal(MEANT("WRTE", ops), "WRITE");
    assert_string_equal(MEANT("writted", ops), "WRITE");
    assert_string_equal(MEANT("OJB", mems), "OBJ");
    assert_null(MEANT("writtend", ops));
}

static void
test_words_the_closest_is_meant(void **state)
{
    static const char *const words[] = {"GDS_M", "GDS_MTS", "GDS_MT"};
    (void)state;
    assert_string_equal(MEANT("GDS_MTS2", words), "GDS_MTS");
    assert_string_equal(MEANT("GDS_NT", words), "GDS_MT");
}

static void
test_words_that_are_not_close(void **state)
{
    char huge[5000];
    (void)state;
    memset(huge, 'D', sizeof huge - 1);
    huge[sizeof huge - 1] = '\0';
    assert_null(MEANT("", mems));
    assert_null(MEANT("gpu", mems));
    assert_null(MEANT("HBM", mems));
    assert_null(MEANT("O", mems));
    assert_null(MEANT(huge, mems));
    assert_null(vnxi_word_meant("DRAM", mems, 0));
    huge[32] = '\0'; /* the longest word that is compared */
    assert_null(MEANT(huge, mems));
}

static void
test_words_text_names_the_choices(void **state)
{
    (void)state;
    assert_string_equal(vnxi_words("read", ops, 2),
                        "did you mean 'READ'? The choices are READ, WRITE");
    assert_string_equal(vnxi_words("COPY", ops, 2),
                        "the choices are READ, WRITE");
}

static void
test_words_text_is_cut_to_the_buffer(void **state)
{
    char text[24];
    (void)state;
    memset(text, 'x', sizeof text);
    vnxi_words_text(text, sizeof text - 1, "read", ops, 2);
    assert_string_equal(text, "did you mean 'READ'? T");
    assert_int_equal(text[sizeof text - 1], 'x');
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_words_case_does_not_matter),
        cmocka_unit_test(test_words_up_to_two_edits),
        cmocka_unit_test(test_words_the_closest_is_meant),
        cmocka_unit_test(test_words_that_are_not_close),
        cmocka_unit_test(test_words_text_names_the_choices),
        cmocka_unit_test(test_words_text_is_cut_to_the_buffer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
