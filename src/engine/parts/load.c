#include "engine/parts/load.h"

#include <string.h>

#include "base/error.h"

#define NAME_SHOWN 32 /* limit for one name, in bytes */

vnx_status_t
vnxi_load_refuse(const vnxi_metadata_t *blob, vnx_status_t status,
                 const char *cause, vnx_error_t *error)
{
    vnxi_error_set(error, status, VNXI_OP_LOAD, "%s", cause);
    vnxi_error_peer(error, blob->agent.data, blob->agent.len);
    return status;
}

vnx_status_t
vnxi_load_refuse_unknown(const vnxi_metadata_t *blob, vnx_error_t *error)
{
    return vnxi_load_refuse(blob, VNX_ERR_NOT_FOUND,
                            "the metadata has no connection data and its "
                            "agent is not known: load its full metadata first",
                            error);
}

static void
append_name(char *text, size_t size, vnxi_md_bytes_t name)
{
    const unsigned char *bytes = name.data;
    size_t used = strlen(text);

    if (used > 0 && used + 2 < size) {
        memcpy(text + used, ", ", 3);
        used += 2;
    }
    for (size_t i = 0; i < name.len && i < NAME_SHOWN && used + 1 < size;
         i++) {
        text[used++] = vnxi_error_printable(bytes[i]);
        text[used] = '\0';
    }
}

vnx_status_t
vnxi_load_refuse_no_way(const vnxi_metadata_t *blob, const char *ours,
                        vnx_error_t *error)
{
    char offers[128] = "";

    for (size_t i = 0; i < blob->conn_count; i++) {
        append_name(offers, sizeof offers, blob->conns[i].backend);
    }
    vnxi_error_set(error, VNX_ERR_BACKEND, VNXI_OP_LOAD,
                   "no way to reach it: it offers %s, this agent %s", offers,
                   ours);
    vnxi_error_peer(error, blob->agent.data, blob->agent.len);
    return VNX_ERR_BACKEND;
}
