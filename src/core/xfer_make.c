/*
 * Creating and releasing transfers.
 */
#include <stdlib.h>
#include <string.h>

#include "core/xfer.h"

unsigned char *
vnxi_xfer_copy_notif(const void *notif, size_t len)
{
    unsigned char *copy = malloc(len ? len : 1);
    if (copy != NULL && len > 0) {
        memcpy(copy, notif, len);
    }
    return copy;
}

static vnx_status_t
xfer_create(vnx_agent_t *agent, const vnxi_xfer_args_t *args,
            const void *notif, size_t notif_len, vnx_xfer_t **out_p,
            vnx_error_t *error)
{
    vnx_xfer_t *xfer = malloc(sizeof *xfer);
    if (xfer == NULL) {
        return vnxi_error_no_memory(error, args->operation, sizeof *xfer);
    }
    vnxi_xfer_args_t full = *args;
    full.cookie = xfer;
    *xfer = (vnx_xfer_t){.deadline.passed = vnxi_xfer_deadline_passed,
                         .op = args->op,
                         .notif_len = notif_len};
    if (notif != NULL &&
        (xfer->notif = vnxi_xfer_copy_notif(notif, notif_len)) == NULL) {
        free(xfer);
        return vnxi_error_no_memory(error, args->operation, notif_len);
    }
    vnx_status_t status = agent->ops->xfer_prepare(
        agent->engine, &full, &xfer->exfer, &xfer->facts, error);
    if (status != VNX_OK) {
        free(xfer->notif);
        free(xfer);
        return status;
    }
    atomic_init(&xfer->refs, 1);
    atomic_init(&xfer->state, VNX_XFER_READY);
    xfer->agent = vnx_agent_retain(agent);
    vnxi_count(&agent->counters.live_xfers, 1);
    *out_p = xfer;
    return VNX_OK;
}

vnx_status_t
vnx_xfer_create_prepped(vnx_agent_t *agent, vnx_op_t op, vnx_dlist_t *local,
                        vnx_indices_t local_rows, vnx_dlist_t *remote,
                        vnx_indices_t remote_rows, const void *notif,
                        size_t notif_len, bool no_merge, vnx_xfer_t **out_p,
                        vnx_error_t *error)
{
    static const char operation[] = "make_prepped_xfer";

    if (!vnxi_agent_usable(agent)) {
        return vnxi_agent_refuse(agent, operation, error);
    }
    if (local->agent != agent || remote->agent != agent) {
        return vnxi_error_set(error, VNX_ERR_INVALID_PARAM, operation,
                              "the %s prepared list belongs to another agent",
                              local->agent != agent ? "local" : "remote");
    }
    if (local->peer != NULL || remote->peer == NULL) {
        return vnxi_error_set(
            error, VNX_ERR_INVALID_PARAM, operation,
            local->peer != NULL
                ? "the local side is a list prepared for a peer"
                : "the remote side is a list of the local agent (prepare it "
                  "for the peer's name)");
    }
    vnxi_xfer_args_t args = {
        .op = op,
        .local = local->list,
        .remote = remote->list,
        .local_rows = local_rows,
        .remote_rows = remote_rows,
        .no_merge = no_merge,
        .operation = operation,
    };
    return xfer_create(agent, &args, notif, notif_len, out_p, error);
}

/* Prepare a list that is used by one transfer only. */
static vnx_status_t
one_list(vnx_agent_t *agent, vnxi_peer_t *peer, vnx_mem_t mem,
         const vnx_desc_t *rows, size_t count, const char *const *backends,
         const char *operation, vnxi_list_t **list_p, vnx_error_t *error)
{
    const vnxi_engine_ops_t *ops = agent->ops;
    vnxi_builder_t *builder;
    vnx_status_t status = ops->list_begin(agent->engine, peer, mem, backends,
                                          operation, &builder, error);
    if (status != VNX_OK) {
        return status;
    }
    status = ops->list_feed(builder, rows, count, error);
    if (status == VNX_OK) {
        status = ops->list_finish(builder, list_p, error);
    }
    if (status != VNX_OK) {
        ops->list_abort(builder);
    }
    return status;
}

vnx_status_t
vnx_xfer_create(vnx_agent_t *agent, vnx_op_t op, vnx_mem_t local_mem,
                const vnx_desc_t *local, size_t local_count,
                vnx_mem_t remote_mem, const vnx_desc_t *remote,
                size_t remote_count, const void *peer_name, size_t peer_len,
                const void *notif, size_t notif_len,
                const char *const *backends, vnx_xfer_t **out_p,
                vnx_error_t *error)
{
    static const char operation[] = "initialize_xfer";
    vnxi_xfer_args_t args = {.op = op, .operation = operation};
    vnxi_list_t *local_list, *remote_list;
    vnxi_peer_t *peer;

    vnx_status_t status =
        vnxi_peers_find(agent, peer_name, peer_len, operation, &peer, error);
    if (status != VNX_OK) {
        return status;
    }
    if (local_count != remote_count) {
        status = vnxi_error_set(error, VNX_ERR_INVALID_PARAM, operation,
                                "%zu local rows, but %zu remote ones",
                                local_count, remote_count);
        goto out_peer;
    }
    status = one_list(agent, NULL, local_mem, local, local_count, backends,
                      operation, &local_list, error);
    if (status != VNX_OK) {
        goto out_peer;
    }
    status = one_list(agent, peer, remote_mem, remote, remote_count, backends,
                      operation, &remote_list, error);
    if (status != VNX_OK) {
        goto out_local;
    }
    args.local = local_list;
    args.remote = remote_list;
    args.local_rows.count = args.remote_rows.count = local_count;
    status = xfer_create(agent, &args, notif, notif_len, out_p, error);

    agent->ops->list_release(remote_list);
out_local:
    agent->ops->list_release(local_list);
out_peer:
    vnxi_peer_release(peer);
    return status;
}

vnx_agent_t *
vnxi_xfer_agent(const vnx_xfer_t *xfer)
{
    return xfer->agent;
}

vnx_xfer_t *
vnx_xfer_retain(vnx_xfer_t *xfer)
{
    atomic_fetch_add_explicit(&xfer->refs, 1, memory_order_relaxed);
    return xfer;
}

void
vnx_xfer_drop(vnx_xfer_t *xfer)
{
    if (atomic_fetch_sub(&xfer->refs, 1) != 1 ||
        vnxi_fork_crossed(xfer->agent->fork_count)) {
        return;
    }
    vnx_agent_t *agent = xfer->agent;
    agent->ops->xfer_release(xfer->exfer);
    free(xfer->error);
    free(xfer->notif);
    free(xfer);
    vnx_agent_release(agent);
}
