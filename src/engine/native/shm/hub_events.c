/*
 * Handles the loop's events: accepts, reads, acts on frames, and ends links.
 * Everything in this file runs with `loop` held.
 *
 * A link delivers at most VNXI_HUB_INPUT bytes per round, so a flood on one
 * link does not delay the others.  An end is handled after everything sent
 * before it: the end of the stream comes after the data, and when a pidfd
 * reports the end of a process, the socket is drained first.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/fork_fds.h"
#include "base/log.h"
#include "base/pidfd.h"
#include "engine/native/shm/hub_private.h"
#include "engine/native/shm/proc.h"
#include "engine/native/shm/ptrace.h"

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

#define EVENTS_MAX 64
#define ACCEPTS_MAX 64    /* per round */
#define STRANGERS_MAX 256 /* per round; rejecting is cheap */
#define ACCEPTED_MAX 65536u
#define SILENT_MAX 256u
#define HELLO_WAIT_NS (5u * UINT64_C(1000000000))
#define NO_FDS_WAIT_NS (100u * UINT64_C(1000000))

/* Why a link ends; LINK_CONTINUES: it does not end. */
typedef enum link_end {
    LINK_CONTINUES,
    LINK_END_OF_STREAM,
    LINK_SAID_BYE,
    LINK_PROCESS_ENDED,
    LINK_REFUSED, /* link->sender has the name of the refusing agent */
    LINK_MALFORMED,
    LINK_NO_MEMORY,
    LINK_SOCKET_FAILED,
} link_end_t;

/* -- Ends ----------------------------------------------------------------- */

/* A process that is killed closes its sockets before its pidfd becomes
 * readable. */
static link_end_t
end_of_stream(const vnxi_link_t *link)
{
    vnxi_proc_stat_t stat;

    if (link->accepted) {
        return LINK_END_OF_STREAM;
    }
    int cause = vnxi_proc_stat(link->pid, &stat);
    return cause == ESRCH || (cause == 0 && stat.exiting) ? LINK_PROCESS_ENDED
                                                          : LINK_END_OF_STREAM;
}

static void
end_text(const vnxi_link_t *link, link_end_t end, char *text_p, size_t size)
{
    static const char *const texts[] = {
        [LINK_END_OF_STREAM] = "the peer closed the connection",
        [LINK_SAID_BYE] = "the peer said goodbye",
        [LINK_MALFORMED] = "the peer sent an invalid message",
        [LINK_NO_MEMORY] = "no memory for a message from the peer",
        [LINK_SOCKET_FAILED] = "the connection to the peer failed",
    };

    if (end == LINK_PROCESS_ENDED) {
        snprintf(text_p, size, "process %d ended", (int)link->pid);
    } else if (end == LINK_REFUSED) {
        snprintf(text_p, size, VNXI_LINK_REFUSED_TEXT, link->sender);
    } else {
        snprintf(text_p, size, "%s", texts[end]);
    }
}

static void
link_end(vnxi_hub_t *hub, vnxi_link_t *link, link_end_t end)
{
    char cause[256];

    if (!vnxi_link_try_end(link, VNXI_LINK_ENDED)) {
        return;
    }
    vnxi_link_defer_close(link);
    vnxi_link_detach(link);
    end_text(link, end, cause, sizeof cause);
    if (link->accepted) {
        vnxi_log(VNX_LOG_DEBUG, hub->name,
                 "the connection from process %d has ended: %s",
                 (int)link->pid, cause);
    } else {
        hub->callbacks.ended(hub->callbacks.context, link, cause);
    }
}

/* -- Frames --------------------------------------------------------------- */

/* Send a frame made by the loop.  An opener that has left does not need it.
 * The link of an opener that does not read its answers ends. */
