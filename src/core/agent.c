/*
 * Calls on an agent that its engine carries out.  Calls about a peer are in
 * peers.c, about transfers in xfer.c and wait.c.
 */
#include "core/agent.h"

#include <stdlib.h>

#include "base/log.h"
#include "base/mutex.h"

vnx_status_t
vnxi_agent_refuse(const vnx_agent_t *agent, const char *operation,
                  vnx_error_t *error)
{
    if (vnxi_fork_crossed(agent->fork_count)) {
        return vnxi_error_set(error, VNX_ERR_NOT_ALLOWED, operation,
                              "the agent belongs to the process that this one "
                              "was forked from: create a new agent here");
    }
    return vnxi_error_set(error, VNX_ERR_CLOSED, operation,
                          "the agent is closed: create a new agent");
}

vnx_status_t
vnxi_agent_ready(const vnx_agent_t *agent, const char *operation,
                 vnx_error_t *error)
{
    if (!vnxi_agent_usable(agent)) {
        return vnxi_agent_refuse(agent, operation, error);
    }
    if (atomic_load_explicit(&agent->chosen, memory_order_acquire) == NULL) {
        return vnxi_error_set(error, VNX_ERR_NOT_FOUND, operation,
                              "the agent has no backend: create one first");
    }
    return VNX_OK;
}

bool
vnxi_agent_hold(vnx_agent_t *agent)
{
    if (atomic_load_explicit(&agent->is_bound, memory_order_acquire) ||
        !vnxi_agent_usable(agent)) {
        return false;
    }
    vnxi_mutex_lock(&agent->choice.lock);
    if (atomic_load(&agent->is_bound)) { /* by the call that held it */
        vnxi_mutex_unlock(&agent->choice.lock);
        return false;
    }
    return true;
}

void
vnxi_agent_unhold(vnx_agent_t *agent, bool is_held, bool binds)
{
    if (is_held) {
        if (binds) {
            atomic_store(&agent->is_bound, true);
        }
        vnxi_mutex_unlock(&agent->choice.lock);
    }
}

vnx_status_t
vnxi_agent_bind(vnx_agent_t *agent, const char *operation, vnx_error_t *error)
{
    bool is_held = vnxi_agent_hold(agent);
    vnx_status_t status = vnxi_agent_ready(agent, operation, error);

    vnxi_agent_unhold(agent, is_held, status == VNX_OK);
    return status;
}

vnx_agent_t *
vnx_agent_retain(vnx_agent_t *agent)
{
    atomic_fetch_add_explicit(&agent->refs, 1, memory_order_relaxed);
    return agent;
}

void
vnx_agent_release(vnx_agent_t *agent)
{
    if (agent == NULL || atomic_fetch_sub(&agent->refs, 1) != 1 ||
        vnxi_fork_crossed(agent->fork_count)) {
        return;
    }
    agent->destroy(agent);
}

const void *
vnx_agent_name(const vnx_agent_t *agent, size_t *len_p)
{
    *len_p = agent->name_len;
    return agent->name;
}

/* -- Backends --------------------------------------------------------------
 */

const char *
vnx_agent_engine(const vnx_agent_t *agent)
{
    const vnxi_candidate_t *chosen = atomic_load(&agent->chosen);
    return chosen != NULL ? chosen->ops->name : NULL;
}

bool
vnx_agent_may_wait(const vnx_agent_t *agent)
{
    return atomic_load_explicit(&agent->may_wait, memory_order_relaxed);
}

const char *
vnx_agent_plugin(vnx_agent_t *agent, size_t i)
{
    bool is_bound = atomic_load(&agent->is_bound); /* then chosen is final */
    const vnxi_candidate_t *chosen = atomic_load(&agent->chosen);
    return is_bound ? chosen->ops->plugin(chosen->engine, i)
                    : vnxi_choice_plugin(&agent->choice, chosen, i);
}

/* The engine or, if it may still change, a candidate that has the backend. */
static vnx_status_t
find_candidate(vnx_agent_t *agent, const char *backend, const char *operation,
               vnxi_candidate_t **out_p, vnx_error_t *error)
{
    bool is_bound = atomic_load(&agent->is_bound); /* then chosen is final */
    vnxi_candidate_t *chosen = atomic_load(&agent->chosen);

    if (is_bound) {
        *out_p = chosen;
        return VNX_OK;
    }
    return vnxi_choice_find(&agent->choice, chosen, backend, operation, out_p,
                            error);
}

