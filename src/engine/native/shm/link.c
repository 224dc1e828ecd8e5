/*
 * A link: its life cycle, sending, its place in the hub, and closing.
 *
 * A frame is written on the caller's thread.  If the socket does not take all
 * of it, the rest is queued, and so is everything after it until the loop has
 * written the queue out.  This keeps the order of the calls.
 *
 * Closing is deferred: the thread that ends a link pushes it on the hub's
 * stack `deferred`, and the holder of `loop` closes it between two rounds.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/fork.h"
#include "base/fork_fds.h"
#include "engine/native/shm/hub_private.h"

#define OPEN "vnx_agent_load_metadata"
#define SEND "vnx_agent_send_notif"
#define CONTROL "vnx_xfer_post"
#define SHOWN_NAME_MAX 100u
#define REFUSED_WAIT_NS (10u * UINT64_C(1000000))

/* -- Life cycle ----------------------------------------------------------- */

vnxi_link_t *
vnxi_link_new(vnxi_hub_t *hub, int fd, int pidfd, pid_t pid)
{
    vnxi_link_t *link = calloc(1, sizeof *link);

    if (link == NULL) {
        return NULL;
    }
    atomic_init(&link->users, 1);
    atomic_init(&link->refs, 1);
    atomic_init(&link->state, VNXI_LINK_OPEN);
    link->hub = hub;
    link->forks = vnxi_fork_count();
    link->fds = hub->fds;
    link->fd = fd;
    link->pidfd = pidfd;
    link->pid = pid;
    vnxi_mutex_init(&link->send_lock, VNXI_RANK_LINK_SEND);
    return link;
}

void
vnxi_link_drop_fds(vnxi_link_t *link, size_t count)
{
    bool are_lost = vnxi_fds_lost(link->fds);

    for (size_t i = 0; i < count && !are_lost; i++) {
        vnxi_fork_fds_close(link->fd_sets[i].fds, link->fd_sets[i].count);
    }
    link->fd_set_count -= count;
    if (link->fd_set_count > 0) {
        memmove(link->fd_sets, link->fd_sets + count,
                link->fd_set_count * sizeof *link->fd_sets);
    }
}

void
vnxi_link_ref(vnxi_link_t *link)
{
    atomic_fetch_add_explicit(&link->refs, 1, memory_order_relaxed);
}

void
vnxi_link_unref(vnxi_link_t *link)
{
    if (atomic_fetch_sub(&link->refs, 1) != 1) {
        return;
    }
    if (!vnxi_fds_lost(link->fds)) {
        vnxi_fork_fd_close(link->fd);
        vnxi_fork_fd_close(link->pidfd);
    }
    vnxi_link_queue_clear(&link->queue);
    vnxi_link_drop_fds(link, link->fd_set_count);
    free(link->fd_sets);
    vnxi_link_frame_reader_fini(&link->reader);
    vnxi_mutex_destroy(&link->send_lock);
    free(link->sender);
    free(link);
}

vnxi_link_t *
vnxi_link_retain(vnxi_link_t *link)
{
    atomic_fetch_add_explicit(&link->users, 1, memory_order_relaxed);
    return link;
}

void
vnxi_link_release(vnxi_link_t *link)
{
    if (link == NULL || vnxi_fork_crossed(link->forks) ||
        atomic_fetch_sub(&link->users, 1) != 1) {
        return;
    }
    vnxi_link_close(link);
    vnxi_link_unref(link);
}

void *
vnxi_link_cookie(const vnxi_link_t *link)
{
    return link->cookie;
}

int
vnxi_link_pidfd(const vnxi_link_t *link)
{
    return link->pidfd;
}

bool
vnxi_link_ended(const vnxi_link_t *link)
{
    return atomic_load_explicit(&link->over, memory_order_acquire);
}

bool
vnxi_link_is_up(vnxi_link_t *link)
{
    vnxi_mutex_lock(&link->send_lock);
    struct pollfd ends[] = {{.fd = link->fd, .events = POLLRDHUP},
                            {.fd = link->pidfd, .events = POLLIN}};
    bool is_up = link->fd >= 0 && !vnxi_link_ended(link) &&
                 !vnxi_fds_lost(link->fds) && poll(ends, 2, 0) == 0;
    vnxi_mutex_unlock(&link->send_lock);
    return is_up;
}

bool
vnxi_link_try_end(vnxi_link_t *link, vnxi_link_state_t state)
{
    int open = VNXI_LINK_OPEN;

    if (!atomic_compare_exchange_strong(&link->state, &open, (int)state)) {
        return false;
    }
    atomic_store(&link->over, true);
    return true;
}

