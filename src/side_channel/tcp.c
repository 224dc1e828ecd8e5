#include "side_channel/tcp.h"

static vnx_status_t
listen_for_frames(const vnxi_listen_params_t *params, vnxi_listener_t **out_p,
                  vnx_error_t *error)
{
    return vnxi_tcp_listen_for(&vnxi_tcp_frames, params, out_p, error);
}

const vnxi_transport_t vnxi_transport_tcp = {
    .name = "TCP",
    .listen = listen_for_frames,
    .stop = vnxi_server_stop,
    .begin = vnxi_tcp_begin,
    .step = vnxi_tcp_step,
    .end = vnxi_tcp_end,
};
