/*
 * Design notes.  A region of a peer may be in the sections of several
 * transports.  First the sections are joined, the fastest transport's first:
 * each region becomes an entry with its row for each transport.  Sections of
 * one blob are in the same order, so joining them is a merge; where the order
 * differs, the entries are searched.  Then each entry becomes a region.
 *
 * A row of a slower transport is dropped if faster ones that know the region
 * move it from and to every kind of memory that this agent can have.  Without
 * GPUs, loading a peer on SHM creates no key for UCX.
 *
 * But if the faster one may turn out not to work, the slower one gets its key.
 *
 * The regions of a peer in this process are that agent's own objects, so that
 * a deregistration there is visible here at once.
 */
#include "engine/native/native.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/recycle.h"

#define OPERATION "vnx_agent_load_metadata"

typedef struct entry {
    const vnxi_md_region_t *rows[VNXI_TRANSPORTS]; /* NULL: not known to it,
                                                      or dropped */
    const vnxi_md_region_t *row;                   /* one of them */
    vnx_mem_t mem;
    uint8_t known; /* bit t: rows[t] is set */
} entry_t;

/* A slot for a region that is kept. */
typedef struct addition {
    vnxi_region_t *region;
    void *slot; /* owned */
    unsigned transport;
} addition_t;

typedef struct build {
    const vnxi_peer_table_args_t *args;
    vnxi_reach_t reach; /* of the peer's conns */
    uint32_t mems;      /* kinds of memory that this agent can have */
    bool asks;          /* owners confirm regions */
    vnxi_region_table_t *borrowed; /* of an agent in this process, or NULL */
    entry_t *entries;
    size_t count, room;
    entry_t *
        *sorted; /* of the first `base` entries; NULL: not needed so far */
    size_t base; /* entries of faster transports */
    size_t next; /* where the merge goes on */
    vnxi_region_t **regions; /* each retained */
    size_t region_count;
    addition_t *additions;
    size_t addition_count;
} build_t;

/* -- Joining the sections --------------------------------------------------
 */

static int
compare_rows(vnx_mem_t mem_a, const vnxi_md_region_t *a, vnx_mem_t mem_b,
             const vnxi_md_region_t *b)
{
    return mem_a != mem_b       ? (mem_a < mem_b ? -1 : 1)
           : a->dev != b->dev   ? (a->dev < b->dev ? -1 : 1)
           : a->addr != b->addr ? (a->addr < b->addr ? -1 : 1)
           : a->len != b->len   ? (a->len < b->len ? -1 : 1)
                                : 0;
}

static int
compare_entries(const void *a, const void *b)
{
    const entry_t *x = *(entry_t *const *)a, *y = *(entry_t *const *)b;
    return compare_rows(x->mem, x->row, y->mem, y->row);
}

static bool
sort_entries(build_t *build)
{
    build->sorted = malloc((build->base + 1) * sizeof(entry_t *));
    if (build->sorted == NULL) {
        return false;
    }
    for (size_t i = 0; i < build->base; i++) {
        build->sorted[i] = &build->entries[i];
    }
    qsort(build->sorted, build->base, sizeof(entry_t *), compare_entries);
    return true;
}

/* Find the entry of a faster transport for this row; *entry_p NULL: none.
 * False: no memory. */
static bool
find_entry(build_t *build, vnx_mem_t mem, const vnxi_md_region_t *row,
           entry_t **entry_p)
{
    const entry_t key = {.mem = mem, .row = row}, *wanted = &key;
    entry_t *next = &build->entries[build->next];

    if (build->next < build->base &&
        compare_rows(mem, row, next->mem, next->row) == 0) {
        build->next++;
        *entry_p = next;
        return true;
    }
    if (build->sorted == NULL && !sort_entries(build)) {
        return false;
    }
    entry_t **found = bsearch(&wanted, build->sorted, build->base,
                              sizeof(entry_t *), compare_entries);
    *entry_p = found != NULL ? *found : NULL;
    if (found != NULL) {
        build->next = (size_t)(*found - build->entries) + 1;
    }
    return true;
}

/* Return whether transport `t` serves a kind of memory that the faster ones in
 * `known` do not. */
static bool
is_wanted(const build_t *build, unsigned t, vnx_mem_t mem, unsigned known)
{
    bool is_wanted = false;

    known &= ~vnxi_native_tentative();
    known |= vnxi_native_by_main(mem) & ((1u << t) - 1);
    for (unsigned local = 0; local < VNX_MEM_COUNT; local++) {
        unsigned moves = build->reach.moves[local][mem];
        is_wanted |= (build->mems >> local & 1) != 0 &&
                     (moves >> t & 1) != 0 && (moves & known) == 0;
    }
    return is_wanted;
}

