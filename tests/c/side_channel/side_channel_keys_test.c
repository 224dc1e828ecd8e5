/* Keys: serving, replacing and removing blobs, and the wire format. */
#include "side_channel_peer.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"

#define BLOB(k, d)                                            \
    {                                                         \
        .key = (k), .key_length = sizeof(k) - 1, .data = (d), \
        .length = sizeof(d) - 1                               \
    }

static int
start_with(vnx_side_channel_t *channel, const vnx_side_channel_blob_t *blobs,
           size_t count)
{
    vnx_side_channel_start_params_t params = {
        .size = sizeof params, .blobs = blobs, .count = count};
    int port = 0;
    assert_int_equal(
        vnx_side_channel_start_with(channel, &params, &port, NULL), VNX_OK);
    return port;
}

static void
expect(vnx_side_channel_t *channel, int port, const char *key,
       const char *expected)
{
    vnx_error_t error;
    char text[64];

    if (channel_ask(channel, "127.0.0.1", port, key, text, &error) != VNX_OK) {
        fail_msg("request failed: %s", error.cause);
    }
    assert_string_equal(text, expected);
}

static void
expect_none(vnx_side_channel_t *channel, int port, const char *key,
            const char *cause)
{
    vnx_error_t error;
    char text[64];

    assert_int_equal(
        channel_ask(channel, "127.0.0.1", port, key, text, &error),
        VNX_ERR_NOT_FOUND);
    assert_non_null(strstr(error.cause, cause));
}

static void
test_keys_map_to_their_blobs(void **state)
{
    (void)state;
    static const vnx_side_channel_blob_t blobs[] = {
        BLOB("0,0", "first"), BLOB("0,1", "second"), BLOB("empty", ""),
        BLOB("0,1", "again")};
    vnx_side_channel_t *channel = channel_new(NULL);
    int port = start_with(channel, blobs, 4);

    expect(channel, port, "0,0", "first");
    expect(channel, port, "0,1", "again"); /* of equal keys the last */
    expect(channel, port, "empty", "");
    expect_none(channel, port, "0,2", "under the key '0,2'");
    expect_none(channel, port, "0,", "'0,'");
    assert_int_equal(
        channel_stats(channel).refusals[VNX_SIDE_CHANNEL_REFUSED_UNKNOWN_KEY],
        2);
    /* No default: the first protocol has no words for that. */
    channel_expect_failure(channel, port, 20000, VNX_ERR_BACKEND,
                           "closed without a reply");
    vnx_side_channel_free(channel);
}

static void
test_keys_can_be_set_and_removed_while_running(void **state)
{
    (void)state;
    static const vnx_side_channel_blob_t one = BLOB("k", "one"),
                                         two = BLOB("k", "two"),
                                         base = BLOB("", "base");
    vnx_side_channel_t *channel = channel_new(NULL);
    vnx_error_t error;

    assert_int_equal(vnx_side_channel_set(channel, &one, &error),
                     VNX_ERR_NOT_ALLOWED);
    int port = start_with(channel, &base, 1);
    expect_none(channel, port, "k", "'k'");
    assert_int_equal(vnx_side_channel_set(channel, &one, NULL), VNX_OK);
    expect(channel, port, "k", "one");
    assert_int_equal(vnx_side_channel_set(channel, &two, NULL), VNX_OK);
    expect(channel, port, "k", "two");
    assert_int_equal(vnx_side_channel_remove(channel, "k", 1, NULL), VNX_OK);
    assert_int_equal(vnx_side_channel_remove(channel, "k", 1, &error),
                     VNX_ERR_NOT_FOUND);
    expect_none(channel, port, "k", "'k'");
    channel_expect(channel, port, "base", 4);
    vnx_side_channel_shutdown(channel);
    assert_int_equal(vnx_side_channel_remove(channel, "", 0, &error),
                     VNX_ERR_NOT_ALLOWED);
    port = start_with(channel, &one, 1); /* nothing is left of before */
    expect(channel, port, "k", "one");
    assert_int_equal(vnx_side_channel_remove(channel, "", 0, &error),
                     VNX_ERR_NOT_FOUND);
    vnx_side_channel_free(channel);
}

static void
test_keys_blob_in_use_outlives_its_removal(void **state)
{
    (void)state;
    const size_t len = 16u << 20;
    unsigned char *data = pattern(len, 5), *got = malloc(len + 4);
    vnx_side_channel_blob_t blob = {.data = data, .length = len};
    vnx_side_channel_t *channel = channel_new(NULL);
    int port = start_with(channel, &blob, 1);
    int fd = peer_connect(port);

    peer_send(fd, PEER_REQUEST, PEER_REQUEST_LEN);
    assert_int_equal(peer_recv(fd, got, 1000), 1000);
    assert_int_equal(vnx_side_channel_remove(channel, NULL, 0, NULL), VNX_OK);
    assert_int_equal(peer_recv(fd, got + 1000, len + 4 - 1000),
                     len + 4 - 1000);
    assert_memory_equal(got + 4, data, len);
    close(fd);
    vnx_side_channel_free(channel);
    free(data);
    free(got);
}

