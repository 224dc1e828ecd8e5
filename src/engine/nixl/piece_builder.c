/*
 * Builds the pieces of a transfer: converts pairs of rows to the library's
 * descriptor lists.
 *
 * Design notes.  The library gets pieces, not indices into its own lists.  A
 * piece is the result of merging neighbouring pairs; merging here costs a
 * tenth of what a descriptor costs in the library.  Where both index arrays go
 * up by one, blocks of contiguous rows become one piece without looking at the
 * rows.
 *
 * On each side, a piece must lie in one of the library's regions.  Every row
 * does, so only merging needs a check: the region that holds the piece so far
 * must hold the next row too.
 *
 * A list of the library grows by doubling, so filling a new one with 100 000
 * pieces costs four times as much as refilling an old one, mostly because of
 * page faults.  A few are kept for the next transfers, unless they are very
 * long.
 */
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "engine/nixl/xfer.h"
#include "engine/parts/indices.h"
#include "engine/parts/list_block.h"
#include "engine/parts/pairs.h"

#define BATCH 256u
#define KEPT_PIECES_MAX (1u << 18) /* about 6 MiB of the library's memory */
#define RUN_MIN 16u /* shorter runs cost as much as single rows */

typedef struct side {
    vnxi_pairs_side_t named;
    nixl_capi_xfer_dlist_t out;
    vnx_desc_t open;             /* the current piece */
    const vnxi_region_t *region; /* the region that holds it; NULL: not
                                    looked up */
    uint64_t run_first;
    size_t run_left; /* 0: unknown */
    const uint64_t *indices;
    uint64_t scratch[BATCH];
} side_t;

typedef struct piece_builder {
    const vnxi_capi_t *capi;
    const vnxi_xfer_args_t *args;
    vnx_error_t *error;
    vnxi_nixl_pieces_t *out;
    size_t at; /* number of pairs done */
    bool merge;
    bool is_open;
    size_t open_place;
    side_t local, remote;
} piece_builder_t;

/* -- The library's lists ---------------------------------------------------
 */

nixl_capi_xfer_dlist_t
vnxi_nixl_list_take(vnxi_engine_t *engine, vnx_mem_t mem)
{
    vnxi_nixl_lists_t *lists = &engine->lists;
    nixl_capi_xfer_dlist_t found = NULL;

    vnxi_mutex_lock(&lists->lock);
    for (size_t i = 0; found == NULL && i < lists->count; i++) {
        if (lists->at[i].mem == mem) {
            found = lists->at[i].list;
            lists->at[i] = lists->at[--lists->count];
        }
    }
    vnxi_mutex_unlock(&lists->lock);
    if (found == NULL && engine->capi->create_xfer_dlist((int)mem, &found) !=
                             NIXL_CAPI_SUCCESS) {
        found = NULL;
    }
    return found;
}

void
vnxi_nixl_list_give(vnxi_engine_t *engine, vnx_mem_t mem,
                    nixl_capi_xfer_dlist_t list, size_t count)
{
    vnxi_nixl_lists_t *lists = &engine->lists;
    bool is_kept = false;

    if (count <= KEPT_PIECES_MAX &&
        engine->capi->xfer_dlist_clear(list) == NIXL_CAPI_SUCCESS) {
        vnxi_mutex_lock(&lists->lock);
        is_kept = lists->count < VNXI_NIXL_LISTS_MAX;
        if (is_kept) {
            lists->at[lists->count].mem = mem;
            lists->at[lists->count++].list = list;
        }
        vnxi_mutex_unlock(&lists->lock);
    }
    if (!is_kept) {
        engine->capi->destroy_xfer_dlist(list);
    }
}

void
vnxi_nixl_lists_fini(vnxi_engine_t *engine)
{
    vnxi_nixl_lists_t *lists = &engine->lists;

    while (lists->count > 0) {
        engine->capi->destroy_xfer_dlist(lists->at[--lists->count].list);
    }
    vnxi_mutex_destroy(&lists->lock);
}

/* -- Pieces ----------------------------------------------------------------
 */

