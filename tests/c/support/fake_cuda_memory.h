/*
 * What the memory of the fake libcuda.so.1 consists of (fake_cuda_memory.c).
 * fc_lock protects all of it, and is held during every call.
 */
#ifndef FAKE_CUDA_MEMORY_H
#define FAKE_CUDA_MEMORY_H

#include "fake_cuda_parts.h"

#define PAGE UINT64_C(4096)
#define GRANULARITY UINT64_C(0x200000)
#define SMALL UINT64_C(0x100000) /* up to this, allocations share a block */
#define ARENA_SIZE UINT64_C(0x4000000000)
#define MAGIC "FAKECUD"

/* A piece of GPU memory. */
typedef struct memory {
    int fd;
    size_t size;
    uint8_t *bytes;
    uint64_t inode;
    int device;            /* here; -1: a GPU that this process does not see */
    unsigned handle_types; /* that were asked for */
    bool is_rdma_capable;
    int handles; /* references of users */
    int chunks;
    uint64_t block; /* the address of a block for several allocations */
    struct memory *next;
} memory_t;

/* The last page of a memfd, for processes that open it. */
typedef struct label {
    char magic[8];
    uint64_t size;
    unsigned handle_types;
    uint8_t uuid;
    bool is_rdma_capable;
} label_t;

/* What the bytes of a handle say. */
typedef struct ticket {
    char magic[8];
    uint64_t inode, offset;
    int pid, fd;
    bool is_fabric;
} ticket_t;

typedef enum kind {
    KIND_LEGACY,
    KIND_POOL,
    KIND_VMM,
    KIND_IMPORT,
    KIND_MANAGED,
    KIND_HOST,
    KIND_ALIAS, /* of KIND_HOST, for the device */
} kind_t;

/* The beginning of cuda.h's CUmemPoolProps. */
typedef struct pool_props {
    unsigned type, handle_types;
    vnxi_cu_location_t location;
} pool_props_t;

/* Addresses with bytes behind them. */
typedef struct chunk {
    kind_t kind;
    uint64_t start, size;
    uint64_t range_start, range_size;
    uint8_t *bytes;
    memory_t *memory; /* NULL: host memory */
    uint64_t id;
    context_t *context;
    int device;
    unsigned readable, writable; /* by these devices */
    int users;                   /* copies that run */
    int opens;                   /* of an import */
    struct CUmemPoolHandle_st *pool;
} chunk_t;

/* Addresses of the arena that are taken. */
typedef struct range {
    uint64_t start, size;
    bool is_reservation;
} range_t;

struct CUmemPoolHandle_st {
    int device;
    unsigned handle_types;
    bool is_import;
    unsigned access; /* of imports: devices that may use it */
};

/* -- Addresses -------------------------------------------------------------
 */

/* The lowest free ones, behind a gap that no copy may touch.  0: all are
 * taken. */
uint64_t fc_take_range(uint64_t size, uint64_t alignment, bool is_reservation);

/* It begins there. */
void fc_give_range(uint64_t start);

/* The reservation that an address is in, or NULL. */
range_t *fc_find_reservation(uint64_t address);

/* The chunk that an address is in, or NULL. */
chunk_t *fc_find_chunk(uint64_t address);
bool fc_overlaps_chunk(uint64_t start, uint64_t size);
chunk_t *fc_next_chunk(const chunk_t *chunk); /* NULL: the first one */

/* With these bytes of the memory, if it is not NULL. */
chunk_t *fc_add_chunk(kind_t kind, uint64_t start, uint64_t size,
                      memory_t *memory, size_t offset);

/* Its memory ends with its last chunk and handle. */
void fc_remove_chunk(chunk_t *chunk);

/* These devices, a bit each, may read and write it. */
void fc_allow(chunk_t *chunk, unsigned devices);

/* Where the device finds what a chunk of host memory has there. */
uint64_t fc_device_pointer(const chunk_t *chunk, uint64_t address);

/* -- Pieces of memory ------------------------------------------------------
 */

/* NULL: no descriptors, or no memory. */
memory_t *fc_make_memory(size_t size, int device, unsigned handle_types,
                         bool is_rdma_capable);

/* Takes the descriptor.  NULL: it is none of a piece of memory. */
memory_t *fc_import_memory(int fd);

void fc_release_if_unused(memory_t *memory);
memory_t *fc_next_memory(const memory_t *memory); /* NULL: the first one */

/* Has another process it, or anyone a descriptor of it? */
bool fc_is_used_elsewhere(const memory_t *memory);

/* A descriptor for others; -1: there are too many. */
int fc_export_fd(const memory_t *memory);

/* An open file of its own of what another process, or this one, has open. */
int fc_open_again(int pid, int fd);

/* 64 bytes that others open the memory by. */
void fc_write_ticket(const memory_t *memory, size_t offset, bool is_fabric,
                     void *bytes_p);
bool fc_read_ticket(const void *bytes, ticket_t *ticket_p, bool is_fabric);

/* NULL: what it stands for is gone. */
memory_t *fc_open_ticket(const ticket_t *ticket);

static inline uint64_t
fc_round_up(uint64_t n, uint64_t to)
{
    return (n + to - 1) / to * to;
}

static inline void *
fc_need(void *block)
{
    if (block == NULL) {
        fc_violation("no memory");
    }
    return block;
}

#endif
