/*
 * Design notes.  The index has the start addresses of all live regions of the
 * memory type, sorted by (dev, addr).  For each position it also has the
 * region that reaches farthest among those of the same device up to there.  If
 * any region holds a row, that one does: it starts no later and ends no
 * earlier.
 *
 * Usually there is only one device.  The range of all regions is then divided
 * into equal slots, at least two per region.  Each slot has the position where
 * a search for an address in it begins; for every slot, `width` positions from
 * there are enough.  So a search takes one or two steps and has no branch that
 * could be mispredicted.
 *
 * A hit is appended unless it is among the most recent ones, so `hits` may
 * contain a region several times.  Duplicates are removed when the array is
 * full, before it grows, and at the end.
 */
#include "engine/parts/list_finder.h"

#include <stdlib.h>
#include <string.h>

#include "base/recycle.h"

/* Rows to look up one by one before building an index pays off. */
#define SEARCHES_BEFORE_INDEX 64u

/* A slot takes 4 bytes. */
#define SLOTS_MIN 2048u
#define SLOTS_MAX (1u << 20)

/* Number of recent hits that a new one is compared with. */
#define RECENT_HITS 4u

struct vnxi_finder_index {
    size_t size; /* of this allocation, including all arrays */
    size_t count;
    uint64_t *starts; /* followed by as many that are above every address */
    uint64_t *ends, *devs;
    vnxi_region_t **regions;
    unsigned char *seen;
    uint64_t low; /* start of slot 0 */
    unsigned shift;
    size_t width; /* 0: without slots */
    size_t slot_count;
    uint32_t *slots;
};

/* The positions of one device and the data for searching them. */
typedef struct view {
    const uint64_t *starts, *ends;
    unsigned char *seen;
    const uint32_t *slots;
    uint64_t low;
    unsigned shift;
    size_t last_slot, width;
} view_t;

void
vnxi_finder_init(vnxi_finder_t *finder, const vnxi_region_table_t *table,
                 vnx_mem_t mem)
{
    finder->table = table;
    finder->mem = mem;
    finder->last = NULL;
    finder->at = SIZE_MAX; /* position 0 is next */
    finder->searches = 0;
    finder->index = NULL;
    finder->hits = finder->few;
    finder->hit_count = 0;
    finder->hit_capacity = VNXI_FINDER_FEW;
    finder->is_sorted = true;
}

void
vnxi_finder_fini(vnxi_finder_t *finder)
{
    if (finder->hits != finder->few) {
        free(finder->hits);
    }
    if (finder->index != NULL) {
        vnxi_recycle_free(finder->index, finder->index->size);
    }
}

/* -- Hits ----------------------------------------------------------------- */

static vnx_status_t
hits_grow(vnxi_finder_t *finder)
{
    size_t capacity = finder->hit_capacity * 4;
    bool few = finder->hits == finder->few;
    vnxi_region_t **hits =
        realloc(few ? NULL : finder->hits, capacity * sizeof *hits);
    if (hits == NULL) {
        return VNX_ERR_NO_MEMORY;
    }
    if (few) {
        memcpy(hits, finder->few, sizeof finder->few);
    }
    finder->hits = hits;
    finder->hit_capacity = capacity;
    return VNX_OK;
}

/* Compare by (dev, addr, len), then by the address of the object, so that
 * duplicates become neighbours. */
static int
compare_regions(const void *a, const void *b)
{
    const vnxi_region_t *one = *(vnxi_region_t *const *)a;
    const vnxi_region_t *two = *(vnxi_region_t *const *)b;
    if (one->dev != two->dev) {
        return one->dev < two->dev ? -1 : 1;
    }
    if (one->addr != two->addr) {
        return one->addr < two->addr ? -1 : 1;
    }
    if (one->len != two->len) {
        return one->len < two->len ? -1 : 1;
    }
    return ((uintptr_t)one > (uintptr_t)two) -
           ((uintptr_t)one < (uintptr_t)two);
}

/* Sort the hits and remove duplicates. */
static void
hits_compact(vnxi_finder_t *finder)
{
    vnxi_region_t **hits = finder->hits;
    size_t count = finder->hit_count, kept = 1;

    if (finder->is_sorted) {
        return;
    }
    qsort(hits, count, sizeof(vnxi_region_t *), compare_regions);
    for (size_t i = 1; i < count; i++) {
        if (hits[i] != hits[kept - 1]) {
            hits[kept++] = hits[i];
        }
    }
    finder->hit_count = kept;
    finder->is_sorted = true;
}

static vnx_status_t
hits_append(vnxi_finder_t *finder, vnxi_region_t *region)
{
    if (finder->hit_count == finder->hit_capacity) {
        /* Afterwards at least half of the array is free, so sorting pays off.
         */
        hits_compact(finder);
        if (finder->hit_count > finder->hit_capacity / 2 &&
            hits_grow(finder) != VNX_OK) {
            return VNX_ERR_NO_MEMORY;
        }
    }
    vnxi_region_t **place = &finder->hits[finder->hit_count];
    *place = region;
    if (finder->hit_count++ > 0 && compare_regions(place - 1, place) >= 0) {
        finder->is_sorted = false;
    }
    return VNX_OK;
}

