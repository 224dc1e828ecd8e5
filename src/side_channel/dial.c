#include "side_channel/dial.h"
#include "base/error.h"

#include <poll.h>
#include <string.h>

void
vnxi_dial_init(vnxi_dial_t *dial, const vnxi_request_params_t *params)
{
    memset(dial, 0, sizeof *dial);
    dial->params = params;
    dial->connector.epoll_fd = -1;
}

void
vnxi_dial_fini(vnxi_dial_t *dial)
{
    vnxi_lookup_end(dial->lookup);
    dial->lookup = NULL;
    vnxi_connector_fini(&dial->connector);
}

const char *
vnxi_dial_whom(const vnxi_dial_t *dial)
{
    return dial->address[0] != '\0' ? dial->address : dial->params->host;
}

const char *
vnxi_dial_phase(const vnxi_dial_t *dial)
{
    return dial->connecting ? "connecting to" : "resolving";
}

static vnx_status_t
resolve(vnxi_dial_t *dial, vnxi_exchange_t *exchange, vnx_error_t *error)
{
    const vnxi_request_params_t *params = dial->params;
    vnxi_addresses_t found;
    const char *reason = "";

    vnx_status_t status =
        dial->lookup == NULL
            ? vnxi_lookup_begin(params->host, params->port, &found,
                                &dial->lookup, &reason)
            : vnxi_lookup_step(dial->lookup, &found, &reason);
    if (status == VNX_IN_PROG) {
        exchange->fd = vnxi_lookup_fd(dial->lookup);
        exchange->events = POLLIN;
        return VNX_IN_PROG;
    }
    if (status != VNX_OK) {
        return vnxi_exchange_failed(params, status, vnxi_dial_phase(dial),
                                    params->host, reason, error);
    }
    vnxi_connector_init(&dial->connector, &found, vnxi_clock_ns(),
                        params->deadline);
    dial->connecting = true;
    return VNX_OK;
}

vnx_status_t
vnxi_dial_step(vnxi_dial_t *dial, vnxi_exchange_t *exchange, int *fd_p,
               vnx_error_t *error)
{
    vnxi_connector_t *connector = &dial->connector;

    if (!dial->connecting) {
        vnx_status_t status = resolve(dial, exchange, error);
        if (status != VNX_OK) {
            return status;
        }
    }
    vnx_status_t status =
        vnxi_connector_step(connector, vnxi_clock_ns(), fd_p);
    vnxi_address_text(&connector->addresses.list[connector->last],
                      dial->address);
    if (status == VNX_IN_PROG) {
        vnxi_connector_wait(connector, &exchange->fd, &exchange->events,
                            &exchange->wake);
    } else if (status != VNX_OK) {
        vnxi_exchange_failed(dial->params, status, vnxi_dial_phase(dial),
                             dial->address, vnxi_errno(connector->err), error);
    }
    return status;
}
