#include "engine/native/plan_side.h"

#include "engine/parts/list_block.h"

void
vnxi_plan_side_init(vnxi_plan_side_t *side, const vnxi_list_t *list,
                    const vnx_indices_t *indices, const char *name)
{
    side->list = list;
    side->indices = indices;
    side->name = name;
    side->delta = 0;
    side->want_lens = side->want_devs = false;
    side->run_first = 0;
    side->run_left = 0;
}

/* `form` is the form shared by all blocks, or -1; inlined for constant forms.
 */
static inline __attribute__((always_inline)) void
fetch_addrs_as(vnxi_plan_side_t *side, int form, const uint64_t *indices,
               size_t count)
{
    const vnxi_list_t *list = side->list;
    const uint64_t delta = side->delta;
    for (size_t i = 0; i < count; i++) {
        const vnxi_list_block_t *block = vnxi_list_block_of(list, indices[i]);
        size_t at = indices[i] & (VNXI_LIST_BLOCK - 1);
        side->addrs[i] =
            delta + (form < 0
                         ? vnxi_block_addr(block, at)
                         : vnxi_block_addr_as(block, (vnxi_form_t)form, at));
    }
}

static void
fetch_addrs(vnxi_plan_side_t *side, const uint64_t *indices, size_t count)
{
    switch (side->list->addr_form) {
    case VNXI_FORM_RUN:
        fetch_addrs_as(side, VNXI_FORM_RUN, indices, count);
        break;
    case VNXI_FORM_U32:
        fetch_addrs_as(side, VNXI_FORM_U32, indices, count);
        break;
    default:
        fetch_addrs_as(side, -1, indices, count);
    }
}

void
vnxi_plan_side_fetch(vnxi_plan_side_t *side, const uint64_t *indices,
                     size_t count)
{
    const vnxi_list_t *list = side->list;

    fetch_addrs(side, indices, count);
    for (size_t i = 0; i < count && side->want_lens; i++) {
        side->lens[i] = vnxi_block_len(vnxi_list_block_of(list, indices[i]),
                                       indices[i] & (VNXI_LIST_BLOCK - 1));
    }
    for (size_t i = 0; i < count && side->want_devs; i++) {
        side->devs[i] = vnxi_block_dev(vnxi_list_block_of(list, indices[i]),
                                       indices[i] & (VNXI_LIST_BLOCK - 1));
    }
}

void
vnxi_plan_side_fetch_run(vnxi_plan_side_t *side, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        side->scratch[i] = side->run_first + i;
    }
    vnxi_plan_side_fetch(side, side->scratch, count);
}
