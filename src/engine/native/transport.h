/*
 * The transport contract: everything that the native engine knows about the
 * code that moves bytes between two agents.  Four transports implement it:
 * process/ (copying within the process), shm/ (processes of one host), cuda/
 * (GPU memory of this host) and ucx/ (libucp).  This header is enough to
 * write another one: a folder with one vnxi_transport_t, and one line in
 * transports.h.
 *
 * Objects.  A transport has state on three levels.  The engine owns all of it
 * by the functions below and looks into none of it:
 *   port   an agent's side of the transport: a socket, a context of a library
 *   conn   the way to one peer
 *   slot   the transport's data about one region: how peers reach a local
 *          region, or how this agent reaches a peer's.  The transport does
 *          not know a region without a slot (NULL).
 * A peer in this process is reached by its own region objects ("borrowed"), so
 * their slots are those of its own port.
 *
 * Choice.  Transports are asked in the order of transports.h, the fastest
 * first.  The first one whose conn starts is the peer's *main* conn: it
 * carries notifications, and its end is the peer's end.  Later ones connect
 * when they are first needed.  The route of a pair of regions is the first
 * transport that has a conn, moves bytes between these kinds of memory, and
 * knows the peer's region.  A transport knows every local region of the kinds
 * that it moves.
 *
 * Control messages.  A transport without connections of its own may send
 * messages to the port of the same transport at a peer of this host.  The main
 * conn carries them, together with open descriptors, if its transport can
 * (carry_question).  They go two ways: a question from an agent that has
 * loaded the peer's metadata, and an answer, or what the peer has to say
 * later, to such an agent, the *asker*, which the peer need not know.  They
 * arrive in the order in which they were sent, and in order with the main
 * conn's other messages.
 *
 * Life: port_open -> leave -> settle -> port_stop -> port_free, and in
 * between any number of conn_create -> conn_start -> conn_close -> conn_free.
 * Every conn is freed before its port, except that slots may outlive both.
 *
 * Threads: functions may be called on any thread, several at once, with these
 * exceptions.  port_open, leave, port_stop and port_free are called once each.
 * For the peers of one name, one call at a time: conn_create, conn_start,
 * catch_up, new_table, key_create.  For one region: attach, detach.
 *
 * Waiting: only port_open, settle and port_stop may wait for longer than it
 * takes to copy a chunk, conn_start for a few seconds, until port_stop is
 * called, and conn_close and settle_peers for 2 s.  Nothing else waits for a
 * peer.
 *
 * Locks: the engine holds none of its locks, except: its lock for creating
 * backends in port_open; its lock for mapping in attach.  peer_gone may be
 * called on a thread of another transport, which may hold its locks.
 * base/mutex.h has the order.  While a transport calls the host, it holds no
 * lock that the functions here take.
 *
 * Outputs: written on success only, unless the comment says otherwise.
 *
 * Errors: the transport writes the record; the engine adds the peer.
 */
#ifndef VNXI_NATIVE_TRANSPORT_H
#define VNXI_NATIVE_TRANSPORT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <vnx/vnx.h>

#include "base/bytes.h"
#include "engine/native/identity.h"
#include "engine/native/plan.h"
#include "engine/parts/metadata.h"
#include "engine/parts/region.h"

typedef struct vnxi_transport vnxi_transport_t;
typedef struct vnxi_part vnxi_part_t; /* of a transfer; the transport's own */
typedef struct vnxi_conn vnxi_conn_t;

#define VNXI_CONTROL_BYTES_MAX 65536u
#define VNXI_CONTROL_FDS_MAX 64u

typedef struct vnxi_control {
    const void *data;
    size_t len; /* at most VNXI_CONTROL_BYTES_MAX */
    /* Passed on to the function that gets the message, which closes them, also
     * after an error.  Owned by vnxi_fork_fd_own(). */
    int *fds;
    size_t fd_count;   /* at most VNXI_CONTROL_FDS_MAX */
    bool has_lost_fds; /* received: without its descriptors, because this
                          process had too many open; fd_count is 0 */
} vnxi_control_t;

/* Bytes to copy between this process and a peer's. */
typedef struct vnxi_copy_row {
    uint64_t local, remote, len;
} vnxi_copy_row_t;

