/*
 * The side channel, for the layers above: what vnx/side_channel.h leaves out
 * because only a language binding needs it.
 */
#ifndef VNXI_SIDE_CHANNEL_H
#define VNXI_SIDE_CHANNEL_H

#include <stdbool.h>
#include <vnx/side_channel.h>

typedef struct vnxi_side_request {
    const char *host; /* borrowed */
    int port, timeout_ms;
    /* Asked every 100 ms of waiting and on every signal, on the calling
     * thread; true ends the request.  May be NULL. */
    bool (*interrupted)(void *arg);
    void *arg; /* borrowed */
} vnxi_side_request_t;

/* vnx_side_channel_request() that can be interrupted: VNX_ERR_CANCELED. */
vnx_status_t vnxi_side_channel_request(vnx_side_channel_t *channel,
                                       const vnxi_side_request_t *request,
                                       void **metadata_p, size_t *length_p,
                                       vnx_error_t *error);

#endif
