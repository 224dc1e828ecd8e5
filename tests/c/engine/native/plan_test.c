#include "base/error.h"
#include "list_util.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "engine/native/plan.h"

#define K ((uint64_t)1024)
#define OPERATION "vnx_xfer_create_prepped"

static const region_spec_t big = {
    .addr = (uint64_t)1 << 32, .len = (uint64_t)1 << 36, .direct = true};

/* -- A naive planner ------------------------------------------------------ */

typedef struct pieces {
    vnxi_piece_t *at;
    size_t count, capacity;
} pieces_t;

static VNX_TEST_UNWATCHED void
pieces_add(pieces_t *pieces, vnxi_piece_t piece)
{
    if (pieces->count == pieces->capacity) {
        pieces->capacity = pieces->capacity * 2 + 64;
        pieces->at =
            realloc(pieces->at, pieces->capacity * sizeof *pieces->at);
        assert_non_null(pieces->at);
    }
    pieces->at[pieces->count++] = piece;
}

/* Index i as a number, with its sign extended. */
static VNX_TEST_UNWATCHED uint64_t
index_at(const vnx_indices_t *indices, size_t i)
{
    if (indices->data == NULL) {
        return i;
    }
    switch (indices->type) {
    case VNX_INDEX_I64:
    case VNX_INDEX_U64:
        return ((const uint64_t *)indices->data)[i];
    case VNX_INDEX_I32:
        return (uint64_t)((const int32_t *)indices->data)[i];
    case VNX_INDEX_U32:
        return ((const uint32_t *)indices->data)[i];
    case VNX_INDEX_I16:
        return (uint64_t)((const int16_t *)indices->data)[i];
    case VNX_INDEX_U16:
        return ((const uint16_t *)indices->data)[i];
    case VNX_INDEX_I8:
        return (uint64_t)((const int8_t *)indices->data)[i];
    default:
        return ((const uint8_t *)indices->data)[i];
    }
}

/* The route of a row, if all regions that contain it agree. */
static VNX_TEST_UNWATCHED uint32_t
naive_route(const vnxi_list_t *list, vnx_desc_t row, uint64_t *delta_p)
{
    for (size_t i = 0; i < list->region_count; i++) {
        const vnxi_region_t *region = list->regions[i];
        if (region->dev == row.dev && region->addr <= row.addr &&
            row.addr - region->addr + row.len <= region->len) {
            uint32_t route =
                vnxi_route_from(vnxi_region_routes(region), VNX_MEM_DRAM);
            *delta_p = vnxi_region_delta(region, route);
            return route;
        }
    }
    fail_msg("a row of a list lies in none of its regions");
    return VNXI_ROUTE_NONE;
}

/* The pieces before cutting. */
static VNX_TEST_UNWATCHED pieces_t
naive_plan(const vnxi_plan_args_t *args)
{
    pieces_t pieces = {0};
    for (size_t i = 0; i < args->local_rows.count; i++) {
        uint64_t delta = 0;
        vnx_desc_t local =
            vnxi_list_row(args->local, index_at(&args->local_rows, i));
        vnx_desc_t remote =
            vnxi_list_row(args->remote, index_at(&args->remote_rows, i));
        vnxi_piece_t piece = {.local = local.addr, .len = local.len};
        piece.route = naive_route(args->remote, remote, &delta);
        piece.remote = remote.addr + delta;
        vnxi_piece_t *last =
            pieces.count > 0 ? &pieces.at[pieces.count - 1] : NULL;
        if (!args->no_merge && last != NULL &&
            last->local + last->len == piece.local &&
            last->remote + last->len == piece.remote &&
            last->route == piece.route) {
            last->len += piece.len;
        } else {
            pieces_add(&pieces, piece);
        }
    }
    return pieces;
}

static VNX_TEST_UNWATCHED pieces_t
cut(const pieces_t *pieces)
{
    pieces_t out = {0};
    for (size_t i = 0; i < pieces->count; i++) {
        vnxi_piece_t piece = pieces->at[i];
        for (uint64_t done = 0; done < piece.len; done += VNXI_PIECE_MAX) {
            uint64_t left = piece.len - done;
            pieces_add(&out, (vnxi_piece_t){.local = piece.local + done,
                                            .remote = piece.remote + done,
                                            .len = left < VNXI_PIECE_MAX
                                                       ? left
                                                       : VNXI_PIECE_MAX,
                                            .route = piece.route});
        }
    }
    return out;
}

/* Every chunk within its limits; all of them together, in order. */
static VNX_TEST_UNWATCHED pieces_t
walk_plan(const vnxi_plan_t *plan)
{
    pieces_t pieces = {0};
    assert_true(plan->chunk_count > 0);
    for (size_t i = 0; i < plan->chunk_count; i++) {
        vnxi_walk_t walk = vnxi_plan_walk(plan, i);
        vnxi_piece_t piece;
        uint64_t count = 0, bytes = 0;
        while (vnxi_walk_next(&walk, &piece)) {
            pieces_add(&pieces, piece);
            count++;
            bytes += piece.len;
        }
        assert_true(count > 0 && count <= VNXI_CHUNK_PIECES);
        assert_true(bytes <= vnxi_plan_chunk_bytes(plan));
    }
    return pieces;
}

