/* Connections and their endpoints over a scripted libucp. */
#include "ucx_fake.h"

static void
assert_refused(vnxi_ucx_conn_t *conn, const char *cause)
{
    vnx_error_t error;
    assert_int_equal(vnxi_ucx_conn_send_notif(conn, "x", 1, &error),
                     VNX_ERR_REMOTE_DISCONNECT);
    assert_string_equal(error.operation, "vnx_agent_send_notif");
    if (strstr(error.cause, cause) == NULL) {
        fail_msg("'%s' is not in '%s'", cause, error.cause);
    }
}

/* -- Opening ---------------------------------------------------------------
 */

static void
test_ucx_conn_life_begins_with_a_flush(void **state)
{
    (void)state;
    open_sides(1, 20.0);
    hold(FAKE_FLUSH, true);
    vnxi_ucx_conn_t *conn = ucx_side_connect(&here, &there, 1);
    AWAIT(calls->held(FAKE_FLUSH) == 1);
    assert_false(vnxi_ucx_conn_is_wired(conn));
    hold(FAKE_FLUSH, false);
    end_all(FAKE_FLUSH, VNXI_UCS_OK);
    AWAIT(vnxi_ucx_conn_is_wired(conn));
    end_conn(conn);
    close_sides();
    assert_int_equal(fake->forced, 0);
    assert_int_equal(fake->closed, 1);
}

static void
test_ucx_conn_life_immediate_flush_connects(void **state)
{
    (void)state;
    atomic_store(&fake->of[FAKE_FLUSH].at_once, true);
    open_sides(1, 20.0);
    vnxi_ucx_conn_t *conn = ucx_side_connect(&here, &there, 1);
    AWAIT(vnxi_ucx_conn_is_wired(conn));
    end_conn(conn);
    close_sides();
}

/* A failed or refused flush does not connect. */
static void
test_ucx_conn_life_failed_flush_does_not_connect(void **state)
{
    (void)state;
    open_sides(1, 20.0);
    let_fail(FAKE_FLUSH, 1, VNXI_UCS_ERR_TIMED_OUT);
    vnxi_ucx_conn_t *conn = ucx_side_connect(&here, &there, 1);
    AWAIT(posts(FAKE_FLUSH) == 1);
    send_to(conn, "one", 3);
    ucx_side_await_messages(&there, 1);
    assert_false(vnxi_ucx_conn_is_wired(conn));

    refuse(FAKE_FLUSH, 2, VNXI_UCS_ERR_NO_MEMORY);
    vnxi_ucx_conn_warm_up(conn);
    AWAIT(posts(FAKE_FLUSH) == 2);
    send_to(conn, "two", 3);
    ucx_side_await_messages(&there, 2);
    assert_false(vnxi_ucx_conn_is_wired(conn));

    vnxi_ucx_conn_warm_up(conn);
    AWAIT(vnxi_ucx_conn_is_wired(conn));
    assert_int_equal(fake->eps, 1);
    end_conn(conn);
    close_sides();
}

static void
test_ucx_conn_life_reports_its_transports(void **state)
{
    char text[128], little[8];
    (void)state;
    open_sides(1, 20.0);
    vnxi_ucx_conn_t *conn = ucx_side_connect(&here, &there, 1);
    AWAIT(vnxi_ucx_conn_is_wired(conn));
    vnxi_ucx_conn_transports(conn, text, sizeof text);
    assert_string_equal(text, "transport/device_of_some_length");
    vnxi_ucx_conn_transports(conn, little, sizeof little);
    assert_string_equal(little, "transpo");
    end_conn(conn);
    close_sides();
}

