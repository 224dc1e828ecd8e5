#include <string.h>

#include "base/error.h"
#include "side_channel/transport.h"

#define KEY_TEXT_MAX 96

vnx_status_t
vnxi_exchange_failed(const vnxi_request_params_t *params, vnx_status_t status,
                     const char *phase, const char *whom, const char *reason,
                     vnx_error_t *error)
{
    vnxi_error_set(error, status, VNXI_OP_REQUEST, "%s %s: %s (after %llu ms)",
                   phase, whom, reason,
                   (unsigned long long)(vnxi_clock_ns() - params->start) /
                       1000000);
    vnxi_error_peer(error, params->endpoint, strlen(params->endpoint));
    return status;
}

vnx_status_t
vnxi_exchange_no_key(vnxi_exchange_t *exchange,
                     const vnxi_request_params_t *params, vnx_error_t *error)
{
    char text[KEY_TEXT_MAX];

    exchange->answered = true;
    if (params->key_len == 0) {
        vnxi_error_set(error, VNX_ERR_NOT_FOUND, VNXI_OP_REQUEST,
                       "nothing is served by default: name a key");
    } else {
        vnxi_key_text(params->key, params->key_len, text, sizeof text);
        vnxi_error_set(error, VNX_ERR_NOT_FOUND, VNXI_OP_REQUEST,
                       "nothing is served under the key '%s'", text);
    }
    vnxi_error_peer(error, params->endpoint, strlen(params->endpoint));
    return VNX_ERR_NOT_FOUND;
}
