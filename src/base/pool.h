/*
 * The copy threads: one pool a process, started at the first use, that works
 * on tasks chunk by chunk and in turn, so that a long task does not hold up a
 * short one.
 */
#ifndef VNXI_BASE_POOL_H
#define VNXI_BASE_POOL_H

#include <stdbool.h>
#include <stddef.h>
#include <vnx/error.h>

typedef struct vnxi_task vnxi_task_t;

/* Embedded in the owner's object.  The first four fields are the owner's, set
 * before submission; the rest is the pool's. */
struct vnxi_task {
    /* Work on one chunk, 0 <= chunk < chunks.  Chunks are handed out in order,
     * to up to max_parallel threads at a time.  False: no further chunk is
     * handed out, so that what is given up does not wait for its turns. */
    bool (*run)(vnxi_task_t *task, size_t chunk);
    /* Called once, after the last chunk that was handed out ran, on one of the
     * threads; the task may be freed or submitted again in it. */
    void (*done)(vnxi_task_t *task);
    size_t chunks;         /* > 0 */
    unsigned max_parallel; /* > 0 */

    size_t next_chunk; /* all below protected by the pool's lock */
    unsigned active;
    vnxi_task_t *next;
};

/* Queue a task.  The pool grows to max_parallel threads if it has fewer (16 at
 * most, all signals blocked).  Returns at once: one lock, one wake-up.  Fails
 * only where no thread at all can be started (VNX_ERR_NO_MEMORY).  In a forked
 * child a new pool is started. */
vnx_status_t vnxi_pool_submit(vnxi_task_t *task, vnx_error_t *error);

/* Around work that a thread of a caller does itself instead of a chunk: what
 * it must not touch it learns in between, by sequentially consistent loads.
 * Short, and not nested. */
unsigned vnxi_pool_enter(void);
void vnxi_pool_leave(unsigned entered);

/* Wait until every chunk that is running now, and all that is between enter
 * and leave, has ended: who told everybody before not to touch something knows
 * after that nobody does.  As long as one chunk takes; not to be called from a
 * chunk. */
void vnxi_pool_settle(void);

#endif
