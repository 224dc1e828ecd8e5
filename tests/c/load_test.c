/* Errors for refused metadata, common to all engines. */
#include "vnx_test.h"

#include <string.h>

#include "engine/parts/load.h"

/* Of the agent "prefill", with connections by these backends. */
static vnxi_metadata_t
blob_of(vnxi_md_conn_t *conns, const char *const *backends, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        conns[i].backend = (vnxi_md_bytes_t){backends[i], strlen(backends[i])};
    }
    return (vnxi_metadata_t){
        .agent = {"prefill", 7}, .conns = conns, .conn_count = count};
}

static void
expect_no_way(const char *const *backends, size_t count, const char *cause)
{
    vnxi_md_conn_t conns[64];
    vnxi_metadata_t blob = blob_of(conns, backends, count);
    vnx_error_t error;

    assert_int_equal(vnxi_load_refuse_no_way(&blob, "has SHM", &error),
                     VNX_ERR_BACKEND);
    assert_int_equal(error.status, VNX_ERR_BACKEND);
    assert_string_equal(error.operation, "add_remote_agent");
    assert_string_equal(error.peer, "prefill");
    assert_string_equal(error.cause, cause);
}

static void
test_load_names_what_the_peer_offers(void **state)
{
    (void)state;
    static const char *const two[] = {"UCX", "GDS"};
    static const char *const odd[] = {"U\nX\xff"};

    expect_no_way(two, 1,
                  "no way to reach it: it offers UCX, this agent has SHM");
    expect_no_way(
        two, 2, "no way to reach it: it offers UCX, GDS, this agent has SHM");
    expect_no_way(odd, 1,
                  "no way to reach it: it offers U?X?, this agent has SHM");
}

/* Names come from the network: neither one of them nor all together take more
 * room than there is. */
static void
test_load_truncates_long_names(void **state)
{
    (void)state;
    const char *names[64];
    vnxi_md_conn_t conns[64];
    vnx_error_t error;

    for (size_t i = 0; i < 64; i++) {
        names[i] = "0123456789012345678901234567890123456789";
    }
    expect_no_way(names, 1,
                  "no way to reach it: it offers "
                  "01234567890123456789012345678901, this agent has SHM");
    vnxi_metadata_t blob = blob_of(conns, names, 64);
    vnxi_load_refuse_no_way(&blob, "has SHM", &error);
    assert_non_null(strstr(error.cause, ", this agent has SHM"));
    assert_in_range(strlen(error.cause), 100, 200);
}

static void
test_load_refuses_with_the_agents_name(void **state)
{
    (void)state;
    vnxi_metadata_t blob = blob_of(NULL, NULL, 0);
    vnx_error_t error;

    assert_int_equal(
        vnxi_load_refuse(&blob, VNX_ERR_NOT_SUPPORTED, "100 %s", &error),
        VNX_ERR_NOT_SUPPORTED);
    assert_string_equal(error.cause, "100 %s"); /* no format */
    assert_string_equal(error.peer, "prefill");
    assert_int_equal(vnxi_load_refuse_unknown(&blob, &error),
                     VNX_ERR_NOT_FOUND);
    assert_non_null(strstr(error.cause, "load its full metadata first"));
    assert_int_equal(vnxi_load_refuse_unknown(&blob, NULL), VNX_ERR_NOT_FOUND);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_load_names_what_the_peer_offers),
        cmocka_unit_test(test_load_truncates_long_names),
        cmocka_unit_test(test_load_refuses_with_the_agents_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
