/* Contexts, workers and their threads over a scripted libucp. */
#include "child_check.h"
#include "open_fds.h"
#include "ucx_fake.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/at_end.h"
#include "base/fork_fds.h"
#include "engine/native/ucx/context_private.h"

static vnx_status_t
create(const vnxi_ucx_config_t *wish, vnx_error_t *error)
{
    vnxi_ucx_config_t config = *wish;
    vnxi_ucx_t *ucx = NULL;
    config.name = "here";
    config.name_len = 4;
    config.events.context = &here;
    vnx_status_t status = vnxi_ucx_create(&config, &ucx, error);
    if (status == VNX_OK) {
        vnxi_ucx_stop(ucx);
        vnxi_ucx_release(ucx);
    } else {
        assert_null(ucx);
        assert_string_equal(error->operation, "vnx_agent_create_backend");
    }
    return status;
}

static vnx_status_t
create_with(const char *key, const char *value, vnx_error_t *error)
{
    vnx_param_t param = {.key = key, .value = value};
    return create(
        &(vnxi_ucx_config_t){.workers = 1, .params = &param, .param_count = 1},
        error);
}

static bool
has_setting(const char *text)
{
    return strstr(fake->settings, text) != NULL;
}

/* -- Configuration ---------------------------------------------------------
 */

static void
test_ucx_worker_settings_match_nixl(void **state)
{
    vnx_error_t error;
    (void)state;
    assert_int_equal(create_with("other", "x", &error), VNX_OK);
    assert_true(has_setting("RNDV_THRESH=inf;"));
    assert_true(has_setting("MAX_RMA_RAILS=2;"));
    assert_true(has_setting("RNDV_PIPELINE_ERROR_HANDLING=y;"));
    assert_true(has_setting("CUDA_IPC_ENABLE_GET_ZCOPY=on;"));
    assert_false(has_setting("other"));
}

static void
test_ucx_worker_environment_overrides_settings(void **state)
{
    vnx_error_t error;
    (void)state;
    setenv("UCX_RNDV_THRESH", "1m", 1);
    setenv("UCX_NET_DEVICES", "eth0", 1);
    setenv("UCX_CUDA_IPC_ENABLE_GET_ZCOPY", "auto", 1);
    vnx_status_t status =
        create_with("engine_config", "NET_DEVICES=lo,TLS=tcp", &error);
    assert_int_equal(status, VNX_OK);
    assert_false(has_setting("RNDV_THRESH"));
    assert_false(has_setting("NET_DEVICES"));
    assert_false(has_setting("GET_ZCOPY"));
    assert_true(has_setting("MAX_RMA_RAILS=2;"));
    assert_true(has_setting("TLS=tcp;"));
    status = create_with("device_list", "mlx5_0", &error);
    unsetenv("UCX_RNDV_THRESH");
    unsetenv("UCX_NET_DEVICES");
    unsetenv("UCX_CUDA_IPC_ENABLE_GET_ZCOPY");
    assert_int_equal(status, VNX_OK);
    assert_true(has_setting("NET_DEVICES=mlx5_0:1;")); /* as in stock */
}

static void
test_ucx_worker_devices(void **state)
{
    char many[2000], plain[sizeof fake->settings];
    vnx_error_t error;
    (void)state;
    assert_int_equal(create_with("device_list", "a,b:2, c", &error), VNX_OK);
    assert_true(has_setting("NET_DEVICES=a:1,b:2,c:1;"));
    assert_int_equal(create_with("other", "x", &error), VNX_OK);
    memcpy(plain, fake->settings, sizeof plain);
    assert_int_equal(create_with("device_list", " ,,", &error), VNX_OK);
    assert_string_equal(fake->settings, plain);
    for (size_t i = 0; i < sizeof many; i++) {
        many[i] = i % 8 == 7 ? ',' : 'x';
    }
    many[sizeof many - 1] = '\0';
    assert_int_equal(create_with("device_list", many, &error),
                     VNX_ERR_INVALID_PARAM);
    assert_non_null(strstr(error.cause, "device_list is too long"));
}