static link_end_t
answer(vnxi_link_t *link, vnxi_writer_t *frame)
{
    vnx_status_t status = vnxi_link_send(link, frame, NULL);

    vnxi_writer_fini(frame);
    return status == VNX_OK || status == VNX_ERR_REMOTE_DISCONNECT
               ? LINK_CONTINUES
               : LINK_NO_MEMORY;
}

/* HELLO is for another agent.  The opener can still read the refusal after the
 * end of the link. */
static link_end_t
refuse(vnxi_hub_t *hub, vnxi_link_t *link)
{
    vnxi_writer_t frame = {0};
    const vnxi_link_frame_refuse_t who = {
        .instance = hub->instance,
        .name = hub->name,
        .name_len = hub->name_len,
    };

    vnxi_link_frame_write_refuse(&frame, &who);
    (void)answer(link, &frame);
    return LINK_MALFORMED;
}

static bool
is_for_us(const vnxi_hub_t *hub, const vnxi_link_frame_hello_t *hello)
{
    return memcmp(hello->target, hub->instance, VNXI_SHM_ID_SIZE) == 0 &&
           hello->target_name_len == hub->name_len &&
           memcmp(hello->target_name, hub->name, hub->name_len) == 0;
}

static link_end_t
on_hello(vnxi_hub_t *hub, vnxi_link_t *link, const vnxi_link_frame_t *frame)
{
    vnxi_link_frame_hello_t hello;

    if (!vnxi_link_frame_read_hello(frame, &hello)) {
        return LINK_MALFORMED;
    }
    if (!is_for_us(hub, &hello)) {
        return refuse(hub, link);
    }
    if (hub->allows_ptrace) {
        vnxi_ptrace_allow(); /* the opener waits for it: link_open.c */
    }
    link->sender = malloc(hello.name_len);
    if (link->sender == NULL) {
        return LINK_NO_MEMORY;
    }
    memcpy(link->sender, hello.name, hello.name_len);
    link->sender_len = hello.name_len;
    link->reader.allowed = VNXI_LINK_FRAME_BIT(VNXI_LINK_FRAME_NOTIF) |
                           VNXI_LINK_FRAME_BIT(VNXI_LINK_FRAME_CONFIRM) |
                           VNXI_LINK_FRAME_BIT(VNXI_LINK_FRAME_SETTLED) |
                           VNXI_LINK_FRAME_BIT(VNXI_LINK_FRAME_CONTROL) |
                           VNXI_LINK_FRAME_BIT(VNXI_LINK_FRAME_BYE);
    vnxi_link_not_silent(link);
    atomic_fetch_add(&hub->accepted, 1);
    vnxi_log(VNX_LOG_DEBUG, hub->name,
             "accepted a connection from agent '%.*s' (process %d)",
             (int)link->sender_len, link->sender, (int)link->pid);
    return LINK_CONTINUES;
}

static link_end_t
on_refuse(vnxi_link_t *link, const vnxi_link_frame_t *frame)
{
    vnxi_link_frame_refuse_t refuse;

    if (!vnxi_link_frame_read_refuse(frame, &refuse)) {
        return LINK_MALFORMED;
    }
    return vnxi_link_note_refuser(link, &refuse) ? LINK_REFUSED
                                                 : LINK_NO_MEMORY;
}

static link_end_t
on_revoke(vnxi_hub_t *hub, vnxi_link_t *link, const vnxi_link_frame_t *frame)
{
    uint64_t epoch;
    uint32_t count;

    if (!vnxi_link_frame_read_revoke(frame, &epoch, &count)) {
        return LINK_MALFORMED;
    }
    for (uint32_t i = 0; i < count; i++) {
        vnx_mem_t mem;
        vnx_desc_t desc = vnxi_link_frame_revoke_row(frame, i, &mem);
        hub->callbacks.revoked(hub->callbacks.context, link, epoch, mem,
                               &desc);
    }
    return LINK_CONTINUES;
}

