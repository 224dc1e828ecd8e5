#include "vnx_test.h"

#include <stdlib.h>
#include <string.h>

#include "engine/parts/metadata.h"
#include "stock_blob.h"

#define TEXT(text) ((vnxi_md_bytes_t){(text), sizeof(text) - 1})
#define COUNT(array) (sizeof(array) / sizeof *(array))

/* Agent "A1", a UCX connection of 16 bytes, one DRAM region at 0x1000 of 0x200
 * bytes with 6 bytes of public metadata; put together by hand. */
static const char golden[] = "nixlSerDes|"
                             "Agent\x02\0\0\0\0\0\0\0A1|"
                             "Conns\x08\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0|"
                             "t\x03\0\0\0\0\0\0\0UCX|"
                             "c\x10\0\0\0\0\0\0\0<worker address>|"
                             "\x0a\0\0\0\0\0\0\0MemSection|"
                             "nixlSecElms\x08\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0|"
                             "bknd\x03\0\0\0\0\0\0\0UCX|"
                             "nixlDList\x0a\0\0\0\0\0\0\0nixlSDList|"
                             "t\x04\0\0\0\0\0\0\0\0\0\0\0|"
                             "n\x08\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0|"
                             "\x1e\0\0\0\0\0\0\0"
                             "\0\x10\0\0\0\0\0\0"
                             "\0\x02\0\0\0\0\0\0"
                             "\0\0\0\0\0\0\0\0"
                             "<rkey>|";
#define GOLDEN_SIZE (sizeof golden - 1)

/* The contents of the golden bytes, for tests to modify. */
typedef struct sample {
    vnxi_metadata_t metadata;
    vnxi_md_conn_t conn;
    vnxi_md_section_t section;
    vnxi_md_region_t region;
} sample_t;

static void
sample_init(sample_t *sample)
{
    sample->region = (vnxi_md_region_t){
        .addr = 0x1000, .len = 0x200, .public_data = TEXT("<rkey>")};
    sample->section = (vnxi_md_section_t){.backend = TEXT("UCX"),
                                          .mem = VNX_MEM_DRAM,
                                          .regions = &sample->region,
                                          .count = 1};
    sample->conn = (vnxi_md_conn_t){.backend = TEXT("UCX"),
                                    .info = TEXT("<worker address>")};
    sample->metadata = (vnxi_metadata_t){.agent = TEXT("A1"),
                                         .conns = &sample->conn,
                                         .conn_count = 1,
                                         .sections = &sample->section,
                                         .section_count = 1};
}

static vnxi_writer_t
encode(const vnxi_metadata_t *metadata)
{
    vnxi_writer_t writer = {0};
    vnxi_metadata_write(&writer, metadata);
    assert_false(writer.failed);
    return writer;
}

static void
assert_bytes(vnxi_md_bytes_t bytes, const char *text)
{
    assert_int_equal(bytes.len, strlen(text));
    assert_memory_equal(bytes.data, text, bytes.len);
}

/* The bytes are refused, by a cause that has `part` in it, and the output is
 * left alone. */
static void
assert_refused(const void *blob, size_t len, const char *part)
{
    vnxi_metadata_t metadata = {.conn_count = 77};
    vnx_error_t error = {0};
    assert_int_equal(vnxi_metadata_parse(blob, len, &metadata, &error),
                     VNX_ERR_MISMATCH);
    assert_string_equal(error.operation, "vnx_agent_load_metadata");
    if (strstr(error.cause, part) == NULL) {
        fail_msg("'%s' is not in '%s'", part, error.cause);
    }
    assert_int_equal(metadata.conn_count, 77);
}

static void
assert_sample_refused(const sample_t *sample, const char *part)
{
    vnxi_writer_t writer = encode(&sample->metadata);
    assert_refused(writer.data, writer.len, part);
    vnxi_writer_fini(&writer);
}

/* Metadata has one encoding: accepted metadata is written back unchanged. */
static bool
taken_consistently(const void *blob, size_t len)
{
    vnxi_metadata_t metadata;
    vnx_error_t error;
    vnx_status_t status = vnxi_metadata_parse(blob, len, &metadata, &error);
    if (status != VNX_OK) {
        assert_int_equal(status, VNX_ERR_MISMATCH);
        assert_non_null(strstr(error.cause, "metadata byte "));
        return false;
    }
    vnxi_writer_t writer = encode(&metadata);
    assert_int_equal(writer.len, len);
    assert_memory_equal(writer.data, blob, len);
    vnxi_writer_fini(&writer);
    vnxi_metadata_fini(&metadata);
    return true;
}

