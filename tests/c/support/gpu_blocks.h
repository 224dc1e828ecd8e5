/*
 * Blocks of memory of every kind that a client of CUDA may register, on the
 * fake libcuda.so.1: made, filled and read without an agent.
 */
#ifndef GPU_BLOCKS_H
#define GPU_BLOCKS_H

#include "agent_fixture.h"
#include "fake_cuda_load.h"

#include <sys/mman.h>

#define KIB ((size_t)1 << 10)
#define MIB ((size_t)1 << 20)
#define CHUNK (2 * MIB) /* granularity of cuMemCreate() */

typedef enum kind {
    CPU,
    PINNED,        /* CPU memory that the program has registered with CUDA */
    LEGACY,        /* cuMemAlloc() */
    MAPPED,        /* cuMemCreate() and cuMemMap(), several pieces in a row */
    MAPPED_FD,     /* the same, which can be exported as a descriptor */
    MAPPED_FABRIC, /* the same, as a fabric handle */
    MANAGED,
    POOL,
    KINDS
} kind_t;

typedef struct block {
    kind_t kind;
    vnx_mem_t mem;
    uint64_t addr, size;
} block_t;

/* The current one. */
static inline int
gpu_of_thread(void)
{
    vnxi_cu_context_t current, context = NULL;
    int gpu = -1;

    CU_OK(cu.cuCtxGetCurrent(&current));
    while (context != current) {
        CU_OK(cu.cuDevicePrimaryCtxRetain(&context, ++gpu));
        CU_OK(cu.cuDevicePrimaryCtxRelease_v2(gpu));
    }
    return gpu;
}

/* New memory at reserved addresses. */
static inline void
fill_pieces(vnxi_cu_ptr_t at, size_t size, vnxi_cu_enum_t handle_types)
{
    const vnxi_cu_alloc_prop_t prop = {
        .type = VNXI_CU_MEM_ALLOCATION_TYPE_PINNED,
        .requestedHandleTypes = handle_types,
        .location = {VNXI_CU_MEM_LOCATION_TYPE_DEVICE, gpu_of_thread()},
    };
    const vnxi_cu_access_t access = {prop.location,
                                     VNXI_CU_MEM_ACCESS_FLAGS_PROT_READWRITE};

    for (size_t done = 0; done < size; done += CHUNK) {
        vnxi_cu_mem_t piece;
        CU_OK(cu.cuMemCreate(&piece, CHUNK, &prop, 0));
        CU_OK(cu.cuMemMap(at + done, CHUNK, 0, piece, 0));
        CU_OK(cu.cuMemRelease(piece));
    }
    CU_OK(cu.cuMemSetAccess(at, size, &access, 1));
}

static inline vnxi_cu_ptr_t
map_pieces(size_t size, vnxi_cu_enum_t handle_types)
{
    vnxi_cu_ptr_t at;

    CU_OK(cu.cuMemAddressReserve(&at, size, 0, 0, 0));
    fill_pieces(at, size, handle_types);
    return at;
}

/* Such blocks are of whole pieces. */
static inline bool
is_mapped(kind_t kind)
{
    return kind == MAPPED || kind == MAPPED_FD || kind == MAPPED_FABRIC;
}

static inline vnxi_cu_enum_t
handle_types_of(kind_t kind)
{
    return kind == MAPPED_FD ? VNXI_CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
           : kind == MAPPED_FABRIC ? VNXI_CU_MEM_HANDLE_TYPE_FABRIC
                                   : VNXI_CU_MEM_HANDLE_TYPE_NONE;
}

