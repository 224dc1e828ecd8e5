/*
 * For the tests of links: a *node* is a hub that records its callbacks, and a
 * *peer* is a node in a forked process that executes commands.  Peers are
 * forked before the test starts a thread.
 *
 * A notification or control message made here has its origin (`stream`), its
 * number in that stream and a pattern, so that the receiver detects loss,
 * duplicates, wrong order and damage.  The descriptors of a control message
 * are eventfds that have numbers, too.
 *
 * A node answers confirm requests as if all even addresses were registered.
 */
#ifndef VNX_LINK_NODE_H
#define VNX_LINK_NODE_H

#include "open_fds.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fork_fds.h"
#include "engine/native/shm/hub.h"

#define NODE_STREAMS 16
#define NODE_HEAD 16
#define NODE_DEADLINE_NS vnx_test_limit(60)

/* A record of the callbacks; plain data, to be sent through a pipe. */
typedef struct node_account {
    size_t notifs, bytes, bad;
    uint32_t next[NODE_STREAMS]; /* number that comes next in a stream */
    size_t by_poller;            /* notifications taken in by `poller` */
    char sender[64];
    size_t revoked, ended, answers, alarms, settles, closings;
    size_t controls, control_fds, askers_gone;
    size_t lost;    /* control messages without their descriptors */
    size_t fds;     /* of the process, when the record was asked for */
    uint64_t asker; /* of the last control message */
    uint64_t gone;  /* the last asker that has gone */
    uint64_t epoch;
    uint64_t token; /* of the last SETTLE */
    vnx_mem_t mem;
    vnx_desc_t desc;
    char cause[256];
    void *cookie;
} node_account_t;

typedef struct node node_t;

/* Gets control messages instead of the record, and closes their descriptors.
 */
typedef void node_control_t(node_t *node, uint64_t asker,
                            const vnxi_control_t *control);

struct node {
    unsigned char instance[VNXI_SHM_ID_SIZE];
    vnxi_shm_info_t info;
    vnxi_hub_t *hub;
    vnxi_link_t *echo; /* notifications go back over it */
    bool close_when_called, release_when_ended, refuses_answers;
    atomic_bool never_settles;
    node_control_t *on_control;
    vnxi_link_answer_t answer; /* the last; protected by lock */
    pthread_t poller;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    node_account_t account; /* protected by lock */
};

/* Those of a message from `at` on, a multiple of 8. */
static VNX_TEST_UNWATCHED void
node_bytes(unsigned char *bytes, size_t len, size_t at, uint32_t number)
{
    size_t i = 0;

    for (; i + 8 <= len; i += 8) {
        uint64_t word = (at + i + number) * UINT64_C(0x9e3779b97f4a7c15);
        memcpy(bytes + i, &word, 8); /* inline, being of a fixed size */
    }
    for (; i < len; i++) {
        bytes[i] = (unsigned char)((at + i) * 31 + number);
    }
}

static inline void
node_message(unsigned char *message, size_t len, uint32_t stream,
             uint32_t number)
{
    uint64_t len64 = len;
    memcpy(message, &stream, 4);
    memcpy(message + 4, &number, 4);
    memcpy(message + 8, &len64, 8);
    if (len > NODE_HEAD) {
        node_bytes(message + NODE_HEAD, len - NODE_HEAD, NODE_HEAD, number);
    }
}

static inline bool
node_message_is_good(const unsigned char *message, size_t len,
                     uint32_t *stream_p, uint32_t *number_p)
{
    uint64_t len64;
    if (len < NODE_HEAD) {
        return false;
    }
    memcpy(stream_p, message, 4);
    memcpy(number_p, message + 4, 4);
    memcpy(&len64, message + 8, 8);
    if (len64 != len || *stream_p >= NODE_STREAMS) {
        return false;
    }
    for (size_t at = NODE_HEAD, part; at < len; at += part) {
        unsigned char expected[4096];
        part = len - at < sizeof expected ? len - at : sizeof expected;
        node_bytes(expected, part, at, *number_p);
        if (memcmp(message + at, expected, part) != 0) {
            return false;
        }
    }
    return true;
}

