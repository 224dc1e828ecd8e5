/*
 * HTTP transport: GET /metadata, /metadata/{key} and /health over HTTP/1.1,
 * with libevent's server and libcurl.  docs/wire.md specifies the bytes.
 *
 *   http_wire.c      contents of requests
 *   http_listener.c  libevent's server (over server.c)
 *   http_client.c    the transport: tries of a client, with libcurl
 *   http_outcome.c   result of a try
 */
#ifndef VNXI_SIDE_CHANNEL_HTTP_H
#define VNXI_SIDE_CHANNEL_HTTP_H

#include <stdbool.h>

#include "net/resolve.h"
#include "side_channel/body.h"
#include "side_channel/curl.h"
#include "side_channel/transport.h"

/* A try at the client: one transfer of libcurl. */
typedef struct vnxi_http_client {
    vnxi_request_t *request; /* borrowed */
    vnxi_lookup_t *lookup;   /* owned, as all below */
    int epoll_fd;
    uint64_t timer; /* when to call libcurl; UINT64_MAX: never */
    CURLM *multi;   /* NULL: the host is being looked up */
    CURL *curl;
    CURLU *url;
    struct curl_slist *headers, *addresses, *target;
    /* What is known about the transfer: */
    char address[VNXI_ADDRESS_TEXT]; /* last connected to; "": none yet */
    char text[CURL_ERROR_SIZE];      /* libcurl's text for a failure */
    int fd;               /* owned by libcurl; connected to `address` */
    CURLcode code;        /* how the transfer ended; CURLE_OK: it has not */
    bool is_chunked;      /* the reply has chunked encoding, which shows its
                             end */
    bool kept_back;       /* an address was refused: see may_carry_token() */
    vnx_status_t stopped; /* why we aborted it; VNX_OK: we did not */
    vnxi_body_t body;
} vnxi_http_client_t;

/* Return the length that the reply announced; -1: none. */
curl_off_t vnxi_http_length(const vnxi_http_client_t *client);

/* Set the phase of the request, for records. */
void vnxi_http_set_phase(vnxi_http_client_t *client);

/* Finish a transfer that libcurl ended with `code`: take the reply, or write
 * the record of the failure. */
vnx_status_t vnxi_http_take(vnxi_http_client_t *client, CURLcode code);

#endif
