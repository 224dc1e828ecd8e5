/* Prepared lists through the agent: created at once or in parts, errors that
 * name the row, and their validity after peers or agents end. */
#include "agent_pair.h"

#define SOME 5000u

/* Rows of 512 bytes all over `at`, in no order and with no overlap. */
static vnx_desc_t *
scattered_rows(const unsigned char *at)
{
    vnx_desc_t *rows = calloc(SOME, sizeof *rows);
    for (size_t i = 0; i < SOME; i++) {
        rows[i] = desc_at(at + (i * 3001 % SOME) * 1024, 512);
    }
    return rows;
}

static vnx_dlist_builder_t *
begin_list(vnx_agent_t *agent, const char *peer)
{
    vnx_dlist_builder_t *builder = NULL;
    assert_ok(vnx_dlist_begin(agent, peer, strlen(peer), VNX_MEM_DRAM, NULL,
                              &builder, e));
    return builder;
}

static vnx_dlist_t *
finish_list(vnx_dlist_builder_t *builder)
{
    vnx_dlist_t *dlist = NULL;
    assert_ok(vnx_dlist_finish(builder, &dlist, e));
    return dlist;
}

/* Read all rows of `remote` into the front of A's memory, one after another.
 */
static void
gather(pair_t *p, vnx_dlist_t *remote, size_t len, size_t count)
{
    vnx_dlist_t *local = prepare_rows(p->a, "", p->at_a, len, count);
    vnx_xfer_t *xfer =
        make_xfer(p->a, VNX_OP_READ, local, remote, count, NULL);
    memset(p->at_a, 0, p->len);
    run_xfer(p->a, xfer);
    assert_ok(vnx_xfer_release(xfer, e));
    vnx_dlist_release(local);
}

static void
check_gathered(const pair_t *p, const vnx_desc_t *rows, size_t count)
{
    const unsigned char *at = p->at_a;
    for (size_t i = 0; i < count; i++) {
        assert_memory_equal(at, (void *)(uintptr_t)rows[i].addr, rows[i].len);
        at += rows[i].len;
    }
}

static void
test_core_dlist_fed_in_parts_equals_one_feed(void **state)
{
    static const size_t pieces[] = {1, 2, 3, 7, 500, 1, 1023, 1024, 1025};
    pair_t *p = *state;
    vnx_desc_t *rows = scattered_rows(p->at_b);
    vnx_dlist_t *whole = prepare_descs(p->a, "B", rows, SOME);
    vnx_dlist_builder_t *builder = begin_list(p->a, "B");
    size_t fed = 0;

    for (size_t i = 0; fed < SOME; i++) {
        size_t n = pieces[i % (sizeof pieces / sizeof *pieces)];
        n = n < SOME - fed ? n : SOME - fed;
        assert_ok(vnx_dlist_feed(builder, rows + fed, n, e));
        fed += n;
    }
    vnx_dlist_t *pieced = finish_list(builder);
    assert_int_equal(vnx_dlist_count(whole), SOME);
    assert_int_equal(vnx_dlist_count(pieced), SOME);
    gather(p, whole, 512, SOME);
    check_gathered(p, rows, SOME);
    gather(p, pieced, 512, SOME);
    check_gathered(p, rows, SOME);
    vnx_dlist_release(whole);
    vnx_dlist_release(pieced);
    free(rows);
}

static void
test_core_dlist_can_be_fed_row_by_row(void **state)
{
    pair_t *p = *state;
    vnx_desc_t *rows = scattered_rows(p->at_b);
    vnx_dlist_builder_t *builder = begin_list(p->a, "B");

    for (size_t i = 0; i < 2500; i++) {
        assert_ok(vnx_dlist_feed(builder, &rows[i], 1, e));
        assert_ok(vnx_dlist_feed(builder, NULL, 0, e));
    }
    vnx_dlist_t *dlist = finish_list(builder);
    assert_int_equal(vnx_dlist_count(dlist), 2500);
    gather(p, dlist, 512, 2500);
    check_gathered(p, rows, 2500);
    vnx_dlist_release(dlist);
    free(rows);
}

