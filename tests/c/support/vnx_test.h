/* Includes and helpers for every C test.  cmocka wants these headers, in this
 * order. */
#ifndef VNX_TEST_H
#define VNX_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h> /* after the first four above */

/* For loops that fill unshared memory: checked byte by byte by the sanitizers
 * they would take most of a test's time. */
#define VNX_TEST_UNWATCHED           \
    __attribute__((noinline, unused, \
                   no_sanitize("address", "thread", "undefined")))

/* Is the program built with ASan or TSan? */
#ifndef __has_feature
#define __has_feature(name) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || \
    __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define VNX_TEST_IS_WATCHED 1
#else
#define VNX_TEST_IS_WATCHED 0
#endif

/* A time limit in nanoseconds for something that takes far less than these
 * seconds.  An emulated machine is slower by VLLM_NIXL_TEST_SLOWDOWN. */
static inline uint64_t
vnx_test_limit(unsigned seconds)
{
    const char *factor = getenv("VLLM_NIXL_TEST_SLOWDOWN");

    return seconds * UINT64_C(1000000000) *
           (factor != NULL ? strtoul(factor, NULL, 10) : 1);
}

#endif
