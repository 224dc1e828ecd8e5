/*
 * An agent's own life by the public C API: names, configuration, backends,
 * registrations, references, closing, its eventfd, shared buffers.
 */
#include "agent_fixture.h"

#include <poll.h>
#include <pthread.h>
#include <semaphore.h>

#include "core/agent.h"

#define SIZE 65536

/* -- Making --------------------------------------------------------------- */

static void
test_agent_names_are_any_bytes(void **state)
{
    (void)state;
    const char with_zero[] = "a\0b|Agent";
    char *longest = malloc(65536);
    vnx_agent_t *agent;
    size_t len;

    assert_ok(
        vnx_agent_create(with_zero, sizeof with_zero - 1, NULL, &agent, e));
    assert_memory_equal(vnx_agent_name(agent, &len), with_zero,
                        sizeof with_zero - 1);
    assert_int_equal(len, sizeof with_zero - 1);
    vnx_agent_release(agent);

    memset(longest, 'n', 65536);
    assert_ok(vnx_agent_create(longest, 65535, NULL, &agent, e));
    vnx_agent_release(agent);
    agent = NULL;
    assert_int_equal(vnx_agent_create(longest, 65536, NULL, &agent, NULL),
                     VNX_ERR_INVALID_PARAM);
    assert_null(agent);
    free(longest);
}

static void
test_agent_configuration_is_checked(void **state)
{
    (void)state;
    vnx_agent_config_t config = {.size = sizeof config};
    vnx_agent_t *agent = NULL;
    vnx_error_t error;

    config.engine = "native";
    config.num_threads = 1;
    assert_ok(vnx_agent_create("a", 1, &config, &agent, e));
    vnx_agent_release(agent);
    agent = NULL;
    config.engine = "";
    assert_int_equal(vnx_agent_create("a", 1, &config, &agent, &error),
                     VNX_ERR_NOT_SUPPORTED);
    config.engine = "native";
    config.size = 3;
    assert_int_equal(vnx_agent_create("a", 1, &config, &agent, &error),
                     VNX_ERR_INVALID_PARAM);
    assert_null(agent);
}

/* A program that was compiled with earlier headers passes a smaller struct;
 * what follows it in memory is not looked at. */
static void
test_agent_config_may_be_smaller_but_not_larger(void **state)
{
    (void)state;
    vnx_agent_config_t config;
    vnx_agent_t *agent = NULL;
    vnx_error_t error;

    memset(&config, 0xa5, sizeof config);
    config.size = offsetof(vnx_agent_config_t, num_threads);
    config.engine = "native";
    assert_ok(vnx_agent_create("a", 1, &config, &agent, e));
    vnx_agent_release(agent);
    config.size = sizeof config + 8;
    assert_int_equal(vnx_agent_create("a", 1, &config, &agent, &error),
                     VNX_ERR_INVALID_PARAM);
    assert_non_null(strstr(error.cause, "config.size"));
}

static void
test_agent_backends_are_created_once(void **state)
{
    (void)state;
    const vnx_param_t params[] = {{"num_threads", "4"}, {"device", ""}};
    vnx_agent_t *agent;
    vnx_param_t param;
    uint32_t mems = 0;
    vnx_error_t error;

    assert_ok(vnx_agent_create("a", 1, NULL, &agent, e));
    assert_null(vnx_agent_engine(agent));
    assert_string_equal(vnx_agent_plugin(agent, 0), "UCX");
    assert_string_equal(vnx_agent_plugin(agent, 1), "SHM");
    assert_null(vnx_agent_plugin(agent, 2));
    assert_null(vnx_agent_plugin(agent, SIZE_MAX));
    assert_ok(vnx_agent_plugin_mems(agent, "UCX", &mems, e));
    assert_true((mems & (1u << VNX_MEM_DRAM)) != 0);
    assert_int_equal(vnx_agent_plugin_mems(agent, "NOPE", &mems, &error),
                     VNX_ERR_NOT_FOUND);

    assert_int_equal(vnx_agent_backend_param(agent, "UCX", 0, &param, &error),
                     VNX_ERR_NOT_FOUND);
    assert_ok(vnx_agent_create_backend(agent, "UCX", params, 2, e));
    assert_string_equal(vnx_agent_engine(agent), "native");
    assert_ok(vnx_agent_backend_param(agent, "UCX", 0, &param, e));
    assert_string_equal(param.key, "num_threads");
    assert_string_equal(param.value, "4");
    assert_ok(vnx_agent_backend_param(agent, "UCX", 2, &param, e));
    assert_null(param.key);

    assert_int_equal(vnx_agent_create_backend(agent, "UCX", NULL, 0, &error),
                     VNX_ERR_NOT_ALLOWED);
    assert_ok(vnx_agent_create_backend(agent, "SHM", NULL, 0, e));
    assert_int_equal(vnx_agent_create_backend(agent, "POSIX", NULL, 0, &error),
                     VNX_ERR_NOT_FOUND);
    assert_string_equal(error.operation, "vnx_agent_create_backend");
    vnx_agent_release(agent);
}

