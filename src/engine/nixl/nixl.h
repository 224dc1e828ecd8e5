/*
 * The nixl engine, shared by its files: implements the engine contract with
 * the stock NIXL library.
 *
 * The engine itself keeps registrations, peers' regions and prepared lists,
 * with the same parts as the native engine.  It thus refuses bad input with
 * the same messages, and calls the library, which reports no causes, only when
 * the call can succeed.  A prepared list uses nothing in the library.  A
 * transfer passes the library the merged pieces of its pairs or, if they are
 * many and scattered, indices into a list prepared in the library (indexed.c).
 *
 * Lock order (taken from left to right only):
 *     backend_lock or mem_lock -> gate -> flight_lock -> inbox_lock
 * xfers_lock, twins_lock, take_lock and a peer's lock are leaves; the
 * library's own locks come after all of them.
 *
 * A thread that enters the library with a region or a peer holds the gate for
 * reading.  Taking it for writing and releasing it again waits until nobody
 * uses anything that was revoked before (vnxi_nixl_settle).
 */
#ifndef VNXI_NIXL_NIXL_H
#define VNXI_NIXL_NIXL_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/error.h"
#include "base/mutex.h"
#include "engine/engine.h"
#include "engine/nixl/library.h"
#include "engine/nixl/poller.h"
#include "engine/parts/list.h"
#include "engine/parts/peer.h"
#include "engine/parts/region.h"

#define VNXI_NIXL_BACKENDS_MAX 32 /* number of bits in a set of backends */

typedef struct vnxi_nixl_peer vnxi_nixl_peer_t;
typedef struct vnxi_nixl_twin vnxi_nixl_twin_t;   /* indexed.c */
typedef struct vnxi_nixl_batch vnxi_nixl_batch_t; /* memory.c */

typedef struct vnxi_nixl_plugin {
    const char *name;      /* interned */
    bool was_asked;        /* the following fields are valid */
    const char *ucx_guard; /* of the UCX loaded with it; NULL: none */
    uint32_t mems;
    vnxi_nixl_params_t params;
} vnxi_nixl_plugin_t;

/* Written once, before backend_count includes it. */
typedef struct vnxi_nixl_backend {
    const char *name; /* interned */
    nixl_capi_backend_t handle;
    nixl_capi_opt_args_t options; /* select this backend only; never changed */
    uint32_t mems;
    vnxi_nixl_params_t params;
} vnxi_nixl_backend_t;

#define VNXI_NIXL_LISTS_MAX 8

/* The library's lists, emptied, with their capacity; piece_builder.c. */
typedef struct vnxi_nixl_lists {
    vnxi_mutex_t lock; /* a leaf */
    struct {
        vnx_mem_t mem;
        nixl_capi_xfer_dlist_t list;
    } at[VNXI_NIXL_LISTS_MAX];
    size_t count;
} vnxi_nixl_lists_t;

struct vnxi_engine {
    unsigned fork_count;
    atomic_bool stopped;
    char *name; /* owned */
    size_t name_len;
    unsigned num_threads;
    vnxi_engine_host_t host;
    atomic_uint postings; /* posts on the copy threads */

    vnxi_mutex_t backend_lock;
    const vnxi_capi_t *capi;     /* set once, with agent */
    nixl_capi_agent_t agent;     /* backend_lock; constant from the first
                                     backend until stop() */
    bool is_listed;              /* backend_lock; the plugins are known */
    vnxi_nixl_plugin_t *plugins; /* backend_lock */
    size_t plugin_count;         /* backend_lock */
    vnxi_nixl_backend_t backends[VNXI_NIXL_BACKENDS_MAX];
    atomic_size_t backend_count;
    _Atomic(const char *) ucx_guard; /* of a backend's UCX; NULL: none */

    vnxi_rwlock_t gate;

    vnxi_mutex_t mem_lock;     /* serialises registering and deregistering */
    vnxi_registry_t *registry; /* changed only with mem_lock held */
    vnxi_nixl_batch_t *batch;  /* mem_lock: the batch being registered */

