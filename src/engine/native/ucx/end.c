/*
 * Design notes.  UCX calls the error handler from within progress, where an
 * endpoint should not be closed, so the next look() closes it.  The handler's
 * argument is a cell that points to the end; the end's connection keeps the
 * end while it is not IDLE.  Endpoint pointers cannot identify an end, because
 * UCX reuses them.
 *
 * A flush reports that messages were sent, not that they were read.  If a TCP
 * socket is closed while it has unread input, data that the peer has not read
 * yet is lost.  So an end that has just sent a notification lingers before it
 * is closed.
 *
 * Handles of keys belong to an endpoint's configuration.  They are destroyed
 * with it and created again for the next endpoint.
 *
 * UCX does not close a TCP connection on which both sides send before both
 * have closed their endpoint.  UCX created the peer's endpoint for its
 * answers, and the peer closes it with its worker.  So every closed endpoint
 * leaves a socket on each side.  Therefore an end that is closed while its
 * peer lives keeps such an endpoint as a *spare* of its worker, and the next
 * connection to the same address takes it over.  This is not done for stock
 * agents: they close their endpoint when they remove us, which we cannot
 * notice, and then UCX drops the longer messages from our endpoint.
 */
#include "engine/native/ucx/end.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"

#define FLUSH_DEADLINE_NS 500000000u
#define LINGER_NS 100000000u
#define CLOSE_DEADLINE_NS 1000000000u
#define CLOSE_LOOK_NS 1000000u

static uint64_t look(vnxi_ucx_duty_t *duty, uint64_t now);

void
vnxi_ucx_end_init(vnxi_ucx_end_t *end, vnxi_ucx_conn_t *conn,
                  vnxi_ucx_worker_t *worker)
{
    *end = (vnxi_ucx_end_t){.duty.look = look, .conn = conn, .worker = worker};
    end->slots.prev = end->slots.next = &end->slots;
    end->waiting_last = &end->waiting;
}

static bool
must_close(const vnxi_ucx_end_t *end)
{
    return end->close_wanted || end->worker->draining ||
           atomic_load(&end->conn->failed);
}

bool
vnxi_ucx_end_is_ready(const vnxi_ucx_end_t *end)
{
    return end->state == VNXI_UCX_END_OPEN && end->wired && !must_close(end);
}

/* -- The peer's answer -----------------------------------------------------
 */

#define TRANSPORTS_MAX 8

/* Returns how many; 0 if UCX does not know. */
static unsigned
find_transports(const vnxi_ucx_end_t *end, vnxi_ucp_transport_t *entries)
{
    vnxi_ucp_ep_attr_t attr = {.field_mask = VNXI_UCP_EP_ATTR_TRANSPORTS};

    attr.transports.entries = entries;
    attr.transports.num_entries = TRANSPORTS_MAX;
    attr.transports.entry_size = sizeof *entries;
    return vnxi_ucx_calls(end->worker)->ucp_ep_query(end->ep, &attr) ==
                   VNXI_UCS_OK
               ? attr.transports.num_entries
               : 0;
}

static void
note_transports(vnxi_ucx_end_t *end)
{
    vnxi_ucp_transport_t entries[TRANSPORTS_MAX];
    unsigned count = find_transports(end, entries);
    vnxi_ucx_conn_t *conn = end->conn;
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
    vnxi_mutex_unlock(&conn->lock);
}

static void
become_wired(vnxi_ucx_end_t *end)
{
    if (end->state == VNXI_UCX_END_OPEN && !end->wired) {
        note_transports(end);
        end->wired = true;
        atomic_fetch_add(&end->conn->wired_ends, 1);
    }
}

static void
be_wired_no_more(vnxi_ucx_end_t *end)
{
    if (end->wired) {
        end->wired = false;
        atomic_fetch_sub(&end->conn->wired_ends, 1);
    }
}

