#include "engine/native/shm/mapping.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/error.h"
#include "base/fork.h"
#include "engine/native/shm/memfd.h"
#include "engine/native/shm/procmap.h"

#define OPERATION "add_remote_agent"

/* -- The owner's side ----------------------------------------------------- */

static bool
file_has(int fd, uint64_t end)
{
    struct stat st;
    return fstat(fd, &st) == 0 && st.st_size >= 0 &&
           (uint64_t)st.st_size >= end;
}

vnxi_map_info_t
vnxi_map_info_find(uint64_t addr, uint64_t len)
{
    vnxi_proc_vma_t map;
    uint64_t end;
    /* Peers must not write to a range that is read-only here.  They access it
     * through the kernel, which checks that. */
    if (len < VNXI_MAPPING_LEN_MIN ||
        __builtin_add_overflow(addr, len, &end) ||
        !vnxi_proc_vma_find(addr, &map) || end > map.end || !map.shared ||
        !map.readable || !map.writable || !map.memfd) {
        return VNXI_MAP_INFO_NONE;
    }
    int fd = vnxi_memfd_hold(map.st_dev, map.st_ino);
    if (fd < 0) {
        return VNXI_MAP_INFO_NONE;
    }
    uint64_t offset = map.offset + (addr - map.start);
    if (!file_has(fd, offset + len)) {
        vnxi_memfd_drop(map.st_dev, map.st_ino);
        return VNXI_MAP_INFO_NONE;
    }
    return (vnxi_map_info_t){.fd = fd,
                             .offset = offset,
                             .st_dev = map.st_dev,
                             .st_ino = map.st_ino};
}

void
vnxi_map_info_fini(vnxi_map_info_t *map_info)
{
    if (map_info->fd >= 0) {
        vnxi_memfd_drop(map_info->st_dev, map_info->st_ino);
    }
    *map_info = VNXI_MAP_INFO_NONE;
}

/* -- The peer's side ------------------------------------------------------ */

struct vnxi_mapping {
    atomic_uint refs;
    unsigned fork_count;
    unsigned char *base; /* page aligned */
    size_t mapped;
    size_t skip; /* from base to the first requested byte */
};

static atomic_uint live_maps;

static vnx_status_t
refuse(vnx_error_t *error, const vnxi_map_info_t *map_info, const char *why)
{
    return vnxi_error_set(error, VNX_ERR_MISMATCH, OPERATION,
                          "the peer's descriptor %d is not mapped: %s",
                          map_info->fd, why);
}

/* Fetch the peer's descriptor; the caller closes *fd_p. */
static vnx_status_t
fetch_fd(int pidfd, const vnxi_map_info_t *map_info, int *fd_p,
         vnx_error_t *error)
{
    int fd = (int)syscall(SYS_pidfd_getfd, pidfd, map_info->fd, 0u);
    if (fd >= 0) {
        *fd_p = fd;
        return VNX_OK;
    }
    switch (errno) {
    case EBADF:
        return refuse(error, map_info, "the peer has no such descriptor");
    case ESRCH:
        return vnxi_error_set(error, VNX_ERR_REMOTE_DISCONNECT, OPERATION,
                              "the peer's process has ended");
    case EPERM:
    case EACCES:
    case ENOSYS:
        return vnxi_error_set(error, VNX_ERR_NOT_ALLOWED, OPERATION,
                              "the kernel denies access to the peer's "
                              "descriptor %d: %m",
                              map_info->fd);
    default:
        return vnxi_error_set(error, VNX_ERR_BACKEND, OPERATION,
                              "pidfd_getfd of descriptor %d: %s", map_info->fd,
                              vnxi_errno(errno));
    }
}

