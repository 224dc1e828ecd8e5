/* A transfer's states, notification, telemetry, errors and choice of rows. */
#include "agent_pair.h"
#include "pool_gate.h"

#include <poll.h>
#include <semaphore.h>
#include <time.h>

#include "core/agent.h"

static void
check_status(const vnx_xfer_t *xfer, vnx_xfer_state_t state,
             vnx_status_t status, const char *cause)
{
    vnx_error_t error = {.cause = ""};
    assert_int_equal(vnx_xfer_state(xfer), state);
    assert_int_equal(vnx_xfer_status(xfer, &error), status);
    if (strstr(error.cause, cause) == NULL) {
        fail_msg("the cause is: %s", error.cause);
    }
}

/* The one notification that B has must be this. */
static void
check_notif(vnx_agent_t *agent, const char *message)
{
    vnx_notif_t *notif = await_notif(agent);
    assert_int_equal(notif->message_len, strlen(message));
    assert_memory_equal(notif->message, message, strlen(message));
    assert_int_equal(notif->sender_len, 1);
    assert_null(notif->next);
    vnx_notif_free(notif);
}

/* Post and cancel until a cancel was in time. */
static void
cancel_in_time(vnx_xfer_t *xfer)
{
    bool stopped = false;
    for (int i = 0; i < 10000 && !stopped; i++) {
        assert_ok(vnx_xfer_post(xfer, NULL, 0, e));
        assert_ok(vnx_xfer_cancel(xfer, &stopped, e));
    }
    assert_true(stopped);
}

/* -- States ----------------------------------------------------------------
 */

static void
test_core_xfer_is_ready_then_posted_then_done(void **state)
{
    pair_t *p = *state;
    vnx_xfer_t *xfer = pair_make_xfer(p, VNX_OP_READ, ROWS, NULL);

    check_status(xfer, VNX_XFER_READY, VNX_ERR_NOT_POSTED, "not posted");
    pool_gate_t *gate = gate_shut();
    assert_int_equal(vnx_xfer_post(xfer, NULL, 0, NULL), VNX_IN_PROG);
    check_status(xfer, VNX_XFER_POSTED, VNX_IN_PROG, "");
    gate_open(gate);
    assert_ok(vnx_agent_wait(p->a, &xfer, 1, 0, vnx_test_limit(30), e));
    check_status(xfer, VNX_XFER_DONE, VNX_OK, "");
    assert_memory_equal(p->at_a, p->at_b, p->len);
    assert_ok(vnx_xfer_release(xfer, e));
}

static void
test_core_xfer_posted_again_while_active_is_refused(void **state)
{
    pair_t *p = *state;
    vnx_xfer_t *xfer = pair_make_xfer(p, VNX_OP_READ, ROWS, NULL);
    vnx_error_t error;

    pool_gate_t *gate = gate_shut();
    assert_int_equal(vnx_xfer_post(xfer, "first", 5, NULL), VNX_IN_PROG);
    assert_int_equal(vnx_xfer_post(xfer, "second", 6, &error),
                     VNX_ERR_REPOST_ACTIVE);
    assert_string_equal(error.operation, "vnx_xfer_post");
    assert_int_equal(vnx_xfer_state(xfer), VNX_XFER_POSTED);
    assert_null(vnx_agent_take_notifs(p->b));
    gate_open(gate);
    assert_ok(vnx_agent_wait(p->a, &xfer, 1, 0, vnx_test_limit(30), e));
    check_notif(p->b, "first");
    assert_int_equal(stats_of(p->a).xfers_posted, 1);
    run_xfer(p->a, xfer);
    check_notif(p->b, "first");
    assert_ok(vnx_xfer_release(xfer, e));
}

