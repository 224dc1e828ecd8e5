/* An agent with "auto" changes its engine from native to nixl, which a fake
 * library plays. */
#include "agent_fixture.h"

#include <pthread.h>

#define LEN 4096
#define ROUNDS 100

static char memory[LEN];

static vnx_agent_t *
make_auto(const char *backend)
{
    const vnx_param_t threads = {"num_threads", "2"};
    vnx_agent_config_t config = {.size = sizeof config, .engine = "auto"};
    vnx_agent_t *agent;

    assert_ok(vnx_agent_create("A", 1, &config, &agent, e));
    assert_ok(vnx_agent_create_backend(agent, backend, &threads, 1, e));
    return agent;
}

static bool
lists(vnx_agent_t *agent, const char *backend)
{
    const char *name;
    for (size_t i = 0; (name = vnx_agent_plugin(agent, i)) != NULL; i++) {
        if (strcmp(name, backend) == 0) {
            return true;
        }
    }
    return false;
}

static void
assert_moves_to_itself(vnx_agent_t *agent)
{
    vnx_desc_t from = {(uint64_t)(uintptr_t)memory, 512, 0};
    vnx_desc_t to = {from.addr + 512, 512, 0};
    vnx_xfer_t *xfer;

    memset(memory, 0x5a, 512);
    assert_ok(vnx_xfer_create(agent, VNX_OP_WRITE, VNX_MEM_DRAM, &from, 1,
                              VNX_MEM_DRAM, &to, 1, "A", 1, NULL, 0, NULL,
                              &xfer, e));
    assert_ok(vnx_xfer_post(xfer, NULL, 0, e));
    assert_ok(vnx_agent_wait(agent, &xfer, 1, 0, vnx_test_limit(10), e));
    assert_ok(vnx_xfer_release(xfer, e));
}

static void
test_agent_changes_its_engine_for_a_storage_backend(void **state)
{
    vnx_agent_t *agent = make_auto("UCX");
    uint32_t mems;
    int fd, again;
    (void)state;

    assert_ok(vnx_agent_fileno(agent, &fd, e));
    assert_string_equal(vnx_agent_engine(agent), "native");
    assert_true(lists(agent, "POSIX") && lists(agent, "SHM"));
    assert_ok(vnx_agent_plugin_mems(agent, "POSIX", &mems, e));
    assert_ok(vnx_agent_create_backend(agent, "POSIX", NULL, 0, e));
    assert_string_equal(vnx_agent_engine(agent), "nixl");
    assert_false(lists(agent, "SHM"));

    register_at(agent, memory, LEN);
    assert_moves_to_itself(agent);
    assert_ok(vnx_agent_fileno(agent, &again, e));
    assert_int_equal(fd, again);
    vnx_agent_release(agent);
}

static void
test_failed_change_keeps_the_engine(void **state)
{
    vnx_agent_t *agent = make_auto("UCX");
    vnx_error_t error;
    vnx_bytes_t json;
    const char *why = "has every requested backend (UCX)";
    (void)state;

    assert_int_equal(
        vnx_agent_create_backend(agent, "BROKEN", NULL, 0, &error),
        VNX_ERR_NOT_FOUND);
    assert_int_equal(vnx_agent_create_backend(agent, "NOPE", NULL, 0, &error),
                     VNX_ERR_NOT_FOUND);
    assert_string_equal(vnx_agent_engine(agent), "native");
    assert_ok(vnx_agent_describe(agent, "", 0, &json, e));
    assert_non_null(memmem(json.data, json.len, why, strlen(why)));
    free(json.data);
    assert_ok(vnx_agent_create_backend(agent, "POSIX", NULL, 0, e));
    assert_string_equal(vnx_agent_engine(agent), "nixl");
    vnx_agent_release(agent);

    agent = make_auto("UCX");
    assert_int_equal(
        vnx_agent_create_backend(agent, "BROKEN", NULL, 0, &error),
        VNX_ERR_NOT_FOUND);
    register_at(agent, memory, LEN);
    assert_moves_to_itself(agent);
    vnx_agent_release(agent);
}

static void
test_failed_calls_do_not_bind_the_agent(void **state)
{
    vnx_agent_t *agent = make_auto("UCX");
    vnx_reg_desc_t file = {.desc = {0, LEN, 3}, .meta = "path", .meta_len = 4};
    vnx_mem_info_t *infos;
    vnx_bytes_t name;
    vnx_error_t error;
    (void)state;

    assert_true(
        vnx_agent_register(agent, VNX_MEM_FILE, &file, 1, NULL, &error) < 0);
    assert_true(
        vnx_agent_deregister(agent, VNX_MEM_FILE, &file, 1, NULL, &error) < 0);
    assert_true(vnx_agent_query_memory(agent, VNX_MEM_FILE, &file, 1, "UCX",
                                       &infos, &error) < 0);
    assert_true(vnx_agent_load_metadata(agent, "garbage", 7, &name, &error) <
                0);
    assert_true(vnx_agent_send_notif(agent, "B", 1, "x", 1, &error) < 0);
    assert_false(vnx_agent_check_peer(agent, "B", 1, VNX_MEM_DRAM, NULL, 0));
    assert_ok(vnx_agent_create_backend(agent, "POSIX", NULL, 0, e));
    vnx_agent_release(agent);
}

static void
bind_by_registering(vnx_agent_t *agent)
{
    register_at(agent, memory, LEN);
    deregister_at(agent, memory, LEN);
}

static void
bind_by_reading_metadata(vnx_agent_t *agent)
{
    vnx_bytes_t blob;
    assert_ok(vnx_agent_metadata(agent, &blob, e));
    free(blob.data);
}

