#include "vnx_test.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine/parts/region.h"

#define MANY 10000

/* Reserved memory: registered ranges must be mapped, but are never touched
 * here. */
#define GROUND (16u << 20)
static uint64_t ground;
#define AT(offset) (ground + (offset))
#define THREADS 6
#define ROUNDS 300
#define BATCH 7

static vnx_reg_desc_t
row(uint64_t addr, uint64_t len)
{
    return (vnx_reg_desc_t){.desc = {.addr = addr, .len = len}};
}

static int
setup(void **state)
{
    *state = vnxi_registry_create(NULL, NULL, NULL);
    return *state == NULL;
}

static int
teardown(void **state)
{
    vnxi_registry_free(*state);
    return 0;
}

static void
add(vnxi_registry_t *registry, const vnx_reg_desc_t *descs, size_t count)
{
    vnx_error_t error;
    assert_int_equal(
        vnxi_registry_add(registry, VNX_MEM_DRAM, descs, count, &error),
        VNX_OK);
}

static void
take_away(vnxi_registry_t *registry, const vnx_reg_desc_t *descs, size_t count)
{
    vnx_error_t error;
    assert_int_equal(vnxi_registry_remove(registry, VNX_MEM_DRAM, descs, count,
                                          NULL, NULL, &error),
                     VNX_OK);
}

/* Does a snapshot of now hold the range? */
static bool
is_held(vnxi_registry_t *registry, uint64_t addr, uint64_t len)
{
    vnxi_region_table_t *table = vnxi_registry_snapshot(registry, NULL);
    assert_non_null(table);
    bool held =
        vnxi_region_table_find(table, VNX_MEM_DRAM, addr, len, 0) != NULL;
    vnxi_region_table_release(table);
    return held;
}

static void
test_registry_holds_what_was_added_until_removed(void **state)
{
    vnxi_registry_t *registry = *state;
    const vnx_reg_desc_t rows[] = {row(AT(0x3000), 16), row(AT(0x1000), 16),
                                   row(AT(0x2000), 16)};

    add(registry, rows, 3);
    assert_int_equal(vnxi_registry_count(registry), 3);
    for (size_t i = 0; i < 3; i++) {
        assert_true(is_held(registry, rows[i].desc.addr, 16));
    }
    take_away(registry, rows + 1, 1);
    assert_int_equal(vnxi_registry_count(registry), 2);
    assert_false(is_held(registry, AT(0x1000), 16));
    assert_true(is_held(registry, AT(0x3000), 16));
}

/* An engine that attaches to regions, until it is told to fail. */
typedef struct attacher {
    int attached, freed, fail_at;
} attacher_t;

static attacher_t attacher;

typedef struct attached {
    vnxi_region_t base;
    bool is_attached;
} attached_t;

static void
count_free(vnxi_region_t *region)
{
    attacher.freed += ((attached_t *)region)->is_attached;
}

static const vnxi_region_class_t attached_class = {.size = sizeof(attached_t),
                                                   .fini = count_free};

static vnx_status_t
attach(void *context, vnxi_region_t *region, vnx_error_t *error)
{
    assert_ptr_equal(context, &attacher);
    if (attacher.attached == attacher.fail_at) {
        error->status = VNX_ERR_BACKEND;
        return VNX_ERR_BACKEND;
    }
    attacher.attached++;
    assert_ptr_equal(region->class, &attached_class);
    ((attached_t *)region)->is_attached = true;
    return VNX_OK;
}

static int
setup_attacher(void **state)
{
    attacher = (attacher_t){.fail_at = -1};
    *state = vnxi_registry_create(&attached_class, attach, &attacher);
    return *state == NULL;
}

static void
test_registry_attaches_to_each_new_region_once(void **state)
{
    const vnx_reg_desc_t rows[] = {row(AT(0x1000), 16), row(AT(0x2000), 16)};

    add(*state, rows, 1);
    assert_int_equal(attacher.attached, 1);
    add(*state, rows, 2);
    assert_int_equal(attacher.attached, 2);
    assert_int_equal(attacher.freed, 0);
    take_away(*state, rows, 2);
    assert_int_equal(attacher.freed, 1);
    take_away(*state, rows, 1);
    assert_int_equal(attacher.freed, 2);
}