static void
test_core_xfer_done_cancelled_and_failed_may_be_posted(void **state)
{
    pair_t *p = *state;
    vnx_xfer_t *xfer = pair_make_xfer(p, VNX_OP_READ, ROWS, NULL);

    run_xfer(p->a, xfer);
    memset(p->at_a, 0, p->len);
    run_xfer(p->a, xfer);
    assert_memory_equal(p->at_a, p->at_b, p->len);

    cancel_in_time(xfer);
    check_status(xfer, VNX_XFER_CANCELLED, VNX_ERR_CANCELED, "cancelled");
    memset(p->at_a, 0, p->len);
    run_xfer(p->a, xfer);
    check_status(xfer, VNX_XFER_DONE, VNX_OK, "");
    assert_memory_equal(p->at_a, p->at_b, p->len);

    deregister_at(p->b, p->at_b, p->len);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(vnx_xfer_post(xfer, NULL, 0, NULL),
                         VNX_ERR_NOT_FOUND);
        check_status(xfer, VNX_XFER_FAILED, VNX_ERR_NOT_FOUND, "remote");
    }
    assert_int_equal(stats_of(p->a).xfers_failed, 3);
    assert_ok(vnx_xfer_release(xfer, e));
}

static void
test_core_xfer_error_is_that_of_the_last_post(void **state)
{
    pair_t *p = *state;
    vnx_xfer_t *xfer = pair_make_xfer(p, VNX_OP_WRITE, 4, NULL);
    vnx_error_t at_post, later;

    deregister_at(p->a, p->at_a, p->len);
    assert_int_equal(vnx_xfer_post(xfer, NULL, 0, &at_post),
                     VNX_ERR_NOT_FOUND);
    assert_non_null(strstr(at_post.cause, "local"));
    for (int i = 0; i < 2; i++) {
        assert_int_equal(vnx_xfer_status(xfer, &later), VNX_ERR_NOT_FOUND);
        assert_string_equal(later.cause, at_post.cause);
        assert_string_equal(later.peer, "B");
    }
    assert_int_equal(vnx_xfer_status(xfer, NULL), VNX_ERR_NOT_FOUND);
    vnx_agent_close(p->b);
    assert_int_equal(vnx_xfer_post(xfer, NULL, 0, NULL),
                     VNX_ERR_REMOTE_DISCONNECT);
    assert_int_equal(vnx_xfer_status(xfer, &later), VNX_ERR_REMOTE_DISCONNECT);
    assert_string_not_equal(later.cause, at_post.cause);
    assert_ok(vnx_xfer_release(xfer, e));
}

static void
check_cancel_is_late(vnx_xfer_t *xfer, vnx_xfer_state_t state)
{
    bool stopped = true;
    assert_int_equal(vnx_xfer_state(xfer), state);
    assert_ok(vnx_xfer_cancel(xfer, &stopped, e));
    assert_false(stopped);
    assert_int_equal(vnx_xfer_state(xfer), state);
}

static void
test_core_xfer_cancel_of_an_unposted_one_changes_nothing(void **state)
{
    pair_t *p = *state;
    vnx_xfer_t *xfer = pair_make_xfer(p, VNX_OP_READ, ROWS, NULL);

    check_cancel_is_late(xfer, VNX_XFER_READY);
    run_xfer(p->a, xfer);
    check_cancel_is_late(xfer, VNX_XFER_DONE);
    cancel_in_time(xfer);
    check_cancel_is_late(xfer, VNX_XFER_CANCELLED);
    vnx_agent_close(p->b);
    assert_int_equal(vnx_xfer_post(xfer, NULL, 0, NULL),
                     VNX_ERR_REMOTE_DISCONNECT);
    check_cancel_is_late(xfer, VNX_XFER_FAILED);
    assert_ok(vnx_xfer_release(xfer, e));
}

static void
test_core_xfer_released_in_flight_stops_writing(void **state)
{
    pair_t *p = *state;
    unsigned char *expected = malloc(p->len);
    memset(expected, 0xee, p->len);

    for (int i = 0; i < 10; i++) {
        vnx_xfer_t *xfer = pair_make_xfer(p, VNX_OP_READ, ROWS, "n");
        assert_ok(vnx_xfer_post(xfer, NULL, 0, e));
        if (i % 2) {
            vnx_xfer_abandon(xfer);
        } else {
            assert_ok(vnx_xfer_release(xfer, e));
        }
        assert_int_equal(stats_of(p->a).live_xfers, 0);
        memset(p->at_a, 0xee, p->len);
        vnxi_pool_settle();
        assert_memory_equal(p->at_a, expected, p->len);
    }
    vnx_xfer_abandon(NULL);
    assert_ok(vnx_xfer_release(NULL, e));
    free(expected);
}

