/*
 * The contract of libnixl_capi.so that the engine relies on: which calls
 * return what, who owns what, when notifications are sent.  The same tests run
 * on the fake library (fake_nixl.c) and on a real one, so that the fake cannot
 * drift from NIXL.  The real one is the file named by VLLM_NIXL_STOCK_LIBRARY.
 *
 * Without a real library, the program tests the fake and is then skipped.
 */
#include "vnx_test.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "engine/nixl/capi.h"
#include "engine/parts/metadata.h"
#include "fake_nixl.h"

#define PATIENCE_NS vnx_test_limit(20)
#define SIZE 65536u
#define ROW 4096u

#define assert_done(call) assert_int_equal(call, NIXL_CAPI_SUCCESS)
#define assert_fails(call) assert_true((call) < 0)

/* Versions before 1.5 return the other number. */
#define assert_not_found(call)                                          \
    do {                                                                \
        int code_ = (call);                                             \
        assert_true(code_ == NIXL_CAPI_ERROR_NOT_FOUND || code_ == -2); \
    } while (0)

static vnxi_capi_t capi;  /* of the library under test */
static fake_nixl_t *fake; /* NULL: a real one is under test */

/* Two agents with the backend UCX and SIZE bytes each; `a` has loaded the
 * metadata of `b`. */
typedef struct duo {
    nixl_capi_agent_t a, b;
    nixl_capi_backend_t ucx_a, ucx_b;
    nixl_capi_opt_args_t by_a, by_b; /* select UCX */
    unsigned char *at_a, *at_b;
    nixl_capi_reg_dlist_t memory_a, memory_b; /* registered */
    nixl_capi_xfer_dlist_t local, remote;     /* empty */
    nixl_capi_notif_map_t inbox;
} duo_t;

/* -- Helpers ---------------------------------------------------------------
 */

static nixl_capi_agent_t
make_agent(const char *name)
{
    const vnxi_capi_agent_config_t config = {
        .known = {.enable_prog_thread = true,
                  .pthr_delay_us = 100000,
                  .thread_sync = NIXL_CAPI_THREAD_SYNC_RW},
    };
    nixl_capi_agent_t agent = NULL;

    assert_done(capi.create_configured_agent(name, &config.known, &agent));
    return agent;
}

static int
create_backend(nixl_capi_agent_t agent, const char *plugin,
               nixl_capi_backend_t *backend_p)
{
    nixl_capi_params_t none = NULL;

    assert_done(capi.create_params(&none));
    int code = capi.create_backend(agent, plugin, none, backend_p);
    assert_done(capi.destroy_params(none));
    return code;
}

static nixl_capi_opt_args_t
select_backend(nixl_capi_backend_t backend)
{
    nixl_capi_opt_args_t options = NULL;

    assert_done(capi.create_opt_args(&options));
    assert_done(capi.opt_args_add_backend(options, backend));
    return options;
}

static nixl_capi_reg_dlist_t
list_memory(const void *data, size_t len)
{
    nixl_capi_reg_dlist_t list = NULL;

    assert_done(capi.create_reg_dlist(0, &list));
    if (len > 0) {
        assert_done(
            capi.reg_dlist_add_desc(list, (uintptr_t)data, len, 0, "", 0));
    }
    return list;
}

static void
add_rows(nixl_capi_xfer_dlist_t list, const unsigned char *data, size_t len,
         size_t count)
{
    for (size_t i = 0; i < count; i++) {
        assert_done(capi.xfer_dlist_add_desc(
            list, (uintptr_t)data + 2 * i * ROW, len, 0));
    }
}

/* The metadata of `of`, loaded by `by`. */
static void
load(nixl_capi_agent_t by, nixl_capi_agent_t of, const char *name)
{
    char *loaded = NULL;
    void *data = NULL;
    size_t len = 0;

    assert_done(capi.get_local_md(of, &data, &len));
    assert_done(capi.load_remote_md(by, data, len, &loaded));
    assert_string_equal(loaded, name);
    free(loaded);
    free(data);
}

