/*
 * Virtual memory management of the fake libcuda.so.1: memory, addresses, and
 * mappings of one at the others.
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

/* -- Virtual memory management ---------------------------------------------
 */

EXPORT vnxi_cu_result_t
cuMemGetAllocationGranularity(size_t *size_p,
                              const vnxi_cu_alloc_prop_t *props,
                              vnxi_cu_enum_t option)
{
    (void)option;
    ENTER(cuMemGetAllocationGranularity, 0);
    if (props->type != VNXI_CU_MEM_ALLOCATION_TYPE_PINNED ||
        props->location.type != VNXI_CU_MEM_LOCATION_TYPE_DEVICE ||
        !fc_is_device(props->location.id)) {
        return VNXI_CUDA_ERROR_INVALID_VALUE;
    }
    *size_p = GRANULARITY;
    return VNXI_CUDA_SUCCESS;
}

EXPORT vnxi_cu_result_t
cuMemAddressReserve(vnxi_cu_ptr_t *address_p, size_t size, size_t alignment,
                    vnxi_cu_ptr_t wish, unsigned long long flags)
{
    (void)wish; /* a hint */
    ENTER(cuMemAddressReserve, 0);
    if (size == 0 || size % GRANULARITY != 0 || flags != 0 ||
        (alignment & (alignment - 1)) != 0) {
        return VNXI_CUDA_ERROR_INVALID_VALUE;
    }
    lock();
    uint64_t start = fc_take_range(
        size, alignment > GRANULARITY ? alignment : GRANULARITY, true);
    unlock();
    if (start == 0) {
        return VNXI_CUDA_ERROR_OUT_OF_MEMORY;
    }
    atomic_fetch_add(&fake_cuda.reservations, 1);
    *address_p = start;
    return VNXI_CUDA_SUCCESS;
}

EXPORT vnxi_cu_result_t
cuMemAddressFree(vnxi_cu_ptr_t address, size_t size)
{
    ENTER(cuMemAddressFree, 0);
    lock();
    range_t *range = fc_find_reservation(address);
    bool can = range != NULL && range->start == address &&
               range->size == size && !fc_overlaps_chunk(address, size);
    if (can) {
        fc_give_range(address);
        atomic_fetch_sub(&fake_cuda.reservations, 1);
    }
    unlock();
    if (!can) {
        fc_misuse("addresses are freed that are not reserved, or mapped");
        return VNXI_CUDA_ERROR_INVALID_VALUE;
    }
    return VNXI_CUDA_SUCCESS;
}

/* lock is held.  NULL: it was released, or never was one. */
static memory_t *
find_handle(uint64_t handle)
{
    for (memory_t *memory = fc_next_memory(NULL); memory != NULL;
         memory = fc_next_memory(memory)) {
        if ((uintptr_t)memory == handle && memory->handles > 0) {
            return memory;
        }
    }
    fc_misuse("a handle is used that does not live");
    return NULL;
}

static uint64_t
give_handle(memory_t *memory)
{
    memory->handles++;
    atomic_fetch_add(&fake_cuda.handles, 1);
    return (uintptr_t)memory;
}

EXPORT vnxi_cu_result_t
cuMemCreate(vnxi_cu_mem_t *handle_p, size_t size,
            const vnxi_cu_alloc_prop_t *props, unsigned long long flags)
{
    ENTER(cuMemCreate, UNSAFE);
    unsigned types = props->requestedHandleTypes;
    if (size == 0 || size % GRANULARITY != 0 || flags != 0 ||
        props->type != VNXI_CU_MEM_ALLOCATION_TYPE_PINNED ||
        props->location.type != VNXI_CU_MEM_LOCATION_TYPE_DEVICE ||
        (types & ~(unsigned)(VNXI_CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR |
                             VNXI_CU_MEM_HANDLE_TYPE_FABRIC)) != 0) {
        return VNXI_CUDA_ERROR_INVALID_VALUE;
    }
    if (!fc_is_device(props->location.id)) {
        return VNXI_CUDA_ERROR_INVALID_DEVICE;
    }
    if ((types & VNXI_CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) &&
        atomic_load(&fake_cuda.no_fd_export) != 0) {
        return VNXI_CUDA_ERROR_NOT_SUPPORTED;
    }
    if (types & VNXI_CU_MEM_HANDLE_TYPE_FABRIC) {
        switch ((fake_cuda_fabric_t)atomic_load(&fake_cuda.fabric)) {
        case FAKE_CUDA_NO_FABRIC:
            return VNXI_CUDA_ERROR_NOT_SUPPORTED;
        case FAKE_CUDA_FABRIC_WITHOUT_CHANNEL:
            return VNXI_CUDA_ERROR_NOT_PERMITTED;
        case FAKE_CUDA_FABRIC:
            break;
        }
    }
    lock();
    memory_t *memory =
        fc_make_memory(size, props->location.id, types,
                       props->allocFlags.gpuDirectRDMACapable != 0);
    if (memory != NULL) {
        *handle_p = give_handle(memory);
    }
    unlock();
    return memory != NULL ? VNXI_CUDA_SUCCESS : VNXI_CUDA_ERROR_OUT_OF_MEMORY;
}

