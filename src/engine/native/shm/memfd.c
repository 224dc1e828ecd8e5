#include "engine/native/shm/memfd.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/fork.h"
#include "base/mutex.h"

typedef struct memfd {
    uint64_t st_dev, st_ino;
    int fd; /* owned */
    size_t uses;
} memfd_t;

static vnxi_mutex_t lock = VNXI_MUTEX_INIT(VNXI_RANK_MEMFD);
static memfd_t *known; /* protected by lock, as are the next two */
static size_t count, capacity;

/* The parent's descriptors stay open in the child, but they belong to the
 * parent, and its lock may have been held. */
static void
forget_in_child(void)
{
    vnxi_mutex_init(&lock, VNXI_RANK_MEMFD);
    known = NULL;
    count = capacity = 0;
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
    for (size_t i = 0; i < count; i++) {
        if (known[i].st_ino == st_ino && known[i].st_dev == st_dev) {
            return &known[i];
        }
    }
    return NULL;
}

static bool
add_lock_held(int fd, uint64_t st_dev, uint64_t st_ino)
{
    if (count == capacity) {
        size_t wanted = capacity < 8 ? 8 : 2 * capacity;
        memfd_t *grown = realloc(known, wanted * sizeof *grown);
        if (grown == NULL) {
            return false;
        }
        known = grown;
        capacity = wanted;
    }
    known[count++] =
        (memfd_t){.st_dev = st_dev, .st_ino = st_ino, .fd = fd, .uses = 1};
    return true;
}

/* Every function that adds an entry registers the fork hook first. */
bool
vnxi_memfd_add(int fd, uint64_t st_dev, uint64_t st_ino)
{
    vnxi_fork_on_child(forget_in_child);
    vnxi_mutex_lock(&lock);
    bool added = add_lock_held(fd, st_dev, st_ino);
    vnxi_mutex_unlock(&lock);
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

int
vnxi_memfd_hold(uint64_t st_dev, uint64_t st_ino)
{
    int fd;
    vnxi_fork_on_child(forget_in_child);
    vnxi_mutex_lock(&lock);
    memfd_t *memfd = find_lock_held(st_dev, st_ino);
    if (memfd != NULL) {
        memfd->uses++;
        fd = memfd->fd;
    } else {
        fd = hold_new_lock_held(st_dev, st_ino);
    }
    vnxi_mutex_unlock(&lock);
    return fd;
}

void
vnxi_memfd_drop(uint64_t st_dev, uint64_t st_ino)
{
    int fd = -1;
    vnxi_mutex_lock(&lock);
    memfd_t *memfd = find_lock_held(st_dev, st_ino);
    if (memfd != NULL && --memfd->uses == 0) {
        fd = memfd->fd;
        *memfd = known[--count];
    }
    vnxi_mutex_unlock(&lock);
    /* The program may have closed it and opened another file since. */
    if (fd >= 0 && is_file(fd, "", st_dev, st_ino)) {
        close(fd);
    }
}
