/*
 * Prepared lists: their blocks, reading them, their end.  list_builder.c makes
 * them.
 */
#include "engine/parts/list_block.h"

#include <stdlib.h>

#include "base/recycle.h"

#define ARENA_FIRST ((size_t)16 << 10)
#define ARENA_MAX ((size_t)512 << 10)

/* -- Scanning ------------------------------------------------------------- */

/* Two numbers of a row, or of two neighbours; a row has three numbers. */
typedef uint64_t pair_t
    __attribute__((vector_size(16), aligned(8), may_alias));

/* Return whether rows[0 .. 2 * pairs) continue the run of rows[0] and rows[1].
 * Two rows are three vectors, so lanes need not be moved. */
static bool
pairs_are_run(const vnx_desc_t *rows, size_t pairs)
{
    const pair_t *at = (const void *)rows;
    uint64_t step = 2 * (rows[1].addr - rows[0].addr);
    pair_t first = {rows[0].addr, rows[0].len};
    pair_t middle = {rows[0].dev, rows[1].addr};
    const pair_t last = {rows[0].len, rows[0].dev};
    const pair_t first_step = {step, 0}, middle_step = {0, step};

    while (pairs > 0) {
        size_t n = pairs < 16 ? pairs : 16;
        pair_t off = {0, 0};
        for (size_t i = 0; i < n; i++, at += 3) {
            off |= (at[0] ^ first) | (at[1] ^ middle) | (at[2] ^ last);
            first += first_step;
            middle += middle_step;
        }
        if ((off[0] | off[1]) != 0) {
            return false;
        }
        pairs -= n;
    }
    return true;
}

/* Return whether the rows are a run that does not wrap around the address
 * space.  Its ends are then its bounds. */
static bool
rows_are_run(const vnx_desc_t *rows, size_t count)
{
    if (count == 1) {
        return true;
    }
    int64_t stride = (int64_t)(rows[1].addr - rows[0].addr);
    __int128 last =
        (__int128)rows[0].addr + (__int128)stride * (__int128)(count - 1);
    return last >= 0 && last <= UINT64_MAX && pairs_are_run(rows, count / 2) &&
           rows[count - 1].addr == (uint64_t)last &&
           rows[count - 1].len == rows[0].len &&
           rows[count - 1].dev == rows[0].dev;
}

static vnxi_rows_scan_t
scan_run(const vnx_desc_t *rows, size_t count)
{
    uint64_t a = rows[0].addr, b = rows[count - 1].addr, len = rows[0].len;
    vnxi_rows_scan_t scan = {
        .low = a < b ? a : b, .run = true, .one_len = true, .one_dev = true};
    scan.bad = __builtin_add_overflow(a < b ? b : a, len, &scan.end);
    scan.bad |= len == 0;
    return scan;
}

/* Widen the scan, whose `end` is the highest address for now, by `pairs` pairs
 * of rows.  False: one has another length or device than `first`. */
static inline bool
scan_pairs(const vnx_desc_t *rows, size_t pairs, const vnx_desc_t *first,
           vnxi_rows_scan_t *scan)
{
    const pair_t one = {first->addr, first->len};
    const pair_t two = {first->dev, first->addr};
    const pair_t three = {first->len, first->dev};
    pair_t ones = {0, 0}, twos = {0, 0}, threes = {0, 0};
    const pair_t *at = (const void *)rows;
    uint64_t low = scan->low, high = scan->end;

    for (size_t i = 0; i < pairs; i++, at += 3) {
        uint64_t a = rows[2 * i].addr, b = rows[2 * i + 1].addr;
        low = a < low ? a : low;
        high = a > high ? a : high;
        low = b < low ? b : low;
        high = b > high ? b : high;
        ones |= at[0] ^ one;
        twos |= at[1] ^ two;
        threes |= at[2] ^ three;
    }
    scan->low = low;
    scan->end = high;
    scan->addr_bits |= ones[0] | twos[1];
    return (ones[1] | twos[0] | threes[0] | threes[1]) == 0;
}

/* Scan rows of one length and one device, the usual case, in less time than
 * scan_any() takes.  False: they differ. */
static bool
scan_uniform(const vnx_desc_t *rows, size_t count, vnxi_rows_scan_t *scan_p)
{
    const vnx_desc_t first = rows[0];
    vnxi_rows_scan_t scan = {.low = first.addr,
                             .end = first.addr,
                             .one_len = true,
                             .one_dev = true,
                             .len_is_u32 = first.len <= UINT32_MAX};
    size_t pairs = count / 2;

    for (rows += count % 2; pairs > 0;) {
        size_t n = pairs < 64 ? pairs : 64;
        if (!scan_pairs(rows, n, &first, &scan)) {
            return false;
        }
        rows += 2 * n;
        pairs -= n;
    }
    scan.bad = __builtin_add_overflow(scan.end, first.len, &scan.end);
    scan.bad |= first.len == 0;
    *scan_p = scan;
    return true;
}