/* -- Registrations -------------------------------------------------------- */

static void
test_agent_registers_all_or_none(void **state)
{
    (void)state;
    vnx_agent_t *agent = make_agent("a");
    char *at = malloc(SIZE);
    vnx_reg_desc_t descs[] = {region_of(at, SIZE),
                              region_of(at, 16),
                              {.desc = {UINT64_MAX - 3, 16, 0}}};
    vnx_agent_stats_t stats;
    vnx_error_t error;

    assert_int_equal(
        vnx_agent_register(agent, VNX_MEM_DRAM, descs, 3, NULL, &error),
        VNX_ERR_INVALID_PARAM);
    assert_int_equal(error.row, 2);
    vnx_agent_stats(agent, &stats);
    assert_int_equal(stats.regions, 0);

    assert_ok(vnx_agent_register(agent, VNX_MEM_DRAM, descs, 2, NULL, e));
    descs[1].desc.len = 17;
    assert_int_equal(
        vnx_agent_deregister(agent, VNX_MEM_DRAM, descs, 2, NULL, &error),
        VNX_ERR_NOT_FOUND);
    assert_int_equal(error.row, 1);
    vnx_agent_stats(agent, &stats);
    assert_int_equal(stats.regions, 2);
    descs[1].desc.len = 16;
    assert_ok(vnx_agent_deregister(agent, VNX_MEM_DRAM, descs, 2, NULL, e));
    vnx_agent_stats(agent, &stats);
    assert_int_equal(stats.regions, 0);
    vnx_agent_release(agent);
    free(at);
}

static void
test_agent_counts_registrations_of_one_range(void **state)
{
    (void)state;
    vnx_agent_t *agent = make_agent("a");
    char *at = malloc(SIZE);
    vnx_reg_desc_t desc = region_of(at, SIZE);
    vnx_error_t error;

    for (int i = 0; i < 3; i++) {
        register_at(agent, at, SIZE);
    }
    for (int i = 0; i < 3; i++) {
        vnx_dlist_t *dlist = prepare_rows(agent, "", at, 64, 8);
        vnx_dlist_release(dlist);
        deregister_at(agent, at, SIZE);
    }
    assert_int_equal(
        vnx_agent_deregister(agent, VNX_MEM_DRAM, &desc, 1, NULL, &error),
        VNX_ERR_NOT_FOUND);
    vnx_agent_release(agent);
    free(at);
}

/* -- References and the end ----------------------------------------------- */

static void
test_agent_lives_as_long_as_a_reference(void **state)
{
    (void)state;
    vnx_agent_t *agent = make_agent("a");
    vnx_agent_t *again = vnx_agent_retain(agent);
    size_t len;

    assert_ptr_equal(again, agent);
    vnx_agent_release(agent);
    assert_memory_equal(vnx_agent_name(again, &len), "a", 1);
    assert_ok(vnx_agent_send_notif(again, "a", 1, "x", 1, e));
    vnx_notif_free(await_notif(again));
    vnx_agent_release(again);
    vnx_agent_release(NULL);
}

