/* The contract of vnx/side_channel.h, between two of our own and with an end
 * that is written from the bytes. */
#include "side_channel_attacks.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void
test_side_channel_exchanges_both_ways(void **state)
{
    (void)state;
    vnx_side_channel_t *prefill = channel_new(NULL);
    vnx_side_channel_t *decode = channel_new(NULL);
    int prefill_port = channel_start(prefill, "prefill", 7);
    int decode_port = channel_start(decode, "decode\0\xff", 8);

    assert_int_not_equal(prefill_port, decode_port);
    channel_expect(decode, prefill_port, "prefill", 7);
    channel_expect(prefill, decode_port, "decode\0\xff", 8);
    channel_expect(prefill, prefill_port, "prefill", 7);
    vnx_side_channel_free(prefill);
    vnx_side_channel_free(decode);
}

static void
test_side_channel_carries_every_size(void **state)
{
    (void)state;
    static const size_t sizes[] = {0,     1,     1036,      40000,
                                   65536, 65537, 10u << 20, 64u << 20};
    /* On a busy machine 64 MiB may take longer than the default. */
    const vnx_side_channel_options_t patient = {.size = sizeof patient,
                                                .client_timeout_ms = 60000};
    vnx_side_channel_t *channel = channel_new(&patient);

    channel_expect_sizes(channel, channel, sizes,
                         sizeof sizes / sizeof sizes[0]);
    vnx_side_channel_free(channel);
}

static void
test_side_channel_metadata_is_copied_and_may_be_null(void **state)
{
    (void)state;
    char data[] = "before";
    vnx_side_channel_t *channel = channel_new(NULL);
    int port = channel_start(channel, data, 6);

    memcpy(data, "after.", 6);
    channel_expect(channel, port, "before", 6);
    vnx_side_channel_shutdown(channel);
    port = channel_start(channel, NULL, 0);
    channel_expect(channel, port, "", 0);
    vnx_side_channel_free(channel);
}

static void
test_side_channel_server_sends_the_documented_bytes(void **state)
{
    (void)state;
    vnx_side_channel_t *channel = channel_new(NULL);
    int port = channel_start(channel, "metadata", 8);
    char got[64];

    int fd = peer_connect(port);
    peer_send(fd, PEER_REQUEST, PEER_REQUEST_LEN);
    assert_int_equal(peer_recv(fd, got, sizeof got), 12); /* then it closes */
    assert_memory_equal(got, "\0\0\0\010metadata", 12);
    close(fd);

    /* A client that is done sending says so: it is answered all the same. */
    fd = peer_connect(port);
    peer_send(fd, PEER_REQUEST, PEER_REQUEST_LEN);
    shutdown(fd, SHUT_WR);
    assert_int_equal(peer_recv(fd, got, sizeof got), 12);
    close(fd);
    vnx_side_channel_free(channel);
}

static void
test_side_channel_client_sends_the_documented_bytes(void **state)
{
    (void)state;
    vnx_side_channel_t *channel = channel_new(NULL);
    peer_server_t server = {.reply = "\0\0\0\010metadata", .reply_len = 12};

    peer_server_start(&server, peer_serve_reply);
    channel_expect(channel, server.port, "metadata", 8);
    peer_server_stop(&server);
    server.reply = "\0\0\0\0";
    server.reply_len = 4;
    peer_server_start(&server, peer_serve_reply);
    channel_expect(channel, server.port, "", 0);
    peer_server_stop(&server);
    vnx_side_channel_free(channel);
}

static void
test_side_channel_listens_on_ipv6_and_ipv4(void **state)
{
    (void)state;
    vnx_side_channel_t *channel = channel_new(NULL);
    int port = channel_start(channel, "x", 1);
    const char *hosts[] = {"127.0.0.1", "localhost", "::1"};
    size_t hosts_count = have_ipv6() ? 3 : 2;

    for (size_t i = 0; i < hosts_count; i++) {
        void *got;
        size_t len;
        assert_int_equal(vnx_side_channel_request(channel, hosts[i], port,
                                                  20000, &got, &len, NULL),
                         VNX_OK);
        assert_int_equal(len, 1);
        free(got);
    }
    vnx_side_channel_free(channel);
    if (hosts_count == 2) {
        print_message("this machine has no IPv6: only IPv4 was tried\n");
        skip();
    }
}

