#include "vnx_test.h"

#include <stdio.h>
#include <string.h>

#include "core/notifs.h"

static void
push(vnxi_notifs_t *notifs, const char *sender, const char *message)
{
    vnxi_notifs_push(notifs, sender, strlen(sender), message, strlen(message));
}

static void
test_notifs_arrive_in_order_and_once(void **state)
{
    (void)state;
    vnxi_notifs_t notifs;
    char text[16];

    vnxi_notifs_init(&notifs, 1 << 20);
    assert_null(vnxi_notifs_take(&notifs));
    for (int i = 0; i < 100; i++) {
        snprintf(text, sizeof text, "%d", i);
        push(&notifs, "A", text);
    }
    vnx_notif_t *chain = vnxi_notifs_take(&notifs), *at = chain;
    for (int i = 0; i < 100; i++, at = at->next) {
        snprintf(text, sizeof text, "%d", i);
        assert_int_equal(at->message_len, strlen(text));
        assert_memory_equal(at->message, text, at->message_len);
        assert_int_equal(at->sender_len, 1);
    }
    assert_null(at);
    vnx_notif_free(chain);
    assert_null(vnxi_notifs_take(&notifs));
    vnxi_notifs_fini(&notifs);
}

static void
test_notifs_drop_the_oldest(void **state)
{
    (void)state;
    vnxi_notifs_t notifs;
    char block[1000];

    memset(block, 'x', sizeof block);
    vnxi_notifs_init(&notifs, 10 * (sizeof block + sizeof(vnx_notif_t) + 1));
    for (unsigned char i = 0; i < 25; i++) {
        block[0] = (char)i;
        vnxi_notifs_push(&notifs, "A", 1, block, sizeof block);
    }
    assert_int_equal(notifs.dropped, 15);
    assert_int_equal(notifs.received, 25);
    vnx_notif_t *chain = vnxi_notifs_take(&notifs);
    unsigned char expected = 15;
    for (vnx_notif_t *at = chain; at != NULL; at = at->next) {
        assert_int_equal(*(const unsigned char *)at->message, expected++);
    }
    assert_int_equal(expected, 25);
    vnx_notif_free(chain);
    vnxi_notifs_fini(&notifs);
}

static void
test_notifs_one_larger_than_the_bound_is_kept(void **state)
{
    (void)state;
    vnxi_notifs_t notifs;
    char block[1000] = {0};

    vnxi_notifs_init(&notifs, 100);
    push(&notifs, "A", "first");
    vnxi_notifs_push(&notifs, "A", 1, block, sizeof block);
    vnx_notif_t *chain = vnxi_notifs_take(&notifs);
    assert_int_equal(chain->message_len, sizeof block);
    assert_null(chain->next);
    assert_int_equal(notifs.dropped, 1);
    vnx_notif_free(chain);
    vnxi_notifs_fini(&notifs);
}

static void
test_notifs_carry_any_bytes(void **state)
{
    (void)state;
    vnxi_notifs_t notifs;

    vnxi_notifs_init(&notifs, 1 << 20);
    vnxi_notifs_push(&notifs, "a\0b", 3, "", 0);
    vnxi_notifs_push(&notifs, "a\0b", 3, "\0\1\0", 3);
    vnx_notif_t *chain = vnxi_notifs_take(&notifs);
    assert_memory_equal(chain->sender, "a\0b", 3);
    assert_int_equal(chain->message_len, 0);
    assert_memory_equal(chain->next->message, "\0\1\0", 3);
    vnx_notif_free(chain);
    vnxi_notifs_fini(&notifs);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_notifs_arrive_in_order_and_once),
        cmocka_unit_test(test_notifs_drop_the_oldest),
        cmocka_unit_test(test_notifs_one_larger_than_the_bound_is_kept),
        cmocka_unit_test(test_notifs_carry_any_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
