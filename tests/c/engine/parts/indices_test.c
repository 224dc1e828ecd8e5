/* Index arrays of every type, beside a plain reader of the same bytes. */
#include "vnx_test.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "engine/parts/indices.h"

#define COUNT 300

/* The range of a type. */
typedef struct kind {
    vnx_index_type_t type;
    size_t size;
    bool is_signed;
} kind_t;

static const kind_t kinds[] = {
    {VNX_INDEX_I64, 8, true}, {VNX_INDEX_U64, 8, false},
    {VNX_INDEX_I32, 4, true}, {VNX_INDEX_U32, 4, false},
    {VNX_INDEX_I16, 2, true}, {VNX_INDEX_U16, 2, false},
    {VNX_INDEX_I8, 1, true},  {VNX_INDEX_U8, 1, false},
};
#define KINDS (sizeof kinds / sizeof kinds[0])

static uint64_t
kind_max(const kind_t *kind)
{
    uint64_t bits = kind->size * 8 - (kind->is_signed ? 1 : 0);
    return bits == 64 ? UINT64_MAX : (UINT64_C(1) << bits) - 1;
}

/* Little endian by hand: the value modulo the type. */
static void
put(const kind_t *kind, void *data, size_t at, uint64_t value)
{
    unsigned char *cell = (unsigned char *)data + at * kind->size;
    for (size_t i = 0; i < kind->size; i++) {
        cell[i] = (unsigned char)(value >> 8 * i);
    }
}

static uint64_t
get(const kind_t *kind, const void *data, size_t at)
{
    const unsigned char *cell = (const unsigned char *)data + at * kind->size;
    uint64_t value = 0;
    for (size_t i = 0; i < kind->size; i++) {
        value |= (uint64_t)cell[i] << 8 * i;
    }
    unsigned unused = 64 - (unsigned)kind->size * 8;
    return kind->is_signed ? (uint64_t)((int64_t)(value << unused) >> unused)
                           : value;
}

/* The run at `at`: up by one, and none from or to a negative index. */
static size_t
plain_run(const kind_t *kind, const void *data, size_t count, size_t at)
{
    uint64_t first = get(kind, data, at), max = kind_max(kind);
    size_t run = 1;
    while (at + run < count && first <= max && run <= max - first &&
           get(kind, data, at + run) == first + run) {
        run++;
    }
    return run;
}

static vnx_indices_t
indices_of(const kind_t *kind, const void *data, size_t count)
{
    return (vnx_indices_t){.data = data, .count = count, .type = kind->type};
}

/* From every place, at every alignment that the type allows. */
static void
assert_same_runs(const kind_t *kind, const void *data, size_t count)
{
    vnx_indices_t indices = indices_of(kind, data, count);

    for (size_t at = 0; at < count; at++) {
        uint64_t first = 1;
        size_t run = vnxi_indices_run(&indices, at, &first);
        assert_int_equal(run, plain_run(kind, data, count, at));
        assert_true(first == get(kind, data, at));
    }
}

static void
test_indices_run_ends_where_it_is_broken(void **state)
{
    uint64_t room[COUNT];
    (void)state;

    for (size_t k = 0; k < KINDS; k++) {
        /* A break at every place of every vector of a step. */
        for (size_t broken = 1; broken < 140; broken += k < 4 ? 1 : 13) {
            vnx_indices_t indices = indices_of(&kinds[k], room, 140);
            uint64_t first;
            for (size_t i = 0; i < 140; i++) {
                put(&kinds[k], room, i, i < 120 ? i : i - 120);
            }
            put(&kinds[k], room, broken, 127);
            size_t want = plain_run(&kinds[k], room, 140, 0);
            assert_true(want <= 120);
            assert_int_equal(vnxi_indices_run(&indices, 0, &first), want);
            assert_true(first == 0);
        }
    }
}

static void
test_indices_run_agrees_with_a_plain_loop(void **state)
{
    uint64_t room[COUNT + 1];
    unsigned dice = 12345;
    (void)state;

    for (size_t k = 0; k < KINDS; k++) {
        for (int round = 0; round < 8; round++) {
            /* Offset by one cell: aligned to the type, not to a vector. */
            unsigned char *data =
                (unsigned char *)room + (round % 2 ? kinds[k].size : 0);
            uint64_t value = 0;
            for (size_t i = 0; i < COUNT; i++) {
                dice = dice * 1103515245u + 12345u;
                value = (dice >> 16) % 50 == 0 ? dice : value + 1;
                put(&kinds[k], data, i, value);
            }
            assert_same_runs(&kinds[k], data, COUNT);
        }
    }
}

static void
test_indices_run_stops_at_the_end_of_the_type(void **state)
{
    uint64_t room[COUNT];
    (void)state;

    for (size_t k = 0; k < KINDS; k++) {
        uint64_t start = kind_max(&kinds[k]) - 99;
        for (size_t i = 0; i < COUNT; i++) {
            put(&kinds[k], room, i, start + i); /* wraps after 100 */
        }
        vnx_indices_t indices = indices_of(&kinds[k], room, COUNT);
        uint64_t first;
        assert_int_equal(vnxi_indices_run(&indices, 0, &first), 100);
        assert_true(first == start);
        assert_int_equal(vnxi_indices_run(&indices, 99, &first), 1);
    }
}