static void
test_core_xfer_kept_by_a_second_reference(void **state)
{
    pair_t *p = *state;
    vnx_xfer_t *xfer = pair_make_xfer(p, VNX_OP_READ, 4, NULL);

    assert_ptr_equal(vnx_xfer_retain(xfer), xfer);
    run_xfer(p->a, xfer);
    assert_ok(vnx_xfer_release(xfer, e));
    assert_int_equal(stats_of(p->a).live_xfers, 0);
    check_status(xfer, VNX_XFER_DONE, VNX_OK, "");
    vnx_xfer_drop(xfer);
}

/* -- Notifications ---------------------------------------------------------
 */

static void
test_core_xfer_notif_given_at_a_post_is_kept(void **state)
{
    pair_t *p = *state;
    char message[] = "made";
    vnx_xfer_t *xfer = pair_make_xfer(p, VNX_OP_WRITE, 4, message);

    message[0] = '?'; /* it was copied */
    run_xfer(p->a, xfer);
    check_notif(p->b, "made");
    char posted[] = "posted";
    assert_ok(vnx_xfer_post(xfer, posted, 6, e));
    posted[0] = '?';
    check_notif(p->b, "posted");
    run_xfer(p->a, xfer);
    check_notif(p->b, "posted");
    assert_ok(vnx_xfer_release(xfer, e));
}

static void
test_core_xfer_empty_notif_is_sent_and_null_is_not(void **state)
{
    pair_t *p = *state;
    vnx_xfer_t *none = pair_make_xfer(p, VNX_OP_READ, 4, NULL);
    vnx_xfer_t *empty = pair_make_xfer(p, VNX_OP_READ, 4, "");

    run_xfer(p->a, none);
    assert_null(vnx_agent_take_notifs(p->b));
    run_xfer(p->a, empty);
    check_notif(p->b, "");
    assert_ok(vnx_xfer_post(none, "", 0, e));
    check_notif(p->b, "");
    assert_int_equal(stats_of(p->a).notifs_sent, 2);
    assert_ok(vnx_xfer_release(none, e));
    assert_ok(vnx_xfer_release(empty, e));
}

static void
test_core_xfer_without_success_sends_no_notif(void **state)
{
    pair_t *p = *state;
    vnx_xfer_t *xfer = pair_make_xfer(p, VNX_OP_READ, ROWS, NULL);

    cancel_in_time(xfer);
    deregister_at(p->a, p->at_a, p->len);
    assert_int_equal(vnx_xfer_post(xfer, "no", 2, NULL), VNX_ERR_NOT_FOUND);
    assert_null(vnx_agent_take_notifs(p->b));
    assert_int_equal(stats_of(p->a).notifs_sent, 0);
    assert_int_equal(stats_of(p->b).notifs_received, 0);
    assert_ok(vnx_xfer_release(xfer, e));
}

/* -- Telemetry, estimates --------------------------------------------------
 */

static uint64_t
wall_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

static void
test_core_xfer_telemetry_is_of_the_last_post(void **state)
{
    pair_t *p = *state;
    vnx_xfer_t *xfer = pair_make_xfer(p, VNX_OP_READ, ROWS, NULL);
    vnx_xfer_telemetry_t telemetry = {.total_bytes = 123};
    vnx_error_t error;

    assert_int_equal(vnx_xfer_telemetry(xfer, &telemetry, &error),
                     VNX_ERR_NOT_POSTED);
    assert_int_equal(telemetry.total_bytes, 123);
    pool_gate_t *gate = gate_shut();
    assert_ok(vnx_xfer_post(xfer, NULL, 0, e));
    assert_ok(vnx_xfer_telemetry(xfer, &telemetry, e));
    assert_int_equal(telemetry.xfer_us, 0);
    assert_int_equal(telemetry.total_bytes, p->len);
    assert_int_equal(telemetry.desc_count, ROWS);
    uint64_t first_start = telemetry.start_us;
    /* The wall clock may be set meanwhile, but not by a day. */
    assert_in_range(first_start, wall_us() - 86400000000u,
                    wall_us() + 86400000000u);
    gate_open(gate);
    assert_ok(vnx_agent_wait(p->a, &xfer, 1, 0, vnx_test_limit(30), e));
    assert_ok(vnx_xfer_telemetry(xfer, &telemetry, e));
    assert_int_equal(telemetry.start_us, first_start);
    assert_true(telemetry.xfer_us >= telemetry.post_us);
    run_xfer(p->a, xfer);
    assert_ok(vnx_xfer_telemetry(xfer, &telemetry, e));
    assert_true(telemetry.start_us > first_start);
    assert_ok(vnx_xfer_release(xfer, e));
}

