/*
 * Measures lists, plans and copying; prints the best of several rounds:
 *
 *     meson test -C build --benchmark plan_bench
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "base/clock.h"
#include "engine/native/plan.h"
#include "engine/native/process/copy.h"
#include "engine/native/region_access.h"
#include "engine/parts/list.h"

#define BASE ((uint64_t)1 << 32)
#define ROWS 1000000u
#define CONSECUTIVE 8576u
#define LAYERS 64u
#define BLOCKS 134u
#define SCATTERED 100000u

static uint64_t random_state = 88172645463325252u;

static uint64_t
next_random(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

static void
must(bool good, const char *what)
{
    if (!good) {
        fprintf(stderr, "plan_bench: %s failed\n", what);
        exit(1);
    }
}

static void *
must_alloc(size_t size)
{
    void *memory = aligned_alloc(4096, (size + 4095) & ~(size_t)4095);
    must(memory != NULL, "an allocation");
    return memory;
}

/* Run `work` for `rounds` rounds of `times` and print the best of them. */
static double
measure(const char *name, unsigned rounds, unsigned times,
        void (*work)(void *context), void *context)
{
    uint64_t best = UINT64_MAX;
    for (unsigned i = 0; i < rounds; i++) {
        uint64_t start = vnxi_clock_ns();
        for (unsigned k = 0; k < times; k++) {
            work(context);
        }
        uint64_t took = vnxi_clock_ns() - start;
        best = took < best ? took : best;
    }
    double ns = (double)best / times;
    if (ns < 1e4) {
        printf("%-52s %10.1f ns\n", name, ns);
    } else {
        printf("%-52s %10.3f ms\n", name, ns / 1e6);
    }
    return ns;
}

/* -- Lists ---------------------------------------------------------------- */

static vnxi_region_table_t *
make_table(size_t count, uint64_t len)
{
    vnxi_region_t **regions = must_alloc(count * sizeof *regions);
    for (size_t i = 0; i < count; i++) {
        regions[i] = vnxi_region_create(&vnxi_native_region_class,
                                        VNX_MEM_DRAM, BASE + i * len, len, 0);
        must(regions[i] != NULL, "a region");
        atomic_store(&vnxi_native_region(regions[i])->routes, 0); /* copy */
    }
    vnxi_region_table_t *table = vnxi_region_table_create(regions, count);
    must(table != NULL, "a region table");
    for (size_t i = 0; i < count; i++) {
        vnxi_region_release(regions[i]);
    }
    free(regions);
    return table;
}

typedef struct list_work {
    vnxi_region_table_t *table;
    const vnx_desc_t *rows;
    const vnx_strided_desc_t *strided;
    size_t count;
} list_work_t;

static vnxi_list_t *
make_list(const list_work_t *work)
{
    vnxi_list_args_t args = {.table = work->table,
                             .mem = VNX_MEM_DRAM,
                             .class = &vnxi_native_list_class,
                             .operation = "bench"};
    vnxi_builder_t *builder;
    vnxi_list_t *list;
    vnx_status_t status = vnxi_list_begin(&args, &builder, NULL);
    must(status == VNX_OK, "vnxi_list_begin");
    status = work->rows != NULL
                 ? vnxi_list_feed(builder, work->rows, work->count, NULL)
                 : vnxi_list_feed_strided(builder, work->strided, work->count,
                                          NULL);
    must(status == VNX_OK, "feeding");
    status = vnxi_list_finish(builder, &list, NULL);
    must(status == VNX_OK, "vnxi_list_finish");
    return list;
}

static void
make_and_release_list(void *context)
{
    vnxi_list_release(make_list(context));
}

