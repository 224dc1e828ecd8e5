/*
 * Design notes.  Rows are processed in blocks.  A complete block is scanned,
 * looked up in the regions and encoded directly from the caller's array.
 * Remaining rows wait in `pending`; they are checked first, so that the call
 * that feeds a bad row is the one that fails.  A strided row is checked one
 * region at a time and yields whole blocks without looking at its pieces.
 *
 * A list of up to one block is a single allocation.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/recycle.h"
#include "engine/parts/list_block.h"
#include "engine/parts/list_finder.h"

#define ROWS_MAX ((uint64_t)1 << 40)
#define PENDING_FEW 4u
#define PENDING_SIZE (VNXI_LIST_BLOCK * sizeof(vnx_desc_t))

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
    vnx_desc_t few[PENDING_FEW];
};

/* -- Errors --------------------------------------------------------------- */

static vnx_status_t
no_memory(const vnxi_builder_t *builder, size_t size, vnx_error_t *error)
{
    return vnxi_error_no_memory(error, builder->args.operation, size);
}

/* Add row and peer to a record that was just written. */
static vnx_status_t
name_row(const vnxi_builder_t *builder, uint64_t row, const vnx_desc_t *desc,
         vnx_status_t status, vnx_error_t *error)
{
    vnxi_error_desc(error, row, desc->addr, desc->len, desc->dev);
    if (builder->args.peer != NULL) {
        vnxi_error_peer(error, builder->args.peer->name,
                        builder->args.peer->name_len);
    }
    return status;
}

/* The reason, if a region that would hold the row is gone. */
static const char *
why_gone(const vnxi_builder_t *builder, const vnx_desc_t *desc)
{
    const vnxi_region_table_t *table = builder->args.table;
    const char *why = "";

    for (size_t i = 0; i < vnxi_region_table_count(table); i++) {
        const vnxi_region_t *region = vnxi_region_table_at(table, i);
        if (region->mem != builder->args.mem ||
            !vnxi_region_holds(region, desc->addr, desc->addr + desc->len,
                               desc->dev)) {
            continue;
        }
        if (vnxi_region_state(region) == VNXI_REGION_REFUSED) {
            return ": the peer's metadata lists one that does, but its "
                   "owner has not registered it, or has deregistered it since";
        }
        why = ": the one that held it was deregistered";
    }
    return why;
}

/* The memory types of the regions that are not gone, a bit each. */
static unsigned
mems_of(const vnxi_region_table_t *table)
{
    unsigned mems = 0;

    for (size_t i = 0; i < vnxi_region_table_count(table); i++) {
        const vnxi_region_t *region = vnxi_region_table_at(table, i);
        if (!vnxi_region_is_gone(region)) {
            mems |= 1u << region->mem;
        }
    }
    return mems;
}

/* Check that the list's side has a region of the memory type. */
static vnx_status_t
no_region(const vnxi_builder_t *builder, vnx_error_t *error)
{
    const vnxi_list_args_t *args = &builder->args;
    const char *who =
        args->is_own ? "this agent has" : "the peer has published";
    const char *between = ", only ";
    unsigned mems = mems_of(args->table);

    if (mems >> args->mem & 1) {
        return VNX_OK;
    }
    if (mems == 0) {
        return vnxi_error_set(
            error, VNX_ERR_NOT_FOUND, args->operation,
            "%s no registered memory: %s", who,
            args->is_own ? "call register_memory first"
                         : "it must call register_memory before "
                           "get_agent_metadata, or send its metadata again");
    }
    vnxi_error_set(error, VNX_ERR_NOT_FOUND, args->operation,
                   "%s no registered %s memory", who, vnx_mem_name(args->mem));
    for (unsigned mem = 0; mem < VNX_MEM_COUNT; mem++) {
        if (mems >> mem & 1) {
            vnxi_error_add(error, "%s%s", between, vnx_mem_name(mem));
            between = ", ";
        }
    }
    return VNX_ERR_NOT_FOUND;
}

