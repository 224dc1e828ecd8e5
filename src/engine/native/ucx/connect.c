/*
 * Creating connections, and connecting in the background.
 */
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/mutex.h"
#include "engine/native/ucx/ep.h"

/* -- Warming up ------------------------------------------------------------
 */

/* A worker that was not started before the connection was closed got no
 * command to close its ep. */
static void
run_warm_up(vnxi_ucx_command_t *command, vnxi_ucx_worker_t *worker)
{
    vnxi_ucx_ep_t *ep =
        (vnxi_ucx_ep_t *)((char *)command -
                          offsetof(vnxi_ucx_ep_t, warm_command));

    (void)worker;
    atomic_store(&ep->warm_queued, false);
    if (!atomic_load(&ep->conn->dead) &&
        vnxi_ucx_ep_open(ep, "vnx_agent_connect_peer", NULL) == VNX_OK) {
        vnxi_ucx_ep_ask(ep);
    }
    vnxi_ucx_conn_release(ep->conn); /* the command's reference */
}

typedef bool push_t(vnxi_ucx_worker_t *worker, vnxi_ucx_command_t *command);

static void
warm_up(vnxi_ucx_ep_t *ep, push_t *push)
{
    if (atomic_exchange(&ep->warm_queued, true)) {
        return;
    }
    ep->warm_command.run = run_warm_up;
    vnxi_ucx_conn_retain(ep->conn);
    if (!push(ep->worker, &ep->warm_command)) {
        atomic_store(&ep->warm_queued, false);
        vnxi_ucx_conn_release(ep->conn);
    }
}

void
vnxi_ucx_conn_warm_up(vnxi_ucx_conn_t *conn)
{
    for (unsigned i = 0; i < conn->ucx->worker_count; i++) {
        warm_up(&conn->eps[i], vnxi_ucx_worker_push);
    }
}

/* -- Creating --------------------------------------------------------------
 */

/* UCX may read beyond a hostile address that is cut short; how far is unknown.
 * So it is followed by bytes that end such a read: 0xff terminates the lists
 * of which an address consists. */
#define PADDING (32u << 10)

static vnxi_ucx_conn_t *
conn_alloc(vnxi_ucx_t *ucx, const void *address, size_t len)
{
    size_t eps = ucx->worker_count * sizeof(vnxi_ucx_ep_t);
    vnxi_ucx_conn_t *conn = malloc(sizeof *conn + eps + len + PADDING);
    if (conn == NULL) {
        return NULL;
    }
    memset(conn, 0, sizeof *conn);
    unsigned char *copy = (unsigned char *)conn->eps + eps;
    memcpy(copy, address, len);
    memset(copy + len, 0xff, PADDING);
    atomic_init(&conn->refs, 1);
    vnxi_mutex_init(&conn->lock, VNXI_RANK_UCX_CONN);
    conn->ucx = ucx;
    conn->address = copy;
    conn->address_len = len;
    for (unsigned i = 0; i < ucx->worker_count; i++) {
        vnxi_ucx_ep_init(&conn->eps[i], conn, &ucx->workers[i]);
    }
    vnxi_ucx_retain(ucx);
    return conn;
}

/* Worker 0, which this starts, and the other running workers connect at once
 * instead of with the first transfer.  The reason: if UCX creates an endpoint
 * to a process that has ended, it keeps the sockets that it opened for the
 * endpoint; and a peer is most likely to be alive when its metadata arrives.
 */
void
vnxi_ucx_conn_begin(vnxi_ucx_conn_t *conn)
{
    warm_up(&conn->eps[0], vnxi_ucx_worker_push);
    for (unsigned i = 1; i < conn->ucx->worker_count; i++) {
        warm_up(&conn->eps[i], vnxi_ucx_worker_push_if_started);
    }
}

vnx_status_t
vnxi_ucx_conn_create(vnxi_ucx_t *ucx, const void *address, size_t len,
                     uintptr_t cookie, vnxi_ucx_conn_t **conn_p,
                     vnx_error_t *error)
{
    if (len == 0 || len > VNXI_UCX_ADDRESS_MAX) {
        return vnxi_error_set(error, VNX_ERR_MISMATCH,
                              "vnx_agent_load_metadata",
                              "%zu bytes are not a UCX address", len);
    }
    vnxi_ucx_conn_t *conn = conn_alloc(ucx, address, len);
    if (conn == NULL) {
        return vnxi_error_no_memory(error, "vnx_agent_load_metadata",
                                    len + PADDING);
    }
    conn->cookie = cookie;
    *conn_p = conn;
    return VNX_OK;
}
