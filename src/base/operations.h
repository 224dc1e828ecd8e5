/*
 * The operations that error records name: the C function, and the method
 * through which a Python program calls it.  Code below src/python writes the
 * first column; the extension shows the second.
 */
#ifndef VNXI_BASE_OPERATIONS_H
#define VNXI_BASE_OPERATIONS_H

#define VNXI_OPERATION_TABLE(X)                                   \
    X("vnx_agent_create", "nixl_agent")                           \
    X("vnx_agent_plugin", "get_plugin_list")                      \
    X("vnx_agent_plugin_mems", "get_plugin_mem_types")            \
    X("vnx_agent_plugin_param", "get_plugin_params")              \
    X("vnx_agent_backend_param", "get_backend_params")            \
    X("vnx_agent_create_backend", "create_backend")               \
    X("vnx_agent_register", "register_memory")                    \
    X("vnx_agent_deregister", "deregister_memory")                \
    X("vnx_agent_query_memory", "query_memory")                   \
    X("vnx_agent_metadata", "get_agent_metadata")                 \
    X("vnx_agent_partial_metadata", "get_partial_agent_metadata") \
    X("vnx_agent_load_metadata", "add_remote_agent")              \
    X("vnx_agent_remove_peer", "remove_remote_agent")             \
    X("vnx_agent_check_peer", "check_remote_metadata")            \
    X("vnx_agent_connect_peer", "make_connection")                \
    X("vnx_agent_describe", "describe")                           \
    X("vnx_agent_peers", "peers")                                 \
    X("vnx_dlist_create", "prep_xfer_dlist")                      \
    X("vnx_xfer_create_prepped", "make_prepped_xfer")             \
    X("vnx_xfer_create", "initialize_xfer")                       \
    X("vnx_xfer_post", "transfer")                                \
    X("vnx_xfer_status", "check_xfer_state")                      \
    X("vnx_xfer_cancel", "cancel")                                \
    X("vnx_xfer_telemetry", "get_xfer_telemetry")                 \
    X("vnx_agent_wait", "wait")                                   \
    X("vnx_agent_fileno", "fileno")                               \
    X("vnx_agent_subscribe", "subscribe")                         \
    X("vnx_agent_send_notif", "send_notif")                       \
    X("vnx_shared_buffer_create", "shared_buffer")                \
    X("vnx_listener_start", "metadata_listener")                  \
    X("vnx_listener_send", "send_local_metadata")                 \
    X("vnx_listener_fetch", "fetch_remote_metadata")              \
    X("vnx_listener_invalidate", "invalidate_local_metadata")     \
    X("vnx_side_channel_create", "side_channel_create")           \
    X("vnx_side_channel_start", "start_listener")                 \
    X("vnx_side_channel_set", "set_metadata")                     \
    X("vnx_side_channel_remove", "remove_metadata")               \
    X("vnx_side_channel_advertised", "advertised_address")        \
    X("vnx_side_channel_request", "request_metadata")             \
    X("vnx_publish", "publish")                                   \
    X("vnx_attach", "attach")                                     \
    X("vnx_peer_rows", "rows")

#endif