/* The engine, as a transport sees it.  Callbacks come on any thread, none
 * after port_stop() has returned.  A conn is named by its id, because it may
 * be freed at the time of an event. */
typedef struct vnxi_port_host {
    void *context;

    /* A notification arrived. */
    void (*notif)(void *context, const void *sender, size_t sender_len,
                  const void *message, size_t message_len);

    /* The conn with this id has failed, for this reason.  Not after
     * conn_close(), unless it is running at that time. */
    void (*lost)(void *context, unsigned number, uintptr_t id,
                 const char *cause);

    /* A region of a peer has another state, or the time set by set_alarm() has
     * come: transfers that wait may go on. */
    void (*changed)(void *context);

    /* The slots of the regions of the conn's peer do not work, for this
     * reason: use other transports for them from now on. */
    void (*give_up)(void *context, unsigned number, uintptr_t id,
                    const char *cause);

    /* Find a conn and keep its peer until drop(); NULL if it was closed. */
    vnxi_conn_t *(*hold)(void *context, unsigned number, uintptr_t id);
    void (*drop)(void *context, vnxi_conn_t *conn);

    /* The owner's epoch is lower than this one, which its metadata claims:
     * metadata with a lower epoch may be loaded again. */
    void (*false_epoch)(void *context, vnxi_conn_t *conn, uint64_t epoch);

    /* Wait until no copy of this process that began before this call touches a
     * region that is gone.  `waits` false: do not wait, and return whether it
     * is so already. */
    bool (*settle)(void *context, bool waits);

    /* Find the routes to the agent's regions again if transports may move more
     * kinds of memory than before: another agent is about to use them. */
    void (*update)(void *context);

    /* Send a control message to the conn's peer.  VNX_ERR_NOT_SUPPORTED: no
     * transport carries it there.  VNX_ERR_REMOTE_DISCONNECT: the peer is
     * gone. */
    vnx_status_t (*ask)(void *context, unsigned number, vnxi_conn_t *conn,
                        const vnxi_control_t *control, vnx_error_t *error);
    vnx_status_t (*answer)(void *context, unsigned number, uint64_t asker,
                           const vnxi_control_t *control, vnx_error_t *error);

    /* A control message of the transport with this entry has arrived. */
    void (*question)(void *context, const void *entry, size_t entry_len,
                     uint64_t asker, const vnxi_control_t *control);
    void (*answered)(void *context, const void *entry, size_t entry_len,
                     uintptr_t id, const vnxi_control_t *control);
    void (*asker_gone)(void *context, uint64_t asker);

    /* Copy between this process and CPU memory of the conn's peer, which is in
     * another process of this host.  Blocks while it copies. */
    vnx_status_t (*copy)(void *context, vnxi_conn_t *conn,
                         const vnxi_copy_row_t *rows, size_t count,
                         vnx_op_t op, vnx_error_t *error);

    /* Keep the engine, its registry and its ports. */
    void (*retain)(void *context);
    void (*release)(void *context);
} vnxi_port_host_t;

typedef struct vnxi_port_config {
    const void *name; /* of the agent, followed by a NUL; kept until
                         port_free(), as below */
    size_t name_len;
    const vnxi_identity_t *identity;
    vnxi_registry_t *registry;
    unsigned num_threads;      /* that one transfer may use */
    unsigned number;           /* of the transport, in transports.h */
    const vnx_param_t *params; /* of its backend; for port_open() only */
    size_t param_count;
    vnxi_port_host_t host;
} vnxi_port_config_t;

/* The transport's own port begins with this. */
typedef struct vnxi_port {
    const vnxi_transport_t *transport; /* set by the engine */
    vnxi_port_config_t config;         /* set by the engine */
} vnxi_port_t;

/* Pass a notification on to the host; a callback whose context is the port. */
static inline void
vnxi_port_notif(void *port, const void *sender, size_t sender_len,
                const void *message, size_t message_len)
{
    const vnxi_port_host_t *host = &((vnxi_port_t *)port)->config.host;
    host->notif(host->context, sender, sender_len, message, message_len);
}

