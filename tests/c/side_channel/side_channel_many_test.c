/* Many concurrent requests, retries, and races between addresses. */
#include "side_channel_peer.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "net/connect.h"
#include "side_channel/side_channel.h"

#define COUNT 200

static vnx_side_channel_request_params_t
request_to(int port, int timeout_ms)
{
    return (vnx_side_channel_request_params_t){
        .size = sizeof(vnx_side_channel_request_params_t),
        .host = "127.0.0.1",
        .port = port,
        .timeout_ms = timeout_ms};
}

static void
test_many_requests_have_separate_answers(void **state)
{
    (void)state;
    static vnx_side_channel_request_params_t params[COUNT];
    static vnx_side_channel_answer_t answers[COUNT];
    vnx_side_channel_t *channel = channel_new(NULL);
    int port = channel_start(channel, "metadata", 8);

    for (int i = 0; i < COUNT; i++) {
        params[i] = request_to(i % 3 == 2 ? 1 : port, 20000);
        if (i % 3 == 1) {
            params[i].key = "none";
            params[i].key_length = 4;
        }
    }
    assert_int_equal(
        vnx_side_channel_request_many(channel, params, COUNT, answers, NULL),
        VNX_OK);
    for (int i = 0; i < COUNT; i++) {
        static const vnx_status_t expected[] = {VNX_OK, VNX_ERR_NOT_FOUND,
                                                VNX_ERR_BACKEND};
        assert_int_equal(answers[i].status, expected[i % 3]);
        if (i % 3 == 0) {
            assert_int_equal(answers[i].length, 8);
            assert_memory_equal(answers[i].metadata, "metadata", 8);
        } else {
            assert_null(answers[i].metadata);
            assert_int_equal(answers[i].error.status, expected[i % 3]);
        }
        free(answers[i].metadata);
    }
    assert_int_equal(
        vnx_side_channel_request_many(channel, params, 0, answers, NULL),
        VNX_OK);
    vnx_side_channel_free(channel);
}

static void
test_many_wrong_parameters_send_nothing_and_name_the_row(void **state)
{
    (void)state;
    vnx_side_channel_t *channel = channel_new(NULL);
    int port = channel_start(channel, "x", 1);
    vnx_side_channel_request_params_t params[] = {
        request_to(port, 20000), request_to(port, 20000), request_to(0, 1)};
    vnx_side_channel_answer_t answers[3];
    vnx_error_t error;

    assert_int_equal(
        vnx_side_channel_request_many(channel, params, 3, answers, &error),
        VNX_ERR_INVALID_PARAM);
    assert_int_equal(error.row, 2);
    assert_int_equal(channel_stats(channel).accepted, 0);
    vnx_side_channel_free(channel);
}

static void
test_many_silent_peer_does_not_delay_others(void **state)
{
    (void)state;
    vnx_side_channel_t *channel = channel_new(NULL);
    peer_server_t server = {0};
    int port = channel_start(channel, "x", 1);
    vnx_side_channel_answer_t answers[3];

    peer_server_start(&server, peer_serve_silence);
    vnx_side_channel_request_params_t params[] = {
        request_to(server.port, 1000), request_to(port, 20000),
        request_to(server.port, 900)};
    uint64_t start = vnxi_clock_ns();
    assert_int_equal(
        vnx_side_channel_request_many(channel, params, 3, answers, NULL),
        VNX_OK);
    assert_true(vnxi_clock_ns() - start < vnx_test_limit(10));
    assert_int_equal(answers[0].status, VNX_ERR_TIMEOUT);
    assert_int_equal(answers[1].status, VNX_OK);
    assert_int_equal(answers[2].status, VNX_ERR_TIMEOUT);
    assert_non_null(strstr(answers[0].error.cause, "receiving from"));
    free(answers[1].metadata);
    peer_server_stop(&server);
    vnx_side_channel_free(channel);
}

static void
test_many_can_be_driven_by_the_callers_loop(void **state)
{
    (void)state;
    vnx_side_channel_t *channel = channel_new(NULL);
    peer_server_t server = {0};
    int port = channel_start(channel, "x", 1), fd = -1;
    vnxi_requests_t *requests;
    vnx_side_channel_answer_t answers[3];

    peer_server_start(&server, peer_serve_silence);
    vnx_side_channel_request_params_t params[] = {request_to(port, 20000),
                                                  request_to(server.port, 100),
                                                  request_to(port, 20000)};
    params[2].retries = 3;
    assert_int_equal(vnxi_requests_make(channel, params, 3, &requests, NULL),
                     VNX_OK);
    assert_int_equal(vnxi_requests_watch(requests, &fd, NULL), VNX_OK);
    while (vnxi_requests_step(requests) > 0) {
        struct pollfd entry = {.fd = fd, .events = POLLIN};
        assert_int_equal(poll(&entry, 1, 20000), 1);
    }
    for (int i = 0; i < 3; i++) {
        vnxi_requests_take(requests, (size_t)i, &answers[i]);
        assert_int_equal(answers[i].status, i == 1 ? VNX_ERR_TIMEOUT : VNX_OK);
        free(answers[i].metadata);
    }
    vnxi_requests_free(requests);
    peer_server_stop(&server);
    vnx_side_channel_free(channel);
}