/* Send one frame, receive up to the end. */
static size_t
talk(int port, const char *payload, size_t len, char *got, size_t size)
{
    unsigned char header[4] = {0, 0, (unsigned char)(len >> 8),
                               (unsigned char)len};
    int fd = peer_connect(port);

    peer_send(fd, header, sizeof header);
    peer_send(fd, payload, len);
    size = peer_recv(fd, got, size);
    close(fd);
    return size;
}

static void
test_keys_server_sends_the_documented_bytes(void **state)
{
    (void)state;
    static const vnx_side_channel_blob_t blobs[] = {BLOB("", "base"),
                                                    BLOB("0,1", "metadata")};
    static const char unknown[] = "\0\0\0\041\20nothing is served under that "
                                  "key";
    vnx_side_channel_t *channel = channel_new(NULL);
    int port = start_with(channel, blobs, 2);
    char got[128];

    assert_int_equal(talk(port,
                          "VNX1\1"
                          "0,1",
                          8, got, sizeof got),
                     13);
    assert_memory_equal(got, "\0\0\0\011\0metadata", 13);
    assert_int_equal(talk(port, "VNX1\1", 5, got, sizeof got), 9);
    assert_memory_equal(got, "\0\0\0\005\0base", 9);
    assert_int_equal(talk(port, "VNX1\1x", 6, got, sizeof got),
                     sizeof unknown - 1);
    assert_memory_equal(got, unknown, sizeof unknown - 1);
    vnx_side_channel_free(channel);
}

static void
serve_keyed(peer_server_t *server, int client)
{
    char request[12];

    if (peer_recv(client, request, sizeof request) == sizeof request &&
        memcmp(request,
               "\0\0\0\010VNX1\1"
               "0,1",
               sizeof request) == 0) {
        send(client, server->reply, server->reply_len, MSG_NOSIGNAL);
    }
}

static void
expect_reply(const char *reply, size_t len, vnx_status_t status,
             const char *text)
{
    vnx_side_channel_t *channel = channel_new(NULL);
    peer_server_t server = {.reply = reply, .reply_len = len};
    char got[64] = "";
    vnx_error_t error = {0};

    peer_server_start(&server, serve_keyed);
    assert_int_equal(
        channel_ask(channel, "127.0.0.1", server.port, "0,1", got, &error),
        status);
    if (strstr(status == VNX_OK ? got : error.cause, text) == NULL) {
        fail_msg("'%s' is not in '%s'", text, error.cause);
    }
    peer_server_stop(&server);
    vnx_side_channel_free(channel);
}

static void
test_keys_client_sends_the_documented_bytes(void **state)
{
    (void)state;
    expect_reply("\0\0\0\011\0metadata", 13, VNX_OK, "metadata");
    expect_reply("\0\0\0\001\0", 5, VNX_OK, "");
    expect_reply("\0\0\0\003\020no", 7, VNX_ERR_NOT_FOUND, "'0,1'");
    expect_reply("\0\0\0\001\021", 5, VNX_ERR_MISMATCH,
                 "not a valid reply of this");
    expect_reply("\0\0\0\001\377", 5, VNX_ERR_MISMATCH,
                 "not a valid reply of this");
    expect_reply("\0\0\0\001\001", 5, VNX_ERR_MISMATCH,
                 "not a valid reply of this");
    expect_reply("\0\0\0\0", 4, VNX_ERR_MISMATCH, "without a status");
    expect_reply("\xff\0\0\0", 4, VNX_ERR_MISMATCH, "above max_frame");
    expect_reply("\x15\3\3\0\2\2\x73", 7, VNX_ERR_NOT_ALLOWED,
                 "the listener speaks TLS");
    expect_reply("\x15\3\4\0", 4, VNX_ERR_NOT_ALLOWED,
                 "the listener speaks TLS");
    expect_reply("\0\0\0\011\0meta", 9, VNX_ERR_BACKEND,
                 "closed after 5 of 9 bytes");
    expect_reply("", 0, VNX_ERR_BACKEND, "does not support keys");
}

