/*
 * Connections: from each of our workers to a peer's worker 0.  Each is opened
 * on the worker's thread: at once by running workers, by the others when first
 * needed.
 *
 * A connection fails once and for good: the peer's process ended, its host
 * cannot be reached, or UCX refuses the address.  The first worker to notice
 * reports it (`lost`), and all workers close their endpoint by force, which
 * ends all pending operations.  A reset, which ends a stall, closes one
 * worker's endpoint; the next use opens it again.  A notification that UCX
 * could not send, because of a reset or otherwise, fails the connection, so
 * that no notification is lost silently.
 */
#ifndef VNXI_NATIVE_UCX_CONN_H
#define VNXI_NATIVE_UCX_CONN_H

#include "engine/native/ucx/context.h"

typedef struct vnxi_ucx_conn vnxi_ucx_conn_t;

#define VNXI_UCX_ADDRESS_MAX (64u << 10)
#define VNXI_UCX_NOTIF_QUEUE_MAX (256u << 20)

/* Create a connection to this address (copied).  It connects when it is used.
 * The caller gets one reference.  VNX_ERR_MISMATCH: not a possible address;
 * VNX_ERR_NO_MEMORY.  `cookie` is for `lost`. */
vnx_status_t vnxi_ucx_conn_create(vnxi_ucx_t *ucx, const void *address,
                                  size_t len, uintptr_t cookie,
                                  vnxi_ucx_conn_t **conn_p,
                                  vnx_error_t *error);

/* Start connecting in the background from worker 0 and from the other running
 * workers. */
void vnxi_ucx_conn_begin(vnxi_ucx_conn_t *conn);
bool vnxi_ucx_conn_is_to(const vnxi_ucx_conn_t *conn, const void *address,
                         size_t len);

/* The peer is a vllm_nixl agent.  It also keeps its endpoints when it closes a
 * connection over TCP, so that a later connection can use them (ep.c). */
void vnxi_ucx_conn_is_of_ours(vnxi_ucx_conn_t *conn);

/* Connect from every worker, in the background. */
void vnxi_ucx_conn_warm_up(vnxi_ucx_conn_t *conn);

/* Return whether the peer has answered. */
bool vnxi_ucx_conn_is_wired(const vnxi_ucx_conn_t *conn);

/* Close the connection.  From now on nothing is posted.  Queued messages are
 * sent, for up to 1.5 s, and then the endpoints are closed.  Over TCP
 * to a vllm_nixl agent, they are kept for the next connection to the same
 * address (ep.c).  No `lost` afterwards.  Idempotent. */
void vnxi_ucx_conn_close(vnxi_ucx_conn_t *conn);

vnxi_ucx_conn_t *vnxi_ucx_conn_retain(vnxi_ucx_conn_t *conn);
void vnxi_ucx_conn_release(vnxi_ucx_conn_t *conn); /* NULL is allowed */

/* Queue a notification (copied).  They are sent in the order of the calls.
 * VNX_ERR_REMOTE_DISCONNECT; VNX_ERR_BACKEND: VNXI_UCX_NOTIF_QUEUE_MAX bytes
 * are already waiting. */
vnx_status_t vnxi_ucx_conn_send_notif(vnxi_ucx_conn_t *conn,
                                      const void *message, size_t len,
                                      vnx_error_t *error);

/* Get the transports in use as text with UCX's names, like "rma: cma, am:
 * tcp/lo"; "" while not connected.  Recorded when the peer answered. */
void vnxi_ucx_conn_transports(vnxi_ucx_conn_t *conn, char *text_p,
                              size_t size);

#endif
