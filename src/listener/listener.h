/*
 * The metadata listener, as the files of listener/ share it.
 *
 *   codec.c     the bytes of frames and commands
 *   frame.c     a frame on its way out, and where it goes
 *   listener.c  the public calls, on the callers' threads
 *   report.c    counters, the last failure, the log
 *   loop.c      the thread: its life, accepting, what callers hand over
 *   conn.c      one connection, ours or another's: frames in, frames out
 *   conn_end.c  what it holds, and how it ends
 *   client.c    connections of ours: found or made, connecting, trying again
 *   command.c   what commands of others do
 *
 * Callers give commands to the thread in `inbox` and wake it by an eventfd;
 * everything in vnxi_meta_loop_t is the thread's alone while it runs.
 */
#ifndef VNXI_LISTENER_H
#define VNXI_LISTENER_H

#include <event2/event.h>
#include <event2/listener.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/queue.h>
#include <vnx/listener.h>

#include "base/mutex.h"
#include "listener/codec.h"
#include "side_channel/loop.h"
#include "side_channel/sockets.h"

#define VNXI_META_ENDPOINT 80
#define VNXI_META_COMMANDS_MAX 16  /* of one frame */
#define VNXI_META_REPLIES_MAX 8    /* unsent, before reading pauses */
#define VNXI_META_PENDING_MAX 4096 /* commands of ours */
#define VNXI_META_TARGETS_MAX 1024 /* connections of ours */
#define VNXI_META_LINGER_MS 1000   /* for what is unsent, at the end */

/* -- Frames on their way out ---------------------------------------------- */

/* One frame with one command. */
typedef struct vnxi_meta_frame {
    TAILQ_ENTRY(vnxi_meta_frame) link;
    vnxi_meta_verb_t verb;
    bool is_reply;   /* nobody's command: an answer to a SEND */
    bool is_again;   /* it failed once on a connection that was old */
    size_t len;      /* of the frame */
    size_t peer_len; /* of SEND: the name expected, behind the frame */
    unsigned char bytes[];
} vnxi_meta_frame_t;
TAILQ_HEAD(vnxi_meta_frames, vnxi_meta_frame);

/* A frame with a copy of the body; NULL: out of memory.  `peer` may be NULL.
 * free() it. */
vnxi_meta_frame_t *vnxi_meta_frame_new(vnxi_meta_verb_t verb, const void *body,
                                       size_t body_len, const void *peer,
                                       size_t peer_len);

/* A frame of the caller's for host:port, until the loop has it. */
typedef struct vnxi_meta_order {
    TAILQ_ENTRY(vnxi_meta_order) link;
    vnxi_meta_frame_t *frame; /* owned */
    int port;
    char host[];
} vnxi_meta_order_t;
TAILQ_HEAD(vnxi_meta_orders, vnxi_meta_order);

/* Takes the frame, also where it fails; `frame` NULL fails.  NULL: out of
 * memory. */
vnxi_meta_order_t *vnxi_meta_order_new(const char *host, int port,
                                       vnxi_meta_frame_t *frame);
void vnxi_meta_order_free(vnxi_meta_order_t *order);

/* "host:port" for people. */
void vnxi_meta_endpoint(char text[VNXI_META_ENDPOINT], const char *host,
                        int port);

/* -- The listener --------------------------------------------------------- */

/* Relaxed counters: each is right by itself, not with the others. */
typedef struct vnxi_meta_counters {
    atomic_uint_fast64_t accepted, open, refused, timed_out, evicted;
    atomic_uint_fast64_t loaded, load_failures, served, invalidated;
    atomic_uint_fast64_t sent, send_failures;
    atomic_uint_fast64_t pending, pending_bytes;
} vnxi_meta_counters_t;

typedef struct vnxi_meta_conn vnxi_meta_conn_t;
TAILQ_HEAD(vnxi_meta_conns, vnxi_meta_conn);