/* -- Good ones ------------------------------------------------------------ */

static void
test_metadata_writes_the_golden_bytes(void **state)
{
    (void)state;
    sample_t sample;
    sample_init(&sample);
    vnxi_writer_t writer = encode(&sample.metadata);

    assert_int_equal(GOLDEN_SIZE, 250);
    assert_int_equal(writer.len, GOLDEN_SIZE);
    assert_memory_equal(writer.data, golden, GOLDEN_SIZE);
    vnxi_writer_fini(&writer);
}

static void
test_metadata_parses_the_golden_bytes(void **state)
{
    (void)state;
    vnxi_metadata_t metadata;
    assert_int_equal(vnxi_metadata_parse(golden, GOLDEN_SIZE, &metadata, NULL),
                     VNX_OK);

    assert_bytes(metadata.agent, "A1");
    assert_int_equal(metadata.conn_count, 1);
    assert_bytes(metadata.conns[0].backend, "UCX");
    assert_bytes(metadata.conns[0].info, "<worker address>");
    assert_int_equal(metadata.section_count, 1);
    const vnxi_md_section_t *section = &metadata.sections[0];
    assert_bytes(section->backend, "UCX");
    assert_int_equal(section->mem, VNX_MEM_DRAM);
    assert_int_equal(section->count, 1);
    assert_true(section->regions[0].addr == 0x1000);
    assert_true(section->regions[0].len == 0x200);
    assert_true(section->regions[0].dev == 0);
    assert_bytes(section->regions[0].public_data, "<rkey>");
    vnxi_metadata_fini(&metadata);
}

static void
test_metadata_of_a_stock_agent_parses(void **state)
{
    (void)state;
    vnxi_metadata_t metadata;
    assert_int_equal(
        vnxi_metadata_parse(stock_blob, sizeof stock_blob, &metadata, NULL),
        VNX_OK);

    assert_bytes(metadata.agent, "stock-agent");
    assert_int_equal(metadata.conn_count, 1);
    assert_bytes(metadata.conns[0].backend, "UCX");
    assert_int_equal(metadata.conns[0].info.len, 48);
    assert_int_equal(metadata.section_count, 1);
    assert_int_equal(metadata.sections[0].mem, VNX_MEM_DRAM);
    assert_int_equal(metadata.sections[0].count, 2);
    assert_true(metadata.sections[0].regions[0].len == 4096);
    assert_true(metadata.sections[0].regions[1].len == 8192);
    vnxi_metadata_fini(&metadata);
    assert_true(taken_consistently(stock_blob, sizeof stock_blob));
}

static void
test_metadata_may_have_neither_connections_nor_sections(void **state)
{
    (void)state;
    vnxi_metadata_t bare = {.agent = TEXT("x")}, parsed;
    vnxi_writer_t writer = encode(&bare);

    assert_int_equal(
        vnxi_metadata_parse(writer.data, writer.len, &parsed, NULL), VNX_OK);
    assert_int_equal(parsed.conn_count, 0);
    assert_int_equal(parsed.section_count, 0);
    vnxi_metadata_fini(&parsed);
    vnxi_metadata_fini(&parsed); /* again: it is all zeros now */
    vnxi_writer_fini(&writer);
}

static void
test_metadata_round_trip_keeps_every_type_and_any_bytes(void **state)
{
    (void)state;
    sample_t sample;
    vnxi_md_conn_t conns[] = {
        {TEXT("SHM"), TEXT("|t\0c\0nixlSerDes|")},
        {TEXT("UCX"), TEXT("|")},
        {TEXT("\xff\0|"), TEXT("x")},
    };
    vnxi_md_region_t regions[] = {
        {0, UINT64_MAX, UINT64_MAX, TEXT("")},
        {UINT64_MAX, 0, 1, TEXT("||||")},
    };
    vnxi_md_section_t sections[VNX_MEM_COUNT];

    sample_init(&sample);
    for (int mem = 0; mem < VNX_MEM_COUNT; mem++) {
        sections[mem] = (vnxi_md_section_t){.backend = TEXT("SHM"),
                                            .mem = (vnx_mem_t)mem,
                                            .regions = regions,
                                            .count = 2};
    }
    sample.metadata.agent = TEXT("\0a|b\xff");
    sample.metadata.conns = conns;
    sample.metadata.conn_count = COUNT(conns);
    sample.metadata.sections = sections;
    sample.metadata.section_count = COUNT(sections);
    vnxi_writer_t writer = encode(&sample.metadata);
    assert_true(taken_consistently(writer.data, writer.len));
    vnxi_writer_fini(&writer);
}

