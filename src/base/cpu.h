/*
 * Processor features beyond those that the build targets.  A function marked
 * VNXI_TARGET_AVX2 may be called if vnxi_cpu_has_avx2().  On other
 * architectures the mark is empty and the result is false.
 */
#ifndef VNXI_BASE_CPU_H
#define VNXI_BASE_CPU_H

#include <stdbool.h>

#ifdef __x86_64__
#define VNXI_TARGET_AVX2 __attribute__((target("avx2")))
#else
#define VNXI_TARGET_AVX2
#endif

/* Loads a flag that is set before main(). */
static inline bool
vnxi_cpu_has_avx2(void)
{
#ifdef __x86_64__
    return __builtin_cpu_supports("avx2");
#else
    return false;
#endif
}

#endif
