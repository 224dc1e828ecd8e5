/* The engine nixl over a scripted library (fake_nixl.c). */
#include "agent_fixture.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

#include "base/clock.h"
#include "fake_nixl.h"
#include "pool_gate.h"

#define SIZE 65536

static fake_nixl_t *fake;

typedef struct duo {
    vnx_agent_t *a, *b;
    unsigned char *at_a, *at_b; /* SIZE bytes each, registered */
} duo_t;

static vnx_agent_t *
make_bare(const char *name)
{
    vnx_agent_config_t config = {.size = sizeof config, .engine = "nixl"};
    vnx_agent_t *agent = NULL;
    assert_ok(vnx_agent_create(name, strlen(name), &config, &agent, e));
    return agent;
}

static vnx_agent_t *
make_nixl(const char *name)
{
    vnx_agent_t *agent = make_bare(name);
    assert_ok(vnx_agent_create_backend(agent, "UCX", NULL, 0, e));
    return agent;
}

static int
setup(void **state)
{
    duo_t *duo = calloc(1, sizeof *duo);

    memset((void *)fake, 0, sizeof *fake);
    duo->a = make_nixl("A");
    duo->b = make_nixl("B");
    duo->at_a = calloc(1, SIZE);
    duo->at_b = malloc(SIZE);
    fill(duo->at_b, SIZE, 1);
    register_at(duo->a, duo->at_a, SIZE);
    register_at(duo->b, duo->at_b, SIZE);
    load_peer(duo->a, duo->b);
    *state = duo;
    return 0;
}

/* After any test the library has everything back: at once, except objects that
 * one of our threads released last. */
static void
assert_no_handles(void)
{
    const struct timespec pause = {.tv_nsec = 1000000};

    for (int i = 0; i < 10000 && atomic_load(&fake->handles) != 0; i++) {
        nanosleep(&pause, NULL);
    }
    assert_int_equal(atomic_load(&fake->handles), 0);
}

static int
teardown(void **state)
{
    duo_t *duo = *state;

    vnx_agent_release(duo->a);
    vnx_agent_release(duo->b);
    free(duo->at_a);
    free(duo->at_b);
    free(duo);
    assert_no_handles();
    return 0;
}

static vnx_xfer_t *
make_read(duo_t *duo, size_t len, size_t rows, const char *notif)
{
    vnx_dlist_t *local = prepare_rows(duo->a, "", duo->at_a, len, rows);
    vnx_dlist_t *remote = prepare_rows(duo->a, "B", duo->at_b, len, rows);
    vnx_xfer_t *xfer =
        make_xfer(duo->a, VNX_OP_READ, local, remote, rows, notif);
    vnx_dlist_release(local);
    vnx_dlist_release(remote);
    return xfer;
}

static void
release(vnx_xfer_t *xfer)
{
    assert_ok(vnx_xfer_release(xfer, e));
}

/* Post with a deadline, which the end of the transfer has to disarm. */
static void
post_to_hang(vnx_xfer_t *xfer)
{
    assert_int_equal(
        vnx_xfer_post_within(xfer, NULL, 0, vnx_test_limit(600), NULL),
        VNX_IN_PROG);
}

/* -- Backends ---------------------------------------------------------------
 */

static void
test_nixl_engine_lists_plugins_and_their_parameters(void **state)
{
    duo_t *duo = *state;
    vnx_param_t param;
    uint32_t mems;

    assert_string_equal(vnx_agent_plugin(duo->a, 1), "POSIX");
    assert_null(vnx_agent_plugin(duo->a, 3));
    assert_ok(vnx_agent_plugin_mems(duo->a, "POSIX", &mems, e));
    assert_int_equal(mems, 1u << VNX_MEM_DRAM | 1u << VNX_MEM_FILE);
    assert_ok(vnx_agent_plugin_param(duo->a, "UCX", 1, &param, e));
    assert_string_equal(param.key, "num_workers");
    assert_string_equal(param.value, "1");
    assert_ok(vnx_agent_plugin_param(duo->a, "UCX", 2, &param, e));
    assert_null(param.key);
    assert_ok(vnx_agent_plugin_param(duo->a, "POSIX", 0, &param, e));
    assert_null(param.key);
}

static void
test_nixl_engine_lists_a_broken_plugin_without_mems(void **state)
{
    duo_t *duo = *state;
    uint32_t mems = 99;
    vnx_param_t param;
    vnx_error_t error;

    assert_ok(vnx_agent_plugin_mems(duo->a, "BROKEN", &mems, e));
    assert_int_equal(mems, 0);
    assert_ok(vnx_agent_plugin_param(duo->a, "BROKEN", 0, &param, e));
    assert_null(param.key);
    assert_int_equal(
        vnx_agent_create_backend(duo->a, "BROKEN", NULL, 0, &error),
        VNX_ERR_NOT_FOUND);
    assert_non_null(strstr(error.cause, "BROKEN"));
}

static void
test_nixl_engine_backends_are_created_once_with_defaults(void **state)
{
    duo_t *duo = *state;
    vnx_param_t given = {"num_workers", "4"}, more = {"other", "x"};
    vnx_param_t both[] = {given, more};
    vnx_error_t error;
    vnx_agent_t *agent = make_bare("C");

    assert_ok(vnx_agent_create_backend(agent, "UCX", both, 2, e));
    assert_int_equal(fake->params_given, 3); /* and "devices" */
    assert_int_equal(vnx_agent_create_backend(agent, "UCX", NULL, 0, &error),
                     VNX_ERR_NOT_ALLOWED);
    assert_int_equal(vnx_agent_create_backend(agent, "NOPE", NULL, 0, &error),
                     VNX_ERR_NOT_FOUND);
    assert_non_null(strstr(error.cause, "POSIX"));
    vnx_agent_release(agent);
    assert_string_equal(vnx_agent_engine(duo->a), "nixl");
    assert_true(vnx_agent_may_wait(duo->a));
}

static void
test_nixl_engine_has_a_progress_thread_that_sleeps(void **state)
{
    (void)state;
    assert_true(fake->progress_thread);
    assert_true(fake->progress_delay_us >= 10000);
}

static void
test_nixl_engine_refuses_a_name_with_a_nul(void **state)
{
    vnx_agent_config_t config = {.size = sizeof config, .engine = "nixl"};
    vnx_agent_t *agent = NULL;
    vnx_error_t error;
    (void)state;

    assert_ok(vnx_agent_create("a\0b", 3, &config, &agent, e));
    assert_int_equal(vnx_agent_create_backend(agent, "UCX", NULL, 0, &error),
                     VNX_ERR_NOT_SUPPORTED);
    vnx_agent_release(agent);
}

/* -- Memory -----------------------------------------------------------------
 */

static void
test_nixl_engine_registers_each_range_once(void **state)
{
    duo_t *duo = *state;
    vnx_reg_desc_t rows[] = {region_of(duo->at_a, SIZE),
                             region_of(duo->at_a, SIZE)};

    assert_ok(vnx_agent_register(duo->a, VNX_MEM_DRAM, rows, 2, NULL, e));
    assert_ok(vnx_agent_deregister(duo->a, VNX_MEM_DRAM, rows, 2, NULL, e));
    vnx_xfer_t *xfer = make_read(duo, 64, 1, NULL); /* one use is left */
    run_xfer(duo->a, xfer);
    release(xfer);
    deregister_at(duo->a, duo->at_a, SIZE);
    vnx_agent_close(duo->a);
    assert_int_equal(fake->left_registered, 0);
}