static inline void
node_on_notif(void *context, const void *sender, size_t sender_len,
              const void *message, size_t len)
{
    node_t *node = context;
    uint32_t stream = 0, number = 0;
    bool good = node_message_is_good(message, len, &stream, &number);

    pthread_mutex_lock(&node->lock);
    node_account_t *account = &node->account;
    account->notifs++;
    account->bytes += len;
    if (!good || account->next[stream] != number ||
        sender_len >= sizeof account->sender) {
        account->bad++;
    } else {
        account->next[stream]++;
        memcpy(account->sender, sender, sender_len);
        account->sender[sender_len] = '\0';
    }
    account->by_poller += pthread_equal(node->poller, pthread_self()) != 0;
    vnxi_link_t *echo = node->echo;
    pthread_cond_broadcast(&node->changed);
    pthread_mutex_unlock(&node->lock);
    if (echo != NULL &&
        vnxi_link_send_notif(echo, message, len, NULL) != VNX_OK) {
        pthread_mutex_lock(&node->lock);
        account->bad++;
        pthread_mutex_unlock(&node->lock);
    }
}

static inline void
node_on_revoked(void *context, vnxi_link_t *link, uint64_t epoch,
                vnx_mem_t mem, const vnx_desc_t *desc)
{
    node_t *node = context;

    if (node->close_when_called) {
        vnxi_link_close(link);
    }
    pthread_mutex_lock(&node->lock);
    node->account.revoked++;
    node->account.epoch = epoch;
    node->account.mem = mem;
    node->account.desc = *desc;
    pthread_cond_broadcast(&node->changed);
    pthread_mutex_unlock(&node->lock);
}

static inline void
node_on_settle(void *context, vnxi_link_t *link, uint64_t token)
{
    node_t *node = context;

    pthread_mutex_lock(&node->lock);
    node->account.settles++;
    node->account.token = token;
    pthread_cond_broadcast(&node->changed);
    pthread_mutex_unlock(&node->lock);
    if (!atomic_load(&node->never_settles)) {
        vnxi_link_send_settled(link, token, NULL);
    }
}

static inline void
node_on_closing(void *context, vnxi_link_t *link)
{
    node_t *node = context;
    (void)link;

    pthread_mutex_lock(&node->lock);
    node->account.closings++;
    pthread_mutex_unlock(&node->lock);
}

static inline void
node_on_ended(void *context, vnxi_link_t *link, const char *cause)
{
    node_t *node = context;
    void *cookie = vnxi_link_cookie(link);
    bool ended = vnxi_link_ended(link);

    if (node->close_when_called) {
        vnxi_link_close(link);
    }
    if (node->release_when_ended) {
        vnxi_link_release(link);
    }
    pthread_mutex_lock(&node->lock);
    node->account.ended++;
    node->account.bad += !ended;
    node->account.cookie = cookie;
    snprintf(node->account.cause, sizeof node->account.cause, "%s", cause);
    pthread_cond_broadcast(&node->changed);
    pthread_mutex_unlock(&node->lock);
}

/* Odd addresses are not registered; an empty request also returns the epoch.
 */
static inline uint64_t
node_on_confirm(void *context, const vnxi_link_row_t *rows, size_t count,
                bool *refused_p)
{
    (void)context;
    for (size_t i = 0; i < count; i++) {
        refused_p[i] = rows[i].desc.addr % 2 != 0;
    }
    return 42;
}

static inline bool
node_on_confirmed(void *context, vnxi_link_t *link,
                  const vnxi_link_answer_t *answer)
{
    node_t *node = context;
    (void)link;

    pthread_mutex_lock(&node->lock);
    node->account.answers++;
    node->answer = *answer;
    bool fits = !node->refuses_answers;
    pthread_cond_broadcast(&node->changed);
    pthread_mutex_unlock(&node->lock);
    return fits;
}

/* Of descriptor `i` of the control message with this number. */
static inline uint64_t
node_fd_number(uint32_t message, size_t i)
{
    return (uint64_t)message * VNXI_CONTROL_FDS_MAX + i + 1;
}