/* Plan, compare with the naive plan, and return the number of segments. */
static size_t
check_plan(const vnxi_plan_args_t *args)
{
    vnxi_plan_t plan;
    vnx_error_t error;
    if (vnxi_plan_build(args, &plan, &error) != VNX_OK) {
        fail_msg("place %lld: %s", (long long)error.row, error.cause);
    }
    pieces_t whole = naive_plan(args), expected = cut(&whole);
    pieces_t found = walk_plan(&plan);
    uint64_t bytes = 0;
    uint32_t routes = 0;

    assert_int_equal(found.count, expected.count);
    for (size_t i = 0; i < found.count; i++) {
        const vnxi_piece_t *f = &found.at[i], *e = &expected.at[i];
        if (f->local != e->local || f->remote != e->remote ||
            f->len != e->len || f->route != e->route) {
            fail_msg(
                "piece %zu is 0x%llx - 0x%llx + %llu, "
                "not 0x%llx - 0x%llx + %llu",
                i, (unsigned long long)f->local, (unsigned long long)f->remote,
                (unsigned long long)f->len, (unsigned long long)e->local,
                (unsigned long long)e->remote, (unsigned long long)e->len);
        }
        bytes += e->len;
        routes |= 1u << e->route;
    }
    assert_int_equal(plan.rows, args->local_rows.count);
    assert_int_equal(plan.pieces, whole.count);
    assert_true(plan.bytes == bytes);
    /* Of all regions if they have one route, else of the rows. */
    assert_int_equal(plan.routes, routes);
    size_t segments = plan.segment_count;
    vnxi_plan_fini(&plan);
    free(whole.at);
    free(expected.at);
    free(found.at);
    return segments;
}

/* -- Making input --------------------------------------------------------- */

/* Two lists of `count` rows whose lengths depend on (row % 5) alone, and are
 * all alike where `uniform`. */
static VNX_TEST_UNWATCHED vnxi_list_t *
random_list(vnxi_region_table_t *table, const region_spec_t *regions,
            size_t region_count, size_t count, bool uniform, uint64_t *random)
{
    const uint64_t lens[] = {512, 4096, 512, 300 * K, 7};
    vnx_desc_t *rows = malloc(count * sizeof *rows);
    const region_spec_t *region = regions;
    vnx_desc_t next = {0};
    size_t left = 0, kind = 0;

    for (size_t i = 0; i < count; i++, left--) {
        uint64_t len = uniform ? 4096 : lens[i % 5];
        if (left == 0 || next.addr + 400 * K > region->addr + region->len) {
            left = 1 + next_random(random) % 3000;
            kind = next_random(random) % 5;
            region = &regions[next_random(random) % region_count];
            next.addr = region->addr + next_random(random) % 1000 * 8;
        }
        if (kind == 0) { /* anywhere */
            region = &regions[next_random(random) % region_count];
            next.addr = region->addr + next_random(random) %
                                           ((region->len - 400 * K) / 64) * 64;
        }
        next.dev = region->dev;
        rows[i] = (vnx_desc_t){next.addr, len, next.dev};
        /* 1, 2: dense.  3: with gaps.  4: each at the same place. */
        next.addr += kind == 4 ? 0 : kind == 3 ? 2 * len : len;
    }
    vnxi_list_t *list = make_list(table, rows, count);
    free(rows);
    return list;
}

static const size_t type_sizes[] = {8, 8, 4, 4, 2, 2, 1, 1};
static const uint64_t type_max[] = {INT64_MAX,  UINT64_MAX, INT32_MAX,
                                    UINT32_MAX, INT16_MAX,  UINT16_MAX,
                                    INT8_MAX,   UINT8_MAX};

static VNX_TEST_UNWATCHED void
index_put(void *data, vnx_index_type_t type, size_t i, uint64_t index)
{
    /* Little-endian: the low bytes are the number in every type. */
    memcpy((char *)data + i * type_sizes[type], &index, type_sizes[type]);
}

/* Runs and jumps over [0, rows).  Where `like` is given, each index has the
 * same remainder by 5 as that one's. */
static VNX_TEST_UNWATCHED vnx_indices_t
random_indices(vnx_index_type_t type, size_t count, size_t rows,
               const vnx_indices_t *like, uint64_t *random)
{
    uint64_t limit = type_max[type] < rows ? type_max[type] + 1 : rows;
    char *data = malloc(count * type_sizes[type] + 8);
    uint64_t at = 0;
    size_t left = 0, mean = 1 + next_random(random) % 2 * 400;

    for (size_t i = 0; i < count; i++, left--, at++) {
        if (left == 0 || at >= limit) {
            left = 1 + next_random(random) % (2 * mean);
            at = next_random(random) % limit;
        }
        if (like != NULL) {
            uint64_t want = index_at(like, i) % 5;
            at = at / 5 * 5 + want;
            at = at >= limit ? want : at;
        }
        index_put(data, type, i, at);
    }
    return (vnx_indices_t){data, count, type};
}

static void
free_indices(vnx_indices_t indices)
{
    free((void *)indices.data);
}

/* -- Against the naive planner -------------------------------------------- */

