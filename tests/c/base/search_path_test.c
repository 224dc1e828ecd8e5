#include "vnx_test.h"

#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
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
test_search_path_skips_missing_directories(void **state)
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

/* The strings are copied, so the caller may reuse them. */
static void
test_search_path_copies_the_directories(void **state)
{
    char directory[sizeof second];
    const char *dirs[] = {directory};
    (void)state;

    memcpy(directory, second, sizeof directory);
    assert_true(vnxi_search_path_set(dirs, 1));
    memset(directory, 'x', sizeof directory - 1);
    assert_found("libthree.so", second, "libthree.so");
}

static void
test_search_path_takes_the_first_by_name(void **state)
{
    const char *dirs[] = {second};
    (void)state;

    touch(second, "libmany.so.2");
    touch(second, "libmany.so.1");
    touch(second, ".libmany.so.0"); /* hidden: by its whole name only */
    assert_true(vnxi_search_path_set(dirs, 1));
    assert_found("libmany.so.*", second, "libmany.so.1");
    assert_found("*libmany.so.?", second, "libmany.so.1");
    assert_found(".libmany.so.*", second, ".libmany.so.0");
    assert_null(vnxi_search_path_find("libmany.so.[3-9]"));
}

typedef struct changing {
    atomic_bool stop;
} changing_t;

static void *
change_all_the_time(void *argument)
{
    changing_t *changing = argument;
    const char *both[] = {first, second};
    while (!atomic_load(&changing->stop)) {
        vnxi_search_path_set(both, 2);
        vnxi_search_path_set(both + 1, 1);
    }
    return NULL;
}

/* A search during a change sees either list, complete. */
static void
test_search_path_find_is_safe_during_set(void **state)
{
    const char *dirs[] = {second};
    changing_t changing = {.stop = false};
    pthread_t thread;
    (void)state;

    assert_true(vnxi_search_path_set(dirs, 1));
    assert_int_equal(
        pthread_create(&thread, NULL, change_all_the_time, &changing), 0);
    for (int i = 0; i < 300; i++) {
        assert_found("libthree.so", second, "libthree.so"); /* in both */
        assert_null(vnxi_search_path_find("libfour.so"));
    }
    atomic_store(&changing.stop, true);
    pthread_join(thread, NULL);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_search_path_empty_finds_nothing),
        cmocka_unit_test(test_search_path_finds_in_order_and_by_pattern),
        cmocka_unit_test(test_search_path_skips_missing_directories),
        cmocka_unit_test(test_search_path_is_replaced_as_a_whole),
        cmocka_unit_test(test_search_path_copies_the_directories),
        cmocka_unit_test(test_search_path_takes_the_first_by_name),
        cmocka_unit_test(test_search_path_find_is_safe_during_set),
    };
    return cmocka_run_group_tests(tests, make_tree, remove_tree);
}
