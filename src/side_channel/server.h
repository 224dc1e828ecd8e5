/*
 * What the listener of every transport begins with: sockets, a loop and the
 * one thread that runs it.
 *
 * The loop and everything on it belong to that thread, so there is no lock;
 * other threads only write the eventfd that ends it, and join.
 *
 * A process that is out of file descriptors cannot accept, and a client that
 * is left waiting keeps the socket readable and the loop spinning.  So a
 * descriptor is kept in reserve, to be given up for the moment it takes to
 * accept a client and close it.
 */
#ifndef VNXI_SIDE_CHANNEL_SERVER_H
#define VNXI_SIDE_CHANNEL_SERVER_H

#include <event2/event.h>
#include <pthread.h>
#include <stdbool.h>

#include "net/rate.h"
#include "net/sockets.h"
#include "side_channel/transport.h"

typedef struct vnxi_server vnxi_server_t;

/* What differs; called by the loop's thread. */
typedef struct vnxi_server_ops {
    /* Begin, or cease, to accept. */
    void (*accept)(vnxi_server_t *server, bool is_on);

    /* Close the longest idle connection, of those that cost the least to lose
     * first.  False: there is none. */
    bool (*evict)(vnxi_server_t *server);

    /* Before the thread starts: put on the loop what accepts.  False: errno
     * says why not. */
    bool (*begin)(vnxi_server_t *server);

    /* When there is no thread, or none any more: free what begin() and clients
     * made, as far as it got, vnxi_server_fini(), and the server itself. */
    void (*free)(vnxi_server_t *server);
} vnxi_server_ops_t;

/* The loop thread's alone between its start and its end, but for `super`,
 * `stop_fd` and `thread`. */
struct vnxi_server {
    vnxi_listener_t super;
    const vnxi_server_ops_t *ops;
    const vnx_side_channel_options_t *options; /* borrowed */
    vnxi_side_stats_t *stats;                  /* borrowed */
    vnxi_blob_table_t *blobs;                  /* borrowed */
    void *tls;         /* owned: SSL_CTX *; NULL: plain */
    vnxi_rate_t *rate; /* NULL: no limit */
    vnxi_sockets_t sockets;
    struct event_base *base;
    struct event *resume_event; /* ends a pause of accepting */
    struct event *stop_event;
    unsigned fds;   /* epoch of its descriptors */
    int stop_fd;    /* eventfd: written to end the thread */
    int reserve_fd; /* -1: there is none to be had */
    pthread_t thread;
};

/* Listen, and start a thread by that name that serves.  `server` is all zeros,
 * and owned from here on: freed by vnxi_server_stop(), or on an error.
 * Statuses: vnx_side_channel_start_with(). */
vnx_status_t vnxi_server_open(vnxi_server_t *server,
                              const vnxi_server_ops_t *ops, const char *name,
                              const vnxi_listen_params_t *params,
                              vnxi_listener_t **out_p, vnx_error_t *error);

/* End the thread, and free the server.  Not to be called by the thread. */
bool vnxi_server_stop(vnxi_listener_t *listener);

/* Free what is left, the port with it, when whatever hung on the loop was
 * freed. */
void vnxi_server_fini(vnxi_server_t *server);

/* -- In the loop ---------------------------------------------------------- */

/* Whose thread this is. */
vnxi_server_t *vnxi_server_running(void);

/* Has the client gone already, and said nothing?  Those of a storm have, by
 * the time that they are accepted: they are to cost as little as can be, or
 * whoever comes after them waits. */
bool vnxi_server_has_left(int client);

/* Take a rest from accepting, until the next round of the loop or, with
 * `long_one`, until the system may have something to give again. */
void vnxi_server_pause(vnxi_server_t *server, bool long_one);

/* accept() on the socket `fd` failed with `err`, which is not the client's
 * doing: make room, or refuse the client, or pause. */
void vnxi_server_starved(vnxi_server_t *server, int fd, int err);

#endif