static inline void *
map_pages(size_t size)
{
    void *data = mmap(NULL, size, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(data != MAP_FAILED);
    return data;
}

static inline block_t
make_block(kind_t kind, size_t size)
{
    block_t block = {kind, VNX_MEM_VRAM, 0, size};
    vnxi_cu_ptr_t at = 0;

    switch (kind) {
    case CPU:
    case PINNED:
        block.mem = VNX_MEM_DRAM;
        at = (uintptr_t)map_pages(size);
        if (kind == PINNED) {
            CU_OK(cu.cuMemHostRegister_v2((void *)(uintptr_t)at, size,
                                          VNXI_CU_MEMHOSTREGISTER_PORTABLE));
        }
        break;
    case LEGACY:
        CU_OK(cu.cuMemAlloc_v2(&at, size));
        break;
    case MAPPED:
    case MAPPED_FD:
    case MAPPED_FABRIC:
        atomic_store(&fake->fabric, FAKE_CUDA_FABRIC);
        block.size = (size + CHUNK - 1) / CHUNK * CHUNK;
        at = map_pieces(block.size, handle_types_of(kind));
        break;
    case MANAGED:
        CU_OK(client.cuMemAllocManaged(&at, size, 1));
        break;
    case POOL:
        CU_OK(client.cuMemAllocAsync(&at, size, NULL));
        CU_OK(client.cuCtxSynchronize());
        break;
    case KINDS:
        break;
    }
    block.addr = at;
    return block;
}

static inline void
free_block(const block_t *block)
{
    void *data = (void *)(uintptr_t)block->addr;

    switch (block->kind) {
    case PINNED:
        CU_OK(cu.cuMemHostUnregister(data));
        munmap(data, block->size);
        break;
    case CPU:
        munmap(data, block->size);
        break;
    case LEGACY:
    case MANAGED:
    case POOL:
        CU_OK(cu.cuMemFree_v2(block->addr));
        break;
    case MAPPED:
    case MAPPED_FD:
    case MAPPED_FABRIC:
        CU_OK(cu.cuMemUnmap(block->addr, block->size));
        CU_OK(cu.cuMemAddressFree(block->addr, block->size));
        break;
    case KINDS:
        break;
    }
}

static inline void
put(const block_t *block, uint64_t at, const void *data, size_t len)
{
    if (block->mem == VNX_MEM_DRAM) {
        memcpy((void *)(uintptr_t)(block->addr + at), data, len);
    } else {
        calls->poke(block->addr + at, data, len);
    }
}

static inline void
get(const block_t *block, uint64_t at, void *data, size_t len)
{
    if (block->mem == VNX_MEM_DRAM) {
        memcpy(data, (const void *)(uintptr_t)(block->addr + at), len);
    } else {
        calls->peek(block->addr + at, data, len);
    }
}

static inline void
put_all(const block_t *block, unsigned seed)
{
    unsigned char *bytes = malloc(block->size);
    fill(bytes, block->size, seed);
    put(block, 0, bytes, block->size);
    free(bytes);
}

static inline unsigned char *
get_all(const block_t *block)
{
    unsigned char *bytes = malloc(block->size);
    get(block, 0, bytes, block->size);
    return bytes;
}

/* -- Rows of two blocks ----------------------------------------------------
 */

static inline uint64_t
draw(uint64_t *state, uint64_t below)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (*state >> 33) % below;
}

/* Rows of any length and alignment that do not overlap on either side. */
static inline size_t
draw_rows(uint64_t *seed, const block_t *local, const block_t *remote,
          vnx_desc_t *left, vnx_desc_t *right, size_t most)
{
    uint64_t longest = UINT64_C(1) << (4 + draw(seed, 15));
    uint64_t at_left = draw(seed, 100), at_right = draw(seed, 100);
    size_t count = 0;

    while (count < most) {
        uint64_t len = 1 + draw(seed, longest);
        at_left += draw(seed, 3) == 0 ? draw(seed, 300) : 0;
        at_right += draw(seed, 3) == 0 ? draw(seed, 300) : 0;
        if (at_left + len > local->size || at_right + len > remote->size) {
            break;
        }
        left[count] = (vnx_desc_t){local->addr + at_left, len, 0};
        right[count++] = (vnx_desc_t){remote->addr + at_right, len, 0};
        at_left += len;
        at_right += len;
    }
    return count;
}

/* For tests whether the calls of the driver grow with the rows.  Sanitizers
 * slow down the fake, not what is tested. */
enum { MANY_ROWS = VNX_TEST_IS_WATCHED ? 10000 : 100000, MANY_ROW = 4096 };

/* MANY_ROWS rows of MANY_ROW bytes, none next to the one before it. */
static inline void
scatter_rows(const block_t *local, const block_t *remote, vnx_desc_t *left,
             vnx_desc_t *right)
{
    for (size_t i = 0; i < MANY_ROWS; i++) {
        left[i] = (vnx_desc_t){local->addr + (i * 7919 % MANY_ROWS) * MANY_ROW,
                               MANY_ROW, 0};
        right[i] = (vnx_desc_t){
            remote->addr + (i * 104729 % MANY_ROWS) * MANY_ROW, MANY_ROW, 0};
    }
}

/* What a transfer of these rows must make of the bytes that it writes. */
static inline void
apply(unsigned char *to, uint64_t to_base, const unsigned char *from,
      uint64_t from_base, const vnx_desc_t *dst, const vnx_desc_t *src,
      size_t count)
{
    for (size_t i = 0; i < count; i++) {
        memcpy(to + (dst[i].addr - to_base), from + (src[i].addr - from_base),
               src[i].len);
    }
}

#endif
