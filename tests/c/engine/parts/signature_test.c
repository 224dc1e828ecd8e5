#include "vnx_test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/parts/metadata.h"
#include "engine/parts/signature.h"

#define VARIABLE "VLLM_NIXL_METADATA_SECRET"
#define SECRET "correct horse battery staple"
#define TEXT(text) ((vnxi_md_bytes_t){(text), sizeof(text) - 1})

/* The MAC of sample_blob() under SECRET, by Python's hmac:
 * HMAC(HMAC("vnx1 metadata", SECRET), all bytes before the MAC). */
static const unsigned char golden_mac[VNXI_MAC_LEN] = {
    0x9d, 0xc8, 0xf0, 0xb6, 0xf8, 0x6b, 0x2c, 0x22, 0xb9, 0xe3, 0xd5,
    0xb0, 0xbd, 0xd7, 0xa5, 0x68, 0xe3, 0xca, 0x99, 0x7a, 0x92, 0x96,
    0x03, 0xa7, 0x14, 0x28, 0x92, 0xbb, 0xa7, 0x16, 0xfb, 0x89};

/* Without OpenSSL there is one thing to test, at the end. */
static void
need_openssl(void)
{
    if (!vnxi_mac_is_there()) {
        print_message("this build has no OpenSSL\n");
        skip();
    }
}

static vnxi_signature_key_t
key_of(const char *secret)
{
    vnxi_signature_key_t key = {.is_set = false};
    assert_int_equal(
        vnxi_signature_key_init(&key, secret, strlen(secret), NULL), VNX_OK);
    assert_true(key.is_set);
    return key;
}

/* Agent "A1", a UCX connection, one DRAM region; `conns` and `sections` 0 or
 * 1. */
static vnx_bytes_t
blob_of(size_t conns, size_t sections)
{
    vnxi_md_region_t region = {
        .addr = 0x1000, .len = 0x200, .public_data = TEXT("<rkey>")};
    vnxi_md_section_t section = {.backend = TEXT("UCX"),
                                 .mem = VNX_MEM_DRAM,
                                 .regions = &region,
                                 .count = 1};
    vnxi_md_conn_t conn = {.backend = TEXT("UCX"),
                           .info = TEXT("<worker address>")};
    const vnxi_metadata_t metadata = {.agent = TEXT("A1"),
                                      .conns = &conn,
                                      .conn_count = conns,
                                      .sections = &section,
                                      .section_count = sections};
    vnxi_writer_t writer = {0};
    vnx_bytes_t blob;
    vnxi_metadata_write(&writer, &metadata);
    assert_true(vnxi_writer_take(&writer, &blob.data, &blob.len));
    return blob;
}

static vnx_bytes_t
signed_blob(const char *secret)
{
    vnx_bytes_t blob = blob_of(1, 1);
    vnxi_signature_key_t key = key_of(secret);
    assert_int_equal(vnxi_signature_add(&key, "op", &blob, NULL), VNX_OK);
    return blob;
}

static bool
is_good(const char *secret, const void *blob, size_t len)
{
    vnxi_signature_key_t key = key_of(secret);
    return vnxi_signature_check(&key, blob, len, NULL) == VNX_OK;
}

/* Refused, as being of the peer `peer`, by a cause that has `part` in it. */
static void
assert_refused(const void *blob, size_t len, vnx_status_t status,
               const char *peer, const char *part)
{
    vnxi_signature_key_t key = key_of(SECRET);
    vnx_error_t error = {.operation = ""};
    assert_int_equal(vnxi_signature_check(&key, blob, len, &error), status);
    assert_string_equal(error.operation, "vnx_agent_load_metadata");
    assert_string_equal(error.peer, peer);
    if (strstr(error.cause, part) == NULL) {
        fail_msg("'%s' is not in '%s'", part, error.cause);
    }
    assert_null(strstr(error.cause, SECRET));
}

/* -- The bytes ------------------------------------------------------------ */

static void
test_signature_has_the_documented_bytes(void **state)
{
    (void)state;
    need_openssl();
    vnx_bytes_t blob = signed_blob(SECRET), plain = blob_of(1, 1);
    const unsigned char *bytes = blob.data;

    assert_int_equal(blob.len, plain.len + VNXI_SIGNATURE_LEN);
    assert_memory_equal(bytes + blob.len - 33, golden_mac, sizeof golden_mac);
    free(blob.data);
    free(plain.data);
}

/* The signature is an additional section, of a backend that does not exist;
 * the rest of the blob does not change. */
