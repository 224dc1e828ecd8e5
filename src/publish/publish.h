/*
 * Attaching in steps, for a language binding with a loop or with signals of
 * its own: make the request, run or watch it (side_channel/side_channel.h),
 * take the answer, load it.  vnx_attach() does the same.
 */
#ifndef VNXI_PUBLISH_PUBLISH_H
#define VNXI_PUBLISH_PUBLISH_H

#include <vnx/publish.h>

#include "side_channel/side_channel.h"

/* What to attach to; borrowed. */
typedef struct vnxi_attach_params {
    const char *host;
    int port;
    int timeout_ms;
    uint32_t retries;
} vnxi_attach_params_t;

/* Make the one request that fetches a publication.  Fails at once if the agent
 * cannot load it.  Returns owned: vnxi_requests_free(). */
vnx_status_t vnxi_attach_request(vnx_agent_t *agent,
                                 vnx_side_channel_t *channel,
                                 const vnxi_attach_params_t *params,
                                 vnxi_requests_t **out_p, vnx_error_t *error);

/* Take the answer of a request that has ended, once, and load it.  The host
 * and the port are for records.  Does not wait. */
vnx_status_t vnxi_attach_finish(vnx_agent_t *agent, vnxi_requests_t *request,
                                const char *host, int port, vnx_peer_t **out_p,
                                vnx_error_t *error);

/* Load a publication. */
vnx_status_t vnxi_attach_load(vnx_agent_t *agent, const void *bytes,
                              size_t len, const char *host, int port,
                              vnx_peer_t **out_p, vnx_error_t *error);

/* The prepared list of vnx_peer_list(peer, i); borrowed. */
vnx_dlist_t *vnxi_peer_dlist(const vnx_peer_t *peer, size_t i);

#endif
