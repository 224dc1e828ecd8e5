#include "vnx_test.h"

#include <stdio.h>
#include <string.h>

#include "base/name_map.h"

#define NAMES 1000

static char names[NAMES][16];

static void
make_names(void)
{
    for (int i = 0; i < NAMES; i++) {
        snprintf(names[i], sizeof names[i], "agent-%d", i);
    }
}

static void
test_name_map_finds_what_was_set(void **state)
{
    (void)state;
    vnxi_name_map_t map = {0};

    make_names();
    assert_null(vnxi_name_map_get(&map, "x", 1));
    for (int i = 0; i < NAMES; i++) {
        assert_true(
            vnxi_name_map_set(&map, names[i], strlen(names[i]), names[i]));
    }
    assert_int_equal(map.count, NAMES);
    for (int i = 0; i < NAMES; i++) {
        assert_ptr_equal(vnxi_name_map_get(&map, names[i], strlen(names[i])),
                         names[i]);
    }
    assert_null(vnxi_name_map_get(&map, "agent-1000", 10));
    vnxi_name_map_fini(&map);
}

static void
test_name_map_remove_keeps_the_others(void **state)
{
    (void)state;
    vnxi_name_map_t map = {0};

    make_names();
    for (int i = 0; i < NAMES; i++) {
        vnxi_name_map_set(&map, names[i], strlen(names[i]), names[i]);
    }
    for (int i = 0; i < NAMES; i += 3) {
        assert_ptr_equal(
            vnxi_name_map_remove(&map, names[i], strlen(names[i])), names[i]);
        assert_null(vnxi_name_map_remove(&map, names[i], strlen(names[i])));
    }
    for (int i = 0; i < NAMES; i++) {
        void *found = vnxi_name_map_get(&map, names[i], strlen(names[i]));
        assert_ptr_equal(found, i % 3 == 0 ? NULL : (void *)names[i]);
    }
    size_t cursor = 0, seen = 0;
    while (vnxi_name_map_next(&map, &cursor) != NULL) {
        seen++;
    }
    assert_int_equal(seen, map.count);
    vnxi_name_map_fini(&map);
}

static void
test_name_map_names_are_bytes(void **state)
{
    (void)state;
    vnxi_name_map_t map = {0};
    int one, two, three;

    assert_true(vnxi_name_map_set(&map, "a\0b", 3, &one));
    assert_true(vnxi_name_map_set(&map, "a\0c", 3, &two));
    assert_ptr_equal(vnxi_name_map_get(&map, "a\0b", 3), &one);
    assert_ptr_equal(vnxi_name_map_get(&map, "a\0c", 3), &two);
    assert_true(vnxi_name_map_set(&map, "a\0b", 3, &three));
    assert_ptr_equal(vnxi_name_map_get(&map, "a\0b", 3), &three);
    assert_int_equal(map.count, 2);
    assert_null(vnxi_name_map_get(&map, "a", 1));
    vnxi_name_map_fini(&map);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_name_map_finds_what_was_set),
        cmocka_unit_test(test_name_map_remove_keeps_the_others),
        cmocka_unit_test(test_name_map_names_are_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
