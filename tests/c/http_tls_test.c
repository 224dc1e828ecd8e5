/* TLS of the HTTP side channel: what each end is told, and what is not said
 * before it is up. */
#include "certificates.h"
#include "http_peer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static vnx_side_channel_t *
tls_server(const char *certificate, const char *secret, uint32_t timeout_ms)
{
    char paths[2][128];
    vnx_side_channel_options_t options =
        server_options(certificate, secret, paths);
    options.client_timeout_ms = timeout_ms;
    return http_new(&options);
}

static vnx_side_channel_t *
tls_client(const char *ca, const char *name, const char *secret)
{
    char path[128];
    vnx_side_channel_options_t options =
        client_options(ca, name, secret, path);
    return http_new(&options);
}

static void
test_http_tls_carries_every_size(void **state)
{
    (void)state;
    static const size_t sizes[] = {0, 1, 40000, 8u << 20};
    vnx_side_channel_t *server = tls_server("server.pem", SECRET, 0);
    vnx_side_channel_t *client = tls_client("ca.pem", NULL, SECRET);

    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        unsigned char *data = pattern(sizes[i], (unsigned)i);
        int port = channel_start(server, data, sizes[i]);
        channel_expect(client, port, data, sizes[i]);
        channel_expect(client, port, data, sizes[i]);
        vnx_side_channel_shutdown(server);
        free(data);
    }
    vnx_side_channel_free(server);
    vnx_side_channel_free(client);
}

static void
test_http_tls_keeps_out_who_does_not_know_the_secret(void **state)
{
    (void)state;
    vnx_side_channel_t *server = tls_server("server.pem", SECRET, 0);
    vnx_side_channel_t *stranger = tls_client("ca.pem", NULL, NULL);
    vnx_side_channel_t *other = tls_client("ca.pem", NULL, SECRET "r");
    int port = channel_start(server, "x", 1);

    channel_expect_failure(stranger, port, 20000, VNX_ERR_NOT_ALLOWED,
                           "wants a shared secret");
    channel_expect_failure(other, port, 20000, VNX_ERR_NOT_ALLOWED,
                           "the shared secrets differ");
    assert_int_equal(channel_stats(server).served, 0);
    vnx_side_channel_free(server);
    vnx_side_channel_free(stranger);
    vnx_side_channel_free(other);
}

/* What a client with `ca` and `name` is told of `certificate`. */
static void
expect_told(const char *certificate, const char *ca, const char *name,
            const char *text)
{
    vnx_side_channel_t *server = tls_server(certificate, NULL, 0);
    vnx_side_channel_t *client = tls_client(ca, name, SECRET);
    int port = channel_start(server, "x", 1);

    channel_expect_failure(client, port, 20000, VNX_ERR_NOT_ALLOWED, text);
    WAIT_UNTIL(channel_stats(server).open == 0);
    assert_int_equal(channel_stats(server).served, 0);
    assert_int_equal(channel_stats(server).bytes_received, 0); /* no token */
    vnx_side_channel_free(server);
    vnx_side_channel_free(client);
}

static void
test_http_tls_certificates_are_checked(void **state)
{
    (void)state;
    expect_told("expired.pem", "ca.pem", NULL, "expired");
    expect_told("other.pem", "ca.pem", NULL, "match");
    expect_told("server.pem", "ca.pem", "other.test", "match");
    expect_told("stranger.pem", "ca.pem", NULL, "issuer");
    expect_told("server.pem", "nobody.pem", NULL, "issuer");

    /* The name that is expected need not be the one that is asked. */
    vnx_side_channel_t *server = tls_server("other.pem", NULL, 0);
    vnx_side_channel_t *client = tls_client("ca.pem", "other.test", NULL);
    int port = channel_start(server, "x", 1);
    channel_expect(client, port, "x", 1);
    vnx_side_channel_free(server);
    vnx_side_channel_free(client);
}