/* More transports than fit, and a UCX that cannot report them. */
static void
test_ucx_conn_life_reports_many_or_unknown_transports(void **state)
{
    char text[256];
    (void)state;
    open_sides(1, 20.0);
    atomic_store(&fake->transports, 100);
    vnxi_ucx_conn_t *many = ucx_side_connect(&here, &there, 1);
    AWAIT(vnxi_ucx_conn_is_wired(many));
    vnxi_ucx_conn_transports(many, text, sizeof text);
    assert_true(strlen(text) < 128);
    assert_memory_equal(text, "transport/device_of_some_length, transport/",
                        43);
    atomic_store(&fake->fail_transports, VNXI_UCS_ERR_INVALID_PARAM);
    vnxi_ucx_conn_t *unknown = ucx_side_connect(&here, &there, 2);
    AWAIT(vnxi_ucx_conn_is_wired(unknown));
    vnxi_ucx_conn_transports(unknown, text, sizeof text);
    assert_string_equal(text, "");
    end_conn(many);
    end_conn(unknown);
    close_sides();
}

static void
test_ucx_conn_life_warms_up_every_worker_once(void **state)
{
    (void)state;
    open_sides(4, 20.0);
    assert_int_equal(fake->workers, 2); /* the others: when needed */
    vnxi_ucx_conn_t *conn = ucx_side_connect(&here, &there, 1);
    vnxi_ucx_conn_warm_up(conn);
    AWAIT(atomic_load(&fake->eps) == 4);
    vnxi_ucx_conn_warm_up(conn);
    AWAIT(posts(FAKE_FLUSH) >= 5);
    assert_int_equal(fake->eps, 4);
    assert_int_equal(fake->workers, 5);
    end_conn(conn);
    close_sides();
    assert_int_equal(fake->closed, 4);
}

/* A worker that starts later opens nothing, because nothing would close it. */
static void
test_ucx_conn_life_closed_before_it_warms_up(void **state)
{
    (void)state;
    open_sides(2, 20.0);
    vnxi_ucx_conn_t *conn = ucx_side_connect(&here, &there, 1);
    AWAIT(vnxi_ucx_conn_is_wired(conn));
    vnxi_ucx_conn_close(conn);
    vnxi_ucx_conn_warm_up(conn);
    AWAIT(atomic_load(&fake->workers) == 3);
    end_conn(conn);
    close_sides();
    assert_int_equal(fake->creates, 1);
}

static void
test_ucx_conn_life_refused_by_ucx_is_lost(void **state)
{
    (void)state;
    open_sides(1, 20.0);
    atomic_store(&fake->fail_ep, VNXI_UCS_ERR_UNREACHABLE);
    vnxi_ucx_conn_t *conn = ucx_side_connect(&here, &there, 5);
    ucx_side_await_lost(&here);
    assert_int_equal(here.lost_cookie, 5);
    assert_string_equal(here.lost_cause,
                        "UCX cannot connect to the peer: fake status -6");
    assert_refused(conn, "UCX cannot connect to the peer: fake status -6");
    assert_false(vnxi_ucx_conn_is_wired(conn));
    end_conn(conn);
    close_sides();
    assert_int_equal(here.lost_count, 1);
    assert_int_equal(there.lost_count, 0);
}

/* UCX frees memory still in use if it waits for such a connection. */
static void
test_ucx_conn_life_to_a_peer_that_ends_meanwhile_is_lost(void **state)
{
    (void)state;
    open_sides(2, 20.0);
    atomic_store(&fake->die_connecting, true);
    vnxi_ucx_conn_t *conn = ucx_side_connect(&here, &there, 8);
    ucx_side_await_lost(&here);
    assert_int_equal(here.lost_cookie, 8);
    AWAIT(atomic_load(&fake->eps) == 0);
    end_conn(conn);
    close_sides();
    assert_int_equal(here.lost_count, 1);
}

static void
test_ucx_conn_life_with_garbage_for_an_address_is_lost(void **state)
{
    vnxi_ucx_conn_t *conn;
    vnx_error_t error;
    (void)state;
    open_sides(1, 20.0);
    /* Truncated, so that the library reads past its end. */
    assert_int_equal(ucx_open(here.ucx, "FAKE", 4, 6, &conn, &error), VNX_OK);
    ucx_side_await_lost(&here);
    assert_int_equal(here.lost_cookie, 6);
    assert_refused(conn, "fake status -7");
    end_conn(conn);
    close_sides();
}

/* -- Errors ----------------------------------------------------------------
 */