static void
test_metadata_of_many_overlapping_regions_parses(void **state)
{
    (void)state;
    enum { MANY = 100000 };
    sample_t sample;
    vnxi_md_region_t *regions = malloc(MANY * sizeof *regions);
    assert_non_null(regions);
    for (uint64_t i = 0; i < MANY; i++) {
        regions[i] = (vnxi_md_region_t){
            .addr = i, .len = MANY, .dev = i % 2, .public_data = TEXT("")};
    }
    sample_init(&sample);
    sample.section.regions = regions;
    sample.section.count = MANY;
    vnxi_writer_t writer = encode(&sample.metadata);
    assert_true(taken_consistently(writer.data, writer.len));
    vnxi_writer_fini(&writer);
    free(regions);
}

static void
test_metadata_storage_may_be_all_of_it(void **state)
{
    (void)state;
    sample_t sample;
    sample_init(&sample);
    sample.section.mem = VNX_MEM_FILE;
    sample.region.len = UINT64_MAX;
    vnxi_writer_t writer = encode(&sample.metadata);
    assert_true(taken_consistently(writer.data, writer.len));
    vnxi_writer_fini(&writer);

    sample.section.mem = VNX_MEM_DRAM;
    assert_sample_refused(&sample, "exceeds the address space");
}

/* -- Bad ones ------------------------------------------------------------- */

static void
test_metadata_refusal_names_field_and_byte(void **state)
{
    (void)state;
    unsigned char blob[GOLDEN_SIZE];
    const struct {
        size_t at;
        unsigned char value;
        const char *cause;
    } cases[] = {
        {0, 'N', "metadata byte 0: tag 'nixlSerDes|' expected"},
        {11, 'a', "metadata byte 11: tag 'Agent' expected"},
        {16, 0, "metadata byte 24: '|' expected after 'Agent'"},
        {26, '?', "metadata byte 26: '|' expected after 'Agent'"},
        {32, 7, "metadata byte 47: '|' expected after 'Conns'"},
        {49, 'T', "metadata byte 49: tag 't' expected"},
        {62, 'k', "metadata byte 62: tag 'c' expected"},
        {63, 0xff, "metadata byte 63: 'c' and its '|' take 255 + 1 bytes"},
        {96, 'm', "metadata byte 88: 'MemSection' expected"},
    };

    for (size_t i = 0; i < COUNT(cases); i++) {
        memcpy(blob, golden, GOLDEN_SIZE);
        blob[cases[i].at] = cases[i].value;
        assert_refused(blob, sizeof blob, cases[i].cause);
    }
}

static void
test_metadata_refuses_a_number_of_another_width(void **state)
{
    (void)state;
    /* The memory type, as four bytes, and as eight. */
    const size_t length_at = 180;
    char blob[GOLDEN_SIZE + 4];

    memcpy(blob, golden, length_at + 12);
    memset(blob + length_at + 12, 0, 4);
    memcpy(blob + length_at + 16, golden + length_at + 12,
           GOLDEN_SIZE - length_at - 12);
    assert_int_equal(blob[length_at], 4);
    blob[length_at] = 8;
    assert_refused(blob, sizeof blob,
                   "metadata byte 179: 't' has 8 bytes, not 4");
}

static void
test_metadata_refuses_empty_names(void **state)
{
    (void)state;
    sample_t sample;

    sample_init(&sample);
    sample.metadata.agent.len = 0;
    assert_sample_refused(&sample, "'Agent' is empty");
    sample_init(&sample);
    sample.conn.backend.len = 0;
    assert_sample_refused(&sample, "'t' is empty");
    sample_init(&sample);
    sample.conn.info.len = 0;
    assert_sample_refused(&sample, "'c' is empty");
    sample_init(&sample);
    sample.section.backend.len = 0;
    assert_sample_refused(&sample, "'bknd' is empty");
}

static void
test_metadata_refuses_impossible_sections(void **state)
{
    (void)state;
    sample_t sample;

    sample_init(&sample);
    sample.section.mem = (vnx_mem_t)5;
    assert_sample_refused(&sample, "memory type 5 is unknown");
    sample.section.mem = (vnx_mem_t)-1;
    assert_sample_refused(&sample, "memory type 4294967295 is unknown");
    sample_init(&sample);
    sample.region.addr = UINT64_MAX - 0x1ff;
    assert_sample_refused(&sample, "exceeds the address space");
}

