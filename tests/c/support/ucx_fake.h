/*
 * The backend over a scripted library (fake_ucp.c): two UCX instances, "here"
 * and "there".
 */
#ifndef UCX_FAKE_H
#define UCX_FAKE_H

#include "ucx_pair.h"

#include <unistd.h>

#include "fake_ucp_load.h"

static ucx_side_t here, there;

/* Requests end after the error or the close by force that ends them, as in UCX
 * 1.23 with TCP. */
static bool fake_is_late;

static inline int
fake_reset(void **state)
{
    (void)state;
    memset((void *)fake, 0, sizeof *fake);
    atomic_store(&fake->error_first, fake_is_late);
    atomic_store(&fake->late_cancel, fake_is_late);
    return 0;
}

#define with_fake(test) \
    cmocka_unit_test_setup_teardown(test, fake_reset, fake_check)

/* Run the tests with both orders in which UCX ends requests. */
#define fake_run_group_tests_twice(tests)                                  \
    (fake_load() != 0 || cmocka_run_group_tests(tests, NULL, NULL) != 0 || \
     (fake_is_late = true, cmocka_run_group_tests(tests, NULL, NULL)) != 0)

static inline void
hold(fake_ucp_kind_t kind, bool on)
{
    atomic_store(&fake->of[kind].hold, on);
}

/* How many requests of this kind have been posted. */
static inline int
posts(fake_ucp_kind_t kind)
{
    return atomic_load(&fake->of[kind].posts);
}

/* All that are held end so. */
static inline void
end_all(fake_ucp_kind_t kind, int status)
{
    while (calls->end(kind, 0, status)) {
    }
}

static inline void
refuse(fake_ucp_kind_t kind, int number, int status)
{
    atomic_store(&fake->of[kind].refusal, status);
    atomic_store(&fake->of[kind].refuse_post, number);
}

static inline void
let_fail(fake_ucp_kind_t kind, int number, int status)
{
    atomic_store(&fake->of[kind].failure, status);
    atomic_store(&fake->of[kind].fail_post, number);
}

static inline void
open_sides(unsigned workers, double stall_seconds)
{
    ucx_side_open(&here, "here", workers, stall_seconds);
    ucx_side_open(&there, "there", workers, stall_seconds);
}

static inline void
close_sides(void)
{
    ucx_side_close(&here);
    ucx_side_close(&there);
}

/* -- Bytes to move ---------------------------------------------------------
 */

/* Rows of one size each, in turned order, so that nothing is merged. */
typedef struct ground {
    vnxi_ucx_conn_t *conn;
    unsigned char *mine, *theirs;
    size_t row, rows;
    vnxi_region_t *local, *remote;
} ground_t;

static inline void
ground_open(ground_t *ground, vnxi_ucx_conn_t *conn, size_t row, size_t rows)
{
    size_t size = row * rows;
    *ground = (ground_t){.conn = conn, .row = row, .rows = rows};
    ground->mine = malloc(size);
    ground->theirs = malloc(size);
    ground->local = ucx_region(&here, NULL, ground->mine, size);
    ground->remote = ucx_region(&there, conn, ground->theirs, size);
}

static inline void
ground_fill(ground_t *ground)
{
    size_t size = ground->row * ground->rows;
    uint64_t seed = 88172645463325252u;
    for (size_t i = 0; i < size; i += sizeof seed) {
        size_t len = size - i < sizeof seed ? size - i : sizeof seed;
        uint64_t other = ~next_random(&seed);
        memcpy(ground->mine + i, &seed, len);
        memcpy(ground->theirs + i, &other, len);
    }
}

static inline bool
ground_is_equal(const ground_t *ground)
{
    size_t row = ground->row;
    for (size_t i = 0; i < ground->rows; i++) {
        size_t other = ground->rows - 1 - i;
        if (memcmp(ground->mine + i * row, ground->theirs + other * row,
                   row) != 0) {
            return false;
        }
    }
    return true;
}

static inline void
ground_close(ground_t *ground)
{
    vnxi_region_release(ground->local);
    vnxi_region_release(ground->remote);
    free(ground->mine);
    free(ground->theirs);
}

static inline void
ground_flight(ground_t *ground, ucx_flight_t *flight, vnx_op_t op)
{
    vnx_desc_t *left = calloc(ground->rows, sizeof *left);
    vnx_desc_t *right = calloc(ground->rows, sizeof *right);
    size_t row = ground->row;

    for (size_t i = 0; i < ground->rows; i++) {
        size_t other = ground->rows - 1 - i;
        left[i] = (vnx_desc_t){(uintptr_t)ground->mine + i * row, row, 0};
        right[i] =
            (vnx_desc_t){(uintptr_t)ground->theirs + other * row, row, 0};
    }
    ucx_flight_make(flight, &(ucx_flight_spec_t){.conn = ground->conn,
                                                 .op = op,
                                                 .local = &ground->local,
                                                 .remote = &ground->remote,
                                                 .local_regions = 1,
                                                 .remote_regions = 1,
                                                 .local_rows = left,
                                                 .remote_rows = right,
                                                 .rows = ground->rows});
    free(left);
    free(right);
}

static inline bool
flight_has_ended(ucx_flight_t *flight)
{
    pthread_mutex_lock(&flight->lock);
    bool ended = flight->ended;
    pthread_mutex_unlock(&flight->lock);
    return ended;
}

#endif
