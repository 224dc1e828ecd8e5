/*
 * Hubs and links, as the files of this folder share them.
 *
 * Who may do what:
 *   loop       the one who reads sockets, calls back and removes links: the
 *              hub's thread or a poller.  All fields "of the loop" are its.
 *   send_lock  of a link: its socket's number, what is queued, writing.
 *   lists      of a hub: which links it has.
 * Lock order (take from left to right, never back):
 *     loop -> lists -> send_lock
 * Nobody waits for `loop` but the hub's thread and vnxi_hub_stop(): others try
 * it.  Sending and closing do not need it, so callbacks may do both.
 *
 * A link leaves the hub in two steps.  Whoever ends it (the loop, or
 * vnxi_link_close() on any thread) wins its `state` and puts it on the stack
 * `graves`; the loop then takes it out of the epoll set and closes its socket,
 * so that no number is closed while it is read from, and drops the reference
 * at the end of its round, so that no event of the round points to freed
 * memory.
 */
#ifndef VNXI_NATIVE_SHM_LINK_PRIVATE_H
#define VNXI_NATIVE_SHM_LINK_PRIVATE_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

#include "base/mutex.h"
#include "engine/native/shm/link.h"
#include "engine/native/shm/link_frame.h"
#include "engine/native/shm/link_queue.h"

typedef enum vnxi_link_state {
    VNXI_LINK_OPEN,
    VNXI_LINK_CLOSED, /* by us: nothing is reported */
    VNXI_LINK_ENDED,  /* by the other end: reported */
} vnxi_link_state_t;

struct vnxi_link {
    atomic_uint users; /* together they hold one of refs */
    atomic_uint refs;
    vnxi_hub_t *hub;
    unsigned forks; /* fork count at its making */
    unsigned fds;   /* epoch of its descriptors */
    bool accepted;
    pid_t pid; /* of the other end */
    int pidfd; /* closed with the memory; -1 only where accepted: the process
                  was gone, or no descriptor was left */
    void *cookie;

    atomic_int state;
    atomic_bool over; /* state is not OPEN, or the socket cannot send */

    vnxi_mutex_t send_lock;
    int fd; /* changes to -1 by the loop, holding send_lock */
    vnxi_link_queue_t queue;

    /* of the loop */
    vnxi_link_frame_reader_t reader;
    char *sender; /* owned: from HELLO; NULL: silent so far */
    size_t sender_len;
    uint64_t hello_deadline;
    vnxi_link_t *silent_next, *silent_prev;

    /* protected by the hub's `lists` */
    bool listed; /* holds a reference */
    vnxi_link_t *next, *prev;
    uint64_t turn; /* the walk over all links that it took part in last */

    _Atomic(vnxi_link_t *) grave_next; /* being there holds a reference */
};

struct vnxi_hub {
    vnxi_hub_events_t events;
    char *name; /* owned */
    size_t name_len;
    unsigned char instance[VNXI_SHM_ID_SIZE];
    char socket[VNXI_SHM_SOCKET_MAX];
    unsigned forks; /* fork count at its making */
    unsigned fds;   /* epoch of its descriptors */

    /* `outer` is what the thread sleeps in: inner, timer, wake.  `inner` has
     * the listener, the sockets and the pidfds. */
    int outer, inner, timer, wake, listener;
    atomic_bool stopping;
    pthread_t thread;
    bool abandoned; /* by vnxi_hub_stop(): the thread keeps the hub's memory */
    atomic_size_t accepted; /* that said HELLO */
    _Atomic(vnxi_link_t *) graves;
    atomic_uint_fast64_t alarm; /* when to call it; 0: never */

    vnxi_mutex_t loop;
    /* of the loop */
    bool stopped;
    bool lost;   /* its descriptors were closed by others */
    bool polled; /* the thread does not wait for `inner` */
    bool warned_no_fds;
    unsigned busy_windows; /* how often was polled lately */
    uint64_t window_end, window_polls;
    uint64_t polls; /* calls of vnxi_hub_poll() */
    uint64_t polls_seen;
    uint64_t listener_resumes; /* deadline; 0: it is not suspended */
    vnxi_link_t *silent_first, *silent_last; /* oldest first */
    size_t silent_count;
    size_t accepted_count; /* silent ones too */
    unsigned char *input;  /* owned: VNXI_HUB_INPUT bytes */

