/* Secrets and TLS between our own client and listener: who is admitted, who is
 * refused, and the errors. */
#include "tls_channels.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static vnx_side_channel_t *
secret_channel(const char *secret)
{
    vnx_side_channel_options_t options = {.size = sizeof options,
                                          .secret = secret};
    return channel_new(&options);
}

/* -- Secrets -------------------------------------------------------------- */

static void
test_tls_secret_lets_in_who_knows_it(void **state)
{
    (void)state;
    vnx_side_channel_t *server = secret_channel(SECRET);
    vnx_side_channel_t *friend = secret_channel(SECRET);
    unsigned char *data = pattern(1u << 20, 3);
    int port = channel_start(server, data, 1u << 20);

    for (int i = 0; i < 3; i++) {
        channel_expect(friend, port, data, 1u << 20);
    }
    WAIT_UNTIL(channel_stats(server).served == 3);
    assert_int_equal(channel_stats(server).refused, 0);
    vnx_side_channel_free(server);
    vnx_side_channel_free(friend);
    free(data);
}

static void
test_tls_secret_keeps_others_out(void **state)
{
    (void)state;
    vnx_side_channel_t *server = secret_channel(SECRET);
    vnx_side_channel_t *other = secret_channel(SECRET "r");
    vnx_side_channel_t *stranger = channel_new(NULL);
    int port = channel_start(server, "x", 1);

    channel_expect_failure(other, port, 20000, VNX_ERR_NOT_ALLOWED,
                           "secrets differ");
    channel_expect_failure(stranger, port, 20000, VNX_ERR_NOT_ALLOWED,
                           "it has a shared secret");
    WAIT_UNTIL(channel_stats(server).refused == 2);
    vnx_side_channel_stats_t stats = channel_stats(server);
    assert_int_equal(stats.refusals[VNX_SIDE_CHANNEL_REFUSED_WRONG_PROOF], 1);
    assert_int_equal(stats.refusals[VNX_SIDE_CHANNEL_REFUSED_NO_PROOF], 1);
    assert_int_equal(stats.served, 0);
    vnx_side_channel_free(server);
    int open = channel_start(stranger, "x", 1);
    channel_expect_failure(other, open, 20000, VNX_ERR_NOT_ALLOWED,
                           "no shared secret");
    vnx_side_channel_free(other);
    vnx_side_channel_free(stranger);
}

/* Certificates at one end and a secret at the other. */
static void
test_tls_secret_is_no_certificate(void **state)
{
    (void)state;
    vnx_side_channel_t *secret = secret_channel(SECRET);
    vnx_side_channel_t *certified =
        tls_server(channel_new, "server.pem", NULL, 0);
    vnx_side_channel_t *trusting =
        tls_client(channel_new, "ca.pem", NULL, NULL);
    int port = channel_start(secret, "x", 1);

    channel_expect_failure(trusting, port, 20000, VNX_ERR_NOT_ALLOWED,
                           "it has a shared secret and no certificate");
    WAIT_UNTIL(channel_stats(secret).refused == 1);
    assert_int_equal(
        channel_stats(secret).refusals[VNX_SIDE_CHANNEL_REFUSED_NO_PROOF], 1);
    port = channel_start(certified, "x", 1);
    channel_expect_failure(secret, port, 20000, VNX_ERR_NOT_ALLOWED,
                           "has a certificate and no shared secret");
    assert_int_equal(channel_stats(certified).served, 0);
    vnx_side_channel_free(secret);
    vnx_side_channel_free(certified);
    vnx_side_channel_free(trusting);
}

static void
test_tls_secret_says_that_nothing_is_served(void **state)
{
    (void)state;
    vnx_side_channel_t *channel = secret_channel(SECRET);
    int port = channel_start(channel, "x", 1);

    assert_int_equal(vnx_side_channel_remove(channel, NULL, 0, NULL), VNX_OK);
    channel_expect_failure(channel, port, 20000, VNX_ERR_NOT_FOUND,
                           "nothing is served by default");
    vnx_side_channel_free(channel);
}

static void
test_tls_secret_of_few_bytes_is_refused(void **state)
{
    (void)state;
    vnx_side_channel_options_t options = {.size = sizeof options,
                                          .secret = "hunter2"};
    vnx_side_channel_t *channel = NULL;
    vnx_error_t error;

    assert_int_equal(vnx_side_channel_create(VNX_SIDE_CHANNEL_TCP, &options,
                                             &channel, &error),
                     VNX_ERR_INVALID_PARAM);
    assert_null(channel);
    assert_null(strstr(error.cause, "hunter2"));
}

/* -- TLS ------------------------------------------------------------------ */

static void
test_tls_carries_every_size(void **state)
{
    (void)state;
    expect_tls_carries_every_size(channel_new, NULL);
}

static void
test_tls_certificates_are_checked(void **state)
{
    (void)state;
    expect_tls_checks_certificates(channel_new, NULL);
}

/* The listener has read no request. */
static void
serve_at_once(peer_server_t *server, int client)
{
    char hello[1];

    send(client, server->reply, server->reply_len, MSG_NOSIGNAL);
    while (recv(client, hello, sizeof hello, 0) > 0) {
    }
}

