/*
 * Design notes.  Every step does what it can and says what it waits for, and
 * looks at the one deadline first, as does every receiving: a peer that never
 * lets the socket run dry meets it too.
 */
#include "side_channel/talk.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

void
vnxi_talk_init(vnxi_talk_t *talk, const vnxi_request_params_t *params,
               const unsigned char *out)
{
    talk->out = out;
    talk->params = params;
    talk->super.fd = talk->stream.fd = -1;
    vnxi_dial_init(&talk->dial, params);
}

void
vnxi_talk_fini(vnxi_talk_t *talk)
{
    vnxi_dial_fini(&talk->dial);
    vnxi_stream_close(&talk->stream);
}

/* -- Failing -------------------------------------------------------------- */

static const char *
phase(const vnxi_talk_t *talk)
{
    switch (talk->stage) {
    case VNXI_TALK_DIAL:
        return vnxi_dial_phase(&talk->dial);
    case VNXI_TALK_SHAKE:
        return "TLS with";
    default:
        if (talk->doing != NULL) {
            return talk->doing;
        }
        return talk->out_sent < talk->out_len ? "sending to"
                                              : "receiving from";
    }
}

vnx_status_t
vnxi_talk_failed(vnxi_talk_t *talk, vnx_status_t status, const char *reason)
{
    return vnxi_exchange_failed(talk->params, status, phase(talk),
                                vnxi_dial_whom(&talk->dial), reason,
                                talk->error);
}

vnx_status_t
vnxi_talk_no_key(vnxi_talk_t *talk)
{
    return vnxi_exchange_no_key(&talk->super, talk->params, talk->error);
}

/* What the stream came to that is not VNX_OK. */
static vnx_status_t
stream_failed(vnxi_talk_t *talk, vnx_status_t status)
{
    if (status == VNX_IN_PROG) {
        talk->super.fd = talk->stream.fd;
        talk->super.events = talk->stream.events;
        return VNX_IN_PROG;
    }
    return vnxi_talk_failed(talk, status, talk->stream.reason);
}

static vnx_status_t
check_time(vnxi_talk_t *talk)
{
    return vnxi_clock_ns() < talk->params->deadline
               ? VNX_OK
               : vnxi_talk_failed(talk, VNX_ERR_TIMEOUT, "timed out");
}

/* -- Getting there -------------------------------------------------------- */

static vnx_status_t
dial(vnxi_talk_t *talk)
{
    const vnxi_request_params_t *params = talk->params;
    int fd = -1, on = 1;

    vnx_status_t status =
        vnxi_dial_step(&talk->dial, &talk->super, &fd, talk->error);
    if (status != VNX_OK) {
        return status;
    }
    /* Small pieces go to and fro before anything large comes. */
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    talk->stage = VNXI_TALK_SHAKE;
    status =
        vnxi_stream_open(&talk->stream, fd, params->host, params->options);
    return status == VNX_OK
               ? VNX_OK
               : vnxi_talk_failed(talk, status, talk->stream.reason);
}

static vnx_status_t
shake(vnxi_talk_t *talk)
{
    vnx_status_t status = vnxi_stream_shake(&talk->stream);
    if (status != VNX_OK) {
        return stream_failed(talk, status);
    }
    talk->stage = VNXI_TALK_OPEN;
    return VNX_OK;
}

vnx_status_t
vnxi_talk_step(vnxi_talk_t *talk, vnx_error_t *error)
{
    talk->error = error;
    talk->super.wake = UINT64_MAX;
    vnx_status_t status = check_time(talk);
    if (status == VNX_OK && talk->stage == VNXI_TALK_DIAL) {
        status = dial(talk);
    }
    if (status == VNX_OK && talk->stage == VNXI_TALK_SHAKE) {
        status = shake(talk);
    }
    return status;
}

/* -- Bytes ---------------------------------------------------------------- */

vnx_status_t
vnxi_talk_send(vnxi_talk_t *talk)
{
    while (talk->out_sent < talk->out_len) {
        size_t count = 0;
        vnx_status_t status =
            vnxi_stream_send(&talk->stream, talk->out + talk->out_sent,
                             talk->out_len - talk->out_sent, &count);
        if (status != VNX_OK) {
            return stream_failed(talk, status);
        }
        talk->out_sent += count;
    }
    talk->out_len = talk->out_sent = 0;
    return VNX_OK;
}

vnx_status_t
vnxi_talk_recv(vnxi_talk_t *talk, void *space, size_t size, size_t *count_p)
{
    vnx_status_t status = check_time(talk);
    if (status != VNX_OK) {
        return status;
    }
    status = vnxi_stream_recv(&talk->stream, space, size, count_p);
    return status == VNX_OK ? VNX_OK : stream_failed(talk, status);
}
