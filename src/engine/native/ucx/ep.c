/*
 * Design notes.  UCX calls the error handler from within progress, where an
 * endpoint should not be closed, so the next look() closes it.  The handler's
 * argument is a cell that points to the ep; the ep's connection keeps the
 * ep while it is not IDLE.  Endpoint pointers cannot identify an ep, because
 * UCX reuses them.
 *
 * A flush reports that messages were sent, not that they were read.  If a TCP
 * socket is closed while it has unread input, data that the peer has not read
 * yet is lost.  So an ep that has just sent a notification lingers before it
 * is closed.
 *
 * Handles of keys belong to an endpoint's configuration.  They are destroyed
 * with it and created again for the next endpoint.  A close by force may end
 * before the requests that it cancels (UCX 1.23, TCP), which still have their
 * handle, so an ep is IDLE only when they have ended, too.
 *
 * UCX does not close a TCP connection on which both sides send before both
 * have closed their endpoint.  UCX created the peer's endpoint for its
 * answers, and the peer closes it with its worker.  So every closed endpoint
 * leaves a socket on each side.  Therefore an ep that is closed while its
 * peer lives keeps such an endpoint as a *spare* of its worker, and the next
 * connection to the same address takes it over.  This is not done for stock
 * agents: they close their endpoint when they remove us, which we cannot
 * notice, and then UCX drops the longer messages from our endpoint.
 */
#include "engine/native/ucx/ep.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"

#define FLUSH_DEADLINE_NS 1500000000u
#define LINGER_NS 100000000u
#define CLOSE_DEADLINE_NS 1000000000u
#define CLOSE_LOOK_NS 1000000u

static uint64_t look(vnxi_ucx_duty_t *duty, uint64_t now);
static void run_close(vnxi_ucx_command_t *command, vnxi_ucx_worker_t *worker);

void
vnxi_ucx_ep_init(vnxi_ucx_ep_t *ep, vnxi_ucx_conn_t *conn,
                 vnxi_ucx_worker_t *worker)
{
    *ep = (vnxi_ucx_ep_t){.duty.look = look, .conn = conn, .worker = worker};
    ep->slots.prev = ep->slots.next = &ep->slots;
    ep->waiting_last = &ep->waiting;
    ep->close_command.run = run_close;
}

static bool
must_close(const vnxi_ucx_ep_t *ep)
{
    return ep->close_wanted || ep->worker->draining ||
           atomic_load(&ep->conn->failed);
}

bool
vnxi_ucx_ep_is_ready(const vnxi_ucx_ep_t *ep)
{
    return ep->state == VNXI_UCX_EP_OPEN && ep->wired && !must_close(ep);
}

/* -- The peer's answer -----------------------------------------------------
 */

#define TRANSPORTS_MAX 8

/* Returns how many; 0 if UCX does not know. */
static unsigned
find_transports(const vnxi_ucx_ep_t *ep, vnxi_ucp_transport_t *entries)
{
    vnxi_ucp_ep_attr_t attr = {.field_mask = VNXI_UCP_EP_ATTR_TRANSPORTS};

    attr.transports.entries = entries;
    attr.transports.num_entries = TRANSPORTS_MAX;
    attr.transports.entry_size = sizeof *entries;
    return vnxi_ucx_calls(ep->worker)->ucp_ep_query(ep->handle, &attr) ==
                   VNXI_UCS_OK
               ? attr.transports.num_entries
               : 0;
}

static void
note_transports(vnxi_ucx_ep_t *ep)
{
    vnxi_ucp_transport_t entries[TRANSPORTS_MAX];
    unsigned count = find_transports(ep, entries);
    vnxi_ucx_conn_t *conn = ep->conn;
    size_t used = 0;

    vnxi_mutex_lock(&conn->lock);
    for (unsigned i = 0; i < count; i++) {
        int len =
            snprintf(conn->transports + used, sizeof conn->transports - used,
                     "%s%s/%s", used > 0 ? ", " : "",
                     entries[i].transport_name, entries[i].device_name);
        used += (size_t)len;
        if (used >= sizeof conn->transports) {
            break;
        }
    }
    vnxi_log(VNX_LOG_DEBUG, conn->ucx->name,
             "UCX has connected to peer %" PRIuPTR " by %s", conn->cookie,
             count > 0 ? conn->transports : "?");
    vnxi_mutex_unlock(&conn->lock);
}