/* Check some rows of a CONFIRM from `first` on; returns how many. */
static size_t
check_rows(vnxi_hub_t *hub, const vnxi_link_frame_t *frame, uint32_t first,
           uint32_t count, vnxi_link_answer_t *answer_p)
{
    vnxi_link_row_t rows[VNXI_HUB_ROWS_MAX];
    bool refused[VNXI_HUB_ROWS_MAX];
    uint32_t some =
        count - first < VNXI_HUB_ROWS_MAX ? count - first : VNXI_HUB_ROWS_MAX;

    for (uint32_t i = 0; i < some; i++) {
        rows[i] = vnxi_link_frame_confirm_row(frame, first + i);
    }
    uint64_t epoch =
        hub->callbacks.confirm(hub->callbacks.context, rows, some, refused);
    if (first == 0) {
        answer_p->epoch = epoch; /* the lowest epoch is valid for all rows */
    }
    for (uint32_t i = 0; i < some; i++) {
        if (refused[i]) {
            answer_p->refused[answer_p->count++] = first + i;
        }
    }
    return some;
}

static link_end_t
on_confirm(vnxi_hub_t *hub, vnxi_link_t *link, const vnxi_link_frame_t *frame)
{
    vnxi_link_answer_t said = {.count = 0};
    vnxi_writer_t reply = {0};
    uint32_t count, done = 0;

    if (!vnxi_link_frame_read_confirm(frame, &said.token, &count)) {
        return LINK_MALFORMED;
    }
    vnxi_mutex_lock(&hub->lists); /* before its regions are looked up */
    /* An opener without permission asks about no regions. */
    link->uses_regions = link->uses_regions || count > 0;
    bool closes = hub->closes;
    vnxi_mutex_unlock(&hub->lists);
    if (closes) {
        return LINK_CONTINUES; /* the opener has to wait for BYE */
    }
    do {
        done += (uint32_t)check_rows(hub, frame, done, count, &said);
    } while (done < count);
    vnxi_link_frame_write_confirmed(&reply, &said);
    return answer(link, &reply);
}

static link_end_t
on_confirmed(vnxi_hub_t *hub, vnxi_link_t *link,
             const vnxi_link_frame_t *frame)
{
    vnxi_link_answer_t said;

    return vnxi_link_frame_read_confirmed(frame, &said) &&
                   hub->callbacks.confirmed(hub->callbacks.context, link,
                                            &said)
               ? LINK_CONTINUES
               : LINK_MALFORMED;
}

static link_end_t
on_settle(vnxi_hub_t *hub, vnxi_link_t *link, const vnxi_link_frame_t *frame)
{
    uint64_t token;

    if (!vnxi_link_frame_read_token(frame, &token)) {
        return LINK_MALFORMED;
    }
    hub->callbacks.settle(hub->callbacks.context, link, token);
    return LINK_CONTINUES;
}

static link_end_t
on_settled(vnxi_hub_t *hub, vnxi_link_t *link, const vnxi_link_frame_t *frame)
{
    uint64_t token;

    if (!vnxi_link_frame_read_token(frame, &token)) {
        return LINK_MALFORMED;
    }
    vnxi_mutex_lock(&hub->lists);
    bool fits = token <= link->settle_asked && token > link->settled;
    if (fits) {
        link->settled = token;
        vnxi_cond_broadcast(&hub->settles);
    }
    vnxi_mutex_unlock(&hub->lists);
    return fits ? LINK_CONTINUES : LINK_MALFORMED;
}

/* Every frame that announces descriptors takes the set that came with it.  A
 * smaller set than announced was cut by the kernel, because this process has
 * too many descriptors. */
