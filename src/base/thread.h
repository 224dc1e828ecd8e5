/*
 * Threads of ours.
 */
#ifndef VNXI_BASE_THREAD_H
#define VNXI_BASE_THREAD_H

#include <pthread.h>
#include <stdbool.h>

/* Start a thread with every signal blocked: they are the program's business,
 * and a write to somebody who is gone shall not kill it.  0, or errno. */
int vnxi_thread_start(pthread_t *thread_p, void *(*entry)(void *), void *arg);

/* The same, for one that nobody joins. */
int vnxi_thread_start_detached(void *(*entry)(void *), void *arg);

/* Join a thread that was just told to end.  False: the descriptors of that
 * epoch (base/fork_fds.h) were closed under it, so nothing can wake it; it is
 * detached and may sleep for ever.  Its caller leaves to it whatever it would
 * touch if it did wake up. */
bool vnxi_thread_join(pthread_t thread, unsigned fds_epoch);

#endif
