/* The HTTP side channel's server, from the bytes. */
#include "http_peer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define SECRET "correct horse battery staple"

static char reply[HTTP_REPLY_MAX];

static const vnx_side_channel_blob_t blobs[] = {
    {.data = "default", .length = 7},
    {.key = "0,1", .key_length = 3, .data = "rank", .length = 4},
    {.key = "a/b c", .key_length = 5, .data = "odd", .length = 3},
    {.key = "none", .key_length = 4},
};

static int
serve(vnx_side_channel_t *channel)
{
    vnx_side_channel_start_params_t params = {
        .size = sizeof params, .blobs = blobs, .count = 4};
    int port = 0;
    assert_int_equal(
        vnx_side_channel_start_with(channel, &params, &port, NULL), VNX_OK);
    return port;
}

static uint64_t
refusals(const vnx_side_channel_t *channel, vnx_side_channel_refusal_t why)
{
    return channel_stats(channel).refusals[why];
}

/* The value of a header field of `reply`, in static memory; "": none. */
static const char *
field(const char *name)
{
    static char value[256];
    char pattern_text[64];

    snprintf(pattern_text, sizeof pattern_text, "\r\n%s: ", name);
    const char *at = strstr(reply, pattern_text);
    value[0] = '\0';
    if (at != NULL) {
        at += strlen(pattern_text);
        snprintf(value, sizeof value, "%.*s", (int)strcspn(at, "\r"), at);
    }
    return value;
}

static const char *
body(void)
{
    const char *end = strstr(reply, "\r\n\r\n");
    return end == NULL ? "" : end + 4;
}

#define ASK(port, text) http_ask(port, text, sizeof(text) - 1, reply)

static void
test_http_server_sends_the_documented_bytes(void **state)
{
    (void)state;
    vnx_side_channel_t *channel = http_new(NULL);
    int port = serve(channel);

    ASK(port, HTTP_GET("/metadata") HTTP_LAST);
    assert_int_equal(strncmp(reply, "HTTP/1.1 200 OK\r\n", 17), 0);
    assert_string_equal(field("Content-Type"), "application/octet-stream");
    assert_string_equal(field("Content-Length"), "7");
    assert_string_equal(field("Cache-Control"), "no-cache");
    assert_int_equal(strlen(field("ETag")), 18);
    assert_string_equal(body(), "default");
    ASK(port, HTTP_GET("/metadata/0,1") HTTP_LAST);
    assert_string_equal(body(), "rank");
    ASK(port, HTTP_GET("/metadata/a%2Fb%20c") HTTP_LAST);
    assert_string_equal(body(), "odd");
    ASK(port, HTTP_GET("/metadata/none") HTTP_LAST);
    assert_int_equal(http_status(reply), 200);
    assert_string_equal(field("Content-Length"), "0");
    ASK(port,
        HTTP_GET("/metadata?x=1") HTTP_LAST); /* a query is not supported */
    assert_string_equal(body(), "default");
    ASK(port, HTTP_GET("http://here/metadata") HTTP_LAST); /* of a proxy */
    assert_string_equal(body(), "default");
    ASK(port, "GET /metadata HTTP/1.0\r\n\r\n");
    assert_string_equal(body(), "default");
    ASK(port, HTTP_GET("/health") HTTP_LAST);
    assert_int_equal(http_status(reply), 200);
    assert_string_equal(body(), "ok\n");
    WAIT_UNTIL(channel_stats(channel).served == 8);
    assert_int_equal(channel_stats(channel).refused, 0);
    vnx_side_channel_free(channel);
}

static void
test_http_server_head_has_the_length_and_no_body(void **state)
{
    (void)state;
    vnx_side_channel_t *channel = http_new(NULL);
    int port = serve(channel);

    ASK(port, "HEAD /metadata HTTP/1.1\r\nHost: x\r\n" HTTP_LAST);
    assert_int_equal(http_status(reply), 200);
    assert_string_equal(field("Content-Length"), "7");
    assert_string_equal(body(), "");
    vnx_side_channel_free(channel);
}

static void
test_http_server_etag_changes_with_the_metadata(void **state)
{
    (void)state;
    vnx_side_channel_blob_t same = blobs[0];
    vnx_side_channel_t *channel = http_new(NULL);
    int port = serve(channel);
    char request[256], etag[32];

    ASK(port, HTTP_GET("/metadata") HTTP_LAST);
    snprintf(etag, sizeof etag, "%s", field("ETag"));
    snprintf(request, sizeof request,
             HTTP_GET("/metadata") "If-None-Match: \"x\", %s\r\n" HTTP_LAST,
             etag);
    http_ask(port, request, strlen(request), reply);
    assert_int_equal(http_status(reply), 304);
    assert_string_equal(field("ETag"), etag);
    assert_string_equal(body(), "");
    ASK(port, HTTP_GET("/metadata/0,1") HTTP_LAST);
    assert_string_not_equal(field("ETag"), etag);
    /* Setting the metadata changes the tag, even for equal bytes. */
    assert_int_equal(vnx_side_channel_set(channel, &same, NULL), VNX_OK);
    http_ask(port, request, strlen(request), reply);
    assert_int_equal(http_status(reply), 200);
    assert_string_not_equal(field("ETag"), etag);
    ASK(port, HTTP_GET("/metadata") "If-None-Match: \"x\"\r\n" HTTP_LAST);
    assert_string_equal(body(), "default");
    vnx_side_channel_free(channel);
}

