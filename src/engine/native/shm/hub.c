/*
 * The hub: creation, thread, polling mode, revocations and end.
 *
 * The thread sleeps in `outer`, which holds the epoll set `inner` of all
 * sockets, a timer, and an eventfd for wake-ups.  The holder of `loop`, either
 * the thread or a polling client, takes events out of `inner`.  If a client
 * polled all the time, the thread would be woken for every message although
 * the client takes it.  So after some windows of frequent polling, the client
 * removes `inner` from the events that `outer` waits for, and starts the timer
 * with which the thread checks that the polling goes on.  Events are level
 * triggered: `outer` reports those that came in between once it waits for
 * `inner` again.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/fork.h"
#include "base/fork_fds.h"
#include "base/mutex.h"
#include "base/thread.h"
#include "engine/native/shm/hub_private.h"
#include "engine/native/shm/ptrace.h"

#define OPERATION "vnx_agent_create_backend"
#define BACKLOG 4096

/* A client counts as polling after WINDOW_POLLS calls in each of BUSY_WINDOWS
 * consecutive windows.  A few calls before it goes to sleep do not count. */
#define WINDOW_POLLS 16u
#define BUSY_WINDOWS 5u

enum { OUTER_INNER, OUTER_TIMER, OUTER_WAKE };

/* Return whether other code closed the hub's descriptors.  If so, their
 * numbers must not be used any more.  Requires the loop. */
static bool
is_lost(vnxi_hub_t *hub)
{
    hub->lost = hub->lost || vnxi_fds_lost(hub->fds);
    return hub->lost;
}

/* -- Alarms --------------------------------------------------------------- */

void
vnxi_hub_alarm(vnxi_hub_t *hub, uint64_t when)
{
    uint64_t set = atomic_load(&hub->alarm);

    while (set == 0 || when < set) {
        if (atomic_compare_exchange_weak(&hub->alarm, &set, when)) {
            vnxi_hub_wake(hub);
            return;
        }
    }
}

static void
sound_alarm(vnxi_hub_t *hub)
{
    uint64_t due = atomic_load(&hub->alarm);

    if (due != 0 && due <= vnxi_clock_ns() &&
        atomic_compare_exchange_strong(&hub->alarm, &due, 0)) {
        hub->callbacks.alarm(hub->callbacks.context);
    }
}

/* -- Polling mode --------------------------------------------------------- */

static void
set_polled(vnxi_hub_t *hub, bool polled)
{
    struct epoll_event event = {
        .events = polled ? 0 : EPOLLIN,
        .data.u64 = OUTER_INNER,
    };

    epoll_ctl(hub->outer, EPOLL_CTL_MOD, hub->inner, &event);
    hub->polled = polled;
    hub->polls_seen = hub->polls;
    hub->busy_windows = 0;
    vnxi_hub_set_timer(hub);
}

static void
count_poll(vnxi_hub_t *hub)
{
    hub->polls++;
    if (hub->polled) {
        return;
    }
    uint64_t now = vnxi_clock_ns();
    hub->window_polls++;
    if (now < hub->window_end) {
        return;
    }
    /* A window in which nobody polled is closed too late. */
    bool busy = hub->window_polls >= WINDOW_POLLS &&
                now < hub->window_end + VNXI_HUB_WINDOW_NS;
    hub->busy_windows = busy ? hub->busy_windows + 1 : 0;
    hub->window_polls = 0;
    hub->window_end = now + VNXI_HUB_WINDOW_NS;
    if (hub->busy_windows >= BUSY_WINDOWS) {
        set_polled(hub, true);
    }
}

void
vnxi_hub_poll(vnxi_hub_t *hub)
{
    if (vnxi_fork_crossed(hub->forks) || vnxi_mutex_trylock(&hub->loop) != 0) {
        return;
    }
    if (!hub->stopped && !hub->lost) {
        count_poll(hub);
        vnxi_hub_round(hub);
        vnxi_link_close_deferred(hub);
    }
    vnxi_mutex_unlock(&hub->loop);
}

#define CATCH_UP_ROUNDS 64u

/* The loop alone closes the socket. */
static bool
has_input(const vnxi_link_t *link)
{
    int left = 0;
    return link->fd >= 0 && ioctl(link->fd, FIONREAD, &left) == 0 && left > 0;
}

