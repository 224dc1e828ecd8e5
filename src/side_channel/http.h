/*
 * HTTP transport: GET /metadata, /metadata/{key} and /health over HTTP/1.1,
 * with libevent's server and libcurl.  docs/wire.md specifies the bytes.
 *
 *   http_wire.c      contents of requests
 *   http_listener.c  libevent's server (over server.c), and its replies
 *   http_conn.c      a client's connection at the server
 *   http_client.c    the transport: tries of a client, with libcurl
 *   http_outcome.c   result of a try
 */
#ifndef VNXI_SIDE_CHANNEL_HTTP_H
#define VNXI_SIDE_CHANNEL_HTTP_H

#include <event2/http.h>
#include <event2/listener.h>
#include <stdbool.h>

#include "base/name_map.h"
#include "side_channel/http_wire.h"
#include "side_channel/server.h"

#define VNXI_HTTP_HEADERS_MAX 8192 /* of a request line and header */
#define VNXI_HTTP_BODY_MAX 1024    /* a GET has none; it is not read */

/* -- Listener ------------------------------------------------------------- */

/* Used by the loop thread alone while it runs. */
typedef struct vnxi_http_listener {
    vnxi_server_t super;
    struct evhttp *http;
    size_t bound;           /* of the acceptor's listeners; owned by http */
    vnxi_name_map_t by_bev; /* the connections by their bufferevent */
} vnxi_http_listener_t;

vnx_status_t vnxi_http_listen(const vnxi_listen_params_t *params,
                              vnxi_server_t **out_p, vnx_error_t *error);

/* -- One client at the server; the loop thread only ----------------------- */

typedef struct vnxi_http_conn {
    vnxi_conn_t super; /* bev: we hold a reference; tls: owned by bev */
    vnxi_http_listener_t *listener;
    struct evhttp_connection *evcon; /* owned by libevent; NULL: not adopted */
    uint64_t active;                 /* time of the last input or output */
    bool has_sent; /* the client sent something since `start` */
    bool counted;  /* the reason of its end is in the stats */
} vnxi_http_conn_t;

/* Callback of evhttp_set_bevcb(): a connection was accepted and will be given
 * to libevent's server. */
struct bufferevent *vnxi_http_conn_new(struct event_base *base,
                                       void *listener);

/* vnxi_server_ops_t's drop(). */
void vnxi_http_conn_drop(vnxi_conn_t *conn);

/* Find the connection of a request.  NULL: it has none, since memory ran out
 * when it was accepted. */
vnxi_http_conn_t *vnxi_http_conn_of(vnxi_http_listener_t *listener,
                                    struct evhttp_request *request);

/* Note that the reply to `request` is about to be written, and that it was
 * written. */
void vnxi_http_conn_write(vnxi_http_conn_t *conn);
void vnxi_http_conn_written(struct evhttp_request *request, void *conn);

#endif