static void
test_http_server_keeps_connections_alive(void **state)
{
    (void)state;
    static const char one[] = HTTP_GET("/metadata") "\r\n";
    static const char many[] = HTTP_GET("/metadata") "\r\n" HTTP_GET(
        "/health") "\r\n" HTTP_GET("/metadata/0,1") "\r\n";
    vnx_side_channel_t *channel = http_new(NULL);
    int port = serve(channel), fd = peer_connect(port);

    for (int i = 0; i < 3; i++) {
        peer_send(fd, one, sizeof one - 1);
        http_read_replies(fd, 1, reply);
        assert_non_null(strstr(reply, "default"));
    }
    peer_send(fd, many, sizeof many - 1); /* all at once */
    http_read_replies(fd, 3, reply);
    assert_non_null(strstr(reply, "\r\n\r\nrank"));
    channel_expect_one_connection(channel, fd, 6);
    vnx_side_channel_free(channel);
}

static void
test_http_server_accepts_a_request_in_any_pieces(void **state)
{
    (void)state;
    static const char request[] = HTTP_GET("/metadata/0,1") HTTP_LAST;
    vnx_side_channel_t *channel = http_new(NULL);
    int port = serve(channel), fd = peer_connect(port);

    for (size_t i = 0; i < sizeof request - 1; i++) {
        peer_send(fd, request + i, 1);
    }
    http_read_replies(fd, 1, reply);
    assert_string_equal(body(), "rank");
    close(fd);
    /* A client that has shut down its sending side still gets the answer. */
    fd = peer_connect(port);
    peer_send(fd, request, sizeof request - 1);
    shutdown(fd, SHUT_WR);
    http_read_replies(fd, 1, reply);
    assert_string_equal(body(), "rank");
    close(fd);
    vnx_side_channel_free(channel);
}

static void
test_http_server_refuses_with_a_reason(void **state)
{
    (void)state;
    static const struct {
        const char *request;
        int status;
        vnx_side_channel_refusal_t why;
    } cases[] = {
        {HTTP_GET("/metadata/9,9") HTTP_LAST, 404,
         VNX_SIDE_CHANNEL_REFUSED_UNKNOWN_KEY},
        {HTTP_GET("/") HTTP_LAST, 404, VNX_SIDE_CHANNEL_REFUSED_MALFORMED},
        {HTTP_GET("/metadata2") HTTP_LAST, 404,
         VNX_SIDE_CHANNEL_REFUSED_MALFORMED},
        {HTTP_GET("/metadata/%4") HTTP_LAST, 400,
         VNX_SIDE_CHANNEL_REFUSED_MALFORMED},
        {"POST /metadata HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx",
         405, VNX_SIDE_CHANNEL_REFUSED_MALFORMED},
        {"DELETE /metadata HTTP/1.1\r\nHost: x\r\n\r\n", 405,
         VNX_SIDE_CHANNEL_REFUSED_MALFORMED},
        {"BREW /metadata HTTP/1.1\r\nHost: x\r\n\r\n", 405,
         VNX_SIDE_CHANNEL_REFUSED_MALFORMED},
        {"CONNECT here:80 HTTP/1.1\r\nHost: x\r\n\r\n", 501,
         VNX_SIDE_CHANNEL_REFUSED_MALFORMED},
        {"\r\n\r\n", 400, VNX_SIDE_CHANNEL_REFUSED_MALFORMED},
        {"GET\r\n\r\n", 400, VNX_SIDE_CHANNEL_REFUSED_MALFORMED},
        {"GET /metadata JUNK/9.9\r\n\r\n", 400,
         VNX_SIDE_CHANNEL_REFUSED_MALFORMED},
        {"GET /metadata HTTP/1.1\r\nno colon\r\n\r\n", 400,
         VNX_SIDE_CHANNEL_REFUSED_MALFORMED},
        {"GET /metadata HTTP/1.1\r\nContent-Length: 9999\r\n\r\n", 413,
         VNX_SIDE_CHANNEL_REFUSED_TOO_LONG},
        {"GET /metadata HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400,
         VNX_SIDE_CHANNEL_REFUSED_MALFORMED},
    };
    vnx_side_channel_options_t options = {.size = sizeof options,
                                          .client_timeout_ms = 2000};
    vnx_side_channel_t *channel = http_new(&options);
    int port = serve(channel);

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint64_t before = refusals(channel, cases[i].why);
        http_ask(port, cases[i].request, strlen(cases[i].request), reply);
        if (http_status(reply) != cases[i].status) {
            fail_msg("'%s' gave '%s'", cases[i].request, reply);
        }
        assert_null(strstr(reply, "default"));
        assert_string_equal(field("Connection"), "close");
        WAIT_UNTIL(refusals(channel, cases[i].why) == before + 1);
    }
    WAIT_UNTIL(channel_stats(channel).open == 0);
    assert_int_equal(channel_stats(channel).refused,
                     sizeof cases / sizeof cases[0]);
    assert_int_equal(channel_stats(channel).served, 0);
    vnx_side_channel_free(channel);
}

