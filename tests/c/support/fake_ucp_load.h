/*
 * Loads the scripted libucp (fake_ucp.c) into a test program, and controls it.
 */
#ifndef FAKE_UCP_LOAD_H
#define FAKE_UCP_LOAD_H

#include "vnx_test.h"

#include <dlfcn.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "fake_ucp.h"

static fake_ucp_t *fake;
static const fake_ucp_calls_t *calls;

/* Wait for an event caused by another thread. */
#define AWAIT(condition)                                                     \
    do {                                                                     \
        uint64_t end_of_patience_ = vnxi_clock_deadline(vnx_test_limit(20)); \
        while (!(condition)) {                                               \
            if (vnxi_clock_ns() > end_of_patience_) {                        \
                fail_msg("in vain: %s", #condition);                         \
            }                                                                \
            sched_yield();                                                   \
        }                                                                    \
    } while (0)

/* Before anything of the backend is called. */
static inline int
fake_load(void)
{
    void *library = dlopen(FAKE_UCP, RTLD_NOW);
    if (library == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    fake = dlsym(library, "fake_ucp");
    calls = dlsym(library, "fake_ucp_calls");
    setenv("VLLM_NIXL_UCX_LIBRARY", FAKE_UCP, 1);
    return 0;
}

/* After any test, the library has everything back. */
static inline int
fake_check(void **state)
{
    (void)state;
    assert_int_equal(fake->misuses, 0);
    assert_int_equal(fake->requests, 0);
    assert_int_equal(fake->keys, 0);
    assert_int_equal(fake->left_open, 0);
    assert_int_equal(fake->eps, 0);
    assert_int_equal(fake->mems, 0);
    assert_int_equal(fake->buffers, 0);
    assert_int_equal(fake->addresses, 0);
    assert_int_equal(fake->workers, 0);
    assert_int_equal(fake->contexts, 0);
    assert_int_equal(fake->configs, 0);
    return 0;
}

#endif
