/*
 * GPU memory as a transport: within this process, between GPU and CPU memory,
 * and with agents of other processes of this host.  The work is done by
 * worker.h; lend.h and move.h give other processes access to our memory,
 * import.h and window.h get access to theirs; here are ports, conns and slots.
 *
 * Design notes.  A program with GPU memory has loaded and initialised libcuda;
 * this transport never does, so an agent without GPU memory costs nothing.
 * The port opens in every agent: GPU memory may come later.
 *
 * A region of GPU memory is one or more allocations, which the driver knows.
 * Each is checked when the region is registered, because a copy from memory
 * that is not there destroys the program's context.
 *
 * Metadata says of a region whether other processes can map all of it,
 * otherwise we copy it for them (move.h).  It has nothing that leads to the
 * memory: the owner hands the handles out to those who have connected to it.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/fork_fds.h"
#include "base/json.h"
#include "engine/native/cuda/context.h"
#include "engine/native/cuda/lend.h"
#include "engine/native/cuda/move.h"
#include "engine/native/cuda/worker.h"
#include "engine/native/region_access.h"

#define REGISTER "vnx_agent_register"
#define LOAD "vnx_agent_load_metadata"
#define MAKE "vnx_xfer_create"
#define CLOSE_NS (2u * UINT64_C(1000000000)) /* that closing a conn waits */
#define VERSION_MAJOR 1
#define VERSION_MINOR 0
#define FLAG_LENT 1u  /* of a region: other processes can map it */
#define FLAG_MOVED 2u /* the owner copies it for those that cannot */

/* -- Ports -----------------------------------------------------------------
 */

typedef struct cuda_port {
    vnxi_port_t base; /* first */
    vnxi_cuda_lender_t lender;
    vnxi_cuda_mover_t mover;
} cuda_port_t;

static vnxi_cuda_lender_t *
lender_of(vnxi_port_t *port)
{
    return &((cuda_port_t *)port)->lender;
}

static vnxi_cuda_mover_t *
mover_of(vnxi_port_t *port)
{
    return &((cuda_port_t *)port)->mover;
}

static vnx_status_t
port_open(const vnxi_port_config_t *config, vnxi_port_t **port_p,
          vnx_error_t *error)
{
    cuda_port_t *port = calloc(1, sizeof *port);

    if (port == NULL) {
        return vnxi_error_no_memory(error, "vnx_agent_create_backend",
                                    sizeof *port);
    }
    port->base.config = *config;
    vnxi_cuda_lender_init(&port->lender, &port->base);
    vnxi_cuda_mover_init(&port->mover, &port->base);
    *port_p = &port->base;
    return VNX_OK;
}

static void
leave(vnxi_port_t *port)
{
    vnxi_cuda_lender_recall(lender_of(port), NULL);
    vnxi_cuda_mover_leave(mover_of(port));
}

static void
settle(vnxi_port_t *port)
{
    vnxi_cuda_workers_settle(); /* transfers of other agents may use our
                                   memory, too */
    vnxi_cuda_lender_settle(lender_of(port));
    vnxi_cuda_mover_settle(mover_of(port));
}

static void
port_stop(vnxi_port_t *port)
{
    (void)port; /* it has neither threads nor connections */
}

static void
port_free(vnxi_port_t *port)
{
    vnxi_cuda_lender_fini(lender_of(port));
    vnxi_cuda_mover_fini(mover_of(port));
    free(port);
}

/* Nothing, and so no entry, unless the program uses CUDA. */
static void
write_info(vnxi_port_t *port, vnxi_writer_t *writer)
{
    (void)port;
    if (vnxi_cuda_library(VNXI_CUDA_IF_USED, NULL) != NULL) {
        vnxi_write_u8(writer, VERSION_MAJOR);
        vnxi_write_u8(writer, VERSION_MINOR);
    }
}

static void
describe_port(vnxi_port_t *port, vnxi_writer_t *out)
{
    const vnxi_cuda_library_t *library =
        vnxi_cuda_library(VNXI_CUDA_IF_USED, NULL);

    if (library == NULL) {
        return;
    }
    vnxi_json_member(out, "cuda", library->path);
    vnxi_json_number(out, "cuda_driver", (uint64_t)library->driver);
    vnxi_json_number(out, "cuda_regions_lent",
                     vnxi_cuda_lender_count(lender_of(port)));
    vnxi_json_key(out, "gpus");
    vnxi_cuda_workers_describe(out);
}

