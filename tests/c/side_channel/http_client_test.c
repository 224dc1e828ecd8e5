/* The HTTP side channel's client, with raw servers, some of them hostile. */
#include "http_peer.h"
#include "side_channel_attacks.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <vnx/version.h>

#define SECRET "correct horse battery staple"
#define OK_7 "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n"

/* One request to a server that answers with these bytes. */
static void
expect_reply(const char *bytes, const char *expected)
{
    vnx_side_channel_t *channel = http_new(NULL);
    peer_server_t server = {.reply = bytes, .reply_len = strlen(bytes)};

    peer_server_start(&server, http_serve_reply);
    channel_expect(channel, server.port, expected, strlen(expected));
    peer_server_stop(&server);
    vnx_side_channel_free(channel);
}

static void
expect_refusal_with(const vnx_side_channel_options_t *options,
                    const char *bytes, vnx_status_t status, const char *text)
{
    vnx_side_channel_t *channel = http_new(options);
    peer_server_t server = {.reply = bytes, .reply_len = strlen(bytes)};

    peer_server_start(&server, http_serve_reply);
    channel_expect_failure(channel, server.port, 20000, status, text);
    peer_server_stop(&server);
    vnx_side_channel_free(channel);
}

static void
expect_refusal(const char *bytes, vnx_status_t status, const char *text)
{
    expect_refusal_with(NULL, bytes, status, text);
}

/* -- The bytes ------------------------------------------------------------ */

static void
test_http_client_sends_the_documented_bytes(void **state)
{
    (void)state;
    vnx_side_channel_t *channel = http_new(NULL);
    peer_server_t server = {.reply = OK_7 "default",
                            .reply_len = sizeof OK_7 - 1 + 7};
    char text[64], expected[512];

    peer_server_start(&server, http_serve_reply);
    assert_int_equal(
        channel_ask(channel, "127.0.0.1", server.port, "0,1 ", text, NULL),
        VNX_OK);
    assert_string_equal(text, "default");
    peer_server_stop(&server);
    snprintf(expected, sizeof expected,
             "GET /metadata/0,1%%20 HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n"
             "User-Agent: vnx/" VNX_VERSION_STRING "\r\nAccept: */*\r\n"
             "Connection: close\r\n\r\n",
             server.port);
    assert_string_equal(http_asked(), expected);
    vnx_side_channel_free(channel);
}

static void
test_http_client_sends_the_secret_as_a_token(void **state)
{
    (void)state;
    vnx_side_channel_options_t options = {.size = sizeof options,
                                          .secret = SECRET};
    vnx_side_channel_t *channel = http_new(&options);
    peer_server_t server = {.reply = OK_7 "default",
                            .reply_len = sizeof OK_7 - 1 + 7};

    peer_server_start(&server, http_serve_reply);
    channel_expect(channel, server.port, "default", 7);
    peer_server_stop(&server);
    assert_non_null(
        strstr(http_asked(), "\r\nAuthorization: Bearer " SECRET "\r\n"));
    vnx_side_channel_free(channel);
}

