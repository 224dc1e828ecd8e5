/*
 * The memfds that peers may map, how peers can map a region in one of them,
 * and the regions of peers that are mapped here.
 */
#include "engine/native/shm/mapping.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/magic.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/error.h"
#include "base/fork.h"
#include "base/mutex.h"
#include "base/pidfd.h"
#include "engine/native/shm/proc.h"

#define OPERATION "vnx_agent_load_metadata"

/* -- Memfds --------------------------------------------------------------- */

typedef struct memfd {
    uint64_t st_dev, st_ino;
    int fd; /* owned */
    size_t uses;
} memfd_t;

static vnxi_mutex_t known_lock = VNXI_MUTEX_INIT(VNXI_RANK_MAPPING);
static memfd_t *known; /* protected by known_lock, as are the next two */
static size_t known_count, known_capacity;

/* The parent's descriptors stay open in the child, but they belong to the
 * parent, and its lock may have been held. */
static void
forget_in_child(void)
{
    vnxi_mutex_init(&known_lock, VNXI_RANK_MAPPING);
    known = NULL;
    known_count = known_capacity = 0;
}

const char *
vnxi_memfd_refusal(int fd, bool seal)
{
    struct statfs fs;
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || (flags & O_ACCMODE) != O_RDWR) {
        return "it is not open for reading and writing";
    }
    /* Huge pages may run out at a page fault, which would kill the process
     * that maps them. */
    if (fstatfs(fd, &fs) != 0 || fs.f_type != TMPFS_MAGIC) {
        return "it is not a memfd of ordinary pages";
    }
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals >= 0 && (seals & F_SEAL_SHRINK) == 0 && seal &&
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) == 0) {
        seals = fcntl(fd, F_GET_SEALS);
    }
    if (seals < 0 || (seals & F_SEAL_SHRINK) == 0) {
        return "it is not sealed, so it could shrink";
    }
    if ((seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)) != 0) {
        return "it is sealed against writing";
    }
    return NULL;
}

static memfd_t *
find_lock_held(uint64_t st_dev, uint64_t st_ino)
{
    for (size_t i = 0; i < known_count; i++) {
        if (known[i].st_ino == st_ino && known[i].st_dev == st_dev) {
            return &known[i];
        }
    }
    return NULL;
}

static bool
add_lock_held(int fd, uint64_t st_dev, uint64_t st_ino)
{
    if (known_count == known_capacity) {
        size_t wanted = known_capacity < 8 ? 8 : 2 * known_capacity;
        memfd_t *grown = realloc(known, wanted * sizeof *grown);
        if (grown == NULL) {
            return false;
        }
        known = grown;
        known_capacity = wanted;
    }
    known[known_count++] =
        (memfd_t){.st_dev = st_dev, .st_ino = st_ino, .fd = fd, .uses = 1};
    return true;
}

/* Every function that adds an entry registers the fork hook first. */
bool
vnxi_memfd_add(int fd, uint64_t st_dev, uint64_t st_ino)
{
    vnxi_fork_on_child(forget_in_child);
    vnxi_mutex_lock(&known_lock);
    bool added = add_lock_held(fd, st_dev, st_ino);
    vnxi_mutex_unlock(&known_lock);
    return added;
}

/* Check `name` in the open directory `at`; "" means `at` itself. */
static bool
is_file(int at, const char *name, uint64_t st_dev, uint64_t st_ino)
{
    struct stat st;
    return fstatat(at, name, &st, AT_EMPTY_PATH) == 0 && st.st_dev == st_dev &&
           st.st_ino == st_ino;
}

