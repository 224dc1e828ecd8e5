#include "vnx_test.h"

#include <stdlib.h>
#include <string.h>

#include "engine/parts/region.h"

#define DEVICES 3
#define SPAN 4096

static vnxi_region_t *
region(vnx_mem_t mem, uint64_t addr, uint64_t len, uint64_t dev)
{
    vnxi_region_t *made = vnxi_region_create(NULL, mem, addr, len, dev);
    assert_non_null(made);
    return made;
}

/* A table of the regions, which it alone holds afterwards. */
static vnxi_region_table_t *
table_of(vnxi_region_t **regions, size_t count)
{
    vnxi_region_table_t *table = vnxi_region_table_create(regions, count);
    assert_non_null(table);
    for (size_t i = 0; i < count; i++) {
        vnxi_region_release(regions[i]);
    }
    return table;
}

static void
test_region_new_one_is_not_revoked(void **state)
{
    (void)state;
    vnxi_region_t *made = region(VNX_MEM_VRAM, 0x1000, 32, 7);

    assert_int_equal(made->mem, VNX_MEM_VRAM);
    assert_true(made->addr == 0x1000 && made->len == 32 && made->dev == 7);
    assert_false(vnxi_region_is_gone(made));
    assert_ptr_equal(vnxi_region_retain(made), made);
    vnxi_region_release(made);
    vnxi_region_release(made);
    vnxi_region_release(NULL);
}

typedef struct engine_region {
    vnxi_region_t base;
    int inits, zero;
} engine_region_t;

static int finis;

static void
engine_init(vnxi_region_t *region)
{
    ((engine_region_t *)region)->inits++;
}

static void
engine_fini(vnxi_region_t *region)
{
    assert_int_equal(((engine_region_t *)region)->inits, 1);
    finis++;
}

static void
test_region_of_a_class_begins_and_ends_once(void **state)
{
    static const vnxi_region_class_t class = {
        .size = sizeof(engine_region_t),
        .init = engine_init,
        .fini = engine_fini,
    };
    vnxi_region_t *made =
        vnxi_region_create(&class, VNX_MEM_DRAM, 0x1000, 32, 7);
    (void)state;

    assert_non_null(made);
    assert_int_equal(((engine_region_t *)made)->inits, 1);
    assert_int_equal(((engine_region_t *)made)->zero, 0);
    vnxi_region_release(vnxi_region_retain(made));
    assert_int_equal(finis, 0);
    vnxi_region_release(made);
    assert_int_equal(finis, 1);
}

/* An owner's answer is final, and settles a region only after a doubt. */
static void
test_region_is_usable_when_its_owner_says_so(void **state)
{
    (void)state;
    for (int confirmed = 0; confirmed < 2; confirmed++) {
        vnxi_region_t *made = region(VNX_MEM_DRAM, 0x1000, 32, 0);
        uint64_t before = vnxi_region_revocations();

        assert_int_equal(vnxi_region_state(made), VNXI_REGION_USABLE);
        vnxi_region_settle(made, false); /* it was not asked about */
        assert_int_equal(vnxi_region_state(made), VNXI_REGION_USABLE);
        vnxi_region_doubt(made);
        vnxi_region_doubt(made);
        assert_int_equal(vnxi_region_state(made), VNXI_REGION_UNCONFIRMED);
        assert_true(vnxi_region_revocations() == before + 1);
        assert_false(vnxi_region_is_gone(made));
        vnxi_region_settle(made, confirmed);
        assert_int_equal(vnxi_region_state(made),
                         confirmed ? VNXI_REGION_USABLE : VNXI_REGION_REFUSED);
        assert_int_equal(vnxi_region_is_gone(made), !confirmed);
        vnxi_region_revoke(made);
        assert_int_equal(vnxi_region_state(made), confirmed
                                                      ? VNXI_REGION_REVOKED
                                                      : VNXI_REGION_REFUSED);
        vnxi_region_doubt(made);
        vnxi_region_settle(made, true);
        assert_true(vnxi_region_is_gone(made));
        vnxi_region_release(made);
    }
}

