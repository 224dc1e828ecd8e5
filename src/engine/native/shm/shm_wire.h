/*
 * The SHM backend's part of metadata (docs/wire.md): the agent's location, and
 * how a region can be mapped.  Little-endian, versioned; a longer body of a
 * later version with the same major number is accepted.
 */
#ifndef VNXI_NATIVE_SHM_WIRE_H
#define VNXI_NATIVE_SHM_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <vnx/vnx.h>

#include "base/bytes.h"
#include "engine/native/shm/mapping.h"

#define VNXI_SHM_ID_SIZE 16
#define VNXI_SHM_SOCKET_MAX 100

typedef struct vnxi_shm_info {
    unsigned char boot[VNXI_SHM_ID_SIZE]; /* identifies the host since its
                                             boot */
    uint64_t pid_namespace;               /* inode of /proc/self/ns/pid */
    uint32_t pid;
    uint64_t start_time; /* field 22 of /proc/self/stat, clock ticks */
    uint32_t uid;
    uint64_t nonce_addr; /* address of the instance id in its memory */
    char socket[VNXI_SHM_SOCKET_MAX]; /* abstract Unix socket, without the
                                         leading NUL; NUL-terminated */
    unsigned char instance[VNXI_SHM_ID_SIZE]; /* of the agent; not on the wire:
                                                 the caller copies it from the
                                                 identity */
} vnxi_shm_info_t;

void vnxi_shm_info_write(vnxi_writer_t *writer, const vnxi_shm_info_t *info);

/* VNX_ERR_MISMATCH if the data is not an info of a known version.  On success
 * pid is in 1 to INT_MAX, and socket is not empty. */
vnx_status_t vnxi_shm_info_read(const void *data, size_t len,
                                vnxi_shm_info_t *info_p, vnx_error_t *error);

/* Fill in the fields that describe this process (all except nonce_addr, socket
 * and instance). */
vnx_status_t vnxi_shm_info_local(vnxi_shm_info_t *info_p, vnx_error_t *error);

/* A region's public metadata; fd -1 for memory that is not shared.  The result
 * of reading owns nothing: do not pass it to vnxi_map_info_fini(). */
void vnxi_shm_region_write(vnxi_writer_t *writer,
                           const vnxi_map_info_t *map_info);
vnx_status_t vnxi_shm_region_read(const void *data, size_t len,
                                  vnxi_map_info_t *map_info_p,
                                  vnx_error_t *error);

#endif
