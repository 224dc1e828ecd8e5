/* Options of a side channel, its counters, and its loop's threads. */
#include "vnx_test.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "net/loop.h"
#include "side_channel/channel.h"

#define SECRET_VARIABLE "VLLM_NIXL_SIDE_CHANNEL_SECRET"

static int
forget_secret(void **state)
{
    (void)state;
    return unsetenv(SECRET_VARIABLE);
}

static vnx_side_channel_options_t
read_well(const vnx_side_channel_options_t *given)
{
    vnx_side_channel_options_t all;
    vnx_error_t error;
    if (vnxi_options_read(VNX_SIDE_CHANNEL_TCP, given, &all, &error) !=
        VNX_OK) {
        fail_msg("%s", error.cause);
    }
    return all;
}

static void
assert_refused(const vnx_side_channel_options_t *given, vnx_status_t status,
               const char *words)
{
    vnx_side_channel_options_t all = {.max_frame = 4711};
    vnx_error_t error;
    assert_int_equal(
        vnxi_options_read(VNX_SIDE_CHANNEL_TCP, given, &all, &error), status);
    assert_int_equal(all.max_frame, 4711); /* outputs only on success */
    assert_string_equal(error.operation, "vnx_side_channel_create");
    assert_non_null(strstr(error.cause, words));
}

/* -- Options -------------------------------------------------------------- */

static void
test_options_are_all_set(void **state)
{
    const vnx_side_channel_options_t empty = {.size = sizeof empty};
    (void)state;

    for (int i = 0; i < 2; i++) {
        vnx_side_channel_options_t all = read_well(i ? &empty : NULL);
        assert_int_equal(all.size, sizeof all);
        assert_int_equal(all.max_frame, VNX_SIDE_CHANNEL_MAX_FRAME);
        assert_in_range(all.max_connections, 1, 4096);
        assert_int_equal(all.client_timeout_ms, VNX_SIDE_CHANNEL_TIMEOUT_MS);
        assert_int_equal(all.idle_timeout_ms, all.client_timeout_ms);
        assert_int_equal(all.max_rate, 0);
        assert_int_equal(all.tls, 0);
        assert_null(all.secret);
        assert_null(all.advertise);
        vnxi_options_fini(&all);
    }
}

static void
test_options_are_kept_and_bounded(void **state)
{
    const vnx_side_channel_options_t given = {
        .size = sizeof given,
        .max_frame = UINT32_MAX,
        .max_connections = 3,
        .client_timeout_ms = 100,
        .idle_timeout_ms = 200,
        .max_rate = 9,
    };
    vnx_side_channel_options_t all = read_well(&given);
    (void)state;

    /* A frame's length has to fit with what stands before the blob. */
    assert_in_range(all.max_frame, UINT32_MAX - 4096, UINT32_MAX - 64);
    assert_int_equal(all.max_connections, 3);
    assert_int_equal(all.client_timeout_ms, 100);
    assert_int_equal(all.idle_timeout_ms, 100); /* it cannot outlast */
    assert_int_equal(all.max_rate, 9);
    vnxi_options_fini(&all);
}

/* A program built with an older header passes fewer options. */
static void
test_options_of_an_older_program_are_accepted(void **state)
{
    vnx_side_channel_options_t given;
    (void)state;

    memset(&given, 0xa5, sizeof given); /* beyond its size: not looked at */
    given.size = offsetof(vnx_side_channel_options_t, client_timeout_ms);
    given.max_frame = 1000;
    given.max_connections = 2;
    vnx_side_channel_options_t all = read_well(&given);
    assert_int_equal(all.max_frame, 1000);
    assert_int_equal(all.client_timeout_ms, VNX_SIDE_CHANNEL_TIMEOUT_MS);
    assert_null(all.advertise);
    vnxi_options_fini(&all);
}

static void
test_options_of_an_unknown_size_are_refused(void **state)
{
    vnx_side_channel_options_t given = {0};
    (void)state;

    assert_refused(&given, VNX_ERR_INVALID_PARAM, "options.size is 0");
    given.size = sizeof given.size - 1;
    assert_refused(&given, VNX_ERR_INVALID_PARAM, "options.size is 7");
    given.size = sizeof given + 1;
    assert_refused(&given, VNX_ERR_INVALID_PARAM, "knows up to");
}

static void
test_options_strings_are_copied(void **state)
{
    char host[] = "10.0.0.1";
    const vnx_side_channel_options_t given = {.size = sizeof given,
                                              .advertise = host};
    vnx_side_channel_options_t all = read_well(&given);
    (void)state;

    memset(host, 'x', sizeof host - 1);
    assert_string_equal(all.advertise, "10.0.0.1");
    vnxi_options_fini(&all);
    assert_null(all.advertise);
    vnxi_options_fini(&all); /* again */
}

