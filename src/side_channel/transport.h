/*
 * The interface of a transport, which implements a side channel.  Each
 * transport has one constant of this type, named vnxi_transport_<name>;
 * side_channel.c lists them.
 *
 * The front (side_channel.c, request.c) checks arguments, keeps one listener
 * for a channel and the table of blobs that it serves, counts, handles forks,
 * and runs requests: it waits for them and tries again.  A transport
 * implements its wire format.  Its parameters were checked: ports
 * are in range, keys are not too long, blobs are within max_frame, every
 * option has its value.
 *
 * No error and no line of the log contains a secret.
 */
#ifndef VNXI_SIDE_CHANNEL_TRANSPORT_H
#define VNXI_SIDE_CHANNEL_TRANSPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>
#include <vnx/error.h>
#include <vnx/side_channel.h>

#include "side_channel/body.h"

#define VNXI_OP_CREATE "vnx_side_channel_create"
#define VNXI_OP_START "vnx_side_channel_start"
#define VNXI_OP_REQUEST "vnx_side_channel_request"

/* -- Requests ------------------------------------------------------------- */

/* A request belongs to the requests that were made with it (request.c), which
 * try it, and try it again if that fails.  During a try it belongs to its
 * transport, whose state is in `client`. */
typedef enum vnxi_request_state {
    VNXI_REQUEST_QUEUED, /* until it has its turn to be tried */
    VNXI_REQUEST_TRYING,
    VNXI_REQUEST_RESTING, /* until `due`, after a try that failed */
    VNXI_REQUEST_ENDED,   /* has its answer */
} vnxi_request_state_t;

#define VNXI_PHASE_CONNECTING "connecting to"

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
    bool has_retries;         /* the caller asked for further tries */
    /* Written by the transport, during a try: */
    void *client;      /* the transport's state; NULL: no try is running */
    const char *phase; /* for records: "receiving from" */
    const char *whom;  /* the host, or an address in `client` */
    int fd; /* descriptor to wait for; -1: wait for the time only.  The next
               step may close it */
    short events;  /* POLLIN, POLLOUT */
    uint64_t wake; /* call step() at this time at the latest; UINT64_MAX: at
                      the deadline */
    bool answered; /* the peer itself answered VNX_ERR_NOT_FOUND: another try
                      would not change that */
    vnx_side_channel_answer_t answer; /* metadata and error */
    /* Written by request.c: */
    TAILQ_ENTRY(vnxi_request) link; /* set->queue, if QUEUED */
    vnxi_request_state_t state;
    int watched; /* descriptor registered last; -1: none */
    uint32_t retries, backoff_ms;
    uint64_t due; /* time at which to check the request */
} vnxi_request_t;

/* Write the record of a failure: "<phase> <whom>: <reason> (after 12 ms)" with
 * the endpoint as the peer; returns `status`. */
vnx_status_t vnxi_request_failed(vnxi_request_t *request, vnx_status_t status,
                                 const char *reason, ...)
    __attribute__((format(printf, 3, 4)));

vnx_status_t vnxi_request_no_memory(vnxi_request_t *request);

/* Make the body the answer.  Returns VNX_OK or VNX_ERR_NO_MEMORY. */
vnx_status_t vnxi_request_answer(vnxi_request_t *request, vnxi_body_t *body);

/* Write the record for a peer that answered that it does not serve the key.
 * Returns VNX_ERR_NOT_FOUND. */
vnx_status_t vnxi_request_no_key(vnxi_request_t *request);

/* -- The transport -------------------------------------------------------- */

typedef struct vnxi_transport {
    unsigned fds;       /* descriptors that one request holds */
    size_t client_size; /* of request->client */

    const struct vnxi_protocol *protocol; /* of its listeners (server.h) */

    /* Check the options before the channel listens or asks: a transport that
     * cannot use a shared secret, or does not speak TLS, refuses it.  VNX_OK,
     * or an error and *reason_p.  NULL: nothing to check. */
    vnx_status_t (*check)(const vnx_side_channel_options_t *options,
                          const char **reason_p);

    /* Begin a try of the request: initialize request->client, a state machine
     * that never waits.  It is all zeros.  Does as little as possible and
     * leaves the work to the first step.  On an error end() is not called. */
    vnx_status_t (*begin)(vnxi_request_t *request);

    /* Do what can be done now.  Called once after begin(), then when
     * request->fd has one of request->events or an error, when request->wake
     * or the deadline is past, and at any time without a reason.
     *
     * VNX_IN_PROG: fd, events and wake say what to wait for.  VNX_OK:
     * request->answer has the metadata (free(); not NULL) and its length.  Any
     * other status: the try failed, and request->answer.error says how, in
     * which phase, and after how long (vnxi_request_failed()).  Statuses:
     * vnx_side_channel_request_with(); VNX_ERR_TIMEOUT once the deadline is
     * past, even if more could be done, so that a flood cannot extend the
     * deadline.  Not called again after VNX_OK or an error. */
    vnx_status_t (*step)(vnxi_request_t *request);

    /* Free what request->client owns, at any stage. */
    void (*end)(vnxi_request_t *request);
} vnxi_transport_t;

extern const vnxi_transport_t vnxi_transport_tcp;
#ifdef VNXI_SIDE_CHANNEL_ZMQ
extern const vnxi_transport_t vnxi_transport_zmq;
#endif
#ifdef VNXI_SIDE_CHANNEL_HTTP
extern const vnxi_transport_t vnxi_transport_http;
#endif

#endif