typedef struct vnxi_meta_loop {
    struct event_base *base;
    const struct timeval *timeout; /* options.timeout_ms, a common one */
    struct event *wake_event;
    struct event *resume_event; /* ends a pause of accepting */
    struct event *linger_event; /* ends the thread at last */
    vnxi_sockets_t sockets;
    struct evconnlistener *acceptors[VNXI_ADDRESSES_MAX];
    unsigned batch; /* accepted since the last pause */
    /* Each list has the longest idle one first. */
    struct vnxi_meta_conns strangers; /* accepted, no command yet */
    struct vnxi_meta_conns known;     /* accepted */
    struct vnxi_meta_conns targets;   /* ours */
    size_t accepted, opened;          /* their numbers */
    size_t unsent;                    /* commands of ours */
    uint64_t held; /* bytes of input and of replies, of all connections */
    bool is_ending;
    uint64_t log_second; /* of the last warning about a stranger */
    unsigned log_count;  /* in that second */
} vnxi_meta_loop_t;

struct vnx_listener {
    vnx_agent_t *agent;             /* retained */
    vnx_listener_options_t options; /* all set; constant */
    unsigned forks;                 /* at the making */
    atomic_int port;                /* bound; 0: it does not listen */
    vnxi_meta_counters_t counters;

    vnxi_mutex_t lock; /* a leaf; the rest of these are protected by it */
    bool is_running;   /* there is a thread */
    bool is_stopping;
    bool is_starting; /* a vnx_listener_start() is under way */
    struct vnxi_meta_orders inbox;
    vnxi_sockets_t new_sockets; /* for the loop to take */
    vnx_error_t failure;
    bool has_failure;

    vnxi_mutex_t stop_lock; /* one stop at a time; before `lock` */
    int wake_fd;            /* eventfd; where is_running */
    unsigned fds;           /* epoch of the descriptors, likewise */
    bool is_lost;           /* they were closed under it; stop_lock */
    pthread_t thread;
    vnxi_meta_loop_t loop;
};

/* -- Loop (loop.c) -------------------------------------------------------- */

/* Make the base and start the thread.  The lock is held. */
vnx_status_t vnxi_meta_loop_start(vnx_listener_t *listener,
                                  const char *operation, vnx_error_t *error);

/* Have the thread look at the inbox. */
void vnxi_meta_loop_wake(vnx_listener_t *listener);

/* After the thread has ended: free what it had. */
void vnxi_meta_loop_fini(vnx_listener_t *listener);

/* The loop's thread: a command of ours has left, or failed. */
void vnxi_meta_loop_left(vnx_listener_t *listener);

/* -- Connections (conn.c) ------------------------------------------------- */

typedef enum vnxi_meta_state {
    VNXI_META_RESOLVING, /* ours: its host is being looked up */
    VNXI_META_CONNECTING,
    VNXI_META_OPEN,
} vnxi_meta_state_t;

/* Where a connection of ours goes. */
typedef struct vnxi_meta_target {
    char *host; /* owned */
    int port;
    vnxi_addresses_t addresses;
    size_t next; /* address to try */
    vnxi_lookup_t *lookup;
    int error;           /* errno of the address tried last */
    struct event *event; /* the look-up's, then the connecting socket's */
} vnxi_meta_target_t;

struct vnxi_meta_conn {
    TAILQ_ENTRY(vnxi_meta_conn) link; /* in *list */
    struct vnxi_meta_conns *list;
    vnx_listener_t *listener;
    bool is_ours; /* we connect; otherwise it was accepted */
    vnxi_meta_state_t state;
    int fd;
    struct bufferevent *bev; /* where OPEN */
    struct event *in_timer;  /* a first command, a whole frame */
    struct event *out_timer; /* connecting, a frame's sending */
    struct event *reply_timer;
    struct vnxi_meta_frames out;      /* where is_writing, the first is */
    struct vnxi_meta_frames awaiting; /* SENDs that are not answered */
    bool is_writing, is_paused;
    bool is_proven;                    /* it has carried a command */
    bool is_in_frame;                  /* the in_timer is that of a frame */
    unsigned replies;                  /* in `out` */
    size_t held;                       /* its share of loop.held */
    size_t reply_bytes;                /* of which are replies */
    vnxi_meta_target_t target;         /* where is_ours */
    char endpoint[VNXI_META_ENDPOINT]; /* for people */
};