/* False the second time, too. */
static inline bool
node_fd_is_good(int fd, uint64_t number)
{
    uint64_t found;
    return (fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0 &&
           read(fd, &found, sizeof found) == (ssize_t)sizeof found &&
           found == number;
}

static inline void
node_on_control(node_t *node, const void *entry, size_t entry_len,
                uint64_t asker, const vnxi_control_t *control)
{
    uint32_t stream = 0, number = 0;

    if (node->on_control != NULL) {
        node->on_control(node, asker, control);
        return;
    }
    bool good =
        entry_len == 4 && memcmp(entry, "TEST", 4) == 0 &&
        node_message_is_good(control->data, control->len, &stream, &number);

    for (size_t i = 0; i < control->fd_count; i++) {
        good = node_fd_is_good(control->fds[i], node_fd_number(number, i)) &&
               good;
    }
    vnxi_fork_fds_close(control->fds, control->fd_count);
    pthread_mutex_lock(&node->lock);
    node_account_t *account = &node->account;
    account->controls++;
    account->control_fds += control->fd_count;
    account->lost += control->has_lost_fds;
    account->asker = asker;
    if (!good || account->next[stream] != number) {
        account->bad++;
    } else {
        account->next[stream]++;
    }
    pthread_cond_broadcast(&node->changed);
    pthread_mutex_unlock(&node->lock);
}

static inline void
node_on_question(void *context, const void *entry, size_t entry_len,
                 uint64_t asker, const vnxi_control_t *control)
{
    node_on_control(context, entry, entry_len, asker, control);
}

static inline void
node_on_answered(void *context, const void *entry, size_t entry_len,
                 vnxi_link_t *link, const vnxi_control_t *control)
{
    (void)link;
    node_on_control(context, entry, entry_len, 0, control);
}

static inline void
node_on_asker_gone(void *context, uint64_t asker)
{
    node_t *node = context;

    pthread_mutex_lock(&node->lock);
    node->account.askers_gone++;
    node->account.gone = asker;
    pthread_cond_broadcast(&node->changed);
    pthread_mutex_unlock(&node->lock);
}

static inline void
node_on_alarm(void *context)
{
    node_t *node = context;

    pthread_mutex_lock(&node->lock);
    node->account.alarms++;
    pthread_cond_broadcast(&node->changed);
    pthread_mutex_unlock(&node->lock);
}

/* The names of nodes, by their instances.  An unknown instance is the node of
 * the test that forked this process. */
static struct {
    unsigned char instance[VNXI_SHM_ID_SIZE];
    const char *name;
} node_names[256];
static size_t node_name_count;

static inline void
node_note_name(const vnxi_shm_info_t *info, const char *name)
{
    size_t at = node_name_count++ % 256;
    memcpy(node_names[at].instance, info->instance, VNXI_SHM_ID_SIZE);
    node_names[at].name = name;
}

static inline const char *
node_name(const vnxi_shm_info_t *info)
{
    for (size_t i = 0; i < 256; i++) {
        if (node_names[i].name != NULL &&
            memcmp(node_names[i].instance, info->instance, VNXI_SHM_ID_SIZE) ==
                0) {
            return node_names[i].name;
        }
    }
    return "decode";
}

/* The agent there, with the name that it has. */
static inline vnxi_link_target_t
node_target(const vnxi_shm_info_t *info, void *cookie)
{
    const char *name = node_name(info);
    return (vnxi_link_target_t){.info = info,
                                .name = name,
                                .name_len = strlen(name),
                                .cookie = cookie};
}

static inline vnx_status_t
node_try_open(vnxi_hub_t *hub, const vnxi_shm_info_t *info, void *cookie,
              vnxi_link_t **link_p, vnx_error_t *error)
{
    vnxi_link_target_t target = node_target(info, cookie);
    return vnxi_link_open(hub, &target, link_p, error);
}

/* on_control: NULL, or what gets control messages. */
static inline vnx_status_t
node_init_for(node_t *node, const char *name, node_control_t *on_control)
{
    pthread_condattr_t clock;
    vnxi_hub_config_t config = {
        .name = name,
        .name_len = strlen(name),
        .instance = node->instance,
        .local = &node->info,
        .callbacks = {node, node_on_notif, node_on_revoked, node_on_closing,
                      node_on_ended, node_on_confirm, node_on_confirmed,
                      node_on_settle, node_on_question, node_on_answered,
                      node_on_asker_gone, node_on_alarm},
    };

    memset(node, 0, sizeof *node);
    node->on_control = on_control;
    pthread_mutex_init(&node->lock, NULL);
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&node->changed, &clock);
    pthread_condattr_destroy(&clock);
    if (getrandom(node->instance, sizeof node->instance, 0) !=
            (ssize_t)sizeof node->instance ||
        vnxi_shm_info_local(&node->info, NULL) != VNX_OK) {
        return VNX_ERR_BACKEND;
    }
    memcpy(node->info.instance, node->instance, sizeof node->instance);
    node->info.nonce_addr = (uint64_t)(uintptr_t)node->instance;
    node_note_name(&node->info, name);
    return vnxi_hub_create(&config, node->info.socket, &node->hub, NULL);
}

