/*
 * The UCX state of an agent as an object: its settings, its UCX context, its
 * references.  lifetime.c starts and stops it.
 */
#include "engine/native/ucx/context_private.h"

#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/fork_fds.h"
#include "base/log.h"

#define OPERATION "vnx_agent_create_backend"

/* -- Configuration ---------------------------------------------------------
 */

/* The settings of stock NIXL, so that both ends choose the same protocols.  A
 * key that this UCX does not know (of its InfiniBand module) is not an error.
 */
static const struct {
    unsigned minor; /* the first 1.x version with this key */
    const char *key, *value;
} settings[] = {
    {19, "RNDV_THRESH", "inf"},
    {19, "MAX_RMA_RAILS", "2"},
    {19, "IB_PCI_RELAXED_ORDERING", "try"},
    /* With UCX's own PUT over TCP, UCX crashes the process when a connection
     * with pending PUTs is closed by force (seen in 1.22 and 1.23). */
    {19, "TCP_PUT_ENABLE", "n"},
    /* Without UCX's PUT, PUTs are messages.  With UCX's default segments of 8
     * KiB they take twice as long.  Peers have room for 64 KiB unless
     * configured otherwise. */
    {19, "TCP_TX_SEG_SIZE", "64k"},
    /* Connect while UCX progresses.  By default UCX waits for the connection
     * in ucp_ep_create(), for minutes if a host does not answer.  And if the
     * peer ends between that call and the first bytes, UCX frees the TCP
     * endpoint behind the endpoint that it has just returned, and the next use
     * of that crashes the process (1.22 and 1.23). */
    {19, "TCP_CONN_NB", "y"},
    /* The longest time for which a peer may not notice that we have closed a
     * connection by force.  It responds for the other direction too.  UCX's
     * default of 20 s looks like a hang. */
    {19, "KEEPALIVE_INTERVAL", "3s"},
    /* Between GPUs of one host without NVLink, UCX offers no GET by default,
     * and a READ goes through the CPU, a hundred times slower than a WRITE. */
    {19, "CUDA_IPC_ENABLE_GET_ZCOPY", "on"},
    {21, "RC_GDA_NUM_CHANNELS", "4"},
    {21, "MAX_HCA_PER_GPU", "auto"},
    {22, "RNDV_PIPELINE_ERROR_HANDLING", "y"},
};

/* The environment takes precedence. */
static bool
is_in_environment(const char *key)
{
    char name[128];
    int len = snprintf(name, sizeof name, "UCX_%s", key);
    return (size_t)len < sizeof name && getenv(name) != NULL;
}

static vnxi_ucs_status_t
modify(const vnxi_ucx_library_t *library, vnxi_ucp_config_t *config,
       const char *key, const char *value)
{
    return is_in_environment(key)
               ? VNXI_UCS_OK
               : library->ucp.ucp_config_modify(config, key, value);
}

/* Return whether UCX would use TCP on this interface.  It skips bridges. */
static bool
is_network(const struct ifaddrs *entry)
{
    const unsigned up = IFF_UP | IFF_RUNNING;
    const struct sockaddr *addr = entry->ifa_addr;
    char bridge[64];

    if ((entry->ifa_flags & up) != up || addr == NULL) {
        return false;
    }
    if (addr->sa_family == AF_INET6) {
        const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)addr;
        if (IN6_IS_ADDR_LINKLOCAL(&in6->sin6_addr)) {
            return false;
        }
    } else if (addr->sa_family != AF_INET) {
        return false;
    }
    snprintf(bridge, sizeof bridge, "/sys/class/net/%s/bridge",
             entry->ifa_name);
    return access(bridge, F_OK) != 0;
}

/* "^lo" if there is another device, else "". */
static void
name_loopback(char *list, size_t size)
{
    struct ifaddrs *all, *loopback = NULL;
    bool has_other = false;

    list[0] = '\0';
    if (getifaddrs(&all) != 0) {
        return;
    }
    for (struct ifaddrs *entry = all; entry != NULL; entry = entry->ifa_next) {
        if ((entry->ifa_flags & IFF_LOOPBACK) != 0) {
            loopback = entry;
        } else {
            has_other |= is_network(entry);
        }
    }
    if (loopback != NULL && has_other) {
        snprintf(list, size, "^%s", loopback->ifa_name);
    }
    freeifaddrs(all);
}

/* For peers on this host, UCX uses the loopback device unless another device
 * is faster according to the kernel, and many devices report no speed.  This
 * fails between UCX versions: 1.22 and later consider the loopback device of a
 * 1.21 reachable, but 1.21 does not ("different pid namespaces") and resets
 * the connection or crashes.  The address of any other device reaches the same
 * peers, on the same path in the kernel.  UCX before 1.21 cannot exclude a
 * single device. */