static void
test_nixl_engine_uses_a_backend_that_accepts_the_memory(void **state)
{
    duo_t *duo = *state;
    vnx_reg_desc_t row = region_of(duo->at_a, 512);
    const char *const both[] = {"UCX", "POSIX", NULL};
    vnx_error_t error;

    assert_ok(vnx_agent_create_backend(duo->a, "POSIX", NULL, 0, e));
    strcpy(fake->refuses, "POSIX");
    assert_ok(vnx_agent_register(duo->a, VNX_MEM_DRAM, &row, 1, NULL, e));
    row = region_of(duo->at_a, 1024);
    assert_int_equal(
        vnx_agent_register(duo->a, VNX_MEM_DRAM, &row, 1, both, &error),
        VNX_ERR_BACKEND);
    assert_non_null(strstr(error.cause, "POSIX"));
    deregister_at(duo->a, duo->at_a, 512);
    deregister_at(duo->a, duo->at_a, SIZE);
    vnx_agent_close(duo->a);
    assert_int_equal(fake->left_registered, 0); /* it was undone with UCX */
}

static void
test_nixl_engine_adds_a_backend_to_a_known_region(void **state)
{
    duo_t *duo = *state;
    vnx_reg_desc_t row = region_of(duo->at_a, SIZE);
    const char *const posix[] = {"POSIX", NULL};

    assert_ok(vnx_agent_create_backend(duo->a, "POSIX", NULL, 0, e));
    assert_ok(vnx_agent_register(duo->a, VNX_MEM_DRAM, &row, 1, posix, e));
    assert_ok(vnx_agent_deregister(duo->a, VNX_MEM_DRAM, &row, 1, NULL, e));
    assert_ok(vnx_agent_deregister(duo->a, VNX_MEM_DRAM, &row, 1, NULL, e));
    vnx_agent_close(duo->a);
    assert_int_equal(fake->left_registered, 0);
}

static void
test_nixl_engine_refuses_memory_without_a_backend(void **state)
{
    duo_t *duo = *state;
    vnx_reg_desc_t row = region_of(duo->at_a, 64);
    vnx_error_t error;

    assert_int_equal(
        vnx_agent_register(duo->a, VNX_MEM_OBJ, &row, 1, NULL, &error),
        VNX_ERR_NOT_SUPPORTED);
    assert_non_null(strstr(error.cause, "OBJ"));
    assert_int_equal(
        vnx_agent_register(duo->a, (vnx_mem_t)5, &row, 1, NULL, &error),
        VNX_ERR_INVALID_PARAM);
}

/* -- Transfers --------------------------------------------------------------
 */

static void
test_nixl_engine_moves_bytes(void **state)
{
    duo_t *duo = *state;
    vnx_xfer_t *xfer = make_read(duo, 1024, 64, NULL);

    run_xfer(duo->a, xfer);
    assert_memory_equal(duo->at_a, duo->at_b, SIZE);
    assert_string_equal(vnx_xfer_backend(xfer), "UCX");
    release(xfer);
}

static void
test_nixl_engine_merges_neighbours(void **state)
{
    duo_t *duo = *state;
    vnx_xfer_t *xfer = NULL;
    vnx_dlist_t *local = prepare_rows(duo->a, "", duo->at_a, 16, 4096);
    vnx_dlist_t *remote = prepare_rows(duo->a, "B", duo->at_b, 16, 4096);
    int32_t scattered[] = {5, 6, 7, 100, 101, 9};
    vnx_indices_t some = {scattered, 6, VNX_INDEX_I32};

    xfer = make_xfer(duo->a, VNX_OP_READ, local, remote, 4096, NULL);
    assert_int_equal(fake->pieces, 1);
    release(xfer);
    assert_ok(vnx_xfer_create_prepped(duo->a, VNX_OP_READ, local, some, remote,
                                      some, NULL, 0, false, &xfer, e));
    assert_int_equal(fake->pieces, 3);
    run_xfer(duo->a, xfer);
    assert_memory_equal(duo->at_a + 80, duo->at_b + 80, 48);
    assert_memory_equal(duo->at_a + 1600, duo->at_b + 1600, 32);
    assert_memory_equal(duo->at_a + 144, duo->at_b + 144, 16);
    assert_int_equal(duo->at_a[128], 0);
    release(xfer);
    assert_ok(vnx_xfer_create_prepped(duo->a, VNX_OP_READ, local, all_rows(40),
                                      remote, all_rows(40), NULL, 0, true,
                                      &xfer, e));
    assert_int_equal(fake->pieces, 40);
    release(xfer);
    vnx_dlist_release(local);
    vnx_dlist_release(remote);
}

/* The library finds a piece in one region or not at all. */
static void
test_nixl_engine_merges_within_regions_only(void **state)
{
    duo_t *duo = *state;
    unsigned char *halves = calloc(2, 4096);

    register_at(duo->a, halves, 4096);
    register_at(duo->a, halves + 4096, 4096);
    vnx_dlist_t *local = prepare_rows(duo->a, "", halves, 64, 128);
    vnx_dlist_t *remote = prepare_rows(duo->a, "B", duo->at_b, 64, 128);
    vnx_xfer_t *xfer =
        make_xfer(duo->a, VNX_OP_READ, local, remote, 128, NULL);
    assert_int_equal(fake->pieces, 2);
    run_xfer(duo->a, xfer);
    assert_memory_equal(halves, duo->at_b, 8192);
    release(xfer);
    vnx_dlist_release(local);
    vnx_dlist_release(remote);
    vnx_agent_close(duo->a);
    free(halves);
}

static void
test_nixl_engine_refuses_pairs_like_native(void **state)
{
    duo_t *duo = *state;
    vnx_dlist_t *local = prepare_rows(duo->a, "", duo->at_a, 64, 4);
    vnx_dlist_t *remote = prepare_rows(duo->a, "B", duo->at_b, 32, 4);
    int64_t bad[] = {0, 4}, negative[] = {0, -1};
    vnx_indices_t two = all_rows(2);
    vnx_xfer_t *xfer = NULL;
    vnx_error_t error;
    const struct {
        vnx_indices_t mine, theirs;
        const char *words;
        int64_t row;
    } cases[] = {
        {{bad, 2, VNX_INDEX_I64}, two, "local index 4", 1},
        {two, {negative, 2, VNX_INDEX_I64}, "remote index -1", 1},
        {two, two, "64 bytes, the remote one 32", 0},
        {two, all_rows(1), "2 local indices, but 1", -1},
        {all_rows(0), all_rows(0), "no indices", -1},
    };

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(vnx_xfer_create_prepped(
                             duo->a, VNX_OP_READ, local, cases[i].mine, remote,
                             cases[i].theirs, NULL, 0, false, &xfer, &error),
                         VNX_ERR_INVALID_PARAM);
        assert_non_null(strstr(error.cause, cases[i].words));
        assert_int_equal(error.row, cases[i].row);
    }
    vnx_dlist_release(local);
    vnx_dlist_release(remote);
}

static void
test_nixl_engine_ends_transfers_without_being_polled(void **state)
{
    duo_t *duo = *state;
    vnx_xfer_t *xfer = make_read(duo, 1024, 2, "landed");

    fake->polls = 1000000;
    assert_int_equal(vnx_xfer_post(xfer, NULL, 0, NULL), VNX_IN_PROG);
    fake->polls = 0;
    assert_int_equal(vnx_xfer_status(xfer, NULL), VNX_IN_PROG);
    vnx_xfer_abandon(xfer); /* ends by itself; close() waits for it */
    xfer = make_read(duo, 512, 1, "landed");
    fake->polls = 100;
    run_xfer(duo->a, xfer);
    vnx_notif_t *notif = await_notif(duo->b);
    assert_memory_equal(notif->message, "landed", 6);
    assert_memory_equal(notif->sender, "A", 1);
    vnx_notif_free(notif);
    release(xfer);
    fake->fail_status = -2; /* lets the first one end */
    vnx_agent_close(duo->a);
}

/* A READ of scattered pieces, of 64 bytes each. */
static vnx_xfer_t *
make_pieces(duo_t *duo, const char *peer, unsigned char *from, size_t count)
{
    vnx_desc_t here[256], there[256];

    for (size_t i = 0; i < count; i++) {
        here[i] = desc_at(duo->at_a + i * 128, 64);
        there[i] = desc_at(from + i * 128, 64);
    }
    vnx_dlist_t *local = prepare_descs(duo->a, "", here, count);
    vnx_dlist_t *remote = prepare_descs(duo->a, peer, there, count);
    vnx_xfer_t *xfer =
        make_xfer(duo->a, VNX_OP_READ, local, remote, count, "all");
    vnx_dlist_release(local);
    vnx_dlist_release(remote);
    return xfer;
}

