/* What every C test needs.  cmocka wants these headers, in this order. */
#ifndef VNX_TEST_H
#define VNX_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h> /* after the four above */

#endif
