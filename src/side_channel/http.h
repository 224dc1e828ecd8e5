/*
 * HTTP transport: GET /metadata, /metadata/{key} and /health over HTTP/1.1,
 * by libevent's server and libcurl.  The bytes: docs/wire.md.
 *
 *   http_wire.c      what requests say
 *   http_listener.c  accepting, by libevent's server (over server.c)
 *   http_conn.c      one client's connection, at the server
 *   http_answer.c    what a client is told
 *   http_client.c    one try of a request, at the client: its steps; the
 * transport http_easy.c      what libcurl is told, and what comes in
 *   http_outcome.c   how a try ended
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

#define VNXI_HTTP_HEADERS_MAX 8192 /* a request's line and header */
#define VNXI_HTTP_BODY_MAX 1024    /* a GET has none; it is not read */

/* -- Listener ------------------------------------------------------------- */

/* Where a connection stands, in the order in which room is made. */
typedef enum vnxi_http_state {
    VNXI_HTTP_NEW,   /* libevent is about to have it; never seen by others */
    VNXI_HTTP_KEPT,  /* answered; another request may come */
    VNXI_HTTP_READ,  /* no whole request yet */
    VNXI_HTTP_WRITE, /* the reply is not all sent */
} vnxi_http_state_t;
#define VNXI_HTTP_STATES 4

typedef struct vnxi_http_conn vnxi_http_conn_t;
TAILQ_HEAD(vnxi_http_conns, vnxi_http_conn);

/* The loop thread's alone between its start and its end. */
typedef struct vnxi_http_listener {
    vnxi_server_t super;
    struct evhttp *http;
    struct evconnlistener *acceptors[VNXI_ADDRESSES_MAX]; /* http's */
    struct event *adopt_event;                            /* for new ones */
    unsigned batch; /* accepted in this round of the loop */
    size_t open;    /* connections */
    /* By state, the longest idle first: READ and KEPT by age (bytes that drip
     * in make nobody younger), WRITE by the last byte taken. */
    struct vnxi_http_conns conns[VNXI_HTTP_STATES];
    vnxi_name_map_t by_bev; /* the connections by their bufferevent */
} vnxi_http_listener_t;

vnx_status_t vnxi_http_listen(const vnxi_listen_params_t *params,
                              vnxi_listener_t **out_p, vnx_error_t *error);

/* -- One client at the server; the loop thread only ----------------------- */

struct vnxi_http_conn {
    TAILQ_ENTRY(vnxi_http_conn) link; /* listener->conns[state] */
    vnxi_http_listener_t *listener;
    struct bufferevent *bev;         /* held */
    struct evhttp_connection *evcon; /* libevent's; NULL: NEW */
    struct event *timer;
    uint64_t start;  /* of the exchange: vnxi_clock_ns() */
    uint64_t active; /* when something last came or went */
    vnxi_http_state_t state;
    bool has_sent;    /* something, since `start` */
    bool turned_away; /* what is being written is no blob */
    bool counted;     /* why it ends is in the stats */
};

/* evhttp_set_bevcb(): a connection was accepted and will be libevent's. */
struct bufferevent *vnxi_http_conn_new(struct event_base *base, void *arg);

/* Take up those that libevent has by now. */
void vnxi_http_conn_adopt_all(vnxi_http_listener_t *listener);

/* Whose request this is; NULL: nobody's that was counted. */
vnxi_http_conn_t *vnxi_http_conn_of(vnxi_http_listener_t *listener,
                                    struct evhttp_request *request);

/* The reply to `request` is about to be written, and after it was. */
void vnxi_http_conn_write(vnxi_http_conn_t *conn);
void vnxi_http_conn_written(struct evhttp_request *request, void *conn);

/* Close the longest idle connection, of those that cost the least to lose
 * first.  False: there is none. */
bool vnxi_http_conn_evict(vnxi_http_listener_t *listener);

/* Cut all of them off. */
void vnxi_http_conn_close_all(vnxi_http_listener_t *listener);

/* evhttp_set_gencb(): answer a request that came whole. */
void vnxi_http_answer(struct evhttp_request *request, void *listener);

#endif
