/*
 * SHM as a transport: agents of other processes on this host.  The kernel
 * copies the bytes (vm.h), except those of shared mappings (mapping.h), which
 * are mapped here and copied by the process transport.  Links (hub.h) carry
 * notifications, confirmations and the end of a peer.
 */
#include "engine/native/shm/shm.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/json.h"
#include "base/log.h"
#include "engine/native/shm/proc.h"
#include "engine/native/shm/vm.h"

#define OPERATION "vnx_agent_load_metadata"

/* -- Ports -----------------------------------------------------------------
 */

static void
on_ended(void *context, vnxi_link_t *link, const char *cause)
{
    const vnxi_port_t *port = context;
    const vnxi_port_host_t *host = &port->config.host;
    host->lost(host->context, port->config.number,
               (uintptr_t)vnxi_link_cookie(link), cause);
}

static void
on_closing(void *context, vnxi_link_t *link)
{
    on_ended(context, link, "the peer closes its agent");
}

static void
on_alarm(void *context)
{
    const vnxi_port_host_t *host = &((vnxi_port_t *)context)->config.host;
    host->changed(host->context);
}

static void
on_question(void *context, const void *entry, size_t entry_len,
            uint64_t link_id, const vnxi_control_t *control)
{
    const vnxi_port_host_t *host = &((vnxi_port_t *)context)->config.host;
    host->question(host->context, entry, entry_len, link_id, control);
}

static void
on_answered(void *context, const void *entry, size_t entry_len,
            vnxi_link_t *link, const vnxi_control_t *control)
{
    const vnxi_port_host_t *host = &((vnxi_port_t *)context)->config.host;
    host->answered(host->context, entry, entry_len,
                   (uintptr_t)vnxi_link_cookie(link), control);
}

static void
on_asker_gone(void *context, uint64_t link_id)
{
    const vnxi_port_host_t *host = &((vnxi_port_t *)context)->config.host;
    host->asker_gone(host->context, link_id);
}

static vnx_status_t
open_hub(vnxi_shm_port_t *port, vnx_error_t *error)
{
    const vnxi_port_config_t *config = &port->base.config;
    const vnxi_hub_config_t hub = {
        .name = config->name,
        .name_len = config->name_len,
        .instance = config->identity->instance,
        .local = &port->info,
        .callbacks = {.context = port,
                      .notif = vnxi_port_notif,
                      .revoked = vnxi_confirm_on_revoked,
                      .settle = vnxi_confirm_on_settle,
                      .closing = on_closing,
                      .ended = on_ended,
                      .confirm = vnxi_confirm_on_question,
                      .confirmed = vnxi_confirm_on_answer,
                      .question = on_question,
                      .answered = on_answered,
                      .asker_gone = on_asker_gone,
                      .alarm = on_alarm},
    };

    vnx_status_t status = vnxi_shm_info_local(&port->info, error);
    if (status != VNX_OK) {
        return status;
    }
    memcpy(port->nonce, config->identity->instance, sizeof port->nonce);
    port->info.nonce_addr = (uint64_t)(uintptr_t)port->nonce;
    return vnxi_hub_create(&hub, port->info.socket, &port->hub, error);
}

static vnx_status_t
port_open(const vnxi_port_config_t *config, vnxi_port_t **port_p,
          vnx_error_t *error)
{
    vnxi_shm_port_t *port = calloc(1, sizeof *port);

    if (port == NULL) {
        return vnxi_error_no_memory(error, "vnx_agent_create_backend",
                                    sizeof *port);
    }
    port->base.config = *config;
    vnx_status_t status = open_hub(port, error);
    if (status != VNX_OK) {
        free(port);
        return status;
    }
    *port_p = &port->base;
    return VNX_OK;
}

/* A process that reads the nonce from now on sees that the agent is closed. */
static void
leave(vnxi_port_t *base)
{
    vnxi_shm_port_t *port = (vnxi_shm_port_t *)base;
    explicit_bzero(port->nonce, sizeof port->nonce);
}

