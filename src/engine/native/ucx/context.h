/*
 * An agent's UCX state: one context and `workers` workers, each with its own
 * thread, which sleeps until there is work.  Peers connect to worker 0, whose
 * address is in our metadata.  We connect to peers from every worker, so that
 * one transfer can be split over several threads.
 *
 * All code that touches a worker runs on the worker's thread (worker.h).  The
 * calls here and in conn.h and transfer.h queue commands and return.
 * vnxi_ucx_create() starts worker 0; the others are started when first needed.
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
    /* A notification arrived; `sender` is the name given in the message. */
    void (*notif)(void *context, const void *sender, size_t sender_len,
                  const void *message, size_t message_len);
    /* The connection with this cookie has failed.  Called once, and not after
     * vnxi_ucx_conn_close() was called, unless it is running at that time. */
    void (*lost)(void *context, uintptr_t cookie, const char *cause);
} vnxi_ucx_events_t;

typedef struct vnxi_ucx_config {
    const void *name; /* the agent's, followed by a NUL; copied: the sender of
                         notifications */
    size_t name_len;
    unsigned workers;          /* > 0; at most VNXI_UCX_WORKERS_MAX are
                                  created */
    uint64_t stall_timeout_ns; /* a transfer without progress for this time
                                  fails; 0: never */
    const vnx_param_t *params; /* of NIXL's backend: "device_list",
                                  "engine_config"; others are ignored */
    size_t param_count;
    vnxi_ucx_events_t events;
} vnxi_ucx_config_t;

/* Load the library, create the context, start worker 0 and wait for it (about
 * 100 ms at worst).  VNX_ERR_NOT_FOUND: no library found; the cause lists the
 * places searched.  VNX_ERR_INVALID_PARAM: UCX refuses the devices. */
vnx_status_t vnxi_ucx_create(const vnxi_ucx_config_t *config,
                             vnxi_ucx_t **ucx_p, vnx_error_t *error);

/* Close connections (messages queued on them are sent first, for at most half
 * a second) and end the threads.  No transfer may be in flight.  Connections,
 * memory and keys stay valid objects until released; operations on them fail.
 */
void vnxi_ucx_stop(vnxi_ucx_t *ucx);

/* Wait until no transfer that must not go on (transfer.h) is in flight, and
 * `done` was called for those that were.  About two seconds at worst if their
 * connections do not move, and as long as vnxi_ucx_xfer_cancel() says if they
 * do.  Must not be called from `done`. */
void vnxi_ucx_settle(vnxi_ucx_t *ucx);

/* It must be stopped.  The objects created from it keep its memory until they
 * are released, too.  NULL is allowed. */
void vnxi_ucx_release(vnxi_ucx_t *ucx);

/* Worker 0's address: the same bytes as long as the object exists. */
const void *vnxi_ucx_address(const vnxi_ucx_t *ucx, size_t *len_p);

/* Return whether it supports GPU memory. */
bool vnxi_ucx_has_cuda(const vnxi_ucx_t *ucx);

/* The number of our regions that peers cannot reach by UCX (memory.h). */
size_t vnxi_ucx_withheld(const vnxi_ucx_t *ucx);

/* "UCX 1.22, /path/libucp.so.0"; valid as long as the object exists. */
const char *vnxi_ucx_version(const vnxi_ucx_t *ucx);

/* Whether the library is guarded, and why (engine/ucx_guard.h).  Static
 * storage. */
const char *vnxi_ucx_guarded(const vnxi_ucx_t *ucx);

unsigned vnxi_ucx_workers(const vnxi_ucx_t *ucx);

#endif