typedef struct vnxi_conn_args {
    const void *name; /* of the peer; kept until conn_free() */
    size_t name_len;
    const vnxi_identity_t *identity; /* NULL: not a vllm_nixl agent */
    vnxi_md_bytes_t info;    /* the transport's entry in the peer's metadata;
                                data NULL: none */
    uintptr_t id;            /* for the host */
    bool is_self;            /* the agent itself */
    bool is_here;            /* another conn has found the peer's agent in this
                                process; regions are borrowed */
    const atomic_bool *stop; /* as soon as it is set, conn_start waits for
                                nothing more; kept until then; NULL: none */
} vnxi_conn_args_t;

/* The transport's own conn begins with this. */
struct vnxi_conn {
    vnxi_port_t
        *port;  /* these two are set by the engine after conn_create() */
    void *peer; /* the engine's */
};

/* Why a conn does not start. */
typedef enum vnxi_refusal {
    VNXI_REFUSAL_FINAL,     /* no other transport may be tried */
    VNXI_REFUSAL_HERE,      /* another may; but the peer is on this host, so
                               the user is warned of a slower one */
    VNXI_REFUSAL_ELSEWHERE, /* another may */
} vnxi_refusal_t;

typedef enum vnxi_scope {
    VNXI_SCOPE_PROCESS,
    VNXI_SCOPE_HOST,
    VNXI_SCOPE_NETWORK,
} vnxi_scope_t;

/* One transport's part of a transfer: the segments of the plan with its
 * number as their route. */
typedef struct vnxi_part_args {
    vnxi_conn_t *conn;       /* outlives the part */
    const vnxi_plan_t *plan; /* must stay valid, like both lists */
    vnx_op_t op;
    const vnxi_list_t *local, *remote;
    void *context;
    /* Check whether the transfer may go on; returns the reason if not.  Call
     * this before each chunk and, in settle(), for every part in flight; any
     * thread, at any time while the part is in flight. */
    vnx_status_t (*go_on)(void *context, vnx_error_t *error);
    /* The part has ended: it writes no more bytes, and may be posted again or
     * freed in this call.  `error` is set only if status is not VNX_OK.  Once
     * per post, on any thread. */
    void (*done)(void *context, vnx_status_t status, const vnx_error_t *error);
} vnxi_part_args_t;

struct vnxi_transport {
    const char *name;    /* "SHM": in describe() and errors */
    const char *backend; /* in create_backend(); NULL: it is part of others */
    const vnx_param_t *defaults; /* parameters of NIXL's backend of this name,
                                    the last one without a key; NULL: none */
    const char *entry;  /* in metadata, with a section for each kind of memory;
                           NULL: none */
    bool opens_first;   /* the port opens with the first backend, whichever
                           that is */
    vnxi_scope_t scope; /* how far it reaches */
    bool confirms;      /* it asks owners which regions they have: a
                           peer's regions are UNCONFIRMED until then */
    /* It moves peers' CPU memory without slots of its own, by the host's
     * copy(). */
    bool copies_by_main;
    bool may_give_up; /* give_up() may come: other transports get slots, too
                       */
    const char *why;  /* for describe(): how it moves bytes */
    const char *not_offered; /* why a peer may have no conn: "the peer ..." */

    /* -- Ports -----------------------------------------------------------
     */

    /* Open the agent's port.  VNX_ERR_NOT_FOUND: it does not work on this
     * machine, for this reason, and the backend is created without it. */
    vnx_status_t (*port_open)(const vnxi_port_config_t *config,
                              vnxi_port_t **port_p, vnx_error_t *error);

    /* The agent is closing: from now on it is not found by others, and the
     * host's notif() is not called from other agents of this process.  NULL:
     * nothing to do. */
    void (*leave)(vnxi_port_t *port);

    /* Wait until no part that must not go on is in flight, and done() was
     * called for those that were.  NULL: its bytes are moved by the copy
     * threads. */
    void (*settle)(vnxi_port_t *port);

    /* End threads and connections.  No part is in flight. */
    void (*port_stop)(vnxi_port_t *port);
    void (*port_free)(vnxi_port_t *port);

    /* Receive what has arrived.  Cheap; NULL: nothing to do. */
    void (*poll)(vnxi_port_t *port);

