/*
 * The agent and its parts, shared by the files of core/.
 *
 * Locks.  choice.lock is held while an engine is chosen or stopped.  All
 * others (load_lock, peers_lock, counters_lock, events.lock, notifs.lock and
 * error_lock) are leaves: while one of them is held, no function of another
 * file is called and no other lock is taken.  Hot calls (posting, states,
 * polling for notifications) take none of these locks, with two exceptions:
 * notifs.lock if a notification is pending and events.lock if somebody waits.
 */
#ifndef VNXI_CORE_AGENT_H
#define VNXI_CORE_AGENT_H

#include <stdatomic.h>

#include "base/error.h"
#include "base/fork.h"
#include "base/mutex.h"
#include "base/name_map.h"
#include "core/choice.h"
#include "core/events.h"
#include "core/notifs.h"
#include "engine/engine.h"
#include "engine/parts/signature.h"

/* Counters that belong to no peer; those of a peer: engine/counters.h. */
typedef struct vnxi_agent_counters {
    atomic_uint_fast64_t peers_lost;
    atomic_uint_fast64_t regions, bytes_registered, bytes_deregistered;
    atomic_uint_fast64_t live_dlists, live_xfers;
    atomic_uint_fast64_t last_bytes[2]; /* by vnx_op_t */
    atomic_uint_fast64_t last_xfer_ns, last_post_ns;
    atomic_uint_fast64_t last_registered, last_deregistered;
    atomic_uint_fast64_t refusals[VNX_STATUS_COUNT];
} vnxi_agent_counters_t;

/* A peer that is being loaded or removed (peers.c). */
typedef struct vnxi_turn {
    struct vnxi_turn *next;
    const void *name;
    size_t name_len;
} vnxi_turn_t;

struct vnx_agent {
    atomic_uint refs; /* users, prepared lists, transfers */
    void (*destroy)(struct vnx_agent *agent); /* no references are left */
    unsigned fork_count;
    atomic_bool closed;
    size_t name_len;
    char *name;

    vnxi_choice_t choice;
    _Atomic(vnxi_candidate_t *) chosen; /* NULL before the first backend;
                                           changed with choice.lock held,
                                           constant once is_bound is set */
    atomic_bool is_bound;               /* the engine cannot change any more */
    atomic_bool may_wait;               /* that of `ops` */
    const vnxi_engine_ops_t *ops;       /* those of `chosen` */
    vnxi_engine_t *engine;
    uint64_t wall_minus_mono_us; /* set at creation; for telemetry */

    vnxi_signature_key_t signature_key; /* constant */

    vnxi_mutex_t load_lock;
    vnxi_turn_t *turns;    /* load_lock; one for a name at a time */
    vnxi_cond_t turn_ends; /* load_lock */
    bool is_stopped;       /* load_lock; close() has done everything */
    vnxi_cond_t stop_ends; /* load_lock */
    vnxi_mutex_t peers_lock;
    vnxi_name_map_t peers;    /* name -> vnxi_peer_t *; peers_lock */
    uint64_t last_generation; /* peers_lock */

    vnxi_events_t events;
    atomic_uint in_flight; /* posts in progress */
    atomic_uint failures;  /* number of failed and cancelled posts;
                              incremented after the transfer's state is
                              stored and before the signal */
    vnxi_notifs_t notifs;
    vnxi_mutex_t error_lock; /* protects the error records of transfers */
    vnxi_agent_counters_t counters;

    vnxi_mutex_t counters_lock;
    vnxi_peer_t *counted; /* peers whose objects are alive, without the agent
                             itself; counters_lock */
    uint64_t retired[VNXI_COUNTERS]; /* sums over those that are freed;
                                        counters_lock */

    vnxi_name_map_t rivals; /* pairs of agents with one name that have been
                               warned about; load_lock; values owned */
};

struct vnx_dlist {
    atomic_uint refs;
    vnx_agent_t *agent; /* retained */
    vnxi_peer_t *peer;  /* peer of the rows; NULL: local */
    vnxi_list_t *list;
};

/* Count the failure of a call that prepares a list or a transfer; returns the
 * status. */
static inline vnx_status_t
vnxi_count_refusal(vnx_agent_t *agent, vnx_status_t status)
{
    if (status < 0) {
        vnxi_count(&agent->counters.refusals[vnx_status_index(status)], 1);
    }
    return status;
}

/* Return whether calls may proceed: not in a forked child and not after close.
 * Two loads. */
static inline bool
vnxi_agent_usable(const vnx_agent_t *agent)
{
    return !vnxi_fork_crossed(agent->fork_count) &&
           !atomic_load_explicit(&agent->closed, memory_order_acquire);
}

/* Return VNX_OK if a call that needs an engine may proceed;
 * VNX_ERR_NOT_ALLOWED in a forked child, VNX_ERR_CLOSED after close,
 * VNX_ERR_NOT_FOUND before the first backend. */
vnx_status_t vnxi_agent_ready(const vnx_agent_t *agent, const char *operation,
                              vnx_error_t *error);

/*
 * An agent is bound to its engine when somebody outside depends on it: memory
 * is registered, a peer is loaded, metadata was read, a list is prepared.
 * Before that, creating a backend may change the engine, so a call that uses
 * `ops` and `engine` first binds the agent, or holds the engine meanwhile.
 */

