#include <stdlib.h>
#include <unistd.h>

#include "base/error.h"
#include "side_channel/tcp.h"

static void
on_client(void *super, int client, const vnxi_address_t *from)
{
    vnxi_server_t *server = super;

    if (server->rate != NULL &&
        !vnxi_rate_take(server->rate, &from->addr, vnxi_clock_ns())) {
        vnxi_stat_add(&server->stats->accepted);
        vnxi_stat_refused(server->stats, VNX_SIDE_CHANNEL_REFUSED_RATE);
        close(client);
        return;
    }
    vnxi_tcp_conn_open(super, client);
}

/* -- Creation and end ----------------------------------------------------- */

/* Free a listener whose creation may be incomplete.  No thread runs. */
static void
listener_free(vnxi_server_t *super)
{
    vnxi_tcp_listener_t *listener = (vnxi_tcp_listener_t *)super;

    vnxi_server_drop_all(super);
    vnxi_server_fini(&listener->super);
    free(listener);
}

static bool
create_timeouts(vnxi_server_t *super)
{
    vnxi_tcp_listener_t *listener = (vnxi_tcp_listener_t *)super;
    const vnx_side_channel_options_t *options = super->options;

    listener->timeout =
        vnxi_loop_timeout(&super->loop, options->client_timeout_ms);
    if (options->idle_timeout_ms < options->client_timeout_ms) {
        listener->idle =
            vnxi_loop_timeout(&super->loop, options->idle_timeout_ms);
    }
    return listener->timeout != NULL;
}

static const vnxi_server_ops_t server_ops = {
    .acceptor = {.accept = on_client,
                 .evict = vnxi_server_evict,
                 .refused = vnxi_server_refused},
    .drop = vnxi_tcp_conn_drop,
    .begin = create_timeouts,
    .free = listener_free,
};

vnx_status_t
vnxi_tcp_listen_for(const vnxi_tcp_protocol_t *protocol,
                    const vnxi_listen_params_t *params, vnxi_server_t **out_p,
                    vnx_error_t *error)
{
    vnxi_tcp_listener_t *listener = calloc(1, sizeof *listener);
    if (listener == NULL) {
        return vnxi_error_no_memory(error, VNXI_OP_START, sizeof *listener);
    }
    listener->protocol = protocol;
    return vnxi_server_open(&listener->super, &server_ops,
                            protocol->thread_name, params, out_p, error);
}
