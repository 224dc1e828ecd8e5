/*
 * The copy threads: one pool per process, started at first use.  It runs tasks
 * chunk by chunk and in turn, so that a long task does not delay a short one.
 */
#ifndef VNXI_BASE_POOL_H
#define VNXI_BASE_POOL_H

#include <stdbool.h>
#include <stddef.h>
#include <vnx/error.h>

typedef struct vnxi_task vnxi_task_t;

/* Embedded in the owner's object.  The owner sets the first four fields before
 * it submits the task; the rest belongs to the pool. */
struct vnxi_task {
    /* Run one chunk, 0 <= chunk < chunks.  Chunks are handed out in order, to
     * at most max_parallel threads at a time.  False: no further chunk is
     * handed out, so an abandoned task need not wait for its turns. */
    bool (*run)(vnxi_task_t *task, size_t chunk);
    /* Called once on one of the threads, after the last chunk that was handed
     * out has run.  It may free the task or submit it again. */
    void (*done)(vnxi_task_t *task);
    size_t chunks;         /* > 0 */
    unsigned max_parallel; /* > 0 */

    size_t next_chunk; /* protected by the pool's lock, as below */
    unsigned active;
    vnxi_task_t *next;
};

/* Queue a task.  The pool grows to max_parallel threads if it has fewer (at
 * most 16, with all signals blocked).  Returns at once, after one lock and one
 * wake-up.  Fails only if no thread can be started (VNX_ERR_NO_MEMORY).  In a
 * forked child this starts a new pool. */
vnx_status_t vnxi_pool_submit(vnxi_task_t *task, vnx_error_t *error);

/* Remove a task of which no chunk has been handed out.  True: the pool does
 * not refer to it any more, and calls none of its functions.  False: it has
 * begun, has ended, or was never submitted.  One lock; as long as the queue
 * is. */
bool vnxi_pool_withdraw(const vnxi_task_t *task);

/* Call these around work that a caller's thread does itself instead of a
 * chunk.  Between enter and leave, check with sequentially consistent loads
 * that the memory may be touched.  Keep it short; do not nest. */
unsigned vnxi_pool_enter(void);
void vnxi_pool_leave(unsigned entered);

/* Wait until every chunk that is running now has ended, and every thread that
 * is between enter and leave has left.  To make memory safe to release, first
 * mark it as not to be touched, then call this: afterwards no thread uses it.
 * Takes as long as one chunk.  Must not be called from a chunk. */
void vnxi_pool_settle(void);

/* Return whether vnxi_pool_settle() would not have to wait.  Does not wait. */
bool vnxi_pool_is_idle(void);

#endif
