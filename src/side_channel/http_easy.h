/*
 * One request by libcurl: what it is told, and what it came to.  Of one
 * thread at a time; never waits.
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
    char text[CURL_ERROR_SIZE];      /* libcurl's words for a failure */
    int fd;                          /* libcurl's: the one for that address */
    CURLcode code;                   /* how it ended; CURLE_OK: not yet */
    bool is_chunked;                 /* the reply tells its end by that */
    bool kept_back; /* not connected to an address: see may_carry_token() */
    unsigned char *body; /* NULL: nothing yet */
    size_t len, capacity;
    vnx_status_t stopped; /* why we broke it off; VNX_OK: we did not */
} vnxi_http_easy_t;

/* Have it ready for a multi handle; `found`: the addresses of the host, NULL:
 * libcurl knows (it is numeric, or a proxy's business).  The address of `easy`
 * is kept.  Errors: the record is written. */
vnx_status_t vnxi_http_easy_open(vnxi_http_easy_t *easy,
                                 vnxi_request_t *request,
                                 const vnxi_addresses_t *found);

/* All zeros is allowed; may be called again. */
void vnxi_http_easy_close(vnxi_http_easy_t *easy);

/* The length that the reply announced; -1: none. */
curl_off_t vnxi_http_easy_length(const vnxi_http_easy_t *easy);

/* -- http_outcome.c ------------------------------------------------------- */

/* libcurl ended it with `code`: the reply, or the record of the failure. */
vnx_status_t vnxi_http_easy_take(vnxi_http_easy_t *easy, CURLcode code);

/* Write the record of a failure in whatever phase it is in. */
vnx_status_t vnxi_http_easy_failed(const vnxi_http_easy_t *easy,
                                   vnx_status_t status, const char *reason);

#endif