static void
test_core_xfer_telemetry_is_there_after_a_failure(void **state)
{
    pair_t *p = *state;
    vnx_xfer_t *xfer = pair_make_xfer(p, VNX_OP_READ, 8, NULL);
    vnx_xfer_telemetry_t telemetry;

    vnx_agent_close(p->b);
    assert_int_equal(vnx_xfer_post(xfer, NULL, 0, NULL),
                     VNX_ERR_REMOTE_DISCONNECT);
    assert_ok(vnx_xfer_telemetry(xfer, &telemetry, e));
    assert_int_equal(telemetry.total_bytes, 8 * ROW);
    assert_int_equal(telemetry.desc_count, 8);
    assert_int_equal(telemetry.merged_count, 1);
    assert_true(telemetry.start_us > 0);
    assert_ok(vnx_xfer_release(xfer, e));
}

static void
test_core_xfer_estimate_grows_with_the_work(void **state)
{
    pair_t *p = *state;
    int64_t before = 0, duration, margin;

    for (size_t rows = 64; rows <= ROWS; rows *= 4) {
        vnx_xfer_t *xfer = pair_make_xfer(p, VNX_OP_READ, rows, NULL);
        vnx_xfer_estimate(xfer, &duration, &margin);
        assert_true(duration > before);
        assert_true(margin > 0);
        assert_true(margin <= duration);
        assert_string_equal(vnx_xfer_backend(xfer), "SHM");
        before = duration;
        assert_ok(vnx_xfer_release(xfer, e));
    }
}

/* -- Which rows ------------------------------------------------------------
 */

typedef struct typed {
    vnx_index_type_t type;
    const void *data;
} typed_t;

static void
test_core_xfer_takes_indices_of_every_type(void **state)
{
    static const int64_t i64[] = {9, 0, 100, 3};
    static const uint64_t u64[] = {9, 0, 100, 3};
    static const int32_t i32[] = {9, 0, 100, 3};
    static const uint32_t u32[] = {9, 0, 100, 3};
    static const int16_t i16[] = {9, 0, 100, 3};
    static const uint16_t u16[] = {9, 0, 100, 3};
    static const int8_t i8[] = {9, 0, 100, 3};
    static const uint8_t u8[] = {9, 0, 100, 3};
    static const typed_t types[] = {{VNX_INDEX_I64, i64}, {VNX_INDEX_U64, u64},
                                    {VNX_INDEX_I32, i32}, {VNX_INDEX_U32, u32},
                                    {VNX_INDEX_I16, i16}, {VNX_INDEX_U16, u16},
                                    {VNX_INDEX_I8, i8},   {VNX_INDEX_U8, u8}};
    pair_t *p = *state;
    vnx_dlist_t *local = prepare_rows(p->a, "", p->at_a, ROW, 4);
    vnx_dlist_t *remote = prepare_rows(p->a, "B", p->at_b, ROW, 101);

    for (size_t t = 0; t < 8; t++) {
        vnx_indices_t rows = {types[t].data, 4, types[t].type};
        vnx_xfer_t *xfer = NULL;
        memset(p->at_a, 0, 4 * ROW);
        assert_ok(vnx_xfer_create_prepped(p->a, VNX_OP_READ, local,
                                          all_rows(4), remote, rows, NULL, 0,
                                          false, &xfer, e));
        run_xfer(p->a, xfer);
        for (size_t i = 0; i < 4; i++) {
            assert_memory_equal(p->at_a + i * ROW,
                                p->at_b + (size_t)u64[i] * ROW, ROW);
        }
        assert_ok(vnx_xfer_release(xfer, e));
    }
    vnx_dlist_release(local);
    vnx_dlist_release(remote);
}

