#include "base/sigpipe.h"

#include <errno.h>
#include <pthread.h>
#include <time.h>

static sigset_t
only_sigpipe(void)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGPIPE);
    return set;
}

static bool
is_pending(void)
{
    sigset_t pending;

    sigemptyset(&pending);
    return sigpending(&pending) == 0 && sigismember(&pending, SIGPIPE) == 1;
}

void
vnxi_sigpipe_block(vnxi_sigpipe_t *before_p)
{
    sigset_t set = only_sigpipe();

    before_p->is_pending = is_pending();
    pthread_sigmask(SIG_BLOCK, &set, &before_p->mask);
}

void
vnxi_sigpipe_restore(const vnxi_sigpipe_t *before)
{
    static const struct timespec at_once;
    sigset_t set = only_sigpipe();
    int err = errno;

    if (!before->is_pending && is_pending()) {
        while (sigtimedwait(&set, NULL, &at_once) < 0 && errno == EINTR) {
        }
    }
    pthread_sigmask(SIG_SETMASK, &before->mask, NULL);
    errno = err;
}
