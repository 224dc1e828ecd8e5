/*
 * The memory of the fake libcuda.so.1 (fake_cuda.h).
 *
 * Addresses of device memory are in an arena that nobody can read or write, so
 * a load or a store of the CPU ends the process as with a GPU.  The bytes are
 * in memfds, which copies see through a second mapping.  Other processes open
 * the memfd: by a descriptor that was sent to them, or through /proc, which
 * the 64 bytes of a handle say where.
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

/* fc_lock protects all of this. */
static uint64_t arena;
static chunk_t **chunks; /* by address */
static size_t chunk_count;
static range_t *ranges; /* by address */
static size_t range_count;
static memory_t *memories;
static uint64_t last_id;

/* -- Addresses -------------------------------------------------------------
 */

/* Somewhere else in every process, even if addresses are not randomised: an
 * address of a peer must never work here by luck.  Not by mmap(), for which
 * sanitizers would prepare all of the arena. */
void
fc_memory_start(void)
{
    uint64_t random = 0;

    if (getrandom(&random, sizeof random, 0) != sizeof random) {
        fc_violation("no random numbers");
    }
    uint64_t wish =
        UINT64_C(0x7e9000000000) + random % 4096 * UINT64_C(0x10000000);
    long at = syscall(SYS_mmap, wish, ARENA_SIZE + GRANULARITY, PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == -1) {
        fc_violation("no addresses for device memory");
    }
    arena = fc_round_up((uint64_t)at, GRANULARITY);
    last_id = random % 1000000 + 1;
}

bool
fc_is_device_address(uint64_t address)
{
    return address - arena < ARENA_SIZE;
}

/* The lowest free ones, behind a gap that no copy may touch.  0: all are
 * taken. */
uint64_t
fc_take_range(uint64_t size, uint64_t alignment, bool is_reservation)
{
    uint64_t start = arena + GRANULARITY;
    size_t at = 0;

    for (; at < range_count; at++) {
        start = fc_round_up(start, alignment);
        if (start + size + GRANULARITY <= ranges[at].start) {
            break;
        }
        start = ranges[at].start + ranges[at].size + GRANULARITY;
    }
    start = fc_round_up(start, alignment);
    if (size > ARENA_SIZE || start + size > arena + ARENA_SIZE) {
        return 0;
    }
    ranges = fc_need(realloc(ranges, (range_count + 1) * sizeof *ranges));
    memmove(&ranges[at + 1], &ranges[at], (range_count - at) * sizeof *ranges);
    ranges[at] = (range_t){start, size, is_reservation};
    range_count++;
    return start;
}

void
fc_give_range(uint64_t start)
{
    for (size_t i = 0; i < range_count; i++) {
        if (ranges[i].start == start) {
            memmove(&ranges[i], &ranges[i + 1],
                    (range_count - i - 1) * sizeof *ranges);
            range_count--;
            return;
        }
    }
    fc_violation("no range begins at %#llx", (unsigned long long)start);
}

range_t *
fc_find_reservation(uint64_t address)
{
    for (size_t i = 0; i < range_count; i++) {
        if (address - ranges[i].start < ranges[i].size) {
            return ranges[i].is_reservation ? &ranges[i] : NULL;
        }
    }
    return NULL;
}

