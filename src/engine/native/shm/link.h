/*
 * Links: the Unix sockets over which agents of one host send each other
 * notifications, revocations, and their end.
 *
 * A *hub* is an agent's side of all its links: one listening abstract socket,
 * one epoll set, one thread that sleeps in it.  An agent that loads a peer's
 * metadata opens a link to the peer and identifies itself (HELLO).
 * Notifications go from the opener to the listener, revocations from the
 * listener to the opener, and the end both ways.  Sending never blocks: data
 * that the socket does not take is queued (bounded) and sent by the hub's
 * thread.  Opening does not wait for the peer: the kernel completes the
 * connection, and the peer's identity is checked by SO_PEERCRED and by the
 * nonce in its memory.
 *
 * The end of a process is noticed by the end of the stream and by a pidfd in
 * the epoll set, because a forked child may hold the socket open.
 *
 * A client that polls receives messages itself (vnxi_hub_poll).  While it
 * polls often, the hub's thread does not wait for the sockets but checks every
 * 2 ms that the polling goes on, and waits for them again when it stops.  So a
 * message to a busy poller costs no thread switch, and a message to a sleeping
 * agent wakes it.
 *
 * Over a link that it opened, an agent also asks which regions of the peer's
 * metadata the peer has registered (CONFIRM); see engine/native/confirm.h.
 *
 * Frames: u32 length of the rest, u8 type, body; little-endian.
 *   1 HELLO    u16 version (2), instance[16] of the opener, u32 name length,
 *              name, instance[16] and u32 name length, name of the agent to
 *              reach (any other agent answers with REFUSE)
 *   2 NOTIF    the message
 *   3 REVOKE   u64 epoch, u32 count, then count * (u32 mem, u64 addr, u64 len,
 *              u64 dev): these were deregistered before that epoch
 *   4 BYE      no body: an orderly end (close(), remove_remote_agent)
 *   5 CONFIRM  u64 token, u32 count, then count * (u32 mem, u64 addr, u64 len,
 *              u64 dev, u32 1 if it is shared, u64 offset, u64 st_dev,
 *              u64 st_ino; all 0 if it is not): are these registered now?
 *   6 CONFIRMED u64 token, u64 epoch of the registry at the lookup, u32 count,
 *              then count * u32, ascending: indices of rows not registered
 *   7 REFUSE   instance[16], u32 name length, name of the listener, which is
 *              not the agent that HELLO named; then the end
 * The opener sends HELLO, NOTIF, CONFIRM and BYE, the listener the others and
 * BYE.  A frame above VNXI_LINK_FRAME_MAX, of unknown type, from the wrong
 * side, before HELLO, or with a malformed body ends the link on which it
 * arrived, and only that link.
 */
#ifndef VNXI_NATIVE_SHM_LINK_H
#define VNXI_NATIVE_SHM_LINK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <vnx/vnx.h>

#include "engine/native/shm/shm_wire.h"

#define VNXI_LINK_FRAME_MAX (1u << 30)
#define VNXI_LINK_QUEUE_MAX (256u << 20)
#define VNXI_LINK_ROWS_MAX 1024u   /* in a CONFIRM */
#define VNXI_LINK_ROWS_AT_ONCE 64u /* per call of `confirm` */

typedef struct vnxi_hub vnxi_hub_t;
typedef struct vnxi_link vnxi_link_t;

/* A region as metadata describes it.  The descriptor number in `map_info` only
 * tells whether the region is shared (>= 0). */
typedef struct vnxi_link_row {
    vnx_mem_t mem;
    vnx_desc_t desc;
    vnxi_map_info_t map_info;
} vnxi_link_row_t;

/* The answer to vnxi_link_ask(). */
typedef struct vnxi_link_answer {
    uint64_t token;
    uint64_t epoch; /* of the owner's registry at the lookup */
    size_t count;
    uint32_t refused[VNXI_LINK_ROWS_MAX]; /* `count` row indices, ascending */
} vnxi_link_answer_t;

/* Called on the hub's thread or in vnxi_hub_poll(), one at a time, without
 * those locks of the hub that sending or closing needs. */
typedef struct vnxi_hub_callbacks {
    void *context;
    /* A notification arrived over an accepted link. */
    void (*notif)(void *context, const void *sender, size_t sender_len,
                  const void *message, size_t message_len);
    /* The other end of a link opened by this agent revoked a region. */
    void (*revoked)(void *context, vnxi_link_t *link, uint64_t epoch,
                    vnx_mem_t mem, const vnx_desc_t *desc);
    /* A link opened by this agent has ended (not by vnxi_link_close()).
     * Called once, perhaps before vnxi_link_open() has returned. */
    void (*ended)(void *context, vnxi_link_t *link, const char *cause);
    /* The other end of an accepted link asks about regions: set refused_p[i]
     * if row i is not registered here.  At most VNXI_LINK_ROWS_AT_ONCE rows,
     * perhaps none.  Returns the registry's epoch. */
    uint64_t (*confirm)(void *context, const vnxi_link_row_t *rows,
                        size_t count, bool *refused_p);
    /* The other end of a link opened by this agent has answered.  False: the
     * answer does not fit the question, and the link ends. */
    bool (*confirmed)(void *context, vnxi_link_t *link,
                      const vnxi_link_answer_t *answer);
    /* The time set by vnxi_hub_alarm() has come.  On the hub's thread. */
    void (*alarm)(void *context);
} vnxi_hub_callbacks_t;

