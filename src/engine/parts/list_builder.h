/*
 * A list under construction, shared by list_builder.c and list_strided.c.
 */
#ifndef VNXI_PARTS_LIST_BUILDER_H
#define VNXI_PARTS_LIST_BUILDER_H

#include "engine/parts/list_block.h"
#include "engine/parts/list_finder.h"

#define VNXI_LIST_ROWS_MAX ((uint64_t)1 << 40)
#define VNXI_PENDING_FEW 4u
#define VNXI_PENDING_SIZE (VNXI_LIST_BLOCK * sizeof(vnx_desc_t))

struct vnxi_builder {
    vnxi_list_args_t args;
    vnxi_finder_t finder;
    uint64_t fed;  /* rows as counted by the caller, for errors */
    uint64_t rows; /* with strides unrolled, including pending ones */
    vnxi_list_block_t *blocks;
    size_t block_count, block_capacity;
    vnxi_list_arena_t *explicit;
    bool mixed;       /* the lengths differ */
    uint64_t row_len; /* of the first row */
    vnx_desc_t *pending;
    size_t pending_count;
    vnx_desc_t few[VNXI_PENDING_FEW];
};

/* Errors with the row (as counted by the caller), its values and the peer. */
vnx_status_t vnxi_builder_invalid_row(const vnxi_builder_t *builder,
                                      uint64_t row, const vnx_desc_t *desc,
                                      const char *cause, vnx_error_t *error);
vnx_status_t vnxi_builder_too_many(const vnxi_builder_t *builder,
                                   vnx_error_t *error);

/* Check one row.  VNX_OK: finder.last is the region that holds it. */
vnx_status_t vnxi_builder_check_row(vnxi_builder_t *builder, uint64_t number,
                                    const vnx_desc_t *row, vnx_error_t *error);

vnx_status_t vnxi_builder_reserve_blocks(vnxi_builder_t *builder,
                                         uint64_t more, vnx_error_t *error);
/* Reserve space for `count` more pending rows; the total must fit in a block.
 */
vnx_status_t vnxi_builder_reserve_pending(vnxi_builder_t *builder,
                                          size_t count, vnx_error_t *error);
/* Encode the pending rows as a block, for which space was reserved. */
vnx_status_t vnxi_builder_flush_pending(vnxi_builder_t *builder,
                                        vnx_error_t *error);

/* Record the lengths of added rows: all `len`, or not all equal. */
static inline void
vnxi_builder_note_lengths(vnxi_builder_t *builder, bool one_len, uint64_t len)
{
    builder->mixed |= !one_len || len != builder->row_len;
}

#endif
