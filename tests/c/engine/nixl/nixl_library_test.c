/* Finding and opening the stock NIXL library. */
#include "vnx_test.h"

#include <stdlib.h>
#include <string.h>

#include "engine/nixl/library.h"

static void
test_nixl_library_error_names_the_missing_file(void **state)
{
    const vnxi_capi_t *capi = NULL;
    vnx_error_t error;
    (void)state;

    setenv("VLLM_NIXL_LIBRARY", "/nowhere/libnixl_capi.so", 1);
    assert_int_equal(
        vnxi_nixl_library("vnx_agent_create_backend", &capi, &error),
        VNX_ERR_NOT_SUPPORTED);
    assert_null(capi);
    assert_string_equal(error.operation, "vnx_agent_create_backend");
    assert_non_null(strstr(error.cause, "/nowhere/libnixl_capi.so"));
    assert_string_equal(vnxi_nixl_library_path(), "");
}

static void
test_nixl_library_error_names_the_missing_function(void **state)
{
    const vnxi_capi_t *capi = NULL;
    vnx_error_t error;
    (void)state;

    setenv("VLLM_NIXL_LIBRARY", "libc.so.6", 1);
    assert_int_equal(
        vnxi_nixl_library("vnx_agent_create_backend", &capi, &error),
        VNX_ERR_NOT_SUPPORTED);
    assert_null(capi);
    assert_non_null(strstr(error.cause, "libc.so.6"));
    assert_non_null(strstr(error.cause, "nixl_capi_create_configured_agent"));
    assert_string_equal(vnxi_nixl_library_path(), "");
}

/* It has the same name, and would call this engine again. */
static void
test_nixl_library_is_not_that_of_this_package(void **state)
{
    const vnxi_capi_t *capi = NULL;
    vnx_error_t error;
    (void)state;

    setenv("VLLM_NIXL_LIBRARY", CAPI_LIBRARY, 1);
    assert_int_equal(
        vnxi_nixl_library("vnx_agent_create_backend", &capi, &error),
        VNX_ERR_NOT_SUPPORTED);
    assert_null(capi);
    assert_non_null(strstr(error.cause, CAPI_LIBRARY));
    assert_non_null(strstr(error.cause, "VLLM_NIXL_LIBRARY"));
    assert_string_equal(vnxi_nixl_library_path(), "");
}

static void
test_nixl_library_fault_of_a_plugin_names_its_file(void **state)
{
    char text[256];
    (void)state;

    setenv("NIXL_PLUGIN_DIR", "/nowhere/plugins", 1);
    vnxi_nixl_plugin_fault("POSIX", text, sizeof text);
    assert_non_null(strstr(text, "/nowhere/plugins/libplugin_POSIX.so"));
    unsetenv("NIXL_PLUGIN_DIR");
}

static void
test_nixl_library_interns_names(void **state)
{
    char text[] = "UCX";
    (void)state;

    const char *name = vnxi_nixl_intern(text);
    assert_string_equal(name, "UCX");
    assert_ptr_not_equal(name, text);
    text[0] = '?';
    assert_string_equal(name, "UCX");
    assert_ptr_equal(vnxi_nixl_intern("UCX"), name);
    assert_ptr_not_equal(vnxi_nixl_intern("UC"), name);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nixl_library_error_names_the_missing_file),
        cmocka_unit_test(test_nixl_library_error_names_the_missing_function),
        cmocka_unit_test(test_nixl_library_is_not_that_of_this_package),
        cmocka_unit_test(test_nixl_library_fault_of_a_plugin_names_its_file),
        cmocka_unit_test(test_nixl_library_interns_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