static bool
has_entries(const build_t *build, vnx_mem_t mem)
{
    for (size_t i = 0; i < build->base; i++) {
        if (build->entries[i].mem == mem) {
            return true;
        }
    }
    return false;
}

/* Return whether the transport reaches the region of this row. */
static bool
reaches(const build_t *build, unsigned t, const vnxi_md_region_t *row)
{
    return build->borrowed != NULL ||
           vnxi_transports[t]->key_reaches == NULL ||
           vnxi_transports[t]->key_reaches(row->public_data);
}

static bool
join_section(build_t *build, unsigned t, const vnxi_md_section_t *section)
{
    bool joins = has_entries(build, section->mem);
    unsigned last_known = 0;
    bool is_kept = false;

    for (size_t i = 0; i < section->count; i++) {
        const vnxi_md_region_t *row = &section->regions[i];
        entry_t *entry = NULL;
        if (joins && !find_entry(build, section->mem, row, &entry)) {
            return false;
        }
        if (entry == NULL) {
            entry = &build->entries[build->count++];
            *entry = (entry_t){.row = row, .mem = section->mem};
        } else if (entry->known != last_known) {
            last_known = entry->known;
            is_kept = is_wanted(build, t, section->mem, last_known);
        }
        if ((entry->known == 0 || is_kept) && reaches(build, t, row)) {
            entry->rows[t] = row;
            entry->known |= (uint8_t)(1u << t);
        }
    }
    return true;
}

static bool
join_transport(build_t *build, unsigned t)
{
    const vnxi_metadata_t *blob = build->args->blob;
    bool has_memory = true;

    build->base = build->count;
    build->next = 0;
    for (size_t i = 0; has_memory && i < blob->section_count; i++) {
        if (vnxi_md_is_named(blob->sections[i].backend,
                             vnxi_transports[t]->entry)) {
            has_memory = join_section(build, t, &blob->sections[i]);
        }
    }
    free(build->sorted);
    build->sorted = NULL;
    return has_memory;
}

static int
compare_in_place(const void *a, const void *b)
{
    const entry_t *x = a, *y = b;
    return compare_rows(x->mem, x->row, y->mem, y->row);
}

static bool
is_ascending(const build_t *build)
{
    for (size_t i = 1; i < build->count; i++) {
        if (compare_in_place(&build->entries[i - 1], &build->entries[i]) >=
            0) {
            return false;
        }
    }
    return true;
}

/* Keep one entry for each region.  NIXL lists memory twice that was registered
 * twice, and partial metadata lists regions in the order, and as often, as the
 * caller named them. */
static void
join_repeated(build_t *build)
{
    size_t kept = 1;

    if (is_ascending(build)) {
        return;
    }
    qsort(build->entries, build->count, sizeof(entry_t), compare_in_place);
    for (size_t i = 1; i < build->count; i++) {
        const entry_t *entry = &build->entries[i];
        entry_t *last = &build->entries[kept - 1];
        if (compare_in_place(last, entry) != 0) {
            build->entries[kept++] = *entry;
            continue;
        }
        for (unsigned t = 0; t < VNXI_TRANSPORTS; t++) {
            last->rows[t] =
                last->rows[t] != NULL ? last->rows[t] : entry->rows[t];
        }
    }
    build->count = kept;
}

static vnx_status_t
join(build_t *build, vnx_error_t *error)
{
    const vnxi_metadata_t *blob = build->args->blob;

    for (size_t i = 0; i < blob->section_count; i++) {
        build->room += blob->sections[i].count;
    }
    build->entries =
        vnxi_recycle_alloc((build->room + 1) * sizeof *build->entries);
    bool has_memory = build->entries != NULL;
    for (unsigned t = 0; has_memory && t < VNXI_TRANSPORTS; t++) {
        if (vnxi_transports[t]->entry != NULL &&
            (build->borrowed != NULL ||
             vnxi_native_conn(build->args->peer, t) != NULL)) {
            has_memory = join_transport(build, t);
        }
    }
    if (!has_memory) {
        return vnxi_error_no_memory(error, OPERATION,
                                    build->room * sizeof *build->entries);
    }
    join_repeated(build);
    return VNX_OK;
}

/* -- Regions ---------------------------------------------------------------
 */

/* The object that represents this entry so far, if it exists, is not gone and
 * is the same for every transport.  Its owner has confirmed it as the
 * confirming transport knew it, so that transport must not learn of it later:
 * then it is another region, and the owner is asked. */