static void
test_nixl_engine_posts_large_transfers_on_a_copy_thread(void **state)
{
    duo_t *duo = *state;
    vnx_xfer_t *xfer = make_pieces(duo, "B", duo->at_b, 128);

    for (int i = 0; i < 20; i++) {
        run_xfer(duo->a, xfer);
        vnx_notif_free(await_notif(duo->b));
    }
    assert_memory_equal(duo->at_a + 127 * 128, duo->at_b + 127 * 128, 64);
    release(xfer);
}

static bool
posted_here(void)
{
    return fake->poster == (uintptr_t)pthread_self();
}

static void
test_nixl_engine_quick_posts_tell_nothing_about_larger_ones(void **state)
{
    duo_t *duo = *state;
    vnx_xfer_t *small = make_pieces(duo, "B", duo->at_b, 100);
    vnx_xfer_t *large = make_pieces(duo, "B", duo->at_b, 256);

    for (int i = 0; i < 20; i++) {
        run_xfer(duo->a, small);
    }
    run_xfer(duo->a, large);
    assert_false(posted_here());
    release(small);
    release(large);
}

/* All storage is reached through the agent itself. */
static void
test_nixl_engine_quick_posts_to_itself_tell_nothing(void **state)
{
    duo_t *duo = *state;
    vnx_xfer_t *xfer = make_pieces(duo, "A", duo->at_a + 64, 128);

    for (int i = 0; i < 20; i++) {
        run_xfer(duo->a, xfer);
        assert_false(posted_here());
    }
    release(xfer);
}

static void
test_nixl_engine_keeps_the_previous_notification(void **state)
{
    duo_t *duo = *state;
    vnx_xfer_t *xfer = make_read(duo, 64, 1, "first");
    static const char *const expected[] = {"first", "first", "again", "again"};

    for (int i = 0; i < 4; i++) {
        assert_ok(vnx_xfer_post(xfer, i == 2 ? "again" : NULL, 5, e));
        vnx_notif_t *notif = await_notif(duo->b);
        assert_int_equal(notif->message_len, 5);
        assert_memory_equal(notif->message, expected[i], 5);
        vnx_notif_free(notif);
    }
    release(xfer);
}

/* Wait for notifications with these texts, and no others. */
static void
expect_notifs(vnx_agent_t *agent, const char *const *texts, size_t count)
{
    size_t found = 0;

    while (found < count) {
        vnx_notif_t *chain = await_notif(agent);
        for (const vnx_notif_t *at = chain; at != NULL; at = at->next) {
            assert_true(found < count);
            assert_int_equal(at->message_len, strlen(texts[found]));
            assert_memory_equal(at->message, texts[found], at->message_len);
            found++;
        }
        vnx_notif_free(chain);
    }
}

static void
test_nixl_engine_a_post_may_remove_the_notification(void **state)
{
    static const char *const expected[] = {"a", "b", "last"};
    duo_t *duo = *state;
    vnx_xfer_t *xfer = make_read(duo, 64, 1, NULL);

    assert_ok(vnx_xfer_post(xfer, "a", 1, e));
    assert_ok(vnx_xfer_post(xfer, VNX_NO_NOTIF, 0, e));
    assert_ok(vnx_xfer_post(xfer, NULL, 0, e));
    assert_ok(vnx_xfer_post(xfer, "b", 1, e));
    assert_ok(vnx_xfer_post(xfer, VNX_NO_NOTIF, 0, e));
    assert_ok(vnx_agent_send_notif(duo->a, "B", 1, "last", 4, e));
    expect_notifs(duo->b, expected, 3);
    release(xfer);
}

static void
test_nixl_engine_notifies_itself_of_its_own_transfers(void **state)
{
    duo_t *duo = *state;
    vnx_dlist_t *local = prepare_rows(duo->a, "", duo->at_a, 64, 2);
    vnx_dlist_t *remote = prepare_rows(duo->a, "A", duo->at_a + 512, 64, 2);
    vnx_xfer_t *xfer =
        make_xfer(duo->a, VNX_OP_WRITE, local, remote, 2, "mine");

    run_xfer(duo->a, xfer);
    vnx_notif_t *notif = await_notif(duo->a);
    assert_memory_equal(notif->sender, "A", 1);
    assert_memory_equal(notif->message, "mine", 4);
    vnx_notif_free(notif);
    release(xfer);
    vnx_dlist_release(local);
    vnx_dlist_release(remote);
}

static void
test_nixl_engine_names_backends_without_common_regions(void **state)
{
    duo_t *duo = *state;
    const char *const posix[] = {"POSIX", NULL};
    unsigned char *only = calloc(1, 64);
    vnx_reg_desc_t row = region_of(only, 64);
    vnx_desc_t here = desc_at(only, 64), there = desc_at(duo->at_b, 64);
    vnx_xfer_t *xfer = NULL;
    vnx_error_t error;

    assert_ok(vnx_agent_create_backend(duo->a, "POSIX", NULL, 0, e));
    assert_ok(vnx_agent_register(duo->a, VNX_MEM_DRAM, &row, 1, posix, e));
    assert_int_equal(vnx_xfer_create(duo->a, VNX_OP_READ, VNX_MEM_DRAM, &here,
                                     1, VNX_MEM_DRAM, &there, 1, "B", 1, NULL,
                                     0, NULL, &xfer, &error),
                     VNX_ERR_NOT_FOUND);
    assert_non_null(strstr(error.cause, "POSIX"));
    assert_non_null(strstr(error.cause, "UCX"));
    vnx_agent_close(duo->a);
    free(only);
}

static void
test_nixl_engine_cannot_stop_a_request_in_the_library(void **state)
{
    duo_t *duo = *state;
    vnx_xfer_t *xfer = make_read(duo, 64, 1, NULL);
    vnx_error_t error;
    bool stopped = true;

    fake->hangs = true;
    assert_int_equal(vnx_xfer_post(xfer, NULL, 0, NULL), VNX_IN_PROG);
    assert_int_equal(vnx_xfer_cancel(xfer, &stopped, &error),
                     VNX_ERR_NOT_SUPPORTED);
    assert_int_equal(vnx_xfer_release(xfer, &error), VNX_ERR_NOT_SUPPORTED);
    fake->hangs = false;
    assert_ok(vnx_agent_wait(duo->a, &xfer, 1, 0, vnx_test_limit(30), e));
    release(xfer);
    assert_int_equal(fake->released_active, 0);
}

/* -- Waiting for a copy thread ----------------------------------------------
 */

static void
test_nixl_engine_stops_a_post_that_waits_for_a_copy_thread(void **state)
{
    duo_t *duo = *state;
    vnx_xfer_t *xfer = make_pieces(duo, "B", duo->at_b, 128);
    pool_gate_t *gate = gate_shut();
    bool stopped = false;
    vnx_error_t error;

    for (int i = 0; i < 3; i++) {
        assert_int_equal(vnx_xfer_post(xfer, NULL, 0, NULL), VNX_IN_PROG);
        assert_ok(vnx_xfer_cancel(xfer, &stopped, e));
        assert_true(stopped);
        assert_int_equal(vnx_xfer_state(xfer), VNX_XFER_CANCELLED);
    }
    assert_int_equal(vnx_xfer_post_within(xfer, NULL, 0, 1000000, NULL),
                     VNX_IN_PROG);
    assert_int_equal(
        vnx_agent_wait(duo->a, &xfer, 1, 0, vnx_test_limit(30), &error),
        VNX_ERR_TIMEOUT);
    assert_non_null(strstr(error.cause, "was stopped"));

    assert_int_equal(vnx_xfer_post(xfer, NULL, 0, NULL), VNX_IN_PROG);
    gate_open(gate);
    assert_ok(vnx_agent_wait(duo->a, &xfer, 1, 0, vnx_test_limit(30), e));
    assert_ok(vnx_xfer_status(xfer, e));
    release(xfer);
}

