/*
 * Allocations of the fake libcuda.so.1: cuMemAlloc(), managed memory, pools;
 * their handles for other processes; host memory that is registered.
 */
#include "fake_cuda_memory.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* -- cuMemAlloc ------------------------------------------------------------
 */

/* Room in a block that has it already, or in a new one. */
static chunk_t *
allocate_small(context_t *context, size_t size)
{
    for (chunk_t *before = fc_next_chunk(NULL); before != NULL;
         before = fc_next_chunk(before)) {
        const chunk_t *after = fc_next_chunk(before);
        memory_t *memory = before->memory;
        if (before->kind != KIND_LEGACY || memory->block == 0 ||
            before->context != context) {
            continue;
        }
        uint64_t start = fc_round_up(before->start + before->size, 512);
        uint64_t end = memory->block + memory->size;
        if (after != NULL && after->start < end) {
            end = after->start;
        }
        if (start + size <= end) {
            return fc_add_chunk(KIND_LEGACY, start, size, memory,
                                start - memory->block);
        }
    }
    uint64_t block = fc_take_range(GRANULARITY, GRANULARITY, false);
    memory_t *memory =
        block == 0 ? NULL
                   : fc_make_memory(GRANULARITY, context->device, 0, true);
    if (memory == NULL) {
        return NULL;
    }
    memory->block = block;
    return fc_add_chunk(KIND_LEGACY, block, size, memory, 0);
}

static chunk_t *
allocate_large(kind_t kind, int device, size_t size, unsigned handle_types)
{
    uint64_t start =
        fc_take_range(fc_round_up(size, GRANULARITY), GRANULARITY, false);
    memory_t *memory =
        start == 0 ? NULL : fc_make_memory(size, device, handle_types, true);
    return memory == NULL ? NULL : fc_add_chunk(kind, start, size, memory, 0);
}

EXPORT vnxi_cu_result_t
cuMemAlloc_v2(vnxi_cu_ptr_t *address_p, size_t size)
{
    ENTER(cuMemAlloc_v2, CONTEXT | UNSAFE);
    context_t *context = fc_current();
    if (size == 0) {
        return VNXI_CUDA_ERROR_INVALID_VALUE;
    }
    lock();
    chunk_t *chunk =
        size <= SMALL ? allocate_small(context, size)
                      : allocate_large(KIND_LEGACY, context->device, size, 0);
    if (chunk != NULL) {
        chunk->context = context;
        fc_allow(chunk, 1u << context->device);
        *address_p = chunk->start;
        atomic_fetch_add(&fake_cuda.allocations, 1);
    }
    unlock();
    return chunk != NULL ? VNXI_CUDA_SUCCESS : VNXI_CUDA_ERROR_OUT_OF_MEMORY;
}

