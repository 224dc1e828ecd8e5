/* Secrets and TLS between our own client and listener: who is admitted, who is
 * refused, and the errors.  Floods within TLS, from either end. */
#include "child_check.h"
#include "tls_channels.h"

#include <dirent.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/at_end.h"
#include "net/tls.h"
#include "side_channel/client_conn.h"

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

/* -- Floods --------------------------------------------------------------- */

/* A context as our listeners have it. */
static void *
server_context(void)
{
    char paths[2][128];
    vnx_side_channel_options_t options = {
        .size = sizeof options,
        .tls = VNXI_TLS_CERTIFICATE,
        .tls_certificate = in_folder("server.pem", paths[0]),
        .tls_key = in_folder("server.key", paths[1])};
    void *ctx = NULL;

    assert_int_equal(vnxi_tls_server_context(&options, "test", &ctx, NULL),
                     VNX_OK);
    return ctx;
}

/* Send many KeyUpdates and a byte, all at once. */
static void
send_key_updates(SSL *ssl, int fd)
{
    BIO *out = BIO_new(BIO_s_mem());
    char *data;

    assert_non_null(out);
    SSL_set0_wbio(ssl, out);
    for (int i = 0; i < 200; i++) {
        assert_int_equal(SSL_key_update(ssl, SSL_KEY_UPDATE_NOT_REQUESTED), 1);
        assert_int_equal(SSL_do_handshake(ssl), 1);
    }
    assert_int_equal(SSL_write(ssl, "x", 1), 1);
    long len = BIO_get_mem_data(out, &data);
    peer_send(fd, data, (size_t)len);
}

static void
one_round(struct event_base *base)
{
    event_base_loop(base, EVLOOP_ONCE | EVLOOP_NONBLOCK);
}

/* A round of the listener's loop takes one KeyUpdate, however many wait. */
static void
test_tls_flood_of_a_client_leaves_the_loop_to_others(void **state)
{
    (void)state;
    void *server_ctx = server_context(), *tls = NULL;
    SSL_CTX *client_ctx = SSL_CTX_new(TLS_client_method());
    SSL *client = SSL_new(client_ctx);
    struct event_base *base = event_base_new();
    int fds[2], left = 0;

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds),
                     0);
    struct bufferevent *bev =
        vnxi_tls_accept(server_ctx, base, fds[0], BEV_OPT_CLOSE_ON_FREE, &tls);
    bufferevent_enable(bev, EV_READ);
    SSL_set_fd(client, fds[1]);
    SSL_set_connect_state(client);
    WAIT_UNTIL((one_round(base),
                SSL_do_handshake(client) == 1 && !vnxi_tls_is_shaking(tls)));
    send_key_updates(client, fds[1]);
    one_round(base);
    assert_int_equal(ioctl(fds[0], FIONREAD, &left), 0);
    assert_true(left > 0);
    WAIT_UNTIL((one_round(base),
                evbuffer_get_length(bufferevent_get_input(bev)) == 1));

    bufferevent_free(bev);
    one_round(base);
    event_base_free(base);
    SSL_free(client);
    SSL_CTX_free(client_ctx);
    vnxi_tls_context_free(server_ctx);
    close(fds[1]);
}

/* A client's stream over a socket that blocks: no step may wait for more. */
static void
stream_open(vnxi_stream_t *stream, int port)
{
    char path[128];
    vnx_side_channel_options_t options = {.size = sizeof options,
                                          .tls = VNXI_TLS_CERTIFICATE,
                                          .tls_ca = in_folder("ca.pem", path)};

    *stream = (vnxi_stream_t){.fd = peer_connect(port)};
    assert_int_equal(vnxi_tls_client_open(stream, "localhost", &options),
                     VNX_OK);
}

static void
stream_close(vnxi_stream_t *stream)
{
    vnxi_tls_client_close(stream);
    close(stream->fd);
}

/* Records full of HelloRequests, which a client skips; 4 MiB.  Closing with
 * the client's message unread would reset the connection. */