static void
test_agent_closed_refuses_everything(void **state)
{
    (void)state;
    vnx_agent_t *agent = make_agent("a");
    char *at = malloc(SIZE);
    vnx_reg_desc_t desc = region_of(at, SIZE);
    vnx_desc_t row = desc.desc;
    vnx_dlist_t *dlist;
    vnx_xfer_t *xfer;
    vnx_bytes_t bytes;
    int fd;

    register_at(agent, at, SIZE);
    vnx_agent_close(agent);
    vnx_agent_close(agent);
    const vnx_status_t found[] = {
        vnx_agent_create_backend(agent, "SHM", NULL, 0, NULL),
        vnx_agent_register(agent, VNX_MEM_DRAM, &desc, 1, NULL, NULL),
        vnx_agent_deregister(agent, VNX_MEM_DRAM, &desc, 1, NULL, NULL),
        vnx_agent_metadata(agent, &bytes, NULL),
        vnx_agent_partial_metadata(agent, VNX_MEM_DRAM, &desc, 1, true, NULL,
                                   &bytes, NULL),
        vnx_agent_load_metadata(agent, "x", 1, &bytes, NULL),
        vnx_agent_remove_peer(agent, "b", 1, NULL),
        vnx_agent_connect_peer(agent, "b", 1, NULL),
        vnx_agent_describe(agent, "", 0, &bytes, NULL),
        vnx_dlist_create(agent, "", 0, VNX_MEM_DRAM, &row, 1, NULL, &dlist,
                         NULL),
        vnx_xfer_create(agent, VNX_OP_READ, VNX_MEM_DRAM, &row, 1,
                        VNX_MEM_DRAM, &row, 1, "a", 1, NULL, 0, NULL, &xfer,
                        NULL),
        vnx_agent_send_notif(agent, "a", 1, "x", 1, NULL),
        vnx_agent_fileno(agent, &fd, NULL),
        vnx_agent_wait(agent, NULL, 0, 0, 0, NULL),
    };
    for (size_t i = 0; i < sizeof found / sizeof found[0]; i++) {
        if (found[i] != VNX_ERR_CLOSED) {
            fail_msg("call %zu came to %d", i, (int)found[i]);
        }
    }
    assert_false(vnx_agent_check_peer(agent, "b", 1, VNX_MEM_DRAM, NULL, 0));
    vnx_agent_release(agent);
    free(at);
}

/* -- The eventfd ---------------------------------------------------------- */

static bool
readable(int fd, int timeout_ms)
{
    struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
    return poll(&poll_fd, 1, timeout_ms) == 1;
}

static void
test_agent_fd_is_readable_on_a_notification(void **state)
{
    (void)state;
    vnx_agent_t *agent = make_agent("a");
    int fd, again;

    assert_ok(vnx_agent_fileno(agent, &fd, e));
    assert_ok(vnx_agent_fileno(agent, &again, e));
    assert_int_equal(fd, again);
    vnx_agent_clear_events(agent); /* events before it was requested */
    assert_false(readable(fd, 0));
    for (int i = 0; i < 3; i++) {
        assert_ok(vnx_agent_send_notif(agent, "a", 1, "x", 1, e));
        assert_true(readable(fd, 30000));
        vnx_notif_free(await_notif(agent));
        assert_false(readable(fd, 0));
    }
    assert_ok(vnx_agent_send_notif(agent, "a", 1, "x", 1, e));
    assert_true(readable(fd, 30000));
    vnx_agent_clear_events(agent);
    assert_false(readable(fd, 0));
    vnx_notif_free(await_notif(agent));
    vnx_agent_release(agent);
}

/* -- Shared buffers ------------------------------------------------------- */

