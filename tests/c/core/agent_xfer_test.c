/*
 * Transfers by the public C API: states, arguments, telemetry.  All in one
 * process, so that the sanitizers see every copy.
 */
#include "agent_scene.h"

#include <pthread.h>

#define ROW 1024
#define ROWS 128
#define SIZE ((size_t)ROW * ROWS)
#define REPEATS 1000000 /* of the whole transfer, which no test awaits */

static int
setup(void **state)
{
    scene_t *s = scene_open(SIZE, 9);
    load_peer(s->here, s->there);
    s->local = prepare_rows(s->here, "", s->ours, ROW, ROWS);
    s->remote = prepare_rows(s->here, "there", s->theirs, ROW, ROWS);
    *state = s;
    return 0;
}

static vnx_xfer_t *
make_of(scene_t *s, vnx_indices_t local, vnx_indices_t remote, bool no_merge)
{
    vnx_xfer_t *xfer = NULL;
    assert_ok(vnx_xfer_create_prepped(s->here, VNX_OP_READ, s->local, local,
                                      s->remote, remote, NULL, 0, no_merge,
                                      &xfer, e));
    return xfer;
}

/* 128 GB: the test that posts it must stop it. */
static vnx_xfer_t *
make_endless(scene_t *s)
{
    static const uint8_t zeros[REPEATS];
    vnx_indices_t rows = {zeros, REPEATS, VNX_INDEX_U8};
    vnx_dlist_t *local = prepare_rows(s->here, "", s->ours, SIZE, 1);
    vnx_dlist_t *remote = prepare_rows(s->here, "there", s->theirs, SIZE, 1);
    vnx_xfer_t *xfer = NULL;
    assert_ok(vnx_xfer_create_prepped(s->here, VNX_OP_READ, local, rows,
                                      remote, rows, NULL, 0, false, &xfer, e));
    vnx_dlist_release(local);
    vnx_dlist_release(remote);
    return xfer;
}

static void
stop(vnx_xfer_t *xfer)
{
    bool stopped;
    assert_ok(vnx_xfer_cancel(xfer, &stopped, e));
}

static void
assert_refused(vnx_status_t found, vnx_status_t wanted,
               const vnx_error_t *error, int64_t row)
{
    assert_int_equal(found, wanted);
    assert_int_equal(error->status, wanted);
    assert_int_equal(error->row, row);
    assert_true(error->operation != NULL && error->operation[0] != '\0');
    assert_true(error->cause[0] != '\0');
}

/* -- States --------------------------------------------------------------- */

static void
test_xfer_is_ready_until_posted(void **state)
{
    scene_t *s = *state;
    vnx_xfer_t *xfer =
        make_xfer(s->here, VNX_OP_READ, s->local, s->remote, ROWS, NULL);
    vnx_xfer_telemetry_t told;
    vnx_error_t error;
    bool stopped = true;

    assert_int_equal(vnx_xfer_state(xfer), VNX_XFER_READY);
    assert_int_equal(vnx_xfer_status(xfer, &error), VNX_ERR_NOT_POSTED);
    assert_int_equal(vnx_xfer_telemetry(xfer, &told, &error),
                     VNX_ERR_NOT_POSTED);
    assert_ok(vnx_xfer_cancel(xfer, &stopped, e));
    assert_false(stopped);
    assert_int_equal(vnx_xfer_state(xfer), VNX_XFER_READY);
    assert_ok(vnx_xfer_release(xfer, e));
}

static void
test_xfer_stays_done(void **state)
{
    scene_t *s = *state;
    vnx_xfer_t *xfer =
        make_xfer(s->here, VNX_OP_READ, s->local, s->remote, ROWS, NULL);
    bool stopped = true;

    run_xfer(s->here, xfer);
    assert_int_equal(vnx_xfer_state(xfer), VNX_XFER_DONE);
    assert_int_equal(vnx_xfer_status(xfer, NULL), VNX_OK);
    assert_ok(vnx_xfer_cancel(xfer, &stopped, e));
    assert_false(stopped);
    assert_int_equal(vnx_xfer_status(xfer, NULL), VNX_OK);
    assert_memory_equal(s->ours, s->theirs, SIZE);
    assert_ok(vnx_xfer_release(xfer, e));
}

