/*
 * The registry: the local agent's registrations.
 *
 * Design notes.  The set is a sorted array of pointers.  A call merges in (or
 * takes out) a sorted batch, with one memmove() per gap between its members,
 * so a single row costs a binary search and one move, and a big batch costs
 * one pass.  Work that may fail or takes long (checking, allocating,
 * attaching) is done before the lock is taken, and memory is freed after it is
 * released.  A change drops the snapshot; the next request creates a new one.
 *
 * Changes are serialised by change_lock, so that it is known which regions are
 * new while the engine attaches to them.  This may take long; lists can be
 * prepared in the meantime.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/error.h"
#include "base/mutex.h"
#include "engine/parts/region.h"

#define ADD "vnx_agent_register"
#define REMOVE "vnx_agent_deregister"

struct vnxi_registry {
    const vnxi_region_class_t *class;
    vnxi_attach_t attach;
    void *context;
    vnxi_mutex_t change_lock; /* taken first; held for a whole change */
    vnxi_mutex_t lock;
    vnxi_region_t **regions; /* protected by lock, as below; each retained */
    size_t count, capacity;
    vnxi_region_table_t *snapshot; /* NULL: to be created */
    /* Written under the lock, read without it. */
    atomic_uint_fast64_t epoch;
    atomic_size_t visible_count;
};

static void
release_some(vnxi_region_t *const *regions, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        vnxi_region_release(regions[i]);
    }
}

vnxi_registry_t *
vnxi_registry_create(const vnxi_region_class_t *class, vnxi_attach_t attach,
                     void *context)
{
    vnxi_registry_t *registry = calloc(1, sizeof *registry);
    if (registry == NULL) {
        return NULL;
    }
    registry->class = class;
    registry->attach = attach;
    registry->context = context;
    vnxi_mutex_init(&registry->change_lock, VNXI_RANK_REGISTRY_CHANGE);
    vnxi_mutex_init(&registry->lock, VNXI_RANK_REGISTRY);
    return registry;
}

void
vnxi_registry_free(vnxi_registry_t *registry)
{
    if (registry == NULL) {
        return;
    }
    release_some(registry->regions, registry->count);
    free(registry->regions);
    vnxi_region_table_release(registry->snapshot);
    vnxi_mutex_destroy(&registry->lock);
    vnxi_mutex_destroy(&registry->change_lock);
    free(registry);
}

