#include "damaged.h"

#include <stdlib.h>
#include <string.h>

#include "engine/native/identity.h"

static const vnxi_identity_t sample = {
    .partial = true,
    .epoch = 0x1122334455667788,
    .instance = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
};

static const char sample_bytes[] =
    "\x01\x00\x01\x00"                 /* version 1.0, partial */
    "\x88\x77\x66\x55\x44\x33\x22\x11" /* epoch */
    "\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f"
    "\xdd\x55\x91\xe2\xfa\xa3\xc5\x31" /* checksum */;
#define SAMPLE_SIZE (sizeof sample_bytes - 1)
#define HASH_SIZE 8

static void
assert_refused(const void *data, size_t len, const char *cause)
{
    vnxi_identity_t identity = {.epoch = 77};
    vnx_error_t error = {0};

    assert_int_equal(vnxi_identity_read(data, len, &identity, &error),
                     VNX_ERR_MISMATCH);
    if (strstr(error.cause, cause) == NULL) {
        fail_msg("'%s' is not in '%s'", cause, error.cause);
    }
    assert_true(identity.epoch == 77);
}

static void
test_identity_writes_the_golden_bytes(void **state)
{
    (void)state;
    vnxi_writer_t writer = {0};

    vnxi_identity_write(&writer, &sample);
    assert_false(writer.failed);
    assert_int_equal(writer.len, SAMPLE_SIZE);
    assert_memory_equal(writer.data, sample_bytes, SAMPLE_SIZE);
    vnxi_writer_fini(&writer);
}

static void
test_identity_reads_what_was_written(void **state)
{
    (void)state;
    vnxi_identity_t identity = {0};

    assert_int_equal(
        vnxi_identity_read(sample_bytes, SAMPLE_SIZE, &identity, NULL),
        VNX_OK);
    assert_true(identity.partial);
    assert_true(identity.epoch == sample.epoch);
    assert_memory_equal(identity.instance, sample.instance,
                        VNXI_INSTANCE_SIZE);
}

static void
test_identity_of_a_later_minor_version_is_accepted(void **state)
{
    (void)state;
    char longer[SAMPLE_SIZE + 20];
    vnxi_identity_t identity;

    memset(longer, 0x77, sizeof longer);
    memcpy(longer, sample_bytes, SAMPLE_SIZE);
    longer[1] = 9;
    longer[3] = (char)0x80; /* a flag that means nothing yet */
    uint64_t hash = vnxi_hash(longer, SAMPLE_SIZE - HASH_SIZE);
    memcpy(longer + SAMPLE_SIZE - HASH_SIZE, &hash, sizeof hash);
    assert_int_equal(
        vnxi_identity_read(longer, sizeof longer, &identity, NULL), VNX_OK);
    assert_true(identity.partial);
    assert_true(identity.epoch == sample.epoch);
}

static void
test_identity_of_another_major_version_is_refused(void **state)
{
    (void)state;
    damaged_version(sample_bytes, SAMPLE_SIZE, assert_refused);
}

static void
test_identity_cut_off_anywhere_is_refused(void **state)
{
    (void)state;
    damaged_end(sample_bytes, SAMPLE_SIZE, assert_refused);
}

/* An epoch that is too high would make every later blob an old one. */
static void
test_identity_changed_anywhere_is_refused(void **state)
{
    (void)state;
    damaged_bits(sample_bytes, SAMPLE_SIZE, assert_refused);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_identity_writes_the_golden_bytes),
        cmocka_unit_test(test_identity_reads_what_was_written),
        cmocka_unit_test(test_identity_of_a_later_minor_version_is_accepted),
        cmocka_unit_test(test_identity_of_another_major_version_is_refused),
        cmocka_unit_test(test_identity_cut_off_anywhere_is_refused),
        cmocka_unit_test(test_identity_changed_anywhere_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
