/*
 * What this machine's processor has beyond what the build is made for.  A
 * function marked VNXI_TARGET_AVX2 may be called where vnxi_cpu_has_avx2();
 * on other machines the mark means nothing, and the answer is no.
 */
#ifndef VNXI_BASE_CPU_H
#define VNXI_BASE_CPU_H

#include <stdbool.h>

#ifdef __x86_64__
#define VNXI_TARGET_AVX2 __attribute__((target("avx2")))
#else
#define VNXI_TARGET_AVX2
#endif

/* The load of a flag that is set before main(). */
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