/* Creation must fail with this row and cause. */
static void
check_refused(pair_t *p, vnx_dlist_t *local, vnx_indices_t local_rows,
              vnx_dlist_t *remote, vnx_indices_t remote_rows, int64_t row,
              const char *cause)
{
    vnx_xfer_t *xfer = NULL;
    vnx_error_t error = {.row = -1};
    assert_int_equal(vnx_xfer_create_prepped(p->a, VNX_OP_READ, local,
                                             local_rows, remote, remote_rows,
                                             NULL, 0, false, &xfer, &error),
                     VNX_ERR_INVALID_PARAM);
    assert_null(xfer);
    assert_string_equal(error.operation, "vnx_xfer_create_prepped");
    assert_int_equal(error.row, row);
    if (strstr(error.cause, cause) == NULL) {
        fail_msg("the cause is: %s", error.cause);
    }
    assert_int_equal(stats_of(p->a).live_xfers, 0);
}

static void
test_core_xfer_refuses_rows_that_do_not_pair(void **state)
{
    static const int16_t negative[] = {0, -1}, beyond[] = {0, 8};
    pair_t *p = *state;
    vnx_dlist_t *local = prepare_rows(p->a, "", p->at_a, ROW, 8);
    vnx_dlist_t *remote = prepare_rows(p->a, "B", p->at_b, ROW, 8);
    vnx_dlist_t *shorter = prepare_rows(p->a, "B", p->at_b, ROW / 2, 8);
    vnx_indices_t two = {beyond, 2, VNX_INDEX_I16};

    check_refused(p, local, all_rows(2), remote, two, 1, "index 8");
    check_refused(p, local, two, remote, all_rows(2), 1, "index 8");
    two.data = negative;
    check_refused(p, local, all_rows(2), remote, two, 1, "index -1");
    check_refused(p, local, all_rows(9), remote, all_rows(9), 8, "index 8");
    check_refused(p, local, all_rows(2), remote, all_rows(3), -1, "indices");
    check_refused(p, local, all_rows(0), remote, all_rows(0), -1, "indices");
    check_refused(p, local, all_rows(3), shorter, all_rows(3), 0, "2048");
    two.type = (vnx_index_type_t)99;
    check_refused(p, local, all_rows(2), remote, two, -1, "type");
    vnx_dlist_release(shorter);
    vnx_dlist_release(remote);
    vnx_dlist_release(local);
}

static void
test_core_xfer_refuses_swapped_and_foreign_lists(void **state)
{
    pair_t *p = *state;
    vnx_dlist_t *local = prepare_rows(p->a, "", p->at_a, ROW, 8);
    vnx_dlist_t *remote = prepare_rows(p->a, "B", p->at_b, ROW, 8);
    vnx_dlist_t *other = prepare_rows(p->b, "", p->at_b, ROW, 8);
    vnx_dlist_t *self = prepare_rows(p->b, "B", p->at_b, ROW, 8);

    check_refused(p, remote, all_rows(1), local, all_rows(1), -1, "local");
    check_refused(p, local, all_rows(1), local, all_rows(1), -1, "remote");
    check_refused(p, remote, all_rows(1), remote, all_rows(1), -1, "local");
    check_refused(p, other, all_rows(1), remote, all_rows(1), -1,
                  "another agent");
    check_refused(p, local, all_rows(1), self, all_rows(1), -1,
                  "another agent");
    vnx_dlist_release(self);
    vnx_dlist_release(other);
    vnx_dlist_release(remote);
    vnx_dlist_release(local);
}

