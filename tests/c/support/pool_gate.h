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
    vnxi_task_t task; /* first: the task is the gate */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    unsigned inside; /* lock; threads that are held */
    bool open, done; /* lock */
} pool_gate_t;

static inline bool
gate_run(vnxi_task_t *task, size_t chunk)
{
    pool_gate_t *gate = (pool_gate_t *)task;
    (void)chunk;
    pthread_mutex_lock(&gate->lock);
    gate->inside++;
    pthread_cond_broadcast(&gate->changed);
    while (!gate->open) {
        pthread_cond_wait(&gate->changed, &gate->lock);
    }
    pthread_mutex_unlock(&gate->lock);
    return true;
}

static inline void
gate_done(vnxi_task_t *task)
{
    pool_gate_t *gate = (pool_gate_t *)task;
    pthread_mutex_lock(&gate->lock);
    gate->done = true;
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
    gate->task = (vnxi_task_t){.run = gate_run,
                               .done = gate_done,
                               .chunks = GATE_THREADS,
                               .max_parallel = GATE_THREADS};
    assert_int_equal(vnxi_pool_submit(&gate->task, NULL), VNX_OK);
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
    while (!gate->done) {
        pthread_cond_wait(&gate->changed, &gate->lock);
    }
    pthread_mutex_unlock(&gate->lock);
    pthread_cond_destroy(&gate->changed);
    pthread_mutex_destroy(&gate->lock);
    free(gate);
}

#endif
