/*
 * Prepared lists by the public C API: whole, in parts, with strides; checks of
 * each row; memory use; release.
 */
#include "agent_scene.h"

#define SIZE (1u << 20)
#define MANY 100000

static int
setup(void **state)
{
    scene_t *s = scene_open(SIZE, 2);
    load_peer(s->here, s->there);
    *state = s;
    return 0;
}

/* Each test releases everything it created. */
static int
teardown(void **state)
{
    scene_t *s = *state;
    vnx_agent_stats_t stats;
    vnx_agent_stats(s->here, &stats);
    assert_int_equal(stats.live_dlists, 0);
    assert_int_equal(stats.live_xfers, 0);
    return scene_close(state);
}

static vnx_desc_t
row_at(const unsigned char *at, uint64_t len)
{
    return (vnx_desc_t){(uint64_t)(uintptr_t)at, len, 0};
}

/* `count` rows of 8 bytes at irregular places. */
static vnx_desc_t *
scattered(const unsigned char *base, size_t count)
{
    vnx_desc_t *rows = malloc(count * sizeof *rows);
    uint32_t dice = 12345;
    for (size_t i = 0; i < count; i++) {
        dice = dice * 1664525u + 1013904223u;
        rows[i] = row_at(base + (dice >> 4) % (SIZE - 8), 8);
    }
    return rows;
}

static vnx_status_t
create(scene_t *s, const char *peer, const vnx_desc_t *rows, size_t count,
       vnx_dlist_t **out_p, vnx_error_t *error)
{
    *out_p = NULL;
    return vnx_dlist_create(s->here, peer, strlen(peer), VNX_MEM_DRAM, rows,
                            count, NULL, out_p, error);
}

/* READ of row i of the remote list to row i of the local one, all rows. */
static void
check_lists(scene_t *s, vnx_dlist_t *local, const vnx_desc_t *to,
            vnx_dlist_t *remote, const vnx_desc_t *from, size_t count)
{
    vnx_xfer_t *xfer =
        make_xfer(s->here, VNX_OP_READ, local, remote, count, NULL);
    run_xfer(s->here, xfer);
    for (size_t i = 0; i < count; i++) {
        assert_memory_equal((void *)(uintptr_t)to[i].addr,
                            (void *)(uintptr_t)from[i].addr, from[i].len);
    }
    assert_ok(vnx_xfer_release(xfer, e));
}

/* Rows of 8 bytes, one after the other. */
static vnx_desc_t *
dense(const unsigned char *base, size_t count)
{
    vnx_desc_t *rows = malloc(count * sizeof *rows);
    for (size_t i = 0; i < count; i++) {
        rows[i] = row_at(base + 8 * i, 8);
    }
    return rows;
}

/* -- Whole ---------------------------------------------------------------- */

static void
test_list_keeps_scattered_rows(void **state)
{
    scene_t *s = *state;
    vnx_desc_t *to = dense(s->ours, MANY), *from = scattered(s->theirs, MANY);
    vnx_dlist_t *local, *remote;

    assert_ok(create(s, "", to, MANY, &local, e));
    assert_ok(create(s, "there", from, MANY, &remote, e));
    assert_int_equal(vnx_dlist_count(local), MANY);
    assert_int_equal(vnx_dlist_count(remote), MANY);
    check_lists(s, local, to, remote, from, MANY);
    vnx_dlist_release(local);
    vnx_dlist_release(remote);
    vnx_dlist_release(NULL);
    free(to);
    free(from);
}

static void
test_list_with_a_stride_is_compact(void **state)
{
    scene_t *s = *state;
    vnx_desc_t *regular = dense(s->ours, MANY);
    vnx_desc_t *random = scattered(s->ours, MANY);
    vnx_dlist_t *small, *large;

    assert_ok(create(s, "", regular, MANY, &small, e));
    assert_ok(create(s, "", random, MANY, &large, e));
    assert_true(vnx_dlist_bytes(small) < MANY);
    assert_true(vnx_dlist_bytes(small) < vnx_dlist_bytes(large));
    assert_true(vnx_dlist_bytes(large) <= MANY * sizeof(vnx_desc_t) * 2);
    vnx_dlist_release(small);
    vnx_dlist_release(large);
    free(regular);
    free(random);
}

