/* Transfers over a scripted libucp. */
#include "child_check.h"
#include "ucx_flight.h"

#include <sys/wait.h>

#include "engine/native/ucx/context_private.h"

static void
post_it(void)
{
    if (ucx_flight_post(&flight) != VNX_IN_PROG) {
        fail_msg("%s", flight.error.cause);
    }
}

/* Post it and wait until `count` requests of that kind are pending. */
static void
post_held(fake_ucp_kind_t kind, size_t count)
{
    hold(kind, true);
    post_it();
    AWAIT(calls->held(kind) == count);
}

static void
assert_cause(const char *part)
{
    if (strstr(flight.error.cause, part) == NULL) {
        fail_msg("'%s' is not in '%s'", part, flight.error.cause);
    }
}

static void
assert_ends(vnx_status_t status, const char *cause)
{
    assert_int_equal(ucx_flight_await(&flight), status);
    if (status != VNX_OK) {
        assert_string_equal(flight.error.operation, "vnx_xfer_post");
        assert_int_equal(flight.error.status, status);
        assert_cause(cause);
    }
}

/* Another transfer over the same connection. */
typedef struct beside {
    ground_t ground;
    ucx_flight_t flight;
} beside_t;

static void
beside_open(beside_t *beside, vnx_op_t op)
{
    ground_open(&beside->ground, conn, 100, 10);
    ground_flight(&beside->ground, &beside->flight, op);
    ground_fill(&beside->ground);
}

static void
beside_close(beside_t *beside)
{
    ucx_flight_free(&beside->flight);
    ground_close(&beside->ground);
}

/* Post it, wait for the end and check the bytes. */
static void
beside_moves(beside_t *beside)
{
    assert_int_equal(ucx_flight_post(&beside->flight), VNX_IN_PROG);
    assert_int_equal(ucx_flight_await(&beside->flight), VNX_OK);
    assert_true(ground_is_equal(&beside->ground));
}

/* -- Bytes -----------------------------------------------------------------
 */

static void
move_bytes(unsigned workers, vnx_op_t op, size_t row, size_t rows)
{
    begin(workers, 20.0, op, row, rows);
    for (int round = 0; round < 2; round++) {
        ground_fill(&ground);
        post_it();
        assert_ends(VNX_OK, "");
        assert_true(ground_is_equal(&ground));
    }
    finish();
}

static void
test_ucx_xfer_moves_bytes(void **state)
{
    (void)state;
    move_bytes(1, VNX_OP_READ, 100, 1000);
    move_bytes(1, VNX_OP_WRITE, 100, 1000);
    move_bytes(3, VNX_OP_READ, 1000, 1500);
    move_bytes(3, VNX_OP_WRITE, 1000, 1500);
    move_bytes(1, VNX_OP_READ, 1, 1);
}

/* A short transfer is cut into chunks of half a mebibyte; UCX gets requests of
 * at least that size. */
static void
test_ucx_xfer_sends_long_rows_in_long_requests(void **state)
{
    (void)state;
    begin(2, 20.0, VNX_OP_READ, (1u << 20) + 1000, 4);
    ground_fill(&ground);
    post_it();
    assert_ends(VNX_OK, "");
    assert_true(ground_is_equal(&ground));
    assert_in_range(posts(FAKE_GET), 8, 4 * 3);
    finish();
}

/* UCX completes within the call, and calls back from within other calls. */
static void
test_ucx_xfer_moves_bytes_at_once(void **state)
{
    (void)state;
    for (int i = 0; i < FAKE_KINDS; i++) {
        atomic_store(&fake->of[i].at_once, true);
    }
    move_bytes(2, VNX_OP_READ, 64, 1200);
    move_bytes(2, VNX_OP_WRITE, 64, 1200);
}

static void
test_ucx_xfer_callbacks_within_posts(void **state)
{
    (void)state;
    atomic_store(&fake->inside, true);
    move_bytes(2, VNX_OP_READ, 64, 1200);
    move_bytes(2, VNX_OP_WRITE, 64, 1200);
}

