/*
 * A link: a Unix socket between two agents of one host.
 *
 * An agent that loads a peer's metadata opens a link to the peer and
 * identifies itself.  Notifications and questions about registered regions
 * (engine/native/confirm.h) go from the opener to the listener, answers and
 * revocations from the listener to the opener, and the end both ways.
 * link_frame.h has the format.  Whatever arrives is reported by the callbacks
 * of the agent's hub (hub.h).
 *
 * Sending never blocks: data that the socket does not take is queued (bounded)
 * and sent by the hub's thread.  Opening does not wait for the peer: the
 * kernel completes the connection, and the peer's identity is checked by
 * SO_PEERCRED and by the nonce in its memory.  The exceptions, 5 s at most
 * each: opening waits for room in the peer's backlog, and where the peer must
 * first allow access to its memory (ptrace.h), for its answer.
 */
#ifndef VNXI_NATIVE_SHM_LINK_H
#define VNXI_NATIVE_SHM_LINK_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <vnx/vnx.h>

#include "engine/native/shm/link_frame.h"
#include "engine/native/shm/shm_wire.h"

#define VNXI_LINK_QUEUE_MAX (256u << 20)
/* An honest agent waits for at most four answers with 64 handles each
 * (cuda/import.c) and for 16 windows.  That is about a quarter of the
 * descriptors that most systems allow a process. */
#define VNXI_LINK_QUEUE_FDS_MAX 272u

typedef struct vnxi_hub vnxi_hub_t; /* hub.h */
typedef struct vnxi_link vnxi_link_t;

/* Where a link leads.  All pointers are borrowed for the call. */
typedef struct vnxi_link_target {
    const vnxi_shm_info_t *info; /* of vnxi_shm_info_read() */
    const void *name;            /* of the agent */
    size_t name_len;
    const atomic_bool *stop; /* as soon as it is set, opening waits for nothing
                                more: VNX_ERR_CANCELED; NULL: none */
    void *cookie;            /* for the caller (vnxi_link_cookie) */
} vnxi_link_target_t;

/* Open a link to an agent.  It must be on this host: boot id, pid namespace,
 * socket, SO_PEERCRED (pid and uid as published), start time, and the nonce
 * read from its memory are checked.  For an agent of this process the nonce
 * proves nothing and is not read: the caller has found the agent itself.  The
 * agent checks its name and instance later, and ends the link if they do not
 * match.  Each refusal is VNX_ERR_BACKEND or VNX_ERR_NOT_ALLOWED with a cause
 * that says which check failed and how to fix it ("ptrace scope ...").
 * VNX_ERR_CLOSED: the hub is stopped.  The caller gets one reference. */
vnx_status_t vnxi_link_open(vnxi_hub_t *hub, const vnxi_link_target_t *target,
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

/* Answer the hub's event `settle`.  Errors as above. */
vnx_status_t vnxi_link_send_settled(vnxi_link_t *link, uint64_t token,
                                    vnx_error_t *error);

/* Send a message of another transport, whose entry in metadata is `entry`; as
 * carry_question() and carry_answer() of the contract.  Errors as above. */
vnx_status_t vnxi_link_send_control(vnxi_link_t *link, const char *entry,
                                    const vnxi_control_t *control,
                                    vnx_error_t *error);

/* Wait until the queued data is sent or the link has ended, for 2 s at most:
 * the peer may have been stopped. */
void vnxi_link_drain(vnxi_link_t *link);

/* Send BYE (after the queued data, if that can be sent at once) and close.  No
 * `ended` comes afterwards (one that is running now may still finish).
 * Idempotent. */
void vnxi_link_close(vnxi_link_t *link);
vnxi_link_t *vnxi_link_retain(vnxi_link_t *link);
void vnxi_link_release(vnxi_link_t *link);

#endif
