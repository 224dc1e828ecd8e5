/*
 * What request.c (one request) and request_set.c (all of a set) share.
 */
#ifndef VNXI_SIDE_CHANNEL_REQUEST_SET_H
#define VNXI_SIDE_CHANNEL_REQUEST_SET_H

#include "side_channel/transport.h"

struct vnxi_requests {
    vnx_side_channel_t *channel; /* held; NULL: none */
    const vnxi_transport_t *transport;
    int epoll_fd; /* -1: one request, waited for without a set */
    int timer_fd; /* -1: nobody watches epoll_fd */
    size_t count, open, begun, trying, window;
    uint64_t next_due; /* the earliest time at which any is due, or earlier */
    vnxi_request_t list[];
};

/* Copy what is asked for; its time counts from `now`.  False: no memory. */
bool vnxi_request_init(vnxi_request_t *request,
                       const vnx_side_channel_request_params_t *given,
                       const vnx_side_channel_options_t *options,
                       uint64_t now);

/* At any stage. */
void vnxi_request_fini(vnxi_requests_t *set, vnxi_request_t *request);

/* Begin it. */
void vnxi_request_try(vnxi_requests_t *set, vnxi_request_t *request);

/* Of one that is tried: do what can be done now. */
void vnxi_request_step(vnxi_requests_t *set, vnxi_request_t *request);

/* Of one that has not ended: if it is due, do what is to be done then. */
void vnxi_request_check(vnxi_requests_t *set, vnxi_request_t *request,
                        uint64_t now);

/* End it with VNX_ERR_CANCELED. */
void vnxi_request_cancel(vnxi_requests_t *set, vnxi_request_t *request);

#endif