/* A piece may span regions, and each region has its own key. */
static void
test_ucx_xfer_splits_at_region_borders(void **state)
{
    enum { PART = 1000, PARTS = 7 };
    unsigned char *mine, *theirs;
    vnxi_region_t *local[1], *remote[PARTS];
    (void)state;
    open_sides(1, 20.0);
    conn = ucx_side_connect(&here, &there, 7);
    mine = calloc(PARTS, PART);
    theirs = malloc(PARTS * PART);
    for (size_t i = 0; i < PARTS * PART; i++) {
        theirs[i] = (unsigned char)(i * 31 >> 2);
    }
    local[0] = ucx_region(&here, NULL, mine, PARTS * PART);
    for (size_t i = 0; i < PARTS; i++) {
        remote[i] = ucx_region(&there, conn, theirs + i * PART, PART);
    }
    vnx_desc_t left[PARTS], right[PARTS];
    for (size_t i = 0; i < PARTS; i++) {
        left[i] = (vnx_desc_t){(uintptr_t)mine + i * PART, PART, 0};
        right[i] = (vnx_desc_t){(uintptr_t)theirs + i * PART, PART, 0};
    }
    ucx_flight_make(&flight, &(ucx_flight_spec_t){.conn = conn,
                                                  .op = VNX_OP_READ,
                                                  .local = local,
                                                  .remote = remote,
                                                  .local_regions = 1,
                                                  .remote_regions = PARTS,
                                                  .local_rows = left,
                                                  .remote_rows = right,
                                                  .rows = PARTS});
    post_it();
    assert_ends(VNX_OK, "");
    assert_memory_equal(mine, theirs, PARTS * PART);
    assert_int_equal(fake->unpacks, PARTS);
    assert_int_equal(posts(FAKE_GET), PARTS);
    ucx_flight_free(&flight);
    vnxi_region_release(local[0]);
    for (size_t i = 0; i < PARTS; i++) {
        vnxi_region_release(remote[i]);
    }
    end_conn(conn);
    close_sides();
    free(mine);
    free(theirs);
}

static void
test_ucx_xfer_unpacks_a_key_once_per_worker(void **state)
{
    (void)state;
    begin(3, 20.0, VNX_OP_READ, 1024, 2000);
    for (int i = 0; i < 5; i++) {
        post_it();
        assert_ends(VNX_OK, "");
    }
    assert_in_range(fake->unpacks, 1, 3);
    finish();
}

/* -- The order of ends -----------------------------------------------------
 */

static void
test_ucx_xfer_ends_in_any_order(void **state)
{
    uint64_t seed = 42;
    (void)state;
    hold(FAKE_GET, true);
    begin(1, 20.0, VNX_OP_READ, 128, 60);
    ground_fill(&ground);
    post_it();
    AWAIT(calls->held(FAKE_GET) == 60);
    for (size_t left = 60; left > 0; left--) {
        assert_false(flight_has_ended(&flight));
        assert_true(calls->end(FAKE_GET, next_random(&seed) % left, 0));
    }
    assert_ends(VNX_OK, "");
    assert_true(ground_is_equal(&ground));
    assert_int_equal(posts(FAKE_FLUSH), 1); /* the connection's */
    finish();
}

/* A WRITE is complete when a flush has completed. */
static void
test_ucx_xfer_write_waits_for_its_flush(void **state)
{
    (void)state;
    begin(1, 20.0, VNX_OP_WRITE, 128, 40);
    post_held(FAKE_FLUSH, 1);
    AWAIT(atomic_load(&fake->requests) == 1);
    assert_false(flight_has_ended(&flight));
    assert_int_equal(posts(FAKE_PUT), 40);
    hold(FAKE_FLUSH, false);
    end_all(FAKE_FLUSH, 0);
    assert_ends(VNX_OK, "");
    finish();
}

/* The flush completes before a piece. */
static void
test_ucx_xfer_write_waits_for_its_pieces(void **state)
{
    (void)state;
    begin(1, 20.0, VNX_OP_WRITE, 128, 40);
    hold(FAKE_PUT, true);
    post_held(FAKE_FLUSH, 1);
    end_all(FAKE_FLUSH, 0);
    for (int i = 0; i < 39; i++) {
        calls->end(FAKE_PUT, 0, 0);
    }
    AWAIT(atomic_load(&fake->requests) == 1);
    assert_false(flight_has_ended(&flight));
    hold(FAKE_FLUSH, false);
    end_all(FAKE_PUT, 0);
    assert_ends(VNX_OK, "");
    finish();
}

/* Each worker that wrote, and so unpacked the key, flushes. */
static void
test_ucx_xfer_write_flushes_at_every_worker(void **state)
{
    (void)state;
    begin(3, 20.0, VNX_OP_WRITE, 65536, 256);
    hold(FAKE_FLUSH, true);
    post_held(FAKE_PUT, 256);
    size_t used = (size_t)atomic_load(&fake->unpacks);
    assert_in_range(used, 1, 3);
    AWAIT(calls->held(FAKE_FLUSH) == used);
    end_all(FAKE_PUT, 0);
    AWAIT(atomic_load(&fake->requests) == (int)used);
    for (size_t i = 0; i < used; i++) {
        assert_false(flight_has_ended(&flight));
        assert_true(calls->end(FAKE_FLUSH, 0, 0));
    }
    hold(FAKE_FLUSH, false);
    assert_ends(VNX_OK, "");
    finish();
}

/* -- Failures --------------------------------------------------------------
 */

/* The status of every piece counts, even if the flush succeeds. */
static void
test_ucx_xfer_write_whose_piece_failed(void **state)
{
    (void)state;
    begin(1, 20.0, VNX_OP_WRITE, 128, 40);
    hold(FAKE_PUT, true);
    post_held(FAKE_FLUSH, 1);
    assert_true(calls->end(FAKE_PUT, 17, -3));
    end_all(FAKE_PUT, 0);
    end_all(FAKE_FLUSH, 0);
    hold(FAKE_FLUSH, false);
    assert_ends(VNX_ERR_BACKEND, "a piece failed");
    assert_cause("fake status -3");

    /* The next post succeeds. */
    hold(FAKE_PUT, false);
    post_it();
    assert_ends(VNX_OK, "");
    finish();
}