static vnxi_rows_scan_t
scan_any(const vnx_desc_t *rows, size_t count)
{
    const vnx_desc_t first = rows[0];
    uint64_t low = UINT64_MAX, end = 0;
    uint64_t addr_bits = 0, len_bits = 0, dev_bits = 0, lens = 0;
    unsigned bad = 0;

    for (size_t i = 0; i < count; i++) {
        uint64_t addr = rows[i].addr, len = rows[i].len, stop = addr + len;
        low = addr < low ? addr : low;
        end = stop > end ? stop : end;
        bad |= stop <= addr; /* an overflow, or length 0 */
        addr_bits |= addr ^ first.addr;
        len_bits |= len ^ first.len;
        dev_bits |= rows[i].dev ^ first.dev;
        lens |= len;
    }
    return (vnxi_rows_scan_t){.low = low,
                              .end = end,
                              .addr_bits = addr_bits,
                              .one_len = len_bits == 0,
                              .one_dev = dev_bits == 0,
                              .len_is_u32 = lens <= UINT32_MAX,
                              .bad = bad != 0};
}

vnxi_rows_scan_t
vnxi_rows_scan(const vnx_desc_t *rows, size_t count)
{
    vnxi_rows_scan_t scan;

    if (rows_are_run(rows, count)) {
        return scan_run(rows, count);
    }
    return scan_uniform(rows, count, &scan) ? scan : scan_any(rows, count);
}

/* -- Encoding ------------------------------------------------------------- */

/* The number of low bits that are zero in all distances from the lowest
 * address. */
static unsigned
addr_shift(const vnxi_rows_scan_t *scan)
{
    return scan->addr_bits == 0 ? 0
                                : (unsigned)__builtin_ctzll(scan->addr_bits);
}

static vnxi_form_t
addr_form(const vnxi_rows_scan_t *scan)
{
    if (scan->run || scan->addr_bits == 0) {
        return VNXI_FORM_RUN;
    }
    return (scan->end - scan->low) >> addr_shift(scan) <= UINT32_MAX
               ? VNXI_FORM_U32
               : VNXI_FORM_U64;
}

static vnxi_form_t
len_form(const vnxi_rows_scan_t *scan)
{
    if (scan->one_len) {
        return VNXI_FORM_RUN;
    }
    return scan->len_is_u32 ? VNXI_FORM_U32 : VNXI_FORM_U64;
}

static size_t
form_size(vnxi_form_t form, size_t count)
{
    switch (form) {
    case VNXI_FORM_RUN:
        return 0;
    case VNXI_FORM_U32:
        return (count * 4 + 7) & ~(size_t)7;
    default:
        return count * 8;
    }
}

size_t
vnxi_block_size(const vnxi_rows_scan_t *scan, size_t count)
{
    return form_size(addr_form(scan), count) +
           form_size(len_form(scan), count) +
           form_size(scan->one_dev ? VNXI_FORM_RUN : VNXI_FORM_U64, count);
}

static void
encode_addrs(const vnxi_list_block_t *block, const vnx_desc_t *rows,
             size_t count, unsigned shift, void *data)
{
    uint32_t *u32 = data;
    uint64_t *u64 = data;

    if (block->addr_form == VNXI_FORM_U32) {
        for (size_t i = 0; i < count; i++) {
            u32[i] = (uint32_t)((rows[i].addr - block->base) >> shift);
        }
    } else if (block->addr_form == VNXI_FORM_U64) {
        for (size_t i = 0; i < count; i++) {
            u64[i] = rows[i].addr;
        }
    }
}

static void
encode_lens(const vnxi_list_block_t *block, const vnx_desc_t *rows,
            size_t count, void *data)
{
    uint32_t *u32 = data;
    uint64_t *u64 = data;

    if (block->len_form == VNXI_FORM_U32) {
        for (size_t i = 0; i < count; i++) {
            u32[i] = (uint32_t)rows[i].len;
        }
    } else if (block->len_form == VNXI_FORM_U64) {
        for (size_t i = 0; i < count; i++) {
            u64[i] = rows[i].len;
        }
    }
}

static void
encode_devs(const vnxi_list_block_t *block, const vnx_desc_t *rows,
            size_t count, uint64_t *data)
{
    for (size_t i = 0; i < count && block->dev_form != VNXI_FORM_RUN; i++) {
        data[i] = rows[i].dev;
    }
}

/* Set base and step of the addresses and write the explicit numbers, if any.
 */
static void
set_addrs(vnxi_list_block_t *block, const vnxi_rows_scan_t *scan,
          const vnx_desc_t *rows, size_t count, void *data)
{
    unsigned shift = addr_shift(scan);
    switch (block->addr_form) {
    case VNXI_FORM_RUN:
        block->base = rows[0].addr;
        block->step = count > 1 ? rows[1].addr - rows[0].addr : 0;
        break;
    case VNXI_FORM_U32:
        block->base = scan->low;
        block->step = (uint64_t)1 << shift;
        break;
    default:
        block->base = 0;
        block->step = 1;
    }
    encode_addrs(block, rows, count, shift, data);
}

