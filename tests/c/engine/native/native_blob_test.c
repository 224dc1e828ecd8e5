/* Our own metadata, taken apart again by the codec. */
#include "agent_fixture.h"

#include <unistd.h>

#include "engine/native/identity.h"
#include "engine/native/shm/shm_wire.h"
#include "engine/parts/metadata.h"

static unsigned char memory[4 * 4096];

typedef struct parsed {
    vnx_bytes_t blob;
    vnxi_metadata_t md;
    vnxi_shm_info_t info; /* where there is a connection */
    vnxi_identity_t identity;
} parsed_t;

static parsed_t
parse(vnx_bytes_t blob)
{
    parsed_t parsed = {.blob = blob};
    assert_ok(vnxi_metadata_parse(blob.data, blob.len, &parsed.md, e));
    if (parsed.md.conn_count > 0) {
        assert_int_equal(parsed.md.conn_count, 2);
        assert_memory_equal(parsed.md.conns[0].backend.data, "SHM", 3);
        assert_memory_equal(parsed.md.conns[1].backend.data, "VNX", 3);
        assert_ok(vnxi_identity_read(parsed.md.conns[1].info.data,
                                     parsed.md.conns[1].info.len,
                                     &parsed.identity, e));
        assert_ok(vnxi_shm_info_read(parsed.md.conns[0].info.data,
                                     parsed.md.conns[0].info.len, &parsed.info,
                                     e));
    }
    return parsed;
}

static parsed_t
parse_full(vnx_agent_t *agent)
{
    vnx_bytes_t blob;
    assert_ok(vnx_agent_metadata(agent, &blob, e));
    return parse(blob);
}

static parsed_t
parse_partial(vnx_agent_t *agent, size_t len, bool with_connection)
{
    vnx_reg_desc_t desc = region_of(memory, len);
    vnx_bytes_t blob;
    assert_ok(vnx_agent_partial_metadata(agent, VNX_MEM_DRAM, &desc, len > 0,
                                         with_connection, NULL, &blob, e));
    return parse(blob);
}

static void
parsed_fini(parsed_t *parsed)
{
    vnxi_metadata_fini(&parsed->md);
    free(parsed->blob.data);
}

static void
test_native_blob_without_regions_has_no_section(void **state)
{
    vnx_agent_t *agent = make_agent("me");
    parsed_t parsed = parse_full(agent);
    (void)state;

    assert_int_equal(parsed.md.agent.len, 2);
    assert_memory_equal(parsed.md.agent.data, "me", 2);
    assert_int_equal(parsed.md.section_count, 0);
    assert_int_equal(parsed.md.conn_count, 2);
    assert_int_equal(parsed.info.pid, getpid());
    assert_int_equal(parsed.info.uid, getuid());
    assert_false(parsed.identity.partial);
    parsed_fini(&parsed);
    vnx_agent_release(agent);
}

static void
test_native_blob_lists_every_region_in_one_section(void **state)
{
    vnx_agent_t *agent = make_agent("me");
    vnx_reg_desc_t other = region_of(memory + 100, 50);
    (void)state;

    other.desc.dev = 3;
    register_at(agent, memory + 8192, 4096);
    register_at(agent, memory, 4096);
    assert_ok(vnx_agent_register(agent, VNX_MEM_DRAM, &other, 1, NULL, e));
    parsed_t parsed = parse_full(agent);
    assert_int_equal(parsed.md.section_count, 1);
    const vnxi_md_section_t *section = &parsed.md.sections[0];
    assert_int_equal(section->mem, VNX_MEM_DRAM);
    assert_memory_equal(section->backend.data, "SHM", 3);
    assert_int_equal(section->count, 3);
    uint64_t sum = 0;
    for (size_t i = 0; i < 3; i++) {
        const vnxi_md_region_t *region = &section->regions[i];
        assert_int_equal(region->dev, region->len == 50 ? 3 : 0);
        sum += region->addr - (uint64_t)(uintptr_t)memory + region->len;
    }
    assert_int_equal(sum, 8192 + 4096 + 4096 + 100 + 50);
    parsed_fini(&parsed);
    vnx_agent_release(agent);
}

static void
test_native_blob_epoch_grows_and_instance_stays(void **state)
{
    vnx_agent_t *agent = make_agent("me");
    parsed_t first = parse_full(agent);
    uint64_t before = first.identity.epoch;
    (void)state;

    for (int i = 0; i < 6; i++) {
        if (i % 2 == 0) {
            register_at(agent, memory, 4096);
        } else {
            deregister_at(agent, memory, 4096);
        }
        parsed_t next = parse_full(agent);
        assert_true(next.identity.epoch > before);
        before = next.identity.epoch;
        assert_memory_equal(next.identity.instance, first.identity.instance,
                            VNXI_SHM_ID_SIZE);
        assert_int_equal(next.md.section_count, i % 2 == 0);
        parsed_fini(&next);
    }
    parsed_fini(&first);
    vnx_agent_release(agent);
}