static void
test_ucx_conn_life_error_is_reported_once(void **state)
{
    (void)state;
    open_sides(3, 20.0);
    vnxi_ucx_conn_t *conn = ucx_side_connect(&here, &there, 9);
    vnxi_ucx_conn_warm_up(conn);
    AWAIT(atomic_load(&fake->eps) == 3 && vnxi_ucx_conn_is_wired(conn));
    calls->break_eps(VNXI_UCS_ERR_CONNECTION_RESET);
    ucx_side_await_lost(&here);
    assert_int_equal(here.lost_cookie, 9);
    assert_string_equal(here.lost_cause,
                        "the UCX connection failed: fake status -25");
    /* All endpoints are closed, although only one reported the error. */
    AWAIT(atomic_load(&fake->eps) == 0);
    assert_int_equal(fake->forced, 3);
    assert_refused(conn, "fake status -25");
    end_conn(conn);
    close_sides();
    assert_int_equal(here.lost_count, 1);
}

static void
lose_while_messages_wait(bool error_first)
{
    open_sides(1, 20.0);
    atomic_store(&fake->error_first, error_first);
    vnxi_ucx_conn_t *conn = ucx_side_connect(&here, &there, 3);
    AWAIT(vnxi_ucx_conn_is_wired(conn));
    hold(FAKE_AM, true);
    for (int i = 0; i < 20; i++) {
        send_to(conn, &i, sizeof i);
    }
    AWAIT(calls->held(FAKE_AM) == 20);
    calls->break_eps(VNXI_UCS_ERR_ENDPOINT_TIMEOUT);
    ucx_side_await_lost(&here);
    AWAIT(atomic_load(&fake->eps) == 0);
    assert_int_equal(calls->held(FAKE_AM), 0);
    assert_refused(conn, "fake status -80");
    end_conn(conn);
    close_sides();
    assert_int_equal(there.message_count, 0);
}

static void
test_ucx_conn_life_error_while_messages_wait(void **state)
{
    (void)state;
    lose_while_messages_wait(true);
}

static void
test_ucx_conn_life_error_after_its_messages(void **state)
{
    (void)state;
    lose_while_messages_wait(false);
}

/* The error handler is called from within a post. */
static void
test_ucx_conn_life_error_within_a_post(void **state)
{
    (void)state;
    atomic_store(&fake->inside, true);
    open_sides(1, 20.0);
    vnxi_ucx_conn_t *conn = ucx_side_connect(&here, &there, 3);
    AWAIT(vnxi_ucx_conn_is_wired(conn));
    for (int i = 0; i < 50; i++) {
        vnx_error_t error;
        if (i == 25) {
            calls->break_eps(VNXI_UCS_ERR_CONNECTION_RESET);
        }
        vnx_status_t status = vnxi_ucx_conn_send_notif(conn, "x", 1, &error);
        assert_true(status == VNX_OK || status == VNX_ERR_REMOTE_DISCONNECT);
    }
    ucx_side_await_lost(&here);
    AWAIT(atomic_load(&fake->eps) == 0);
    end_conn(conn);
    close_sides();
    assert_int_equal(here.lost_count, 1);
}

/* Errors of a connection that is being closed are ignored. */
static void
test_ucx_conn_life_error_after_the_close_is_no_loss(void **state)
{
    (void)state;
    open_sides(1, 20.0);
    vnxi_ucx_conn_t *conn = ucx_side_connect(&here, &there, 3);
    AWAIT(vnxi_ucx_conn_is_wired(conn));
    hold(FAKE_FLUSH, true);
    vnxi_ucx_conn_close(conn);
    AWAIT(calls->held(FAKE_FLUSH) == 1);
    calls->break_eps(VNXI_UCS_ERR_CONNECTION_RESET);
    AWAIT(atomic_load(&fake->eps) == 0);
    assert_refused(conn, "the connection was closed");
    vnxi_ucx_conn_release(conn);
    close_sides();
    assert_int_equal(here.lost_count, 0);
}