static int
setup(void **state)
{
    duo_t *duo = calloc(1, sizeof *duo);

    if (fake != NULL) {
        memset((void *)fake, 0, sizeof *fake);
    }
    duo->a = make_agent("A");
    duo->b = make_agent("B");
    assert_done(create_backend(duo->a, "UCX", &duo->ucx_a));
    assert_done(create_backend(duo->b, "UCX", &duo->ucx_b));
    duo->by_a = select_backend(duo->ucx_a);
    duo->by_b = select_backend(duo->ucx_b);
    duo->at_a = calloc(1, SIZE);
    duo->at_b = malloc(SIZE);
    for (size_t i = 0; i < SIZE; i++) {
        duo->at_b[i] = (unsigned char)(i / 7 + 1);
    }
    duo->memory_a = list_memory(duo->at_a, SIZE);
    duo->memory_b = list_memory(duo->at_b, SIZE);
    assert_done(capi.register_mem(duo->a, duo->memory_a, duo->by_a));
    assert_done(capi.register_mem(duo->b, duo->memory_b, duo->by_b));
    load(duo->a, duo->b, "B");
    assert_done(capi.create_xfer_dlist(0, &duo->local));
    assert_done(capi.create_xfer_dlist(0, &duo->remote));
    assert_done(capi.create_notif_map(&duo->inbox));
    *state = duo;
    return 0;
}

static void
end_agent(nixl_capi_agent_t *agent, nixl_capi_backend_t backend,
          nixl_capi_opt_args_t options)
{
    if (*agent != NULL) {
        assert_done(capi.destroy_opt_args(options));
        assert_done(capi.destroy_backend(backend));
        assert_done(capi.destroy_agent(*agent));
        *agent = NULL;
    }
}

static int
teardown(void **state)
{
    duo_t *duo = *state;

    assert_done(capi.destroy_notif_map(duo->inbox));
    assert_done(capi.destroy_xfer_dlist(duo->local));
    assert_done(capi.destroy_xfer_dlist(duo->remote));
    assert_done(capi.destroy_reg_dlist(duo->memory_a));
    assert_done(capi.destroy_reg_dlist(duo->memory_b));
    end_agent(&duo->b, duo->ucx_b, duo->by_b);
    end_agent(&duo->a, duo->ucx_a, duo->by_a);
    free(duo->at_a);
    free(duo->at_b);
    free(duo);
    if (fake != NULL) {
        assert_int_equal(atomic_load(&fake->handles), 0);
    }
    return 0;
}

static void
pause_shortly(void)
{
    const struct timespec pause = {.tv_nsec = 100000};
    nanosleep(&pause, NULL);
}

/* READ of `rows` rows. */
static nixl_capi_xfer_req_t
make_read(duo_t *duo, size_t rows)
{
    nixl_capi_xfer_req_t request = NULL;

    add_rows(duo->local, duo->at_a, ROW, rows);
    add_rows(duo->remote, duo->at_b, ROW, rows);
    assert_done(capi.create_xfer_req(duo->a, 0, duo->local, duo->remote, "B",
                                     &request, duo->by_a));
    return request;
}

static void
release(duo_t *duo, nixl_capi_xfer_req_t request)
{
    assert_done(capi.release_xfer_req(duo->a, request));
    assert_done(capi.destroy_xfer_req(request));
}

/* Look at it until it has ended. */
static int
await_end(duo_t *duo, nixl_capi_xfer_req_t request, int code)
{
    uint64_t end = vnxi_clock_deadline(PATIENCE_NS);

    while (code == NIXL_CAPI_IN_PROG && vnxi_clock_ns() < end) {
        code = capi.get_xfer_status(duo->a, request);
    }
    return code;
}

static void
post(duo_t *duo, nixl_capi_xfer_req_t request, nixl_capi_opt_args_t options)
{
    int code = capi.post_xfer_req(duo->a, request, options);
    assert_int_equal(await_end(duo, request, code), NIXL_CAPI_SUCCESS);
}

static size_t
count_from(duo_t *duo, const char *sender)
{
    size_t count = 0;
    return capi.notif_map_get_notifs_size(duo->inbox, sender, &count) ==
                   NIXL_CAPI_SUCCESS
               ? count
               : 0;
}

/* Fetch the notifications of `agent` until there are `count` from `sender`. */
static void
receive(duo_t *duo, nixl_capi_agent_t agent, const char *sender, size_t count)
{
    uint64_t end = vnxi_clock_deadline(PATIENCE_NS);

    do {
        assert_done(capi.get_notifs(agent, duo->inbox, NULL));
        pause_shortly();
    } while (count_from(duo, sender) < count && vnxi_clock_ns() < end);
    assert_int_equal(count_from(duo, sender), count);
}

static void
expect_message(duo_t *duo, const char *sender, size_t i, const void *message,
               size_t message_len)
{
    const void *data = NULL;
    size_t len = 0;

    assert_done(capi.notif_map_get_notif(duo->inbox, sender, i, &data, &len));
    assert_int_equal(len, message_len);
    assert_memory_equal(data, message, len);
}

/* -- Plugins and backends --------------------------------------------------
 */

