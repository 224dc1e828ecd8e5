#include "list_util.h"

#include <pthread.h>
#include <string.h>

#include "engine/parts/list_block.h"

#define K ((uint64_t)1024)
#define BLOCK VNXI_LIST_BLOCK

static const region_spec_t big = {.addr = 0x10000000, .len = 1u << 30};

static void
assert_row(const vnxi_list_t *list, size_t i, vnx_desc_t expected)
{
    vnx_desc_t row = vnxi_list_row(list, i);
    if (row.addr != expected.addr || row.len != expected.len ||
        row.dev != expected.dev) {
        fail_msg("row %zu is 0x%llx + %llu on %llu, not 0x%llx + %llu on %llu",
                 i, (unsigned long long)row.addr, (unsigned long long)row.len,
                 (unsigned long long)row.dev,
                 (unsigned long long)expected.addr,
                 (unsigned long long)expected.len,
                 (unsigned long long)expected.dev);
    }
}

static void
assert_rows(const vnxi_list_t *list, const vnx_desc_t *rows, size_t count)
{
    assert_int_equal(list->count, count);
    for (size_t i = 0; i < count; i++) {
        assert_row(list, i, rows[i]);
    }
}

/* -- Every form of a block ------------------------------------------------ */

typedef vnx_desc_t (*row_fn_t)(size_t i, uint64_t *random);

static vnx_desc_t
row_dense(size_t i, uint64_t *random)
{
    (void)random;
    return (vnx_desc_t){big.addr + i * 512, 512, 0};
}

static vnx_desc_t
row_descending(size_t i, uint64_t *random)
{
    (void)random;
    return (vnx_desc_t){big.addr + big.len - (i + 1) * 4 * K, K, 0};
}

static vnx_desc_t
row_same(size_t i, uint64_t *random)
{
    (void)i, (void)random;
    return (vnx_desc_t){big.addr + 77, 33, 0};
}

static vnx_desc_t
row_random_blocks(size_t i, uint64_t *random)
{
    (void)i;
    return (vnx_desc_t){big.addr + next_random(random) % (1 << 18) * 4096,
                        4096, 0};
}

static vnx_desc_t
row_random_bytes(size_t i, uint64_t *random)
{
    (void)i;
    return (vnx_desc_t){big.addr + next_random(random) % (big.len - 100), 99,
                        0};
}

static vnx_desc_t
row_random_lens(size_t i, uint64_t *random)
{
    (void)i;
    uint64_t len = 1 + next_random(random) % 70000;
    return (vnx_desc_t){big.addr + next_random(random) % (big.len - len), len,
                        0};
}

static vnx_desc_t
row_run_with_other_lens(size_t i, uint64_t *random)
{
    return (vnx_desc_t){big.addr + i * 8 * K,
                        1 + next_random(random) % (8 * K), 0};
}

static vnx_desc_t
row_same_addr_other_lens(size_t i, uint64_t *random)
{
    (void)random;
    return (vnx_desc_t){big.addr, i + 1, 0};
}

static vnx_desc_t
row_devices(size_t i, uint64_t *random)
{
    vnx_desc_t row = row_random_lens(i, random);
    row.dev = next_random(random) % 3;
    return row;
}

static vnx_desc_t
row_run_then_break(size_t i, uint64_t *random)
{
    vnx_desc_t row = row_dense(i, random);
    row.addr += i % 300 == 299 ? 8 : 0;
    return row;
}

static vnx_desc_t
row_far_apart(size_t i, uint64_t *random)
{
    (void)random;
    /* Odd distances of up to 2^40: no 32-bit form fits. */
    return (vnx_desc_t){((uint64_t)1 << 41) + (i * i % 977) * 0x100000001, 7,
                        3};
}

static vnx_desc_t
row_long_lens(size_t i, uint64_t *random)
{
    (void)random;
    return (vnx_desc_t){((uint64_t)1 << 41) + i, ((uint64_t)1 << 40) + i * i,
                        3};
}

static const row_fn_t row_fns[] = {
    row_dense,          row_descending,
    row_same,           row_random_blocks,
    row_random_bytes,   row_random_lens,
    row_devices,        row_run_with_other_lens,
    row_run_then_break, row_same_addr_other_lens,
    row_far_apart,      row_long_lens,
};

static vnxi_region_table_t *
forms_table(void)
{
    region_spec_t specs[] = {
        big, big, big, {.addr = (uint64_t)1 << 40, .len = 1ull << 43}};
    specs[1].dev = 1;
    specs[2].dev = 2;
    specs[3].dev = 3;
    return make_table(specs, 4);
}

/* Rows in every form, fed in parts of every awkward size, come back. */
static void
test_list_returns_the_rows_it_was_fed(void **state)
{
    (void)state;
    const size_t counts[] = {
        1, 2, 3, 4, 5, 31, 33, BLOCK - 1, BLOCK, BLOCK + 1, 5000, 20 * BLOCK};
    vnx_desc_t *rows = malloc(20 * BLOCK * sizeof *rows);
    vnxi_region_table_t *table = forms_table();
    uint64_t random = 1;

    for (size_t f = 0; f < sizeof row_fns / sizeof *row_fns; f++) {
        for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
            size_t count = counts[c];
            for (size_t i = 0; i < count; i++) {
                rows[i] = row_fns[f](i, &random);
            }
            vnxi_builder_t *builder = begin_list(table);
            for (size_t i = 0, n; i < count; i += n) {
                n = next_random(&random) % (3 * BLOCK) + 1;
                n = n < count - i ? n : count - i;
                assert_int_equal(vnxi_list_feed(builder, rows + i, n, NULL),
                                 VNX_OK);
            }
            vnxi_list_t *list = finish_list(builder);
            assert_rows(list, rows, count);
            vnxi_list_release(list);
        }
    }
    vnxi_region_table_release(table);
    free(rows);
}