static void
test_core_dlist_strided_equals_unrolled_rows(void **state)
{
    pair_t *p = *state;
    uint64_t at = (uint64_t)(uintptr_t)p->at_b;
    vnx_strided_desc_t strided[] = {{at + 64, 256, 0, 1024, 3000},
                                    {at + 300, 256, 0, 4096, 1000},
                                    {at + 4000, 256, 0, 0, 5},
                                    {at + 8000, 256, 0, 256, 1}};
    vnx_desc_t rows[4006];
    vnx_dlist_t *dlist = NULL;
    size_t n = 0;

    for (size_t i = 0; i < 4; i++) {
        for (size_t j = 0; j < strided[i].count; j++) {
            rows[n++] = (vnx_desc_t){strided[i].addr + j * strided[i].stride,
                                     strided[i].len, 0};
        }
    }
    assert_ok(vnx_dlist_create_strided(p->a, "B", 1, VNX_MEM_DRAM, strided, 4,
                                       NULL, &dlist, e));
    assert_int_equal(vnx_dlist_count(dlist), n);
    gather(p, dlist, 256, n);
    check_gathered(p, rows, n);
    vnx_dlist_release(dlist);
}

static void
test_core_dlist_mixed_feeds_keep_their_order(void **state)
{
    pair_t *p = *state;
    vnx_desc_t *some = scattered_rows(p->at_b);
    uint64_t at = (uint64_t)(uintptr_t)p->at_b;
    vnx_strided_desc_t strided = {at + 1, 512, 0, 777, 2000};
    vnx_dlist_builder_t *builder = begin_list(p->a, "B");

    assert_ok(vnx_dlist_feed(builder, some, 3, e));
    assert_ok(vnx_dlist_feed_strided(builder, &strided, 1, e));
    assert_ok(vnx_dlist_feed(builder, some + 3, 1100, e));
    assert_ok(vnx_dlist_feed_strided(builder, &strided, 1, e));
    vnx_dlist_t *dlist = finish_list(builder);
    assert_int_equal(vnx_dlist_count(dlist), 3 + 2000 + 1100 + 2000);
    gather(p, dlist, 512, 5103);
    check_gathered(p, some, 3);
    for (size_t i = 0; i < 2000; i++) {
        assert_memory_equal(p->at_a + (3 + i) * 512, p->at_b + 1 + i * 777,
                            512);
        assert_memory_equal(p->at_a + (3103 + i) * 512, p->at_b + 1 + i * 777,
                            512);
    }
    for (size_t i = 0; i < 1100; i++) {
        assert_memory_equal(p->at_a + (2003 + i) * 512,
                            (void *)(uintptr_t)some[3 + i].addr, 512);
    }
    vnx_dlist_release(dlist);
    free(some);
}

static void
test_core_dlist_rows_are_numbered_through_all_feeds(void **state)
{
    pair_t *p = *state;
    vnx_desc_t *rows = scattered_rows(p->at_b);
    vnx_dlist_builder_t *builder = begin_list(p->a, "B");
    vnx_error_t error;

    for (size_t i = 0; i < 37; i++) {
        assert_ok(vnx_dlist_feed(builder, rows + i * 100, 100, e));
    }
    rows[3705] = desc_at(p->at_b + p->len - 511, 512);
    assert_int_equal(vnx_dlist_feed(builder, rows + 3700, 100, &error),
                     VNX_ERR_NOT_FOUND);
    assert_int_equal(error.row, 3705);
    assert_true(error.has_desc);
    assert_int_equal(error.addr, rows[3705].addr);
    assert_int_equal(error.len, 512);
    assert_string_equal(error.peer, "B");
    assert_string_equal(error.operation, "vnx_dlist_create");
    assert_non_null(strstr(error.cause, "extends past its end"));
    vnx_dlist_abort(builder);
    free(rows);
}

