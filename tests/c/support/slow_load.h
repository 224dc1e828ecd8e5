/*
 * An engine that waits when it loads one peer, as for a process that is
 * stopped: the native engine with functions of the test in place of peer_load
 * and stop.  For one agent at a time.
 */
#ifndef SLOW_LOAD_H
#define SLOW_LOAD_H

#include <semaphore.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "core/agent.h"
#include "engine/parts/metadata.h"

static vnxi_engine_ops_t slow_ops;
static const vnxi_engine_ops_t *slow_real;
static const char *slow_name; /* of the peer */
static sem_t slow_has_begun;  /* posted by each load of that peer */
static atomic_bool slow_goes_on, slow_is_stopped;

static inline vnx_status_t
slow_load(vnxi_engine_t *engine, vnxi_peer_t *current,
          const vnxi_parsed_t *parsed, const atomic_bool *stop,
          vnxi_peer_t **peer_p, vnx_error_t *error)
{
    const vnxi_md_bytes_t *agent = &parsed->metadata.agent;

    if (agent->len == strlen(slow_name) &&
        memcmp(agent->data, slow_name, agent->len) == 0) {
        sem_post(&slow_has_begun);
        while (!atomic_load(&slow_goes_on)) {
            if (atomic_load(&slow_is_stopped) ||
                (stop != NULL && atomic_load(stop))) {
                return vnxi_error_set(error, VNX_ERR_CANCELED, "slow_load",
                                      "stopped");
            }
            usleep(1000);
        }
    }
    return slow_real->peer_load(engine, current, parsed, stop, peer_p, error);
}

static inline void
slow_stop(vnxi_engine_t *engine)
{
    atomic_store(&slow_is_stopped, true);
    slow_real->stop(engine);
}

/* From now on, loads of the peer `name` wait. */
static inline void
slow_load_begin(vnx_agent_t *agent, const char *name)
{
    slow_real = agent->ops;
    slow_ops = *slow_real;
    slow_ops.peer_load = slow_load;
    slow_ops.stop = slow_stop;
    slow_name = name;
    atomic_store(&slow_goes_on, false);
    atomic_store(&slow_is_stopped, false);
    assert_int_equal(sem_init(&slow_has_begun, 0, 0), 0);
    agent->ops = &slow_ops;
    for (size_t i = 0; i < agent->choice.count; i++) {
        if (agent->choice.candidates[i].ops == slow_real) {
            agent->choice.candidates[i].ops = &slow_ops;
        }
    }
}

/* Wait for something that is sure to happen. */
static inline void
slow_load_await(sem_t *sem)
{
    struct timespec end;

    clock_gettime(CLOCK_REALTIME, &end);
    end.tv_sec += (time_t)(vnx_test_limit(30) / 1000000000);
    assert_int_equal(sem_timedwait(sem, &end), 0);
}

#endif
