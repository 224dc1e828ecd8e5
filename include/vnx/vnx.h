/*
 * libvnx: agents that move KV cache between processes and hosts.
 *
 * An *agent* owns *regions* (registered memory), knows *peers* (other agents
 * whose *metadata* was loaded), prepares *descriptor lists*, makes *transfers*
 * from them and exchanges *notifications*.  docs/architecture.md has the
 * overview.
 *
 * Threads    Every call is safe from any thread at any time.
 * Waiting    vnx_agent_wait() waits until the deadline that it is given;
 *            with VNX_FOREVER it has none.  No other call waits without a
 *            limit.  Creating the first backend opens libraries.  Loading
 *            metadata, deregistering memory, removing a peer, closing an
 *            agent, and cancelling or releasing a posted transfer may wait
 *            for a peer, normally for less than 1 ms; their comments give the
 *            limits.  Querying memory may wait for the storage.  If
 *            vnx_agent_may_wait(), every call may wait for a lock.
 * Ownership  "borrows": used during the call only.  "copies": the caller may
 *            free at once.  "returns owned": the caller frees with the named
 *            function.  Objects may be released in any order.
 * Forks      An agent belongs to the process that created it.  In a forked
 *            child its calls return VNX_ERR_NOT_ALLOWED, there are no
 *            notifications, and releases do nothing; plugins, telemetry and
 *            the states of transfers that have ended need no lock and still
 *            work.
 * Errors     A call that returns vnx_status_t fills `error` (may be NULL) and
 *            leaves its outputs untouched when the status is negative.
 * Versions   vnx/version.h says which versions keep the API and the ABI.
 *            Structs that begin with `size` may grow: set it to sizeof the
 *            struct, and zero the fields that you do not set.
 */
#ifndef VNX_H
#define VNX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <vnx/error.h>
#include <vnx/status.h>
#include <vnx/version.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

/* The version of the library: "0.1.0".  VNX_VERSION_STRING is that of the
 * headers that the program was compiled with.  Static storage. */
const char *vnx_version(void);

/* A part that a build of the library may lack. */
typedef struct vnx_feature {
    const char *name;
    bool is_built;
} vnx_feature_t;

/* All features, in alphabetical order.  Static storage.  A feature that is not
 * built returns VNX_ERR_NOT_SUPPORTED from the calls that need it.
 *
 *     http             the HTTP side channel.  Its requests also need libcurl,
 *                      which the first one loads; its listener does not.
 *     shared_secret    shared secrets in side channels
 *     signed_metadata  metadata secrets of agents
 *     tls              TLS with certificates in side channels
 *     zmq              the ZMQ side channel
 */
const vnx_feature_t *vnx_features(size_t *count_p);

/* False also for an unknown name. */
bool vnx_has_feature(const char *name);

/* -- Values --------------------------------------------------------------- */

/* Memory types, numbered as in NIXL (nixl_mem_t) and in its metadata. */
typedef enum vnx_mem {
    VNX_MEM_DRAM = 0,
    VNX_MEM_VRAM = 1,
    VNX_MEM_BLK = 2,
    VNX_MEM_OBJ = 3,
    VNX_MEM_FILE = 4,
} vnx_mem_t;
#define VNX_MEM_COUNT 5

/* "DRAM" for VNX_MEM_DRAM.  Static storage; NULL for an unknown type. */
const char *vnx_mem_name(vnx_mem_t mem);

typedef enum vnx_op {
    VNX_OP_READ = 0,  /* remote to local */
    VNX_OP_WRITE = 1, /* local to remote */
} vnx_op_t;

/* One descriptor: a row of an Nx3 uint64 array. Bytes; device id. */
typedef struct vnx_desc {
    uint64_t addr, len, dev;
} vnx_desc_t;

/* `count` descriptors, `stride` bytes apart: a row of an Nx5 uint64 array. */
typedef struct vnx_strided_desc {
    uint64_t addr, len, dev, stride, count;
} vnx_strided_desc_t;

/* A descriptor to register.  `meta` (a path, a key) is for storage backends.
 */
typedef struct vnx_reg_desc {
    vnx_desc_t desc;
    const void *meta;
    size_t meta_len;
} vnx_reg_desc_t;