static void
test_nixl_capi_lists_plugins(void **state)
{
    duo_t *duo = *state;
    nixl_capi_string_list_t names = NULL;
    bool has_ucx = false, has_posix = false;
    const char *name = NULL;
    size_t count = 0;

    assert_done(capi.get_available_plugins(duo->a, &names));
    assert_done(capi.string_list_size(names, &count));
    for (size_t i = 0; i < count; i++) {
        assert_done(capi.string_list_get(names, i, &name));
        has_ucx |= strcmp(name, "UCX") == 0;
        has_posix |= strcmp(name, "POSIX") == 0;
    }
    assert_true(has_ucx && has_posix);
    assert_fails(capi.string_list_get(names, count, &name));
    assert_done(capi.destroy_string_list(names));
}

static void
test_nixl_capi_describes_a_plugin(void **state)
{
    duo_t *duo = *state;
    nixl_capi_mem_list_t mems = NULL;
    nixl_capi_params_t params = NULL;
    nixl_capi_param_iter_t iter = NULL;
    const char *key = NULL, *value = NULL;
    bool has_next = true, has_workers = false;
    size_t count = 0;
    nixl_capi_mem_type_t mem = NIXL_CAPI_MEM_UNKNOWN;

    assert_fails(
        capi.get_plugin_params(duo->a, "no such plugin", &mems, &params));
    assert_done(capi.get_plugin_params(duo->a, "UCX", &mems, &params));
    assert_done(capi.mem_list_size(mems, &count));
    assert_int_equal(count, 2);
    for (int i = 0; i < 2; i++) {
        assert_done(capi.mem_list_get(mems, (size_t)i, &mem));
        assert_int_equal(mem, i);
    }
    assert_fails(capi.mem_list_get(mems, count, &mem));
    assert_done(capi.destroy_mem_list(mems));

    assert_done(capi.params_create_iterator(params, &iter));
    while (has_next) {
        assert_done(capi.params_iterator_next(iter, &key, &value, &has_next));
        has_workers |= strcmp(key, "num_workers") == 0;
    }
    assert_true(has_workers);
    assert_done(capi.params_destroy_iterator(iter));
    assert_done(capi.destroy_params(params));
}

static void
test_nixl_capi_params_keep_the_last_value(void **state)
{
    nixl_capi_params_t params = NULL;
    nixl_capi_param_iter_t iter = NULL;
    const char *key = NULL, *value = NULL;
    bool flag = false;
    (void)state;

    assert_done(capi.create_params(&params));
    assert_done(capi.params_is_empty(params, &flag));
    assert_true(flag);
    assert_done(capi.params_add(params, "key", "1"));
    assert_done(capi.params_add(params, "key", "2"));
    assert_done(capi.params_is_empty(params, &flag));
    assert_false(flag);
    assert_done(capi.params_create_iterator(params, &iter));
    assert_done(capi.params_iterator_next(iter, &key, &value, &flag));
    assert_string_equal(key, "key");
    assert_string_equal(value, "2");
    assert_false(flag);
    assert_done(capi.params_destroy_iterator(iter));
    assert_done(capi.destroy_params(params));
}

static void
test_nixl_capi_creates_a_backend_once(void **state)
{
    duo_t *duo = *state;
    nixl_capi_backend_t backend = NULL;
    nixl_capi_mem_list_t mems = NULL;
    nixl_capi_params_t params = NULL;
    size_t count = 0;

    assert_fails(create_backend(duo->a, "UCX", &backend));
    assert_fails(create_backend(duo->a, "no such plugin", &backend));
    assert_done(capi.get_backend_params(duo->a, duo->ucx_a, &mems, &params));
    assert_done(capi.mem_list_size(mems, &count));
    assert_int_equal(count, 2);
    assert_done(capi.destroy_mem_list(mems));
    assert_done(capi.destroy_params(params));
}

/* -- Memory and metadata ---------------------------------------------------
 */

static void
test_nixl_capi_counts_registrations(void **state)
{
    duo_t *duo = *state;
    nixl_capi_reg_dlist_t empty = list_memory(NULL, 0);

    assert_fails(capi.register_mem(duo->a, empty, duo->by_a));
    assert_done(capi.register_mem(duo->a, duo->memory_a, duo->by_a));
    assert_done(capi.deregister_mem(duo->a, duo->memory_a, duo->by_a));
    assert_done(capi.deregister_mem(duo->a, duo->memory_a, duo->by_a));
    assert_fails(capi.deregister_mem(duo->a, duo->memory_a, duo->by_a));
    assert_done(capi.destroy_reg_dlist(empty));
}