static void
avoid_loopback(const vnxi_ucx_library_t *library, vnxi_ucp_config_t *config)
{
    char list[IF_NAMESIZE + 2];

    name_loopback(list, sizeof list);
    if (list[0] != '\0' && library->minor >= 21) {
        (void)modify(library, config, "NET_DEVICES", list);
    }
}

/* "mlx5_0,mlx5_1" in UCX's form: "mlx5_0:1,mlx5_1:1".  As in stock NIXL, this
 * parameter goes before the environment. */
static vnx_status_t
set_devices(const vnxi_ucx_library_t *library, vnxi_ucp_config_t *config,
            const char *list, vnx_error_t *error)
{
    char devices[512] = "", *copy = strdup(list), *rest = NULL;
    size_t used = 0;

    if (copy == NULL) {
        return vnxi_error_no_memory(error, OPERATION, strlen(list));
    }
    for (char *one = strtok_r(copy, ", ", &rest); one != NULL;
         one = strtok_r(NULL, ", ", &rest)) {
        int len =
            snprintf(devices + used, sizeof devices - used, "%s%s%s",
                     used > 0 ? "," : "", one, strchr(one, ':') ? "" : ":1");
        used += (size_t)len;
        if (used >= sizeof devices) {
            free(copy);
            return vnxi_error_set(error, VNX_ERR_INVALID_PARAM, OPERATION,
                                  "device_list is too long");
        }
    }
    free(copy);
    if (used == 0) {
        return VNX_OK;
    }
    vnxi_ucs_status_t status =
        library->ucp.ucp_config_modify(config, "NET_DEVICES", devices);
    return status == VNXI_UCS_OK
               ? VNX_OK
               : vnxi_error_set(error, VNX_ERR_INVALID_PARAM, OPERATION,
                                "UCX refuses NET_DEVICES=%s: %s", devices,
                                library->ucp.ucs_status_string(status));
}

static void
set_one(const vnxi_ucx_library_t *library, vnxi_ucp_config_t *config,
        const char *agent, char *one)
{
    char *value = strchr(one, '=');

    if (value == NULL) {
        vnxi_log(VNX_LOG_WARNING, agent,
                 "engine_config: '%s' is skipped, because it is not KEY=value "
                 "(a value cannot contain a comma)",
                 one);
        return;
    }
    *value++ = '\0';
    vnxi_ucs_status_t status = modify(library, config, one, value);
    if (status != VNXI_UCS_OK) {
        vnxi_log(VNX_LOG_WARNING, agent,
                 "engine_config: '%s=%s' is skipped, because UCX refuses it: "
                 "%s",
                 one, value, library->ucp.ucs_status_string(status));
    }
}

/* "KEY=value,KEY=value", read as stock NIXL does.  Clients pass settings that
 * only some versions and builds of UCX know, so those that UCX refuses are no
 * errors. */
static vnx_status_t
set_engine_config(const vnxi_ucx_library_t *library, vnxi_ucp_config_t *config,
                  const char *agent, const char *text, vnx_error_t *error)
{
    char *copy = strdup(text), *rest = NULL;

    if (copy == NULL) {
        return vnxi_error_no_memory(error, OPERATION, strlen(text));
    }
    for (char *one = strtok_r(copy, ",", &rest); one != NULL;
         one = strtok_r(NULL, ",", &rest)) {
        set_one(library, config, agent, one);
    }
    free(copy);
    return VNX_OK;
}

/* The value of a parameter, or NULL. */
static const char *
param_of(const vnxi_ucx_config_t *wish, const char *key)
{
    for (size_t i = 0; i < wish->param_count; i++) {
        if (strcmp(wish->params[i].key, key) == 0) {
            return wish->params[i].value;
        }
    }
    return NULL;
}

static vnx_status_t
configure(const vnxi_ucx_library_t *library, vnxi_ucp_config_t *config,
          const vnxi_ucx_config_t *wish, vnx_error_t *error)
{
    const char *devices = param_of(wish, "device_list");
    const char *text = param_of(wish, "engine_config");
    vnx_status_t status = VNX_OK;

    for (size_t i = 0; i < sizeof settings / sizeof settings[0]; i++) {
        if (library->minor >= settings[i].minor) {
            (void)modify(library, config, settings[i].key, settings[i].value);
        }
    }
    avoid_loopback(library, config);
    if (devices != NULL) {
        status = set_devices(library, config, devices, error);
    }
    if (status == VNX_OK && text != NULL) {
        status = set_engine_config(library, config, wish->name, text, error);
    }
    return status;
}