    vnxi_nixl_peer_t *self;
    vnxi_nixl_poller_t poller;

    vnxi_mutex_t xfers_lock;
    vnxi_exfer_t *xfers; /* all transfers; xfers_lock */
    vnxi_nixl_lists_t lists;

    vnxi_mutex_t making_lock; /* only trylock: one twin is made at a time */
    vnxi_mutex_t twins_lock;  /* a leaf */
    vnxi_nixl_twin_t *twins;  /* all twins; twins_lock */
};

/* The engine's regions. */
typedef struct vnxi_nixl_region {
    vnxi_region_t base;            /* first */
    atomic_uint_fast32_t backends; /* backends that have the region */
    uint64_t digest;               /* peer's: hash of the published data */
    atomic_bool is_kept;           /* local: an aborted transfer may still
                                      use it */
    char *meta;                    /* local: a path, a key; owned */
    size_t meta_len;
} vnxi_nixl_region_t;

static inline vnxi_nixl_region_t *
vnxi_nixl_region(const vnxi_region_t *region)
{
    return (vnxi_nixl_region_t *)region; /* base is the first member */
}

extern const vnxi_region_class_t vnxi_nixl_region_class; /* memory.c */

/* The engine's prepared lists. */
typedef struct vnxi_nixl_list {
    vnxi_list_t base;                 /* first */
    _Atomic(vnxi_nixl_twin_t *) twin; /* owned; NULL: none; indexed.c */
} vnxi_nixl_list_t;

extern const vnxi_list_class_t vnxi_nixl_list_class; /* indexed.c */

/* The connection info of one of the peer's backends. */
typedef struct vnxi_nixl_conn {
    size_t backend; /* our backend of the same name */
    void *info;     /* owned */
    size_t len;
} vnxi_nixl_conn_t;

struct vnxi_nixl_peer {
    vnxi_peer_t base;
    vnxi_engine_t *engine; /* outlives the peer */
    bool is_self;
    vnxi_peer_end_t end;
    /* Large posts of up to this size return quickly. */
    atomic_uint_fast64_t quick_bytes, quick_pieces;

    /* These identify its instance; for its name's turn in the core. */
    vnxi_nixl_conn_t *conns; /* owned */
    size_t conn_count;
    bool is_loaded;                  /* the library knows the peer, under
                                        this name */
    atomic_uint_fast32_t reached_by; /* backends that both agents have */

    vnxi_mutex_t lock;
    vnxi_region_table_t *table; /* lock; NULL for self: the registry's */
};

static inline vnxi_nixl_peer_t *
vnxi_nixl_peer(vnxi_peer_t *peer)
{
    return (vnxi_nixl_peer_t *)peer; /* base is the first member */
}

/* -- Life (engine.c) --------------------------------------------------------
 */

vnx_status_t vnxi_nixl_create(const vnxi_engine_config_t *config,
                              vnxi_engine_t **engine_p, vnx_error_t *error);
void vnxi_nixl_stop(vnxi_engine_t *engine);
void vnxi_nixl_destroy(vnxi_engine_t *engine);

/* -- Entering the library --------------------------------------------------
 */

/* Take the gate for reading.  False: the engine has stopped and the library's
 * agent is gone. */
static inline bool
vnxi_nixl_enter(vnxi_engine_t *engine)
{
    vnxi_rwlock_read(&engine->gate);
    if (!atomic_load_explicit(&engine->stopped, memory_order_acquire)) {
        return true;
    }
    vnxi_rwlock_unlock(&engine->gate);
    return false;
}

static inline void
vnxi_nixl_leave(vnxi_engine_t *engine)
{
    vnxi_rwlock_unlock(&engine->gate);
}

/* Wait until every thread that entered before has left. */
static inline void
vnxi_nixl_settle(vnxi_engine_t *engine)
{
    vnxi_rwlock_write(&engine->gate);
    vnxi_rwlock_unlock(&engine->gate);
}

