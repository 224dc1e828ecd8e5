/*
 * Events of an agent: "a transfer ended", "a notification came", "closed".
 * Whoever waits sleeps on a condition variable; whoever has a loop of its own
 * watches an eventfd.  Signalling costs two atomic loads while nobody does.
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
    atomic_int fd;           /* -1 until somebody asks for it */
    atomic_bool signalled;   /* the eventfd is readable, or just becoming so */
    int *subscribed;         /* eventfds of subscribers; protected by lock */
    atomic_uint subscribers; /* how many; changed with lock held */
    unsigned fds_epoch;      /* of its descriptors; protected by lock */
} vnxi_events_t;

void vnxi_events_init(vnxi_events_t *events);
void vnxi_events_fini(vnxi_events_t *events);

/* Forget the eventfds where the program has closed all of its descriptors
 * (base/fork_fds.h): the numbers are other files' now. */
void vnxi_events_forget_lost(vnxi_events_t *events);

/* To be called after the state that waiters look at has been stored. */
void vnxi_events_signal(vnxi_events_t *events);

/* Sleep until `ready(context)`, which looks at atomics only, or the deadline
 * (vnxi_clock_ns() scale).  False: the deadline passed. */
bool vnxi_events_wait(vnxi_events_t *events, bool (*ready)(void *context),
                      void *context, uint64_t deadline);

/* The eventfd, made at the first call. */
vnx_status_t vnxi_events_fd(vnxi_events_t *events, int *fd_p,
                            vnx_error_t *error);

/* An eventfd for one subscriber alone, written at every signal and cleared by
 * reading it, so that several loops can watch without taking each other's
 * events.  To be given up by unsubscribing, which closes it. */
vnx_status_t vnxi_events_subscribe(vnxi_events_t *events, int *fd_p,
                                   vnx_error_t *error);
void vnxi_events_unsubscribe(vnxi_events_t *events, int fd);

/* Make the eventfd unreadable; call before looking at the states. */
void vnxi_events_clear(vnxi_events_t *events);

#endif