EXPORT vnxi_cu_result_t
cuMemRelease(vnxi_cu_mem_t handle)
{
    ENTER(cuMemRelease, 0);
    lock();
    memory_t *memory = find_handle(handle);
    if (memory != NULL) {
        memory->handles--;
        atomic_fetch_sub(&fake_cuda.handles, 1);
        fc_release_if_unused(memory);
    }
    unlock();
    return memory != NULL ? VNXI_CUDA_SUCCESS : VNXI_CUDA_ERROR_INVALID_VALUE;
}

EXPORT vnxi_cu_result_t
cuMemRetainAllocationHandle(vnxi_cu_mem_t *handle_p, void *address)
{
    ENTER(cuMemRetainAllocationHandle, 0);
    lock();
    chunk_t *chunk = fc_find_chunk((uintptr_t)address);
    bool can = chunk != NULL && chunk->kind == KIND_VMM;
    if (can) {
        *handle_p = give_handle(chunk->memory);
    }
    unlock();
    return can ? VNXI_CUDA_SUCCESS : VNXI_CUDA_ERROR_INVALID_VALUE;
}

EXPORT vnxi_cu_result_t
cuMemGetAllocationPropertiesFromHandle(vnxi_cu_alloc_prop_t *props_p,
                                       vnxi_cu_mem_t handle)
{
    ENTER(cuMemGetAllocationPropertiesFromHandle, 0);
    lock();
    memory_t *memory = find_handle(handle);
    if (memory != NULL) {
        *props_p = (vnxi_cu_alloc_prop_t){
            .type = 1,
            .requestedHandleTypes = memory->handle_types,
            .location = {1, memory->device},
            .allocFlags.gpuDirectRDMACapable = memory->is_rdma_capable,
        };
    }
    unlock();
    return memory != NULL ? VNXI_CUDA_SUCCESS : VNXI_CUDA_ERROR_INVALID_VALUE;
}

/* Only the whole handle, at a place where nothing is. */
EXPORT vnxi_cu_result_t
cuMemMap(vnxi_cu_ptr_t address, size_t size, size_t offset,
         vnxi_cu_mem_t handle, unsigned long long flags)
{
    int status = VNXI_CUDA_ERROR_INVALID_VALUE;

    ENTER(cuMemMap, UNSAFE);
    lock();
    memory_t *memory = find_handle(handle);
    range_t *range = fc_find_reservation(address);
    if (memory != NULL && range != NULL && offset == 0 && flags == 0 &&
        size == memory->size && address % GRANULARITY == 0 &&
        size <= range->start + range->size - address) {
        if (fc_overlaps_chunk(address, size)) {
            fc_misuse("memory is mapped over other memory");
        } else {
            chunk_t *chunk = fc_add_chunk(KIND_VMM, address, size, memory, 0);
            chunk->range_start = range->start;
            chunk->range_size = range->size;
            atomic_fetch_add(&fake_cuda.mappings, 1);
            status = VNXI_CUDA_SUCCESS;
        }
    }
    unlock();
    return status;
}

/* Are the chunks of this range mapped by cuMemMap(), without a gap, and all of
 * them inside? */
static bool
is_mapped(uint64_t start, uint64_t size)
{
    uint64_t end = start + size;

    for (chunk_t *chunk; start < end; start += chunk->size) {
        chunk = fc_find_chunk(start);
        if (chunk == NULL || chunk->kind != KIND_VMM ||
            chunk->start != start || chunk->size > end - start) {
            return false;
        }
    }
    return true;
}

