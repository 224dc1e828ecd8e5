#include "ucx_pair.h"

static ucx_side_t here, there;

static void
fill(unsigned char *bytes, size_t len, unsigned seed)
{
    uint64_t state = seed * 0x9e3779b97f4a7c15u + 1;
    for (size_t i = 0; i < len; i++) {
        bytes[i] = (unsigned char)next_random(&state);
    }
}

static void
open_pair(unsigned workers)
{
    ucx_side_open(&here, "here", workers, 20.0);
    ucx_side_open(&there, "there", workers, 20.0);
}

static void
close_pair(void)
{
    ucx_side_close(&here);
    ucx_side_close(&there);
}

/* Scattered pieces of two regions, in turned order: merged nowhere. */
static void
move_scattered(unsigned workers, vnx_op_t op, size_t piece, size_t count)
{
    size_t half = piece * count / 2;
    unsigned char *mine = malloc(2 * half), *theirs = malloc(2 * half);
    vnx_desc_t *left = calloc(count, sizeof *left);
    vnx_desc_t *right = calloc(count, sizeof *right);
    ucx_flight_t flight;

    open_pair(workers);
    vnxi_ucx_conn_t *conn = ucx_side_connect(&here, &there, 7);
    fill(mine, 2 * half, 1);
    fill(theirs, 2 * half, 2);
    vnxi_region_t *local[] = {ucx_region(&here, NULL, mine, half),
                              ucx_region(&here, NULL, mine + half, half)};
    vnxi_region_t *remote[] = {ucx_region(&there, conn, theirs, half),
                               ucx_region(&there, conn, theirs + half, half)};
    for (size_t i = 0; i < count; i++) {
        left[i] = (vnx_desc_t){(uintptr_t)mine + i * piece, piece, 0};
        right[i] = (vnx_desc_t){(uintptr_t)theirs + (count - 1 - i) * piece,
                                piece, 0};
    }
    ucx_flight_make(&flight, &(ucx_flight_spec_t){
                                 .conn = conn,
                                 .op = op,
                                 .local = local,
                                 .remote = remote,
                                 .local_regions = 2,
                                 .remote_regions = 2,
                                 .local_rows = left,
                                 .remote_rows = right,
                                 .rows = count,
                             });
    for (int round = 0; round < 2; round++) {
        fill(op == VNX_OP_READ ? mine : theirs, 2 * half, 3 + round);
        assert_int_equal(ucx_flight_post(&flight), VNX_IN_PROG);
        if (ucx_flight_await(&flight) != VNX_OK) {
            fail_msg("%s", flight.error.cause);
        }
        for (size_t i = 0; i < count; i++) {
            assert_memory_equal(mine + i * piece,
                                theirs + (count - 1 - i) * piece, piece);
        }
    }
    ucx_flight_free(&flight);
    for (int i = 0; i < 2; i++) {
        vnxi_region_release(local[i]);
        vnxi_region_release(remote[i]);
    }
    vnxi_ucx_conn_close(conn);
    vnxi_ucx_conn_release(conn);
    close_pair();
    free(mine), free(theirs), free(left), free(right);
}

static void
test_ucx_transfer_read_scattered(void **state)
{
    (void)state;
    move_scattered(1, VNX_OP_READ, 4096, 5000);
}

static void
test_ucx_transfer_write_scattered(void **state)
{
    (void)state;
    move_scattered(1, VNX_OP_WRITE, 4096, 5000);
}

static void
test_ucx_transfer_is_split_over_workers(void **state)
{
    (void)state;
    move_scattered(3, VNX_OP_READ, 40000, 400);
    move_scattered(3, VNX_OP_WRITE, 40000, 400);
}

static void
test_ucx_transfer_of_odd_sizes(void **state)
{
    (void)state;
    move_scattered(2, VNX_OP_WRITE, 7, 3000);
    move_scattered(2, VNX_OP_READ, 7, 3000);
}

/* -- Stopping --------------------------------------------------------------
 */

#define LONG_PIECE 65536u
#define LONG_COUNT 4000u

/* A long transfer that repeats one block.  A test that stops it tries again if
 * it has ended before. */
typedef struct long_flight {
    unsigned char *mine, *theirs;
    vnxi_ucx_conn_t *conn;
    vnxi_region_t *local[1], *remote[1];
    ucx_flight_t flight;
} long_flight_t;

