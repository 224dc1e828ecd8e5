/*
 * Events of an agent: "a transfer has ended", "a notification has arrived",
 * "closed".  Waiters sleep on a condition variable.  Programs with their own
 * event loop watch an eventfd.  While nobody waits or watches, signalling
 * costs two atomic loads.
 */
#ifndef VNXI_CORE_EVENTS_H
#define VNXI_CORE_EVENTS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <vnx/error.h>

#include "base/mutex.h"

typedef struct vnxi_events {
    vnxi_mutex_t lock;
    vnxi_cond_t changed; /* CLOCK_MONOTONIC */
    atomic_uint waiters;
    atomic_int fd;           /* -1 until requested */
    atomic_bool signalled;   /* the eventfd is readable or about to be */
    int *subscribed;         /* eventfds of subscribers; protected by lock */
    atomic_uint subscribers; /* their number; changed with lock held */
    atomic_uint fds_epoch;   /* of the descriptors above; changed with lock
                                held */
} vnxi_events_t;

void vnxi_events_init(vnxi_events_t *events);
void vnxi_events_fini(vnxi_events_t *events);

/* Forget the eventfds if the program has closed all of its descriptors
 * (base/fork_fds.h); other files may use their numbers now. */
void vnxi_events_forget_lost(vnxi_events_t *events);

/* Call this after storing the state that waiters check. */
void vnxi_events_signal(vnxi_events_t *events);

/* Sleep until `ready(context)`, which reads only atomics, returns true, or
 * until the deadline (vnxi_clock_ns() scale).  False: the deadline has passed.
 */
bool vnxi_events_wait(vnxi_events_t *events, bool (*ready)(void *context),
                      void *context, uint64_t deadline);

/* The eventfd, created by the first call. */
vnx_status_t vnxi_events_fd(vnxi_events_t *events, int *fd_p,
                            vnx_error_t *error);

/* An eventfd for one subscriber.  Every signal writes it and reading clears
 * it, so several loops can watch without consuming each other's events.
 * vnxi_events_unsubscribe() closes it. */
vnx_status_t vnxi_events_subscribe(vnxi_events_t *events, int *fd_p,
                                   vnx_error_t *error);
void vnxi_events_unsubscribe(vnxi_events_t *events, int fd);

/* Make the eventfd unreadable.  Call this before checking the states. */
void vnxi_events_clear(vnxi_events_t *events);

#endif
