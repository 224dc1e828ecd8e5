/*
 * Prepared lists: descriptors checked against a region table once, stored
 * compactly, looked up by index in constant time.
 *
 * Rows are kept in blocks of VNXI_LIST_BLOCK rows.  A block whose rows are one
 * arithmetic run of equal lengths takes no memory beyond its header; another
 * has explicit addresses (32-bit multiples of a unit from a base where they
 * fit, else 64-bit), and explicit lengths and devices only where those differ
 * within the block.  So 1 M rows at a regular stride take about 50 kB, 1 M
 * random ones 4 MB.
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

/* What an engine keeps with a list, freed with it. */
typedef struct vnxi_list_extra {
    void (*free)(struct vnxi_list_extra *extra);
} vnxi_list_extra_t;

/* Immutable once finished, but for `extra`. */
struct vnxi_list {
    atomic_uint refs;
    vnxi_peer_t *peer; /* retained; NULL: local */
    vnx_mem_t mem;
    uint64_t backends;       /* as in vnxi_list_args_t */
    size_t count;            /* rows */
    size_t bytes;            /* memory that the list takes */
    bool direct;             /* every row's region is direct */
    bool one_reach;          /* the regions agree in `direct` and `delta` */
    uint64_t delta;          /* of the regions; only where one_reach */
    bool uniform;            /* every row has the length `row_len` */
    uint64_t row_len;        /* only where uniform */
    vnxi_region_t **regions; /* the regions that rows lie in, each once,
                                retained, sorted by (dev, addr) */
    size_t region_count;
    _Atomic(vnxi_list_extra_t *) extra; /* owned; NULL: none */
    vnxi_list_block_t *blocks;
    size_t block_count;
    /* private: how all blocks have their addresses, if alike; storage */
    int addr_form;                    /* -1: not alike */
    size_t blocks_size;               /* 0: within the list's own memory */
    struct vnxi_list_arena *explicit; /* what the blocks point to, if not */
};

typedef struct vnxi_list_args {
    vnxi_peer_t *peer;          /* retained by the list; NULL: local */
    vnxi_region_table_t *table; /* taken over; NULL: there was no memory */
    vnx_mem_t mem;
    uint64_t backends;     /* a set, as the engine numbers them, that the list
                              keeps for it; 0 where it wants none */
    const char *operation; /* static; for errors */
} vnxi_list_args_t;

/* VNX_ERR_INVALID_PARAM for what is no memory type.  The reference to the
 * table is given up on failure too. */
vnx_status_t vnxi_list_begin(const vnxi_list_args_t *args,
                             vnxi_builder_t **builder_p, vnx_error_t *error);

/* One pass over the rows.  The first row that no region holds, or whose sum
 * overflows, is named (its number over all that was fed, a strided row
 * counting one) with peer and values (of the piece of a strided row):
 * VNX_ERR_NOT_FOUND "no registered region holds it" (says whether it starts
 * in a region and passes its end), VNX_ERR_INVALID_PARAM on overflow. Length 0
 * is VNX_ERR_INVALID_PARAM. */
vnx_status_t vnxi_list_feed(vnxi_builder_t *builder, const vnx_desc_t *rows,
                            size_t count, vnx_error_t *error);
/* count 0 in a strided row: VNX_ERR_INVALID_PARAM.  At most 2^40 rows in all.
 */
vnx_status_t vnxi_list_feed_strided(vnxi_builder_t *builder,
                                    const vnx_strided_desc_t *rows,
                                    size_t count, vnx_error_t *error);
/* An empty list is VNX_ERR_INVALID_PARAM. Frees the builder on success. */
vnx_status_t vnxi_list_finish(vnxi_builder_t *builder, vnxi_list_t **list_p,
                              vnx_error_t *error);
void vnxi_list_abort(vnxi_builder_t *builder);

vnxi_list_t *vnxi_list_retain(vnxi_list_t *list);
void vnxi_list_release(vnxi_list_t *list);

size_t vnxi_list_count(const vnxi_list_t *list); /* its rows */
size_t vnxi_list_bytes(const vnxi_list_t *list); /* memory that it takes */

/* Row i (< count, the caller has checked): about 2 ns. */
vnx_desc_t vnxi_list_row(const vnxi_list_t *list, size_t i);

/* The first region of the list that is not USABLE; NULL: all are. */
const vnxi_region_t *vnxi_list_unusable(const vnxi_list_t *list);

#endif
