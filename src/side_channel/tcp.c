#include "side_channel/tcp.h"

_Static_assert(sizeof VNXI_TCP_REQUEST - 1 == VNXI_TCP_REQUEST_LEN,
               "the request and its length go together");

const vnxi_transport_t vnxi_transport_tcp = {
    .name = "TCP",
    .listen = vnxi_tcp_listen,
    .stop = vnxi_tcp_stop,
    .request = vnxi_tcp_request,
};
