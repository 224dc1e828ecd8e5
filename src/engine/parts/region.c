/*
 * Regions and region tables.
 *
 * Design notes.  A table is one allocation: its regions in the order of the
 * wire; their start addresses, packed (the binary search reads only these);
 * and for each position, the region among those up to there, of the same type
 * and device, that reaches farthest, and its end.  If any region holds a
 * range, that one does, since it starts no later and ends no earlier.  So
 * nesting and overlaps cost nothing.  As long as no region is gone, a copy of
 * the table reads no region.  Regions of one type and device are a group; a
 * table has only a few groups.
 */
#include "engine/parts/region.h"

#include <stdlib.h>
#include <string.h>

typedef struct group {
    vnx_mem_t mem;
    uint64_t dev;
    size_t first, end; /* positions in the arrays */
} group_t;

struct vnxi_region_table {
    atomic_uint refs;
    size_t count, group_count;
    bool is_live;         /* no region was gone when the table was built */
    uint64_t revocations; /* at that time */
    /* All five arrays follow this header in the same allocation. */
    vnxi_region_t **regions; /* each retained */
    uint64_t *addrs;
    uint64_t *ends; /* of the region that reaches farthest */
    group_t *groups;
    uint32_t *farthest; /* from the group's first region up to here */
};

/* -- Regions -------------------------------------------------------------- */

vnxi_region_t *
vnxi_region_retain(vnxi_region_t *region)
{
    atomic_fetch_add_explicit(&region->refs, 1, memory_order_relaxed);
    return region;
}

void
vnxi_region_release(vnxi_region_t *region)
{
    if (region != NULL && atomic_fetch_sub(&region->refs, 1) == 1) {
        if (region->class != NULL && region->class->fini != NULL) {
            region->class->fini(region);
        }
        free(region);
    }
}

vnxi_region_t *
vnxi_region_create(const vnxi_region_class_t *class, vnx_mem_t mem,
                   uint64_t addr, uint64_t len, uint64_t dev)
{
    vnxi_region_t *region =
        calloc(1, class != NULL ? class->size : sizeof *region);
    if (region == NULL) {
        return NULL;
    }
    *region = (vnxi_region_t){
        .mem = mem, .addr = addr, .len = len, .dev = dev, .class = class};
    atomic_init(&region->refs, 1);
    atomic_init(&region->state, VNXI_REGION_USABLE);
    if (class != NULL && class->init != NULL) {
        class->init(region);
    }
    return region;
}

static atomic_uint_fast64_t revocations;

void
vnxi_region_revoke(vnxi_region_t *region)
{
    unsigned state = atomic_load(&region->state);

    while (state < VNXI_REGION_REVOKED &&
           !atomic_compare_exchange_weak(&region->state, &state,
                                         VNXI_REGION_REVOKED)) {
    }
    atomic_fetch_add(&revocations, 1);
}

void
vnxi_region_settle(vnxi_region_t *region, bool is_confirmed)
{
    unsigned from = VNXI_REGION_UNCONFIRMED;

    if (atomic_compare_exchange_strong(&region->state, &from,
                                       is_confirmed ? VNXI_REGION_USABLE
                                                    : VNXI_REGION_REFUSED) &&
        !is_confirmed) {
        atomic_fetch_add(&revocations, 1);
    }
}

void
vnxi_region_doubt(vnxi_region_t *region)
{
    unsigned from = VNXI_REGION_USABLE;

    if (atomic_compare_exchange_strong(&region->state, &from,
                                       VNXI_REGION_UNCONFIRMED)) {
        atomic_fetch_add(&revocations, 1);
    }
}

uint64_t
vnxi_region_revocations(void)
{
    return atomic_load_explicit(&revocations, memory_order_acquire);
}

static int
compare_u64(uint64_t a, uint64_t b)
{
    return (a > b) - (a < b);
}

