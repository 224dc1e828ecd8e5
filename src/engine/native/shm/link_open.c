/*
 * Opening a link.  First come all checks that do not involve the peer (same
 * host, same process as published, its memory can be read and holds the
 * instance id), then the connection, whose other end must be that process.
 * HELLO follows at once, because a listener drops connections that stay
 * silent.  Under ptrace scope 1 the peer must allow access to its memory first
 * (ptrace.h); it does so when it reads HELLO.  Then the memory is checked
 * after that, and opening waits for the peer.
 *
 * The link owns the descriptors from the moment that they are opened, so on an
 * error only the link is released.
 */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/fork.h"
#include "base/fork_fds.h"
#include "base/pidfd.h"
#include "engine/native/shm/hub_private.h"
#include "engine/native/shm/proc.h"
#include "engine/native/shm/ptrace.h"
#include "engine/native/shm/vm.h"

#define OPERATION "vnx_agent_load_metadata"

/* How long to wait for room in the peer's backlog: anybody on the host can
 * fill it. */
#define BACKLOG_WAIT_NS (5u * UINT64_C(1000000000))
/* How long to wait until the peer's hub has read HELLO: it takes microseconds
 * unless the process is stopped. */
#define PERMISSION_WAIT_NS (5u * UINT64_C(1000000000))
/* How long to wait until the next look at what stops the wait. */
#define LOOK_NS (100u * UINT64_C(1000000))

static vnx_status_t
refuse(vnx_error_t *error, const char *cause)
{
    return vnxi_error_set(error, VNX_ERR_BACKEND, OPERATION, "%s", cause);
}

/* Fail if no wait may begin or go on. */
static vnx_status_t
check_stop(const vnxi_link_t *link, const vnxi_link_target_t *target,
           vnx_error_t *error)
{
    if (atomic_load(&link->hub->stopping)) {
        return vnxi_error_set(error, VNX_ERR_CLOSED, OPERATION,
                              "the agent is closed");
    }
    if (target->stop != NULL && atomic_load(target->stop)) {
        return vnxi_error_set(error, VNX_ERR_CANCELED, OPERATION,
                              "the call was stopped");
    }
    return VNX_OK;
}

static uint64_t
time_left(uint64_t deadline)
{
    uint64_t now = vnxi_clock_ns();
    uint64_t left = now < deadline ? deadline - now : 0;
    return left < LOOK_NS ? left : LOOK_NS;
}

/* -- Identity of the peer ------------------------------------------------- */

static vnx_status_t
check_host(const vnxi_shm_info_t *info, const vnxi_shm_info_t *local,
           vnx_error_t *error)
{
    uid_t uid = geteuid();

    if (memcmp(info->boot, local->boot, sizeof info->boot) != 0) {
        return refuse(error, "the peer is on another host, or this host was "
                             "restarted since (boot ids differ)");
    }
    if (info->pid_namespace != local->pid_namespace) {
        return refuse(error,
                      "the peer is in another pid namespace (another "
                      "container): run both in one, for example with "
                      "'docker run --pid=container:NAME' or --pid=host");
    }
    if (uid != 0 && info->uid != uid) {
        return vnxi_error_set(error, VNX_ERR_NOT_ALLOWED, OPERATION,
                              "the peer runs as user %" PRIu32
                              " and this process as user "
                              "%u: run both as the same user",
                              info->uid, (unsigned)uid);
    }
    return VNX_OK;
}

/* The pidfd is opened first, so that the answers of /proc are about the
 * process behind it, or report that the process is gone. */
static vnx_status_t
find_process(vnxi_link_t *link, const vnxi_shm_info_t *info,
             vnx_error_t *error)
{
    vnxi_proc_stat_t stat = {0};

    link->pidfd = vnxi_fork_fd_own(vnxi_pidfd_open(link->pid));
    int cause = link->pidfd < 0 ? errno : vnxi_proc_stat(link->pid, &stat);
    if (cause == ESRCH || (cause == 0 && stat.exiting)) {
        return vnxi_error_set(error, VNX_ERR_BACKEND, OPERATION,
                              "process %" PRIu32 ", which published the "
                              "metadata, has ended",
                              info->pid);
    }
    if (cause != 0) {
        return vnxi_error_set(error, VNX_ERR_BACKEND, OPERATION,
                              "process %" PRIu32 " cannot be watched: %s",
                              info->pid, vnxi_errno(cause));
    }
    if (stat.start_time != info->start_time) {
        return vnxi_error_set(error, VNX_ERR_BACKEND, OPERATION,
                              "process %" PRIu32 " is not the one that "
                              "published the metadata (start times differ): "
                              "fetch the metadata again",
                              info->pid);
    }
    return VNX_OK;
}