static void
serve_hello_requests(peer_server_t *server, int client)
{
    static const unsigned char record[5 + 16384] = {22, 3, 3, 0x40, 0};

    for (int i = 0; i < 256; i++) {
        if (send(client, record, sizeof record, MSG_NOSIGNAL) <= 0) {
            return;
        }
    }
    peer_server_stopped(server, -1);
}

static void
test_tls_flood_in_the_handshake_does_not_extend_a_step(void **state)
{
    (void)state;
    peer_server_t server = {0};
    vnxi_stream_t stream;

    peer_server_start(&server, serve_hello_requests);
    stream_open(&stream, server.port);
    assert_int_equal(vnxi_tls_client_shake(&stream), VNX_IN_PROG);
    assert_int_equal(stream.events, POLLIN);
    stream_close(&stream);
    peer_server_stop(&server);
}

static void
serve_key_updates(peer_server_t *server, int client)
{
    void *ctx = server_context();
    SSL *ssl = SSL_new(ctx);

    SSL_set_fd(ssl, client);
    assert_int_equal(SSL_accept(ssl), 1);
    send_key_updates(ssl, client);
    peer_server_stopped(server, -1);
    SSL_free(ssl);
    vnxi_tls_context_free(ctx);
}

static void
test_tls_flood_after_the_handshake_does_not_extend_a_step(void **state)
{
    (void)state;
    peer_server_t server = {0};
    vnxi_stream_t stream;
    vnx_status_t status;
    size_t count = 0;
    char byte;

    peer_server_start(&server, serve_key_updates);
    stream_open(&stream, server.port);
    assert_int_equal(vnxi_tls_client_shake(&stream), VNX_OK);
    assert_int_equal(vnxi_tls_client_recv(&stream, &byte, 1, &count),
                     VNX_IN_PROG);
    assert_int_equal(stream.events, POLLIN);
    do {
        status = vnxi_tls_client_recv(&stream, &byte, 1, &count);
    } while (status == VNX_IN_PROG);
    assert_int_equal(status, VNX_OK);
    assert_int_equal(count, 1);
    assert_int_equal(byte, 'x');
    stream_close(&stream);
    peer_server_stop(&server);
}

/* More than a step receives, in two records more than it needs. */
#define LONG_BODY ((256u << 10) + 99)

static void
serve_long_body(peer_server_t *server, int client)
{
    void *ctx = server_context();
    SSL *ssl = SSL_new(ctx);
    unsigned char *data = pattern(1 + LONG_BODY, 5);

    SSL_set_fd(ssl, client);
    assert_int_equal(SSL_accept(ssl), 1);
    assert_int_equal(SSL_write(ssl, data, 1 + LONG_BODY), 1 + LONG_BODY);
    peer_server_stopped(server, -1);
    free(data);
    SSL_free(ssl);
    vnxi_tls_context_free(ctx);
}

/* A step that ends within a record leaves bytes that are not in the socket. */
static void
test_tls_what_is_decrypted_already_is_not_waited_for(void **state)
{
    (void)state;
    vnxi_request_t request = {.deadline = UINT64_MAX};
    vnxi_client_conn_t conn = {.request = &request, .stage = VNXI_CLIENT_OPEN};
    vnxi_incoming_t in = {.head_want = 1, .body_want = LONG_BODY};
    unsigned char *data = pattern(1 + LONG_BODY, 5);
    peer_server_t server = {0};
    vnx_status_t status;

    peer_server_start(&server, serve_long_body);
    stream_open(&conn.stream, server.port);
    assert_int_equal(vnxi_tls_client_shake(&conn.stream), VNX_OK);
    for (;;) {
        request.wake = UINT64_MAX;
        status = vnxi_client_conn_receive(&conn, &in);
        if (status != VNX_IN_PROG) {
            break;
        }
        struct pollfd entry = {.fd = request.fd, .events = request.events};
        assert_true(request.wake != UINT64_MAX || poll(&entry, 1, 20000) == 1);
    }
    assert_int_equal(status, VNX_OK);
    assert_memory_equal(in.body.data, data + 1, LONG_BODY);
    vnxi_body_fini(&in.body);
    free(data);
    vnxi_client_conn_fini(&conn);
    peer_server_stop(&server);
}