static void
test_ucx_conn_life_one_fails_and_the_other_stays(void **state)
{
    (void)state;
    open_sides(1, 20.0);
    vnxi_ucx_conn_t *good = ucx_side_connect(&here, &there, 1);
    AWAIT(vnxi_ucx_conn_is_wired(good));
    atomic_store(&fake->fail_ep, VNXI_UCS_ERR_REJECTED);
    vnxi_ucx_conn_t *bad = ucx_side_connect(&here, &there, 2);
    ucx_side_await_lost(&here);
    assert_int_equal(here.lost_cookie, 2);
    send_to(good, "x", 1);
    ucx_side_await_messages(&there, 1);
    assert_refused(bad, "fake status -23");
    end_conn(bad);
    end_conn(good);
    close_sides();
    assert_int_equal(here.lost_count, 1);
}

/* -- Closing ---------------------------------------------------------------
 */

static void
test_ucx_conn_life_closing_sends_what_is_queued(void **state)
{
    (void)state;
    open_sides(1, 20.0);
    vnxi_ucx_conn_t *conn = ucx_side_connect(&here, &there, 1);
    for (int i = 0; i < 30; i++) {
        send_to(conn, &i, sizeof i);
    }
    vnxi_ucx_conn_close(conn);
    assert_refused(conn, "the connection was closed");
    ucx_side_await_messages(&there, 30);
    vnxi_ucx_conn_release(conn);
    close_sides();
    assert_int_equal(fake->forced, 0);
    assert_int_equal(here.lost_count, 0);
}

/* If the flush fails or is refused, the endpoint is closed by force. */
static void
test_ucx_conn_life_closes_by_force_if_the_flush_fails(void **state)
{
    (void)state;
    open_sides(1, 20.0);
    vnxi_ucx_conn_t *conn = ucx_side_connect(&here, &there, 1);
    AWAIT(vnxi_ucx_conn_is_wired(conn));
    refuse(FAKE_FLUSH, -1, VNXI_UCS_ERR_CONNECTION_RESET);
    vnxi_ucx_conn_close(conn);
    AWAIT(atomic_load(&fake->eps) == 0);
    assert_int_equal(fake->forced, 1);
    vnxi_ucx_conn_release(conn);
    close_sides();
}

static void
test_ucx_conn_life_closing_has_a_deadline(void **state)
{
    (void)state;
    open_sides(1, 20.0);
    vnxi_ucx_conn_t *conn = ucx_side_connect(&here, &there, 1);
    AWAIT(vnxi_ucx_conn_is_wired(conn));
    hold(FAKE_FLUSH, true);
    hold(FAKE_AM, true);
    send_to(conn, "never", 5);
    end_conn(conn);
    AWAIT(atomic_load(&fake->eps) == 0);
    assert_int_equal(fake->forced, 1);
    assert_int_equal(calls->held(FAKE_AM), 0);
    close_sides();
    assert_int_equal(there.message_count, 0);
}

/* An endpoint that UCX keeps may still call back and must not be confused with
 * another. */
static void
test_ucx_conn_life_survives_an_endpoint_that_ucx_keeps(void **state)
{
    (void)state;
    open_sides(1, 0.02);
    vnxi_ucx_conn_t *conn = ucx_side_connect(&here, &there, 4);
    AWAIT(vnxi_ucx_conn_is_wired(conn));
    ground_t ground;
    ucx_flight_t flight;
    ground_open(&ground, conn, 64, 4);
    ground_flight(&ground, &flight, VNX_OP_READ);
    hold(FAKE_GET, true);
    hold(FAKE_CLOSE, true);
    assert_int_equal(ucx_flight_post(&flight), VNX_IN_PROG);
    assert_int_equal(ucx_flight_await(&flight), VNX_ERR_TIMEOUT);
    ucx_side_await_lost(&here); /* a second later */
    assert_int_equal(here.lost_cookie, 4);
    assert_refused(conn, "UCX does not close the connection");
    assert_int_equal(ucx_flight_post(&flight), VNX_IN_PROG);
    assert_int_equal(ucx_flight_await(&flight), VNX_ERR_REMOTE_DISCONNECT);
    assert_int_equal(fake->forced, 1);
    hold(FAKE_CLOSE, false);
    end_all(FAKE_CLOSE, 0);
    AWAIT(atomic_load(&fake->eps) == 0);
    ucx_flight_free(&flight);
    ground_close(&ground);
    end_conn(conn);
    close_sides();
    assert_int_equal(here.lost_count, 1);
}

