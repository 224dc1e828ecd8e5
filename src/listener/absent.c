/* Stub for builds without libevent.  vnx_listener_create() always fails, so
 * the other functions are never called. */
#include <vnx/listener.h>

#include "base/error.h"

static vnx_status_t
absent(vnx_error_t *error)
{
    return vnxi_error_set(error, VNX_ERR_NOT_SUPPORTED, "metadata_listener",
                          "this build has no metadata listener: it was built "
                          "without libevent (option side_channel_tcp)");
}

vnx_status_t
vnx_listener_create(vnx_agent_t *agent, const vnx_listener_options_t *options,
                    vnx_listener_t **out_p, vnx_error_t *error)
{
    (void)agent, (void)options, (void)out_p;
    return absent(error);
}

void
vnx_listener_free(vnx_listener_t *listener)
{
    (void)listener;
}

vnx_status_t
vnx_listener_start(vnx_listener_t *listener, const char *host, int port,
                   int *port_p, vnx_error_t *error)
{
    (void)listener, (void)host, (void)port, (void)port_p;
    return absent(error);
}

void
vnx_listener_stop(vnx_listener_t *listener)
{
    (void)listener;
}

int
vnx_listener_port(const vnx_listener_t *listener)
{
    (void)listener;
    return 0;
}

vnx_status_t
vnx_listener_send(vnx_listener_t *listener, const char *host, int port,
                  const void *metadata, size_t length, vnx_error_t *error)
{
    (void)listener, (void)host, (void)port, (void)metadata, (void)length;
    return absent(error);
}

vnx_status_t
vnx_listener_fetch(vnx_listener_t *listener, const char *host, int port,
                   const void *peer, size_t peer_len, vnx_error_t *error)
{
    (void)listener, (void)host, (void)port, (void)peer, (void)peer_len;
    return absent(error);
}

vnx_status_t
vnx_listener_invalidate(vnx_listener_t *listener, const char *host, int port,
                        vnx_error_t *error)
{
    (void)listener, (void)host, (void)port;
    return absent(error);
}

void
vnx_listener_stats(const vnx_listener_t *listener,
                   vnx_listener_stats_t *stats_p)
{
    (void)listener;
    *stats_p = (vnx_listener_stats_t){0};
}

bool
vnx_listener_failure(vnx_listener_t *listener, vnx_error_t *failure_p)
{
    (void)listener, (void)failure_p;
    return false;
}