static void
bench_lists(vnxi_region_table_t *one, vnxi_region_table_t *many)
{
    vnx_desc_t *rows = must_alloc(ROWS * sizeof *rows);
    vnx_strided_desc_t layers[32];

    for (size_t i = 0; i < ROWS; i++) {
        rows[i] =
            (vnx_desc_t){BASE + next_random() % (1 << 21) * 4096, 4096, 0};
    }
    list_work_t work = {.table = one, .rows = rows, .count = ROWS};
    measure("list, 1 M random rows, one region", 10, 1, make_and_release_list,
            &work);
    work.table = many;
    measure("list, 1 M random rows, 64 regions", 10, 1, make_and_release_list,
            &work);
    for (size_t i = 0; i < ROWS; i++) {
        rows[i] = (vnx_desc_t){BASE + i * 8192, 4096, 0};
    }
    measure("list, 1 M rows at a stride, 64 regions", 10, 1,
            make_and_release_list, &work);
    work.count = 1;
    measure("list, 1 row, made and released", 20, 1000, make_and_release_list,
            &work);
    for (size_t i = 0; i < 32; i++) {
        layers[i] = (vnx_strided_desc_t){.addr = BASE + i * (256 << 20),
                                         .len = 4096,
                                         .stride = 8192,
                                         .count = 32768};
    }
    list_work_t strided = {.table = many, .strided = layers, .count = 32};
    vnxi_list_t *list = make_list(&strided);
    printf("%-52s %10zu bytes\n", "  32 layers x 32 768 blocks take",
           list->bytes);
    vnxi_list_release(list);
    measure("list, 32 strided layers x 32 768 blocks", 10, 1,
            make_and_release_list, &strided);
    free(rows);
}

/* -- Plans ---------------------------------------------------------------- */

static void
make_and_release_plan(void *context)
{
    vnxi_plan_t plan;
    must(vnxi_plan_build(context, &plan, NULL) == VNX_OK, "vnxi_plan_build");
    vnxi_plan_fini(&plan);
}

static void
bench_plan(const char *name, const vnxi_plan_args_t *args, unsigned times)
{
    vnxi_plan_args_t copy = *args;
    vnxi_plan_t plan;
    must(vnxi_plan_build(args, &plan, NULL) == VNX_OK, "vnxi_plan_build");
    printf("%-52s %10zu segments, %zu chunks\n", "", plan.segment_count,
           plan.chunk_count);
    vnxi_plan_fini(&plan);
    measure(name, 20, times, make_and_release_plan, &copy);
}

static vnxi_list_t *
strided_list(vnxi_region_table_t *table, uint64_t len, uint64_t stride)
{
    vnx_strided_desc_t row = {
        .addr = BASE, .len = len, .stride = stride, .count = 32 * 32768};
    list_work_t work = {.table = table, .strided = &row, .count = 1};
    return make_list(&work);
}

static vnxi_list_t *
random_list(vnxi_region_table_t *table)
{
    vnx_desc_t *rows = must_alloc(ROWS * sizeof *rows);
    for (size_t i = 0; i < ROWS; i++) {
        rows[i] =
            (vnx_desc_t){BASE + next_random() % (1 << 21) * 4096, 4096, 0};
    }
    list_work_t work = {.table = table, .rows = rows, .count = ROWS};
    vnxi_list_t *list = make_list(&work);
    free(rows);
    return list;
}