void
vnxi_hub_catch_up(vnxi_hub_t *hub, const vnxi_link_t *link)
{
    if (vnxi_fork_crossed(hub->forks)) {
        return;
    }
    vnxi_mutex_lock(&hub->loop);
    for (unsigned i = 0;
         i < CATCH_UP_ROUNDS && !hub->stopped && !hub->lost && has_input(link);
         i++) {
        vnxi_hub_round(hub);
        vnxi_link_close_deferred(hub);
    }
    vnxi_mutex_unlock(&hub->loop);
}

/* -- The thread ----------------------------------------------------------- */

static void
drain_counter(int fd)
{
    uint64_t count;
    ssize_t done = read(fd, &count, sizeof count);

    (void)done; /* fails if the counter was read already */
}

static void
on_timer(vnxi_hub_t *hub)
{
    drain_counter(hub->timer);
    vnxi_hub_expire(hub);
    if (!hub->polled) {
        vnxi_hub_set_timer(hub);
    } else if (hub->polls == hub->polls_seen) {
        set_polled(hub, false);
    } else {
        hub->polls_seen = hub->polls;
    }
}

static void
on_outer(vnxi_hub_t *hub, const struct epoll_event *events, int count)
{
    for (int i = 0; i < count; i++) {
        switch (events[i].data.u64) {
        case OUTER_INNER:
            vnxi_hub_round(hub);
            break;
        case OUTER_TIMER:
            on_timer(hub);
            break;
        case OUTER_WAKE:
            drain_counter(hub->wake);
            vnxi_hub_set_timer(hub); /* the alarm may have changed */
            break;
        }
    }
}

/* vnxi_hub_round() checks its own input, because that path has to be fast.
 * Rare events are checked here. */
static bool
is_lost_with(vnxi_hub_t *hub, const struct epoll_event *events, int count)
{
    bool input_alone = count == 1 && events[0].data.u64 == OUTER_INNER;

    return input_alone ? hub->lost : is_lost(hub);
}

/* False: the thread ends, because the hub has stopped or has no descriptors to
 * sleep in. */
static bool
thread_round(vnxi_hub_t *hub)
{
    struct epoll_event events[3];
    int count = epoll_wait(hub->outer, events, 3, -1);
    bool failed = count < 0 && errno != EINTR;

    vnxi_mutex_lock(&hub->loop);
    hub->lost = hub->lost || failed;
    bool goes_on = !hub->stopped && !is_lost_with(hub, events, count);
    if (goes_on) {
        on_outer(hub, events, count);
        sound_alarm(hub);
        vnxi_link_close_deferred(hub);
    }
    vnxi_mutex_unlock(&hub->loop);
    return goes_on;
}

static void *
hub_thread(void *arg)
{
    vnxi_hub_t *hub = arg;

    while (!atomic_load(&hub->stopping) && thread_round(hub)) {
    }
    return NULL;
}

static int
start_thread(vnxi_hub_t *hub)
{
    int cause = vnxi_thread_start(&hub->thread, hub_thread, hub);
    if (cause == 0) {
        pthread_setname_np(hub->thread, "vnx-hub");
    }
    return cause;
}

/* -- Creation ------------------------------------------------------------- */

/* The name is random, because a predictable name could be taken by others. */
static int
bind_listener(vnxi_hub_t *hub)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    uint64_t chance;

    if (getrandom(&chance, sizeof chance, 0) != (ssize_t)sizeof chance) {
        return -1;
    }
    int len = snprintf(hub->socket, sizeof hub->socket,
                       "vllm_nixl-%d-%016" PRIx64, (int)getpid(), chance);
    memcpy(address.sun_path + 1, hub->socket, (size_t)len);
    hub->listener = vnxi_fork_fd_own(
        socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (hub->listener < 0 ||
        bind(hub->listener, (struct sockaddr *)&address,
             (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 +
                         (size_t)len)) != 0) {
        return -1;
    }
    return listen(hub->listener, BACKLOG);
}