/* Indices into a prepared list. `data` NULL means 0, 1, ... count - 1. */
typedef enum vnx_index_type {
    VNX_INDEX_I64,
    VNX_INDEX_U64,
    VNX_INDEX_I32,
    VNX_INDEX_U32,
    VNX_INDEX_I16,
    VNX_INDEX_U16,
    VNX_INDEX_I8,
    VNX_INDEX_U8,
} vnx_index_type_t;

typedef struct vnx_indices {
    const void *data; /* contiguous, aligned to the type */
    size_t count;
    vnx_index_type_t type;
} vnx_indices_t;

/* Owned bytes: the receiver frees `data` with free(). */
typedef struct vnx_bytes {
    void *data;
    size_t len;
} vnx_bytes_t;

/* A text parameter of a backend.  Borrowed when passed in. */
typedef struct vnx_param {
    const char *key, *value;
} vnx_param_t;

/* -- Agent ---------------------------------------------------------------- */

/* Bytes of a metadata secret. */
#define VNX_METADATA_SECRET_MIN 8
#define VNX_METADATA_SECRET_MAX 65535

typedef struct vnx_agent vnx_agent_t;
typedef struct vnx_dlist vnx_dlist_t; /* prepared descriptor list */
typedef struct vnx_xfer vnx_xfer_t;

typedef struct vnx_agent_config {
    size_t size;                 /* sizeof(vnx_agent_config_t) */
    const char *engine;          /* "auto" (NULL), "native", "nixl" */
    unsigned num_threads;        /* copy threads per transfer, and UCX
                                    workers; 0: one per core, at most 4.
                                    More than 16 count as 16 */
    uint64_t notif_bytes_max;    /* limit of pending notifications in bytes;
                                    above it the oldest is dropped.  0: 256
                                    MiB */
    const char *const *backends; /* NULL-terminated (copied), or NULL: the
                                    backends that will be created; "auto"
                                    chooses an engine that has all of them */
    const void *metadata_secret; /* the agent signs the metadata that it
                                    publishes with this secret, and loads
                                    only metadata signed with the same one.
                                    Any bytes; not kept: a key is derived
                                    from it.  NULL:
                                    VLLM_NIXL_METADATA_SECRET, and if that
                                    is not set, no secret */
    size_t metadata_secret_len;  /* VNX_METADATA_SECRET_MIN to _MAX */
} vnx_agent_config_t;

/* Create an agent.  Peers know it by `name` (1 to 65535 bytes of any value,
 * copied).  `config` may be NULL.  Returns owned: vnx_agent_release().  Starts
 * no thread before the first backend.  VNX_ERR_NOT_SUPPORTED: this build lacks
 * the engine, or OpenSSL for a metadata secret. */
vnx_status_t vnx_agent_create(const void *name, size_t name_len,
                              const vnx_agent_config_t *config,
                              vnx_agent_t **out_p, vnx_error_t *error);

/* Stop the agent for good: cancel transfers in flight, tell the peers, wake
 * waiters with VNX_ERR_CLOSED and end the threads.  Later calls return
 * VNX_ERR_CLOSED.  May be called more than once; every call returns when the
 * agent has stopped.  That takes milliseconds, unless peers do not answer:
 * closing waits up to 2 s for peers that are copying memory of the agent, up
 * to 2 s for queued notifications to be sent, up to 2 s for peers to unmap its
 * GPU memory, and for transfers in flight as vnx_xfer_cancel() does.  The
 * engine nixl cannot stop transfers: it waits up to 5 s for them, and then
 * does not free NIXL's agent. */
void vnx_agent_close(vnx_agent_t *agent);

vnx_agent_t *vnx_agent_retain(vnx_agent_t *agent);

/* Release one reference; the last one closes and frees.  NULL is allowed. */
void vnx_agent_release(vnx_agent_t *agent);

/* The name, not NUL-terminated; valid as long as the agent. */
const void *vnx_agent_name(const vnx_agent_t *agent, size_t *len_p);

/* -- Backends ------------------------------------------------------------- */

/* The engine's name ("native"); NULL before the first backend is created.
 * vnx_agent_create_backend() says when it may change. */
const char *vnx_agent_engine(const vnx_agent_t *agent);

/* Return whether calls that make, post, estimate and release transfers or
 * release prepared lists, and vnx_agent_poll_notifs(), may wait for calls of
 * other threads on the agent: with the engine nixl, for a lock of NIXL's.
 * Release a lock that other threads need before such a call.  One atomic load.
 */
