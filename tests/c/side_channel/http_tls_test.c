/* TLS of the HTTP side channel: the errors at each end, and no data before the
 * handshake is complete. */
#include "http_peer.h"
#include "tls_channels.h"

#include <openssl/err.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "net/tls.h"
#include "side_channel/channel.h"

static void
test_http_tls_carries_every_size(void **state)
{
    (void)state;
    expect_tls_carries_every_size(http_new, SECRET);
}

static void
test_http_tls_refuses_clients_without_the_secret(void **state)
{
    (void)state;
    vnx_side_channel_t *server = tls_server(http_new, "server.pem", SECRET, 0);
    vnx_side_channel_t *stranger = tls_client(http_new, "ca.pem", NULL, NULL);
    vnx_side_channel_t *other =
        tls_client(http_new, "ca.pem", NULL, SECRET "r");
    int port = channel_start(server, "x", 1);

    channel_expect_failure(stranger, port, 20000, VNX_ERR_NOT_ALLOWED,
                           "requires a shared secret");
    channel_expect_failure(other, port, 20000, VNX_ERR_NOT_ALLOWED,
                           "the shared secrets differ");
    assert_int_equal(channel_stats(server).served, 0);
    vnx_side_channel_free(server);
    vnx_side_channel_free(stranger);
    vnx_side_channel_free(other);
}

static void
test_http_tls_certificates_are_checked(void **state)
{
    (void)state;
    expect_tls_checks_certificates(http_new, SECRET);
}

static void
test_http_tls_mismatch_with_plain_is_reported(void **state)
{
    (void)state;
    vnx_side_channel_t *plain = http_new(NULL);
    vnx_side_channel_t *server = tls_server(http_new, "server.pem", NULL, 0);
    vnx_side_channel_t *client = tls_client(http_new, "ca.pem", NULL, NULL);
    int tls_port = channel_start(server, "metadata", 8);
    char reply[HTTP_REPLY_MAX];
    vnx_error_t error;
    void *got;
    size_t len;

    /* The alert is not a valid reply, or the connection ends first. */
    vnx_status_t status = vnx_side_channel_request(
        plain, "127.0.0.1", tls_port, 20000, &got, &len, &error);
    assert_true(status == VNX_ERR_MISMATCH || status == VNX_ERR_BACKEND);
    WAIT_UNTIL(channel_stats(server).refusals[VNX_SIDE_CHANNEL_REFUSED_TLS] ==
               1);
    http_ask(tls_port, HTTP_GET("/metadata") HTTP_LAST,
             sizeof(HTTP_GET("/metadata") HTTP_LAST) - 1, reply);
    assert_null(strstr(reply, "metadata"));
    channel_expect(client, tls_port, "metadata", 8);
    /* The plain server reads the ClientHello as an invalid request. */
    int plain_port = channel_start(plain, "x", 1);
    status = vnx_side_channel_request(client, "127.0.0.1", plain_port, 20000,
                                      &got, &len, &error);
    assert_true(status == VNX_ERR_MISMATCH || status == VNX_ERR_BACKEND);
    assert_non_null(strstr(error.cause, "TLS with 127.0.0.1:"));
    vnx_side_channel_free(plain);
    vnx_side_channel_free(server);
    vnx_side_channel_free(client);
}

static void
test_http_tls_half_handshakes_do_not_block_others(void **state)
{
    (void)state;
    expect_tls_half_handshakes_hold_nobody(http_new);
}

static void
test_http_tls_shutdown_during_a_handshake_leaks_nothing(void **state)
{
    (void)state;
    expect_tls_shutdown_leaves_nothing(http_new);
}

/* The program may use OpenSSL too, and would take them for its own. */
static void
test_http_tls_leaves_no_errors_of_openssl(void **state)
{
    (void)state;
    vnx_side_channel_t *server = tls_server(http_new, "server.pem", NULL, 0);
    vnx_side_channel_t *stranger =
        tls_client(http_new, "stranger.pem", NULL, NULL);
    vnx_side_channel_t *without = tls_client(http_new, "none.pem", NULL, NULL);
    int port = channel_start(server, "x", 1);

    channel_expect_failure(stranger, port, 20000, VNX_ERR_NOT_ALLOWED,
                           "not trusted");
    assert_int_equal(ERR_peek_error(), 0);
    channel_expect_failure(without, port, 20000, VNX_ERR_INVALID_PARAM,
                           "none.pem'");
    assert_int_equal(ERR_peek_error(), 0);
    vnx_side_channel_free(server);
    vnx_side_channel_free(stranger);
    vnx_side_channel_free(without);
}

/* -- Signals -------------------------------------------------------------- */

static atomic_int sigpipes;

static void
on_sigpipe(int number)
{
    (void)number;
    atomic_fetch_add(&sigpipes, 1);
}

static void *
shutdown_main(void *channel)
{
    vnx_side_channel_shutdown(channel);
    return NULL;
}