static void
test_registry_adds_none_when_attaching_fails(void **state)
{
    const vnx_reg_desc_t rows[] = {row(AT(0x1000), 16), row(AT(0x2000), 16),
                                   row(AT(0x3000), 16)};
    vnx_error_t error;

    add(*state, rows, 1);
    attacher.fail_at = 2;
    assert_int_equal(vnxi_registry_add(*state, VNX_MEM_DRAM, rows, 3, &error),
                     VNX_ERR_BACKEND);
    assert_int_equal(error.status, VNX_ERR_BACKEND);
    assert_int_equal(attacher.freed, 1);
    assert_int_equal(vnxi_registry_count(*state), 1);
    take_away(*state, rows, 1); /* it counts one use, not two */
    assert_int_equal(vnxi_registry_count(*state), 0);
}

static void
test_registry_storage_of_length_zero_is_all_of_it(void **state)
{
    const vnx_mem_t storage[] = {VNX_MEM_BLK, VNX_MEM_OBJ, VNX_MEM_FILE};
    const vnx_reg_desc_t all = row(0, 0);
    vnx_error_t error;

    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(
            vnxi_registry_add(*state, storage[i], &all, 1, &error), VNX_OK);
        vnxi_region_table_t *table = vnxi_registry_snapshot(*state, NULL);
        assert_non_null(
            vnxi_region_table_find(table, storage[i], 1 << 20, 4096, 0));
        vnxi_region_table_release(table);
        assert_int_equal(vnxi_registry_remove(*state, storage[i], &all, 1,
                                              NULL, NULL, &error),
                         VNX_OK);
    }
    assert_int_equal(vnxi_registry_add(*state, VNX_MEM_VRAM, &all, 1, &error),
                     VNX_ERR_INVALID_PARAM);
}

static void
test_registry_snapshot_is_made_again_only_after_a_change(void **state)
{
    vnxi_registry_t *registry = *state;
    const vnx_reg_desc_t rows[] = {row(AT(0x1000), 16), row(AT(0x2000), 16)};
    uint64_t first_epoch, epoch;

    add(registry, rows, 1);
    vnxi_region_table_t *first =
        vnxi_registry_snapshot(registry, &first_epoch);
    vnxi_region_table_t *again = vnxi_registry_snapshot(registry, &epoch);
    assert_ptr_equal(again, first);
    assert_true(epoch == first_epoch);

    add(registry, rows + 1, 1);
    vnxi_region_table_t *later = vnxi_registry_snapshot(registry, &epoch);
    assert_true(epoch > first_epoch);
    assert_true(epoch == vnxi_registry_epoch(registry));
    assert_int_equal(vnxi_region_table_count(later), 2);
    /* The old one stays as it was. */
    assert_int_equal(vnxi_region_table_count(first), 1);
    vnxi_region_table_release(first);
    vnxi_region_table_release(again);
    vnxi_region_table_release(later);
}

static void
test_registry_removal_revokes_the_region_in_old_snapshots(void **state)
{
    vnxi_registry_t *registry = *state;
    const vnx_reg_desc_t rows[] = {row(AT(0x1000), 16)};

    add(registry, rows, 1);
    vnxi_region_table_t *table = vnxi_registry_snapshot(registry, NULL);
    const vnxi_region_t *region = vnxi_region_table_at(table, 0);
    assert_false(vnxi_region_is_gone(region));
    take_away(registry, rows, 1);
    assert_true(vnxi_region_is_gone(region));
    assert_null(
        vnxi_region_table_find(table, VNX_MEM_DRAM, AT(0x1000), 16, 0));

    /* Registered again it is another region. */
    add(registry, rows, 1);
    assert_true(vnxi_region_is_gone(region));
    assert_true(is_held(registry, AT(0x1000), 16));
    vnxi_region_table_release(table);
}