/* Forms change from block to block, and within one. */
static void
test_list_mixes_encodings(void **state)
{
    (void)state;
    const size_t count = 30 * BLOCK;
    vnx_desc_t *rows = malloc(count * sizeof *rows);
    vnxi_region_table_t *table = forms_table();
    uint64_t random = 2;

    for (size_t i = 0, n; i < count; i += n) {
        row_fn_t row_fn =
            row_fns[next_random(&random) % (sizeof row_fns / sizeof *row_fns)];
        n = next_random(&random) % (2 * BLOCK) + 1;
        n = n < count - i ? n : count - i;
        for (size_t k = 0; k < n; k++) {
            rows[i + k] = row_fn(k, &random);
        }
    }
    vnxi_list_t *list = make_list(table, rows, count);
    assert_rows(list, rows, count);
    assert_false(list->uniform);
    vnxi_list_release(list);
    vnxi_region_table_release(table);
    free(rows);
}

/* One row of a block has another length or device, or is not valid. */
static void
test_list_notices_one_other_row(void **state)
{
    (void)state;
    const size_t counts[] = {2, 3, 128, 131, BLOCK};
    const vnx_desc_t bad[] = {{big.addr, 0, 0}, {UINT64_MAX - 10, 4 * K, 0}};
    vnx_desc_t rows[BLOCK];
    vnxi_region_table_t *table = forms_table();
    uint64_t random = 6;

    for (size_t i = 0; i < BLOCK; i++) {
        rows[i] = row_random_blocks(i, &random);
    }
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
        size_t count = counts[c];
        for (size_t at = 0; at < count; at++) {
            const vnx_desc_t row = rows[at];
            const vnx_desc_t other[] = {{row.addr, row.len - 1, 0},
                                        {row.addr, row.len, 2}};
            for (size_t k = 0; k < 2; k++) {
                rows[at] = other[k];
                vnxi_list_t *list = make_list(table, rows, count);
                assert_row(list, at, other[k]);
                assert_true(list->uniform == (k == 1));
                vnxi_list_release(list);

                vnx_error_t error;
                vnxi_builder_t *builder = begin_list(table);
                rows[at] = bad[k];
                vnx_status_t status =
                    vnxi_list_feed(builder, rows, count, &error);
                if (status == VNX_OK) { /* rows wait for a whole block */
                    vnxi_list_t *none = NULL;
                    status = vnxi_list_finish(builder, &none, &error);
                }
                assert_int_equal(status, VNX_ERR_INVALID_PARAM);
                assert_int_equal(error.row, at);
                vnxi_list_abort(builder);
            }
            rows[at] = row;
        }
    }
    vnxi_region_table_release(table);
}

static void
test_list_is_compact(void **state)
{
    (void)state;
    const size_t count = 1000000;
    vnx_desc_t *rows = malloc(count * sizeof *rows);
    vnxi_region_table_t *table = make_table(&big, 1);
    uint64_t random = 3;

    for (size_t i = 0; i < count; i++) {
        rows[i] = row_dense(i, &random);
    }
    vnxi_list_t *list = make_list(table, rows, count);
    assert_true(list->bytes < 100000);
    assert_true(list->uniform);
    assert_int_equal(list->row_len, 512);
    vnxi_list_release(list);

    for (size_t i = 0; i < count; i++) {
        rows[i] = row_random_blocks(i, &random);
    }
    list = make_list(table, rows, count);
    assert_true(list->bytes < 5200000);
    vnxi_list_release(list);
    vnxi_region_table_release(table);
    free(rows);
}

/* -- Strided rows --------------------------------------------------------- */

static void
test_list_strided_rows_are_unrolled(void **state)
{
    (void)state;
    vnxi_region_table_t *table = make_table(&big, 1);
    uint64_t random = 4;

    for (int round = 0; round < 200; round++) {
        vnx_strided_desc_t rows[20];
        size_t row_count = 1 + next_random(&random) % 20, count = 0;
        for (size_t i = 0; i < row_count; i++) {
            uint64_t len = 1 + next_random(&random) % 600;
            rows[i] = (vnx_strided_desc_t){
                .addr = big.addr + next_random(&random) % 1000000,
                .len = len,
                .stride = next_random(&random) % 3 == 0
                              ? len
                              : next_random(&random) % 5000,
                .count = 1 + next_random(&random) %
                                 (round % 2 == 0 ? 20 : 5 * BLOCK),
            };
            count += rows[i].count;
        }
        vnxi_list_t *list = make_strided_list(table, rows, row_count);
        assert_int_equal(list->count, count);
        size_t at = 0;
        for (size_t i = 0; i < row_count; i++) {
            for (uint64_t k = 0; k < rows[i].count; k++) {
                assert_row(list, at++,
                           (vnx_desc_t){rows[i].addr + k * rows[i].stride,
                                        rows[i].len, 0});
            }
        }
        vnxi_list_release(list);
    }
    vnxi_region_table_release(table);
}