static void
test_http_tls_to_plain_and_plain_to_tls_are_told(void **state)
{
    (void)state;
    vnx_side_channel_t *plain = http_new(NULL);
    vnx_side_channel_t *server = tls_server("server.pem", NULL, 300);
    vnx_side_channel_t *client = tls_client("ca.pem", NULL, NULL);
    int tls_port = channel_start(server, "metadata", 8);
    char reply[HTTP_REPLY_MAX];
    vnx_error_t error;
    void *got;
    size_t len;

    /* An alert is no reply of the protocol, or the end comes first. */
    vnx_status_t status = vnx_side_channel_request(
        plain, "127.0.0.1", tls_port, 20000, &got, &len, &error);
    assert_true(status == VNX_ERR_MISMATCH || status == VNX_ERR_BACKEND);
    WAIT_UNTIL(channel_stats(server).refusals[VNX_SIDE_CHANNEL_REFUSED_TLS] ==
               1);
    http_ask(tls_port, HTTP_GET("/metadata") HTTP_LAST,
             sizeof(HTTP_GET("/metadata") HTTP_LAST) - 1, reply);
    assert_null(strstr(reply, "metadata"));
    channel_expect(client, tls_port, "metadata", 8);
    /* The plain server takes the hello for a request of no protocol. */
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
test_http_tls_half_handshakes_hold_nobody(void **state)
{
    (void)state;
    vnx_side_channel_t *server = tls_server("server.pem", NULL, 300);
    vnx_side_channel_t *client = tls_client("ca.pem", NULL, NULL);
    int port = channel_start(server, "x", 1);
    peer_server_t silent = {0};
    int fds[40];

    for (int i = 0; i < 40; i++) {
        fds[i] = peer_connect(port);
        peer_send(fds[i], "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
                  (size_t)i % 12);
    }
    for (int i = 0; i < 5; i++) {
        channel_expect(client, port, "x", 1);
    }
    for (int i = 0; i < 40; i++) {
        peer_expect_end(fds[i]);
    }
    WAIT_UNTIL(channel_stats(server).open == 0);
    peer_server_start(&silent, peer_serve_silence);
    channel_expect_failure(client, silent.port, 100, VNX_ERR_TIMEOUT,
                           "TLS with 127.0.0.1: timed out");
    peer_server_stop(&silent);
    vnx_side_channel_free(server);
    vnx_side_channel_free(client);
}

static void
test_http_tls_shutdown_in_the_middle_leaves_nothing(void **state)
{
    (void)state;
    const size_t len = 8u << 20;
    unsigned char *data = pattern(len, 9);
    size_t fds = open_fds();

    for (int i = 0; i < 5; i++) {
        vnx_side_channel_t *server = tls_server("server.pem", NULL, 0);
        vnx_side_channel_t *client = tls_client("ca.pem", NULL, NULL);
        int port = channel_start(server, data, len);
        int half = peer_connect(port);
        peer_send(half, "\x16\x03\x01", 3);
        channel_expect(client, port, data, len);
        vnx_side_channel_free(server);
        vnx_side_channel_free(client);
        close(half);
    }
    assert_int_equal(open_fds(), fds);
    free(data);
}

static void
test_http_tls_files_that_are_missing_are_named(void **state)
{
    (void)state;
    vnx_side_channel_t *server = tls_server("none.pem", NULL, 0);
    vnx_side_channel_t *client = tls_client("none.pem", NULL, NULL);
    vnx_error_t error;

    assert_int_equal(
        vnx_side_channel_start(server, NULL, 0, "x", 1, NULL, &error),
        VNX_ERR_INVALID_PARAM);
    assert_non_null(strstr(error.cause, "none.pem"));
    vnx_side_channel_free(server);
    server = tls_server("server.pem", NULL, 0);
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
        cmocka_unit_test(test_http_tls_keeps_out_who_does_not_know_the_secret),
        cmocka_unit_test(test_http_tls_certificates_are_checked),
        cmocka_unit_test(test_http_tls_to_plain_and_plain_to_tls_are_told),
        cmocka_unit_test(test_http_tls_half_handshakes_hold_nobody),
        cmocka_unit_test(test_http_tls_shutdown_in_the_middle_leaves_nothing),
        cmocka_unit_test(test_http_tls_files_that_are_missing_are_named),
    };
    http_no_proxy();
    return cmocka_run_group_tests(tests, make_certificates,
                                  remove_certificates);
}