/* The error if the engine has stopped. */
static inline vnx_status_t
vnxi_nixl_stopped(const char *operation, vnx_error_t *error)
{
    return vnxi_error_set(error, VNX_ERR_CLOSED, operation,
                          "the agent is closed");
}

/* -- Backends (backends.c) --------------------------------------------------
 */

vnx_status_t vnxi_nixl_probe(vnxi_engine_t *engine, vnx_error_t *error);
const char *vnxi_nixl_plugin(vnxi_engine_t *engine, size_t i);
vnx_status_t vnxi_nixl_plugin_mems(vnxi_engine_t *engine, const char *backend,
                                   uint32_t *mems_p, vnx_error_t *error);
vnx_status_t vnxi_nixl_param(vnxi_engine_t *engine, const char *backend,
                             bool created, size_t i, vnx_param_t *param_p,
                             vnx_error_t *error);
vnx_status_t vnxi_nixl_backend_create(vnxi_engine_t *engine,
                                      const char *backend,
                                      const vnx_param_t *params, size_t count,
                                      vnx_error_t *error);
void vnxi_nixl_backends_fini(vnxi_engine_t *engine);

/* The set for a NULL-terminated list of names; 0 for NULL.  VNX_ERR_NOT_FOUND:
 * a name without a created backend. */
vnx_status_t vnxi_nixl_backend_set(vnxi_engine_t *engine,
                                   const char *const *backends,
                                   const char *operation, uint32_t *set_p,
                                   vnx_error_t *error);
/* The created backends; those that accept memory of a type. */
uint32_t vnxi_nixl_all_backends(vnxi_engine_t *engine);
uint32_t vnxi_nixl_backends_for(vnxi_engine_t *engine, vnx_mem_t mem);
/* "UCX, POSIX". */
void vnxi_nixl_backend_names(vnxi_engine_t *engine, uint32_t set, char *text,
                             size_t size);

/* -- Memory (memory.c) -------------------------------------------------------
 */

vnx_status_t vnxi_nixl_register(vnxi_engine_t *engine, vnx_mem_t mem,
                                const vnx_reg_desc_t *descs, size_t count,
                                const char *const *backends,
                                vnx_error_t *error);
vnx_status_t vnxi_nixl_deregister(vnxi_engine_t *engine, vnx_mem_t mem,
                                  const vnx_reg_desc_t *descs, size_t count,
                                  const char *const *backends,
                                  vnx_error_t *error);
vnx_status_t vnxi_nixl_attach(void *context, vnxi_region_t *region,
                              vnx_error_t *error); /* the registry's hook */
vnx_status_t vnxi_nixl_query(vnxi_engine_t *engine, vnx_mem_t mem,
                             const vnx_reg_desc_t *descs, size_t count,
                             const char *backend, vnx_mem_info_t *infos,
                             vnx_error_t *error);

/* -- Metadata (blob.c) ------------------------------------------------------
 */

vnx_status_t vnxi_nixl_metadata(vnxi_engine_t *engine, vnx_bytes_t *bytes_p,
                                vnx_error_t *error);
vnx_status_t vnxi_nixl_partial_metadata(vnxi_engine_t *engine, vnx_mem_t mem,
                                        const vnx_reg_desc_t *descs,
                                        size_t count, bool with_connection,
                                        const char *const *backends,
                                        vnx_bytes_t *bytes_p,
                                        vnx_error_t *error);

/* -- Peers (peer.c, peer_load.c) --------------------------------------------
 */

/* Create a peer without regions and with one reference.  NULL: no memory. */
vnxi_nixl_peer_t *vnxi_nixl_peer_create(vnxi_engine_t *engine,
                                        const void *name, size_t name_len);