static void
check_random_plans(const region_spec_t *regions, size_t region_count,
                   uint64_t seed)
{
    vnxi_region_table_t *table = make_table(regions, region_count);
    uint64_t random = seed;

    for (int round = 0; round < 60; round++) {
        size_t count =
            5 + next_random(&random) % (round % 3 == 0 ? 100 : 20000);
        size_t pairs = 1 + next_random(&random) % (round % 4 == 0 ? 40 : 6000);
        bool uniform = next_random(&random) % 2 == 0;
        vnx_index_type_t l = next_random(&random) % 8;
        vnx_index_type_t r = next_random(&random) % 8;
        vnxi_list_t *local =
            random_list(table, regions, region_count, count, uniform, &random);
        vnxi_list_t *remote =
            random_list(table, regions, region_count, count, uniform, &random);
        vnx_indices_t local_rows =
            random_indices(l, pairs, count, NULL, &random);
        vnx_indices_t remote_rows = random_indices(
            r, pairs, count, uniform ? NULL : &local_rows, &random);
        vnxi_plan_args_t args = {.local = local,
                                 .remote = remote,
                                 .local_rows = local_rows,
                                 .remote_rows = remote_rows,
                                 .no_merge = round % 5 == 0,
                                 .operation = OPERATION};
        check_plan(&args);
        args.remote_rows = local_rows;
        check_plan(&args);
        args.local = args.remote;
        check_plan(&args);
        vnxi_list_release(local);
        vnxi_list_release(remote);
        free_indices(local_rows);
        free_indices(remote_rows);
    }
    vnxi_region_table_release(table);
}

static void
test_plan_agrees_with_a_naive_planner(void **state)
{
    (void)state;
    check_random_plans(&big, 1, 1);
}

static void
test_plan_agrees_over_many_regions(void **state)
{
    (void)state;
    region_spec_t regions[12];
    for (uint64_t i = 0; i < 12; i++) {
        /* Each ends where the next begins. */
        regions[i] = (region_spec_t){.addr = (8 + i) << 22,
                                     .len = 4096 * K,
                                     .dev = i / 6,
                                     .direct = true,
                                     .delta = 0x7000000000};
    }
    check_random_plans(regions, 12, 2);
}

/* Mapped and unmapped regions beside each other, each mapped elsewhere. */
static void
test_plan_translates_each_region(void **state)
{
    (void)state;
    region_spec_t regions[12];
    for (uint64_t i = 0; i < 12; i++) {
        regions[i] = (region_spec_t){.addr = (8 + i) << 22,
                                     .len = 4096 * K,
                                     .dev = i % 2,
                                     .direct = i % 3 != 0,
                                     .delta = i % 3 == 0 ? 0 : i << 40};
    }
    check_random_plans(regions, 12, 3);
    for (uint64_t i = 0; i < 12; i++) {
        regions[i].direct = false;
        regions[i].delta = 0;
    }
    check_random_plans(regions, 12, 4);
}

/* -- Merging and strides -------------------------------------------------- */

static vnxi_list_t *
strided_list(uint64_t offset, uint64_t len, uint64_t stride, uint64_t count)
{
    vnxi_region_table_t *table = make_table(&big, 1);
    vnx_strided_desc_t row = {.addr = big.addr + offset,
                              .len = len,
                              .stride = stride,
                              .count = count};
    vnxi_list_t *list = make_strided_list(table, &row, 1);
    vnxi_region_table_release(table);
    return list;
}

static void
test_plan_dense_rows_are_one_piece(void **state)
{
    (void)state;
    vnxi_list_t *local = strided_list(0, 4096, 4096, 10000);
    vnxi_list_t *remote = strided_list(512, 4096, 4096, 10000);
    vnx_indices_t rows = {NULL, 10000, VNX_INDEX_I64};
    vnxi_plan_args_t args = {.local = local,
                             .remote = remote,
                             .local_rows = rows,
                             .remote_rows = rows,
                             .operation = OPERATION};
    vnxi_plan_t plan;
    assert_int_equal(vnxi_plan_build(&args, &plan, NULL), VNX_OK);
    assert_int_equal(plan.pieces, 1);
    /* Cut at 256 KiB: a run of whole chunks, and the rest. */
    assert_int_equal(plan.segment_count, 2);
    assert_int_equal(plan.segments[0].count, 10000 * 4096 / VNXI_PIECE_MAX);
    assert_int_equal(plan.rows, 10000);
    vnxi_plan_fini(&plan);
    check_plan(&args);

    args.no_merge = true;
    assert_int_equal(check_plan(&args), 1);
    vnxi_list_release(local);
    vnxi_list_release(remote);
}

static void
test_plan_strided_rows_are_one_segment(void **state)
{
    (void)state;
    vnxi_list_t *local = strided_list(0, 512, 1024, 20000);
    vnxi_list_t *remote = strided_list(100, 512, 512, 20000);
    int32_t *rows = malloc(8576 * sizeof *rows);
    for (int i = 0; i < 8576; i++) {
        rows[i] = i + 333; /* not at a block's start */
    }
    vnxi_plan_args_t args = {.local = local,
                             .remote = remote,
                             .local_rows = {rows, 8576, VNX_INDEX_I32},
                             .remote_rows = {NULL, 8576, VNX_INDEX_I32},
                             .operation = OPERATION};
    assert_int_equal(check_plan(&args), 1);
    /* And by a stride of the indices. */
    for (int i = 0; i < 5000; i++) {
        rows[i] = 19999 - 3 * i;
    }
    args.local_rows.count = args.remote_rows.count = 5000;
    assert_int_equal(check_plan(&args), 1);
    vnxi_list_release(local);
    vnxi_list_release(remote);
    free(rows);
}