static vnx_status_t
no_memory(const piece_builder_t *builder)
{
    return vnxi_error_no_memory(builder->error, builder->args->operation,
                                builder->out->count * sizeof(vnx_desc_t));
}

static bool
keep_storage_piece(piece_builder_t *builder)
{
    vnxi_nixl_pieces_t *out = builder->out;

    if (builder->args->remote->mem != VNX_MEM_FILE) {
        return true;
    }
    if (out->count == out->storage_capacity) {
        size_t capacity = 2 * out->storage_capacity + 16;
        vnxi_nixl_piece_t *grown =
            realloc(out->storage, capacity * sizeof *grown);
        if (grown == NULL) {
            return false;
        }
        out->storage = grown;
        out->storage_capacity = capacity;
    }
    out->storage[out->count] =
        (vnxi_nixl_piece_t){builder->remote.open, builder->open_place};
    return true;
}

static vnx_status_t
close_piece(piece_builder_t *builder)
{
    const vnxi_capi_t *capi = builder->capi;
    const vnx_desc_t *l = &builder->local.open, *r = &builder->remote.open;

    if (!builder->is_open) {
        return VNX_OK;
    }
    builder->is_open = false;
    if (!keep_storage_piece(builder) ||
        capi->xfer_dlist_add_desc(builder->local.out, l->addr, l->len,
                                  l->dev) != NIXL_CAPI_SUCCESS ||
        capi->xfer_dlist_add_desc(builder->remote.out, r->addr, r->len,
                                  r->dev) != NIXL_CAPI_SUCCESS) {
        return no_memory(builder);
    }
    builder->out->count++;
    return VNX_OK;
}

/* Return whether the region of the open piece also holds `next`, which follows
 * it. */
static bool
region_holds_next(side_t *side, const vnx_desc_t *next)
{
    const vnxi_list_t *list = side->named.list;

    if (list->region_count == 1) {
        return true;
    }
    if (side->region == NULL) {
        side->region = vnxi_list_region_of(list, &side->open);
    }
    return vnxi_region_holds(side->region, next->addr, next->addr + next->len,
                             next->dev);
}

static bool
follows(side_t *side, const vnx_desc_t *next)
{
    return next->addr == side->open.addr + side->open.len &&
           next->dev == side->open.dev && region_holds_next(side, next);
}

/* Add a pair of rows of equal length (or several contiguous ones within a
 * region of each side). */
static vnx_status_t
add_pair(piece_builder_t *builder, size_t place, const vnx_desc_t *l,
         const vnx_desc_t *r)
{
    if (builder->is_open && builder->merge && follows(&builder->local, l) &&
        follows(&builder->remote, r)) {
        builder->local.open.len += l->len;
        builder->remote.open.len += r->len;
    } else {
        vnx_status_t status = close_piece(builder);
        if (status != VNX_OK) {
            return status;
        }
        builder->is_open = true;
        builder->open_place = place;
        builder->local.open = *l;
        builder->remote.open = *r;
        builder->local.region = builder->remote.region = NULL;
    }
    if (__builtin_add_overflow(builder->out->bytes, l->len,
                               &builder->out->bytes)) {
        return vnxi_pairs_too_long(builder->args->operation, builder->error);
    }
    return VNX_OK;
}

/* -- Scattered indices -----------------------------------------------------
 */

static vnx_status_t
bad_index(const piece_builder_t *builder, const side_t *side, size_t place,
          uint64_t index)
{
    return vnxi_pairs_bad_index(&side->named, place, index,
                                builder->args->operation, builder->error);
}

static vnx_status_t
read_indices(piece_builder_t *builder, side_t *side, size_t count)
{
    size_t rows = side->named.list->count;

    side->indices = vnxi_indices_read(side->named.indices, builder->at, count,
                                      side->scratch);
    if (vnxi_indices_are_below(side->indices, count, rows)) {
        return VNX_OK;
    }
    size_t i = 0;
    while (side->indices[i] < rows) {
        i++;
    }
    return bad_index(builder, side, builder->at + i, side->indices[i]);
}

static void
skip(side_t *side, size_t count)
{
    side->run_left = side->run_left > count ? side->run_left - count : 0;
    side->run_first += count;
}