static void
test_metadata_refuses_an_empty_section(void **state)
{
    (void)state;
    sample_t sample;
    sample_init(&sample);
    /* A good section behind it gives its count enough bytes. */
    vnxi_md_section_t sections[2] = {sample.section, sample.section};
    sections[0].count = 0;
    sample.metadata.sections = sections;
    sample.metadata.section_count = 2;
    vnxi_writer_t writer = encode(&sample.metadata);
    vnxi_write_bytes(&writer, golden, GOLDEN_SIZE);
    assert_refused(writer.data, writer.len, "a section without regions");
    vnxi_writer_fini(&writer);
}

static void
test_metadata_refuses_a_region_that_is_too_short(void **state)
{
    (void)state;
    sample_t sample;
    sample_init(&sample);
    sample.region.public_data = TEXT("");
    vnxi_writer_t writer = encode(&sample.metadata);
    /* The last field: 8 of length, 24 of value, and the bar. */
    unsigned char *field = writer.data + writer.len - 33;
    field[0] = 23;
    field[8 + 23] = '|';
    vnxi_write_bytes(&writer, "|", 1);
    assert_refused(writer.data, writer.len - 1, "a region has 23 bytes");
    vnxi_writer_fini(&writer);
}

static void
test_metadata_refuses_a_second_connection_of_a_backend(void **state)
{
    (void)state;
    sample_t sample;
    sample_init(&sample);
    vnxi_md_conn_t conns[] = {
        sample.conn, {TEXT("SHM"), TEXT("x")}, {TEXT("UCX"), TEXT("y")}};
    sample.metadata.conns = conns;
    sample.metadata.conn_count = 3;
    assert_sample_refused(&sample, "two connections of one backend");
    sample.metadata.conn_count = 2;
    vnxi_writer_t writer = encode(&sample.metadata);
    assert_true(taken_consistently(writer.data, writer.len));
    vnxi_writer_fini(&writer);
}

static void
test_metadata_refuses_too_many_connections(void **state)
{
    (void)state;
    sample_t sample;
    unsigned char names[VNXI_METADATA_CONNS_MAX + 1][2];
    vnxi_md_conn_t conns[VNXI_METADATA_CONNS_MAX + 1];

    sample_init(&sample);
    for (size_t i = 0; i < COUNT(conns); i++) {
        names[i][0] = (unsigned char)i;
        names[i][1] = (unsigned char)(i >> 8);
        conns[i] =
            (vnxi_md_conn_t){.backend = {names[i], 2}, .info = TEXT("x")};
    }
    sample.metadata.conns = conns;
    sample.metadata.conn_count = COUNT(conns);
    assert_sample_refused(&sample, "at most 256");
    sample.metadata.conn_count--;
    vnxi_writer_t writer = encode(&sample.metadata);
    assert_true(taken_consistently(writer.data, writer.len));
    vnxi_writer_fini(&writer);
}

static void
test_metadata_refuses_trailing_bytes(void **state)
{
    (void)state;
    char longer[GOLDEN_SIZE + 1];
    memcpy(longer, golden, GOLDEN_SIZE);
    longer[GOLDEN_SIZE] = '|';
    assert_refused(longer, sizeof longer,
                   "metadata byte 250: 1 bytes follow its end");
}

static void
test_metadata_refuses_an_empty_blob(void **state)
{
    (void)state;
    assert_refused(NULL, 0, "metadata byte 0");
    assert_refused("", 0, "metadata byte 0");
    assert_refused("garbage", 7, "metadata byte 0");
}

/* -- Damage --------------------------------------------------------------- */

/* The parser sees a block of exactly this size, so that a sanitizer notices a
 * byte too many. */
static bool
taken_from_heap(const void *blob, size_t len)
{
    void *copy = malloc(len > 0 ? len : 1);
    assert_non_null(copy);
    memcpy(copy, blob, len);
    bool taken = taken_consistently(copy, len);
    free(copy);
    return taken;
}

static void
test_metadata_cut_off_anywhere_is_refused(void **state)
{
    (void)state;
    for (size_t len = 0; len < GOLDEN_SIZE; len++) {
        assert_false(taken_from_heap(golden, len));
    }
    for (size_t len = 0; len < sizeof stock_blob; len++) {
        assert_false(taken_from_heap(stock_blob, len));
    }
}

