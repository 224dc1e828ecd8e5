#include "vnx_test.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/recycle.h"

#define KEPT_FROM (((size_t)16 << 10) + 1)
#define KEPT_MAX ((size_t)64 << 20)

static void
test_recycle_blocks_are_aligned_and_whole(void **state)
{
    (void)state;
    const size_t sizes[] = {0,        1,           63,    64,     1000,
                            16384,    16385,       20480, 20481,  32768,
                            32769,    100000,      65536, 262144, 12345678,
                            KEPT_MAX, KEPT_MAX + 1};

    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        unsigned char *block = vnxi_recycle_alloc(sizes[i]);
        assert_non_null(block);
        assert_int_equal((uintptr_t)block % 64, 0);
        memset(block, 0xa5, sizes[i]); /* a sanitizer sees what is short */
        vnxi_recycle_free(block, sizes[i]);
    }
}

static void
test_recycle_reuses_a_freed_block(void **state)
{
    (void)state;
    /* Two sizes of one class: between 1 MiB and 1.25 MiB. */
    void *block = vnxi_recycle_alloc((1u << 20) + 1);
    assert_non_null(block);
    vnxi_recycle_free(block, (1u << 20) + 1);
    assert_ptr_equal(vnxi_recycle_alloc(1200000), block);

    void *other = vnxi_recycle_alloc(1200000);
    assert_non_null(other);
    assert_ptr_not_equal(other, block);
    vnxi_recycle_free(block, 1200000);
    vnxi_recycle_free(other, 1200000);
}

static void
test_recycle_live_blocks_never_overlap(void **state)
{
    (void)state;
    enum { BLOCKS = 64, ROUNDS = 4000 };
    unsigned char *blocks[BLOCKS] = {NULL};
    size_t sizes[BLOCKS] = {0};
    unsigned random = 1;

    for (int round = 0; round < ROUNDS; round++) {
        random = random * 1103515245u + 12345u;
        size_t i = (random >> 8) % BLOCKS;
        if (blocks[i] != NULL) {
            assert_int_equal(blocks[i][0], i);
            assert_int_equal(blocks[i][sizes[i] - 1], i);
            vnxi_recycle_free(blocks[i], sizes[i]);
            blocks[i] = NULL;
            continue;
        }
        sizes[i] = 1 + (random >> 4) % 200000;
        blocks[i] = vnxi_recycle_alloc(sizes[i]);
        assert_non_null(blocks[i]);
        blocks[i][0] = blocks[i][sizes[i] - 1] = (unsigned char)i;
    }
    for (size_t i = 0; i < BLOCKS; i++) {
        vnxi_recycle_free(blocks[i], sizes[i]);
    }
}

/* Far more blocks are freed than kept, in many sizes: old ones are dropped,
 * and those freed last are reused. */
static void
test_recycle_keeps_the_sizes_in_use(void **state)
{
    (void)state;
    enum { BIG = 20 };
    void *blocks[BIG];

    for (int i = 0; i < BIG; i++) {
        blocks[i] = vnxi_recycle_alloc((size_t)6 << 20);
        assert_non_null(blocks[i]);
    }
    for (int i = 0; i < BIG; i++) {
        vnxi_recycle_free(blocks[i], (size_t)6 << 20);
    }
    void *small = vnxi_recycle_alloc(KEPT_FROM);
    vnxi_recycle_free(small, KEPT_FROM);
    assert_ptr_equal(vnxi_recycle_alloc(KEPT_FROM), small);
    vnxi_recycle_free(small, KEPT_FROM);

    void *whole = vnxi_recycle_alloc(KEPT_MAX);
    vnxi_recycle_free(whole, KEPT_MAX);
    assert_ptr_equal(vnxi_recycle_alloc(KEPT_MAX), whole);
    vnxi_recycle_free(whole, KEPT_MAX);
}

static void
test_recycle_grow_keeps_the_contents(void **state)
{
    (void)state;
    size_t size = 1;
    unsigned char *block = vnxi_recycle_grow(NULL, 0, size);
    assert_non_null(block);
    block[0] = 0;
    while (size < 3000000) {
        size_t bigger = size + size / 2 + 1;
        block = vnxi_recycle_grow(block, size, bigger);
        assert_non_null(block);
        for (size_t i = 0; i < size; i += 997) {
            assert_int_equal(block[i], (unsigned char)(i * 7));
        }
        for (size_t i = 0; i < bigger; i++) {
            block[i] = (unsigned char)(i * 7);
        }
        size = bigger;
    }
    vnxi_recycle_free(block, size);
}

static void
test_recycle_refuses_impossible_sizes(void **state)
{
    (void)state;
    assert_null(vnxi_recycle_alloc(SIZE_MAX));
    assert_null(vnxi_recycle_alloc(SIZE_MAX / 2));
    vnxi_recycle_free(NULL, 100000);

    char *block = vnxi_recycle_alloc(100);
    memcpy(block, "kept", 5);
    assert_null(vnxi_recycle_grow(block, 100, SIZE_MAX));
    assert_string_equal(block, "kept");
    vnxi_recycle_free(block, 100);
}

static void *
churn(void *argument)
{
    unsigned random = (unsigned)(uintptr_t)argument;
    for (int i = 0; i < 3000; i++) {
        random = random * 1103515245u + 12345u;
        size_t size = 10000 + (random >> 8) % 100000;
        unsigned char *block = vnxi_recycle_alloc(size);
        if (block == NULL) {
            return argument;
        }
        block[0] = block[size - 1] = (unsigned char)random;
        if (block[0] != (unsigned char)random) {
            return argument;
        }
        vnxi_recycle_free(block, size);
    }
    return NULL;
}

static void
test_recycle_serves_many_threads(void **state)
{
    (void)state;
    pthread_t threads[4];
    for (uintptr_t i = 0; i < 4; i++) {
        assert_int_equal(
            pthread_create(&threads[i], NULL, churn, (void *)(i + 1)), 0);
    }
    for (int i = 0; i < 4; i++) {
        void *failed = threads;
        assert_int_equal(pthread_join(threads[i], &failed), 0);
        assert_null(failed);
    }
}

/* The child must not use blocks that the parent keeps. */
static void
test_recycle_child_starts_with_nothing_kept(void **state)
{
    (void)state;
    void *block = vnxi_recycle_alloc(100000);
    vnxi_recycle_free(block, 100000);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        unsigned char *own = vnxi_recycle_alloc(100000);
        if (own == NULL || (void *)own == block) {
            _exit(1);
        }
        memset(own, 1, 100000);
        vnxi_recycle_free(own, 100000);
        _exit(vnxi_recycle_alloc(100000) == own ? 0 : 2);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_recycle_blocks_are_aligned_and_whole),
        cmocka_unit_test(test_recycle_reuses_a_freed_block),
        cmocka_unit_test(test_recycle_live_blocks_never_overlap),
        cmocka_unit_test(test_recycle_keeps_the_sizes_in_use),
        cmocka_unit_test(test_recycle_grow_keeps_the_contents),
        cmocka_unit_test(test_recycle_refuses_impossible_sizes),
        cmocka_unit_test(test_recycle_serves_many_threads),
        cmocka_unit_test(test_recycle_child_starts_with_nothing_kept),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