static vnx_status_t
build_batch(piece_builder_t *builder, size_t count)
{
    vnx_status_t status = read_indices(builder, &builder->local, count);
    if (status == VNX_OK) {
        status = read_indices(builder, &builder->remote, count);
    }
    for (size_t i = 0; status == VNX_OK && i < count; i++) {
        vnx_desc_t l = vnxi_list_row(builder->local.named.list,
                                     builder->local.indices[i]);
        vnx_desc_t r = vnxi_list_row(builder->remote.named.list,
                                     builder->remote.indices[i]);
        status =
            l.len == r.len
                ? add_pair(builder, builder->at + i, &l, &r)
                : vnxi_pairs_unequal(builder->at + i, l.len, r.len,
                                     builder->args->operation, builder->error);
    }
    builder->at += count;
    skip(&builder->local, count);
    skip(&builder->remote, count);
    return status;
}

/* -- Consecutive indices ---------------------------------------------------
 */

static size_t
side_run(const piece_builder_t *builder, side_t *side)
{
    if (side->run_left == 0) {
        side->run_left = vnxi_indices_run(side->named.indices, builder->at,
                                          &side->run_first);
    }
    return side->run_left;
}

/* The number of the run's rows (at most `count`) that are contiguous in this
 * block and in one region; *desc_p covers all of them.  0: they are not
 * contiguous. */
static size_t
dense_rows(const side_t *side, size_t count, vnx_desc_t *desc_p,
           uint64_t *row_len_p)
{
    const vnxi_list_t *list = side->named.list;
    const vnxi_list_block_t *block = vnxi_list_block_of(list, side->run_first);
    size_t at = side->run_first & (VNXI_LIST_BLOCK - 1);
    size_t left = VNXI_LIST_BLOCK - at;

    if (block->addr_form != VNXI_FORM_RUN ||
        block->len_form != VNXI_FORM_RUN || block->dev_form != VNXI_FORM_RUN ||
        block->step != block->len) {
        return 0;
    }
    count = count < left ? count : left;
    *row_len_p = block->len;
    *desc_p = (vnx_desc_t){vnxi_block_addr(block, at), block->len, block->dev};
    if (list->region_count > 1) {
        const vnxi_region_t *region = vnxi_list_region_of(list, desc_p);
        uint64_t fits = (vnxi_region_end(region) - desc_p->addr) / block->len;
        count = fits < count ? (size_t)fits : count;
    }
    return count;
}

/* Handle a stretch of a run.  *done_p: it was handled as a whole. */
static vnx_status_t
build_dense(piece_builder_t *builder, size_t count, bool *done_p)
{
    uint64_t local_len = 0, remote_len = 0;
    vnx_desc_t l, r;

    size_t n = dense_rows(&builder->local, count, &l, &local_len);
    n = n > 0 ? dense_rows(&builder->remote, n, &r, &remote_len) : 0;
    *done_p = n > 0;
    if (n == 0) {
        return VNX_OK;
    }
    if (local_len != remote_len) {
        return vnxi_pairs_unequal(builder->at, local_len, remote_len,
                                  builder->args->operation, builder->error);
    }
    l.len = r.len = local_len * n; /* they lie in a region: cannot overflow */
    vnx_status_t status = add_pair(builder, builder->at, &l, &r);
    builder->at += n;
    skip(&builder->local, n);
    skip(&builder->remote, n);
    return status;
}

static vnx_status_t
check_run(const piece_builder_t *builder, const side_t *side, size_t count)
{
    size_t rows = side->named.list->count;
    if (side->run_first < rows && count <= rows - side->run_first) {
        return VNX_OK;
    }
    size_t good = side->run_first < rows ? rows - side->run_first : 0;
    return bad_index(builder, side, builder->at + good,
                     side->run_first + good);
}

/* Handle `count` indices where both runs continue. */
static vnx_status_t
build_run(piece_builder_t *builder, size_t count)
{
    size_t end = builder->at + count;
    vnx_status_t status = check_run(builder, &builder->local, count);
    if (status == VNX_OK) {
        status = check_run(builder, &builder->remote, count);
    }
    while (status == VNX_OK && builder->at < end) {
        size_t left = end - builder->at;
        bool done = false;
        if (builder->merge) {
            status = build_dense(builder, left, &done);
        }
        if (status == VNX_OK && !done) {
            status = build_batch(builder, left < BATCH ? left : BATCH);
        }
    }
    return status;
}