/* -- Creating --------------------------------------------------------------
 */

vnx_status_t
vnxi_ucx_error(const vnxi_ucx_library_t *library, vnxi_ucs_status_t status,
               const char *what, vnx_error_t *error)
{
    return vnxi_error_set(
        error, VNX_ERR_BACKEND, OPERATION, "%s: %s: %s%s", library->version,
        what, library->ucp.ucs_status_string(status), vnxi_descriptors());
}

static vnx_status_t
make_context(const vnxi_ucx_library_t *library, const vnxi_ucx_config_t *wish,
             vnxi_ucp_context_t *context_p, vnx_error_t *error)
{
    const vnxi_ucp_functions_t *ucp = &library->ucp;
    vnxi_ucp_params_t params = {
        .field_mask =
            VNXI_UCP_PARAM_FEATURES | VNXI_UCP_PARAM_MT_WORKERS_SHARED,
        .features = VNXI_UCP_FEATURE_RMA | VNXI_UCP_FEATURE_AMO32 |
                    VNXI_UCP_FEATURE_AMO64 | VNXI_UCP_FEATURE_AM |
                    VNXI_UCP_FEATURE_WAKEUP,
        .mt_workers_shared = 1, /* memory is mapped on any thread */
    };
    vnxi_ucp_config_t *config;

    vnxi_ucs_status_t ucs = ucp->ucp_config_read(NULL, NULL, &config);
    if (ucs != VNXI_UCS_OK) {
        return vnxi_ucx_error(library, ucs, "its configuration cannot be read",
                              error);
    }
    vnx_status_t status = configure(library, config, wish, error);
    if (status == VNX_OK) {
        ucs = ucp->ucp_init_version(VNXI_UCP_API_MAJOR, VNXI_UCP_API_MINOR,
                                    &params, config, context_p);
        if (ucs != VNXI_UCS_OK) {
            status = vnxi_ucx_error(library, ucs, "ucp_init", error);
        }
    }
    ucp->ucp_config_release(config);
    return status;
}

static uint64_t
find_memory_types(const vnxi_ucx_library_t *library,
                  vnxi_ucp_context_t context)
{
    vnxi_ucp_context_attr_t attr = {.field_mask = VNXI_UCP_ATTR_MEMORY_TYPES};
    return library->ucp.ucp_context_query(context, &attr) == VNXI_UCS_OK
               ? attr.memory_types
               : 0;
}

/* NULL: no memory. */
static vnxi_ucx_t *
ucx_alloc(const vnxi_ucx_library_t *library, const vnxi_ucx_config_t *config,
          vnxi_ucp_context_t context)
{
    unsigned count = config->workers < VNXI_UCX_WORKERS_MAX
                         ? config->workers
                         : VNXI_UCX_WORKERS_MAX;
    vnxi_ucx_t *ucx = calloc(1, sizeof *ucx + count * sizeof ucx->workers[0]);
    char *name = malloc(config->name_len + 1);

    if (ucx == NULL || name == NULL) {
        free(ucx);
        free(name);
        return NULL;
    }
    memcpy(name, config->name, config->name_len);
    name[config->name_len] = '\0';
    atomic_init(&ucx->refs, 1);
    vnxi_mutex_init(&ucx->xfers_lock, VNXI_RANK_UCX_XFERS);
    vnxi_cond_init(&ucx->xfer_ended);
    vnxi_ucx_gone_init(&ucx->gone);
    vnxi_mutex_init(&ucx->gpu.lock, VNXI_RANK_UCX_GPU);
    ucx->library = library;
    ucx->context = context;
    ucx->memory_types = find_memory_types(library, context);
    ucx->name = name;
    ucx->name_len = config->name_len;
    ucx->stall_timeout_ns = config->stall_timeout_ns;
    ucx->events = config->events;
    ucx->worker_count = count;
    for (unsigned i = 0; i < count; i++) {
        vnxi_ucx_worker_init(&ucx->workers[i], ucx, &library->ucp, context, i);
    }
    return ucx;
}

vnx_status_t
vnxi_ucx_open(const vnxi_ucx_library_t *library,
              const vnxi_ucx_config_t *config, vnxi_ucx_t **ucx_p,
              vnx_error_t *error)
{
    vnxi_ucp_context_t context;
    vnx_status_t status = make_context(library, config, &context, error);

    if (status != VNX_OK) {
        return status;
    }
    vnxi_ucx_t *ucx = ucx_alloc(library, config, context);
    if (ucx == NULL) {
        library->ucp.ucp_cleanup(context);
        return vnxi_error_no_memory(error, OPERATION, sizeof *ucx);
    }
    *ucx_p = ucx;
    return VNX_OK;
}