static vnx_status_t
not_found(const vnxi_builder_t *builder, uint64_t row, const vnx_desc_t *desc,
          vnx_error_t *error)
{
    const char *operation = builder->args.operation;
    const char *mem = vnx_mem_name(builder->args.mem);
    const vnxi_region_t *start = vnxi_region_table_find(
        builder->args.table, builder->args.mem, desc->addr, 1, desc->dev);
    const char *why = why_gone(builder, desc);
    vnx_status_t status = VNX_OK;

    if (start == NULL && why[0] == '\0') {
        status = no_region(builder, error);
    }
    if (status != VNX_OK) {
        return name_row(builder, row, desc, status, error);
    }
    if (start == NULL) {
        status =
            vnxi_error_set(error, VNX_ERR_NOT_FOUND, operation,
                           "no registered region holds it (%s)%s", mem, why);
    } else {
        status = vnxi_error_set(error, VNX_ERR_NOT_FOUND, operation,
                                "no registered region holds it: it starts in "
                                "the %s region at 0x%" PRIx64 " of %" PRIu64
                                " bytes and extends past its end",
                                mem, start->addr, start->len);
    }
    return name_row(builder, row, desc, status, error);
}

static vnx_status_t
invalid_row(const vnxi_builder_t *builder, uint64_t row,
            const vnx_desc_t *desc, const char *cause, vnx_error_t *error)
{
    vnx_status_t status = vnxi_error_set(error, VNX_ERR_INVALID_PARAM,
                                         builder->args.operation, "%s", cause);
    return name_row(builder, row, desc, status, error);
}

static vnx_status_t
too_many(const vnxi_builder_t *builder, vnx_error_t *error)
{
    return vnxi_error_set(error, VNX_ERR_INVALID_PARAM,
                          builder->args.operation, "more than 2^40 rows");
}

/* Check one row and write the error, if any. */
static vnx_status_t
check_row(vnxi_builder_t *builder, uint64_t number, const vnx_desc_t *row,
          vnx_error_t *error)
{
    uint64_t end;
    if (row->len == 0) {
        return invalid_row(builder, number, row, "its length is 0", error);
    }
    if (__builtin_add_overflow(row->addr, row->len, &end)) {
        return invalid_row(builder, number, row,
                           "address + length exceeds 2^64", error);
    }
    vnx_status_t status =
        vnxi_finder_range(&builder->finder, row->addr, row->len, row->dev);
    if (status == VNX_ERR_NOT_FOUND) {
        return not_found(builder, number, row, error);
    }
    return status == VNX_OK ? VNX_OK : no_memory(builder, sizeof *row, error);
}

/* -- Blocks --------------------------------------------------------------- */

static vnx_status_t
reserve_blocks(vnxi_builder_t *builder, uint64_t more, vnx_error_t *error)
{
    size_t need = builder->block_count + more;
    if (need <= builder->block_capacity) {
        return VNX_OK;
    }
    size_t capacity = builder->block_capacity * 2;
    capacity = capacity > need ? capacity : need;
    vnxi_list_block_t *blocks = vnxi_recycle_grow(
        builder->blocks, builder->block_capacity * sizeof *blocks,
        capacity * sizeof *blocks);
    if (blocks == NULL) {
        return no_memory(builder, capacity * sizeof *blocks, error);
    }
    builder->blocks = blocks;
    builder->block_capacity = capacity;
    return VNX_OK;
}

/* Record the lengths of added rows: all `len`, or not all equal. */
static void
note_lengths(vnxi_builder_t *builder, bool one_len, uint64_t len)
{
    builder->mixed |= !one_len || len != builder->row_len;
}

