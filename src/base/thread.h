/*
 * Threads of ours.
 */
#ifndef VNXI_BASE_THREAD_H
#define VNXI_BASE_THREAD_H

#include <pthread.h>

/* Start a thread with every signal blocked: they are the program's business,
 * and a write to somebody who is gone shall not kill it.  0, or errno. */
int vnxi_thread_start(pthread_t *thread_p, void *(*entry)(void *), void *arg);

/* The same, for one that nobody joins. */
int vnxi_thread_start_detached(void *(*entry)(void *), void *arg);

#endif
