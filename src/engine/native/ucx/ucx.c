/*
 * UCX as a transport: other hosts, stock agents, and GPU memory.  The work is
 * done by conn.h, memory.h and transfer.h; here are its port, conns and slots.
 *
 * Design notes.  Most conns are not the main one of their peer and are never
 * used, so the connection itself (about 40 KiB) is created when it is first
 * needed: for a key, or to connect.
 *
 * A peer in this process, and the agent itself, is reached by its own region
 * objects, whose slots are that port's memory.  The keys of such regions are
 * kept by the conn and made when they are first used.
 */
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/json.h"
#include "base/log.h"
#include "base/mutex.h"
#include "engine/native/region_access.h"
#include "engine/native/transport.h"
#include "engine/native/ucx/ep.h"
#include "engine/native/ucx/gpu.h"
#include "engine/native/ucx/library.h"
#include "engine/native/ucx/transfer.h"

/* Default time after which a transfer over UCX without progress fails. */
#define STALL_SECONDS 60.0

typedef struct ucx_port {
    vnxi_port_t base; /* first */
    vnxi_ucx_t *ucx;
} ucx_port_t;

/* A key of a borrowed region. */
typedef struct borrowed {
    vnxi_region_t *region; /* retained; NULL: free */
    vnxi_ucx_key_t *key;
} borrowed_t;

typedef struct ucx_conn {
    vnxi_conn_t base; /* first */
    vnxi_ucx_t *ucx;
    bool is_ours, is_borrowed;
    uintptr_t id;
    vnxi_mutex_t lock;
    _Atomic(vnxi_ucx_conn_t *) conn; /* owned; set once, with lock; NULL: not
                                        needed so far */
    bool has_begun, is_closed;       /* lock */
    borrowed_t *borrowed;            /* lock; a hash table; owned */
    size_t room, count;              /* lock; of it; room is a power of two */
    size_t address_len;
    unsigned char address[];
} ucx_conn_t;

static vnxi_ucx_t *
ucx_of(const vnxi_port_t *port)
{
    return ((const ucx_port_t *)port)->ucx;
}

/* -- Ports -----------------------------------------------------------------
 */

static void
on_lost(void *context, uintptr_t id, const char *cause)
{
    const vnxi_port_t *port = context;
    const vnxi_port_host_t *host = &port->config.host;
    host->lost(host->context, port->config.number, id, cause);
}

/* Get "timeout", in seconds, from the backend's parameters or the environment.
 */
static vnx_status_t
stall_timeout(const vnx_param_t *params, size_t count, uint64_t *ns_p,
              vnx_error_t *error)
{
    const char *text = getenv("VLLM_NIXL_UCX_TIMEOUT");
    double seconds = STALL_SECONDS;
    char *end;

    for (size_t i = 0; i < count; i++) {
        text = strcmp(params[i].key, "timeout") == 0 ? params[i].value : text;
    }
    if (text != NULL && text[0] != '\0') {
        seconds = strtod(text, &end);
        if (*end != '\0' || !(seconds >= 0.0 && seconds <= 1e9)) {
            return vnxi_error_set(
                error, VNX_ERR_INVALID_PARAM, "vnx_agent_create_backend",
                "timeout '%s' is not a valid number of seconds", text);
        }
    }
    *ns_p = (uint64_t)(seconds * 1e9);
    return VNX_OK;
}

/* Get the number of workers from the backend's parameter "num_threads", which
 * clients pass that create the backend themselves.  0 keeps the agent's. */
static vnx_status_t
worker_count(const vnx_param_t *params, size_t count, unsigned *workers_p,
             vnx_error_t *error)
{
    const char *text = NULL;
    char *end;

    for (size_t i = 0; i < count; i++) {
        text =
            strcmp(params[i].key, "num_threads") == 0 ? params[i].value : text;
    }
    if (text == NULL) {
        return VNX_OK;
    }
    unsigned long number = strtoul(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end != '\0' || number > UINT_MAX) {
        return vnxi_error_set(
            error, VNX_ERR_INVALID_PARAM, "vnx_agent_create_backend",
            "num_threads '%s' is not a valid number of threads", text);
    }
    if (number > 0) {
        *workers_p = (unsigned)number;
    }
    return VNX_OK;
}

