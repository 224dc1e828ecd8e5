/* Checks of pairs of rows, and their error messages. */
#include "list_util.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "engine/parts/pairs.h"

static uint64_t cells[4];

static vnx_indices_t
some(size_t count, vnx_index_type_t type)
{
    return (vnx_indices_t){cells, count, type};
}

static void
assert_refused(vnx_status_t status, const vnx_error_t *error,
               const char *operation, const char *cause)
{
    assert_int_equal(status, VNX_ERR_INVALID_PARAM);
    assert_int_equal(error->status, VNX_ERR_INVALID_PARAM);
    assert_string_equal(error->operation, operation);
    assert_string_equal(error->cause, cause);
}

static void
test_pairs_need_equal_counts(void **state)
{
    vnx_indices_t one = some(1, VNX_INDEX_I64), two = some(2, VNX_INDEX_U8);
    vnx_error_t error = {0};
    (void)state;

    assert_refused(vnxi_pairs_check(&two, &one, "make", &error), &error,
                   "make",
                   "2 local indices, but 1 remote ones: they form pairs");
    assert_refused(vnxi_pairs_check(&one, &two, "make", &error), &error,
                   "make",
                   "1 local indices, but 2 remote ones: they form pairs");
    assert_int_equal(error.row, -1);
    assert_int_equal(vnxi_pairs_check(&two, &two, "make", &error), VNX_OK);
}

static void
test_pairs_need_at_least_one(void **state)
{
    vnx_indices_t none = some(0, VNX_INDEX_I64);
    vnx_error_t error = {0};
    (void)state;

    assert_refused(vnxi_pairs_check(&none, &none, "make", &error), &error,
                   "make", "no indices were given");
    none.data = NULL; /* all rows of an empty list */
    assert_refused(vnxi_pairs_check(&none, &none, "make", &error), &error,
                   "make", "no indices were given");
}

static void
test_pairs_refuse_an_unknown_index_type(void **state)
{
    vnx_indices_t good = some(1, VNX_INDEX_U8);
    vnx_indices_t bad = some(1, (vnx_index_type_t)(VNX_INDEX_U8 + 1));
    vnx_error_t error = {0};
    (void)state;

    assert_refused(vnxi_pairs_check(&good, &bad, "make", &error), &error,
                   "make", "unknown type of indices");
    assert_refused(vnxi_pairs_check(&bad, &good, "make", &error), &error,
                   "make", "unknown type of indices");
}

static void
test_pairs_name_an_index_as_the_caller_wrote_it(void **state)
{
    vnx_indices_t indices = some(4, VNX_INDEX_I32);
    const region_spec_t spec = {0x1000, 0x1000, 0, true, 0};
    const vnx_desc_t rows[] = {{0x1000, 8, 0}, {0x1008, 8, 0}};
    vnxi_region_table_t *table = make_table(&spec, 1);
    vnxi_list_t *list = make_list(table, rows, 2);
    vnxi_pairs_side_t side = {"remote", list, &indices};
    vnx_error_t error = {0};
    (void)state;

    assert_refused(
        vnxi_pairs_bad_index(&side, 3, (uint64_t)-7, "make", &error), &error,
        "make", "remote index -7 is not in the list of 2 rows: 0 to 1");
    assert_int_equal(error.row, 3);
    indices.type = VNX_INDEX_U64;
    side.name = "local";
    assert_refused(vnxi_pairs_bad_index(&side, 0, UINT64_MAX, "make", &error),
                   &error, "make",
                   "local index 18446744073709551615 is not in the list of 2 "
                   "rows: 0 to 1");
    assert_int_equal(error.row, 0);
    vnxi_list_release(list);
    vnxi_region_table_release(table);
}

static void
test_pairs_name_both_lengths_and_the_place(void **state)
{
    vnx_error_t error = {0};
    (void)state;

    assert_refused(vnxi_pairs_unequal(12, 64, UINT64_MAX, "make", &error),
                   &error, "make",
                   "the local row has 64 bytes, the remote one "
                   "18446744073709551615");
    assert_int_equal(error.row, 12);
    assert_refused(vnxi_pairs_too_long("initialize", &error), &error,
                   "initialize", "the total length exceeds 2^64");
    assert_int_equal(error.row, -1);
}

/* The error names the deregistered region, not another one of the list. */
static void
test_pairs_name_a_deregistered_region(void **state)
{
    static char name[] = "B";
    const region_spec_t specs[] = {{0x1000, 0x1000, 0, true, 0},
                                   {0x8000, 0x2000, 0, true, 0}};
    const vnx_desc_t rows[] = {{0x1000, 8, 0}, {0x8000, 8, 0}};
    vnxi_peer_t peer = {.name = name, .name_len = 1};
    vnxi_region_table_t *table = make_table(specs, 2);
    vnxi_list_t *list = make_list(table, rows, 2);
    vnx_error_t error = {0};
    (void)state;

    assert_int_equal(vnxi_pairs_check_regions(list, "remote", &peer, &error),
                     VNX_OK);
    vnxi_region_t *gone =
        vnxi_region_table_exact(table, VNX_MEM_DRAM, 0x8000, 0x2000, 0);
    vnxi_region_revoke(gone);
    assert_int_equal(vnxi_pairs_check_regions(list, "remote", &peer, &error),
                     VNX_ERR_NOT_FOUND);
    assert_string_equal(error.operation, "vnx_xfer_post");
    assert_string_equal(error.cause,
                        "the remote region at 0x8000 of 8192 bytes, which "
                        "the list uses, was deregistered");
    assert_string_equal(error.peer, "B");
    vnxi_list_release(list);
    vnxi_region_table_release(table);
}