bool vnx_agent_may_wait(const vnx_agent_t *agent);

/* The i-th backend that this agent can create; NULL past the last one.  As
 * long as the engine may change, the list covers all engines that may be
 * chosen. Static storage. */
const char *vnx_agent_plugin(vnx_agent_t *agent, size_t i);

/* Memory types of a plugin (or of a created backend) as a bit set: 1 <<
 * VNX_MEM_DRAM | ... VNX_ERR_NOT_FOUND: unknown name. */
vnx_status_t vnx_agent_plugin_mems(vnx_agent_t *agent, const char *backend,
                                   uint32_t *mems_p, vnx_error_t *error);

/* The i-th parameter of a plugin with its default, or of a created backend
 * with its value.  VNX_ERR_NOT_FOUND: unknown name.  *param_p is {NULL, NULL}
 * past the last one.  Borrowed from the agent. */
vnx_status_t vnx_agent_plugin_param(vnx_agent_t *agent, const char *backend,
                                    size_t i, vnx_param_t *param_p,
                                    vnx_error_t *error);
vnx_status_t vnx_agent_backend_param(vnx_agent_t *agent, const char *backend,
                                     size_t i, vnx_param_t *param_p,
                                     vnx_error_t *error);

/* Create a backend ("UCX", "SHM").  The first call chooses the engine ("auto":
 * native if it has every requested backend, else nixl) and starts the agent's
 * thread.  With "auto", a later call for a backend that the engine lacks
 * changes the engine, which takes over the backends created before, as long as
 * no memory was registered, no metadata read, no list prepared, no peer loaded
 * (successfully or not, except for memory and for invalid metadata), and the
 * agent was not named as its own peer.  VNX_ERR_NOT_FOUND: unknown name, or
 * the engine cannot change any more.  VNX_ERR_NOT_ALLOWED: the backend exists
 * already. */
vnx_status_t vnx_agent_create_backend(vnx_agent_t *agent, const char *backend,
                                      const vnx_param_t *params,
                                      size_t param_count, vnx_error_t *error);

/* -- Memory --------------------------------------------------------------- */

/* Register `count` ranges; all or none.  The memory is borrowed until it is
 * deregistered.  Lists prepared on a region keep it, but a transfer posted
 * after deregistration fails with VNX_ERR_NOT_FOUND.  `backends`:
 * NULL-terminated names, NULL for all.  A range may be registered twice (it
 * must then be deregistered twice).  VNX_ERR_INVALID_PARAM, with the row: a
 * length of 0, an overflow, or DRAM whose first or last page is not mapped.
 * Mapping is enough: a reserved range (PROT_NONE) that gets its memory later
 * is accepted. */
vnx_status_t vnx_agent_register(vnx_agent_t *agent, vnx_mem_t mem,
                                const vnx_reg_desc_t *descs, size_t count,
                                const char *const *backends,
                                vnx_error_t *error);

/* Deregister ranges, exactly as they were registered; all or none.  When it
 * returns, nothing on this host touches the memory, unless a peer was stopped
 * (then a warning is logged).  Transfers in flight on it are stopped, as by
 * vnx_xfer_cancel(), and fail with VNX_ERR_NOT_FOUND.  The call waits up to
 * 2 s for peers of this host that are copying the memory, and up to 2 s for
 * those that have mapped GPU memory.  With the engine nixl it waits up to 5 s
 * for transfers in flight. */
vnx_status_t vnx_agent_deregister(vnx_agent_t *agent, vnx_mem_t mem,
                                  const vnx_reg_desc_t *descs, size_t count,
                                  const char *const *backends,
                                  vnx_error_t *error);

/* What a storage backend knows about a descriptor (a file, an object). */
typedef struct vnx_mem_info {
    bool is_there;
    vnx_param_t *params; /* "size", "mtime", ...; sorted by key */
    size_t param_count;
} vnx_mem_info_t;

/* Ask a storage backend whether the files or objects named by the rows (in
 * `meta`: a path, a key) exist, and what it knows about them.
 * (*infos_p)[count] is owned: vnx_mem_infos_free().  VNX_ERR_NOT_SUPPORTED:
 * not a storage backend.  VNX_ERR_NOT_FOUND: the backend was not created.  May
 * wait for the storage. */