static void
test_nixl_engine_releases_a_post_that_waits_for_a_copy_thread(void **state)
{
    duo_t *duo = *state;
    vnx_xfer_t *xfer = make_pieces(duo, "B", duo->at_b, 128);
    pool_gate_t *gate = gate_shut();

    assert_int_equal(vnx_xfer_post(xfer, NULL, 0, NULL), VNX_IN_PROG);
    release(xfer);
    gate_open(gate);
}

/* vnxi_pool_settle(), for which deregistering memory of other agents waits,
 * promises to be short. */
static void
test_nixl_engine_posts_of_copy_threads_delay_no_settling(void **state)
{
    duo_t *duo = *state;
    vnx_xfer_t *xfer = make_pieces(duo, "B", duo->at_b, 128);

    fake->holds = true;
    assert_int_equal(vnx_xfer_post(xfer, NULL, 0, NULL), VNX_IN_PROG);
    while (fake->waiting == 0) {
        usleep(1000);
    }
    vnxi_pool_settle(); /* the fake gives up after a time */
    assert_int_equal(fake->gave_up, 0);
    fake->holds = false;
    assert_ok(vnx_agent_wait(duo->a, &xfer, 1, 0, vnx_test_limit(30), e));
    release(xfer);
}

/* -- Memory in use ----------------------------------------------------------
 */

static void
test_nixl_engine_deregisters_after_transfers_in_flight(void **state)
{
    duo_t *duo = *state;
    vnx_xfer_t *xfer = make_read(duo, 64, 1, NULL);
    vnx_error_t error;

    fake->hangs = true;
    post_to_hang(xfer);
    vnx_xfer_abandon(xfer);
    xfer = make_read(duo, 64, 1, NULL);
    fake->lander = (uintptr_t)pthread_self();
    fake->lands = true;
    deregister_at(duo->a, duo->at_a, SIZE);
    assert_int_equal(stats_of(duo->a).xfers_done, 1);
    assert_int_equal(vnx_xfer_post(xfer, NULL, 0, &error), VNX_ERR_NOT_FOUND);
    assert_non_null(strstr(error.cause, "deregistered"));
    assert_int_equal(stats_of(duo->a).xfers_failed, 1);
    release(xfer);
}

/* -- By index ---------------------------------------------------------------
 */

#define MANY 8192u /* rows of 8 bytes: all of SIZE */

typedef struct scattered {
    vnx_dlist_t *local, *remote;
    uint32_t order[2][MANY];
} scattered_t;

/* Rows of 8 bytes, and an order in which few follow each other. */
static scattered_t *
scatter(duo_t *duo, bool is_regular)
{
    scattered_t *made = malloc(sizeof *made);
    vnx_desc_t *rows = malloc(MANY * sizeof *rows);

    for (size_t side = 0; side < 2; side++) {
        for (uint32_t i = 0; i < MANY; i++) {
            uint32_t place = is_regular ? i : i * 2897 % MANY;
            made->order[side][i] = i * (side == 0 ? 5 : 11) % MANY;
            rows[i] =
                desc_at((side == 0 ? duo->at_a : duo->at_b) + place * 8, 8);
        }
        *(side == 0 ? &made->local : &made->remote) =
            prepare_descs(duo->a, side == 0 ? "" : "B", rows, MANY);
    }
    free(rows);
    return made;
}

static void
scattered_free(scattered_t *made)
{
    vnx_dlist_release(made->local);
    vnx_dlist_release(made->remote);
    free(made);
}

static vnx_indices_t
first_of(const uint32_t *order, size_t count)
{
    return (vnx_indices_t){order, count, VNX_INDEX_U32};
}

static vnx_status_t
make_scattered(duo_t *duo, const scattered_t *made, size_t count,
               vnx_xfer_t **xfer_p, vnx_error_t *error)
{
    return vnx_xfer_create_prepped(
        duo->a, VNX_OP_READ, made->local, first_of(made->order[0], count),
        made->remote, first_of(made->order[1], count), NULL, 0, false, xfer_p,
        error);
}

static void
check_scattered(const duo_t *duo, const scattered_t *made, bool is_regular)
{
    for (uint32_t i = 0; i < MANY; i++) {
        uint32_t l = made->order[0][i], r = made->order[1][i];
        l = is_regular ? l : l * 2897 % MANY;
        r = is_regular ? r : r * 2897 % MANY;
        assert_memory_equal(duo->at_a + l * 8, duo->at_b + r * 8, 8);
    }
}

static void
test_nixl_engine_uses_indices_for_many_scattered_rows(void **state)
{
    duo_t *duo = *state;
    scattered_t *made = scatter(duo, true);
    vnx_xfer_telemetry_t told;
    vnx_xfer_t *xfer;

    for (int i = 0; i < 2; i++) {
        assert_ok(make_scattered(duo, made, MANY, &xfer, e));
        memset(duo->at_a, 0, SIZE);
        run_xfer(duo->a, xfer);
        check_scattered(duo, made, true);
        assert_ok(vnx_xfer_telemetry(xfer, &told, e));
        assert_int_equal(told.total_bytes, SIZE);
        assert_int_equal(told.desc_count, MANY);
        assert_int_equal(told.merged_count, MANY);
        assert_string_equal(vnx_xfer_backend(xfer), "UCX");
        release(xfer);
    }
    assert_int_equal(fake->prepared, 2); /* once a list */
    assert_int_equal(fake->indexed, 2);
    assert_ok(make_scattered(duo, made, 100, &xfer, e));
    assert_int_equal(fake->indexed, 2); /* that is not worth it */
    scattered_free(made);
    release(xfer);
}

static void
test_nixl_engine_uses_pieces_for_irregular_rows(void **state)
{
    duo_t *duo = *state;
    scattered_t *made = scatter(duo, false);
    vnx_xfer_t *xfer;

    for (int i = 0; i < 2; i++) {
        assert_ok(make_scattered(duo, made, MANY, &xfer, e));
        memset(duo->at_a, 0, SIZE);
        run_xfer(duo->a, xfer);
        check_scattered(duo, made, false);
        assert_int_equal(fake->pieces, MANY);
        release(xfer);
    }
    assert_int_equal(fake->prepared, 0);
    scattered_free(made);
}

static void
test_nixl_engine_merges_rows_in_order(void **state)
{
    duo_t *duo = *state;
    scattered_t *made = scatter(duo, true);
    vnx_xfer_t *xfer;

    for (uint32_t i = 0; i < MANY; i++) {
        made->order[0][i] = made->order[1][i] = i;
    }
    assert_ok(make_scattered(duo, made, MANY, &xfer, e));
    assert_int_equal(fake->pieces, 1);
    assert_int_equal(fake->prepared, 0);
    release(xfer);
    scattered_free(made);
}

static void
test_nixl_engine_falls_back_to_pieces(void **state)
{
    duo_t *duo = *state;
    vnx_error_t error;
    vnx_xfer_t *xfer, *none = NULL;

    for (int round = 0; round < 3; round++) {
        scattered_t *made = scatter(duo, true);
        fake->fail_prep = round == 0 ? -2 : 0;
        fake->fail_make = round == 1 ? -2 : 0;
        fake->pieces = 0;
        if (round == 2) {
            made->order[1][MANY - 1] = MANY;
            assert_int_equal(make_scattered(duo, made, MANY, &none, &error),
                             VNX_ERR_INVALID_PARAM);
            assert_int_equal(error.row, MANY - 1);
        } else {
            assert_ok(make_scattered(duo, made, MANY, &xfer, e));
            assert_int_equal(fake->pieces, MANY);
            run_xfer(duo->a, xfer);
            check_scattered(duo, made, true);
            release(xfer);
        }
        scattered_free(made);
    }
    assert_int_equal(fake->indexed, 0);
}