/* -- The end of the process ----------------------------------------------- */

static vnx_side_channel_t *kept; /* which nobody frees */

/* The threads of listeners. */
static size_t
count_threads(void)
{
    DIR *folder = opendir("/proc/self/task");
    char path[64], name[16];
    size_t count = 0;

    CHECK(folder != NULL);
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;) {
        snprintf(path, sizeof path, "/proc/self/task/%.20s/comm",
                 entry->d_name);
        FILE *file = fopen(path, "r");
        if (file != NULL && fgets(name, sizeof name, file) != NULL) {
            count += strcmp(name, "vnx-tcp\n") == 0;
        }
        if (file != NULL) {
            fclose(file);
        }
    }
    closedir(folder);
    return count;
}

/* The kernel removes a thread soon after it was joined. */
static void
check_that_it_stopped(void)
{
    for (int i = 0; count_threads() > 0; i++) {
        CHECK(i < 10000);
        usleep(1000);
    }
}

static void
leave_running(void)
{
    vnx_side_channel_options_t options = {.size = sizeof options,
                                          .secret = SECRET};

    CHECK(vnx_side_channel_create(VNX_SIDE_CHANNEL_TCP, &options, &kept,
                                  NULL) == VNX_OK);
    CHECK(vnx_side_channel_start(kept, "127.0.0.1", 0, "x", 1, NULL, NULL) ==
          VNX_OK);
    CHECK(count_threads() > 0);
}

static void
just_exit(void)
{
    leave_running();
}

/* It can be freed after the end has begun, and another can be started. */
static void
end_early(void)
{
    leave_running();
    vnxi_at_end_run();
    check_that_it_stopped();
    vnx_side_channel_free(kept);
    leave_running();
}

static void
free_before(void)
{
    leave_running();
    vnx_side_channel_free(kept);
    leave_running();
}

/* Of two, one is not there any more. */
static void
free_one(void)
{
    leave_running();
    vnx_side_channel_t *first = kept;
    leave_running();
    vnx_side_channel_free(first);
}

/* What was registered before OpenSSL was used is called after OpenSSL has
 * freed its data.  No thread may use it by then. */
static void
test_tls_listener_stops_at_the_end_of_the_process(void **state)
{
    (void)state;
    static void (*const ends[])(void) = {just_exit, end_early, free_before,
                                         free_one};

    for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++) {
        int status = -1;
        pid_t child = fork();
        if (child == 0) {
            alarm(60); /* a hang ends as a failure */
            atexit(check_that_it_stopped);
            ends[i]();
            exit(0);
        }
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_int_equal(status, 0);
    }
}

/* -- Damage --------------------------------------------------------------- */

static struct damage {
    size_t at; /* which byte of a record is changed */
    char bits;
} damage;

/* A record that a byte of was changed, after the handshake. */
static void
serve_damage(peer_server_t *server, int client)
{
    void *ctx = server_context();
    SSL *ssl = SSL_new(ctx);
    BIO *out = BIO_new(BIO_s_mem());
    char *data;

    SSL_set_fd(ssl, client);
    assert_int_equal(SSL_accept(ssl), 1);
    SSL_set0_wbio(ssl, out);
    assert_int_equal(SSL_write(ssl, "metadata", 8), 8);
    long len = BIO_get_mem_data(out, &data);
    data[damage.at] = (char)(data[damage.at] ^ damage.bits);
    peer_send(client, data, (size_t)len);
    peer_server_stopped(server, -1);
    SSL_free(ssl);
    vnxi_tls_context_free(ctx);
}

/* A peer that has completed the handshake speaks TLS. */
static void
test_tls_damage_after_the_handshake_is_not_taken_for_plain(void **state)
{
    (void)state;
    static const struct damage all[] = {
        {0, 0x40},       /* type */
        {1, 0x40},       /* version */
        {3, (char)0x80}, /* length: too long */
        {4, 0x18},       /* length: too short */
        {7, 0x40},       /* ciphertext */
    };

    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        peer_server_t server = {0};
        vnxi_stream_t stream;
        size_t count;
        char bytes[8];

        damage = all[i];
        peer_server_start(&server, serve_damage);
        stream_open(&stream, server.port);
        assert_int_equal(vnxi_tls_client_shake(&stream), VNX_OK);
        assert_int_equal(
            vnxi_tls_client_recv(&stream, bytes, sizeof bytes, &count),
            VNX_ERR_NOT_ALLOWED);
        assert_non_null(strstr(stream.reason, "changed on the way"));
        stream_close(&stream);
        peer_server_stop(&server);
    }
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