static bool
is_memory(vnx_mem_t mem)
{
    return mem == VNX_MEM_DRAM || mem == VNX_MEM_VRAM;
}

static const char *
refuses(const vnxi_port_t *port, vnx_mem_t local, vnx_mem_t remote)
{
    const char *why;

    (void)port;
    if (!is_memory(local) || !is_memory(remote)) {
        return "it moves CPU and GPU memory only";
    }
    if (local == VNX_MEM_DRAM) {
        /* The peer can do all that needs CUDA. */
        return remote == VNX_MEM_VRAM ? NULL : "one side must be GPU memory";
    }
    return vnxi_cuda_library(VNXI_CUDA_IF_USED, &why) != NULL ? NULL : why;
}

/* -- Conns -----------------------------------------------------------------
 */

typedef struct cuda_conn {
    vnxi_conn_t base; /* first */
    const vnxi_port_t *port;
    uintptr_t id;
} cuda_conn_t;

/* An agent of this process needs no conn of its own: its regions are borrowed.
 * Others are reached over the main conn. */
static vnx_status_t
conn_create(vnxi_port_t *port, const vnxi_conn_args_t *args,
            vnxi_conn_t **conn_p, vnx_error_t *error)
{
    *conn_p = NULL;
    if (args->identity == NULL && !args->is_self) {
        return VNX_OK; /* not an agent of vllm_nixl */
    }
    cuda_conn_t *conn = calloc(1, sizeof *conn);
    if (conn == NULL) {
        return vnxi_error_no_memory(error, LOAD, sizeof *conn);
    }
    conn->port = port;
    conn->id = args->id;
    *conn_p = &conn->base;
    return VNX_OK;
}

/* The peer may free its memory as soon as the main conn is closed. */
static void
conn_close(vnxi_conn_t *base)
{
    const cuda_conn_t *conn = (cuda_conn_t *)base;
    uint64_t deadline = vnxi_clock_deadline(CLOSE_NS);

    vnxi_cuda_imports_drop(conn->port, conn->id);
    vnxi_cuda_windows_drop(conn->port, conn->id, false);
    vnxi_cuda_imports_settle(conn->port, conn->id, deadline);
    vnxi_cuda_windows_settle(conn->port, conn->id, deadline);
}

static void
peer_gone(vnxi_conn_t *base, const char *cause)
{
    const cuda_conn_t *conn = (cuda_conn_t *)base;

    (void)cause;
    vnxi_cuda_imports_drop(conn->port, conn->id);
    vnxi_cuda_windows_drop(conn->port, conn->id, true);
}

static void
conn_free(vnxi_conn_t *conn)
{
    free(conn);
}

/* Messages of later versions are ignored.  Askers have no reason to send
 * descriptors. */
static void
on_question(vnxi_port_t *port, uint64_t asker, const vnxi_control_t *control)
{
    vnxi_lend_t message;

    vnxi_fork_fds_close(control->fds, control->fd_count);
    if (vnxi_lend_read(control->data, control->len, &message)) {
        vnxi_cuda_lender_on_question(lender_of(port), asker, &message);
        vnxi_cuda_mover_on_question(mover_of(port), asker, &message);
    }
}

static void
on_answer(vnxi_conn_t *base, const vnxi_control_t *control)
{
    const cuda_conn_t *conn = (cuda_conn_t *)base;
    vnxi_lend_t message;

    if (!vnxi_lend_read(control->data, control->len, &message) ||
        (!vnxi_cuda_imports_on_answer(conn->port, conn->id, &message,
                                      control) &&
         !vnxi_cuda_windows_on_answer(conn->port, conn->id, &message,
                                      control))) {
        vnxi_fork_fds_close(control->fds, control->fd_count);
    }
}

static void
describe_conn(vnxi_conn_t *base, bool is_main, vnxi_writer_t *out)
{
    const cuda_conn_t *conn = (cuda_conn_t *)base;

    (void)is_main;
    size_t mapped = vnxi_cuda_imports_count(conn->port, conn->id);
    if (mapped > 0) {
        vnxi_json_number(out, "cuda_regions_mapped", mapped);
    }
    vnxi_cuda_windows_describe(conn->port, conn->id, out);
}

