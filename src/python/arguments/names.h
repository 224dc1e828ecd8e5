/*
 * Every keyword, attribute and word that the extension compares or looks up.
 * Each is interned once, then compared by pointer.
 */
#ifndef VNXI_PYTHON_NAMES_H
#define VNXI_PYTHON_NAMES_H

#define VNXI_PY_NAMES(X) \
    X(agent)             \
    X(agent_name)        \
    X(any_of)            \
    X(backend)           \
    X(backends)          \
    X(check)             \
    X(data_ptr)          \
    X(dereg_list)        \
    X(descs)             \
    X(device)            \
    X(element_size)      \
    X(ended)             \
    X(failed)            \
    X(fd)                \
    X(handle)            \
    X(handles)           \
    X(host)              \
    X(inc_conn_info)     \
    X(index)             \
    X(initParams)        \
    X(ip_addr)           \
    X(is_contiguous)     \
    X(key)               \
    X(label)             \
    X(local_descs)       \
    X(local_indices)     \
    X(local_xfer_side)   \
    X(lookup_tag)        \
    X(max_frame)         \
    X(mem_type)          \
    X(metadata)          \
    X(notif_msg)         \
    X(numel)             \
    X(operation)         \
    X(peer)              \
    X(peers)             \
    X(pending)           \
    X(port)              \
    X(reg_list)          \
    X(remote_agent)      \
    X(remote_agent_name) \
    X(remote_descs)      \
    X(remote_indices)    \
    X(remote_xfer_side)  \
    X(req_handle)        \
    X(retries)           \
    X(rows)              \
    X(skip_desc_merge)   \
    X(status)            \
    X(tag_is_prefix)     \
    X(timeout)           \
    X(timeout_ms)        \
    X(type)              \
    X(xfer_list)         \
    X(DONE)              \
    X(ERR)               \
    X(PROC)              \
    X(READ)              \
    X(WRITE)

typedef enum vnxi_py_name {
#define VNXI_PY_NAME_ENUM(name) VNXI_PY_NAME_##name,
    VNXI_PY_NAMES(VNXI_PY_NAME_ENUM)
#undef VNXI_PY_NAME_ENUM
        VNXI_PY_NAME_COUNT
} vnxi_py_name_t;

#endif