static void
test_region_compare_orders_by_mem_dev_addr_len(void **state)
{
    (void)state;
    /* Each is greater than all before it. */
    vnxi_region_t *rising[] = {
        region(VNX_MEM_DRAM, 9, 9, 0), region(VNX_MEM_DRAM, 1, 1, 1),
        region(VNX_MEM_DRAM, 1, 2, 1), region(VNX_MEM_DRAM, 2, 1, 1),
        region(VNX_MEM_VRAM, 0, 1, 0), region(VNX_MEM_VRAM, 0, 1, UINT64_MAX),
    };
    const int count = sizeof rising / sizeof(vnxi_region_t *);

    for (int i = 0; i < count; i++) {
        for (int k = 0; k < count; k++) {
            int order = vnxi_region_compare(rising[i], rising[k]);
            assert_int_equal((order > 0) - (order < 0), (i > k) - (i < k));
        }
    }
    for (int i = 0; i < count; i++) {
        vnxi_region_release(rising[i]);
    }
}

static void
test_region_table_keeps_the_order_of_the_wire(void **state)
{
    (void)state;
    vnxi_region_t *mixed[] = {
        region(VNX_MEM_VRAM, 0x1000, 16, 1),
        region(VNX_MEM_DRAM, 0x3000, 8, 0),
        region(VNX_MEM_DRAM, 0x3000, 4, 0),
        region(VNX_MEM_VRAM, 0x9000, 1, 0),
        region(VNX_MEM_DRAM, 0x1000, 64, 0),
    };
    vnxi_region_table_t *table = table_of(mixed, 5);

    assert_int_equal(vnxi_region_table_count(table), 5);
    for (size_t i = 1; i < 5; i++) {
        assert_true(vnxi_region_compare(vnxi_region_table_at(table, i - 1),
                                        vnxi_region_table_at(table, i)) < 0);
    }
    vnxi_region_table_release(table);
}

static void
test_region_table_empty_holds_nothing(void **state)
{
    (void)state;
    vnxi_region_table_t *table = vnxi_region_table_create(NULL, 0);
    assert_non_null(table);
    assert_int_equal(vnxi_region_table_count(table), 0);
    assert_null(vnxi_region_table_find(table, VNX_MEM_DRAM, 0, 0, 0));
    assert_null(vnxi_region_table_exact(table, VNX_MEM_DRAM, 0, 0, 0));
    vnxi_region_table_release(table);
    vnxi_region_table_release(NULL);
}

static void
test_region_table_covers_all_or_nothing(void **state)
{
    (void)state;
    vnxi_region_t *two[] = {region(VNX_MEM_DRAM, 0x1000, 0x100, 0),
                            region(VNX_MEM_DRAM, 0x3000, 0x100, 0)};
    vnxi_region_table_t *table = table_of(two, 2);
    const vnx_desc_t descs[] = {
        {0x1000, 0x10, 0}, {0x3080, 0x80, 0}, {0x3080, 0x81, 0}};

    assert_true(vnxi_region_table_covers(table, VNX_MEM_DRAM, descs, 0));
    assert_true(vnxi_region_table_covers(table, VNX_MEM_DRAM, descs, 2));
    assert_false(vnxi_region_table_covers(table, VNX_MEM_DRAM, descs, 3));
    assert_false(vnxi_region_table_covers(table, VNX_MEM_VRAM, descs, 1));
    assert_false(vnxi_region_table_covers(NULL, VNX_MEM_DRAM, descs, 0));
    vnxi_region_table_release(table);
}

static void
test_region_table_find_respects_both_ends(void **state)
{
    (void)state;
    vnxi_region_t *one[] = {region(VNX_MEM_DRAM, 0x1000, 0x100, 0)};
    vnxi_region_table_t *table = table_of(one, 1);
    const struct {
        uint64_t addr, len;
        bool held;
    } cases[] = {
        {0x1000, 0x100, true},
        {0x1000, 1, true},
        {0x10ff, 1, true},
        {0x0fff, 1, false},
        {0x0fff, 0x101, false},
        {0x1000, 0x101, false},
        {0x10ff, 2, false},
        {0x1100, 1, false},
        {0x1001, 0x100, false},
        {0x1050, 0, true},
        {0x1100, 0, true},
        {0x1101, 0, false},
        {0x0fff, 0, false},
        {0x1001, UINT64_MAX, false},
        {0x1000, UINT64_MAX - 0x1000 + 1, false},
        {UINT64_MAX, 1, false},
        {0, UINT64_MAX, false},
    };

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const vnxi_region_t *found = vnxi_region_table_find(
            table, VNX_MEM_DRAM, cases[i].addr, cases[i].len, 0);
        assert_int_equal(found != NULL, cases[i].held);
    }
    vnxi_region_table_release(table);
}