int
vnxi_region_compare(const vnxi_region_t *a, const vnxi_region_t *b)
{
    int order = compare_u64(a->mem, b->mem);
    order = order != 0 ? order : compare_u64(a->dev, b->dev);
    order = order != 0 ? order : compare_u64(a->addr, b->addr);
    return order != 0 ? order : compare_u64(a->len, b->len);
}

/* -- Building a table ----------------------------------------------------- */

static int
compare_places(const void *a, const void *b)
{
    return vnxi_region_compare(*(vnxi_region_t *const *)a,
                               *(vnxi_region_t *const *)b);
}

static bool
is_sorted(vnxi_region_t *const *regions, size_t count)
{
    for (size_t i = 1; i < count; i++) {
        if (vnxi_region_compare(regions[i - 1], regions[i]) > 0) {
            return false;
        }
    }
    return true;
}

static bool
is_same_group(const vnxi_region_t *a, const vnxi_region_t *b)
{
    return a->mem == b->mem && a->dev == b->dev;
}

static size_t
count_groups(vnxi_region_t *const *regions, size_t count)
{
    size_t groups = count > 0;
    for (size_t i = 1; i < count; i++) {
        groups += !is_same_group(regions[i - 1], regions[i]);
    }
    return groups;
}

static void
fill_group(vnxi_region_table_t *table, group_t *group, size_t first)
{
    vnxi_region_t **regions = table->regions;
    uint32_t farthest = (uint32_t)first;
    size_t i = first;
    for (; i < table->count && is_same_group(regions[first], regions[i]);
         i++) {
        table->addrs[i] = regions[i]->addr;
        if (vnxi_region_end(regions[i]) >=
            vnxi_region_end(regions[farthest])) {
            farthest = (uint32_t)i;
        }
        table->farthest[i] = farthest;
        table->ends[i] = vnxi_region_end(regions[farthest]);
        table->is_live &= !vnxi_region_is_gone(regions[i]);
    }
    *group = (group_t){.mem = regions[first]->mem,
                       .dev = regions[first]->dev,
                       .first = first,
                       .end = i};
}

/* One allocation for the header and the arrays, widest elements first. */
static vnxi_region_table_t *
table_alloc(size_t count, size_t group_count)
{
    size_t each =
        sizeof(vnxi_region_t *) + 2 * sizeof(uint64_t) + sizeof(uint32_t);
    if (count > UINT32_MAX) {
        return NULL;
    }
    vnxi_region_table_t *table =
        malloc(sizeof *table + count * each + group_count * sizeof(group_t));
    if (table != NULL) {
        atomic_init(&table->refs, 1);
        table->count = count;
        table->group_count = group_count;
        table->groups = (group_t *)(table + 1);
        table->regions = (vnxi_region_t **)(table->groups + group_count);
        table->addrs = (uint64_t *)(table->regions + count);
        table->ends = table->addrs + count;
        table->farthest = (uint32_t *)(table->ends + count);
    }
    return table;
}

/* `regions` is sorted. */
static vnxi_region_table_t *
table_build(vnxi_region_t *const *regions, size_t count)
{
    vnxi_region_table_t *table =
        table_alloc(count, count_groups(regions, count));
    if (table == NULL) {
        return NULL;
    }
    table->is_live = true;
    table->revocations = vnxi_region_revocations();
    for (size_t i = 0; i < count; i++) {
        table->regions[i] = vnxi_region_retain(regions[i]);
    }
    size_t first = 0;
    for (size_t g = 0; g < table->group_count; g++) {
        fill_group(table, &table->groups[g], first);
        first = table->groups[g].end;
    }
    return table;
}

vnxi_region_table_t *
vnxi_region_table_create(vnxi_region_t *const *regions, size_t count)
{
    if (is_sorted(regions, count)) {
        return table_build(regions, count);
    }
    vnxi_region_t **sorted = malloc(count * sizeof(vnxi_region_t *));
    if (sorted == NULL) {
        return NULL;
    }
    memcpy(sorted, regions, count * sizeof(vnxi_region_t *));
    qsort(sorted, count, sizeof(vnxi_region_t *), compare_places);
    vnxi_region_table_t *table = table_build(sorted, count);
    free(sorted);
    return table;
}

