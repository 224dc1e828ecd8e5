#include "engine/native/ucx/conn.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/mutex.h"
#include "engine/native/ucx/ep.h"
#include "engine/native/ucx/notif.h"

/* -- Creating and releasing ------------------------------------------------
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

/* 0xff terminates the lists of which an address consists. */
static vnxi_ucx_conn_t *
conn_alloc(vnxi_ucx_t *ucx, const void *address, size_t len)
{
    size_t eps = ucx->worker_count * sizeof(vnxi_ucx_ep_t);
    vnxi_ucx_conn_t *conn =
        malloc(sizeof *conn + eps + len + VNXI_UCX_PADDING);
    if (conn == NULL) {
        return NULL;
    }
    memset(conn, 0, sizeof *conn);
    unsigned char *copy = (unsigned char *)conn->eps + eps;
    memcpy(copy, address, len);
    memset(copy + len, 0xff, VNXI_UCX_PADDING);
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

typedef bool push_t(vnxi_ucx_worker_t *worker, vnxi_ucx_command_t *command);

static void warm_up(vnxi_ucx_ep_t *ep, push_t *push);

/* Worker 0, which this starts, and the other running workers connect at once
 * instead of with the first transfer.  The reason: if UCX creates an endpoint
 * to a process that has ended, it keeps the sockets that it opened for the
 * endpoint; and a peer is most likely to be alive when its metadata arrives.
 */
static void
begin(vnxi_ucx_conn_t *conn)
{
    warm_up(&conn->eps[0], vnxi_ucx_worker_push);
    for (unsigned i = 1; i < conn->ucx->worker_count; i++) {
        warm_up(&conn->eps[i], vnxi_ucx_worker_push_if_started);
    }
}

vnx_status_t
vnxi_ucx_conn_open(vnxi_ucx_t *ucx, const void *address, size_t len,
                   uintptr_t cookie, vnxi_ucx_conn_t **conn_p,
                   vnx_error_t *error)
{
    if (len == 0 || len > VNXI_UCX_ADDRESS_MAX) {
        return vnxi_error_set(error, VNX_ERR_MISMATCH, "add_remote_agent",
                              "%zu bytes are not a UCX address", len);
    }
    vnxi_ucx_conn_t *conn = conn_alloc(ucx, address, len);
    if (conn == NULL) {
        return vnxi_error_no_memory(error, "add_remote_agent",
                                    len + VNXI_UCX_PADDING);
    }
    conn->cookie = cookie;
    begin(conn);
    *conn_p = conn;
    return VNX_OK;
}

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

/* -- Warming up ------------------------------------------------------------
 */

static void
run_warm_up(vnxi_ucx_command_t *command, vnxi_ucx_worker_t *worker)
{
    vnxi_ucx_ep_t *ep =
        (vnxi_ucx_ep_t *)((char *)command -
                          offsetof(vnxi_ucx_ep_t, warm_command));

    (void)worker;
    atomic_store(&ep->warm_queued, false);
    if (vnxi_ucx_ep_open(ep, "make_connection", NULL) == VNX_OK) {
        vnxi_ucx_ep_ask(ep);
    }
    vnxi_ucx_conn_release(ep->conn); /* the command's reference */
}

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

/* As a command, so that it comes after earlier commands. */
static void
run_close(vnxi_ucx_command_t *command, vnxi_ucx_worker_t *worker)
{
    vnxi_ucx_ep_t *ep =
        (vnxi_ucx_ep_t *)((char *)command -
                          offsetof(vnxi_ucx_ep_t, close_command));
    (void)worker;
    vnxi_ucx_ep_close(ep); /* the thread checks its duties after this */
    vnxi_ucx_conn_release(ep->conn);
}

/* Called once per connection, by the thread that set `dead`. */
static void
wake_eps(vnxi_ucx_conn_t *conn)
{
    for (unsigned i = 0; i < conn->ucx->worker_count; i++) {
        vnxi_ucx_ep_t *ep = &conn->eps[i];
        ep->close_command.run = run_close;
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
    return vnxi_error_set(error, VNX_ERR_REMOTE_DISCONNECT, operation, "%s",
                          cause[0] != '\0' ? cause : "the agent was closed");
}

/* -- Notifications ---------------------------------------------------------
 */

#define SEND_HERE_MAX (16u << 10)

typedef struct message {
    vnxi_ucx_command_t super; /* first */
    vnxi_ucx_conn_t *conn;    /* retained */
    vnxi_writer_t payload;
} message_t;

static void
message_free(message_t *message)
{
    atomic_fetch_sub(&message->conn->queued, message->payload.len);
    atomic_fetch_sub(&message->conn->ucx->messages, 1);
    vnxi_ucx_conn_release(message->conn);
    vnxi_writer_fini(&message->payload);
    free(message);
}

/* No notification is lost silently: later ones must not arrive without it, so
 * the connection fails. */
static void
note_unsent(message_t *message, vnxi_ucs_status_t status)
{
    char cause[160];

    if (status != VNXI_UCS_OK) {
        snprintf(cause, sizeof cause, "UCX could not send a notification: %s",
                 message->conn->ucx->library->ucp.ucs_status_string(status));
        vnxi_ucx_conn_fail(message->conn, cause);
    }
}

static void
on_sent(void *request, vnxi_ucs_status_t status, void *user_data)
{
    message_t *message = user_data;
    note_unsent(message, status);
    message->conn->ucx->library->ucp.ucp_request_free(request);
    message_free(message);
}

/* Send on an open ep.  True: UCX still has the message, and on_sent() frees
 * it. */
static bool
give_to_ucx(message_t *message, vnxi_ucx_ep_t *ep)
{
    vnxi_ucx_worker_t *worker = ep->worker;
    const vnxi_ucp_request_param_t param = {
        .op_attr_mask =
            VNXI_UCP_OP_CALLBACK | VNXI_UCP_OP_USER_DATA | VNXI_UCP_OP_FLAGS,
        .flags = VNXI_UCP_AM_SEND_EAGER,
        .cb.send = on_sent,
        .user_data = message,
    };

    ep->sent_at = vnxi_clock_ns();
    atomic_store(&worker->ucx->sent_at, ep->sent_at);
    vnxi_ucs_ptr_t ptr = vnxi_ucx_calls(worker)->ucp_am_send_nbx(
        ep->handle, VNXI_UCX_NOTIF_AM, NULL, 0, message->payload.data,
        message->payload.len, &param);
    if (vnxi_ucs_is_request(ptr)) {
        return true;
    }
    note_unsent(message, vnxi_ucs_status(ptr));
    return false;
}

static void
run_send(vnxi_ucx_command_t *super, vnxi_ucx_worker_t *worker)
{
    message_t *message = (message_t *)super;
    vnxi_ucx_ep_t *ep = &message->conn->eps[worker->index];

    vnx_status_t status = vnxi_ucx_ep_open(ep, "send_notif", NULL);
    if (status == VNX_IN_PROG) {
        vnxi_ucx_ep_wait(ep, super); /* after a reset */
        return;
    }
    if (status != VNX_OK || !give_to_ucx(message, ep)) {
        message_free(message);
    }
}

/* Send without waking the thread if it sleeps, the peer is known to be there,
 * and the message is short enough to be sent at once.  False: not done. */
static bool
send_here(message_t *message)
{
    vnxi_ucx_ep_t *ep = &message->conn->eps[0];
    bool pending = false;

    if (message->payload.len > SEND_HERE_MAX ||
        !vnxi_ucx_worker_borrow(ep->worker)) {
        return false;
    }
    bool may = vnxi_ucx_ep_is_ready(ep);
    if (may) {
        pending = give_to_ucx(message, ep);
    }
    vnxi_ucx_worker_give_back(ep->worker, pending);
    if (may && !pending) {
        message_free(message);
    }
    return may;
}

static bool
reserve(vnxi_ucx_conn_t *conn, size_t len)
{
    size_t before = atomic_fetch_add(&conn->queued, len);
    if (before > VNXI_UCX_NOTIF_QUEUE_MAX) {
        atomic_fetch_sub(&conn->queued, len);
        return false;
    }
    return true;
}

vnx_status_t
vnxi_ucx_conn_send_notif(vnxi_ucx_conn_t *conn, const void *data, size_t len,
                         vnx_error_t *error)
{
    static const char operation[] = "send_notif";
    message_t *message = calloc(1, sizeof *message);

    if (atomic_load(&conn->dead)) {
        free(message);
        return vnxi_ucx_conn_error(conn, operation, error);
    }
    if (message != NULL) {
        vnxi_ucx_notif_write(&message->payload, conn->ucx->name,
                             conn->ucx->name_len, data, len);
    }
    if (message == NULL || message->payload.failed) {
        free(message);
        return vnxi_error_no_memory(error, operation, len);
    }
    if (!reserve(conn, message->payload.len)) {
        vnxi_writer_fini(&message->payload);
        free(message);
        return vnxi_error_set(error, VNX_ERR_BACKEND, operation,
                              "%u MiB of notifications are queued for the "
                              "peer",
                              VNXI_UCX_NOTIF_QUEUE_MAX >> 20);
    }
    message->super.run = run_send;
    message->conn = vnxi_ucx_conn_retain(conn);
    atomic_fetch_add(&conn->ucx->messages, 1);
    if (!send_here(message) &&
        !vnxi_ucx_worker_push(&conn->ucx->workers[0], &message->super)) {
        message_free(message);
        return vnxi_ucx_conn_error(conn, operation, error);
    }
    return VNX_OK;
}