static void
test_list_strided_layers_take_little_memory(void **state)
{
    (void)state;
    enum { LAYERS = 32, BLOCKS = 32768 };
    vnx_strided_desc_t rows[LAYERS];
    region_spec_t specs[LAYERS];

    for (uint64_t i = 0; i < LAYERS; i++) {
        specs[i] = (region_spec_t){.addr = (i + 1) << 32, .len = 1u << 30};
        rows[i] = (vnx_strided_desc_t){.addr = specs[i].addr,
                                       .len = 16 * K,
                                       .stride = 32 * K,
                                       .count = BLOCKS};
    }
    vnxi_region_table_t *table = make_table(specs, LAYERS);
    vnxi_list_t *list = make_strided_list(table, rows, LAYERS);
    assert_int_equal(list->count, LAYERS * BLOCKS);
    assert_int_equal(list->region_count, LAYERS);
    assert_true(list->bytes < 1000000);
    assert_row(list, 31 * BLOCKS + 5,
               (vnx_desc_t){specs[31].addr + 5 * 32 * K, 16 * K, 0});
    vnxi_list_release(list);
    vnxi_region_table_release(table);
}

/* Pieces of one strided row may lie in many regions. */
static void
test_list_strided_row_over_regions(void **state)
{
    (void)state;
    region_spec_t specs[3];
    for (uint64_t i = 0; i < 3; i++) {
        specs[i] =
            (region_spec_t){.addr = 0x1000 + i * 0x10000, .len = 0x9000};
    }
    vnxi_region_table_t *table = make_table(specs, 3);
    vnx_strided_desc_t row = {
        .addr = 0x1000, .len = 0x800, .stride = 0x10000, .count = 3};
    vnxi_list_t *list = make_strided_list(table, &row, 1);
    assert_int_equal(list->region_count, 3);
    vnxi_list_release(list);

    /* The piece after nine that fit lies between two regions. */
    vnx_error_t error;
    vnxi_builder_t *builder = begin_list(table);
    row = (vnx_strided_desc_t){
        .addr = 0x1000, .len = 0x1000, .stride = 0x1000, .count = 10};
    assert_int_equal(vnxi_list_feed_strided(builder, &row, 1, &error),
                     VNX_ERR_NOT_FOUND);
    assert_int_equal(error.row, 0);
    assert_true(error.addr == 0x1000 + 9 * 0x1000);
    vnxi_list_abort(builder);
    vnxi_region_table_release(table);
}

/* -- Regions -------------------------------------------------------------- */

static void
test_list_names_the_regions_that_rows_touch(void **state)
{
    (void)state;
    enum { REGIONS = 64 };
    region_spec_t specs[REGIONS];
    vnx_desc_t *rows = malloc(20000 * sizeof *rows);
    uint64_t random = 5;

    for (uint64_t i = 0; i < REGIONS; i++) {
        /* Neighbours touch: no gap tells them apart. */
        specs[i] = (region_spec_t){.addr = (i / 2 << 30) + (i % 2 << 20),
                                   .len = 1 << 20,
                                   .dev = i % 4 / 2};
    }
    vnxi_region_table_t *table = make_table(specs, REGIONS);
    const size_t counts[] = {1, 3, 8, 40, 200, 20000};
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
        bool touched[REGIONS] = {false};
        size_t expected = 0;
        for (size_t i = 0; i < counts[c]; i++) {
            size_t r = next_random(&random) % (REGIONS - 4) + 2;
            touched[r] = true;
            rows[i] =
                (vnx_desc_t){specs[r].addr + next_random(&random) % 2000 * 512,
                             512, specs[r].dev};
        }
        vnxi_list_t *list = make_list(table, rows, counts[c]);
        assert_rows(list, rows, counts[c]);
        for (size_t r = 0; r < REGIONS; r++) {
            expected += touched[r];
        }
        assert_int_equal(list->region_count, expected);
        for (size_t i = 0; i < list->region_count; i++) {
            const vnxi_region_t *region = list->regions[i];
            size_t r = (size_t)(region->addr >> 30) * 2 +
                       (size_t)(region->addr >> 20 & 1);
            assert_true(touched[r]);
            if (i > 0) {
                const vnxi_region_t *before = list->regions[i - 1];
                assert_true(before->dev < region->dev ||
                            (before->dev == region->dev &&
                             before->addr < region->addr));
            }
        }
        vnxi_list_release(list);
    }
    vnxi_region_table_release(table);
    free(rows);
}

/* Groups of four regions, on several devices: a wide one, one nested in it,
 * one that overlaps its end, and one with a gap before it. */
enum {
    GROUPS = 25000,
    DEVICES = 5,
    GROUP_SIZE = 0x10000,
    MANY_REGIONS = 4 * GROUPS
};

static uint64_t
group_addr(size_t group)
{
    return 0x7f0000000000 + group / DEVICES * GROUP_SIZE;
}