vnx_status_t vnx_agent_query_memory(vnx_agent_t *agent, vnx_mem_t mem,
                                    const vnx_reg_desc_t *descs, size_t count,
                                    const char *backend,
                                    vnx_mem_info_t **infos_p,
                                    vnx_error_t *error);
void vnx_mem_infos_free(vnx_mem_info_t *infos, size_t count);

/* -- Metadata and peers --------------------------------------------------- */

/* The agent's complete metadata.  Returns owned: free(bytes_p->data). */
vnx_status_t vnx_agent_metadata(vnx_agent_t *agent, vnx_bytes_t *bytes_p,
                                vnx_error_t *error);

/* Metadata of the given registered regions only, with connection data if
 * `with_connection` (always if count is 0). */
vnx_status_t vnx_agent_partial_metadata(vnx_agent_t *agent, vnx_mem_t mem,
                                        const vnx_reg_desc_t *descs,
                                        size_t count, bool with_connection,
                                        const char *const *backends,
                                        vnx_bytes_t *bytes_p,
                                        vnx_error_t *error);

/* Load a peer's metadata.  *name_p is the peer's name and a NUL (owned:
 * free(name_p->data)).  The blob must not change during the call.
 * Loading the same instance again updates its regions.  Another instance with
 * the same name replaces the old one at once; transfers in flight to the old
 * one fail with VNX_ERR_REMOTE_DISCONNECT.  If the old one is still running on
 * this host, a warning with the agent's name and both processes is logged,
 * once per pair.  (Never by the engine nixl: NIXL's metadata does not identify
 * the process.)
 * Waits up to 10 s for a process of this host that is stopped or does not get
 * to run: 5 s until it accepts a connection, 5 s until it allows access to its
 * memory.  Also waits for other calls that load or remove this peer.
 * Errors: VNX_ERR_MISMATCH (not metadata), VNX_ERR_INVALID_PARAM (our own),
 * VNX_ERR_NOT_FOUND (the agent has no backend, or the blob has no connection
 * data and the peer is not loaded), VNX_ERR_BACKEND (no common way to reach
 * the peer; the cause names each one), VNX_ERR_NOT_ALLOWED (the kernel forbids
 * it, and the cause says how to allow it; or the agent has a metadata secret
 * and the blob is not signed with it), VNX_ERR_REMOTE_DISCONNECT (the blob has
 * no connection data, and the peer is gone), VNX_ERR_CLOSED (the agent is
 * closed). */
vnx_status_t vnx_agent_load_metadata(vnx_agent_t *agent, const void *blob,
                                     size_t len, vnx_bytes_t *name_p,
                                     vnx_error_t *error);

/* Remove a peer; transfers in flight to it fail.  An unknown peer is not an
 * error.  Waits up to 2 s until notifications that are queued for a process of
 * this host are sent, and up to 2 s until GPU memory of the peer is unmapped.
 * With the engine nixl it waits up to 2 s for transfers in flight. */
vnx_status_t vnx_agent_remove_peer(vnx_agent_t *agent, const void *name,
                                   size_t name_len, vnx_error_t *error);

/* Return whether the peer is known and has registered all of these
 * descriptors.  `count` may be 0. */
bool vnx_agent_check_peer(vnx_agent_t *agent, const void *name,
                          size_t name_len, vnx_mem_t mem,
                          const vnx_desc_t *descs, size_t count);

/* Connect now instead of at first use. */
vnx_status_t vnx_agent_connect_peer(vnx_agent_t *agent, const void *name,
                                    size_t name_len, vnx_error_t *error);

/* Describe the agent (name_len 0) or a peer as a JSON object in UTF-8.  Agent:
 * engine, backends and the reasons for them.  Peer: path, state, generation,
 * why no faster path is used, counters.  Returns owned: free(json_p->data). */
vnx_status_t vnx_agent_describe(vnx_agent_t *agent, const void *name,
                                size_t name_len, vnx_bytes_t *json_p,
                                vnx_error_t *error);

/* All loaded peers, also lost ones, as a JSON object in UTF-8: a member for
 * each, whose value is an object with its state and counters.  A byte of a
 * name that is not part of UTF-8 becomes one escape from \udc80 to \udcff,
 * as with Python's error handler "surrogateescape".  Connects no peer and
 * calls no library.  Returns owned: free(json_p->data). */
