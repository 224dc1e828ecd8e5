/*
 * Design notes.  Both index arrays are read together.  Where both increase by
 * one for long enough, rows are taken block by block; if both blocks are runs,
 * without looking at a row.  Elsewhere rows are taken in batches that stay in
 * the first-level cache: read and check the indices, fetch addresses (and
 * lengths, where they differ) of each side, compare, translate, write.
 *
 * If all regions of the remote list have the same route and translation, one
 * number translates all remote addresses.  Otherwise the region of each row is
 * looked up.
 */
#include "engine/native/plan.h"

#include <string.h>

#include "base/error.h"
#include "engine/native/plan_segments.h"
#include "engine/native/region_access.h"
#include "engine/parts/indices.h"
#include "engine/parts/list_block.h"
#include "engine/parts/pairs.h"

/* For shorter runs, the run path is not cheaper than single rows. */
#define RUN_MIN 16u

/* Small enough that all arrays stay in the first-level cache. */
#define BATCH 256u

/* One side of the pairs: a list, the indices into it, and the rows of the
 * current batch. */
typedef struct side {
    const vnxi_list_t *list;
    const vnx_indices_t *indices;
    const char *name; /* for errors: "local" */
    uint64_t delta;   /* added to every address; 0 for local ones */
    bool want_lens, want_devs;
    uint64_t run_first;
    size_t run_left; /* rest of the run that was found; 0: not known */
    /* Filled in by the fetch functions. */
    uint64_t addrs[BATCH];
    uint64_t lens[BATCH]; /* if want_lens */
    uint64_t devs[BATCH]; /* if want_devs */
    uint64_t scratch[BATCH];
} side_t;

typedef struct planner {
    const vnxi_plan_args_t *args;
    vnx_error_t *error;
    size_t at; /* pairs done */
    bool uniform;
    vnx_mem_t mem;  /* of the local rows */
    bool one_route; /* all remote rows have the same route and delta */
    uint32_t route; /* if one_route */
    uint32_t routes;
    uint64_t bytes;
    const vnxi_region_t *region; /* of the last remote row; NULL: none yet */
    size_t lost_at;              /* the first place without a route, and its
                                    remote row; SIZE_MAX: none */
    vnx_desc_t lost;
    vnxi_segment_writer_t writer;
    side_t local, remote;
} planner_t;

/* -- Sides ---------------------------------------------------------------- */

static void
side_init(side_t *side, const vnxi_list_t *list, const vnx_indices_t *indices,
          const char *name)
{
    side->list = list;
    side->indices = indices;
    side->name = name;
    side->delta = 0;
    side->want_lens = side->want_devs = false;
    side->run_first = 0;
    side->run_left = 0;
}

/* `form` is the form shared by all blocks, or -1; inlined for constant forms.
 */
static inline __attribute__((always_inline)) void
fetch_addrs_as(side_t *side, int form, const uint64_t *indices, size_t count)
{
    const vnxi_list_t *list = side->list;
    const uint64_t delta = side->delta;
    for (size_t i = 0; i < count; i++) {
        const vnxi_list_block_t *block = vnxi_list_block_of(list, indices[i]);
        size_t at = indices[i] & (VNXI_LIST_BLOCK - 1);
        side->addrs[i] =
            delta + (form < 0
                         ? vnxi_block_addr(block, at)
                         : vnxi_block_addr_as(block, (vnxi_form_t)form, at));
    }
}

static void
fetch_addrs(side_t *side, const uint64_t *indices, size_t count)
{
    switch (side->list->addr_form) {
    case VNXI_FORM_RUN:
        fetch_addrs_as(side, VNXI_FORM_RUN, indices, count);
        break;
    case VNXI_FORM_U32:
        fetch_addrs_as(side, VNXI_FORM_U32, indices, count);
        break;
    default:
        fetch_addrs_as(side, -1, indices, count);
    }
}

/* Fetch up to BATCH rows, whose indices the list must have. */
static void
side_fetch(side_t *side, const uint64_t *indices, size_t count)
{
    const vnxi_list_t *list = side->list;

    fetch_addrs(side, indices, count);
    for (size_t i = 0; i < count && side->want_lens; i++) {
        side->lens[i] = vnxi_block_len(vnxi_list_block_of(list, indices[i]),
                                       indices[i] & (VNXI_LIST_BLOCK - 1));
    }
    for (size_t i = 0; i < count && side->want_devs; i++) {
        side->devs[i] = vnxi_block_dev(vnxi_list_block_of(list, indices[i]),
                                       indices[i] & (VNXI_LIST_BLOCK - 1));
    }
}

