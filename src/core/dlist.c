#include <stdlib.h>
#include <string.h>

#include "core/agent.h"

#define OPERATION "vnx_dlist_create"

struct vnx_dlist_builder {
    vnx_agent_t *agent; /* retained */
    vnxi_peer_t *peer;  /* retained; NULL: local */
    vnx_mem_t mem;
    vnxi_builder_t *engine_builder;
};

static void
builder_free(vnx_dlist_builder_t *builder)
{
    vnxi_peer_release(builder->peer);
    vnx_agent_release(builder->agent);
    free(builder);
}

vnx_status_t
vnxi_dlist_begin(vnx_agent_t *agent, vnxi_peer_t *peer, vnx_mem_t mem,
                 const char *const *backends, vnx_dlist_builder_t **out_p,
                 vnx_error_t *error)
{
    vnx_status_t status = vnxi_agent_bind(agent, OPERATION, error);
    if (status != VNX_OK) {
        return status;
    }
    vnx_dlist_builder_t *builder = malloc(sizeof *builder);
    if (builder == NULL) {
        return vnxi_error_no_memory(error, OPERATION, sizeof *builder);
    }
    *builder = (vnx_dlist_builder_t){
        .agent = vnx_agent_retain(agent),
        .peer = peer != NULL ? vnxi_peer_retain(peer) : NULL,
        .mem = mem};
    status =
        agent->ops->list_begin(agent->engine, peer, mem, backends, OPERATION,
                               &builder->engine_builder, error);
    if (status != VNX_OK) {
        builder_free(builder);
        return status;
    }
    *out_p = builder;
    return VNX_OK;
}

/* Add to the error of a row what the engine does not know. */
static vnx_status_t
row_refused(const vnx_dlist_builder_t *builder, vnx_status_t status,
            vnx_error_t *error)
{
    vnxi_peers_add_owner(builder->agent, builder->peer, builder->mem, error);
    return vnxi_count_refusal(builder->agent, status);
}

vnx_status_t
vnx_dlist_begin(vnx_agent_t *agent, const void *peer_name, size_t peer_len,
                vnx_mem_t mem, const char *const *backends,
                vnx_dlist_builder_t **out_p, vnx_error_t *error)
{
    vnxi_peer_t *peer = NULL;
    vnx_status_t status = VNX_OK;

    if (peer_len > 0) {
        status = vnxi_peers_find(agent, peer_name, peer_len, OPERATION, &peer,
                                 error);
    }
    if (status == VNX_OK) {
        status = vnxi_dlist_begin(agent, peer, mem, backends, out_p, error);
    }
    vnxi_peer_release(peer);
    return vnxi_count_refusal(agent, status);
}

vnx_status_t
vnx_dlist_feed(vnx_dlist_builder_t *builder, const vnx_desc_t *rows,
               size_t count, vnx_error_t *error)
{
    if (!vnxi_agent_usable(builder->agent)) {
        return vnxi_agent_refuse(builder->agent, OPERATION, error);
    }
    vnx_status_t status = builder->agent->ops->list_feed(
        builder->engine_builder, rows, count, error);
    return status == VNX_OK ? status : row_refused(builder, status, error);
}

vnx_status_t
vnx_dlist_feed_strided(vnx_dlist_builder_t *builder,
                       const vnx_strided_desc_t *rows, size_t count,
                       vnx_error_t *error)
{
    if (!vnxi_agent_usable(builder->agent)) {
        return vnxi_agent_refuse(builder->agent, OPERATION, error);
    }
    vnx_status_t status = builder->agent->ops->list_feed_strided(
        builder->engine_builder, rows, count, error);
    return status == VNX_OK ? status : row_refused(builder, status, error);
}

vnx_status_t
vnx_dlist_finish(vnx_dlist_builder_t *builder, vnx_dlist_t **out_p,
                 vnx_error_t *error)
{
    const vnxi_engine_ops_t *ops = builder->agent->ops;

    if (!vnxi_agent_usable(builder->agent)) {
        return vnxi_agent_refuse(builder->agent, OPERATION, error);
    }
    vnx_dlist_t *dlist = malloc(sizeof *dlist);
    if (dlist == NULL) {
        return vnxi_error_no_memory(error, OPERATION, sizeof *dlist);
    }
    vnx_status_t status =
        ops->list_finish(builder->engine_builder, &dlist->list, error);
    if (status != VNX_OK) {
        free(dlist);
        return vnxi_count_refusal(builder->agent, status);
    }
    atomic_init(&dlist->refs, 1);
    dlist->agent = vnx_agent_retain(builder->agent);
    dlist->peer = builder->peer; /* the engine's list holds a reference */
    vnxi_count(&dlist->agent->counters.live_dlists, 1);
    builder_free(builder);
    *out_p = dlist;
    return VNX_OK;
}