static vnxi_region_table_t *
make_groups(void)
{
    region_spec_t *specs = malloc(MANY_REGIONS * sizeof *specs);
    assert_non_null(specs);
    for (size_t g = 0; g < GROUPS; g++) {
        uint64_t addr = group_addr(g), dev = g % DEVICES;
        specs[4 * g] = (region_spec_t){addr, 0x4000, dev, true, 0};
        specs[4 * g + 1] = (region_spec_t){addr + 0x1000, 0x1000, dev, 0, 0};
        specs[4 * g + 2] = (region_spec_t){addr + 0x3000, 0x4000, dev, 0, 0};
        specs[4 * g + 3] = (region_spec_t){addr + 0x8000, 0x1000, dev, 0, 0};
    }
    vnxi_region_table_t *table = make_table(specs, MANY_REGIONS);
    free(specs);
    return table;
}

/* One row in each region, and one where the wide one and its neighbour
 * overlap. */
static void
fill_group_rows(vnx_desc_t *rows)
{
    static const uint64_t at[5] = {0, 0x1400, 0x3800, 0x6f00, 0x8000};
    for (size_t i = 0; i < (size_t)5 * GROUPS; i++) {
        size_t group = i / 5;
        rows[i] = (vnx_desc_t){group_addr(group) + at[i % 5], 0x100,
                               group % DEVICES};
    }
}

/* Of every group but the nested region, which the wide one makes superfluous:
 * in order, each once. */
static void
assert_regions_of_groups(const vnxi_list_t *list, const uint64_t *offsets,
                         size_t count)
{
    size_t per_dev = GROUPS / DEVICES * count;
    assert_int_equal(list->region_count, GROUPS * count);
    for (size_t i = 0; i < list->region_count; i++) {
        const vnxi_region_t *region = list->regions[i];
        size_t group = i % per_dev / count;
        assert_true(region->dev == i / per_dev);
        assert_true(region->addr ==
                    group_addr(group * DEVICES) + offsets[i % count]);
    }
}

static void
test_list_over_many_regions(void **state)
{
    (void)state;
    static const uint64_t offsets[3] = {0, 0x3000, 0x8000};
    const size_t count = (size_t)5 * GROUPS;
    vnx_desc_t *rows = malloc(count * sizeof *rows);
    vnxi_region_table_t *table = make_groups();
    uint64_t random = 9;

    assert_non_null(rows);
    fill_group_rows(rows);
    for (int shuffled = 0; shuffled < 2; shuffled++) {
        for (size_t i = count - 1; shuffled && i > 0; i--) {
            size_t other = next_random(&random) % (i + 1);
            vnx_desc_t row = rows[i];
            rows[i] = rows[other];
            rows[other] = row;
        }
        vnxi_list_t *list = make_list(table, rows, count);
        assert_rows(list, rows, count);
        assert_regions_of_groups(list, offsets, 3);
        for (size_t i = 0; i < count; i++) {
            assert_true(vnxi_region_holds(
                vnxi_list_region_of(list, &rows[i]), rows[i].addr,
                rows[i].addr + rows[i].len, rows[i].dev));
        }
        vnxi_list_release(list);
    }
    /* One row that no region holds, behind all the good ones. */
    vnx_error_t error;
    vnxi_builder_t *builder = begin_list(table);
    rows[count - 1].addr = group_addr(GROUPS - 1) + 0x7000;
    assert_int_equal(vnxi_list_feed(builder, rows, count, &error),
                     VNX_ERR_NOT_FOUND);
    assert_true(error.row == (int64_t)count - 1);
    vnxi_list_abort(builder);
    vnxi_region_table_release(table);
    free(rows);
}

/* The pieces of strided rows, each in a region of its own, noted twice. */
static void
test_list_strided_over_many_regions(void **state)
{
    (void)state;
    static const uint64_t offsets[2] = {0, 0x8000};
    vnx_strided_desc_t rows[4 * DEVICES];
    vnxi_region_table_t *table = make_groups();

    for (uint64_t i = 0; i < 4 * DEVICES; i++) {
        rows[i] = (vnx_strided_desc_t){
            .addr = group_addr(0) + offsets[i % 2],
            .len = 0x100,
            .dev = i / 2 % DEVICES,
            .stride = GROUP_SIZE,
            .count = GROUPS / DEVICES,
        };
    }
    vnxi_list_t *list = make_strided_list(table, rows, 4 * DEVICES);
    assert_int_equal(list->count, 4 * GROUPS);
    assert_regions_of_groups(list, offsets, 2);
    vnxi_list_release(list);
    vnxi_region_table_release(table);
}

/* Nested and overlapping regions: a row is held by any that holds all of it,
 * as a naive search over all regions says. */
