/* Checks before a request, and the advertised address. */
#include "side_channel_peer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "side_channel/channel.h"

#define HOST_VARIABLE "VLLM_NIXL_SIDE_CHANNEL_HOST"

typedef vnx_side_channel_request_params_t params_t;

static params_t
good_params(int port)
{
    return (params_t){.size = sizeof(params_t),
                      .host = "127.0.0.1",
                      .port = port,
                      .timeout_ms = 20000};
}

/* -- Checks before a request ---------------------------------------------- */

static void
assert_refused(const params_t *params, const char *words)
{
    vnx_side_channel_t *channel = channel_new(NULL);
    void *data = &data;
    size_t len = 4711;
    vnx_error_t error;

    assert_int_equal(
        vnx_side_channel_request_with(channel, params, &data, &len, &error),
        VNX_ERR_INVALID_PARAM);
    assert_ptr_equal(data, &data); /* outputs only on success */
    assert_int_equal(len, 4711);
    assert_string_equal(error.operation, "vnx_side_channel_request");
    assert_int_equal(error.row, -1); /* one alone has no row */
    if (strstr(error.cause, words) == NULL) {
        fail_msg("'%s' is not in: %s", words, error.cause);
    }
    vnx_side_channel_free(channel);
}

static void
test_ask_refuses_invalid_requests(void **state)
{
    params_t params = good_params(1);
    (void)state;

    params.host = NULL;
    assert_refused(&params, "no host");
    params.host = "";
    assert_refused(&params, "no host");
    for (int port = -1; port <= 65536; port += 65536 + 1) {
        params = good_params(port);
        assert_refused(&params, "is not in 1 to 65535");
    }
    params = good_params(0);
    assert_refused(&params, "port 0 is not in 1 to 65535");
    params = good_params(1);
    params.timeout_ms = 0;
    assert_refused(&params, "a timeout of 0 ms is not above 0");
    params.timeout_ms = -5;
    assert_refused(&params, "a timeout of -5 ms");
}

static void
test_ask_refuses_invalid_keys(void **state)
{
    char key[VNX_SIDE_CHANNEL_KEY_MAX + 1] = "";
    params_t params = good_params(1);
    (void)state;

    params.key = key;
    params.key_length = sizeof key;
    assert_refused(&params, "a key of 256 bytes is above 255");
    params.key = NULL;
    params.key_length = 3;
    assert_refused(&params, "the key is NULL, its length is 3");
}

static void
test_ask_refuses_params_of_unknown_size(void **state)
{
    params_t params = good_params(1);
    (void)state;

    params.size = 0;
    assert_refused(&params, "params.size is 0");
    params.size = sizeof(size_t) - 1;
    assert_refused(&params, "params.size is 7");
    params.size = sizeof params + 8;
    assert_refused(&params, "this library knows up to");
}

static void
test_ask_many_names_the_row(void **state)
{
    vnx_side_channel_t *channel = channel_new(NULL);
    params_t params[3] = {good_params(1), good_params(1), good_params(0)};
    vnx_side_channel_answer_t answers[3];
    vnx_error_t error;
    (void)state;

    assert_int_equal(
        vnx_side_channel_request_many(channel, params, 3, answers, &error),
        VNX_ERR_INVALID_PARAM);
    assert_int_equal(error.row, 2);
    assert_int_equal(
        vnx_side_channel_request_many(channel, params, 3, answers, NULL),
        VNX_ERR_INVALID_PARAM); /* without an error record */
    assert_int_equal(
        vnx_side_channel_request_many(channel, NULL, 0, NULL, &error), VNX_OK);
    vnx_side_channel_free(channel);
}

/* A program of an older header passes fewer fields, back to back. */
static void
test_ask_many_accepts_params_of_an_older_size(void **state)
{
    typedef struct older {
        size_t size;
        const char *host;
        int port, timeout_ms;
    } older_t;
    vnx_side_channel_t *channel = channel_new(NULL);
    int port = channel_start(channel, "blob", 4);
    older_t older[3];
    vnx_side_channel_answer_t answers[3];
    vnx_error_t error;
    (void)state;

    for (int i = 0; i < 3; i++) {
        older[i] = (older_t){sizeof older[i], "127.0.0.1", port, 20000};
    }
    assert_int_equal(vnx_side_channel_request_many(
                         channel, (const void *)older, 3, answers, &error),
                     VNX_OK);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(answers[i].status, VNX_OK);
        assert_int_equal(answers[i].length, 4);
        assert_memory_equal(answers[i].metadata, "blob", 4);
        free(answers[i].metadata);
    }
    vnx_side_channel_free(channel);
}

/* Arguments are copied, so they may be freed before the answer. */
static void
test_ask_copies_the_callers_params(void **state)
{
    vnx_side_channel_t *channel = channel_new(NULL);
    char *host = strdup("127.0.0.1"), *key = strdup("k");
    int port = 0;
    const vnx_side_channel_blob_t blob = {"k", 1, "blob", 4};
    const vnx_side_channel_start_params_t start = {
        .size = sizeof start, .host = host, .blobs = &blob, .count = 1};
    vnx_side_channel_answer_t answer;
    vnxi_requests_t *requests;
    (void)state;

    assert_int_equal(vnx_side_channel_start_with(channel, &start, &port, NULL),
                     VNX_OK);
    params_t params = good_params(port);
    params.host = host;
    params.key = key;
    params.key_length = 1;
    assert_int_equal(vnxi_requests_make(channel, &params, 1, &requests, NULL),
                     VNX_OK);
    memset(host, 'x', 9);
    memset(key, 'x', 1);
    free(host);
    free(key);
    assert_true(vnxi_requests_run(requests, NULL, NULL));
    vnxi_requests_take(requests, 0, &answer);
    assert_int_equal(answer.status, VNX_OK);
    assert_memory_equal(answer.metadata, "blob", 4);
    free(answer.metadata);
    vnxi_requests_free(requests);
    vnxi_requests_free(NULL);
    vnx_side_channel_free(channel);
}

