/*
 * Requests in progress at the client.
 *
 * A set has any number of requests, all run by one thread at a time.  Either
 * vnxi_requests_run() waits until all have ended, or the program waits for a
 * descriptor in its own loop (side_channel.h).
 *
 * Each request belongs to its set, which tries it, and tries it again if that
 * fails.  During a try it belongs to its transport, which creates its own
 * state in begin() and frees it in end().
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
    const void *key; /* not NULL; 0 bytes: the default key */
    size_t key_len;
    const char *endpoint; /* "host:port" for errors */
    const vnx_side_channel_options_t *options;
    uint64_t start, deadline; /* vnxi_clock_ns(); they cover all tries */
    char *text;               /* owned: host, key and endpoint */
    /* Written by the transport, during a try: */
    void *client; /* the transport's state; NULL: begin() failed, or no try is
                     running */
    int fd; /* descriptor to wait for; -1: wait for the time only.  The next
               step may close it */
    short events;  /* POLLIN, POLLOUT */
    uint64_t wake; /* call step() at this time at the latest; UINT64_MAX: at
                      the deadline */
    bool answered; /* the peer itself answered VNX_ERR_NOT_FOUND: another try
                      would not change that */
    vnx_side_channel_answer_t answer; /* metadata and error */
    /* Written by the set: */
    vnxi_request_state_t state;
    int watched; /* descriptor registered last; -1: none */
    uint32_t retries, backoff_ms;
    uint64_t due; /* time at which to check the request */
} vnxi_request_t;

/* -- One request ---------------------------------------------------------- */

/* Write the record of a failure: "<phase> <whom>: <reason> (after 12 ms)" with
 * the endpoint as the peer; returns `status`. */
vnx_status_t vnxi_request_failed(vnxi_request_t *request, vnx_status_t status,
                                 const char *phase, const char *whom,
                                 const char *reason);

/* Write the record for a peer that answered that it does not serve the key.
 * Returns VNX_ERR_NOT_FOUND. */
vnx_status_t vnxi_request_no_key(vnxi_request_t *request);

/* Write the record for an allocation of `size` bytes that failed.  Returns
 * VNX_ERR_NO_MEMORY. */
vnx_status_t vnxi_request_no_memory(vnxi_request_t *request, size_t size);

/* -- A set ---------------------------------------------------------------- */

/* Create a set of `count` requests.  `params` were checked, and each has the
 * `size` of this library's struct; they and what they point to are copied.
 * `options` is borrowed.  Nothing begins yet, but the time of each request
 * counts from now.  Returns owned: vnxi_requests_free().  VNX_ERR_NO_MEMORY,
 * VNX_ERR_BACKEND (no descriptor). */
vnx_status_t
vnxi_requests_create(const struct vnxi_transport *transport,
                     const vnx_side_channel_options_t *options,
                     const vnx_side_channel_request_params_t *params,
                     size_t count, vnxi_requests_t **out_p,
                     vnx_error_t *error);

#endif