/* Our codec reads it: that of a plain agent, and with a region. */
static void
expect_metadata(nixl_capi_agent_t agent, const char *name, const void *at)
{
    vnxi_metadata_t blob;
    vnx_error_t error;
    void *data = NULL;
    size_t len = 0;

    assert_done(capi.get_local_md(agent, &data, &len));
    if (vnxi_metadata_parse(data, len, &blob, &error) != VNX_OK) {
        fail_msg("%s", error.cause);
    }
    assert_int_equal(blob.agent.len, strlen(name));
    assert_memory_equal(blob.agent.data, name, blob.agent.len);
    assert_int_equal(blob.conn_count, 1);
    assert_int_equal(blob.conns[0].backend.len, 3);
    assert_memory_equal(blob.conns[0].backend.data, "UCX", 3);
    assert_true(blob.conns[0].info.len > 0);
    assert_int_equal(blob.section_count, at != NULL);
    if (at != NULL) {
        const vnxi_md_section_t *section = &blob.sections[0];
        assert_memory_equal(section->backend.data, "UCX", 3);
        assert_int_equal(section->mem, VNX_MEM_DRAM);
        assert_int_equal(section->count, 1);
        assert_true(section->regions[0].addr == (uintptr_t)at);
        assert_int_equal(section->regions[0].len, SIZE);
        assert_int_equal(section->regions[0].dev, 0);
        assert_true(section->regions[0].public_data.len > 0);
    }
    vnxi_metadata_fini(&blob);
    free(data);
}

static void
test_nixl_capi_metadata_lists_connections_and_regions(void **state)
{
    duo_t *duo = *state;

    expect_metadata(duo->a, "A", duo->at_a);
    assert_done(capi.deregister_mem(duo->a, duo->memory_a, duo->by_a));
    expect_metadata(duo->a, "A", NULL);
}

static void
test_nixl_capi_metadata_needs_a_backend(void **state)
{
    nixl_capi_agent_t bare = make_agent("bare");
    void *data = NULL;
    size_t len = 0;
    (void)state;

    assert_int_equal(capi.get_local_md(bare, &data, &len),
                     NIXL_CAPI_ERROR_INVALID_PARAM);
    assert_done(capi.destroy_agent(bare));
}

static void
test_nixl_capi_knows_a_peer_until_it_is_invalidated(void **state)
{
    duo_t *duo = *state;

    assert_done(capi.check_remote_md(duo->a, "B", NULL));
    assert_done(capi.check_remote_md(duo->a, "A", NULL)); /* itself */
    assert_not_found(capi.check_remote_md(duo->a, "C", NULL));
    assert_not_found(capi.check_remote_md(duo->b, "A", NULL));
    assert_done(capi.agent_make_connection(duo->a, "B", NULL));
    assert_not_found(capi.agent_make_connection(duo->a, "C", NULL));
    load(duo->a, duo->b, "B"); /* again */
    assert_done(capi.check_remote_md(duo->a, "B", NULL));
    assert_done(capi.invalidate_remote_md(duo->a, "B"));
    assert_not_found(capi.check_remote_md(duo->a, "B", NULL));
    assert_not_found(capi.invalidate_remote_md(duo->a, "B"));
}

static void
test_nixl_capi_refuses_other_bytes_and_its_own_metadata(void **state)
{
    duo_t *duo = *state;
    char *name = NULL;
    void *data = NULL;
    size_t len = 0;

    assert_fails(capi.load_remote_md(duo->a, "garbage", 7, &name));
    assert_done(capi.get_local_md(duo->a, &data, &len));
    assert_fails(capi.load_remote_md(duo->a, data, len, &name));
    free(data);
}

/* -- Transfers -------------------------------------------------------------
 */

static void
expect_refused(duo_t *duo, const char *name)
{
    nixl_capi_xfer_req_t request = NULL;

    assert_fails(capi.create_xfer_req(duo->a, 0, duo->local, duo->remote, name,
                                      &request, duo->by_a));
    assert_done(capi.xfer_dlist_clear(duo->local));
    assert_done(capi.xfer_dlist_clear(duo->remote));
}

