/*
 * The native engine, shared by its files.  A file calls only files that come
 * after it: ops, describe, blob, memory, native, backends, peer_load,
 * peer_table, xfer, xfer_run, peer, region_access, plan; and the transports
 * by their table only (transport.h).
 *
 * Locks: base/mutex.h.  Transports are called without any lock of this file
 * except backend_lock (opening a port), and that of the registry's changes
 * (attaching regions).
 */
#ifndef VNXI_NATIVE_NATIVE_H
#define VNXI_NATIVE_NATIVE_H

#include <stdatomic.h>

#include "base/mutex.h"
#include "engine/engine.h"
#include "engine/native/region_access.h"
#include "engine/native/transports.h"
#include "engine/parts/list.h"
#include "engine/parts/peer.h"
#include "engine/parts/region.h"

typedef struct vnxi_native_peer vnxi_native_peer_t;

/* A parameter of a created backend; owned. */
typedef struct vnxi_owned_param {
    char *key, *value;
} vnxi_owned_param_t;

/* A transport as a backend, and the agent's port. */
typedef struct vnxi_native_backend {
    atomic_bool created;        /* by create_backend() */
    vnxi_owned_param_t *params; /* written once, before `created` */
    size_t param_count;
    _Atomic(vnxi_port_t *) port; /* owned; NULL: not open */
    _Atomic(char *) missing;     /* owned: why not, if it should be; set once;
                                    others may read it meanwhile */
} vnxi_native_backend_t;

struct vnxi_engine {
    atomic_uint refs; /* held by the core and by conns of other agents in
                         this process */
    unsigned fork_count;
    atomic_bool stopped;
    char *name; /* owned */
    size_t name_len;
    unsigned num_threads;
    vnxi_identity_t identity; /* without the epoch */
    vnxi_engine_host_t host;

    vnxi_mutex_t backend_lock; /* creating backends and ports */
    vnxi_native_backend_t backends[VNXI_TRANSPORTS];
    vnxi_registry_t *registry;
    vnxi_reach_t reach; /* of all open ports; used while the registry does not
                           change */
    vnxi_native_peer_t *self;

    vnxi_mutex_t peers_lock;
    vnxi_native_peer_t *peers; /* all but self; peers_lock */
    uintptr_t last_peer_id;    /* peers_lock */

    vnxi_mutex_t flight_lock;
    vnxi_cond_t landed;
    size_t in_flight; /* transfers posted and not reported; flight_lock */

    vnxi_mutex_t waiting_lock;
    vnxi_exfer_t *waiting; /* waiting until owners confirm regions;
                              waiting_lock */
    /* Pointers for files below those that define these functions. */
    void (*look)(vnxi_engine_t *engine); /* vnxi_native_xfers_look() */
    void (*free)(vnxi_engine_t *engine); /* the last reference is gone */
};

struct vnxi_native_peer {
    vnxi_peer_t base;
    vnxi_engine_t *engine;    /* our own; outlives the peer */
    uintptr_t id;             /* of its conns; never reused */
    bool is_ours;             /* a vllm_nixl agent */
    vnxi_identity_t identity; /* if is_ours */
    /* The transports from `main` on can be used if they have a conn; the main
     * one carries notifications.  A conn of an earlier one was refused. */
    atomic_uint main;
    _Atomic(vnxi_conn_t *) conns[VNXI_TRANSPORTS]; /* owned; set once */
    atomic_uint given_up; /* bit t: the slots of transport t do not work */
    vnxi_peer_end_t end;

    vnxi_mutex_t lock;
    vnxi_region_table_t *table; /* lock; NULL for the agent itself, which uses
                                   the registry's table */
    uint64_t epoch;             /* lock; epoch of the last full metadata */
    char refused[VNXI_TRANSPORTS][VNX_ERROR_CAUSE_MAX]; /* lock; why a conn was
                                                           refused, or "" */

    vnxi_native_peer_t *next; /* engine->peers_lock */
};

static inline vnxi_native_peer_t *
vnxi_native_peer(vnxi_peer_t *peer)
{
    return (vnxi_native_peer_t *)peer; /* base is the first member */
}

/* The open port of a transport; NULL: not open. */
static inline vnxi_port_t *
vnxi_native_port(const vnxi_engine_t *engine, unsigned t)
{
    return atomic_load_explicit(&engine->backends[t].port,
                                memory_order_acquire);
}

/* Why a transport that was asked for is not open; "" if it is or was not. */
static inline const char *
vnxi_native_missing(const vnxi_engine_t *engine, unsigned t)
{
    const char *why = atomic_load_explicit(&engine->backends[t].missing,
                                           memory_order_acquire);
    return why != NULL ? why : "";
}