/* A connection that is in no list and has no fd.  NULL: out of memory. */
vnxi_meta_conn_t *vnxi_meta_conn_new(vnx_listener_t *listener, bool is_ours);

/* Put it at the end of a list, out of the one where it is. */
void vnxi_meta_conn_list(vnxi_meta_conn_t *conn, struct vnxi_meta_conns *list);

/* Take over a connected `fd` and begin.  False: out of memory. */
bool vnxi_meta_conn_open(vnxi_meta_conn_t *conn, int fd);

/* Send a frame, after those that wait. */
void vnxi_meta_conn_push(vnxi_meta_conn_t *conn, vnxi_meta_frame_t *frame);

/* Give up the socket and all that hangs on it; frames stay. */
void vnxi_meta_conn_cut(vnxi_meta_conn_t *conn);

/* Cut, fail what waits, and free. */
void vnxi_meta_conn_free(vnxi_meta_conn_t *conn);

/* Free an answer that is in no list any more. */
void vnxi_meta_conn_drop_reply(vnxi_meta_conn_t *conn,
                               vnxi_meta_frame_t *frame);

/* So many bytes are in memory for this connection now. */
void vnxi_meta_conn_hold(vnxi_meta_conn_t *conn, size_t bytes);

/* It is over, for whoever made it: one of others is freed, one of ours may be
 * tried again (client.c). */
void vnxi_meta_conn_end(vnxi_meta_conn_t *conn, vnx_status_t status,
                        const char *cause);

/* End it, and count: for what it brought, which is not to be had from a
 * listener of NIXL's; for the time it took. */
void vnxi_meta_conn_refuse(vnxi_meta_conn_t *conn, const char *cause);
void vnxi_meta_conn_late(vnxi_meta_conn_t *conn, const char *cause);

/* Make room for one that is to be accepted.  False: there is none to close. */
bool vnxi_meta_conn_evict(vnx_listener_t *listener);

/* Take out the SEND that a LOAD answers.  Returns owned; NULL: none. */
vnxi_meta_frame_t *vnxi_meta_conn_answered(vnxi_meta_conn_t *conn);

/* -- Connections of ours (client.c) --------------------------------------- */

/* Have a frame sent to host:port.  Takes the order. */
void vnxi_meta_client_take(vnx_listener_t *listener, vnxi_meta_order_t *order);

/* The connection is of no use any more.  What a cached one did not carry is
 * tried again on a new one, once, if it broke (VNX_ERR_BACKEND): the peer may
 * have restarted.  All else fails, and then the connection is freed. */
void vnxi_meta_client_failed(vnxi_meta_conn_t *conn, vnx_status_t status,
                             const char *cause);

/* Its time to connect is over. */
void vnxi_meta_client_late(vnxi_meta_conn_t *conn);

void vnxi_meta_target_fini(vnxi_meta_target_t *target);

/* -- Commands of others (command.c) --------------------------------------- */

/* Do what a frame's payload says.  NULL, or why the connection shall end. */
const char *vnxi_meta_perform(vnxi_meta_conn_t *conn, const void *payload,
                              size_t len);

/* -- Reporting (report.c) ------------------------------------------------- */

static inline void
vnxi_meta_count(atomic_uint_fast64_t *counter)
{
    atomic_fetch_add_explicit(counter, 1, memory_order_relaxed);
}

/* A command of ours is done: free it, and count it. */
void vnxi_meta_sent(vnx_listener_t *listener, vnxi_meta_frame_t *frame);

/* It failed: keep why, log it, count it, free it. */
void vnxi_meta_unsent(vnx_listener_t *listener, vnxi_meta_frame_t *frame,
                      const char *endpoint, vnx_status_t status,
                      const char *cause);

/* Something that others brought failed: keep why, log it unless there is too
 * much of it. */
void vnxi_meta_failure(vnx_listener_t *listener, const vnx_error_t *failure);

/* Its operation in error records. */
const char *vnxi_meta_operation(vnxi_meta_verb_t verb);

#endif