static vnx_status_t
port_open(const vnxi_port_config_t *config, vnxi_port_t **port_p,
          vnx_error_t *error)
{
    ucx_port_t *port = calloc(1, sizeof *port);
    vnxi_ucx_config_t ucx = {
        .name = config->name,
        .name_len = config->name_len,
        .workers = config->num_threads,
        .params = config->params,
        .param_count = config->param_count,
        .events = {port, vnxi_port_notif, on_lost},
    };

    if (port == NULL) {
        return vnxi_error_no_memory(error, "vnx_agent_create_backend",
                                    sizeof *port);
    }
    port->base.config = *config;
    vnx_status_t status = stall_timeout(config->params, config->param_count,
                                        &ucx.stall_timeout_ns, error);
    if (status == VNX_OK) {
        status = worker_count(config->params, config->param_count,
                              &ucx.workers, error);
    }
    if (status == VNX_OK) {
        status = vnxi_ucx_create(&ucx, &port->ucx, error);
    }
    if (status != VNX_OK) {
        const char *why;
        free(port);
        if (status == VNX_ERR_NOT_FOUND && vnxi_ucx_library(&why) == NULL) {
            /* No warning: one host may be all that the user needs, and an
             * agent on another one is refused with this cause. */
            vnxi_log(VNX_LOG_INFO, config->name,
                     "backend UCX reaches peers on this host only: no libucp: "
                     "%s",
                     why);
        }
        return status;
    }
    vnxi_log(VNX_LOG_DEBUG, config->name, "opened %s; guard %s",
             vnxi_ucx_version(port->ucx), vnxi_ucx_guarded(port->ucx));
    *port_p = &port->base;
    return VNX_OK;
}

static void
settle(vnxi_port_t *port)
{
    vnxi_ucx_settle(ucx_of(port));
}

static void
port_stop(vnxi_port_t *port)
{
    vnxi_ucx_stop(ucx_of(port));
}

static void
port_free(vnxi_port_t *port)
{
    vnxi_ucx_release(ucx_of(port));
    free(port);
}

static void
write_info(vnxi_port_t *port, vnxi_writer_t *writer)
{
    size_t len;
    const void *address = vnxi_ucx_address(ucx_of(port), &len);
    vnxi_write_bytes(writer, address, len);
}

static void
describe_port(vnxi_port_t *port, vnxi_writer_t *out)
{
    const vnxi_ucx_t *ucx = ucx_of(port);
    vnxi_json_member(out, "ucx", vnxi_ucx_version(ucx));
    vnxi_json_member(out, "ucx_guard", vnxi_ucx_guarded(ucx));
    vnxi_json_number(out, "ucx_workers", vnxi_ucx_workers(ucx));
    if (vnxi_ucx_withheld(ucx) > 0) {
        vnxi_json_number(out, "ucx_regions_withheld", vnxi_ucx_withheld(ucx));
    }
}

static bool
is_memory(vnx_mem_t mem)
{
    return mem == VNX_MEM_DRAM || mem == VNX_MEM_VRAM;
}

static const char *
refuses(const vnxi_port_t *port, vnx_mem_t local, vnx_mem_t remote)
{
    if (!is_memory(local) || !is_memory(remote)) {
        return "it moves CPU and GPU memory only";
    }
    if (local != VNX_MEM_VRAM) {
        return NULL;
    }
    if (!vnxi_ucx_has_cuda(ucx_of(port))) {
        return vnxi_ucx_tls_has_cuda(getenv("UCX_TLS"))
                   ? "UCX has no support for CUDA"
                   : "UCX has no support for CUDA, which UCX_TLS leaves out";
    }
    /* Its threads would have no context. */
    return vnxi_cuda_library(VNXI_CUDA_IF_USED, NULL) == NULL
               ? vnxi_cuda_failure()
               : NULL;
}

/* -- Conns -----------------------------------------------------------------
 */

static vnx_status_t
conn_create(vnxi_port_t *port, const vnxi_conn_args_t *args,
            vnxi_conn_t **conn_p, vnx_error_t *error)
{
    *conn_p = NULL;
    if (args->info.data == NULL) {
        return VNX_OK;
    }
    ucx_conn_t *conn = calloc(1, sizeof *conn + args->info.len);
    if (conn == NULL) {
        return vnxi_error_no_memory(error, "vnx_agent_load_metadata",
                                    sizeof *conn + args->info.len);
    }
    vnxi_mutex_init(&conn->lock, VNXI_RANK_UCX_PEER);
    conn->ucx = ucx_of(port);
    conn->is_ours = args->identity != NULL;
    conn->is_borrowed = args->is_here || args->is_self;
    conn->id = args->id;
    conn->address_len = args->info.len;
    memcpy(conn->address, args->info.data, args->info.len);
    vnxi_ucx_retain(conn->ucx);
    *conn_p = &conn->base;
    return VNX_OK;
}