/* The same for `count` consecutive rows from `run_first` on. */
static void
side_fetch_run(side_t *side, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        side->scratch[i] = side->run_first + i;
    }
    side_fetch(side, side->scratch, count);
}

/* -- Errors --------------------------------------------------------------- */

static vnx_status_t
bad_index(const planner_t *planner, const side_t *side, size_t place,
          uint64_t index)
{
    const vnxi_pairs_side_t named = {side->name, side->list, side->indices};
    return vnxi_pairs_bad_index(&named, place, index, planner->args->operation,
                                planner->error);
}

static vnx_status_t
unequal_lengths(const planner_t *planner, size_t place, uint64_t local,
                uint64_t remote)
{
    return vnxi_pairs_unequal(place, local, remote, planner->args->operation,
                              planner->error);
}

static vnx_status_t
too_many_bytes(const planner_t *planner)
{
    return vnxi_pairs_too_long(planner->args->operation, planner->error);
}

/* -- Routes --------------------------------------------------------------- */

static vnxi_list_routes_t
read_routes(const vnxi_list_t *list)
{
    const vnxi_native_region_t *first = vnxi_native_region(list->regions[0]);
    vnxi_list_routes_t routes = {.changes = atomic_load(&vnxi_route_changes),
                                 .first = vnxi_region_routes(&first->base)};
    uint64_t differ = 0;
    bool one_delta = true;

    for (size_t i = 1; i < list->region_count; i++) {
        differ |= vnxi_region_routes(list->regions[i]) ^ routes.first;
        one_delta &=
            vnxi_native_region(list->regions[i])->delta == first->delta;
    }
    for (unsigned mem = 0; mem < VNX_MEM_COUNT; mem++) {
        unsigned route = vnxi_route_from(routes.first, mem);
        bool is_one = vnxi_route_from(differ, mem) == 0 &&
                      (one_delta || route != VNXI_ROUTE_COPY);
        routes.one_route |= (uint32_t)is_one << mem;
    }
    return routes;
}

static void
list_init(vnxi_list_t *list)
{
    ((vnxi_native_list_t *)list)->routes = read_routes(list);
}

/* The routes now.  Metadata that was loaded after the list was prepared may
 * have added some to some of its regions. */
static vnxi_list_routes_t
routes_of(const vnxi_list_t *list)
{
    const vnxi_list_routes_t *known = &vnxi_native_list(list)->routes;
    uint64_t changes =
        atomic_load_explicit(&vnxi_route_changes, memory_order_acquire);
    return known->changes == changes ? *known : read_routes(list);
}

const vnxi_list_class_t vnxi_native_list_class = {
    .size = sizeof(vnxi_native_list_t),
    .init = list_init,
};

/* Find the region of a remote row and its route. */
static uint32_t
find_route(planner_t *planner, const vnx_desc_t *row, size_t place)
{
    if (planner->region == NULL ||
        !vnxi_region_holds(planner->region, row->addr, row->addr + row->len,
                           row->dev)) {
        planner->region = vnxi_list_region_of(planner->remote.list, row);
    }
    uint32_t route =
        vnxi_route_from(vnxi_region_routes(planner->region), planner->mem);
    if (__builtin_expect(route == VNXI_ROUTE_NONE, 0) &&
        planner->lost_at == SIZE_MAX) {
        planner->lost_at = place;
        planner->lost = *row;
    }
    return route;
}

/* -- Batches -------------------------------------------------------------- */

static uint64_t
batch_len(const planner_t *planner, const side_t *side, size_t i)
{
    return planner->uniform ? side->list->row_len : side->lens[i];
}