/* -- Access to its memory ------------------------------------------------- */

static vnx_status_t
check_memory(const vnxi_shm_info_t *info, vnx_error_t *error)
{
    unsigned char nonce[VNXI_SHM_ID_SIZE];

    if ((pid_t)info->pid == getpid()) {
        return VNX_OK; /* the caller has found the agent in the directory */
    }
    int cause =
        vnxi_vm_peek((pid_t)info->pid, info->nonce_addr, nonce, sizeof nonce);
    if (cause == EPERM || cause == ENOSYS) {
        return vnxi_ptrace_error((pid_t)info->pid, OPERATION, error);
    }
    if (cause != 0) {
        return vnxi_error_set(
            error, VNX_ERR_BACKEND, OPERATION,
            "the instance id cannot be read from process %" PRIu32 ": %s",
            info->pid, vnxi_errno(cause));
    }
    if (memcmp(nonce, info->instance, sizeof nonce) != 0) {
        return vnxi_error_set(
            error, VNX_ERR_BACKEND, OPERATION,
            "process %" PRIu32 " does not have the instance id of the "
            "metadata in its memory: the agent was closed or created again",
            info->pid);
    }
    return VNX_OK;
}

/* Return whether nothing prevents access but that the peer has not allowed it
 * so far. */
static bool
can_be_allowed(const vnxi_shm_info_t *info)
{
    vnxi_ptrace_facts_t facts;

    vnxi_ptrace_facts_find((pid_t)info->pid, &facts);
    return vnxi_ptrace_cause(&facts) == VNXI_PTRACE_NOT_ALLOWED;
}

/* -- The connection ------------------------------------------------------- */

/* While the backlog is full, the kernel admits waiting connections one by one,
 * in order of arrival.  EAGAIN: the time is over. */
static int
connect_once(int fd, const char *name, uint64_t ns)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t len = strlen(name);
    uint64_t us = ns / 1000 + 1; /* 0 would mean no timeout */
    struct timeval wait = {.tv_sec = (time_t)(us / 1000000),
                           .tv_usec = (suseconds_t)(us % 1000000)};

    memcpy(address.sun_path + 1, name, len);
    bool done =
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof wait) == 0 &&
        connect(fd, (struct sockaddr *)&address,
                (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 +
                            len)) == 0;
    return done ? 0 : errno;
}

/* If the kernel does not tell, the pid stays 0, which is not the peer's. */
static vnx_status_t
check_listener(int fd, const vnxi_shm_info_t *info, vnx_error_t *error)
{
    struct ucred who = {0};
    socklen_t len = sizeof who;

    getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &len);
    if ((uint32_t)who.pid != info->pid || who.uid != info->uid) {
        return vnxi_error_set(
            error, VNX_ERR_BACKEND, OPERATION,
            "the socket belongs to process %d of user %u, not to process "
            "%" PRIu32 " of user %" PRIu32 " that published the metadata",
            (int)who.pid, (unsigned)who.uid, info->pid, info->uid);
    }
    return VNX_OK;
}

/* *cause_p: 0 or errno. */
static vnx_status_t
connect_until(const vnxi_link_t *link, const vnxi_link_target_t *target,
              int *cause_p, vnx_error_t *error)
{
    uint64_t deadline = vnxi_clock_deadline(BACKLOG_WAIT_NS), left;
    vnx_status_t status;

    do {
        status = check_stop(link, target, error);
        left = time_left(deadline);
        if (status == VNX_OK) {
            *cause_p = connect_once(link->fd, target->info->socket, left);
        }
    } while (status == VNX_OK &&
             (*cause_p == EINTR || (*cause_p == EAGAIN && left > 0)));
    return status;
}

