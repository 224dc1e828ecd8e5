#include "engine/parts/peer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mutex.h"

bool
vnxi_peer_init(vnxi_peer_t *peer, const vnxi_engine_ops_t *ops,
               const void *name, size_t name_len)
{
    char *copy = malloc(name_len + 1);

    if (copy == NULL) {
        return false;
    }
    memcpy(copy, name, name_len);
    copy[name_len] = '\0';
    atomic_init(&peer->refs, 1);
    peer->ops = ops;
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
