/*
 * One transfer of libcurl: its options, and its result.  Never waits; used by
 * one thread at a time.
 */
#ifndef VNXI_SIDE_CHANNEL_HTTP_EASY_H
#define VNXI_SIDE_CHANNEL_HTTP_EASY_H

#include <stdbool.h>

#include "net/resolve.h"
#include "side_channel/curl.h"
#include "side_channel/transport.h"

typedef struct vnxi_http_easy {
    vnxi_request_t *request; /* borrowed */
    CURL *curl;              /* owned, as all below */
    CURLU *url;
    struct curl_slist *headers, *addresses, *target;
    char address[VNXI_ADDRESS_TEXT]; /* last connected to; "": none yet */
    char text[CURL_ERROR_SIZE];      /* libcurl's text for a failure */
    int fd;          /* owned by libcurl; connected to `address` */
    CURLcode code;   /* how the transfer ended; CURLE_OK: it has not */
    bool is_chunked; /* the reply has chunked encoding, which shows its end */
    bool kept_back;  /* an address was refused: see may_carry_token() */
    unsigned char *body; /* owned; NULL: nothing received yet */
    size_t len, capacity;
    vnx_status_t stopped; /* why we aborted it; VNX_OK: we did not */
} vnxi_http_easy_t;

/* Prepare a transfer for a multi handle.  `found` has the addresses of the
 * host.  NULL: libcurl needs none, because the host is numeric or a proxy
 * looks it up.  libcurl keeps the address of `easy`.  Errors: the record of
 * the request is written. */
vnx_status_t vnxi_http_easy_open(vnxi_http_easy_t *easy,
                                 vnxi_request_t *request,
                                 const vnxi_addresses_t *found);

/* Free it.  All zeros is allowed; may be called again. */
void vnxi_http_easy_close(vnxi_http_easy_t *easy);

/* Return the length that the reply announced; -1: none. */
curl_off_t vnxi_http_easy_length(const vnxi_http_easy_t *easy);

/* -- http_outcome.c ------------------------------------------------------- */

/* Finish a transfer that libcurl ended with `code`: take the reply, or write
 * the record of the failure. */
vnx_status_t vnxi_http_easy_take(vnxi_http_easy_t *easy, CURLcode code);

/* Write the record of a failure in the current phase.  Returns `status`. */
vnx_status_t vnxi_http_easy_failed(const vnxi_http_easy_t *easy,
                                   vnx_status_t status, const char *reason);

#endif