static void
test_region_table_find_keeps_types_and_devices_apart(void **state)
{
    (void)state;
    vnxi_region_t *same_range[VNX_MEM_COUNT * DEVICES];
    size_t count = 0;

    /* Every type and every second device; the rest must not be found. */
    for (int mem = 0; mem < VNX_MEM_COUNT; mem++) {
        for (uint64_t dev = 0; dev < DEVICES; dev++) {
            same_range[count++] = region((vnx_mem_t)mem, 0x1000, 16, 2 * dev);
        }
    }
    vnxi_region_table_t *table = table_of(same_range, count);
    for (int mem = 0; mem < VNX_MEM_COUNT; mem++) {
        for (uint64_t dev = 0; dev < DEVICES; dev++) {
            const vnxi_region_t *found = vnxi_region_table_find(
                table, (vnx_mem_t)mem, 0x1008, 8, 2 * dev);
            assert_non_null(found);
            assert_int_equal(found->mem, mem);
            assert_true(found->dev == 2 * dev);
            assert_null(vnxi_region_table_find(table, (vnx_mem_t)mem, 0x1008,
                                               8, 2 * dev + 1));
        }
    }
    vnxi_region_table_release(table);
}

static void
test_region_table_neighbours_do_not_hold_a_spanning_range(void **state)
{
    (void)state;
    vnxi_region_t *pair[] = {region(VNX_MEM_DRAM, 0x1000, 16, 0),
                             region(VNX_MEM_DRAM, 0x1010, 16, 0)};
    vnxi_region_table_t *table = table_of(pair, 2);

    assert_null(vnxi_region_table_find(table, VNX_MEM_DRAM, 0x1008, 16, 0));
    assert_true(
        vnxi_region_table_find(table, VNX_MEM_DRAM, 0x1010, 16, 0)->addr ==
        0x1010);
    vnxi_region_table_release(table);
}

static void
test_region_table_wide_region_is_found_behind_nested_ones(void **state)
{
    (void)state;
    enum { COUNT = 10001 };
    vnxi_region_t **nested = malloc(COUNT * sizeof(vnxi_region_t *));
    assert_non_null(nested);
    nested[0] = region(VNX_MEM_DRAM, 0x1000, 0x1000000, 0);
    for (uint64_t i = 1; i < COUNT; i++) {
        nested[i] = region(VNX_MEM_DRAM, 0x1000 + i, 1, 0);
    }
    vnxi_region_table_t *table = table_of(nested, COUNT);

    assert_true(
        vnxi_region_table_find(table, VNX_MEM_DRAM, 0x800000, 64, 0)->len ==
        0x1000000);
    /* With the wide one revoked, a small one still holds its own byte. */
    atomic_store(
        &vnxi_region_table_find(table, VNX_MEM_DRAM, 0x1001, 64, 0)->state,
        VNXI_REGION_REVOKED);
    assert_true(
        vnxi_region_table_find(table, VNX_MEM_DRAM, 0x1000 + 5, 1, 0)->addr ==
        0x1000 + 5);
    assert_null(vnxi_region_table_find(table, VNX_MEM_DRAM, 0x1001, 2, 0));
    vnxi_region_table_release(table);
    free(nested);
}

static void
test_region_table_revoked_region_is_not_found_but_still_listed(void **state)
{
    (void)state;
    vnxi_region_t *one[] = {region(VNX_MEM_DRAM, 0x1000, 16, 0)};
    vnxi_region_table_t *table = table_of(one, 1);

    atomic_store(&vnxi_region_table_at(table, 0)->state, VNXI_REGION_REVOKED);
    assert_null(vnxi_region_table_find(table, VNX_MEM_DRAM, 0x1000, 16, 0));
    assert_non_null(
        vnxi_region_table_exact(table, VNX_MEM_DRAM, 0x1000, 16, 0));
    assert_int_equal(vnxi_region_table_count(table), 1);
    vnxi_region_table_release(table);
}