static void
test_options_secret_has_a_minimum_length_and_is_hidden(void **state)
{
    vnx_side_channel_options_t given = {.size = sizeof given,
                                        .secret = "s3cr3t!"};
    vnx_side_channel_options_t all;
    vnx_error_t error;
    (void)state;

    assert_refused(&given, VNX_ERR_INVALID_PARAM,
                   "7 bytes; it needs 8 at least");
    assert_int_not_equal(
        vnxi_options_read(VNX_SIDE_CHANNEL_TCP, &given, &all, &error), VNX_OK);
    assert_null(strstr(error.cause, "s3cr3t"));
    given.secret = "s3cr3t!!";
    if (!VNXI_TLS_IS_THERE) {
        assert_refused(&given, VNX_ERR_NOT_SUPPORTED, "not in this build");
        return;
    }
    all = read_well(&given);
    assert_string_equal(all.secret, "s3cr3t!!");
    assert_ptr_not_equal(all.secret, given.secret);
    vnxi_options_fini(&all);
}

static void
test_options_secret_comes_from_the_environment(void **state)
{
    vnx_side_channel_options_t given = {.size = sizeof given};
    (void)state;

    setenv(SECRET_VARIABLE, "", 1); /* is none */
    vnx_side_channel_options_t all = read_well(&given);
    assert_null(all.secret);
    vnxi_options_fini(&all);

    setenv(SECRET_VARIABLE, "short", 1);
    assert_refused(&given, VNX_ERR_INVALID_PARAM, "5 bytes");
    if (!VNXI_TLS_IS_THERE) {
        return;
    }
    setenv(SECRET_VARIABLE, "of the environment", 1);
    all = read_well(&given);
    assert_string_equal(all.secret, "of the environment");
    vnxi_options_fini(&all);
    given.secret = "of the program";
    all = read_well(&given);
    assert_string_equal(all.secret, "of the program");
    vnxi_options_fini(&all);
}

static void
test_options_of_tls_turn_it_on(void **state)
{
    const vnx_side_channel_options_t each[] = {
        {.size = sizeof each[0], .tls = 1},
        {.size = sizeof each[0], .tls_ca = "ca.pem"},
        {.size = sizeof each[0], .tls_name = "prefill"},
        {.size = sizeof each[0],
         .tls_certificate = "cert.pem",
         .tls_key = "key.pem"},
    };
    (void)state;

    for (size_t i = 0; i < sizeof each / sizeof each[0]; i++) {
        if (VNXI_TLS_IS_THERE) {
            vnx_side_channel_options_t all = read_well(&each[i]);
            assert_int_equal(all.tls, 1);
            vnxi_options_fini(&all);
        } else {
            assert_refused(&each[i], VNX_ERR_NOT_SUPPORTED, "TLS");
        }
    }
}

static void
test_options_certificate_and_key_go_together(void **state)
{
    vnx_side_channel_options_t given = {.size = sizeof given,
                                        .tls_certificate = "cert.pem"};
    (void)state;

    assert_refused(&given, VNX_ERR_INVALID_PARAM, "go together");
    given.tls_certificate = NULL;
    given.tls_key = "key.pem";
    assert_refused(&given, VNX_ERR_INVALID_PARAM, "go together");
}

/* Half of the descriptors are left to others. */
static void
test_options_connections_follow_the_descriptor_limit(void **state)
{
    struct rlimit before, few;
    (void)state;

    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    few = before;
    few.rlim_cur = 64;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &few), 0);
    vnx_side_channel_options_t all = read_well(NULL);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
    assert_int_equal(all.max_connections, 32);
    vnxi_options_fini(&all);
}

/* -- Counters ------------------------------------------------------------- */

static void
test_stats_return_the_counts(void **state)
{
    static vnxi_side_stats_t stats;
    vnx_side_channel_stats_t out;
    (void)state;

    vnxi_stat_add(&stats.accepted);
    vnxi_stat_add_count(&stats.bytes_received, 12);
    vnxi_stat_add_count(&stats.bytes_sent, UINT64_C(1) << 40);
    vnxi_stat_add_count(&stats.open, 3);
    vnxi_stat_sub(&stats.open);
    vnxi_stat_add_count(&stats.timed_out, 5);
    vnxi_stat_add_count(&stats.evicted, 6);
    for (int why = 0; why < VNX_SIDE_CHANNEL_REFUSALS; why++) {
        for (int i = 0; i <= why; i++) {
            vnxi_stat_refused(&stats, (vnx_side_channel_refusal_t)why);
        }
    }
    vnxi_stats_read(&stats, &out);
    assert_int_equal(out.accepted, 1);
    assert_int_equal(out.bytes_received, 12);
    assert_true(out.bytes_sent == UINT64_C(1) << 40);
    assert_int_equal(out.open, 2);
    assert_int_equal(out.timed_out, 5);
    assert_int_equal(out.evicted, 6);
    uint64_t sum = 0;
    for (int why = 0; why < VNX_SIDE_CHANNEL_REFUSALS; why++) {
        assert_int_equal(out.refusals[why], why + 1);
        sum += out.refusals[why];
    }
    assert_int_equal(out.refused, sum);
}