vnxi_region_table_t *
vnxi_region_table_retain(vnxi_region_table_t *table)
{
    atomic_fetch_add_explicit(&table->refs, 1, memory_order_relaxed);
    return table;
}

void
vnxi_region_table_release(vnxi_region_table_t *table)
{
    if (table == NULL || atomic_fetch_sub(&table->refs, 1) != 1) {
        return;
    }
    for (size_t i = 0; i < table->count; i++) {
        vnxi_region_release(table->regions[i]);
    }
    free(table);
}

/* -- Searching ------------------------------------------------------------ */

static const group_t *
find_group(const vnxi_region_table_t *table, vnx_mem_t mem, uint64_t dev)
{
    size_t low = 0, high = table->group_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const group_t *group = &table->groups[middle];
        if (group->mem < mem || (group->mem == mem && group->dev < dev)) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    const group_t *group = &table->groups[low];
    bool found =
        low < table->group_count && group->mem == mem && group->dev == dev;
    return found ? group : NULL;
}

/* The number of sorted `addrs` that are <= addr.  The loop has no branch that
 * could be mispredicted. */
static size_t
count_up_to(const uint64_t *addrs, size_t count, uint64_t addr)
{
    const uint64_t *base = addrs;
    while (count > 1) {
        size_t half = count / 2;
        base += half & -(size_t)(base[half - 1] <= addr);
        count -= half;
    }
    return (size_t)(base - addrs) + (count == 1 && base[0] <= addr);
}

/* Regions `first` to `last` all start at or before the range, which ends at
 * `end`.  Find one that reaches that far and is not gone. */
static vnxi_region_t *
walk_back(const vnxi_region_table_t *table, size_t first, size_t last,
          uint64_t end)
{
    for (size_t i = last + 1; i-- > first;) {
        if (vnxi_region_end(table->regions[table->farthest[i]]) < end) {
            return NULL;
        }
        vnxi_region_t *region = table->regions[i];
        if (vnxi_region_end(region) >= end && !vnxi_region_is_gone(region)) {
            return region;
        }
    }
    return NULL;
}

vnxi_region_t *
vnxi_region_table_find_at(const vnxi_region_table_t *table, vnx_mem_t mem,
                          uint64_t addr, uint64_t len, uint64_t dev,
                          size_t *at_p)
{
    const group_t *group = find_group(table, mem, dev);
    uint64_t end;
    if (group == NULL || __builtin_add_overflow(addr, len, &end)) {
        return NULL;
    }
    size_t before = count_up_to(table->addrs + group->first,
                                group->end - group->first, addr);
    if (before == 0) {
        return NULL;
    }
    size_t last = group->first + before - 1;
    *at_p = last;
    vnxi_region_t *region = table->regions[table->farthest[last]];
    if (vnxi_region_end(region) < end) {
        return NULL;
    }
    if (vnxi_region_is_gone(region)) {
        return walk_back(table, group->first, last, end);
    }
    return region;
}

vnxi_region_t *
vnxi_region_table_find(const vnxi_region_table_t *table, vnx_mem_t mem,
                       uint64_t addr, uint64_t len, uint64_t dev)
{
    size_t at;
    return vnxi_region_table_find_at(table, mem, addr, len, dev, &at);
}

vnxi_region_t *
vnxi_region_table_next(const vnxi_region_table_t *table, vnx_mem_t mem,
                       uint64_t addr, uint64_t len, uint64_t dev, size_t *at)
{
    const uint64_t *addrs = table->addrs;
    size_t next = *at + 1;

    if (next >= table->count || addrs[next] > addr ||
        (next + 1 < table->count && addrs[next + 1] <= addr)) {
        return NULL;
    }
    vnxi_region_t *region = table->regions[next];
    if (region->mem != mem || region->dev != dev ||
        table->farthest[next] != next || vnxi_region_is_gone(region) ||
        vnxi_region_end(region) < addr + len) {
        return NULL;
    }
    *at = next;
    return region;
}

