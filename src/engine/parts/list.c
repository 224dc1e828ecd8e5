#include "engine/parts/list_block.h"

#include <stdlib.h>

#include "base/recycle.h"

vnxi_list_t *
vnxi_list_retain(vnxi_list_t *list)
{
    atomic_fetch_add_explicit(&list->refs, 1, memory_order_relaxed);
    return list;
}

void
vnxi_list_release(vnxi_list_t *list)
{
    if (list == NULL || atomic_fetch_sub(&list->refs, 1) != 1) {
        return;
    }
    if (list->class != NULL && list->class->fini != NULL) {
        list->class->fini(list);
    }
    for (size_t i = 0; i < list->region_count; i++) {
        vnxi_region_release(list->regions[i]);
    }
    vnxi_list_arena_free(list->explicit);
    if (list->blocks_size != 0) {
        vnxi_recycle_free(list->blocks, list->blocks_size);
    }
    vnxi_peer_release(list->peer);
    free(list);
}

vnx_desc_t
vnxi_list_row(const vnxi_list_t *list, size_t i)
{
    const vnxi_list_block_t *block = vnxi_list_block_of(list, i);
    size_t at = i & (VNXI_LIST_BLOCK - 1);
    return (vnx_desc_t){.addr = vnxi_block_addr(block, at),
                        .len = vnxi_block_len(block, at),
                        .dev = vnxi_block_dev(block, at)};
}

const vnxi_region_t *
vnxi_list_unusable(const vnxi_list_t *list)
{
    for (size_t i = 0; i < list->region_count; i++) {
        if (atomic_load(&list->regions[i]->state) != VNXI_REGION_USABLE) {
            return list->regions[i];
        }
    }
    return NULL;
}

const vnxi_region_t *
vnxi_list_region_of(const vnxi_list_t *list, const vnx_desc_t *row)
{
    const uint64_t end = row->addr + row->len;
    size_t low = 0, high = list->region_count;

    while (low < high) {
        size_t middle = (low + high) / 2;
        const vnxi_region_t *region = list->regions[middle];
        if (region->dev < row->dev ||
            (region->dev == row->dev && region->addr <= row->addr)) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    /* The last region that starts before the row may be nested in the region
     * that holds it. */
    while (low > 1 && !vnxi_region_holds(list->regions[low - 1], row->addr,
                                         end, row->dev)) {
        low--;
    }
    return list->regions[low - 1];
}

size_t
vnxi_list_count(const vnxi_list_t *list)
{
    return list->count;
}

size_t
vnxi_list_bytes(const vnxi_list_t *list)
{
    return list->bytes;
}