static void
test_core_dlist_a_bad_strided_row_is_named(void **state)
{
    pair_t *p = *state;
    uint64_t at = (uint64_t)(uintptr_t)p->at_b;
    vnx_strided_desc_t rows[] = {
        {at, 64, 0, 64, 10}, {at, 64, 0, 64, 10}, {at, 64, 0, 1 << 20, 17}};
    vnx_dlist_t *dlist = NULL;
    vnx_error_t error;

    assert_int_equal(vnx_dlist_create_strided(p->a, "B", 1, VNX_MEM_DRAM, rows,
                                              3, NULL, &dlist, &error),
                     VNX_ERR_NOT_FOUND);
    assert_int_equal(error.row, 2);
    rows[2] = (vnx_strided_desc_t){at, 64, 0, UINT64_MAX / 4, 9};
    assert_int_equal(vnx_dlist_create_strided(p->a, "B", 1, VNX_MEM_DRAM, rows,
                                              3, NULL, &dlist, &error),
                     VNX_ERR_INVALID_PARAM);
    assert_int_equal(error.row, 2);
    assert_null(dlist);
}

static void
test_core_dlist_abort_after_an_error_frees_all(void **state)
{
    pair_t *p = *state;
    vnx_desc_t bad = {16, 16, 0};
    vnx_desc_t *rows = scattered_rows(p->at_b);

    for (size_t good = 0; good < SOME; good += 1249) {
        vnx_dlist_builder_t *builder = begin_list(p->a, "B");
        assert_ok(vnx_dlist_feed(builder, rows, good, e));
        assert_int_equal(vnx_dlist_feed(builder, &bad, 1, NULL),
                         VNX_ERR_NOT_FOUND);
        vnx_dlist_abort(builder);
        assert_int_equal(stats_of(p->a).live_dlists, 0);
    }
    vnx_dlist_abort(begin_list(p->a, ""));
    vnx_dlist_abort(NULL);
    vnx_dlist_t *dlist = prepare_descs(p->a, "B", rows, SOME);
    assert_int_equal(stats_of(p->a).live_dlists, 1);
    vnx_dlist_release(dlist);
    free(rows);
}

static void
test_core_dlist_without_rows_is_refused(void **state)
{
    pair_t *p = *state;
    vnx_dlist_t *dlist = NULL;
    vnx_error_t error;
    vnx_dlist_builder_t *builder = begin_list(p->a, "");

    assert_int_equal(vnx_dlist_finish(builder, &dlist, &error),
                     VNX_ERR_INVALID_PARAM);
    assert_non_null(strstr(error.cause, "the list has no rows"));
    vnx_dlist_abort(builder);
    assert_int_equal(vnx_dlist_create(p->a, "", 0, VNX_MEM_DRAM, NULL, 0, NULL,
                                      &dlist, NULL),
                     VNX_ERR_INVALID_PARAM);
    assert_int_equal(vnx_dlist_create_strided(p->a, "B", 1, VNX_MEM_DRAM, NULL,
                                              0, NULL, &dlist, NULL),
                     VNX_ERR_INVALID_PARAM);
    assert_null(dlist);
    assert_int_equal(stats_of(p->a).live_dlists, 0);
}

static void
check_one_row(pair_t *p, vnx_desc_t row, vnx_status_t status,
              const char *cause)
{
    vnx_dlist_t *dlist = NULL;
    vnx_error_t error;
    assert_int_equal(vnx_dlist_create(p->a, "", 0, VNX_MEM_DRAM, &row, 1, NULL,
                                      &dlist, &error),
                     status);
    assert_null(dlist);
    assert_int_equal(error.status, status);
    assert_int_equal(error.row, 0);
    assert_int_equal(error.dev, row.dev);
    assert_string_equal(error.peer, "");
    if (strstr(error.cause, cause) == NULL) {
        fail_msg("the cause is: %s", error.cause);
    }
}

static void
test_core_dlist_error_has_the_cause_of_a_bad_row(void **state)
{
    pair_t *p = *state;
    uint64_t at = (uint64_t)(uintptr_t)p->at_a;

    check_one_row(p, (vnx_desc_t){at, 0, 0}, VNX_ERR_INVALID_PARAM, "0");
    check_one_row(p, (vnx_desc_t){UINT64_MAX, 2, 0}, VNX_ERR_INVALID_PARAM,
                  "2^64");
    check_one_row(p, (vnx_desc_t){at, 16, 1}, VNX_ERR_NOT_FOUND,
                  "no registered region");
    check_one_row(p, (vnx_desc_t){at - 1, 16, 0}, VNX_ERR_NOT_FOUND,
                  "no registered region");
    check_one_row(p, (vnx_desc_t){at, p->len + 1, 0}, VNX_ERR_NOT_FOUND,
                  "extends past its end");
}

