/*
 * Design notes.  Plain non-blocking sockets on the caller's thread; every
 * step waits by the one deadline of the exchange.  Each address of a name gets
 * an equal share of what is left when its turn comes, so that one that drops
 * packets does not take the time of the others.
 */
#include "side_channel/tcp.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "side_channel/frame.h"

typedef struct exchange {
    const vnxi_request_params_t *params;
    const char *phase; /* for errors */
    char address[VNXI_ADDRESS_TEXT];
    vnx_error_t *error;
} exchange_t;

static vnx_status_t
failed(exchange_t *exchange, vnx_status_t status, const char *reason)
{
    const vnxi_request_params_t *params = exchange->params;

    vnxi_error_set(exchange->error, status, VNXI_OP_REQUEST,
                   "%s %s: %s (after %lu ms)", exchange->phase,
                   exchange->address[0] != '\0' ? exchange->address
                                                : params->host,
                   reason, vnxi_wait_elapsed_ms(&params->wait));
    vnxi_error_peer(exchange->error, params->endpoint,
                    strlen(params->endpoint));
    return status;
}

/* What a system call or a wait came to. */
static vnx_status_t
failed_wait(exchange_t *exchange, vnx_status_t status)
{
    switch (status) {
    case VNX_ERR_TIMEOUT:
        return failed(exchange, status, "timed out");
    case VNX_ERR_CANCELED:
        return failed(exchange, status, "interrupted");
    default:
        return failed(exchange, status, strerror(errno));
    }
}

static vnx_status_t
connect_finish(int fd, const vnxi_wait_t *wait)
{
    int err = 0;
    socklen_t len = sizeof err;

    vnx_status_t status = vnxi_wait_fd(wait, fd, POLLOUT);
    if (status != VNX_OK) {
        return status;
    }
    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &len) != 0) {
        return VNX_ERR_BACKEND;
    }
    errno = err;
    return err == 0 ? VNX_OK : VNX_ERR_BACKEND;
}

static vnx_status_t
connect_one(exchange_t *exchange, const vnxi_address_t *address,
            const vnxi_wait_t *wait, int *fd_p)
{
    vnx_status_t status = VNX_OK;
    int fd = socket(address->addr.ss_family,
                    SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return failed_wait(exchange, VNX_ERR_BACKEND);
    }
    if (connect(fd, (const void *)&address->addr, address->len) != 0) {
        status = errno == EINPROGRESS || errno == EINTR
                     ? connect_finish(fd, wait)
                     : VNX_ERR_BACKEND;
    }
    if (status != VNX_OK) {
        failed_wait(exchange, status);
        close(fd);
        return status;
    }
    *fd_p = fd;
    return VNX_OK;
}

static vnx_status_t
connect_any(exchange_t *exchange, const vnxi_addresses_t *addresses, int *fd_p)
{
    vnx_status_t status = VNX_ERR_BACKEND;

    exchange->phase = "connecting to";
    for (size_t i = 0; i < addresses->count; i++) {
        vnxi_wait_t wait = vnxi_wait_share(&exchange->params->wait,
                                           (unsigned)(addresses->count - i));
        vnxi_address_text(&addresses->list[i], exchange->address);
        status = connect_one(exchange, &addresses->list[i], &wait, fd_p);
        if (status == VNX_OK || status == VNX_ERR_CANCELED) {
            break;
        }
    }
    return status;
}

static vnx_status_t
send_request(exchange_t *exchange, int fd)
{
    unsigned char frame[VNXI_FRAME_HEADER + VNXI_TCP_REQUEST_LEN];
    size_t sent = 0;

    exchange->phase = "sending to";
    vnxi_frame_encode_header(VNXI_TCP_REQUEST_LEN, frame);
    memcpy(frame + VNXI_FRAME_HEADER, VNXI_TCP_REQUEST, VNXI_TCP_REQUEST_LEN);
    while (sent < sizeof frame) {
        ssize_t count =
            send(fd, frame + sent, sizeof frame - sent, MSG_NOSIGNAL);
        if (count >= 0) {
            sent += (size_t)count;
        } else if (errno == EAGAIN) {
            vnx_status_t status =
                vnxi_wait_fd(&exchange->params->wait, fd, POLLOUT);
            if (status != VNX_OK) {
                return failed_wait(exchange, status);
            }
        } else if (errno != EINTR) {
            return failed_wait(exchange, VNX_ERR_BACKEND);
        }
    }
    return VNX_OK;
}

