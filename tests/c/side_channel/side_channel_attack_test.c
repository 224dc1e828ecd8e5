/* Hostile or broken clients and servers: each loses its own exchange and
 * affects no other. */
#include "side_channel_attacks.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"

/* -- Clients -------------------------------------------------------------- */

static const attacked_t attacked = {channel_new, PEER_REQUEST,
                                    PEER_REQUEST_LEN};

static void
test_attack_by_a_silent_crowd(void **state)
{
    (void)state;
    expect_crowd_held(&attacked, 2000, NULL, 0);
}

static void
test_attack_by_a_one_byte_crowd(void **state)
{
    (void)state;
    expect_crowd_held(&attacked, 2000, "\0", 1);
}

static void
test_attack_by_a_half_frame_crowd(void **state)
{
    (void)state;
    expect_crowd_held(&attacked, 2000, PEER_REQUEST, PEER_REQUEST_LEN - 1);
}

static void
test_attack_crowd_beyond_the_table_is_evicted(void **state)
{
    (void)state;
    expect_crowd_gives_way(&attacked);
}

static void
test_attack_silent_client_is_closed_at_its_deadline(void **state)
{
    (void)state;
    vnx_side_channel_options_t options = {.size = sizeof options,
                                          .client_timeout_ms = 50};
    vnx_side_channel_t *channel = channel_new(&options);
    int port = channel_start(channel, BLOB, BLOB_LEN);

    peer_expect_end(peer_connect(port));
    assert_int_equal(channel_stats(channel).timed_out, 1);
    WAIT_UNTIL(channel_stats(channel).open == 0);
    vnx_side_channel_free(channel);
}

static void
test_attack_drip_does_not_extend_the_deadline(void **state)
{
    (void)state;
    vnx_side_channel_options_t options = {.size = sizeof options,
                                          .client_timeout_ms = 1000};
    vnx_side_channel_t *channel = channel_new(&options);
    int port = channel_start(channel, BLOB, BLOB_LEN);
    int fd = peer_connect(port);
    uint64_t start = vnxi_clock_ns();

    /* 16 bytes at one in 150 ms would take 2.4 s. */
    for (int i = 0; i < PEER_REQUEST_LEN; i++) {
        if (send(fd, &PEER_REQUEST[i], 1, MSG_NOSIGNAL) != 1) {
            break;
        }
        channel_expect(channel, port, BLOB, BLOB_LEN);
        usleep(150000);
    }
    peer_expect_end(fd);
    assert_int_equal(channel_stats(channel).timed_out, 1);
    assert_true(vnxi_clock_ns() - start < vnx_test_limit(10));
    vnx_side_channel_free(channel);
}

static void
test_attack_garbage_closes_its_connection(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        size_t len;
    } garbage[] = {
        {"\xff\xff\xff\xff", 4},                 /* an absurd length */
        {"\0\0\x04\x0d", 4},                     /* one above the cap */
        {"\0\0\0\0", 4},                         /* an empty request */
        {"\0\0\0\014get_metadata", 16},          /* another request */
        {"\0\0\0\013GET_METADAT", 15},           /* a shorter one */
        {"\0\0\0\015GET_METADATA!", 17},         /* a longer one */
        {"\014\0\0\0GET_METADATA", 16},          /* the other byte order */
        {"GET / HTTP/1.1\r\n\r\n", 18},          /* HTTP */
        {"\x16\x03\x01\x02\0\x01\0\x01\xfc", 9}, /* TLS */
        {"\xff\0\0\0\0\0\0\0\x01\x7f", 10},      /* ZMTP */
    };
    const size_t count = sizeof garbage / sizeof garbage[0];
    vnx_side_channel_t *channel = channel_new(NULL);
    int port = channel_start(channel, BLOB, BLOB_LEN);

    for (size_t i = 0; i < count; i++) {
        int fd = peer_connect(port);
        peer_send(fd, garbage[i].bytes, garbage[i].len);
        peer_expect_end(fd);
        channel_expect(channel, port, BLOB, BLOB_LEN);
    }
    assert_int_equal(channel_stats(channel).refused, count);
    vnx_side_channel_free(channel);
}

