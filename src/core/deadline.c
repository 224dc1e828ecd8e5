/*
 * Design notes.  A ring sorted by time.  Most deadlines have the same length,
 * so a new one belongs near the end, and the search for its place starts
 * there.  Most are disarmed long before they are due.  That costs the thread
 * nothing: it sleeps until the first deadline that it knows of and only then
 * looks again.
 *
 * The thread is detached and sleeps in static objects, so the process may end
 * at any time.  A forked child does not have the thread and starts its own.
 */
#include "core/deadline.h"

#include <pthread.h>
#include <stdbool.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/fork.h"
#include "base/mutex.h"
#include "base/thread.h"

#define AGAIN_NS 5000000u

static pthread_once_t once = PTHREAD_ONCE_INIT;
static vnxi_mutex_t lock = VNXI_MUTEX_INIT(VNXI_RANK_DEADLINE);
static vnxi_cond_t earlier; /* signalled when the first deadline changes;
                               CLOCK_MONOTONIC */
static vnxi_deadline_t ring = {.prev = &ring, .next = &ring};
static bool is_started;

static void
forget_in_child(void)
{
    vnxi_mutex_init(&lock, VNXI_RANK_DEADLINE);
    vnxi_cond_init(&earlier);
    ring.prev = ring.next = &ring;
    is_started = false;
}

static void
set_up(void)
{
    vnxi_cond_init(&earlier);
    vnxi_fork_on_child(forget_in_child);
}

static void
insert_lock_held(vnxi_deadline_t *deadline)
{
    vnxi_deadline_t *before = ring.prev;
    while (before != &ring && before->due_ns > deadline->due_ns) {
        before = before->prev;
    }
    deadline->prev = before;
    deadline->next = before->next;
    before->next->prev = deadline;
    before->next = deadline;
}

static void
remove_lock_held(vnxi_deadline_t *deadline)
{
    deadline->prev->next = deadline->next;
    deadline->next->prev = deadline->prev;
    deadline->prev = deadline->next = NULL;
}

static void
call_those_due_lock_held(uint64_t now)
{
    while (ring.next != &ring && ring.next->due_ns <= now) {
        vnxi_deadline_t *deadline = ring.next;
        remove_lock_held(deadline);
        deadline->due_ns = now + AGAIN_NS;
        insert_lock_held(deadline);
        deadline->passed(deadline);
    }
}

static void *
deadline_main(void *unused)
{
    (void)unused;
    pthread_setname_np(pthread_self(), "vnx-deadline");
    vnxi_mutex_lock(&lock);
    for (;;) {
        call_those_due_lock_held(vnxi_clock_ns());
        if (ring.next == &ring) {
            vnxi_cond_wait(&earlier, &lock);
        } else {
            struct timespec due = vnxi_clock_timespec(ring.next->due_ns);
            vnxi_cond_timedwait(&earlier, &lock, &due);
        }
    }
    return NULL;
}

static int
start_lock_held(void)
{
    int ret = is_started ? 0 : vnxi_thread_start_detached(deadline_main, NULL);

    is_started = ret == 0;
    return ret;
}

vnx_status_t
vnxi_deadline_arm(vnxi_deadline_t *deadline, uint64_t due_ns,
                  vnx_error_t *error)
{
    pthread_once(&once, set_up);
    vnxi_mutex_lock(&lock);
    int ret = start_lock_held();
    if (ret == 0) {
        deadline->due_ns = due_ns;
        insert_lock_held(deadline);
        if (ring.next == deadline) {
            vnxi_cond_signal(&earlier);
        }
    }
    vnxi_mutex_unlock(&lock);
    return ret == 0
               ? VNX_OK
               : vnxi_error_set(error, VNX_ERR_NO_MEMORY, "vnx_xfer_post",
                                "cannot start the thread for deadlines: %s",
                                vnxi_errno(ret));
}

void
vnxi_deadline_disarm(vnxi_deadline_t *deadline)
{
    vnxi_mutex_lock(&lock);
    remove_lock_held(deadline);
    vnxi_mutex_unlock(&lock);
}