vnx_status_t vnx_agent_peers(vnx_agent_t *agent, vnx_bytes_t *json_p,
                             vnx_error_t *error);

/* -- Prepared lists ------------------------------------------------------- */

/* Prepare rows for use by index.  Each row is checked against the regions of
 * the local agent (peer_len 0) or of the peer, and stored compactly.  `rows`
 * is borrowed.  Returns owned: vnx_dlist_release().
 * Errors have the first offending row: VNX_ERR_NOT_FOUND (no region holds it),
 * VNX_ERR_INVALID_PARAM (an overflow, no rows). */
vnx_status_t vnx_dlist_create(vnx_agent_t *agent, const void *peer,
                              size_t peer_len, vnx_mem_t mem,
                              const vnx_desc_t *rows, size_t count,
                              const char *const *backends, vnx_dlist_t **out_p,
                              vnx_error_t *error);
vnx_status_t vnx_dlist_create_strided(vnx_agent_t *agent, const void *peer,
                                      size_t peer_len, vnx_mem_t mem,
                                      const vnx_strided_desc_t *rows,
                                      size_t count,
                                      const char *const *backends,
                                      vnx_dlist_t **out_p, vnx_error_t *error);

/* The same in several calls, for rows that arrive in parts: begin, feed as
 * often as needed (row numbers continue), then finish or abort.  Only one
 * thread may use a builder at a time.  After an error only abort is allowed.
 */
typedef struct vnx_dlist_builder vnx_dlist_builder_t;
vnx_status_t vnx_dlist_begin(vnx_agent_t *agent, const void *peer,
                             size_t peer_len, vnx_mem_t mem,
                             const char *const *backends,
                             vnx_dlist_builder_t **out_p, vnx_error_t *error);
vnx_status_t vnx_dlist_feed(vnx_dlist_builder_t *builder,
                            const vnx_desc_t *rows, size_t count,
                            vnx_error_t *error);
vnx_status_t vnx_dlist_feed_strided(vnx_dlist_builder_t *builder,
                                    const vnx_strided_desc_t *rows,
                                    size_t count, vnx_error_t *error);
vnx_status_t vnx_dlist_finish(vnx_dlist_builder_t *builder,
                              vnx_dlist_t **out_p, vnx_error_t *error);
void vnx_dlist_abort(vnx_dlist_builder_t *builder);

size_t vnx_dlist_count(const vnx_dlist_t *dlist); /* rows, strides unrolled */
size_t vnx_dlist_bytes(const vnx_dlist_t *dlist); /* memory used by the list */
vnx_dlist_t *vnx_dlist_retain(vnx_dlist_t *dlist);
void vnx_dlist_release(vnx_dlist_t *dlist); /* NULL is allowed */

/* -- Transfers ------------------------------------------------------------ */

/* READY -> POSTED -> DONE | FAILED | CANCELLED.  A transfer may be posted in
 * every state but POSTED. */
typedef enum vnx_xfer_state {
    VNX_XFER_READY = 0,
    VNX_XFER_POSTED,
    VNX_XFER_DONE,
    VNX_XFER_FAILED,
    VNX_XFER_CANCELLED,
} vnx_xfer_state_t;

/* Create a transfer from rows of prepared lists.  local_rows.count must equal
 * remote_rows.count, and the two rows of a pair must have the same length.
 * Neighbours that are contiguous on both sides are merged unless `no_merge`.
 * Indices and notif are copied. notif NULL means no notification (an empty one
 * has notif != NULL).  Returns owned: vnx_xfer_release(). */
vnx_status_t
vnx_xfer_create_prepped(vnx_agent_t *agent, vnx_op_t op, vnx_dlist_t *local,
                        vnx_indices_t local_rows, vnx_dlist_t *remote,
                        vnx_indices_t remote_rows, const void *notif,
                        size_t notif_len, bool no_merge, vnx_xfer_t **out_p,
                        vnx_error_t *error);

/* Create a transfer from descriptors, without prepared lists.  If `peer` is
 * the agent's own name, both sides are the agent itself. */