static void
test_attack_largest_request_is_read_and_refused(void **state)
{
    (void)state;
    unsigned char frame[4 + 1036] = {0, 0, 0x04, 0x0c};
    vnx_side_channel_t *channel = channel_new(NULL);
    int port = channel_start(channel, BLOB, BLOB_LEN);
    int fd = peer_connect(port);

    memcpy(frame + 4, "GET_METADATA", 12);
    peer_send(fd, frame, sizeof frame - 1);
    channel_expect(channel, port, BLOB, BLOB_LEN);
    assert_int_equal(channel_stats(channel).refused, 0);
    peer_send(fd, frame + sizeof frame - 1, 1);
    peer_expect_end(fd);
    assert_int_equal(channel_stats(channel).refused, 1);
    vnx_side_channel_free(channel);
}

static void
test_attack_resets_and_storms_leak_nothing(void **state)
{
    (void)state;
    expect_storm_leaves_nothing(&attacked, 2000);
}

static void
test_attack_clients_that_never_read_are_reset(void **state)
{
    (void)state;
    const size_t len = 32u << 20;
    vnx_side_channel_options_t options = {.size = sizeof options,
                                          .client_timeout_ms = 500};
    vnx_side_channel_t *channel = channel_new(&options);
    unsigned char *data = pattern(len, 1);
    int port = channel_start(channel, data, len);
    int fds[32];
    char byte;

    for (int i = 0; i < 32; i++) {
        fds[i] = never_reading(&attacked, port);
    }
    WAIT_UNTIL(channel_stats(channel).timed_out == 32);
    WAIT_UNTIL(channel_stats(channel).open == 0);
    assert_int_equal(channel_stats(channel).served, 0);
    for (int i = 0; i < 32; i++) { /* what they got ends in a reset */
        while (recv(fds[i], &byte, 1, MSG_TRUNC | MSG_DONTWAIT) > 0) {
        }
        close(fds[i]);
    }
    free(data);
    vnx_side_channel_free(channel);
}

static void
test_attack_clients_that_never_read_are_evicted(void **state)
{
    (void)state;
    expect_never_reading_give_way(&attacked);
}

static void
test_attack_served_idle_client_is_evicted(void **state)
{
    (void)state;
    vnx_side_channel_options_t options = {.size = sizeof options,
                                          .max_connections = 2,
                                          .client_timeout_ms = 3600000};
    vnx_side_channel_t *channel = channel_new(&options);
    int port = channel_start(channel, BLOB, BLOB_LEN);
    char got[4 + BLOB_LEN];
    int fds[4];

    for (int i = 0; i < 4; i++) {
        fds[i] = peer_connect(port);
        peer_send(fds[i], PEER_REQUEST, PEER_REQUEST_LEN);
        assert_int_equal(peer_recv(fds[i], got, sizeof got), sizeof got);
    }
    WAIT_UNTIL(channel_stats(channel).served == 4);
    assert_true(channel_stats(channel).open <= 2);
    assert_int_equal(channel_stats(channel).evicted, 0);
    for (int i = 0; i < 4; i++) {
        peer_expect_end(fds[i]);
    }
    vnx_side_channel_free(channel);
}

static void
test_attack_service_survives_lack_of_descriptors(void **state)
{
    (void)state;
    expect_no_fds_are_survived(&attacked);
}

/* -- Servers -------------------------------------------------------------- */

static void
test_attack_silent_server_cannot_exceed_the_deadline(void **state)
{
    (void)state;
    expect_request_ends_in_time(channel_new, peer_serve_silence,
                                "receiving from 127.0.0.1: timed out");
}

/* A byte in 20 ms: a timeout of each read would never come. */
static void
serve_drip(peer_server_t *server, int client)
{
    static const char reply[] = "\0\0\x10\0";

    for (int i = 0; !peer_server_stopped(server, 20); i++) {
        const char *byte = i < 4 ? &reply[i] : "x";
        if (send(client, byte, 1, MSG_NOSIGNAL) != 1) {
            return;
        }
    }
}

static void
test_attack_dripping_server_cannot_exceed_the_deadline(void **state)
{
    (void)state;
    expect_request_ends_in_time(channel_new, serve_drip, "receiving from");
}

#define FLOOD (256u << 20) /* more than anyone reads in 100 ms */

static size_t flooded; /* read after the server has stopped */

