#include "base/thread.h"

#include <signal.h>

#include "base/fork_fds.h"

/* The new thread inherits the signal mask of its creator. */
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

#define JOIN_LOOK_NS 100000000

bool
vnxi_thread_join(pthread_t thread, unsigned fds_epoch)
{
    struct timespec until;

    for (;;) {
        bool lost = vnxi_fds_lost(fds_epoch);
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += JOIN_LOOK_NS;
        if (until.tv_nsec >= 1000000000) {
            until.tv_nsec -= 1000000000;
            until.tv_sec++;
        }
        if (pthread_timedjoin_np(thread, NULL, &until) == 0) {
            return true;
        }
        if (lost) {
            pthread_detach(thread);
            return false;
        }
    }
}