/* Append a block; the caller has reserved space. */
static vnx_status_t
add_block(vnxi_builder_t *builder, const vnx_desc_t *rows, size_t count,
          const vnxi_rows_scan_t *scan, vnx_error_t *error)
{
    size_t size = vnxi_block_size(scan, count);
    void *data = NULL;
    if (size > 0) {
        data = vnxi_list_arena_alloc(&builder->explicit, size);
        if (data == NULL) {
            return no_memory(builder, size, error);
        }
    }
    vnxi_block_encode(scan, rows, count, data,
                      &builder->blocks[builder->block_count++]);
    note_lengths(builder, scan->one_len, rows[0].len);
    return VNX_OK;
}

static vnx_status_t
flush_pending(vnxi_builder_t *builder, vnx_error_t *error)
{
    size_t count = builder->pending_count;
    vnxi_rows_scan_t scan = vnxi_rows_scan(builder->pending, count);
    builder->pending_count = 0;
    return add_block(builder, builder->pending, count, &scan, error);
}

/* Reserve space for `count` more pending rows; the total must fit in a block.
 */
static vnx_status_t
reserve_pending(vnxi_builder_t *builder, size_t count, vnx_error_t *error)
{
    if (builder->pending != builder->few ||
        builder->pending_count + count <= PENDING_FEW) {
        return VNX_OK;
    }
    vnx_desc_t *pending = vnxi_recycle_alloc(PENDING_SIZE);
    if (pending == NULL) {
        return no_memory(builder, PENDING_SIZE, error);
    }
    memcpy(pending, builder->few, builder->pending_count * sizeof *pending);
    builder->pending = pending;
    return VNX_OK;
}

/* -- Life ----------------------------------------------------------------- */

vnx_status_t
vnxi_list_begin(const vnxi_list_args_t *args, vnxi_builder_t **builder_p,
                vnx_error_t *error)
{
    if (vnx_mem_name(args->mem) == NULL) {
        vnxi_region_table_release(args->table);
        return vnxi_error_set(error, VNX_ERR_INVALID_PARAM, args->operation,
                              "%d is not a memory type", (int)args->mem);
    }
    vnxi_builder_t *builder =
        args->table != NULL ? malloc(sizeof *builder) : NULL;
    if (builder == NULL) {
        vnxi_region_table_release(args->table);
        return vnxi_error_no_memory(error, args->operation, 0);
    }
    builder->args = *args;
    vnxi_finder_init(&builder->finder, args->table, args->mem);
    builder->fed = builder->rows = 0;
    builder->blocks = NULL;
    builder->block_count = builder->block_capacity = 0;
    builder->explicit = NULL;
    builder->mixed = false;
    builder->pending = builder->few;
    builder->pending_count = 0;
    if (args->peer != NULL) {
        vnxi_peer_retain(args->peer);
    }
    *builder_p = builder;
    return VNX_OK;
}

/* Free the builder, except the parts that the list has taken over. */
static void
builder_free(vnxi_builder_t *builder)
{
    vnxi_finder_fini(&builder->finder);
    vnxi_region_table_release(builder->args.table);
    if (builder->pending != builder->few) {
        vnxi_recycle_free(builder->pending, PENDING_SIZE);
    }
    free(builder);
}

void
vnxi_list_abort(vnxi_builder_t *builder)
{
    if (builder == NULL) {
        return;
    }
    vnxi_list_arena_free(builder->explicit);
    vnxi_recycle_free(builder->blocks,
                      builder->block_capacity * sizeof *builder->blocks);
    vnxi_peer_release(builder->args.peer);
    builder_free(builder);
}

/* -- Feeding rows --------------------------------------------------------- */

static vnx_status_t
check_rows(vnxi_builder_t *builder, const vnx_desc_t *rows, size_t count,
           const vnxi_rows_scan_t *scan, vnx_error_t *error)
{
    vnx_status_t status =
        scan->bad ? VNX_ERR_INVALID_PARAM
                  : vnxi_finder_rows(&builder->finder, rows, count, scan);
    if (status == VNX_OK) {
        return VNX_OK;
    }
    if (status == VNX_ERR_NO_MEMORY) {
        return no_memory(builder, sizeof *rows, error);
    }
    /* The block has a bad row: find the first one. */
    for (size_t i = 0; i < count; i++) {
        vnx_status_t row =
            check_row(builder, builder->fed + i, &rows[i], error);
        if (row != VNX_OK) {
            return row;
        }
    }
    return VNX_OK; /* a region was revoked and registered again in between */
}

