/*
 * Agents of this process, and the agent itself: a transport whose bytes are
 * copied by memcpy() and whose notifications go straight into the queue of the
 * other agent.
 *
 * Design notes.  A port is found by the instance id of its agent (the
 * directory), so that agents of one process find each other without a system
 * call.  A list is enough: there are few, and they are looked up only when
 * metadata is loaded.
 *
 * A port knows the conns of other agents to it.  When its agent closes, they
 * are told before any of its memory is given up.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/fork.h"
#include "base/mutex.h"
#include "engine/native/process/copy.h"
#include "engine/native/transport.h"

#define OPERATION "vnx_agent_load_metadata"

typedef struct process_conn process_conn_t;

typedef struct process_port {
    vnxi_port_t base; /* first */
    /* Held while other agents call the host's notif() or lost(): leave() takes
     * it, so that no call comes after it. */
    vnxi_mutex_t inbound_lock;
    bool is_open;              /* inbound_lock */
    process_conn_t *conns;     /* of others to this port; directory's lock */
    struct process_port *next; /* the directory; its lock */
} process_port_t;

struct process_conn {
    vnxi_conn_t base; /* first */
    process_port_t *own;
    process_port_t *target; /* its engine is retained unless it is our own */
    uintptr_t id;
    process_conn_t *next; /* target->conns */
    bool is_listed;       /* directory's lock */
};

/* -- The directory ---------------------------------------------------------
 */

static vnxi_mutex_t lock = VNXI_MUTEX_INIT(VNXI_RANK_DIRECTORY);
static process_port_t *ports; /* protected by lock */

/* The child does not own the parent's agents, and the lock may be held. */
static void
forget_in_child(void)
{
    vnxi_mutex_init(&lock, VNXI_RANK_DIRECTORY);
    ports = NULL;
}

static void
directory_add(process_port_t *port)
{
    vnxi_fork_on_child(forget_in_child);
    vnxi_mutex_lock(&lock);
    port->next = ports;
    ports = port;
    vnxi_mutex_unlock(&lock);
}

static void
directory_remove(process_port_t *port)
{
    vnxi_mutex_lock(&lock);
    for (process_port_t **at = &ports; *at != NULL; at = &(*at)->next) {
        if (*at == port) {
            *at = port->next;
            break;
        }
    }
    vnxi_mutex_unlock(&lock);
}

/* Find the port of an instance and list the conn there; its engine is
 * retained, unless it is the conn's own. */
static process_port_t *
directory_find(const unsigned char *instance, process_conn_t *conn)
{
    vnxi_mutex_lock(&lock);
    process_port_t *port = ports;
    while (port != NULL && memcmp(port->base.config.identity->instance,
                                  instance, VNXI_INSTANCE_SIZE) != 0) {
        port = port->next;
    }
    if (port != NULL && port != conn->own) {
        const vnxi_port_host_t *host = &port->base.config.host;
        host->retain(host->context);
        conn->next = port->conns;
        port->conns = conn;
        conn->is_listed = true;
    }
    vnxi_mutex_unlock(&lock);
    return port;
}

static void
delist(process_conn_t *conn)
{
    vnxi_mutex_lock(&lock);
    if (conn->is_listed) {
        process_conn_t **at = &conn->target->conns;
        while (*at != conn) {
            at = &(*at)->next;
        }
        *at = conn->next;
        conn->is_listed = false;
    }
    vnxi_mutex_unlock(&lock);
}

/* -- Ports -----------------------------------------------------------------
 */

static vnx_status_t
port_open(const vnxi_port_config_t *config, vnxi_port_t **port_p,
          vnx_error_t *error)
{
    process_port_t *port = calloc(1, sizeof *port);

    if (port == NULL) {
        return vnxi_error_no_memory(error, "vnx_agent_create_backend",
                                    sizeof *port);
    }
    port->base.config = *config;
    port->is_open = true;
    vnxi_mutex_init(&port->inbound_lock, VNXI_RANK_PROCESS_INBOUND);
    directory_add(port);
    *port_p = &port->base;
    return VNX_OK;
}

/* Take a conn of another agent off the port's list; *own_p: that agent's
 * port, whose engine is retained. */
static bool
take_conn(process_port_t *port, process_port_t **own_p, uintptr_t *id_p)
{
    vnxi_mutex_lock(&lock);
    process_conn_t *conn = port->conns;
    if (conn != NULL) {
        const vnxi_port_host_t *host = &conn->own->base.config.host;
        port->conns = conn->next;
        conn->is_listed = false;
        *own_p = conn->own;
        *id_p = conn->id;
        host->retain(host->context);
    }
    vnxi_mutex_unlock(&lock);
    return conn != NULL;
}

static void
leave(vnxi_port_t *base)
{
    process_port_t *port = (process_port_t *)base, *other;
    uintptr_t id;

    directory_remove(port);
    vnxi_mutex_lock(&port->inbound_lock);
    port->is_open = false;
    vnxi_mutex_unlock(&port->inbound_lock);
    while (take_conn(port, &other, &id)) {
        const vnxi_port_host_t *host = &other->base.config.host;
        vnxi_mutex_lock(&other->inbound_lock);
        if (other->is_open) {
            host->lost(host->context, base->config.number, id,
                       "the peer was closed");
        }
        vnxi_mutex_unlock(&other->inbound_lock);
        host->release(host->context);
    }
}

static void
port_stop(vnxi_port_t *port)
{
    (void)port; /* leave() has done everything */
}