/* -- The whole list --------------------------------------------------------
 */

static vnx_status_t
build_all(piece_builder_t *builder)
{
    size_t count = builder->args->local_rows.count;
    vnx_status_t status = VNX_OK;

    while (status == VNX_OK && builder->at < count) {
        size_t left = count - builder->at;
        size_t l = side_run(builder, &builder->local);
        size_t r = side_run(builder, &builder->remote);
        size_t run = l < r ? l : r;
        if (run >= RUN_MIN || run == left) {
            status = build_run(builder, run);
        } else {
            status = build_batch(builder, left < BATCH ? left : BATCH);
        }
    }
    return status == VNX_OK ? close_piece(builder) : status;
}

/* Storage gets the rows unmerged: a backend works on its pieces in parallel,
 * and one piece must not exceed what the kernel accepts at once. */
static bool
is_memory(vnx_mem_t mem)
{
    return mem == VNX_MEM_DRAM || mem == VNX_MEM_VRAM;
}

static void
side_init(side_t *side, const char *name, const vnxi_list_t *list,
          const vnx_indices_t *indices, nixl_capi_xfer_dlist_t out)
{
    side->named = (vnxi_pairs_side_t){name, list, indices};
    side->out = out;
    side->region = NULL;
    side->run_first = 0;
    side->run_left = 0;
}

static vnx_status_t
pieces_init(vnxi_nixl_pieces_t *pieces, vnxi_engine_t *engine,
            const vnxi_xfer_args_t *args, vnx_error_t *error)
{
    *pieces = (vnxi_nixl_pieces_t){.local_mem = args->local->mem,
                                   .remote_mem = args->remote->mem};
    pieces->local = vnxi_nixl_list_take(engine, pieces->local_mem);
    pieces->remote = vnxi_nixl_list_take(engine, pieces->remote_mem);
    if (pieces->local == NULL || pieces->remote == NULL) {
        vnxi_nixl_pieces_fini(engine, pieces);
        return vnxi_error_no_memory(error, args->operation, 0);
    }
    return VNX_OK;
}

vnx_status_t
vnxi_nixl_pieces_build(vnxi_engine_t *engine, const vnxi_xfer_args_t *args,
                       vnxi_nixl_pieces_t *pieces_p, vnx_error_t *error)
{
    vnxi_nixl_pieces_t pieces;
    piece_builder_t builder; /* not zeroed: most of it is buffer space */

    vnx_status_t status = vnxi_pairs_check(
        &args->local_rows, &args->remote_rows, args->operation, error);
    if (status == VNX_OK) {
        status = pieces_init(&pieces, engine, args, error);
    }
    if (status != VNX_OK) {
        return status;
    }
    builder.capi = engine->capi;
    builder.args = args;
    builder.error = error;
    builder.out = &pieces;
    builder.at = 0;
    builder.merge = !args->no_merge && is_memory(args->local->mem) &&
                    is_memory(args->remote->mem);
    builder.is_open = false;
    side_init(&builder.local, "local", args->local, &args->local_rows,
              pieces.local);
    side_init(&builder.remote, "remote", args->remote, &args->remote_rows,
              pieces.remote);
    status = build_all(&builder);
    if (status != VNX_OK) {
        vnxi_nixl_pieces_fini(engine, &pieces);
        return status;
    }
    *pieces_p = pieces;
    return VNX_OK;
}

void
vnxi_nixl_pieces_fini(vnxi_engine_t *engine, vnxi_nixl_pieces_t *pieces)
{
    if (pieces->local != NULL) {
        vnxi_nixl_list_give(engine, pieces->local_mem, pieces->local,
                            pieces->count);
    }
    if (pieces->remote != NULL) {
        vnxi_nixl_list_give(engine, pieces->remote_mem, pieces->remote,
                            pieces->count);
    }
    free(pieces->storage);
    *pieces = (vnxi_nixl_pieces_t){0};
}