    /* Call host.changed() at that time (CLOCK_MONOTONIC, ns) or earlier.  NULL
     * unless `confirms`. */
    void (*set_alarm)(vnxi_port_t *port, uint64_t when);

    /* Write the agent's entry in its metadata; nothing, or NULL: it has none.
     */
    void (*write_info)(vnxi_port_t *port, vnxi_writer_t *writer);

    /* Append members of a JSON object about the port.  NULL: none. */
    void (*describe_port)(vnxi_port_t *port, vnxi_writer_t *out);

    /* NULL if the transport moves bytes between our memory of kind `local` and
     * a peer's of kind `remote`, else why not; static storage.  The answer for
     * VRAM may change to NULL when the program begins to use its GPUs. */
    const char *(*refuses)(const vnxi_port_t *port, vnx_mem_t local,
                           vnx_mem_t remote);

    /* -- Conns -----------------------------------------------------------
     */

    /* Create a conn without connecting.  *conn_p = NULL: the transport does
     * not lead to this peer.  Errors refuse the metadata. */
    vnx_status_t (*conn_create)(vnxi_port_t *port,
                                const vnxi_conn_args_t *args,
                                vnxi_conn_t **conn_p, vnx_error_t *error);

    /* Connect, at least in the background.  The host may be called before
     * this returns.  After an error, *refusal_p (then only) is set and the
     * conn is closed and used no more, except by find_pid().  NULL: the conn
     * is never the main one. */
    vnx_status_t (*conn_start)(vnxi_conn_t *conn, vnxi_refusal_t *refusal_p,
                               vnx_error_t *error);

    /* A conn that is not the main one will be needed soon: connect in the
     * background.  Also for a main conn, from every thread.  NULL: nothing to
     * do. */
    void (*warm_up)(vnxi_conn_t *conn);

    /* Close in an orderly way; queued notifications are sent, and the peer's
     * memory is not used any more.  The main conn is the last one.
     * Idempotent. */
    void (*conn_close)(vnxi_conn_t *conn);

    /* Another transport found that the peer is gone: end pending operations
     * by force.  NULL: copying notices it. */
    void (*peer_gone)(vnxi_conn_t *conn, const char *cause);
    void (*conn_free)(vnxi_conn_t *conn);

    /* Return whether this is the conn of an agent with that entry in its
     * metadata.  NULL: the entry does not identify an agent. */
    bool (*leads_to)(const vnxi_conn_t *conn, vnxi_md_bytes_t info);

    /* The peer's process on this host, 0 if it is not here: as published, or
     * if `is_checked` only if its agent is running now, determined without
     * waiting even if its end was not noticed yet.  NULL: unknown. */
    uint32_t (*find_pid)(vnxi_conn_t *conn, bool is_checked);

    /* Return whether the peer has answered.  NULL: always. */
    bool (*is_connected)(const vnxi_conn_t *conn);

    /* Send a notification, in the order of the calls.  Does not block. */
    vnx_status_t (*send_notif)(vnxi_conn_t *conn, const void *message,
                               size_t len, vnx_error_t *error);

    /* Append members of a JSON object about the conn, which is in use.  NULL:
     * none. */
    void (*describe_conn)(vnxi_conn_t *conn, bool is_main, vnxi_writer_t *out);

    /* The peer's own regions, if it is in this process: a reference.  NULL
     * function: never. */
    vnxi_region_table_t *(*borrow)(vnxi_conn_t *conn);

    /* Handle what the peer has sent before this call: its metadata, which is
     * about to be loaded, is later than that.  NULL: nothing is sent. */
    void (*catch_up)(vnxi_conn_t *conn);

    /* The peer has this table now; `epoch` is that of its last full metadata.
     * Ask the owner about UNCONFIRMED regions.  NULL unless `confirms`. */
    void (*new_table)(vnxi_conn_t *conn, vnxi_region_table_t *table,
                      uint64_t epoch);

