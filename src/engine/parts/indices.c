/*
 * Design notes.  Every transfer checks whether its index arrays go up by one,
 * so the two types that clients use are compared with the expected values in
 * vectors.  The vectors are those of the compiler (GCC and Clang): 16 bytes
 * for the baselines of x86-64 and AArch64 (SSE2, NEON), and 32 bytes for AVX2.
 * GCC would keep 32-byte vectors of a baseline in memory, not in registers.
 */
#include "engine/parts/indices.h"

#include <string.h>

#include "base/cpu.h"

typedef uint64_t v2u64_t
    __attribute__((vector_size(16), aligned(8), may_alias));
typedef uint64_t v4u64_t
    __attribute__((vector_size(32), aligned(8), may_alias));
typedef uint32_t v4u32_t
    __attribute__((vector_size(16), aligned(4), may_alias));
typedef uint32_t v8u32_t
    __attribute__((vector_size(32), aligned(4), may_alias));

/* -- Runs ----------------------------------------------------------------- */

/* Define a function that returns how many of the numbers, at least one, go up
 * by one from the first.  Compare eight vectors per step, of `vector_t`, and
 * check their combined result once. */
#define DEFINE_RUN(marks, name, number_t, vector_t)               \
    marks size_t name(const number_t *data, size_t count)         \
    {                                                             \
        const number_t first = data[0];                           \
        const size_t lanes = sizeof(vector_t) / sizeof(number_t); \
        const vector_t step = (vector_t){0} + (number_t)lanes;    \
        vector_t want = {0};                                      \
        size_t at = 0;                                            \
                                                                  \
        for (size_t i = 0; i < lanes; i++) {                      \
            want[i] = first + (number_t)i;                        \
        }                                                         \
        for (; count - at >= 8 * lanes; at += 8 * lanes) {        \
            const vector_t *v = (const void *)(data + at);        \
            vector_t off = {0};                                   \
            for (int i = 0; i < 8; i++) {                         \
                off |= v[i] ^ want;                               \
                want += step;                                     \
            }                                                     \
            number_t bits = 0;                                    \
            for (size_t i = 0; i < lanes; i++) {                  \
                bits |= off[i];                                   \
            }                                                     \
            if (bits != 0) {                                      \
                break;                                            \
            }                                                     \
        }                                                         \
        while (at < count && data[at] == first + (number_t)at) {  \
            at++;                                                 \
        }                                                         \
        return at;                                                \
    }

DEFINE_RUN(static, run_u64, uint64_t, v2u64_t)
DEFINE_RUN(static, run_u32, uint32_t, v4u32_t)
DEFINE_RUN(static VNXI_TARGET_AVX2, run_u64_avx2, uint64_t, v4u64_t)
DEFINE_RUN(static VNXI_TARGET_AVX2, run_u32_avx2, uint32_t, v8u32_t)

static size_t
run_u16(const uint16_t *data, size_t count)
{
    size_t at = 1;
    while (at < count && data[at] == (uint16_t)(data[0] + at)) {
        at++;
    }
    return at;
}

static size_t
run_u8(const uint8_t *data, size_t count)
{
    size_t at = 1;
    while (at < count && data[at] == (uint8_t)(data[0] + at)) {
        at++;
    }
    return at;
}

/* -- Limits --------------------------------------------------------------- */

/* The top bit of `limit - 1 - index` is set if the index is too large, unless
 * the index has its own top bit set. */
bool
vnxi_indices_are_below(const uint64_t *indices, size_t count, uint64_t limit)
{
    const uint64_t max = limit - 1;
    const v2u64_t maxs = {max, max};
    v2u64_t off = {0, 0};
    size_t i = 0;

    for (; count - i >= 4; i += 4) {
        const v2u64_t *v = (const void *)(indices + i);
        off |= (v[0] | (maxs - v[0])) | (v[1] | (maxs - v[1]));
    }
    uint64_t rest = off[0] | off[1];
    for (; i < count; i++) {
        rest |= indices[i] | (max - indices[i]);
    }
    return rest >> 63 == 0;
}