static void
test_ucx_xfer_write_whose_last_piece_failed(void **state)
{
    (void)state;
    begin(1, 20.0, VNX_OP_WRITE, 128, 40);
    let_fail(FAKE_PUT, 40, VNXI_UCS_ERR_NO_MEMORY);
    post_it();
    assert_ends(VNX_ERR_NO_MEMORY, "fake status -4");
    finish();
}

static void
test_ucx_xfer_write_whose_flush_failed(void **state)
{
    (void)state;
    begin(1, 20.0, VNX_OP_WRITE, 128, 4);
    let_fail(FAKE_FLUSH, 2, -3);
    post_it();
    assert_ends(VNX_ERR_BACKEND, "fake status -3");
    refuse(FAKE_FLUSH, 3, -3);
    post_it();
    assert_ends(VNX_ERR_BACKEND, "a flush was refused");
    finish();
}

/* No more requests are posted, and those in flight are awaited. */
static void
test_ucx_xfer_refused_piece_fails_the_transfer(void **state)
{
    char text[64];
    (void)state;
    begin(1, 20.0, VNX_OP_READ, 128, 40);
    hold(FAKE_GET, true);
    refuse(FAKE_GET, 11, VNXI_UCS_ERR_INVALID_PARAM);
    post_it();
    AWAIT(posts(FAKE_GET) == 11);
    assert_false(flight_has_ended(&flight));
    assert_int_equal(calls->held(FAKE_GET), 10);
    end_all(FAKE_GET, 0);
    assert_ends(VNX_ERR_INVALID_PARAM, "a piece was refused");
    snprintf(text, sizeof text, "0x%lx, 128 bytes",
             (unsigned long)(uintptr_t)ground.theirs + 29 * 128);
    assert_cause(text);
    assert_int_equal(posts(FAKE_GET), 11);
    finish();
}

/* Those of a WRITE that were posted have arrived at its end. */
static void
test_ucx_xfer_write_with_a_refused_piece_flushes(void **state)
{
    (void)state;
    begin(1, 20.0, VNX_OP_WRITE, 128, 40);
    refuse(FAKE_PUT, 11, VNXI_UCS_ERR_INVALID_PARAM);
    post_held(FAKE_FLUSH, 1);
    assert_false(flight_has_ended(&flight));
    hold(FAKE_FLUSH, false);
    end_all(FAKE_FLUSH, 0);
    assert_ends(VNX_ERR_INVALID_PARAM, "a piece was refused");
    assert_int_equal(posts(FAKE_PUT), 11);
    finish();
}

static void
test_ucx_xfer_refused_key_fails_the_transfer(void **state)
{
    (void)state;
    begin(1, 20.0, VNX_OP_READ, 128, 40);
    atomic_store(&fake->fail_unpack, VNXI_UCS_ERR_UNREACHABLE);
    post_it();
    /* The connection is intact, so "unreachable" does not mean a lost peer. */
    assert_int_not_equal(ucx_flight_await(&flight), VNX_OK);
    assert_int_equal(posts(FAKE_GET), 0);
    atomic_store(&fake->fail_unpack, 0);
    post_it();
    assert_ends(VNX_OK, "");
    finish();
}

/* Unmapped memory is not used. */
static void
test_ucx_xfer_unmapped_memory_fails_the_transfer(void **state)
{
    (void)state;
    begin(1, 20.0, VNX_OP_WRITE, 128, 40);
    vnxi_ucx_mem_unmap(ucx_mem_of(NULL, ground.local));
    post_it();
    assert_ends(VNX_ERR_INVALID_PARAM,
                "its key for the region cannot be used");
    assert_int_equal(posts(FAKE_PUT), 0);
    finish();
}

static void
lose(bool error_first, vnx_op_t op)
{
    begin(2, 20.0, op, 128, 1500);
    atomic_store(&fake->error_first, error_first);
    hold(op == VNX_OP_READ ? FAKE_GET : FAKE_PUT, true);
    post_it();
    AWAIT(posts(op == VNX_OP_READ ? FAKE_GET : FAKE_PUT) == 1500);
    calls->break_eps(VNXI_UCS_ERR_CONNECTION_RESET);
    assert_ends(VNX_ERR_REMOTE_DISCONNECT,
                "the UCX connection failed: fake status -25");
    ucx_side_await_lost(&here);
    post_it();
    assert_ends(VNX_ERR_REMOTE_DISCONNECT,
                "the UCX connection failed: fake status -25");
    finish();
    hold(op == VNX_OP_READ ? FAKE_GET : FAKE_PUT, false);
    assert_int_equal(here.lost_count, 1);
    for (int i = 0; i < FAKE_KINDS; i++) {
        atomic_store(&fake->of[i].posts, 0);
    }
}

