#include "tls_channels.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* -- Certificates --------------------------------------------------------- */

static char folder[64];

const char *
in_folder(const char *name, char path[128])
{
    snprintf(path, 128, "%s/%s", folder, name);
    return path;
}

int
make_certificates(void **state)
{
    (void)state;
    char command[512];

    strcpy(folder, "/tmp/vnx-tls-XXXXXX");
    assert_non_null(mkdtemp(folder));
    snprintf(command, sizeof command, "sh '%s' '%s'", VNX_MAKE_CERTIFICATES,
             folder);
    return system(command);
}

int
remove_certificates(void **state)
{
    (void)state;
    char command[128];

    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    return system(command);
}

/* -- Channels ------------------------------------------------------------- */

vnx_side_channel_t *
tls_server(channel_make_t *make, const char *certificate, const char *secret,
           uint32_t timeout_ms)
{
    char paths[2][128];
    vnx_side_channel_options_t options = {
        .size = sizeof options,
        .client_timeout_ms = timeout_ms,
        .tls_certificate = in_folder(certificate, paths[0]),
        .tls_key = in_folder("server.key", paths[1]),
        .secret = secret};

    return make(&options);
}

vnx_side_channel_t *
tls_client(channel_make_t *make, const char *ca, const char *name,
           const char *secret)
{
    char path[128];
    vnx_side_channel_options_t options = {.size = sizeof options,
                                          .tls_ca = in_folder(ca, path),
                                          .tls_name = name,
                                          .secret = secret};

    return make(&options);
}

/* -- What must hold ------------------------------------------------------- */

void
expect_tls_carries_every_size(channel_make_t *make, const char *secret)
{
    static const size_t sizes[] = {0, 1, 40000, 8u << 20};
    vnx_side_channel_t *server = tls_server(make, "server.pem", secret, 0);
    vnx_side_channel_t *client = tls_client(make, "ca.pem", NULL, secret);

    channel_expect_sizes(server, client, sizes,
                         sizeof sizes / sizeof sizes[0]);
    vnx_side_channel_free(server);
    vnx_side_channel_free(client);
}

typedef struct told {
    const char *certificate; /* of the server */
    const char *ca, *name;   /* that the client trusts and expects */
    const char *text;        /* part of what it is told */
} told_t;

static void
expect_told(channel_make_t *make, const told_t *told, const char *secret)
{
    vnx_side_channel_t *server = tls_server(make, told->certificate, NULL, 0);
    vnx_side_channel_t *client =
        tls_client(make, told->ca, told->name, secret);
    int port = channel_start(server, "x", 1);

    channel_expect_failure(client, port, 20000, VNX_ERR_NOT_ALLOWED,
                           told->text);
    WAIT_UNTIL(channel_stats(server).open == 0);
    assert_int_equal(channel_stats(server).served, 0);
    assert_int_equal(channel_stats(server).bytes_received, 0);
    vnx_side_channel_free(server);
    vnx_side_channel_free(client);
}

void
expect_tls_checks_certificates(channel_make_t *make, const char *secret)
{
    static const told_t cases[] = {
        {"expired.pem", "ca.pem", NULL, "expired"},
        {"other.pem", "ca.pem", NULL, "match"},
        {"server.pem", "ca.pem", "other.test", "match"},
        {"stranger.pem", "ca.pem", NULL, "issuer"},
        {"server.pem", "nobody.pem", NULL, "issuer"},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        expect_told(make, &cases[i], secret);
    }
    /* The name that is expected need not be the one that is asked. */
    vnx_side_channel_t *server = tls_server(make, "other.pem", NULL, 0);
    vnx_side_channel_t *client =
        tls_client(make, "ca.pem", "other.test", NULL);
    int port = channel_start(server, "x", 1);
    channel_expect(client, port, "x", 1);
    vnx_side_channel_free(server);
    vnx_side_channel_free(client);
}

void
expect_tls_half_handshakes_hold_nobody(channel_make_t *make)
{
    vnx_side_channel_t *server = tls_server(make, "server.pem", NULL, 2000);
    vnx_side_channel_t *client = tls_client(make, "ca.pem", NULL, NULL);
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
    channel_expect_failure(client, silent.port, 1000, VNX_ERR_TIMEOUT,
                           "TLS with 127.0.0.1: timed out");
    peer_server_stop(&silent);
    vnx_side_channel_free(server);
    vnx_side_channel_free(client);
}

void
expect_tls_shutdown_leaves_nothing(channel_make_t *make)
{
    const size_t len = 8u << 20;
    unsigned char *data = pattern(len, 9);
    size_t fds = open_fds();

    for (int i = 0; i < 5; i++) {
        vnx_side_channel_t *server = tls_server(make, "server.pem", NULL, 0);
        vnx_side_channel_t *client = tls_client(make, "ca.pem", NULL, NULL);
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
