/*
 * The native engine's table of functions for the core.
 */
#include "base/error.h"
#include "engine/native/native.h"
#include "engine/parts/metadata.h"

/* The native engine needs only the kernel. */
static vnx_status_t
native_probe(vnxi_engine_t *engine, vnx_error_t *error)
{
    (void)engine;
    (void)error;
    return VNX_OK;
}

static vnx_status_t
native_query(vnxi_engine_t *engine, vnx_mem_t mem, const vnx_reg_desc_t *descs,
             size_t count, const char *backend, vnx_mem_info_t *infos,
             vnx_error_t *error)
{
    const char *const backends[] = {backend, NULL};
    (void)mem;
    (void)descs;
    (void)count;
    (void)infos;
    vnx_status_t status = vnxi_native_check_backends(
        engine, backends, "vnx_agent_query_memory", error);
    return status != VNX_OK
               ? status
               : vnxi_error_set(error, VNX_ERR_NOT_SUPPORTED,
                                "vnx_agent_query_memory",
                                "backend %s of the native engine has no "
                                "storage to query",
                                backend);
}

static vnx_status_t
native_list_begin(vnxi_engine_t *engine, vnxi_peer_t *peer, vnx_mem_t mem,
                  const char *const *backends, const char *operation,
                  vnxi_builder_t **builder_p, vnx_error_t *error)
{
    vnx_status_t status =
        vnxi_native_check_backends(engine, backends, operation, error);
    if (status != VNX_OK) {
        return status;
    }
    if (peer != NULL && vnxi_native_peer_gone(vnxi_native_peer(peer))) {
        return vnxi_native_peer_error(vnxi_native_peer(peer), operation,
                                      error);
    }
    vnxi_list_args_t args = {
        .peer = peer,
        .table = peer != NULL ? vnxi_native_peer_table(vnxi_native_peer(peer))
                              : vnxi_registry_snapshot(engine->registry, NULL),
        .is_own = peer == NULL || peer == &engine->self->base,
        .mem = mem,
        .class = &vnxi_native_list_class,
        .operation = operation,
    };
    return vnxi_list_begin(&args, builder_p, error);
}

static void
native_destroy(vnxi_engine_t *engine)
{
    vnxi_native_unref(engine);
}

static vnxi_peer_t *
native_peer_self(vnxi_engine_t *engine)
{
    return &engine->self->base;
}

static void
native_notif_poll(vnxi_engine_t *engine)
{
    for (unsigned t = 0; t < VNXI_TRANSPORTS; t++) {
        vnxi_port_t *port = vnxi_native_port(engine, t);
        if (port != NULL && port->transport->poll != NULL) {
            port->transport->poll(port);
        }
    }
}

const vnxi_engine_ops_t vnxi_native_ops = {
    .abi = VNXI_ENGINE_ABI,
    .size = sizeof(vnxi_engine_ops_t),
    .name = "native",
    .create = vnxi_native_create,
    .stop = vnxi_native_stop,
    .destroy = native_destroy,
    .probe = native_probe,
    .plugin = vnxi_native_plugin,
    .plugin_mems = vnxi_native_plugin_mems,
    .param = vnxi_native_param,
    .backend_create = vnxi_native_backend_create,
    .mem_register = vnxi_native_register,
    .mem_deregister = vnxi_native_deregister,
    .mem_query = native_query,
    .metadata = vnxi_native_metadata,
    .partial_metadata = vnxi_native_partial_metadata,
    .metadata_parse = vnxi_parsed_create,
    .metadata_free = vnxi_parsed_free,
    .peer_load = vnxi_native_peer_load,
    .peer_self = native_peer_self,
    .peer_close = vnxi_native_peer_close,
    .peer_connect = vnxi_native_peer_connect,
    .peer_covers = vnxi_native_peer_covers,
    .peer_pid = vnxi_native_peer_pid,
    .peer_status = vnxi_native_peer_status,
    .describe = vnxi_native_describe,
    .list_begin = native_list_begin,
    .list_feed = vnxi_list_feed,
    .list_feed_strided = vnxi_list_feed_strided,
    .list_finish = vnxi_list_finish,
    .list_abort = vnxi_list_abort,
    .list_count = vnxi_list_count,
    .list_bytes = vnxi_list_bytes,
    .list_release = vnxi_list_release,
    .xfer_prepare = vnxi_native_xfer_prepare,
    .xfer_post = vnxi_native_xfer_post,
    .xfer_cancel = vnxi_native_xfer_cancel,
    .xfer_release = vnxi_native_xfer_release,
    .xfer_backend = vnxi_native_xfer_backend,
    .xfer_estimate = vnxi_native_xfer_estimate,
    .notif_send = vnxi_native_notif_send,
    .notif_poll = native_notif_poll,
};
