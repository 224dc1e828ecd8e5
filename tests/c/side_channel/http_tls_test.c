/* TLS of the HTTP side channel: the errors at each end, and no data before the
 * handshake is complete. */
#include "http_peer.h"
#include "tls_channels.h"

#include <stdlib.h>
#include <string.h>

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
        cmocka_unit_test(test_http_tls_missing_files_are_named),
    };
    http_no_proxy();
    return cmocka_run_group_tests(tests, make_certificates,
                                  remove_certificates);
}
