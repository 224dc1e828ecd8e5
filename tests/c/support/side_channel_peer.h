/*
 * The other end of a side channel, written from the bytes of the protocol with
 * blocking sockets and nothing of the library, and what the tests of the side
 * channel share.
 */
#ifndef VNX_SIDE_CHANNEL_PEER_H
#define VNX_SIDE_CHANNEL_PEER_H

#include "open_fds.h"

#include <pthread.h>
#include <stdbool.h>
#include <unistd.h>
#include <vnx/side_channel.h>

/* "GET_METADATA" in its frame. */
#define PEER_REQUEST "\0\0\0\014GET_METADATA"
#define PEER_REQUEST_LEN 16

/* -- Raw clients ---------------------------------------------------------- */

/* A connected IPv4 loopback socket; reads give up after 20 s. */
int peer_connect(int port);
void peer_send(int fd, const void *data, size_t len);
/* Read `len` bytes, or fewer up to the end of the connection. */
size_t peer_recv(int fd, void *data, size_t len);
/* Read until the server closes or resets the connection. */
void peer_expect_end(int fd);
/* Close with a reset. */
void peer_reset(int fd);
/* The number of connections that wait until this listening socket accepts
 * them.  A connection gets there some time after connect(). */
unsigned peer_count_waiting(int listener);

/* -- A raw server --------------------------------------------------------- */

typedef struct peer_server {
    int fd, port;
    pthread_t thread;
    void (*serve)(struct peer_server *server, int client);
    int stop[2];       /* a pipe; closing its end stops what `serve` does */
    const void *reply; /* for peer_serve_reply */
    size_t reply_len;
} peer_server_t;

/* Serve one client after the other with `serve` until peer_server_stop(). */
void peer_server_start(peer_server_t *server,
                       void (*serve)(peer_server_t *, int));
void peer_server_stop(peer_server_t *server);

/* Send `reply` as it stands. */
void peer_send_reply(peer_server_t *server, int client);
/* Read the request, send `reply` as it stands, close. */
void peer_serve_reply(peer_server_t *server, int client);
/* Hold the client, silently, until the server stops. */
void peer_serve_silence(peer_server_t *server, int client);
/* Wait at most `ms`; true when the server has to stop. */
bool peer_server_stopped(peer_server_t *server, int ms);

/* -- Side channels under test --------------------------------------------- */

/* How a test makes channels of its transport. */
typedef vnx_side_channel_t *
channel_make_t(const vnx_side_channel_options_t *options);

vnx_side_channel_t *channel_of(vnx_side_channel_kind_t kind,
                               const vnx_side_channel_options_t *options);
channel_make_t channel_new; /* by TCP */
/* Start on any port of every address. */
int channel_start(vnx_side_channel_t *channel, const void *data, size_t len);
/* One request over IPv4 that must bring exactly these bytes. */
void channel_expect(vnx_side_channel_t *channel, int port, const void *data,
                    size_t len);
/* Serve that many bytes, then others; request each twice. */
void channel_expect_sizes(vnx_side_channel_t *server,
                          vnx_side_channel_t *client, const size_t *sizes,
                          size_t count);
/* One request that must fail with `status` and the message `text`. */
void channel_expect_failure(vnx_side_channel_t *channel, int port,
                            int timeout_ms, vnx_status_t status,
                            const char *text);
/* One request for what is under `key`; its `text_p` only on success. */
vnx_status_t channel_ask(vnx_side_channel_t *channel, const char *host,
                         int port, const char *key, char text_p[64],
                         vnx_error_t *error);
vnx_side_channel_stats_t channel_stats(const vnx_side_channel_t *channel);
/* `served` requests were answered over the one connection `fd`, which is
 * closed then, and nothing was refused. */
void channel_expect_one_connection(const vnx_side_channel_t *channel, int fd,
                                   uint64_t served);

/* Wait (30 s at most, then fail) until `condition` holds. */
#define WAIT_UNTIL(condition)                           \
    do {                                                \
        for (int tries_ = 0; !(condition); tries_++) {  \
            if (tries_ == 30000) {                      \
                fail_msg("never came: %s", #condition); \
            }                                           \
            usleep(1000);                               \
        }                                               \
    } while (0)

/* -- The process ---------------------------------------------------------- */

/* Raise the soft limit to the hard one; how many fds there may be. */
size_t raise_fd_limit(void);
bool have_ipv6(void);
/* Bytes that depend on their place and on `seed`; free() them. */
unsigned char *pattern(size_t len, unsigned seed);

#endif