vnx_status_t
vnx_agent_plugin_mems(vnx_agent_t *agent, const char *backend,
                      uint32_t *mems_p, vnx_error_t *error)
{
    vnxi_candidate_t *of;
    vnx_status_t status =
        find_candidate(agent, backend, "vnx_agent_plugin_mems", &of, error);
    return status != VNX_OK
               ? status
               : of->ops->plugin_mems(of->engine, backend, mems_p, error);
}

static vnx_status_t
get_param(vnx_agent_t *agent, const char *backend, bool created,
          const char *operation, size_t i, vnx_param_t *param_p,
          vnx_error_t *error)
{
    vnxi_candidate_t *of;
    vnx_status_t status =
        find_candidate(agent, backend, operation, &of, error);
    return status != VNX_OK ? status
                            : of->ops->param(of->engine, backend, created, i,
                                             param_p, error);
}

vnx_status_t
vnx_agent_plugin_param(vnx_agent_t *agent, const char *backend, size_t i,
                       vnx_param_t *param_p, vnx_error_t *error)
{
    return get_param(agent, backend, false, "vnx_agent_plugin_param", i,
                     param_p, error);
}

vnx_status_t
vnx_agent_backend_param(vnx_agent_t *agent, const char *backend, size_t i,
                        vnx_param_t *param_p, vnx_error_t *error)
{
    return get_param(agent, backend, true, "vnx_agent_backend_param", i,
                     param_p, error);
}

/* Make another candidate the engine, and stop the one that it replaces. */
static void
choose_lock_held(vnx_agent_t *agent, vnxi_candidate_t *to, const char *backend)
{
    vnxi_candidate_t *from = atomic_load(&agent->chosen);

    vnxi_choice_explain_lock_held(&agent->choice, to, backend);
    agent->ops = to->ops;
    agent->engine = to->engine;
    atomic_store(&agent->may_wait, to->ops->may_wait);
    atomic_store(&agent->chosen, to);
    if (from != NULL) {
        vnxi_candidate_stop_lock_held(from);
        vnxi_log(VNX_LOG_INFO, agent->name,
                 "the engine %s takes the place of %s (%s)", to->ops->name,
                 from->ops->name, agent->choice.why);
    }
}

/* Create a backend, and choose or change the engine for it. */
static vnx_status_t
create_lock_held(vnx_agent_t *agent, const char *backend,
                 const vnx_param_t *params, size_t param_count,
                 vnx_error_t *error)
{
    vnxi_candidate_t *from = atomic_load(&agent->chosen), *to;

    if (!vnxi_agent_usable(agent)) {
        return vnxi_agent_refuse(agent, "vnx_agent_create_backend", error);
    }
    vnx_status_t status =
        vnxi_choice_make_lock_held(&agent->choice, from, backend, &to, error);
    if (status == VNX_OK && from != NULL && to != from) {
        status = vnxi_choice_copy_lock_held(from, to, error);
    }
    if (status == VNX_OK) {
        status = to->ops->backend_create(to->engine, backend, params,
                                         param_count, error);
    }
    if (status == VNX_OK && to != from) {
        choose_lock_held(agent, to, backend);
    }
    if (status == VNX_OK) {
        vnxi_log(VNX_LOG_DEBUG, agent->name,
                 "created backend %s of engine %s (%s)", backend,
                 to->ops->name, agent->choice.why);
    }
    return status;
}

/* Create a backend of the engine that the agent is bound to. */
static vnx_status_t
create_bound(vnx_agent_t *agent, const char *backend,
             const vnx_param_t *params, size_t param_count, vnx_error_t *error)
{
    vnxi_candidate_t *chosen = atomic_load(&agent->chosen);

    if (!vnxi_agent_usable(agent)) {
        return vnxi_agent_refuse(agent, "vnx_agent_create_backend", error);
    }
    if (agent->choice.count > 1 && !vnxi_candidate_has(chosen, backend)) {
        return vnxi_choice_too_late(&agent->choice, chosen, backend, error);
    }
    vnx_status_t status = agent->ops->backend_create(
        agent->engine, backend, params, param_count, error);
    if (status == VNX_OK) {
        vnxi_log(VNX_LOG_DEBUG, agent->name, "created backend %s", backend);
    }
    return status;
}

vnx_status_t
vnx_agent_create_backend(vnx_agent_t *agent, const char *backend,
                         const vnx_param_t *params, size_t param_count,
                         vnx_error_t *error)
{
    bool is_held = vnxi_agent_hold(agent);
    vnx_status_t status =
        is_held ? create_lock_held(agent, backend, params, param_count, error)
                : create_bound(agent, backend, params, param_count, error);

    vnxi_agent_unhold(agent, is_held, false);
    return status;
}