/* The position of the first of `count` regions that is not less than `key`. */
static size_t
lower_bound(vnxi_region_t *const *regions, size_t count,
            const vnxi_region_t *key)
{
    size_t low = 0, high = count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (vnxi_region_compare(regions[middle], key) < 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

/* The position of the region with the values of `key`; `count` if not found.
 */
static size_t
registry_place(const vnxi_registry_t *registry, const vnxi_region_t *key)
{
    size_t at = lower_bound(registry->regions, registry->count, key);
    bool found = at < registry->count &&
                 vnxi_region_compare(registry->regions[at], key) == 0;
    return found ? at : registry->count;
}

/* Returns the old snapshot; the caller releases it without the lock. */
static vnxi_region_table_t *
registry_changed(vnxi_registry_t *registry)
{
    vnxi_region_table_t *old = registry->snapshot;
    registry->snapshot = NULL;
    atomic_fetch_add(&registry->epoch, 1);
    atomic_store(&registry->visible_count, registry->count);
    return old;
}

/* -- Adding --------------------------------------------------------------- */

static bool
is_storage(vnx_mem_t mem)
{
    return mem == VNX_MEM_BLK || mem == VNX_MEM_OBJ || mem == VNX_MEM_FILE;
}

vnxi_region_t
vnxi_region_key(vnx_mem_t mem, const vnx_reg_desc_t *row)
{
    bool all_of_it = row->desc.len == 0 && is_storage(mem);
    return (vnxi_region_t){.mem = mem,
                           .addr = row->desc.addr,
                           .len = all_of_it ? UINT64_MAX : row->desc.len,
                           .dev = row->desc.dev};
}

static const char *
row_fault(vnx_mem_t mem, const vnx_desc_t *desc)
{
    if (desc->len == 0) {
        return is_storage(mem) ? NULL : "the length is 0";
    }
    return desc->len > UINT64_MAX - desc->addr ? "address + length overflows"
                                               : NULL;
}

/* Return whether all of [start, end] is mapped, with any protection (also
 * PROT_NONE).  The call itself does nothing.  If a system call filter forbids
 * it, the result is true. */
static bool
is_mapped(uint64_t start, uint64_t end)
{
    static atomic_size_t page_size;
    size_t page = atomic_load_explicit(&page_size, memory_order_relaxed);

    if (page == 0) {
        page = (size_t)sysconf(_SC_PAGESIZE);
        atomic_store_explicit(&page_size, page, memory_order_relaxed);
    }
    start &= ~(uint64_t)(page - 1);
    if (end - start >= UINT64_MAX - page) {
        return false; /* the kernel would round the length up to 0 */
    }
    return msync((void *)(uintptr_t)start, end - start + 1, MS_ASYNC) == 0 ||
           errno != ENOMEM;
}

static bool
has_mapped_ends(const vnx_desc_t *desc)
{
    uint64_t last = desc->addr + desc->len - 1;

    return is_mapped(desc->addr, desc->addr) && is_mapped(last, last);
}

/* Find the first row with an end that is not mapped; `count` if there are
 * none.  Rows usually lie in a few mappings, so one call often covers many.
 * Only if a gap lies between them is each half examined. */
static size_t
find_unmapped(const vnx_reg_desc_t *descs, size_t count)
{
    uint64_t start = UINT64_MAX, end = 0;

    for (size_t i = 0; i < count; i++) {
        const vnx_desc_t *desc = &descs[i].desc;
        uint64_t last = desc->addr + desc->len - 1;
        start = desc->addr < start ? desc->addr : start;
        end = last > end ? last : end;
    }
    if (count == 0 || is_mapped(start, end)) {
        return count;
    }
    if (count == 1) {
        return has_mapped_ends(&descs[0].desc) ? count : 0;
    }
    size_t half = count / 2, found = find_unmapped(descs, half);
    return found < half ? found
                        : half + find_unmapped(descs + half, count - half);
}

static vnx_status_t
check_mapped(const vnx_reg_desc_t *descs, size_t count, vnx_error_t *error)
{
    size_t bad = find_unmapped(descs, count);

    if (bad == count) {
        return VNX_OK;
    }
    const vnx_desc_t *desc = &descs[bad].desc;
    vnxi_error_set(error, VNX_ERR_INVALID_PARAM, ADD,
                   "no memory is mapped at its %s",
                   is_mapped(desc->addr, desc->addr) ? "end" : "address");
    vnxi_error_desc(error, bad, desc->addr, desc->len, desc->dev);
    return VNX_ERR_INVALID_PARAM;
}

vnx_status_t
vnxi_registry_check(vnx_mem_t mem, const vnx_reg_desc_t *descs, size_t count,
                    vnx_error_t *error)
{
    if (vnx_mem_name(mem) == NULL) {
        return vnxi_error_set(error, VNX_ERR_INVALID_PARAM, ADD,
                              "%d is not a memory type", (int)mem);
    }
    for (size_t i = 0; i < count; i++) {
        const vnx_desc_t *desc = &descs[i].desc;
        const char *fault = row_fault(mem, desc);
        if (fault != NULL) {
            vnxi_error_set(error, VNX_ERR_INVALID_PARAM, ADD, "%s", fault);
            vnxi_error_desc(error, i, desc->addr, desc->len, desc->dev);
            return VNX_ERR_INVALID_PARAM;
        }
    }
    return mem == VNX_MEM_DRAM ? check_mapped(descs, count, error) : VNX_OK;
}

static int
compare_places(const void *a, const void *b)
{
    return vnxi_region_compare(*(vnxi_region_t *const *)a,
                               *(vnxi_region_t *const *)b);
}

/* Fold equal neighbours into one that counts their uses.  Returns how many are
 * left. */
static size_t
fold_equal(vnxi_region_t **regions, size_t count)
{
    size_t kept = 0;
    for (size_t i = 0; i < count; i++) {
        if (kept > 0 &&
            vnxi_region_compare(regions[kept - 1], regions[i]) == 0) {
            regions[kept - 1]->uses += regions[i]->uses;
            vnxi_region_release(regions[i]);
        } else {
            regions[kept++] = regions[i];
        }
    }
    return kept;
}

/* Create regions for all rows, sorted and without duplicates.  *regions_p is
 * owned. */
static vnx_status_t
make_batch(const vnxi_registry_t *registry, vnx_mem_t mem,
           const vnx_reg_desc_t *descs, size_t count,
           vnxi_region_t ***regions_p, size_t *count_p, vnx_error_t *error)
{
    vnxi_region_t **regions = malloc(count * sizeof(vnxi_region_t *));
    if (regions == NULL) {
        return vnxi_error_no_memory(error, ADD,
                                    count * sizeof(vnxi_region_t *));
    }
    for (size_t i = 0; i < count; i++) {
        vnxi_region_t key = vnxi_region_key(mem, &descs[i]);
        regions[i] = vnxi_region_create(registry->class, mem, key.addr,
                                        key.len, key.dev);
        if (regions[i] == NULL) {
            release_some(regions, i);
            free(regions);
            return vnxi_error_no_memory(error, ADD, sizeof(vnxi_region_t));
        }
        regions[i]->uses = 1;
    }
    qsort(regions, count, sizeof(vnxi_region_t *), compare_places);
    *count_p = fold_equal(regions, count);
    *regions_p = regions;
    return VNX_OK;
}

static bool
reserve_lock_held(vnxi_registry_t *registry, size_t more)
{
    size_t needed = registry->count + more;
    if (needed <= registry->capacity) {
        return true;
    }
    size_t capacity = registry->capacity < 16 ? 16 : 2 * registry->capacity;
    capacity = capacity < needed ? needed : capacity;
    vnxi_region_t **regions =
        realloc(registry->regions, capacity * sizeof(vnxi_region_t *));
    if (regions == NULL) {
        return false;
    }
    registry->regions = regions;
    registry->capacity = capacity;
    return true;
}

/* Move known regions behind the new ones, which keep their order.  Returns the
 * number of new ones. */
static size_t
split_known(const vnxi_registry_t *registry, vnxi_region_t **batch,
            size_t count)
{
    size_t fresh = 0;
    for (size_t i = 0; i < count; i++) {
        vnxi_region_t *region = batch[i];
        if (registry_place(registry, region) == registry->count) {
            batch[i] = batch[fresh];
            batch[fresh++] = region;
        }
    }
    return fresh;
}

static vnx_status_t
attach_all(const vnxi_registry_t *registry, vnxi_region_t *const *regions,
           size_t count, vnx_error_t *error)
{
    vnx_status_t status = VNX_OK;
    for (size_t i = 0;
         registry->attach != NULL && status == VNX_OK && i < count; i++) {
        status = registry->attach(registry->context, regions[i], error);
    }
    return status;
}

static void
count_uses_lock_held(vnxi_registry_t *registry, vnxi_region_t *const *known,
                     size_t count)
{
    for (size_t i = 0; i < count; i++) {
        size_t at = registry_place(registry, known[i]);
        registry->regions[at]->uses += known[i]->uses;
    }
}

/* Merge from the back, so that every member of the set moves at most once. */
static void
merge_lock_held(vnxi_registry_t *registry, vnxi_region_t *const *batch,
                size_t count)
{
    vnxi_region_t **regions = registry->regions;
    size_t end = registry->count;
    for (size_t i = count; i-- > 0;) {
        size_t at = lower_bound(regions, end, batch[i]);
        memmove(&regions[at + i + 1], &regions[at],
                (end - at) * sizeof(vnxi_region_t *));
        regions[at + i] = batch[i];
        end = at;
    }
    registry->count += count;
}

/* Add the batch; its first `fresh` regions are new and the registry takes them
 * over. */
static vnx_status_t
insert_batch(vnxi_registry_t *registry, vnxi_region_t *const *batch,
             size_t count, size_t fresh, vnx_error_t *error)
{
    vnxi_region_table_t *old = NULL;
    vnxi_mutex_lock(&registry->lock);
    bool has_room = reserve_lock_held(registry, fresh);
    if (has_room) {
        count_uses_lock_held(registry, batch + fresh, count - fresh);
        merge_lock_held(registry, batch, fresh);
        old = fresh > 0 ? registry_changed(registry) : NULL;
    }
    vnxi_mutex_unlock(&registry->lock);
    vnxi_region_table_release(old);
    return has_room ? VNX_OK
                    : vnxi_error_no_memory(error, ADD,
                                           fresh * sizeof(vnxi_region_t *));
}

vnx_status_t
vnxi_registry_add(vnxi_registry_t *registry, vnx_mem_t mem,
                  const vnx_reg_desc_t *descs, size_t count,
                  vnx_error_t *error)
{
    vnxi_region_t **batch = NULL;
    size_t batch_count = 0;
    vnx_status_t status = vnxi_registry_check(mem, descs, count, error);
    if (status != VNX_OK || count == 0) {
        return status;
    }
    status =
        make_batch(registry, mem, descs, count, &batch, &batch_count, error);
    if (status != VNX_OK) {
        return status;
    }

    vnxi_mutex_lock(&registry->change_lock);
    size_t fresh = split_known(registry, batch, batch_count);
    status = attach_all(registry, batch, fresh, error);
    if (status == VNX_OK) {
        status = insert_batch(registry, batch, batch_count, fresh, error);
    }
    vnxi_mutex_unlock(&registry->change_lock);

    size_t kept = status == VNX_OK ? fresh : 0;
    release_some(batch + kept, batch_count - kept);
    free(batch);
    return status;
}

/* -- Removing ------------------------------------------------------------- */

static vnx_status_t
fail_missing(const vnx_reg_desc_t *descs, size_t row, bool known,
             vnx_error_t *error)
{
    const vnx_desc_t *desc = &descs[row].desc;
    vnxi_error_set(error, VNX_ERR_NOT_FOUND, REMOVE, "%s",
                   known ? "listed more often than it is registered"
                         : "not registered with these values");
    vnxi_error_desc(error, row, desc->addr, desc->len, desc->dev);
    return VNX_ERR_NOT_FOUND;
}

/* Take one use from each row's region; regions without further uses go to
 * `gone`.  On an error every use is given back. */
static vnx_status_t
take_uses_lock_held(vnxi_registry_t *registry, vnx_mem_t mem,
                    const vnx_reg_desc_t *descs, size_t count,
                    vnxi_region_t **gone, size_t *gone_count_p,
                    vnx_error_t *error)
{
    size_t gone_count = 0;
    for (size_t i = 0; i < count; i++) {
        vnxi_region_t key = vnxi_region_key(mem, &descs[i]);
        size_t at = registry_place(registry, &key);
        bool known = at < registry->count;
        if (!known || registry->regions[at]->uses == 0) {
            for (size_t k = 0; k < i; k++) {
                key = vnxi_region_key(mem, &descs[k]);
                at = registry_place(registry, &key);
                registry->regions[at]->uses++;
            }
            return fail_missing(descs, i, known, error);
        }
        if (--registry->regions[at]->uses == 0) {
            gone[gone_count++] = registry->regions[at];
        }
    }
    *gone_count_p = gone_count;
    return VNX_OK;
}

/* Remove `gone`, which is sorted and not empty, along with the registry's
 * references. */
static void
take_out_lock_held(vnxi_registry_t *registry, vnxi_region_t *const *gone,
                   size_t gone_count)
{
    vnxi_region_t **regions = registry->regions;
    size_t at = lower_bound(regions, registry->count, gone[0]);
    size_t kept = at;
    for (size_t i = 0; i < gone_count; i++) {
        vnxi_region_revoke(gone[i]);
        size_t from = at + 1;
        size_t left = registry->count - from;
        size_t run = i + 1 < gone_count
                         ? lower_bound(regions + from, left, gone[i + 1])
                         : left;
        memmove(&regions[kept], &regions[from], run * sizeof(vnxi_region_t *));
        kept += run;
        at = from + run;
    }
    registry->count = kept;
}

vnx_status_t
vnxi_registry_remove(vnxi_registry_t *registry, vnx_mem_t mem,
                     const vnx_reg_desc_t *descs, size_t count,
                     void (*gone)(void *context, const vnxi_region_t *region,
                                  uint64_t epoch),
                     void *context, vnx_error_t *error)
{
    vnxi_region_table_t *old = NULL;
    size_t taken_count = 0;
    if (count == 0) {
        return VNX_OK;
    }
    vnxi_region_t **taken = malloc(count * sizeof(vnxi_region_t *));
    if (taken == NULL) {
        return vnxi_error_no_memory(error, REMOVE,
                                    count * sizeof(vnxi_region_t *));
    }

    vnxi_mutex_lock(&registry->change_lock);
    vnxi_mutex_lock(&registry->lock);
    vnx_status_t status = take_uses_lock_held(registry, mem, descs, count,
                                              taken, &taken_count, error);
    if (taken_count > 0) {
        qsort(taken, taken_count, sizeof(vnxi_region_t *), compare_places);
        take_out_lock_held(registry, taken, taken_count);
        old = registry_changed(registry);
    }
    uint64_t epoch = atomic_load(&registry->epoch);
    vnxi_mutex_unlock(&registry->lock);
    vnxi_mutex_unlock(&registry->change_lock);

    for (size_t i = 0; gone != NULL && i < taken_count; i++) {
        gone(context, taken[i], epoch);
    }
    vnxi_region_table_release(old);
    release_some(taken, taken_count);
    free(taken);
    return status;
}

/* -- Queries ---------------------------------------------------------------
 */

vnxi_region_table_t *
vnxi_registry_snapshot(vnxi_registry_t *registry, uint64_t *epoch_p)
{
    vnxi_mutex_lock(&registry->lock);
    if (registry->snapshot == NULL) {
        registry->snapshot =
            vnxi_region_table_create(registry->regions, registry->count);
    }
    vnxi_region_table_t *table = registry->snapshot;
    if (table != NULL) {
        vnxi_region_table_retain(table);
        if (epoch_p != NULL) {
            *epoch_p = atomic_load(&registry->epoch);
        }
    }
    vnxi_mutex_unlock(&registry->lock);
    return table;
}

void
vnxi_registry_hold(vnxi_registry_t *registry)
{
    vnxi_mutex_lock(&registry->change_lock);
}

void
vnxi_registry_resume(vnxi_registry_t *registry)
{
    vnxi_mutex_unlock(&registry->change_lock);
}

/* The keys are usually sorted.  The position of a key then follows that of the
 * previous one, so try that first. */
static vnxi_region_t *
find_lock_held(const vnxi_registry_t *registry, const vnxi_region_t *key,
               size_t *next)
{
    size_t at = *next;

    if (at >= registry->count ||
        vnxi_region_compare(registry->regions[at], key) != 0) {
        at = registry_place(registry, key);
    }
    if (at == registry->count) {
        return NULL;
    }
    *next = at + 1;
    return vnxi_region_retain(registry->regions[at]);
}

uint64_t
vnxi_registry_find(vnxi_registry_t *registry, const vnxi_region_t *keys,
                   size_t count, vnxi_region_t **found_p)
{
    size_t next = 0;

    vnxi_mutex_lock(&registry->lock);
    for (size_t i = 0; i < count; i++) {
        found_p[i] = find_lock_held(registry, &keys[i], &next);
    }
    uint64_t epoch = atomic_load(&registry->epoch);
    vnxi_mutex_unlock(&registry->lock);
    return epoch;
}

uint64_t
vnxi_registry_epoch(const vnxi_registry_t *registry)
{
    return atomic_load(&registry->epoch);
}

size_t
vnxi_registry_count(const vnxi_registry_t *registry)
{
    return atomic_load(&registry->visible_count);
}
