#include "side_channel/http.h"

const vnxi_transport_t vnxi_transport_http = {
    .name = "HTTP",
    .listen = vnxi_http_listen,
    .stop = vnxi_http_stop,
    .begin = vnxi_http_begin,
    .step = vnxi_http_step,
    .end = vnxi_http_end,
};