static void
test_xfer_in_flight_is_not_posted_again(void **state)
{
    scene_t *s = *state;
    vnx_xfer_t *xfer = make_endless(s);
    vnx_error_t error;

    assert_int_equal(vnx_xfer_post(xfer, NULL, 0, NULL), VNX_IN_PROG);
    assert_int_equal(vnx_xfer_state(xfer), VNX_XFER_POSTED);
    assert_refused(vnx_xfer_post(xfer, NULL, 0, &error), VNX_ERR_REPOST_ACTIVE,
                   &error, -1);
    assert_int_equal(vnx_xfer_state(xfer), VNX_XFER_POSTED);
    stop(xfer);
    assert_ok(vnx_xfer_release(xfer, e));
}

static void
test_xfer_cancelled_may_be_posted_again(void **state)
{
    scene_t *s = *state;
    vnx_xfer_t *xfer = make_endless(s);
    vnx_error_t error;

    for (int round = 0; round < 5; round++) {
        bool stopped = false;
        assert_int_equal(vnx_xfer_post(xfer, NULL, 0, NULL), VNX_IN_PROG);
        assert_ok(vnx_xfer_cancel(xfer, &stopped, e));
        assert_true(stopped);
        assert_int_equal(vnx_xfer_state(xfer), VNX_XFER_CANCELLED);
        assert_refused(vnx_xfer_status(xfer, &error), VNX_ERR_CANCELED, &error,
                       -1);
    }
    assert_ok(vnx_xfer_release(xfer, e));
}

static void
test_xfer_failed_may_be_posted_again(void **state)
{
    scene_t *s = *state;
    vnx_xfer_t *xfer =
        make_xfer(s->here, VNX_OP_READ, s->local, s->remote, ROWS, "n");
    vnx_error_t error;

    deregister_at(s->there, s->theirs, SIZE);
    for (int round = 0; round < 3; round++) {
        assert_int_equal(vnx_xfer_post(xfer, NULL, 0, &error),
                         VNX_ERR_NOT_FOUND);
        assert_string_equal(error.peer, "there");
        assert_int_equal(vnx_xfer_state(xfer), VNX_XFER_FAILED);
        assert_int_equal(vnx_xfer_status(xfer, &error), VNX_ERR_NOT_FOUND);
    }
    assert_null(vnx_agent_take_notifs(s->there));
    register_at(s->there, s->theirs, SIZE);
    assert_ok(vnx_xfer_release(xfer, e));
}

static void
test_xfer_abandoned_in_flight_ends_by_itself(void **state)
{
    scene_t *s = *state;
    vnx_agent_stats_t stats;

    for (int round = 0; round < 4; round++) {
        vnx_xfer_t *xfer = make_endless(s);
        assert_int_equal(vnx_xfer_post(xfer, NULL, 0, NULL), VNX_IN_PROG);
        vnx_xfer_abandon(xfer);
    }
    vnx_agent_stats(s->here, &stats);
    assert_int_equal(stats.live_xfers, 0);
    vnx_xfer_abandon(NULL);
    assert_ok(vnx_xfer_release(NULL, e));
}

/* -- Indices -------------------------------------------------------------- */

typedef struct typed {
    vnx_index_type_t type;
    size_t size;
    bool is_signed;
} typed_t;

static const typed_t types[] = {
    {VNX_INDEX_I64, 8, true}, {VNX_INDEX_U64, 8, false},
    {VNX_INDEX_I32, 4, true}, {VNX_INDEX_U32, 4, false},
    {VNX_INDEX_I16, 2, true}, {VNX_INDEX_U16, 2, false},
    {VNX_INDEX_I8, 1, true},  {VNX_INDEX_U8, 1, false},
};
#define TYPES (sizeof types / sizeof types[0])

/* Little-endian, as every machine that NIXL supports. */
static void
put_index(void *data, const typed_t *type, size_t at, int64_t value)
{
    memcpy((char *)data + at * type->size, &value, type->size);
}

