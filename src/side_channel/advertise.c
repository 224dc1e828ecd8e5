#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/log.h"
#include "net/resolve.h"
#include "side_channel/channel.h"

#define OP_ADVERTISED "advertised_address"
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

static bool
is_usable(const struct ifaddrs *one, int family)
{
    const struct sockaddr_in6 *v6 = (const void *)one->ifa_addr;

    if (one->ifa_addr == NULL || one->ifa_addr->sa_family != family ||
        !(one->ifa_flags & IFF_UP) || (one->ifa_flags & IFF_LOOPBACK)) {
        return false;
    }
    return family == AF_INET || !IN6_IS_ADDR_LINKLOCAL(&v6->sin6_addr);
}

/* Find the machine's first address of a family.  False: there is none. */
static bool
own_address(const struct ifaddrs *all, int family,
            char host[VNX_SIDE_CHANNEL_ADDRESS_MAX])
{
    socklen_t len = family == AF_INET ? sizeof(struct sockaddr_in)
                                      : sizeof(struct sockaddr_in6);

    for (; all != NULL; all = all->ifa_next) {
        if (is_usable(all, family)) {
            return getnameinfo(all->ifa_addr, len, host,
                               VNX_SIDE_CHANNEL_ADDRESS_MAX, NULL, 0,
                               NI_NUMERICHOST) == 0;
        }
    }
    return false;
}

/* Find an address of the machine: loopback only if it has no other. */
static void
machine_address(char host[VNX_SIDE_CHANNEL_ADDRESS_MAX])
{
    struct ifaddrs *all = NULL;

    bool found = getifaddrs(&all) == 0 && (own_address(all, AF_INET, host) ||
                                           own_address(all, AF_INET6, host));
    freeifaddrs(all);
    if (!found) {
        memcpy(host, "127.0.0.1", sizeof "127.0.0.1");
    }
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
    char text[VNXI_ADDRESS_TEXT];

    if (vnxi_resolve_interface(host, 0, &found) == VNX_OK) {
        vnxi_address_text(&found.list[0], text);
        memcpy(host, text, strlen(text) + 1);
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
        vnxi_log(VNXI_LOG_WARNING,
                 "side channel: '%s' cannot reach %s:%d, which is this "
                 "machine's loopback; set advertise or " HOST_VARIABLE
                 " to an address that it can",
                 peer, host, port);
    }
    return VNX_OK;
}
