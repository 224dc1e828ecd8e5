/*
 * Reading index arrays of any integer type.
 */
#ifndef VNXI_PARTS_INDICES_H
#define VNXI_PARTS_INDICES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <vnx/vnx.h>

/* The length (> 0) of the run at position `at` (< count), that is, of indices
 * that go up by one, and its first index *first_p.  A negative index reads as
 * its value modulo 2^64, which is out of range for any list; it is never part
 * of a longer run. */
size_t vnxi_indices_run(const vnx_indices_t *indices, size_t at,
                        uint64_t *first_p);

/* Read `count` indices from position `at` as 64-bit numbers to `scratch`, and
 * return that.  Always a copy: another thread may change the array after the
 * caller has checked the numbers. */
const uint64_t *vnxi_indices_read(const vnx_indices_t *indices, size_t at,
                                  size_t count, uint64_t *scratch);

/* Return whether all indices are below `limit`, which must be below 2^63. */
bool vnxi_indices_are_below(const uint64_t *indices, size_t count,
                            uint64_t limit);

/* Return whether the type is known. */
bool vnxi_indices_type_is_known(vnx_index_type_t type);
bool vnxi_indices_are_signed(const vnx_indices_t *indices);

#endif