/* The requests' errors come before or after the endpoint's. */
static void
test_ucx_xfer_reports_why_the_connection_failed(void **state)
{
    (void)state;
    lose(true, VNX_OP_READ);
    lose(false, VNX_OP_READ);
    lose(true, VNX_OP_WRITE);
    lose(false, VNX_OP_WRITE);
}

/* The pieces fail before the reason is known. */
static void
test_ucx_xfer_waits_for_the_reason(void **state)
{
    (void)state;
    begin(1, 20.0, VNX_OP_READ, 128, 8);
    post_held(FAKE_GET, 8);
    end_all(FAKE_GET, VNXI_UCS_ERR_TIMED_OUT);
    calls->break_eps(VNXI_UCS_ERR_ENDPOINT_TIMEOUT);
    assert_ends(VNX_ERR_REMOTE_DISCONNECT, "fake status -80");
    finish();
}

static void
test_ucx_xfer_on_a_closed_connection_fails(void **state)
{
    (void)state;
    begin(1, 20.0, VNX_OP_READ, 128, 8);
    vnxi_ucx_conn_close(conn);
    post_it();
    assert_ends(VNX_ERR_REMOTE_DISCONNECT, "the connection was closed");
    assert_int_equal(posts(FAKE_GET), 0);
    finish();
}

static void
test_ucx_xfer_after_the_stop_is_refused(void **state)
{
    (void)state;
    begin(2, 20.0, VNX_OP_READ, 128, 8);
    vnxi_ucx_stop(here.ucx);
    assert_int_equal(ucx_flight_post(&flight), VNX_ERR_REMOTE_DISCONNECT);
    assert_true(strlen(flight.error.cause) > 0);
    finish();
}

/* -- Windows and turns -----------------------------------------------------
 */

static void
test_ucx_xfer_keeps_a_window(void **state)
{
    enum { ROW = 65536, ROWS = 1024 };
    (void)state;
    begin(1, 20.0, VNX_OP_READ, ROW, ROWS);
    hold(FAKE_GET, true);
    post_it();
    /* 32 MiB, and one chunk more at most. */
    AWAIT(calls->held(FAKE_GET) >= 511);
    send_to(conn, "x", 1); /* the thread has completed a round since */
    ucx_side_await_messages(&there, 1);
    size_t in_flight = calls->held(FAKE_GET);
    assert_in_range(in_flight, 500, 512 + 64);
    /* Completed requests make room for as many new ones. */
    for (int i = 0; i < 200; i++) {
        calls->end(FAKE_GET, 0, 0);
    }
    AWAIT(posts(FAKE_GET) >= (int)in_flight + 100);
    assert_true(calls->held(FAKE_GET) <= 512 + 64);
    vnxi_ucx_xfer_cancel(flight.xfer);
    hold(FAKE_GET, false);
    end_all(FAKE_GET, VNXI_UCS_ERR_CANCELED);
    assert_ends(VNX_ERR_CANCELED, "cancelled");
    finish();
}

/* A short transfer does not wait for a long one posted earlier. */
static void
test_ucx_xfer_short_transfers_overtake_long_ones(void **state)
{
    beside_t quick;
    (void)state;
    begin(1, 20.0, VNX_OP_READ, 65536, 1024);
    beside_open(&quick, VNX_OP_READ);
    hold(FAKE_GET, true);
    post_it();
    AWAIT(calls->held(FAKE_GET) >= 511);
    for (int round = 0; round < 3; round++) {
        hold(FAKE_GET, false);
        beside_moves(&quick);
        assert_false(flight_has_ended(&flight));
    }
    vnxi_ucx_xfer_cancel(flight.xfer);
    end_all(FAKE_GET, VNXI_UCS_ERR_CANCELED);
    assert_ends(VNX_ERR_CANCELED, "cancelled");
    beside_close(&quick);
    finish();
}

static void
test_ucx_xfer_many_at_a_time(void **state)
{
    enum { MANY = 24 };
    ground_t grounds[MANY];
    ucx_flight_t flights[MANY];
    (void)state;
    open_sides(2, 20.0);
    conn = ucx_side_connect(&here, &there, 1);
    for (size_t i = 0; i < MANY; i++) {
        ground_open(&grounds[i], conn, 64 + i, 200);
        ground_fill(&grounds[i]);
        ground_flight(&grounds[i], &flights[i],
                      i % 2 == 0 ? VNX_OP_READ : VNX_OP_WRITE);
    }
    for (int round = 0; round < 4; round++) {
        for (size_t i = 0; i < MANY; i++) {
            assert_int_equal(ucx_flight_post(&flights[i]), VNX_IN_PROG);
        }
        for (size_t i = 0; i < MANY; i++) {
            assert_int_equal(ucx_flight_await(&flights[i]), VNX_OK);
            assert_true(ground_is_equal(&grounds[i]));
        }
    }
    for (size_t i = 0; i < MANY; i++) {
        ucx_flight_free(&flights[i]);
        ground_close(&grounds[i]);
    }
    end_conn(conn);
    close_sides();
}

