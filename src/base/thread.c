#include "base/thread.h"

#include <signal.h>

/* The new thread inherits the mask of the one that starts it. */
int
vnxi_thread_start(pthread_t *thread_p, void *(*entry)(void *), void *arg)
{
    sigset_t all, before;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int ret = pthread_create(thread_p, NULL, entry, arg);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return ret;
}

int
vnxi_thread_start_detached(void *(*entry)(void *), void *arg)
{
    pthread_t thread;

    int ret = vnxi_thread_start(&thread, entry, arg);
    if (ret == 0) {
        pthread_detach(thread);
    }
    return ret;
}