static void
test_list_copies_the_callers_rows(void **state)
{
    scene_t *s = *state;
    vnx_desc_t *to = dense(s->ours, 100), *from = scattered(s->theirs, 100);
    vnx_desc_t *passed = malloc(100 * sizeof *passed);
    vnx_dlist_t *local, *remote;

    memcpy(passed, from, 100 * sizeof *passed);
    assert_ok(create(s, "", to, 100, &local, e));
    assert_ok(create(s, "there", passed, 100, &remote, e));
    memset(passed, 0xff, 100 * sizeof *passed);
    free(passed);
    check_lists(s, local, to, remote, from, 100);
    vnx_dlist_release(local);
    vnx_dlist_release(remote);
    free(to);
    free(from);
}

/* -- Rows that are refused ------------------------------------------------ */

typedef struct bad_row {
    vnx_desc_t row;
    vnx_status_t status;
} bad_row_t;

static void
test_list_names_the_first_bad_row(void **state)
{
    scene_t *s = *state;
    const uint64_t base = (uint64_t)(uintptr_t)s->ours;
    const bad_row_t bad[] = {
        {{base - 1, 8, 0}, VNX_ERR_NOT_FOUND},
        {{base + SIZE - 7, 8, 0}, VNX_ERR_NOT_FOUND},
        {{base + SIZE, 8, 0}, VNX_ERR_NOT_FOUND},
        {{base, (uint64_t)SIZE + 1, 0}, VNX_ERR_NOT_FOUND},
        {{base, 8, 1}, VNX_ERR_NOT_FOUND},
        {{0, 8, 0}, VNX_ERR_NOT_FOUND},
        {{base, UINT64_MAX, 0}, VNX_ERR_INVALID_PARAM},
        {{UINT64_MAX - 3, 8, 0}, VNX_ERR_INVALID_PARAM},
        {{base, 0, 0}, VNX_ERR_INVALID_PARAM},
    };
    static const size_t places[] = {0, 1, 63, 64, 65, 4095, 4096, 9999};

    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        for (size_t j = 0; j < sizeof places / sizeof places[0]; j++) {
            vnx_desc_t *rows = dense(s->ours, 10000);
            vnx_dlist_t *dlist;
            vnx_error_t error;
            rows[places[j]] = bad[i].row;
            rows[9999] = bad[i].row; /* a later one is not the first */
            assert_int_equal(create(s, "", rows, 10000, &dlist, &error),
                             bad[i].status);
            assert_null(dlist);
            assert_int_equal(error.row, places[j]);
            assert_string_equal(error.operation, "vnx_dlist_create");
            assert_true(error.has_desc);
            assert_true(error.addr == bad[i].row.addr);
            assert_true(error.len == bad[i].row.len);
            assert_true(error.dev == bad[i].row.dev);
            free(rows);
        }
    }
}

static void
test_list_refuses_invalid_arguments(void **state)
{
    scene_t *s = *state;
    static const char *const unknown[] = {"NOPE", NULL};
    vnx_desc_t row = row_at(s->ours, 8);
    vnx_dlist_t *dlist = NULL;
    vnx_error_t error;

    assert_int_equal(create(s, "", &row, 0, &dlist, &error),
                     VNX_ERR_INVALID_PARAM);
    assert_int_equal(create(s, "nobody", &row, 1, &dlist, &error),
                     VNX_ERR_NOT_FOUND);
    assert_string_equal(error.peer, "nobody");
    assert_true(vnx_dlist_create(s->here, "", 0, VNX_MEM_VRAM, &row, 1, NULL,
                                 &dlist, &error) < 0);
    assert_int_equal(vnx_dlist_create(s->here, "", 0, VNX_MEM_DRAM, &row, 1,
                                      unknown, &dlist, &error),
                     VNX_ERR_NOT_FOUND);
    assert_null(dlist);
}

/* -- With strides --------------------------------------------------------- */

