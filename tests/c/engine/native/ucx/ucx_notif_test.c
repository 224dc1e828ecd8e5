/*
 * The payload of notifications; no library is needed for that.
 */
#include "vnx_test.h"

#include <stdlib.h>
#include <string.h>

#include "engine/native/ucx/notif.h"

static void
test_ucx_notif_has_the_bytes_of_nixl(void **state)
{
    static const unsigned char want[] = "nixlSerDes|name\x02\0\0\0\0\0\0\0"
                                        "A1|msg\x02\0\0\0\0\0\0\0hi|";
    vnxi_writer_t writer = {0};
    (void)state;
    vnxi_ucx_notif_write(&writer, "A1", 2, "hi", 2);
    assert_int_equal(writer.len, 40);
    assert_memory_equal(writer.data, want, 40);
    vnxi_writer_fini(&writer);
}

static void
test_ucx_notif_is_read_as_written(void **state)
{
    vnxi_writer_t writer = {0};
    vnxi_ucx_notif_t notif;
    (void)state;
    vnxi_ucx_notif_write(&writer, "agent|name", 10, "", 0);
    assert_true(vnxi_ucx_notif_read(writer.data, writer.len, &notif));
    assert_int_equal(notif.sender_len, 10);
    assert_memory_equal(notif.sender, "agent|name", 10);
    assert_int_equal(notif.message_len, 0);
    vnxi_writer_fini(&writer);
}

/* Every cut and every changed byte: refused, or read within its bounds. */
static void
test_ucx_notif_reader_stays_within_bounds(void **state)
{
    vnxi_writer_t writer = {0};
    vnxi_ucx_notif_t notif;
    (void)state;
    vnxi_ucx_notif_write(&writer, "A1", 2, "message", 7);
    for (size_t len = 0; len < writer.len; len++) {
        unsigned char *cut = malloc(len + 1);
        memcpy(cut, writer.data, len);
        assert_false(vnxi_ucx_notif_read(cut, len, &notif));
        free(cut);
    }
    for (size_t i = 0; i < writer.len * 255; i++) {
        unsigned char *at = &writer.data[i / 255], was = *at;
        *at = (unsigned char)(was + 1 + i % 255);
        if (vnxi_ucx_notif_read(writer.data, writer.len, &notif)) {
            assert_true(notif.sender_len + notif.message_len == 9);
        }
        *at = was;
    }
    vnxi_writer_fini(&writer);
}

static void
test_ucx_notif_without_a_sender_is_refused(void **state)
{
    vnxi_writer_t writer = {0};
    vnxi_ucx_notif_t notif;
    (void)state;
    vnxi_ucx_notif_write(&writer, "", 0, "hi", 2);
    assert_false(vnxi_ucx_notif_read(writer.data, writer.len, &notif));
    vnxi_writer_fini(&writer);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ucx_notif_has_the_bytes_of_nixl),
        cmocka_unit_test(test_ucx_notif_is_read_as_written),
        cmocka_unit_test(test_ucx_notif_reader_stays_within_bounds),
        cmocka_unit_test(test_ucx_notif_without_a_sender_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