static void
test_ucx_conn_life_close_may_complete_immediately(void **state)
{
    (void)state;
    atomic_store(&fake->of[FAKE_CLOSE].at_once, true);
    open_sides(2, 20.0);
    vnxi_ucx_conn_t *conn = ucx_side_connect(&here, &there, 1);
    vnxi_ucx_conn_warm_up(conn);
    AWAIT(atomic_load(&fake->eps) == 2);
    end_conn(conn);
    AWAIT(atomic_load(&fake->eps) == 0);
    close_sides();
    assert_int_equal(fake->requests, 0);
}

/* The agent's end closes all connections, even those still referenced. */
static void
test_ucx_conn_life_stopping_closes_all(void **state)
{
    vnx_error_t error;
    vnxi_ucx_conn_t *conns[8];
    (void)state;
    open_sides(2, 20.0);
    for (int i = 0; i < 8; i++) {
        conns[i] = ucx_side_connect(&here, &there, i);
        vnxi_ucx_conn_warm_up(conns[i]);
    }
    AWAIT(atomic_load(&fake->eps) == 16);
    vnxi_ucx_stop(here.ucx);
    assert_int_equal(fake->eps, 0);
    for (int i = 0; i < 8; i++) {
        assert_int_equal(vnxi_ucx_conn_send_notif(conns[i], "x", 1, &error),
                         VNX_ERR_REMOTE_DISCONNECT);
        assert_true(strlen(error.cause) > 0);
        vnxi_ucx_conn_warm_up(conns[i]);
        end_conn(conns[i]);
    }
    close_sides();
    assert_int_equal(here.lost_count, 0);
}

static void
test_ucx_conn_life_open_after_the_stop_is_lost(void **state)
{
    (void)state;
    open_sides(1, 20.0);
    vnxi_ucx_stop(here.ucx);
    vnxi_ucx_conn_t *conn = ucx_side_connect(&here, &there, 1);
    assert_refused(conn, "closed");
    end_conn(conn);
    close_sides();
}

/* The creator has released the connection; its address is still valid. */
static void
test_ucx_conn_life_outlives_its_creator_and_address(void **state)
{
    size_t len;
    (void)state;
    open_sides(1, 20.0);
    const void *address = vnxi_ucx_address(there.ucx, &len);
    void *copy = malloc(len);
    memcpy(copy, address, len);
    vnxi_ucx_conn_t *conn = ucx_side_connect(&here, &there, 1);
    AWAIT(vnxi_ucx_conn_is_wired(conn));
    close_sides();
    assert_int_equal(fake->contexts, 1); /* the connection holds it */
    assert_true(vnxi_ucx_conn_is_to(conn, copy, len));
    end_conn(conn);
    free(copy);
}

static void
test_ucx_conn_life_many_are_opened_and_closed(void **state)
{
    (void)state;
    open_sides(2, 20.0);
    for (int i = 0; i < 200; i++) {
        vnxi_ucx_conn_t *conn = ucx_side_connect(&here, &there, i);
        if (i % 3 == 0) {
            vnxi_ucx_conn_warm_up(conn);
        }
        if (i % 5 == 0) {
            calls->break_eps(VNXI_UCS_ERR_CONNECTION_RESET);
        }
        end_conn(conn);
    }
    AWAIT(atomic_load(&fake->eps) == 0);
    close_sides();
}

/* -- Spares ----------------------------------------------------------------
 */

/* To one of our agents. */
static vnxi_ucx_conn_t *
connect_ours(ucx_side_t *to, uintptr_t cookie)
{
    vnxi_ucx_conn_t *conn = ucx_side_connect(&here, to, cookie);
    vnxi_ucx_conn_is_of_ours(conn);
    return conn;
}

/* UCX never closes the socket of an endpoint that was used in both directions.
 */
