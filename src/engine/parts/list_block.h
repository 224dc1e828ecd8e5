/*
 * The blocks of a prepared list: up to VNXI_LIST_BLOCK rows, encoded.
 *
 * Addresses, lengths and devices are each stored in the smallest of a few
 * forms.  `data` points to the explicit values: first the addresses, then the
 * lengths, then the devices, each part aligned to 8.
 */
#ifndef VNXI_PARTS_LIST_BLOCK_H
#define VNXI_PARTS_LIST_BLOCK_H

#include "engine/parts/list.h"

typedef enum {
    VNXI_FORM_RUN, /* addresses: one run.  Lengths, devices: all equal */
    VNXI_FORM_U32,
    VNXI_FORM_U64
} vnxi_form_t;

/*
 * The address of row i is base + n * step, modulo 2^64, where n is i in a run,
 * else number i of `data`.  The members are in the order of access; neither of
 * the first two pairs crosses a cache line.
 */
struct vnxi_list_block {
    const unsigned char *data;
    uint8_t addr_form, len_form, dev_form; /* vnxi_form_t */
    uint16_t len_at, dev_at;               /* in data, in units of 8 bytes */
    uint64_t base, step;
    uint64_t len, dev; /* if equal for all rows */
};

_Static_assert(sizeof(vnxi_list_block_t) == 48, "1 M rows in 50 kB");

/* Results of one pass over rows. */
typedef struct vnxi_rows_scan {
    uint64_t low, end;  /* the lowest address, the highest addr + len */
    uint64_t addr_bits; /* lowest address, highest addr + len */
    bool run;           /* one arithmetic run, one length, one device */
    bool one_len, one_dev, len_is_u32;
    bool bad; /* a length of 0, or an overflow */
} vnxi_rows_scan_t;

/* 0 < count <= VNXI_LIST_BLOCK */
vnxi_rows_scan_t vnxi_rows_scan(const vnx_desc_t *rows, size_t count);

/* Number of bytes of `data` that a block of these rows needs; a multiple of 8.
 */
size_t vnxi_block_size(const vnxi_rows_scan_t *scan, size_t count);

/* Encode the rows, which were checked.  `data` has that many bytes and is
 * kept. */
void vnxi_block_encode(const vnxi_rows_scan_t *scan, const vnx_desc_t *rows,
                       size_t count, void *data, vnxi_list_block_t *block_p);

static inline uint64_t
vnxi_block_addr_as(const vnxi_list_block_t *block, vnxi_form_t form, size_t i)
{
    uint64_t number = i;
    if (form == VNXI_FORM_U32) {
        number = ((const uint32_t *)(const void *)block->data)[i];
    } else if (form == VNXI_FORM_U64) {
        number = ((const uint64_t *)(const void *)block->data)[i];
    }
    return block->base + number * block->step;
}

static inline uint64_t
vnxi_block_addr(const vnxi_list_block_t *block, size_t i)
{
    return vnxi_block_addr_as(block, (vnxi_form_t)block->addr_form, i);
}

static inline const void *
vnxi_block_data(const vnxi_list_block_t *block, uint16_t at)
{
    return block->data + (size_t)at * 8;
}

static inline uint64_t
vnxi_block_len(const vnxi_list_block_t *block, size_t i)
{
    switch (block->len_form) {
    case VNXI_FORM_RUN:
        return block->len;
    case VNXI_FORM_U32:
        return ((const uint32_t *)vnxi_block_data(block, block->len_at))[i];
    default:
        return ((const uint64_t *)vnxi_block_data(block, block->len_at))[i];
    }
}

static inline uint64_t
vnxi_block_dev(const vnxi_list_block_t *block, size_t i)
{
    if (block->dev_form == VNXI_FORM_RUN) {
        return block->dev;
    }
    return ((const uint64_t *)vnxi_block_data(block, block->dev_at))[i];
}

static inline const vnxi_list_block_t *
vnxi_list_block_of(const vnxi_list_t *list, size_t row)
{
    return &list->blocks[row >> VNXI_LIST_BLOCK_BITS];
}

/* The region of the list that holds this row of it; borrowed.  O(log n),
 * except for nested regions. */
const vnxi_region_t *vnxi_list_region_of(const vnxi_list_t *list,
                                         const vnx_desc_t *row);

/* Memory that blocks point to: a chain of arenas, from base/recycle.h. */
typedef struct vnxi_list_arena {
    struct vnxi_list_arena *next;
    size_t size, used; /* in bytes, including this header */
} vnxi_list_arena_t;

/* Allocate `size` bytes aligned to 8; *arena_p is the head of the chain.
 * NULL: no memory. */
void *vnxi_list_arena_alloc(vnxi_list_arena_t **arena_p, size_t size);
void vnxi_list_arena_free(vnxi_list_arena_t *arena);

#endif