/* The name comes from outside: keep only printable characters, and only the
 * first SHOWN_NAME_MAX. */
bool
vnxi_link_note_refuser(vnxi_link_t *link,
                       const vnxi_link_frame_refuse_t *refuse)
{
    size_t len =
        refuse->name_len < SHOWN_NAME_MAX ? refuse->name_len : SHOWN_NAME_MAX;

    free(link->sender);
    link->sender = calloc(1, len + 1);
    if (link->sender == NULL) {
        return false;
    }
    for (size_t i = 0; i < len; i++) {
        link->sender[i] =
            vnxi_error_printable(((const unsigned char *)refuse->name)[i]);
    }
    return true;
}

/* -- Sending -------------------------------------------------------------- */

/* Have the loop write the queue: when the socket has room or, if that is not
 * what is missing, in a while.  Requires send_lock. */
static void
expect_room(vnxi_link_t *link)
{
    bool watch = link->queue.bytes > 0 && !link->is_refused;
    struct epoll_event event = {
        .events = watch ? EPOLLIN | EPOLLOUT : EPOLLIN,
        .data.u64 = vnxi_link_tag(link, 0),
    };
    uint64_t never = 0;

    if (watch != link->is_watched) {
        link->is_watched = watch;
        epoll_ctl(link->hub->inner, EPOLL_CTL_MOD, link->fd, &event);
    }
    if (link->queue.bytes > 0 && link->is_refused &&
        atomic_compare_exchange_strong(&link->hub->flush, &never,
                                       vnxi_clock_deadline(REFUSED_WAIT_NS))) {
        vnxi_hub_wake(link->hub);
    }
}

typedef struct fd_list {
    const int *fds;
    size_t count;
} fd_list_t;

/* As sendmsg(), but 0 if the socket takes nothing now.  The descriptors go
 * with the first byte.  Requires send_lock. */
static ssize_t
write_some(vnxi_link_t *link, struct iovec *parts, size_t count, fd_list_t fds)
{
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = count};
    union {
        struct cmsghdr header; /* for its alignment */
        unsigned char room[CMSG_SPACE(VNXI_CONTROL_FDS_MAX * sizeof(int))];
    } control;
    ssize_t done;

    if (vnxi_fds_lost(link->fds)) {
        errno = EBADF; /* the number may be another file's by now */
        return -1;
    }
    if (fds.count > 0) {
        size_t size = fds.count * sizeof *fds.fds;
        message.msg_control = control.room;
        message.msg_controllen = CMSG_SPACE(size);
        control.header = (struct cmsghdr){.cmsg_len = CMSG_LEN(size),
                                          .cmsg_level = SOL_SOCKET,
                                          .cmsg_type = SCM_RIGHTS};
        memcpy(CMSG_DATA(&control.header), fds.fds, size);
    }
    do {
        done = sendmsg(link->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    } while (done < 0 && errno == EINTR);
    /* All processes of the user have sent too many that were not received. */
    link->is_refused = done < 0 && errno == ETOOMANYREFS;
    if (done < 0 &&
        (errno == EAGAIN || errno == EWOULDBLOCK || errno == ENOBUFS ||
         errno == ENOMEM || link->is_refused)) {
        return 0;
    }
    return done;
}

/* End a stream that cannot be continued.  The loop then reads its end. */
static void
break_off(vnxi_link_t *link)
{
    atomic_store(&link->over, true);
    vnxi_link_queue_clear(&link->queue);
    if (!vnxi_fds_lost(link->fds)) {
        shutdown(link->fd, SHUT_RDWR);
    }
}

/* Queue what is left after `skip` bytes.  Descriptors are sent with a frame in
 * one part. */
static bool
queue_rest(vnxi_link_t *link, const struct iovec *parts, size_t count,
           size_t skip, fd_list_t fds)
{
    if (skip == 0 && fds.count > 0) {
        return vnxi_link_queue_add_fds(&link->queue, parts[0].iov_base,
                                       parts[0].iov_len, fds.fds, fds.count);
    }
    for (size_t i = 0; i < count; i++) {
        size_t len = parts[i].iov_len;
        size_t cut = skip < len ? skip : len;
        skip -= cut;
        if (cut < len &&
            !vnxi_link_queue_add(&link->queue,
                                 (const char *)parts[i].iov_base + cut,
                                 len - cut)) {
            return false;
        }
    }
    return true;
}

static vnx_status_t
error_gone(const char *operation, vnx_error_t *error)
{
    return vnxi_error_set(error, VNX_ERR_REMOTE_DISCONNECT, operation,
                          "the connection to the peer has ended");
}