static void
on_answer(void *request, vnxi_ucs_status_t status, void *user_data)
{
    vnxi_ucx_end_t *end = user_data;
    if (status == VNXI_UCS_OK) {
        become_wired(end);
    }
    vnxi_ucx_calls(end->worker)->ucp_request_free(request);
    vnxi_ucx_conn_release(end->conn);
}

/* Uses a flush, because creating an endpoint sends nothing and so shows
 * nothing about the peer. */
void
vnxi_ucx_end_ask(vnxi_ucx_end_t *end)
{
    const vnxi_ucp_request_param_t param = {
        .op_attr_mask = VNXI_UCP_OP_CALLBACK | VNXI_UCP_OP_USER_DATA,
        .cb.send = on_answer,
        .user_data = end,
    };

    vnxi_ucx_conn_retain(end->conn);
    vnxi_ucs_ptr_t ptr =
        vnxi_ucx_calls(end->worker)->ucp_ep_flush_nbx(end->ep, &param);
    if (!vnxi_ucs_is_request(ptr)) {
        if (vnxi_ucs_status(ptr) == VNXI_UCS_OK) {
            become_wired(end);
        }
        vnxi_ucx_conn_release(end->conn);
    }
}

/* -- Opening ---------------------------------------------------------------
 */

static void
on_error(void *arg, vnxi_ucp_ep_t ep, vnxi_ucs_status_t status)
{
    vnxi_ucx_end_t *end = ((vnxi_ucx_cell_t *)arg)->end;
    char cause[VNX_ERROR_CAUSE_MAX];

    (void)ep;
    if (end == NULL || end->state == VNXI_UCX_END_CLOSING) {
        return;
    }
    end->state = VNXI_UCX_END_FAILED;
    snprintf(cause, sizeof cause, "the UCX connection failed: %s%s",
             vnxi_ucx_calls(end->worker)->ucs_status_string(status),
             vnxi_descriptors());
    vnxi_ucx_conn_fail(end->conn, cause);
}

static vnxi_ucs_status_t
create_with_cell(vnxi_ucx_end_t *end, vnxi_ucx_cell_t *cell)
{
    const vnxi_ucp_ep_params_t params = {
        .field_mask = VNXI_UCP_EP_PARAM_REMOTE_ADDRESS |
                      VNXI_UCP_EP_PARAM_ERR_MODE |
                      VNXI_UCP_EP_PARAM_ERR_HANDLER,
        .address = end->conn->address,
        .err_mode = VNXI_UCP_ERR_MODE_PEER,
        .err_handler = {.cb = on_error, .arg = cell},
    };
    vnxi_ucx_gone_t *gone = &end->worker->ucx->gone;
    const vnxi_ucx_conn_t *conn = end->conn;

    if (vnxi_ucx_gone_has(gone, conn->address, conn->address_len)) {
        return VNXI_UCS_ERR_ENDPOINT_TIMEOUT;
    }
    vnxi_ucs_status_t status =
        vnxi_ucx_calls(end->worker)
            ->ucp_ep_create(end->worker->handle, &params, &end->ep);
    /* Without free descriptors, UCX reports the same for living peers. */
    if (status == VNXI_UCS_ERR_ENDPOINT_TIMEOUT &&
        !vnxi_descriptors_are_scarce()) {
        vnxi_ucx_gone_add(gone, conn->address, conn->address_len);
    }
    return status;
}

static vnxi_ucs_status_t
create_ep(vnxi_ucx_end_t *end)
{
    vnxi_ucx_cell_t *cell = malloc(sizeof *cell);

    if (cell == NULL) {
        return VNXI_UCS_ERR_NO_MEMORY;
    }
    cell->end = end;
    vnxi_ucs_status_t status = create_with_cell(end, cell);
    if (status != VNXI_UCS_OK) {
        free(cell);
        return status;
    }
    end->cell = cell;
    return VNXI_UCS_OK;
}

/* -- Spares ----------------------------------------------------------------
 */

static void become_idle(vnxi_ucx_end_t *end);
static void begin_flush(vnxi_ucx_end_t *end);

