/* The key that is made of a shared secret, against RFC 5869 as Python's hmac
 * computes it (docs/wire.md has the parameters). */
#include "vnx_test.h"

#include <stdio.h>
#include <string.h>

#include "net/tls.h"

static void
expect_key(const char *secret, const char *hex)
{
    unsigned char key[VNXI_PSK_LEN];
    char text[2 * VNXI_PSK_LEN + 1];

    assert_true(vnxi_psk_derive(secret, key));
    for (size_t i = 0; i < sizeof key; i++) {
        snprintf(text + 2 * i, 3, "%02x", key[i]);
    }
    assert_string_equal(text, hex);
}

static void
test_psk_has_its_bytes(void **state)
{
    (void)state;
    char longer[201] = "";

    expect_key("correct horse battery staple",
               "7d7e710bcce01b518468f6440dd3fff2"
               "a03f4d21dfd8ceca7a77a1c9549f265d");
    expect_key("xxxxxxxx", "ca59dc1f9d528225cfc0dd686b5714cc"
                           "5bd4971a399da75e330f3dc7a5d7ec5a");
    memset(longer, 'k', sizeof longer - 1);
    expect_key(longer, "85946b0401dbca23ce3c216bdba90b86"
                       "96e2dfc4d7acabb17e8dc7fd35ba480f");
}

static void
test_psk_is_one_for_each_secret(void **state)
{
    (void)state;
    unsigned char keys[3][VNXI_PSK_LEN];

    assert_true(vnxi_psk_derive("12345678", keys[0]));
    assert_true(vnxi_psk_derive("12345679", keys[1]));
    assert_true(vnxi_psk_derive("12345678 ", keys[2]));
    assert_memory_not_equal(keys[0], keys[1], VNXI_PSK_LEN);
    assert_memory_not_equal(keys[0], keys[2], VNXI_PSK_LEN);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_psk_has_its_bytes),
        cmocka_unit_test(test_psk_is_one_for_each_secret),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