/* 64 layers, of each the same 134 blocks: as vLLM asks. */
static void
test_plan_makes_one_segment_per_layer(void **state)
{
    (void)state;
    enum { LAYERS = 64, BLOCKS = 134, ROWS = 16000 };
    vnxi_list_t *list = strided_list(0, 512, 1024, LAYERS * ROWS);
    int64_t *local = malloc(LAYERS * BLOCKS * sizeof *local);
    int64_t *remote = malloc(LAYERS * BLOCKS * sizeof *remote);
    for (int i = 0; i < LAYERS * BLOCKS; i++) {
        local[i] = i / BLOCKS * ROWS + i % BLOCKS + 17;
        remote[i] = i / BLOCKS * ROWS + i % BLOCKS + 5000;
    }
    vnxi_plan_args_t args = {
        .local = list,
        .remote = list,
        .local_rows = {local, LAYERS * BLOCKS, VNX_INDEX_I64},
        .remote_rows = {remote, LAYERS * BLOCKS, VNX_INDEX_I64},
        .operation = OPERATION};
    assert_true(check_plan(&args) <= LAYERS + 1);
    vnxi_list_release(list);
    free(local);
    free(remote);
}

/* Contiguous on one side only, or on both with different routes. */
static void
test_plan_merges_only_what_is_contiguous_on_both_sides(void **state)
{
    (void)state;
    const region_spec_t regions[] = {
        {.addr = 0x10000, .len = 0x10000, .direct = true},
        {.addr = 0x20000, .len = 0x10000}};
    vnxi_region_table_t *table = make_table(regions, 2);
    const vnx_desc_t rows[] = {{0x10000, 16, 0},
                               {0x10010, 16, 0},
                               {0x10030, 16, 0},
                               {0x1fff0, 16, 0},
                               {0x20000, 16, 0}};
    vnxi_list_t *list = make_list(table, rows, 5);
    const uint8_t local[] = {0, 1, 0, 1, 3, 4};
    const uint8_t remote[] = {0, 1, 1, 2, 3, 4};
    vnxi_plan_args_t args = {.local = list,
                             .remote = list,
                             .local_rows = {local, 6, VNX_INDEX_U8},
                             .remote_rows = {remote, 6, VNX_INDEX_U8},
                             .operation = OPERATION};
    vnxi_plan_t plan;
    check_plan(&args);
    assert_int_equal(vnxi_plan_build(&args, &plan, NULL), VNX_OK);
    /* 0+1 | 0-1 | 1-2 | 3 (mapped) | 4 (not mapped) */
    assert_int_equal(plan.pieces, 5);
    assert_int_equal(plan.routes, 3);
    vnxi_plan_fini(&plan);
    vnxi_list_release(list);
    vnxi_region_table_release(table);
}

/* Regions that touch each other, in this process and in the peer's. */
static void
test_plan_merges_across_regions(void **state)
{
    (void)state;
    const vnx_desc_t rows[] = {{0x1fff0, 16, 0}, {0x20000, 16, 0}};
    for (int direct = 0; direct < 2; direct++) {
        for (int apart = 0; apart <= direct; apart++) {
            const region_spec_t regions[] = {
                {.addr = 0x10000, .len = 0x10000, .direct = direct},
                {.addr = 0x20000,
                 .len = 0x10000,
                 .direct = direct,
                 .delta = apart ? 0x1000 : 0}};
            vnxi_region_table_t *table = make_table(regions, 2);
            vnxi_list_t *list = make_list(table, rows, 2);
            vnxi_plan_args_t args = {.local = list,
                                     .remote = list,
                                     .local_rows = {NULL, 2, VNX_INDEX_I64},
                                     .remote_rows = {NULL, 2, VNX_INDEX_I64},
                                     .operation = OPERATION};
            vnxi_plan_t plan;
            check_plan(&args);
            assert_int_equal(vnxi_plan_build(&args, &plan, NULL), VNX_OK);
            assert_int_equal(plan.pieces, apart ? 2 : 1);
            assert_int_equal(plan.routes, direct ? 1 : 2);
            vnxi_plan_fini(&plan);
            vnxi_list_release(list);
            vnxi_region_table_release(table);
        }
    }
}

static void
test_plan_cuts_long_rows(void **state)
{
    (void)state;
    const uint64_t lens[] = {VNXI_PIECE_MAX - 1,     VNXI_PIECE_MAX,
                             VNXI_PIECE_MAX + 1,     2 * VNXI_PIECE_MAX,
                             3 * VNXI_PIECE_MAX + 7, 1 << 20,
                             (1 << 20) + 12345};
    for (size_t i = 0; i < sizeof lens / sizeof *lens; i++) {
        for (int gap = 0; gap < 2; gap++) {
            for (uint64_t count = 1; count < 50; count += 12) {
                vnxi_list_t *list =
                    strided_list(3, lens[i], lens[i] + 100 * gap, count);
                vnx_indices_t rows = {NULL, count, VNX_INDEX_I64};
                vnxi_plan_args_t args = {.local = list,
                                         .remote = list,
                                         .local_rows = rows,
                                         .remote_rows = rows,
                                         .no_merge = count == 13,
                                         .operation = OPERATION};
                check_plan(&args);
                vnxi_list_release(list);
            }
        }
    }
}