static void
test_signature_keeps_the_blob_parsable(void **state)
{
    (void)state;
    need_openssl();
    vnx_bytes_t blob = signed_blob(SECRET);
    vnxi_metadata_t metadata;
    assert_int_equal(vnxi_metadata_parse(blob.data, blob.len, &metadata, NULL),
                     VNX_OK);

    assert_int_equal(metadata.conn_count, 1);
    assert_int_equal(metadata.section_count, 2);
    const vnxi_md_section_t *section = &metadata.sections[1];
    assert_int_equal(section->backend.len, 7);
    assert_memory_equal(section->backend.data, "VNXSIGN", 7);
    assert_int_equal(section->mem, VNX_MEM_DRAM);
    assert_int_equal(section->count, 1);
    const vnxi_md_region_t *region = section->regions;
    assert_true(region->addr == 0 && region->len == 0 && region->dev == 0);
    assert_int_equal(region->public_data.len, 2 + 13 + VNXI_MAC_LEN);
    assert_memory_equal(region->public_data.data, "\x01\x01vnx1 metadata", 15);

    /* Without it, the blob is the one that was signed. */
    vnxi_writer_t writer = {0};
    vnx_bytes_t plain = blob_of(1, 1);
    metadata.section_count = 1;
    vnxi_metadata_write(&writer, &metadata);
    assert_int_equal(writer.len, plain.len);
    assert_memory_equal(writer.data, plain.data, plain.len);
    metadata.section_count = 2;
    vnxi_writer_fini(&writer);
    vnxi_metadata_fini(&metadata);
    free(plain.data);
    free(blob.data);
}

static void
test_signature_covers_every_kind_of_blob(void **state)
{
    (void)state;
    need_openssl();
    vnxi_signature_key_t key = key_of(SECRET);

    for (unsigned kind = 0; kind < 4; kind++) {
        vnx_bytes_t blob = blob_of(kind & 1, kind >> 1);
        assert_int_equal(vnxi_signature_check(&key, blob.data, blob.len, NULL),
                         VNX_ERR_NOT_ALLOWED);
        assert_int_equal(vnxi_signature_add(&key, "op", &blob, NULL), VNX_OK);
        assert_int_equal(vnxi_signature_check(&key, blob.data, blob.len, NULL),
                         VNX_OK);
        free(blob.data);
    }
}

/* -- What is refused ------------------------------------------------------ */

static void
test_signature_check_refuses_any_flipped_bit(void **state)
{
    (void)state;
    need_openssl();
    vnx_bytes_t blob = signed_blob(SECRET);
    vnxi_signature_key_t key = key_of(SECRET);
    unsigned char *bytes = blob.data;

    for (size_t bit = 0; bit < 8 * blob.len; bit++) {
        unsigned char mask = (unsigned char)(1u << bit % 8);
        bytes[bit / 8] ^= mask;
        vnx_status_t status =
            vnxi_signature_check(&key, blob.data, blob.len, NULL);
        bytes[bit / 8] ^= mask;
        if (status != VNX_ERR_NOT_ALLOWED && status != VNX_ERR_MISMATCH) {
            fail_msg("bit %zu flipped: status %d", bit, (int)status);
        }
    }
    assert_true(is_good(SECRET, blob.data, blob.len));
    free(blob.data);
}

/* Each in memory of its own, so that a sanitizer sees a read beyond it. */
static void
test_signature_check_refuses_a_shortened_blob(void **state)
{
    (void)state;
    need_openssl();
    vnx_bytes_t blob = signed_blob(SECRET);
    const unsigned char *bytes = blob.data;

    for (size_t len = 0; len < blob.len; len++) {
        unsigned char *head = malloc(len + (len == 0));
        unsigned char *tail = malloc(len + (len == 0));
        memcpy(head, bytes, len);
        memcpy(tail, bytes + blob.len - len, len);
        assert_false(is_good(SECRET, head, len));
        assert_false(is_good(SECRET, tail, len));
        free(head);
        free(tail);
    }
    assert_refused(NULL, 0, VNX_ERR_MISMATCH, "", "nixlSerDes");
    free(blob.data);
}

static void
test_signature_check_refuses_a_lengthened_blob(void **state)
{
    (void)state;
    need_openssl();
    vnx_bytes_t blob = signed_blob(SECRET);
    unsigned char *longer = calloc(1, blob.len + VNXI_SIGNATURE_LEN);
    memcpy(longer, blob.data, blob.len);

    for (size_t more = 1; more <= VNXI_SIGNATURE_LEN; more++) {
        assert_false(is_good(SECRET, longer, blob.len + more));
    }
    longer[blob.len] = '|';
    assert_false(is_good(SECRET, longer, blob.len + 1));
    free(longer);
    free(blob.data);
}