/* The conn that can be used with a peer; NULL: none. */
static inline vnxi_conn_t *
vnxi_native_conn(const vnxi_native_peer_t *peer, unsigned t)
{
    return t < atomic_load_explicit(&peer->main, memory_order_relaxed)
               ? NULL
               : atomic_load_explicit(&peer->conns[t], memory_order_acquire);
}

extern const vnxi_engine_ops_t vnxi_native_ops;

/* -- Life (native.c) -------------------------------------------------------
 */

vnx_status_t vnxi_native_create(const vnxi_engine_config_t *config,
                                vnxi_engine_t **engine_p, vnx_error_t *error);
void vnxi_native_stop(vnxi_engine_t *engine);
void vnxi_native_update(void *engine); /* vnxi_port_host_t's `update` */
bool vnxi_native_settle(void *engine, bool waits); /* its `settle` */

/* Wait until nothing is in flight; the engine is stopped. */
void vnxi_native_settle_stopped(vnxi_engine_t *engine);

static inline void
vnxi_native_retain(vnxi_engine_t *engine)
{
    atomic_fetch_add_explicit(&engine->refs, 1, memory_order_relaxed);
}

static inline void
vnxi_native_unref(vnxi_engine_t *engine)
{
    if (atomic_fetch_sub(&engine->refs, 1) == 1) {
        engine->free(engine);
    }
}

/* -- Backends (backends.c) -------------------------------------------------
 */

const char *vnxi_native_plugin(vnxi_engine_t *engine, size_t i);
vnx_status_t vnxi_native_plugin_mems(vnxi_engine_t *engine,
                                     const char *backend, uint32_t *mems_p,
                                     vnx_error_t *error);
vnx_status_t vnxi_native_param(vnxi_engine_t *engine, const char *backend,
                               bool created, size_t i, vnx_param_t *param_p,
                               vnx_error_t *error);
vnx_status_t vnxi_native_backend_create(vnxi_engine_t *engine,
                                        const char *backend,
                                        const vnx_param_t *params,
                                        size_t count, vnx_error_t *error);

/* Free the ports and the parameters. */
void vnxi_native_backends_fini(vnxi_engine_t *engine);

/* Check that every name in the NULL-terminated list (NULL: nothing to check)
 * is a created backend; else VNX_ERR_NOT_FOUND. */
vnx_status_t vnxi_native_check_backends(vnxi_engine_t *engine,
                                        const char *const *backends,
                                        const char *operation,
                                        vnx_error_t *error);

/* -- Memory (memory.c) -----------------------------------------------------
 */

vnx_status_t vnxi_native_register(vnxi_engine_t *engine, vnx_mem_t mem,
                                  const vnx_reg_desc_t *descs, size_t count,
                                  const char *const *backends,
                                  vnx_error_t *error);
vnx_status_t vnxi_native_deregister(vnxi_engine_t *engine, vnx_mem_t mem,
                                    const vnx_reg_desc_t *descs, size_t count,
                                    const char *const *backends,
                                    vnx_error_t *error);

/* -- Our metadata (blob.c) -------------------------------------------------
 */

vnx_status_t vnxi_native_metadata(vnxi_engine_t *engine, vnx_bytes_t *bytes_p,
                                  vnx_error_t *error);
vnx_status_t vnxi_native_partial_metadata(vnxi_engine_t *engine, vnx_mem_t mem,
                                          const vnx_reg_desc_t *descs,
                                          size_t count, bool with_connection,
                                          const char *const *backends,
                                          vnx_bytes_t *bytes_p,
                                          vnx_error_t *error);

/* -- Peers (peer.c, peer_load.c, describe.c) -------------------------------
 */

vnx_status_t vnxi_native_peer_load(vnxi_engine_t *engine, vnxi_peer_t *current,
                                   const vnxi_parsed_t *parsed,
                                   const atomic_bool *stop,
                                   vnxi_peer_t **peer_p, vnx_error_t *error);
/* The table of a peer's regions from its metadata (peer_table.c). */
typedef struct vnxi_peer_table_args {
    const vnxi_metadata_t *blob;
    vnxi_native_peer_t *peer;       /* its conns select the sections to use */
    const vnxi_region_table_t *old; /* NULL: the peer is new */
    bool adds_only;                 /* keep the regions of `old` */
    uint64_t epoch;                 /* of the blob */
} vnxi_peer_table_args_t;

/* Build the new table.  Region objects that are still valid are kept, so that
 * lists prepared on them stay valid; the others are created.  After an error
 * nothing has changed. */
vnx_status_t vnxi_peer_table_build(const vnxi_peer_table_args_t *args,
                                   vnxi_region_table_t **table_p,
                                   vnx_error_t *error);

/* Create a peer without conns and without regions; returns one reference.
 * NULL: no memory. */
vnxi_native_peer_t *vnxi_native_peer_create(vnxi_engine_t *engine,
                                            const void *name, size_t name_len);
