/*
 * One side of a plan in the making: a list, the indices into it, and the rows
 * of the batch at hand.
 */
#ifndef VNXI_NATIVE_PLAN_SIDE_H
#define VNXI_NATIVE_PLAN_SIDE_H

#include "engine/parts/list.h"

/* So many rows that all arrays stay in the first-level cache. */
#define VNXI_PLAN_BATCH 256u

typedef struct vnxi_plan_side {
    const vnxi_list_t *list;
    const vnx_indices_t *indices;
    const char *name; /* for errors: "local" */
    uint64_t delta;   /* added to every address; local ones are ours */
    bool want_lens, want_devs;
    uint64_t run_first;
    size_t run_left; /* of the run that was found; 0: not known */
    /* Filled in by fetching. */
    uint64_t addrs[VNXI_PLAN_BATCH];
    uint64_t lens[VNXI_PLAN_BATCH]; /* where wanted */
    uint64_t devs[VNXI_PLAN_BATCH]; /* where wanted */
    uint64_t scratch[VNXI_PLAN_BATCH];
} vnxi_plan_side_t;

void vnxi_plan_side_init(vnxi_plan_side_t *side, const vnxi_list_t *list,
                         const vnx_indices_t *indices, const char *name);

/* Up to VNXI_PLAN_BATCH rows, of indices that the list has... */
void vnxi_plan_side_fetch(vnxi_plan_side_t *side, const uint64_t *indices,
                          size_t count);
/* ...or from `run_first` on. */
void vnxi_plan_side_fetch_run(vnxi_plan_side_t *side, size_t count);

#endif