static uint64_t
pieces_of(pair_t *p, const uint32_t *rows, size_t count, bool no_merge)
{
    vnx_dlist_t *local = prepare_rows(p->a, "", p->at_a, ROW, ROWS);
    vnx_dlist_t *remote = prepare_rows(p->a, "B", p->at_b, ROW, ROWS);
    vnx_indices_t indices = {rows, count, VNX_INDEX_U32};
    vnx_xfer_telemetry_t telemetry;
    vnx_xfer_t *xfer = NULL;

    assert_ok(vnx_xfer_create_prepped(p->a, VNX_OP_READ, local, indices,
                                      remote, indices, NULL, 0, no_merge,
                                      &xfer, e));
    run_xfer(p->a, xfer);
    assert_ok(vnx_xfer_telemetry(xfer, &telemetry, e));
    assert_int_equal(telemetry.desc_count, count);
    assert_int_equal(telemetry.total_bytes, count * ROW);
    for (size_t i = 0; i < count; i++) {
        assert_memory_equal(p->at_a + (size_t)rows[i] * ROW,
                            p->at_b + (size_t)rows[i] * ROW, ROW);
    }
    assert_ok(vnx_xfer_release(xfer, e));
    vnx_dlist_release(remote);
    vnx_dlist_release(local);
    return telemetry.merged_count;
}

static void
test_core_xfer_merges_neighbours_unless_no_merge(void **state)
{
    static const uint32_t runs[] = {1, 2, 3, 10, 20, 21, 19, 18};
    pair_t *p = *state;

    assert_int_equal(pieces_of(p, runs, 8, false), 5);
    assert_int_equal(pieces_of(p, runs, 8, true), 8);
    assert_int_equal(pieces_of(p, runs, 1, true), 1);
    assert_int_equal(pieces_of(p, runs, 3, false), 1);
}

/* -- From descriptors ------------------------------------------------------
 */

static void
test_core_xfer_to_itself_may_overlap(void **state)
{
    pair_t *p = *state;
    static const int shifts[] = {-300, -1, 1, 300};
    unsigned char *expected = malloc(8192);

    for (size_t i = 0; i < 4; i++) {
        vnx_desc_t from = desc_at(p->at_b + 1024, 4096);
        vnx_desc_t to = desc_at(p->at_b + 1024 + shifts[i], 4096);
        vnx_xfer_t *xfer = NULL;
        memcpy(expected, p->at_b, 8192);
        memmove(expected + 1024 + shifts[i], expected + 1024, 4096);
        assert_ok(vnx_xfer_create(p->b, VNX_OP_WRITE, VNX_MEM_DRAM, &from, 1,
                                  VNX_MEM_DRAM, &to, 1, "B", 1, NULL, 0, NULL,
                                  &xfer, e));
        run_xfer(p->b, xfer);
        assert_memory_equal(p->at_b, expected, 8192);
        assert_ok(vnx_xfer_release(xfer, e));
    }
    free(expected);
}

static vnx_status_t
try_create(vnx_agent_t *agent, vnx_desc_t *local, size_t local_count,
           vnx_desc_t *remote, size_t remote_count, const char *peer,
           vnx_error_t *error)
{
    vnx_xfer_t *xfer = NULL;
    vnx_status_t status = vnx_xfer_create(
        agent, VNX_OP_READ, VNX_MEM_DRAM, local, local_count, VNX_MEM_DRAM,
        remote, remote_count, peer, strlen(peer), NULL, 0, NULL, &xfer, error);
    if (status < 0) {
        assert_null(xfer);
        assert_string_equal(error->operation, "vnx_xfer_create");
    }
    vnx_xfer_abandon(xfer);
    return status;
}