static void
settle(const vnxi_port_t *port, bool closes)
{
    if (!vnxi_hub_settle(((const vnxi_shm_port_t *)port)->hub, closes)) {
        vnxi_log(VNX_LOG_WARNING, port->config.name,
                 "a peer has not said within 2 s that it does not use memory "
                 "any more that was deregistered here: its process was "
                 "stopped, or has no CPU time");
    }
}

static void
port_stop(vnxi_port_t *port)
{
    settle(port, true);
    vnxi_hub_stop(((vnxi_shm_port_t *)port)->hub);
}

static void
port_free(vnxi_port_t *port)
{
    vnxi_hub_free(((vnxi_shm_port_t *)port)->hub);
    free(port);
}

static void
poll_port(vnxi_port_t *port)
{
    vnxi_hub_poll(((vnxi_shm_port_t *)port)->hub);
}

static void
set_alarm(vnxi_port_t *port, uint64_t when)
{
    vnxi_hub_alarm(((vnxi_shm_port_t *)port)->hub, when);
}

static void
write_info(vnxi_port_t *port, vnxi_writer_t *writer)
{
    vnxi_shm_info_write(writer, &((vnxi_shm_port_t *)port)->info);
}

static void
describe_port(vnxi_port_t *port, vnxi_writer_t *out)
{
    vnxi_json_number(out, "accepted_links",
                     vnxi_hub_accepted(((vnxi_shm_port_t *)port)->hub));
}

static const char *
refuses(const vnxi_port_t *port, vnx_mem_t local, vnx_mem_t remote)
{
    (void)port;
    return local == VNX_MEM_DRAM && remote == VNX_MEM_DRAM
               ? NULL
               : "it moves CPU memory only";
}

/* -- Conns -----------------------------------------------------------------
 */

static bool
is_this_host(const vnxi_shm_conn_t *conn)
{
    return memcmp(conn->info.boot, conn->port->info.boot,
                  sizeof conn->info.boot) == 0;
}

static bool
is_visible(const vnxi_shm_conn_t *conn)
{
    return is_this_host(conn) &&
           conn->info.pid_namespace == conn->port->info.pid_namespace;
}

static bool
is_this_process(const vnxi_shm_conn_t *conn)
{
    return is_visible(conn) && conn->info.pid == conn->port->info.pid;
}

static void
conn_free(vnxi_conn_t *base)
{
    vnxi_shm_conn_t *conn = (vnxi_shm_conn_t *)base;

    vnxi_link_release(conn->link);
    vnxi_region_table_release(conn->table);
    vnxi_confirm_fini(&conn->confirm);
    vnxi_mutex_destroy(&conn->lock);
    free(conn);
}

/* Metadata of an agent in this process needs no link, but it must not
 * contradict itself. */
static vnx_status_t
check_here(const vnxi_shm_conn_t *conn, vnx_error_t *error)
{
    return is_this_process(conn)
               ? VNX_OK
               : vnxi_error_set(error, VNX_ERR_BACKEND, OPERATION,
                                "the agent is in this process, but the "
                                "metadata names another host or process");
}

static vnx_status_t
conn_create(vnxi_port_t *port, const vnxi_conn_args_t *args,
            vnxi_conn_t **conn_p, vnx_error_t *error)
{
    *conn_p = NULL;
    if (args->info.data == NULL || args->is_self) {
        return VNX_OK;
    }
    if (args->identity == NULL) {
        return vnxi_error_set(error, VNX_ERR_MISMATCH, OPERATION,
                              "SHM connection info without the identity (VNX) "
                              "of the agent");
    }
    vnxi_shm_conn_t *conn = calloc(1, sizeof *conn);
    if (conn == NULL) {
        return vnxi_error_no_memory(error, OPERATION, sizeof *conn);
    }
    vnxi_mutex_init(&conn->lock, VNXI_RANK_SHM_CONN);
    conn->port = (vnxi_shm_port_t *)port;
    conn->name = args->name;
    conn->name_len = args->name_len;
    conn->id = args->id;
    conn->stop = args->stop;
    vnx_status_t status = vnxi_shm_info_read(args->info.data, args->info.len,
                                             &conn->info, error);
    memcpy(conn->info.instance, args->identity->instance,
           sizeof conn->info.instance);
    if (status == VNX_OK && args->is_here) {
        status = check_here(conn, error);
    }
    if (status != VNX_OK || args->is_here) {
        conn_free(&conn->base);
        return status;
    }
    *conn_p = &conn->base;
    return VNX_OK;
}