static void
test_registry_counts_uses_of_a_range(void **state)
{
    vnxi_registry_t *registry = *state;
    const vnx_reg_desc_t twice[] = {row(AT(0x1000), 16), row(AT(0x1000), 16)};
    vnx_error_t error;

    add(registry, twice, 2);
    add(registry, twice, 1);
    assert_int_equal(vnxi_registry_count(registry), 1);
    uint64_t epoch = vnxi_registry_epoch(registry);
    take_away(registry, twice, 2);
    assert_true(is_held(registry, AT(0x1000), 16));
    assert_true(vnxi_registry_epoch(registry) == epoch);
    take_away(registry, twice, 1);
    assert_false(is_held(registry, AT(0x1000), 16));
    assert_int_equal(vnxi_registry_remove(registry, VNX_MEM_DRAM, twice, 1,
                                          NULL, NULL, &error),
                     VNX_ERR_NOT_FOUND);
}

static void
test_registry_keeps_devices_and_lengths_apart(void **state)
{
    vnxi_registry_t *registry = *state;
    vnx_reg_desc_t rows[] = {row(AT(0x1000), 16), row(AT(0x1000), 32),
                             row(AT(0x1000), 16)};
    rows[2].desc.dev = 5;

    add(registry, rows, 3);
    assert_int_equal(vnxi_registry_count(registry), 3);
    take_away(registry, rows + 1, 1);
    assert_true(is_held(registry, AT(0x1000), 16));
    assert_false(is_held(registry, AT(0x1000), 32));
    take_away(registry, rows, 1);
    assert_int_equal(vnxi_registry_count(registry), 1);
}

static void
test_registry_names_the_first_bad_row_and_adds_none(void **state)
{
    vnxi_registry_t *registry = *state;
    vnx_error_t error;
    const vnx_reg_desc_t empty[] = {row(AT(0x1000), 16), row(AT(0x2000), 0),
                                    row(AT(0x3000), 0)};
    const vnx_reg_desc_t overflowing[] = {row(AT(0x1000), 16),
                                          row(UINT64_MAX - 15, 16)};

    assert_int_equal(
        vnxi_registry_add(registry, VNX_MEM_DRAM, empty, 3, &error),
        VNX_ERR_INVALID_PARAM);
    assert_int_equal(error.row, 1);
    assert_true(error.has_desc && error.addr == AT(0x2000));
    assert_string_equal(error.operation, "vnx_agent_register");
    assert_int_equal(
        vnxi_registry_add(registry, VNX_MEM_DRAM, overflowing, 2, &error),
        VNX_ERR_INVALID_PARAM);
    assert_int_equal(error.row, 1);
    assert_non_null(strstr(error.cause, "overflow"));
    assert_int_equal(vnxi_registry_count(registry), 0);
    assert_true(vnxi_registry_epoch(registry) == 0);
}

static void
test_registry_refuses_an_unknown_memory_type(void **state)
{
    const vnx_reg_desc_t rows[] = {row(AT(0x1000), 16)};
    vnx_error_t error;

    assert_int_equal(vnxi_registry_add(*state, (vnx_mem_t)9, rows, 1, &error),
                     VNX_ERR_INVALID_PARAM);
    assert_int_equal(vnxi_registry_count(*state), 0);
}

/* A range is refused by its ends; between them it may have gaps.  What is
 * reserved is mapped. */
