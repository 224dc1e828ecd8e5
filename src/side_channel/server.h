/*
 * The common part of every transport's listener: sockets, a loop, and the
 * single thread that runs it.
 *
 * The loop and everything on it belong to that thread, so there is no lock.
 * Other threads only write the eventfd that stops the thread, and join it.
 *
 * A process that is out of file descriptors cannot accept.  A client that
 * waits for it keeps the socket readable, so the loop would spin.  Therefore
 * the server holds a descriptor in reserve.  It closes that descriptor for the
 * moment it takes to accept a client and close it.
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

/* The operations of a transport's listener; called by the loop's thread. */
typedef struct vnxi_server_ops {
    /* Start or stop accepting. */
    void (*accept)(vnxi_server_t *server, bool is_on);

    /* Close a connection to make room: of those that cost the least to lose,
     * the longest idle.  False: there is none. */
    bool (*evict)(vnxi_server_t *server);

    /* Called before the thread starts: add the acceptors to the loop.  False:
     * errno has the cause. */
    bool (*begin)(vnxi_server_t *server);

    /* Called when no thread runs: free everything that begin() and the clients
     * created, including after a begin() that failed half-way; call
     * vnxi_server_fini(); free the server itself. */
    void (*free)(vnxi_server_t *server);
} vnxi_server_ops_t;

/* Used by the loop thread alone while it runs, except `super`, `stop_fd` and
 * `thread`. */
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
    struct event *resume_event; /* resumes accepting after a pause */
    struct event *stop_event;
    unsigned fds;   /* epoch of its descriptors */
    int stop_fd;    /* eventfd; a write ends the thread */
    int reserve_fd; /* -1: the system had none to give */
    pthread_t thread;
};

/* Listen, and start a thread called `name` that serves.  `server` is all
 * zeros.  The call takes it over: vnxi_server_stop() frees it, or the call
 * itself on an error.  Statuses: vnx_side_channel_start_with(). */
vnx_status_t vnxi_server_open(vnxi_server_t *server,
                              const vnxi_server_ops_t *ops, const char *name,
                              const vnxi_listen_params_t *params,
                              vnxi_listener_t **out_p, vnx_error_t *error);

/* End the thread, and free the server.  May not be called by the thread
 * itself.  Returns as vnxi_transport_t's stop(). */
bool vnxi_server_stop(vnxi_listener_t *listener);

/* Free the rest, including the port.  Everything that used the loop must have
 * been freed. */
void vnxi_server_fini(vnxi_server_t *server);

/* -- In the loop ---------------------------------------------------------- */

/* Return the server whose thread this is. */
vnxi_server_t *vnxi_server_running(void);

/* Has the client closed already without having sent anything?  In a storm of
 * connections many have by the time they are accepted.  Such clients have to
 * cost as little as possible, because the next clients wait for them. */
bool vnxi_server_has_left(int client);

/* Pause accepting until the next round of the loop or, with `long_one`, until
 * the system may have resources again. */
void vnxi_server_pause(vnxi_server_t *server, bool long_one);

/* Handle an accept() on the socket `fd` that failed with `err` for a reason
 * that is not the client's: make room, or refuse the client, or pause. */
void vnxi_server_starved(vnxi_server_t *server, int fd, int err);

#endif
