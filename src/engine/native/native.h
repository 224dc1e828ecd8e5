/*
 * The native engine, shared by its files.
 *
 * Lock order: load (core) -> directory -> engine.peers_lock -> peer.lock.
 * engine.inbound_lock, engine.flight_lock and engine.waiting_lock are leaves.
 * The hub is called without any of these locks except load.
 */
#ifndef VNXI_NATIVE_NATIVE_H
#define VNXI_NATIVE_NATIVE_H

#include <stdatomic.h>

#include "base/mutex.h"
#include "engine/engine.h"
#include "engine/native/confirm.h"
#include "engine/native/identity.h"
#include "engine/native/reach.h"
#include "engine/native/shm/hub.h"
#include "engine/native/ucx/conn.h"
#include "engine/parts/list.h"
#include "engine/parts/peer.h"
#include "engine/parts/region.h"

#define VNXI_NATIVE_BACKENDS 2 /* "UCX", "SHM": backends.c */

/* A parameter of a created backend; owned. */
typedef struct vnxi_owned_param {
    char *key, *value;
} vnxi_owned_param_t;

typedef struct vnxi_native_backend {
    atomic_bool created;
    vnxi_owned_param_t *params; /* written once, before `created` */
    size_t param_count;
} vnxi_native_backend_t;

struct vnxi_engine {
    atomic_uint refs; /* held by the core and by peers of other agents in
                         this process */
    unsigned fork_count;
    atomic_bool stopped;
    char *name; /* owned */
    size_t name_len;
    unsigned num_threads;

    /* Agents of this process may call the host's notif callback. stop() takes
     * this lock, so that no call comes after it. */
    vnxi_mutex_t inbound_lock;
    vnxi_engine_host_t host;

    vnxi_mutex_t backend_lock; /* creating backends and the hub */
    vnxi_native_backend_t backends[VNXI_NATIVE_BACKENDS];
    _Atomic(vnxi_hub_t *) hub; /* NULL before the first backend */
    vnxi_identity_t identity;  /* without the epoch */
    vnxi_shm_info_t info; /* where peers find this agent; fixed with hub */
    _Atomic(vnxi_ucx_t *) ucx;        /* NULL: not open; no_ucx says why */
    char no_ucx[VNX_ERROR_CAUSE_MAX]; /* written once, before `created` */
    vnxi_mutex_t map_lock;            /* mapping regions for UCX */

    vnxi_registry_t *registry;
    vnxi_native_peer_t *self;

    vnxi_mutex_t peers_lock;
    vnxi_native_peer_t *peers; /* peers with a link; peers_lock */
    uintptr_t last_peer_id;    /* peers_lock */

    vnxi_mutex_t flight_lock;
    vnxi_cond_t landed;
    size_t in_flight; /* transfers on the copy threads; flight_lock */

    vnxi_mutex_t waiting_lock;
    vnxi_exfer_t *waiting; /* waiting until owners confirm regions;
                              waiting_lock */

    vnxi_engine_t *next; /* the directory of this process; its lock */
    unsigned char nonce[VNXI_SHM_ID_SIZE]; /* at info.nonce_addr: the instance
                                              id until stop(), then zeros */
};

typedef enum vnxi_path {
    VNXI_PATH_SELF,
    VNXI_PATH_PROCESS, /* another agent of this process */
    VNXI_PATH_SHM,
    VNXI_PATH_UCX,
} vnxi_path_t;

struct vnxi_native_peer {
    vnxi_peer_t base;
    vnxi_engine_t *engine; /* our own; outlives the peer */
    vnxi_path_t path;
    vnxi_engine_t *local; /* PROCESS: the other engine, retained */
    vnxi_link_t *link;    /* PROCESS and SHM; owned */
    vnxi_ucx_conn_t *ucx; /* UCX; owned */
    uintptr_t id; /* the cookie of the link or connection; never reused */
    bool is_ours; /* a vllm_nixl agent; peers by UCX may be stock agents */
    vnxi_identity_t identity; /* of ours */
    vnxi_shm_info_t info;     /* pid 0: the metadata has none */
    vnxi_peer_end_t end;

    vnxi_mutex_t lock;
    vnxi_region_table_t *table;       /* lock; NULL for SELF, which uses the
                                         registry's table */
    uint64_t epoch;                   /* lock; epoch of the last full blob */
    vnxi_confirm_t confirm;           /* lock; SHM only */
    char no_map[VNX_ERROR_CAUSE_MAX]; /* lock; why a shared region could not
                                         be mapped; "" if none failed */
    char no_shm[VNX_ERROR_CAUSE_MAX]; /* UCX: why SHM is not used; fixed
                                         with it */