vnx_status_t vnx_xfer_create(vnx_agent_t *agent, vnx_op_t op,
                             vnx_mem_t local_mem, const vnx_desc_t *local,
                             size_t local_count, vnx_mem_t remote_mem,
                             const vnx_desc_t *remote, size_t remote_count,
                             const void *peer, size_t peer_len,
                             const void *notif, size_t notif_len,
                             const char *const *backends, vnx_xfer_t **out_p,
                             vnx_error_t *error);

/* For vnx_xfer_post(): this post, and later ones that give none, send no
 * notification. */
/* NOLINTNEXTLINE(performance-no-int-to-ptr): an address of no object */
#define VNX_NO_NOTIF ((const void *)UINTPTR_MAX)

/* Start the transfer.  VNX_OK: already done.  VNX_IN_PROG: in progress.
 * Copies for at most about 50 us.  If notif is not NULL, it replaces the
 * transfer's; VNX_NO_NOTIF removes it.  Errors: VNX_ERR_REPOST_ACTIVE,
 * VNX_ERR_REMOTE_DISCONNECT, ...  */
vnx_status_t vnx_xfer_post(vnx_xfer_t *xfer, const void *notif,
                           size_t notif_len, vnx_error_t *error);

/* The same with a timeout (VNX_FOREVER: none).  A transfer that has not ended
 * by then is stopped.  It fails with VNX_ERR_TIMEOUT as soon as no further
 * byte can land: at once or, for operations that are in flight on a network,
 * when they have completed.  If nothing arrives for another second, the
 * connection is closed by force.  If the backend cannot stop the transfer, it
 * continues. */
vnx_status_t vnx_xfer_post_within(vnx_xfer_t *xfer, const void *notif,
                                  size_t notif_len, uint64_t timeout_ns,
                                  vnx_error_t *error);

/* Take a reference, so that the transfer stays valid during a call although
 * another thread releases it.  Drop it with vnx_xfer_drop(), which does not
 * stop the transfer. */
vnx_xfer_t *vnx_xfer_retain(vnx_xfer_t *xfer);
void vnx_xfer_drop(vnx_xfer_t *xfer);

/* One atomic load. */
vnx_xfer_state_t vnx_xfer_state(const vnx_xfer_t *xfer);

/* VNX_OK (done), VNX_IN_PROG, the transfer's error, or VNX_ERR_NOT_POSTED. */
vnx_status_t vnx_xfer_status(const vnx_xfer_t *xfer, vnx_error_t *error);

/* Stop the transfer.  *stopped_p is false if it had already ended.  When this
 * returns VNX_OK, no further byte lands.  On an error the transfer continues.
 * Waits until the copy threads have copied their chunks, well under 1 ms; by
 * UCX until the operations in flight have completed or, if none does for 1 s,
 * until the connection is closed by force; for GPU memory of another process
 * up to 5 s, until its owner has stopped.  It waits for the post that is in
 * progress when it is called, not for one that another thread begins
 * afterwards.
 * Errors: VNX_ERR_NOT_SUPPORTED (the engine nixl cannot stop a transfer in
 * flight), VNX_ERR_TIMEOUT (it did not stop within 10 s). */
vnx_status_t vnx_xfer_cancel(vnx_xfer_t *xfer, bool *stopped_p,
                             vnx_error_t *error);

/* Release the handle; cancel the transfer first if it is posted, which may
 * wait.  On an error of vnx_xfer_cancel() the handle stays valid; try again.
 * NULL is allowed. */
vnx_status_t vnx_xfer_release(vnx_xfer_t *xfer, vnx_error_t *error);

/* The same, but a transfer that cannot be stopped is released too: it is freed
 * when its work has ended.  Waits as vnx_xfer_cancel().  For destructors. */
void vnx_xfer_abandon(vnx_xfer_t *xfer);

typedef struct vnx_xfer_telemetry {
    uint64_t start_us; /* of the last post; microseconds since the epoch */
    uint64_t post_us;  /* spent in vnx_xfer_post() */
    uint64_t xfer_us;  /* from post to end; 0 while in progress */
    uint64_t total_bytes;
    uint64_t desc_count;   /* rows as requested */
    uint64_t merged_count; /* pieces after merging */
    uint64_t start_ns;     /* the start again, on CLOCK_MONOTONIC */
} vnx_xfer_telemetry_t;

