/* The native engine's backends: plugins, parameters, creation. */
#include "agent_fixture.h"

static vnx_agent_t *
make_bare(void)
{
    const vnx_agent_config_t config = {.size = sizeof config,
                                       .engine = "native"};
    vnx_agent_t *agent = NULL;
    assert_ok(vnx_agent_create("bare", 4, &config, &agent, e));
    return agent;
}

static void
test_native_backends_list_two_plugins(void **state)
{
    vnx_agent_t *agent = make_bare();
    (void)state;

    assert_string_equal(vnx_agent_plugin(agent, 0), "UCX");
    assert_string_equal(vnx_agent_plugin(agent, 1), "SHM");
    assert_null(vnx_agent_plugin(agent, 2));
    assert_null(vnx_agent_plugin(agent, SIZE_MAX));
    assert_null(vnx_agent_engine(agent));
    vnx_agent_release(agent);
}

static void
test_native_backends_move_dram(void **state)
{
    vnx_agent_t *agent = make_bare();
    uint32_t mems = 0;
    vnx_error_t error;
    (void)state;

    for (size_t i = 0; i < 2; i++) {
        assert_ok(vnx_agent_plugin_mems(agent, vnx_agent_plugin(agent, i),
                                        &mems, e));
        assert_int_equal(mems, 1u << VNX_MEM_DRAM);
    }
    mems = 99;
    assert_int_equal(vnx_agent_plugin_mems(agent, "GDS", &mems, &error),
                     VNX_ERR_NOT_FOUND);
    assert_int_equal(mems, 99);
    assert_non_null(strstr(error.cause, "GDS"));
    vnx_agent_release(agent);
}

static void
test_native_backends_keep_their_parameters(void **state)
{
    vnx_agent_t *agent = make_bare();
    char value[] = "8";
    vnx_param_t params[] = {{"num_threads", value}, {"device", ""}};
    vnx_param_t param = {"", ""};
    (void)state;

    assert_ok(vnx_agent_create_backend(agent, "UCX", params, 2, e));
    value[0] = '?'; /* it was copied */
    assert_ok(vnx_agent_backend_param(agent, "UCX", 0, &param, e));
    assert_string_equal(param.key, "num_threads");
    assert_string_equal(param.value, "8");
    assert_ok(vnx_agent_backend_param(agent, "UCX", 1, &param, e));
    assert_string_equal(param.key, "device");
    assert_string_equal(param.value, "");
    assert_ok(vnx_agent_backend_param(agent, "UCX", 2, &param, e));
    assert_null(param.key);
    assert_null(param.value);
    vnx_agent_release(agent);
}

/* The parameters of NIXL's backend of that name, whatever was created. */
static void
test_native_backends_plugins_have_default_parameters(void **state)
{
    static const vnx_param_t defaults[] = {
        {"num_workers", "1"},
        {"ucx_devices", ""},
        {"ucx_error_handling_mode", "peer"},
    };
    vnx_agent_t *agent = make_bare();
    vnx_param_t given[] = {{"num_workers", "8"}}, param = {"", ""};
    (void)state;

    assert_ok(vnx_agent_create_backend(agent, "UCX", given, 1, e));
    for (size_t i = 0; i < 3; i++) {
        assert_ok(vnx_agent_plugin_param(agent, "UCX", i, &param, e));
        assert_string_equal(param.key, defaults[i].key);
        assert_string_equal(param.value, defaults[i].value);
    }
    assert_ok(vnx_agent_plugin_param(agent, "UCX", 3, &param, e));
    assert_null(param.key);
    assert_null(param.value);
    assert_ok(vnx_agent_plugin_param(agent, "SHM", 0, &param, e));
    assert_null(param.key);
    vnx_agent_release(agent);
}

static void
test_native_backends_not_created_have_no_parameters(void **state)
{
    vnx_agent_t *agent = make_bare();
    vnx_param_t param = {"k", "v"};
    vnx_error_t error;
    (void)state;

    assert_int_equal(vnx_agent_backend_param(agent, "SHM", 0, &param, &error),
                     VNX_ERR_NOT_FOUND);
    assert_non_null(strstr(error.cause, "not created"));
    assert_int_equal(vnx_agent_plugin_param(agent, "", 0, &param, &error),
                     VNX_ERR_NOT_FOUND);
    assert_string_equal(param.key, "k");
    vnx_agent_release(agent);
}