/* -- Memory ----------------------------------------------------------------
 */

/* Add the bytes to a counter, and remember them. */
static void
count_bytes(const vnx_reg_desc_t *descs, size_t count,
            atomic_uint_fast64_t *counter, atomic_uint_fast64_t *last)
{
    uint64_t bytes = 0;
    for (size_t i = 0; i < count; i++) {
        bytes += descs[i].desc.len;
    }
    vnxi_count(counter, bytes);
    atomic_store_explicit(last, bytes, memory_order_relaxed);
}

vnx_status_t
vnx_agent_register(vnx_agent_t *agent, vnx_mem_t mem,
                   const vnx_reg_desc_t *descs, size_t count,
                   const char *const *backends, vnx_error_t *error)
{
    bool is_held = vnxi_agent_hold(agent);
    vnx_status_t status = vnxi_agent_ready(agent, "vnx_agent_register", error);
    if (status == VNX_OK) {
        status = agent->ops->mem_register(agent->engine, mem, descs, count,
                                          backends, error);
    }
    vnxi_agent_unhold(agent, is_held, status == VNX_OK && count > 0);
    if (status == VNX_OK) {
        vnxi_count(&agent->counters.regions, count);
        count_bytes(descs, count, &agent->counters.bytes_registered,
                    &agent->counters.last_registered);
    }
    return status;
}

vnx_status_t
vnx_agent_deregister(vnx_agent_t *agent, vnx_mem_t mem,
                     const vnx_reg_desc_t *descs, size_t count,
                     const char *const *backends, vnx_error_t *error)
{
    bool is_held = vnxi_agent_hold(agent);
    vnx_status_t status =
        vnxi_agent_ready(agent, "vnx_agent_deregister", error);
    if (status == VNX_OK) {
        status = agent->ops->mem_deregister(agent->engine, mem, descs, count,
                                            backends, error);
    }
    vnxi_agent_unhold(agent, is_held, false);
    if (status == VNX_OK) {
        vnxi_count(&agent->counters.regions, 0 - (uint64_t)count);
        count_bytes(descs, count, &agent->counters.bytes_deregistered,
                    &agent->counters.last_deregistered);
    }
    return status;
}

vnx_status_t
vnx_agent_query_memory(vnx_agent_t *agent, vnx_mem_t mem,
                       const vnx_reg_desc_t *descs, size_t count,
                       const char *backend, vnx_mem_info_t **infos_p,
                       vnx_error_t *error)
{
    vnx_mem_info_t *infos = calloc(count + 1, sizeof *infos);
    if (infos == NULL) {
        return vnxi_error_no_memory(error, "vnx_agent_query_memory",
                                    count * sizeof *infos);
    }
    bool is_held = vnxi_agent_hold(agent);
    vnx_status_t status =
        vnxi_agent_ready(agent, "vnx_agent_query_memory", error);
    if (status == VNX_OK) {
        status = agent->ops->mem_query(agent->engine, mem, descs, count,
                                       backend, infos, error);
    }
    vnxi_agent_unhold(agent, is_held, false);
    if (status != VNX_OK) {
        vnx_mem_infos_free(infos, count);
        return status;
    }
    *infos_p = infos;
    return VNX_OK;
}

void
vnx_mem_infos_free(vnx_mem_info_t *infos, size_t count)
{
    for (size_t i = 0; infos != NULL && i < count; i++) {
        for (size_t k = 0; k < infos[i].param_count; k++) {
            free((char *)infos[i].params[k].key);
            free((char *)infos[i].params[k].value);
        }
        free(infos[i].params);
    }
    free(infos);
}

/* -- The agent's metadata ---------------------------------------------------
 */

/* Return the engine's blob, signed if the agent has a secret.  Takes over
 * `blob`. */
static vnx_status_t
publish(const vnx_agent_t *agent, const char *operation, vnx_bytes_t blob,
        vnx_bytes_t *bytes_p, vnx_error_t *error)
{
    if (agent->signature_key.is_set) {
        vnx_status_t status =
            vnxi_signature_add(&agent->signature_key, operation, &blob, error);
        if (status != VNX_OK) {
            free(blob.data);
            return status;
        }
    }
    *bytes_p = blob;
    return VNX_OK;
}