static void
test_signature_errors_have_a_cause(void **state)
{
    (void)state;
    need_openssl();
    vnx_bytes_t plain = blob_of(1, 1), other = signed_blob("another secret");

    assert_refused(plain.data, plain.len, VNX_ERR_NOT_ALLOWED, "A1",
                   "is not signed, but this agent has a metadata_secret");
    assert_refused(other.data, other.len, VNX_ERR_NOT_ALLOWED, "A1",
                   "the signature is wrong: it was made with another secret, "
                   "or the metadata was changed");
    assert_refused("garbage", 7, VNX_ERR_MISMATCH, "", "metadata byte 0");

    /* A name that cannot be read is not shown, whatever the signature. */
    ((unsigned char *)other.data)[0] ^= 1;
    assert_refused(other.data, other.len, VNX_ERR_NOT_ALLOWED, "",
                   "the signature is wrong");
    free(plain.data);
    free(other.data);
}

/* The signature of one blob behind another, and twice behind its own. */
static void
test_signature_is_valid_for_its_blob_only(void **state)
{
    (void)state;
    need_openssl();
    vnx_bytes_t full = signed_blob(SECRET), less = blob_of(1, 0);
    vnxi_signature_key_t key = key_of(SECRET);
    const unsigned char *signature =
        (unsigned char *)full.data + full.len - VNXI_SIGNATURE_LEN;

    assert_int_equal(vnxi_signature_add(&key, "op", &less, NULL), VNX_OK);
    memcpy((unsigned char *)less.data + less.len - VNXI_SIGNATURE_LEN,
           signature, VNXI_SIGNATURE_LEN);
    assert_false(is_good(SECRET, less.data, less.len));

    size_t count_at, len = full.len + VNXI_SIGNATURE_LEN;
    uint64_t count;
    unsigned char *twice = malloc(len);
    memcpy(twice, full.data, full.len);
    memcpy(twice + full.len, signature, VNXI_SIGNATURE_LEN);
    assert_false(is_good(SECRET, twice, len));
    assert_true(vnxi_metadata_sections_at(twice, len, &count_at, &count));
    assert_int_equal(count, 2);
    twice[count_at] = 3;
    assert_false(is_good(SECRET, twice, len));
    free(twice);
    free(less.data);
    free(full.data);
}

static void
test_signature_add_refuses_other_data(void **state)
{
    (void)state;
    need_openssl();
    vnxi_signature_key_t key = key_of(SECRET);
    vnx_bytes_t whole = blob_of(1, 1);
    size_t count_at;
    uint64_t count;
    vnx_error_t error;

    assert_true(
        vnxi_metadata_sections_at(whole.data, whole.len, &count_at, &count));
    for (size_t len = 0; len < count_at + 9; len++) {
        vnx_bytes_t cut = {malloc(len + 1), len};
        memcpy(cut.data, whole.data, len);
        assert_int_equal(vnxi_signature_add(&key, "op", &cut, &error),
                         VNX_ERR_UNKNOWN);
        assert_string_equal(error.operation, "op");
        assert_int_equal(cut.len, len);
        assert_memory_equal(cut.data, whole.data, len);
        free(cut.data);
    }
    free(whole.data);
}

/* -- The key -------------------------------------------------------------- */

static void
test_signature_key_differs_for_each_secret(void **state)
{
    (void)state;
    need_openssl();
    static const char long_zeros[65] = SECRET;
    const struct {
        const char *bytes;
        size_t len;
    } secrets[] = {
        {SECRET, strlen(SECRET)},
        {SECRET, strlen(SECRET) - 1},
        {long_zeros, strlen(SECRET) + 1}, /* equal to the first as an HMAC's */
        {long_zeros, sizeof long_zeros},  /* key, which is filled with 0 */
        {"vnx1 metadata", 13},
    };
    const size_t count = sizeof secrets / sizeof secrets[0];
    vnxi_signature_key_t keys[5] = {{.is_set = false}};

    for (size_t i = 0; i < count; i++) {
        assert_int_equal(vnxi_signature_key_init(&keys[i], secrets[i].bytes,
                                                 secrets[i].len, NULL),
                         VNX_OK);
        for (size_t j = 0; j < i; j++) {
            assert_memory_not_equal(keys[i].bytes, keys[j].bytes,
                                    VNXI_MAC_LEN);
        }
    }
}