static vnxi_region_t *
find_known(const build_t *build, const entry_t *entry)
{
    const vnxi_region_table_t *old = build->args->old;
    const vnxi_md_region_t *row = entry->row;
    vnxi_region_t *known =
        old == NULL ? NULL
                    : vnxi_region_table_exact(old, entry->mem, row->addr,
                                              row->len, row->dev);

    if (known == NULL || vnxi_region_is_gone(known)) {
        return NULL;
    }
    for (unsigned t = 0; t < VNXI_TRANSPORTS; t++) {
        const void *slot = vnxi_region_slot(known, t);
        if (slot != NULL && entry->rows[t] != NULL &&
            !vnxi_transports[t]->key_is(slot, entry->rows[t]->public_data)) {
            return NULL;
        }
        if (slot == NULL && entry->rows[t] != NULL &&
            vnxi_transports[t]->confirms) {
            return NULL;
        }
    }
    return known;
}

static vnx_status_t
make_slot(const build_t *build, const entry_t *entry, unsigned t,
          const vnxi_region_t *region, void **slot_p, vnx_error_t *error)
{
    return vnxi_transports[t]->key_create(
        vnxi_native_conn(build->args->peer, t), region,
        entry->rows[t]->public_data, slot_p, error);
}

static bool
add_addition(build_t *build, vnxi_region_t *region, unsigned t, void *slot)
{
    size_t count = build->addition_count;

    if ((count & (count - 1)) == 0) { /* it is full */
        addition_t *more =
            realloc(build->additions, (2 * count + 1) * sizeof *more);
        if (more == NULL) {
            return false;
        }
        build->additions = more;
    }
    build->additions[build->addition_count++] = (addition_t){region, slot, t};
    return true;
}

/* A region that is loaded again keeps its object, so that lists prepared on it
 * stay valid.  It gets slots that it did not have, when nothing can fail any
 * more.  Only one load runs at a time, and an epoch only grows. */
static vnx_status_t
keep(build_t *build, const entry_t *entry, vnxi_region_t *known,
     vnx_error_t *error)
{
    vnxi_native_region_t *region = vnxi_native_region(known);

    for (unsigned t = 0; t < VNXI_TRANSPORTS; t++) {
        void *slot;
        if (entry->rows[t] == NULL || vnxi_region_slot(known, t) != NULL) {
            continue;
        }
        vnx_status_t status = make_slot(build, entry, t, known, &slot, error);
        if (status != VNX_OK) {
            return status;
        }
        if (!add_addition(build, known, t, slot)) {
            vnxi_transports[t]->key_free(slot);
            return vnxi_error_no_memory(error, OPERATION, sizeof(addition_t));
        }
    }
    if (atomic_load(&region->epoch) < build->args->epoch) {
        atomic_store(&region->epoch, build->args->epoch);
    }
    build->regions[build->region_count++] = vnxi_region_retain(known);
    return VNX_OK;
}

static void
find_delta(vnxi_native_region_t *region, unsigned t, const void *slot)
{
    const vnxi_transport_t *transport = vnxi_transports[t];
    void *data =
        transport->mapped_at != NULL ? transport->mapped_at(slot) : NULL;
    if (data != NULL) {
        region->delta = (uintptr_t)data - region->base.addr;
    }
}

static vnx_status_t
make(build_t *build, const entry_t *entry, vnx_error_t *error)
{
    const vnxi_md_region_t *row = entry->row;
    vnxi_region_t *base = vnxi_region_create(
        &vnxi_native_region_class, entry->mem, row->addr, row->len, row->dev);
    vnxi_native_region_t *region = vnxi_native_region(base);

    if (base == NULL) {
        return vnxi_error_no_memory(error, OPERATION, sizeof *region);
    }
    build->regions[build->region_count++] = base;
    region->is_remote = true;
    atomic_init(&region->epoch, build->args->epoch);
    if (build->asks) {
        atomic_init(&base->state, VNXI_REGION_UNCONFIRMED);
    }
    for (unsigned t = 0; t < VNXI_TRANSPORTS; t++) {
        void *slot;
        if (entry->rows[t] == NULL) {
            continue;
        }
        vnx_status_t status = make_slot(build, entry, t, base, &slot, error);
        if (status != VNX_OK) {
            return status;
        }
        atomic_init(&region->slots[t], slot);
        find_delta(region, t, slot);
    }
    vnxi_region_find_routes(base, &build->reach);
    return VNX_OK;
}

/* A region of this process that is gone already stays out of the table. */
static void
borrow(build_t *build, const entry_t *entry)
{
    vnxi_region_t *region =
        vnxi_region_table_exact(build->borrowed, entry->mem, entry->row->addr,
                                entry->row->len, entry->row->dev);
    if (region != NULL) {
        build->regions[build->region_count++] = vnxi_region_retain(region);
    }
}