static void
test_side_channel_listens_on_the_host_given(void **state)
{
    (void)state;
    vnx_side_channel_t *channel = channel_new(NULL);
    void *got;
    size_t len;
    int port;

    assert_int_equal(
        vnx_side_channel_start(channel, "127.0.0.2", 0, "x", 1, &port, NULL),
        VNX_OK);
    channel_expect_failure(channel, port, 20000, VNX_ERR_BACKEND,
                           "connecting to 127.0.0.1: Connection refused");
    assert_int_equal(vnx_side_channel_request(channel, "127.0.0.2", port,
                                              20000, &got, &len, NULL),
                     VNX_OK);
    free(got);
    vnx_side_channel_shutdown(channel);

    /* A name with two addresses: one port for both. */
    assert_int_equal(
        vnx_side_channel_start(channel, "localhost", 0, "x", 1, &port, NULL),
        VNX_OK);
    channel_expect(channel, port, "x", 1);
    if (have_ipv6()) {
        assert_int_equal(vnx_side_channel_request(channel, "::1", port, 20000,
                                                  &got, &len, NULL),
                         VNX_OK);
        free(got);
    }
    vnx_side_channel_free(channel);
}

static void
test_side_channel_running_and_port_report_the_state(void **state)
{
    (void)state;
    vnx_side_channel_t *channel = channel_new(NULL);

    assert_false(vnx_side_channel_is_running(channel));
    assert_int_equal(vnx_side_channel_port(channel), 0);
    int port = channel_start(channel, "x", 1);
    assert_true(vnx_side_channel_is_running(channel));
    assert_int_equal(vnx_side_channel_port(channel), port);
    vnx_side_channel_shutdown(channel);
    assert_false(vnx_side_channel_is_running(channel));
    assert_int_equal(vnx_side_channel_port(channel), 0);
    vnx_side_channel_free(channel);
    vnx_side_channel_free(NULL);
}

static void
test_side_channel_refuses_a_second_start(void **state)
{
    (void)state;
    vnx_side_channel_t *channel = channel_new(NULL);
    vnx_error_t error;
    int port = channel_start(channel, "first", 5), other = -7;

    assert_int_equal(
        vnx_side_channel_start(channel, NULL, 0, "second", 6, &other, &error),
        VNX_ERR_NOT_ALLOWED);
    assert_non_null(strstr(error.cause, "already running"));
    assert_int_equal(other, -7);
    channel_expect(channel, port, "first", 5);
    vnx_side_channel_free(channel);
}

static void
test_side_channel_start_names_the_address_in_use(void **state)
{
    (void)state;
    vnx_side_channel_t *one = channel_new(NULL), *two = channel_new(NULL);
    vnx_error_t error;
    char line[512], endpoint[32];
    int port = channel_start(one, "x", 1);

    assert_int_equal(
        vnx_side_channel_start(two, "127.0.0.1", port, "y", 1, NULL, &error),
        VNX_ERR_BACKEND);
    vnx_error_format(&error, line, sizeof line);
    snprintf(endpoint, sizeof endpoint, "'127.0.0.1:%d'", port);
    assert_non_null(strstr(line, endpoint));
    assert_non_null(strstr(line, "vnx_side_channel_start"));
    assert_non_null(strstr(line, strerror(EADDRINUSE)));
    assert_false(vnx_side_channel_is_running(two));
    assert_int_equal(
        vnx_side_channel_start(two, NULL, port, "y", 1, NULL, &error),
        VNX_ERR_BACKEND);
    assert_int_equal(
        vnx_side_channel_start(two, "192.0.2.1", 0, "y", 1, NULL, &error),
        VNX_ERR_BACKEND); /* an address of no interface */

    vnx_side_channel_free(one);
    assert_int_equal(
        vnx_side_channel_start(two, NULL, port, "y", 1, NULL, &error), VNX_OK);
    channel_expect(two, port, "y", 1);
    vnx_side_channel_free(two);
}