void vnxi_nixl_conns_free(vnxi_nixl_conn_t *conns, size_t count);
vnx_status_t vnxi_nixl_peer_load(vnxi_engine_t *engine, vnxi_peer_t *current,
                                 const vnxi_parsed_t *parsed,
                                 const atomic_bool *stop, vnxi_peer_t **peer_p,
                                 vnx_error_t *error);
void vnxi_nixl_peer_close(vnxi_peer_t *peer, const char *cause);
void vnxi_nixl_peer_destroy(vnxi_peer_t *peer);
vnx_status_t vnxi_nixl_peer_connect(vnxi_peer_t *peer, vnx_error_t *error);
bool vnxi_nixl_peer_covers(vnxi_peer_t *peer, vnx_mem_t mem,
                           const vnx_desc_t *descs, size_t count);
uint32_t vnxi_nixl_peer_pid(vnxi_peer_t *peer);
vnx_status_t vnxi_nixl_notif_send(vnxi_peer_t *peer, const void *message,
                                  size_t len, vnx_error_t *error);
void vnxi_nixl_peer_status(vnxi_peer_t *peer, vnxi_peer_status_t *status_p);
void vnxi_nixl_describe(vnxi_engine_t *engine, vnxi_peer_t *peer,
                        vnxi_writer_t *out);

/* Its current regions, with a reference for the caller; NULL: no memory. */
vnxi_region_table_t *vnxi_nixl_peer_table(vnxi_nixl_peer_t *peer);

/* The error for a peer that is gone. */
vnx_status_t vnxi_nixl_peer_error(vnxi_nixl_peer_t *peer,
                                  const char *operation, vnx_error_t *error);

/* Return whether the peer is alive and the library still knows it: some
 * versions drop a peer whose connection has failed.  Requires the gate. */
bool vnxi_nixl_peer_is_there(const vnxi_nixl_peer_t *peer);

/* Mark the peer as lost because its connection is broken, and tell the core
 * once. */
void vnxi_nixl_peer_lose(vnxi_nixl_peer_t *peer, const char *operation);

/* The error for a library call on the peer that failed; `what` describes the
 * action.  If the failure means that the peer is gone, mark it as lost and
 * tell the core. */
vnx_status_t vnxi_nixl_peer_failed(vnxi_nixl_peer_t *peer, int code,
                                   const char *operation, const char *what,
                                   vnx_error_t *error);

/* -- The library's lists (piece_builder.c) ---------------------------------
 */

/* An empty list for memory of that type; NULL: no memory. */
nixl_capi_xfer_dlist_t vnxi_nixl_list_take(vnxi_engine_t *engine,
                                           vnx_mem_t mem);
/* Return a list that holds `count` descriptors. */
void vnxi_nixl_list_give(vnxi_engine_t *engine, vnx_mem_t mem,
                         nixl_capi_xfer_dlist_t list, size_t count);
void vnxi_nixl_lists_fini(vnxi_engine_t *engine);

/* -- Transfers (xfer.c) -----------------------------------------------------
 */

vnx_status_t vnxi_nixl_xfer_prepare(vnxi_engine_t *engine,
                                    const vnxi_xfer_args_t *args,
                                    vnxi_exfer_t **exfer_p,
                                    vnxi_xfer_facts_t *facts_p,
                                    vnx_error_t *error);
vnx_status_t vnxi_nixl_xfer_post(vnxi_exfer_t *exfer, const void *notif,
                                 size_t notif_len, vnx_error_t *error);
vnx_status_t vnxi_nixl_xfer_cancel(vnxi_exfer_t *exfer);
void vnxi_nixl_xfer_release(vnxi_exfer_t *exfer);
const char *vnxi_nixl_xfer_backend(const vnxi_exfer_t *exfer);
void vnxi_nixl_xfer_estimate(const vnxi_exfer_t *exfer, int64_t *duration_us_p,
                             int64_t *margin_us_p);

/* Release everything that transfers hold in the library.  Nothing is in
 * flight, and nobody enters any more. */
void vnxi_nixl_xfers_drop(vnxi_engine_t *engine);

#endif
