/* The bytes of publications: reference bytes, every kind of damage, limits. */
#include "publication_scene.h"

#include "damaged.h"

#include "base/error.h"

static const vnxi_signature_key_t no_key;

static vnx_status_t
read_bytes(const void *bytes, size_t len, const vnxi_signature_key_t *key,
           vnxi_publication_t *publication, vnx_error_t *error)
{
    return vnxi_publication_read(bytes, len, key != NULL ? key : &no_key,
                                 "vnx_attach", publication, error);
}

static void
refused_with(vnx_status_t expected, const void *bytes, size_t len,
             const vnxi_signature_key_t *key, const char *cause)
{
    vnxi_publication_t publication = {0};
    vnx_error_t error = {.cause = ""};

    vnx_status_t status = read_bytes(bytes, len, key, &publication, &error);
    assert_int_equal(status, expected);
    if (strstr(error.cause, cause) == NULL) {
        fail_msg("'%s' is not in '%s'", cause, error.cause);
    }
    assert_string_equal(error.operation, "vnx_attach");
    assert_null(publication.lists);
}

static void
refused(const void *bytes, size_t len, const char *cause)
{
    refused_with(VNX_ERR_MISMATCH, bytes, len, NULL, cause);
}

/* -- Whole publications --------------------------------------------------- */

static void
expect_lists(const vnxi_publication_t *publication)
{
    assert_int_equal(publication->metadata_len, 8);
    assert_memory_equal(publication->metadata, "metadata", 8);
    assert_int_equal(publication->count, 2);
    const vnx_named_rows_t *kv = &publication->lists[0];
    const vnx_named_rows_t *state = &publication->lists[1];
    assert_string_equal(kv->name, "kv");
    assert_int_equal(kv->mem, VNX_MEM_DRAM);
    assert_int_equal(kv->count, 2);
    assert_memory_equal(kv->rows, sample_rows, sizeof sample_rows);
    assert_string_equal(state->name, "state");
    assert_int_equal(state->mem, VNX_MEM_VRAM);
    assert_null(state->rows);
    assert_int_equal(state->count, 2);
    assert_memory_equal(state->strided, sample_strided, sizeof sample_strided);
}

static void
test_publication_is_read_as_written(void **state)
{
    (void)state;
    vnx_bytes_t bytes = publication_of(sample_lists, 2, NULL);
    vnxi_publication_t publication;
    vnx_error_t error;

    assert_int_equal(
        read_bytes(bytes.data, bytes.len, NULL, &publication, &error), VNX_OK);
    expect_lists(&publication);
    vnxi_publication_fini(&publication);
    vnxi_publication_fini(&publication);
    free(bytes.data);
}

/* The example of docs/wire.md. */
static void
test_publication_has_the_documented_bytes(void **state)
{
    (void)state;
    static const unsigned char expected[] =
        "VNXPUBL:\x01\x00\x00\x00\x01\x00\x00\x00"
        "\x08\x00\x00\x00\x00\x00\x00\x00metadata"
        "\x02\x00kv\x00\x01\x01\x00\x00\x00\x00\x00\x00\x00"
        "\x00\x10\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00"
        "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00"
        "\x00\x10\x00\x00\x00\x00\x00\x00"
        "\x9e\x22\x32\xe2\x6b\xea\x0f\xc5";
    static const vnx_strided_desc_t blocks = {0x1000, 0x200, 0, 0x400, 4096};
    vnx_named_rows_t list = {.name = "kv", .strided = &blocks, .count = 1};
    vnx_bytes_t bytes = publication_of(&list, 1, NULL);

    assert_int_equal(bytes.len, sizeof expected - 1);
    assert_memory_equal(bytes.data, expected, sizeof expected - 1);
    free(bytes.data);
}

static void
test_publication_without_lists(void **state)
{
    (void)state;
    vnx_bytes_t bytes = publication_of(NULL, 0, NULL);
    vnxi_publication_t publication;
    vnx_error_t error;

    assert_int_equal(
        read_bytes(bytes.data, bytes.len, NULL, &publication, &error), VNX_OK);
    assert_int_equal(publication.count, 0);
    vnxi_publication_fini(&publication);
    free(bytes.data);
}

static void
test_later_minor_version_may_append(void **state)
{
    (void)state;
    vnx_bytes_t bytes = publication_of(sample_lists, 2, NULL);
    size_t len = bytes.len + 5;
    unsigned char *longer = calloc(1, len);
    vnxi_publication_t publication;
    vnx_error_t error;

    memcpy(longer, bytes.data, bytes.len - 8);
    publication_seal(longer, len);
    refused(longer, len, "bytes or flags of a later version");
    longer[9] = 1;
    publication_seal(longer, len);
    assert_int_equal(read_bytes(longer, len, NULL, &publication, &error),
                     VNX_OK);
    expect_lists(&publication);
    vnxi_publication_fini(&publication);
    free(longer);
    free(bytes.data);
}

/* -- Damage --------------------------------------------------------------- */

static void
test_every_damage_is_refused(void **state)
{
    (void)state;
    vnx_bytes_t bytes = publication_of(sample_lists, 2, NULL);

    for (size_t kept = 0; kept < bytes.len; kept++) {
        char *part = damaged_copy(bytes.data, kept);
        refused(part, kept, "");
        free(part);
    }
    damaged_bits(bytes.data, bytes.len, refused);
    refused("nixlSerDes|Agent", 16, "not a publication");
    free(bytes.data);
}

