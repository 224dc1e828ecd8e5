#include "side_channel_peer.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "net/tls.h"

static struct sockaddr_in
loopback(int port)
{
    return (struct sockaddr_in){.sin_family = AF_INET,
                                .sin_port = htons((uint16_t)port),
                                .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

int
peer_connect(int port)
{
    struct sockaddr_in addr = loopback(port);
    struct timeval limit = {.tv_sec = 20};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;

    assert_true(fd >= 0);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    assert_int_equal(connect(fd, (void *)&addr, sizeof addr), 0);
    return fd;
}

void
peer_send(int fd, const void *data, size_t len)
{
    assert_int_equal(send(fd, data, len, MSG_NOSIGNAL), len);
}

size_t
peer_recv(int fd, void *data, size_t len)
{
    size_t have = 0;
    while (have < len) {
        ssize_t count = recv(fd, (char *)data + have, len - have, 0);
        if (count <= 0) {
            break;
        }
        have += (size_t)count;
    }
    return have;
}

void
peer_expect_end(int fd)
{
    char byte[4096];
    ssize_t count;

    while ((count = recv(fd, byte, sizeof byte, 0)) > 0) {
    }
    if (count < 0) {
        assert_int_equal(errno, ECONNRESET);
    }
    close(fd);
}

void
peer_reset(int fd)
{
    struct linger at_once = {.l_onoff = 1, .l_linger = 0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    close(fd);
}

unsigned
peer_count_waiting(int listener)
{
    struct tcp_info info;
    socklen_t len = sizeof info;

    assert_int_equal(getsockopt(listener, IPPROTO_TCP, TCP_INFO, &info, &len),
                     0);
    return info.tcpi_unacked;
}

static void *
server_main(void *arg)
{
    peer_server_t *server = arg;

    for (;;) {
        struct pollfd fds[2] = {{.fd = server->fd, .events = POLLIN},
                                {.fd = server->stop[0], .events = POLLIN}};
        poll(fds, 2, -1);
        if (fds[1].revents != 0) {
            return NULL;
        }
        int client = accept4(server->fd, NULL, NULL, SOCK_CLOEXEC);
        if (client >= 0) {
            server->serve(server, client);
            close(client);
        }
    }
}

void
peer_server_start(peer_server_t *server, void (*serve)(peer_server_t *, int))
{
    struct sockaddr_in addr = loopback(0);
    socklen_t len = sizeof addr;

    server->serve = serve;
    server->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(server->fd, (void *)&addr, len), 0);
    assert_int_equal(listen(server->fd, 64), 0);
    assert_int_equal(getsockname(server->fd, (void *)&addr, &len), 0);
    server->port = ntohs(addr.sin_port);
    assert_int_equal(pipe(server->stop), 0);
    assert_int_equal(
        pthread_create(&server->thread, NULL, server_main, server), 0);
}

void
peer_server_stop(peer_server_t *server)
{
    close(server->stop[1]);
    pthread_join(server->thread, NULL);
    close(server->stop[0]);
    close(server->fd);
}

bool
peer_server_stopped(peer_server_t *server, int ms)
{
    struct pollfd entry = {.fd = server->stop[0], .events = POLLIN};
    return poll(&entry, 1, ms) > 0;
}

void
peer_send_reply(peer_server_t *server, int client)
{
    size_t sent = 0;

    while (sent < server->reply_len) {
        ssize_t count = send(client, (const char *)server->reply + sent,
                             server->reply_len - sent, MSG_NOSIGNAL);
        if (count <= 0) {
            return;
        }
        sent += (size_t)count;
    }
}

void
peer_serve_reply(peer_server_t *server, int client)
{
    char request[PEER_REQUEST_LEN];

    if (peer_recv(client, request, sizeof request) == sizeof request &&
        memcmp(request, PEER_REQUEST, sizeof request) == 0) {
        peer_send_reply(server, client);
    }
}

void
peer_serve_silence(peer_server_t *server, int client)
{
    (void)client;
    peer_server_stopped(server, -1);
}

vnx_side_channel_t *
channel_of(vnx_side_channel_kind_t kind,
           const vnx_side_channel_options_t *options)
{
    vnx_side_channel_t *channel;

    if (!VNXI_TLS_IS_THERE && options != NULL && options->secret != NULL) {
        print_message("skipped: this build has no TLS, so no secrets\n");
        skip();
    }
    assert_int_equal(vnx_side_channel_create(kind, options, &channel, NULL),
                     VNX_OK);
    return channel;
}

vnx_side_channel_t *
channel_new(const vnx_side_channel_options_t *options)
{
    return channel_of(VNX_SIDE_CHANNEL_TCP, options);
}

int
channel_start(vnx_side_channel_t *channel, const void *data, size_t len)
{
    int port = -1;
    assert_int_equal(
        vnx_side_channel_start(channel, NULL, 0, data, len, &port, NULL),
        VNX_OK);
    assert_in_range(port, 1, 65535);
    return port;
}

void
channel_expect(vnx_side_channel_t *channel, int port, const void *data,
               size_t len)
{
    vnx_error_t error = {0};
    void *got = NULL;
    size_t got_len = 0;

    if (vnx_side_channel_request(channel, "127.0.0.1", port, 60000, &got,
                                 &got_len, &error) != VNX_OK) {
        fail_msg("request failed: %s", error.cause);
    }
    assert_non_null(got);
    assert_int_equal(got_len, len);
    assert_true(len == 0 || memcmp(got, data, len) == 0);
    free(got);
}

void
channel_expect_sizes(vnx_side_channel_t *server, vnx_side_channel_t *client,
                     const size_t *sizes, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        unsigned char *data = pattern(sizes[i], (unsigned)i);
        int port = channel_start(server, data, sizes[i]);
        channel_expect(client, port, data, sizes[i]);
        channel_expect(client, port, data, sizes[i]);
        vnx_side_channel_shutdown(server);
        free(data);
    }
}

void
channel_expect_failure(vnx_side_channel_t *channel, int port, int timeout_ms,
                       vnx_status_t status, const char *text)
{
    vnx_error_t error = {0};
    void *got = NULL;
    size_t got_len = 77;

    assert_int_equal(vnx_side_channel_request(channel, "127.0.0.1", port,
                                              timeout_ms, &got, &got_len,
                                              &error),
                     status);
    assert_null(got);
    assert_int_equal(got_len, 77);
    assert_int_equal(error.status, status);
    if (strstr(error.cause, text) == NULL) {
        fail_msg("'%s' is not in '%s'", text, error.cause);
    }
}

vnx_status_t
channel_ask(vnx_side_channel_t *channel, const char *host, int port,
            const char *key, char text_p[64], vnx_error_t *error)
{
    vnx_side_channel_request_params_t params = {.size = sizeof params,
                                                .host = host,
                                                .port = port,
                                                .timeout_ms = 20000,
                                                .key = key,
                                                .key_length = strlen(key)};
    void *data;
    size_t len;

    vnx_status_t status =
        vnx_side_channel_request_with(channel, &params, &data, &len, error);
    if (status == VNX_OK) {
        assert_in_range(len, 0, 63);
        memcpy(text_p, data, len);
        text_p[len] = '\0';
        free(data);
    }
    return status;
}

vnx_side_channel_stats_t
channel_stats(const vnx_side_channel_t *channel)
{
    vnx_side_channel_stats_t stats;
    vnx_side_channel_stats(channel, &stats);
    return stats;
}

void
channel_expect_one_connection(const vnx_side_channel_t *channel, int fd,
                              uint64_t served)
{
    WAIT_UNTIL(channel_stats(channel).served == served);
    assert_int_equal(channel_stats(channel).accepted, 1);
    close(fd);
    WAIT_UNTIL(channel_stats(channel).open == 0);
    assert_int_equal(channel_stats(channel).refused, 0);
}

size_t
raise_fd_limit(void)
{
    struct rlimit limit;

    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    limit.rlim_cur = limit.rlim_max;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
    return limit.rlim_cur > 1000000 ? 1000000 : (size_t)limit.rlim_cur;
}

bool
have_ipv6(void)
{
    struct sockaddr_in6 addr = {.sin6_family = AF_INET6,
                                .sin6_addr = in6addr_loopback};
    int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool have = fd >= 0 && bind(fd, (void *)&addr, sizeof addr) == 0;

    if (fd >= 0) {
        close(fd);
    }
    return have;
}

VNX_TEST_UNWATCHED unsigned char *
pattern(size_t len, unsigned seed)
{
    unsigned char *data = malloc(len + 1);

    assert_non_null(data);
    for (size_t i = 0; i < len; i++) {
        data[i] = (unsigned char)((i * 2654435761u + seed) >> 13);
    }
    return data;
}