/* -- Types ---------------------------------------------------------------- */

/* A run found modulo 2^bits ends at the type's maximum.  A negative index,
 * which is above `max`, is a run of its own. */
static size_t
cut_at(size_t run, uint64_t first, uint64_t max)
{
    if (first > max) {
        return 1;
    }
    return max - first < run ? (size_t)(max - first) + 1 : run;
}

#define CASE_RUN(symbol, type, max, found)                   \
    case symbol: {                                           \
        const type *data = (const type *)indices->data + at; \
        *first_p = (uint64_t)(int64_t)data[0];               \
        return cut_at(found, *first_p, max);                 \
    }

size_t
vnxi_indices_run(const vnx_indices_t *indices, size_t at, uint64_t *first_p)
{
    size_t left = indices->count - at;
    bool avx2 = vnxi_cpu_has_avx2();

    if (indices->data == NULL) {
        *first_p = at;
        return left;
    }
    switch (indices->type) {
        CASE_RUN(VNX_INDEX_I64, int64_t, INT64_MAX,
                 avx2 ? run_u64_avx2((const void *)data, left)
                      : run_u64((const void *)data, left))
        CASE_RUN(VNX_INDEX_U64, uint64_t, UINT64_MAX,
                 avx2 ? run_u64_avx2(data, left) : run_u64(data, left))
        CASE_RUN(VNX_INDEX_I32, int32_t, INT32_MAX,
                 avx2 ? run_u32_avx2((const void *)data, left)
                      : run_u32((const void *)data, left))
        CASE_RUN(VNX_INDEX_U32, uint32_t, UINT32_MAX,
                 avx2 ? run_u32_avx2(data, left) : run_u32(data, left))
        CASE_RUN(VNX_INDEX_I16, int16_t, INT16_MAX,
                 run_u16((const void *)data, left))
        CASE_RUN(VNX_INDEX_U16, uint16_t, UINT16_MAX, run_u16(data, left))
        CASE_RUN(VNX_INDEX_I8, int8_t, INT8_MAX,
                 run_u8((const void *)data, left))
        CASE_RUN(VNX_INDEX_U8, uint8_t, UINT8_MAX, run_u8(data, left))
    }
    return 1;
}

#define CASE_READ(symbol, type)                                           \
    case symbol:                                                          \
        for (size_t i = 0; i < count; i++) {                              \
            scratch[i] =                                                  \
                (uint64_t)(int64_t)((const type *)indices->data + at)[i]; \
        }                                                                 \
        return scratch;

const uint64_t *
vnxi_indices_read(const vnx_indices_t *indices, size_t at, size_t count,
                  uint64_t *scratch)
{
    if (indices->data == NULL) {
        for (size_t i = 0; i < count; i++) {
            scratch[i] = at + i;
        }
        return scratch;
    }
    switch (indices->type) {
    case VNX_INDEX_I64:
    case VNX_INDEX_U64:
        memcpy(scratch, (const uint64_t *)indices->data + at,
               count * sizeof *scratch);
        return scratch;
        CASE_READ(VNX_INDEX_I32, int32_t)
        CASE_READ(VNX_INDEX_U32, uint32_t)
        CASE_READ(VNX_INDEX_I16, int16_t)
        CASE_READ(VNX_INDEX_U16, uint16_t)
        CASE_READ(VNX_INDEX_I8, int8_t)
        CASE_READ(VNX_INDEX_U8, uint8_t)
    }
    return scratch;
}

bool
vnxi_indices_type_is_known(vnx_index_type_t type)
{
    return (unsigned)type <= VNX_INDEX_U8;
}

bool
vnxi_indices_are_signed(const vnx_indices_t *indices)
{
    return indices->data != NULL &&
           (indices->type == VNX_INDEX_I64 || indices->type == VNX_INDEX_I32 ||
            indices->type == VNX_INDEX_I16 || indices->type == VNX_INDEX_I8);
}
