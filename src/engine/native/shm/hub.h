/*
 * The hub: an agent's side of all its links (link.h) to agents of this host.
 *
 * A hub has one listening abstract socket, one epoll set with the sockets and
 * pidfds of all links, and one thread that sleeps in it.  Each event is
 * handled by the thread or in vnxi_hub_poll(), whichever comes first.
 *
 * A client that polls receives messages itself.  While it polls often, the
 * hub's thread does not wait for the sockets but checks every 2 ms that the
 * polling goes on, and waits for them again when it stops.  So a message to a
 * busy poller costs no thread switch, and a message to a sleeping agent wakes
 * it.
 *
 * The end of a process is noticed by the end of the stream and by a pidfd in
 * the epoll set, because a forked child may hold the socket open.
 *
 * Locks.  `loop` is held by the thread that handles events: only the hub's
 * thread, vnxi_hub_catch_up() and vnxi_hub_stop() wait for it, all others try
 * it.  `lists` protects
 * the list of links, and each link has a `send_lock`.  The order is
 *     loop -> lists -> send_lock
 * Callbacks run with `loop` held and the others free.  Sending and closing do
 * not need `loop`, so a callback may do both.
 *
 * Any thread may call any function here and in link.h, except that a callback
 * must not call vnxi_hub_stop() or vnxi_hub_free().
 */
#ifndef VNXI_NATIVE_SHM_HUB_H
#define VNXI_NATIVE_SHM_HUB_H

#include "engine/native/shm/link.h"

#define VNXI_HUB_ROWS_MAX 64u /* per call of `confirm` */

/* Called on the hub's thread or in vnxi_hub_poll(), one at a time. */
typedef struct vnxi_hub_callbacks {
    void *context;
    /* A notification arrived over an accepted link. */
    void (*notif)(void *context, const void *sender, size_t sender_len,
                  const void *message, size_t message_len);
    /* The other end of a link opened by this agent revoked a region. */
    void (*revoked)(void *context, vnxi_link_t *link, uint64_t epoch,
                    vnx_mem_t mem, const vnx_desc_t *desc);
    /* The other end of a link opened by this agent is about to end: use none
     * of its memory from now on.  `settle` follows. */
    void (*closing)(void *context, vnxi_link_t *link);
    /* A link opened by this agent has ended (not by vnxi_link_close()).
     * Called once, perhaps before vnxi_link_open() has returned. */
    void (*ended)(void *context, vnxi_link_t *link, const char *cause);
    /* The other end of an accepted link asks about regions: set refused_p[i]
     * if row i is not registered here.  At most VNXI_HUB_ROWS_MAX rows,
     * perhaps none.  Returns the registry's epoch. */
    uint64_t (*confirm)(void *context, const vnxi_link_row_t *rows,
                        size_t count, bool *refused_p);
    /* The other end of a link opened by this agent has answered.  False: the
     * answer does not fit the question, and the link ends. */
    bool (*confirmed)(void *context, vnxi_link_t *link,
                      const vnxi_link_answer_t *answer);
    /* The other end of a link opened by this agent waits until nothing here
     * touches what it has revoked: call vnxi_link_send_settled() then.  An
     * answer also counts for lower tokens. */
    void (*settle)(void *context, vnxi_link_t *link, uint64_t token);
    /* A message of another transport has arrived over an accepted link, or
     * over a link opened by this agent; as on_question() and on_answer() of
     * the contract. */
    void (*question)(void *context, const void *entry, size_t entry_len,
                     uint64_t link_id, const vnxi_control_t *control);
    void (*answered)(void *context, const void *entry, size_t entry_len,
                     vnxi_link_t *link, const vnxi_control_t *control);
    /* An accepted link has ended, whichever side has ended it. */
    void (*asker_gone)(void *context, uint64_t link_id);
    /* The time set by vnxi_hub_alarm() has come.  On the hub's thread. */
    void (*alarm)(void *context);
} vnxi_hub_callbacks_t;

typedef struct vnxi_hub_config {
    const void *name; /* copied */
    size_t name_len;
    const unsigned char *instance; /* VNXI_SHM_ID_SIZE bytes, copied */
    const vnxi_shm_info_t *local;  /* of vnxi_shm_info_local(), copied */
    vnxi_hub_callbacks_t callbacks;
} vnxi_hub_config_t;

/* Bind the socket and start the thread.  `socket_p` gets the name to publish
 * (VNXI_SHM_SOCKET_MAX bytes). */
vnx_status_t vnxi_hub_create(const vnxi_hub_config_t *config, char *socket_p,
                             vnxi_hub_t **hub_p, vnx_error_t *error);

/* Send BYE on every link, end the thread, and close all sockets; no callback
 * comes afterwards.  Links stay valid (sending fails) until released.  In a
 * forked child: closes nothing that belongs to the parent, and returns. */
void vnxi_hub_stop(vnxi_hub_t *hub);
void vnxi_hub_free(vnxi_hub_t *hub); /* stopped, all links released */

/* Handle pending events unless another thread is doing so.  Does not block. */
void vnxi_hub_poll(vnxi_hub_t *hub);

/* Handle what has arrived on a link before this call, at most 16 MiB.  Waits
 * while another thread handles events. */
void vnxi_hub_catch_up(vnxi_hub_t *hub, const vnxi_link_t *link);

/* Notify every agent that opened a link to this one.  `epoch`: of the
 * registry, after the removal. */
void vnxi_hub_revoke(vnxi_hub_t *hub, uint64_t epoch, vnx_mem_t mem,
                     const vnx_desc_t *descs, size_t count);

/* Wait until no agent that has asked about regions touches those that were
 * revoked before, for 2 s at most: an agent may have been stopped.  `closes`:
 * any region; this agent is about to end.  False: one has not answered. */
bool vnxi_hub_settle(vnxi_hub_t *hub, bool closes);

/* Send a message of another transport over the accepted link with this id. */
vnx_status_t vnxi_hub_send_control(vnxi_hub_t *hub, uint64_t link_id,
                                   const char *entry,
                                   const vnxi_control_t *control,
                                   vnx_error_t *error);

/* Call `alarm` at that time (CLOCK_MONOTONIC, ns), or earlier if it is already
 * set to an earlier time.  Takes no lock. */
void vnxi_hub_alarm(vnxi_hub_t *hub, uint64_t when);

/* The current number of links opened by other agents to this one. */
size_t vnxi_hub_accepted(const vnxi_hub_t *hub);

#endif