static void
test_ucx_conn_life_over_tcp_reuses_one_endpoint(void **state)
{
    (void)state;
    atomic_store(&fake->tcp, true);
    open_sides(2, 20.0);
    for (int i = 0; i < 200; i++) {
        vnxi_ucx_conn_t *conn = connect_ours(&there, i);
        if (i % 3 == 0) {
            AWAIT(vnxi_ucx_conn_is_wired(conn));
        }
        if (i % 2 == 0) {
            send_to(conn, &i, sizeof i);
        }
        end_conn(conn);
    }
    ucx_side_await_messages(&there, 100);
    for (int i = 0; i < 100; i++) {
        int number;
        assert_int_equal(there.messages[i].len, sizeof number);
        memcpy(&number, there.messages[i].bytes, sizeof number);
        assert_int_equal(number, 2 * i);
    }
    assert_int_equal(fake->creates, 1);
    assert_int_equal(fake->eps, 1);
    close_sides();
    assert_int_equal(fake->forced, 0);
    assert_int_equal(fake->closed, 1);
    assert_int_equal(here.lost_count, 0);
}

static void
keep_one(uintptr_t cookie)
{
    vnxi_ucx_conn_t *conn = connect_ours(&there, cookie);
    AWAIT(vnxi_ucx_conn_is_wired(conn));
    end_conn(conn);
}

static void
test_ucx_conn_life_spare_of_a_dead_peer_is_closed(void **state)
{
    (void)state;
    atomic_store(&fake->tcp, true);
    open_sides(1, 20.0);
    keep_one(1);
    calls->break_eps(VNXI_UCS_ERR_CONNECTION_RESET);
    AWAIT(atomic_load(&fake->eps) == 0);
    assert_int_equal(fake->forced, 1);
    keep_one(2);
    assert_int_equal(fake->creates, 2);
    close_sides();
    assert_int_equal(here.lost_count, 0);
}

/* Its error goes to the connection that now uses the endpoint. */
static void
test_ucx_conn_life_reused_spare_reports_its_error(void **state)
{
    (void)state;
    atomic_store(&fake->tcp, true);
    open_sides(1, 20.0);
    keep_one(1);
    vnxi_ucx_conn_t *conn = connect_ours(&there, 2);
    AWAIT(vnxi_ucx_conn_is_wired(conn));
    assert_int_equal(fake->creates, 1);
    calls->break_eps(VNXI_UCS_ERR_CONNECTION_RESET);
    ucx_side_await_lost(&here);
    assert_int_equal(here.lost_cookie, 2);
    AWAIT(atomic_load(&fake->eps) == 0);
    end_conn(conn);
    close_sides();
    assert_int_equal(here.lost_count, 1);
}

/* Only a close by force ends what a stopped transfer has in flight, so no
 * other connection may have that endpoint. */
static void
test_ucx_conn_life_a_transfer_in_flight_keeps_its_endpoint(void **state)
{
    ground_t ground;
    ucx_flight_t flight;
    (void)state;
    atomic_store(&fake->tcp, true);
    open_sides(1, 20.0);
    vnxi_ucx_conn_t *conn = connect_ours(&there, 1);
    AWAIT(vnxi_ucx_conn_is_wired(conn));
    ground_open(&ground, conn, 64, 4);
    ground_flight(&ground, &flight, VNX_OP_READ);
    hold(FAKE_GET, true);
    hold(FAKE_FLUSH, true);
    assert_int_equal(ucx_flight_post(&flight), VNX_IN_PROG);
    AWAIT(calls->held(FAKE_GET) == 4);
    vnxi_ucx_conn_close(conn);
    AWAIT(calls->held(FAKE_FLUSH) == 1);
    vnxi_ucx_conn_t *other = connect_ours(&there, 2);
    AWAIT(atomic_load(&fake->creates) == 2);
    hold(FAKE_FLUSH, false);
    AWAIT(atomic_load(&fake->forced) == 1); /* 1.5 s later */
    assert_true(ucx_flight_await(&flight) < 0);
    hold(FAKE_GET, false);
    end_all(FAKE_FLUSH, VNXI_UCS_OK);
    AWAIT(vnxi_ucx_conn_is_wired(other));
    ucx_flight_free(&flight);
    ground_close(&ground);
    vnxi_ucx_conn_release(conn);
    end_conn(other);
    close_sides();
    assert_int_equal(fake->forced, 1);
}