static void
test_xfer_indices_of_every_type(void **state)
{
    scene_t *s = *state;
    _Alignas(8) char left[8 * ROWS], right[8 * ROWS];

    for (size_t t = 0; t < TYPES; t++) {
        memset(s->ours, 0, SIZE);
        for (size_t i = 0; i < ROWS; i++) {
            put_index(left, &types[t], i, (int64_t)((i * 37) % ROWS));
            put_index(right, &types[t], i, (int64_t)((i * 11 + 5) % ROWS));
        }
        vnx_xfer_t *xfer =
            make_of(s, (vnx_indices_t){left, ROWS, types[t].type},
                    (vnx_indices_t){right, ROWS, types[t].type}, false);
        run_xfer(s->here, xfer);
        for (size_t i = 0; i < ROWS; i++) {
            assert_memory_equal(s->ours + (i * 37) % ROWS * ROW,
                                s->theirs + (i * 11 + 5) % ROWS * ROW, ROW);
        }
        assert_ok(vnx_xfer_release(xfer, e));
    }
}

static void
refuse_index(scene_t *s, const typed_t *type, int64_t bad, bool on_the_left)
{
    _Alignas(8) char good_data[8 * 4] = {0}, bad_data[8 * 4] = {0};
    vnx_indices_t good = {good_data, 4, type->type};
    vnx_indices_t wrong = {bad_data, 4, type->type};
    vnx_xfer_t *xfer = NULL;
    vnx_error_t error;

    put_index(bad_data, type, 2, bad);
    assert_refused(vnx_xfer_create_prepped(s->here, VNX_OP_READ, s->local,
                                           on_the_left ? wrong : good,
                                           s->remote,
                                           on_the_left ? good : wrong, NULL, 0,
                                           false, &xfer, &error),
                   VNX_ERR_INVALID_PARAM, &error, 2);
    assert_null(xfer);
}

static void
test_xfer_refuses_indices_out_of_range(void **state)
{
    for (size_t t = 0; t < TYPES; t++) {
        for (int side = 0; side < 2; side++) {
            if (types[t].is_signed) {
                refuse_index(*state, &types[t], -1, side);
            } else {
                refuse_index(*state, &types[t], 255, side);
            }
            if (types[t].size > 1) {
                refuse_index(*state, &types[t], ROWS, side);
            }
            if (types[t].size == 8) {
                refuse_index(*state, &types[t], (int64_t)1 << 32, side);
                refuse_index(*state, &types[t], INT64_MAX, side);
            }
        }
    }
}

static void
test_xfer_refuses_unequal_pairs(void **state)
{
    scene_t *s = *state;
    vnx_dlist_t *halves = prepare_rows(s->here, "", s->ours, ROW / 2, ROWS);
    vnx_xfer_t *xfer = NULL;
    vnx_error_t error;

    assert_int_equal(vnx_xfer_create_prepped(s->here, VNX_OP_READ, s->local,
                                             all_rows(3), s->remote,
                                             all_rows(2), NULL, 0, false,
                                             &xfer, &error),
                     VNX_ERR_INVALID_PARAM);
    assert_int_equal(vnx_xfer_create_prepped(s->here, VNX_OP_READ, s->local,
                                             all_rows(0), s->remote,
                                             all_rows(0), NULL, 0, false,
                                             &xfer, &error),
                     VNX_ERR_INVALID_PARAM);
    assert_int_equal(vnx_xfer_create_prepped(s->here, VNX_OP_READ, s->local,
                                             all_rows(ROWS + 1), s->remote,
                                             all_rows(ROWS + 1), NULL, 0,
                                             false, &xfer, &error),
                     VNX_ERR_INVALID_PARAM);
    assert_refused(vnx_xfer_create_prepped(s->here, VNX_OP_READ, halves,
                                           all_rows(4), s->remote, all_rows(4),
                                           NULL, 0, false, &xfer, &error),
                   VNX_ERR_INVALID_PARAM, &error, 0);
    assert_null(xfer);
    vnx_dlist_release(halves);
}

static void
test_xfer_refuses_lists_on_the_wrong_side(void **state)
{
    scene_t *s = *state;
    vnx_dlist_t *foreign = prepare_rows(s->there, "", s->theirs, ROW, ROWS);
    vnx_dlist_t *const pairs[][2] = {
        {s->remote, s->local}, {s->local, s->local}, {s->remote, s->remote},
        {foreign, s->remote},  {s->local, foreign},
    };

    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++) {
        vnx_xfer_t *xfer = NULL;
        vnx_error_t error;
        assert_int_equal(
            vnx_xfer_create_prepped(s->here, VNX_OP_READ, pairs[i][0],
                                    all_rows(1), pairs[i][1], all_rows(1),
                                    NULL, 0, false, &xfer, &error),
            VNX_ERR_INVALID_PARAM);
        assert_string_equal(error.operation, "vnx_xfer_create_prepped");
        assert_null(xfer);
    }
    vnx_dlist_release(foreign);
}

