/*
 * An exchange over a socket of ours, at the client: what those transports
 * share that speak for themselves.  It dials, shakes hands over TLS where that
 * is asked for, and then carries bytes; what they say is the transport's.
 * Never waits; of one thread at a time.
 */
#ifndef VNXI_SIDE_CHANNEL_TALK_H
#define VNXI_SIDE_CHANNEL_TALK_H

#include "side_channel/dial.h"
#include "side_channel/stream.h"

typedef enum vnxi_talk_stage {
    VNXI_TALK_DIAL,
    VNXI_TALK_SHAKE,
    VNXI_TALK_OPEN, /* bytes go to and fro */
} vnxi_talk_stage_t;

/* The head of such an exchange. */
typedef struct vnxi_talk {
    vnxi_exchange_t super;
    const vnxi_request_params_t *params; /* borrowed */
    vnxi_talk_stage_t stage;
    vnxi_dial_t dial;
    vnxi_stream_t stream;
    const char *doing;        /* for records, once it is open; NULL: sending
                                 or receiving */
    const unsigned char *out; /* borrowed: what to send */
    size_t out_len, out_sent;
    vnx_error_t *error; /* the step's */
} vnxi_talk_t;

/* Of an object that is all zeros; `out` is where the transport will put what
 * it says.  Nothing begins yet. */
void vnxi_talk_init(vnxi_talk_t *talk, const vnxi_request_params_t *params,
                    const unsigned char *out);

void vnxi_talk_fini(vnxi_talk_t *talk);

/* The beginning of every step: VNX_OK: it is open, and not too late. */
vnx_status_t vnxi_talk_step(vnxi_talk_t *talk, vnx_error_t *error);

/* Send what is left of `out`.  VNX_OK: all of it, and out_len is 0. */
vnx_status_t vnxi_talk_send(vnxi_talk_t *talk);

/* Receive `size` bytes at most; *count_p 0: the other side has closed.
 * VNX_ERR_TIMEOUT past the deadline, however much there is to be had. */
vnx_status_t vnxi_talk_recv(vnxi_talk_t *talk, void *space, size_t size,
                            size_t *count_p);

/* Write the record of a failure in whatever phase it is in; `status`. */
vnx_status_t vnxi_talk_failed(vnxi_talk_t *talk, vnx_status_t status,
                              const char *reason);

/* The other side says that it does not serve the key. */
vnx_status_t vnxi_talk_no_key(vnxi_talk_t *talk);

#endif