/* -- Stopping --------------------------------------------------------------
 */

static void
test_ucx_xfer_cancel_waits_for_requests_in_flight(void **state)
{
    (void)state;
    begin(1, 20.0, VNX_OP_READ, 128, 2000);
    post_held(FAKE_GET, 2000);
    vnxi_ucx_xfer_cancel(flight.xfer);
    vnxi_ucx_xfer_cancel(flight.xfer);
    for (int i = 0; i < 1999; i++) {
        assert_true(calls->end(FAKE_GET, 0, 0));
    }
    AWAIT(atomic_load(&fake->requests) == 1);
    assert_false(flight_has_ended(&flight));
    end_all(FAKE_GET, 0);
    assert_ends(VNX_ERR_CANCELED, "the transfer was cancelled");
    finish();
}

/* Pieces of a stopping transfer may be cancelled; that is not a failure. */
static void
test_ucx_xfer_cancelled_pieces_do_not_count_as_failures(void **state)
{
    (void)state;
    begin(1, 20.0, VNX_OP_WRITE, 128, 20);
    hold(FAKE_FLUSH, true);
    post_held(FAKE_PUT, 20);
    vnxi_ucx_xfer_cancel(flight.xfer);
    end_all(FAKE_PUT, VNXI_UCS_ERR_CANCELED);
    end_all(FAKE_FLUSH, VNXI_UCS_ERR_CANCELED);
    hold(FAKE_FLUSH, false);
    AWAIT(calls->end(FAKE_FLUSH, 0, 0) || flight_has_ended(&flight));
    assert_ends(VNX_ERR_CANCELED, "the transfer was cancelled");
    finish();
}

/* It may be posted again from its completion callback. */
static void
test_ucx_xfer_is_posted_again_after_each_end(void **state)
{
    (void)state;
    begin(2, 20.0, VNX_OP_READ, 512, 1200);
    for (int i = 0; i < 12; i++) {
        ground_fill(&ground);
        post_it();
        if (i % 3 == 0) {
            vnxi_ucx_xfer_cancel(flight.xfer);
            vnx_status_t status = ucx_flight_await(&flight);
            assert_true(status == VNX_OK || status == VNX_ERR_CANCELED);
        } else {
            assert_ends(VNX_OK, "");
            assert_true(ground_is_equal(&ground));
        }
    }
    finish();
}

static void
test_ucx_xfer_stops_when_forbidden(void **state)
{
    (void)state;
    begin(1, 20.0, VNX_OP_READ, 128, 20);
    atomic_store(&flight.refuse, true);
    post_it();
    assert_int_equal(ucx_flight_await(&flight), VNX_ERR_NOT_FOUND);
    assert_cause("it must not go on");
    assert_int_equal(posts(FAKE_GET), 0);
    atomic_store(&flight.refuse, false);
    post_it();
    assert_ends(VNX_OK, "");
    finish();
}

static void *
settle(void *ucx)
{
    vnxi_ucx_settle(ucx);
    return NULL;
}

/* Waits only for transfers that must stop. */
static void
test_ucx_xfer_settles(void **state)
{
    beside_t lasting;
    pthread_t thread;
    (void)state;
    begin(1, 20.0, VNX_OP_READ, 128, 20);
    beside_open(&lasting, VNX_OP_READ);
    hold(FAKE_GET, true);
    vnxi_ucx_settle(here.ucx); /* nothing is in flight */
    post_it();
    AWAIT(calls->held(FAKE_GET) == 20);
    vnxi_ucx_settle(here.ucx); /* and no transfer has to stop */
    int asked = atomic_load(&flight.asked);
    atomic_store(&flight.refuse, true);
    assert_int_equal(pthread_create(&thread, NULL, settle, here.ucx), 0);
    AWAIT(atomic_load(&flight.asked) > asked);
    /* Posting takes the lock, which is held until settle waits. */
    assert_int_equal(ucx_flight_post(&lasting.flight), VNX_IN_PROG);
    AWAIT(calls->held(FAKE_GET) == 30);
    for (int i = 0; i < 20; i++) {
        assert_false(flight_has_ended(&flight));
        assert_true(calls->end(FAKE_GET, 0, 0));
    }
    pthread_join(thread, NULL);
    assert_int_equal(fake->requests,
                     10); /* none of its bytes arrive any more */
    assert_int_equal(ucx_flight_await(&flight), VNX_ERR_NOT_FOUND);
    assert_false(flight_has_ended(&lasting.flight));
    end_all(FAKE_GET, 0);
    assert_int_equal(ucx_flight_await(&lasting.flight), VNX_OK);
    beside_close(&lasting);
    finish();
}

/* -- Stalls ----------------------------------------------------------------
 */

/* Requests that never complete are aborted, and the next transfer reopens the
 * connection. */
