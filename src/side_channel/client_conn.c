/*
 * Design notes.  Every step does what can be done now and says what it waits
 * for.  Each step and each receive checks the deadline first, so the deadline
 * also holds for a peer that sends without a pause.
 */
#include "side_channel/client_conn.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include "base/clock.h"

void
vnxi_client_conn_init(vnxi_client_conn_t *conn, vnxi_request_t *request,
                      const unsigned char *out, const char *opening)
{
    conn->out = out;
    conn->opening = opening;
    conn->request = request;
    conn->stream.fd = -1;
    request->phase = "resolving";
    vnxi_dial_init(&conn->dial, request->host, request->port,
                   request->deadline);
}

void
vnxi_client_conn_fini(vnxi_client_conn_t *conn)
{
    vnxi_dial_fini(&conn->dial);
    vnxi_stream_close(&conn->stream);
}

/* -- Failures ------------------------------------------------------------- */

/* Convert a status of the stream other than VNX_OK; errors are recorded. */
static vnx_status_t
stream_failed(vnxi_client_conn_t *conn, vnx_status_t status)
{
    if (status == VNX_IN_PROG) {
        conn->request->fd = conn->stream.fd;
        conn->request->events = conn->stream.events;
        return VNX_IN_PROG;
    }
    return vnxi_request_failed(conn->request, status, "%s",
                               conn->stream.reason);
}

static vnx_status_t
check_time(vnxi_client_conn_t *conn)
{
    return vnxi_clock_ns() < conn->request->deadline
               ? VNX_OK
               : vnxi_request_failed(conn->request, VNX_ERR_TIMEOUT,
                                     "timed out");
}

/* -- Connecting ----------------------------------------------------------- */

static vnx_status_t
dial(vnxi_client_conn_t *conn)
{
    vnxi_request_t *request = conn->request;
    int fd = -1, on = 1;

    vnx_status_t status = vnxi_dial_step(&conn->dial, vnxi_clock_ns(), &fd);
    request->phase = conn->dial.is_connecting ? "connecting to" : "resolving";
    request->whom = conn->dial.whom;
    if (status == VNX_IN_PROG) {
        vnxi_dial_wait(&conn->dial, &request->fd, &request->events,
                       &request->wake);
        return VNX_IN_PROG;
    }
    if (status != VNX_OK) {
        return vnxi_request_failed(request, status, "%s", conn->dial.reason);
    }
    /* The handshake exchanges small messages, which must not be delayed. */
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    conn->stage = VNXI_CLIENT_SHAKE;
    request->phase = "TLS with";
    status =
        vnxi_stream_open(&conn->stream, fd, request->host, request->options);
    return status == VNX_OK ? VNX_OK : stream_failed(conn, status);
}

static vnx_status_t
shake(vnxi_client_conn_t *conn)
{
    vnx_status_t status = vnxi_stream_shake(&conn->stream);
    if (status != VNX_OK) {
        return stream_failed(conn, status);
    }
    conn->stage = VNXI_CLIENT_OPEN;
    conn->request->phase = conn->opening;
    return VNX_OK;
}

vnx_status_t
vnxi_client_conn_step(vnxi_client_conn_t *conn)
{
    conn->request->wake = UINT64_MAX;
    vnx_status_t status = check_time(conn);
    if (status == VNX_OK && conn->stage == VNXI_CLIENT_DIAL) {
        status = dial(conn);
    }
    if (status == VNX_OK && conn->stage == VNXI_CLIENT_SHAKE) {
        status = shake(conn);
    }
    return status;
}

/* -- Sending and receiving ------------------------------------------------ */

vnx_status_t
vnxi_client_conn_send(vnxi_client_conn_t *conn)
{
    while (conn->out_sent < conn->out_len) {
        size_t count = 0;
        vnx_status_t status =
            vnxi_stream_send(&conn->stream, conn->out + conn->out_sent,
                             conn->out_len - conn->out_sent, &count);
        if (status != VNX_OK) {
            return stream_failed(conn, status);
        }
        conn->out_sent += count;
    }
    conn->out_len = conn->out_sent = 0;
    return VNX_OK;
}

vnx_status_t
vnxi_client_conn_receive(vnxi_client_conn_t *conn, vnxi_incoming_t *in)
{
    size_t size;
    void *space;

    while ((space = vnxi_incoming_space(in, &size)) != NULL) {
        vnx_status_t status = check_time(conn);
        if (status != VNX_OK) {
            return status;
        }
        status = vnxi_stream_recv(&conn->stream, space, size, &size);
        if (status != VNX_OK) {
            return stream_failed(conn, status);
        }
        if (size == 0) {
            return VNX_ERR_CLOSED;
        }
        vnxi_incoming_commit(in, size);
    }
    return size == 0 ? VNX_OK : vnxi_request_no_memory(conn->request);
}