/* -- Merging and telemetry ------------------------------------------------ */

typedef struct merged {
    uint32_t rows[8];
    size_t count, pieces;
} merged_t;

static void
test_xfer_telemetry_counts_rows_and_pieces(void **state)
{
    scene_t *s = *state;
    static const merged_t cases[] = {
        {{0, 1, 2, 3}, 4, 1}, {{0, 2, 4, 6}, 4, 4},
        {{3, 2, 1, 0}, 4, 4}, {{0, 1, 8, 9, 10, 40}, 6, 3},
        {{5}, 1, 1},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        vnx_indices_t rows = {cases[i].rows, cases[i].count, VNX_INDEX_U32};
        for (int no_merge = 0; no_merge < 2; no_merge++) {
            vnx_xfer_telemetry_t told;
            vnx_xfer_t *xfer = make_of(s, rows, rows, no_merge);
            run_xfer(s->here, xfer);
            assert_ok(vnx_xfer_telemetry(xfer, &told, e));
            assert_int_equal(told.desc_count, cases[i].count);
            assert_int_equal(told.total_bytes, cases[i].count * ROW);
            assert_int_equal(told.merged_count,
                             no_merge ? cases[i].count : cases[i].pieces);
            assert_true(told.start_us > 1500000000000000u);
            assert_true(told.xfer_us >= told.post_us || told.xfer_us == 0);
            assert_ok(vnx_xfer_release(xfer, e));
        }
    }
}

static void
test_xfer_is_counted_by_its_end_state(void **state)
{
    scene_t *s = *state;
    vnx_agent_stats_t stats;
    vnx_xfer_t *endless = make_endless(s);
    vnx_xfer_t *read =
        make_xfer(s->here, VNX_OP_READ, s->local, s->remote, ROWS, NULL);
    vnx_xfer_t *write =
        make_xfer(s->here, VNX_OP_WRITE, s->local, s->remote, 3, NULL);
    uint64_t in_histogram = 0;

    run_xfer(s->here, read);
    run_xfer(s->here, read);
    run_xfer(s->here, write);
    assert_int_equal(vnx_xfer_post(endless, NULL, 0, NULL), VNX_IN_PROG);
    stop(endless);
    vnx_agent_stats(s->here, &stats);
    assert_int_equal(stats.xfers_posted, 4);
    assert_int_equal(stats.xfers_done, 3);
    assert_int_equal(stats.xfers_cancelled, 1);
    assert_int_equal(stats.xfers_failed, 0);
    assert_int_equal(stats.bytes_read, 2 * SIZE);
    assert_int_equal(stats.bytes_written, 3 * ROW);
    assert_int_equal(stats.live_xfers, 3);
    for (int i = 0; i < 32; i++) {
        in_histogram += stats.xfer_us_log2[i];
    }
    assert_int_equal(in_histogram, 3);
    vnx_xfer_abandon(endless);
    vnx_xfer_abandon(read);
    vnx_xfer_abandon(write);
}

static void
test_xfer_has_a_backend_and_an_estimate(void **state)
{
    scene_t *s = *state;
    vnx_xfer_t *small =
        make_xfer(s->here, VNX_OP_READ, s->local, s->remote, 1, NULL);
    vnx_xfer_t *large = make_endless(s);
    int64_t little, much, margin;

    assert_string_equal(vnx_xfer_backend(small), "SHM");
    vnx_xfer_estimate(small, &little, &margin);
    vnx_xfer_estimate(large, &much, &margin);
    assert_true(0 < little && little < much);
    assert_true(margin > 0);
    vnx_xfer_abandon(small);
    vnx_xfer_abandon(large);
}

/* -- Descriptors, without lists ------------------------------------------- */

static vnx_status_t
create(scene_t *s, const vnx_desc_t *local, const vnx_desc_t *remote,
       size_t count, const char *peer, vnx_error_t *error)
{
    vnx_xfer_t *xfer = NULL;
    vnx_status_t status = vnx_xfer_create(
        s->here, VNX_OP_WRITE, VNX_MEM_DRAM, local, count, VNX_MEM_DRAM,
        remote, count, peer, strlen(peer), NULL, 0, NULL, &xfer, error);
    vnx_xfer_abandon(xfer);
    return status;
}