/* A reply that took as long as `ns`, or a little longer, in its place. */
static void
test_stats_latency_has_a_bucket_for_any_duration(void **state)
{
    static vnxi_side_stats_t stats;
    vnx_side_channel_stats_t out;
    uint64_t now = vnxi_clock_ns();
    vnxi_server_t server = {.stats = &stats};
    vnxi_conn_t conn = {.server = &server};
    (void)state;

    conn.start = now - UINT64_C(50000000); /* 50 ms and more */
    vnxi_conn_served(&conn);
    vnxi_stats_read(&stats, &out);
    uint64_t below = 0, all = 0;
    for (int i = 0; i < VNX_SIDE_CHANNEL_LATENCIES; i++) {
        all += out.latency[i];
        below += i < 16 ? out.latency[i] : 0; /* [15] ends at 32.8 ms */
    }
    assert_int_equal(all, 1);
    assert_int_equal(below, 0);
    assert_int_equal(out.served, 1);

    conn.start = now - (UINT64_C(1) << 62); /* 146 years */
    vnxi_conn_served(&conn);
    vnxi_stats_read(&stats, &out);
    assert_int_equal(out.latency[VNX_SIDE_CHANNEL_LATENCIES - 1], 1);
    assert_int_equal(out.served, 2);
}

static void
test_stats_every_refusal_has_its_own_name(void **state)
{
    (void)state;

    for (int i = 0; i < VNX_SIDE_CHANNEL_REFUSALS; i++) {
        const char *name =
            vnx_side_channel_refusal_name((vnx_side_channel_refusal_t)i);
        assert_non_null(name);
        for (int j = 0; j < i; j++) {
            assert_string_not_equal(name, vnx_side_channel_refusal_name(
                                              (vnx_side_channel_refusal_t)j));
        }
    }
    assert_string_equal(
        vnx_side_channel_refusal_name(VNX_SIDE_CHANNEL_REFUSED_RATE), "rate");
    assert_null(vnx_side_channel_refusal_name(VNX_SIDE_CHANNEL_REFUSALS));
    assert_null(vnx_side_channel_refusal_name((vnx_side_channel_refusal_t)-1));
}

/* -- Loops ---------------------------------------------------------------- */

static void
test_loop_base_ignores_the_environment(void **state)
{
    vnxi_loop_t loop;
    (void)state;

    setenv("EVENT_NOEPOLL", "1", 1);
    bool is_made = vnxi_loop_init(&loop, NULL, &loop);
    unsetenv("EVENT_NOEPOLL");
    assert_true(is_made);
    assert_string_equal(event_base_get_method(loop.base), "epoll");
    vnxi_loop_fini(&loop);
}

/* Over HTTP a secret is a token, which needs TLS; over TCP it is TLS's key. */
static void
test_options_secret_and_certificates_exclude_each_other_over_tcp(void **state)
{
    vnx_side_channel_options_t given = {
        .size = sizeof given, .secret = "s3cr3t!!", .tls_ca = "ca.pem"};
    vnx_side_channel_options_t all;
    (void)state;

    if (!VNXI_TLS_IS_THERE) {
        assert_refused(&given, VNX_ERR_NOT_SUPPORTED, "not in this build");
        return;
    }
    assert_refused(&given, VNX_ERR_INVALID_PARAM,
                   "secret and the tls options exclude each other");
    given.tls_ca = NULL;
    given.tls = 7;
    assert_refused(&given, VNX_ERR_INVALID_PARAM, "exclude each other");
    given.secret = NULL;
    setenv(SECRET_VARIABLE, "of the environment", 1);
    assert_refused(&given, VNX_ERR_INVALID_PARAM,
                   SECRET_VARIABLE " and the tls options");
    given.tls = 0;
    all = read_well(&given);
    assert_int_equal(all.tls, VNXI_TLS_SECRET);
    vnxi_options_fini(&all);
    given.tls = 7;
    assert_int_equal(
        vnxi_options_read(VNX_SIDE_CHANNEL_HTTP, &given, &all, NULL), VNX_OK);
    assert_int_equal(all.tls, VNXI_TLS_CERTIFICATE);
    vnxi_options_fini(&all);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_options_are_all_set),
        cmocka_unit_test(test_options_are_kept_and_bounded),
        cmocka_unit_test(test_options_of_an_older_program_are_accepted),
        cmocka_unit_test(test_options_of_an_unknown_size_are_refused),
        cmocka_unit_test(test_options_strings_are_copied),
        cmocka_unit_test(
            test_options_secret_has_a_minimum_length_and_is_hidden),
        cmocka_unit_test_teardown(
            test_options_secret_comes_from_the_environment, forget_secret),
        cmocka_unit_test_teardown(
            test_options_secret_and_certificates_exclude_each_other_over_tcp,
            forget_secret),
        cmocka_unit_test(test_options_of_tls_turn_it_on),
        cmocka_unit_test(test_options_certificate_and_key_go_together),
        cmocka_unit_test(test_options_connections_follow_the_descriptor_limit),
        cmocka_unit_test(test_stats_return_the_counts),
        cmocka_unit_test(test_stats_latency_has_a_bucket_for_any_duration),
        cmocka_unit_test(test_stats_every_refusal_has_its_own_name),
        cmocka_unit_test(test_loop_base_ignores_the_environment),
    };
    return cmocka_run_group_tests(tests, forget_secret, NULL);
}