static void
test_list_with_strides_equals_unrolled_rows(void **state)
{
    scene_t *s = *state;
    const uint64_t base = (uint64_t)(uintptr_t)s->theirs;
    const vnx_strided_desc_t strides[] = {
        {base, 8, 0, 8, 10},
        {base + 4096, 8, 0, 1000, 20},
        {base + 90000, 8, 0, 64, 1},
        {base + 100000, 8, 0, 16, 300},
    };
    vnx_desc_t from[331], *to = dense(s->ours, 331);
    vnx_dlist_t *local, *remote = NULL;
    size_t count = 0;

    for (size_t i = 0; i < 4; i++) {
        for (uint64_t j = 0; j < strides[i].count; j++) {
            from[count++] =
                (vnx_desc_t){strides[i].addr + j * strides[i].stride, 8, 0};
        }
    }
    assert_int_equal(count, 331);
    assert_ok(vnx_dlist_create_strided(s->here, "there", 5, VNX_MEM_DRAM,
                                       strides, 4, NULL, &remote, e));
    assert_int_equal(vnx_dlist_count(remote), 331);
    assert_ok(create(s, "", to, 331, &local, e));
    check_lists(s, local, to, remote, from, 331);
    vnx_dlist_release(local);
    vnx_dlist_release(remote);
    free(to);
}

static void
test_list_with_strides_names_the_bad_row(void **state)
{
    scene_t *s = *state;
    const uint64_t base = (uint64_t)(uintptr_t)s->ours;
    const vnx_strided_desc_t bad[] = {
        {base, 64, 0, 64, SIZE / 64 + 1},
        {base + 1, 64, 0, 64, SIZE / 64},
        {base, 64, 0, SIZE, 2},
        {base, 64, 0, (uint64_t)1 << 63, 3},
        {base, 64, 0, UINT64_MAX, 2},
        {base, 64, 0, (uint64_t)1 << 40, (uint64_t)1 << 40},
        {base, 64, 0, 64, UINT64_MAX},
        {base, 64, 1, 64, 2},
    };

    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        vnx_strided_desc_t rows[] = {{base, 64, 0, 64, 4}, bad[i]};
        vnx_dlist_t *dlist = NULL;
        vnx_error_t error;
        assert_true(vnx_dlist_create_strided(s->here, "", 0, VNX_MEM_DRAM,
                                             rows, 2, NULL, &dlist,
                                             &error) < 0);
        assert_null(dlist);
        assert_int_equal(error.row, 1);
    }
}

/* -- In pieces ------------------------------------------------------------ */

static void
test_list_fed_in_parts_is_the_same_list(void **state)
{
    scene_t *s = *state;
    static const size_t pieces[] = {1, 63, 64, 65, 1000, 4096, 9999};
    vnx_desc_t *to = dense(s->ours, MANY), *from = scattered(s->theirs, MANY);
    vnx_dlist_t *local;

    assert_ok(create(s, "", to, MANY, &local, e));
    for (size_t i = 0; i < sizeof pieces / sizeof pieces[0]; i++) {
        vnx_dlist_builder_t *builder;
        vnx_dlist_t *remote = NULL;
        assert_ok(vnx_dlist_begin(s->here, "there", 5, VNX_MEM_DRAM, NULL,
                                  &builder, e));
        for (size_t at = 0; at < MANY; at += pieces[i]) {
            size_t left = MANY - at;
            assert_ok(vnx_dlist_feed(builder, from + at,
                                     left < pieces[i] ? left : pieces[i], e));
        }
        assert_ok(vnx_dlist_finish(builder, &remote, e));
        assert_int_equal(vnx_dlist_count(remote), MANY);
        memset(s->ours, 0, 8 * (size_t)MANY);
        check_lists(s, local, to, remote, from, MANY);
        vnx_dlist_release(remote);
    }
    vnx_dlist_release(local);
    free(to);
    free(from);
}

static void
test_list_fed_in_parts_numbers_rows_continuously(void **state)
{
    scene_t *s = *state;
    vnx_desc_t *rows = dense(s->ours, 100);
    vnx_dlist_builder_t *builder;
    vnx_error_t error;

    assert_ok(
        vnx_dlist_begin(s->here, "", 0, VNX_MEM_DRAM, NULL, &builder, e));
    for (int i = 0; i < 7; i++) {
        assert_ok(vnx_dlist_feed(builder, rows, 100, e));
    }
    rows[42].addr = 1;
    assert_int_equal(vnx_dlist_feed(builder, rows, 100, &error),
                     VNX_ERR_NOT_FOUND);
    assert_int_equal(error.row, 742);
    vnx_dlist_abort(builder);
    free(rows);
}

