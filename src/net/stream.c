#include "net/stream.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/error.h"
#include "net/tls.h"

vnx_status_t
vnxi_stream_open(vnxi_stream_t *stream, int fd, const char *host,
                 const vnx_side_channel_options_t *options)
{
    *stream = (vnxi_stream_t){.fd = fd};
    if (VNXI_TLS_IS_THERE && options->tls != VNXI_TLS_NONE) {
        return vnxi_tls_client_open(stream, host, options);
    }
    return VNX_OK;
}

void
vnxi_stream_close(vnxi_stream_t *stream)
{
    if (VNXI_TLS_IS_THERE) {
        vnxi_tls_client_close(stream);
    }
    if (stream->fd >= 0) {
        close(stream->fd);
        stream->fd = -1;
    }
}

vnx_status_t
vnxi_stream_shake(vnxi_stream_t *stream)
{
    return VNXI_TLS_IS_THERE && stream->tls != NULL
               ? vnxi_tls_client_shake(stream)
               : VNX_OK;
}

/* Convert the errno of a failed system call. */
static vnx_status_t
failed(vnxi_stream_t *stream, short events)
{
    if (errno == EAGAIN || errno == EINTR) {
        stream->events = events;
        return VNX_IN_PROG;
    }
    snprintf(stream->reason, sizeof stream->reason, "%s", vnxi_errno(errno));
    return VNX_ERR_BACKEND;
}

vnx_status_t
vnxi_stream_send(vnxi_stream_t *stream, const void *data, size_t len,
                 size_t *count_p)
{
    if (VNXI_TLS_IS_THERE && stream->tls != NULL) {
        return vnxi_tls_client_send(stream, data, len, count_p);
    }
    ssize_t count = send(stream->fd, data, len, MSG_NOSIGNAL);
    if (count < 0) {
        return failed(stream, POLLOUT);
    }
    *count_p = (size_t)count;
    return VNX_OK;
}

vnx_status_t
vnxi_stream_recv(vnxi_stream_t *stream, void *data, size_t size,
                 size_t *count_p)
{
    if (VNXI_TLS_IS_THERE && stream->tls != NULL) {
        return vnxi_tls_client_recv(stream, data, size, count_p);
    }
    ssize_t count = recv(stream->fd, data, size, 0);
    if (count < 0) {
        return failed(stream, POLLIN);
    }
    *count_p = (size_t)count;
    return VNX_OK;
}