static void
on_asker_gone(vnxi_port_t *port, uint64_t asker)
{
    vnxi_cuda_lender_forget(lender_of(port), asker);
    vnxi_cuda_mover_forget(mover_of(port), asker);
}

/* -- Our regions -----------------------------------------------------------
 */

/* What the driver knows about an address. */
typedef struct facts {
    uint64_t context, type, is_managed, ordinal, is_legacy, handle_types, pool;
    uint64_t is_mapped;
} facts_t;

static vnx_status_t
region_error(const vnxi_region_t *region, uint64_t address, const char *cause,
             vnx_error_t *error)
{
    vnxi_error_set(error, VNX_ERR_INVALID_PARAM, REGISTER, "%s", cause);
    if (address != region->addr) {
        vnxi_error_add(error, " at 0x%" PRIx64, address);
    }
    return VNX_ERR_INVALID_PARAM;
}

/* Get the facts of the allocation at `address`, which must be GPU memory. */
static vnx_status_t
find_facts(const vnxi_cuda_library_t *library, const vnxi_region_t *region,
           uint64_t address, facts_t *facts_p, vnx_error_t *error)
{
    vnxi_cu_enum_t attributes[] = {
        VNXI_CU_POINTER_ATTRIBUTE_CONTEXT,
        VNXI_CU_POINTER_ATTRIBUTE_MEMORY_TYPE,
        VNXI_CU_POINTER_ATTRIBUTE_IS_MANAGED,
        VNXI_CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL,
        VNXI_CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE,
        VNXI_CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES,
        VNXI_CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE,
        VNXI_CU_POINTER_ATTRIBUTE_MAPPED,
    };
    facts_t facts = {0};
    void *places[] = {&facts.context, &facts.type,      &facts.is_managed,
                      &facts.ordinal, &facts.is_legacy, &facts.handle_types,
                      &facts.pool,    &facts.is_mapped};

    vnxi_cu_result_t result = library->cu.cuPointerGetAttributes(
        sizeof attributes / sizeof attributes[0], attributes, places, address);
    if (result != VNXI_CUDA_SUCCESS) {
        return vnxi_cuda_error(library, REGISTER, (int)region->dev,
                               "cuPointerGetAttributes", result, error);
    }
    if (facts.is_managed == 0 && facts.type == VNXI_CU_MEMORYTYPE_HOST) {
        return region_error(region, address,
                            "this is CPU memory: register it as DRAM", error);
    }
    if (facts.is_managed == 0 && facts.type != VNXI_CU_MEMORYTYPE_DEVICE) {
        return region_error(region, address,
                            "CUDA has no GPU memory at this address", error);
    }
    *facts_p = facts;
    return VNX_OK;
}

static void
note_facts(vnxi_cuda_mem_t *mem, const facts_t *facts)
{
    mem->is_legacy = mem->is_legacy && facts->is_legacy != 0;
    mem->is_managed = mem->is_managed && facts->is_managed != 0;
    mem->is_mapped = mem->is_mapped && facts->is_mapped != 0;
    mem->is_lent = mem->is_lent && facts->is_managed == 0 &&
                   facts->pool == 0 &&
                   vnxi_cuda_can_lend(facts->is_legacy, facts->handle_types);
}

/* Check the allocations of a region, of which the first is known. */
static vnx_status_t
check_allocations(const vnxi_cuda_library_t *library,
                  const vnxi_region_t *region, const facts_t *first,
                  vnxi_cuda_mem_t *mem, vnx_error_t *error)
{
    uint64_t end = region->addr + region->len, at = region->addr;
    vnx_status_t status = VNX_OK;
    facts_t facts = *first;

    do {
        note_facts(mem, &facts);
        if (facts.ordinal != first->ordinal) {
            return region_error(region, at,
                                "the region has memory of another GPU", error);
        }
        vnxi_cu_result_t result = vnxi_cuda_find_end(library, at, &at);
        if (result != VNXI_CUDA_SUCCESS) {
            return vnxi_cuda_error(library, REGISTER, (int)first->ordinal,
                                   "cuMemGetAddressRange_v2", result, error);
        }
        if (at < end) {
            status = find_facts(library, region, at, &facts, error);
        }
    } while (status == VNX_OK && at < end);
    return status;
}