static void
test_native_backends_are_created_once(void **state)
{
    vnx_agent_t *agent = make_bare();
    vnx_param_t params[] = {{"again", "1"}}, param = {"", ""};
    vnx_error_t error;
    (void)state;

    assert_ok(vnx_agent_create_backend(agent, "UCX", NULL, 0, e));
    assert_string_equal(vnx_agent_engine(agent), "native");
    assert_int_equal(vnx_agent_create_backend(agent, "UCX", params, 1, &error),
                     VNX_ERR_NOT_ALLOWED);
    assert_non_null(strstr(error.cause, "UCX"));
    assert_ok(vnx_agent_backend_param(agent, "UCX", 0, &param, e));
    assert_null(param.key);
    assert_ok(vnx_agent_create_backend(agent, "SHM", NULL, 0, e));
    assert_int_equal(vnx_agent_create_backend(agent, "SHM", NULL, 0, NULL),
                     VNX_ERR_NOT_ALLOWED);
    vnx_agent_release(agent);
}

static void
test_native_backends_refuse_an_unknown_one(void **state)
{
    vnx_agent_t *agent = make_bare();
    vnx_bytes_t blob;
    vnx_error_t error;
    (void)state;

    assert_int_equal(vnx_agent_create_backend(agent, "ucx", NULL, 0, &error),
                     VNX_ERR_NOT_FOUND);
    assert_string_equal(error.operation, "vnx_agent_create_backend");
    assert_non_null(strstr(error.cause, "'ucx'"));
    assert_null(vnx_agent_engine(agent));
    assert_int_equal(vnx_agent_metadata(agent, &blob, NULL),
                     VNX_ERR_NOT_FOUND);
    vnx_agent_release(agent);
}

static void
test_native_backends_refuse_calls_after_close(void **state)
{
    vnx_agent_t *agent = make_bare();
    vnx_agent_t *had_one = make_agent("had one");
    vnx_param_t param = {"", ""};
    uint32_t mems = 0;
    (void)state;

    vnx_agent_close(agent);
    assert_int_equal(vnx_agent_create_backend(agent, "UCX", NULL, 0, NULL),
                     VNX_ERR_CLOSED);
    assert_null(vnx_agent_engine(agent));
    vnx_agent_close(had_one);
    assert_int_equal(vnx_agent_create_backend(had_one, "SHM", NULL, 0, NULL),
                     VNX_ERR_CLOSED);
    assert_string_equal(vnx_agent_engine(had_one), "native");
    assert_ok(vnx_agent_plugin_mems(had_one, "SHM", &mems, e));
    assert_ok(vnx_agent_backend_param(had_one, "UCX", 0, &param, e));
    vnx_agent_release(had_one);
    vnx_agent_release(agent);
}

static void
test_native_backends_are_named_at_registration(void **state)
{
    vnx_agent_t *agent = make_agent("one");
    const char *shm[] = {"SHM", NULL}, *both[] = {"UCX", "SHM", NULL};
    static unsigned char memory[64];
    vnx_reg_desc_t desc = region_of(memory, sizeof memory);
    (void)state;

    assert_int_equal(
        vnx_agent_register(agent, VNX_MEM_DRAM, &desc, 1, shm, NULL),
        VNX_ERR_NOT_FOUND);
    assert_int_equal(stats_of(agent).regions, 0);
    assert_ok(vnx_agent_create_backend(agent, "SHM", NULL, 0, e));
    assert_ok(vnx_agent_register(agent, VNX_MEM_DRAM, &desc, 1, both, e));
    assert_ok(vnx_agent_deregister(agent, VNX_MEM_DRAM, &desc, 1, shm, e));
    assert_int_equal(stats_of(agent).regions, 0);
    vnx_agent_release(agent);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_native_backends_list_two_plugins),
        cmocka_unit_test(test_native_backends_move_dram),
        cmocka_unit_test(test_native_backends_keep_their_parameters),
        cmocka_unit_test(test_native_backends_plugins_have_default_parameters),
        cmocka_unit_test(test_native_backends_not_created_have_no_parameters),
        cmocka_unit_test(test_native_backends_are_created_once),
        cmocka_unit_test(test_native_backends_refuse_an_unknown_one),
        cmocka_unit_test(test_native_backends_refuse_calls_after_close),
        cmocka_unit_test(test_native_backends_are_named_at_registration),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