/* As stock NIXL 1.5 does: a comma always ends an element, an element without
 * '=' or with a key that UCX refuses is skipped, nothing is trimmed, and of
 * equal keys the last one counts.  tests/interop/test_engine_config.py
 * compares this with stock. */
static void
test_ucx_worker_engine_config(void **state)
{
    static const struct {
        const char *given, *set;
    } cases[] = {
        {"RCACHE_ENABLE=n,TLS=^cuda_ipc", "RCACHE_ENABLE=n;TLS=^cuda_ipc;"},
        {"TLS=^rc_gda", "TLS=^rc_gda;"},
        {"A=1,B=x=y", "A=1;B=x=y;"},
        {"TLS=rc,cuda,A=1", "TLS=rc;A=1;"},
        {"A=1,,B=2,", "A=1;B=2;"},
        {"A=1,NO_SUCH_KEY=1,B=2", "A=1;B=2;"},
        {"A=1,A=2", "A=1;A=2;"},
        {"A=,B= x ", "A=;B= x ;"},
        {"B", ""},
        {"", ""},
        {",", ""},
    };
    char plain[sizeof fake->settings];
    vnx_error_t error;
    (void)state;
    assert_int_equal(create_with("other", "x", &error), VNX_OK);
    memcpy(plain, fake->settings, sizeof plain);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        assert_int_equal(create_with("engine_config", cases[i].given, &error),
                         VNX_OK);
        assert_memory_equal(fake->settings, plain, strlen(plain));
        assert_string_equal(fake->settings + strlen(plain), cases[i].set);
    }
}

static void
test_ucx_worker_engine_config_is_applied_last(void **state)
{
    static const vnx_param_t params[] = {
        {.key = "engine_config", .value = "NET_DEVICES=lo"},
        {.key = "device_list", .value = "eth0"},
    };
    vnx_error_t error;
    (void)state;
    assert_int_equal(create(&(vnxi_ucx_config_t){.workers = 1,
                                                 .params = params,
                                                 .param_count = 2},
                            &error),
                     VNX_OK);
    assert_true(has_setting("NET_DEVICES=eth0:1;NET_DEVICES=lo;"));
}

/* -- Making ----------------------------------------------------------------
 */

static void
test_ucx_worker_every_failing_step_is_reported(void **state)
{
    atomic_int *const steps[] = {&fake->fail_config, &fake->fail_init,
                                 &fake->fail_worker, &fake->fail_efd,
                                 &fake->fail_query,  &fake->fail_listen};
    vnx_error_t error;
    (void)state;
    for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++) {
        atomic_store(steps[i], -3);
        assert_int_equal(create(&(vnxi_ucx_config_t){.workers = 2}, &error),
                         VNX_ERR_BACKEND);
        assert_non_null(strstr(error.cause, "fake status -3"));
        atomic_store(steps[i], 0);
        fake_check(state);
    }
    assert_int_equal(create(&(vnxi_ucx_config_t){.workers = 2}, &error),
                     VNX_OK);
}

static void
test_ucx_worker_facts(void **state)
{
    size_t len, again;
    (void)state;
    atomic_store(&fake->cuda, 1);
    open_sides(100, 20.0);
    assert_int_equal(vnxi_ucx_workers(here.ucx), VNXI_UCX_WORKERS_MAX);
    assert_true(vnxi_ucx_has_cuda(here.ucx));
    assert_string_equal(vnxi_ucx_version(here.ucx), "UCX 1.22, " FAKE_UCP);
    const void *address = vnxi_ucx_address(here.ucx, &len);
    assert_ptr_equal(vnxi_ucx_address(here.ucx, &again), address);
    assert_int_equal(again, len);
    const void *other = vnxi_ucx_address(there.ucx, &again);
    assert_true(again != len || memcmp(address, other, len) != 0);
    close_sides();
    atomic_store(&fake->cuda, 0);
    ucx_side_open(&here, "here", 1, 20.0);
    assert_false(vnxi_ucx_has_cuda(here.ucx));
    ucx_side_close(&here);
}