static link_end_t
on_control(vnxi_hub_t *hub, vnxi_link_t *link, const vnxi_link_frame_t *frame)
{
    vnxi_link_frame_control_t read;

    if (!vnxi_link_frame_read_control(frame, &read) ||
        (read.fd_count > 0 && (link->fd_set_count == 0 ||
                               link->fd_sets[0].count > read.fd_count))) {
        return LINK_MALFORMED;
    }
    vnxi_control_t control = {.data = read.data, .len = read.len};
    if (read.fd_count > 0 && link->fd_sets[0].count == read.fd_count) {
        control.fds = link->fd_sets[0].fds;
        control.fd_count = read.fd_count;
    }
    control.has_lost_fds = control.fd_count < read.fd_count;
    if (link->accepted) {
        hub->callbacks.question(hub->callbacks.context, read.entry,
                                read.entry_len, link->id, &control);
    } else {
        hub->callbacks.answered(hub->callbacks.context, read.entry,
                                read.entry_len, link, &control);
    }
    if (control.fd_count > 0) {
        link->fd_sets[0].count = 0; /* passed on */
    }
    if (read.fd_count > 0) {
        vnxi_link_drop_fds(link, 1);
    }
    return LINK_CONTINUES;
}

static link_end_t
on_frame(vnxi_hub_t *hub, vnxi_link_t *link, const vnxi_link_frame_t *frame)
{
    switch (frame->type) {
    case VNXI_LINK_FRAME_HELLO:
        return on_hello(hub, link, frame);
    case VNXI_LINK_FRAME_NOTIF:
        hub->callbacks.notif(hub->callbacks.context, link->sender,
                             link->sender_len, frame->body, frame->len);
        return LINK_CONTINUES;
    case VNXI_LINK_FRAME_REVOKE:
        return on_revoke(hub, link, frame);
    case VNXI_LINK_FRAME_BYE:
        return LINK_SAID_BYE;
    case VNXI_LINK_FRAME_CONFIRM:
        return on_confirm(hub, link, frame);
    case VNXI_LINK_FRAME_CONFIRMED:
        return on_confirmed(hub, link, frame);
    case VNXI_LINK_FRAME_REFUSE:
        return on_refuse(link, frame);
    case VNXI_LINK_FRAME_CONTROL:
        return on_control(hub, link, frame);
    case VNXI_LINK_FRAME_SETTLE:
        return on_settle(hub, link, frame);
    case VNXI_LINK_FRAME_SETTLED:
        return on_settled(hub, link, frame);
    case VNXI_LINK_FRAME_CLOSING:
        hub->callbacks.closing(hub->callbacks.context, link);
        return LINK_CONTINUES;
    }
    return LINK_MALFORMED;
}

static bool
link_is_open(const vnxi_link_t *link)
{
    return atomic_load(&link->state) == VNXI_LINK_OPEN;
}

/* A callback may close the link; after that nothing more is reported. */
static link_end_t
take_frames(vnxi_hub_t *hub, vnxi_link_t *link, size_t len)
{
    vnxi_link_frame_t frame;
    vnxi_link_frame_result_t result;
    link_end_t end = LINK_CONTINUES;

    vnxi_link_frame_reader_feed(&link->reader, hub->input, len);
    while (end == LINK_CONTINUES && link_is_open(link)) {
        result = vnxi_link_frame_reader_next(&link->reader, &frame);
        if (result == VNXI_LINK_FRAME_NEED_MORE) {
            break;
        }
        if (result == VNXI_LINK_FRAME_WHOLE) {
            end = on_frame(hub, link, &frame);
        } else {
            end = result == VNXI_LINK_FRAME_MALFORMED ? LINK_MALFORMED
                                                      : LINK_NO_MEMORY;
        }
    }
    return end;
}

/* -- Reading -------------------------------------------------------------- */

/* Descriptors come with the first byte of their frame, so only a frame whose
 * end is missing can still take some. */
static bool
has_stray_fds(const vnxi_link_t *link)
{
    return link->fd_set_count > 0 &&
           !vnxi_link_frame_reader_is_within(&link->reader);
}

/* The descriptors that came with one read belong to one frame: the kernel
 * returns before it comes to the next that has some.  False: too many, or no
 * memory; they are closed. */
