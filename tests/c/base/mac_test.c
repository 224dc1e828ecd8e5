/* HMAC-SHA256 at the end of the process. */
#include "child_check.h"
#include "vnx_test.h"

#include <stdlib.h>
#include <sys/wait.h>

#include "base/mac.h"

static bool
make(void)
{
    unsigned char mac[VNXI_MAC_LEN];
    return vnxi_mac("key", 3, "data", 4, mac);
}

/* Called after OpenSSL's own handlers, as a thread could call it then. */
static void
make_late(void)
{
    CHECK(!make());
}

static void
test_mac_is_refused_after_openssl_has_ended(void **state)
{
    (void)state;
    int status = -1;

    pid_t child = fork();
    if (child == 0) {
        atexit(make_late);
        CHECK(make());
        exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

/* A child of a process that has made some ends like any other. */
static void
test_mac_is_made_in_a_child(void **state)
{
    (void)state;
    int status = -1;

    assert_true(make());
    pid_t child = fork();
    if (child == 0) {
        CHECK(make());
        exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    assert_true(make());
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mac_is_refused_after_openssl_has_ended),
        cmocka_unit_test(test_mac_is_made_in_a_child),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