/* -- References ------------------------------------------------------------
 */

static atomic_bool all_parked;

void
vnxi_ucx_set_all_parked(void)
{
    atomic_store(&all_parked, true);
}

bool
vnxi_ucx_is_parked(const vnxi_ucx_t *ucx)
{
    return atomic_load(&all_parked) || atomic_load(&ucx->lost);
}

void
vnxi_ucx_retain(vnxi_ucx_t *ucx)
{
    atomic_fetch_add_explicit(&ucx->refs, 1, memory_order_relaxed);
}

void
vnxi_ucx_release(vnxi_ucx_t *ucx)
{
    if (ucx == NULL || atomic_fetch_sub(&ucx->refs, 1) != 1) {
        return;
    }
    if (vnxi_ucx_is_parked(ucx)) {
        return; /* its threads are still inside */
    }
    /* It would close numbers that may be other files' now. */
    if (!vnxi_fds_lost(ucx->workers[0].fds)) {
        ucx->library->ucp.ucp_cleanup(ucx->context);
    }
    for (unsigned i = 0; i < ucx->worker_count; i++) {
        vnxi_ucx_worker_fini(&ucx->workers[i]);
    }
    vnxi_mutex_destroy(&ucx->gpu.lock);
    vnxi_ucx_gone_fini(&ucx->gone);
    vnxi_cond_destroy(&ucx->xfer_ended);
    vnxi_mutex_destroy(&ucx->xfers_lock);
    free(ucx->address);
    free(ucx->name);
    free(ucx);
}

/* -- Addresses of ended processes ------------------------------------------
 */

void
vnxi_ucx_gone_init(vnxi_ucx_gone_t *gone)
{
    memset(gone, 0, sizeof *gone);
    vnxi_mutex_init(&gone->lock, VNXI_RANK_UCX_GONE);
}

void
vnxi_ucx_gone_fini(vnxi_ucx_gone_t *gone)
{
    for (unsigned i = 0; i < VNXI_UCX_GONE_MAX; i++) {
        free(gone->known[i].bytes);
    }
    vnxi_mutex_destroy(&gone->lock);
}

static bool
has_lock_held(const vnxi_ucx_gone_t *gone, const void *address, size_t len)
{
    for (unsigned i = 0; i < VNXI_UCX_GONE_MAX; i++) {
        if (gone->known[i].bytes != NULL && gone->known[i].len == len &&
            memcmp(gone->known[i].bytes, address, len) == 0) {
            return true;
        }
    }
    return false;
}

bool
vnxi_ucx_gone_has(vnxi_ucx_gone_t *gone, const void *address, size_t len)
{
    vnxi_mutex_lock(&gone->lock);
    bool has = has_lock_held(gone, address, len);
    vnxi_mutex_unlock(&gone->lock);
    return has;
}

void
vnxi_ucx_gone_add(vnxi_ucx_gone_t *gone, const void *address, size_t len)
{
    unsigned char *copy =
        len <= VNXI_UCX_GONE_ADDRESS_MAX ? malloc(len + 1) : NULL;

    if (copy == NULL) {
        return;
    }
    memcpy(copy, address, len);
    vnxi_mutex_lock(&gone->lock);
    if (!has_lock_held(gone, address, len)) {
        unsigned at = gone->next;
        unsigned char *oldest = gone->known[at].bytes;
        gone->known[at].bytes = copy;
        gone->known[at].len = len;
        gone->next = (at + 1) % VNXI_UCX_GONE_MAX;
        copy = oldest;
    }
    vnxi_mutex_unlock(&gone->lock);
    free(copy);
}

/* -- Facts -----------------------------------------------------------------
 */

const void *
vnxi_ucx_address(const vnxi_ucx_t *ucx, size_t *len_p)
{
    *len_p = ucx->address_len;
    return ucx->address;
}

bool
vnxi_ucx_has_cuda(const vnxi_ucx_t *ucx)
{
    return (ucx->memory_types >> VNXI_UCS_MEMORY_CUDA & 1) != 0;
}

size_t
vnxi_ucx_withheld(const vnxi_ucx_t *ucx)
{
    return atomic_load(&ucx->gpu.withheld);
}

const char *
vnxi_ucx_version(const vnxi_ucx_t *ucx)
{
    return ucx->library->version;
}

const char *
vnxi_ucx_guarded(const vnxi_ucx_t *ucx)
{
    return ucx->library->guard;
}

unsigned
vnxi_ucx_workers(const vnxi_ucx_t *ucx)
{
    return ucx->worker_count;
}