static void
test_keys_wrong_parameters_are_refused(void **state)
{
    (void)state;
    char long_key[VNX_SIDE_CHANNEL_KEY_MAX + 1] = "";
    vnx_side_channel_t *channel = channel_new(NULL);
    vnx_side_channel_blob_t blob = {.key = long_key,
                                    .key_length = sizeof long_key};
    vnx_side_channel_start_params_t start = {
        .size = sizeof start, .blobs = &blob, .count = 1};
    vnx_side_channel_request_params_t request = {.size = sizeof request,
                                                 .host = "127.0.0.1",
                                                 .port = 1,
                                                 .timeout_ms = 1,
                                                 .key = long_key,
                                                 .key_length =
                                                     sizeof long_key};
    vnx_error_t error;
    void *got;
    size_t len;

    assert_int_equal(
        vnx_side_channel_start_with(channel, &start, NULL, &error),
        VNX_ERR_INVALID_PARAM);
    assert_non_null(strstr(error.cause, "256 bytes"));
    assert_int_equal(
        vnx_side_channel_request_with(channel, &request, &got, &len, &error),
        VNX_ERR_INVALID_PARAM);
    blob.key = NULL;
    blob.key_length = 1;
    assert_int_equal(
        vnx_side_channel_start_with(channel, &start, NULL, &error),
        VNX_ERR_INVALID_PARAM);
    start.size = 3;
    assert_int_equal(
        vnx_side_channel_start_with(channel, &start, NULL, &error),
        VNX_ERR_INVALID_PARAM);
    request.size = sizeof request + 8;
    assert_int_equal(
        vnx_side_channel_request_with(channel, &request, &got, &len, &error),
        VNX_ERR_INVALID_PARAM);
    assert_false(vnx_side_channel_is_running(channel));
    vnx_side_channel_free(channel);
}

static void
test_keys_counters_have_reasons_bytes_and_latency(void **state)
{
    (void)state;
    vnx_side_channel_t *channel = channel_new(NULL);
    int port = channel_start(channel, "metadata", 8);
    char got[64];
    uint64_t replies = 0;

    talk(port, "VNX1\1x", 6, got, sizeof got);
    talk(port, "VNX1\7", 5, got, sizeof got);
    channel_expect(channel, port, "metadata", 8);
    WAIT_UNTIL(channel_stats(channel).served == 1);
    vnx_side_channel_stats_t stats = channel_stats(channel);
    assert_int_equal(stats.refused, 2);
    assert_int_equal(stats.refusals[VNX_SIDE_CHANNEL_REFUSED_UNKNOWN_KEY], 1);
    assert_int_equal(stats.refusals[VNX_SIDE_CHANNEL_REFUSED_MALFORMED], 1);
    assert_int_equal(stats.bytes_received, 10 + 9 + 16);
    assert_int_equal(stats.bytes_sent, 37 + 12);
    for (int i = 0; i < VNX_SIDE_CHANNEL_LATENCIES; i++) {
        replies += stats.latency[i];
    }
    assert_int_equal(replies, 1);
    for (int i = 0; i < VNX_SIDE_CHANNEL_REFUSALS; i++) {
        assert_non_null(
            vnx_side_channel_refusal_name((vnx_side_channel_refusal_t)i));
    }
    assert_null(vnx_side_channel_refusal_name(VNX_SIDE_CHANNEL_REFUSALS));
    vnx_side_channel_free(channel);
}

static void
test_keys_too_many_connections_of_an_address_are_refused(void **state)
{
    (void)state;
    vnx_side_channel_options_t options = {.size = sizeof options,
                                          .max_rate = 1};
    vnx_side_channel_t *channel = channel_new(&options);
    int port = channel_start(channel, "x", 1);
    uint64_t begun = vnxi_clock_ns();
    vnx_status_t status = VNX_OK;

    for (int i = 0; i < 20; i++) {
        close(peer_connect(port));
    }
    WAIT_UNTIL(channel_stats(channel).accepted == 20);
    /* All but those of two seconds, and of the time that this took. */
    uint64_t more = (vnxi_clock_ns() - begun) / 1000000000 + 1;
    assert_true(
        channel_stats(channel).refusals[VNX_SIDE_CHANNEL_REFUSED_RATE] +
            more >=
        17);
    while (status == VNX_OK) { /* once for each second that passes */
        void *got = NULL;
        size_t len;
        status = vnx_side_channel_request(channel, "127.0.0.1", port, 20000,
                                          &got, &len, NULL);
        free(got);
    }
    assert_int_equal(status, VNX_ERR_BACKEND);
    vnx_side_channel_free(channel);
}

static void
test_keys_idle_client_is_closed(void **state)
{
    (void)state;
    vnx_side_channel_options_t options = {.size = sizeof options,
                                          .client_timeout_ms = 3600000,
                                          .idle_timeout_ms = 50};
    vnx_side_channel_t *channel = channel_new(&options);
    int port = channel_start(channel, "x", 1);

    peer_expect_end(peer_connect(port));
    assert_int_equal(channel_stats(channel).timed_out, 1);
    channel_expect(channel, port, "x", 1);
    vnx_side_channel_free(channel);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_keys_map_to_their_blobs),
        cmocka_unit_test(test_keys_can_be_set_and_removed_while_running),
        cmocka_unit_test(test_keys_blob_in_use_outlives_its_removal),
        cmocka_unit_test(test_keys_server_sends_the_documented_bytes),
        cmocka_unit_test(test_keys_client_sends_the_documented_bytes),
        cmocka_unit_test(test_keys_wrong_parameters_are_refused),
        cmocka_unit_test(test_keys_counters_have_reasons_bytes_and_latency),
        cmocka_unit_test(
            test_keys_too_many_connections_of_an_address_are_refused),
        cmocka_unit_test(test_keys_idle_client_is_closed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