static void
test_http_client_accepts_every_form_of_reply(void **state)
{
    (void)state;
    expect_reply(OK_7 "default", "default");
    expect_reply("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "");
    expect_reply("HTTP/1.0 200 OK\r\ncontent-length:7\r\n\r\ndefault",
                 "default");
    expect_reply("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                 "3\r\ndef\r\n4;x=y\r\nault\r\n0\r\nTrailer: 1\r\n\r\n",
                 "default");
    expect_reply("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                 "0\r\n\r\n",
                 "");
    expect_reply("HTTP/1.1 100 Continue\r\n\r\n" OK_7 "default", "default");
    expect_reply(OK_7 "default and more that is not asked for", "default");
}

/* -- Replies that are refused --------------------------------------------- */

static void
test_http_client_refuses_other_statuses(void **state)
{
    (void)state;
#define STATUS(text) "HTTP/1.1 " text "\r\nContent-Length: 2\r\n\r\nno"
    expect_refusal(STATUS("404 Not Found"), VNX_ERR_NOT_FOUND,
                   "nothing is served by default");
    expect_refusal(STATUS("401 Unauthorized"), VNX_ERR_NOT_ALLOWED,
                   "requires a shared secret");
    expect_refusal(STATUS("403 Forbidden"), VNX_ERR_NOT_ALLOWED, "403");
    expect_refusal(STATUS("500 Oh"), VNX_ERR_BACKEND, "status 500");
    expect_refusal(STATUS("503 Later"), VNX_ERR_BACKEND, "status 503");
    expect_refusal(STATUS("429 Often"), VNX_ERR_BACKEND, "status 429");
    expect_refusal(STATUS("418 Teapot"), VNX_ERR_MISMATCH, "status 418");
    expect_refusal(STATUS("206 Partial"), VNX_ERR_MISMATCH, "status 206");
    expect_refusal("HTTP/1.1 204 None\r\n\r\n", VNX_ERR_MISMATCH,
                   "status 204");
#undef STATUS
}

static void
test_http_client_never_shows_the_secret(void **state)
{
    (void)state;
    vnx_side_channel_options_t options = {.size = sizeof options,
                                          .secret = SECRET};

    expect_refusal_with(&options,
                        "HTTP/1.1 401 " SECRET "\r\nContent-Length: 28\r\n"
                        "\r\n" SECRET,
                        VNX_ERR_NOT_ALLOWED, "the shared secrets differ");
    expect_refusal_with(&options,
                        "HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n",
                        VNX_ERR_NOT_ALLOWED, "has no shared secret");
    for (int i = 0; i < 2; i++) {
        static const char *const replies[] = {
            SECRET, "HTTP/1.1 999 " SECRET "\r\nX: " SECRET "\r\n\r\n"};
        vnx_side_channel_t *channel = http_new(&options);
        peer_server_t server = {.reply = replies[i],
                                .reply_len = strlen(replies[i])};
        vnx_error_t error;
        char text[64];

        peer_server_start(&server, http_serve_reply);
        assert_int_not_equal(
            channel_ask(channel, "127.0.0.1", server.port, "", text, &error),
            VNX_OK);
        assert_null(strstr(error.cause, SECRET));
        peer_server_stop(&server);
        vnx_side_channel_free(channel);
    }
}

/* The redirect's target gets no request. */
static void
test_http_client_does_not_follow_redirects(void **state)
{
    (void)state;
    char reply[256];
    vnx_side_channel_t *elsewhere = http_new(NULL);
    int port = channel_start(elsewhere, "x", 1);

    snprintf(reply, sizeof reply,
             "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:%d/metadata"
             "\r\nContent-Length: 0\r\n\r\n",
             port);
    expect_refusal(reply, VNX_ERR_MISMATCH, "redirects are not followed");
    assert_int_equal(channel_stats(elsewhere).accepted, 0);
    vnx_side_channel_free(elsewhere);
}

static void
test_http_client_refuses_a_reply_without_a_length(void **state)
{
    (void)state;
    expect_refusal("HTTP/1.1 200 OK\r\n\r\ndefault", VNX_ERR_MISMATCH,
                   "without a length");
    expect_refusal("HTTP/1.0 200 OK\r\n\r\n", VNX_ERR_MISMATCH,
                   "without a length");
    expect_refusal("HTTP/1.1 200 OK\r\nX-Transfer-Encoding: chunked\r\n\r\nx",
                   VNX_ERR_MISMATCH, "without a length");
}

static void
test_http_client_detects_a_truncated_reply(void **state)
{
    (void)state;
    expect_refusal("", VNX_ERR_BACKEND, "closed without a reply");
    expect_refusal(OK_7 "def", VNX_ERR_BACKEND, "closed after 3 of 7 bytes");
    expect_refusal("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                   "7\r\ndef",
                   VNX_ERR_BACKEND, "closed in the reply");
    expect_refusal("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                   "7\r\ndefault\r\n",
                   VNX_ERR_BACKEND, "closed in the reply");
}

static void
test_http_client_refuses_other_protocols(void **state)
{
    (void)state;
    expect_refusal("\0\0\0\007default", VNX_ERR_BACKEND, "without a reply");
    expect_refusal("default\r\n\r\n", VNX_ERR_MISMATCH,
                   "not a valid reply of this protocol");
    expect_refusal("\x15\x03\x01\x02\x02\x01", VNX_ERR_MISMATCH,
                   "not a valid reply of this protocol");
    expect_refusal("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
                   VNX_ERR_MISMATCH, "not a valid reply of this protocol");
    expect_refusal("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                   "xyz\r\n",
                   VNX_ERR_BACKEND, "");
}

static void
test_http_client_refuses_above_max_frame(void **state)
{
    (void)state;
    vnx_side_channel_options_t options = {.size = sizeof options,
                                          .max_frame = 6};
    char sized[256];

    expect_refusal_with(&options, OK_7 "default", VNX_ERR_MISMATCH,
                        "reply is above max_frame (6)");
    expect_refusal_with(&options,
                        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                        "7\r\ndefault\r\n0\r\n\r\n",
                        VNX_ERR_MISMATCH, "is above max_frame (6)");
    expect_refusal("HTTP/1.1 200 OK\r\nContent-Length: 268435457\r\n\r\n",
                   VNX_ERR_MISMATCH, "is above max_frame (268435456)");
    /* An announced length without data allocates nothing. */
    snprintf(sized, sizeof sized,
             "HTTP/1.1 200 OK\r\nContent-Length: %u\r\n\r\nx", 256u << 20);
    expect_refusal(sized, VNX_ERR_BACKEND, "closed after 1 of");
}

/* -- Endless replies ------------------------------------------------------ */

static void
serve_drip(peer_server_t *server, int client)
{
    static const char head[] = "HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n"
                               "\r\n";

    for (size_t i = 0; !peer_server_stopped(server, 10); i++) {
        const char *byte = i < sizeof head - 1 ? &head[i] : "x";
        if (send(client, byte, 1, MSG_NOSIGNAL) != 1) {
            return;
        }
    }
}

/* Header fields without end. */
static void
serve_headers(peer_server_t *server, int client)
{
    static const char line[] = "X: 0123456789012345678901234567890\r\n";

    send(client, "HTTP/1.1 200 OK\r\n", 17, MSG_NOSIGNAL);
    while (!peer_server_stopped(server, 0)) {
        if (send(client, line, sizeof line - 1, MSG_NOSIGNAL) <= 0) {
            return;
        }
    }
}

/* A body without end, that is within max_frame for long. */
static void
serve_flood(peer_server_t *server, int client)
{
    static const char chunk[] = "20\r\n01234567890123456789012345678901\r\n";

    send(client, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 47,
         MSG_NOSIGNAL);
    while (!peer_server_stopped(server, 0)) {
        if (send(client, chunk, sizeof chunk - 1, MSG_NOSIGNAL) <= 0) {
            return;
        }
    }
}

static void
test_http_client_obeys_its_timeout(void **state)
{
    (void)state;
    expect_request_ends_in_time(http_new, peer_serve_silence,
                                "receiving from 127.0.0.1: timed out");
    expect_request_ends_in_time(http_new, serve_drip,
                                "receiving from 127.0.0.1: timed out");
    expect_request_ends_in_time(http_new, serve_flood,
                                "receiving from 127.0.0.1: timed out");
}

static void
test_http_client_bounds_the_header(void **state)
{
    (void)state;
    vnx_side_channel_t *channel = http_new(NULL);
    peer_server_t server = {0};

    peer_server_start(&server, serve_headers);
    vnx_status_t status =
        vnx_side_channel_request(channel, "127.0.0.1", server.port, 500,
                                 &(void *){NULL}, &(size_t){0}, NULL);
    assert_int_not_equal(status, VNX_OK);
    peer_server_stop(&server);
    vnx_side_channel_free(channel);
}

/* -- Connecting ----------------------------------------------------------- */

static void
test_http_client_dead_port_is_refused_at_once(void **state)
{
    (void)state;
    vnx_side_channel_t *channel = http_new(NULL);
    vnx_error_t error;
    char text[64];
    int port = channel_start(channel, "x", 1);

    vnx_side_channel_shutdown(channel);
    channel_expect_failure(channel, port, 20000, VNX_ERR_BACKEND,
                           "connecting to 127.0.0.1: Connection refused");
    assert_int_equal(channel_ask(channel, "localhost", port, "", text, &error),
                     VNX_ERR_BACKEND);
    assert_non_null(strstr(error.cause, "Connection refused"));
    vnx_side_channel_free(channel);
}

static void
test_http_client_connects_by_ipv6_and_by_name(void **state)
{
    (void)state;
    vnx_side_channel_t *channel = http_new(NULL);
    char text[64];
    int port = channel_start(channel, "x", 1);

    assert_int_equal(channel_ask(channel, "localhost", port, "", text, NULL),
                     VNX_OK);
    vnx_side_channel_shutdown(channel);
    if (!have_ipv6()) {
        print_message("this machine has no IPv6\n");
        vnx_side_channel_free(channel);
        skip();
    }
    /* "localhost" is first 127.0.0.1, which has no listener. */
    assert_int_equal(
        vnx_side_channel_start(channel, "::1", 0, "x", 1, &port, NULL),
        VNX_OK);
    assert_int_equal(channel_ask(channel, "::1", port, "", text, NULL),
                     VNX_OK);
    assert_int_equal(channel_ask(channel, "localhost", port, "", text, NULL),
                     VNX_OK);
    vnx_side_channel_free(channel);
}

static void
test_http_client_refuses_invalid_hosts(void **state)
{
    (void)state;
    static const char *const hosts[] = {"a/b", "user@127.0.0.1", "a b",
                                        "127.0.0.1/x?", "[::1"};
    vnx_side_channel_t *channel = http_new(NULL);
    vnx_error_t error;
    char text[64];
    int port = channel_start(channel, "x", 1);

    for (size_t i = 0; i < sizeof hosts / sizeof hosts[0]; i++) {
        vnx_status_t status =
            channel_ask(channel, hosts[i], port, "", text, &error);
        assert_true(status == VNX_ERR_INVALID_PARAM ||
                    status == VNX_ERR_NOT_FOUND || status == VNX_ERR_BACKEND);
    }
    assert_int_equal(channel_stats(channel).accepted, 0);
    vnx_side_channel_free(channel);
}

static void
test_http_client_uses_a_proxy(void **state)
{
    (void)state;
    vnx_side_channel_t *channel = http_new(NULL);
    peer_server_t proxy = {.reply = OK_7 "default",
                           .reply_len = sizeof OK_7 - 1 + 7};
    char text[64], url[64];

    peer_server_start(&proxy, http_serve_reply);
    snprintf(url, sizeof url, "http://127.0.0.1:%d", proxy.port);
    setenv("http_proxy", url, 1);
    /* A name that only the proxy can know. */
    vnx_status_t status =
        channel_ask(channel, "prefill.invalid", 5600, "0,1", text, NULL);
    unsetenv("http_proxy");
    peer_server_stop(&proxy);
    assert_int_equal(status, VNX_OK);
    assert_string_equal(text, "default");
    assert_ptr_equal(
        strstr(http_asked(),
               "GET http://prefill.invalid:5600/metadata/0,1 HTTP/1.1\r\n"),
        http_asked());
    vnx_side_channel_free(channel);
}

static void
test_http_client_can_be_interrupted(void **state)
{
    (void)state;
    expect_request_is_interrupted(http_new);
}

static void
test_http_client_leaves_no_descriptor_open(void **state)
{
    (void)state;
    vnx_side_channel_t *channel = http_new(NULL);
    int port = channel_start(channel, "x", 1);

    channel_expect(channel, port, "x", 1);
    WAIT_UNTIL(channel_stats(channel).open == 0);
    size_t fds = open_fds();
    for (int i = 0; i < 20; i++) {
        channel_expect(channel, port, "x", 1);
        channel_expect_failure(channel, 1, 1000, VNX_ERR_BACKEND, "refused");
    }
    WAIT_UNTIL(open_fds() <= fds);
    vnx_side_channel_free(channel);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_http_client_sends_the_documented_bytes),
        cmocka_unit_test(test_http_client_sends_the_secret_as_a_token),
        cmocka_unit_test(test_http_client_accepts_every_form_of_reply),
        cmocka_unit_test(test_http_client_refuses_other_statuses),
        cmocka_unit_test(test_http_client_never_shows_the_secret),
        cmocka_unit_test(test_http_client_does_not_follow_redirects),
        cmocka_unit_test(test_http_client_refuses_a_reply_without_a_length),
        cmocka_unit_test(test_http_client_detects_a_truncated_reply),
        cmocka_unit_test(test_http_client_refuses_other_protocols),
        cmocka_unit_test(test_http_client_refuses_above_max_frame),
        cmocka_unit_test(test_http_client_obeys_its_timeout),
        cmocka_unit_test(test_http_client_bounds_the_header),
        cmocka_unit_test(test_http_client_dead_port_is_refused_at_once),
        cmocka_unit_test(test_http_client_connects_by_ipv6_and_by_name),
        cmocka_unit_test(test_http_client_refuses_invalid_hosts),
        cmocka_unit_test(test_http_client_uses_a_proxy),
        cmocka_unit_test(test_http_client_can_be_interrupted),
        cmocka_unit_test(test_http_client_leaves_no_descriptor_open),
    };
    http_no_proxy();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
