/*
 * The engine contract: everything that the agent (src/core) knows about the
 * code that moves its bytes.  `native` (our own) and `nixl` (the stock
 * library) implement it.  This header is enough to write a third engine.
 *
 * Life: create -> probe -> backend_create ... -> stop -> destroy.  stop() ends
 * the engine's threads and everything in flight; after it has returned, the
 * engine calls no host callback.  destroy() frees; the core calls it when no
 * list, transfer or peer of the engine is left.  stop() may be called on an
 * engine without backends, and on one with backends when another engine takes
 * its place (core/choice.h).
 *
 * Threads: any operation may be called from any thread, several at once,
 * except create, stop and destroy (once each), peer_load and peer_close (one
 * at a time for the peers of one name) and the operations on one builder (one
 * thread at a time).
 *
 * Waiting: these operations may wait for longer than it takes to copy a chunk:
 *   probe, the first backend_create   to open libraries
 *   stop()           some seconds for peers and for transfers that cannot be
 *                    stopped
 *   peer_load        up to 10 s for a process of this host
 *   peer_close       up to 2 s for queued notifications, and for transfers
 *                    that cannot be stopped
 *   mem_deregister   up to 2 s for peers that use the memory, and up to 5 s
 *                    for transfers that cannot be stopped
 *   mem_query        for the storage
 * No other operation waits for a peer's answer.  With `may_wait`, every
 * operation may also wait for a lock of the engine's library.
 *
 * Locks: the core holds none of its locks while it calls an operation, except:
 * the lock of its choice for probe and, until the agent is bound
 * (core/agent.h), for any operation; the lock of its deadlines for xfer_cancel
 * when a transfer has timed out.  xfer_done takes the last one too, so
 * xfer_cancel must not call a host callback.  While an engine calls a host
 * callback, it holds no lock that is needed to enter the engine again.
 *
 * Arguments: borrowed for the call, unless marked "kept".
 *
 * Outputs: written on success only.
 *
 * Errors: the engine writes the record (operation, peer, row, cause); the core
 * passes it on.  `operation` names are those of the Python API; they are
 * passed in where several calls share an operation.
 */
#ifndef VNXI_ENGINE_ENGINE_H
#define VNXI_ENGINE_ENGINE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <vnx/vnx.h>

#include "base/bytes.h"
#include "engine/counters.h"

#define VNXI_ENGINE_ABI 1

typedef struct vnxi_engine vnxi_engine_t;   /* defined by the engine */
typedef struct vnxi_builder vnxi_builder_t; /* defined by the engine */
typedef struct vnxi_list vnxi_list_t;       /* defined by the engine */
typedef struct vnxi_exfer vnxi_exfer_t;     /* defined by the engine */
typedef struct vnxi_parsed vnxi_parsed_t;   /* defined by the engine */
typedef struct vnxi_engine_ops vnxi_engine_ops_t;

/*
 * A peer, shared by core and engine: the first member of the engine's own peer
 * object.  One object is one *generation*: a peer that restarted gets a new
 * object, and holders of the old one get errors from it.
 */
typedef struct vnxi_peer {
    atomic_uint refs;
    /* Free the peer, whose last reference is gone; peer_close() was called
     * before.  Set by the engine. */
    void (*destroy)(struct vnxi_peer *peer);
    char *name; /* owned, `name_len` bytes and a NUL */
    size_t name_len;
    uint64_t generation; /* written by the core before the peer is visible
                            to others */

    /* The core's; all zeros in a new object. */
    vnxi_counters_t counters;
    /* Called before `destroy`; NULL: never visible to others, or the agent
     * itself. */
    void (*retire)(struct vnxi_peer *peer);
    struct vnx_agent *agent;        /* borrowed; for `retire` */
    struct vnxi_peer *next, **link; /* agent->counters_lock */
} vnxi_peer_t;

/* What can be said of a peer at any time. */
typedef struct vnxi_peer_status {
    const char *state; /* "connected", "connecting", "lost" */
    char path[128];    /* the transport or the backends that reach it */
    char cause[VNX_ERROR_CAUSE_MAX]; /* "" unless it is lost */
    uint32_t pid;                    /* 0: not known */
} vnxi_peer_status_t;