static void
test_side_channel_refuses_wrong_parameters(void **state)
{
    (void)state;
    vnx_side_channel_options_t options = {.size = sizeof options,
                                          .max_frame = 8};
    vnx_side_channel_t *channel = channel_new(&options);
    vnx_error_t error;
    void *got = NULL;
    size_t len;
#define START(host, port, data, length) \
    vnx_side_channel_start(channel, host, port, data, length, NULL, &error)
#define REQUEST(host, port, timeout_ms)                                   \
    vnx_side_channel_request(channel, host, port, timeout_ms, &got, &len, \
                             &error)

    assert_int_equal(START(NULL, -1, "x", 1), VNX_ERR_INVALID_PARAM);
    assert_int_equal(START(NULL, 65536, "x", 1), VNX_ERR_INVALID_PARAM);
    assert_int_equal(START(NULL, 0, "123456789", 9), VNX_ERR_INVALID_PARAM);
    assert_non_null(strstr(error.cause, "max_frame (8)"));
    assert_int_equal(START(NULL, 0, NULL, 1), VNX_ERR_INVALID_PARAM);
    assert_int_equal(REQUEST(NULL, 1, 1), VNX_ERR_INVALID_PARAM);
    assert_int_equal(REQUEST("", 1, 1), VNX_ERR_INVALID_PARAM);
    assert_int_equal(REQUEST("127.0.0.1", 0, 1), VNX_ERR_INVALID_PARAM);
    assert_int_equal(REQUEST("127.0.0.1", 65536, 1), VNX_ERR_INVALID_PARAM);
    assert_int_equal(REQUEST("127.0.0.1", 1, 0), VNX_ERR_INVALID_PARAM);
    assert_int_equal(REQUEST("127.0.0.1", 1, -5), VNX_ERR_INVALID_PARAM);
    assert_null(got);
    assert_int_equal(START("", 0, "12345678", 8), VNX_OK);
    channel_expect(channel, vnx_side_channel_port(channel), "12345678", 8);
    vnx_side_channel_free(channel);
#undef START
#undef REQUEST
}

static void
test_side_channel_create_reads_its_options(void **state)
{
    (void)state;
    vnx_side_channel_t *channel = (void *)state;
    vnx_side_channel_options_t options = {0};
    vnx_error_t error;

    assert_int_equal(vnx_side_channel_create(VNX_SIDE_CHANNEL_TCP, &options,
                                             &channel, &error),
                     VNX_ERR_INVALID_PARAM);
    options.size = sizeof options + 8;
    assert_int_equal(vnx_side_channel_create(VNX_SIDE_CHANNEL_TCP, &options,
                                             &channel, &error),
                     VNX_ERR_INVALID_PARAM);
    options.size = sizeof options;
    assert_int_equal(vnx_side_channel_create((vnx_side_channel_kind_t)99,
                                             &options, &channel, &error),
                     VNX_ERR_NOT_SUPPORTED);
    assert_ptr_equal(channel, state);

    /* A caller that was compiled with fewer options. */
    options.size = offsetof(vnx_side_channel_options_t, max_connections);
    options.max_frame = 4;
    channel = channel_new(&options);
    assert_int_equal(
        vnx_side_channel_start(channel, NULL, 0, "12345", 5, NULL, &error),
        VNX_ERR_INVALID_PARAM);
    vnx_side_channel_free(channel);
}

