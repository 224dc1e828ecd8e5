/*
 * The life of an agent: creating and closing it.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mutex.h"
#include "base/params.h"
#include "base/thread.h"
#include "core/agent.h"

#define NAME_MAX_LEN 65535
#define NOTIF_BYTES_MAX (256u << 20)
#define THREADS_MAX 4

static unsigned
default_threads(void)
{
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    return cores < 1 ? 1 : cores > THREADS_MAX ? THREADS_MAX : (unsigned)cores;
}

static void
on_notif(void *context, const void *sender, size_t sender_len,
         const void *message, size_t message_len)
{
    vnx_agent_t *agent = context;
    vnxi_peers_count_notif(agent, sender, sender_len);
    vnxi_notifs_push(&agent->notifs, sender, sender_len, message, message_len);
    vnxi_events_signal(&agent->events);
}

static void
agent_init_locks(vnx_agent_t *agent, const vnx_agent_config_t *config)
{
    vnxi_mutex_init(&agent->load_lock, VNXI_RANK_AGENT_LOAD);
    vnxi_cond_init(&agent->turn_ends);
    vnxi_cond_init(&agent->stop_ends);
    vnxi_mutex_init(&agent->peers_lock, VNXI_RANK_AGENT_PEERS);
    vnxi_mutex_init(&agent->counters_lock, VNXI_RANK_AGENT_COUNTERS);
    vnxi_mutex_init(&agent->error_lock, VNXI_RANK_AGENT_ERROR);
    vnxi_events_init(&agent->events);
    vnxi_notifs_init(&agent->notifs, config->notif_bytes_max
                                         ? config->notif_bytes_max
                                         : NOTIF_BYTES_MAX);
    agent->notifs.agent = agent->name;
}

static void
agent_free(vnx_agent_t *agent)
{
    vnxi_choice_fini(&agent->choice);
    vnxi_signature_key_fini(&agent->signature_key);
    vnxi_name_map_fini(&agent->peers);
    vnxi_peers_forget_rivals(agent);
    vnxi_notifs_fini(&agent->notifs);
    vnxi_events_fini(&agent->events);
    vnxi_mutex_destroy(&agent->error_lock);
    vnxi_mutex_destroy(&agent->counters_lock);
    vnxi_mutex_destroy(&agent->peers_lock);
    vnxi_cond_destroy(&agent->stop_ends);
    vnxi_cond_destroy(&agent->turn_ends);
    vnxi_mutex_destroy(&agent->load_lock);
    free(agent->name);
    free(agent);
}

static vnx_agent_t *
agent_alloc(const void *name, size_t name_len)
{
    vnx_agent_t *agent = calloc(1, sizeof *agent);
    char *copy = malloc(name_len + 1);
    if (agent == NULL || copy == NULL) {
        free(agent);
        free(copy);
        return NULL;
    }
    memcpy(copy, name, name_len);
    copy[name_len] = '\0';
    agent->name = copy;
    agent->name_len = name_len;
    atomic_init(&agent->refs, 1);
    return agent;
}

static bool
has_landed(void *context)
{
    const vnx_agent_t *agent = context;
    return atomic_load(&agent->in_flight) == 0;
}

static void
await_stop(vnx_agent_t *agent)
{
    vnxi_mutex_lock(&agent->load_lock);
    while (!agent->is_stopped) {
        vnxi_cond_wait(&agent->stop_ends, &agent->load_lock);
    }
    vnxi_mutex_unlock(&agent->load_lock);
}

void
vnx_agent_close(vnx_agent_t *agent)
{
    if (vnxi_fork_crossed(agent->fork_count)) {
        return;
    }
    if (atomic_exchange(&agent->closed, true)) {
        await_stop(agent); /* by the first call */
        return;
    }
    vnxi_events_forget_lost(&agent->events);
    vnxi_choice_stop(&agent->choice);
    vnxi_peers_close(agent);
    vnxi_events_signal(&agent->events);
    /* The engine has stopped, so this takes microseconds. */
    vnxi_events_wait(&agent->events, has_landed, agent, UINT64_MAX);
    vnxi_mutex_lock(&agent->load_lock);
    agent->is_stopped = true;
    vnxi_cond_broadcast(&agent->stop_ends);
    vnxi_mutex_unlock(&agent->load_lock);
}

static void
agent_destroy(vnx_agent_t *agent)
{
    vnx_agent_close(agent);
    agent_free(agent);
}

static void *
release_entry(void *agent)
{
    vnx_agent_release(agent);
    return NULL;
}

/* Closing waits until the engine's threads have left their callbacks, so none
 * of them may do it. */
void
vnxi_agent_release_in_callback(vnx_agent_t *agent)
{
    unsigned refs = agent != NULL ? atomic_load(&agent->refs) : 0;

    while (refs > 1) {
        if (atomic_compare_exchange_weak(&agent->refs, &refs, refs - 1)) {
            return;
        }
    }
    if (refs == 1 && vnxi_thread_start_detached(release_entry, agent) != 0) {
        vnxi_log(VNX_LOG_ERROR, agent->name,
                 "nobody refers to the agent any more, but it cannot be "
                 "closed, because no thread can be started");
    }
}

vnx_status_t
vnx_agent_create(const void *name, size_t name_len,
                 const vnx_agent_config_t *given, vnx_agent_t **out_p,
                 vnx_error_t *error)
{
    vnx_agent_config_t config = {0};
    vnx_status_t status = VNX_OK;

    if (name_len == 0 || name_len > NAME_MAX_LEN) {
        return vnxi_error_set(
            error, VNX_ERR_INVALID_PARAM, "vnx_agent_create",
            "an agent's name must have 1 to %d bytes, not %zu", NAME_MAX_LEN,
            name_len);
    }
    if (given != NULL) {
        status = vnxi_params_read("vnx_agent_create", "config", given,
                                  given->size, &config, sizeof config, error);
    }
    if (status != VNX_OK) {
        return status;
    }
    vnx_agent_t *agent = agent_alloc(name, name_len);
    if (agent == NULL) {
        return vnxi_error_no_memory(error, "vnx_agent_create", sizeof *agent);
    }
    agent->destroy = agent_destroy;
    vnxi_fork_on_child(NULL); /* start counting forks */
    agent->fork_count = vnxi_fork_count();
    agent->wall_minus_mono_us = vnxi_clock_wall_us() - vnxi_clock_ns() / 1000;
    agent_init_locks(agent, &config);

    vnxi_engine_config_t engine_config = {
        .agent_name = agent->name,
        .agent_name_len = name_len,
        .num_threads =
            config.num_threads ? config.num_threads : default_threads(),
        .host = {agent, vnxi_xfer_done, on_notif, vnxi_peers_lost},
    };
    status =
        vnxi_signature_key_init(&agent->signature_key, config.metadata_secret,
                                config.metadata_secret_len, error);
    if (status == VNX_OK) {
        status = vnxi_choice_init(&agent->choice, config.engine,
                                  config.backends, &engine_config, error);
    }
    if (status != VNX_OK) {
        agent_free(agent);
        return status;
    }
    *out_p = agent;
    return VNX_OK;
}
