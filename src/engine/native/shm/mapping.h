/*
 * Shared mappings: memory that a peer on this host can map, so that the kernel
 * need not copy it.
 *
 * The owner of a region checks whether it is in one shared mapping of a memfd
 * that cannot shrink (F_SEAL_SHRINK; a memfd that still accepts seals is
 * sealed here).  It keeps a descriptor of the memfd and publishes its number,
 * device, inode and offset with the region.  A peer fetches that descriptor
 * with pidfd_getfd(2), which needs the same permission as process_vm_readv(2),
 * so neither side waits for the other.  The peer checks device, inode, seal
 * and size, and maps the range once.  A file that could shrink is never
 * mapped: its owner could make our copy loop fault.
 */
#ifndef VNXI_NATIVE_SHM_MAPPING_H
#define VNXI_NATIVE_SHM_MAPPING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <vnx/vnx.h>

/* -- Regions of this process ---------------------------------------------- */

/* How a peer can map a region.  Returned by vnxi_map_info_find(): release with
 * vnxi_map_info_fini().  Read from a peer's metadata: plain values that own
 * nothing. */
typedef struct vnxi_map_info {
    int fd; /* one per memfd, shared by its regions; -1: not shared */
    uint64_t offset;
    uint64_t st_dev, st_ino;
} vnxi_map_info_t;

#define VNXI_MAP_INFO_NONE ((vnxi_map_info_t){.fd = -1})

/* Shorter ranges are not checked: copying them through the kernel costs no
 * more than the check and the mapping would. */
#define VNXI_MAPPING_LEN_MIN (64u << 10)

#define VNXI_MEMFD_SCAN_MAX 4096

/* Find out how peers can map [addr, addr + len) of this process; fd -1 if they
 * cannot, which is not an error.  They cannot if the range is shorter than
 * VNXI_MAPPING_LEN_MIN or not within one shared mapping, readable and
 * writable, of a memfd of ordinary pages; if no descriptor of that memfd is
 * open; or if it neither is sealed nor can be.  Cheap: one PROCMAP_QUERY ioctl
 * if the kernel has it, else one pass over /proc/self/maps; for the first
 * region of a memfd not made by vnx_shared_buffer_create() also one pass over
 * at most VNXI_MEMFD_SCAN_MAX entries of /proc/self/fd. */
vnxi_map_info_t vnxi_map_info_find(uint64_t addr, uint64_t len);
void vnxi_map_info_fini(vnxi_map_info_t *map_info);

/* -- Regions of peers ----------------------------------------------------- */

/* A local mapping of a peer's shared memory; reference counted, so that
 * regions of one memfd may share it. */
typedef struct vnxi_mapping vnxi_mapping_t;

/* Limit of such mappings per process, so that peers with very many regions
 * leave enough of the kernel's limit (vm.max_map_count, usually 65530) for
 * everything else. */
#define VNXI_MAPPINGS_MAX 16384u

/* Map `len` bytes at `map_info->offset` of descriptor number `map_info->fd` in
 * the process behind `pidfd`.  The peer's values are hostile until checked.
 * VNX_ERR_NOT_ALLOWED (forbidden by the kernel), VNX_ERR_MISMATCH (not the
 * published file, can shrink, or too short), VNX_ERR_REMOTE_DISCONNECT (the
 * process has ended), VNX_ERR_BACKEND (no descriptor or mapping available, or
 * VNXI_MAPPINGS_MAX reached), VNX_ERR_NO_MEMORY.  The cause gives the
 * reason, and the caller copies through the kernel instead. */
vnx_status_t vnxi_mapping_create(int pidfd, const vnxi_map_info_t *map_info,
                                 uint64_t len, vnxi_mapping_t **map_p,
                                 vnx_error_t *error);
void *vnxi_mapping_data(const vnxi_mapping_t *map);
vnxi_mapping_t *vnxi_mapping_retain(vnxi_mapping_t *map);
void vnxi_mapping_release(vnxi_mapping_t *map); /* NULL is allowed */

/* -- Memfds --------------------------------------------------------------- */

/* The memfds of this process that peers may map.  All regions in a memfd share
 * one descriptor, so that ten thousand regions cost one.  Process-wide; a
 * forked child starts with none. */

/* Check whether peers can map this descriptor's file safely: memory of tmpfs
 * or memfd, open for reading and writing, sealed against shrinking but not
 * against writing.  Returns NULL if so, else the reason.  `seal`: seal it
 * first if it accepts seals. */
const char *vnxi_memfd_refusal(int fd, bool seal);

/* Take over a descriptor, with one use.  False: no memory, not taken over. */
bool vnxi_memfd_add(int fd, uint64_t st_dev, uint64_t st_ino);

/* Drop one use; the last one closes the descriptor. */
void vnxi_memfd_drop(uint64_t st_dev, uint64_t st_ino);

#endif