/* The socket never runs dry. */
static void
serve_flood(peer_server_t *server, int client)
{
    static char junk[1 << 16];

    send(client, "\x10\0\0\0", 4, MSG_NOSIGNAL);
    for (flooded = 0; flooded < FLOOD && !peer_server_stopped(server, 0);
         flooded += 512) {
        if (send(client, junk, 512, MSG_NOSIGNAL) <= 0) {
            return;
        }
    }
}

static void
test_attack_flooding_server_cannot_exceed_the_deadline(void **state)
{
    (void)state;
    vnx_side_channel_t *channel = channel_new(NULL);
    peer_server_t server = {0};
    void *got = NULL;
    size_t len;

    peer_server_start(&server, serve_flood);
    assert_int_equal(vnx_side_channel_request(channel, "127.0.0.1",
                                              server.port, 100, &got, &len,
                                              NULL),
                     VNX_ERR_TIMEOUT);
    peer_server_stop(&server);
    assert_true(flooded < FLOOD);
    vnx_side_channel_free(channel);
}

static void
expect_refusal(const char *reply, size_t len, vnx_status_t status,
               const char *text)
{
    vnx_side_channel_t *channel = channel_new(NULL);
    peer_server_t server = {.reply = reply, .reply_len = len};

    peer_server_start(&server, peer_serve_reply);
    channel_expect_failure(channel, server.port, 20000, status, text);
    peer_server_stop(&server);
    vnx_side_channel_free(channel);
}

static void
test_attack_broken_replies_raise_clear_errors(void **state)
{
    (void)state;
    expect_refusal("", 0, VNX_ERR_BACKEND, "closed without a reply");
    expect_refusal("\0\0\0", 3, VNX_ERR_BACKEND, "in the reply's length");
    expect_refusal("\0\0\0\010half", 8, VNX_ERR_BACKEND,
                   "closed after 4 of 8 bytes");
    expect_refusal("\xff\xff\xff\xff", 4, VNX_ERR_MISMATCH,
                   "4294967295 bytes is above max_frame (268435456)");
    expect_refusal("HTTP/1.1 400 Bad Request\r\n\r\n", 28, VNX_ERR_MISMATCH,
                   "above max_frame");
}

static void
serve_reset(peer_server_t *server, int client)
{
    char request[PEER_REQUEST_LEN];

    (void)server;
    peer_recv(client, request, sizeof request);
    send(client, "\0\0\0\010half", 8, MSG_NOSIGNAL);
    peer_reset(dup(client)); /* the option is the socket's, not the copy's */
}

static void
test_attack_server_that_resets_is_an_error(void **state)
{
    (void)state;
    vnx_side_channel_t *channel = channel_new(NULL);
    peer_server_t server = {0};

    peer_server_start(&server, serve_reset);
    channel_expect_failure(channel, server.port, 20000, VNX_ERR_BACKEND,
                           "receiving from 127.0.0.1: Connection reset");
    peer_server_stop(&server);
    vnx_side_channel_free(channel);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_attack_by_a_silent_crowd),
        cmocka_unit_test(test_attack_by_a_one_byte_crowd),
        cmocka_unit_test(test_attack_by_a_half_frame_crowd),
        cmocka_unit_test(test_attack_crowd_beyond_the_table_is_evicted),
        cmocka_unit_test(test_attack_silent_client_is_closed_at_its_deadline),
        cmocka_unit_test(test_attack_drip_does_not_extend_the_deadline),
        cmocka_unit_test(test_attack_garbage_closes_its_connection),
        cmocka_unit_test(test_attack_largest_request_is_read_and_refused),
        cmocka_unit_test(test_attack_resets_and_storms_leak_nothing),
        cmocka_unit_test(test_attack_clients_that_never_read_are_reset),
        cmocka_unit_test(test_attack_clients_that_never_read_are_evicted),
        cmocka_unit_test(test_attack_served_idle_client_is_evicted),
        cmocka_unit_test(test_attack_service_survives_lack_of_descriptors),
        cmocka_unit_test(test_attack_silent_server_cannot_exceed_the_deadline),
        cmocka_unit_test(
            test_attack_dripping_server_cannot_exceed_the_deadline),
        cmocka_unit_test(
            test_attack_flooding_server_cannot_exceed_the_deadline),
        cmocka_unit_test(test_attack_broken_replies_raise_clear_errors),
        cmocka_unit_test(test_attack_server_that_resets_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
