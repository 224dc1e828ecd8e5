#include "net/loop.h"

#include <errno.h>
#include <stddef.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/error.h"
#include "base/fork_fds.h"
#include "base/log.h"
#include "base/thread.h"

static _Thread_local vnxi_loop_t *running;

/* The base has no locks, and no environment variable chooses its kernel
 * interface. */
static struct event_base *
base_new(void)
{
    struct event_config *config = event_config_new();
    if (config == NULL) {
        return NULL;
    }
    event_config_set_flag(config, EVENT_BASE_FLAG_NOLOCK);
    event_config_set_flag(config, EVENT_BASE_FLAG_IGNORE_ENV);
    struct event_base *base = event_base_new_with_config(config);
    event_config_free(config);
    return base;
}

static void
on_wake(evutil_socket_t fd, short what, void *arg)
{
    (void)what;
    vnxi_loop_t *loop = arg;
    uint64_t count;

    ssize_t got = read((int)fd, &count, sizeof count);
    (void)got; /* the count does not matter */
    loop->on_wake(loop->owner);
}

bool
vnxi_loop_init(vnxi_loop_t *loop, void (*on_wake_owner)(void *owner),
               void *owner)
{
    *loop = (vnxi_loop_t){.owner = owner,
                          .on_wake = on_wake_owner,
                          .base = base_new(),
                          .wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK),
                          .fds = vnxi_fds_epoch()};
    if (loop->base != NULL && loop->wake_fd >= 0) {
        loop->wake_event = event_new(loop->base, loop->wake_fd,
                                     EV_READ | EV_PERSIST, on_wake, loop);
    }
    if (loop->wake_event != NULL && event_add(loop->wake_event, NULL) == 0) {
        return true;
    }
    int err = errno;
    vnxi_loop_fini(loop);
    errno = err;
    return false;
}

static void *
loop_main(void *arg)
{
    running = arg;
    if (event_base_dispatch(running->base) != 0) {
        char name[16] = "";
        int err = errno;
        pthread_getname_np(pthread_self(), name, sizeof name);
        vnxi_log(VNX_LOG_ERROR, NULL, "thread %s: the loop ended: %s", name,
                 vnxi_errno(err));
    }
    return NULL;
}

int
vnxi_loop_start(vnxi_loop_t *loop, const char *name)
{
    int ret = vnxi_thread_start(&loop->thread, loop_main, loop);
    if (ret == 0) {
        pthread_setname_np(loop->thread, name);
    }
    return ret;
}

void
vnxi_loop_wake(vnxi_loop_t *loop)
{
    uint64_t one = 1;

    if (!vnxi_fds_lost(loop->fds)) {
        ssize_t written = write(loop->wake_fd, &one, sizeof one);
        (void)written; /* a full counter wakes the thread too */
    }
}

bool
vnxi_loop_join(vnxi_loop_t *loop)
{
    return vnxi_thread_join(loop->thread, loop->fds) &&
           !vnxi_fds_lost(loop->fds);
}

bool
vnxi_loop_join_by(vnxi_loop_t *loop, uint64_t deadline)
{
    return loop != running && !vnxi_fds_lost(loop->fds) &&
           vnxi_thread_join_by(loop->thread, deadline);
}

/* A bufferevent that was freed with a callback pending goes away only in one
 * more round of the loop. */
void
vnxi_loop_fini(vnxi_loop_t *loop)
{
    if (loop->owner == NULL) {
        return;
    }
    vnxi_loop_event_free(loop->wake_event);
    if (loop->base != NULL) {
        event_base_loop(loop->base, EVLOOP_NONBLOCK);
        event_base_free(loop->base);
    }
    if (loop->wake_fd >= 0) {
        close(loop->wake_fd);
    }
    *loop = (vnxi_loop_t){0};
}

vnxi_loop_t *
vnxi_loop_running(void)
{
    return running;
}

const struct timeval *
vnxi_loop_timeout(vnxi_loop_t *loop, uint32_t ms)
{
    struct timeval tv = {.tv_sec = ms / 1000,
                         .tv_usec = (suseconds_t)(ms % 1000) * 1000};
    return event_base_init_common_timeout(loop->base, &tv);
}

void
vnxi_loop_event_free(struct event *event)
{
    if (event != NULL) {
        event_free(event);
    }
}