static void
test_http_server_requires_the_token_if_a_secret_is_set(void **state)
{
    (void)state;
    static const struct {
        const char *fields;
        int status;
    } cases[] = {
        {"", 401},
        {"Authorization: Bearer " SECRET "\r\n", 200},
        {"authorization: bearer  " SECRET " \r\n", 200},
        {"Authorization: Bearer " SECRET "r\r\n", 401},
        {"Authorization: Bearer correct horse battery stapl\r\n", 401},
        {"Authorization: Bearer Correct horse battery staple\r\n", 401},
        {"Authorization: Bearer\r\n", 401},
        {"Authorization: Basic " SECRET "\r\n", 401},
        {"X-Authorization: Bearer " SECRET "\r\n", 401},
    };
    vnx_side_channel_options_t options = {.size = sizeof options,
                                          .secret = SECRET};
    vnx_side_channel_t *channel = http_new(&options);
    int port = serve(channel);
    char request[512];

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        snprintf(request, sizeof request, HTTP_GET("/metadata") "%s" HTTP_LAST,
                 cases[i].fields);
        http_ask(port, request, strlen(request), reply);
        assert_int_equal(http_status(reply), cases[i].status);
        assert_true((cases[i].status == 200) ==
                    (strstr(reply, "default") != NULL));
        assert_null(strstr(reply, SECRET));
        assert_true((cases[i].status == 200) ==
                    (strstr(reply, "ETag: ") != NULL));
    }
    /* The reply does not reveal which keys exist. */
    ASK(port, HTTP_GET("/metadata/9,9") HTTP_LAST);
    assert_int_equal(http_status(reply), 401);
    assert_string_equal(field("WWW-Authenticate"), "Bearer");
    ASK(port, HTTP_GET("/health") HTTP_LAST); /* says nothing */
    assert_int_equal(http_status(reply), 200);
    assert_int_equal(refusals(channel, VNX_SIDE_CHANNEL_REFUSED_NO_PROOF), 5);
    assert_int_equal(refusals(channel, VNX_SIDE_CHANNEL_REFUSED_WRONG_PROOF),
                     3);
    vnx_side_channel_free(channel);
}

static void
test_http_server_without_a_secret_ignores_tokens(void **state)
{
    (void)state;
    vnx_side_channel_t *channel = http_new(NULL);
    int port = serve(channel);

    ASK(port, HTTP_GET("/metadata") "Authorization: Bearer x\r\n" HTTP_LAST);
    assert_int_equal(http_status(reply), 403);
    assert_int_equal(refusals(channel, VNX_SIDE_CHANNEL_REFUSED_WRONG_PROOF),
                     1);
    vnx_side_channel_free(channel);
}

static void
test_http_server_refuses_a_secret_that_is_not_a_token(void **state)
{
    (void)state;
    vnx_side_channel_options_t options = {.size = sizeof options,
                                          .secret = "12345678\r\nX: y"};
    vnx_side_channel_t *channel = http_new(&options);
    vnx_error_t error;

    assert_int_equal(
        vnx_side_channel_start(channel, NULL, 0, "x", 1, NULL, &error),
        VNX_ERR_INVALID_PARAM);
    assert_non_null(strstr(error.cause, "control characters"));
    assert_null(strstr(error.cause, "12345678"));
    vnx_side_channel_free(channel);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_http_server_sends_the_documented_bytes),
        cmocka_unit_test(test_http_server_head_has_the_length_and_no_body),
        cmocka_unit_test(test_http_server_etag_changes_with_the_metadata),
        cmocka_unit_test(test_http_server_keeps_connections_alive),
        cmocka_unit_test(test_http_server_accepts_a_request_in_any_pieces),
        cmocka_unit_test(test_http_server_refuses_with_a_reason),
        cmocka_unit_test(
            test_http_server_requires_the_token_if_a_secret_is_set),
        cmocka_unit_test(test_http_server_without_a_secret_ignores_tokens),
        cmocka_unit_test(
            test_http_server_refuses_a_secret_that_is_not_a_token),
    };
    http_no_proxy();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