static vnx_status_t
note_hit(vnxi_finder_t *finder, vnxi_region_t *region)
{
    size_t count = finder->hit_count;
    size_t oldest = count > RECENT_HITS ? count - RECENT_HITS : 0;

    finder->last = region;
    for (size_t i = count; i > oldest; i--) {
        if (finder->hits[i - 1] == region) {
            return VNX_OK;
        }
    }
    return hits_append(finder, region);
}

/* Find a range in the region of the last hit or in the one that follows it in
 * the table.  VNX_ERR_NOT_FOUND: neither holds it. */
static inline vnx_status_t
find_near(vnxi_finder_t *finder, uint64_t addr, uint64_t len, uint64_t dev)
{
    if (finder->last != NULL &&
        vnxi_region_holds(finder->last, addr, addr + len, dev)) {
        return VNX_OK;
    }
    vnxi_region_t *region = vnxi_region_table_next(
        finder->table, finder->mem, addr, len, dev, &finder->at);
    return region != NULL ? note_hit(finder, region) : VNX_ERR_NOT_FOUND;
}

vnx_status_t
vnxi_finder_range(vnxi_finder_t *finder, uint64_t addr, uint64_t len,
                  uint64_t dev)
{
    vnx_status_t status = find_near(finder, addr, len, dev);
    if (status != VNX_ERR_NOT_FOUND) {
        return status;
    }
    vnxi_region_t *region = vnxi_region_table_find_at(
        finder->table, finder->mem, addr, len, dev, &finder->at);
    return region != NULL ? note_hit(finder, region) : VNX_ERR_NOT_FOUND;
}

/* -- The index ------------------------------------------------------------ */

/* The last position in [0, n) whose number is not above `key`; 0 if all are
 * above.  Written with arithmetic so that it compiles without branches. */
static inline size_t
last_up_to(const uint64_t *numbers, size_t n, uint64_t key)
{
    size_t at = 0;
    while (n > 1) {
        size_t half = n / 2;
        at += half & -(size_t)(numbers[at + half] <= key);
        n -= half;
    }
    return at;
}

/* Slots need a single device and positions that fit in 32 bits. */
static bool
index_can_have_slots(const vnxi_finder_index_t *index)
{
    return index->count > 0 && index->count <= UINT32_MAX &&
           index->devs[0] == index->devs[index->count - 1];
}

static size_t
slots_for(size_t regions)
{
    size_t slots = SLOTS_MIN;
    while (slots < 2 * regions && slots < SLOTS_MAX) {
        slots *= 2;
    }
    return slots;
}

static void
index_fill_slots(vnxi_finder_index_t *index)
{
    size_t count = index->count, at = 0;
    uint64_t range = index->ends[count - 1] - index->starts[0];

    index->low = index->starts[0];
    index->shift = 0;
    while (range >> index->shift >= index->slot_count) {
        index->shift++;
    }
    index->width = 2; /* valid, because positions above every address follow */
    for (uint64_t slot = 0; slot < index->slot_count; slot++) {
        /* The slot covers the last region that starts at or before the slot's
         * start, up to the last one that starts before the next slot. */
        while (at + 1 < count &&
               (index->starts[at + 1] - index->low) >> index->shift < slot) {
            at++;
        }
        size_t end = at + 1;
        while (end < count &&
               (index->starts[end] - index->low) >> index->shift <= slot) {
            end++;
        }
        index->slots[slot] = (uint32_t)at;
        index->width = end - at > index->width ? end - at : index->width;
    }
}

static vnxi_finder_index_t *
index_create(const vnxi_finder_t *finder)
{
    size_t count = vnxi_region_table_count(finder->table);
    size_t slots = slots_for(count);
    vnxi_finder_index_t *index;
    size_t size = sizeof *index + count * (5 * 8 + 1) + slots * 4;

    index = vnxi_recycle_alloc(size);
    if (index == NULL) {
        return NULL;
    }
    index->size = size;
    index->starts = (void *)(index + 1);
    index->ends = index->starts + 2 * count;
    index->devs = index->ends + count;
    index->regions = (void *)(index->devs + count);
    index->slots = (void *)(index->regions + count);
    index->slot_count = slots;
    index->seen = (void *)(index->slots + slots);
    index->width = 0;
    memset(index->starts, 0xff, 2 * count * sizeof *index->starts);
    memset(index->seen, 0, count);
    index->count =
        vnxi_region_table_copy(finder->table, finder->mem, index->starts,
                               index->devs, index->ends, index->regions);
    if (index_can_have_slots(index)) {
        index_fill_slots(index);
    }
    return index;
}

