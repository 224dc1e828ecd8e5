#include "vnx_test.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "side_channel/blob_table.h"

static bool
put(vnxi_blob_table_t *blobs, const char *key, const char *data)
{
    vnx_side_channel_blob_t blob = {.key = key,
                                    .key_length = strlen(key),
                                    .data = data,
                                    .length = strlen(data)};
    return vnxi_blob_table_set(blobs, vnxi_blob_new(&blob));
}

static void
expect(vnxi_blob_table_t *blobs, const char *key, const char *data)
{
    vnxi_blob_t *blob = vnxi_blob_table_find(blobs, key, strlen(key));

    if (data == NULL) {
        assert_null(blob);
        return;
    }
    assert_non_null(blob);
    assert_int_equal(blob->len, strlen(data));
    assert_memory_equal(blob->data, data, blob->len);
    vnxi_blob_release(blob);
}

static void
test_blob_table_has_what_was_set_until_it_is_removed(void **state)
{
    (void)state;
    vnxi_blob_table_t table, *blobs = &table;

    vnxi_blob_table_init(blobs);
    expect(blobs, "", NULL);
    assert_true(put(blobs, "", "default"));
    assert_true(put(blobs, "0,1", "one"));
    expect(blobs, "", "default");
    expect(blobs, "0,1", "one");
    expect(blobs, "0,", NULL);
    expect(blobs, "0,10", NULL);
    assert_true(put(blobs, "0,1", "other"));
    expect(blobs, "0,1", "other");
    assert_true(vnxi_blob_table_remove(blobs, "0,1", 3));
    assert_false(vnxi_blob_table_remove(blobs, "0,1", 3));
    expect(blobs, "0,1", NULL);
    expect(blobs, "", "default");
    vnxi_blob_table_fini(blobs);
}

static void
test_blob_table_keys_are_bytes(void **state)
{
    (void)state;
    static const unsigned char keys[][2] = {{0, 0}, {0, 1}, {1, 0}, {255, 0}};
    vnxi_blob_table_t table, *blobs = &table;

    vnxi_blob_table_init(blobs);
    for (size_t i = 0; i < 4; i++) {
        for (size_t len = 1; len <= 2; len++) {
            vnx_side_channel_blob_t blob = {.key = keys[i],
                                            .key_length = len,
                                            .data = &keys[i],
                                            .length = len};
            assert_true(vnxi_blob_table_set(blobs, vnxi_blob_new(&blob)));
        }
    }
    vnxi_blob_t *blob = vnxi_blob_table_find(blobs, "\0\1", 2);
    assert_memory_equal(blob->data, "\0\1", 2);
    vnxi_blob_release(blob);
    blob = vnxi_blob_table_find(blobs, "\xff", 1);
    assert_int_equal(blob->len, 1);
    vnxi_blob_release(blob);
    vnxi_blob_table_fini(blobs);
}

static void
test_blob_table_what_was_found_outlives_the_table(void **state)
{
    (void)state;
    vnxi_blob_table_t table, *blobs = &table;

    vnxi_blob_table_init(blobs);
    put(blobs, "k", "first");
    vnxi_blob_t *first = vnxi_blob_table_find(blobs, "k", 1);
    vnxi_blob_t *again = vnxi_blob_table_find(blobs, "k", 1);
    assert_ptr_equal(first, again); /* the bytes exist once */
    put(blobs, "k", "second");
    vnxi_blob_t *second = vnxi_blob_table_find(blobs, "k", 1);
    assert_true(first->version != second->version);
    vnxi_blob_table_clear(blobs);
    expect(blobs, "k", NULL);
    vnxi_blob_table_fini(blobs);
    assert_memory_equal(first->data, "first", 5);
    assert_memory_equal(second->data, "second", 6);
    vnxi_blob_release(first);
    vnxi_blob_release(again);
    vnxi_blob_release(second);
}

static void
test_blob_table_keys_are_shown_in_print_and_cut(void **state)
{
    (void)state;
    char text[8];

    vnxi_key_text("a\n\xff\0b", 5, text, sizeof text);
    assert_string_equal(text, "a???b");
    vnxi_key_text("0123456789", 10, text, sizeof text);
    assert_string_equal(text, "0123456");
    vnxi_key_text("", 0, text, sizeof text);
    assert_string_equal(text, "");
}

/* -- Without memory ------------------------------------------------------- */

static bool has_no_memory;

void *__real_calloc(size_t count, size_t size);
__attribute__((visibility("default"))) void *__wrap_calloc(size_t count,
                                                           size_t size);

void *
__wrap_calloc(size_t count, size_t size)
{
    return has_no_memory ? NULL : __real_calloc(count, size);
}

static vnxi_blob_t *
blob_of(const char *key)
{
    vnx_side_channel_blob_t blob = {
        .key = key, .key_length = 1, .data = "new", .length = 3};
    return vnxi_blob_new(&blob);
}

/* Metadata and a publication go together. */
static void
test_blob_table_sets_all_or_none(void **state)
{
    (void)state;
    static const char *const keys[] = {"a", "b", "c", "d", "e"};
    vnxi_blob_table_t table, *blobs = &table;

    vnxi_blob_table_init(blobs);
    for (size_t i = 0; i < 5; i++) {
        assert_true(put(blobs, keys[i], "old"));
    }
    for (int i = 0; i < 2; i++) {
        vnxi_blob_t *list[] = {blob_of("a"), blob_of("f"), blob_of("g")};
        has_no_memory = i == 0; /* for a larger table */
        bool done = vnxi_blob_table_set_all(blobs, list, 3);
        has_no_memory = false;
        assert_int_equal(done, i == 1);
        expect(blobs, "a", i == 0 ? "old" : "new");
        expect(blobs, "f", i == 0 ? NULL : "new");
        expect(blobs, "g", i == 0 ? NULL : "new");
        expect(blobs, "b", "old");
    }
    vnxi_blob_table_fini(blobs);
}

/* -- At the same time ----------------------------------------------------- */

static atomic_bool stop;

static void *
replace_often(void *arg)
{
    static const char *const texts[] = {"aaaaaaaa", "bbbbbbbb"};

    for (int i = 0; i < 3000; i++) {
        put(arg, "k", texts[i % 2]);
        if (i % 16 == 0) {
            vnxi_blob_table_remove(arg, "other", 5);
            put(arg, "other", "x");
        }
    }
    atomic_store(&stop, true);
    return NULL;
}

static void
test_blob_table_is_read_while_it_is_written(void **state)
{
    (void)state;
    vnxi_blob_table_t table, *blobs = &table;
    pthread_t thread;

    vnxi_blob_table_init(blobs);
    put(blobs, "k", "aaaaaaaa");
    pthread_create(&thread, NULL, replace_often, blobs);
    while (!atomic_load(&stop)) {
        vnxi_blob_t *blob = vnxi_blob_table_find(blobs, "k", 1);
        assert_non_null(blob);
        assert_true(blob->data[0] == blob->data[7]);
        vnxi_blob_release(blob);
    }
    pthread_join(thread, NULL);
    vnxi_blob_table_fini(blobs);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_blob_table_has_what_was_set_until_it_is_removed),
        cmocka_unit_test(test_blob_table_keys_are_bytes),
        cmocka_unit_test(test_blob_table_what_was_found_outlives_the_table),
        cmocka_unit_test(test_blob_table_keys_are_shown_in_print_and_cut),
        cmocka_unit_test(test_blob_table_sets_all_or_none),
        cmocka_unit_test(test_blob_table_is_read_while_it_is_written),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
