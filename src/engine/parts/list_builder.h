/*
 * A list in the making: shared by list_builder.c and list_strided.c.
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
    uint64_t fed;  /* rows as the caller counts them, for errors */
    uint64_t rows; /* strides unrolled, those pending included */
    vnxi_list_block_t *blocks;
    size_t block_count, block_capacity;
    vnxi_list_arena_t *explicit;
    bool mixed;       /* not all lengths were the same */
    uint64_t row_len; /* of the first row */
    vnx_desc_t *pending;
    size_t pending_count;
    vnx_desc_t few[VNXI_PENDING_FEW];
};

/* Errors that name a row (as the caller counts), its values and the peer. */
vnx_status_t vnxi_builder_invalid_row(const vnxi_builder_t *builder,
                                      uint64_t row, const vnx_desc_t *desc,
                                      const char *cause, vnx_error_t *error);
vnx_status_t vnxi_builder_too_many(const vnxi_builder_t *builder,
                                   vnx_error_t *error);

/* What is wrong with one row; VNX_OK: nothing, finder.last holds it. */
vnx_status_t vnxi_builder_check_row(vnxi_builder_t *builder, uint64_t number,
                                    const vnx_desc_t *row, vnx_error_t *error);

vnx_status_t vnxi_builder_reserve_blocks(vnxi_builder_t *builder,
                                         uint64_t more, vnx_error_t *error);
/* Room for `count` rows more, which still fit a block. */
vnx_status_t vnxi_builder_reserve_pending(vnxi_builder_t *builder,
                                          size_t count, vnx_error_t *error);
/* Make a block (for which there is room) of what is pending. */
vnx_status_t vnxi_builder_flush_pending(vnxi_builder_t *builder,
                                        vnx_error_t *error);

/* Rows were added: all of length `len`, or not of one length. */
static inline void
vnxi_builder_note_lengths(vnxi_builder_t *builder, bool one_len, uint64_t len)
{
    builder->mixed |= !one_len || len != builder->row_len;
}

#endif