static void
test_xfer_of_descriptors_names_the_row(void **state)
{
    scene_t *s = *state;
    vnx_desc_t local[3], remote[3];
    vnx_error_t error;

    for (int i = 0; i < 3; i++) {
        local[i] = desc_at(s->ours + i * 64, 64);
        remote[i] = desc_at(s->theirs + i * 64, 64);
    }
    assert_int_equal(create(s, local, remote, 3, "there", NULL), VNX_OK);
    assert_int_equal(create(s, local, remote, 3, "nobody", &error),
                     VNX_ERR_NOT_FOUND);
    assert_string_equal(error.peer, "nobody");
    remote[1].len = 65;
    assert_refused(create(s, local, remote, 3, "there", &error),
                   VNX_ERR_INVALID_PARAM, &error, 1);
    remote[1] = desc_at(s->theirs + SIZE - 63, 64);
    assert_refused(create(s, local, remote, 3, "there", &error),
                   VNX_ERR_NOT_FOUND, &error, 1);
    assert_string_equal(error.peer, "there");
    assert_true(error.has_desc && error.len == 64);
    remote[1] = desc_at(s->theirs, 64);
    local[2] = (vnx_desc_t){UINT64_MAX - 10, 64, 0};
    assert_refused(create(s, local, remote, 3, "there", &error),
                   VNX_ERR_INVALID_PARAM, &error, 2);
    assert_int_equal(create(s, local, remote, 0, "there", &error),
                     VNX_ERR_INVALID_PARAM);
}

static void
test_xfer_moves_overlapping_ranges_of_its_own_agent(void **state)
{
    scene_t *s = *state;
    unsigned char *want = malloc(SIZE);
    vnx_desc_t from = desc_at(s->ours, SIZE / 2);
    vnx_desc_t to = desc_at(s->ours + 100, SIZE / 2);
    vnx_xfer_t *xfer;

    fill(s->ours, SIZE, 5);
    memcpy(want, s->ours, SIZE);
    memmove(want + 100, want, SIZE / 2);
    assert_ok(vnx_xfer_create(s->here, VNX_OP_WRITE, VNX_MEM_DRAM, &from, 1,
                              VNX_MEM_DRAM, &to, 1, "here", 4, NULL, 0, NULL,
                              &xfer, e));
    run_xfer(s->here, xfer);
    assert_memory_equal(s->ours, want, SIZE);
    assert_ok(vnx_xfer_release(xfer, e));
    free(want);
}

/* -- Notifications of a transfer ------------------------------------------ */

static void
expect_notif(vnx_agent_t *agent, const char *text)
{
    vnx_notif_t *notif = await_notif(agent);
    assert_int_equal(notif->message_len, strlen(text));
    assert_memory_equal(notif->message, text, strlen(text));
    assert_null(notif->next);
    vnx_notif_free(notif);
}

static void
test_xfer_keeps_the_notification_of_its_last_post(void **state)
{
    scene_t *s = *state;
    char text[] = "first";
    vnx_xfer_t *xfer =
        make_xfer(s->here, VNX_OP_READ, s->local, s->remote, ROWS, text);

    memset(text, 'x', sizeof text - 1); /* it was copied */
    run_xfer(s->here, xfer);
    expect_notif(s->there, "first");
    assert_ok(vnx_xfer_post(xfer, "second", 6, e));
    assert_ok(vnx_agent_wait(s->here, &xfer, 1, 0, vnx_test_limit(30), e));
    expect_notif(s->there, "second");
    run_xfer(s->here, xfer);
    expect_notif(s->there, "second");
    assert_ok(vnx_xfer_release(xfer, e));
}

static void
test_xfer_may_have_an_empty_notification(void **state)
{
    scene_t *s = *state;
    vnx_xfer_t *xfer =
        make_xfer(s->here, VNX_OP_READ, s->local, s->remote, ROWS, "");

    run_xfer(s->here, xfer);
    expect_notif(s->there, "");
    assert_ok(vnx_xfer_release(xfer, e));
}

/* -- Waiting -------------------------------------------------------------- */