/*
 * Callbacks from the engine to the core.  Called on any thread, never after
 * stop() has returned, except that a thread which ended a transfer before may
 * still be about to call its xfer_done.  They do not block and do not call
 * into the engine, with one exception: xfer_done may release the transfer, so
 * the engine must not touch it afterwards.
 */
typedef struct vnxi_engine_host {
    void *context;

    /* A transfer that xfer_post() left in progress has ended and no further
     * byte of it will land: VNX_OK, VNX_ERR_CANCELED, or an error with its
     * record.  Called exactly once per post, after the notification was sent.
     */
    void (*xfer_done)(void *context, void *cookie, vnx_status_t status,
                      const vnx_error_t *error);

    /* A notification has arrived (bytes borrowed).  In order per sender. */
    void (*notif)(void *context, const void *sender, size_t sender_len,
                  const void *message, size_t message_len);

    /* The peer is gone; operations on it fail from now on.  Called at most
     * once per peer object. */
    void (*peer_lost)(void *context, vnxi_peer_t *peer,
                      const vnx_error_t *cause);
} vnxi_engine_host_t;

typedef struct vnxi_engine_config {
    const void *agent_name; /* kept until stop() */
    size_t agent_name_len;
    unsigned num_threads; /* copy threads that one transfer may use; > 0 */
    vnxi_engine_host_t host;
} vnxi_engine_config_t;

typedef struct vnxi_xfer_args {
    vnx_op_t op;
    const vnxi_list_t *local, *remote; /* kept: the transfer refers to them */
    vnx_indices_t local_rows, remote_rows;
    bool no_merge;
    void *cookie; /* for host.xfer_done */
    const char *operation;
} vnxi_xfer_args_t;

/* Results of xfer_prepare, for telemetry. */
typedef struct vnxi_xfer_facts {
    uint64_t bytes, rows, pieces;
} vnxi_xfer_facts_t;

struct vnxi_engine_ops {
    uint32_t abi;     /* VNXI_ENGINE_ABI */
    uint32_t size;    /* sizeof(vnxi_engine_ops_t) */
    const char *name; /* "native" */
    bool may_wait;    /* list_release, xfer_prepare, xfer_post, xfer_release,
                         xfer_estimate and notif_poll may wait for calls of
                         other threads */

    /* -- Life ------------------------------------------------------------ */

    /* Opens no library and starts no thread.  The config is copied. */
    vnx_status_t (*create)(const vnxi_engine_config_t *config,
                           vnxi_engine_t **engine_p, vnx_error_t *error);
    void (*stop)(vnxi_engine_t *engine);
    void (*destroy)(vnxi_engine_t *engine);

    /* -- Backends -------------------------------------------------------- */

    /* Check whether the engine works on this machine; if not, return an error
     * with the cause.  Opens the libraries that the engine requires, so the
     * first call may take long.  Called before the first backend_create. */
    vnx_status_t (*probe)(vnxi_engine_t *engine, vnx_error_t *error);

    /* The i-th backend that can be created; NULL past the end, or if the
     * engine does not work here.  Static storage. */
    const char *(*plugin)(vnxi_engine_t *engine, size_t i);
    vnx_status_t (*plugin_mems)(vnxi_engine_t *engine, const char *backend,
                                uint32_t *mems_p, vnx_error_t *error);
    /* `created`: the current values of a created backend, else the defaults.
     * {NULL, NULL} past the end.  Borrowed from the engine. */
    vnx_status_t (*param)(vnxi_engine_t *engine, const char *backend,
                          bool created, size_t i, vnx_param_t *param_p,
                          vnx_error_t *error);
    vnx_status_t (*backend_create)(vnxi_engine_t *engine, const char *backend,
                                   const vnx_param_t *params, size_t count,
                                   vnx_error_t *error);

    /* -- Memory ---------------------------------------------------------- */