/* VNX_ERR_NOT_POSTED before the first post. */
vnx_status_t vnx_xfer_telemetry(const vnx_xfer_t *xfer,
                                vnx_xfer_telemetry_t *telemetry_p,
                                vnx_error_t *error);

/* The backend used by the transfer ("SHM", "UCX").  Static storage. */
const char *vnx_xfer_backend(const vnx_xfer_t *xfer);

/* Estimated duration and its error margin, in microseconds; 0: no estimate. */
void vnx_xfer_estimate(const vnx_xfer_t *xfer, int64_t *duration_us_p,
                       int64_t *margin_us_p);

/* -- Events --------------------------------------------------------------- */

#define VNX_FOREVER UINT64_MAX

typedef enum vnx_wait_flags {
    VNX_WAIT_ANY = 1 << 0,      /* return when one has ended */
    VNX_WAIT_NO_CHECK = 1 << 1, /* a failed transfer counts as ended */
} vnx_wait_flags_t;

/* Sleep until all transfers have ended (VNX_WAIT_ANY: one of them), for at
 * most `timeout_ns` (VNX_FOREVER: no limit).  `flags`: vnx_wait_flags_t, or 0.
 *
 * A transfer that failed or was cancelled ends the wait at once with its error
 * while the others continue.  If there are several, the first in the given
 * order counts.  error->row is its index in `xfers`.  With VNX_WAIT_NO_CHECK
 * it only counts as ended, and vnx_xfer_status() returns its error.
 *
 * Errors: those of transfers; VNX_ERR_TIMEOUT (row -1: `timeout_ns` has
 * passed; else transfer `row` exceeded the timeout that it was posted with);
 * VNX_ERR_NOT_POSTED with any flags (transfer `row` was never posted and would
 * never end); VNX_ERR_INVALID_PARAM (transfer `row` belongs to another agent;
 * unknown flags); VNX_ERR_CLOSED. */
vnx_status_t vnx_agent_wait(vnx_agent_t *agent, vnx_xfer_t *const *xfers,
                            size_t count, unsigned flags, uint64_t timeout_ns,
                            vnx_error_t *error);

/* An eventfd, readable if a transfer has ended or a notification has arrived
 * since the last vnx_agent_clear_events(), vnx_agent_take_notifs() or
 * vnx_agent_wait().  Owned by the agent: do not close it. */
vnx_status_t vnx_agent_fileno(vnx_agent_t *agent, int *fd_p,
                              vnx_error_t *error);
void vnx_agent_clear_events(vnx_agent_t *agent);

/* An eventfd for one subscriber, for programs in which several loops watch an
 * agent.  It is written at every event and when the agent closes; only reading
 * it clears it.  Subscribe first, then check the states.
 * vnx_agent_unsubscribe() closes it. */
vnx_status_t vnx_agent_subscribe(vnx_agent_t *agent, int *fd_p,
                                 vnx_error_t *error);
void vnx_agent_unsubscribe(vnx_agent_t *agent, int fd);

/* -- Notifications -------------------------------------------------------- */

typedef struct vnx_notif vnx_notif_t;
struct vnx_notif {
    vnx_notif_t *next;
    uint64_t arrived_ns; /* when it arrived (CLOCK_MONOTONIC) */
    const char *sender;  /* not NUL-terminated */
    size_t sender_len;
    const void *message;
    size_t message_len;
};

/* Take all pending notifications, oldest first; NULL if there are none (one
 * atomic load).  Returns owned: vnx_notif_free() frees the chain. */
vnx_notif_t *vnx_agent_take_notifs(vnx_agent_t *agent);
void vnx_notif_free(vnx_notif_t *chain);

/* vnx_agent_take_notifs() in two steps, for callers that hold a lock.
 * vnx_agent_take_arrived() takes the notifications that have arrived, and
 * never waits.  It sets *poll_is_due_p if many calls in a row have found none.
 * Then call vnx_agent_poll_notifs(), which receives those that are on their
 * way (vnx_agent_may_wait() tells whether it may wait), and take again. */
vnx_notif_t *vnx_agent_take_arrived(vnx_agent_t *agent, bool *poll_is_due_p);
void vnx_agent_poll_notifs(vnx_agent_t *agent);

