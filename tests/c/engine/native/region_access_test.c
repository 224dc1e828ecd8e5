/* The engine's regions: what the transports of this host know of them, and
 * what they own. */
#include "link_node.h"
#include "mapping_help.h"

#include "engine/native/shm/shm.h"

static const vnxi_transport_t *shm, *process;
static const vnxi_reach_t reach = {.moves[VNX_MEM_DRAM][VNX_MEM_DRAM] =
                                       1u << VNXI_TRANSPORT_process |
                                       1u << VNXI_TRANSPORT_shm};

static vnxi_region_t *
region_at(vnx_mem_t mem, const void *data, size_t len)
{
    vnxi_region_t *region = vnxi_region_create(&vnxi_native_region_class, mem,
                                               (uintptr_t)data, len, 0);
    assert_non_null(region);
    return region;
}

static void
attach_to(vnxi_region_t *region, const vnxi_transport_t *transport, unsigned t)
{
    static vnxi_port_t port;
    void *slot;

    assert_int_equal(transport->attach(&port, region, &slot, NULL), VNX_OK);
    atomic_store(&vnxi_native_region(region)->slots[t], slot);
    vnxi_region_find_routes(region, &reach);
}

/* Register it with both transports of this host. */
static void
attach(vnxi_region_t *region)
{
    attach_to(region, process, VNXI_TRANSPORT_process);
    attach_to(region, shm, VNXI_TRANSPORT_shm);
}

static unsigned
route_of(const vnxi_region_t *region)
{
    return vnxi_route_from(vnxi_region_routes(region), VNX_MEM_DRAM);
}

static int
map_fd_of(const vnxi_region_t *region)
{
    return vnxi_shm_slot_map_info(vnxi_region_slot(region, VNXI_TRANSPORT_shm))
        .fd;
}

/* A region that no transport knows has no route. */
static void
test_region_access_of_a_bare_region_is_none(void **state)
{
    vnxi_region_t *region = region_at(VNX_MEM_DRAM, state, 64);

    for (unsigned t = 0; t < VNXI_TRANSPORTS; t++) {
        assert_null(vnxi_region_slot(region, t));
    }
    assert_int_equal(route_of(region), VNXI_ROUTE_NONE);
    vnxi_region_find_routes(region, &reach);
    assert_int_equal(route_of(region), VNXI_ROUTE_NONE);
    vnxi_region_release(region);
}

static void
test_region_access_finds_what_peers_can_map(void **state)
{
    vnx_shared_buffer_t *buffer = make_buffer(SIZE);
    void *data = vnx_shared_buffer_data(buffer);
    vnxi_region_t *region = region_at(VNX_MEM_DRAM, data, SIZE);
    (void)state;

    attach(region);
    assert_int_equal(route_of(region), VNXI_ROUTE_COPY);
    assert_int_equal(vnxi_region_delta(region, VNXI_ROUTE_COPY), 0);
    assert_true(map_fd_of(region) >= 0);
    vnxi_region_release(region);
    vnx_shared_buffer_free(buffer);
}

static void
test_region_access_of_private_memory_is_copying_without_a_map(void **state)
{
    void *data = malloc(SIZE);
    vnxi_region_t *region = region_at(VNX_MEM_DRAM, data, SIZE);
    (void)state;

    attach(region);
    assert_int_equal(route_of(region), VNXI_ROUTE_COPY);
    assert_non_null(vnxi_region_slot(region, VNXI_TRANSPORT_shm));
    assert_int_equal(map_fd_of(region), -1);
    vnxi_region_release(region);
    free(data);
}

/* Only host memory is reached by load and store. */
static void
test_region_access_of_other_memory_is_none(void **state)
{
    vnx_shared_buffer_t *buffer = make_buffer(SIZE);
    void *data = vnx_shared_buffer_data(buffer);
    (void)state;

    for (int mem = VNX_MEM_DRAM + 1; mem <= VNX_MEM_FILE; mem++) {
        vnxi_region_t *region = region_at((vnx_mem_t)mem, data, SIZE);
        attach(region);
        assert_int_equal(route_of(region), VNXI_ROUTE_NONE);
        assert_int_equal(map_fd_of(region), -1);
        vnxi_region_release(region);
    }
    vnx_shared_buffer_free(buffer);
}