static void
spare_remove(vnxi_ucx_end_t *end)
{
    vnxi_ucx_end_t **spares = end->worker->spares;
    if (spares[end->spare_at] == end) {
        spares[end->spare_at] = NULL;
    }
}

/* The oldest spare makes room and is closed. */
static void
spare_add(vnxi_ucx_end_t *end)
{
    vnxi_ucx_worker_t *worker = end->worker;
    unsigned at = worker->next_spare;
    vnxi_ucx_end_t *oldest = worker->spares[at];

    worker->spares[at] = end;
    worker->next_spare = (at + 1) % VNXI_UCX_SPARES_MAX;
    end->spare_at = at;
    if (oldest != NULL) {
        oldest->evicted = true;
        if (oldest->state == VNXI_UCX_END_KEPT) {
            begin_flush(oldest);
        }
    }
}

/* Return whether the spare was closed without a failure, has no transfer in
 * flight, and has the same address. */
static bool
may_be_taken(const vnxi_ucx_end_t *spare, const vnxi_ucx_end_t *end)
{
    return spare != NULL && spare->posted == 0 &&
           (spare->state == VNXI_UCX_END_FLUSHING ||
            spare->state == VNXI_UCX_END_KEPT) &&
           !atomic_load(&spare->conn->failed) &&
           vnxi_ucx_conn_is_to(spare->conn, end->conn->address,
                               end->conn->address_len);
}

static vnxi_ucx_end_t *
find_spare(const vnxi_ucx_end_t *end)
{
    for (unsigned i = 0; i < VNXI_UCX_SPARES_MAX; i++) {
        if (may_be_taken(end->worker->spares[i], end)) {
            return end->worker->spares[i];
        }
    }
    return NULL;
}

/* Take over the endpoint of a spare to the same address; false: none. */
static bool
take_over(vnxi_ucx_end_t *end)
{
    vnxi_ucx_end_t *spare = find_spare(end);

    if (spare == NULL) {
        return false;
    }
    end->ep = spare->ep;
    end->cell = spare->cell;
    end->cell->end = end;
    end->sent_at = spare->sent_at;
    spare->cell = NULL;
    spare_remove(spare);
    become_idle(spare);
    return true;
}

