/*
 * The metadata listener, shared by the files of listener/.  Each calls only
 * those above it:
 *
 *   codec.c     the wire format of frames and commands
 *   frame.c     outgoing frames and their outcome: counters, failures, the log
 *   loader.c    carries out received commands that may wait, on its threads
 *   conn.c      connections in either direction: accepting, connecting,
 *               frames, deadlines, trying again
 *   command.c   carries out received commands
 *   listener.c  the public calls, on the callers' threads; the loop's thread
 *
 * Callers put frames into `inbox` and wake the loop's thread.  While it runs,
 * everything in vnxi_meta_loop_t belongs to it.
 */
#ifndef VNXI_LISTENER_H
#define VNXI_LISTENER_H

#include <event2/event.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/queue.h>
#include <vnx/listener.h>

#include "base/mutex.h"
#include "listener/codec.h"
#include "net/acceptor.h"
#include "net/connect.h"
#include "net/loop.h"

#define VNXI_META_ENDPOINT 80
#define VNXI_META_COMMANDS_MAX 16  /* in one frame */
#define VNXI_META_REPLIES_MAX 8    /* unsent, before reading pauses */
#define VNXI_META_LOADS_MAX 8      /* not carried out, likewise */
#define VNXI_META_LOADERS 8        /* threads */
#define VNXI_META_PENDING_MAX 4096 /* queued commands of this agent */
#define VNXI_META_TARGETS_MAX 1024 /* connections made by us */
#define VNXI_META_LINGER_MS 1000   /* at the end, for unsent commands */

/* Why our commands failed at the end. */
#define VNXI_META_STOPPED                                           \
    "the agent's metadata listener was stopped before the command " \
    "was done"
/* Why a connection is closed, or its commands are dropped. */
#define VNXI_META_FULL                                               \
    "too many bytes are held for all connections, most of them for " \
    "this one"

/* -- Outgoing frames (frame.c) -------------------------------------------- */

/* One command to send.  All pointers are borrowed. */
typedef struct vnxi_meta_message {
    vnxi_meta_verb_t verb;
    const char *host; /* not NULL; "": a reply */
    int port;
    const void *body;
    size_t body_len;
    const void *peer; /* SEND: the name of the expected agent */
    size_t peer_len;
} vnxi_meta_message_t;

/* A frame with one command. */
typedef struct vnxi_meta_frame {
    TAILQ_ENTRY(vnxi_meta_frame) link;
    vnxi_meta_verb_t verb;
    bool is_reply; /* a reply to a SEND, not a command of a caller */
    bool is_again; /* it has failed once on an old connection */
    int port;
    const char *host;          /* in `bytes`, as `peer` */
    const unsigned char *peer; /* SEND: the expected name */
    size_t peer_len;
    size_t len; /* of the frame, the first of the bytes */
    unsigned char bytes[];
} vnxi_meta_frame_t;
TAILQ_HEAD(vnxi_meta_frames, vnxi_meta_frame);

/* The name of a command's operation in error records. */
const char *vnxi_meta_operation(vnxi_meta_verb_t verb);

/* -- The listener --------------------------------------------------------- */

/* Relaxed counters: each is exact by itself, but they are not consistent with
 * each other. */
typedef struct vnxi_meta_counters {
    atomic_uint_fast64_t accepted, open, refused, timed_out, evicted;
    atomic_uint_fast64_t loaded, load_failures, served, invalidated;
    atomic_uint_fast64_t sent, send_failures;
    atomic_uint_fast64_t pending, pending_bytes;
} vnxi_meta_counters_t;

typedef struct vnxi_meta_conn vnxi_meta_conn_t;
TAILQ_HEAD(vnxi_meta_conns, vnxi_meta_conn);
typedef struct vnxi_meta_job vnxi_meta_job_t;
TAILQ_HEAD(vnxi_meta_jobs, vnxi_meta_job);

/* All but `stop` and the threads, which the loop starts: listener.lock. */
typedef struct vnxi_meta_loader {
    atomic_bool stop; /* nothing is carried out any more */
    struct vnxi_meta_jobs waiting, running; /* the oldest first */
    unsigned waiting_count, idle;           /* jobs, threads */
    vnxi_cond_t work;
    uint64_t bytes; /* of all jobs */
    bool has_room;  /* for the loop: some source has room again */
    pthread_t threads[VNXI_META_LOADERS];
    unsigned thread_count;
} vnxi_meta_loader_t;