/* vnxi_agent_ready(), and bind the agent. */
vnx_status_t vnxi_agent_bind(vnx_agent_t *agent, const char *operation,
                             vnx_error_t *error);

/* Keep the engine from changing until vnxi_agent_unhold() is called with the
 * result.  Takes choice.lock, unless the agent is bound or not usable.
 * `binds`: bind the agent. */
bool vnxi_agent_hold(vnx_agent_t *agent);
void vnxi_agent_unhold(vnx_agent_t *agent, bool is_held, bool binds);

/* The error for a call on an agent that is not usable. */
vnx_status_t vnxi_agent_refuse(const vnx_agent_t *agent, const char *operation,
                               vnx_error_t *error);

/* vnx_agent_release() for threads of an engine.  NULL is allowed. */
void vnxi_agent_release_in_callback(vnx_agent_t *agent);

/* -- Peers (peers.c) -------------------------------------------------------
 */

/* Find a peer by name; the agent's own name finds the agent itself.  The
 * caller gets a reference.  Errors: VNX_ERR_NOT_FOUND. */
vnx_status_t vnxi_peers_find(vnx_agent_t *agent, const void *name,
                             size_t name_len, const char *operation,
                             vnxi_peer_t **peer_p, vnx_error_t *error);

/* Add to the record of a row that no region of `peer` (NULL: this agent)
 * holds, if another agent has registered memory there. */
void vnxi_peers_add_owner(vnx_agent_t *agent, vnxi_peer_t *peer, vnx_mem_t mem,
                          vnx_error_t *error);

/* vnx_agent_load_metadata(), but the caller gets a reference to the peer: the
 * generation that the blob describes. */
vnx_status_t vnxi_peers_load(vnx_agent_t *agent, const void *blob, size_t len,
                             vnxi_peer_t **peer_p, vnx_error_t *error);

/* The same in two steps.  The first one waits for no peer. */
typedef struct vnxi_peer_md {
    vnxi_parsed_t *parsed; /* owned: vnxi_peer_md_free() */
    const void *name;      /* of the peer; in the blob, as name_len bytes */
    size_t name_len;
} vnxi_peer_md_t;

/* Check the syntax and the signature.  The result borrows the blob. */
vnx_status_t vnxi_peer_md_parse(vnx_agent_t *agent, const void *blob,
                                size_t len, vnxi_peer_md_t *md_p,
                                vnx_error_t *error);
void vnxi_peer_md_free(vnx_agent_t *agent, vnxi_peer_md_t *md);

/* `stop` (NULL: none): as soon as it is set, the call waits for nothing more
 * and returns VNX_ERR_CANCELED. */
vnx_status_t vnxi_peer_md_load(vnx_agent_t *agent, const vnxi_peer_md_t *md,
                               const atomic_bool *stop, vnxi_peer_t **peer_p,
                               vnx_error_t *error);

/* vnx_agent_remove_peer() with `stop` as above. */
vnx_status_t vnxi_peers_remove(vnx_agent_t *agent, const void *name,
                               size_t name_len, const atomic_bool *stop,
                               vnx_error_t *error);

/* Close and remove all peers. */
void vnxi_peers_close(vnx_agent_t *agent);

/* Free `rivals`. */
void vnxi_peers_forget_rivals(vnx_agent_t *agent);

/* Host callback: the engine has lost a peer. */
void vnxi_peers_lost(void *context, vnxi_peer_t *peer,
                     const vnx_error_t *cause);

/* Count a notification for the peer that sent it, if that is loaded. */
void vnxi_peers_count_notif(vnx_agent_t *agent, const void *sender,
                            size_t sender_len);

/* -- Counters (stats.c) ----------------------------------------------------
 */

/* Include the peer's counters in the agent's totals, from now until the peer
 * is freed and for good. */
void vnxi_counters_add_peer(vnx_agent_t *agent, vnxi_peer_t *peer);

/* Write the counters of a peer as members of a JSON object. */
void vnxi_counters_write(const vnxi_peer_t *peer, vnxi_writer_t *out);

/* -- Prepared lists (dlist.c) ----------------------------------------------
 */

/* vnx_dlist_begin() for this generation of a peer; peer NULL: local. */
vnx_status_t vnxi_dlist_begin(vnx_agent_t *agent, vnxi_peer_t *peer,
                              vnx_mem_t mem, const char *const *backends,
                              vnx_dlist_builder_t **out_p, vnx_error_t *error);

/* End a build that had this status: finish it, or abort it after an error. */
vnx_status_t vnxi_dlist_end(vnx_dlist_builder_t *builder, vnx_status_t status,
                            vnx_dlist_t **out_p, vnx_error_t *error);

/* Prepare a list of the engine for one transfer only.  peer NULL: local. */
vnx_status_t vnxi_list_make(vnx_agent_t *agent, vnxi_peer_t *peer,
                            vnx_mem_t mem, const vnx_desc_t *rows,
                            size_t count, const char *const *backends,
                            const char *operation, vnxi_list_t **list_p,
                            vnx_error_t *error);

/* -- Transfers (xfer.c) ----------------------------------------------------
 */

/* Borrowed: the transfer keeps it alive. */
vnx_agent_t *vnxi_xfer_agent(const vnx_xfer_t *xfer);

/* Host callback: a transfer has ended. */
void vnxi_xfer_done(void *context, void *cookie, vnx_status_t status,
                    const vnx_error_t *error);

#endif