/* The end of a region always closes its descriptor. */
static void
test_region_access_leaves_no_descriptor(void **state)
{
    vnx_shared_buffer_t *buffer = make_buffer(SIZE);
    void *data = vnx_shared_buffer_data(buffer);
    size_t before = open_fds();
    (void)state;

    for (int i = 0; i < 20; i++) {
        vnxi_region_t *region = region_at(VNX_MEM_DRAM, data, SIZE);
        attach(region);
        vnxi_region_release(region);
    }
    assert_int_equal(open_fds(), before);
    vnx_shared_buffer_free(buffer);
}

/* Give a region, as one of a peer, the slot for these public data.  The peer
 * is this process. */
static void
attach_remote(node_t *node, vnxi_region_t *region,
              const vnxi_map_info_t *map_info, vnxi_shm_conn_t *conn)
{
    vnxi_writer_t writer = {0};
    void *slot;

    memset(conn, 0, sizeof *conn);
    vnxi_mutex_init(&conn->lock, VNXI_RANK_SHM_CONN);
    conn->link = node_open(node, &node->info);
    vnxi_shm_region_write(&writer, map_info);
    const vnxi_md_bytes_t data = {writer.data, writer.len};
    assert_int_equal(shm->key_create(&conn->base, region, data, &slot, NULL),
                     VNX_OK);
    assert_true(shm->key_is(slot, data));
    vnxi_writer_fini(&writer);
    vnxi_native_region(region)->is_remote = true;
    atomic_store(&vnxi_native_region(region)->slots[VNXI_TRANSPORT_shm], slot);
    vnxi_region_find_routes(region, &reach);
    vnxi_link_close(conn->link);
    vnxi_link_release(conn->link);
    vnxi_mutex_destroy(&conn->lock);
}

/* A peer's descriptor number may equal one of our descriptors, which must not
 * be closed. */
static void
test_region_access_does_not_close_our_descriptors(void **state)
{
    int mine = make_memfd(0, SIZE);
    vnxi_region_t *region = region_at(VNX_MEM_DRAM, (void *)0x10000, SIZE);
    const vnxi_map_info_t share = {.fd = mine, .offset = 4096, .st_ino = 1};
    vnxi_shm_conn_t conn;
    struct stat stat;
    node_t node;
    (void)state;

    assert_int_equal(node_init(&node, "node"), VNX_OK);
    attach_remote(&node, region, &share, &conn);
    assert_true(conn.no_map[0] != '\0'); /* it is not mapped here */
    assert_int_equal(route_of(region), VNXI_TRANSPORT_shm);
    const vnxi_shm_slot_t *slot = vnxi_region_slot(region, VNXI_TRANSPORT_shm);
    assert_int_equal(slot->map_info.fd, -1);
    assert_int_equal(slot->map_info.offset, 4096);
    vnxi_region_release(region);
    assert_int_equal(fstat(mine, &stat), 0);
    close(mine);
    node_fini(&node);
}

static void
test_region_access_of_a_region_that_is_not_shared_has_no_map(void **state)
{
    vnxi_region_t *region = region_at(VNX_MEM_DRAM, (void *)0x10000, SIZE);
    const vnxi_map_info_t none = {.fd = -1, .offset = 777};
    vnxi_shm_conn_t conn;
    node_t node;
    (void)state;

    assert_int_equal(node_init(&node, "node"), VNX_OK);
    attach_remote(&node, region, &none, &conn);
    const vnxi_shm_slot_t *slot = vnxi_region_slot(region, VNXI_TRANSPORT_shm);
    assert_int_equal(slot->map_info.offset, 0);
    assert_int_equal(route_of(region), VNXI_TRANSPORT_shm);
    vnxi_region_release(region);
    node_fini(&node);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_region_access_of_a_bare_region_is_none),
        cmocka_unit_test(test_region_access_finds_what_peers_can_map),
        cmocka_unit_test(
            test_region_access_of_private_memory_is_copying_without_a_map),
        cmocka_unit_test(test_region_access_of_other_memory_is_none),
        cmocka_unit_test(test_region_access_leaves_no_descriptor),
        cmocka_unit_test(test_region_access_does_not_close_our_descriptors),
        cmocka_unit_test(
            test_region_access_of_a_region_that_is_not_shared_has_no_map),
    };
    shm = vnxi_transports[VNXI_TRANSPORT_shm];
    process = vnxi_transports[VNXI_TRANSPORT_process];
    return cmocka_run_group_tests(tests, NULL, NULL);
}
