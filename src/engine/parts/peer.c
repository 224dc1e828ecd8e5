#include "engine/parts/peer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mutex.h"

#define NAME_SHOWN 32 /* limit for one name, in bytes */

bool
vnxi_peer_init(vnxi_peer_t *peer, void (*destroy)(vnxi_peer_t *peer),
               const void *name, size_t name_len)
{
    char *copy = malloc(name_len + 1);

    if (copy == NULL) {
        return false;
    }
    memcpy(copy, name, name_len);
    copy[name_len] = '\0';
    atomic_init(&peer->refs, 1);
    peer->destroy = destroy;
    peer->name = copy;
    peer->name_len = name_len;
    return true;
}

void
vnxi_peer_fini(vnxi_peer_t *peer)
{
    free(peer->name);
}

void
vnxi_peer_end_init(vnxi_peer_end_t *end)
{
    atomic_init(&end->has_come, false);
    vnxi_mutex_init(&end->lock, VNXI_RANK_PEER_END);
    end->cause[0] = '\0';
}

void
vnxi_peer_end_fini(vnxi_peer_end_t *end)
{
    vnxi_mutex_destroy(&end->lock);
}

bool
vnxi_peer_end_mark(vnxi_peer_end_t *end, const char *cause)
{
    vnxi_mutex_lock(&end->lock);
    bool is_first = !atomic_load(&end->has_come);
    if (is_first) {
        snprintf(end->cause, sizeof end->cause, "%s", cause);
        atomic_store(&end->has_come, true);
    }
    vnxi_mutex_unlock(&end->lock);
    return is_first;
}

void
vnxi_peer_end_cause(vnxi_peer_end_t *end, char cause_p[VNX_ERROR_CAUSE_MAX])
{
    vnxi_mutex_lock(&end->lock);
    memcpy(cause_p, end->cause, sizeof end->cause);
    vnxi_mutex_unlock(&end->lock);
}

vnx_status_t
vnxi_peer_ended(const vnxi_peer_t *peer, const char *cause,
                const char *operation, vnx_error_t *error)
{
    vnxi_error_set(error, VNX_ERR_REMOTE_DISCONNECT, operation, "%s", cause);
    vnxi_error_peer(error, peer->name, peer->name_len);
    return VNX_ERR_REMOTE_DISCONNECT;
}

/* -- Metadata that cannot be loaded ----------------------------------------
 */

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
