/*
 * Finds the regions of many rows, for the builder of a list.
 *
 * It remembers the region of the last hit and records every region that was
 * hit.  If rows are many and do not hit the last region, it builds an index of
 * the table that is searched without branches.
 */
#ifndef VNXI_PARTS_LIST_FINDER_H
#define VNXI_PARTS_LIST_FINDER_H

#include "engine/parts/list_block.h"

#define VNXI_FINDER_FEW 4

typedef struct vnxi_finder_index vnxi_finder_index_t;

typedef struct vnxi_finder {
    const vnxi_region_table_t *table; /* borrowed */
    vnx_mem_t mem;
    const vnxi_region_t *last; /* region of the last hit; NULL: none yet */
    size_t at;                 /* its position in the table, or before it */
    size_t searches;           /* number of single rows looked up in the
                                  table */
    vnxi_finder_index_t *index;
    vnxi_region_t **hits; /* borrowed from the table; without duplicates
                             only when finished */
    size_t hit_count, hit_capacity;
    bool is_sorted; /* the hits, which then have no duplicates */
    vnxi_region_t *few[VNXI_FINDER_FEW];
} vnxi_finder_t;

void vnxi_finder_init(vnxi_finder_t *finder, const vnxi_region_table_t *table,
                      vnx_mem_t mem);
void vnxi_finder_fini(vnxi_finder_t *finder);

/* Find a region that holds all of [addr, addr + len), which must not overflow.
 * VNX_OK (the region is finder->last), VNX_ERR_NOT_FOUND, VNX_ERR_NO_MEMORY;
 * writes no error record. */
vnx_status_t vnxi_finder_range(vnxi_finder_t *finder, uint64_t addr,
                               uint64_t len, uint64_t dev);

/* Check that each of these valid rows is held by a region.  Same statuses. */
vnx_status_t vnxi_finder_rows(vnxi_finder_t *finder, const vnx_desc_t *rows,
                              size_t count, const vnxi_rows_scan_t *scan);

/* Collect the hits of the index, sort all hits by (dev, addr) and remove
 * duplicates.  Afterwards finder->hits has each region that holds rows exactly
 * once. */
vnx_status_t vnxi_finder_finish(vnxi_finder_t *finder);

#endif