static void
bind_by_loading_a_peer(vnx_agent_t *agent)
{
    vnx_agent_t *peer = make_agent("B");
    vnx_bytes_t blob, name;

    assert_ok(vnx_agent_metadata(peer, &blob, e));
    assert_ok(vnx_agent_load_metadata(agent, blob.data, blob.len, &name, e));
    assert_ok(vnx_agent_remove_peer(agent, "B", 1, e));
    free(blob.data);
    free(name.data);
    vnx_agent_release(peer);
}

static void
bind_by_a_notification_to_itself(vnx_agent_t *agent)
{
    assert_ok(vnx_agent_send_notif(agent, "A", 1, "x", 1, e));
}

static void
test_bound_agent_says_what_to_write(void **state)
{
    static void (*const binds[])(vnx_agent_t *) = {
        bind_by_registering, bind_by_reading_metadata, bind_by_loading_a_peer,
        bind_by_a_notification_to_itself};
    vnx_error_t error;
    (void)state;

    for (size_t i = 0; i < sizeof binds / sizeof *binds; i++) {
        vnx_agent_t *agent = make_auto("UCX");
        binds[i](agent);
        assert_int_equal(
            vnx_agent_create_backend(agent, "POSIX", NULL, 0, &error),
            VNX_ERR_NOT_FOUND);
        assert_non_null(strstr(error.cause, "backends=[\"UCX\", \"POSIX\"]"));
        assert_string_equal(vnx_agent_engine(agent), "native");
        assert_false(lists(agent, "POSIX"));
        assert_ok(vnx_agent_create_backend(agent, "SHM", NULL, 0, e));
        vnx_agent_release(agent);
    }
}

/* -- Other threads ---------------------------------------------------------
 */

typedef struct crowd {
    vnx_agent_t *agent;
    pthread_barrier_t start;
} crowd_t;

static void
start(crowd_t *crowd, void *(*run)(void *context), pthread_t *thread)
{
    assert_int_equal(pthread_create(thread, NULL, run, crowd), 0);
}

static void *
look_around(void *context)
{
    crowd_t *crowd = context;
    vnx_agent_t *agent = crowd->agent;
    vnx_agent_stats_t stats;
    vnx_bytes_t json;
    vnx_param_t param;

    pthread_barrier_wait(&crowd->start);
    for (int i = 0; i < 20; i++) {
        assert_ok(vnx_agent_describe(agent, "", 0, &json, e));
        free(json.data);
        assert_non_null(vnx_agent_engine(agent));
        assert_true(lists(agent, "UCX"));
        assert_ok(vnx_agent_backend_param(agent, "UCX", 0, &param, e));
        vnx_agent_stats(agent, &stats);
        assert_null(vnx_agent_take_notifs(agent));
    }
    return NULL;
}

static void *
register_once(void *context)
{
    crowd_t *crowd = context;
    pthread_barrier_wait(&crowd->start);
    register_at(crowd->agent, memory, LEN);
    return NULL;
}

/* Threads register memory while the engine changes.  In any order, the region
 * ends up in the engine that remains. */
static void
test_engine_changes_while_threads_use_the_agent(void **state)
{
    int changed = 0;
    (void)state;

    for (int round = 0; round < ROUNDS; round++) {
        crowd_t crowd = {.agent = make_auto("UCX")};
        vnx_error_t error;
        pthread_t looker, owner;
        pthread_barrier_init(&crowd.start, NULL, 3);
        start(&crowd, look_around, &looker);
        start(&crowd, register_once, &owner);
        pthread_barrier_wait(&crowd.start);
        vnx_status_t status =
            vnx_agent_create_backend(crowd.agent, "POSIX", NULL, 0, &error);
        pthread_join(looker, NULL);
        pthread_join(owner, NULL);
        assert_true(status == VNX_OK || status == VNX_ERR_NOT_FOUND);
        assert_string_equal(vnx_agent_engine(crowd.agent),
                            status == VNX_OK ? "nixl" : "native");
        changed += status == VNX_OK;
        assert_moves_to_itself(crowd.agent);
        deregister_at(crowd.agent, memory, LEN);
        vnx_agent_release(crowd.agent);
        pthread_barrier_destroy(&crowd.start);
    }
    print_message("the engine changed first in %d of %d rounds\n", changed,
                  ROUNDS);
}

static void *
create_posix(void *context)
{
    crowd_t *crowd = context;
    vnx_error_t error;
    pthread_barrier_wait(&crowd->start);
    vnx_status_t status =
        vnx_agent_create_backend(crowd->agent, "POSIX", NULL, 0, &error);
    assert_true(status == VNX_OK || status == VNX_ERR_CLOSED);
    return NULL;
}

static void
test_agent_is_closed_while_its_engine_changes(void **state)
{
    (void)state;

    for (int round = 0; round < ROUNDS; round++) {
        crowd_t crowd = {.agent = make_auto("UCX")};
        pthread_t thread;
        pthread_barrier_init(&crowd.start, NULL, 2);
        start(&crowd, create_posix, &thread);
        pthread_barrier_wait(&crowd.start);
        vnx_agent_close(crowd.agent);
        pthread_join(thread, NULL);
        vnx_agent_release(crowd.agent);
        pthread_barrier_destroy(&crowd.start);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_agent_changes_its_engine_for_a_storage_backend),
        cmocka_unit_test(test_failed_change_keeps_the_engine),
        cmocka_unit_test(test_failed_calls_do_not_bind_the_agent),
        cmocka_unit_test(test_bound_agent_says_what_to_write),
        cmocka_unit_test(test_engine_changes_while_threads_use_the_agent),
        cmocka_unit_test(test_agent_is_closed_while_its_engine_changes),
    };
    setenv("VLLM_NIXL_LIBRARY", FAKE_NIXL, 1);
    setenv("VLLM_NIXL_UCX_LIBRARY", "none", 1);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