static void
test_registry_refuses_memory_that_is_not_mapped(void **state)
{
    vnxi_registry_t *registry = *state;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    uint64_t hole = AT(2 * page);
    vnx_error_t error;
    const struct {
        uint64_t addr, len;
        const char *cause; /* NULL: it is taken */
    } cases[] = {
        {hole, 16, "no memory is mapped at its address"},
        {hole + page - 1, 2, "no memory is mapped at its address"},
        {hole - 1, 2, "no memory is mapped at its end"},
        {hole - 16, 16, NULL},
        {hole + page, 16, NULL},
        {hole - page, 3 * page, NULL},
        {UINT64_MAX - 15, 15, "no memory is mapped at its address"},
        {0, 1, "no memory is mapped at its address"},
    };

    assert_int_equal(munmap((void *)(uintptr_t)hole, page), 0);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        /* Among many, in whatever order. */
        vnx_reg_desc_t rows[5];
        for (size_t at = 0; at < 5; at++) {
            rows[at] = row(AT(0x100000 - 0x1000 * at), 64);
        }
        rows[3] = row(cases[i].addr, cases[i].len);
        vnx_status_t status =
            vnxi_registry_add(registry, VNX_MEM_DRAM, rows, 5, &error);
        if (cases[i].cause == NULL) {
            assert_int_equal(status, VNX_OK);
            continue;
        }
        assert_int_equal(status, VNX_ERR_INVALID_PARAM);
        assert_string_equal(error.cause, cases[i].cause);
        assert_int_equal(error.row, 3);
        assert_true(error.addr == cases[i].addr && error.len == cases[i].len);
        assert_false(is_held(registry, rows[3].desc.addr, rows[3].desc.len));
    }
    const vnx_reg_desc_t gpu = row(hole, 16);
    assert_int_equal(vnxi_registry_add(registry, VNX_MEM_VRAM, &gpu, 1, NULL),
                     VNX_OK);
    assert_true(mmap((void *)(uintptr_t)hole, page, PROT_NONE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
                     0) != MAP_FAILED);
}

static void
test_registry_removal_is_all_or_none(void **state)
{
    vnxi_registry_t *registry = *state;
    const vnx_reg_desc_t rows[] = {row(AT(0x1000), 16), row(AT(0x2000), 16)};
    const vnx_reg_desc_t unknown[] = {row(AT(0x1000), 16), row(AT(0x2000), 16),
                                      row(AT(0x2000), 8)};
    const vnx_reg_desc_t too_often[] = {
        row(AT(0x2000), 16), row(AT(0x1000), 16), row(AT(0x2000), 16)};
    vnx_error_t error;

    add(registry, rows, 2);
    assert_int_equal(vnxi_registry_remove(registry, VNX_MEM_DRAM, unknown, 3,
                                          NULL, NULL, &error),
                     VNX_ERR_NOT_FOUND);
    assert_int_equal(error.row, 2);
    assert_true(error.addr == AT(0x2000) && error.len == 8);
    assert_string_equal(error.operation, "vnx_agent_deregister");
    assert_int_equal(vnxi_registry_remove(registry, VNX_MEM_DRAM, too_often, 3,
                                          NULL, NULL, &error),
                     VNX_ERR_NOT_FOUND);
    assert_int_equal(error.row, 2);
    assert_non_null(strstr(error.cause, "more often"));
    assert_int_equal(vnxi_registry_remove(registry, VNX_MEM_VRAM, rows, 1,
                                          NULL, NULL, &error),
                     VNX_ERR_NOT_FOUND);

    assert_true(is_held(registry, AT(0x1000), 16));
    /* Every use is still there, and no more. */
    take_away(registry, rows, 2);
    assert_int_equal(vnxi_registry_count(registry), 0);
}

typedef struct gone {
    vnxi_registry_t *registry;
    size_t count;
    uint64_t addr_sum, epoch;
} gone_t;

/* The lock is free: the registry may be asked from here, and another thread
 * may register memory.  That does not belong to the removal. */
static void
note_gone(void *context, const vnxi_region_t *region, uint64_t epoch)
{
    gone_t *gone = context;
    const vnx_reg_desc_t another = row(AT(0x8000), 16);
    assert_true(vnxi_region_is_gone(region));
    assert_false(is_held(gone->registry, region->addr, region->len));
    assert_true(epoch == gone->epoch);
    add(gone->registry, &another, 1);
    gone->count++;
    gone->addr_sum += region->addr;
}

static void
test_registry_reports_each_removed_region(void **state)
{
    gone_t gone = {.registry = *state};
    const vnx_reg_desc_t rows[] = {row(AT(0x1000), 16), row(AT(0x2000), 16),
                                   row(AT(0x4000), 16)};
    vnx_error_t error;

    add(gone.registry, rows, 3);
    add(gone.registry, rows + 1, 1); /* this one stays for a second use */
    gone.epoch = vnxi_registry_epoch(gone.registry) + 1;
    assert_int_equal(vnxi_registry_remove(gone.registry, VNX_MEM_DRAM, rows, 3,
                                          note_gone, &gone, &error),
                     VNX_OK);
    assert_int_equal(gone.count, 2);
    assert_true(gone.addr_sum == AT(0x1000) + AT(0x4000));
    assert_true(is_held(gone.registry, AT(0x2000), 16));
}