/* Write the batch's rows in stretches of the same route. */
static void
write_mixed(planner_t *planner, size_t count)
{
    side_t *local = &planner->local, *remote = &planner->remote;
    uint32_t route = 0, next = 0;
    size_t first = 0;

    for (size_t i = 0; i <= count; i++) {
        if (i < count) {
            const vnx_desc_t row = {.addr = remote->addrs[i],
                                    .len = batch_len(planner, remote, i),
                                    .dev = remote->devs[i]};
            next = find_route(planner, &row, planner->at + i);
            remote->addrs[i] += vnxi_region_delta(planner->region, next);
            route = i == 0 ? next : route;
        }
        if (i == count || next != route) {
            vnxi_segment_rows_t rows = {
                .local = local->addrs + first,
                .remote = remote->addrs + first,
                .lens = planner->uniform ? NULL : remote->lens + first,
                .len = remote->list->row_len,
                .count = i - first,
                .route = route,
            };
            vnxi_segments_rows(&planner->writer, &rows);
            planner->routes |= 1u << route;
            first = i;
            route = next;
        }
    }
}

static vnx_status_t
compare_lengths(planner_t *planner, size_t count)
{
    const side_t *local = &planner->local, *remote = &planner->remote;
    uint64_t differ = 0, bytes = planner->bytes;
    bool overflow = false;

    for (size_t i = 0; i < count; i++) {
        differ |= local->lens[i] ^ remote->lens[i];
        overflow |= __builtin_add_overflow(bytes, local->lens[i], &bytes);
    }
    if (differ != 0) {
        size_t i = 0;
        while (local->lens[i] == remote->lens[i]) {
            i++;
        }
        return unequal_lengths(planner, planner->at + i, local->lens[i],
                               remote->lens[i]);
    }
    planner->bytes = bytes;
    return overflow ? too_many_bytes(planner) : VNX_OK;
}

/* Write a batch whose arrays are filled in on both sides: addresses, and
 * lengths and remote devices where they are used. */
static vnx_status_t
write_batch(planner_t *planner, size_t count)
{
    if (!planner->uniform) {
        vnx_status_t status = compare_lengths(planner, count);
        if (status != VNX_OK) {
            return status;
        }
    }
    if (planner->one_route) {
        vnxi_segment_rows_t rows = {
            .local = planner->local.addrs,
            .remote = planner->remote.addrs,
            .lens = planner->uniform ? NULL : planner->remote.lens,
            .len = planner->remote.list->row_len,
            .count = count,
            .route = planner->route,
        };
        vnxi_segments_rows(&planner->writer, &rows);
    } else {
        write_mixed(planner, count);
    }
    planner->at += count;
    return VNX_OK;
}

/* -- Scattered indices ---------------------------------------------------- */

static vnx_status_t
fetch_batch(planner_t *planner, side_t *side, size_t count)
{
    const uint64_t *indices =
        vnxi_indices_read(side->indices, planner->at, count, side->scratch);
    const uint64_t rows = side->list->count;

    if (!vnxi_indices_are_below(indices, count, rows)) {
        size_t i = 0;
        while (indices[i] < rows) {
            i++;
        }
        return bad_index(planner, side, planner->at + i, indices[i]);
    }
    side_fetch(side, indices, count);
    side->run_left = side->run_left > count ? side->run_left - count : 0;
    side->run_first += count;
    return VNX_OK;
}

static vnx_status_t
plan_scattered(planner_t *planner, size_t count)
{
    vnx_status_t status = fetch_batch(planner, &planner->local, count);
    if (status == VNX_OK) {
        status = fetch_batch(planner, &planner->remote, count);
    }
    return status == VNX_OK ? write_batch(planner, count) : status;
}

/* -- Consecutive indices -------------------------------------------------- */

static vnx_status_t
check_run(const planner_t *planner, const side_t *side, size_t count)
{
    size_t rows = side->list->count;
    if (side->run_first < rows && count <= rows - side->run_first) {
        return VNX_OK;
    }
    size_t good = side->run_first < rows ? rows - side->run_first : 0;
    return bad_index(planner, side, planner->at + good,
                     side->run_first + good);
}

static size_t
left_in_block(const side_t *side)
{
    return VNXI_LIST_BLOCK - (side->run_first & (VNXI_LIST_BLOCK - 1));
}

static bool
block_is_run(const vnxi_list_block_t *block)
{
    return block->addr_form == VNXI_FORM_RUN &&
           block->len_form == VNXI_FORM_RUN &&
           block->dev_form == VNXI_FORM_RUN;
}