static inline vnx_status_t
node_init(node_t *node, const char *name)
{
    return node_init_for(node, name, NULL);
}

static inline void
node_fini(node_t *node)
{
    vnxi_hub_stop(node->hub);
    vnxi_hub_free(node->hub);
    pthread_mutex_destroy(&node->lock);
    pthread_cond_destroy(&node->changed);
}

static inline node_account_t
node_look(node_t *node)
{
    pthread_mutex_lock(&node->lock);
    node_account_t account = node->account;
    pthread_mutex_unlock(&node->lock);
    return account;
}

/* A link of the node to a hub there; its cookie is the node. */
static inline vnxi_link_t *
node_open(node_t *node, const vnxi_shm_info_t *info)
{
    vnxi_link_t *link = NULL;
    vnx_error_t error;

    if (node_try_open(node->hub, info, node, &link, &error) != VNX_OK) {
        fail_msg("%s", error.cause);
    }
    return link;
}

/* Until `*counter` (of the account) is at least `count`.  False: it has not
 * changed for too long. */
static inline bool
node_wait(node_t *node, const size_t *counter, size_t count)
{
    int late = 0;

    pthread_mutex_lock(&node->lock);
    while (*counter < count && late == 0) {
        size_t before = *counter;
        struct timespec deadline =
            vnxi_clock_timespec(vnxi_clock_deadline(NODE_DEADLINE_NS));
        while (*counter == before && late == 0) {
            late =
                pthread_cond_timedwait(&node->changed, &node->lock, &deadline);
        }
    }
    bool there = *counter >= count;
    pthread_mutex_unlock(&node->lock);
    return there;
}

/* For events without a callback. */
static inline bool
node_wait_accepted(node_t *node, size_t count)
{
    uint64_t deadline = vnxi_clock_deadline(NODE_DEADLINE_NS);

    while (vnxi_hub_accepted(node->hub) != count) {
        if (vnxi_clock_ns() > deadline) {
            return false;
        }
        usleep(200);
    }
    return true;
}

/* `count` notifications of `len` bytes, numbered from `first` on. */
static inline vnx_status_t
node_send(vnxi_link_t *link, uint32_t stream, uint32_t first, uint32_t count,
          size_t len)
{
    unsigned char *message = malloc(len);
    vnx_status_t status = VNX_OK;

    for (uint32_t i = 0; i < count && status == VNX_OK; i++) {
        node_message(message, len, stream, first + i);
        status = vnxi_link_send_notif(link, message, len, NULL);
    }
    free(message);
    return status;
}

/* Make the descriptors of the control message with this number. */
static inline void
node_make_fds(int *fds, size_t count, uint32_t number)
{
    for (size_t i = 0; i < count; i++) {
        int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        uint64_t own = node_fd_number(number, i);
        if (fd < 0 || write(fd, &own, sizeof own) != (ssize_t)sizeof own) {
            abort();
        }
        fds[i] = vnxi_fork_fd_own(fd);
    }
}

/* `count` control messages of `len` bytes with `fd_count` descriptors each,
 * stream 0, numbered from `first` on.  link NULL: to the last asker. */
