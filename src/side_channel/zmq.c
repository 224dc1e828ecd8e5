#include "side_channel/zmq.h"

#include <string.h>

#include "base/error.h"

/* ZMQ's CURVE wants the public key of the listener to be known to clients;
 * nothing of a plain secret, and nothing that vLLM speaks. */
static vnx_status_t
check_options(const vnx_side_channel_options_t *options, const char *operation,
              const char *endpoint, vnx_error_t *error)
{
    if (options->secret == NULL && !options->tls) {
        return VNX_OK;
    }
    vnxi_error_set(error, VNX_ERR_NOT_SUPPORTED, operation,
                   "ZMQ, as vLLM speaks it, knows no %s: use TCP or HTTP",
                   options->tls ? "TLS" : "shared secret");
    vnxi_error_peer(error, endpoint, strlen(endpoint));
    return VNX_ERR_NOT_SUPPORTED;
}

static vnx_status_t
zmq_listen(const vnxi_listen_params_t *params, vnxi_listener_t **out_p,
           vnx_error_t *error)
{
    vnx_status_t status =
        check_options(params->options, VNXI_OP_START, params->endpoint, error);
    return status == VNX_OK
               ? vnxi_tcp_listen_for(&vnxi_zmq_protocol, params, out_p, error)
               : status;
}

static vnx_status_t
zmq_begin(const vnxi_request_params_t *params, vnxi_exchange_t **out_p,
          vnx_error_t *error)
{
    vnx_status_t status = check_options(params->options, VNXI_OP_REQUEST,
                                        params->endpoint, error);
    return status == VNX_OK ? vnxi_zmq_begin(params, out_p, error) : status;
}

const vnxi_transport_t vnxi_transport_zmq = {
    .name = "ZMQ",
    .listen = zmq_listen,
    .stop = vnxi_server_stop,
    .begin = zmq_begin,
    .step = vnxi_zmq_step,
    .end = vnxi_zmq_end,
};
