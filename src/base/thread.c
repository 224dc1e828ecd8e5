#include "base/thread.h"

#include <signal.h>

#include "base/clock.h"
#include "base/fork_fds.h"

/* Enough for libcurl, OpenSSL and UCX.  The default may be less: musl's is
 * 128 KiB, and glibc's is RLIMIT_STACK. */
#define STACK_MIN ((size_t)1 << 20)

static int
create(pthread_t *thread_p, void *(*entry)(void *), void *arg)
{
    pthread_attr_t attr;
    size_t size;

    int ret = pthread_attr_init(&attr);
    if (ret != 0) {
        return ret;
    }
    if (pthread_attr_getstacksize(&attr, &size) == 0 && size < STACK_MIN) {
        pthread_attr_setstacksize(&attr, STACK_MIN);
    }
    ret = pthread_create(thread_p, &attr, entry, arg);
    pthread_attr_destroy(&attr);
    return ret;
}

/* The new thread inherits the signal mask of its creator. */
int
vnxi_thread_start(pthread_t *thread_p, void *(*entry)(void *), void *arg)
{
    sigset_t all, before;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int ret = create(thread_p, entry, arg);
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

/* Join within JOIN_LOOK_NS.  The clock is the one that the call knows in every
 * C library; if it is set meanwhile, a caller only looks again. */
static bool
join_soon(pthread_t thread)
{
    struct timespec until;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += JOIN_LOOK_NS;
    if (until.tv_nsec >= 1000000000) {
        until.tv_nsec -= 1000000000;
        until.tv_sec++;
    }
    return pthread_timedjoin_np(thread, NULL, &until) == 0;
}

bool
vnxi_thread_join_by(pthread_t thread, uint64_t deadline)
{
    do {
        if (join_soon(thread)) {
            return true;
        }
    } while (vnxi_clock_ns() < deadline);
    return false;
}

bool
vnxi_thread_join(pthread_t thread, unsigned fds_epoch)
{
    for (;;) {
        bool lost = vnxi_fds_lost(fds_epoch);
        if (join_soon(thread)) {
            return true;
        }
        if (lost) {
            pthread_detach(thread);
            return false;
        }
    }
}