static inline vnx_status_t
node_send_control(node_t *node, vnxi_link_t *link, uint32_t first,
                  uint32_t count, size_t len, size_t fd_count)
{
    unsigned char *message = malloc(len);
    int fds[VNXI_CONTROL_FDS_MAX];
    const vnxi_control_t control = {
        .data = message, .len = len, .fds = fds, .fd_count = fd_count};
    vnx_status_t status = VNX_OK;

    for (uint32_t i = 0; i < count && status == VNX_OK; i++) {
        node_message(message, len, 0, first + i);
        node_make_fds(fds, fd_count, first + i);
        status = link != NULL
                     ? vnxi_link_send_control(link, "TEST", &control, NULL)
                     : vnxi_hub_send_control(node->hub, node_look(node).asker,
                                             "TEST", &control, NULL);
    }
    free(message);
    return status;
}

/* -- Peers ---------------------------------------------------------------- */

typedef enum order_kind {
    PEER_LOOK, /* -> node_account_t */
    PEER_OPEN, /* a link to `info` -> status */
    PEER_ECHO, /* send back what comes -> status */
    PEER_SEND, /* `count` of `len`, stream 0, numbers from `first` -> status */
    PEER_ASK,  /* the same, control messages -> status */
    PEER_ANSWER,  /* the same to the last asker, with `fds` -> status */
    PEER_LIMIT,   /* have room for `count` more descriptors -> status */
    PEER_REVOKE,  /* `count` rows -> status */
    PEER_SETTLE,  /* -> status; VNX_ERR_TIMEOUT: not in time */
    PEER_CLOSE,   /* the link -> status */
    PEER_POLL,    /* poll until the next order */
    PEER_HOLD,    /* a child that keeps all descriptors -> its pid */
    PEER_FORK,    /* a child by fork() -> its pid */
    PEER_SEND_DIE /* as SEND, then SIGKILL itself; no answer */
} order_kind_t;

typedef struct order {
    order_kind_t kind;
    vnxi_shm_info_t info;
    uint32_t first, count;
    size_t len, fds;
} order_t;

/* Orders that are answered with a status are with this record. */
typedef struct answer {
    vnx_status_t status;
    vnx_error_t error; /* where status is negative */
} answer_t;

typedef struct peer {
    pid_t pid;
    int orders;
    vnxi_shm_info_t info;
} peer_t;

static inline bool
all_in(int fd, void *data, size_t len)
{
    return recv(fd, data, len, MSG_WAITALL) == (ssize_t)len;
}

static inline bool
all_out(int fd, const void *data, size_t len)
{
    return send(fd, data, len, MSG_NOSIGNAL) == (ssize_t)len;
}

static inline vnx_status_t
peer_revoke(node_t *node, const order_t *order)
{
    vnx_desc_t *descs = calloc(order->count, sizeof *descs);
    for (uint32_t i = 0; i < order->count; i++) {
        descs[i] = (vnx_desc_t){0x1000 + i, 2 * (uint64_t)i + 1, i % 7};
    }
    vnxi_hub_revoke(node->hub, 42, VNX_MEM_DRAM, descs, order->count);
    free(descs);
    return VNX_OK;
}

/* Until the test kills this process, which outlives its parent; a test that
 * fails before it does leaves it behind for a limited time. */
static inline void
wait_to_be_killed(void)
{
    alarm((unsigned)(5 * NODE_DEADLINE_NS / 1000000000));
    for (;;) {
        pause();
    }
}

/* Without the hooks of fork(): as what some other library may start. */
static inline pid_t
child_that_holds(void)
{
    pid_t pid = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    if (pid == 0) {
        wait_to_be_killed();
    }
    return pid;
}

static inline pid_t
child_by_fork(int orders)
{
    pid_t pid = fork();
    if (pid == 0) {
        close(orders);
        wait_to_be_killed();
    }
    return pid;
}

/* Limit the descriptors to those that are open and `room` more. */
static inline void
limit_fds(size_t room)
{
    int taken[256], highest = dup(0);
    struct rlimit limit;

    close(highest); /* the lowest free one */
    for (size_t i = 0; i < room; i++) {
        highest = taken[i] = dup(0);
    }
    for (size_t i = 0; i < room; i++) {
        close(taken[i]);
    }
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = (rlim_t)highest + (room > 0);
    setrlimit(RLIMIT_NOFILE, &limit);
}