static void
test_nixl_capi_checks_the_rows_of_a_transfer(void **state)
{
    duo_t *duo = *state;

    expect_refused(duo, "B"); /* no rows */
    add_rows(duo->local, duo->at_a, ROW, 1);
    add_rows(duo->remote, duo->at_b, ROW, 1);
    expect_refused(duo, "C");
    add_rows(duo->local, duo->at_a + SIZE - ROW / 2, ROW, 1);
    add_rows(duo->remote, duo->at_b, ROW, 1);
    expect_refused(duo, "B");
    add_rows(duo->local, duo->at_a, ROW, 1);
    add_rows(duo->remote, duo->at_b + SIZE - ROW / 2, ROW, 1);
    expect_refused(duo, "B");
    add_rows(duo->local, duo->at_a, ROW, 1);
    add_rows(duo->remote, duo->at_b, ROW / 2, 1);
    expect_refused(duo, "B");
    add_rows(duo->local, duo->at_a, ROW, 2);
    add_rows(duo->remote, duo->at_b, ROW, 1);
    expect_refused(duo, "B");
}

static void
test_nixl_capi_transfer_moves_its_rows_at_each_post(void **state)
{
    duo_t *duo = *state;
    nixl_capi_xfer_req_t request = make_read(duo, 3);

    assert_fails(capi.get_xfer_status(duo->a, request)); /* not posted */
    for (int round = 0; round < 2; round++) {
        memset(duo->at_a, 0, SIZE);
        post(duo, request, NULL);
        for (size_t i = 0; i < 3; i++) {
            assert_memory_equal(duo->at_a + 2 * i * ROW,
                                duo->at_b + 2 * i * ROW, ROW);
            assert_int_equal(duo->at_a[(2 * i + 1) * ROW], 0);
        }
        assert_done(capi.get_xfer_status(duo->a, request)); /* still */
    }
    release(duo, request);
}

static void
test_nixl_capi_request_is_released_before_it_is_destroyed(void **state)
{
    duo_t *duo = *state;
    nixl_capi_xfer_req_t request = make_read(duo, 1);

    assert_fails(capi.destroy_xfer_req(request));
    release(duo, request);
}

static void
test_nixl_capi_refuses_a_second_post_in_flight(void **state)
{
    duo_t *duo = *state;
    nixl_capi_xfer_req_t request = make_read(duo, 3);

    if (fake != NULL) {
        atomic_store(&fake->polls, 3);
    }
    int code = capi.post_xfer_req(duo->a, request, NULL);
    if (code == NIXL_CAPI_IN_PROG) {
        assert_fails(capi.post_xfer_req(duo->a, request, NULL));
    }
    assert_int_equal(await_end(duo, request, code), NIXL_CAPI_SUCCESS);
    release(duo, request);
}

static void
test_nixl_capi_reaches_itself_by_its_name(void **state)
{
    duo_t *duo = *state;
    nixl_capi_xfer_req_t request = NULL;

    memset(duo->at_a + SIZE / 2, 9, ROW);
    add_rows(duo->local, duo->at_a, ROW, 1);
    add_rows(duo->remote, duo->at_a + SIZE / 2, ROW, 1);
    assert_done(capi.create_xfer_req(duo->a, 0, duo->local, duo->remote, "A",
                                     &request, duo->by_a));
    post(duo, request, NULL);
    assert_memory_equal(duo->at_a, duo->at_a + SIZE / 2, ROW);
    release(duo, request);
}

static void
test_nixl_capi_estimate_is_not_negative(void **state)
{
    duo_t *duo = *state;
    nixl_capi_xfer_req_t request = make_read(duo, 1);
    int64_t duration = -1, margin = -1;
    nixl_capi_cost_t method = NIXL_CAPI_COST_ANALYTICAL_BACKEND;

    int code = capi.estimate_xfer_cost(duo->a, request, NULL, &duration,
                                       &margin, &method);
    if (code == NIXL_CAPI_SUCCESS) {
        assert_true(duration >= 0 && margin >= 0);
    }
    release(duo, request);
}

static void
test_nixl_capi_posts_nothing_to_a_forgotten_peer(void **state)
{
    duo_t *duo = *state;
    nixl_capi_xfer_req_t request = make_read(duo, 1);

    assert_done(capi.invalidate_remote_md(duo->a, "B"));
    assert_fails(capi.post_xfer_req(duo->a, request, NULL));
    assert_fails(capi.gen_notif(duo->a, "B", "x", 1, NULL));
    release(duo, request);
}

/* -- By index --------------------------------------------------------------
 */

