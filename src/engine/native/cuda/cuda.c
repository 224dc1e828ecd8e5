/*
 * GPU memory as a transport: between agents of this process, and between GPU
 * and CPU memory of one agent.  The work is done by worker.h; here are its
 * port, conns and slots.
 *
 * Design notes.  A program with GPU memory has loaded and initialised libcuda;
 * this transport never does, so an agent without GPU memory costs nothing.
 * The port opens in every agent: GPU memory may come later.
 *
 * A region of GPU memory is one or more allocations, which the driver knows.
 * Each is checked when the region is registered, because a copy from memory
 * that is not there destroys the program's context.
 *
 * The agent's entry in its metadata and the public data of a region have a
 * version only: peers of other processes do not use this transport yet, and
 * those of this process share the region objects.
 */
#include <inttypes.h>
#include <stdlib.h>

#include "base/error.h"
#include "base/json.h"
#include "engine/native/cuda/context.h"
#include "engine/native/cuda/worker.h"

#define REGISTER "vnx_agent_register"
#define VERSION_MAJOR 1
#define VERSION_MINOR 0

/* -- Ports -----------------------------------------------------------------
 */

static vnx_status_t
port_open(const vnxi_port_config_t *config, vnxi_port_t **port_p,
          vnx_error_t *error)
{
    vnxi_port_t *port = calloc(1, sizeof *port);

    if (port == NULL) {
        return vnxi_error_no_memory(error, "vnx_agent_create_backend",
                                    sizeof *port);
    }
    port->config = *config;
    *port_p = port;
    return VNX_OK;
}

static void
settle(vnxi_port_t *port)
{
    (void)port; /* transfers of other agents may use our memory, too */
    vnxi_cuda_workers_settle();
}

static void
port_stop(vnxi_port_t *port)
{
    (void)port; /* it has neither threads nor connections */
}

static void
port_free(vnxi_port_t *port)
{
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

    (void)port;
    if (library == NULL) {
        return;
    }
    vnxi_json_member(out, "cuda", library->path);
    vnxi_json_number(out, "cuda_driver", (uint64_t)library->driver);
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
    if (local == VNX_MEM_DRAM && remote == VNX_MEM_DRAM) {
        return "one side must be GPU memory";
    }
    return vnxi_cuda_library(VNXI_CUDA_IF_USED, &why) != NULL ? NULL : why;
}

/* -- Conns -----------------------------------------------------------------
 */

/* The regions of an agent of this process are its own objects, so nothing
 * needs to be known about the peer. */
static vnx_status_t
conn_create(vnxi_port_t *port, const vnxi_conn_args_t *args,
            vnxi_conn_t **conn_p, vnx_error_t *error)
{
    (void)port;
    *conn_p = NULL;
    if (!args->is_here && !args->is_self) {
        return VNX_OK;
    }
    *conn_p = calloc(1, sizeof **conn_p);
    return *conn_p != NULL
               ? VNX_OK
               : vnxi_error_no_memory(error, "vnx_agent_load_metadata",
                                      sizeof **conn_p);
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
    (void)conn;
}

static void
conn_free(vnxi_conn_t *conn)
{
    free(conn);
}

/* -- Our regions -----------------------------------------------------------
 */

/* What the driver knows about an address. */
typedef struct facts {
    uint64_t context, type, is_managed, ordinal, is_legacy;
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
    };
    facts_t facts = {0};
    void *places[] = {&facts.context, &facts.type, &facts.is_managed,
                      &facts.ordinal, &facts.is_legacy};

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

/* Check the allocations of a region after the first one; *is_legacy_p: all are
 * from cudaMalloc(). */
static vnx_status_t
check_rest(const vnxi_cuda_library_t *library, const vnxi_region_t *region,
           uint64_t ordinal, bool *is_legacy_p, vnx_error_t *error)
{
    uint64_t end = region->addr + region->len;
    vnxi_cu_ptr_t start;
    facts_t facts;
    size_t size;

    for (uint64_t at = region->addr; at < end; at = start + size) {
        vnx_status_t status = VNX_OK;
        if (at != region->addr) {
            status = find_facts(library, region, at, &facts, error);
            *is_legacy_p = *is_legacy_p && facts.is_legacy != 0;
        }
        if (status != VNX_OK) {
            return status;
        }
        if (at != region->addr && facts.ordinal != ordinal) {
            return region_error(region, at,
                                "the region has memory of another GPU", error);
        }
        vnxi_cu_result_t result =
            library->cu.cuMemGetAddressRange_v2(&start, &size, at);
        if (result != VNXI_CUDA_SUCCESS || size == 0) {
            return vnxi_cuda_error(library, REGISTER, (int)ordinal,
                                   "cuMemGetAddressRange_v2", result, error);
        }
    }
    return VNX_OK;
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
    mem->is_legacy = first->is_legacy != 0;
    vnx_status_t status =
        check_rest(library, region, first->ordinal, &mem->is_legacy, error);
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

/* CPU memory is in the sections of other transports. */
static void
write_region(const void *slot, vnxi_writer_t *writer)
{
    if (slot != &cpu_memory) {
        vnxi_write_u8(writer, VERSION_MAJOR);
        vnxi_write_u8(writer, VERSION_MINOR);
    }
}

/* -- Transfers -------------------------------------------------------------
 */

static vnx_status_t
part_create(const vnxi_part_args_t *args, vnxi_part_t **part_p,
            vnx_error_t *error)
{
    vnxi_cuda_xfer_t *xfer;
    vnx_status_t status = vnxi_cuda_xfer_create(
        args, args->conn->port->config.number, &xfer, error);

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
    .scope = VNXI_SCOPE_PROCESS,
    .why = "GPU memory of this process: copied by the GPU",
    .not_offered = "the peer is not an agent of this process",
    .port_open = port_open,
    .settle = settle,
    .port_stop = port_stop,
    .port_free = port_free,
    .write_info = write_info,
    .describe_port = describe_port,
    .refuses = refuses,
    .conn_create = conn_create,
    .conn_start = conn_start,
    .conn_close = conn_close,
    .conn_free = conn_free,
    .attach = attach,
    .detach = detach,
    .slot_free = slot_free,
    .write_region = write_region,
    .part_create = part_create,
    .part_post = part_post,
    .part_cancel = part_cancel,
    .part_free = part_free,
};