static void
test_core_dlist_a_row_lies_in_one_region(void **state)
{
    pair_t *p = *state;
    static unsigned char two[2 * ROW];
    vnx_desc_t across = desc_at(two + ROW - 8, 16);

    register_at(p->a, two, ROW);
    register_at(p->a, two + ROW, ROW);
    check_one_row(p, across, VNX_ERR_NOT_FOUND, "extends past its end");
    register_at(p->a, two, 2 * ROW);
    vnx_dlist_t *dlist = prepare_descs(p->a, "", &across, 1);
    assert_int_equal(vnx_dlist_count(dlist), 1);
    vnx_dlist_release(dlist);
}

static void
test_core_dlist_regular_rows_take_little_memory(void **state)
{
    pair_t *p = *state;
    vnx_desc_t *rows = scattered_rows(p->at_a);
    uint64_t at = (uint64_t)(uintptr_t)p->at_a;
    vnx_strided_desc_t many = {at, 16, 0, 16, 1000000};
    vnx_dlist_t *regular = NULL, *few = prepare_rows(p->a, "", p->at_a, 1, 1);
    vnx_dlist_t *scattered = prepare_descs(p->a, "", rows, SOME);

    assert_ok(vnx_dlist_create_strided(p->a, "", 0, VNX_MEM_DRAM, &many, 1,
                                       NULL, &regular, e));
    assert_int_equal(vnx_dlist_count(regular), 1000000);
    assert_true(vnx_dlist_bytes(regular) < 1000000);
    assert_true(vnx_dlist_bytes(scattered) < SOME * sizeof *rows);
    assert_true(vnx_dlist_bytes(scattered) > vnx_dlist_bytes(few));
    assert_true(vnx_dlist_bytes(few) > 0);
    vnx_dlist_release(regular);
    vnx_dlist_release(few);
    vnx_dlist_release(scattered);
    free(rows);
}

/* Making a transfer on `remote` comes to a disconnect that names B. */
static void
check_disconnected(pair_t *p, vnx_dlist_t *remote)
{
    vnx_dlist_t *local = prepare_rows(p->a, "", p->at_a, ROW, 4);
    vnx_xfer_t *xfer = NULL;
    vnx_error_t error;

    assert_int_equal(vnx_xfer_create_prepped(p->a, VNX_OP_READ, local,
                                             all_rows(4), remote, all_rows(4),
                                             NULL, 0, false, &xfer, &error),
                     VNX_ERR_REMOTE_DISCONNECT);
    assert_string_equal(error.peer, "B");
    assert_true(error.cause[0] != '\0');
    assert_null(xfer);
    vnx_dlist_release(local);
}

static void
test_core_dlist_of_a_restarted_peer_is_stale(void **state)
{
    pair_t *p = *state;
    vnx_dlist_t *remote = prepare_rows(p->a, "B", p->at_b, ROW, 4);
    vnx_dlist_builder_t *builder = begin_list(p->a, "B");
    vnx_desc_t row = desc_at(p->at_b, ROW);

    pair_restart_b(p);
    load_peer(p->a, p->b);
    check_disconnected(p, remote);
    vnx_dlist_release(remote);

    /* One that was begun before ends as a list of the past, or not at all. */
    vnx_dlist_t *late = NULL;
    if (vnx_dlist_feed(builder, &row, 1, NULL) == VNX_OK &&
        vnx_dlist_finish(builder, &late, NULL) == VNX_OK) {
        vnx_dlist_t *local = prepare_rows(p->a, "", p->at_a, ROW, 1);
        vnx_xfer_t *xfer = NULL;
        assert_int_equal(vnx_xfer_create_prepped(
                             p->a, VNX_OP_READ, local, all_rows(1), late,
                             all_rows(1), NULL, 0, false, &xfer, NULL),
                         VNX_ERR_REMOTE_DISCONNECT);
        vnx_dlist_release(local);
        vnx_dlist_release(late);
    } else {
        vnx_dlist_abort(builder);
    }
    vnx_dlist_t *fresh = prepare_rows(p->a, "B", p->at_b, ROW, 4);
    gather(p, fresh, ROW, 4);
    assert_memory_equal(p->at_a, p->at_b, 4 * ROW);
    vnx_dlist_release(fresh);
}