static void
test_plan_bounds_number_and_size_of_chunks(void **state)
{
    (void)state;
    const uint64_t lens[] = {1, 1024, 1025, 100000, VNXI_PIECE_MAX};
    for (size_t i = 0; i < sizeof lens / sizeof *lens; i++) {
        const size_t count = 5000;
        vnxi_list_t *list = strided_list(0, lens[i], lens[i] + 1, count);
        vnx_indices_t rows = {NULL, count, VNX_INDEX_I64};
        vnxi_plan_args_t args = {.local = list,
                                 .remote = list,
                                 .local_rows = rows,
                                 .remote_rows = rows,
                                 .operation = OPERATION};
        vnxi_plan_t plan;
        check_plan(&args);
        assert_int_equal(vnxi_plan_build(&args, &plan, NULL), VNX_OK);
        size_t fit = vnxi_plan_chunk_bytes(&plan) / lens[i];
        fit = fit < VNXI_CHUNK_PIECES ? fit : VNXI_CHUNK_PIECES;
        assert_int_equal(plan.chunk_count, (count + fit - 1) / fit);
        vnxi_plan_fini(&plan);
        vnxi_list_release(list);
    }
}

/* -- Indices -------------------------------------------------------------- */

/* One wrong index at every kind of place, in every type. */
static void
test_plan_refuses_an_index_out_of_range(void **state)
{
    (void)state;
    const size_t places[] = {0, 1, 31, 32, 33, 64, 255, 256, 1000, 1999};
    vnxi_region_table_t *table = make_table(&big, 1);
    uint64_t random = 9;

    for (int type = 0; type < 8; type++) {
        size_t rows = type_max[type] < 5000 ? 100 : 5000;
        vnxi_list_t *list = random_list(table, &big, 1, rows, true, &random);
        vnxi_list_t *long_list =
            random_list(table, &big, 1, 2000, true, &random);
        const uint64_t bad[] = {rows, type_max[type], (uint64_t)-1,
                                (uint64_t)-rows, rows + 1};
        for (size_t p = 0; p < sizeof places / sizeof *places; p++) {
            for (size_t b = 0; b < sizeof bad / sizeof *bad; b++) {
                char data[2000 * 8];
                vnx_indices_t good = {NULL, 2000, VNX_INDEX_I64};
                vnx_indices_t indices = {data, 2000, type};
                for (size_t i = 0; i < 2000; i++) {
                    /* Consecutive, or scattered. */
                    index_put(data, type, i,
                              b % 2 == 0 ? i % rows : i * 7 % rows);
                }
                index_put(data, type, places[p], bad[b]);
                vnxi_plan_args_t args = {.local = long_list,
                                         .remote = list,
                                         .local_rows = good,
                                         .remote_rows = indices,
                                         .operation = OPERATION};
                vnxi_plan_t plan;
                vnx_error_t error;
                char value[32];
                assert_int_equal(vnxi_plan_build(&args, &plan, &error),
                                 VNX_ERR_INVALID_PARAM);
                assert_int_equal(error.row, places[p]);
                assert_non_null(strstr(error.cause, "remote index "));
                uint64_t seen = index_at(&indices, places[p]);
                snprintf(value, sizeof value,
                         type % 2 == 0 ? "index %lld " : "index %llu ",
                         (unsigned long long)seen);
                assert_non_null(strstr(error.cause, value));
                snprintf(value, sizeof value, "list of %zu rows", rows);
                assert_non_null(strstr(error.cause, value));

                args.local = list;
                args.remote = long_list;
                args.local_rows = indices;
                args.remote_rows = good;
                assert_int_equal(vnxi_plan_build(&args, &plan, &error),
                                 VNX_ERR_INVALID_PARAM);
                assert_int_equal(error.row, places[p]);
                assert_non_null(strstr(error.cause, "local index "));
            }
        }
        vnxi_list_release(long_list);
        vnxi_list_release(list);
    }
    vnxi_region_table_release(table);
}

/* A run must not pass the end of its type: 127 and -128 are not adjacent,
 * although the list has a row 128. */