    /* All or none.  `backends`: NULL-terminated, NULL for all. */
    vnx_status_t (*mem_register)(vnxi_engine_t *engine, vnx_mem_t mem,
                                 const vnx_reg_desc_t *descs, size_t count,
                                 const char *const *backends,
                                 vnx_error_t *error);
    vnx_status_t (*mem_deregister)(vnxi_engine_t *engine, vnx_mem_t mem,
                                   const vnx_reg_desc_t *descs, size_t count,
                                   const char *const *backends,
                                   vnx_error_t *error);

    /* Ask a storage backend about each row. infos[count] is zeroed by the
     * core, which frees its contents, also after an error.  Engines without
     * storage return VNX_ERR_NOT_SUPPORTED.  May wait for the storage. */
    vnx_status_t (*mem_query)(vnxi_engine_t *engine, vnx_mem_t mem,
                              const vnx_reg_desc_t *descs, size_t count,
                              const char *backend, vnx_mem_info_t *infos,
                              vnx_error_t *error);

    /* -- Metadata and peers ---------------------------------------------- */

    vnx_status_t (*metadata)(vnxi_engine_t *engine, vnx_bytes_t *bytes_p,
                             vnx_error_t *error);
    vnx_status_t (*partial_metadata)(vnxi_engine_t *engine, vnx_mem_t mem,
                                     const vnx_reg_desc_t *descs, size_t count,
                                     bool with_connection,
                                     const char *const *backends,
                                     vnx_bytes_t *bytes_p, vnx_error_t *error);

    /* Parse a blob, which the result borrows, and get the agent's name in it;
     * the name is borrowed from the blob.  Checks the syntax of the whole
     * blob, so a blob that passes is metadata. */
    vnx_status_t (*metadata_parse)(const void *blob, size_t len,
                                   vnxi_parsed_t **parsed_p,
                                   const void **name_p, size_t *name_len_p,
                                   vnx_error_t *error);
    void (*metadata_free)(vnxi_parsed_t *parsed);

    /* Load a blob.  `current` is the peer now known under the blob's name, or
     * NULL.  If the blob comes from the same instance, update `current` and
     * set *peer_p = current, without a new reference.  Otherwise *peer_p is a
     * new object (with one reference, the caller's) and `current` is
     * unchanged; the core installs the new one and closes the old one.  Check
     * everything before changing any state.  `stop` (NULL: none): as soon as
     * it is set, or stop() is called, wait for nothing more. */
    vnx_status_t (*peer_load)(vnxi_engine_t *engine, vnxi_peer_t *current,
                              const vnxi_parsed_t *parsed,
                              const atomic_bool *stop, vnxi_peer_t **peer_p,
                              vnx_error_t *error);

    /* The agent itself as a peer, for transfers within its own memory and
     * notifications to itself.  Borrowed; valid until destroy(). */
    vnxi_peer_t *(*peer_self)(vnxi_engine_t *engine);

    /* End the connection.  Transfers in flight and later calls fail with
     * VNX_ERR_REMOTE_DISCONNECT and `cause`; transfers that cannot be stopped
     * may succeed meanwhile.  Idempotent; does not call peer_lost. */
    void (*peer_close)(vnxi_peer_t *peer, const char *cause);

    /* Connect now.  Does not wait. */
    vnx_status_t (*peer_connect)(vnxi_peer_t *peer, vnx_error_t *error);

    /* Return whether the peer's regions hold all of these descriptors. */
    bool (*peer_covers)(vnxi_peer_t *peer, vnx_mem_t mem,
                        const vnx_desc_t *descs, size_t count);

    /* The process of a peer whose agent is running on this host now,
     * determined even if its end was not noticed yet; 0 if it is not running
     * here or the engine cannot know.  Does not wait. */
    uint32_t (*peer_pid)(vnxi_peer_t *peer);

    /* Get the status of a peer without waiting, and without a call into a
     * library. */
    void (*peer_status)(vnxi_peer_t *peer, vnxi_peer_status_t *status_p);

