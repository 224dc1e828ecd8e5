/*
 * Checks of a transfer's pairs of rows and their error messages, shared by all
 * engines.  All errors are VNX_ERR_INVALID_PARAM.
 */
#ifndef VNXI_PARTS_PAIRS_H
#define VNXI_PARTS_PAIRS_H

#include <vnx/vnx.h>

#include "engine/parts/list.h"

/* Check that both sides have the same number of indices, at least one, of a
 * known type. */
vnx_status_t vnxi_pairs_check(const vnx_indices_t *local,
                              const vnx_indices_t *remote,
                              const char *operation, vnx_error_t *error);

/* One side of the pairs, for errors. */
typedef struct vnxi_pairs_side {
    const char *name; /* "local" */
    const vnxi_list_t *list;
    const vnx_indices_t *indices;
} vnxi_pairs_side_t;

/* Error: the index at `place` (modulo 2^64) is not in the list. */
vnx_status_t vnxi_pairs_bad_index(const vnxi_pairs_side_t *side, size_t place,
                                  uint64_t index, const char *operation,
                                  vnx_error_t *error);

/* Error: the rows of the pair at `place` differ in length. */
vnx_status_t vnxi_pairs_unequal(size_t place, uint64_t local, uint64_t remote,
                                const char *operation, vnx_error_t *error);

/* Error: the total length does not fit in 64 bits. */
vnx_status_t vnxi_pairs_too_long(const char *operation, vnx_error_t *error);

/* VNX_ERR_NOT_FOUND if a region of the list was deregistered or its owner does
 * not know it; `peer` goes into the error.  VNX_IN_PROG if the first region
 * that is not usable is unconfirmed; when the call returns, its owner may have
 * confirmed it. */
vnx_status_t vnxi_pairs_check_regions(const vnxi_list_t *list,
                                      const char *side,
                                      const vnxi_peer_t *peer,
                                      vnx_error_t *error);

#endif
