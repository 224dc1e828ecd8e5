/*
 * Design notes.  Every step does what can be done now and says what it waits
 * for.  Each step and each receive checks the deadline first, so the deadline
 * also holds for a peer that sends without a pause.
 */
#include "side_channel/client_conn.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"

/* What a step receives at most; other requests have work too.  TLS decrypts it
 * in a fraction of a millisecond, unless its records are tiny. */
#define RECEIVE_MAX (256u << 10)
#define RECEIVE_MAX_NS UINT64_C(1000000)

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
    if (VNXI_TLS_IS_THERE) {
        vnxi_tls_client_close(&conn->stream);
    }
    if (conn->stream.fd >= 0) {
        close(conn->stream.fd);
        conn->stream.fd = -1;
    }
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
               : vnxi_request_failed(conn->request, VNX_ERR_TIMEOUT, "%s",
                                     conn->stage == VNXI_CLIENT_DIAL
                                         ? vnxi_dial_timed_out(&conn->dial)
                                         : "timed out");
}

/* -- Connecting ----------------------------------------------------------- */

vnx_status_t
vnxi_client_conn_dial(vnxi_client_conn_t *conn)
{
    vnxi_request_t *request = conn->request;
    int fd = -1, on = 1;

    vnx_status_t status = vnxi_dial_step(&conn->dial, vnxi_clock_ns(), &fd);
    request->phase =
        conn->dial.is_connecting ? VNXI_PHASE_CONNECTING : "resolving";
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
    conn->stream.fd = fd;
    conn->stage = VNXI_CLIENT_SHAKE;
    request->phase = "TLS with";
    return VNX_OK;
}

static vnx_status_t
open_stream(vnxi_client_conn_t *conn)
{
    const vnxi_request_t *request = conn->request;

    vnx_status_t status = vnxi_client_conn_dial(conn);
    if (VNXI_TLS_IS_THERE && status == VNX_OK &&
        request->options->tls != VNXI_TLS_NONE) {
        status = vnxi_tls_client_open(&conn->stream, request->host,
                                      request->options);
        if (status != VNX_OK) {
            return stream_failed(conn, status);
        }
    }
    return status;
}

static vnx_status_t
shake(vnxi_client_conn_t *conn)
{
    vnx_status_t status = VNXI_TLS_IS_THERE && conn->stream.tls != NULL
                              ? vnxi_tls_client_shake(&conn->stream)
                              : VNX_OK;
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
        status = open_stream(conn);
    }
    if (status == VNX_OK && conn->stage == VNXI_CLIENT_SHAKE) {
        status = shake(conn);
    }
    return status;
}

/* -- Sending and receiving ------------------------------------------------ */

/* Convert the result of a system call on the socket. */
static vnx_status_t
socket_status(vnxi_stream_t *stream, ssize_t count, short events,
              size_t *count_p)
{
    if (count >= 0) {
        *count_p = (size_t)count;
        return VNX_OK;
    }
    if (errno == EAGAIN || errno == EINTR) {
        stream->events = events;
        return VNX_IN_PROG;
    }
    snprintf(stream->reason, sizeof stream->reason, "%s", vnxi_errno(errno));
    return VNX_ERR_BACKEND;
}

vnx_status_t
vnxi_client_conn_send(vnxi_client_conn_t *conn)
{
    vnxi_stream_t *stream = &conn->stream;

    while (conn->out_sent < conn->out_len) {
        const unsigned char *data = conn->out + conn->out_sent;
        size_t len = conn->out_len - conn->out_sent, count = 0;
        vnx_status_t status =
            VNXI_TLS_IS_THERE && stream->tls != NULL
                ? vnxi_tls_client_send(stream, data, len, &count)
                : socket_status(stream,
                                send(stream->fd, data, len, MSG_NOSIGNAL),
                                POLLOUT, &count);
        if (status != VNX_OK) {
            return stream_failed(conn, status);
        }
        conn->out_sent += count;
    }
    conn->out_len = conn->out_sent = 0;
    return VNX_OK;
}

static vnx_status_t
receive_some(vnxi_client_conn_t *conn, vnxi_incoming_t *in, void *space,
             size_t size)
{
    vnxi_stream_t *stream = &conn->stream;

    vnx_status_t status =
        VNXI_TLS_IS_THERE && stream->tls != NULL
            ? vnxi_tls_client_recv(stream, space, size, &size)
            : socket_status(stream, recv(stream->fd, space, size, 0), POLLIN,
                            &size);
    if (status != VNX_OK) {
        return stream_failed(conn, status);
    }
    if (size == 0) {
        return VNX_ERR_CLOSED;
    }
    vnxi_incoming_commit(in, size);
    return VNX_OK;
}

/* End the step, although there may be more.  What TLS has decrypted already
 * does not make the socket readable. */
static vnx_status_t
continue_later(vnxi_client_conn_t *conn)
{
    vnxi_stream_t *stream = &conn->stream;

    if (VNXI_TLS_IS_THERE && stream->tls != NULL &&
        vnxi_tls_client_has_more(stream)) {
        conn->request->wake = vnxi_clock_ns();
    }
    stream->events = POLLIN;
    return stream_failed(conn, VNX_IN_PROG);
}

vnx_status_t
vnxi_client_conn_receive(vnxi_client_conn_t *conn, vnxi_incoming_t *in)
{
    uint64_t start = vnxi_clock_ns();
    size_t left = RECEIVE_MAX, size;
    void *space;

    while ((space = vnxi_incoming_space(in, &size)) != NULL) {
        vnx_status_t status = check_time(conn);
        if (status != VNX_OK) {
            return status;
        }
        if (left == 0 || vnxi_clock_ns() - start >= RECEIVE_MAX_NS) {
            return continue_later(conn);
        }
        size_t before = in->body.len;
        status = receive_some(conn, in, space, size < left ? size : left);
        if (status != VNX_OK) {
            return status;
        }
        left -= in->body.len - before;
    }
    return size == 0 ? VNX_OK : vnxi_request_no_memory(conn->request);
}