static vnx_status_t
failed_early_end(exchange_t *exchange, const vnxi_frame_decoder_t *decoder)
{
    char reason[96];

    if (decoder->header_have == 0) {
        return failed(exchange, VNX_ERR_BACKEND,
                      "the connection was closed without a reply");
    }
    if (decoder->header_have < VNXI_FRAME_HEADER) {
        return failed(exchange, VNX_ERR_BACKEND,
                      "the connection was closed in the reply's length");
    }
    snprintf(reason, sizeof reason,
             "the connection was closed after %zu of %" PRIu32 " bytes",
             decoder->have, decoder->len);
    return failed(exchange, VNX_ERR_BACKEND, reason);
}

static vnx_status_t
failed_frame(exchange_t *exchange, const vnxi_frame_decoder_t *decoder)
{
    char reason[96];

    if (decoder->state == VNXI_FRAME_NO_MEMORY) {
        return failed(exchange, VNX_ERR_NO_MEMORY, "no memory for the reply");
    }
    snprintf(reason, sizeof reason,
             "a reply of %" PRIu32 " bytes is above max_frame (%" PRIu32 ")",
             decoder->len, decoder->max);
    return failed(exchange, VNX_ERR_MISMATCH, reason);
}

/* Waiting before every read, also where bytes are there already, has a peer
 * that never lets the socket run dry meet the deadline too. */
static vnx_status_t
receive_reply(exchange_t *exchange, int fd, vnxi_frame_decoder_t *decoder)
{
    void *space;
    size_t size;

    exchange->phase = "receiving from";
    while ((space = vnxi_frame_space(decoder, &size)) != NULL) {
        vnx_status_t status =
            vnxi_wait_fd(&exchange->params->wait, fd, POLLIN);
        if (status != VNX_OK) {
            return failed_wait(exchange, status);
        }
        ssize_t count = recv(fd, space, size, 0);
        if (count > 0) {
            vnxi_frame_commit(decoder, (size_t)count);
        } else if (count == 0) {
            return failed_early_end(exchange, decoder);
        } else if (errno != EAGAIN && errno != EINTR) {
            return failed_wait(exchange, VNX_ERR_BACKEND);
        }
    }
    return decoder->state == VNXI_FRAME_WHOLE
               ? VNX_OK
               : failed_frame(exchange, decoder);
}

static vnx_status_t
exchange_on(exchange_t *exchange, int fd, void **metadata_p, size_t *length_p)
{
    vnxi_frame_decoder_t decoder;

    vnxi_frame_decoder_init(&decoder, exchange->params->max_frame);
    vnx_status_t status = send_request(exchange, fd);
    if (status == VNX_OK) {
        status = receive_reply(exchange, fd, &decoder);
    }
    if (status == VNX_OK) {
        *metadata_p = vnxi_frame_take(&decoder, length_p);
    }
    vnxi_frame_decoder_fini(&decoder);
    return status;
}

vnx_status_t
vnxi_tcp_request(const vnxi_request_params_t *params, void **metadata_p,
                 size_t *length_p, vnx_error_t *error)
{
    exchange_t exchange = {
        .params = params, .phase = "resolving", .error = error};
    vnxi_addresses_t addresses;
    const char *reason;
    int fd = -1;

    vnx_status_t status = vnxi_resolve(params->host, params->port,
                                       &params->wait, &addresses, &reason);
    if (status != VNX_OK) {
        return failed(&exchange, status, reason);
    }
    status = connect_any(&exchange, &addresses, &fd);
    if (status != VNX_OK) {
        return status;
    }
    status = exchange_on(&exchange, fd, metadata_p, length_p);
    close(fd);
    return status;
}