/* Requires send_lock.  *queued_p: the queue closes the descriptors. */
static vnx_status_t
send_parts(vnxi_link_t *link, struct iovec *parts, size_t len, fd_list_t fds,
           bool *queued_p, const char *operation, vnx_error_t *error)
{
    size_t queued = link->queue.bytes;
    ssize_t done = 0;

    if (link->fd < 0 || vnxi_link_ended(link)) {
        return error_gone(operation, error);
    }
    /* An empty queue takes any frame: the limit is for frames that pile up. */
    if (queued > 0 && (queued >= VNXI_LINK_QUEUE_MAX ||
                       len > VNXI_LINK_QUEUE_MAX - queued)) {
        return vnxi_error_set(error, VNX_ERR_BACKEND, operation,
                              "the peer does not read its messages: %zu bytes "
                              "are queued for it",
                              queued);
    }
    if (fds.count > 0 &&
        link->queue.fds + fds.count > VNXI_LINK_QUEUE_FDS_MAX) {
        return vnxi_error_set(error, VNX_ERR_BACKEND, operation,
                              "the peer does not read its messages: %zu "
                              "descriptors are queued for it",
                              link->queue.fds);
    }
    if (queued == 0) {
        done = write_some(link, parts, 2, fds);
        if (done < 0) {
            break_off(link);
            return error_gone(operation, error);
        }
        if ((size_t)done == len) {
            return VNX_OK;
        }
    }
    if (!queue_rest(link, parts, 2, (size_t)done, fds)) {
        break_off(link); /* a part of the frame has been sent */
        return vnxi_error_no_memory(error, operation, len);
    }
    *queued_p = done == 0;
    expect_room(link);
    return VNX_OK;
}

/* Send a frame given as header and body, or whole frames and no body.  Sends
 * or queues all or nothing. */
static vnx_status_t
send_all(vnxi_link_t *link, struct iovec head, struct iovec body,
         const char *operation, vnx_error_t *error)
{
    struct iovec parts[2] = {head, body};
    bool is_queued;

    vnxi_mutex_lock(&link->send_lock);
    vnx_status_t status =
        send_parts(link, parts, head.iov_len + body.iov_len, (fd_list_t){0},
                   &is_queued, operation, error);
    vnxi_mutex_unlock(&link->send_lock);
    return status;
}

vnx_status_t
vnxi_link_send(vnxi_link_t *link, const vnxi_writer_t *frames,
               vnx_error_t *error)
{
    if (frames->failed) {
        return vnxi_error_no_memory(error, OPEN, frames->len);
    }
    return send_all(
        link, (struct iovec){.iov_base = frames->data, .iov_len = frames->len},
        (struct iovec){.iov_len = 0}, OPEN, error);
}

vnx_status_t
vnxi_link_send_notif(vnxi_link_t *link, const void *message, size_t len,
                     vnx_error_t *error)
{
    unsigned char header[VNXI_LINK_FRAME_HEADER];

    if (vnxi_fork_crossed(link->forks)) {
        return vnxi_error_set(error, VNX_ERR_NOT_ALLOWED, SEND,
                              "the agent was created before this process was "
                              "forked");
    }
    if (len >= VNXI_LINK_FRAME_MAX) {
        return vnxi_error_set(
            error, VNX_ERR_INVALID_PARAM, SEND,
            "a message of %zu bytes is too long, the maximum "
            "is %u",
            len, VNXI_LINK_FRAME_MAX - 1);
    }
    if (atomic_load(&link->hub->stopping)) {
        return error_gone(SEND, error); /* vnxi_hub_stop() drains the queue */
    }
    vnxi_link_frame_header(VNXI_LINK_FRAME_NOTIF, len, header);
    return send_all(
        link, (struct iovec){.iov_base = header, .iov_len = sizeof header},
        (struct iovec){.iov_base = (void *)(uintptr_t)message, .iov_len = len},
        SEND, error);
}

vnx_status_t
vnxi_link_ask(vnxi_link_t *link, uint64_t token, const vnxi_link_row_t *rows,
              size_t count, vnx_error_t *error)
{
    vnxi_writer_t writer = {0};

    vnxi_link_frame_write_confirm(&writer, token, rows, count);
    vnx_status_t status = vnxi_link_send(link, &writer, error);
    vnxi_writer_fini(&writer);
    return status;
}

vnx_status_t
vnxi_link_send_settled(vnxi_link_t *link, uint64_t token, vnx_error_t *error)
{
    vnxi_writer_t writer = {0};

    vnxi_link_frame_write_token(&writer, VNXI_LINK_FRAME_SETTLED, token);
    vnx_status_t status = vnxi_link_send(link, &writer, error);
    vnxi_writer_fini(&writer);
    return status;
}

