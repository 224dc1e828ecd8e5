/*
 * Links: the Unix sockets over which agents of one host tell each other
 * notifications, revocations, and their end.
 *
 * A *hub* is an agent's end of all its links: one listening abstract socket,
 * one epoll set, one thread that sleeps in it.  Whoever loads a peer's
 * metadata opens a link to it and says who it is (HELLO); notifications travel
 * from the opener to the listener, revocations and the end both ways.  Sending
 * never blocks: what the socket does not take is queued (bounded) and sent by
 * the hub's thread.  Opening does not wait for the peer: the kernel completes
 * the connection, the peer's identity is checked by SO_PEERCRED and by the
 * nonce in its memory.
 *
 * The end of a process is noticed by the end of the stream and by a pidfd in
 * the epoll set, since a forked child may hold the socket open.
 *
 * A client that polls takes messages in by itself (vnxi_hub_poll); while it
 * does so often, the hub's thread takes the sockets out of its own wait, looks
 * every 2 ms whether the polling goes on, and puts them back when it does not.
 * So a message to a busy poller costs no thread switch, and a message to a
 * sleeping agent wakes it.
 *
 * Frames: u32 length of what follows, u8 type, body; little-endian.
 *   1 HELLO    u16 version (1), instance[16] of the opener, u32 name length,
 *              name, instance[16] of the agent it wants to reach (a listener
 *              of another instance closes), u64 epoch of the metadata that
 *              it has of that agent (what was revoked since is sent back)
 *   2 NOTIF    the message
 *   3 REVOKE   u64 epoch, u32 count, then count * (u32 mem, u64 addr, u64 len,
 *              u64 dev).  A region that was loaded from metadata of that epoch
 *              or a later one was registered anew and stays.  count 0: all
 *              regions of earlier epochs.
 *   4 BYE      no body: an orderly end (close(), remove_remote_agent)
 * A frame above VNXI_LINK_FRAME_MAX, of unknown type, NOTIF or REVOKE before
 * HELLO, or a malformed body ends the link that brought it, and only that.
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

typedef struct vnxi_hub vnxi_hub_t;
typedef struct vnxi_link vnxi_link_t;

/* Called on the hub's thread or in vnxi_hub_poll(), one at a time, without
 * locks of the hub that sending or closing needs. */
typedef struct vnxi_hub_events {
    void *context;
    /* A notification came over an accepted link. */
    void (*notif)(void *context, const void *sender, size_t sender_len,
                  const void *message, size_t message_len);
    /* The other end of a link that we opened revoked a region. */
    /* NULL: every region that was loaded before that epoch. */
    void (*revoked)(void *context, vnxi_link_t *link, uint64_t epoch,
                    vnx_mem_t mem, const vnx_desc_t *desc);
    /* A link that we opened has ended (not by vnxi_link_close()); once,
     * perhaps before vnxi_link_open() has returned. */
    void (*ended)(void *context, vnxi_link_t *link, const char *cause);
} vnxi_hub_events_t;

typedef struct vnxi_hub_config {
    const void *name; /* copied */
    size_t name_len;
    const unsigned char *instance; /* VNXI_SHM_ID_SIZE bytes, copied */
    vnxi_hub_events_t events;
} vnxi_hub_config_t;

/* Bind, and start the thread.  `socket_p`: the name to publish
 * (VNXI_SHM_SOCKET_MAX bytes). */
vnx_status_t vnxi_hub_create(const vnxi_hub_config_t *config, char *socket_p,
                             vnxi_hub_t **hub_p, vnx_error_t *error);

/* Say BYE on every link, end the thread, close all sockets; after it no
 * callback comes.  Links stay valid (sending fails) until released.  Must not
 * be called from a callback.  In a forked child: closes nothing of the parent
 * and returns. */
void vnxi_hub_stop(vnxi_hub_t *hub);
void vnxi_hub_free(vnxi_hub_t *hub); /* stopped, all links released */

/* Take in what has come, if nobody else is doing so.  Does not block. */
void vnxi_hub_poll(vnxi_hub_t *hub);

/* Tell every agent that opened a link to us.  `epoch`: of the registry, after
 * the removal. */
void vnxi_hub_revoke(vnxi_hub_t *hub, uint64_t epoch, vnx_mem_t mem,
                     const vnx_desc_t *descs, size_t count);

/* Links that others opened to us, now. */
size_t vnxi_hub_accepted(const vnxi_hub_t *hub);

/* Open a link to the agent that `info` describes, which must be of this host:
 * boot id, pid namespace, socket, SO_PEERCRED (pid, uid as published), start
 * time, and its nonce read from its memory (not for a peer in this process).
 * Each refusal is VNX_ERR_BACKEND or VNX_ERR_NOT_ALLOWED with a cause that
 * says which check failed and what to do ("ptrace scope ...").  One reference,
 * the caller's.  `cookie` is for the caller (vnxi_link_cookie). */
vnx_status_t vnxi_link_open(vnxi_hub_t *hub, const vnxi_shm_info_t *info,
                            void *cookie, vnxi_link_t **link_p,
                            vnx_error_t *error);
void *vnxi_link_cookie(const vnxi_link_t *link);
int vnxi_link_pidfd(const vnxi_link_t *link); /* valid until released */

/* Has the link ended? One atomic load. */
bool vnxi_link_ended(const vnxi_link_t *link);

/* Is the other end there?  Asks the kernel, so it sees an end that the loop
 * has not come to yet.  Two system calls at most. */
bool vnxi_link_is_up(vnxi_link_t *link);

/* In the order of the calls; copies what it must queue.
 * VNX_ERR_REMOTE_DISCONNECT; VNX_ERR_BACKEND when the queue is full. */
vnx_status_t vnxi_link_send_notif(vnxi_link_t *link, const void *message,
                                  size_t len, vnx_error_t *error);

/* Say BYE (after what is queued, where it can be sent at once) and close; no
 * `ended` comes afterwards (one that is running now may still finish).
 * Idempotent. */
void vnxi_link_close(vnxi_link_t *link);
vnxi_link_t *vnxi_link_retain(vnxi_link_t *link);
void vnxi_link_release(vnxi_link_t *link);

#endif