static void
test_plan_runs_do_not_wrap_around(void **state)
{
    (void)state;
    vnxi_list_t *list = strided_list(0, 8, 8, 70000);
    int8_t i8[256];
    uint8_t u8[256];
    int16_t *i16 = malloc(65536 * sizeof *i16);
    uint64_t u64[64];
    for (int i = 0; i < 256; i++) {
        i8[i] = (int8_t)i;
        u8[i] = (uint8_t)(i + 100);
    }
    for (int i = 0; i < 65536; i++) {
        i16[i] = (int16_t)i;
    }
    for (uint64_t i = 0; i < 64; i++) {
        u64[i] = i - 20;
    }
    const struct {
        vnx_indices_t rows;
        int64_t place; /* of the error; -1: none */
    } cases[] = {{{i8, 256, VNX_INDEX_I8}, 128},
                 {{u8, 256, VNX_INDEX_U8}, -1},
                 {{i16, 65536, VNX_INDEX_I16}, 32768},
                 {{u64, 64, VNX_INDEX_U64}, 0},
                 {{u64, 64, VNX_INDEX_I64}, 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        vnxi_plan_args_t args = {
            .local = list,
            .remote = list,
            .local_rows = {NULL, cases[i].rows.count, VNX_INDEX_I64},
            .remote_rows = cases[i].rows,
            .operation = OPERATION};
        vnxi_plan_t plan;
        vnx_error_t error;
        if (cases[i].place < 0) {
            check_plan(&args);
            continue;
        }
        assert_int_equal(vnxi_plan_build(&args, &plan, &error),
                         VNX_ERR_INVALID_PARAM);
        assert_int_equal(error.row, cases[i].place);
    }
    vnxi_list_release(list);
    free(i16);
}

/* -- Errors --------------------------------------------------------------- */

static void
test_plan_refuses_bad_arguments(void **state)
{
    (void)state;
    vnxi_list_t *list = strided_list(0, 8, 8, 100);
    vnxi_plan_args_t args = {.local = list,
                             .remote = list,
                             .local_rows = {NULL, 5, VNX_INDEX_I64},
                             .remote_rows = {NULL, 6, VNX_INDEX_I64},
                             .operation = OPERATION};
    vnxi_plan_t plan = {0};
    vnx_error_t error;

    assert_int_equal(vnxi_plan_build(&args, &plan, &error),
                     VNX_ERR_INVALID_PARAM);
    assert_string_equal(error.cause,
                        "5 local indices, but 6 remote ones: they form pairs");
    assert_string_equal(error.operation, OPERATION);
    args.local_rows.count = args.remote_rows.count = 0;
    assert_int_equal(vnxi_plan_build(&args, &plan, &error),
                     VNX_ERR_INVALID_PARAM);
    args.local_rows.count = args.remote_rows.count = 1;
    args.local_rows.type = (vnx_index_type_t)99;
    assert_int_equal(vnxi_plan_build(&args, &plan, &error),
                     VNX_ERR_INVALID_PARAM);
    /* Identity past the end. */
    args.local_rows = (vnx_indices_t){NULL, 101, VNX_INDEX_I64};
    args.remote_rows = args.local_rows;
    assert_int_equal(vnxi_plan_build(&args, &plan, &error),
                     VNX_ERR_INVALID_PARAM);
    assert_int_equal(error.row, 100);
    vnxi_plan_fini(&plan);
    vnxi_list_release(list);
}

static void
test_plan_names_pairs_of_unequal_length(void **state)
{
    (void)state;
    enum { ROWS = 3000 };
    vnx_desc_t rows[ROWS];
    vnxi_region_table_t *table = make_table(&big, 1);
    const size_t places[] = {0, 1, 300, 1023, 1024, 2999};

    for (size_t i = 0; i < ROWS; i++) {
        rows[i] = (vnx_desc_t){big.addr + i * 100, 64, 0};
    }
    vnxi_list_t *even = make_list(table, rows, ROWS);
    for (size_t p = 0; p < sizeof places / sizeof *places; p++) {
        rows[places[p]].len = 65;
        vnxi_list_t *odd = make_list(table, rows, ROWS);
        rows[places[p]].len = 64;
        vnxi_plan_args_t args = {.local = even,
                                 .remote = odd,
                                 .local_rows = {NULL, ROWS, VNX_INDEX_I64},
                                 .remote_rows = {NULL, ROWS, VNX_INDEX_I64},
                                 .operation = OPERATION};
        vnxi_plan_t plan;
        vnx_error_t error;
        assert_int_equal(vnxi_plan_build(&args, &plan, &error),
                         VNX_ERR_INVALID_PARAM);
        assert_int_equal(error.row, places[p]);
        assert_string_equal(error.cause,
                            "the local row has 64 bytes, the remote one 65");
        vnxi_list_release(odd);
    }
    /* Lists that are uniform, each by itself. */
    vnxi_list_t *other = strided_list(0, 7, 7, 10);
    vnxi_plan_args_t args = {.local = other,
                             .remote = even,
                             .local_rows = {NULL, 3, VNX_INDEX_I64},
                             .remote_rows = {NULL, 3, VNX_INDEX_I64},
                             .operation = OPERATION};
    vnxi_plan_t plan;
    vnx_error_t error;
    assert_int_equal(vnxi_plan_build(&args, &plan, &error),
                     VNX_ERR_INVALID_PARAM);
    assert_int_equal(error.row, 0);
    assert_string_equal(error.cause,
                        "the local row has 7 bytes, the remote one 64");
    vnxi_list_release(other);
    vnxi_list_release(even);
    vnxi_region_table_release(table);
}

static void
test_plan_refuses_a_byte_count_overflow(void **state)
{
    (void)state;
    const region_spec_t all = {.addr = 0, .len = UINT64_MAX, .direct = true};
    vnxi_region_table_t *table = make_table(&all, 1);
    const vnx_desc_t same[] = {{0, (uint64_t)1 << 62, 0},
                               {0, (uint64_t)1 << 62, 0},
                               {0, (uint64_t)1 << 62, 0},
                               {0, (uint64_t)1 << 62, 0}};
    const vnx_desc_t mixed[] = {{0, (uint64_t)1 << 63, 0},
                                {9, (uint64_t)1 << 62, 0},
                                {5, (uint64_t)1 << 62, 0},
                                {3, 7, 0}};
    const vnx_desc_t *lists[] = {same, mixed};
    for (size_t i = 0; i < 2; i++) {
        vnxi_list_t *list = make_list(table, lists[i], 4);
        vnxi_plan_args_t args = {.local = list,
                                 .remote = list,
                                 .local_rows = {NULL, 4, VNX_INDEX_I64},
                                 .remote_rows = {NULL, 4, VNX_INDEX_I64},
                                 .operation = OPERATION};
        vnxi_plan_t plan;
        vnx_error_t error;
        assert_int_equal(vnxi_plan_build(&args, &plan, &error),
                         VNX_ERR_INVALID_PARAM);
        assert_non_null(strstr(error.cause, "2^64"));
        vnxi_list_release(list);
    }
    vnxi_region_table_release(table);
}

static void
test_plan_fini_accepts_an_empty_plan(void **state)
{
    (void)state;
    vnxi_plan_t plan = {0};
    vnxi_plan_fini(&plan);
    vnxi_plan_fini(&plan);
}

/* -- Threads -------------------------------------------------------------- */

static void *
plan_many(void *argument)
{
    const vnxi_plan_args_t *args = argument;
    for (int i = 0; i < 50; i++) {
        vnxi_plan_t plan;
        if (vnxi_plan_build(args, &plan, NULL) != VNX_OK) {
            return argument;
        }
        bool whole = plan.rows == args->local_rows.count;
        vnxi_plan_fini(&plan);
        if (!whole) {
            return argument;
        }
    }
    return NULL;
}

static void
test_plan_lists_are_shared_by_many_threads(void **state)
{
    (void)state;
    vnxi_region_table_t *table = make_table(&big, 1);
    uint64_t random = 10;
    vnxi_list_t *list = random_list(table, &big, 1, 20000, true, &random);
    vnx_indices_t local =
        random_indices(VNX_INDEX_I64, 5000, 20000, NULL, &random);
    vnx_indices_t remote =
        random_indices(VNX_INDEX_I32, 5000, 20000, NULL, &random);
    vnxi_plan_args_t args = {.local = list,
                             .remote = list,
                             .local_rows = local,
                             .remote_rows = remote,
                             .operation = OPERATION};
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, plan_many, &args),
                         0);
    }
    for (int i = 0; i < 4; i++) {
        void *failed = &args;
        pthread_join(threads[i], &failed);
        assert_null(failed);
    }
    vnxi_list_release(list);
    free_indices(local);
    free_indices(remote);
    vnxi_region_table_release(table);
}