/* The context of the region is made current for the check. */
static vnx_status_t
check_region(const vnxi_cuda_library_t *library, const vnxi_region_t *region,
             const facts_t *first, vnxi_cuda_mem_t *mem, vnx_error_t *error)
{
    const vnxi_cu_functions_t *cu = &library->cu;

    vnxi_cu_result_t result = cu->cuCtxPushCurrent_v2(mem->gpu->context);
    if (result != VNXI_CUDA_SUCCESS) {
        return vnxi_cuda_error(library, REGISTER, (int)first->ordinal,
                               "cuCtxPushCurrent_v2", result, error);
    }
    mem->is_legacy = mem->is_managed = mem->is_mapped = true;
    mem->is_lent = cu->cuDeviceGetUuid_v2(&mem->uuid, mem->gpu->device) ==
                   VNXI_CUDA_SUCCESS;
    vnx_status_t status =
        check_allocations(library, region, first, mem, error);
    cu->cuCtxPopCurrent_v2(NULL);
    return status;
}

static vnx_status_t
attach_on(const vnxi_cuda_library_t *library, const vnxi_region_t *region,
          vnxi_cuda_mem_t *mem, vnx_error_t *error)
{
    facts_t facts;

    vnx_status_t status =
        find_facts(library, region, region->addr, &facts, error);
    if (status == VNX_OK) {
        status = vnxi_cuda_worker_get(
            library, (vnxi_cu_context_t)(uintptr_t)facts.context,
            (int)facts.ordinal, &mem->worker, error);
    }
    if (status != VNX_OK) {
        return status;
    }
    mem->gpu = vnxi_cuda_worker_gpu(mem->worker);
    status = check_region(library, region, &facts, mem, error);
    if (status != VNX_OK) {
        vnxi_cuda_worker_leave(mem->worker);
        vnxi_cuda_worker_release(mem->worker);
    }
    return status;
}

/* The slot of all CPU memory, of which nothing needs to be known. */
static vnxi_cuda_mem_t cpu_memory;

/* Calls of the driver on the caller's thread must not disturb a stream capture
 * elsewhere. */
static vnx_status_t
attach(vnxi_port_t *port, const vnxi_region_t *region, void **slot_p,
       vnx_error_t *error)
{
    const vnxi_cuda_library_t *library;
    vnxi_cuda_scope_t scope;

    (void)port;
    *slot_p = region->mem == VNX_MEM_DRAM ? &cpu_memory : NULL;
    if (region->mem != VNX_MEM_VRAM ||
        (library = vnxi_cuda_library(VNXI_CUDA_IF_USED, NULL)) == NULL) {
        return VNX_OK;
    }
    vnxi_cuda_mem_t *mem = calloc(1, sizeof *mem);
    if (mem == NULL) {
        return vnxi_error_no_memory(error, REGISTER, sizeof *mem);
    }
    vnxi_cuda_relax(library, &scope);
    vnx_status_t status = attach_on(library, region, mem, error);
    vnxi_cuda_leave(&scope);
    if (status != VNX_OK) {
        free(mem);
        return status;
    }
    *slot_p = mem;
    return VNX_OK;
}

/* Prepared lists and other agents of the process may keep the region object,
 * but they need not keep the program's context. */
static void
detach(void *slot)
{
    vnxi_cuda_mem_t *mem = slot;

    if (mem != &cpu_memory && !atomic_exchange(&mem->is_detached, true)) {
        vnxi_cuda_worker_leave(mem->worker);
    }
}

static void
slot_free(void *slot)
{
    vnxi_cuda_mem_t *mem = slot;

    if (mem != &cpu_memory) {
        detach(slot);
        vnxi_cuda_worker_release(mem->worker);
        free(mem);
    }
}

static void
revoked(vnxi_port_t *port, const vnxi_region_t *region, uint64_t epoch)
{
    (void)epoch;
    if (region->mem == VNX_MEM_VRAM) {
        vnxi_cuda_lender_recall(lender_of(port), region);
    }
}

/* CPU memory is in the sections of other transports. */
static void
write_region(const void *slot, vnxi_writer_t *writer)
{
    const vnxi_cuda_mem_t *mem = slot;

    if (mem != &cpu_memory) {
        vnxi_write_u8(writer, VERSION_MAJOR);
        vnxi_write_u8(writer, VERSION_MINOR);
        vnxi_write_u8(writer, FLAG_MOVED | (mem->is_lent ? FLAG_LENT : 0));
        vnxi_write_bytes(writer, &mem->uuid, sizeof mem->uuid);
    }
}

/* -- A peer's regions ------------------------------------------------------
 */