static void
test_list_agrees_with_a_naive_search(void **state)
{
    (void)state;
    enum { REGIONS = 40, ROWS = 300 };
    region_spec_t specs[REGIONS];
    vnx_desc_t rows[ROWS];
    uint64_t random = 6;
    size_t refused = 0, taken = 0;

    for (int round = 0; round < 2000; round++) {
        size_t regions = 1 + next_random(&random) % REGIONS;
        for (size_t i = 0; i < regions; i++) {
            specs[i] =
                (region_spec_t){.addr = 100 + next_random(&random) % 1000,
                                .len = 1 + next_random(&random) % 800,
                                .dev = next_random(&random) % 2};
        }
        vnxi_region_table_t *table = make_table(specs, regions);
        size_t count = 0, bad = ROWS, max = 1 + round % ROWS;
        while (count < max && bad == ROWS) {
            vnx_desc_t row = {.addr = 100 + next_random(&random) % 1000,
                              .len = 1 + next_random(&random) % 60,
                              .dev = next_random(&random) % 2};
            bool held = false;
            for (size_t r = 0; r < regions; r++) {
                held |= specs[r].dev == row.dev && specs[r].addr <= row.addr &&
                        row.addr + row.len <= specs[r].addr + specs[r].len;
            }
            if (!held && next_random(&random) % 64 != 0) {
                continue; /* few bad rows, so that there are long lists */
            }
            bad = held ? ROWS : count;
            rows[count++] = row;
        }
        vnxi_builder_t *builder = begin_list(table);
        vnx_error_t error;
        vnx_status_t status = vnxi_list_feed(builder, rows, count, &error);
        if (bad == ROWS) {
            assert_int_equal(status, VNX_OK);
            vnxi_list_t *list = finish_list(builder);
            assert_rows(list, rows, count);
            vnxi_list_release(list);
            taken++;
        } else {
            assert_int_equal(status, VNX_ERR_NOT_FOUND);
            assert_int_equal(error.row, bad);
            assert_true(error.addr == rows[bad].addr);
            vnxi_list_abort(builder);
            refused++;
        }
        vnxi_region_table_release(table);
    }
    assert_true(refused > 100 && taken > 100);
}

static void
test_list_boundary_rows(void **state)
{
    (void)state;
    const region_spec_t specs[] = {{.addr = 0x1000, .len = 0x1000},
                                   {.addr = UINT64_MAX - 0xfff, .len = 0xfff}};
    vnxi_region_table_t *table = make_table(specs, 2);
    const vnx_desc_t good[] = {{0x1000, 1, 0},
                               {0x1fff, 1, 0},
                               {0x1000, 0x1000, 0},
                               {UINT64_MAX - 0xfff, 0xfff, 0},
                               {UINT64_MAX - 1, 1, 0}};
    const vnx_desc_t bad[] = {
        {0xfff, 1, 0},           {0xfff, 2, 0},
        {0x2000, 1, 0},          {0x1fff, 2, 0},
        {0x1000, 0x1001, 0},     {0x1000, 1, 1},
        {0x1000, 1, UINT64_MAX}, {UINT64_MAX - 0xfff, 0x1000 - 1, 7}};

    vnxi_list_t *list = make_list(table, good, 5);
    assert_rows(list, good, 5);
    vnxi_list_release(list);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        vnx_desc_t rows[100];
        for (size_t k = 0; k < 100; k++) {
            rows[k] = good[k % 5];
        }
        rows[90] = bad[i];
        /* Alone, and among many, where an index is used. */
        vnx_error_t error;
        vnxi_builder_t *builder = begin_list(table);
        assert_int_equal(vnxi_list_feed(builder, &bad[i], 1, &error),
                         VNX_ERR_NOT_FOUND);
        assert_int_equal(error.row, 0);
        vnxi_list_abort(builder);
        builder = begin_list(table);
        assert_int_equal(vnxi_list_feed(builder, rows, 100, &error),
                         VNX_ERR_NOT_FOUND);
        assert_int_equal(error.row, 90);
        assert_true(error.has_desc && error.len == bad[i].len &&
                    error.dev == bad[i].dev);
        vnxi_list_abort(builder);
    }
    vnxi_region_table_release(table);
}

/* -- Errors --------------------------------------------------------------- */

static void
test_list_names_the_first_bad_row(void **state)
{
    (void)state;
    const size_t count = 5 * BLOCK;
    vnx_desc_t *rows = malloc(count * sizeof *rows);
    vnxi_region_table_t *table = make_table(&big, 1);
    const struct {
        vnx_desc_t row;
        vnx_status_t status;
        const char *cause;
    } bad[] = {
        {{0x10, 1, 0}, VNX_ERR_NOT_FOUND, "no registered region holds it"},
        {{0x10000000, 1ull << 31, 0},
         VNX_ERR_NOT_FOUND,
         "it starts in the DRAM region at 0x10000000 of 1073741824 bytes and "
         "extends past its end"},
        {{0x10000000, 0, 0}, VNX_ERR_INVALID_PARAM, "length is 0"},
        {{0x10000000, UINT64_MAX, 0}, VNX_ERR_INVALID_PARAM, "exceeds 2^64"},
        {{UINT64_MAX, 1, 0}, VNX_ERR_INVALID_PARAM, "exceeds 2^64"},
    };
    const size_t places[] = {0, 1, BLOCK - 1, BLOCK, 3 * BLOCK + 7, count - 1};
    uint64_t random = 7;

    for (size_t b = 0; b < sizeof bad / sizeof *bad; b++) {
        for (size_t p = 0; p < sizeof places / sizeof *places; p++) {
            for (size_t i = 0; i < count; i++) {
                rows[i] = p % 2 == 0 ? row_dense(i, &random)
                                     : row_random_blocks(i, &random);
            }
            rows[places[p]] = bad[b].row;
            rows[count - 1] = bad[b].row; /* a later one is not named */
            vnx_error_t error;
            vnxi_builder_t *builder = begin_list(table);
            vnx_status_t status = vnxi_list_feed(builder, rows, 100, &error);
            if (status == VNX_OK) {
                status =
                    vnxi_list_feed(builder, rows + 100, count - 100, &error);
            }
            assert_int_equal(status, bad[b].status);
            assert_int_equal(error.status, bad[b].status);
            assert_int_equal(error.row, places[p]);
            assert_true(error.has_desc);
            assert_true(error.addr == bad[b].row.addr);
            assert_true(error.len == bad[b].row.len);
            assert_non_null(strstr(error.cause, bad[b].cause));
            assert_string_equal(error.operation, LIST_UTIL_OPERATION);
            vnxi_list_abort(builder);
        }
    }
    vnxi_region_table_release(table);
    free(rows);
}