/* The peer's process is visible from here and has ended, so no other transport
 * can reach it. */
static bool
is_dead_here(const vnxi_shm_conn_t *conn)
{
    return is_visible(conn) && kill((pid_t)conn->info.pid, 0) != 0 &&
           errno == ESRCH;
}

static vnxi_refusal_t
refusal_of(const vnxi_shm_conn_t *conn, vnx_status_t status)
{
    if ((status != VNX_ERR_BACKEND && status != VNX_ERR_NOT_ALLOWED) ||
        is_dead_here(conn)) {
        return VNXI_REFUSAL_FINAL;
    }
    return is_this_host(conn) ? VNXI_REFUSAL_HERE : VNXI_REFUSAL_ELSEWHERE;
}

static vnx_status_t
conn_start(vnxi_conn_t *base, vnxi_refusal_t *refusal_p, vnx_error_t *error)
{
    vnxi_shm_conn_t *conn = (vnxi_shm_conn_t *)base;
    const vnxi_link_target_t target = {.info = &conn->info,
                                       .name = conn->name,
                                       .name_len = conn->name_len,
                                       .stop = conn->stop,
                                       .cookie = (void *)conn->id};

    if (is_this_process(conn)) {
        *refusal_p = VNXI_REFUSAL_FINAL;
        return vnxi_error_set(
            error, VNX_ERR_MISMATCH, OPERATION,
            "it names this process, which has no agent with that instance "
            "id: the agent was closed, or the metadata is forged");
    }
    vnx_status_t status =
        vnxi_link_open(conn->port->hub, &target, &conn->link, error);
    if (status != VNX_OK) {
        *refusal_p = refusal_of(conn, status);
    }
    return status;
}

static void
conn_close(vnxi_conn_t *base)
{
    vnxi_link_t *link = ((vnxi_shm_conn_t *)base)->link;
    if (link != NULL) {
        vnxi_link_drain(link);
        vnxi_link_close(link);
    }
}

static bool
is_running(vnxi_shm_conn_t *conn)
{
    const vnxi_shm_info_t *info = &conn->info;
    unsigned char nonce[VNXI_SHM_ID_SIZE];
    vnxi_proc_stat_t stat;

    if (!is_visible(conn) || vnxi_proc_stat((pid_t)info->pid, &stat) != 0 ||
        stat.exiting || stat.start_time != info->start_time) {
        return false;
    }
    if (conn->link != NULL) {
        return vnxi_link_is_up(conn->link);
    }
    return vnxi_vm_peek((pid_t)info->pid, info->nonce_addr, nonce,
                        sizeof nonce) == 0 &&
           memcmp(nonce, info->instance, sizeof nonce) == 0;
}

static uint32_t
find_pid(vnxi_conn_t *base, bool is_checked)
{
    vnxi_shm_conn_t *conn = (vnxi_shm_conn_t *)base;
    return !is_checked || is_running(conn) ? conn->info.pid : 0;
}

static vnx_status_t
send_notif(vnxi_conn_t *conn, const void *message, size_t len,
           vnx_error_t *error)
{
    return vnxi_link_send_notif(((vnxi_shm_conn_t *)conn)->link, message, len,
                                error);
}

static void
describe_conn(vnxi_conn_t *base, bool is_main, vnxi_writer_t *out)
{
    vnxi_shm_conn_t *conn = (vnxi_shm_conn_t *)base;
    char no_map[sizeof conn->no_map];

    (void)is_main;
    vnxi_mutex_lock(&conn->lock);
    memcpy(no_map, conn->no_map, sizeof no_map);
    vnxi_mutex_unlock(&conn->lock);
    if (no_map[0] != '\0') {
        vnxi_json_member(out, "not_mapped_because", no_map);
    }
}

static void
catch_up(vnxi_conn_t *base)
{
    const vnxi_shm_conn_t *conn = (vnxi_shm_conn_t *)base;
    vnxi_hub_catch_up(((vnxi_shm_port_t *)base->port)->hub, conn->link);
}