static void
test_region_table_exact_wants_every_value(void **state)
{
    (void)state;
    vnxi_region_t *same_start[] = {region(VNX_MEM_DRAM, 0x1000, 16, 0),
                                   region(VNX_MEM_DRAM, 0x1000, 32, 0),
                                   region(VNX_MEM_DRAM, 0x1000, 64, 1)};
    vnxi_region_table_t *table = table_of(same_start, 3);

    assert_true(
        vnxi_region_table_exact(table, VNX_MEM_DRAM, 0x1000, 32, 0)->len ==
        32);
    assert_null(vnxi_region_table_exact(table, VNX_MEM_DRAM, 0x1000, 64, 0));
    assert_null(vnxi_region_table_exact(table, VNX_MEM_DRAM, 0x1008, 8, 0));
    assert_null(vnxi_region_table_exact(table, VNX_MEM_VRAM, 0x1000, 16, 0));
    vnxi_region_table_release(table);
}

static void
test_region_table_whole_storage_ends_at_the_last_address(void **state)
{
    (void)state;
    vnxi_region_t *whole[] = {region(VNX_MEM_FILE, 0, UINT64_MAX, 3),
                              region(VNX_MEM_OBJ, 0x1000, UINT64_MAX, 3)};
    vnxi_region_table_t *table = table_of(whole, 2);

    assert_non_null(
        vnxi_region_table_find(table, VNX_MEM_FILE, UINT64_MAX - 1, 1, 3));
    assert_non_null(
        vnxi_region_table_find(table, VNX_MEM_OBJ, UINT64_MAX - 1, 1, 3));
    assert_null(vnxi_region_table_find(table, VNX_MEM_OBJ, 0xfff, 1, 3));
    vnxi_region_table_release(table);
}

static void
test_region_table_outlives_its_creator(void **state)
{
    (void)state;
    vnxi_region_t *one[] = {region(VNX_MEM_DRAM, 0x1000, 16, 0)};
    vnxi_region_table_t *table = table_of(one, 1);
    vnxi_region_table_t *second = vnxi_region_table_retain(table);

    assert_ptr_equal(second, table);
    vnxi_region_table_release(table);
    vnxi_region_t *found =
        vnxi_region_table_find(second, VNX_MEM_DRAM, 0x1000, 16, 0);
    assert_non_null(found);
    vnxi_region_retain(found);
    vnxi_region_table_release(second);
    assert_true(found->len == 16);
    vnxi_region_release(found);
}

/* -- Against a plain search ------------------------------------------------
 */

static uint64_t
next_random(uint64_t *seed)
{
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return *seed >> 33;
}

static bool
holds(const vnxi_region_t *candidate, uint64_t addr, uint64_t len,
      uint64_t dev)
{
    return candidate->dev == dev && !vnxi_region_is_gone(candidate) &&
           addr >= candidate->addr &&
           addr + len <= candidate->addr + candidate->len;
}

/* Random overlapping regions: what find() says is what a search through all
 * of them says. */
static void
check_against_plain_search(uint64_t seed, size_t count)
{
    vnxi_region_t **regions = malloc(count * sizeof(vnxi_region_t *));
    vnxi_region_t **copies = malloc(count * sizeof(vnxi_region_t *));
    assert_true(regions != NULL && copies != NULL);
    for (size_t i = 0; i < count; i++) {
        regions[i] =
            region(VNX_MEM_DRAM, next_random(&seed) % SPAN,
                   1 + next_random(&seed) % 200, next_random(&seed) % DEVICES);
        atomic_store(&regions[i]->state, next_random(&seed) % 5 == 0
                                             ? VNXI_REGION_REVOKED
                                             : VNXI_REGION_USABLE);
        copies[i] = vnxi_region_retain(regions[i]);
    }
    vnxi_region_table_t *table = table_of(regions, count);

    for (int query = 0; query < 5000; query++) {
        uint64_t addr = next_random(&seed) % (SPAN + 300);
        uint64_t len = next_random(&seed) % 100;
        uint64_t dev = next_random(&seed) % DEVICES;
        bool expected = false;
        for (size_t i = 0; i < count; i++) {
            expected = expected || holds(copies[i], addr, len, dev);
        }
        const vnxi_region_t *found =
            vnxi_region_table_find(table, VNX_MEM_DRAM, addr, len, dev);
        assert_int_equal(found != NULL, expected);
        assert_true(found == NULL || holds(found, addr, len, dev));
    }
    for (size_t i = 0; i < count; i++) {
        vnxi_region_release(copies[i]);
    }
    vnxi_region_table_release(table);
    free(regions);
    free(copies);
}

static void
test_region_table_find_agrees_with_a_plain_search(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 40; seed++) {
        check_against_plain_search(seed, (size_t)(seed * seed) % 97 + 1);
    }
}