static int
open_descriptors(vnxi_hub_t *hub)
{
    hub->outer = vnxi_fork_fd_own(epoll_create1(EPOLL_CLOEXEC));
    hub->inner = vnxi_fork_fd_own(epoll_create1(EPOLL_CLOEXEC));
    hub->wake = vnxi_fork_fd_own(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    hub->timer = vnxi_fork_fd_own(
        timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
    if (hub->outer < 0 || hub->inner < 0 || hub->wake < 0 || hub->timer < 0 ||
        bind_listener(hub) != 0 ||
        vnxi_hub_watch(hub->inner, hub->listener, EPOLLIN,
                       vnxi_link_tag(NULL, 0)) != 0 ||
        vnxi_hub_watch(hub->outer, hub->inner, EPOLLIN, OUTER_INNER) != 0 ||
        vnxi_hub_watch(hub->outer, hub->timer, EPOLLIN, OUTER_TIMER) != 0 ||
        vnxi_hub_watch(hub->outer, hub->wake, EPOLLIN, OUTER_WAKE) != 0) {
        return errno;
    }
    return 0;
}

static void
close_descriptors(vnxi_hub_t *hub)
{
    if (is_lost(hub)) { /* perhaps long after the hub has stopped */
        return;
    }
    vnxi_fork_fd_close(hub->listener);
    vnxi_fork_fd_close(hub->outer);
    vnxi_fork_fd_close(hub->inner);
    vnxi_fork_fd_close(hub->timer);
    vnxi_fork_fd_close(hub->wake);
}

static void
hub_destroy(vnxi_hub_t *hub)
{
    close_descriptors(hub);
    vnxi_mutex_destroy(&hub->loop);
    vnxi_mutex_destroy(&hub->settle_lock);
    vnxi_cond_destroy(&hub->settles);
    vnxi_mutex_destroy(&hub->lists);
    free(hub->input);
    free(hub->name);
    free(hub);
}

static vnxi_hub_t *
hub_alloc(const vnxi_hub_config_t *config)
{
    vnxi_hub_t *hub = calloc(1, sizeof *hub);

    if (hub == NULL) {
        return NULL;
    }
    hub->listener = hub->outer = hub->inner = hub->timer = hub->wake = -1;
    hub->forks = vnxi_fork_count();
    hub->fds = vnxi_fds_epoch();
    hub->callbacks = config->callbacks;
    memcpy(hub->instance, config->instance, sizeof hub->instance);
    hub->local = *config->local;
    hub->allows_ptrace = vnxi_ptrace_may_allow();
    vnxi_mutex_init(&hub->loop, VNXI_RANK_HUB_LOOP);
    vnxi_mutex_init(&hub->lists, VNXI_RANK_HUB_LISTS);
    vnxi_mutex_init(&hub->settle_lock, VNXI_RANK_HUB_SETTLE);
    vnxi_cond_init(&hub->settles);
    hub->name_len = config->name_len;
    hub->name = malloc(config->name_len + 1);
    hub->input = malloc(VNXI_HUB_INPUT);
    if (hub->name == NULL || hub->input == NULL) {
        hub_destroy(hub);
        return NULL;
    }
    memcpy(hub->name, config->name, config->name_len);
    hub->name[config->name_len] = '\0';
    return hub;
}

vnx_status_t
vnxi_hub_create(const vnxi_hub_config_t *config, char *socket_p,
                vnxi_hub_t **hub_p, vnx_error_t *error)
{
    if (config->name_len == 0 || config->name_len > VNXI_LINK_FRAME_NAME_MAX) {
        return vnxi_error_set(
            error, VNX_ERR_INVALID_PARAM, OPERATION,
            "an agent's name must have 1 to %d bytes, not %zu",
            VNXI_LINK_FRAME_NAME_MAX, config->name_len);
    }
    vnxi_hub_t *hub = hub_alloc(config);
    if (hub == NULL) {
        return vnxi_error_no_memory(error, OPERATION, sizeof *hub);
    }
    int cause = open_descriptors(hub);
    if (cause == 0) {
        cause = start_thread(hub);
    }
    if (cause != 0) {
        vnxi_error_set(error, VNX_ERR_BACKEND, OPERATION,
                       "cannot create a socket or thread for peers on this "
                       "host: %s",
                       vnxi_errno(cause)); /* before hub_destroy() changes
                                              errno */
        hub_destroy(hub);
        return VNX_ERR_BACKEND;
    }
    memcpy(socket_p, hub->socket, sizeof hub->socket);
    *hub_p = hub;
    return VNX_OK;
}

/* -- All links ------------------------------------------------------------ */

/* Send the frames.  If a peer cannot be notified, close its link: it must not
 * go on using a region that is gone, and has to load metadata again.  A peer
 * that has left need not be notified; data it sent before is still read. */
static void
notify_one(vnxi_link_t *link, const vnxi_writer_t *frames)
{
    vnx_status_t status = vnxi_link_send(link, frames, NULL);

    if (status != VNX_OK && status != VNX_ERR_REMOTE_DISCONNECT) {
        vnxi_link_close(link);
    }
}

/* Sends without holding a lock.  If a link leaves the list meanwhile, the
 * iteration restarts and skips the links that were notified; if another thread
 * notifies at the same time, some are notified twice.  `settle`: the token of
 * a SETTLE, which goes once and only to agents that use regions; or 0. */
static void
notify_all(vnxi_hub_t *hub, const vnxi_writer_t *frames, uint64_t settle)
{
    vnxi_link_t *link, *next;

    vnxi_mutex_lock(&hub->lists);
    uint64_t pass = ++hub->pass;
    for (link = hub->links; link != NULL; link = next) {
        next = link->next;
        if (!link->accepted || link->pass == pass ||
            (settle != 0 &&
             (!link->uses_regions || link->settle_asked >= settle))) {
            continue;
        }
        link->pass = pass;
        link->settle_asked = settle != 0 ? settle : link->settle_asked;
        vnxi_link_ref(link);
        vnxi_mutex_unlock(&hub->lists);
        notify_one(link, frames);
        vnxi_mutex_lock(&hub->lists);
        next = link->listed ? link->next : hub->links;
        vnxi_link_unref(link);
    }
    vnxi_mutex_unlock(&hub->lists);
}

void
vnxi_hub_revoke(vnxi_hub_t *hub, uint64_t epoch, vnx_mem_t mem,
                const vnx_desc_t *descs, size_t count)
{
    vnxi_writer_t frames = {0};

    if (count == 0 || vnxi_fork_crossed(hub->forks)) {
        return;
    }
    for (size_t at = 0; at < count; at += VNXI_LINK_FRAME_REVOKES_MAX) {
        size_t left = count - at;
        vnxi_link_frame_revoke_t revoke = {
            .epoch = epoch,
            .mem = mem,
            .descs = descs + at,
            .count = left < VNXI_LINK_FRAME_REVOKES_MAX
                         ? left
                         : VNXI_LINK_FRAME_REVOKES_MAX,
        };
        vnxi_link_frame_write_revoke(&frames, &revoke);
    }
    notify_all(hub, &frames, 0);
    vnxi_writer_fini(&frames);
}

static bool
is_settled_lock_held(const vnxi_hub_t *hub, uint64_t token)
{
    const vnxi_link_t *link = hub->links;

    while (link != NULL && (link->settle_asked < token ||
                            link->settled >= token || vnxi_link_ended(link))) {
        link = link->next;
    }
    return link == NULL;
}

bool
vnxi_hub_settle(vnxi_hub_t *hub, bool closes)
{
    struct timespec until =
        vnxi_clock_timespec(vnxi_clock_deadline(VNXI_LINK_DRAIN_NS));
    vnxi_writer_t frames = {0};
    int late = 0;

    if (vnxi_fork_crossed(hub->forks)) {
        return true;
    }
    if (closes) { /* before the links that use regions are looked for */
        vnxi_mutex_lock(&hub->lists);
        hub->closes = true;
        vnxi_mutex_unlock(&hub->lists);
    }
    if (vnxi_hub_accepted(hub) == 0) {
        return true;
    }
    vnxi_mutex_lock(&hub->settle_lock);
    uint64_t token = ++hub->settle_token;
    if (closes) {
        vnxi_link_frame_write_closing(&frames);
    }
    vnxi_link_frame_write_token(&frames, VNXI_LINK_FRAME_SETTLE, token);
    notify_all(hub, &frames, token);
    vnxi_mutex_unlock(&hub->settle_lock);
    vnxi_writer_fini(&frames);
    vnxi_mutex_lock(&hub->lists);
    while (late == 0 && !is_settled_lock_held(hub, token)) {
        late = vnxi_cond_timedwait(&hub->settles, &hub->lists, &until);
    }
    vnxi_mutex_unlock(&hub->lists);
    return late == 0;
}

/* Find an accepted link; returns a reference, or NULL if it has ended. */
static vnxi_link_t *
find_accepted(vnxi_hub_t *hub, uint64_t link_id)
{
    vnxi_mutex_lock(&hub->lists);
    vnxi_link_t *link = hub->links;
    while (link != NULL && !(link->accepted && link->id == link_id)) {
        link = link->next;
    }
    if (link != NULL) {
        vnxi_link_ref(link);
    }
    vnxi_mutex_unlock(&hub->lists);
    return link;
}

vnx_status_t
vnxi_hub_send_control(vnxi_hub_t *hub, uint64_t link_id, const char *entry,
                      const vnxi_control_t *control, vnx_error_t *error)
{
    vnxi_link_t *link = find_accepted(hub, link_id);

    if (link == NULL) {
        vnxi_fork_fds_close(control->fds, control->fd_count);
        return vnxi_error_set(error, VNX_ERR_REMOTE_DISCONNECT,
                              "vnx_xfer_post",
                              "the connection to the peer has ended");
    }
    vnx_status_t status = vnxi_link_send_control(link, entry, control, error);
    vnxi_link_unref(link);
    return status;
}

size_t
vnxi_hub_accepted(const vnxi_hub_t *hub)
{
    return atomic_load(&hub->accepted);
}

/* -- End ------------------------------------------------------------------ */

static vnxi_link_t *
first_link(vnxi_hub_t *hub)
{
    vnxi_mutex_lock(&hub->lists);
    hub->closed = true;
    vnxi_link_t *link = hub->links;
    if (link != NULL) {
        vnxi_link_ref(link);
    }
    vnxi_mutex_unlock(&hub->lists);
    return link;
}

static void
close_links(vnxi_hub_t *hub)
{
    vnxi_link_t *link;

    while ((link = first_link(hub)) != NULL) {
        vnxi_link_close(link);
        vnxi_mutex_lock(&hub->loop);
        vnxi_link_detach(link); /* its closer may not have done so yet */
        vnxi_mutex_unlock(&hub->loop);
        vnxi_link_unref(link);
    }
}

static bool
has_more(vnxi_hub_t *hub)
{
    bool has_more = false;

    vnxi_mutex_lock(&hub->lists);
    for (vnxi_link_t *link = hub->links; link != NULL; link = link->next) {
        has_more |= vnxi_link_has_more(link);
    }
    vnxi_mutex_unlock(&hub->lists);
    return has_more;
}

/* Let queued messages leave; one time for all links. */
static void
drain_links(vnxi_hub_t *hub)
{
    static const struct timespec pause = {.tv_nsec = VNXI_LINK_PAUSE_NS};
    uint64_t end = vnxi_clock_deadline(VNXI_LINK_DRAIN_NS);

    while (has_more(hub) && vnxi_clock_ns() < end) {
        nanosleep(&pause, NULL);
    }
}

void
vnxi_hub_stop(vnxi_hub_t *hub)
{
    if (vnxi_fork_crossed(hub->forks) ||
        atomic_exchange(&hub->stopping, true)) {
        return;
    }
    drain_links(hub);
    vnxi_hub_wake(hub);
    hub->abandoned = !vnxi_thread_join(hub->thread, hub->fds);
    vnxi_mutex_lock(&hub->loop);
    hub->stopped = true;
    if (!is_lost(hub)) {
        vnxi_fork_fd_close(hub->listener);
        hub->listener = -1;
    }
    vnxi_mutex_unlock(&hub->loop);
    close_links(hub);
}

void
vnxi_hub_free(vnxi_hub_t *hub)
{
    if (hub == NULL || vnxi_fork_crossed(hub->forks)) {
        return;
    }
    vnxi_link_close_deferred(hub);
    if (!hub->abandoned) {
        hub_destroy(hub);
    }
}