/* A stock agent may have closed its side since. */
static void
test_ucx_conn_life_to_stock_gets_a_separate_endpoint(void **state)
{
    (void)state;
    atomic_store(&fake->tcp, true);
    open_sides(1, 20.0);
    for (int i = 0; i < 5; i++) {
        vnxi_ucx_conn_t *conn = ucx_side_connect(&here, &there, 1);
        AWAIT(vnxi_ucx_conn_is_wired(conn));
        end_conn(conn);
    }
    AWAIT(atomic_load(&fake->eps) == 0);
    assert_int_equal(fake->creates, 5);
    assert_int_equal(fake->closed, 5);
    close_sides();
}

/* The oldest is closed when there are too many. */
static void
test_ucx_conn_life_spares_are_limited(void **state)
{
    enum { LIMIT = 64, MORE = LIMIT + 3 };
    static ucx_side_t others[MORE];
    (void)state;
    atomic_store(&fake->tcp, true);
    open_sides(1, 20.0);
    for (int i = 0; i < MORE; i++) {
        ucx_side_open(&others[i], "other", 1, 20.0);
        vnxi_ucx_conn_t *conn = connect_ours(&others[i], i);
        AWAIT(vnxi_ucx_conn_is_wired(conn));
        end_conn(conn);
    }
    AWAIT(atomic_load(&fake->eps) == LIMIT);
    assert_int_equal(fake->closed, MORE - LIMIT);
    for (int i = 0; i < MORE; i++) {
        ucx_side_close(&others[i]);
    }
    close_sides();
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        with_fake(test_ucx_conn_life_begins_with_a_flush),
        with_fake(test_ucx_conn_life_immediate_flush_connects),
        with_fake(test_ucx_conn_life_failed_flush_does_not_connect),
        with_fake(test_ucx_conn_life_reports_its_transports),
        with_fake(test_ucx_conn_life_reports_many_or_unknown_transports),
        with_fake(test_ucx_conn_life_warms_up_every_worker_once),
        with_fake(test_ucx_conn_life_closed_before_it_warms_up),
        with_fake(test_ucx_conn_life_refused_by_ucx_is_lost),
        with_fake(test_ucx_conn_life_to_a_peer_that_ends_meanwhile_is_lost),
        with_fake(test_ucx_conn_life_with_garbage_for_an_address_is_lost),
        with_fake(test_ucx_conn_life_error_is_reported_once),
        with_fake(test_ucx_conn_life_error_while_messages_wait),
        with_fake(test_ucx_conn_life_error_after_its_messages),
        with_fake(test_ucx_conn_life_error_within_a_post),
        with_fake(test_ucx_conn_life_error_after_the_close_is_no_loss),
        with_fake(test_ucx_conn_life_one_fails_and_the_other_stays),
        with_fake(test_ucx_conn_life_closing_sends_what_is_queued),
        with_fake(test_ucx_conn_life_closes_by_force_if_the_flush_fails),
        with_fake(test_ucx_conn_life_closing_has_a_deadline),
        with_fake(test_ucx_conn_life_survives_an_endpoint_that_ucx_keeps),
        with_fake(test_ucx_conn_life_close_may_complete_immediately),
        with_fake(test_ucx_conn_life_stopping_closes_all),
        with_fake(test_ucx_conn_life_open_after_the_stop_is_lost),
        with_fake(test_ucx_conn_life_outlives_its_creator_and_address),
        with_fake(test_ucx_conn_life_many_are_opened_and_closed),
        with_fake(test_ucx_conn_life_over_tcp_reuses_one_endpoint),
        with_fake(test_ucx_conn_life_spare_of_a_dead_peer_is_closed),
        with_fake(test_ucx_conn_life_reused_spare_reports_its_error),
        with_fake(test_ucx_conn_life_a_transfer_in_flight_keeps_its_endpoint),
        with_fake(test_ucx_conn_life_to_stock_gets_a_separate_endpoint),
        with_fake(test_ucx_conn_life_spares_are_limited),
    };
    return fake_run_group_tests_twice(tests);
}