static void
long_make(long_flight_t *it)
{
    vnx_desc_t *left = calloc(LONG_COUNT, sizeof *left);
    vnx_desc_t *right = calloc(LONG_COUNT, sizeof *right);
    open_pair(2);
    it->mine = calloc(1, LONG_PIECE);
    it->theirs = calloc(1, LONG_PIECE);
    it->conn = ucx_side_connect(&here, &there, 1);
    it->local[0] = ucx_region(&here, NULL, it->mine, LONG_PIECE);
    it->remote[0] = ucx_region(&there, it->conn, it->theirs, LONG_PIECE);
    for (unsigned i = 0; i < LONG_COUNT; i++) {
        left[i] = (vnx_desc_t){(uintptr_t)it->mine, LONG_PIECE, 0};
        right[i] = (vnx_desc_t){(uintptr_t)it->theirs, LONG_PIECE, 0};
    }
    ucx_flight_make(&it->flight, &(ucx_flight_spec_t){
                                     .conn = it->conn,
                                     .op = VNX_OP_READ,
                                     .local = it->local,
                                     .remote = it->remote,
                                     .local_regions = 1,
                                     .remote_regions = 1,
                                     .local_rows = left,
                                     .remote_rows = right,
                                     .rows = LONG_COUNT,
                                     .no_merge = true,
                                 });
    free(left), free(right);
}

static void
long_free(long_flight_t *it)
{
    ucx_flight_free(&it->flight);
    vnxi_region_release(it->local[0]);
    vnxi_region_release(it->remote[0]);
    vnxi_ucx_conn_close(it->conn);
    vnxi_ucx_conn_release(it->conn);
    close_pair();
    free(it->mine), free(it->theirs);
}

static void
test_ucx_transfer_is_cancelled_and_posted_again(void **state)
{
    long_flight_t it;
    (void)state;
    long_make(&it);
    for (int stopped = 0; stopped < 3;) {
        assert_int_equal(ucx_flight_post(&it.flight), VNX_IN_PROG);
        vnxi_ucx_xfer_cancel(it.flight.xfer);
        vnx_status_t status = ucx_flight_await(&it.flight);
        assert_true(status == VNX_ERR_CANCELED || status == VNX_OK);
        stopped += status == VNX_ERR_CANCELED;
    }
    assert_int_equal(ucx_flight_post(&it.flight), VNX_IN_PROG);
    assert_int_equal(ucx_flight_await(&it.flight), VNX_OK);
    long_free(&it);
}

static void
test_ucx_transfer_stops_when_forbidden(void **state)
{
    long_flight_t it;
    vnx_status_t status;
    (void)state;
    long_make(&it);
    do {
        atomic_store(&it.flight.refuse, false);
        assert_int_equal(ucx_flight_post(&it.flight), VNX_IN_PROG);
        atomic_store(&it.flight.refuse, true);
        vnxi_ucx_settle(here.ucx);
        /* It has landed: the memory could be unmapped now. */
        status = ucx_flight_await(&it.flight);
    } while (status == VNX_OK);
    assert_int_equal(status, VNX_ERR_NOT_FOUND);
    assert_string_equal(it.flight.error.cause, "it must not go on");
    long_free(&it);
}

static void
test_ucx_transfer_on_a_closed_connection_fails(void **state)
{
    long_flight_t it;
    vnx_status_t status;
    (void)state;
    for (;;) {
        long_make(&it);
        assert_int_equal(ucx_flight_post(&it.flight), VNX_IN_PROG);
        vnxi_ucx_conn_close(it.conn);
        status = ucx_flight_await(&it.flight);
        if (status != VNX_OK) {
            break;
        }
        long_free(&it);
    }
    assert_int_equal(status, VNX_ERR_REMOTE_DISCONNECT);
    assert_int_equal(ucx_flight_post(&it.flight), VNX_IN_PROG);
    assert_int_equal(ucx_flight_await(&it.flight), VNX_ERR_REMOTE_DISCONNECT);
    long_free(&it);
}

static void
test_ucx_transfer_of_unmapped_memory_fails(void **state)
{
    long_flight_t it;
    (void)state;
    long_make(&it);
    vnxi_ucx_mem_unmap(ucx_mem_of(NULL, it.local[0]));
    assert_int_equal(ucx_flight_post(&it.flight), VNX_IN_PROG);
    assert_int_equal(ucx_flight_await(&it.flight), VNX_ERR_INVALID_PARAM);
    long_free(&it);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ucx_transfer_read_scattered),
        cmocka_unit_test(test_ucx_transfer_write_scattered),
        cmocka_unit_test(test_ucx_transfer_is_split_over_workers),
        cmocka_unit_test(test_ucx_transfer_of_odd_sizes),
        cmocka_unit_test(test_ucx_transfer_is_cancelled_and_posted_again),
        cmocka_unit_test(test_ucx_transfer_stops_when_forbidden),
        cmocka_unit_test(test_ucx_transfer_on_a_closed_connection_fails),
        cmocka_unit_test(test_ucx_transfer_of_unmapped_memory_fails),
    };
    return ucx_run_group_tests(tests);
}