static void
test_list_refuses_bad_strided_rows(void **state)
{
    (void)state;
    vnxi_region_table_t *table = make_table(&big, 1);
    const vnx_strided_desc_t bad[] = {
        {big.addr, 8, 0, 8, 0},
        {big.addr, 0, 0, 8, 1},
        {big.addr, 8, 0, UINT64_MAX / 2, 4},
        {big.addr, 8, 0, 1ull << 40, 1ull << 40},
        {UINT64_MAX - 8, 8, 0, 1, 3},
        {big.addr, 8, 0, 0, ((uint64_t)1 << 40) + 1},
    };
    const vnx_strided_desc_t good = {big.addr, 8, 0, 8, 2000};

    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        vnx_error_t error = {.row = -1};
        vnxi_builder_t *builder = begin_list(table);
        assert_int_equal(vnxi_list_feed_strided(builder, &good, 1, NULL),
                         VNX_OK);
        assert_int_equal(vnxi_list_feed_strided(builder, &bad[i], 1, &error),
                         VNX_ERR_INVALID_PARAM);
        /* Strided rows count one; the last is refused for the sum. */
        assert_int_equal(error.row, i == 5 ? -1 : 1);
        vnxi_list_abort(builder);
    }
    vnxi_region_table_release(table);
}

static void
test_list_must_not_be_empty(void **state)
{
    (void)state;
    vnxi_region_table_t *table = make_table(&big, 1);
    vnxi_builder_t *builder = begin_list(table);
    vnxi_list_t *list = NULL;
    vnx_error_t error;
    const vnx_desc_t row = {big.addr, 8, 0};

    assert_int_equal(vnxi_list_feed(builder, &row, 0, &error), VNX_OK);
    assert_int_equal(vnxi_list_finish(builder, &list, &error),
                     VNX_ERR_INVALID_PARAM);
    assert_null(list);
    /* The builder is as it was. */
    assert_int_equal(vnxi_list_feed(builder, &row, 1, &error), VNX_OK);
    list = finish_list(builder);
    assert_rows(list, &row, 1);
    vnxi_list_release(list);
    vnxi_region_table_release(table);
}

static void
test_list_builder_can_be_aborted_at_any_point(void **state)
{
    (void)state;
    const size_t count = 3 * BLOCK + 5;
    vnx_desc_t *rows = malloc(count * sizeof *rows);
    vnxi_region_table_t *table = make_table(&big, 1);
    uint64_t random = 8;
    for (size_t i = 0; i < count; i++) {
        rows[i] = row_random_lens(i, &random);
    }
    const size_t counts[] = {0, 1, 5, BLOCK, count};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        vnxi_builder_t *builder = begin_list(table);
        assert_int_equal(vnxi_list_feed(builder, rows, counts[i], NULL),
                         VNX_OK);
        vnxi_list_abort(builder);
    }
    vnxi_list_abort(NULL);
    vnxi_region_table_release(table);
    free(rows);
}

/* -- Life ----------------------------------------------------------------- */

static int peers_destroyed;

static void
destroy_peer(vnxi_peer_t *peer)
{
    (void)peer;
    peers_destroyed++;
}

static void
test_list_holds_its_peer_and_names_it(void **state)
{
    (void)state;
    char name[] = "decode-7";
    vnxi_peer_t peer = {.destroy = destroy_peer, .name = name, .name_len = 8};
    atomic_init(&peer.refs, 1);
    vnxi_region_table_t *table = make_table(&big, 1);
    vnxi_list_args_t args = {.peer = &peer,
                             .table = vnxi_region_table_retain(table),
                             .mem = VNX_MEM_DRAM,
                             .operation = LIST_UTIL_OPERATION};
    const vnx_desc_t rows[] = {{big.addr, 8, 0}, {1, 8, 0}};
    vnxi_builder_t *builder;
    vnx_error_t error;

    assert_int_equal(vnxi_list_begin(&args, &builder, NULL), VNX_OK);
    assert_int_equal(vnxi_list_feed(builder, rows, 2, &error),
                     VNX_ERR_NOT_FOUND);
    assert_string_equal(error.peer, "decode-7");
    vnxi_list_abort(builder);
    assert_int_equal(atomic_load(&peer.refs), 1);

    vnxi_region_table_retain(table);
    assert_int_equal(vnxi_list_begin(&args, &builder, NULL), VNX_OK);
    assert_int_equal(vnxi_list_feed(builder, rows, 1, NULL), VNX_OK);
    vnxi_list_t *list = finish_list(builder);
    assert_ptr_equal(list->peer, &peer);
    vnxi_peer_release(&peer);
    assert_int_equal(peers_destroyed, 0);
    vnxi_list_release(vnxi_list_retain(list));
    assert_int_equal(peers_destroyed, 0);
    vnxi_list_release(list);
    assert_int_equal(peers_destroyed, 1);
    vnxi_list_release(NULL);
    vnxi_region_table_release(table);
}