vnx_status_t
vnx_agent_metadata(vnx_agent_t *agent, vnx_bytes_t *bytes_p,
                   vnx_error_t *error)
{
    static const char operation[] = "vnx_agent_metadata";
    vnx_bytes_t blob;

    vnx_status_t status = vnxi_agent_bind(agent, operation, error);
    if (status == VNX_OK) {
        status = agent->ops->metadata(agent->engine, &blob, error);
    }
    return status != VNX_OK ? status
                            : publish(agent, operation, blob, bytes_p, error);
}

vnx_status_t
vnx_agent_partial_metadata(vnx_agent_t *agent, vnx_mem_t mem,
                           const vnx_reg_desc_t *descs, size_t count,
                           bool with_connection, const char *const *backends,
                           vnx_bytes_t *bytes_p, vnx_error_t *error)
{
    static const char operation[] = "vnx_agent_partial_metadata";
    vnx_bytes_t blob;

    vnx_status_t status = vnxi_agent_bind(agent, operation, error);
    if (status == VNX_OK) {
        status = agent->ops->partial_metadata(agent->engine, mem, descs, count,
                                              with_connection || !count,
                                              backends, &blob, error);
    }
    return status != VNX_OK ? status
                            : publish(agent, operation, blob, bytes_p, error);
}

/* -- Events ----------------------------------------------------------------
 */

vnx_status_t
vnx_agent_fileno(vnx_agent_t *agent, int *fd_p, vnx_error_t *error)
{
    if (!vnxi_agent_usable(agent)) {
        return vnxi_agent_refuse(agent, "vnx_agent_fileno", error);
    }
    return vnxi_events_fd(&agent->events, fd_p, error);
}

vnx_status_t
vnx_agent_subscribe(vnx_agent_t *agent, int *fd_p, vnx_error_t *error)
{
    if (!vnxi_agent_usable(agent)) {
        return vnxi_agent_refuse(agent, "vnx_agent_subscribe", error);
    }
    return vnxi_events_subscribe(&agent->events, fd_p, error);
}

void
vnx_agent_unsubscribe(vnx_agent_t *agent, int fd)
{
    if (!vnxi_fork_crossed(agent->fork_count)) {
        vnxi_events_unsubscribe(&agent->events, fd);
    }
}

void
vnx_agent_clear_events(vnx_agent_t *agent)
{
    if (!vnxi_fork_crossed(agent->fork_count)) {
        vnxi_events_clear(&agent->events);
    }
}

/* -- Notifications ---------------------------------------------------------
 */

/* A client that polls in a loop is faster than the engine's thread can wake
 * up.  So every 64th consecutive empty poll makes progress itself, which adds
 * a few nanoseconds to each. */
#define POLLS_BEFORE_PROGRESS 64

/* Count an empty poll.  True: make progress. */
static bool
is_poll_due(vnx_agent_t *agent)
{
    atomic_uint *empty_polls = &agent->notifs.empty_polls;
    unsigned polls =
        atomic_load_explicit(empty_polls, memory_order_relaxed) + 1;

    atomic_store_explicit(empty_polls, polls, memory_order_relaxed);
    return polls % POLLS_BEFORE_PROGRESS == 0;
}

vnx_notif_t *
vnx_agent_take_arrived(vnx_agent_t *agent, bool *poll_is_due_p)
{
    vnxi_notifs_t *notifs = &agent->notifs;

    *poll_is_due_p = false;
    if (vnxi_fork_crossed(agent->fork_count)) {
        return NULL; /* the eventfd is the parent's, too */
    }
    if (atomic_load_explicit(&agent->events.signalled, memory_order_relaxed)) {
        vnxi_events_clear(&agent->events);
    }
    if (atomic_load_explicit(&notifs->count, memory_order_acquire) == 0) {
        *poll_is_due_p = is_poll_due(agent);
        return NULL;
    }
    return vnxi_notifs_take(notifs);
}

void
vnx_agent_poll_notifs(vnx_agent_t *agent)
{
    if (vnxi_agent_usable(agent) && atomic_load(&agent->is_bound)) {
        agent->ops->notif_poll(agent->engine);
    }
}

vnx_notif_t *
vnx_agent_take_notifs(vnx_agent_t *agent)
{
    bool poll_is_due;
    vnx_notif_t *chain = vnx_agent_take_arrived(agent, &poll_is_due);

    if (poll_is_due) {
        vnx_agent_poll_notifs(agent);
        chain = vnx_agent_take_arrived(agent, &poll_is_due);
    }
    return chain;
}
