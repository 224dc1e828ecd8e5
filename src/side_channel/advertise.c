#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/log.h"
#include "net/resolve.h"
#include "side_channel/channel.h"

#define OP_ADVERTISED "vnx_side_channel_advertised"
#define HOST_VARIABLE "VLLM_NIXL_SIDE_CHANNEL_HOST"

/* Copy the first host of a comma-separated list. */
static void
first_host(const char *list, char host[VNX_SIDE_CHANNEL_ADDRESS_MAX])
{
    list += strspn(list, " ");
    size_t len = strcspn(list, " ,");
    if (len >= VNX_SIDE_CHANNEL_ADDRESS_MAX) {
        len = VNX_SIDE_CHANNEL_ADDRESS_MAX - 1;
    }
    memcpy(host, list, len);
    host[len] = '\0';
}

static void
put_address(const vnxi_address_t *address,
            char host[VNX_SIDE_CHANNEL_ADDRESS_MAX])
{
    char text[VNXI_ADDRESS_TEXT];

    vnxi_address_text(address, text);
    memcpy(host, text, strlen(text) + 1);
}

/* Find an address of the machine: IPv4 if it has one, loopback only if it has
 * no other. */
static void
machine_address(char host[VNX_SIDE_CHANNEL_ADDRESS_MAX])
{
    vnxi_addresses_t found;
    size_t i = 0;

    if (vnxi_resolve_interface(NULL, 0, &found) != VNX_OK) {
        memcpy(host, "127.0.0.1", sizeof "127.0.0.1");
        return;
    }
    while (i < found.count && found.list[i].addr.ss_family != AF_INET) {
        i++;
    }
    put_address(&found.list[i < found.count ? i : 0], host);
}

/* Parse a numeric address or "localhost".  Names are not looked up. */
static bool
parse(const char *host, vnxi_address_t *address_p)
{
    vnxi_addresses_t found;

    if (strcasecmp(host, "localhost") == 0) {
        host = "127.0.0.1";
    }
    if (!vnxi_address_parse(host, &found)) {
        return false;
    }
    *address_p = found.list[0];
    return true;
}

static bool
is_loopback(const char *host)
{
    vnxi_address_t address;
    return parse(host, &address) && vnxi_address_is_loopback(&address);
}

static bool
is_wildcard(const char *host)
{
    return strcmp(host, "0.0.0.0") == 0 || strcmp(host, "::") == 0 ||
           strcmp(host, "*") == 0;
}

/* Is the host an address of this machine?  Such an address can be bound.
 * Decided without a name service. */
static bool
is_this_machine(const char *host)
{
    vnxi_address_t address;

    if (!parse(host, &address)) {
        return false;
    }
    int fd = socket(address.addr.ss_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    bool is_own = vnxi_address_is_loopback(&address) ||
                  bind(fd, (const void *)&address.addr, address.len) == 0;
    if (fd >= 0) {
        close(fd);
    }
    return is_own;
}

/* If `host` names an interface, replace it with the first address of that
 * interface. */
static void
resolve_interface(char host[VNX_SIDE_CHANNEL_ADDRESS_MAX])
{
    vnxi_addresses_t found;

    if (vnxi_resolve_interface(host, 0, &found) == VNX_OK) {
        put_address(&found.list[0], host);
    }
}

static void
choose(const char *advertise, const char *bound,
       char host[VNX_SIDE_CHANNEL_ADDRESS_MAX])
{
    const char *environment = getenv(HOST_VARIABLE);
    const char *list = advertise != NULL ? advertise : environment;

    if (list == NULL || list[0] == '\0') {
        list = bound != NULL ? bound : "*"; /* stopped meanwhile */
    }
    first_host(list, host);
    if (is_wildcard(host)) {
        machine_address(host);
    } else {
        resolve_interface(host);
    }
}

vnx_status_t
vnx_side_channel_advertised(vnx_side_channel_t *channel, const char *peer,
                            char host[VNX_SIDE_CHANNEL_ADDRESS_MAX],
                            int *port_p, vnx_error_t *error)
{
    int port = vnx_side_channel_port(channel);
    if (port == 0) {
        return vnxi_error_set(error, VNX_ERR_NOT_ALLOWED, OP_ADVERTISED,
                              "the listener is not running");
    }
    vnxi_channel_enter(channel);
    vnxi_mutex_lock(&channel->lock);
    choose(channel->options.advertise, channel->host, host);
    vnxi_mutex_unlock(&channel->lock);
    vnxi_channel_leave(channel);
    if (port_p != NULL) {
        *port_p = port;
    }
    if (peer != NULL && is_loopback(host) && !is_this_machine(peer)) {
        vnxi_log(VNX_LOG_WARNING, NULL,
                 "side channel: '%s' cannot reach %s:%d, which is this "
                 "machine's loopback; set advertise or " HOST_VARIABLE
                 " to an address that it can",
                 peer, host, port);
    }
    return VNX_OK;
}