static void
test_shared_buffer_is_zeroed_memory_of_its_size(void **state)
{
    (void)state;
    static const size_t sizes[] = {1, 4095, 4096, 4097, 1 << 20};
    vnx_shared_buffer_t *buffer;
    vnx_error_t error;

    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        assert_ok(vnx_shared_buffer_create(sizes[i], &buffer, e));
        assert_int_equal(vnx_shared_buffer_size(buffer), sizes[i]);
        unsigned char *data = vnx_shared_buffer_data(buffer);
        for (size_t j = 0; j < sizes[i]; j++) {
            assert_int_equal(data[j], 0);
        }
        memset(data, 0xff, sizes[i]);
        vnx_shared_buffer_free(buffer);
    }
    buffer = NULL;
    assert_int_equal(vnx_shared_buffer_create(0, &buffer, &error),
                     VNX_ERR_INVALID_PARAM);
    assert_int_equal(vnx_shared_buffer_create(SIZE_MAX, &buffer, &error) < 0,
                     1);
    assert_null(buffer);
    vnx_shared_buffer_free(NULL);
}

/* -- Closing from two threads --------------------------------------------- */

static vnxi_engine_ops_t slow;
static const vnxi_engine_ops_t *real;
static sem_t stop_begins, stop_may_end, second_waits_or_ends;
static atomic_bool stop_has_ended, second_came_after;
static vnxi_cond_t *awaited;

int __real_pthread_cond_wait(pthread_cond_t *cond, pthread_mutex_t *mutex);
int __wrap_pthread_cond_wait(pthread_cond_t *cond, pthread_mutex_t *mutex);

int
__wrap_pthread_cond_wait(pthread_cond_t *cond, pthread_mutex_t *mutex)
{
    if (cond == awaited) {
        sem_post(&second_waits_or_ends);
    }
    return __real_pthread_cond_wait(cond, mutex);
}

static void
slow_stop(vnxi_engine_t *engine)
{
    sem_post(&stop_begins);
    sem_wait(&stop_may_end);
    real->stop(engine);
    atomic_store(&stop_has_ended, true);
}

static void *
close_main(void *agent)
{
    vnx_agent_close(agent);
    return NULL;
}

static void *
close_second_main(void *agent)
{
    vnx_agent_close(agent);
    atomic_store(&second_came_after, atomic_load(&stop_has_ended));
    sem_post(&second_waits_or_ends);
    return NULL;
}

static void
test_agent_closed_twice_at_a_time_waits_both_times(void **state)
{
    (void)state;
    vnx_agent_t *agent = make_agent("a");
    pthread_t first, second;

    real = agent->choice.candidates[0].ops;
    slow = *real;
    slow.stop = slow_stop;
    agent->choice.candidates[0].ops = &slow;
    awaited = &agent->stop_ends;
    assert_int_equal(sem_init(&stop_begins, 0, 0), 0);
    assert_int_equal(sem_init(&stop_may_end, 0, 0), 0);
    assert_int_equal(sem_init(&second_waits_or_ends, 0, 0), 0);
    assert_int_equal(pthread_create(&first, NULL, close_main, agent), 0);
    assert_int_equal(sem_wait(&stop_begins), 0);
    assert_int_equal(pthread_create(&second, NULL, close_second_main, agent),
                     0);
    assert_int_equal(sem_wait(&second_waits_or_ends), 0);
    assert_int_equal(sem_post(&stop_may_end), 0);
    assert_int_equal(pthread_join(first, NULL), 0);
    assert_int_equal(pthread_join(second, NULL), 0);
    assert_true(atomic_load(&second_came_after));
    vnx_agent_close(agent); /* returns at once */
    vnx_agent_release(agent);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_agent_names_are_any_bytes),
        cmocka_unit_test(test_agent_configuration_is_checked),
        cmocka_unit_test(test_agent_config_may_be_smaller_but_not_larger),
        cmocka_unit_test(test_agent_backends_are_created_once),
        cmocka_unit_test(test_agent_registers_all_or_none),
        cmocka_unit_test(test_agent_counts_registrations_of_one_range),
        cmocka_unit_test(test_agent_lives_as_long_as_a_reference),
        cmocka_unit_test(test_agent_closed_refuses_everything),
        cmocka_unit_test(test_agent_closed_twice_at_a_time_waits_both_times),
        cmocka_unit_test(test_agent_fd_is_readable_on_a_notification),
        cmocka_unit_test(test_shared_buffer_is_zeroed_memory_of_its_size),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
