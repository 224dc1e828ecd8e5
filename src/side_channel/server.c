#include "side_channel/server.h"

#include <errno.h>

#include "base/error.h"
#include "net/tls.h"

void
vnxi_server_refused(void *arg)
{
    vnxi_server_t *server = arg;

    vnxi_stat_add(&server->stats->accepted);
    vnxi_stat_add(&server->stats->evicted);
}

/* -- Creation and end ----------------------------------------------------- */

static vnx_status_t
rate_make(vnxi_server_t *server, vnx_error_t *error)
{
    uint32_t most = server->options->max_rate;

    if (most > 0) {
        server->rate = vnxi_rate_create(most);
    }
    return most == 0 || server->rate != NULL
               ? VNX_OK
               : vnxi_error_no_memory(error, VNXI_OP_START, sizeof(void *));
}

static vnx_status_t
server_init(vnxi_server_t *server, const vnxi_server_ops_t *ops,
            const char *name, const vnxi_listen_params_t *params,
            vnx_error_t *error)
{
    vnxi_sockets_t sockets;

    server->ops = ops;
    for (int i = 0; i < VNXI_CONN_STATES; i++) {
        TAILQ_INIT(&server->conns[i]);
    }
    server->options = params->options;
    server->stats = params->stats;
    server->blobs = params->blobs;
    vnx_status_t status = rate_make(server, error);
    if (VNXI_TLS_IS_THERE && status == VNX_OK &&
        server->options->tls != VNXI_TLS_NONE) {
        status = vnxi_tls_server_context(server->options, VNXI_OP_START,
                                         &server->tls, error);
    }
    if (status == VNX_OK) {
        status = vnxi_sockets_open(&params->bind, &sockets, error);
    }
    if (status != VNX_OK) {
        return status;
    }
    server->port = sockets.port;
    if (!vnxi_loop_init(&server->loop, NULL, server)) {
        int err = errno;
        vnxi_sockets_close(&sockets);
        return vnxi_bind_failed(&params->bind, error, "making the loop", err);
    }
    if (!vnxi_acceptor_open(&server->acceptor, &server->loop, &sockets,
                            &ops->acceptor) ||
        !ops->begin(server)) {
        return vnxi_bind_failed(&params->bind, error, "making the loop",
                                errno);
    }
    int err = vnxi_loop_start(&server->loop, name);
    return err == 0 ? VNX_OK
                    : vnxi_bind_failed(&params->bind, error,
                                       "starting the thread", err);
}

vnx_status_t
vnxi_server_open(vnxi_server_t *server, const vnxi_server_ops_t *ops,
                 const char *name, const vnxi_listen_params_t *params,
                 vnxi_server_t **out_p, vnx_error_t *error)
{
    vnx_status_t status = server_init(server, ops, name, params, error);
    if (status != VNX_OK) {
        ops->free(server);
        return status;
    }
    *out_p = server;
    return VNX_OK;
}

bool
vnxi_server_stop(vnxi_server_t *server)
{
    vnxi_loop_wake(&server->loop);
    /* Freeing the server would close descriptor numbers that belong to other
     * files now. */
    if (!vnxi_loop_join(&server->loop)) {
        return false;
    }
    server->ops->free(server);
    return true;
}

void
vnxi_server_fini(vnxi_server_t *server)
{
    vnxi_acceptor_close(&server->acceptor);
    vnxi_loop_fini(&server->loop);
    if (VNXI_TLS_IS_THERE) {
        vnxi_tls_context_free(server->tls);
    }
    vnxi_rate_free(server->rate);
}
