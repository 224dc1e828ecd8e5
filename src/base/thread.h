/*
 * Threads of the library.
 */
#ifndef VNXI_BASE_THREAD_H
#define VNXI_BASE_THREAD_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

/* Start a thread with a stack of at least 1 MiB and all signals blocked:
 * signals are the program's business, and a write to a closed connection must
 * not kill it (SIGPIPE).  Returns 0 or an errno. */
int vnxi_thread_start(pthread_t *thread_p, void *(*entry)(void *), void *arg);

/* The same for a thread that is not joined. */
int vnxi_thread_start_detached(void *(*entry)(void *), void *arg);

/* Join a thread that was just told to end.  False: the descriptors of that
 * epoch (base/fork_fds.h) were closed, so nothing can wake the thread.  It is
 * detached and may sleep forever; the caller must not free anything that the
 * thread would touch if it woke up. */
bool vnxi_thread_join(pthread_t thread, unsigned fds_epoch);

/* Join a thread until a time of vnxi_clock_ns().  False: it has not ended by
 * then, and can still be joined. */
bool vnxi_thread_join_by(pthread_t thread, uint64_t deadline);

#endif