/* -- Advertised addresses ------------------------------------------------- */

/* The address that a channel listening on `bound` advertises. */
static void
assert_advertised(const char *bound, const char *advertise, const char *want)
{
    const vnx_side_channel_options_t options = {.size = sizeof options,
                                                .advertise = advertise};
    vnx_side_channel_t *channel = channel_new(&options);
    char host[VNX_SIDE_CHANNEL_ADDRESS_MAX];
    vnx_error_t error;
    int port = 0, told = 0;

    assert_int_equal(
        vnx_side_channel_start(channel, bound, 0, "", 0, &port, &error),
        VNX_OK);
    assert_int_equal(
        vnx_side_channel_advertised(channel, NULL, host, &told, &error),
        VNX_OK);
    assert_string_equal(host, want);
    assert_int_equal(told, port);
    vnx_side_channel_free(channel);
}

static int
forget_host(void **state)
{
    (void)state;
    return unsetenv(HOST_VARIABLE);
}

static void
test_advertised_is_the_first_bound_address(void **state)
{
    (void)state;

    assert_advertised("127.0.0.1", NULL, "127.0.0.1");
    assert_advertised("127.0.0.2,127.0.0.1", NULL, "127.0.0.2");
    assert_advertised("lo", NULL, "127.0.0.1"); /* the interface's address */
}

static void
test_advertised_option_overrides_everything(void **state)
{
    (void)state;

    assert_advertised("127.0.0.1", "prefill.example", "prefill.example");
    assert_advertised("127.0.0.1", " first , second", "first");
    assert_advertised("127.0.0.1", "", "127.0.0.1"); /* is none */
    setenv(HOST_VARIABLE, "127.0.0.3", 1);
    assert_advertised("127.0.0.1", "prefill.example", "prefill.example");
    assert_advertised("127.0.0.1", NULL, "127.0.0.3");
}

static void
test_advertised_host_is_cut_to_fit(void **state)
{
    char longer[2 * VNX_SIDE_CHANNEL_ADDRESS_MAX];
    char want[VNX_SIDE_CHANNEL_ADDRESS_MAX];
    (void)state;

    memset(longer, 'h', sizeof longer - 1);
    longer[sizeof longer - 1] = '\0';
    memset(want, 'h', sizeof want - 1);
    want[sizeof want - 1] = '\0';
    assert_advertised("127.0.0.1", longer, want);
}

/* For a wildcard address, a specific address is advertised. */
static void
test_advertised_is_never_a_wildcard(void **state)
{
    vnx_side_channel_t *channel = channel_new(NULL);
    char host[VNX_SIDE_CHANNEL_ADDRESS_MAX];
    int port = channel_start(channel, "blob", 4);
    void *data;
    size_t len;
    (void)state;

    assert_int_equal(
        vnx_side_channel_advertised(channel, "peer", host, NULL, NULL),
        VNX_OK);
    assert_string_not_equal(host, "0.0.0.0");
    assert_string_not_equal(host, "::");
    assert_string_not_equal(host, "*");
    /* And it serves. */
    assert_int_equal(vnx_side_channel_request(channel, host, port, 20000,
                                              &data, &len, NULL),
                     VNX_OK);
    assert_int_equal(len, 4);
    free(data);
    vnx_side_channel_free(channel);
}

static void
test_advertised_needs_a_listener(void **state)
{
    vnx_side_channel_t *channel = channel_new(NULL);
    char host[VNX_SIDE_CHANNEL_ADDRESS_MAX] = "untouched";
    vnx_error_t error;
    int port = 4711;
    (void)state;

    for (int i = 0; i < 2; i++) {
        assert_int_equal(
            vnx_side_channel_advertised(channel, NULL, host, &port, &error),
            VNX_ERR_NOT_ALLOWED);
        assert_string_equal(error.operation, "vnx_side_channel_advertised");
        assert_string_equal(host, "untouched");
        assert_int_equal(port, 4711);
        channel_start(channel, "", 0);
        vnx_side_channel_shutdown(channel);
    }
    vnx_side_channel_free(channel);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ask_refuses_invalid_requests),
        cmocka_unit_test(test_ask_refuses_invalid_keys),
        cmocka_unit_test(test_ask_refuses_params_of_unknown_size),
        cmocka_unit_test(test_ask_many_names_the_row),
        cmocka_unit_test(test_ask_many_accepts_params_of_an_older_size),
        cmocka_unit_test(test_ask_copies_the_callers_params),
        cmocka_unit_test(test_advertised_is_the_first_bound_address),
        cmocka_unit_test_teardown(test_advertised_option_overrides_everything,
                                  forget_host),
        cmocka_unit_test(test_advertised_host_is_cut_to_fit),
        cmocka_unit_test(test_advertised_is_never_a_wildcard),
        cmocka_unit_test(test_advertised_needs_a_listener),
    };
    return cmocka_run_group_tests(tests, forget_host, NULL);
}
