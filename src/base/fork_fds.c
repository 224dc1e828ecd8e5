#include "base/fork_fds.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <unistd.h>

#include "base/fork.h"

#define FDS_MAX (1 << 20)
#define WORDS (FDS_MAX / 64)

static pthread_once_t once = PTHREAD_ONCE_INIT;
static _Atomic uint64_t
    owned[WORDS];                /* pages that are not used cost nothing */
static atomic_size_t words_used; /* all words from here on are zero */

static void
close_in_child(void)
{
    size_t used = atomic_load(&words_used);

    for (size_t word = 0; word < used; word++) {
        uint64_t bits = atomic_exchange(&owned[word], 0);
        for (; bits != 0; bits &= bits - 1) {
            close((int)(word * 64) + __builtin_ctzll(bits));
        }
    }
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

void
vnxi_fork_fd_close(int fd)
{
    if (fd < 0) {
        return;
    }
    /* First forget, then close: the other way round a child of a fork in
     * between could close what got this number anew. */
    if (fd < FDS_MAX) {
        atomic_fetch_and(&owned[fd / 64], ~((uint64_t)1 << (fd % 64)));
    }
    close(fd);
}