/* Get the connection, which is created if it was not needed before. */
static vnx_status_t
need_lock_held(ucx_conn_t *conn, vnxi_ucx_conn_t **conn_p, vnx_error_t *error)
{
    vnxi_ucx_conn_t *made = atomic_load(&conn->conn);

    if (made == NULL) {
        vnx_status_t status =
            vnxi_ucx_conn_create(conn->ucx, conn->address, conn->address_len,
                                 conn->id, &made, error);
        if (status != VNX_OK) {
            return status;
        }
        if (conn->is_ours) {
            vnxi_ucx_conn_is_of_ours(made);
        }
        if (conn->is_closed) {
            vnxi_ucx_conn_close(made);
        }
        atomic_store(&conn->conn, made);
    }
    *conn_p = made;
    return VNX_OK;
}

/* The same, and start connecting. */
static vnx_status_t
begin(ucx_conn_t *conn, vnxi_ucx_conn_t **conn_p, vnx_error_t *error)
{
    vnxi_mutex_lock(&conn->lock);
    vnx_status_t status = need_lock_held(conn, conn_p, error);
    bool begins = status == VNX_OK && !conn->has_begun && !conn->is_closed;
    conn->has_begun |= begins;
    vnxi_mutex_unlock(&conn->lock);
    if (begins) {
        vnxi_ucx_conn_begin(*conn_p);
    }
    return status;
}

static vnx_status_t
conn_start(vnxi_conn_t *conn, vnxi_refusal_t *refusal_p, vnx_error_t *error)
{
    vnxi_ucx_conn_t *made;
    *refusal_p = VNXI_REFUSAL_FINAL;
    return begin((ucx_conn_t *)conn, &made, error);
}

static void
warm_up(vnxi_conn_t *conn)
{
    vnxi_ucx_conn_t *made;
    if (begin((ucx_conn_t *)conn, &made, NULL) == VNX_OK) {
        vnxi_ucx_conn_warm_up(made);
    }
}

static vnxi_ucx_conn_t *
mark_closed(ucx_conn_t *conn)
{
    vnxi_mutex_lock(&conn->lock);
    conn->is_closed = true;
    vnxi_mutex_unlock(&conn->lock);
    return atomic_load(&conn->conn);
}

static void
conn_close(vnxi_conn_t *conn)
{
    vnxi_ucx_conn_t *made = mark_closed((ucx_conn_t *)conn);
    if (made != NULL) {
        vnxi_ucx_conn_close(made);
    }
}

static void
peer_gone(vnxi_conn_t *conn, const char *cause)
{
    vnxi_ucx_conn_t *made = mark_closed((ucx_conn_t *)conn);
    if (made != NULL) {
        vnxi_ucx_conn_fail(made, cause);
    }
}

static void
conn_free(vnxi_conn_t *base)
{
    ucx_conn_t *conn = (ucx_conn_t *)base;

    for (size_t i = 0; i < conn->room; i++) {
        if (conn->borrowed[i].region != NULL) {
            vnxi_ucx_key_release(conn->borrowed[i].key);
            vnxi_region_release(conn->borrowed[i].region);
        }
    }
    free(conn->borrowed);
    vnxi_ucx_conn_release(atomic_load(&conn->conn));
    vnxi_ucx_release(conn->ucx);
    vnxi_mutex_destroy(&conn->lock);
    free(conn);
}

static bool
leads_to(const vnxi_conn_t *base, vnxi_md_bytes_t info)
{
    const ucx_conn_t *conn = (const ucx_conn_t *)base;
    return conn->address_len == info.len &&
           memcmp(conn->address, info.data, info.len) == 0;
}

static bool
is_connected(const vnxi_conn_t *conn)
{
    vnxi_ucx_conn_t *made = atomic_load(&((const ucx_conn_t *)conn)->conn);
    return made != NULL && vnxi_ucx_conn_is_wired(made);
}

static vnx_status_t
send_notif(vnxi_conn_t *conn, const void *message, size_t len,
           vnx_error_t *error)
{
    return vnxi_ucx_conn_send_notif(atomic_load(&((ucx_conn_t *)conn)->conn),
                                    message, len, error);
}