static vnx_status_t
send_with_fds(vnxi_link_t *link, const vnxi_writer_t *frame, fd_list_t fds,
              vnx_error_t *error)
{
    struct iovec parts[2] = {{.iov_base = frame->data, .iov_len = frame->len}};
    bool is_queued = false;

    vnxi_mutex_lock(&link->send_lock);
    vnx_status_t status =
        frame->failed ? vnxi_error_no_memory(error, CONTROL, frame->len)
                      : send_parts(link, parts, frame->len, fds, &is_queued,
                                   CONTROL, error);
    vnxi_mutex_unlock(&link->send_lock);
    if (!is_queued) {
        vnxi_fork_fds_close(fds.fds, fds.count);
    }
    return status;
}

vnx_status_t
vnxi_link_send_control(vnxi_link_t *link, const char *entry,
                       const vnxi_control_t *control, vnx_error_t *error)
{
    const vnxi_link_frame_control_t frame = {
        .entry = entry,
        .entry_len = strlen(entry),
        .data = control->data,
        .len = control->len,
        .fd_count = control->fd_count,
    };
    vnxi_writer_t writer = {0};

    vnxi_link_frame_write_control(&writer, &frame);
    vnx_status_t status = send_with_fds(
        link, &writer, (fd_list_t){control->fds, control->fd_count}, error);
    vnxi_writer_fini(&writer);
    return status;
}

/* Requires send_lock and a socket.  True: the queue is empty. */
static bool
flush_queue(vnxi_link_t *link)
{
    while (link->queue.bytes > 0) {
        struct iovec front;
        fd_list_t fds;
        front.iov_base = (void *)(uintptr_t)vnxi_link_queue_front(
            &link->queue, &front.iov_len);
        fds.fds = vnxi_link_queue_fds(&link->queue, &fds.count);
        ssize_t done = write_some(link, &front, 1, fds);
        if (done == 0) {
            return false;
        }
        if (done < 0) {
            break_off(link);
            return false;
        }
        vnxi_link_queue_consume(&link->queue, (size_t)done);
    }
    return true;
}

void
vnxi_link_flush(vnxi_link_t *link)
{
    vnxi_mutex_lock(&link->send_lock);
    if (link->fd >= 0) {
        flush_queue(link);
        expect_room(link);
    }
    vnxi_mutex_unlock(&link->send_lock);
}

void
vnxi_link_flush_all(vnxi_hub_t *hub)
{
    vnxi_mutex_lock(&hub->lists);
    for (vnxi_link_t *link = hub->links; link != NULL; link = link->next) {
        vnxi_link_flush(link);
    }
    vnxi_mutex_unlock(&hub->lists);
}

/* -- The links of a hub --------------------------------------------------- */

/* Requires the link's send_lock. */
static int
watch_link(vnxi_link_t *link)
{
    const vnxi_hub_t *hub = link->hub;
    uint32_t events = link->queue.bytes > 0 ? EPOLLIN | EPOLLOUT : EPOLLIN;

    link->is_watched = link->queue.bytes > 0;
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
    vnxi_cond_broadcast(&hub->settles);
}

/* Holds both locks: an event may arrive before the second descriptor is
 * watched, and must not detach the link half-way. */
vnx_status_t
vnxi_link_attach(vnxi_link_t *link, vnx_error_t *error)
{
    vnxi_hub_t *hub = link->hub;
    vnx_status_t status = VNX_OK;

    vnxi_mutex_lock(&hub->lists);
    vnxi_mutex_lock(&link->send_lock);
    if (hub->closed) {
        status =
            vnxi_error_set(error, VNX_ERR_CLOSED, OPEN, "the agent is closed");
    } else if (watch_link(link) != 0) {
        status = vnxi_error_set(error, VNX_ERR_BACKEND, OPEN,
                                "the peer's socket cannot be watched: %s",
                                vnxi_errno(errno));
    } else {
        list_add(hub, link);
    }
    vnxi_mutex_unlock(&link->send_lock);
    vnxi_mutex_unlock(&hub->lists);
    return status;
}

void
vnxi_link_add_silent(vnxi_link_t *link, uint64_t deadline)
{
    vnxi_hub_t *hub = link->hub;

    link->hello_deadline = deadline;
    link->silent_prev = hub->silent_last;
    if (hub->silent_last != NULL) {
        hub->silent_last->silent_next = link;
    } else {
        hub->silent_first = link;
    }
    hub->silent_last = link;
    hub->silent_count++;
}

