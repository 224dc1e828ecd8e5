/*
 * The table of operations of the nixl engine.
 */
#include "engine/nixl/ops.h"

#include "engine/nixl/nixl.h"
#include "engine/parts/metadata.h"

static vnx_status_t
nixl_list_begin(vnxi_engine_t *engine, vnxi_peer_t *peer, vnx_mem_t mem,
                const char *const *backends, const char *operation,
                vnxi_builder_t **builder_p, vnx_error_t *error)
{
    uint32_t set = 0;
    vnx_status_t status =
        vnxi_nixl_backend_set(engine, backends, operation, &set, error);
    if (status != VNX_OK) {
        return status;
    }
    if (peer != NULL && vnxi_peer_end_has_come(&vnxi_nixl_peer(peer)->end)) {
        return vnxi_nixl_peer_error(vnxi_nixl_peer(peer), operation, error);
    }
    vnxi_list_args_t args = {
        .peer = peer,
        .table = peer != NULL ? vnxi_nixl_peer_table(vnxi_nixl_peer(peer))
                              : vnxi_registry_snapshot(engine->registry, NULL),
        .is_own = peer == NULL || vnxi_nixl_peer(peer)->is_self,
        .mem = mem,
        .backends = set,
        .class = &vnxi_nixl_list_class,
        .operation = operation,
    };
    return vnxi_list_begin(&args, builder_p, error);
}

static vnxi_peer_t *
nixl_peer_self(vnxi_engine_t *engine)
{
    return &engine->self->base;
}

static void
nixl_notif_poll(vnxi_engine_t *engine)
{
    if (vnxi_nixl_enter(engine)) {
        vnxi_nixl_take_notifs(engine);
        vnxi_nixl_leave(engine);
    }
}

const vnxi_engine_ops_t vnxi_nixl_ops = {
    .abi = VNXI_ENGINE_ABI,
    .size = sizeof(vnxi_engine_ops_t),
    .name = "nixl",
    .may_wait = true, /* the library has one lock per agent */
    .create = vnxi_nixl_create,
    .stop = vnxi_nixl_stop,
    .destroy = vnxi_nixl_destroy,
    .probe = vnxi_nixl_probe,
    .plugin = vnxi_nixl_plugin,
    .plugin_mems = vnxi_nixl_plugin_mems,
    .param = vnxi_nixl_param,
    .backend_create = vnxi_nixl_backend_create,
    .mem_register = vnxi_nixl_register,
    .mem_deregister = vnxi_nixl_deregister,
    .mem_query = vnxi_nixl_query,
    .metadata = vnxi_nixl_metadata,
    .partial_metadata = vnxi_nixl_partial_metadata,
    .metadata_parse = vnxi_parsed_create,
    .metadata_free = vnxi_parsed_free,
    .peer_load = vnxi_nixl_peer_load,
    .peer_self = nixl_peer_self,
    .peer_close = vnxi_nixl_peer_close,
    .peer_connect = vnxi_nixl_peer_connect,
    .peer_covers = vnxi_nixl_peer_covers,
    .peer_pid = vnxi_nixl_peer_pid,
    .peer_status = vnxi_nixl_peer_status,
    .describe = vnxi_nixl_describe,
    .list_begin = nixl_list_begin,
    .list_feed = vnxi_list_feed,
    .list_feed_strided = vnxi_list_feed_strided,
    .list_finish = vnxi_list_finish,
    .list_abort = vnxi_list_abort,
    .list_count = vnxi_list_count,
    .list_bytes = vnxi_list_bytes,
    .list_release = vnxi_list_release,
    .xfer_prepare = vnxi_nixl_xfer_prepare,
    .xfer_post = vnxi_nixl_xfer_post,
    .xfer_cancel = vnxi_nixl_xfer_cancel,
    .xfer_release = vnxi_nixl_xfer_release,
    .xfer_backend = vnxi_nixl_xfer_backend,
    .xfer_estimate = vnxi_nixl_xfer_estimate,
    .notif_send = vnxi_nixl_notif_send,
    .notif_poll = nixl_notif_poll,
};