static inline bool
peer_obey(node_t *node, vnxi_link_t **link, const order_t *order, int orders)
{
    answer_t answer = {.status = VNX_OK};
    node_account_t account;
    pid_t pid;

    switch (order->kind) {
    case PEER_LOOK:
        account = node_look(node);
        account.fds = open_fds();
        return all_out(orders, &account, sizeof account);
    case PEER_OPEN:
        answer.status =
            node_try_open(node->hub, &order->info, NULL, link, &answer.error);
        break;
    case PEER_ECHO:
        pthread_mutex_lock(&node->lock);
        node->echo = *link;
        pthread_mutex_unlock(&node->lock);
        break;
    case PEER_SEND:
    case PEER_SEND_DIE:
        answer.status =
            node_send(*link, 0, order->first, order->count, order->len);
        if (order->kind == PEER_SEND_DIE) {
            kill(getpid(), SIGKILL);
        }
        break;
    case PEER_ASK:
    case PEER_ANSWER:
        answer.status = node_send_control(
            node, order->kind == PEER_ASK ? *link : NULL, order->first,
            order->count, order->len, order->fds);
        break;
    case PEER_LIMIT:
        limit_fds(order->count);
        break;
    case PEER_REVOKE:
        answer.status = peer_revoke(node, order);
        break;
    case PEER_SETTLE:
        answer.status = vnxi_hub_settle(node->hub, order->count > 0)
                            ? VNX_OK
                            : VNX_ERR_TIMEOUT;
        break;
    case PEER_CLOSE:
        vnxi_link_close(*link);
        break;
    case PEER_POLL:
        while (poll(&(struct pollfd){.fd = orders, .events = POLLIN}, 1, 0) ==
               0) {
            for (int i = 0; i < 20; i++) {
                vnxi_hub_poll(node->hub);
            }
        }
        return true;
    case PEER_HOLD:
    case PEER_FORK:
        pid = order->kind == PEER_HOLD ? child_that_holds()
                                       : child_by_fork(orders);
        return all_out(orders, &pid, sizeof pid);
    }
    return all_out(orders, &answer, sizeof answer);
}

static inline void
peer_main(int orders, const char *name, uid_t uid)
{
    node_t node;
    order_t order;
    vnxi_link_t *link = NULL;

    if ((uid != 0 && (setgid(uid) != 0 || setuid(uid) != 0)) ||
        node_init(&node, name) != VNX_OK ||
        !all_out(orders, &node.info, sizeof node.info)) {
        _exit(1);
    }
    while (all_in(orders, &order, sizeof order) &&
           peer_obey(&node, &link, &order, orders)) {
    }
    vnxi_link_release(link);
    node_fini(&node);
    exit(0);
}

/* As user `uid`; 0: as the test's own. */
static inline void
peer_start_as(peer_t *peer, const char *name, uid_t uid)
{
    int ends[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends),
                     0);
    peer->pid = fork();
    assert_true(peer->pid >= 0);
    if (peer->pid == 0) {
        close(ends[0]);
        peer_main(ends[1], name, uid);
    }
    close(ends[1]);
    peer->orders = ends[0];
    assert_true(all_in(peer->orders, &peer->info, sizeof peer->info));
    node_note_name(&peer->info, name);
}

static inline void
peer_start(peer_t *peer, const char *name)
{
    peer_start_as(peer, name, 0);
}

static inline void
peer_order(const peer_t *peer, const order_t *order)
{
    assert_true(all_out(peer->orders, order, sizeof *order));
}

static inline answer_t
peer_ask(const peer_t *peer, const order_t *order)
{
    answer_t answer;

    peer_order(peer, order);
    assert_true(all_in(peer->orders, &answer, sizeof answer));
    return answer;
}

static inline vnx_status_t
peer_do(const peer_t *peer, const order_t *order)
{
    return peer_ask(peer, order).status;
}

