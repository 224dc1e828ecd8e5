/*
 * The client of the ZMQ side channel, tested with raw listeners that send
 * vLLM's replies and invalid ones.
 */
#include "zmq_peer.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"

#define ROUTER_READY "\4\x29" READY_BODY "\6ROUTER\x08Identity\0\0\0\0"

/* Handshake as vLLM's listener, read `ask`, send the reply, and hold the
 * client until the server stops. */
static void
serve_as_stock(peer_server_t *server, int client, const char *ask, size_t len)
{
    char greeting[GREETING_LEN], ready[256], request[64];

    send_greeting(client);
    if (peer_recv(client, greeting, sizeof greeting) != sizeof greeting) {
        return;
    }
    SEND(client, ROUTER_READY);
    if (peer_recv(client, ready, 2) != 2 ||
        peer_recv(client, ready + 2, (unsigned char)ready[1]) !=
            (unsigned char)ready[1]) {
        return;
    }
    if (peer_recv(client, request, len) != len ||
        memcmp(request, ask, len) != 0) {
        return;
    }
    send(client, server->reply, server->reply_len, MSG_NOSIGNAL);
    peer_server_stopped(server, -1);
}

static void
serve_0_0(peer_server_t *server, int client)
{
    serve_as_stock(server, client, ASK_0_0, sizeof ASK_0_0 - 1);
}

static void
serve_0(peer_server_t *server, int client)
{
    serve_as_stock(server, client, ASK_0, sizeof ASK_0 - 1);
}

static void
serve_0_1_2(peer_server_t *server, int client)
{
    static const char ask[] = "\1\0\0\x12\x94" NAME "\0\1\2";

    serve_as_stock(server, client, ask, sizeof ask - 1);
}

/* Send fixed bytes, whatever the client sends. */
static void
serve_bytes(peer_server_t *server, int client)
{
    send(client, server->reply, server->reply_len, MSG_NOSIGNAL);
    shutdown(client, SHUT_WR);
    peer_server_stopped(server, -1);
}

static vnx_status_t
ask(vnx_side_channel_t *channel, int port, const char *key, int timeout_ms,
    vnx_error_t *error)
{
    vnx_side_channel_request_params_t params = {
        .size = sizeof params,
        .host = "127.0.0.1",
        .port = port,
        .timeout_ms = timeout_ms,
        .key = key,
        .key_length = strlen(key),
    };
    void *data = NULL;
    size_t len = 0;

    vnx_status_t status =
        vnx_side_channel_request_with(channel, &params, &data, &len, error);
    if (status == VNX_OK) {
        assert_int_equal(len, BLOB_LEN);
        assert_memory_equal(data, BLOB, len);
        free(data);
    }
    return status;
}

static void
test_zmq_client_sends_requests_like_stock(void **state)
{
    (void)state;
    static const struct {
        const char *key, *reply;
        size_t len;
        void (*serve)(peer_server_t *, int);
    } cases[] = {
#define CASE(key, reply, serve) {key, reply, sizeof(reply) - 1, serve}
        CASE("", "\1\0\1\x12" BLOB "\0\x9\xcb\x40\0\0\0\0\0\0\0", serve_0_0),
        CASE("0,0", "\1\0\1\x12" BLOB "\0\x9\xcb\x40\0\0\0\0\0\0\0",
             serve_0_0),
        CASE("0,0", "\1\0\0\x12" BLOB, serve_0_0), /* no clock */
        CASE("0", "\1\0\0\x12" BLOB, serve_0),
        CASE("0,1,2", "\1\0\1\x12" BLOB "\0\x9\xcb\x40\0\0\0\0\0\0\0",
             serve_0_1_2),
        CASE("0", "\4\x7\4PING\0\x0a\1\0\0\x12" BLOB, serve_0),
        CASE("0", "\3\0\0\0\0\0\0\0\0\2\0\0\0\0\0\0\0\x12" BLOB, serve_0),
        /* An invalid clock is our error, not an answer of stock. */
        CASE("0,0", "\1\0\1\x12" BLOB "\0\x9\xcb\x7f\xf8\0\0\0\0\0\0",
             serve_0_0),
#undef CASE
    };
    vnx_side_channel_t *channel = zmq_new(NULL);

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        peer_server_t server = {.reply = cases[i].reply,
                                .reply_len = cases[i].len};
        vnx_error_t error = {0};
        peer_server_start(&server, cases[i].serve);
        assert_int_equal(
            ask(channel, server.port, cases[i].key, 20000, &error), VNX_OK);
        peer_server_stop(&server);
    }
    vnx_side_channel_free(channel);
}