/* Duplicate a matching descriptor of this process; -1: none. */
static int
duplicate_open_fd(uint64_t st_dev, uint64_t st_ino)
{
    DIR *dir = opendir("/proc/self/fd");
    if (dir == NULL) {
        return -1;
    }
    int copy = -1;
    for (size_t i = 0; copy < 0 && i < VNXI_MEMFD_SCAN_MAX; i++) {
        const struct dirent *entry = readdir(dir);
        if (entry == NULL) {
            break;
        }
        /* Checked by name: another thread may close the number. */
        if (!is_file(dirfd(dir), entry->d_name, st_dev, st_ino)) {
            continue;
        }
        int fd = (int)strtol(entry->d_name, NULL, 10);
        copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
        /* Another thread may have closed and reused the number meanwhile, so
         * check the duplicate itself. */
        if (copy >= 0 && (!is_file(copy, "", st_dev, st_ino) ||
                          vnxi_memfd_refusal(copy, true) != NULL)) {
            close(copy);
            copy = -1;
        }
    }
    closedir(dir);
    return copy;
}

static int
hold_new_lock_held(uint64_t st_dev, uint64_t st_ino)
{
    int fd = duplicate_open_fd(st_dev, st_ino);
    if (fd >= 0 && !add_lock_held(fd, st_dev, st_ino)) {
        close(fd);
        return -1;
    }
    return fd;
}

/* Get a descriptor of this file and add one use: the known one, else a
 * duplicate of any descriptor open in this process. -1: none that peers may
 * map. */
static int
memfd_hold(uint64_t st_dev, uint64_t st_ino)
{
    int fd;
    vnxi_fork_on_child(forget_in_child);
    vnxi_mutex_lock(&known_lock);
    memfd_t *memfd = find_lock_held(st_dev, st_ino);
    if (memfd != NULL) {
        memfd->uses++;
        fd = memfd->fd;
    } else {
        fd = hold_new_lock_held(st_dev, st_ino);
    }
    vnxi_mutex_unlock(&known_lock);
    return fd;
}

void
vnxi_memfd_drop(uint64_t st_dev, uint64_t st_ino)
{
    int fd = -1;
    vnxi_mutex_lock(&known_lock);
    memfd_t *memfd = find_lock_held(st_dev, st_ino);
    if (memfd != NULL && --memfd->uses == 0) {
        fd = memfd->fd;
        *memfd = known[--known_count];
    }
    vnxi_mutex_unlock(&known_lock);
    /* The program may have closed it and opened another file since. */
    if (fd >= 0 && is_file(fd, "", st_dev, st_ino)) {
        close(fd);
    }
}

/* -- Regions of this process ---------------------------------------------- */

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
    vnxi_proc_vma_t vma;
    uint64_t end;
    /* Peers must not write to a range that is read-only here.  They access it
     * through the kernel, which checks that. */
    if (len < VNXI_MAPPING_LEN_MIN ||
        __builtin_add_overflow(addr, len, &end) ||
        !vnxi_proc_vma_find(addr, &vma) || end > vma.end || !vma.shared ||
        !vma.readable || !vma.writable || !vma.memfd) {
        return VNXI_MAP_INFO_NONE;
    }
    int fd = memfd_hold(vma.st_dev, vma.st_ino);
    if (fd < 0) {
        return VNXI_MAP_INFO_NONE;
    }
    uint64_t offset = vma.offset + (addr - vma.start);
    if (!file_has(fd, offset + len)) {
        vnxi_memfd_drop(vma.st_dev, vma.st_ino);
        return VNXI_MAP_INFO_NONE;
    }
    return (vnxi_map_info_t){.fd = fd,
                             .offset = offset,
                             .st_dev = vma.st_dev,
                             .st_ino = vma.st_ino};
}

void
vnxi_map_info_fini(vnxi_map_info_t *map_info)
{
    if (map_info->fd >= 0) {
        vnxi_memfd_drop(map_info->st_dev, map_info->st_ino);
    }
    *map_info = VNXI_MAP_INFO_NONE;
}

/* -- Regions of peers ----------------------------------------------------- */

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
    int fd = vnxi_pidfd_getfd(pidfd, map_info->fd);
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