static void
test_core_xfer_from_descriptors_names_the_bad_row(void **state)
{
    pair_t *p = *state;
    vnx_desc_t mine[] = {desc_at(p->at_a, 64), desc_at(p->at_a + 100, 64)};
    vnx_desc_t theirs[] = {desc_at(p->at_b, 64), desc_at(p->at_b + 100, 64)};
    vnx_error_t error;

    assert_int_equal(try_create(p->a, mine, 2, theirs, 2, "B", &error),
                     VNX_OK);
    assert_int_equal(try_create(p->a, mine, 2, theirs, 1, "B", &error),
                     VNX_ERR_INVALID_PARAM);
    assert_int_equal(try_create(p->a, mine, 0, theirs, 0, "B", &error),
                     VNX_ERR_INVALID_PARAM);
    assert_int_equal(try_create(p->a, mine, 2, theirs, 2, "C", &error),
                     VNX_ERR_NOT_FOUND);
    assert_string_equal(error.peer, "C");
    assert_int_equal(try_create(p->a, theirs, 2, theirs, 2, "B", &error),
                     VNX_ERR_NOT_FOUND);
    assert_string_equal(error.peer, "");
    assert_int_equal(try_create(p->a, mine, 2, mine, 2, "B", &error),
                     VNX_ERR_NOT_FOUND);
    assert_string_equal(error.peer, "B");
    theirs[1].len = 65;
    assert_int_equal(try_create(p->a, mine, 2, theirs, 2, "B", &error),
                     VNX_ERR_INVALID_PARAM);
    assert_int_equal(error.row, 1);
    vnx_agent_close(p->a);
    assert_int_equal(try_create(p->a, mine, 1, theirs, 1, "B", &error),
                     VNX_ERR_CLOSED);
    vnx_agent_stats_t stats = stats_of(p->a);
    assert_int_equal(stats.live_xfers + stats.live_dlists, 0);
}

/* -- Waiting ---------------------------------------------------------------
 */

static void
test_core_xfer_wait_distinguishes_ended_from_open(void **state)
{
    pair_t *p = *state;
    vnx_xfer_t *xfers[] = {pair_make_xfer(p, VNX_OP_READ, ROWS, NULL),
                           pair_make_xfer(p, VNX_OP_READ, 4, NULL)};
    vnx_error_t error;

    assert_ok(vnx_xfer_post(xfers[1], NULL, 0, e));
    pool_gate_t *gate = gate_shut();
    assert_int_equal(vnx_xfer_post(xfers[0], NULL, 0, NULL), VNX_IN_PROG);
    assert_ok(vnx_agent_wait(p->a, xfers, 2, VNX_WAIT_ANY, 0, e));
    assert_int_equal(
        vnx_agent_wait(p->a, xfers, 1, VNX_WAIT_ANY, 1000000, &error),
        VNX_ERR_TIMEOUT);
    assert_non_null(strstr(error.cause, "none of 1"));
    assert_int_equal(vnx_agent_wait(p->a, xfers, 2, 0, 0, &error),
                     VNX_ERR_TIMEOUT);
    assert_int_equal(error.row, -1);
    assert_ok(vnx_agent_wait(p->a, NULL, 0, 0, 0, e));
    gate_open(gate);
    assert_ok(vnx_agent_wait(p->a, xfers, 2, 0, VNX_FOREVER, e));
    assert_int_equal(vnx_xfer_state(xfers[0]), VNX_XFER_DONE);
    assert_ok(vnx_xfer_release(xfers[0], e));
    assert_ok(vnx_xfer_release(xfers[1], e));
}

static void
test_core_xfer_wait_refuses_foreign_transfers(void **state)
{
    pair_t *p = *state;
    vnx_xfer_t *xfers[] = {pair_make_xfer(p, VNX_OP_READ, 4, NULL), NULL};
    vnx_desc_t row = desc_at(p->at_b, 8);
    vnx_error_t error;

    assert_ok(vnx_xfer_create(p->b, VNX_OP_READ, VNX_MEM_DRAM, &row, 1,
                              VNX_MEM_DRAM, &row, 1, "B", 1, NULL, 0, NULL,
                              &xfers[1], e));
    run_xfer(p->a, xfers[0]);
    assert_int_equal(vnx_agent_wait(p->a, xfers, 2, VNX_WAIT_ANY, 0, &error),
                     VNX_ERR_INVALID_PARAM);
    assert_int_equal(error.row, 1);
    vnx_agent_close(p->b);
    assert_int_equal(
        vnx_agent_wait(p->b, xfers + 1, 1, VNX_WAIT_ANY, 0, &error),
        VNX_ERR_CLOSED);
    assert_ok(vnx_xfer_release(xfers[0], e));
    assert_ok(vnx_xfer_release(xfers[1], e));
}

