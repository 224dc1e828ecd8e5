/*
 * Proofs from a peer that does not know the secret.  The first byte of an
 * input selects the receiver of the rest: a listener, which must not answer
 * with a byte of its metadata, or a client, which must not accept it.
 */
#include "fuzz.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>
#include <vnx/side_channel.h>

#define SECRET "the secret of the fuzzer"
#define SERVED "\xa5\x5a\xa5\x5a served \x5a\xa5"

static vnx_side_channel_t *channel;
static int port;      /* of the listener */
static int liar_fd;   /* listens for the client */
static int liar_port; /* of that */

/* The bytes that the false server sends to the next client. */
static const uint8_t *lie;
static size_t lie_len;

static struct sockaddr_in
loopback(int to)
{
    return (struct sockaddr_in){.sin_family = AF_INET,
                                .sin_port = htons((uint16_t)to),
                                .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

static void
make_once(void)
{
    vnx_side_channel_options_t options = {.size = sizeof options,
                                          .secret = SECRET};
    struct sockaddr_in addr = loopback(0);
    socklen_t len = sizeof addr;

    if (channel != NULL) {
        return;
    }
    must(vnx_side_channel_create(VNX_SIDE_CHANNEL_TCP, &options, &channel,
                                 NULL) == VNX_OK);
    must(vnx_side_channel_start(channel, "127.0.0.1", 0, SERVED,
                                sizeof SERVED - 1, &port, NULL) == VNX_OK);
    liar_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    must(bind(liar_fd, (void *)&addr, len) == 0);
    must(listen(liar_fd, 16) == 0);
    must(getsockname(liar_fd, (void *)&addr, &len) == 0);
    liar_port = ntohs(addr.sin_port);
}

static void
say_to_listener(const uint8_t *data, size_t size)
{
    struct sockaddr_in addr = loopback(port);
    char got[4096];
    size_t have = 0;
    ssize_t count;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    must(fd >= 0 && connect(fd, (void *)&addr, sizeof addr) == 0);
    (void)!send(fd, data, size, MSG_NOSIGNAL);
    shutdown(fd, SHUT_WR);
    while (have < sizeof got &&
           (count = recv(fd, got + have, sizeof got - have, 0)) > 0) {
        have += (size_t)count;
    }
    must(memmem(got, have, SERVED, sizeof SERVED - 1) == NULL);
    close(fd);
}

static void *
liar_main(void *arg)
{
    char heard[256];
    int fd = accept4(liar_fd, NULL, NULL, SOCK_CLOEXEC);

    (void)arg;
    must(fd >= 0);
    (void)!send(fd, lie, lie_len, MSG_NOSIGNAL);
    shutdown(fd, SHUT_WR);
    while (recv(fd, heard, sizeof heard, 0) > 0) {
    }
    close(fd);
    return NULL;
}

static void
say_to_client(const uint8_t *data, size_t size)
{
    pthread_t thread;
    void *got;
    size_t len;

    lie = data;
    lie_len = size;
    must(pthread_create(&thread, NULL, liar_main, NULL) == 0);
    must(vnx_side_channel_request(channel, "127.0.0.1", liar_port, 10000, &got,
                                  &len, NULL) != VNX_OK);
    pthread_join(thread, NULL);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    make_once();
    if (size == 0) {
        return 0;
    }
    if (data[0] % 2 == 0) {
        say_to_listener(data + 1, size - 1);
    } else {
        say_to_client(data + 1, size - 1);
    }
    return 0;
}