static void
describe_conn(vnxi_conn_t *conn, bool is_main, vnxi_writer_t *out)
{
    vnxi_ucx_conn_t *made = atomic_load(&((ucx_conn_t *)conn)->conn);
    char transports[160] = "";

    if (made != NULL) {
        vnxi_ucx_conn_transports(made, transports, sizeof transports);
    }
    if (is_main || transports[0] != '\0') {
        vnxi_json_member(out, "transports", transports);
    }
}

/* -- Our regions -----------------------------------------------------------
 */

static vnx_status_t
attach(vnxi_port_t *port, const vnxi_region_t *region, void **slot_p,
       vnx_error_t *error)
{
    vnxi_ucx_mem_t *mem = NULL;
    vnx_status_t status = VNX_OK;

    if (region->mem == VNX_MEM_VRAM) {
        vnxi_ucx_gpu_warn(port->config.name);
    }
    if (refuses(port, region->mem, VNX_MEM_DRAM) == NULL) {
        status = vnxi_ucx_mem_map(ucx_of(port), region->mem, region->addr,
                                  region->len, &mem, error);
    }
    if (status == VNX_OK) {
        *slot_p = mem;
    }
    return status;
}

static void
detach(void *slot)
{
    vnxi_ucx_mem_unmap(slot);
}

static void
slot_free(void *slot)
{
    vnxi_ucx_mem_free(slot);
}

/* Nothing without a key: peers cannot use the region. */
static void
write_region(const void *slot, vnxi_writer_t *writer)
{
    const vnxi_ucx_mem_t *mem = slot;
    vnxi_write_bytes(writer, mem->key, mem->key_len);
}

/* -- A peer's regions ------------------------------------------------------
 */

static vnx_status_t
key_create(vnxi_conn_t *base, const vnxi_region_t *region,
           vnxi_md_bytes_t data, void **slot_p, vnx_error_t *error)
{
    ucx_conn_t *conn = (ucx_conn_t *)base;
    vnxi_ucx_conn_t *made;
    vnxi_ucx_key_t *key;

    (void)region;
    vnxi_mutex_lock(&conn->lock);
    vnx_status_t status = need_lock_held(conn, &made, error);
    vnxi_mutex_unlock(&conn->lock);
    if (status == VNX_OK) {
        status = vnxi_ucx_key_create(made, data.data, data.len, &key, error);
    }
    if (status == VNX_OK) {
        *slot_p = key;
    }
    return status;
}

static bool
key_is(const void *slot, vnxi_md_bytes_t data)
{
    return vnxi_ucx_key_is(slot, data.data, data.len);
}

static void
key_free(void *slot)
{
    vnxi_ucx_key_release(slot);
}

/* -- Keys of borrowed regions ----------------------------------------------
 */

static borrowed_t *
find_borrowed(borrowed_t *table, size_t room, const vnxi_region_t *region)
{
    size_t at = (size_t)(vnxi_hash(&region, sizeof region) & (room - 1));

    while (table[at].region != NULL && table[at].region != region) {
        at = (at + 1) & (room - 1);
    }
    return &table[at];
}

/* Nobody else uses the region, and nobody will. */
static bool
is_over(const borrowed_t *one)
{
    return vnxi_region_is_gone(one->region) &&
           atomic_load(&one->region->refs) == 1;
}

/* Drop the entries of regions that are gone, and make room for one more. */
static bool
grow_lock_held(ucx_conn_t *conn)
{
    size_t room = 64, count = 0;

    for (size_t i = 0; i < conn->room; i++) {
        const borrowed_t *one = &conn->borrowed[i];
        count += one->region != NULL && !is_over(one);
    }
    while (room < 4 * (count + 1)) {
        room *= 2;
    }
    borrowed_t *table = calloc(room, sizeof *table);
    if (table == NULL) {
        return false;
    }
    for (size_t i = 0; i < conn->room; i++) {
        const borrowed_t *one = &conn->borrowed[i];
        if (one->region != NULL && is_over(one)) {
            vnxi_ucx_key_release(one->key);
            vnxi_region_release(one->region);
        } else if (one->region != NULL) {
            *find_borrowed(table, room, one->region) = *one;
        }
    }
    free(conn->borrowed);
    conn->borrowed = table;
    conn->room = room;
    conn->count = count;
    return true;
}

