/*
 * Crowds at a listener, whatever it speaks: what the tests of attacks share.
 */
#ifndef VNX_SIDE_CHANNEL_CROWD_H
#define VNX_SIDE_CHANNEL_CROWD_H

#include "side_channel_peer.h"

#include <stdlib.h>
#include <unistd.h>

#define BLOB "the metadata of a well-behaved exchange"
#define BLOB_LEN (sizeof BLOB - 1)
#define SERVED 20 /* exchanges that must succeed meanwhile */

typedef vnx_side_channel_t *
channel_make_t(const vnx_side_channel_options_t *options);

static void
expect_service(vnx_side_channel_t *channel, int port)
{
    for (int i = 0; i < SERVED; i++) {
        channel_expect(channel, port, BLOB, BLOB_LEN);
    }
}

/* As many as `most`, each with `len` bytes sent, then nothing: all are held,
 * and others are served. */
static void
expect_crowd_held(channel_make_t *make, size_t most, const void *data,
                  size_t len)
{
    size_t limit = raise_fd_limit();
    size_t count = limit > 2 * most + 400 ? most : (limit - 200) / 2;
    vnx_side_channel_options_t options = {
        .size = sizeof options, .max_connections = (uint32_t)count + 100};
    vnx_side_channel_t *channel = make(&options);
    int port = channel_start(channel, BLOB, BLOB_LEN);
    int *fds = calloc(count, sizeof *fds);

    assert_non_null(fds);
    for (size_t i = 0; i < count; i++) {
        fds[i] = peer_connect(port);
        if (len > 0) {
            peer_send(fds[i], data, len);
        }
    }
    expect_service(channel, port);
    assert_true(channel_stats(channel).served >= SERVED - 1);
    assert_int_equal(channel_stats(channel).evicted, 0);
    vnx_side_channel_free(channel); /* does not wait for them */
    for (size_t i = 0; i < count; i++) {
        peer_expect_end(fds[i]);
    }
    free(fds);
}

/* More than the table has room for: the oldest go, and others are served. */
static void
expect_crowd_gives_way(channel_make_t *make)
{
    vnx_side_channel_options_t options = {.size = sizeof options,
                                          .max_connections = 16};
    vnx_side_channel_t *channel = make(&options);
    int port = channel_start(channel, BLOB, BLOB_LEN);
    int fds[300];

    raise_fd_limit();
    for (int i = 0; i < 300; i++) {
        fds[i] = peer_connect(port);
    }
    expect_service(channel, port);
    WAIT_UNTIL(channel_stats(channel).accepted == 300 + SERVED);
    assert_true(channel_stats(channel).evicted >= 300 - 16);
    assert_true(channel_stats(channel).open <= 16);
    peer_expect_end(fds[0]);
    for (int i = 1; i < 300; i++) {
        close(fds[i]);
    }
    vnx_side_channel_free(channel);
}

#endif