/* A client that keeps its connection.  The socket blocks. */
static void
keep_connection(int port, vnxi_stream_t *stream)
{
    static const char request[] = HTTP_GET("/health") "\r\n";
    char path[128], reply[HTTP_REPLY_MAX];
    size_t count;
    vnx_side_channel_options_t options = {.size = sizeof options,
                                          .tls = VNXI_TLS_CERTIFICATE,
                                          .tls_ca = in_folder("ca.pem", path)};

    *stream = (vnxi_stream_t){.fd = peer_connect(port)};
    assert_int_equal(vnxi_tls_client_open(stream, "localhost", &options),
                     VNX_OK);
    assert_int_equal(vnxi_tls_client_shake(stream), VNX_OK);
    assert_int_equal(
        vnxi_tls_client_send(stream, request, sizeof request - 1, &count),
        VNX_OK);
    assert_int_equal(vnxi_tls_client_recv(stream, reply, sizeof reply, &count),
                     VNX_OK);
}

/* The client's connection breaks after the listener was told to stop, and
 * before it does; a lock that it needs for another client keeps it from doing
 * so. */
static void
test_http_tls_stopping_raises_no_sigpipe(void **state)
{
    (void)state;
    struct sigaction noted = {.sa_handler = on_sigpipe}, before;
    vnx_side_channel_t *channel = tls_server(http_new, "server.pem", NULL, 0);
    vnx_side_channel_t *client = tls_client(http_new, "ca.pem", NULL, NULL);
    int port = channel_start(channel, "x", 1), fd;
    vnx_side_channel_request_params_t params = {.size = sizeof params,
                                                .host = "127.0.0.1",
                                                .port = port,
                                                .timeout_ms = 20000};
    vnxi_requests_t *requests;
    vnxi_stream_t kept;
    pthread_t thread;

    sigaction(SIGPIPE, &noted, &before);
    keep_connection(port, &kept);
    WAIT_UNTIL(channel_stats(channel).served == 1);
    vnxi_mutex_lock(&channel->blobs.lock);
    assert_int_equal(vnxi_requests_make(client, &params, 1, &requests, NULL),
                     VNX_OK);
    assert_int_equal(vnxi_requests_watch(requests, &fd, NULL), VNX_OK);
    uint64_t received = channel_stats(channel).bytes_received;
    while (channel_stats(channel).bytes_received == received) {
        vnxi_requests_step(requests);
    }
    struct pollfd wake = {.fd = channel->listener->loop.wake_fd,
                          .events = POLLIN};
    assert_int_equal(pthread_create(&thread, NULL, shutdown_main, channel), 0);
    assert_int_equal(poll(&wake, 1, 20000), 1);
    shutdown(kept.fd, SHUT_WR);
    peer_reset(kept.fd);
    kept.fd = -1;
    vnxi_mutex_unlock(&channel->blobs.lock);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_int_equal(atomic_load(&sigpipes), 0);
    sigaction(SIGPIPE, &before, NULL);
    vnxi_requests_free(requests);
    vnxi_tls_client_close(&kept);
    vnx_side_channel_free(client);
    vnx_side_channel_free(channel);
}

static void
test_http_tls_missing_files_are_named(void **state)
{
    (void)state;
    vnx_side_channel_t *server = tls_server(http_new, "none.pem", NULL, 0);
    vnx_side_channel_t *client = tls_client(http_new, "none.pem", NULL, NULL);
    vnx_error_t error;

    assert_int_equal(
        vnx_side_channel_start(server, NULL, 0, "x", 1, NULL, &error),
        VNX_ERR_INVALID_PARAM);
    assert_non_null(strstr(error.cause, "none.pem"));
    vnx_side_channel_free(server);
    server = tls_server(http_new, "server.pem", NULL, 0);
    int port = channel_start(server, "x", 1);
    channel_expect_failure(client, port, 20000, VNX_ERR_INVALID_PARAM,
                           "none.pem'");
    vnx_side_channel_free(server);
    vnx_side_channel_free(client);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_http_tls_carries_every_size),
        cmocka_unit_test(test_http_tls_refuses_clients_without_the_secret),
        cmocka_unit_test(test_http_tls_certificates_are_checked),
        cmocka_unit_test(test_http_tls_mismatch_with_plain_is_reported),
        cmocka_unit_test(test_http_tls_half_handshakes_do_not_block_others),
        cmocka_unit_test(
            test_http_tls_shutdown_during_a_handshake_leaks_nothing),
        cmocka_unit_test(test_http_tls_leaves_no_errors_of_openssl),
        cmocka_unit_test(test_http_tls_stopping_raises_no_sigpipe),
        cmocka_unit_test(test_http_tls_missing_files_are_named),
    };
    http_no_proxy();
    return cmocka_run_group_tests(tests, make_certificates,
                                  remove_certificates);
}