void
vnxi_block_encode(const vnxi_rows_scan_t *scan, const vnx_desc_t *rows,
                  size_t count, void *data, vnxi_list_block_t *block_p)
{
    vnxi_form_t addrs = addr_form(scan), lens = len_form(scan);
    size_t len_at = form_size(addrs, count);
    size_t dev_at = len_at + form_size(lens, count);
    vnxi_list_block_t block = {
        .data = data,
        .addr_form = (uint8_t)addrs,
        .len_form = (uint8_t)lens,
        .dev_form = scan->one_dev ? VNXI_FORM_RUN : VNXI_FORM_U64,
        .len_at = (uint16_t)(len_at / 8),
        .dev_at = (uint16_t)(dev_at / 8),
        .len = rows[0].len,
        .dev = rows[0].dev,
    };
    set_addrs(&block, scan, rows, count, data);
    if (data != NULL) {
        encode_lens(&block, rows, count, (char *)data + len_at);
        encode_devs(&block, rows, count, (void *)((char *)data + dev_at));
    }
    *block_p = block;
}

/* -- Memory --------------------------------------------------------------- */

void *
vnxi_list_arena_alloc(vnxi_list_arena_t **arena_p, size_t size)
{
    vnxi_list_arena_t *arena = *arena_p;
    if (arena == NULL || arena->size - arena->used < size) {
        /* Double the size each time: a small list wastes little, and a big
         * list needs few arenas. */
        size_t bytes = arena == NULL ? ARENA_FIRST : arena->size * 2;
        bytes = bytes < ARENA_MAX ? bytes : ARENA_MAX;
        if (bytes < size + sizeof *arena) {
            bytes = size + sizeof *arena;
        }
        arena = vnxi_recycle_alloc(bytes);
        if (arena == NULL) {
            return NULL;
        }
        *arena = (vnxi_list_arena_t){
            .next = *arena_p, .size = bytes, .used = sizeof *arena};
        *arena_p = arena;
    }
    void *memory = (char *)arena + arena->used;
    arena->used += size;
    return memory;
}

void
vnxi_list_arena_free(vnxi_list_arena_t *arena)
{
    while (arena != NULL) {
        vnxi_list_arena_t *next = arena->next;
        vnxi_recycle_free(arena, arena->size);
        arena = next;
    }
}

/* -- Lists -----------------------------------------------------------------
 */

vnxi_list_t *
vnxi_list_retain(vnxi_list_t *list)
{
    atomic_fetch_add_explicit(&list->refs, 1, memory_order_relaxed);
    return list;
}

void
vnxi_list_release(vnxi_list_t *list)
{
    if (list == NULL || atomic_fetch_sub(&list->refs, 1) != 1) {
        return;
    }
    if (list->class != NULL && list->class->fini != NULL) {
        list->class->fini(list);
    }
    for (size_t i = 0; i < list->region_count; i++) {
        vnxi_region_release(list->regions[i]);
    }
    vnxi_list_arena_free(list->explicit);
    if (list->blocks_size != 0) {
        vnxi_recycle_free(list->blocks, list->blocks_size);
    }
    vnxi_peer_release(list->peer);
    free(list);
}

vnx_desc_t
vnxi_list_row(const vnxi_list_t *list, size_t i)
{
    const vnxi_list_block_t *block = vnxi_list_block_of(list, i);
    size_t at = i & (VNXI_LIST_BLOCK - 1);
    return (vnx_desc_t){.addr = vnxi_block_addr(block, at),
                        .len = vnxi_block_len(block, at),
                        .dev = vnxi_block_dev(block, at)};
}

const vnxi_region_t *
vnxi_list_unusable(const vnxi_list_t *list)
{
    for (size_t i = 0; i < list->region_count; i++) {
        if (atomic_load(&list->regions[i]->state) != VNXI_REGION_USABLE) {
            return list->regions[i];
        }
    }
    return NULL;
}

const vnxi_region_t *
vnxi_list_region_of(const vnxi_list_t *list, const vnx_desc_t *row)
{
    const uint64_t end = row->addr + row->len;
    size_t low = 0, high = list->region_count;

    while (low < high) {
        size_t middle = (low + high) / 2;
        const vnxi_region_t *region = list->regions[middle];
        if (region->dev < row->dev ||
            (region->dev == row->dev && region->addr <= row->addr)) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    /* The last region that starts before the row may be nested in the region
     * that holds it. */
    while (low > 1 && !vnxi_region_holds(list->regions[low - 1], row->addr,
                                         end, row->dev)) {
        low--;
    }
    /* 0: the caller changed its rows while they were being prepared. */
    return list->regions[low > 0 ? low - 1 : 0];
}

size_t
vnxi_list_count(const vnxi_list_t *list)
{
    return list->count;
}

size_t
vnxi_list_bytes(const vnxi_list_t *list)
{
    return list->bytes;
}
