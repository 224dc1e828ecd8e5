/*
 * Which transports connect which kinds of memory, and why others do not.
 */
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "engine/native/native.h"

void
vnxi_native_find_reach(const vnxi_engine_t *engine,
                       const vnxi_native_peer_t *peer, vnxi_reach_t *reach_p)
{
    memset(reach_p, 0, sizeof *reach_p);
    for (unsigned t = 0; t < VNXI_TRANSPORTS; t++) {
        const vnxi_port_t *port = vnxi_native_port(engine, t);
        if (port == NULL ||
            (peer != NULL && vnxi_native_conn(peer, t) == NULL)) {
            continue;
        }
        for (unsigned i = 0; i < VNX_MEM_COUNT * VNX_MEM_COUNT; i++) {
            unsigned local = i / VNX_MEM_COUNT, remote = i % VNX_MEM_COUNT;
            bool moves = port->transport->refuses(port, local, remote) == NULL;
            reach_p->moves[local][remote] |= (uint8_t)(moves << t);
        }
    }
}

uint32_t
vnxi_native_mems(const vnxi_engine_t *engine)
{
    uint32_t mems = 1u << VNX_MEM_DRAM;
    vnxi_reach_t reach;

    vnxi_native_find_reach(engine, NULL, &reach);
    for (unsigned mem = 0; mem < VNX_MEM_COUNT; mem++) {
        mems |= (uint32_t)(reach.moves[mem][VNX_MEM_DRAM] != 0) << mem;
    }
    return mems;
}

void
vnxi_native_why_not(vnxi_native_peer_t *peer, unsigned t, vnx_mem_t local,
                    vnx_mem_t remote, char cause_p[VNX_ERROR_CAUSE_MAX])
{
    const vnxi_native_backend_t *backend = &peer->engine->backends[t];
    const vnxi_port_t *port = vnxi_native_port(peer->engine, t);
    const char *why = "";

    vnxi_mutex_lock(&peer->lock);
    if (port == NULL) {
        why = backend->missing[0] != '\0' ? backend->missing
                                          : "this agent did not create it";
    } else if (peer->refused[t][0] != '\0') {
        why = peer->refused[t];
    } else if (vnxi_native_conn(peer, t) == NULL) {
        why = port->transport->not_offered;
    } else {
        const char *refusal = port->transport->refuses(port, local, remote);
        why = refusal != NULL ? refusal : "";
    }
    snprintf(cause_p, VNX_ERROR_CAUSE_MAX, "%s", why);
    vnxi_mutex_unlock(&peer->lock);
}

vnx_status_t
vnxi_native_no_route(vnxi_native_peer_t *peer, vnx_mem_t local,
                     vnx_mem_t remote, const vnxi_region_t *region,
                     const char *operation, vnx_error_t *error)
{
    char why[VNX_ERROR_CAUSE_MAX], all[VNX_ERROR_CAUSE_MAX] = "";
    size_t used = 0;

    for (unsigned t = 0; t < VNXI_TRANSPORTS && used < sizeof all; t++) {
        vnxi_native_why_not(peer, t, local, remote, why);
        if (why[0] == '\0' &&
            (region == NULL || vnxi_region_slot(region, t) == NULL)) {
            snprintf(why, sizeof why,
                     "the peer's metadata does not have the "
                     "region for it");
        }
        used += (size_t)snprintf(all + used, sizeof all - used, "%s%s: %s",
                                 used > 0 ? "; " : "",
                                 vnxi_transports[t]->name, why);
    }
    vnxi_error_set(error, VNX_ERR_NOT_SUPPORTED, operation,
                   "no transport moves bytes between %s memory of this agent "
                   "and %s memory of the peer: %s",
                   vnx_mem_name(local), vnx_mem_name(remote), all);
    vnxi_error_peer(error, peer->base.name, peer->base.name_len);
    return VNX_ERR_NOT_SUPPORTED;
}