static void
test_list_fed_in_parts_can_be_aborted(void **state)
{
    scene_t *s = *state;
    vnx_desc_t *rows = dense(s->ours, 1000);
    vnx_dlist_builder_t *builder;
    vnx_dlist_t *dlist = NULL;
    vnx_error_t error;

    for (int fed = 0; fed < 3; fed++) {
        assert_ok(vnx_dlist_begin(s->here, "there", 5, VNX_MEM_DRAM, NULL,
                                  &builder, e));
        vnx_dlist_abort(builder);
        assert_ok(
            vnx_dlist_begin(s->here, "", 0, VNX_MEM_DRAM, NULL, &builder, e));
        for (int i = 0; i < fed; i++) {
            assert_ok(vnx_dlist_feed(builder, rows, 1000, e));
        }
        vnx_dlist_abort(builder);
    }
    assert_ok(
        vnx_dlist_begin(s->here, "", 0, VNX_MEM_DRAM, NULL, &builder, e));
    assert_int_equal(vnx_dlist_finish(builder, &dlist, &error),
                     VNX_ERR_INVALID_PARAM); /* no rows */
    vnx_dlist_abort(builder);
    free(rows);
}

/* -- Lifetime ------------------------------------------------------------- */

static void
test_list_outlives_its_agent_and_peer(void **state)
{
    scene_t *s = *state;
    vnx_agent_t *agent = make_agent("short-lived");
    vnx_desc_t row = row_at(s->theirs, 8);
    vnx_dlist_t *dlist = NULL;

    load_peer(agent, s->there);
    assert_ok(vnx_dlist_create(agent, "there", 5, VNX_MEM_DRAM, &row, 1, NULL,
                               &dlist, e));
    vnx_agent_release(agent);
    assert_int_equal(vnx_dlist_count(dlist), 1);
    vnx_dlist_release(dlist);
}

static void
test_list_of_a_region_registered_again_is_stale(void **state)
{
    scene_t *s = *state;
    vnx_desc_t row = row_at(s->ours, 8);
    vnx_dlist_t *old, *fresh, *remote;
    vnx_xfer_t *xfer;

    remote = prepare_rows(s->here, "there", s->theirs, 8, 1);
    assert_ok(create(s, "", &row, 1, &old, e));
    deregister_at(s->here, s->ours, SIZE);
    assert_int_equal(create(s, "", &row, 1, &fresh, NULL), VNX_ERR_NOT_FOUND);
    register_at(s->here, s->ours, SIZE);
    assert_ok(create(s, "", &row, 1, &fresh, e));

    xfer = make_xfer(s->here, VNX_OP_READ, old, remote, 1, NULL);
    assert_int_equal(vnx_xfer_post(xfer, NULL, 0, NULL), VNX_ERR_NOT_FOUND);
    vnx_xfer_abandon(xfer);
    check_lists(s, fresh, &row, remote,
                &(vnx_desc_t){(uint64_t)(uintptr_t)s->theirs, 8, 0}, 1);
    vnx_dlist_release(old);
    vnx_dlist_release(fresh);
    vnx_dlist_release(remote);
}

#define with_scene(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        with_scene(test_list_keeps_scattered_rows),
        with_scene(test_list_with_a_stride_is_compact),
        with_scene(test_list_copies_the_callers_rows),
        with_scene(test_list_names_the_first_bad_row),
        with_scene(test_list_refuses_invalid_arguments),
        with_scene(test_list_with_strides_equals_unrolled_rows),
        with_scene(test_list_with_strides_names_the_bad_row),
        with_scene(test_list_fed_in_parts_is_the_same_list),
        with_scene(test_list_fed_in_parts_numbers_rows_continuously),
        with_scene(test_list_fed_in_parts_can_be_aborted),
        with_scene(test_list_outlives_its_agent_and_peer),
        with_scene(test_list_of_a_region_registered_again_is_stale),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