/* The reference to the table is given up: the leak checker would see. */
/* Assert the cause of a row in a table without regions of its memory type. */
static void
assert_no_region(vnxi_region_table_t *table, bool is_own, vnx_mem_t mem,
                 const char *cause)
{
    vnxi_list_args_t args = {.table = vnxi_region_table_retain(table),
                             .is_own = is_own,
                             .mem = mem,
                             .operation = LIST_UTIL_OPERATION};
    const vnx_desc_t row = {big.addr, 8, 0};
    vnxi_builder_t *builder;
    vnx_error_t error;

    assert_int_equal(vnxi_list_begin(&args, &builder, NULL), VNX_OK);
    assert_int_equal(vnxi_list_feed(builder, &row, 1, &error),
                     VNX_ERR_NOT_FOUND);
    assert_non_null(strstr(error.cause, cause));
    assert_int_equal(error.row, 0);
    assert_int_equal(vnxi_list_feed(builder, &row, 1, NULL),
                     VNX_ERR_NOT_FOUND);
    vnxi_list_abort(builder);
}

static void
test_list_names_what_is_registered_instead(void **state)
{
    (void)state;
    vnxi_region_table_t *none = make_table(&big, 0);
    vnxi_region_table_t *dram = make_table(&big, 1);

    assert_no_region(none, true, VNX_MEM_DRAM,
                     "this agent has no registered memory");
    assert_no_region(none, false, VNX_MEM_DRAM,
                     "the peer has published no registered memory");
    assert_no_region(dram, true, VNX_MEM_VRAM,
                     "this agent has no registered VRAM memory, only DRAM");
    assert_no_region(
        dram, false, VNX_MEM_FILE,
        "the peer has published no registered FILE memory, only DRAM");
    vnxi_region_revoke(vnxi_region_table_at(dram, 0));
    assert_no_region(dram, false, VNX_MEM_FILE,
                     "the peer has published no registered memory");
    assert_no_region(dram, false, VNX_MEM_DRAM, "was deregistered");
    vnxi_region_table_release(none);
    vnxi_region_table_release(dram);
}

static void
test_list_begin_refuses_an_unknown_memory_type(void **state)
{
    (void)state;
    vnxi_list_args_t args = {.table = make_table(&big, 1),
                             .mem = (vnx_mem_t)77,
                             .operation = LIST_UTIL_OPERATION};
    vnxi_builder_t *builder = NULL;
    vnx_error_t error;

    assert_int_equal(vnxi_list_begin(&args, &builder, &error),
                     VNX_ERR_INVALID_PARAM);
    assert_non_null(strstr(error.cause, "77 is not a memory type"));
    args.table = NULL;
    args.mem = VNX_MEM_DRAM;
    assert_int_equal(vnxi_list_begin(&args, &builder, &error),
                     VNX_ERR_NO_MEMORY);
    assert_null(builder);
}

/* The table goes; the regions live as long as the list. */
static void
test_list_sees_revocation_and_outlives_the_table(void **state)
{
    (void)state;
    const region_spec_t specs[] = {{.addr = 0x1000, .len = 0x1000},
                                   {.addr = 0x3000, .len = 0x1000},
                                   {.addr = 0x5000, .len = 0x1000}};
    const vnx_desc_t rows[] = {{0x1000, 8, 0}, {0x3000, 8, 0}};
    vnxi_region_table_t *table = make_table(specs, 3);
    vnxi_region_t *second = vnxi_region_table_at(table, 1);
    vnxi_region_t *third = vnxi_region_table_at(table, 2);
    vnxi_list_t *list = make_list(table, rows, 2);

    assert_null(vnxi_list_unusable(list));
    atomic_store(&third->state, VNXI_REGION_REVOKED); /* no row lies in it */
    assert_null(vnxi_list_unusable(list));
    vnxi_region_table_release(table);
    atomic_store(&second->state, VNXI_REGION_REVOKED);
    assert_ptr_equal(vnxi_list_unusable(list), second);
    vnxi_list_release(list);
}

static void
test_list_ignores_revoked_regions(void **state)
{
    (void)state;
    enum { ROWS = 200 };
    const region_spec_t specs[] = {{.addr = 0x1000, .len = 0x1000},
                                   {.addr = 0x3000, .len = 0x1000},
                                   {.addr = 0x4000, .len = 0x1000}};
    vnx_desc_t rows[ROWS];
    vnxi_region_table_t *table = make_table(specs, 3);
    vnxi_region_revoke(vnxi_region_table_at(table, 1));

    for (size_t i = 0; i < ROWS; i++) {
        rows[i] = (vnx_desc_t){i % 2 == 0 ? 0x1000 + i : 0x4000 + i, 8, 0};
    }
    vnxi_list_t *list = make_list(table, rows, ROWS);
    assert_int_equal(list->region_count, 2);
    vnxi_list_release(list);

    rows[150].addr = 0x3000;
    vnxi_builder_t *builder = begin_list(table);
    vnx_error_t error;
    assert_int_equal(vnxi_list_feed(builder, rows, ROWS, &error),
                     VNX_ERR_NOT_FOUND);
    assert_int_equal(error.row, 150);
    vnxi_list_abort(builder);
    vnxi_region_table_release(table);
}

