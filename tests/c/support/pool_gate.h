/*
 * A gate before the copy threads: while it is shut every one of them is held,
 * so that a transfer of more than a few rows stays POSTED for as long as a
 * test likes.
 */
#ifndef POOL_GATE_H
#define POOL_GATE_H

#include <pthread.h>

#include "base/pool.h"

#define GATE_THREADS 16 /* as many as the pool ever has */

typedef struct pool_gate {
    vnxi_task_t tasks[GATE_THREADS];
    pthread_mutex_t lock;
    pthread_cond_t changed;
    unsigned inside; /* lock; threads that are held */
    bool open;       /* lock */
} pool_gate_t;

static pool_gate_t *the_gate; /* one at a time */

static inline bool
gate_run(vnxi_task_t *task, size_t chunk)
{
    (void)task, (void)chunk;
    return true;
}

/* Hold the thread here and not in a chunk: vnxi_pool_settle() waits for the
 * end of chunks. */
static inline void
gate_hold(vnxi_task_t *task)
{
    pool_gate_t *gate = the_gate;
    (void)task;
    pthread_mutex_lock(&gate->lock);
    gate->inside++;
    pthread_cond_broadcast(&gate->changed);
    while (!gate->open) {
        pthread_cond_wait(&gate->changed, &gate->lock);
    }
    gate->inside--;
    pthread_cond_broadcast(&gate->changed);
    pthread_mutex_unlock(&gate->lock);
}

/* Returns when every copy thread is held. */
static inline pool_gate_t *
gate_shut(void)
{
    pool_gate_t *gate = calloc(1, sizeof *gate);
    pthread_mutex_init(&gate->lock, NULL);
    pthread_cond_init(&gate->changed, NULL);
    the_gate = gate;
    for (unsigned i = 0; i < GATE_THREADS; i++) {
        gate->tasks[i] = (vnxi_task_t){.run = gate_run,
                                       .done = gate_hold,
                                       .chunks = 1,
                                       .max_parallel = GATE_THREADS};
        assert_int_equal(vnxi_pool_submit(&gate->tasks[i], NULL), VNX_OK);
    }
    pthread_mutex_lock(&gate->lock);
    while (gate->inside < GATE_THREADS) {
        pthread_cond_wait(&gate->changed, &gate->lock);
    }
    pthread_mutex_unlock(&gate->lock);
    return gate;
}

static inline void
gate_open(pool_gate_t *gate)
{
    pthread_mutex_lock(&gate->lock);
    gate->open = true;
    pthread_cond_broadcast(&gate->changed);
    while (gate->inside > 0) {
        pthread_cond_wait(&gate->changed, &gate->lock);
    }
    pthread_mutex_unlock(&gate->lock);
    pthread_cond_destroy(&gate->changed);
    pthread_mutex_destroy(&gate->lock);
    free(gate);
}

#endif
