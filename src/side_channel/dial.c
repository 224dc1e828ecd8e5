#include "side_channel/dial.h"
#include "base/error.h"

#include <poll.h>
#include <string.h>

void
vnxi_dial_init(vnxi_dial_t *dial, vnxi_request_t *request)
{
    memset(dial, 0, sizeof *dial);
    dial->request = request;
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
    return dial->address[0] != '\0' ? dial->address : dial->request->host;
}

const char *
vnxi_dial_phase(const vnxi_dial_t *dial)
{
    return dial->connecting ? "connecting to" : "resolving";
}

static vnx_status_t
resolve(vnxi_dial_t *dial)
{
    vnxi_request_t *request = dial->request;
    vnxi_addresses_t found;
    const char *reason = "";

    vnx_status_t status =
        dial->lookup == NULL
            ? vnxi_lookup_begin(request->host, request->port, &found,
                                &dial->lookup, &reason)
            : vnxi_lookup_step(dial->lookup, &found, &reason);
    if (status == VNX_IN_PROG) {
        request->fd = vnxi_lookup_fd(dial->lookup);
        request->events = POLLIN;
        return VNX_IN_PROG;
    }
    if (status != VNX_OK) {
        return vnxi_request_failed(request, status, vnxi_dial_phase(dial),
                                   request->host, reason);
    }
    vnxi_connector_init(&dial->connector, &found, vnxi_clock_ns(),
                        request->deadline);
    dial->connecting = true;
    return VNX_OK;
}

vnx_status_t
vnxi_dial_step(vnxi_dial_t *dial, int *fd_p)
{
    vnxi_request_t *request = dial->request;
    vnxi_connector_t *connector = &dial->connector;

    if (!dial->connecting) {
        vnx_status_t status = resolve(dial);
        if (status != VNX_OK) {
            return status;
        }
    }
    vnx_status_t status =
        vnxi_connector_step(connector, vnxi_clock_ns(), fd_p);
    vnxi_address_text(&connector->addresses.list[connector->last],
                      dial->address);
    if (status == VNX_IN_PROG) {
        vnxi_connector_wait(connector, &request->fd, &request->events,
                            &request->wake);
    } else if (status != VNX_OK) {
        vnxi_request_failed(request, status, vnxi_dial_phase(dial),
                            dial->address, vnxi_errno(connector->err));
    }
    return status;
}