static vnx_status_t
connect_peer(vnxi_link_t *link, const vnxi_link_target_t *target,
             vnx_error_t *error)
{
    vnx_status_t status = VNX_OK;
    int cause;

    link->fd =
        vnxi_fork_fd_own(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (link->fd < 0) {
        cause = errno;
    } else {
        status = connect_until(link, target, &cause, error);
    }
    if (status != VNX_OK) {
        return status;
    }
    switch (cause) {
    case 0:
        return check_listener(link->fd, target->info, error);
    case ECONNREFUSED:
        return refuse(error, "nobody listens on the peer's socket: its agent "
                             "was closed, or it is in another network "
                             "namespace (another container)");
    case EAGAIN:
        return refuse(error, "the peer does not accept connections (backlog "
                             "full)");
    default:
        return vnxi_error_set(error, VNX_ERR_BACKEND, OPERATION,
                              "connecting to the peer's socket failed: %s",
                              vnxi_errno(cause));
    }
}

static vnx_status_t
send_hello(vnxi_link_t *link, const vnxi_link_target_t *target,
           vnx_error_t *error)
{
    vnxi_writer_t writer = {0};
    vnxi_link_frame_hello_t hello = {
        .instance = link->hub->instance,
        .target = target->info->instance,
        .name = link->hub->name,
        .name_len = link->hub->name_len,
        .target_name = target->name,
        .target_name_len = target->name_len,
    };

    vnxi_link_frame_write_hello(&writer, &hello);
    vnx_status_t status = vnxi_link_send(link, &writer, error);
    vnxi_writer_fini(&writer);
    return status;
}

/* -- Permission ----------------------------------------------------------- */

/* What the listener has sent so far. */
typedef enum reply {
    REPLY_NONE,
    REPLY_ANSWER,
    REPLY_REFUSAL, /* link->sender has the name */
    REPLY_END,     /* or an invalid frame */
} reply_t;

static reply_t
reply_of(vnxi_link_t *link, const vnxi_link_frame_t *frame)
{
    vnxi_link_frame_refuse_t refuse;
    vnxi_link_answer_t answer;

    switch (frame->type) {
    case VNXI_LINK_FRAME_REVOKE:
        return REPLY_NONE; /* of nothing that this agent knows so far */
    case VNXI_LINK_FRAME_CONFIRMED:
        return vnxi_link_frame_read_confirmed(frame, &answer) ? REPLY_ANSWER
                                                              : REPLY_END;
    case VNXI_LINK_FRAME_REFUSE:
        return vnxi_link_frame_read_refuse(frame, &refuse) &&
                       vnxi_link_note_refuser(link, &refuse)
                   ? REPLY_REFUSAL
                   : REPLY_END;
    default:
        return REPLY_END;
    }
}

/* Nothing follows an answer: the listener sends nothing on its own but
 * REVOKE, which concerns nothing here, and its end. */
static reply_t
take_reply(vnxi_link_t *link, const void *bytes, size_t len)
{
    vnxi_link_frame_result_t result;
    vnxi_link_frame_t frame;
    reply_t reply = REPLY_NONE;

    vnxi_link_frame_reader_feed(&link->reader, bytes, len);
    while (reply < REPLY_REFUSAL &&
           (result = vnxi_link_frame_reader_next(&link->reader, &frame)) !=
               VNXI_LINK_FRAME_NEED_MORE) {
        reply_t next = result == VNXI_LINK_FRAME_WHOLE ? reply_of(link, &frame)
                                                       : REPLY_END;
        reply = next > reply ? next : reply;
    }
    return reply;
}

/* *reply_p = REPLY_NONE: the time is over. */
static vnx_status_t
await_reply(vnxi_link_t *link, const vnxi_link_target_t *target,
            reply_t *reply_p, vnx_error_t *error)
{
    uint64_t deadline = vnxi_clock_deadline(PERMISSION_WAIT_NS), left;
    unsigned char bytes[4096];
    struct pollfd input = {.fd = link->fd, .events = POLLIN};
    reply_t reply = REPLY_NONE;

    while (reply == REPLY_NONE && (left = time_left(deadline)) > 0) {
        vnx_status_t status = check_stop(link, target, error);
        if (status != VNX_OK) {
            return status;
        }
        poll(&input, 1, (int)(left / 1000000 + 1));
        ssize_t got = recv(link->fd, bytes, sizeof bytes, MSG_DONTWAIT);
        if (got > 0) {
            reply = take_reply(link, bytes, (size_t)got);
        } else if (got == 0 || (errno != EAGAIN && errno != EWOULDBLOCK &&
                                errno != EINTR)) {
            reply = REPLY_END;
        }
    }
    *reply_p = reply;
    return VNX_OK;
}

/* The listener allows access when it reads HELLO.  The answer to a question
 * about no region shows that it has done so. */
static vnx_status_t
await_permission(vnxi_link_t *link, const vnxi_link_target_t *target,
                 vnx_error_t *error)
{
    reply_t reply = REPLY_NONE;

    vnx_status_t status = vnxi_link_ask(link, 0, NULL, 0, error);
    if (status == VNX_OK) {
        status = await_reply(link, target, &reply, error);
    }
    if (status != VNX_OK) {
        return status;
    }
    switch (reply) {
    case REPLY_ANSWER:
        return check_memory(target->info, error);
    case REPLY_REFUSAL:
        return vnxi_error_set(error, VNX_ERR_MISMATCH, OPERATION,
                              VNXI_LINK_REFUSED_TEXT, link->sender);
    case REPLY_END:
        return refuse(error, "the peer closed the connection before it "
                             "allowed access to its memory");
    default:
        return vnxi_error_set(
            error, VNX_ERR_BACKEND, OPERATION,
            "process %" PRIu32 " did not answer within %d s. Under "
            "kernel.yama.ptrace_scope = 1 it must allow access to its memory",
            target->info->pid,
            (int)(PERMISSION_WAIT_NS / UINT64_C(1000000000)));
    }
}

/* -- Opening -------------------------------------------------------------- */

/* *waits_p: the peer must allow access first, and its memory is not checked.
 */
static vnx_status_t
check_peer(vnxi_link_t *link, const vnxi_shm_info_t *info, bool *waits_p,
           vnx_error_t *error)
{
    vnx_status_t status = check_host(info, &link->hub->local, error);

    if (status == VNX_OK) {
        status = find_process(link, info, error);
    }
    if (status != VNX_OK) {
        return status;
    }
    status = check_memory(info, error);
    *waits_p = status == VNX_ERR_NOT_ALLOWED && can_be_allowed(info);
    return *waits_p ? VNX_OK : status;
}

static vnx_status_t
open_steps(vnxi_link_t *link, const vnxi_link_target_t *target,
           vnx_error_t *error)
{
    bool waits = false;
    vnx_status_t status = check_peer(link, target->info, &waits, error);

    if (status == VNX_OK) {
        status = connect_peer(link, target, error);
    }
    /* HELLO is sent before the hub knows the link, so that nothing can precede
     * it.  A fresh socket takes all of it. */
    if (status == VNX_OK) {
        status = send_hello(link, target, error);
    }
    if (status == VNX_OK && waits) {
        status = await_permission(link, target, error);
    }
    return status == VNX_OK ? vnxi_link_attach(link, error) : status;
}

vnx_status_t
vnxi_link_open(vnxi_hub_t *hub, const vnxi_link_target_t *target,
               vnxi_link_t **link_p, vnx_error_t *error)
{
    if (target->name_len == 0 || target->name_len > VNXI_LINK_FRAME_NAME_MAX) {
        return vnxi_error_set(
            error, VNX_ERR_INVALID_PARAM, OPERATION,
            "an agent's name must have 1 to %d bytes, not %zu",
            VNXI_LINK_FRAME_NAME_MAX, target->name_len);
    }
    if (vnxi_fork_crossed(hub->forks)) {
        return vnxi_error_set(error, VNX_ERR_NOT_ALLOWED, OPERATION,
                              "the agent was created before this process was "
                              "forked");
    }
    vnxi_link_t *link = vnxi_link_new(hub, -1, -1, (pid_t)target->info->pid);
    if (link == NULL) {
        return vnxi_error_no_memory(error, OPERATION, sizeof *link);
    }
    link->cookie = target->cookie;
    link->reader.allowed = VNXI_LINK_FRAME_BIT(VNXI_LINK_FRAME_REVOKE) |
                           VNXI_LINK_FRAME_BIT(VNXI_LINK_FRAME_CONFIRMED) |
                           VNXI_LINK_FRAME_BIT(VNXI_LINK_FRAME_REFUSE) |
                           VNXI_LINK_FRAME_BIT(VNXI_LINK_FRAME_CONTROL) |
                           VNXI_LINK_FRAME_BIT(VNXI_LINK_FRAME_SETTLE) |
                           VNXI_LINK_FRAME_BIT(VNXI_LINK_FRAME_CLOSING) |
                           VNXI_LINK_FRAME_BIT(VNXI_LINK_FRAME_BYE);
    vnx_status_t status = open_steps(link, target, error);
    if (status != VNX_OK) {
        vnxi_link_unref(link);
        return status;
    }
    *link_p = link;
    return VNX_OK;
}