static vnx_status_t
check_fd(int fd, const vnxi_map_info_t *map_info, uint64_t end,
         vnx_error_t *error)
{
    struct stat st;
    if (fstat(fd, &st) != 0) {
        return vnxi_error_set(error, VNX_ERR_BACKEND, OPERATION, "fstat: %m");
    }
    if (st.st_dev != map_info->st_dev || st.st_ino != map_info->st_ino) {
        return refuse(error, map_info,
                      "it is not the file that was published");
    }
    const char *why = vnxi_memfd_refusal(fd, false);
    if (why != NULL) {
        return refuse(error, map_info, why);
    }
    if (st.st_size < 0 || (uint64_t)st.st_size < end) {
        return refuse(error, map_info, "it is shorter than published");
    }
    return VNX_OK;
}

/* Map the range [offset, end) of `fd`, which was checked. */
static vnx_status_t
map_range(int fd, uint64_t offset, uint64_t end, vnxi_mapping_t *map,
          vnx_error_t *error)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    uint64_t start = offset & ~(page - 1);
    size_t mapped = (size_t)(end - start);
    void *base = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
                      (off_t)start);
    if (base == MAP_FAILED) {
        return vnxi_error_set(error, VNX_ERR_BACKEND, OPERATION,
                              "mapping %zu bytes of the peer's memory: %m",
                              mapped);
    }
    /* A child has no use for the peer's memory and would keep it alive. */
    madvise(base, mapped, MADV_DONTFORK);
    map->fork_count = vnxi_fork_count();
    map->base = base;
    map->mapped = mapped;
    map->skip = (size_t)(offset - start);
    return VNX_OK;
}

static void
map_free(vnxi_mapping_t *map)
{
    atomic_fetch_sub(&live_maps, 1);
    free(map);
}

/* Create a mapping object: one reference, nothing mapped yet.  Counts it. */
static vnx_status_t
map_alloc(vnxi_mapping_t **map_p, vnx_error_t *error)
{
    vnxi_mapping_t *map = calloc(1, sizeof *map);
    if (map == NULL) {
        return vnxi_error_no_memory(error, OPERATION, sizeof *map);
    }
    atomic_init(&map->refs, 1);
    if (atomic_fetch_add(&live_maps, 1) >= VNXI_MAPPINGS_MAX) {
        map_free(map);
        return vnxi_error_set(error, VNX_ERR_BACKEND, OPERATION,
                              "this process has mapped %u regions of peers, "
                              "which is the limit",
                              VNXI_MAPPINGS_MAX);
    }
    *map_p = map;
    return VNX_OK;
}

vnx_status_t
vnxi_mapping_create(int pidfd, const vnxi_map_info_t *map_info, uint64_t len,
                    vnxi_mapping_t **map_p, vnx_error_t *error)
{
    uint64_t end;
    int fd = -1;
    vnxi_mapping_t *map = NULL;
    if (len == 0 || __builtin_add_overflow(map_info->offset, len, &end) ||
        end > INT64_MAX) {
        return refuse(error, map_info, "the range is invalid");
    }
    vnx_status_t status = fetch_fd(pidfd, map_info, &fd, error);
    if (status != VNX_OK) {
        return status;
    }
    status = check_fd(fd, map_info, end, error);
    if (status != VNX_OK) {
        goto out;
    }
    status = map_alloc(&map, error);
    if (status != VNX_OK) {
        goto out;
    }
    status = map_range(fd, map_info->offset, end, map, error);
    if (status != VNX_OK) {
        map_free(map);
        goto out;
    }
    *map_p = map;
out:
    close(fd);
    return status;
}

void *
vnxi_mapping_data(const vnxi_mapping_t *map)
{
    return map->base + map->skip;
}

vnxi_mapping_t *
vnxi_mapping_retain(vnxi_mapping_t *map)
{
    atomic_fetch_add_explicit(&map->refs, 1, memory_order_relaxed);
    return map;
}

void
vnxi_mapping_release(vnxi_mapping_t *map)
{
    if (map == NULL || atomic_fetch_sub(&map->refs, 1) != 1) {
        return;
    }
    /* A forked child does not have the mapping; its address may be in use for
     * something else. */
    if (!vnxi_fork_crossed(map->fork_count)) {
        munmap(map->base, map->mapped);
    }
    map_free(map);
}
