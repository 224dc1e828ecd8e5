#include "ucx_pair.h"

#include <sched.h>
#include <time.h>

static ucx_side_t here, there;

static void
open_pair(void)
{
    ucx_side_open(&here, "here", 1, 20.0);
    ucx_side_open(&there, "there", 1, 20.0);
}

static void
close_pair(void)
{
    ucx_side_close(&here);
    ucx_side_close(&there);
}

/* -- Connecting ------------------------------------------------------------
 */

static void
test_ucx_conn_both_ways(void **state)
{
    char transports[128];
    (void)state;
    open_pair();
    vnxi_ucx_conn_t *out = ucx_side_connect(&here, &there, 1);
    vnxi_ucx_conn_t *back = ucx_side_connect(&there, &here, 2);
    await_wired(out);
    await_wired(back);
    vnxi_ucx_conn_transports(out, transports, sizeof transports);
    assert_true(strlen(transports) > 0);
    end_conn(back);
    end_conn(out);
    close_pair();
    assert_int_equal(here.lost_count, 0);
}

static void
test_ucx_conn_knows_its_address(void **state)
{
    size_t len;
    (void)state;
    open_pair();
    const char *address = vnxi_ucx_address(there.ucx, &len);
    vnxi_ucx_conn_t *conn = ucx_side_connect(&here, &there, 1);
    assert_true(vnxi_ucx_conn_is_to(conn, address, len));
    assert_false(vnxi_ucx_conn_is_to(conn, address, len - 1));
    address = vnxi_ucx_address(here.ucx, &len);
    assert_false(vnxi_ucx_conn_is_to(conn, address, len));
    end_conn(conn);
    close_pair();
}

static void
test_ucx_conn_refuses_invalid_addresses(void **state)
{
    vnxi_ucx_conn_t *conn;
    vnx_error_t error;
    char *big = calloc(1, VNXI_UCX_ADDRESS_MAX + 1);
    (void)state;
    open_pair();
    assert_int_equal(ucx_open(here.ucx, big, 0, 1, &conn, &error),
                     VNX_ERR_MISMATCH);
    assert_int_equal(
        ucx_open(here.ucx, big, VNXI_UCX_ADDRESS_MAX + 1, 1, &conn, &error),
        VNX_ERR_MISMATCH);
    close_pair();
    free(big);
}

/* The agent behind an address is gone: that is noticed in the background. */
static void
test_ucx_conn_to_a_dead_agent_is_lost(void **state)
{
    vnx_error_t error;
    (void)state;
    open_pair();
    size_t len;
    const void *address = vnxi_ucx_address(there.ucx, &len);
    void *copy = malloc(len);
    memcpy(copy, address, len);
    ucx_side_close(&there);

    vnxi_ucx_conn_t *conn = NULL;
    assert_int_equal(ucx_open(here.ucx, copy, len, 77, &conn, &error), VNX_OK);
    ucx_side_await_lost(&here);
    assert_int_equal(here.lost_cookie, 77);
    assert_int_equal(vnxi_ucx_conn_send_notif(conn, "x", 1, &error),
                     VNX_ERR_REMOTE_DISCONNECT);
    assert_non_null(strstr(error.cause, "UCX"));
    end_conn(conn);
    ucx_side_close(&here);
    assert_int_equal(here.lost_count, 1);
    free(copy);
}

/* -- Notifications ---------------------------------------------------------
 */

static void
check_message(const ucx_message_t *message, const char *sender,
              const void *bytes, size_t len)
{
    assert_string_equal(message->sender, sender);
    assert_int_equal(message->len, len);
    assert_memory_equal(message->bytes, bytes, len);
}

static void
test_ucx_notif_of_any_size_in_order(void **state)
{
    static const size_t sizes[] = {0, 1, 100, 9000, 300000, 2, 5000000, 3};
    size_t count = sizeof sizes / sizeof sizes[0];
    unsigned char *bytes = malloc(5000000);
    (void)state;
    open_pair();
    for (size_t i = 0; i < 5000000; i++) {
        bytes[i] = (unsigned char)(i * 2654435761u >> 13);
    }
    vnxi_ucx_conn_t *conn = ucx_side_connect(&here, &there, 1);
    for (size_t i = 0; i < count; i++) {
        send_to(conn, bytes, sizes[i]);
    }
    ucx_side_await_messages(&there, count);
    for (size_t i = 0; i < count; i++) {
        check_message(&there.messages[i], "here", bytes, sizes[i]);
    }
    end_conn(conn);
    close_pair();
    free(bytes);
}

