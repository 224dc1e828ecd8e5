/*
 * Shared mappings: memory that a peer on this host can map instead of having
 * the kernel copy it.
 *
 * The owner of a region finds out whether it lies in one shared mapping of a
 * memfd that cannot shrink (F_SEAL_SHRINK; a memfd that still takes seals is
 * sealed here), keeps a descriptor of it, and publishes number, device, inode
 * and offset with the region.  A peer fetches that descriptor with
 * pidfd_getfd(2), which asks for the same permission as process_vm_readv(2),
 * so neither side waits for the other; checks device, inode, seal and size;
 * and maps the range once.  A file that could shrink is never mapped: its
 * owner could make our copy loop fault.
 */
#ifndef VNXI_NATIVE_SHM_SHARE_H
#define VNXI_NATIVE_SHM_SHARE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <vnx/vnx.h>

/* From vnxi_share_find(): to be given up with vnxi_share_fini().  Read from a
 * peer's metadata: plain values, which own nothing. */
typedef struct vnxi_share {
    int fd; /* one for each memfd, however many regions; -1: not shared */
    uint64_t offset;
    uint64_t st_dev, st_ino;
} vnxi_share_t;

#define VNXI_SHARE_NONE ((vnxi_share_t){.fd = -1})

/* Shorter ranges are not looked at: copying them through the kernel costs no
 * more than finding out and mapping would. */
#define VNXI_SHARE_LEN_MIN (64u << 10)

/* How peers could map [addr, addr + len) of this process; fd -1 where they
 * cannot, which is no error: the range is shorter than VNXI_SHARE_LEN_MIN,
 * does not lie in one shared mapping, readable and writable, of a memfd of
 * ordinary pages, no descriptor of it is open, or it can neither be sealed nor
 * is it.  Cheap: one PROCMAP_QUERY ioctl where the kernel has it, else a pass
 * over /proc/self/maps; at the first region of a memfd that
 * vnx_shared_buffer_create() has not made also a pass over /proc/self/fd. */
vnxi_share_t vnxi_share_find(uint64_t addr, uint64_t len);
void vnxi_share_fini(vnxi_share_t *share);

/* A mapping of a peer's shared memory here; reference counted, so that regions
 * of one memfd may share it. */
typedef struct vnxi_share_map vnxi_share_map_t;

/* Mappings of this kind that a process has at most, so that peers with very
 * many regions leave it enough of the kernel's limit (vm.max_map_count, 65530
 * as a rule) for everything else. */
#define VNXI_SHARE_MAPS_MAX 16384u

/* Map `len` bytes at `share->offset` of the descriptor number `share->fd` in
 * the process behind `pidfd`.  The peer's values are hostile until checked.
 * VNX_ERR_NOT_ALLOWED (the kernel forbids it), VNX_ERR_MISMATCH (it is not
 * the file that was published, can shrink, or is too short),
 * VNX_ERR_REMOTE_DISCONNECT (the process has ended), VNX_ERR_BACKEND (no room
 * for a descriptor or a mapping, or VNXI_SHARE_MAPS_MAX reached),
 * VNX_ERR_NO_MEMORY: the cause says so, and the caller copies through the
 * kernel instead. */
vnx_status_t vnxi_share_map(int pidfd, const vnxi_share_t *share, uint64_t len,
                            vnxi_share_map_t **map_p, vnx_error_t *error);
void *vnxi_share_map_data(const vnxi_share_map_t *map);
vnxi_share_map_t *vnxi_share_map_retain(vnxi_share_map_t *map);
void vnxi_share_map_release(vnxi_share_map_t *map); /* NULL is allowed */

#endif
