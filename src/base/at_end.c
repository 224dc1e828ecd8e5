#include "base/at_end.h"

#include <stdlib.h>

#include "base/fork.h"
#include "base/mutex.h"

#define HOOKS_MAX 8

static vnxi_mutex_t lock = VNXI_MUTEX_INIT(VNXI_RANK_AT_END);
static void (*hooks[HOOKS_MAX])(void); /* protected by lock, as below */
static unsigned count;

static void
forget_in_child(void)
{
    vnxi_mutex_init(&lock, VNXI_RANK_AT_END);
    count = 0;
}

void
vnxi_at_end_add(void (*hook)(void))
{
    vnxi_mutex_lock(&lock);
    unsigned i = 0;
    while (i < count && hooks[i] != hook) {
        i++;
    }
    if (i == count && count < HOOKS_MAX) {
        if (count == 0) {
            vnxi_fork_on_child(forget_in_child);
        }
        /* For every hook, because exit handlers are called in reverse order:
         * its library may be newer than the hooks before it. */
        atexit(vnxi_at_end_run);
        hooks[count++] = hook;
    }
    vnxi_mutex_unlock(&lock);
}

void
vnxi_at_end_run(void)
{
    void (*all[HOOKS_MAX])(void);

    vnxi_mutex_lock(&lock);
    unsigned due = count;
    for (unsigned i = 0; i < due; i++) {
        all[i] = hooks[i];
    }
    count = 0;
    vnxi_mutex_unlock(&lock);
    while (due > 0) {
        all[--due]();
    }
}
