/*
 * Finding the regions of many rows: what a list's builder asks.
 *
 * Remembers the region of the last hit, and notes every region that was hit.
 * Where that does not help, and rows are many, it makes itself an index of the
 * table that is searched without a branch.
 */
#ifndef VNXI_PARTS_LIST_FINDER_H
#define VNXI_PARTS_LIST_FINDER_H

#include "engine/parts/list_block.h"

#define VNXI_FINDER_FEW 4

typedef struct vnxi_finder_index vnxi_finder_index_t;

typedef struct vnxi_finder {
    const vnxi_region_table_t *table; /* borrowed */
    vnx_mem_t mem;
    const vnxi_region_t *last; /* of the last hit; NULL: none yet */
    size_t searches;           /* of single rows in the table */
    vnxi_finder_index_t *index;
    vnxi_region_t **hits; /* borrowed from the table; each once only when
                             finished */
    size_t hit_count, hit_capacity;
    vnxi_region_t *few[VNXI_FINDER_FEW];
} vnxi_finder_t;

void vnxi_finder_init(vnxi_finder_t *finder, const vnxi_region_table_t *table,
                      vnx_mem_t mem);
void vnxi_finder_fini(vnxi_finder_t *finder);

/* Does one region hold all of [addr, addr + len), which does not overflow?
 * VNX_OK (finder->last is it), VNX_ERR_NOT_FOUND, VNX_ERR_NO_MEMORY; no error
 * record. */
vnx_status_t vnxi_finder_range(vnxi_finder_t *finder, uint64_t addr,
                               uint64_t len, uint64_t dev);

/* Is each of these good rows held by some region?  The same statuses. */
vnx_status_t vnxi_finder_rows(vnxi_finder_t *finder, const vnx_desc_t *rows,
                              size_t count, const vnxi_rows_scan_t *scan);

/* Note what the index has seen, sort all hits by (dev, addr) and drop
 * duplicates.  Then finder->hits is what rows lie in, each region once. */
vnx_status_t vnxi_finder_finish(vnxi_finder_t *finder);

#endif
