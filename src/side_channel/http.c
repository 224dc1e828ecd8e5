#include "side_channel/http.h"

const vnxi_transport_t vnxi_transport_http = {
    .name = "HTTP",
    .fds = 5, /* a socket or two, our epoll set, libcurl's pair */
    .listen = vnxi_http_listen,
    .stop = vnxi_server_stop,
    .begin = vnxi_http_begin,
    .step = vnxi_http_step,
    .end = vnxi_http_end,
};
