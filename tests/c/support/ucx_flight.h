/*
 * One transfer from here to there, or back, over a scripted libucp: its
 * connection, its memory and its result.
 */
#ifndef UCX_FLIGHT_H
#define UCX_FLIGHT_H

#include "ucx_fake.h"

static ground_t ground;
static ucx_flight_t flight;
static vnxi_ucx_conn_t *conn;

/* `rows` of `row` bytes each. */
static void
begin(unsigned workers, double stall_seconds, vnx_op_t op, size_t row,
      size_t rows)
{
    open_sides(workers, stall_seconds);
    conn = ucx_side_connect(&here, &there, 7);
    AWAIT(vnxi_ucx_conn_is_wired(conn));
    ground_open(&ground, conn, row, rows);
    ground_flight(&ground, &flight, op);
}

static void
finish(void)
{
    ucx_flight_free(&flight);
    ground_close(&ground);
    end_conn(conn);
    close_sides();
}

#endif