/* The agent or the list may be released first. */
static void
test_nixl_engine_lists_outlive_the_agent(void **state)
{
    duo_t *duo = *state;
    scattered_t *made = scatter(duo, true);
    vnx_xfer_t *xfer;
    vnx_error_t error;

    assert_ok(make_scattered(duo, made, MANY, &xfer, e));
    assert_int_equal(fake->prepared, 2);
    deregister_at(duo->a, duo->at_a, SIZE);
    assert_int_equal(vnx_xfer_post(xfer, NULL, 0, &error), VNX_ERR_NOT_FOUND);
    vnx_agent_close(duo->a);
    release(xfer);
    scattered_free(made);
}

/* -- What fails -------------------------------------------------------------
 */

static void
test_nixl_engine_failures_have_a_cause(void **state)
{
    duo_t *duo = *state;
    vnx_xfer_t *xfer = make_read(duo, 64, 1, NULL), *none = NULL;
    vnx_desc_t here = desc_at(duo->at_a, 64), there = desc_at(duo->at_b, 64);
    vnx_error_t error;

    fake->fail_create = -2;
    assert_int_equal(vnx_xfer_create(duo->a, VNX_OP_READ, VNX_MEM_DRAM, &here,
                                     1, VNX_MEM_DRAM, &there, 1, "B", 1, NULL,
                                     0, NULL, &none, &error),
                     VNX_ERR_BACKEND);
    assert_string_equal(error.peer, "B");
    assert_null(none);
    fake->fail_post = -1;
    assert_int_equal(vnx_xfer_post(xfer, NULL, 0, &error),
                     VNX_ERR_INVALID_PARAM);
    fake->fail_post = 0;
    run_xfer(duo->a, xfer); /* it may be posted again */
    release(xfer);
}

static void
test_nixl_engine_posts_a_failed_transfer_once_more(void **state)
{
    duo_t *duo = *state;
    vnx_xfer_t *xfer = make_read(duo, 64, 1, "read");

    for (int polls = 0; polls <= 400; polls += 400) {
        fake->polls = polls; /* done at once, or by the poller */
        fake->fail_once = -2;
        run_xfer(duo->a, xfer);
        assert_int_equal(fake->fail_once, 0);
        assert_memory_equal(duo->at_a, duo->at_b, 64);
        memset(duo->at_a, 0, 64);
        vnx_notif_free(await_notif(duo->b));
    }
    assert_int_equal(stats_of(duo->a).xfers_failed, 0);
    release(xfer);
}

static void
test_nixl_engine_loses_a_peer_whose_transfer_fails_twice(void **state)
{
    duo_t *duo = *state;
    vnx_xfer_t *xfer = make_read(duo, 64, 1, NULL);
    vnx_error_t error;

    fake->fail_status = -2;
    assert_int_equal(vnx_xfer_post(xfer, NULL, 0, &error),
                     VNX_ERR_REMOTE_DISCONNECT);
    assert_string_equal(error.peer, "B");
    fake->fail_status = 0;
    assert_int_equal(vnx_xfer_post(xfer, NULL, 0, &error),
                     VNX_ERR_REMOTE_DISCONNECT);
    assert_int_equal(stats_of(duo->a).peers_lost, 1);
    release(xfer);
    load_peer(duo->a, duo->b);
    xfer = make_read(duo, 64, 1, NULL);
    run_xfer(duo->a, xfer);
    release(xfer);
}

static void
test_nixl_engine_loses_a_peer_that_the_library_forgot(void **state)
{
    duo_t *duo = *state;
    vnx_xfer_t *xfer = make_read(duo, 64, 1, NULL);
    vnx_error_t error;

    fake->drops_peers = true;
    fake->fail_post = -2;
    assert_int_equal(vnx_xfer_post(xfer, NULL, 0, &error),
                     VNX_ERR_REMOTE_DISCONNECT);
    fake->fail_post = 0;
    assert_int_equal(vnx_xfer_post(xfer, NULL, 0, &error),
                     VNX_ERR_REMOTE_DISCONNECT);
    assert_int_equal(stats_of(duo->a).peers_lost, 1);
    assert_int_equal(vnx_agent_send_notif(duo->a, "B", 1, "x", 1, &error),
                     VNX_ERR_REMOTE_DISCONNECT);
    assert_false(vnx_agent_check_peer(duo->a, "B", 1, VNX_MEM_DRAM, NULL, 0));
    fake->drops_peers = false;
    load_peer(duo->a, duo->b); /* it is there again */
    assert_true(vnx_agent_check_peer(duo->a, "B", 1, VNX_MEM_DRAM, NULL, 0));
    release(xfer);
}

static void
test_nixl_engine_a_broken_notification_means_a_lost_peer(void **state)
{
    duo_t *duo = *state;
    vnx_error_t error;

    fake->fail_notif = -2;
    assert_int_equal(vnx_agent_send_notif(duo->a, "B", 1, "x", 1, &error),
                     VNX_ERR_REMOTE_DISCONNECT);
    assert_int_equal(stats_of(duo->a).peers_lost, 1);
}

static void
test_nixl_engine_estimates_if_the_backend_does(void **state)
{
    duo_t *duo = *state;
    vnx_xfer_t *xfer = make_read(duo, 64, 1, NULL);
    int64_t duration = -1, margin = -1;

    vnx_xfer_estimate(xfer, &duration, &margin);
    assert_int_equal(duration, 7);
    assert_int_equal(margin, 3);
    fake->fail_estimate = -2;
    vnx_xfer_estimate(xfer, &duration, &margin);
    assert_int_equal(duration, 0);
    assert_int_equal(margin, 0);
    release(xfer);
}

/* The library would use what it has freed: it knows peers by name only. */
static void
test_nixl_engine_estimates_only_what_can_be_posted(void **state)
{
    duo_t *duo = *state;
    vnx_xfer_t *xfer = make_read(duo, 64, 1, NULL);
    int64_t duration = -1, margin = -1;

    fake->key = 7;
    load_peer(duo->a, duo->b); /* another generation */
    vnx_xfer_estimate(xfer, &duration, &margin);
    assert_int_equal(duration, 0);
    release(xfer);
    xfer = make_read(duo, 64, 1, NULL);
    deregister_at(duo->a, duo->at_a, SIZE);
    vnx_xfer_estimate(xfer, &duration, &margin);
    assert_int_equal(duration, 0);
    release(xfer);
}

/* -- Two threads ------------------------------------------------------------
 */

/* A call on another thread, and what was seen when it returned. */
typedef struct call {
    const duo_t *duo;
    vnx_xfer_t *xfer;
    int64_t duration;
    vnx_status_t status;
    bool has_landed;
    atomic_bool is_back;
} call_t;

static void *
remove_b(void *context)
{
    call_t *call = context;

    vnx_agent_remove_peer(call->duo->a, "B", 1, NULL);
    return NULL;
}

static void *
estimate(void *context)
{
    call_t *call = context;
    int64_t margin;

    vnx_xfer_estimate(call->xfer, &call->duration, &margin);
    call->is_back = true;
    return NULL;
}

static pthread_t
start(void *(*run)(void *context), call_t *call)
{
    pthread_t thread;

    assert_int_equal(pthread_create(&thread, NULL, run, call), 0);
    return thread;
}

static void
pause_shortly(void)
{
    const struct timespec pause = {.tv_nsec = 1000000};
    nanosleep(&pause, NULL);
}

/* Give a call that returns too early the time to do so. */
static void
wait_for_early(const call_t *call)
{
    for (int i = 0; i < 100 && !call->is_back; i++) {
        pause_shortly();
    }
}

static void
test_nixl_engine_estimates_while_the_peer_is_removed(void **state)
{
    duo_t *duo = *state;
    call_t call = {.duo = duo, .xfer = make_read(duo, 64, 1, NULL)};

    fake->hangs = true;
    post_to_hang(call.xfer);
    fake->blocks = true;
    pthread_t remover = start(remove_b, &call);
    while (fake->released_active == 0) {
        pause_shortly();
    }
    pthread_t estimator = start(estimate, &call);
    wait_for_early(&call);
    fake->blocks = false;
    pthread_join(estimator, NULL);
    pthread_join(remover, NULL);
    assert_int_equal(fake->used_released, 0);
    assert_int_equal(call.duration, 0);
    release(call.xfer);
}

