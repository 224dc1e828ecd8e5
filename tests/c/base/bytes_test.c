#include "vnx_test.h"

#include <stdlib.h>

#include "base/bytes.h"

static void
test_bytes_numbers_are_little_endian_both_ways(void **state)
{
    (void)state;
    vnxi_writer_t writer = {0};
    const unsigned char expected[] = {0x01, 0x03, 0x02, 0x07, 0x06,
                                      0x05, 0x04, 0x0f, 0x0e, 0x0d,
                                      0x0c, 0x0b, 0x0a, 0x09, 0x08};

    vnxi_write_u8(&writer, 0x01);
    vnxi_write_u16(&writer, 0x0203);
    vnxi_write_u32(&writer, 0x04050607);
    vnxi_write_u64(&writer, 0x08090a0b0c0d0e0f);
    assert_false(writer.failed);
    assert_int_equal(writer.len, sizeof expected);
    assert_memory_equal(writer.data, expected, sizeof expected);

    vnxi_reader_t reader = vnxi_reader(writer.data, writer.len);
    assert_int_equal(vnxi_read_u8(&reader), 0x01);
    assert_int_equal(vnxi_read_u16(&reader), 0x0203);
    assert_int_equal(vnxi_read_u32(&reader), 0x04050607);
    assert_true(vnxi_read_u64(&reader) == 0x08090a0b0c0d0e0f);
    assert_false(reader.failed);
    assert_int_equal(vnxi_reader_left(&reader), 0);
    vnxi_writer_fini(&writer);
}

static void
test_bytes_reader_never_passes_its_end(void **state)
{
    (void)state;
    const unsigned char three[] = {1, 2, 3};
    vnxi_reader_t reader = vnxi_reader(three, sizeof three);

    assert_int_equal(vnxi_read_u32(&reader), 0);
    assert_true(reader.failed);
    /* It stays failed, though a byte would fit. */
    assert_int_equal(vnxi_read_u8(&reader), 0);

    reader = vnxi_reader(three, sizeof three);
    assert_null(vnxi_read_bytes(&reader, SIZE_MAX));
    assert_true(reader.failed);
}

static void
test_bytes_writer_fails_on_an_impossible_length(void **state)
{
    (void)state;
    vnxi_writer_t writer = {0};

    vnxi_write_u8(&writer, 1);
    vnxi_write_bytes(&writer, "x", SIZE_MAX / 2);
    assert_true(writer.failed);
    vnxi_write_u8(&writer, 2);
    assert_int_equal(writer.len, 1);
    vnxi_writer_fini(&writer);
}

static void
test_bytes_writer_grows(void **state)
{
    (void)state;
    vnxi_writer_t writer = {0};

    for (uint32_t i = 0; i < 100000; i++) {
        vnxi_write_u32(&writer, i);
    }
    assert_false(writer.failed);
    vnxi_reader_t reader = vnxi_reader(writer.data, writer.len);
    for (uint32_t i = 0; i < 100000; i++) {
        assert_int_equal(vnxi_read_u32(&reader), i);
    }
    vnxi_writer_fini(&writer);
}

static void
test_bytes_writer_take_returns_the_bytes(void **state)
{
    (void)state;
    vnxi_writer_t writer = {0};
    void *data = NULL;
    size_t len = 7;

    vnxi_write_bytes(&writer, "taken", 5);
    assert_true(vnxi_writer_take(&writer, &data, &len));
    assert_int_equal(len, 5);
    assert_memory_equal(data, "taken", 5);
    assert_null(writer.data); /* it may be written to again */
    free(data);

    data = NULL, len = 7;
    vnxi_write_u8(&writer, 1);
    vnxi_write_bytes(&writer, "x", SIZE_MAX / 2);
    assert_false(vnxi_writer_take(&writer, &data, &len));
    assert_null(data);
    assert_int_equal(len, 7);
    assert_null(writer.data);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bytes_numbers_are_little_endian_both_ways),
        cmocka_unit_test(test_bytes_reader_never_passes_its_end),
        cmocka_unit_test(test_bytes_writer_fails_on_an_impossible_length),
        cmocka_unit_test(test_bytes_writer_grows),
        cmocka_unit_test(test_bytes_writer_take_returns_the_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
