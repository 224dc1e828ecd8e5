/*
 * Design notes.  No wake-up is lost because both sides announce before they
 * look.  A waiter raises `waiters`, then looks at the states, then sleeps with
 * the lock held; a signaller stores the state, then looks at `waiters`, then
 * broadcasts under the lock.  All four are sequentially consistent.  The
 * eventfd likewise: clear() drains it before it lowers `signalled`, so a
 * signaller that still saw it raised had stored its state before the states
 * are looked at.
 */
#include "core/events.h"

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"

void
vnxi_events_init(vnxi_events_t *events)
{
    pthread_condattr_t attr;

    pthread_mutex_init(&events->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&events->changed, &attr);
    pthread_condattr_destroy(&attr);
    atomic_init(&events->waiters, 0);
    atomic_init(&events->fd, -1);
    atomic_init(&events->signalled, false);
}

void
vnxi_events_fini(vnxi_events_t *events)
{
    int fd = atomic_load(&events->fd);
    if (fd >= 0) {
        close(fd);
    }
    pthread_cond_destroy(&events->changed);
    pthread_mutex_destroy(&events->lock);
}

static void
signal_fd(vnxi_events_t *events, int fd)
{
    if (!atomic_exchange(&events->signalled, true)) {
        /* A full counter (EAGAIN) is readable all the same. */
        while (eventfd_write(fd, 1) < 0 && errno == EINTR) {
        }
    }
}

void
vnxi_events_signal(vnxi_events_t *events)
{
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load(&events->waiters) > 0) {
        pthread_mutex_lock(&events->lock);
        pthread_cond_broadcast(&events->changed);
        pthread_mutex_unlock(&events->lock);
    }
    int fd = atomic_load(&events->fd);
    if (fd >= 0) {
        signal_fd(events, fd);
    }
}

bool
vnxi_events_wait(vnxi_events_t *events, bool (*ready)(void *context),
                 void *context, uint64_t deadline)
{
    if (ready(context)) {
        return true;
    }
    struct timespec until = vnxi_clock_timespec(deadline);
    int ret = 0;
    bool is_ready;

    pthread_mutex_lock(&events->lock);
    atomic_fetch_add(&events->waiters, 1);
    while (!(is_ready = ready(context)) && ret != ETIMEDOUT) {
        ret = deadline == UINT64_MAX
                  ? pthread_cond_wait(&events->changed, &events->lock)
                  : pthread_cond_timedwait(&events->changed, &events->lock,
                                           &until);
    }
    atomic_fetch_sub(&events->waiters, 1);
    pthread_mutex_unlock(&events->lock);
    return is_ready;
}

vnx_status_t
vnxi_events_fd(vnxi_events_t *events, int *fd_p, vnx_error_t *error)
{
    pthread_mutex_lock(&events->lock);
    int fd = atomic_load(&events->fd);
    int err = 0;
    if (fd < 0) {
        fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        err = errno;
        if (fd >= 0) {
            atomic_store(&events->fd, fd);
            /* What happened before there was a descriptor counts too. */
            signal_fd(events, fd);
        }
    }
    pthread_mutex_unlock(&events->lock);
    if (fd < 0) {
        return vnxi_error_set(error, VNX_ERR_BACKEND, "fileno", "eventfd: %s",
                              strerror(err));
    }
    *fd_p = fd;
    return VNX_OK;
}

void
vnxi_events_clear(vnxi_events_t *events)
{
    eventfd_t value;
    int fd = atomic_load_explicit(&events->fd, memory_order_acquire);

    if (fd >= 0 && atomic_load(&events->signalled)) {
        (void)!eventfd_read(fd, &value);
        (void)atomic_exchange(&events->signalled, false);
    }
}