    /* Write members of a JSON object (base/json.h) about the peer, beyond its
     * status, or about the engine if peer is NULL. */
    void (*describe)(vnxi_engine_t *engine, vnxi_peer_t *peer,
                     vnxi_writer_t *out);

    /* -- Prepared lists -------------------------------------------------- */

    /* peer NULL: rows of the local agent.  The list holds a reference on the
     * peer and on the regions of its rows. */
    vnx_status_t (*list_begin)(vnxi_engine_t *engine, vnxi_peer_t *peer,
                               vnx_mem_t mem, const char *const *backends,
                               const char *operation,
                               vnxi_builder_t **builder_p, vnx_error_t *error);
    vnx_status_t (*list_feed)(vnxi_builder_t *builder, const vnx_desc_t *rows,
                              size_t count, vnx_error_t *error);
    vnx_status_t (*list_feed_strided)(vnxi_builder_t *builder,
                                      const vnx_strided_desc_t *rows,
                                      size_t count, vnx_error_t *error);
    vnx_status_t (*list_finish)(vnxi_builder_t *builder, vnxi_list_t **list_p,
                                vnx_error_t *error); /* frees the builder on
                                                        success only */
    void (*list_abort)(vnxi_builder_t *builder);
    size_t (*list_count)(const vnxi_list_t *list);
    size_t (*list_bytes)(const vnxi_list_t *list);
    void (*list_release)(vnxi_list_t *list);

    /* -- Transfers ------------------------------------------------------- */

    vnx_status_t (*xfer_prepare)(vnxi_engine_t *engine,
                                 const vnxi_xfer_args_t *args,
                                 vnxi_exfer_t **exfer_p,
                                 vnxi_xfer_facts_t *facts_p,
                                 vnx_error_t *error);

    /* Start the transfer.  VNX_OK: done and notification sent; xfer_done is
     * not called.  VNX_IN_PROG: xfer_done will be called, perhaps before this
     * returns.  Negative: nothing was started.  Never called while the
     * transfer is in progress.  The notification (NULL: none) is borrowed
     * until the end of the transfer. */
    vnx_status_t (*xfer_post)(vnxi_exfer_t *exfer, const void *notif,
                              size_t notif_len, vnx_error_t *error);

    /* Ask a transfer in progress to stop soon; xfer_done is still called.
     * Does not wait.  Safe if the transfer has just ended, or is about to be
     * posted (the call may then have no effect): the core calls it again every
     * few milliseconds until the transfer has ended.  VNX_ERR_NOT_SUPPORTED:
     * it cannot be stopped. */
    vnx_status_t (*xfer_cancel)(vnxi_exfer_t *exfer);

    /* Free the transfer.  Never called while it is in progress. */
    void (*xfer_release)(vnxi_exfer_t *exfer);

    const char *(*xfer_backend)(const vnxi_exfer_t *exfer);
    void (*xfer_estimate)(const vnxi_exfer_t *exfer, int64_t *duration_us_p,
                          int64_t *margin_us_p);

    /* -- Notifications --------------------------------------------------- */

    vnx_status_t (*notif_send)(vnxi_peer_t *peer, const void *message,
                               size_t len, vnx_error_t *error);

    /* Called when a client has polled for notifications many times in a row
     * (at every 64th empty poll): receive what has arrived without waiting for
     * the engine's thread.  Must be cheap, and block only with `may_wait`. */
    void (*notif_poll)(vnxi_engine_t *engine);
};

static inline vnxi_peer_t *
vnxi_peer_retain(vnxi_peer_t *peer)
{
    atomic_fetch_add_explicit(&peer->refs, 1, memory_order_relaxed);
    return peer;
}

static inline void
vnxi_peer_release(vnxi_peer_t *peer)
{
    if (peer != NULL && atomic_fetch_sub(&peer->refs, 1) == 1) {
        if (peer->retire != NULL) {
            peer->retire(peer);
        }
        peer->destroy(peer);
    }
}

/* The engines of this build, in the order of preference. */
#define VNXI_ENGINES 2
extern const vnxi_engine_ops_t *const vnxi_engines[VNXI_ENGINES];

#endif
