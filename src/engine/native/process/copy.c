/*
 * Design notes.  Non-temporal stores do not read the target's lines before
 * writing them and do not evict other data from the caches: on x86-64 1.5
 * times as fast as memcpy() for data that does not fit into a cache.  They
 * write whole lines, so a piece is divided into a head up to the start of a
 * line, lines, and a tail.  The fence that makes the lines visible comes once,
 * at the end of the chunk.
 *
 * On AArch64, STNP only hints that the data is not needed soon.  Many cores
 * detect a stream of stores by themselves after some lines and then stop
 * reading and allocating lines, so less can be gained than on x86-64; a core
 * that ignores the hint stores as usual.  This has not been measured here: the
 * tests run in an emulator.  The source is read with plain loads, because the
 * loads of LDNP are exempt from the order of dependent loads.
 */
#include "engine/native/process/copy.h"

#include <string.h>

#include "base/cpu.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define LINE 64u
/* In shorter pieces, head and tail are the larger part. */
#define STREAM_MIN 512u
/* How much of the next piece is prefetched while this one is copied: enough
 * for the processor to find its page and to detect where reading continues. */
#define PREFETCH_BYTES 128u

/* -- Lines ---------------------------------------------------------------- */

#if defined(__x86_64__)

static VNXI_TARGET_AVX2 void
stream_lines_avx2(char *target, const char *source, size_t len)
{
    for (size_t i = 0; i < len; i += 2 * LINE) {
        const __m256i *s = (const void *)(source + i);
        __m256i *t = (void *)(target + i);
        __m256i a = _mm256_loadu_si256(s), b = _mm256_loadu_si256(s + 1);
        __m256i c = _mm256_loadu_si256(s + 2), d = _mm256_loadu_si256(s + 3);
        _mm256_stream_si256(t, a);
        _mm256_stream_si256(t + 1, b);
        _mm256_stream_si256(t + 2, c);
        _mm256_stream_si256(t + 3, d);
    }
}

static void
stream_lines_sse2(char *target, const char *source, size_t len)
{
    for (size_t i = 0; i < len; i += LINE) {
        const __m128i *s = (const void *)(source + i);
        __m128i *t = (void *)(target + i);
        __m128i a = _mm_loadu_si128(s), b = _mm_loadu_si128(s + 1);
        __m128i c = _mm_loadu_si128(s + 2), d = _mm_loadu_si128(s + 3);
        _mm_stream_si128(t, a);
        _mm_stream_si128(t + 1, b);
        _mm_stream_si128(t + 2, c);
        _mm_stream_si128(t + 3, d);
    }
}

/* `target` is at the start of a line, `len` is a multiple of two lines. */
static void
stream_lines(char *target, const char *source, size_t len)
{
    if (vnxi_cpu_has_avx2()) {
        stream_lines_avx2(target, source, len);
    } else {
        stream_lines_sse2(target, source, len);
    }
}

static void
stream_fence(void)
{
    _mm_sfence();
}

#elif defined(__aarch64__)

/* GCC has no intrinsic for STNP. */
static inline void
stream_line(char *target, const char *source)
{
    const uint8_t *s = (const void *)source;
    uint8x16_t a = vld1q_u8(s), b = vld1q_u8(s + 16);
    uint8x16_t c = vld1q_u8(s + 32), d = vld1q_u8(s + 48);

    __asm__("stnp %q2, %q3, [%1]\n\t"
            "stnp %q4, %q5, [%1, #32]"
            : "=m"(*(char(*)[LINE])target)
            : "r"(target), "w"(a), "w"(b), "w"(c), "w"(d));
}

/* `len` is a multiple of two lines. */
static void
stream_lines(char *target, const char *source, size_t len)
{
    for (size_t i = 0; i < len; i += 2 * LINE) {
        stream_line(target + i, source + i);
        stream_line(target + i + LINE, source + i + LINE);
    }
}

/* Stores before it are visible to all cores before stores after it.  The
 * architecture orders STNP as it does other stores, so whatever publishes the
 * data (unlocking a mutex, a store-release) would do; the barrier makes the
 * chunk independent of that. */
static void
stream_fence(void)
{
    __asm__ volatile("dmb ishst" ::: "memory");
}

#else

static void
stream_lines(char *target, const char *source, size_t len)
{
    memcpy(target, source, len);
}

static void
stream_fence(void)
{
}

#endif

/* -- Pieces --------------------------------------------------------------- */

/* Without the fence. */
static void
stream_piece(char *target, const char *source, size_t len)
{
    if (len < STREAM_MIN) {
        memcpy(target, source, len);
        return;
    }
    size_t head = -(uintptr_t)target % LINE;
    memcpy(target, source, head);
    target += head;
    source += head;
    len -= head;
    size_t lines = len & ~(size_t)(2 * LINE - 1);
    stream_lines(target, source, lines);
    memcpy(target + lines, source + lines, len - lines);
}

void
vnxi_copy_stream(void *target, const void *source, size_t len)
{
    stream_piece(target, source, len);
    stream_fence();
}

static bool
overlap(const char *a, const char *b, size_t len)
{
    uintptr_t x = (uintptr_t)a, y = (uintptr_t)b;
    return x - y < len || y - x < len;
}

static void
copy_piece(char *target, const char *source, size_t len, bool stream)
{
    if (__builtin_expect(overlap(target, source, len), 0)) {
        memmove(target, source, len);
    } else if (stream) {
        stream_piece(target, source, len);
    } else {
        memcpy(target, source, len);
    }
}

/* -- Chunks --------------------------------------------------------------- */

static inline void
prefetch(const char *source, size_t len)
{
    size_t end = len < PREFETCH_BYTES ? len : PREFETCH_BYTES;
    for (size_t i = 0; i < end; i += LINE) {
        __builtin_prefetch(source + i);
    }
}

static inline bool
next_copied(vnxi_walk_t *walk, vnxi_piece_t *piece_p)
{
    while (vnxi_walk_next(walk, piece_p)) {
        if (piece_p->route == VNXI_ROUTE_COPY) {
            return true;
        }
    }
    return false;
}

void
vnxi_copy_chunk(const vnxi_plan_t *plan, size_t chunk, vnx_op_t op)
{
    bool stream = plan->bytes > VNXI_COPY_STREAM_FROM;
    vnxi_walk_t walk = vnxi_plan_walk(plan, chunk);
    vnxi_piece_t piece, next;

    for (bool more = next_copied(&walk, &piece); more; piece = next) {
        char *local = (char *)(uintptr_t)piece.local;
        char *remote = (char *)(uintptr_t)piece.remote;
        more = next_copied(&walk, &next);
        if (more) {
            prefetch((const char *)(uintptr_t)(op == VNX_OP_READ ? next.remote
                                                                 : next.local),
                     next.len);
        }
        if (op == VNX_OP_READ) {
            copy_piece(local, remote, piece.len, stream);
        } else {
            copy_piece(remote, local, piece.len, stream);
        }
    }
    if (stream) {
        stream_fence();
    }
}