static void
test_indices_run_excludes_negative_indices(void **state)
{
    uint64_t room[COUNT];
    (void)state;

    for (size_t k = 0; k < KINDS; k++) {
        if (!kinds[k].is_signed) {
            continue;
        }
        for (size_t i = 0; i < 100; i++) {
            put(&kinds[k], room, i, (uint64_t)i - 50);
        }
        vnx_indices_t indices = indices_of(&kinds[k], room, 100);
        uint64_t first;
        assert_int_equal(vnxi_indices_run(&indices, 0, &first), 1);
        assert_true(first == (uint64_t)-50);
        assert_int_equal(vnxi_indices_run(&indices, 49, &first), 1);
        assert_int_equal(vnxi_indices_run(&indices, 50, &first), 50);
        assert_true(first == 0);
    }
}

static void
test_indices_read_widens_every_type(void **state)
{
    uint64_t room[COUNT], scratch[COUNT];
    (void)state;

    for (size_t k = 0; k < KINDS; k++) {
        for (size_t i = 0; i < COUNT; i++) {
            put(&kinds[k], room, i, i * UINT64_C(0x9e3779b97f4a7c15) >> 3);
        }
        put(&kinds[k], room, 7, UINT64_MAX);
        vnx_indices_t indices = indices_of(&kinds[k], room, COUNT);
        for (size_t at = 0; at < 20; at++) {
            const uint64_t *out =
                vnxi_indices_read(&indices, at, COUNT - at, scratch);
            assert_ptr_equal(out, scratch); /* a copy of every type */
            for (size_t i = 0; i < COUNT - at; i++) {
                assert_true(out[i] == get(&kinds[k], room, at + i));
            }
        }
    }
}

static void
test_indices_read_writes_only_the_requested_ones(void **state)
{
    uint16_t data[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    uint64_t scratch[8] = {99, 99, 99, 99, 99, 99, 99, 99};
    vnx_indices_t indices = {data, 8, VNX_INDEX_U16};
    (void)state;

    assert_ptr_equal(vnxi_indices_read(&indices, 3, 2, scratch), scratch);
    assert_true(scratch[0] == 4 && scratch[1] == 5 && scratch[2] == 99);
}

static void
test_indices_without_data_are_all_rows(void **state)
{
    vnx_indices_t indices = {.data = NULL, .count = 1000};
    uint64_t first, scratch[3];
    (void)state;

    assert_int_equal(vnxi_indices_run(&indices, 0, &first), 1000);
    assert_true(first == 0);
    assert_int_equal(vnxi_indices_run(&indices, 998, &first), 2);
    assert_true(first == 998);
    vnxi_indices_read(&indices, 500, 3, scratch);
    assert_true(scratch[0] == 500 && scratch[2] == 502);
    assert_false(vnxi_indices_are_signed(&indices)); /* type I64 is 0 */
}

/* One index that is too large, at each place of arrays of each length. */
static void
test_indices_below_finds_one_that_is_too_large(void **state)
{
    static const uint64_t limits[] = {1, 2, 1000, UINT64_C(1) << 32,
                                      INT64_MAX};
    uint64_t data[40];
    (void)state;

    for (size_t l = 0; l < sizeof limits / sizeof limits[0]; l++) {
        const uint64_t limit = limits[l];
        const uint64_t bad[] = {limit, limit + 1, INT64_MAX,
                                (uint64_t)INT64_MAX + 1, UINT64_MAX};
        for (size_t count = 1; count < 12; count++) {
            for (size_t i = 0; i < count; i++) {
                data[i] = i % 2 ? limit - 1 : 0;
            }
            assert_true(vnxi_indices_are_below(data, count, limit));
            for (size_t at = 0; at < count; at++) {
                uint64_t kept = data[at];
                for (size_t b = 0; b < 5; b++) {
                    data[at] = bad[b];
                    assert_false(vnxi_indices_are_below(data, count, limit));
                }
                data[at] = kept;
            }
        }
    }
}

static void
test_indices_below_reads_only_the_given_count(void **state)
{
    uint64_t data[9] = {0, 1, 2, 3, 4, 5, 6, 7, UINT64_MAX};
    (void)state;

    for (size_t count = 0; count <= 8; count++) {
        assert_true(vnxi_indices_are_below(data, count, 8));
    }
    assert_false(vnxi_indices_are_below(data, 9, 8));
    assert_true(vnxi_indices_are_below(data + 1, 7, 8)); /* not 16-aligned */
}

static void
test_indices_types_are_those_of_the_header(void **state)
{
    (void)state;

    for (size_t k = 0; k < KINDS; k++) {
        uint64_t cell = 0;
        vnx_indices_t indices = indices_of(&kinds[k], &cell, 1);
        assert_true(vnxi_indices_type_is_known(kinds[k].type));
        assert_int_equal(vnxi_indices_are_signed(&indices),
                         kinds[k].is_signed);
    }
    assert_false(vnxi_indices_type_is_known((vnx_index_type_t)KINDS));
    assert_false(vnxi_indices_type_is_known((vnx_index_type_t)-1));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_indices_run_ends_where_it_is_broken),
        cmocka_unit_test(test_indices_run_agrees_with_a_plain_loop),
        cmocka_unit_test(test_indices_run_stops_at_the_end_of_the_type),
        cmocka_unit_test(test_indices_run_excludes_negative_indices),
        cmocka_unit_test(test_indices_read_widens_every_type),
        cmocka_unit_test(test_indices_read_writes_only_the_requested_ones),
        cmocka_unit_test(test_indices_without_data_are_all_rows),
        cmocka_unit_test(test_indices_below_finds_one_that_is_too_large),
        cmocka_unit_test(test_indices_below_reads_only_the_given_count),
        cmocka_unit_test(test_indices_types_are_those_of_the_header),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