/* Send a notification that belongs to no transfer (copied).  It is delivered
 * once and in order, unless the connection to the peer breaks, or the peer
 * drops it, because the notifications that nobody has taken there exceed its
 * limit (notif_bytes_max).  Does not wait for the peer.
 * Errors: VNX_ERR_NOT_FOUND (the peer is not loaded, or the agent has no
 * backend), VNX_ERR_REMOTE_DISCONNECT (the peer is gone), VNX_ERR_BACKEND (the
 * peer does not read, and 256 MiB are queued for it), VNX_ERR_INVALID_PARAM
 * (by SHM: a message of 1 GiB or more), VNX_ERR_CLOSED, VNX_ERR_NO_MEMORY. */
vnx_status_t vnx_agent_send_notif(vnx_agent_t *agent, const void *peer,
                                  size_t peer_len, const void *message,
                                  size_t message_len, vnx_error_t *error);

/* -- Counters ------------------------------------------------------------- */

/* The counts of a histogram of times.  Count i: from 2^i to 2^(i+1)
 * microseconds; the first also counts shorter times, the last longer ones. */
#define VNX_HISTOGRAM 32

/* The counts of a histogram with NIXL's bounds: up to 10, 25, 50, 100, 250,
 * 500, 1000, 2500, 5000 microseconds, 10, 25, 50, 100, 250, 500 milliseconds,
 * 1, 5, 10 seconds, and longer. */
#define VNX_NIXL_HISTOGRAM 19

/* Numbers that count from the creation of the agent, in all of its transfers
 * and peers, also those that were released and removed.  Times are in
 * microseconds. */
typedef struct vnx_agent_stats {
    uint64_t xfers_posted, xfers_done, xfers_failed, xfers_cancelled;
    uint64_t reads_done, writes_done; /* xfers_done is their sum */
    uint64_t bytes_read, bytes_written;
    uint64_t last_bytes_read, last_bytes_written; /* of the last transfer that
                                                     was completed */
    uint64_t rows, pieces; /* of posted transfers: as requested, after
                              merging */
    uint64_t notifs_sent, notifs_received, notifs_dropped;
    uint64_t notifs_pending, notif_bytes_pending; /* now */
    uint64_t peers, peers_lost;                   /* now; in total */
    uint64_t regions, bytes_registered;           /* now */
    uint64_t bytes_registered_total, bytes_deregistered_total;
    uint64_t last_bytes_registered, last_bytes_deregistered; /* in one call */
    uint64_t live_dlists, live_xfers;                        /* now */

    /* Transfers that failed, by vnx_status_index(); not cancelled ones.  Their
     * sum is xfers_failed. */
    uint64_t failures[VNX_STATUS_COUNT];
    /* Calls that should have prepared a list or a transfer and failed, by
     * vnx_status_index(). */
    uint64_t refusals[VNX_STATUS_COUNT];

    /* Of the completed transfers: from the post to the end. */
    uint64_t xfer_us_sum, xfer_us_log2[VNX_HISTOGRAM];
    uint64_t xfer_us_nixl[VNX_NIXL_HISTOGRAM];
    /* Of the posted transfers: in vnx_xfer_post(). */
    uint64_t post_us_sum, post_us_log2[VNX_HISTOGRAM];
    uint64_t post_us_nixl[VNX_NIXL_HISTOGRAM];
    uint64_t last_xfer_us, last_post_us; /* of the last one that completed */
    /* Of notifications: from the arrival to vnx_agent_take_notifs(). */
    uint64_t notif_wait_us_sum, notif_wait_us_log2[VNX_HISTOGRAM];
} vnx_agent_stats_t;

void vnx_agent_stats(const vnx_agent_t *agent, vnx_agent_stats_t *stats_p);

/* -- Shared buffers ------------------------------------------------------- */

typedef struct vnx_shared_buffer vnx_shared_buffer_t;

/* Allocate `nbytes` (> 0) of zeroed memory that peers on this host map instead
 * of copying through the kernel (a sealed memfd).  Returns owned:
 * vnx_shared_buffer_free(). */
vnx_status_t vnx_shared_buffer_create(size_t nbytes,
                                      vnx_shared_buffer_t **out_p,
                                      vnx_error_t *error);
void *vnx_shared_buffer_data(const vnx_shared_buffer_t *buffer);
size_t vnx_shared_buffer_size(const vnx_shared_buffer_t *buffer);
void vnx_shared_buffer_free(vnx_shared_buffer_t *buffer);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