static void *
close_a(void *context)
{
    call_t *call = context;

    fake->lander = (uintptr_t)pthread_self();
    vnx_agent_close(call->duo->a);
    return NULL;
}

static void *
deregister_a(void *context)
{
    call_t *call = context;
    vnx_reg_desc_t row = region_of(call->duo->at_a, SIZE);

    call->status =
        vnx_agent_deregister(call->duo->a, VNX_MEM_DRAM, &row, 1, NULL, NULL);
    call->has_landed = call->duo->at_a[0] == call->duo->at_b[0];
    call->is_back = true;
    return NULL;
}

static bool
is_registered(const duo_t *duo)
{
    vnx_desc_t row = desc_at(duo->at_a, 64);
    vnx_dlist_t *list = NULL;
    bool is_there = vnx_dlist_create(duo->a, "", 0, VNX_MEM_DRAM, &row, 1,
                                     NULL, &list, NULL) == VNX_OK;
    vnx_dlist_release(list);
    return is_there;
}

/* The caller may free the memory next. */
static void
test_nixl_engine_deregisters_after_transfers_while_it_closes(void **state)
{
    duo_t *duo = *state;
    call_t call = {.duo = duo, .xfer = make_read(duo, 64, 1, NULL)};

    duo->at_a[0] = (unsigned char)~duo->at_b[0];
    fake->lander = UINTPTR_MAX; /* no thread, until close_a() */
    fake->polls = 50;
    post_to_hang(call.xfer);
    uint64_t begun = vnxi_clock_ns();
    pthread_t deregisterer = start(deregister_a, &call);
    while (is_registered(duo)) {
        pause_shortly();
    }
    pthread_t closer = start(close_a, &call);
    pthread_join(deregisterer, NULL);
    /* It gives up after 5 s, which may pass on a busy machine. */
    bool gave_up = vnxi_clock_ns() - begun >= SECONDS(5);
    pthread_join(closer, NULL);
    assert_int_equal(call.status, VNX_OK);
    assert_true(call.has_landed || gave_up);
    assert_ok(vnx_xfer_status(call.xfer, e));
    release(call.xfer);
}

/* -- Peers ------------------------------------------------------------------
 */

static void
test_nixl_engine_a_restarted_peer_is_a_new_generation(void **state)
{
    duo_t *duo = *state;
    vnx_xfer_t *xfer = make_read(duo, 64, 1, NULL);
    vnx_error_t error;

    vnx_agent_release(duo->b);
    duo->b = make_nixl("B");
    register_at(duo->b, duo->at_b, SIZE);
    load_peer(duo->a, duo->b);
    assert_int_equal(vnx_xfer_post(xfer, NULL, 0, &error),
                     VNX_ERR_REMOTE_DISCONNECT);
    assert_non_null(strstr(error.cause, "another instance"));
    release(xfer);
    xfer = make_read(duo, 64, 1, NULL);
    run_xfer(duo->a, xfer);
    release(xfer);
}

static void
test_nixl_engine_another_key_is_another_generation(void **state)
{
    duo_t *duo = *state;
    vnx_xfer_t *xfer = make_read(duo, 64, 1, NULL);
    vnx_error_t error;

    load_peer(duo->a, duo->b); /* nothing new: lists go on */
    run_xfer(duo->a, xfer);
    fake->key = 7;
    load_peer(duo->a, duo->b);
    assert_int_equal(vnx_xfer_post(xfer, NULL, 0, &error),
                     VNX_ERR_REMOTE_DISCONNECT);
    assert_non_null(strstr(error.cause, "registered again"));
    release(xfer);
}

/* Without connection info the library could not reach the new generation. */
static void
test_nixl_engine_another_key_needs_the_whole_metadata(void **state)
{
    duo_t *duo = *state;
    const vnx_reg_desc_t row = {.desc = desc_at(duo->at_b, SIZE)};
    vnx_xfer_t *xfer = make_read(duo, 64, 1, NULL);
    vnx_bytes_t blob, name;
    vnx_error_t error;

    fake->key = 7;
    assert_ok(vnx_agent_partial_metadata(duo->b, VNX_MEM_DRAM, &row, 1, false,
                                         NULL, &blob, e));
    assert_int_equal(
        vnx_agent_load_metadata(duo->a, blob.data, blob.len, &name, &error),
        VNX_ERR_NOT_FOUND);
    assert_non_null(strstr(error.cause, "whole metadata"));
    free(blob.data);
    run_xfer(duo->a, xfer); /* the peer is as it was */
    release(xfer);
    load_peer(duo->a, duo->b);
    xfer = make_read(duo, 64, 1, NULL);
    run_xfer(duo->a, xfer);
    release(xfer);
}

static void
test_nixl_engine_loading_adds_regions(void **state)
{
    duo_t *duo = *state;
    unsigned char *more = calloc(1, 4096);
    vnx_desc_t desc = desc_at(more, 4096);
    vnx_xfer_t *xfer = make_read(duo, 64, 1, NULL);

    assert_false(vnx_agent_check_peer(duo->a, "B", 1, VNX_MEM_DRAM, &desc, 1));
    register_at(duo->b, more, 4096);
    load_peer(duo->a, duo->b);
    assert_true(vnx_agent_check_peer(duo->a, "B", 1, VNX_MEM_DRAM, &desc, 1));
    run_xfer(duo->a, xfer);
    release(xfer);
    vnx_agent_close(duo->b);
    free(more);
}

static void
test_nixl_engine_a_failed_load_leaves_no_peer(void **state)
{
    duo_t *duo = *state;
    vnx_agent_t *c = make_nixl("C");
    vnx_bytes_t blob, name;
    vnx_error_t error;

    assert_ok(vnx_agent_metadata(c, &blob, e));
    fake->fail_load = -2;
    assert_int_equal(
        vnx_agent_load_metadata(duo->a, blob.data, blob.len, &name, &error),
        VNX_ERR_BACKEND);
    assert_string_equal(error.peer, "C");
    assert_non_null(strstr(error.cause, "loading the metadata"));
    assert_false(vnx_agent_check_peer(duo->a, "C", 1, VNX_MEM_DRAM, NULL, 0));
    vnx_agent_stats_t stats;
    vnx_agent_stats(duo->a, &stats);
    assert_int_equal(stats.peers_lost, 0);
    fake->fail_load = 0;
    assert_int_equal(vnx_agent_load_metadata(duo->a, blob.data, blob.len - 1,
                                             &name, &error),
                     VNX_ERR_MISMATCH);
    free(blob.data);
    load_peer(duo->a, c);
    vnx_agent_release(c);
}

/* After that, deregistering the memory would not wait for them. */
static void
test_nixl_engine_closing_a_peer_lets_transfers_land(void **state)
{
    duo_t *duo = *state;

    fake->lander = (uintptr_t)pthread_self();
    for (int round = 0; round < 2; round++) {
        vnx_xfer_t *xfer = make_read(duo, 64, 1, NULL);
        memset(duo->at_a, 0, 64);
        fake->hangs = true;
        fake->lands = false;
        post_to_hang(xfer);
        fake->lands = true;
        if (round == 0) {
            fake->key = 7;
            load_peer(duo->a, duo->b); /* another generation */
        } else {
            assert_ok(vnx_agent_remove_peer(duo->a, "B", 1, e));
        }
        assert_int_equal(fake->released_active, 0);
        assert_memory_equal(duo->at_a, duo->at_b, 64);
        assert_ok(vnx_xfer_status(xfer, e));
        release(xfer);
    }
}

static void
test_nixl_engine_removal_fails_transfers_in_flight(void **state)
{
    duo_t *duo = *state;
    vnx_xfer_t *xfer = make_read(duo, 64, 1, NULL);
    vnx_error_t error;

    fake->hangs = true;
    post_to_hang(xfer);
    assert_ok(vnx_agent_remove_peer(duo->a, "B", 1, e));
    assert_int_equal(vnx_xfer_status(xfer, &error), VNX_ERR_REMOTE_DISCONNECT);
    assert_string_equal(error.peer, "B");
    assert_int_equal(fake->released_active, 1);
    release(xfer);
    deregister_at(duo->a, duo->at_a, SIZE);
    vnx_agent_close(duo->a);
    assert_int_equal(fake->left_registered, 1); /* bytes may still arrive */
}