static void
become_wired(vnxi_ucx_ep_t *ep)
{
    if (ep->state == VNXI_UCX_EP_OPEN && !ep->wired) {
        note_transports(ep);
        ep->wired = true;
        atomic_fetch_add(&ep->conn->wired_eps, 1);
    }
}

static void
be_wired_no_more(vnxi_ucx_ep_t *ep)
{
    if (ep->wired) {
        ep->wired = false;
        atomic_fetch_sub(&ep->conn->wired_eps, 1);
    }
}

/* Post a flush.  If the result is a request, `on_end` gets the ep and calls
 * end_flush(). */
static vnxi_ucs_ptr_t
flush(vnxi_ucx_ep_t *ep,
      void (*on_end)(void *request, vnxi_ucs_status_t status, void *user_data))
{
    const vnxi_ucp_request_param_t param = {
        .op_attr_mask = VNXI_UCP_OP_CALLBACK | VNXI_UCP_OP_USER_DATA,
        .cb.send = on_end,
        .user_data = ep,
    };

    vnxi_ucs_ptr_t ptr =
        vnxi_ucx_calls(ep->worker)->ucp_ep_flush_nbx(ep->handle, &param);
    if (vnxi_ucs_is_request(ptr)) {
        ep->worker->requests++;
        vnxi_ucx_conn_retain(ep->conn);
    }
    return ptr;
}

static void
end_flush(vnxi_ucx_ep_t *ep, void *request)
{
    vnxi_ucx_calls(ep->worker)->ucp_request_free(request);
    ep->worker->requests--;
    vnxi_ucx_conn_release(ep->conn); /* may free the ep */
}

static void
on_answer(void *request, vnxi_ucs_status_t status, void *user_data)
{
    vnxi_ucx_ep_t *ep = user_data;
    if (status == VNXI_UCS_OK) {
        become_wired(ep);
    }
    end_flush(ep, request);
}

/* Uses a flush, because creating an endpoint sends nothing and so shows
 * nothing about the peer. */
void
vnxi_ucx_ep_ask(vnxi_ucx_ep_t *ep)
{
    vnxi_ucs_ptr_t ptr = flush(ep, on_answer);
    if (ptr == NULL) {
        become_wired(ep);
    }
}

/* -- Opening ---------------------------------------------------------------
 */

static void
on_error(void *arg, vnxi_ucp_ep_t handle, vnxi_ucs_status_t status)
{
    vnxi_ucx_ep_t *ep = ((vnxi_ucx_cell_t *)arg)->ep;
    char cause[VNX_ERROR_CAUSE_MAX];

    (void)handle;
    if (ep == NULL || ep->state == VNXI_UCX_EP_CLOSING) {
        return;
    }
    ep->state = VNXI_UCX_EP_FAILED;
    snprintf(cause, sizeof cause, "the UCX connection failed: %s%s",
             vnxi_ucx_calls(ep->worker)->ucs_status_string(status),
             vnxi_descriptors());
    vnxi_ucx_conn_fail(ep->conn, cause);
}

static vnxi_ucs_status_t
create_with_cell(vnxi_ucx_ep_t *ep, vnxi_ucx_cell_t *cell)
{
    const vnxi_ucp_ep_params_t params = {
        .field_mask = VNXI_UCP_EP_PARAM_REMOTE_ADDRESS |
                      VNXI_UCP_EP_PARAM_ERR_MODE |
                      VNXI_UCP_EP_PARAM_ERR_HANDLER,
        .address = ep->conn->address,
        .err_mode = VNXI_UCP_ERR_MODE_PEER,
        .err_handler = {.cb = on_error, .arg = cell},
    };
    vnxi_ucx_gone_t *gone = &ep->worker->ucx->gone;
    const vnxi_ucx_conn_t *conn = ep->conn;

    if (vnxi_ucx_gone_has(gone, conn->address, conn->address_len)) {
        return VNXI_UCS_ERR_ENDPOINT_TIMEOUT;
    }
    vnxi_ucs_status_t status =
        vnxi_ucx_calls(ep->worker)
            ->ucp_ep_create(ep->worker->handle, &params, &ep->handle);
    /* Without free descriptors, UCX reports the same for living peers. */
    if (status == VNXI_UCS_ERR_ENDPOINT_TIMEOUT &&
        !vnxi_descriptors_are_scarce()) {
        vnxi_ucx_gone_add(gone, conn->address, conn->address_len);
    }
    return status;
}

