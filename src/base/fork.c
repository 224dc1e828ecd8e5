#include "base/fork.h"

#include <pthread.h>
#include <stddef.h>

#include "base/mutex.h"

#define HOOKS_MAX 32

unsigned vnxi_fork_count_;

static pthread_once_t once = PTHREAD_ONCE_INIT;
static vnxi_mutex_t lock = VNXI_MUTEX_INIT(VNXI_RANK_FORK);
static void (*hooks[HOOKS_MAX])(void); /* protected by lock */

static void
before_fork(void)
{
    vnxi_mutex_lock(&lock);
}

static void
in_parent(void)
{
    vnxi_mutex_unlock(&lock);
}

static void
in_child(void)
{
    vnxi_fork_count_++;
    for (size_t i = 0; i < HOOKS_MAX && hooks[i] != NULL; i++) {
        hooks[i]();
    }
    vnxi_mutex_unlock(&lock);
}

static void
install(void)
{
    pthread_atfork(before_fork, in_parent, in_child);
}

void
vnxi_fork_on_child(void (*hook)(void))
{
    pthread_once(&once, install);
    if (hook == NULL) {
        return;
    }
    vnxi_mutex_lock(&lock);
    for (size_t i = 0; i < HOOKS_MAX; i++) {
        if (hooks[i] == hook) {
            break;
        }
        if (hooks[i] == NULL) {
            hooks[i] = hook;
            break;
        }
    }
    vnxi_mutex_unlock(&lock);
}
