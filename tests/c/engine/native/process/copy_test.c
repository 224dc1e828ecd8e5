#include "vnx_test.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "engine/native/process/copy.h"

#define GUARD 64u

/* Two areas and the expected target. */
typedef struct areas {
    unsigned char *target, *source, *expected;
    size_t size;
} areas_t;

static void
areas_fill(areas_t *areas)
{
    for (size_t i = 0; i < areas->size; i++) {
        areas->source[i] = (unsigned char)(i * 131 + (i >> 8));
        areas->target[i] = areas->expected[i] = (unsigned char)(i * 7 + 3);
    }
}

static areas_t
areas_create(size_t size)
{
    areas_t areas = {
        .target = aligned_alloc(4096, (size + 4095) / 4096 * 4096),
        .source = aligned_alloc(4096, (size + 4095) / 4096 * 4096),
        .expected = malloc(size),
        .size = size};
    assert_non_null(areas.target);
    assert_non_null(areas.source);
    assert_non_null(areas.expected);
    areas_fill(&areas);
    return areas;
}

static void
areas_free(areas_t *areas)
{
    free(areas->target);
    free(areas->source);
    free(areas->expected);
}

/* -- Streaming ------------------------------------------------------------ */

static void
check_stream(areas_t *areas, size_t to, size_t from, size_t len)
{
    memcpy(areas->expected + to, areas->source + from, len);
    vnxi_copy_stream(areas->target + to, areas->source + from, len);
    assert_memory_equal(areas->target, areas->expected, areas->size);
    memset(areas->target, 0xee, areas->size);
    memset(areas->expected, 0xee, areas->size);
}

static void
test_copy_stream_every_alignment(void **state)
{
    (void)state;
    const size_t lens[] = {0, 1, 63, 500, 512, 513, 640, 767, 1000, 1111};
    areas_t areas = areas_create(2048);
    for (size_t to = 0; to < 68; to++) {
        for (size_t from = 0; from < 68; from += from < 34 ? 1 : 3) {
            for (size_t i = 0; i < sizeof lens / sizeof *lens; i++) {
                check_stream(&areas, GUARD + to, GUARD + from, lens[i]);
            }
        }
    }
    areas_free(&areas);
}

static void
test_copy_stream_every_length(void **state)
{
    (void)state;
    areas_t areas = areas_create(2048);
    for (size_t len = 0; len < 1500; len++) {
        check_stream(&areas, GUARD + len % 61, GUARD + len % 37, len);
    }
    areas_free(&areas);
}

static void
test_copy_stream_large_blocks(void **state)
{
    (void)state;
    areas_t areas = areas_create((3 << 20) + 4096);
    check_stream(&areas, 1, 0, (3 << 20) + 17);
    areas_fill(&areas);
    check_stream(&areas, 0, 3, 2 << 20);
    areas_free(&areas);
}

/* -- Chunks --------------------------------------------------------------- */

/* A plan of `count` segments and one chunk, of borrowed segments. */
static vnxi_plan_t
one_chunk(vnxi_segment_t *segments, size_t count, uint64_t bytes)
{
    static vnxi_chunk_t first = {0, 0};
    return (vnxi_plan_t){.segments = segments,
                         .segment_count = count,
                         .chunks = &first,
                         .chunk_count = 1,
                         .bytes = bytes,
                         .routes = 1u << VNXI_ROUTE_COPY};
}

static vnxi_segment_t
segment(const void *local, const void *remote, uint64_t len)
{
    return (vnxi_segment_t){.local = (uintptr_t)local,
                            .remote = (uintptr_t)remote,
                            .len = len,
                            .count = 1,
                            .route = VNXI_ROUTE_COPY};
}

/* Read and write, with plain stores and with streaming ones. */
static void
test_copy_chunk_both_ways(void **state)
{
    (void)state;
    const uint64_t totals[] = {1000, VNXI_COPY_STREAM_FROM,
                               VNXI_COPY_STREAM_FROM + 1, 1 << 30};
    areas_t areas = areas_create(100000);
    for (size_t t = 0; t < sizeof totals / sizeof *totals; t++) {
        for (int op = VNX_OP_READ; op <= VNX_OP_WRITE; op++) {
            unsigned char *local =
                op == VNX_OP_READ ? areas.target : areas.source;
            unsigned char *remote =
                op == VNX_OP_READ ? areas.source : areas.target;
            vnxi_segment_t segments[] = {
                segment(local + 5, remote + 5, 1),
                segment(local + 100, remote + 100, 777),
                {.local = (uintptr_t)local + 2000,
                 .remote = (uintptr_t)remote + 2000,
                 .local_stride = 1500,
                 .remote_stride = 1500,
                 .len = 1030,
                 .count = 20,
                 .route = VNXI_ROUTE_COPY},
                segment(local + 50000, remote + 50000, 49999)};
            vnxi_plan_t plan = one_chunk(segments, 4, totals[t]);

            areas_fill(&areas);
            areas.expected[5] = areas.source[5];
            memcpy(areas.expected + 100, areas.source + 100, 777);
            for (size_t i = 0; i < 20; i++) {
                memcpy(areas.expected + 2000 + i * 1500,
                       areas.source + 2000 + i * 1500, 1030);
            }
            memcpy(areas.expected + 50000, areas.source + 50000, 49999);
            vnxi_copy_chunk(&plan, 0, op);
            assert_memory_equal(areas.target, areas.expected, areas.size);
        }
    }
    areas_free(&areas);
}

