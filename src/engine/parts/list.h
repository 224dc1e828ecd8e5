/*
 * Prepared lists: descriptors that were checked against a region table once,
 * are stored compactly, and are looked up by index in constant time.
 *
 * Rows are stored in blocks of VNXI_LIST_BLOCK rows.  A block whose rows form
 * one arithmetic run of equal lengths takes no memory beyond its header.  Any
 * other block has explicit addresses (as 32-bit multiples of a unit from a
 * base if they fit, else 64-bit), and has explicit lengths and devices only if
 * they differ within the block.  So 1 M rows at a regular stride take about 50
 * kB, 1 M random rows 4 MB.
 */
#ifndef VNXI_PARTS_LIST_H
#define VNXI_PARTS_LIST_H

#include <stdatomic.h>
#include <stdbool.h>

#include "engine/engine.h"
#include "engine/parts/region.h"

#define VNXI_LIST_BLOCK_BITS 10
#define VNXI_LIST_BLOCK (1u << VNXI_LIST_BLOCK_BITS)

typedef struct vnxi_list_block vnxi_list_block_t; /* see list_block.h */

/* The engine's own list objects, which begin with a vnxi_list_t. */
typedef struct vnxi_list_class {
    size_t size; /* of the object */
    /* Fill in the engine's part of a finished list, zeroed. */
    void (*init)(vnxi_list_t *list); /* NULL: all zeros are right */
    void (*fini)(vnxi_list_t *list); /* NULL: nothing to release */
} vnxi_list_class_t;

/* Immutable once finished. */
struct vnxi_list {
    atomic_uint refs;
    vnxi_peer_t *peer; /* retained; NULL: local */
    vnx_mem_t mem;
    uint64_t backends;       /* as in vnxi_list_args_t */
    size_t count;            /* rows */
    size_t bytes;            /* memory used by the list */
    bool uniform;            /* all rows have the length `row_len` */
    uint64_t row_len;        /* valid if uniform */
    vnxi_region_t **regions; /* the regions of the rows, without duplicates,
                                retained, sorted by (dev, addr) */
    size_t region_count;
    vnxi_list_block_t *blocks;
    size_t block_count;
    const vnxi_list_class_t *class; /* NULL: nothing but this */
    /* private: the address form shared by all blocks; storage */
    int addr_form;                    /* -1: the forms differ */
    size_t blocks_size;               /* 0: within the list's own memory */
    struct vnxi_list_arena *explicit; /* memory that other blocks point to */
};

typedef struct vnxi_list_args {
    vnxi_peer_t *peer;          /* retained by the list; NULL: local */
    vnxi_region_table_t *table; /* taken over; NULL: out of memory */
    bool is_own;                /* the regions are this agent's */
    vnx_mem_t mem;
    uint64_t backends; /* a bit set with the engine's numbering, kept in
                          the list for the engine; 0 if unused */
    const vnxi_list_class_t *class; /* static; NULL: a plain list */
    const char *operation;          /* static; for errors */
} vnxi_list_args_t;

/* VNX_ERR_INVALID_PARAM: unknown memory type.  Releases the reference to the
 * table on failure too. */
vnx_status_t vnxi_list_begin(const vnxi_list_args_t *args,
                             vnxi_builder_t **builder_p, vnx_error_t *error);

/* Add rows, in one pass.  The error has the first bad row with the peer and
 * its values.  The row number counts all rows fed so far, a strided row as
 * one; the values of a strided row are those of the bad piece.
 * VNX_ERR_NOT_FOUND: "no registered region holds it" (the cause says if the
 * row starts in a region and exceeds its end, or if there is no region of the
 * memory type at all).  VNX_ERR_INVALID_PARAM: length
 * 0, or an overflow. */
vnx_status_t vnxi_list_feed(vnxi_builder_t *builder, const vnx_desc_t *rows,
                            size_t count, vnx_error_t *error);
/* VNX_ERR_INVALID_PARAM if a strided row has count 0.  At most 2^40 rows in
 * total. */
vnx_status_t vnxi_list_feed_strided(vnxi_builder_t *builder,
                                    const vnx_strided_desc_t *rows,
                                    size_t count, vnx_error_t *error);
/* Finish the list.  VNX_ERR_INVALID_PARAM if it is empty.  Frees the builder
 * on success. */
vnx_status_t vnxi_list_finish(vnxi_builder_t *builder, vnxi_list_t **list_p,
                              vnx_error_t *error);
void vnxi_list_abort(vnxi_builder_t *builder);

vnxi_list_t *vnxi_list_retain(vnxi_list_t *list);
void vnxi_list_release(vnxi_list_t *list);

size_t vnxi_list_count(const vnxi_list_t *list); /* number of rows */
size_t vnxi_list_bytes(const vnxi_list_t *list); /* memory used by the list */

/* Row i; the caller has checked that i < count.  About 2 ns. */
vnx_desc_t vnxi_list_row(const vnxi_list_t *list, size_t i);

/* The first region of the list that is not USABLE; NULL if all are. */
const vnxi_region_t *vnxi_list_unusable(const vnxi_list_t *list);

#endif