static bool
take_fds(vnxi_link_t *link, struct msghdr *message)
{
    vnxi_link_fd_set_t set = {.count = 0};
    bool is_cut = (message->msg_flags & MSG_CTRUNC) != 0;

    for (struct cmsghdr *part = CMSG_FIRSTHDR(message); part != NULL;
         part = CMSG_NXTHDR(message, part)) {
        size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        if (part->cmsg_level == SOL_SOCKET && part->cmsg_type == SCM_RIGHTS &&
            count <= VNXI_CONTROL_FDS_MAX) {
            memcpy(set.fds, CMSG_DATA(part), count * sizeof(int));
            set.count = count;
        }
    }
    for (size_t i = 0; i < set.count; i++) {
        vnxi_fork_fd_own(set.fds[i]);
    }
    if (set.count == 0 && !is_cut) {
        return true;
    }
    if (link->fd_sets == NULL) {
        link->fd_sets = malloc(VNXI_LINK_FD_SETS * sizeof *link->fd_sets);
    }
    if (link->fd_sets == NULL || link->fd_set_count == VNXI_LINK_FD_SETS) {
        vnxi_fork_fds_close(set.fds, set.count);
        return false;
    }
    link->fd_sets[link->fd_set_count++] = set;
    return true;
}

/* As recv().  Openers get descriptors; those that come from an opener are
 * closed by the kernel. */
static ssize_t
receive(vnxi_hub_t *hub, vnxi_link_t *link)
{
    struct iovec input = {.iov_base = hub->input, .iov_len = VNXI_HUB_INPUT};
    union {
        struct cmsghdr header; /* for its alignment */
        unsigned char room[CMSG_SPACE(VNXI_CONTROL_FDS_MAX * sizeof(int))];
    } control;
    struct msghdr message = {.msg_iov = &input, .msg_iovlen = 1};

    if (link->accepted) {
        return recv(link->fd, hub->input, VNXI_HUB_INPUT, MSG_DONTWAIT);
    }
    message.msg_control = control.room;
    message.msg_controllen = sizeof control.room;
    ssize_t got = recvmsg(link->fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (got > 0 && !take_fds(link, &message)) {
        errno = EPROTO;
        return -1;
    }
    return got;
}

static link_end_t
read_once(vnxi_hub_t *hub, vnxi_link_t *link, size_t *got_p)
{
    ssize_t got = receive(hub, link);

    *got_p = got > 0 ? (size_t)got : 0;
    if (got > 0) {
        link_end_t end = take_frames(hub, link, (size_t)got);
        return end == LINK_CONTINUES && has_stray_fds(link) ? LINK_MALFORMED
                                                            : end;
    }
    /* A reset: the other end closed without reading everything. */
    if (got == 0 || errno == ECONNRESET) {
        return end_of_stream(link);
    }
    if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) {
        return LINK_CONTINUES;
    }
    return errno == EPROTO ? LINK_MALFORMED : LINK_SOCKET_FAILED;
}

static void
on_readable(vnxi_hub_t *hub, vnxi_link_t *link)
{
    size_t got;
    link_end_t end = read_once(hub, link, &got);

    if (end != LINK_CONTINUES) {
        link_end(hub, link, end);
    }
}

/* The data sent before the death is in the socket.  A child that holds the
 * other end may go on writing, so only the bytes present now are read. */
static void
on_death(vnxi_hub_t *hub, vnxi_link_t *link)
{
    link_end_t end = LINK_CONTINUES;
    size_t got = 1;
    int left = 0;

    ioctl(link->fd, FIONREAD, &left);
    while (left > 0 && got > 0 && end == LINK_CONTINUES &&
           link_is_open(link)) {
        end = read_once(hub, link, &got);
        left -= (int)got;
    }
    link_end(hub, link,
             end == LINK_SAID_BYE || end == LINK_REFUSED ? end
                                                         : LINK_PROCESS_ENDED);
}

