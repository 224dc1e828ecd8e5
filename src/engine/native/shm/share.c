#include "engine/native/shm/share.h"

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
file_reaches(int fd, uint64_t end)
{
    struct stat st;
    return fstat(fd, &st) == 0 && st.st_size >= 0 &&
           (uint64_t)st.st_size >= end;
}

vnxi_share_t
vnxi_share_find(uint64_t addr, uint64_t len)
{
    vnxi_procmap_t map;
    uint64_t end;
    /* Peers must not write to a range that is read-only here.  They access it
     * through the kernel, which checks that. */
    if (len < VNXI_SHARE_LEN_MIN || __builtin_add_overflow(addr, len, &end) ||
        !vnxi_procmap_find(addr, &map) || end > map.end || !map.shared ||
        !map.readable || !map.writable || !map.memfd) {
        return VNXI_SHARE_NONE;
    }
    int fd = vnxi_memfd_hold(map.st_dev, map.st_ino);
    if (fd < 0) {
        return VNXI_SHARE_NONE;
    }
    uint64_t offset = map.offset + (addr - map.start);
    if (!file_reaches(fd, offset + len)) {
        vnxi_memfd_drop(map.st_dev, map.st_ino);
        return VNXI_SHARE_NONE;
    }
    return (vnxi_share_t){.fd = fd,
                          .offset = offset,
                          .st_dev = map.st_dev,
                          .st_ino = map.st_ino};
}

void
vnxi_share_fini(vnxi_share_t *share)
{
    if (share->fd >= 0) {
        vnxi_memfd_drop(share->st_dev, share->st_ino);
    }
    *share = VNXI_SHARE_NONE;
}

/* -- The peer's side ------------------------------------------------------ */

struct vnxi_share_map {
    atomic_uint refs;
    unsigned fork_count;
    unsigned char *base; /* page aligned */
    size_t mapped;
    size_t skip; /* from base to the first requested byte */
};

static atomic_uint live_maps;

static vnx_status_t
refuse(vnx_error_t *error, const vnxi_share_t *share, const char *why)
{
    return vnxi_error_set(error, VNX_ERR_MISMATCH, OPERATION,
                          "the peer's descriptor %d is not mapped: %s",
                          share->fd, why);
}

/* Fetch the peer's descriptor; the caller closes *fd_p. */
static vnx_status_t
fetch_fd(int pidfd, const vnxi_share_t *share, int *fd_p, vnx_error_t *error)
{
    int fd = (int)syscall(SYS_pidfd_getfd, pidfd, share->fd, 0u);
    if (fd >= 0) {
        *fd_p = fd;
        return VNX_OK;
    }
    switch (errno) {
    case EBADF:
        return refuse(error, share, "the peer has no such descriptor");
    case ESRCH:
        return vnxi_error_set(error, VNX_ERR_REMOTE_DISCONNECT, OPERATION,
                              "the peer's process has ended");
    case EPERM:
    case EACCES:
    case ENOSYS:
        return vnxi_error_set(error, VNX_ERR_NOT_ALLOWED, OPERATION,
                              "the kernel denies access to the peer's "
                              "descriptor %d: %m",
                              share->fd);
    default:
        return vnxi_error_set(error, VNX_ERR_BACKEND, OPERATION,
                              "pidfd_getfd of descriptor %d: %s", share->fd,
                              vnxi_errno(errno));
    }
}

static vnx_status_t
check_fd(int fd, const vnxi_share_t *share, uint64_t end, vnx_error_t *error)
{
    struct stat st;
    if (fstat(fd, &st) != 0) {
        return vnxi_error_set(error, VNX_ERR_BACKEND, OPERATION, "fstat: %m");
    }
    if (st.st_dev != share->st_dev || st.st_ino != share->st_ino) {
        return refuse(error, share, "it is not the file that was published");
    }
    const char *why = vnxi_memfd_refusal(fd, false);
    if (why != NULL) {
        return refuse(error, share, why);
    }
    if (st.st_size < 0 || (uint64_t)st.st_size < end) {
        return refuse(error, share, "it is shorter than published");
    }
    return VNX_OK;
}

/* Map the range [offset, end) of `fd`, which was checked. */
static vnx_status_t
map_range(int fd, uint64_t offset, uint64_t end, vnxi_share_map_t *map,
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
map_free(vnxi_share_map_t *map)
{
    atomic_fetch_sub(&live_maps, 1);
    free(map);
}

/* Create a mapping object: one reference, nothing mapped yet.  Counts it. */
static vnx_status_t
map_alloc(vnxi_share_map_t **map_p, vnx_error_t *error)
{
    vnxi_share_map_t *map = calloc(1, sizeof *map);
    if (map == NULL) {
        return vnxi_error_no_memory(error, OPERATION, sizeof *map);
    }
    atomic_init(&map->refs, 1);
    if (atomic_fetch_add(&live_maps, 1) >= VNXI_SHARE_MAPS_MAX) {
        map_free(map);
        return vnxi_error_set(error, VNX_ERR_BACKEND, OPERATION,
                              "this process has mapped %u regions of peers, "
                              "which is the limit",
                              VNXI_SHARE_MAPS_MAX);
    }
    *map_p = map;
    return VNX_OK;
}

vnx_status_t
vnxi_share_map(int pidfd, const vnxi_share_t *share, uint64_t len,
               vnxi_share_map_t **map_p, vnx_error_t *error)
{
    uint64_t end;
    int fd = -1;
    vnxi_share_map_t *map = NULL;
    if (len == 0 || __builtin_add_overflow(share->offset, len, &end) ||
        end > INT64_MAX) {
        return refuse(error, share, "the range is invalid");
    }
    vnx_status_t status = fetch_fd(pidfd, share, &fd, error);
    if (status != VNX_OK) {
        return status;
    }
    status = check_fd(fd, share, end, error);
    if (status != VNX_OK) {
        goto out;
    }
    status = map_alloc(&map, error);
    if (status != VNX_OK) {
        goto out;
    }
    status = map_range(fd, share->offset, end, map, error);
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
vnxi_share_map_data(const vnxi_share_map_t *map)
{
    return map->base + map->skip;
}

vnxi_share_map_t *
vnxi_share_map_retain(vnxi_share_map_t *map)
{
    atomic_fetch_add_explicit(&map->refs, 1, memory_order_relaxed);
    return map;
}

void
vnxi_share_map_release(vnxi_share_map_t *map)
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