static void
bench_consecutive(vnxi_region_table_t *table)
{
    vnxi_list_t *dense = strided_list(table, 4096, 4096);
    vnxi_list_t *sparse = strided_list(table, 4096, 8192);
    int64_t *i64 = must_alloc(2 * CONSECUTIVE * sizeof *i64);
    int32_t *i32 = must_alloc(2 * CONSECUTIVE * sizeof *i32);
    for (size_t i = 0; i < CONSECUTIVE; i++) {
        i64[i] = (int64_t)i + 100;
        i64[CONSECUTIVE + i] = (int64_t)i + 5000;
        i32[i] = (int32_t)i + 100;
        i32[CONSECUTIVE + i] = (int32_t)i + 5000;
    }
    vnxi_plan_args_t args = {
        .local = dense,
        .remote = dense,
        .local_rows = {i64, CONSECUTIVE, VNX_INDEX_I64},
        .remote_rows = {i64 + CONSECUTIVE, CONSECUTIVE, VNX_INDEX_I64}};
    bench_plan("plan, 8 576 consecutive int64, dense", &args, 200);
    args.local = args.remote = sparse;
    bench_plan("plan, 8 576 consecutive int64, stride > len", &args, 200);
    args.local_rows = (vnx_indices_t){i32, CONSECUTIVE, VNX_INDEX_I32};
    args.remote_rows =
        (vnx_indices_t){i32 + CONSECUTIVE, CONSECUTIVE, VNX_INDEX_I32};
    bench_plan("plan, 8 576 consecutive int32, stride > len", &args, 200);

    for (size_t i = 0; i < LAYERS * BLOCKS; i++) {
        i64[i] = (int64_t)(i / BLOCKS * 16000 + i % BLOCKS + 7);
        i64[CONSECUTIVE + i] = (int64_t)(i / BLOCKS * 16000 + i % BLOCKS);
    }
    args.local_rows = (vnx_indices_t){i64, CONSECUTIVE, VNX_INDEX_I64};
    args.remote_rows =
        (vnx_indices_t){i64 + CONSECUTIVE, CONSECUTIVE, VNX_INDEX_I64};
    bench_plan("plan, 64 layers x 134 block ids", &args, 200);
    vnxi_list_release(dense);
    vnxi_list_release(sparse);
    free(i64);
    free(i32);
}

static void
bench_scattered(vnxi_region_table_t *table)
{
    vnxi_list_t *list = random_list(table);
    int64_t *local = must_alloc(SCATTERED * sizeof *local);
    int64_t *remote = must_alloc(SCATTERED * sizeof *remote);
    for (size_t i = 0; i < SCATTERED; i++) {
        local[i] = (int64_t)(next_random() % ROWS);
        remote[i] = (int64_t)(next_random() % ROWS);
    }
    vnxi_plan_args_t args = {
        .local = list,
        .remote = list,
        .local_rows = {local, SCATTERED, VNX_INDEX_I64},
        .remote_rows = {remote, SCATTERED, VNX_INDEX_I64}};
    bench_plan("plan, 100 k scattered", &args, 1);
    args.local_rows.count = args.remote_rows.count = 1;
    bench_plan("plan, 1 index", &args, 10000);
    vnxi_list_release(list);
    free(local);
    free(remote);
}

static void
make_all_of_one_row(void *context)
{
    vnxi_list_t *local = make_list(context), *remote = make_list(context);
    vnxi_plan_args_t args = {.local = local,
                             .remote = remote,
                             .local_rows.count = 1,
                             .remote_rows.count = 1};
    make_and_release_plan(&args);
    vnxi_list_release(local);
    vnxi_list_release(remote);
}

/* -- Copying -------------------------------------------------------------- */

#define COPY_BYTES ((size_t)64 << 20)

typedef struct copy_work {
    char *target, *source;
    const vnxi_plan_t *plan;
} copy_work_t;

static void
copy_stream(void *context)
{
    const copy_work_t *work = context;
    vnxi_copy_stream(work->target, work->source, COPY_BYTES);
}

#ifdef __SSE2__
/* The loop that vnxi_copy_stream() is compared with. */
static void
copy_bare(void *context)
{
    const copy_work_t *work = context;
    __m128i *target = (__m128i *)(void *)work->target;
    const __m128i *source = (const __m128i *)(const void *)work->source;
    for (size_t i = 0; i < COPY_BYTES / sizeof *target; i++) {
        _mm_stream_si128(&target[i], _mm_load_si128(&source[i]));
    }
    _mm_sfence();
}
#endif

static void
copy_plan(void *context)
{
    const copy_work_t *work = context;
    for (size_t i = 0; i < work->plan->chunk_count; i++) {
        vnxi_copy_chunk(work->plan, i, VNX_OP_READ);
    }
}