static void
test_core_dlist_of_a_removed_peer_is_stale(void **state)
{
    pair_t *p = *state;
    vnx_dlist_t *remote = prepare_rows(p->a, "B", p->at_b, ROW, 4);
    vnx_dlist_builder_t *builder = NULL;
    vnx_error_t error;

    assert_ok(vnx_agent_remove_peer(p->a, "B", 1, e));
    check_disconnected(p, remote);
    assert_int_equal(
        vnx_dlist_begin(p->a, "B", 1, VNX_MEM_DRAM, NULL, &builder, &error),
        VNX_ERR_NOT_FOUND);
    assert_string_equal(error.peer, "B");
    assert_null(builder);
    load_peer(p->a, p->b);
    check_disconnected(p, remote);
    assert_int_equal(vnx_dlist_count(remote), 4);
    vnx_dlist_release(remote);
}

static void
test_core_dlist_of_a_closed_peer_is_stale(void **state)
{
    pair_t *p = *state;
    vnx_dlist_t *remote = prepare_rows(p->a, "B", p->at_b, ROW, 4);
    vnx_dlist_builder_t *builder = NULL;
    vnx_error_t error;

    vnx_agent_close(p->b);
    check_disconnected(p, remote);
    assert_int_equal(
        vnx_dlist_begin(p->a, "B", 1, VNX_MEM_DRAM, NULL, &builder, &error),
        VNX_ERR_REMOTE_DISCONNECT);
    assert_string_equal(error.peer, "B");
    vnx_dlist_release(remote);
}

static void
test_core_dlist_outlives_peer_and_agent(void **state)
{
    pair_t *p = *state;
    vnx_dlist_t *local = prepare_rows(p->a, "", p->at_a, ROW, 7);
    vnx_dlist_t *remote = prepare_rows(p->a, "B", p->at_b, ROW, 9);

    vnx_agent_release(p->b);
    vnx_agent_close(p->a);
    vnx_agent_release(p->a);
    p->a = p->b = NULL;
    assert_int_equal(vnx_dlist_count(local), 7);
    assert_int_equal(vnx_dlist_count(remote), 9);
    vnx_dlist_release(vnx_dlist_retain(remote));
    vnx_dlist_release(remote);
    vnx_dlist_release(local);
    vnx_dlist_release(NULL);
}

static void
test_core_dlist_lives_until_the_last_reference(void **state)
{
    pair_t *p = *state;
    vnx_dlist_t *dlist = prepare_rows(p->a, "", p->at_a, ROW, 2);

    assert_ptr_equal(vnx_dlist_retain(dlist), dlist);
    vnx_dlist_release(dlist);
    assert_int_equal(stats_of(p->a).live_dlists, 1);
    assert_int_equal(vnx_dlist_count(dlist), 2);
    vnx_dlist_release(dlist);
    assert_int_equal(stats_of(p->a).live_dlists, 0);
}

static void
test_core_dlist_of_a_closed_agent_is_refused(void **state)
{
    pair_t *p = *state;
    vnx_dlist_builder_t *builder = begin_list(p->a, ""), *other = NULL;
    vnx_desc_t row = desc_at(p->at_a, 1);
    vnx_strided_desc_t strided = {row.addr, 1, 0, 1, 1};
    vnx_dlist_t *dlist = NULL;

    assert_ok(vnx_dlist_feed(builder, &row, 1, e));
    vnx_agent_close(p->a);
    assert_int_equal(
        vnx_dlist_begin(p->a, "", 0, VNX_MEM_DRAM, NULL, &other, NULL),
        VNX_ERR_CLOSED);
    assert_int_equal(vnx_dlist_feed(builder, &row, 1, NULL), VNX_ERR_CLOSED);
    assert_int_equal(vnx_dlist_feed_strided(builder, &strided, 1, NULL),
                     VNX_ERR_CLOSED);
    assert_int_equal(vnx_dlist_finish(builder, &dlist, NULL), VNX_ERR_CLOSED);
    assert_null(dlist);
    vnx_dlist_abort(builder);
}