static void
test_plan_list_records_one_route_and_delta(void **state)
{
    (void)state;
    const region_spec_t specs[] = {
        {.addr = 0x1000, .len = 0x1000, .direct = true, .delta = 5},
        {.addr = 0x3000, .len = 0x1000, .direct = true, .delta = 5},
        {.addr = 0x5000, .len = 0x1000, .direct = true, .delta = 9},
        {.addr = 0x7000, .len = 0x1000}};
    const vnx_desc_t rows[] = {
        {0x1000, 8, 0}, {0x3000, 8, 0}, {0x5000, 8, 0}, {0x7000, 8, 0}};
    const uint32_t all = (1u << VNX_MEM_COUNT) - 1;
    const uint32_t one_route[] = {all, all, 0, 0};
    vnxi_region_table_t *table = make_table(specs, 4);

    for (size_t n = 1; n <= 4; n++) {
        vnxi_list_t *list = make_list(table, rows, n);
        assert_int_equal(vnxi_native_list(list)->routes.one_route,
                         one_route[n - 1]);
        vnxi_list_release(list);
    }
    vnxi_list_t *list = make_list(table, rows + 3, 1);
    assert_int_equal(vnxi_native_list(list)->routes.one_route, all);
    vnxi_list_release(list);
    vnxi_region_table_release(table);
}

/* The translation counts only where bytes are copied within the process. */
static void
test_plan_list_has_one_route_for_each_kind_of_local_memory(void **state)
{
    (void)state;
    const region_spec_t specs[] = {
        {.addr = 0x1000, .len = 0x1000, .direct = true, .delta = 5},
        {.addr = 0x3000, .len = 0x1000, .direct = true, .delta = 9}};
    const vnx_desc_t rows[] = {{0x1000, 8, 0}, {0x3000, 8, 0}};
    vnxi_region_table_t *table = make_table(specs, 2);

    for (size_t i = 0; i < 2; i++) { /* GPU memory goes another way */
        vnxi_region_t *region = vnxi_region_table_at(table, i);
        atomic_store(&vnxi_native_region(region)->routes,
                     (uint64_t)ROUTE_OTHER << 8 * VNX_MEM_VRAM);
    }
    vnxi_list_t *list = make_list(table, rows, 2);
    assert_int_equal(
        vnxi_native_list(list)->routes.one_route >> VNX_MEM_DRAM & 1, 0);
    assert_int_equal(
        vnxi_native_list(list)->routes.one_route >> VNX_MEM_VRAM & 1, 1);
    vnxi_list_release(list);
    vnxi_region_table_release(table);
}

#define ROUTE_ADDED 2u

/* Metadata that is loaded later adds a route to one region of the list, the
 * first or another. */
static void
test_plan_follows_routes_that_are_added_to_a_region(void **state)
{
    (void)state;
    const region_spec_t specs[] = {{.addr = 0x1000, .len = 0x1000},
                                   {.addr = 0x3000, .len = 0x1000}};
    const vnx_desc_t rows[] = {{0x1000, 8, 0}, {0x3000, 8, 0}};

    for (size_t changed = 0; changed < 2; changed++) {
        vnxi_region_table_t *table = make_table(specs, 2);
        vnxi_list_t *list = make_list(table, rows, 2);
        const vnxi_plan_args_t args = {.local = list,
                                       .remote = list,
                                       .local_rows = {.count = 2},
                                       .remote_rows = {.count = 2},
                                       .operation = OPERATION};
        vnxi_plan_t plan;

        set_route(vnxi_region_table_at(table, changed), ROUTE_ADDED);
        vnxi_routes_have_changed();
        assert_int_equal(vnxi_plan_build(&args, &plan, NULL), VNX_OK);
        assert_int_equal(plan.routes, 1u << ROUTE_OTHER | 1u << ROUTE_ADDED);
        assert_int_equal(plan.segment_count, 2);
        for (size_t i = 0; i < 2; i++) {
            assert_int_equal(plan.segments[i].remote, rows[i].addr);
            assert_int_equal(plan.segments[i].route,
                             i == changed ? ROUTE_ADDED : ROUTE_OTHER);
        }
        vnxi_plan_fini(&plan);
        vnxi_list_release(list);
        vnxi_region_table_release(table);
    }
}