/* Values at these offsets, with a correct checksum. */
static void
test_every_wrong_value_is_refused(void **state)
{
    (void)state;
    /* Head of 24 bytes, metadata of 8, then the list "kv" of two rows. */
    static const struct {
        size_t at;
        unsigned char value;
        const char *cause;
    } cases[] = {
        {8, 2, "has version 2, only 1 is supported"},
        {10, 2, "flags of a later version"},
        {10, 1, "cut off"}, /* the end is then taken for a MAC */
        {12, 3, "cut off in a list"},
        {12, 1, "bytes or flags"},
        {13, 0xff, "too many lists"},
        {15, 0xff, "too many lists"},
        {16, 9, "in a list"},
        {17, 9, "in its metadata"},
        {23, 0xff, "in its metadata"},
        {32, 0, "in a list"},
        {33, 0xff, "in a list"},
        {34, 0, "zero byte"},
        {36, 5, "its memory type is unknown"},
        {37, 2, "unknown form"},
        {38, 0, "in a list"},
        {45, 0xff, "in a list"},
    };
    vnx_bytes_t bytes = publication_of(sample_lists, 2, NULL);

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        unsigned char *copy = (void *)damaged_copy(bytes.data, bytes.len);
        copy[cases[i].at] = cases[i].value;
        publication_seal(copy, bytes.len);
        refused(copy, bytes.len, cases[i].cause);
        free(copy);
    }
    free(bytes.data);
}

static void
test_wrong_lists_are_refused(void **state)
{
    (void)state;
    char long_name[VNX_LIST_NAME_MAX + 2];
    vnx_named_rows_t lists[] = {sample_lists[0], sample_lists[1]};
    vnx_error_t error;

    memset(long_name, 'x', sizeof long_name - 1);
    long_name[sizeof long_name - 1] = '\0';
    lists[1].name = "";
    vnx_bytes_t bytes = publication_of(lists, 2, NULL);
    refused(bytes.data, bytes.len, "list '' (number 1): its name is empty");
    free(bytes.data);
    lists[1].name = long_name;
    bytes = publication_of(lists, 2, NULL);
    refused(bytes.data, bytes.len, "its name has more than 255 bytes");
    free(bytes.data);
    lists[1].name = "empty";
    lists[1].count = 0;
    bytes = publication_of(lists, 2, NULL);
    refused(bytes.data, bytes.len, "list 'empty' (number 1): it has no rows");
    free(bytes.data);
    lists[1].name = "kv";
    lists[1].count = 2;
    bytes = publication_of(lists, 2, NULL);

    refused(bytes.data, bytes.len,
            "list 'kv' (number 1): another list has the same name");
    free(bytes.data);
    assert_int_equal(vnxi_publication_check("vnx_publish", lists, 2, &error),
                     VNX_ERR_INVALID_PARAM);
}

/* 40 bytes must not stand for more rows than memory can be had for. */
static void
test_number_of_rows_is_limited(void **state)
{
    (void)state;
    vnx_strided_desc_t rows[2] = {{.addr = 0x1000, .len = 8}};
    vnx_named_rows_t list = {.name = "kv", .strided = rows, .count = 1};
    vnx_error_t error;

    rows[0].count = VNX_PUBLISH_ROWS_MAX;
    assert_int_equal(vnxi_publication_check("vnx_publish", &list, 1, &error),
                     VNX_OK);
    list.count = 2;
    rows[1] = (vnx_strided_desc_t){.addr = 0x1000, .len = 8, .count = 1};
    for (int i = 0; i < 2; i++) {
        vnx_bytes_t bytes = publication_of(&list, 1, NULL);
        refused(bytes.data, bytes.len, "at most 67108864 rows");
        free(bytes.data);
        rows[1].count = UINT64_MAX; /* the sum wraps around */
    }
}

/* -- Signatures ----------------------------------------------------------- */

static void
test_signature_is_checked(void **state)
{
    (void)state;
    vnxi_signature_key_t key = {0}, other = {0};
    vnx_error_t error;
    vnxi_publication_t publication;

    if (!vnxi_mac_is_there()) {
        skip();
    }
    assert_int_equal(
        vnxi_signature_key_init(&key, "the same secret", 15, &error), VNX_OK);
    assert_int_equal(
        vnxi_signature_key_init(&other, "another secret", 14, &error), VNX_OK);
    vnx_bytes_t plain = publication_of(sample_lists, 2, NULL);
    vnx_bytes_t bytes = publication_of(sample_lists, 2, &key);
    assert_int_equal(bytes.len, plain.len + VNXI_MAC_LEN);
    for (int i = 0; i < 2; i++) { /* with the key, and without any */
        assert_int_equal(read_bytes(bytes.data, bytes.len,
                                    i == 0 ? &key : NULL, &publication,
                                    &error),
                         VNX_OK);
        expect_lists(&publication);
        vnxi_publication_fini(&publication);
    }
    refused_with(VNX_ERR_NOT_ALLOWED, bytes.data, bytes.len, &other,
                 "the signature is wrong");
    refused_with(VNX_ERR_NOT_ALLOWED, plain.data, plain.len, &key,
                 "is not signed");
    ((unsigned char *)bytes.data)[50] ^= 1; /* in a row */
    publication_seal(bytes.data, bytes.len);
    refused_with(VNX_ERR_NOT_ALLOWED, bytes.data, bytes.len, &key,
                 "the signature is wrong");
    free(bytes.data);
    free(plain.data);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_publication_is_read_as_written),
        cmocka_unit_test(test_publication_has_the_documented_bytes),
        cmocka_unit_test(test_publication_without_lists),
        cmocka_unit_test(test_later_minor_version_may_append),
        cmocka_unit_test(test_every_damage_is_refused),
        cmocka_unit_test(test_every_wrong_value_is_refused),
        cmocka_unit_test(test_wrong_lists_are_refused),
        cmocka_unit_test(test_number_of_rows_is_limited),
        cmocka_unit_test(test_signature_is_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