static bool
is_readable(int fd, int timeout_ms)
{
    struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
    return poll(&poll_fd, 1, timeout_ms) == 1;
}

static void
test_core_xfer_end_is_an_event(void **state)
{
    pair_t *p = *state;
    vnx_xfer_t *xfer = pair_make_xfer(p, VNX_OP_READ, ROWS, NULL);
    int fd;

    assert_ok(vnx_agent_fileno(p->a, &fd, e));
    vnx_agent_clear_events(p->a);
    pool_gate_t *gate = gate_shut();
    assert_int_equal(vnx_xfer_post(xfer, NULL, 0, NULL), VNX_IN_PROG);
    assert_false(is_readable(fd, 0));
    gate_open(gate);
    assert_true(is_readable(fd, 30000));
    assert_int_equal(vnx_xfer_state(xfer), VNX_XFER_DONE);
    vnx_agent_clear_events(p->a);
    assert_false(is_readable(fd, 0));
    assert_ok(vnx_xfer_release(xfer, e));
}

/* -- References -------------------------------------------------------------
 */

static void (*destroy_agent)(vnx_agent_t *agent);
static sem_t destroyed;

static void
destroy_and_say_so(vnx_agent_t *agent)
{
    destroy_agent(agent);
    sem_post(&destroyed);
}

/* A copy thread has the last reference to the transfer and, with it, to the
 * agent: closing the agent must not wait for that thread's callback. */
static void
test_core_xfer_may_have_the_last_reference(void **state)
{
    pair_t *p = *state;
    vnx_xfer_t *xfer = pair_make_xfer(p, VNX_OP_READ, ROWS, NULL);
    struct timespec end;

    destroy_agent = p->a->destroy;
    p->a->destroy = destroy_and_say_so;
    assert_int_equal(sem_init(&destroyed, 0, 0), 0);
    pool_gate_t *gate = gate_shut();
    assert_int_equal(vnx_xfer_post(xfer, NULL, 0, NULL), VNX_IN_PROG);
    vnx_xfer_drop(xfer);
    vnx_agent_release(p->a);
    p->a = NULL;
    gate_open(gate);

    clock_gettime(CLOCK_REALTIME, &end);
    end.tv_sec += 30;
    assert_int_equal(sem_timedwait(&destroyed, &end), 0);
    assert_memory_equal(p->at_a, p->at_b, p->len);
    sem_destroy(&destroyed);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        with_pair(test_core_xfer_is_ready_then_posted_then_done),
        with_pair(test_core_xfer_posted_again_while_active_is_refused),
        with_pair(test_core_xfer_done_cancelled_and_failed_may_be_posted),
        with_pair(test_core_xfer_error_is_that_of_the_last_post),
        with_pair(test_core_xfer_cancel_of_an_unposted_one_changes_nothing),
        with_pair(test_core_xfer_released_in_flight_stops_writing),
        with_pair(test_core_xfer_kept_by_a_second_reference),
        with_pair(test_core_xfer_may_have_the_last_reference),
        with_pair(test_core_xfer_notif_given_at_a_post_is_kept),
        with_pair(test_core_xfer_empty_notif_is_sent_and_null_is_not),
        with_pair(test_core_xfer_without_success_sends_no_notif),
        with_pair(test_core_xfer_telemetry_is_of_the_last_post),
        with_pair(test_core_xfer_telemetry_is_there_after_a_failure),
        with_pair(test_core_xfer_estimate_grows_with_the_work),
        with_pair(test_core_xfer_takes_indices_of_every_type),
        with_pair(test_core_xfer_refuses_rows_that_do_not_pair),
        with_pair(test_core_xfer_refuses_swapped_and_foreign_lists),
        with_pair(test_core_xfer_merges_neighbours_unless_no_merge),
        with_pair(test_core_xfer_to_itself_may_overlap),
        with_pair(test_core_xfer_from_descriptors_names_the_bad_row),
        with_pair(test_core_xfer_wait_distinguishes_ended_from_open),
        with_pair(test_core_xfer_wait_refuses_foreign_transfers),
        with_pair(test_core_xfer_end_is_an_event),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
