/*
 * A cache of the library's descriptor lists, for the next transfer.
 *
 * Design notes.  A list of the library grows by doubling, so filling a new one
 * with 100 000 pieces costs four times as much as refilling an old one, mostly
 * because of page faults.  A few are kept, unless they are very long.
 */
#include "engine/nixl/nixl.h"

#define KEPT_PIECES_MAX (1u << 18) /* about 6 MiB of the library's memory */

vnxi_capi_xfer_list_t *
vnxi_nixl_list_take(vnxi_engine_t *engine, vnx_mem_t mem)
{
    vnxi_nixl_lists_t *lists = &engine->lists;
    vnxi_capi_xfer_list_t *found = NULL;

    vnxi_mutex_lock(&lists->lock);
    for (size_t i = 0; found == NULL && i < lists->count; i++) {
        if (lists->at[i].mem == mem) {
            found = lists->at[i].list;
            lists->at[i] = lists->at[--lists->count];
        }
    }
    vnxi_mutex_unlock(&lists->lock);
    if (found == NULL &&
        engine->capi->create_xfer_dlist((int)mem, &found) != VNXI_CAPI_OK) {
        found = NULL;
    }
    return found;
}

void
vnxi_nixl_list_give(vnxi_engine_t *engine, vnx_mem_t mem,
                    vnxi_capi_xfer_list_t *list, size_t count)
{
    vnxi_nixl_lists_t *lists = &engine->lists;
    bool is_kept = false;

    if (count <= KEPT_PIECES_MAX &&
        engine->capi->xfer_dlist_clear(list) == VNXI_CAPI_OK) {
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