static void
test_wait_for_any_returns_while_others_are_in_flight(void **state)
{
    scene_t *s = *state;
    vnx_xfer_t *xfers[2] = {
        make_endless(s),
        make_xfer(s->here, VNX_OP_READ, s->local, s->remote, ROWS, NULL)};

    for (int i = 0; i < 2; i++) {
        assert_true(vnx_xfer_post(xfers[i], NULL, 0, NULL) >= 0);
    }
    assert_ok(vnx_agent_wait(s->here, xfers, 2, VNX_WAIT_ANY,
                             vnx_test_limit(30), e));
    assert_int_equal(vnx_xfer_state(xfers[0]), VNX_XFER_POSTED);
    assert_int_equal(vnx_xfer_state(xfers[1]), VNX_XFER_DONE);
    assert_int_equal(vnx_agent_wait(s->here, xfers, 2, 0, 1000000, NULL),
                     VNX_ERR_TIMEOUT);
    for (int i = 0; i < 2; i++) {
        assert_ok(vnx_xfer_release(xfers[i], e));
    }
}

static void
test_wait_for_ended_transfers_returns_at_once(void **state)
{
    scene_t *s = *state;
    vnx_xfer_t *xfer =
        make_xfer(s->here, VNX_OP_READ, s->local, s->remote, ROWS, NULL);

    assert_ok(vnx_agent_wait(s->here, NULL, 0, 0, VNX_FOREVER, e));
    run_xfer(s->here, xfer);
    assert_ok(vnx_agent_wait(s->here, &xfer, 1, 0, VNX_FOREVER, e));
    assert_ok(vnx_agent_wait(s->here, &xfer, 1, VNX_WAIT_ANY, 0, e));
    assert_ok(vnx_xfer_release(xfer, e));
}

static void
test_wait_ends_with_the_first_failure(void **state)
{
    scene_t *s = *state;
    vnx_xfer_t *xfers[3] = {make_endless(s), make_endless(s), make_endless(s)};
    vnx_error_t error;

    for (int i = 0; i < 3; i++) {
        assert_int_equal(vnx_xfer_post(xfers[i], NULL, 0, NULL), VNX_IN_PROG);
    }
    stop(xfers[2]);
    stop(xfers[1]);
    for (unsigned any = 0; any <= VNX_WAIT_ANY; any++) {
        assert_refused(
            vnx_agent_wait(s->here, xfers, 3, any, VNX_FOREVER, &error),
            VNX_ERR_CANCELED, &error, 1);
        assert_string_equal(error.operation, "vnx_agent_wait");
    }
    assert_int_equal(vnx_xfer_state(xfers[0]), VNX_XFER_POSTED);
    assert_ok(vnx_agent_wait(s->here, xfers, 3,
                             VNX_WAIT_ANY | VNX_WAIT_NO_CHECK, 0, e));
    assert_ok(vnx_agent_wait(s->here, xfers + 1, 2, VNX_WAIT_NO_CHECK, 0, e));
    assert_refused(
        vnx_agent_wait(s->here, xfers, 3, VNX_WAIT_NO_CHECK, 1000000, &error),
        VNX_ERR_TIMEOUT, &error, -1);
    for (int i = 0; i < 3; i++) {
        assert_ok(vnx_xfer_release(xfers[i], e));
    }
}

typedef struct failing {
    scene_t *scene;
    vnx_xfer_t *xfers[2];
    unsigned flags;
    vnx_status_t status;
    vnx_error_t error;
} failing_t;

static void *
wait_for_both(void *argument)
{
    failing_t *failing = argument;
    failing->status =
        vnx_agent_wait(failing->scene->here, failing->xfers, 2, failing->flags,
                       VNX_FOREVER, &failing->error);
    return NULL;
}

static void
test_wait_wakes_up_when_one_fails(void **state)
{
    scene_t *s = *state;

    for (unsigned flags = 0; flags <= VNX_WAIT_ANY; flags++) {
        failing_t failing = {
            .scene = s,
            .xfers = {make_endless(s), make_endless(s)},
            .flags = flags,
        };
        pthread_t thread;
        for (int i = 0; i < 2; i++) {
            assert_int_equal(vnx_xfer_post(failing.xfers[i], NULL, 0, NULL),
                             VNX_IN_PROG);
        }
        assert_int_equal(
            pthread_create(&thread, NULL, wait_for_both, &failing), 0);
        stop(failing.xfers[1]);
        assert_int_equal(pthread_join(thread, NULL), 0);
        assert_refused(failing.status, VNX_ERR_CANCELED, &failing.error, 1);
        assert_int_equal(vnx_xfer_state(failing.xfers[0]), VNX_XFER_POSTED);
        for (int i = 0; i < 2; i++) {
            assert_ok(vnx_xfer_release(failing.xfers[i], e));
        }
    }
}