/* If a later worker cannot be created, the others move its share.  It is
 * created by the next transfer that can. */
static void
test_ucx_worker_created_later_may_fail(void **state)
{
    ground_t ground;
    ucx_flight_t flight;
    vnx_error_t error;
    (void)state;
    open_sides(2, 20.0);
    vnxi_ucx_conn_t *conn = ucx_side_connect(&here, &there, 1);
    AWAIT(vnxi_ucx_conn_is_wired(conn));
    atomic_store(&fake->fail_worker, VNXI_UCS_ERR_NO_MEMORY);
    vnxi_ucx_conn_warm_up(conn);
    ground_open(&ground, conn, 1000, 4000);
    ground_flight(&ground, &flight, VNX_OP_READ);
    assert_int_equal(vnxi_ucx_worker_start(&here.ucx->workers[1], &error),
                     VNX_ERR_BACKEND);
    assert_string_equal(error.cause,
                        "UCX cannot create a worker: fake status -4");
    for (int round = 0; round < 2; round++) {
        ground_fill(&ground);
        assert_int_equal(ucx_flight_post(&flight), VNX_IN_PROG);
        assert_int_equal(ucx_flight_await(&flight), VNX_OK);
        assert_true(ground_is_equal(&ground));
        assert_int_equal(fake->workers, 2);
    }
    atomic_store(&fake->fail_worker, 0);
    assert_int_equal(ucx_flight_post(&flight), VNX_IN_PROG);
    AWAIT(atomic_load(&fake->workers) == 3);
    assert_int_equal(ucx_flight_await(&flight), VNX_OK);
    ucx_flight_free(&flight);
    ground_close(&ground);
    end_conn(conn);
    close_sides();
}

/* -- Waking ----------------------------------------------------------------
 */

static void
test_ucx_worker_sleeps_when_idle(void **state)
{
    (void)state;
    ucx_side_open(&here, "here", 1, 20.0);
    AWAIT(atomic_load(&fake->arms) > 0);
    int progress_calls = atomic_load(&fake->progress_calls);
    uint64_t end = vnxi_clock_deadline(30000000);
    AWAIT(vnxi_clock_ns() >= end);
    assert_true(atomic_load(&fake->progress_calls) <= progress_calls + 3);
    ucx_side_close(&here);
}

static void
test_ucx_worker_polls_again_if_arming_is_busy(void **state)
{
    (void)state;
    atomic_store(&fake->busy, 6);
    open_sides(1, 20.0);
    vnxi_ucx_conn_t *conn = ucx_side_connect(&here, &there, 1);
    for (int i = 0; i < 20; i++) {
        atomic_store(&fake->busy, i);
        send_to(conn, &i, sizeof i);
        ucx_side_await_messages(&there, (size_t)i + 1);
    }
    end_conn(conn);
    close_sides();
}

/* A descriptor that is readable without events costs at most two polls per
 * millisecond, and commands run at once. */
static void
test_ucx_worker_limits_polling_in_a_storm_of_wakeups(void **state)
{
    (void)state;
    ucx_side_open(&here, "here", 1, 20.0);
    AWAIT(atomic_load(&fake->arms) > 0);
    atomic_store(&fake->storm, true);
    uint64_t begun = vnxi_clock_ns(); /* before the count: it may poll now */
    int before = atomic_load(&fake->progress_calls);
    calls->deliver("x", 1, 0); /* wakes it */
    AWAIT(atomic_load(&fake->progress_calls) >= before + 60);
    uint64_t ms = (vnxi_clock_ns() - begun) / 1000000u;
    /* Some pass, some double the pause, then two per millisecond. */
    assert_true(ms >= (60 - 24) / 2);
    atomic_store(&fake->storm, false);
    ucx_side_close(&here);
}