/* A region whose owner has not answered is not an error; a refused one names
 * the owner's reason. */
static void
test_pairs_wait_for_a_region_that_is_unconfirmed(void **state)
{
    static char name[] = "B";
    const region_spec_t spec = {0x1000, 0x1000, 0, true, 0};
    const vnx_desc_t rows = {0x1000, 8, 0};
    vnxi_peer_t peer = {.name = name, .name_len = 1};
    vnxi_region_table_t *table = make_table(&spec, 1);
    vnxi_list_t *list = make_list(table, &rows, 1);
    vnxi_region_t *region = vnxi_region_table_at(table, 0);
    vnx_error_t error = {0};
    (void)state;

    vnxi_region_doubt(region);
    assert_int_equal(vnxi_pairs_check_regions(list, "remote", &peer, &error),
                     VNX_IN_PROG);
    assert_int_equal(error.status, 0);
    vnxi_region_settle(region, false);
    assert_int_equal(vnxi_pairs_check_regions(list, "remote", &peer, &error),
                     VNX_ERR_NOT_FOUND);
    assert_string_equal(error.cause,
                        "the remote region at 0x1000 of 4096 bytes, which "
                        "the list uses, was not registered by its owner, or "
                        "was deregistered since");
    assert_string_equal(error.peer, "B");
    vnxi_list_release(list);
    vnxi_region_table_release(table);
}

enum { ROUNDS = 1000000 };

typedef struct owner {
    vnxi_region_t *region;
    atomic_bool ended;
} owner_t;

static void *
confirm_again_and_again(void *opaque)
{
    owner_t *owner = opaque;

    for (unsigned i = 0; i < ROUNDS; i++) {
        vnxi_region_doubt(owner->region);
        vnxi_region_settle(owner->region, true);
    }
    atomic_store(&owner->ended, true);
    return NULL;
}

/* The owner's answer may arrive while the check runs.  The region is then
 * unconfirmed or usable, never an error. */
static void
test_pairs_are_checked_while_a_region_is_confirmed(void **state)
{
    const region_spec_t spec = {0x1000, 0x1000, 0, true, 0};
    const vnx_desc_t row = {0x1000, 8, 0};
    vnxi_peer_t peer = {0};
    vnxi_region_table_t *table = make_table(&spec, 1);
    vnxi_list_t *list = make_list(table, &row, 1);
    owner_t owner = {.region = vnxi_region_table_at(table, 0)};
    vnx_error_t error = {0};
    pthread_t thread;
    vnx_status_t status;
    (void)state;

    assert_int_equal(
        pthread_create(&thread, NULL, confirm_again_and_again, &owner), 0);
    do {
        status = vnxi_pairs_check_regions(list, "remote", &peer, &error);
    } while (status >= 0 && !atomic_load(&owner.ended));
    pthread_join(thread, NULL);
    assert_string_equal(error.cause, "");
    assert_int_equal(status < 0, 0);
    assert_int_equal(vnxi_pairs_check_regions(list, "remote", &peer, &error),
                     VNX_OK);
    vnxi_list_release(list);
    vnxi_region_table_release(table);
}

/* Regions without rows in a list do not affect it. */
static void
test_pairs_check_only_regions_with_rows(void **state)
{
    const region_spec_t specs[] = {{0x1000, 0x1000, 0, true, 0},
                                   {0x8000, 0x2000, 0, true, 0}};
    const vnx_desc_t row = {0x1000, 8, 0};
    vnxi_peer_t peer = {0};
    vnxi_region_table_t *table = make_table(specs, 2);
    vnxi_list_t *list = make_list(table, &row, 1);
    (void)state;

    vnxi_region_revoke(
        vnxi_region_table_exact(table, VNX_MEM_DRAM, 0x8000, 0x2000, 0));
    assert_int_equal(vnxi_pairs_check_regions(list, "local", &peer, NULL),
                     VNX_OK);
    vnxi_list_release(list);
    vnxi_region_table_release(table);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pairs_need_equal_counts),
        cmocka_unit_test(test_pairs_need_at_least_one),
        cmocka_unit_test(test_pairs_refuse_an_unknown_index_type),
        cmocka_unit_test(test_pairs_name_an_index_as_the_caller_wrote_it),
        cmocka_unit_test(test_pairs_name_both_lengths_and_the_place),
        cmocka_unit_test(test_pairs_name_a_deregistered_region),
        cmocka_unit_test(test_pairs_wait_for_a_region_that_is_unconfirmed),
        cmocka_unit_test(test_pairs_are_checked_while_a_region_is_confirmed),
        cmocka_unit_test(test_pairs_check_only_regions_with_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
