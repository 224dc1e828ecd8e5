/*
 * The metadata listener: agents hand their metadata to each other by NIXL's
 * own socket protocol, so that stock agents may be at either end.
 *
 * A listener belongs to one agent.  It may listen, so that others send their
 * metadata, ask for ours and take theirs back; and it sends, fetches and
 * invalidates, for which it need not listen.  The protocol has no answers but
 * metadata and no secrets: a call says that a command was accepted for
 * sending, and whoever reaches the port may load and remove peers.  An agent
 * with a metadata secret loads signed metadata only, here too.  Wire format:
 * docs/wire.md.
 *
 * Threads: every call may be made from any thread at any time, but for
 * vnx_listener_free(), which comes last.  All work is done by one thread of
 * the listener's own, started at first use.
 * Waiting: vnx_listener_start() waits for the look-up of a `host` that is a
 * name; vnx_listener_stop() for commands that are on their way, a second at
 * most, and for metadata that is being loaded.  Nothing else waits: what goes
 * wrong after a call has returned is logged, counted
 * (vnx_listener_stats()) and kept (vnx_listener_failure()).
 * Forks: a listener stays the parent's.  In a forked child calls return
 * VNX_ERR_NOT_ALLOWED, and stopping and freeing do nothing.
 */
#ifndef VNX_LISTENER_H
#define VNX_LISTENER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <vnx/error.h>
#include <vnx/vnx.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

#define VNX_LISTENER_PORT 8888 /* NIXL's default */
#define VNX_LISTENER_MAX_FRAME (256u << 20)
#define VNX_LISTENER_MAX_FRAME_LIMIT (1u << 30) /* NIXL's own */
#define VNX_LISTENER_TIMEOUT_MS 10000

typedef struct vnx_listener vnx_listener_t;

/* Every field but `size` may be 0 for its default. */
typedef struct vnx_listener_options {
    size_t size;              /* sizeof(vnx_listener_options_t) */
    uint64_t max_frame;       /* bytes of one frame, in and out;
                                 VNX_LISTENER_MAX_FRAME.  All connections
                                 together hold twice that, not more */
    uint32_t max_connections; /* taken at once; the longest idle one gives way
                                 to a new one.  1024, or what RLIMIT_NOFILE
                                 lets */
    uint32_t timeout_ms;      /* for connecting, for each frame and for each
                                 reply; VNX_LISTENER_TIMEOUT_MS */
} vnx_listener_options_t;

typedef struct vnx_listener_stats {
    uint64_t accepted, open; /* connections of others: ever, now */
    uint64_t refused;        /* closed for what they brought */
    uint64_t timed_out;      /* closed for the time they took */
    uint64_t evicted;        /* closed to make room */
    uint64_t loaded;         /* metadata that came and was loaded */
    uint64_t load_failures;  /* and was not */
    uint64_t served;         /* our metadata, asked for and sent */
    uint64_t invalidated;    /* peers removed because they said so */
    uint64_t sent;           /* our commands that were carried out */
    uint64_t send_failures;  /* and were not */
    uint64_t pending;        /* and are waiting */
} vnx_listener_stats_t;

/* Make a listener for `agent`, which it retains.  Starts no thread and opens
 * no socket.  `options` may be NULL.  Returns VNX_OK and *out_p, to be freed
 * with vnx_listener_free(), or VNX_ERR_INVALID_PARAM, VNX_ERR_NOT_SUPPORTED
 * (this build has no libevent), VNX_ERR_NO_MEMORY. */
vnx_status_t vnx_listener_create(vnx_agent_t *agent,
                                 const vnx_listener_options_t *options,
                                 vnx_listener_t **out_p, vnx_error_t *error);

/* Stop and free.  NULL is allowed. */
void vnx_listener_free(vnx_listener_t *listener);

/* Listen on `port` of `host`; NULL or "" means every address of the machine,
 * IPv6 and IPv4.  Port 0 binds a free one.  When this returns VNX_OK the
 * socket is listening and *port_p (may be NULL) has the port.
 * Errors: VNX_ERR_NOT_ALLOWED (it listens already), VNX_ERR_INVALID_PARAM
 * (port above 65535, unknown host), VNX_ERR_BACKEND (the port is taken, ...),
 * VNX_ERR_TIMEOUT (the name service did not answer), VNX_ERR_CLOSED (after
 * vnx_listener_stop()), VNX_ERR_NO_MEMORY. */
vnx_status_t vnx_listener_start(vnx_listener_t *listener, const char *host,
                                int port, int *port_p, vnx_error_t *error);

/* End it for good: what waits to be sent goes out, then all connections are
 * cut, the port is free and the thread has ended.  Later calls return
 * VNX_ERR_CLOSED.  May be called again. */
void vnx_listener_stop(vnx_listener_t *listener);

/* The bound port; 0 when it does not listen. */
int vnx_listener_port(const vnx_listener_t *listener);

/* Send `metadata` (copied; NULL: all of the agent's as it is now) to the
 * listener at host:port, which loads it.  `host`: an address, or a name.
 * Errors of this and the next two: VNX_ERR_INVALID_PARAM (no host, port not
 * in 1 to 65535, metadata above max_frame or with the protocol's own mark in
 * it), VNX_ERR_BACKEND (too much is waiting already), VNX_ERR_CLOSED,
 * VNX_ERR_NO_MEMORY, and those of vnx_agent_metadata(). */
vnx_status_t vnx_listener_send(vnx_listener_t *listener, const char *host,
                               int port, const void *metadata, size_t length,
                               vnx_error_t *error);

/* Ask the listener at host:port for its metadata, and load it when it comes.
 * `peer` is who is expected there (NULL: anybody): metadata of another is
 * loaded all the same, and a warning logged. */
vnx_status_t vnx_listener_fetch(vnx_listener_t *listener, const char *host,
                                int port, const void *peer, size_t peer_len,
                                vnx_error_t *error);

/* Have the listener at host:port forget this agent. */
vnx_status_t vnx_listener_invalidate(vnx_listener_t *listener,
                                     const char *host, int port,
                                     vnx_error_t *error);

void vnx_listener_stats(const vnx_listener_t *listener,
                        vnx_listener_stats_t *stats_p);

/* What went wrong last, by work in the background.  False: nothing did. */
bool vnx_listener_failure(vnx_listener_t *listener, vnx_error_t *failure_p);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