static void
test_registry_empty_batch_changes_nothing(void **state)
{
    vnxi_registry_t *registry = *state;
    add(registry, NULL, 0);
    take_away(registry, NULL, 0);
    assert_true(vnxi_registry_epoch(registry) == 0);
    vnxi_registry_free(NULL);
}

/* -- Many ------------------------------------------------------------------
 */

/* A permutation of 0 ... MANY - 1; the factor has no divisor in common. */
static uint64_t
scattered_addr(size_t i)
{
    return AT(0x10000) + (uint64_t)((i * 7919) % MANY) * 64;
}

static void
test_registry_many_single_registrations_and_removals(void **state)
{
    vnxi_registry_t *registry = *state;
    for (int round = 0; round < 3; round++) {
        for (size_t i = 0; i < MANY; i++) {
            const vnx_reg_desc_t one = row(scattered_addr(i), 64);
            add(registry, &one, 1);
        }
        assert_int_equal(vnxi_registry_count(registry), MANY);
        vnxi_region_table_t *table = vnxi_registry_snapshot(registry, NULL);
        for (size_t i = 0; i < MANY; i++) {
            assert_true(vnxi_region_table_at(table, i)->addr ==
                        AT(0x10000) + 64 * i);
        }
        vnxi_region_table_release(table);
        for (size_t i = MANY; i-- > 0;) {
            const vnx_reg_desc_t one = row(scattered_addr(i), 64);
            take_away(registry, &one, 1);
        }
        assert_int_equal(vnxi_registry_count(registry), 0);
    }
}

static void
test_registry_merges_batches(void **state)
{
    vnxi_registry_t *registry = *state;
    vnx_reg_desc_t *rows = malloc(MANY * sizeof *rows);
    assert_non_null(rows);
    for (size_t i = 0; i < MANY; i++) {
        rows[i] = row(scattered_addr(i), 64);
    }
    /* The second batch has a third of the first in it. */
    add(registry, rows, 6000);
    add(registry, rows + 4000, 6000);
    assert_int_equal(vnxi_registry_count(registry), MANY);
    take_away(registry, rows + 1000, 5000);
    assert_int_equal(vnxi_registry_count(registry), MANY - 3000);
    for (size_t i = 0; i < MANY; i += 97) {
        assert_int_equal(is_held(registry, rows[i].desc.addr, 64),
                         i < 1000 || i >= 4000);
    }
    take_away(registry, rows, 1000);
    take_away(registry, rows + 4000, 6000);
    assert_int_equal(vnxi_registry_count(registry), 0);
    free(rows);
}

/* -- Threads ---------------------------------------------------------------
 */

typedef struct worker {
    vnxi_registry_t *registry;
    uint64_t base;
    bool failed;
} worker_t;

/* Adds and removes ranges of its own, and one that all workers share; in
 * between its own must be there and shared ones may be. */
static void *
work(void *argument)
{
    worker_t *worker = argument;
    vnx_reg_desc_t rows[BATCH];
    for (uint64_t i = 0; i < BATCH; i++) {
        rows[i] = row(worker->base + i * 128, 64);
    }
    rows[0] = row(AT(0x100), 64);
    for (int round = 0; round < ROUNDS && !worker->failed; round++) {
        worker->failed |= vnxi_registry_add(worker->registry, VNX_MEM_DRAM,
                                            rows, BATCH, NULL) != VNX_OK;
        vnxi_region_table_t *table =
            vnxi_registry_snapshot(worker->registry, NULL);
        for (size_t i = 0; i < BATCH; i++) {
            worker->failed |=
                vnxi_region_table_find(table, VNX_MEM_DRAM, rows[i].desc.addr,
                                       64, 0) == NULL;
        }
        worker->failed |=
            vnxi_registry_remove(worker->registry, VNX_MEM_DRAM, rows, BATCH,
                                 NULL, NULL, NULL) != VNX_OK;
        worker->failed |=
            vnxi_region_table_find(table, VNX_MEM_DRAM, rows[1].desc.addr, 64,
                                   0) != NULL;
        vnxi_region_table_release(table);
    }
    return NULL;
}

