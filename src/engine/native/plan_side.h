/*
 * One side of a plan under construction: a list, the indices into it, and the
 * rows of the current batch.
 */
#ifndef VNXI_NATIVE_PLAN_SIDE_H
#define VNXI_NATIVE_PLAN_SIDE_H

#include "engine/parts/list.h"

/* Small enough that all arrays stay in the first-level cache. */
#define VNXI_PLAN_BATCH 256u

typedef struct vnxi_plan_side {
    const vnxi_list_t *list;
    const vnx_indices_t *indices;
    const char *name; /* for errors: "local" */
    uint64_t delta;   /* added to every address; 0 for local ones */
    bool want_lens, want_devs;
    uint64_t run_first;
    size_t run_left; /* rest of the run that was found; 0: not known */
    /* Filled in by the fetch functions. */
    uint64_t addrs[VNXI_PLAN_BATCH];
    uint64_t lens[VNXI_PLAN_BATCH]; /* if want_lens */
    uint64_t devs[VNXI_PLAN_BATCH]; /* if want_devs */
    uint64_t scratch[VNXI_PLAN_BATCH];
} vnxi_plan_side_t;

void vnxi_plan_side_init(vnxi_plan_side_t *side, const vnxi_list_t *list,
                         const vnx_indices_t *indices, const char *name);

/* Fetch up to VNXI_PLAN_BATCH rows, whose indices the list must have. */
void vnxi_plan_side_fetch(vnxi_plan_side_t *side, const uint64_t *indices,
                          size_t count);
/* The same for `count` consecutive rows from `run_first` on. */
void vnxi_plan_side_fetch_run(vnxi_plan_side_t *side, size_t count);

#endif