EXPORT vnxi_cu_result_t
cuMemUnmap(vnxi_cu_ptr_t address, size_t size)
{
    ENTER(cuMemUnmap, UNSAFE);
    lock();
    bool can = size > 0 && is_mapped(address, size);
    for (uint64_t at = address; can && at < address + size;) {
        chunk_t *chunk = fc_find_chunk(at);
        at += chunk->size;
        fc_remove_chunk(chunk);
        atomic_fetch_sub(&fake_cuda.mappings, 1);
    }
    unlock();
    if (!can) {
        fc_misuse("addresses are unmapped that are not mapped, or a part of "
                  "a mapping");
        return VNXI_CUDA_ERROR_INVALID_VALUE;
    }
    return fc_failure();
}

EXPORT vnxi_cu_result_t
cuMemSetAccess(vnxi_cu_ptr_t address, size_t size,
               const vnxi_cu_access_t *wishes, size_t count)
{
    ENTER(cuMemSetAccess, UNSAFE);
    for (size_t i = 0; i < count; i++) {
        if (wishes[i].location.type != VNXI_CU_MEM_LOCATION_TYPE_DEVICE ||
            wishes[i].flags > VNXI_CU_MEM_ACCESS_FLAGS_PROT_READWRITE) {
            return VNXI_CUDA_ERROR_INVALID_VALUE;
        }
        if (!fc_is_device(wishes[i].location.id)) {
            return VNXI_CUDA_ERROR_INVALID_DEVICE;
        }
    }
    lock();
    int status = size > 0 && is_mapped(address, size)
                     ? VNXI_CUDA_SUCCESS
                     : VNXI_CUDA_ERROR_INVALID_VALUE;
    for (uint64_t at = address;
         status == VNXI_CUDA_SUCCESS && at < address + size;) {
        chunk_t *chunk = fc_find_chunk(at);
        at += chunk->size;
        for (size_t i = 0; i < count; i++) {
            unsigned bit = 1u << wishes[i].location.id;
            if (chunk->device != wishes[i].location.id &&
                atomic_load(&fake_cuda.no_peers) != 0) {
                status = VNXI_CUDA_ERROR_PEER_ACCESS_UNSUPPORTED;
                break;
            }
            chunk->readable &= ~bit;
            chunk->writable &= ~bit;
            chunk->readable |= wishes[i].flags & 1 ? bit : 0;
            chunk->writable |= wishes[i].flags & 2 ? bit : 0;
        }
    }
    unlock();
    return status;
}

EXPORT vnxi_cu_result_t
cuMemExportToShareableHandle(void *shareable_p, vnxi_cu_mem_t handle,
                             vnxi_cu_enum_t type, unsigned long long flags)
{
    int status = VNXI_CUDA_ERROR_INVALID_VALUE;

    ENTER(cuMemExportToShareableHandle, UNSAFE);
    lock();
    memory_t *memory = find_handle(handle);
    if (memory != NULL && flags == 0 && (memory->handle_types & type) != 0) {
        if (type == VNXI_CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) {
            int fd = fc_export_fd(memory);
            memcpy(shareable_p, &fd, sizeof fd);
            status =
                fd >= 0 ? VNXI_CUDA_SUCCESS : VNXI_CUDA_ERROR_OUT_OF_MEMORY;
        } else if (type == VNXI_CU_MEM_HANDLE_TYPE_FABRIC) {
            fc_write_ticket(memory, 0, true, shareable_p);
            status = VNXI_CUDA_SUCCESS;
        }
    }
    unlock();
    return status;
}

/* The caller keeps its descriptor. */
EXPORT vnxi_cu_result_t
cuMemImportFromShareableHandle(vnxi_cu_mem_t *handle_p, void *shareable,
                               vnxi_cu_enum_t type)
{
    memory_t *memory = NULL;
    ticket_t ticket;

    ENTER(cuMemImportFromShareableHandle, UNSAFE);
    if (type == VNXI_CU_MEM_HANDLE_TYPE_FABRIC &&
        atomic_load(&fake_cuda.fabric) != FAKE_CUDA_FABRIC) {
        return VNXI_CUDA_ERROR_NOT_PERMITTED;
    }
    lock();
    if (type == VNXI_CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) {
        int fd = fc_open_again(getpid(), (int)(intptr_t)shareable);
        memory = fd >= 0 ? fc_import_memory(fd) : NULL;
    } else if (type == VNXI_CU_MEM_HANDLE_TYPE_FABRIC &&
               fc_read_ticket(shareable, &ticket, true)) {
        memory = fc_open_ticket(&ticket);
    }
    if (memory != NULL) {
        *handle_p = give_handle(memory);
    }
    unlock();
    return memory != NULL ? VNXI_CUDA_SUCCESS : VNXI_CUDA_ERROR_INVALID_VALUE;
}