static vnx_status_t
add_entries(build_t *build, vnx_error_t *error)
{
    vnx_status_t status = VNX_OK;

    for (size_t i = 0; status == VNX_OK && i < build->count; i++) {
        const entry_t *entry = &build->entries[i];
        vnxi_region_t *known;
        if (build->borrowed != NULL) {
            borrow(build, entry);
        } else if ((known = find_known(build, entry)) != NULL) {
            status = keep(build, entry, known, error);
        } else {
            status = make(build, entry, error);
        }
    }
    return status;
}

/* -- The table -------------------------------------------------------------
 */

/* Metadata that only adds keeps the old regions, except those that the blob
 * lists itself.  `fresh` has the regions of the blob. */
static void
add_old_regions(build_t *build, const vnxi_region_table_t *fresh)
{
    const vnxi_region_table_t *old = build->args->old;
    for (size_t i = 0; i < vnxi_region_table_count(old); i++) {
        vnxi_region_t *region = vnxi_region_table_at(old, i);
        if (!vnxi_region_is_gone(region) &&
            vnxi_region_table_exact(fresh, region->mem, region->addr,
                                    region->len, region->dev) == NULL) {
            build->regions[build->region_count++] = vnxi_region_retain(region);
        }
    }
}

static vnx_status_t
make_table(build_t *build, vnxi_region_table_t **table_p, vnx_error_t *error)
{
    const vnxi_peer_table_args_t *args = build->args;
    size_t old = args->old != NULL ? vnxi_region_table_count(args->old) : 0;

    build->regions =
        malloc((build->count + old + 1) * sizeof(vnxi_region_t *));
    if (build->regions == NULL) {
        return vnxi_error_no_memory(error, OPERATION,
                                    build->count * sizeof(vnxi_region_t *));
    }
    vnx_status_t status = add_entries(build, error);
    if (status != VNX_OK) {
        return status;
    }
    vnxi_region_table_t *table =
        vnxi_region_table_create(build->regions, build->region_count);
    if (table != NULL && args->adds_only && args->old != NULL) {
        add_old_regions(build, table);
        vnxi_region_table_release(table);
        table = vnxi_region_table_create(build->regions, build->region_count);
    }
    if (table == NULL) {
        return vnxi_error_no_memory(error, OPERATION,
                                    build->count * sizeof(vnxi_region_t *));
    }
    *table_p = table;
    return VNX_OK;
}

static void
apply_additions(build_t *build)
{
    for (size_t i = 0; i < build->addition_count; i++) {
        addition_t *one = &build->additions[i];
        vnxi_native_region_t *region = vnxi_native_region(one->region);
        atomic_store(&region->slots[one->transport], one->slot);
        vnxi_region_find_routes(one->region, &build->reach);
    }
    if (build->addition_count > 0) {
        vnxi_routes_have_changed();
    }
    build->addition_count = 0;
}

static void
build_fini(build_t *build)
{
    for (size_t i = 0; i < build->addition_count; i++) {
        const addition_t *one = &build->additions[i];
        vnxi_transports[one->transport]->key_free(one->slot);
    }
    for (size_t i = 0; i < build->region_count; i++) {
        vnxi_region_release(build->regions[i]);
    }
    free(build->additions);
    free(build->regions);
    vnxi_recycle_free(build->entries,
                      (build->room + 1) * sizeof *build->entries);
    vnxi_region_table_release(build->borrowed);
}

vnx_status_t
vnxi_peer_table_build(const vnxi_peer_table_args_t *args,
                      vnxi_region_table_t **table_p, vnx_error_t *error)
{
    vnxi_native_peer_t *peer = args->peer;
    unsigned t = atomic_load(&peer->main);
    const vnxi_transport_t *main_one = vnxi_transports[t];
    build_t build = {
        .args = args,
        .mems = vnxi_native_mems(peer->engine, VNXI_TRANSPORTS),
        .asks = main_one->confirms,
    };
    vnx_status_t status = VNX_OK;

    vnxi_native_find_reach(peer->engine, peer, &build.reach);
    if (main_one->borrow != NULL) {
        build.borrowed = main_one->borrow(vnxi_native_conn(peer, t));
        if (build.borrowed == NULL) {
            status = vnxi_error_no_memory(error, OPERATION, 0);
        }
    }
    if (status == VNX_OK) {
        status = join(&build, error);
    }
    if (status == VNX_OK) {
        status = make_table(&build, table_p, error);
    }
    if (status == VNX_OK) {
        apply_additions(&build);
    }
    build_fini(&build);
    return status;
}