#define MESSAGES 50u /* a connection */

typedef struct numbered {
    unsigned conn, number;
} numbered_t;

static void
send_numbered(unsigned number, bool wired)
{
    vnxi_ucx_conn_t *conn = ucx_side_connect(&here, &there, number);
    if (wired) {
        await_wired(conn);
    }
    for (unsigned i = 0; i < MESSAGES; i++) {
        const numbered_t message = {number, i};
        send_to(conn, &message, sizeof message);
    }
    end_conn(conn);
}

/* Return whether all messages of that connection come within `ns`; those that
 * do are in order. */
static bool
all_come(unsigned number, uint64_t ns)
{
    uint64_t end = vnxi_clock_deadline(ns);
    unsigned came;

    do {
        const struct timespec ms = {.tv_nsec = 1000000};
        nanosleep(&ms, NULL);
        came = 0;
        pthread_mutex_lock(&there.lock);
        for (size_t i = 0; i < there.message_count; i++) {
            const numbered_t *message = (void *)there.messages[i].bytes;
            if (message->conn == number) {
                check_message(&there.messages[i], "here",
                              &(numbered_t){number, came}, sizeof *message);
                came++;
            }
        }
        pthread_mutex_unlock(&there.lock);
    } while (came < MESSAGES && vnxi_clock_ns() < end);
    return came == MESSAGES;
}

/* An endpoint that is closed waits for its connection for 1.5 s, and
 * 100 ms for the peer to read.  A busy machine may need longer, and then the
 * messages are lost; so of many tries, some have to succeed. */
static void
expect_arrivals(bool wired, unsigned count)
{
    open_pair();
    for (unsigned number = 0; count > 0; number++) {
        assert_true(number < 50);
        send_numbered(number, wired);
        count -= all_come(number, 2500000000);
    }
    close_pair();
}

/* Messages sent before the end arrive, even if no call waited for them. */
static void
test_ucx_notif_sent_before_the_end_arrives(void **state)
{
    (void)state;
    expect_arrivals(true, 5);
}

/* The connection is made meanwhile. */
static void
test_ucx_notif_sent_before_the_connection_arrives(void **state)
{
    (void)state;
    if (getenv("VLLM_NIXL_TEST_SLOWDOWN") != NULL) {
        print_message("skipped: an emulated machine is too slow\n");
        skip();
    }
    expect_arrivals(false, 5);
}

static void
test_ucx_notif_after_close_is_refused(void **state)
{
    vnx_error_t error;
    (void)state;
    open_pair();
    vnxi_ucx_conn_t *conn = ucx_side_connect(&here, &there, 1);
    vnxi_ucx_conn_close(conn);
    vnxi_ucx_conn_close(conn);
    assert_int_equal(vnxi_ucx_conn_send_notif(conn, "x", 1, &error),
                     VNX_ERR_REMOTE_DISCONNECT);
    vnxi_ucx_conn_release(conn);
    close_pair();
}

/* -- Keys ------------------------------------------------------------------
 */

static void
test_ucx_key_refuses_invalid_keys(void **state)
{
    unsigned char bytes[16] = {0};
    vnxi_ucx_key_t *key;
    vnx_error_t error;
    (void)state;
    open_pair();
    vnxi_ucx_conn_t *conn = ucx_side_connect(&here, &there, 1);
    for (size_t len = 0; len < 9; len++) {
        assert_int_equal(vnxi_ucx_key_create(conn, bytes, len, &key, &error),
                         VNX_ERR_MISMATCH);
    }
    bytes[8] = 200; /* no memory type */
    assert_int_equal(vnxi_ucx_key_create(conn, bytes, 16, &key, &error),
                     VNX_ERR_MISMATCH);
    end_conn(conn);
    close_pair();
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ucx_conn_both_ways),
        cmocka_unit_test(test_ucx_conn_knows_its_address),
        cmocka_unit_test(test_ucx_conn_refuses_invalid_addresses),
        cmocka_unit_test(test_ucx_conn_to_a_dead_agent_is_lost),
        cmocka_unit_test(test_ucx_notif_of_any_size_in_order),
        cmocka_unit_test(test_ucx_notif_sent_before_the_end_arrives),
        cmocka_unit_test(test_ucx_notif_sent_before_the_connection_arrives),
        cmocka_unit_test(test_ucx_notif_after_close_is_refused),
        cmocka_unit_test(test_ucx_key_refuses_invalid_keys),
    };
    return ucx_run_group_tests(tests);
}