static void *
make_lists(void *argument)
{
    vnxi_region_table_t *table = argument;
    uint64_t random = 99;
    vnx_desc_t rows[500];
    for (int round = 0; round < 200; round++) {
        for (size_t i = 0; i < 500; i++) {
            rows[i] = row_random_lens(i, &random);
        }
        vnxi_list_t *list = make_list(table, rows, 500);
        assert_rows(list, rows, 500);
        vnxi_list_release(list);
    }
    return NULL;
}

static void
test_list_many_threads_share_a_table(void **state)
{
    (void)state;
    vnxi_region_table_t *table = make_table(&big, 1);
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, make_lists, table),
                         0);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
    }
    vnxi_region_table_release(table);
}

typedef struct engine_list {
    vnxi_list_t base;
    size_t regions; /* written by engine_list_init() */
    size_t zero;
} engine_list_t;

static int lists_ended;

static void
engine_list_init(vnxi_list_t *list)
{
    ((engine_list_t *)list)->regions = list->region_count;
}

static void
engine_list_fini(vnxi_list_t *list)
{
    assert_int_equal(((engine_list_t *)list)->regions, list->region_count);
    lists_ended++;
}

/* The engine's part of a list is filled in when the list is complete. */
static void
test_list_of_a_class_begins_and_ends_once(void **state)
{
    static const vnxi_list_class_t class = {
        .size = sizeof(engine_list_t),
        .init = engine_list_init,
        .fini = engine_list_fini,
    };
    const region_spec_t specs[] = {{.addr = 0x1000, .len = 0x100000},
                                   {.addr = 0x200000, .len = 0x100000}};
    vnxi_region_table_t *table = make_table(specs, 2);
    (void)state;

    for (size_t count = 2; count <= 2 + VNXI_LIST_BLOCK;
         count += VNXI_LIST_BLOCK) {
        vnxi_list_args_t args = {.table = vnxi_region_table_retain(table),
                                 .mem = VNX_MEM_DRAM,
                                 .class = &class,
                                 .operation = LIST_UTIL_OPERATION};
        vnxi_builder_t *builder;
        assert_int_equal(vnxi_list_begin(&args, &builder, NULL), VNX_OK);
        for (size_t i = 0; i < count; i++) {
            const vnx_desc_t row = {
                i % 2 == 0 ? 0x1000 + i * 8 : 0x200000 + i * i / 16, 8, 0};
            assert_int_equal(vnxi_list_feed(builder, &row, 1, NULL), VNX_OK);
        }
        vnxi_list_t *list = finish_list(builder);
        assert_ptr_equal(list->class, &class);
        assert_int_equal(((engine_list_t *)list)->regions, 2);
        assert_int_equal(((engine_list_t *)list)->zero, 0);
        assert_int_equal(vnxi_list_row(list, 0).addr, 0x1000);
        lists_ended = 0;
        vnxi_list_release(vnxi_list_retain(list));
        assert_int_equal(lists_ended, 0);
        vnxi_list_release(list);
        assert_int_equal(lists_ended, 1);
    }
    vnxi_region_table_release(table);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_list_of_a_class_begins_and_ends_once),
        cmocka_unit_test(test_list_returns_the_rows_it_was_fed),
        cmocka_unit_test(test_list_mixes_encodings),
        cmocka_unit_test(test_list_notices_one_other_row),
        cmocka_unit_test(test_list_is_compact),
        cmocka_unit_test(test_list_strided_rows_are_unrolled),
        cmocka_unit_test(test_list_strided_layers_take_little_memory),
        cmocka_unit_test(test_list_strided_row_over_regions),
        cmocka_unit_test(test_list_names_the_regions_that_rows_touch),
        cmocka_unit_test(test_list_over_many_regions),
        cmocka_unit_test(test_list_strided_over_many_regions),
        cmocka_unit_test(test_list_agrees_with_a_naive_search),
        cmocka_unit_test(test_list_boundary_rows),
        cmocka_unit_test(test_list_names_the_first_bad_row),
        cmocka_unit_test(test_list_names_what_is_registered_instead),
        cmocka_unit_test(test_list_refuses_bad_strided_rows),
        cmocka_unit_test(test_list_must_not_be_empty),
        cmocka_unit_test(test_list_builder_can_be_aborted_at_any_point),
        cmocka_unit_test(test_list_holds_its_peer_and_names_it),
        cmocka_unit_test(test_list_begin_refuses_an_unknown_memory_type),
        cmocka_unit_test(test_list_sees_revocation_and_outlives_the_table),
        cmocka_unit_test(test_list_ignores_revoked_regions),
        cmocka_unit_test(test_list_many_threads_share_a_table),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