static void
copy_plan_bare(void *context)
{
    const copy_work_t *work = context;
    vnxi_piece_t piece;
    for (size_t i = 0; i < work->plan->chunk_count; i++) {
        vnxi_walk_t walk = vnxi_plan_walk(work->plan, i);
        while (vnxi_walk_next(&walk, &piece)) {
            memcpy((void *)(uintptr_t)piece.local,
                   (const void *)(uintptr_t)piece.remote, piece.len);
        }
    }
}

static void
bench_pieces(copy_work_t *work, size_t piece, size_t total)
{
    size_t count = total / piece;
    vnxi_segment_t *segments = must_alloc(count * sizeof *segments);
    vnxi_chunk_t *chunks = must_alloc(count * sizeof *chunks);
    size_t per_chunk = VNXI_CHUNK_BYTES / piece;
    per_chunk = per_chunk < VNXI_CHUNK_PIECES ? per_chunk : VNXI_CHUNK_PIECES;
    vnxi_plan_t plan = {.segments = segments,
                        .segment_count = count,
                        .chunks = chunks,
                        .chunk_count = (count + per_chunk - 1) / per_chunk,
                        .bytes = total,
                        .routes = 1u << VNXI_ROUTE_COPY};
    for (size_t i = 0; i < count; i++) {
        segments[i] = (vnxi_segment_t){
            .local = (uintptr_t)work->target + i * piece,
            .remote = (uintptr_t)work->source +
                      next_random() % (COPY_BYTES / piece) * piece,
            .len = piece,
            .count = 1,
            .route = VNXI_ROUTE_COPY};
    }
    for (size_t i = 0; i < plan.chunk_count; i++) {
        chunks[i].segment = (uint32_t)(i * per_chunk);
        chunks[i].piece = 0;
    }
    work->plan = &plan;
    char name[64];
    snprintf(name, sizeof name, "copy, %zu KiB in all, %zu bytes a piece",
             total >> 10, piece);
    double ns = measure(name, 10, 1, copy_plan, work);
    double bare = measure("  memcpy()", 10, 1, copy_plan_bare, work);
    printf("%-52s %10.2f GB/s, memcpy() %.2f\n", "", (double)total / ns,
           (double)total / bare);
    free(segments);
    free(chunks);
}

static void
bench_copying(void)
{
    copy_work_t work = {.target = must_alloc(COPY_BYTES),
                        .source = must_alloc(COPY_BYTES)};
    memset(work.source, 1, COPY_BYTES);
    memset(work.target, 2, COPY_BYTES);
    double ns = measure("copy, 64 MiB, streaming", 10, 1, copy_stream, &work);
#ifdef __SSE2__
    double bare =
        measure("  bare loop of SSE2 stores", 10, 1, copy_bare, &work);
    printf("%-52s %10.2f of it\n", "", bare / ns);
#else
    (void)ns;
#endif
    const size_t pieces[] = {512, 2048, 4096, 16384, 65536};
    for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
        bench_pieces(&work, pieces[i], 512 << 10);
        bench_pieces(&work, pieces[i], COPY_BYTES);
    }
    free(work.target);
    free(work.source);
}

int
main(void)
{
    vnxi_region_table_t *one = make_table(1, (uint64_t)8 << 30);
    vnxi_region_table_t *many = make_table(64, (uint64_t)128 << 20);
    const vnx_desc_t row = {BASE, 512, 0};
    list_work_t work = {.table = one, .rows = &row, .count = 1};

    bench_lists(one, many);
    bench_consecutive(one);
    bench_scattered(one);
    measure("two lists of 1 row, a plan, all released", 20, 10000,
            make_all_of_one_row, &work);
    bench_copying();
    vnxi_region_table_release(one);
    vnxi_region_table_release(many);
    return 0;
}