static vnxi_ucx_key_t *
borrow_lock_held(ucx_conn_t *conn, const vnxi_region_t *region)
{
    const vnxi_ucx_mem_t *mem =
        vnxi_region_slot(region, conn->base.port->config.number);
    vnxi_ucx_conn_t *made;
    vnxi_ucx_key_t *key;

    if (conn->room > 0) {
        const borrowed_t *known =
            find_borrowed(conn->borrowed, conn->room, region);
        if (known->region != NULL) {
            return known->key;
        }
    }
    if (mem == NULL || need_lock_held(conn, &made, NULL) != VNX_OK ||
        (2 * (conn->count + 1) > conn->room && !grow_lock_held(conn)) ||
        vnxi_ucx_key_create(made, mem->key, mem->key_len, &key, NULL) !=
            VNX_OK) {
        return NULL;
    }
    borrowed_t *one = find_borrowed(conn->borrowed, conn->room, region);
    one->region = vnxi_region_retain((vnxi_region_t *)region);
    one->key = key;
    conn->count++;
    return key;
}

/* -- Transfers -------------------------------------------------------------
 */

static vnxi_ucx_mem_t *
mem_of(void *owner, const vnxi_region_t *region)
{
    return vnxi_region_slot(region,
                            ((vnxi_conn_t *)owner)->port->config.number);
}

static vnxi_ucx_key_t *
key_of(void *owner, const vnxi_region_t *region)
{
    ucx_conn_t *conn = owner;

    if (!conn->is_borrowed) {
        return vnxi_region_slot(region, conn->base.port->config.number);
    }
    vnxi_mutex_lock(&conn->lock);
    vnxi_ucx_key_t *key = borrow_lock_held(conn, region);
    vnxi_mutex_unlock(&conn->lock);
    return key;
}

static vnx_status_t
part_create(const vnxi_part_args_t *args, vnxi_part_t **part_p,
            vnx_error_t *error)
{
    vnxi_ucx_xfer_args_t xfer = {
        .plan = args->plan,
        .op = args->op,
        .route = args->conn->port->config.number,
        .local = args->local,
        .remote = args->remote,
        .owner = args->conn,
        .mem_of = mem_of,
        .key_of = key_of,
        .context = args->context,
        .go_on = args->go_on,
        .done = args->done,
    };

    vnx_status_t status = begin((ucx_conn_t *)args->conn, &xfer.conn, error);
    if (status != VNX_OK) {
        return status;
    }
    vnxi_ucx_xfer_t *made = vnxi_ucx_xfer_create(&xfer);
    if (made == NULL) {
        return vnxi_error_no_memory(error, "vnx_xfer_post", sizeof xfer);
    }
    *part_p = (vnxi_part_t *)made;
    return VNX_OK;
}

static vnx_status_t
part_post(vnxi_part_t *part, vnx_error_t *error)
{
    return vnxi_ucx_xfer_post((vnxi_ucx_xfer_t *)part, error);
}

static void
part_cancel(vnxi_part_t *part)
{
    vnxi_ucx_xfer_cancel((vnxi_ucx_xfer_t *)part);
}

static void
part_free(vnxi_part_t *part)
{
    vnxi_ucx_xfer_free((vnxi_ucx_xfer_t *)part);
}

/* For clients that look for them, or pass them on.  None has an effect. */
static const vnx_param_t defaults[] = {
    {"num_workers", "1"},
    {"ucx_devices", ""},
    {"ucx_error_handling_mode", "peer"},
    {NULL, NULL},
};

extern const vnxi_transport_t vnxi_ucx_transport;

const vnxi_transport_t vnxi_ucx_transport = {
    .name = "UCX",
    .backend = "UCX",
    .defaults = defaults,
    .entry = "UCX",
    .scope = VNXI_SCOPE_NETWORK,
    .why = "UCX: over the network, or by its transports within a host",
    .not_offered = "the peer does not offer UCX",
    .port_open = port_open,
    .settle = settle,
    .port_stop = port_stop,
    .port_free = port_free,
    .write_info = write_info,
    .describe_port = describe_port,
    .refuses = refuses,
    .conn_create = conn_create,
    .conn_start = conn_start,
    .warm_up = warm_up,
    .conn_close = conn_close,
    .peer_gone = peer_gone,
    .conn_free = conn_free,
    .leads_to = leads_to,
    .is_connected = is_connected,
    .send_notif = send_notif,
    .describe_conn = describe_conn,
    .attach = attach,
    .detach = detach,
    .slot_free = slot_free,
    .write_region = write_region,
    .key_create = key_create,
    .key_is = key_is,
    .key_free = key_free,
    .part_create = part_create,
    .part_post = part_post,
    .part_cancel = part_cancel,
    .part_free = part_free,
};