    atomic_uint_fast64_t bytes, xfers, notifs; /* sent or read */
    vnxi_native_peer_t *next;                  /* engine->peers_lock */
};

static inline vnxi_native_peer_t *
vnxi_native_peer(vnxi_peer_t *peer)
{
    return (vnxi_native_peer_t *)peer; /* base is the first member */
}

extern const vnxi_engine_ops_t vnxi_native_ops;

void vnxi_native_retain(vnxi_engine_t *engine);
void vnxi_native_unref(vnxi_engine_t *engine);

/* -- The directory of the process (directory.c) ----------------------------
 */

/* From the creation of its first backend until stop(), an engine can be found
 * by the instance id of its blob. find() returns a reference, released by
 * vnxi_native_unref(), or NULL. */
void vnxi_directory_add(vnxi_engine_t *engine);
void vnxi_directory_remove(vnxi_engine_t *engine);
vnxi_engine_t *vnxi_directory_find(const unsigned char *instance);

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
void vnxi_native_backends_fini(vnxi_engine_t *engine);

/* Check that every name in the NULL-terminated list (NULL: nothing to check)
 * is a created backend; else VNX_ERR_NOT_FOUND. */
vnx_status_t vnxi_native_check_backends(vnxi_engine_t *engine,
                                        const char *const *backends,
                                        const char *operation,
                                        vnx_error_t *error);

/* Open UCX (backend_ucx.c).  Requires backend_lock.  Without a library:
 * VNX_OK, one warning per process, and engine->no_ucx says why. */
vnx_status_t vnxi_native_open_ucx(vnxi_engine_t *engine,
                                  const vnx_param_t *params, size_t count,
                                  vnx_error_t *error);

/* The memory types that can be registered, as a bit set. */
uint32_t vnxi_native_mems(const vnxi_engine_t *engine);

/* The registry's hook; the context is the engine. */
vnx_status_t vnxi_native_attach(void *engine, vnxi_region_t *region,
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

/* -- Peers (peer.c, peer_load.c) -------------------------------------------
 */

vnx_status_t vnxi_native_peer_load(vnxi_engine_t *engine, vnxi_peer_t *current,
                                   const void *blob, size_t len,
                                   vnxi_peer_t **peer_p, vnx_error_t *error);
/* Create a peer without a link and without regions; returns one reference.
 * NULL: no memory. */
vnxi_native_peer_t *vnxi_native_peer_create(vnxi_engine_t *engine,
                                            const void *name, size_t name_len,
                                            vnxi_path_t path);
/* Add the peer to the list in which the hub's events find it.  Call this
 * before opening its link, whose cookie is the peer's id. */
void vnxi_native_peer_enlist(vnxi_native_peer_t *peer);
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
vnx_status_t vnxi_native_describe(vnxi_engine_t *engine, vnxi_peer_t *peer,
                                  vnx_bytes_t *members_p, vnx_error_t *error);

/* Find the peer of a link; returns a reference, or NULL if it was closed. */
vnxi_native_peer_t *vnxi_native_peer_by_link(vnxi_engine_t *engine,
                                             const vnxi_link_t *link);

/* The peer's current regions; returns a reference.  NULL: no memory. */
vnxi_region_table_t *vnxi_native_peer_table(vnxi_native_peer_t *peer);

/* Return whether the peer is gone. */
bool vnxi_native_peer_gone(const vnxi_native_peer_t *peer);

/* Get the cause of the peer's end; "" if it is not gone.
 * vnxi_native_peer_error() sets it as an error that names the peer. */
void vnxi_native_peer_cause(vnxi_native_peer_t *peer,
                            char cause_p[VNX_ERROR_CAUSE_MAX]);
vnx_status_t vnxi_native_peer_error(vnxi_native_peer_t *peer,
                                    const char *operation, vnx_error_t *error);

/* Callbacks for UCX; the context is the engine. */
void vnxi_native_on_notif(void *engine, const void *sender, size_t sender_len,
                          const void *message, size_t message_len);
void vnxi_native_on_ucx_lost(void *engine, uintptr_t id, const char *cause);

/* Callbacks for the hub. */
extern const vnxi_hub_callbacks_t vnxi_native_hub_callbacks;

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
 * the copy threads (xfer_wait.c).  Call this after any event that such a
 * transfer may wait for.  It reports nothing itself, so callers of the engine
 * may hold their locks. */
void vnxi_native_xfers_look(vnxi_engine_t *engine);
const char *vnxi_native_xfer_backend(const vnxi_exfer_t *exfer);
void vnxi_native_xfer_estimate(const vnxi_exfer_t *exfer,
                               int64_t *duration_us_p, int64_t *margin_us_p);

#endif
