/*
 * Hubs and links: their state, shared by hub.c, hub_events.c, link.c and
 * link_open.c.  Each of these files calls only those after it in
 *     hub.c -> hub_events.c -> link.c -> link_frame.c
 *     link_open.c -> link.c
 *
 * Locks and roles:
 *   loop       held by the thread that reads sockets, calls back and removes
 *              links: the hub's thread or a poller.  It protects all fields
 *              "of the loop".
 *   lists      per hub: its list of links.
 *   send_lock  per link: its socket's number, its queue, writing.
 *   settle_lock  per hub: sending SETTLE.
 * hub.h has the order in which they are taken.
 *
 * A link leaves the hub in two steps.  The thread that ends it (the loop, or
 * vnxi_link_close() on any thread) changes its `state` from OPEN and pushes it
 * on the stack `deferred`.  The loop then takes it out of the epoll set and
 * closes its socket, so that no descriptor is closed while it is read from.
 * It drops the reference at the end of its round, so that no event of the
 * round points to freed memory.
 */
#ifndef VNXI_NATIVE_SHM_HUB_PRIVATE_H
#define VNXI_NATIVE_SHM_HUB_PRIVATE_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/types.h>
#include <unistd.h>

#include "base/fork_fds.h"
#include "base/mutex.h"
#include "engine/native/shm/hub.h"

typedef enum vnxi_link_state {
    VNXI_LINK_OPEN,
    VNXI_LINK_CLOSED, /* by this end: nothing is reported */
    VNXI_LINK_ENDED,  /* by the other end: reported */
} vnxi_link_state_t;

/* The descriptors that came with one frame. */
typedef struct vnxi_link_fd_set {
    int fds[VNXI_CONTROL_FDS_MAX]; /* owned by vnxi_fork_fd_own() */
    size_t count;
} vnxi_link_fd_set_t;

/* While the end of a frame is missing, one more can arrive. */
#define VNXI_LINK_FD_SETS 4u

struct vnxi_link {
    uint64_t id;       /* of an accepted link; never reused in its hub */
    atomic_uint users; /* all users together hold one of refs */
    atomic_uint refs;
    vnxi_hub_t *hub;
    unsigned forks; /* fork count at creation */
    unsigned fds;   /* epoch of its descriptors */
    bool accepted;
    pid_t pid; /* of the other end */
    int pidfd; /* closed when the link is freed; an attached link has -1 only
                  if it was accepted: the process was gone, or no descriptor
                  was available */
    void *cookie;

    atomic_int state;
    atomic_bool over; /* state is not OPEN, or the socket cannot send */

    vnxi_mutex_t send_lock;
    int fd; /* set to -1 by the loop, holding send_lock */
    vnxi_link_queue_t queue;
    bool is_refused; /* the kernel takes no more descriptors now */
    bool is_watched; /* for room */

    /* of the loop */
    vnxi_link_frame_reader_t reader;
    char *sender; /* owned: from HELLO; NULL: no HELLO so far */
    size_t sender_len;
    uint64_t hello_deadline;
    vnxi_link_t *silent_next, *silent_prev;
    vnxi_link_fd_set_t *fd_sets; /* owned: room for VNXI_LINK_FD_SETS; NULL:
                                    none has come */
    size_t fd_set_count;         /* of frames that were not handled yet */

    /* protected by the hub's `lists` */
    bool listed; /* holds a reference */
    vnxi_link_t *next, *prev;
    uint64_t pass;     /* the last pass over all links that visited it */
    bool uses_regions; /* it has sent CONFIRM */
    uint64_t settle_asked, settled; /* the last tokens sent and answered */

    _Atomic(vnxi_link_t *) deferred_next; /* an entry holds a reference */
};

struct vnxi_hub {
    vnxi_hub_callbacks_t callbacks;
    char *name; /* owned; followed by a NUL */
    size_t name_len;
    unsigned char instance[VNXI_SHM_ID_SIZE];
    vnxi_shm_info_t local; /* only what vnxi_shm_info_local() fills in */
    char socket[VNXI_SHM_SOCKET_MAX];
    bool allows_ptrace; /* openers may access the memory of this process */
    unsigned forks;     /* fork count at creation */
    unsigned fds;       /* epoch of its descriptors */

    /* The thread sleeps in `outer`: inner, timer, wake.  `inner` has the
     * listener, the sockets and the pidfds. */
    int outer, inner, timer, wake, listener;
    atomic_bool stopping;
    pthread_t thread;
    bool abandoned; /* by vnxi_hub_stop(): the thread still uses the hub's
                       memory */
    atomic_size_t accepted; /* links that sent HELLO */
    _Atomic(vnxi_link_t *) deferred;
    atomic_uint_fast64_t alarm; /* when to call callbacks.alarm; 0: never */
    atomic_uint_fast64_t flush; /* when to send again what was refused; 0:
                                   never */

    vnxi_mutex_t loop;
    /* of the loop */
    bool stopped;
    bool lost;   /* other code closed its descriptors */
    bool polled; /* the thread does not wait for `inner` */
    bool warned_no_fds;
    unsigned busy_windows; /* consecutive windows with frequent polling */
    uint64_t window_end, window_polls;
    uint64_t polls; /* calls of vnxi_hub_poll() */
    uint64_t polls_seen;
    uint64_t listener_resumes;               /* deadline; 0: not suspended */
    vnxi_link_t *silent_first, *silent_last; /* oldest first */
    size_t silent_count;
    size_t accepted_count; /* including links without HELLO */
    uint64_t last_id;      /* of accepted links */
    unsigned char *input;  /* owned: VNXI_HUB_INPUT bytes */