/* The index of the first chunk that ends behind this address. */
static size_t
chunk_index(uint64_t address)
{
    size_t low = 0, high = chunk_count;

    while (low < high) {
        size_t middle = (low + high) / 2;
        if (chunks[middle]->start + chunks[middle]->size > address) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

chunk_t *
fc_find_chunk(uint64_t address)
{
    size_t i = chunk_index(address);
    return i < chunk_count && chunks[i]->start <= address ? chunks[i] : NULL;
}

bool
fc_overlaps_chunk(uint64_t start, uint64_t size)
{
    size_t i = chunk_index(start);
    return i < chunk_count && chunks[i]->start < start + size;
}

chunk_t *
fc_add_chunk(kind_t kind, uint64_t start, uint64_t size, memory_t *memory,
             size_t offset)
{
    size_t at = chunk_index(start);
    chunk_t *chunk = fc_need(calloc(1, sizeof *chunk));

    *chunk = (chunk_t){
        .kind = kind,
        .start = start,
        .size = size,
        .range_start = start,
        .range_size = size,
        .memory = memory,
        .device = -1,
        .id = ++last_id,
    };
    if (memory != NULL) {
        chunk->bytes = memory->bytes + offset;
        chunk->device = memory->device;
        memory->chunks++;
    }
    chunks = fc_need(realloc(chunks, (chunk_count + 1) * sizeof(chunk_t *)));
    memmove(&chunks[at + 1], &chunks[at],
            (chunk_count - at) * sizeof(chunk_t *));
    chunks[at] = chunk;
    chunk_count++;
    return chunk;
}

void
fc_remove_chunk(chunk_t *chunk)
{
    size_t at = chunk_index(chunk->start);

    if (chunk->users > 0) {
        fc_violation("a copy runs in memory at %#llx that is freed or "
                     "unmapped",
                     (unsigned long long)chunk->start);
    }
    memmove(&chunks[at], &chunks[at + 1],
            (chunk_count - at - 1) * sizeof(chunk_t *));
    chunk_count--;
    if (chunk->memory != NULL) {
        chunk->memory->chunks--;
        fc_release_if_unused(chunk->memory);
    }
    free(chunk);
}

chunk_t *
fc_next_chunk(const chunk_t *chunk)
{
    size_t at = chunk != NULL ? chunk_index(chunk->start) + 1 : 0;
    return at < chunk_count ? chunks[at] : NULL;
}

/* -- Pieces of memory ------------------------------------------------------
 */

/* Every open file of a piece has a lock for reading until its last descriptor
 * is closed, so that others can see whether the memory is used elsewhere.  The
 * kernel removes it when the process dies. */
static void
mark_used(int fd)
{
    struct flock all = {.l_type = F_RDLCK, .l_whence = SEEK_SET};
    if (fcntl(fd, F_OFD_SETLK, &all) != 0) {
        fc_violation("a memfd cannot be locked");
    }
}

bool
fc_is_used_elsewhere(const memory_t *memory)
{
    struct flock all = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    if (fcntl(memory->fd, F_OFD_GETLK, &all) != 0) {
        fc_violation("the locks of a memfd cannot be read");
    }
    return all.l_type != F_UNLCK;
}

/* Its own open file; -1: the process or the descriptor is gone. */
int
fc_open_again(int pid, int fd)
{
    char path[64];

    snprintf(path, sizeof path, "/proc/%d/fd/%d", pid, fd);
    return open(path, O_RDWR | O_CLOEXEC);
}

/* Takes the descriptor. */
static memory_t *
map_memory(int fd, const label_t *label)
{
    memory_t *memory = fc_need(calloc(1, sizeof *memory));
    struct stat info;
    void *bytes =
        mmap(NULL, label->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    if (bytes == MAP_FAILED || fstat(fd, &info) != 0) {
        fc_violation("no addresses for the bytes of memory");
    }
    mark_used(fd);
    *memory = (memory_t){
        .fd = fd,
        .size = label->size,
        .bytes = bytes,
        .inode = info.st_ino,
        .device = -1,
        .handle_types = label->handle_types,
        .is_rdma_capable = label->is_rdma_capable,
        .next = memories,
    };
    for (int i = FAKE_CUDA_DEVICES - 1; i >= 0; i--) {
        if (fc_is_device(i) &&
            atomic_load(&fake_cuda.uuid[i]) == label->uuid) {
            memory->device = i;
        }
    }
    memories = memory;
    atomic_fetch_add(&fake_cuda.fds, 1);
    return memory;
}

/* NULL: no descriptors, or no memory. */
memory_t *
fc_make_memory(size_t size, int device, unsigned handle_types,
               bool is_rdma_capable)
{
    label_t label = {
        .magic = MAGIC,
        .size = fc_round_up(size, PAGE),
        .handle_types = handle_types,
        .uuid = atomic_load(&fake_cuda.uuid[device]),
        .is_rdma_capable = is_rdma_capable,
    };
    int fd = memfd_create("fake GPU memory", MFD_CLOEXEC);

    if (fd < 0) {
        perror("fake libcuda: memfd_create");
        return NULL;
    }
    if (size > ARENA_SIZE || ftruncate(fd, label.size + PAGE) != 0 ||
        pwrite(fd, &label, sizeof label, label.size) != sizeof label) {
        close(fd);
        return NULL;
    }
    memory_t *memory = map_memory(fd, &label);
    memory->device = device;
    return memory;
}

/* Takes the descriptor.  NULL: it is none of a piece of memory. */
memory_t *
fc_import_memory(int fd)
{
    label_t label;
    struct stat info;

    if (fstat(fd, &info) != 0 || info.st_size < (off_t)PAGE ||
        pread(fd, &label, sizeof label, info.st_size - PAGE) != sizeof label ||
        memcmp(label.magic, MAGIC, sizeof label.magic) != 0) {
        close(fd);
        return NULL;
    }
    return map_memory(fd, &label);
}

void
fc_release_if_unused(memory_t *memory)
{
    if (memory->handles > 0 || memory->chunks > 0) {
        return;
    }
    memory_t **at = &memories;
    while (*at != memory) {
        at = &(*at)->next;
    }
    *at = memory->next;
    munmap(memory->bytes, memory->size);
    close(memory->fd);
    atomic_fetch_sub(&fake_cuda.fds, 1);
    free(memory);
}

bool
fc_read_ticket(const void *bytes, ticket_t *ticket_p, bool is_fabric)
{
    memcpy(ticket_p, bytes, sizeof *ticket_p);
    return memcmp(ticket_p->magic, MAGIC, sizeof ticket_p->magic) == 0 &&
           ticket_p->is_fabric == is_fabric;
}

/* NULL: what it stands for is gone. */
memory_t *
fc_open_ticket(const ticket_t *ticket)
{
    struct stat info;
    int fd = fc_open_again(ticket->pid, ticket->fd);

    if (fd < 0) {
        return NULL;
    }
    if (fstat(fd, &info) != 0 || info.st_ino != ticket->inode) {
        close(fd);
        return NULL;
    }
    return fc_import_memory(fd);
}

/* A file of its own, so that its lock tells how long it lives (mark_used()).
 */
int
fc_export_fd(const memory_t *memory)
{
    int fd = fc_open_again(getpid(), memory->fd);

    if (fd >= 0) {
        mark_used(fd);
    }
    return fd;
}

void
fc_write_ticket(const memory_t *memory, size_t offset, bool is_fabric,
                void *bytes_p)
{
    ticket_t ticket = {
        .magic = MAGIC,
        .inode = memory->inode,
        .offset = offset,
        .pid = getpid(),
        .fd = memory->fd,
        .is_fabric = is_fabric,
    };

    memset(bytes_p, 0, VNXI_CU_IPC_HANDLE_SIZE);
    memcpy(bytes_p, &ticket, sizeof ticket);
}

memory_t *
fc_next_memory(const memory_t *memory)
{
    return memory != NULL ? memory->next : memories;
}

/* -- Access ----------------------------------------------------------------
 */

static const char *
check_access(const context_t *context, const chunk_t *chunk, access_t access,
             bool is_kernel)
{
    unsigned rights =
        access == ACCESS_WRITE ? chunk->writable : chunk->readable;

    if (context == NULL || (rights & 1u << context->device)) {
        return NULL;
    }
    /* The driver lets copy engines of one process read any of its devices. */
    if (chunk->kind == KIND_LEGACY &&
        (!is_kernel || (context->peers & 1u << chunk->device))) {
        return NULL;
    }
    return access == ACCESS_WRITE ? "the device may not write"
                                  : "the device may not read";
}

view_t
fc_pin(const context_t *context, uint64_t address, size_t len, access_t access,
       bool is_kernel, const char *what)
{
    lock();
    chunk_t *chunk = fc_find_chunk(address);
    const char *reason = chunk == NULL
                             ? "nothing is mapped"
                             : check_access(context, chunk, access, is_kernel);
    if (reason != NULL) {
        fc_violation("%s %zu bytes at %#llx, where %s", what, len,
                     (unsigned long long)address, reason);
    }
    uint64_t offset = address - chunk->start;
    chunk->users++;
    view_t view = {
        .bytes = chunk->bytes + offset,
        .len = len < chunk->size - offset ? len : chunk->size - offset,
        .chunk = chunk,
    };
    unlock();
    return view;
}

void
fc_unpin(view_t *view)
{
    lock();
    view->chunk->users--;
    unlock();
}

bool
fc_is_registered(const void *data, size_t len)
{
    lock();
    chunk_t *chunk = fc_find_chunk((uintptr_t)data);
    bool yes = chunk != NULL &&
               (chunk->kind == KIND_HOST || chunk->kind == KIND_MANAGED) &&
               len <= chunk->size - ((uintptr_t)data - chunk->start);
    unlock();
    return yes;
}

bool
fc_shared(uint64_t address)
{
    lock();
    chunk_t *chunk = fc_find_chunk(address);
    if (chunk == NULL || chunk->memory == NULL) {
        fc_violation("a test asks for memory that is none");
    }
    bool yes = fc_is_used_elsewhere(chunk->memory);
    unlock();
    return yes;
}

int
fc_memory_of_lock_held(const context_t *context)
{
    int count = 0;

    for (size_t i = 0; i < chunk_count; i++) {
        count += chunks[i]->context == context;
    }
    return count;
}

void
fc_allow(chunk_t *chunk, unsigned devices)
{
    chunk->readable = chunk->writable = devices;
}

/* -- Questions about addresses ---------------------------------------------
 */

/* Managed memory has no range for the driver. */
EXPORT vnxi_cu_result_t
cuMemGetAddressRange_v2(vnxi_cu_ptr_t *start_p, size_t *size_p,
                        vnxi_cu_ptr_t address)
{
    ENTER(cuMemGetAddressRange_v2, CONTEXT);
    lock();
    chunk_t *chunk = fc_find_chunk(address);
    bool is_known = chunk != NULL && chunk->kind != KIND_MANAGED;
    if (is_known) {
        if (start_p != NULL) {
            *start_p = chunk->start;
        }
        if (size_p != NULL) {
            *size_p = chunk->size;
        }
    }
    unlock();
    return is_known ? VNXI_CUDA_SUCCESS : VNXI_CUDA_ERROR_NOT_FOUND;
}

EXPORT vnxi_cu_result_t
cuDeviceTotalMem_v2(size_t *size_p, int device)
{
    ENTER(cuDeviceTotalMem_v2, 0);
    if (!fc_is_device(device)) {
        return VNXI_CUDA_ERROR_INVALID_DEVICE;
    }
    *size_p = ARENA_SIZE;
    return VNXI_CUDA_SUCCESS;
}

/* Of this process alone. */
EXPORT vnxi_cu_result_t
cuMemGetInfo_v2(size_t *free_p, size_t *total_p)
{
    ENTER(cuMemGetInfo_v2, CONTEXT);
    *free_p = *total_p = ARENA_SIZE;
    lock();
    for (const memory_t *memory = memories; memory != NULL;
         memory = memory->next) {
        *free_p -= memory->size;
    }
    unlock();
    return VNXI_CUDA_SUCCESS;
}

/* Headers and documents do not say how many bytes of an attribute the driver
 * writes, so callers must give eight that are zero: this touches all of them,
 * and changes the fewest. */
static void
set_low_bytes(void *at, uint64_t value, unsigned width)
{
    uint64_t mask = width == 8 ? ~UINT64_C(0) : (UINT64_C(1) << 8 * width) - 1;
    uint64_t bytes;

    memcpy(&bytes, at, sizeof bytes);
    bytes = (bytes & ~mask) | (value & mask);
    memcpy(at, &bytes, sizeof bytes);
}

static void
set_bool(void *at, bool value)
{
    set_low_bytes(at, value, 1);
}

static void
set_int(void *at, int value)
{
    set_low_bytes(at, (unsigned)value, 4);
}

static void
set_u64(void *at, uint64_t value)
{
    set_low_bytes(at, value, 8);
}

/* What the driver says of memory that it does not know. */
static bool
write_nothing(unsigned attribute, void *data)
{
    switch (attribute) {
    case VNXI_CU_POINTER_ATTRIBUTE_CONTEXT:
    case POINTER_DEVICE_POINTER:
    case POINTER_HOST_POINTER:
    case VNXI_CU_POINTER_ATTRIBUTE_BUFFER_ID:
    case VNXI_CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
    case VNXI_CU_POINTER_ATTRIBUTE_RANGE_SIZE:
    case VNXI_CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE:
        set_u64(data, 0);
        return true;
    case VNXI_CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
    case VNXI_CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES:
        set_int(data, 0);
        return true;
    case POINTER_SYNC_MEMOPS:
    case VNXI_CU_POINTER_ATTRIBUTE_IS_MANAGED:
    case VNXI_CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE:
    case VNXI_CU_POINTER_ATTRIBUTE_MAPPED:
    case VNXI_CU_POINTER_ATTRIBUTE_IS_GPU_DIRECT_RDMA_CAPABLE:
        set_bool(data, false);
        return true;
    case VNXI_CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
        set_int(data, -2);
        return true;
    default:
        return false;
    }
}

static uint64_t
host_pointer(const chunk_t *chunk, uint64_t address)
{
    switch (chunk->kind) {
    case KIND_HOST:
    case KIND_ALIAS:
    case KIND_MANAGED:
        return (uintptr_t)chunk->bytes + (address - chunk->start);
    default:
        return 0;
    }
}

uint64_t
fc_device_pointer(const chunk_t *chunk, uint64_t address)
{
    if (chunk->kind == KIND_HOST && chunk->readable == 0) { /* has an alias */
        for (size_t i = 0; i < chunk_count; i++) {
            if (chunks[i]->kind == KIND_ALIAS &&
                chunks[i]->bytes == chunk->bytes) {
                return chunks[i]->start + (address - chunk->start);
            }
        }
    }
    return address;
}

static void
write_attribute(unsigned attribute, void *data, const chunk_t *chunk,
                uint64_t address)
{
    bool is_host = chunk->kind == KIND_HOST || chunk->kind == KIND_ALIAS;
    const memory_t *memory = chunk->memory;

    switch (attribute) {
    case VNXI_CU_POINTER_ATTRIBUTE_CONTEXT:
        set_u64(data, (uintptr_t)chunk->context);
        break;
    case VNXI_CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
        set_int(data,
                is_host ? VNXI_CU_MEMORYTYPE_HOST : VNXI_CU_MEMORYTYPE_DEVICE);
        break;
    case POINTER_DEVICE_POINTER:
        set_u64(data, fc_device_pointer(chunk, address));
        break;
    case POINTER_HOST_POINTER:
        set_u64(data, host_pointer(chunk, address));
        break;
    case VNXI_CU_POINTER_ATTRIBUTE_BUFFER_ID:
        set_u64(data, chunk->id);
        break;
    case VNXI_CU_POINTER_ATTRIBUTE_IS_MANAGED:
        set_bool(data, chunk->kind == KIND_MANAGED);
        break;
    case VNXI_CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
        set_int(data, chunk->device);
        break;
    case VNXI_CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE:
        set_bool(data, chunk->kind == KIND_LEGACY);
        break;
    case VNXI_CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
        set_u64(data, chunk->range_start);
        break;
    case VNXI_CU_POINTER_ATTRIBUTE_RANGE_SIZE:
        set_u64(data, chunk->range_size);
        break;
    case VNXI_CU_POINTER_ATTRIBUTE_MAPPED:
        set_bool(data, true);
        break;
    case VNXI_CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES:
        set_int(data, memory != NULL ? memory->handle_types : 0);
        break;
    case VNXI_CU_POINTER_ATTRIBUTE_IS_GPU_DIRECT_RDMA_CAPABLE:
        set_bool(data, memory != NULL && memory->is_rdma_capable);
        break;
    case VNXI_CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE:
        set_u64(data, (uintptr_t)chunk->pool);
        break;
    default:
        break;
    }
}

/* Of reserved addresses where nothing is mapped. */
static void
write_reserved(unsigned attribute, void *data, const range_t *range)
{
    switch (attribute) {
    case VNXI_CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
        set_int(data, VNXI_CU_MEMORYTYPE_DEVICE);
        break;
    case VNXI_CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
        set_u64(data, range->start);
        break;
    case VNXI_CU_POINTER_ATTRIBUTE_RANGE_SIZE:
        set_u64(data, range->size);
        break;
    default:
        break;
    }
}

/* Needs no context: its first attribute is how one finds the context. */
EXPORT vnxi_cu_result_t
cuPointerGetAttributes(unsigned count, vnxi_cu_enum_t *attributes, void **data,
                       vnxi_cu_ptr_t address)
{
    ENTER(cuPointerGetAttributes, 0);
    lock();
    const chunk_t *chunk = fc_find_chunk(address);
    const range_t *range = fc_find_reservation(address);
    int status = VNXI_CUDA_SUCCESS;
    for (unsigned i = 0; i < count; i++) {
        if (!write_nothing(attributes[i], data[i])) {
            status = VNXI_CUDA_ERROR_INVALID_VALUE;
        } else if (chunk != NULL) {
            write_attribute(attributes[i], data[i], chunk, address);
        } else if (range != NULL) {
            write_reserved(attributes[i], data[i], range);
        }
    }
    unlock();
    return status;
}