typedef struct vnxi_hub_config {
    const void *name; /* copied */
    size_t name_len;
    const unsigned char *instance; /* VNXI_SHM_ID_SIZE bytes, copied */
    vnxi_hub_callbacks_t callbacks;
} vnxi_hub_config_t;

/* Bind the socket and start the thread.  `socket_p` gets the name to publish
 * (VNXI_SHM_SOCKET_MAX bytes). */
vnx_status_t vnxi_hub_create(const vnxi_hub_config_t *config, char *socket_p,
                             vnxi_hub_t **hub_p, vnx_error_t *error);

/* Send BYE on every link, end the thread, and close all sockets; no callback
 * comes afterwards.  Links stay valid (sending fails) until released.  Must
 * not be called from a callback.  In a forked child: closes nothing that
 * belongs to the parent, and returns. */
void vnxi_hub_stop(vnxi_hub_t *hub);
void vnxi_hub_free(vnxi_hub_t *hub); /* stopped, all links released */

/* Handle pending events unless another thread is doing so.  Does not block. */
void vnxi_hub_poll(vnxi_hub_t *hub);

/* Notify every agent that opened a link to this one.  `epoch`: of the
 * registry, after the removal. */
void vnxi_hub_revoke(vnxi_hub_t *hub, uint64_t epoch, vnx_mem_t mem,
                     const vnx_desc_t *descs, size_t count);

/* Call `alarm` at that time (CLOCK_MONOTONIC, ns), or earlier if it is already
 * set to an earlier time.  Takes no lock. */
void vnxi_hub_alarm(vnxi_hub_t *hub, uint64_t when);

/* The current number of links opened by other agents to this one. */
size_t vnxi_hub_accepted(const vnxi_hub_t *hub);

/* Open a link to the agent that `info` describes.  The agent must be on this
 * host: boot id, pid namespace, socket, SO_PEERCRED (pid and uid as
 * published), start time, and the nonce read from its memory are checked.  For
 * an agent of this process the nonce proves nothing and is not read: the
 * caller has found the agent itself.  The agent checks its name and instance
 * later, and ends the link if they do not match. Each refusal is
 * VNX_ERR_BACKEND or VNX_ERR_NOT_ALLOWED with a cause that says which check
 * failed and how to fix it ("ptrace scope ...").  The caller gets one
 * reference.  `cookie` is for the caller (vnxi_link_cookie). */
vnx_status_t vnxi_link_open(vnxi_hub_t *hub, const vnxi_shm_info_t *info,
                            const void *name, size_t name_len, void *cookie,
                            vnxi_link_t **link_p, vnx_error_t *error);
void *vnxi_link_cookie(const vnxi_link_t *link);
int vnxi_link_pidfd(const vnxi_link_t *link); /* valid until the link is
                                                 released */

/* Return whether the link has ended.  One atomic load. */
bool vnxi_link_ended(const vnxi_link_t *link);

/* Return whether the other end is there.  Asks the kernel, so it sees an end
 * that the loop has not handled yet.  At most two system calls. */
bool vnxi_link_is_up(vnxi_link_t *link);

/* Send a notification, in the order of the calls; copies the part that it must
 * queue.  VNX_ERR_REMOTE_DISCONNECT; VNX_ERR_BACKEND if the queue is full. */
vnx_status_t vnxi_link_send_notif(vnxi_link_t *link, const void *message,
                                  size_t len, vnx_error_t *error);

/* Ask the other end of a link opened by this agent which of these regions it
 * has registered now: at most VNXI_LINK_ROWS_MAX, perhaps none.  The answer
 * comes by `confirmed` with the same token.  One question at a time.  Errors
 * as above. */
vnx_status_t vnxi_link_ask(vnxi_link_t *link, uint64_t token,
                           const vnxi_link_row_t *rows, size_t count,
                           vnx_error_t *error);

/* Send BYE (after the queued data, if that can be sent at once) and close.  No
 * `ended` comes afterwards (one that is running now may still finish).
 * Idempotent. */
void vnxi_link_close(vnxi_link_t *link);
vnxi_link_t *vnxi_link_retain(vnxi_link_t *link);
void vnxi_link_release(vnxi_link_t *link);

#endif
