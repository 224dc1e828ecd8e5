/*
 * One worker's end of a connection; for the files of this folder.  All calls
 * on the worker's thread, unless they say otherwise.
 *
 *      IDLE --open--> OPEN --close--> FLUSHING --> CLOSING --> IDLE
 *                      |                 |  ^          ^
 *                      |                 v  |          |
 *                      |                 KEPT          |
 *                       -------error or reset----------
 *
 * Another connection to the same address may take over the endpoint of one
 * that is FLUSHING or KEPT, which is then IDLE.
 */
#ifndef VNXI_NATIVE_UCX_END_H
#define VNXI_NATIVE_UCX_END_H

#include "base/mutex.h"
#include "engine/native/ucx/conn.h"
#include "engine/native/ucx/worker.h"

typedef enum vnxi_ucx_end_state {
    VNXI_UCX_END_IDLE,
    VNXI_UCX_END_OPEN,
    VNXI_UCX_END_FAILED, /* UCX said so: to be closed */
    VNXI_UCX_END_FLUSHING,
    VNXI_UCX_END_KEPT, /* closed for its owner; its endpoint is a spare */
    VNXI_UCX_END_CLOSING,
} vnxi_ucx_end_state_t;

/* A key's handle at one worker, in the ring of the end that it is for. */
typedef struct vnxi_ucx_slot {
    vnxi_ucp_rkey_t handle; /* NULL: not made yet, or the end was closed */
    atomic_bool used;
    struct vnxi_ucx_slot *prev, *next;
} vnxi_ucx_slot_t;

typedef struct vnxi_ucx_end {
    vnxi_ucx_duty_t duty; /* first; while not IDLE */
    vnxi_ucx_conn_t *conn;
    vnxi_ucx_worker_t *worker;
    vnxi_ucx_end_state_t state;
    vnxi_ucp_ep_t ep;
    vnxi_ucx_cell_t *cell; /* the endpoint's */
    size_t posted;         /* requests of transfers in flight on it */
    unsigned spare_at;     /* in worker->spares, if it is there */
    bool evicted;          /* from there */
    bool wired;            /* OPEN, and the peer has answered */
    bool close_wanted;     /* by conn_close() or a failure elsewhere */
    bool flushed;          /* FLUSHING: all has left */
    uint64_t sent_at;      /* the last notification */
    bool closed;           /* CLOSING: UCX has let go of it */
    uint64_t deadline;     /* of FLUSHING, CLOSING */
    uint64_t opening; /* counts openings: who began in an earlier one knows
                         that it was reset */
    vnxi_ucx_slot_t slots;                       /* head of the ring */
    vnxi_ucx_command_t *waiting, **waiting_last; /* to be run when IDLE */
    vnxi_ucx_command_t close_command, warm_command;
    atomic_bool warm_queued;
} vnxi_ucx_end_t;

struct vnxi_ucx_conn {
    atomic_uint refs; /* the owner, keys, transfers, commands, open ends */
    vnxi_ucx_t *ucx;  /* retained */
    uintptr_t cookie;
    atomic_bool dead;       /* closed or failed: nothing is posted any more */
    atomic_bool failed;     /* and then by force */
    atomic_bool of_ours;    /* the peer is an agent of ours */
    atomic_uint wired_ends; /* whose peer has answered */
    atomic_size_t queued;   /* bytes of notifications that UCX has not sent */
    vnxi_mutex_t lock;
    char cause[VNX_ERROR_CAUSE_MAX]; /* lock; why it failed */
    char transports[128];            /* lock */
    size_t address_len;
    const unsigned char *address; /* behind `ends`, with room after it */
    vnxi_ucx_end_t ends[];        /* one a worker */
};

struct vnxi_ucx_key {
    atomic_uint refs;
    vnxi_ucx_conn_t *conn;      /* retained */
    vnxi_ucx_command_t command; /* giving up the handles, worker by worker */
    unsigned next_worker;
    size_t len;
    const unsigned char *bytes; /* behind `slots`, with room after it */
    vnxi_ucx_slot_t slots[];
};

/* Nothing is known about what UCX reads beyond a hostile address or key that
 * is cut short, so there are bytes after each that end such a reading. */
#define VNXI_UCX_PADDING (32u << 10)

void vnxi_ucx_end_init(vnxi_ucx_end_t *end, vnxi_ucx_conn_t *conn,
                       vnxi_ucx_worker_t *worker);

/* Make it OPEN, also where the connection was closed since, for what was
 * queued before that.  Where it was OPEN before, the peer is asked for an
 * answer.  VNX_OK; VNX_IN_PROG: an earlier one is being closed, try again
 * soon; VNX_ERR_REMOTE_DISCONNECT and its record: it cannot be. */
vnx_status_t vnxi_ucx_end_open(vnxi_ucx_end_t *end, const char *operation,
                               vnx_error_t *error);

/* Is it OPEN, wired, and to stay so? */
bool vnxi_ucx_end_is_ready(const vnxi_ucx_end_t *end);

/* It is OPEN: ask for the peer's answer, by which it is wired. */
void vnxi_ucx_end_ask(vnxi_ucx_end_t *end);

/* Run this when the end is IDLE again, in the order of these calls: what came
 * while it was being closed. */
void vnxi_ucx_end_wait(vnxi_ucx_end_t *end, vnxi_ucx_command_t *command);

/* Its connection is closed: send what is queued, then close the endpoint or
 * keep it as a spare. */
void vnxi_ucx_end_close(vnxi_ucx_end_t *end);

/* Close by force, if it is open: all that is pending ends. */
void vnxi_ucx_end_reset(vnxi_ucx_end_t *end);

/* The handle for a key at this end, which is open. */
vnxi_ucs_status_t vnxi_ucx_end_key(vnxi_ucx_end_t *end, vnxi_ucx_key_t *key,
                                   vnxi_ucp_rkey_t *handle_p);

/* The connection has failed: says so to its owner, once.  Any thread. */
void vnxi_ucx_conn_fail(vnxi_ucx_conn_t *conn, const char *cause);

/* Why nothing can be done with it.  Any thread. */
vnx_status_t vnxi_ucx_conn_error(vnxi_ucx_conn_t *conn, const char *operation,
                                 vnx_error_t *error);

#endif