/* Nothing arrives from it any more, so nothing is waited for or kept. */
static void
test_nixl_engine_removal_of_a_broken_peer_does_not_wait(void **state)
{
    duo_t *duo = *state;
    vnx_xfer_t *xfer = make_read(duo, 64, 1, NULL);

    fake->hangs = true;
    post_to_hang(xfer);
    fake->lander = (uintptr_t)pthread_self();
    fake->lands = true;
    fake->drops_peers = true;
    assert_ok(vnx_agent_remove_peer(duo->a, "B", 1, e));
    assert_int_equal(vnx_xfer_status(xfer, NULL), VNX_ERR_REMOTE_DISCONNECT);
    assert_int_equal(fake->released_active, 1);
    release(xfer);
    deregister_at(duo->a, duo->at_a, SIZE);
    vnx_agent_close(duo->a);
    assert_int_equal(fake->left_registered, 0);
}

static void
test_nixl_engine_cuts_partial_metadata(void **state)
{
    duo_t *duo = *state;
    unsigned char *more = calloc(1, 4096);
    vnx_reg_desc_t wanted = region_of(more, 4096);
    vnx_desc_t new = desc_at(more, 64), old = desc_at(duo->at_b, 64);
    vnx_bytes_t blob, name;
    vnx_error_t error;
    vnx_agent_t *c = make_nixl("C");

    register_at(duo->b, more, 4096);
    assert_ok(vnx_agent_partial_metadata(duo->b, VNX_MEM_DRAM, &wanted, 1,
                                         true, NULL, &blob, e));
    assert_ok(vnx_agent_load_metadata(c, blob.data, blob.len, &name, e));
    assert_true(vnx_agent_check_peer(c, "B", 1, VNX_MEM_DRAM, &new, 1));
    assert_false(vnx_agent_check_peer(c, "B", 1, VNX_MEM_DRAM, &old, 1));
    free(blob.data);
    free(name.data);
    wanted.desc.len = 64;
    assert_int_equal(vnx_agent_partial_metadata(duo->b, VNX_MEM_DRAM, &wanted,
                                                1, true, NULL, &blob, &error),
                     VNX_ERR_NOT_FOUND);
    assert_int_equal(error.row, 0);
    vnx_agent_release(c);
    vnx_agent_close(duo->b);
    free(more);
}

/* -- Notifications ----------------------------------------------------------
 */

static void
test_nixl_engine_notifications_keep_their_order(void **state)
{
    duo_t *duo = *state;
    char text[16];
    int next = 0;

    for (int i = 0; i < 100; i++) {
        int len = snprintf(text, sizeof text, "%d", i);
        assert_ok(vnx_agent_send_notif(duo->a, "B", 1, text, (size_t)len, e));
    }
    while (next < 100) {
        vnx_notif_t *chain = await_notif(duo->b);
        for (vnx_notif_t *at = chain; at != NULL; at = at->next, next++) {
            int len = snprintf(text, sizeof text, "%d", next);
            assert_int_equal(at->message_len, len);
            assert_memory_equal(at->message, text, (size_t)len);
        }
        vnx_notif_free(chain);
    }
}

/* -- Storage ----------------------------------------------------------------
 */

static int
open_file(size_t size)
{
    char path[] = "/tmp/vnx-nixl-test-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    unlink(path);
    assert_int_equal(ftruncate(fd, (off_t)size), 0);
    return fd;
}

static void
test_nixl_engine_names_the_row_past_the_end(void **state)
{
    duo_t *duo = *state;
    int fd = open_file(100);
    vnx_reg_desc_t file = {
        .desc = {0, 0, (uint64_t)fd}, .meta = "some/path", .meta_len = 9};
    vnx_desc_t here[] = {desc_at(duo->at_a, 64), desc_at(duo->at_a + 64, 64)};
    vnx_desc_t there[] = {{0, 64, (uint64_t)fd}, {64, 64, (uint64_t)fd}};
    vnx_xfer_t *xfer = NULL;
    vnx_error_t error;

    assert_ok(vnx_agent_create_backend(duo->a, "POSIX", NULL, 0, e));
    register_at(duo->a, duo->at_a, 128);
    assert_ok(vnx_agent_register(duo->a, VNX_MEM_FILE, &file, 1, NULL, e));
    assert_ok(vnx_xfer_create(duo->a, VNX_OP_READ, VNX_MEM_DRAM, here, 2,
                              VNX_MEM_FILE, there, 2, "A", 1, NULL, 0, NULL,
                              &xfer, e));
    assert_string_equal(vnx_xfer_backend(xfer), "POSIX");
    assert_int_equal(fake->pieces, 2); /* storage is not merged */
    fake->fail_post = -2;
    assert_int_equal(vnx_xfer_post(xfer, NULL, 0, &error), VNX_ERR_BACKEND);
    assert_int_equal(error.row, 1);
    assert_non_null(strstr(error.cause, "some/path"));
    assert_non_null(strstr(error.cause, "100 bytes"));
    close(fd);
    assert_int_equal(vnx_xfer_post(xfer, NULL, 0, &error), VNX_ERR_BACKEND);
    assert_int_equal(error.row, 0);
    assert_non_null(strstr(error.cause, "not open"));
    release(xfer);
}

static void
test_nixl_engine_registers_open_files_only(void **state)
{
    duo_t *duo = *state;
    vnx_reg_desc_t file = {
        .desc = {0, 64, 1u << 20}, .meta = "/nowhere/x", .meta_len = 10};
    vnx_error_t error;

    assert_ok(vnx_agent_create_backend(duo->a, "POSIX", NULL, 0, e));
    assert_int_equal(
        vnx_agent_register(duo->a, VNX_MEM_FILE, &file, 1, NULL, &error),
        VNX_ERR_NOT_FOUND);
    assert_int_equal(error.row, 0);
    assert_non_null(strstr(error.cause, "/nowhere/x"));
    assert_non_null(strstr(error.cause, "the file does not exist"));
}

static void
test_nixl_engine_queries_storage(void **state)
{
    duo_t *duo = *state;
    vnx_reg_desc_t rows[3] = {{.meta = "a", .meta_len = 1}};
    vnx_mem_info_t *infos = NULL;
    vnx_error_t error;

    assert_ok(vnx_agent_create_backend(duo->a, "POSIX", NULL, 0, e));
    assert_ok(vnx_agent_query_memory(duo->a, VNX_MEM_FILE, rows, 3, "POSIX",
                                     &infos, e));
    assert_true(infos[0].is_there);
    assert_false(infos[1].is_there);
    assert_int_equal(infos[2].param_count, 1);
    assert_string_equal(infos[2].params[0].key, "size");
    assert_string_equal(infos[2].params[0].value, "5");
    vnx_mem_infos_free(infos, 3);
    assert_int_equal(vnx_agent_query_memory(duo->a, VNX_MEM_FILE, rows, 3,
                                            "UCX", &infos, &error),
                     VNX_ERR_NOT_SUPPORTED);
    assert_int_equal(vnx_agent_query_memory(duo->a, VNX_MEM_FILE, rows, 3,
                                            "GDS", &infos, &error),
                     VNX_ERR_NOT_FOUND);
}

/* -- The end ----------------------------------------------------------------
 */

static void
test_nixl_engine_close_waits_for_transfers_in_flight(void **state)
{
    duo_t *duo = *state;
    vnx_xfer_t *xfer = make_read(duo, 64, 1, "done");
    vnx_error_t error;

    fake->polls = 200000;
    assert_int_equal(vnx_xfer_post(xfer, NULL, 0, NULL), VNX_IN_PROG);
    fake->fail_status = -2;
    vnx_agent_close(duo->a);
    fake->fail_status = 0;
    assert_int_equal(fake->released_active, 0);
    assert_int_equal(vnx_xfer_status(xfer, &error), VNX_ERR_REMOTE_DISCONNECT);
    assert_int_equal(vnx_xfer_post(xfer, NULL, 0, &error), VNX_ERR_CLOSED);
    release(xfer);
}