/* False: the device has no regions. */
static bool
index_view(const vnxi_finder_index_t *index, uint64_t dev, view_t *view_p)
{
    static const uint32_t no_slots[1] = {0};
    bool slots = index->width > 0;
    size_t end = index->count, first = 0;
    size_t last = end > 0 ? last_up_to(index->devs, end, dev) : 0;

    if (end == 0 || index->devs[last] != dev) {
        return false;
    }
    if (!slots && dev > 0) {
        first = last_up_to(index->devs, end, dev - 1);
        first += index->devs[first] != dev;
    }
    *view_p = (view_t){
        .starts = index->starts + first,
        .ends = index->ends + first,
        .seen = index->seen + first,
        .slots = slots ? index->slots : no_slots,
        .low = slots ? index->low : 0,
        .shift = slots ? index->shift : 0,
        .last_slot = slots ? index->slot_count - 1 : 0,
        .width = slots ? index->width : last - first + 1,
    };
    return true;
}

static inline size_t
view_slot(const view_t *view, uint64_t addr)
{
    uint64_t slot = (addr - view->low) >> view->shift;
    return view->slots[slot < view->last_slot ? slot : view->last_slot];
}

/* All rows are of the view's device.  `width` is the view's; inlined for a
 * constant width. */
static inline __attribute__((always_inline)) bool
view_holds_by(const view_t *view, const vnx_desc_t *rows, size_t count,
              size_t width)
{
    const view_t v = *view;
    unsigned out = 0;
    for (size_t i = 0; i < count; i++) {
        uint64_t addr = rows[i].addr;
        size_t at = view_slot(&v, addr);
        at += last_up_to(v.starts + at, width, addr);
        out |= (unsigned)(addr < v.starts[at]) |
               (unsigned)(addr + rows[i].len > v.ends[at]);
        v.seen[at] = 1;
    }
    return out == 0;
}

static bool
view_holds(const view_t *view, const vnx_desc_t *rows, size_t count)
{
    return view->width == 2 ? view_holds_by(view, rows, count, 2)
                            : view_holds_by(view, rows, count, view->width);
}

/* -- Rows ----------------------------------------------------------------- */

static vnx_status_t
find_one_by_one(vnxi_finder_t *finder, const vnx_desc_t *rows, size_t count)
{
    finder->searches += count;
    for (size_t i = 0; i < count; i++) {
        vnx_status_t status =
            vnxi_finder_range(finder, rows[i].addr, rows[i].len, rows[i].dev);
        if (status != VNX_OK) {
            return status;
        }
    }
    return VNX_OK;
}

/* Rows that follow the order of the regions need no index.  *done_p: how many
 * of the first rows were found. */
static vnx_status_t
find_in_order(vnxi_finder_t *finder, const vnx_desc_t *rows, size_t count,
              size_t *done_p)
{
    size_t i = 0;
    vnx_status_t status =
        vnxi_finder_range(finder, rows[0].addr, rows[0].len, rows[0].dev);

    if (status != VNX_OK) {
        return status;
    }
    while (status == VNX_OK && ++i < count) {
        status = find_near(finder, rows[i].addr, rows[i].len, rows[i].dev);
    }
    *done_p = i;
    return status == VNX_ERR_NOT_FOUND ? VNX_OK : status;
}

static vnx_status_t
find_by_index(vnxi_finder_t *finder, const vnx_desc_t *rows, size_t count,
              bool one_dev)
{
    if (finder->index == NULL) {
        finder->index = index_create(finder);
    }
    if (finder->index == NULL) {
        return VNX_ERR_NO_MEMORY;
    }
    for (size_t i = 0, n; i < count; i += n) {
        view_t view;
        for (n = one_dev ? count : 1;
             i + n < count && rows[i + n].dev == rows[i].dev; n++) {
        }
        if (!index_view(finder->index, rows[i].dev, &view) ||
            !view_holds(&view, rows + i, n)) {
            return VNX_ERR_NOT_FOUND;
        }
    }
    return VNX_OK;
}

vnx_status_t
vnxi_finder_rows(vnxi_finder_t *finder, const vnx_desc_t *rows, size_t count,
                 const vnxi_rows_scan_t *scan)
{
    /* Usually one region holds all of them. */
    if (scan->one_dev) {
        vnx_status_t status = vnxi_finder_range(
            finder, scan->low, scan->end - scan->low, rows[0].dev);
        if (status != VNX_ERR_NOT_FOUND) {
            return status;
        }
    }
    if (finder->index == NULL &&
        finder->searches + count <= SEARCHES_BEFORE_INDEX) {
        return find_one_by_one(finder, rows, count);
    }
    size_t done = 0;
    vnx_status_t status = finder->index == NULL
                              ? find_in_order(finder, rows, count, &done)
                              : VNX_OK;
    if (status != VNX_OK || done == count) {
        return status;
    }
    return find_by_index(finder, rows + done, count - done, scan->one_dev);
}

/* -- Finishing ------------------------------------------------------------ */

vnx_status_t
vnxi_finder_finish(vnxi_finder_t *finder)
{
    const vnxi_finder_index_t *index = finder->index;
    const vnxi_region_t *before = NULL;

    for (size_t i = 0; index != NULL && i < index->count; i++) {
        /* The region that reaches farthest repeats at the following positions.
         */
        if (index->seen[i] == 0 || index->regions[i] == before) {
            continue;
        }
        before = index->regions[i];
        if (hits_append(finder, index->regions[i]) != VNX_OK) {
            return VNX_ERR_NO_MEMORY;
        }
    }
    hits_compact(finder);
    return VNX_OK;
}