    /* Carry a control message of the transport with this entry.  Does not
     * block.  NULL: it carries none. */
    vnx_status_t (*carry_question)(vnxi_conn_t *conn, const char *entry,
                                   const vnxi_control_t *control,
                                   vnx_error_t *error);
    vnx_status_t (*carry_answer)(vnxi_port_t *port, uint64_t asker,
                                 const char *entry,
                                 const vnxi_control_t *control,
                                 vnx_error_t *error);

    /* A control message has arrived.  Must not block: other messages wait.
     * NULL: it is dropped. */
    void (*on_question)(vnxi_port_t *port, uint64_t asker,
                        const vnxi_control_t *control);
    void (*on_answer)(vnxi_conn_t *conn, const vnxi_control_t *control);
    /* No more messages come from the asker, nor reach it. */
    void (*on_asker_gone)(vnxi_port_t *port, uint64_t asker);

    /* As the host's copy(), for a main conn.  NULL: it cannot. */
    vnx_status_t (*copy_rows)(vnxi_conn_t *conn, const vnxi_copy_row_t *rows,
                              size_t count, vnx_op_t op, vnx_error_t *error);

    /* -- Our regions -----------------------------------------------------
     */

    /* Make the slot of a region that is being registered, or was before the
     * port opened.  *slot_p = NULL: the transport does not move this kind. */
    vnx_status_t (*attach)(vnxi_port_t *port, const vnxi_region_t *region,
                           void **slot_p, vnx_error_t *error);

    /* The region was deregistered; `epoch` is the registry's.  NULL: peers
     * need not be told. */
    void (*revoked)(vnxi_port_t *port, const vnxi_region_t *region,
                    uint64_t epoch);

    /* Wait until peers do not access revoked regions any more, for 2 s at
     * most.  NULL: detach() sees to it. */
    void (*settle_peers)(vnxi_port_t *port);

    /* After that: peers must not access the region any more.  NULL: nothing
     * to do. */
    void (*detach)(void *slot);
    void (*slot_free)(void *slot); /* NULL: slots own nothing */

    /* Write the region's public data for metadata: always the same bytes.
     * Nothing: the region is not in the transport's section. */
    void (*write_region)(const void *slot, vnxi_writer_t *writer);

    /* -- A peer's regions ------------------------------------------------
     */

    /* Make the slot of a peer's region from its public data (copied). */
    vnx_status_t (*key_create)(vnxi_conn_t *conn, const vnxi_region_t *region,
                               vnxi_md_bytes_t data, void **slot_p,
                               vnx_error_t *error);
    /* Return whether this transport reaches a region with this public data, if
     * the peer is in another process.  NULL: always. */
    bool (*key_reaches)(vnxi_md_bytes_t data);
    /* Return whether the slot was made from data with this meaning. */
    bool (*key_is)(const void *slot, vnxi_md_bytes_t data);
    /* Where the region is mapped in this process; NULL: it is not.  The
     * process transport copies such regions.  NULL function: never. */
    void *(*mapped_at)(const void *slot);
    void (*key_free)(void *slot);

    /* -- Transfers -------------------------------------------------------
     * A transport has either copy_chunk or the part_ functions.
     */

    /* Copy the pieces of a chunk that have this route, on a copy thread or the
     * caller's.  Check `stop` from time to time: VNX_ERR_CANCELED.
     * VNX_ERR_REMOTE_DISCONNECT: the peer is gone.  The process transport is
     * called without a conn. */
    vnx_status_t (*copy_chunk)(vnxi_conn_t *conn, const vnxi_plan_t *plan,
                               size_t chunk, vnx_op_t op,
                               const atomic_bool *stop, vnx_error_t *error);

    /* Prepare a part, and start connecting if that was not done. */
    vnx_status_t (*part_create)(const vnxi_part_args_t *args,
                                vnxi_part_t **part_p, vnx_error_t *error);
    /* Start: VNX_IN_PROG, and done() will be called, perhaps before this
     * returns.  Negative: nothing was started. */
    vnx_status_t (*part_post)(vnxi_part_t *part, vnx_error_t *error);
    /* Stop soon; done() is still called.  Does not wait.  Safe if the part has
     * just ended or is about to be posted (then it may have no effect). */
    void (*part_cancel)(vnxi_part_t *part);
    void (*part_free)(vnxi_part_t *part); /* not in flight */
};

#endif