static void
new_table(vnxi_conn_t *base, vnxi_region_table_t *table, uint64_t epoch)
{
    vnxi_shm_conn_t *conn = (vnxi_shm_conn_t *)base;

    vnxi_mutex_lock(&conn->lock);
    vnxi_region_table_release(conn->table);
    conn->table = vnxi_region_table_retain(table);
    conn->epoch = epoch;
    conn->confirm.again =
        conn->confirm.is_open; /* it asks about the old one */
    vnxi_mutex_unlock(&conn->lock);
    vnxi_confirm_ask(conn);
}

/* -- For other transports --------------------------------------------------
 */

static vnx_status_t
carry_question(vnxi_conn_t *conn, const char *entry,
               const vnxi_control_t *control, vnx_error_t *error)
{
    return vnxi_link_send_control(((vnxi_shm_conn_t *)conn)->link, entry,
                                  control, error);
}

static vnx_status_t
carry_answer(vnxi_port_t *port, uint64_t asker, const char *entry,
             const vnxi_control_t *control, vnx_error_t *error)
{
    return vnxi_hub_send_control(((vnxi_shm_port_t *)port)->hub, asker, entry,
                                 control, error);
}

static vnxi_vm_target_t
target_of(const vnxi_shm_conn_t *conn)
{
    return (vnxi_vm_target_t){
        .pid = (pid_t)conn->info.pid,
        .pidfd = vnxi_link_pidfd(conn->link),
        .route = conn->base.port->config.number,
        .operation = "vnx_xfer_post",
    };
}

static vnx_status_t
copy_rows(vnxi_conn_t *conn, const vnxi_copy_row_t *rows, size_t count,
          vnx_op_t op, vnx_error_t *error)
{
    const vnxi_vm_target_t target = target_of((vnxi_shm_conn_t *)conn);
    return vnxi_vm_rows(&target, rows, count, op, error);
}

/* -- Our regions -----------------------------------------------------------
 */

/* The slot of all regions that cannot be mapped. */
static vnxi_shm_slot_t unshared = {.map_info = {.fd = -1}};

static vnxi_shm_slot_t *
slot_create(const vnxi_map_info_t *map_info)
{
    vnxi_shm_slot_t *slot = malloc(sizeof *slot);
    if (slot != NULL) {
        *slot = (vnxi_shm_slot_t){.map_info = *map_info};
    }
    return slot;
}

static vnx_status_t
attach(vnxi_port_t *port, const vnxi_region_t *region, void **slot_p,
       vnx_error_t *error)
{
    (void)port;
    *slot_p = NULL;
    if (region->mem != VNX_MEM_DRAM) {
        return VNX_OK;
    }
    vnxi_map_info_t map_info = vnxi_map_info_find(region->addr, region->len);
    *slot_p = map_info.fd < 0 ? &unshared : slot_create(&map_info);
    if (*slot_p == NULL) {
        vnxi_map_info_fini(&map_info);
        return vnxi_error_no_memory(error, "vnx_agent_register",
                                    sizeof(vnxi_shm_slot_t));
    }
    return VNX_OK;
}

static void
revoked(vnxi_port_t *port, const vnxi_region_t *region, uint64_t epoch)
{
    const vnx_desc_t desc = {region->addr, region->len, region->dev};
    vnxi_hub_revoke(((vnxi_shm_port_t *)port)->hub, epoch, region->mem, &desc,
                    1);
}

static void
settle_peers(vnxi_port_t *port)
{
    settle(port, false);
}

static void
slot_free(void *context)
{
    vnxi_shm_slot_t *slot = context;
    if (slot != &unshared) {
        vnxi_mapping_release(slot->mapping);
        vnxi_map_info_fini(&slot->map_info);
        free(slot);
    }
}

static void
write_region(const void *slot, vnxi_writer_t *writer)
{
    vnxi_shm_region_write(writer, &((const vnxi_shm_slot_t *)slot)->map_info);
}

/* -- A peer's regions ------------------------------------------------------
 */

/* The region is mapped if possible.  Otherwise the kernel copies, and
 * describe() says why.  Nothing touches the mapping before the owner has
 * confirmed it. */