static void
test_signature_secret_has_8_to_65535_bytes(void **state)
{
    (void)state;
    static char secret[VNX_METADATA_SECRET_MAX + 1];
    const size_t wrong[] = {0, 1, 7, sizeof secret};
    vnxi_signature_key_t key = {.is_set = false};
    vnx_error_t error;

    memset(secret, 'x', sizeof secret);
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        assert_int_equal(
            vnxi_signature_key_init(&key, secret, wrong[i], &error),
            VNX_ERR_INVALID_PARAM);
        assert_false(key.is_set);
        assert_non_null(strstr(error.cause, "metadata_secret must have"));
        assert_null(strstr(error.cause, "xxx"));
    }
    need_openssl();
    assert_int_equal(vnxi_signature_key_init(&key, secret, 8, NULL), VNX_OK);
    assert_int_equal(
        vnxi_signature_key_init(&key, secret, sizeof secret - 1, NULL),
        VNX_OK);
}

static void
test_signature_key_falls_back_to_the_environment(void **state)
{
    (void)state;
    vnxi_signature_key_t key = {.is_set = false};
    vnx_error_t error;

    unsetenv(VARIABLE);
    assert_int_equal(vnxi_signature_key_init(&key, NULL, 0, NULL), VNX_OK);
    assert_false(key.is_set);
    setenv(VARIABLE, "", 1);
    assert_int_equal(vnxi_signature_key_init(&key, NULL, 0, &error),
                     VNX_ERR_INVALID_PARAM);
    assert_non_null(strstr(error.cause, VARIABLE " must have 8"));
    assert_false(key.is_set);
    if (vnxi_mac_is_there()) {
        vnxi_signature_key_t given = key_of("given secret");
        setenv(VARIABLE, SECRET, 1);
        vnxi_signature_key_t preferred = key_of("given secret");
        assert_memory_equal(preferred.bytes, given.bytes, VNXI_MAC_LEN);
        assert_int_equal(vnxi_signature_key_init(&key, NULL, 0, NULL), VNX_OK);
        given = key_of(SECRET);
        assert_memory_equal(key.bytes, given.bytes, VNXI_MAC_LEN);
    }
    unsetenv(VARIABLE);
}

static void
test_signature_key_is_cleared(void **state)
{
    (void)state;
    need_openssl();
    static const vnxi_signature_key_t cleared;
    vnxi_signature_key_t key = key_of(SECRET);
    vnxi_signature_key_fini(&key);
    assert_memory_equal(&key, &cleared, sizeof key);
}

static void
test_signature_key_needs_openssl(void **state)
{
    (void)state;
    vnxi_signature_key_t key = {.is_set = false};
    vnx_error_t error;

    if (vnxi_mac_is_there()) {
        print_message("this build has OpenSSL\n");
        skip();
    }
    assert_int_equal(
        vnxi_signature_key_init(&key, SECRET, strlen(SECRET), &error),
        VNX_ERR_NOT_SUPPORTED);
    assert_non_null(strstr(error.cause, "OpenSSL"));
    setenv(VARIABLE, SECRET, 1);
    assert_int_equal(vnxi_signature_key_init(&key, NULL, 0, &error),
                     VNX_ERR_NOT_SUPPORTED);
    unsetenv(VARIABLE);
    assert_false(key.is_set);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_signature_has_the_documented_bytes),
        cmocka_unit_test(test_signature_keeps_the_blob_parsable),
        cmocka_unit_test(test_signature_covers_every_kind_of_blob),
        cmocka_unit_test(test_signature_check_refuses_any_flipped_bit),
        cmocka_unit_test(test_signature_check_refuses_a_shortened_blob),
        cmocka_unit_test(test_signature_check_refuses_a_lengthened_blob),
        cmocka_unit_test(test_signature_errors_have_a_cause),
        cmocka_unit_test(test_signature_is_valid_for_its_blob_only),
        cmocka_unit_test(test_signature_add_refuses_other_data),
        cmocka_unit_test(test_signature_key_differs_for_each_secret),
        cmocka_unit_test(test_signature_secret_has_8_to_65535_bytes),
        cmocka_unit_test(test_signature_key_falls_back_to_the_environment),
        cmocka_unit_test(test_signature_key_is_cleared),
        cmocka_unit_test(test_signature_key_needs_openssl),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