typedef struct public_data {
    uint8_t flags;
    vnxi_cu_uuid_t uuid;
} public_data_t;

/* Later minor versions may add bytes at the end. */
static vnx_status_t
read_region(vnxi_md_bytes_t data, public_data_t *public_p, vnx_error_t *error)
{
    vnxi_reader_t reader = vnxi_reader(data.data, data.len);
    uint8_t major = vnxi_read_u8(&reader);

    vnxi_read_u8(&reader);
    public_p->flags = vnxi_read_u8(&reader);
    const void *uuid = vnxi_read_bytes(&reader, sizeof public_p->uuid);
    if (uuid == NULL || major != VERSION_MAJOR) {
        return vnxi_error_set(error, VNX_ERR_MISMATCH, LOAD,
                              "a CUDA region of version %u, %zu bytes: only "
                              "version %d is known",
                              major, data.len, VERSION_MAJOR);
    }
    memcpy(&public_p->uuid, uuid, sizeof public_p->uuid);
    return VNX_OK;
}

/* What cannot be read is refused by key_create(). */
static bool
key_reaches(vnxi_md_bytes_t data)
{
    public_data_t found = {0};
    return read_region(data, &found, NULL) != VNX_OK ||
           (found.flags & (FLAG_LENT | FLAG_MOVED)) != 0;
}

static vnx_status_t
key_create(vnxi_conn_t *base, const vnxi_region_t *region,
           vnxi_md_bytes_t data, void **slot_p, vnx_error_t *error)
{
    const cuda_conn_t *conn = (cuda_conn_t *)base;
    public_data_t found = {0};

    vnx_status_t status = read_region(data, &found, error);
    if (status != VNX_OK) {
        return status;
    }
    vnxi_cuda_key_t *key = calloc(1, sizeof *key);
    if (key == NULL) {
        return vnxi_error_no_memory(error, LOAD, sizeof *key);
    }
    key->port = conn->port;
    key->conn_id = conn->id;
    key->addr = region->addr;
    key->len = region->len;
    key->dev = region->dev;
    key->uuid = found.uuid;
    key->is_lent = (found.flags & FLAG_LENT) != 0;
    key->is_moved = (found.flags & FLAG_MOVED) != 0;
    *slot_p = key;
    return VNX_OK;
}

static bool
key_is(const void *slot, vnxi_md_bytes_t data)
{
    const vnxi_cuda_key_t *key = slot;
    public_data_t found = {0};

    return read_region(data, &found, NULL) == VNX_OK &&
           ((found.flags & FLAG_LENT) != 0) == key->is_lent &&
           ((found.flags & FLAG_MOVED) != 0) == key->is_moved &&
           memcmp(&found.uuid, &key->uuid, sizeof found.uuid) == 0;
}

static void
key_free(void *slot)
{
    vnxi_cuda_key_t *key = slot;
    vnxi_cuda_worker_t *worker = atomic_load(&key->worker);

    vnxi_cuda_key_fini(key);
    if (worker != NULL) {
        vnxi_cuda_worker_leave(worker);
        vnxi_cuda_worker_release(worker);
    }
    free(key);
}

/* -- Transfers -------------------------------------------------------------
 */

/* This process's number of the GPU with this id; -1: it does not see it. */
static int
find_gpu(const vnxi_cuda_library_t *library, const vnxi_cu_uuid_t *uuid)
{
    vnxi_cu_device_t device;
    vnxi_cu_uuid_t found;
    int i = 0;

    while (
        i < library->device_count &&
        (library->cu.cuDeviceGet(&device, i) != VNXI_CUDA_SUCCESS ||
         library->cu.cuDeviceGetUuid_v2(&found, device) != VNXI_CUDA_SUCCESS ||
         memcmp(&found, uuid, sizeof found) != 0)) {
        i++;
    }
    return i < library->device_count ? i : -1;
}

/* The worker that copies between CPU memory and a peer's GPU memory, kept as
 * long as the key: that of the GPU's primary context if the memory can be
 * mapped here, otherwise the one without a GPU. */
