/*
 * The parts of a peer object that all engines share: its name and its end.
 *
 * A peer ends once: because it is closed, because another instance of its name
 * replaces it, or because it is found dead.  The first caller to report the
 * end sets the cause, which every later error of the peer repeats.  Any
 * thread; nothing here waits.
 */
#ifndef VNXI_PARTS_PEER_H
#define VNXI_PARTS_PEER_H

#include "base/error.h"
#include "base/mutex.h"
#include "engine/engine.h"

/* Initialize with one reference and a copy of the name.  False: no memory. */
bool vnxi_peer_init(vnxi_peer_t *peer, const vnxi_engine_ops_t *ops,
                    const void *name, size_t name_len);
void vnxi_peer_fini(vnxi_peer_t *peer);

typedef struct vnxi_peer_end {
    atomic_bool has_come;
    vnxi_mutex_t lock;
    char cause[VNX_ERROR_CAUSE_MAX]; /* protected by lock; written before
                                        has_come */
} vnxi_peer_end_t;

void vnxi_peer_end_init(vnxi_peer_end_t *end);
void vnxi_peer_end_fini(vnxi_peer_end_t *end);

/* Mark the peer as ended.  True for the first caller, whose cause is kept. */
bool vnxi_peer_end_mark(vnxi_peer_end_t *end, const char *cause);

static inline bool
vnxi_peer_end_has_come(const vnxi_peer_end_t *end)
{
    return atomic_load(&end->has_come);
}

/* The cause; "" while the peer has not ended. */
void vnxi_peer_end_cause(vnxi_peer_end_t *end,
                         char cause_p[VNX_ERROR_CAUSE_MAX]);

/* VNX_ERR_REMOTE_DISCONNECT for that peer, with that cause. */
vnx_status_t vnxi_peer_ended(const vnxi_peer_t *peer, const char *cause,
                             const char *operation, vnx_error_t *error);

#endif