static vnxi_ucs_status_t
create_ep(vnxi_ucx_ep_t *ep)
{
    vnxi_ucx_cell_t *cell = malloc(sizeof *cell);

    if (cell == NULL) {
        return VNXI_UCS_ERR_NO_MEMORY;
    }
    cell->ep = ep;
    vnxi_ucs_status_t status = create_with_cell(ep, cell);
    if (status != VNXI_UCS_OK) {
        free(cell);
        return status;
    }
    ep->cell = cell;
    return VNXI_UCS_OK;
}

/* -- Spares ----------------------------------------------------------------
 */

static void become_idle(vnxi_ucx_ep_t *ep);
static void begin_flush(vnxi_ucx_ep_t *ep);

static void
spare_remove(vnxi_ucx_ep_t *ep)
{
    vnxi_ucx_ep_t **spares = ep->worker->spares;
    if (spares[ep->spare_at] == ep) {
        spares[ep->spare_at] = NULL;
    }
}

/* The oldest spare makes room and is closed. */
static void
spare_add(vnxi_ucx_ep_t *ep)
{
    vnxi_ucx_worker_t *worker = ep->worker;
    unsigned at = worker->next_spare;
    vnxi_ucx_ep_t *oldest = worker->spares[at];

    worker->spares[at] = ep;
    worker->next_spare = (at + 1) % VNXI_UCX_SPARES_MAX;
    ep->spare_at = at;
    if (oldest != NULL) {
        oldest->evicted = true;
        if (oldest->state == VNXI_UCX_EP_KEPT) {
            begin_flush(oldest);
        }
    }
}

/* Return whether the spare was closed without a failure, has no transfer in
 * flight, and has the same address. */
static bool
may_be_taken(const vnxi_ucx_ep_t *spare, const vnxi_ucx_ep_t *ep)
{
    return spare != NULL && spare->posted == 0 &&
           (spare->state == VNXI_UCX_EP_FLUSHING ||
            spare->state == VNXI_UCX_EP_KEPT) &&
           !atomic_load(&spare->conn->failed) &&
           vnxi_ucx_conn_is_to(spare->conn, ep->conn->address,
                               ep->conn->address_len);
}

static vnxi_ucx_ep_t *
find_spare(const vnxi_ucx_ep_t *ep)
{
    for (unsigned i = 0; i < VNXI_UCX_SPARES_MAX; i++) {
        if (may_be_taken(ep->worker->spares[i], ep)) {
            return ep->worker->spares[i];
        }
    }
    return NULL;
}

/* Take over the endpoint of a spare to the same address; false: none. */
static bool
take_over(vnxi_ucx_ep_t *ep)
{
    vnxi_ucx_ep_t *spare = find_spare(ep);

    if (spare == NULL) {
        return false;
    }
    ep->handle = spare->handle;
    ep->cell = spare->cell;
    ep->cell->ep = ep;
    ep->sent_at = spare->sent_at;
    spare->cell = NULL;
    spare_remove(spare);
    become_idle(spare);
    return true;
}

static bool
uses_tcp(const vnxi_ucx_ep_t *ep)
{
    vnxi_ucp_transport_t entries[TRANSPORTS_MAX];
    unsigned count = find_transports(ep, entries);

    for (unsigned i = 0; i < count; i++) {
        if (strcmp(entries[i].transport_name, "tcp") == 0) {
            return true;
        }
    }
    return false;
}

/* True: everything was sent, and the endpoint is kept for another connection.
 */