static inline pid_t
peer_child(const peer_t *peer, order_kind_t kind)
{
    pid_t pid;

    peer_order(peer, &(order_t){.kind = kind});
    assert_true(all_in(peer->orders, &pid, sizeof pid));
    assert_true(pid > 0);
    return pid;
}

static inline node_account_t
peer_look(const peer_t *peer)
{
    node_account_t account;

    peer_order(peer, &(order_t){.kind = PEER_LOOK});
    assert_true(all_in(peer->orders, &account, sizeof account));
    return account;
}

/* Wait until a counter of the peer's record, at this offset, is at least
 * `count`, or has not changed for too long; return the record. */
static inline node_account_t
peer_wait(const peer_t *peer, size_t counter, size_t count)
{
    uint64_t deadline = vnxi_clock_deadline(NODE_DEADLINE_NS);
    node_account_t account;
    size_t now, before = 0;

    for (;;) {
        account = peer_look(peer);
        memcpy(&now, (const char *)&account + counter, sizeof now);
        if (now >= count || vnxi_clock_ns() >= deadline) {
            return account;
        }
        if (now != before) {
            deadline = vnxi_clock_deadline(NODE_DEADLINE_NS);
            before = now;
        }
        usleep(1000);
    }
}

static inline node_account_t
peer_wait_notifs(const peer_t *peer, size_t count)
{
    return peer_wait(peer, offsetof(node_account_t, notifs), count);
}

static inline void
peer_kill(peer_t *peer)
{
    if (peer->pid > 0) {
        kill(peer->pid, SIGKILL);
        waitpid(peer->pid, NULL, 0);
        close(peer->orders);
        peer->pid = 0;
    }
}

/* An orderly end; its exit status is 0 where nothing went wrong. */
static inline void
peer_stop(peer_t *peer)
{
    int status;

    shutdown(peer->orders, SHUT_WR);
    assert_int_equal(waitpid(peer->pid, &status, 0), peer->pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    close(peer->orders);
    peer->pid = 0;
}

/* -- A node here, a peer there, a link to it ------------------------------ */

typedef struct pair {
    peer_t peer;
    node_t node;
    vnxi_link_t *link;
} pair_t;

static inline void
pair_open(pair_t *pair)
{
    peer_start(&pair->peer, "prefill");
    assert_int_equal(node_init(&pair->node, "decode"), VNX_OK);
    pair->node.poller = pthread_self();
    pair->link = node_open(&pair->node, &pair->peer.info);
}

static inline void
pair_close(pair_t *pair)
{
    vnxi_link_release(pair->link);
    node_fini(&pair->node);
    peer_stop(&pair->peer);
}

/* -- This process --------------------------------------------------------- */

/* A socket that speaks no protocol, connected to a node's. */
static inline void
raw_connect_fd(int fd, const char *name)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    memcpy(address.sun_path + 1, name, strlen(name));
    assert_int_equal(
        connect(fd, (struct sockaddr *)&address,
                (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 +
                            strlen(name))),
        0);
}

static inline int
raw_connect(const char *name)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    assert_true(fd >= 0);
    raw_connect_fd(fd, name);
    return fd;
}

/* A socket of this process, published as an agent's. */
static inline int
raw_listen(vnxi_shm_info_t *info, int backlog)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int len = snprintf(info->socket, sizeof info->socket, "raw-%d-%d",
                       (int)getpid(), fd);

    assert_true(fd >= 0);
    memcpy(address.sun_path + 1, info->socket, (size_t)len);
    assert_int_equal(bind(fd, (struct sockaddr *)&address,
                          (socklen_t)(offsetof(struct sockaddr_un, sun_path) +
                                      1 + (size_t)len)),
                     0);
    assert_int_equal(listen(fd, backlog), 0);
    memcpy(info->instance, "instance of raw", VNXI_SHM_ID_SIZE);
    return fd;
}

/* Wait for the other end to close. */
static inline bool
raw_is_closed(int fd)
{
    struct pollfd readable = {.fd = fd, .events = POLLIN};
    char byte;

    return poll(&readable, 1, 60000) == 1 && recv(fd, &byte, 1, 0) <= 0;
}

#endif