/* After a storm an idle worker sleeps. */
static void
test_ucx_worker_sleeps_after_a_storm(void **state)
{
    (void)state;
    ucx_side_open(&here, "here", 1, 20.0);
    atomic_store(&fake->storm, true);
    int before = atomic_load(&fake->progress_calls);
    calls->deliver("x", 1, 0);
    AWAIT(atomic_load(&fake->progress_calls) >= before + 60);
    atomic_store(&fake->storm, false);
    int progress_calls = 0, quiet = 0;
    while (quiet < 50) { /* ms without polling */
        const struct timespec ms = {.tv_nsec = 1000000};
        int now = atomic_load(&fake->progress_calls);
        quiet = now == progress_calls ? quiet + 1 : 0;
        progress_calls = now;
        assert_true(progress_calls < before + 5000);
        nanosleep(&ms, NULL);
    }
    ucx_side_close(&here);
}

static void
test_ucx_worker_runs_commands_in_a_storm(void **state)
{
    (void)state;
    open_sides(1, 20.0);
    atomic_store(&fake->storm, true);
    vnxi_ucx_conn_t *conn = ucx_side_connect(&here, &there, 1);
    for (int i = 0; i < 100; i++) {
        send_to(conn, &i, sizeof i);
        ucx_side_await_messages(&there, (size_t)i + 1);
    }
    end_conn(conn);
    close_sides();
}

/* -- The end of the process ------------------------------------------------
 */

static bool is_child;

/* No worker is started any more. */
static bool
refuses_to_start(void)
{
    vnx_error_t error;
    int workers = atomic_load(&fake->workers);
    vnx_status_t status = create(&(vnxi_ucx_config_t){.workers = 1}, &error);
    return status == VNX_ERR_BACKEND &&
           strstr(error.cause, "the process is ending") != NULL &&
           atomic_load(&fake->workers) == workers;
}

/* Runs after the threads were stopped: nothing may run any more. */
static void
look_at_the_end(void)
{
    if (!is_child) {
        return;
    }
    int progress_calls = atomic_load(&fake->progress_calls);
    calls->deliver("x", 1, 0);
    uint64_t end = vnxi_clock_deadline(20000000);
    while (vnxi_clock_ns() < end) {
        sched_yield();
    }
    bool slept = atomic_load(&fake->progress_calls) == progress_calls;
    _exit(slept && refuses_to_start() ? 42 : 43);
}

static void
test_ucx_worker_stops_at_exit(void **state)
{
    int status;
    (void)state;
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        is_child = true;
        atomic_store(&fake->storm, true);
        open_sides(2, 20.0);
        vnxi_ucx_conn_warm_up(ucx_side_connect(&here, &there, 1));
        exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 42);
}

/* The process ends while the first worker is created: its thread refuses
 * commands, so its address cannot be published. */
static void
test_ucx_worker_may_refuse_its_first_command(void **state)
{
    int status;
    (void)state;
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        vnx_error_t error = {.status = VNX_OK};
        vnxi_ucx_t *ucx = NULL;
        vnxi_ucx_config_t config = {.name = "here", .name_len = 4};
        config.workers = 1;
        atomic_store(&fake->on_worker, vnxi_at_end_run);
        vnx_status_t made = vnxi_ucx_create(&config, &ucx, &error);
        _exit(made == VNX_ERR_BACKEND && ucx == NULL &&
                      strstr(error.cause, "was stopped before it had an "
                                          "address") != NULL
                  ? 42
                  : 43);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 42);
}

/* -- Descriptors that the program closes -----------------------------------
 */

static void
take_all_numbers(int *files, int count)
{
    for (int fd = 3; fd < 256; fd++) {
        close(fd);
    }
    for (int i = 0; i < count; i++) {
        files[i] = memfd_create("the program's", 0);
        CHECK(files[i] >= 0);
    }
}

static void
check_untouched(const int *files, int count)
{
    struct stat stat;
    for (int i = 0; i < count; i++) {
        CHECK(fstat(files[i], &stat) == 0);
        CHECK(stat.st_size == 0);
    }
}

