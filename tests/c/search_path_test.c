#include "vnx_test.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/search_path.h"

/* Two directories, the first with a name that is a pattern itself. */
static char root[] = "/tmp/vnx-search-XXXXXX", first[64], second[64];

static void
touch(const char *directory, const char *name)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    int fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    close(fd);
}

static int
make_tree(void **state)
{
    char deeper[96];
    (void)state;
    assert_non_null(mkdtemp(root));
    snprintf(first, sizeof first, "%s/a[x]*", root);
    snprintf(second, sizeof second, "%s/b", root);
    assert_int_equal(mkdir(first, 0700), 0);
    assert_int_equal(mkdir(second, 0700), 0);
    snprintf(deeper, sizeof deeper, "%s/deeper", first);
    assert_int_equal(mkdir(deeper, 0700), 0);
    touch(first, "libone.so.1");
    touch(deeper, "libtwo-abc.so");
    touch(second, "libone.so.1");
    touch(second, "libthree.so");
    return 0;
}

static int
remove_tree(void **state)
{
    char command[128];
    (void)state;
    vnxi_search_path_set(NULL, 0);
    snprintf(command, sizeof command, "rm -r '%s'", root);
    return system(command);
}

static void
assert_found(const char *pattern, const char *directory, const char *name)
{
    char path[PATH_MAX];
    char *found = vnxi_search_path_find(pattern);
    snprintf(path, sizeof path, "%s/%s", directory, name);
    assert_non_null(found);
    assert_string_equal(found, path);
    free(found);
}

static void
test_search_path_empty_finds_nothing(void **state)
{
    (void)state;
    assert_null(vnxi_search_path_find("*"));
}

static void
test_search_path_finds_in_order_and_by_pattern(void **state)
{
    const char *both[] = {first, second}, *other[] = {second, first};
    (void)state;
    assert_true(vnxi_search_path_set(both, 2));
    assert_found("libone.so.*", first, "libone.so.1");
    assert_found("deeper/libtwo-*.so", first, "deeper/libtwo-abc.so");
    assert_found("libthree.so", second, "libthree.so");
    assert_null(vnxi_search_path_find("libfour.so"));

    assert_true(vnxi_search_path_set(other, 2));
    assert_found("libone.so.1", second, "libone.so.1");
}

static void
test_search_path_skips_what_is_not_there(void **state)
{
    const char *dirs[] = {"", "/no/such/directory", second};
    (void)state;
    assert_true(vnxi_search_path_set(dirs, 3));
    assert_found("libthree.so", second, "libthree.so");
}

static void
test_search_path_is_replaced_as_a_whole(void **state)
{
    const char *dirs[] = {second};
    (void)state;
    assert_true(vnxi_search_path_set(dirs, 1));
    assert_true(vnxi_search_path_set(NULL, 0));
    assert_null(vnxi_search_path_find("libthree.so"));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_search_path_empty_finds_nothing),
        cmocka_unit_test(test_search_path_finds_in_order_and_by_pattern),
        cmocka_unit_test(test_search_path_skips_what_is_not_there),
        cmocka_unit_test(test_search_path_is_replaced_as_a_whole),
    };
    return cmocka_run_group_tests(tests, make_tree, remove_tree);
}
