/*
 * The metadata listener: exchanges metadata between agents over NIXL's own
 * socket protocol.  Either end may be a stock NIXL agent.
 *
 * A listener belongs to one agent.  It has two parts.  The server accepts
 * metadata from other agents, sends this agent's metadata on request, and
 * removes peers that ask for it.  The client sends, fetches and invalidates
 * metadata; it works without the server.  The protocol acknowledges nothing
 * (its only reply is metadata) and authenticates nobody.  A call therefore
 * reports only that a command was queued, and anyone who can connect to the
 * port can load and remove peers.  An agent with a metadata secret loads only
 * signed metadata, here too.  Wire format: docs/wire.md.
 *
 * Threads: any call may be made from any thread at any time, except
 * vnx_listener_free(), which must be the last one.  Threads of the listener,
 * which it starts when it needs them, do the work: one for the connections and
 * up to eight that load metadata and remove peers.  A load may wait for a
 * process of this host that is stopped; this delays no other connection.
 * Waiting: vnx_listener_start() waits for the resolver if `host` is a name.
 * vnx_listener_stop() waits for commands in progress, for at most one second,
 * and gives up loads that wait.  No other call waits.  Errors that occur after
 * a call has returned are logged, counted (vnx_listener_stats()) and stored
 * (vnx_listener_failure()).
 * Forks: a listener belongs to the parent.  In a forked child, calls return
 * VNX_ERR_NOT_ALLOWED; stopping and freeing do nothing.
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

/* Set `size`.  Any other field may be 0 for its default. */
typedef struct vnx_listener_options {
    size_t size;              /* sizeof(vnx_listener_options_t) */
    uint64_t max_frame;       /* bytes of one frame, in or out;
                                 VNX_LISTENER_MAX_FRAME.  All connections
                                 together hold at most twice that: the one
                                 that holds most is closed */
    uint32_t max_connections; /* accepted at the same time; a new one
                                 replaces the one that has been idle
                                 longest.  1024, or what RLIMIT_NOFILE
                                 allows */
    uint32_t timeout_ms;      /* to connect, for each frame, and for each
                                 reply until its last byte;
                                 VNX_LISTENER_TIMEOUT_MS */
} vnx_listener_options_t;

typedef struct vnx_listener_stats {
    uint64_t accepted, open; /* incoming connections: in total, now */
    uint64_t refused;        /* closed because of invalid input */
    uint64_t timed_out;      /* closed because of a timeout */
    uint64_t evicted;        /* closed to make room */
    uint64_t loaded;         /* metadata received and loaded */
    uint64_t load_failures;  /* metadata received but not loaded */
    uint64_t served;         /* times our metadata was requested and sent */
    uint64_t invalidated;    /* peers removed at their own request */
    uint64_t sent;           /* our commands that were completed */
    uint64_t send_failures;  /* our commands that failed */
    uint64_t pending;        /* our commands that are waiting */
} vnx_listener_stats_t;

/* Create a listener for `agent` and retain the agent.  Starts no thread and
 * opens no socket.  `options` may be NULL.  Returns VNX_OK and *out_p, which
 * the caller frees with vnx_listener_free().  Errors: VNX_ERR_INVALID_PARAM,
 * VNX_ERR_NO_MEMORY. */
vnx_status_t vnx_listener_create(vnx_agent_t *agent,
                                 const vnx_listener_options_t *options,
                                 vnx_listener_t **out_p, vnx_error_t *error);

/* Stop and free.  NULL is allowed. */
void vnx_listener_free(vnx_listener_t *listener);

/* Listen on `port` of `host`.  NULL or "" means all addresses of the machine,
 * IPv6 and IPv4.  Port 0 binds a free port.  When this returns VNX_OK, the
 * socket is listening and *port_p (port_p may be NULL) is the bound port.
 * Errors: VNX_ERR_NOT_ALLOWED (already listening), VNX_ERR_INVALID_PARAM (port
 * above 65535, unknown host), VNX_ERR_BACKEND (the port is in use, ...),
 * VNX_ERR_TIMEOUT (the name service did not answer), VNX_ERR_CLOSED (after
 * vnx_listener_stop()), VNX_ERR_NO_MEMORY. */
vnx_status_t vnx_listener_start(vnx_listener_t *listener, const char *host,
                                int port, int *port_p, vnx_error_t *error);

/* Stop for good: send the queued commands, close all connections, release the
 * port and end the thread.  Later calls return VNX_ERR_CLOSED.  May be called
 * more than once. */
void vnx_listener_stop(vnx_listener_t *listener);

/* The bound port, or 0 if the listener is not listening. */
int vnx_listener_port(const vnx_listener_t *listener);

/* Send `metadata` (copied; NULL: the agent's complete current metadata) to the
 * listener at host:port, which loads it.  `host` is an address or a name.
 * Errors of this call and the next two: VNX_ERR_INVALID_PARAM (no host, port
 * not in 1 to 65535, metadata longer than max_frame or containing the
 * protocol's marker), VNX_ERR_BACKEND (too many commands are queued),
 * VNX_ERR_CLOSED, VNX_ERR_NO_MEMORY, and the errors of vnx_agent_metadata().
 */
vnx_status_t vnx_listener_send(vnx_listener_t *listener, const char *host,
                               int port, const void *metadata, size_t length,
                               vnx_error_t *error);

/* Request the metadata of the listener at host:port and load it when it
 * arrives.  `peer` is the name of the expected agent (NULL: any).  Metadata of
 * another agent is loaded too, and a warning is logged. */
vnx_status_t vnx_listener_fetch(vnx_listener_t *listener, const char *host,
                                int port, const void *peer, size_t peer_len,
                                vnx_error_t *error);

/* Tell the listener at host:port to remove this agent. */
vnx_status_t vnx_listener_invalidate(vnx_listener_t *listener,
                                     const char *host, int port,
                                     vnx_error_t *error);

void vnx_listener_stats(const vnx_listener_t *listener,
                        vnx_listener_stats_t *stats_p);

/* The last error of work in the background.  False: none so far. */
bool vnx_listener_failure(vnx_listener_t *listener, vnx_error_t *failure_p);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