static void
test_tls_mismatch_with_plain_is_reported(void **state)
{
    (void)state;
    vnx_side_channel_t *plain = channel_new(NULL);
    vnx_side_channel_t *server =
        tls_server(channel_new, "server.pem", NULL, 0);
    vnx_side_channel_t *client = tls_client(channel_new, "ca.pem", NULL, NULL);
    peer_server_t raw = {.reply = "HTTP/1.1 400 Bad Request\r\n\r\n",
                         .reply_len = 28};
    int plain_port = channel_start(plain, "x", 1);
    int tls_port = channel_start(server, "x", 1);

    channel_expect_failure(client, plain_port, 20000, VNX_ERR_MISMATCH,
                           "TLS with 127.0.0.1: this listener speaks no TLS");
    channel_expect_failure(plain, tls_port, 20000, VNX_ERR_NOT_ALLOWED,
                           "the listener speaks TLS");
    WAIT_UNTIL(channel_stats(server).refusals[VNX_SIDE_CHANNEL_REFUSED_TLS] ==
               1);
    channel_expect(client, tls_port, "x", 1);
    peer_server_start(&raw, serve_at_once);
    channel_expect_failure(client, raw.port, 20000, VNX_ERR_MISMATCH,
                           "speaks no TLS");
    peer_server_stop(&raw);
    vnx_side_channel_free(plain);
    vnx_side_channel_free(server);
    vnx_side_channel_free(client);
}

static void
test_tls_silent_and_half_handshakes_do_not_block_others(void **state)
{
    (void)state;
    expect_tls_half_handshakes_hold_nobody(channel_new);
}

static void
test_tls_shutdown_during_a_handshake_leaks_nothing(void **state)
{
    (void)state;
    expect_tls_shutdown_leaves_nothing(channel_new);
}

/* -- Files ---------------------------------------------------------------- */

static void
expect_start_failure(const char *certificate, const char *key,
                     const char *text)
{
    char paths[2][128];
    vnx_side_channel_options_t options = {.size = sizeof options,
                                          .tls_certificate =
                                              in_folder(certificate, paths[0]),
                                          .tls_key = in_folder(key, paths[1])};
    vnx_side_channel_t *channel = channel_new(&options);
    vnx_error_t error;

    assert_int_equal(
        vnx_side_channel_start(channel, NULL, 0, "x", 1, NULL, &error),
        VNX_ERR_INVALID_PARAM);
    if (strstr(error.cause, text) == NULL) {
        fail_msg("'%s' is not in '%s'", text, error.cause);
    }
    vnx_side_channel_free(channel);
}

static void
test_tls_missing_or_wrong_files_are_named(void **state)
{
    (void)state;
    expect_start_failure("none.pem", "server.key", "none.pem': No such file");
    expect_start_failure("server.pem", "none.key", "none.key': No such file");
    expect_start_failure("server.key", "server.key", "tls_certificate '");
    expect_start_failure("server.pem", "ca.pem", "tls_key '");
    expect_start_failure("server.pem", "other.key", "mismatch");

    vnx_side_channel_t *server =
        tls_server(channel_new, "server.pem", NULL, 0);
    vnx_side_channel_t *client =
        tls_client(channel_new, "none.pem", NULL, NULL);
    int port = channel_start(server, "x", 1);
    channel_expect_failure(client, port, 20000, VNX_ERR_INVALID_PARAM,
                           "none.pem': No such file");
    vnx_side_channel_free(server);
    vnx_side_channel_free(client);
}

static void
test_tls_incompatible_options_are_refused(void **state)
{
    (void)state;
    vnx_side_channel_options_t options = {.size = sizeof options,
                                          .tls_certificate = "server.pem"};
    vnx_side_channel_t *channel = NULL;
    vnx_error_t error;

    assert_int_equal(vnx_side_channel_create(VNX_SIDE_CHANNEL_TCP, &options,
                                             &channel, &error),
                     VNX_ERR_INVALID_PARAM);
    assert_non_null(strstr(error.cause, "go together"));
    options.tls_certificate = NULL;
    options.tls = 1;
    channel = channel_new(&options);
    assert_int_equal(
        vnx_side_channel_start(channel, NULL, 0, "x", 1, NULL, &error),
        VNX_ERR_INVALID_PARAM);
    assert_non_null(strstr(error.cause, "tls_certificate"));
    vnx_side_channel_free(channel);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tls_secret_lets_in_who_knows_it),
        cmocka_unit_test(test_tls_secret_keeps_others_out),
        cmocka_unit_test(test_tls_secret_is_no_certificate),
        cmocka_unit_test(test_tls_secret_says_that_nothing_is_served),
        cmocka_unit_test(test_tls_secret_of_few_bytes_is_refused),
        cmocka_unit_test(test_tls_carries_every_size),
        cmocka_unit_test(test_tls_certificates_are_checked),
        cmocka_unit_test(test_tls_mismatch_with_plain_is_reported),
        cmocka_unit_test(
            test_tls_silent_and_half_handshakes_do_not_block_others),
        cmocka_unit_test(test_tls_shutdown_during_a_handshake_leaks_nothing),
        cmocka_unit_test(test_tls_missing_or_wrong_files_are_named),
        cmocka_unit_test(test_tls_incompatible_options_are_refused),
    };
    return cmocka_run_group_tests(tests, make_certificates,
                                  remove_certificates);
}