static bool
uses_tcp(const vnxi_ucx_end_t *end)
{
    vnxi_ucp_transport_t entries[TRANSPORTS_MAX];
    unsigned count = find_transports(end, entries);

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
keep(vnxi_ucx_end_t *end)
{
    if (!end->flushed || !atomic_load(&end->conn->of_ours) || end->evicted ||
        end->worker->draining || !uses_tcp(end)) {
        return false;
    }
    end->state = VNXI_UCX_END_KEPT;
    return true;
}

vnx_status_t
vnxi_ucx_end_open(vnxi_ucx_end_t *end, const char *operation,
                  vnx_error_t *error)
{
    char cause[VNX_ERROR_CAUSE_MAX];

    if (must_close(end)) {
        return vnxi_ucx_conn_error(end->conn, operation, error);
    }
    if (end->state != VNXI_UCX_END_IDLE) {
        return end->state == VNXI_UCX_END_OPEN ? VNX_OK : VNX_IN_PROG;
    }
    if (end->worker->handle == NULL) {
        return vnxi_error_set(error, VNX_ERR_BACKEND, operation, "%s",
                              end->worker->cause);
    }
    vnxi_ucs_status_t status = take_over(end) ? VNXI_UCS_OK : create_ep(end);
    if (status != VNXI_UCS_OK) {
        snprintf(cause, sizeof cause, "UCX cannot connect to the peer: %s%s",
                 vnxi_ucx_calls(end->worker)->ucs_status_string(status),
                 vnxi_descriptors());
        vnxi_ucx_conn_fail(end->conn, cause);
        return vnxi_ucx_conn_error(end->conn, operation, error);
    }
    end->state = VNXI_UCX_END_OPEN;
    end->opening++;
    vnxi_ucx_conn_retain(end->conn);
    vnxi_ucx_duty_add(end->worker, &end->duty);
    if (end->opening > 1) {
        vnxi_ucx_end_ask(end);
    }
    return VNX_OK;
}

/* -- Closing ---------------------------------------------------------------
 */

static void
on_closed(void *request, vnxi_ucs_status_t status, void *user_data)
{
    vnxi_ucx_end_t *end = user_data;
    (void)status;
    end->closed = true;
    vnxi_ucx_calls(end->worker)->ucp_request_free(request);
    vnxi_ucx_conn_release(end->conn);
}

static void
close_ep(vnxi_ucx_end_t *end, bool by_force)
{
    const vnxi_ucp_request_param_t param = {
        .op_attr_mask =
            VNXI_UCP_OP_CALLBACK | VNXI_UCP_OP_USER_DATA | VNXI_UCP_OP_FLAGS,
        .flags = by_force ? VNXI_UCP_EP_CLOSE_FORCE : 0,
        .cb.send = on_closed,
        .user_data = end,
    };
    spare_remove(end);
    be_wired_no_more(end);
    end->state = VNXI_UCX_END_CLOSING;
    end->closed = false;
    end->deadline = vnxi_clock_deadline(CLOSE_DEADLINE_NS);
    vnxi_ucx_conn_retain(end->conn);
    vnxi_ucs_ptr_t ptr =
        vnxi_ucx_calls(end->worker)->ucp_ep_close_nbx(end->ep, &param);
    if (!vnxi_ucs_is_request(ptr)) {
        end->closed = true;
        vnxi_ucx_conn_release(end->conn);
    }
}

static void
drop_keys(vnxi_ucx_end_t *end)
{
    while (end->slots.next != &end->slots) {
        vnxi_ucx_slot_t *slot = end->slots.next;
        slot->next->prev = &end->slots;
        end->slots.next = slot->next;
        vnxi_ucx_calls(end->worker)->ucp_rkey_destroy(slot->handle);
        slot->handle = NULL;
        slot->prev = slot->next = NULL;
        atomic_store(&slot->used, false);
    }
}

void
vnxi_ucx_end_wait(vnxi_ucx_end_t *end, vnxi_ucx_command_t *command)
{
    command->next = NULL;
    *end->waiting_last = command;
    end->waiting_last = &command->next;
}

/* The end is IDLE or given up: release what it holds and run waiting commands.
 */
static void
let_go(vnxi_ucx_end_t *end)
{
    vnxi_ucx_command_t *command = end->waiting;

    drop_keys(end);
    end->waiting = NULL;
    end->waiting_last = &end->waiting;
    vnxi_ucx_duty_remove(end->worker, &end->duty);
    while (command != NULL) {
        vnxi_ucx_command_t *next = command->next;
        command->run(command, end->worker);
        command = next;
    }
    vnxi_ucx_conn_release(end->conn); /* may free the end */
}

static void
become_idle(vnxi_ucx_end_t *end)
{
    be_wired_no_more(end);
    free(end->cell);
    end->cell = NULL;
    end->ep = NULL;
    end->state = VNXI_UCX_END_IDLE;
    let_go(end);
}

/* UCX may still call back for the old endpoint at any time.  So its cell stays
 * until the worker ends, pointing to no end. */
static void
give_up(vnxi_ucx_end_t *end)
{
    vnxi_ucx_cell_t *cell = end->cell;
    cell->end = NULL;
    cell->next = end->worker->stray;
    end->worker->stray = cell;
    end->cell = NULL;
    vnxi_ucx_conn_fail(end->conn, "UCX does not close the connection");
    let_go(end);
}

void
vnxi_ucx_end_reset(vnxi_ucx_end_t *end)
{
    if (end->state != VNXI_UCX_END_IDLE &&
        end->state != VNXI_UCX_END_CLOSING) {
        close_ep(end, true);
    }
}

static void
on_flushed(void *request, vnxi_ucs_status_t status, void *user_data)
{
    vnxi_ucx_end_t *end = user_data;
    (void)status;
    if (end->state == VNXI_UCX_END_FLUSHING) {
        end->flushed = true;
        end->deadline = end->sent_at + LINGER_NS;
    }
    vnxi_ucx_calls(end->worker)->ucp_request_free(request);
    vnxi_ucx_conn_release(end->conn);
}

/* Queued messages are sent first, for at most half a second. */
static void
begin_flush(vnxi_ucx_end_t *end)
{
    const vnxi_ucp_request_param_t param = {
        .op_attr_mask = VNXI_UCP_OP_CALLBACK | VNXI_UCP_OP_USER_DATA,
        .cb.send = on_flushed,
        .user_data = end,
    };
    end->state = VNXI_UCX_END_FLUSHING;
    end->flushed = false;
    end->deadline = vnxi_clock_deadline(FLUSH_DEADLINE_NS);
    if (atomic_load(&end->conn->of_ours) && !end->worker->draining &&
        !end->evicted) {
        spare_add(end);
    }
    vnxi_ucx_conn_retain(end->conn);
    vnxi_ucs_ptr_t ptr =
        vnxi_ucx_calls(end->worker)->ucp_ep_flush_nbx(end->ep, &param);
    if (!vnxi_ucs_is_request(ptr)) {
        end->flushed = vnxi_ucs_status(ptr) == VNXI_UCS_OK;
        end->deadline = end->flushed ? end->sent_at + LINGER_NS : 0;
        vnxi_ucx_conn_release(end->conn);
    }
}

static void
leave(vnxi_ucx_end_t *end)
{
    if (atomic_load(&end->conn->failed)) {
        close_ep(end, true);
    } else {
        begin_flush(end);
    }
}

void
vnxi_ucx_end_close(vnxi_ucx_end_t *end)
{
    end->close_wanted = true;
    if (end->state == VNXI_UCX_END_OPEN) {
        leave(end);
    }
}

static uint64_t
look(vnxi_ucx_duty_t *duty, uint64_t now)
{
    vnxi_ucx_end_t *end = (vnxi_ucx_end_t *)duty;

    if (end->state == VNXI_UCX_END_OPEN && must_close(end)) {
        leave(end);
    } else if (end->state == VNXI_UCX_END_FAILED) {
        close_ep(end, true);
    } else if (end->state == VNXI_UCX_END_FLUSHING && !keep(end) &&
               now >= end->deadline) {
        close_ep(end, !end->flushed);
    } else if (end->state == VNXI_UCX_END_KEPT && end->worker->draining) {
        begin_flush(end);
    }
    if (end->state == VNXI_UCX_END_CLOSING) {
        if (end->closed) {
            become_idle(end);
            return UINT64_MAX;
        }
        if (now >= end->deadline) {
            give_up(end);
            return UINT64_MAX;
        }
        return now + CLOSE_LOOK_NS;
    }
    return end->state == VNXI_UCX_END_FLUSHING ? end->deadline : UINT64_MAX;
}

/* -- Keys ------------------------------------------------------------------
 */

vnxi_ucs_status_t
vnxi_ucx_end_key(vnxi_ucx_end_t *end, vnxi_ucx_key_t *key,
                 vnxi_ucp_rkey_t *handle_p)
{
    vnxi_ucx_slot_t *slot = &key->slots[end->worker->index];

    if (__builtin_expect(slot->handle == NULL, 0)) {
        vnxi_ucs_status_t status =
            vnxi_ucx_calls(end->worker)
                ->ucp_ep_rkey_unpack(end->ep, key->bytes, &slot->handle);
        if (status != VNXI_UCS_OK) {
            slot->handle = NULL;
            return status;
        }
        slot->prev = &end->slots;
        slot->next = end->slots.next;
        slot->next->prev = slot;
        end->slots.next = slot;
        atomic_store(&slot->used, true);
    }
    *handle_p = slot->handle;
    return VNXI_UCS_OK;
}
