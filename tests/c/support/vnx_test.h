/* Includes and helpers for every C test.  cmocka wants these headers, in this
 * order. */
#ifndef VNX_TEST_H
#define VNX_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h> /* after the four above */

/* For loops that fill unshared memory: checked byte by byte by the sanitizers
 * they would take most of a test's time. */
#define VNX_TEST_UNWATCHED           \
    __attribute__((noinline, unused, \
                   no_sanitize("address", "thread", "undefined")))

#endif
