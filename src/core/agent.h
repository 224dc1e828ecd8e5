/*
 * The agent and what hangs on it, as the files of core/ share it.
 *
 * Lock order (take from left to right, never back):
 *     choice.lock
 *     load_lock -> peers_lock
 * events.lock, notifs.lock and error_lock are leaves: nothing is called and no
 * other lock is taken while one is held.  Hot calls (posting, states, polling
 * for notifications) take none of them, but for notifs.lock when there is a
 * notification and events.lock when somebody waits.
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

typedef struct vnxi_counters {
    atomic_uint_fast64_t posted, done, failed, cancelled;
    atomic_uint_fast64_t bytes_read, bytes_written, rows, pieces;
    atomic_uint_fast64_t notifs_sent, peers_lost;
    atomic_uint_fast64_t regions, live_dlists, live_xfers;
    atomic_uint_fast64_t xfer_us_log2[32];
} vnxi_counters_t;

struct vnx_agent {
    atomic_uint refs; /* users, prepared lists, transfers */
    unsigned fork_count;
    atomic_bool closed;
    size_t name_len;
    char *name;

    vnxi_choice_t choice;
    atomic_bool has_backend;      /* raised once; the engine is chosen */
    const vnxi_engine_ops_t *ops; /* constant once has_backend, NULL before */
    vnxi_engine_t *engine;
    uint64_t wall_minus_mono_us; /* fixed at the making: for telemetry */

    vnxi_signature_key_t signature_key; /* constant */

    vnxi_mutex_t load_lock; /* one load, removal or close at a time */
    vnxi_mutex_t peers_lock;
    vnxi_name_map_t peers;    /* name -> vnxi_peer_t *; peers_lock */
    uint64_t last_generation; /* load_lock */

    vnxi_events_t events;
    atomic_uint in_flight; /* posts that have not ended */
    atomic_uint failures;  /* counts failed and cancelled posts; raised after
                              the transfer's state, before the signal */
    vnxi_notifs_t notifs;
    vnxi_mutex_t error_lock; /* the error records of transfers */
    vnxi_counters_t counters;

    vnxi_name_map_t rivals; /* load_lock; pairs of agents of one name that a
                               warning was given about; values owned */
};

struct vnx_dlist {
    atomic_uint refs;
    vnx_agent_t *agent; /* retained */
    vnxi_peer_t *peer;  /* the list's; NULL: local */
    vnxi_list_t *list;
};

static inline void
vnxi_count(atomic_uint_fast64_t *counter, uint64_t amount)
{
    atomic_fetch_add_explicit(counter, amount, memory_order_relaxed);
}

/* May this call go on?  VNX_ERR_NOT_ALLOWED in a forked child,
 * VNX_ERR_CLOSED after close.  Two loads. */
static inline bool
vnxi_agent_usable(const vnx_agent_t *agent)
{
    return !vnxi_fork_crossed(agent->fork_count) &&
           !atomic_load_explicit(&agent->closed, memory_order_acquire);
}

/* May a call go on that needs an engine?  VNX_ERR_NOT_FOUND before the first
 * backend. */
vnx_status_t vnxi_agent_ready(const vnx_agent_t *agent, const char *operation,
                              vnx_error_t *error);

/* Why not, as an error. */
vnx_status_t vnxi_agent_refuse(const vnx_agent_t *agent, const char *operation,
                               vnx_error_t *error);

/* -- Peers (peers.c) -------------------------------------------------------
 */

/* The peer of that name with a reference of the caller's; the agent itself
 * for its own name.  VNX_ERR_NOT_FOUND. */
vnx_status_t vnxi_peers_find(vnx_agent_t *agent, const void *name,
                             size_t name_len, const char *operation,
                             vnxi_peer_t **peer_p, vnx_error_t *error);

/* Close and forget all of them. */
void vnxi_peers_close(vnx_agent_t *agent);

/* Free `rivals`. */
void vnxi_peers_forget_rivals(vnx_agent_t *agent);

/* The engine says that a peer is gone (host callback). */
void vnxi_peers_lost(void *context, vnxi_peer_t *peer,
                     const vnx_error_t *cause);

/* -- Transfers (xfer.c) ----------------------------------------------------
 */

/* Borrowed: the transfer keeps it alive. */
vnx_agent_t *vnxi_xfer_agent(const vnx_xfer_t *xfer);
/* It is not in flight. */
bool vnxi_xfer_has_ended(const vnx_xfer_t *xfer);

/* The engine says that a transfer has ended (host callback). */
void vnxi_xfer_done(void *context, void *cookie, vnx_status_t status,
                    const vnx_error_t *error);

#endif
