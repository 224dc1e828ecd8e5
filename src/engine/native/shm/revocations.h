/*
 * The log of revocations: what an agent has told its peers of late, for a peer
 * that connected while it was told.  A link that waits in the backlog of the
 * listener hears nothing; its HELLO says which epoch of our metadata the peer
 * has loaded, and what was revoked since is sent to it then.
 */
#ifndef VNXI_NATIVE_SHM_REVOCATIONS_H
#define VNXI_NATIVE_SHM_REVOCATIONS_H

#include <stddef.h>
#include <stdint.h>
#include <vnx/vnx.h>

#include "base/bytes.h"
#include "base/mutex.h"

/* How many are remembered; who is further behind is told to forget all. */
#define VNXI_REVOCATIONS_MAX 1024u

typedef struct vnxi_revocation {
    uint64_t epoch;
    vnx_mem_t mem;
    vnx_desc_t desc;
} vnxi_revocation_t;

typedef struct vnxi_revocations {
    vnxi_mutex_t lock;       /* a leaf */
    vnxi_revocation_t *ring; /* owned; NULL before the first; lock */
    uint64_t count;          /* ever added; lock */
    uint64_t forgotten; /* the highest epoch that is no longer there; lock */
} vnxi_revocations_t;

void vnxi_revocations_init(vnxi_revocations_t *log);
void vnxi_revocations_fini(vnxi_revocations_t *log);

/* Remember.  Where memory runs out it counts as forgotten. */
void vnxi_revocations_add(vnxi_revocations_t *log, uint64_t epoch,
                          vnx_mem_t mem, const vnx_desc_t *descs,
                          size_t count);

/* Append the REVOKE frames that bring a peer up to date which has loaded
 * metadata of `epoch`; nothing where it is. */
void vnxi_revocations_write_since(vnxi_revocations_t *log, uint64_t epoch,
                                  vnxi_writer_t *frames);

#endif
