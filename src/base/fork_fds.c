#include "base/fork_fds.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fork.h"
#include "base/mutex.h"

#define FDS_MAX (1 << 20)
#define WORDS (FDS_MAX / 64)

static pthread_once_t once = PTHREAD_ONCE_INIT;
static _Atomic uint64_t
    owned[WORDS];                /* pages that are never used cost nothing */
static atomic_size_t words_used; /* all words from here on are zero */

/* The mark: a socket whose only purpose is to be open. */
static vnxi_mutex_t mark_lock = VNXI_MUTEX_INIT(VNXI_RANK_DESCRIPTORS);
static int mark = -1; /* protected by mark_lock, as below */
static struct stat mark_stat;
static unsigned epoch_now;

/* A socket has an inode number of its own; an eventfd does not. */
static bool
is_mark(void)
{
    struct stat now;

    return fstat(mark, &now) == 0 && now.st_ino == mark_stat.st_ino &&
           now.st_dev == mark_stat.st_dev;
}

static void
close_in_child(void)
{
    size_t used = atomic_load(&words_used);
    bool lost = mark >= 0 && !is_mark();

    for (size_t word = 0; word < used; word++) {
        uint64_t bits = atomic_exchange(&owned[word], 0);
        for (; bits != 0 && !lost; bits &= bits - 1) {
            close((int)(word * 64) + __builtin_ctzll(bits));
        }
    }
    vnxi_mutex_init(&mark_lock, VNXI_RANK_DESCRIPTORS);
    mark = -1; /* it was closed in the loop above */
}

static void
install(void)
{
    vnxi_fork_on_child(close_in_child);
}

int
vnxi_fork_fd_own(int fd)
{
    if (fd < 0 || fd >= FDS_MAX) {
        return fd;
    }
    pthread_once(&once, install);
    size_t word = (size_t)fd / 64, used = atomic_load(&words_used);
    while (used <= word &&
           !atomic_compare_exchange_weak(&words_used, &used, word + 1)) {
    }
    atomic_fetch_or(&owned[word], (uint64_t)1 << (fd % 64));
    return fd;
}

/* The bit is cleared before closing.  Otherwise a child forked in between
 * could close another file that has since got this number. */
void
vnxi_fork_fd_disown(int fd)
{
    if (fd >= 0 && fd < FDS_MAX) {
        atomic_fetch_and(&owned[fd / 64], ~((uint64_t)1 << (fd % 64)));
    }
}

void
vnxi_fork_fd_close(int fd)
{
    if (fd >= 0) {
        vnxi_fork_fd_disown(fd);
        close(fd);
    }
}

void
vnxi_fork_fds_close(const int *fds, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        vnxi_fork_fd_close(fds[i]);
    }
}

/* -- Descriptors that the program closes ---------------------------------- */

/* The program now owns the numbers that were ours. */
static void
forget_all_lock_held(void)
{
    size_t used = atomic_load(&words_used);

    for (size_t word = 0; word < used; word++) {
        atomic_store(&owned[word], 0);
    }
    mark = -1;
    epoch_now++;
}

/* Without a free descriptor the mark is missing and a loss goes unnoticed. */
static void
set_mark_lock_held(void)
{
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    if (fd >= 0 && fstat(fd, &mark_stat) != 0) {
        close(fd);
        fd = -1;
    }
    mark = vnxi_fork_fd_own(fd);
}

unsigned
vnxi_fds_epoch(void)
{
    pthread_once(&once, install);
    vnxi_mutex_lock(&mark_lock);
    if (mark >= 0 && !is_mark()) {
        forget_all_lock_held();
    }
    if (mark < 0) {
        set_mark_lock_held();
    }
    unsigned epoch = epoch_now;
    vnxi_mutex_unlock(&mark_lock);
    return epoch;
}

bool
vnxi_fds_lost(unsigned epoch)
{
    vnxi_mutex_lock(&mark_lock);
    bool lost = epoch != epoch_now || (mark >= 0 && !is_mark());
    vnxi_mutex_unlock(&mark_lock);
    return lost;
}