static size_t lost_place;
static vnx_desc_t lost_row;

static vnx_status_t
note_no_route(const vnxi_plan_args_t *args, size_t place,
              const vnx_desc_t *remote, vnx_error_t *error)
{
    lost_place = place;
    lost_row = *remote;
    return vnxi_error_set(error, VNX_ERR_NOT_SUPPORTED, args->operation,
                          "no route");
}

/* The error names the first row that no transport moves, whether it is found
 * by blocks, one by one, or all rows are alike. */
static void
test_plan_names_the_first_row_without_a_route(void **state)
{
    (void)state;
    enum { REGIONS = 4, PER = 100 };
    region_spec_t specs[REGIONS];
    vnx_desc_t rows[REGIONS * PER];
    vnxi_plan_t plan;
    vnx_error_t error;

    for (size_t i = 0; i < REGIONS; i++) {
        specs[i] = (region_spec_t){
            .addr = 0x10000 * (i + 1), .len = 0x10000, .direct = i < 2};
    }
    for (size_t i = 0; i < REGIONS * PER; i++) {
        rows[i] =
            (vnx_desc_t){0x10000 + i / PER * 0x10000 + i % PER * 64, 64, 0};
    }
    for (size_t lost = 0; lost < REGIONS; lost++) {
        for (size_t step = 1; step <= 3; step += 2) {
            vnxi_region_table_t *table = make_table(specs, REGIONS);
            set_route(vnxi_region_table_at(table, lost), VNXI_ROUTE_NONE);
            vnxi_list_t *list = make_list(table, rows, REGIONS * PER);
            uint64_t indices[REGIONS * PER];
            size_t count = REGIONS * PER / step;
            for (size_t i = 0; i < count; i++) {
                indices[i] = i * step;
            }
            const vnx_indices_t at = {
                .data = indices, .count = count, .type = VNX_INDEX_U64};
            const vnxi_plan_args_t args = {.local = list,
                                           .remote = list,
                                           .local_rows = at,
                                           .remote_rows = at,
                                           .operation = "test",
                                           .no_route = note_no_route};
            assert_int_equal(vnxi_plan_build(&args, &plan, &error),
                             VNX_ERR_NOT_SUPPORTED);
            size_t first = (lost * PER + step - 1) / step;
            assert_int_equal(lost_place, first);
            assert_int_equal(lost_row.addr, rows[first * step].addr);
            vnxi_list_release(list);
            vnxi_region_table_release(table);
        }
    }
    for (size_t i = 0; i < REGIONS; i++) {
        specs[i].direct = false;
    }
    vnxi_region_table_t *table = make_table(specs, REGIONS);
    for (size_t i = 0; i < REGIONS; i++) {
        set_route(vnxi_region_table_at(table, i), VNXI_ROUTE_NONE);
    }
    vnxi_list_t *list = make_list(table, rows, REGIONS * PER);
    const uint64_t one = 150;
    const vnx_indices_t at = {.data = &one, .count = 1, .type = VNX_INDEX_U64};
    const vnxi_plan_args_t args = {.local = list,
                                   .remote = list,
                                   .local_rows = at,
                                   .remote_rows = at,
                                   .operation = "test",
                                   .no_route = note_no_route};
    assert_int_equal(vnxi_plan_build(&args, &plan, &error),
                     VNX_ERR_NOT_SUPPORTED);
    assert_int_equal(lost_place, 0);
    assert_int_equal(lost_row.addr, rows[150].addr);
    vnxi_list_release(list);
    vnxi_region_table_release(table);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plan_list_records_one_route_and_delta),
        cmocka_unit_test(
            test_plan_list_has_one_route_for_each_kind_of_local_memory),
        cmocka_unit_test(test_plan_follows_routes_that_are_added_to_a_region),
        cmocka_unit_test(test_plan_names_the_first_row_without_a_route),
        cmocka_unit_test(test_plan_agrees_with_a_naive_planner),
        cmocka_unit_test(test_plan_agrees_over_many_regions),
        cmocka_unit_test(test_plan_translates_each_region),
        cmocka_unit_test(test_plan_dense_rows_are_one_piece),
        cmocka_unit_test(test_plan_strided_rows_are_one_segment),
        cmocka_unit_test(test_plan_makes_one_segment_per_layer),
        cmocka_unit_test(
            test_plan_merges_only_what_is_contiguous_on_both_sides),
        cmocka_unit_test(test_plan_merges_across_regions),
        cmocka_unit_test(test_plan_cuts_long_rows),
        cmocka_unit_test(test_plan_bounds_number_and_size_of_chunks),
        cmocka_unit_test(test_plan_refuses_an_index_out_of_range),
        cmocka_unit_test(test_plan_runs_do_not_wrap_around),
        cmocka_unit_test(test_plan_refuses_bad_arguments),
        cmocka_unit_test(test_plan_names_pairs_of_unequal_length),
        cmocka_unit_test(test_plan_refuses_a_byte_count_overflow),
        cmocka_unit_test(test_plan_fini_accepts_an_empty_plan),
        cmocka_unit_test(test_plan_lists_are_shared_by_many_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
