/*
 * libevent's loop and the one thread that runs it.
 *
 * The loop and everything on it belong to that thread, so they need no lock.
 * Other threads only wake the thread, by an eventfd, and join it.
 */
#ifndef VNXI_NET_LOOP_H
#define VNXI_NET_LOOP_H

#include <event2/event.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct vnxi_loop {
    void *owner;                  /* the object whose loop this is */
    void (*on_wake)(void *owner); /* may end the loop */
    struct event_base *base;
    struct event *wake_event;
    int wake_fd;  /* eventfd */
    unsigned fds; /* epoch of its descriptors (base/fork_fds.h) */
    pthread_t thread;
} vnxi_loop_t;

/* Create the loop; no thread runs it yet.  `owner` is not NULL.  False: errno
 * has the cause, and the loop is as if it was all zeros. */
bool vnxi_loop_init(vnxi_loop_t *loop, void (*on_wake)(void *owner),
                    void *owner);

/* Start the thread that runs the loop, and call it `name`.  Returns 0 or an
 * errno. */
int vnxi_loop_start(vnxi_loop_t *loop, const char *name);

/* Make the thread call on_wake().  Any thread; no effect if the program has
 * closed the loop's descriptors. */
void vnxi_loop_wake(vnxi_loop_t *loop);

/* Wait for a thread that was told to end.  False: the program has closed the
 * loop's descriptors, so the thread cannot be woken.  Its loop must not be
 * freed, nor anything that the thread uses. */
bool vnxi_loop_join(vnxi_loop_t *loop);

/* Wait for a thread that was told to end, until a time of vnxi_clock_ns().
 * False: it cannot be woken, it is the caller, or it has not ended by then. */
bool vnxi_loop_join_by(vnxi_loop_t *loop, uint64_t deadline);

/* Free the loop, after everything that used it.  No thread runs it.  A loop
 * that is all zeros is allowed. */
void vnxi_loop_fini(vnxi_loop_t *loop);

/* -- On the loop's thread ------------------------------------------------- */

/* Return the loop that this thread runs. */
vnxi_loop_t *vnxi_loop_running(void);

/* A timeout that many events share: libevent keeps them in a queue instead of
 * a heap of thousands.  NULL: no memory. */
const struct timeval *vnxi_loop_timeout(vnxi_loop_t *loop, uint32_t ms);

/* event_free(); NULL is allowed. */
void vnxi_loop_event_free(struct event *event);

#endif