EXPORT vnxi_cu_result_t
cuMemAllocManaged(vnxi_cu_ptr_t *address_p, size_t size, unsigned flags)
{
    ENTER(cuMemAllocManaged, CONTEXT | UNSAFE);
    if (size == 0 || flags == 0) {
        return VNXI_CUDA_ERROR_INVALID_VALUE;
    }
    void *bytes = mmap(NULL, size, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (bytes == MAP_FAILED) {
        return VNXI_CUDA_ERROR_OUT_OF_MEMORY;
    }
    lock();
    chunk_t *chunk =
        fc_add_chunk(KIND_MANAGED, (uintptr_t)bytes, size, NULL, 0);
    chunk->bytes = bytes;
    chunk->context = fc_current();
    chunk->device = fc_current()->device;
    fc_allow(chunk, ~0u);
    unlock();
    atomic_fetch_add(&fake_cuda.allocations, 1);
    *address_p = (uintptr_t)bytes;
    return VNXI_CUDA_SUCCESS;
}

static void
free_chunk(chunk_t *chunk)
{
    uint64_t start = chunk->start, size = chunk->size;
    memory_t *memory = chunk->memory;

    if (chunk->kind == KIND_MANAGED) {
        fc_remove_chunk(chunk);
        munmap((void *)(uintptr_t)start, size);
    } else {
        bool is_import = chunk->pool != NULL && chunk->pool->is_import;
        if (!is_import && fc_is_used_elsewhere(memory)) {
            fprintf(stderr, "fake libcuda: memory is freed that another "
                            "process has open\n");
            atomic_fetch_add(&fake_cuda.freed_while_open, 1);
            memset(chunk->bytes, 0xdb, size); /* what it reads is stale */
        }
        if (memory->block != 0) {
            start = memory->chunks == 1 ? memory->block : 0;
        }
        fc_remove_chunk(chunk);
        if (start != 0) {
            fc_give_range(start);
        }
    }
    atomic_fetch_sub(&fake_cuda.allocations, 1);
}

static bool
can_be_freed(const chunk_t *chunk, uint64_t address)
{
    return chunk != NULL && chunk->start == address &&
           (chunk->kind == KIND_LEGACY || chunk->kind == KIND_POOL ||
            chunk->kind == KIND_MANAGED);
}

void
fc_free(uint64_t address)
{
    lock();
    chunk_t *chunk = fc_find_chunk(address);
    if (!can_be_freed(chunk, address)) {
        fc_violation("a stream frees %#llx, which is not allocated",
                     (unsigned long long)address);
    }
    free_chunk(chunk);
    unlock();
}

/* Waits for the device, as the driver does. */
EXPORT vnxi_cu_result_t
cuMemFree_v2(vnxi_cu_ptr_t address)
{
    ENTER(cuMemFree_v2, CURRENT | UNSAFE);
    fc_drain();
    lock();
    chunk_t *chunk = fc_find_chunk(address);
    bool can = can_be_freed(chunk, address);
    if (can) {
        free_chunk(chunk);
    }
    unlock();
    if (!can) {
        fc_misuse("%#llx is freed, which is not allocated",
                  (unsigned long long)address);
        return VNXI_CUDA_ERROR_INVALID_VALUE;
    }
    return fc_failure();
}

/* -- Pools -----------------------------------------------------------------
 */

/* One for each device, whose memory cannot be exported. */
static struct CUmemPoolHandle_st default_pools[FAKE_CUDA_DEVICES];

static vnxi_cu_pool_t
make_pool(int device, unsigned handle_types, bool is_import)
{
    vnxi_cu_pool_t pool = fc_need(malloc(sizeof *pool));

    *pool = (struct CUmemPoolHandle_st){
        .device = device,
        .handle_types = handle_types,
        .is_import = is_import,
    };
    return pool;
}

EXPORT vnxi_cu_result_t
cuMemPoolCreate(vnxi_cu_pool_t *pool_p, const pool_props_t *props)
{
    ENTER(cuMemPoolCreate, 0);
    if (props->type != VNXI_CU_MEM_ALLOCATION_TYPE_PINNED ||
        props->location.type != VNXI_CU_MEM_LOCATION_TYPE_DEVICE ||
        !fc_is_device(props->location.id)) {
        return VNXI_CUDA_ERROR_INVALID_VALUE;
    }
    *pool_p = make_pool(props->location.id, props->handle_types, false);
    atomic_fetch_add(&fake_cuda.pools, 1);
    return VNXI_CUDA_SUCCESS;
}

EXPORT vnxi_cu_result_t
cuMemPoolDestroy(vnxi_cu_pool_t pool)
{
    ENTER(cuMemPoolDestroy, 0);
    lock();
    for (chunk_t *chunk = fc_next_chunk(NULL); chunk != NULL;
         chunk = fc_next_chunk(chunk)) {
        if (chunk->pool == pool) {
            fc_misuse("a pool ends that has memory");
            chunk->pool = NULL;
        }
    }
    unlock();
    free(pool);
    atomic_fetch_sub(&fake_cuda.pools, 1);
    return VNXI_CUDA_SUCCESS;
}

static vnxi_cu_result_t
allocate_from(vnxi_cu_ptr_t *address_p, size_t size, vnxi_cu_pool_t pool)
{
    if (size == 0 || pool->is_import) {
        return VNXI_CUDA_ERROR_INVALID_VALUE;
    }
    lock();
    chunk_t *chunk =
        allocate_large(KIND_POOL, pool->device, size, pool->handle_types);
    if (chunk != NULL) {
        chunk->pool = pool;
        fc_allow(chunk, 1u << pool->device);
        *address_p = chunk->start;
        atomic_fetch_add(&fake_cuda.allocations, 1);
    }
    unlock();
    return chunk != NULL ? VNXI_CUDA_SUCCESS : VNXI_CUDA_ERROR_OUT_OF_MEMORY;
}

/* The memory is there at once, although only later work of the stream may use
 * it. */
EXPORT vnxi_cu_result_t
cuMemAllocFromPoolAsync(vnxi_cu_ptr_t *address_p, size_t size,
                        vnxi_cu_pool_t pool, vnxi_cu_stream_t stream)
{
    (void)stream;
    ENTER(cuMemAllocFromPoolAsync, CONTEXT);
    return allocate_from(address_p, size, pool);
}

EXPORT vnxi_cu_result_t
cuMemAllocAsync(vnxi_cu_ptr_t *address_p, size_t size, vnxi_cu_stream_t stream)
{
    (void)stream;
    ENTER(cuMemAllocAsync, CONTEXT);
    int device = fc_current()->device;
    lock();
    default_pools[device].device = device;
    unlock();
    return allocate_from(address_p, size, &default_pools[device]);
}

EXPORT vnxi_cu_result_t
cuMemFreeAsync(vnxi_cu_ptr_t address, vnxi_cu_stream_t stream)
{
    ENTER(cuMemFreeAsync, CONTEXT);
    return fc_stream_free(stream, address);
}

/* A pool as others get it: a descriptor of a memfd that says what it is. */
typedef struct pool_label {
    char magic[8];
    unsigned handle_types;
    uint8_t uuid;
} pool_label_t;

#define POOL_MAGIC "FAKPOOL"

EXPORT vnxi_cu_result_t
cuMemPoolExportToShareableHandle(void *handle_p, vnxi_cu_pool_t pool,
                                 vnxi_cu_enum_t type, unsigned long long flags)
{
    ENTER(cuMemPoolExportToShareableHandle, 0);
    if (type != VNXI_CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR || flags != 0 ||
        (pool->handle_types & type) == 0 || pool->is_import) {
        return VNXI_CUDA_ERROR_INVALID_VALUE;
    }
    pool_label_t label = {
        .magic = POOL_MAGIC,
        .handle_types = pool->handle_types,
        .uuid = atomic_load(&fake_cuda.uuid[pool->device]),
    };
    int fd = memfd_create("fake pool", MFD_CLOEXEC);
    if (fd < 0 || pwrite(fd, &label, sizeof label, 0) != sizeof label) {
        fc_violation("no memfd for a pool");
    }
    memcpy(handle_p, &fd, sizeof fd);
    return VNXI_CUDA_SUCCESS;
}

EXPORT vnxi_cu_result_t
cuMemPoolImportFromShareableHandle(vnxi_cu_pool_t *pool_p, void *handle,
                                   vnxi_cu_enum_t type,
                                   unsigned long long flags)
{
    pool_label_t label;

    ENTER(cuMemPoolImportFromShareableHandle, 0);
    if (type != VNXI_CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR || flags != 0 ||
        pread((int)(intptr_t)handle, &label, sizeof label, 0) !=
            sizeof label ||
        memcmp(label.magic, POOL_MAGIC, sizeof label.magic) != 0) {
        return VNXI_CUDA_ERROR_INVALID_VALUE;
    }
    for (int i = 0; fc_is_device(i); i++) {
        if (atomic_load(&fake_cuda.uuid[i]) == label.uuid) {
            *pool_p = make_pool(i, label.handle_types, true);
            atomic_fetch_add(&fake_cuda.pools, 1);
            return VNXI_CUDA_SUCCESS;
        }
    }
    return VNXI_CUDA_ERROR_INVALID_DEVICE;
}

EXPORT vnxi_cu_result_t
cuMemPoolExportPointer(vnxi_cu_pool_ptr_t *data_p, vnxi_cu_ptr_t address)
{
    ENTER(cuMemPoolExportPointer, 0);
    lock();
    chunk_t *chunk = fc_find_chunk(address);
    bool can = chunk != NULL && chunk->kind == KIND_POOL &&
               chunk->start == address && chunk->memory->handle_types != 0;
    if (can) {
        fc_write_ticket(chunk->memory, 0, false, data_p);
    }
    unlock();
    return can ? VNXI_CUDA_SUCCESS : VNXI_CUDA_ERROR_INVALID_VALUE;
}

/* To be freed before the exporter frees it. */
EXPORT vnxi_cu_result_t
cuMemPoolImportPointer(vnxi_cu_ptr_t *address_p, vnxi_cu_pool_t pool,
                       vnxi_cu_pool_ptr_t *data)
{
    ticket_t ticket;

    ENTER(cuMemPoolImportPointer, 0);
    if (!pool->is_import || !fc_read_ticket(data, &ticket, false)) {
        return VNXI_CUDA_ERROR_INVALID_VALUE;
    }
    lock();
    memory_t *memory = fc_open_ticket(&ticket);
    if (memory != NULL) {
        uint64_t start = fc_take_range(fc_round_up(memory->size, GRANULARITY),
                                       GRANULARITY, false);
        if (start == 0) {
            fc_violation("no addresses for memory of a pool");
        }
        chunk_t *chunk =
            fc_add_chunk(KIND_POOL, start, memory->size, memory, 0);
        chunk->pool = pool;
        fc_allow(chunk, pool->access);
        *address_p = start;
        atomic_fetch_add(&fake_cuda.allocations, 1);
    }
    unlock();
    return memory != NULL ? VNXI_CUDA_SUCCESS : VNXI_CUDA_ERROR_INVALID_VALUE;
}

EXPORT vnxi_cu_result_t
cuMemPoolSetAccess(vnxi_cu_pool_t pool, const vnxi_cu_access_t *wishes,
                   size_t count)
{
    ENTER(cuMemPoolSetAccess, 0);
    lock();
    unsigned access = pool->access;
    vnxi_cu_result_t status = VNXI_CUDA_SUCCESS;
    for (size_t i = 0; i < count; i++) {
        if (wishes[i].location.type != VNXI_CU_MEM_LOCATION_TYPE_DEVICE ||
            !fc_is_device(wishes[i].location.id)) {
            status = VNXI_CUDA_ERROR_INVALID_DEVICE;
        } else if (wishes[i].location.id != pool->device &&
                   atomic_load(&fake_cuda.no_peers) != 0) {
            status = VNXI_CUDA_ERROR_PEER_ACCESS_UNSUPPORTED;
        } else if (wishes[i].flags ==
                   VNXI_CU_MEM_ACCESS_FLAGS_PROT_READWRITE) {
            access |= 1u << wishes[i].location.id;
        }
    }
    if (status == VNXI_CUDA_SUCCESS) {
        pool->access = access;
        for (chunk_t *chunk = fc_next_chunk(NULL); chunk != NULL;
             chunk = fc_next_chunk(chunk)) {
            if (chunk->pool == pool) {
                fc_allow(chunk, access | chunk->writable);
            }
        }
    }
    unlock();
    return status;
}

/* -- Legacy handles --------------------------------------------------------
 */

EXPORT vnxi_cu_result_t
cuIpcGetMemHandle(vnxi_cu_ipc_handle_t *handle_p, vnxi_cu_ptr_t address)
{
    ENTER(cuIpcGetMemHandle, CONTEXT | UNSAFE);
    lock();
    chunk_t *chunk = fc_find_chunk(address);
    bool can = chunk != NULL && chunk->kind == KIND_LEGACY;
    if (can) {
        const memory_t *memory = chunk->memory;
        fc_write_ticket(memory, (size_t)(chunk->bytes - memory->bytes), false,
                        handle_p);
    }
    unlock();
    return can ? VNXI_CUDA_SUCCESS : VNXI_CUDA_ERROR_INVALID_VALUE;
}

static chunk_t *
find_import(const context_t *context, uint64_t inode)
{
    for (chunk_t *chunk = fc_next_chunk(NULL); chunk != NULL;
         chunk = fc_next_chunk(chunk)) {
        if (chunk->kind == KIND_IMPORT && chunk->context == context &&
            chunk->memory->inode == inode) {
            return chunk;
        }
    }
    return NULL;
}

static int
import_legacy(context_t *context, const ticket_t *ticket, chunk_t **chunk_p)
{
    memory_t *memory = fc_open_ticket(ticket);

    if (memory == NULL) {
        return VNXI_CUDA_ERROR_INVALID_VALUE;
    }
    uint64_t start = 0;
    bool is_far = memory->device != context->device;
    if (!is_far || atomic_load(&fake_cuda.no_peers) == 0) {
        start = fc_take_range(fc_round_up(memory->size, GRANULARITY),
                              GRANULARITY, false);
    }
    if (start == 0) {
        fc_release_if_unused(memory);
        return is_far ? VNXI_CUDA_ERROR_PEER_ACCESS_UNSUPPORTED
                      : VNXI_CUDA_ERROR_OUT_OF_MEMORY;
    }
    *chunk_p = fc_add_chunk(KIND_IMPORT, start, memory->size, memory, 0);
    (*chunk_p)->context = context;
    if (memory->device < 0) {
        (*chunk_p)->device = context->device;
    }
    fc_allow(*chunk_p, 1u << context->device);
    return VNXI_CUDA_SUCCESS;
}

EXPORT vnxi_cu_result_t
cuIpcOpenMemHandle_v2(vnxi_cu_ptr_t *address_p, vnxi_cu_ipc_handle_t handle,
                      unsigned flags)
{
    ticket_t ticket;

    ENTER(cuIpcOpenMemHandle_v2, CONTEXT | UNSAFE);
    context_t *context = fc_current();
    if (flags != 1 || !fc_read_ticket(&handle, &ticket, false)) {
        return VNXI_CUDA_ERROR_INVALID_VALUE;
    }
    if (ticket.pid == getpid()) {
        return VNXI_CUDA_ERROR_INVALID_CONTEXT;
    }
    lock();
    chunk_t *chunk = find_import(context, ticket.inode);
    int status = VNXI_CUDA_SUCCESS;
    if (chunk == NULL) {
        status = import_legacy(context, &ticket, &chunk);
    } else if (atomic_load(&fake_cuda.old_ipc) != 0) {
        status = VNXI_CUDA_ERROR_ALREADY_MAPPED;
    }
    if (status == VNXI_CUDA_SUCCESS) {
        chunk->opens++;
        *address_p = chunk->start + ticket.offset;
        atomic_fetch_add(&fake_cuda.imports, 1);
    }
    unlock();
    return status;
}

/* Like all that ends something, it does so after a failure, too. */
EXPORT vnxi_cu_result_t
cuIpcCloseMemHandle(vnxi_cu_ptr_t address)
{
    ENTER(cuIpcCloseMemHandle, CURRENT | UNSAFE);
    context_t *context = fc_current();
    lock();
    chunk_t *chunk = fc_find_chunk(address);
    bool can = chunk != NULL && chunk->kind == KIND_IMPORT &&
               chunk->context == context;
    if (can) {
        atomic_fetch_sub(&fake_cuda.imports, 1);
        if (--chunk->opens == 0) {
            fc_give_range(chunk->start);
            fc_remove_chunk(chunk);
        }
    }
    unlock();
    if (!can) {
        fc_misuse("%#llx is closed, which is not open in this context",
                  (unsigned long long)address);
        return VNXI_CUDA_ERROR_INVALID_VALUE;
    }
    return fc_failure();
}

/* -- Host memory -----------------------------------------------------------
 */

EXPORT vnxi_cu_result_t
cuMemHostRegister_v2(void *data, size_t size, unsigned flags)
{
    uint64_t start = (uintptr_t)data, alias = 0;

    ENTER(cuMemHostRegister_v2, CONTEXT | UNSAFE);
    if (size == 0 || (flags & ~15u) != 0) {
        return VNXI_CUDA_ERROR_INVALID_VALUE;
    }
    lock();
    if (fc_overlaps_chunk(start, size)) {
        unlock();
        return VNXI_CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
    }
    /* The driver holds its locks meanwhile. */
    usleep((useconds_t)atomic_load(&fake_cuda.pin_delay_us));
    if (atomic_load(&fake_cuda.alias) != 0) {
        alias =
            fc_take_range(fc_round_up(size, GRANULARITY), GRANULARITY, false);
        if (alias == 0) {
            unlock();
            return VNXI_CUDA_ERROR_OUT_OF_MEMORY;
        }
        chunk_t *chunk = fc_add_chunk(KIND_ALIAS, alias, size, NULL, 0);
        chunk->bytes = data;
        fc_allow(chunk, ~0u);
    }
    chunk_t *chunk = fc_add_chunk(KIND_HOST, start, size, NULL, 0);
    chunk->bytes = data;
    chunk->context = fc_current();
    chunk->device = fc_current()->device;
    fc_allow(chunk, alias == 0 ? ~0u : 0);
    unlock();
    atomic_fetch_add(&fake_cuda.registered, 1);
    return VNXI_CUDA_SUCCESS;
}

static bool
is_still_mapped(const chunk_t *chunk)
{
    uint64_t page = (uintptr_t)chunk->bytes / PAGE * PAGE;
    uint64_t end = (uintptr_t)chunk->bytes + chunk->size;

    return msync((void *)(uintptr_t)page, end - page, MS_ASYNC) == 0;
}

EXPORT vnxi_cu_result_t
cuMemHostUnregister(void *data)
{
    ENTER(cuMemHostUnregister, CURRENT | UNSAFE);
    lock();
    chunk_t *chunk = fc_find_chunk((uintptr_t)data);
    bool can =
        chunk != NULL && chunk->kind == KIND_HOST && chunk->bytes == data;
    if (can) {
        if (!is_still_mapped(chunk)) {
            fc_misuse("host memory is unmapped before it is unregistered");
        }
        uint64_t alias = fc_device_pointer(chunk, chunk->start);
        if (alias != chunk->start) {
            fc_remove_chunk(fc_find_chunk(alias));
            fc_give_range(alias);
        }
        fc_remove_chunk(chunk);
        atomic_fetch_sub(&fake_cuda.registered, 1);
    }
    unlock();
    if (!can) {
        fc_misuse("host memory is unregistered that is not registered");
        return VNXI_CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
    }
    return fc_failure();
}

EXPORT vnxi_cu_result_t
cuMemHostGetDevicePointer_v2(vnxi_cu_ptr_t *address_p, void *data,
                             unsigned flags)
{
    ENTER(cuMemHostGetDevicePointer_v2, CONTEXT);
    lock();
    chunk_t *chunk = fc_find_chunk((uintptr_t)data);
    bool can = flags == 0 && chunk != NULL && chunk->kind == KIND_HOST;
    if (can) {
        *address_p = fc_device_pointer(chunk, (uintptr_t)data);
    }
    unlock();
    return can ? VNXI_CUDA_SUCCESS : VNXI_CUDA_ERROR_INVALID_VALUE;
}