static void
test_many_can_be_cancelled_at_any_time(void **state)
{
    (void)state;
    size_t fds = open_fds();
    vnx_side_channel_t *channel = channel_new(NULL);
    peer_server_t server = {0};
    vnxi_requests_t *requests;
    int fd;

    peer_server_start(&server, peer_serve_silence);
    vnx_side_channel_request_params_t params[] = {
        request_to(server.port, 60000), request_to(server.port, 60000)};
    assert_int_equal(vnxi_requests_make(channel, params, 2, &requests, NULL),
                     VNX_OK);
    vnxi_requests_free(requests); /* not begun */
    assert_int_equal(vnxi_requests_make(channel, params, 2, &requests, NULL),
                     VNX_OK);
    assert_int_equal(vnxi_requests_watch(requests, &fd, NULL), VNX_OK);
    vnx_side_channel_free(channel); /* the requests holds it */
    assert_int_equal(vnxi_requests_step(requests), 2);
    vnxi_requests_free(requests);
    vnxi_requests_free(NULL);
    peer_server_stop(&server);
    assert_int_equal(open_fds(), fds);
}

/* -- Retries -------------------------------------------------------------- */

/* Refuses the first two requests, then answers. */
static void
serve_third(peer_server_t *server, int client)
{
    static int come;

    if (++come % 3 == 0) {
        peer_serve_reply(server, client);
    }
}

static void
test_many_retries_after_a_broken_connection(void **state)
{
    (void)state;
    vnx_side_channel_t *channel = channel_new(NULL);
    peer_server_t server = {.reply = "\0\0\0\1x", .reply_len = 5};
    void *got;
    size_t len;
    vnx_error_t error;

    peer_server_start(&server, serve_third);
    vnx_side_channel_request_params_t params = request_to(server.port, 20000);
    params.retries = 1;
    params.backoff_ms = 1;
    assert_int_equal(
        vnx_side_channel_request_with(channel, &params, &got, &len, &error),
        VNX_ERR_BACKEND); /* the second failed too */
    params.retries = 2;
    assert_int_equal(
        vnx_side_channel_request_with(channel, &params, &got, &len, &error),
        VNX_OK); /* the third request */
    free(got);
    params.retries = VNX_SIDE_CHANNEL_RETRY_ALWAYS;
    assert_int_equal(
        vnx_side_channel_request_with(channel, &params, &got, &len, &error),
        VNX_OK);
    free(got);
    peer_server_stop(&server);
    vnx_side_channel_free(channel);
}

static void
test_many_retries_end_at_the_deadline_with_the_cause(void **state)
{
    (void)state;
    vnx_side_channel_t *channel = channel_new(NULL);
    vnx_side_channel_request_params_t params = request_to(1, 1000);
    void *got;
    size_t len;
    vnx_error_t error;

    params.retries = VNX_SIDE_CHANNEL_RETRY_ALWAYS;
    params.backoff_ms = 1;
    uint64_t start = vnxi_clock_ns();
    assert_int_equal(
        vnx_side_channel_request_with(channel, &params, &got, &len, &error),
        VNX_ERR_BACKEND);
    assert_true(vnxi_clock_ns() - start < vnx_test_limit(10));
    assert_non_null(strstr(error.cause, "Connection refused"));
    vnx_side_channel_free(channel);
}

/* -- Races between addresses ---------------------------------------------- */

static vnxi_addresses_t
addresses_of(const char *const *texts, size_t count, int port)
{
    vnxi_addresses_t all = {.count = count};

    for (size_t i = 0; i < count; i++) {
        vnxi_addresses_t one;
        assert_true(vnxi_address_parse(texts[i], &one));
        vnxi_address_set_port(&one.list[0], port);
        all.list[i] = one.list[0];
    }
    return all;
}

/* Run it to its end; VNX_OK or the failure. */
static vnx_status_t
run(vnxi_dial_t *dial, int *fd_p)
{
    for (;;) {
        uint64_t now = vnxi_clock_ns(), wake;
        struct pollfd entry;
        vnx_status_t status = vnxi_dial_step(dial, now, fd_p);
        if (status != VNX_IN_PROG) {
            return status;
        }
        vnxi_dial_wait(dial, &entry.fd, &entry.events, &wake);
        uint64_t ms = wake > now ? (wake - now) / 1000000 + 1 : 0;
        poll(&entry, 1, ms > 10000 ? 10000 : (int)ms);
    }
}

static void
test_many_families_are_tried_in_turn(void **state)
{
    (void)state;
    static const char *const given[] = {"::1", "::2", "::3", "127.0.0.1",
                                        "127.0.0.2"};
    static const char *const order[] = {"::1", "127.0.0.1", "::2", "127.0.0.2",
                                        "::3"};
    vnxi_addresses_t all = addresses_of(given, 5, 1);
    vnxi_dial_t dial;

    vnxi_dial_init(&dial, NULL, 0, 1000000);
    vnxi_dial_addresses(&dial, &all, 0);
    assert_int_equal(dial.addresses.count, 5);
    for (int i = 0; i < 5; i++) {
        char text[VNXI_ADDRESS_TEXT];
        vnxi_address_text(&dial.addresses.list[i], text);
        assert_string_equal(text, order[i]);
    }
    vnxi_dial_fini(&dial);
}