    vnxi_mutex_t lists;
    /* protected by lists */
    bool closed; /* no more links are added */
    bool closes; /* the agent is about to end: regions are not confirmed any
                    more */
    vnxi_link_t *links;
    uint64_t pass;       /* counts the passes over all links */
    vnxi_cond_t settles; /* a link has answered a SETTLE, or left the list */

    vnxi_mutex_t settle_lock; /* keeps SETTLE in the order of the tokens */
    uint64_t settle_token;    /* of the last one; settle_lock */
};

/* Most bytes read from a link in one round of the loop. */
#define VNXI_HUB_INPUT (256u << 10)

/* The length of a window of polling (hub.c), and the period of the timer in
 * polling mode. */
#define VNXI_HUB_WINDOW_NS 2000000u

/* -- hub_events.c --------------------------------------------------------- */

/* One round: handle pending events.  Requires the loop. */
void vnxi_hub_round(vnxi_hub_t *hub);

/* Set the timer to the next event that is due.  Requires the loop. */
void vnxi_hub_set_timer(vnxi_hub_t *hub);

/* Accept again after a lack of descriptors, send descriptors again, and end
 * the accepted links that have sent no HELLO for too long, if it is time.
 * Requires the loop. */
void vnxi_hub_expire(vnxi_hub_t *hub);

/* -- link.c --------------------------------------------------------------- */

/* Takes over the descriptors on success.  Returns one reference in `users`. */
vnxi_link_t *vnxi_link_new(vnxi_hub_t *hub, int fd, int pidfd, pid_t pid);
void vnxi_link_ref(vnxi_link_t *link);
void vnxi_link_unref(vnxi_link_t *link);

/* Close the descriptors of the first `count` frames that wait for theirs.
 * Requires the loop. */
void vnxi_link_drop_fds(vnxi_link_t *link, size_t count);

/* Change the state from OPEN to `state`; true for the one caller that does so.
 */
bool vnxi_link_try_end(vnxi_link_t *link, vnxi_link_state_t state);

/* Send whole frames; sends or queues all or nothing.  Errors as
 * vnxi_link_send_notif(); VNX_ERR_NO_MEMORY also if the writer failed. */
vnx_status_t vnxi_link_send(vnxi_link_t *link, const vnxi_writer_t *frames,
                            vnx_error_t *error);

/* How long closing waits until queued data is sent, and deregistering until
 * peers have settled; and the time between two tries to send. */
#define VNXI_LINK_DRAIN_NS 2000000000u
#define VNXI_LINK_PAUSE_NS 1000000

/* Write queued data.  True: some is left and may still be sent. */
bool vnxi_link_has_more(vnxi_link_t *link);

/* Write queued data as far as the socket takes it. */
void vnxi_link_flush(vnxi_link_t *link);

/* The same for all links. */
void vnxi_link_flush_all(vnxi_hub_t *hub);

/* Add a link to its hub and to the epoll set.  VNX_ERR_CLOSED: stopped. */
vnx_status_t vnxi_link_attach(vnxi_link_t *link, vnx_error_t *error);

/* Remove a link from both and close its socket.  Requires the loop.
 * Idempotent. */
void vnxi_link_detach(vnxi_link_t *link);

/* Queue a link that vnxi_link_try_end() has ended for the next
 * vnxi_link_close_deferred(). */
void vnxi_link_defer_close(vnxi_link_t *link);

/* Detach the queued links.  Requires the loop, with all events of a round
 * handled. */
void vnxi_link_close_deferred(vnxi_hub_t *hub);

/* Add an accepted link to the hub's list of links without HELLO, or remove it
 * if it is there.  Require the loop. */
void vnxi_link_add_silent(vnxi_link_t *link, uint64_t deadline);
void vnxi_link_not_silent(vnxi_link_t *link);

/* Keep the name of the agent that has refused the link in `sender`.  False: no
 * memory. */
bool vnxi_link_note_refuser(vnxi_link_t *link,
                            const vnxi_link_frame_refuse_t *refuse);

/* The error of a refused link; %s is `sender`. */
#define VNXI_LINK_REFUSED_TEXT                                               \
    "its metadata is forged or out of date: the agent behind its socket is " \
    "'%s'"

/* -- Small helpers -------------------------------------------------------- */

/* Watch a descriptor; returns as epoll_ctl(). */
static inline int
vnxi_hub_watch(int set, int fd, uint32_t events, uint64_t tag)
{
    struct epoll_event event = {.events = events, .data.u64 = tag};

    return epoll_ctl(set, EPOLL_CTL_ADD, fd, &event);
}

/* Wake the thread. */
static inline void
vnxi_hub_wake(vnxi_hub_t *hub)
{
    uint64_t one = 1;

    if (vnxi_fds_lost(hub->fds)) {
        return;
    }
    ssize_t done = write(hub->wake, &one, sizeof one);

    (void)done; /* fails only if a wake-up is already pending */
}

/* The tags in epoll events: for the listener (NULL), a link's socket, a link's
 * pidfd.  The upper bits, which are not used in pointers, distinguish them
 * from events of another epoll set that got our set's number after the program
 * closed it. */
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