static void
test_ucx_xfer_stall_resets_the_connection(void **state)
{
    (void)state;
    begin(1, 0.05, VNX_OP_READ, 128, 20);
    hold(FAKE_GET, true);
    for (int round = 1; round <= 3; round++) {
        post_it();
        assert_ends(VNX_ERR_TIMEOUT, "no progress for 0.05 s, with 20 ");
        assert_int_equal(fake->forced, round);
    }
    hold(FAKE_GET, false);
    ground_fill(&ground);
    post_it();
    assert_ends(VNX_OK, "");
    assert_true(ground_is_equal(&ground));
    assert_int_equal(fake->unpacks, 4); /* keys go with their endpoint */
    finish();
    assert_int_equal(here.lost_count, 0);
}

/* Complete a piece every few ms until more than the timeout has passed, then
 * all others.  False: this thread was delayed so long that the result is
 * meaningless. */
static bool
move_slowly(uint64_t timeout_ns, uint64_t posted)
{
    uint64_t last = posted, now;
    bool told = true;

    do {
        AWAIT((now = vnxi_clock_ns()) - last >= 8000000);
        told &= now - last < timeout_ns / 2;
        last = now;
        calls->end(FAKE_GET, 0, 0);
    } while (now - posted < timeout_ns + timeout_ns / 4);
    end_all(FAKE_GET, 0);
    return told && vnxi_clock_ns() - last < timeout_ns / 2;
}

/* A transfer that makes slow progress does not stall. */
static void
test_ucx_xfer_slow_progress_is_not_a_stall(void **state)
{
    bool told = false;
    (void)state;
    hold(FAKE_GET, true);
    begin(1, 0.4, VNX_OP_READ, 128, 100);
    while (!told) {
        int before = posts(FAKE_GET), forced = fake->forced;
        uint64_t posted = vnxi_clock_ns();
        post_it();
        AWAIT(posts(FAKE_GET) == before + 100);
        told = move_slowly(400000000, posted);
        vnx_status_t status = ucx_flight_await(&flight);
        assert_true(!told || (status == VNX_OK && fake->forced == forced));
    }
    finish();
}

/* Other transfers in flight there cannot be trusted and fail with the cause.
 */
static void
test_ucx_xfer_stall_fails_other_transfers(void **state)
{
    beside_t neighbour;
    bool both = false;
    (void)state;
    begin(1, 0.05, VNX_OP_READ, 128, 20);
    beside_open(&neighbour, VNX_OP_WRITE);
    hold(FAKE_GET, true);
    hold(FAKE_PUT, true);
    while (!both) { /* in flight when the first one stalls */
        int before = posts(FAKE_PUT), forced = fake->forced;
        post_it();
        assert_int_equal(ucx_flight_post(&neighbour.flight), VNX_IN_PROG);
        AWAIT(posts(FAKE_PUT) == before + 10);
        both = fake->forced == forced;
        assert_ends(VNX_ERR_TIMEOUT, "");
        assert_int_equal(ucx_flight_await(&neighbour.flight), VNX_ERR_TIMEOUT);
        assert_true(!both || fake->forced == forced + 1);
    }
    hold(FAKE_GET, false);
    hold(FAKE_PUT, false);
    ground_fill(&neighbour.ground);
    beside_moves(&neighbour);
    beside_close(&neighbour);
    finish();
}

/* The transfer stalls, and so does the reset of its connection. */
static void
stall_in_reset(vnx_op_t op, fake_ucp_kind_t kind)
{
    begin(1, 0.05, op, 128, 20);
    hold(kind, true);
    hold(FAKE_CLOSE, true);
    post_it();
    assert_ends(VNX_ERR_TIMEOUT, "");
    AWAIT(calls->held(FAKE_CLOSE) == 1);
}

static void
let_reset_go_on(void)
{
    hold(FAKE_CLOSE, false);
    end_all(FAKE_CLOSE, 0);
}

/* Notifications posted during the close are sent after it. */
static void
test_ucx_xfer_messages_wait_for_the_reset(void **state)
{
    (void)state;
    stall_in_reset(VNX_OP_READ, FAKE_GET);
    for (int i = 0; i < 10; i++) {
        send_to(conn, &i, sizeof i);
    }
    assert_int_equal(posts(FAKE_AM), 0);
    let_reset_go_on();
    ucx_side_await_messages(&there, 10);
    for (int i = 0; i < 10; i++) {
        assert_memory_equal(there.messages[i].bytes, &i, sizeof i);
    }
    finish();
}

/* A transfer posted during the close waits, too. */
static void
test_ucx_xfer_waits_for_the_reset(void **state)
{
    (void)state;
    stall_in_reset(VNX_OP_WRITE, FAKE_PUT);
    hold(FAKE_PUT, false);
    ground_fill(&ground);
    post_it();
    let_reset_go_on();
    assert_ends(VNX_OK, "");
    assert_true(ground_is_equal(&ground));
    finish();
}