static void
test_many_tries_the_next_address_after_a_refusal(void **state)
{
    (void)state;
    static const char *const texts[] = {"127.0.0.2", "127.0.0.3", "127.0.0.1"};
    vnx_side_channel_t *channel = channel_new(NULL);
    vnxi_dial_t dial;
    size_t fds;
    int port, fd = -1;

    assert_int_equal(
        vnx_side_channel_start(channel, "127.0.0.1", 0, "x", 1, &port, NULL),
        VNX_OK);
    fds = open_fds();
    vnxi_addresses_t all = addresses_of(texts, 3, port);
    vnxi_dial_init(&dial, NULL, 0, vnxi_clock_deadline(20000000000u));
    vnxi_dial_addresses(&dial, &all, vnxi_clock_ns());
    assert_int_equal(run(&dial, &fd), VNX_OK);
    assert_int_equal(dial.last, 2);
    close(fd);
    all.count = 2;
    vnxi_dial_init(&dial, NULL, 0, vnxi_clock_deadline(20000000000u));
    vnxi_dial_addresses(&dial, &all, vnxi_clock_ns());
    assert_int_equal(run(&dial, &fd), VNX_ERR_BACKEND);
    assert_non_null(strstr(dial.reason, strerror(ECONNREFUSED)));
    vnxi_dial_fini(&dial);
    vnxi_dial_fini(&dial);
    WAIT_UNTIL(open_fds() == fds);
    vnx_side_channel_free(channel);
}

/* A listening socket with a full queue: connections get no answer. */
static int
deaf_socket(const char *address, int *port_p, int *fillers, size_t count)
{
    vnxi_addresses_t one = addresses_of(&address, 1, 0);
    vnxi_address_t *bound = &one.list[0];
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    assert_int_equal(bind(fd, (void *)&bound->addr, bound->len), 0);
    assert_int_equal(listen(fd, 0), 0);
    assert_int_equal(getsockname(fd, (void *)&bound->addr, &bound->len), 0);
    *port_p = vnxi_address_port(bound);
    for (size_t i = 0; i < count; i++) {
        fillers[i] =
            socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        (void)!connect(fillers[i], (void *)&bound->addr, bound->len);
    }
    WAIT_UNTIL(peer_count_waiting(fd) > 0); /* more than listen() allows */
    return fd;
}

static void
close_deaf(int deaf, const int *fillers, size_t count)
{
    for (size_t i = 0; deaf >= 0 && i < count; i++) {
        close(fillers[i]);
    }
    if (deaf >= 0) {
        close(deaf);
    }
}

static void
test_many_silent_address_is_overtaken(void **state)
{
    (void)state;
    static const char *const texts[] = {"127.0.0.2", "127.0.0.1"};
    vnx_side_channel_t *channel = channel_new(NULL);
    vnxi_dial_t dial;
    int fillers[4], port, deaf = -1, fd = -1;
    vnx_status_t status = VNX_ERR_BACKEND;

    /* Another program may use the same port number on 127.0.0.1. */
    for (int tries = 0; status != VNX_OK; tries++) {
        assert_int_not_equal(tries, 100);
        close_deaf(deaf, fillers, 4);
        deaf = deaf_socket("127.0.0.2", &port, fillers, 4);
        status = vnx_side_channel_start(channel, "127.0.0.1", port, "x", 1,
                                        NULL, NULL);
    }
    vnxi_addresses_t all = addresses_of(texts, 2, port);
    uint64_t start = vnxi_clock_ns();
    vnxi_dial_init(&dial, NULL, 0, vnxi_clock_deadline(20000000000u));
    vnxi_dial_addresses(&dial, &all, start);
    assert_int_equal(run(&dial, &fd), VNX_OK);
    assert_int_equal(dial.last, 1);
    assert_true(vnxi_clock_ns() - start >= 250000000);
    close(fd);
    close_deaf(deaf, fillers, 4);
    vnx_side_channel_free(channel);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_many_requests_have_separate_answers),
        cmocka_unit_test(
            test_many_wrong_parameters_send_nothing_and_name_the_row),
        cmocka_unit_test(test_many_silent_peer_does_not_delay_others),
        cmocka_unit_test(test_many_can_be_driven_by_the_callers_loop),
        cmocka_unit_test(test_many_can_be_cancelled_at_any_time),
        cmocka_unit_test(test_many_retries_after_a_broken_connection),
        cmocka_unit_test(test_many_retries_end_at_the_deadline_with_the_cause),
        cmocka_unit_test(test_many_families_are_tried_in_turn),
        cmocka_unit_test(test_many_tries_the_next_address_after_a_refusal),
        cmocka_unit_test(test_many_silent_address_is_overtaken),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
