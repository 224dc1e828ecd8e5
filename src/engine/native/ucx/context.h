/*
 * An agent's share of UCX: one context and `workers` workers, each with a
 * thread of its own that sleeps until there is something to do.  Peers reach
 * us at worker 0, whose address is in our metadata; we reach them from every
 * worker, so that one transfer can be split over several threads.
 *
 * Whatever touches a worker runs on its thread (worker.h); the calls here and
 * in conn.h, transfer.h queue commands and return.  Worker 0 is started by
 * vnxi_ucx_create(), the others when they are first needed.
 */
#ifndef VNXI_NATIVE_UCX_CONTEXT_H
#define VNXI_NATIVE_UCX_CONTEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <vnx/vnx.h>

typedef struct vnxi_ucx vnxi_ucx_t;

#define VNXI_UCX_WORKERS_MAX 16u

/* Called on a worker's thread, never after vnxi_ucx_stop() has returned. */
typedef struct vnxi_ucx_events {
    void *context;
    /* A notification came; `sender` is what it says of itself. */
    void (*notif)(void *context, const void *sender, size_t sender_len,
                  const void *message, size_t message_len);
    /* A connection (by its cookie) has failed; once, and not after
     * vnxi_ucx_conn_close() has been called, unless it is running now. */
    void (*lost)(void *context, uintptr_t cookie, const char *cause);
} vnxi_ucx_events_t;

typedef struct vnxi_ucx_config {
    const void *name; /* the agent's, copied: the sender of notifications */
    size_t name_len;
    unsigned workers;          /* > 0; at most VNXI_UCX_WORKERS_MAX are made */
    uint64_t stall_timeout_ns; /* a transfer that makes no progress for so long
                                  fails; 0: never */
    const vnx_param_t *params; /* of NIXL's backend: "device_list",
                                  "engine_config"; others are ignored */
    size_t param_count;
    vnxi_ucx_events_t events;
} vnxi_ucx_config_t;

/* Load the library, make the context, start worker 0 and wait for it (some 100
 * ms at worst).  VNX_ERR_NOT_FOUND: there is no library; the cause says where
 * was looked.  VNX_ERR_INVALID_PARAM: a parameter that UCX refuses. */
vnx_status_t vnxi_ucx_create(const vnxi_ucx_config_t *config,
                             vnxi_ucx_t **ucx_p, vnx_error_t *error);

/* Close connections (what is queued on them is sent first, for half a second
 * at most), end the threads.  No transfer is in flight any more. Connections,
 * memory and keys stay valid objects until released; what is asked of them
 * fails. */
void vnxi_ucx_stop(vnxi_ucx_t *ucx);

/* Everything made from it holds a reference. */
void vnxi_ucx_retain(vnxi_ucx_t *ucx);
void vnxi_ucx_release(vnxi_ucx_t *ucx); /* stopped; NULL is allowed */

/* Worker 0's address: the same bytes for as long as the object lives. */
const void *vnxi_ucx_address(const vnxi_ucx_t *ucx, size_t *len_p);

/* Does it move memory of GPUs? */
bool vnxi_ucx_has_cuda(const vnxi_ucx_t *ucx);

/* "UCX 1.22, /path/libucp.so.0"; as long as the object lives. */
const char *vnxi_ucx_version(const vnxi_ucx_t *ucx);

/* Is the library guarded, and why (parts/ucx_guard.h)?  Static storage. */
const char *vnxi_ucx_guarded(const vnxi_ucx_t *ucx);

unsigned vnxi_ucx_workers(const vnxi_ucx_t *ucx);

#endif