static void
port_free(vnxi_port_t *base)
{
    process_port_t *port = (process_port_t *)base;

    directory_remove(port); /* unless leave() did */
    vnxi_mutex_destroy(&port->inbound_lock);
    free(port);
}

static const char *
refuses(const vnxi_port_t *port, vnx_mem_t local, vnx_mem_t remote)
{
    (void)port;
    return local == VNX_MEM_DRAM && remote == VNX_MEM_DRAM
               ? NULL
               : "it copies CPU memory only";
}

/* -- Conns -----------------------------------------------------------------
 */

static vnx_status_t
refuse_name(const vnxi_port_t *target, vnx_error_t *error)
{
    return vnxi_error_set(error, VNX_ERR_MISMATCH, OPERATION,
                          "this instance id belongs to the agent '%.100s' of "
                          "this process: the metadata is forged",
                          (const char *)target->config.name);
}

static void
conn_free(vnxi_conn_t *base)
{
    process_conn_t *conn = (process_conn_t *)base;
    const vnxi_port_host_t *host = &conn->target->base.config.host;

    delist(conn);
    if (conn->target != conn->own) {
        host->release(host->context);
    }
    free(conn);
}

static vnx_status_t
conn_create(vnxi_port_t *port, const vnxi_conn_args_t *args,
            vnxi_conn_t **conn_p, vnx_error_t *error)
{
    *conn_p = NULL;
    if (args->identity == NULL) {
        return VNX_OK;
    }
    process_conn_t *conn = calloc(1, sizeof *conn);
    if (conn == NULL) {
        return vnxi_error_no_memory(error, OPERATION, sizeof *conn);
    }
    conn->own = (process_port_t *)port;
    conn->id = args->id;
    conn->target = directory_find(args->identity->instance, conn);
    if (conn->target == NULL) {
        free(conn);
        return VNX_OK;
    }
    const vnxi_port_config_t *target = &conn->target->base.config;
    if (args->name_len != target->name_len ||
        memcmp(args->name, target->name, args->name_len) != 0) {
        vnx_status_t status = refuse_name(&conn->target->base, error);
        conn_free(&conn->base);
        return status;
    }
    *conn_p = &conn->base;
    return VNX_OK;
}

static vnx_status_t
conn_start(vnxi_conn_t *conn, vnxi_refusal_t *refusal_p, vnx_error_t *error)
{
    (void)conn, (void)refusal_p, (void)error;
    return VNX_OK;
}

static void
conn_close(vnxi_conn_t *conn)
{
    delist((process_conn_t *)conn);
}

static uint32_t
find_pid(vnxi_conn_t *conn, bool is_checked)
{
    (void)conn, (void)is_checked; /* the engine knows of its end at once */
    return (uint32_t)getpid();
}

static vnx_status_t
send_notif(vnxi_conn_t *base, const void *message, size_t len,
           vnx_error_t *error)
{
    process_conn_t *conn = (process_conn_t *)base;
    const vnxi_port_config_t *own = &conn->own->base.config;
    const vnxi_port_host_t *host = &conn->target->base.config.host;

    vnxi_mutex_lock(&conn->target->inbound_lock);
    bool is_open = conn->target->is_open;
    if (is_open) {
        host->notif(host->context, own->name, own->name_len, message, len);
    }
    vnxi_mutex_unlock(&conn->target->inbound_lock);
    return is_open ? VNX_OK
                   : vnxi_error_set(error, VNX_ERR_REMOTE_DISCONNECT,
                                    "vnx_agent_send_notif",
                                    "the agent was closed");
}

static vnxi_region_table_t *
borrow(vnxi_conn_t *conn)
{
    const vnxi_port_config_t *target =
        &((process_conn_t *)conn)->target->base.config;

    target->host.update(target->host.context);
    return vnxi_registry_snapshot(target->registry, NULL);
}

/* -- Regions ---------------------------------------------------------------
 */

/* Nothing needs to be kept about memory of this process: any pointer will do
 * as a slot. */
static vnx_status_t
attach(vnxi_port_t *port, const vnxi_region_t *region, void **slot_p,
       vnx_error_t *error)
{
    (void)error;
    *slot_p = region->mem == VNX_MEM_DRAM ? port : NULL;
    return VNX_OK;
}

/* -- Transfers -------------------------------------------------------------
 */

static vnx_status_t
copy_chunk(vnxi_conn_t *conn, const vnxi_plan_t *plan, size_t chunk,
           vnx_op_t op, const atomic_bool *stop, vnx_error_t *error)
{
    (void)conn, (void)stop, (void)error; /* a chunk takes no time */
    vnxi_copy_chunk(plan, chunk, op);
    return VNX_OK;
}

extern const vnxi_transport_t vnxi_process_transport;

const vnxi_transport_t vnxi_process_transport = {
    .name = "process",
    .opens_first = true,
    .scope = VNXI_SCOPE_PROCESS,
    .why = "an agent of this process: copied within the process",
    .not_offered = "the peer is not an agent of this process",
    .port_open = port_open,
    .leave = leave,
    .port_stop = port_stop,
    .port_free = port_free,
    .refuses = refuses,
    .conn_create = conn_create,
    .conn_start = conn_start,
    .conn_close = conn_close,
    .conn_free = conn_free,
    .find_pid = find_pid,
    .send_notif = send_notif,
    .borrow = borrow,
    .attach = attach,
    .copy_chunk = copy_chunk,
};
