/*
 * Feeds strided rows to the builder of a list.  They are checked one region at
 * a time, and whole blocks are made without looking at the pieces.
 */
#include "engine/parts/list_builder.h"

static vnx_desc_t
piece_of(const vnx_strided_desc_t *row, uint64_t i)
{
    return (vnx_desc_t){
        .addr = row->addr + i * row->stride, .len = row->len, .dev = row->dev};
}

/* Skip all pieces held by the same region at once. */
static vnx_status_t
check_pieces(vnxi_builder_t *builder, const vnx_strided_desc_t *row,
             vnx_error_t *error)
{
    for (uint64_t i = 0; i < row->count;) {
        vnx_desc_t piece = piece_of(row, i);
        vnx_status_t status =
            vnxi_builder_check_row(builder, builder->fed, &piece, error);
        if (status != VNX_OK) {
            return status;
        }
        if (row->stride == 0) {
            return VNX_OK;
        }
        const vnxi_region_t *region = builder->finder.last;
        uint64_t room = region->len - (piece.addr - region->addr) - piece.len;
        uint64_t held = room / row->stride + 1;
        if (held >= row->count - i) {
            return VNX_OK;
        }
        i += held;
    }
    return VNX_OK;
}

static vnx_status_t
check_strided(vnxi_builder_t *builder, const vnx_strided_desc_t *row,
              vnx_error_t *error)
{
    uint64_t span, last, end;
    vnx_desc_t first = piece_of(row, 0);

    if (row->count == 0) {
        return vnxi_builder_invalid_row(builder, builder->fed, &first,
                                        "its count is 0", error);
    }
    if (row->len == 0) {
        return vnxi_builder_invalid_row(builder, builder->fed, &first,
                                        "its length is 0", error);
    }
    if (__builtin_mul_overflow(row->count - 1, row->stride, &span) ||
        __builtin_add_overflow(row->addr, span, &last) ||
        __builtin_add_overflow(last, row->len, &end)) {
        return vnxi_builder_invalid_row(
            builder, builder->fed, &first,
            "address + (count - 1) * stride + length exceeds 2^64", error);
    }
    if (row->count > VNXI_LIST_ROWS_MAX - builder->rows) {
        return vnxi_builder_too_many(builder, error);
    }
    return check_pieces(builder, row, error);
}

static vnx_status_t
add_pieces_pending(vnxi_builder_t *builder, const vnx_strided_desc_t *row,
                   uint64_t first, size_t count, vnx_error_t *error)
{
    vnx_status_t status = vnxi_builder_reserve_pending(builder, count, error);
    if (status != VNX_OK) {
        return status;
    }
    for (size_t i = 0; i < count; i++) {
        builder->pending[builder->pending_count++] = piece_of(row, first + i);
    }
    return builder->pending_count == VNXI_LIST_BLOCK
               ? vnxi_builder_flush_pending(builder, error)
               : VNX_OK;
}

static void
add_run_block(vnxi_builder_t *builder, const vnx_strided_desc_t *row,
              uint64_t first)
{
    builder->blocks[builder->block_count++] =
        (vnxi_list_block_t){.base = row->addr + first * row->stride,
                            .step = row->stride,
                            .len = row->len,
                            .dev = row->dev};
    vnxi_builder_note_lengths(builder, true, row->len);
}

static vnx_status_t
add_pieces(vnxi_builder_t *builder, const vnx_strided_desc_t *row,
           vnx_error_t *error)
{
    vnx_status_t status = VNX_OK;
    for (uint64_t i = 0; i < row->count && status == VNX_OK;) {
        uint64_t n = VNXI_LIST_BLOCK - builder->pending_count;
        n = n < row->count - i ? n : row->count - i;
        if (n == VNXI_LIST_BLOCK) {
            add_run_block(builder, row, i);
        } else {
            status = add_pieces_pending(builder, row, i, n, error);
        }
        i += n;
    }
    return status;
}

static vnx_status_t
feed_strided_row(vnxi_builder_t *builder, const vnx_strided_desc_t *row,
                 vnx_error_t *error)
{
    vnx_status_t status = check_strided(builder, row, error);
    if (status != VNX_OK) {
        return status;
    }
    uint64_t blocks = (builder->pending_count + row->count) / VNXI_LIST_BLOCK;
    if (blocks > 0) {
        status = vnxi_builder_reserve_blocks(builder, blocks, error);
        if (status != VNX_OK) {
            return status;
        }
    }
    if (builder->rows == 0) {
        builder->row_len = row->len;
    }
    builder->fed++;
    builder->rows += row->count;
    return add_pieces(builder, row, error);
}

vnx_status_t
vnxi_list_feed_strided(vnxi_builder_t *builder, const vnx_strided_desc_t *rows,
                       size_t count, vnx_error_t *error)
{
    for (size_t i = 0; i < count; i++) {
        /* Copy the row: the array may change while it is read. */
        vnx_strided_desc_t row = rows[i];
        vnx_status_t status = feed_strided_row(builder, &row, error);
        if (status != VNX_OK) {
            return status;
        }
    }
    return VNX_OK;
}