    vnxi_mutex_t lists;
    /* protected by lists */
    bool closed; /* no link is taken any more */
    vnxi_link_t *links;
    uint64_t turn;
};

/* What a link may bring in one round of the loop. */
#define VNXI_HUB_INPUT (256u << 10)

/* -- hub.c ---------------------------------------------------------------- */

/* Watch a descriptor; as epoll_ctl(). */
int vnxi_hub_watch(int set, int fd, uint32_t events, uint64_t tag);

/* Were the hub's descriptors closed under it?  Then none of their numbers is
 * used any more.  By the loop. */
bool vnxi_hub_is_lost(vnxi_hub_t *hub);

/* Make the thread look. */
void vnxi_hub_wake(vnxi_hub_t *hub);

/* Set the timer to what is due next; by the loop. */
void vnxi_hub_set_timer(vnxi_hub_t *hub);

/* -- hub_links.c ---------------------------------------------------------- */

/* Add a link to the hub and to the epoll set.  VNX_ERR_CLOSED: stopped. */
vnx_status_t vnxi_hub_attach(vnxi_hub_t *hub, vnxi_link_t *link,
                             vnx_error_t *error);

/* Take it out again and close its socket; by the loop.  Idempotent. */
void vnxi_hub_detach(vnxi_hub_t *hub, vnxi_link_t *link);

/* Put a link whose state was won where the next vnxi_hub_reap() finds it. */
void vnxi_hub_grave(vnxi_hub_t *hub, vnxi_link_t *link);

/* Detach what is there; by the loop, with no event of a round still to be
 * looked at. */
void vnxi_hub_reap(vnxi_hub_t *hub);

/* As vnxi_hub_grave(), when not in the loop; reaped at once where the loop is
 * free, else by whoever has it. */
void vnxi_hub_bury(vnxi_hub_t *hub, vnxi_link_t *link);

/* -- hub_input.c ---------------------------------------------------------- */

/* One round: take in what has come; by the loop. */
void vnxi_hub_round(vnxi_hub_t *hub);

/* End the accepted links that were silent for too long; by the loop. */
void vnxi_hub_expire(vnxi_hub_t *hub, uint64_t now);

/* Take it off the list of the silent, where it is on it; by the loop. */
void vnxi_hub_not_silent(vnxi_hub_t *hub, vnxi_link_t *link);

/* -- link.c --------------------------------------------------------------- */

/* Takes the descriptors on success.  One reference, of its users. */
vnxi_link_t *vnxi_link_new(vnxi_hub_t *hub, int fd, int pidfd, pid_t pid);
void vnxi_link_ref(vnxi_link_t *link);
void vnxi_link_unref(vnxi_link_t *link);

/* Leave the state OPEN; true for the one who does. */
bool vnxi_link_win(vnxi_link_t *link, vnxi_link_state_t state);

/* Send a whole frame, as header and body; sends or queues all or nothing. */
vnx_status_t vnxi_link_send(vnxi_link_t *link, const void *head,
                            size_t head_len, const void *body, size_t body_len,
                            vnx_error_t *error);

/* Write what is queued, as far as the socket takes it. */
void vnxi_link_flush(vnxi_link_t *link);

/* What epoll reports: for the listener (NULL), for a link's socket, for its
 * pidfd.  The upper bits, which no pointer has, tell it from the report of
 * another set that got the number of ours after the program closed it. */
#define VNXI_LINK_TAG_PIDFD 1u
#define VNXI_LINK_TAG_MAGIC ((uint64_t)0x6c76 << 48)
#define VNXI_LINK_TAG_MASK ((uint64_t)0xffff << 48)
static inline uint64_t
vnxi_link_tag(vnxi_link_t *link, unsigned which)
{
    return VNXI_LINK_TAG_MAGIC | (uint64_t)(uintptr_t)link | which;
}

static inline vnxi_link_t *
vnxi_link_of_tag(uint64_t tag)
{
    return (vnxi_link_t *)(uintptr_t)(tag & ~VNXI_LINK_TAG_MASK &
                                      ~(uint64_t)VNXI_LINK_TAG_PIDFD);
}

#endif