/* Strides of either sign, and different ones on the two sides. */
static void
test_copy_chunk_follows_both_strides(void **state)
{
    (void)state;
    areas_t areas = areas_create(100000);
    vnxi_segment_t one = {.local = (uintptr_t)areas.target + 90000,
                          .remote = (uintptr_t)areas.source + 10,
                          .local_stride = -700,
                          .remote_stride = 600,
                          .len = 600,
                          .count = 100,
                          .route = VNXI_ROUTE_COPY};
    vnxi_plan_t plan = one_chunk(&one, 1, 60000);
    for (size_t i = 0; i < 100; i++) {
        memcpy(areas.expected + 90000 - 700 * i, areas.source + 10 + 600 * i,
               600);
    }
    vnxi_copy_chunk(&plan, 0, VNX_OP_READ);
    assert_memory_equal(areas.target, areas.expected, areas.size);
    areas_free(&areas);
}

static void
test_copy_chunk_copies_only_its_own_pieces(void **state)
{
    (void)state;
    enum { PIECES = 1000, LEN = 40 };
    areas_t areas = areas_create(PIECES * LEN);
    vnxi_segment_t segments[] = {
        {.local = (uintptr_t)areas.target,
         .remote = (uintptr_t)areas.source,
         .local_stride = LEN,
         .remote_stride = LEN,
         .len = LEN,
         .count = 700,
         .route = VNXI_ROUTE_COPY},
        {.local = (uintptr_t)areas.target + 700 * LEN,
         .remote = (uintptr_t)areas.source + 700 * LEN,
         .local_stride = LEN,
         .remote_stride = LEN,
         .len = LEN,
         .count = 300,
         .route = VNXI_ROUTE_COPY}};
    vnxi_chunk_t chunks[] = {{0, 0}, {0, 512}, {1, 200}};
    const size_t ends[] = {512, 900, 1000};
    vnxi_plan_t plan = {.segments = segments,
                        .segment_count = 2,
                        .chunks = chunks,
                        .chunk_count = 3,
                        .bytes = PIECES * LEN,
                        .routes = 1u << VNXI_ROUTE_COPY};
    size_t start = 0;
    for (size_t i = 0; i < 3; i++) {
        vnxi_copy_chunk(&plan, i, VNX_OP_READ);
        memcpy(areas.expected + start, areas.source + start,
               ends[i] * LEN - start);
        start = ends[i] * LEN;
        assert_memory_equal(areas.target, areas.expected, areas.size);
    }
    areas_free(&areas);
}

/* This function does not copy memory of another process. */
static void
test_copy_chunk_skips_other_routes(void **state)
{
    (void)state;
    areas_t areas = areas_create(5000);
    vnxi_segment_t segments[] = {
        segment(areas.target, (void *)16, 100),
        segment(areas.target + 1000, areas.source + 1000, 600),
        segment(areas.target, (void *)32, 100)};
    segments[0].route = segments[2].route = 1;
    vnxi_plan_t plan = one_chunk(segments, 3, 800);

    memcpy(areas.expected + 1000, areas.source + 1000, 600);
    vnxi_copy_chunk(&plan, 0, VNX_OP_READ);
    assert_memory_equal(areas.target, areas.expected, areas.size);
    areas_free(&areas);
}

/* A piece onto itself, and onto ranges that overlap it partly. */
static void
test_copy_chunk_moves_overlapping_ranges(void **state)
{
    (void)state;
    const size_t lens[] = {1, 64, 700, 5000};
    const int shifts[] = {0, 1, -1, 63, -64, 600, -600, 4999, -4999};
    areas_t areas = areas_create(20000);
    for (size_t l = 0; l < sizeof lens / sizeof *lens; l++) {
        for (size_t s = 0; s < sizeof shifts / sizeof *shifts; s++) {
            for (int big = 0; big < 2; big++) {
                areas_fill(&areas);
                unsigned char *from = areas.target + 8000;
                vnxi_segment_t one = segment(from + shifts[s], from, lens[l]);
                vnxi_plan_t plan = one_chunk(
                    &one, 1, big ? 2 * VNXI_COPY_STREAM_FROM : lens[l]);
                memmove(areas.expected + 8000 + shifts[s],
                        areas.expected + 8000, lens[l]);
                vnxi_copy_chunk(&plan, 0, VNX_OP_READ);
                assert_memory_equal(areas.target, areas.expected, areas.size);
            }
        }
    }
    areas_free(&areas);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_copy_stream_every_alignment),
        cmocka_unit_test(test_copy_stream_every_length),
        cmocka_unit_test(test_copy_stream_large_blocks),
        cmocka_unit_test(test_copy_chunk_both_ways),
        cmocka_unit_test(test_copy_chunk_follows_both_strides),
        cmocka_unit_test(test_copy_chunk_copies_only_its_own_pieces),
        cmocka_unit_test(test_copy_chunk_skips_other_routes),
        cmocka_unit_test(test_copy_chunk_moves_overlapping_ranges),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