static void
test_registry_threads_do_not_disturb_each_other(void **state)
{
    pthread_t threads[THREADS];
    worker_t workers[THREADS];
    for (uint64_t i = 0; i < THREADS; i++) {
        workers[i] =
            (worker_t){.registry = *state, .base = AT(0x10000 * (i + 1))};
        assert_int_equal(pthread_create(&threads[i], NULL, work, &workers[i]),
                         0);
    }
    for (size_t i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
        assert_false(workers[i].failed);
    }
    assert_int_equal(vnxi_registry_count(*state), 0);
}

static void
check_find(vnxi_registry_t *registry, const vnxi_region_t *keys, size_t count,
           const bool *expected)
{
    vnxi_region_t *found[8];

    assert_true(vnxi_registry_find(registry, keys, count, found) ==
                vnxi_registry_epoch(registry));
    for (size_t i = 0; i < count; i++) {
        assert_int_equal(found[i] != NULL, expected[i]);
        assert_true(found[i] == NULL ||
                    vnxi_region_compare(found[i], &keys[i]) == 0);
        vnxi_region_release(found[i]);
    }
}

/* In whatever order they are asked for. */
static void
test_registry_finds_what_is_registered_now(void **state)
{
    const vnx_reg_desc_t rows[] = {row(AT(0x1000), 16), row(AT(0x1000), 32),
                                   row(AT(0x2000), 16), row(AT(0x3000), 16)};
    const vnxi_region_t keys[] = {
        {.addr = AT(0x1000), .len = 16}, {.addr = AT(0x1000), .len = 32},
        {.addr = AT(0x1000), .len = 24}, {.addr = AT(0x2000), .len = 16},
        {.addr = AT(0x2008), .len = 8},  {.addr = AT(0x3000), .len = 16},
        {.addr = AT(0x3000), .len = 16}, {.addr = AT(0x1000), .len = 16}};
    const bool expected[] = {true, true, false, true, false, true, true, true};
    const bool later[] = {true, true, false, false, false, true, true, true};

    check_find(*state, keys, 0, NULL);
    check_find(*state, keys, 8, (const bool[8]){false});
    add(*state, rows, 4);
    check_find(*state, keys, 8, expected);
    take_away(*state, &rows[2], 1);
    check_find(*state, keys, 8, later);
    const vnxi_region_t others[] = {{.addr = AT(0x1000), .len = 16, .dev = 1},
                                    {.mem = VNX_MEM_VRAM, .addr = AT(0x1000)}};
    check_find(*state, others, 2, (const bool[2]){false});
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_registry_holds_what_was_added_until_removed),
        cmocka_unit_test_setup_teardown(
            test_registry_attaches_to_each_new_region_once, setup_attacher,
            teardown),
        cmocka_unit_test_setup_teardown(
            test_registry_adds_none_when_attaching_fails, setup_attacher,
            teardown),
        TEST(test_registry_storage_of_length_zero_is_all_of_it),
        TEST(test_registry_snapshot_is_made_again_only_after_a_change),
        TEST(test_registry_removal_revokes_the_region_in_old_snapshots),
        TEST(test_registry_counts_uses_of_a_range),
        TEST(test_registry_keeps_devices_and_lengths_apart),
        TEST(test_registry_names_the_first_bad_row_and_adds_none),
        TEST(test_registry_refuses_an_unknown_memory_type),
        TEST(test_registry_refuses_memory_that_is_not_mapped),
        TEST(test_registry_removal_is_all_or_none),
        TEST(test_registry_reports_each_removed_region),
        TEST(test_registry_empty_batch_changes_nothing),
        TEST(test_registry_many_single_registrations_and_removals),
        TEST(test_registry_merges_batches),
        TEST(test_registry_finds_what_is_registered_now),
        TEST(test_registry_threads_do_not_disturb_each_other),
    };
    void *reserved = mmap(NULL, GROUND, PROT_NONE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (reserved == MAP_FAILED) {
        return 1;
    }
    ground = (uintptr_t)reserved;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