/* After a reset, the peer counts as connected only once it has answered. */
static void
test_ucx_xfer_reset_requires_an_answer(void **state)
{
    (void)state;
    begin(2, 0.05, VNX_OP_READ, 128, 20);
    assert_true(vnxi_ucx_conn_is_wired(conn));
    hold(FAKE_GET, true);
    post_it();
    assert_ends(VNX_ERR_TIMEOUT, "");
    AWAIT(!vnxi_ucx_conn_is_wired(conn));
    hold(FAKE_GET, false);
    hold(FAKE_FLUSH, true);
    post_it();
    assert_ends(VNX_OK, "");
    assert_false(vnxi_ucx_conn_is_wired(conn));
    hold(FAKE_FLUSH, false);
    end_all(FAKE_FLUSH, 0);
    AWAIT(vnxi_ucx_conn_is_wired(conn));
    finish();
}

/* A cancelled, stuck transfer is aborted and ends as cancelled. */
static void
test_ucx_xfer_cancel_of_a_stuck_transfer(void **state)
{
    (void)state;
    begin(1, 20.0, VNX_OP_READ, 128, 20);
    post_held(FAKE_GET, 20);
    vnxi_ucx_xfer_cancel(flight.xfer);
    assert_ends(VNX_ERR_CANCELED, "the transfer was cancelled");
    assert_int_equal(fake->forced, 1);
    assert_int_equal(calls->held(FAKE_GET), 0);
    finish();
}

/* Let the WRITE's pieces end one at a time, until more than the patience of a
 * stopping transfer has passed.  False: as in move_slowly(). */
static bool
move_beside(beside_t *beside, uint64_t stopped)
{
    uint64_t last = stopped, now;
    bool told = true;

    assert_int_equal(ucx_flight_post(&beside->flight), VNX_IN_PROG);
    AWAIT(calls->held(FAKE_PUT) == 10);
    do {
        AWAIT((now = vnxi_clock_ns()) - last >= 150000000);
        told &= now - last < 500000000;
        last = now;
        calls->end(FAKE_PUT, 0, 0);
    } while (now - stopped < 1250000000);
    return told;
}

/* A transfer that has waited for long is cancelled, and then the connection
 * moves for others: neither is a reason to end it, and them, by force. */
static void
test_ucx_xfer_cancel_of_a_waiting_transfer(void **state)
{
    beside_t beside;
    bool told = false;
    (void)state;
    begin(1, 20.0, VNX_OP_READ, 128, 20);
    beside_open(&beside, VNX_OP_WRITE);
    hold(FAKE_PUT, true);
    while (!told) {
        int forced = fake->forced;
        post_held(FAKE_GET, 20);
        uint64_t posted = vnxi_clock_ns();
        AWAIT(vnxi_clock_ns() - posted >= 1100000000);
        uint64_t stopped = vnxi_clock_ns();
        vnxi_ucx_xfer_cancel(flight.xfer);
        told = move_beside(&beside, stopped);
        end_all(FAKE_GET, 0);
        end_all(FAKE_PUT, 0);
        assert_int_not_equal(ucx_flight_await(&flight), VNX_OK);
        vnx_status_t status = ucx_flight_await(&beside.flight);
        told &= vnxi_clock_ns() - stopped < 1700000000;
        assert_true(!told || (status == VNX_OK && fake->forced == forced &&
                              flight.status == VNX_ERR_CANCELED));
    }
    hold(FAKE_PUT, false);
    beside_close(&beside);
    finish();
}

/* Others on the connection move, but the transfer never does. */
static void
test_ucx_xfer_stall_beside_others_that_move(void **state)
{
    beside_t beside;
    (void)state;
    begin(1, 0.05, VNX_OP_READ, 128, 20);
    beside_open(&beside, VNX_OP_WRITE);
    post_held(FAKE_GET, 20);
    while (!flight_has_ended(&flight)) {
        assert_int_equal(ucx_flight_post(&beside.flight), VNX_IN_PROG);
        ucx_flight_await(&beside.flight);
    }
    assert_ends(VNX_ERR_TIMEOUT, "no progress for 0.05 s, with 20 ");
    beside_close(&beside);
    finish();
}

/* A flush that never completes is a stall, too. */
static void
test_ucx_xfer_stall_of_a_flush(void **state)
{
    (void)state;
    begin(1, 0.05, VNX_OP_WRITE, 128, 20);
    hold(FAKE_FLUSH, true);
    post_it();
    assert_ends(VNX_ERR_TIMEOUT, "with 1 requests");
    hold(FAKE_FLUSH, false);
    post_it();
    assert_ends(VNX_OK, "");
    finish();
}

/* -- The end of the process ------------------------------------------------
 */

/* When this thread has released that lock, the process ends on another. */
static _Thread_local const void *after_unlock;

static void *
end_main(void *unused)
{
    struct timespec deadline;

    (void)unused;
    clock_gettime(CLOCK_MONOTONIC, &deadline);
    deadline.tv_sec += 30;
    for (unsigned i = 0; i < here.ucx->worker_count; i++) {
        vnxi_ucx_worker_park(&here.ucx->workers[i]);
    }
    for (unsigned i = 0; i < here.ucx->worker_count; i++) {
        vnxi_ucx_worker_await_parked(&here.ucx->workers[i], &deadline);
    }
    vnxi_ucx_xfers_abandon(here.ucx);
    return NULL;
}