static vnx_status_t
feed_part(vnxi_builder_t *builder, const vnx_desc_t *rows, size_t count,
          vnx_error_t *error)
{
    vnxi_rows_scan_t scan = vnxi_rows_scan(rows, count);
    vnx_status_t status = check_rows(builder, rows, count, &scan, error);
    if (status != VNX_OK) {
        return status;
    }
    if (builder->rows == 0) {
        builder->row_len = rows[0].len;
    }
    builder->fed += count;
    builder->rows += count;
    if (count == VNXI_LIST_BLOCK) {
        return add_block(builder, rows, count, &scan, error);
    }
    status = reserve_pending(builder, count, error);
    if (status != VNX_OK) {
        return status;
    }
    memcpy(builder->pending + builder->pending_count, rows,
           count * sizeof *rows);
    builder->pending_count += count;
    return builder->pending_count == VNXI_LIST_BLOCK
               ? flush_pending(builder, error)
               : VNX_OK;
}

vnx_status_t
vnxi_list_feed(vnxi_builder_t *builder, const vnx_desc_t *rows, size_t count,
               vnx_error_t *error)
{
    if (count > ROWS_MAX - builder->rows) {
        return too_many(builder, error);
    }
    vnx_status_t status = VNX_OK;
    uint64_t blocks = (builder->pending_count + count) / VNXI_LIST_BLOCK;
    if (blocks > 0) {
        status = reserve_blocks(builder, blocks, error);
    }
    while (count > 0 && status == VNX_OK) {
        size_t n = VNXI_LIST_BLOCK - builder->pending_count;
        n = n < count ? n : count;
        status = feed_part(builder, rows, n, error);
        rows += n;
        count -= n;
    }
    return status;
}

/* -- Feeding strided rows -------------------------------------------------
 */

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
        vnx_status_t status = check_row(builder, builder->fed, &piece, error);
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
        return invalid_row(builder, builder->fed, &first, "its count is 0",
                           error);
    }
    if (row->len == 0) {
        return invalid_row(builder, builder->fed, &first, "its length is 0",
                           error);
    }
    if (__builtin_mul_overflow(row->count - 1, row->stride, &span) ||
        __builtin_add_overflow(row->addr, span, &last) ||
        __builtin_add_overflow(last, row->len, &end)) {
        return invalid_row(
            builder, builder->fed, &first,
            "address + (count - 1) * stride + length exceeds 2^64", error);
    }
    if (row->count > ROWS_MAX - builder->rows) {
        return too_many(builder, error);
    }
    return check_pieces(builder, row, error);
}

