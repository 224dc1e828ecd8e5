/*
 * Side channel: a small server and client that hand an agent's metadata over.
 *
 * Transports (today: TCP) stand behind one contract, so a program chooses one
 * by a constant and nothing else changes.  Wire formats: docs/wire.md.
 *
 * Threads: every call may be made from any thread at any time; freeing while
 * other threads are inside a call is safe.  A listener has one thread of its
 * own however many clients there are.
 * Waiting: vnx_side_channel_request() waits, for `timeout_ms` at most over the
 * whole exchange (name look-up, connecting, sending, receiving).  Starting
 * waits for the look-up of a `host` that is a name, for
 * VNX_SIDE_CHANNEL_TIMEOUT_MS at most.  Nothing else waits; shutting down does
 * not wait for clients.
 * Forks: a listener stays the parent's.  In a forked child it is not running,
 * its port is not held, starting is VNX_ERR_NOT_ALLOWED, shutting down and
 * freeing do nothing; requests work.
 */
#ifndef VNX_SIDE_CHANNEL_H
#define VNX_SIDE_CHANNEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <vnx/error.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

#define VNX_SIDE_CHANNEL_TIMEOUT_MS 5000
#define VNX_SIDE_CHANNEL_MAX_FRAME (256u << 20)

typedef enum vnx_side_channel_kind {
    VNX_SIDE_CHANNEL_TCP = 0,
} vnx_side_channel_kind_t;

typedef struct vnx_side_channel vnx_side_channel_t;

/* Every field may be 0 (or NULL) for its default.  Set `size` first. */
typedef struct vnx_side_channel_options {
    size_t size;                /* sizeof(vnx_side_channel_options_t) */
    uint32_t max_frame;         /* bytes of one reply that we accept or serve;
                                   VNX_SIDE_CHANNEL_MAX_FRAME */
    uint32_t max_connections;   /* at once; the oldest idle one gives way to a
                                   new one.  4096, or what RLIMIT_NOFILE lets */
    uint32_t client_timeout_ms; /* a client's whole exchange, at the server;
                                   VNX_SIDE_CHANNEL_TIMEOUT_MS */
} vnx_side_channel_options_t;

typedef struct vnx_side_channel_stats {
    uint64_t accepted; /* connections taken */
    uint64_t served;   /* replies sent whole */
    uint64_t refused;  /* connections closed for what they sent */
    uint64_t timed_out;
    uint64_t evicted; /* closed to make room for a new one */
    uint64_t open;    /* connections now */
} vnx_side_channel_stats_t;

/* Make a side channel.  Starts no thread and opens no socket.  `options` may
 * be NULL; it is copied.  Returns VNX_OK and *out_p, to be freed with
 * vnx_side_channel_free(), or VNX_ERR_INVALID_PARAM, VNX_ERR_NOT_SUPPORTED
 * (the transport was left out of this build), VNX_ERR_NO_MEMORY. */
vnx_status_t vnx_side_channel_create(vnx_side_channel_kind_t kind,
                                     const vnx_side_channel_options_t *options,
                                     vnx_side_channel_t **out_p,
                                     vnx_error_t *error);

/* Shut down and free.  NULL is allowed. */
void vnx_side_channel_free(vnx_side_channel_t *channel);

/* Serve `metadata` (copied; `length` may be 0) on `port` of `host`; NULL or
 * "" means every address of the machine, IPv6 and IPv4.  Port 0 binds a free
 * one.  When this returns VNX_OK the socket is listening and *port_p (may be
 * NULL) has the port.  A listener that was shut down may be started again, on
 * the same port too.
 * Errors: VNX_ERR_NOT_ALLOWED (already running), VNX_ERR_INVALID_PARAM (port
 * above 65535, metadata above max_frame, unknown host), VNX_ERR_BACKEND (the
 * address is in use, ...; the cause says so), VNX_ERR_TIMEOUT (the name
 * service did not answer), VNX_ERR_NO_MEMORY. */
vnx_status_t vnx_side_channel_start(vnx_side_channel_t *channel,
                                    const char *host, int port,
                                    const void *metadata, size_t length,
                                    int *port_p, vnx_error_t *error);

/* Stop serving; open exchanges are cut off.  Nothing happens when it is not
 * running.  When this returns the port is free. */
void vnx_side_channel_shutdown(vnx_side_channel_t *channel);

bool vnx_side_channel_is_running(const vnx_side_channel_t *channel);

/* The bound port; 0 when not running. */
int vnx_side_channel_port(const vnx_side_channel_t *channel);

void vnx_side_channel_stats(const vnx_side_channel_t *channel,
                            vnx_side_channel_stats_t *stats_p);

/* Ask the listener at host:port for its metadata.  Needs no listener of one's
 * own; many requests may run at once.  All addresses of the name are tried.
 * `timeout_ms` must be above 0.
 * On VNX_OK *metadata_p (to be freed with free(); not NULL even when empty)
 * and *length_p are set.
 * Errors: VNX_ERR_TIMEOUT, VNX_ERR_BACKEND (refused, reset, ...),
 * VNX_ERR_NOT_FOUND (unknown name), VNX_ERR_MISMATCH (the reply is no reply of
 * this protocol, or above max_frame), VNX_ERR_INVALID_PARAM,
 * VNX_ERR_NO_MEMORY. */
vnx_status_t vnx_side_channel_request(vnx_side_channel_t *channel,
                                      const char *host, int port,
                                      int timeout_ms, void **metadata_p,
                                      size_t *length_p, vnx_error_t *error);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