/* The engine then holds the last reference on the abandoned one. */
static void
test_nixl_engine_close_gives_up_what_does_not_end(void **state)
{
    duo_t *duo = *state, other = *duo;
    int handles = fake->handles;
    vnx_error_t error;

    other.a = make_nixl("C");
    register_at(other.a, other.at_a, SIZE);
    load_peer(other.a, duo->a);
    load_peer(other.a, duo->b);
    vnx_xfer_t *abandoned = make_read(&other, 64, 1, NULL);
    vnx_xfer_t *kept = make_read(&other, 64, 1, NULL);
    fake->hangs = true;
    assert_int_equal(vnx_xfer_post(abandoned, NULL, 0, NULL), VNX_IN_PROG);
    post_to_hang(kept);
    vnx_xfer_abandon(abandoned);
    alarm((unsigned)(vnx_test_limit(60) / SECONDS(1))); /* a hang fails */
    vnx_agent_close(other.a);
    alarm(0);
    assert_int_equal(vnx_xfer_status(kept, &error), VNX_ERR_CANCELED);
    release(kept);
    vnx_agent_release(other.a);
    fake->handles = handles; /* the others belong to an agent left behind */
}

/* The thread that ends the transfer then holds the last reference. */
static void
test_nixl_engine_ends_with_a_transfer_nobody_waits_for(void **state)
{
    duo_t *duo = *state;

    for (int round = 0; round < 8; round++) {
        vnx_agent_t *agent = make_nixl("C");
        unsigned char *at = calloc(1, SIZE);
        register_at(agent, at, SIZE);
        load_peer(agent, duo->b);
        duo_t other = {agent, duo->b, at, duo->at_b};
        scattered_t *made = scatter(&other, true);
        vnx_xfer_t *xfer;
        /* Few rows: by the poller.  Many: by a copy thread. */
        assert_ok(
            make_scattered(&other, made, round % 2 == 0 ? 1 : MANY, &xfer, e));
        fake->hangs = round % 2 == 0;
        fake->lands = false;
        assert_int_equal(vnx_xfer_post(xfer, NULL, 0, NULL), VNX_IN_PROG);
        vnx_xfer_abandon(xfer);
        scattered_free(made);
        vnx_agent_release(agent);
        vnx_agent_release(duo->a);
        vnx_agent_release(duo->b);
        fake->lands = true;
        assert_no_handles();
        free(at);
        duo->a = make_nixl("A");
        duo->b = make_nixl("B");
        register_at(duo->b, duo->at_b, SIZE);
    }
}

static void
test_nixl_engine_describes_itself_and_peers(void **state)
{
    duo_t *duo = *state;
    vnx_bytes_t json;

    assert_ok(vnx_agent_describe(duo->a, NULL, 0, &json, e));
    assert_non_null(memmem(json.data, json.len, "libfake_nixl", 12));
    assert_non_null(memmem(json.data, json.len, "\"UCX\"", 5));
    free(json.data);
    assert_ok(vnx_agent_describe(duo->a, "B", 1, &json, e));
    assert_non_null(memmem(json.data, json.len, "\"connected\"", 11));
    free(json.data);
}

#define with_duo(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        with_duo(test_nixl_engine_lists_plugins_and_their_parameters),
        with_duo(test_nixl_engine_lists_a_broken_plugin_without_mems),
        with_duo(test_nixl_engine_backends_are_created_once_with_defaults),
        with_duo(test_nixl_engine_has_a_progress_thread_that_sleeps),
        with_duo(test_nixl_engine_refuses_a_name_with_a_nul),
        with_duo(test_nixl_engine_registers_each_range_once),
        with_duo(test_nixl_engine_uses_a_backend_that_accepts_the_memory),
        with_duo(test_nixl_engine_adds_a_backend_to_a_known_region),
        with_duo(test_nixl_engine_refuses_memory_without_a_backend),
        with_duo(test_nixl_engine_moves_bytes),
        with_duo(test_nixl_engine_merges_neighbours),
        with_duo(test_nixl_engine_merges_within_regions_only),
        with_duo(test_nixl_engine_refuses_pairs_like_native),
        with_duo(test_nixl_engine_ends_transfers_without_being_polled),
        with_duo(test_nixl_engine_posts_large_transfers_on_a_copy_thread),
        with_duo(test_nixl_engine_quick_posts_tell_nothing_about_larger_ones),
        with_duo(test_nixl_engine_quick_posts_to_itself_tell_nothing),
        with_duo(test_nixl_engine_keeps_the_previous_notification),
        with_duo(test_nixl_engine_a_post_may_remove_the_notification),
        with_duo(test_nixl_engine_notifies_itself_of_its_own_transfers),
        with_duo(test_nixl_engine_names_backends_without_common_regions),
        with_duo(test_nixl_engine_cannot_stop_a_request_in_the_library),
        with_duo(test_nixl_engine_stops_a_post_that_waits_for_a_copy_thread),
        with_duo(
            test_nixl_engine_releases_a_post_that_waits_for_a_copy_thread),
        with_duo(test_nixl_engine_posts_of_copy_threads_delay_no_settling),
        with_duo(test_nixl_engine_deregisters_after_transfers_in_flight),
        with_duo(test_nixl_engine_uses_indices_for_many_scattered_rows),
        with_duo(test_nixl_engine_uses_pieces_for_irregular_rows),
        with_duo(test_nixl_engine_merges_rows_in_order),
        with_duo(test_nixl_engine_falls_back_to_pieces),
        with_duo(test_nixl_engine_lists_outlive_the_agent),
        with_duo(test_nixl_engine_failures_have_a_cause),
        with_duo(test_nixl_engine_posts_a_failed_transfer_once_more),
        with_duo(test_nixl_engine_loses_a_peer_whose_transfer_fails_twice),
        with_duo(test_nixl_engine_loses_a_peer_that_the_library_forgot),
        with_duo(test_nixl_engine_a_broken_notification_means_a_lost_peer),
        with_duo(test_nixl_engine_estimates_if_the_backend_does),
        with_duo(test_nixl_engine_estimates_only_what_can_be_posted),
        with_duo(test_nixl_engine_estimates_while_the_peer_is_removed),
        with_duo(test_nixl_engine_deregisters_after_transfers_while_it_closes),
        with_duo(test_nixl_engine_a_restarted_peer_is_a_new_generation),
        with_duo(test_nixl_engine_another_key_is_another_generation),
        with_duo(test_nixl_engine_another_key_needs_the_whole_metadata),
        with_duo(test_nixl_engine_loading_adds_regions),
        with_duo(test_nixl_engine_a_failed_load_leaves_no_peer),
        with_duo(test_nixl_engine_closing_a_peer_lets_transfers_land),
        with_duo(test_nixl_engine_removal_fails_transfers_in_flight),
        with_duo(test_nixl_engine_removal_of_a_broken_peer_does_not_wait),
        with_duo(test_nixl_engine_cuts_partial_metadata),
        with_duo(test_nixl_engine_notifications_keep_their_order),
        with_duo(test_nixl_engine_names_the_row_past_the_end),
        with_duo(test_nixl_engine_registers_open_files_only),
        with_duo(test_nixl_engine_queries_storage),
        with_duo(test_nixl_engine_close_waits_for_transfers_in_flight),
        with_duo(test_nixl_engine_close_gives_up_what_does_not_end),
        with_duo(test_nixl_engine_ends_with_a_transfer_nobody_waits_for),
        with_duo(test_nixl_engine_describes_itself_and_peers),
    };
    void *library = dlopen(FAKE_NIXL, RTLD_NOW);

    if (library == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    fake = dlsym(library, "fake_nixl");
    setenv("VLLM_NIXL_LIBRARY", FAKE_NIXL, 1);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
