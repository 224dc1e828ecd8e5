/*
 * Shared by request.c (one request) and request_set.c (all requests of a set).
 */
#ifndef VNXI_SIDE_CHANNEL_REQUEST_SET_H
#define VNXI_SIDE_CHANNEL_REQUEST_SET_H

#include "side_channel/transport.h"

struct vnxi_requests {
    vnx_side_channel_t *channel; /* held; NULL: none */
    const vnxi_transport_t *transport;
    int epoll_fd; /* -1: a single request, waited for without a set */
    int timer_fd; /* -1: the program does not watch epoll_fd */
    size_t count, open, begun, trying, window;
    uint64_t next_due; /* no request is due before this time */
    vnxi_request_t list[];
};

/* Copy the parameters; the time of the request counts from `now`.  False: no
 * memory. */
bool vnxi_request_init(vnxi_request_t *request,
                       const vnx_side_channel_request_params_t *given,
                       const vnx_side_channel_options_t *options,
                       uint64_t now);

/* Free a request in any state. */
void vnxi_request_fini(vnxi_requests_t *set, vnxi_request_t *request);

/* Begin a try. */
void vnxi_request_try(vnxi_requests_t *set, vnxi_request_t *request);

/* Advance a try that is running: do what can be done now. */
void vnxi_request_step(vnxi_requests_t *set, vnxi_request_t *request);

/* Check a request that has not ended: if it is due, do what is due. */
void vnxi_request_check(vnxi_requests_t *set, vnxi_request_t *request,
                        uint64_t now);

/* End a request with VNX_ERR_CANCELED. */
void vnxi_request_cancel(vnxi_requests_t *set, vnxi_request_t *request);

#endif
