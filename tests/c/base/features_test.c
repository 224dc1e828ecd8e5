/* What vnx_features() says is what the calls do. */
#include "vnx_test.h"

#include <vnx/side_channel.h>
#include <vnx/vnx.h>

static vnx_status_t
create_channel(vnx_side_channel_kind_t kind,
               const vnx_side_channel_options_t *options)
{
    vnx_side_channel_t *channel = NULL;
    vnx_status_t status =
        vnx_side_channel_create(kind, options, &channel, NULL);
    vnx_side_channel_free(channel);
    return status;
}

static vnx_status_t
create_agent(const char *secret, size_t len)
{
    vnx_agent_t *agent = NULL;
    vnx_agent_config_t config = {.size = sizeof config,
                                 .engine = "native",
                                 .metadata_secret = secret,
                                 .metadata_secret_len = len};
    vnx_status_t status = vnx_agent_create("a", 1, &config, &agent, NULL);
    vnx_agent_release(agent);
    return status;
}

static void
assert_feature(const char *name, vnx_status_t status)
{
    assert_int_equal(status,
                     vnx_has_feature(name) ? VNX_OK : VNX_ERR_NOT_SUPPORTED);
}

static void
test_features_are_those_that_calls_have(void **state)
{
    vnx_side_channel_options_t tls = {.size = sizeof tls, .tls = 1};
    vnx_side_channel_options_t secret = {.size = sizeof secret,
                                         .secret = "a secret"};
    (void)state;

    assert_feature("http", create_channel(VNX_SIDE_CHANNEL_HTTP, NULL));
    assert_feature("zmq", create_channel(VNX_SIDE_CHANNEL_ZMQ, NULL));
    assert_feature("tls", create_channel(VNX_SIDE_CHANNEL_TCP, &tls));
    assert_feature("shared_secret",
                   create_channel(VNX_SIDE_CHANNEL_TCP, &secret));
    assert_feature("signed_metadata", create_agent("a secret", 8));
}

static void
test_features_are_listed_and_unknown_names_are_not_there(void **state)
{
    size_t count = 0;
    const vnx_feature_t *features = vnx_features(&count);
    (void)state;

    assert_int_equal(count, 5);
    for (size_t i = 0; i < count; i++) {
        assert_int_equal(vnx_has_feature(features[i].name),
                         features[i].is_built);
    }
    assert_false(vnx_has_feature("HTTP"));
    assert_false(vnx_has_feature(""));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_features_are_those_that_calls_have),
        cmocka_unit_test(
            test_features_are_listed_and_unknown_names_are_not_there),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
