/*
 * HTTP transport: GET /metadata, /metadata/{key} and /health over HTTP/1.1,
 * with libevent's server and libcurl.  docs/wire.md specifies the bytes.
 *
 *   http_wire.c      contents of requests
 *   http_listener.c  accepting, with libevent's server (over server.c)
 *   http_conn.c      a client's connection at the server
 *   http_answer.c    replies to clients
 *   http_client.c    the transport, and the steps of a try at the client
 *   http_easy.c      libcurl's options and the bytes that it receives
 *   http_outcome.c   result of a try
 */
#ifndef VNXI_SIDE_CHANNEL_HTTP_H
#define VNXI_SIDE_CHANNEL_HTTP_H

#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <event2/http.h>
#include <event2/listener.h>
#include <stdbool.h>
#include <sys/queue.h>

#include "base/name_map.h"
#include "side_channel/http_wire.h"
#include "side_channel/server.h"

#define VNXI_HTTP_HEADERS_MAX 8192 /* of a request line and header */
#define VNXI_HTTP_BODY_MAX 1024    /* a GET has none; it is not read */

/* -- Listener ------------------------------------------------------------- */

/* States of a connection, in the order of eviction. */
typedef enum vnxi_http_state {
    VNXI_HTTP_NEW,   /* not libevent's yet; seen only in http_conn.c */
    VNXI_HTTP_KEPT,  /* answered; another request may come */
    VNXI_HTTP_READ,  /* the request is not complete yet */
    VNXI_HTTP_WRITE, /* the reply is not sent completely */
} vnxi_http_state_t;
#define VNXI_HTTP_STATES 4

typedef struct vnxi_http_conn vnxi_http_conn_t;
TAILQ_HEAD(vnxi_http_conns, vnxi_http_conn);

/* Used by the loop thread alone while it runs. */
typedef struct vnxi_http_listener {
    vnxi_server_t super;
    struct evhttp *http;
    size_t bound;              /* of the acceptor's listeners; owned by http */
    struct event *adopt_event; /* adopts new connections */
    size_t open;               /* connections */
    /* By state, the longest idle first: READ and KEPT by age (slowly arriving
     * bytes do not count), WRITE by the time at which the client last took
     * bytes. */
    struct vnxi_http_conns conns[VNXI_HTTP_STATES];
    vnxi_name_map_t by_bev; /* the connections by their bufferevent */
} vnxi_http_listener_t;

vnx_status_t vnxi_http_listen(const vnxi_listen_params_t *params,
                              vnxi_server_t **out_p, vnx_error_t *error);

/* -- One client at the server; the loop thread only ----------------------- */

struct vnxi_http_conn {
    TAILQ_ENTRY(vnxi_http_conn) link; /* listener->conns[state] */
    vnxi_http_listener_t *listener;
    struct bufferevent *bev;         /* we hold a reference */
    struct evhttp_connection *evcon; /* owned by libevent; NULL in NEW */
    struct event *timer;
    uint64_t start;  /* of the exchange, by vnxi_clock_ns() */
    uint64_t active; /* time of the last input or output */
    vnxi_http_state_t state;
    bool has_sent;    /* the client sent something since `start` */
    bool turned_away; /* the reply being written is not a blob */
    bool counted;     /* the reason of its end is in the stats */
};

/* Callback of evhttp_set_bevcb(): a connection was accepted and will be given
 * to libevent's server. */
struct bufferevent *vnxi_http_conn_new(struct event_base *base, void *arg);

/* Adopt the NEW connections that libevent has by now. */
void vnxi_http_conn_adopt_all(vnxi_http_listener_t *listener);

/* Find the connection of a request.  NULL: it has none, since memory ran out
 * when it was accepted. */
vnxi_http_conn_t *vnxi_http_conn_of(vnxi_http_listener_t *listener,
                                    struct evhttp_request *request);

/* Note that the reply to `request` is about to be written, and that it was
 * written. */
void vnxi_http_conn_write(vnxi_http_conn_t *conn);
void vnxi_http_conn_written(struct evhttp_request *request, void *conn);

/* Close a connection to make room: from the first state that has any, the
 * longest idle.  False: there is none. */
bool vnxi_http_conn_evict(vnxi_http_listener_t *listener);

/* Close all connections. */
void vnxi_http_conn_close_all(vnxi_http_listener_t *listener);

/* Callback of evhttp_set_gencb(): answer a complete request. */
void vnxi_http_answer(struct evhttp_request *request, void *listener);

#endif
