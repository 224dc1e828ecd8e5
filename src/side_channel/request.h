/*
 * Requests under way at the client.
 *
 * A set has as many requests as one likes, all run by one thread at a time.
 * vnxi_requests_run() waits until all have ended; or the program waits for a
 * descriptor in a loop of its own (side_channel.h).
 *
 * One request belongs to the set, which tries it and tries it again, and in
 * each try to its transport, which makes what it needs in begin() and frees it
 * in end().
 */
#ifndef VNXI_SIDE_CHANNEL_REQUEST_H
#define VNXI_SIDE_CHANNEL_REQUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "side_channel/side_channel.h"

#define VNXI_OP_REQUEST "request_metadata"

struct vnxi_transport;

typedef enum vnxi_request_state {
    VNXI_REQUEST_QUEUED,
    VNXI_REQUEST_TRYING,
    VNXI_REQUEST_RESTING, /* until `due`; has the answer of its last try */
    VNXI_REQUEST_ENDED,   /* has its answer */
} vnxi_request_state_t;

typedef struct vnxi_request {
    /* Constant: */
    const char *host;
    int port;
    const void *key; /* not NULL; 0 bytes: the default */
    size_t key_len;
    const char *endpoint; /* "host:port" for errors */
    const vnx_side_channel_options_t *options;
    uint64_t start, deadline; /* vnxi_clock_ns(): over all tries */
    char *text;               /* owned: host, key and endpoint */
    /* Written by the transport, during a try: */
    void *client;  /* its own; NULL: begin() failed, or it is not trying */
    int fd;        /* what it waits for; -1: nothing but the time.  May be
                      closed in the next step */
    short events;  /* POLLIN, POLLOUT */
    uint64_t wake; /* step again at this time at the latest; UINT64_MAX: the
                      deadline will do */
    bool answered; /* VNX_ERR_NOT_FOUND is what the other side said: asking
                      again would not change it */
    vnx_side_channel_answer_t answer; /* metadata and error */
    /* The set's: */
    vnxi_request_state_t state;
    int watched; /* the descriptor that was last registered; -1: none */
    uint32_t retries, backoff_ms;
    uint64_t due; /* look at it at this time */
} vnxi_request_t;

/* -- One of them ---------------------------------------------------------- */

/* Write the record of a failure: "<phase> <whom>: <reason> (after 12 ms)" with
 * the endpoint as the peer; returns `status`. */
vnx_status_t vnxi_request_failed(vnxi_request_t *request, vnx_status_t status,
                                 const char *phase, const char *whom,
                                 const char *reason);

/* The other side answered that it does not serve the key: VNX_ERR_NOT_FOUND
 * and its record. */
vnx_status_t vnxi_request_no_key(vnxi_request_t *request);

/* VNX_ERR_NO_MEMORY and its record. */
vnx_status_t vnxi_request_no_memory(vnxi_request_t *request, size_t size);

/* -- A set ---------------------------------------------------------------- */

/* `params` (checked, their `size` the size of each) and what they point to are
 * copied; `options` is borrowed.  Begins nothing yet, but the time of each
 * counts from now.  Returns owned: vnxi_requests_free().  VNX_ERR_NO_MEMORY,
 * VNX_ERR_BACKEND (no descriptor). */
vnx_status_t
vnxi_requests_create(const struct vnxi_transport *transport,
                     const vnx_side_channel_options_t *options,
                     const vnx_side_channel_request_params_t *params,
                     size_t count, vnxi_requests_t **out_p,
                     vnx_error_t *error);

#endif
