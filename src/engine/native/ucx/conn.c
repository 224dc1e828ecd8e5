/*
 * What the eps of a connection share: its references, its state, and how it
 * fails or is closed.  connect.c opens it.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/fork_fds.h"
#include "base/mutex.h"
#include "engine/native/ucx/ep.h"

/* -- References ------------------------------------------------------------
 */

vnxi_ucx_conn_t *
vnxi_ucx_conn_retain(vnxi_ucx_conn_t *conn)
{
    atomic_fetch_add_explicit(&conn->refs, 1, memory_order_relaxed);
    return conn;
}

void
vnxi_ucx_conn_release(vnxi_ucx_conn_t *conn)
{
    if (conn != NULL && atomic_fetch_sub(&conn->refs, 1) == 1) {
        vnxi_ucx_t *ucx = conn->ucx;
        vnxi_mutex_destroy(&conn->lock);
        free(conn);
        vnxi_ucx_release(ucx);
    }
}

/* -- Facts -----------------------------------------------------------------
 */

void
vnxi_ucx_conn_is_of_ours(vnxi_ucx_conn_t *conn)
{
    atomic_store(&conn->of_ours, true);
}

bool
vnxi_ucx_conn_is_to(const vnxi_ucx_conn_t *conn, const void *address,
                    size_t len)
{
    return conn->address_len == len &&
           memcmp(conn->address, address, len) == 0;
}

bool
vnxi_ucx_conn_is_wired(const vnxi_ucx_conn_t *conn)
{
    return atomic_load(&conn->wired_eps) > 0;
}

void
vnxi_ucx_conn_transports(vnxi_ucx_conn_t *conn, char *text_p, size_t size)
{
    vnxi_mutex_lock(&conn->lock);
    snprintf(text_p, size, "%s", conn->transports);
    vnxi_mutex_unlock(&conn->lock);
}

/* -- Closing ---------------------------------------------------------------
 */

/* Called once per connection, by the thread that set `dead`. */
static void
wake_eps(vnxi_ucx_conn_t *conn)
{
    for (unsigned i = 0; i < conn->ucx->worker_count; i++) {
        vnxi_ucx_ep_t *ep = &conn->eps[i];
        vnxi_ucx_conn_retain(conn);
        if (!vnxi_ucx_worker_push_if_started(ep->worker, &ep->close_command)) {
            vnxi_ucx_conn_release(conn);
        }
    }
}

/* True for the first caller. */
static bool
mark_dead(vnxi_ucx_conn_t *conn, const char *cause, bool failed)
{
    vnxi_mutex_lock(&conn->lock);
    bool is_first = !atomic_load(&conn->dead);
    if (is_first) {
        snprintf(conn->cause, sizeof conn->cause, "%s", cause);
        atomic_store(&conn->dead, true);
    }
    if (failed) {
        atomic_store(&conn->failed, true);
    }
    vnxi_mutex_unlock(&conn->lock);
    return is_first;
}

void
vnxi_ucx_conn_fail(vnxi_ucx_conn_t *conn, const char *cause)
{
    const vnxi_ucx_events_t *events = &conn->ucx->events;
    if (mark_dead(conn, cause, true)) {
        wake_eps(conn);
        events->lost(events->context, conn->cookie, cause);
    }
}

void
vnxi_ucx_conn_close(vnxi_ucx_conn_t *conn)
{
    if (mark_dead(conn, "the connection was closed", false)) {
        wake_eps(conn);
    }
}

vnx_status_t
vnxi_ucx_conn_error(vnxi_ucx_conn_t *conn, const char *operation,
                    vnx_error_t *error)
{
    char cause[VNX_ERROR_CAUSE_MAX];

    vnxi_mutex_lock(&conn->lock);
    memcpy(cause, conn->cause, sizeof cause);
    vnxi_mutex_unlock(&conn->lock);
    if (cause[0] == '\0') {
        snprintf(cause, sizeof cause, "%s",
                 vnxi_fds_lost(conn->ucx->workers[0].fds)
                     ? "the program has closed the agent's descriptors"
                     : "the agent was closed");
    }
    return vnxi_error_set(error, VNX_ERR_REMOTE_DISCONNECT, operation, "%s",
                          cause);
}