static vnx_status_t
worker_for_key(vnxi_cuda_key_t *key, vnxi_cuda_worker_t **worker_p,
               vnx_error_t *error)
{
    const vnxi_cuda_library_t *library =
        vnxi_cuda_library(VNXI_CUDA_IF_USED, NULL);
    vnxi_cuda_worker_t *worker = atomic_load(&key->worker), *none = NULL;

    if (worker != NULL) {
        *worker_p = worker;
        return VNX_OK;
    }
    int ordinal =
        library != NULL && key->is_lent ? find_gpu(library, &key->uuid) : -1;
    if (ordinal < 0 && !key->is_moved) {
        return vnxi_error_set(error, VNX_ERR_NOT_SUPPORTED, MAKE,
                              "this process does not see the peer's GPU");
    }
    vnx_status_t status = vnxi_cuda_worker_get(ordinal >= 0 ? library : NULL,
                                               NULL, ordinal, &worker, error);
    if (status != VNX_OK) {
        return status;
    }
    *worker_p = worker;
    if (!atomic_compare_exchange_strong(&key->worker, &none, worker)) {
        *worker_p = none; /* another thread was faster */
        vnxi_cuda_worker_leave(worker);
        vnxi_cuda_worker_release(worker);
    }
    return VNX_OK;
}

/* The first region of the list with this transport's slot. */
static void *
find_slot(const vnxi_list_t *list, unsigned number)
{
    void *slot = NULL;

    for (size_t i = 0; slot == NULL && i < list->region_count; i++) {
        slot = vnxi_region_slot(list->regions[i], number);
    }
    return slot;
}

static vnx_status_t
find_worker(const vnxi_part_args_t *args, unsigned number,
            vnxi_cuda_worker_t **worker_p, vnx_error_t *error)
{
    bool is_local = args->local->mem == VNX_MEM_VRAM;
    const vnxi_list_t *list = is_local ? args->local : args->remote;
    void *slot = find_slot(list, number);

    if (!is_local && vnxi_native_region(list->regions[0])->is_remote) {
        return worker_for_key(slot, worker_p, error);
    }
    *worker_p = ((vnxi_cuda_mem_t *)slot)->worker;
    return VNX_OK;
}

static vnx_status_t
part_create(const vnxi_part_args_t *args, vnxi_part_t **part_p,
            vnx_error_t *error)
{
    unsigned number = args->conn->port->config.number;
    vnxi_cuda_worker_t *worker = NULL;
    vnxi_cuda_xfer_t *xfer;

    vnx_status_t status = find_worker(args, number, &worker, error);
    if (status == VNX_OK) {
        status = vnxi_cuda_xfer_create(args, number, worker, &xfer, error);
    }
    if (status == VNX_OK) {
        *part_p = (vnxi_part_t *)xfer;
    }
    return status;
}

static vnx_status_t
part_post(vnxi_part_t *part, vnx_error_t *error)
{
    return vnxi_cuda_xfer_post((vnxi_cuda_xfer_t *)part, error);
}

static void
part_cancel(vnxi_part_t *part)
{
    vnxi_cuda_xfer_cancel((vnxi_cuda_xfer_t *)part);
}

static void
part_free(vnxi_part_t *part)
{
    vnxi_cuda_xfer_free((vnxi_cuda_xfer_t *)part);
}

extern const vnxi_transport_t vnxi_cuda_transport;

const vnxi_transport_t vnxi_cuda_transport = {
    .name = "CUDA",
    .entry = "CUDA",
    .opens_first = true,
    .scope = VNXI_SCOPE_HOST,
    .copies_by_main = true,
    .may_give_up = true,
    .why = "GPU memory of this host: copied by the GPU",
    .not_offered =
        "the peer is not a vllm_nixl agent that is reached over SHM "
        "or in this process",
    .port_open = port_open,
    .leave = leave,
    .settle = settle,
    .port_stop = port_stop,
    .port_free = port_free,
    .write_info = write_info,
    .describe_port = describe_port,
    .refuses = refuses,
    .conn_create = conn_create,
    .conn_close = conn_close,
    .describe_conn = describe_conn,
    .peer_gone = peer_gone,
    .conn_free = conn_free,
    .on_question = on_question,
    .on_answer = on_answer,
    .on_asker_gone = on_asker_gone,
    .attach = attach,
    .revoked = revoked,
    .detach = detach,
    .slot_free = slot_free,
    .write_region = write_region,
    .key_reaches = key_reaches,
    .key_create = key_create,
    .key_is = key_is,
    .key_free = key_free,
    .part_create = part_create,
    .part_post = part_post,
    .part_cancel = part_cancel,
    .part_free = part_free,
};