int __real_pthread_mutex_unlock(pthread_mutex_t *mutex);
int __wrap_pthread_mutex_unlock(pthread_mutex_t *mutex);

int
__wrap_pthread_mutex_unlock(pthread_mutex_t *mutex)
{
    int ret = __real_pthread_mutex_unlock(mutex);
    pthread_t thread;

    if (after_unlock == mutex) {
        after_unlock = NULL;
        CHECK(pthread_create(&thread, NULL, end_main, NULL) == 0);
        CHECK(pthread_join(thread, NULL) == 0);
        CHECK(!flight_has_ended(&flight));
    }
    return ret;
}

/* In a child, because threads that are parked stay for ever. */
static void
in_child(void (*check)(void))
{
    int status;
    pid_t child = fork();

    assert_true(child >= 0);
    if (child == 0) {
        begin(2, 20.0, VNX_OP_READ, 4096, 2000);
        check();
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

static void
post_before_the_first_slice(void)
{
    after_unlock = &here.ucx->xfers_lock;
    CHECK(ucx_flight_post(&flight) == VNX_ERR_REMOTE_DISCONNECT);
    CHECK(!flight_has_ended(&flight));
}

static void
post_after_the_first_slice(void)
{
    after_unlock = &here.ucx->workers[0].lock;
    CHECK(ucx_flight_post(&flight) == VNX_IN_PROG);
    CHECK(flight_has_ended(&flight));
    CHECK(flight.status == VNX_ERR_CANCELED);
}

static void
test_ucx_xfer_posted_while_the_process_ends(void **state)
{
    (void)state;
    if (fake_is_late) {
        return; /* no request ends here */
    }
    in_child(post_before_the_first_slice);
    in_child(post_after_the_first_slice);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        /* First: TSan's process cannot be forked when it has grown. */
        with_fake(test_ucx_xfer_posted_while_the_process_ends),
        with_fake(test_ucx_xfer_moves_bytes),
        with_fake(test_ucx_xfer_sends_long_rows_in_long_requests),
        with_fake(test_ucx_xfer_moves_bytes_at_once),
        with_fake(test_ucx_xfer_callbacks_within_posts),
        with_fake(test_ucx_xfer_splits_at_region_borders),
        with_fake(test_ucx_xfer_unpacks_a_key_once_per_worker),
        with_fake(test_ucx_xfer_ends_in_any_order),
        with_fake(test_ucx_xfer_write_waits_for_its_flush),
        with_fake(test_ucx_xfer_write_waits_for_its_pieces),
        with_fake(test_ucx_xfer_write_flushes_at_every_worker),
        with_fake(test_ucx_xfer_write_whose_piece_failed),
        with_fake(test_ucx_xfer_write_whose_last_piece_failed),
        with_fake(test_ucx_xfer_write_whose_flush_failed),
        with_fake(test_ucx_xfer_refused_piece_fails_the_transfer),
        with_fake(test_ucx_xfer_write_with_a_refused_piece_flushes),
        with_fake(test_ucx_xfer_refused_key_fails_the_transfer),
        with_fake(test_ucx_xfer_unmapped_memory_fails_the_transfer),
        with_fake(test_ucx_xfer_reports_why_the_connection_failed),
        with_fake(test_ucx_xfer_waits_for_the_reason),
        with_fake(test_ucx_xfer_on_a_closed_connection_fails),
        with_fake(test_ucx_xfer_after_the_stop_is_refused),
        with_fake(test_ucx_xfer_keeps_a_window),
        with_fake(test_ucx_xfer_short_transfers_overtake_long_ones),
        with_fake(test_ucx_xfer_many_at_a_time),
        with_fake(test_ucx_xfer_cancel_waits_for_requests_in_flight),
        with_fake(test_ucx_xfer_cancelled_pieces_do_not_count_as_failures),
        with_fake(test_ucx_xfer_is_posted_again_after_each_end),
        with_fake(test_ucx_xfer_stops_when_forbidden),
        with_fake(test_ucx_xfer_settles),
        with_fake(test_ucx_xfer_stall_resets_the_connection),
        with_fake(test_ucx_xfer_slow_progress_is_not_a_stall),
        with_fake(test_ucx_xfer_stall_fails_other_transfers),
        with_fake(test_ucx_xfer_messages_wait_for_the_reset),
        with_fake(test_ucx_xfer_waits_for_the_reset),
        with_fake(test_ucx_xfer_reset_requires_an_answer),
        with_fake(test_ucx_xfer_cancel_of_a_stuck_transfer),
        with_fake(test_ucx_xfer_cancel_of_a_waiting_transfer),
        with_fake(test_ucx_xfer_stall_beside_others_that_move),
        with_fake(test_ucx_xfer_stall_of_a_flush),
    };
    return fake_run_group_tests_twice(tests);
}