void
vnxi_link_not_silent(vnxi_link_t *link)
{
    vnxi_hub_t *hub = link->hub;

    if (link->hello_deadline == 0) {
        return;
    }
    if (link->silent_prev != NULL) {
        link->silent_prev->silent_next = link->silent_next;
    } else {
        hub->silent_first = link->silent_next;
    }
    if (link->silent_next != NULL) {
        link->silent_next->silent_prev = link->silent_prev;
    } else {
        hub->silent_last = link->silent_prev;
    }
    link->silent_next = link->silent_prev = NULL;
    link->hello_deadline = 0;
    hub->silent_count--;
}

/* The descriptor is removed from the epoll set explicitly: if a forked child
 * holds the socket too, closing it here would leave it in the set. */
static void
close_socket(vnxi_link_t *link)
{
    const vnxi_hub_t *hub = link->hub;
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
vnxi_link_detach(vnxi_link_t *link)
{
    vnxi_hub_t *hub = link->hub;

    close_socket(link);
    vnxi_link_not_silent(link);
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
    }
    if (link->accepted && link->sender != NULL) {
        atomic_fetch_sub(&hub->accepted, 1);
        if (!hub->stopped) {
            hub->callbacks.asker_gone(hub->callbacks.context, link->id);
        }
    }
    vnxi_link_unref(link);
}

void
vnxi_link_defer_close(vnxi_link_t *link)
{
    vnxi_hub_t *hub = link->hub;
    vnxi_link_t *next = atomic_load(&hub->deferred);

    vnxi_link_ref(link);
    do {
        atomic_store(&link->deferred_next, next);
    } while (!atomic_compare_exchange_weak(&hub->deferred, &next, link));
}

void
vnxi_link_close_deferred(vnxi_hub_t *hub)
{
    vnxi_link_t *link = atomic_exchange(&hub->deferred, NULL);

    while (link != NULL) {
        vnxi_link_t *next = atomic_load(&link->deferred_next);
        vnxi_link_detach(link);
        vnxi_link_unref(link);
        link = next;
    }
}

/* -- Closing -------------------------------------------------------------- */

bool
vnxi_link_has_more(vnxi_link_t *link)
{
    vnxi_mutex_lock(&link->send_lock);
    bool has_more = link->fd >= 0 && !vnxi_link_ended(link) &&
                    !vnxi_fds_lost(link->fds) && !flush_queue(link) &&
                    !vnxi_link_ended(link);
    vnxi_mutex_unlock(&link->send_lock);
    return has_more;
}

void
vnxi_link_drain(vnxi_link_t *link)
{
    static const struct timespec pause = {.tv_nsec = VNXI_LINK_PAUSE_NS};
    uint64_t end = vnxi_clock_deadline(VNXI_LINK_DRAIN_NS);

    while (!vnxi_fork_crossed(link->forks) && vnxi_link_has_more(link) &&
           vnxi_clock_ns() < end) {
        nanosleep(&pause, NULL);
    }
}

/* In the middle of a frame, BYE would be read as part of the frame.  So it is
 * sent only if the whole queue could be written. */
static void
send_bye(vnxi_link_t *link)
{
    unsigned char header[VNXI_LINK_FRAME_HEADER];
    struct iovec bye = {.iov_base = header, .iov_len = sizeof header};

    vnxi_mutex_lock(&link->send_lock);
    if (link->fd >= 0 && !vnxi_fds_lost(link->fds)) {
        if (flush_queue(link)) {
            vnxi_link_frame_header(VNXI_LINK_FRAME_BYE, 0, header);
            write_some(link, &bye, 1, (fd_list_t){0});
        }
        /* The loop need not wake up for an end that is caused here.  And a
         * forked child may hold the socket: closing alone would not end it. */
        epoll_ctl(link->hub->inner, EPOLL_CTL_DEL, link->fd, NULL);
        shutdown(link->fd, SHUT_RDWR);
    }
    vnxi_mutex_unlock(&link->send_lock);
}

void
vnxi_link_close(vnxi_link_t *link)
{
    vnxi_hub_t *hub = link->hub;

    if (vnxi_fork_crossed(link->forks) ||
        !vnxi_link_try_end(link, VNXI_LINK_CLOSED)) {
        return;
    }
    send_bye(link);
    vnxi_link_defer_close(link);
    if (vnxi_mutex_trylock(&hub->loop) != 0) {
        vnxi_hub_wake(hub); /* its holder may have closed them already */
        return;
    }
    vnxi_link_close_deferred(hub);
    vnxi_mutex_unlock(&hub->loop);
}
