/*
 * A worker's ep: its endpoint of a connection; for the files of this folder.
 * All calls on the worker's thread unless stated otherwise.
 *
 *        IDLE --open--> OPEN --close--> FLUSHING --> CLOSING --> IDLE
 *                        |                 |  ^          ^
 *                        |                 v  |          |
 *                        |                 KEPT          |
 *                         -------error or reset----------
 *
 * Another connection to the same address may take over the endpoint of an ep
 * that is FLUSHING or KEPT; that ep is then IDLE.
 */
#ifndef VNXI_NATIVE_UCX_EP_H
#define VNXI_NATIVE_UCX_EP_H

#include "base/mutex.h"
#include "engine/native/ucx/conn.h"
#include "engine/native/ucx/context_private.h"
#include "engine/native/ucx/memory.h"

typedef enum vnxi_ucx_ep_state {
    VNXI_UCX_EP_IDLE,
    VNXI_UCX_EP_OPEN,
    VNXI_UCX_EP_FAILED, /* reported by UCX; must be closed */
    VNXI_UCX_EP_FLUSHING,
    VNXI_UCX_EP_KEPT, /* closed for its owner; its endpoint is a spare */
    VNXI_UCX_EP_CLOSING,
} vnxi_ucx_ep_state_t;

/* A key's handle at one worker, in the ring of the ep that it belongs to. */
typedef struct vnxi_ucx_slot {
    vnxi_ucp_rkey_t handle; /* NULL: not created yet, or the ep was closed */
    atomic_bool used;
    struct vnxi_ucx_slot *prev, *next;
} vnxi_ucx_slot_t;

typedef struct vnxi_ucx_ep {
    vnxi_ucx_duty_t duty; /* first; registered while not IDLE */
    vnxi_ucx_conn_t *conn;
    vnxi_ucx_worker_t *worker;
    vnxi_ucx_ep_state_t state;
    vnxi_ucp_ep_t handle;  /* its endpoint in UCX */
    vnxi_ucx_cell_t *cell; /* of the endpoint */
    size_t posted;         /* transfers' requests in flight on it */
    bool moved;            /* some of them have ended since the last look... */
    uint64_t moved_at;     /* ...at a slice, which notes the time */
    unsigned spare_at;     /* index in worker->spares, if it is there */
    bool evicted;          /* from worker->spares */
    bool wired;            /* OPEN, and the peer has answered */
    bool close_wanted;     /* by conn_close() or a failure elsewhere */
    bool flushed;          /* FLUSHING: everything has been sent */
    uint64_t sent_at;      /* time of the last notification */
    bool closed;           /* CLOSING: UCX has finished closing */
    uint64_t deadline;     /* in FLUSHING and CLOSING */
    uint64_t opening;      /* counts openings, so that a user of an earlier
                              opening notices a reset */
    vnxi_ucx_slot_t slots; /* head of the ring */
    vnxi_ucx_command_t *waiting, **waiting_last; /* commands to run when
                                                    IDLE */
    vnxi_ucx_command_t close_command;            /* queued by conn.c, once */
    vnxi_ucx_command_t warm_command;
    atomic_bool warm_queued;
} vnxi_ucx_ep_t;

struct vnxi_ucx_conn {
    atomic_uint refs; /* held by owner, keys, transfers, commands, open eps */
    vnxi_ucx_t *ucx;  /* retained */
    uintptr_t cookie;
    atomic_bool dead;      /* closed or failed: nothing is posted any more */
    atomic_bool failed;    /* failed: eps are closed by force */
    atomic_bool of_ours;   /* the peer is a vllm_nixl agent */
    atomic_uint wired_eps; /* eps whose peer has answered */
    atomic_size_t queued;  /* bytes of notifications not yet sent by UCX */
    vnxi_mutex_t lock;
    char cause[VNX_ERROR_CAUSE_MAX]; /* lock; why the connection failed */
    char transports[128];            /* lock */
    size_t address_len;
    const unsigned char *address; /* stored after `eps`, with padding after
                                     it */
    vnxi_ucx_ep_t eps[];          /* one per worker */
};

struct vnxi_ucx_key {
    atomic_uint refs;
    vnxi_ucx_conn_t *conn;      /* retained */
    vnxi_ucx_command_t command; /* releases the handles, worker by worker */
    unsigned next_worker;
    size_t len;
    const unsigned char *bytes; /* stored after `slots`, with padding after
                                   it */
    vnxi_ucx_slot_t slots[];
};

void vnxi_ucx_ep_init(vnxi_ucx_ep_t *ep, vnxi_ucx_conn_t *conn,
                      vnxi_ucx_worker_t *worker);

/* Make the ep OPEN.  Also works after the connection was closed, for commands
 * queued before that.  If the ep was opened before, the peer is asked for an
 * answer.  VNX_OK; VNX_IN_PROG: the previous endpoint is still closing, try
 * again soon; VNX_ERR_REMOTE_DISCONNECT with its record: impossible. */
vnx_status_t vnxi_ucx_ep_open(vnxi_ucx_ep_t *ep, const char *operation,
                              vnx_error_t *error);

/* Return whether the ep is OPEN, wired, and not about to close. */
bool vnxi_ucx_ep_is_ready(const vnxi_ucx_ep_t *ep);

/* Ask the peer for an answer, which makes an OPEN ep wired. */
void vnxi_ucx_ep_ask(vnxi_ucx_ep_t *ep);

/* Run this command when the ep is IDLE again, in the order of these calls:
 * for commands that arrive while it is closing. */
void vnxi_ucx_ep_wait(vnxi_ucx_ep_t *ep, vnxi_ucx_command_t *command);

/* Close by force if it is open: all pending operations end. */
void vnxi_ucx_ep_reset(vnxi_ucx_ep_t *ep);

/* Get the handle of a key at this ep, which must be open (memory.c). */
vnxi_ucs_status_t vnxi_ucx_key_handle(vnxi_ucx_key_t *key, vnxi_ucx_ep_t *ep,
                                      vnxi_ucp_rkey_t *handle_p);

/* Destroy all handles of keys at this ep (memory.c). */
void vnxi_ucx_keys_drop(vnxi_ucx_ep_t *ep);

/* Mark the connection as failed and report it to its owner, once.  Any thread.
 */
void vnxi_ucx_conn_fail(vnxi_ucx_conn_t *conn, const char *cause);

/* Set the error that says why the connection cannot be used.  Any thread. */
vnx_status_t vnxi_ucx_conn_error(vnxi_ucx_conn_t *conn, const char *operation,
                                 vnx_error_t *error);

#endif