/* A stopped agent's UCX, which a connection keeps, has no descriptor of the
 * worker, and closes none when it is released. */
static void
release_late(void)
{
    vnxi_ucx_conn_t *conn = NULL;
    int files[64];
    const char *why;

    vnxi_fds_epoch();
    CHECK(vnxi_ucx_library(&why) != NULL);
    size_t before = open_fds();
    ucx_side_open(&here, "here", 2, 20.0);
    CHECK(vnxi_ucx_conn_create(here.ucx, "x", 1, 1, &conn, NULL) == VNX_OK);
    vnxi_ucx_stop(here.ucx);
    vnxi_ucx_release(here.ucx);
    CHECK(open_fds() == before);
    take_all_numbers(files, 64);
    end_conn(conn);
    check_untouched(files, 64);
    CHECK(fake->contexts == 1);
}

static void
await_sleep(ucx_side_t *side)
{
    AWAIT(vnxi_ucx_worker_borrow(&side->ucx->workers[0]));
    vnxi_ucx_worker_give_back(&side->ucx->workers[0], false);
}

/* A sleeping worker is not woken, and nobody else calls UCX. */
static void
use_late(void)
{
    vnx_error_t error;
    int files[64];

    open_sides(1, 20.0);
    vnxi_ucx_conn_t *conn = ucx_side_connect(&here, &there, 1);
    AWAIT(vnxi_ucx_conn_is_wired(conn));
    send_to(conn, "x", 1); /* its descriptor is not readable afterwards */
    ucx_side_await_messages(&there, 1);
    await_sleep(&there);
    await_sleep(&here);
    take_all_numbers(files, 64);
    CHECK(vnxi_ucx_conn_send_notif(conn, "x", 1, &error) ==
          VNX_ERR_REMOTE_DISCONNECT);
    CHECK(strcmp(error.cause, "the program has closed the agent's "
                              "descriptors") == 0);
    vnxi_ucx_conn_warm_up(conn);
    vnxi_ucx_worker_wake(&here.ucx->workers[0]);
    end_conn(conn);
    check_untouched(files, 64);
    vnxi_ucx_stop(here.ucx);
    check_untouched(files, 64);
}

static void
in_child(void (*check)(void))
{
    int status;
    pid_t child = fork();

    assert_true(child >= 0);
    if (child == 0) {
        check();
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

static void
test_ucx_worker_is_released_without_its_descriptors(void **state)
{
    (void)state;
    in_child(release_late);
}

static void
test_ucx_worker_is_not_used_without_its_descriptors(void **state)
{
    (void)state;
    in_child(use_late);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        /* First: a child of a process that has used UCX may not use it. */
        with_fake(test_ucx_worker_stops_at_exit),
        with_fake(test_ucx_worker_may_refuse_its_first_command),
        with_fake(test_ucx_worker_is_released_without_its_descriptors),
        with_fake(test_ucx_worker_is_not_used_without_its_descriptors),
        with_fake(test_ucx_worker_settings_match_nixl),
        with_fake(test_ucx_worker_environment_overrides_settings),
        with_fake(test_ucx_worker_devices),
        with_fake(test_ucx_worker_engine_config),
        with_fake(test_ucx_worker_engine_config_is_applied_last),
        with_fake(test_ucx_worker_every_failing_step_is_reported),
        with_fake(test_ucx_worker_facts),
        with_fake(test_ucx_worker_created_later_may_fail),
        with_fake(test_ucx_worker_sleeps_when_idle),
        with_fake(test_ucx_worker_polls_again_if_arming_is_busy),
        with_fake(test_ucx_worker_limits_polling_in_a_storm_of_wakeups),
        with_fake(test_ucx_worker_sleeps_after_a_storm),
        with_fake(test_ucx_worker_runs_commands_in_a_storm),
    };
    atexit(look_at_the_end); /* before the backend's own */
    return fake_load() != 0 ? 1 : cmocka_run_group_tests(tests, NULL, NULL);
}
