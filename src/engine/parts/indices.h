/*
 * Reading index arrays of any integer type.
 */
#ifndef VNXI_PARTS_INDICES_H
#define VNXI_PARTS_INDICES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <vnx/vnx.h>

/* The length (> 0) of the run at place `at` (< count): indices that go up by
 * one, and *first_p, with which it begins.  A negative index reads as its
 * value modulo 2^64, which no list has; no run leads from or to one. */
size_t vnxi_indices_run(const vnx_indices_t *indices, size_t at,
                        uint64_t *first_p);

/* `count` indices from place `at` on, as 64-bit numbers: in place, or in
 * `scratch`. */
const uint64_t *vnxi_indices_read(const vnx_indices_t *indices, size_t at,
                                  size_t count, uint64_t *scratch);

/* Are all of them less than `limit`, which is less than 2^63? */
bool vnxi_indices_are_below(const uint64_t *indices, size_t count,
                            uint64_t limit);

/* Is the type one that is known? */
bool vnxi_indices_type_is_known(vnx_index_type_t type);
bool vnxi_indices_are_signed(const vnx_indices_t *indices);

#endif