/* Count the bytes of `count` rows of equal length. */
static vnx_status_t
add_bytes(planner_t *planner, uint64_t len, size_t count)
{
    uint64_t more;
    if (__builtin_mul_overflow(len, count, &more) ||
        __builtin_add_overflow(planner->bytes, more, &planner->bytes)) {
        return too_many_bytes(planner);
    }
    return VNX_OK;
}

/* Find out whether all rows of this run are in one region even if those of the
 * list are not.  A region that holds both ends holds everything between them.
 */
static bool
route_run(planner_t *planner, const vnxi_list_block_t *block,
          vnxi_segment_run_t *run)
{
    if (planner->one_route) {
        run->route = planner->route;
        return true;
    }
    const vnx_desc_t first = {run->remote, run->len, block->dev};
    run->route = find_route(planner, &first, planner->at);
    uint64_t last = run->remote + (run->count - 1) * run->remote_stride;
    if (!vnxi_region_holds(planner->region, last, last + run->len,
                           block->dev)) {
        return false;
    }
    run->remote += vnxi_region_delta(planner->region, run->route);
    planner->routes |= 1u << run->route;
    return true;
}

/* `count` rows within one block on each side; *done_p: whether they were
 * written. */
static vnx_status_t
plan_run_blocks(planner_t *planner, size_t count, bool *done_p)
{
    const side_t *l = &planner->local, *r = &planner->remote;
    const vnxi_list_block_t *lb = vnxi_list_block_of(l->list, l->run_first);
    const vnxi_list_block_t *rb = vnxi_list_block_of(r->list, r->run_first);
    vnxi_segment_run_t run = {
        .local = l->delta +
                 vnxi_block_addr(lb, l->run_first & (VNXI_LIST_BLOCK - 1)),
        .remote = r->delta +
                  vnxi_block_addr(rb, r->run_first & (VNXI_LIST_BLOCK - 1)),
        .local_stride = lb->step,
        .remote_stride = rb->step,
        .len = lb->len,
        .count = count,
    };

    *done_p = false;
    if (!block_is_run(lb) || !block_is_run(rb) ||
        !route_run(planner, rb, &run)) {
        return VNX_OK;
    }
    if (lb->len != rb->len) {
        return unequal_lengths(planner, planner->at, lb->len, rb->len);
    }
    if (!planner->uniform) {
        vnx_status_t status = add_bytes(planner, run.len, count);
        if (status != VNX_OK) {
            return status;
        }
    }
    vnxi_segments_run(&planner->writer, &run);
    planner->at += count;
    *done_p = true;
    return VNX_OK;
}

static void
skip(side_t *side, size_t count)
{
    side->run_first += count;
    side->run_left -= count;
}

/* Both runs continue for `count` indices. */
static vnx_status_t
plan_run(planner_t *planner, size_t count)
{
    side_t *local = &planner->local, *remote = &planner->remote;
    vnx_status_t status = check_run(planner, local, count);
    if (status == VNX_OK) {
        status = check_run(planner, remote, count);
    }
    while (count > 0 && status == VNX_OK) {
        bool done;
        size_t l = left_in_block(local), r = left_in_block(remote);
        size_t n = l < r ? l : r;
        n = n < count ? n : count;
        status = plan_run_blocks(planner, n, &done);
        if (status == VNX_OK && !done) {
            n = n < BATCH ? n : BATCH;
            side_fetch_run(local, n);
            side_fetch_run(remote, n);
            status = write_batch(planner, n);
        }
        skip(local, n);
        skip(remote, n);
        count -= n;
    }
    return status;
}

/* -- Building ------------------------------------------------------------- */

static size_t
side_run(side_t *side, size_t at)
{
    if (side->run_left == 0) {
        side->run_left = vnxi_indices_run(side->indices, at, &side->run_first);
    }
    return side->run_left;
}

static vnx_status_t
plan_rows(planner_t *planner, size_t count)
{
    vnx_status_t status = VNX_OK;
    while (planner->at < count && status == VNX_OK) {
        size_t left = count - planner->at;
        size_t l = side_run(&planner->local, planner->at);
        size_t r = side_run(&planner->remote, planner->at);
        size_t run = l < r ? l : r;
        if (run >= RUN_MIN || run == left) {
            status = plan_run(planner, run);
        } else {
            status = plan_scattered(planner, left < BATCH ? left : BATCH);
        }
    }
    return status;
}

