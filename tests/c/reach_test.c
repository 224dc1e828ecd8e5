/* The engine's regions: how they are reached, and what they own. */
#include "mapping_help.h"

#include "engine/native/reach.h"

static vnxi_region_t *
region_at(vnx_mem_t mem, const void *data, size_t len)
{
    vnxi_region_t *region = vnxi_region_create(&vnxi_native_region_class, mem,
                                               (uintptr_t)data, len, 0);
    assert_non_null(region);
    return region;
}

/* A region to which nothing was attached cannot be reached. */
static void
test_reach_of_a_bare_region_is_empty(void **state)
{
    vnxi_region_t *region = region_at(VNX_MEM_DRAM, state, 64);

    assert_false(vnxi_native_region(region)->direct);
    assert_int_equal(vnxi_region_map_info(region).fd, -1);
    assert_null(vnxi_region_ucx_mem(region));
    assert_null(vnxi_region_ucx_key(region));
    vnxi_reach_unmap_ucx(region); /* nothing to unmap */
    vnxi_region_release(region);
}

static void
test_reach_local_finds_what_peers_can_map(void **state)
{
    vnx_shared_buffer_t *buffer = make_buffer(SIZE);
    void *data = vnx_shared_buffer_data(buffer);
    vnxi_region_t *region = region_at(VNX_MEM_DRAM, data, SIZE);
    (void)state;

    vnxi_reach_attach_local(region);
    assert_true(vnxi_native_region(region)->direct);
    assert_int_equal(vnxi_native_region(region)->delta, 0);
    vnxi_map_info_t share = vnxi_region_map_info(region);
    assert_true(share.fd >= 0);
    assert_int_equal(share.offset, 0);
    vnxi_region_release(region);
    vnx_shared_buffer_free(buffer);
}

static void
test_reach_local_private_memory_is_direct_and_not_shared(void **state)
{
    void *data = malloc(SIZE);
    vnxi_region_t *region = region_at(VNX_MEM_DRAM, data, SIZE);
    (void)state;

    vnxi_reach_attach_local(region);
    assert_true(vnxi_native_region(region)->direct);
    assert_int_equal(vnxi_region_map_info(region).fd, -1);
    assert_null(vnxi_region_ucx_mem(region));
    vnxi_region_release(region);
    free(data);
}

/* Only host memory is reached by load and store. */
static void
test_reach_local_storage_is_not_direct(void **state)
{
    vnx_shared_buffer_t *buffer = make_buffer(SIZE);
    void *data = vnx_shared_buffer_data(buffer);
    (void)state;

    for (int mem = VNX_MEM_DRAM + 1; mem <= VNX_MEM_FILE; mem++) {
        vnxi_region_t *region = region_at((vnx_mem_t)mem, data, SIZE);
        vnxi_reach_attach_local(region);
        assert_false(vnxi_native_region(region)->direct);
        assert_int_equal(vnxi_region_map_info(region).fd, -1);
        vnxi_region_release(region);
    }
    vnx_shared_buffer_free(buffer);
}

/* The end of a region always closes its descriptor. */
static void
test_reach_local_leaves_no_descriptor(void **state)
{
    vnx_shared_buffer_t *buffer = make_buffer(SIZE);
    void *data = vnx_shared_buffer_data(buffer);
    size_t before = open_fds();
    (void)state;

    for (int i = 0; i < 20; i++) {
        vnxi_region_t *region = region_at(VNX_MEM_DRAM, data, SIZE);
        vnxi_reach_attach_local(region);
        vnxi_region_release(region);
    }
    assert_int_equal(open_fds(), before);
    vnx_shared_buffer_free(buffer);
}

/* A peer's descriptor number may equal one of our descriptors, which must not
 * be closed. */
static void
test_reach_remote_does_not_close_our_descriptors(void **state)
{
    int mine = make_memfd(0, SIZE);
    vnxi_region_t *region = region_at(VNX_MEM_DRAM, (void *)0x10000, SIZE);
    const vnxi_map_info_t share = {.fd = mine, .offset = 4096};
    struct stat stat;
    (void)state;

    vnxi_reach_attach_remote(region, &share, NULL);
    assert_false(
        vnxi_native_region(region)->direct); /* it is not mapped here */
    assert_int_equal(vnxi_region_map_info(region).fd, -1);
    assert_int_equal(vnxi_region_map_info(region).offset, 4096);
    vnxi_region_release(region);
    assert_int_equal(fstat(mine, &stat), 0);
    close(mine);
}

static void
test_reach_remote_that_is_not_shared_has_no_share(void **state)
{
    vnxi_region_t *region = region_at(VNX_MEM_DRAM, (void *)0x10000, SIZE);
    const vnxi_map_info_t none = {.fd = -1, .offset = 777};
    (void)state;

    vnxi_reach_attach_remote(region, &none, NULL);
    assert_int_equal(vnxi_region_map_info(region).offset, 0);
    assert_false(vnxi_native_region(region)->direct);
    vnxi_region_release(region);
}

/* Freeing works without a UCX key and UCX memory. */
static void
test_reach_remote_without_a_key_is_freed(void **state)
{
    vnxi_region_t *region = region_at(VNX_MEM_DRAM, (void *)0x10000, SIZE);
    (void)state;

    vnxi_reach_attach_key(region, NULL);
    assert_null(vnxi_region_ucx_key(region));
    assert_false(vnxi_native_region(region)->direct);
    assert_int_equal(vnxi_region_map_info(region).fd, -1);
    vnxi_region_release(region);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reach_of_a_bare_region_is_empty),
        cmocka_unit_test(test_reach_local_finds_what_peers_can_map),
        cmocka_unit_test(
            test_reach_local_private_memory_is_direct_and_not_shared),
        cmocka_unit_test(test_reach_local_storage_is_not_direct),
        cmocka_unit_test(test_reach_local_leaves_no_descriptor),
        cmocka_unit_test(test_reach_remote_does_not_close_our_descriptors),
        cmocka_unit_test(test_reach_remote_that_is_not_shared_has_no_share),
        cmocka_unit_test(test_reach_remote_without_a_key_is_freed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