/* Any other request would kill stock's listener, so nothing is sent. */
static void
serve_ready_alone(peer_server_t *server, int client)
{
    char bytes[512];

    send_greeting(client);
    SEND(client, ROUTER_READY);
    size_t len = peer_recv(client, bytes, sizeof bytes);
    assert_true(len < sizeof bytes);
    assert_null(memmem(bytes, len, "get_meta_msg", 12));
    (void)server;
}

static void
test_zmq_client_asks_stock_only_for_ranks(void **state)
{
    (void)state;
    vnx_side_channel_t *channel = zmq_new(NULL);
    peer_server_t server = {0};
    vnx_error_t error = {0};

    peer_server_start(&server, serve_ready_alone);
    assert_int_equal(ask(channel, server.port, "a name", 20000, &error),
                     VNX_ERR_NOT_FOUND);
    assert_non_null(strstr(error.cause, "ranks"));
    assert_int_equal(ask(channel, server.port, "0,1,x", 20000, &error),
                     VNX_ERR_NOT_FOUND);
    peer_server_stop(&server);
    vnx_side_channel_free(channel);
}

static void
test_zmq_client_refuses_invalid_replies(void **state)
{
    (void)state;
    static const struct {
        const char *reply;
        size_t len;
    } cases[] = {
#define CASE(reply) {reply, sizeof(reply) - 1}
        CASE("\0\x12" BLOB),                   /* no delimiter */
        CASE("\1\1x\0\x12" BLOB),              /* one that is not empty */
        CASE("\0\0"),                          /* nothing else */
        CASE("\1\0\1\x12" BLOB "\1\1x\0\1x"),  /* a fourth frame */
        CASE("\1\0\1\1x\2\0\0\0\0\0\0\4\x0d"), /* a long clock */
        CASE("\2\0\0\0\0\0\0\4\x0d"),          /* a long delimiter */
        CASE("\1\0\2\0\0\0\0\0\0\x27\x11"),    /* above max_frame */
        CASE("\1\0\2\xff\xff\xff\xff\xff\xff\xff\xff"),
        CASE("\4\6\5ERROR"),
        CASE("\x80"
             "1"),
#undef CASE
    };
    vnx_side_channel_options_t options = {.size = sizeof options,
                                          .max_frame = 10000};
    vnx_side_channel_t *channel = zmq_new(&options);

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        peer_server_t server = {.reply = cases[i].reply,
                                .reply_len = cases[i].len};
        vnx_error_t error = {0};
        peer_server_start(&server, serve_0_0);
        assert_int_equal(ask(channel, server.port, "0,0", 20000, &error),
                         VNX_ERR_MISMATCH);
        peer_server_stop(&server);
    }
    vnx_side_channel_free(channel);
}

static void
test_zmq_client_refuses_other_protocols(void **state)
{
    (void)state;
    static const struct {
        const char *reply;
        size_t len;
        vnx_status_t status;
    } cases[] = {
#define CASE(reply, status) {reply, sizeof(reply) - 1, status}
        CASE("HTTP/1.1 400 Bad Request\r\n\r\n", VNX_ERR_MISMATCH),
        CASE("\0\0\0\0", VNX_ERR_MISMATCH),
        CASE("\xff\0\0\0\0\0\0\0\1\x7f\1\0", VNX_ERR_MISMATCH),
        CASE("\xff\0\0\0\0\0\0\0\1\x7f\3\1CURVE", VNX_ERR_MISMATCH),
        CASE("\xff\0\0\0\0\0\0\0\1\x7f\3", VNX_ERR_BACKEND), /* cut off */
        CASE("", VNX_ERR_BACKEND),
#undef CASE
    };
    vnx_side_channel_t *channel = zmq_new(NULL);

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        peer_server_t server = {.reply = cases[i].reply,
                                .reply_len = cases[i].len};
        vnx_error_t error = {0};
        peer_server_start(&server, serve_bytes);
        assert_int_equal(ask(channel, server.port, "0,0", 20000, &error),
                         cases[i].status);
        peer_server_stop(&server);
    }
    vnx_side_channel_free(channel);
}

static const char ping[] = "\4\x07\4PING\0\x0a";
#define PING_LEN (sizeof ping - 1)

/* Endless PINGs. */
static void
serve_pings(peer_server_t *server, int client)
{
    send_greeting(client);
    SEND(client, ROUTER_READY);
    while (!peer_server_stopped(server, 0) &&
           send(client, ping, PING_LEN, MSG_NOSIGNAL) > 0) {
    }
}

