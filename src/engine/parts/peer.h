/*
 * The parts of a peer object that all engines share: its name, its end, and
 * the errors for loading its metadata.
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
#include "engine/parts/metadata.h"

/* Initialize with one reference and a copy of the name.  `destroy` frees the
 * peer when the last reference is gone.  False: no memory. */
bool vnxi_peer_init(vnxi_peer_t *peer, void (*destroy)(vnxi_peer_t *peer),
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

/* -- Metadata that cannot be loaded ----------------------------------------
 */

/* Returns `status`; the error has the name of the blob's agent. */
vnx_status_t vnxi_load_refuse(const vnxi_metadata_t *blob, vnx_status_t status,
                              const char *cause, vnx_error_t *error);

/* The blob has no connection data, and its agent is unknown. */
vnx_status_t vnxi_load_refuse_unknown(const vnxi_metadata_t *blob,
                                      vnx_error_t *error);

/* The agents have no backend in common: "it offers UCX, GDS, this agent
 * <ours>", with printable names. */
vnx_status_t vnxi_load_refuse_no_way(const vnxi_metadata_t *blob,
                                     const char *ours, vnx_error_t *error);

#endif