static void
test_nixl_capi_makes_transfers_by_index(void **state)
{
    static const int some[] = {2, 0}, bad[] = {0, 3};
    duo_t *duo = *state;
    nixl_capi_xfer_dlist_handle_t local = NULL, remote = NULL;
    nixl_capi_xfer_req_t request = NULL;

    add_rows(duo->local, duo->at_a, ROW, 3);
    add_rows(duo->remote, duo->at_b, ROW, 3);
    assert_done(
        capi.prep_xfer_dlist(duo->a, "", duo->local, &local, duo->by_a));
    assert_done(
        capi.prep_xfer_dlist(duo->a, "B", duo->remote, &remote, duo->by_a));
    assert_fails(capi.make_xfer_req(duo->a, 1, local, bad, 2, remote, some, 2,
                                    &request, duo->by_a));
    assert_fails(capi.make_xfer_req(duo->a, 1, local, some, 2, remote, some, 1,
                                    &request, duo->by_a));
    assert_fails(capi.make_xfer_req(duo->a, 1, local, some, 0, remote, some, 0,
                                    &request, duo->by_a));
    assert_fails(capi.make_xfer_req(duo->a, 1, remote, some, 2, local, some, 2,
                                    &request, duo->by_a));
    assert_done(capi.make_xfer_req(duo->a, 1, local, some, 2, remote, some, 2,
                                   &request, duo->by_a));
    /* The request does not need the lists. */
    assert_done(capi.release_xfer_dlist_handle(duo->a, local));
    assert_done(capi.release_xfer_dlist_handle(duo->a, remote));
    memset(duo->at_a, 5, SIZE);
    memset(duo->at_b, 6, SIZE);
    post(duo, request, NULL);
    assert_int_equal(duo->at_b[0], 5);
    assert_int_equal(duo->at_b[2 * ROW], 6);
    assert_int_equal(duo->at_b[4 * ROW + ROW - 1], 5);
    release(duo, request);
}

static void
test_nixl_capi_prepares_registered_rows_only(void **state)
{
    duo_t *duo = *state;
    nixl_capi_xfer_dlist_handle_t list = NULL;

    assert_fails(
        capi.prep_xfer_dlist(duo->a, "", duo->local, &list, duo->by_a));
    add_rows(duo->local, duo->at_a, ROW, 1);
    assert_fails(
        capi.prep_xfer_dlist(duo->a, "C", duo->local, &list, duo->by_a));
    assert_fails(
        capi.prep_xfer_dlist(duo->a, "B", duo->local, &list, duo->by_a));
    add_rows(duo->remote, duo->at_b, ROW, 1);
    assert_fails(
        capi.prep_xfer_dlist(duo->a, "", duo->remote, &list, duo->by_a));
}

/* -- Notifications ---------------------------------------------------------
 */

static nixl_capi_opt_args_t
with_notif(const void *message, size_t len)
{
    nixl_capi_opt_args_t options = NULL;

    assert_done(capi.create_opt_args(&options));
    assert_done(capi.opt_args_set_notif_msg(options, message, len));
    assert_done(capi.opt_args_set_has_notif(options, true));
    return options;
}

/* The message of a transfer goes with every later post, until options without
 * one are given. */
static void
test_nixl_capi_transfer_keeps_its_notification(void **state)
{
    duo_t *duo = *state;
    nixl_capi_xfer_req_t request = make_read(duo, 1);
    nixl_capi_opt_args_t options = with_notif("a\0b", 3);

    post(duo, request, options);
    receive(duo, duo->b, "A", 1);
    expect_message(duo, "A", 0, "a\0b", 3);
    assert_done(capi.notif_map_clear(duo->inbox));
    post(duo, request, NULL);
    receive(duo, duo->b, "A", 1);
    assert_done(capi.notif_map_clear(duo->inbox));
    assert_done(capi.opt_args_set_has_notif(options, false));
    post(duo, request, options);
    /* This one would come after it. */
    assert_done(capi.gen_notif(duo->a, "B", "last", 4, NULL));
    receive(duo, duo->b, "A", 1);
    expect_message(duo, "A", 0, "last", 4);
    assert_done(capi.destroy_opt_args(options));
    release(duo, request);
}

/* A transfer in flight sends its message only when its state is looked at. */
static void
test_nixl_capi_notification_waits_for_a_look(void **state)
{
    duo_t *duo = *state;
    nixl_capi_xfer_req_t request = make_read(duo, 3);
    nixl_capi_opt_args_t options = with_notif("done", 4);

    if (fake != NULL) {
        atomic_store(&fake->polls, 3);
    }
    int code = capi.post_xfer_req(duo->a, request, options);
    if (code == NIXL_CAPI_IN_PROG) {
        assert_done(capi.gen_notif(duo->a, "B", "first", 5, NULL));
        receive(duo, duo->b, "A", 1);
        expect_message(duo, "A", 0, "first", 5);
        assert_done(capi.notif_map_clear(duo->inbox));
    }
    assert_int_equal(await_end(duo, request, code), NIXL_CAPI_SUCCESS);
    receive(duo, duo->b, "A", 1);
    expect_message(duo, "A", 0, "done", 4);
    assert_done(capi.destroy_opt_args(options));
    release(duo, request);
}