/* -- Deadlines ------------------------------------------------------------ */

/* The earlier of two times; 0: never. */
static uint64_t
earlier(uint64_t a, uint64_t b)
{
    return a == 0 || (b != 0 && b < a) ? b : a;
}

void
vnxi_hub_set_timer(vnxi_hub_t *hub)
{
    uint64_t due = hub->listener_resumes;
    struct itimerspec when = {0};

    due = earlier(due, atomic_load(&hub->alarm));
    due = earlier(due, atomic_load(&hub->flush));
    if (hub->silent_first != NULL) {
        due = earlier(due, hub->silent_first->hello_deadline);
    }
    if (hub->polled) {
        due = vnxi_clock_ns() + VNXI_HUB_WINDOW_NS;
        when.it_interval = vnxi_clock_timespec(VNXI_HUB_WINDOW_NS);
    }
    when.it_value = vnxi_clock_timespec(due);
    timerfd_settime(hub->timer, TFD_TIMER_ABSTIME, &when, NULL);
}

/* Its HELLO may have arrived but not been read: read before dropping the link.
 */
static void
drop_oldest_silent(vnxi_hub_t *hub)
{
    vnxi_link_t *link = hub->silent_first;

    on_readable(hub, link);
    if (link == hub->silent_first) {
        vnxi_link_not_silent(link);
        link_end(hub, link, LINK_MALFORMED);
    }
}

void
vnxi_hub_expire(vnxi_hub_t *hub)
{
    uint64_t now = vnxi_clock_ns(), flush = atomic_load(&hub->flush);

    if (hub->listener_resumes != 0 && hub->listener_resumes <= now) {
        struct epoll_event event = {.events = EPOLLIN,
                                    .data.u64 = vnxi_link_tag(NULL, 0)};
        epoll_ctl(hub->inner, EPOLL_CTL_MOD, hub->listener, &event);
        hub->listener_resumes = 0;
    }
    if (flush != 0 && flush <= now) {
        atomic_store(&hub->flush, 0);
        vnxi_link_flush_all(hub);
    }
    while (hub->silent_first != NULL &&
           hub->silent_first->hello_deadline <= now) {
        drop_oldest_silent(hub);
    }
}

/* -- Accepting ------------------------------------------------------------ */

/* Get a pidfd for the peer. -1: the process is gone already, or no descriptor
 * is available (errno).  In the latter case the link works without one: the
 * end of the stream reports most deaths. */
static int
peer_pidfd(int fd, pid_t pid)
{
    int pidfd;
    socklen_t len = sizeof pidfd;

    /* Since Linux 6.5; not affected by reuse of the pid. */
    if (getsockopt(fd, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &len) != 0) {
        pidfd = vnxi_pidfd_open(pid);
    }
    return vnxi_fork_fd_own(pidfd);
}

/* *gone_p: the peer's process has already ended. */
static vnxi_link_t *
accept_link(vnxi_hub_t *hub, int fd, pid_t pid, bool *gone_p)
{
    if (hub->accepted_count >= ACCEPTED_MAX) {
        return NULL;
    }
    int pidfd = peer_pidfd(fd, pid);
    *gone_p = pidfd < 0 && (errno == ESRCH || errno == EINVAL);
    vnxi_link_t *link = vnxi_link_new(hub, fd, pidfd, pid);
    if (link == NULL) {
        vnxi_fork_fd_close(pidfd);
        return NULL;
    }
    link->accepted = true;
    link->id = ++hub->last_id;
    link->reader.allowed = VNXI_LINK_FRAME_BIT(VNXI_LINK_FRAME_HELLO);
    return link;
}

/* Anybody on the host can connect.  Other users are rejected by their
 * credentials alone, so that a flood of them drains from the backlog quickly.
 */
