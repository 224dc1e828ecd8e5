/*
 * What the SHM backend puts into metadata (docs/wire.md): who and where the
 * agent is, and how a region can be mapped.  Little-endian, versioned; a
 * longer body of a later version of the same major number is accepted.
 */
#ifndef VNXI_NATIVE_SHM_WIRE_H
#define VNXI_NATIVE_SHM_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <vnx/vnx.h>

#include "base/bytes.h"
#include "engine/native/shm/share.h"

#define VNXI_SHM_ID_SIZE 16
#define VNXI_SHM_SOCKET_MAX 100

typedef struct vnxi_shm_info {
    bool partial;   /* the blob has some of the regions, not all */
    uint64_t epoch; /* of the registry, counts registrations and removals */
    unsigned char instance[VNXI_SHM_ID_SIZE]; /* random, one an agent */
    unsigned char boot[VNXI_SHM_ID_SIZE];     /* the host since its boot */
    uint64_t pid_namespace;                   /* inode of /proc/self/ns/pid */
    uint32_t pid;
    uint64_t start_time; /* field 22 of /proc/self/stat, clock ticks */
    uint32_t uid;
    uint64_t nonce_addr; /* where `instance` lies in the agent's memory */
    char socket[VNXI_SHM_SOCKET_MAX]; /* abstract Unix socket, without the
                                         leading NUL; NUL-terminated */
} vnxi_shm_info_t;

void vnxi_shm_info_write(vnxi_writer_t *writer, const vnxi_shm_info_t *info);

/* VNX_ERR_MISMATCH for what is no info of a version that we know, else pid is
 * in 1 to INT_MAX, and socket is not empty. */
vnx_status_t vnxi_shm_info_read(const void *data, size_t len,
                                vnxi_shm_info_t *info_p, vnx_error_t *error);

/* Fill in all that describes this process (not partial, epoch, instance,
 * nonce_addr, socket). */
vnx_status_t vnxi_shm_info_local(vnxi_shm_info_t *info_p, vnx_error_t *error);

/* A region's public metadata; fd -1 for memory that is not shared.  What is
 * read owns nothing: not for vnxi_share_fini(). */
void vnxi_shm_region_write(vnxi_writer_t *writer, const vnxi_share_t *share);
vnx_status_t vnxi_shm_region_read(const void *data, size_t len,
                                  vnxi_share_t *share_p, vnx_error_t *error);

#endif