static void
test_nixl_capi_notifications_come_in_order(void **state)
{
    duo_t *duo = *state;
    const char *sender = NULL;
    const void *data = NULL;
    char message[8];
    size_t count = 0, len = 0;

    for (int i = 0; i < 5; i++) {
        snprintf(message, sizeof message, "m%d", i);
        assert_done(capi.gen_notif(duo->a, "B", message, 2, NULL));
    }
    assert_done(capi.gen_notif(duo->a, "B", "", 0, NULL));
    receive(duo, duo->b, "A", 6);
    for (size_t i = 0; i < 5; i++) {
        snprintf(message, sizeof message, "m%zu", i);
        expect_message(duo, "A", i, message, 2);
    }
    expect_message(duo, "A", 5, "", 0);
    assert_done(capi.notif_map_size(duo->inbox, &count));
    assert_int_equal(count, 1);
    assert_done(capi.notif_map_get_agent_at(duo->inbox, 0, &sender));
    assert_string_equal(sender, "A");
    assert_fails(capi.notif_map_get_notif(duo->inbox, "A", 6, &data, &len));
    assert_fails(capi.notif_map_get_notifs_size(duo->inbox, "nobody", &count));
    /* Fetching adds to the map. */
    assert_done(capi.gen_notif(duo->a, "B", "more", 4, NULL));
    receive(duo, duo->b, "A", 7);
    assert_done(capi.notif_map_clear(duo->inbox));
    assert_done(capi.notif_map_size(duo->inbox, &count));
    assert_int_equal(count, 0);
}

static void
test_nixl_capi_notifies_known_agents_and_itself(void **state)
{
    duo_t *duo = *state;

    assert_not_found(capi.gen_notif(duo->a, "C", "x", 1, NULL));
    assert_done(capi.gen_notif(duo->a, "A", "self", 4, NULL));
    receive(duo, duo->a, "A", 1);
    expect_message(duo, "A", 0, "self", 4);
}

static void
test_nixl_capi_notifying_an_ended_agent_fails(void **state)
{
    duo_t *duo = *state;
    uint64_t end = vnxi_clock_deadline(PATIENCE_NS);
    int code = NIXL_CAPI_SUCCESS;

    assert_done(capi.gen_notif(duo->a, "B", "x", 1, NULL)); /* connects */
    receive(duo, duo->b, "A", 1);
    end_agent(&duo->b, duo->ucx_b, duo->by_b);
    while (code == NIXL_CAPI_SUCCESS && vnxi_clock_ns() < end) {
        code = capi.gen_notif(duo->a, "B", "x", 1, NULL);
        pause_shortly();
    }
    assert_fails(code);
}

/* -- Storage ---------------------------------------------------------------
 */

static const char *
param_value(nixl_capi_params_t params, const char *wanted, char *text,
            size_t size)
{
    nixl_capi_param_iter_t iter = NULL;
    const char *key = NULL, *value = NULL;
    bool has_next = true;

    text[0] = '\0';
    assert_done(capi.params_create_iterator(params, &iter));
    while (has_next) {
        assert_done(capi.params_iterator_next(iter, &key, &value, &has_next));
        if (strcmp(key, wanted) == 0) {
            snprintf(text, size, "%s", value);
        }
    }
    assert_done(capi.params_destroy_iterator(iter));
    return text;
}