static bool
keep(vnxi_ucx_ep_t *ep)
{
    if (!ep->flushed || !atomic_load(&ep->conn->of_ours) || ep->evicted ||
        ep->worker->draining || !uses_tcp(ep)) {
        return false;
    }
    ep->state = VNXI_UCX_EP_KEPT;
    return true;
}

vnx_status_t
vnxi_ucx_ep_open(vnxi_ucx_ep_t *ep, const char *operation, vnx_error_t *error)
{
    char cause[VNX_ERROR_CAUSE_MAX];

    if (must_close(ep)) {
        return vnxi_ucx_conn_error(ep->conn, operation, error);
    }
    if (ep->state != VNXI_UCX_EP_IDLE) {
        return ep->state == VNXI_UCX_EP_OPEN ? VNX_OK : VNX_IN_PROG;
    }
    if (ep->worker->handle == NULL) {
        return vnxi_error_set(error, VNX_ERR_BACKEND, operation, "%s",
                              ep->worker->cause);
    }
    vnxi_ucs_status_t status = take_over(ep) ? VNXI_UCS_OK : create_ep(ep);
    if (status != VNXI_UCS_OK) {
        snprintf(cause, sizeof cause, "UCX cannot connect to the peer: %s%s",
                 vnxi_ucx_calls(ep->worker)->ucs_status_string(status),
                 vnxi_descriptors());
        vnxi_ucx_conn_fail(ep->conn, cause);
        return vnxi_ucx_conn_error(ep->conn, operation, error);
    }
    ep->state = VNXI_UCX_EP_OPEN;
    ep->opening++;
    vnxi_ucx_conn_retain(ep->conn);
    vnxi_ucx_duty_add(ep->worker, &ep->duty);
    if (ep->opening > 1) {
        vnxi_ucx_ep_ask(ep);
    }
    return VNX_OK;
}

/* -- Closing ---------------------------------------------------------------
 */

static void
on_closed(void *request, vnxi_ucs_status_t status, void *user_data)
{
    vnxi_ucx_ep_t *ep = user_data;
    (void)status;
    ep->closed = true;
    vnxi_ucx_calls(ep->worker)->ucp_request_free(request);
    vnxi_ucx_conn_release(ep->conn);
}

static void
close_ep(vnxi_ucx_ep_t *ep, bool by_force)
{
    const vnxi_ucp_request_param_t param = {
        .op_attr_mask =
            VNXI_UCP_OP_CALLBACK | VNXI_UCP_OP_USER_DATA | VNXI_UCP_OP_FLAGS,
        .flags = by_force ? VNXI_UCP_EP_CLOSE_FORCE : 0,
        .cb.send = on_closed,
        .user_data = ep,
    };
    spare_remove(ep);
    be_wired_no_more(ep);
    ep->state = VNXI_UCX_EP_CLOSING;
    ep->closed = false;
    ep->deadline = vnxi_clock_deadline(CLOSE_DEADLINE_NS);
    vnxi_ucx_conn_retain(ep->conn);
    vnxi_ucs_ptr_t ptr =
        vnxi_ucx_calls(ep->worker)->ucp_ep_close_nbx(ep->handle, &param);
    if (!vnxi_ucs_is_request(ptr)) {
        ep->closed = true;
        vnxi_ucx_conn_release(ep->conn);
    }
}

void
vnxi_ucx_ep_wait(vnxi_ucx_ep_t *ep, vnxi_ucx_command_t *command)
{
    command->next = NULL;
    *ep->waiting_last = command;
    ep->waiting_last = &command->next;
}

/* The ep is IDLE or given up: release what it holds and run waiting commands.
 */
static void
let_go(vnxi_ucx_ep_t *ep)
{
    vnxi_ucx_command_t *command = ep->waiting;

    vnxi_ucx_keys_drop(ep);
    ep->waiting = NULL;
    ep->waiting_last = &ep->waiting;
    vnxi_ucx_duty_remove(ep->worker, &ep->duty);
    while (command != NULL) {
        vnxi_ucx_command_t *next = command->next;
        command->run(command, ep->worker);
        command = next;
    }
    vnxi_ucx_conn_release(ep->conn); /* may free the ep */
}