static bool
is_stranger(int fd, pid_t *pid_p)
{
    struct ucred who;
    socklen_t len = sizeof who;

    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &len) != 0 ||
        who.pid == 0 || (who.uid != geteuid() && who.uid != 0)) {
        return true;
    }
    *pid_p = who.pid;
    return false;
}

static void
on_connection(vnxi_hub_t *hub, int fd, pid_t pid)
{
    bool is_gone = false;
    vnxi_link_t *link = accept_link(hub, vnxi_fork_fd_own(fd), pid, &is_gone);

    if (link == NULL) {
        vnxi_fork_fd_close(fd);
        return;
    }
    if (vnxi_link_attach(link, NULL) != VNX_OK) {
        vnxi_link_unref(link);
        return;
    }
    hub->accepted_count++;
    vnxi_link_add_silent(link, vnxi_clock_deadline(HELLO_WAIT_NS));
    if (is_gone) {
        on_death(hub, link);
    } else {
        on_readable(hub, link);
    }
    vnxi_link_unref(link);
    if (hub->silent_count > SILENT_MAX) {
        drop_oldest_silent(hub);
    }
    if (hub->silent_count == 1) {
        vnxi_hub_set_timer(hub);
    }
}

/* Without a free descriptor, a connection stays in the backlog, and epoll
 * would report it for ever. */
static void
suspend_listener(vnxi_hub_t *hub, int err)
{
    struct epoll_event nothing = {.data.u64 = vnxi_link_tag(NULL, 0)};

    if (!hub->warned_no_fds) {
        hub->warned_no_fds = true;
        vnxi_log(VNX_LOG_WARNING, hub->name,
                 "connections from peers on this host must wait: %s",
                 vnxi_errno(err));
    }
    epoll_ctl(hub->inner, EPOLL_CTL_MOD, hub->listener, &nothing);
    hub->listener_resumes = vnxi_clock_deadline(NO_FDS_WAIT_NS);
    vnxi_hub_set_timer(hub);
}

static void
on_listener(vnxi_hub_t *hub)
{
    int links = 0, strangers = 0;
    pid_t pid;

    while (links < ACCEPTS_MAX && strangers < STRANGERS_MAX) {
        int fd =
            accept4(hub->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd >= 0 && is_stranger(fd, &pid)) {
            close(fd);
            strangers++;
        } else if (fd >= 0) {
            on_connection(hub, fd, pid);
            links++;
        } else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS ||
                   errno == ENOMEM) {
            suspend_listener(hub, errno);
            return;
        } else if (errno != EINTR && errno != ECONNABORTED) {
            return;
        }
    }
}

/* -- A round -------------------------------------------------------------- */

static void
on_link_event(vnxi_hub_t *hub, uint64_t tag, uint32_t events)
{
    vnxi_link_t *link = vnxi_link_of_tag(tag);

    if (!link_is_open(link)) {
        return;
    }
    if ((tag & VNXI_LINK_TAG_PIDFD) != 0) {
        on_death(hub, link);
        return;
    }
    if ((events & EPOLLOUT) != 0) {
        vnxi_link_flush(link);
    }
    if ((events & ~(uint32_t)EPOLLOUT) != 0) {
        on_readable(hub, link);
    }
}

void
vnxi_hub_round(vnxi_hub_t *hub)
{
    struct epoll_event events[EVENTS_MAX];
    int count = epoll_wait(hub->inner, events, EVENTS_MAX, 0);

    hub->lost = hub->lost || (count < 0 && errno != EINTR);
    for (int i = 0; i < count && !hub->lost; i++) {
        uint64_t tag = events[i].data.u64;
        if ((tag & VNXI_LINK_TAG_MASK) != VNXI_LINK_TAG_MAGIC) {
            hub->lost = true; /* the set belongs to other code of the
                                 program */
        } else if (tag == vnxi_link_tag(NULL, 0)) {
            on_listener(hub);
        } else {
            on_link_event(hub, tag, events[i].events);
        }
    }
}