static void
test_nixl_capi_query_tells_which_files_exist(void **state)
{
    duo_t *duo = *state;
    char path[] = "/tmp/nixl_contract_XXXXXX", text[32];
    int fd = mkstemp(path);
    nixl_capi_backend_t posix = NULL;
    nixl_capi_reg_dlist_t list = NULL;
    nixl_capi_query_resp_list_t answers = NULL;
    nixl_capi_params_t params = NULL;
    bool has_value = false;
    size_t count = 0;

    assert_true(fd >= 0);
    assert_int_equal(write(fd, "12345", 5), 5);
    close(fd);
    assert_done(create_backend(duo->a, "POSIX", &posix));
    nixl_capi_opt_args_t by_posix = select_backend(posix);
    assert_done(capi.create_reg_dlist(4, &list));
    assert_done(capi.reg_dlist_add_desc(list, 0, 0, 0, path, strlen(path)));
    assert_done(capi.reg_dlist_add_desc(list, 0, 0, 0, "/nowhere/file", 13));
    assert_done(capi.create_query_resp_list(&answers));
    assert_done(capi.query_mem(duo->a, list, answers, by_posix));
    assert_done(capi.query_resp_list_size(answers, &count));
    assert_int_equal(count, 2);
    assert_done(capi.query_resp_list_has_value(answers, 0, &has_value));
    assert_true(has_value);
    assert_done(capi.query_resp_list_get_params(answers, 0, &params));
    assert_string_equal(param_value(params, "size", text, sizeof text), "5");
    assert_done(capi.destroy_params(params));
    assert_done(capi.query_resp_list_has_value(answers, 1, &has_value));
    assert_false(has_value);
    assert_fails(capi.query_resp_list_get_params(answers, 1, &params));
    assert_fails(capi.query_mem(duo->a, list, answers, duo->by_a));
    assert_done(capi.destroy_query_resp_list(answers));
    assert_done(capi.destroy_reg_dlist(list));
    assert_done(capi.destroy_opt_args(by_posix));
    assert_done(capi.destroy_backend(posix));
    unlink(path);
}

/* -- Running ---------------------------------------------------------------
 */

#define of_a_duo(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

static int
run_all(const char *name)
{
    const struct CMUnitTest tests[] = {
        of_a_duo(test_nixl_capi_lists_plugins),
        of_a_duo(test_nixl_capi_describes_a_plugin),
        of_a_duo(test_nixl_capi_params_keep_the_last_value),
        of_a_duo(test_nixl_capi_creates_a_backend_once),
        of_a_duo(test_nixl_capi_counts_registrations),
        of_a_duo(test_nixl_capi_metadata_lists_connections_and_regions),
        of_a_duo(test_nixl_capi_metadata_needs_a_backend),
        of_a_duo(test_nixl_capi_knows_a_peer_until_it_is_invalidated),
        of_a_duo(test_nixl_capi_refuses_other_bytes_and_its_own_metadata),
        of_a_duo(test_nixl_capi_checks_the_rows_of_a_transfer),
        of_a_duo(test_nixl_capi_transfer_moves_its_rows_at_each_post),
        of_a_duo(test_nixl_capi_request_is_released_before_it_is_destroyed),
        of_a_duo(test_nixl_capi_refuses_a_second_post_in_flight),
        of_a_duo(test_nixl_capi_reaches_itself_by_its_name),
        of_a_duo(test_nixl_capi_estimate_is_not_negative),
        of_a_duo(test_nixl_capi_posts_nothing_to_a_forgotten_peer),
        of_a_duo(test_nixl_capi_makes_transfers_by_index),
        of_a_duo(test_nixl_capi_prepares_registered_rows_only),
        of_a_duo(test_nixl_capi_transfer_keeps_its_notification),
        of_a_duo(test_nixl_capi_notification_waits_for_a_look),
        of_a_duo(test_nixl_capi_notifications_come_in_order),
        of_a_duo(test_nixl_capi_notifies_known_agents_and_itself),
        of_a_duo(test_nixl_capi_notifying_an_ended_agent_fails),
        of_a_duo(test_nixl_capi_query_tells_which_files_exist),
    };
    return cmocka_run_group_tests_name(name, tests, NULL, NULL);
}

/* False: it cannot be opened, or lacks a function. */
static bool
open_library(const char *path, void **handle_p)
{
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);

    if (handle == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        return false;
    }
#define TAKE(name)                                                \
    *(void **)&capi.name = dlsym(handle, "nixl_capi_" #name);     \
    if (capi.name == NULL) {                                      \
        fprintf(stderr, "%s has no nixl_capi_" #name "\n", path); \
        return false;                                             \
    }
    VNXI_CAPI_TABLE(TAKE)
#undef TAKE
    *handle_p = handle;
    return true;
}

int
main(void)
{
    const char *path = getenv("VLLM_NIXL_STOCK_LIBRARY");
    void *handle;

    if (!open_library(FAKE_NIXL, &handle)) {
        return 1;
    }
    fake = dlsym(handle, "fake_nixl");
    int failed = run_all("the fake libnixl_capi");
    fake = NULL;
    if (path == NULL || path[0] == '\0') {
        print_message("SKIP: only the fake was tested: "
                      "VLLM_NIXL_STOCK_LIBRARY names no libnixl_capi.so\n");
        return failed != 0 ? 1 : 77;
    }
    setenv("NIXL_LOG_LEVEL", "FATAL", 0);
    if (!open_library(path, &handle)) {
        return 1;
    }
    return failed + run_all(path) != 0;
}