static void
become_idle(vnxi_ucx_ep_t *ep)
{
    be_wired_no_more(ep);
    free(ep->cell);
    ep->cell = NULL;
    ep->handle = NULL;
    ep->state = VNXI_UCX_EP_IDLE;
    let_go(ep);
}

/* UCX may still call back for the old endpoint at any time.  So its cell stays
 * until the worker ends, pointing to no ep. */
static void
give_up(vnxi_ucx_ep_t *ep)
{
    vnxi_ucx_cell_t *cell = ep->cell;
    cell->ep = NULL;
    cell->next = ep->worker->stray;
    ep->worker->stray = cell;
    ep->cell = NULL;
    vnxi_ucx_conn_fail(ep->conn, "UCX does not close the connection");
    let_go(ep);
}

void
vnxi_ucx_ep_reset(vnxi_ucx_ep_t *ep)
{
    if (ep->state != VNXI_UCX_EP_IDLE && ep->state != VNXI_UCX_EP_CLOSING) {
        close_ep(ep, true);
    }
}

static void
on_flushed(void *request, vnxi_ucs_status_t status, void *user_data)
{
    vnxi_ucx_ep_t *ep = user_data;
    (void)status;
    if (ep->state == VNXI_UCX_EP_FLUSHING) {
        ep->flushed = true;
        ep->deadline = ep->sent_at + LINGER_NS;
    }
    end_flush(ep, request);
}

/* Queued messages are sent first, for at most 1.5 s. */
static void
begin_flush(vnxi_ucx_ep_t *ep)
{
    ep->state = VNXI_UCX_EP_FLUSHING;
    ep->flushed = false;
    ep->deadline = vnxi_clock_deadline(FLUSH_DEADLINE_NS);
    if (atomic_load(&ep->conn->of_ours) && !ep->worker->draining &&
        !ep->evicted) {
        spare_add(ep);
    }
    vnxi_ucs_ptr_t ptr = flush(ep, on_flushed);
    if (!vnxi_ucs_is_request(ptr)) {
        ep->flushed = vnxi_ucs_status(ptr) == VNXI_UCS_OK;
        ep->deadline = ep->flushed ? ep->sent_at + LINGER_NS : 0;
    }
}

static void
leave(vnxi_ucx_ep_t *ep)
{
    if (atomic_load(&ep->conn->failed)) {
        close_ep(ep, true);
    } else {
        begin_flush(ep);
    }
}

/* The connection has been closed or has failed.  A command, so that it comes
 * after earlier commands; and a command after it that opens another connection
 * to the address finds the spare. */
static void
run_close(vnxi_ucx_command_t *command, vnxi_ucx_worker_t *worker)
{
    vnxi_ucx_ep_t *ep =
        (vnxi_ucx_ep_t *)((char *)command -
                          offsetof(vnxi_ucx_ep_t, close_command));

    (void)worker;
    ep->close_wanted = true;
    if (ep->state == VNXI_UCX_EP_OPEN) {
        leave(ep);
    }
    vnxi_ucx_conn_release(ep->conn); /* the command's reference */
}

static uint64_t
look(vnxi_ucx_duty_t *duty, uint64_t now)
{
    vnxi_ucx_ep_t *ep = (vnxi_ucx_ep_t *)duty;

    if (ep->state == VNXI_UCX_EP_OPEN && must_close(ep)) {
        leave(ep);
    } else if (ep->state == VNXI_UCX_EP_FAILED) {
        close_ep(ep, true);
    } else if (ep->state == VNXI_UCX_EP_FLUSHING && !keep(ep) &&
               now >= ep->deadline) {
        close_ep(ep, !ep->flushed);
    } else if (ep->state == VNXI_UCX_EP_KEPT && ep->worker->draining) {
        begin_flush(ep);
    }
    if (ep->state == VNXI_UCX_EP_CLOSING) {
        if (ep->closed && ep->posted == 0) {
            become_idle(ep);
            return UINT64_MAX;
        }
        if (now >= ep->deadline) {
            give_up(ep);
            return UINT64_MAX;
        }
        return now + CLOSE_LOOK_NS;
    }
    return ep->state == VNXI_UCX_EP_FLUSHING ? ep->deadline : UINT64_MAX;
}
