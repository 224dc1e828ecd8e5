/*
 * The links of a hub: adding, removing, and iterating over them.
 */
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>

#include "base/error.h"
#include "base/fork.h"
#include "base/fork_fds.h"
#include "engine/native/shm/hub_private.h"

#define OPERATION "add_remote_agent"

/* -- Adding and removing -------------------------------------------------- */

/* Requires the link's send_lock. */
static int
watch_link(const vnxi_hub_t *hub, vnxi_link_t *link)
{
    uint32_t events = link->queue.bytes > 0 ? EPOLLIN | EPOLLOUT : EPOLLIN;

    if (vnxi_hub_watch(hub->inner, link->fd, events, vnxi_link_tag(link, 0)) !=
        0) {
        return -1;
    }
    if (link->pidfd >= 0 &&
        vnxi_hub_watch(hub->inner, link->pidfd, EPOLLIN,
                       vnxi_link_tag(link, VNXI_LINK_TAG_PIDFD)) != 0) {
        int cause = errno;
        epoll_ctl(hub->inner, EPOLL_CTL_DEL, link->fd, NULL);
        errno = cause;
        return -1;
    }
    return 0;
}

static void
list_add(vnxi_hub_t *hub, vnxi_link_t *link)
{
    vnxi_link_ref(link);
    link->listed = true;
    link->next = hub->links;
    if (link->next != NULL) {
        link->next->prev = link;
    }
    hub->links = link;
}

static void
list_remove(vnxi_hub_t *hub, vnxi_link_t *link)
{
    if (link->prev != NULL) {
        link->prev->next = link->next;
    } else {
        hub->links = link->next;
    }
    if (link->next != NULL) {
        link->next->prev = link->prev;
    }
    link->next = link->prev = NULL;
    link->listed = false;
}

/* Holds both locks: an event may arrive before the second descriptor is
 * watched, and must not detach the link half-way. */
vnx_status_t
vnxi_hub_attach(vnxi_hub_t *hub, vnxi_link_t *link, vnx_error_t *error)
{
    vnx_status_t status = VNX_OK;

    vnxi_mutex_lock(&hub->lists);
    vnxi_mutex_lock(&link->send_lock);
    if (hub->closed) {
        status = vnxi_error_set(error, VNX_ERR_CLOSED, OPERATION,
                                "the agent is closed");
    } else if (watch_link(hub, link) != 0) {
        status = vnxi_error_set(error, VNX_ERR_BACKEND, OPERATION,
                                "the peer's socket cannot be watched: %s",
                                vnxi_errno(errno));
    } else {
        list_add(hub, link);
    }
    vnxi_mutex_unlock(&link->send_lock);
    vnxi_mutex_unlock(&hub->lists);
    return status;
}

/* The descriptor is removed from the epoll set explicitly: if a forked child
 * holds the socket too, closing it here would leave it in the set. */
static void
close_socket(vnxi_hub_t *hub, vnxi_link_t *link)
{
    bool lost = vnxi_fds_lost(link->fds);

    vnxi_mutex_lock(&link->send_lock);
    if (link->fd >= 0 && lost) {
        link->fd = -1;
        vnxi_link_queue_clear(&link->queue);
    } else if (link->fd >= 0) {
        epoll_ctl(hub->inner, EPOLL_CTL_DEL, link->fd, NULL);
        if (link->pidfd >= 0) {
            epoll_ctl(hub->inner, EPOLL_CTL_DEL, link->pidfd, NULL);
        }
        vnxi_fork_fd_close(link->fd);
        link->fd = -1;
        vnxi_link_queue_clear(&link->queue);
    }
    vnxi_mutex_unlock(&link->send_lock);
}

void
vnxi_hub_detach(vnxi_hub_t *hub, vnxi_link_t *link)
{
    close_socket(hub, link);
    vnxi_hub_not_silent(hub, link);
    vnxi_mutex_lock(&hub->lists);
    bool listed = link->listed;
    if (listed) {
        list_remove(hub, link);
    }
    vnxi_mutex_unlock(&hub->lists);
    if (!listed) {
        return;
    }
    if (link->accepted) {
        hub->accepted_count--;
        if (link->sender != NULL) {
            atomic_fetch_sub(&hub->accepted, 1);
        }
    }
    vnxi_link_unref(link);
}

void
vnxi_hub_defer_close(vnxi_hub_t *hub, vnxi_link_t *link)
{
    vnxi_link_t *next = atomic_load(&hub->deferred);

    vnxi_link_ref(link);
    do {
        atomic_store(&link->deferred_next, next);
    } while (!atomic_compare_exchange_weak(&hub->deferred, &next, link));
}

void
vnxi_hub_close_deferred(vnxi_hub_t *hub)
{
    vnxi_link_t *link = atomic_exchange(&hub->deferred, NULL);

    while (link != NULL) {
        vnxi_link_t *next = atomic_load(&link->deferred_next);
        vnxi_hub_detach(hub, link);
        vnxi_link_unref(link);
        link = next;
    }
}

void
vnxi_hub_close_soon(vnxi_hub_t *hub, vnxi_link_t *link)
{
    vnxi_hub_defer_close(hub, link);
    if (vnxi_mutex_trylock(&hub->loop) != 0) {
        vnxi_hub_wake(hub); /* the holder of the loop may have reaped
                               already */
        return;
    }
    vnxi_hub_close_deferred(hub);
    vnxi_mutex_unlock(&hub->loop);
}

/* -- All links ------------------------------------------------------------ */

/* Send the frames.  If a peer cannot be notified, close its link: it must not
 * go on using a region that is gone, and has to load metadata again.  A peer
 * that has left need not be notified; data it sent before is still read. */
static void
tell(vnxi_link_t *link, const vnxi_writer_t *frames)
{
    vnx_status_t status =
        frames->failed
            ? VNX_ERR_NO_MEMORY
            : vnxi_link_send(link, frames->data, frames->len, NULL, 0, NULL);

    if (status != VNX_OK && status != VNX_ERR_REMOTE_DISCONNECT) {
        vnxi_link_close(link);
    }
}

/* Sends without holding a lock.  If a link leaves the list meanwhile, the
 * iteration restarts and skips the links that were notified. */
static void
tell_all(vnxi_hub_t *hub, const vnxi_writer_t *frames)
{
    vnxi_link_t *link, *next;

    vnxi_mutex_lock(&hub->lists);
    uint64_t pass = ++hub->pass;
    for (link = hub->links; link != NULL; link = next) {
        next = link->next;
        if (!link->accepted || link->pass == pass) {
            continue;
        }
        link->pass = pass;
        vnxi_link_ref(link);
        vnxi_mutex_unlock(&hub->lists);
        tell(link, frames);
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
    tell_all(hub, &frames);
    vnxi_writer_fini(&frames);
}

size_t
vnxi_hub_accepted(const vnxi_hub_t *hub)
{
    return atomic_load(&hub->accepted);
}