static void
check_mutations(const unsigned char *blob, size_t len, size_t *taken_p)
{
    unsigned char *copy = malloc(len);
    assert_non_null(copy);
    memcpy(copy, blob, len);
    for (size_t at = 0; at < len; at++) {
        for (int value = 0; value < 256; value++) {
            copy[at] = (unsigned char)value;
            *taken_p += taken_consistently(copy, len);
        }
        copy[at] = blob[at];
    }
    free(copy);
}

static void
test_metadata_with_one_byte_changed_is_refused_or_round_trips(void **state)
{
    (void)state;
    size_t taken = 0;
    check_mutations((const unsigned char *)golden, GOLDEN_SIZE, &taken);
    check_mutations(stock_blob, sizeof stock_blob, &taken);
    /* Names, connection info and values may be anything: some are taken, and
     * most are not. */
    assert_in_range(taken, (GOLDEN_SIZE + sizeof stock_blob),
                    (GOLDEN_SIZE + sizeof stock_blob) * 160);
}

static void
test_metadata_with_a_huge_number_is_refused_or_round_trips(void **state)
{
    (void)state;
    const uint64_t huge[] = {
        1u << 20,   UINT64_C(1) << 31, UINT64_C(1) << 32, UINT64_C(1) << 63,
        UINT64_MAX, UINT64_MAX - 24,   INT64_MAX};
    unsigned char copy[sizeof stock_blob];

    for (size_t at = 0; at + 8 <= sizeof copy; at++) {
        for (size_t i = 0; i < COUNT(huge); i++) {
            memcpy(copy, stock_blob, sizeof copy);
            memcpy(copy + at, &huge[i], 8);
            taken_from_heap(copy, sizeof copy);
        }
    }
}

static void
test_metadata_counts_beyond_the_bytes_are_refused(void **state)
{
    (void)state;
    /* Where the counts of connections, sections and regions stand. */
    const size_t counts[] = {40, 126, 202};
    const uint64_t values[] = {2,
                               1000,
                               UINT64_C(1) << 32,
                               UINT64_C(1) << 63,
                               UINT64_MAX,
                               UINT64_MAX / 33 + 1,
                               UINT64_MAX / 40 + 1};
    unsigned char copy[GOLDEN_SIZE];

    for (size_t i = 0; i < COUNT(counts); i++) {
        assert_int_equal(golden[counts[i]], 1);
        for (size_t k = 0; k < COUNT(values); k++) {
            memcpy(copy, golden, sizeof copy);
            memcpy(copy + counts[i], &values[k], 8);
            assert_refused(copy, sizeof copy, "metadata byte ");
        }
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_metadata_writes_the_golden_bytes),
        cmocka_unit_test(test_metadata_parses_the_golden_bytes),
        cmocka_unit_test(test_metadata_of_a_stock_agent_parses),
        cmocka_unit_test(
            test_metadata_may_have_neither_connections_nor_sections),
        cmocka_unit_test(
            test_metadata_round_trip_keeps_every_type_and_any_bytes),
        cmocka_unit_test(test_metadata_of_many_overlapping_regions_parses),
        cmocka_unit_test(test_metadata_storage_may_be_all_of_it),
        cmocka_unit_test(test_metadata_refusal_names_field_and_byte),
        cmocka_unit_test(test_metadata_refuses_a_number_of_another_width),
        cmocka_unit_test(test_metadata_refuses_empty_names),
        cmocka_unit_test(test_metadata_refuses_impossible_sections),
        cmocka_unit_test(test_metadata_refuses_an_empty_section),
        cmocka_unit_test(test_metadata_refuses_a_region_that_is_too_short),
        cmocka_unit_test(
            test_metadata_refuses_a_second_connection_of_a_backend),
        cmocka_unit_test(test_metadata_refuses_too_many_connections),
        cmocka_unit_test(test_metadata_refuses_trailing_bytes),
        cmocka_unit_test(test_metadata_refuses_an_empty_blob),
        cmocka_unit_test(test_metadata_cut_off_anywhere_is_refused),
        cmocka_unit_test(
            test_metadata_with_one_byte_changed_is_refused_or_round_trips),
        cmocka_unit_test(
            test_metadata_with_a_huge_number_is_refused_or_round_trips),
        cmocka_unit_test(test_metadata_counts_beyond_the_bytes_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