/* The password is at hand, but nothing may ask for it: a program that starts a
 * listener does not wait for its terminal. */
static void
test_tls_key_with_a_password_is_refused(void **state)
{
    (void)state;
    char paths[2][128], command[512];
    int input[2], before = dup(0);

    snprintf(command, sizeof command,
             "openssl ec -in '%s' -aes128 -passout pass:password -out '%s' "
             "2>/dev/null",
             in_folder("server.key", paths[0]),
             in_folder("locked.key", paths[1]));
    assert_int_equal(system(command), 0);
    assert_int_equal(pipe(input), 0);
    assert_int_equal(write(input[1], "password\n", 9), 9);
    assert_int_equal(dup2(input[0], 0), 0);
    expect_start_failure("server.pem", "locked.key", "with a password");
    assert_int_equal(dup2(before, 0), 0);
    close(before);
    close(input[0]);
    close(input[1]);
}

/* The program may use OpenSSL too, and takes each error in this thread's queue
 * for one of its own. */
static void
test_tls_failures_leave_no_error_to_the_program(void **state)
{
    (void)state;
    vnx_side_channel_t *plain = channel_new(NULL);
    vnx_side_channel_t *server =
        tls_server(channel_new, "server.pem", NULL, 0);
    vnx_side_channel_t *trusting =
        tls_client(channel_new, "ca.pem", NULL, NULL);
    vnx_side_channel_t *strict =
        tls_client(channel_new, "nobody.pem", NULL, NULL);
    vnx_side_channel_t *lost = tls_client(channel_new, "none.pem", NULL, NULL);
    int port = channel_start(server, "x", 1);

    ERR_clear_error();
    channel_expect_failure(trusting, channel_start(plain, "x", 1), 20000,
                           VNX_ERR_MISMATCH, "speaks no TLS");
    assert_int_equal(ERR_peek_error(), 0);
    channel_expect_failure(strict, port, 20000, VNX_ERR_NOT_ALLOWED, "issuer");
    assert_int_equal(ERR_peek_error(), 0);
    channel_expect_failure(lost, port, 20000, VNX_ERR_INVALID_PARAM,
                           "none.pem");
    assert_int_equal(ERR_peek_error(), 0);
    expect_start_failure("server.pem", "other.key", "mismatch");
    assert_int_equal(ERR_peek_error(), 0);
    channel_expect(trusting, port, "x", 1);
    assert_int_equal(ERR_peek_error(), 0);
    vnx_side_channel_free(plain);
    vnx_side_channel_free(server);
    vnx_side_channel_free(trusting);
    vnx_side_channel_free(strict);
    vnx_side_channel_free(lost);
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
        cmocka_unit_test(test_tls_listener_stops_at_the_end_of_the_process),
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
        cmocka_unit_test(test_tls_flood_of_a_client_leaves_the_loop_to_others),
        cmocka_unit_test(
            test_tls_flood_in_the_handshake_does_not_extend_a_step),
        cmocka_unit_test(
            test_tls_flood_after_the_handshake_does_not_extend_a_step),
        cmocka_unit_test(test_tls_what_is_decrypted_already_is_not_waited_for),
        cmocka_unit_test(
            test_tls_damage_after_the_handshake_is_not_taken_for_plain),
        cmocka_unit_test(test_tls_missing_or_wrong_files_are_named),
        cmocka_unit_test(test_tls_key_with_a_password_is_refused),
        cmocka_unit_test(test_tls_failures_leave_no_error_to_the_program),
        cmocka_unit_test(test_tls_incompatible_options_are_refused),
    };
    return cmocka_run_group_tests(tests, make_certificates,
                                  remove_certificates);
}
