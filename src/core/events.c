/*
 * Design notes.  No wake-up is lost, because each side announces itself before
 * it checks the other.  A waiter increments `waiters`, then checks the states,
 * then sleeps under the lock.  A signaller stores the state, then checks
 * `waiters`, then broadcasts under the lock.  A sequentially consistent fence
 * on each side separates the announcement from the check: the states are
 * stored with release and loaded with acquire order, which does not keep a
 * load behind an earlier store.  The same holds for a new descriptor: it is
 * announced, and the client checks the states after the fence.
 *
 * clear() drains the eventfd before it resets `signalled`.  Both sides change
 * the flag by an exchange.  A signaller that found it set comes before the
 * exchange of the client, which therefore sees the signaller's state; a
 * signaller that comes after it writes to the eventfd again.  If there is
 * nothing to drain, a signaller has set the flag and is about to write, so the
 * flag stays set: the eventfd will be readable.
 */
#include "core/events.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/fork_fds.h"
#include "base/mutex.h"
#include "base/thread.h"

void
vnxi_events_init(vnxi_events_t *events)
{
    vnxi_mutex_init(&events->lock, VNXI_RANK_EVENTS);
    vnxi_cond_init(&events->changed);
    atomic_init(&events->waiters, 0);
    atomic_init(&events->fd, -1);
    atomic_init(&events->signalled, false);
    events->subscribed = NULL;
    atomic_init(&events->subscribers, 0);
    atomic_init(&events->fds_epoch, vnxi_fds_epoch());
}

void
vnxi_events_forget_lost(vnxi_events_t *events)
{
    vnxi_mutex_lock(&events->lock);
    if (vnxi_fds_lost(events->fds_epoch)) {
        atomic_store(&events->fd, -1);
        atomic_store(&events->subscribers, 0);
        events->fds_epoch = vnxi_fds_epoch();
    }
    vnxi_mutex_unlock(&events->lock);
}

void
vnxi_events_fini(vnxi_events_t *events)
{
    vnxi_events_forget_lost(events);
    int fd = atomic_load(&events->fd);
    if (fd >= 0) {
        close(fd);
    }
    for (unsigned i = 0; i < atomic_load(&events->subscribers); i++) {
        close(events->subscribed[i]);
    }
    free(events->subscribed);
    vnxi_cond_destroy(&events->changed);
    vnxi_mutex_destroy(&events->lock);
}

/* A full counter (EAGAIN) is readable, which is enough. */
static void
write_fd(int fd)
{
    while (eventfd_write(fd, 1) < 0 && errno == EINTR) {
    }
}

void
vnxi_events_signal(vnxi_events_t *events)
{
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load(&events->waiters) > 0 ||
        atomic_load(&events->subscribers) > 0) {
        vnxi_mutex_lock(&events->lock);
        vnxi_cond_broadcast(&events->changed);
        unsigned count = atomic_load(&events->subscribers);
        bool writes = count > 0 && !vnxi_fds_lost(events->fds_epoch);
        for (unsigned i = 0; writes && i < count; i++) {
            write_fd(events->subscribed[i]);
        }
        vnxi_mutex_unlock(&events->lock);
    }
    int fd = atomic_load(&events->fd);
    if (fd >= 0 && !atomic_exchange(&events->signalled, true) &&
        !vnxi_fds_lost(atomic_load(&events->fds_epoch))) {
        write_fd(fd);
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

    vnxi_mutex_lock(&events->lock);
    atomic_fetch_add(&events->waiters, 1);
    atomic_thread_fence(memory_order_seq_cst); /* before ready() */
    while (!(is_ready = ready(context)) && ret != ETIMEDOUT) {
        ret =
            deadline == UINT64_MAX
                ? vnxi_cond_wait(&events->changed, &events->lock)
                : vnxi_cond_timedwait(&events->changed, &events->lock, &until);
    }
    atomic_fetch_sub(&events->waiters, 1);
    vnxi_mutex_unlock(&events->lock);
    return is_ready;
}

vnx_status_t
vnxi_events_fd(vnxi_events_t *events, int *fd_p, vnx_error_t *error)
{
    vnxi_events_forget_lost(events);
    vnxi_mutex_lock(&events->lock);
    int fd = atomic_load(&events->fd);
    int err = 0;
    if (fd < 0) {
        /* Readable: it reports the events that happened before it existed. */
        fd = eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK);
        err = errno;
        if (fd >= 0) {
            atomic_store(&events->signalled, true);
            atomic_store(&events->fd, fd);
            atomic_thread_fence(memory_order_seq_cst); /* see above */
        }
    }
    vnxi_mutex_unlock(&events->lock);
    if (fd < 0) {
        return vnxi_error_set(error, VNX_ERR_BACKEND, "vnx_agent_fileno",
                              "eventfd: %s", vnxi_errno(err));
    }
    *fd_p = fd;
    return VNX_OK;
}

static bool
subscribed_append_lock_held(vnxi_events_t *events, int fd)
{
    unsigned count = atomic_load(&events->subscribers);
    int *grown =
        realloc(events->subscribed, (count + 1) * sizeof *events->subscribed);
    if (grown == NULL) {
        return false;
    }
    events->subscribed = grown;
    grown[count] = fd;
    atomic_store(&events->subscribers, count + 1);
    atomic_thread_fence(memory_order_seq_cst); /* see above */
    return true;
}

vnx_status_t
vnxi_events_subscribe(vnxi_events_t *events, int *fd_p, vnx_error_t *error)
{
    vnxi_events_forget_lost(events);
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (fd < 0) {
        return vnxi_error_set(error, VNX_ERR_BACKEND, "vnx_agent_subscribe",
                              "eventfd: %s", vnxi_errno(errno));
    }
    vnxi_mutex_lock(&events->lock);
    bool appended = subscribed_append_lock_held(events, fd);
    vnxi_mutex_unlock(&events->lock);
    if (!appended) {
        close(fd);
        return vnxi_error_no_memory(error, "vnx_agent_subscribe", sizeof fd);
    }
    *fd_p = fd;
    return VNX_OK;
}

void
vnxi_events_unsubscribe(vnxi_events_t *events, int fd)
{
    vnxi_events_forget_lost(events);
    vnxi_mutex_lock(&events->lock);
    unsigned count = atomic_load(&events->subscribers);
    for (unsigned i = 0; i < count; i++) {
        if (events->subscribed[i] == fd) {
            events->subscribed[i] = events->subscribed[count - 1];
            atomic_store(&events->subscribers, count - 1);
            close(fd);
            break;
        }
    }
    vnxi_mutex_unlock(&events->lock);
}

void
vnxi_events_clear(vnxi_events_t *events)
{
    eventfd_t value;
    int fd = atomic_load_explicit(&events->fd, memory_order_acquire);

    if (fd < 0 || !atomic_load(&events->signalled)) {
        return;
    }
    if (vnxi_fds_lost(atomic_load(&events->fds_epoch))) {
        vnxi_events_forget_lost(events); /* the number may be another file's */
    } else if (eventfd_read(fd, &value) == 0) {
        (void)atomic_exchange(&events->signalled, false);
    }
}