static void
test_side_channel_dead_port_is_refused_at_once(void **state)
{
    (void)state;
    vnx_side_channel_t *channel = channel_new(NULL);
    vnx_error_t error;
    char line[512], endpoint[32];
    void *got;
    size_t len;
    int port = channel_start(channel, "x", 1);

    vnx_side_channel_shutdown(channel);
    channel_expect_failure(channel, port, 20000, VNX_ERR_BACKEND,
                           "Connection refused");
    assert_int_equal(vnx_side_channel_request(channel, "localhost", port,
                                              20000, &got, &len, &error),
                     VNX_ERR_BACKEND);
    vnx_error_format(&error, line, sizeof line);
    snprintf(endpoint, sizeof endpoint, "peer 'localhost:%d'", port);
    assert_non_null(strstr(line, endpoint));
    assert_non_null(strstr(line, "vnx_side_channel_request"));
    assert_non_null(strstr(line, "connecting to"));
    assert_non_null(strstr(line, "ms)"));
    vnx_side_channel_free(channel);
}

static void
test_side_channel_tries_every_address_of_a_name(void **state)
{
    (void)state;
    vnx_side_channel_t *channel = channel_new(NULL);
    void *got;
    size_t len;
    int port;

    if (!have_ipv6()) {
        print_message("this machine has no IPv6\n");
        vnx_side_channel_free(channel);
        skip();
    }
    /* "localhost" is first 127.0.0.1, which has no listener. */
    assert_int_equal(
        vnx_side_channel_start(channel, "::1", 0, "x", 1, &port, NULL),
        VNX_OK);
    assert_int_equal(vnx_side_channel_request(channel, "localhost", port,
                                              20000, &got, &len, NULL),
                     VNX_OK);
    free(got);
    vnx_side_channel_free(channel);
}

static void
test_side_channel_stats_count_events(void **state)
{
    (void)state;
    vnx_side_channel_t *channel = channel_new(NULL);
    int port = channel_start(channel, "x", 1);

    for (int i = 0; i < 5; i++) {
        channel_expect(channel, port, "x", 1);
    }
    int garbage = peer_connect(port);
    peer_send(garbage, "\0\0\0\014GET_METADATE", 16);
    peer_expect_end(garbage);
    int silent = peer_connect(port);
    WAIT_UNTIL(channel_stats(channel).accepted == 7);
    WAIT_UNTIL(channel_stats(channel).open == 1);
    vnx_side_channel_stats_t stats = channel_stats(channel);
    assert_int_equal(stats.accepted, 7);
    assert_int_equal(stats.refused, 1);
    assert_int_equal(stats.timed_out, 0);
    assert_int_equal(stats.evicted, 0);
    vnx_side_channel_shutdown(channel);
    peer_expect_end(silent);
    assert_int_equal(channel_stats(channel).open, 0);
    assert_int_equal(channel_stats(channel).served, 5); /* they stay */
    vnx_side_channel_free(channel);
}

static void
test_side_channel_request_can_be_interrupted(void **state)
{
    (void)state;
    expect_request_is_interrupted(channel_new);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_side_channel_exchanges_both_ways),
        cmocka_unit_test(test_side_channel_carries_every_size),
        cmocka_unit_test(test_side_channel_metadata_is_copied_and_may_be_null),
        cmocka_unit_test(test_side_channel_server_sends_the_documented_bytes),
        cmocka_unit_test(test_side_channel_client_sends_the_documented_bytes),
        cmocka_unit_test(test_side_channel_listens_on_ipv6_and_ipv4),
        cmocka_unit_test(test_side_channel_listens_on_the_host_given),
        cmocka_unit_test(test_side_channel_running_and_port_report_the_state),
        cmocka_unit_test(test_side_channel_refuses_a_second_start),
        cmocka_unit_test(test_side_channel_start_names_the_address_in_use),
        cmocka_unit_test(test_side_channel_refuses_wrong_parameters),
        cmocka_unit_test(test_side_channel_create_reads_its_options),
        cmocka_unit_test(test_side_channel_dead_port_is_refused_at_once),
        cmocka_unit_test(test_side_channel_tries_every_address_of_a_name),
        cmocka_unit_test(test_side_channel_stats_count_events),
        cmocka_unit_test(test_side_channel_request_can_be_interrupted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