static void
planner_init(planner_t *planner, const vnxi_plan_args_t *args,
             vnx_error_t *error)
{
    const vnxi_list_routes_t routes = routes_of(args->remote);

    planner->args = args;
    planner->error = error;
    planner->at = 0;
    planner->uniform = args->local->uniform && args->remote->uniform;
    planner->mem = args->local->mem;
    planner->one_route = (routes.one_route >> planner->mem & 1) != 0;
    planner->route = vnxi_route_from(routes.first, planner->mem);
    planner->routes = planner->one_route ? 1u << planner->route : 0;
    planner->bytes = 0;
    planner->region = NULL;
    planner->lost_at = SIZE_MAX;
    side_init(&planner->local, args->local, &args->local_rows, "local");
    side_init(&planner->remote, args->remote, &args->remote_rows, "remote");
    planner->local.want_lens = planner->remote.want_lens = !planner->uniform;
    planner->remote.want_devs = !planner->one_route;
    if (planner->one_route) {
        planner->remote.delta =
            vnxi_region_delta(args->remote->regions[0], planner->route);
    }
}

static vnx_status_t
build(planner_t *planner)
{
    const vnxi_plan_args_t *args = planner->args;
    size_t count = args->local_rows.count;
    vnx_status_t status = VNX_OK;

    if (planner->uniform) {
        uint64_t l = args->local->row_len, r = args->remote->row_len;
        status = l == r ? add_bytes(planner, l, count)
                        : unequal_lengths(planner, 0, l, r);
    }
    if (status == VNX_OK) {
        status = plan_rows(planner, count);
    }
    planner->writer.plan->bytes = planner->bytes;
    if (status == VNX_OK && !vnxi_segments_finish(&planner->writer)) {
        return vnxi_error_no_memory(planner->error, args->operation,
                                    planner->writer.plan->segment_count *
                                        sizeof(vnxi_segment_t));
    }
    return status;
}

/* Of a list without any route, the first row is reported. */
static vnx_status_t
fail_without_route(planner_t *planner)
{
    const vnxi_plan_args_t *args = planner->args;
    uint64_t scratch;

    if (planner->one_route) {
        uint64_t row = *vnxi_indices_read(&args->remote_rows, 0, 1, &scratch);
        if (row >= vnxi_list_count(args->remote)) {
            row = 0; /* the caller has changed it meanwhile */
        }
        planner->lost_at = 0;
        planner->lost = vnxi_list_row(args->remote, row);
    }
    return args->no_route(args, planner->lost_at, &planner->lost,
                          planner->error);
}

vnx_status_t
vnxi_plan_build(const vnxi_plan_args_t *args, vnxi_plan_t *plan_p,
                vnx_error_t *error)
{
    planner_t planner; /* not zeroed: most of it is buffers for batches */
    vnx_status_t status = vnxi_pairs_check(
        &args->local_rows, &args->remote_rows, args->operation, error);
    if (status != VNX_OK) {
        return status;
    }
    planner_init(&planner, args, error);
    memset(plan_p, 0, sizeof *plan_p);
    vnxi_segments_begin(&planner.writer, plan_p, args->local_rows.count,
                        !args->no_merge);
    status = build(&planner);
    if (status == VNX_OK && (planner.routes >> VNXI_ROUTE_NONE & 1) != 0) {
        status = fail_without_route(&planner);
    }
    if (status != VNX_OK) {
        vnxi_plan_fini(plan_p);
        memset(plan_p, 0, sizeof *plan_p);
        return status;
    }
    plan_p->rows = args->local_rows.count;
    plan_p->routes = planner.routes;
    return VNX_OK;
}

vnxi_walk_t
vnxi_plan_walk(const vnxi_plan_t *plan, size_t chunk)
{
    return (vnxi_walk_t){
        .plan = plan,
        .at = plan->chunks[chunk],
        .end = chunk + 1 < plan->chunk_count
                   ? plan->chunks[chunk + 1]
                   : (vnxi_chunk_t){.segment = (uint32_t)plan->segment_count,
                                    .piece = 0},
    };
}
