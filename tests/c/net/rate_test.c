#include "vnx_test.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>

#include "net/rate.h"

#define S UINT64_C(1000000000)

static struct sockaddr_storage
v4(const char *text)
{
    struct sockaddr_storage all = {0};
    struct sockaddr_in *addr = (void *)&all;
    addr->sin_family = AF_INET;
    assert_int_equal(inet_pton(AF_INET, text, &addr->sin_addr), 1);
    return all;
}

static struct sockaddr_storage
v6(const char *text)
{
    struct sockaddr_storage all = {0};
    struct sockaddr_in6 *addr = (void *)&all;
    addr->sin6_family = AF_INET6;
    assert_int_equal(inet_pton(AF_INET6, text, &addr->sin6_addr), 1);
    return all;
}

/* How many of `count` that come at `now` may. */
static int
come(vnxi_rate_t *rate, struct sockaddr_storage from, uint64_t now, int count)
{
    int may = 0;
    for (int i = 0; i < count; i++) {
        may += vnxi_rate_take(rate, &from, now);
    }
    return may;
}

static void
test_rate_allows_a_burst_of_two_seconds_then_the_rate(void **state)
{
    (void)state;
    vnxi_rate_t *rate = vnxi_rate_create(10);
    uint64_t now = 1000 * S;

    assert_int_equal(come(rate, v4("10.0.0.1"), now, 100), 20);
    assert_int_equal(come(rate, v4("10.0.0.1"), now + S / 20, 100), 0);
    assert_int_equal(come(rate, v4("10.0.0.1"), now + S / 10, 100), 1);
    assert_int_equal(come(rate, v4("10.0.0.1"), now + S, 100), 9);
    assert_int_equal(come(rate, v4("10.0.0.1"), now + 100 * S, 100), 20);
    vnxi_rate_free(rate);
}

static void
test_rate_addresses_are_limited_independently(void **state)
{
    (void)state;
    vnxi_rate_t *rate = vnxi_rate_create(1);
    uint64_t now = S;

    assert_int_equal(come(rate, v4("10.0.0.1"), now, 9), 2);
    assert_int_equal(come(rate, v4("10.0.0.2"), now, 9), 2);
    assert_int_equal(come(rate, v6("2001:db8:0:1::1"), now, 9), 2);
    /* The same network, and IPv4 through IPv6. */
    assert_int_equal(come(rate, v6("2001:db8:0:1::2"), now, 9), 0);
    assert_int_equal(come(rate, v6("2001:db8:0:2::1"), now, 9), 2);
    assert_int_equal(come(rate, v6("::ffff:10.0.0.1"), now, 9), 0);
    struct sockaddr_storage other = {.ss_family = AF_UNIX};
    assert_int_equal(come(rate, other, now, 9), 9);
    vnxi_rate_free(rate);
    vnxi_rate_free(NULL);
}

static void
test_rate_table_serves_many_addresses(void **state)
{
    (void)state;
    vnxi_rate_t *rate = vnxi_rate_create(UINT32_MAX);
    struct sockaddr_storage from = v4("10.0.0.0");
    struct sockaddr_in *addr = (void *)&from;

    for (uint32_t i = 0; i < 10 * VNXI_RATE_ADDRESSES; i++) {
        addr->sin_addr.s_addr = htonl(0x0a000000 + i);
        assert_true(vnxi_rate_take(rate, &from, S));
    }
    vnxi_rate_free(rate);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(
            test_rate_allows_a_burst_of_two_seconds_then_the_rate),
        cmocka_unit_test(test_rate_addresses_are_limited_independently),
        cmocka_unit_test(test_rate_table_serves_many_addresses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