typedef struct vnxi_meta_loop {
    vnxi_loop_t super;
    /* vnxi_meta_perform(), which conn.c does not know */
    const char *(*perform)(vnxi_meta_conn_t *conn, const void *payload,
                           size_t len);
    const struct timeval *timeout; /* options.timeout_ms, as a libevent
                                      common timeout */
    vnxi_acceptor_t acceptor;
    /* In each list, the connection that has been idle longest comes first. */
    struct vnxi_meta_conns strangers; /* accepted, no command yet */
    struct vnxi_meta_conns known;     /* accepted */
    struct vnxi_meta_conns targets;   /* made by us */
    size_t accepted, opened;          /* their numbers */
    uint64_t held; /* bytes of input and replies, over all connections */
    bool is_ending;
} vnxi_meta_loop_t;

struct vnx_listener {
    vnx_agent_t *agent;             /* retained */
    vnx_listener_options_t options; /* with defaults filled in; constant */
    unsigned forks;                 /* fork count at creation */
    atomic_int port;                /* bound port; 0: not listening */
    vnxi_meta_counters_t counters;

    vnxi_mutex_t lock; /* a leaf; protects the following members */
    bool is_running;   /* the thread exists */
    bool is_stopping;
    struct vnxi_meta_frames inbox;
    vnxi_sockets_t new_sockets; /* for the loop to take */
    vnx_error_t failure;
    bool has_failure;
    vnxi_meta_loader_t loader;

    vnxi_mutex_t stop_lock; /* serialises stopping; taken before `lock` */
    bool is_lost;           /* the descriptors were closed by the program;
                               stop_lock */
    vnxi_meta_loop_t loop;
};

/* The name, for the log. */
static inline const char *
vnxi_meta_agent(const vnx_listener_t *listener)
{
    size_t len;
    return vnx_agent_name(listener->agent, &len); /* followed by a NUL */
}

static inline void
vnxi_meta_count(atomic_uint_fast64_t *counter)
{
    atomic_fetch_add_explicit(counter, 1, memory_order_relaxed);
}

/* Create a frame with copies of everything.  Owned: free().  Errors:
 * VNX_ERR_INVALID_PARAM (the body is too long, or the receiver would take a
 * part of it for another command), VNX_ERR_NO_MEMORY. */
vnx_status_t vnxi_meta_frame_new(const vnx_listener_t *listener,
                                 const vnxi_meta_message_t *message,
                                 vnxi_meta_frame_t **frame_p,
                                 vnx_error_t *error);

/* One of our commands is done: count and free it. */
void vnxi_meta_sent(vnx_listener_t *listener, vnxi_meta_frame_t *frame);

/* One of our commands failed: store the failure, log and count it, free the
 * frame. */
void vnxi_meta_unsent(vnx_listener_t *listener, vnxi_meta_frame_t *frame,
                      vnx_status_t status, const char *cause);

/* A command received from that endpoint failed: store the failure and log it.
 * The error gets the endpoint unless it has a peer. */
void vnxi_meta_failure(vnx_listener_t *listener, const char *endpoint,
                       vnx_error_t *failure);

/* -- Commands that may wait (loader.c) ------------------------------------ */

/* The connection that commands have come from.  It is freed after the
 * connection and the last command. */
typedef struct vnxi_meta_source {
    size_t count, bytes; /* of commands that are not carried out; as below,
                            listener.lock */
    bool is_awaited;     /* the loop waits for room */
    bool has_ended;
    char endpoint[VNXI_META_ENDPOINT]; /* constant */
} vnxi_meta_source_t;

/* NULL: out of memory. */
vnxi_meta_source_t *vnxi_meta_source_new(const char *endpoint);

/* The connection has ended.  NULL is allowed. */
void vnxi_meta_source_end(vnx_listener_t *listener,
                          vnxi_meta_source_t *source);

/* May it have more commands?  If not, the loop will be woken. */
bool vnxi_meta_source_has_room(vnx_listener_t *listener,
                               vnxi_meta_source_t *source);