void
vnx_dlist_abort(vnx_dlist_builder_t *builder)
{
    if (builder != NULL && !vnxi_fork_crossed(builder->agent->fork_count)) {
        builder->agent->ops->list_abort(builder->engine_builder);
        builder_free(builder);
    }
}

vnx_status_t
vnxi_dlist_end(vnx_dlist_builder_t *builder, vnx_status_t status,
               vnx_dlist_t **out_p, vnx_error_t *error)
{
    if (status == VNX_OK) {
        status = vnx_dlist_finish(builder, out_p, error);
    }
    if (status != VNX_OK) {
        vnx_dlist_abort(builder);
    }
    return status;
}

vnx_status_t
vnx_dlist_create(vnx_agent_t *agent, const void *peer, size_t peer_len,
                 vnx_mem_t mem, const vnx_desc_t *rows, size_t count,
                 const char *const *backends, vnx_dlist_t **out_p,
                 vnx_error_t *error)
{
    vnx_dlist_builder_t *builder = NULL;
    vnx_status_t status =
        vnx_dlist_begin(agent, peer, peer_len, mem, backends, &builder, error);
    if (status != VNX_OK) {
        return status;
    }
    status = vnx_dlist_feed(builder, rows, count, error);
    return vnxi_dlist_end(builder, status, out_p, error);
}

vnx_status_t
vnx_dlist_create_strided(vnx_agent_t *agent, const void *peer, size_t peer_len,
                         vnx_mem_t mem, const vnx_strided_desc_t *rows,
                         size_t count, const char *const *backends,
                         vnx_dlist_t **out_p, vnx_error_t *error)
{
    vnx_dlist_builder_t *builder = NULL;
    vnx_status_t status =
        vnx_dlist_begin(agent, peer, peer_len, mem, backends, &builder, error);
    if (status != VNX_OK) {
        return status;
    }
    status = vnx_dlist_feed_strided(builder, rows, count, error);
    return vnxi_dlist_end(builder, status, out_p, error);
}

vnx_status_t
vnxi_list_make(vnx_agent_t *agent, vnxi_peer_t *peer, vnx_mem_t mem,
               const vnx_desc_t *rows, size_t count,
               const char *const *backends, const char *operation,
               vnxi_list_t **list_p, vnx_error_t *error)
{
    const vnxi_engine_ops_t *ops = agent->ops;
    vnxi_builder_t *builder;
    vnx_status_t status = ops->list_begin(agent->engine, peer, mem, backends,
                                          operation, &builder, error);
    if (status != VNX_OK) {
        return status;
    }
    status = ops->list_feed(builder, rows, count, error);
    if (status != VNX_OK) {
        vnxi_peers_add_owner(agent, peer, mem, error);
    } else {
        status = ops->list_finish(builder, list_p, error);
    }
    if (status != VNX_OK) {
        ops->list_abort(builder);
    }
    return status;
}

size_t
vnx_dlist_count(const vnx_dlist_t *dlist)
{
    return dlist->agent->ops->list_count(dlist->list);
}

size_t
vnx_dlist_bytes(const vnx_dlist_t *dlist)
{
    return sizeof *dlist + dlist->agent->ops->list_bytes(dlist->list);
}

vnx_dlist_t *
vnx_dlist_retain(vnx_dlist_t *dlist)
{
    atomic_fetch_add_explicit(&dlist->refs, 1, memory_order_relaxed);
    return dlist;
}

void
vnx_dlist_release(vnx_dlist_t *dlist)
{
    if (dlist == NULL || vnxi_fork_crossed(dlist->agent->fork_count) ||
        atomic_fetch_sub(&dlist->refs, 1) != 1) {
        return;
    }
    vnx_agent_t *agent = dlist->agent;
    agent->ops->list_release(dlist->list);
    vnxi_count(&agent->counters.live_dlists, (uint64_t)-1);
    free(dlist);
    vnx_agent_release(agent);
}