/* Copy a group, of which no region is gone. */
static void
copy_group(const vnxi_region_table_t *table, const group_t *group,
           uint64_t *starts_p, uint64_t *devs_p, uint64_t *ends_p,
           vnxi_region_t **farthest_p)
{
    size_t count = group->end - group->first;

    memcpy(starts_p, table->addrs + group->first, count * sizeof *starts_p);
    memcpy(ends_p, table->ends + group->first, count * sizeof *ends_p);
    for (size_t i = 0; i < count; i++) {
        devs_p[i] = group->dev;
        farthest_p[i] = table->regions[table->farthest[group->first + i]];
    }
}

/* The same for the regions of a group that are not gone; returns how many. */
static size_t
copy_live(const vnxi_region_table_t *table, const group_t *group,
          uint64_t *starts_p, uint64_t *devs_p, uint64_t *ends_p,
          vnxi_region_t **farthest_p)
{
    size_t n = 0;

    for (size_t i = group->first; i < group->end; i++) {
        vnxi_region_t *region = table->regions[i];
        if (vnxi_region_is_gone(region)) {
            continue;
        }
        starts_p[n] = region->addr;
        devs_p[n] = region->dev;
        ends_p[n] = vnxi_region_end(region);
        farthest_p[n] = region;
        if (n > 0 && ends_p[n - 1] > ends_p[n]) {
            ends_p[n] = ends_p[n - 1];
            farthest_p[n] = farthest_p[n - 1];
        }
        n++;
    }
    return n;
}

size_t
vnxi_region_table_copy(const vnxi_region_table_t *table, vnx_mem_t mem,
                       uint64_t *starts_p, uint64_t *devs_p, uint64_t *ends_p,
                       vnxi_region_t **farthest_p)
{
    bool is_live =
        table->is_live && table->revocations == vnxi_region_revocations();
    size_t n = 0;

    for (size_t g = 0; g < table->group_count; g++) {
        const group_t *group = &table->groups[g];
        if (group->mem != mem) {
            continue;
        }
        if (is_live) {
            copy_group(table, group, starts_p + n, devs_p + n, ends_p + n,
                       farthest_p + n);
            n += group->end - group->first;
        } else {
            n += copy_live(table, group, starts_p + n, devs_p + n, ends_p + n,
                           farthest_p + n);
        }
    }
    return n;
}

bool
vnxi_region_table_covers(const vnxi_region_table_t *table, vnx_mem_t mem,
                         const vnx_desc_t *descs, size_t count)
{
    bool covers = table != NULL;

    for (size_t i = 0; covers && i < count; i++) {
        covers = vnxi_region_table_find(table, mem, descs[i].addr,
                                        descs[i].len, descs[i].dev) != NULL;
    }
    return covers;
}

vnxi_region_t *
vnxi_region_table_exact(const vnxi_region_table_t *table, vnx_mem_t mem,
                        uint64_t addr, uint64_t len, uint64_t dev)
{
    const vnxi_region_t key = {
        .mem = mem, .addr = addr, .len = len, .dev = dev};
    size_t low = 0, high = table->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (vnxi_region_compare(table->regions[middle], &key) < 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    bool found = low < table->count &&
                 vnxi_region_compare(table->regions[low], &key) == 0;
    return found ? table->regions[low] : NULL;
}

size_t
vnxi_region_table_count(const vnxi_region_table_t *table)
{
    return table->count;
}

vnxi_region_t *
vnxi_region_table_at(const vnxi_region_table_t *table, size_t i)
{
    return table->regions[i];
}