static void
test_wait_distinguishes_transfer_timeout_from_its_own(void **state)
{
    scene_t *s = *state;
    vnx_xfer_t *xfer = make_endless(s);
    vnx_error_t error;

    assert_int_equal(vnx_xfer_post(xfer, NULL, 0, NULL), VNX_IN_PROG);
    assert_refused(vnx_agent_wait(s->here, &xfer, 1, 0, 1000000, &error),
                   VNX_ERR_TIMEOUT, &error, -1);
    stop(xfer);
    assert_int_equal(vnx_xfer_post_within(xfer, NULL, 0, 1000000, NULL),
                     VNX_IN_PROG);
    assert_refused(vnx_agent_wait(s->here, &xfer, 1, 0, VNX_FOREVER, &error),
                   VNX_ERR_TIMEOUT, &error, 0);
    assert_ok(vnx_xfer_release(xfer, e));
}

static void *
wait_for_ever(void *argument)
{
    scene_t *s = argument;
    vnx_xfer_t *xfer = make_endless(s);
    vnx_status_t status = vnx_xfer_post(xfer, NULL, 0, NULL);
    if (status >= 0) {
        status = vnx_agent_wait(s->here, &xfer, 1, 0, VNX_FOREVER, NULL);
    }
    bool ended = vnx_xfer_state(xfer) != VNX_XFER_POSTED;
    vnx_xfer_abandon(xfer);
    return ended || status == VNX_ERR_CLOSED ? s : NULL;
}

static void
test_wait_ends_when_the_agent_closes(void **state)
{
    scene_t *s = *state;
    pthread_t threads[4];
    vnx_agent_stats_t stats;
    void *result;

    for (int i = 0; i < 4; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, wait_for_ever, s),
                         0);
    }
    do {
        vnx_agent_stats(s->here, &stats);
    } while (stats.xfers_posted < 4);
    vnx_agent_close(s->here);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(pthread_join(threads[i], &result), 0);
        assert_ptr_equal(result, s);
    }
    assert_int_equal(vnx_agent_wait(s->here, NULL, 0, 0, 0, NULL),
                     VNX_ERR_CLOSED);
}

#define with_scene(test) \
    cmocka_unit_test_setup_teardown(test, setup, scene_close)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        with_scene(test_xfer_is_ready_until_posted),
        with_scene(test_xfer_stays_done),
        with_scene(test_xfer_in_flight_is_not_posted_again),
        with_scene(test_xfer_cancelled_may_be_posted_again),
        with_scene(test_xfer_failed_may_be_posted_again),
        with_scene(test_xfer_abandoned_in_flight_ends_by_itself),
        with_scene(test_xfer_indices_of_every_type),
        with_scene(test_xfer_refuses_indices_out_of_range),
        with_scene(test_xfer_refuses_unequal_pairs),
        with_scene(test_xfer_refuses_lists_on_the_wrong_side),
        with_scene(test_xfer_telemetry_counts_rows_and_pieces),
        with_scene(test_xfer_is_counted_by_its_end_state),
        with_scene(test_xfer_has_a_backend_and_an_estimate),
        with_scene(test_xfer_of_descriptors_names_the_row),
        with_scene(test_xfer_moves_overlapping_ranges_of_its_own_agent),
        with_scene(test_xfer_keeps_the_notification_of_its_last_post),
        with_scene(test_xfer_may_have_an_empty_notification),
        with_scene(test_wait_for_any_returns_while_others_are_in_flight),
        with_scene(test_wait_for_ended_transfers_returns_at_once),
        with_scene(test_wait_ends_with_the_first_failure),
        with_scene(test_wait_wakes_up_when_one_fails),
        with_scene(test_wait_distinguishes_transfer_timeout_from_its_own),
        with_scene(test_wait_ends_when_the_agent_closes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
