/*
 * Agents with metadata listeners, and a stranger's sockets: the other end is
 * written from the bytes of the protocol, with nothing of the library.
 */
#ifndef LISTENER_FIXTURE_H
#define LISTENER_FIXTURE_H

#include "agent_fixture.h"
#include "side_channel_peer.h"

#include <unistd.h>
#include <vnx/listener.h>

#define HERE "127.0.0.1"

typedef struct node {
    vnx_agent_t *agent;
    vnx_listener_t *listener;
    int port;
} node_t;

/* An agent whose listener does not listen. */
static inline node_t
node_new(const char *name, const vnx_listener_options_t *options)
{
    node_t node = {.agent = make_agent(name)};
    assert_ok(vnx_listener_create(node.agent, options, &node.listener, e));
    return node;
}

/* One whose listener does, on any port. */
static inline node_t
node_listening(const char *name, const vnx_listener_options_t *options)
{
    node_t node = node_new(name, options);
    assert_ok(vnx_listener_start(node.listener, NULL, 0, &node.port, e));
    assert_int_equal(vnx_listener_port(node.listener), node.port);
    return node;
}

static inline void
node_free(node_t *node)
{
    vnx_listener_free(node->listener);
    vnx_agent_release(node->agent);
}

static inline bool
knows(const node_t *node, const char *peer)
{
    return vnx_agent_check_peer(node->agent, peer, strlen(peer), VNX_MEM_DRAM,
                                NULL, 0);
}

static inline vnx_listener_stats_t
counts(const node_t *node)
{
    vnx_listener_stats_t stats;
    vnx_listener_stats(node->listener, &stats);
    return stats;
}

/* The last failure, which must be there, as its line. */
static inline const char *
failure_of(const node_t *node)
{
    static char line[1024];
    vnx_error_t failure;
    assert_true(vnx_listener_failure(node->listener, &failure));
    vnx_error_format(&failure, line, sizeof line);
    return line;
}

static inline void
assert_says(const char *text, const char *part)
{
    if (strstr(text, part) == NULL) {
        fail_msg("'%s' is not in '%s'", part, text);
    }
}

/* The failure of `node` says `part`, at once or in a moment. */
static inline void
await_failure(const node_t *node, const char *part)
{
    vnx_error_t failure;
    WAIT_UNTIL(vnx_listener_failure(node->listener, &failure) &&
               strstr(failure_of(node), part) != NULL);
}

/* -- A stranger ----------------------------------------------------------- */

static inline void
put_length(unsigned char out[8], uint64_t len)
{
    for (int i = 0; i < 8; i++) {
        out[i] = (unsigned char)(len >> 8 * i);
    }
}

/* Send a frame with these bytes. */
static inline void
raw_frame(int fd, const void *payload, size_t len)
{
    unsigned char header[8];
    put_length(header, len);
    peer_send(fd, header, sizeof header);
    peer_send(fd, payload, len);
}

/* Send a frame of one command. */
static inline void
raw_command(int fd, const char *verb, const void *body, size_t len)
{
    unsigned char *payload = malloc(13 + len);
    assert_non_null(payload);
    memcpy(payload, "NIXLCOMM:", 9);
    memcpy(payload + 9, verb, 4);
    if (len > 0) {
        memcpy(payload + 13, body, len);
    }
    raw_frame(fd, payload, 13 + len);
    free(payload);
}

/* Receive a whole frame, which must be a LOAD; its body, to be freed. */
static inline unsigned char *
raw_load(int fd, size_t *len_p)
{
    unsigned char header[8], mark[13];
    uint64_t len = 0;

    assert_int_equal(peer_recv(fd, header, 8), 8);
    for (int i = 7; i >= 0; i--) {
        len = len << 8 | header[i];
    }
    assert_true(len >= 13 && len < 1u << 30);
    assert_int_equal(peer_recv(fd, mark, 13), 13);
    assert_memory_equal(mark, "NIXLCOMM:LOAD", 13);
    unsigned char *body = malloc(len - 13 + 1);
    assert_non_null(body);
    assert_int_equal(peer_recv(fd, body, len - 13), len - 13);
    *len_p = len - 13;
    return body;
}

/* The listener still does its work. */
static inline void
expect_service(const node_t *node)
{
    vnx_bytes_t metadata;
    size_t len;
    int fd = peer_connect(node->port);
    raw_command(fd, "SEND", NULL, 0);
    unsigned char *body = raw_load(fd, &len);
    assert_ok(vnx_agent_metadata(node->agent, &metadata, e));
    assert_int_equal(len, metadata.len);
    assert_memory_equal(body, metadata.data, len);
    free(metadata.data);
    free(body);
    close(fd);
}

#endif
