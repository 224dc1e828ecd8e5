/*
 * The life cycle of a link, and sending.  A frame is written on the caller's
 * thread.  If the socket does not take all of it, the rest is queued, and so
 * is everything after it until the loop has written the queue out.  This keeps
 * the order of the calls.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "base/error.h"
#include "base/fork.h"
#include "base/fork_fds.h"
#include "base/mutex.h"
#include "engine/native/shm/hub_private.h"

#define OPERATION "send_notif"

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
    bool is_up =
        link->fd >= 0 && !vnxi_link_ended(link) && poll(ends, 2, 0) == 0;
    vnxi_mutex_unlock(&link->send_lock);
    return is_up;
}

bool
vnxi_link_win(vnxi_link_t *link, vnxi_link_state_t state)
{
    int open = VNXI_LINK_OPEN;

    if (!atomic_compare_exchange_strong(&link->state, &open, (int)state)) {
        return false;
    }
    atomic_store(&link->over, true);
    return true;
}

/* -- Sending -------------------------------------------------------------- */

/* Start or stop waiting for room in the socket.  Requires send_lock. */
static void
watch_room(vnxi_link_t *link, bool watch)
{
    struct epoll_event event = {
        .events = watch ? EPOLLIN | EPOLLOUT : EPOLLIN,
        .data.u64 = vnxi_link_tag(link, 0),
    };

    epoll_ctl(link->hub->inner, EPOLL_CTL_MOD, link->fd, &event);
}

/* As sendmsg(), but 0 if the socket takes nothing now. */
static ssize_t
write_some(int fd, struct iovec *parts, size_t count)
{
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = count};
    ssize_t done;

    do {
        done = sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    } while (done < 0 && errno == EINTR);
    if (done < 0 && (errno == EAGAIN || errno == EWOULDBLOCK ||
                     errno == ENOBUFS || errno == ENOMEM)) {
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

static bool
queue_rest(vnxi_link_t *link, const struct iovec *parts, size_t count,
           size_t skip)
{
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
error_gone(vnx_error_t *error)
{
    return vnxi_error_set(error, VNX_ERR_REMOTE_DISCONNECT, OPERATION,
                          "the connection to the peer has ended");
}

/* Requires send_lock. */
static vnx_status_t
send_parts(vnxi_link_t *link, struct iovec *parts, size_t len,
           vnx_error_t *error)
{
    size_t queued = link->queue.bytes;
    ssize_t done = 0;

    if (link->fd < 0 || vnxi_link_ended(link)) {
        return error_gone(error);
    }
    /* An empty queue takes any frame: the limit is for frames that pile up. */
    if (queued > 0 && (queued >= VNXI_LINK_QUEUE_MAX ||
                       len > VNXI_LINK_QUEUE_MAX - queued)) {
        return vnxi_error_set(error, VNX_ERR_BACKEND, OPERATION,
                              "the peer does not read its messages: %zu bytes "
                              "are queued for it",
                              queued);
    }
    if (queued == 0) {
        done = write_some(link->fd, parts, 2);
        if (done < 0) {
            break_off(link);
            return error_gone(error);
        }
        if ((size_t)done == len) {
            return VNX_OK;
        }
    }
    if (!queue_rest(link, parts, 2, (size_t)done)) {
        break_off(link); /* a part of the frame has been sent */
        return vnxi_error_no_memory(error, OPERATION, len);
    }
    if (queued == 0) {
        watch_room(link, true);
    }
    return VNX_OK;
}

vnx_status_t
vnxi_link_send(vnxi_link_t *link, const void *head, size_t head_len,
               const void *body, size_t body_len, vnx_error_t *error)
{
    struct iovec parts[2] = {
        {.iov_base = (void *)(uintptr_t)head, .iov_len = head_len},
        {.iov_base = (void *)(uintptr_t)body, .iov_len = body_len},
    };

    vnxi_mutex_lock(&link->send_lock);
    vnx_status_t status = send_parts(link, parts, head_len + body_len, error);
    vnxi_mutex_unlock(&link->send_lock);
    return status;
}

vnx_status_t
vnxi_link_send_notif(vnxi_link_t *link, const void *message, size_t len,
                     vnx_error_t *error)
{
    unsigned char header[VNXI_LINK_FRAME_HEADER];

    if (vnxi_fork_crossed(link->forks)) {
        return vnxi_error_set(error, VNX_ERR_NOT_ALLOWED, OPERATION,
                              "the agent was created before this process was "
                              "forked");
    }
    if (len >= VNXI_LINK_FRAME_MAX) {
        return vnxi_error_set(
            error, VNX_ERR_INVALID_PARAM, OPERATION,
            "a message of %zu bytes is too long, the maximum "
            "is %u",
            len, VNXI_LINK_FRAME_MAX - 1);
    }
    vnxi_link_frame_header(VNXI_LINK_FRAME_NOTIF, len, header);
    return vnxi_link_send(link, header, sizeof header, message, len, error);
}

vnx_status_t
vnxi_link_ask(vnxi_link_t *link, uint64_t token, const vnxi_link_row_t *rows,
              size_t count, vnx_error_t *error)
{
    vnxi_writer_t writer = {0};
    vnx_status_t status;

    vnxi_link_frame_write_confirm(&writer, token, rows, count);
    if (writer.failed) {
        status = vnxi_error_no_memory(error, "add_remote_agent", writer.len);
    } else {
        status = vnxi_link_send(link, writer.data, writer.len, NULL, 0, error);
    }
    vnxi_writer_fini(&writer);
    return status;
}

/* Requires send_lock and a socket.  True: the queue is empty. */
static bool
flush_queue(vnxi_link_t *link)
{
    while (link->queue.bytes > 0) {
        struct iovec front;
        front.iov_base = (void *)(uintptr_t)vnxi_link_queue_front(
            &link->queue, &front.iov_len);
        ssize_t done = write_some(link->fd, &front, 1);
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
    if (link->fd >= 0 && (flush_queue(link) || link->queue.bytes == 0)) {
        watch_room(link, false);
    }
    vnxi_mutex_unlock(&link->send_lock);
}

/* -- Closing -------------------------------------------------------------- */

/* In the middle of a frame, BYE would be read as part of the frame.  So it is
 * sent only if the whole queue could be written. */
static void
say_bye(vnxi_link_t *link)
{
    unsigned char header[VNXI_LINK_FRAME_HEADER];
    struct iovec bye = {.iov_base = header, .iov_len = sizeof header};

    vnxi_mutex_lock(&link->send_lock);
    if (link->fd >= 0 && !vnxi_fds_lost(link->fds)) {
        if (flush_queue(link)) {
            vnxi_link_frame_header(VNXI_LINK_FRAME_BYE, 0, header);
            write_some(link->fd, &bye, 1);
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
    if (vnxi_fork_crossed(link->forks) ||
        !vnxi_link_win(link, VNXI_LINK_CLOSED)) {
        return;
    }
    say_bye(link);
    vnxi_hub_close_soon(link->hub, link);
}