static vnx_status_t
add_pieces_pending(vnxi_builder_t *builder, const vnx_strided_desc_t *row,
                   uint64_t first, size_t count, vnx_error_t *error)
{
    vnx_status_t status = reserve_pending(builder, count, error);
    if (status != VNX_OK) {
        return status;
    }
    for (size_t i = 0; i < count; i++) {
        builder->pending[builder->pending_count++] = piece_of(row, first + i);
    }
    return builder->pending_count == VNXI_LIST_BLOCK
               ? flush_pending(builder, error)
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
    note_lengths(builder, true, row->len);
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
        status = reserve_blocks(builder, blocks, error);
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

/* -- Finishing ------------------------------------------------------------ */

/* Allocate a list with space for its regions and `extra` bytes. */
static vnxi_list_t *
list_alloc(vnxi_builder_t *builder, size_t extra, vnx_error_t *error)
{
    const vnxi_finder_t *finder = &builder->finder;
    const vnxi_list_class_t *class = builder->args.class;
    vnxi_list_t *list;
    size_t head = class != NULL ? class->size : sizeof *list;
    size_t regions = finder->hit_count * sizeof(vnxi_region_t *);
    size_t size = head + regions + extra;

    list = malloc(size);
    if (list == NULL) {
        no_memory(builder, size, error);
        return NULL;
    }
    *list = (vnxi_list_t){
        .peer = builder->args.peer,
        .mem = builder->args.mem,
        .backends = builder->args.backends,
        .count = builder->rows,
        .bytes = size,
        .regions = (void *)((char *)list + head),
        .region_count = finder->hit_count,
        .class = class,
    };
    memset(list + 1, 0, head - sizeof *list);
    atomic_init(&list->refs, 1);
    for (size_t i = 0; i < finder->hit_count; i++) {
        list->regions[i] = vnxi_region_retain(finder->hits[i]);
    }
    return list;
}

/* Finish a list of at most one block, whose rows are all pending. */
static vnx_status_t
finish_small(vnxi_builder_t *builder, vnxi_list_t **list_p, vnx_error_t *error)
{
    size_t count = builder->pending_count;
    vnxi_rows_scan_t scan = vnxi_rows_scan(builder->pending, count);
    size_t size = vnxi_block_size(&scan, count);
    vnxi_list_t *list =
        list_alloc(builder, sizeof(vnxi_list_block_t) + size, error);
    if (list == NULL) {
        return VNX_ERR_NO_MEMORY;
    }
    list->blocks = (void *)(list->regions + list->region_count);
    list->block_count = 1;
    vnxi_block_encode(&scan, builder->pending, count,
                      size > 0 ? list->blocks + 1 : NULL, list->blocks);
    note_lengths(builder, scan.one_len, builder->pending[0].len);
    *list_p = list;
    return VNX_OK;
}

static vnx_status_t
finish_blocks(vnxi_builder_t *builder, vnxi_list_t **list_p,
              vnx_error_t *error)
{
    if (builder->pending_count > 0) {
        vnx_status_t status = reserve_blocks(builder, 1, error);
        status = status == VNX_OK ? flush_pending(builder, error) : status;
        if (status != VNX_OK) {
            return status;
        }
    }
    vnxi_list_t *list = list_alloc(builder, 0, error);
    if (list == NULL) {
        return VNX_ERR_NO_MEMORY;
    }
    list->blocks = builder->blocks;
    list->block_count = builder->block_count;
    list->blocks_size = builder->block_capacity * sizeof *builder->blocks;
    list->explicit = builder->explicit;
    list->bytes += list->blocks_size;
    for (vnxi_list_arena_t *arena = list->explicit; arena != NULL;
         arena = arena->next) {
        list->bytes += arena->size;
    }
    *list_p = list;
    return VNX_OK;
}

static int
common_addr_form(const vnxi_list_t *list)
{
    int form = list->blocks[0].addr_form;
    for (size_t i = 1; i < list->block_count; i++) {
        form = list->blocks[i].addr_form == form ? form : -1;
    }
    return form;
}

vnx_status_t
vnxi_list_finish(vnxi_builder_t *builder, vnxi_list_t **list_p,
                 vnx_error_t *error)
{
    vnxi_list_t *list;

    if (builder->rows == 0) {
        return vnxi_error_set(error, VNX_ERR_INVALID_PARAM,
                              builder->args.operation, "the list has no rows");
    }
    if (vnxi_finder_finish(&builder->finder) != VNX_OK) {
        return no_memory(builder, sizeof(vnxi_list_t), error);
    }
    vnx_status_t status = builder->block_count == 0
                              ? finish_small(builder, &list, error)
                              : finish_blocks(builder, &list, error);
    if (status != VNX_OK) {
        return status;
    }
    list->addr_form = common_addr_form(list);
    list->uniform = !builder->mixed;
    list->row_len = builder->mixed ? 0 : builder->row_len;
    if (list->class != NULL && list->class->init != NULL) {
        list->class->init(list);
    }
    builder_free(builder);
    *list_p = list;
    return VNX_OK;
}