/* The copy of a table has what a look at each region finds. */
static void
expect_copy(const vnxi_region_table_t *table, vnx_mem_t mem, size_t expected)
{
    uint64_t starts[16], devs[16], ends[16];
    vnxi_region_t *farthest[16];
    size_t n =
        vnxi_region_table_copy(table, mem, starts, devs, ends, farthest);
    size_t at = 0;

    assert_int_equal(n, expected);
    for (size_t i = 0; i < vnxi_region_table_count(table); i++) {
        vnxi_region_t *region = vnxi_region_table_at(table, i);
        if (region->mem != mem || vnxi_region_is_gone(region)) {
            continue;
        }
        vnxi_region_t *best = NULL;
        for (size_t k = 0; k <= i; k++) {
            vnxi_region_t *other = vnxi_region_table_at(table, k);
            if (other->mem == mem && other->dev == region->dev &&
                !vnxi_region_is_gone(other) &&
                (best == NULL ||
                 vnxi_region_end(other) >= vnxi_region_end(best))) {
                best = other;
            }
        }
        assert_true(starts[at] == region->addr && devs[at] == region->dev);
        assert_true(ends[at] == vnxi_region_end(best));
        assert_ptr_equal(farthest[at], best);
        at++;
    }
    assert_int_equal(at, n);
}

static void
test_region_table_copy_leaves_out_what_is_gone(void **state)
{
    vnxi_region_t *regions[] = {
        region(VNX_MEM_DRAM, 0x1000, 0x9000, 0),
        region(VNX_MEM_DRAM, 0x2000, 0x1000, 0), /* nested */
        region(VNX_MEM_DRAM, 0x8000, 0x3000, 0), /* overlaps */
        region(VNX_MEM_DRAM, 0x1000, 0x1000, 1),
        region(VNX_MEM_VRAM, 0x1000, 0x1000, 0),
        region(VNX_MEM_DRAM, 0x5000, 0x100, 1),
    };
    (void)state;
    vnxi_region_t *asked = regions[5];
    atomic_store(&asked->state, VNXI_REGION_UNCONFIRMED);
    vnxi_region_table_t *table = vnxi_region_table_create(regions, 6);
    assert_non_null(table);
    expect_copy(table, VNX_MEM_DRAM, 5);
    expect_copy(table, VNX_MEM_VRAM, 1);
    expect_copy(table, VNX_MEM_FILE, 0);
    vnxi_region_settle(asked, false); /* gone after the table was built */
    expect_copy(table, VNX_MEM_DRAM, 4);
    vnxi_region_revoke(regions[0]);
    expect_copy(table, VNX_MEM_DRAM, 3);
    expect_copy(table, VNX_MEM_VRAM, 1);
    vnxi_region_table_release(table);
    table = table_of(regions, 6); /* some were gone before */
    expect_copy(table, VNX_MEM_DRAM, 3);
    expect_copy(table, VNX_MEM_VRAM, 1);
    vnxi_region_table_release(table);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_region_new_one_is_not_revoked),
        cmocka_unit_test(test_region_of_a_class_begins_and_ends_once),
        cmocka_unit_test(test_region_table_copy_leaves_out_what_is_gone),
        cmocka_unit_test(test_region_is_usable_when_its_owner_says_so),
        cmocka_unit_test(test_region_compare_orders_by_mem_dev_addr_len),
        cmocka_unit_test(test_region_table_keeps_the_order_of_the_wire),
        cmocka_unit_test(test_region_table_empty_holds_nothing),
        cmocka_unit_test(test_region_table_find_respects_both_ends),
        cmocka_unit_test(test_region_table_covers_all_or_nothing),
        cmocka_unit_test(test_region_table_find_keeps_types_and_devices_apart),
        cmocka_unit_test(
            test_region_table_neighbours_do_not_hold_a_spanning_range),
        cmocka_unit_test(
            test_region_table_wide_region_is_found_behind_nested_ones),
        cmocka_unit_test(
            test_region_table_revoked_region_is_not_found_but_still_listed),
        cmocka_unit_test(test_region_table_exact_wants_every_value),
        cmocka_unit_test(
            test_region_table_whole_storage_ends_at_the_last_address),
        cmocka_unit_test(test_region_table_outlives_its_creator),
        cmocka_unit_test(test_region_table_find_agrees_with_a_plain_search),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