/* Add the peer to the list in which the events of its conns find it, and give
 * it its id. */
void vnxi_native_peer_enlist(vnxi_native_peer_t *peer);

/* Create the peer's conn by a transport whose port is open, unless it has one
 * or the transport does not lead to it.  `info`: its entry in the metadata.
 * `stop`: of vnxi_conn_args_t. */
vnx_status_t vnxi_native_peer_add_conn(vnxi_native_peer_t *peer, unsigned t,
                                       vnxi_md_bytes_t info,
                                       const atomic_bool *stop,
                                       vnx_error_t *error);

/* The peer turned out to be gone: mark it and tell the core (once). */
void vnxi_native_peer_lose(vnxi_native_peer_t *peer, const char *cause);
void vnxi_native_peer_close(vnxi_peer_t *peer, const char *cause);
void vnxi_native_peer_destroy(vnxi_peer_t *peer);
vnx_status_t vnxi_native_peer_connect(vnxi_peer_t *peer, vnx_error_t *error);
bool vnxi_native_peer_covers(vnxi_peer_t *peer, vnx_mem_t mem,
                             const vnx_desc_t *descs, size_t count);
uint32_t vnxi_native_peer_pid(vnxi_peer_t *peer);
vnx_status_t vnxi_native_notif_send(vnxi_peer_t *peer, const void *message,
                                    size_t len, vnx_error_t *error);
void vnxi_native_peer_status(vnxi_peer_t *peer, vnxi_peer_status_t *status_p);
void vnxi_native_describe(vnxi_engine_t *engine, vnxi_peer_t *peer,
                          vnxi_writer_t *out);

/* The peer's current regions; returns a reference.  NULL: no memory. */
vnxi_region_table_t *vnxi_native_peer_table(vnxi_native_peer_t *peer);

/* Return whether the peer is gone. */
static inline bool
vnxi_native_peer_gone(const vnxi_native_peer_t *peer)
{
    return vnxi_peer_end_has_come(&peer->end);
}

/* Set the peer's end as an error that names the peer. */
vnx_status_t vnxi_native_peer_error(vnxi_native_peer_t *peer,
                                    const char *operation, vnx_error_t *error);

/* The callbacks of ports; the context is the engine. */
extern const vnxi_port_host_t vnxi_native_port_host;

/* -- Routes (region_access.c) ----------------------------------------------
 */

/* Which transports with an open port and, if `peer` is not NULL, with a conn
 * move bytes between which kinds of memory. */
void vnxi_native_find_reach(const vnxi_engine_t *engine,
                            const vnxi_native_peer_t *peer,
                            vnxi_reach_t *reach_p);

/* The memory types that the first `count` transports move, as a bit set. Those
 * of all transports can be registered. */
uint32_t vnxi_native_mems(const vnxi_engine_t *engine, unsigned count);

/* Why a transport does not connect these kinds of memory of the agent and the
 * peer; "" if it does. */
void vnxi_native_why_not(vnxi_native_peer_t *peer, unsigned t, vnx_mem_t local,
                         vnx_mem_t remote, char cause_p[VNX_ERROR_CAUSE_MAX]);

/* Set the error for a region of the peer that no transport connects with our
 * memory: the reason of each.  NULL region: any. */
vnx_status_t vnxi_native_no_route(vnxi_native_peer_t *peer, vnx_mem_t local,
                                  vnx_mem_t remote,
                                  const vnxi_region_t *region,
                                  const char *operation, vnx_error_t *error);

/* -- Transfers (xfer.c) ----------------------------------------------------
 */

vnx_status_t vnxi_native_xfer_prepare(vnxi_engine_t *engine,
                                      const vnxi_xfer_args_t *args,
                                      vnxi_exfer_t **exfer_p,
                                      vnxi_xfer_facts_t *facts_p,
                                      vnx_error_t *error);
vnx_status_t vnxi_native_xfer_post(vnxi_exfer_t *exfer, const void *notif,
                                   size_t notif_len, vnx_error_t *error);
vnx_status_t vnxi_native_xfer_cancel(vnxi_exfer_t *exfer);
void vnxi_native_xfer_release(vnxi_exfer_t *exfer);

/* Look for waiting transfers that can go on or have to end, and hand them to
 * the copy threads (xfer_run.c).  Call this, as engine->look, after any event
 * that such a transfer may wait for.  It reports nothing itself, so callers of
 * the engine may hold their locks. */
void vnxi_native_xfers_look(vnxi_engine_t *engine);
const char *vnxi_native_xfer_backend(const vnxi_exfer_t *exfer);
void vnxi_native_xfer_estimate(const vnxi_exfer_t *exfer,
                               int64_t *duration_us_p, int64_t *margin_us_p);

#endif