/* Requests that another one keeps waiting would miss their deadlines. */
static void
test_zmq_client_refuses_pings_without_end(void **state)
{
    (void)state;
    static const char answer[] = "\1\0\0\x12" BLOB;
    char reply[65 * PING_LEN + sizeof answer - 1];
    vnx_side_channel_t *channel = zmq_new(NULL);
    peer_server_t server = {.reply = reply + PING_LEN,
                            .reply_len = sizeof reply - PING_LEN};
    vnx_error_t error = {0};

    for (size_t i = 0; i < 65; i++) {
        memcpy(reply + i * PING_LEN, ping, PING_LEN);
    }
    memcpy(reply + 65 * PING_LEN, answer, sizeof answer - 1);
    peer_server_start(&server, serve_0_0); /* with 64 of them */
    assert_int_equal(ask(channel, server.port, "0,0", 20000, &error), VNX_OK);
    peer_server_stop(&server);
    server = (peer_server_t){.reply = reply, .reply_len = sizeof reply};
    peer_server_start(&server, serve_0_0);
    assert_int_equal(ask(channel, server.port, "0,0", 20000, &error),
                     VNX_ERR_MISMATCH);
    peer_server_stop(&server);
    peer_server_start(&server, serve_pings);
    assert_int_equal(ask(channel, server.port, "0,0", 20000, &error),
                     VNX_ERR_MISMATCH);
    assert_non_null(strstr(error.cause, "more than 64 commands"));
    peer_server_stop(&server);
    vnx_side_channel_free(channel);
}

/* A large blob, one byte at a time. */
static void
serve_drip(peer_server_t *server, int client)
{
    static const char blob[] = "\1\0\2\0\0\0\0\0\1\0\0";

    send_greeting(client);
    SEND(client, ROUTER_READY);
    send(client, blob, sizeof blob - 1, MSG_NOSIGNAL);
    while (!peer_server_stopped(server, 5) &&
           send(client, "x", 1, MSG_NOSIGNAL) == 1) {
    }
}

static void
test_zmq_client_obeys_its_deadline(void **state)
{
    (void)state;
    void (*const serves[])(peer_server_t *, int) = {serve_drip,
                                                    peer_serve_silence};
    vnx_side_channel_t *channel = zmq_new(NULL);

    for (size_t i = 0; i < sizeof serves / sizeof serves[0]; i++) {
        peer_server_t server = {0};
        vnx_error_t error = {0};
        peer_server_start(&server, serves[i]);
        assert_int_equal(ask(channel, server.port, "0,0", 150, &error),
                         VNX_ERR_TIMEOUT);
        peer_server_stop(&server);
    }
    vnx_side_channel_free(channel);
}

/* -- Unsupported options -------------------------------------------------- */

static void
expect_refused(const vnx_side_channel_options_t *options, const char *text)
{
    vnx_side_channel_t *channel;
    vnx_error_t error = {0};
    int port;

    vnx_status_t status = vnx_side_channel_create(VNX_SIDE_CHANNEL_ZMQ,
                                                  options, &channel, &error);
    if (status == VNX_ERR_NOT_SUPPORTED) {
        return; /* a build that knows no secrets at all */
    }
    assert_int_equal(status, VNX_OK);
    assert_int_equal(
        vnx_side_channel_start(channel, "127.0.0.1", 0, "x", 1, &port, &error),
        VNX_ERR_NOT_SUPPORTED);
    assert_non_null(strstr(error.cause, text));
    assert_null(strstr(error.cause, "hunter22"));
    assert_int_equal(ask(channel, 9, "0,0", 1000, &error),
                     VNX_ERR_NOT_SUPPORTED);
    assert_non_null(strstr(error.cause, text));
    vnx_side_channel_free(channel);
}

static void
test_zmq_refuses_secrets_and_tls(void **state)
{
    (void)state;
    vnx_side_channel_options_t secret = {.size = sizeof secret,
                                         .secret = "hunter22"};
    vnx_side_channel_options_t tls = {.size = sizeof tls,
                                      .tls_certificate = "/nowhere",
                                      .tls_key = "/nowhere"};

    expect_refused(&secret, "shared secret");
    expect_refused(&tls, "TLS");
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_zmq_client_sends_requests_like_stock),
        cmocka_unit_test(test_zmq_client_asks_stock_only_for_ranks),
        cmocka_unit_test(test_zmq_client_refuses_invalid_replies),
        cmocka_unit_test(test_zmq_client_refuses_other_protocols),
        cmocka_unit_test(test_zmq_client_refuses_pings_without_end),
        cmocka_unit_test(test_zmq_client_obeys_its_deadline),
        cmocka_unit_test(test_zmq_refuses_secrets_and_tls),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