/* Have a command (copied) carried out: an INVL or a LOAD.  `request` (owned):
 * the SEND of this agent that the LOAD answers; NULL: none. */
void vnxi_meta_source_invalidate(vnx_listener_t *listener,
                                 vnxi_meta_source_t *source,
                                 const vnxi_meta_command_t *command);
void vnxi_meta_source_load(vnx_listener_t *listener,
                           vnxi_meta_source_t *source,
                           const vnxi_meta_command_t *command,
                           vnxi_meta_frame_t *request);

/* The bytes of its commands, and of all, that are not carried out so far. */
uint64_t vnxi_meta_source_bytes(vnx_listener_t *listener,
                                const vnxi_meta_source_t *source);
uint64_t vnxi_meta_loader_bytes(vnx_listener_t *listener);

/* Of the connections that have ended, take the one with the most bytes of
 * commands.  If these are at least `bytes`, drop the first of them and
 * return true. */
bool vnxi_meta_loader_drop(vnx_listener_t *listener, uint64_t bytes);

void vnxi_meta_loader_init(vnxi_meta_loader_t *loader);
/* Carry out nothing more, and stop what waits.  Does not wait. */
void vnxi_meta_loader_stop(vnx_listener_t *listener);
/* Then end the threads, and drop the commands that were not carried out. */
void vnxi_meta_loader_join(vnx_listener_t *listener);
void vnxi_meta_loader_fini(vnxi_meta_loader_t *loader);

/* -- Connections (conn.c) ------------------------------------------------- */

struct vnxi_meta_conn {
    TAILQ_ENTRY(vnxi_meta_conn) link; /* in *list */
    struct vnxi_meta_conns *list;
    vnx_listener_t *listener;
    bool is_ours;               /* made by us, else accepted */
    vnxi_meta_source_t *source; /* owned */
    int fd;
    struct bufferevent *bev; /* NULL: not connected yet */
    struct event *in_timer;  /* for the first command and for a whole frame */
    struct event *out_timer; /* for connecting and for sending a frame */
    struct event *reply_timer;
    struct vnxi_meta_frames out;      /* if is_writing, the first one is
                                         being written */
    struct vnxi_meta_frames awaiting; /* SENDs without a reply so far */
    bool is_writing, is_paused;
    bool is_proven;                    /* it has carried a command */
    bool is_in_frame;                  /* the in_timer belongs to a frame */
    unsigned replies;                  /* in `out` */
    size_t held;                       /* its part of loop.held */
    size_t reply_bytes;                /* the part of `held` for replies */
    char endpoint[VNXI_META_ENDPOINT]; /* for messages */
    /* Of a connection made by us: */
    vnxi_dial_t dial;
    struct event *dial_event; /* for what the dialler waits for */
    int port;
    char host[];
};

/* vnxi_acceptor_ops_t's accept() and evict(). */
void vnxi_meta_conn_accept(void *listener, int fd, const vnxi_address_t *from);
bool vnxi_meta_conn_evict(void *listener);

/* Send a frame to its host and port; owns the frame. */
void vnxi_meta_send(vnx_listener_t *listener, vnxi_meta_frame_t *frame);

/* Look again at connections from which reading has paused. */
void vnxi_meta_resume(vnx_listener_t *listener);

/* When the loop is ending: end it if all our commands are written. */
void vnxi_meta_check_end(vnxi_meta_loop_t *loop);

/* Queue a frame for sending. */
void vnxi_meta_conn_push(vnxi_meta_conn_t *conn, vnxi_meta_frame_t *frame);

/* Remove and return the SEND that a received LOAD answers.  Owned; NULL: none.
 */
vnxi_meta_frame_t *vnxi_meta_conn_answered(vnxi_meta_conn_t *conn);

/* Close the connection, fail our commands that wait for it, and free it. */
void vnxi_meta_conn_free(vnxi_meta_conn_t *conn);

/* -- Received commands (command.c) ---------------------------------------- */

/* Carry out the commands of a payload.  NULL, or the reason to close the
 * connection. */
const char *vnxi_meta_perform(vnxi_meta_conn_t *conn, const void *payload,
                              size_t len);

#endif