static void
map(vnxi_shm_conn_t *conn, vnxi_shm_slot_t *slot, uint64_t len)
{
    vnx_error_t error;

    if (vnxi_mapping_create(vnxi_link_pidfd(conn->link), &slot->map_info, len,
                            &slot->mapping, &error) != VNX_OK) {
        vnxi_mutex_lock(&conn->lock);
        memcpy(conn->no_map, error.cause, sizeof conn->no_map);
        vnxi_mutex_unlock(&conn->lock);
    }
}

static vnx_status_t
key_create(vnxi_conn_t *base, const vnxi_region_t *region,
           vnxi_md_bytes_t data, void **slot_p, vnx_error_t *error)
{
    vnxi_map_info_t map_info;
    vnx_status_t status =
        vnxi_shm_region_read(data.data, data.len, &map_info, error);

    if (status != VNX_OK) {
        return status;
    }
    if (map_info.fd < 0) {
        *slot_p = &unshared;
        return VNX_OK;
    }
    vnxi_shm_slot_t *slot = slot_create(&map_info);
    if (slot == NULL) {
        return vnxi_error_no_memory(error, OPERATION, sizeof *slot);
    }
    map((vnxi_shm_conn_t *)base, slot, region->len);
    slot->map_info.fd = -1; /* a descriptor of the peer's process: not ours to
                               close */
    *slot_p = slot;
    return VNX_OK;
}

/* The same memory, shared in the same way. */
static bool
key_is(const void *slot, vnxi_md_bytes_t data)
{
    const vnxi_map_info_t *known = &((const vnxi_shm_slot_t *)slot)->map_info;
    vnxi_map_info_t map_info;

    if (vnxi_shm_region_read(data.data, data.len, &map_info, NULL) != VNX_OK) {
        return false;
    }
    return map_info.fd < 0 ? known->st_ino == 0
                           : known->offset == map_info.offset &&
                                 known->st_dev == map_info.st_dev &&
                                 known->st_ino == map_info.st_ino;
}

static void *
mapped_at(const void *slot)
{
    const vnxi_mapping_t *mapping = ((const vnxi_shm_slot_t *)slot)->mapping;
    return mapping != NULL ? vnxi_mapping_data(mapping) : NULL;
}

/* -- Transfers -------------------------------------------------------------
 */

static vnx_status_t
copy_chunk(vnxi_conn_t *base, const vnxi_plan_t *plan, size_t chunk,
           vnx_op_t op, const atomic_bool *stop, vnx_error_t *error)
{
    vnxi_vm_target_t target = target_of((vnxi_shm_conn_t *)base);

    target.stop = stop;
    return vnxi_vm_chunk(&target, plan, chunk, op, error);
}

extern const vnxi_transport_t vnxi_shm_transport;

const vnxi_transport_t vnxi_shm_transport = {
    .name = "SHM",
    .backend = "SHM",
    .entry = "SHM",
    .opens_first = true,
    .scope = VNXI_SCOPE_HOST,
    .confirms = true,
    .why = "the same host: the kernel copies between the processes, and "
           "shared mappings are copied directly",
    .not_offered = "the peer is not a vllm_nixl agent",
    .port_open = port_open,
    .leave = leave,
    .port_stop = port_stop,
    .port_free = port_free,
    .poll = poll_port,
    .set_alarm = set_alarm,
    .write_info = write_info,
    .describe_port = describe_port,
    .refuses = refuses,
    .conn_create = conn_create,
    .conn_start = conn_start,
    .conn_close = conn_close,
    .conn_free = conn_free,
    .find_pid = find_pid,
    .send_notif = send_notif,
    .describe_conn = describe_conn,
    .catch_up = catch_up,
    .new_table = new_table,
    .carry_question = carry_question,
    .carry_answer = carry_answer,
    .copy_rows = copy_rows,
    .attach = attach,
    .revoked = revoked,
    .settle_peers = settle_peers,
    .slot_free = slot_free,
    .write_region = write_region,
    .key_create = key_create,
    .key_is = key_is,
    .mapped_at = mapped_at,
    .key_free = slot_free,
    .copy_chunk = copy_chunk,
};
