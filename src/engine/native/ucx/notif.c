#include "engine/native/ucx/notif.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "engine/native/ucx/ep.h"
#include "engine/parts/metadata.h"

/* -- The format ------------------------------------------------------------
 */

#define PREFIX "nixlSerDes|"
#define TAG_NAME "name"
#define TAG_MESSAGE "msg"

void
vnxi_ucx_notif_write(vnxi_writer_t *writer, const void *sender,
                     size_t sender_len, const void *message,
                     size_t message_len)
{
    vnxi_write_bytes(writer, PREFIX, sizeof PREFIX - 1);
    vnxi_md_field_write(writer, TAG_NAME, sender, sender_len);
    vnxi_md_field_write(writer, TAG_MESSAGE, message, message_len);
}

static bool
take_text(vnxi_reader_t *reader, const char *text)
{
    const unsigned char *bytes = vnxi_read_bytes(reader, strlen(text));
    return bytes != NULL && memcmp(bytes, text, strlen(text)) == 0;
}

static bool
take_field(vnxi_reader_t *reader, const char *tag, const void **data_p,
           size_t *len_p)
{
    if (!take_text(reader, tag)) {
        return false;
    }
    uint64_t len = vnxi_read_u64(reader);
    if (reader->failed || len > vnxi_reader_left(reader)) {
        return false;
    }
    *data_p = vnxi_read_bytes(reader, (size_t)len);
    *len_p = (size_t)len;
    return vnxi_read_u8(reader) == '|' && !reader->failed;
}

bool
vnxi_ucx_notif_read(const void *payload, size_t len, vnxi_ucx_notif_t *notif_p)
{
    vnxi_reader_t reader = vnxi_reader(payload, len);
    vnxi_ucx_notif_t notif;

    if (!take_text(&reader, PREFIX) ||
        !take_field(&reader, TAG_NAME, &notif.sender, &notif.sender_len) ||
        !take_field(&reader, TAG_MESSAGE, &notif.message,
                    &notif.message_len) ||
        notif.sender_len == 0 || vnxi_reader_left(&reader) != 0) {
        return false;
    }
    *notif_p = notif;
    return true;
}

/* -- Receiving -------------------------------------------------------------
 */

/* Any process that knows our address can send anything. */
static vnxi_ucs_status_t
on_message(void *arg, const void *header, size_t header_length, void *data,
           size_t length, const vnxi_ucp_am_recv_param_t *param)
{
    vnxi_ucx_worker_t *worker = arg;
    const vnxi_ucx_events_t *events = &worker->ucx->events;
    vnxi_ucx_notif_t notif;

    (void)header, (void)header_length;
    if ((param->recv_attr & VNXI_UCP_AM_RECV_RNDV) != 0 ||
        !vnxi_ucx_notif_read(data, length, &notif)) {
        vnxi_log(VNX_LOG_INFO, worker->ucx->name,
                 "ignored a message of %zu bytes from UCX: not a notification",
                 length);
        return VNXI_UCS_OK;
    }
    events->notif(events->context, notif.sender, notif.sender_len,
                  notif.message, notif.message_len);
    return VNXI_UCS_OK;
}

vnxi_ucs_status_t
vnxi_ucx_notif_listen(vnxi_ucx_worker_t *worker)
{
    const vnxi_ucp_am_handler_param_t param = {
        .field_mask = VNXI_UCP_AM_PARAM_ID | VNXI_UCP_AM_PARAM_CB |
                      VNXI_UCP_AM_PARAM_ARG,
        .id = VNXI_UCX_NOTIF_AM,
        .cb = on_message,
        .arg = worker,
    };
    return vnxi_ucx_calls(worker)->ucp_worker_set_am_recv_handler(
        worker->handle, &param);
}

/* -- Sending ---------------------------------------------------------------
 */

#define SEND_HERE_MAX (16u << 10) /* bytes that send_here() sends */

typedef struct message {
    vnxi_ucx_command_t super;  /* first */
    vnxi_ucx_conn_t *conn;     /* retained */
    vnxi_ucx_worker_t *worker; /* that sends it */
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
    vnxi_ucx_calls(message->worker)->ucp_request_free(request);
    message->worker->requests--;
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

    message->worker = worker;
    ep->sent_at = vnxi_clock_ns();
    atomic_store(&worker->ucx->sent_at, ep->sent_at);
    vnxi_ucs_ptr_t ptr = vnxi_ucx_calls(worker)->ucp_am_send_nbx(
        ep->handle, VNXI_UCX_NOTIF_AM, NULL, 0, message->payload.data,
        message->payload.len, &param);
    if (vnxi_ucs_is_request(ptr)) {
        worker->requests++;
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

    vnx_status_t status = vnxi_ucx_ep_open(ep, "vnx_agent_send_notif", NULL);
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
    static const char operation[] = "vnx_agent_send_notif";
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