static void
test_native_blob_differs_between_instances_of_a_name(void **state)
{
    vnx_agent_t *agents[] = {make_agent("me"), make_agent("me")};
    parsed_t one = parse_full(agents[0]), two = parse_full(agents[1]);
    (void)state;

    assert_memory_not_equal(one.identity.instance, two.identity.instance,
                            VNXI_SHM_ID_SIZE);
    assert_string_not_equal(one.info.socket, two.info.socket);
    assert_memory_equal(one.info.boot, two.info.boot, VNXI_SHM_ID_SIZE);
    assert_int_equal(one.info.start_time, two.info.start_time);
    parsed_fini(&one);
    parsed_fini(&two);
    vnx_agent_release(agents[0]);
    vnx_agent_release(agents[1]);
}

static void
test_native_blob_partial_is_marked_as_partial(void **state)
{
    vnx_agent_t *agent = make_agent("me");
    (void)state;

    register_at(agent, memory, 4096);
    register_at(agent, memory + 4096, 4096);
    parsed_t with = parse_partial(agent, 4096, true);
    assert_int_equal(with.md.conn_count, 2);
    assert_true(with.identity.partial);
    assert_int_equal(with.md.section_count, 1);
    assert_int_equal(with.md.sections[0].count, 1);
    assert_int_equal(with.md.sections[0].regions[0].addr,
                     (uint64_t)(uintptr_t)memory);
    parsed_fini(&with);

    parsed_t without = parse_partial(agent, 4096, false);
    assert_int_equal(without.md.conn_count, 0);
    assert_int_equal(without.md.sections[0].count, 1);
    parsed_fini(&without);

    parsed_t none = parse_partial(agent, 0, false);
    assert_int_equal(none.md.conn_count, 2);
    assert_true(none.identity.partial);
    assert_int_equal(none.md.section_count, 0);
    parsed_fini(&none);
    vnx_agent_release(agent);
}

static vnxi_map_info_t
share_of(const parsed_t *parsed, uint64_t addr)
{
    const vnxi_md_section_t *section = &parsed->md.sections[0];
    vnxi_map_info_t map_info = VNXI_MAP_INFO_NONE;
    for (size_t i = 0; i < section->count; i++) {
        const vnxi_md_region_t *region = &section->regions[i];
        if (region->addr == addr) {
            assert_ok(vnxi_shm_region_read(region->public_data.data,
                                           region->public_data.len, &map_info,
                                           e));
            return map_info;
        }
    }
    fail_msg("the region is not in the blob");
    return map_info;
}

static void
test_native_blob_describes_shared_memory(void **state)
{
    vnx_agent_t *agent = make_agent("me");
    vnx_shared_buffer_t *buffer;
    (void)state;

    assert_ok(vnx_shared_buffer_create(1 << 20, &buffer, e));
    unsigned char *data = vnx_shared_buffer_data(buffer);
    register_at(agent, data, 1 << 19);
    register_at(agent, data + (1 << 19), 1 << 19);
    register_at(agent, memory, sizeof memory);
    parsed_t parsed = parse_full(agent);
    vnxi_map_info_t low = share_of(&parsed, (uint64_t)(uintptr_t)data);
    vnxi_map_info_t high =
        share_of(&parsed, (uint64_t)(uintptr_t)data + (1 << 19));
    assert_true(low.fd >= 0);
    assert_true(high.fd >= 0);
    assert_int_equal(low.st_ino, high.st_ino);
    assert_int_equal(high.offset, low.offset + (1 << 19));
    assert_int_equal(share_of(&parsed, (uint64_t)(uintptr_t)memory).fd, -1);
    parsed_fini(&parsed);
    vnx_agent_release(agent);
    vnx_shared_buffer_free(buffer);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_native_blob_without_regions_has_no_section),
        cmocka_unit_test(test_native_blob_lists_every_region_in_one_section),
        cmocka_unit_test(test_native_blob_epoch_grows_and_instance_stays),
        cmocka_unit_test(test_native_blob_differs_between_instances_of_a_name),
        cmocka_unit_test(test_native_blob_partial_is_marked_as_partial),
        cmocka_unit_test(test_native_blob_describes_shared_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