static void
test_core_dlist_of_an_unknown_backend_is_refused(void **state)
{
    pair_t *p = *state;
    const char *unknown[] = {"UCX", "WARP", NULL}, *later[] = {"SHM", NULL};
    vnx_desc_t row = desc_at(p->at_a, 16);
    vnx_dlist_t *dlist = NULL;
    vnx_error_t error;

    assert_int_equal(vnx_dlist_create(p->a, "", 0, VNX_MEM_DRAM, &row, 1,
                                      unknown, &dlist, &error),
                     VNX_ERR_NOT_FOUND);
    assert_non_null(strstr(error.cause, "WARP"));
    assert_int_equal(vnx_dlist_create(p->a, "", 0, VNX_MEM_DRAM, &row, 1,
                                      later, &dlist, &error),
                     VNX_ERR_NOT_FOUND);
    assert_non_null(strstr(error.cause, "not created"));
    assert_null(dlist);
    assert_ok(vnx_agent_create_backend(p->a, "SHM", NULL, 0, e));
    assert_ok(vnx_dlist_create(p->a, "", 0, VNX_MEM_DRAM, &row, 1, later,
                               &dlist, e));
    vnx_dlist_release(dlist);
}

static void
test_core_dlist_of_storage_is_refused_with_its_cause(void **state)
{
    pair_t *p = *state;
    vnx_reg_desc_t file = {.desc = {0, 4096, 3}, .meta = "/f", .meta_len = 2};
    vnx_dlist_t *dlist = NULL;
    vnx_error_t error;

    assert_int_equal(
        vnx_agent_register(p->a, VNX_MEM_FILE, &file, 1, NULL, &error),
        VNX_ERR_NOT_SUPPORTED);
    assert_non_null(strstr(error.cause, "FILE"));
    assert_int_equal(vnx_dlist_create(p->a, "", 0, VNX_MEM_FILE, &file.desc, 1,
                                      NULL, &dlist, &error),
                     VNX_ERR_NOT_FOUND);
    assert_non_null(strstr(error.cause, "FILE"));
    assert_int_equal(error.row, 0);
    assert_int_equal(vnx_dlist_create(p->a, "", 0, (vnx_mem_t)77, &file.desc,
                                      1, NULL, &dlist, &error),
                     VNX_ERR_INVALID_PARAM);
    assert_non_null(strstr(error.cause, "77"));
    assert_null(dlist);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        with_pair(test_core_dlist_fed_in_parts_equals_one_feed),
        with_pair(test_core_dlist_can_be_fed_row_by_row),
        with_pair(test_core_dlist_strided_equals_unrolled_rows),
        with_pair(test_core_dlist_mixed_feeds_keep_their_order),
        with_pair(test_core_dlist_rows_are_numbered_through_all_feeds),
        with_pair(test_core_dlist_a_bad_strided_row_is_named),
        with_pair(test_core_dlist_abort_after_an_error_frees_all),
        with_pair(test_core_dlist_without_rows_is_refused),
        with_pair(test_core_dlist_error_has_the_cause_of_a_bad_row),
        with_pair(test_core_dlist_a_row_lies_in_one_region),
        with_pair(test_core_dlist_regular_rows_take_little_memory),
        with_pair(test_core_dlist_of_a_restarted_peer_is_stale),
        with_pair(test_core_dlist_of_a_removed_peer_is_stale),
        with_pair(test_core_dlist_of_a_closed_peer_is_stale),
        with_pair(test_core_dlist_outlives_peer_and_agent),
        with_pair(test_core_dlist_lives_until_the_last_reference),
        with_pair(test_core_dlist_of_a_closed_agent_is_refused),
        with_pair(test_core_dlist_of_an_unknown_backend_is_refused),
        with_pair(test_core_dlist_of_storage_is_refused_with_its_cause),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
