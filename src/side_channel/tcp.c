#include "side_channel/tcp.h"

const vnxi_transport_t vnxi_transport_tcp = {
    .name = "TCP",
    .listen = vnxi_tcp_listen,
    .stop = vnxi_tcp_stop,
    .begin = vnxi_tcp_begin,
    .step = vnxi_tcp_step,
    .end = vnxi_tcp_end,
};
